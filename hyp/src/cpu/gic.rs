//! The physical GIC as EL2 uses it.
//!
//! The host owns the distributor, the redistributors and, while it runs, the
//! CPU interface. While a guest runs, EL2 takes the interrupts (HCR_EL2.IMO):
//! it acknowledges those that are its own, and leaves every other pending for
//! the host. Encodings: IHI0069, 12.1.10.

use log::warn;
use spin::mutex::SpinMutex;

use super::instr;
use crate::boot::tree::{Machine, Ppis};
use crate::memory::region::Region;
use crate::{mrs, msr};
use rmi::vendor::KICK_SGI;

/// INTIDs from here on are special: nothing is pending for us.
pub const SPECIAL: u32 = 1020;

/// Offsets in a redistributor: RD_base, and SGI_base 64 KiB above (IHI0069,
/// 12.11).
pub mod gicr {
    #![allow(missing_docs)] // the names are the specification's
    pub const CTLR: u64 = 0x0;
    pub const TYPER: u64 = 0x8;
    pub const STATUSR: u64 = 0x10;
    pub const WAKER: u64 = 0x14;
    pub const SGI_BASE: u64 = 0x1_0000;
    pub const IGROUPR0: u64 = SGI_BASE + 0x80;
    pub const ISENABLER0: u64 = SGI_BASE + 0x100;
    pub const ICENABLER0: u64 = SGI_BASE + 0x180;
    pub const ISPENDR0: u64 = SGI_BASE + 0x200;
    pub const ICPENDR0: u64 = SGI_BASE + 0x280;
    pub const ISACTIVER0: u64 = SGI_BASE + 0x300;
    pub const ICACTIVER0: u64 = SGI_BASE + 0x380;
    pub const IPRIORITYR: u64 = SGI_BASE + 0x400;
    pub const ICFGR: u64 = SGI_BASE + 0xc00;
    /// Both frames.
    pub const SIZE: u64 = 0x2_0000;
    /// With the two frames of GICv4 behind them (TYPER.VLPIS).
    pub const SIZE_VLPIS: u64 = 0x4_0000;

    pub const CTLR_ENABLE_LPIS: u64 = 1 << 0;
    pub const CTLR_RWP: u64 = 1 << 3;
    pub const TYPER_VLPIS: u64 = 1 << 1;
    pub const TYPER_LAST: u64 = 1 << 4;
    pub const WAKER_PROCESSOR_SLEEP: u64 = 1 << 1;
}

/// Registers of redistributors, as they are reached.
pub trait Registers {
    /// Reads `size` bytes (1, 4 or 8).
    fn read(&self, address: u64, size: u32) -> u64;
    /// Writes them.
    fn write(&self, address: u64, size: u32, value: u64);
    /// Replaces a register's value by what `change` makes of it, as one step for
    /// all who change registers so.
    fn modify(&self, address: u64, size: u32, change: impl FnOnce(u64) -> u64);
}

/// Those of the machine. Every address is in a redistributor region of the
/// device tree, which EL2 maps as Device memory.
#[derive(Clone, Copy, Debug)]
pub struct Machines;

/// Held from the reading of a redistributor's register to its writing.
static MODIFY: SpinMutex<()> = SpinMutex::new(());

impl Registers for Machines {
    fn read(&self, address: u64, size: u32) -> u64 {
        // SAFETY: a register of a redistributor, by the type's contract; reading
        // one has no effect on memory.
        unsafe {
            match size {
                1 => u64::from((address as *const u8).read_volatile()),
                4 => u64::from((address as *const u32).read_volatile()),
                _ => (address as *const u64).read_volatile(),
            }
        }
    }

    fn write(&self, address: u64, size: u32, value: u64) {
        // SAFETY: as `read`; those who write (this file and
        // exception/redistributor.rs) write states and settings of interrupts,
        // none that has the GIC access memory.
        unsafe {
            match size {
                1 => (address as *mut u8).write_volatile(value as u8),
                4 => (address as *mut u32).write_volatile(value as u32),
                _ => (address as *mut u64).write_volatile(value),
            }
        }
    }

    fn modify(&self, address: u64, size: u32, change: impl FnOnce(u64) -> u64) {
        let _lock = MODIFY.lock();
        let value = change(self.read(address, size));
        self.write(address, size, value);
    }
}

fn write32(address: u64, value: u32) {
    Machines.write(address, 4, u64::from(value));
}

/// The redistributors of one region: RD_base and TYPER of each.
pub fn redistributors<R: Registers>(
    registers: &R,
    region: Region,
    stride: Option<u64>,
) -> impl Iterator<Item = (u64, u64)> {
    let mut next = Some(region.base());
    core::iter::from_fn(move || {
        let frame = next?;
        if frame.checked_add(gicr::SIZE)? > region.end() {
            return None;
        }
        let typer = registers.read(frame + gicr::TYPER, 8);
        let own = if typer & gicr::TYPER_VLPIS != 0 {
            gicr::SIZE_VLPIS
        } else {
            gicr::SIZE
        };
        next = frame
            .checked_add(stride.unwrap_or(own))
            .filter(|_| typer & gicr::TYPER_LAST == 0);
        Some((frame, typer))
    })
}

/// An affinity of MPIDR_EL1's as GICR_TYPER has it.
fn affinity(mpidr: u64) -> u64 {
    (mpidr & 0xff_ffff) | (mpidr >> 8 & 0xff00_0000)
}

/// The redistributor of the PE with this affinity: its RD_base.
pub fn find_redistributor(regions: &[Region], stride: Option<u64>, mpidr: u64) -> Option<u64> {
    let affinity = affinity(mpidr);
    regions
        .iter()
        .flat_map(|region| redistributors(&Machines, *region, stride))
        .find(|(_, typer)| typer >> 32 == affinity)
        .map(|(frame, _)| frame)
}

/// What a PE knows of its GIC.
#[derive(Clone, Copy, Debug)]
pub struct Gic {
    gicd: u64,
    rd_base: u64,
    ppi: Ppis,
    /// List registers, ICH_VTR_EL2.ListRegs + 1.
    pub list_registers: usize,
    /// Words of active priorities, from ICH_VTR_EL2.PREbits: 1, 2 or 4.
    active_words: usize,
}

/// The virtual CPU interface of a vCPU while it does not run.
#[derive(Clone, Copy, Debug, Default)]
pub struct VirtualInterface {
    /// ICH_VMCR_EL2.
    pub vmcr: u64,
    ap0r: [u64; 4],
    ap1r: [u64; 4],
}

/// What the host's CPU interface and the virtual timer's interrupt had before EL2
/// borrowed them for a guest.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostInterface {
    pmr: u64,
    ctlr: u64,
    igrpen1: u64,
    timer: Line,
    timer_active: bool,
    /// By a write of the host's: its timer is off meanwhile.
    timer_pending: bool,
}

/// The settings of an SGI or PPI.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Line {
    enabled: bool,
    group1: bool,
    priority: u8,
    edge: bool,
}

impl Line {
    /// What EL2 needs of an interrupt that it takes: a priority above the usual,
    /// and level-sensitive as timers are.
    const OURS: Self = Self {
        enabled: true,
        group1: true,
        priority: 0x80,
        edge: false,
    };
}

/// Active priority words for a count of preemption bits.
const fn active_words(vtr: u64) -> usize {
    match (vtr >> 26 & 7) + 1 {
        7 => 4,
        6 => 2,
        _ => 1,
    }
}

impl Gic {
    /// Sets up this PE's side: system register access at EL2 and EL1.
    pub fn init(machine: &Machine, rd_base: u64) -> Self {
        msr!("S3_4_C12_C9_5", 0xf); // ICC_SRE_EL2: SRE, DFB, DIB, Enable
        instr::isb();
        msr!("S3_0_C12_C12_5", 0x7); // ICC_SRE_EL1: the same for EL1
        msr!("S3_4_C12_C11_0", 0); // ICH_HCR_EL2: no virtual interrupts yet
        instr::isb();
        let vtr = mrs!("S3_4_C12_C11_1");
        Self {
            gicd: machine.gicd.base(),
            rd_base,
            ppi: machine.ppi,
            list_registers: (vtr & 0x1f) as usize + 1,
            active_words: active_words(vtr),
        }
    }

    /// Has the redistributor access no memory: a boot loader may have left LPIs
    /// on, with tables in what is RAM like any other now.
    pub fn stop_lpis(&self) {
        let ctlr = self.rd_base + gicr::CTLR;
        if Machines.read(ctlr, 4) & gicr::CTLR_ENABLE_LPIS == 0 {
            return;
        }
        Machines.modify(ctlr, 4, |ctlr| ctlr & !gicr::CTLR_ENABLE_LPIS);
        while Machines.read(ctlr, 4) & gicr::CTLR_RWP != 0 {
            core::hint::spin_loop();
        }
        if Machines.read(ctlr, 4) & gicr::CTLR_ENABLE_LPIS != 0 {
            warn!(
                "the GIC goes on using the LPI tables of the boot loader: \
                 the device tree must reserve them"
            );
        }
    }

    /// Makes EL2's own interrupts deliverable on this PE: enabled, group 1, with
    /// a priority above the usual. The host cannot change them after that
    /// (exception/redistributor.rs).
    pub fn enable_own(&self) {
        let asleep = gicr::WAKER_PROCESSOR_SLEEP;
        Machines.modify(self.rd_base + gicr::WAKER, 4, |waker| waker & !asleep);
        for intid in [self.ppi.maintenance, self.ppi.hyp_timer, KICK_SGI] {
            self.set_line(intid, Line::OURS);
        }
    }

    /// The settings of an SGI or PPI of this PE.
    fn line(&self, intid: u32) -> Line {
        let bit = |offset| Machines.read(self.rd_base + offset, 4) >> intid & 1 != 0;
        Line {
            enabled: bit(gicr::ISENABLER0),
            group1: bit(gicr::IGROUPR0),
            priority: Machines.read(self.priority(intid), 1) as u8,
            edge: intid >= 16 && self.is_edge(intid),
        }
    }

    fn is_edge(&self, intid: u32) -> bool {
        let (register, bit) = self.config(intid);
        Machines.read(register, 4) & bit != 0
    }

    /// ICFGR of an interrupt, and its bit there that says edge-triggered.
    fn config(&self, intid: u32) -> (u64, u64) {
        let register = self.rd_base + gicr::ICFGR + u64::from(intid / 16) * 4;
        (register, 2 << (intid % 16 * 2))
    }

    /// Changes them. When it returns, one that is disabled is not signalled.
    fn set_line(&self, intid: u32, line: Line) {
        // An SGI is edge-triggered, and nothing else.
        let edge = intid >= 16 && line.edge != self.is_edge(intid);
        // The way that an interrupt is triggered changes while it is disabled
        // (IHI0069H, 12.9.9).
        if !line.enabled || edge {
            write32(self.rd_base + gicr::ICENABLER0, 1 << intid);
            while Machines.read(self.rd_base + gicr::CTLR, 4) & gicr::CTLR_RWP != 0 {
                core::hint::spin_loop();
            }
        }
        let group = self.rd_base + gicr::IGROUPR0;
        let bit = 1 << intid;
        Machines.modify(group, 4, |group| {
            if line.group1 {
                group | bit
            } else {
                group & !bit
            }
        });
        Machines.write(self.priority(intid), 1, line.priority.into());
        if edge {
            let (register, bit) = self.config(intid);
            Machines.modify(register, 4, |config| {
                if line.edge {
                    config | bit
                } else {
                    config & !bit
                }
            });
        }
        if line.enabled {
            write32(self.rd_base + gicr::ISENABLER0, 1 << intid);
        }
    }

    fn priority(&self, intid: u32) -> u64 {
        self.rd_base + gicr::IPRIORITYR + u64::from(intid)
    }

    /// Sets or clears the active state of the virtual timer's PPI: while active
    /// it is not signalled again.
    pub fn set_timer_active(&self, active: bool) {
        let register = if active {
            gicr::ISACTIVER0
        } else {
            gicr::ICACTIVER0
        };
        write32(self.rd_base + register, 1 << self.ppi.virtual_timer);
    }

    /// Sets the pending state of an interrupt below 1020.
    fn make_pending(&self, intid: u32) {
        if let Some((redistributor, offset)) = ispendr(intid) {
            let base = if redistributor {
                self.rd_base
            } else {
                self.gicd
            };
            write32(base + offset, 1 << (intid % 32));
        }
    }

    /// Borrows from the host, for a guest: the CPU interface, so that every
    /// priority passes, group 1 is on, and EOI only drops priority (the virtual
    /// timer's interrupt stays active until the guest deactivates it); and that
    /// interrupt. `changed`: the host may have changed it since the last time.
    pub fn borrow(&self, host: &mut HostInterface, changed: bool) {
        host.pmr = mrs!("S3_0_C4_C6_0");
        host.ctlr = mrs!("S3_0_C12_C12_4");
        host.igrpen1 = mrs!("S3_0_C12_C12_7");
        msr!("S3_0_C4_C6_0", 0xff);
        msr!("S3_0_C12_C12_4", host.ctlr | 1 << 1);
        msr!("S3_0_C12_C12_7", 1);
        // Without Enable, EL1's access to ICC_SRE_EL1 traps: it is shared.
        msr!("S3_4_C12_C9_5", 0x7);
        let timer = self.ppi.virtual_timer;
        if changed {
            host.timer = self.line(timer);
        }
        if changed || host.timer_pending {
            let pending = Machines.read(self.rd_base + gicr::ISPENDR0, 4);
            host.timer_pending = pending >> timer & 1 != 0;
            if host.timer_pending {
                write32(self.rd_base + gicr::ICPENDR0, 1 << timer);
            }
        }
        if host.timer != Line::OURS {
            self.set_line(timer, Line::OURS);
        }
        let active = Machines.read(self.rd_base + gicr::ISACTIVER0, 4);
        host.timer_active = active >> timer & 1 != 0;
        if host.timer_active {
            self.set_timer_active(false);
        }
    }

    /// Gives it back as it was, whatever the guest has left: it may have
    /// acknowledged the timer's interrupt and not ended it.
    pub fn give_back(&self, host: &HostInterface) {
        self.set_timer_active(host.timer_active);
        if host.timer != Line::OURS {
            self.set_line(self.ppi.virtual_timer, host.timer);
        }
        if host.timer_pending {
            write32(self.rd_base + gicr::ISPENDR0, 1 << self.ppi.virtual_timer);
        }
        msr!("S3_0_C4_C6_0", host.pmr);
        msr!("S3_0_C12_C12_4", host.ctlr);
        msr!("S3_0_C12_C12_7", host.igrpen1);
        msr!("S3_4_C12_C9_5", 0xf);
    }

    /// Loads a vCPU's virtual interface, all but the list registers.
    pub fn load(&self, interface: &VirtualInterface) {
        msr!("S3_4_C12_C11_7", interface.vmcr);
        let (a0, a1) = (&interface.ap0r, &interface.ap1r);
        msr!("S3_4_C12_C8_0", a0[0]);
        msr!("S3_4_C12_C9_0", a1[0]);
        if self.active_words > 1 {
            msr!("S3_4_C12_C8_1", a0[1]);
            msr!("S3_4_C12_C9_1", a1[1]);
        }
        if self.active_words > 2 {
            msr!("S3_4_C12_C8_2", a0[2]);
            msr!("S3_4_C12_C9_2", a1[2]);
            msr!("S3_4_C12_C8_3", a0[3]);
            msr!("S3_4_C12_C9_3", a1[3]);
        }
    }

    /// Saves what [`Self::load`] loads, and turns the virtual interface off.
    pub fn save(&self, interface: &mut VirtualInterface) {
        msr!("S3_4_C12_C11_0", 0);
        interface.vmcr = mrs!("S3_4_C12_C11_7");
        interface.ap0r[0] = mrs!("S3_4_C12_C8_0");
        interface.ap1r[0] = mrs!("S3_4_C12_C9_0");
        if self.active_words > 1 {
            interface.ap0r[1] = mrs!("S3_4_C12_C8_1");
            interface.ap1r[1] = mrs!("S3_4_C12_C9_1");
        }
        if self.active_words > 2 {
            interface.ap0r[2] = mrs!("S3_4_C12_C8_2");
            interface.ap1r[2] = mrs!("S3_4_C12_C9_2");
            interface.ap0r[3] = mrs!("S3_4_C12_C8_3");
            interface.ap1r[3] = mrs!("S3_4_C12_C9_3");
        }
    }

    /// What is pending, of EL2's own interrupts, acknowledged; or that it is for
    /// the host, or nothing.
    pub fn take(&self) -> Taken {
        let pending = (mrs!("S3_0_C12_C12_2") & 0xff_ffff) as u32;
        if is_special(pending) {
            return Taken::Nothing;
        }
        let taken = match pending {
            p if p == self.ppi.virtual_timer => Taken::VirtualTimer,
            p if p == self.ppi.hyp_timer => Taken::HypTimer,
            p if p == self.ppi.maintenance => Taken::Maintenance,
            KICK_SGI => Taken::Kick,
            _ => return Taken::Host,
        };
        let intid = mrs!("S3_0_C12_C12_0"); // ICC_IAR1_EL1
        instr::dsb_sy();
        if intid & 0xff_ffff != u64::from(pending) {
            // A higher priority came between: it goes back to pending.
            let intid = (intid & 0xff_ffff) as u32;
            if !is_special(intid) {
                msr!("S3_0_C12_C12_1", u64::from(intid));
                msr!("S3_0_C12_C11_1", u64::from(intid));
                self.make_pending(intid);
            }
            return Taken::Host;
        }
        msr!("S3_0_C12_C12_1", intid); // ICC_EOIR1_EL1: drop priority
        if taken != Taken::VirtualTimer {
            msr!("S3_0_C12_C11_1", intid); // ICC_DIR_EL1
        }
        instr::isb();
        taken
    }
}

/// Reads of the acknowledge registers that name no interrupt (IHI0069H, 2.2.1).
/// Not so the extended PPIs and SPIs of GICv3.1, behind them.
const fn is_special(intid: u32) -> bool {
    matches!(intid, SPECIAL..=1023)
}

/// Where an interrupt is made pending: whether in the redistributor, and the
/// offset there of its ISPENDR word. `None` for an LPI, which the host has none of.
fn ispendr(intid: u32) -> Option<(bool, u64)> {
    let word = |from: u32| (intid - from) as u64 / 32 * 4;
    Some(match intid {
        0..32 => (true, gicr::ISPENDR0),
        32..SPECIAL => (false, 0x200 + word(0)),
        // GICR_ISPENDR<n>E, n from 1, and GICD_ISPENDR<n>E.
        1056..1120 => (true, gicr::ISPENDR0 + 4 + word(1056)),
        4096..5120 => (false, 0x1600 + word(4096)),
        _ => return None,
    })
}

/// What [`Gic::take`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// The guest's virtual timer: active now, for the guest to deactivate.
    VirtualTimer,
    /// CNTHP, which stands in for the guest's physical timer.
    HypTimer,
    /// A list register wants attention.
    Maintenance,
    /// Another PE wants this one's.
    Kick,
    /// An interrupt of the host's, left pending.
    Host,
    /// Nothing any more.
    Nothing,
}

/// Sends the kick SGI to the PE with this affinity.
pub fn send_kick(mpidr: u64) {
    let target = 1u64 << (mpidr & 0xf);
    let range = mpidr >> 4 & 0xf;
    let value = (mpidr >> 32 & 0xff) << 48
        | range << 44
        | (mpidr >> 16 & 0xff) << 32
        | u64::from(KICK_SGI) << 24
        | (mpidr >> 8 & 0xff) << 16
        | target;
    instr::dsb_ishst();
    msr!("S3_0_C12_C11_5", value); // ICC_SGI1R_EL1
    instr::isb();
}

macro_rules! list_registers {
    ($($n:literal = $name:literal),*) => {
        /// Reads the first `n` list registers.
        pub fn read_lrs(n: usize, lrs: &mut [u64; 16]) {
            $(if n > $n { lrs[$n] = mrs!($name); })*
        }

        /// Writes the first `n` list registers.
        pub fn write_lrs(n: usize, lrs: &[u64; 16]) {
            $(if n > $n { msr!($name, lrs[$n]); })*
        }
    };
}

list_registers!(
    0 = "S3_4_C12_C12_0",
    1 = "S3_4_C12_C12_1",
    2 = "S3_4_C12_C12_2",
    3 = "S3_4_C12_C12_3",
    4 = "S3_4_C12_C12_4",
    5 = "S3_4_C12_C12_5",
    6 = "S3_4_C12_C12_6",
    7 = "S3_4_C12_C12_7",
    8 = "S3_4_C12_C13_0",
    9 = "S3_4_C12_C13_1",
    10 = "S3_4_C12_C13_2",
    11 = "S3_4_C12_C13_3",
    12 = "S3_4_C12_C13_4",
    13 = "S3_4_C12_C13_5",
    14 = "S3_4_C12_C13_6",
    15 = "S3_4_C12_C13_7"
);

/// Writes ICH_HCR_EL2.
pub fn write_hcr(value: u64) {
    msr!("S3_4_C12_C11_0", value);
}

/// Reads ICH_HCR_EL2: EOIcount is in \[31:27\].
pub fn read_hcr() -> u64 {
    mrs!("S3_4_C12_C11_0")
}

/// Reads ICH_MISR_EL2.
pub fn read_misr() -> u64 {
    mrs!("S3_4_C12_C11_2")
}

/// Reads ICH_VMCR_EL2.
pub fn read_vmcr() -> u64 {
    mrs!("S3_4_C12_C11_7")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_extended_interrupts_are_interrupts() {
        for intid in [
            0, 31, 32, 1019, 1024, 1056, 1119, 4096, 5119, 8192, 0xff_ffff,
        ] {
            assert!(!is_special(intid), "{intid}");
        }
        assert!((1020..=1023).all(is_special));
    }

    /// IHI0069H, 12.9 and 12.11.
    #[test]
    fn every_interrupt_is_made_pending_by_its_own_register() {
        for (intid, place) in [
            (5, Some((true, 0x1_0200))),
            (31, Some((true, 0x1_0200))),
            (32, Some((false, 0x204))),
            (1019, Some((false, 0x27c))),
            (1020, None),
            (1056, Some((true, 0x1_0204))),
            (1119, Some((true, 0x1_0208))),
            (1120, None),
            (4096, Some((false, 0x1600))),
            (5119, Some((false, 0x167c))),
            (8192, None),
        ] {
            assert_eq!(ispendr(intid), place, "{intid}");
        }
    }

    /// ICH_VTR_EL2.PREbits of 4, 5 and 6: 5, 6 and 7 bits of preemption.
    #[test]
    fn active_priorities_have_the_words_of_their_bits() {
        for (field, words) in [(4, 1), (5, 2), (6, 4)] {
            assert_eq!(active_words(field << 26 | 0x9000_000f), words, "{field}");
        }
    }

    #[test]
    fn an_affinity_is_of_four_levels() {
        // U and MT are none of it.
        assert_eq!(affinity(0x12_c134_5678), 0x1234_5678);
    }
}

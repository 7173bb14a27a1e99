//! A GICv3 as a program drives it (IHI0069): raw registers, and the usual way
//! to have them ready.

use super::asm::set;
use super::asm::{read32, read64, write32, write64};
use super::{asm, cpu, machine};
use arm64::regs::{
    ICC_BPR1_EL1, ICC_CTLR_EL1, ICC_DIR_EL1, ICC_EOIR1_EL1, ICC_IAR1_EL1, ICC_IGRPEN1_EL1,
    ICC_PMR_EL1, ICC_SGI1R_EL1, ICC_SRE_EL1,
};

/// Distributor registers.
pub mod gicd {
    #![allow(missing_docs)] // the names are the specification's
    pub const CTLR: u64 = 0x0;
    pub const TYPER: u64 = 0x4;
    pub const IIDR: u64 = 0x8;
    pub const IGROUPR: u64 = 0x80;
    pub const ISENABLER: u64 = 0x100;
    pub const ICENABLER: u64 = 0x180;
    pub const ISPENDR: u64 = 0x200;
    pub const ICPENDR: u64 = 0x280;
    pub const ISACTIVER: u64 = 0x300;
    pub const ICACTIVER: u64 = 0x380;
    pub const IPRIORITYR: u64 = 0x400;
    pub const ITARGETSR: u64 = 0x800;
    pub const ICFGR: u64 = 0xc00;
    pub const IROUTER: u64 = 0x6000;
    pub const PIDR2: u64 = 0xffe8;
}

/// Redistributor registers; SGI_BASE's start at `SGI`.
pub mod gicr {
    #![allow(missing_docs)] // the names are the specification's
    pub const CTLR: u64 = 0x0;
    pub const TYPER: u64 = 0x8;
    pub const WAKER: u64 = 0x14;
    pub const SGI: u64 = 0x1_0000;
}

/// What `ICC_IAR1_EL1` reads when nothing is pending.
pub const NOTHING: u32 = 1023;

/// Reads a distributor register.
pub fn d(offset: u64) -> u32 {
    // SAFETY: The device tree calls it a GICv3 distributor.
    unsafe { read32(machine::get().gicd + offset) }
}

/// Writes a distributor register.
pub fn set_d(offset: u64, value: u32) {
    // SAFETY: As above; the checks own the GIC.
    unsafe { write32(machine::get().gicd + offset, value) };
}

/// The base of a CPU's redistributor.
pub fn redistributor(index: usize) -> u64 {
    let wanted = machine::get().mpidrs[index];
    let wanted = wanted >> 32 << 24 | wanted & 0xff_ffff;
    let mut base = machine::get().gicr;
    loop {
        // SAFETY: A redistributor, until the last says that it is.
        let typer = unsafe { read64(base + gicr::TYPER) };
        if typer >> 32 == wanted || typer & 1 << 4 != 0 {
            return base;
        }
        base += 0x2_0000;
    }
}

/// Reads a register of this CPU's redistributor.
pub fn r(offset: u64) -> u32 {
    // SAFETY: This CPU's redistributor.
    unsafe { read32(redistributor(cpu::index()) + offset) }
}

/// Writes a register of this CPU's redistributor.
pub fn set_r(offset: u64, value: u32) {
    // SAFETY: As above.
    unsafe { write32(redistributor(cpu::index()) + offset, value) };
}

/// The register of `intid` among one-bit registers at `offset`: here or at the
/// distributor, and the bit.
fn bit(offset: u64, intid: u32) -> (bool, u64, u32) {
    let word = offset + u64::from(intid / 32) * 4;
    if intid < 32 {
        (true, gicr::SGI + offset, 1 << intid)
    } else {
        (false, word, 1 << (intid % 32))
    }
}

/// Reads the bit of `intid` in the registers at `offset` (`gicd::IS…`).
pub fn get(offset: u64, intid: u32) -> bool {
    let (own, at, mask) = bit(offset, intid);
    (if own { r(at) } else { d(at) }) & mask != 0
}

/// Writes the bit of `intid`, and 0 for all others, in the registers at `offset`.
pub fn put(offset: u64, intid: u32) {
    let (own, at, mask) = bit(offset, intid);
    if own {
        set_r(at, mask);
    } else {
        set_d(at, mask);
    }
}

/// Reads, changes and writes the bit of `intid` (`gicd::IGROUPR`).
pub fn change(offset: u64, intid: u32, on: bool) {
    let (own, at, mask) = bit(offset, intid);
    let old = if own { r(at) } else { d(at) };
    let new = if on { old | mask } else { old & !mask };
    if own { set_r(at, new) } else { set_d(at, new) }
}

/// Sets the priority of `intid`.
pub fn set_priority(intid: u32, priority: u8) {
    let at = u64::from(intid) + gicd::IPRIORITYR;
    let base = if intid < 32 {
        redistributor(cpu::index()) + gicr::SGI
    } else {
        machine::get().gicd
    };
    // SAFETY: IPRIORITYR is accessible by bytes.
    unsafe { asm::write8(base + at, priority) };
}

/// Makes an SPI edge-triggered or level-sensitive.
pub fn set_edge(intid: u32, edge: bool) {
    let at = gicd::ICFGR + u64::from(intid / 16) * 4;
    let mask = 2 << (intid % 16 * 2);
    let old = d(at);
    set_d(at, if edge { old | mask } else { old & !mask });
}

/// Routes an SPI to a CPU.
pub fn route(intid: u32, index: usize) {
    let at = machine::get().gicd + gicd::IROUTER + u64::from(intid) * 8;
    // SAFETY: An IROUTER register.
    unsafe { write64(at, machine::get().mpidrs[index]) };
}

/// The route of an SPI.
pub fn routed(intid: u32) -> u64 {
    // SAFETY: An IROUTER register.
    unsafe { read64(machine::get().gicd + gicd::IROUTER + u64::from(intid) * 8) }
}

/// Group 1, enabled, priority, and nothing left of before.
pub fn enable(intid: u32, priority: u8) {
    change(gicd::IGROUPR, intid, true);
    set_priority(intid, priority);
    put(gicd::ICPENDR, intid);
    put(gicd::ICACTIVER, intid);
    put(gicd::ISENABLER, intid);
    sync();
}

/// Disables and forgets.
pub fn disable(intid: u32) {
    put(gicd::ICENABLER, intid);
    sync();
    put(gicd::ICPENDR, intid);
    put(gicd::ICACTIVER, intid);
    sync();
}

/// Waits until the GIC has seen what was written (RWP).
pub fn sync() {
    asm::dsb();
    while d(gicd::CTLR) & 1 << 31 != 0 || r(gicr::CTLR) & 1 << 3 != 0 {
        core::hint::spin_loop();
    }
    asm::isb();
}

/// The distributor on, affinity routing, Group 1: once.
pub fn start_distributor() {
    set_d(gicd::CTLR, 0);
    sync();
    // ARE, then the groups.
    set_d(gicd::CTLR, 1 << 4);
    set_d(gicd::CTLR, 1 << 4 | 0b11);
    sync();
}

/// This CPU's redistributor and interface: on every start.
pub fn start_cpu() {
    set(ICC_SRE_EL1, ICC_SRE_EL1.get() | 1);
    set_r(gicr::WAKER, r(gicr::WAKER) & !2);
    while r(gicr::WAKER) & 4 != 0 {
        core::hint::spin_loop();
    }
    // Group 1 all, nothing enabled.
    set_r(gicr::SGI + gicd::IGROUPR, u32::MAX);
    set_r(gicr::SGI + gicd::ICENABLER, u32::MAX);
    set_r(gicr::SGI + gicd::ICPENDR, u32::MAX);
    set_r(gicr::SGI + gicd::ICACTIVER, u32::MAX);
    sync();
    set(ICC_CTLR_EL1, 0);
    set(ICC_BPR1_EL1, 0);
    set(ICC_PMR_EL1, 0xff);
    set(ICC_IGRPEN1_EL1, 1);
}

/// Acknowledges the highest pending interrupt.
pub fn acknowledge() -> u32 {
    let intid = ICC_IAR1_EL1.get() as u32;
    asm::dsb();
    intid
}

/// Acknowledges the highest pending interrupt and ends it at once.
pub fn acknowledge_and_end() -> u32 {
    let intid = acknowledge();
    if intid != NOTHING {
        end(intid);
    }
    intid
}

/// Ends it: drops the priority and, in EOImode 0, deactivates.
pub fn end(intid: u32) {
    set(ICC_EOIR1_EL1, u64::from(intid));
}

/// Deactivates it, in EOImode 1.
pub fn deactivate(intid: u32) {
    set(ICC_DIR_EL1, u64::from(intid));
}

/// Sends an SGI to one CPU.
pub fn send_sgi(intid: u32, index: usize) {
    let mpidr = machine::get().mpidrs[index];
    let value = (mpidr >> 32 & 0xff) << 48
        | (mpidr >> 16 & 0xff) << 32
        | (mpidr >> 8 & 0xff) << 16
        | (mpidr >> 4 & 0xf) << 44
        | u64::from(intid) << 24
        | 1 << (mpidr & 0xf);
    asm::dsb();
    set(ICC_SGI1R_EL1, value);
}

/// Sends an SGI to all CPUs but this one.
pub fn send_sgi_to_others(intid: u32) {
    asm::dsb();
    set(ICC_SGI1R_EL1, 1 << 40 | u64::from(intid) << 24);
}

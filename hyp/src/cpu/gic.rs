//! The physical GIC as EL2 uses it.
//!
//! The host owns the distributor, the redistributors and, while it runs, the
//! CPU interface. While a guest runs, EL2 takes the interrupts (HCR_EL2.IMO):
//! it acknowledges those that are its own, and leaves every other pending for
//! the host.

use crate::memory::region::Region;
use arm64::intid::Kind;
use arm64::mmio::Frame;
use arm64::regs::*;
use arm64::{bits, instr};
use arrayvec::ArrayVec;

mod interface;
mod loan;
mod redistributor;

pub use interface::{
    VirtualInterface, read_common, read_lr, read_lrs, write_common, write_lr, write_lrs,
};
pub use loan::HostInterface;
pub use redistributor::{Redistributor, gicr};

use interface::active_words;
use redistributor::Line;
use rmi::vendor::KICK_SGI;
use vgic::{Interface, hcr};

/// The distributor's frame.
pub type Distributor = Frame<0x1_0000>;

/// INTIDs of the interrupts that EL2 has a part in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ppis {
    /// GIC maintenance interrupt.
    pub maintenance: u32,
    /// Virtual timer, CNTV.
    pub virtual_timer: u32,
    /// EL2's physical timer, CNTHP.
    pub hyp_timer: u32,
}

/// Where the machine's GIC is, and EL2's interrupts of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frames {
    /// The distributor.
    pub distributor: Region,
    /// Regions of redistributors.
    pub redistributors: ArrayVec<Region, 8>,
    /// Bytes from one redistributor to the next, where it does not follow from each
    /// (`redistributor-stride`).
    pub stride: Option<u64>,
    /// The PPIs that EL2 serves.
    pub ppi: Ppis,
}

impl Frames {
    /// Of a machine that nothing is known of.
    pub const NONE: Self = Self {
        distributor: Region::EMPTY,
        redistributors: ArrayVec::new_const(),
        stride: None,
        ppi: Ppis {
            maintenance: 0,
            virtual_timer: 0,
            hyp_timer: 0,
        },
    };
}

/// What a PE knows of its GIC.
#[derive(Clone, Copy, Debug)]
pub struct Gic {
    distributor: Distributor,
    redistributor: Redistributor,
    /// INTIDs of EL2's own interrupts.
    pub ppi: Ppis,
    /// List registers, ICH_VTR_EL2.ListRegs + 1.
    pub list_registers: usize,
    /// Words of active priorities: 1, 2 or 4.
    active_words: usize,
    /// A guest's ICC_DIR_EL1 has a trap of its own, ICH_VTR_EL2.TDS.
    dir_traps: bool,
}

impl Gic {
    /// Sets up this PE's side: system register access at EL2 and EL1.
    pub fn init(distributor: Distributor, redistributor: Redistributor, ppi: Ppis) -> Self {
        ICC_SRE_EL2.set(bits!(ICC_SRE_EL2: SRE, DFB, DIB, ENABLE));
        instr::isb();
        ICC_SRE_EL1.set(bits!(ICC_SRE_EL1: SRE, DFB, DIB));
        ICH_HCR_EL2.set(0);
        instr::isb();
        let vtr = ICH_VTR_EL2.get();
        Self {
            distributor,
            redistributor,
            ppi,
            list_registers: ICH_VTR_EL2::ListRegs.read(vtr) as usize + 1,
            active_words: active_words(vtr),
            dir_traps: vtr >> 19 & 1 != 0,
        }
    }

    /// Has the redistributor access no memory.
    pub fn stop_lpis(&self) {
        self.redistributor.stop_lpis();
    }

    /// Makes EL2's own interrupts deliverable on this PE: enabled, group 1, with the
    /// highest priority. The host cannot change them after that
    /// (exception/redistributor.rs).
    pub fn enable_own(&self) {
        self.redistributor.wake();
        for intid in [self.ppi.maintenance, self.ppi.hyp_timer, KICK_SGI] {
            let was = self.redistributor.line(intid);
            self.redistributor.set_line(intid, was, Line::OURS);
        }
    }

    /// Sets or clears the active state of the virtual timer's PPI: while active
    /// it is not signalled again. It is when this returns: read back, for a
    /// deactivation by a register could else come before a write that is still on its way.
    pub fn set_timer_active(&self, active: bool) {
        let register = if active {
            gicr::ISACTIVER0
        } else {
            gicr::ICACTIVER0
        };
        self.redistributor.put(register, self.ppi.virtual_timer);
        if active {
            self.redistributor.is_active(self.ppi.virtual_timer);
        }
    }

    /// Sets the pending state of an interrupt that has any.
    fn make_pending(&self, intid: u32) {
        let bit = 1u32 << (intid % 32);
        match ispendr(intid) {
            Some((true, offset)) => self.redistributor.write(offset, 4, bit.into()),
            Some((false, offset)) => self.distributor.write(offset, bit),
            None => {}
        }
    }

    /// What this PE's virtual CPU interface has.
    pub fn interface(&self) -> Interface {
        interface::of_cpu(ICH_VTR_EL2.get(), ICC_CTLR_EL1.get())
    }

    /// Loads a vCPU's virtual interface, all but the list registers.
    pub fn load(&self, interface: &VirtualInterface) {
        interface.load(self.active_words);
    }

    /// Saves what [`Self::load`] loads, and turns the virtual interface off.
    pub fn save(&self, interface: &mut VirtualInterface) {
        interface.save(self.active_words);
    }

    /// Turns the virtual interface on. Where ICC_DIR_EL1 does not trap alone, as on the
    /// first Armv8 CPUs, what traps with it does ([`read_common`], [`write_common`]).
    pub fn turn_on(&self, hcr: u64) {
        let together = hcr & hcr::TDIR != 0 && !self.dir_traps;
        ICH_HCR_EL2.set(hcr | if together { hcr::TC } else { 0 });
    }

    /// What is pending, of EL2's own interrupts, acknowledged; or that it is for
    /// the host, or nothing.
    pub fn take(&self) -> Taken {
        let pending = ICC_HPPIR1_EL1.read(ICC_HPPIR1_EL1::INTID) as u32;
        if Kind::of(pending) == Kind::Special {
            return Taken::Nothing;
        }
        let own = |intid| match intid {
            p if p == self.ppi.virtual_timer => Taken::VirtualTimer,
            p if p == self.ppi.hyp_timer => Taken::HypTimer,
            p if p == self.ppi.maintenance => Taken::Maintenance,
            KICK_SGI => Taken::Kick,
            _ => Taken::Host,
        };
        let mut taken = own(pending);
        if taken == Taken::Host {
            return taken;
        }
        let intid = ICC_IAR1_EL1.read(ICC_IAR1_EL1::INTID) as u32;
        instr::dsb_sy();
        if intid != pending {
            // Another of that priority or a higher came between: of EL2's own, too.
            taken = own(intid);
            if taken == Taken::Host && Kind::of(intid) != Kind::Special {
                // It goes back to pending.
                ICC_EOIR1_EL1.set(intid.into());
                ICC_DIR_EL1.set(intid.into());
                self.make_pending(intid);
            }
            if taken == Taken::Host {
                return taken;
            }
        }
        ICC_EOIR1_EL1.set(intid.into()); // drops the priority
        if taken != Taken::VirtualTimer {
            ICC_DIR_EL1.set(intid.into());
        }
        instr::isb();
        taken
    }
}

/// Where an interrupt is made pending: whether in the redistributor, and the
/// offset there of its ISPENDR word. `None` for an LPI, which the host has none of.
fn ispendr(intid: u32) -> Option<(bool, u64)> {
    let word = |from: u32| (intid - from) as u64 / 32 * 4;
    Some(match Kind::of(intid) {
        Kind::Sgi | Kind::Ppi => (true, gicr::ISPENDR0),
        Kind::Spi => (false, 0x200 + word(0)),
        // GICR_ISPENDR<n>E, n from 1, and GICD_ISPENDR<n>E.
        Kind::ExtendedPpi => (true, gicr::ISPENDR0 + 4 + word(1056)),
        Kind::ExtendedSpi => (false, 0x1600 + word(4096)),
        Kind::Lpi | Kind::Special | Kind::Reserved => return None,
    })
}

/// What [`Gic::take`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// The guest's virtual timer: active now, for the guest to deactivate.
    VirtualTimer,
    /// CNTHP, which stands in for the guest's physical timer.
    HypTimer,
    /// Maintenance: a list register needs service.
    Maintenance,
    /// Another PE kicked this one.
    Kick,
    /// An interrupt of the host's, left pending.
    Host,
    /// Nothing any more.
    Nothing,
}

/// Sends the kick SGI to the PE with this affinity.
pub fn send_kick(mpidr: u64) {
    use ICC_SGI1R_EL1::{Aff1, Aff2, Aff3, INTID, RS, TargetList};
    let [aff0, aff1, aff2] = [0, 8, 16].map(|shift| mpidr >> shift & 0xff);
    let to = Aff3.val(mpidr >> 32) + Aff2.val(aff2) + Aff1.val(aff1);
    instr::dsb_ishst();
    ICC_SGI1R_EL1.write(
        to + RS.val(aff0 >> 4) + TargetList.val(1 << (aff0 & 0xf)) + INTID.val(KICK_SGI.into()),
    );
    instr::isb();
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use arm64::recording::{self, Event};
    use std::vec::Vec;

    /// A guest must come out for any of them, or it is interrupted for ever.
    #[test]
    fn the_extended_interrupts_are_the_hosts_interrupts() {
        for intid in [0, 31, 32, 1019, 1056, 1119, 4096, 5119, 8192, 0xff_ffff] {
            assert_eq!(takes(intid, intid).0, Taken::Host, "{intid}");
        }
        for intid in 1020..=1023 {
            assert_eq!(takes(intid, intid).0, Taken::Nothing, "{intid}");
        }
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

    /// What was written before is seen by whoever takes the kick.
    #[test]
    fn a_kick_goes_to_its_pe_alone_and_behind_what_it_tells() {
        let sgi = 0x12 << 48 | 7 << 44 | 0x34 << 32 | 7 << 24 | 0x56 << 16 | 1 << 8;
        assert_eq!(
            recording::of(|| send_kick(0x12_0034_5678)),
            [
                Event::Instruction("dsb ishst", None),
                Event::Msr("ICC_SGI1R_EL1", sgi),
                Event::Instruction("isb", None),
            ]
        );
    }

    const GICD: u64 = 0x800_0000;
    const GICR: u64 = 0x80a_0000;

    fn gic() -> Gic {
        recording::reset();
        // SAFETY: a record is behind them, and no GIC.
        let (distributor, redistributor) =
            unsafe { (Distributor::new(GICD), Redistributor::new(GICR)) };
        let ppi = Ppis {
            maintenance: 25,
            virtual_timer: 27,
            hyp_timer: 26,
        };
        Gic::init(distributor, redistributor, ppi)
    }

    /// What is done when the GIC says that `pending` is, and then gives
    /// `acknowledged`.
    fn takes(pending: u64, acknowledged: u64) -> (Taken, Vec<Event>) {
        let gic = gic();
        recording::set(ICC_HPPIR1_EL1, pending);
        recording::set(ICC_IAR1_EL1, acknowledged);
        let mut taken = Taken::Nothing;
        let events = recording::of(|| taken = gic.take());
        (taken, events)
    }

    #[test]
    fn an_own_interrupt_is_ended_once_it_is_acknowledged() {
        let (look, acknowledge) = (Event::Mrs("ICC_HPPIR1_EL1"), Event::Mrs("ICC_IAR1_EL1"));
        let (dsb, isb) = (
            Event::Instruction("dsb sy", None),
            Event::Instruction("isb", None),
        );
        for (intid, what) in [
            (25, Taken::Maintenance),
            (26, Taken::HypTimer),
            (7, Taken::Kick),
        ] {
            let (drop, end) = (
                Event::Msr("ICC_EOIR1_EL1", intid),
                Event::Msr("ICC_DIR_EL1", intid),
            );
            let right = [look, acknowledge, dsb, drop, end, isb];
            assert_eq!(takes(intid, intid), (what, right.to_vec()));
        }
        // The guest deactivates its timer's itself.
        let drop = Event::Msr("ICC_EOIR1_EL1", 27);
        let right = [look, acknowledge, dsb, drop, isb];
        assert_eq!(takes(27, 27), (Taken::VirtualTimer, right.to_vec()));
        // The host's, and nothing, are only looked at.
        assert_eq!(takes(40, 40), (Taken::Host, [look].to_vec()));
        assert_eq!(takes(1023, 1023), (Taken::Nothing, [look].to_vec()));
    }

    #[test]
    fn an_interrupt_of_the_hosts_that_came_between_is_pending_again() {
        for (intid, store) in [
            (33, Event::Store(GICD + 0x204, 4, 2)),
            (5, Event::Store(GICR + 0x1_0200, 4, 1 << 5)),
            (4097, Event::Store(GICD + 0x1600, 4, 2)),
            (1057, Event::Store(GICR + 0x1_0204, 4, 2)),
        ] {
            let (taken, events) = takes(26, intid);
            let ended = [
                Event::Msr("ICC_EOIR1_EL1", intid),
                Event::Msr("ICC_DIR_EL1", intid),
                store,
            ];
            assert_eq!((taken, &events[3..]), (Taken::Host, &ended[..]));
        }
        // An LPI has no state but that it is pending, and the host has none.
        let (taken, events) = takes(26, 8193);
        let ended = [
            Event::Msr("ICC_EOIR1_EL1", 8193),
            Event::Msr("ICC_DIR_EL1", 8193),
        ];
        assert_eq!((taken, &events[3..]), (Taken::Host, &ended[..]));
        for gone in 1020..=1023 {
            let (taken, events) = takes(26, gone);
            assert_eq!((taken, events.len()), (Taken::Host, 3), "it has gone");
        }
    }

    /// All of EL2's own have one priority, of which the lowest INTID is acknowledged first:
    /// one that comes between the look and that is served, and none of the host's, which is
    /// not to see it.
    #[test]
    fn an_own_interrupt_that_came_between_is_not_the_hosts() {
        for (pending, intid, what) in [
            (27, 26, Taken::HypTimer),
            (27, 25, Taken::Maintenance),
            (26, 25, Taken::Maintenance),
            (26, 7, Taken::Kick),
            (25, 27, Taken::VirtualTimer),
        ] {
            let (taken, events) = takes(pending, intid);
            assert_eq!(taken, what, "{intid} before {pending}");
            let stored = |event: &Event| matches!(event, Event::Store(..));
            assert!(!events.iter().any(stored), "{intid} is pending again");
            let ended = events.contains(&Event::Msr("ICC_DIR_EL1", intid));
            assert_eq!(ended, intid != 27, "{intid}");
        }
    }

    #[test]
    fn the_timers_interrupt_is_active_before_anybody_can_deactivate_it() {
        let (gic, bit) = (gic(), 1 << 27);
        let set = recording::of(|| gic.set_timer_active(true));
        let store = Event::Store(GICR + gicr::ISACTIVER0, 4, bit);
        assert_eq!(set, [store, Event::Load(GICR + gicr::ISACTIVER0, 4)]);
        let clear = recording::of(|| gic.set_timer_active(false));
        assert_eq!(clear, [Event::Store(GICR + gicr::ICACTIVER0, 4, bit)]);
    }

    /// The CPU interface is EL2's while a guest runs, by settings that let its interrupts
    /// in; and the host's again as it was, with whatever is the host's of the timer's.
    #[test]
    fn what_is_borrowed_of_the_host_is_given_back() {
        const BIT: u64 = 1 << 27;
        let sre_el2 = |enable: u64| 0b111 | enable << 3;
        for (active, pending) in [(false, false), (false, true), (true, false), (true, true)] {
            // What the host wrote to the redistributor is looked at once, and what it wrote
            // pending is pending until it takes it.
            let (gic, mut host) = (gic(), HostInterface::default());
            recording::set(ICC_CTLR_EL1, 0x400);
            recording::set(ICC_IGRPEN1_EL1, 0);
            let state = |is| if is { BIT } else { 0 };
            recording::set_device(GICR + gicr::ISACTIVER0, 4, state(active));
            recording::set_device(GICR + gicr::ISPENDR0, 4, state(pending));
            for changed in [true, false] {
                let borrowed = recording::of(|| gic.borrow(&mut host, changed));
                let put = |events: &[Event], at| events.contains(&Event::Store(GICR + at, 4, BIT));
                assert_eq!(put(&borrowed, gicr::ICACTIVER0), active, "{changed}");
                assert_eq!(put(&borrowed, gicr::ICPENDR0), pending, "{changed}");
                assert_eq!(
                    recording::get(ICC_CTLR_EL1),
                    0x400 | 1 << 1,
                    "EOI drops the priority alone"
                );
                assert_eq!(recording::get(ICC_IGRPEN1_EL1), 1);
                assert_eq!(
                    recording::get(ICC_SRE_EL2),
                    sre_el2(0),
                    "ICC_SRE_EL1 is the host's"
                );
                let given = recording::of(|| gic.give_back(&host));
                assert_eq!(put(&given, gicr::ISACTIVER0), active);
                assert_eq!(put(&given, gicr::ICACTIVER0), !active);
                assert_eq!(put(&given, gicr::ISPENDR0), pending);
                assert_eq!(recording::get(ICC_CTLR_EL1), 0x400);
                assert_eq!(recording::get(ICC_IGRPEN1_EL1), 0);
                assert_eq!(recording::get(ICC_SRE_EL2), sre_el2(1));
            }
        }
    }

    /// One that is disabled is disabled when that is seen by the redistributor.
    #[test]
    fn the_hosts_timer_line_is_the_hosts_again() {
        let gic = gic();
        recording::set_device(GICR + gicr::IPRIORITYR + 27, 1, 0xa0);
        let mut host = HostInterface::default();
        gic.borrow(&mut host, true);
        assert_eq!(recording::device(GICR + gicr::IPRIORITYR + 27, 1), 0);
        let given = recording::of(|| gic.give_back(&host));
        let disabled = Event::Store(GICR + gicr::ICENABLER0, 4, 1 << 27);
        let at = given.iter().position(|event| *event == disabled);
        let at = at.expect("the host has it disabled");
        // The guest's timer was stopped, and that counts by now.
        assert!(given[..at].contains(&Event::Instruction("isb", None)));
        assert_eq!(given[at + 1], Event::Load(GICR + gicr::CTLR, 4), "RWP");
        let enabled = Event::Store(GICR + gicr::ISENABLER0, 4, 1 << 27);
        assert!(!given.contains(&enabled));
        assert_eq!(recording::device(GICR + gicr::IPRIORITYR + 27, 1), 0xa0);
        assert_eq!(recording::device(GICR + gicr::IGROUPR0, 4), 0);
    }

    /// What a firmware has left: list registers and a virtual interface that are on, a
    /// redistributor that sleeps, EL2's interrupts as they are out of reset.
    #[test]
    fn a_pe_begins_with_its_own_interrupts_and_none_of_a_guests() {
        let Gic {
            distributor,
            redistributor,
            ppi,
            ..
        } = gic();
        recording::set(ICH_HCR_EL2, 1);
        recording::set(ICC_SRE_EL1, 0);
        let gic = Gic::init(distributor, redistributor, ppi);
        assert_eq!(recording::get(ICH_HCR_EL2), 0);
        assert_eq!(recording::get(ICC_SRE_EL1), 0b111);
        recording::set_device(GICR + gicr::WAKER, 4, 0b110);
        let events = recording::of(|| gic.enable_own());
        assert_eq!(recording::device(GICR + gicr::WAKER, 4), 0b100);
        for intid in [25, 26, 7] {
            let on = Event::Store(GICR + gicr::ISENABLER0, 4, 1 << intid);
            assert!(events.contains(&on), "{intid}");
        }
        let group1 = recording::device(GICR + gicr::IGROUPR0, 4);
        assert_eq!(group1, 1 << 25 | 1 << 26 | 1 << 7);
    }

    /// How an interrupt is triggered changes while it is disabled (IHI0069H, 12.9.9).
    #[test]
    fn the_timers_interrupt_is_borrowed_disabled_first_and_enabled_last() {
        let gic = gic();
        recording::set_device(GICR + gicr::ICFGR + 4, 4, 2 << 22);
        recording::set_device(GICR + gicr::IPRIORITYR + 27, 1, 0xa0);
        let mut host = HostInterface::default();
        let stores: Vec<_> = recording::of(|| gic.borrow(&mut host, true))
            .into_iter()
            .filter(|event| matches!(event, Event::Store(..)))
            .collect();
        let bit = 1 << 27;
        assert_eq!(
            stores,
            [
                Event::Store(GICR + gicr::ICENABLER0, 4, bit),
                Event::Store(GICR + gicr::IGROUPR0, 4, bit),
                Event::Store(GICR + gicr::IPRIORITYR + 27, 1, 0),
                Event::Store(GICR + gicr::ICFGR + 4, 4, 0),
                Event::Store(GICR + gicr::ISENABLER0, 4, bit),
            ]
        );
        gic.give_back(&host);
        let edge = recording::device(GICR + gicr::ICFGR + 4, 4);
        assert_eq!(edge, 2 << 22, "the host's again");
    }
}

//! What EL2 keeps of a PE's list registers and of its timer's interrupt, between vCPUs.

use super::*;
use crate::cpu::gic::gicr;
use crate::guest::interrupts::append;
use crate::guest::vcpu::RunningVcpu;
use arm64::recording::{self, Event};
use arm64::regs::*;
use vgic::{At, Frame, Rise, lr};

const REC: u64 = 60;
const VMCR: u64 = vgic::vmcr::VENG0 | vgic::vmcr::VENG1 | 0xf8 << 24;
/// The virtual timer's PPI, of the guest and of the machine.
const TIMER: u32 = 27;

/// A plain realm with two vCPUs, whose groups and timers' interrupts are on.
fn machine() -> Host {
    recording::reset();
    let mut h = Host::new(Granule::K4, 16 << 20);
    h.realm();
    for n in [0, 1] {
        h.rec(n, REC + n);
    }
    recording::set(ICH_VMCR_EL2, VMCR);
    // SAFETY: the fake machine's realm.
    let realm = unsafe { Realm::at(h.page(1)) };
    realm.with_vgic(None, |v| {
        v.write(0, Frame::Distributor, At { offset: 0, size: 4 }, 0b11);
        for n in [0, 1] {
            let enable = At {
                offset: 0x100,
                size: 4,
            };
            v.write(n, Frame::Sgi(n), enable, 1 << TIMER);
        }
    });
    h
}

/// Runs `f` with a vCPU on its PE.
fn on<R>(h: &mut Host, index: u64, f: impl FnOnce(&mut RunningVcpu<'_>, &mut VcpuState) -> R) -> R {
    // SAFETY: the fake machine's realm and vCPU, which nobody runs.
    let (realm, rec) = unsafe { (Realm::at(h.page(1)), Rec::at(h.page(REC + index))) };
    // SAFETY: as above.
    let state = unsafe { &mut *rec.state.get() };
    let cpu = &mut h.cpu;
    f(&mut RunningVcpu { cpu, realm, rec }, state)
}

fn lr0() -> u64 {
    recording::get(ICH_LR0_EL2)
}

/// What one vCPU was lent while its list registers were in the CPU, and has not taken, is
/// in none of the next one's.
#[test]
fn what_was_appended_is_not_the_next_vcpus() {
    let mut h = machine();
    for index in [1, 0] {
        on(&mut h, index, |vcpu, state| {
            assert!(vcpu.prepare(state));
            vcpu.leave(state);
        });
    }
    on(&mut h, 0, |vcpu, state| {
        assert!(vcpu.prepare(state));
        assert!(append(vcpu.realm, state, (5, Rise::Sgi)));
        assert_eq!(lr0(), lr::PENDING | 5);
        vcpu.leave(state);
    });
    assert_eq!(lr0(), lr::PENDING | 5, "it is left there");
    on(&mut h, 1, |vcpu, state| {
        assert!(vcpu.prepare(state));
        assert_eq!(lr0(), 0, "another's");
        vcpu.leave(state);
    });
    on(&mut h, 0, |vcpu, state| {
        assert!(vcpu.prepare(state));
        assert_eq!(lr0(), lr::PENDING | 5, "and it is not lost");
    });
}

/// Its interrupt comes, the guest takes it and ends it: at the GIC too, by the list
/// register. What EL2 knows of it follows; and if the line is high still, it comes again.
#[test]
fn a_timers_interrupt_that_its_guest_has_ended_is_active_no_more() {
    for high in [false, true] {
        let mut h = machine();
        on(&mut h, 0, |vcpu, state| {
            assert!(vcpu.prepare(state));
            recording::set(CNTV_CTL_EL0, 0b101);
            recording::set(ICC_HPPIR1_EL1, TIMER.into());
            recording::set(ICC_IAR1_EL1, TIMER.into());
            assert!(!vcpu.physical(state));
            assert!(vcpu.cpu.timer_active);
            assert!(vcpu.prepare(state));
            assert_eq!(
                lr0() & !lr::PINTID_MASK,
                lr::PENDING | lr::HW | u64::from(TIMER)
            );
            // Taken and ended.
            recording::set(ICH_LR0_EL2, lr0() & !lr::PENDING);
            recording::set(CNTV_CTL_EL0, [0b001, 0b101][usize::from(high)]);
            vcpu.leave(state);
            assert!(!vcpu.cpu.timer_active, "it is active at the GIC");
            let events = recording::of(|| assert!(vcpu.prepare(state)));
            let made_active = Event::Store(gicr::ISACTIVER0, 4, 1 << TIMER);
            assert_eq!(events.contains(&made_active), high);
            assert_eq!(vcpu.cpu.timer_active, high);
            assert_eq!(lr0() & lr::PENDING != 0, high);
        });
    }
}

/// A line that has fallen before EL2 looks: the interrupt was acknowledged, and would stay
/// active for ever.
#[test]
fn a_timers_interrupt_without_its_line_is_not_left_active() {
    let mut h = machine();
    on(&mut h, 0, |vcpu, state| {
        assert!(vcpu.prepare(state));
        vcpu.leave(state);
        assert!(vcpu.prepare(state));
        recording::set(CNTV_CTL_EL0, 0b001);
        recording::set(ICC_HPPIR1_EL1, TIMER.into());
        recording::set(ICC_IAR1_EL1, TIMER.into());
        assert!(!vcpu.physical(state));
        assert!(vcpu.cpu.timer_active);
        let events = recording::of(|| assert!(vcpu.prepare(state)));
        assert!(events.contains(&Event::Store(gicr::ICACTIVER0, 4, 1 << TIMER)));
        assert!(!vcpu.cpu.timer_active && lr0() == 0);
    });
}

/// CNTHP is for whichever comes first, the guest's physical timer or the host; not for a
/// line that is high already, which would interrupt the guest for ever.
#[test]
fn cnthp_is_set_for_what_comes_first() {
    let mut h = machine();
    recording::set(CNTPCT_EL0, 100);
    for (ctl, cval, calls, at) in [
        (0, 0, None, None),
        (1, 150, None, Some(150)),
        (1, 150, Some(70), Some(150)),
        (1, 150, Some(20), Some(120)),
        (3, 150, None, None),
        (3, 150, Some(70), Some(170)),
        // High already.
        (1, 100, None, None),
        (1, 50, Some(70), Some(170)),
    ] {
        on(&mut h, 0, |vcpu, state| {
            (state.ptimer.ctl, state.ptimer.cval) = (ctl, cval);
            state.call_host_at = None;
            if let Some(ticks) = calls {
                vcpu.call_host_in(state, ticks);
            }
            vcpu.physical_timer(state);
            let is_on = recording::get(CNTHP_CTL_EL2) == 1;
            let set = is_on.then(|| recording::get(CNTHP_CVAL_EL2));
            assert_eq!(set, at, "{ctl} {cval} {calls:?}");
        });
    }
}

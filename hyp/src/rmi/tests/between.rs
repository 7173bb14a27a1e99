//! What comes between: another PE's call, a vCPU's time elsewhere, an end of power.

use super::super::rec;
use super::*;
use crate::guest::exits::synchronous;
use crate::guest::interrupts::intid;
use crate::guest::record::Next;
use crate::guest::vcpu::RunningVcpu;
use crate::rec::PhysicalTimer;
use arm64::recording::{self, Event};
use arm64::regs::*;
use vgic::{At, Frame, Read};

/// REALM_DESTROY of many root tables takes several turns: what comes between them.
#[test]
fn a_realm_that_ends_takes_no_vcpu() {
    let mut h = Host::with(Granule::K4, RAM_SIZE, |f| {
        f.pa_bits = 48;
        f.fwb = true;
    });
    let rd = h.page(1);
    h.ok(fid::RMI_GRANULE_DELEGATE, &[h.page(60)]);
    h.realm_with(|params| {
        params.flags = 0;
        (params.s2sz, params.rtt_level_start, params.rtt_num_start) = (43, 1, 16);
    });
    // One turn: the host's interrupt comes, or another CPU's call.
    assert!(h.turn(raw(fid::RMI_REALM_DESTROY, &[rd])).is_none());
    let mut p = RecParams::new_zeroed();
    p.flags = RecFlags::RUNNABLE.bits();
    h.write(2, p);
    let args = [rd, h.page(60), h.page(2)];
    assert_eq!(h.status(fid::RMI_REC_CREATE, &args), Status::ErrorRealm(0));
    assert_eq!(
        h.status(fid::RMI_REALM_ACTIVATE, &[rd]),
        Status::ErrorRealm(0)
    );
    // A command happens whole.
    h.ok(fid::RMI_REALM_DESTROY, &[rd]);
    assert_eq!(h.state(1), State::Delegated);
}

/// A vCPU's DC CVAC meets the moment in which the block around it is being split or
/// folded (break-before-make, by another CPU): the memory is there, and so is what the
/// guest wrote. The instruction is to be executed again, not to be stepped over.
#[test]
fn cache_maintenance_of_what_is_mapped_is_not_skipped() {
    for (mode, ipa) in [
        (RealmFlags::NONCONF, RAM),
        (RealmFlags::PROTECTED, 1u64 << 39 | RAM),
    ] {
        let mut h = Host::new(Granule::K4, RAM_SIZE);
        h.realm_of(mode);
        let rd = h.page(1);
        for (level, base) in [(2, ipa & !((1 << 30) - 1)), (3, ipa)] {
            h.ok(fid::RMI_GRANULE_DELEGATE, &[h.page(40 + level)]);
            h.ok(fid::RMI_RTT_CREATE, &[rd, h.page(40 + level), base, level]);
        }
        h.ok(
            fid::RMI_RTT_MAP_UNPROTECTED,
            &[rd, ipa, 3, h.page(50) | DESC],
        );
        h.rec(0, 60);
        let pa = h.page(60);
        // SAFETY: the fake machine's realm and vCPU, which nobody runs.
        let (realm, rec) = unsafe { (Realm::at(rd), Rec::at(pa)) };
        // SAFETY: as above.
        let state = unsafe { &mut *rec.state.get() };
        (state.gprs.pc, state.gprs.pstate) = (0x4000_1000, 0x3c5);
        // Data abort of a lower level, CM, WnR, translation fault at level 2.
        let esr = 0x24 << 26 | 1 << 25 | 1 << 8 | 1 << 6 | 0x06;
        recording::set(HPFAR_EL2, ipa >> 12 << 4);
        recording::set(FAR_EL2, 0xffff_8000_0000_0000);
        recording::set(ESR_EL2, esr);
        let mut vcpu = RunningVcpu {
            cpu: &mut h.cpu,
            realm,
            rec,
        };
        let next = synchronous(&mut vcpu, pa, state, Syndrome(esr));
        assert!(matches!(next, Next::Enter), "{mode:?}: {next:x?}");
        assert_eq!(
            state.gprs.pc, 0x4000_1000,
            "{mode:?}: the maintenance was not done"
        );
    }
}

fn plain() -> Host {
    let mut h = Host::new(Granule::K4, 16 << 20);
    h.realm();
    h.rec(0, 60);
    h.rec(1, 61);
    h
}

fn on<'a>(h: &'a mut Host, page: u64) -> (RunningVcpu<'a>, &'static mut VcpuState) {
    let pa = h.page(page);
    // SAFETY: the fake machine's realm and vCPU, which nobody runs.
    let (realm, rec) = unsafe { (Realm::at(h.page(1)), Rec::at(pa)) };
    // SAFETY: as above.
    let state = unsafe { &mut *rec.state.get() };
    (
        RunningVcpu {
            cpu: &mut h.cpu,
            realm,
            rec,
        },
        state,
    )
}

/// GICR_ISPENDR0.
const PENDING: At = At {
    offset: 0x200,
    size: 4,
};

/// The timers are off after CPU_OFF and CPU_ON, and so are their lines, whoever asks
/// meanwhile.
#[test]
fn the_timers_lines_fall_with_their_vcpus_power() {
    let mut h = plain();
    recording::set(CNTPCT_EL0, 100);
    {
        let (mut vcpu, state) = on(&mut h, 61);
        state.ptimer = PhysicalTimer { ctl: 1, cval: 50 };
        vcpu.physical_timer(state);
        vcpu.vgic(|v| v.set_ppi(1, intid::VIRTUAL_TIMER, true))
            .expect("a PPI");
        let pends = vcpu.vgic(|v| v.read(1, Frame::Sgi(1), PENDING));
        assert_eq!(pends, Read::Value(1 << 27 | 1 << 30));
        rec::go_off(vcpu.realm, vcpu.rec, state);
        let pends = vcpu.vgic(|v| v.read(1, Frame::Sgi(1), PENDING));
        assert_eq!(pends, Read::Value(0), "the timers are off");
    }
    h.ok(vendor::REC_PENDING, &[h.page(61)]);
    {
        let (_, caller) = on(&mut h, 60);
        caller.pending = Pending::CpuOn(index_mpidr(1), 0x4000_0000, 0);
    }
    h.ok(fid::RMI_PSCI_COMPLETE, &[h.page(60), h.page(61), 0]);
    let (mut vcpu, state) = on(&mut h, 61);
    assert_eq!(state.ptimer.ctl, 0);
    let pends = vcpu.vgic(|v| v.read(1, Frame::Sgi(1), PENDING));
    assert_eq!(pends, Read::Value(0), "the timers are off");
}

/// GICR_WAKER sleeps while the vCPU is off; what others write meanwhile is there when it
/// comes.
#[test]
fn a_redistributor_sleeps_with_its_vcpu_and_keeps_what_comes_meanwhile() {
    const ENABLED: u64 = 1 << 20;
    let mut h = plain();
    let word = |offset| At { offset, size: 4 };
    let (waker, enable) = (word(0x14), word(0x100));
    {
        let (mut vcpu, state) = on(&mut h, 61);
        vcpu.vgic(|v| v.write(1, Frame::Redistributor(1), waker, 0));
        vcpu.vgic(|v| v.write(1, Frame::Sgi(1), enable, 1 << 21));
        let read =
            |vcpu: &mut RunningVcpu<'_>| vcpu.vgic(|v| v.read(0, Frame::Redistributor(1), waker));
        assert_eq!(read(&mut vcpu), Read::Value(0));
        rec::go_off(vcpu.realm, vcpu.rec, state);
        // ProcessorSleep and ChildrenAsleep.
        assert_eq!(read(&mut vcpu), Read::Value(0b110));
        vcpu.vgic(|v| v.write(0, Frame::Sgi(1), enable, ENABLED));
    }
    {
        let (_, caller) = on(&mut h, 60);
        caller.pending = Pending::CpuOn(index_mpidr(1), 0x4000_0000, 0);
    }
    h.ok(fid::RMI_PSCI_COMPLETE, &[h.page(60), h.page(61), 0]);
    let (mut vcpu, _) = on(&mut h, 61);
    let enabled = vcpu.vgic(|v| v.read(1, Frame::Sgi(1), enable));
    assert_eq!(enabled, Read::Value(0xffff | ENABLED));
}

/// While the list register stands for the timer's physical interrupt, that is active:
/// also when the vCPU comes back to a PE.
#[test]
fn a_linked_timers_interrupt_is_active_when_its_vcpu_comes_back() {
    let mut h = plain();
    // ENABLE and ISTATUS.
    recording::set(CNTV_CTL_EL0, 0b101);
    recording::set(ICH_VMCR_EL2, 0xf8 << 24 | 2);
    let timer = 1u32 << 27;
    let (mut vcpu, state) = on(&mut h, 60);
    vcpu.vgic(|v| {
        v.write(0, Frame::Distributor, At { offset: 0, size: 4 }, 2);
        v.write(
            0,
            Frame::Sgi(0),
            At {
                offset: 0x80,
                size: 4,
            },
            0xffff_ffff,
        );
        v.write(
            0,
            Frame::Sgi(0),
            At {
                offset: 0x100,
                size: 4,
            },
            timer.into(),
        );
        v.set_ppi(0, intid::VIRTUAL_TIMER, true).unwrap();
    });
    let mut turn = || {
        // As `switch_to_guest` has it.
        vcpu.cpu.timer_active = false;
        let events = recording::of(|| assert!(vcpu.prepare(state)));
        let active = Event::Store(0x1_0300, 4, timer.into());
        let done = events.contains(&active);
        // What the fake CPU has is what was written: still pending.
        vcpu.leave(state);
        done
    };
    assert!(turn(), "the first time");
    assert!(turn(), "the second time");
}

//! A realm's vCPUs: made, entered, answered and destroyed.

use super::*;

#[test]
fn recs_come_in_order_and_only_while_new() {
    let mut h = Host::new(Granule::K4, RAM_SIZE);
    h.realm();
    let mut p = RecParams::new_zeroed();
    p.mpidr = index_mpidr(1);
    h.write(2, p);
    h.ok(fid::RMI_GRANULE_DELEGATE, &[h.page(60)]);
    let args = [h.page(1), h.page(60), h.page(2)];
    assert_eq!(h.status(fid::RMI_REC_CREATE, &args), Status::ErrorInput);
    h.rec(0, 61);
    h.write(2, p);
    h.ok(fid::RMI_REC_CREATE, &args);
    assert_eq!(
        h.status(fid::RMI_REC_ENTER, &[h.page(61), h.page(3)]),
        Status::ErrorRealm(0),
        "NEW"
    );
    h.ok(fid::RMI_REALM_ACTIVATE, &[h.page(1)]);
    assert_eq!(
        h.status(fid::RMI_REALM_ACTIVATE, &[h.page(1)]),
        Status::ErrorRealm(0)
    );
    assert_eq!(
        h.status(fid::RMI_REC_ENTER, &[h.page(60), h.page(3)]),
        Status::ErrorRec,
        "off"
    );
    assert_eq!(
        h.status(fid::RMI_REC_ENTER, &[h.page(61), h.page(61)]),
        Status::ErrorInput
    );
    p.mpidr = index_mpidr(2);
    h.write(2, p);
    h.ok(fid::RMI_GRANULE_DELEGATE, &[h.page(62)]);
    let args = [h.page(1), h.page(62), h.page(2)];
    assert_eq!(
        h.status(fid::RMI_REC_CREATE, &args),
        Status::ErrorRealm(0),
        "not NEW"
    );
}

#[test]
fn a_rec_begins_as_its_parameters_say() {
    let mut h = Host::new(Granule::K4, RAM_SIZE);
    h.realm();
    h.ok(fid::RMI_GRANULE_DELEGATE, &[h.page(60)]);
    let args = [h.page(1), h.page(60), h.page(2)];
    let mut p = RecParams::new_zeroed();
    p.num_aux = 1;
    h.write(2, p);
    assert_eq!(h.status(fid::RMI_REC_CREATE, &args), Status::ErrorInput);
    p.num_aux = 0;
    p.pc = 0x4000_1234;
    p.gprs = [1, 2, 3, 4, 5, 6, 7, 8];
    h.write(2, p);
    h.ok(fid::RMI_REC_CREATE, &args);
    // SAFETY: the fake machine's REC, which nobody runs.
    let gprs = &unsafe { &*Rec::at(h.page(60)).state.get() }.gprs;
    assert_eq!(
        (gprs.pc, gprs.x[..9].to_vec()),
        (p.pc, std::vec![1, 2, 3, 4, 5, 6, 7, 8, 0])
    );
}

#[test]
fn a_realm_has_no_more_recs_than_it_can_list() {
    let mut h = Host::new(Granule::K4, RAM_SIZE);
    h.realm();
    h.fill_with_recs(crate::realm::MAX_RECS as u64);
}

/// Parameters that do not fit are told only of a realm that takes vCPUs at all.
#[test]
fn a_realms_state_is_told_before_what_its_recs_must_be() {
    let mut h = Host::new(Granule::K4, RAM_SIZE);
    h.realm();
    h.ok(fid::RMI_GRANULE_DELEGATE, &[h.page(60)]);
    let args = [h.page(1), h.page(60), h.page(2)];
    let mut status = |mpidr, num_aux, active| {
        if active {
            let _ = h.status(fid::RMI_REALM_ACTIVATE, &[h.page(1)]);
        }
        let mut p = RecParams::new_zeroed();
        (p.mpidr, p.num_aux) = (mpidr, num_aux);
        h.write(2, p);
        h.status(fid::RMI_REC_CREATE, &args)
    };
    for (active, told) in [(false, Status::ErrorInput), (true, Status::ErrorRealm(0))] {
        for (mpidr, aux) in [(1, 0), (1 << 31, 0), (0, 1), (0, 16)] {
            assert_eq!(status(mpidr, aux, active), told, "{mpidr:#x}, {aux}");
        }
        assert_eq!(status(0, 17, active), Status::ErrorInput, "no such list");
    }
}

#[test]
fn a_rec_that_runs_is_left_alone() {
    let mut h = Host::new(Granule::K4, RAM_SIZE);
    h.realm();
    h.rec(0, 60);
    let (rd, rec, page) = (h.page(1), h.page(60), h.page(3));
    h.ok(fid::RMI_REALM_ACTIVATE, &[rd]);
    let granule = h.system.granules.get(rec).unwrap();
    granule.get();
    assert_eq!(h.status(fid::RMI_REC_DESTROY, &[rec]), Status::ErrorRec);
    assert_eq!(h.status(fid::RMI_REC_ENTER, &[rec, page]), Status::ErrorRec);
    granule.put();
    // SAFETY: the fake machine's realm.
    let realm = unsafe { Realm::at(rd) };
    assert_eq!(realm.rec(0), Some(rec));
    h.ok(fid::RMI_REC_DESTROY, &[rec]);
    assert_eq!(realm.rec(0), None, "nobody finds it any more");
}

/// What an entry says must be an answer to the last exit.
#[test]
fn an_entry_answers_what_the_last_exit_asked() {
    let mut h = Host::new(Granule::K4, RAM_SIZE);
    let run = aborted(&mut h);
    let (rd, rec, page) = (h.page(1), h.page(60), h.page(3));
    h.ok(fid::RMI_REALM_ACTIVATE, &[rd]);
    let (mmio, sea) = (EnterFlags::EMUL_MMIO, EnterFlags::INJECT_SEA);
    for (pending, flags) in [
        (Pending::CpuOn(1, 0, 0), EnterFlags::empty()),
        (Pending::AffinityInfo(1), EnterFlags::empty()),
        (Pending::Abort(Syndrome(0x9200_0006), 0), mmio),
        (Pending::Nothing, mmio),
        (Pending::Nothing, sea),
    ] {
        run.pending = pending;
        h.write(3, flags.bits());
        let refused = h.status(fid::RMI_REC_ENTER, &[rec, page]);
        assert_eq!(refused, Status::ErrorRec, "{pending:?} {flags:?}");
        assert_eq!(run.pending, pending);
    }
    // SAFETY: the fake machine's realm.
    unsafe { Realm::at(rd) }.set_state(crate::realm::State::SystemOff);
    let ended = h.status(fid::RMI_REC_ENTER, &[rec, page]);
    assert_eq!(ended, Status::ErrorRealm(1));
}

#[test]
fn a_psci_call_is_completed_once_by_a_vcpu_of_its_realm() {
    let mut h = Host::new(Granule::K4, RAM_SIZE);
    let run = aborted(&mut h);
    h.rec(1, 61);
    // Another realm, with a vCPU 1 of its own.
    for page in [4, 32, 33, 62, 63] {
        h.ok(fid::RMI_GRANULE_DELEGATE, &[h.page(page)]);
    }
    h.write(2, h.realm_params(2, 32));
    h.ok(fid::RMI_REALM_CREATE, &[h.page(4), h.page(2)]);
    for (index, page) in [(0, 62), (1, 63)] {
        let mut p = RecParams::new_zeroed();
        p.mpidr = index_mpidr(index);
        h.write(2, p);
        let args = [h.page(4), h.page(page), h.page(2)];
        h.ok(fid::RMI_REC_CREATE, &args);
    }
    let [caller, target, other] = [60, 61, 63].map(|n| h.page(n));
    // SAFETY: the fake machine's REC, which nobody runs.
    let vcpu = unsafe { Rec::at(target) };
    let on = Pending::CpuOn(index_mpidr(1), 0x4000_0000, 7);
    let info = Pending::AffinityInfo(index_mpidr(1));
    let (done, denied) = (psci::SUCCESS as u64, psci::DENIED as u64);
    vcpu.set_runnable(false);
    run.pending = on;
    for args in [
        [caller, other, done],
        [caller, caller, done],
        [caller, target, psci::ALREADY_ON as u64],
        [caller, target, 1],
        [target, caller, done],
    ] {
        let refused = h.status(fid::RMI_PSCI_COMPLETE, &args);
        assert_eq!(refused, Status::ErrorInput, "{args:x?}");
    }
    for busy in [caller, target] {
        h.system.granules.get(busy).unwrap().get();
    }
    let args = [caller, target, done];
    assert_eq!(h.status(fid::RMI_PSCI_COMPLETE, &args), Status::ErrorInput);
    h.system.granules.get(caller).unwrap().put();
    assert_eq!((run.pending, vcpu.runnable()), (on, false));
    // Still on its way out of CPU_OFF.
    h.ok(fid::RMI_PSCI_COMPLETE, &args);
    assert_eq!(
        (run.gprs.x[0] as i64, vcpu.runnable()),
        (psci::ALREADY_ON, false)
    );
    h.system.granules.get(target).unwrap().put();
    for (pending, status, answer, runnable) in [
        (info, done, psci::AFFINITY_OFF, false),
        (on, denied, psci::DENIED, false),
        (on, done, psci::SUCCESS, true),
        (on, done, psci::ALREADY_ON, true),
        (info, done, psci::AFFINITY_ON, true),
    ] {
        run.pending = pending;
        let args = [caller, target, status];
        h.ok(fid::RMI_PSCI_COMPLETE, &args);
        assert_eq!((run.gprs.x[0] as i64, vcpu.runnable()), (answer, runnable));
        assert_eq!(
            h.status(fid::RMI_PSCI_COMPLETE, &args),
            Status::ErrorInput,
            "twice"
        );
    }
    // SAFETY: as above.
    let gprs = &unsafe { &*vcpu.state.get() }.gprs;
    assert_eq!((gprs.pc, gprs.x[0]), (0x4000_0000, 7));
}

/// The host may deny a CPU_ON of what is off; what is on, or on its way out, is told
/// as it is.
#[test]
fn a_vcpu_that_is_on_is_not_denied() {
    let mut h = Host::new(Granule::K4, RAM_SIZE);
    let run = aborted(&mut h);
    h.rec(1, 61);
    let (caller, target) = (h.page(60), h.page(61));
    // SAFETY: the fake machine's REC, which nobody runs.
    let vcpu = unsafe { Rec::at(target) };
    let on = Pending::CpuOn(index_mpidr(1), 0x4000_0000, 7);
    let info = Pending::AffinityInfo(index_mpidr(1));
    for runs in [false, true] {
        // On; or turned off a moment ago, on another PE.
        vcpu.set_runnable(!runs);
        if runs {
            h.system.granules.get(target).unwrap().get();
        }
        run.pending = on;
        let denied = [caller, target, psci::DENIED as u64];
        let refused = h.status(fid::RMI_PSCI_COMPLETE, &denied);
        assert_eq!((refused, run.pending), (Status::ErrorInput, on));
        run.pending = info;
        h.ok(fid::RMI_PSCI_COMPLETE, &[caller, target, 0]);
        assert_eq!(run.gprs.x[0] as i64, psci::AFFINITY_ON);
    }
    h.system.granules.get(target).unwrap().put();
}

/// An SEA answers an access that could be emulated and one that could not, whatever
/// else the host asks: it takes the place of the emulation.
#[test]
fn an_sea_takes_the_place_of_an_emulated_access() {
    let read = Syndrome(0x24 << 26 | 1 << 25 | 1 << 24 | 3 << 22 | 2 << 16 | 1 << 15 | 7);
    let bare = Syndrome(0x24 << 26 | 1 << 25 | 7);
    for pending in [Pending::Mmio(read, 0x18), Pending::Abort(bare, 0x18)] {
        let mut h = Host::new(Granule::K4, RAM_SIZE);
        let run = aborted(&mut h);
        (run.pending, run.gprs.x[2]) = (pending, 5);
        let (rd, rec, page) = (h.page(1), h.page(60), h.page(3));
        h.ok(fid::RMI_REALM_ACTIVATE, &[rd]);
        let flags = EnterFlags::EMUL_MMIO | EnterFlags::INJECT_SEA;
        h.write(3, [flags.bits(); 0x41]); // gprs[0] too
        h.ok(vendor::KICK, &[rec]); // it comes out before it runs
        h.ok(fid::RMI_REC_ENTER, &[rec, page]);
        assert_eq!((run.pending, run.gprs.x[2]), (Pending::Nothing, 5));
        assert_eq!(run.gprs.pc, 0x4000_8200, "{pending:?}");
        assert_eq!(run.el1.esr & 0x3f, 0x10, "an external abort");
    }
}

#[test]
fn a_change_that_another_realms_vcpu_is_named_for_is_the_vcpus_error() {
    let mut h = Host::new(Granule::K4, RAM_SIZE);
    h.realm();
    h.rec(0, 60);
    for page in [4, 32, 33] {
        h.ok(fid::RMI_GRANULE_DELEGATE, &[h.page(page)]);
    }
    h.write(2, h.realm_params(2, 32));
    h.ok(fid::RMI_REALM_CREATE, &[h.page(4), h.page(2)]);
    for (rd, told) in [(1, Status::ErrorInput), (4, Status::ErrorRec)] {
        let args = [h.page(rd), h.page(60), 0, 0x1000];
        assert_eq!(h.status(fid::RMI_RTT_SET_RIPAS, &args), told);
    }
}

/// What a host answers a load with reaches the register as the access takes it: of so many
/// bytes, in the guest's order, extended as the instruction has it. A store's register
/// stays.
#[test]
fn what_a_load_is_answered_with_is_as_wide_as_it_is() {
    use arm64::recording;
    const VALUE: u64 = 0x8899_aabb_ccdd_eef0;
    const SSE: u64 = 1 << 21;
    const SF: u64 = 1 << 15;
    const WNR: u64 = 1 << 6;
    const EE: u64 = 1 << 25;
    let of = |shift: u64| 0x24 << 26 | 1 << 25 | 1 << 24 | shift << 22 | 2 << 16 | 7;
    for (esr, sctlr, register) in [
        (of(0), 0, 0xf0),
        (of(1), 0, 0xeef0),
        (of(2), 0, 0xccdd_eef0),
        (of(3) | SF, 0, VALUE),
        (of(0) | SSE, 0, 0xffff_fff0),
        (of(0) | SSE | SF, 0, 0xffff_ffff_ffff_fff0),
        (of(1) | SSE | SF, 0, 0xffff_ffff_ffff_eef0),
        (of(1), EE, 0xf0ee),
        (of(2), EE, 0xf0ee_ddcc),
        (of(3) | SF, EE, 0xf0ee_ddcc_bbaa_9988),
        (of(3) | SF | WNR, 0, 5),
    ] {
        let mut h = Host::new(Granule::K4, RAM_SIZE);
        recording::reset();
        let run = aborted(&mut h);
        run.pending = Pending::Mmio(Syndrome(esr), 0x18);
        (run.gprs.x[2], run.gprs.pstate, run.el1.sctlr) = (5, 0x3c5, sctlr);
        let (rd, rec, page) = (h.page(1), h.page(60), h.page(3));
        h.ok(fid::RMI_REALM_ACTIVATE, &[rd]);
        h.write(3, [EnterFlags::EMUL_MMIO.bits(); 0x40]);
        // SAFETY: the page is the fake host's: gprs[0].
        unsafe { phys::write(page + 0x200, VALUE) };
        h.ok(vendor::KICK, &[rec]); // it comes out before it runs
        h.ok(fid::RMI_REC_ENTER, &[rec, page]);
        assert_eq!(run.pending, Pending::Nothing);
        assert_eq!(
            (run.gprs.x[2], run.gprs.pc),
            (register, 0x4000_0004),
            "{esr:#x} {sctlr:#x}"
        );
    }
}

/// Each is trapped as the host has asked, and nothing that was asked for the entry before.
#[test]
fn a_vcpu_is_entered_with_the_traps_that_are_asked_for() {
    use arm64::recording;
    use arm64::regs::HCR_EL2;
    use std::cell::Cell;
    use std::rc::Rc;
    const TWI: u64 = 1 << 13;
    const TWE: u64 = 1 << 14;
    let mut h = Host::new(Granule::K4, RAM_SIZE);
    recording::reset();
    let run = aborted(&mut h);
    let (rd, rec, page) = (h.page(1), h.page(60), h.page(3));
    h.ok(fid::RMI_REALM_ACTIVATE, &[rd]);
    let seen = Rc::new(Cell::new((0, true)));
    let tell = seen.clone();
    recording::run_as(std::boxed::Box::new(move |gprs| {
        tell.set((recording::get(HCR_EL2) & (TWI | TWE), gprs.host_is_called));
        2 // an FIQ, which is the host's
    }));
    let (wfi, wfe) = (EnterFlags::TRAP_WFI, EnterFlags::TRAP_WFE);
    for (flags, trapped) in [
        (EnterFlags::empty(), 0),
        (wfi, TWI),
        (wfe, TWE),
        (wfi | wfe, TWI | TWE),
        (EnterFlags::empty(), 0),
    ] {
        // The host has been called, and is there: it is called anew.
        (run.pending, run.call_host_at) = (Pending::Nothing, Some(5));
        run.gprs.host_is_called = true;
        h.write(3, flags.bits());
        h.ok(fid::RMI_REC_ENTER, &[rec, page]);
        assert_eq!(seen.get(), (trapped, false), "{flags:?}");
        assert_eq!(run.call_host_at, None);
    }
    recording::reset();
}

/// Of a system error a confidential guest's host learns what RMI 1.0 says (DEN0137, A4.3.6):
/// its kind, and no more of its syndrome.
#[test]
fn of_a_system_error_its_kind_is_told() {
    use arm64::recording;
    use arm64::regs::ESR_EL2;
    const TOLD: u64 = 0x3f << 26 | 1 << 24 | 0b111 << 10 | 1 << 9 | 0x3f;
    let esr = 0x2f << 26 | 0x1ff_ffff | 1 << 25;
    for (mode, told) in [
        (RealmFlags::NONCONF, esr),
        (RealmFlags::PROTECTED, esr & TOLD),
    ] {
        let mut h = Host::new(Granule::K4, RAM_SIZE);
        recording::reset();
        h.realm_of(mode);
        h.rec(0, 60);
        let (rd, rec, page) = (h.page(1), h.page(60), h.page(3));
        h.ok(fid::RMI_REALM_ACTIVATE, &[rd]);
        h.write(3, [0u64; 512]);
        recording::set(ESR_EL2, esr);
        recording::run_as(std::boxed::Box::new(|_| 3));
        h.ok(fid::RMI_REC_ENTER, &[rec, page]);
        recording::reset();
        // SAFETY: the page is the fake host's: what it is told.
        let word = |at: u64| unsafe { phys::read::<u64>(page + 0x800 + at) };
        assert_eq!(word(0x100), told, "{mode:?}");
    }
}

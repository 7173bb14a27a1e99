//! Rules of the specification (DEN0137 1.0), each with its place there.

use super::*;
use crate::guest::exits::synchronous;
use crate::guest::record::{Next, Record};
use crate::guest::vcpu::RunningVcpu;
use ::rmi::run::ExitReason;
use arm64::recording;
use arm64::regs::*;

const SHARED: u64 = 1 << 39;
const REC: u64 = 60;
const ABORT: u64 = 0x24 << 26 | 1 << 25 | 0x07;
const SMC: u64 = 0x17 << 26 | 1 << 25;
/// The syndrome names the register of the access.
const ISV: u64 = 1 << 24;

/// A realm of RMI 1.0 (but that EL2 has its vGIC), all of it EMPTY, and a vCPU.
fn machine() -> Host {
    let mut h = Host::new(Granule::K4, 16 << 20);
    h.realm_of(RealmFlags::empty());
    h.rec(0, REC);
    h
}

fn vcpu(h: &Host) -> &'static mut VcpuState {
    // SAFETY: the fake machine's vCPU, which nobody runs.
    unsafe { &mut *Rec::at(h.page(REC)).state.get() }
}

fn exception(h: &mut Host, esr: u64, ipa: u64) -> Next {
    let pa = h.page(REC);
    // SAFETY: the fake machine's realm and vCPU, which nobody runs.
    let (realm, rec) = unsafe { (Realm::at(h.page(1)), Rec::at(pa)) };
    let state = vcpu(h);
    state.pending = Pending::Nothing;
    (state.gprs.pc, state.gprs.pstate) = (0x1000, 0x3c5);
    recording::set(HPFAR_EL2, ipa >> 12 << 4);
    recording::set(FAR_EL2, 0xffff_8000_0000_0000 | ipa & 0xfff);
    recording::set(ESR_EL2, esr);
    recording::set(ESR_EL1, 0);
    let cpu = &mut h.cpu;
    let mut vcpu = RunningVcpu { cpu, realm, rec };
    synchronous(&mut vcpu, pa, state, Syndrome(esr))
}

fn told(h: &mut Host, esr: u64, ipa: u64) -> Record {
    match exception(h, esr, ipa) {
        Next::Exit(record) => record,
        Next::Enter => panic!("no exit"),
    }
}

/// A5.2.7, RVKNJW: "When a Synchronous External Abort is taken to a Realm, ESR_EL1.EA ==
/// '1'".
#[test]
fn sea_of_empty_has_ea() {
    let mut h = machine();
    for esr in [ABORT, 0x20 << 26 | 1 << 25 | 0x07] {
        assert!(matches!(exception(&mut h, esr, RAM), Next::Enter));
        let taken = recording::get(ESR_EL1);
        assert_eq!(taken & 0x3f, 0x10);
        assert_eq!(taken >> 9 & 1, 1, "ESR_EL1 {taken:#x}: EA is clear");
    }
}

/// What the guest has posted is the host's to take soon: a WFI has it come now, and the
/// guest then waits in the same WFI. WFE is a hint, and ends.
#[test]
fn a_wait_begins_when_the_host_has_taken_what_was_posted() {
    let mut h = machine();
    let (wfi, wfe) = (0x01 << 26 | 1 << 25, 0x01 << 26 | 1 << 25 | 1);
    for (esr, called, reason, pc) in [
        (wfi, None, ExitReason::Sync, 0x1004),
        (wfi, Some(0), ExitReason::Irq, 0x1000),
        (wfe, Some(0), ExitReason::Sync, 0x1004),
    ] {
        vcpu(&h).call_host_at = called;
        assert_eq!(told(&mut h, esr, 0).reason, reason as u64);
        assert_eq!(vcpu(&h).gprs.pc, pc);
    }
}

/// Of an interrupt that is there by then: it goes on behind the WFI, which would trap again
/// for as long as the guest leaves the interrupt where it is.
#[test]
fn a_wait_for_what_is_there_is_over() {
    const VMCR: u64 = vgic::vmcr::VENG0 | vgic::vmcr::VENG1 | 0xf8 << 24;
    let mut h = Host::new(Granule::K4, 16 << 20);
    h.realm_of(RealmFlags::PROTECTED);
    h.rec(0, REC);
    recording::set(ICH_VMCR_EL2, VMCR);
    let wfi = 0x01 << 26 | 1 << 25;
    assert!(matches!(exception(&mut h, wfi, 0), Next::Exit(_)));
    // SAFETY: the fake machine's realm, which nobody else uses.
    let realm = unsafe { Realm::at(h.page(1)) };
    realm.with_vgic(Some(0), |vgic| {
        let control = vgic::At { offset: 0, size: 4 };
        vgic.write(0, vgic::Frame::Distributor, control, 0b11);
        vgic.send_sgi(0, vgic::SgiRegister::Sgi1, 5 << 24 | 1);
    });
    assert!(matches!(exception(&mut h, wfi, 0), Next::Enter));
    assert_eq!(vcpu(&h).gprs.pc, 0x1004);
}

/// What calls the host ends no WFI of the guest's: it traps until then. In one whose host
/// has the list registers the host alone says whether it does.
#[test]
fn who_has_posted_waits_at_el2() {
    for (flags, traps) in [(RealmFlags::EL2_VGIC, true), (RealmFlags::empty(), false)] {
        let mut h = Host::new(Granule::K4, 16 << 20);
        h.realm_with(|params| params.flags = flags.bits());
        h.rec(0, REC);
        // SAFETY: the fake machine's realm and vCPU, which nobody runs.
        let (realm, rec) = unsafe { (Realm::at(h.page(1)), Rec::at(h.page(REC))) };
        let state = vcpu(&h);
        let cpu = &mut h.cpu;
        recording::set(HCR_EL2, arm64::bits!(HCR_EL2: VM, TSC));
        RunningVcpu { cpu, realm, rec }.call_host_in(state, 7);
        let twi = if traps { arm64::bits!(HCR_EL2: TWI) } else { 0 };
        assert_eq!(realm.host_lrs, !traps);
        assert_eq!(
            recording::get(HCR_EL2),
            arm64::bits!(HCR_EL2: VM, TSC) | twi,
            "{flags:?}"
        );
    }
}

/// On QEMU's CPUs the bit is clear, and a guest that is no realm need not tell them apart.
#[test]
fn sea_of_a_guest_that_is_no_realm_is_as_on_qemu() {
    let mut h = Host::new(Granule::K4, 16 << 20);
    h.realm_of(RealmFlags::PROTECTED);
    h.rec(0, REC);
    assert!(matches!(exception(&mut h, ABORT, RAM), Next::Enter));
    let taken = recording::get(ESR_EL1);
    assert_eq!((taken & 0x3f, taken >> 9 & 1), (0x10, 0));
}

#[test]
fn sea_of_the_hosts_has_ea() {
    let mut h = machine();
    assert_eq!(told(&mut h, ABORT, SHARED).esr, ABORT & !(1 << 25));
    let state = vcpu(&h);
    let Pending::Abort(esr, far) = state.pending else {
        panic!("{:?}", state.pending);
    };
    state.inject_external_abort(esr, far);
    assert_eq!(state.el1.esr >> 9 & 1, 1, "ESR_EL1 {:#x}", state.el1.esr);
    // And of an access that the host could have emulated.
    let exit = told(&mut h, ABORT | ISV | 2 << 22, SHARED);
    assert_eq!(exit.esr & ISV, ISV);
    let state = vcpu(&h);
    let Pending::Mmio(esr, far) = state.pending else {
        panic!("{:?}", state.pending);
    };
    state.inject_external_abort(esr, far);
    assert_eq!(state.el1.esr >> 9 & 1, 1, "ESR_EL1 {:#x}", state.el1.esr);
}

/// B4.3.7.3, args: the caller's gprs[1], gprs[2] and gprs[3] are zero.
#[test]
fn psci_complete_leaves_zero_behind_x0() {
    let mut h = machine();
    h.rec(1, 61);
    // SAFETY: the fake machine's REC, which nobody runs.
    unsafe { Rec::at(h.page(61)) }.set_runnable(false);
    for pending in [Pending::CpuOn(1, RAM, 7), Pending::AffinityInfo(1)] {
        let state = vcpu(&h);
        state.gprs.x = [0x5ec; 31];
        state.pending = pending;
        h.ok(fid::RMI_PSCI_COMPLETE, &[h.page(REC), h.page(61), 0]);
        let x = vcpu(&h).gprs.x;
        assert_eq!(x[1..4], [0; 3], "{pending:?}");
    }
}

/// DEN0022F, 6.4.3 (the state of a core that is powered up): data accesses of a CPU that
/// is turned on are as its caller's were, big-endian or not. TF-RMM (psci_reset_rec),
/// TF-A (psci_get_ns_ep_info) and KVM (kvm_psci_vcpu_on) hand SCTLR_EL1.EE on, and no more.
#[test]
fn a_cpu_that_is_turned_on_has_its_callers_endianness() {
    const EE: u64 = arm64::bits!(SCTLR_EL1: EE);
    let mut h = machine();
    h.rec(1, 61);
    // SAFETY: the fake machine's REC, which nobody runs.
    let other = unsafe { Rec::at(h.page(61)) };
    for ee in [0, EE] {
        other.set_runnable(false);
        let state = vcpu(&h);
        // With its MMU on, and E0E.
        state.el1.sctlr = El1::SCTLR_RESET | ee | 1 << 24 | 1;
        state.pending = Pending::CpuOn(1, RAM, 7);
        h.ok(fid::RMI_PSCI_COMPLETE, &[h.page(REC), h.page(61), 0]);
        // SAFETY: as above.
        let sctlr = unsafe { &*other.state.get() }.el1.sctlr;
        assert_eq!(sctlr, El1::SCTLR_RESET | ee, "{sctlr:#x}");
    }
}

/// A4.3.3, RPBKVB: exit.gprs[0] contains the PSCI FID. W0 is the identifier.
#[test]
fn a_psci_exit_tells_the_identifier_alone() {
    let mut h = machine();
    h.rec(1, 61);
    let on = [0xdead_beef_c400_0003, 1, RAM, 7];
    vcpu(&h).gprs.x[..4].copy_from_slice(&on);
    let record = told(&mut h, SMC, 0);
    assert_eq!(record.gprs[0], 0xc400_0003, "{:#x}", record.gprs[0]);
}

/// B4.3.12.2, num_recs: ERROR_REALM when there are 2^MAX_RECS_ORDER - 1.
#[test]
fn a_realm_has_one_rec_less_than_two_to_the_order() {
    let mut h = Host::new(Granule::K4, RAM_SIZE);
    h.realm_with(|params| params.flags = 0);
    let features = h.call(raw(fid::RMI_FEATURES, &[0]))[1];
    h.fill_with_recs((1 << (features >> 38 & 0xf)) - 1);
}

/// B3.82, VmidIsValid: any of the CPU's. Arm's suite begins with 0.
#[test]
fn a_realm_may_have_vmid_0() {
    let mut h = Host::new(Granule::K4, RAM_SIZE);
    h.realm_with(|params| (params.flags, params.vmid) = (0, 0));
    assert_eq!(h.state(1), State::Rd);
}

/// A walk of stage 2 that meets an external abort (DFSC 0x17): HPFAR_EL2 is UNKNOWN then
/// (DDI0487, IPAValid), and is not to be told, nor does anything hang on it.
#[test]
fn an_external_abort_of_the_machines_tells_no_stale_address() {
    let mut h = machine();
    let esr = 0x24 << 26 | 1 << 25 | 0x17;
    let mut seen = Vec::new();
    for stale in [RAM, SHARED | 0x1234_5000, 1 << 40] {
        let next = exception(&mut h, esr, stale);
        let told = match next {
            Next::Exit(record) => Some(record.hpfar),
            Next::Enter => None,
        };
        seen.push((told, recording::get(ESR_EL1) & 0x23f));
    }
    assert_eq!(
        seen,
        [(Some(0), 0x210); 3],
        "what is told hangs on HPFAR_EL2"
    );
}

/// A5.3.5: RTT_INIT_RIPAS depends on HIPAS alone; B4.3.18: its walk does not stop at
/// DESTROYED.
#[test]
fn what_was_destroyed_while_new_may_become_ram() {
    let mut h = Host::new(Granule::K4, 16 << 20);
    h.realm_of(RealmFlags::empty());
    let rd = h.page(1);
    for (level, base) in [(2, RAM & !((1 << 30) - 1)), (3, RAM)] {
        h.ok(fid::RMI_GRANULE_DELEGATE, &[h.page(40 + level)]);
        h.ok(fid::RMI_RTT_CREATE, &[rd, h.page(40 + level), base, level]);
    }
    h.ok(fid::RMI_RTT_INIT_RIPAS, &[rd, RAM, RAM + 0x1000]);
    h.ok(fid::RMI_GRANULE_DELEGATE, &[h.page(50)]);
    h.ok(fid::RMI_DATA_CREATE_UNKNOWN, &[rd, h.page(50), RAM]);
    h.ok(fid::RMI_DATA_DESTROY, &[rd, RAM]);
    let again = h.status(fid::RMI_RTT_INIT_RIPAS, &[rd, RAM, RAM + 0x1000]);
    assert_eq!(again, Status::Success);
}

/// B1.2, RKBWJD: "On return from an RMI or RSI command, any of X0 - X16 which are not
/// specified as output values in the command definition MBZ": of X1 to X3. Those above are
/// the caller's by SMCCC 1.1, as Linux calls.
#[test]
fn rsi_leaves_zero_where_it_has_no_output() {
    let mut h = machine();
    let mut left = Vec::new();
    for (call, outputs) in [
        (&[fid::RSI_FEATURES, 0][..], 1),
        (&[fid::RSI_VERSION, 0x1_0000], 2),
        (&[fid::RSI_MEASUREMENT_EXTEND, 1, 0], 0),
        (&[fid::RSI_IPA_STATE_GET, RAM, RAM + 0x1000], 2),
    ] {
        let state = vcpu(&h);
        state.gprs.x = [0xa5a5; 31];
        state.gprs.x[..call.len()].copy_from_slice(call);
        assert!(matches!(exception(&mut h, SMC, 0), Next::Enter));
        let x = vcpu(&h).gprs.x;
        assert_eq!(x[0], 0, "{call:x?}");
        left.push((outputs + 1..4).filter(|n| x[*n] != 0).collect::<Vec<_>>());
        assert_eq!(x[4..], [0xa5a5; 27], "{call:x?}");
    }
    assert!(left.iter().all(Vec::is_empty), "not zero: {left:?}");
}

/// The same of RSI_IPA_STATE_SET and RSI_HOST_CALL, when the next entry answers them.
#[test]
fn rsi_leaves_zero_where_it_has_no_output_late() {
    let mut h = machine();
    let state = vcpu(&h);
    state.gprs.x = [0xa5a5; 31];
    state.gprs.x[..5].copy_from_slice(&[fid::RSI_IPA_STATE_SET, RAM, RAM + 0x1000, 1, 0]);
    assert!(matches!(exception(&mut h, SMC, 0), Next::Exit(_)));
    let state = vcpu(&h);
    crate::guest::rsi::finish_ripas(state, EnterFlags::empty());
    assert_eq!((state.gprs.x[3], state.gprs.x[5]), (0, 0xa5a5));
}

/// A4.3.4.3: an access of an unprotected IPA that is UNASSIGNED_NS, with ESR_EL2.ISV, is
/// Emulatable, and the exit's ISV, SAS and WnR hold ESR_EL2's. (ACS:
/// `mm_unprotected_ipa_boundary`.) Here: a word stored to the first bytes of the host's
/// page, aligned, behind a page that is mapped.
#[test]
fn the_first_word_of_a_shared_page_is_emulatable() {
    let mut h = machine();
    let esr = ABORT | ISV | 2 << 22 | 5 << 16 | 1 << 6;
    recording::set(SCTLR_EL1, 1);
    // Behind a page of memory, and Device memory itself.
    phys::fake::set_translation(Some(0x4000_0000));
    let first = told(&mut h, esr, SHARED | 0x5000);
    // Of Normal memory it may be the end of one that is not aligned.
    phys::fake::set_translation(Some(0xff << 56 | 0x4000_0000));
    let normal = told(&mut h, esr, SHARED | 0x5000);
    let other = told(&mut h, esr, SHARED | 0x5004);
    recording::set(SCTLR_EL1, 0);
    assert_eq!(other.esr & ISV, ISV);
    assert_eq!(first.esr & ISV, ISV, "{:#x}", first.esr);
    assert_eq!(normal.esr & ISV, 0, "{:#x}", normal.esr);
}

/// A4.3.4.1, RBPYBC: of WFIT and WFET, "exit.gprs[0] contains the timeout value".
#[test]
fn a_wait_with_a_timeout_tells_it() {
    let mut h = machine();
    vcpu(&h).gprs.x[7] = 0x1234_5678;
    // RV, RN = 7, TI = WFIT.
    let exit = told(&mut h, 0x01 << 26 | 1 << 25 | 7 << 5 | 1 << 2 | 2, 0);
    assert_eq!(exit.gprs[0], 0x1234_5678, "ESR {:#x}", exit.esr);
}

/// A4.3.4.1: of WFI, WFE, WFIT and WFET, EC and TI, which of them it is.
#[test]
fn a_wait_tells_which_it_is_and_no_more() {
    let mut h = machine();
    for ti in 0..4 {
        let rn_and_rv = if ti & 2 != 0 { 7 << 5 | 1 << 2 } else { 0 };
        let exit = told(&mut h, 0x01 << 26 | 1 << 25 | rn_and_rv | ti, 0);
        assert_eq!(exit.esr, 0x01 << 26 | ti, "TI {ti}");
    }
}

/// A realm of RMI 1.0 with a gigabyte of the host's at [`GIGABYTE`], and a granule for a
/// table of level 2.
fn with_a_gigabyte() -> (Host, u64, u64) {
    let mut h = Host::with(Granule::K4, 2 << 30, |features| features.fwb = true);
    h.realm_of(RealmFlags::empty());
    assert_eq!(h.geometry().start(), pgtable::Level::L1);
    let (rd, table) = (h.page(1), h.page(40));
    h.ok(fid::RMI_GRANULE_DELEGATE, &[table]);
    (h, rd, table)
}

const GIGABYTE: u64 = RAM + (1 << 30);

/// Where the host's memory stands, and what is told of it.
fn shared_entry(h: &mut Host, rd: u64) -> [u64; 3] {
    let read = h.ok(fid::RMI_RTT_READ_ENTRY, &[rd, SHARED, 3]);
    [read[1], read[2], read[3]]
}

/// Whether a granule in the middle can be given away: not while a realm has it.
fn is_free(h: &mut Host) -> bool {
    let amid = GIGABYTE + 0x1234_5000;
    let free = h.status(fid::RMI_GRANULE_DELEGATE, &[amid]) == Status::Success;
    if free {
        h.ok(fid::RMI_GRANULE_UNDELEGATE, &[amid]);
    }
    free
}

/// A5.5.6: of the host's memory a table of "level 2 or 3" folds, as one of data does.
#[test]
fn blocks_of_the_hosts_memory_fold_to_level_1() {
    let (mut h, rd, table) = with_a_gigabyte();
    h.ok(fid::RMI_RTT_CREATE, &[rd, table, SHARED, 2]);
    for at in (0..1 << 30).step_by(2 << 20) {
        let map = [rd, SHARED + at, 2, (GIGABYTE + at) | DESC];
        h.ok(fid::RMI_RTT_MAP_UNPROTECTED, &map);
    }
    let folded = h.ok(fid::RMI_RTT_FOLD, &[rd, SHARED, 2]);
    assert_eq!(folded[1], table);
    assert_eq!(shared_entry(&mut h, rd), [1, 1, GIGABYTE | DESC]);
    assert!(!is_free(&mut h));
    // And unfolds.
    h.ok(fid::RMI_RTT_CREATE, &[rd, table, SHARED, 2]);
    assert_eq!(shared_entry(&mut h, rd), [2, 1, GIGABYTE | DESC]);
    for at in (0..1 << 30).step_by(2 << 20) {
        h.ok(fid::RMI_RTT_UNMAP_UNPROTECTED, &[rd, SHARED + at, 2]);
    }
    assert!(is_free(&mut h));
}

/// A5.5.4, IQWQSB: an entry of level 1 may be ASSIGNED_NS. B4.3.19.2 and B4.3.22.2,
/// level_bound, have "a block or page RTT level": level 1 is one.
#[test]
fn an_entry_of_level_1_maps_the_hosts_memory() {
    let (mut h, rd, table) = with_a_gigabyte();
    let map = [rd, SHARED, 1, GIGABYTE | DESC];
    h.ok(fid::RMI_RTT_MAP_UNPROTECTED, &map);
    assert_eq!(shared_entry(&mut h, rd), [1, 1, GIGABYTE | DESC]);
    assert!(!is_free(&mut h));
    let unmapped = h.ok(fid::RMI_RTT_UNMAP_UNPROTECTED, &[rd, SHARED, 1]);
    assert!(unmapped[1] >= SHARED + (1 << 30));
    assert!(is_free(&mut h));
    // One that is not all the host's is refused whole.
    h.ok(fid::RMI_GRANULE_DELEGATE, &[GIGABYTE + 0x3fff_f000]);
    let refused = h.status(fid::RMI_RTT_MAP_UNPROTECTED, &map);
    assert_eq!(refused, Status::ErrorInput);
    assert!(is_free(&mut h));
    h.ok(fid::RMI_GRANULE_UNDELEGATE, &[GIGABYTE + 0x3fff_f000]);
    // A table below it that goes takes the memory along.
    h.ok(fid::RMI_RTT_MAP_UNPROTECTED, &map);
    h.ok(fid::RMI_RTT_CREATE, &[rd, table, SHARED, 2]);
    h.ok(fid::RMI_RTT_DESTROY, &[rd, SHARED, 2]);
    assert!(is_free(&mut h));
    // And so does the realm.
    h.ok(fid::RMI_RTT_MAP_UNPROTECTED, &map);
    h.ok(fid::RMI_REALM_DESTROY, &[rd]);
    assert!(is_free(&mut h));
}

//! What the host learns of a guest's exits, by its mode.

use super::*;
use crate::guest::exits::synchronous;
use crate::guest::record::{Next, Record};
use crate::guest::vcpu::RunningVcpu;
use arm64::recording;
use arm64::regs::*;
use proptest::prelude::*;

const SHARED: u64 = 1 << 39;
const REC: u64 = 60;
/// A data abort of a lower level, translation fault at level 3.
const ABORT: u64 = 0x24 << 26 | 1 << 25 | 0x07;
const FETCH: u64 = 0x20 << 26 | 1 << 25 | 0x07;
/// And what describes its access: 4 bytes, a write, of X3.
const WRITE: u64 = 1 << 24 | 2 << 22 | 3 << 16 | 1 << 6;
const HVC: u64 = 0x16 << 26 | 1 << 25;
const WFI: u64 = 0x01 << 26 | 1 << 25 | 0x1e << 20;
/// What no register of a guest's has by chance.
const SECRET: u64 = 0x5ec2_e75e_c2e7_5ec2;

/// A machine with a realm of this mode, one page of tables at `RAM` of which the
/// first three pages are RAM, the first of them assigned, and a vCPU.
fn machine(mode: RealmFlags) -> Host {
    let mut h = Host::new(Granule::K4, 16 << 20);
    h.realm_of(mode);
    let rd = h.page(1);
    for (level, base) in [(2, RAM & !((1 << 30) - 1)), (3, RAM)] {
        h.ok(fid::RMI_GRANULE_DELEGATE, &[h.page(40 + level)]);
        h.ok(fid::RMI_RTT_CREATE, &[rd, h.page(40 + level), base, level]);
    }
    if mode == RealmFlags::PROTECTED {
        h.ok(fid::RMI_RTT_INIT_RIPAS, &[rd, RAM, RAM + 0x3000]);
        for (n, ipa) in [(50, RAM), (51, RAM + 0x2000)] {
            h.ok(fid::RMI_GRANULE_DELEGATE, &[h.page(n)]);
            h.ok(fid::RMI_DATA_CREATE_UNKNOWN, &[rd, h.page(n), ipa]);
        }
        h.ok(fid::RMI_DATA_DESTROY, &[rd, RAM + 0x2000]);
    }
    h.rec(0, REC);
    h
}

/// What becomes of an exception of its vCPU's, all of whose registers are secret.
fn exit(h: &mut Host, esr: u64, ipa: u64) -> (Next, &'static mut VcpuState) {
    exit_at(h, esr, ipa, 0x3c5)
}

/// The same at this PSTATE.
fn exit_at(h: &mut Host, esr: u64, ipa: u64, pstate: u64) -> (Next, &'static mut VcpuState) {
    let pa = h.page(REC);
    // SAFETY: the fake machine's realm and vCPU, which nobody runs.
    let (realm, rec) = unsafe { (Realm::at(h.page(1)), Rec::at(pa)) };
    // SAFETY: as above.
    let state = unsafe { &mut *rec.state.get() };
    state.pending = Pending::Nothing;
    (state.gprs.pc, state.gprs.pstate) = (0xffff_8000_1234_5678, pstate);
    recording::set(HPFAR_EL2, ipa >> 12 << 4);
    recording::set(FAR_EL2, 0xffff_8000_0000_0000 | ipa & 0xfff);
    recording::set(ESR_EL2, esr);
    let mut vcpu = RunningVcpu {
        cpu: &mut h.cpu,
        realm,
        rec,
    };
    (synchronous(&mut vcpu, pa, state, Syndrome(esr)), state)
}

/// The record of what is the host's.
#[track_caller]
fn to_host(h: &mut Host, esr: u64, ipa: u64) -> Record {
    match exit(h, esr, ipa).0 {
        Next::Exit(record) => record,
        Next::Enter => panic!("{esr:#x} at {ipa:#x}: the guest goes on"),
    }
}

/// The syndrome that the guest gets of what is its own error; `None` if it just goes
/// on.
#[track_caller]
fn to_guest(h: &mut Host, esr: u64, ipa: u64) -> Option<u64> {
    recording::set(ESR_EL1, 0);
    match exit(h, esr, ipa) {
        (Next::Enter, state) => {
            assert_eq!(state.pending, Pending::Nothing);
            Some(recording::get(ESR_EL1)).filter(|esr| *esr != 0)
        }
        (Next::Exit(record), _) => panic!("{esr:#x} at {ipa:#x}: {record:x?}"),
    }
}

#[test]
fn an_abort_of_its_own_memory_tells_the_page() {
    let mut h = machine(RealmFlags::PROTECTED);
    for esr in [ABORT, ABORT | WRITE, FETCH, ABORT | 1 << 7] {
        // RAM that is not there yet, and that the host took.
        for page in [1, 2] {
            let ipa = RAM + page * 0x1000;
            let record = to_host(&mut h, esr, ipa + 0x238);
            assert_eq!(record.esr, esr & (0x3f << 26 | 0x3f));
            assert_eq!((record.hpfar, record.far), (ipa >> 8, 0));
            assert_eq!(record.gprs, [0; 4]);
        }
        // What is there by now; what is not RAM; what is outside.
        assert_eq!(to_guest(&mut h, esr, RAM), None);
        for ipa in [RAM + 0x3000, 0, RAM - 0x1000, SHARED - 0x1000, 1 << 40] {
            let injected = to_guest(&mut h, esr, ipa).expect("an abort");
            let on_walk = esr & 1 << 7 != 0;
            assert_eq!(
                injected & 0x3f,
                if on_walk { 0x17 } else { 0x10 },
                "{ipa:#x}"
            );
        }
    }
}

/// DDI0487, AArch64.S1DisabledOutput: an output address that is beyond PAMax is an Address
/// size fault of level 0; so KVM answers (kvm_inject_size_fault) what is beyond the
/// ID_AA64MMFR0_EL1.PARange that it tells a guest. Here that is 40 bits.
#[test]
fn what_is_beyond_the_range_that_a_plain_guest_is_told_is_an_address_size_fault() {
    let mut h = machine(RealmFlags::NONCONF);
    for (esr, class, flags) in [
        (ABORT, 0x25, 0),
        (ABORT | WRITE, 0x25, 1 << 6),
        (FETCH, 0x21, 0),
    ] {
        let injected = to_guest(&mut h, esr, 1 << 40 | 0x238).expect("an abort");
        assert_eq!(injected, class << 26 | 1 << 25 | flags, "{injected:#x}");
        assert_eq!(recording::get(FAR_EL1), 0xffff_8000_0000_0238);
    }
    // What is in it, and nothing there, is the host's to say.
    to_host(&mut h, ABORT, (1 << 40) - 0x1000);
}

#[test]
fn an_access_of_a_device_tells_itself_and_no_register() {
    let mut h = machine(RealmFlags::PROTECTED);
    let ipa = SHARED | 0x900_0018;
    // SAFETY: the fake machine's vCPU, which nobody runs.
    let state = unsafe { &mut *Rec::at(h.page(REC)).state.get() };
    state.gprs.x = [SECRET; 31];
    for (size, mask) in [(0, 0xff), (1, 0xffff), (2, 0xffff_ffff), (3, u64::MAX)] {
        let esr = ABORT | WRITE & !(0b11 << 22) | size << 22 | 1 << 15;
        let record = to_host(&mut h, esr, ipa);
        // Neither which register, nor whether it is sign-extended.
        assert_eq!(record.esr, esr & !(0x1f << 16 | 1 << 21 | 1 << 25));
        assert_eq!(record.gprs, [SECRET & mask, 0, 0, 0]);
        assert_eq!((record.far, record.hpfar), (0x018, ipa >> 12 << 4));
    }
    let read = to_host(&mut h, ABORT | WRITE & !(1 << 6), ipa);
    assert_eq!(read.gprs, [0; 4]);
    // Without a syndrome there is nothing to emulate, and where in the page it was is
    // the guest's own.
    let record = to_host(&mut h, ABORT | 1 << 6, ipa);
    assert_eq!((record.esr & 1 << 24, record.gprs), (0, [0; 4]));
    assert_eq!((record.far, record.hpfar), (0, ipa >> 12 << 4));
    assert!(matches!(
        exit(&mut h, ABORT, ipa).1.pending,
        Pending::Abort(..)
    ));
    // And nothing that the host writes is executed.
    assert!(to_guest(&mut h, FETCH, ipa).is_some());
}

/// DEN0137 1.0, A4.3.4.3: what AArch32 accesses is not emulatable.
#[test]
fn an_access_of_aarch32_tells_nothing_of_itself() {
    let mut h = machine(RealmFlags::PROTECTED);
    let ipa = SHARED | 0x900_0018;
    // SAFETY: the fake machine's vCPU, which nobody runs.
    let gprs = unsafe { &mut (*Rec::at(h.page(REC)).state.get()).gprs };
    gprs.x = [SECRET; 31];
    for pstate in [0x10, 0x30] {
        let (next, state) = exit_at(&mut h, ABORT | WRITE, ipa, pstate);
        let Next::Exit(record) = next else {
            panic!("it is the host's")
        };
        assert_eq!(
            (record.esr & 1 << 24, record.gprs, record.far),
            (0, [0; 4], 0)
        );
        assert!(matches!(state.pending, Pending::Abort(..)));
    }
}

/// An error of the machine's has an address in no device of the host's, whatever the
/// syndrome says of the access.
#[test]
fn an_error_of_the_machines_is_not_emulated() {
    let mut h = machine(RealmFlags::NONCONF);
    for status in [0x10, 0x17, 0x18, 0x30, 0x35] {
        let (next, state) = exit(&mut h, ABORT & !0x3f | WRITE | status, 0x900_0018);
        let Next::Exit(record) = next else {
            panic!("it is the host's")
        };
        assert_eq!(
            (record.esr & 1 << 24, record.gprs),
            (0, [0; 4]),
            "{status:#x}"
        );
        assert!(matches!(state.pending, Pending::Abort(..)), "{status:#x}");
    }
}

/// ESR_EL2.CM: cache maintenance by address, which writes.
const MAINTAINS: u64 = 1 << 8 | 1 << 6;

/// The host folds or splits a table around a guest's memory, and the guest cleans that
/// meanwhile: it does so again when the memory is there.
#[test]
fn maintenance_of_a_protected_guests_memory_does_not_vanish() {
    let mut h = machine(RealmFlags::PROTECTED);
    let begin = 0xffff_8000_1234_5678;
    // There by now; not there yet; taken by the host.
    for (page, comes_out) in [(0, false), (1, true), (2, true)] {
        let (next, state) = exit(&mut h, ABORT | MAINTAINS, RAM + page * 0x1000);
        assert_eq!(state.gprs.pc, begin, "page {page} was stepped over");
        assert_eq!(matches!(next, Next::Exit(_)), comes_out, "page {page}");
    }
    // Where it shares, and nothing is there, there is nothing to maintain.
    let (next, state) = exit(&mut h, ABORT | MAINTAINS, SHARED | RAM);
    assert!(matches!(next, Next::Enter) && state.gprs.pc == begin + 4);
    let mut h = {
        drop(h);
        machine(RealmFlags::NONCONF)
    };
    let (next, state) = exit(&mut h, ABORT | MAINTAINS, RAM);
    assert!(matches!(next, Next::Enter) && state.gprs.pc == begin + 4);
}

#[test]
fn a_call_tells_what_it_has() {
    for (mode, rest) in [(RealmFlags::PROTECTED, 0), (RealmFlags::NONCONF, SECRET)] {
        let mut h = machine(mode);
        // SAFETY: the fake machine's vCPU, which nobody runs.
        let gprs = unsafe { &mut (*Rec::at(h.page(REC)).state.get()).gprs };
        gprs.x = [SECRET; 31];
        gprs.x[0] = u64::from(psci::fid::PSCI_CPU_OFF);
        let record = to_host(&mut h, HVC, 0);
        let off = u64::from(psci::fid::PSCI_CPU_OFF);
        let rest32 = rest & 0xffff_ffff;
        assert_eq!(record.gprs, [off, rest32, rest32, rest32]);
        // RSI is not there.
        gprs.x[0] = 0xc400_0190;
        assert_eq!(to_guest(&mut h, HVC, 0), None);
        assert_eq!(gprs.x[0], NOT_SUPPORTED);
        // A wait tells which it was.
        let record = to_host(&mut h, WFI, 0);
        let told = if rest == 0 { 0x01 << 26 } else { WFI };
        assert_eq!((record.esr, record.gprs), (told, [0; 4]));
    }
}

#[test]
fn a_vcpu_begins_in_memory_of_its_own() {
    let mut h = machine(RealmFlags::PROTECTED);
    h.rec(1, REC + 1);
    // SAFETY: the fake machine's vCPU, which nobody runs.
    let gprs = unsafe { &mut (*Rec::at(h.page(REC)).state.get()).gprs };
    for (entry, begins) in [
        (RAM, true),
        (SHARED | RAM, false),
        (1 << 40, false),
        (2, false),
    ] {
        gprs.x[..4].copy_from_slice(&[u64::from(psci::fid::PSCI_CPU_ON), 1, entry, 7]);
        let (next, _) = exit(&mut h, HVC, 0);
        assert_eq!(matches!(next, Next::Exit(_)), begins, "{entry:#x}");
        if !begins {
            assert_eq!(gprs.x[0], psci::INVALID_ADDRESS as u64);
        }
    }
}

/// The guest's own registers of its physical timer, which EL2 plays with CNTHP: what it
/// writes is what it reads, and moves the timer at once.
#[test]
fn a_physical_timer_is_read_and_set_by_its_registers() {
    const CTL: u64 = 1 << 17;
    const CVAL: u64 = 2 << 17;
    const TVAL: u64 = 0;
    let access = |register: u64, reads: u64| {
        0x18 << 26 | 1 << 25 | 3 << 20 | 3 << 14 | register | 14 << 10 | 5 << 5 | 2 << 1 | reads
    };
    let mut h = machine(RealmFlags::NONCONF);
    // SAFETY: the fake machine's vCPU, which nobody runs.
    let gprs = unsafe { &mut (*Rec::at(h.page(REC)).state.get()).gprs };
    let mut write = |h: &mut Host, register, value| {
        gprs.x[5] = value;
        assert!(matches!(exit(h, access(register, 0), 0).0, Next::Enter));
    };
    let read = |h: &mut Host, register| exit(h, access(register, 1), 0).1.gprs.x[5];
    let set = || {
        [
            recording::get(CNTHP_CTL_EL2),
            recording::get(CNTHP_CVAL_EL2),
        ]
    };
    recording::set(CNTPCT_EL0, 1000);
    write(&mut h, CVAL, 5000);
    assert_eq!(set()[0], 0, "it is off");
    // ISTATUS is read-only.
    write(&mut h, CTL, 0b101);
    assert_eq!((set(), read(&mut h, CTL)), ([1, 5000], 0b001));
    write(&mut h, CVAL, 6000);
    assert_eq!((set(), read(&mut h, CVAL)), ([1, 6000], 6000));
    write(&mut h, TVAL, 300);
    assert_eq!((set(), read(&mut h, CVAL)), ([1, 1300], 1300));
    assert_eq!(read(&mut h, TVAL), 300);
    // 32 bits with a sign, above which nothing counts.
    write(&mut h, TVAL, 0xffff_ffff_ffff_ff00);
    assert_eq!((read(&mut h, CVAL), read(&mut h, TVAL)), (744, 0xffff_ff00));
    assert_eq!((read(&mut h, CTL), set()[0]), (0b101, 0));
    write(&mut h, TVAL, 0x1_0000_0010);
    assert_eq!(read(&mut h, CVAL), 1016);
    write(&mut h, CTL, 0b111);
    assert_eq!((read(&mut h, CTL), set()[0]), (0b011, 0));
}

/// IHI0069H, 12.2: what ICC_SGI0R_EL1 and ICC_ASGI1R_EL1 send is of group 0.
#[test]
fn an_sgi_is_of_the_group_of_its_register() {
    use vgic::{At, Frame, Read};
    let mut h = machine(RealmFlags::NONCONF);
    h.rec(1, REC + 1);
    // SAFETY: the fake machine's realm and vCPU, which nobody runs.
    let (realm, gprs) = unsafe {
        let state = &mut *Rec::at(h.page(REC)).state.get();
        (Realm::at(h.page(1)), &mut state.gprs)
    };
    let sgi = |offset| (Frame::Sgi(1), At { offset, size: 4 });
    let pending = || {
        let (frame, at) = sgi(0x200);
        realm.with_vgic(None, |v| v.read(1, frame, at))
    };
    for (op2, group1, comes) in [
        (5, 0, true),
        (5, 1 << 3, true),
        (6, 0, true),
        (6, 1 << 3, false),
        (7, 0, true),
        (7, 1 << 3, false),
    ] {
        let ((frame, group), (_, clear)) = (sgi(0x80), sgi(0x280));
        realm.with_vgic(None, |v| {
            v.write(1, frame, clear, 0xffff);
            v.write(1, frame, group, group1);
        });
        gprs.x[5] = 3 << 24 | 2;
        let msr = 0x18 << 26 | 1 << 25 | 3 << 20 | op2 << 17 | 12 << 10 | 5 << 5 | 11 << 1;
        assert!(matches!(exit(&mut h, msr, 0).0, Next::Enter));
        let bit = if comes { 1 << 3 } else { 0 };
        assert_eq!(pending(), Read::Value(bit), "{op2} {group1}");
    }
}

/// A store of a big-endian guest's is the host's in the order of the bus, as its load is.
#[test]
fn a_plain_guests_store_is_told_in_the_order_of_the_bus() {
    let mut h = machine(RealmFlags::NONCONF);
    // SAFETY: the fake machine's vCPU, which nobody runs.
    let gprs = unsafe { &mut (*Rec::at(h.page(REC)).state.get()).gprs };
    gprs.x[3] = 0x1122_3344_5566_7788;
    for (sctlr, told) in [(0, 0x5566_7788), (1 << 25, 0x8877_6655)] {
        recording::set(SCTLR_EL1, sctlr);
        let record = to_host(&mut h, ABORT | WRITE, 0x900_0000);
        assert_eq!(record.gprs[0] & 0xffff_ffff, told, "{sctlr:#x}");
    }
}

proptest! {
    /// Whatever a protected guest does, of what its registers hold the host learns
    /// what is written to a device, and nothing else; and EL2 goes on.
    #[test]
    fn no_exit_tells_a_register(
        esr in any::<u32>(),
        class in prop::sample::select(&[0x01u64, 0x16, 0x17, 0x18, 0x20, 0x24, 0x3c, 0x00]),
        ipa in prop_oneof![Just(RAM + 0x1000), Just(SHARED | 0x900_0000), any::<u64>()],
        function in prop_oneof![0x8400_0000u64..0x8400_0016, any::<u64>()],
    ) {
        let mut h = machine(RealmFlags::PROTECTED);
        // SAFETY: the fake machine's vCPU, which nobody runs.
        let gprs = unsafe { &mut (*Rec::at(h.page(REC)).state.get()).gprs };
        gprs.x = [SECRET; 31];
        gprs.x[0] = function;
        let esr = u64::from(esr) & 0x3ff_ffff | class << 26;
        let (next, state) = exit(&mut h, esr, ipa & 0xff_ffff_ffff_ffff);
        if let Next::Exit(record) = next {
            prop_assert_eq!(state.exit.pc, [0; 2]);
            prop_assert_eq!(record.far >> 12, 0);
            let is_write = matches!(state.pending, Pending::Mmio(esr, _) if esr.is_write());
            let is_call = record.reason == 3;
            // Of what no guest is told that its CPU has, the time.
            let is_timed = class == 0x01 && Syndrome(esr).timeout().is_some();
            for (n, value) in record.gprs.into_iter().enumerate() {
                let called = function & 0xffff_ffff;
                let arguments = is_call && match n {
                    0 => value == called,
                    _ => [0xc400_0001, 0xc400_0003, 0xc400_0004].contains(&(called | 1 << 30)),
                };
                let may = value == 0 || arguments || (n == 0 && (is_write || is_timed));
                prop_assert!(may, "{:x?}", record);
            }
        }
    }
}

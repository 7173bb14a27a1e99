//! The fast paths do what the general one does, or nothing.

use super::*;
use crate::cpu::context::Served;
use crate::guest::exits::synchronous;
use crate::guest::fast::serve;
use crate::guest::record::Next;
use crate::guest::vcpu::RunningVcpu;
use crate::memory::guarded::Taken;
use crate::speculation::{Defence, Speculation};
use arm64::recording::{self, Event};
use arm64::regs::*;
use proptest::prelude::*;
use vgic::{At, Frame, lr};

const REC: u64 = 60;
/// Where the guest is.
const PC: u64 = 0xffff_8000_1234_5678;

/// A machine whose CPU has something in each ID register, and a realm of this mode
/// with a vCPU.
fn machine(mode: RealmFlags) -> Host {
    let mut h = Host::new(Granule::K4, 16 << 20);
    h.realm_of(mode);
    h.rec(0, REC);
    const ONES: u64 = 0x1111_1111_1111_1111;
    recording::set(ID_AA64PFR0_EL1, ONES);
    recording::set(ID_AA64PFR1_EL1, ONES + 1);
    recording::set(ID_AA64DFR0_EL1, ONES + 2);
    recording::set(ID_AA64ISAR0_EL1, ONES + 3);
    recording::set(ID_AA64ISAR1_EL1, ONES + 4);
    recording::set(ID_AA64MMFR0_EL1, ONES + 5);
    recording::set(ID_AA64MMFR1_EL1, ONES + 6);
    recording::set(ID_AA64MMFR2_EL1, ONES + 7);
    let stand = Speculation {
        v2: Defence::Unaffected,
        bhb: Defence::Unaffected,
        steps: Default::default(),
    };
    assert!(h.cpu.common.add(stand).is_ok());
    h
}

/// An exception of its vCPU's.
#[derive(Clone, Copy, Debug)]
struct Comes {
    esr: u64,
    far: u64,
    hpfar: u64,
    spsr: u64,
    sctlr: u64,
    x0: u64,
}

/// What both ways make of it: that of the vector first. The general registers, PC and
/// PSTATE of each; `None` for what is not served there, or needs the host.
type State = ([u64; 31], u64, u64);

fn both(h: &mut Host, comes: Comes) -> (Served, Option<State>, Option<State>) {
    let pa = h.page(REC);
    // SAFETY: the fake machine's realm and vCPU, which nobody runs.
    let (realm, rec) = unsafe { (Realm::at(h.page(1)), Rec::at(pa)) };
    // SAFETY: as above.
    let state = unsafe { &mut *rec.state.get() };
    let begin: [u64; 31] = core::array::from_fn(|n| 0x1000 + n as u64);
    recording::set(ESR_EL2, comes.esr);
    recording::set(FAR_EL2, comes.far);
    recording::set(HPFAR_EL2, comes.hpfar);
    recording::set(ELR_EL2, PC);
    recording::set(SPSR_EL2, comes.spsr);
    recording::set(SCTLR_EL1, comes.sctlr);
    state.gprs.x = begin;
    state.gprs.x[0] = comes.x0;
    let taken = Taken::get();
    let served = serve(state, realm);
    let Taken { elr, .. } = Taken::get();
    assert_eq!(Taken::get(), Taken { elr, ..taken }, "{comes:x?}");
    let fast = (served != Served::No).then_some((state.gprs.x, elr, comes.spsr));
    if fast.is_none() {
        assert_eq!((elr, &state.gprs.x[1..]), (PC, &begin[1..]), "{comes:x?}");
    }
    if served == Served::Enter {
        assert_eq!(state.gprs.x[20..30], begin[20..30], "they are not loaded");
    }
    state.gprs.x = begin;
    state.gprs.x[0] = comes.x0;
    state.pending = Pending::Nothing;
    (state.gprs.pc, state.gprs.pstate) = (PC, comes.spsr);
    let mut vcpu = RunningVcpu {
        cpu: &mut h.cpu,
        realm,
        rec,
    };
    let next = synchronous(&mut vcpu, pa, state, Syndrome(comes.esr));
    let gprs = &state.gprs;
    let general = matches!(next, Next::Enter).then_some((gprs.x, gprs.pc, gprs.pstate));
    (served, fast, general)
}

const MODES: [RealmFlags; 3] = [
    RealmFlags::NONCONF,
    RealmFlags::PROTECTED,
    RealmFlags::EL2_VGIC,
];

fn gicd(mode: RealmFlags) -> u64 {
    let shared = if mode == RealmFlags::NONCONF {
        0
    } else {
        1 << 39
    };
    (shared + vendor::GICD_IPA) >> 12 << 4
}

/// MRS of an ID register of CRm and Op2 to X`rt`.
fn mrs(crm: u64, op2: u64, rt: u64) -> u64 {
    0x18 << 26 | 1 << 25 | 3 << 20 | op2 << 17 | rt << 5 | crm << 1 | 1
}

#[test]
fn what_is_meant_to_be_fast_is() {
    for mode in MODES {
        let mut h = machine(mode);
        let usual = Comes {
            esr: 0,
            far: 0,
            hpfar: 0,
            spsr: 0x3c5,
            sctlr: 1,
            x0: 0x8000_0000,
        };
        for (crm, op2) in [
            (4, 0),
            (4, 1),
            (5, 0),
            (6, 0),
            (6, 1),
            (7, 0),
            (7, 1),
            (7, 2),
        ] {
            for (rt, enough) in [(3, Served::Enter), (25, Served::EnterChanged)] {
                let esr = mrs(crm, op2, rt);
                let first = both(&mut h, Comes { esr, ..usual });
                // The first to read it is told by the general way.
                assert!(rt != 3 || first.0 == Served::No, "{mode:?} {crm} {op2}");
                let (served, fast, general) = both(&mut h, Comes { esr, ..usual });
                assert_eq!((served, fast), (enough, general), "{mode:?} {crm} {op2}");
            }
        }
        for offset in [4, 8] {
            let esr = 0x24 << 26 | 1 << 25 | 1 << 24 | 2 << 22 | 7 << 16 | 0x07;
            let (far, hpfar) = (0xffff_0000_0000_1000 | offset, gicd(mode));
            let read = Comes {
                esr,
                far,
                hpfar,
                ..usual
            };
            let (served, fast, general) = both(&mut h, read);
            assert_eq!(
                (served, fast),
                (Served::Enter, general),
                "{mode:?} {offset}"
            );
        }
        let esr = 0x16 << 26 | 1 << 25;
        let (served, fast, general) = both(&mut h, Comes { esr, ..usual });
        if mode == RealmFlags::EL2_VGIC {
            assert_eq!(served, Served::No, "undefined in a realm");
        } else {
            assert_eq!((served, fast), (Served::Enter, general), "{mode:?}");
        }
    }
}

/// What becomes of a write to ICC_SGI1R_EL1, of a vCPU whose list registers are filled;
/// and the first of them then.
fn sgi(loaded: bool, x0: u64, spsr: u64) -> (Served, u64) {
    const VMCR: u64 = vgic::vmcr::VENG0 | vgic::vmcr::VENG1 | 0xf8 << 24;
    const MSR: u64 = 0x18 << 26 | 1 << 25 | 3 << 20 | 5 << 17 | 12 << 10 | 11 << 1;
    let mut h = machine(RealmFlags::NONCONF);
    // SAFETY: the fake machine's realm and vCPU, which nobody runs.
    let (realm, rec) = unsafe { (Realm::at(h.page(1)), Rec::at(h.page(REC))) };
    // SAFETY: as above.
    let state = unsafe { &mut *rec.state.get() };
    realm.with_vgic(Some(0), |vgic| {
        vgic.write(0, Frame::Distributor, At { offset: 0, size: 4 }, 0b11);
        vgic.fill(0, VMCR, &mut state.lrs);
    });
    state.lrs_loaded = loaded;
    recording::set(ICH_VMCR_EL2, VMCR);
    recording::set(ICH_LR0_EL2, 0);
    let comes = Comes {
        esr: MSR,
        far: 0,
        hpfar: 0,
        spsr,
        sctlr: 1,
        x0,
    };
    let (served, fast, general) = both(&mut h, comes);
    assert!(fast.is_none() || fast == general);
    (served, recording::get(ICH_LR0_EL2))
}

/// Of one to itself, the list register that it goes to is the CPU's at once.
#[test]
fn an_sgi_is_sent_at_the_vector() {
    let itself = 5 << 24 | 1;
    assert_eq!(sgi(true, itself, 0x3c5), (Served::Enter, lr::PENDING | 5));
    // To another, to all others.
    for x0 in [5 << 24 | 2, 1 << 40 | itself] {
        assert_eq!(sgi(true, x0, 0x3c5), (Served::Enter, 0), "{x0:#x}");
    }
    // With bits that do not count.
    let more = 1 << 63 | 1 << 41 | 1 << 28;
    assert_eq!(
        sgi(true, more | itself, 0x3c5),
        (Served::Enter, lr::PENDING | 5)
    );
    // Not loaded; stepped; to both.
    for (loaded, x0, spsr) in [
        (false, itself, 0x3c5),
        (true, itself, 1 << 21 | 5),
        (true, 5 << 24 | 3, 0x3c5),
    ] {
        assert_eq!(sgi(loaded, x0, spsr), (Served::No, 0), "{x0:#x} {spsr:#x}");
    }
}

/// What is written to the list register of a PE that has one, as a vCPU is entered until
/// the host is needed.
fn written(h: &mut Host, rec: u64) -> Vec<u64> {
    recording::set(ESR_EL2, 0x24 << 26 | 1 << 25 | 0x07);
    recording::set(HPFAR_EL2, 0x0b00_0000 >> 12 << 4);
    let (rec, page) = (h.page(rec), h.page(3));
    let events = recording::of(|| {
        h.ok(fid::RMI_REC_ENTER, &[rec, page]);
    });
    let last = events.iter().rposition(
        |event| matches!(event, Event::Msr("ICH_HCR_EL2", hcr) if hcr & vgic::hcr::EN != 0),
    );
    assert!(last.is_some(), "the interface is on");
    let lrs = events.iter().filter_map(|event| match event {
        Event::Msr("ICH_LR0_EL2", lr) => Some(*lr),
        _ => None,
    });
    lrs.collect()
}

/// Nothing is written where nothing has changed, and nothing of another's stays.
#[test]
fn a_vcpu_finds_list_registers_as_it_left_them() {
    let mut h = machine(RealmFlags::NONCONF);
    h.rec(1, REC + 1);
    let rd = h.page(1);
    h.ok(fid::RMI_REALM_ACTIVATE, &[rd]);
    // SAFETY: the fake machine's realm.
    let realm = unsafe { Realm::at(rd) };
    let sgi = |from: usize, to: u64| {
        realm.with_vgic(Some(from), |vgic| {
            vgic.write(0, Frame::Distributor, At { offset: 0, size: 4 }, 0b11);
            vgic.send_sgi(from, vgic::SgiRegister::Sgi1, 5 << 24 | to);
        });
    };
    assert_eq!(written(&mut h, REC), [0], "for the first time");
    assert!(written(&mut h, REC).is_empty());
    assert_eq!(written(&mut h, REC + 1), [0]);
    assert!(written(&mut h, REC).is_empty(), "still zero");
    sgi(0, 2);
    assert_eq!(written(&mut h, REC + 1), [lr::PENDING | 5]);
    // Whose it was not.
    assert_eq!(written(&mut h, REC), [0]);
    assert!(written(&mut h, REC).is_empty());
    // What was not taken is there again.
    assert_eq!(written(&mut h, REC + 1), [lr::PENDING | 5]);
    // Whose it was not has come out before it was entered.
    let (rec, page) = (h.page(REC), h.page(3));
    h.ok(vendor::KICK, &[rec]);
    let events = recording::of(|| {
        h.ok(fid::RMI_REC_ENTER, &[rec, page]);
    });
    let writes = |event: &Event| matches!(event, Event::Msr("ICH_LR0_EL2", _));
    assert!(!events.iter().any(writes));
    assert_eq!(written(&mut h, REC), [0], "another's stays");
    assert_eq!(written(&mut h, REC + 1), [lr::PENDING | 5]);
    sgi(1, 1);
    assert_eq!(written(&mut h, REC), [lr::PENDING | 5]);
}

/// Whoever ran here before may have left theirs in the CPU.
#[test]
fn a_vcpu_is_entered_with_its_own_breakpoints() {
    const MDE: u64 = arm64::bits!(MDSCR_EL1: MDE);
    let mut h = machine(RealmFlags::NONCONF);
    h.ok(fid::RMI_REALM_ACTIVATE, &[h.page(1)]);
    // SAFETY: the fake machine's vCPU, which nobody runs.
    let state = unsafe { &mut *Rec::at(h.page(REC)).state.get() };
    for (register, value) in [
        (OSLAR_EL1::ENCODING, 0),
        (MDSCR_EL1::ENCODING, MDE),
        (DBGBVR0_EL1::ENCODING, 0x8000),
    ] {
        state.debug.write(register, value);
    }
    state.el1.mdscr = MDE;
    recording::set(DBGBVR0_EL1, 0x1234);
    // An abort that is the host's.
    recording::set(ESR_EL2, 0x24 << 26 | 1 << 25 | 0x07);
    recording::set(HPFAR_EL2, 0x0b00_0000 >> 12 << 4);
    let (rec, page) = (h.page(REC), h.page(3));
    let events = recording::of(|| {
        h.ok(fid::RMI_REC_ENTER, &[rec, page]);
    });
    assert!(events.contains(&Event::Msr("DBGBVR0_EL1", 0x8000)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    /// Whatever a CPU reports.
    #[test]
    fn a_fast_path_does_what_the_general_one_does(
        mode in prop::sample::select(&MODES),
        class in prop::sample::select(&[0x16u64, 0x17, 0x18, 0x24, 0x20, 0x01]),
        iss in prop_oneof![
            any::<u32>(),
            // MRS or MSR of ID registers.
            (any::<u8>(), 0u32..32, 1u32..8, 0u32..8).prop_map(|(dir, rt, crm, op2)| {
                3 << 20 | op2 << 17 | rt << 5 | crm << 1 | u32::from(dir > 20)
            }),
            // What is told of an access.
            (any::<u32>(), 0u32..64).prop_map(|(at, fault)| {
                1 << 24 | at & 0x7f_ffc0 | if fault < 50 { 0x07 } else { fault }
            }),
        ],
        offset in prop_oneof![Just(4u64), Just(8), 0u64..16, 0u64..4096],
        page in 0u64..4,
        spsr in prop_oneof![Just(0x3c5u64), any::<u32>().prop_map(u64::from)],
        sctlr in prop_oneof![Just(1u64), Just(0), any::<u64>()],
        x0 in prop_oneof![Just(0x8000_0000u64), Just(0x1_8000_0000), 0x8000_0000u64..0x8000_0004,
            any::<u64>()],
    ) {
        let mut h = machine(mode);
        // IL, as of an instruction of AArch64.
        let esr = class << 26 | 1 << 25 | u64::from(iss) & 0x1ff_ffff;
        let hpfar = gicd(mode) + if page == 3 { 0x10 } else { 0 };
        let far = 0xffff_0000_0000_1000 | offset;
        let comes = Comes { esr, far, hpfar, spsr, sctlr, x0 };
        for _ in 0..2 {
            let (served, fast, general) = both(&mut h, comes);
            if served != Served::No {
                prop_assert_eq!(fast, general, "{:?} {:x?}", mode, comes);
            }
        }
    }
}

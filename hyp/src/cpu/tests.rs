//! Which register is written before which, on the recording register file.

extern crate std;

use super::*;
use crate::features::IdRegisters;
use crate::rmi::fake;
use arm64::recording::{self, Event};
use std::string::String;
use std::vec::Vec;
use std::{assert_eq, format};

/// A guest's values: where each of its registers is told from the host's.
fn guest_el1() -> El1 {
    El1 {
        sctlr: 0x1111,
        ttbr0: 0x2222,
        tcr: 0x3333,
        vbar: 0x4444,
        sp_el1: 0x5555,
        ..El1::reset()
    }
}

/// A CPU with these features, the host on it.
fn host(change: fn(&mut crate::features::Features)) -> fake::Host {
    recording::reset();
    fake::Host::with(pgtable::Granule::K4, 1 << 20, change)
}

/// What is loaded of the vCPU at `rec`, whose FP/SIMD registers are or were a PE's.
fn of<'a>(
    rec: u64,
    fp_pe: u32,
    el1: &'a El1,
    interface: &'a gic::VirtualInterface,
) -> GuestState<'a> {
    GuestState {
        rec,
        el1,
        vtimer: VirtualTimer {
            ctl: 1,
            cval: 0x777,
        },
        interface,
        fp_pe,
        vmpidr: 1 << 31 | 5,
        vttbr: 9 << 48 | 0x5000,
        vtcr: 0x8000_3558,
        other_vcpu_ran_here: false,
    }
}

pub(crate) fn enter(cpu: &mut Cpu, el1: &El1, other_vcpu_ran_here: bool) -> Vec<Event> {
    let interface = gic::VirtualInterface::default();
    recording::of(|| {
        let state = GuestState {
            other_vcpu_ran_here,
            ..of(0x1000, u32::MAX, el1, &interface)
        };
        cpu.switch_to_guest(&state, 0);
    })
}

pub(crate) fn leave(cpu: &mut Cpu, el1: &mut El1) -> Vec<Event> {
    let (mut vtimer, mut fp) = (VirtualTimer::default(), FpState::ZERO);
    let mut interface = gic::VirtualInterface::default();
    recording::of(|| {
        cpu.switch_to_host(SavedState {
            el1,
            vtimer: &mut vtimer,
            interface: &mut interface,
            fp: &mut fp,
        });
    })
}

/// Where an event is for the first time.
#[track_caller]
fn first(events: &[Event], what: impl Fn(&Event) -> bool) -> usize {
    events.iter().position(what).expect("it is done")
}

fn writes(name: &'static str) -> impl Fn(&Event) -> bool {
    move |event| matches!(event, Event::Msr(register, _) if *register == name)
}

fn reads(name: &'static str) -> impl Fn(&Event) -> bool {
    move |event| *event == Event::Mrs(name)
}

fn issues(name: &'static str) -> impl Fn(&Event) -> bool {
    move |event| matches!(event, Event::Instruction(issued, _) if *issued == name)
}

/// What every switch keeps to: nothing is overwritten that was not saved, stage 2
/// is never off, and all is there before a lower level runs.
fn holds_its_order(events: &[Event]) {
    for name in El1::NAMES {
        assert!(
            first(events, reads(name)) < first(events, writes(name)),
            "{name} is saved before it is overwritten"
        );
    }
    for event in events {
        if let Event::Msr("HCR_EL2", value) = event {
            assert_eq!(value & bits!(HCR_EL2: VM, RW), bits!(HCR_EL2: VM, RW));
            assert_eq!(value & bits!(HCR_EL2: E2H, TGE), 0);
        }
    }
    let stage2 = ["HCR_EL2", "VTCR_EL2", "VTTBR_EL2"].map(|name| first(events, writes(name)));
    let synchronised = events[stage2[2]..].iter().position(issues("isb"));
    assert!(stage2.is_sorted() && synchronised.is_some(), "{stage2:?}");
    assert!(
        first(events, writes("CNTV_CVAL_EL0")) > first(events, writes("CNTV_CTL_EL0")),
        "one timer stops before the other's time is set"
    );
    assert_eq!(events.last(), Some(&Event::Instruction("isb", None)));
}

/// Firmware may turn a CPU on with the vectors that it went off with.
#[test]
fn a_cpu_that_comes_has_no_vectors_of_who_was_there() {
    let mut host = host(|f| f.fgt = 2);
    let cpu = &mut host.cpu;
    let events = recording::of(|| cpu.begin_host(0x4000_0000, 7));
    let open = first(&events, |event| *event == Event::Msr("CPTR_EL2", CPTR));
    let zeros = first(&events, issues("fp restore"));
    assert!(open < zeros, "what it loads must not trap");
    // As the host sees it, by its own save.
    assert_eq!((cpu.host.fp.q(), cpu.fp_owner), (FpState::ZERO.q(), None));
    let reset = Gprs::reset(0x4000_0000);
    assert_eq!(
        (cpu.host.gprs.x[0], &cpu.host.gprs.x[1..]),
        (7, &reset.x[1..])
    );
}

#[test]
fn both_ways_save_before_they_overwrite_and_end_synchronised() {
    let mut host = host(|f| (f.ras, f.pauth, f.fwb) = (true, true, true));
    let mut el1 = guest_el1();
    holds_its_order(&enter(&mut host.cpu, &el1, false));
    let events = leave(&mut host.cpu, &mut el1);
    holds_its_order(&events);
    // The virtual interface is off before its state is read, and before the host
    // has its own stage 2 back.
    let off = first(&events, |event| *event == Event::Msr("ICH_HCR_EL2", 0));
    assert!(off < first(&events, reads("ICH_VMCR_EL2")));
    assert!(off < first(&events, writes("VTTBR_EL2")));
}

#[test]
fn what_a_vcpu_leaves_in_tlbs_goes_by_its_own_vmid() {
    let mut host = host(|_| {});
    let el1 = guest_el1();
    let events = enter(&mut host.cpu, &el1, true);
    let order = [
        first(&events, writes("VTTBR_EL2")),
        first(&events, writes("TTBR0_EL1")),
        first(&events, issues("tlbi vmalle1")),
        first(&events, issues("ic iallu")),
        first(&events, issues("dsb nsh")),
    ];
    assert!(order.is_sorted(), "{order:?}");
    assert!(events[order[0]..order[2]].contains(&Event::Instruction("isb", None)));
    let mut same = guest_el1();
    leave(&mut host.cpu, &mut same);
    let events = enter(&mut host.cpu, &el1, false);
    assert!(!events.iter().any(issues("tlbi vmalle1")));
}

/// A level-sensitive interrupt is pending while its line is high: of a timer that still
/// runs that says nothing of what the host wrote.
#[test]
fn the_hosts_timer_is_off_before_its_interrupt_is_looked_at() {
    let mut host = host(|_| {});
    host.cpu.pe.note_redistributor_change();
    let events = enter(&mut host.cpu, &guest_el1(), false);
    let stopped = first(&events, writes("CNTV_CTL_EL0"));
    assert_eq!(events[stopped], Event::Msr("CNTV_CTL_EL0", 0));
    let ispendr = |event: &Event| matches!(event, Event::Load(at, 4) if at % gic::gicr::SIZE == gic::gicr::ISPENDR0);
    let asked = first(&events, ispendr);
    assert!(events[stopped..asked].contains(&Event::Instruction("isb", None)));
}

#[test]
fn each_world_finds_what_it_left() {
    let mut host = host(|_| {});
    recording::set(TTBR0_EL1, 0xaaaa);
    recording::set(CNTV_CVAL_EL0, 0xbbbb);
    recording::set(CNTV_CTL_EL0, 1);
    recording::set(ICC_PMR_EL1, 0xf0);
    let mut el1 = guest_el1();
    enter(&mut host.cpu, &el1, false);
    let seen = [
        recording::get(TTBR0_EL1),
        recording::get(VTTBR_EL2),
        recording::get(CNTV_CVAL_EL0),
        recording::get(ICC_PMR_EL1),
    ];
    assert_eq!(seen, [0x2222, 9 << 48 | 0x5000, 0x777, 0xf0]);
    recording::set(TTBR0_EL1, 0x6666);
    leave(&mut host.cpu, &mut el1);
    assert_eq!((el1.ttbr0, el1.vbar), (0x6666, 0x4444));
    let seen = [
        recording::get(TTBR0_EL1),
        recording::get(VTTBR_EL2),
        recording::get(CNTV_CVAL_EL0),
        recording::get(ICC_PMR_EL1),
    ];
    let vttbr = host.system.host.regs().vttbr;
    assert_eq!(seen, [0xaaaa, vttbr, 0xbbbb, 0xf0]);
    assert_eq!(recording::get(CNTV_CTL_EL0), 1);
}

/// DEN0137 1.0, A6.1, RLNQRL: "A REC exit due to IRQ is not generated for an interrupt which is
/// masked by the value of ICC_PMR_EL1 at the time of REC entry" (and UGXCHC: that it should be
/// preserved). One that is pending and masked would end each entry at once, and the host,
/// which masks it, would never take it. What is EL2's own passes, also where it is at 0x80.
#[test]
fn what_the_host_masks_ends_no_entry() {
    for pmr in [0xf0, 0xa0, 0x90] {
        let mut host = host(|_| {});
        recording::set(ICC_PMR_EL1, pmr);
        let mut el1 = guest_el1();
        enter(&mut host.cpu, &el1, false);
        assert_eq!(recording::get(ICC_PMR_EL1), pmr, "ICC_PMR_EL1");
        leave(&mut host.cpu, &mut el1);
        assert_eq!(recording::get(ICC_PMR_EL1), pmr);
    }
    let mut host = host(|_| {});
    recording::set(ICC_PMR_EL1, 0x60);
    enter(&mut host.cpu, &guest_el1(), false);
    let passes = 0x81..=0x90;
    assert!(passes.contains(&recording::get(ICC_PMR_EL1)), "EL2's own");
}

/// A guest's DISR_EL1 is VDISR_EL2: an error that it has deferred is not another's.
/// The like for keys.
#[test]
fn each_world_finds_its_deferred_error_and_its_keys() {
    let mut host = host(|f| (f.ras, f.pauth) = (true, true));
    let seen = || {
        [
            recording::get(VDISR_EL2),
            recording::get(APIAKeyLo_EL1),
            recording::get(APGAKeyHi_EL1),
        ]
    };
    recording::set(VDISR_EL2, 1 << 31 | 1);
    recording::set(APIAKeyLo_EL1, 0xaaaa);
    recording::set(APGAKeyHi_EL1, 0xbbbb);
    let of_host = seen();
    let mut el1 = guest_el1();
    el1.vdisr = 1 << 31 | 2;
    (el1.keys[0], el1.keys[9]) = (0xcccc, 0xdddd);
    enter(&mut host.cpu, &el1, false);
    assert_eq!(seen(), [1 << 31 | 2, 0xcccc, 0xdddd]);
    recording::set(VDISR_EL2, 0);
    leave(&mut host.cpu, &mut el1);
    assert_eq!(seen(), of_host);
    assert_eq!((el1.vdisr, el1.keys[0], el1.keys[9]), (0, 0xcccc, 0xdddd));
}

/// What firmware left in them would match in a guest that turns its debug exceptions on.
#[test]
fn a_cpu_that_comes_matches_nothing_of_before() {
    let events = recording::of(|| drop(host(|_| {})));
    for name in ["DBGBCR0_EL1", "DBGWCR0_EL1"] {
        assert_eq!(
            events[first(&events, writes(name))],
            Event::Msr(name, 0),
            "{name}"
        );
    }
}

/// FEAT_MOPS is for lower levels where the CPU has it; nothing else of HCRX_EL2 is.
#[test]
fn memory_copies_are_enabled_where_they_are() {
    for (mops, hcrx) in [(0, 0), (1, 1 << 11), (15, 1 << 11)] {
        recording::reset();
        recording::set(ID_AA64ISAR2_EL1, mops << 16 | 0xffff);
        recording::set(HCRX_EL2, u64::MAX);
        fake::Host::with(pgtable::Granule::K4, 1 << 20, |f| f.hcx = true);
        assert_eq!(recording::get(HCRX_EL2), hcrx, "MOPS {mops}");
    }
}

/// FP/SIMD registers are reached where CPTR_EL2 has been opened and that is seen.
#[test]
fn fp_state_moves_while_its_trap_is_open() {
    let mut host = host(|_| {});
    enter(&mut host.cpu, &guest_el1(), false);
    assert_ne!(recording::get(CPTR_EL2) & bits!(CPTR_EL2: TFP), 0);
    let (fp, mut fp_pe) = (FpState::ZERO, u32::MAX);
    let events = recording::of(|| host.cpu.fp_to_guest(0x1000, &fp, &mut fp_pe));
    assert_eq!(
        events,
        [
            Event::Msr("CPTR_EL2", CPTR),
            Event::Instruction("isb", None),
            Event::Instruction("fp save", None),
            Event::Instruction("fp restore", None),
        ]
    );
    let saved = |events: &[Event]| events.contains(&Event::Instruction("fp save", None));
    assert!(saved(&leave(&mut host.cpu, &mut guest_el1())));
    // Another's are there still, which it may not use and which are not its own.
    enter(&mut host.cpu, &guest_el1(), false);
    assert!(!saved(&leave(&mut host.cpu, &mut guest_el1())));
}

/// Whose FP/SIMD registers a PE holds, and who may use them: each turn of a vCPU at an
/// address, or of the host. What is saved or restored is somebody's by what they hold.
#[test]
fn fp_registers_are_used_by_whose_they_are() {
    const NO_PE: u32 = u32::MAX;
    let is_open = || recording::get(CPTR_EL2) & bits!(CPTR_EL2: TFP) == 0;
    let mut host = host(|_| {});
    let cpu = &mut host.cpu;
    // A vCPU at an address that last loaded its registers on some PE: whether it has them at
    // once; and then whether they are saved when it comes out, if it uses none.
    let turn = |cpu: &mut Cpu, rec, fp_pe| {
        let (el1, interface) = (guest_el1(), gic::VirtualInterface::default());
        cpu.switch_to_guest(&of(rec, fp_pe, &el1, &interface), 0);
        is_open()
    };
    let saves = |cpu: &mut Cpu| {
        let did = leave(cpu, &mut guest_el1());
        did.contains(&Event::Instruction("fp save", None))
    };
    let uses = |cpu: &mut Cpu, rec| {
        let mut fp_pe = NO_PE;
        let did = recording::of(|| cpu.fp_to_guest(rec, &FpState::ZERO, &mut fp_pe));
        assert!(is_open() && did.contains(&Event::Instruction("fp restore", None)));
        assert_eq!(fp_pe, cpu.pe.index as u32);
        did.contains(&Event::Instruction("fp save", None))
    };
    let here = cpu.pe.index as u32;
    assert!(!turn(cpu, 0x1000, NO_PE));
    assert!(uses(cpu, 0x1000), "the host's are there");
    assert!(saves(cpu) && !is_open(), "the host may not use a guest's");
    // Straight back; and with another's there, though it loaded its own here before.
    assert!(turn(cpu, 0x1000, here) && saves(cpu));
    assert!(!turn(cpu, 0x2000, here), "another vCPU's");
    assert!(!saves(cpu), "they are not its own");
    // It was on another PE meanwhile, or another vCPU was at its address.
    for fp_pe in [here + 1, NO_PE] {
        assert!(!turn(cpu, 0x1000, fp_pe) && !saves(cpu), "{fp_pe}");
    }
    // What is there is a guest's, and none of the host's to keep.
    assert!(!turn(cpu, 0x2000, NO_PE));
    assert!(!uses(cpu, 0x2000) && saves(cpu));
    // The host uses its own: whoever was here has none any more.
    let did = recording::of(|| cpu.fp_to_host());
    assert_eq!(did.last(), Some(&Event::Instruction("fp restore", None)));
    assert!(is_open());
    assert!(!turn(cpu, 0x2000, here), "the host's");
    assert!(!saves(cpu) && is_open(), "and they stay its own");
}

/// Registers that a switch, or the start of a CPU, reads or writes.
fn touched(change: fn(&mut crate::features::Features)) -> Vec<String> {
    let mut all = Vec::new();
    let events = recording::of(|| {
        let mut host = host(change);
        all.extend(enter(&mut host.cpu, &guest_el1(), false));
        all.extend(leave(&mut host.cpu, &mut guest_el1()));
    });
    all.extend(events);
    let name = |event: &Event| match event {
        Event::Mrs(name) | Event::Msr(name, _) => Some(String::from(*name)),
        _ => None,
    };
    let mut names: Vec<_> = all.iter().filter_map(name).collect();
    names.sort();
    names.dedup();
    names
}

/// A register that a CPU lacks is undefined at EL2 too: EL2 would die of it.
#[test]
fn a_register_is_touched_where_its_feature_is() {
    let none = touched(|_| {});
    type Case = (fn(&mut crate::features::Features), &'static [&'static str]);
    let cases: [Case; 6] = [
        (|f| f.hcx = true, &["HCRX_EL2", "ID_AA64ISAR2_EL1"]),
        (
            |f| f.fgt = 1,
            &[
                "HDFGRTR_EL2",
                "HDFGWTR_EL2",
                "HFGITR_EL2",
                "HFGRTR_EL2",
                "HFGWTR_EL2",
            ],
        ),
        (
            |f| f.mpam = true,
            &["MPAM0_EL1", "MPAM1_EL1", "MPAM2_EL2", "MPAMIDR_EL1"],
        ),
        (|f| f.ras = true, &["DISR_EL1", "VDISR_EL2"]),
        (
            |f| f.pauth = true,
            &[
                "APDAKeyHi_EL1",
                "APDAKeyLo_EL1",
                "APDBKeyHi_EL1",
                "APDBKeyLo_EL1",
                "APGAKeyHi_EL1",
                "APGAKeyLo_EL1",
                "APIAKeyHi_EL1",
                "APIAKeyLo_EL1",
                "APIBKeyHi_EL1",
                "APIBKeyLo_EL1",
            ],
        ),
        (|f| f.fwb = true, &[]),
    ];
    for (change, registers) in cases {
        let mut more = touched(change);
        more.retain(|name| !none.contains(name));
        assert_eq!(format!("{more:?}"), format!("{registers:?}"));
    }
}

/// Out of reset they hold anything; MPAMHCR_EL2 is not on every CPU that has the others.
#[test]
fn lower_levels_are_in_the_default_partition() {
    type Case = (fn(&mut crate::features::Features), &'static [&'static str]);
    let cases: [Case; 2] = [
        (|f| f.mpam = true, &[]),
        (
            |f| {
                f.mpam = true;
                recording::set(MPAMIDR_EL1, 1 << 17);
            },
            &["MPAMHCR_EL2"],
        ),
    ];
    for (change, more) in cases {
        let events = recording::of(|| drop(host(change)));
        let set = events.iter().filter_map(|event| match event {
            Event::Msr(name, 0) if name.starts_with("MPAM") => Some(*name),
            _ => None,
        });
        let all = ["MPAM1_EL1", "MPAM0_EL1"].iter().chain(more).copied();
        assert_eq!(set.collect::<Vec<_>>(), all.collect::<Vec<_>>());
    }
}

/// What TLBs and caches hold of before is gone before the host's first instruction,
/// and by its own stage 2.
#[test]
fn a_host_begins_with_nothing_of_before() {
    let mut host = host(|_| {});
    let events = recording::of(|| host.cpu.begin_host(0x8000, 7));
    let order = [
        first(&events, writes("VTTBR_EL2")),
        first(&events, issues("tlbi alle1is")),
        first(&events, issues("ic iallu")),
        first(&events, issues("dsb ish")),
    ];
    assert!(order.is_sorted(), "{order:?}");
    // No walk by what was before fills a TLB again behind it.
    let between = &events[order[0]..order[1]];
    assert!(between.contains(&Event::Instruction("isb", None)));
    assert_eq!(events.last(), Some(&Event::Instruction("isb", None)));
    assert_eq!(recording::get(SCTLR_EL1), El1::SCTLR_RESET);
}

/// A PE that was off and comes again: its redistributor accesses no memory and has EL2's own
/// interrupts on, whatever it had is looked at anew, and an error that waited is none of the
/// host's that begins.
#[test]
fn a_pe_that_comes_again_has_interrupts_and_no_error_of_before() {
    use gic::gicr;
    let mut host = host(|_| {});
    let cpu = &mut host.cpu;
    cpu.pe.take_redistributor_change();
    recording::set_device(gicr::CTLR, 4, gicr::CTLR_ENABLE_LPIS);
    cpu.host.error = bits!(HCR_EL2: VSE);
    let events = recording::of(|| cpu.begin_host(0x8000, 0));
    let lpis = recording::device(gicr::CTLR, 4) & gicr::CTLR_ENABLE_LPIS;
    assert_eq!(lpis, 0);
    for intid in [25, 26, 7] {
        let on = Event::Store(gicr::ISENABLER0, 4, 1 << intid);
        assert!(events.contains(&on), "{intid}");
    }
    assert!(cpu.pe.take_redistributor_change());
    assert_eq!(recording::get(HCR_EL2) & bits!(HCR_EL2: VSE), 0);
}

/// Traps of what guests have not: all of them, and the counters that EL1 would have stay the
/// CPU's (MDCR_EL2.HPMN).
#[test]
fn a_cpu_traps_what_lower_levels_have_not() {
    recording::reset();
    recording::set(MDCR_EL2, u64::MAX);
    recording::set(HSTR_EL2, u64::MAX);
    drop(fake::Host::with(pgtable::Granule::K4, 1 << 20, |f| {
        f.mpam = true;
    }));
    assert_eq!(recording::get(MDCR_EL2), MDCR | bits!(MDCR_EL2: HPMN));
    assert_eq!(recording::get(HSTR_EL2), 0);
    let both = bits!(MPAM2_EL2: TRAPMPAM0EL1, TRAPMPAM1EL1);
    assert_eq!(recording::get(MPAM2_EL2), both);
}

/// A look through a guest's tables is none of the guest's own: PAR_EL1 is as it was.
#[test]
fn a_translation_leaves_the_guests_own() {
    use crate::memory::phys;
    phys::fake::install(0x1_0000, 0x1_0000);
    recording::set(PAR_EL1, 0x77);
    for (par, found) in [
        (Some(0x1000), Some(0x1000)),
        (Some(0x1001), None),
        (None, None),
    ] {
        phys::fake::set_translation(par);
        assert_eq!(translate(0x8000, Look::El1Read), found);
        assert_eq!(recording::get(PAR_EL1), 0x77, "{par:?}");
    }
    phys::fake::set_translation(None);
}

/// The timers: a guest's reach is its own virtual one, and the counters. What a firmware has
/// left running interrupts nobody, and what EL2 played a guest's with stops with its turn.
#[test]
fn each_timer_is_of_who_runs() {
    const COUNTER: u64 = bits!(CNTHCTL_EL2: EL1PCTEN);
    recording::reset();
    recording::set(CNTVOFF_EL2, 77);
    recording::set(CNTHP_CTL_EL2, 1);
    let mut host = fake::Host::with(pgtable::Granule::K4, 1 << 20, |_| {});
    assert_eq!(recording::get(CNTVOFF_EL2), 0);
    assert_eq!(recording::get(CNTHP_CTL_EL2), 0);
    recording::set(CNTV_CTL_EL0, 1);
    recording::set(CNTP_CTL_EL0, 1);
    host.cpu.begin_host(0x8000, 0);
    let both = || [recording::get(CNTV_CTL_EL0), recording::get(CNTP_CTL_EL0)];
    assert_eq!(both(), [0, 0]);
    let own = COUNTER | bits!(CNTHCTL_EL2: EL1PCEN);
    assert_eq!(recording::get(CNTHCTL_EL2), own);
    enter(&mut host.cpu, &guest_el1(), false);
    assert_eq!(recording::get(CNTHCTL_EL2), COUNTER);
    recording::set(CNTHP_CTL_EL2, 1);
    leave(&mut host.cpu, &mut guest_el1());
    assert_eq!(recording::get(CNTHP_CTL_EL2), 0);
    assert_eq!(recording::get(CNTHCTL_EL2), own);
}

/// MIDR_EL1 of another CPU, and what a lower level sees.
#[test]
fn a_lower_level_sees_the_midr_of_the_cpu_that_it_is_on() {
    recording::reset();
    recording::set(MIDR_EL1, 0x412f_d050);
    let mut host = fake::Host::with(pgtable::Granule::K4, 1 << 20, |f| f.midr = 0x410f_d0b0);
    host.cpu.begin_host(0x8000, 0);
    let seen = || [recording::get(VPIDR_EL2), recording::get(VMPIDR_EL2)];
    let of_host = [0x412f_d050, 1 << 31];
    assert_eq!(seen(), of_host);
    let mut el1 = guest_el1();
    enter(&mut host.cpu, &el1, false);
    assert_eq!(seen(), [0x412f_d050, 1 << 31 | 5]);
    leave(&mut host.cpu, &mut el1);
    assert_eq!(seen(), of_host);
}

/// ID registers of a CPU that has all that EL2 asks after.
fn registers() -> IdRegisters {
    IdRegisters {
        mmfr: [1 << 56 | 5, 1 << 40 | 2 << 4, 0, 0, 0],
        isar: [1 << 60 | 2 << 56, 0, 0],
        pfr: [3 << 56 | 1 << 40 | 1 << 28 | 1 << 24, 0],
        ctr: 3 << 28 | 4 << 16 | 4,
        dczid: 4,
        midr: 0x000f_0510,
    }
}

#[test]
fn a_cpu_without_what_el2_uses_is_refused_by_a_sentence() {
    let host = host(|f| *f = crate::features::Features::of(&registers()));
    let admit = |change: fn(&mut IdRegisters)| {
        let mut registers = registers();
        change(&mut registers);
        let refused = host.system.admit(&registers, |_| -1);
        refused.map_err(|why| format!("{why}"))
    };
    assert_eq!(admit(|_| {}), Ok(Steps::default()));
    // More than the boot CPU has is no harm, where EL2 does not use it.
    assert_eq!(admit(|r| r.mmfr[0] += 1), Ok(Steps::default()));
    type Case = (fn(&mut IdRegisters), &'static str);
    let cases: [Case; 10] = [
        // What a program reads on one CPU, and clears or invalidates by on another.
        (
            |r| r.ctr += 1,
            "its instruction cache line is not as the boot CPU's",
        ),
        (
            |r| r.dczid += 1,
            "its block of DC ZVA is not as the boot CPU's",
        ),
        (|r| r.mmfr[0] = 5, "its FEAT_FGT is not as the boot CPU's"),
        (
            |r| r.mmfr[1] = 2 << 4,
            "its FEAT_HCX is not as the boot CPU's",
        ),
        (
            |r| r.pfr[0] &= !(1 << 40),
            "its FEAT_MPAM is not as the boot CPU's",
        ),
        (
            |r| r.pfr[0] &= !(1 << 28),
            "its FEAT_RAS is not as the boot CPU's",
        ),
        (
            |r| r.ctr &= !(1 << 29),
            "its CTR_EL0.DIC is not as the boot CPU's",
        ),
        (
            |r| r.ctr &= !(1 << 28),
            "its CTR_EL0.IDC is not as the boot CPU's",
        ),
        (
            |r| r.isar[0] = 2 << 56,
            "it lacks FEAT_RNG that the boot CPU has",
        ),
        (
            |r| r.mmfr[0] -= 1,
            "it lacks physical address bits that the boot CPU has",
        ),
    ];
    for (change, sentence) in cases {
        assert_eq!(admit(change), Err(sentence.into()));
    }
}

/// What a reset or the firmware has left is no guest's and not the host's: the OS lock,
/// which keeps guests from stepping, and a timer that runs.
#[test]
fn a_cpu_begins_without_what_a_reset_has_left() {
    let host = host(|_| {});
    let events = recording::of(|| drop(Cpu::new(host.cpu.pe, &host.system.shared())));
    let isb = events
        .iter()
        .rposition(|event| *event == Event::Instruction("isb", None))
        .expect("an ISB");
    for write in [Event::Msr("OSLAR_EL1", 0), Event::Msr("CNTHP_CTL_EL2", 0)] {
        assert!(events[..isb].contains(&write), "{write:?}");
    }
}

/// What it needs of EL2's vectors comes with its admission.
#[test]
fn a_cpu_that_has_steps_to_take_has_vectors_of_its_own() {
    let write = |steps: Steps| {
        let host = host(|_| {});
        let pe = host.cpu.pe;
        pe.set_steps(steps);
        let events = recording::of(|| drop(Cpu::new(pe, &host.system.shared())));
        events.iter().any(writes("VBAR_EL2"))
    };
    assert!(!write(Steps::default()), "those that asm.S began with");
    assert!(write(Steps::WITHOUT_RAS));
    let host = host(|f| *f = crate::features::Features::of(&registers()));
    // A Cortex-A72, whose firmware knows nothing: what it cannot do does not keep it off.
    let mut old = registers();
    (old.pfr[0], old.midr) = (old.pfr[0] & !(3 << 56), 0x410f_d083);
    assert_eq!(host.system.admit(&old, |_| -1), Ok(Steps::default()));
    assert!(host.system.errata.need(WorkAround::SpeculativeAt));
}

/// A system error of the host's comes back to it, whoever runs meanwhile, until it
/// takes it.
#[test]
fn a_system_error_of_the_hosts_is_the_hosts() {
    let pending = || recording::get(HCR_EL2) & bits!(HCR_EL2: VSE) != 0;
    let mut host = host(|f| f.ras = true);
    host.cpu.begin_host(0x8000, 0);
    let to_el2 = || recording::get(HCR_EL2) & bits!(HCR_EL2: AMO) != 0;
    assert!(to_el2() && !pending());
    let error = Syndrome(0x2f << 26 | 1 << 25 | 1 << 24 | 0x12_3456);
    host.cpu.return_error(error);
    assert!(pending());
    assert_eq!(recording::get(VSESR_EL2), 1 << 24 | 0x12_3456);
    let mut el1 = guest_el1();
    enter(&mut host.cpu, &el1, false);
    assert!(to_el2() && !pending(), "it is not the guest's");
    leave(&mut host.cpu, &mut el1);
    assert!(pending(), "the host masks it still");
    recording::set(HCR_EL2, recording::get(HCR_EL2) & !bits!(HCR_EL2: VSE));
    enter(&mut host.cpu, &el1, false);
    leave(&mut host.cpu, &mut el1);
    assert!(!pending(), "it has been taken");
    host.cpu.return_error(error);
    host.cpu.begin_host(0x8000, 0);
    assert!(!pending(), "a host that begins has none of before");
}

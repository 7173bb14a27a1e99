//! What each work-around does, by the order of what is recorded.

extern crate std;

use super::*;
use crate::cpu::Cpu;
use crate::cpu::context::El1;
use crate::cpu::tests::{enter, leave};
use crate::guest::exits;
use crate::guest::record::Next;
use crate::guest::vcpu::RunningVcpu;
use crate::memory::{phys, pool::Pool, region::Region};
use crate::realm::Realm;
use crate::rec::Rec;
use crate::rmi::fake;
use arm64::recording::{self, Event};
use arm64::regs::{ESR_EL2, HFGWTR_EL2, VTTBR_EL2};
use arm64::syndrome::Syndrome;
use pgtable::{El2Attrs, El2Config, El2Map, El2Range, Granule, Pa, Va};
use std::vec::Vec;
use std::{assert_eq, format};

const A35: u64 = 0x411f_d040;
const A72: u64 = 0x410f_d083;
const A76_R3P1: u64 = 0x413f_d0b1;

fn names(midr: u64) -> Vec<&'static str> {
    let mut names = Vec::new();
    InForce::new().begin(midr, |row| names.push(row.source));
    names
}

#[test]
fn a_cpu_has_the_errata_of_its_part_and_version() {
    const REPEAT: &str = "Arm 4193800, CVE-2025-10263";
    let cases: [(u64, &[&str]); 16] = [
        // QEMU's max, Cortex-A35 and A53.
        (0x000f_0510, &[]),
        (A35, &[]),
        (0x410f_d034, &["Arm 1530924"]),
        (A72, &["Arm 1319367"]),
        (0x411f_d070, &["Arm 1319537", "Arm 832075"]),
        // Cortex-A76 r2p0, r2p1, r3p0, r3p1.
        (0x412f_d0b0, &["Arm 1286807", REPEAT, "Arm 1165522"]),
        (0x412f_d0b1, &["Arm 1286807", REPEAT]),
        (0x413f_d0b0, &["Arm 1286807", REPEAT]),
        (A76_R3P1, &[REPEAT]),
        // Cortex-A55 r2p0, r2p1.
        (0x412f_d050, &["Arm 2441007", "Arm 1530923"]),
        (0x412f_d051, &["Arm 2441007"]),
        // Cortex-A510 r1p1, r1p2.
        (0x411f_d461, &["Arm 2441009"]),
        (0x411f_d462, &[]),
        // The same part number, another implementer's.
        (0x480f_d0b0, &[]),
        (0x6d0f_d490, &["4193789, CVE-2025-10263"]),
        (0x510f_2050, &["Qualcomm E1009"]),
    ];
    for (midr, sources) in cases {
        assert_eq!(names(midr), sources, "{midr:#x}");
    }
}

/// Implementer and part, first and last version, source: what CPU has which erratum,
/// from its designer's notices.
const RIGHT: &[(u64, [u64; 2], &str)] = &[
    (0x41_d03, [0, 0xff], "Arm 1530924"),
    (0x41_d05, [0, 0xff], "Arm 2441007"),
    (0x41_d05, [0, 0x20], "Arm 1530923"),
    (0x41_d07, [0, 0xff], "Arm 1319537"),
    (0x41_d07, [0, 0x12], "Arm 832075"),
    (0x41_d08, [0, 0xff], "Arm 1319367"),
    (0x41_d0b, [0, 0x30], "Arm 1286807"),
    (0x41_d0b, [0, 0x20], "Arm 1165522"),
    (0x41_d0b, [0, 0xff], "Arm 4193800, CVE-2025-10263"),
    (0x41_d0c, [0, 0xff], "Arm 4193800, CVE-2025-10263"),
    (0x41_d0c, [0, 0x20], "Arm 1165522"),
    (0x41_d0d, [0, 0xff], "Arm 4193798, CVE-2025-10263"),
    (0x41_d0d, [0, 0x10], "Arm 1508412"),
    (0x41_d0e, [0, 0xff], "Arm 4193801, CVE-2025-10263"),
    (0x41_d40, [0, 0xff], "Arm 4193790, CVE-2025-10263"),
    (0x41_d41, [0, 0xff], "Arm 4193791, CVE-2025-10263"),
    (0x41_d42, [0, 0xff], "Arm 4193793, CVE-2025-10263"),
    (0x41_d44, [0, 0xff], "Arm 4193791, CVE-2025-10263"),
    (0x41_d46, [0, 0x11], "Arm 2441009"),
    (0x41_d47, [0, 0xff], "Arm 4193788, CVE-2025-10263"),
    (0x41_d48, [0, 0xff], "Arm 4193788, CVE-2025-10263"),
    (0x41_d49, [0, 0xff], "Arm 4193789, CVE-2025-10263"),
    (0x41_d4b, [0, 0xff], "Arm 4193794, CVE-2025-10263"),
    (0x41_d4c, [0, 0xff], "Arm 4193792, CVE-2025-10263"),
    (0x41_d4e, [0, 0xff], "Arm 4193786, CVE-2025-10263"),
    (0x41_d4f, [0, 0xff], "Arm 4193787, CVE-2025-10263"),
    (0x41_d82, [0, 0xff], "Arm 4118414, CVE-2025-10263"),
    (0x41_d83, [0, 0xff], "Arm 4193784, CVE-2025-10263"),
    (0x41_d84, [0, 0xff], "Arm 4193784, CVE-2025-10263"),
    (0x41_d85, [0, 0xff], "Arm 4193781, CVE-2025-10263"),
    (0x41_d8c, [0, 0xff], "Arm 4193780, CVE-2025-10263"),
    (0x41_d90, [0, 0xff], "Arm 4193780, CVE-2025-10263"),
    (0x4e_010, [0, 0xff], "T410-OLY-1029, CVE-2025-10263"),
    (0x51_800, [0, 0], "Qualcomm E1009"),
    (0x51_804, [0xce, 0xfe], "Arm 1286807"),
    (0x51_805, [0xde, 0xde], "Arm 1530923"),
    (0x6d_d49, [0, 0xff], "4193789, CVE-2025-10263"),
    (0xc0_ac3, [0, 0xff], "Ampere AC03_CPU_38"),
    (0xc0_ac4, [0, 0xff], "Ampere AC04_CPU_23"),
    (0xc0_ac4, [0, 0xff], "Ampere AC04_CPU_10"),
];

#[test]
fn each_erratum_is_of_its_cpus_and_versions_alone() {
    let versions = RIGHT
        .iter()
        .flat_map(|(_, [first, last], _)| [first.saturating_sub(1), *first, *last, last + 1]);
    let mut versions: Vec<_> = versions.filter(|version| *version <= 0xff).collect();
    versions.sort_unstable();
    versions.dedup();
    let implementers = [0x00, 0x41, 0x42, 0x48, 0x4d, 0x4e, 0x51, 0x6d, 0xc0];
    for model in implementers.iter().flat_map(|i| i << 12..(i + 1) << 12) {
        for &version in &versions {
            let rows = RIGHT
                .iter()
                .filter(|row| row.0 == model && (row.1[0]..=row.1[1]).contains(&version));
            let mut right: Vec<_> = rows.map(|row| row.2).collect();
            if (0x51_200..0x51_300).contains(&model) {
                right.push("Qualcomm E1009");
            }
            let midr = model >> 12 << 24 | version >> 4 << 20 | 0xf << 16;
            let mut found = names(midr | (model & 0xfff) << 4 | version & 0xf);
            right.sort_unstable();
            found.sort_unstable();
            assert_eq!(found, right, "{model:#x} {version:#x}");
        }
    }
}

#[test]
fn each_row_says_what_it_is_in_one_line() {
    let errata = InForce::new();
    errata.begin(A72, |row| {
        assert_eq!(
            format!("{row}"),
            "erratum of Cortex-A72, Arm 1319367: no walks while worlds change"
        );
    });
    for row in TABLE {
        assert!(!row.parts.is_empty() && !row.versions.is_empty(), "{row}");
        let midr = row.implementer << 24 | row.versions.end() >> 4 << 20 | 0xf << 16;
        assert!(row.is_of(midr | row.parts.end() << 4 | row.versions.end() & 0xf));
    }
}

/// A CPU that comes later is heard of once, and from there on.
#[test]
fn a_cpu_that_comes_late_brings_its_errata() {
    let errata = InForce::new();
    errata.begin(A35, |row| panic!("{row}"));
    assert!(!errata.need(WorkAround::TlbiSyncRepeat));
    let mut told = 0;
    let events = recording::of(|| errata.add(A76_R3P1, |_| told += 1));
    assert_eq!(events, [Event::Instruction("dsb ish", None)]);
    errata.add(A76_R3P1, |_| told += 1);
    assert_eq!(told, 1);
    assert!(errata.need(WorkAround::TlbiSyncRepeat));
    assert!(!errata.need(WorkAround::SpeculativeAt));
    errata.add(A35, |row| panic!("{row}"));
    assert!(
        errata.need(WorkAround::TlbiSyncRepeat),
        "that one is still there"
    );
}

/// TLBIs and DSBs of a granule that is taken from the host, and put back.
fn invalidations(host: &fake::Host) -> Vec<&'static str> {
    let (memory, page) = (&host.system.host, host.page(3));
    let events = recording::of(|| memory.take(page, host.size).expect("there are tables"));
    memory.give(page, host.size).expect("it was the host's");
    let names = events.into_iter().filter_map(|event| match event {
        Event::Instruction(name, _) if name.starts_with("tlbi") || name == "dsb ish" => Some(name),
        _ => None,
    });
    let names: Vec<_> = names.collect();
    let last = names.iter().rposition(|name| *name != "dsb ish");
    names[last.expect("there is a TLBI") - 2..].to_vec()
}

#[test]
fn what_is_taken_from_the_host_is_invalidated_twice_under_the_erratum() {
    let once = ["tlbi ipas2e1is", "dsb ish", "tlbi vmalle1is", "dsb ish"];
    let twice = ["tlbi vmalle1is", "dsb ish", "tlbi vmalle1is", "dsb ish"];
    for granule in Granule::ALL {
        let host = fake::Host::with(granule, 1 << 24, |f| f.midr = A35);
        assert_eq!(invalidations(&host), once);
        // Realms' trees are changed by the same.
        host.system.errata.add(A76_R3P1, |_| {});
        assert_eq!(invalidations(&host), twice);
        drop(host);
        let host = fake::Host::with(granule, 1 << 24, |f| f.midr = A76_R3P1);
        assert_eq!(invalidations(&host), twice);
    }
}

#[test]
fn el2s_own_map_is_invalidated_twice_under_the_erratum() {
    for (midr, tlbis) in [(A35, 1), (A76_R3P1, 2)] {
        let errata: &'static InForce = std::boxed::Box::leak(std::boxed::Box::default());
        errata.begin(midr, |_| {});
        let mut pe = crate::memory::maintenance::Pe::new(64, errata);
        let bytes = Pool::bytes_for(8, 0x1000);
        phys::fake::install(fake::RAM, bytes as usize);
        let region = Region::new(fake::RAM, bytes).expect("no overflow");
        // SAFETY: the fake memory is this test's.
        let pool = unsafe { Pool::new(region, 0x1000) };
        let geometry = El2Config::new(Granule::K4, 48, 48)
            .validate()
            .expect("legal");
        let root = pool.take_root(1).expect("a page");
        let mut map = El2Map::new(geometry, root, &pool).expect("a root");
        let range = El2Range::new(Va::new(0), Pa::new(0), 0x1000, El2Attrs::DATA);
        map.map(&mut pe, &range).expect("mapped");
        let events = recording::of(|| {
            map.unmap(&mut pe, range.va, 0x1000).expect("unmapped");
        });
        let tlbi = |event: &Event| matches!(event, Event::Instruction("tlbi vae2is", _));
        assert_eq!(events.iter().filter(|event| tlbi(event)).count(), tlbis);
        let [.., done, last] = events[..] else {
            panic!("{events:?}");
        };
        assert_eq!(done, Event::Instruction("dsb ish", None));
        assert_eq!(last, Event::Instruction("isb", None));
        phys::fake::remove();
    }
}

#[test]
fn a_host_begins_with_its_tlbs_invalidated_twice_under_the_erratum() {
    for (midr, times) in [(0x410f_d034, 1), (0x413f_d0b1, 2)] {
        let begin: fn(&mut _) = match times {
            1 => |f: &mut crate::features::Features| f.midr = A35,
            _ => |f: &mut crate::features::Features| f.midr = A76_R3P1,
        };
        let mut host = fake::Host::with(Granule::K4, 1 << 20, begin);
        let events = recording::of(|| host.cpu.begin_host(0, 0));
        let tlbi = Event::Instruction("tlbi alle1is", None);
        let done = Event::Instruction("dsb ish", None);
        let found = events.iter().filter(|event| **event == tlbi).count();
        assert_eq!(found, times, "{midr:#x}");
        let last = events.iter().rposition(|event| *event == tlbi);
        assert!(events[last.expect("one")..].contains(&done));
    }
}

/// What walks go by, as the CPU has it once an `isb` has been.
#[derive(Clone, Copy)]
struct Seen {
    tcr: u64,
    sctlr: u64,
    /// Anything else that they go by.
    rest: bool,
}

impl Seen {
    fn tables_closed(self) -> bool {
        let closed = bits!(TCR_EL1: EPD0, EPD1);
        self.tcr & closed == closed
    }

    fn held(self) -> bool {
        self.tables_closed() && self.sctlr & bits!(SCTLR_EL1: M) != 0
    }
}

/// Every change of what walks go by is made while none is made, and seen before one
/// is: after Arm's notices of SPECULATIVE_AT's errata.
#[track_caller]
fn hold_walks(before: [u64; 2], events: &[Event]) {
    let [sctlr, tcr] = before;
    let mut seen = Seen {
        tcr,
        sctlr,
        rest: true,
    };
    let mut next = seen;
    let mut changes = 0;
    for (n, event) in events.iter().enumerate() {
        match *event {
            Event::Instruction("isb", _) => {
                next.rest = true;
                seen = next;
            }
            Event::Msr(
                "HCR_EL2" | "VTCR_EL2" | "VTTBR_EL2" | "TTBR0_EL1" | "TTBR1_EL1" | "MAIR_EL1"
                | "AMAIR_EL1" | "CONTEXTIDR_EL1",
                _,
            ) => {
                assert!(seen.held(), "{event:?} ({n}) while walks are made");
                (next.rest, seen.rest) = (false, false);
                changes += 1;
            }
            Event::Msr("SCTLR_EL1", value) => {
                assert!(seen.tables_closed(), "{event:?} ({n}) with tables open");
                let off = value & bits!(SCTLR_EL1: M) == 0;
                assert!(!off || seen.rest, "{event:?} ({n}) before the rest");
                next.sctlr = value;
            }
            Event::Msr("TCR_EL1", value) => {
                next.tcr = value;
                if !next.tables_closed() {
                    assert!(seen.rest, "{event:?} ({n}) before the rest");
                    assert_eq!(seen.sctlr, next.sctlr, "{event:?} ({n}) before SCTLR_EL1");
                }
            }
            _ => {}
        }
    }
    assert!(changes > 0);
}

/// MMUs on and off on either side, with tables open and closed.
const WALKS: [[u64; 2]; 4] = [
    [0x30d0_0800, 0],
    [0x30d0_0801, 0x19_3519],
    [0x30d0_0801, 0x80_0000],
    [0x30d0_0800, 0xff << 32 | 0x3519],
];

#[test]
fn no_walk_is_made_between_two_worlds_under_the_erratum() {
    for of_host in WALKS {
        for [sctlr, tcr] in WALKS {
            let mut host = fake::Host::with(Granule::K4, 1 << 20, |f| f.midr = A72);
            recording::set(SCTLR_EL1, of_host[0]);
            recording::set(TCR_EL1, of_host[1]);
            let mut el1 = El1 {
                sctlr,
                tcr,
                ..El1::reset()
            };
            hold_walks(of_host, &enter(&mut host.cpu, &el1, false));
            let walks = || [recording::get(SCTLR_EL1), recording::get(TCR_EL1)];
            assert_eq!(walks(), [sctlr, tcr], "the guest's own in the end");
            hold_walks([sctlr, tcr], &leave(&mut host.cpu, &mut el1));
            assert_eq!(walks(), of_host, "the host's own in the end");
            assert_eq!(
                [el1.sctlr, el1.tcr],
                [sctlr, tcr],
                "and the guest's are saved"
            );
        }
    }
}

/// A guest's tables change while the host runs, or the other way round: TLBIs go
/// by the VMID in VTTBR_EL2, which is another world's for the moment.
#[test]
fn no_walk_is_made_while_anothers_tlbs_are_invalidated_under_the_erratum() {
    for [sctlr, tcr] in WALKS {
        let host = fake::Host::with(Granule::K4, 1 << 24, |f| f.midr = A72);
        recording::set(SCTLR_EL1, sctlr);
        recording::set(TCR_EL1, tcr);
        recording::set(VTTBR_EL2, 9 << 48 | 0x5000);
        let memory = &host.system.host;
        let events = recording::of(|| memory.take(host.page(1), host.size).expect("tables"));
        hold_walks([sctlr, tcr], &events);
        assert_eq!(recording::get(SCTLR_EL1), sctlr);
        assert_eq!(recording::get(TCR_EL1), tcr);
        assert_eq!(recording::get(VTTBR_EL2), 9 << 48 | 0x5000);
    }
}

/// A CPU without the erratum writes each register once, and waits no more than
/// before.
#[test]
fn a_sound_cpu_pays_nothing() {
    let changes = |midr: fn(&mut crate::features::Features)| {
        let mut host = fake::Host::with(Granule::K4, 1 << 20, midr);
        let mut el1 = El1::reset();
        let mut events = enter(&mut host.cpu, &el1, false);
        events.extend(leave(&mut host.cpu, &mut el1));
        let of = |what: fn(&Event) -> bool| events.iter().filter(|event| what(event)).count();
        [
            of(|event| matches!(event, Event::Msr("TCR_EL1" | "SCTLR_EL1", _))),
            of(|event| *event == Event::Instruction("isb", None)),
        ]
    };
    let [writes, waits] = changes(|f| f.midr = A35);
    assert_eq!(writes, 4);
    assert_eq!(changes(|f| f.midr = A72), [8, waits + 8]);
}

const AMPEREONE_AC04: u64 = 0xc00f_ac40;

/// AC04_CPU_23: each access of memory is done before HCR_EL2 changes, or begins when
/// it has.
#[test]
fn no_access_is_under_way_while_hcr_changes_under_the_erratum() {
    let writes = |change: fn(&mut crate::features::Features)| {
        let mut host = fake::Host::with(Granule::K4, 1 << 20, change);
        let mut el1 = El1::reset();
        let mut events = recording::of(|| host.cpu.begin_host(0, 0));
        events.extend(enter(&mut host.cpu, &el1, false));
        events.extend(leave(&mut host.cpu, &mut el1));
        events.extend(recording::of(|| {
            host.cpu.return_error(Syndrome(0));
        }));
        let write = |event: &Event| matches!(event, Event::Msr("HCR_EL2", _));
        let around = events.windows(3).filter(|three| write(&three[1]));
        let apart = around.filter(|three| {
            let [before, behind] = ["dsb nsh", "isb"].map(|name| Event::Instruction(name, None));
            three[0] == before && three[2] == behind
        });
        let all = events.iter().filter(|event| write(event)).count();
        [all, apart.count()]
    };
    assert_eq!(writes(|f| f.midr = AMPEREONE_AC04), [4, 4]);
    assert_eq!(writes(|f| f.midr = A35), [4, 0]);
    let code = include_str!("../asm.S");
    let code: Vec<_> = code.lines().map(|line| line.trim()).collect();
    let writes = |line: &&str| line.starts_with("msr     hcr_el2");
    let at = code.iter().position(writes);
    let at = at.expect("one, of all entries");
    assert_eq!(code.iter().filter(|line| writes(line)).count(), 1);
    assert_eq!([code[at - 1], code[at + 1]], ["dsb     nsh", "isb"]);
}

/// AC03_CPU_38 and AC04_CPU_10: a level that sets them, though its ID registers say
/// that they are not there, would have the CPU write to memory that it has no more.
#[test]
fn no_level_has_the_cpu_write_flags_under_the_erratum() {
    const FLAGS: u64 = bits!(TCR_EL1: HA, HD);
    const TRAP: u64 = 1 << 32;
    for midr in [0xc00f_ac30, AMPEREONE_AC04] {
        let mut host = fake::Host::with(Granule::K4, 1 << 20, |f| f.fgt = 1);
        assert_eq!(recording::get(HFGWTR_EL2), 0);
        host.system.errata.add(midr, |_| {});
        drop(Cpu::new(host.cpu.pe, &host.system.shared()));
        assert_eq!(recording::get(HFGWTR_EL2), TRAP);
        // MSR TCR_EL1, X5.
        let esr = Syndrome(0x18 << 26 | 3 << 20 | 2 << 17 | 2 << 10 | 5 << 5);
        host.cpu.host.gprs.x[5] = FLAGS | 0x3519;
        recording::set(ESR_EL2, esr.0);
        crate::exception::host::synchronous(host.system, &mut host.cpu);
        assert_eq!(recording::get(TCR_EL1), 0x3519, "the host's");
        assert_eq!(host.cpu.host.gprs.pc, 4, "and it goes on");
        host.realm();
        host.rec(0, 60);
        // SAFETY: the fake machine's realm and REC, which nobody runs.
        let (realm, rec) = unsafe { (Realm::at(host.page(1)), Rec::at(host.page(60))) };
        // SAFETY: as above.
        let state = unsafe { &mut *rec.state.get() };
        (state.gprs.x[5], state.gprs.pc) = (FLAGS | 0x3520, 0);
        let cpu = &mut host.cpu;
        let mut vcpu = RunningVcpu { cpu, realm, rec };
        let next = exits::synchronous(&mut vcpu, 0, state, esr);
        assert!(matches!(next, Next::Enter));
        assert_eq!(recording::get(TCR_EL1), 0x3520, "the guest's");
        assert_eq!(state.gprs.pc, 4);
    }
}

//! What the model answers when asked: all that an access may see, leaves,
//! specification, pages that nobody holds.

mod common;

use common::*;
use mmu_model::{Event, EventKind, Kind, Machine, Memory, Regime, Source, Spec, Target, trace};

fn tree() -> Machine {
    let text = format!("{HEADER}{TREE}");
    let parsed = trace::parse(&text).unwrap();
    let mut machine = parsed.header.machine();
    for (_, event) in parsed.events {
        machine.on(event).unwrap();
    }
    machine
}

fn spec() -> Spec {
    let to = |pa| {
        Some(Target {
            pa,
            perms: Some(15),
            memory: Some(Memory::ForcedWriteBack),
        })
    };
    let mut spec = Spec::default();
    spec.set(0, 0x2000, to(0x4000_0000));
    spec.set(0x20_0000, 0x40_0000, to(0x4020_0000));
    spec
}

const PROBES: [u64; 7] = [0, 0xfff, 0x1000, 0x2000, 0x20_0000, 0x3f_ffff, 0x40_0000];

#[test]
fn every_probe_leads_where_the_specification_says() {
    let m = tree();
    for pe in 0..2 {
        for ia in PROBES {
            m.expect(pe, Regime::Stage2, &spec(), ia).unwrap();
        }
        m.compare(pe, Regime::Stage2, &spec(), 0..1 << 40).unwrap();
    }
    let mut other = spec();
    other.set(0x1000, 0x2000, None);
    let e = m.expect(0, Regime::Stage2, &other, 0x1000).unwrap_err();
    assert_eq!(e.kind, Kind::SpecMismatch);
    assert!(m.compare(0, Regime::Stage2, &other, 0..0x1000).is_ok());
    assert!(m.compare(0, Regime::Stage2, &other, 0..0x1001).is_err());
}

#[test]
fn what_an_access_may_see_while_a_page_goes() {
    let mut m = tree();
    let mut unmapped = spec();
    unmapped.set(0, 0x1000, None);
    let steps = [
        (EventKind::store(0x8001_1000, 0), true),
        (EventKind::DSB_ISHST, true),
        (tlbi("ipas2e1is"), true),
        (EventKind::DSB_ISH, true),
        (tlbi("vmalle1is"), true),
        (EventKind::DSB_ISH, false),
    ];
    for (kind, stale) in steps {
        m.on(Event { pe: 0, kind }).unwrap();
        let seen = m.translate(1, Regime::Stage2, 0x10);
        assert_eq!(seen[0].source, Source::Walk);
        assert!(seen[0].outcome.is_err());
        let old = seen.iter().find(|p| p.outcome.is_ok());
        assert_eq!(old.is_some(), stale, "{kind:?}: {seen:?}");
        let told = m.expect(1, Regime::Stage2, &unmapped, 0x10);
        assert_eq!(
            told.err().map(|v| v.kind),
            stale.then_some(Kind::StaleTranslation)
        );
        // The neighbour is as it was.
        m.expect(1, Regime::Stage2, &unmapped, 0x1000).unwrap();
    }
}

fn tlbi(name: &str) -> EventKind {
    let op = mmu_model::TlbiOp::parse(name).unwrap();
    EventKind::Tlbi { op, xt: 0 }
}

#[test]
fn a_store_is_old_or_new_until_the_barrier() {
    let mut m = tree();
    let map = EventKind::store(0x8001_1010, 0x4000_27db);
    m.on(Event { pe: 0, kind: map }).unwrap();
    let count = |m: &Machine, pe| m.translate(pe, Regime::Stage2, 0x2000).len();
    assert_eq!((count(&m, 0), count(&m, 1)), (2, 2));
    // DSB NSHST is for this PE's own walker only.
    let local = EventKind::DSB_NSHST;
    m.on(Event { pe: 0, kind: local }).unwrap();
    assert_eq!((count(&m, 0), count(&m, 1)), (1, 2));
    // Another PE's barrier does nothing for it.
    let all = EventKind::DSB_ISHST;
    m.on(Event { pe: 1, kind: all }).unwrap();
    assert_eq!(count(&m, 1), 2);
    m.on(Event { pe: 0, kind: all }).unwrap();
    assert_eq!((count(&m, 0), count(&m, 1)), (1, 1));
}

#[test]
fn a_removed_table_is_still_walked() {
    let mut m = tree();
    m.run(0, [EventKind::store(0x8001_0000, 0), EventKind::DSB_ISHST])
        .unwrap();
    let seen = m.translate(1, Regime::Stage2, 0x1008);
    assert!(
        seen.iter()
            .any(|p| matches!(p.outcome, Ok(t) if t.pa == 0x4000_1008))
    );
    assert_eq!(m.linked_tables().count(), 2);
    m.run(0, [tlbi("vmalls12e1is"), EventKind::DSB_ISH])
        .unwrap();
    assert_eq!(m.translate(1, Regime::Stage2, 0x1008).len(), 1);
    assert_eq!(m.unclean_runs(), 0);
}

#[test]
fn counts_and_leaks() {
    let mut m = tree();
    assert_eq!(m.table_counts(0x8001_1000), Some((2, 2)));
    m.run(0, [EventKind::store(0x8001_1000, 0x10)]).unwrap();
    assert_eq!(m.table_counts(0x8001_1000), Some((2, 1)));
    assert_eq!(m.table_counts(0x8001_2000), None);
    assert_eq!(m.unlinked_pages(4096), []);
    let (pa, len, zeroed) = (0x8001_2000, 4096, true);
    m.run(0, [EventKind::Alloc { pa, len, zeroed }]).unwrap();
    assert_eq!(m.unlinked_pages(4096), [pa]);
    let mut leaves = Vec::new();
    m.leaves(0, Regime::Stage2, 0..1 << 40, |leaf| {
        leaves.push((leaf.ia, leaf.level));
    });
    assert_eq!(leaves, [(0x1000, 3), (0x20_0000, 2)]);
}

#[test]
fn many_trees_come_and_go() {
    let mut m = tree();
    for n in 0..1000u64 {
        let root = 0x9000_0000 + n * 8192;
        let (pa, len, zeroed) = (root, 8192, true);
        let vttbr = |value| EventKind::Write {
            reg: mmu_model::Reg::Vttbr,
            value,
        };
        let events = [
            EventKind::Alloc { pa, len, zeroed },
            EventKind::DSB_ISHST,
            vttbr((2 + n % 200) << 48 | root),
            EventKind::ISB,
            EventKind::store(root, 0x4000_07d9),
            EventKind::DSB_ISHST,
            EventKind::store(root, 0),
            EventKind::DSB_ISHST,
            tlbi("vmalls12e1is"),
            EventKind::DSB_ISH,
            vttbr(1 << 48 | 0x8000_0000),
            EventKind::ISB,
            EventKind::Free { pa, len },
        ];
        m.run(0, events).unwrap();
    }
    m.compare(0, Regime::Stage2, &spec(), 0..1 << 40).unwrap();
}

#[test]
fn traces_round_trip() {
    let text = format!(
        "{HEADER}{TREE}{FLUSH_PAGE_0}{QUIESCE}0 casl 0x80011000 0x400007db 0x10
0 swp 0x80011000 0x1
1 swpl 0x80011000 0x2
1 zero 0x80011000 4096
0 own 0x1000 4096 vmid:7
0 own 0x1000 4096 nobody
0 dc 0x1000 64
0 ic 0x1000 64
0 ic all
0 fault 0x1000 rx
0 window 0x0 0x1000
0 window off
0 spec 0x1000 4096 none
0 spec 0x1000 4096 0x2000
0 spec 0x1000 4096 0x2000 rw
0 spec 0x1000 4096 0x2000 any normal-wb-nc
0 spec 0x1000 4096 0x2000 - device2
1 dmb osh
1 dsb ld
"
    );
    let parsed = trace::parse(&text).unwrap();
    let mut out = trace::Writer::new(Vec::new(), &parsed.header).unwrap();
    for (_, event) in &parsed.events {
        out.event(event).unwrap();
    }
    let written = String::from_utf8(out.finish().unwrap()).unwrap();
    let again = trace::parse(&written).unwrap();
    assert_eq!(again.header, parsed.header);
    let events = |t: &trace::Trace| t.events.iter().map(|(_, e)| *e).collect::<Vec<_>>();
    assert_eq!(events(&again), events(&parsed));
}

#[test]
fn lines_that_are_no_trace() {
    let error = |body: &str| trace::parse(&format!("mmu-trace 1\n{body}\n")).unwrap_err();
    for (body, expected) in [
        ("0 st 0x10", "a value"),
        ("0 st 0x10 zz", "a value instead of `zz`"),
        ("0 jump", "an event instead of `jump`"),
        ("0 dsb all", "ish, ishst, nsh, sy, … instead of `all`"),
        ("0 tlbi ipas2e1is", "the operand"),
        ("0 tlbi foo", "a TLBI operation instead of `foo`"),
        ("0 isb isb", "the end of the line instead of `isb`"),
        ("pes 9", "1 to 8 PEs"),
        ("features pa=60", "pa=32..52, bbm=0..2 or hafdbs=0..2"),
        ("999 isb", "a PE number"),
    ] {
        let e = error(body);
        assert_eq!((e.line, e.expected.as_str()), (2, expected), "{body}");
    }
    assert_eq!(trace::parse("").unwrap_err().line, 1);
    assert_eq!(error("toy 6 6 3").line, 2);
}

/// Words of traces, and numbers at the edges.
const WORDS: &str = "\
    0 1 -1 0xffffffffffffffff 0xfffffffffffffff8 0x8000000000000000 \
    4096 0x80011000 0x80000000 0x80010003 0x80011003 0x7d9 st stlr \
    alloc free own zero tlbi ripas2e1is vae2is alle1 dsb ish msr \
    vtcr_el2 vttbr_el2 ttbr0_el2 tcr_el2 hcr_el2 0x80053558 \
    0x180053598 shared vmid:1 zeroed dirty quiesce spec fault rwxu \
    window 0xfffffffffffff003 0x7ffffffffffff7ff 268435456";

/// Whatever a trace says, it is judged or refused: nothing in it ends the
/// judge.
#[test]
fn hostile_traces_are_judged_or_refused() {
    let mut seed = 7u64;
    let mut next = move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        seed >> 33
    };
    let base = format!("{HEADER}{TREE}{FLUSH_PAGE_0}{QUIESCE}");
    let lines: Vec<&str> = base.lines().collect();
    let words: Vec<&str> = WORDS.split_whitespace().collect();
    let (mut judged, mut refused, mut broken) = (0, 0, 0);
    for _ in 0..4000 {
        let mut text = String::new();
        for line in &lines {
            let mut line: Vec<&str> = line.split(' ').collect();
            if next() % 8 == 0 {
                let at = next() as usize % line.len();
                line[at] = words[next() as usize % words.len()];
            }
            text += &line.join(" ");
            text.push('\n');
            if next() % 8 == 0 && text.len() > HEADER.len() {
                let pick = |n: u64| words[n as usize % words.len()];
                text += &format!(
                    "0 {} {} {} {}\n",
                    pick(next()),
                    pick(next()),
                    pick(next()),
                    pick(next())
                );
            }
        }
        // Lines that do not parse are left out, so that the rest is judged.
        loop {
            match trace::judge(&text) {
                Ok(j) => {
                    judged += 1;
                    broken += u32::from(j.violation.is_some());
                    break;
                }
                Err(e) => {
                    refused += 1;
                    let keep = text.lines().enumerate().filter(|(i, _)| i + 1 != e.line);
                    let shorter: String = keep.map(|(_, l)| format!("{l}\n")).collect();
                    if shorter.len() == text.len() || e.line == 1 {
                        break;
                    }
                    text = shorter;
                }
            }
        }
    }
    assert!(
        judged > 1000 && refused > 1000 && broken > 500,
        "{judged} {refused} {broken}"
    );
}

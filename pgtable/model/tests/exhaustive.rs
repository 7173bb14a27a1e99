//! Every history up to a depth, on the smallest machine that has it all: two
//! levels of two entries, one table, two outputs, two PEs of which one acts and
//! both walk. What the automaton accepts, the exact TLB must find safe.
//!
//! `MMU_MODEL_DEPTH=6` looks further than the default.

use mmu_model::{Event, EventKind, Exact, Features, How, Machine, Reg, Shape, TlbiKind, TlbiOp};

const ROOT: u64 = 0x1_0000;
const TABLE: u64 = 0x2_0000;
const A: u64 = 0x4_0000;
const B: u64 = 0x4_0080;

fn store(pa: u64, value: u64) -> EventKind {
    let how = How::Release;
    EventKind::Store { pa, value, how }
}

fn tlbi(kind: TlbiKind, xt: u64) -> EventKind {
    let op = TlbiOp::is(kind);
    EventKind::Tlbi { op, xt }
}

fn block(oa: u64) -> u64 {
    oa << 6 | 0x7d9
}

fn page(oa: u64) -> u64 {
    oa << 6 | 0x7db
}

fn alphabet() -> Vec<EventKind> {
    vec![
        store(ROOT, 0),
        store(ROOT, TABLE << 6 | 3),
        store(ROOT, block(A)),
        store(ROOT, block(B)),
        store(TABLE, 0),
        store(TABLE, page(A)),
        store(TABLE, page(B)),
        store(TABLE, page(A) & !0x80),
        EventKind::DSB_ISHST,
        EventKind::DSB_ISH,
        EventKind::ISB,
        tlbi(TlbiKind::Ipas2e1, 0),
        tlbi(TlbiKind::Ipas2e1, 7 << 44),
        tlbi(TlbiKind::Ipas2le1, 0),
        tlbi(TlbiKind::Vmalle1, 0),
        tlbi(TlbiKind::Vmalls12e1, 0),
        EventKind::Free { pa: TABLE, len: 64 },
        EventKind::Alloc {
            pa: TABLE,
            len: 64,
            zeroed: true,
        },
        EventKind::Quiesce { lo: 0, hi: 0x100 },
    ]
}

fn start(prefix: &[EventKind]) -> Exact {
    let features = Features {
        bbm: 0,
        ..Features::max()
    };
    let machine = Machine::toy(Shape::toy(6, 1, 2), features, 2);
    let mut exact = Exact::new(machine, (0..4).map(|p| p * 64).collect());
    let alloc = |pa| EventKind::Alloc {
        pa,
        len: 64,
        zeroed: true,
    };
    let install = EventKind::Write {
        reg: Reg::Vttbr,
        value: 1 << 48 | ROOT,
    };
    let mut events = vec![
        (0, alloc(ROOT)),
        (0, alloc(TABLE)),
        (0, EventKind::DSB_ISH),
        (0, install),
        (0, EventKind::ISB),
        (1, install),
        (1, EventKind::ISB),
    ];
    events.extend(prefix.iter().map(|&kind| (0, kind)));
    for (pe, kind) in events {
        let v = exact.on(Event { pe, kind });
        v.automaton.unwrap();
        v.exact.unwrap();
    }
    exact
}

struct Count {
    accepted: u64,
    rejected: u64,
    confirmed: u64,
}

fn visit(
    at: &Exact,
    alphabet: &[EventKind],
    depth: u32,
    path: &mut Vec<EventKind>,
    count: &mut Count,
) {
    if depth == 0 {
        return;
    }
    for &kind in alphabet {
        let mut next = at.clone();
        let v = next.on(Event { pe: 0, kind });
        if v.automaton.is_err() {
            count.rejected += 1;
            count.confirmed += u64::from(v.exact.is_err());
            continue;
        }
        count.accepted += 1;
        path.push(kind);
        if let Err(wrong) = v.exact {
            let lines: String = path
                .iter()
                .map(|&kind| format!("{}\n", Event { pe: 0, kind }))
                .collect();
            panic!("accepted, but\n{wrong}\n{lines}");
        }
        visit(&next, alphabet, depth - 1, path, count);
        path.pop();
    }
}

#[test]
fn every_short_history() {
    let table = [
        store(TABLE, page(A)),
        store(ROOT, TABLE << 6 | 3),
        EventKind::DSB_ISHST,
    ];
    let prefixes: [&[EventKind]; 6] = [
        &[],
        &[store(ROOT, block(A)), EventKind::DSB_ISHST],
        &[
            store(ROOT, block(A)),
            EventKind::DSB_ISHST,
            store(ROOT, 0),
            EventKind::DSB_ISHST,
        ],
        &table,
        &[
            table[0],
            table[1],
            table[2],
            store(ROOT, 0),
            EventKind::DSB_ISHST,
        ],
        &[
            table[0],
            table[1],
            table[2],
            store(TABLE, 0),
            EventKind::DSB_ISHST,
            tlbi(TlbiKind::Ipas2e1, 0),
        ],
    ];
    let depth = std::env::var("MMU_MODEL_DEPTH").ok();
    let depth = depth.and_then(|d| d.parse().ok()).unwrap_or(4);
    let mut count = Count {
        accepted: 0,
        rejected: 0,
        confirmed: 0,
    };
    for prefix in prefixes {
        let mut path = prefix.to_vec();
        visit(&start(prefix), &alphabet(), depth, &mut path, &mut count);
    }
    println!(
        "{} accepted, {} rejected, {} of these confirmed at once",
        count.accepted, count.rejected, count.confirmed
    );
    assert!(count.accepted > 50_000);
    assert!(count.confirmed > 5_000);
}

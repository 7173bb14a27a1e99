//! What the automaton accepts, the exact TLB must find safe.
//!
//! Random events on a toy machine (pages of 64 bytes, four entries a table,
//! three levels, two PEs). An event that the automaton rejects is undone and
//! only counted; all others are kept, so that long histories arise in which
//! nothing the automaton looks for has happened. If the exact TLB then sees two
//! contradicting entries, a walker in a freed page, an entry to memory that was
//! given away, or a stale entry at a quiet point, the automaton is unsound.

use std::collections::BTreeMap;
use std::ops::Range;

use mmu_model::{
    CONTIGUOUS, Event, EventKind, Exact, Features, How, Kind, Machine, Owner, Reach, Reg, Shape,
    TlbiKind, TlbiOp,
};

const ROOT: u64 = 0x1_0000;
const OTHER_ROOT: u64 = 0x1_1000;
const TABLES: u64 = 0x2_0000;
const DATA: u64 = 0x4_0000;
const POOL: u64 = 5;

struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }
}

fn table(rng: &mut Rng) -> u64 {
    TABLES + rng.below(POOL) * 64
}

/// A descriptor for an entry of `level`, mostly a legal one.
fn descriptor(rng: &mut Rng, level: i8) -> u64 {
    let leaf = |rng: &mut Rng| {
        let span = [0x400, 0x400, 0x100, 0x40][level as usize & 3];
        let oa = DATA + rng.of(&[0, 0, 1, 2]) * span;
        // Write-back or non-cacheable, of several rights, old or young.
        let attrs = rng.of(&[
            0x7d8,
            0x7d8,
            0x7d8,
            0x758,
            0x7d4,
            0x3d8,
            0x7d8 | 1 << 54,
            0x758 | 1 << 54,
            0x758 | 1 << 53,
        ]);
        let kind = if level == 3 { 3 } else { 1 };
        let hint = rng.of(&[0, 0, CONTIGUOUS]);
        oa << 6 | attrs | kind | hint
    };
    match rng.below(100) {
        0..40 => 0,
        40..45 => (DATA << 6) | 0x7d8 | rng.of(&[1, 3]),
        _ if level == 3 => leaf(rng),
        45..70 => leaf(rng),
        _ => table(rng) << 6 | 3,
    }
}

/// Invalidation in full for a page or for all, with a step left out at times.
fn flush(rng: &mut Rng) -> Vec<EventKind> {
    let whole = rng.below(2) == 0;
    let tlbi = |kind, xt| EventKind::Tlbi {
        op: TlbiOp::is(kind),
        xt,
    };
    let mut all = vec![
        EventKind::DSB_ISHST,
        if whole {
            tlbi(TlbiKind::Ripas2e1, 1 << 46 | 31 << 39)
        } else {
            tlbi(TlbiKind::Ipas2e1, rng.below(64))
        },
        EventKind::DSB_ISH,
        tlbi(TlbiKind::Vmalle1, 0),
        EventKind::DSB_ISH,
        EventKind::ISB,
    ];
    match rng.below(20) {
        n @ 0..6 => {
            all.remove(n as usize);
        }
        6 => all.swap(0, 1),
        7 => all.swap(1, 3),
        8 => all.truncate(3),
        _ => {}
    }
    if rng.below(2) == 0 {
        all.push(EventKind::Quiesce { lo: 0, hi: 0x1000 });
    }
    all
}

fn tlbi(rng: &mut Rng) -> EventKind {
    let kind = rng.of(&[
        TlbiKind::Ipas2e1,
        TlbiKind::Ipas2e1,
        TlbiKind::Ipas2le1,
        TlbiKind::Ripas2e1,
        TlbiKind::Ripas2e1,
        TlbiKind::Ripas2le1,
        TlbiKind::Vmalle1,
        TlbiKind::Vmalle1,
        TlbiKind::Vmalls12e1,
        TlbiKind::Alle1,
    ]);
    let reach = rng.of(&[Reach::Inner, Reach::Inner, Reach::Inner, Reach::Local]);
    let page = rng.below(64);
    let xt = if kind.is_all() {
        0
    } else if kind.is_range() {
        let tg = rng.of(&[1, 1, 1, 1, 2]);
        let (scale, num) = (rng.below(2), rng.below(4));
        let ttl = rng.of(&[0, 0, 0, 2, 3]);
        tg << 46 | scale << 44 | num << 39 | ttl << 37 | page & !1
    } else {
        page | rng.of(&[0, 0, 0, 0x7 << 44, 0x6 << 44, 0xb << 44])
    };
    EventKind::Tlbi {
        op: TlbiOp { kind, reach },
        xt,
    }
}

fn proposal(rng: &mut Rng, machine: &Machine, writers: u64) -> Event {
    let pe = u8::from(rng.below(4) == 0);
    let kind = match rng.below(100) {
        0..38 => {
            let tables: Vec<_> = machine.linked_tables().collect();
            let mut linked: Vec<_> = tables.iter().filter(|t| t.0 != OTHER_ROOT).collect();
            linked.sort_unstable();
            let (base, level) = match rng.below(3) {
                0 => (ROOT, 1),
                1 if !linked.is_empty() => {
                    let at = linked[rng.below(linked.len() as u64) as usize];
                    (at.0, at.1)
                }
                _ => (table(rng), 2 + rng.below(2) as i8),
            };
            let kind = EventKind::Store {
                pa: base + rng.below(4) * 8,
                value: descriptor(rng, level),
                how: rng.of(&[How::Plain, How::Release, How::Release]),
            };
            let pe = rng.below(writers) as u8;
            return Event { pe, kind };
        }
        38..60 => tlbi(rng),
        60..82 => rng.of(&[
            EventKind::DSB_ISHST,
            EventKind::DSB_ISH,
            EventKind::DSB_ISH,
            EventKind::DSB_ISH,
            EventKind::DSB_NSH,
            EventKind::DSB_NSHST,
        ]),
        82..86 => EventKind::ISB,
        // One PE's quiet point concerns what it did itself, the exact TLB
        // compares all there is: with two writers there is none.
        86..90 if writers == 1 => {
            let kind = EventKind::Quiesce { lo: 0, hi: 0x1000 };
            return Event { pe: 0, kind };
        }
        86..93 => {
            let kind = EventKind::Free {
                pa: table(rng),
                len: 64,
            };
            return Event { pe: 0, kind };
        }
        93..95 => {
            let kind = EventKind::Alloc {
                pa: table(rng),
                len: 64,
                zeroed: true,
            };
            return Event { pe: 0, kind };
        }
        95 => EventKind::Own {
            pa: DATA + rng.below(8) * 64,
            len: 64 << rng.below(3),
            owner: rng.of(&[
                Owner::Nobody,
                Owner::Vmid(1),
                Owner::Vmid(1),
                Owner::Vmid(2),
            ]),
        },
        96..98 => EventKind::Own {
            pa: DATA,
            len: 0x1000,
            owner: Owner::Shared,
        },
        _ => EventKind::Write {
            reg: Reg::Vttbr,
            value: rng.of(&[
                1 << 48 | ROOT,
                1 << 48 | ROOT,
                1 << 48 | ROOT,
                2 << 48 | OTHER_ROOT,
                2 << 48 | OTHER_ROOT,
                1 << 48 | OTHER_ROOT,
                0,
            ]),
        },
    };
    Event { pe, kind }
}

fn setup(shape: Shape, features: Features) -> Exact {
    let machine = Machine::toy(shape, features, 2);
    let probes = (0..64).map(|p| p * 64).collect();
    let mut exact = Exact::new(machine, probes);
    let alloc = |pa, len| EventKind::Alloc {
        pa,
        len,
        zeroed: true,
    };
    let mut kinds = vec![
        (0, alloc(ROOT, 64)),
        (0, alloc(OTHER_ROOT, 64)),
        (0, alloc(TABLES, POOL * 64)),
        // The other VMID's tree has one leaf of its own.
        (0, EventKind::store(OTHER_ROOT, 0x8_0000 << 6 | 0x7d9)),
        (0, EventKind::DSB_ISH),
    ];
    for pe in 0..2 {
        let value = 1 << 48 | ROOT;
        let reg = Reg::Vttbr;
        kinds.push((pe, EventKind::Write { reg, value }));
        kinds.push((pe, EventKind::ISB));
    }
    for (pe, kind) in kinds {
        let v = exact.on(Event { pe, kind });
        v.automaton.unwrap();
        v.exact.unwrap();
    }
    exact
}

#[derive(Default)]
struct Tally {
    accepted: u64,
    quiet: u64,
    /// Rejections by kind: how many the exact TLB confirmed at once, and all.
    rejected: BTreeMap<Kind, (u64, u64)>,
}

fn search(shape: Shape, features: Features, writers: u64, seeds: Range<u64>) -> Tally {
    let mut tally = Tally::default();
    for seed in seeds {
        let mut rng = Rng(seed);
        let mut exact = setup(shape, features);
        let mut history = Vec::new();
        let mut queue: Vec<EventKind> = Vec::new();
        for _ in 0..2500 {
            if queue.is_empty() && rng.below(12) == 0 {
                queue = flush(&mut rng);
                queue.retain(|k| writers == 1 || !matches!(k, EventKind::Quiesce { .. }));
                queue.reverse();
            }
            let event = match queue.pop() {
                Some(kind) => Event { pe: 0, kind },
                None => proposal(&mut rng, exact.machine(), writers),
            };
            let before = exact.clone();
            let v = exact.on(event);
            match v.automaton {
                Ok(()) => {
                    tally.accepted += 1;
                    tally.quiet += u64::from(matches!(event.kind, EventKind::Quiesce { .. }));
                    history.push(event);
                    if let Err(wrong) = v.exact {
                        let lines: String = history.iter().map(|e| format!("{e}\n")).collect();
                        panic!("seed {seed}: accepted, but\n{wrong}\n{lines}");
                    }
                }
                Err(broken) => {
                    let count = tally.rejected.entry(broken.kind).or_default();
                    count.0 += u64::from(v.exact.is_err());
                    count.1 += 1;
                    exact = before;
                }
            }
        }
    }
    tally
}

fn features(bbm: u8) -> Features {
    Features {
        bbm,
        ..Features::max()
    }
}

fn report(tally: &Tally, confirmed: &[Kind]) {
    for (kind, (at_once, all)) in &tally.rejected {
        println!("{kind:?}: {all} rejected, {at_once} confirmed at once");
    }
    println!("{} accepted, {} quiet points", tally.accepted, tally.quiet);
    // The search must have been somewhere, and rejections must be earned.
    assert!(tally.accepted > 15_000);
    for kind in confirmed {
        let (at_once, all) = tally.rejected.get(kind).copied().unwrap_or_default();
        assert!(at_once > 0, "{kind:?}: {at_once} of {all}");
    }
}

/// Seeds per search; more by `MMU_MODEL_SEEDS`.
fn seeds(default: u64) -> Range<u64> {
    let wanted = std::env::var("MMU_MODEL_SEEDS").ok();
    0..wanted.and_then(|n| n.parse().ok()).unwrap_or(default)
}

#[test]
fn what_the_automaton_accepts_is_safe() {
    let tally = search(Shape::toy(6, 2, 3), features(0), 1, seeds(25));
    report(
        &tally,
        &[
            Kind::ValidToValidNeedsBbm,
            Kind::MakeWhileUnclean,
            Kind::StaleTranslation,
            Kind::TlbiBeforeDsb,
            Kind::WrongVmid,
            Kind::TgMismatch,
            Kind::MissingStage1,
            Kind::Stage1BeforeStage2,
            Kind::MissingDsb,
            Kind::LocalOnly,
            Kind::OutputNotOwned,
        ],
    );
    assert!(tally.quiet > 100);
}

#[test]
fn the_same_with_two_writers() {
    let tally = search(Shape::toy(6, 2, 3), features(0), 2, seeds(15));
    report(&tally, &[Kind::MakeWhileUnclean, Kind::TlbiBeforeDsb]);
}

#[test]
fn the_same_with_contiguous_pairs() {
    let shape = Shape {
        contiguous: [0, 0, 1, 1],
        ..Shape::toy(6, 2, 3)
    };
    let tally = search(shape, features(0), 1, seeds(25));
    report(&tally, &[Kind::BadContiguous, Kind::MakeWhileUnclean]);
}

#[test]
fn the_same_with_two_concatenated_levels() {
    // Two levels, the root of 16 entries.
    let shape = Shape {
        start: 2,
        ..Shape::toy(6, 2, 3)
    };
    let tally = search(shape, features(0), 1, seeds(12));
    report(&tally, &[Kind::MakeWhileUnclean]);
}

#[test]
fn the_same_with_break_before_make_level_2() {
    let tally = search(Shape::toy(6, 2, 3), features(2), 1, seeds(15));
    report(
        &tally,
        &[Kind::ValidToValidNeedsBbm, Kind::MakeWhileUnclean],
    );
}

/// A block and the page in its place, both in one TLB: the exact TLB says which
/// of the two conflicts it is.
#[test]
fn two_sizes_of_one_address() {
    let mut exact = setup(Shape::toy(6, 2, 3), features(0));
    let page = TABLES + 64;
    let stores = [
        (page, DATA << 6 | 0x7db),
        (TABLES, page << 6 | 3),
        (ROOT, DATA << 6 | 0x7d9),
        (ROOT, 0),
        (ROOT, TABLES << 6 | 3),
    ];
    let mut last = None;
    for (pa, value) in stores {
        let how = How::Release;
        let kind = EventKind::Store { pa, value, how };
        last = Some(exact.on(Event { pe: 0, kind }));
    }
    let v = last.unwrap();
    assert_eq!(v.automaton.unwrap_err().kind, Kind::MakeWhileUnclean);
    assert_eq!(v.exact.unwrap_err().kind, Kind::ConflictingSizes);
}

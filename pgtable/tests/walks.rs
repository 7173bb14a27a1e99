//! Walks with a visitor, and one entry held frozen.

mod plain;

use pgtable::{
    Access, Annotation, Attrs, Barrier, Budget, Caches, Change, Entry, Error, Features, Geometry,
    Granule, Ignore, Ipa, Leaves, Level, Map, Next, Over, Pa, Partial, Split, Stage2, Stage2Config,
    Stopped, Sweep, TableMem, TlbiKind, Unmap, Visit, Vmid,
};
use plain::{Cpu, Did, Plain};

const PAGE: u64 = 4096;
const MIB2: u64 = 2 << 20;
const GIB: u64 = 1 << 30;

fn all() -> Budget {
    Budget::unlimited()
}

fn geometry(ipa_bits: u8) -> Geometry {
    let mut config = Stage2Config::new(Granule::K4, ipa_bits, 48);
    config.features = Features {
        fwb: true,
        dic: true,
        ..Features::default()
    };
    config.validate().expect("legal")
}

fn tree(mem: &Plain) -> (Stage2<&Plain>, Cpu<'_>) {
    let geometry = geometry(34);
    let root = mem.root(geometry.root_align());
    let tree = Stage2::new(geometry, root, Vmid::new(3), mem).expect("a root");
    let cpu = mem.cpu(tree.regs());
    (tree, cpu)
}

fn map(tree: &Stage2<&Plain>, cpu: &mut Cpu<'_>, ipa: u64, size: u64, leaves: Leaves) {
    let map = Map::new(Ipa::new(ipa), Pa::new(4 * GIB + ipa), size, Attrs::MEMORY).leaves(leaves);
    let done = tree.map(cpu, &map, &mut all());
    assert_eq!(done, Ok(Ipa::new(ipa + size)));
}

const END: u64 = 1 << 34;

/// Pages, a block, an annotation, and the last page of the space; the root is
/// sixteen concatenated tables of level 2.
fn furnished(mem: &Plain) -> (Stage2<&Plain>, Cpu<'_>) {
    let (mut tree, mut cpu) = tree(mem);
    let pages = Leaves::Exactly(Level::L3);
    map(&tree, &mut cpu, 3 * PAGE, 2 * PAGE, pages);
    map(&tree, &mut cpu, MIB2, MIB2, Leaves::Largest);
    let note = Annotation::new(0x70).expect("bits 1:0 are zero");
    let (ipa, split) = (Ipa::new(3 * MIB2), Partial::Split);
    tree.unmap(
        &mut cpu,
        &Unmap::new(ipa, MIB2).partial(split).leaving(note),
        &mut Ignore,
        &mut all(),
    )
    .expect("annotated");
    map(&tree, &mut cpu, END - PAGE, PAGE, pages);
    mem.forget();
    (tree, cpu)
}

type Point = (Visit, u64, i8);

/// What a walk of everything comes by.
const ALL: [Point; 9] = [
    (Visit::TablePre, 0, 2),
    (Visit::Leaf, 3 * PAGE, 3),
    (Visit::Leaf, 4 * PAGE, 3),
    (Visit::TablePost, 0, 2),
    (Visit::Leaf, MIB2, 2),
    (Visit::Leaf, 3 * MIB2, 2),
    (Visit::TablePre, END - MIB2, 2),
    (Visit::Leaf, END - PAGE, 3),
    (Visit::TablePost, END - MIB2, 2),
];

#[test]
fn a_walk_comes_by_everything_once_and_in_order() {
    let mem = Plain::new(PAGE);
    let (tree, _) = furnished(&mem);
    let walk = |ipa: u64, size: u64| {
        let mut points = Vec::new();
        let end = tree.walk(Ipa::new(ipa), size, &mut all(), |seen| {
            // What is told is what stands there.
            let found = tree.lookup_to(seen.ipa, seen.level).expect("inside");
            assert_eq!((found.raw, found.level), (seen.raw, seen.level));
            assert_eq!((found.entry, found.base), (seen.entry, seen.ipa));
            points.push((seen.visit, seen.ipa.get(), seen.level.get()));
            Next::Descend
        });
        assert_eq!(end, Ok(Ipa::new(ipa + size)));
        points
    };
    assert_eq!(walk(0, END), ALL);
    // Parts: what overlaps is told whole.
    assert_eq!(walk(4 * PAGE, MIB2), [ALL[0], ALL[2], ALL[3], ALL[4]]);
    assert_eq!(walk(5 * PAGE, PAGE), [ALL[0], ALL[3]]);
    assert_eq!(walk(MIB2 + PAGE, PAGE), [ALL[4]]);
    assert_eq!(walk(2 * MIB2, MIB2), []);
    assert_eq!(walk(END - PAGE, PAGE), ALL[6..]);
    assert_eq!(walk(0, 0), []);
    assert_eq!(walk(END, 0), []);
}

#[test]
fn a_visitor_may_skip_stop_and_look_again() {
    let mem = Plain::new(PAGE);
    let (tree, _) = furnished(&mem);
    let mut points = Vec::new();
    let end = tree.walk(Ipa::new(0), END, &mut all(), |seen| {
        points.push((seen.visit, seen.ipa.get(), seen.level.get()));
        Next::Skip
    });
    assert_eq!(end, Ok(Ipa::new(END)));
    assert_eq!(points, [ALL[0], ALL[4], ALL[5], ALL[6]]);
    // Stopped at any point, the walk says where it was.
    for (stop, point) in ALL.iter().enumerate() {
        let mut count = 0;
        let end = tree.walk(Ipa::new(0), END, &mut all(), |_| {
            count += 1;
            if count == stop + 1 {
                Next::Stop
            } else {
                Next::Descend
            }
        });
        // Inside the table that was just left, the walk has come to its end.
        let at = match point.0 {
            Visit::TablePost => point.1 + MIB2,
            Visit::TablePre | Visit::Leaf => point.1,
        };
        assert_eq!(end, Ok(Ipa::new(at)), "{stop}");
        assert_eq!(count, stop + 1);
    }
    // An entry is read again, as often as it is wished.
    let mut again = 0;
    let end = tree.walk(Ipa::new(0), END, &mut all(), |seen| {
        if seen.visit == Visit::Leaf && seen.ipa.get() == MIB2 && again < 3 {
            again += 1;
            return Next::Retry;
        }
        Next::Descend
    });
    assert_eq!((end, again), (Ok(Ipa::new(END)), 3));
    // A retry that never ends is ended by the budget.
    let mut budget = Budget::entries(1000);
    let end = tree.walk(Ipa::new(0), END, &mut budget, |_| Next::Retry);
    assert_eq!((end, budget.left()), (Ok(Ipa::new(0)), 0));
}

/// One unit an entry, and a walk that goes on where it ended sees the rest.
#[test]
fn a_budget_is_spent_entry_by_entry() {
    let mem = Plain::new(PAGE);
    let (tree, _) = furnished(&mem);
    for units in [1u64, 2, 3, 5, 511, 512, 513, 100_000] {
        let mut at = Ipa::new(0);
        let mut leaves = Vec::new();
        let mut calls = 0;
        while at.get() < END {
            // One unit goes for the table on the way to a page.
            let mut budget = Budget::entries(units + 1);
            mem.forget();
            let next = tree
                .walk(at, END - at.get(), &mut budget, |seen| {
                    if seen.visit == Visit::Leaf {
                        leaves.push((seen.visit, seen.ipa.get(), seen.level.get()));
                    }
                    Next::Descend
                })
                .expect("inside");
            assert!(next > at || next.get() == END, "{units} {at} {next}");
            assert!(next.get() == END || budget.left() == 0);
            // And no more than that, beside the way to where it begins.
            assert!(mem.visits() <= units + 3, "{units}: {}", mem.visits());
            at = next;
            calls += 1;
        }
        let want: Vec<_> = ALL.iter().filter(|point| point.0 == Visit::Leaf).collect();
        assert_eq!(leaves.iter().collect::<Vec<_>>(), want, "{units}");
        // 8192 entries in the root, 1024 in two tables.
        assert!(calls <= 2 + 9216 / units, "{calls}");
    }
}

/// Tables on the way down are no address passed: one unit takes a walk to the
/// end of one entry, however deep it stands.
#[test]
fn one_unit_passes_one_entry() {
    let mem = Plain::new(PAGE);
    let (tree, _) = furnished(&mem);
    let mut budget = Budget::entries(1);
    let next = tree.walk(Ipa::new(3 * PAGE), PAGE, &mut budget, |_| Next::Descend);
    assert_eq!(next, Ok(Ipa::new(4 * PAGE)));
    let mut budget = Budget::entries(1);
    let next = tree.walk(Ipa::new(3 * PAGE), 2 * PAGE, &mut budget, |_| Next::Descend);
    assert_eq!(next, Ok(Ipa::new(4 * PAGE)));
}

/// The entry of an address, whatever level it is asked for.
#[test]
fn a_lookup_goes_as_deep_as_it_is_told() {
    let mem = Plain::new(PAGE);
    let (tree, _) = furnished(&mem);
    let at = |ipa: u64, level: Level| {
        let found = tree.lookup_to(Ipa::new(ipa), level).expect("inside");
        (found.level.get(), found.base.get())
    };
    assert_eq!(at(3 * PAGE + 7, Level::L3), (3, 3 * PAGE));
    assert_eq!(at(3 * PAGE + 7, Level::L2), (2, 0));
    // The root is of level 2: nothing is above it.
    assert_eq!(at(3 * PAGE + 7, Level::L0), (2, 0));
    assert_eq!(at(MIB2 + PAGE, Level::L3), (2, MIB2));
    let pa = |ipa: u64| tree.translate(Ipa::new(ipa)).map(|(pa, _)| pa.get());
    assert_eq!(pa(MIB2 + 5 * PAGE + 3), Some(4 * GIB + MIB2 + 5 * PAGE + 3));
    assert_eq!(pa(4 * PAGE + 4095), Some(4 * GIB + 4 * PAGE + 4095));
    assert_eq!(pa(3 * MIB2), None);
    assert_eq!(pa(0), None);
}

fn instructions(mem: &Plain) -> Vec<Did> {
    let mut did = mem.changes();
    did.retain(|did| matches!(did, Did::Tlbi(_) | Did::Barrier(_)));
    did
}

const STORED: Did = Did::Barrier(Barrier::DsbIshst);

/// Everybody is told `Busy` meanwhile; put back, the entry is what it was.
#[test]
fn a_frozen_entry_is_nobody_elses() {
    let mem = Plain::new(PAGE);
    let (tree, mut cpu) = furnished(&mem);
    for (ipa, level, dropped) in [
        (3 * PAGE + 8, Level::L3, true),
        (3 * PAGE, Level::L3, false),
        (6 * PAGE, Level::L3, true),
        (MIB2 + PAGE, Level::L2, false),
        (3 * MIB2, Level::L2, false),
        (5 * MIB2, Level::L2, true),
    ] {
        let at = Ipa::new(ipa);
        let old = tree.lookup(at).expect("inside");
        assert_eq!(old.level, level);
        let frozen = tree.freeze(at, level).expect("free");
        assert_eq!(frozen.old(), old.entry);
        assert_eq!(tree.lookup(at).map(|found| found.entry), Ok(Entry::Frozen));
        assert_eq!(tree.translate(at), None);
        assert_eq!(tree.freeze(at, level).err(), Some(Error::Busy));
        let page = Ipa::new(ipa & !(PAGE - 1));
        let one = Map::new(page, Pa::new(0), PAGE, Attrs::MEMORY);
        for over in [Over::Nothing, Over::Invalid, Over::Anything] {
            for leaves in [Leaves::Largest, Leaves::Exactly(Level::L3)] {
                let map = one.over(over).leaves(leaves);
                let done = tree.map(&mut cpu, &map, &mut all());
                let (why, next) = (Error::Busy, page);
                assert_eq!(done, Err(Stopped { why, next }));
            }
        }
        let done = tree.write_protect(
            &mut cpu,
            Sweep {
                flush: pgtable::Flush::Now,
                ..Sweep::new(page, PAGE)
            },
            &mut all(),
        );
        assert_eq!(done.map_err(|stopped| stopped.why), Err(Error::Busy));
        assert_eq!(tree.mark_young(&mut cpu, at), Err(Error::Busy));
        let split = tree.split(
            &mut cpu,
            &Split {
                ipa: page,
                size: PAGE,
                to: Level::L3,
            },
            |_| None,
            &mut all(),
        );
        if level == Level::L2 {
            assert_eq!(split.map_err(|stopped| stopped.why), Err(Error::Busy));
        }
        mem.forget();
        if dropped {
            drop(frozen);
            assert_eq!(instructions(&mem), []);
        } else {
            frozen.rollback(&mut cpu);
            assert_eq!(instructions(&mem), [STORED]);
        }
        assert_eq!(tree.lookup(at), Ok(old));
    }
}

/// What a commit does depends on what stood there and what comes.
#[test]
fn a_commit_invalidates_what_was_and_publishes_what_is() {
    let mem = Plain::new(PAGE);
    let (tree, mut cpu) = furnished(&mem);
    let note = |bits| Annotation::new(bits).expect("bits 1:0 are zero");
    let synced = |at: u64| {
        vec![
            format!("{:?} {at:#x}", TlbiKind::Ipas2e1is),
            format!("{:?} 0x0", TlbiKind::Vmalle1is),
        ]
    };
    let tlbis = |mem: &Plain| {
        let mut stored = 0;
        let mut ops = Vec::new();
        let mut last = None;
        for did in instructions(mem) {
            last = Some(did);
            match did {
                Did::Tlbi(op) => ops.push(format!("{:?} {:#x}", op.kind(), op.operand() << 12)),
                did if did == STORED => stored += 1,
                _ => (),
            }
        }
        (ops, stored, last == Some(STORED))
    };
    let table = match tree
        .lookup_to(Ipa::new(0), Level::L2)
        .expect("inside")
        .entry
    {
        Entry::Table(table) => table,
        other => panic!("{other:?}"),
    };
    let (count, root) = (mem.count(table), mem.count(tree.root()));
    let mut commit = |ipa: u64, level, change| {
        let frozen = tree.freeze(Ipa::new(ipa), level).expect("free");
        mem.forget();
        frozen.commit(&mut cpu, change).expect("can be encoded");
        tlbis(&mem)
    };
    let empty = note(0);
    // Nothing to nothing: no walker cares.
    let silent = (vec![], 0, false);
    assert_eq!(commit(6 * PAGE, Level::L3, Change::Invalid(empty)), silent);
    assert_eq!(mem.count(table), count);
    let noted = Change::Invalid(note(0x1230));
    assert_eq!(commit(6 * PAGE, Level::L3, noted), silent);
    assert_eq!(mem.count(table), count + 1);
    // Nothing to a leaf: published.
    let leaf = Change::Leaf(Pa::new(7 * GIB), Attrs::MEMORY.access(Access::Read));
    let published = (vec![], 1, true);
    assert_eq!(commit(6 * PAGE, Level::L3, leaf), published);
    assert_eq!(mem.count(table), count + 1);
    assert_eq!(commit(7 * PAGE, Level::L3, leaf), published);
    assert_eq!(mem.count(table), count + 2);
    // A leaf to nothing, to another leaf, at its own address.
    let (ops, _, publishes) = commit(7 * PAGE, Level::L3, Change::Invalid(empty));
    assert_eq!((ops, publishes), (synced(7 * PAGE), false));
    assert_eq!(mem.count(table), count + 1);
    let (ops, _, publishes) = commit(6 * PAGE + 100, Level::L3, leaf);
    assert_eq!((ops, publishes), (synced(6 * PAGE), true));
    let (ops, _, publishes) = commit(MIB2 + 5 * PAGE, Level::L2, leaf);
    assert_eq!((ops, publishes), (synced(MIB2), true));
    let (ops, _, publishes) = commit(MIB2 + 5 * PAGE, Level::L2, Change::Invalid(empty));
    assert_eq!((ops, publishes), (synced(MIB2), false));
    assert_eq!(mem.count(tree.root()), root - 1);
}

/// A table and a member of a contiguous group; annotations, whatever they say.
#[test]
fn what_cannot_be_frozen() {
    let mem = Plain::new(PAGE);
    let (mut tree, mut cpu) = furnished(&mem);
    let level = Level::L2;
    let exists = Some(Error::Exists { level });
    assert_eq!(tree.freeze(Ipa::new(0), level).err(), exists);
    let annotate = |tree: &mut Stage2<&Plain>, cpu: &mut Cpu<'_>, bits| {
        let note = Annotation::new(bits).expect("bits 1:0 are zero");
        let (ipa, split) = (Ipa::new(8 * MIB2), Partial::Split);
        tree.unmap(
            cpu,
            &Unmap::new(ipa, MIB2).partial(split).leaving(note),
            &mut Ignore,
            &mut all(),
        )
        .expect("annotated");
        tree.freeze(ipa, level).err()
    };
    assert_eq!(annotate(&mut tree, &mut cpu, 1 << 62 | 4), None);
    assert_eq!(annotate(&mut tree, &mut cpu, 1 << 63), None);
    let group = 32 * MIB2;
    map(
        &tree,
        &mut cpu,
        group,
        16 * PAGE,
        Leaves::Exactly(Level::L3),
    );
    tree.set_contiguous(&mut cpu, Ipa::new(group + 3 * PAGE))
        .expect("alike");
    let level = Level::L3;
    for page in [0, 7, 15] {
        let at = Ipa::new(group + page * PAGE);
        assert_eq!(tree.freeze(at, level).err(), Some(Error::Exists { level }));
    }
    assert!(tree.freeze(Ipa::new(group + 16 * PAGE), level).is_ok());
    assert_eq!(
        tree.freeze(Ipa::new(MIB2), level).err(),
        Some(Error::Missing { level: Level::L2 })
    );
}

/// A flush takes what lies in its range of each leaf, and no annotation for
/// memory.
#[test]
fn a_flush_keeps_to_its_range() {
    let config = Stage2Config::new(Granule::K4, 34, 48);
    let geometry = config.validate().expect("legal");
    let mem = Plain::new(PAGE);
    let root = mem.root(geometry.root_align());
    let mut tree = Stage2::new(geometry, root, Vmid::new(3), &mem).expect("a root");
    let mut cpu = mem.cpu(tree.regs());
    map(&tree, &mut cpu, MIB2, MIB2, Leaves::Largest);
    // All of an annotation's bits, those of cacheable memory among them.
    let note = Annotation::new(0x7f_ffff_fffc).expect("bits 1:0 are zero");
    let (ipa, split) = (Ipa::new(2 * MIB2), Partial::Split);
    tree.unmap(
        &mut cpu,
        &Unmap::new(ipa, MIB2).partial(split).leaving(note),
        &mut Ignore,
        &mut all(),
    )
    .expect("annotated");
    map(
        &tree,
        &mut cpu,
        3 * MIB2,
        2 * PAGE,
        Leaves::Exactly(Level::L3),
    );
    let pa = |ipa: u64| 4 * GIB + ipa;
    for (from, size, want) in [
        (
            MIB2 + 5 * PAGE,
            3 * PAGE,
            vec![(pa(MIB2 + 5 * PAGE), 3 * PAGE)],
        ),
        (
            2 * MIB2 - PAGE,
            MIB2 + 2 * PAGE,
            vec![(pa(2 * MIB2 - PAGE), PAGE), (pa(3 * MIB2), PAGE)],
        ),
        (2 * MIB2, MIB2, vec![]),
        (0, MIB2, vec![]),
    ] {
        mem.forget();
        let done = tree.flush_caches(&mut cpu, Ipa::new(from), size, &mut all());
        assert_eq!(done, Ok(Ipa::new(from + size)));
        let mut cleaned: Vec<(u64, u64)> = Vec::new();
        for did in mem.changes() {
            let Did::Cache(pgtable::CacheOp::CleanInvalidateData { pa, size }) = did else {
                panic!("{did:?}");
            };
            // In one operation, or in several that follow one another.
            match cleaned.last_mut() {
                Some((first, bytes)) if *first + *bytes == pa.get() => *bytes += size,
                _ => cleaned.push((pa.get(), size)),
            }
        }
        assert_eq!(cleaned, want, "{from:#x}");
    }
}

/// A budget is in units of 4 KiB, and a flush ends at a page of the granule all the same:
/// from there it goes on.
#[test]
fn a_flush_ends_at_a_page_of_its_granule() {
    for granule in Granule::ALL {
        let page = granule.page_size();
        let mem = Plain::new(page);
        let tree = mem.tree(Stage2Config::new(granule, 40, 48));
        let mut cpu = mem.cpu(tree.regs());
        let size = 32 << 20;
        let block = Map::new(
            Ipa::new(0),
            Pa::new(1 << 36),
            tree.geometry().span(Level::L2),
            Attrs::MEMORY,
        );
        tree.map(&mut cpu, &block.caches(Caches::Skip), &mut all())
            .expect("mapped");
        let size = size.min(block.size);
        let mut at = Ipa::new(0);
        while at.get() < size {
            // Some units more than 2 MiB, and those for the way down.
            let budget = &mut Budget::entries(520);
            let left = size - at.get();
            at = tree
                .flush_caches(&mut cpu, at, left, budget)
                .expect("it goes on");
            assert_eq!(at.get() % page, 0, "{granule:?}");
        }
    }
}

/// What another CPU is changing is mapped again in a moment, with lines of before: a
/// flush does not go past it as if nothing were there.
#[test]
fn a_flush_does_not_pass_what_is_frozen() {
    let config = Stage2Config::new(Granule::K4, 34, 48);
    let geometry = config.validate().expect("legal");
    let mem = Plain::new(PAGE);
    let root = mem.root(geometry.root_align());
    let tree = Stage2::new(geometry, root, Vmid::new(3), &mem).expect("a root");
    let mut cpu = mem.cpu(tree.regs());
    map(&tree, &mut cpu, 0, 2 * PAGE, Leaves::Exactly(Level::L3));
    let frozen = tree
        .freeze(Ipa::new(PAGE), Level::L3)
        .expect("a leaf of nobody's");
    let flushed = tree.flush_caches(&mut cpu, Ipa::new(0), MIB2, &mut all());
    let (why, next) = (Error::Busy, Ipa::new(PAGE));
    assert_eq!(flushed, Err(Stopped { why, next }));
    frozen.rollback(&mut cpu);
    let flushed = tree.flush_caches(&mut cpu, Ipa::new(0), MIB2, &mut all());
    assert_eq!(flushed, Ok(Ipa::new(MIB2)));
}

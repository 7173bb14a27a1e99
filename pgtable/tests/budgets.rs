//! Budgets: an operation does no more than it was allowed, gets on with each
//! call however little that is, and in pieces does what it does in one.

mod plain;

use pgtable::{
    Access, Annotation, Attrs, Budget, Execute, Features, Geometry, Granule, Ignore, Ipa, Leaves,
    Level, Map, Next, Over, Pa, Partial, Permissions, RemovedLeaf, Split, Stage2, Stage2Config,
    Stopped, Sweep, TableMem, Unmap, UnmapLater, Visit, Vmid,
};
use plain::{Cpu, Did, Plain};

const PAGE: u64 = 4096;
const MIB2: u64 = 2 << 20;
const GIB: u64 = 1 << 30;

fn geometry() -> Geometry {
    let mut config = Stage2Config::new(Granule::K4, 40, 48);
    config.features = Features {
        tlb_range: true,
        ttl: true,
        fwb: true,
        dic: true,
        hw_access_flag: true,
        hw_dirty: true,
        ..Features::default()
    };
    config.validate().expect("legal")
}

/// An empty tree, and the CPU that has it.
fn tree(mem: &Plain) -> (Stage2<&Plain>, Cpu<'_>) {
    let geometry = geometry();
    let root = mem.root(geometry.root_align());
    let tree = Stage2::new(geometry, root, Vmid::new(3), mem).expect("a root");
    let cpu = mem.cpu(tree.regs());
    (tree, cpu)
}

/// Four tables of pages, two blocks, holes, a note: what a range may meet.
fn furnish(tree: &mut Stage2<&Plain>, cpu: &mut Cpu<'_>) {
    let all = &mut Budget::unlimited();
    let map = |ipa: u64, size: u64, leaves| {
        Map::new(Ipa::new(ipa), Pa::new(64 * GIB + ipa), size, Attrs::MEMORY).leaves(leaves)
    };
    let pages = Leaves::Exactly(Level::L3);
    for map in [
        map(0, 2 * MIB2, pages),
        map(2 * MIB2, 2 * MIB2, Leaves::Largest),
        map(5 * MIB2 + 17 * PAGE, 40 * PAGE, pages),
        map(7 * MIB2 - PAGE, 2 * PAGE, pages),
    ] {
        tree.map(cpu, &map, all).expect("mapped");
    }
    let note = Annotation::new(0x40).expect("bits 1:0 are zero");
    let (ipa, split) = (Ipa::new(9 * MIB2), Partial::Split);
    tree.unmap(
        cpu,
        &Unmap::new(ipa, 3 * PAGE).partial(split).leaving(note),
        &mut Ignore,
        all,
    )
    .expect("annotated");
}

const SIZE: u64 = 10 * MIB2;

type Done = Result<Ipa, Stopped<Ipa>>;
type Operation = fn(&mut Stage2<&Plain>, &mut Cpu<'_>, Ipa, &mut Budget, &mut Vec<u64>) -> Done;

/// Every operation on a range that takes a budget, on `[ipa, SIZE)`.
fn operations() -> Vec<(&'static str, Operation)> {
    [mappings(), removals(), changes()].concat()
}

fn mappings() -> Vec<(&'static str, Operation)> {
    vec![
        ("map", |tree, cpu, ipa, budget, _| {
            let pa = Pa::new(128 * GIB + ipa.get());
            let read = Attrs::MEMORY.access(Access::Read);
            let map = Map::new(ipa, pa, SIZE - ipa.get(), read)
                .leaves(Leaves::Exactly(Level::L3))
                .over(Over::Anything);
            tree.map(cpu, &map, budget)
        }),
        ("map_exclusive", |tree, cpu, ipa, budget, told| {
            let pa = Pa::new(128 * GIB + ipa.get());
            let map = Map::new(ipa, pa, SIZE - ipa.get(), Attrs::MEMORY).over(Over::Anything);
            let mut sink = |leaf: RemovedLeaf| told.push(leaf.ipa().get());
            tree.map_exclusive(cpu, &map, &mut sink, budget)
        }),
    ]
}

/// The rest of the range, blocks at its ends split.
fn rest(ipa: Ipa) -> Unmap {
    Unmap::new(ipa, SIZE - ipa.get()).partial(Partial::Split)
}

fn removals() -> Vec<(&'static str, Operation)> {
    vec![
        ("unmap", |tree, cpu, ipa, budget, told| {
            let mut sink = |leaf: RemovedLeaf| told.push(leaf.ipa().get());
            tree.unmap(cpu, &rest(ipa), &mut sink, budget)
        }),
        ("unmap unasked", |tree, cpu, ipa, budget, _| {
            tree.unmap(cpu, &rest(ipa), &mut Ignore, budget)
        }),
        ("unmap_leaves", |tree, cpu, ipa, budget, told| {
            let mut sink = |leaf: RemovedLeaf| told.push(leaf.ipa().get());
            tree.unmap_leaves(cpu, &rest(ipa), &mut sink, budget)
        }),
        ("unmap_later", |tree, cpu, ipa, budget, told| {
            let mut gather = tree.gather();
            let range = UnmapLater::new(ipa, SIZE - ipa.get(), &mut gather);
            let done = tree.unmap_later(cpu, range.partial(Partial::Split), budget, |leaf| {
                told.push(leaf.ipa().get());
                drop(leaf);
            });
            let _synced = tree.sync(cpu, gather).expect("of this tree");
            done
        }),
        ("annotate", |tree, cpu, ipa, budget, told| {
            let note = Annotation::new(0x80).expect("bits 1:0 are zero");
            let mut sink = |leaf: RemovedLeaf| told.push(leaf.ipa().get());
            tree.unmap(cpu, &rest(ipa).leaving(note), &mut sink, budget)
        }),
    ]
}

/// Of leaves that stay.
fn changes() -> Vec<(&'static str, Operation)> {
    vec![
        ("protect", |tree, cpu, ipa, budget, _| {
            let permissions = Permissions {
                access: Access::Read,
                execute: Execute::Never,
            };
            let range = Sweep::new(ipa, SIZE - ipa.get()).partial(Partial::Split);
            tree.protect(cpu, range, permissions, budget)
        }),
        ("write_protect", |tree, cpu, ipa, budget, _| {
            tree.write_protect(cpu, Sweep::new(ipa, SIZE - ipa.get()), budget)
        }),
        ("count_young", |tree, cpu, ipa, budget, told| {
            let done = tree.count_young(cpu, ipa, SIZE - ipa.get(), budget);
            done.map(|(next, count)| {
                told.push(count);
                next
            })
        }),
        ("clear_young", |tree, cpu, ipa, budget, told| {
            let done = tree.clear_young(cpu, Sweep::new(ipa, SIZE - ipa.get()), budget);
            done.map(|(next, count)| {
                told.push(count);
                next
            })
        }),
        ("harvest_dirty", |tree, cpu, ipa, budget, told| {
            let dirty = |ipa: Ipa, _| told.push(ipa.get());
            tree.harvest_dirty(cpu, Sweep::new(ipa, SIZE - ipa.get()), budget, dirty)
        }),
        ("split", |tree, cpu, ipa, budget, _| {
            let mem = *tree.mem();
            let page = |level| mem.alloc(level);
            tree.split(
                cpu,
                &Split {
                    ipa,
                    size: SIZE - ipa.get(),
                    to: Level::L3,
                },
                page,
                budget,
            )
        }),
    ]
}

/// All that stands in the tree, tables by what is in them.
fn content(tree: &Stage2<&Plain>) -> Vec<(u64, i8, u64)> {
    let mut found = Vec::new();
    let whole = 1 << 40;
    let end = tree.walk(Ipa::new(0), whole, &mut Budget::unlimited(), |seen| {
        if seen.visit == Visit::Leaf {
            found.push((seen.ipa.get(), seen.level.get(), seen.raw));
        }
        Next::Descend
    });
    assert_eq!(end, Ok(Ipa::new(whole)));
    found
}

/// What an operation does in calls of so many units, and how many calls.
struct Outcome {
    content: Vec<(u64, i8, u64)>,
    told: Vec<u64>,
    tables: usize,
    calls: u64,
    most: u64,
}

fn run(operation: Operation, units: Option<u64>) -> Outcome {
    let mem = Plain::new(PAGE);
    let (mut tree, mut cpu) = tree(&mem);
    furnish(&mut tree, &mut cpu);
    let mut told = Vec::new();
    let (mut calls, mut most) = (0, 0);
    let mut at = Ipa::new(0);
    while at.get() < SIZE {
        let mut budget = units.map_or(Budget::unlimited(), Budget::entries);
        mem.forget();
        at = operation(&mut tree, &mut cpu, at, &mut budget, &mut told).expect("no error");
        calls += 1;
        most = most.max(mem.visits());
        assert!(calls < 40_000, "no end: at {at}");
        // It returns early only where the budget is spent.
        assert!(at.get() == SIZE || budget.left() == 0, "{at}");
        assert!(units.is_some() || at.get() == SIZE);
    }
    assert_eq!(at, Ipa::new(SIZE));
    Outcome {
        content: content(&tree),
        told,
        tables: mem.live(),
        calls,
        most,
    }
}

#[test]
fn in_pieces_or_at_once() {
    for (name, operation) in operations() {
        let whole = run(operation, None);
        assert_eq!(whole.calls, 1);
        for units in [1u64, 2, 7, 64, 511, 512, 513, 3000] {
            let pieces = run(operation, Some(units));
            let what = format!("{name} by {units}");
            let counts = name.ends_with("young");
            if counts {
                let sum = |told: &[u64]| told.iter().sum::<u64>();
                assert_eq!(sum(&pieces.told), sum(&whole.told), "{what}");
            } else {
                let sorted = |mut told: Vec<u64>| {
                    told.sort_unstable();
                    told
                };
                assert_eq!(sorted(pieces.told), sorted(whole.told.clone()), "{what}");
            }
            // A mapping in pieces too small for a block is of pages.
            if name != "map_exclusive" {
                assert_eq!(pieces.content, whole.content, "{what}");
                assert_eq!(pieces.tables, whole.tables, "{what}");
            }
            // No call does much more than it may: a table is split, freed or
            // collapsed whole, and each entry is read and written a few times
            // with a walk to it.
            let table = 3 * 512 + 64;
            let bound = 5 * units + 2 * table;
            assert!(pieces.most <= bound, "{what}: {} in a call", pieces.most);
            if units == 1 {
                assert!(pieces.calls > 4, "{what}");
            }
        }
    }
}

/// The unit is an entry, and a table that is made or freed.
#[test]
fn what_is_spent() {
    let mem = Plain::new(PAGE);
    let (mut tree, mut cpu) = tree(&mem);
    let pages = Leaves::Exactly(Level::L3);
    let most = 1_000_000;
    let mut budget = Budget::entries(most);
    let spent = |budget: &mut Budget| {
        let spent = most - budget.left();
        *budget = Budget::entries(most);
        spent
    };
    let map = |ipa: u64, size: u64| {
        Map::new(Ipa::new(ipa), Pa::new(64 * GIB), size, Attrs::MEMORY).leaves(pages)
    };
    tree.map(&mut cpu, &map(0, PAGE), &mut budget)
        .expect("mapped");
    assert_eq!(spent(&mut budget), 1);
    tree.map(&mut cpu, &map(PAGE, 9 * PAGE), &mut budget)
        .expect("mapped");
    assert_eq!(spent(&mut budget), 9);
    let ipa = Ipa::new(0);
    tree.write_protect(&mut cpu, Sweep::new(ipa, 10 * PAGE), &mut budget)
        .expect("mapped");
    assert_eq!(spent(&mut budget), 10);
    let ipa = Ipa::new(3 * PAGE);
    tree.write_protect(&mut cpu, Sweep::new(ipa, 4 * PAGE), &mut budget)
        .expect("mapped");
    assert_eq!(spent(&mut budget), 4);
    let ipa = Ipa::new(0);
    let (count, refuse) = (10 * PAGE, Partial::Refuse);
    tree.unmap_leaves(
        &mut cpu,
        &Unmap::new(ipa, count).partial(refuse),
        &mut Ignore,
        &mut budget,
    )
    .expect("unmapped");
    assert_eq!(spent(&mut budget), 10);
    tree.map(&mut cpu, &map(0, 10 * PAGE), &mut budget)
        .expect("mapped");
    spent(&mut budget);
    // The root's entries, each table with its entries, if they are told.
    let roots = geometry().shape().root_entries() as u64;
    let mut told = 0;
    let mut sink = |_: RemovedLeaf| told += 1;
    let end = tree.teardown(&mut cpu, ipa, &mut sink, &mut budget);
    assert_eq!((end, told), (Ipa::new(1 << 40), 10));
    assert_eq!(spent(&mut budget), roots + 513 + 513);
    tree.map(&mut cpu, &map(0, 10 * PAGE), &mut budget)
        .expect("mapped");
    spent(&mut budget);
    tree.teardown(&mut cpu, ipa, &mut Ignore, &mut budget);
    assert_eq!(spent(&mut budget), roots + 513 + 1);
}

/// A budget saturates, and says what is left of it.
#[test]
fn what_is_left() {
    assert_eq!(Budget::entries(7).left(), 7);
    assert_eq!(Budget::unlimited().left(), u64::MAX);
    let mem = Plain::new(PAGE);
    let (mut tree, mut cpu) = tree(&mem);
    let map = |size| {
        Map::new(Ipa::new(0), Pa::new(0), size, Attrs::MEMORY).leaves(Leaves::Exactly(Level::L3))
    };
    let mut budget = Budget::entries(3);
    let next = tree.map(&mut cpu, &map(8 * PAGE), &mut budget);
    assert_eq!((next, budget.left()), (Ok(Ipa::new(3 * PAGE)), 0));
    // With nothing left one unit is done.
    let mut budget = Budget::entries(0);
    let (size, refuse) = (3 * PAGE, Partial::Refuse);
    let next = tree.unmap(
        &mut cpu,
        &Unmap::new(Ipa::new(0), size).partial(refuse),
        &mut Ignore,
        &mut budget,
    );
    assert_eq!((next, budget.left()), (Ok(Ipa::new(PAGE)), 0));
}

/// What is freed of a table is not looked at again: with any budget the work
/// is in proportion to what there is.
#[test]
fn a_table_that_goes_in_steps_is_seen_once() {
    for told in [false, true] {
        let mem = Plain::new(PAGE);
        let geometry = geometry();
        let root = mem.root(geometry.root_align());
        let mut tree = Stage2::new(geometry, root, Vmid::new(3), &mem).expect("a root");
        let mut cpu = mem.cpu(tree.regs());
        // A page in each of 512 tables of one table.
        for table in 0..512 {
            let (ipa, pa) = (Ipa::new(table * MIB2 + table * PAGE), Pa::new(table * PAGE));
            let map = Map::new(ipa, pa, PAGE, Attrs::MEMORY);
            tree.map(&mut cpu, &map, &mut Budget::unlimited())
                .expect("mapped");
        }
        mem.forget();
        let (mut at, mut calls, mut leaves) = (Ipa::new(0), 0, Vec::new());
        while at.get() < 1 << 40 {
            let budget = &mut Budget::entries(1);
            at = if told {
                let mut sink = |leaf: RemovedLeaf| leaves.push(leaf.ipa().get());
                tree.teardown(&mut cpu, at, &mut sink, budget)
            } else {
                tree.teardown(&mut cpu, at, &mut Ignore, budget)
            };
            calls += 1;
        }
        assert!(calls > 512, "{calls} calls");
        let want = if told { 512 } else { 0 };
        assert_eq!(leaves.len(), want);
        assert!(leaves.is_sorted_by(|one, next| one < next));
        assert_eq!(mem.live(), 0);
        let loads = |did: &&Did| matches!(did, Did::Load { .. });
        let loads = mem.did.borrow().iter().filter(loads).count();
        // The root's entries twice, each table's entries, and some looks a call.
        let entries = 2 * 1024 + 512 + if told { 512 * 512 } else { 0 };
        assert!(loads <= entries + 4 * calls, "{loads} loads");
    }
}

/// A table that goes is done, whatever is left of the budget.
#[test]
fn a_table_that_went_is_behind() {
    let mem = Plain::new(PAGE);
    let (mut tree, mut cpu) = tree(&mem);
    let map = Map::new(Ipa::new(0), Pa::new(0), 2 * MIB2, Attrs::MEMORY)
        .leaves(Leaves::Exactly(Level::L3));
    tree.map(&mut cpu, &map, &mut Budget::unlimited())
        .expect("mapped");
    for table in [1, 2] {
        let mut budget = Budget::entries(1);
        let at = Ipa::new((table - 1) * MIB2);
        let (size, refuse) = (2 * MIB2 - at.get(), Partial::Refuse);
        let next = tree.unmap(
            &mut cpu,
            &Unmap::new(at, size).partial(refuse),
            &mut Ignore,
            &mut budget,
        );
        assert_eq!(next, Ok(Ipa::new(table * MIB2)));
    }
}

/// A block that is only split on the way to a part of it is no address done.
#[test]
fn what_is_split_on_the_way_is_not_behind() {
    for eager in [false, true] {
        let mem = Plain::new(PAGE);
        let geometry = geometry();
        let root = mem.root(geometry.root_align());
        let mut tree = Stage2::new(geometry, root, Vmid::new(3), &mem).expect("a root");
        let mut cpu = mem.cpu(tree.regs());
        let map = Map::new(Ipa::new(0), Pa::new(64 * GIB), GIB, Attrs::MEMORY);
        tree.map(&mut cpu, &map, &mut Budget::unlimited())
            .expect("mapped");
        let (at, size) = (Ipa::new(MIB2 + 7 * PAGE), 3 * PAGE);
        let budget = &mut Budget::entries(1);
        let next = if eager {
            let page = |level| mem.alloc(level);
            tree.split(
                &mut cpu,
                &Split {
                    ipa: at,
                    size,
                    to: Level::L3,
                },
                page,
                budget,
            )
        } else {
            tree.unmap(&mut cpu, &Unmap::new(at, size), &mut Ignore, budget)
        };
        let next = next.expect("split");
        assert!(next > at, "{next}");
    }
}

/// Tables that become blocks together go one in a call when no more is left.
#[test]
fn tables_that_are_replaced_go_as_the_budget_says() {
    let mem = Plain::new(PAGE);
    let (mut tree, mut cpu) = tree(&mem);
    let blocks = 8;
    let map = |leaves| {
        Map::new(Ipa::new(0), Pa::new(64 * GIB), blocks * MIB2, Attrs::MEMORY).leaves(leaves)
    };
    let pages = map(Leaves::Exactly(Level::L3));
    tree.map(&mut cpu, &pages, &mut Budget::unlimited())
        .expect("mapped");
    let whole = map(Leaves::Exactly(Level::L2)).over(Over::Anything);
    for block in 0..blocks {
        // Units for all the entries, and none for the tables.
        let budget = &mut Budget::entries(blocks - block);
        let mut told = 0;
        let mut sink = |_: RemovedLeaf| told += 1;
        let at = block * MIB2;
        let rest = Map {
            ipa: Ipa::new(at),
            pa: Pa::new(64 * GIB + at),
            size: blocks * MIB2 - at,
            ..whole
        };
        let next = tree.map_exclusive(&mut cpu, &rest, &mut sink, budget);
        assert_eq!((next, told), (Ok(Ipa::new(at + MIB2)), 512));
    }
}

/// A subtree that is not linked after all goes in steps, and whole.
#[test]
fn a_subtree_is_discarded_in_steps() {
    let mem = Plain::new(PAGE);
    let geometry = geometry();
    let root = mem.root(geometry.root_align());
    let tree = Stage2::new(geometry, root, Vmid::new(3), &mem).expect("a root");
    let mut cpu = mem.cpu(tree.regs());
    let mut built = tree.subtree(Ipa::new(GIB), Level::L1).expect("a page");
    let map =
        Map::new(Ipa::new(GIB), Pa::new(0), GIB, Attrs::MEMORY).leaves(Leaves::Exactly(Level::L3));
    built
        .map(&mut cpu, &map, &mut Budget::unlimited())
        .expect("mapped");
    assert_eq!(mem.live(), 513);
    let mut left = built.discard(&mut Budget::entries(1));
    let mut calls = 1;
    while let Err(remains) = left {
        assert_eq!(mem.live(), 513 - calls);
        left = remains.discard(&mut Budget::entries(1));
        calls += 1;
    }
    assert_eq!((mem.live(), calls), (0, 512));
}

/// A sweep is of entries, and ends at the one where its budget does, wherever in a table
/// that is.
#[test]
fn a_sweep_ends_where_its_budget_does() {
    let mem = Plain::new(PAGE);
    let (mut tree, mut cpu) = tree(&mem);
    furnish(&mut tree, &mut cpu);
    for units in [1, 2, 100, 511] {
        let sweep = Sweep::new(Ipa::new(0), SIZE);
        let done = tree.write_protect(&mut cpu, sweep, &mut Budget::entries(units));
        assert_eq!(done, Ok(Ipa::new(units * PAGE)));
    }
}

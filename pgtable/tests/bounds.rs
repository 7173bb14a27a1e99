//! What one call may do where memory has to be cleaned: leaves of 2 MiB at most,
//! one step each, and nothing is left half done. And what somebody held who was
//! forgotten.

mod plain;

use pgtable::{
    Access, Annotation, Attrs, Budget, CacheOp, Caches, Change, Entry, Error, Execute, Features,
    Granule, Ignore, Ipa, Leaves, Level, Map, Memory, Over, Pa, Partial, RemovedLeaf, RemovedRun,
    Runs, Stage2, Stage2Config, TableMem, Unmap, UnmapLater,
};
use plain::{Cpu, Did, Plain};
use std::mem::forget;

const PAGE: u64 = 4096;
const MIB2: u64 = 2 << 20;
const GIB: u64 = 1 << 30;

/// Without FWB: all memory is cleaned when it comes and when it goes.
fn tree(mem: &Plain, dic: bool) -> (Stage2<&Plain>, Cpu<'_>) {
    let mut config = Stage2Config::new(Granule::K4, 39, 48);
    config.features = Features {
        dic,
        tlb_range: true,
        ttl: true,
        ..Features::default()
    };
    let tree = mem.tree(config);
    let cpu = mem.cpu(tree.regs());
    (tree, cpu)
}

fn all() -> Budget {
    Budget::unlimited()
}

/// For one step of cleaning, of 2 MiB.
fn least() -> Budget {
    Budget::entries(1)
}

fn count(mem: &Plain, tree: &Stage2<&Plain>) -> u32 {
    mem.count(tree.root())
}

/// What was done to caches since.
fn caches(mem: &Plain) -> Vec<CacheOp> {
    let cache = |did: &Did| match *did {
        Did::Cache(op) => Some(op),
        _ => None,
    };
    mem.changes().iter().filter_map(cache).collect()
}

/// The addresses and sizes that were cleaned since.
fn cleaned(mem: &Plain) -> Vec<(u64, u64)> {
    let data = |op: &CacheOp| match *op {
        CacheOp::CleanInvalidateData { pa, size } => Some((pa.get(), size)),
        CacheOp::InvalidateInstructions => None,
    };
    caches(mem).iter().filter_map(data).collect()
}

/// Memory that is clean, as who maps it knows, in the largest blocks.
fn map_clean(tree: &Stage2<&Plain>, cpu: &mut Cpu<'_>, ipa: u64, pa: u64, size: u64) {
    let map = Map::new(Ipa::new(ipa), Pa::new(pa), size, Attrs::MEMORY).caches(Caches::Skip);
    tree.map(cpu, &map, &mut all()).expect("mapped");
}

/// A tree of any granule; a block of its level 2 and the largest that is cleaned.
fn of(mem: &Plain, granule: Granule) -> (Stage2<&Plain>, u64, u64) {
    let tree = mem.tree(Stage2Config::new(granule, 40, 48));
    let span = tree.geometry().span(Level::L2);
    let least = if span > MIB2 {
        granule.page_size()
    } else {
        span
    };
    (tree, span, least)
}

/// Bytes that were cleaned since.
fn bytes(mem: &Plain) -> u64 {
    cleaned(mem).iter().map(|(_, size)| size).sum()
}

/// What is cleaned is mapped by 2 MiB at most; who cleaned it gets the largest.
#[test]
fn a_leaf_is_no_larger_than_one_step_of_cleaning() {
    for granule in Granule::ALL {
        let mem = Plain::new(granule.page_size());
        let (tree, span, least) = of(&mem, granule);
        let cpu = &mut mem.cpu(tree.regs());
        let size = 2 * span;
        let map = Map::new(Ipa::new(4 * span), Pa::new(8 * span), size, Attrs::MEMORY);
        for leaves in [Leaves::Largest, Leaves::AtMost(Level::L1)] {
            tree.map(cpu, &map.leaves(leaves).over(Over::Anything), &mut all())
                .expect("mapped");
            for at in [0, least, size - least] {
                let found = tree.lookup(Ipa::new(4 * span + at)).expect("inside");
                assert_eq!(tree.geometry().span(found.level), least, "{granule:?}");
            }
        }
        let level = Level::L2;
        let exact = map.leaves(Leaves::Exactly(level)).over(Over::Anything);
        let done = tree.map(cpu, &exact, &mut all());
        if span > MIB2 {
            let why = Error::BlockLevel { level };
            assert_eq!(done.map_err(|stopped| stopped.why), Err(why));
            // Nor is what would be cleaned when it is replaced.
            let attrs = Attrs::DEVICE;
            let done = tree.map(cpu, &Map { attrs, ..exact }, &mut all());
            assert_eq!(done.map_err(|stopped| stopped.why), Err(why));
        } else {
            assert_eq!(done, Ok(Ipa::new(6 * span)));
        }
        map_clean(&tree, cpu, 8 * span, 8 * span, span);
        let found = tree.lookup(Ipa::new(8 * span)).expect("inside");
        assert_eq!(found.level, level);
    }
}

/// Under FEAT_S2FWB the same holds of memory that is seen past the caches all
/// the same.
#[test]
fn non_cacheable_memory_is_cleaned_in_steps_under_fwb_too() {
    let mem = Plain::new(1 << 16);
    let mut config = Stage2Config::new(Granule::K64, 40, 48);
    config.features.fwb = true;
    let tree = mem.tree(config);
    let cpu = &mut mem.cpu(tree.regs());
    let span = tree.geometry().span(Level::L2);
    for (slot, memory, level) in [
        (0, Memory::Normal, Level::L2),
        (1, Memory::NormalNonCacheable, Level::L3),
        (2, Memory::FromStage1, Level::L3),
    ] {
        let (ipa, attrs) = (slot * span, Attrs::MEMORY.memory(memory));
        let mut map = Map::new(Ipa::new(ipa), Pa::new(span), span, attrs);
        while map.size > 0 {
            mem.forget();
            let next = tree.map(cpu, &map, &mut Budget::entries(1 << 10));
            map = map.advance(next.expect("mapped"));
            assert!(bytes(&mem) <= 4 << 20);
        }
        let found = tree.lookup(Ipa::new(ipa)).expect("inside");
        assert_eq!(found.level, level, "{memory:?}");
    }
}

/// Mapping and unmapping a GiB: each call cleans what its budget says, and one
/// leaf more at most, all of it once.
#[test]
fn a_gibibyte_is_cleaned_in_calls_of_a_budget() {
    for shared in [false, true] {
        let mem = Plain::new(PAGE);
        let (mut tree, mut cpu) = tree(&mem, true);
        let mut map = Map::new(Ipa::new(0), Pa::new(4 * GIB), GIB, Attrs::MEMORY);
        let units = 8 * MIB2 / PAGE;
        let mut clean = 0;
        while map.size > 0 {
            mem.forget();
            let next = tree.map(&mut cpu, &map, &mut Budget::entries(units));
            map = map.advance(next.expect("mapped"));
            let bytes = bytes(&mem);
            assert!(bytes > 0 && bytes <= 9 * MIB2, "{bytes:#x}");
            clean += bytes;
        }
        assert_eq!(clean, GIB);
        let (mut at, mut told, mut calls) = (0, 0, 0);
        while at < GIB {
            mem.forget();
            let mut sink = |leaf: RemovedLeaf| {
                assert_eq!((leaf.ipa().get(), leaf.pa().get()), (told, 4 * GIB + told));
                told += leaf.size();
            };
            let (ipa, rest, refuse) = (Ipa::new(at), GIB - at, Partial::Refuse);
            let budget = &mut Budget::entries(units);
            let next = if shared {
                tree.unmap_leaves(
                    &mut cpu,
                    &Unmap::new(ipa, rest).partial(refuse),
                    &mut sink,
                    budget,
                )
            } else {
                tree.unmap(
                    &mut cpu,
                    &Unmap::new(ipa, rest).partial(refuse),
                    &mut sink,
                    budget,
                )
            };
            at = next.expect("unmapped").get();
            assert_eq!(told, at);
            let bytes = bytes(&mem);
            assert!(bytes > 0 && bytes <= 9 * MIB2, "{bytes:#x}");
            calls += 1;
            // What is not done is mapped: nothing is in between.
            for at in (at..GIB).step_by(MIB2 as usize) {
                let found = tree.lookup(Ipa::new(at)).expect("inside");
                assert!(matches!(found.entry, Entry::Leaf { .. }), "{found:?}");
            }
        }
        assert!(calls >= 57, "{calls}");
    }
}

/// A block that was mapped clean is unmapped in parts of one step each: it is
/// split before, for which there has to be a page.
#[test]
fn a_large_block_is_split_to_be_cleaned() {
    for granule in Granule::ALL {
        let mem = Plain::new(granule.page_size());
        let (mut tree, span, least) = of(&mem, granule);
        let cpu = &mut mem.cpu(tree.regs());
        let size = if granule == Granule::K4 { GIB } else { span };
        map_clean(&tree, cpu, 0, 4 * size, size);
        let tables = mem.live();
        mem.limit.set(0);
        let (ipa, refuse) = (Ipa::new(0), Partial::Refuse);
        let none = tree.unmap(
            cpu,
            &Unmap::new(ipa, size).partial(refuse),
            &mut Ignore,
            &mut all(),
        );
        assert_eq!(none.map_err(|stopped| stopped.why), Err(Error::NoMem));
        assert!(tree.translate(ipa).is_some());
        mem.limit.set(u64::MAX);
        let (mut at, mut told) = (0, Vec::new());
        while at < size {
            mem.forget();
            let mut sink = Runs(|run: RemovedRun| told.push((run.pa().get(), run.size())));
            let (ipa, rest) = (Ipa::new(at), size - at);
            let next = tree.unmap(
                cpu,
                &Unmap::new(ipa, rest).partial(refuse),
                &mut sink,
                &mut least_of(granule),
            );
            at = next.expect("unmapped").get();
            assert!(bytes(&mem) <= 64 * least, "{granule:?}");
        }
        let all: u64 = told.iter().map(|(_, size)| size).sum();
        assert!(mem.live() <= tables);
        assert_eq!(all, size, "{granule:?}");
        assert!(told.is_sorted());
    }
}

/// A budget for some leaves.
fn least_of(granule: Granule) -> Budget {
    match granule {
        Granule::K4 => Budget::entries(1),
        _ => Budget::entries(60),
    }
}

/// What a range covers in part of such a block is dropped by 2 MiB at most.
#[test]
fn of_a_large_block_a_part_of_one_step_is_dropped() {
    let mem = Plain::new(PAGE);
    let (mut tree, mut cpu) = tree(&mem, true);
    map_clean(&tree, &mut cpu, 0, 4 * GIB, GIB);
    let mut told = Vec::new();
    let mut sink = |leaf: RemovedLeaf| told.push((leaf.ipa().get(), leaf.size()));
    let (ipa, whole) = (Ipa::new(3 * MIB2 + PAGE), Partial::DropWhole);
    tree.unmap(
        &mut cpu,
        &Unmap::new(ipa, PAGE).partial(whole),
        &mut sink,
        &mut all(),
    )
    .expect("unmapped");
    assert_eq!(told, [(3 * MIB2, MIB2)]);
    assert!(tree.translate(Ipa::new(4 * MIB2)).is_some());
}

/// A host's blocks are as large as they can be, and one page of them that goes
/// is all that is cleaned.
#[test]
fn a_page_out_of_a_gibibyte_is_cleaned_alone() {
    let mem = Plain::new(PAGE);
    let (mut tree, mut cpu) = tree(&mem, true);
    map_clean(&tree, &mut cpu, GIB, GIB, GIB);
    mem.forget();
    let at = GIB + 5 * MIB2 + 7 * PAGE;
    let (ipa, split) = (Ipa::new(at), Partial::Split);
    tree.unmap(
        &mut cpu,
        &Unmap::new(ipa, PAGE).partial(split),
        &mut Ignore,
        &mut all(),
    )
    .expect("unmapped");
    assert_eq!(cleaned(&mem), [(at, PAGE)]);
}

/// Memory that is mapped already is not cleaned again for other permissions.
#[test]
fn a_block_that_permits_something_else_changes_in_one_call() {
    let mem = Plain::new(PAGE);
    let (tree, mut cpu) = tree(&mem, true);
    map_clean(&tree, &mut cpu, 0, 4 * GIB, GIB);
    mem.forget();
    let read = Attrs::MEMORY.access(Access::Read);
    let map = Map::new(Ipa::new(0), Pa::new(4 * GIB), GIB, read)
        .over(Over::Anything)
        .caches(Caches::Skip);
    let done = tree.map(&mut cpu, &map, &mut least());
    assert_eq!(done, Ok(Ipa::new(GIB)));
    let (pa, attrs) = tree.translate(Ipa::new(0)).expect("mapped");
    assert_eq!((pa, attrs.access), (Pa::new(4 * GIB), Access::Read));
    assert_eq!((count(&mem, &tree), cleaned(&mem)), (1, vec![]));
}

/// What cleaning costs is in the budget: one unit for each 4 KiB, and one for
/// the entry.
#[test]
fn cleaning_is_spent_by_its_bytes() {
    let mem = Plain::new(PAGE);
    let (mut tree, mut cpu) = tree(&mem, true);
    let units = GIB / PAGE;
    let blocks = GIB / MIB2;
    let map = Map::new(Ipa::new(0), Pa::new(4 * GIB), GIB, Attrs::MEMORY);
    let mut budget = Budget::entries(10 * units);
    tree.map(&mut cpu, &map, &mut budget).expect("mapped");
    assert_eq!(budget.left(), 9 * units - blocks);
    let (ipa, refuse) = (Ipa::new(0), Partial::Refuse);
    let mut budget = Budget::entries(10 * units);
    tree.unmap(
        &mut cpu,
        &Unmap::new(ipa, GIB).partial(refuse),
        &mut Ignore,
        &mut budget,
    )
    .expect("unmapped");
    // Their table is freed, and its entries are looked at.
    assert_eq!(budget.left(), 9 * units - blocks - 513);
}

#[test]
fn a_flush_stops_inside_a_block() {
    let mem = Plain::new(PAGE);
    let (tree, mut cpu) = tree(&mem, true);
    map_clean(&tree, &mut cpu, 0, 4 * GIB, GIB);
    let mut at = 0;
    while at < GIB {
        mem.forget();
        let next = tree.flush_caches(&mut cpu, Ipa::new(at), GIB - at, &mut least());
        assert_eq!(next, Ok(Ipa::new(at + MIB2)));
        assert_eq!(cleaned(&mem), [(4 * GIB + at, MIB2)]);
        at += MIB2;
    }
}

/// What a held entry becomes is cleaned then, in one step.
#[test]
fn what_a_held_entry_becomes_is_cleaned_in_one_step() {
    let mem = Plain::new(PAGE);
    let (tree, mut cpu) = tree(&mem, true);
    let leaf = |pa: u64| Change::Leaf(Pa::new(pa), Attrs::MEMORY);
    let level = Level::L1;
    let held = tree.freeze(Ipa::new(0), level).expect("nothing");
    let refused = held.commit(&mut cpu, leaf(8 * GIB));
    assert_eq!(refused, Err(Error::BlockLevel { level }));
    assert_eq!(tree.lookup(Ipa::new(0)).expect("inside").raw, 0);
    map_clean(&tree, &mut cpu, 0, 4 * GIB, MIB2);
    mem.forget();
    let held = tree.freeze(Ipa::new(0), Level::L2).expect("a leaf");
    held.commit(&mut cpu, leaf(16 * GIB)).expect("a legal leaf");
    assert_eq!(cleaned(&mem), [(16 * GIB, MIB2)]);
    let (pa, _) = tree.translate(Ipa::new(0)).expect("mapped");
    assert_eq!(pa, Pa::new(16 * GIB));
}

/// Instructions are synchronised for what is executed, after its data.
#[test]
fn instructions_are_synchronised_when_all_is_clean() {
    for (execute, synced) in [(Execute::All, true), (Execute::Never, false)] {
        let mem = Plain::new(PAGE);
        let (tree, mut cpu) = tree(&mem, false);
        let attrs = Attrs {
            execute,
            ..Attrs::MEMORY
        };
        let map = Map::new(Ipa::new(0), Pa::new(4 * GIB), MIB2, attrs);
        tree.map(&mut cpu, &map, &mut all()).expect("mapped");
        let mut want = vec![CacheOp::CleanInvalidateData {
            pa: Pa::new(4 * GIB),
            size: MIB2,
        }];
        want.extend(synced.then_some(CacheOp::InvalidateInstructions));
        assert_eq!(caches(&mem), want);
    }
}

/// What somebody held was told to nobody yet: the end of the tree knows it.
#[test]
fn a_teardown_tells_what_was_held() {
    let mem = Plain::new(PAGE);
    let (mut tree, mut cpu) = tree(&mem, true);
    map_clean(&tree, &mut cpu, 2 * GIB, 8 * GIB, GIB);
    map_clean(&tree, &mut cpu, 5 * GIB, 11 * GIB, MIB2);
    for (at, level) in [(2 * GIB, Level::L1), (5 * GIB, Level::L2)] {
        forget(tree.freeze(Ipa::new(at), level).expect("a leaf"));
    }
    let mut told = Vec::new();
    let mut sink = |leaf: RemovedLeaf| told.push((leaf.ipa().get(), leaf.pa().get()));
    let end = tree.teardown(&mut cpu, Ipa::new(0), &mut sink, &mut all());
    assert_eq!(end, Ipa::new(1 << 39));
    assert_eq!(told, [(2 * GIB, 8 * GIB), (5 * GIB, 11 * GIB)]);
    assert_eq!((mem.live(), count(&mem, &tree)), (0, 0));
}

/// Blocks in a table of tables that map other memory, or the same otherwise, are
/// told when a larger one takes their place; those that say the same are not.
#[test]
fn a_collapse_tells_what_it_replaces() {
    for (from, access, told) in [
        (8 * GIB, Access::ReadWrite, 512),
        (4 * GIB, Access::Read, 512),
        (4 * GIB, Access::ReadWrite, 0),
    ] {
        let mem = Plain::new(PAGE);
        let mut config = Stage2Config::new(Granule::K4, 39, 48);
        config.features.fwb = true;
        let mut tree = mem.tree(config);
        let mut cpu = mem.cpu(tree.regs());
        let attrs = Attrs::MEMORY.access(access);
        let old = Map::new(Ipa::new(0), Pa::new(from), GIB, attrs);
        let blocks = old.leaves(Leaves::Exactly(Level::L2));
        tree.map(&mut cpu, &blocks, &mut all()).expect("mapped");
        let new = Map::new(Ipa::new(0), Pa::new(4 * GIB), GIB, Attrs::MEMORY);
        let mut leaves = 0;
        let mut sink = |leaf: RemovedLeaf| {
            assert_eq!(leaf.pa().get(), from + leaf.ipa().get());
            leaves += 1;
        };
        let new = new.over(Over::Anything);
        tree.map_exclusive(&mut cpu, &new, &mut sink, &mut all())
            .expect("mapped");
        assert_eq!((leaves, mem.live()), (told, 0));
    }
}

/// A table that says the same throughout goes when it does, not before.
#[test]
fn a_note_comes_over_blocks_in_calls_of_a_budget() {
    let mem = Plain::new(PAGE);
    let mut config = Stage2Config::new(Granule::K4, 39, 48);
    config.features.fwb = true;
    let mut tree = mem.tree(config);
    let mut cpu = mem.cpu(tree.regs());
    let map = Map::new(Ipa::new(0), Pa::new(4 * GIB), GIB, Attrs::MEMORY);
    let blocks = map.leaves(Leaves::Exactly(Level::L2));
    tree.map(&mut cpu, &blocks, &mut all()).expect("mapped");
    let note = Annotation::new(0x40).expect("bits 1:0 are zero");
    let (mut at, mut told) = (0, 0);
    while at < GIB {
        let mut sink = |leaf: RemovedLeaf| told += leaf.size();
        let (ipa, rest, refuse) = (Ipa::new(at), GIB - at, Partial::Refuse);
        let budget = &mut Budget::entries(100);
        let next = tree.unmap(
            &mut cpu,
            &Unmap::new(ipa, rest).partial(refuse).leaving(note),
            &mut sink,
            budget,
        );
        let before = at;
        at = next.expect("annotated").get();
        assert_eq!(told, at);
        assert!(told - before <= 100 * MIB2, "more than the budget");
        assert!(at >= GIB || tree.translate(Ipa::new(at)).is_some());
    }
    // What was annotated by earlier calls keeps its table.
    for at in [0, GIB / 2, GIB - PAGE] {
        let found = tree.lookup(Ipa::new(at)).expect("inside");
        assert_eq!(found.entry, Entry::Invalid(note));
    }
}

/// Pages that were asked for are pages, though they would make a block.
#[test]
fn at_most_a_level_is_no_larger() {
    let mem = Plain::new(PAGE);
    let mut config = Stage2Config::new(Granule::K4, 39, 48);
    (config.features.fwb, config.features.dic) = (true, true);
    let tree = mem.tree(config);
    let mut cpu = mem.cpu(tree.regs());
    for (at, level) in [(0, Level::L3), (GIB, Level::L2)] {
        let map = Map::new(Ipa::new(at), Pa::new(4 * GIB), MIB2, Attrs::MEMORY);
        let leaves = Leaves::AtMost(level);
        tree.map(&mut cpu, &map.leaves(leaves), &mut all())
            .expect("mapped");
        assert_eq!(tree.lookup(Ipa::new(at)).expect("inside").level, level);
    }
}

/// A GiB of pages becomes a block by as many tables a call as the budget says,
/// and is mapped all the while.
#[test]
fn a_collapse_has_a_budget() {
    let mem = Plain::new(PAGE);
    let mut config = Stage2Config::new(Granule::K4, 39, 48);
    config.features.fwb = true;
    config.features.dic = true;
    let mut tree = mem.tree(config);
    let mut cpu = mem.cpu(tree.regs());
    let map = Map::new(Ipa::new(0), Pa::new(4 * GIB), GIB, Attrs::MEMORY);
    let pages = map.leaves(Leaves::Exactly(Level::L3));
    tree.map(&mut cpu, &pages, &mut all()).expect("mapped");
    let (mut told, mut calls) = (0, 0);
    loop {
        let before = mem.live();
        let mut sink = |leaf: RemovedLeaf| {
            // Blocks on the way are this mapping's own, and told to nobody.
            assert_eq!((leaf.level(), leaf.ipa().get()), (Level::L3, told));
            told += leaf.size();
        };
        let map = map.over(Over::Anything);
        let budget = &mut Budget::entries(2000);
        let next = tree.map_exclusive(&mut cpu, &map, &mut sink, budget);
        mem.forget();
        calls += 1;
        assert!(before - mem.live() <= 5, "so many tables in one call");
        for at in (0..GIB).step_by(MIB2 as usize) {
            let (pa, _) = tree.translate(Ipa::new(at)).expect("mapped all the time");
            assert_eq!(pa, Pa::new(4 * GIB + at));
        }
        if next == Ok(Ipa::new(GIB)) {
            break;
        }
        assert_eq!(next, Ok(Ipa::new(0)));
        assert!(calls < 1000);
    }
    assert_eq!((told, mem.live()), (GIB, 0));
    assert_eq!(tree.lookup(Ipa::new(0)).expect("inside").level, Level::L1);
    assert_eq!(count(&mem, &tree), 1);
}

/// Any bits but \[1:0\] may be in a note, those that mark frozen entries, too.
#[test]
fn a_note_is_no_frozen_entry_whatever_is_in_it() {
    let mem = Plain::new(PAGE);
    let (mut tree, mut cpu) = tree(&mem, true);
    let (ipa, refuse) = (Ipa::new(0), Partial::Refuse);
    for marks in 0..4 {
        let raw = marks << 61 | 1 << 63 | 0x40;
        let note = Annotation::new(raw).expect("bits 1:0 are zero");
        tree.unmap(
            &mut cpu,
            &Unmap::new(ipa, GIB).partial(refuse).leaving(note),
            &mut Ignore,
            &mut all(),
        )
        .expect("annotated");
        let exists = Err(Error::Exists { level: Level::L1 });
        let map = Map::new(ipa, Pa::new(4 * GIB), GIB, Attrs::MEMORY).caches(Caches::Skip);
        let done = tree.map_exclusive(&mut cpu, &map, &mut Ignore, &mut all());
        assert_eq!(done.map_err(|stopped| stopped.why), exists);
        let done = tree.map(&mut cpu, &map, &mut all());
        assert_eq!(done.map_err(|stopped| stopped.why), exists);
        assert_eq!(tree.lookup(ipa).expect("inside").raw, raw);
    }
}

/// Nothing says that TLBs have forgotten what somebody held who was forgotten:
/// whoever takes it out invalidates it.
#[test]
fn a_leaf_that_was_held_and_forgotten_is_invalidated() {
    let mem = Plain::new(PAGE);
    let (mut tree, mut cpu) = tree(&mem, true);
    let (page, size) = (Ipa::new(5 * GIB + 3 * PAGE), 2 * PAGE);
    let map =
        Map::new(page, Pa::new(8 * GIB), size, Attrs::MEMORY).leaves(Leaves::Exactly(Level::L3));
    tree.map(&mut cpu, &map, &mut all()).expect("mapped");
    forget(tree.freeze(page, Level::L3).expect("a leaf"));
    mem.forget();
    let mut told = Vec::new();
    let mut sink = |leaf: RemovedLeaf| told.push((leaf.ipa().get(), leaf.pa().get()));
    let refuse = Partial::Refuse;
    let done = tree.unmap(
        &mut cpu,
        &Unmap::new(page, PAGE).partial(refuse),
        &mut sink,
        &mut all(),
    );
    assert_eq!(done, Ok(Ipa::new(page.get() + PAGE)));
    assert_eq!(told, [(page.get(), 8 * GIB)]);
    assert_eq!(hit(&mem), [page.get()]);
    assert_eq!(tree.lookup(page).expect("inside").raw, 0);
    // The other page goes, and with it the tables: nothing was left counted.
    let other = Ipa::new(page.get() + PAGE);
    tree.unmap(
        &mut cpu,
        &Unmap::new(other, PAGE).partial(refuse),
        &mut Ignore,
        &mut all(),
    )
    .expect("unmapped");
    assert_eq!((mem.live(), count(&mem, &tree)), (0, 0));
}

/// The pages that were invalidated by address.
fn hit(mem: &Plain) -> Vec<u64> {
    let at = |did: &Did| match did {
        Did::Tlbi(op) if op.kind() == pgtable::TlbiKind::Ipas2e1is => {
            Some((op.operand() & 0xff_ffff_ffff) << 12)
        }
        _ => None,
    };
    mem.changes().iter().filter_map(at).collect()
}

/// As above for what a gather holds that was forgotten.
#[test]
fn a_leaf_of_a_gather_that_was_forgotten_is_invalidated() {
    let mem = Plain::new(PAGE);
    let (mut tree, mut cpu) = tree(&mem, true);
    let (page, size) = (Ipa::new(5 * GIB + 3 * PAGE), 2 * PAGE);
    let map =
        Map::new(page, Pa::new(8 * GIB), size, Attrs::MEMORY).leaves(Leaves::Exactly(Level::L3));
    tree.map(&mut cpu, &map, &mut all()).expect("mapped");
    let mut gather = tree.gather();
    let refuse = Partial::Refuse;
    tree.unmap_later(
        &mut cpu,
        UnmapLater::new(page, PAGE, &mut gather).partial(refuse),
        &mut all(),
        forget,
    )
    .expect("a leaf");
    drop(gather);
    mem.forget();
    let mut sink = |leaf: RemovedLeaf| panic!("{leaf:?} was told already");
    let done = tree.unmap(
        &mut cpu,
        &Unmap::new(page, PAGE).partial(refuse),
        &mut sink,
        &mut all(),
    );
    assert_eq!(done, Ok(Ipa::new(page.get() + PAGE)));
    assert_eq!(hit(&mem), [page.get()]);
    let other = Ipa::new(page.get() + PAGE);
    tree.unmap(
        &mut cpu,
        &Unmap::new(other, PAGE).partial(refuse),
        &mut Ignore,
        &mut all(),
    )
    .expect("unmapped");
    assert_eq!((mem.live(), count(&mem, &tree)), (0, 0));
}

/// Tables are of the levels above 3 whatever memory says: an entry of level 3
/// that looks like a frozen table is a leaf that goes.
#[test]
fn no_table_hangs_below_level_3() {
    let mem = Plain::new(PAGE);
    let (mut tree, mut cpu) = tree(&mem, true);
    let page = Map::new(Ipa::new(0), Pa::new(8 * GIB), PAGE, Attrs::MEMORY)
        .leaves(Leaves::Exactly(Level::L3));
    tree.map(&mut cpu, &page, &mut all()).expect("mapped");
    let at = mem
        .did
        .take()
        .into_iter()
        .rev()
        .find_map(|did| match did {
            Did::Write { pa, .. } => Some(pa),
            _ => None,
        })
        .expect("the page's entry was written last");
    mem.poke(at, (1 << 63) | (9 * GIB) | 0b10);
    let mut told = Vec::new();
    let mut sink = |leaf: RemovedLeaf| told.push(leaf.pa().get());
    let (ipa, refuse) = (Ipa::new(0), Partial::Refuse);
    tree.unmap(
        &mut cpu,
        &Unmap::new(ipa, MIB2).partial(refuse),
        &mut sink,
        &mut all(),
    )
    .expect("unmapped");
    assert_eq!(told, [9 * GIB]);
    assert_eq!(mem.live(), 0);
}

/// A held note is kept by who holds it, and counted by nobody meanwhile.
#[test]
fn a_note_that_was_held_and_forgotten_leaves_no_count() {
    let mem = Plain::new(PAGE);
    let (mut tree, mut cpu) = tree(&mem, true);
    let note = Annotation::new(0x40).expect("bits 1:0 are zero");
    let (ipa, refuse) = (Ipa::new(0), Partial::Refuse);
    tree.unmap(
        &mut cpu,
        &Unmap::new(ipa, GIB).partial(refuse).leaving(note),
        &mut Ignore,
        &mut all(),
    )
    .expect("annotated");
    forget(tree.freeze(ipa, Level::L1).expect("a note"));
    assert_eq!(count(&mem, &tree), 0);
    tree.unmap(
        &mut cpu,
        &Unmap::new(ipa, GIB).partial(refuse),
        &mut Ignore,
        &mut all(),
    )
    .expect("unmapped");
    assert_eq!(tree.lookup(ipa).expect("inside").raw, 0);
    assert_eq!(count(&mem, &tree), 0);
}

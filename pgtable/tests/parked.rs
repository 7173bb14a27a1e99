//! Blocks whose memory takes more cleaning than a call may do: who goes on
//! with what was begun, who may take its place, and who has to wait.

mod plain;

use pgtable::{
    Access, Annotation, Attrs, Barrier, Budget, CacheOp, Change, Entry, Error, Execute, Features,
    Granule, Ignore, Ipa, Leaves, Level, Maintenance, Map, Over, Pa, Partial, RemovedLeaf, Stage2,
    Stage2Config, Stage2Regs, TableMem, Tlbi, Vmid,
};
use plain::{Cpu, Did, Plain};
use std::mem::forget;

const PAGE: u64 = 4096;
const MIB2: u64 = 2 << 20;
const GIB: u64 = 1 << 30;
/// Where the marks of frozen entries are: held, coming, going.
const MARKS: u64 = 0b11 << 61;

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

fn block(pa: u64) -> Map {
    Map::new(Ipa::new(0), Pa::new(pa), GIB, Attrs::MEMORY)
}

/// Begins to map a block at 0, which nobody goes on with.
fn begin(tree: &Stage2<&Plain>, cpu: &mut Cpu<'_>, pa: u64) {
    let begun = tree.map(cpu, &block(pa), &mut least());
    assert_eq!(begun, Ok(Ipa::new(0)));
    let found = tree.lookup(Ipa::new(0)).expect("inside");
    assert_eq!((found.level, found.entry), (Level::L1, Entry::Frozen));
}

fn count(mem: &Plain, tree: &Stage2<&Plain>) -> u32 {
    mem.count(tree.root())
}

fn mapped_to(tree: &Stage2<&Plain>) -> Option<u64> {
    tree.translate(Ipa::new(0)).map(|(pa, _)| pa.get())
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

#[test]
fn a_block_that_was_begun_with_less_is_finished_with_more() {
    let mem = Plain::new(PAGE);
    let (tree, mut cpu) = tree(&mem, true);
    begin(&tree, &mut cpu, 4 * GIB);
    assert_eq!(count(&mem, &tree), 0);
    let done = tree.map(&mut cpu, &block(4 * GIB), &mut all());
    assert_eq!(done, Ok(Ipa::new(GIB)));
    assert_eq!(mapped_to(&tree), Some(4 * GIB));
    assert_eq!(count(&mem, &tree), 1);
}

/// A note counts in its table, a block that is coming does not.
#[test]
fn a_block_that_comes_over_a_note_counts_once() {
    let mem = Plain::new(PAGE);
    let (mut tree, mut cpu) = tree(&mem, true);
    let note = Annotation::new(0x40).expect("bits 1:0 are zero");
    let (ipa, refuse) = (Ipa::new(0), Partial::Refuse);
    tree.annotate(&mut cpu, ipa, GIB, note, refuse, &mut Ignore, &mut all())
        .expect("annotated");
    assert_eq!(count(&mem, &tree), 1);
    let map = block(4 * GIB).over(Over::Invalid);
    let mut calls = 0;
    while tree.map(&mut cpu, &map, &mut least()) == Ok(ipa) {
        assert_eq!(count(&mem, &tree), 0);
        calls += 1;
        assert!(calls < 1000);
    }
    assert_eq!((calls, count(&mem, &tree)), (511, 1));
    assert_eq!(mapped_to(&tree), Some(4 * GIB));
}

/// Data in steps, then instructions once for all of it; and not even that for
/// what nobody executes, whatever stood there.
#[test]
fn instructions_are_synchronised_when_all_is_clean() {
    for (execute, over) in [
        (Execute::All, Over::Nothing),
        (Execute::Never, Over::Nothing),
        (Execute::Never, Over::Anything),
    ] {
        let mem = Plain::new(PAGE);
        let (tree, mut cpu) = tree(&mem, false);
        let attrs = Attrs::MEMORY.execute(execute);
        if over == Over::Anything {
            let old = Map {
                attrs,
                ..block(8 * GIB)
            };
            tree.map(&mut cpu, &old, &mut all()).expect("mapped");
        }
        mem.forget();
        let map = Map {
            attrs,
            ..block(4 * GIB)
        };
        let mut calls = 0;
        while tree.map(&mut cpu, &map.over(over), &mut least()) == Ok(Ipa::new(0)) {
            calls += 1;
            assert!(calls < 3000);
        }
        assert_eq!(mapped_to(&tree), Some(4 * GIB));
        let done = caches(&mem);
        let sync = CacheOp::InvalidateInstructions;
        let syncs: Vec<_> = done
            .iter()
            .filter(|op| matches!(op, CacheOp::InvalidateInstructions))
            .collect();
        if execute == Execute::All {
            assert_eq!(syncs, [&sync]);
            assert_eq!(done.last(), Some(&sync));
        } else {
            assert!(syncs.is_empty(), "{syncs:?}");
        }
    }
}

/// Beside others nobody knows whether they come back.
#[test]
fn what_another_began_is_in_the_way_of_shared_mappings() {
    let mem = Plain::new(PAGE);
    let (tree, mut cpu) = tree(&mem, true);
    begin(&tree, &mut cpu, 4 * GIB);
    let before = tree.lookup(Ipa::new(0)).expect("inside").raw;
    for over in [Over::Nothing, Over::Invalid, Over::Anything] {
        for mut budget in [least(), all()] {
            let other = tree.map(&mut cpu, &block(8 * GIB).over(over), &mut budget);
            assert_eq!(other.map_err(|stopped| stopped.why), Err(Error::Busy));
            assert_eq!(tree.lookup(Ipa::new(0)).expect("inside").raw, before);
        }
    }
}

/// Alone, what is still coming was given up.
#[test]
fn what_was_given_up_is_not_in_the_way_of_exclusive_mappings() {
    for units in [1, u64::MAX] {
        let mem = Plain::new(PAGE);
        let (mut tree, mut cpu) = tree(&mem, true);
        begin(&tree, &mut cpu, 4 * GIB);
        let map = block(8 * GIB);
        let mut calls = 0;
        loop {
            let mut budget = Budget::entries(units);
            let next = tree.map_exclusive(&mut cpu, &map, &mut Ignore, &mut budget);
            if next == Ok(Ipa::new(GIB)) {
                break;
            }
            assert_eq!((next, count(&mem, &tree)), (Ok(Ipa::new(0)), 0));
            calls += 1;
            assert!(calls < 1000);
        }
        assert_eq!(mapped_to(&tree), Some(8 * GIB));
        assert_eq!(count(&mem, &tree), 1);
    }
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
        tree.annotate(&mut cpu, ipa, GIB, note, refuse, &mut Ignore, &mut all())
            .expect("annotated");
        let exists = Err(Error::Exists { level: Level::L1 });
        let map = block(4 * GIB);
        let done = tree.map_exclusive(&mut cpu, &map, &mut Ignore, &mut all());
        assert_eq!(done.map_err(|stopped| stopped.why), exists);
        let done = tree.map(&mut cpu, &map, &mut all());
        assert_eq!(done.map_err(|stopped| stopped.why), exists);
        assert_eq!(tree.lookup(ipa).expect("inside").raw, raw);
    }
}

/// A CPU that looks at something whenever it maintains caches.
struct Watching<'m, F: FnMut(CacheOp)>(Cpu<'m>, F);

impl<F: FnMut(CacheOp)> Maintenance for Watching<'_, F> {
    fn barrier(&mut self, barrier: Barrier) {
        self.0.barrier(barrier);
    }
    fn tlbi(&mut self, op: Tlbi) {
        self.0.tlbi(op);
    }
    fn cache(&mut self, op: CacheOp) {
        (self.1)(op);
        self.0.cache(op);
    }
    fn stage2(&mut self) -> Stage2Regs {
        self.0.stage2()
    }
    fn set_stage2(&mut self, regs: Stage2Regs) {
        self.0.set_stage2(regs);
    }
}

/// Of two that go on with the same entry only one cleans and tells the rest.
#[test]
fn who_maps_over_a_block_that_is_going_holds_it_first() {
    let mem = Plain::new(PAGE);
    let (tree, mut cpu) = tree(&mem, true);
    tree.map(&mut cpu, &block(4 * GIB), &mut all())
        .expect("mapped");
    let (ipa, refuse) = (Ipa::new(0), Partial::Refuse);
    let mut told = Vec::new();
    let mut sink = |leaf: RemovedLeaf| told.push((leaf.pa().get(), leaf.size()));
    let next = tree.unmap_leaves(&mut cpu, ipa, GIB, refuse, &mut sink, &mut least());
    assert_eq!(next, Ok(Ipa::new(MIB2)));
    assert_eq!(told, [(4 * GIB, MIB2)]);
    mem.forget();
    let mut marks = Vec::new();
    let look = |op: CacheOp| {
        let CacheOp::CleanInvalidateData { pa, .. } = op else {
            return;
        };
        let raw = tree.lookup(ipa).expect("inside").raw;
        marks.push((pa.get(), raw & 0b11, (raw & MARKS) >> 61));
    };
    let map = block(8 * GIB).over(Over::Anything);
    let mut watching = Watching(mem.cpu(tree.regs()), look);
    let done = tree.map(&mut watching, &map, &mut all());
    assert_eq!(done, Ok(Ipa::new(GIB)));
    // The new memory while the old is parked, the old while it is held.
    let want = [(8 * GIB, 0b10, 0b10), (4 * GIB + MIB2, 0b10, 0b00)];
    assert_eq!(marks, want);
    assert_eq!(
        cleaned(&mem),
        [(8 * GIB, GIB), (4 * GIB + MIB2, GIB - MIB2)]
    );
    assert_eq!(mapped_to(&tree), Some(8 * GIB));
    assert_eq!(count(&mem, &tree), 1);
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
    let mut sink = |leaf: RemovedLeaf| told.push((leaf.ia(), leaf.pa().get()));
    let refuse = Partial::Refuse;
    let done = tree.unmap(&mut cpu, page, PAGE, refuse, &mut sink, &mut all());
    assert_eq!(done, Ok(Ipa::new(page.get() + PAGE)));
    assert_eq!(told, [(page.get(), 8 * GIB)]);
    assert_eq!(hit(&mem), [page.get()]);
    assert_eq!(tree.lookup(page).expect("inside").raw, 0);
    // The other page goes, and with it the tables: nothing was left counted.
    let other = Ipa::new(page.get() + PAGE);
    tree.unmap(&mut cpu, other, PAGE, refuse, &mut Ignore, &mut all())
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
        page,
        PAGE,
        refuse,
        &mut gather,
        &mut all(),
        forget,
    )
    .expect("a leaf");
    drop(gather);
    mem.forget();
    let mut sink = |leaf: RemovedLeaf| panic!("{leaf:?} was told already");
    let done = tree.unmap(&mut cpu, page, PAGE, refuse, &mut sink, &mut all());
    assert_eq!(done, Ok(Ipa::new(page.get() + PAGE)));
    assert_eq!(hit(&mem), [page.get()]);
    let other = Ipa::new(page.get() + PAGE);
    tree.unmap(&mut cpu, other, PAGE, refuse, &mut Ignore, &mut all())
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
    mem.poke(at, (1 << 63) | (2 << 61) | (9 * GIB) | 0b10);
    let mut told = Vec::new();
    let mut sink = |leaf: RemovedLeaf| told.push(leaf.pa().get());
    let (ipa, refuse) = (Ipa::new(0), Partial::Refuse);
    tree.unmap(&mut cpu, ipa, MIB2, refuse, &mut sink, &mut all())
        .expect("unmapped");
    assert_eq!(told, [9 * GIB]);
    assert_eq!(mem.live(), 0);
}

/// Memory that is mapped already is not cleaned again for other permissions.
#[test]
fn a_block_that_permits_something_else_changes_in_one_call() {
    let mem = Plain::new(PAGE);
    let (tree, mut cpu) = tree(&mem, true);
    tree.map(&mut cpu, &block(4 * GIB), &mut all())
        .expect("mapped");
    mem.forget();
    let map = Map {
        attrs: Attrs::MEMORY.access(Access::Read),
        ..block(4 * GIB)
    };
    let mut calls = 1;
    while tree.map(&mut cpu, &map.over(Over::Anything), &mut least()) == Ok(Ipa::new(0)) {
        calls += 1;
        assert!(calls < 1000);
    }
    let (pa, attrs) = tree.translate(Ipa::new(0)).expect("mapped");
    assert_eq!((pa, attrs.access), (Pa::new(4 * GIB), Access::Read));
    assert_eq!((calls, count(&mem, &tree)), (1, 1));
    assert_eq!(cleaned(&mem), []);
}

/// What cleaning costs is in the budget: one unit for each 4 KiB.
#[test]
fn cleaning_is_spent_by_its_bytes() {
    let mem = Plain::new(PAGE);
    let (mut tree, mut cpu) = tree(&mem, true);
    let units = GIB / PAGE;
    let mut budget = Budget::entries(10 * units);
    tree.map(&mut cpu, &block(4 * GIB), &mut budget)
        .expect("mapped");
    assert_eq!(budget.left(), 9 * units - 1);
    let (ipa, refuse) = (Ipa::new(0), Partial::Refuse);
    let mut budget = Budget::entries(10 * units);
    tree.unmap(&mut cpu, ipa, GIB, refuse, &mut Ignore, &mut budget)
        .expect("unmapped");
    assert_eq!(budget.left(), 9 * units - 1);
}

/// What was broken together is released one by one as far as the budget goes.
#[test]
fn of_several_blocks_one_is_cleaned_when_nothing_is_left() {
    let mem = Plain::new(PAGE);
    let (mut tree, mut cpu) = tree(&mem, true);
    let size = 8 * MIB2;
    // One more stays, and their table with it.
    let map = Map::new(Ipa::new(0), Pa::new(4 * GIB), size + MIB2, Attrs::MEMORY);
    tree.map(&mut cpu, &map, &mut all()).expect("mapped");
    mem.forget();
    let mut told = Vec::new();
    for block in 0..8 {
        let at = Ipa::new(block * MIB2);
        let (rest, refuse) = (size - at.get(), Partial::Refuse);
        // As many entries as there are blocks, and then cleaning.
        let mut budget = Budget::entries(8);
        let mut sink = |leaf: RemovedLeaf| told.push(leaf.ia());
        let next = tree.unmap(&mut cpu, at, rest, refuse, &mut sink, &mut budget);
        assert_eq!(next, Ok(Ipa::new(at.get() + MIB2)));
        assert_eq!(cleaned(&mem), [(4 * GIB + at.get(), MIB2)]);
    }
    assert_eq!(told, (0..8).map(|at| at * MIB2).collect::<Vec<_>>());
}

#[test]
fn a_flush_stops_inside_a_block() {
    let mem = Plain::new(PAGE);
    let (tree, mut cpu) = tree(&mem, true);
    tree.map(&mut cpu, &block(4 * GIB), &mut all())
        .expect("mapped");
    mem.forget();
    let mut at = 0;
    while at < GIB {
        let next = tree.flush_caches(&mut cpu, Ipa::new(at), GIB - at, &mut least());
        assert_eq!(next, Ok(Ipa::new(at + MIB2)));
        assert_eq!(cleaned(&mem), [(4 * GIB + at, MIB2)]);
        at += MIB2;
    }
}

/// An entry that is held for a change: its memory is cleaned in steps, anew
/// for another page, and once.
#[test]
fn what_a_held_entry_becomes_is_cleaned_once() {
    let mem = Plain::new(PAGE);
    let (tree, mut cpu) = tree(&mem, true);
    tree.map(&mut cpu, &block(4 * GIB), &mut all())
        .expect("mapped");
    mem.forget();
    let mut held = tree.freeze(Ipa::new(0), Level::L1).expect("a leaf");
    let leaf = |pa: u64| Change::Leaf(Pa::new(pa), Attrs::MEMORY);
    // Somebody changes their mind after a step.
    assert!(!held.clean(&mut cpu, &leaf(8 * GIB), &mut least()));
    assert_eq!(cleaned(&mem), [(8 * GIB, MIB2)]);
    let mut calls = 1;
    while !held.clean(&mut cpu, &leaf(16 * GIB), &mut least()) {
        calls += 1;
        assert!(calls < 1000);
    }
    assert_eq!(calls, GIB / MIB2);
    let steps: Vec<_> = (0..calls).map(|at| (16 * GIB + at * MIB2, MIB2)).collect();
    assert_eq!(cleaned(&mem), steps);
    assert!(held.clean(&mut cpu, &leaf(16 * GIB), &mut least()));
    held.commit(&mut cpu, leaf(16 * GIB)).expect("a legal leaf");
    assert_eq!(cleaned(&mem), []);
    assert_eq!(mapped_to(&tree), Some(16 * GIB));
}

/// What somebody held was told to nobody yet, what only was to come is no
/// leaf: the end of the tree knows both.
#[test]
fn a_teardown_tells_what_was_held_and_not_what_was_to_come() {
    let mem = Plain::new(PAGE);
    let (mut tree, mut cpu) = tree(&mem, true);
    let third = Map {
        ipa: Ipa::new(2 * GIB),
        ..block(8 * GIB)
    };
    begin(&tree, &mut cpu, 4 * GIB);
    tree.map(&mut cpu, &third, &mut all()).expect("mapped");
    forget(tree.freeze(third.ipa, Level::L1).expect("a leaf"));
    let mut told = Vec::new();
    let mut sink = |leaf: RemovedLeaf| told.push((leaf.ia(), leaf.pa().get()));
    let end = tree.teardown(&mut cpu, Ipa::new(0), &mut sink, &mut all());
    assert_eq!(end, Ipa::new(1 << 39));
    assert_eq!(told, [(2 * GIB, 8 * GIB)]);
    assert_eq!(count(&mem, &tree), 0);
}

/// The same below the root, where a table goes with all that is in it.
#[test]
fn a_table_that_goes_tells_leaves_and_not_what_was_to_come() {
    let mem = Plain::new(PAGE);
    let geometry = Stage2Config::new(Granule::K4, 48, 48)
        .validate()
        .expect("legal");
    let root = mem.root(geometry.root_align());
    let mut tree = Stage2::new(geometry, root, Vmid::new(3), &mem).expect("a root");
    let mut cpu = mem.cpu(tree.regs());
    begin(&tree, &mut cpu, 4 * GIB);
    let second = Map {
        ipa: Ipa::new(GIB),
        ..block(8 * GIB)
    };
    tree.map(&mut cpu, &second, &mut all()).expect("mapped");
    let mut told = Vec::new();
    let mut sink = |leaf: RemovedLeaf| told.push((leaf.ia(), leaf.pa().get()));
    let (ipa, refuse) = (Ipa::new(0), Partial::Refuse);
    tree.unmap(&mut cpu, ipa, 512 * GIB, refuse, &mut sink, &mut all())
        .expect("unmapped");
    assert_eq!(told, [(GIB, 8 * GIB)]);
    assert_eq!((mem.live(), count(&mem, &tree)), (0, 0));
}

/// A held note is kept by who holds it, and counted by nobody meanwhile.
#[test]
fn a_note_that_was_held_and_forgotten_leaves_no_count() {
    let mem = Plain::new(PAGE);
    let (mut tree, mut cpu) = tree(&mem, true);
    let note = Annotation::new(0x40).expect("bits 1:0 are zero");
    let (ipa, refuse) = (Ipa::new(0), Partial::Refuse);
    tree.annotate(&mut cpu, ipa, GIB, note, refuse, &mut Ignore, &mut all())
        .expect("annotated");
    forget(tree.freeze(ipa, Level::L1).expect("a note"));
    assert_eq!(count(&mem, &tree), 0);
    tree.unmap(&mut cpu, ipa, GIB, refuse, &mut Ignore, &mut all())
        .expect("unmapped");
    assert_eq!(tree.lookup(ipa).expect("inside").raw, 0);
    assert_eq!(count(&mem, &tree), 0);
}

/// 512 units for 512 entries, and none for the GiB of old memory behind them.
#[test]
fn blocks_that_are_replaced_are_cleaned_as_the_budget_says() {
    let mem = Plain::new(PAGE);
    let (tree, mut cpu) = tree(&mem, true);
    let map = |pa: u64, attrs| {
        Map { attrs, ..block(pa) }
            .leaves(Leaves::Exactly(Level::L2))
            .over(Over::Anything)
    };
    tree.map(&mut cpu, &map(4 * GIB, Attrs::MEMORY), &mut all())
        .expect("mapped");
    mem.forget();
    let device = map(8 * GIB, Attrs::DEVICE);
    let next = tree.map(&mut cpu, &device, &mut Budget::entries(512));
    let bytes: u64 = cleaned(&mem).iter().map(|(_, size)| size).sum();
    assert!(bytes <= 2 * MIB2, "{next:?}: {bytes:#x} bytes in one call");
}

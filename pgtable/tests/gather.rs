//! What is gathered stays frozen until its sync, and other operations may come
//! in between: whatever they did, the sync ends, empties what still is held,
//! and touches nothing else.

mod plain;

use pgtable::{
    Access, Annotation, Attrs, Budget, Entry, Execute, Flush, Gather, Granule, Ignore, Ipa, Leaves,
    Level, Map, Pa, Partial, Permissions, RUNS, RemovedLeaf, Stage2, Stage2Config, Sweep, TableMem,
    Unmap, UnmapLater,
};
use plain::{Did, Plain};

const PAGE: u64 = 4096;
const BLOCK: u64 = 2 << 20;

/// The end of a GiB of IPAs is far off.
const BASE: Ipa = Ipa::new(0x4000_0000);

fn tree(mem: &Plain) -> Stage2<&Plain> {
    let mut config = Stage2Config::new(Granule::K4, 39, 48);
    config.features.fwb = true;
    config.features.dic = true;
    mem.tree(config)
}

fn pages(ipa: Ipa, size: u64) -> Map {
    Map::new(ipa, Pa::new(0x8000_0000), size, Attrs::MEMORY).leaves(Leaves::Exactly(Level::L3))
}

fn gathered(mem: &Plain, tree: &Stage2<&Plain>, ipa: Ipa, size: u64) -> Gather {
    let mut gather = tree.gather();
    let done = tree.unmap_later(
        &mut mem.cpu(tree.regs()),
        UnmapLater::new(ipa, size, &mut gather),
        &mut Budget::unlimited(),
        drop,
    );
    assert_eq!(done, Ok(Ipa::new(ipa.get() + size)));
    gather
}

/// Takes `size` bytes out, with their tables.
fn unmap(mem: &Plain, tree: &mut Stage2<&Plain>, ipa: Ipa, size: u64) {
    let mut cpu = mem.cpu(tree.regs());
    let all = &mut Budget::unlimited();
    let done = tree.unmap(&mut cpu, &Unmap::new(ipa, size), &mut Ignore, all);
    assert_eq!(done, Ok(Ipa::new(ipa.get() + size)));
}

#[test]
fn a_sync_ends_when_its_table_is_gone() {
    let mem = Plain::new(PAGE);
    let mut tree = tree(&mem);
    let mut cpu = mem.cpu(tree.regs());
    let all = &mut Budget::unlimited();
    tree.map(&mut cpu, &pages(BASE, 2 * PAGE), all).unwrap();
    let gather = gathered(&mem, &tree, BASE, PAGE);
    unmap(&mem, &mut tree, BASE, BLOCK);
    let _synced = tree.sync(&mut cpu, gather).expect("of this tree");
    assert_eq!(tree.translate(BASE), None);
}

#[test]
fn a_sync_leaves_a_block_that_came_in_its_place() {
    let mem = Plain::new(PAGE);
    let mut tree = tree(&mem);
    let mut cpu = mem.cpu(tree.regs());
    let all = &mut Budget::unlimited();
    tree.map(&mut cpu, &pages(BASE, BLOCK), all).unwrap();
    let gather = gathered(&mem, &tree, BASE, BLOCK);
    unmap(&mem, &mut tree, BASE, BLOCK);
    let block = Map::new(BASE, Pa::new(0x9000_0000), BLOCK, Attrs::MEMORY);
    tree.map(&mut cpu, &block, all).unwrap();
    let _synced = tree.sync(&mut cpu, gather).expect("of this tree");
    let (pa, _) = tree.translate(BASE).expect("it is mapped");
    assert_eq!(pa, block.pa);
}

#[test]
fn a_sync_empties_what_is_left_behind_a_table_that_is_gone() {
    let mem = Plain::new(PAGE);
    let mut tree = tree(&mem);
    let mut cpu = mem.cpu(tree.regs());
    let all = &mut Budget::unlimited();
    let first = Ipa::new(BASE.get() + BLOCK - 2 * PAGE);
    tree.map(&mut cpu, &pages(first, 4 * PAGE), all).unwrap();
    let gather = gathered(&mem, &tree, first, 4 * PAGE);
    unmap(&mem, &mut tree, BASE, BLOCK);
    let _synced = tree.sync(&mut cpu, gather).expect("of this tree");
    for n in 0..4 {
        let found = tree.lookup(Ipa::new(first.get() + n * PAGE)).unwrap();
        let empty = matches!(found.entry, Entry::Invalid(note) if note.get() == 0);
        assert!(empty, "page {n}: {found:x?}");
    }
    // And can be mapped again.
    tree.map(&mut cpu, &pages(first, 4 * PAGE), all).unwrap();
}

/// A block that came in the place of pages, and is itself on its way out.
#[test]
fn a_sync_leaves_what_another_gather_holds() {
    let mem = Plain::new(PAGE);
    let mut tree = tree(&mem);
    let mut cpu = mem.cpu(tree.regs());
    let all = &mut Budget::unlimited();
    for first in [BASE.get(), BASE.get() + BLOCK - PAGE] {
        let first = Ipa::new(first);
        tree.map(&mut cpu, &pages(first, PAGE), all).unwrap();
        let ours = gathered(&mem, &tree, first, PAGE);
        unmap(&mem, &mut tree, BASE, BLOCK);
        let block = Map::new(BASE, Pa::new(0x9000_0000), BLOCK, Attrs::MEMORY);
        tree.map(&mut cpu, &block, all).unwrap();
        let theirs = gathered(&mem, &tree, BASE, BLOCK);
        let before = tree.lookup(BASE).unwrap();
        let _synced = tree.sync(&mut cpu, ours);
        assert_eq!(tree.lookup(BASE).unwrap().raw, before.raw);
        let _synced = tree.sync(&mut cpu, theirs);
        assert_eq!(tree.lookup(BASE).unwrap().raw, 0);
    }
}

#[test]
fn a_sync_leaves_an_entry_that_somebody_holds() {
    let mem = Plain::new(PAGE);
    let mut tree = tree(&mem);
    let mut cpu = mem.cpu(tree.regs());
    let all = &mut Budget::unlimited();
    tree.map(&mut cpu, &pages(BASE, BLOCK), all).unwrap();
    // A second table keeps the first one's parent.
    let beside = Ipa::new(BASE.get() + BLOCK);
    tree.map(&mut cpu, &pages(beside, PAGE), all).unwrap();
    let gather = gathered(&mem, &tree, BASE, BLOCK);
    unmap(&mem, &mut tree, BASE, BLOCK);
    let held = tree.freeze(BASE, Level::L2).unwrap();
    let _synced = tree.sync(&mut cpu, gather).expect("of this tree");
    assert_eq!(tree.lookup(BASE).unwrap().entry, Entry::Frozen);
    drop(held);
    assert_eq!(tree.lookup(BASE).unwrap().raw, 0);
}

/// The places of a gather are invalidated when there is no room for one more,
/// and not before.
#[test]
fn a_gather_makes_room_for_one_place_more() {
    for removes in [true, false] {
        let mem = Plain::new(PAGE);
        let tree = tree(&mem);
        let mut cpu = mem.cpu(tree.regs());
        let all = &mut Budget::unlimited();
        let place = |place: usize| Ipa::new(BASE.get() + place as u64 * 4 * PAGE);
        let mut gather = tree.gather();
        let frozen = |at: Ipa| tree.lookup(at).unwrap().entry == Entry::Frozen;
        for at in (0..=RUNS).map(place) {
            tree.map(&mut cpu, &pages(at, PAGE), all).unwrap();
        }
        for at in (0..RUNS).map(place) {
            let partial = Partial::Refuse;
            tree.unmap_later(
                &mut cpu,
                UnmapLater::new(at, PAGE, &mut gather).partial(partial),
                all,
                drop,
            )
            .unwrap();
        }
        assert!((0..RUNS).map(place).all(frozen));
        // A leaf that only changes makes room, too: it is beside what is held.
        let at = place(RUNS);
        if removes {
            let partial = Partial::Refuse;
            tree.unmap_later(
                &mut cpu,
                UnmapLater::new(at, PAGE, &mut gather).partial(partial),
                all,
                drop,
            )
            .unwrap();
        } else {
            let later = Flush::Later(&mut gather);
            tree.write_protect(
                &mut cpu,
                Sweep {
                    flush: later,
                    ..Sweep::new(at, PAGE)
                },
                all,
            )
            .unwrap();
        }
        assert!(!(0..RUNS).map(place).any(frozen));
        assert_eq!(frozen(at), removes);
        let _synced = tree.sync(&mut cpu, gather).expect("of this tree");
        assert!(!frozen(at));
    }
}

/// Changed leaves are held by nobody: more places than are kept apart are
/// covered by fewer.
#[test]
fn a_gather_of_changes_waits_for_its_sync() {
    let mem = Plain::new(PAGE);
    let tree = tree(&mem);
    let mut cpu = mem.cpu(tree.regs());
    let all = &mut Budget::unlimited();
    let mut gather = tree.gather();
    for place in 0..2 * RUNS as u64 {
        let at = Ipa::new(BASE.get() + place * 4 * PAGE);
        tree.map(&mut cpu, &pages(at, PAGE), all).unwrap();
        mem.forget();
        let later = Flush::Later(&mut gather);
        tree.write_protect(
            &mut cpu,
            Sweep {
                flush: later,
                ..Sweep::new(at, PAGE)
            },
            all,
        )
        .unwrap();
        let tlbi = |did: &Did| matches!(did, Did::Tlbi(_));
        assert!(!mem.changes().iter().any(tlbi), "at place {place}");
    }
    let _synced = tree.sync(&mut cpu, gather).expect("of this tree");
}

/// Leaves that were taken out beside leaves that were changed: what is emptied is what
/// was taken out, all of it, whichever came first.
#[test]
fn what_is_taken_out_beside_what_is_changed_is_emptied() {
    for (changed, taken) in [(0, 1), (1, 0)] {
        let mem = Plain::new(PAGE);
        let tree = tree(&mem);
        let mut cpu = mem.cpu(tree.regs());
        let all = &mut Budget::unlimited();
        tree.map(&mut cpu, &pages(BASE, 4 * PAGE), all).unwrap();
        let at = |page| Ipa::new(BASE.get() + page * PAGE);
        for changed_first in [true, false] {
            let mut gather = tree.gather();
            for is_change in [changed_first, !changed_first] {
                if is_change {
                    let range = Sweep::new(at(changed), PAGE).later(&mut gather);
                    tree.write_protect(&mut cpu, range, all).unwrap();
                } else {
                    let range = UnmapLater::new(at(taken), PAGE, &mut gather);
                    tree.unmap_later(&mut cpu, range, all, drop).unwrap();
                }
            }
            let _synced = tree.sync(&mut cpu, gather).expect("of this tree");
            let empty = tree.lookup(at(taken)).unwrap().entry;
            assert_eq!(empty, Entry::Invalid(Annotation::EMPTY));
            assert!(tree.translate(at(changed)).is_some());
            // And again, the other way round.
            let again = Map {
                pa: Pa::new(0x9000_0000),
                ..pages(at(taken), PAGE)
            };
            tree.map(&mut cpu, &again, all).unwrap();
            let again = Permissions {
                access: Access::ReadWrite,
                execute: Execute::All,
            };
            tree.relax(&mut cpu, at(changed), again).unwrap();
        }
    }
}

/// A gather that is full of changes has no room for a leaf that is taken out: it is
/// flushed before, and the leaf is in a place of its own, which the sync empties.
#[test]
fn a_gather_full_of_changes_makes_room_for_what_is_taken_out() {
    let mem = Plain::new(PAGE);
    let tree = tree(&mem);
    let mut cpu = mem.cpu(tree.regs());
    let all = &mut Budget::unlimited();
    let mut gather = tree.gather();
    let at = |place: usize| Ipa::new(BASE.get() + place as u64 * 4 * PAGE);
    for place in 0..=RUNS {
        tree.map(&mut cpu, &pages(at(place), PAGE), all).unwrap();
    }
    for place in 0..RUNS {
        let range = Sweep::new(at(place), PAGE).later(&mut gather);
        tree.write_protect(&mut cpu, range, all).unwrap();
    }
    let last = UnmapLater::new(at(RUNS), PAGE, &mut gather);
    tree.unmap_later(&mut cpu, last, all, drop).unwrap();
    assert_eq!(tree.lookup(at(RUNS)).unwrap().entry, Entry::Frozen);
    let _synced = tree.sync(&mut cpu, gather).expect("of this tree");
    let empty = tree.lookup(at(RUNS)).unwrap().entry;
    assert_eq!(empty, Entry::Invalid(Annotation::EMPTY));
}

/// Who gathered a leaf was told of it: it is not told again with its table.
#[test]
fn what_is_gathered_is_told_once() {
    for whole in [false, true] {
        let mem = Plain::new(PAGE);
        let mut tree = tree(&mem);
        let mut cpu = mem.cpu(tree.regs());
        let all = &mut Budget::unlimited();
        tree.map(&mut cpu, &pages(BASE, 3 * PAGE), all).unwrap();
        let gather = gathered(&mem, &tree, Ipa::new(BASE.get() + PAGE), PAGE);
        let mut told = Vec::new();
        let mut sink = |leaf: RemovedLeaf| told.push(leaf.ipa().get() - BASE.get());
        if whole {
            let end = tree.teardown(&mut cpu, Ipa::new(0), &mut sink, all);
            assert_eq!(end, Ipa::new(1 << 39));
        } else {
            let done = tree.unmap(&mut cpu, &Unmap::new(BASE, BLOCK), &mut sink, all);
            assert_eq!(done, Ok(Ipa::new(BASE.get() + BLOCK)));
        }
        assert_eq!(told, [0, 2 * PAGE]);
        let _synced = tree.sync(&mut cpu, gather).expect("of this tree");
        assert_eq!(mem.live(), 0);
    }
}

/// A budget may end before a teardown comes to anything that is mapped: nothing is cut
/// then. What a gather that was dropped took out of the root is still in TLBs, and
/// counted, whatever the call that finds it.
#[test]
fn a_teardown_that_met_nothing_has_cut_nothing() {
    const GIB: u64 = 1 << 30;
    for units in [1, 2, 7, u64::MAX] {
        let mem = Plain::new(PAGE);
        let mut tree = tree(&mem);
        let mut cpu = mem.cpu(tree.regs());
        let all = &mut Budget::unlimited();
        let block = Map::new(Ipa::new(5 * GIB), Pa::new(GIB), GIB, Attrs::MEMORY);
        tree.map(&mut cpu, &block, all).unwrap();
        drop(gathered(&mem, &tree, block.ipa, GIB));
        mem.forget();
        let mut at = Ipa::new(0);
        while at.get() < 1 << 39 {
            at = tree.teardown(&mut cpu, at, &mut Ignore, &mut Budget::entries(units));
        }
        let tlbi = |did: &Did| matches!(did, Did::Tlbi(_));
        let whole = mem.changes().iter().filter(|did| tlbi(did)).count();
        assert_eq!(whole, 1, "{units} at a time");
        assert_eq!(mem.count(tree.root()), 0, "{units} at a time");
    }
}

/// As a leaf that somebody held and forgot: nobody is told of its memory while a TLB
/// may know it.
#[test]
fn a_teardown_tells_what_was_forgotten_after_its_invalidation() {
    const GIB: u64 = 1 << 30;
    let mem = Plain::new(PAGE);
    let mut tree = tree(&mem);
    let mut cpu = mem.cpu(tree.regs());
    let all = &mut Budget::unlimited();
    let block = Map::new(Ipa::new(5 * GIB), Pa::new(GIB), GIB, Attrs::MEMORY);
    tree.map(&mut cpu, &block, all).unwrap();
    core::mem::forget(tree.freeze(block.ipa, Level::L1).unwrap());
    mem.forget();
    let mut at = Ipa::new(0);
    let tlbi = |did: &Did| matches!(did, Did::Tlbi(_));
    let known = || !mem.did.borrow().iter().any(tlbi);
    let mut told = Vec::new();
    while at.get() < 1 << 39 {
        let mut sink = |leaf: RemovedLeaf| told.push((leaf.pa(), known()));
        at = tree.teardown(&mut cpu, at, &mut sink, &mut Budget::entries(1));
    }
    assert_eq!(told, [(block.pa, false)]);
    assert_eq!(mem.count(tree.root()), 0);
}

//! Two CPUs in one tree, made deterministic: the second one acts inside a call
//! of the first one's `Maintenance` or `TableMem`.

mod plain;

use pgtable::{
    Attrs, Barrier, Budget, CacheOp, Error, Granule, Ignore, Ipa, Leaves, Level, Maintenance, Map,
    Pa, Partial, RUNS, RemovedLeaf, Stage2, Stage2Config, Stage2Regs, Sweep, Tlbi, Unmap,
    UnmapLater,
};
use plain::{Cpu, Plain};
use std::cell::{Cell, RefCell};

const PAGE: u64 = 4096;

/// A CPU whose first barrier lets the other one act, once.
struct Hook<'m, F: FnOnce()>(Cpu<'m>, Option<F>);

impl<F: FnOnce()> Maintenance for Hook<'_, F> {
    fn barrier(&mut self, barrier: Barrier) {
        if let Some(other) = self.1.take() {
            other();
        }
        self.0.barrier(barrier);
    }
    fn tlbi(&mut self, op: Tlbi) {
        self.0.tlbi(op);
    }
    fn cache(&mut self, op: CacheOp) {
        self.0.cache(op);
    }
    fn stage2(&mut self) -> Stage2Regs {
        self.0.stage2()
    }
    fn set_stage2(&mut self, regs: Stage2Regs) {
        self.0.set_stage2(regs);
    }
}

fn quiet<'m>(tree: &Stage2<&'m Plain>) -> Cpu<'m> {
    tree.mem().cpu(tree.regs())
}

fn tree(mem: &Plain) -> Stage2<&Plain> {
    let mut config = Stage2Config::new(Granule::K4, 39, 48);
    config.features.fwb = true;
    config.features.dic = true;
    mem.tree(config)
}

fn page(n: u64, pa: u64) -> Map {
    Map::new(Ipa::new(n * PAGE), Pa::new(pa), PAGE, Attrs::MEMORY)
        .leaves(Leaves::Exactly(Level::L3))
}
fn all() -> Budget {
    Budget::unlimited()
}

/// CPU A unmaps pages 0..4 (1 is empty). While it waits for its TLBI, CPU B maps page 1 and
/// begins to unmap it again: B has frozen it, and has not invalidated anything yet.
#[test]
fn an_entry_that_another_cpu_froze_is_left_alone() {
    let mem = Plain::new(PAGE);
    let tree = tree(&mem);
    for n in [0, 2] {
        tree.map(
            &mut quiet(&tree),
            &page(n, 0x40_0000 + n * PAGE),
            &mut all(),
        )
        .unwrap();
    }
    let frozen = RefCell::new(None);
    let mut told = Vec::new();
    let other = || {
        tree.map(&mut quiet(&tree), &page(1, 0x50_0000), &mut all())
            .unwrap();
        *frozen.borrow_mut() = Some(tree.freeze(Ipa::new(PAGE), Level::L3).unwrap());
    };
    let mut sink = |leaf: RemovedLeaf| told.push(leaf.ipa().get());
    tree.unmap_leaves(
        &mut Hook(quiet(&tree), Some(other)),
        &Unmap::new(Ipa::new(0), 4 * PAGE),
        &mut sink,
        &mut all(),
    )
    .unwrap();
    assert_eq!(
        told,
        [0, 2 * PAGE],
        "told of a leaf that another CPU holds, before that CPU's invalidation"
    );
    assert_eq!(
        tree.lookup(Ipa::new(PAGE)).unwrap().raw & 3,
        2,
        "still frozen by its owner"
    );
    drop(frozen.borrow_mut().take());
}

/// The same with more places than are kept apart: the last does not grow over what lies between.
#[test]
fn an_entry_between_many_places_is_left_alone() {
    let mem = Plain::new(PAGE);
    let tree = tree(&mem);
    let places = 2 * RUNS as u64;
    let size = 2 * places * PAGE;
    let map = |n: u64, pa: u64| {
        tree.map(&mut quiet(&tree), &page(n, pa), &mut all())
            .unwrap();
    };
    let furnish = || (0..places).for_each(|n| map(2 * n, 0x40_0000 + n * PAGE));
    furnish();
    // Behind as many places as are kept apart, and one more.
    let between = [2 * RUNS as u64 - 1, 2 * RUNS as u64 + 1];
    let frozen = RefCell::new(Vec::new());
    let other = || {
        for n in between {
            map(n, 0x50_0000);
            let held = tree.freeze(Ipa::new(n * PAGE), Level::L3).unwrap();
            frozen.borrow_mut().push(held);
        }
    };
    let mut told = Vec::new();
    let mut sink = |leaf: RemovedLeaf| told.push(leaf.ipa().get() / PAGE);
    let stopped = tree.unmap_leaves(
        &mut Hook(quiet(&tree), Some(other)),
        &Unmap::new(Ipa::new(0), size).partial(Partial::Refuse),
        &mut sink,
        &mut all(),
    );
    let stopped = stopped.unwrap_err();
    assert_eq!(
        (stopped.why, stopped.next),
        (Error::Busy, Ipa::new(between[1] * PAGE))
    );
    assert_eq!(told, (0..=RUNS as u64).map(|n| 2 * n).collect::<Vec<_>>());
    for n in between {
        let raw = tree.lookup(Ipa::new(n * PAGE)).unwrap().raw;
        assert_eq!(raw & 3, 2, "still frozen by its owner");
    }
    // When nobody holds anything, one call does all places.
    frozen.borrow_mut().clear();
    furnish();
    let mut left = 0;
    let mut sink = |_: RemovedLeaf| left += 1;
    let done = tree.unmap_leaves(
        &mut quiet(&tree),
        &Unmap::new(Ipa::new(0), size).partial(Partial::Refuse),
        &mut sink,
        &mut all(),
    );
    assert_eq!((done, left), (Ok(Ipa::new(size)), places + 2));
}

/// CPU A unmaps page 0 and wants to know of no leaf. Before its TLBI, CPU B faults on page 0.
#[test]
fn nothing_valid_is_made_before_the_invalidation() {
    let mem = Plain::new(PAGE);
    let tree = tree(&mem);
    tree.map(&mut quiet(&tree), &page(0, 0x40_0000), &mut all())
        .unwrap();
    let result = Cell::new(None);
    let other = || {
        result.set(Some(tree.map(
            &mut quiet(&tree),
            &page(0, 0x50_0000),
            &mut all(),
        )));
    };
    tree.unmap_leaves(
        &mut Hook(quiet(&tree), Some(other)),
        &Unmap::new(Ipa::new(0), PAGE),
        &mut Ignore,
        &mut all(),
    )
    .unwrap();
    let result = result.take().unwrap();
    assert_eq!(
        result.map_err(|s| s.why),
        Err(Error::Busy),
        "a new leaf before the old one is out of the TLBs"
    );
}

/// The same for leaves that are gathered.
#[test]
fn nothing_valid_is_made_before_the_gather_is_synced() {
    let mem = Plain::new(PAGE);
    let tree = tree(&mem);
    tree.map(&mut quiet(&tree), &page(0, 0x40_0000), &mut all())
        .unwrap();
    let mut gather = tree.gather();
    tree.unmap_later(
        &mut quiet(&tree),
        UnmapLater::new(Ipa::new(0), PAGE, &mut gather),
        &mut all(),
        |_| (),
    )
    .unwrap();
    let result = tree.map(&mut quiet(&tree), &page(0, 0x50_0000), &mut all());
    let _ = tree.sync(&mut quiet(&tree), gather);
    assert_eq!(
        result.map_err(|s| s.why),
        Err(Error::Busy),
        "a new leaf before the old one is out of the TLBs"
    );
}

/// CPU A sets the contiguous hint. It has compared the members; before it freezes the first,
/// CPU B takes the right to write from one of them.
#[test]
fn a_group_is_alike_when_it_gets_the_hint() {
    let mem: &'static Plain = Box::leak(Box::new(Plain::new(PAGE)));
    let tree = Box::leak(Box::new(tree(mem)));
    let map = Map::new(Ipa::new(0), Pa::new(0x40_0000), 16 * PAGE, Attrs::MEMORY)
        .leaves(Leaves::Exactly(Level::L3));
    tree.map(&mut quiet(tree), &map, &mut all()).unwrap();
    let other: &'static Stage2<&Plain> = tree;
    let mut first = true;
    mem.interfere(move |_, _| {
        if !std::mem::take(&mut first) {
            return;
        }
        other
            .write_protect(
                &mut quiet(other),
                Sweep::new(Ipa::new(3 * PAGE), PAGE),
                &mut all(),
            )
            .unwrap();
    });
    let joined = tree.set_contiguous(&mut quiet(tree), Ipa::new(0));
    let hint = |n: u64| tree.lookup(Ipa::new(n * PAGE)).unwrap().raw >> 52 & 1;
    assert!(
        joined.is_err() && hint(3) == 0,
        "{joined:?}: a group whose members differ has the hint"
    );
}

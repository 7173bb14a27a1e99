//! Two CPUs in one tree, made deterministic: the second one acts inside a call
//! of the first one's `Maintenance` or `TableMem`.
use pgtable::{
    Attrs, Barrier, Budget, CacheOp, Error, Flush, Gather, Granule, Ignore, Ipa, Leaves, Level,
    Maintenance, Map, Pa, Partial, RemovedLeaf, Stage2, Stage2Config, Synced, TableMem, Tlbi, Vmid,
};
use std::cell::{Cell, RefCell};

const PAGE: u64 = 4096;

struct Mem {
    words: RefCell<Vec<u64>>,
    counts: RefCell<Vec<u32>>,
    /// Called once, before the next swap.
    before_cas: RefCell<Option<Box<dyn FnOnce()>>>,
    next: Cell<usize>,
}

impl Mem {
    fn new() -> Self {
        Self {
            words: RefCell::new(vec![0; 512 * 64]),
            counts: RefCell::new(vec![0; 64]),
            before_cas: RefCell::new(None),
            next: Cell::new(8),
        }
    }
    fn at(pa: Pa) -> usize {
        (pa.get() / PAGE) as usize
    }
}

impl TableMem for &Mem {
    type Table = usize;
    fn locate(&self, pa: Pa) -> usize {
        Mem::at(pa) * 512
    }
    fn load(&self, t: usize, i: usize) -> u64 {
        self.words.borrow()[t + i]
    }
    fn store(&self, t: usize, i: usize, v: u64) {
        self.words.borrow_mut()[t + i] = v;
    }
    fn cas(&self, t: usize, i: usize, old: u64, new: u64) -> Result<(), u64> {
        let hook = self.before_cas.borrow_mut().take();
        if let Some(hook) = hook {
            hook();
        }
        let mut words = self.words.borrow_mut();
        if words[t + i] != old {
            return Err(words[t + i]);
        }
        words[t + i] = new;
        Ok(())
    }
    fn alloc(&self, _: Level) -> Option<Pa> {
        let n = self.next.get();
        self.next.set(n + 1);
        Some(Pa::new(n as u64 * PAGE))
    }
    fn free(&self, _: Pa, _: Level, _: &Synced) {}
    fn count(&self, t: Pa) -> u32 {
        self.counts.borrow()[Mem::at(t)]
    }
    fn add_count(&self, t: Pa, by: i32) {
        let c = &mut self.counts.borrow_mut()[Mem::at(t)];
        *c = c.wrapping_add_signed(by);
    }
}

/// The first barrier or TLBI lets the other CPU act, once.
struct Hook<F: FnOnce()>(Option<F>, u64);
impl<F: FnOnce()> Maintenance for Hook<F> {
    fn barrier(&mut self, _: Barrier) {
        if let Some(f) = self.0.take() {
            f();
        }
    }
    fn tlbi(&mut self, _: Tlbi) {}
    fn cache(&mut self, _: CacheOp) {}
    fn vttbr(&mut self) -> u64 {
        self.1
    }
    fn set_vttbr(&mut self, v: u64) {
        self.1 = v;
    }
}
fn quiet(tree: &Stage2<&Mem>) -> Hook<fn()> {
    Hook(None, tree.vttbr())
}

fn tree(mem: &Mem) -> Stage2<&Mem> {
    let mut config = Stage2Config::new(Granule::K4, 39, 48);
    config.features.fwb = true;
    config.features.dic = true;
    Stage2::new(config.validate().unwrap(), Pa::new(0), Vmid::new(1), mem).unwrap()
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
    let mem = Mem::new();
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
    let mut sink = |leaf: RemovedLeaf| told.push(leaf.ia());
    tree.unmap_leaves(
        &mut Hook(Some(other), tree.vttbr()),
        Ipa::new(0),
        4 * PAGE,
        Partial::Split,
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

/// CPU A unmaps page 0 and wants to know of no leaf. Before its TLBI, CPU B faults on page 0.
#[test]
fn nothing_valid_is_made_before_the_invalidation() {
    let mem = Mem::new();
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
        &mut Hook(Some(other), tree.vttbr()),
        Ipa::new(0),
        PAGE,
        Partial::Split,
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
    let mem = Mem::new();
    let tree = tree(&mem);
    tree.map(&mut quiet(&tree), &page(0, 0x40_0000), &mut all())
        .unwrap();
    let mut gather = Gather::new();
    tree.unmap_later(
        &mut quiet(&tree),
        Ipa::new(0),
        PAGE,
        Partial::Split,
        &mut gather,
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
    let mem = Box::leak(Box::new(Mem::new()));
    let tree = Box::leak(Box::new(tree(mem)));
    let map = Map::new(Ipa::new(0), Pa::new(0x40_0000), 16 * PAGE, Attrs::MEMORY)
        .leaves(Leaves::Exactly(Level::L3));
    tree.map(&mut quiet(tree), &map, &mut all()).unwrap();
    let t: &'static Stage2<&Mem> = tree;
    *mem.before_cas.borrow_mut() = Some(Box::new(move || {
        t.write_protect(
            &mut quiet(t),
            Ipa::new(3 * PAGE),
            PAGE,
            Flush::Now,
            &mut all(),
        )
        .unwrap();
    }));
    let joined = tree.set_contiguous(&mut quiet(tree), Ipa::new(0));
    let hint = |n: u64| tree.lookup(Ipa::new(n * PAGE)).unwrap().raw >> 52 & 1;
    assert!(
        joined.is_err() && hint(3) == 0,
        "{joined:?}: a group whose members differ has the hint"
    );
}

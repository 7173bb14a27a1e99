//! Every interleaving of two CPUs in one tree (loom), on tables of four
//! entries: faults, maps, splits, unmaps and agings that meet.

use loom::sync::Arc;
use loom::sync::Mutex;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;
use pgtable::{
    Attrs, Barrier, Budget, CacheOp, Error, Features, Geometry, Ignore, Ipa, Leaves, Level,
    Maintenance, Map, Over, Pa, Partial, Stage2, Stage2Regs, Stopped, Sweep, Synced, TableMem,
    Tlbi, Unmap, Vmid,
};

const PAGE: u64 = 4096;
const BASE: u64 = 0x10_0000;

/// Six tables of four entries. The first is the root.
struct Small {
    words: Vec<AtomicU64>,
    counts: Vec<AtomicU64>,
    free: Mutex<Vec<u64>>,
}

impl Small {
    fn new() -> Self {
        Self {
            words: (0..24).map(|_| AtomicU64::new(0)).collect(),
            counts: (0..6).map(|_| AtomicU64::new(0)).collect(),
            free: Mutex::new((1..6).collect()),
        }
    }

    fn at(pa: Pa) -> usize {
        ((pa.get() - BASE) / PAGE) as usize
    }
}

impl TableMem for Small {
    type Table = usize;
    fn locate(&self, pa: Pa) -> usize {
        Self::at(pa) * 4
    }
    fn load(&self, table: usize, index: usize) -> u64 {
        self.words[table + index].load(Ordering::Acquire)
    }
    fn store(&self, table: usize, index: usize, value: u64) {
        self.words[table + index].store(value, Ordering::Release);
    }
    fn cas(&self, table: usize, index: usize, old: u64, new: u64) -> Result<(), u64> {
        self.words[table + index]
            .compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire)
            .map(drop)
    }
    fn alloc(&self, _: Level) -> Option<Pa> {
        let table = self.free.lock().unwrap().pop()?;
        Some(Pa::new(BASE + table * PAGE))
    }
    fn free(&self, table: Pa, _: Level, _: &Synced) {
        let at = Self::at(table);
        for index in 0..4 {
            self.store(at * 4, index, 0);
        }
        self.counts[at].store(0, Ordering::SeqCst);
        self.free.lock().unwrap().push(at as u64);
    }
    fn count(&self, table: Pa) -> u32 {
        self.counts[Self::at(table)].load(Ordering::SeqCst) as u32
    }
    fn add_count(&self, table: Pa, by: i32) {
        self.counts[Self::at(table)].fetch_add(i64::from(by) as u64, Ordering::SeqCst);
    }
}

struct Quiet(Stage2Regs);

impl Maintenance for Quiet {
    fn barrier(&mut self, _: Barrier) {}
    fn tlbi(&mut self, _: Tlbi) {}
    fn cache(&mut self, _: CacheOp) {}
    fn stage2(&mut self) -> Stage2Regs {
        self.0
    }
    fn set_stage2(&mut self, regs: Stage2Regs) {
        self.0 = regs;
    }
}

/// Loom's `Arc` of a foreign type has no `TableMem` of its own.
struct Shared(Small);

macro_rules! forward {
    ($($name:ident($($arg:ident: $type:ty),*) -> $out:ty;)*) => {
        $(fn $name(&self, $($arg: $type),*) -> $out { self.0.0.$name($($arg),*) })*
    };
}

/// The tree's handle on memory.
#[derive(Clone)]
struct Handle(Arc<Shared>);

impl TableMem for Handle {
    type Table = usize;
    forward! {
        locate(pa: Pa) -> usize;
        load(table: usize, index: usize) -> u64;
        store(table: usize, index: usize, value: u64) -> ();
        cas(table: usize, index: usize, old: u64, new: u64) -> Result<(), u64>;
        alloc(level: Level) -> Option<Pa>;
        free(table: Pa, level: Level, proof: &Synced) -> ();
        count(table: Pa) -> u32;
        add_count(table: Pa, by: i32) -> ();
    }
}

fn small_tree(levels: u8) -> (Stage2<Handle>, Handle) {
    let handle = Handle(Arc::new(Shared(Small::new())));
    let features = Features {
        fwb: true,
        dic: true,
        ..Features::default()
    };
    let geometry = Geometry::toy(2, levels, features);
    let tree = Stage2::new(geometry, Pa::new(BASE), Vmid::new(1), handle.clone()).unwrap();
    (tree, handle)
}

fn explore(test: impl Fn() + Sync + Send + 'static) {
    let runs = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let counter = runs.clone();
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(4);
    builder.check(move || {
        counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        test();
    });
    let runs = runs.load(std::sync::atomic::Ordering::Relaxed);
    println!("{runs} interleavings");
    assert!(runs > 10, "{runs} interleavings only");
}

/// Retries what another CPU is busy with.
fn again<A>(mut op: impl FnMut() -> Result<A, Stopped<Ipa>>) -> Result<A, Error> {
    loop {
        match op() {
            Err(Stopped {
                why: Error::Busy, ..
            }) => thread::yield_now(),
            Err(stopped) => return Err(stopped.why),
            Ok(done) => return Ok(done),
        }
    }
}

fn page(at: u64, to: u64) -> Map {
    Map::new(Ipa::new(at * PAGE), Pa::new(to), PAGE, Attrs::MEMORY)
        .leaves(Leaves::Exactly(Level::L3))
}

fn all() -> Budget {
    Budget::unlimited()
}

/// Every table's count is the number of its entries that are not zero, and
/// pages are neither lost nor given twice.
fn check(handle: &Handle) {
    let small = &handle.0.0;
    let mut seen = vec![BASE];
    let mut index = 0;
    let mut levels = vec![2i8];
    while index < seen.len() {
        let (pa, level) = (seen[index], levels[index]);
        let at = ((pa - BASE) / PAGE) as usize;
        let mut held = 0;
        for entry in 0..4 {
            let raw = small.load(at * 4, entry);
            assert_ne!(raw & 3, 2, "left frozen");
            held += u32::from(raw != 0);
            if level < 3 && raw & 3 == 3 {
                seen.push(raw & 0xffff_ffff_f000);
                levels.push(level + 1);
            }
        }
        assert_eq!(held, small.count(Pa::new(pa)), "table {pa:#x}");
        index += 1;
    }
    let free = small.free.lock().unwrap().len();
    assert_eq!(seen.len() + free, 6, "tables lost or given twice");
}

/// Two CPUs fault neighbouring pages, where not even the table exists.
#[test]
fn two_faults_make_one_table() {
    explore(|| {
        let (tree, handle) = small_tree(2);
        let tree = Arc::new(tree);
        let other = {
            let tree = tree.clone();
            thread::spawn(move || {
                tree.map(&mut Quiet(tree.regs()), &page(1, 0x41000), &mut all())
                    .unwrap();
            })
        };
        tree.map(&mut Quiet(tree.regs()), &page(0, 0x40000), &mut all())
            .unwrap();
        other.join().unwrap();
        assert_eq!(tree.translate(Ipa::new(0)).unwrap().0, Pa::new(0x40000));
        assert_eq!(tree.translate(Ipa::new(PAGE)).unwrap().0, Pa::new(0x41000));
        check(&handle);
    });
}

/// Two CPUs fault the same page.
#[test]
fn two_faults_on_one_page_agree() {
    explore(|| {
        let (tree, handle) = small_tree(2);
        let tree = Arc::new(tree);
        let other = {
            let tree = tree.clone();
            thread::spawn(move || {
                tree.map(&mut Quiet(tree.regs()), &page(0, 0x40000), &mut all())
                    .unwrap();
            })
        };
        tree.map(&mut Quiet(tree.regs()), &page(0, 0x40000), &mut all())
            .unwrap();
        other.join().unwrap();
        check(&handle);
    });
}

/// One CPU splits a block to unmap a page of it, another replaces a page.
#[test]
fn a_split_and_a_replacement_meet() {
    explore(|| {
        let (tree, handle) = small_tree(2);
        let block = Map::new(Ipa::new(0), Pa::new(0x40000), 4 * PAGE, Attrs::MEMORY);
        tree.map(&mut Quiet(tree.regs()), &block, &mut all())
            .unwrap();
        let tree = Arc::new(tree);
        let other = {
            let tree = tree.clone();
            thread::spawn(move || {
                let mut cpu = Quiet(tree.regs());
                again(|| {
                    let (at, split) = (Ipa::new(0), Partial::Split);
                    tree.unmap_leaves(
                        &mut cpu,
                        &Unmap::new(at, PAGE).partial(split),
                        &mut Ignore,
                        &mut all(),
                    )
                })
                .unwrap();
            })
        };
        let mut cpu = Quiet(tree.regs());
        again(|| tree.map(&mut cpu, &page(2, 0x50000).over(Over::Anything), &mut all())).unwrap();
        other.join().unwrap();
        assert!(tree.translate(Ipa::new(0)).is_none());
        assert_eq!(tree.translate(Ipa::new(PAGE)).unwrap().0, Pa::new(0x41000));
        assert_eq!(
            tree.translate(Ipa::new(2 * PAGE)).unwrap().0,
            Pa::new(0x50000)
        );
        check(&handle);
    });
}

/// One CPU ages what another unmaps; the page is told exactly once.
#[test]
fn aging_and_unmapping_meet() {
    explore(|| {
        let (tree, handle) = small_tree(2);
        tree.map(&mut Quiet(tree.regs()), &page(0, 0x40000), &mut all())
            .unwrap();
        let tree = Arc::new(tree);
        let other = {
            let tree = tree.clone();
            thread::spawn(move || {
                let mut cpu = Quiet(tree.regs());
                let at = Ipa::new(0);
                let _ = again(|| tree.clear_young(&mut cpu, Sweep::new(at, 4 * PAGE), &mut all()));
            })
        };
        let mut cpu = Quiet(tree.regs());
        let mut told = 0;
        again(|| {
            let mut sink = |_: pgtable::RemovedLeaf| told += 1;
            let (at, split) = (Ipa::new(0), Partial::Split);
            tree.unmap_leaves(
                &mut cpu,
                &Unmap::new(at, 4 * PAGE).partial(split),
                &mut sink,
                &mut all(),
            )
        })
        .unwrap();
        other.join().unwrap();
        assert_eq!(told, 1);
        assert!(tree.translate(Ipa::new(0)).is_none());
        check(&handle);
    });
}

/// Two CPUs unmap the same pages: each leaf is told to one of them.
#[test]
fn two_unmaps_tell_each_leaf_once() {
    explore(|| {
        let (tree, handle) = small_tree(2);
        for at in 0..2 {
            tree.map(
                &mut Quiet(tree.regs()),
                &page(at, 0x40000 + at * PAGE),
                &mut all(),
            )
            .unwrap();
        }
        let tree = Arc::new(tree);
        let unmap = |tree: Arc<Stage2<Handle>>| {
            let mut cpu = Quiet(tree.regs());
            let mut told = 0;
            again(|| {
                let mut sink = |_: pgtable::RemovedLeaf| told += 1;
                let (at, split) = (Ipa::new(0), Partial::Split);
                tree.unmap_leaves(
                    &mut cpu,
                    &Unmap::new(at, 2 * PAGE).partial(split),
                    &mut sink,
                    &mut all(),
                )
            })
            .unwrap();
            told
        };
        let other = {
            let tree = tree.clone();
            thread::spawn(move || unmap(tree))
        };
        let mine = unmap(tree.clone());
        assert_eq!(mine + other.join().unwrap(), 2);
        check(&handle);
    });
}

/// A frozen entry that is given up, while another CPU wants the place.
#[test]
fn a_rollback_and_a_fault_meet() {
    explore(|| {
        let (tree, handle) = small_tree(2);
        tree.map(&mut Quiet(tree.regs()), &page(0, 0x40000), &mut all())
            .unwrap();
        let tree = Arc::new(tree);
        let other = {
            let tree = tree.clone();
            thread::spawn(move || {
                let mut cpu = Quiet(tree.regs());
                let to = page(0, 0x50000).over(Over::Anything);
                again(|| tree.map(&mut cpu, &to, &mut all())).unwrap();
            })
        };
        if let Ok(frozen) = tree.freeze(Ipa::new(0), Level::L3) {
            frozen.rollback(&mut Quiet(tree.regs()));
        }
        other.join().unwrap();
        assert_eq!(tree.translate(Ipa::new(0)).unwrap().0, Pa::new(0x50000));
        check(&handle);
    });
}

//! What operations do to the machine, to the instruction: each store, barrier,
//! TLBI and cache operation in its order, and nothing more.
//!
//! The model judges whether enough is done; these tests also say that it is
//! not too much: a leaf broken without need is a fault for the guest.

mod plain;

use pgtable::{
    Access, Age, Annotation, Attrs, Barrier, Budget, CacheOp, Caches, Change, Device, Dirty,
    El2Attrs, El2Config, El2Map, El2Range, Entry, Errata, Execute, Features, Flush, Geometry,
    Granule, Ignore, Ipa, Leaves, Level, Maintenance, Map, Memory, Over, Pa, Partial, Permissions,
    RUNS, RemovedLeaf, RemovedRun, Runs, Share, Split, Stage2, Stage2Config, Stage2Regs, Sweep,
    Tlbi, TlbiKind, Unmap, UnmapLater, Va, Vmid,
};
use plain::{Cpu, Did, MODERN, Plain};

const PAGE: u64 = 4096;
const MIB2: u64 = 2 << 20;
const GIB: u64 = 1 << 30;

fn all() -> Budget {
    Budget::unlimited()
}

fn geometry(features: Features) -> Geometry {
    let mut config = Stage2Config::new(Granule::K4, 40, 48);
    config.features = features;
    config.validate().expect("legal")
}

fn tree(mem: &Plain, features: Features) -> (Stage2<&Plain>, Cpu<'_>) {
    let geometry = geometry(features);
    let root = mem.root(geometry.root_align());
    let tree = Stage2::new(geometry, root, Vmid::new(3), mem).expect("a root");
    let cpu = mem.cpu(tree.regs());
    (tree, cpu)
}

fn pages(ipa: u64, pa: u64, count: u64) -> Map {
    Map::new(Ipa::new(ipa), Pa::new(pa), count * PAGE, Attrs::MEMORY)
        .leaves(Leaves::Exactly(Level::L3))
}

/// What was done, in a short form.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// An empty entry became a leaf or a table.
    Make,
    /// A valid entry became another without a break.
    Change,
    /// A valid entry became invalid or frozen.
    Break,
    /// An invalid entry, other than an empty one, was written: `true` if it
    /// is valid now.
    Settle(bool),
    Bar(Barrier),
    Tlb(TlbiKind),
    Cache(CacheOp),
    Vttbr(u64),
    Alloc,
    Free,
}

use Step::{Alloc, Bar, Break, Free, Make, Settle, Tlb, Vttbr};

fn steps(mem: &Plain) -> Vec<Step> {
    let step = |did: &Did| match *did {
        Did::Write { old, new, .. } if old == new => None,
        Did::Write { old: 0, new, .. } if new & 1 == 1 => Some(Make),
        Did::Write { old, new, .. } => Some(match (old & 1 == 1, new & 1 == 1) {
            (true, true) => Step::Change,
            (true, false) => Break,
            (false, valid) => Settle(valid),
        }),
        Did::Barrier(barrier) => Some(Bar(barrier)),
        Did::Tlbi(op) => Some(Tlb(op.kind())),
        Did::Cache(op) => Some(Step::Cache(op)),
        Did::Stage2(regs) => Some(Vttbr(regs.vttbr)),
        Did::Alloc { .. } => Some(Alloc),
        Did::Free { .. } => Some(Free),
        Did::Load { .. } | Did::Lost { .. } => None,
    };
    mem.changes().iter().filter_map(step).collect()
}

const STORED: Step = Bar(Barrier::DsbIshst);
const DONE: Step = Bar(Barrier::DsbIsh);
const ISB: Step = Bar(Barrier::Isb);
const ONE: Step = Tlb(TlbiKind::Ipas2e1is);
const RANGE: Step = Tlb(TlbiKind::Ripas2e1is);
const STAGE1: Step = Tlb(TlbiKind::Vmalle1is);

/// The frame of a sync around one TLBI.
fn sync(op: Step) -> [Step; 6] {
    [STORED, op, DONE, STAGE1, DONE, ISB]
}

#[test]
fn a_fault_costs_one_store_and_one_barrier() {
    let mem = Plain::new(PAGE);
    let (tree, mut cpu) = tree(&mem, MODERN);
    let mut fault = |page: u64| {
        let done = tree.map(&mut cpu, &pages(page * PAGE, GIB, 1), &mut all());
        assert_eq!(done, Ok(Ipa::new((page + 1) * PAGE)));
        steps(&mem)
    };
    assert_eq!(fault(0), [Alloc, Make, Alloc, Make, Make, STORED]);
    assert_eq!(fault(1), [Make, STORED]);
    assert_eq!(fault(512), [Alloc, Make, Make, STORED]);
    // Another CPU was faster: nothing is changed.
    assert_eq!(fault(1), [STORED]);
}

#[test]
fn what_is_mapped_so_already_stays() {
    let mem = Plain::new(PAGE);
    let (tree, mut cpu) = tree(&mem, MODERN);
    let old = pages(0, GIB, 4);
    let mut map = |map: Map| {
        tree.map(&mut cpu, &map, &mut all()).expect("mapped");
        steps(&mem)
    };
    map(old);
    for over in [Over::Nothing, Over::Invalid, Over::Anything] {
        assert_eq!(map(old.over(over)), []);
        // What has its access flag keeps it.
        let attrs = Attrs::MEMORY.age(pgtable::Age::Old);
        assert_eq!(map(Map { attrs, ..old }.over(over)), []);
    }
    // The flag set anew takes no TLBI: AF=0 entries are in none.
    let attrs = Attrs::MEMORY.age(pgtable::Age::Old);
    let aged = Map {
        attrs,
        ..pages(MIB2, GIB, 2)
    };
    map(aged);
    // Who asks for no flag sets none.
    assert_eq!(map(aged), []);
    let young = pages(MIB2, GIB, 2);
    assert_eq!(map(young), [Step::Change, Step::Change, STORED]);
    assert_eq!(map(young), []);
}

#[test]
fn what_needs_a_break_and_what_does_not() {
    let memory = Attrs::MEMORY;
    let soft = memory.soft(5);
    // Beside one another: permissions, software bits, dirty tracking.
    for attrs in [
        memory.access(Access::Read),
        memory.access(Access::None),
        memory.execute(Execute::Never),
        memory.execute(Execute::El0),
        memory.dirty(Dirty::Track),
        soft,
        soft.access(Access::Write).execute(Execute::El1),
    ] {
        let mem = Plain::new(PAGE);
        let (tree, mut cpu) = tree(&mem, MODERN);
        let old = pages(0, GIB, 2);
        tree.map(&mut cpu, &old, &mut all()).expect("mapped");
        mem.forget();
        let new = Map { attrs, ..old }.over(Over::Anything);
        tree.map(&mut cpu, &new, &mut all()).expect("mapped");
        let changed = [Step::Change, Step::Change].into_iter().chain(sync(RANGE));
        assert_eq!(steps(&mem), changed.collect::<Vec<_>>(), "{attrs:?}");
        assert_eq!(
            tree.translate(Ipa::new(PAGE)),
            Some((Pa::new(GIB + PAGE), attrs))
        );
    }
    // Address, memory type and shareability.
    for (pa, attrs) in [
        (2 * GIB, memory),
        (GIB + PAGE, memory),
        (GIB, memory.memory(Memory::NormalNonCacheable)),
        (GIB, memory.memory(Memory::Device(Device::NGnRnE))),
        (GIB, memory.memory(Memory::FromStage1)),
        (
            GIB,
            Attrs {
                share: Share::Outer,
                ..memory
            },
        ),
        (
            GIB,
            Attrs {
                share: Share::Non,
                ..memory
            },
        ),
    ] {
        let mem = Plain::new(PAGE);
        let (tree, mut cpu) = tree(&mem, MODERN);
        let old = pages(0, GIB, 2);
        tree.map(&mut cpu, &old, &mut all()).expect("mapped");
        mem.forget();
        let new = Map {
            attrs,
            ..pages(0, pa, 2)
        }
        .over(Over::Anything);
        tree.map(&mut cpu, &new, &mut all()).expect("mapped");
        let mut broken = Vec::new();
        if matches!(
            attrs.memory,
            Memory::NormalNonCacheable | Memory::FromStage1
        ) {
            broken.push(Step::Cache(CacheOp::CleanInvalidateData {
                pa: Pa::new(pa),
                size: 2 * PAGE,
            }));
        }
        broken.extend([Break, Break]);
        broken.extend(sync(RANGE));
        broken.extend([Settle(true), Settle(true), STORED]);
        assert_eq!(steps(&mem), broken, "{pa:#x} {attrs:?}");
        let page = tree.translate(Ipa::new(PAGE));
        assert_eq!(page, Some((Pa::new(pa + PAGE), attrs)));
    }
}

/// Replaced leaves and collapsed tables, several at once: one invalidation,
/// each leaf told with its own addresses, each table back.
#[test]
fn neighbours_are_replaced_together() {
    let mem = Plain::new(PAGE);
    let (mut tree, mut cpu) = tree(&mem, MODERN);
    // Two blocks, three tables (two pages, none, one page), a block, nothing.
    let block = |index: u64, count: u64, pa: u64| {
        let (ipa, pa) = (Ipa::new(index * MIB2), Pa::new(pa));
        Map::new(ipa, pa, count * MIB2, Attrs::MEMORY)
    };
    let gone = 64 * GIB;
    for map in [
        block(0, 2, gone),
        pages(2 * MIB2, gone + 2 * MIB2, 2),
        pages(3 * MIB2 + 7 * PAGE, gone + 3 * MIB2, 1),
        pages(4 * MIB2 + 511 * PAGE, gone + 4 * MIB2, 1),
        block(5, 1, gone + 5 * MIB2),
    ] {
        tree.map(&mut cpu, &map, &mut all()).expect("mapped");
    }
    let middle = Ipa::new(3 * MIB2);
    tree.unmap_leaves(
        &mut cpu,
        &Unmap::new(middle, MIB2).partial(Partial::Refuse),
        &mut Ignore,
        &mut all(),
    )
    .expect("unmapped");
    let before = mem.live();
    mem.forget();
    let mut told = Vec::new();
    let new = block(0, 7, GIB).over(Over::Anything);
    let mut sink = |leaf: RemovedLeaf| {
        told.push((leaf.ipa().get(), leaf.level(), leaf.pa().get(), leaf.size()));
    };
    let done = tree.map_exclusive(&mut cpu, &new, &mut sink, &mut all());
    assert_eq!(done, Ok(Ipa::new(7 * MIB2)));
    let large = |index: u64| (index * MIB2, Level::L2, gone + index * MIB2, MIB2);
    let small = |ipa: u64, pa: u64| (ipa, Level::L3, gone + pa, PAGE);
    assert_eq!(
        told,
        [
            large(0),
            large(1),
            small(2 * MIB2, 2 * MIB2),
            small(2 * MIB2 + PAGE, 2 * MIB2 + PAGE),
            small(4 * MIB2 + 511 * PAGE, 4 * MIB2),
            large(5),
        ]
    );
    let mut want = vec![Break, Break];
    want.extend(sync(RANGE));
    want.extend([Settle(true), Settle(true), STORED]);
    want.extend([Break, Break, Break]);
    want.extend(sync(RANGE));
    for _ in 0..3 {
        want.extend([Settle(true), Free]);
    }
    want.push(STORED);
    want.push(Break);
    want.extend(sync(ONE));
    want.extend([Settle(true), STORED]);
    want.extend([Make, STORED]);
    assert_eq!(steps(&mem), want);
    assert_eq!(mem.live(), before - 3);
    for index in 0..7 {
        let at = index * MIB2 + 5 * PAGE;
        let found = tree.lookup(Ipa::new(at)).expect("inside");
        assert_eq!(found.level, Level::L2);
        let to = Pa::new(GIB + at);
        assert_eq!(tree.translate(Ipa::new(at)), Some((to, Attrs::MEMORY)));
    }
}

/// A CPU and a kind of memory, and what its caches are owed for it.
struct Cached {
    features: Features,
    attrs: Attrs,
    /// The guest may reach the memory past the caches.
    cleans: bool,
    /// Stale instructions may be fetched.
    fetches: bool,
}

impl Cached {
    /// All of them.
    fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for bits in 0..8u8 {
            let features = Features {
                fwb: bits & 1 != 0,
                dic: bits & 2 != 0,
                xnx: bits & 4 != 0,
                ..MODERN
            };
            let mut executes = vec![Execute::All, Execute::Never];
            if features.xnx {
                executes.extend([Execute::El0, Execute::El1]);
            }
            for execute in executes {
                for memory in [
                    Memory::Normal,
                    Memory::FromStage1,
                    Memory::NormalNonCacheable,
                    Memory::Device(Device::GRE),
                ] {
                    let cleans = match memory {
                        Memory::Normal => !features.fwb,
                        Memory::FromStage1 | Memory::NormalNonCacheable => true,
                        Memory::Device(_) => false,
                    };
                    all.push(Self {
                        features,
                        attrs: Attrs::MEMORY.memory(memory).execute(execute),
                        cleans,
                        fetches: !features.dic && execute != Execute::Never,
                    });
                }
            }
        }
        all
    }

    /// What is due before a guest has this memory.
    fn due(&self, pa: u64, size: u64) -> Vec<Step> {
        let mut due = Vec::new();
        due.extend(self.cleans.then(|| clean(pa, size)));
        let fetch = Step::Cache(CacheOp::InvalidateInstructions);
        due.extend(self.fetches.then_some(fetch));
        due
    }

    fn what(&self) -> String {
        format!("{:?} {:?}", self.features, self.attrs)
    }
}

fn clean(pa: u64, size: u64) -> Step {
    let pa = Pa::new(pa);
    Step::Cache(CacheOp::CleanInvalidateData { pa, size })
}

/// The cache maintenance since the last look.
fn cached(mem: &Plain) -> Vec<Step> {
    let mut steps = steps(mem);
    steps.retain(|step| matches!(step, Step::Cache(_)));
    steps
}

/// One page as a fault maps it, three in a row, a block.
const MAPPED: [(u64, u64, u64, Leaves); 3] = [
    (0, GIB, PAGE, Leaves::Exactly(Level::L3)),
    (PAGE, 2 * GIB, 3 * PAGE, Leaves::Largest),
    (MIB2, 3 * GIB, MIB2, Leaves::Largest),
];

fn map_all(tree: &Stage2<&Plain>, cpu: &mut Cpu<'_>, attrs: Attrs, mut each: impl FnMut(&Map)) {
    for (ipa, pa, size, leaves) in MAPPED {
        let map = Map::new(Ipa::new(ipa), Pa::new(pa), size, attrs).leaves(leaves);
        tree.map(cpu, &map, &mut all()).expect("mapped");
        each(&map);
    }
}

/// What memory a mapping cleans, and whose instructions it synchronises.
#[test]
fn caches_are_maintained_where_this_cpu_needs_it() {
    for case in Cached::all() {
        let (mem, what) = (Plain::new(PAGE), case.what());
        let (tree, mut cpu) = tree(&mem, case.features);
        map_all(&tree, &mut cpu, case.attrs, |map| {
            let due = case.due(map.pa.get(), map.size);
            assert_eq!(cached(&mem), due, "{what}");
        });
        for (ipa, pa, size, leaves) in MAPPED {
            let map = Map::new(Ipa::new(4 * GIB + ipa), Pa::new(pa), size, case.attrs);
            let skip = map.leaves(leaves).caches(Caches::Skip);
            tree.map(&mut cpu, &skip, &mut all()).expect("mapped");
            assert_eq!(cached(&mem), [], "{what}");
        }
        // A frozen entry that becomes a leaf.
        let frozen = tree.freeze(Ipa::new(6 * PAGE), Level::L3).expect("empty");
        let leaf = Change::Leaf(Pa::new(5 * GIB), case.attrs);
        frozen.commit(&mut cpu, leaf).expect("committed");
        assert_eq!(cached(&mem), case.due(5 * GIB, PAGE), "{what}");
    }
}

/// A flush cleans what is mapped in its range, each leaf as far as it lies there.
#[test]
fn a_flush_cleans_what_the_guest_may_reach_past_the_caches() {
    for case in Cached::all() {
        let mem = Plain::new(PAGE);
        let (tree, mut cpu) = tree(&mem, case.features);
        map_all(&tree, &mut cpu, case.attrs, |_| ());
        mem.forget();
        let (from, size) = (Ipa::new(2 * PAGE), MIB2 + 3 * PAGE);
        let flushed = tree.flush_caches(&mut cpu, from, size, &mut all());
        assert_eq!(flushed, Ok(Ipa::new(MIB2 + 5 * PAGE)));
        let mut want = Vec::new();
        if case.cleans {
            want = vec![
                clean(2 * GIB + PAGE, PAGE),
                clean(2 * GIB + 2 * PAGE, PAGE),
                clean(3 * GIB, 5 * PAGE),
            ];
        }
        assert_eq!(steps(&mem), want, "{}", case.what());
    }
}

/// What the guest wrote past the cache must be found by who gets the memory.
#[test]
fn removed_memory_is_cleaned_where_the_cpu_does_not_force_caches() {
    for case in Cached::all() {
        let mem = Plain::new(PAGE);
        let (mut tree, mut cpu) = tree(&mem, case.features);
        map_all(&tree, &mut cpu, case.attrs, |_| ());
        mem.forget();
        let mut told = Vec::new();
        let mut sink = |leaf: RemovedLeaf| told.push(leaf.pa().get());
        let range = Unmap::new(Ipa::new(MIB2), MIB2).partial(Partial::Refuse);
        tree.unmap(&mut cpu, &range, &mut sink, &mut all())
            .expect("unmapped");
        let due = case.cleans && !case.features.fwb;
        let want = due.then(|| clean(3 * GIB, MIB2));
        assert_eq!(cached(&mem), Vec::from_iter(want), "{}", case.what());
        assert_eq!(told, [3 * GIB]);
    }
}

/// Fetch allowed anew takes the instruction cache along, in both ways to it.
#[test]
fn execute_that_is_gained_synchronises_instructions() {
    let kinds = [Execute::Never, Execute::El0, Execute::El1, Execute::All];
    let gains = |old: Execute, new: Execute| {
        let who = |execute| match execute {
            Execute::Never => 0,
            Execute::El0 => 1,
            Execute::El1 => 2,
            Execute::All => 3,
        };
        who(new) & !who(old) != 0
    };
    for xnx in [false, true] {
        let features = Features {
            dic: false,
            xnx,
            ..MODERN
        };
        for old in kinds {
            for new in kinds {
                if !xnx && [old, new].iter().any(|kind| *kind as u8 & 1 == 1) {
                    continue;
                }
                let mem = Plain::new(PAGE);
                let (tree, mut cpu) = tree(&mem, features);
                let map = Map {
                    attrs: Attrs::MEMORY.execute(old).access(Access::Read),
                    ..pages(0, GIB, 3)
                };
                tree.map(&mut cpu, &map, &mut all()).expect("mapped");
                mem.forget();
                let permissions = Permissions {
                    access: Access::ReadWrite,
                    execute: new,
                };
                let sync = Step::Cache(CacheOp::InvalidateInstructions);
                let cache = |mem: &Plain| {
                    let mut steps = steps(mem);
                    steps.retain(|step| matches!(step, Step::Cache(_)));
                    steps
                };
                tree.relax(&mut cpu, Ipa::new(2 * PAGE + 8), permissions)
                    .expect("mapped");
                let relaxed = tree.translate(Ipa::new(2 * PAGE)).expect("mapped").1;
                let both = if gains(old, new) && gains(new, old) {
                    Execute::All
                } else if gains(old, new) {
                    new
                } else {
                    old
                };
                assert_eq!(relaxed.execute, both, "{old:?} and {new:?}");
                assert_eq!(relaxed.access, Access::ReadWrite);
                let want = gains(old, new).then_some(sync);
                assert_eq!(cache(&mem), Vec::from_iter(want), "{old:?} {new:?}");
                let (ipa, refuse) = (Ipa::new(0), Partial::Refuse);
                let now = Flush::Now;
                tree.protect(
                    &mut cpu,
                    Sweep {
                        flush: now,
                        ..Sweep::new(ipa, 2 * PAGE).partial(refuse)
                    },
                    permissions,
                    &mut all(),
                )
                .expect("mapped");
                let mut want = Vec::new();
                if gains(old, new) {
                    want = vec![sync, sync];
                }
                assert_eq!(cache(&mem), want, "{old:?} {new:?}");
                let protected = tree.translate(Ipa::new(PAGE)).expect("mapped").1;
                assert_eq!(protected.execute, new);
            }
        }
    }
}

/// The frame of an invalidation when the CPU has another VMID loaded, or the
/// same VMID in another tree's register value.
#[test]
fn the_vmid_is_switched_only_where_it_differs() {
    let local = [
        Tlb(TlbiKind::Ipas2e1),
        Bar(Barrier::DsbNsh),
        Tlb(TlbiKind::Vmalle1),
        Bar(Barrier::DsbNsh),
        ISB,
    ];
    let mem = Plain::new(PAGE);
    let (mut tree, mut cpu) = tree(&mem, MODERN);
    let own = tree.vttbr();
    let permissions = Permissions {
        access: Access::ReadWrite,
        execute: Execute::All,
    };
    tree.map(&mut cpu, &pages(0, GIB, 8), &mut all())
        .expect("mapped");
    for (page, loaded, foreign) in [
        (0, own, false),
        (1, own ^ 0x1_0000, false),
        (2, own ^ 1, false),
        (3, own ^ (1 << 48), true),
        (4, own ^ (1 << 55), true),
        (5, 0, true),
    ] {
        cpu.regs.vttbr = loaded;
        mem.forget();
        tree.relax(&mut cpu, Ipa::new(page * PAGE), permissions)
            .expect("mapped");
        let mut want = Vec::new();
        if foreign {
            want.extend([Bar(Barrier::DsbNsh), Vttbr(own), ISB]);
            want.extend(local);
            want.extend([Vttbr(loaded), ISB]);
        } else {
            want.push(Bar(Barrier::DsbNshst));
            want.extend(local);
        }
        assert_eq!(steps(&mem), want, "{loaded:#x}");
        assert_eq!(cpu.regs.vttbr, loaded);
        let (ipa, refuse) = (Ipa::new(page * PAGE), Partial::Refuse);
        tree.unmap(
            &mut cpu,
            &Unmap::new(ipa, PAGE).partial(refuse),
            &mut Ignore,
            &mut all(),
        )
        .expect("unmapped");
        let mut want = vec![Break];
        if foreign {
            want.extend([DONE, Vttbr(own), ISB, ONE, DONE, STAGE1, DONE, ISB]);
            want.extend([Vttbr(loaded), ISB]);
        } else {
            want.extend(sync(ONE));
        }
        assert_eq!(steps(&mem), want, "{loaded:#x}");
        assert_eq!(cpu.regs.vttbr, loaded);
    }
}

/// Where operations by address become one for the whole VMID.
#[test]
fn too_many_operations_become_one() {
    let whole = [STORED, Tlb(TlbiKind::Vmalls12e1is), DONE, ISB];
    for tlb_range in [false, true] {
        let features = Features {
            tlb_range,
            ..MODERN
        };
        for (count, is_whole) in [(511u64, false), (512, false), (513, !tlb_range)] {
            let mem = Plain::new(PAGE);
            let (tree, mut cpu) = tree(&mem, features);
            tree.map(&mut cpu, &pages(0, GIB, 1024), &mut all())
                .expect("mapped");
            mem.forget();
            tree.write_protect(&mut cpu, Sweep::new(Ipa::new(0), count * PAGE), &mut all())
                .expect("mapped");
            let mut done = steps(&mem);
            assert!(
                done[..count as usize]
                    .iter()
                    .all(|step| *step == Step::Change)
            );
            done.drain(..count as usize);
            if is_whole {
                assert_eq!(done, whole);
            } else if tlb_range {
                // 511 = 448 + 62 + 1 pages.
                let series = if count == 511 { 3 } else { done.len() - 5 };
                assert!(series <= 3);
                assert_eq!(done.len(), series + 5);
            } else {
                assert_eq!(
                    done.iter().filter(|step| **step == ONE).count(),
                    count as usize
                );
            }
        }
    }
}

/// Range operations are counted by their length: 2^21 pages each.
#[test]
fn large_ranges_are_few_operations() {
    let mem = Plain::new(PAGE);
    let (tree, mut cpu) = tree(&mem, MODERN);
    let size = 800 * GIB;
    let map = Map::new(Ipa::new(0), Pa::new(0), size, Attrs::MEMORY);
    tree.map(&mut cpu, &map, &mut all()).expect("mapped");
    mem.forget();
    tree.write_protect(&mut cpu, Sweep::new(Ipa::new(0), size), &mut all())
        .expect("mapped");
    let mut done = steps(&mem);
    assert!(done[..800].iter().all(|step| *step == Step::Change));
    done.drain(..800);
    let mut want = vec![STORED];
    want.extend([RANGE; 100]);
    want.extend([DONE, STAGE1, DONE, ISB]);
    assert_eq!(done, want);
}

/// Under DS a range begins at a multiple of 64 KiB. What begins beside one goes page by
/// page up to the next, and not to its end: that would be a TLBI for each page of it.
#[test]
fn a_range_beside_64_kib_is_few_operations() {
    let mut config = Stage2Config::new(Granule::K4, 40, 48);
    config.features = MODERN;
    config.lpa2 = true;
    for first in [1u64, 5, 15] {
        let mem = Plain::new(PAGE);
        let tree = mem.tree(config);
        let mut cpu = mem.cpu(tree.regs());
        tree.map(&mut cpu, &pages(0, GIB, 2048), &mut all())
            .expect("mapped");
        mem.forget();
        let range = Sweep::new(Ipa::new(first * PAGE), 1024 * PAGE);
        tree.write_protect(&mut cpu, range, &mut all())
            .expect("mapped");
        let done = steps(&mem);
        let of = |op| done.iter().filter(|step| **step == op).count() as u64;
        // 64 KiB are 16 pages; what is left at the end is an odd one at most.
        let odd = (1024 - (16 - first)) % 2;
        assert_eq!(of(ONE), 16 - first + odd, "{first}");
        assert!(of(RANGE) <= 2, "{first}");
    }
}

/// A row that is replaced ends at a leaf that stays where it is: that one is not broken,
/// and nobody is told that its memory is free.
#[test]
fn what_stays_where_it_is_is_not_told() {
    let mem = Plain::new(PAGE);
    let (mut tree, mut cpu) = tree(&mem, MODERN);
    let elsewhere = |page: u64| pages(page * PAGE, 8 * GIB + page * PAGE, 1);
    for page in [0, 1, 3] {
        tree.map(&mut cpu, &elsewhere(page), &mut all())
            .expect("mapped");
    }
    let stays = Map {
        attrs: Attrs::MEMORY.access(Access::Read),
        ..pages(2 * PAGE, GIB + 2 * PAGE, 1)
    };
    tree.map(&mut cpu, &stays, &mut all()).expect("mapped");
    mem.forget();
    let mut told = Vec::new();
    let mut sink = |leaf: RemovedLeaf| told.push(leaf.pa().get());
    let over = pages(0, GIB, 4).over(Over::Anything);
    tree.map_exclusive(&mut cpu, &over, &mut sink, &mut all())
        .expect("mapped");
    assert_eq!(told, [0, 1, 3].map(|page| 8 * GIB + page * PAGE));
    let done = steps(&mem);
    let of = |what| done.iter().filter(|step| **step == what).count();
    assert_eq!((of(Break), of(Step::Change)), (3, 1));
}

/// The operations of a range are counted as they are made: where they have to be short
/// (`QEMU_RANGE_LENGTH`), a table's number of them comes sooner.
#[test]
fn no_erratum_makes_more_operations_than_a_table_has_entries() {
    let mut config = Stage2Config::new(Granule::K4, 42, 48);
    config.features = MODERN;
    config.errata = Errata::QEMU_RANGE_LENGTH;
    let mem = Plain::new(PAGE);
    let tree = mem.tree(config);
    let mut cpu = mem.cpu(tree.regs());
    // 820 operations of less than 4 GiB, 384 of 8 GiB.
    let size = 3072 * GIB;
    let map = Map::new(Ipa::new(0), Pa::new(0), size, Attrs::MEMORY);
    tree.map(&mut cpu, &map, &mut all()).expect("mapped");
    mem.forget();
    tree.write_protect(&mut cpu, Sweep::new(Ipa::new(0), size), &mut all())
        .expect("mapped");
    let tlbi = |did: &Did| matches!(did, Did::Tlbi(_));
    let made = mem.changes().iter().filter(|did| tlbi(did)).count();
    assert!(made <= 512, "{made}");
}

/// What other memory takes the place of is cleaned, after its invalidation, where the
/// guest may have written it past the caches: it goes to somebody else.
#[test]
fn replaced_memory_is_cleaned_where_the_cpu_does_not_force_caches() {
    let features = Features {
        fwb: false,
        ..MODERN
    };
    for (old, new, cleaned) in [(GIB, 3 * GIB, true), (GIB, GIB, false)] {
        let mem = Plain::new(PAGE);
        let (mut tree, mut cpu) = tree(&mem, features);
        tree.map(&mut cpu, &pages(PAGE, old, 3), &mut all())
            .expect("mapped");
        mem.forget();
        let share = Attrs {
            share: Share::Outer,
            ..Attrs::MEMORY
        };
        let over = Map {
            attrs: share,
            ..pages(PAGE, new, 3).over(Over::Anything)
        };
        tree.map_exclusive(&mut cpu, &over, &mut Ignore, &mut all())
            .expect("mapped");
        let done = steps(&mem);
        let last_tlbi = done.iter().rposition(|step| *step == STAGE1);
        let after = &done[last_tlbi.expect("it takes a break")..];
        assert_eq!(after.contains(&clean(old, 3 * PAGE)), cleaned);
    }
}

/// Blocks that a mapping makes on its way to a larger one are its own, also where hardware
/// has marked one accessed meanwhile: their memory is mapped as before.
#[test]
fn a_block_of_the_mapping_is_not_told_for_its_age() {
    const AF: u64 = 1 << 10;
    let mem = Plain::new(PAGE);
    let (mut tree, mut cpu) = tree(&mem, MODERN);
    tree.map(&mut cpu, &pages(0, 64 * GIB, 2), &mut all())
        .expect("mapped");
    let at = |level| {
        let found = tree.lookup_to(Ipa::new(0), level).expect("inside");
        match found.entry {
            Entry::Table(table) => table.get(),
            other => panic!("{other:?}"),
        }
    };
    // The first entries of the root and of the table below it.
    let (root, block) = (tree.root().get(), at(Level::L1));
    mem.interfere(move |mem, entry| {
        if entry == root && mem.word(block) & 3 == 1 {
            mem.poke(block, mem.word(block) | AF);
        }
    });
    let old = Map {
        attrs: Attrs {
            age: Age::Old,
            ..Attrs::MEMORY
        },
        ..Map::new(Ipa::new(0), Pa::new(8 * GIB), GIB, Attrs::MEMORY)
    };
    let mut told = Vec::new();
    let mut sink = |leaf: RemovedLeaf| told.push(leaf.pa().get());
    tree.map_exclusive(&mut cpu, &old.over(Over::Anything), &mut sink, &mut all())
        .expect("mapped");
    mem.undisturbed();
    assert_eq!(tree.lookup(Ipa::new(0)).expect("inside").level, Level::L1);
    assert_eq!(told, [64 * GIB, 64 * GIB + PAGE]);
}

/// What lies between two removed leaves is left in the TLBs.
#[test]
fn gaps_are_not_invalidated() {
    for wanted in [false, true] {
        let mem = Plain::new(PAGE);
        let features = Features {
            tlb_range: false,
            ..MODERN
        };
        let (mut tree, mut cpu) = tree(&mem, features);
        let places = [0u64, 1, 4, 9, 10, 11];
        for page in places {
            tree.map(&mut cpu, &pages(page * PAGE, GIB, 1), &mut all())
                .expect("mapped");
        }
        tree.map(&mut cpu, &pages(100 * PAGE, GIB, 1), &mut all())
            .expect("mapped");
        mem.forget();
        let (ipa, size, refuse) = (Ipa::new(0), 16 * PAGE, Partial::Refuse);
        let mut count = 0;
        let mut sink = |_: RemovedLeaf| count += 1;
        if wanted {
            tree.unmap(
                &mut cpu,
                &Unmap::new(ipa, size).partial(refuse),
                &mut sink,
                &mut all(),
            )
            .expect("unmapped");
            assert_eq!(count, places.len());
        } else {
            tree.unmap(
                &mut cpu,
                &Unmap::new(ipa, size).partial(refuse),
                &mut Ignore,
                &mut all(),
            )
            .expect("unmapped");
        }
        let hit: Vec<u64> = mem
            .changes()
            .into_iter()
            .filter_map(|did| match did {
                Did::Tlbi(op) if op.kind() == TlbiKind::Ipas2e1is => {
                    Some(op.operand() & 0xff_ffff_ffff)
                }
                _ => None,
            })
            .collect();
        assert_eq!(hit, places);
    }
}

/// Leaves in several places, and in several tables, are waited for once.
#[test]
fn several_places_are_invalidated_together() {
    for exclusive in [false, true] {
        let mem = Plain::new(PAGE);
        let (mut tree, mut cpu) = tree(&mem, MODERN);
        for page in [0u64, 2, 511, 512, 700] {
            tree.map(&mut cpu, &pages(page * PAGE, GIB, 1), &mut all())
                .expect("mapped");
        }
        mem.forget();
        let (ipa, size, refuse) = (Ipa::new(0), 701 * PAGE, Partial::Refuse);
        if exclusive {
            tree.unmap(
                &mut cpu,
                &Unmap::new(ipa, size).partial(refuse),
                &mut Ignore,
                &mut all(),
            )
        } else {
            tree.unmap_leaves(
                &mut cpu,
                &Unmap::new(ipa, size).partial(refuse),
                &mut Ignore,
                &mut all(),
            )
        }
        .expect("unmapped");
        let done = steps(&mem);
        assert_eq!(done.iter().filter(|step| **step == STAGE1).count(), 1);
    }
}

/// Under shared access no table goes, wherever in the range it stands; under
/// exclusive access only those that the range covers.
#[test]
fn tables_stay_for_those_who_may_be_in_them() {
    for exclusive in [false, true] {
        // Beside nothing, beside a block, and first.
        for before in [0u64, 1, 2] {
            for size in [2 * MIB2, MIB2 + 3 * PAGE] {
                let mem = Plain::new(PAGE);
                let (mut tree, mut cpu) = tree(&mem, MODERN);
                let start = if before == 2 { MIB2 } else { 0 };
                if before == 1 {
                    let block = Map::new(Ipa::new(0), Pa::new(0), MIB2, Attrs::MEMORY);
                    tree.map(&mut cpu, &block, &mut all()).expect("mapped");
                }
                for page in [0, 5, 511] {
                    let at = MIB2 + page * PAGE;
                    tree.map(&mut cpu, &pages(at, GIB + at, 1), &mut all())
                        .expect("mapped");
                }
                let tables = mem.live();
                mem.forget();
                let (ipa, size) = (Ipa::new(start), size - start);
                let refuse = Partial::Refuse;
                let mut told = Vec::new();
                let mut sink = |leaf: RemovedLeaf| told.push(leaf.ipa().get());
                let done = if exclusive {
                    tree.unmap(
                        &mut cpu,
                        &Unmap::new(ipa, size).partial(refuse),
                        &mut sink,
                        &mut all(),
                    )
                } else {
                    tree.unmap_leaves(
                        &mut cpu,
                        &Unmap::new(ipa, size).partial(refuse),
                        &mut sink,
                        &mut all(),
                    )
                };
                assert_eq!(done, Ok(Ipa::new(start + size)));
                let whole = start + size == 2 * MIB2;
                let mut want = Vec::new();
                if before == 1 {
                    want.push(0);
                }
                want.push(MIB2);
                if whole {
                    want.extend([MIB2 + 5 * PAGE, MIB2 + 511 * PAGE]);
                }
                assert_eq!(told, want, "{exclusive} {before} {size:#x}");
                let kept = tree.translate(Ipa::new(MIB2 + 5 * PAGE)).is_some();
                assert_eq!(kept, !whole);
                // The table of pages, and above it one that is empty then.
                let left = if exclusive && whole { 0 } else { tables };
                assert_eq!(mem.live(), left, "{exclusive} {before} {size:#x}");
            }
        }
    }
}

/// Tables that go as a whole are not looked into, if nobody asks.
#[test]
fn what_goes_whole_is_not_read() {
    for torn_down in [false, true] {
        let mem = Plain::new(PAGE);
        let (mut tree, mut cpu) = tree(&mem, MODERN);
        for table in 0..512 {
            tree.map(&mut cpu, &pages(table * MIB2, GIB, 2), &mut all())
                .expect("mapped");
        }
        assert_eq!(mem.live(), 513);
        mem.forget();
        if torn_down {
            let end = tree.teardown(&mut cpu, Ipa::new(0), &mut Ignore, &mut all());
            assert_eq!(end, Ipa::new(1 << 40));
        } else {
            let (ipa, refuse) = (Ipa::new(0), Partial::Refuse);
            tree.unmap(
                &mut cpu,
                &Unmap::new(ipa, GIB).partial(refuse),
                &mut Ignore,
                &mut all(),
            )
            .expect("unmapped");
        }
        assert_eq!(mem.live(), 0);
        let visits = mem.visits();
        // 512 entries that point to tables of pages, and the root.
        assert!(visits < 4096, "{visits}");
    }
}

/// Each table is taken and given back for the level of its entries.
#[test]
fn tables_are_of_a_level() {
    let mem = Plain::new(PAGE);
    let (mut tree, mut cpu) = tree(&mem, MODERN);
    let levels = |mem: &Plain, freed: bool| -> Vec<i8> {
        let level = |did: Did| match did {
            Did::Alloc { level, .. } if !freed => Some(level.get()),
            Did::Free { level, .. } if freed => Some(level.get()),
            _ => None,
        };
        mem.changes().into_iter().filter_map(level).collect()
    };
    let ipa = Ipa::new(0);
    let start = tree.geometry().start().get();
    let below: Vec<i8> = (start + 1..=3).collect();
    for count in [1, 2] {
        // As a fault, and in a run.
        tree.map(&mut cpu, &pages(0, GIB, count), &mut all())
            .expect("mapped");
        assert_eq!(levels(&mem, false), below);
        let (size, refuse) = (count * PAGE, Partial::Refuse);
        tree.unmap(
            &mut cpu,
            &Unmap::new(ipa, size).partial(refuse),
            &mut Ignore,
            &mut all(),
        )
        .expect("unmapped");
        let mut freed = levels(&mem, true);
        freed.sort_unstable();
        assert_eq!(freed, below);
    }
    // A block that is split, and pages that fold.
    let block = Map::new(ipa, Pa::new(GIB), MIB2, Attrs::MEMORY);
    tree.map(&mut cpu, &block, &mut all()).expect("mapped");
    mem.forget();
    let (at, split) = (Ipa::new(PAGE), Partial::Split);
    tree.unmap(
        &mut cpu,
        &Unmap::new(at, PAGE).partial(split),
        &mut Ignore,
        &mut all(),
    )
    .expect("unmapped");
    assert_eq!(levels(&mem, false), [3]);
    tree.map(&mut cpu, &pages(PAGE, GIB + PAGE, 1), &mut all())
        .expect("mapped");
    mem.forget();
    tree.fold(&mut cpu, ipa, Level::L2).expect("alike");
    assert_eq!(levels(&mem, true), [3]);
    let part = tree.subtree(Ipa::new(GIB), Level::L1).expect("a page");
    assert_eq!(levels(&mem, false), [2]);
    part.discard(&mut Budget::unlimited())
        .ok()
        .expect("no bound");
    assert_eq!(levels(&mem, true), [2]);
    tree.map(&mut cpu, &pages(GIB, GIB, 1), &mut all())
        .expect("mapped");
    mem.forget();
    tree.teardown(&mut cpu, ipa, &mut Ignore, &mut all());
    assert_eq!(levels(&mem, true), [2, 3, 2]);
}

/// Another CPU makes a table where this one, on its way back over what it
/// removed, has just seen nothing.
#[test]
fn a_table_that_appears_meanwhile() {
    let mem = Plain::new(PAGE);
    let (tree, mut cpu) = tree(&mem, MODERN);
    let block = Map::new(Ipa::new(MIB2), Pa::new(GIB), MIB2, Attrs::MEMORY);
    tree.map(&mut cpu, &block, &mut all()).expect("mapped");
    let directory = match tree
        .lookup_to(Ipa::new(0), Level::L1)
        .expect("inside")
        .entry
    {
        Entry::Table(table) => table.get(),
        other => panic!("{other:?}"),
    };
    let page = mem.page().get();
    let mut reads = 0;
    mem.interfere_with_reads(move |mem, pa| {
        if pa == directory && mem.word(pa) == 0 {
            // Once, then a third time: the second walk's first look at it.
            reads += 1;
            assert!(reads < 100, "no end");
            let broken = mem.word(directory + 8) & 3 == 2;
            if broken && reads % 2 == 0 {
                mem.poke(pa, page | 3);
            }
        }
    });
    let (ipa, refuse) = (Ipa::new(0), Partial::Refuse);
    let mut told = Vec::new();
    let mut sink = |leaf: RemovedLeaf| told.push(leaf.ipa().get());
    let done = tree.unmap_leaves(
        &mut cpu,
        &Unmap::new(ipa, 2 * MIB2).partial(refuse),
        &mut sink,
        &mut all(),
    );
    mem.undisturbed();
    assert_eq!(done, Ok(Ipa::new(2 * MIB2)));
    assert_eq!(told, [MIB2]);
    let left = tree.lookup(Ipa::new(MIB2)).expect("inside");
    assert_eq!(left.entry, Entry::Invalid(Annotation::EMPTY));
    // What was empty on the way is not looked at again: nothing of it is ours.
    assert_eq!(mem.word(directory), 0);
}

/// As many runs as are kept apart are invalidated apart; one more joins the
/// last, and nothing between the others is touched.
#[test]
fn runs_are_kept_apart() {
    let mem = Plain::new(PAGE);
    let features = Features {
        tlb_range: false,
        ..MODERN
    };
    let (tree, mut cpu) = tree(&mem, features);
    let mut gather = tree.gather();
    assert!(gather.is_empty());
    let mut want = Vec::new();
    for run in 0..RUNS as u64 {
        let at = run * 16 * PAGE;
        tree.map(&mut cpu, &pages(at, GIB, 1), &mut all())
            .expect("mapped");
        want.push(at);
        tree.unmap_later(
            &mut cpu,
            UnmapLater::new(Ipa::new(at), PAGE, &mut gather).partial(Partial::Refuse),
            &mut all(),
            |leaf| {
                assert_eq!(leaf.ipa().get(), at);
                drop(leaf);
            },
        )
        .expect("unmapped");
        assert!(!gather.is_empty());
    }
    let hit = |mem: &Plain| -> Vec<u64> {
        let at = |did: &Did| match did {
            Did::Tlbi(op) if op.kind() == TlbiKind::Ipas2e1is => {
                // A leaf of level 3, and it says so.
                assert_eq!(op.operand() >> 44, 0b0111);
                Some((op.operand() & 0xff_ffff_ffff) << 12)
            }
            _ => None,
        };
        mem.changes().iter().filter_map(at).collect()
    };
    mem.forget();
    let _synced = tree.sync(&mut cpu, gather).expect("of this tree");
    assert_eq!(hit(&mem), want);
}

/// A hint says the level of leaves, for each level that may have one.
#[test]
fn hints_say_the_level_of_leaves() {
    for ttl in [false, true] {
        let mem = Plain::new(PAGE);
        let features = Features {
            ttl,
            tlb_range: false,
            ..MODERN
        };
        let (mut tree, mut cpu) = tree(&mem, features);
        for (level, size) in [(1, GIB), (2, MIB2), (3, PAGE)] {
            let at = Ipa::new(8 * GIB);
            let leaves = Leaves::Exactly(Level::new(level).expect("a level"));
            let map = Map::new(at, Pa::new(GIB), size, Attrs::MEMORY).leaves(leaves);
            tree.map(&mut cpu, &map, &mut all()).expect("mapped");
            let (now, ipa) = (Flush::Now, at);
            mem.forget();
            tree.write_protect(
                &mut cpu,
                Sweep {
                    flush: now,
                    ..Sweep::new(ipa, size)
                },
                &mut all(),
            )
            .expect("mapped");
            let tlbi = mem.changes().into_iter().find_map(|did| match did {
                Did::Tlbi(op) => Some(op.operand()),
                _ => None,
            });
            let hint = if ttl {
                (0b0100 | level as u64) << 44
            } else {
                0
            };
            assert_eq!(tlbi, Some(hint | (8 * GIB) >> 12));
            tree.unmap(
                &mut cpu,
                &Unmap::new(at, size).partial(Partial::Refuse),
                &mut Ignore,
                &mut all(),
            )
            .expect("unmapped");
        }
    }
}

/// Leaves in a row are told together where they are alike: one that hardware has marked
/// accessed is told with its mark, and those around it without.
#[test]
fn a_mark_is_told_of_the_leaf_that_has_it() {
    const AF: u64 = 1 << 10;
    for (level, size) in [(Level::L2, MIB2), (Level::L3, PAGE)] {
        for young in 0..3 {
            let mem = Plain::new(PAGE);
            let (mut tree, mut cpu) = tree(&mem, MODERN);
            let old = Map {
                attrs: Attrs {
                    age: Age::Old,
                    ..Attrs::MEMORY
                },
                ..Map::new(Ipa::new(GIB), Pa::new(GIB), 3 * size, Attrs::MEMORY)
            };
            let map = old.leaves(Leaves::Exactly(level));
            tree.map(&mut cpu, &map, &mut all()).expect("mapped");
            tree.mark_young(&mut cpu, Ipa::new(GIB + young * size))
                .expect("mapped");
            let mut told = Vec::new();
            let mut sink = |leaf: RemovedLeaf| told.push(leaf.raw() & AF != 0);
            let range = Unmap::new(Ipa::new(GIB), 3 * size);
            tree.unmap(&mut cpu, &range, &mut sink, &mut all())
                .expect("unmapped");
            assert_eq!(told, [0, 1, 2].map(|leaf| leaf == young), "{level:?}");
        }
    }
}

/// A table that goes whole is told whole, in one run, by every granule: 16K and 64K have
/// tables of 2048 and 8192 entries.
#[test]
fn a_whole_table_is_one_run() {
    for granule in Granule::ALL {
        for ends in [false, true] {
            let mut config = Stage2Config::new(granule, 40, 48);
            config.features = MODERN;
            let mem = Plain::new(granule.page_size());
            let mut tree = mem.tree(config);
            let mut cpu = mem.cpu(tree.regs());
            let size = tree.geometry().span(Level::L2);
            let (ipa, pa) = (Ipa::new(2 * size), Pa::new(16 * size));
            let map = Map::new(ipa, pa, size, Attrs::MEMORY);
            let map = map.leaves(Leaves::Exactly(Level::L3));
            tree.map(&mut cpu, &map, &mut all()).expect("mapped");
            let mut told = Vec::new();
            let mut sink = Runs(|run: RemovedRun| told.push((run.ipa(), run.pa(), run.size())));
            if ends {
                tree.teardown(&mut cpu, Ipa::new(0), &mut sink, &mut all());
            } else {
                tree.unmap(&mut cpu, &Unmap::new(ipa, size), &mut sink, &mut all())
                    .expect("unmapped");
            }
            assert_eq!(told, [(ipa, pa, size)], "{granule:?}");
        }
    }
}

/// The descriptor of a removed leaf is what it last was, hardware's marks
/// and all.
#[test]
fn a_removed_leaf_is_told_as_it_was() {
    let mem = Plain::new(PAGE);
    let (mut tree, mut cpu) = tree(&mem, MODERN);
    let attrs = Attrs::MEMORY.soft(9).access(Access::Read);
    for (leaves, size) in [(Level::L3, PAGE), (Level::L2, MIB2)] {
        let map =
            Map::new(Ipa::new(GIB), Pa::new(GIB), size, attrs).leaves(Leaves::Exactly(leaves));
        tree.map(&mut cpu, &map, &mut all()).expect("mapped");
        let raw = tree.lookup(Ipa::new(GIB)).expect("inside").raw;
        let mut told = Vec::new();
        let mut sink = |leaf: RemovedLeaf| told.push(leaf);
        let (ipa, refuse) = (Ipa::new(GIB), Partial::Refuse);
        tree.unmap(
            &mut cpu,
            &Unmap::new(ipa, size).partial(refuse),
            &mut sink,
            &mut all(),
        )
        .expect("unmapped");
        assert_eq!(told.len(), 1);
        assert_eq!(told[0].raw(), raw);
        assert_eq!(told[0].ipa().get(), GIB);
        assert_eq!(told[0].pa(), Pa::new(GIB));
        assert_eq!(told[0].size(), size);
        assert_eq!(told[0].level(), leaves);
    }
}

/// Who loses the race for a table under an annotation finds the winner's,
/// and the page goes back empty and counting nothing.
#[test]
fn a_lost_race_under_an_annotation() {
    let note = Annotation::new(0x500).expect("bits 1:0 are zero");
    for changed in [false, true] {
        let mem = Plain::new(PAGE);
        let (mut tree, mut cpu) = tree(&mem, MODERN);
        tree.unmap(
            &mut cpu,
            &Unmap::new(Ipa::new(0), GIB).leaving(note),
            &mut Ignore,
            &mut all(),
        )
        .expect("annotated");
        // Somebody takes the annotation away, or puts another one there.
        let other = if changed { 0x600 } else { 0 };
        let mut once = true;
        mem.interfere(move |mem, pa| {
            if once && mem.word(pa) == 0x500 {
                once = false;
                mem.poke(pa, other);
            }
        });
        mem.forget();
        let map = pages(0, GIB, 1).over(Over::Invalid);
        let done = tree.map(&mut cpu, &map, &mut all());
        assert_eq!(done, Ok(Ipa::new(PAGE)));
        mem.undisturbed();
        let beside = tree.lookup(Ipa::new(PAGE)).expect("inside");
        let left = Annotation::new(other).expect("bits 1:0 are zero");
        assert_eq!(beside.entry, Entry::Invalid(left));
        assert_eq!(beside.level, Level::L3);
        // Every count is what the table holds.
        let mut at = tree.root();
        for level in [Level::L1, Level::L2, Level::L3] {
            let entries = tree.geometry().shape().entries(level) as u64;
            let held = (0..entries)
                .filter(|index| mem.word(at.get() + index * 8) != 0)
                .count();
            let mut count = pgtable::TableMem::count(&mem, at) as usize;
            if level == Level::L1 && !changed {
                // The one who took the annotation did not count it out.
                count -= 1;
            }
            assert_eq!(count, held, "{level}");
            let raw = mem.word(at.get());
            if let Entry::Table(next) = tree.geometry().decode(raw, level) {
                at = next;
            }
        }
    }
}

/// Hardware marks a leaf while it is being split: the mark is not lost, and
/// what was built aside counts for nothing.
#[test]
fn a_split_that_hardware_disturbs() {
    for partial in [Partial::Split, Partial::Refuse] {
        let mem = Plain::new(PAGE);
        let (mut tree, mut cpu) = tree(&mem, MODERN);
        let attrs = Attrs::MEMORY.access(Access::Read).dirty(Dirty::Track);
        let map = Map::new(Ipa::new(0), Pa::new(GIB), MIB2, attrs);
        tree.map(&mut cpu, &map, &mut all()).expect("mapped");
        let mut once = true;
        mem.interfere(move |mem, pa| {
            if once && mem.word(pa) & 1 == 1 {
                once = false;
                mem.poke(pa, mem.word(pa) | 1 << 7);
            }
        });
        let live = mem.live();
        let left = if partial == Partial::Split {
            let (ipa, sink) = (Ipa::new(0), &mut Ignore);
            tree.unmap(
                &mut cpu,
                &Unmap::new(ipa, PAGE).partial(partial),
                sink,
                &mut all(),
            )
            .expect("unmapped");
            MIB2 - PAGE
        } else {
            let page = |level| pgtable::TableMem::alloc(&&mem, level);
            tree.split(
                &mut cpu,
                &Split {
                    ipa: Ipa::new(0),
                    size: MIB2,
                    to: Level::L3,
                },
                page,
                &mut all(),
            )
            .expect("split");
            MIB2
        };
        assert_eq!(mem.live(), live + 1);
        mem.undisturbed();
        let mut dirty = 0;
        tree.harvest_dirty(
            &mut cpu,
            Sweep::new(Ipa::new(0), MIB2),
            &mut all(),
            |_, size| dirty += size,
        )
        .expect("harvested");
        assert_eq!(dirty, left);
        let table = match tree
            .lookup_to(Ipa::new(0), Level::L2)
            .expect("inside")
            .entry
        {
            Entry::Table(table) => table,
            other => panic!("{other:?}"),
        };
        assert_eq!(
            u64::from(pgtable::TableMem::count(&mem, table)),
            left / PAGE
        );
        tree.unmap(
            &mut cpu,
            &Unmap::new(Ipa::new(0), MIB2).partial(Partial::Refuse),
            &mut Ignore,
            &mut all(),
        )
        .expect("unmapped");
        assert_eq!(mem.live(), 0);
    }
}

/// The erratum's extra TLBI comes at the end, once.
#[test]
fn an_erratum_repeats_once() {
    let mut config = Stage2Config::new(Granule::K4, 40, 48);
    config.features = MODERN;
    config.errata = Errata::TLBI_SYNC_REPEAT;
    let geometry = config.validate().expect("legal");
    let mem = Plain::new(PAGE);
    let root = mem.root(geometry.root_align());
    let tree = Stage2::new(geometry, root, Vmid::new(3), &mem).expect("a root");
    let mut cpu = mem.cpu(tree.regs());
    tree.map(&mut cpu, &pages(0, GIB, 1), &mut all())
        .expect("mapped");
    mem.forget();
    tree.write_protect(&mut cpu, Sweep::new(Ipa::new(0), PAGE), &mut all())
        .expect("mapped");
    let want = [
        Step::Change,
        STORED,
        ONE,
        DONE,
        STAGE1,
        DONE,
        STAGE1,
        DONE,
        ISB,
    ];
    assert_eq!(steps(&mem), want);
    let _synced = tree.invalidate_all(&mut cpu);
    let whole = Tlb(TlbiKind::Vmalls12e1is);
    assert_eq!(steps(&mem), [STORED, whole, DONE, STAGE1, DONE, ISB]);
}

/// A CPU whose errata the tree was not made for: it came after it.
struct Late<'m>(Cpu<'m>);

impl Maintenance for Late<'_> {
    fn barrier(&mut self, barrier: Barrier) {
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
    fn errata(&self) -> Errata {
        Errata::TLBI_SYNC_REPEAT
    }
}

/// What a CPU that came late has is asked at each invalidation, of a guest's tables and
/// of EL2's own, and through whoever lends the CPU.
#[test]
fn an_erratum_that_came_late_repeats_too() {
    let mem = Plain::new(PAGE);
    let (tree, cpu) = tree(&mem, MODERN);
    let mut cpu = Late(cpu);
    tree.map(&mut cpu, &pages(0, GIB, 2), &mut all())
        .expect("mapped");
    let repeats = [DONE, STAGE1, DONE, STAGE1, DONE, ISB];
    mem.forget();
    let first = Sweep::new(Ipa::new(0), PAGE);
    tree.write_protect(&mut cpu, first, &mut all())
        .expect("mapped");
    assert_eq!(steps(&mem)[3..], repeats);
    let second = Sweep::new(Ipa::new(PAGE), PAGE);
    tree.write_protect(&mut &mut cpu, second, &mut all())
        .expect("mapped");
    assert_eq!(steps(&mem)[3..], repeats);

    let geometry = El2Config::new(Granule::K4, 48, 48).validate();
    let root = mem.root(PAGE);
    let mut el2 = El2Map::new(geometry.expect("every CPU has it"), root, &mem).expect("a root");
    let range = El2Range::new(Va::new(0), Pa::new(0), PAGE, El2Attrs::DATA);
    el2.map(&mut cpu, &range).expect("mapped");
    mem.forget();
    el2.unmap(&mut cpu, Va::new(0), PAGE).expect("mapped");
    let kinds = mem.changes().into_iter().filter_map(|did| match did {
        Did::Tlbi(op) => Some(op.kind()),
        _ => None,
    });
    // The page, its tables with it, and once more.
    assert_eq!(kinds.collect::<Vec<_>>(), [TlbiKind::Vae2is; 2]);
}

/// Numbers from a seed.
fn random(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
    *seed >> 33
}

/// Maps or removes pages and blocks as `choice` says; where something is removed that
/// nobody is told of, `told` tells all the same, by which it goes the general way.
fn change(
    tree: &mut Stage2<&Plain>,
    cpu: &mut Cpu<'_>,
    choice: u64,
    told: bool,
) -> Result<Ipa, ()> {
    let ipa = choice % 5 * MIB2 / 2 + choice / 5 % 3 * PAGE;
    let ipa = ipa + choice / 16 % 2 * (MIB2 - 3 * PAGE);
    let count = [1, 1, 1, 2, 512][(choice / 32 % 5) as usize];
    let (base, size) = (ipa & !(PAGE - 1), count * PAGE);
    if (choice / 256).is_multiple_of(3) {
        let map = Map::new(Ipa::new(base), Pa::new(base), size, Attrs::MEMORY);
        let map = map.leaves(Leaves::Largest).over(Over::Anything);
        return tree.map(cpu, &map, &mut all()).map_err(|_| ());
    }
    let range = Unmap::new(Ipa::new(base), size);
    if told {
        let mut sink = |_: RemovedLeaf| ();
        tree.unmap(cpu, &range, &mut sink, &mut all())
    } else {
        tree.unmap(cpu, &range, &mut Ignore, &mut all())
    }
    .map_err(|_| ())
}

#[test]
fn one_page_goes_as_any_range_does() {
    use pgtable::TableMem;
    for features in [MODERN, Features::default()] {
        let (short, long) = (Plain::new(PAGE), Plain::new(PAGE));
        let (mut a, mut cpu_a) = tree(&short, features);
        let (mut b, mut cpu_b) = tree(&long, features);
        let mut seed = 7;
        for _ in 0..20_000 {
            let choice = random(&mut seed);
            let done = change(&mut a, &mut cpu_a, choice, false);
            assert_eq!(done, change(&mut b, &mut cpu_b, choice, true), "{choice}");
            // What is left, and what was asked of the CPU and of the allocator. A leaf
            // that somebody is told of is frozen for a moment, which is not compared.
            let (did_a, did_b) = (short.changes(), long.changes());
            let (short, long) = (&short, &long);
            let written = |did: &Did| match *did {
                Did::Write { pa, .. } => Some(pa),
                _ => None,
            };
            for pa in did_a.iter().chain(&did_b).filter_map(written) {
                assert_eq!(short.word(pa), long.word(pa), "{choice}: {pa:#x}");
                let table = Pa::new(pa & !(PAGE - 1));
                assert_eq!(short.count(table), long.count(table), "{choice}");
            }
            let asked = |all: &[Did]| {
                let asked = all.iter().filter(|did| written(did).is_none());
                asked.copied().collect::<Vec<_>>()
            };
            assert_eq!(asked(&did_a), asked(&did_b), "{choice}");
        }
    }
}

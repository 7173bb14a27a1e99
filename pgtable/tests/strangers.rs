//! What programs and faults of people who did not write the crate found: each
//! test is the shortest that shows it.

mod plain;

use pgtable::{
    Access, Annotation, Attrs, Barrier, Budget, CacheOp, El2Attrs, El2Config, El2Map, El2Range,
    Entry, Errata, Error, Execute, Fill, Flush, Granule, HostPages, Ignore, Ipa, Leaves, Level,
    Maintenance, Map, Over, Pa, Partial, Permissions, RUNS, Ripas, Rtt, RttAt, RttError, RttState,
    Split, Stage2, Stage2Config, Stage2Regs, Stopped, Sweep, Synced, TableMem, Tlbi, TlbiKind,
    Unmap, UnmapLater, Va, Vmid,
};
use plain::{Cpu, Did, MODERN, Plain};
use std::cell::RefCell;

const PAGE: u64 = 4096;
const BLOCK: u64 = 2 << 20;
const GIB: u64 = 1 << 30;

fn all() -> Budget {
    Budget::unlimited()
}

fn config() -> Stage2Config {
    let mut config = Stage2Config::new(Granule::K4, 40, 48);
    config.features = MODERN;
    config
}

fn page(ipa: u64, pa: u64) -> Map {
    let exactly = Leaves::Exactly(Level::L3);
    Map::new(Ipa::new(ipa), Pa::new(pa), PAGE, Attrs::MEMORY).leaves(exactly)
}

fn tlbis(mem: &Plain) -> Vec<Tlbi> {
    let tlbi = |did| match did {
        Did::Tlbi(op) => Some(op),
        _ => None,
    };
    mem.changes().into_iter().filter_map(tlbi).collect()
}

fn is_frozen(tree: &Stage2<&Plain>, ipa: u64) -> bool {
    tree.lookup(Ipa::new(ipa)).expect("inside").entry == Entry::Frozen
}

/// The local invalidation after a permission fault names the leaf's level, in
/// whatever page of it the fault was.
#[test]
fn a_relaxed_leaf_is_invalidated_at_its_own_level() {
    for (level, ipa) in [(1, GIB), (2, BLOCK), (3, PAGE)] {
        let mem = Plain::new(PAGE);
        let tree = mem.tree(config());
        let mut cpu = mem.cpu(tree.regs());
        let size = tree.geometry().span(Level::new(level).expect("a level"));
        let map = Map::new(Ipa::new(ipa), Pa::new(ipa), size, Attrs::MEMORY);
        tree.map(&mut cpu, &map, &mut all()).expect("mapped");
        for _already_allowed in [false, true] {
            mem.forget();
            let more = Permissions {
                access: Access::ReadWrite,
                execute: Execute::All,
            };
            let last = ipa + size - PAGE;
            tree.relax(&mut cpu, Ipa::new(last), more).expect("a leaf");
            let first = tlbis(&mem)[0];
            assert_eq!(first.kind(), TlbiKind::Ipas2e1);
            let want = (1 << 2 | level as u64) << 44 | last >> 12;
            assert_eq!(first.operand(), want, "level {level}");
        }
    }
}

/// An assigned block of level 1 unfolds into blocks of level 2, each at its
/// own address, and folds again; RAM and not.
#[test]
fn an_assigned_block_of_level_1_is_blocks_of_level_2() {
    for ripas in [Ripas::Empty, Ripas::Ram] {
        let mem = Plain::new(PAGE);
        let mut config = Stage2Config::new(Granule::K4, 48, 48);
        config.features = MODERN;
        let geometry = config.validate().expect("legal");
        let root = mem.root(geometry.root_align());
        let half = Ipa::new(1 << 47);
        let mut rtt = Rtt::new(geometry, root, Vmid::new(1), &mem, half).expect("a root");
        let mut cpu = mem.cpu(rtt.regs());
        for level in [Level::L1, Level::L2] {
            let made = rtt.create(&mut cpu, RttAt::new(Ipa::new(0), level), mem.page());
            made.expect("a table");
        }
        let memory = 64 * GIB;
        if ripas == Ripas::Ram {
            let done = rtt.init_ripas(Ipa::new(0)..Ipa::new(GIB), |_, _| ());
            assert_eq!(done, Ok(Ipa::new(GIB)));
        }
        for at in (0..GIB).step_by(BLOCK as usize) {
            let made = rtt.create(&mut cpu, RttAt::new(Ipa::new(at), Level::L3), mem.page());
            made.expect("a table");
            for page in (at..at + BLOCK).step_by(PAGE as usize) {
                let data = Pa::new(memory + page);
                rtt.data_create(&mut cpu, Ipa::new(page), data, Fill::Unknown)
                    .expect("assigned");
            }
            rtt.fold(&mut cpu, RttAt::new(Ipa::new(at), Level::L3))
                .expect("alike");
        }
        let at = |rtt: &Rtt<&Plain>, ipa, level| {
            let entry = rtt.read(Ipa::new(ipa), level).expect("inside");
            (entry.level, entry.state)
        };
        let assigned = |ipa| {
            let pa = Pa::new(memory + ipa);
            RttState::Assigned { ripas, pa }
        };
        for _again in 0..2 {
            rtt.fold(&mut cpu, RttAt::new(Ipa::new(0), Level::L2))
                .expect("alike");
            assert_eq!(at(&rtt, 0, Level::L1), (Level::L1, assigned(0)));
            rtt.create(&mut cpu, RttAt::new(Ipa::new(0), Level::L2), mem.page())
                .expect("a block");
            for ipa in (0..GIB).step_by(BLOCK as usize) {
                let want = (Level::L2, assigned(ipa));
                assert_eq!(at(&rtt, ipa, Level::L2), want, "{ipa:#x}");
            }
        }
    }
}

/// A gather of as many places as are kept apart is flushed before the next in
/// the same call, too: what another one holds between them is not its.
#[test]
fn a_full_gather_does_not_grow_over_what_others_hold() {
    let mem = Plain::new(PAGE);
    let tree = mem.tree(config());
    let mut cpu = mem.cpu(tree.regs());
    let places = 2 * RUNS as u64;
    let place = |n: u64| 2 * n * PAGE;
    for n in 0..places {
        let at = place(n);
        tree.map(&mut cpu, &page(at, GIB + at), &mut all())
            .expect("mapped");
    }
    let (mut mine, mut other) = (tree.gather(), tree.gather());
    let refuse = Partial::Refuse;
    let (from, size) = (Ipa::new(0), place(places));
    tree.unmap_later(
        &mut cpu,
        UnmapLater::new(from, size, &mut mine).partial(refuse),
        &mut all(),
        drop,
    )
    .expect("removed");
    let between: Vec<u64> = (0..places - 1).map(|n| place(n) + PAGE).collect();
    for &at in &between {
        tree.map(&mut cpu, &page(at, 2 * GIB + at), &mut all())
            .expect("mapped");
        let at = Ipa::new(at);
        tree.unmap_later(
            &mut cpu,
            UnmapLater::new(at, PAGE, &mut other).partial(refuse),
            &mut all(),
            drop,
        )
        .expect("removed");
        let others: Vec<u64> = between
            .iter()
            .copied()
            .filter(|&at| is_frozen(&tree, at))
            .collect();
        assert!(others.contains(&at.get()));
    }
    let held: Vec<u64> = (between.iter().copied())
        .filter(|&at| is_frozen(&tree, at))
        .collect();
    assert!(!held.is_empty());
    let _proof = tree.sync(&mut cpu, mine).expect("of this tree");
    for &at in &held {
        assert!(is_frozen(&tree, at), "{at:#x} is not this gather's");
    }
    let _proof = tree.sync(&mut cpu, other).expect("of this tree");
    assert!(!between.iter().any(|&at| is_frozen(&tree, at)));
}

/// A CPU at whose barriers and TLBIs another one tries all that it may.
struct Nosy<'m, 't> {
    cpu: Cpu<'m>,
    tree: &'t Stage2<&'m Plain>,
    /// What it tries at a frozen entry, and what that answered.
    tried: RefCell<Vec<Error>>,
}

impl Nosy<'_, '_> {
    fn pry(&self) {
        let tree = self.tree;
        let mem = *tree.mem();
        if !is_frozen(tree, 0) {
            return;
        }
        let log = mem.did.take();
        let cpu = &mut mem.cpu(tree.regs());
        let map = Map::new(Ipa::new(0), Pa::new(7 * GIB), BLOCK, Attrs::MEMORY);
        let mapped = tree.map(cpu, &map.over(Over::Anything), &mut all());
        let small = page(0, 7 * GIB).over(Over::Anything);
        let faulted = tree.map(cpu, &small, &mut all());
        let (ipa, refuse) = (Ipa::new(0), Partial::Refuse);
        let unmapped = tree.unmap_leaves(
            cpu,
            &Unmap::new(ipa, BLOCK).partial(refuse),
            &mut Ignore,
            &mut all(),
        );
        for result in [mapped, faulted, unmapped] {
            let why = result.map_err(|Stopped { why, .. }| why);
            self.tried
                .borrow_mut()
                .push(why.expect_err("nobody else's entry"));
        }
        *mem.did.borrow_mut() = log;
    }
}

impl Maintenance for Nosy<'_, '_> {
    fn barrier(&mut self, barrier: Barrier) {
        self.pry();
        self.cpu.barrier(barrier);
        self.pry();
    }
    fn tlbi(&mut self, op: Tlbi) {
        self.pry();
        self.cpu.tlbi(op);
        self.pry();
    }
    fn cache(&mut self, op: CacheOp) {
        self.cpu.cache(op);
    }
    fn stage2(&mut self) -> Stage2Regs {
        self.cpu.stage2()
    }
    fn set_stage2(&mut self, regs: Stage2Regs) {
        self.cpu.set_stage2(regs);
    }
}

/// While a leaf is replaced, by a leaf or by a linked subtree, its entry is
/// nobody else's, before the invalidation and after.
#[test]
fn a_leaf_being_replaced_is_nobody_elses() {
    for link in [false, true] {
        let mem = Plain::new(PAGE);
        let tree = mem.tree(config());
        let mut cpu = mem.cpu(tree.regs());
        let map = |pa: u64| Map::new(Ipa::new(0), Pa::new(pa), BLOCK, Attrs::MEMORY);
        tree.map(&mut cpu, &map(GIB), &mut all()).expect("mapped");
        let mut nosy = Nosy {
            cpu: mem.cpu(tree.regs()),
            tree: &tree,
            tried: RefCell::default(),
        };
        if link {
            let mut aside = tree.subtree(Ipa::new(0), Level::L2).expect("a page");
            let pages = Map {
                size: 16 * PAGE,
                ..map(2 * GIB)
            };
            aside.map(&mut cpu, &pages, &mut all()).expect("mapped");
            let linked = aside.link(&mut nosy, Over::Anything);
            linked.map_err(|(_, why)| why).expect("linked");
        } else {
            let over = map(2 * GIB).over(Over::Anything);
            tree.map(&mut nosy, &over, &mut all()).expect("mapped");
        }
        let tried = nosy.tried.take();
        // Around each of barrier, TLBI, barrier, TLBI, barrier and ISB.
        assert!(tried.len() >= 3 * 11, "{}", tried.len());
        assert!(tried.iter().all(|why| *why == Error::Busy), "{tried:?}");
        let to = tree.translate(Ipa::new(0)).expect("mapped").0;
        assert_eq!(to, Pa::new(2 * GIB));
    }
}

/// CVE-2025-10263 asks for its second TLBI in EL2's own regime, too.
#[test]
fn el2_repeats_its_invalidation_under_the_erratum() {
    for whole in [false, true] {
        let mem = Plain::new(PAGE);
        let mut config = El2Config::new(Granule::K4, 48, 48);
        config.errata = Errata::TLBI_SYNC_REPEAT;
        let geometry = config.validate().expect("legal");
        let mut el2 = El2Map::new(geometry, mem.page(), &mem).expect("a root");
        let mut cpu = mem.cpu(Stage2Regs::default());
        let size = if whole { 600 * BLOCK } else { PAGE };
        let range = El2Range::new(Va::new(0), Pa::new(0), size, El2Attrs::DATA);
        let leaves = Leaves::AtMost(Level::L2);
        el2.map(&mut cpu, &range.leaves(leaves)).expect("mapped");
        mem.forget();
        el2.unmap(&mut cpu, range.va, size).expect("unmapped");
        let did: Vec<Did> = (mem.changes().into_iter())
            .filter(|did| matches!(did, Did::Tlbi(_) | Did::Barrier(_)))
            .collect();
        let [.., tlbi, dsb, again, last, isb] = did[..] else {
            panic!("{did:?}");
        };
        assert!(matches!(tlbi, Did::Tlbi(_)), "{did:?}");
        assert_eq!([dsb, last], [Did::Barrier(Barrier::DsbIsh); 2]);
        assert!(matches!(again, Did::Tlbi(_)), "{did:?}");
        assert_eq!(isb, Did::Barrier(Barrier::Isb));
    }
}

/// Another VMID is another in any of its 16 bits, and another format is
/// another tree: the CPU gets both registers for the TLBIs, and its own back.
#[test]
fn whatever_else_is_loaded_is_switched_and_put_back() {
    let mut config = config();
    config.features.vmid16 = true;
    let geometry = config.validate().expect("legal");
    let own = Vmid::new(0x105);
    for local in [false, true] {
        let mem = Plain::new(PAGE);
        let root = mem.root(geometry.root_align());
        let tree = Stage2::new(geometry, root, own, &mem).expect("a root");
        let regs = tree.regs();
        let mut loaded: Vec<Stage2Regs> = (48..64)
            .map(|bit| Stage2Regs {
                vttbr: regs.vttbr ^ 1 << bit,
                ..regs
            })
            .collect();
        // DS: a range's base counts in 64 KiB. And another granule.
        for vtcr in [regs.vtcr ^ 1 << 32, regs.vtcr ^ 1 << 15] {
            loaded.push(Stage2Regs { vtcr, ..regs });
        }
        let mut cpu = mem.cpu(regs);
        tree.map(&mut cpu, &page(0, GIB), &mut all())
            .expect("mapped");
        for other in loaded {
            cpu.regs = other;
            mem.forget();
            if local {
                let more = Permissions {
                    access: Access::Read,
                    execute: Execute::All,
                };
                tree.relax(&mut cpu, Ipa::new(0), more).expect("a leaf");
            } else {
                let _all = tree.invalidate_all(&mut cpu);
            }
            let did = mem.changes();
            let at = |wanted: fn(&Did) -> bool| did.iter().position(wanted).expect("done");
            let switched = at(|did| matches!(did, Did::Stage2(_)));
            assert_eq!(did[switched], Did::Stage2(regs), "{other:x?}");
            assert_eq!(did[switched + 1], Did::Barrier(Barrier::Isb));
            assert!(switched < at(|did| matches!(did, Did::Tlbi(_))));
            assert_eq!(cpu.regs, other);
        }
        cpu.regs = regs;
        mem.forget();
        let _all = tree.invalidate_all(&mut cpu);
        let switched = |did: &Did| matches!(did, Did::Stage2(_));
        assert!(!mem.changes().iter().any(switched));
    }
}

/// A gather is of the tree that made it: no other fills it or syncs it, and
/// its leaves stay closed.
#[test]
fn a_gather_is_of_its_tree() {
    let mem = Plain::new(PAGE);
    let (one, two) = (mem.tree(config()), mem.tree(config()));
    let mut cpu = mem.cpu(one.regs());
    for tree in [&one, &two] {
        tree.map(&mut cpu, &page(0, GIB), &mut all())
            .expect("mapped");
    }
    let mut gather = one.gather();
    let (ipa, refuse) = (Ipa::new(0), Partial::Refuse);
    mem.forget();
    let other = Err(Stopped {
        why: Error::OtherTree,
        next: ipa,
    });
    let later = two.unmap_later(
        &mut cpu,
        UnmapLater::new(ipa, PAGE, &mut gather).partial(refuse),
        &mut all(),
        drop,
    );
    assert_eq!(later, other);
    let flush = Flush::Later(&mut gather);
    let protected = two.write_protect(
        &mut cpu,
        Sweep {
            flush,
            ..Sweep::new(ipa, PAGE)
        },
        &mut all(),
    );
    assert_eq!(protected, other);
    assert!(mem.changes().is_empty());
    let mut held = None;
    let hold = |leaf| held = Some(leaf);
    one.unmap_later(
        &mut cpu,
        UnmapLater::new(ipa, PAGE, &mut gather).partial(refuse),
        &mut all(),
        hold,
    )
    .expect("removed");
    mem.forget();
    let gather = two.sync(&mut cpu, gather).expect_err("another tree's");
    assert!(mem.changes().is_empty());
    let proof = two.invalidate_all(&mut cpu);
    let held = held.expect("a leaf").release(&proof);
    let held = held.expect_err("another tree's proof");
    let proof = one.sync(&mut cpu, gather).expect("its own");
    held.release(&proof).expect("its own proof");
}

/// An allocator with pages that the tree's descriptors cannot say.
struct Elsewhere<'m> {
    mem: &'m Plain,
    page: u64,
    back: RefCell<Vec<u64>>,
}

impl TableMem for Elsewhere<'_> {
    type Table = u64;
    fn locate(&self, pa: Pa) -> u64 {
        self.mem.locate(pa)
    }
    fn load(&self, table: u64, index: usize) -> u64 {
        self.mem.load(table, index)
    }
    fn store(&self, table: u64, index: usize, value: u64) {
        self.mem.store(table, index, value);
    }
    fn cas(&self, table: u64, index: usize, old: u64, new: u64) -> Result<(), u64> {
        self.mem.cas(table, index, old, new)
    }
    fn alloc(&self, _: Level) -> Option<Pa> {
        Some(Pa::new(self.page))
    }
    fn free(&self, table: Pa, _: Level, _: &Synced) {
        self.back.borrow_mut().push(table.get());
    }
    fn count(&self, table: Pa) -> u32 {
        self.mem.count(table)
    }
    fn add_count(&self, table: Pa, by: i32) {
        self.mem.add_count(table, by);
    }
}

/// A table page above the output range, or off a page, is refused and comes
/// back, and nothing is linked.
#[test]
fn a_table_page_that_no_descriptor_can_say_is_refused() {
    let mut config = Stage2Config::new(Granule::K4, 40, 40);
    config.features = MODERN;
    let geometry = config.validate().expect("legal");
    for bad in [1 << 40, 1 << 50 | 0x200_0000, 0x200_0800] {
        let mem = Plain::new(PAGE);
        let root = mem.root(geometry.root_align());
        let elsewhere = Elsewhere {
            mem: &mem,
            page: bad,
            back: RefCell::default(),
        };
        let tree = Stage2::new(geometry, root, Vmid::new(1), &elsewhere).expect("a root");
        let mut cpu = mem.cpu(tree.regs());
        let range = Err(Error::Range);
        let why = |result: Result<Ipa, Stopped<Ipa>>| result.map(drop).map_err(|s| s.why);
        let block = Map::new(Ipa::new(0), Pa::new(0), GIB, Attrs::MEMORY);
        tree.map(&mut cpu, &block, &mut all()).expect("no table");
        mem.forget();
        let free = Map {
            ipa: Ipa::new(GIB),
            ..page(0, 0)
        };
        assert_eq!(why(tree.map(&mut cpu, &free, &mut all())), range);
        let two = Map {
            size: 2 * PAGE,
            ..free
        };
        assert_eq!(why(tree.map(&mut cpu, &two, &mut all())), range);
        let over = page(0, BLOCK).over(Over::Anything);
        assert_eq!(why(tree.map(&mut cpu, &over, &mut all())), range);
        assert_eq!(
            tree.subtree(Ipa::new(0), Level::L1).err(),
            Some(Error::Range)
        );
        let pages = |_| Some(Pa::new(bad));
        let split = tree.split(
            &mut cpu,
            &Split {
                ipa: Ipa::new(0),
                size: GIB,
                to: Level::L3,
            },
            pages,
            &mut all(),
        );
        assert_eq!(why(split), range);
        assert!(
            !mem.changes()
                .iter()
                .any(|did| matches!(did, Did::Write { .. }))
        );
        let back = elsewhere.back.borrow();
        // The fault's page goes back on the short way and on the long one.
        assert_eq!(back[..], [bad; 6], "{bad:#x}");
        let empty = Entry::Invalid(Annotation::EMPTY);
        let found = tree.lookup(Ipa::new(GIB)).expect("inside");
        assert_eq!((found.level, found.entry), (Level::L1, empty));
    }
}

/// The end of a realm keeps to its budget, over the largest of roots, and is
/// one invalidation; once begun, nothing else comes in between.
#[test]
fn a_realm_ends_in_steps_by_one_invalidation() {
    let mem = Plain::new(64 << 10);
    let mut config = Stage2Config::new(Granule::K64, 46, 48);
    config.features = MODERN;
    let geometry = config.validate().expect("legal");
    let root = mem.root(geometry.root_align());
    let vmid = Vmid::new(4);
    let mut rtt = Rtt::new(geometry, root, vmid, &mem, Ipa::new(0)).expect("a root");
    let mut cpu = mem.cpu(rtt.regs());
    let span = geometry.span(Level::L2);
    let (ipa, pa) = (Ipa::new(5 * span), Pa::new(9 * span));
    rtt.map_unprotected(
        &mut cpu,
        &HostPages {
            ipa,
            level: Level::L2,
            pa,
            attrs: Attrs::MEMORY,
            count: 1,
        },
        &mut all(),
    )
    .expect("mapped");
    let (mut calls, mut invalidations, mut told) = (0u64, 0, 0);
    loop {
        mem.forget();
        let mut sink = |_: pgtable::RemovedLeaf| told += 1;
        let next = rtt.retire(&mut cpu, &mut sink, &mut Budget::entries(1000));
        // An entry is read once, the mapped one swapped and stored.
        assert!(mem.visits() <= 2002, "{} in one call", mem.visits());
        invalidations += tlbis(&mem).len();
        calls += 1;
        if next == Ok(Ipa::new(1 << 46)) {
            break;
        }
        if told == 0 {
            let again = rtt.map_unprotected(
                &mut cpu,
                &HostPages {
                    ipa: Ipa::new(0),
                    level: Level::L2,
                    pa,
                    attrs: Attrs::MEMORY,
                    count: 1,
                },
                &mut all(),
            );
            assert_eq!(again, Err(RttError::Input));
            let gone = rtt.unmap_unprotected(&mut cpu, ipa, Level::L2, &mut all());
            assert_eq!(gone, Err(RttError::Input));
        }
        assert!(calls < 1000);
    }
    let entries = geometry.shape().root_entries() as u64;
    assert_eq!(entries, 16 * 8192);
    assert!(calls >= entries / 1000, "{calls}");
    assert_eq!((invalidations, told), (1, 1));
}

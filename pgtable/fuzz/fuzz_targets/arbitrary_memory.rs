//! Arbitrary memory taken for tables, table loops included: no operation
//! panics, and none works without bound, whatever stands in memory.
//! `cargo fuzz run arbitrary_memory -- -max_len=2048 -len_control=0`.
//!
//! Memory is either *folded* (every address leads into the same few words, so
//! that tables lie over each other) or *sparse* (the same few words again and
//! again, each address for itself, so that tables point to themselves and to
//! each other). All that an operation asks of memory and of the CPU is counted
//! and held against its budget.

#![no_main]

mod numbers;

use libfuzzer_sys::fuzz_target;
use numbers::numbers;
use pgtable::{
    Access, Annotation, Attrs, Barrier, Budget, CacheOp, Change, ChangeDestroyed, Dirty, El2Attrs,
    El2Config, El2Map, El2Range, Execute, Features, Fill, Geometry, Granule, HostPages, Ignore,
    Ipa, Leaves, Level, Maintenance, Map, Next, Over, Pa, Partial, Permissions, RemovedLeaf, Ripas,
    Rtt, RttAt, Split, Stage2, Stage2Config, Stage2Regs, Sweep, Synced, TableMem, Tlbi, Unmap,
    UnmapLater, Va, Vmid,
};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;

/// Pages that `alloc` gives come from here on.
const FRESH: u64 = 0xf000_0000;

struct Any<'a> {
    words: &'a [u64],
    folded: bool,
    stored: RefCell<HashMap<u64, u64>>,
    counts: RefCell<HashMap<u64, i32>>,
    page: u64,
    /// Pages that `alloc` gave, and may still give.
    given: Cell<u64>,
    left: Cell<u64>,
    /// Loads, stores, swaps, pages, TLBIs, barriers, cache operations.
    work: Cell<u64>,
}

impl Any<'_> {
    fn tick(&self) {
        self.work.set(self.work.get() + 1);
    }

    fn address(&self, table: u64, index: usize) -> u64 {
        let address = table.wrapping_add(index as u64 * 8);
        if self.folded {
            address % (self.words.len() as u64 * 8)
        } else {
            address
        }
    }

    fn word(&self, at: u64) -> u64 {
        let fresh = FRESH..FRESH + self.given.get() * self.page;
        let first = || {
            if !self.folded && fresh.contains(&at) {
                return 0;
            }
            self.words[(at / 8) as usize % self.words.len()]
        };
        self.stored.borrow().get(&at).copied().unwrap_or_else(first)
    }
}

impl TableMem for Any<'_> {
    type Table = u64;
    fn locate(&self, pa: Pa) -> u64 {
        pa.get()
    }
    fn load(&self, table: u64, index: usize) -> u64 {
        self.tick();
        self.word(self.address(table, index))
    }
    fn store(&self, table: u64, index: usize, value: u64) {
        self.tick();
        let at = self.address(table, index);
        self.stored.borrow_mut().insert(at, value);
    }
    fn cas(&self, table: u64, index: usize, old: u64, new: u64) -> Result<(), u64> {
        self.tick();
        let at = self.address(table, index);
        let now = self.word(at);
        if now != old {
            return Err(now);
        }
        self.stored.borrow_mut().insert(at, new);
        Ok(())
    }
    fn alloc(&self, _: Level) -> Option<Pa> {
        self.tick();
        if self.folded || self.left.get() == 0 {
            return None;
        }
        self.left.set(self.left.get() - 1);
        let page = self.given.get();
        self.given.set(page + 1);
        Some(Pa::new(FRESH + page * self.page))
    }
    fn free(&self, _: Pa, _: Level, _: &Synced) {
        self.tick();
    }
    fn count(&self, table: Pa) -> u32 {
        // A table that nobody made has some count.
        let first = (table.get() >> 12) as i32 & 3;
        let count = *self.counts.borrow().get(&table.get()).unwrap_or(&first);
        count.max(0) as u32
    }
    fn add_count(&self, table: Pa, by: i32) {
        let count = (self.count(table) as i32).saturating_add(by);
        self.counts.borrow_mut().insert(table.get(), count.max(0));
    }
}

/// A CPU that is asked, and counts.
struct Cpu<'a> {
    mem: &'a Any<'a>,
    regs: Stage2Regs,
}

impl Maintenance for Cpu<'_> {
    fn barrier(&mut self, _: Barrier) {
        self.mem.tick();
    }
    fn tlbi(&mut self, _: Tlbi) {
        self.mem.tick();
    }
    fn cache(&mut self, _: CacheOp) {
        self.mem.tick();
    }
    fn stage2(&mut self) -> Stage2Regs {
        self.regs
    }
    fn set_stage2(&mut self, regs: Stage2Regs) {
        self.regs = regs;
    }
}

type Op = [u64; 3];

/// Any answer will do.
fn answered<T>(_: T) {}

/// An operation's arguments, made legal where an illegal one would only be
/// refused.
struct Arguments {
    ipa: Ipa,
    size: u64,
    pa: Pa,
    attrs: Attrs,
    partial: Partial,
    over: Over,
    level: Level,
    leaves: Leaves,
    entries: u64,
}

impl Arguments {
    fn new(geometry: &Geometry, [kind, a, b]: Op) -> Self {
        let page = geometry.granule().page_size();
        let space = 1u64 << geometry.ipa_bits();
        let level = Level::new((kind >> 16 & 3) as i8).unwrap_or(Level::L3);
        let span = geometry.span(level.max(geometry.start()));
        let (ipa, size) = match kind >> 8 & 3 {
            0 => (a % space & !(page - 1), (1 + b % 64) * page),
            1 => (a % space & !(span - 1), (1 + b % 4) * span),
            2 => (0, space),
            _ => (a % space & !(page - 1), u64::MAX),
        };
        let output = 1u64 << geometry.shape().oa_bits();
        Self {
            ipa: Ipa::new(ipa),
            size: size.min(space - ipa),
            pa: Pa::new(b.rotate_right(17) % output & !(page - 1)),
            attrs: Attrs {
                access: [Access::ReadWrite, Access::Read][(kind >> 18 & 1) as usize],
                execute: [Execute::All, Execute::Never][(kind >> 19 & 1) as usize],
                dirty: [Dirty::Fault, Dirty::Track][(kind >> 20 & 1) as usize],
                ..Attrs::MEMORY
            },
            partial: [Partial::Split, Partial::DropWhole, Partial::Refuse]
                [(kind >> 21 & 3) as usize % 3],
            over: [Over::Anything, Over::Invalid, Over::Nothing][(kind >> 23 & 3) as usize % 3],
            level,
            leaves: match kind >> 25 & 3 {
                0 => Leaves::Exactly(level),
                1 => Leaves::AtMost(level),
                _ => Leaves::Largest,
            },
            entries: 1 << (kind >> 27 & 7),
        }
    }

    fn map(&self) -> Map {
        let map = Map::new(self.ipa, self.pa, self.size, self.attrs);
        map.leaves(self.leaves).over(self.over)
    }
}

/// What an operation may ask for with a budget of `entries`: each unit of it
/// may make, fill or read one table, and a few tables come besides.
fn bound(geometry: &Geometry, entries: u64) -> u64 {
    let table = geometry.granule().entries() as u64 + 32;
    2 * (entries + 8) * table + 8 * geometry.shape().root_entries() as u64
}

fn stage2(tree: &mut Stage2<&Any<'_>>, cpu: &mut Cpu<'_>, op: Op) {
    let it = Arguments::new(tree.geometry(), op);
    let budget = &mut Budget::entries(it.entries);
    match op[0] % 24 {
        0 => walk(tree, &it, op[1]),
        1 => look(tree, &it, op[1]),
        2 => answered(tree.map(cpu, &it.map(), budget)),
        3 => answered(tree.map_exclusive(cpu, &it.map(), &mut told, budget)),
        4..=8 => remove(tree, cpu, &it, op),
        9..=15 => change(tree, cpu, &it, op),
        _ => reshape(tree, cpu, &it, op),
    }
}

fn told(_: RemovedLeaf) {}

fn walk(tree: &Stage2<&Any<'_>>, it: &Arguments, mut turn: u64) {
    let (mem, geometry) = (*tree.mem(), tree.geometry());
    let before = mem.work.get();
    let budget = &mut Budget::entries(it.entries);
    let _ = tree.walk(it.ipa, it.size, budget, |seen| {
        let _ = geometry.decode(seen.raw, seen.level);
        turn = turn.rotate_left(1);
        match turn & 15 {
            0 => Next::Skip,
            1 => Next::Retry,
            _ => Next::Descend,
        }
    });
    // A walk is the plainest: an entry, and its table's first entry; down
    // to its own first entry it goes whatever the budget.
    let (work, entries) = (mem.work.get() - before, it.entries);
    let may = work <= 2 * entries + 12;
    assert!(may, "{work} loads for {entries} entries");
}

fn look(tree: &Stage2<&Any<'_>>, it: &Arguments, at: u64) {
    let (mem, geometry) = (*tree.mem(), tree.geometry());
    let before = mem.work.get();
    let found = tree.lookup(Ipa::new(at)).ok();
    let to = tree.lookup_to(Ipa::new(at), it.level).ok();
    assert!(found.is_some() == (at >> geometry.ipa_bits() == 0));
    assert!(to.is_none_or(|to| to.level <= it.level.max(geometry.start())));
    let _ = tree.translate(it.ipa);
    assert!(mem.work.get() - before <= 15, "five levels at most");
}

fn remove(tree: &mut Stage2<&Any<'_>>, cpu: &mut Cpu<'_>, it: &Arguments, [kind, _, b]: Op) {
    let budget = &mut Budget::entries(it.entries);
    let range = Unmap::new(it.ipa, it.size).partial(it.partial);
    match kind % 24 {
        4 => answered(tree.unmap(cpu, &range, &mut Ignore, budget)),
        5 => answered(tree.unmap(cpu, &range, &mut told, budget)),
        6 => answered(tree.unmap_leaves(cpu, &range, &mut Ignore, budget)),
        7 => {
            let mut gather = tree.gather();
            let range = UnmapLater::new(it.ipa, it.size, &mut gather);
            let _ = tree.unmap_later(cpu, range.partial(it.partial), budget, drop);
            let _ = tree.sync(cpu, gather).expect("of this tree");
        }
        _ => {
            let annotation = Annotation::new(b & 0xffc).expect("bits 1:0 are zero");
            answered(tree.unmap(cpu, &range.leaving(annotation), &mut told, budget));
        }
    }
}

/// Leaves that stay.
fn change(tree: &mut Stage2<&Any<'_>>, cpu: &mut Cpu<'_>, it: &Arguments, [kind, a, _]: Op) {
    let budget = &mut Budget::entries(it.entries);
    let sweep = || Sweep::new(it.ipa, it.size);
    let permissions = Permissions {
        access: it.attrs.access,
        execute: it.attrs.execute,
    };
    match kind % 24 {
        9 => {
            let mut gather = tree.gather();
            let range = sweep().partial(it.partial).later(&mut gather);
            let _ = tree.protect(cpu, range, permissions, budget);
            let _ = tree.sync(cpu, gather).expect("of this tree");
        }
        10 => answered(tree.write_protect(cpu, sweep(), budget)),
        11 => answered(tree.clear_young(cpu, sweep(), budget)),
        12 => answered(tree.count_young(cpu, it.ipa, it.size, budget)),
        13 => answered(tree.mark_young(cpu, Ipa::new(a))),
        14 => answered(tree.harvest_dirty(cpu, sweep(), budget, |_, _| ())),
        _ => answered(tree.relax(cpu, Ipa::new(a), permissions)),
    }
}

fn reshape(tree: &mut Stage2<&Any<'_>>, cpu: &mut Cpu<'_>, it: &Arguments, [kind, _, b]: Op) {
    let budget = &mut Budget::entries(it.entries);
    let Arguments {
        ipa, size, level, ..
    } = *it;
    match kind % 24 {
        16 => {
            let mem = *tree.mem();
            let to = level;
            let range = Split { ipa, size, to };
            answered(tree.split(cpu, &range, |level| mem.alloc(level), budget));
        }
        17 => answered(tree.fold(cpu, ipa, level)),
        18 => answered(tree.set_contiguous(cpu, ipa)),
        19 => answered(tree.clear_contiguous(cpu, ipa)),
        20 => {
            let Ok(frozen) = tree.freeze(ipa, level) else {
                return;
            };
            let _ = frozen.old();
            match b & 3 {
                0 => frozen.rollback(cpu),
                1 => answered(frozen.commit(cpu, Change::Invalid(Annotation::EMPTY))),
                2 => answered(frozen.commit(cpu, Change::Leaf(it.pa, it.attrs))),
                _ => drop(frozen),
            }
        }
        21 => {
            let Ok(mut built) = tree.subtree(ipa, level) else {
                return;
            };
            let _ = built.map(cpu, &it.map(), budget);
            if let Err((built, _)) = built.link(cpu, it.over) {
                answered(built.discard(budget));
            }
        }
        22 => answered(tree.flush_caches(cpu, ipa, size, budget)),
        _ => answered(tree.teardown(cpu, ipa, &mut told, budget)),
    }
}

fn rtt(rtt: &mut Rtt<&Any<'_>>, cpu: &mut Cpu<'_>, op: Op) {
    let geometry = *rtt.geometry();
    let arguments = Arguments::new(&geometry, op);
    let Arguments { ipa, pa, level, .. } = arguments;
    let [kind, a, b] = op;
    let end = Ipa::new(ipa.get() + arguments.size);
    let budget = &mut Budget::entries(b >> 16 & 0xff);
    let mut told = |_: RemovedLeaf| ();
    match kind % 14 {
        0 => answered(rtt.read(ipa, level)),
        1 => answered(rtt.find(Ipa::new(a))),
        2 => answered(rtt.data_check(ipa)),
        3 => answered(rtt.ripas(ipa..end)),
        4 => answered(rtt.init_ripas(ipa..end, |_, _| ())),
        5 => {
            let to = [Ripas::Empty, Ripas::Ram, Ripas::Destroyed][(b % 3) as usize];
            let how = [ChangeDestroyed::No, ChangeDestroyed::Yes][(b >> 8 & 1) as usize];
            answered(rtt.set_ripas(cpu, ipa..end, to, how));
        }
        6 => answered(rtt.create(cpu, RttAt::new(ipa, level), pa)),
        7 => answered(rtt.destroy(cpu, RttAt::new(ipa, level), &mut told, budget)),
        8 => answered(rtt.fold(cpu, RttAt::new(ipa, level))),
        9 => answered(rtt.data_create(cpu, ipa, pa, Fill::Known)),
        10 => answered(rtt.data_destroy(cpu, ipa)),
        11 => answered(rtt.map_unprotected(
            cpu,
            &HostPages {
                ipa,
                level,
                pa,
                attrs: arguments.attrs,
                count: 1 + b as usize % 600,
            },
            budget,
        )),
        12 => answered(rtt.unmap_unprotected(cpu, ipa, level, budget)),
        _ => answered(rtt.retire(cpu, &mut told, budget)),
    }
}

/// EL2's own map has no budgets, and what it takes out it takes out whole: its
/// tables are EL2's own. It is looked at, and mapped over nothing, here.
fn el2(map: &mut El2Map<&Any<'_>>, cpu: &mut Cpu<'_>, [kind, a, b]: Op) {
    let page = map.geometry().shape().granule().page_size();
    let space = 1u64 << map.geometry().shape().ia_bits();
    let output = 1u64 << map.geometry().shape().oa_bits();
    let (va, size) = (a % space & !(page - 1), (1 + b % 16) * page);
    if kind & 1 == 0 {
        answered(map.translate(Va::new(a)));
        return;
    }
    let range = El2Range::new(
        Va::new(va),
        Pa::new(b.rotate_right(17) % output & !(page - 1)),
        size,
        El2Attrs::DATA,
    );
    answered(map.map(cpu, &range));
}

fuzz_target!(|data: &[u8]| {
    let numbers = numbers(data);
    let [which, ops, rest @ ..] = &numbers[..] else {
        return;
    };
    let count = (1 + *ops as usize % 16).min(rest.len() / 4);
    let (ops, words) = rest.split_at(3 * count);
    if words.is_empty() {
        return;
    }
    let granule = Granule::ALL[(which % 3) as usize];
    let bit = |n: u32| which >> n & 1 == 1;
    let bits = 32 + (which >> 8) as u8 % 21;
    let mut config = Stage2Config::new(granule, bits, 52);
    config.lpa2 = bit(16) && granule != Granule::K64;
    config.features = Features {
        fwb: bit(17),
        xnx: bit(18),
        tlb_range: bit(19),
        ttl: bit(20),
        hw_access_flag: bit(21),
        hw_dirty: bit(21) && bit(22),
        bbm2: bit(23),
        dic: bit(24),
        ..config.features
    };
    let Ok(geometry) = config.validate() else {
        return;
    };
    let mem = Any {
        words,
        folded: bit(25),
        stored: RefCell::default(),
        counts: RefCell::default(),
        page: granule.page_size(),
        given: Cell::new(0),
        left: Cell::new(u64::from(*which as u32 >> 26)),
        work: Cell::new(0),
    };
    // Somewhere in the middle of it, where tables may point back to.
    let root = Pa::new((which >> 32 << 12) & !(geometry.root_align() - 1));
    let Ok(mut tree) = Stage2::new(geometry, root, Vmid::new(3), &mem) else {
        return;
    };
    let Ok(mut realm) = Rtt::new(geometry, root, Vmid::new(3), &mem, Ipa::new(u64::MAX)) else {
        return;
    };
    let mut config = El2Config::new(granule, 48, 48);
    config.features = *geometry.features();
    let own = config
        .validate()
        .map(|geometry| El2Map::new(geometry, root, &mem));
    let mut own = own.expect("every CPU has it").ok();
    let mut cpu = Cpu {
        mem: &mem,
        regs: Stage2Regs::default(),
    };
    for op in ops.as_chunks::<3>().0 {
        mem.work.set(0);
        match (op[0] >> 12 & 3, &mut own) {
            (0 | 1, _) => stage2(&mut tree, &mut cpu, *op),
            (3, Some(own)) => el2(own, &mut cpu, *op),
            _ => rtt(&mut realm, &mut cpu, *op),
        }
        let entries = Arguments::new(&geometry, *op).entries;
        let (work, most) = (mem.work.get(), bound(&geometry, entries));
        assert!(work <= most, "{op:x?}: {work} accesses, {most} are allowed");
    }
});

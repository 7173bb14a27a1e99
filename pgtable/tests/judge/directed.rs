//! What chance seldom meets: large blocks, whole tables alike, lost races.

use super::peer::{Peer, Work};
use super::{Cpu, Judge};
use mmu_model::{EventKind, Owner, Reg};
use pgtable::{
    Annotation, Attrs, Barrier, Budget, CacheOp, Entry, Error, Features, Geometry, Granule,
    HeldLeaf, Ignore, Ipa, Leaves, Level, Maintenance, Map, Over, Pa, Partial, Stage2,
    Stage2Config, Stage2Regs, Synced, TableMem, Tlbi, Unmap, UnmapLater, Vmid,
};
use std::cell::Cell;

fn geometry(granule: Granule, ipa_bits: u8) -> Geometry {
    let mut config = Stage2Config::new(granule, ipa_bits, 48);
    config.features = Features {
        fwb: true,
        dic: true,
        xnx: true,
        ..Features::default()
    };
    config.validate().expect("legal")
}

fn judge(geometry: &Geometry) -> Judge {
    let model = mmu_model::Features {
        pa_bits: 48,
        lpa2: false,
        ttl: false,
        tlbirange: false,
        hafdbs: 0,
        bbm: 0,
        ..mmu_model::Features::max()
    };
    Judge::new(model, 1, geometry.granule().page_size())
}

/// An empty tree on this memory of the judge's, in use.
fn tree<M: TableMem>(judge: &Judge, geometry: Geometry, mem: M) -> Stage2<M> {
    let root = judge.root(geometry.root_align());
    let tree = Stage2::new(geometry, root, Vmid::new(1), mem).expect("a root");
    judge.write(Reg::Vtcr, tree.geometry().vtcr());
    judge.write(Reg::Vttbr, tree.vttbr());
    judge.event(EventKind::ISB);
    tree
}

fn expect<T: PartialEq + std::fmt::Debug>(judge: &Judge, what: &str, got: T, want: T) {
    if got != want {
        judge.complain(format!("{what}: {got:?}, not {want:?}"));
    }
}

fn verdict(judge: &Judge) -> Result<(), String> {
    judge.broken.borrow().clone().map_or(Ok(()), Err)
}

/// 16K without LPA2 has no 64 GiB blocks, neither mapped nor folded.
fn no_block_where_none_may_stand() -> Result<(), String> {
    let geometry = geometry(Granule::K16, 40);
    let mut config = Stage2Config::new(Granule::K16, 40, 48);
    config.start = pgtable::Start::At(Level::L1);
    config.features = *geometry.features();
    let geometry = config.validate().expect("legal");
    let judge = judge(&geometry);
    let mut tree = tree(&judge, geometry, &judge);
    let size = 64u64 << 30;
    let map = Map::new(Ipa::new(0), Pa::new(size), size, Attrs::MEMORY);
    let mut cpu = Cpu(&judge);
    let next = tree.map(&mut cpu, &map, &mut Budget::unlimited());
    expect(&judge, "map", next, Ok(Ipa::new(size)));
    let level = tree.lookup(Ipa::new(0)).map(|found| found.level);
    expect(&judge, "level", level, Ok(Level::L2));
    let folded = tree.fold(&mut cpu, Ipa::new(0), Level::L1);
    expect(
        &judge,
        "fold",
        folded,
        Err(Error::BlockLevel { level: Level::L1 }),
    );
    judge.event(EventKind::Quiesce { lo: 0, hi: size });
    verdict(&judge)
}

/// Adjacent pages fold, pages that all lead to one do not.
fn folds_what_is_adjacent() -> Result<(), String> {
    let geometry = geometry(Granule::K4, 40);
    let judge = judge(&geometry);
    let mut tree = tree(&judge, geometry, &judge);
    let mut cpu = Cpu(&judge);
    let block = 2u64 << 20;
    let map = Map::new(Ipa::new(0), Pa::new(0x4000_0000), block, Attrs::MEMORY)
        .leaves(Leaves::Exactly(Level::L3));
    let _ = tree.map(&mut cpu, &map, &mut Budget::unlimited());
    expect(
        &judge,
        "fold",
        tree.fold(&mut cpu, Ipa::new(0), Level::L2),
        Ok(()),
    );
    let leaf = tree
        .lookup(Ipa::new(0x1000))
        .map(|found| (found.level, found.base));
    expect(&judge, "block", leaf, Ok((Level::L2, Ipa::new(0))));
    for page in 0..512 {
        let at = Ipa::new(block + page * 4096);
        let map = Map::new(at, Pa::new(0x4000_0000), 4096, Attrs::MEMORY)
            .leaves(Leaves::Exactly(Level::L3));
        let _ = tree.map(&mut cpu, &map, &mut Budget::unlimited());
    }
    let folded = tree.fold(&mut cpu, Ipa::new(block), Level::L2);
    expect(
        &judge,
        "alias",
        folded,
        Err(Error::Mismatch { level: Level::L3 }),
    );
    // Adjacent, but one page says something else.
    for page in 0..512 {
        let at = 2 * block + page * 4096;
        let attrs = Attrs::MEMORY.soft(u8::from(page == 77));
        let map = Map::new(Ipa::new(at), Pa::new(0x4000_0000 + at), 4096, attrs)
            .leaves(Leaves::Exactly(Level::L3));
        let _ = tree.map(&mut cpu, &map, &mut Budget::unlimited());
    }
    let folded = tree.fold(&mut cpu, Ipa::new(2 * block), Level::L2);
    expect(
        &judge,
        "unlike",
        folded,
        Err(Error::Mismatch { level: Level::L3 }),
    );
    verdict(&judge)
}

/// What another CPU does, with the entry that this one is about to swap.
type Other<'j> = Box<dyn FnOnce(&Judge, u64, usize, u64) + 'j>;

/// A judge under which another CPU is there first, once: before this one's
/// next swap, or next TLBI.
struct Disturbed<'j> {
    judge: &'j Judge,
    before_swap: Cell<Option<Other<'j>>>,
    before_tlbi: Cell<Option<Peer>>,
}

impl<'j> Disturbed<'j> {
    fn new(judge: &'j Judge) -> Self {
        Self {
            judge,
            before_swap: Cell::new(None),
            before_tlbi: Cell::new(None),
        }
    }
}

impl TableMem for Disturbed<'_> {
    type Table = u64;
    fn locate(&self, pa: Pa) -> u64 {
        self.judge.locate(pa)
    }
    fn load(&self, table: u64, index: usize) -> u64 {
        self.judge.load(table, index)
    }
    fn store(&self, table: u64, index: usize, value: u64) {
        self.judge.store(table, index, value);
    }
    fn cas(&self, table: u64, index: usize, old: u64, new: u64) -> Result<(), u64> {
        if let Some(other) = self.before_swap.take() {
            other(self.judge, table, index, old);
        }
        self.judge.cas(table, index, old, new)
    }
    fn alloc(&self, level: Level) -> Option<Pa> {
        self.judge.alloc(level)
    }
    fn free(&self, table: Pa, level: Level, proof: &Synced) {
        self.judge.free(table, level, proof);
    }
    fn count(&self, table: Pa) -> u32 {
        self.judge.count(table)
    }
    fn add_count(&self, table: Pa, by: i32) {
        self.judge.add_count(table, by);
    }
}

impl Maintenance for &Disturbed<'_> {
    fn barrier(&mut self, barrier: Barrier) {
        Cpu(self.judge).barrier(barrier);
    }
    fn tlbi(&mut self, op: Tlbi) {
        if let Some(peer) = self.before_tlbi.take() {
            let _ = peer.act(self.judge);
        }
        Cpu(self.judge).tlbi(op);
    }
    fn cache(&mut self, op: CacheOp) {
        Cpu(self.judge).cache(op);
    }
    fn stage2(&mut self) -> Stage2Regs {
        Cpu(self.judge).stage2()
    }
    fn set_stage2(&mut self, regs: Stage2Regs) {
        Cpu(self.judge).set_stage2(regs);
    }
}

/// Who loses the race for a table gives the page back and uses the other's,
/// on the way of a fault and on that of a range.
fn a_lost_race_costs_no_page() -> Result<(), String> {
    for pages in [1u64, 3] {
        let geometry = geometry(Granule::K4, 32);
        let judge = judge(&geometry);
        let page = judge.alloc(Level::L3);
        let racing = Disturbed::new(&judge);
        racing
            .before_swap
            .set(Some(Box::new(move |judge, table, index, old| {
                let page = page.expect("no limit is set");
                let _ = judge.cas(table, index, old, page.get() | 3);
                judge.add_count(Pa::new(table), 1);
            })));
        let tree = tree(&judge, geometry, &racing);
        let map = Map::new(
            Ipa::new(0),
            Pa::new(0x4000_0000),
            pages * 4096,
            Attrs::MEMORY,
        )
        .leaves(Leaves::Exactly(Level::L3))
        .over(Over::Nothing);
        let done = tree.map(&mut Cpu(&judge), &map, &mut Budget::unlimited());
        expect(&judge, "map", done, Ok(Ipa::new(pages * 4096)));
        expect(&judge, "tables", judge.live(), 1);
        let entry = tree.lookup(Ipa::new(0)).map(|found| found.entry);
        if !matches!(entry, Ok(Entry::Leaf { pa, .. }) if pa == Pa::new(0x4000_0000)) {
            judge.complain(format!("not mapped: {entry:?}"));
        }
        verdict(&judge)?;
    }
    Ok(())
}

/// A gather holds a block and, beside it, pages of a table: when it is synced
/// all of them are empty, the table is still there, and all can be mapped.
fn a_gather_over_a_block_and_pages() -> Result<(), String> {
    let geometry = geometry(Granule::K4, 40);
    let judge = judge(&geometry);
    let tree = tree(&judge, geometry, &judge);
    let mut cpu = Cpu(&judge);
    let block = 2u64 << 20;
    let all = &mut Budget::unlimited();
    let pages = Map::new(Ipa::new(block), Pa::new(0x4020_0000), block, Attrs::MEMORY)
        .leaves(Leaves::Exactly(Level::L3));
    let one = Map::new(Ipa::new(0), Pa::new(0x4000_0000), block, Attrs::MEMORY);
    for round in 0..2 {
        for map in [&one, &pages] {
            let next = tree.map(&mut cpu, map, all);
            expect(&judge, "map", next.is_ok(), true);
        }
        let mut gather = tree.gather();
        let mut held = 0;
        let count = |leaf: HeldLeaf| {
            held += 1;
            drop(leaf);
        };
        let done = tree.unmap_later(
            &mut cpu,
            UnmapLater::new(Ipa::new(0), 2 * block, &mut gather).partial(Partial::Refuse),
            all,
            count,
        );
        expect(&judge, "unmap", done, Ok(Ipa::new(2 * block)));
        expect(&judge, "leaves", held, 513);
        let _done = tree.sync(&mut cpu, gather).expect("of this tree");
        for ipa in [0, block - 1, block, 2 * block - 1] {
            let found = tree.lookup(Ipa::new(ipa)).map(|found| found.entry);
            let empty = Ok(Entry::Invalid(Annotation::EMPTY));
            expect(&judge, "empty", found, empty);
        }
        let level = tree.lookup(Ipa::new(block)).map(|found| found.level);
        expect(&judge, "table", level, Ok(Level::L3));
        expect(&judge, "tables", judge.live(), 2);
        judge.event(EventKind::Quiesce { lo: 0, hi: 1 << 40 });
        verdict(&judge).map_err(|what| format!("round {round}: {what}"))?;
    }
    Ok(())
}

/// What is removed beside others is nobody's to map before its TLBI.
fn a_fault_meets_an_unmapping() -> Result<(), String> {
    let geometry = geometry(Granule::K4, 40);
    let judge = judge(&geometry);
    let disturbed = Disturbed::new(&judge);
    let tree = tree(&judge, geometry, &disturbed);
    let all = &mut Budget::unlimited();
    let map = Map::new(Ipa::new(0), Pa::new(0x4000_0000), 4096, Attrs::MEMORY);
    let mut cpu = &disturbed;
    let next = tree.map(&mut cpu, &map, all);
    expect(&judge, "map", next, Ok(Ipa::new(4096)));
    let (pa, attrs, root) = (0x5000_0000, Attrs::MEMORY, tree.root());
    disturbed.before_tlbi.set(Some(Peer {
        pe: 0,
        geometry,
        root,
        vmid: 1,
        ipa: 0,
        work: Work::Map { pa, attrs },
    }));
    let sink = &mut Ignore;
    let next = tree.unmap_leaves(
        &mut cpu,
        &Unmap::new(Ipa::new(0), 4096).partial(Partial::Refuse),
        sink,
        all,
    );
    expect(&judge, "unmap", next, Ok(Ipa::new(4096)));
    judge.event(EventKind::Quiesce { lo: 0, hi: 1 << 40 });
    verdict(&judge)
}

/// A member changes after a look at all of them, before the hint is set.
fn a_group_changes_before_it_gets_the_hint() -> Result<(), String> {
    let geometry = geometry(Granule::K4, 40);
    let judge = judge(&geometry);
    let disturbed = Disturbed::new(&judge);
    let tree = tree(&judge, geometry, &disturbed);
    let all = &mut Budget::unlimited();
    let map = Map::new(Ipa::new(0), Pa::new(0x4000_0000), 0x1_0000, Attrs::MEMORY)
        .leaves(Leaves::Exactly(Level::L3));
    let mut cpu = &disturbed;
    let next = tree.map(&mut cpu, &map, all);
    expect(&judge, "map", next, Ok(Ipa::new(0x1_0000)));
    let root = tree.root();
    disturbed
        .before_swap
        .set(Some(Box::new(move |judge, _, _, _| {
            let peer = Peer {
                pe: 0,
                geometry,
                root,
                vmid: 1,
                ipa: 0x5000,
                work: Work::WriteProtect,
            };
            let _ = peer.act(judge);
        })));
    let set = tree.set_contiguous(&mut cpu, Ipa::new(0));
    let unlike = Err(Error::Mismatch { level: Level::L3 });
    expect(&judge, "hint", set, unlike);
    judge.event(EventKind::Quiesce { lo: 0, hi: 1 << 40 });
    verdict(&judge)
}

/// What a gather that nobody syncs took out of the root is in TLBs when the
/// tree ends, and what somebody froze and forgot.
fn a_root_ends_with_what_was_forgotten() -> Result<(), String> {
    for frozen in [false, true] {
        let geometry = geometry(Granule::K4, 32);
        let judge = judge(&geometry);
        let mut tree = tree(&judge, geometry, &judge);
        let mut cpu = Cpu(&judge);
        let all = &mut Budget::unlimited();
        let size = 2u64 << 20;
        let map = Map::new(Ipa::new(0), Pa::new(size), size, Attrs::MEMORY);
        let next = tree.map(&mut cpu, &map, all);
        expect(&judge, "map", next, Ok(Ipa::new(size)));
        if frozen {
            let held = tree.freeze(Ipa::new(0), Level::L2);
            expect(&judge, "freeze", held.map(core::mem::forget), Ok(()));
        } else {
            let mut gather = tree.gather();
            let refuse = Partial::Refuse;
            let forget = |leaf: HeldLeaf| drop(leaf);
            let ipa = Ipa::new(0);
            let next = tree.unmap_later(
                &mut cpu,
                UnmapLater::new(ipa, size, &mut gather).partial(refuse),
                all,
                forget,
            );
            expect(&judge, "unmap", next, Ok(Ipa::new(size)));
            drop(gather);
        }
        let end = tree.teardown(&mut cpu, Ipa::new(0), &mut Ignore, all);
        expect(&judge, "teardown", end, Ipa::new(1 << 32));
        expect(&judge, "count", judge.count(tree.root()), 0);
        // Another owner's memory now: the model knows of no TLB that has it.
        super::own(&judge, size, size, Owner::Nobody);
        judge.event(EventKind::Quiesce { lo: 0, hi: 1 << 32 });
        verdict(&judge)?;
    }
    Ok(())
}

/// All of them.
///
/// # Errors
/// What went wrong.
pub fn all() -> Result<(), String> {
    no_block_where_none_may_stand()?;
    folds_what_is_adjacent()?;
    a_lost_race_costs_no_page()?;
    a_gather_over_a_block_and_pages()?;
    a_fault_meets_an_unmapping()?;
    a_group_changes_before_it_gets_the_hint()?;
    a_root_ends_with_what_was_forgotten()
}

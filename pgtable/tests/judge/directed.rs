//! What chance seldom meets: large blocks, whole tables alike, lost races.

use super::{Cpu, Judge};
use mmu_model::{EventKind, Reg};
use pgtable::{
    Annotation, Attrs, Budget, Entry, Error, Features, Gather, Geometry, Granule, HeldLeaf, Ipa,
    Leaves, Level, Map, Over, Pa, Partial, Stage2, Stage2Config, Synced, TableMem, Vmid,
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

fn install<M: TableMem>(judge: &Judge, tree: &Stage2<M>) {
    judge.write(Reg::Vtcr, tree.geometry().vtcr());
    judge.write(Reg::Vttbr, tree.vttbr());
    judge.event(EventKind::ISB);
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
    let root = judge.root(geometry.root_align());
    let mut tree = Stage2::new(geometry, root, Vmid::new(1), &judge).expect("a root");
    install(&judge, &tree);
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
    let root = judge.root(geometry.root_align());
    let mut tree = Stage2::new(geometry, root, Vmid::new(1), &judge).expect("a root");
    install(&judge, &tree);
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

/// A judge under which another CPU links a table first, once.
struct Racing<'j> {
    judge: &'j Judge,
    first: Cell<Option<Pa>>,
}

impl TableMem for Racing<'_> {
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
        if let Some(page) = self.first.take() {
            self.judge.cas(table, index, old, page.get() | 3)?;
            self.judge.add_count(Pa::new(table), 1);
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

/// Who loses the race for a table gives the page back and uses the other's,
/// on the way of a fault and on that of a range.
fn a_lost_race_costs_no_page() -> Result<(), String> {
    for pages in [1u64, 3] {
        let geometry = geometry(Granule::K4, 32);
        let judge = judge(&geometry);
        let root = judge.root(geometry.root_align());
        let page = judge.alloc(Level::L3);
        let racing = Racing {
            judge: &judge,
            first: Cell::new(page),
        };
        let tree = Stage2::new(geometry, root, Vmid::new(1), &racing).expect("a root");
        install(&judge, &tree);
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
    let root = judge.root(geometry.root_align());
    let tree = Stage2::new(geometry, root, Vmid::new(1), &judge).expect("a root");
    install(&judge, &tree);
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
        let mut gather = Gather::new();
        let mut held = 0;
        let count = |leaf: HeldLeaf| {
            held += 1;
            drop(leaf);
        };
        let done = tree.unmap_later(
            &mut cpu,
            Ipa::new(0),
            2 * block,
            Partial::Refuse,
            &mut gather,
            all,
            count,
        );
        expect(&judge, "unmap", done, Ok(Ipa::new(2 * block)));
        expect(&judge, "leaves", held, 513);
        let _done = tree.sync(&mut cpu, gather);
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

/// All of them.
///
/// # Errors
/// What went wrong.
pub fn all() -> Result<(), String> {
    no_block_where_none_may_stand()?;
    folds_what_is_adjacent()?;
    a_lost_race_costs_no_page()?;
    a_gather_over_a_block_and_pages()
}

// What the runnable examples of this crate's documentation stand on: tables
// in plain memory, and a CPU without TLBs or caches. They include this file;
// it is no part of the crate.

use pgtable::*;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

const PAGE: usize = 4096;

/// 64 pages from physical address 0x1_0000 on.
pub struct Tables {
    words: Vec<AtomicU64>,
    counts: Vec<AtomicU32>,
    next: AtomicU64,
}

impl Tables {
    const BASE: u64 = 0x1_0000;

    /// Zeroed, the first pages for a root.
    pub fn new() -> Self {
        Self {
            words: (0..64 * PAGE / 8).map(|_| AtomicU64::new(0)).collect(),
            counts: (0..64).map(|_| AtomicU32::new(0)).collect(),
            next: AtomicU64::new(Self::BASE),
        }
    }

    /// A zeroed page.
    pub fn page(&self) -> Option<Pa> {
        let at = self.next.fetch_add(PAGE as u64, Ordering::Relaxed);
        (at < Self::BASE + 64 * PAGE as u64).then(|| Pa::new(at))
    }

    fn number(pa: Pa) -> usize {
        ((pa.get() - Self::BASE) / PAGE as u64) as usize
    }
}

impl TableMem for Tables {
    /// The table's first word.
    type Table = usize;

    fn locate(&self, pa: Pa) -> usize {
        Self::number(pa) * PAGE / 8
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
        self.page()
    }
    fn free(&self, _: Pa, _: Level, _proof: &Synced) {
        // A hypervisor scrubs the page and gives it out again.
    }
    fn count(&self, table: Pa) -> u32 {
        self.counts[Self::number(table)].load(Ordering::Relaxed)
    }
    fn add_count(&self, table: Pa, by: i32) {
        self.counts[Self::number(table)].fetch_add(by as u32, Ordering::Relaxed);
    }
}

/// A CPU that has nothing to invalidate.
pub struct Cpu {
    regs: Stage2Regs,
}

impl Cpu {
    /// With these registers of stage 2.
    pub fn new(regs: Stage2Regs) -> Self {
        Self { regs }
    }
}

impl Maintenance for Cpu {
    fn barrier(&mut self, _: Barrier) {}
    fn tlbi(&mut self, _: Tlbi) {}
    fn cache(&mut self, _: CacheOp) {}
    fn stage2(&mut self) -> Stage2Regs {
        self.regs
    }
    fn set_stage2(&mut self, regs: Stage2Regs) {
        self.regs = regs;
    }
}

/// An empty tree of 4K pages and 39-bit IPAs, and a CPU that has it loaded.
pub fn tree() -> (Stage2<Tables>, Cpu) {
    let mut config = Stage2Config::new(Granule::K4, 39, 40);
    config.features.hw_access_flag = true;
    config.features.hw_dirty = true;
    let geometry = config.validate().expect("legal");
    let memory = Tables::new();
    let root = memory.page().expect("a page");
    let tree = Stage2::new(geometry, root, Vmid::new(1), memory).expect("a root");
    let cpu = Cpu::new(tree.regs());
    (tree, cpu)
}

/// The same, with 2 MiB of pages at IPA 0x4000_0000, of memory at 0x8000_0000.
pub fn mapped() -> (Stage2<Tables>, Cpu) {
    let (tree, mut cpu) = tree();
    let (ipa, pa) = (Ipa::new(0x4000_0000), Pa::new(0x8000_0000));
    let map = Map::new(ipa, pa, 2 << 20, Attrs::MEMORY).leaves(Leaves::Exactly(Level::L3));
    let done = tree.map(&mut cpu, &map, &mut Budget::unlimited());
    done.expect("room for its tables");
    (tree, cpu)
}

//! Tables in plain memory and the workloads of the comparison.

// Each benchmark uses its part.
#![allow(dead_code)]

use pgtable::{
    Attrs, Barrier, Budget, CacheOp, Geometry, Granule, Ignore, Ipa, Leaves, Level, Maintenance,
    Map, Over, Pa, RemovedRun, Runs, Split, Stage2, Stage2Config, Stage2Regs, Sweep, Synced,
    TableMem, Tlbi, Unmap, Vmid,
};
use std::cell::Cell;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

pub const GIB: u64 = 1 << 30;
const BASE: u64 = 1 << 32;

/// A bump allocator of zeroed tables; what comes back is not used again, so
/// that zeroing is no part of what is measured.
pub struct Plain {
    words: &'static [AtomicU64],
    counts: Vec<AtomicU32>,
    page_bits: u32,
    next: Cell<u64>,
    pub tables: Cell<u64>,
    pub freed: Cell<u64>,
    pub stores: Cell<u64>,
}

impl Plain {
    pub fn new(granule: Granule, pages: u64) -> Self {
        let page_bits = u32::from(granule.page_bits());
        let words = (pages << page_bits) / 8;
        let words: Box<[AtomicU64]> = (0..words).map(|_| AtomicU64::new(0)).collect();
        Self {
            words: Box::leak(words),
            counts: (0..pages).map(|_| AtomicU32::new(0)).collect(),
            page_bits,
            next: Cell::new(BASE),
            tables: Cell::new(0),
            freed: Cell::new(0),
            stores: Cell::new(0),
        }
    }

    /// All pages are free again, and zero. No tree may be in them.
    pub fn reset(&self) {
        let used = (self.next.get() - BASE) / 8;
        for word in &self.words[..(used as usize).min(self.words.len())] {
            word.store(0, Ordering::Relaxed);
        }
        for count in &self.counts {
            count.store(0, Ordering::Relaxed);
        }
        self.next.set(BASE);
    }

    pub fn root(&self, bytes: u64) -> Pa {
        let at = self.next.get().next_multiple_of(bytes);
        self.next.set(at + bytes);
        Pa::new(at)
    }
}

/// The same memory, every store counted.
pub struct Counted<'a>(pub &'a Plain);

/// A table's first word. Valid as long as the memory, which is leaked.
#[derive(Clone, Copy)]
pub struct Words(*const AtomicU64);

impl Words {
    #[inline(always)]
    fn at(self, index: usize) -> &'static AtomicU64 {
        // SAFETY: a table comes from `locate` with the address of a page
        // that `alloc` or `root` gave, and pgtable keeps to its entries; the
        // memory is leaked, so it outlives everything.
        unsafe { &*self.0.add(index) }
    }
}

impl TableMem for Plain {
    type Table = Words;
    #[inline(always)]
    fn locate(&self, pa: Pa) -> Words {
        Words(
            self.words
                .as_ptr()
                .wrapping_byte_add(pa.get().wrapping_sub(BASE) as usize),
        )
    }
    #[inline(always)]
    fn load(&self, table: Words, index: usize) -> u64 {
        table.at(index).load(Ordering::Acquire)
    }
    #[inline(always)]
    fn store(&self, table: Words, index: usize, value: u64) {
        table.at(index).store(value, Ordering::Release);
    }
    #[inline(always)]
    fn cas(&self, table: Words, index: usize, old: u64, new: u64) -> Result<(), u64> {
        table
            .at(index)
            .compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire)
            .map(drop)
    }
    fn alloc(&self, _: Level) -> Option<Pa> {
        let at = self.next.get();
        if (at - BASE) / 8 >= self.words.len() as u64 {
            return None;
        }
        self.next.set(at + (1 << self.page_bits));
        self.tables.set(self.tables.get() + 1);
        Some(Pa::new(at))
    }
    fn free(&self, _: Pa, _: Level, _: &Synced) {
        self.freed.set(self.freed.get() + 1);
    }
    #[inline(always)]
    fn count(&self, table: Pa) -> u32 {
        self.counts[((table.get() - BASE) >> self.page_bits) as usize].load(Ordering::Relaxed)
    }
    #[inline(always)]
    fn add_count(&self, table: Pa, by: i32) {
        let index = table.get().wrapping_sub(BASE).wrapping_shr(self.page_bits);
        let count = &self.counts[index as usize];
        count.fetch_add(by as u32, Ordering::Relaxed);
    }
}

impl TableMem for Counted<'_> {
    type Table = Words;
    fn locate(&self, pa: Pa) -> Words {
        self.0.locate(pa)
    }
    fn load(&self, table: Words, index: usize) -> u64 {
        self.0.load(table, index)
    }
    fn store(&self, table: Words, index: usize, value: u64) {
        self.0.stores.set(self.0.stores.get() + 1);
        self.0.store(table, index, value);
    }
    fn cas(&self, table: Words, index: usize, old: u64, new: u64) -> Result<(), u64> {
        self.0.cas(table, index, old, new)?;
        self.0.stores.set(self.0.stores.get() + 1);
        Ok(())
    }
    fn alloc(&self, level: Level) -> Option<Pa> {
        self.0.alloc(level)
    }
    fn free(&self, table: Pa, level: Level, proof: &Synced) {
        self.0.free(table, level, proof);
    }
    fn count(&self, table: Pa) -> u32 {
        self.0.count(table)
    }
    fn add_count(&self, table: Pa, by: i32) {
        self.0.add_count(table, by);
    }
}

/// A CPU that only counts.
#[derive(Default, Clone, Copy)]
pub struct Cpu {
    pub regs: Stage2Regs,
    pub tlbis: u64,
    pub barriers: u64,
}

impl Maintenance for Cpu {
    #[inline(always)]
    fn barrier(&mut self, _: Barrier) {
        self.barriers = self.barriers.wrapping_add(1);
    }
    #[inline(always)]
    fn tlbi(&mut self, _: Tlbi) {
        self.tlbis = self.tlbis.wrapping_add(1);
    }
    fn cache(&mut self, _: CacheOp) {}
    #[inline(always)]
    fn stage2(&mut self) -> Stage2Regs {
        self.regs
    }
    fn set_stage2(&mut self, regs: Stage2Regs) {
        self.regs = regs;
    }
}

/// A format to measure.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Format {
    pub name: &'static str,
    pub granule: Granule,
    pub lpa2: bool,
    /// Where the output begins.
    pub output: u64,
}

pub const FORMATS: [Format; 5] = [
    Format {
        name: "4k",
        granule: Granule::K4,
        lpa2: false,
        output: START,
    },
    Format {
        name: "4k-lpa2",
        granule: Granule::K4,
        lpa2: true,
        output: START,
    },
    // Bits 51:50 of an address stand apart from the others.
    Format {
        name: "4k-high",
        granule: Granule::K4,
        lpa2: true,
        output: 0xb_c000_0000_0000,
    },
    Format {
        name: "16k",
        granule: Granule::K16,
        lpa2: false,
        output: START,
    },
    Format {
        name: "64k",
        granule: Granule::K64,
        lpa2: false,
        output: START,
    },
];

impl Format {
    pub fn geometry(self) -> Geometry {
        let mut config = Stage2Config::new(self.granule, 48, if self.lpa2 { 52 } else { 48 });
        config.lpa2 = self.lpa2;
        config.features.tlb_range = true;
        config.features.ttl = true;
        config.features.fwb = true;
        config.features.dic = true;
        config.features.hw_access_flag = true;
        config.validate().expect("legal")
    }

    /// The mapping of bytes from `at` of the area on.
    #[inline(always)]
    pub fn map(self, at: u64, size: u64) -> Map {
        let (ipa, pa) = (Ipa::new(START + at), Pa::new(self.output + at));
        Map::new(ipa, pa, size, Attrs::MEMORY)
    }

    /// The first addresses of the area's tables of pages.
    fn blocks(self) -> impl Iterator<Item = u64> {
        (0..self.area()).step_by(self.block() as usize)
    }

    /// Bytes that one table of pages covers: 2 MiB, 32 MiB, 512 MiB.
    pub fn block(self) -> u64 {
        self.geometry().span(Level::L2)
    }

    /// How much the page workloads cover: 1 GiB, or 16 blocks.
    pub fn area(self) -> u64 {
        GIB.max(16 * self.block())
    }
}

/// The workloads, in the order of the table.
/// *Told* is with a sink that takes runs of leaves, as who counts them does.
pub const WORKLOADS: [(&str, &str, u64); 14] = [
    ("fault", "page", 250),
    ("sparse-fault", "call", 500),
    ("map-pages", "page", 30),
    ("map-blocks", "block", 60),
    ("unmap", "page", 25),
    ("write-protect", "page", 20),
    ("clear-af", "page", 15),
    ("split", "page", 30),
    ("destroy", "page", 5),
    ("collapse", "block", 1500),
    ("fault-largest", "page", 250),
    ("unmap-told", "page", 12),
    ("destroy-told", "page", 10),
    ("collapse-told", "512", 5000),
];

/// A workload prepared: a tree, and what stands in it.
pub struct Prepared<M: TableMem> {
    pub tree: Stage2<M>,
    pub cpu: Cpu,
    pub format: Format,
}

pub const START: u64 = 1 << 40;

fn all<T, E: std::fmt::Debug>(result: Result<T, E>) -> T {
    result.expect("the workload fits")
}

impl<M: TableMem> Prepared<M> {
    /// Builds what `workload` starts from.
    pub fn new(format: Format, root: Pa, mem: M, workload: &str) -> Self {
        let tree = all(Stage2::new(format.geometry(), root, Vmid::new(7), mem));
        let cpu = Cpu {
            regs: tree.regs(),
            ..Cpu::default()
        };
        let mut prepared = Self { tree, cpu, format };
        let area = format.area();
        match workload {
            // One page in each table, and none where the faults come.
            "fault" | "fault-largest" => {
                let block = format.block();
                for at in (0..area).step_by(block as usize) {
                    prepared.page(at, Leaves::Exactly(Level::L3));
                }
            }
            "map-pages" | "map-blocks" | "sparse-fault" => (),
            "split" => {
                let map = format.map(0, area);
                all(prepared
                    .tree
                    .map(&mut prepared.cpu, &map, &mut Budget::unlimited()));
            }
            _ => prepared.map_pages(),
        }
        prepared.cpu.tlbis = 0;
        prepared.cpu.barriers = 0;
        prepared
    }

    #[inline(always)]
    fn page(&mut self, at: u64, leaves: Leaves) {
        let page = self.format.granule.page_size();
        let map = self.format.map(at, page).leaves(leaves);
        all(self.tree.map(&mut self.cpu, &map, &mut Budget::unlimited()));
    }

    fn map_pages(&mut self) {
        let pages = Leaves::Exactly(Level::L3);
        let map = self.format.map(0, self.format.area()).leaves(pages);
        all(self.tree.map(&mut self.cpu, &map, &mut Budget::unlimited()));
    }

    /// Runs it. Returns how many units it did.
    #[inline(never)]
    pub fn measured(&mut self, workload: &str) -> u64 {
        let done = self.mapped(workload);
        let done = done.or_else(|| self.changed(workload));
        let done = done.or_else(|| self.collapsed(workload));
        done.unwrap_or_else(|| panic!("no workload {workload}"))
    }

    fn mapped(&mut self, workload: &str) -> Option<u64> {
        let format = self.format;
        let page = format.granule.page_size();
        Some(match workload {
            "fault" => self.faults(Leaves::Exactly(Level::L3)),
            "fault-largest" => self.faults(Leaves::Largest),
            "sparse-fault" => {
                let (calls, block) = (512, format.block());
                for call in 0..calls {
                    self.page(call * block, Leaves::Exactly(Level::L3));
                }
                calls
            }
            "map-pages" => {
                self.map_pages();
                format.area() / page
            }
            "map-blocks" => {
                let block = if format.granule == Granule::K4 {
                    GIB
                } else {
                    format.block()
                };
                let size = 256 * block;
                let map = format.map(0, size).leaves(Leaves::AtMost(Level::L1));
                all(self.tree.map(&mut self.cpu, &map, &mut Budget::unlimited()));
                256
            }
            _ => return None,
        })
    }

    /// A call for each page of each table but the first.
    fn faults(&mut self, leaves: Leaves) -> u64 {
        let page = self.format.granule.page_size();
        let block = self.format.block();
        let mut done = 0;
        for table in self.format.blocks() {
            for at in (page..block).step_by(page as usize) {
                self.page(table + at, leaves);
                done += 1;
            }
        }
        done
    }

    fn changed(&mut self, workload: &str) -> Option<u64> {
        let area = self.format.area();
        let ipa = Ipa::new(START);
        let (tree, cpu) = (&mut self.tree, &mut self.cpu);
        let budget = &mut Budget::unlimited();
        let mut told = 0u64;
        let mut sink = Runs(|run: RemovedRun| {
            told = told.wrapping_add(run.size() ^ run.pa().get());
        });
        match workload {
            "unmap" => {
                all(tree.unmap(cpu, &Unmap::new(ipa, area), &mut Ignore, budget));
            }
            "unmap-told" => {
                all(tree.unmap(cpu, &Unmap::new(ipa, area), &mut sink, budget));
            }
            "write-protect" => {
                all(tree.write_protect(cpu, Sweep::new(ipa, area), budget));
            }
            "clear-af" => {
                all(tree.clear_young(cpu, Sweep::new(ipa, area), budget));
            }
            "split" => {
                let mem = tree.mem();
                let take = |level| mem.alloc(level);
                let (size, to) = (area, Level::L3);
                all(tree.split(cpu, &Split { ipa, size, to }, take, budget));
            }
            "destroy" => {
                let _ = tree.teardown(cpu, Ipa::new(0), &mut Ignore, budget);
            }
            "destroy-told" => {
                let _ = tree.teardown(cpu, Ipa::new(0), &mut sink, budget);
            }
            _ => return None,
        }
        std::hint::black_box(told);
        Some(area / self.format.granule.page_size())
    }

    fn collapsed(&mut self, workload: &str) -> Option<u64> {
        let format = self.format;
        let block = format.block();
        let map = |at| {
            let map = format.map(at, block);
            map.leaves(Leaves::Exactly(Level::L2)).over(Over::Anything)
        };
        let blocks = format.blocks();
        let (tree, cpu) = (&mut self.tree, &mut self.cpu);
        let budget = &mut Budget::unlimited();
        let mut told = 0u64;
        let mut sink = Runs(|run: RemovedRun| {
            told = told.wrapping_add(run.size() ^ run.pa().get());
        });
        let units = match workload {
            "collapse-told" => {
                for at in blocks {
                    all(tree.map_exclusive(cpu, &map(at), &mut sink, budget));
                }
                // Every page of a block is looked at, so that a unit has 512.
                format.area() / format.granule.page_size() / 512
            }
            "collapse" => {
                for at in blocks {
                    all(tree.map_exclusive(cpu, &map(at), &mut Ignore, budget));
                }
                format.area() / block
            }
            _ => return None,
        };
        std::hint::black_box(told);
        Some(units)
    }
}

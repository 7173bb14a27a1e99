//! Where tables live: a pool of pages.

use pgtable::{Geometry, Level, Pa, Synced, TableMem};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

const PAGE: usize = 4096;
const WORDS: usize = PAGE / 8;
/// Where the pool begins in physical memory.
const BASE: u64 = 0x1000_0000;

/// Pages of 4 KiB in a row. A hypervisor has them in its own map, at an address
/// that it can compute from the physical one; here it is a vector.
pub struct Pool {
    words: Vec<AtomicU64>,
    /// A count for each page: in earnest, a field of whatever describes pages.
    counts: Vec<AtomicU32>,
    free: Mutex<Vec<usize>>,
}

impl Pool {
    /// `pages` zeroed pages.
    pub fn new(pages: usize) -> Self {
        Self {
            words: (0..pages * WORDS).map(|_| AtomicU64::new(0)).collect(),
            counts: (0..pages).map(|_| AtomicU32::new(0)).collect(),
            free: Mutex::new((0..pages).rev().collect()),
        }
    }

    /// Pages in use.
    pub fn used(&self) -> usize {
        self.counts.len() - self.list().len()
    }

    /// Adjacent pages for a root, aligned as it needs it: before any other.
    pub fn root(&self, geometry: &Geometry) -> Option<Pa> {
        let tables = geometry.root_tables();
        let mut free = self.list();
        let from = free.len().checked_sub(tables)?;
        let first = *free.last()?;
        let pa = BASE + (first * PAGE) as u64;
        if !pa.is_multiple_of(geometry.root_align()) || free[from] != first + tables - 1 {
            return None;
        }
        free.truncate(from);
        Some(Pa::new(pa))
    }

    fn list(&self) -> std::sync::MutexGuard<'_, Vec<usize>> {
        self.free
            .lock()
            .unwrap_or_else(|broken| broken.into_inner())
    }

    fn number(pa: Pa) -> usize {
        (pa.get() - BASE) as usize / PAGE
    }
}

impl TableMem for Pool {
    /// The table's first word: what finds entries fastest.
    type Table = usize;

    fn locate(&self, pa: Pa) -> usize {
        (pa.get() - BASE) as usize / 8
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

    fn alloc(&self, _level: Level) -> Option<Pa> {
        let page = self.list().pop()?;
        Some(Pa::new(BASE + (page * PAGE) as u64))
    }

    /// The page comes back as it was: zeroed before anybody gets it again.
    fn free(&self, table: Pa, _level: Level, _proof: &Synced) {
        let page = Self::number(table);
        for word in &self.words[page * WORDS..][..WORDS] {
            word.store(0, Ordering::Relaxed);
        }
        self.counts[page].store(0, Ordering::Relaxed);
        self.list().push(page);
    }

    fn count(&self, table: Pa) -> u32 {
        self.counts[Self::number(table)].load(Ordering::Relaxed)
    }

    fn add_count(&self, table: Pa, by: i32) {
        let count = &self.counts[Self::number(table)];
        if by >= 0 {
            count.fetch_add(by as u32, Ordering::Relaxed);
        } else {
            count.fetch_sub(by.unsigned_abs(), Ordering::Relaxed);
        }
    }
}

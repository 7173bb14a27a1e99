//! Pages for EL2's own tables, from memory that boot set aside.

use core::cell::Cell;
use core::sync::atomic::{AtomicU64, Ordering};

use pgtable::{Level, Pa, Synced, TableMem};

use super::order::PoolLock;
use super::phys;
use super::region::Region;

/// A table in RAM, located.
#[derive(Clone, Copy, Debug)]
pub struct Table(*const AtomicU64);

impl Table {
    /// The table at `pa`.
    ///
    /// # Safety
    /// It is mapped, as all RAM is, and EL2's for as long as the table is used.
    #[inline(always)]
    pub unsafe fn at(pa: Pa) -> Self {
        Self(phys::pointer(pa.get()))
    }

    /// Its entry `index`.
    ///
    /// # Safety
    /// The table has so many.
    #[inline(always)]
    pub unsafe fn entry(&self, index: usize) -> &AtomicU64 {
        // SAFETY: the caller's promise, and that of `at`.
        unsafe { &*self.0.add(index) }
    }
}

/// Writes `new` to an entry that is `old`, or says what it is.
#[inline(always)]
pub fn exchange(entry: &AtomicU64, old: u64, new: u64) -> Result<u64, u64> {
    entry.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire)
}

/// The same where nobody else writes entries ([`crate::early`]).
fn exchange_alone(entry: &AtomicU64, old: u64, new: u64) -> Result<u64, u64> {
    let now = entry.load(Ordering::Acquire);
    if now != old {
        return Err(now);
    }
    entry.store(new, Ordering::Release);
    Ok(old)
}

/// Reads and writes of table entries, shared by every kind of table memory: of the
/// tables that pgtable was given, which are EL2's for as long as they are linked,
/// and it stays inside them. `$exchange` is one of the functions above.
macro_rules! entries_in_ram {
    ($exchange:path) => {
        type Table = $crate::memory::pool::Table;

        #[inline(always)]
        fn locate(&self, pa: pgtable::Pa) -> Self::Table {
            // SAFETY: a table of pgtable's.
            unsafe { $crate::memory::pool::Table::at(pa) }
        }

        #[inline(always)]
        fn load(&self, table: Self::Table, index: usize) -> u64 {
            // SAFETY: inside it.
            let entry = unsafe { table.entry(index) };
            entry.load(core::sync::atomic::Ordering::Acquire)
        }

        #[inline(always)]
        fn store(&self, table: Self::Table, index: usize, value: u64) {
            // SAFETY: inside it.
            let entry = unsafe { table.entry(index) };
            entry.store(value, core::sync::atomic::Ordering::Release);
        }

        #[inline(always)]
        fn cas(&self, table: Self::Table, index: usize, old: u64, new: u64) -> Result<(), u64> {
            // SAFETY: inside it.
            let entry = unsafe { table.entry(index) };
            $exchange(entry, old, new).map(|_| ())
        }
    };
}
pub(crate) use entries_in_ram;

/// A pool of granules: those never used yet, and a list of those given back,
/// linked through their first word.
#[derive(Debug)]
pub struct Pool {
    state: PoolLock<Free>,
    counts: Counts,
    granule: u64,
}

#[derive(Debug)]
struct Free {
    fresh: Region,
    returned: u64,
    left: u64,
}

/// One count for each page of the pool.
#[derive(Debug)]
struct Counts {
    words: u64,
    base: u64,
    shift: u32,
}

impl Counts {
    /// Splits `region` in as many pages as leave room for their counts, which are
    /// zeroed, and these.
    ///
    /// # Safety
    /// The region is mapped RAM, aligned to the granule, and the pool's for ever.
    unsafe fn split(region: Region, granule: u64) -> (Region, Self) {
        let pages = region.size() / granule;
        let pages = pages - (pages * 8).div_ceil(granule);
        let counts = Self {
            words: region.base() + pages * granule,
            base: region.base(),
            shift: granule.trailing_zeros(),
        };
        // SAFETY: the caller's promise.
        unsafe { phys::zero(counts.words, pages * 8) };
        let pages = Region::new(region.base(), pages * granule);
        (pages.unwrap_or(Region::EMPTY), counts)
    }

    fn of(&self, pa: Pa) -> &AtomicU64 {
        let page = (pa.get() - self.base) >> self.shift;
        // SAFETY: `pa` is a page of the pool (pgtable got it here), and the
        // words behind the pages are the pool's.
        unsafe { &*phys::pointer::<AtomicU64>(self.words + page * 8) }
    }
}

impl Pool {
    /// Bytes that a pool of `pages` granules takes, counts included.
    pub fn bytes_for(pages: u64, granule: u64) -> u64 {
        pages * granule + (pages * 8).next_multiple_of(granule)
    }

    /// A pool in `region`.
    ///
    /// # Safety
    /// The region is mapped RAM, aligned to the granule, and the pool's for ever.
    pub unsafe fn new(region: Region, granule: u64) -> Self {
        // SAFETY: the caller's promise.
        let (fresh, counts) = unsafe { Counts::split(region, granule) };
        Self {
            state: PoolLock::new(Free {
                fresh,
                returned: 0,
                left: fresh.size() / granule,
            }),
            counts,
            granule,
        }
    }

    /// Pages left.
    pub fn left(&self) -> u64 {
        self.state.lock().left
    }

    /// Takes `pages` adjacent fresh pages at a multiple of their size together
    /// (a power of two), zeroed: for roots, at boot.
    pub fn take_root(&self, pages: u64) -> Option<Pa> {
        let mut free = self.state.lock();
        let size = pages * self.granule;
        let base = free.fresh.base().checked_next_multiple_of(size)?;
        let end = base.checked_add(size)?;
        if end > free.fresh.end() {
            return None;
        }
        free.left -= (end - free.fresh.base()) / self.granule;
        free.fresh = Region::new(end, free.fresh.end() - end)?;
        // SAFETY: fresh pages of the pool have no owner.
        unsafe { phys::zero(base, size) };
        Some(Pa::new(base))
    }
}

impl TableMem for &Pool {
    entries_in_ram!(exchange);

    fn alloc(&self, _level: Level) -> Option<Pa> {
        let mut free = self.state.lock();
        let page = if free.returned != 0 {
            let page = free.returned;
            // SAFETY: a returned page is the pool's and holds the link.
            free.returned = unsafe { phys::read::<u64>(page) };
            page
        } else {
            let page = free.fresh.base();
            free.fresh = Region::new(
                page + self.granule,
                free.fresh.size().checked_sub(self.granule)?,
            )?;
            page
        };
        free.left -= 1;
        drop(free);
        // SAFETY: the page has just become ours alone.
        unsafe { phys::zero(page, self.granule) };
        self.counts.of(Pa::new(page)).store(0, Ordering::Relaxed);
        Some(Pa::new(page))
    }

    fn free(&self, table: Pa, _level: Level, _proof: &Synced) {
        let mut free = self.state.lock();
        // SAFETY: the proof says that no walker knows the table any more.
        unsafe { phys::write(table.get(), free.returned) };
        free.returned = table.get();
        free.left += 1;
    }

    fn count(&self, table: Pa) -> u32 {
        self.counts.of(table).load(Ordering::Relaxed) as u32
    }

    fn add_count(&self, table: Pa, by: i32) {
        (self.counts.of(table)).fetch_add(by as i64 as u64, Ordering::Relaxed);
    }
}

/// Pages for EL2's own map, which the boot PE builds while it is alone
/// ([`crate::early`]): none comes back.
#[derive(Debug)]
pub struct BootPool {
    fresh: Cell<Region>,
    counts: Counts,
    granule: u64,
}

impl BootPool {
    /// A pool in `region`.
    ///
    /// # Safety
    /// As for [`Pool::new`], and no other PE runs while it is used.
    pub unsafe fn new(region: Region, granule: u64) -> Self {
        // SAFETY: the caller's promise.
        let (fresh, counts) = unsafe { Counts::split(region, granule) };
        Self {
            fresh: Cell::new(fresh),
            counts,
            granule,
        }
    }

    /// Takes a page, zeroed.
    pub fn take(&self) -> Option<Pa> {
        let (page, size) = (self.fresh.get().base(), self.fresh.get().size());
        let left = size.checked_sub(self.granule)?;
        self.fresh.set(Region::new(page + self.granule, left)?);
        // SAFETY: the page has just become the caller's alone.
        unsafe { phys::zero(page, self.granule) };
        Some(Pa::new(page))
    }
}

impl TableMem for &BootPool {
    entries_in_ram!(exchange_alone);

    fn alloc(&self, _level: Level) -> Option<Pa> {
        self.take()
    }

    // Only who loses a race to link a page has one to give back.
    fn free(&self, _table: Pa, _level: Level, _proof: &Synced) {}

    fn count(&self, table: Pa) -> u32 {
        self.counts.of(table).load(Ordering::Relaxed) as u32
    }

    fn add_count(&self, table: Pa, by: i32) {
        let count = self.counts.of(table);
        let now = count.load(Ordering::Relaxed);
        count.store(now.wrapping_add(by as i64 as u64), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_zeroed_counted_and_finite() {
        phys::fake::install(0x10_0000, 0x10_0000);
        let region = Region::new(0x10_0000, 0x8000).unwrap();
        // SAFETY: the fake memory is this test's.
        let pool = &unsafe { Pool::new(region, 0x1000) };
        let root = pool.take_root(2).unwrap();
        assert_eq!(root.get() % 0x2000, 0);
        let mut pages = arrayvec::ArrayVec::<Pa, 8>::new();
        while let Some(page) = pool.alloc(Level::L3) {
            let table = pool.locate(page);
            assert_eq!(pool.load(table, 511), 0);
            pool.store(table, 511, 7);
            pages.push(page);
        }
        assert_eq!(pages.len(), 5, "8 pages less the counts and the root");
        assert_eq!(pool.left(), 0);
        pool.add_count(pages[0], 5);
        pool.add_count(pages[0], -2);
        assert_eq!(pool.count(pages[0]), 3);
    }

    #[test]
    fn the_boot_pe_has_pages_without_exclusive_accesses() {
        phys::fake::install(0x10_0000, 0x10_0000);
        let region = Region::new(0x10_0000, 0x4000).unwrap();
        // SAFETY: the fake memory is this test's.
        unsafe {
            phys::write(0x10_1000, 7u64);
            // Where the counts are to be.
            phys::write(0x10_3000, [9u64; 3]);
        }
        // SAFETY: as above.
        let pool = &unsafe { BootPool::new(region, 0x1000) };
        let pages: arrayvec::ArrayVec<Pa, 4> = core::iter::from_fn(|| pool.take()).collect();
        let bases = [0x10_0000, 0x10_1000, 0x10_2000].map(Pa::new);
        assert_eq!(*pages, bases, "4 pages less the counts");
        let table = pool.locate(pages[1]);
        assert_eq!(pool.load(table, 0), 0, "zeroed");
        assert_eq!(pool.cas(table, 0, 1, 2), Err(0));
        assert_eq!(pool.cas(table, 0, 0, 2), Ok(()));
        assert_eq!(pool.load(table, 0), 2);
        pool.add_count(pages[2], 5);
        pool.add_count(pages[2], -2);
        assert_eq!((pool.count(pages[2]), pool.count(pages[1])), (3, 0));
    }
}

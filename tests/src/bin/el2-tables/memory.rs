//! RAM behind the image: pages for tables, given out in order and taken back
//! into a list, and behind them memory that guests use, every frame of which
//! says its own address.
//!
//! The list of free pages and the counts of what is live are under one spin lock;
//! tables' entries and counts are atomics. Before EL2's MMU is on, RAM is Device
//! memory, where exclusives mean nothing: then one CPU uses a [`Pool::plain`].

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use pgtable::{Level, Pa, Synced, TableMem};
use tests::bare::asm::{clean, read64, write32, write64};
use tests::bare::machine;

/// Bytes of the pool.
const BYTES: u64 = 32 << 20;
/// Pages of the smallest granule in it.
const PAGES: usize = (BYTES >> 12) as usize;
/// Bytes for guests, and their alignment: a block of 4K and of 16K fits.
pub const DATA: u64 = 32 << 20;

static COUNTS: [AtomicU32; PAGES] = [const { AtomicU32::new(0) }; PAGES];

/// Bytes of pools that stay.
static KEPT: AtomicU64 = AtomicU64::new(0);
/// RAM that the device tree does not name.
static HIGH: AtomicU64 = AtomicU64::new(0);

fn base() -> u64 {
    let start = machine::get().image.end + KEPT.load(Ordering::Relaxed);
    start.next_multiple_of(2 << 20)
}

/// Takes note of RAM that the device tree does not name: [`DATA`] bytes at `at`.
pub fn know_high(at: u64) {
    HIGH.store(at, Ordering::Relaxed);
}

/// Whether a range is RAM.
pub fn is_ram(pa: u64, size: u64) -> bool {
    let high = HIGH.load(Ordering::Relaxed);
    let inside = |start: u64, end: u64| start <= pa && pa + size <= end;
    let named = machine::get().ram.iter();
    let mut named = named.filter(|range| !range.is_empty());
    named.any(|range| inside(range.start, range.end)) || (high != 0 && inside(high, high + DATA))
}

/// The word at `at`, as an atomic.
///
/// # Safety
/// `at` is a word of RAM that is written as an atomic, or by one CPU alone.
unsafe fn word<'a>(at: u64) -> &'a AtomicU64 {
    let at = core::ptr::with_exposed_provenance_mut(at as usize);
    // SAFETY: The caller's promise; tables are aligned.
    unsafe { AtomicU64::from_ptr(at) }
}

/// Writes zeros.
pub fn zero(at: u64, bytes: u64) {
    for word in (at..at + bytes).step_by(8) {
        // SAFETY: RAM of the pool's.
        unsafe { write64(word, 0) };
    }
}

/// The pool for tables of one granule. There is only one at a time.
#[derive(Debug)]
pub struct Pool {
    page: u64,
    plain: bool,
    lock: AtomicBool,
    next: AtomicU64,
    /// First free page; each holds the next in its first word.
    free: AtomicU64,
    live: AtomicU64,
    /// Pages that it still gives.
    left: AtomicU64,
}

impl Pool {
    /// An empty pool, for CPUs whose MMU is on.
    pub fn new(page: u64) -> Self {
        for count in &COUNTS {
            count.store(0, Ordering::Relaxed);
        }
        Self {
            page,
            plain: false,
            lock: AtomicBool::new(false),
            next: AtomicU64::new(base()),
            free: AtomicU64::new(0),
            live: AtomicU64::new(0),
            left: AtomicU64::new(u64::MAX),
        }
    }

    /// An empty pool, for one CPU whose MMU is off.
    pub fn plain(page: u64) -> Self {
        Self {
            plain: true,
            ..Self::new(page)
        }
    }

    /// The tables of this pool stay; later pools begin behind it.
    pub fn keep(self) {
        let bytes = self.used() - machine::get().image.end;
        KEPT.store(bytes, Ordering::Relaxed);
    }

    /// The first byte behind any pool.
    pub fn end() -> u64 {
        base() + BYTES
    }

    /// The first byte that was never given out.
    pub fn used(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    fn locked<R>(&self, what: impl FnOnce() -> R) -> R {
        if self.plain {
            return what();
        }
        while self.lock.swap(true, Ordering::Acquire) {
            core::hint::spin_loop();
        }
        let result = what();
        self.lock.store(false, Ordering::Release);
        result
    }

    /// Zeroed memory, aligned to its size.
    pub fn block(&self, bytes: u64) -> u64 {
        let at = self.locked(|| self.carve(bytes));
        zero(at, bytes);
        at
    }

    fn carve(&self, bytes: u64) -> u64 {
        let at = self.used().next_multiple_of(bytes);
        assert!(at + bytes <= Self::end(), "the pool is used up");
        self.next.store(at + bytes, Ordering::Relaxed);
        at
    }

    /// Tables given out and not back.
    pub fn live(&self) -> u64 {
        self.live.load(Ordering::Relaxed)
    }

    /// From now on it gives no more than so many pages.
    pub fn limit(&self, pages: u64) {
        self.left.store(pages, Ordering::Relaxed);
    }

    /// A table's page for a caller who makes tables.
    pub fn page(&self) -> Option<Pa> {
        let at = self.locked(|| {
            let left = self.left.load(Ordering::Relaxed).checked_sub(1)?;
            if left < u64::MAX >> 1 {
                self.left.store(left, Ordering::Relaxed);
            }
            let live = self.live.load(Ordering::Relaxed);
            self.live.store(live + 1, Ordering::Relaxed);
            let free = self.free.load(Ordering::Relaxed);
            if free == 0 {
                return Some(self.carve(self.page));
            }
            // SAFETY: A page of the list's: its first word is the next.
            self.free.store(unsafe { read64(free) }, Ordering::Relaxed);
            Some(free)
        })?;
        zero(at, self.page);
        Some(Pa::new(at))
    }

    /// Takes a page back, whatever is in it.
    pub fn give_back(&self, page: Pa) {
        self.counter(page).store(0, Ordering::Relaxed);
        self.locked(|| {
            let free = self.free.load(Ordering::Relaxed);
            // SAFETY: A page of the pool's that nobody has any more.
            unsafe { write64(page.get(), free) };
            self.free.store(page.get(), Ordering::Relaxed);
            let live = self.live.load(Ordering::Relaxed);
            self.live.store(live - 1, Ordering::Relaxed);
        });
    }

    fn counter(&self, table: Pa) -> &'static AtomicU32 {
        &COUNTS[((table.get() - base()) >> 12) as usize]
    }

    /// Entries of the table at `table` that are not zero, of `entries`.
    pub fn held(&self, table: Pa, entries: usize) -> u32 {
        (0..entries)
            .map(|index| u32::from(self.load(table.get(), index) != 0))
            .sum()
    }

    /// Reads an entry.
    pub fn load(&self, table: u64, index: usize) -> u64 {
        let at = table + 8 * index as u64;
        // SAFETY: A table of the pool's.
        unsafe {
            if self.plain {
                read64(at)
            } else {
                word(at).load(Ordering::Acquire)
            }
        }
    }
}

impl TableMem for Pool {
    type Table = u64;

    fn locate(&self, pa: Pa) -> u64 {
        pa.get()
    }

    fn load(&self, table: u64, index: usize) -> u64 {
        self.load(table, index)
    }

    fn store(&self, table: u64, index: usize, value: u64) {
        let at = table + 8 * index as u64;
        // SAFETY: A table of the pool's.
        unsafe {
            if self.plain {
                write64(at, value);
            } else {
                word(at).store(value, Ordering::Release);
            }
        }
    }

    fn cas(&self, table: u64, index: usize, old: u64, new: u64) -> Result<(), u64> {
        if self.plain {
            // One CPU, and no hardware updates: nobody comes between.
            let now = self.load(table, index);
            if now != old {
                return Err(now);
            }
            self.store(table, index, new);
            return Ok(());
        }
        // SAFETY: A table of the pool's.
        let entry = unsafe { word(table + 8 * index as u64) };
        entry
            .compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire)
            .map(drop)
    }

    fn alloc(&self, _level: Level) -> Option<Pa> {
        self.page()
    }

    fn free(&self, table: Pa, _level: Level, _proof: &Synced) {
        self.give_back(table);
    }

    fn count(&self, table: Pa) -> u32 {
        self.counter(table).load(Ordering::Relaxed)
    }

    fn add_count(&self, table: Pa, by: i32) {
        let counter = self.counter(table);
        if self.plain {
            let count = counter.load(Ordering::Relaxed);
            counter.store(count.wrapping_add_signed(by), Ordering::Relaxed);
        } else {
            counter.fetch_add(by.cast_unsigned(), Ordering::Relaxed);
        }
    }
}

/// Memory that guests use. In every 4 KiB of it the first and the last word are
/// their own address, and at [`CODE`] there is a function that returns
/// [`RETURNS`]; the rest of the first [`ENDS`] bytes is anybody's.
#[derive(Clone, Copy, Debug)]
pub struct Data {
    /// The first byte, aligned to [`DATA`].
    pub base: u64,
}

/// At each end of 4 KiB: the bytes that are ever written.
pub const ENDS: u64 = 128;
/// Where the function stands in every 4 KiB.
pub const CODE: u64 = 32;
/// What it returns.
pub const RETURNS: u64 = 0x77;

impl Data {
    /// Memory behind the pool, clear of the device tree, filled.
    pub fn behind_the_pool() -> Self {
        let machine = machine::get();
        let tree = machine.tree.as_ptr().addr() as u64;
        let tree = tree..tree + machine.tree.len() as u64;
        let mut base = Pool::end().next_multiple_of(DATA);
        while base < tree.end && tree.start < base + DATA {
            base += DATA;
        }
        assert!(base + DATA <= machine.ram_end(), "RAM is too small");
        Self::at(base)
    }

    /// The memory at `base`, filled.
    pub fn at(base: u64) -> Self {
        for page in (base..base + DATA).step_by(4096) {
            // SAFETY: RAM that is nobody else's.
            unsafe {
                write64(page, page);
                write64(page + 4088, page + 4088);
                write32(page + CODE, 0xd280_0000 | (RETURNS as u32) << 5);
                write32(page + CODE + 4, 0xd65f_03c0);
            }
        }
        clean(base, base + DATA);
        Self { base }
    }

    /// Whether a byte is in it.
    pub const fn holds(&self, pa: u64) -> bool {
        pa >= self.base && pa - self.base < DATA
    }
}

/// Reads what a guest wrote, past and through the cache.
pub fn read_coherent(pa: u64) -> u64 {
    clean(pa, pa + 8);
    // SAFETY: Memory of [`Data`], or a frame of the pool's.
    unsafe { read64(pa) }
}

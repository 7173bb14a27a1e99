//! Table pages: a part of RAM behind the image, given out in order and taken
//! back into a list; one CPU, MMU off.

use core::cell::{Cell, UnsafeCell};

use pgtable::{Level, Pa, Synced, TableMem};
use tests::bare::machine;

/// Pages of the smallest granule, at most.
const PAGES: usize = 8192;
/// Bytes of the pool.
const BYTES: u64 = 32 << 20;

struct Counts(UnsafeCell<[u32; PAGES]>);

// SAFETY: One CPU runs.
unsafe impl Sync for Counts {}

static COUNTS: Counts = Counts(UnsafeCell::new([0; PAGES]));

/// The pool for tables of one granule.
pub struct Pool {
    base: u64,
    next: Cell<u64>,
    /// First free page; each holds the next in its first word.
    free: Cell<u64>,
    live: Cell<u64>,
    page: u64,
}

impl Pool {
    /// An empty pool. There is only one at a time.
    pub fn new(page: u64) -> Self {
        let base = machine::get().image.end.next_multiple_of(2 << 20);
        // SAFETY: One pool at a time, one CPU.
        unsafe { (*COUNTS.0.get()).fill(0) };
        Self {
            base,
            next: Cell::new(base),
            free: Cell::new(0),
            live: Cell::new(0),
            page,
        }
    }

    /// The first byte behind it.
    pub fn end() -> u64 {
        machine::get().image.end.next_multiple_of(2 << 20) + BYTES
    }

    /// Zeroed memory, aligned to its size.
    pub fn block(&self, bytes: u64) -> u64 {
        let at = self.next.get().next_multiple_of(bytes);
        assert!(at + bytes <= self.base + BYTES, "the pool is used up");
        self.next.set(at + bytes);
        zero(at, bytes);
        at
    }

    /// Tables given out and not back.
    pub fn live(&self) -> u64 {
        self.live.get()
    }

    /// A table's page for a caller who splits blocks.
    pub fn page(&self) -> Option<Pa> {
        self.alloc(Level::L3)
    }

    fn index(&self, pa: Pa) -> usize {
        ((pa.get() - self.base) / 4096) as usize % PAGES
    }
}

/// Writes zeros.
pub fn zero(at: u64, bytes: u64) {
    for word in (at..at + bytes).step_by(8) {
        // SAFETY: RAM of the pool's.
        unsafe { tests::bare::asm::write64(word, 0) };
    }
}

impl TableMem for &Pool {
    type Table = u64;

    fn locate(&self, pa: Pa) -> u64 {
        pa.get()
    }

    fn load(&self, table: u64, index: usize) -> u64 {
        // SAFETY: A table of the pool's.
        unsafe { tests::bare::asm::read64(table + 8 * index as u64) }
    }

    fn store(&self, table: u64, index: usize, value: u64) {
        // SAFETY: A table of the pool's.
        unsafe { tests::bare::asm::write64(table + 8 * index as u64, value) };
    }

    fn cas(&self, table: u64, index: usize, old: u64, new: u64) -> Result<(), u64> {
        // One CPU, and no hardware updates: nobody comes between.
        let now = self.load(table, index);
        if now != old {
            return Err(now);
        }
        self.store(table, index, new);
        Ok(())
    }

    fn alloc(&self, level: Level) -> Option<Pa> {
        (**self).alloc(level)
    }

    fn free(&self, table: Pa, _level: Level, _proof: &Synced) {
        let index = self.index(table);
        // SAFETY: A table of the pool's that nobody has any more.
        unsafe {
            (&mut *COUNTS.0.get())[index] = 0;
            tests::bare::asm::write64(table.get(), self.free.get());
        }
        self.free.set(table.get());
        self.live.set(self.live.get() - 1);
    }

    fn count(&self, table: Pa) -> u32 {
        // SAFETY: One CPU.
        unsafe { (&*COUNTS.0.get())[self.index(table)] }
    }

    fn add_count(&self, table: Pa, by: i32) {
        let index = self.index(table);
        // SAFETY: One CPU.
        let count = unsafe { &mut (&mut *COUNTS.0.get())[index] };
        *count = count.wrapping_add_signed(by);
    }
}

impl Pool {
    fn alloc(&self, _level: Level) -> Option<Pa> {
        self.live.set(self.live.get() + 1);
        let free = self.free.get();
        if free == 0 {
            return Some(Pa::new(self.block(self.page)));
        }
        // SAFETY: A page of the list's: its first word is the next.
        self.free.set(unsafe { tests::bare::asm::read64(free) });
        zero(free, self.page);
        Some(Pa::new(free))
    }
}

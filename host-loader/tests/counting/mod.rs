//! A global allocator that counts what one thread has and had at most, as the
//! image's heap does: each block rounded up to a power of two.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static COUNTS: Cell<bool> = const { Cell::new(false) };
    static NOW: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
    static CALLS: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn add(size: isize) {
    if COUNTS.get() {
        NOW.set(NOW.get() + size);
        PEAK.set(PEAK.get().max(NOW.get()));
        CALLS.set(CALLS.get() + usize::from(size > 0));
    }
}

fn block(layout: Layout) -> isize {
    layout.size().max(layout.align()).max(8).next_power_of_two() as isize
}

// SAFETY: Blocks are the system's. Reallocation is the trait's own: a new block,
// then the old one freed, as in the image.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(block(layout));
        // SAFETY: The caller's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        add(-block(layout));
        // SAFETY: The caller's contract.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// What a piece of work took of the heap.
#[derive(Clone, Copy, Debug)]
pub struct Used {
    /// Bytes at most, beyond what there was before.
    pub peak: usize,
    /// Blocks that were allocated.
    #[allow(dead_code, reason = "not all tests ask")]
    pub blocks: usize,
}

/// Does `work` and counts what this thread allocates meanwhile.
pub fn counted<T>(work: impl FnOnce() -> T) -> (T, Used) {
    NOW.set(0);
    PEAK.set(0);
    CALLS.set(0);
    COUNTS.set(true);
    let result = work();
    COUNTS.set(false);
    let used = Used {
        peak: PEAK.get() as usize,
        blocks: CALLS.get(),
    };
    (result, used)
}

/// Does `work` without counting what it allocates and frees: it is not the
/// image's.
#[allow(dead_code, reason = "not all tests have such work")]
pub fn aside<T>(work: impl FnOnce() -> T) -> T {
    let counts = COUNTS.replace(false);
    let result = work();
    COUNTS.set(counts);
    result
}

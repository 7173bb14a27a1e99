//! A heap of bounded size for what is fuzzed: what takes more is a finding.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static LEFT: Cell<usize> = const { Cell::new(usize::MAX) };
}

struct Bounded;

#[global_allocator]
static ALLOCATOR: Bounded = Bounded;

// SAFETY: Blocks are the system's.
unsafe impl GlobalAlloc for Bounded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let left = LEFT.get();
        if left != usize::MAX {
            match left.checked_sub(layout.size().next_power_of_two()) {
                Some(left) => LEFT.set(left),
                // A report without the heap, by the fuzzer.
                None => std::process::abort(),
            }
        }
        // SAFETY: The caller's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        let left = LEFT.get();
        if left != usize::MAX {
            LEFT.set(
                left.saturating_add(layout.size().next_power_of_two())
                    .min(usize::MAX - 1),
            );
        }
        // SAFETY: The caller's contract.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Does `work`, which has `bytes` of heap at most: blocks count as the next
/// power of two, as in the image.
pub fn within<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    LEFT.set(bytes);
    let result = work();
    LEFT.set(usize::MAX);
    result
}

//! The heap: a buddy allocator that takes more of the machine's RAM when it
//! must, and keeps it.
//!
//! Lock protocol: the heap's own lock is innermost and never held while RAM is
//! asked for. RAM is asked for with a try: whoever holds the granules' lock and
//! allocates gets what the heap has.

use crate::machine;
use buddy_system_allocator::LockedHeap;
use core::alloc::{GlobalAlloc, Layout};
use core::ops::Range;

/// The least that the heap grows by.
const STEP: usize = 4 << 20;

/// The heap; orders up to 2^38 bytes.
struct Growing(LockedHeap<39>);

#[global_allocator]
static HEAP: Growing = Growing(LockedHeap::empty());

/// Gives the heap memory.
///
/// # Safety
/// The memory is mapped read-write and the heap's alone from now on.
pub unsafe fn add(memory: Range<u64>) {
    // SAFETY: The caller's contract.
    unsafe {
        (HEAP.0.lock()).add_to_heap(memory.start as usize, memory.end as usize);
    }
}

/// Takes RAM for an allocation that did not fit: whether there was any.
fn grow(layout: Layout) -> bool {
    let size = layout
        .size()
        .max(layout.align())
        .checked_next_power_of_two()
        .map(|size| size.max(STEP) as u64);
    let (Some(size), Some(machine)) = (size, machine::try_get()) else {
        return false;
    };
    // Aligned to its size, it is one block of the buddy allocator's.
    let Some(start) = (machine.granules.try_lock()).and_then(|mut g| g.take(size, size)) else {
        return false;
    };
    // SAFETY: All of the host's RAM is mapped once the machine is installed, and
    // this part was free.
    unsafe { add(start..start + size) };
    true
}

// SAFETY: The buddy allocator hands out disjoint blocks of the memory that it
// was given, of the layout's size and alignment.
unsafe impl GlobalAlloc for Growing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let mut got = self.0.lock().alloc(layout);
        if got.is_err() && grow(layout) {
            got = self.0.lock().alloc(layout);
        }
        got.map_or(core::ptr::null_mut(), |block| block.as_ptr())
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: The caller's contract.
        unsafe { GlobalAlloc::dealloc(&self.0, block, layout) }
    }
}

//! The heap: a buddy allocator that takes more of the machine's RAM when it
//! must, and keeps it.
//!
//! Lock protocol: the heap's own lock is innermost and never held while RAM is
//! asked for. RAM is asked for under the granules' lock, which the heap waits
//! for: nobody allocates while holding it ([`crate::granules`]).
//!
//! No allocation fails: where the machine has no RAM left, the machine ends with
//! a sentence. So that no guest can bring that about, what its starts and resets
//! allocate is bounded, and set aside by [`reserve`] before the first one runs.

use crate::granules::Granules;
use crate::{logger, rmi_call};
use buddy_system_allocator::LockedHeap;
use core::alloc::{GlobalAlloc, Layout};
use core::ops::Range;
use rmi::end::How;
use spin::{Mutex, Once};

/// The least that the heap grows by.
const STEP: u64 = 4 << 20;

/// The heap; orders up to 2^38 bytes.
struct Growing(LockedHeap<39>);

#[global_allocator]
static HEAP: Growing = Growing(LockedHeap::empty());

/// Where it takes RAM from.
static RAM: Once<Source> = Once::new();

/// The machine's RAM, and what to do when there is none left.
struct Source {
    granules: &'static Mutex<Granules>,
    end: fn(u64) -> !,
}

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

/// Has the heap take what it lacks from `granules`, from now on; where they have
/// none left, `end` ends the machine with a status.
///
/// # Safety
/// All of that RAM is mapped read-write at its own addresses.
pub unsafe fn grow_from(granules: &'static Mutex<Granules>, end: fn(u64) -> !) {
    RAM.call_once(|| Source { granules, end });
}

/// Sets `bytes` more aside: whether the machine has them.
pub fn reserve(bytes: u64) -> bool {
    let Some(Source { granules: ram, .. }) = RAM.get() else {
        return false;
    };
    let mut left = bytes;
    while left > 0 {
        // Aligned to its size, it is one block of the buddy allocator's.
        let size = left.next_power_of_two().min(STEP);
        let Some(start) = ram.lock().take(size, size) else {
            return false;
        };
        let size = size.next_multiple_of(ram.lock().granule());
        // SAFETY: `grow_from`'s caller says that it is mapped, and it was free.
        unsafe { add(start..start + size) };
        left = left.saturating_sub(size);
    }
    true
}

/// Takes RAM for an allocation that did not fit: whether there was any.
fn grow(layout: Layout) -> bool {
    let size = (layout.size().max(layout.align()) as u64).checked_next_power_of_two();
    let (Some(size), Some(Source { granules: ram, .. })) = (size, RAM.get()) else {
        return false;
    };
    for size in [size.max(STEP), size] {
        let Some(start) = ram.lock().take(size, size) else {
            continue;
        };
        // SAFETY: As in `reserve`.
        unsafe { add(start..start + size) };
        return true;
    }
    false
}

/// Ends the machine that has no memory for an allocation.
fn lacks(layout: Layout) -> ! {
    logger::raw(
        logger::ERROR,
        format_args!(
            "the host needs {} KiB of memory beside the guests', and the machine has \
             no RAM left; give the machine more",
            layout.size().div_ceil(1024)
        ),
    );
    match RAM.get() {
        Some(source) => (source.end)(2),
        None => {
            logger::end(How::Status(2));
            rmi_call::machine_off()
        }
    }
}

// SAFETY: The buddy allocator hands out disjoint blocks of the memory that it
// was given, of the layout's size and alignment.
unsafe impl GlobalAlloc for Growing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        loop {
            let got = self.0.lock().alloc(layout);
            match got {
                Ok(block) => return block.as_ptr(),
                // Another CPU may be first to use it.
                Err(()) if grow(layout) => {}
                Err(()) => lacks(layout),
            }
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: The caller's contract.
        unsafe { GlobalAlloc::dealloc(&self.0, block, layout) }
    }
}

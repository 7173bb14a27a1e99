//! Physical memory as EL2 reaches it: every pointer into RAM is made here.
//!
//! EL2's stage 1 maps RAM at its own address. On the development machine,
//! physical memory is a buffer of the test's, one for each thread.

/// The pointer to a physical address.
#[cfg(target_os = "none")]
#[inline(always)]
pub fn pointer<T>(pa: u64) -> *mut T {
    pa as *mut T
}

/// The pointer to a physical address of this test's memory.
#[cfg(not(target_os = "none"))]
pub fn pointer<T>(pa: u64) -> *mut T {
    fake::pointer(pa) as *mut T
}

/// Fills `len` bytes at `pa` with zeros.
///
/// # Safety
/// The range is RAM that nobody reads or writes meanwhile, or that only a lower
/// level touches.
#[inline]
pub unsafe fn zero(pa: u64, len: u64) {
    // SAFETY: the caller's promise; the range is mapped, as all RAM is.
    unsafe { core::ptr::write_bytes(pointer::<u8>(pa), 0, len as usize) }
}

/// A value in RAM, read once, as the lower level that owns it left it.
///
/// # Safety
/// `pa` is aligned for `T` and `size_of::<T>()` bytes from it are RAM.
#[inline]
pub unsafe fn read<T: zerocopy::FromBytes>(pa: u64) -> T {
    // SAFETY: the caller's promise; any bytes are a `T`.
    unsafe { pointer::<T>(pa).read_volatile() }
}

/// Writes a value to RAM that a lower level owns.
///
/// # Safety
/// `pa` is aligned for `T`, and `size_of::<T>()` bytes from it are RAM that EL2
/// keeps nothing in.
#[inline]
pub unsafe fn write<T: zerocopy::IntoBytes>(pa: u64, value: T) {
    // SAFETY: the caller's promise.
    unsafe { pointer::<T>(pa).write_volatile(value) }
}

/// Physical memory of a test.
#[cfg(not(target_os = "none"))]
pub mod fake {
    extern crate std;
    use crate::memory::region::Region;
    use std::alloc::Layout;
    use std::cell::{Cell, RefCell};
    use std::vec::Vec;

    std::thread_local! {
        static CLEANED: RefCell<Vec<Region>> = const { RefCell::new(Vec::new()) };
        static MEMORY: Cell<(u64, usize, usize)> = const { Cell::new((0, 0, 0)) };
        static ALLOCATED: Cell<usize> = const { Cell::new(0) };
        static HOLE: Cell<Region> = const { Cell::new(Region::EMPTY) };
        static TRANSLATION: Cell<Option<u64>> = const { Cell::new(None) };
    }

    /// What physical memory is aligned to.
    const ALIGN: usize = 0x1_0000;

    /// One that the allocator gets without touching it: more than is used, aligned here.
    fn layout(len: usize) -> Layout {
        Layout::from_size_align(len + ALIGN, 16).expect("a size that fits")
    }

    /// Gives this thread `len` bytes of zeroed memory at physical address
    /// `base`, aligned to 64 KiB, until the thread ends (the buffer is leaked).
    pub fn install(base: u64, len: usize) {
        // SAFETY: the layout is not empty.
        let memory = unsafe { std::alloc::alloc_zeroed(layout(len)) };
        assert!(!memory.is_null(), "out of memory");
        let aligned = (memory as usize).next_multiple_of(ALIGN);
        ALLOCATED.set(memory as usize);
        MEMORY.set((base, aligned, len));
        HOLE.set(Region::EMPTY);
    }

    /// Takes it away: there is no memory until the next `install`.
    pub fn remove() {
        MEMORY.set((0, 0, 0));
        HOLE.set(Region::EMPTY);
    }

    /// Takes it away and frees it: there is no memory until the next `install`.
    ///
    /// # Safety
    /// This thread installed it, and nobody has a reference into it.
    pub unsafe fn free() {
        let (_, _, len) = MEMORY.replace((0, 0, 0));
        HOLE.set(Region::EMPTY);
        // SAFETY: `install` got it; the caller's promise.
        unsafe { std::alloc::dealloc(ALLOCATED.get() as *mut u8, layout(len)) };
    }

    /// Physical memory of a thread's, for others: [`Shared::join`].
    #[derive(Clone, Copy, Debug)]
    pub struct Shared(u64, usize, usize);

    /// What this thread has.
    pub fn share() -> Shared {
        let (base, memory, len) = MEMORY.get();
        Shared(base, memory, len)
    }

    impl Shared {
        /// This thread has it too, as a CPU beside the other's.
        pub fn join(self) {
            MEMORY.set((self.0, self.1, self.2));
            HOLE.set(Region::EMPTY);
        }
    }

    /// Has these physical addresses answer with an external abort.
    pub fn make_hole(region: Region) {
        HOLE.set(region);
    }

    /// Whether one of `len` bytes behind the pointer is in the hole.
    pub fn is_hole(pointer: usize, len: usize) -> bool {
        let (base, memory, size) = MEMORY.get();
        let offset = pointer.wrapping_sub(memory);
        let accessed = Region::new(base.wrapping_add(offset as u64), len as u64);
        offset < size && accessed.is_some_and(|accessed| HOLE.get().overlaps(&accessed))
    }

    /// What every translation of a lower level's address gives as PAR_EL1; `None`: an
    /// external abort on its walk.
    pub fn set_translation(par: Option<u64>) {
        TRANSLATION.set(par);
    }

    /// PAR_EL1 of a translation.
    pub fn translation() -> Option<u64> {
        TRANSLATION.get()
    }

    /// Notes that what is behind the pointer was cleaned to memory.
    pub fn note_cleaned(pointer: usize, len: usize) {
        let (base, memory, _) = MEMORY.get();
        let at = base.wrapping_add(pointer.wrapping_sub(memory) as u64);
        CLEANED.with_borrow_mut(|all| all.extend(Region::new(at, len as u64)));
    }

    /// What was cleaned since the last call.
    pub fn cleaned() -> Vec<Region> {
        CLEANED.take()
    }

    /// Where `pa` is.
    ///
    /// # Panics
    /// When it is not in this test's memory: on hardware EL2 would have died.
    pub fn pointer(pa: u64) -> usize {
        let (base, memory, len) = MEMORY.get();
        assert!(
            pa >= base && ((pa - base) as usize) < len,
            "{pa:#x} is no memory"
        );
        memory + (pa - base) as usize
    }
}

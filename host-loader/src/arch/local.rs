//! One CPU's own state.

use arm64::regs::TPIDR_EL1;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// What TPIDR_EL1 points to.
#[repr(C)]
pub struct CpuLocal {
    /// Top of the stack that exceptions run on, for entry.s.
    pub exception_stack: AtomicU64,
    /// Index of this CPU among those of the device tree.
    index: AtomicU64,
    /// Exceptions and panics so far: the first is reported.
    pub faults: AtomicU32,
}

impl CpuLocal {
    /// Of the CPU `index`, whose exceptions run on this stack.
    pub const fn new(exception_stack: u64, index: u64) -> Self {
        Self {
            exception_stack: AtomicU64::new(exception_stack),
            index: AtomicU64::new(index),
            faults: AtomicU32::new(0),
        }
    }
}

/// The boot CPU's state; entry.s writes its exception stack.
pub static BOOT_CPU: CpuLocal = CpuLocal::new(0, 0);

/// This CPU's state.
pub fn local() -> &'static CpuLocal {
    let pointer = core::ptr::with_exposed_provenance::<CpuLocal>(TPIDR_EL1.get() as usize);
    // SAFETY: entry.s sets TPIDR_EL1 before Rust runs, to BOOT_CPU or to a
    // leaked box; neither moves nor goes.
    unsafe { &*pointer }
}

/// Index of this CPU among those of the device tree.
pub fn index() -> usize {
    local().index.load(Ordering::Relaxed) as usize
}

/// Sets which CPU of the device tree this is: the boot CPU.
pub fn set_index(index: usize) {
    local().index.store(index as u64, Ordering::Relaxed);
}

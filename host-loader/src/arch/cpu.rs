//! One CPU's own state, and how further CPUs come to Rust.

use super::exception::Frame;
use super::mmu;
use crate::rmi_call;
use alloc::boxed::Box;
use arm64::frame::Regime;
use arm64::instr;
use arm64::regs::TPIDR_EL1;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

core::arch::global_asm!(
    include_str!("../../../hyp/arm64/src/image.s"),
    include_str!("entry.s"),
    flags = const 0xa, // little endian, 4K, anywhere in memory
    ttbr0 = const offset_of!(Regime, ttbr0),
    mair = const offset_of!(Regime, mair),
    exception_stack = const offset_of!(CpuLocal, exception_stack),
    start_regime = const offset_of!(CpuStart, regime),
    start_stack = const offset_of!(CpuStart, stack_top),
    start_local = const offset_of!(CpuStart, local),
    boot_cpu = sym BOOT_CPU,
    early_map = sym mmu::early_map,
    registers = sym mmu::REGISTERS,
    frame_size = const size_of::<Frame>(),
    exception_handler = sym super::exception::exception_handler,
    secondary_main = sym secondary_main,
);

/// What TPIDR_EL1 points to.
#[repr(C)]
pub struct CpuLocal {
    /// Top of the stack that exceptions run on, for entry.s.
    exception_stack: AtomicU64,
    /// Index of this CPU among those of the device tree.
    index: AtomicU64,
    /// Exceptions and panics so far: the first is reported.
    pub faults: AtomicU32,
}

impl CpuLocal {
    const fn new(exception_stack: u64, index: u64) -> Self {
        Self {
            exception_stack: AtomicU64::new(exception_stack),
            index: AtomicU64::new(index),
            faults: AtomicU32::new(0),
        }
    }
}

/// The boot CPU's state; entry.s writes its exception stack.
static BOOT_CPU: CpuLocal = CpuLocal::new(0, 0);

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

/// Tells the boot CPU which CPU of the device tree it is.
pub fn set_index(index: usize) {
    local().index.store(index as u64, Ordering::Relaxed);
}

/// What entry.s loads on a further CPU, with its MMU off.
#[repr(C, align(64))]
struct CpuStart {
    regime: Regime,
    stack_top: u64,
    local: u64,
}

/// What a started CPU runs.
pub type CpuMain = fn() -> !;

static SECONDARY_MAIN: spin::Once<CpuMain> = spin::Once::new();

/// Starts the CPU `mpidr` as number `index`: it runs `main` on the stack that
/// ends at `stack_top` and takes exceptions on that at `exception_top`.
///
/// Errors are PSCI's codes.
pub fn start(
    index: usize,
    mpidr: u64,
    stack_top: u64,
    exception_top: u64,
    main: CpuMain,
) -> Result<(), i64> {
    SECONDARY_MAIN.call_once(|| main);
    let local: &'static CpuLocal = Box::leak(Box::new(CpuLocal::new(exception_top, index as u64)));
    let start: &'static CpuStart = Box::leak(Box::new(CpuStart {
        regime: mmu::regime(),
        stack_top,
        local: core::ptr::from_ref(local).expose_provenance() as u64,
    }));
    let at = core::ptr::from_ref(start).expose_provenance() as u64;
    instr::clean_to_poc(at, size_of::<CpuStart>() as u64);
    let entry = secondary_entry as *const () as u64;
    rmi_call::machine_cpu_on(mpidr, entry, at)
}

unsafe extern "C" {
    /// Where entry.s takes further CPUs in; not a function to call.
    fn secondary_entry();
}

extern "C" fn secondary_main() -> ! {
    match SECONDARY_MAIN.get() {
        Some(main) => main(),
        None => panic!("a CPU came up before it was asked to"),
    }
}

//! How further CPUs come to Rust.

use super::exception::Frame;
use super::local::{BOOT_CPU, CpuLocal};
use super::mmu;
use crate::rmi_call;
use alloc::boxed::Box;
use arm64::frame::Regime;
use arm64::instr;
use core::mem::offset_of;

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

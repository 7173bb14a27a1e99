//! A program's life: entry, the machine it finds, its end.
//!
//! `entry.s` relocates and calls `boot` with the MMU off on the boot CPU's
//! stack. Other CPUs come through [`cpu::start`]. Nothing is shared before the
//! MMU is on; after that, state that CPUs share is atomic.

pub mod asm;
pub mod code;
pub mod console;
pub mod cpu;
pub mod exception;
pub mod gic;
pub mod machine;
pub mod mmu;
pub mod pl011;
pub mod psci;
pub mod rsi;
pub mod sweep;

use core::arch::global_asm;
use core::cell::UnsafeCell;
use core::mem::offset_of;

use arm64::frame::Regime;
use exception::Frame;

use machine::Machine;

/// CPUs that a program drives.
pub const MAX_CPUS: usize = 8;

/// Stack of each CPU in bytes.
pub const STACK: usize = 64 << 10;

/// Where RAM begins on QEMU's virt machine.
pub const RAM_BASE: u64 = 0x4000_0000;

#[repr(C, align(4096))]
struct Stacks(UnsafeCell<[[u8; STACK]; MAX_CPUS]>);

// SAFETY: Only the CPU that a part belongs to uses it, as its stack.
unsafe impl Sync for Stacks {}

static STACKS: Stacks = Stacks(UnsafeCell::new([[0; STACK]; MAX_CPUS]));

global_asm!(
    include_str!("../../../hyp/arm64/src/image.s"),
    include_str!("entry.s"),
    flags = const 0xa, // little endian, 4K, anywhere in memory
    ttbr0 = const offset_of!(Regime, ttbr0),
    mair = const offset_of!(Regime, mair),
    frame_elr = const offset_of!(Frame, elr),
    frame_spsr = const offset_of!(Frame, spsr),
    frame_esr = const offset_of!(Frame, esr),
    frame_far = const offset_of!(Frame, far),
    frame_size = const size_of::<Frame>(),
    stacks = sym STACKS,
    stack = const STACK,
    boot = sym boot,
    secondary = sym cpu::secondary,
    registers = sym mmu::REGISTERS,
    exception = sym exception::exception,
);

unsafe extern "C" {
    fn program_main();
    static PROGRAM_LEVEL: u64;
}

extern "C" fn boot(dtb: u64, base: u64, end: u64) -> ! {
    // SAFETY: x0 as the boot protocol has it. Where it is none, RAM begins where
    // QEMU's virt machine has it, and a program that is no Linux finds its tree
    // there.
    let tree = unsafe { machine::bytes(dtb).or_else(|| machine::bytes(RAM_BASE)) };
    let Some(machine) = tree.and_then(|tree| Machine::read(tree, base..end)) else {
        // No device tree, no console to say it on.
        loop {
            asm::wfe();
        }
    };
    let machine = machine::set(machine.as_realm());
    console::start(machine.uart);
    let level = asm::current_el();
    // SAFETY: `program!` defines it, and nobody writes it.
    let wanted = unsafe { PROGRAM_LEVEL };
    if level != wanted {
        crate::println!("entered at EL{level}: this program runs at EL{wanted}");
        psci::system_off();
    }
    if level == 1 {
        mmu::start(machine);
        console::share();
    }
    // SAFETY: `program!` defines it as a plain function.
    unsafe { program_main() };
    psci::system_off()
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    console::unlock();
    crate::println!("FAIL panic: {info}");
    psci::system_off()
}

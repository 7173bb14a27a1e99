//! Software step (DDI0487, D2.12) of code at EL0, over instructions that the
//! hypervisor emulates: each is one step, no more and no less.

use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tests::bare::console::Console;
use tests::bare::exception::{self, Frame};
use tests::bare::gic::gicd;
use tests::bare::{machine, mmu};
use tests::suite::Suite;
use tests::{mrs, msr};

// x0 = the UART's identification, x1 = the distributor's GICD_TYPER, both at
// addresses that EL0 reaches; x2 = where EL0 begins.
global_asm!(
    ".global el0_code",
    "el0_code:",
    "ldr w3, [x0]",
    "ldr w4, [x1]",
    "nop",
    "ldrb w5, [x0, #4]",
    "nop",
    "svc #0",
    ".global el0_enter",
    "el0_enter:",
    "stp x29, x30, [sp, #-96]!",
    "stp x19, x20, [sp, #16]",
    "stp x21, x22, [sp, #32]",
    "stp x23, x24, [sp, #48]",
    "stp x25, x26, [sp, #64]",
    "stp x27, x28, [sp, #80]",
    "msr elr_el1, x2",
    "mov x2, #0x3c0",
    "orr x2, x2, #0x200000",
    "msr spsr_el1, x2",
    "isb",
    "eret",
    ".global el0_back",
    "el0_back:",
    "ldp x27, x28, [sp, #80]",
    "ldp x25, x26, [sp, #64]",
    "ldp x23, x24, [sp, #48]",
    "ldp x21, x22, [sp, #32]",
    "ldp x19, x20, [sp, #16]",
    "ldp x29, x30, [sp], #96",
    "ret",
);

unsafe extern "C" {
    static el0_code: u8;
    static el0_back: u8;
    fn el0_enter(x0: u64, x1: u64, at: u64);
}

/// PSTATE.SS: the next instruction is executed, and then the exception comes.
const SS: u64 = 1 << 21;
/// Virtual gibibytes that nothing else uses.
const CODE_SLOT: u64 = 498;
const DEVICE_SLOT: u64 = 499;
const IN_GIB: u64 = (1 << 30) - 1;

/// Where each step ended, from the code's start.
static STEPS: [AtomicU64; 16] = [const { AtomicU64::new(0) }; 16];
static COUNT: AtomicUsize = AtomicUsize::new(0);
static START: AtomicU64 = AtomicU64::new(0);
static READ: AtomicU64 = AtomicU64::new(0);

fn serve(frame: &mut Frame) -> bool {
    match frame.esr >> 26 {
        // Software step from EL0.
        0x32 => {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let offset = frame.elr - START.load(Ordering::Relaxed);
            STEPS[count % STEPS.len()].store(offset, Ordering::Relaxed);
            frame.spsr |= SS;
            if count < STEPS.len() {
                return true;
            }
        }
        // SVC.
        0x15 => READ.store(frame.x[5], Ordering::Relaxed),
        _ => return false,
    }
    frame.elr = (&raw const el0_back).addr() as u64;
    frame.spsr = mrs!("daif") | 0b0101;
    true
}

/// The checks.
pub fn checks(suite: &mut Suite<Console>) {
    let machine = machine::get();
    let code = (&raw const el0_code).addr() as u64;
    let start = mmu::map_gib(CODE_SLOT, code, true, mmu::EL0) + (code & IN_GIB);
    let device = mmu::map_gib(DEVICE_SLOT, machine.uart, false, mmu::EL0);
    let uart = device + (machine.uart & IN_GIB);
    let gic = device + (machine.gicd & IN_GIB);
    START.store(start, Ordering::Relaxed);
    COUNT.store(0, Ordering::Relaxed);
    exception::on_sync(serve);
    msr!("oslar_el1", 0);
    msr!("mdscr_el1", 1);
    suite.equal("step/mdscr", mrs!("mdscr_el1") & 1, 1);
    // SAFETY: EL0 reads two devices and comes back by SVC.
    unsafe { el0_enter(uart + 0xff0, gic + gicd::TYPER, start) };
    msr!("mdscr_el1", 0);
    let count = COUNT.load(Ordering::Relaxed);
    let steps = STEPS.each_ref().map(|step| step.load(Ordering::Relaxed));
    suite.check(
        "step/each-instruction",
        count == 5 && steps[..5] == [4, 8, 12, 16, 20],
        format_args!("{count} steps, to {:?}", &steps[..count.min(16)]),
    );
    suite.equal("step/emulated-value", READ.load(Ordering::Relaxed), 0xf0);
}

//! Software step (DDI0487, D2.12) of code at EL0, and of EL1's own, over
//! instructions that the hypervisor emulates: each is one step, no more and no
//! less.

use arm64::regs::{DAIF, MDSCR_EL1, OSLAR_EL1};
use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use tests::bare::asm::set;

use tests::bare::console::Console;
use tests::bare::exception::{self, Frame};
use tests::bare::gic::gicd;
use tests::bare::{machine, mmu};
use tests::suite::Suite;

// x0 = the UART's identification, x1 = the distributor's GICD_TYPER, both at
// addresses that the code reaches; x2 = where it begins, x3 = its PSTATE.
global_asm!(
    ".global step_code",
    "step_code:",
    "ldr w3, [x0]",
    "ldr w4, [x1]",
    "nop",
    "ldrb w5, [x0, #4]",
    "nop",
    "ldp w6, w7, [x0], #8",
    "ldr w6, [x0, #-8]!",
    "2: ldxr w6, [x0]",
    "add w7, w6, #1",
    "svc #0",
    ".global step_enter",
    "step_enter:",
    tests::keep_registers!(),
    "msr elr_el1, x2",
    "msr spsr_el1, x3",
    "isb",
    "eret",
    ".global step_back",
    "step_back:",
    tests::return_with_registers!(),
);

unsafe extern "C" {
    static step_code: u8;
    static step_back: u8;
    fn step_enter(x0: u64, x1: u64, at: u64, pstate: u64);
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
        // Software step, from EL0 and from EL1.
        0x32 | 0x33 => {
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
    frame.elr = (&raw const step_back).addr() as u64;
    frame.spsr = DAIF.get() | 0b0101;
    true
}

/// MDSCR_EL1: software step, and debug exceptions of EL1 to itself.
const MDSCR_SS: u64 = 1;
const MDSCR_KDE: u64 = 1 << 13;

/// The checks.
pub fn checks(suite: &mut Suite<Console>) {
    let machine = machine::get();
    let code = (&raw const step_code).addr() as u64;
    let el0 = mmu::map_gib(CODE_SLOT, code, true, mmu::EL0) + (code & IN_GIB);
    let device = mmu::map_gib(DEVICE_SLOT, machine.uart, false, mmu::EL0);
    let uart = device + (machine.uart & IN_GIB);
    let gic = device + (machine.gicd & IN_GIB);
    exception::on_sync(serve);
    set(OSLAR_EL1, 0);
    // EL0 with all of DAIF masked; EL1h with D, of debug exceptions, clear.
    for (names, start, mdscr, pstate) in [
        (
            ["step/mdscr", "step/each-instruction", "step/emulated-value"],
            el0,
            MDSCR_SS,
            0x3c0 | SS,
        ),
        (
            [
                "step/el1-mdscr",
                "step/el1-each-instruction",
                "step/el1-emulated-value",
            ],
            code,
            MDSCR_SS | MDSCR_KDE,
            0x1c5 | SS,
        ),
    ] {
        START.store(start, Ordering::Relaxed);
        COUNT.store(0, Ordering::Relaxed);
        READ.store(0, Ordering::Relaxed);
        set(MDSCR_EL1, mdscr);
        suite.equal(names[0], MDSCR_EL1.get() & mdscr, mdscr);
        // SAFETY: The code reads two devices and comes back by SVC.
        unsafe { step_enter(uart + 0xff0, gic + gicd::TYPER, start, pstate) };
        set(MDSCR_EL1, 0);
        let count = COUNT.load(Ordering::Relaxed);
        let steps = STEPS.each_ref().map(|step| step.load(Ordering::Relaxed));
        suite.check(
            names[1],
            count == 9 && (1..10).zip(steps).all(|(n, step)| step == 4 * n),
            format_args!("{count} steps, to {:?}", &steps[..count.min(16)]),
        );
        suite.equal(names[2], READ.load(Ordering::Relaxed), 0xf0);
    }
}

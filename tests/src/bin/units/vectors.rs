//! Exceptions of EL1 and of EL0: what undefined instructions, calls and fetches of
//! nothing save, and that all else stays.

use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use arm64::regs::{CNTKCTL_EL1, DAIF};
use tests::bare::asm::set;
use tests::bare::console::Console;
use tests::bare::exception::{self, Caught, Frame};
use tests::bare::{asm, machine, mmu};
use tests::println;
use tests::suite::Suite;

// x0 = the UART, x1 = where the code begins, x2 = its PSTATE, x3 = an address of nothing.
// Registers hold numbers while it runs. At EL0 HVC and SMC are undefined.
global_asm!(
    ".global units_code",
    "units_code:",
    "mrs x9, sctlr_el2",
    "svc #123",
    "hvc #0",
    "smc #0",
    "mrs x9, cntvct_el0",
    "strb w10, [x0]",
    "ldr w9, [x0, #24]",
    "nop",
    "yield",
    "nop",
    "svc #7",
    ".global units_code_el1",
    "units_code_el1:",
    "mrs x9, sctlr_el2",
    "svc #123",
    "mrs x9, vbar_el2",
    "msr tpidr_el2, x9",
    "blr x3",
    "svc #7",
    ".global units_enter",
    "units_enter:",
    tests::keep_registers!(),
    "msr elr_el1, x1",
    "msr spsr_el1, x2",
    "isb",
    "mov x4, #0x104",
    "mov x5, #0x105",
    "mov x6, #0x106",
    "mov x7, #0x107",
    "mov x8, #0x108",
    "mov x9, #0x109",
    "mov x10, #0x2a",
    "mov x11, #0x10b",
    "mov x12, #0x10c",
    "mov x13, #0x10d",
    "mov x14, #0x10e",
    "mov x15, #0x10f",
    "mov x16, #0x110",
    "mov x17, #0x111",
    "mov x18, #0x112",
    "mov x19, #0x113",
    "mov x20, #0x114",
    "mov x21, #0x115",
    "mov x22, #0x116",
    "mov x23, #0x117",
    "mov x24, #0x118",
    "mov x25, #0x119",
    "mov x26, #0x11a",
    "mov x27, #0x11b",
    "mov x28, #0x11c",
    "mov x29, #0x11d",
    "eret",
    ".global units_back",
    "units_back:",
    tests::return_with_registers!(),
);

unsafe extern "C" {
    static units_code: u8;
    static units_code_el1: u8;
    static units_back: u8;
    fn units_enter(uart: u64, at: u64, pstate: u64, nothing: u64);
}

const EA: u64 = 1 << 9;
const CODE_SLOT: u64 = 496;
const DEVICE_SLOT: u64 = 495;
const IN_GIB: u64 = (1 << 30) - 1;

static COUNT: AtomicUsize = AtomicUsize::new(0);
static START: AtomicU64 = AtomicU64::new(0);
static SYNDROMES: [AtomicU64; 16] = [const { AtomicU64::new(0) }; 16];
static OFFSETS: [AtomicU64; 16] = [const { AtomicU64::new(0) }; 16];
static CHANGED: AtomicU64 = AtomicU64::new(0);
static PSTATE: AtomicU64 = AtomicU64::new(0);

fn serve(frame: &mut Frame) -> bool {
    let class = frame.esr >> 26;
    let count = COUNT.fetch_add(1, Ordering::SeqCst) & 15;
    SYNDROMES[count].store(frame.esr, Ordering::SeqCst);
    OFFSETS[count].store(
        frame.elr.wrapping_sub(START.load(Ordering::SeqCst)),
        Ordering::SeqCst,
    );
    PSTATE.fetch_or(frame.spsr, Ordering::SeqCst);
    let kept = |n: usize| frame.x[n] == 0x100 + n as u64 || n == 9 || n == 10;
    let changed = (4..30).filter(|n| !kept(*n)).count() as u64;
    CHANGED.fetch_add(changed, Ordering::SeqCst);
    match class {
        0x15 if frame.esr & 0xffff == 7 => {
            frame.elr = (&raw const units_back).addr() as u64;
            frame.spsr = DAIF.get() | 0b0101;
        }
        0x15 => {}
        0x20 | 0x21 => frame.elr = frame.x[30],
        _ => frame.elr += 4,
    }
    count < 15
}

/// Runs code, and tells each exception's syndrome and place.
fn run(
    suite: &mut Suite<Console>,
    name: &str,
    at: u64,
    pstate: u64,
    uart: u64,
    wanted: &[(u64, u64)],
) {
    let machine = machine::get();
    START.store(at, Ordering::SeqCst);
    COUNT.store(0, Ordering::SeqCst);
    CHANGED.store(0, Ordering::SeqCst);
    PSTATE.store(0, Ordering::SeqCst);
    // SAFETY: the code comes back by SVC, and stores to the UART alone.
    unsafe { units_enter(uart, at, pstate, machine.ram_end()) };
    println!("");
    let seen = COUNT.load(Ordering::SeqCst);
    suite.check(
        name,
        seen == wanted.len(),
        format_args!("{seen} exceptions"),
    );
    for (n, (esr, offset)) in wanted.iter().enumerate() {
        let (esr_seen, at) = (
            SYNDROMES[n].load(Ordering::SeqCst),
            OFFSETS[n].load(Ordering::SeqCst),
        );
        // What an external abort has in EA is the machine's own.
        suite.check(
            name,
            esr_seen & !EA == *esr && at == *offset,
            format_args!("{n}: {esr_seen:#x} at {at:#x}"),
        );
    }
    suite.equal(name, CHANGED.load(Ordering::SeqCst), 0);
    suite.equal(name, PSTATE.load(Ordering::SeqCst) & !0x1c00, pstate);
}

/// The checks.
pub fn checks(suite: &mut Suite<Console>) {
    const IL: u64 = 1 << 25;
    let svc = |n: u64| 0x15 << 26 | IL | n;
    let machine = machine::get();
    exception::on_sync(serve);
    let code = (&raw const units_code_el1).addr() as u64;
    let end = machine.ram_end();
    run(
        suite,
        "vectors/el1",
        code,
        0x6000_03c5,
        machine.uart,
        &[
            (IL, 0),
            (svc(123), 8),
            (IL, 8),
            (IL, 12),
            (0x21 << 26 | IL | 0x10, end - code),
            (svc(7), 24),
        ],
    );
    let code = (&raw const units_code).addr() as u64;
    let el0 = mmu::map_gib(CODE_SLOT, code, true, mmu::EL0) + (code & IN_GIB);
    let device = mmu::map_gib(DEVICE_SLOT, machine.uart, false, mmu::EL0);
    set(CNTKCTL_EL1, 3);
    run(
        suite,
        "vectors/el0",
        el0,
        0x6000_03c0,
        device + (machine.uart & IN_GIB),
        &[(IL, 0), (svc(123), 8), (IL, 8), (IL, 12), (svc(7), 44)],
    );
    exception::on_sync(nobody);
    // Loads and stores of nothing, right above RAM.
    // SAFETY: they abort.
    let load = exception::probe(|| unsafe { asm::read32(end) });
    suite.check(
        "vectors/load",
        load.is_err_and(Caught::is_external_abort),
        format_args!("{load:x?}"),
    );
    println!("= vectors/load {load:x?}");
    // SAFETY: as above.
    let store = exception::probe(|| unsafe { asm::write32(end, 0) });
    println!("= vectors/store {store:x?}");
    suite.check(
        "vectors/store",
        store.is_err_and(Caught::is_external_abort),
        format_args!("{store:x?}"),
    );
}

fn nobody(_: &mut Frame) -> bool {
    false
}

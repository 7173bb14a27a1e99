//! Breakpoints and watchpoints (DDI0487, D2.8 and D2.9) of EL1's own code, two of each,
//! which every CPU has: they match where they are set to and nowhere else, on the vCPU
//! that set them alone, whatever comes between, and not while the OS lock is locked.

use arm64::regs::{
    DBGBCR0_EL1, DBGBCR1_EL1, DBGBVR0_EL1, DBGBVR1_EL1, DBGCLAIMCLR_EL1, DBGCLAIMSET_EL1,
    DBGWCR0_EL1, DBGWCR1_EL1, DBGWVR0_EL1, DBGWVR1_EL1, MDSCR_EL1, OSDLR_EL1, OSLAR_EL1, OSLSR_EL1,
    Reg, Writable,
};
use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use tests::bare::asm::{read32, set};
use tests::bare::console::Console;
use tests::bare::exception::{self, Frame};
use tests::bare::{cpu, machine};
use tests::suite::Suite;

/// MDSCR_EL1: debug exceptions of EL1 to itself, breakpoints and watchpoints.
const KDE: u64 = 1 << 13;
const MDE: u64 = 1 << 15;

/// DBGBCR_EL1: enabled, of EL1, all four bytes.
const BREAK: u64 = 0b1111 << 5 | 0b01 << 1 | 1;
/// DBGWCR_EL1: enabled, of EL1; loads, stores; the bytes of the word.
const WATCH: u64 = 0b01 << 1 | 1;
const LOADS: u64 = 0b01 << 3;
const STORES: u64 = 0b10 << 3;

const fn bytes(first: u64, count: u64) -> u64 {
    ((1 << count) - 1) << first << 5
}

/// ESR_ELx.EC of a breakpoint and a watchpoint of the same level.
const BREAKPOINT: u64 = 0x31;
const WATCHPOINT: u64 = 0x35;

/// What was taken, and how often.
static CLASS: AtomicU64 = AtomicU64::new(0);
static AT: AtomicU64 = AtomicU64::new(0);
static COUNT: AtomicU32 = AtomicU32::new(0);

fn all_off() {
    DBGBCR0_EL1.set(0);
    DBGBCR1_EL1.set(0);
    DBGWCR0_EL1.set(0);
    set(DBGWCR1_EL1, 0);
}

/// Notes it, and goes on where it was, with nothing that matches.
fn serve(frame: &mut Frame) -> bool {
    let class = frame.esr >> 26;
    if class != BREAKPOINT && class != WATCHPOINT {
        return false;
    }
    CLASS.store(class, Ordering::Relaxed);
    AT.store(
        if class == WATCHPOINT {
            frame.far
        } else {
            frame.elr
        },
        Ordering::Relaxed,
    );
    COUNT.fetch_add(1, Ordering::Relaxed);
    all_off();
    true
}

/// Sets a comparator, value first.
fn arm<V: Writable, C: Writable>((value, control): (Reg<V>, Reg<C>), at: u64, how: u64) {
    value.set(at);
    set(control, how);
}

/// What `code` meets with debug exceptions unmasked: how many, the class, and where.
fn meets(code: impl FnOnce()) -> (u32, u64, u64) {
    COUNT.store(0, Ordering::Relaxed);
    CLASS.store(0, Ordering::Relaxed);
    AT.store(0, Ordering::Relaxed);
    // SAFETY: D alone, which `serve` is there for.
    unsafe { asm!("msr daifclr, #8", "isb") };
    code();
    // SAFETY: as it was.
    unsafe { asm!("msr daifset, #8", "isb") };
    all_off();
    let [class, at] = [&CLASS, &AT].map(|word| word.load(Ordering::Relaxed));
    (COUNT.load(Ordering::Relaxed), class, at)
}

// A few instructions, of which `debug_place` is one.
global_asm!(
    ".global debug_steps",
    "debug_steps:",
    "nop",
    "nop",
    ".global debug_place",
    "debug_place: nop",
    "nop",
    "ret",
);

unsafe extern "C" {
    static debug_place: u8;
    safe fn debug_steps();
}

fn steps() {
    debug_steps();
}

fn place() -> u64 {
    (&raw const debug_place).addr() as u64
}

/// Two words in a granule of their own.
#[repr(align(16))]
struct Words([AtomicU32; 2]);
static WORDS: Words = Words([AtomicU32::new(0), AtomicU32::new(0)]);

fn word(n: usize) -> u64 {
    WORDS.0[n].as_ptr().addr() as u64
}

fn registers(suite: &mut Suite<Console>) {
    arm((DBGBVR0_EL1, DBGBCR0_EL1), 0x1234_5678, BREAK & !1);
    arm((DBGBVR1_EL1, DBGBCR1_EL1), place(), BREAK & !1);
    arm(
        (DBGWVR0_EL1, DBGWCR0_EL1),
        word(0),
        WATCH & !1 | LOADS | bytes(0, 4),
    );
    arm(
        (DBGWVR1_EL1, DBGWCR1_EL1),
        word(1) & !7,
        WATCH & !1 | STORES | bytes(4, 4),
    );
    let seen = [
        DBGBVR0_EL1.get(),
        DBGBCR0_EL1.get(),
        DBGBVR1_EL1.get(),
        DBGBCR1_EL1.get(),
        DBGWVR0_EL1.get(),
        DBGWCR0_EL1.get(),
        DBGWVR1_EL1.get(),
        DBGWCR1_EL1.get(),
    ];
    let written = [
        0x1234_5678,
        BREAK & !1,
        place(),
        BREAK & !1,
        word(0),
        WATCH & !1 | LOADS | bytes(0, 4),
        word(1) & !7,
        WATCH & !1 | STORES | bytes(4, 4),
    ];
    suite.check(
        "debug/registers",
        seen == written,
        format_args!("{seen:x?}, not {written:x?}"),
    );
    all_off();
}

/// The checks.
pub fn checks(suite: &mut Suite<Console>, bare: bool) {
    exception::on_sync(serve);
    let double = exception::probe(|| set(OSDLR_EL1, 0));
    suite.check(
        "debug/double-lock",
        double.is_ok(),
        format_args!("{double:x?}"),
    );
    set(OSLAR_EL1, 1);
    suite.equal("debug/os-lock-locked", OSLSR_EL1.get() & 0b10, 0b10);
    set(OSLAR_EL1, 0);
    suite.equal("debug/os-lock-open", OSLSR_EL1.get() & 0b10, 0);
    registers(suite);
    set(DBGCLAIMSET_EL1, 0x22);
    suite.equal("debug/claim-set", DBGCLAIMSET_EL1.get(), 0xff);
    suite.equal("debug/claim-tags", DBGCLAIMCLR_EL1.get() & 0x22, 0x22);
    set(DBGCLAIMCLR_EL1, 0x22);
    set(MDSCR_EL1, KDE | MDE);
    suite.equal("debug/mdscr", MDSCR_EL1.get() & (KDE | MDE), KDE | MDE);
    let met = |suite: &mut Suite<Console>, name: &str, seen, expected| {
        suite.check(
            name,
            seen == expected,
            format_args!("{seen:x?}, not {expected:x?}"),
        );
    };
    let uart = machine::get().uart;
    // SAFETY: the UART's identification, which is the host's to answer.
    let exit = || unsafe { read32(uart + 0xfe0) };

    let here = (1, BREAKPOINT, place());
    arm((DBGBVR0_EL1, DBGBCR0_EL1), place(), BREAK);
    met(suite, "debug/breakpoint", meets(steps), here);
    arm((DBGBVR1_EL1, DBGBCR1_EL1), place(), BREAK);
    met(suite, "debug/second-breakpoint", meets(steps), here);
    arm((DBGBVR0_EL1, DBGBCR0_EL1), place(), BREAK);
    exit();
    met(suite, "debug/breakpoint-behind-an-exit", meets(steps), here);
    arm((DBGBVR0_EL1, DBGBCR0_EL1), place(), BREAK & !1);
    met(
        suite,
        "debug/breakpoint-that-is-off",
        meets(steps),
        (0, 0, 0),
    );
    // EL0's alone.
    arm((DBGBVR0_EL1, DBGBCR0_EL1), place(), BREAK ^ 0b11 << 1);
    met(suite, "debug/breakpoint-of-el0", meets(steps), (0, 0, 0));

    let load = || _ = WORDS.0[0].load(Ordering::Relaxed);
    let store = || WORDS.0[0].store(1, Ordering::Relaxed);
    let other = || WORDS.0[1].store(1, Ordering::Relaxed);
    let watched = (1, WATCHPOINT, word(0));
    let first = (DBGWVR0_EL1, DBGWCR0_EL1);
    let all = WATCH | bytes(0, 4);
    for (name, how, expected) in [
        ("debug/watch-loads", LOADS, [watched, (0, 0, 0), (0, 0, 0)]),
        (
            "debug/watch-stores",
            STORES,
            [(0, 0, 0), watched, (0, 0, 0)],
        ),
        (
            "debug/watch-both",
            LOADS | STORES,
            [watched, watched, (0, 0, 0)],
        ),
    ] {
        let accesses: [&dyn Fn(); 3] = [&load, &store, &other];
        let seen = accesses.map(|access| {
            arm(first, word(0), all | how);
            exit();
            meets(access)
        });
        met_all(suite, name, seen, expected);
    }
    arm(
        (DBGWVR1_EL1, DBGWCR1_EL1),
        word(0),
        WATCH | STORES | bytes(4, 4),
    );
    met(
        suite,
        "debug/watch-bytes",
        meets(other),
        (1, WATCHPOINT, word(1)),
    );

    // What is set stays, and matches nowhere, while debug exceptions are off.
    for (name, register_off) in [("debug/mde-off", true), ("debug/os-lock", false)] {
        // QEMU's own takes no notice of the lock.
        if bare && !register_off {
            continue;
        }
        arm((DBGBVR0_EL1, DBGBCR0_EL1), place(), BREAK);
        if register_off {
            set(MDSCR_EL1, KDE);
        } else {
            set(OSLAR_EL1, 1);
        }
        exit();
        let seen = meets(steps);
        set(OSLAR_EL1, 0);
        set(MDSCR_EL1, KDE | MDE);
        met(suite, name, seen, (0, 0, 0));
    }
    set(MDSCR_EL1, 0);
}

fn met_all(
    suite: &mut Suite<Console>,
    name: &str,
    seen: [(u32, u64, u64); 3],
    expected: [(u32, u64, u64); 3],
) {
    suite.check(
        name,
        seen == expected,
        format_args!("{seen:x?}, not {expected:x?}"),
    );
}

static ELSEWHERE: AtomicU64 = AtomicU64::new(0);

/// Another CPU, whose own debug exceptions are on, goes through the same code.
fn passes() {
    set(OSLAR_EL1, 0);
    set(MDSCR_EL1, KDE | MDE);
    let before = COUNT.load(Ordering::Relaxed);
    // SAFETY: D alone.
    unsafe { asm!("msr daifclr, #8", "isb") };
    steps();
    // SAFETY: as above.
    unsafe { asm!("msr daifset, #8", "isb") };
    let taken = COUNT.load(Ordering::Relaxed) - before;
    let registers = DBGBCR0_EL1.get() | DBGBVR0_EL1.get() | DBGWCR1_EL1.get();
    ELSEWHERE.store(u64::from(taken) << 63 | registers, Ordering::Release);
}

/// A breakpoint is its vCPU's alone.
pub fn other_cpus(suite: &mut Suite<Console>) {
    exception::on_sync(serve);
    set(MDSCR_EL1, KDE | MDE);
    arm((DBGBVR0_EL1, DBGBCR0_EL1), place(), BREAK);
    ELSEWHERE.store(u64::MAX, Ordering::Release);
    let started = cpu::start(1, passes) == 0 && cpu::wait_off(1);
    let elsewhere = ELSEWHERE.load(Ordering::Acquire);
    suite.check(
        "debug/each-cpu-its-own",
        started && elsewhere == 0,
        format_args!("started {started}, {elsewhere:x}"),
    );
    let seen = meets(steps);
    let here = (1, BREAKPOINT, place());
    suite.check(
        "debug/and-this-one-its",
        seen == here,
        format_args!("{seen:x?}"),
    );
    set(MDSCR_EL1, 0);
}

//! Q0 to Q31 of one CPU while another writes its own.

use core::arch::asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering};

use arm64::regs::CPACR_EL1;
use tests::bare::asm::set;
use tests::bare::console::Console;
use tests::bare::{cpu, gic};
use tests::suite::Suite;

#[repr(C, align(64))]
struct Words(UnsafeCell<[u64; 64]>);
// SAFETY: each is one CPU's.
unsafe impl Sync for Words {}
static WORDS: [Words; 2] = [const { Words(UnsafeCell::new([0; 64])) }; 2];

static WRONG: AtomicU64 = AtomicU64::new(0);
static TURN: AtomicU64 = AtomicU64::new(0);

macro_rules! all_q {
    ($op:literal, $at:expr) => {
        // SAFETY: 512 bytes that are ours; no Rust uses these registers.
        unsafe {
            asm!(
                ".arch_extension fp", ".arch_extension simd",
                concat!($op, " q0, q1, [{0}]"), concat!($op, " q2, q3, [{0}, #32]"),
                concat!($op, " q4, q5, [{0}, #64]"), concat!($op, " q6, q7, [{0}, #96]"),
                concat!($op, " q8, q9, [{0}, #128]"), concat!($op, " q10, q11, [{0}, #160]"),
                concat!($op, " q12, q13, [{0}, #192]"), concat!($op, " q14, q15, [{0}, #224]"),
                concat!($op, " q16, q17, [{0}, #256]"), concat!($op, " q18, q19, [{0}, #288]"),
                concat!($op, " q20, q21, [{0}, #320]"), concat!($op, " q22, q23, [{0}, #352]"),
                concat!($op, " q24, q25, [{0}, #384]"), concat!($op, " q26, q27, [{0}, #416]"),
                concat!($op, " q28, q29, [{0}, #448]"), concat!($op, " q30, q31, [{0}, #480]"),
                in(reg) $at,
            )
        }
    };
}

fn fill(me: usize, round: u64) {
    let words = WORDS[me].0.get().cast::<u64>();
    for n in 0..64 {
        // SAFETY: this CPU's.
        unsafe {
            words
                .add(n)
                .write_volatile((me as u64 + 1) << 32 | round << 8 | n as u64);
        };
    }
    all_q!("ldp", words);
}

fn look(me: usize, round: u64) -> u64 {
    let words = WORDS[me].0.get().cast::<u64>();
    all_q!("stp", words);
    (0..64u64)
        // SAFETY: this CPU's.
        .filter(|n| unsafe { words.add(*n as usize).read_volatile() } != (me as u64 + 1) << 32 | round << 8 | n)
        .count() as u64
}

const ROUNDS: u64 = 50;

fn turns(me: usize) {
    set(CPACR_EL1, 3 << 20);
    for round in 0..ROUNDS {
        cpu::eventually(|| TURN.load(Ordering::SeqCst) == 2 * round + me as u64);
        if round > 0 {
            WRONG.fetch_add(look(me, round - 1), Ordering::SeqCst);
        }
        fill(me, round);
        // An exit to the hypervisor, and one to its host.
        gic::d(gic::gicd::TYPER);
        TURN.fetch_add(1, Ordering::SeqCst);
    }
}

/// The check.
pub fn other_cpus(suite: &mut Suite<Console>) {
    TURN.store(0, Ordering::SeqCst);
    cpu::start(1, || turns(1));
    turns(0);
    let off = cpu::wait_off(1);
    suite.check("vectors/turns", off, "CPU 1 stays");
    suite.equal("vectors/q-stay", WRONG.load(Ordering::SeqCst), 0);
}

//! What stands between a load-exclusive of a device and its store: integer
//! instructions at random, once by themselves and once between the two. Both
//! must do the same, and the store must succeed.

use core::arch::asm;

use tests::bare::code::{Code, RET};
use tests::bare::console::Console;
use tests::bare::{asm as instr, exception, machine};
use tests::random::Random;
use tests::suite::Suite;

const ILPR: u64 = 0x20;
const ROUNDS: u32 = 100;

/// Fields that name registers.
const D: u32 = 0x1f;
const N: u32 = 0x1f << 5;
const A: u32 = 0x1f << 10;
const M: u32 = 0x1f << 16;

/// A kind of instruction.
struct Form {
    name: &'static str,
    /// Bits that are set, of those that are fixed.
    set: u32,
    fixed: u32,
    /// The fields that name registers.
    registers: u32,
}

const fn form(name: &'static str, set: u32, fixed: u32, registers: u32) -> Form {
    Form {
        name,
        set,
        fixed,
        registers,
    }
}

const FORMS: [Form; 19] = [
    form("sequence/add-immediate", 0x1100_0000, 0x1f80_0000, D | N),
    form(
        "sequence/logical-immediate",
        0x1200_0000,
        0x1f80_0000,
        D | N,
    ),
    form("sequence/move-wide", 0x1280_0000, 0x1f80_0000, D),
    form("sequence/bitfield", 0x1300_0000, 0x1f80_0000, D | N),
    form("sequence/extract", 0x1380_0000, 0x1f80_0000, D | N | M),
    form(
        "sequence/logical-shifted",
        0x0a00_0000,
        0x1f00_0000,
        D | N | M,
    ),
    form("sequence/add-shifted", 0x0b00_0000, 0x1f20_0000, D | N | M),
    form("sequence/add-extended", 0x0b20_0000, 0x1fe0_0000, D | N | M),
    form("sequence/add-carry", 0x1a00_0000, 0x1fe0_fc00, D | N | M),
    form(
        "sequence/compare-conditionally",
        0x3a40_0000,
        0x3fe0_0410,
        N | M,
    ),
    form("sequence/select", 0x1a80_0000, 0x3fe0_0800, D | N | M),
    form("sequence/one-source", 0x5ac0_0000, 0x7fff_e000, D | N),
    form("sequence/divide", 0x1ac0_0800, 0x7fe0_f800, D | N | M),
    form("sequence/shift", 0x1ac0_2000, 0x7fe0_f000, D | N | M),
    form(
        "sequence/three-sources",
        0x1b00_0000,
        0x7f00_0000,
        D | N | M | A,
    ),
    form("sequence/branch", 0x1400_0002, !0, 0),
    form("sequence/branch-conditionally", 0x5400_0040, 0xffff_fff0, 0),
    form("sequence/compare-and-branch", 0x3400_0040, 0x7eff_ffe0, D),
    form("sequence/test-and-branch", 0x3600_0040, 0x7e07_ffe0, D),
];

/// `add x0, x0, #1`: what a branch may skip.
const SKIPPED: u32 = 0x9100_0400;
/// `ldxr w20, [x21]` and `stxr w22, w23, [x21]`.
const LDXR: u32 = 0x885f_7eb4;
const STXR: u32 = 0x8816_7eb7;

static CODE: Code = Code::new();

/// X0 to X7, NZCV, and the status of the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
struct State {
    x: [u64; 8],
    nzcv: u64,
    status: u64,
}

/// Runs the words as a function on this state.
fn run(words: &[u32], state: State) -> State {
    let at = CODE.put(words);
    let mut state = state;
    // SAFETY: The words write X0 to X7, X20, X22, flags and the UART's ILPR.
    unsafe {
        asm!(
            "ldp x0, x1, [x24]", "ldp x2, x3, [x24, #16]",
            "ldp x4, x5, [x24, #32]", "ldp x6, x7, [x24, #48]",
            "ldr x22, [x24, #64]", "msr nzcv, x22", "mov x22, #0",
            "blr x25",
            "stp x0, x1, [x24]", "stp x2, x3, [x24, #16]",
            "stp x4, x5, [x24, #32]", "stp x6, x7, [x24, #48]",
            "mrs x0, nzcv", "str x0, [x24, #64]", "str x22, [x24, #72]",
            in("x24") &raw mut state, in("x25") at,
            in("x21") machine::get().uart + ILPR, in("x23") 0x5a5a_5a5au64,
            out("x0") _, out("x1") _, out("x2") _, out("x3") _, out("x4") _, out("x5") _,
            out("x6") _, out("x7") _, out("x20") _, out("x22") _, out("x30") _,
        );
    }
    state
}

/// A random word of this form that names X0 to X7 alone.
fn word(random: &mut Random, form: &Form) -> u32 {
    // Bits 4 and 3 of each register's number.
    let high = (0b11000 | 0b11000 << 5 | 0b11000 << 10 | 0b11000 << 16) & form.registers;
    random.word() as u32 & !(form.fixed | high) | form.set
}

/// What one CPU can see.
pub fn checks(suite: &mut Suite<Console>) {
    let uart = machine::get().uart;
    let mut random = Random::new(9);
    for form in &FORMS {
        let mut ran = 0;
        let mut wrong = None;
        for _ in 0..ROUNDS {
            let word = word(&mut random, form);
            let mut state = State {
                nzcv: (random.word() & 0xf) << 28,
                ..State::default()
            };
            for x in &mut state.x {
                let bits = random.word();
                // Small numbers, and those with signs, as often as any.
                *x = match random.word() % 4 {
                    0 => bits & 0x3f,
                    1 => (bits & 0xff) | !0 << 32,
                    2 => !(bits & 0xff),
                    _ => bits,
                };
            }
            let Ok(alone) = exception::probe(|| run(&[word, SKIPPED, RET], state)) else {
                continue;
            };
            ran += 1;
            // SAFETY: A register of the UART's that does nothing.
            unsafe { instr::write32(uart + ILPR, 0) };
            let between = run(&[LDXR, word, SKIPPED, STXR, RET], state);
            // SAFETY: As above.
            let stored = unsafe { instr::read32(uart + ILPR) };
            if between != alone || stored != 0x5a5a_5a5a {
                wrong = wrong.or(Some((word, state, alone, between)));
            }
        }
        suite.check(
            form.name,
            wrong.is_none() && ran > 0,
            format_args!("{ran} ran; {wrong:x?}"),
        );
    }
}

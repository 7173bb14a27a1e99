//! Accesses of a device by every kind of load and store, as QEMU's machine has
//! them: what has no syndrome is emulated from the instruction.
//!
//! The UART's identification reads as 0x11, 0x10, 0x14, 0x00, 0x0d, 0xf0, 0x05,
//! 0xb1, a word each; ILPR keeps 32 bits, IBRD behind it 16, FBRD behind that 6.

use arm64::regs::{CPACR_EL1, ID_AA64ISAR0_EL1, ID_AA64ISAR1_EL1, ID_AA64MMFR0_EL1};
use core::arch::asm;
use tests::bare::asm::set;

use tests::bare::console::Console;
use tests::bare::{asm as instr, exception, machine, mmu};
use tests::suite::Suite;

/// Offsets in the UART.
const ILPR: u64 = 0x20;
const IBRD: u64 = 0x24;
const FBRD: u64 = 0x28;
const ID: u64 = 0xfe0;

fn uart() -> u64 {
    machine::get().uart
}

fn get(offset: u64) -> u64 {
    // SAFETY: A register of the UART's whose read does nothing.
    u64::from(unsafe { instr::read32(uart() + offset) })
}

fn put(offset: u64, value: u64) {
    // SAFETY: A register of the UART's that nobody here relies on.
    unsafe { instr::write32(uart() + offset, value as u32) };
}

/// Sets ILPR, IBRD and FBRD.
fn preset(values: [u64; 3]) {
    put(ILPR, values[0]);
    put(IBRD, values[1]);
    put(FBRD, values[2]);
}

/// ILPR, IBRD and FBRD.
fn now() -> [u64; 3] {
    [get(ILPR), get(IBRD), get(FBRD)]
}

/// X0, X1 and X2 after an instruction that began with these.
fn run(x: [u64; 3], code: impl FnOnce(&mut [u64; 3])) -> [u64; 3] {
    let mut x = x;
    code(&mut x);
    x
}

/// One instruction on X0, X1 and X2.
macro_rules! on {
    ($x:expr, $($line:literal),+) => {
        run($x, |x| {
            // SAFETY: The instructions access the UART alone.
            unsafe {
                asm!(
                    ".arch_extension fp", ".arch_extension simd", ".arch_extension lse",
                    ".arch_extension rcpc",
                    $($line),+,
                    ".arch_extension norcpc", ".arch_extension nolse",
                    ".arch_extension nosimd", ".arch_extension nofp",
                    inout("x0") x[0], inout("x1") x[1], inout("x2") x[2],
                    out("x3") _, out("x4") _, out("x5") _, out("x6") _, out("x7") _, out("x30") _,
                    options(nostack)
                );
            }
        })
    };
}

/// The same in three words of memory that are as the UART's.
struct Checks<'a> {
    suite: &'a mut Suite<Console>,
}

impl Checks<'_> {
    fn same(&mut self, name: &str, seen: [u64; 3], expected: [u64; 3]) {
        self.suite.check(
            name,
            seen == expected,
            format_args!("{seen:x?}, expected {expected:x?}"),
        );
    }
}

/// What one CPU can see.
pub fn checks(suite: &mut Suite<Console>) {
    let mut checks = Checks { suite };
    let kept = now();
    set(CPACR_EL1, CPACR_EL1.get() | 3 << 20);
    index(&mut checks);
    pairs(&mut checks);
    ordered(&mut checks);
    vectors(&mut checks);
    vector_stores(&mut checks);
    exclusives(&mut checks);
    if ID_AA64ISAR0_EL1.get() >> 20 & 0xf >= 2 {
        atomics(&mut checks);
    }
    blocks(&mut checks);
    big_endian(&mut checks);
    aborts(&mut checks);
    preset(kept);
}

fn index(checks: &mut Checks<'_>) {
    let id = uart() + ID;
    let zero = [0, id, 0];
    checks.same(
        "mmio/post-index",
        on!(zero, "ldr w0, [x1], #8"),
        [0x11, id + 8, 0],
    );
    checks.same(
        "mmio/pre-index",
        on!(zero, "ldr w0, [x1, #4]!"),
        [0x10, id + 4, 0],
    );
    checks.same(
        "mmio/negative",
        on!([0, id + 4, 0], "ldr w0, [x1, #-4]!"),
        [0x11, id, 0],
    );
    checks.same(
        "mmio/byte-signed-post",
        on!([0, id + 0x1c, 0], "ldrsb w0, [x1], #1"),
        [0xffff_ffb1, id + 0x1d, 0],
    );
    checks.same(
        "mmio/byte-signed-wide-post",
        on!([0, id + 0x1c, 0], "ldrsb x0, [x1], #1"),
        [!0x4e, id + 0x1d, 0],
    );
    checks.same(
        "mmio/half-post",
        on!([!0, id + 0x14, 0], "ldrh w0, [x1], #2"),
        [0xf0, id + 0x16, 0],
    );
    checks.same(
        "mmio/double-post",
        on!(zero, "ldr x0, [x1], #16"),
        [0x10_0000_0011, id + 16, 0],
    );
    checks.same(
        "mmio/stack-pointer",
        on!(
            zero,
            "mov x3, sp",
            "mov sp, x1",
            "ldr w0, [sp], #16",
            "mov x1, sp",
            "mov sp, x3"
        ),
        [0x11, id + 16, 0],
    );
    checks.same(
        "mmio/zero-register",
        on!([7, id, 0], "ldr wzr, [x1], #4"),
        [7, id + 4, 0],
    );
    let at = uart() + ILPR;
    preset([0, 0, 0]);
    let after = on!(
        [0x1_89ab_cdef, at, 0x5a],
        "str w0, [x1], #4",
        "strb w2, [x1], #4"
    );
    checks.same("mmio/store-post", after, [0x1_89ab_cdef, at + 8, 0x5a]);
    checks.same("mmio/stored-post", now(), [0x89ab_cdef, 0x5a, 0]);
    let after = on!(
        [0x33, at - 4, 0],
        "strh w0, [x1, #4]!",
        "str wzr, [x1, #4]!"
    );
    checks.same("mmio/store-pre", after, [0x33, at + 4, 0]);
    checks.same("mmio/stored-pre", now(), [0x33, 0, 0]);
    preset([0x8000_0001, 0, 0]);
    checks.same(
        "mmio/word-signed-pre",
        on!([0, at - 4, 0], "ldrsw x0, [x1, #4]!"),
        [0xffff_ffff_8000_0001, at, 0],
    );
}

fn pairs(checks: &mut Checks<'_>) {
    let id = uart() + ID;
    let at = uart() + ILPR;
    checks.same(
        "mmio/pair",
        on!([0, id, 0], "ldp w0, w2, [x1]"),
        [0x11, id, 0x10],
    );
    checks.same(
        "mmio/pair-wide-post",
        on!([0, id, 0], "ldp x0, x2, [x1], #16"),
        [0x10_0000_0011, id + 16, 0x14],
    );
    checks.same(
        "mmio/pair-no-allocate",
        on!([0, id, 0], "ldnp w2, w0, [x1, #16]"),
        [0xf0, id, 0x0d],
    );
    preset([0x8000_0001, 0x7fff, 0]);
    checks.same(
        "mmio/pair-signed-pre",
        on!([0, at - 8, 0], "ldpsw x0, x2, [x1, #8]!"),
        [0xffff_ffff_8000_0001, at, 0x7fff],
    );
    let after = on!([0x1111_1111, at + 8, 0x2222], "stp w0, w2, [x1, #-8]!");
    checks.same("mmio/pair-store", after, [0x1111_1111, at, 0x2222]);
    checks.same("mmio/pair-stored", now(), [0x1111_1111, 0x2222, 0]);
    on!([3, at, 4], "stnp w0, w2, [x1]");
    checks.same("mmio/pair-stored-no-allocate", now(), [3, 4, 0]);
}

fn ordered(checks: &mut Checks<'_>) {
    let id = uart() + ID;
    let at = uart() + ILPR;
    checks.same(
        "mmio/acquire",
        on!([0, id, 0], "ldar w0, [x1]"),
        [0x11, id, 0],
    );
    checks.same(
        "mmio/acquire-byte",
        on!([!0, id, 0], "ldarb w0, [x1]"),
        [0x11, id, 0],
    );
    preset([0, 0, 9]);
    on!(
        [0x8765_4321, at, 0x44],
        "stlr w0, [x1]",
        "add x1, x1, #4",
        "stlrh w2, [x1]"
    );
    checks.same("mmio/release", now(), [0x8765_4321, 0x44, 9]);
    let lrcpc = ID_AA64ISAR1_EL1.get() >> 20 & 0xf;
    if lrcpc >= 1 {
        checks.same(
            "mmio/acquire-pc",
            on!([0, id, 0], "ldapr w0, [x1]"),
            [0x11, id, 0],
        );
    }
    if lrcpc >= 2 {
        // ldapursw x0, [x1, #-4], as a word: the extension has no name here.
        checks.same(
            "mmio/acquire-pc-unscaled",
            on!([0, at + 4, 0], ".inst 0x999fc020"),
            [0xffff_ffff_8765_4321, at + 4, 0],
        );
    }
    // EL0's accesses, where EL0 may.
    let alias = mmu::map_gib(500, uart(), false, mmu::EL0) + (uart() & ((1 << 30) - 1));
    checks.same(
        "mmio/unprivileged",
        on!([0, alias + ID + 4, 0], "ldtr w0, [x1, #-4]"),
        [0x11, alias + ID + 4, 0],
    );
    on!([0x77, alias + IBRD, 0], "sttrb w0, [x1]");
    checks.same("mmio/unprivileged-store", now(), [0x8765_4321, 0x77, 9]);
}

fn vectors(checks: &mut Checks<'_>) {
    let id = uart() + ID;
    let of = |x| [x, id, 0];
    macro_rules! load {
        ($name:literal, $expected:expr, $($line:literal),+) => {
            let seen = on!([0, id, 0], "movi v0.16b, #0xff", $($line),+,
                "mov x0, v0.d[0]", "mov x2, v0.d[1]");
            let expected: u128 = $expected;
            checks.same(
                concat!("mmio/vector-", $name),
                [seen[0], id, seen[2]],
                [expected as u64, id, (expected >> 64) as u64],
            );
        };
    }
    load!("b", 0x11, "ldr b0, [x1]");
    load!("h", 0xf0, "ldr h0, [x1, #20]");
    load!("s", 0x10, "ldr s0, [x1, #4]");
    load!("d", 0x10_0000_0011, "ldr d0, [x1]");
    load!("q", 0x14_0000_0010_0000_0011, "ldr q0, [x1]");
    load!("post", 0x11, "ldr s0, [x1], #4");
    load!("unscaled", 0x11, "add x1, x1, #1", "ldur b0, [x1, #-1]");
    load!("ld1", 0x14_0000_0010_0000_0011, "ld1 {{v0.4s}}, [x1]");
    load!(
        "ld1-bytes",
        0x14_0000_0010_0000_0011,
        "ld1 {{v0.16b}}, [x1]"
    );
    load!("ld1-half", 0x10_0000_0011, "ld1 {{v0.2s}}, [x1], #8");
    load!(
        "ld1-lane",
        !0 << 96 | 0x11 << 64 | u128::from(u64::MAX),
        "ld1 {{v0.s}}[2], [x1]"
    );
    load!(
        "ld1r",
        0x11 | 0x11 << 32 | 0x11 << 64 | 0x11 << 96,
        "ld1r {{v0.4s}}, [x1]"
    );
    load!("ld2", 0x14_0000_0011, "ld2 {{v0.2s, v1.2s}}, [x1]");
    load!("ld2-second", 0x10, "ld2 {{v31.2s, v0.2s}}, [x1]");
    load!("ld3", 0x11, "ld3 {{v0.2s, v1.2s, v2.2s}}, [x1]");
    load!(
        "ld4",
        0x0d_0000_0011,
        "ld4 {{v0.2s, v1.2s, v2.2s, v3.2s}}, [x1]"
    );
    let two = on!(
        [0, id, 0],
        "ldp s0, s1, [x1]",
        "mov w0, v0.s[0]",
        "mov w2, v1.s[0]"
    );
    checks.same("mmio/vector-pair-s", two, [0x11, id, 0x10]);
    let two = on!(
        [0, id, 0],
        "ldp d0, d1, [x1, #16]!",
        "mov x0, v0.d[0]",
        "mov x2, v1.d[0]"
    );
    checks.same(
        "mmio/vector-pair-d",
        two,
        [0xf0_0000_000d, id + 16, 0xb1_0000_0005],
    );
    let two = on!(
        [0, id, 0],
        "ldnp q0, q1, [x1]",
        "mov x0, v0.d[1]",
        "mov x2, v1.d[1]"
    );
    checks.same("mmio/vector-pair-q", two, [0x14, id, 0xb1_0000_0005]);
    let after = on!([8, id, 0], "ld1 {{v0.s}}[0], [x1], x0");
    checks.same("mmio/vector-by-register", after, [8, id + 8, 0]);
    checks.same(
        "mmio/vector-kept",
        on!(of(5), "mov v7.d[0], x0", "ldr s0, [x1]", "mov x0, v7.d[0]"),
        of(5),
    );
}

fn vector_stores(checks: &mut Checks<'_>) {
    let at = uart() + ILPR;
    preset([0, 0, 0]);
    on!([0x1234_5678, at, 0], "mov v3.d[0], x0", "str s3, [x1]");
    checks.same("mmio/vector-store-s", now(), [0x1234_5678, 0, 0]);
    on!(
        [0x43_0000_0021, at, 0],
        "mov v3.d[0], x0",
        "str d3, [x1], #8"
    );
    checks.same("mmio/vector-store-d", now(), [0x21, 0x43, 0]);
    on!(
        [0x1f, at, 0x2e],
        "mov v3.d[0], x0",
        "mov v4.d[0], x2",
        "stp s3, s4, [x1, #4]"
    );
    checks.same("mmio/vector-store-pair", now(), [0x21, 0x1f, 0x2e]);
    on!(
        [0x6_0000_0007, at, 0],
        "mov v3.d[0], x0",
        "st1 {{v3.2s}}, [x1]"
    );
    checks.same("mmio/vector-st1", now(), [7, 6, 0x2e]);
    on!([9 << 32, at, 0], "mov v3.d[0], x0", "st1 {{v3.s}}[1], [x1]");
    checks.same("mmio/vector-st1-lane", now(), [9, 6, 0x2e]);
}

fn exclusives(checks: &mut Checks<'_>) {
    let at = uart() + ILPR;
    preset([5, 6, 7]);
    let after = on!(
        [0, at, 0],
        "2: ldxr w0, [x1]",
        "add w3, w0, #3",
        "stxr w2, w3, [x1]",
        "cbnz w2, 2b"
    );
    checks.same("mmio/exclusive", after, [5, at, 0]);
    checks.same("mmio/exclusive-stored", now(), [8, 6, 7]);
    let after = on!(
        [0, at, 0],
        "2: ldaxp w0, w3, [x1]",
        "eor w0, w0, w3",
        "stlxp w2, w0, w3, [x1]",
        "cbnz w2, 2b"
    );
    checks.same("mmio/exclusive-pair", after, [14, at, 0]);
    checks.same("mmio/exclusive-pair-stored", now(), [14, 6, 7]);
    // A spill between the two, and a condition.
    let mut spill = [0u64; 2];
    let after = on!(
        [0, at, spill.as_mut_ptr().expose_provenance() as u64],
        "2: ldaxr w0, [x1]",
        "str x0, [x2, #8]",
        "ldr w4, [x2, #8]",
        "cmp w4, #14",
        "b.ne 3f",
        "cinc w4, w4, eq",
        "stlxr w3, w4, [x1]",
        "cbnz w3, 2b",
        "3: mov w2, w3"
    );
    checks.same("mmio/exclusive-compare", after, [14, at, 0]);
    checks.same("mmio/exclusive-compare-stored", now(), [15, 6, 7]);
    // Without a mark there is no store.
    let after = on!([1, at, 0], "clrex", "stxr w2, w0, [x1]");
    checks.same("mmio/exclusive-unmarked", after, [1, at, 1]);
    let after = on!([0, at, 0], "ldxr w0, [x1]", "clrex", "stxr w2, w0, [x1]");
    checks.same("mmio/exclusive-cleared", after, [15, at, 1]);
    checks.same("mmio/exclusive-not-stored", now(), [15, 6, 7]);
}

fn atomics(checks: &mut Checks<'_>) {
    let at = uart() + ILPR;
    macro_rules! atomic {
        ($line:literal, $operand:expr, $new:expr) => {
            preset([0x8000_00f0, 6, 7]);
            let after = on!([0, at, $operand], $line);
            checks.same(
                concat!("mmio/atomic-", $line),
                after,
                [0x8000_00f0, at, $operand],
            );
            checks.same(concat!("mmio/atomic-did-", $line), now(), [$new, 6, 7]);
        };
    }
    atomic!("ldadd w2, w0, [x1]", 0x8000_0010, 0x100);
    atomic!("ldclral w2, w0, [x1]", 0x70, 0x8000_0080);
    atomic!("ldeora w2, w0, [x1]", 0xff, 0x8000_000f);
    atomic!("ldsetl w2, w0, [x1]", 0xf, 0x8000_00ff);
    atomic!("ldsmax w2, w0, [x1]", 1, 1);
    atomic!("ldsmin w2, w0, [x1]", 1, 0x8000_00f0);
    atomic!("ldumax w2, w0, [x1]", 1, 0x8000_00f0);
    atomic!("ldumin w2, w0, [x1]", 1, 1);
    atomic!("swp w2, w0, [x1]", 0x55, 0x55);
    preset([0xfe, 6, 7]);
    let after = on!([0, at, 3], "ldaddb w2, w0, [x1]");
    checks.same("mmio/atomic-byte", after, [0xfe, at, 3]);
    let after = on!([0, at + 4, 0x10], "stadd w2, [x1]");
    checks.same("mmio/atomic-store", after, [0, at + 4, 0x10]);
    checks.suite.equal("mmio/atomic-stored", get(IBRD), 0x16);
    preset([5, 6, 7]);
    checks.same("mmio/cas", on!([5, at, 9], "cas w0, w2, [x1]"), [5, at, 9]);
    checks.same("mmio/cas-stored", now(), [9, 6, 7]);
    checks.same(
        "mmio/cas-other",
        on!([5, at, 1], "casal w0, w2, [x1]"),
        [9, at, 1],
    );
    checks.same("mmio/cas-other-not-stored", now(), [9, 6, 7]);
    let after = on!(
        [0, at, 0],
        "mov w4, #9",
        "mov w5, #6",
        "mov w6, #1",
        "mov w7, #2",
        "casp w4, w5, w6, w7, [x1]",
        "mov w0, w4",
        "mov w2, w5"
    );
    checks.same("mmio/cas-pair", after, [9, at, 6]);
    checks.same("mmio/cas-pair-stored", now(), [1, 2, 7]);
}

/// Clearing a block, and accesses that are not aligned: on a CPU that refuses
/// them for Device memory, they are made through Normal memory.
fn blocks(checks: &mut Checks<'_>) {
    let alias = mmu::map_gib(499, uart(), true, 0) + (uart() & ((1 << 30) - 1));
    preset([0x1234, 0x56, 7]);
    // What is behind the registers, and keeps nothing.
    on!([0, alias + 0x80, 0], "dc zva, x1");
    checks.same("mmio/zero-block", now(), [0x1234, 0x56, 7]);
    let id = alias + ID;
    checks.same(
        "mmio/unaligned",
        on!([0, id + 3, 0], "ldr w0, [x1]"),
        [0x1010_1011, id + 3, 0],
    );
    checks.same(
        "mmio/unaligned-pair",
        on!([0, id + 2, 0], "ldp w0, w2, [x1]"),
        [0x10_0011, id + 2, 0x14_0010],
    );
    let caught = exception::probe(|| on!([0, alias + 0xfff, 0], "ldrh w0, [x1]"));
    let right = caught.is_err_and(|c| c.is_external_abort() && c.far == alias + 0x1000);
    checks.suite.check(
        "mmio/unaligned-over-the-edge",
        right,
        format_args!("{caught:x?}"),
    );
}

/// The same as a big-endian program sees it, with the MMU off, since its tables
/// are not.
fn big_endian(checks: &mut Checks<'_>) {
    if ID_AA64MMFR0_EL1.get() >> 8 & 0xf == 0 {
        return;
    }
    preset([0, 0, 0]);
    let after = on!(
        [0, uart(), 0x1122_3344],
        "mrs x3, sctlr_el1",
        "bic x4, x3, #1",
        "orr x4, x4, #1 << 25",
        "msr sctlr_el1, x4",
        "isb",
        "ldr w0, [x1, #0xff4]",
        "ldrsh x5, [x1, #0xff4]",
        "ldp w6, w7, [x1, #0xf0]",
        "str w2, [x1, #0x20]",
        "add x4, x1, #0x24",
        "strh w2, [x4], #2",
        "msr sctlr_el1, x3",
        "isb",
        "mov x2, x5"
    );
    checks.same("mmio/big-endian-load", after, [0xf000_0000, uart(), !0xfff]);
    checks.same("mmio/big-endian-stored", now(), [0x4433_2211, 0x4433, 0]);
}

/// Behind the UART there is nothing, and behind RAM neither.
fn aborts(checks: &mut Checks<'_>) {
    let edge = uart() + 0x1000;
    let above = machine::get().ram_end();
    let mut x = [0; 3];
    let abort = |checks: &mut Checks<'_>,
                 name: &str,
                 far,
                 write: bool,
                 caught: Result<(), exception::Caught>| {
        let right = caught.is_err_and(|caught| {
            caught.is_external_abort() && caught.far == far && (caught.esr >> 6 & 1 != 0) == write
        });
        checks.suite.check(name, right, format_args!("{caught:x?}"));
    };
    let caught = exception::probe(|| x = on!([1, edge - 4, 2], "ldp w0, w2, [x1], #8"));
    abort(checks, "abort/pair-over-the-edge", edge, false, caught);
    checks.same("abort/pair-changes-nothing", x, [1, edge - 4, 2]);
    let caught = exception::probe(|| x = on!([1, above, 0], "ldr w0, [x1], #4"));
    abort(checks, "abort/post-index", above, false, caught);
    checks.same("abort/no-writeback", x, [1, above, 0]);
    let caught = exception::probe(|| x = on!([1, above - 8, 0], "stp w0, w0, [x1, #8]!"));
    abort(checks, "abort/store-pair", above, true, caught);
    checks.same("abort/store-no-writeback", x, [1, above - 8, 0]);
    let caught = exception::probe(|| x = on!([1, above, 0], "str w0, [x1]"));
    abort(checks, "abort/store", above, true, caught);
    let caught = exception::probe(|| x = on!([1, above, 0], "ldr q0, [x1]"));
    abort(checks, "abort/vector", above, false, caught);
    let caught = exception::probe(|| x = on!([1, above, 0], "ldr w0, [x1]"));
    abort(checks, "abort/load", above, false, caught);
    let caught = exception::probe(|| x = on!([1, above, 0], "blr x1"));
    let fetch = caught.is_err_and(|c| c.is_external_abort() && c.class() == 0x21 && c.far == above);
    checks
        .suite
        .check("abort/fetch", fetch, format_args!("{caught:x?}"));
}

//! What one world leaves in another, by pairs: one writes a pattern to every
//! system register there is, another on the same CPU reads them all before and
//! after. Nothing may have changed but what changes by itself.
//!
//! A register is its number, op0\[0\] to op2: encodings of op0 2 and 3.

use core::arch::global_asm;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rmi::run::EnterFlags;
use tests::bare::asm::{read8, read64, write8, write64};
use tests::bare::console::Console;
use tests::bare::psci::affinity_info;
use tests::bare::{cpu, machine, sweep};
use tests::suite::Suite;

use crate::granules::own;
use crate::tiny::Tiny;

/// In the guest's memory: which registers not to write and not to read, a bit
/// each; what differed, number and value, behind a count; the values.
const NOT_WRITTEN: u64 = 0x2000;
const NOT_READ: u64 = 0x3000;
const FOUND: u64 = 0x4000;
const VALUES: u64 = 0x1_0000;
const BYTES: u64 = VALUES + 8 * sweep::REGISTERS as u64;

/// What the guest is told to do.
const READ: u64 = 1;
const COMPARE: u64 = 2;
const WRITE: u64 = 3;

/// Of the timers' controls it is "enabled and masked".
const PATTERN: u64 = 0x5a17_c0de_6d2b_9e73;

// Asks the device at 0 what to do and at 8 for a pattern, then goes through all
// registers. x19 memory, x20 what to do, x21 register, x24 met an exception.
global_asm!(
    ".balign 4096",
    ".global sweep_code",
    "sweep_code:",
    "adr x19, sweep_code",
    "add x9, x19, #0x800",
    "msr vbar_el1, x9",
    "isb",
    "mov x28, #0x09000000",
    "adr x22, 5f",
    "1: ldr w20, [x28]",
    "ldr x25, [x28, #8]",
    "mov x21, xzr",
    "add x23, x19, #0x3, lsl #12",
    "cmp w20, #3",
    "b.ne 2f",
    "add x23, x19, #0x2, lsl #12",
    "2: lsr x5, x21, #3",
    "ldrb w6, [x23, x5]",
    "and w7, w21, #7",
    "lsr w6, w6, w7",
    "tbnz w6, #0, 8f",
    // The instruction: msr or mrs of x4.
    "mov w1, #0xd5100000",
    "orr w1, w1, w21, lsl #5",
    "orr w1, w1, #4",
    "cmp w20, #3",
    "b.eq 4f",
    "orr w1, w1, #(1 << 21)",
    "4: str w1, [x22]",
    "dsb sy",
    "ic iallu",
    "dsb sy",
    "isb",
    "mov x24, xzr",
    "mov x4, x25",
    "5: nop",
    "isb",
    "cmp w20, #3",
    "b.eq 8f",
    "cbz x24, 6f",
    "mov x4, #0xdead",
    "6: add x5, x19, #0x10, lsl #12",
    "add x5, x5, x21, lsl #3",
    "cmp w20, #1",
    "b.ne 7f",
    "str x4, [x5]",
    "b 8f",
    "7: ldr x6, [x5]",
    "cmp x6, x4",
    "b.eq 8f",
    "add x5, x19, #0x4, lsl #12",
    "ldr x6, [x5]",
    "add x7, x6, #1",
    "str x7, [x5]",
    "cmp x7, #200",
    "b.hi 8f",
    "add x5, x5, x7, lsl #4",
    "stp x21, x4, [x5]",
    "8: add x21, x21, #1",
    "tbz x21, #15, 2b",
    "b 1b",
    ".macro skip",
    "mov x24, #1",
    "mrs x27, elr_el1",
    "add x27, x27, #4",
    "msr elr_el1, x27",
    "eret",
    ".endm",
    ".org sweep_code + 0x800",
    "skip",
    ".org sweep_code + 0xa00",
    "skip",
    ".org sweep_code + 0x1000",
);

unsafe extern "C" {
    static sweep_code: u8;
}

/// The number of a register.
const fn number(op0: u32, op1: u32, crn: u32, crm: u32, op2: u32) -> u32 {
    (op0 & 1) << 14 | op1 << 11 | crn << 7 | crm << 3 | op2
}

/// What a world lives by, and a pattern ends: guests with the MMU off, and a host.
const LIVED_BY: [u32; 5] = [
    number(3, 0, 1, 0, 0),  // SCTLR_EL1
    number(3, 0, 12, 0, 0), // VBAR_EL1
    number(3, 0, 4, 2, 0),  // SPSel
    number(3, 3, 4, 2, 1),  // DAIF
    number(3, 0, 4, 3, 0),  // ALLINT
];
const LIVED_BY_HOST: [u32; 13] = [
    number(3, 0, 2, 0, 0),   // TTBR0_EL1
    number(3, 0, 2, 0, 1),   // TTBR1_EL1
    number(3, 0, 2, 0, 2),   // TCR_EL1
    number(3, 0, 2, 0, 3),   // TCR2_EL1
    number(3, 0, 1, 0, 3),   // SCTLR2_EL1
    number(3, 0, 10, 2, 0),  // MAIR_EL1
    number(3, 0, 13, 0, 4),  // TPIDR_EL1: the program's CPU
    number(3, 0, 4, 6, 0),   // ICC_PMR_EL1
    number(3, 0, 12, 11, 5), // ICC_SGI1R_EL1, and the next two
    number(3, 0, 12, 11, 6),
    number(3, 0, 12, 11, 7),
    number(2, 0, 0, 2, 2), // MDSCR_EL1
    number(3, 0, 1, 0, 2), // CPACR_EL1
];

fn set_bit(guest: &Tiny, map: u64, register: u32) {
    let byte = guest.memory(map + u64::from(register / 8));
    // SAFETY: the guest's memory is the host's.
    unsafe { write8(byte, read8(byte) | 1 << (register % 8)) };
}

/// Has the guest do one sweep; what differed.
fn sweep(guest: &Tiny, what: u64) -> Result<u64, crate::tiny::Exit> {
    // SAFETY: as above.
    unsafe { write64(guest.memory(FOUND), 0) };
    let emulate = EnterFlags::EMUL_MMIO;
    for (value, next) in [(what, 8), (PATTERN, 0)] {
        let exit = guest.go(0, emulate, value);
        if exit.access() != Some(next) {
            return Err(exit);
        }
    }
    // SAFETY: as above.
    Ok(unsafe { read64(guest.memory(FOUND)) })
}

/// The registers that differed, with what was read.
fn found(guest: &Tiny) -> impl Iterator<Item = (u32, u64)> {
    // SAFETY: as above.
    let word = move |offset| unsafe { read64(guest.memory(FOUND + offset)) };
    (1..=word(0).min(200)).map(move |n| (word(16 * n) as u32, word(16 * n + 8)))
}

fn tell(
    suite: &mut Suite<Console>,
    name: &str,
    result: Result<u64, crate::tiny::Exit>,
    guest: &Tiny,
) {
    if let Ok(1..) = result {
        for (register, value) in found(guest).take(8) {
            tests::println!("  register {register:#06x} reads {value:#x}");
        }
    }
    suite.check(name, result == Ok(0), format_args!("{result:x?}"));
}

/// The checks, on the boot CPU; then again when it has been off, and for the lives
/// of another.
pub fn checks(suite: &mut Suite<Console>) {
    pairs(suite);
    if cpu::count() == 1 {
        return;
    }
    let woken = cpu::start(1, || {
        let first = machine::get().mpidrs[0];
        let off = cpu::within(60, || affinity_info(first) == 1);
        tests::println!("the boot CPU is off: {off}, on: {}", cpu::wake(0));
    });
    let denied = cpu::off_until_woken();
    let right = woken == 0 && denied == 0 && cpu::wait_off(1);
    suite.check("worlds/off-and-on", right, denied);
    pairs(suite);
    lives(suite);
}

/// Each world writes, and another reads.
fn pairs(suite: &mut Suite<Console>) {
    let (Some(writer), Some(reader)) = (build(0, 40), build(1, 41)) else {
        suite.check("worlds/guests", false, "not built");
        return;
    };
    // What changes by itself is no other's doing.
    let mut result = sweep(&reader, READ).and_then(|_| sweep(&reader, COMPARE));
    let changing = result.unwrap_or(200);
    suite.check("worlds/steady", changing < 40, format_args!("{result:x?}"));
    for _ in 0..2 {
        found(&reader).for_each(|(register, _)| set_bit(&reader, NOT_READ, register));
        result = sweep(&reader, READ).and_then(|_| sweep(&reader, COMPARE));
    }
    tell(suite, "worlds/own", result, &reader);

    let wrote = sweep(&writer, WRITE);
    suite.check(
        "worlds/guest-writes",
        wrote == Ok(0),
        format_args!("{wrote:x?}"),
    );
    let result = sweep(&reader, COMPARE);
    tell(suite, "worlds/guest-to-guest", result, &reader);

    host(suite, &writer, &reader);
    let gone = writer.destroy() & reader.destroy();
    suite.check("worlds/gone", gone, "something did not come back");
}

/// A guest that asks for its first sweep.
fn build(n: u64, vmid: u16) -> Option<Tiny> {
    let guest = Tiny::build(n, vmid, &raw const sweep_code, BYTES, 1)?;
    for register in LIVED_BY {
        set_bit(&guest, NOT_WRITTEN, register);
    }
    (guest.go(0, EnterFlags::empty(), 0).access() == Some(0)).then_some(guest)
}

/// What a CPU reads when it comes up: the first and the second life's.
static LIFE: AtomicU64 = AtomicU64::new(0);
static RIGHT: AtomicBool = AtomicBool::new(false);

/// The value of a register in a life; the second time that it is read, where
/// `n` is 2 or 3.
fn lived(n: u64, register: u32) -> u64 {
    own().1 - (4 << 20) + 8 * (n * u64::from(sweep::REGISTERS) + u64::from(register))
}

/// A CPU's life: it reads all twice, and leaves a pattern, its own and a guest's.
fn live() {
    let life = LIFE.load(Ordering::Acquire);
    for n in [life, life + 2] {
        // SAFETY: memory of the host's that no check uses.
        sweep::read_all(|register, value| unsafe { write64(lived(n, register), value) });
    }
    let guest = build(0, 42);
    let wrote = guest.map(|guest| sweep(&guest, WRITE));
    let gone = guest.is_some_and(Tiny::destroy);
    RIGHT.store(wrote == Some(Ok(0)) && gone, Ordering::Release);
    sweep::write_all(|register| (!is_lived_by(register)).then_some(PATTERN));
}

/// A CPU that was on before begins as one that never was.
fn lives(suite: &mut Suite<Console>) {
    for n in 0..4 {
        for register in 0..sweep::REGISTERS {
            // SAFETY: as above.
            unsafe { write64(lived(n, register), 0) };
        }
    }
    for life in 0..2 {
        LIFE.store(life, Ordering::Release);
        RIGHT.store(false, Ordering::Release);
        let lived = cpu::start(1, live) == 0 && cpu::wait_off(1);
        let right = lived && RIGHT.load(Ordering::Acquire);
        suite.check("worlds/life", right, format_args!("{life}: {lived}"));
    }
    let mut differ = 0;
    for register in 0..sweep::REGISTERS {
        // SAFETY: as above.
        let [first, second, again, last] =
            [0, 1, 2, 3].map(|n| unsafe { read64(lived(n, register)) });
        if first != second && first == again && second == last {
            differ += 1;
            tests::println!("  register {register:#06x} begins as {second:#x}, was {first:#x}");
        }
    }
    suite.equal("worlds/life-to-life", differ, 0);
}

/// Whether a host needs it, or it is not the same thing in its guests.
fn is_lived_by(register: u32) -> bool {
    // The CPU interface is the host's: what its guests see of it is another.
    let interface = (register >> 7 & 0xf) == 12 && register >> 14 == 1;
    interface || LIVED_BY.contains(&register) || LIVED_BY_HOST.contains(&register)
}

/// The host's own registers, before and after a guest wrote; and a guest's,
/// before and after the host did.
fn host(suite: &mut Suite<Console>, writer: &Tiny, reader: &Tiny) {
    let values = own().1 - (4 << 20);
    let slot = |register: u32| values + 8 * u64::from(register);
    // SAFETY: memory of the host's that no check uses.
    let remember = |register, value: u64| unsafe { write64(slot(register), value) };
    // SAFETY: as above.
    let remembered = |register| unsafe { read64(slot(register)) };
    sweep::read_all(remember);
    // Those that change by themselves are marked in the other half.
    let mark = |register: u32| values + 8 * u64::from(register) + 8 * sweep::REGISTERS as u64;
    for _ in 0..2 {
        sweep::read_all(|register, value| {
            // SAFETY: as above.
            unsafe { write64(mark(register), u64::from(value != remembered(register))) };
        });
    }
    let wrote = sweep(writer, WRITE);
    suite.check(
        "worlds/guest-writes-again",
        wrote == Ok(0),
        format_args!("{wrote:x?}"),
    );
    let mut differ = 0;
    sweep::read_all(|register, value| {
        // SAFETY: as above.
        let changes = unsafe { read64(mark(register)) } != 0;
        if !changes && value != remembered(register) {
            differ += 1;
            tests::println!(
                "  register {register:#06x} reads {value:#x}, was {:#x}",
                remembered(register)
            );
        }
    });
    suite.equal("worlds/guest-to-host", differ, 0);

    sweep::write_all(|register| (!is_lived_by(register)).then_some(PATTERN));
    let result = sweep(reader, COMPARE);
    sweep::write_all(|register| (!is_lived_by(register)).then(|| remembered(register)));
    tell(suite, "worlds/host-to-guest", result, reader);
}

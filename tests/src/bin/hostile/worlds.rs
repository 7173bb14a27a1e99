//! What one world leaves in another, by pairs: one writes a pattern to every
//! system register there is, another on the same CPU reads them all before and
//! after. Nothing may have changed but what changes by itself.
//!
//! A register is its number, op0\[0\] to op2: encodings of op0 2 and 3.

use core::arch::global_asm;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hyp::cpu::worlds::{self, Fate};
use rmi::run::EnterFlags;
use tests::bare::asm::{clean, read64, write64};
use tests::bare::console::Console;
use tests::bare::psci::affinity_info;
use tests::bare::sweep::{REGISTERS, Routine};
use tests::bare::{cpu, machine};
use tests::suite::Suite;

use crate::granules::own;
use crate::tiny::Tiny;

/// In a guest's memory: what reads all registers, what writes them, the values.
const READS: u64 = 0x1_0000;
const WRITES: u64 = 0x8_0000;
const VALUES: u64 = 0xb_0000;
const BYTES: u64 = VALUES + TABLE;
/// Bytes of a value for each register.
const TABLE: u64 = 8 * REGISTERS as u64;

const _: () = assert!(READS + Routine::Read.bytes() <= WRITES);
const _: () = assert!(WRITES + Routine::Write.bytes() <= VALUES);

/// What a guest is told to do.
const READ: u64 = 1;
const WRITE: u64 = 2;

/// Of the timers' controls it is "enabled and masked".
const PATTERN: u64 = 0x5a17_c0de_6d2b_9e73;
/// The value of what cannot be read.
const NOT_THERE: u64 = 0xdead;

// Asks the device at 0 what to do, and at 8 for a pattern; does that; asks again.
global_asm!(
    ".balign 4096",
    ".global sweep_code",
    "sweep_code:",
    "adr x19, sweep_code",
    "add x9, x19, #0x800",
    "msr vbar_el1, x9",
    "isb",
    "mov x28, #0x09000000",
    "mov x3, #0xdead",
    "1: ldr x20, [x28]",
    "ldr x2, [x28, #8]",
    "cmp x20, #2",
    "b.eq 2f",
    "add x1, x19, #0xb0, lsl #12",
    "add x4, x19, #0x10, lsl #12",
    "blr x4",
    "dsb sy",
    "b 1b",
    "2: add x4, x19, #0x80, lsl #12",
    "blr x4",
    "isb",
    "b 1b",
    ".macro skip",
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

/// Whether a host needs it, or it is not the same thing in its guests.
fn is_lived_by(register: u32) -> bool {
    // The CPU interface is the host's: what its guests see of it is another.
    let interface = (register >> 7 & 0xf) == 12 && register >> 14 == 1;
    interface || LIVED_BY.contains(&register) || LIVED_BY_HOST.contains(&register)
}

/// Memory of the host's that no check uses: routines, then tables.
fn place(n: u64) -> u64 {
    own().1 - (8 << 20) + n * 0x8_0000
}

fn host_reads() -> u64 {
    place(0)
}

fn host_writes() -> u64 {
    place(1)
}

fn host_restores() -> u64 {
    place(2)
}

/// A value for each register.
#[derive(Clone, Copy, Debug)]
struct Table(u64);

impl Table {
    /// The `n`-th of the host's.
    fn number(n: u64) -> Self {
        Self(place(3 + n))
    }

    fn value(self, register: u32) -> u64 {
        // SAFETY: memory of the host's, in the table.
        unsafe { read64(self.0 + 8 * u64::from(register)) }
    }

    fn set(self, register: u32, value: u64) {
        // SAFETY: as above.
        unsafe { write64(self.0 + 8 * u64::from(register), value) };
    }

    fn copy_from(self, other: Self) -> Self {
        (0..REGISTERS).for_each(|register| self.set(register, other.value(register)));
        self
    }

    /// The registers that differ.
    fn against(self, other: Self) -> impl Iterator<Item = u32> {
        (0..REGISTERS).filter(move |&register| self.value(register) != other.value(register))
    }
}

/// Registers that change by themselves: no other's doing.
#[derive(Clone, Copy, Debug)]
struct Moving(Table);

impl Moving {
    fn new(n: u64) -> Self {
        let this = Self(Table::number(n));
        (0..REGISTERS).for_each(|register| this.0.set(register, 0));
        this
    }

    /// Notes those that differ, all of one world; how many.
    fn note(self, tables: [Table; 2]) -> usize {
        let differ = tables[0].against(tables[1]);
        differ.inspect(|&register| self.0.set(register, 1)).count()
    }

    /// Checks that no others differ.
    fn same(self, suite: &mut Suite<Console>, name: &str, [was, is]: [Table; 2]) {
        let mut count = 0;
        let others = |register: &u32| self.0.value(*register) == 0;
        for register in is.against(was).filter(others) {
            count += 1;
            if count <= 8 {
                let (was, is) = (was.value(register), is.value(register));
                tests::println!("  register {register:#06x} reads {is:#x}, was {was:#x}");
            }
        }
        suite.equal(name, count, 0);
    }
}

/// A guest that does as it is told.
struct World(Tiny);

impl World {
    fn new(n: u64, vmid: u16) -> Option<Self> {
        let guest = Tiny::build(n, vmid, &raw const sweep_code, BYTES, 1)?;
        // SAFETY: the guest's memory is the host's, and it has not run yet.
        unsafe {
            Routine::Read.write(guest.memory(READS), |_| false);
            Routine::Write.write(guest.memory(WRITES), |r| LIVED_BY.contains(&r));
        }
        let asks = guest.go(0, EnterFlags::empty(), 0).access() == Some(0);
        asks.then_some(Self(guest))
    }

    /// Has it do one thing; false if it did another.
    fn does(&self, what: u64) -> bool {
        [(what, 8), (PATTERN, 0)].iter().all(|&(value, next)| {
            let exit = self.0.go(0, EnterFlags::EMUL_MMIO, value);
            let right = exit.access() == Some(next);
            if !right {
                tests::println!("  not {next}: {exit:x?}");
            }
            right
        })
    }

    /// Reads all, into the host's table `to`.
    fn read(&self, suite: &mut Suite<Console>, to: u64) -> Table {
        let read = self.does(READ);
        suite.check("worlds/guest-reads", read, to);
        let from = Table(self.0.memory(VALUES));
        clean(from.0, from.0 + TABLE);
        Table::number(to).copy_from(from)
    }

    fn write(&self, suite: &mut Suite<Console>) {
        let wrote = self.does(WRITE);
        suite.check("worlds/guest-writes", wrote, "it did something else");
    }
}

/// The host reads all that it can, into its table `to`.
fn host_read(to: u64) -> Table {
    let table = Table::number(to);
    // SAFETY: reading changes nothing that is in use; the table has room.
    unsafe { Routine::run(host_reads(), [table.0, 0, NOT_THERE]) };
    table
}

/// The host writes all that it can and lives on.
fn host_write() {
    // SAFETY: what the program lives by is left out.
    unsafe { Routine::run(host_writes(), [0, PATTERN, 0]) };
}

/// The checks, on the boot CPU; then again when it has been off, and for the lives
/// of another.
pub fn checks(suite: &mut Suite<Console>) {
    // SAFETY: memory of the host's that nobody runs.
    unsafe {
        Routine::Read.write(host_reads(), |_| false);
        Routine::Write.write(host_writes(), is_lived_by);
    }
    pairs(suite);
    if cpu::count() == 1 {
        return;
    }
    let woken = cpu::start(1, || {
        let first = machine::get().mpidrs[0];
        let off = cpu::eventually(|| affinity_info(first) == 1);
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
    let (Some(writer), Some(reader)) = (World::new(0, 40), World::new(1, 41)) else {
        suite.check("worlds/guests", false, "not built");
        return;
    };
    let moving = Moving::new(0);
    let first = reader.read(suite, 1);
    for _ in 0..2 {
        let second = reader.read(suite, 2);
        let count = moving.note([first, second]);
        suite.check("worlds/steady", count < 40, count);
    }
    let of_host = Moving::new(3);
    let host = host_read(4);
    for _ in 0..2 {
        let count = of_host.note([host, host_read(5)]);
        suite.check("worlds/host-steady", count < 40, count);
    }
    // SAFETY: memory of the host's that nobody runs.
    unsafe {
        let left = |register| is_lived_by(register) || host.value(register) == NOT_THERE;
        Routine::Restore.write(host_restores(), left);
    }
    let read = reader.read(suite, 2);
    moving.same(suite, "worlds/own", [first, read]);
    of_host.same(suite, "worlds/host-own", [host, host_read(5)]);

    let before = writer.read(suite, 6);
    writer.write(suite);
    of_host.same(suite, "worlds/guest-to-host", [host, host_read(5)]);
    let read = reader.read(suite, 2);
    moving.same(suite, "worlds/guest-to-guest", [first, read]);
    // It has written something, which it keeps.
    let kept = writer.read(suite, 7);
    let changed = kept.against(before).count();
    suite.check("worlds/guest-has-its-own", changed > 20, changed);
    known(suite, moving, [before, kept]);

    host_write();
    let wrote = host_read(8);
    let read = reader.read(suite, 2);
    moving.same(suite, "worlds/host-to-guest", [first, read]);
    let read = writer.read(suite, 2);
    moving.same(suite, "worlds/guest-keeps", [kept, read]);
    of_host.same(suite, "worlds/host-keeps", [wrote, host_read(5)]);
    let changed = wrote.against(host).count();
    suite.check("worlds/host-has-its-own", changed > 10, changed);
    // SAFETY: the values that they had.
    unsafe { Routine::run(host_restores(), [host.0, 0, 0]) };
    let gone = writer.0.destroy() & reader.0.destroy();
    suite.check("worlds/gone", gone, "something did not come back");
}

/// What EL2 knows of a register, by its numbers.
fn row(register: u32) -> Option<&'static worlds::Row> {
    let field = |shift: u32, bits: u32| (register >> shift & ((1 << bits) - 1)) as u8;
    let op0 = 2 + field(14, 1);
    worlds::of([op0, field(11, 3), field(7, 4), field(3, 4), field(0, 3)])
}

/// Every register that a guest's own write has changed is one that EL2 knows to
/// be its own, and none of those that it traps has taken the pattern.
fn known(suite: &mut Suite<Console>, moving: Moving, [before, after]: [Table; 2]) {
    let changed = after.against(before);
    for register in changed.filter(|&register| moving.0.value(register) == 0) {
        let value = after.value(register);
        let row = row(register);
        let right = match row.map(|row| row.fate) {
            None => false,
            Some(Fate::Trapped(_)) => value != PATTERN,
            Some(_) => true,
        };
        if !right {
            let was = before.value(register);
            suite.check(
                "worlds/known",
                false,
                format_args!("register {register:#06x}: {was:#x}, then {value:#x}: {row:?}"),
            );
        }
    }
}

/// Of the two lives of a CPU, which.
static LIFE: AtomicU64 = AtomicU64::new(0);
static RIGHT: AtomicBool = AtomicBool::new(false);

/// A CPU's life: it reads all twice, and leaves a pattern, its own and a guest's.
fn live() {
    let life = LIFE.load(Ordering::Acquire);
    host_read(1 + 2 * life);
    host_read(2 + 2 * life);
    let guest = World::new(0, 42);
    let wrote = guest.as_ref().is_some_and(|guest| guest.does(WRITE));
    let gone = guest.is_some_and(|guest| guest.0.destroy());
    RIGHT.store(wrote && gone, Ordering::Release);
    host_write();
}

/// A CPU that was on before begins as one that never was.
fn lives(suite: &mut Suite<Console>) {
    for life in 0..2 {
        LIFE.store(life, Ordering::Release);
        RIGHT.store(false, Ordering::Release);
        let lived = cpu::start(1, live) == 0 && cpu::wait_off(1);
        let right = lived && RIGHT.load(Ordering::Acquire);
        suite.check("worlds/life", right, format_args!("{life}: {lived}"));
    }
    let moving = Moving::new(0);
    let [first, second] = [1, 3].map(Table::number);
    for life in [first, second] {
        moving.note([life, Table(life.0 + place(1) - place(0))]);
    }
    moving.same(suite, "worlds/life-to-life", [first, second]);
}

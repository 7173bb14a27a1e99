//! Calls that meet in the middle of each other, on two CPUs.

use core::arch::global_asm;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rmi::Command;
use rmi::run::EnterFlags;
use rmi::vendor::Vendor;
use tests::bare::asm::{clean, write64};
use tests::bare::console::Console;
use tests::bare::cpu;
use tests::suite::Suite;

use crate::calls::{self, SUCCESS, granule, status};
use crate::granules::{at, delegate, fill, read, undelegate};
use crate::realm::{map, normal, write_rec};
use crate::tiny::{RAM, Tiny};

/// The guest of these checks, and a granule beside all guests'.
const GUEST: u64 = 0;
const VICTIM: u64 = 310;
/// vCPUs of a realm at most.
const VCPUS: u64 = 64;

static STOP: AtomicBool = AtomicBool::new(false);
/// PA of the REC to destroy; 0 for none.
static TARGET: AtomicU64 = AtomicU64::new(0);
/// PA of the realm's other REC, if there is one.
static OTHER: AtomicU64 = AtomicU64::new(0);
static DESTROYED: AtomicU64 = AtomicU64::new(0);

/// The checks of two CPUs and more.
pub fn checks(suite: &mut Suite<Console>) {
    if cpu::count() == 1 {
        return;
    }
    destroyed_at_birth(suite);
    calls::still_there(suite, "races/rmi-version");
}

fn destroy() {
    while !STOP.load(Ordering::Relaxed) {
        let rec = TARGET.load(Ordering::Relaxed);
        if rec != 0 && status(Command::RecDestroy { rec }) == SUCCESS {
            DESTROYED.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// Keeps the realm's interrupt controller busy.
fn look() {
    while !STOP.load(Ordering::Relaxed) {
        let rec = OTHER.load(Ordering::Relaxed);
        status(Vendor::RecPending { rec });
    }
}

/// A REC is destroyed while its creation has not returned: its realm does not
/// know it any more, and its granule is the host's.
fn destroyed_at_birth(suite: &mut Suite<Console>) {
    let victim = at(VICTIM);
    STOP.store(false, Ordering::SeqCst);
    let mut right = delegate(victim) == SUCCESS && cpu::start(1, destroy) == 0;
    for index in 2..cpu::count() {
        right &= cpu::start(index, look) == 0;
    }
    suite.check("races/start", right, "a CPU or a granule");
    for round in 0..16 {
        // With a vCPU that lives, or as the realm's only one.
        let others = round % 2;
        let guest = Tiny::build_new(GUEST, 60, &raw const write_igroupr, granule(), others);
        let Some(guest) = guest else {
            suite.check("races/build", false, round);
            break;
        };
        OTHER.store(guest.rec(0), Ordering::SeqCst);
        TARGET.store(victim, Ordering::SeqCst);
        for index in others..VCPUS {
            write_rec(guest.params(), index, false, RAM, 0);
            let before = DESTROYED.load(Ordering::SeqCst);
            let made = status(Command::RecCreate {
                rd: guest.rd(),
                rec: victim,
                params: guest.params(),
            });
            let gone = cpu::eventually(|| DESTROYED.load(Ordering::SeqCst) != before);
            if made != SUCCESS || !gone {
                suite.check("races/create", false, format_args!("{index}: {made:#x}"));
                break;
            }
        }
        TARGET.store(0, Ordering::SeqCst);
        suite.equal("races/undelegate", undelegate(victim), SUCCESS);
        fill(victim, 0);
        if others == 1 && guest.activate() {
            let done = guest.go(0, EnterFlags::empty(), 0).access() == Some(0);
            suite.check("races/guest", done, "it did not end");
        }
        let words = (victim..victim + granule()).step_by(8);
        let changed = words.filter(|at| read(*at) != Ok(0)).count();
        suite.equal("races/the-hosts-granule", changed as u64, 0);
        suite.equal("races/delegate", delegate(victim), SUCCESS);
        suite.check("races/destroy", guest.destroy(), round);
    }
    STOP.store(true, Ordering::SeqCst);
    let off = (1..cpu::count()).all(cpu::wait_off);
    suite.check("races/end", off, "a CPU goes on");
    suite.equal("races/back", undelegate(victim), SUCCESS);
}

// IGROUPR0 of every redistributor, then a read that comes out.
global_asm!(
    ".balign 4096",
    "write_igroupr:",
    "mov x3, #0x080a0000",
    "mov x6, #64",
    "mov w7, #0x55555555",
    "1: add x4, x3, #0x10, lsl #12",
    "str w7, [x4, #0x80]",
    "add x3, x3, #0x20, lsl #12",
    "subs x6, x6, #1",
    "b.ne 1b",
    "mov x9, #0x09000000",
    "2: ldr w1, [x9]",
    "b 2b",
    ".org write_igroupr + 0x1000",
);

// One stage-1 table at 64 KiB (4K granule, level 1), which maps the first GiB of
// RAM to itself and, by its next entry, to itself again, until another CPU says
// otherwise; then accesses that at 128 KiB, again and again: how, says the word at
// 96 KiB. Bit 0: it loads, else it stores; bit 1: from EL0.
global_asm!(
    ".balign 4096",
    "access_through_tables:",
    "adr x9, access_through_tables",
    "add x10, x9, #0x800",
    "msr vbar_el1, x10",
    "mov x0, #0xff",
    "msr mair_el1, x0",
    "add x1, x9, #0x10, lsl #12",
    "msr ttbr0_el1, x1",
    "add x1, x9, #0x18, lsl #12",
    "ldr w4, [x1]",
    // T0SZ 25, inner shareable, write-back, EPD1, IPS of 48 bits.
    "ldr x0, =0x500803519",
    "msr tcr_el1, x0",
    "isb",
    "tlbi vmalle1",
    "dsb sy",
    "isb",
    "mrs x0, sctlr_el1",
    "orr x0, x0, #1",
    "orr x0, x0, #4",
    "msr sctlr_el1, x0",
    "isb",
    "mov x3, #0x80000000",
    "add x3, x3, #0x20, lsl #12",
    "tbz x4, #1, 1f",
    "adr x5, 1f",
    "msr elr_el1, x5",
    "mov x5, #0x3c0",
    "msr spsr_el1, x5",
    "eret",
    "1: tbnz x4, #0, 3f",
    "2: str x0, [x3]",
    "b 2b",
    "3: ldr x0, [x3]",
    "b 3b",
    ".ltorg",
    // Synchronous, of this level and of EL0: the same again.
    ".org access_through_tables + 0xa00",
    "eret",
    ".org access_through_tables + 0xc00",
    "eret",
    ".org access_through_tables + 0x1000",
);
unsafe extern "C" {
    static write_igroupr: u8;
    static access_through_tables: u8;
}

/// A descriptor, where it stands, and the one that takes turns with it.
static SLOT: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];

fn flip() {
    let [slot, values @ ..] = SLOT.each_ref().map(|word| word.load(Ordering::SeqCst));
    for n in 0usize.. {
        if STOP.load(Ordering::Relaxed) {
            break;
        }
        // SAFETY: memory of the guest's, which is the host's.
        unsafe { write64(slot, values[n % 2]) };
        for _ in 0..n % 64 {
            core::hint::spin_loop();
        }
    }
}

/// How a guest accesses memory: bits of the word that tells it.
const LOADS: u64 = 1 << 0;
const FROM_EL0: u64 = 1 << 1;

/// A guest's walk is good and its access strikes memory that it may only read, or
/// not even that; when EL2 looks where that is, the walk leads to where no memory
/// is (`absent`). Each way to look is one.
pub fn walk_to_nowhere(suite: &mut Suite<Console>, absent: u64) {
    if cpu::count() == 1 {
        return;
    }
    for how in [0, LOADS, FROM_EL0, LOADS | FROM_EL0] {
        look_to_nowhere(suite, absent, how);
    }
}

fn look_to_nowhere(suite: &mut Suite<Console>, absent: u64, how: u64) {
    let bytes = 0x2_0000;
    let code = &raw const access_through_tables;
    let Some(guest) = Tiny::build_new(GUEST, 61, code, bytes, 1) else {
        suite.check("walk/build", false, "a call failed");
        return;
    };
    let denied = if how & LOADS == 0 {
        rmi::rtt::DESC_WRITE
    } else {
        rmi::rtt::DESC_READ
    };
    let nowhere = RAM + 0x3_0000;
    for (name, ipa, page) in [
        ("walk/denied", RAM + bytes, normal(at(VICTIM)) & !denied),
        ("walk/absent", nowhere, normal(absent)),
    ] {
        suite.equal(name, map(guest.rd(), ipa, 3, page), SUCCESS);
    }
    // Code is for reading only, or EL1 would not execute what EL0 may write.
    let block = RAM | 1 << 10 | 3 << 8 | 1 << 6 | 1;
    let code = block | 1 << 7;
    let table = guest.memory(0x1_0000);
    let word = guest.memory(0x1_8000);
    // SAFETY: memory of the guest's, which is the host's.
    unsafe {
        write64(table + 8, code);
        write64(table + 16, block);
        write64(word, how);
    }
    clean(table, table + 4096);
    clean(word, word + 8);
    for (word, value) in SLOT.iter().zip([table + 16, block, nowhere | 3]) {
        word.store(value, Ordering::SeqCst);
    }
    STOP.store(false, Ordering::SeqCst);
    let started = guest.activate() && cpu::start(1, flip) == 0;
    suite.check("walk/start", started, "a CPU or the realm");
    let mut struck = 0;
    for _ in 0..20_000 {
        let exit = guest.enter(0, EnterFlags::empty(), 0);
        struck += u64::from(exit.access() == Some(0));
    }
    suite.check("walk/struck", struck > 0, format_args!("{struck}, {how}"));
    STOP.store(true, Ordering::SeqCst);
    suite.check("walk/end", cpu::wait_off(1), "the other CPU goes on");
    for ipa in [RAM + bytes, nowhere] {
        let gone = calls::ask(Command::RttUnmapUnprotected {
            rd: guest.rd(),
            ipa,
            level: 3,
        });
        suite.equal("walk/unmap", gone[0], SUCCESS);
    }
    suite.check("walk/destroy", guest.destroy(), "a call failed");
}

//! Who is interrupted when a guest interrupts its own vCPUs: the CPU that runs
//! the one that is meant, or the host where it waits, once until somebody looks.
//! Never another guest. Two CPUs at least.

use core::arch::global_asm;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rmi::run::EnterFlags;
use rmi::vendor::{KICK_SGI, Vendor};
use tests::bare::asm::wfi;
use tests::bare::console::Console;
use tests::bare::{cpu, gic};
use tests::suite::Suite;

use crate::calls::{SUCCESS, ask, status};
use crate::granules::at;
use crate::tiny::Tiny;

// x0 = the vCPU. The first waits for interrupts, and tells the device of each at
// 16. The second asks at 24 how many SGIs to send it, or STORM.
global_asm!(
    ".balign 4096",
    "flood_code:",
    "mov x28, #0x09000000",
    "movz x9, #0x080a, lsl #16",
    "add x10, x9, x0, lsl #17",
    "str wzr, [x10, #0x14]",
    "add x10, x10, #0x10000",
    "mov w2, #-1",
    "str w2, [x10, #0x80]",
    "str w2, [x10, #0x100]",
    "movz x11, #0x0800, lsl #16",
    "mov w2, #2",
    "str w2, [x11]",
    "mov x2, #0xff",
    "msr icc_pmr_el1, x2",
    "mov x2, #1",
    "msr icc_igrpen1_el1, x2",
    "isb",
    "cbnz x0, 3f",
    "1: wfi",
    "mrs x2, icc_iar1_el1",
    "and x3, x2, #0xffffff",
    "cmp x3, #1020",
    "b.hs 1b",
    "msr icc_eoir1_el1, x2",
    "isb",
    "str x3, [x28, #16]",
    "b 1b",
    "3: ldr x4, [x28, #24]",
    "tbnz x4, #63, 5f",
    "mov x5, #1",
    "movk x5, #0x300, lsl #16",
    "4: cbz x4, 3b",
    "msr icc_sgi1r_el1, x5",
    "isb",
    "sub x4, x4, #1",
    "b 4b",
    // A storm: every SPI is pending for the first vCPU, whose redistributor is
    // put to sleep and woken, and every SPI's trigger changes.
    "5: ldr w6, [x11, #4]",
    "and w6, w6, #0x1f",
    "mov w2, #-1",
    "6: cbz w6, 7f",
    "add x7, x11, x6, lsl #2",
    "str w2, [x7, #0x80]",
    "str w2, [x7, #0x100]",
    "str w2, [x7, #0x200]",
    "add x7, x7, x6, lsl #2",
    "str wzr, [x7, #0xc00]",
    "str w2, [x7, #0xc00]",
    "str wzr, [x7, #0xc04]",
    "str w2, [x7, #0xc04]",
    "sub w6, w6, #1",
    "b 6b",
    "7: mov w2, #2",
    "mov x6, #64",
    "8: str w2, [x9, #0x14]",
    "str wzr, [x9, #0x14]",
    "sub x6, x6, #1",
    "cbnz x6, 8b",
    "b 3b",
    ".org flood_code + 4096",
);

// Spins, and does no more.
global_asm!(
    ".balign 4096",
    "spins_code:",
    "b spins_code",
    ".org spins_code + 4096",
);

unsafe extern "C" {
    static flood_code: u8;
    static spins_code: u8;
}

const BYTES: u64 = 4096;
const NONE: EnterFlags = EnterFlags::empty();
const EMULATE: EnterFlags = EnterFlags::EMUL_MMIO;
const TRAP_WFI: EnterFlags = EnterFlags::TRAP_WFI;
/// Where the vCPUs tell and ask.
const HEARD: u64 = 16;
const ASKS: u64 = 24;

/// SGIs of a flood.
const FLOOD: u64 = 20_000;
const STORM: u64 = 1 << 63;
/// Times that a vCPU is woken.
const WAKES: u64 = 500;

/// The phases that CPU 1 has come to.
static CAME_TO: AtomicU64 = AtomicU64::new(0);
/// Interrupts that CPU 1 took.
static KICKS: AtomicU64 = AtomicU64::new(0);
static STOP: AtomicBool = AtomicBool::new(false);
/// What CPU 1 counted.
static COUNT: AtomicU64 = AtomicU64::new(0);
/// What went wrong on CPU 1, a bit each.
static WRONG: AtomicU64 = AtomicU64::new(0);

fn until(what: &AtomicU64, value: u64) -> bool {
    cpu::eventually(|| what.load(Ordering::SeqCst) >= value)
}

fn wrong_unless(right: bool, bit: u32) {
    WRONG.fetch_or(u64::from(!right) << bit, Ordering::SeqCst);
}

fn begin(job: fn()) -> bool {
    for counter in [&CAME_TO, &KICKS, &COUNT, &WRONG] {
        counter.store(0, Ordering::SeqCst);
    }
    STOP.store(false, Ordering::SeqCst);
    cpu::start(1, job) == 0
}

fn ready() {
    gic::start_cpu();
    gic::enable(KICK_SGI, 0x80);
}

/// The checks.
pub fn checks(suite: &mut Suite<Console>) {
    if cpu::count() == 1 {
        return;
    }
    gic::start_distributor();
    ready();
    let code = &raw const flood_code;
    let built =
        Tiny::build(0, 60, code, BYTES, 2).zip(Tiny::build(1, 61, &raw const spins_code, BYTES, 1));
    let Some((guest, spinner)) = built else {
        suite.check("kicks/guests", false, "not built");
        return;
    };
    let first = guest.go(1, NONE, 0);
    suite.check(
        "kicks/asks",
        first.access() == Some(ASKS),
        format_args!("{first:x?}"),
    );
    beside(suite, &guest, &spinner);
    unheard(suite, &guest);
    sleeper(suite, &guest);
    let gone = guest.destroy() & spinner.destroy();
    suite.check("kicks/gone", gone, "something did not come back");
    gic::disable(KICK_SGI);
}

/// Has the second vCPU do `what`; whether it asks again.
fn send(guest: &Tiny, what: u64) -> bool {
    guest.go(1, EMULATE, what).access() == Some(ASKS)
}

/// The exits of a vCPU that does not run, as many as EL2 remembers.
fn exits(vcpu: u64) -> u64 {
    let answer = ask(Vendor::RecHistory {
        rec: vcpu,
        pa: at(2),
    });
    if answer[0] == SUCCESS {
        answer[1]
    } else {
        u64::MAX
    }
}

/// The flooded vCPU ran here and waits; now another guest's runs.
fn runs_another() {
    ready();
    let (guest, spinner) = (Tiny::existing(0, BYTES, 2), Tiny::existing(1, BYTES, 1));
    wrong_unless(guest.go(0, TRAP_WFI, 0).is_wfi(), 0);
    CAME_TO.store(1, Ordering::SeqCst);
    wrong_unless(spinner.enter(0, NONE, 0).is_irq(), 1);
    CAME_TO.store(2, Ordering::SeqCst);
    COUNT.store(exits(spinner.rec(0)), Ordering::SeqCst);
    // Nothing of it is lost: the one that waits has its interrupt.
    let pending = ask(Vendor::RecPending { rec: guest.rec(0) });
    wrong_unless(pending[..2] == [SUCCESS, 1], 2);
    let exit = guest.go(0, TRAP_WFI, 0);
    wrong_unless(exit.access() == Some(HEARD) && exit.value == 3, 3);
    let exit = guest.go(0, TRAP_WFI | EMULATE, 0);
    wrong_unless(exit.is_wfi(), 4);
}

/// A guest floods a vCPU of its own that waits, where another guest runs: that
/// one does not notice.
fn beside(suite: &mut Suite<Console>, guest: &Tiny, spinner: &Tiny) {
    let began = begin(runs_another) && until(&CAME_TO, 1);
    suite.check("kicks/waits", began, "CPU 1 does not come to it");
    let runs = cpu::eventually(|| {
        status(Vendor::RecPending {
            rec: spinner.rec(0),
        }) != SUCCESS
    });
    suite.check("kicks/spins", runs, "the spinner does not run");
    suite.check("kicks/flood", send(guest, FLOOD), "the sender is lost");
    let at_flood_end = CAME_TO.load(Ordering::SeqCst);
    suite.equal("kicks/spinner-still-runs", at_flood_end, 1);
    let out = status(Vendor::Kick {
        rec: spinner.rec(0),
    });
    suite.equal("kicks/out", out, SUCCESS);
    suite.check("kicks/came-out", until(&CAME_TO, 2), "it still runs");
    suite.check("kicks/off", cpu::wait_off(1), "CPU 1 stays on");
    suite.equal("kicks/nothing-lost", WRONG.load(Ordering::SeqCst), 0);
    // The KICK's, and no other.
    let exits = COUNT.load(Ordering::SeqCst);
    suite.check("kicks/flood-is-no-exit-of-another", exits <= 1, exits);
}

/// The host of CPU 1 takes every interrupt, and never looks at the vCPU that
/// waits there.
fn does_not_look() {
    ready();
    let guest = Tiny::existing(0, BYTES, 2);
    wrong_unless(guest.go(0, TRAP_WFI, 0).is_wfi(), 0);
    while gic::acknowledge_and_end() != gic::NOTHING {}
    CAME_TO.store(1, Ordering::SeqCst);
    while !STOP.load(Ordering::SeqCst) {
        if gic::acknowledge_and_end() == KICK_SGI {
            COUNT.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// One interrupt is enough until the host looks, whatever the guest does: floods,
/// and storms of SPIs at a redistributor that goes to sleep and wakes.
fn unheard(suite: &mut Suite<Console>, guest: &Tiny) {
    for (name, what) in [
        ("kicks/one-for-a-flood", FLOOD),
        ("kicks/one-for-a-storm", STORM),
    ] {
        let began = begin(does_not_look) && until(&CAME_TO, 1);
        suite.check("kicks/host-waits", began, "CPU 1 does not come to it");
        suite.check("kicks/sends", send(guest, what), "the sender is lost");
        let one = until(&COUNT, 1);
        STOP.store(true, Ordering::SeqCst);
        let off = cpu::wait_off(1);
        suite.check("kicks/host-off", off, "CPU 1 stays on");
        suite.equal("kicks/host-waited", WRONG.load(Ordering::SeqCst), 0);
        let count = COUNT.load(Ordering::SeqCst);
        suite.check(name, one && count == 1, count);
        // What came is taken, for the next to find it waiting.
        let mut exit = guest.go(0, TRAP_WFI, 0);
        while exit.access() == Some(HEARD) {
            exit = guest.go(0, TRAP_WFI | EMULATE, 0);
        }
        suite.check("kicks/heard", exit.is_wfi(), format_args!("{exit:x?}"));
    }
}

/// CPU 1 sleeps while its vCPU waits, as a host does: look, then WFI, with
/// interrupts masked.
fn sleeps() {
    ready();
    let guest = Tiny::existing(0, BYTES, 2);
    let mut exit = guest.go(0, TRAP_WFI, 0);
    let (mut kicks, mut sleeps) = (0, 0);
    loop {
        while gic::acknowledge_and_end() == KICK_SGI {
            kicks += 1;
        }
        // After that: the interrupt that says so may be one of these.
        if STOP.load(Ordering::SeqCst) {
            break;
        }
        let pending = ask(Vendor::RecPending { rec: guest.rec(0) })[1] == 1;
        if pending || !exit.is_wfi() {
            let heard = exit.access() == Some(HEARD);
            let flags = if heard { TRAP_WFI | EMULATE } else { TRAP_WFI };
            exit = guest.go(0, flags, 0);
            if exit.access() == Some(HEARD) {
                COUNT.fetch_add(1, Ordering::SeqCst);
            }
            continue;
        }
        sleeps += 1;
        CAME_TO.store(sleeps, Ordering::SeqCst);
        wfi();
    }
    KICKS.store(kicks, Ordering::SeqCst);
}

/// A vCPU that waits in a host that sleeps is woken, each time, by one interrupt.
fn sleeper(suite: &mut Suite<Console>, guest: &Tiny) {
    let began = begin(sleeps) && until(&CAME_TO, 1);
    suite.check("kicks/sleeps", began, "CPU 1 does not come to it");
    let mut wakes = 0;
    while wakes < WAKES && send(guest, 1) && until(&COUNT, wakes + 1) {
        wakes += 1;
    }
    suite.equal("kicks/woken-each-time", wakes, WAKES);
    // It sleeps: the end is an interrupt of the host's.
    STOP.store(true, Ordering::SeqCst);
    gic::send_sgi(KICK_SGI, 1);
    suite.check("kicks/sleeper-off", cpu::wait_off(1), "CPU 1 stays on");
    let kicks = KICKS.load(Ordering::SeqCst);
    let right = (1..=WAKES + 2).contains(&kicks);
    suite.check("kicks/one-for-a-wake", right, kicks);
}

//! PSCI: versions, functions that are none, states of CPUs by all levels, one CPU that all
//! others turn on at once, and CPUs that go.

use core::arch::global_asm;
use core::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};

use tests::bare::asm::{Conduit, clean};
use tests::bare::console::Console;
use tests::bare::psci::{affinity_info, fid, psci};
use tests::bare::{MAX_CPUS, cpu, machine};
use tests::println;
use tests::suite::Suite;

use crate::fact;
use crate::gic::delay;

// x0 = a line of words: [0] 1 for SMC, [1] and on: what the CPU began with; then it is
// off. And a CPU that sleeps for ever.
global_asm!(
    ".global units_began",
    "units_began:",
    "mrs x1, sctlr_el1",
    "mrs x2, cpacr_el1",
    "stp x1, x2, [x0, #8]",
    "mrs x1, daif",
    "mrs x2, currentel",
    "stp x1, x2, [x0, #24]",
    "mrs x1, spsel",
    "mrs x2, cntkctl_el1",
    "stp x1, x2, [x0, #40]",
    "mrs x1, cntv_ctl_el0",
    "mrs x2, cntp_ctl_el0",
    "stp x1, x2, [x0, #56]",
    "mrs x1, mdscr_el1",
    "mrs x2, mpidr_el1",
    "stp x1, x2, [x0, #72]",
    "mrs x1, nzcv",
    "mrs x2, tpidr_el1",
    "stp x1, x2, [x0, #88]",
    "dsb sy",
    "ldr x3, [x0]",
    "mov w0, #2",
    "movk w0, #0x8400, lsl #16",
    "cbnz x3, 1f",
    "hvc #0",
    "1: smc #0",
    ".global units_halt",
    "units_halt:",
    "wfi",
    "b units_halt",
    ".global units_call",
    "units_call:",
    "hvc #0",
    "ret",
);

unsafe extern "C" {
    fn units_began();
    fn units_halt();
}

#[repr(align(64))]
struct Line([AtomicU64; 16]);
static BEGAN: Line = Line([const { AtomicU64::new(0) }; 16]);

fn bare() -> bool {
    machine::get()
        .bootargs
        .split_ascii_whitespace()
        .any(|word| word == "bare")
}

fn at(function: unsafe extern "C" fn()) -> u64 {
    function as *const () as u64
}

/// What one CPU can ask.
pub fn calls(suite: &mut Suite<Console>) {
    let machine = machine::get();
    fact!("power/version", psci(fid::VERSION, 0, 0, 0));
    for function in [
        1337,
        0x4b00_0000,
        0x8400_0005,
        0x8400_000b,
        0x8400_000c,
        0x8400_000d,
        0x8400_000e,
        0xc400_000e,
        0x8400_000f,
        0x8400_0010,
        0x8400_0012,
        0xc400_0012,
        0x8400_0013,
        0x8000_0000,
        0x8000_0001,
    ] {
        println!(
            "= power/function-{function:#x} {:#x}",
            psci(function, 0, 0, 0)
        );
    }
    let other = machine.mpidrs[1 % machine.cpus];
    let nobody = 0x00ff_00ff;
    for (name, mpidr) in [
        ("own", machine.mpidrs[0]),
        ("other", other),
        ("nobody", nobody),
    ] {
        for level in [0, 1, 2, 3, 4, u64::MAX] {
            for function in [fid::AFFINITY_INFO, fid::AFFINITY_INFO_64] {
                let state = psci(function, mpidr, level, 0);
                println!("= power/affinity/{function:#x}-{name}-{level} {state}");
            }
        }
    }
    for (name, mpidr) in [
        ("self", machine.mpidrs[0]),
        ("nobody", nobody),
        ("reserved", 1 << 31),
        ("aff3", 1 << 32),
        ("high", 1 << 40),
    ] {
        for function in [fid::CPU_ON, fid::CPU_ON_64] {
            let on = psci(function, mpidr, at(units_halt), 0);
            println!("= power/cpu-on/{function:#x}-{name} {on}");
        }
    }
    let me = affinity_info(machine.mpidrs[0]);
    suite.check("power/own-is-on", me == 0, me);
    for function in [
        fid::VERSION,
        fid::CPU_SUSPEND,
        fid::CPU_OFF,
        fid::CPU_ON,
        fid::AFFINITY_INFO,
        0x8400_0005,
        fid::MIGRATE_INFO_TYPE,
        0x8400_0007,
        fid::SYSTEM_OFF,
        fid::SYSTEM_RESET,
        0x8400_000b,
        0x8400_000e,
        0x8400_0012,
        0x8000_0000,
    ] {
        println!(
            "= power/features-{function:#x} {}",
            psci(fid::FEATURES, function, 0, 0) as i32
        );
    }
}

static GO: AtomicU32 = AtomicU32::new(0);
static READY: AtomicU32 = AtomicU32::new(0);
static ANSWERS: [AtomicI64; MAX_CPUS] = [const { AtomicI64::new(0) }; MAX_CPUS];
static DONE: AtomicU32 = AtomicU32::new(0);

fn turn_on() {
    let on = psci(fid::CPU_ON_64, machine::get().mpidrs[1], cpu::entry(), 1);
    ANSWERS[cpu::index()].store(on, Ordering::SeqCst);
    DONE.fetch_add(1, Ordering::SeqCst);
}

fn race() {
    let mut round = 1;
    loop {
        READY.fetch_add(1, Ordering::SeqCst);
        while GO.load(Ordering::SeqCst) < round {
            core::hint::spin_loop();
        }
        if GO.load(Ordering::SeqCst) == u32::MAX {
            return;
        }
        turn_on();
        round += 1;
    }
}

/// All turn on CPU 1 at once, which then stays until the round is over.
fn all_for_one(suite: &mut Suite<Console>) {
    static STAY: AtomicU32 = AtomicU32::new(0);
    let racers = cpu::count() - 2;
    for index in 2..cpu::count() {
        cpu::start(index, race);
    }
    cpu::prepare(1, || {
        cpu::eventually(|| STAY.load(Ordering::SeqCst) == 0);
    });
    let (mut one, mut already, mut pending, mut odd) = (0, 0, 0, 0);
    let rounds = 100;
    for round in 1..=rounds {
        cpu::eventually(|| READY.load(Ordering::SeqCst) as usize >= racers * round as usize);
        STAY.store(1, Ordering::SeqCst);
        DONE.store(0, Ordering::SeqCst);
        let starts = cpu::starts(1);
        GO.store(round, Ordering::SeqCst);
        turn_on();
        cpu::eventually(|| DONE.load(Ordering::SeqCst) as usize == racers + 1);
        let answers = (0..cpu::count())
            .filter(|n| *n != 1)
            .map(|n| ANSWERS[n].load(Ordering::SeqCst));
        let mut successes = 0;
        for answer in answers {
            match answer {
                0 => successes += 1,
                -4 => already += 1,
                -5 => pending += 1,
                _ => odd += 1,
            }
        }
        one += u32::from(successes == 1);
        cpu::eventually(|| cpu::starts(1) == starts + 1);
        STAY.store(0, Ordering::SeqCst);
        cpu::eventually(|| affinity_info(machine::get().mpidrs[1]) == 1);
    }
    GO.store(u32::MAX, Ordering::SeqCst);
    let off = (2..cpu::count()).all(cpu::wait_off);
    // QEMU's own machine has turned it on only when it says that it is: several
    // are told that they did.
    let one_each = bare() || one == rounds;
    suite.check(
        "power/one-turns-it-on",
        one_each && odd == 0,
        format_args!("{one} of {rounds}, {odd} odd"),
    );
    suite.check(
        "power/others-already-on",
        pending == 0,
        format_args!("{already}, and {pending} ON_PENDING"),
    );
    suite.check("power/racers-go", off, "not all");
}

static CAME_BACK: AtomicU32 = AtomicU32::new(0);

fn goes() {
    while GO.load(Ordering::SeqCst) == 0 {
        core::hint::spin_loop();
    }
    DONE.fetch_add(1, Ordering::SeqCst);
    psci(fid::CPU_OFF, 0, 0, 0);
    CAME_BACK.fetch_add(1, Ordering::SeqCst);
}

/// What takes a second CPU.
pub fn other_cpus(suite: &mut Suite<Console>) {
    let mpidrs = &machine::get().mpidrs[1..cpu::count()];
    let off = mpidrs.iter().all(|mpidr| affinity_info(*mpidr) == 1);
    suite.check("power/others-off", off, "not all");
    began(suite);
    if cpu::count() > 2 {
        all_for_one(suite);
    }
    GO.store(0, Ordering::SeqCst);
    DONE.store(0, Ordering::SeqCst);
    for index in 1..cpu::count() {
        cpu::start(index, goes);
    }
    let on = mpidrs
        .iter()
        .all(|mpidr| cpu::eventually(|| affinity_info(*mpidr) == 0));
    suite.check("power/others-on", on, "not all");
    GO.store(1, Ordering::SeqCst);
    cpu::eventually(|| DONE.load(Ordering::SeqCst) as usize == cpu::count() - 1);
    delay(50);
    suite.equal("power/gone", CAME_BACK.load(Ordering::SeqCst).into(), 0);
    let off = mpidrs.iter().all(|mpidr| affinity_info(*mpidr) == 1);
    suite.check("power/gone-are-off", off, "not all");
}

/// The registers that a CPU begins with.
fn began(suite: &mut Suite<Console>) {
    let smc = machine::get().conduit == Conduit::Smc;
    BEGAN.0[0].store(smc.into(), Ordering::SeqCst);
    let from = BEGAN.0.as_ptr().addr() as u64;
    clean(from, from + 128);
    let on = psci(
        fid::CPU_ON_64,
        machine::get().mpidrs[1],
        at(units_began),
        from,
    );
    suite.check("power/begins", on == 0, on);
    // QEMU's own says that it is off before it has begun, too.
    let told = cpu::eventually(|| {
        clean(from, from + 128);
        BEGAN.0[1].load(Ordering::SeqCst) != 0
    });
    let off = cpu::eventually(|| affinity_info(machine::get().mpidrs[1]) == 1);
    suite.check("power/begins-and-goes", told && off, "it is on");
    clean(from, from + 128);
    // MMU and caches off; SP aligned, and CP15BEN, nTWI and nTWE set.
    suite.equal(
        "power/begins-with-sctlr",
        BEGAN.0[1].load(Ordering::SeqCst) & 0x5_103d,
        0x5_0038,
    );
    for (name, word) in [
        "",
        "sctlr",
        "cpacr",
        "daif",
        "currentel",
        "spsel",
        "cntkctl",
        "cntv-ctl",
        "cntp-ctl",
        "mdscr",
        "mpidr",
        "nzcv",
        "tpidr",
    ]
    .iter()
    .zip(&BEGAN.0)
    .skip(1)
    {
        println!(
            "= power/begins-with/{name} {:#x}",
            word.load(Ordering::SeqCst)
        );
    }
}

/// Has all other CPUs sleep, with the MMU off and interrupts masked.
pub fn halt_all() {
    for mpidr in &machine::get().mpidrs[1..cpu::count()] {
        let on = psci(fid::CPU_ON_64, *mpidr, at(units_halt), 0);
        if on != 0 {
            println!("FAIL power/halt: {on}");
        }
    }
}

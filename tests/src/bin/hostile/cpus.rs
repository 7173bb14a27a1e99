//! The host's own CPUs: its power calls, its registers, and CPUs that it loses by
//! its own fault.

use core::arch::global_asm;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use rmi::run::EnterFlags;
use rmi::vendor::RangeKind;
use tests::bare::console::Console;
use tests::bare::psci::{affinity_info, fid, psci};
use tests::bare::{MAX_CPUS, asm, cpu, machine, sweep};
use tests::suite::Suite;

use crate::calls::{self, memory_ranges};
use crate::granules::{at, delegate, kept_out, undelegate};
use crate::tiny::Tiny;

const INVALID_PARAMETERS: i64 = -2;
const ALREADY_ON: i64 = -4;

/// The checks. The last of them loses every CPU but this one.
pub fn checks(suite: &mut Suite<Console>) {
    for (name, met) in [
        ("host/registers", sweep::registers()),
        ("host/maintenance", sweep::maintenance()),
    ] {
        let right = met.undefined > 1000 && met.done > 20;
        suite.check(name, right, format_args!("{met:x?}"));
    }
    calls::still_there(suite, "host/rmi-version");
    let entry = cpu::entry();
    let on = |mpidr: u64, entry: u64| psci(fid::CPU_ON_64, mpidr, entry, 0);
    for mpidr in [0x00ff_00ff, 1 << 40, u64::MAX] {
        let answer = on(mpidr, entry);
        suite.check("host/cpu-on-nobody", answer == INVALID_PARAMETERS, answer);
    }
    let answer = on(asm::mpidr(), entry);
    suite.check("host/cpu-on-self", answer == ALREADY_ON, answer);
    let answer = psci(0xc400_001f, 0, 0, 0);
    suite.check("host/psci-unknown", answer == -1, answer);
    if cpu::count() == 1 {
        return;
    }
    let mut rounds = 0;
    while rounds < 50 && cpu::start(1, || {}) == 0 && cpu::wait_off(1) {
        rounds += 1;
    }
    suite.check("host/off-and-on-50-times", rounds == 50, rounds);
    lost(suite);
}

/// CPUs that are started where the host may not be: that is the host's loss, and
/// EL2 goes on.
fn lost(suite: &mut Suite<Console>) {
    let el2 = memory_ranges().find(|range| range.2 == RangeKind::Hypervisor as u64);
    let granule = at(3);
    delegate(granule);
    let places = [el2.map_or(0, |range| range.0), granule, 1 << 60 | 2];
    for (index, entry) in (1..cpu::count()).zip(places) {
        let mpidr = machine::get().mpidrs[index];
        let answer = psci(fid::CPU_ON_64, mpidr, entry, 0);
        // Refused, or lost: on for ever, and nowhere.
        let right = answer == 0 || affinity_info(mpidr) == 1;
        suite.check("host/lost-cpu", right, answer);
    }
    let version = rmi::Command::Version {
        requested: rmi::VERSION_1_0,
    };
    let lives = (0..10_000).all(|_| calls::status(version) == calls::SUCCESS);
    suite.check("host/lives-on", lives, "RMI_VERSION fails");
    suite.check(
        "host/lost-kept-out",
        kept_out(granule),
        "the granule was reached",
    );
    suite.equal("host/lost-undelegate", undelegate(granule), calls::SUCCESS);
}

/// How often each CPU goes off and on.
const ROUNDS: u64 = 100;

// A sum in X2 and one in V0, of which the device hears the difference.
global_asm!(
    ".arch_extension fp",
    ".arch_extension simd",
    ".balign 4096",
    "adds_code:",
    "mov x0, #0x09000000",
    "mov x1, #3 << 20",
    "msr cpacr_el1, x1",
    "isb",
    "mov x2, xzr",
    "fmov d0, xzr",
    "mov x1, #1",
    "fmov d1, x1",
    "1: mov x3, #500",
    "2: add x2, x2, #1",
    "add d0, d0, d1",
    "subs x3, x3, #1",
    "b.ne 2b",
    "fmov x4, d0",
    "sub x4, x4, x2",
    "str x4, [x0]",
    "b 1b",
    ".org adds_code + 4096",
);

unsafe extern "C" {
    static adds_code: u8;
}

/// The CPU that goes off and on, and the one that turns it on.
static GOES: AtomicUsize = AtomicUsize::new(0);
static WAKES: AtomicUsize = AtomicUsize::new(0);
/// How often it came back.
static CAME_BACK: AtomicU64 = AtomicU64::new(0);
static READY: AtomicUsize = AtomicUsize::new(0);
static STOP: AtomicBool = AtomicBool::new(false);
static WRONG: AtomicU64 = AtomicU64::new(0);
/// Exits of each CPU's guest.
static EXITS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

fn exits() -> impl Iterator<Item = u64> {
    let counts = EXITS[..cpu::count()].iter();
    counts.map(|count| count.load(Ordering::Relaxed))
}

/// A guest of this CPU's own.
struct Own(Option<Tiny>);

impl Own {
    fn new() -> Self {
        let index = cpu::index() as u64;
        Self(Tiny::build(
            index,
            70 + index as u16,
            &raw const adds_code,
            4096,
            1,
        ))
    }

    /// Runs it to its next exit: what it added is right.
    fn run(&self) {
        let exit = self.0.map(|guest| guest.go(0, EnterFlags::EMUL_MMIO, 0));
        let right = exit.is_some_and(|exit| exit.access() == Some(0) && exit.value == 0);
        WRONG.fetch_add(u64::from(!right), Ordering::Relaxed);
        EXITS[cpu::index()].fetch_add(1, Ordering::Relaxed);
    }

    fn end(self) {
        let gone = self.0.is_some_and(Tiny::destroy);
        WRONG.fetch_add(u64::from(!gone), Ordering::Relaxed);
    }
}

/// This CPU's part: it goes off and on, or runs its guest beside.
fn part() {
    let guest = Own(Own::new().0.filter(|first| {
        let begun = first.go(0, EnterFlags::empty(), 0);
        begun.access() == Some(0) && begun.value == 0
    }));
    READY.fetch_add(1, Ordering::AcqRel);
    let me = cpu::index();
    if me == GOES.load(Ordering::Acquire) {
        cpu::eventually(|| READY.load(Ordering::Acquire) == cpu::count());
        for _ in 0..ROUNDS {
            guest.run();
            if cpu::off_until_woken() != 0 {
                break;
            }
            CAME_BACK.fetch_add(1, Ordering::AcqRel);
        }
        guest.run();
        cpu::eventually(|| exits().all(|exits| exits > 10));
        STOP.store(true, Ordering::Release);
    } else {
        let other = machine::get().mpidrs[GOES.load(Ordering::Acquire)];
        while !STOP.load(Ordering::Acquire) {
            guest.run();
            // The last time it stays off, and has said so before.
            let off = me == WAKES.load(Ordering::Acquire) && affinity_info(other) == 1;
            if off && !STOP.load(Ordering::Acquire) {
                let woken = cpu::wake(GOES.load(Ordering::Acquire)) == 0;
                WRONG.fetch_add(u64::from(!woken), Ordering::Relaxed);
            }
        }
    }
    guest.end();
}

/// Every CPU goes off and on, the one that the machine booted on too, while the
/// others run guests; and so does its own guest between.
pub fn off_and_on(suite: &mut Suite<Console>) {
    for goes in 0..cpu::count() {
        GOES.store(goes, Ordering::Release);
        WAKES.store(usize::from(goes == 0), Ordering::Release);
        for counter in EXITS.iter().chain([&CAME_BACK, &WRONG]) {
            counter.store(0, Ordering::Relaxed);
        }
        READY.store(0, Ordering::Release);
        STOP.store(false, Ordering::Release);
        let together = cpu::together(part, part);
        suite.check("host/off-and-on-together", together, goes);
        let came_back = CAME_BACK.load(Ordering::Acquire);
        suite.equal("host/off-and-on-100-times", came_back, ROUNDS);
        suite.equal("host/off-and-on-guests", WRONG.load(Ordering::Relaxed), 0);
        // Each guest ran in the meantime.
        let fewest = exits().min().unwrap_or(0);
        suite.check("host/off-and-on-guests-ran", fewest > 10, fewest);
    }
    calls::still_there(suite, "host/off-and-on-rmi-version");
}

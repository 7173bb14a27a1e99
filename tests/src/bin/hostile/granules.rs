//! Memory: what is delegated, what is EL2's, what is no memory at all.

use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rmi::Command;
use rmi::vendor::RangeKind;
use tests::bare::console::Console;
use tests::bare::exception::{self, Caught};
use tests::bare::{asm as instr, cpu, machine, mmu};
use tests::random::Random;
use tests::suite::Suite;

use crate::calls::{self, INPUT, SUCCESS, granule, memory_ranges, status};
use crate::devices;

/// Memory of this host's that nothing else uses: the upper quarter of RAM, as far
/// as it is whole granules.
pub fn own() -> (u64, u64) {
    let machine = machine::get();
    let ram = machine.ram.iter().find(|range| !range.is_empty());
    let (start, end) = ram.map_or((0, 0), |range| (range.start, range.end));
    let from = start + (end - start) / 4 * 3;
    (from.next_multiple_of(2 << 20), end & !(granule() - 1))
}

/// The `n`-th granule of this host's own.
pub fn at(n: u64) -> u64 {
    own().0 + n * granule()
}

/// Reads a word; `Err` when it is an exception.
pub fn read(pa: u64) -> Result<u64, Caught> {
    // SAFETY: Memory of the host's, or the exception that is expected.
    exception::probe(|| unsafe { instr::read64(pa) })
}

/// Writes a word; `Err` when it is an exception.
pub fn write(pa: u64, value: u64) -> Result<(), Caught> {
    // SAFETY: As above; nothing of the program's is there.
    exception::probe(|| unsafe { instr::write64(pa, value) })
}

/// Whether a touch is answered with an external abort at that address.
pub fn kept_out(pa: u64) -> bool {
    let stopped = |result: Result<(), Caught>| {
        result.is_err_and(|caught| caught.is_external_abort() && caught.far == pa)
    };
    stopped(read(pa).map(|_| ())) && stopped(write(pa, 0xbad))
}

/// Fills a granule.
pub fn fill(pa: u64, value: u64) {
    for at in (pa..pa + granule()).step_by(8) {
        // SAFETY: Memory of the host's.
        unsafe { instr::write64(at, value) };
    }
}

/// Whether a granule is all zero.
pub fn is_zero(pa: u64) -> bool {
    // SAFETY: Memory of the host's.
    (pa..pa + granule())
        .step_by(8)
        .all(|at| unsafe { instr::read64(at) } == 0)
}

/// Gives a granule to EL2.
pub fn delegate(pa: u64) -> u64 {
    status(Command::GranuleDelegate { pa })
}

/// Takes it back.
pub fn undelegate(pa: u64) -> u64 {
    status(Command::GranuleUndelegate { pa })
}

/// Takes back whatever of RAM nobody uses, granule by granule; how many there were.
pub fn take_back() -> u64 {
    let ranges = machine::get().ram.iter();
    let all = ranges.flat_map(|ram| (ram.start..ram.end).step_by(granule() as usize));
    all.filter(|pa| undelegate(*pa) == SUCCESS).count() as u64
}

/// The checks.
pub fn checks(suite: &mut Suite<Console>, seed: u64) {
    splits(suite);
    ownership(suite);
    nothing(suite);
    el2_memory(suite);
    in_other_ways(suite);
    beside_a_split(suite);
    random_steps(suite, seed);
    all(suite);
    calls::still_there(suite, "granules/rmi-version");
}

fn ownership(suite: &mut Suite<Console>) {
    let pa = at(1);
    for place in [pa - granule(), pa, pa + granule()] {
        fill(place, 0x5ec2e7);
    }
    suite.equal("delegate/own", delegate(pa), SUCCESS);
    suite.equal("delegate/twice", delegate(pa), INPUT);
    suite.check(
        "delegate/kept-out",
        kept_out(pa),
        "the host still reaches it",
    );
    let last = pa + granule() - 8;
    suite.check(
        "delegate/kept-out-last",
        kept_out(last),
        "the host still reaches it",
    );
    let neighbours = (read(pa - 8), read(pa + granule()));
    suite.check(
        "delegate/neighbours",
        neighbours == (Ok(0x5ec2e7), Ok(0x5ec2e7)),
        format_args!("{neighbours:x?}"),
    );
    suite.equal("undelegate/own", undelegate(pa), SUCCESS);
    suite.check("undelegate/zero", is_zero(pa), "there is something in it");
    suite.equal("undelegate/twice", undelegate(pa), INPUT);
    fill(pa, 1);
    suite.check(
        "undelegate/usable",
        read(last) == Ok(1),
        format_args!("{:x?}", read(last)),
    );
    for round in 0..200u64 {
        let right = delegate(pa) == SUCCESS && undelegate(pa) == SUCCESS && is_zero(pa);
        if !right {
            suite.check("delegate/200-times", false, round);
            return;
        }
    }
    suite.check("delegate/200-times", true, "");
}

/// Whether the clock, which the program uses for nothing else, answers.
fn clock_answers() -> bool {
    devices::find("arm,pl031").is_none_or(|clock| {
        // SAFETY: A register of the host's.
        exception::probe(|| unsafe { instr::read32(clock.base + 0xfe0) }) == Ok(0x31)
    })
}

/// Blocks that are split, and given back at once, use up nothing: first of all,
/// before any device but the console was touched. A machine with 1 GiB has blocks
/// enough.
fn splits(suite: &mut Suite<Console>) {
    let (start, end) = own();
    let mut split = 0;
    for pa in (start..end).step_by(2 << 20).cycle().take(128) {
        split += u64::from(delegate(pa) == SUCCESS && undelegate(pa) == SUCCESS);
    }
    suite.equal("splits/given-back", split, 128);
    suite.check("splits/a-device-then", clock_answers(), "no clock");
}

/// Granules that go and come at random, at most.
const MOST: u64 = 2048;

/// Granules go and come at random, and a device is touched now and then. What
/// [`all`] does afterwards needs every table there is.
fn random_steps(suite: &mut Suite<Console>, seed: u64) {
    let steps = machine::get().argument("steps");
    let steps = steps
        .and_then(|steps| steps.parse().ok())
        .unwrap_or(2000u64);
    let mut random = Random::new(seed);
    let (start, end) = own();
    let count = ((end - start) / granule()).min(MOST);
    let mut gone = [false; MOST as usize];
    let mut wrong = 0;
    // All over the memory, not its first part alone.
    let apart = (end - start) / granule() / count * granule();
    let mut step = |n: u64, gone: &mut bool| {
        let pa = start + n * apart;
        let done = if *gone {
            undelegate(pa) == SUCCESS && read(pa) == Ok(0)
        } else {
            delegate(pa) == SUCCESS
        };
        *gone ^= done;
        wrong += u64::from(!done);
    };
    for _ in 0..steps {
        let n = random.below(count);
        step(n, &mut gone[n as usize]);
        if random.below(16) == 0 && !clock_answers() {
            suite.check("random/clock", false, n);
            return;
        }
    }
    for (n, gone) in (0..).zip(&mut gone) {
        if *gone {
            step(n, gone);
        }
    }
    suite.equal("random/refused", wrong, 0);
}

static STOP: AtomicBool = AtomicBool::new(false);
static READS: AtomicU64 = AtomicU64::new(0);
static STOPPED: AtomicU64 = AtomicU64::new(0);

/// Another CPU reads memory of the host's all the while that a block around it is
/// split and made whole again: it never learns of that.
fn beside_a_split(suite: &mut Suite<Console>) {
    if cpu::count() == 1 {
        return;
    }
    let reader = || {
        while !STOP.load(Ordering::SeqCst) {
            STOPPED.fetch_add(u64::from(read(at(1)).is_err()), Ordering::SeqCst);
            READS.fetch_add(1, Ordering::SeqCst);
        }
    };
    let started = cpu::start(1, reader);
    suite.check("beside/started", started == 0, started);
    let reads = cpu::eventually(|| READS.load(Ordering::SeqCst) > 0);
    let mut done = true;
    for _ in 0..1000 {
        done &= delegate(at(3)) == SUCCESS && undelegate(at(3)) == SUCCESS;
    }
    STOP.store(true, Ordering::SeqCst);
    suite.check("beside/off", cpu::wait_off(1), "CPU 1 stays on");
    suite.check("beside/splits", done && reads, "nothing happened");
    suite.equal("beside/read", STOPPED.load(Ordering::SeqCst), 0);
}

/// What is no granule of the host's memory.
fn nothing(suite: &mut Suite<Console>) {
    let machine = machine::get();
    let pa = at(1);
    for bad in [
        0,
        1,
        pa + 1,
        pa + 8,
        pa + granule() / 2,
        machine.uart,
        machine.gicd,
        machine.gicr,
        own().1,
        own().1 + (1 << 40),
        1 << 48,
        1 << 52,
        pa | 1 << 52,
        pa | 1 << 63,
        u64::MAX,
        !(granule() - 1),
    ] {
        suite.equal("delegate/no-memory", delegate(bad), INPUT);
        suite.equal("undelegate/no-memory", undelegate(bad), INPUT);
    }
}

fn el2_memory(suite: &mut Suite<Console>) {
    let mut ranges = 0;
    for (base, size, kind) in memory_ranges() {
        if kind != RangeKind::Hypervisor as u64 {
            continue;
        }
        ranges += 1;
        let (mut out, mut refused, mut granules) = (0, 0, 0);
        for pa in (base..base + size).step_by(granule() as usize) {
            granules += 1;
            out += u64::from(kept_out(pa));
            refused += u64::from(delegate(pa) == INPUT && undelegate(pa) == INPUT);
        }
        suite.equal("el2/kept-out", out, granules);
        suite.equal("el2/not-delegated", refused, granules);
    }
    suite.check("el2/has-memory", ranges > 0, "MEMORY_RANGE names none");
}

/// EL2's memory and a delegated granule, not by plain loads and stores.
fn in_other_ways(suite: &mut Suite<Console>) {
    let pa = at(2);
    suite.equal("ways/delegate", delegate(pa), SUCCESS);
    let hypervisor = memory_ranges().find(|range| range.2 == RangeKind::Hypervisor as u64);
    let el2 = hypervisor.map_or(pa, |range| range.0);
    for victim in [pa, el2] {
        let mut stopped = |name: &str, result: Result<(), Caught>| {
            let right = result.is_err_and(|caught| matches!(caught.class(), 0x21 | 0x25));
            suite.check(name, right, format_args!("{victim:#x}: {result:x?}"));
        };
        // SAFETY: Each is an exception that is skipped; if it is not, EL2 is
        // broken, which is what is to be found out.
        unsafe {
            stopped(
                "ways/pair",
                exception::probe(
                    || asm!("ldp {}, {}, [{}]", out(reg) _, out(reg) _, in(reg) victim),
                ),
            );
            stopped(
                "ways/byte",
                exception::probe(|| asm!("strb wzr, [{}]", in(reg) victim)),
            );
            stopped(
                "ways/exclusive",
                exception::probe(|| asm!("ldxr {}, [{}]", out(reg) _, in(reg) victim)),
            );
            stopped(
                "ways/unaligned",
                exception::probe(|| asm!("ldr {}, [{}]", out(reg) _, in(reg) victim + 1)),
            );
            stopped(
                "ways/across",
                exception::probe(
                    || asm!("ldr {}, [{}]", out(reg) _, in(reg) victim + granule() - 4),
                ),
            );
            stopped(
                "ways/zero-line",
                exception::probe(|| asm!("dc zva, {}", in(reg) victim)),
            );
            stopped(
                "ways/fetch",
                exception::probe(|| asm!("blr {}", in(reg) victim, out("x30") _, clobber_abi("C"))),
            );
            let walk = exception::probe(|| {
                let va = mmu::map_table(509, victim);
                instr::read64(va);
            });
            stopped("ways/table-walk", walk);
            mmu::map_gib(509, 0, false, 0);
        }
    }
    suite.equal("ways/undelegate", undelegate(pa), SUCCESS);
    suite.check("ways/zero", is_zero(pa), "something was written");
}

/// Everything there is: first one granule of each large block, so that all are
/// split, then all.
fn all(suite: &mut Suite<Console>) {
    let (start, end) = own();
    let block = 2 << 20;
    // At most a quarter of the granules, for the sake of time.
    let end = end.min(start + (64 << 20));
    let mut taken = 0;
    for pa in (start..end).step_by(block) {
        taken += u64::from(delegate(pa) == SUCCESS);
    }
    suite.check("all/one-of-each-block", taken > 0, taken);
    let mut more = 0;
    for pa in (start..end).step_by(granule() as usize) {
        more += u64::from(delegate(pa) == SUCCESS);
    }
    let granules = (end - start) / granule();
    suite.equal("all/delegated", taken + more, granules);
    let mut back = 0;
    for pa in (start..end).step_by(granule() as usize) {
        back += u64::from(undelegate(pa) == SUCCESS && read(pa) == Ok(0));
    }
    suite.equal("all/undelegated", back, taken + more);
}

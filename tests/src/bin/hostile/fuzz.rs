//! Random calls from all CPUs at once, on memory that they share, while all but
//! one of them go off and are turned on again; then all of that memory must come
//! back.

use arm64::regs::{CNTP_CTL_EL0, CNTP_CVAL_EL0};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tests::bare::asm::set;

use rmi::vendor::{self, Vendor};
use rmi::{Command, fid};
use tests::bare::console::Console;
use tests::bare::psci::{affinity_info, fid as power, psci};
use tests::bare::{MAX_CPUS, cpu, gic, machine};
use tests::random::Random;
use tests::suite::Suite;

use crate::calls::{self, SUCCESS, ask, granule, memory_ranges, status};
use crate::granules::{at, fill, own, read, undelegate, write};
use crate::realm::{IPA_BITS, normal, span, start_level, write_params, write_rec};

/// Granules that all calls fight over; others are parameter and run pages.
const SHARED: u64 = 32;
const FIRST: u64 = 256;
/// Parameters of realms, of vCPUs, and run pages, before the shared ones.
const PAGES: u64 = 8;

/// Any function of the RMI's or our own, of any arguments; PSCI's: [`power_call`].
/// But no line of the log, which is for people.
fn hostile(random: &mut Random) -> [u64; 6] {
    let all = || {
        let tables = [Command::TABLE, Vendor::TABLE].into_iter().flatten();
        tables.filter(|info| info.function != vendor::LOG)
    };
    let n = random.below(all().count() as u64) as usize;
    let function = all().nth(n).map_or(0, |info| info.function);
    let [a, b, c, d, e] = [0; 5].map(|_: u64| any(random));
    [function, a, b, c, d, e]
}

static SEED: AtomicU64 = AtomicU64::new(0);
/// Every CPU was asked to start.
static ALL_STARTED: AtomicBool = AtomicBool::new(false);
/// Calls that each CPU has still to make.
static LEFT: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];
static STARTED: AtomicU64 = AtomicU64::new(0);
static SUCCEEDED: AtomicU64 = AtomicU64::new(0);
static STRANGE: AtomicU64 = AtomicU64::new(0);
static ENTERED: AtomicU64 = AtomicU64::new(0);

fn shared(random: &mut Random) -> u64 {
    at(FIRST + random.below(SHARED))
}

fn page(n: u64) -> u64 {
    at(FIRST - PAGES + n)
}

/// IPAs that collide often.
fn ipa(random: &mut Random) -> u64 {
    let base = [0, 0x4000_0000, 0x8000_0000][random.below(3) as usize];
    base + random.below(4) * granule() * if random.below(2) == 0 { 1 } else { 512 }
}

/// Any value but an address in this program: what EL2 does with that at this
/// host's own wish would be the end of the host.
fn any(random: &mut Random) -> u64 {
    let value = value(random);
    let image = &machine::get().image;
    if (image.start & !0xffff..image.end).contains(&value) {
        0
    } else {
        value
    }
}

fn value(random: &mut Random) -> u64 {
    match random.below(16) {
        0..6 => shared(random),
        6 => page(random.below(PAGES)),
        7 => random.below(8),
        8 => ipa(random),
        9 => random.word(),
        10 => u64::MAX - random.below(4),
        11 => machine::get().uart,
        12 => memory_ranges()
            .nth(random.below(2) as usize)
            .map_or(0, |range| range.0),
        13 => normal(shared(random)),
        14 => 1 << random.below(64),
        _ => shared(random) + random.below(granule()),
    }
}

/// A granule of a part of those that are shared, most of the time: so that some
/// are realms and some are vCPUs for a while.
fn role(random: &mut Random, from: u64, count: u64) -> u64 {
    if random.below(8) == 0 {
        shared(random)
    } else {
        at(FIRST + from + random.below(count))
    }
}

/// A call that may well succeed.
fn sensible(random: &mut Random) -> Command {
    let rd = role(random, 8, 3);
    let rec = role(random, 11, 3);
    let level = start_level() + random.below(4) as i64;
    // Roots at 0, realms at 8, vCPUs at 11, tables at 14, the host's at 24.
    let pa = role(random, 0, 24);
    let (rtt, two) = (role(random, 14, 10), role(random, 24, 8));
    let ipa = ipa(random);
    match random.below(16) {
        0..4 => Command::GranuleDelegate { pa },
        4 if random.below(4) == 0 => Command::GranuleUndelegate { pa },
        5 => {
            let params = page(random.below(4));
            Command::RealmCreate { rd, params }
        }
        6 => {
            let params = page(4 + random.below(2));
            Command::RecCreate { rd, rec, params }
        }
        7 if random.below(2) == 0 => Command::RealmActivate { rd },
        4 | 8 => {
            let run = page(6 + random.below(2));
            Command::RecEnter { rec, run }
        }
        9 | 10 => Command::RttCreate {
            rd,
            rtt,
            ipa,
            level,
        },
        11 => Command::RttDestroy { rd, ipa, level },
        12 => Command::RttMapUnprotected {
            rd,
            ipa,
            level,
            desc: normal(two),
        },
        13 => Command::RttUnmapUnprotected { rd, ipa, level },
        14 if random.below(4) == 0 => Command::RecDestroy { rec },
        15 => Command::RealmDestroy { rd },
        _ => Command::PsciComplete {
            calling: rec,
            target: role(random, 11, 3),
            status: 0,
        },
    }
}

fn run() {
    // One that goes ahead may start another before it is asked to.
    cpu::eventually(|| ALL_STARTED.load(Ordering::Acquire));
    // An interrupt that is always pending: no vCPU runs for long.
    gic::start_cpu();
    gic::enable(30, 0x80);
    set(CNTP_CVAL_EL0, 0);
    set(CNTP_CTL_EL0, 1);
    let me = cpu::index();
    let left = &LEFT[me];
    let mut n = left.load(Ordering::Relaxed);
    let mut random = Random::new(SEED.load(Ordering::Relaxed) ^ (me as u64) << 32 ^ n << 40);
    while n > 0 {
        n -= 1;
        left.store(n, Ordering::Relaxed);
        if random.below(64) == 0 {
            power_call(&mut random);
        }
        // Off for a while, whatever stands.
        if me != 0 && random.below(256) == 0 {
            break;
        }
        // Now and then all from the beginning, whatever the others do meanwhile.
        if n % 500 == 499 {
            take_apart(|_| ());
            for n in 0..24 {
                undelegate(at(FIRST + n));
            }
        }
        let registers = if random.below(4) != 0 {
            sensible(&mut random).encode()
        } else {
            hostile(&mut random)
        };
        let x0 = status(registers);
        match rmi::Status::unpack(x0) {
            Some(rmi::Status::Success) => {
                SUCCEEDED.fetch_add(1, Ordering::Relaxed);
                if registers[0] == fid::RMI_REC_ENTER {
                    ENTERED.fetch_add(1, Ordering::Relaxed);
                }
            }
            Some(_) => {}
            None if x0 == rmi::NOT_SUPPORTED => {}
            None => {
                STRANGE.fetch_add(1, Ordering::Relaxed);
            }
        }
        // A touch of what may be anybody's.
        if random.below(8) == 0 {
            let _ = write(shared(&mut random), 0xd500_3fff);
            let _ = read(shared(&mut random));
        }
    }
    set(CNTP_CTL_EL0, 0);
    gic::disable(30);
}

/// A call of PSCI's: any, of any CPU, but those that end the machine. A CPU that
/// is there begins where this program does: where else is `cpus`'s matter.
fn power_call(random: &mut Random) {
    let index = random.below(cpu::count() as u64) as usize;
    let mpidr = machine::get().mpidrs[index];
    let known = match random.below(8) {
        0..4 => {
            let answer = cpu::start(index, run);
            STARTED.fetch_add(u64::from(answer == 0), Ordering::Relaxed);
            (-5..=0).contains(&answer)
        }
        4 => (0..=2).contains(&affinity_info(mpidr)),
        5 => psci(power::CPU_ON_64, random.word() | 1 << 63, any(random), 0) == -2,
        6 => {
            psci(
                power::AFFINITY_INFO_64,
                random.word(),
                1 + random.word() / 2,
                0,
            ) == -2
        }
        // The interrupt that is always pending ends it.
        _ => psci(power::CPU_SUSPEND_64, random.word(), any(random), 0) == 0,
    };
    STRANGE.fetch_add(u64::from(!known), Ordering::Relaxed);
}

/// Turns those on that went off before they were done, until none is left.
fn rouse() {
    let others = machine::get().mpidrs.iter().zip(&LEFT).enumerate();
    for (index, (mpidr, left)) in others.take(cpu::count()).skip(1) {
        cpu::eventually(|| {
            if affinity_info(*mpidr) == 1 && cpu::start(index, run) == 0 {
                STARTED.fetch_add(1, Ordering::Relaxed);
            }
            left.load(Ordering::Relaxed) == 0
        });
    }
}

/// The checks.
pub fn checks(suite: &mut Suite<Console>, seed: u64, count: u64) {
    let end = at(FIRST + SHARED);
    if end > own().1 {
        suite.check("fuzz/memory", false, "too little RAM");
        return;
    }
    SEED.store(seed, Ordering::Relaxed);
    for left in &LEFT {
        left.store(count, Ordering::Relaxed);
    }
    for n in 0..4 {
        write_params(page(n), at(FIRST + 2 * n), 20 + n as u16);
    }
    for n in 0..2 {
        write_rec(page(4 + n), n, true, 0x4000_0000, 0);
        fill(page(6 + n), 0);
    }
    gic::start_distributor();
    let all = cpu::together(run, || {
        ALL_STARTED.store(true, Ordering::Release);
        run();
        rouse();
    });
    suite.check("fuzz/all-came-back", all, "a CPU did not");
    let left: u64 = (0..cpu::count())
        .map(|n| LEFT[n].load(Ordering::Relaxed))
        .sum();
    suite.equal("fuzz/calls-left", left, 0);
    let started = STARTED.load(Ordering::Relaxed);
    // In a few calls it may be that none goes off.
    let few = cpu::count() == 1 || count < 4000;
    suite.check("fuzz/cpus-went-off-and-on", few || started > 0, started);
    let succeeded = SUCCEEDED.load(Ordering::Relaxed);
    suite.check("fuzz/some-succeeded", succeeded > count / 100, succeeded);
    let entered = ENTERED.load(Ordering::Relaxed);
    tests::println!("fuzz: {succeeded} calls succeeded, {entered} of them entered a vCPU");
    suite.equal("fuzz/strange-answers", STRANGE.load(Ordering::Relaxed), 0);
    calls::still_there(suite, "fuzz/rmi-version");
    clean_up(suite);
}

/// Ends whatever stands, from the outside in; `destroyed` is told each answer of
/// `REALM_DESTROY`.
fn take_apart(mut destroyed: impl FnMut(u64)) {
    let all = || (0..SHARED).map(|n| at(FIRST + n));
    for pa in all() {
        status(Command::RecDestroy { rec: pa });
    }
    for rd in all() {
        if status(Command::RecAuxCount { rd }) != SUCCESS {
            continue;
        }
        for level in (start_level()..=3).rev() {
            walk(span(level), |ipa| {
                ask(Command::RttUnmapUnprotected { rd, ipa, level })[1]
            });
        }
        for level in (start_level() + 1..=3).rev() {
            walk(span(level - 1), |ipa| {
                ask(Command::RttDestroy { rd, ipa, level })[2]
            });
        }
        destroyed(status(Command::RealmDestroy { rd }));
    }
}

/// Takes all memory back, now that the others are off.
fn clean_up(suite: &mut Suite<Console>) {
    take_apart(|answer| {
        suite.equal("fuzz/realm-destroy", answer, SUCCESS);
    });
    let all = || (0..SHARED).map(|n| at(FIRST + n));
    let (mut lost, mut dirty) = (0, 0);
    for pa in all() {
        let was_theirs = undelegate(pa) == SUCCESS;
        match read(pa) {
            Ok(word) => dirty += u64::from(was_theirs && word != 0),
            Err(_) => lost += 1,
        }
    }
    suite.equal("fuzz/lost-granules", lost, 0);
    suite.equal("fuzz/dirty-granules", dirty, 0);
}

/// Goes through a realm's IPA space by the `top` of `step`'s answers, by `span`
/// where there is none.
fn walk(span: u64, step: impl Fn(u64) -> u64) {
    let mut ipa = 0;
    let mut steps = 0;
    while ipa >> IPA_BITS == 0 && steps < 100_000 {
        let top = step(ipa);
        // Live, and not to be ended at this level: one entry on.
        ipa = if top > ipa { top } else { ipa + span };
        steps += 1;
    }
}

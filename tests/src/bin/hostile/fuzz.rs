//! Random calls from all CPUs at once, on memory that they share, while all but
//! one of them go off and are turned on again, and pages of parameters change under
//! the calls that read them; then all of that memory must come back.

use arm64::regs::{CNTFRQ_EL0, CNTP_CTL_EL0, CNTP_CVAL_EL0, CNTPCT_EL0};
use core::arch::global_asm;
use core::mem::offset_of;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tests::bare::asm::{clean, read64, set, write64};

use rmi::call::Info;
use rmi::params::{RealmFlags, RealmParams, RecParams};
use rmi::run::EnterFlags;
use rmi::vendor::{self, Vendor};
use rmi::{Command, fid};
use tests::bare::console::Console;
use tests::bare::psci::{affinity_info, fid as power, psci};
use tests::bare::{MAX_CPUS, cpu, exception, gic, machine};
use tests::random::Random;
use tests::suite::Suite;

use crate::audit;
use crate::calls::{self, INPUT, SUCCESS, ask, granule, memory_ranges, status};
use crate::granules::{at, fill, own, read, undelegate, write};
use crate::realm::{IPA_BITS, normal, span, start_level, write_params, write_rec};

/// Granules that all calls fight over; others are parameter and run pages.
const SHARED: u64 = 32;
const FIRST: u64 = 256;
/// Parameters of realms, of vCPUs, run pages and a guest's code, before the shared ones.
const PAGES: u64 = 9;
const CODE: u64 = 8;
/// Turns of a vCPU in a second.
const SLICES: u64 = 1000;
/// Where guests have it.
const BEGIN: u64 = 0x4000_0000;

// A guest that turns its other vCPU on, and accesses a device, again and again.
global_asm!(
    ".balign 4096",
    "stress_code:",
    "mov x0, #3",
    "movk x0, #0xc400, lsl #16",
    "mov x1, #1",
    "adr x2, stress_code",
    "hvc #0",
    "mov x9, #0x09000000",
    "str x0, [x9]",
    "b stress_code",
    ".org stress_code + 0x200",
    "b stress_code",
    ".org stress_code + 0x1000",
);

unsafe extern "C" {
    static stress_code: u8;
}

/// All functions of the RMI's and our own; PSCI's: [`power_call`]. But no line of the
/// log, which is for people.
fn all() -> impl Iterator<Item = &'static Info> {
    let tables = [Command::TABLE, Vendor::TABLE].into_iter().flatten();
    tables.filter(|info| info.function != vendor::LOG)
}

/// Any of them, of any arguments.
fn hostile(random: &mut Random) -> [u64; 6] {
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
/// How often each function succeeded, in the order of [`all`].
static SUCCEEDED: [AtomicU64; 64] = [const { AtomicU64::new(0) }; 64];
static STRANGE: AtomicU64 = AtomicU64::new(0);
static ENTERED: AtomicU64 = AtomicU64::new(0);

fn shared(random: &mut Random) -> u64 {
    at(FIRST + random.below(SHARED))
}

fn page(n: u64) -> u64 {
    at(FIRST - PAGES + n)
}

/// IPAs that collide often, of both halves of a protected guest's.
fn ipa(random: &mut Random) -> u64 {
    let half = random.below(2) << (IPA_BITS - 1);
    let base = half + [0, 0x4000_0000, 0x8000_0000][random.below(3) as usize];
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
fn sensible(random: &mut Random) -> [u64; 6] {
    match random.below(4) {
        0 => of_granules(random),
        1 => of_realms(random),
        2 => of_tables(random),
        _ => of_data(random),
    }
}

// Roots at 0, realms at 8, vCPUs at 11, tables at 14, the host's at 24.
fn realm(random: &mut Random) -> u64 {
    role(random, 8, 3)
}

fn vcpu(random: &mut Random) -> u64 {
    role(random, 11, 3)
}

fn hosts(random: &mut Random) -> u64 {
    role(random, 24, 8)
}

fn of_granules(random: &mut Random) -> [u64; 6] {
    let (pa, run) = (role(random, 0, 24), page(6 + random.below(2)));
    let (base, top) = (shared(random), at(FIRST + SHARED));
    match random.below(16) {
        0..8 => Command::GranuleDelegate { pa }.into(),
        8 => Command::GranuleUndelegate { pa }.into(),
        9 | 10 => Vendor::GranuleRangeDelegate { base, top }.into(),
        11 => Vendor::GranuleRangeUndelegate { base, top }.into(),
        12 => Command::Version {
            requested: rmi::VERSION_1_0,
        }
        .into(),
        _ => Command::RecEnter {
            rec: vcpu(random),
            run,
        }
        .into(),
    }
}

fn of_realms(random: &mut Random) -> [u64; 6] {
    let (rd, rec) = (realm(random), vcpu(random));
    let pa = hosts(random);
    match random.below(16) {
        0..3 => {
            let params = page(random.below(4));
            Command::RealmCreate { rd, params }.into()
        }
        3..6 => {
            let params = page(4 + random.below(2));
            Command::RecCreate { rd, rec, params }.into()
        }
        6 => Command::RealmActivate { rd }.into(),
        7 if random.below(4) == 0 => Command::RecDestroy { rec }.into(),
        8 => Command::RealmDestroy { rd }.into(),
        9 => Command::PsciComplete {
            calling: rec,
            target: vcpu(random),
            status: 0,
        }
        .into(),
        10 => Command::RecAuxCount { rd }.into(),
        11 => {
            let ipa = ipa(random);
            let page = if random.below(4) == 0 { 0 } else { pa };
            let delay = random.below(1 << 20);
            Vendor::SetPosted {
                rd,
                page,
                ipa,
                delay,
            }
            .into()
        }
        12 => Vendor::SetSpi {
            rd,
            intid: 32 + random.below(8),
            level: random.below(2),
        }
        .into(),
        13 => Vendor::Kick { rec }.into(),
        14 => match random.below(3) {
            0 => Vendor::RecHistory { rec, pa }.into(),
            1 => Vendor::RecRead { rec, pa }.into(),
            _ => Vendor::RecPending { rec }.into(),
        },
        _ => {
            let run = page(6 + random.below(2));
            Command::RecEnter { rec, run }.into()
        }
    }
}

fn of_tables(random: &mut Random) -> [u64; 6] {
    let (rd, ipa) = (realm(random), ipa(random));
    let level = start_level() + random.below(4) as i64;
    let call = match random.below(12) {
        0..5 => Command::RttCreate {
            rd,
            rtt: role(random, 14, 10),
            ipa,
            level,
        },
        5 | 6 => Command::RttDestroy { rd, ipa, level },
        7 | 8 => Command::RttMapUnprotected {
            rd,
            ipa,
            level,
            desc: normal(hosts(random)),
        },
        9 => Command::RttUnmapUnprotected { rd, ipa, level },
        10 => Command::RttFold { rd, ipa, level },
        _ => Command::RttReadEntry { rd, ipa, level },
    };
    call.into()
}

fn of_data(random: &mut Random) -> [u64; 6] {
    let (rd, data, ipa) = (realm(random), role(random, 14, 10), ipa(random));
    let (base, top) = (ipa, ipa + granule() * (1 + random.below(3)));
    let pa = data;
    if random.below(4) == 0 {
        return match random.below(3) {
            0 => Vendor::RttDataMap { rd, ipa, top, pa }.into(),
            1 => Vendor::RttDataDonate { rd, ipa, top, pa }.into(),
            _ => Vendor::RttDataUnmap { rd, ipa, top }.into(),
        };
    }
    let call = match random.below(8) {
        0..2 => Command::DataCreate {
            rd,
            data,
            ipa,
            src: hosts(random),
            flags: 0,
        },
        2..4 => Command::DataCreateUnknown { rd, data, ipa },
        4 => Command::DataDestroy { rd, ipa },
        5 | 6 => Command::RttInitRipas { rd, base, top },
        _ => Command::RttSetRipas {
            rd,
            rec: vcpu(random),
            base,
            top,
        },
    };
    call.into()
}

/// A guest's life in calls that succeed, if nobody else does anything to it.
fn life(random: &mut Random, mut call: impl FnMut([u64; 6])) {
    let (n, params) = (random.below(4), page(random.below(4)));
    let (rd, root) = (at(FIRST + 8 + random.below(3)), at(FIRST + 2 * n));
    let params = if random.below(4) == 0 {
        params
    } else {
        page(n)
    };
    let mut taken = 14 + random.below(8);
    let mut given = |call: &mut dyn FnMut([u64; 6])| {
        let pa = at(FIRST + taken);
        taken = if taken == 23 { 14 } else { taken + 1 };
        call(Command::GranuleDelegate { pa }.into());
        pa
    };
    for pa in [rd, root] {
        call(Command::GranuleDelegate { pa }.into());
    }
    call(Command::RealmCreate { rd, params }.into());
    let (ipa, shared) = (BEGIN, BEGIN + ((n / 2) << (IPA_BITS - 1)));
    for half in [ipa, shared] {
        for level in start_level() + 1..=3 {
            let rtt = given(&mut call);
            let ipa = half;
            let made = Command::RttCreate {
                rd,
                rtt,
                ipa,
                level,
            };
            call(made.into());
        }
    }
    let (base, top) = (ipa, ipa + 2 * granule());
    call(Command::RttInitRipas { rd, base, top }.into());
    let (data, src) = (given(&mut call), page(CODE));
    call(
        Command::DataCreate {
            rd,
            data,
            ipa,
            src,
            flags: 0,
        }
        .into(),
    );
    let (data, next) = (given(&mut call), ipa + granule());
    call(
        Command::DataCreateUnknown {
            rd,
            data,
            ipa: next,
        }
        .into(),
    );
    // The same by ranges: of what is DELEGATED, and of what is the host's.
    let (pa, ipa_of_run) = (given(&mut call), next + granule());
    let top = ipa_of_run + granule();
    let ipa = ipa_of_run;
    call(Vendor::RttDataMap { rd, ipa, top, pa }.into());
    call(Vendor::RttDataUnmap { rd, ipa, top }.into());
    let pa = hosts(random);
    call(Vendor::RttDataDonate { rd, ipa, top, pa }.into());
    let ipa = BEGIN;
    let desc = normal(page(CODE));
    call(
        Command::RttMapUnprotected {
            rd,
            ipa: shared,
            level: 3,
            desc,
        }
        .into(),
    );
    let recs = [0, 1].map(|index| (at(FIRST + 11 + index), page(4 + index)));
    for (rec, params) in recs {
        call(Command::GranuleDelegate { pa: rec }.into());
        call(Command::RecCreate { rd, rec, params }.into());
    }
    call(Command::RealmActivate { rd }.into());
    let (rec, run, pa) = (recs[0].0, page(6 + random.below(2)), hosts(random));
    for _ in 0..3 {
        call(Command::RecEnter { rec, run }.into());
        call(Vendor::RecHistory { rec, pa }.into());
        call(Vendor::RecRead { rec, pa }.into());
        call(Vendor::RecWrite { rec, pa }.into());
        let target = recs[1].0;
        call(
            Command::PsciComplete {
                calling: rec,
                target,
                status: 0,
            }
            .into(),
        );
    }
    // A table beside, which is folded, and one that is destroyed.
    let (rtt, beside) = (given(&mut call), (ipa + span(2)) & !(span(2) - 1));
    for end in [
        Command::RttFold {
            rd,
            ipa: beside,
            level: 3,
        },
        Command::RttDestroy {
            rd,
            ipa: beside,
            level: 3,
        },
    ] {
        call(
            Command::RttCreate {
                rd,
                rtt,
                ipa: beside,
                level: 3,
            }
            .into(),
        );
        call(end.into());
    }
    if random.below(2) == 0 {
        call(Command::DataDestroy { rd, ipa }.into());
        call(
            Command::RttUnmapUnprotected {
                rd,
                ipa: shared,
                level: 3,
            }
            .into(),
        );
    }
}

/// Changes a page that a call may be reading at the moment, if it is the host's: its
/// parameters, good and bad ones.
fn rewrite(random: &mut Random) {
    let put = |page: u64, offset: usize, value: u64| {
        // Delegated, it is an exception.
        let _ = write(page + offset as u64, value);
    };
    let (n, m, run) = (random.below(4), random.below(2), page(6 + random.below(2)));
    let flags = [RealmFlags::NONCONF, RealmFlags::PROTECTED][(n / 2) as usize];
    let good = (flags | RealmFlags::EL2_VGIC).bits();
    let root = at(FIRST + 2 * n);
    match random.below(8) {
        0 => put(page(n), offset_of!(RealmParams, flags), random.word()),
        1 => put(page(n), offset_of!(RealmParams, rtt_base), shared(random)),
        2 => put(
            page(n),
            offset_of!(RealmParams, rtt_level_start),
            random.below(4),
        ),
        3 => put(page(4 + m), offset_of!(RecParams, mpidr), random.below(3)),
        4 => put(page(4 + m), offset_of!(RecParams, pc), ipa(random)),
        5 => put(run, 0, random.word() & EnterFlags::all().bits()),
        6 => put(run, 0, 0),
        _ => {
            put(page(n), offset_of!(RealmParams, flags), good);
            put(page(n), offset_of!(RealmParams, rtt_base), root);
            let level = start_level() as u64;
            put(page(n), offset_of!(RealmParams, rtt_level_start), level);
            put(page(4 + m), offset_of!(RecParams, mpidr), m);
            put(page(4 + m), offset_of!(RecParams, pc), 0x4000_0000);
        }
    }
}

/// Pages of parameters as they are to be: two plain realms, two protected ones, two
/// vCPUs.
fn write_pages() {
    for n in 0..4 {
        write_params(page(n), at(FIRST + 2 * n), 20 + n as u16);
    }
    for n in 2..4 {
        let flags = RealmFlags::PROTECTED | RealmFlags::EL2_VGIC;
        let to = page(n) + offset_of!(RealmParams, flags) as u64;
        // SAFETY: A granule of this host's.
        unsafe { write64(to, flags.bits()) };
    }
    for n in 0..2 {
        write_rec(page(4 + n), n, true, 0x4000_0000, 0);
        fill(page(6 + n), 0);
    }
    fill(page(CODE), 0);
    let from = (&raw const stress_code).addr() as u64;
    for offset in (0..4096).step_by(8) {
        // SAFETY: The program's code, and a granule of its own.
        unsafe { write64(page(CODE) + offset, read64(from + offset)) };
    }
    clean(page(CODE), page(CODE) + granule());
}

/// Makes a call, and counts what it answers. A vCPU does not run for long.
fn make(registers: [u64; 6]) {
    if registers[0] == fid::RMI_REC_ENTER {
        let slice = CNTFRQ_EL0.get() / SLICES;
        set(CNTP_CVAL_EL0, CNTPCT_EL0.get() + slice);
    }
    let x0 = status(registers);
    match rmi::Status::unpack(x0) {
        Some(rmi::Status::Success) => {
            let place = all().position(|info| info.function == registers[0]);
            if let Some(count) = place.and_then(|n| SUCCEEDED.get(n)) {
                count.fetch_add(1, Ordering::Relaxed);
            }
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
}

/// Has a timer's interrupt, which is never taken, end each turn of a vCPU.
fn end_turns() {
    gic::start_cpu();
    gic::enable(30, 0x80);
    set(CNTP_CVAL_EL0, 0);
    set(CNTP_CTL_EL0, 1);
}

fn end_no_turns() {
    set(CNTP_CTL_EL0, 0);
    gic::disable(30);
}

fn run() {
    // One that goes ahead may start another before it is asked to.
    cpu::eventually(|| ALL_STARTED.load(Ordering::Acquire));
    end_turns();
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
            for n in 0..PAGES {
                undelegate(page(n));
            }
            // What is given away meanwhile is an exception for each of its words.
            let _ = exception::probe(write_pages);
        }
        if random.below(16) == 0 {
            rewrite(&mut random);
        }
        if random.below(64) == 0 {
            life(&mut random, make);
        }
        let registers = if random.below(4) != 0 {
            sensible(&mut random)
        } else {
            hostile(&mut random)
        };
        make(registers);
        // A touch of what may be anybody's.
        if random.below(8) == 0 {
            let _ = write(shared(&mut random), 0xd500_3fff);
            let _ = read(shared(&mut random));
        }
    }
    end_no_turns();
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
        // The timer's interrupt, which is never taken, ends it.
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
    write_pages();
    gic::start_distributor();
    let came_back = cpu::together(run, || {
        ALL_STARTED.store(true, Ordering::Release);
        run();
        rouse();
    });
    suite.check("fuzz/all-came-back", came_back, "a CPU did not");
    let left: u64 = (0..cpu::count())
        .map(|n| LEFT[n].load(Ordering::Relaxed))
        .sum();
    suite.equal("fuzz/calls-left", left, 0);
    let started = STARTED.load(Ordering::Relaxed);
    // In a few calls it may be that none goes off.
    let few = cpu::count() == 1 || count < 4000;
    suite.check("fuzz/cpus-went-off-and-on", few || started > 0, started);
    let succeeded = || SUCCEEDED.iter().map(|count| count.load(Ordering::Relaxed));
    for (info, count) in all().zip(succeeded()) {
        tests::println!("fuzz: {} succeeded {count} times", info.name);
    }
    let succeeded = succeeded().sum::<u64>();
    suite.check("fuzz/some-succeeded", succeeded > count / 100, succeeded);
    let entered = ENTERED.load(Ordering::Relaxed);
    tests::println!("fuzz: {succeeded} calls succeeded, {entered} of them entered a vCPU");
    suite.equal("fuzz/strange-answers", STRANGE.load(Ordering::Relaxed), 0);
    calls::still_there(suite, "fuzz/rmi-version");
    // Something stands, whatever the others have ended last.
    let mut random = Random::new(seed);
    end_turns();
    (0..8).for_each(|_| life(&mut random, make));
    end_no_turns();
    audit::point("stress");
    clean_up(suite);
}

/// Ends whatever stands, from the outside in; `destroyed` is told each answer of
/// `REALM_DESTROY`.
fn take_apart(mut destroyed: impl FnMut(u64)) {
    let each = || (0..SHARED).map(|n| at(FIRST + n));
    for pa in each() {
        status(Command::RecDestroy { rec: pa });
    }
    for rd in each() {
        if status(Command::RecAuxCount { rd }) != SUCCESS {
            continue;
        }
        // What is not of the half that a command is about is left out whole.
        let half = |ipa: u64| ((ipa >> (IPA_BITS - 1)) + 1) << (IPA_BITS - 1);
        let next = |status: u64, top: u64, ipa: u64| {
            if status == INPUT { half(ipa) } else { top }
        };
        walk(granule(), |ipa| {
            let gone = ask(Command::DataDestroy { rd, ipa });
            next(gone[0], gone[2], ipa)
        });
        for level in (start_level()..=3).rev() {
            walk(span(level), |ipa| {
                let gone = ask(Command::RttUnmapUnprotected { rd, ipa, level });
                next(gone[0], gone[1], ipa)
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
    let each = (0..SHARED).map(|n| at(FIRST + n));
    let (mut lost, mut dirty) = (0, 0);
    for pa in each {
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

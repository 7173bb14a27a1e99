//! Many seeded runs on all cores: the part of the state machine that counts
//! in millions, and how to stop and resume it.
//!
//! A seed is one run: a case, and 20 to 200 operations after it. Seeds are
//! taken in order, so that "done below seed N" says all there is to say about
//! how far a run came. `PGTABLE_STATE` names a file that holds this N: it is
//! written every few seconds, read at the start, and removed at the end. Who
//! has no such file resumes with `PGTABLE_SEED=N` and the operations left.

use super::case::{Case, Op, Seeded};
use super::driver::run_tallied;
use super::tally::Tally;
use pgtable::Stage2Config;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

/// Operations of a run, by the lowest bits of its seed: short ones meet many
/// cases, long ones old trees. [`LENGTH`] on average.
const LENGTHS: [usize; 4] = [20, 60, 120, 200];
/// Operations of a run, on average.
pub const LENGTH: u64 = 100;

/// How often a bulk run says how far it is.
const REPORT: Duration = Duration::from_secs(5);

/// The run of a seed.
pub fn of_seed(geometries: &[Stage2Config], seed: u64) -> (Case, Vec<Op>) {
    let mut numbers = Seeded::new(seed);
    let case = numbers.case(geometries);
    let ops = numbers.sequence(LENGTHS[(seed & 3) as usize]);
    (case, ops)
}

/// One seeded run.
///
/// # Errors
/// The seed, the case, the shortest operations found, and what went wrong.
pub fn seeded(geometries: &[Stage2Config], seed: u64, tally: &mut Tally) -> Result<(), String> {
    let (case, ops) = of_seed(geometries, seed);
    match attempt(&case, &ops, tally) {
        Ok(()) => Ok(()),
        Err(what) => {
            let (ops, what) = shrink(&case, ops, what);
            Err(format!(
                "seed {seed}: {what}\n\
                 again: PGTABLE_SEED={seed} PGTABLE_OPS=1 \
                 cargo test --release -p pgtable --test state_machine many\n\
                 case {case:#?}\nthe {} operations that it takes {ops:#x?}",
                ops.len()
            ))
        }
    }
}

/// A run, of which a panic is a failure too.
fn attempt(case: &Case, ops: &[Op], tally: &mut Tally) -> Result<(), String> {
    let caught = std::panic::AssertUnwindSafe(|| run_tallied(case, ops, tally));
    std::panic::catch_unwind(caught).unwrap_or_else(|panic| {
        let what = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied());
        Err(format!("panic: {}", what.unwrap_or("of another kind")))
    })
}

/// Leaves out what is not needed to fail: long stretches, then single
/// operations, until nothing more can go.
fn shrink(case: &Case, mut ops: Vec<Op>, mut what: String) -> (Vec<Op>, String) {
    let mut stretch = ops.len().div_ceil(2);
    loop {
        let before = ops.len();
        let mut end = ops.len();
        while end > 0 {
            let from = end.saturating_sub(stretch);
            let mut fewer = ops.clone();
            fewer.drain(from..end);
            if let Err(still) = attempt(case, &fewer, &mut Tally::default()) {
                ops = fewer;
                what = still;
            }
            end = from;
        }
        if stretch > 1 {
            stretch = stretch.div_ceil(2);
        } else if ops.len() == before {
            return (ops, what);
        }
    }
}

/// What a bulk run is to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Operations, about: whole runs are done.
    pub ops: u64,
    /// The first seed.
    pub first: u64,
    /// Where "done below" is kept.
    pub state: Option<PathBuf>,
    /// When to stop early.
    pub limit: Option<Duration>,
    /// Says on stderr how far it is.
    pub reports: bool,
}

/// How far the threads of a bulk run are.
struct Progress {
    next: AtomicU64,
    done: AtomicU64,
    stop: AtomicBool,
    /// Seeds under way.
    busy: Mutex<Vec<u64>>,
    /// Threads at work; told when one ends.
    working: Mutex<usize>,
    ended: Condvar,
    failed: Mutex<Option<String>>,
    tally: Mutex<Tally>,
}

impl Progress {
    /// Takes the next seed below `end`.
    fn take(&self, end: u64) -> Option<u64> {
        let mut busy = self.busy.lock().unwrap();
        let seed = self.next.load(Ordering::SeqCst);
        if seed >= end || self.stop.load(Ordering::SeqCst) {
            return None;
        }
        self.next.store(seed + 1, Ordering::SeqCst);
        busy.push(seed);
        Some(seed)
    }

    fn finish(&self, seed: u64) {
        let mut busy = self.busy.lock().unwrap();
        busy.retain(|&other| other != seed);
    }

    /// All seeds below this one are done.
    fn below(&self) -> u64 {
        let busy = self.busy.lock().unwrap();
        let next = self.next.load(Ordering::SeqCst);
        busy.iter().copied().min().unwrap_or(next)
    }

    fn work(&self, geometries: &[Stage2Config], end: u64) {
        let mut tally = Tally::default();
        while let Some(seed) = self.take(end) {
            if let Err(what) = seeded(geometries, seed, &mut tally) {
                self.stop.store(true, Ordering::SeqCst);
                self.failed.lock().unwrap().get_or_insert(what);
                // Stays under way: it is not done.
                break;
            }
            self.finish(seed);
            let ops = LENGTHS[(seed & 3) as usize] as u64;
            self.done.fetch_add(ops, Ordering::SeqCst);
        }
        self.tally.lock().unwrap().add(&tally);
        *self.working.lock().unwrap() -= 1;
        self.ended.notify_all();
    }
}

/// Writes a line past the test harness's capture.
fn say(line: &str) {
    let _unheard = writeln!(std::io::stderr(), "{line}");
}

/// Does runs until there were enough operations. Returns how they ended.
///
/// # Errors
/// The first failure.
pub fn run(geometries: &[Stage2Config], plan: &Plan) -> Result<Tally, String> {
    let end = plan.first + plan.ops.div_ceil(LENGTH);
    let first = match plan.state.as_ref().map(std::fs::read_to_string) {
        Some(Ok(text)) => {
            let seed = text.trim().parse::<u64>();
            let seed = seed.map_err(|error| format!("PGTABLE_STATE holds no seed: {error}"))?;
            seed.clamp(plan.first, end)
        }
        _ => plan.first,
    };
    let began = Instant::now();
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let progress = Progress {
        next: AtomicU64::new(first),
        done: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        busy: Mutex::default(),
        working: Mutex::new(threads),
        ended: Condvar::new(),
        failed: Mutex::default(),
        tally: Mutex::default(),
    };
    let report = |at: u64| {
        let ops = progress.done.load(Ordering::SeqCst);
        let rate = ops as f64 / began.elapsed().as_secs_f64().max(0.001);
        say(&format!(
            "seeds {first} to {end}: done below {at}, {ops} operations, {rate:.0} a second"
        ));
        if let Some(path) = &plan.state {
            let _unwritten = std::fs::write(path, format!("{at}\n"));
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| progress.work(geometries, end));
        }
        let mut working = progress.working.lock().unwrap();
        while *working > 0 {
            let left = plan
                .limit
                .map(|limit| limit.saturating_sub(began.elapsed()));
            if left == Some(Duration::ZERO) {
                progress.stop.store(true, Ordering::SeqCst);
            }
            let wait = match left {
                Some(left) if !left.is_zero() => left.min(REPORT),
                _ => REPORT,
            };
            working = progress.ended.wait_timeout(working, wait).unwrap().0;
            if plan.reports && *working > 0 {
                report(progress.below());
            }
        }
    });
    let below = progress.below();
    if plan.reports {
        report(below);
    }
    if let Some(what) = progress.failed.into_inner().unwrap() {
        return Err(what);
    }
    if below < end {
        let rest = (end - below) * LENGTH;
        say(&format!(
            "stopped by its time limit: resume with PGTABLE_SEED={below} PGTABLE_OPS={rest}"
        ));
    } else if let Some(path) = &plan.state {
        let _gone = std::fs::remove_file(path);
    }
    Ok(progress.tally.into_inner().unwrap())
}

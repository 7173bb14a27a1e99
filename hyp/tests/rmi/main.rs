//! The RMI layer against an executable specification of it ([`spec`]), natively.
//!
//! ```text
//! HYP_COMMANDS=1000000 cargo test --profile proof -p hyp --test rmi -- --nocapture many
//! HYP_SEED=17 …      # one sequence, as a failure names it
//! HYP_SHORTEN=0 …    # a failure as it came, for who only asks whether there is one
//! ```
//!
//! `pair` lets each operation happen to `hyp` and to the specification, `check`
//! compares what has become of both, `host` is who calls, `sequence` makes a failure
//! short.

mod check;
mod host;
mod pair;
mod sequence;
mod spec;
mod threads;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use pair::Tally;

/// Calls without `HYP_COMMANDS`: a few seconds of a build that is not optimized.
const COMMANDS: u64 = 20_000;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn many_commands_do_what_the_specification_says() {
    std::panic::set_hook(Box::new(|_| {}));
    if let Some(seed) = number("HYP_SEED") {
        match sequence::run(seed) {
            Ok(tally) => show(&tally),
            Err(failure) => panic!("{failure}"),
        }
        return;
    }
    let wanted = number("HYP_COMMANDS").unwrap_or(COMMANDS);
    let (next, done) = (AtomicU64::new(1), Mutex::new(Tally::new()));
    let calls = || {
        done.lock()
            .map_or(u64::MAX, |done| done.values().sum::<u64>())
    };
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let failures: Vec<String> = std::thread::scope(|scope| {
        let work = || {
            while calls() < wanted {
                let tally = sequence::run(next.fetch_add(1, Ordering::Relaxed))?;
                let mut done = done.lock().map_err(|_| "a thread died")?;
                for (what, count) in tally {
                    *done.entry(what).or_default() += count;
                }
            }
            Ok(())
        };
        let all: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let ended = all.into_iter().map(|thread| thread.join());
        ended
            .filter_map(|end| end.unwrap_or(Err("a thread died".into())).err())
            .collect()
    });
    for failure in &failures {
        eprintln!("{failure}");
    }
    assert!(failures.is_empty(), "see above");
    eprintln!(
        "sequences 1 to {}, {} calls",
        next.load(Ordering::Relaxed) - 1,
        calls()
    );
    let done = done.into_inner().expect("no thread died");
    if number("HYP_TALLY").is_some() {
        show(&done);
    }
}

/// Calls of several CPUs without `HYP_COMMANDS`.
const OF_EACH_ROUND: u64 = 1000;

#[test]
fn calls_of_several_cpus_leave_what_fits_together() {
    std::panic::set_hook(Box::new(|_| {}));
    // A fifth of those that one CPU makes.
    let wanted = number("HYP_COMMANDS").unwrap_or(COMMANDS * 5) / 5;
    let mut done = 0;
    for seed in 1.. {
        match threads::run(seed, 4, OF_EACH_ROUND) {
            Ok(calls) => done += calls,
            Err(failure) => panic!("{failure}"),
        }
        if done >= wanted {
            break;
        }
    }
}

/// Calls by function and status.
fn show(tally: &Tally) {
    for ((function, status), count) in tally {
        let name = rmi::call::info(*function).map_or("no function", |info| info.name);
        println!("{name:<32} {status:>4} {count:>9}");
    }
}

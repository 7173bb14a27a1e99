//! Would the tests notice? Each deliberate fault of `pgtable` is switched on
//! in turn, and the state machine must fail.
//!
//! `cargo test -p pgtable --features mutants --test mutants -- --nocapture`
//! prints the table; `PGTABLE_MUTANT=Name` tries one.

#![cfg(feature = "mutants")]

mod judge;

use judge::directed;
use judge::driver::{Case, Op, Seeded, geometries, run};
use pgtable::Stage2Config;
use pgtable::mutants::{Mutant, switch};

/// Which runs are likely to notice, to keep the table quick: all of them are
/// tried before a mutant is said to survive.
const RUNS: u64 = 3000;

fn tried(geometries: &[Stage2Config], seed: u64) -> (Case, Vec<Op>) {
    let mut numbers = Seeded::new(seed);
    let case = numbers.case(geometries);
    (case, numbers.sequence(40))
}

#[test]
fn every_mutant_is_killed() {
    let all = geometries();
    // Without a fault nothing is found.
    for seed in 0..RUNS / 10 {
        let (case, ops) = tried(&all, seed);
        if let Err(what) = run(&case, &ops) {
            panic!("seed {seed}, no mutant: {what}");
        }
    }
    let mut survivors = Vec::new();
    println!("{:<26} {:>6}  killed by", "mutant", "runs");
    let only = std::env::var("PGTABLE_MUTANT").ok();
    for &mutant in Mutant::ALL {
        if only
            .as_ref()
            .is_some_and(|only| *only != format!("{mutant:?}"))
        {
            continue;
        }
        let mut killed = None;
        for seed in 0..=RUNS {
            switch(Some(mutant));
            // Arithmetic that a fault sends out of bounds is a kill, too.
            let hook = std::panic::take_hook();
            std::panic::set_hook(Box::new(|_| ()));
            let outcome = std::panic::catch_unwind(|| {
                if seed == 0 {
                    return directed::all().map_err(|what| format!("directed: {what}"));
                }
                let (case, ops) = tried(&all, seed);
                run(&case, &ops)
            });
            std::panic::set_hook(hook);
            switch(None);
            let what = match outcome {
                Ok(Ok(())) => continue,
                Ok(Err(what)) => what,
                Err(_) => "run: a panic".into(),
            };
            killed = Some((seed, what));
            break;
        }
        match killed {
            Some((runs, what)) => {
                let what = what.split(": ").skip(1).collect::<Vec<_>>().join(": ");
                let line = what.lines().next().unwrap_or_default();
                println!("{:<26} {runs:>6}  {line:.45}", format!("{mutant:?}"));
            }
            None => {
                println!(
                    "{:<26} {RUNS:>6}  SURVIVES: {}",
                    format!("{mutant:?}"),
                    mutant.what()
                );
                survivors.push(mutant);
            }
        }
    }
    println!("{} mutants, {} survive", Mutant::ALL.len(), survivors.len());
    assert!(survivors.is_empty(), "{survivors:?}");
}

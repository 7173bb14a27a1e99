//! All operations, over the whole matrix of formats and features, against the
//! model and a shadow.
//!
//! `cargo test -p pgtable` does 50,000 operations. Many more:
//!
//! ```text
//! PGTABLE_OPS=1000000 cargo test --release -p pgtable --test state_machine many
//! ```
//!
//! - `PGTABLE_OPS`: operations of the bulk run, which then says on stderr how
//!   far it is.
//! - `PGTABLE_SEED`: where its seeds begin (1). A run is resumed from the seed
//!   below which all is done; a failure is repeated with its seed and one
//!   operation.
//! - `PGTABLE_STATE`: a file that keeps that seed, so that the same command
//!   goes on where it was stopped. Removed when the run is complete.
//! - `PGTABLE_SECONDS`: stops the run after so long, if it is not done.
//! - `PGTABLE_TALLY`: prints how operations of each kind ended.
//! - `PGTABLE_TRACE`: a file for the events of the last run, or a directory for
//!   those of every run, for other judges. All tests under the judge know it.

mod judge;

use judge::bulk::{Plan, run as bulk};
use judge::driver::{case, geometries, run};
use proptest::prelude::*;
use std::time::Duration;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text}: not a number")),
    )
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 100,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn operations_keep_the_rules(which: u64, ops: Vec<[u64; 4]>) {
        let geometries = geometries();
        if let Err(what) = run(&case(&geometries, which), &ops) {
            prop_assert!(false, "{}", what);
        }
    }
}

#[test]
fn many_operations_keep_the_rules() {
    let asked = number("PGTABLE_OPS");
    let plan = Plan {
        ops: asked.unwrap_or(50_000),
        first: number("PGTABLE_SEED").unwrap_or(1),
        state: std::env::var_os("PGTABLE_STATE").map(Into::into),
        limit: number("PGTABLE_SECONDS").map(Duration::from_secs),
        reports: asked.is_some(),
    };
    match bulk(&geometries(), &plan) {
        Ok(tally) if std::env::var_os("PGTABLE_TALLY").is_some() => eprintln!("{tally}"),
        Ok(_) => (),
        Err(what) => panic!("{what}"),
    }
}

#[test]
fn every_geometry_takes_the_same_operations() {
    let geometries = geometries();
    for which in 0..geometries.len() as u64 {
        let mut numbers = judge::driver::Seeded::new(which);
        let ops: Vec<_> = (0..24).map(|_| numbers.op()).collect();
        let case = case(&geometries, which + (which % 7) * geometries.len() as u64);
        if let Err(what) = run(&case, &ops) {
            panic!("{case:#?}: {what}");
        }
    }
}

#[test]
fn what_chance_seldom_meets() {
    if let Err(what) = judge::directed::all() {
        panic!("{what}");
    }
}

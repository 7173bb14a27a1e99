//! All operations, over the whole matrix of formats and features, against the
//! model and a shadow.
//!
//! `PGTABLE_OPS` sets how many operations the bulk run does (default 50,000
//! under `cargo test`); `PGTABLE_SEED` where its seeds begin, to resume;
//! `PGTABLE_TRACE` a file for the events of the last run, for other judges.

mod judge;

use judge::driver::{case, geometries, run, seeded};
use proptest::prelude::*;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

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
    let geometries = geometries();
    let total = number("PGTABLE_OPS", 50_000);
    let first = number("PGTABLE_SEED", 1);
    let length = 50;
    let runs = total.div_ceil(length);
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let geometries = &geometries;
            scope.spawn(move || {
                for seed in (first + thread..first + runs).step_by(threads as usize) {
                    if let Err(what) = seeded(geometries, seed, length as usize) {
                        panic!("{what}");
                    }
                }
            });
        }
    });
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

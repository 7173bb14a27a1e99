//! The model's part in the question whether the tests would notice: what is
//! directed at single faults, then seeded runs until one fails. Built in the copy
//! of the crate that `main.rs` makes.

mod judge;

use judge::directed;
use judge::driver::{Seeded, geometries, run};

/// Runs before a fault is said to survive.
const RUNS: u64 = 2000;

#[test]
fn the_model() {
    if let Err(what) = directed::all() {
        panic!("directed: {what}");
    }
    let all = geometries();
    for seed in 1..=RUNS {
        let mut numbers = Seeded::new(seed);
        let case = numbers.case(&all);
        if let Err(what) = run(&case, &numbers.sequence(40)) {
            panic!("run {seed}: {what}");
        }
    }
}

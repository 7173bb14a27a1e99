//! Operations on two guests' tables and three CPUs, each judged by the model
//! and compared with a shadow: the state machine of `tests/`, steered by
//! coverage. `cargo fuzz run operations -- -max_len=1288 -len_control=0`.

#![no_main]

#[path = "../../tests/judge/mod.rs"]
mod judge;
mod numbers;

use judge::case::{case, geometries};
use judge::driver::run;
use libfuzzer_sys::fuzz_target;
use numbers::numbers;
use pgtable::Stage2Config;
use std::sync::LazyLock;

static GEOMETRIES: LazyLock<Vec<Stage2Config>> = LazyLock::new(geometries);

/// Operations in one input: 8 bytes name the case, 32 each operation.
const MOST: usize = 40;

fuzz_target!(|data: &[u8]| {
    let numbers = numbers(data);
    let Some((&which, rest)) = numbers.split_first() else {
        return;
    };
    let ops: Vec<[u64; 4]> = rest.as_chunks().0.iter().take(MOST).copied().collect();
    if let Err(what) = run(&case(&GEOMETRIES, which), &ops) {
        panic!("{what}");
    }
});

//! Operation sequences under the model's eyes: `cargo fuzz run operations`.

#![no_main]

#[path = "../../tests/judge/mod.rs"]
mod judge;

use judge::driver::{case, geometries, run};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let numbers: Vec<u64> = data
        .chunks_exact(8)
        .map(|bytes| u64::from_le_bytes(bytes.try_into().expect("eight bytes")))
        .collect();
    let Some((&which, rest)) = numbers.split_first() else { return };
    let ops: Vec<[u64; 4]> =
        rest.chunks_exact(4).take(40).map(|op| [op[0], op[1], op[2], op[3]]).collect();
    if let Err(what) = run(&case(&geometries(), which), &ops) {
        panic!("{what}");
    }
});

//! Up to four PEs of a host turn themselves off and each other on, in any order
//! and whatever the firmware refuses: EL2 and the firmware agree in the end on
//! which are on, and each begins where the host last said.
//! `cargo fuzz run cpu_life -- -max_len=512`.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let [count, input @ ..] = data {
        hyp::psci::fake::run(usize::from(count % 4) + 1, input);
    }
});

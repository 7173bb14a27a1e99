//! Any bytes are a bundle or one sentence, in little memory.
#![no_main]

use host_loader::bundle::Bundle;
use host_loader_fuzz::within;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Err(error) = within(24 << 20, || Bundle::parse(bytes)) {
        let sentence = error.to_string();
        assert!(!sentence.contains(char::is_control), "{sentence}");
        assert!(sentence.len() < 2000, "{sentence}");
    }
});

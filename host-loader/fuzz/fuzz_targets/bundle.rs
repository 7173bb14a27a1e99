//! Any bytes are a bundle or one sentence.
#![no_main]

use host_loader::bundle::Bundle;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Err(sentence) = Bundle::parse(bytes) {
        assert!(!sentence.contains('\n'), "{sentence}");
    }
});

//! Any text is guests or one sentence that begins with file and line.
#![no_main]

use host_loader::bundle::config;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    match config::parse(bytes) {
        Ok(guests) => {
            assert!(!guests.is_empty());
            assert!(guests.iter().filter(|g| g.console).count() <= 1);
        }
        Err(sentence) => assert!(sentence.starts_with("guests.toml:"), "{sentence}"),
    }
});

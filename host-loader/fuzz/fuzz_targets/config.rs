//! Any text is guests or one sentence that begins with file and line, in
//! little memory.
#![no_main]

use host_loader::bundle::config;
use host_loader_fuzz::within;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    match within(320 * bytes.len() + (256 << 10), || config::parse(bytes)) {
        Ok(guests) => {
            assert!(!guests.is_empty());
            assert!(guests.iter().filter(|g| g.console).count() <= 1);
        }
        Err(sentence) => {
            assert!(sentence.starts_with("guests.toml:"), "{sentence}");
            assert!(!sentence.contains(char::is_control), "{sentence}");
            assert!(sentence.len() < 2000, "{sentence}");
        }
    }
});

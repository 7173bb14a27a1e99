//! Any text is guests, which are the same written and read again, or one
//! sentence that begins with file, line and column, in little memory.
#![no_main]

use guest_config::{FILE, parse};
use host_loader_fuzz::within;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    match within(guest_config::heap_of(bytes.len()), || parse(bytes)) {
        Ok(guests) => {
            assert!(!guests.is_empty());
            let lines = 1 + bytes.iter().filter(|b| **b == b'\n').count();
            for located in &guests {
                assert!(
                    located
                        .places()
                        .all(|(_, place)| place.line as usize <= lines)
                );
            }
            // What it says can be said again.
            let read: Vec<_> = guests.into_iter().map(|located| located.guest).collect();
            let text = guest_config::write(&read).expect("writes");
            let again = parse(text.as_bytes()).map_or_else(|_| Vec::new(), |guests| guests);
            if text.len() <= guest_config::MAX_LENGTH {
                assert!(again.into_iter().map(|located| located.guest).eq(read));
            }
        }
        Err(error) => {
            let sentence = format!("{FILE}:{error}");
            assert!(!sentence.contains(char::is_control), "{sentence}");
            assert!(sentence.len() < 2000, "{sentence}");
        }
    }
});

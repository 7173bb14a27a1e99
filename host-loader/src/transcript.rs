//! What a guest writes to a UART that has no console behind it: text for the log,
//! line by line.
//!
//! A line is logged when it ends, or when it is as long as a line of the log may
//! be. Bytes that are no UTF-8 become replacement characters; what is cut is cut
//! between characters.

use alloc::string::String;
use alloc::vec::Vec;
use rmi::vendor::LOG_LINE_MAX;

/// A line is cut here; the guest's name goes before it.
const LONGEST: usize = LOG_LINE_MAX as usize - 48;

/// A line in the making.
#[derive(Debug, Default)]
pub struct Transcript {
    line: Vec<u8>,
}

impl Transcript {
    /// An empty line.
    pub const fn new() -> Self {
        Self { line: Vec::new() }
    }

    /// Takes a byte: the text that can be logged now, if any.
    pub fn push(&mut self, byte: u8) -> Option<String> {
        match byte {
            b'\n' => return self.flush(),
            // It comes before a line's end, and ends none itself.
            b'\r' => return None,
            _ => self.line.push(byte),
        }
        if self.line.len() < LONGEST {
            return None;
        }
        // A character that is under way begins the next line.
        let rest = self.line.split_off(self.line.len() - self.under_way());
        let text = self.flush();
        self.line = rest;
        text
    }

    /// Bytes at the end that are the beginning of a character.
    fn under_way(&self) -> usize {
        let end = self.line.len();
        let begins = |n: &usize| self.line[end - n] & 0xc0 != 0x80;
        (1..4)
            .find(begins)
            .filter(|n| {
                core::str::from_utf8(&self.line[end - n..])
                    .is_err_and(|error| error.error_len().is_none())
            })
            .unwrap_or(0)
    }

    /// The rest of the text, when no more will come.
    pub fn flush(&mut self) -> Option<String> {
        if self.line.is_empty() {
            return None;
        }
        let text = String::from_utf8_lossy(&self.line).into_owned();
        self.line.clear();
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn told(bytes: &[u8]) -> Vec<String> {
        let mut transcript = Transcript::new();
        let mut lines: Vec<String> = bytes.iter().filter_map(|&b| transcript.push(b)).collect();
        lines.extend(transcript.flush());
        lines
    }

    #[test]
    fn a_line_is_told_at_its_end_and_a_part_of_one_at_the_guests() {
        assert_eq!(told(b"one\r\n\n\rtwo\nthr"), ["one", "two", "thr"]);
    }

    #[test]
    fn a_long_line_is_cut_between_characters() {
        for character in ["x", "\u{e9}", "\u{65e5}", "\u{1f642}"] {
            for before in 0..4 {
                let text = "-".repeat(before) + &character.repeat(1000);
                let lines = told(text.as_bytes());
                assert!(lines.len() > 3);
                assert!(lines.iter().all(|line| line.len() <= LONGEST));
                assert_eq!(lines.concat(), text);
            }
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_told_and_cut_all_the_same() {
        let lines = told(&[0xff; 1000]);
        assert_eq!(lines.concat(), "\u{fffd}".repeat(1000));
        // What could only become a character if it went on.
        assert_eq!(told(b"a\xf0\x9f\x99"), ["a\u{fffd}"]);
        let continued = [0x80; LONGEST];
        assert_eq!(told(&continued), ["\u{fffd}".repeat(LONGEST)]);
    }

    proptest! {
        #[test]
        fn text_arrives_whole(text in "[^\r\n]{0,900}") {
            prop_assert_eq!(told(text.as_bytes()).concat(), text);
        }

        #[test]
        fn no_bytes_keep_it_from_telling(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            for line in told(&bytes) {
                prop_assert!(!line.is_empty() && !line.contains(['\n', '\r']));
                prop_assert!(line.len() <= 3 * LONGEST);
            }
        }
    }
}

//! Text in the making, on the stack of who makes it: no lock is held meanwhile.

use core::fmt::{self, Write};

use log::Level;

/// What every line begins with: time, who says it, how grave it is.
///
/// # Errors
/// When there is no room.
pub fn head(to: &mut impl Write, micros: u64, who: &str, level: Level) -> fmt::Result {
    let (s, us) = (micros / 1_000_000, micros % 1_000_000);
    write!(to, "[{s:5}.{us:06}] {who} {level:5} ")
}

/// Longest line of the log, its end included: the host's longest and what goes
/// before it.
pub const LONGEST: usize = 384;

/// What stands at the end of a line that was longer.
const CUT: &[u8] = b"...";

/// At most `N` bytes of text; each `\n` becomes `\r\n`.
#[derive(Debug)]
pub struct Text<const N: usize> {
    bytes: [u8; N],
    len: usize,
    full: bool,
}

impl<const N: usize> Text<N> {
    /// Nothing.
    pub const fn new() -> Self {
        Self {
            bytes: [0; N],
            len: 0,
            full: false,
        }
    }

    /// What there is.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Ends the line. If it was too long, it says so and ends all the same.
    pub fn end_line(&mut self) {
        if self.full || self.len + 2 > N {
            self.full = true;
            self.len = self.len.min(N - CUT.len() - 2);
            // Not inside a character.
            while self.len > 0 && self.bytes[self.len] & 0xc0 == 0x80 {
                self.len -= 1;
            }
            self.push(CUT);
        }
        self.push(b"\r\n");
    }

    fn push(&mut self, bytes: &[u8]) {
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }
}

impl<const N: usize> Default for Text<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> Write for Text<N> {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for c in s.chars() {
            let mut encoded = [0; 4];
            let encoded = match c {
                '\n' => &b"\r\n"[..],
                c => c.encode_utf8(&mut encoded).as_bytes(),
            };
            if self.full || self.len + encoded.len() > N {
                self.full = true;
                return Err(fmt::Error);
            }
            self.push(encoded);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::prelude::v1::*;

    #[test]
    fn a_long_line_ends_all_the_same() {
        for n in 0..40 {
            let mut text = Text::<32>::new();
            let whole = "é".repeat(n);
            let fits = text.write_str(&whole).is_ok();
            assert_eq!(fits, 2 * n <= 32);
            text.end_line();
            let line = std::str::from_utf8(text.as_bytes()).expect("whole characters");
            let body = line.strip_suffix("\r\n").expect("it ends");
            if 2 * n <= 30 {
                assert_eq!(body, whole);
            } else {
                assert!(whole.starts_with(body.strip_suffix("...").expect("it is cut")));
            }
        }
    }
}

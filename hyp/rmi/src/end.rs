//! The machine's end, as the log reports it: its last line.
//!
//! ```text
//! end: status 0
//! end: 0123456789abcdef0123456789abcdef status 0
//! end: 0123456789abcdef0123456789abcdef panic
//! ```
//!
//! Whoever starts the machine and must know how it ended passes a token in its
//! boot arguments, `undercroft.end=TOKEN`. EL2 and its host print it; no guest gets
//! it, so none can write such a line, whatever it prints and wherever.

use core::fmt;

/// The boot argument's name.
pub const BOOT_ARGUMENT: &str = "undercroft.end";

/// 128 bits that no guest knows, as 32 hexadecimal digits in lower case.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Token([u8; Self::LEN]);

impl Token {
    /// Bytes of its text.
    pub const LEN: usize = 32;

    /// The token of these bits.
    pub const fn of_bits(bits: u128) -> Self {
        let mut text = [0; Self::LEN];
        let mut n = 0;
        while n < Self::LEN {
            let digit = (bits >> (124 - 4 * n) & 0xf) as u8;
            text[n] = digit + if digit < 10 { b'0' } else { b'a' - 10 };
            n += 1;
        }
        Self(text)
    }

    /// The token that this text is.
    pub fn parse(text: &str) -> Option<Self> {
        let digit = |b: &u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
        let bytes: [u8; Self::LEN] = text.as_bytes().try_into().ok()?;
        bytes.iter().all(digit).then_some(Self(bytes))
    }

    /// The token that the machine's boot arguments hold; the last one counts.
    pub fn of_boot_arguments(arguments: &str) -> Option<Self> {
        arguments
            .split_ascii_whitespace()
            .filter_map(|word| word.strip_prefix(BOOT_ARGUMENT)?.strip_prefix('='))
            .next_back()
            .and_then(Self::parse)
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        // Digits are ASCII.
        core::str::from_utf8(&self.0).unwrap_or("")
    }
}

impl fmt::Debug for Token {
    /// Keeps it out of reports.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

/// How the machine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// With a status: 0 when every guest powered itself off, 1 when one was
    /// stopped, 2 when what the boot loader passed does not do.
    Status(u64),
    /// EL2 or its host failed.
    Panic,
}

/// The last line's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// Who started the machine knows it.
    pub token: Option<Token>,
    /// How it ended.
    pub how: How,
}

impl End {
    /// Reads the text of a line that ends with it. With a token that is wherever
    /// the line has it: a guest may have left something before it that was no
    /// whole line. Without one it is the whole text.
    pub fn parse(text: &str, token: Option<Token>) -> Option<Self> {
        let words = match &token {
            None => text.strip_prefix("end: ")?,
            Some(token) => {
                let (before, after) = text.rsplit_once(token.as_str())?;
                before.strip_suffix("end: ").and(after.strip_prefix(' '))?
            }
        };
        let how = match words.strip_prefix("status ") {
            Some(status) if status.bytes().all(|b| b.is_ascii_digit()) => {
                How::Status(status.parse().ok()?)
            }
            None if words == "panic" => How::Panic,
            _ => return None,
        };
        Some(Self { token, how })
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("end: ")?;
        if let Some(token) = &self.token {
            write!(f, "{} ", token.as_str())?;
        }
        match self.how {
            How::Status(status) => write!(f, "status {status}"),
            How::Panic => f.write_str("panic"),
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::format;
    use std::string::{String, ToString};

    const TOKEN: Token = Token::of_bits(0x0123_4567_89ab_cdef_0011_2233_4455_6677);

    #[test]
    fn what_is_said_is_what_is_read() {
        for token in [None, Some(TOKEN)] {
            for how in [How::Status(0), How::Status(u64::MAX), How::Panic] {
                let end = End { token, how };
                assert_eq!(End::parse(&end.to_string(), token), Some(end));
            }
        }
        let text = "end: 0123456789abcdef0011223344556677 status 2";
        let end = End {
            token: Some(TOKEN),
            how: How::Status(2),
        };
        assert_eq!(end.to_string(), text);
        assert_eq!(
            End::parse(&format!("$ x[ 1.0] host {text}"), Some(TOKEN)),
            Some(end)
        );
    }

    #[test]
    fn an_end_without_the_token_is_none() {
        let other = "end: 0123456789abcdef0011223344556678 status 0";
        let token = TOKEN.as_str();
        for text in [
            "end: status 0".to_string(),
            "end: panic".to_string(),
            other.to_string(),
            format!("end: {token} status 0 "),
            format!("end: {token} status +0"),
            format!("end: {token} status "),
            format!("end: {token} panics"),
            format!("end:{token} status 0"),
            format!("end: {token}status 0"),
            format!("{token} status 0"),
        ] {
            assert_eq!(End::parse(&text, Some(TOKEN)), None, "{text}");
        }
        assert_eq!(End::parse("host end: status 0", None), None);
    }

    #[test]
    fn the_last_whole_token_of_the_boot_arguments_counts() {
        let token = TOKEN.as_str();
        let read = Token::of_boot_arguments;
        assert_eq!(read(&format!("a undercroft.end={token} b")), Some(TOKEN));
        let first = "undercroft.end=00000000000000000000000000000000";
        assert_eq!(
            read(&format!("{first} undercroft.end={token}")),
            Some(TOKEN)
        );
        for none in [
            String::new(),
            format!("undercroft.end={}", &token[1..]),
            format!("undercroft.end={token}0"),
            format!("undercroft.end={}", token.to_uppercase()),
            format!("xundercroft.end={token}"),
            format!("undercroft.ending={token}"),
        ] {
            assert_eq!(read(&none), None, "{none}");
        }
        assert_eq!(format!("{:?}", Some(TOKEN)), "Some(Token)");
    }
}

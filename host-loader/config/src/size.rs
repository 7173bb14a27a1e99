//! Amounts of memory as people write them: `512M`, `2GiB`, `65536K`.

use core::fmt;

/// Reads a size: decimal digits, then K, M, G or T (of 1024; also `k` and `KiB`
/// and so on), or nothing for bytes.
pub fn parse(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match &text[digits.len()..] {
        "" => 0,
        "K" | "k" | "KiB" => 10,
        "M" | "m" | "MiB" => 20,
        "G" | "g" | "GiB" => 30,
        "T" | "t" | "TiB" => 40,
        _ => return None,
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// A number of bytes, written as [`parse`] reads it, in the largest unit of which
/// it is a whole number, G at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown(pub u64);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(30, 'G'), (20, 'M'), (10, 'K')] {
            if self.0 != 0 && self.0.is_multiple_of(1 << shift) {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::string::ToString;

    #[test]
    fn sizes() {
        for (text, bytes, shown) in [
            ("512M", 512 << 20, "512M"),
            ("512MiB", 512 << 20, "512M"),
            ("2GiB", 2 << 30, "2G"),
            ("1024m", 1 << 30, "1G"),
            ("65536K", 64 << 20, "64M"),
            ("3k", 3 << 10, "3K"),
            ("1T", 1 << 40, "1024G"),
            ("2t", 2 << 40, "2048G"),
            ("77", 77, "77"),
            ("0M", 0, "0"),
        ] {
            assert_eq!(parse(text), Some(bytes), "{text}");
            assert_eq!(Shown(bytes).to_string(), shown);
        }
        for bad in [
            "",
            "M",
            "1.5G",
            "-1",
            "1MM",
            "+1",
            "1 M",
            "1Mi",
            "99999999999T",
            "é",
            "1é",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read(bytes in prop_oneof![any::<u64>(), (0u64..64).prop_map(|n| 1 << n)]) {
            prop_assert_eq!(parse(&Shown(bytes).to_string()), Some(bytes));
        }

        #[test]
        fn any_text_is_read_or_not(text in ".{0,8}") {
            let _ = parse(&text);
        }
    }
}

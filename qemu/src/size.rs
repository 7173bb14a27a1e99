//! Amounts of memory as options have them: `512M`, `2G`, `65536K`.

use std::fmt;
use std::str::FromStr;

use guest_config::size;

/// A number of bytes, a whole number of KiB, more than none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(u64);

impl Size {
    /// The size of `mebibytes` MiB.
    pub const fn mib(mebibytes: u64) -> Self {
        Self(mebibytes << 20)
    }

    /// A size in bytes, which are whole KiB and more than none.
    pub(crate) const fn of_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The size in bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// The size in MiB, rounded up.
    pub const fn as_mib(self) -> u64 {
        self.0.div_ceil(1 << 20)
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // A number alone may be meant as bytes or as MiB, as QEMU has it.
        let unit = text.ends_with(|c: char| c.is_ascii_alphabetic());
        let bytes = size::parse(text).filter(|_| unit).ok_or_else(|| {
            format!(
                "`{text}` is not an amount of memory: write a number and K, M, G or T, such \
                 as \"512M\""
            )
        })?;
        if bytes == 0 {
            return Err(format!("`{text}` is no memory at all"));
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        size::Shown(self.0).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_shown() {
        for (text, bytes, shown) in [
            ("512M", 512 << 20, "512M"),
            ("1024m", 1 << 30, "1G"),
            ("65536K", 64 << 20, "64M"),
            ("3k", 3 << 10, "3K"),
            ("512MiB", 512 << 20, "512M"),
            ("1T", 1 << 40, "1024G"),
        ] {
            let size: Size = text.parse().expect(text);
            assert_eq!(size.bytes(), bytes);
            assert_eq!(size.to_string(), shown);
        }
    }

    #[test]
    fn what_is_not_a_size_is_told() {
        for text in [
            "",
            "M",
            "512",
            "-1M",
            "1.5G",
            "99999999999999999G",
            "0M",
            "+1M",
        ] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }
}

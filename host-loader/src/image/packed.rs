//! How a file is packed.

use super::{gzip, zstd};

/// A file, and how it is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packed<'a> {
    /// It is not.
    Not(&'a [u8]),
    /// By gzip.
    Gzip(&'a [u8]),
    /// By zstd.
    Zstd(&'a [u8]),
}

impl<'a> Packed<'a> {
    /// How else a file is packed that is no raw binary either, in words.
    pub fn otherwise(file: &[u8]) -> Option<&'static str> {
        let bzip2 = file.starts_with(b"BZh") && file.get(4..10) == Some(b"1AY&SY");
        if bzip2 {
            return Some("packed by bzip2: unpack it, or pack it by gzip or zstd");
        }
        let of = |magic: &[u8]| file.starts_with(magic);
        if of(b"\xfd7zXZ\0") {
            Some("packed by xz: unpack it, or pack it by gzip or zstd")
        } else if of(b"\x04\x22\x4d\x18") || of(b"\x02\x21\x4c\x18") {
            Some("packed by LZ4: unpack it, or pack it by gzip or zstd")
        } else {
            None
        }
    }

    /// Goes by the magic; a file without one is not packed.
    pub fn detect(file: &'a [u8]) -> Self {
        if gzip::is(file) {
            Self::Gzip(file)
        } else if zstd::is(file) {
            Self::Zstd(file)
        } else {
            Self::Not(file)
        }
    }
}

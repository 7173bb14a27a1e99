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
        } else if of(b"\x89LZO\0\r\n\x1a\n") {
            Some("packed by LZO: unpack it, or pack it by gzip or zstd")
        } else if is_lzma(file) {
            Some("packed by LZMA: unpack it, or pack it by gzip or zstd")
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

/// Whether a file begins as `lzma` writes one: its usual properties, a dictionary of a
/// power of two, and a size that is unknown or less than 2^40.
fn is_lzma(file: &[u8]) -> bool {
    let Some([0x5d, d0, d1, d2, d3, size @ ..]) = file.first_chunk::<13>() else {
        return false;
    };
    let dictionary = u32::from_le_bytes([*d0, *d1, *d2, *d3]);
    let size = u64::from_le_bytes(*size);
    dictionary.is_power_of_two() && (size == u64::MAX || size < 1 << 40)
}

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

//! What stands behind an image's flat binary: a payload (the host, behind
//! hyp's) and a table of symbols. The runner writes it, hyp and host-loader
//! read it; both sides are here.
//!
//! | offset | field |
//! |---|---|
//! | 0 | magic `UCAPPEND` |
//! | 8 | version, u32: 1 |
//! | 12 | length of this header, u32: 64 |
//! | 16, 24 | offset and length of the payload, 0 for none |
//! | 32, 40 | offset and length of the [symbol table](Symbols), 0 for none |
//! | 48 | length of the whole appendix |
//! | 56 | 0 |
//!
//! Little-endian; offsets count from the header's start. The same block stands
//! behind the host's own image, with its symbols and no payload.
#![no_std]
#![forbid(unsafe_code)]

mod symbols;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub use symbols::{Record, SYMBOLS_MAGIC, SymbolHeader, Symbols};

/// How an appendix begins.
pub const MAGIC: [u8; 8] = *b"UCAPPEND";
const VERSION: u32 = 1;

/// Bytes behind the host's image and its appendix, where its tables stand: the size in
/// its header has them, the file has not, and EL2 zeroes them.
pub const TABLES: u64 = 3 << 19;

/// Offset and length of a part, bytes from the header's start.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Part {
    offset: U64,
    len: U64,
}

impl Part {
    /// A part of `len` bytes at `offset`.
    pub const fn new(offset: u64, len: u64) -> Self {
        Self {
            offset: U64::new(offset),
            len: U64::new(len),
        }
    }

    /// Bytes.
    pub const fn size(&self) -> u64 {
        self.len.get()
    }

    fn of<'a>(&self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        let offset = usize::try_from(self.offset.get()).ok()?;
        bytes.get(offset..offset.checked_add(usize::try_from(self.size()).ok()?)?)
    }
}

/// The appendix's header.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Header {
    magic: [u8; 8],
    version: U32,
    header_len: U32,
    payload: Part,
    symbols: Part,
    total_len: U64,
    reserved: U64,
}

impl Header {
    /// Bytes of it.
    pub const LEN: usize = size_of::<Self>();

    /// The header of an appendix of `total_len` bytes.
    pub const fn new(payload: Part, symbols: Part, total_len: u64) -> Self {
        Self {
            magic: MAGIC,
            version: U32::new(VERSION),
            header_len: U32::new(Self::LEN as u32),
            payload,
            symbols,
            total_len: U64::new(total_len),
            reserved: U64::ZERO,
        }
    }

    /// Reads the header at the start of `bytes`; `None` when there is none.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let (header, _) = Self::read_from_prefix(bytes).ok()?;
        (header.magic == MAGIC && header.version.get() == VERSION).then_some(header)
    }

    /// Where the payload is.
    pub const fn payload(&self) -> Part {
        self.payload
    }

    /// Bytes of the appendix, header included.
    pub const fn total_len(&self) -> u64 {
        self.total_len.get()
    }
}

/// The parts of an appendix.
#[derive(Clone, Copy, Debug)]
pub struct Appendix<'a> {
    /// Behind hyp: the host's image, an arm64 Image.
    pub payload: &'a [u8],
    /// Names for the image's functions.
    pub symbols: Symbols<'a>,
}

impl<'a> Appendix<'a> {
    /// Splits the appendix that `bytes` begins with; `None` when there is
    /// none, or a part lies outside. Damaged symbols name nothing.
    pub fn split(bytes: &'a [u8]) -> Option<Self> {
        let header = Header::read(bytes)?;
        Some(Self {
            payload: header.payload.of(bytes)?,
            symbols: Symbols::new(header.symbols.of(bytes)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(payload: Part) -> [u8; 128] {
        let mut bytes = [0u8; 128];
        let header = Header::new(payload, Part::default(), 128);
        bytes[..Header::LEN].copy_from_slice(header.as_bytes());
        bytes
    }

    #[test]
    fn the_layout_is_as_documented() {
        let header = Header::new(Part::new(64, 32), Part::new(96, 7), 128);
        let bytes = header.as_bytes();
        assert_eq!(&bytes[..16], b"UCAPPEND\x01\0\0\0\x40\0\0\0");
        let word = |at: usize| bytes[at];
        assert_eq!([16, 24, 32, 40, 48, 56].map(word), [64, 32, 96, 7, 128, 0]);
        assert_eq!(bytes.len(), 64);
    }

    #[test]
    fn parts_are_found_and_bad_ones_refused() {
        let good = block(Part::new(64, 32));
        let appendix = Appendix::split(&good).unwrap();
        assert_eq!(appendix.payload.len(), 32);
        assert_eq!(appendix.symbols.find(0), None);
        assert_eq!(Header::read(&good).unwrap().total_len(), 128);
        assert!(Appendix::split(&block(Part::new(64, 65))).is_none());
        assert!(Appendix::split(&block(Part::new(u64::MAX, 2))).is_none());
        assert!(Header::read(&[0; 64]).is_none());
        assert!(Header::read(b"UCAPPEND").is_none());
        for another in [0, 8] {
            let mut bytes = good;
            bytes[another] ^= 1;
            assert!(Header::read(&bytes).is_none(), "{another}");
        }
    }
}

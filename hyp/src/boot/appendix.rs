//! What the runner put behind the image: the host and the symbol table.
//!
//! | offset | field |
//! |---|---|
//! | 0 | magic `UCAPPEND` |
//! | 8 | version, u32: 1 |
//! | 12 | length of this header, u32: 64 |
//! | 16, 24 | offset and length of the host's image |
//! | 32, 40 | offset and length of the symbol table, 0 for none |
//! | 48 | length of the whole appendix |
//! | 56 | 0 |
//!
//! Little-endian; offsets count from the header's start. The same block stands
//! behind the host's own image, with its symbols and no host.

use zerocopy::{FromBytes, Immutable, KnownLayout};

/// The appendix's header.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    magic: [u8; 8],
    version: u32,
    header_len: u32,
    host_off: u64,
    host_len: u64,
    sym_off: u64,
    sym_len: u64,
    /// Bytes of the appendix, header included.
    pub total_len: u64,
    _reserved: u64,
}

/// The parts of an appendix.
#[derive(Clone, Copy, Debug)]
pub struct Appendix<'a> {
    /// The host's image, an arm64 Image.
    pub host: &'a [u8],
    /// The symbol table of [`crate::exception::symbols`].
    pub symbols: &'a [u8],
}

impl Header {
    /// Reads the header at the start of `bytes`; `None` when there is none.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let (header, _) = Self::read_from_prefix(bytes).ok()?;
        (&header.magic == b"UCAPPEND" && header.version == 1).then_some(header)
    }
}

impl<'a> Appendix<'a> {
    /// Splits the appendix that `bytes` is, all `total_len` of it.
    pub fn split(bytes: &'a [u8]) -> Option<Self> {
        let header = Header::read(bytes)?;
        let part = |off: u64, len: u64| {
            let off = usize::try_from(off).ok()?;
            bytes.get(off..off.checked_add(usize::try_from(len).ok()?)?)
        };
        Some(Self {
            host: part(header.host_off, header.host_len)?,
            symbols: part(header.sym_off, header.sym_len)?,
        })
    }
}

/// The fields of an arm64 Image header that placing it needs.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ImageHeader {
    _code: [u32; 2],
    text_offset: u64,
    /// Bytes it needs, bss included.
    pub image_size: u64,
    _flags: u64,
    _reserved: [u64; 3],
    magic: [u8; 4],
    _pe: u32,
}

impl ImageHeader {
    /// Reads the header of an arm64 Image that goes to a multiple of 2 MiB.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let (header, _) = Self::read_from_prefix(bytes).ok()?;
        (&header.magic == b"ARM\x64" && header.text_offset == 0).then_some(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(host_off: u64, host_len: u64, len: usize) -> [u8; 128] {
        let mut b = [0u8; 128];
        b[..8].copy_from_slice(b"UCAPPEND");
        b[8] = 1;
        b[12] = 64;
        b[16..24].copy_from_slice(&host_off.to_le_bytes());
        b[24..32].copy_from_slice(&host_len.to_le_bytes());
        b[48..56].copy_from_slice(&(len as u64).to_le_bytes());
        b
    }

    #[test]
    fn parts_are_found_and_bad_ones_refused() {
        let b = block(64, 32, 128);
        assert_eq!(Appendix::split(&b).unwrap().host.len(), 32);
        assert!(Appendix::split(&b).unwrap().symbols.is_empty());
        assert!(Appendix::split(&block(64, 65, 128)).is_none());
        assert!(Appendix::split(&block(u64::MAX, 2, 128)).is_none());
        assert!(Header::read(&[0; 64]).is_none());
        assert!(Header::read(b"UCAPPEND").is_none());
    }
}

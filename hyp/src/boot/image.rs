//! The header of the host's image: an arm64 Image, as Linux's
//! `Documentation/arch/arm64/booting.rst` describes it.

use zerocopy::{FromBytes, Immutable, KnownLayout};

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

    #[test]
    fn an_image_is_known_by_its_magic_and_goes_to_2_mib() {
        let mut bytes = [0u8; 64];
        bytes[16] = 0x20;
        assert!(ImageHeader::read(&bytes).is_none());
        bytes[56..60].copy_from_slice(b"ARM\x64");
        assert_eq!(ImageHeader::read(&bytes).unwrap().image_size, 0x20);
        bytes[9] = 8;
        assert!(ImageHeader::read(&bytes).is_none());
        assert!(ImageHeader::read(&bytes[..63]).is_none());
    }
}

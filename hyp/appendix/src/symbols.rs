//! Names for addresses of an image.
//!
//! A header (magic `UCSYMTAB`, u32 version 1, u32 count), then `count` records
//! {u64 address, u32 size, u32 name offset} sorted by address, then the names,
//! UTF-8, each ended by a NUL. Little-endian. Addresses are the linker's:
//! offsets from the image's start.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// How a symbol table begins.
pub const SYMBOLS_MAGIC: [u8; 8] = *b"UCSYMTAB";
const VERSION: u32 = 1;

/// The table's header.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SymbolHeader {
    magic: [u8; 8],
    version: U32,
    count: U32,
}

impl SymbolHeader {
    /// The header of a table of `count` records.
    pub const fn new(count: u32) -> Self {
        Self {
            magic: SYMBOLS_MAGIC,
            version: U32::new(VERSION),
            count: U32::new(count),
        }
    }
}

/// A function: where it begins, how long it is, where its name stands.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Record {
    address: U64,
    size: U32,
    name: U32,
}

impl Record {
    /// A function of `size` bytes at `address`, 0 for "up to the next", whose
    /// name begins `name` bytes into the names.
    pub const fn new(address: u64, size: u32, name: u32) -> Self {
        Self {
            address: U64::new(address),
            size: U32::new(size),
            name: U32::new(name),
        }
    }
}

/// A symbol table, by reference.
#[derive(Clone, Copy, Debug)]
pub struct Symbols<'a> {
    records: &'a [Record],
    names: &'a [u8],
}

impl<'a> Symbols<'a> {
    /// No names.
    pub const NONE: Self = Self {
        records: &[],
        names: &[],
    };

    /// Reads a table; one that is damaged has no names.
    pub fn new(table: &'a [u8]) -> Self {
        Self::parse(table).unwrap_or(Self::NONE)
    }

    fn parse(table: &'a [u8]) -> Option<Self> {
        let (header, rest) = SymbolHeader::ref_from_prefix(table).ok()?;
        if header.magic != SYMBOLS_MAGIC || header.version.get() != VERSION {
            return None;
        }
        let count = header.count.get() as usize;
        let (records, names) = <[Record]>::ref_from_prefix_with_elems(rest, count).ok()?;
        Some(Self { records, names })
    }

    /// The function that covers this offset into the image, and how far in
    /// the offset is.
    pub fn find(&self, offset: u64) -> Option<(&'a str, u64)> {
        let next = self.records.partition_point(|r| r.address.get() <= offset);
        let record = self.records.get(next.checked_sub(1)?)?;
        // In a damaged table they may be out of order.
        let inside = offset.checked_sub(record.address.get())?;
        let size = record.size.get();
        if size != 0 && inside >= u64::from(size) {
            return None;
        }
        let name = self.names.get(record.name.get() as usize..)?;
        let end = name.iter().position(|&b| b == 0)?;
        Some((core::str::from_utf8(&name[..end]).ok()?, inside))
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    fn table() -> Vec<u8> {
        let mut table = SymbolHeader::new(3).as_bytes().to_vec();
        for record in [
            Record::new(0x100, 0x10, 0),
            Record::new(0x200, 0x20, 4),
            Record::new(0x300, 0, 8),
        ] {
            table.extend(record.as_bytes());
        }
        table.extend(b"one\0two\0label\0");
        table
    }

    #[test]
    fn addresses_find_their_function() {
        let table = table();
        assert_eq!(&table[..16], b"UCSYMTAB\x01\0\0\0\x03\0\0\0");
        let symbols = Symbols::new(&table);
        assert_eq!(symbols.find(0xff), None);
        assert_eq!(symbols.find(0x100), Some(("one", 0)));
        assert_eq!(symbols.find(0x10f), Some(("one", 15)));
        assert_eq!(symbols.find(0x110), None);
        assert_eq!(symbols.find(0x21f), Some(("two", 31)));
        assert_eq!(symbols.find(0x5000), Some(("label", 0x4d00)));
    }

    #[test]
    fn a_table_cut_short_names_nothing() {
        let table = table();
        for cut in 0..16 + 3 * size_of::<Record>() {
            assert_eq!(Symbols::new(&table[..cut]).find(0x100), None, "{cut}");
        }
    }

    #[test]
    fn a_table_of_another_kind_or_version_names_nothing() {
        for another in [0, 8] {
            let mut table = table();
            table[another] ^= 2;
            assert_eq!(Symbols::new(&table).find(0x100), None, "{another}");
        }
    }

    proptest! {
        #[test]
        fn damage_is_never_more_than_a_missing_name(
            at in 0usize..80, byte: u8, address: u64, cut in 0usize..80,
        ) {
            let mut bytes = table();
            let at = at % bytes.len();
            bytes[at] = byte;
            bytes.truncate(bytes.len() - cut % bytes.len());
            let _ = Symbols::new(&bytes).find(address);
        }
    }
}

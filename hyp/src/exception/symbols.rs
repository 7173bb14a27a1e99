//! Names for addresses of the image, from the table behind it.
//!
//! `UCSYMTAB`, u32 version 1, u32 count, then `count` records {u64 address, u32
//! size, u32 name offset} sorted by address, then NUL-terminated names.
//! Addresses are the linker's: offsets from the image's start.

/// A symbol table.
#[derive(Clone, Copy, Debug)]
pub struct Symbols<'a> {
    records: &'a [u8],
    names: &'a [u8],
}

const RECORD: usize = 16;

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
        let body = table.strip_prefix(b"UCSYMTAB")?;
        let word = |at: usize| Some(u32::from_le_bytes(body.get(at..at + 4)?.try_into().ok()?));
        if word(0)? != 1 {
            return None;
        }
        let records = (word(4)? as usize).checked_mul(RECORD)?;
        let rest = body.get(8..)?;
        Some(Self {
            records: rest.get(..records)?,
            names: rest.get(records..)?,
        })
    }

    fn record(&self, n: usize) -> (u64, u32, u32) {
        let r = &self.records[n * RECORD..][..RECORD];
        let word = |at: usize| u32::from_le_bytes([r[at], r[at + 1], r[at + 2], r[at + 3]]);
        (
            u64::from(word(0)) | u64::from(word(4)) << 32,
            word(8),
            word(12),
        )
    }

    /// The function that the image offset is in, and how far in.
    pub fn find(&self, offset: u64) -> Option<(&'a str, u64)> {
        let (mut low, mut high) = (0, self.records.len() / RECORD);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.record(middle).0 <= offset {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let (address, size, name) = self.record(low.checked_sub(1)?);
        let inside = offset - address;
        if size != 0 && inside >= u64::from(size) {
            return None;
        }
        let name = self.names.get(name as usize..)?;
        let end = name.iter().position(|&b| b == 0)?;
        Some((core::str::from_utf8(&name[..end]).ok()?, inside))
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    fn table() -> Vec<u8> {
        let mut t = b"UCSYMTAB".to_vec();
        t.extend(1u32.to_le_bytes());
        t.extend(2u32.to_le_bytes());
        for (address, size, name) in [(0x100u64, 0x10u32, 0u32), (0x200, 0x20, 4)] {
            t.extend(address.to_le_bytes());
            t.extend(size.to_le_bytes());
            t.extend(name.to_le_bytes());
        }
        t.extend(b"one\0two\0");
        t
    }

    #[test]
    fn addresses_find_their_function() {
        let t = table();
        let s = Symbols::new(&t);
        assert_eq!(s.find(0x100), Some(("one", 0)));
        assert_eq!(s.find(0x10f), Some(("one", 15)));
        assert_eq!(s.find(0x110), None);
        assert_eq!(s.find(0x21f), Some(("two", 31)));
        assert_eq!(s.find(0xff), None);
        assert_eq!(s.find(u64::MAX), None);
    }

    #[test]
    fn damaged_tables_name_nothing() {
        let t = table();
        for cut in 0..t.len() - 1 {
            let s = Symbols::new(&t[..cut]);
            let _ = s.find(0x210);
        }
        assert_eq!(Symbols::new(&t[..20]).find(0x100), None);
    }
}

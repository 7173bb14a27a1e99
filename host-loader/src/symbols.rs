//! Names for addresses: the symbol table that the runner appends to the image.
//!
//! Behind the image stands a header `UCAPPEND` (64 bytes: magic, u32 version 1,
//! u32 header length, then u64 offsets and lengths: host, symbols, total) whose
//! symbol part is a blob `UCSYMTAB` (u32 version 1, u32 count, records of u64
//! address, u32 size, u32 offset of the name, sorted; then the names, each
//! ended by a zero byte). All little-endian. Whatever is malformed is no name.

use spin::Once;

static TABLE: Once<SymbolTable<'static>> = Once::new();

/// A symbol table, by reference.
#[derive(Clone, Copy, Debug)]
pub struct SymbolTable<'a> {
    records: &'a [u8],
    names: &'a [u8],
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(
        bytes.get(at..at.checked_add(8)?)?.try_into().ok()?,
    ))
}

fn half(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(
        bytes.get(at..at.checked_add(4)?)?.try_into().ok()?,
    ))
}

impl<'a> SymbolTable<'a> {
    /// Reads an appendix; `None` where there is none or it has no symbols.
    pub fn parse(appendix: &'a [u8]) -> Option<Self> {
        if appendix.get(..8)? != b"UCAPPEND" || half(appendix, 8)? != 1 {
            return None;
        }
        let offset = usize::try_from(word(appendix, 32)?).ok()?;
        let length = usize::try_from(word(appendix, 40)?).ok()?;
        if offset == 0 {
            return None;
        }
        let blob = appendix.get(offset..offset.checked_add(length)?)?;
        if blob.get(..8)? != b"UCSYMTAB" || half(blob, 8)? != 1 {
            return None;
        }
        let records = (half(blob, 12)? as usize).checked_mul(16)?;
        Some(Self {
            records: blob.get(16..records.checked_add(16)?)?,
            names: blob.get(records + 16..)?,
        })
    }

    /// The symbol that covers `address` (of link time) and where it starts.
    pub fn lookup(&self, address: u64) -> Option<(&'a str, u64)> {
        let record = |i: usize| -> Option<(u64, u32, u32)> {
            let at = i * 16;
            Some((
                word(self.records, at)?,
                half(self.records, at + 8)?,
                half(self.records, at + 12)?,
            ))
        };
        let (mut low, mut high) = (0, self.records.len() / 16);
        while low < high {
            let middle = low + (high - low) / 2;
            if record(middle)?.0 <= address {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let (start, size, name) = record(low.checked_sub(1)?)?;
        // A size of 0 is an assembly label: it reaches to the next.
        if size != 0 && address - start >= u64::from(size) {
            return None;
        }
        let name = self.names.get(name as usize..)?;
        let end = name.iter().position(|&b| b == 0)?;
        Some((core::str::from_utf8(&name[..end]).ok()?, start))
    }
}

/// Installs the table of the running image.
pub fn install(appendix: &'static [u8]) {
    if let Some(table) = SymbolTable::parse(appendix) {
        TABLE.call_once(|| table);
    }
}

/// The symbol of the running image that covers `offset` from its start, and
/// where it starts.
pub fn lookup(offset: u64) -> Option<(&'static str, u64)> {
    TABLE.get()?.lookup(offset)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::vec;
    use std::vec::Vec;

    fn appendix() -> Vec<u8> {
        let mut out = vec![0; 64];
        out[..8].copy_from_slice(b"UCAPPEND");
        out[8] = 1;
        out[12] = 64;
        out[32] = 64;
        let mut blob = b"UCSYMTAB".to_vec();
        blob.extend(1u32.to_le_bytes());
        blob.extend(2u32.to_le_bytes());
        for (address, size, name) in [(0x100u64, 0x10u32, 0u32), (0x200, 0, 6)] {
            blob.extend(address.to_le_bytes());
            blob.extend(size.to_le_bytes());
            blob.extend(name.to_le_bytes());
        }
        blob.extend(b"first\0label\0");
        out[40..48].copy_from_slice(&(blob.len() as u64).to_le_bytes());
        out.extend(blob);
        out
    }

    #[test]
    fn finds_what_covers_an_address() {
        let bytes = appendix();
        let table = SymbolTable::parse(&bytes).unwrap();
        assert_eq!(table.lookup(0xff), None);
        assert_eq!(table.lookup(0x100), Some(("first", 0x100)));
        assert_eq!(table.lookup(0x10f), Some(("first", 0x100)));
        assert_eq!(table.lookup(0x110), None);
        assert_eq!(table.lookup(0x5000), Some(("label", 0x200)));
    }

    proptest! {
        #[test]
        fn damage_is_never_more_than_a_missing_name(
            at in 0usize..150, byte: u8, address: u64, cut in 0usize..150,
        ) {
            let mut bytes = appendix();
            let at = at % bytes.len();
            bytes[at] = byte;
            bytes.truncate(bytes.len() - cut % bytes.len());
            if let Some(table) = SymbolTable::parse(&bytes) {
                table.lookup(address);
            }
        }
    }
}

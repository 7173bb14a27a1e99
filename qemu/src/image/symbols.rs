//! The table of symbols that the images name functions by in a backtrace.
//!
//! Little-endian: magic `UCSYMTAB`, `u32` version 1, `u32` count, then per
//! function `u64` address as linked, `u32` size in bytes, `u32` offset of its
//! name from the first name; sorted by address; then the names, UTF-8, each
//! ended by a NUL.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, Result};
use object::{Object, ObjectSection, ObjectSymbol, SectionKind, SymbolKind};
use rustc_demangle::demangle;

const MAGIC: &[u8; 8] = b"UCSYMTAB";
const VERSION: u32 = 1;

/// A function: where it begins and how long it is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Symbol {
    address: u64,
    size: u32,
    name: String,
}

/// Makes the table of an ELF file's functions.
///
/// # Errors
/// When the file is not an object that can be read.
pub fn table(elf: &[u8]) -> Result<Vec<u8>> {
    Ok(encode(&functions(elf)?))
}

/// Functions by address, one name each: a named function before a bare label.
fn functions(elf: &[u8]) -> Result<Vec<Symbol>> {
    let file = object::File::parse(elf).context("not an object file")?;
    let mut found: BTreeMap<u64, (bool, u64, String)> = BTreeMap::new();
    let mut ends: BTreeMap<u64, u64> = BTreeMap::new();
    for section in file.sections().filter(|s| s.kind() == SectionKind::Text) {
        ends.insert(section.address(), section.address() + section.size());
    }
    for symbol in file.symbols() {
        let address = symbol.address();
        let end = ends.range(..=address).next_back().map(|(_, end)| *end);
        let (Ok(name), Some(end)) = (symbol.name(), end) else {
            continue;
        };
        // `$x` and `$d` mark code and data; assembly's labels have no type.
        let function = symbol.kind() == SymbolKind::Text;
        let label = symbol.kind() == SymbolKind::Label || symbol.kind() == SymbolKind::Unknown;
        if address >= end || name.is_empty() || name.starts_with('$') || name.starts_with(".L") {
            continue;
        }
        if !function && !label {
            continue;
        }
        let entry = (function, symbol.size(), format!("{:#}", demangle(name)));
        match found.get(&address) {
            Some(other) if (other.0, other.1) >= (function, symbol.size()) => {}
            _ => {
                found.insert(address, entry);
            }
        }
    }
    let starts: Vec<u64> = found.keys().copied().collect();
    let symbols = found
        .into_iter()
        .zip(starts.into_iter().skip(1).map(Some).chain([None]));
    Ok(symbols
        .map(|((address, (_, size, name)), next)| {
            let end = ends
                .range(..=address)
                .next_back()
                .map_or(address, |(_, end)| *end);
            let room = next.unwrap_or(end).min(end) - address;
            let size = if size == 0 { room } else { size };
            Symbol {
                address,
                size: u32::try_from(size).unwrap_or(u32::MAX),
                name,
            }
        })
        .collect())
}

fn encode(symbols: &[Symbol]) -> Vec<u8> {
    let mut table = Vec::new();
    table.extend(MAGIC);
    table.extend(VERSION.to_le_bytes());
    table.extend((symbols.len() as u32).to_le_bytes());
    let mut names: Vec<u8> = Vec::new();
    let mut known: HashMap<&str, u32> = HashMap::new();
    for symbol in symbols {
        let offset = *known.entry(&symbol.name).or_insert_with(|| {
            let offset = names.len() as u32;
            names.extend(symbol.name.bytes().filter(|b| *b != 0));
            names.push(0);
            offset
        });
        table.extend(symbol.address.to_le_bytes());
        table.extend(symbol.size.to_le_bytes());
        table.extend(offset.to_le_bytes());
    }
    table.extend(names);
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_as_its_readers_expect() {
        let symbol = |address, name: &str| Symbol {
            address,
            size: 8,
            name: name.into(),
        };
        let table = encode(&[symbol(0, "a"), symbol(8, "bc"), symbol(16, "a")]);
        assert_eq!(&table[..8], MAGIC);
        assert_eq!(table[8..16], [1, 0, 0, 0, 3, 0, 0, 0]);
        let record = |i: usize| &table[16 + 16 * i..][..16];
        assert_eq!(record(1), [8, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 2, 0, 0, 0]);
        assert_eq!(record(2)[12..], [0, 0, 0, 0], "one name stands once");
        assert_eq!(&table[64..], b"a\0bc\0");
    }

    #[test]
    fn our_own_functions_are_found() {
        let me = std::env::current_exe().expect("a test program");
        let data = std::fs::read(me).expect("can be read");
        let found = functions(&data).expect("an ELF file");
        assert!(found.is_sorted_by_key(|s| s.address));
        assert!(
            found
                .iter()
                .any(|s| s.name == "qemu::image::symbols::functions")
        );
    }
}

//! The table of symbols that the images name functions by in a backtrace:
//! crate [`appendix`] says how it is laid out.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, Result};
use appendix::{Record, SymbolHeader};
use object::{Object, ObjectSection, ObjectSymbol, SectionKind, SymbolKind};
use rustc_demangle::demangle;
use zerocopy::IntoBytes;

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
    let mut table = SymbolHeader::new(symbols.len() as u32).as_bytes().to_vec();
    let mut names: Vec<u8> = Vec::new();
    let mut known: HashMap<&str, u32> = HashMap::new();
    for symbol in symbols {
        let offset = *known.entry(&symbol.name).or_insert_with(|| {
            let offset = names.len() as u32;
            names.extend(symbol.name.bytes().filter(|b| *b != 0));
            names.push(0);
            offset
        });
        table.extend(Record::new(symbol.address, symbol.size, offset).as_bytes());
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
        let read = appendix::Symbols::new(&table);
        assert_eq!(read.find(7), Some(("a", 7)));
        assert_eq!(read.find(8), Some(("bc", 0)));
        assert_eq!(read.find(17), Some(("a", 1)));
        assert_eq!(read.find(24), None);
        assert_eq!(&table[64..], b"a\0bc\0", "one name stands once");
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

//! Where the image keeps what it knows: symbols and types of its ELF file, by DWARF,
//! so that an audit reads EL2's structures as the compiler has laid them out.

use std::borrow::Cow;
use std::collections::HashMap;

use anyhow::{Context, Result};
use gimli::{
    AttributeValue, DebuggingInformationEntry, DwTag, Dwarf, EndianSlice, LittleEndian, Reader,
    Unit, constants,
};
use object::{Object, ObjectSection, ObjectSymbol};

/// A member: its offset, and which type it has.
#[derive(Clone, Copy, Debug)]
struct Member {
    offset: u64,
    of: usize,
}

/// A structure or union.
#[derive(Clone, Debug, Default)]
struct Type {
    size: u64,
    members: HashMap<String, Member>,
}

/// Symbols and types of an ELF file.
#[derive(Debug)]
pub struct Layout {
    symbols: HashMap<String, u64>,
    /// By offset in `.debug_info`.
    types: HashMap<usize, Type>,
    names: HashMap<String, usize>,
}

impl Layout {
    /// Reads an ELF file.
    ///
    /// # Errors
    /// When it is none, or has no debug information.
    pub fn of(elf: &[u8]) -> Result<Self> {
        let file = object::File::parse(elf).context("not an object file")?;
        let section = |id: gimli::SectionId| -> Result<Cow<'_, [u8]>, gimli::Error> {
            let found = file.section_by_name(id.name());
            let data = found.and_then(|section| section.uncompressed_data().ok());
            Ok(data.unwrap_or_default())
        };
        let sections = gimli::DwarfSections::load(section)?;
        let dwarf = sections.borrow(|bytes| EndianSlice::new(bytes, LittleEndian));
        let mut layout = Self {
            symbols: file
                .symbols()
                .filter_map(|symbol| {
                    let name = format!("{:#}", rustc_demangle::demangle(symbol.name().ok()?));
                    Some((name, symbol.address()))
                })
                .collect(),
            types: HashMap::new(),
            names: HashMap::new(),
        };
        let mut units = dwarf.units();
        while let Some(header) = units.next()? {
            layout.read_unit(&dwarf, &dwarf.unit(header)?)?;
        }
        Ok(layout)
    }

    fn read_unit<R: Reader<Offset = usize>>(
        &mut self,
        dwarf: &Dwarf<R>,
        unit: &Unit<R>,
    ) -> Result<()> {
        let base = unit.header.offset().0;
        // Names of what encloses an entry, and the type that it is in, by depth.
        let mut path: Vec<(String, Option<usize>)> = Vec::new();
        let mut entries = unit.entries();
        while let Some(entry) = entries.next_dfs()? {
            path.truncate(usize::try_from(entry.depth()).unwrap_or(0));
            let name = name(dwarf, unit, entry)?;
            let at = base + entry.offset().0;
            let tag = entry.tag();
            if is_type(tag) {
                let size = number(entry, constants::DW_AT_byte_size);
                self.types.entry(at).or_default().size = size;
                let parts = path.iter().map(|(name, _)| name.as_str());
                let full: Vec<_> = parts.filter(|part| !part.is_empty()).collect();
                let full = [&full[..], &[name.as_str()]].concat().join("::");
                if size > 0 {
                    self.names.entry(full).or_insert(at);
                }
            }
            if tag == constants::DW_TAG_member
                && let Some((_, Some(owner))) = path.last()
                && let Some(of) = reference(base, entry)
            {
                let member = Member {
                    offset: number(entry, constants::DW_AT_data_member_location),
                    of,
                };
                let owner = self.types.entry(*owner).or_default();
                owner.members.insert(name.clone(), member);
            }
            // A unit's own name is a file's.
            let scope = if tag == constants::DW_TAG_compile_unit {
                String::new()
            } else {
                name
            };
            path.push((scope, is_type(tag).then_some(at)));
        }
        Ok(())
    }

    /// The address of a symbol.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn symbol(&self, name: &str) -> Result<u64> {
        let found = self.symbols.get(name).copied();
        found.with_context(|| format!("the image has no symbol {name}"))
    }

    /// Bytes of a type.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn size(&self, name: &str) -> Result<u64> {
        Ok(self.find(name)?.size)
    }

    /// Where in a type `path` leads, member by member, with dots between them.
    ///
    /// # Errors
    /// Names what is not there.
    pub fn offset(&self, name: &str, path: &str) -> Result<u64> {
        let mut of = self.find(name)?;
        let mut offset = 0;
        let mut members = path.split('.').peekable();
        while let Some(part) = members.next() {
            let member = of.members.get(part);
            let member =
                member.with_context(|| format!("{name} has no {path}: it ends before {part}"))?;
            offset += member.offset;
            if members.peek().is_some() {
                let next = self.types.get(&member.of);
                of = next.with_context(|| format!("{name}: {part} has no members"))?;
            }
        }
        Ok(offset)
    }

    fn find(&self, name: &str) -> Result<&Type> {
        let found = self.names.get(name).and_then(|at| self.types.get(at));
        found.with_context(|| format!("the image has no type {name}"))
    }
}

fn is_type(tag: DwTag) -> bool {
    tag == constants::DW_TAG_structure_type || tag == constants::DW_TAG_union_type
}

fn name<R: Reader<Offset = usize>>(
    dwarf: &Dwarf<R>,
    unit: &Unit<R>,
    entry: &DebuggingInformationEntry<R>,
) -> Result<String> {
    let Some(value) = entry.attr_value(constants::DW_AT_name) else {
        return Ok(String::new());
    };
    let text = dwarf.attr_string(unit, value)?;
    Ok(text.to_string_lossy()?.into_owned())
}

fn number<R: Reader<Offset = usize>>(
    entry: &DebuggingInformationEntry<R>,
    attribute: gimli::DwAt,
) -> u64 {
    let value = entry.attr_value(attribute);
    value.and_then(|value| value.udata_value()).unwrap_or(0)
}

/// The type that an entry has, by its offset.
fn reference<R: Reader<Offset = usize>>(
    base: usize,
    entry: &DebuggingInformationEntry<R>,
) -> Option<usize> {
    match entry.attr_value(constants::DW_AT_type)? {
        AttributeValue::UnitRef(of) => Some(base + of.0),
        AttributeValue::DebugInfoRef(of) => Some(of.0),
        _ => None,
    }
}

/// A name, and an address or an offset.
#[cfg(test)]
type Named<'a> = (&'a str, u64);

#[cfg(test)]
impl Layout {
    /// One made by hand: symbols; types, their sizes, and where paths lead in them.
    pub fn made(symbols: &[Named<'_>], types: &[(&str, u64, &[Named<'_>])]) -> Self {
        let mut layout = Self {
            symbols: symbols
                .iter()
                .map(|(name, at)| ((*name).into(), *at))
                .collect(),
            types: HashMap::new(),
            names: HashMap::new(),
        };
        for (name, size, paths) in types {
            let top = layout.types.len();
            layout.names.insert((*name).into(), top);
            layout.types.insert(
                top,
                Type {
                    size: *size,
                    ..Type::default()
                },
            );
            for (path, offset) in *paths {
                let parts: Vec<_> = path.split('.').collect();
                let mut within = top;
                for (n, part) in parts.iter().enumerate() {
                    let offset = if n + 1 == parts.len() { *offset } else { 0 };
                    let next = layout.types.len();
                    let owner = layout.types.entry(within).or_default();
                    let member = owner.members.entry((*part).into());
                    within = member.or_insert(Member { offset, of: next }).of;
                    layout.types.entry(within).or_default();
                }
            }
        }
        layout
    }
}

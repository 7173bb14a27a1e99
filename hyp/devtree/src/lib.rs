//! Opens flattened device trees as Linux takes them (Devicetree Specification
//! 0.4, chapter 5): the structure is checked, so that a reader cannot leave it;
//! names are not, since real bindings have longer and odder ones than the
//! specification allows.
//!
//! [`dtoolkit`] reads what is opened here. Its own check asks more: names of 31
//! characters at most, and the blocks in one order.
#![no_std]
#![forbid(unsafe_code)]

mod guess;
mod interrupts;

pub use dtoolkit::fdt::Fdt;
pub use guess::guess_uart;
pub use interrupts::{interrupt, named};

use core::fmt;

/// What is wrong with a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// No device tree is here, or less of it than it says.
    NoTree,
    /// Of a version that is not read here; the one it is compatible with.
    Version(u32),
    /// A block reaches beyond the tree.
    Block,
    /// The reservations do not end.
    Reservations,
    /// At this offset, something other than a node or property, or one that
    /// does not end.
    Structure(usize),
    /// At this offset, a name that is no text; see [`mend_names`].
    Name(usize),
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoTree => f.write_str("the device tree has no end"),
            Self::Version(version) => {
                write!(
                    f,
                    "the device tree is of version {version}, which is not read"
                )
            }
            Self::Block => f.write_str("a block of the device tree reaches beyond its end"),
            Self::Reservations => f.write_str("the device tree's memory reservations do not end"),
            Self::Structure(at) => {
                write!(f, "the device tree's structure is damaged at byte {at:#x}")
            }
            Self::Name(at) => {
                write!(f, "a name in the device tree is no text, at byte {at:#x}")
            }
        }
    }
}

const MAGIC: u32 = 0xd00d_feed;
const VERSION: u32 = 17;
/// The oldest that is read. It does not say how long the structure is.
const OLDEST: u32 = 16;
const HEADER: usize = 40;

const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROP: u32 = 3;
const NOP: u32 = 4;
const END: u32 = 9;

/// Opens a tree, all of whose bytes these are.
///
/// # Errors
/// What is damaged.
pub fn open(data: &[u8]) -> Result<Fdt<'_>, Damage> {
    let header = |n: usize| word(data, 4 * n);
    if data.len() < HEADER
        || header(0) != Some(MAGIC)
        || header(1).map(|size| size as usize) != Some(data.len())
    {
        return Err(Damage::NoTree);
    }
    let field = |n: usize| header(n).ok_or(Damage::NoTree);
    let [structure, strings, reservations] =
        [field(2)?, field(3)?, field(4)?].map(|at| at as usize);
    let (version, compatible) = (field(5)?, field(6)?);
    if version < OLDEST || compatible > VERSION {
        return Err(Damage::Version(compatible));
    }
    let end_of = |start: usize, size: u32| {
        let end = start
            .checked_add(size as usize)
            .filter(|end| *end <= data.len());
        end.ok_or(Damage::Block)
    };
    let strings = strings..end_of(strings, field(8)?)?;
    let structure = if version < VERSION {
        structure..data.len()
    } else {
        structure..end_of(structure, field(9)?)?
    };
    if !structure.start.is_multiple_of(4) {
        return Err(Damage::Block);
    }
    end_of_reservations(data, reservations)?;
    Walk {
        structure: data.get(..structure.end).unwrap_or(&[]),
        strings_at: strings.start,
        strings: data.get(strings).unwrap_or(&[]),
    }
    .check(structure.start)?;
    Ok(Fdt::new_unchecked(data))
}

/// Most names that [`mend_names`] makes text of: each is looked for from the begin.
pub const MOST_MENDED: usize = 64;

/// Makes text of the names of a tree that are none, and which Linux takes as they are:
/// bytes of them that are no ASCII become `?`. Whether something was changed.
pub fn mend_names(data: &mut [u8]) -> bool {
    let mut mended = false;
    for _ in 0..MOST_MENDED {
        let Err(Damage::Name(at)) = open(data) else {
            break;
        };
        let name = data.iter_mut().skip(at).take_while(|byte| **byte != 0);
        name.filter(|byte| !byte.is_ascii())
            .for_each(|byte| *byte = b'?');
        mended = true;
    }
    mended
}

fn word(data: &[u8], at: usize) -> Option<u32> {
    let bytes = data.get(at..)?.get(..4)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

/// The list ends with 16 bytes of zero.
fn end_of_reservations(data: &[u8], start: usize) -> Result<(), Damage> {
    let entries = data.get(start..).unwrap_or(&[]).chunks_exact(16);
    for entry in entries {
        if entry.iter().all(|byte| *byte == 0) {
            return Ok(());
        }
    }
    Err(Damage::Reservations)
}

struct Walk<'a> {
    /// Up to the structure's end, offsets as in the tree.
    structure: &'a [u8],
    strings: &'a [u8],
    /// Where those begin in the tree.
    strings_at: usize,
}

impl Walk<'_> {
    /// Checks one node that begins at `at`, its children, and the end behind it.
    fn check(&self, at: usize) -> Result<(), Damage> {
        let mut at = at;
        let mut depth = 0u32;
        // Properties stand before children.
        let mut properties = false;
        loop {
            let damaged = Damage::Structure(at);
            let token = word(self.structure, at).ok_or(damaged)?;
            let next = at + 4;
            at = match token {
                // dtoolkit looks for the root node in the first word.
                NOP if depth > 0 => next,
                BEGIN_NODE => {
                    depth += 1;
                    properties = true;
                    self.name(next)?
                }
                PROP if properties => self.property(at)?,
                END_NODE if depth > 0 => {
                    depth -= 1;
                    properties = false;
                    if depth == 0 {
                        return self.end(next);
                    }
                    next
                }
                _ => return Err(damaged),
            };
        }
    }

    /// Behind the root's end, there is the structure's.
    fn end(&self, at: usize) -> Result<(), Damage> {
        let mut at = at;
        while word(self.structure, at) == Some(NOP) {
            at += 4;
        }
        if word(self.structure, at) == Some(END) {
            Ok(())
        } else {
            Err(Damage::Structure(at))
        }
    }

    /// Where a node's name that begins at `at` ends, in whole words.
    fn name(&self, at: usize) -> Result<usize, Damage> {
        let text = self.structure.get(at..).and_then(text);
        let text = text.ok_or(Damage::Structure(at))?;
        if core::str::from_utf8(text).is_err() {
            return Err(Damage::Name(at));
        }
        Ok((at + text.len() + 1).next_multiple_of(4))
    }

    /// Where the property at `at` ends, in whole words.
    fn property(&self, at: usize) -> Result<usize, Damage> {
        let damaged = Damage::Structure(at);
        let length = word(self.structure, at + 4).ok_or(damaged)? as usize;
        let name_at = word(self.structure, at + 8).ok_or(damaged)? as usize;
        let name = self.strings.get(name_at..).and_then(text).ok_or(damaged)?;
        if core::str::from_utf8(name).is_err() {
            return Err(Damage::Name(self.strings_at + name_at));
        }
        let end = (at + 12).checked_add(length).ok_or(damaged)?;
        if end > self.structure.len() {
            return Err(damaged);
        }
        Ok(end.next_multiple_of(4))
    }
}

/// The bytes before the first NUL.
fn text(bytes: &[u8]) -> Option<&[u8]> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    bytes.get(..end)
}

#[cfg(test)]
mod tests;

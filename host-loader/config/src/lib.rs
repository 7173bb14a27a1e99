//! `guests.toml`: which guests there are and what each gets. The runner reads it
//! before a machine starts, the host reads it from the bundle: by this schema
//! both, so that what one takes the other takes.
//!
//! | key | value | default |
//! |---|---|---|
//! | `name` | 1 to 32 letters, digits, `-`, `_` and `.`, not beginning with `.`; unique | required |
//! | `kernel` | file | required |
//! | `initrd` | file | none |
//! | `cmdline` | the kernel's command line, at most 2047 bytes | empty |
//! | `memory` | a multiple of 2M: bytes with K, M, G or T (also `MiB` and so on) | `"512M"` |
//! | `vcpus` | 1 to 64 | 1 |
//! | `mode` | `"plain"`, `"protected"` or `"realm"` | `"plain"` |
//! | `measure` | of a realm: `"all"`: what it begins with counts in its measurement; `"none"`: only where that is | `"all"` |
//! | `personalization` | of a realm: its personalization value, up to 64 bytes as hexadecimal digits; zeros behind them | zeros |
//! | `ipa_bits` | bits of its IPA space, whose upper half it shares if its memory is its own; 32 to 52 | as few as its memory takes |
//! | `start_level` | where the walk of its stage 2 starts: -1 to 3, as its granule and IPA bits allow | as few levels as concatenated tables allow |
//! | `ram_base` | IPA of its memory, a multiple of 2M above the devices | `0x40000000` |
//! | `populate` | `"eager"`: it has all its memory when it starts; `"lazy"`: each piece at first touch; `"pages"`, `"lazy-pages"`: the same, and no entry of its tables maps more than a page | the host's choice ([`Populate`]) |
//! | `console` | it owns the first UART; one guest at most | the first guest does |
//! | `strict` | it is stopped when it accesses what it does not have | `false` |
//! | `load` | IPA of a raw binary; below `0x4000000` it starts from flash | RAM base + 512 KiB |
//! | `entry` | IPA where a raw binary starts | its first byte |
//!
//! Files are named as who reads it finds them: beside the file, or in the bundle.
//! Unknown keys are errors: a misspelt key must not be a silent default.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod check;
pub mod quote;
mod read;
pub mod size;
#[cfg(feature = "write")]
mod write;

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::str::FromStr;

pub use read::parse;
#[cfg(feature = "write")]
pub use write::write;

/// The file's name in a bundle.
pub const FILE: &str = "guests.toml";

/// The most that the file may be long.
pub const MAX_LENGTH: usize = 64 << 10;

/// Bytes of the heap that reading takes of a file of so many, at most: 80 MiB, if one is
/// made for it (`tests/memory.rs`, where sequences that take much were looked for). What
/// does not grow is for tables in tables, as deep as the parser goes.
pub const fn heap_of(length: usize) -> usize {
    1280 * length + (256 << 10)
}

/// IPA of the memory of a guest that does not say, as of QEMU's virt machine. What is
/// below is for devices.
pub const RAM_BASE: u64 = 0x4000_0000;

/// Bytes of memory of a guest that does not say.
pub const DEFAULT_MEMORY: u64 = 512 << 20;

/// One guest as configured, checked as far as the file alone allows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "write", derive(serde::Serialize))]
pub struct Guest {
    /// How messages call it.
    pub name: String,
    /// Kernel file.
    pub kernel: String,
    /// Initrd file.
    #[cfg_attr(feature = "write", serde(skip_serializing_if = "Option::is_none"))]
    pub initrd: Option<String>,
    /// Kernel command line.
    #[cfg_attr(feature = "write", serde(skip_serializing_if = "String::is_empty"))]
    pub cmdline: String,
    /// Bytes of RAM.
    #[cfg_attr(feature = "write", serde(serialize_with = "write::size"))]
    pub memory: u64,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// How its memory stands towards the host.
    pub mode: Mode,
    /// What counts in a realm's measurement, if it says.
    #[cfg_attr(feature = "write", serde(skip_serializing_if = "Option::is_none"))]
    pub measure: Option<Measure>,
    /// A realm's personalization value, hexadecimal, if it says.
    #[cfg_attr(feature = "write", serde(skip_serializing_if = "Option::is_none"))]
    pub personalization: Option<String>,
    /// Bits of its IPA space, if it says.
    #[cfg_attr(feature = "write", serde(skip_serializing_if = "Option::is_none"))]
    pub ipa_bits: Option<u32>,
    /// Where the walk of its stage 2 starts, if it says.
    #[cfg_attr(feature = "write", serde(skip_serializing_if = "Option::is_none"))]
    pub start_level: Option<i64>,
    /// IPA of its memory, if it says.
    #[cfg_attr(feature = "write", serde(skip_serializing_if = "Option::is_none"))]
    pub ram_base: Option<u64>,
    /// When it gets its memory, if it says.
    #[cfg_attr(feature = "write", serde(skip_serializing_if = "Option::is_none"))]
    pub populate: Option<Populate>,
    /// Whether it is to own the first UART, if it says.
    #[cfg_attr(feature = "write", serde(skip_serializing_if = "Option::is_none"))]
    pub console: Option<bool>,
    /// It is stopped when it accesses what it does not have.
    #[cfg_attr(feature = "write", serde(skip_serializing_if = "write::is_not"))]
    pub strict: bool,
    /// IPA of a raw binary.
    #[cfg_attr(feature = "write", serde(skip_serializing_if = "Option::is_none"))]
    pub load: Option<u64>,
    /// IPA where a raw binary starts.
    #[cfg_attr(feature = "write", serde(skip_serializing_if = "Option::is_none"))]
    pub entry: Option<u64>,
}

/// How a guest's memory stands towards the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "write", derive(serde::Serialize))]
#[cfg_attr(feature = "write", serde(rename_all = "lowercase"))]
pub enum Mode {
    /// Shared with the host; boots whatever boots on QEMU's virt machine.
    #[default]
    Plain,
    /// Its own: the host cannot read it. The kernel need not know; its devices stand
    /// in a half of its address space that it shares.
    Protected,
    /// Its own too, and it knows: a realm of RMI 1.0, which is measured and calls RSI.
    Realm,
}

impl Mode {
    /// All modes, by the words for them.
    pub const ALL: [(&str, Self); 3] = [
        ("plain", Self::Plain),
        ("protected", Self::Protected),
        ("realm", Self::Realm),
    ];

    /// The word for it.
    pub const fn word(self) -> &'static str {
        Self::ALL[self as usize].0
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        check::mode(text)
    }
}

/// What of a realm's first memory counts in its initial measurement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "write", derive(serde::Serialize))]
#[cfg_attr(feature = "write", serde(rename_all = "lowercase"))]
pub enum Measure {
    /// Where it is, and what is in it.
    #[default]
    All,
    /// Where it is.
    None,
}

impl Measure {
    /// Both, by the words for them.
    pub const ALL: [(&str, Self); 2] = [("all", Self::All), ("none", Self::None)];
}

impl FromStr for Measure {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        check::measure(text)
    }
}

/// Bytes of a realm's personalization value (DEN0137, RmiRealmParams).
pub const PERSONALIZATION: usize = 64;

impl Guest {
    /// A realm's personalization value.
    pub fn personalization(&self) -> [u8; PERSONALIZATION] {
        let text = self.personalization.as_deref().unwrap_or_default();
        check::personalization(text).unwrap_or([0; PERSONALIZATION])
    }
}

/// When a guest gets its memory. Of one that does not say the host decides: lazily,
/// where that takes no larger mappings from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "write", derive(serde::Serialize))]
#[cfg_attr(feature = "write", serde(rename_all = "kebab-case"))]
pub enum Populate {
    /// All of it before it starts.
    Eager,
    /// A piece when that is first touched.
    Lazy,
    /// As eager, and by pages alone.
    Pages,
    /// As lazy, and by pages alone.
    LazyPages,
}

impl Populate {
    /// All ways, by the words for them.
    pub const ALL: [(&str, Self); 4] = [
        ("eager", Self::Eager),
        ("lazy", Self::Lazy),
        ("pages", Self::Pages),
        ("lazy-pages", Self::LazyPages),
    ];

    /// The word for it.
    pub const fn word(self) -> &'static str {
        Self::ALL[self as usize].0
    }

    /// Whether the guest has a piece only once that is touched.
    pub const fn is_lazy(self) -> bool {
        matches!(self, Self::Lazy | Self::LazyPages)
    }

    /// Whether no entry of the guest's tables maps more than a page.
    pub const fn is_by_pages(self) -> bool {
        matches!(self, Self::Pages | Self::LazyPages)
    }
}

impl FromStr for Populate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        check::populate(text)
    }
}

/// Where something stands in the file, both from 1; columns count characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Its line.
    pub line: u32,
    /// Its column.
    pub column: u32,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// A guest, and where the file says what of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// The guest.
    pub guest: Guest,
    /// Keys that the file has, and where their values stand.
    places: Vec<(&'static str, Place)>,
}

impl Located {
    /// Where the value of `key` stands; that of its name if the file has none.
    pub fn place(&self, key: &str) -> Place {
        let of = |key: &str| self.places.iter().find(|(k, _)| *k == key);
        let found = of(key).or_else(|| of("name"));
        found.map_or(Place { line: 1, column: 1 }, |(_, place)| *place)
    }

    /// The keys that the file has for it, and where their values stand.
    pub fn places(&self) -> impl Iterator<Item = (&'static str, Place)> {
        self.places.iter().copied()
    }
}

/// What is wrong with a file: `LINE:COLUMN: …`, one sentence, to stand behind the
/// file's name and a colon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// Where.
    pub place: Place,
    /// What, and what was expected.
    pub what: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.what)
    }
}

impl core::error::Error for Error {}

/// Which guest owns the first UART: the one that says so, or the first if nobody
/// does and that does not say no.
pub fn console_owner(says: impl IntoIterator<Item = Option<bool>>) -> Option<usize> {
    let mut first = None;
    for (index, says) in says.into_iter().enumerate() {
        match says {
            Some(true) => return Some(index),
            None if index == 0 => first = Some(0),
            _ => {}
        }
    }
    first
}

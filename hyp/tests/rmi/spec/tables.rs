//! A realm's tables: which there are, and what stands in them.

use std::collections::BTreeMap;

use super::format::Machine;

/// What a realm was told of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ripas {
    Empty,
    Ram,
    Destroyed,
}

/// What stands in an entry (DEN0137 1.0, A5.5). Addresses are physical.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    Unassigned(Ripas),
    Assigned(Ripas, u64),
    UnassignedNs,
    /// The host's descriptor: address and attributes.
    AssignedNs(u64),
    Table(u64),
}

/// Bits of an [`Entry::AssignedNs`] that are no address.
pub const ATTRIBUTES: u64 = 0xfff;

impl Entry {
    /// It has an address (RMI's "live").
    pub fn is_live(self) -> bool {
        !matches!(self, Self::Unassigned(_) | Self::UnassignedNs)
    }

    /// It keeps its table from being destroyed: memory of the realm's own, a table.
    /// The host's memory does not.
    pub fn keeps(self) -> bool {
        matches!(self, Self::Assigned(..) | Self::Table(_))
    }

    /// What the `n`th of the entries that one becomes says, when each spans `size`.
    pub fn part(self, n: u64, size: u64) -> Self {
        match self {
            Self::Assigned(ripas, pa) => Self::Assigned(ripas, pa + n * size),
            Self::AssignedNs(desc) => Self::AssignedNs(desc + n * size),
            same => same,
        }
    }
}

/// Where a table is found: its level, and the first address that it translates. The
/// tables of a root are one here.
pub type Key = (i8, u64);

/// A table.
#[derive(Clone, Debug)]
pub struct Table {
    /// Its granule; of a root the first.
    pub pa: u64,
    entries: Vec<Entry>,
    /// Entries that [keep](Entry::keeps) it.
    pub kept: u32,
}

impl Table {
    pub fn new(pa: u64, entries: Vec<Entry>) -> Self {
        let kept = entries.iter().filter(|entry| entry.keeps()).count() as u32;
        Self { pa, entries, kept }
    }

    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    pub fn set(&mut self, index: usize, entry: Entry) {
        self.kept += u32::from(entry.keeps());
        self.kept -= u32::from(self.entries[index].keeps());
        self.entries[index] = entry;
    }
}

/// Where a walk ended.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    pub key: Key,
    pub index: usize,
    pub level: i8,
    pub entry: Entry,
}

/// All of a realm's.
#[derive(Clone, Debug)]
pub struct Tables {
    pub machine: Machine,
    /// By the format of FEAT_LPA2.
    pub wide: bool,
    pub start: i8,
    pub all: BTreeMap<Key, Table>,
}

impl Tables {
    /// As [`Machine::maps_memory`].
    pub fn maps_memory(&self, level: i8, is_cleaned: bool) -> bool {
        self.machine.maps_memory(level, is_cleaned, self.wide)
    }

    /// Where the table of `level` is that translates `ipa`.
    pub fn key(&self, ipa: u64, level: i8) -> Key {
        if level == self.start {
            (level, 0)
        } else {
            (level, ipa & !(self.machine.span(level - 1) - 1))
        }
    }

    /// Walks down to `level`, or to the last table there is.
    pub fn walk(&self, ipa: u64, to: i8) -> Slot {
        let mut level = self.start;
        loop {
            let key = self.key(ipa, level);
            let index = ((ipa - key.1) / self.machine.span(level)) as usize;
            let entry = self.all[&key].entries[index];
            if level == to || !matches!(entry, Entry::Table(_)) {
                return Slot {
                    key,
                    index,
                    level,
                    entry,
                };
            }
            level += 1;
        }
    }

    pub fn set(&mut self, slot: &Slot, entry: Entry) {
        let table = self.all.get_mut(&slot.key).expect("a walk ended there");
        table.set(slot.index, entry);
    }

    /// The first address of an entry.
    pub fn address(&self, key: Key, index: usize) -> u64 {
        key.1 + index as u64 * self.machine.span(key.0)
    }

    /// The place behind the last entry of the table that a walk ended in: of a root
    /// each table ends by itself.
    pub fn end(&self, slot: &Slot) -> usize {
        let each = 1 << self.machine.stride();
        let all = self.all[&slot.key].entries.len();
        all.min((slot.index / each + 1) * each)
    }

    /// RMI's `top`, looked for as things stand now.
    pub fn top(&self, slot: &Slot, ipa: u64) -> u64 {
        let entries = &self.all[&slot.key].entries;
        if entries[slot.index].is_live() {
            return ipa;
        }
        let next = (slot.index..self.end(slot)).find(|index| entries[*index].is_live());
        self.address(slot.key, next.unwrap_or(self.end(slot)))
    }
}

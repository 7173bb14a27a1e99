//! A realm's tables, and the host's memory in them.

use std::ops::Range;

use super::tables::{ATTRIBUTES, Entry, Ripas, Slot, Table, Tables};
use super::{Content, NOTHING, Outcome, Realm, Refusal, Spec, State, Status, ask, one};

/// Bits of a host's descriptor: address, memory type, read, write (B4.4.20).
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const MEMORY: u64 = 0b111 << 2;
const ACCESS: u64 = 0b11 << 6;
/// Normal memory: non-cacheable, write-back, as stage 1 has it.
const NORMAL: [u64; 3] = [5 << 2, 6 << 2, 7 << 2];

/// A guest that maps it so may write it past the caches, whatever FEAT_S2FWB.
fn is_cleaned(desc: u64) -> bool {
    let [non_cacheable, _, as_stage1] = NORMAL;
    [non_cacheable, as_stage1].contains(&(desc & MEMORY))
}

/// The entry that a command's table of `level` hangs at: `level` is below the root's,
/// and `ipa` the first address of such a table.
fn parent(realm: &Realm, ipa: u64, level: i64) -> Result<(Slot, i8), Status> {
    let below = i64::from(realm.tables.start) + 1;
    ask((below..=3).contains(&level), Status::Input)?;
    let level = level as i8;
    ask(realm.has(ipa, level - 1), Status::Input)?;
    Ok((realm.tables.walk(ipa, level - 1), level))
}

/// Where a walk for the host's memory at `ipa` ends.
fn shared(realm: &Realm, ipa: u64, level: i64) -> Result<(Slot, i8), Status> {
    let below = i64::from(realm.tables.start).max(1);
    ask((below..=3).contains(&level), Status::Input)?;
    let level = level as i8;
    let maps = realm.tables.maps_memory(level, false);
    ask(maps && realm.has(ipa, level), Status::Input)?;
    ask(!realm.is_protected(ipa), Status::Input)?;
    Ok((realm.tables.walk(ipa, level), level))
}

impl Tables {
    /// The one entry of the level above that says the same.
    pub(super) fn folded(&self, table: &Table, level: i8) -> Option<Entry> {
        let first = table.entries()[0];
        let pa = match first {
            Entry::Table(_) => return None,
            Entry::Assigned(_, pa) => Some(pa),
            Entry::AssignedNs(desc) => Some(desc & !ATTRIBUTES),
            _ => None,
        };
        if let Some(pa) = pa {
            let aligned = pa.is_multiple_of(self.machine.span(level - 1));
            // It was cleaned as pages.
            if !aligned || !self.maps_memory(level - 1, false) {
                return None;
            }
        }
        let span = self.machine.span(level);
        let alike = (0..).zip(table.entries());
        let alike = alike.fold(true, |all, (n, entry)| all && *entry == first.part(n, span));
        alike.then_some(first)
    }
}

impl Spec {
    /// RMI_RTT_CREATE: what one entry said, a table of entries says.
    pub(super) fn rtt_create(&mut self, rd: u64, rtt: u64, ipa: u64, level: i64) -> Outcome {
        let realm = self.realm(rd)?;
        let (slot, level) = parent(realm, ipa, level)?;
        ask(self.is(rtt, State::Delegated), Status::Input)?;
        ask(slot.level == level - 1, Status::Rtt(slot.level))?;
        let is_table = matches!(slot.entry, Entry::Table(_));
        ask(!is_table, Status::Rtt(level - 1))?;
        let span = self.machine.span(level);
        let entries = (0..1 << self.machine.stride()).map(|n| slot.entry.part(n, span));
        let table = Table::new(rtt, entries.collect());
        self.take(&table, level);
        self.let_go(slot.entry, level - 1);
        self.becomes(rtt, State::Rtt, Content::Other);
        self.realm_mut(rd)?.tables.all.insert((level, ipa), table);
        self.put(rd, &slot, Entry::Table(rtt));
        Ok(NOTHING)
    }

    /// RMI_RTT_DESTROY of a table that nothing keeps: the host's memory in it does
    /// not.
    pub(super) fn rtt_destroy(&mut self, rd: u64, ipa: u64, level: i64) -> Outcome {
        let realm = self.realm(rd)?;
        let (slot, level) = parent(realm, ipa, level)?;
        let refuse = |status, top| Err(Refusal(status, [0, top, 0, 0]));
        let Entry::Table(rtt) = slot.entry else {
            return refuse(Status::Rtt(slot.level), realm.tables.top(&slot, ipa));
        };
        if realm.tables.all[&(level, ipa)].kept > 0 {
            return refuse(Status::Rtt(level), ipa);
        }
        let left = if realm.is_protected(ipa) {
            Entry::Unassigned(Ripas::Destroyed)
        } else {
            Entry::UnassignedNs
        };
        self.remove_table(rd, (level, ipa));
        self.put(rd, &slot, left);
        Ok([rtt, self.realm(rd)?.tables.top(&slot, ipa), 0, 0])
    }

    /// RMI_RTT_FOLD: what a table of entries says, one entry says.
    pub(super) fn rtt_fold(&mut self, rd: u64, ipa: u64, level: i64) -> Outcome {
        let realm = self.realm(rd)?;
        let (slot, level) = parent(realm, ipa, level)?;
        let Entry::Table(rtt) = slot.entry else {
            return Err(Status::Rtt(slot.level).into());
        };
        let one_entry = realm.tables.folded(&realm.tables.all[&(level, ipa)], level);
        let entry = one_entry.ok_or(Status::Rtt(level))?;
        self.take(&Table::new(0, vec![entry]), level - 1);
        self.remove_table(rd, (level, ipa));
        self.put(rd, &slot, entry);
        Ok(one(rtt))
    }

    /// RMI_RTT_READ_ENTRY.
    pub(super) fn rtt_read_entry(&mut self, rd: u64, ipa: u64, level: i64) -> Outcome {
        let realm = self.realm(rd)?;
        let start = i64::from(realm.tables.start);
        ask((start..=3).contains(&level), Status::Input)?;
        ask(realm.has(ipa, level as i8), Status::Input)?;
        let slot = realm.tables.walk(ipa, level as i8);
        let [state, desc, ripas] = match slot.entry {
            Entry::Unassigned(ripas) => [0, 0, ripas as u64],
            Entry::Assigned(ripas, pa) => [1, pa, ripas as u64],
            Entry::UnassignedNs => [0, 0, 0],
            Entry::AssignedNs(desc) => [1, self.told(desc), 0],
            Entry::Table(pa) => [2, pa, 0],
        };
        Ok([i64::from(slot.level) as u64, state, desc, ripas])
    }

    /// The descriptor of the host's memory, as it is told: without FEAT_S2FWB there is
    /// no other write-back than as stage 1 has it.
    fn told(&self, desc: u64) -> u64 {
        let [_, write_back, as_stage1] = NORMAL;
        if !self.machine.fwb && desc & MEMORY == as_stage1 {
            desc & !MEMORY | write_back
        } else {
            desc
        }
    }

    /// RMI_RTT_MAP_UNPROTECTED of RAM that is all the host's, and no Device memory.
    pub(super) fn rtt_map_unprotected(
        &mut self,
        rd: u64,
        ipa: u64,
        level: i64,
        desc: u64,
    ) -> Outcome {
        let known = ADDRESS | MEMORY | ACCESS;
        ask(desc & !known == 0, Status::Input)?;
        ask(NORMAL.contains(&(desc & MEMORY)), Status::Input)?;
        let realm = self.realm(rd)?;
        let (slot, level) = shared(realm, ipa, level)?;
        let maps = realm.tables.maps_memory(level, is_cleaned(desc));
        ask(maps, Status::Input)?;
        let (pa, size) = (desc & ADDRESS, self.machine.span(level));
        ask(pa.is_multiple_of(size), Status::Input)?;
        for page in (pa..pa + size).step_by(self.machine.page() as usize) {
            ask(self.is(page, State::Ns), Status::Input)?;
        }
        let free = slot.level == level && slot.entry == Entry::UnassignedNs;
        ask(free, Status::Rtt(slot.level))?;
        let entry = Entry::AssignedNs(desc);
        self.take(&Table::new(0, vec![entry]), level);
        self.put(rd, &slot, entry);
        Ok(NOTHING)
    }

    /// RMI_RTT_UNMAP_UNPROTECTED.
    pub(super) fn rtt_unmap_unprotected(&mut self, rd: u64, ipa: u64, level: i64) -> Outcome {
        let realm = self.realm(rd)?;
        let (slot, level) = shared(realm, ipa, level)?;
        if slot.level != level || !matches!(slot.entry, Entry::AssignedNs(_)) {
            let top = realm.tables.top(&slot, ipa);
            return Err(Refusal(Status::Rtt(slot.level), one(top)));
        }
        self.let_go(slot.entry, level);
        self.put(rd, &slot, Entry::UnassignedNs);
        Ok(one(self.realm(rd)?.tables.top(&slot, ipa)))
    }

    /// A table goes, and lets go of the host's memory that it maps.
    fn remove_table(&mut self, rd: u64, key: (i8, u64)) {
        let realm = self.realms.get_mut(&rd);
        let Some(table) = realm.and_then(|realm| realm.tables.all.remove(&key)) else {
            return;
        };
        for entry in table.entries() {
            self.let_go(*entry, key.0);
        }
        self.becomes(table.pa, State::Delegated, Content::ZERO);
    }

    /// Counts the host's memory that entries of `level` map.
    fn take(&mut self, table: &Table, level: i8) {
        for entry in table.entries() {
            let Entry::AssignedNs(desc) = *entry else {
                continue;
            };
            let pa = desc & !ATTRIBUTES;
            if level == 3 {
                self.granule_mut(pa).uses += 1;
            } else {
                for block in self.blocks_of(pa, level) {
                    *self.blocks.entry(block).or_default() += 1;
                }
            }
        }
    }

    /// Uncounts what an entry of `level` maps of the host's memory.
    pub(super) fn let_go(&mut self, entry: Entry, level: i8) {
        let Entry::AssignedNs(desc) = entry else {
            return;
        };
        let pa = desc & !ATTRIBUTES;
        if level == 3 {
            self.granule_mut(pa).uses -= 1;
        } else {
            for block in self.blocks_of(pa, level) {
                let block = self.blocks.entry(block);
                block.and_modify(|count| *count -= 1);
            }
        }
    }

    /// The spans of level-2 entries in a block.
    fn blocks_of(&self, pa: u64, level: i8) -> Range<u64> {
        let span = self.machine.span(2);
        pa / span..(pa + self.machine.span(level)) / span
    }
}

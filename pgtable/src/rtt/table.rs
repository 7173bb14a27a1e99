//! Tables of a realm: made under an entry, destroyed empty, folded into an
//! entry that says the same.

use super::{HIPAS_ASSIGNED, Released, Removed, Ripas, Rtt, RttError, UNPROTECTED, live};
use crate::addr::{Ipa, Level, Pa};
use crate::error::Budget;
use crate::format;
use crate::maintenance::Maintenance;
use crate::mem::TableMem;
use crate::plan::Pending;
use crate::shape::Shape;
use crate::sink::LeafSink;
use crate::sync;
use crate::tree::Slot;

impl<M: TableMem> Rtt<M> {
    /// Checks of the commands that name a table: its level and its span.
    pub(super) fn check_table(&self, ipa: Ipa, level: Level) -> Result<(), RttError> {
        if level <= self.tree.core.shape.start() {
            return Err(RttError::Input);
        }
        self.check(ipa, Shape::level(level.get() - 1))
    }

    /// RTT_CREATE: puts the zeroed page `rtt` as a table of `level` where an
    /// entry of `level − 1` stands. Its entries say what that entry said.
    ///
    /// # Errors
    /// `Input`; `Rtt` if the walk ended early or a table is there already.
    pub fn create<T: Maintenance>(
        &mut self,
        maint: &mut T,
        ipa: Ipa,
        level: Level,
        rtt: Pa,
    ) -> Result<(), RttError> {
        self.check_table(ipa, level)?;
        let core = &self.tree.core;
        self.check_page(rtt, core.shape.granule().page_size())?;
        let mut slot = core.walk_to(ipa.get(), level.get() - 1);
        if slot.level < level.get() - 1
            || format::is_table(slot.raw, slot.level)
            || format::is_frozen(slot.raw)
        {
            return Err(self.fault(&slot, ipa.get()));
        }
        if format::is_leaf(slot.raw, slot.level) {
            return core
                .split_slot(maint, &mut slot, ipa.get(), rtt)
                .map_err(|_| self.fault(&slot, ipa.get()));
        }
        let raw = slot.raw;
        if raw & HIPAS_ASSIGNED != 0 {
            let table = core.mem.locate(rtt);
            let entries = core.shape.table_entries();
            let mut entry = raw;
            for index in 0..entries {
                core.mem.store(table, index, entry);
                entry = entry.wrapping_add(1 << (slot.shift - core.shape.stride()));
            }
            core.mem.add_count(rtt, entries as i32);
        } else {
            core.fill_uniform(rtt, raw);
        }
        if core.link(&mut slot, raw, rtt).is_err() {
            return Err(self.fault(&slot, ipa.get()));
        }
        sync::publish(maint, &core.tlb);
        Ok(())
    }

    /// RTT_DESTROY: takes out the table of `level` at `ipa`, which must have
    /// a count of 0. `sink` is told of the unprotected leaves in it, which
    /// are cleaned if there is no FWB: one by one as far as the budget goes,
    /// and what is left of them with the table.
    ///
    /// # Errors
    /// `Input`; `Rtt` with the parent's level where no table is, with `level`
    /// where the table is in use; `Again` while leaves are released.
    pub fn destroy<T: Maintenance, S: LeafSink>(
        &mut self,
        maint: &mut T,
        ipa: Ipa,
        level: Level,
        sink: &mut S,
        budget: &mut Budget,
    ) -> Result<Removed, RttError> {
        self.check_table(ipa, level)?;
        let core = &self.tree.core;
        let slot = core.walk_to(ipa.get(), level.get() - 1);
        if slot.level < level.get() - 1 || !format::is_table(slot.raw, slot.level) {
            return Err(self.fault(&slot, ipa.get()));
        }
        let rtt = Pa::new(core.shape.decode_oa(slot.raw));
        if core.mem.count(rtt) != 0 {
            return Err(RttError::Rtt { level, top: ipa });
        }
        let protected = self.is_protected(ipa);
        let entries = core.shape.table_entries();
        let table = core.mem.locate(rtt);
        let leaf = |index: &usize| format::is_leaf(core.mem.load(table, *index), level.get());
        let leaves = if protected {
            0
        } else {
            (0..entries).filter(leaf).count() as u64
        };
        let released = Released {
            table,
            index: 0,
            level: level.get(),
            base: ipa.get(),
        };
        let looks = S::WANTS || !core.fwb;
        let units = self.units(level.get());
        if looks && leaves * units > budget.left().max(units) {
            self.release_some(maint, sink, released, budget);
            return Err(RttError::Again);
        }
        let step = if leaves > 0 {
            slot.shift - core.shape.stride()
        } else {
            slot.shift
        };
        self.break_table(maint, &slot, ipa, step);
        if looks && leaves > 0 {
            for index in 0..entries {
                let entry = Released { index, ..released };
                self.freeze_leaf(&entry);
                self.release_leaf(maint, sink, &entry, budget);
            }
        }
        let blank = if protected {
            Ripas::Destroyed.bits()
        } else {
            UNPROTECTED
        };
        self.make_entry(maint, &slot, blank);
        Ok(Removed {
            pa: rtt,
            top: self.top(&slot, ipa.get()),
        })
    }

    /// Takes leaves out of a table that stays for now, as far as the budget
    /// goes: one at least.
    fn release_some<T: Maintenance, S: LeafSink>(
        &self,
        maint: &mut T,
        sink: &mut S,
        of: Released<M::Table>,
        budget: &mut Budget,
    ) {
        let core = &self.tree.core;
        let size = core.shape.span_at(of.level);
        let most = (budget.left() / self.units(of.level)).max(1) as usize;
        let leaf = |index: &usize| format::is_leaf(core.mem.load(of.table, *index), of.level);
        let mut leaves = (0..core.shape.table_entries()).filter(leaf);
        let Some(first) = leaves.next() else {
            return;
        };
        let last = leaves.take(most - 1).last().unwrap_or(first);
        let mut pending = Pending::new();
        for index in first..=last {
            if self.freeze_leaf(&Released { index, ..of }) {
                let at = of.base + index as u64 * size;
                pending.leaves(&core.shape, at, at + size, of.level);
            }
        }
        let _done = sync::sync(maint, &core.tlb, &pending);
        for index in first..=last {
            self.release_leaf(maint, sink, &Released { index, ..of }, budget);
        }
    }

    /// What releasing a leaf of the host's costs.
    fn units(&self, level: i8) -> u64 {
        let core = &self.tree.core;
        if core.fwb {
            1
        } else {
            1 + Budget::of_bytes(core.shape.span_at(level))
        }
    }

    /// Freezes a leaf. False where none stands.
    fn freeze_leaf(&self, entry: &Released<M::Table>) -> bool {
        let core = &self.tree.core;
        let mut raw = core.mem.load(entry.table, entry.index);
        while format::is_leaf(raw, entry.level) {
            let frozen = format::freeze(raw, entry.level);
            match core.mem.cas(entry.table, entry.index, raw, frozen) {
                Ok(()) => return true,
                Err(now) => raw = now,
            }
        }
        false
    }

    /// Breaks a table's entry, with entries of 2^`step` bytes at least under
    /// it.
    fn break_table<T: Maintenance>(
        &self,
        maint: &mut T,
        slot: &Slot<M::Table>,
        ipa: Ipa,
        step: u32,
    ) {
        let core = &self.tree.core;
        let base = slot.base(ipa.get());
        core.mem
            .store(slot.table, slot.index, format::freeze(slot.raw, slot.level));
        let mut pending = Pending::new();
        pending.table(base, base + (1 << slot.shift), step);
        let _done = sync::sync(maint, &core.tlb, &pending);
    }

    /// Makes `new` of the entry of a table that is broken.
    fn make_entry<T: Maintenance>(&self, maint: &mut T, slot: &Slot<M::Table>, new: u64) {
        let core = &self.tree.core;
        core.mem.store(slot.table, slot.index, new);
        core.add_count(slot.pa, core.counting.of(new) - 1);
        if new & format::VALID != 0 {
            sync::publish(maint, &core.tlb);
        }
    }

    /// RTT_FOLD: makes one entry of `level − 1` of a table of `level` whose
    /// entries are alike. Returns the table's page.
    ///
    /// # Errors
    /// `Input`; `Rtt` with the level reached where no table is, with `level`
    /// where entries are not alike or no block of that size may stand.
    pub fn fold<T: Maintenance>(
        &mut self,
        maint: &mut T,
        ipa: Ipa,
        level: Level,
    ) -> Result<Pa, RttError> {
        self.check_table(ipa, level)?;
        let core = &self.tree.core;
        let slot = core.walk_to(ipa.get(), level.get() - 1);
        if slot.level < level.get() - 1 || !format::is_table(slot.raw, slot.level) {
            return Err(self.fault(&slot, ipa.get()));
        }
        let rtt = Pa::new(core.shape.decode_oa(slot.raw));
        let refuse = RttError::Rtt { level, top: ipa };
        let count = core.mem.count(rtt);
        let (new, valid) = core.uniform(rtt, level.get()).ok_or(refuse)?;
        if live(new) {
            // Blocks at level 1 for protected data, level 2 for the host's.
            let least = if new & UNPROTECTED != 0 { 2 } else { 1 };
            if !core.shape.leaf_at(slot.level) || slot.level < least {
                return Err(refuse);
            }
        }
        let step = if valid {
            slot.shift - core.shape.stride()
        } else {
            slot.shift
        };
        self.break_table(maint, &slot, ipa, step);
        // Hardware may have marked a page dirty until now: then the table
        // stays what it was, rather than lose the mark.
        let now = core.uniform(rtt, level.get());
        self.make_entry(maint, &slot, now.map_or(slot.raw, |(new, _)| new));
        if now.is_none() {
            return Err(refuse);
        }
        core.mem.add_count(rtt, -(count as i32));
        Ok(rtt)
    }
}

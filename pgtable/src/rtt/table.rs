//! Tables of a realm: made under an entry, destroyed empty, folded into an
//! entry that says the same.

use super::{HIPAS_ASSIGNED, Removed, Ripas, Rtt, RttError, UNPROTECTED, live};
use crate::addr::{Ipa, Level, Pa};
use crate::format;
use crate::geometry::Shape;
use crate::maintenance::Maintenance;
use crate::mem::TableMem;
use crate::plan::Pending;
use crate::sink::{LeafSink, RemovedLeaf};
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
        if slot.level < level.get() - 1 || format::is_table(slot.raw, slot.level) {
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
    /// a count of 0. `sink` is told of the unprotected leaves in it.
    ///
    /// # Errors
    /// `Input`; `Rtt` with the parent's level where no table is, with `level`
    /// where the table is in use.
    pub fn destroy<T: Maintenance, S: LeafSink>(
        &mut self,
        maint: &mut T,
        ipa: Ipa,
        level: Level,
        sink: &mut S,
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
        let table = core.mem.locate(rtt);
        let entries = core.shape.table_entries();
        let protected = self.is_protected(ipa);
        let leaf = |raw| format::is_leaf(raw, level.get());
        let leaves = !protected && (0..entries).any(|index| leaf(core.mem.load(table, index)));
        let step = if leaves {
            slot.shift - core.shape.stride()
        } else {
            slot.shift
        };
        let blank = if protected {
            Ripas::Destroyed.bits()
        } else {
            UNPROTECTED
        };
        self.replace_table(maint, &slot, ipa, step, |_| blank);
        if leaves && (S::WANTS || !core.fwb) {
            for index in 0..entries {
                let raw = core.mem.load(table, index);
                if leaf(raw) {
                    let at = ipa.get() + ((index as u64) << (slot.shift - core.shape.stride()));
                    let removed = RemovedLeaf::new(&core.shape, at, level.get(), raw);
                    core.clean_removed(maint, &removed);
                    sink.leaf(removed);
                }
            }
        }
        Ok(Removed {
            pa: rtt,
            top: self.top(&slot, ipa.get()),
        })
    }

    /// Break-before-make of a table's entry to what `new` makes of it then,
    /// with entries of 2^`step` bytes at least under it.
    fn replace_table<T: Maintenance>(
        &self,
        maint: &mut T,
        slot: &Slot<M::Table>,
        ipa: Ipa,
        step: u32,
        new: impl FnOnce(u64) -> u64,
    ) {
        let core = &self.tree.core;
        let base = slot.base(ipa.get());
        core.mem
            .store(slot.table, slot.index, format::freeze(slot.raw, slot.level));
        let mut pending = Pending::new();
        pending.table(base, base + (1 << slot.shift), step);
        let _done = sync::sync(maint, &core.tlb, &pending);
        let new = new(slot.raw);
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
        let mut alike = true;
        self.replace_table(maint, &slot, ipa, step, |raw| {
            // Hardware may have marked a page dirty until now: then the table
            // stays what it was, rather than lose the mark.
            match core.uniform(rtt, level.get()) {
                Some((new, _)) => new,
                None => {
                    alike = false;
                    raw
                }
            }
        });
        if !alike {
            return Err(refuse);
        }
        core.mem.add_count(rtt, -(count as i32));
        Ok(rtt)
    }
}

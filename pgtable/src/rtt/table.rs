//! Tables of a realm: made under an entry, destroyed empty, folded into an
//! entry that says the same.

use super::{HIPAS_ASSIGNED, Removed, Ripas, Rtt, RttAt, RttError, UNASSIGNED_NS, live};
use crate::addr::{Level, Pa};
use crate::desc::{Desc, Kind};
use crate::error::Budget;
use crate::maintenance::Maintenance;
use crate::mem::TableMem;
use crate::shape::bytes;
use crate::sink::LeafSink;
use crate::tree::Slot;

impl<M: TableMem> Rtt<M> {
    /// Where a walk for the entry of a command's table ends: at the entry itself, or
    /// it is no table's.
    #[inline(always)]
    fn parent(&self, at: RttAt) -> Result<Slot<M::Table>, RttError> {
        let core = &self.tree.core;
        if at.level <= core.shape.start() {
            return Err(RttError::Input);
        }
        self.check(at.ipa, at.level.up())?;
        Ok(core.walk_to(at.ipa.into(), at.level.up()))
    }

    /// The entry that points to a command's table, and the table.
    #[inline(always)]
    fn table(&self, at: RttAt) -> Result<(Slot<M::Table>, Pa), RttError> {
        let slot = self.parent(at)?;
        match slot.kind(&self.tree.core.shape) {
            Kind::Table(table) => Ok((slot, table)),
            _ => Err(self.fault(&slot, at.ipa)),
        }
    }

    /// RTT_CREATE: puts the zeroed page `rtt` as a table where an
    /// entry of the level above stands. Its entries say what that entry said.
    ///
    /// # Errors
    /// `Input`; `Rtt` if the walk ended early or a table is there already.
    pub fn create<T: Maintenance>(
        &mut self,
        maint: &mut T,
        at: RttAt,
        rtt: Pa,
    ) -> Result<(), RttError> {
        let mut slot = self.parent(at)?;
        let core = &self.tree.core;
        self.check_page(rtt, core.shape.page_mask() + 1)?;
        let kind = slot.kind(&core.shape);
        let mut work = core.work(maint);
        let made = match kind {
            _ if slot.level != at.level.up() => false,
            Kind::Leaf => {
                return match work.split(&mut slot, rtt) {
                    Ok(()) => Ok(()),
                    Err(_) => Err(self.fault(&slot, at.ipa)),
                };
            }
            Kind::Invalid if slot.desc.has(HIPAS_ASSIGNED) => {
                let step = bytes(slot.shift - core.shape.stride());
                core.fill_row(rtt, slot.desc, step);
                core.link(&mut slot, rtt).is_ok()
            }
            Kind::Invalid => {
                core.fill_uniform(rtt, slot.desc);
                core.link(&mut slot, rtt).is_ok()
            }
            _ => false,
        };
        if !made {
            return Err(self.fault(&slot, at.ipa));
        }
        work.publish();
        Ok(())
    }

    /// RTT_DESTROY: takes out a table, which must have
    /// a count of 0. `sink` is told of the unprotected leaves in it, which
    /// are cleaned if there is no FWB: one by one as far as the budget goes,
    /// and what is left of them with the table.
    ///
    /// # Errors
    /// `Input`; `Rtt` with the parent's level where no table is, with the table's
    /// where it is in use; `Again` while leaves are released.
    pub fn destroy<T: Maintenance, S: LeafSink>(
        &mut self,
        maint: &mut T,
        at: RttAt,
        sink: &mut S,
        budget: &mut Budget,
    ) -> Result<Removed, RttError> {
        let (slot, rtt) = self.table(at)?;
        let core = &self.tree.core;
        if core.mem.count(rtt) != 0 {
            let RttAt { ipa: top, level } = at;
            return Err(RttError::Rtt { level, top });
        }
        let protected = self.is_protected(at.ipa);
        // Only the host's memory is looked for in it.
        let first = (!protected).then(|| core.child(&slot, slot.ia));
        let leaves = first.map_or(0, |first| self.leaves(&first).count() as u64);
        let looked = first.filter(|_| leaves > 0 && (S::WANTS || !core.features.fwb));
        if let Some(first) = looked {
            let units = self.units(&first);
            if leaves * units > budget.left().max(units) {
                self.release_some(maint, sink, &first, budget);
                return Err(RttError::Again);
            }
        }
        let smallest = if leaves > 0 { at.level } else { slot.level };
        let _done = core.work(maint).break_table(&slot, smallest);
        if let Some(first) = looked {
            for leaf in self.leaves(&first) {
                core.freeze_live(&leaf, |desc| desc.is_leaf(leaf.level));
                self.release_leaf(maint, sink, &leaf, budget);
            }
        }
        let blank = if protected {
            Ripas::Destroyed.unassigned()
        } else {
            UNASSIGNED_NS
        };
        core.work(maint).remake(&slot, blank);
        Ok(Removed {
            pa: rtt,
            top: self.top(&slot, at.ipa),
        })
    }

    /// The leaves of the table whose first entry this is.
    fn leaves(&self, first: &Slot<M::Table>) -> impl Iterator<Item = Slot<M::Table>> {
        let (core, first) = (&self.tree.core, *first);
        (0..core.shape.table_entries())
            .map(move |index| first.after(index, core.load(first.table, index)))
            .filter(move |entry| entry.desc.is_leaf(first.level))
    }

    /// Takes leaves out of a table that stays for now, as far as the budget
    /// goes: one at least.
    fn release_some<T: Maintenance, S: LeafSink>(
        &self,
        maint: &mut T,
        sink: &mut S,
        first: &Slot<M::Table>,
        budget: &mut Budget,
    ) {
        let core = &self.tree.core;
        let most = (budget.left() / self.units(first)).max(1) as usize;
        let mut work = core.work(&mut *maint);
        let mut to = 0;
        for leaf in self.leaves(first).take(most) {
            if core.freeze_live(&leaf, |desc| desc.is_leaf(leaf.level)) {
                let pending = work.changes.pending();
                pending.leaves(&core.shape, leaf.extent(), leaf.level);
            }
            to = leaf.index + 1;
        }
        let _done = work.finish();
        for index in 0..to {
            let entry = first.after(index, Desc::EMPTY);
            if core.load(entry.table, index).is_frozen() {
                self.release_leaf(maint, sink, &entry, budget);
            }
        }
    }

    /// What releasing a leaf of the host's costs.
    fn units(&self, leaf: &Slot<M::Table>) -> u64 {
        let told = self.tree.core.shape.blocks(leaf.level);
        if self.tree.core.features.fwb {
            told
        } else {
            told + Budget::of_bytes(leaf.size())
        }
    }

    /// RTT_FOLD: makes one entry of the level above of a table whose
    /// entries are alike. Returns the table's page.
    ///
    /// # Errors
    /// `Input`; `Rtt` with the level reached where no table is, with the table's
    /// where entries are not alike or no block of that size may stand.
    pub fn fold<T: Maintenance>(&mut self, maint: &mut T, at: RttAt) -> Result<Pa, RttError> {
        let (slot, rtt) = self.table(at)?;
        let core = &self.tree.core;
        let RttAt { ipa: top, level } = at;
        let refuse = RttError::Rtt { level, top };
        let count = core.mem.count(rtt);
        let new = core.uniform(rtt, level).ok_or(refuse)?;
        if live(new) {
            // Blocks begin at level 1.
            if !core.shape.leaf_ok(slot.level) || slot.level < Level::L1 {
                return Err(refuse);
            }
        }
        let _done = core.work(maint).fold(&slot, rtt, new).ok_or(refuse)?;
        core.add_count(rtt, -(count as i32));
        Ok(rtt)
    }
}

//! Changing leaves in place: the loop under protect, age and dirty tracking.
//!
//! A change never moves a leaf nor changes its size or memory type, so it
//! needs no break (spec 1.8). What it takes away is not gone until a TLB
//! forgets it: such leaves are noted, and invalidated at once or later.

use crate::addr::{Extent, Ia, Level, Pa};
use crate::desc::{CONTIGUOUS, Desc, Kind, TYPE};
use crate::error::{Budget, Error, Stopped};
use crate::maintenance::Maintenance;
use crate::mem::TableMem;
use crate::plan::Pending;
use crate::tree::{Over, Slot};
use crate::unmap::Partial;
use crate::work::{Changes, Work};

/// What is done to each leaf.
pub(crate) trait Alter {
    /// Leaves are taken out: what stands there is frozen until it is flushed.
    const REMOVES: bool = false;
    /// Leaves that have all these bits change for sure, others do not.
    const SURE: Option<u64> = None;
    /// A change of one member of a contiguous group breaks the group before.
    const BREAKS_GROUPS: bool = true;

    /// What a leaf becomes.
    fn alter(&mut self, leaf: Desc) -> Desc;

    /// Is asked before a leaf changes.
    #[inline]
    fn before<T: Maintenance>(&mut self, _maint: &mut T, _old: Desc, _new: Desc) {}

    /// Is told of a leaf that was changed.
    #[inline]
    fn altered(&mut self, _at: Ia, _level: Level, _old: Desc) {}
}

/// A change of leaves under way.
pub(crate) struct Altering<'a, M: TableMem, T, C> {
    pub(crate) work: Work<'a, M, T>,
    /// Where changed leaves are noted.
    pub(crate) pending: &'a mut Pending,
    pub(crate) budget: &'a mut Budget,
    pub(crate) range: Extent,
    /// What becomes of a block that the range covers in part.
    pub(crate) partial: Partial,
    pub(crate) change: C,
    /// So many leaves were changed.
    pub(crate) count: u64,
}

impl<M: TableMem, T: Maintenance, C: Alter> Altering<'_, M, T, C> {
    /// Changes all leaves of the range. Returns where the budget ended.
    #[inline]
    pub(crate) fn run(&mut self) -> Result<Ia, Stopped<Ia>> {
        let Extent { start, end } = self.range;
        let mut ia = start;
        while ia < end {
            let slot = self.work.core.walk_to(ia, Level::L3);
            let inside = self.range.covers(slot.extent());
            if !inside && slot.desc.is_leaf(slot.level) {
                let next = slot.ia.max(ia);
                if self.split_before(&slot, ia).map_err(Stopped::at(next))? {
                    continue;
                }
            }
            let count = if inside { self.count_from(&slot) } else { 1 };
            let (to, why) = self.alter_run(&slot, count);
            ia = to.max(ia);
            if let Some(why) = why {
                let next = ia.min(end);
                return Err(Stopped { why, next });
            }
            if self.budget.is_spent() {
                break;
            }
        }
        Ok(ia.min(end))
    }

    /// A block that the range covers in part. True when it was split.
    fn split_before(&mut self, slot: &Slot<M::Table>, ia: Ia) -> Result<bool, Error> {
        let level = slot.level;
        match self.partial {
            Partial::DropWhole => Ok(false),
            Partial::Refuse => Err(Error::InsideBlock { level }),
            Partial::Split => {
                let split = self.work.reach(ia, level.down(), Over::Anything);
                let _done = self.work.finish();
                self.work.changes = Changes::NONE;
                split.map(|_| true)
            }
        }
    }

    /// How many entries from `slot` on the range and the budget cover.
    fn count_from(&self, slot: &Slot<M::Table>) -> usize {
        (self.range.end.since(slot.ia) >> slot.shift)
            .min(self.work.core.entries_left(slot) as u64)
            .min(self.budget.left().max(1)) as usize
    }

    /// Changes `count` neighbouring entries of one table. Returns where it came to,
    /// and what stopped it.
    #[inline]
    fn alter_run(&mut self, slot: &Slot<M::Table>, count: usize) -> (Ia, Option<Error>) {
        let core = self.work.core;
        // An entry that is no such leaf is handled out of line.
        let sure = C::SURE.unwrap_or(0);
        let group = if C::BREAKS_GROUPS { CONTIGUOUS } else { 0 };
        let others = !(TYPE | group | sure);
        let leaf = Desc::new(sure).leaf(&core.shape, Pa::new(0), slot.level);
        let (table, first) = (slot.table, slot.index);
        let mut why = None;
        // Leaves changed in a row, from this one on, are noted together.
        let mut run = first;
        let mut index = first;
        let last = first + count;
        self.make_room();
        while index < last {
            let desc = core.load(table, index);
            if desc.is_like(leaf, others) {
                let new = if C::REMOVES {
                    Desc::GATHERED
                } else {
                    self.change.alter(desc)
                };
                if C::SURE.is_some() || new != desc {
                    self.change.before(self.work.maint, desc, new);
                    // If not, it was hardware or another CPU: look again.
                    if core.cas(table, index, desc, new).is_ok() {
                        let at = slot.after(index.wrapping_sub(first), desc).ia;
                        self.change.altered(at, slot.level, desc);
                        index += 1;
                    }
                    continue;
                }
            } else {
                match self.alter_other(slot.after(index - first, desc)) {
                    Ok(Other::Passed) => (),
                    Ok(Other::Again) => continue,
                    Ok(Other::Table) => break,
                    Err(error) => {
                        why = Some(error);
                        break;
                    }
                }
            }
            // Unchanged: the run ends before it.
            self.note(slot, run, index);
            index += 1;
            run = index;
            self.make_room();
        }
        self.note(slot, run, index);
        let done = index - first;
        self.budget.spend((done as u64).max(1));
        (slot.after(done, slot.desc).ia, why)
    }

    /// An entry that is no leaf of the kind that is looked for.
    #[cold]
    #[inline(never)]
    fn alter_other(&mut self, mut slot: Slot<M::Table>) -> Result<Other, Error> {
        let kind = slot.kind(&self.work.core.shape);
        match kind {
            Kind::Table(_) => Ok(Other::Table),
            _ if kind.is_frozen() => Err(Error::Busy),
            Kind::Leaf if self.change.alter(slot.desc) != slot.desc => {
                self.work.break_group(&mut slot)?;
                Ok(Other::Again)
            }
            _ => Ok(Other::Passed),
        }
    }

    /// Notes the leaves from `run` up to `index`, which were changed.
    #[inline]
    fn note(&mut self, slot: &Slot<M::Table>, run: usize, index: usize) {
        let count = (index - run) as u64;
        self.count += count;
        let start = slot.after(run - slot.index, slot.desc).ia;
        let extent = Extent::new(start, count << slot.shift);
        let shape = &self.work.core.shape;
        if C::REMOVES {
            self.pending.held(shape, extent, slot.level);
        } else {
            self.pending.leaves(shape, extent, slot.level);
        }
    }

    /// Leaves that are held frozen are covered by no other run: where there is no
    /// room for one more, all are flushed.
    #[inline]
    fn make_room(&mut self) {
        if self.pending.is_full() && (C::REMOVES || self.pending.is_full_of_held()) {
            let _done = self.work.flush_held(self.pending);
        }
    }
}

/// What an entry is that was not changed.
enum Other {
    /// Nothing to change.
    Passed,
    /// Somebody has changed it, or its group is broken: look again.
    Again,
    /// A table, to be entered.
    Table,
}

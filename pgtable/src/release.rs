//! What is broken and invalidated is released: memory is cleaned and told, cut
//! tables are freed, frozen entries get their final value. Step 3 of every
//! removal (see `unmap`), and of what a mapping replaces.
//!
//! Whoever calls holds the frozen entries, and has the proof of their
//! invalidation. A budget that ends leaves the rest parked.

use crate::addr::Pa;
use crate::error::Budget;
use crate::format::{self, GOING};
use crate::geometry::Shape;
use crate::maintenance::{CacheOp, Maintenance};
use crate::mem::TableMem;
use crate::sink::{LeafSink, RemovedLeaf};
use crate::sync::Synced;
use crate::tree::Core;
use crate::unmap::UnmapJob;

/// What becomes of removed leaves, after their invalidation.
pub(crate) trait Release {
    /// False: leaves need not be visited.
    const WANTS: bool;
    /// Leaves take work that is in the budget.
    const STEPS: bool;

    /// Gets a leaf of which `cleaned` bytes are clean and told. Returns how
    /// many are then; when all, the leaf is done with.
    fn leaf(&mut self, leaf: RemovedLeaf, cleaned: u64, budget: &mut Budget) -> u64;
}

/// Leaves are told, no more.
pub(crate) struct Tell<'a, S>(pub(crate) &'a mut S);

impl<S: LeafSink> Release for Tell<'_, S> {
    const WANTS: bool = S::WANTS;
    const STEPS: bool = false;

    #[inline]
    fn leaf(&mut self, leaf: RemovedLeaf, cleaned: u64, _: &mut Budget) -> u64 {
        self.0.leaf(leaf.part(cleaned, leaf.size()));
        leaf.size()
    }
}

/// The caches of leaves are cleaned and invalidated, then they are told: the
/// guest may have written past the caches.
pub(crate) struct CleanAndTell<'a, M, T, S> {
    pub(crate) core: &'a Core<M>,
    pub(crate) maint: &'a mut T,
    pub(crate) sink: &'a mut S,
    /// Output minus input address of a mapping that takes the leaf's place:
    /// memory that stays where it was need not be cleaned.
    pub(crate) stays: Option<u64>,
}

impl<M: TableMem, T: Maintenance, S: LeafSink> Release for CleanAndTell<'_, M, T, S> {
    const WANTS: bool = true;
    const STEPS: bool = true;

    fn leaf(&mut self, leaf: RemovedLeaf, cleaned: u64, budget: &mut Budget) -> u64 {
        let offset = leaf.pa().get().wrapping_sub(leaf.ia());
        let mut to = leaf.size();
        if format::is_seen_uncached(leaf.raw(), self.core.fwb) && self.stays != Some(offset) {
            to = self
                .core
                .clean(self.maint, leaf.pa(), leaf.size(), cleaned, budget);
        }
        self.sink.leaf(leaf.part(cleaned, to));
        to
    }
}

impl<M: TableMem> Core<M> {
    /// Step 3 of an unmapping. Returns where the budget ended, if it did.
    pub(crate) fn release_range<T: Maintenance, S: LeafSink>(
        &self,
        maint: &mut T,
        sink: &mut S,
        job: &UnmapJob,
        range: (u64, u64),
        done: &Synced,
        budget: &mut Budget,
    ) -> Option<u64> {
        if job.clean {
            let core = self;
            let stays = None;
            let mut clean = CleanAndTell {
                core,
                maint,
                sink,
                stays,
            };
            self.release(&mut clean, job, range, done, budget)
        } else {
            self.release(&mut Tell(sink), job, range, done, budget)
        }
    }

    /// Step 3: gives frozen entries in `[start, end)` their final value, after
    /// their memory was cleaned, `out` told and cut tables freed. Returns
    /// where the budget ended, if it did: what is left is parked then.
    fn release<R: Release>(
        &self,
        out: &mut R,
        job: &UnmapJob,
        (start, end): (u64, u64),
        done: &Synced,
        budget: &mut Budget,
    ) -> Option<u64> {
        let of_blank = self.counting.of(job.blank);
        let mut ia = start;
        let mut progress = false;
        while ia < end {
            let slot = self.walk_to(ia, 3);
            let level = slot.level;
            let step = 1u64 << slot.shift;
            let mut at = slot.base(ia);
            let mut more = 0;
            let mut stopped = None;
            for index in slot.index..slot.index + self.entries_left(&slot) {
                if at >= end {
                    break;
                }
                let raw = self.mem.load(slot.table, index);
                if format::is_frozen(raw) && !format::is_coming(raw) {
                    if progress && (R::STEPS || format::was_table(raw, level)) && budget.is_spent()
                    {
                        stopped = Some((at, at));
                        break;
                    }
                    progress = true;
                    if format::was_table(raw, level) {
                        let table = self.shape.decode_oa(raw);
                        if !self.reclaim(table, level + 1, at, out, done, budget) {
                            stopped = Some((at, at));
                            break;
                        }
                    } else {
                        let cleaned = raw & format::cleaned_mask(&self.shape, level);
                        let leaf =
                            RemovedLeaf::new(&self.shape, at, level, self.leaf_of(raw, level));
                        let to = out.leaf(leaf, cleaned, budget);
                        if to < step {
                            let parked = format::park(&self.shape, raw, level, GOING, to);
                            self.mem.store(slot.table, index, parked);
                            // Inside the block: this much is done of it. What
                            // is dropped outside the range is no progress in
                            // it, nor is its last page any while that lasts.
                            let last = job.end - self.shape.page_mask() - 1;
                            let next = (at + to).max(job.start).min(last);
                            stopped = Some((next, at + step));
                            break;
                        }
                    }
                    self.mem.store(slot.table, index, job.blank);
                    more += of_blank;
                } else if format::is_table(raw, level) {
                    break;
                }
                at += step;
            }
            if more != 0 {
                self.mem.add_count(Pa::new(slot.pa), more);
            }
            if let Some((next, held)) = stopped {
                if !job.exclusive {
                    self.park_range(held, end);
                }
                return Some(next);
            }
            // A table that the loop stopped at is entered next. If it is the
            // first entry, which the walk took for none, another CPU has
            // just made it: nothing of ours is in it.
            ia = if at > ia { at } else { slot.end(ia) };
        }
        None
    }

    /// Parks the leaves in `[start, end)`, all of which this CPU holds frozen.
    pub(crate) fn park_range(&self, start: u64, end: u64) {
        let mut ia = start;
        while ia < end {
            let slot = self.walk_to(ia, 3);
            self.mem.store(slot.table, slot.index, slot.raw | GOING);
            ia = slot.end(ia);
        }
    }

    /// Frees the table at `pa`, whose entries are of `level`, and all below
    /// it, telling `out` of leaves. False when the budget ended before: the
    /// table is still there, with what is done taken out of it.
    pub(crate) fn reclaim<R: Release>(
        &self,
        pa: u64,
        level: i8,
        base: u64,
        out: &mut R,
        done: &Synced,
        budget: &mut Budget,
    ) -> bool {
        if level == 3 && !R::WANTS {
            budget.spend(1);
            self.give_back(pa, level, done);
            return true;
        }
        let table = self.mem.locate(Pa::new(pa));
        let entries = self.shape.table_entries();
        let step = self.shape.span_at(level);
        let mut at = base;
        // One child, or one step of cleaning, at least: every call gets on.
        let mut progress = false;
        let from = format::reclaimed(self.mem.load(table, 0));
        at = at.wrapping_add(step.wrapping_mul(from as u64));
        for index in from..entries {
            let raw = self.mem.load(table, index);
            if raw & format::TYPE != 0 {
                let frozen = format::is_frozen(raw);
                let is_table =
                    format::is_table(raw, level) || (frozen && format::was_table(raw, level));
                let leaf = R::WANTS
                    && (format::is_leaf(raw, level) || (frozen && !format::is_coming(raw)));
                let mut gone = true;
                if (is_table || (R::STEPS && leaf)) && progress && budget.is_spent() {
                    gone = false;
                } else if is_table {
                    progress = true;
                    let child = self.shape.decode_oa(raw);
                    if level == 2 && !R::WANTS {
                        // As if called for it, and that is most of the work.
                        budget.spend(1);
                        self.give_back(child, 3, done);
                    } else {
                        gone = self.reclaim(child, level + 1, at, out, done, budget);
                    }
                } else if leaf {
                    progress = true;
                    let (old, cleaned) = if frozen {
                        let mask = format::cleaned_mask(&self.shape, level);
                        (self.leaf_of(raw, level), raw & mask)
                    } else {
                        (raw, 0)
                    };
                    let leaf = RemovedLeaf::new(&self.shape, at, level, old);
                    let to = out.leaf(leaf, cleaned, budget);
                    if to < step {
                        let parked = format::park(&self.shape, raw, level, GOING, to);
                        self.mem.store(table, index, parked);
                        gone = false;
                    }
                }
                if !gone {
                    if index > from {
                        // What is done must not be met again.
                        self.mem.store(table, 0, format::reclaimed_to(index));
                    }
                    return false;
                }
            }
            at = at.wrapping_add(step);
        }
        budget.spend(1 + entries as u64);
        self.give_back(pa, level, done);
        true
    }

    #[inline]
    fn give_back(&self, table: u64, level: i8, done: &Synced) {
        if mutant!(TableLeaked, true, false) {
            self.mem.free(Pa::new(table), Shape::level(level), done);
        }
    }

    /// The leaf that a frozen entry was.
    #[inline]
    pub(crate) fn leaf_of(&self, raw: u64, level: i8) -> u64 {
        format::thaw(raw, level) & !format::cleaned_mask(&self.shape, level)
    }

    /// Cleans and invalidates the data caches of `[pa, pa + size)` from byte
    /// `cleaned` on as far as the budget goes, a step at least. Returns how
    /// far it came.
    pub(crate) fn clean<T: Maintenance>(
        &self,
        maint: &mut T,
        pa: Pa,
        size: u64,
        cleaned: u64,
        budget: &mut Budget,
    ) -> u64 {
        let room = budget.bytes_left() & !self.shape.page_mask();
        let step = room.min(size - cleaned);
        maint.cache(CacheOp::CleanInvalidateData {
            pa: Pa::new(pa.get() + cleaned),
            size: step,
        });
        budget.spend_bytes(step);
        cleaned + step
    }
}

//! Mapping a range: largest legal leaves, one store a leaf.
//!
//! The loop works table by table: it goes down once for each table, then
//! stores neighbouring entries in a row. What stands in the way of a plain
//! store is handled out of line.

use crate::addr::Pa;
use crate::error::{Budget, Error, Stopped};
use crate::format::{self, AF, CONTIGUOUS};
use crate::geometry::Shape;
use crate::maintenance::{CacheOp, Maintenance};
use crate::mem::TableMem;
use crate::plan::Pending;
use crate::stage2::Caches;
use crate::sync::{self, Synced};
use crate::tree::{Changes, Core, Over, Slot};
use crate::unmap::{LeafSink, RemovedLeaf};

/// A range to map, on raw numbers and checked.
pub(crate) struct MapJob {
    pub(crate) start: u64,
    pub(crate) end: u64,
    /// Output address of `start`.
    pub(crate) oa: u64,
    /// A leaf's attribute bits.
    pub(crate) attrs: u64,
    /// The largest level of leaf to use.
    pub(crate) top: i8,
    /// Use `top` only, whatever else fits.
    pub(crate) exact: bool,
    pub(crate) over: Over,
    /// Caches of what is mapped, before.
    pub(crate) caches: Caches,
    /// No other walker is in the tree.
    pub(crate) exclusive: bool,
}

impl<M: TableMem> Core<M> {
    pub(crate) fn map<T: Maintenance, S: LeafSink>(
        &self,
        maint: &mut T,
        sink: &mut S,
        job: &MapJob,
        budget: &mut Budget,
    ) -> Result<u64, Stopped<u64>> {
        let mut changes = Changes::new();
        let mut ia = job.start;
        let mut why = None;
        while ia < job.end {
            match self.map_run(maint, sink, job, ia, &mut changes, budget) {
                Ok(next) => ia = next,
                Err(stopped) => {
                    ia = stopped.next;
                    why = Some(stopped.why);
                    break;
                }
            }
            if budget.is_spent() {
                break;
            }
        }
        let _done: Synced = self.finish(maint, &changes);
        match why {
            None => Ok(ia),
            Some(why) => Err(Stopped { why, next: ia }),
        }
    }

    /// A fault's mapping: one leaf of the one level asked for, over nothing.
    /// Returns false for what is not so simple or not right, with nothing
    /// lost: the general way then does it, or says what is wrong.
    ///
    /// This is what a guest's first touch of a page costs, so it is short.
    #[inline(never)]
    pub(crate) fn map_one<T: Maintenance>(
        &self,
        maint: &mut T,
        ia: u64,
        oa: u64,
        attrs: u64,
        level: i8,
        caches: Caches,
    ) -> bool {
        let shape = &self.shape;
        let size = shape.span_at(level);
        // Aligned and inside the space is all that there is to check: no
        // such leaf can reach beyond the end, and none is above the root.
        let wrong = (ia | oa) & size.wrapping_sub(1) | ia & shape.ia_over() | oa & shape.oa_over();
        if wrong != 0 || !shape.leaf_at(level) {
            return false;
        }
        let mut walk = self.begin(ia);
        let mut left = i32::from(level) - i32::from(shape.start_raw());
        while left > 0 {
            if walk.raw & format::TYPE != format::TYPE_TABLE {
                let above = i32::from(level).wrapping_sub(left) as i8;
                if walk.raw != 0 || !self.make_empty_table(&mut walk, above) {
                    // Tables that were made are linked: visible, if not to all.
                    sync::publish(maint, &self.tlb);
                    return false;
                }
            }
            self.down(&mut walk);
            left -= 1;
        }
        if self.caches_matter && caches == Caches::Maintain {
            self.maintain(maint, attrs, Pa::new(oa), size);
        }
        let raw = attrs | format::leaf_type(level) | shape.encode_oa(oa);
        if self.mem.cas(walk.table, walk.index, 0, raw).is_err() {
            sync::publish(maint, &self.tlb);
            return false;
        }
        let more = self.counting.of(raw);
        if more != 0 {
            self.mem
                .add_count(Pa::new(walk.pa), mutant!(FaultUncounted, more, 0));
        }
        sync::publish(maint, &self.tlb);
        true
    }

    /// Cache maintenance of what is about to be mapped, as this CPU needs.
    #[cold]
    #[inline(never)]
    pub(crate) fn maintain<T: Maintenance>(&self, maint: &mut T, attrs: u64, pa: Pa, size: u64) {
        if mutant!(NoCleanBeforeMap, !self.fwb, false) && format::is_cacheable(attrs, false) {
            maint.cache(CacheOp::CleanInvalidateData { pa, size });
        }
        if mutant!(NoInstructionSync, !self.dic, false) && format::is_executable(attrs, self.xnx) {
            maint.cache(CacheOp::SyncInstructions { pa, size });
        }
    }

    /// Maps neighbouring entries of one table, from `ia` on.
    #[inline]
    fn map_run<T: Maintenance, S: LeafSink>(
        &self,
        maint: &mut T,
        sink: &mut S,
        job: &MapJob,
        ia: u64,
        changes: &mut Changes,
        budget: &mut Budget,
    ) -> Result<u64, Stopped<u64>> {
        let oa = job.oa + (ia - job.start);
        let left = job.end - ia;
        let level = if job.exact {
            job.top
        } else {
            self.shape.leaf_level(ia, oa, left, job.top)
        };
        let slot = match self.reach(maint, changes, ia, level, job.over) {
            Ok(slot) => slot,
            Err(why) => return Err(Stopped { why, next: ia }),
        };
        let count = (left >> slot.shift)
            .min(self.entries_left(&slot) as u64)
            .min(self.shape.linear_left(oa) >> slot.shift)
            .min(budget.left().max(1)) as usize;
        budget.spend(count as u64);
        if self.caches_matter && job.caches == Caches::Maintain {
            self.maintain(maint, job.attrs, Pa::new(oa), (count as u64) << slot.shift);
        }
        let mut raw = job.attrs | format::leaf_type(level) | self.shape.encode_oa(oa);
        let step = 1u64 << slot.shift;
        let mut fresh = 0u32;
        let mut index = slot.index;
        let last = slot.index + count;
        let mut why = None;
        while index < last {
            if self.mem.cas(slot.table, index, 0, raw).is_ok() {
                fresh = fresh.wrapping_add(1);
                raw = raw.wrapping_add(step);
                index += 1;
                continue;
            }
            let here = Slot { index, ..slot };
            let here_ia = ia + (((index - slot.index) as u64) << slot.shift);
            match self.occupied(maint, sink, job, &here, here_ia, raw, last - index, changes) {
                Ok(done) => {
                    raw = raw.wrapping_add(step * done as u64);
                    index += done;
                }
                Err(error) => {
                    why = Some(error);
                    break;
                }
            }
        }
        if fresh != 0 {
            changes.stored = true;
            if self.counting.of(job.attrs | format::VALID) != 0 {
                let fresh = mutant!(MapCountsOneMore, fresh, fresh + 1);
                self.mem.add_count(Pa::new(slot.pa), fresh as i32);
            }
        }
        let next = ia + (((index - slot.index) as u64) << slot.shift);
        match why {
            None => Ok(next),
            Some(why) => Err(Stopped { why, next }),
        }
    }

    /// An entry that is not empty is to become `raw`. Returns how many of
    /// the `count` entries from it on are done.
    #[cold]
    #[inline(never)]
    #[allow(clippy::too_many_arguments)]
    fn occupied<T: Maintenance, S: LeafSink>(
        &self,
        maint: &mut T,
        sink: &mut S,
        job: &MapJob,
        slot: &Slot<M::Table>,
        ia: u64,
        raw: u64,
        count: usize,
        changes: &mut Changes,
    ) -> Result<usize, Error> {
        let exists = Error::Exists {
            level: Shape::level(slot.level),
        };
        loop {
            let old = self.mem.load(slot.table, slot.index);
            if format::is_frozen(old) {
                return Err(Error::Busy);
            }
            if format::is_annotation(old) {
                if old != 0 && mutant!(MapOverAnnotation, job.over == Over::Nothing, false) {
                    return Err(exists);
                }
                if self.mem.cas(slot.table, slot.index, old, raw).is_ok() {
                    changes.stored = true;
                    let more = self.counting.of(raw) - self.counting.of(old);
                    if more != 0 {
                        self.mem.add_count(Pa::new(slot.pa), more);
                    }
                    return Ok(1);
                }
                continue;
            }
            let leaf = format::is_leaf(old, slot.level);
            if leaf && (old ^ raw) & !(AF | CONTIGUOUS) == 0 {
                // Mapped so already: another CPU was faster, or the caller
                // repeats itself. AF may have to be set; that needs no TLBI.
                if old & AF != 0 || raw & AF == 0 {
                    return Ok(1);
                }
                if self.mem.cas(slot.table, slot.index, old, old | AF).is_ok() {
                    changes.stored = true;
                    return Ok(1);
                }
                continue;
            }
            if mutant!(MapOverLeaf, job.over != Over::Anything, false) {
                return Err(exists);
            }
            if leaf && old & CONTIGUOUS != 0 {
                let mut slot = *slot;
                slot.raw = old;
                self.break_group(maint, &mut slot, ia)?;
                continue;
            }
            if leaf && !self.needs_break(old, raw) {
                if self.mem.cas(slot.table, slot.index, old, raw).is_ok() {
                    if mutant!(RemapWithoutInvalidate, false, true) {
                        return Ok(1);
                    }
                    changes
                        .pending()
                        .leaves(&self.shape, ia, ia + (1 << slot.shift), slot.level);
                    return Ok(1);
                }
                continue;
            }
            if format::is_table(old, slot.level) && !job.exclusive {
                return Err(Error::NeedsExclusive {
                    level: Shape::level(slot.level),
                });
            }
            return self.replace(maint, sink, slot, ia, raw, count);
        }
    }

    /// Break-before-make of neighbouring leaves and tables (the latter only
    /// under exclusive access), with one invalidation for all.
    fn replace<T: Maintenance, S: LeafSink>(
        &self,
        maint: &mut T,
        sink: &mut S,
        slot: &Slot<M::Table>,
        ia: u64,
        raw: u64,
        count: usize,
    ) -> Result<usize, Error> {
        let level = slot.level;
        let step = 1u64 << slot.shift;
        let exclusive_table = |old| format::is_table(old, level);
        let mut pending = Pending::new();
        let mut tables = 0;
        let mut broken = 0;
        let mut new = raw;
        while broken < count {
            let index = slot.index + broken;
            let old = self.mem.load(slot.table, index);
            let at = ia + ((broken as u64) << slot.shift);
            let is_table = exclusive_table(old);
            // The first one's kind was checked by the caller; the run ends
            // where something else begins.
            let same = if is_table {
                broken == 0 || tables > 0
            } else {
                tables == 0
                    && format::is_leaf(old, level)
                    && old & CONTIGUOUS == 0
                    && self.needs_break(old, new)
            };
            let frozen = mutant!(ReplaceWithoutBreak, format::freeze(old, level), old);
            if !same || self.mem.cas(slot.table, index, old, frozen).is_err() {
                break;
            }
            if is_table {
                tables += 1;
                pending.table(at, at + step, self.shape.page_bits());
            } else {
                pending.leaves(&self.shape, at, at + step, level);
            }
            broken += 1;
            new = new.wrapping_add(step);
        }
        if broken == 0 {
            return Err(Error::Busy);
        }
        let done = if mutant!(ReplaceWithoutInvalidate, true, false) {
            sync::sync(maint, &self.tlb, &pending)
        } else {
            Synced::never_linked()
        };
        let mut new = raw;
        let mut more = 0;
        for entry in 0..broken {
            let index = slot.index + entry;
            let at = ia + ((entry as u64) << slot.shift);
            let old = format::thaw(self.mem.load(slot.table, index), level);
            if mutant!(CollapseLosesBlock, true, false) {
                self.mem.store(slot.table, index, new);
            }
            more += self.counting.of(new) - self.counting.of(old);
            if exclusive_table(old) {
                let table = self.shape.decode_oa(old);
                let mut unlimited = Budget::unlimited();
                self.reclaim(table, level + 1, at, sink, &done, &mut unlimited);
            } else if S::WANTS {
                sink.leaf(RemovedLeaf::new(&self.shape, at, level, old));
            }
            new = new.wrapping_add(step);
        }
        if more != 0 {
            self.mem.add_count(Pa::new(slot.pa), more);
        }
        sync::publish(maint, &self.tlb);
        Ok(broken)
    }
}

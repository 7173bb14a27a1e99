//! Mapping a range: largest legal leaves, one store a leaf.
//!
//! The loop works table by table: it goes down once for each table, then
//! stores neighbouring entries in a row. What stands in the way of a plain
//! store is handled out of line.
//!
//! Memory that a guest may see past the caches is cleaned before it is
//! mapped. A block that is too large for the budget is cleaned in steps: its
//! entry is parked as *coming* between them (see `format`). What is replaced
//! is cleaned after its invalidation, in steps too: its entry is parked as
//! *going*, as by unmapping.

use crate::addr::Pa;
use crate::error::{Budget, Error, Stopped};
use crate::format::{self, AF, COMING, CONTIGUOUS, GOING, VALID};
use crate::geometry::Shape;
use crate::maintenance::{CacheOp, Maintenance};
use crate::mem::TableMem;
use crate::plan::Pending;
use crate::release::{CleanAndTell, Release, Tell};
use crate::sink::{LeafSink, RemovedLeaf};
use crate::sync::{self, Synced};
use crate::tree::{Changes, Core, Over, Slot};

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
    /// Clean data caches of what is mapped, before.
    pub(crate) clean: bool,
    /// Invalidate instruction caches of what is mapped, before.
    pub(crate) fetched: bool,
    /// Clean data caches of what is replaced, after.
    pub(crate) clean_old: bool,
    /// No other walker is in the tree.
    pub(crate) exclusive: bool,
}

/// A leaf to put somewhere, and what of it is to be stored now.
#[derive(Clone, Copy)]
struct New {
    /// The leaf.
    leaf: u64,
    /// What takes the place of something else: the leaf, or its coming form.
    stored: u64,
    /// It is not the first of its call.
    later: bool,
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

    /// True when data caches are to be cleaned of what is mapped so.
    #[inline]
    pub(crate) fn needs_clean(&self, attrs: u64) -> bool {
        let seen = format::is_seen_uncached(attrs, self.fwb);
        mutant!(NoCleanBeforeMap, seen, false)
    }

    /// True when instruction caches are to be invalidated of it.
    #[inline]
    pub(crate) fn needs_fetch_sync(&self, attrs: u64) -> bool {
        mutant!(NoInstructionSync, !self.dic, false) && format::is_executable(attrs, self.xnx)
    }

    /// Cache maintenance of what is about to be mapped, all at once.
    #[cold]
    #[inline(never)]
    pub(crate) fn maintain<T: Maintenance>(&self, maint: &mut T, attrs: u64, pa: Pa, size: u64) {
        if self.needs_clean(attrs) {
            maint.cache(CacheOp::CleanInvalidateData { pa, size });
        }
        if self.needs_fetch_sync(attrs) {
            maint.cache(CacheOp::InvalidateInstructions);
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
        let mut raw = job.attrs | format::leaf_type(level) | self.shape.encode_oa(oa);
        let mut count = (left >> slot.shift)
            .min(self.entries_left(&slot) as u64)
            .min(self.shape.linear_left(oa) >> slot.shift)
            .min(budget.left().max(1));
        if job.clean {
            let room = budget.bytes_left() >> slot.shift;
            if room == 0 {
                budget.spend(1);
                let mapped = self.map_in_steps(maint, sink, job, &slot, ia, raw, changes, budget);
                return match mapped {
                    Ok(true) => Ok(ia + (1 << slot.shift)),
                    Ok(false) => Ok(ia),
                    Err(why) => Err(Stopped { why, next: ia }),
                };
            }
            count = count.min(room);
            let size = count << slot.shift;
            maint.cache(CacheOp::CleanInvalidateData {
                pa: Pa::new(oa),
                size,
            });
            budget.spend_bytes(size);
        }
        if job.fetched {
            maint.cache(CacheOp::InvalidateInstructions);
        }
        let count = count as usize;
        budget.spend(count as u64);
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
            let new = New {
                leaf: raw,
                stored: raw,
                later: index > slot.index,
            };
            let more = last - index;
            match self.occupied(maint, sink, job, &here, here_ia, new, more, changes, budget) {
                // The budget ended in the middle of this entry.
                Ok(0) => break,
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

    /// Maps a block whose memory takes more cleaning than the budget has.
    /// False when it is not done: the entry is parked, and who is called for
    /// it again goes on.
    #[cold]
    #[inline(never)]
    #[allow(clippy::too_many_arguments)]
    fn map_in_steps<T: Maintenance, S: LeafSink>(
        &self,
        maint: &mut T,
        sink: &mut S,
        job: &MapJob,
        slot: &Slot<M::Table>,
        ia: u64,
        raw: u64,
        changes: &mut Changes,
        budget: &mut Budget,
    ) -> Result<bool, Error> {
        let (table, index, level) = (slot.table, slot.index, slot.level);
        let count = |more: i32| {
            if more != 0 {
                self.mem.add_count(Pa::new(slot.pa), more);
            }
        };
        let mask = format::cleaned_mask(&self.shape, level);
        let coming = format::park(&self.shape, raw, level, COMING, 0);
        let (pa, size) = (
            Pa::new(format::leaf_oa(&self.shape, raw, level)),
            1 << slot.shift,
        );
        loop {
            let old = self.mem.load(table, index);
            if format::is_annotation(old) {
                if old != 0 && job.over == Over::Nothing {
                    return Err(Error::Exists {
                        level: Shape::level(level),
                    });
                }
                if self.mem.cas(table, index, old, coming).is_ok() {
                    count(-self.counting.of(old));
                }
                continue;
            }
            if old & !mask != coming {
                let new = New {
                    leaf: raw,
                    stored: coming,
                    later: false,
                };
                let here = Slot { raw: old, ..*slot };
                if job.fetched && format::is_leaf(old, level) {
                    // It may be that only permissions grow.
                    maint.cache(CacheOp::InvalidateInstructions);
                }
                if self.occupied(maint, sink, job, &here, ia, new, 1, changes, budget)? == 0 {
                    return Ok(false);
                }
                if self.mem.load(table, index) & VALID != 0 {
                    // Mapped so already.
                    return Ok(true);
                }
                continue;
            }
            // Several CPUs may be at this: each step counts for one only.
            let cleaned = old & mask;
            let to = self.clean(maint, pa, size, cleaned, budget);
            let done = to == size;
            if done && job.fetched {
                maint.cache(CacheOp::InvalidateInstructions);
            }
            let new = if done { raw } else { coming | to };
            self.mem
                .cas(table, index, old, new)
                .map_err(|_| Error::Busy)?;
            if done {
                count(self.counting.of(raw));
                changes.stored = true;
            }
            return Ok(done);
        }
    }

    /// An entry that is not empty is to become `new`. Returns how many of
    /// the `count` entries from it on are done: 0 when the budget ended.
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
        new: New,
        count: usize,
        changes: &mut Changes,
        budget: &mut Budget,
    ) -> Result<usize, Error> {
        let raw = new.leaf;
        let level = slot.level;
        let exists = Error::Exists {
            level: Shape::level(level),
        };
        let swap = |old, new| self.mem.cas(slot.table, slot.index, old, new).is_ok();
        loop {
            let old = self.mem.load(slot.table, slot.index);
            if old & !format::cleaned_mask(&self.shape, level)
                == format::park(&self.shape, raw, level, COMING, 0)
            {
                // Begun with less budget: its memory is clean by now.
                if swap(old, raw) {
                    changes.stored = true;
                    self.add_count(slot.pa, self.counting.of(raw));
                    return Ok(1);
                }
                continue;
            }
            if job.exclusive && format::is_frozen(old) && old & format::PARKED == COMING {
                // Begun and given up.
                swap(old, 0);
                continue;
            }
            if format::is_frozen(old) {
                let table = format::was_table(old, slot.level);
                let ours = format::is_going(old) && (job.exclusive || !table);
                if !ours || job.over != Over::Anything {
                    return Err(Error::Busy);
                }
                // Left there when a budget ended: out of all TLBs already. If
                // it was this call's budget, it is for the next.
                if new.later && budget.is_spent() {
                    return Ok(0);
                }
                if !job.exclusive && !swap(old, old & !GOING) {
                    continue;
                }
                let never = Synced::never_linked();
                return Ok(self.install(maint, sink, job, slot, ia, new, 1, &never, budget));
            }
            if format::is_annotation(old) {
                if old != 0 && mutant!(MapOverAnnotation, job.over == Over::Nothing, false) {
                    return Err(exists);
                }
                if swap(old, new.stored) {
                    changes.stored = true;
                    // What is parked is not counted.
                    let of_new = if new.stored & VALID != 0 {
                        self.counting.of(raw)
                    } else {
                        0
                    };
                    self.add_count(slot.pa, of_new - self.counting.of(old));
                    return Ok(1);
                }
                continue;
            }
            let leaf = format::is_leaf(old, level);
            if leaf && (old ^ raw) & !(AF | CONTIGUOUS) == 0 {
                // Mapped so already: another CPU was faster, or the caller
                // repeats itself. AF may have to be set; that needs no TLBI.
                if old & AF != 0 || raw & AF == 0 {
                    return Ok(1);
                }
                if swap(old, old | AF) {
                    changes.stored = true;
                    return Ok(1);
                }
                continue;
            }
            let table = format::is_table(old, level);
            if mutant!(MapOverLeaf, job.over != Over::Anything, false) || !(leaf || table) {
                return Err(exists);
            }
            if leaf && old & CONTIGUOUS != 0 {
                let mut slot = *slot;
                slot.raw = old;
                self.break_group(maint, &mut slot, ia)?;
                continue;
            }
            if leaf && !self.needs_break(old, raw) {
                if swap(old, raw) {
                    if mutant!(RemapWithoutInvalidate, false, true) {
                        return Ok(1);
                    }
                    changes
                        .pending()
                        .leaves(&self.shape, ia, ia + (1 << slot.shift), level);
                    return Ok(1);
                }
                continue;
            }
            if table && !job.exclusive {
                return Err(Error::NeedsExclusive {
                    level: Shape::level(level),
                });
            }
            match self.replace(maint, sink, job, slot, ia, new, count, budget) {
                // Hardware has marked the first one in between.
                Err(Error::Busy) => continue,
                done => return done,
            }
        }
    }

    /// Break-before-make of neighbouring leaves and tables (the latter only
    /// under exclusive access), with one invalidation for all.
    #[allow(clippy::too_many_arguments)]
    fn replace<T: Maintenance, S: LeafSink>(
        &self,
        maint: &mut T,
        sink: &mut S,
        job: &MapJob,
        slot: &Slot<M::Table>,
        ia: u64,
        new: New,
        count: usize,
        budget: &mut Budget,
    ) -> Result<usize, Error> {
        let level = slot.level;
        let step = 1u64 << slot.shift;
        let mut pending = Pending::new();
        let mut tables = 0;
        let mut broken = 0;
        let mut more = 0;
        let mut raw = new.leaf;
        while broken < count {
            let index = slot.index + broken;
            let old = self.mem.load(slot.table, index);
            let at = ia + ((broken as u64) << slot.shift);
            let is_table = format::is_table(old, level);
            // The first one's kind was checked by the caller; the run ends
            // where something else begins.
            let same = if is_table {
                broken == 0 || tables > 0
            } else {
                tables == 0
                    && format::is_leaf(old, level)
                    && old & CONTIGUOUS == 0
                    && self.needs_break(old, raw)
            };
            let frozen = mutant!(ReplaceWithoutBreak, format::freeze(old, level), old);
            if !same || self.mem.cas(slot.table, index, old, frozen).is_err() {
                break;
            }
            if is_table {
                tables += 1;
                more -= 1;
                pending.table(at, at + step, self.shape.page_bits());
            } else {
                more -= self.counting.of(old);
                pending.leaves(&self.shape, at, at + step, level);
            }
            broken += 1;
            raw = raw.wrapping_add(step);
        }
        if broken == 0 {
            return Err(Error::Busy);
        }
        let done = if mutant!(ReplaceWithoutInvalidate, true, false) {
            sync::sync(maint, &self.tlb, &pending)
        } else {
            Synced::never_linked()
        };
        if more != 0 {
            self.mem.add_count(Pa::new(slot.pa), more);
        }
        Ok(self.install(maint, sink, job, slot, ia, new, broken, &done, budget))
    }

    /// Puts new leaves in the place of `count` neighbouring entries that this
    /// CPU holds frozen and no TLB knows, after what they were is released.
    /// Returns how many it did before the budget ended; the rest is parked.
    #[allow(clippy::too_many_arguments)]
    fn install<T: Maintenance, S: LeafSink>(
        &self,
        maint: &mut T,
        sink: &mut S,
        job: &MapJob,
        slot: &Slot<M::Table>,
        ia: u64,
        new: New,
        count: usize,
        done: &Synced,
        budget: &mut Budget,
    ) -> usize {
        let step = 1u64 << slot.shift;
        let mut stored = new.stored;
        let mut more = 0;
        let mut put = 0;
        while put < count {
            let index = slot.index + put;
            let at = ia + ((put as u64) << slot.shift);
            let held = self.mem.load(slot.table, index);
            let stop = put > 0 && budget.is_spent() && {
                format::was_table(held, slot.level) || job.clean_old
            };
            // Nothing stops on the way through a table of pages: the hole
            // that a guest may meet need not last until it is done.
            let short = format::was_table(held, slot.level) && slot.level == 2 && !job.clean_old;
            let store = || {
                if mutant!(CollapseLosesBlock, true, false) {
                    self.mem.store(slot.table, index, stored);
                }
            };
            if short && !stop {
                store();
            }
            let gone = !stop
                && if job.clean_old {
                    let oa = format::leaf_oa(&self.shape, new.leaf, slot.level);
                    let mut clean = CleanAndTell {
                        core: self,
                        maint,
                        sink,
                        stays: Some(oa.wrapping_sub(ia)),
                    };
                    self.release_entry(&mut clean, slot, index, held, at, done, budget)
                } else {
                    self.release_entry(&mut Tell(sink), slot, index, held, at, done, budget)
                };
            if !gone {
                for left in index..slot.index + count {
                    let held = self.mem.load(slot.table, left);
                    self.mem.store(slot.table, left, held | GOING);
                }
                break;
            }
            if !short {
                store();
            }
            more += if stored & VALID != 0 {
                self.counting.of(stored)
            } else {
                0
            };
            put += 1;
            stored = stored.wrapping_add(step);
        }
        if more != 0 {
            self.mem.add_count(Pa::new(slot.pa), more);
        }
        sync::publish(maint, &self.tlb);
        put
    }

    /// Releases what a frozen entry was. False when the budget ended before.
    #[allow(clippy::too_many_arguments)]
    fn release_entry<R: Release>(
        &self,
        out: &mut R,
        slot: &Slot<M::Table>,
        index: usize,
        held: u64,
        at: u64,
        done: &Synced,
        budget: &mut Budget,
    ) -> bool {
        let level = slot.level;
        if format::was_table(held, level) {
            let table = self.shape.decode_oa(held);
            return self.reclaim(table, level + 1, at, out, done, budget);
        }
        if !R::WANTS {
            return true;
        }
        let cleaned = held & format::cleaned_mask(&self.shape, level);
        let leaf = RemovedLeaf::new(&self.shape, at, level, self.leaf_of(held, level));
        let to = out.leaf(leaf, cleaned, budget);
        let whole = to == 1 << slot.shift;
        if !whole {
            let parked = format::park(&self.shape, held, level, GOING, to);
            self.mem.store(slot.table, index, parked);
        }
        whole
    }
}

//! Mapping a range: largest legal leaves, one store a leaf.
//!
//! The loop works table by table: it goes down once for each table, then
//! stores neighbouring entries in a row. What stands in the way of a plain
//! store is handled out of line; what replaces it stands in `replace`.
//!
//! Memory that a guest may see past the caches is cleaned before it is mapped,
//! by leaves of 2 MiB at most, so that one leaf's cleaning is one step.

use core::marker::PhantomData;

use crate::addr::Pa;
use crate::error::{Budget, Error, Stopped};
use crate::format::{self, AF, CONTIGUOUS};
use crate::maintenance::{CacheOp, Maintenance};
use crate::mem::TableMem;
use crate::shape::Shape;
use crate::sink::LeafSink;
use crate::sync::{self, Synced};
use crate::tree::{Access, Changes, Core, Over, Slot};

/// A range to map, on raw numbers and checked.
#[derive(Clone, Copy)]
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
    // `replace` reads it, and the sink, and the place.
    #[cfg_attr(not(feature = "extra"), allow(dead_code))]
    pub(crate) clean_old: bool,
}

/// A mapping under way, alone in its tree or beside others.
pub(crate) struct Mapping<'a, M: TableMem, T, S, A> {
    pub(crate) core: &'a Core<M>,
    pub(crate) maint: &'a mut T,
    #[cfg_attr(not(feature = "extra"), allow(dead_code))]
    pub(crate) sink: &'a mut S,
    pub(crate) job: MapJob,
    pub(crate) budget: &'a mut Budget,
    pub(crate) changes: Changes,
    access: PhantomData<A>,
}

/// Where a leaf shall stand, over something.
#[cfg_attr(not(feature = "extra"), allow(dead_code))]
pub(crate) struct Place<T> {
    /// The entry; `raw` is what was read there.
    pub(crate) slot: Slot<T>,
    pub(crate) ia: u64,
    /// The leaf.
    pub(crate) leaf: u64,
    /// So many entries from it on take such leaves.
    pub(crate) count: usize,
    /// It is not the first of its call.
    pub(crate) later: bool,
}

impl<'a, M: TableMem, T: Maintenance, S: LeafSink, A: Access> Mapping<'a, M, T, S, A> {
    pub(crate) fn new(
        core: &'a Core<M>,
        maint: &'a mut T,
        sink: &'a mut S,
        job: MapJob,
        budget: &'a mut Budget,
    ) -> Self {
        Self {
            core,
            maint,
            sink,
            job,
            budget,
            changes: Changes::new(),
            access: PhantomData,
        }
    }

    pub(crate) fn run(mut self) -> Result<u64, Stopped<u64>> {
        let mut ia = self.job.start;
        let mut why = None;
        while ia < self.job.end && why.is_none() {
            (ia, why) = self.map_run(ia);
            if self.budget.is_spent() {
                break;
            }
        }
        let _done: Synced = self.core.finish(self.maint, &self.changes);
        match why {
            None => Ok(ia),
            Some(why) => Err(Stopped { why, next: ia }),
        }
    }

    /// Maps neighbouring entries of one table, from `ia` on. Returns where it
    /// came to, and what stopped it.
    #[inline]
    fn map_run(&mut self, ia: u64) -> (u64, Option<Error>) {
        let (core, job) = (self.core, self.job);
        let shape = &core.shape;
        let oa = job.oa + (ia - job.start);
        let left = job.end - ia;
        let level = if job.exact {
            job.top
        } else {
            shape.leaf_level(ia, oa, left, job.top)
        };
        let slot = match core.reach(self.maint, &mut self.changes, ia, level, job.over) {
            Ok(slot) => slot,
            Err(why) => return (ia, Some(why)),
        };
        let mut raw = job.attrs | format::leaf_type(level) | shape.encode_oa(oa);
        let mut count = (left >> slot.shift)
            .min(core.entries_left(&slot) as u64)
            .min(shape.linear_left(oa) >> slot.shift)
            .min(self.budget.left().max(1));
        if job.clean {
            count = count.min((self.budget.bytes_left() >> slot.shift).max(1));
            let size = count << slot.shift;
            let pa = Pa::new(oa);
            self.maint.cache(CacheOp::CleanInvalidateData { pa, size });
            self.budget.spend_bytes(size);
        }
        if job.fetched {
            self.maint.cache(CacheOp::InvalidateInstructions);
        }
        let count = count as usize;
        self.budget.spend(count as u64);
        let step = 1u64 << slot.shift;
        let mut fresh = 0u32;
        let mut index = slot.index;
        let last = slot.index + count;
        let mut why = None;
        while index < last {
            if core.mem.cas(slot.table, index, 0, raw).is_ok() {
                fresh = fresh.wrapping_add(1);
                raw = raw.wrapping_add(step);
                index += 1;
                continue;
            }
            let place = Place {
                slot: Slot { index, ..slot },
                ia: ia + (((index - slot.index) as u64) << slot.shift),
                leaf: raw,
                count: last - index,
                later: index > slot.index,
            };
            match self.occupied(place) {
                // The budget ended on the way to this entry.
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
            self.changes.stored = true;
            if core.counting.of(job.attrs | format::VALID) != 0 {
                core.mem.add_count(Pa::new(slot.pa), fresh as i32);
            }
        }
        (ia + (((index - slot.index) as u64) << slot.shift), why)
    }

    /// An entry that is not empty is to become a leaf. Returns how many of
    /// the entries from it on are done: 0 when the budget ended.
    #[cold]
    #[inline(never)]
    fn occupied(&mut self, mut place: Place<M::Table>) -> Result<usize, Error> {
        let (core, over) = (self.core, self.job.over);
        let (leaf, level) = (place.leaf, place.slot.level);
        let exists = Error::Exists {
            level: Shape::level(level),
        };
        loop {
            let slot = &mut place.slot;
            slot.raw = core.mem.load(slot.table, slot.index);
            let old = slot.raw;
            let swap = |new| core.mem.cas(slot.table, slot.index, old, new).is_ok();
            if format::is_frozen(old) {
                return Err(Error::Busy);
            }
            if format::is_annotation(old) {
                if old != 0 && over == Over::Nothing {
                    return Err(exists);
                }
                if swap(leaf) {
                    self.changes.stored = true;
                    let more = core.counting.of(leaf) - core.counting.of(old);
                    core.add_count(slot.pa, more);
                    return Ok(1);
                }
                continue;
            }
            let is_leaf = format::is_leaf(old, level);
            if is_leaf && (old ^ leaf) & !(AF | CONTIGUOUS) == 0 {
                // Mapped so already: another CPU was faster, or the caller
                // repeats itself. AF may have to be set; that needs no TLBI.
                if old & AF != 0 || leaf & AF == 0 {
                    return Ok(1);
                }
                if swap(old | AF) {
                    self.changes.stored = true;
                    return Ok(1);
                }
                continue;
            }
            let known = is_leaf || format::is_table(old, level);
            if over != Over::Anything || !known {
                return Err(exists);
            }
            #[cfg(feature = "extra")]
            match self.replace(&mut place)? {
                None => continue,
                Some(done) => return Ok(done),
            }
            #[cfg(not(feature = "extra"))]
            return Err(exists);
        }
    }
}

impl<M: TableMem> Core<M> {
    /// A fault's mapping: one leaf of the one level asked for, over nothing.
    /// Returns false for what is not so simple or not right, with nothing
    /// lost: the general way then does it, or says what is wrong.
    ///
    /// This is what a guest's first touch of a page costs, so it is short.
    #[inline(never)]
    pub(crate) fn map_one<T: Maintenance>(
        &self,
        maint: &mut T,
        (ia, oa): (u64, u64),
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
            self.mem.add_count(Pa::new(walk.pa), more);
        }
        sync::publish(maint, &self.tlb);
        true
    }

    /// True when data caches are to be cleaned of what is mapped so.
    #[inline]
    pub(crate) fn needs_clean(&self, attrs: u64) -> bool {
        format::is_seen_uncached(attrs, self.fwb)
    }

    /// True when instruction caches are to be invalidated of it.
    #[inline]
    pub(crate) fn needs_fetch_sync(&self, attrs: u64) -> bool {
        !self.dic && format::is_executable(attrs, self.xnx)
    }

    /// Cache maintenance of what is about to be mapped.
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
}

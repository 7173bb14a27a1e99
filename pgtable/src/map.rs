//! Mapping a range: largest legal leaves, one store a leaf.
//!
//! The loop works table by table: it goes down once for each table, then
//! stores neighbouring entries in a row. What stands in the way of a plain
//! store is handled out of line; what replaces it stands in `replace`.
//!
//! Memory that a guest may see past the caches is cleaned before it is mapped,
//! by leaves of 2 MiB at most, so that one leaf's cleaning is one step.

use core::marker::PhantomData;

use crate::addr::{Extent, Ia, Level, Pa};
use crate::desc::{AF, CONTIGUOUS, Desc, Kind};
use crate::error::{Budget, Error, Stopped};
use crate::maintenance::{CacheOp, Maintenance};
use crate::mem::TableMem;
use crate::shape::Shape;
use crate::sink::LeafSink;
use crate::stage2::Leaves;
use crate::sync;
use crate::tree::{Access, Core, Over, Slot};
use crate::work::Work;

/// A range to map, checked.
#[derive(Clone, Copy)]
pub(crate) struct MapJob {
    pub(crate) range: Extent,
    /// Output address of its start.
    pub(crate) pa: Pa,
    /// A leaf's attributes.
    pub(crate) attrs: Desc,
    /// The largest level of leaf to use.
    pub(crate) top: Level,
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

impl MapJob {
    /// Checks what a range and its leaves are, before anything is changed: without
    /// cache maintenance, over nothing, no leaf above `largest`.
    #[inline]
    pub(crate) fn new(
        shape: &Shape,
        (ia, pa, size): (Ia, Pa, u64),
        attrs: Desc,
        leaves: Leaves,
        largest: Level,
    ) -> Result<Self, Error> {
        let range = shape.check_ia(ia, size)?;
        shape.check_oa(pa, size)?;
        let (top, exact) = match leaves {
            Leaves::Largest => (largest, false),
            Leaves::AtMost(level) => (largest.max(level), false),
            Leaves::Exactly(level) => (level, true),
        };
        if exact {
            if !shape.leaf_ok(top) || top < shape.start() || top < largest {
                return Err(Error::BlockLevel { level: top });
            }
            if (ia.get() | pa.get() | size) & (shape.span(top) - 1) != 0 {
                return Err(Error::Align);
            }
        }
        Ok(Self {
            range,
            pa,
            attrs,
            top: top.max(shape.start()),
            exact,
            over: Over::Nothing,
            clean: false,
            fetched: false,
            clean_old: false,
        })
    }
}

/// A mapping under way, alone in its tree or beside others.
pub(crate) struct Mapping<'a, M: TableMem, T, S, A> {
    pub(crate) work: Work<'a, M, T>,
    #[cfg_attr(not(feature = "extra"), allow(dead_code))]
    pub(crate) sink: &'a mut S,
    pub(crate) budget: &'a mut Budget,
    pub(crate) job: MapJob,
    access: PhantomData<A>,
}

/// Where leaves shall stand, over something.
#[cfg_attr(not(feature = "extra"), allow(dead_code))]
pub(crate) struct Place<T> {
    /// The first entry.
    pub(crate) slot: Slot<T>,
    /// Its leaf.
    pub(crate) leaf: Desc,
    /// So many entries from it on take such leaves.
    pub(crate) count: usize,
    /// It is not the first of its call.
    pub(crate) later: bool,
}

/// What handling an entry came to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// So many entries from it on are done.
    Done(usize),
    /// Somebody has changed it: look again.
    Again,
    /// The budget ended before it.
    #[cfg_attr(not(feature = "extra"), allow(dead_code))]
    Spent,
}

impl<'a, M: TableMem, T: Maintenance, S: LeafSink, A: Access> Mapping<'a, M, T, S, A> {
    pub(crate) fn new(
        work: Work<'a, M, T>,
        sink: &'a mut S,
        budget: &'a mut Budget,
        job: MapJob,
    ) -> Self {
        Self {
            work,
            sink,
            budget,
            job,
            access: PhantomData,
        }
    }

    pub(crate) fn run(mut self) -> Result<Ia, Stopped<Ia>> {
        let mut ia = self.job.range.start;
        let mut why = None;
        while ia < self.job.range.end && why.is_none() {
            (ia, why) = self.map_run(ia);
            if self.budget.is_spent() {
                break;
            }
        }
        let _done = self.work.finish();
        match why {
            None => Ok(ia),
            Some(why) => Err(Stopped { why, next: ia }),
        }
    }

    /// Maps neighbouring entries of one table, from `ia` on. Returns where it
    /// came to, and what stopped it.
    #[inline]
    fn map_run(&mut self, ia: Ia) -> (Ia, Option<Error>) {
        let (core, job) = (self.work.core, self.job);
        let shape = &core.shape;
        let pa = job.pa.plus(ia.since(job.range.start));
        let left = job.range.end.since(ia);
        let level = if job.exact {
            job.top
        } else {
            shape.leaf_level(ia, pa, left, job.top)
        };
        let slot = match self.work.reach(ia, level, job.over) {
            Ok(slot) => slot,
            Err(why) => return (ia, Some(why)),
        };
        let count = (left >> slot.shift)
            .min(core.entries_left(&slot) as u64)
            .min(shape.linear_left(pa) >> slot.shift)
            .min(self.budget.left().max(1));
        let count = self.prepare(pa, count, slot.shift) as usize;
        let mut leaf = job.attrs.leaf(shape, pa, level);
        let of_leaf = core.counting.of(leaf);
        let size = slot.size();
        let mut fresh = 0u32;
        let mut index = slot.index;
        let last = slot.index + count;
        let mut why = None;
        while index < last {
            if core.cas(slot.table, index, Desc::EMPTY, leaf).is_ok() {
                fresh = fresh.wrapping_add(1);
                leaf = leaf.plus(size);
                index += 1;
                continue;
            }
            let done = index - slot.index;
            match self.occupied(Place {
                slot: slot.after(done, Desc::EMPTY),
                leaf,
                count: last - index,
                later: done > 0,
            }) {
                Ok(0) => break,
                Ok(done) => {
                    leaf = leaf.plus(size * done as u64);
                    index += done;
                }
                Err(error) => {
                    why = Some(error);
                    break;
                }
            }
        }
        if fresh != 0 {
            self.work.changes.stored = true;
            core.add_count(slot.pa, fresh as i32 * of_leaf);
        }
        (slot.after(index - slot.index, leaf).ia, why)
    }

    /// Maintains the caches of what `count` leaves of 2^`shift` bytes shall map, and
    /// spends what it and they cost. Returns for how many the budget is enough.
    #[inline]
    fn prepare(&mut self, pa: Pa, mut count: u64, shift: u32) -> u64 {
        if self.job.clean {
            count = count.min((self.budget.bytes_left() >> shift).max(1));
            let size = count << shift;
            self.work
                .maint
                .cache(CacheOp::CleanInvalidateData { pa, size });
            self.budget.spend_bytes(size);
        }
        if self.job.fetched {
            self.work.maint.cache(CacheOp::InvalidateInstructions);
        }
        self.budget.spend(count);
        count
    }

    /// Entries that are not empty are to become leaves. Returns how many are done:
    /// 0 when the budget ended.
    #[cold]
    #[inline(never)]
    fn occupied(&mut self, mut place: Place<M::Table>) -> Result<usize, Error> {
        let core = self.work.core;
        loop {
            let slot = &mut place.slot;
            slot.desc = core.load(slot.table, slot.index);
            let kind = slot.kind(&core.shape);
            let exists = Error::Exists { level: slot.level };
            let known = matches!(kind, Kind::Leaf | Kind::Table(_));
            let step = match kind {
                Kind::Invalid if slot.desc == Desc::EMPTY || self.job.over != Over::Nothing => {
                    self.put(&place, place.leaf)
                }
                Kind::Leaf if slot.desc.is_like(place.leaf, AF | CONTIGUOUS) => {
                    // Mapped so already: another CPU was faster, or the caller
                    // repeats itself. AF may have to be set; that needs no TLBI.
                    let aged = slot.desc.with(place.leaf.raw() & AF);
                    if aged == slot.desc {
                        return Ok(1);
                    }
                    self.put(&place, aged)
                }
                _ if kind.is_frozen() => return Err(Error::Busy),
                _ if known && self.job.over == Over::Anything => {
                    #[cfg(not(feature = "extra"))]
                    return Err(exists);
                    #[cfg(feature = "extra")]
                    self.replace(&mut place)?
                }
                _ => return Err(exists),
            };
            match step {
                Step::Done(count) => return Ok(count),
                Step::Again => (),
                Step::Spent => return Ok(0),
            }
        }
    }

    /// Writes an entry for which the TLBs owe nothing.
    fn put(&mut self, place: &Place<M::Table>, new: Desc) -> Step {
        let (core, slot) = (self.work.core, &place.slot);
        if !core.swap(slot, new) {
            return Step::Again;
        }
        self.work.changes.stored = true;
        let more = core.counting.of(new) - core.counting.of(slot.desc);
        core.add_count(slot.pa, more);
        Step::Done(1)
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
        (ia, pa): (Ia, Pa),
        attrs: Desc,
        level: Level,
    ) -> bool {
        let shape = &self.shape;
        // Aligned and inside the space is all that there is to check: no
        // such leaf can reach beyond the end, and none is above the root.
        if !shape.fits(ia, pa, shape.span(level)) || !shape.leaf_ok(level) {
            return false;
        }
        let mut walk = self.begin(ia);
        let mut left = level.below(shape.start());
        while left > 0 {
            if !walk.desc.points_down() {
                let above = level.above(left);
                if walk.desc != Desc::EMPTY || !self.make_empty_table(&mut walk, above) {
                    // Tables that were made are linked: visible, if not to all.
                    sync::publish(maint, &self.tlb);
                    return false;
                }
            }
            self.down(&mut walk);
            left -= 1;
        }
        let leaf = attrs.leaf(shape, pa, level);
        let done = self.cas(walk.table, walk.index, Desc::EMPTY, leaf).is_ok();
        if done {
            self.add_count(walk.pa, self.counting.of(leaf));
        }
        sync::publish(maint, &self.tlb);
        done
    }
}

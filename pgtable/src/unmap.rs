//! Removing what a range maps: leaves, and tables that the range covers.
//!
//! Three steps, so that memory leaves only after every TLB agrees:
//! 1. *break*: leaves become invalid (frozen, if somebody wants to know
//!    them), covered tables are cut off at their parent by one frozen entry;
//! 2. *sync*: one invalidation for all of it;
//! 3. *release*: removed leaves are reported, cut tables are freed, frozen
//!    entries get their final value.
//!
//! Under shared access tables stay where they are, empty.

use crate::addr::{Level, Pa};
use crate::error::{Budget, Error, Stopped};
use crate::format::{self, CONTIGUOUS, FROZEN_TABLE};
use crate::geometry::Shape;
use crate::maintenance::{CacheOp, Maintenance};
use crate::mem::TableMem;
use crate::plan::Pending;
use crate::sync::{self, Synced};
use crate::tree::{Changes, Core, Over, Slot};

/// What to do with a block that a range covers only in part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Partial {
    /// Split it: the rest stays mapped. Takes a table page a level.
    Split,
    /// Drop the whole block: more goes than was asked for, and the sink is
    /// told all of it.
    DropWhole,
    /// Stop with [`Error::InsideBlock`].
    Refuse,
}

/// A leaf that was taken out of the tree and of every TLB.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RemovedLeaf {
    ia: u64,
    level: Level,
    pa: Pa,
    raw: u64,
    size: u64,
}

impl RemovedLeaf {
    pub(crate) fn new(shape: &Shape, ia: u64, level: i8, raw: u64) -> Self {
        Self {
            ia,
            level: Shape::level(level),
            pa: Pa::new(mutant!(
                LeafToldWrong,
                format::leaf_oa(shape, raw, level),
                shape.decode_oa(raw) & !0xffff
            )),
            raw,
            size: 1 << shape.shift(level),
        }
    }

    /// The first input address (an IPA, or a VA of EL2).
    pub const fn ia(&self) -> u64 {
        self.ia
    }

    /// The level it stood at.
    pub const fn level(&self) -> Level {
        self.level
    }

    /// The first output address.
    pub const fn pa(&self) -> Pa {
        self.pa
    }

    /// Bytes.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// The descriptor as it last was, with access flag and dirty state.
    pub const fn raw(&self) -> u64 {
        self.raw
    }
}

/// Who is told of removed leaves, after the invalidation: from then on their
/// output addresses may go to another owner.
///
/// Any `FnMut(RemovedLeaf)` is one; [`Ignore`] is for those who need none,
/// and spares looking at leaves of tables that go as a whole.
pub trait LeafSink {
    /// False: leaves need not be visited.
    const WANTS: bool = true;

    /// Is told of one leaf.
    fn leaf(&mut self, leaf: RemovedLeaf);
}

/// Nobody wants to know.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ignore;

impl LeafSink for Ignore {
    const WANTS: bool = false;
    fn leaf(&mut self, _leaf: RemovedLeaf) {}
}

impl<F: FnMut(RemovedLeaf)> LeafSink for F {
    fn leaf(&mut self, leaf: RemovedLeaf) {
        self(leaf);
    }
}

/// A range to clear, on raw numbers and checked.
pub(crate) struct UnmapJob {
    pub(crate) start: u64,
    pub(crate) end: u64,
    /// The annotation that entries get.
    pub(crate) blank: u64,
    pub(crate) partial: Partial,
    /// Clean data caches of what was mapped, after the invalidation.
    pub(crate) clean: bool,
    /// No other walker is in the tree: tables may go.
    pub(crate) exclusive: bool,
}

/// What step 1 left behind.
struct Broken {
    pending: Pending,
    /// Some entries are frozen: step 3 has work.
    frozen: bool,
    stored: bool,
    /// How far entries were frozen: a dropped block may end after the range.
    to: u64,
}

impl<M: TableMem> Core<M> {
    pub(crate) fn unmap<T: Maintenance, S: LeafSink>(
        &self,
        maint: &mut T,
        sink: &mut S,
        job: &UnmapJob,
        budget: &mut Budget,
    ) -> Result<u64, Stopped<u64>> {
        let mut broken = Broken {
            pending: Pending::new(),
            frozen: false,
            stored: false,
            to: job.start,
        };
        let visit = S::WANTS || job.clean;
        let mut ia = job.start;
        let mut why = None;
        while ia < job.end {
            match self.break_run(maint, job, ia, visit, &mut broken, budget) {
                Ok(next) => ia = next.min(job.end),
                Err(stopped) => {
                    ia = stopped.next;
                    why = Some(stopped.why);
                    break;
                }
            }
            // A table that was only entered or made is no address done.
            if budget.is_spent() && ia > job.start {
                break;
            }
        }
        let changes = Changes::of(broken.stored, broken.pending);
        let done = self.finish(maint, &changes);
        if broken.frozen {
            let end = broken.to.max(ia);
            let stopped = self.release_range(maint, sink, job, job.start, end, &done, budget);
            if let Some(at) = stopped {
                return Ok(at.max(job.start).min(job.end));
            }
        }
        match why {
            None => Ok(ia),
            Some(why) => Err(Stopped { why, next: ia }),
        }
    }

    /// Step 1 for neighbouring entries of one table. Returns where to go on.
    fn break_run<T: Maintenance>(
        &self,
        maint: &mut T,
        job: &UnmapJob,
        ia: u64,
        visit: bool,
        broken: &mut Broken,
        budget: &mut Budget,
    ) -> Result<u64, Stopped<u64>> {
        // Shared access enters every table: nothing is "inside" then.
        let (from, to) = if job.exclusive {
            (job.start, job.end)
        } else {
            (1, 0)
        };
        let mut path = self.walk_path(ia, from, to);
        let slot = path.last();
        let level = slot.level;
        let step = 1u64 << slot.shift;
        let entries = self.entries_left(&slot).min(budget.left().max(1) as usize);
        let blank = job.blank;
        let of_blank = self.counting.of(blank);
        let mut at = slot.base(ia);
        let mut more = 0i32;
        // Neighbouring leaves removed, noted together.
        let mut run = at;
        let mut run_end = at;
        let mut first_removed = None;
        let mut spent = 0u64;
        let mut result = Ok(());
        for index in slot.index..slot.index + entries {
            if at >= job.end {
                break;
            }
            let raw = self.mem.load(slot.table, index);
            let next = at + step;
            spent += 1;
            if raw == blank {
                at = next;
                continue;
            }
            let here = Slot { index, raw, ..slot };
            if format::is_leaf(raw, level) && at >= job.start && next <= job.end {
                // The common case, first.
                let new = if visit {
                    format::freeze(raw, level)
                } else {
                    blank
                };
                if raw & CONTIGUOUS == 0 && self.mem.cas(slot.table, index, raw, new).is_ok() {
                    if at != run_end {
                        broken.pending.leaves(&self.shape, run, run_end, level);
                        run = at;
                    }
                    run_end = next;
                    more += of_blank - self.counting.of(raw);
                    first_removed.get_or_insert(at);
                    broken.frozen |= visit;
                    at = next;
                    continue;
                }
            }
            match self.break_other(maint, job, here, at, visit, broken) {
                Ok(Other::Done(change)) => {
                    more += change;
                    at = next;
                }
                Ok(Other::Removed(change)) => {
                    more += change;
                    first_removed.get_or_insert(at);
                    at = next;
                }
                Ok(Other::Enter) => break,
                Err(why) => {
                    result = Err(why);
                    break;
                }
            }
        }
        broken.pending.leaves(&self.shape, run, run_end, level);
        budget.spend(spent);
        if more != 0 {
            self.mem.add_count(Pa::new(slot.pa), more);
        }
        if job.exclusive && blank == 0 && self.counting.zero_is_empty() {
            self.cut_empty(
                &mut path,
                ia,
                first_removed.map(|first| (first, at)),
                broken,
            );
        }
        broken.to = broken.to.max(at);
        match result {
            Ok(()) => Ok(at.max(ia)),
            Err(why) => Err(Stopped {
                why,
                next: at.max(ia),
            }),
        }
    }

    /// Step 1 for an entry that is not simply a leaf inside the range.
    #[cold]
    #[inline(never)]
    fn break_other<T: Maintenance>(
        &self,
        maint: &mut T,
        job: &UnmapJob,
        slot: Slot<M::Table>,
        at: u64,
        visit: bool,
        broken: &mut Broken,
    ) -> Result<Other, Error> {
        let level = slot.level;
        let step = 1u64 << slot.shift;
        let covered = at >= job.start && at + step <= job.end;
        let of_blank = self.counting.of(job.blank);
        loop {
            let raw = self.mem.load(slot.table, slot.index);
            if raw == job.blank {
                return Ok(Other::Done(0));
            }
            if format::is_frozen(raw) {
                if job.exclusive {
                    // Left by a call whose budget ended: step 3 goes on.
                    broken.frozen = true;
                    return Ok(Other::Done(0));
                }
                return Err(Error::Busy);
            }
            if format::is_table(raw, level) {
                if !(job.exclusive && covered) {
                    return Ok(Other::Enter);
                }
                let frozen = format::freeze(raw, level);
                if self.mem.cas(slot.table, slot.index, raw, frozen).is_err() {
                    continue;
                }
                let empty = level == 2
                    && self.counting.zero_is_empty()
                    && mutant!(
                        TableTakenForEmpty,
                        self.mem.count(Pa::new(self.shape.decode_oa(raw))) == 0,
                        true
                    );
                let smallest = if empty {
                    slot.shift
                } else {
                    self.shape.page_bits()
                };
                let span = mutant!(TableSpanStartOnly, step, self.shape.page_mask() + 1);
                broken.pending.table(at, at + span, smallest);
                broken.frozen = true;
                return Ok(Other::Removed(of_blank - 1));
            }
            let mut here = Slot { raw, ..slot };
            if format::is_annotation(raw) {
                if covered {
                    if self
                        .mem
                        .cas(slot.table, slot.index, raw, job.blank)
                        .is_err()
                    {
                        continue;
                    }
                    return Ok(Other::Done(of_blank - self.counting.of(raw)));
                }
            } else if raw & CONTIGUOUS != 0 {
                self.break_group(maint, &mut here, at)?;
                continue;
            } else if covered
                || mutant!(
                    SplitDropsWhole,
                    job.partial == Partial::DropWhole,
                    job.partial != Partial::Refuse
                )
            {
                let new = if visit {
                    format::freeze(raw, level)
                } else {
                    job.blank
                };
                if self.mem.cas(slot.table, slot.index, raw, new).is_err() {
                    continue;
                }
                broken.pending.leaves(&self.shape, at, at + step, level);
                broken.frozen |= visit;
                return Ok(Other::Removed(of_blank - self.counting.of(raw)));
            } else if job.partial == Partial::Refuse {
                return Err(Error::InsideBlock {
                    level: Shape::level(level),
                });
            }
            // A block or an annotation that the range covers in part.
            let mut changes = Changes::new();
            let ia = at.max(job.start);
            let reached = self.reach(maint, &mut changes, ia, level + 1, Over::Anything);
            broken.stored |= changes.stored;
            reached?;
            return Ok(Other::Enter);
        }
    }

    /// Cuts off the table at the end of `path` if nothing is left in it, and
    /// its parents likewise. `removed` is what this call took out of it.
    fn cut_empty(
        &self,
        path: &mut crate::tree::Path<M::Table>,
        ia: u64,
        removed: Option<(u64, u64)>,
        broken: &mut Broken,
    ) {
        let mut slot = path.last();
        loop {
            let left = self.mem.count(Pa::new(slot.pa));
            if left > mutant!(CutWithOneLeft, 0, 1) {
                return;
            }
            let Some(parent) = path.up() else {
                return;
            };
            let frozen = format::freeze(parent.raw, parent.level);
            if self
                .mem
                .cas(parent.table, parent.index, parent.raw, frozen)
                .is_err()
            {
                return;
            }
            self.mem.add_count(Pa::new(parent.pa), -1);
            match removed {
                // What was removed is being invalidated by address; without
                // a level hint that takes the tables above along.
                Some((start, end)) => {
                    if mutant!(CutTableHinted, true, false) {
                        broken.pending.table(start, end, self.shape.page_bits());
                    }
                }
                None => {
                    let base = parent.base(ia);
                    broken
                        .pending
                        .table(base, base + (1 << parent.shift), parent.shift);
                }
            }
            broken.frozen = true;
            broken.to = broken.to.max(parent.end(ia));
            slot = parent;
        }
    }

    /// Step 3: gives frozen entries in `[start, end)` their final value,
    /// after telling `sink` and freeing cut tables. Returns where the budget
    /// ended, if it did.
    #[allow(clippy::too_many_arguments)]
    fn release_range<T: Maintenance, S: LeafSink>(
        &self,
        maint: &mut T,
        sink: &mut S,
        job: &UnmapJob,
        start: u64,
        end: u64,
        done: &Synced,
        budget: &mut Budget,
    ) -> Option<u64> {
        let mut ia = start;
        while ia < end {
            let slot = self.walk_to(ia, 3);
            let level = slot.level;
            let mut at = slot.base(ia);
            for index in slot.index..slot.index + self.entries_left(&slot) {
                if at >= end {
                    break;
                }
                let raw = self.mem.load(slot.table, index);
                if format::is_frozen(raw) {
                    if raw & FROZEN_TABLE != 0 {
                        let table = self.shape.decode_oa(raw);
                        let gone = if job.clean {
                            let mut sink = Cleaning {
                                core: self,
                                maint,
                                sink,
                            };
                            self.reclaim(table, level + 1, at, &mut sink, done, budget)
                        } else {
                            self.reclaim(table, level + 1, at, sink, done, budget)
                        };
                        if !gone {
                            return Some(at);
                        }
                        self.mem.store(slot.table, index, job.blank);
                        if budget.is_spent() {
                            return Some(at + (1 << slot.shift));
                        }
                    } else {
                        let leaf =
                            RemovedLeaf::new(&self.shape, at, level, format::thaw(raw, level));
                        if job.clean {
                            self.clean_removed(maint, &leaf);
                        }
                        sink.leaf(leaf);
                        self.mem.store(slot.table, index, job.blank);
                    }
                } else if format::is_table(raw, level) {
                    break;
                }
                at += 1 << slot.shift;
            }
            // A table that the loop stopped at is entered next. If it is the
            // first entry, which the walk took for none, another CPU has
            // just made it: nothing of ours is in it.
            ia = if at > ia { at } else { slot.end(ia) };
        }
        None
    }

    /// Frees the table at `pa`, whose entries are of `level`, and all below
    /// it, telling `sink` of leaves. False when the budget ended before: the
    /// table is still there, with what is done taken out of it.
    pub(crate) fn reclaim<S: LeafSink>(
        &self,
        pa: u64,
        level: i8,
        base: u64,
        sink: &mut S,
        done: &Synced,
        budget: &mut Budget,
    ) -> bool {
        let entries = self.shape.index_mask() + 1;
        let shift = self.shape.shift(level);
        if level < 3 {
            let table = self.mem.locate(Pa::new(pa));
            let mut at = base;
            // One child at least, so that every call gets on.
            let mut progress = false;
            for index in 0..entries {
                let raw = self.mem.load(table, index);
                let was_table = format::is_table(raw, level)
                    || (format::is_frozen(raw) && raw & FROZEN_TABLE != 0);
                if was_table {
                    let child = self.shape.decode_oa(raw);
                    let stop = (progress && budget.is_spent())
                        || !self.reclaim(child, level + 1, at, sink, done, budget);
                    if stop {
                        // What is done must not be met again.
                        (0..index).for_each(|before| self.mem.store(table, before, 0));
                        return false;
                    }
                    progress = true;
                } else if S::WANTS && raw & format::TYPE != 0 {
                    let old = self.leaf_of(raw, level);
                    sink.leaf(RemovedLeaf::new(&self.shape, at, level, old));
                }
                at += 1 << shift;
            }
            budget.spend(1 + entries as u64);
        } else if S::WANTS {
            let table = self.mem.locate(Pa::new(pa));
            let mut at = base;
            for index in 0..entries {
                let raw = self.mem.load(table, index);
                if raw & format::TYPE != 0 {
                    sink.leaf(RemovedLeaf::new(
                        &self.shape,
                        at,
                        level,
                        self.leaf_of(raw, level),
                    ));
                }
                at += 1 << shift;
            }
            budget.spend(1 + entries as u64);
        } else {
            budget.spend(1);
        }
        if mutant!(TableLeaked, true, false) {
            self.mem.free(Pa::new(pa), Shape::level(level), done);
        }
        true
    }

    #[inline]
    fn leaf_of(&self, raw: u64, level: i8) -> u64 {
        if format::is_frozen(raw) {
            format::thaw(raw, level)
        } else {
            raw
        }
    }
}

enum Other {
    /// The entry is dealt with; the table's count changes by this.
    Done(i32),
    /// As `Done`, and something valid stood there.
    Removed(i32),
    /// A table stands there that has to be entered.
    Enter,
}

/// Cleans the cache lines of leaves, then passes them on.
struct Cleaning<'a, M, T, S> {
    core: &'a Core<M>,
    maint: &'a mut T,
    sink: &'a mut S,
}

impl<M: TableMem, T: Maintenance, S: LeafSink> LeafSink for Cleaning<'_, M, T, S> {
    fn leaf(&mut self, leaf: RemovedLeaf) {
        self.core.clean_removed(self.maint, &leaf);
        self.sink.leaf(leaf);
    }
}

impl<M: TableMem> Core<M> {
    /// Without FEAT_S2FWB, cleans and invalidates the lines of a leaf that is
    /// gone: its guest may have written past the cache.
    pub(crate) fn clean_removed<T: Maintenance>(&self, maint: &mut T, leaf: &RemovedLeaf) {
        if !self.fwb && format::is_cacheable(leaf.raw, false) {
            maint.cache(CacheOp::CleanInvalidateData {
                pa: leaf.pa,
                size: leaf.size,
            });
        }
    }

    /// Invalidates the whole regime (VMID, or EL2) and waits for it.
    pub(crate) fn sync_all<T: Maintenance>(&self, maint: &mut T) -> Synced {
        sync::sync_vmid(maint, &self.tlb)
    }
}

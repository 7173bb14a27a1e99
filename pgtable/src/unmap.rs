//! Removing what a range maps: leaves, and tables that the range covers.
//!
//! Three steps, so that memory leaves only after every TLB agrees:
//! 1. *break*: leaves become invalid (frozen, if there is something to do for
//!    them in step 3), covered tables are cut off at their parent by one
//!    frozen entry;
//! 2. *sync*: one invalidation for all of it;
//! 3. *release*: removed leaves are cleaned and reported, cut tables are
//!    freed, frozen entries get their final value.
//!
//! A budget that ends in step 3 leaves entries *parked* (see `format`): out
//! of all TLBs, and with what is left to do. The operation finds them when it
//! is called again.
//!
//! Under shared access tables stay where they are, empty. Every leaf is
//! frozen until its invalidation is complete, so that nobody maps there
//! before, and what this call froze is kept as exact ranges: step 3 touches
//! nothing else, whatever other CPUs do in between.

use crate::addr::{Level, Pa};
use crate::error::{Budget, Error, Stopped};
use crate::format::{self, CONTIGUOUS, GOING};
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
    /// told all of it. Its caches, where they have to be cleaned, are cleaned
    /// in one go, whatever the budget. Permissions change for the whole block
    /// likewise.
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

    /// The bytes `[from, to)` of it.
    pub(crate) const fn part(self, from: u64, to: u64) -> Self {
        Self {
            ia: self.ia + from,
            pa: Pa::new(self.pa.get() + from),
            size: to - from,
            ..self
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

    /// Bytes: what an entry of the level covers, or a part of that if a
    /// budget ended while it was cleaned.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// The descriptor as it last was, with access flag and dirty state.
    pub const fn raw(&self) -> u64 {
        self.raw
    }
}

/// Who is told of removed leaves, after the invalidation: from then on their
/// output addresses may go to another owner. A block that takes more cleaning
/// than the budget has is told in parts, as they are clean.
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
        let mut ia = job.start;
        loop {
            let start = ia;
            let mut broken = Broken {
                pending: Pending::new(),
                frozen: false,
                stored: false,
                to: start,
            };
            let visit = S::WANTS || job.clean || !job.exclusive;
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
                let enough = budget.is_spent() && ia > job.start;
                if enough || (!job.exclusive && broken.pending.is_full()) {
                    break;
                }
            }
            let changes = Changes::of(broken.stored, broken.pending);
            let done = self.finish(maint, &changes);
            let mut stopped = None;
            if job.exclusive && broken.frozen {
                let range = (start, broken.to.max(ia));
                stopped = self.step_3(maint, sink, job, range, &done, budget);
            } else if broken.frozen {
                for range in changes.held_ranges() {
                    if stopped.is_some() {
                        self.park_range(range.0, range.1);
                    } else {
                        stopped = self.step_3(maint, sink, job, range, &done, budget);
                    }
                }
            }
            if let Some(at) = stopped {
                return Ok(at.clamp(job.start, job.end));
            }
            match why {
                None if ia >= job.end || budget.is_spent() => return Ok(ia),
                None => (),
                Some(why) => return Err(Stopped { why, next: ia }),
            }
        }
    }

    fn step_3<T: Maintenance, S: LeafSink>(
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
            let mut wash = Wash {
                core,
                maint,
                sink,
                stays,
            };
            self.release(&mut wash, job, range, done, budget)
        } else {
            self.release(&mut Tell(sink), job, range, done, budget)
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
        // What is frozen gets its count with its final value.
        let of_new = if visit { 0 } else { self.counting.of(blank) };
        let kind = if job.exclusive { GOING } else { 0 };
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
            let next = at.wrapping_add(step);
            spent += 1;
            if raw == blank {
                at = next;
                continue;
            }
            if !job.exclusive && at != run_end && run != run_end {
                // One run at a time: there may be no room for another.
                break;
            }
            if format::is_leaf(raw, level)
                && raw & CONTIGUOUS == 0
                && at >= job.start
                && next <= job.end
            {
                // The common case, first.
                let new = if visit {
                    format::freeze(raw, level) | kind
                } else {
                    blank
                };
                if self.mem.cas(slot.table, index, raw, new).is_ok() {
                    if at != run_end {
                        broken.pending.leaves(&self.shape, run, run_end, level);
                        run = at;
                    }
                    run_end = next;
                    more += of_new - self.counting.of(raw);
                    first_removed.get_or_insert(at);
                    broken.frozen |= visit;
                    at = next;
                    continue;
                }
            }
            let here = Slot { index, raw, ..slot };
            match self.break_other(maint, job, here, at, visit, broken) {
                Ok(Other::Done(change)) => more += change,
                Ok(Other::Table(change)) => {
                    more += change;
                    first_removed.get_or_insert(at);
                }
                Ok(Other::Leaf(change)) => {
                    if at != run_end {
                        broken.pending.leaves(&self.shape, run, run_end, level);
                        run = at;
                    }
                    run_end = next;
                    more += change;
                    first_removed.get_or_insert(at);
                }
                Ok(Other::Enter) => break,
                Err(why) => {
                    result = Err(why);
                    break;
                }
            }
            at = next;
        }
        if job.exclusive {
            broken.pending.leaves(&self.shape, run, run_end, level);
        } else {
            broken.pending.held(&self.shape, run, run_end, level);
        }
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
        let kind = if job.exclusive { GOING } else { 0 };
        let swap = |old, new| self.mem.cas(slot.table, slot.index, old, new).is_ok();
        loop {
            let raw = self.mem.load(slot.table, slot.index);
            if raw == job.blank {
                return Ok(Other::Done(0));
            }
            if format::is_frozen(raw) {
                match self.take_over(job, &slot, raw, at, broken)? {
                    Some(other) => return Ok(other),
                    None => continue,
                }
            }
            if format::is_table(raw, level) {
                if !(job.exclusive && covered) {
                    return Ok(Other::Enter);
                }
                if !swap(raw, format::freeze(raw, level) | kind) {
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
                return Ok(Other::Table(-1));
            }
            let mut here = Slot { raw, ..slot };
            if format::is_annotation(raw) {
                if covered {
                    if !swap(raw, job.blank) {
                        continue;
                    }
                    return Ok(Other::Done(of_blank - self.counting.of(raw)));
                }
            } else if !format::is_leaf(raw, level) {
                // Nothing that this crate writes, and no walk goes through it.
                return Err(Error::Exists {
                    level: Shape::level(level),
                });
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
                let (new, of_new) = if visit {
                    (format::freeze(raw, level) | kind, 0)
                } else {
                    (job.blank, of_blank)
                };
                if !swap(raw, new) {
                    continue;
                }
                broken.frozen |= visit;
                return Ok(Other::Leaf(of_new - self.counting.of(raw)));
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

    /// Step 1 for an entry that somebody froze: those whose budget ended are
    /// gone on with. `None`: look again.
    fn take_over(
        &self,
        job: &UnmapJob,
        slot: &Slot<M::Table>,
        raw: u64,
        at: u64,
        broken: &mut Broken,
    ) -> Result<Option<Other>, Error> {
        let swap = |new| self.mem.cas(slot.table, slot.index, raw, new).is_ok();
        let kind = raw & format::PARKED;
        let forgotten = kind == format::HELD_EMPTY && job.exclusive;
        if raw == format::GATHERED && job.exclusive {
            // Its gather comes later, or never: it is invalidated here.
            if swap(0) {
                self.add_count(slot.pa, -1);
                let end = at + (1 << slot.shift);
                broken.pending.leaves(&self.shape, at, end, slot.level);
            }
            return Ok(None);
        }
        if kind == format::COMING || forgotten {
            // Never mapped, nor counted.
            swap(0);
            return Ok(None);
        }
        if job.exclusive {
            // No other walker is in the tree. What is not marked belonged to
            // one that was forgotten.
            broken.frozen = true;
            if kind == GOING {
                return Ok(Some(Other::Done(0)));
            }
            let counted = self.counting.of(format::thaw(raw, slot.level));
            swap(raw | GOING);
            let end = at + (1 << slot.shift);
            broken.pending.table(at, end, self.shape.page_bits());
            return Ok(Some(Other::Done(-counted)));
        }
        if kind == GOING && !format::was_table(raw, slot.level) {
            if !swap(raw & !GOING) {
                return Ok(None);
            }
            broken.frozen = true;
            return Ok(Some(Other::Leaf(0)));
        }
        Err(Error::Busy)
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
            let frozen = format::freeze(parent.raw, parent.level) | GOING;
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
                        stopped = Some(at);
                        break;
                    }
                    progress = true;
                    if format::was_table(raw, level) {
                        let table = self.shape.decode_oa(raw);
                        if !self.reclaim(table, level + 1, at, out, done, budget) {
                            stopped = Some(at);
                            break;
                        }
                    } else {
                        let washed = raw & format::washed_mask(&self.shape, level);
                        let leaf =
                            RemovedLeaf::new(&self.shape, at, level, self.leaf_of(raw, level));
                        // Calls get on by address: what is dropped outside the
                        // range is cleaned at once.
                        let inside = at + washed >= job.start && at + step <= job.end;
                        let mut at_once = Budget::unlimited();
                        let to = if inside {
                            out.leaf(leaf, washed, budget)
                        } else {
                            out.leaf(leaf, washed, &mut at_once)
                        };
                        if to < step {
                            let parked = format::park(&self.shape, raw, level, GOING, to);
                            self.mem.store(slot.table, index, parked);
                            // Inside the block: this much is done of it.
                            stopped = Some(at + to);
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
            if let Some(at) = stopped {
                if !job.exclusive {
                    let parked = if at & (step - 1) == 0 {
                        at
                    } else {
                        (at | (step - 1)) + 1
                    };
                    self.park_range(parked, end);
                }
                return stopped;
            }
            // A table that the loop stopped at is entered next. If it is the
            // first entry, which the walk took for none, another CPU has
            // just made it: nothing of ours is in it.
            ia = if at > ia { at } else { slot.end(ia) };
        }
        None
    }

    /// Parks the leaves in `[start, end)`, all of which this CPU holds frozen.
    fn park_range(&self, start: u64, end: u64) {
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
        let mut first = entries;
        for index in 0..entries {
            let raw = self.mem.load(table, index);
            if raw & format::TYPE != 0 {
                first = first.min(index);
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
                    let (old, washed) = if frozen {
                        let mask = format::washed_mask(&self.shape, level);
                        (self.leaf_of(raw, level), raw & mask)
                    } else {
                        (raw, 0)
                    };
                    let leaf = RemovedLeaf::new(&self.shape, at, level, old);
                    let to = out.leaf(leaf, washed, budget);
                    if to < step {
                        let parked = format::park(&self.shape, raw, level, GOING, to);
                        self.mem.store(table, index, parked);
                        gone = false;
                    }
                }
                if !gone {
                    // What is done must not be met again.
                    (first..index).for_each(|before| self.mem.store(table, before, 0));
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
        format::thaw(raw, level) & !format::washed_mask(&self.shape, level)
    }
}

enum Other {
    /// The entry is dealt with; the table's count changes by this.
    Done(i32),
    /// As `Done`, and a leaf stood there: to be invalidated.
    Leaf(i32),
    /// As `Done`, and a table stood there, which was noted.
    Table(i32),
    /// A table stands there that has to be entered.
    Enter,
}

/// What becomes of removed leaves, after their invalidation.
pub(crate) trait Release {
    /// False: leaves need not be visited.
    const WANTS: bool;
    /// Leaves take work that is in the budget.
    const STEPS: bool;

    /// Gets a leaf of which `washed` bytes are clean and told. Returns how
    /// many are then; when all, the leaf is done with.
    fn leaf(&mut self, leaf: RemovedLeaf, washed: u64, budget: &mut Budget) -> u64;
}

/// Leaves are told, no more.
pub(crate) struct Tell<'a, S>(pub(crate) &'a mut S);

impl<S: LeafSink> Release for Tell<'_, S> {
    const WANTS: bool = S::WANTS;
    const STEPS: bool = false;

    #[inline]
    fn leaf(&mut self, leaf: RemovedLeaf, washed: u64, _: &mut Budget) -> u64 {
        self.0.leaf(leaf.part(washed, leaf.size));
        leaf.size
    }
}

/// The caches of leaves are cleaned and invalidated, then they are told: the
/// guest may have written past the caches.
pub(crate) struct Wash<'a, M, T, S> {
    pub(crate) core: &'a Core<M>,
    pub(crate) maint: &'a mut T,
    pub(crate) sink: &'a mut S,
    /// Output minus input address of a mapping that takes the leaf's place:
    /// memory that stays where it was need not be cleaned.
    pub(crate) stays: Option<u64>,
}

impl<M: TableMem, T: Maintenance, S: LeafSink> Release for Wash<'_, M, T, S> {
    const WANTS: bool = true;
    const STEPS: bool = true;

    fn leaf(&mut self, leaf: RemovedLeaf, washed: u64, budget: &mut Budget) -> u64 {
        let offset = leaf.pa.get().wrapping_sub(leaf.ia);
        let mut to = leaf.size;
        if format::is_seen_uncached(leaf.raw, self.core.fwb) && self.stays != Some(offset) {
            to = self
                .core
                .wash(self.maint, leaf.pa, leaf.size, washed, budget);
        }
        self.sink.leaf(leaf.part(washed, to));
        to
    }
}

impl<M: TableMem> Core<M> {
    /// Cleans and invalidates the data caches of `[pa, pa + size)` from byte
    /// `washed` on as far as the budget goes, a step at least. Returns how
    /// far it came.
    pub(crate) fn wash<T: Maintenance>(
        &self,
        maint: &mut T,
        pa: Pa,
        size: u64,
        washed: u64,
        budget: &mut Budget,
    ) -> u64 {
        let room = budget.bytes_left() & !self.shape.page_mask();
        let step = room.min(size - washed);
        maint.cache(CacheOp::CleanInvalidateData {
            pa: Pa::new(pa.get() + washed),
            size: step,
        });
        budget.spend_bytes(step);
        washed + step
    }

    /// As [`wash`](Self::wash) for a leaf that is gone, all at once.
    pub(crate) fn wash_removed<T: Maintenance>(&self, maint: &mut T, leaf: &RemovedLeaf) {
        if !self.fwb && format::is_seen_uncached(leaf.raw, false) {
            self.wash(maint, leaf.pa, leaf.size, 0, &mut Budget::unlimited());
        }
    }

    /// Invalidates the whole regime (VMID, or EL2) and waits for it.
    pub(crate) fn sync_all<T: Maintenance>(&self, maint: &mut T) -> Synced {
        sync::sync_vmid(maint, &self.tlb)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Event, Log, Plain};
    use crate::{Attrs, Entry, Granule, Ipa, Leaves, Map, Stage2, Stage2Config, Vmid};
    extern crate std;
    use std::vec::Vec;

    /// Without FWB.
    fn tree(mem: &Plain) -> (Stage2<&Plain>, Log) {
        let geometry = Stage2Config::new(Granule::K4, 39, 48).validate().unwrap();
        let root = mem.root(geometry.root_align());
        let tree = Stage2::new(geometry, root, Vmid::new(5), mem).unwrap();
        let log = Log {
            vttbr: tree.vttbr(),
            ..Log::default()
        };
        (tree, log)
    }

    fn map_block(tree: &Stage2<&Plain>, log: &mut Log) {
        let span = 1 << 30;
        let map = Map::new(Ipa::new(0), Pa::new(4 * span), span, Attrs::MEMORY);
        let done = tree.map(log, &map, &mut Budget::unlimited());
        assert_eq!(done, Ok(Ipa::new(span)));
    }

    /// What was cleaned, neighbours joined.
    fn cleaned(log: &Log) -> Vec<(u64, u64)> {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for event in &log.events {
            if let &Event::Cache(CacheOp::CleanInvalidateData { pa, size }) = event {
                match runs.last_mut() {
                    Some((from, bytes)) if *from + *bytes == pa.get() => *bytes += size,
                    _ => runs.push((pa.get(), size)),
                }
            }
        }
        runs
    }

    /// Without FWB a block of 1 GiB is cleaned in steps of the budget: it is
    /// frozen between them, its memory is told in parts as they are clean,
    /// and all of it is cleaned once, after the invalidation.
    #[test]
    fn a_block_is_cleaned_in_steps_after_it_is_unmapped() {
        let span = 1u64 << 30;
        for shared in [false, true] {
            let mem = Plain::new(4096, 1 << 20);
            let (mut tree, mut log) = tree(&mem);
            map_block(&tree, &mut log);
            log.events.clear();
            let mut told = 0;
            let (mut at, mut calls) = (0, 0);
            while at < span {
                let mut sink = |leaf: RemovedLeaf| {
                    assert_eq!((leaf.ia(), leaf.pa().get()), (told, 4 * span + told));
                    told += leaf.size();
                };
                let (ipa, rest) = (Ipa::new(at), span - at);
                let (partial, budget) = (Partial::Refuse, &mut Budget::entries(1 << 14));
                let next = if shared {
                    tree.unmap_leaves(&mut log, ipa, rest, partial, &mut sink, budget)
                } else {
                    tree.unmap(&mut log, ipa, rest, partial, &mut sink, budget)
                };
                at = next.unwrap().get();
                calls += 1;
                assert_eq!(told, at);
                if at < span {
                    assert_eq!(tree.lookup(Ipa::new(0)).unwrap().entry, Entry::Frozen);
                    let page = Map::new(Ipa::new(0), Pa::new(0), 4096, Attrs::MEMORY);
                    let busy = tree.map(&mut log, &page, &mut Budget::unlimited());
                    assert_eq!(busy.unwrap_err().why, Error::Busy);
                }
            }
            // 64 MiB a call, but for the one that broke it.
            assert_eq!(calls, 17);
            assert_eq!(cleaned(&log), [(4 * span, span)]);
            let first = |wanted: fn(&Event) -> bool| log.events.iter().position(wanted).unwrap();
            let clean = first(|event| matches!(event, Event::Cache(_)));
            assert!(first(|event| matches!(event, Event::Tlbi(_))) < clean);
            assert_eq!(tree.lookup(Ipa::new(0)).unwrap().raw, 0);
            assert_eq!(mem.count(tree.root()), 0);
        }
    }

    /// The same before it is mapped; nothing is valid until all is clean.
    #[test]
    fn a_block_is_cleaned_in_steps_before_it_is_mapped() {
        let span = 1u64 << 30;
        for over in [Over::Nothing, Over::Anything] {
            let mem = Plain::new(4096, 1 << 20);
            let (mut tree, mut log) = tree(&mem);
            if over == Over::Anything {
                let old = Map::new(Ipa::new(0), Pa::new(0), 4096, Attrs::MEMORY);
                tree.map(&mut log, &old, &mut Budget::unlimited()).unwrap();
                log.events.clear();
            }
            let map = Map::new(Ipa::new(0), Pa::new(4 * span), span, Attrs::MEMORY).over(over);
            let mut calls = 0;
            loop {
                let budget = &mut Budget::entries(1 << 14);
                let next = tree.map_exclusive(&mut log, &map, &mut Ignore, budget);
                calls += 1;
                if next == Ok(Ipa::new(span)) {
                    break;
                }
                assert_eq!(next, Ok(Ipa::new(0)));
                assert_eq!(tree.translate(Ipa::new(0)), None);
                assert!(calls < 40);
            }
            let washed = cleaned(&log);
            assert_eq!(washed.last(), Some(&(4 * span, span)), "{washed:x?}");
            assert_eq!(tree.lookup(Ipa::new(0)).unwrap().level, Level::L1);
            assert_eq!(mem.count(tree.root()), 1);
            assert_eq!(mem.live.get(), 0);
        }
    }

    /// A block that somebody began to map and gave up is no leaf.
    #[test]
    fn what_was_to_come_is_not_told() {
        let mem = Plain::new(4096, 1 << 20);
        let (mut tree, mut log) = tree(&mem);
        let span = 1u64 << 30;
        let map = Map::new(Ipa::new(0), Pa::new(4 * span), span, Attrs::MEMORY);
        let begun = tree.map(&mut log, &map, &mut Budget::entries(1));
        assert_eq!(begun, Ok(Ipa::new(0)));
        assert_eq!(tree.lookup(Ipa::new(0)).unwrap().entry, Entry::Frozen);
        log.events.clear();
        let mut sink = |leaf: RemovedLeaf| panic!("{leaf:?}");
        let all = &mut Budget::unlimited();
        let done = tree.unmap(&mut log, Ipa::new(0), span, Partial::Split, &mut sink, all);
        assert_eq!(done, Ok(Ipa::new(span)));
        assert_eq!((log.tlbis(), tree.lookup(Ipa::new(0)).unwrap().raw), (0, 0));
        assert_eq!(mem.count(tree.root()), 0);
    }

    /// Collapsing 1 GiB of pages does no more than its budget allows.
    #[test]
    #[cfg_attr(miri, ignore = "too long there")]
    fn a_collapse_has_a_budget() {
        let mem = Plain::new(4096, 4 << 20);
        let mut config = Stage2Config::new(Granule::K4, 39, 48);
        config.features.fwb = true;
        config.features.dic = true;
        let geometry = config.validate().unwrap();
        let root = mem.root(geometry.root_align());
        let mut tree = Stage2::new(geometry, root, Vmid::new(5), &mem).unwrap();
        let mut log = Log {
            vttbr: tree.vttbr(),
            ..Log::default()
        };
        let span = 1u64 << 30;
        let map = Map::new(Ipa::new(0), Pa::new(4 * span), span, Attrs::MEMORY);
        let pages = map.leaves(Leaves::Exactly(Level::L3));
        tree.map(&mut log, &pages, &mut Budget::unlimited())
            .unwrap();
        let mut told = 0;
        let mut calls = 0;
        loop {
            let before = mem.live.get();
            let mut sink = |leaf: RemovedLeaf| told += leaf.size();
            let budget = &mut Budget::entries(2000);
            let map = map.over(Over::Anything);
            let next = tree
                .map_exclusive(&mut log, &map, &mut sink, budget)
                .unwrap();
            calls += 1;
            assert!(before - mem.live.get() <= 5, "so many tables in one call");
            if next == Ipa::new(span) {
                break;
            }
            assert!(calls < 1000);
        }
        assert_eq!((told, mem.live.get()), (span, 0));
        assert_eq!(tree.lookup(Ipa::new(0)).unwrap().level, Level::L1);
        assert_eq!(mem.count(tree.root()), 1);
    }
}

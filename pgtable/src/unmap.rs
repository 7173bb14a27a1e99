//! Removing what a range maps: leaves, and tables that the range covers.
//!
//! Three steps, so that memory leaves only after every TLB agrees:
//! 1. *break*: leaves become invalid (frozen, if there is something to do for
//!    them in step 3), covered tables of pages are cut off at their parent by
//!    one frozen entry, and a table that becomes empty by that likewise;
//! 2. *sync*: one invalidation for all of it;
//! 3. *release*: removed leaves are cleaned and reported, cut tables are
//!    freed, frozen entries get their final value.
//!
//! What step 3 costs is spent in step 1, which ends where the budget does: so
//! nothing is left half done. Where caches have to be cleaned, entries go one
//! by one, and a block of more than one step of cleaning is split before.
//!
//! Beside other CPUs tables stay where they are, empty. Every leaf is frozen
//! until its invalidation is complete, so that nobody maps there before, and
//! what this call froze is kept as exact ranges: step 3 touches nothing else,
//! whatever other CPUs do in between.

use core::marker::PhantomData;

use crate::addr::Pa;
use crate::error::{Budget, CACHE_STEP, Error, Stopped};
use crate::format::{self, CONTIGUOUS};
use crate::maintenance::Maintenance;
use crate::mem::TableMem;
use crate::plan::Pending;
use crate::release::{CleanAndTell, Cut, Release, Row, Tell};
use crate::shape::Shape;
use crate::sink::LeafSink;
use crate::sync::Synced;
use crate::tree::{Access, Changes, Core, Over, Path, Slot};

/// What to do with a block that a range covers only in part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Partial {
    /// Split it: the rest stays mapped. Takes a table page a level.
    Split,
    /// Drop the whole block: more goes than was asked for, and the sink is
    /// told all of it. Where its memory has to be cleaned (no FEAT_S2FWB) and
    /// is more than 2 MiB, it is split, and a part of 2 MiB at most dropped.
    /// Permissions change for the whole block likewise.
    DropWhole,
    /// Stop with [`Error::InsideBlock`].
    Refuse,
}

/// A range to clear, on raw numbers and checked.
#[derive(Clone, Copy)]
pub(crate) struct UnmapJob {
    pub(crate) start: u64,
    pub(crate) end: u64,
    /// The annotation that entries get.
    pub(crate) blank: u64,
    pub(crate) partial: Partial,
    /// Clean data caches of what was mapped, after the invalidation.
    pub(crate) clean: bool,
}

/// A removal under way, alone in its tree or beside others.
pub(crate) struct Unmap<'a, M: TableMem, T, S, A> {
    pub(crate) core: &'a Core<M>,
    pub(crate) maint: &'a mut T,
    sink: &'a mut S,
    pub(crate) job: UnmapJob,
    budget: &'a mut Budget,
    pub(crate) pending: Pending,
    /// Tables were made.
    stored: bool,
    /// Some entries are frozen: step 3 has work.
    pub(crate) held: bool,
    /// How far entries were frozen: a dropped block may end after the range.
    to: u64,
    /// Covered tables at entries of this level and below go whole.
    whole: i8,
    access: PhantomData<A>,
}

/// What breaking an entry came to.
pub(crate) enum Broke {
    /// The entry is dealt with; the table's count changes by this.
    Done(i32),
    /// As `Done`, and a leaf stood there: to be invalidated.
    Leaf(i32),
    /// As `Done`, and a table stood there, which was noted.
    Table(i32),
    /// A table stands there that has to be entered.
    Enter,
}

/// Neighbouring entries of one table that are broken, and what was found.
struct Broken {
    /// The first that was removed.
    first: Option<u64>,
    /// Leaves in a row, to be noted together.
    run: (u64, u64),
    /// What the table's count changes by.
    more: i32,
}

impl<'a, M: TableMem, T: Maintenance, S: LeafSink, A: Access> Unmap<'a, M, T, S, A> {
    pub(crate) fn new(
        core: &'a Core<M>,
        maint: &'a mut T,
        sink: &'a mut S,
        job: UnmapJob,
        budget: &'a mut Budget,
    ) -> Self {
        Self {
            core,
            maint,
            sink,
            job,
            budget,
            pending: Pending::new(),
            stored: false,
            held: false,
            to: job.start,
            whole: 3,
            access: PhantomData,
        }
    }

    /// True when removed leaves are frozen until something is done for them.
    fn visits(&self) -> bool {
        S::WANTS || self.job.clean || !A::ALONE
    }

    pub(crate) fn run(mut self) -> Result<u64, Stopped<u64>> {
        let UnmapJob { start, end, .. } = self.job;
        let mut ia = start;
        loop {
            let from = ia;
            let mut why = None;
            while ia < end {
                match self.break_run(ia) {
                    Ok(next) => ia = next.min(end),
                    Err(stopped) => {
                        ia = stopped.next;
                        why = Some(stopped.why);
                        break;
                    }
                }
                // A table that was only entered or made is no address done.
                let enough = self.budget.is_spent() && ia > start;
                if enough || (!A::ALONE && self.pending.is_full()) {
                    break;
                }
            }
            self.sync_and_release(from, ia);
            match why {
                None if ia >= end || self.budget.is_spent() => return Ok(ia),
                None => (),
                Some(why) => return Err(Stopped { why, next: ia }),
            }
        }
    }

    /// Steps 2 and 3 for what was broken from `from` on.
    fn sync_and_release(&mut self, from: u64, ia: u64) {
        let pending = core::mem::replace(&mut self.pending, Pending::new());
        let changes = Changes::of(core::mem::take(&mut self.stored), pending);
        let done = self.core.finish(self.maint, &changes);
        if !core::mem::take(&mut self.held) {
            return;
        }
        if A::ALONE {
            self.release((from, self.to.max(ia)), &done);
        } else {
            for range in changes.held_ranges() {
                self.release(range, &done);
            }
        }
    }

    /// Step 1 for neighbouring entries of one table. Returns where to go on.
    fn break_run(&mut self, ia: u64) -> Result<u64, Stopped<u64>> {
        // Beside others, and where caches are cleaned, every table is entered.
        self.whole = if A::ALONE && !self.job.clean {
            self.core.whole_from::<Tell<'_, S>>(self.budget)
        } else {
            3
        };
        let covered = (self.whole, self.job.start, self.job.end);
        let mut path = self.core.walk_path(ia, covered);
        let slot = path.last();
        let level = slot.level;
        let shape = &self.core.shape;
        let step = 1u64 << slot.shift;
        let blank = self.job.blank;
        let visit = self.visits();
        // What is frozen gets its count with its final value.
        let of_new = if visit {
            0
        } else {
            self.core.counting.of(blank)
        };
        let simple = !self.job.clean;
        let mut at = slot.base(ia);
        let mut broken = Broken {
            first: None,
            run: (at, at),
            more: 0,
        };
        let first = slot.index;
        let last = first + self.core.entries_left(&slot);
        let most = self.budget.left().max(1);
        let mut spent = 0u64;
        let mut result = Ok(());
        for index in first..last {
            if at >= self.job.end || (spent >= most) {
                break;
            }
            let raw = self.core.mem.load(slot.table, index);
            let next = at.wrapping_add(step);
            spent += 1;
            if raw == blank {
                at = next;
                continue;
            }
            if !A::ALONE && at != broken.run.1 && broken.run.0 != broken.run.1 {
                // One run at a time: there may be no room for another.
                break;
            }
            if simple
                && format::is_leaf(raw, level)
                && raw & CONTIGUOUS == 0
                && at >= self.job.start
                && next <= self.job.end
            {
                // The common case, first.
                let new = if visit {
                    format::freeze(raw, level)
                } else {
                    blank
                };
                if self.core.mem.cas(slot.table, index, raw, new).is_ok() {
                    self.held |= visit;
                    self.note_leaf(&mut broken, at, level);
                    broken.more += of_new - self.core.counting.of(raw);
                    at = next;
                    continue;
                }
            }
            let here = Slot { index, raw, ..slot };
            match self.break_other(here, at) {
                Ok(Broke::Done(change)) => broken.more += change,
                Ok(Broke::Table(change)) => {
                    broken.more += change;
                    broken.first.get_or_insert(at);
                }
                Ok(Broke::Leaf(change)) => {
                    self.note_leaf(&mut broken, at, level);
                    broken.more += change;
                }
                Ok(Broke::Enter) => break,
                Err(why) => {
                    result = Err(why);
                    break;
                }
            }
            at = next;
            if self.budget.left() == 0 {
                break;
            }
        }
        self.budget.spend(spent);
        let (run, run_end) = broken.run;
        if A::ALONE {
            self.pending.leaves(shape, run, run_end, level);
        } else {
            self.pending.held(shape, run, run_end, level);
        }
        if broken.more != 0 {
            self.core.mem.add_count(Pa::new(slot.pa), broken.more);
        }
        if A::ALONE {
            let removed = broken.first.map(|first| (first, at));
            // What is cut has nothing more to break.
            at = at.max(self.cut_empty(&mut path, ia, removed));
        }
        self.to = self.to.max(at);
        match result {
            Ok(()) => Ok(at.max(ia)),
            Err(why) => Err(Stopped {
                why,
                next: at.max(ia),
            }),
        }
    }

    /// Notes a removed leaf, with its neighbours.
    #[inline]
    fn note_leaf(&mut self, broken: &mut Broken, at: u64, level: i8) {
        let (run, run_end) = broken.run;
        let shape = &self.core.shape;
        if at != run_end {
            self.pending.leaves(shape, run, run_end, level);
            broken.run.0 = at;
        }
        broken.run.1 = at.wrapping_add(shape.span_at(level));
        broken.first.get_or_insert(at);
    }

    /// Step 1 for an entry that is not simply a leaf inside the range.
    #[cold]
    #[inline(never)]
    fn break_other(&mut self, slot: Slot<M::Table>, at: u64) -> Result<Broke, Error> {
        let core = self.core;
        let level = slot.level;
        let covered = slot.inside(at, self.job.start, self.job.end);
        let of_blank = core.counting.of(self.job.blank);
        let swap = |old, new| core.mem.cas(slot.table, slot.index, old, new).is_ok();
        loop {
            let raw = core.mem.load(slot.table, slot.index);
            let mut here = Slot { raw, ..slot };
            if raw == self.job.blank {
                return Ok(Broke::Done(0));
            }
            if format::is_frozen(raw) {
                match self.take_over(&here, at)? {
                    Some(other) => return Ok(other),
                    None => continue,
                }
            }
            if format::is_table(raw, level) {
                // A table of tables goes when they have, where the budget is not
                // enough for all at once.
                if !covered || level < self.whole {
                    return Ok(Broke::Enter);
                }
                match self.cut_table(&here, at) {
                    Some(broke) => return Ok(broke),
                    None => continue,
                }
            }
            if format::is_annotation(raw) {
                if covered {
                    if !swap(raw, self.job.blank) {
                        continue;
                    }
                    return Ok(Broke::Done(of_blank - core.counting.of(raw)));
                }
            } else if !format::is_leaf(raw, level) {
                // Nothing that this crate writes, and no walk goes through it.
                return Err(Error::Exists {
                    level: Shape::level(level),
                });
            } else if raw & CONTIGUOUS != 0 {
                core.break_group(self.maint, &mut here, at)?;
                continue;
            } else if !covered && self.job.partial == Partial::Refuse {
                return Err(Error::InsideBlock {
                    level: Shape::level(level),
                });
            } else if covered || self.job.partial == Partial::DropWhole {
                match self.break_leaf(&here) {
                    Some(Broke::Enter) => (),
                    Some(broke) => return Ok(broke),
                    None => continue,
                }
            }
            // A block or an annotation that the range covers in part, or a
            // block that is cleaned in parts.
            let mut changes = Changes::new();
            let ia = at.max(self.job.start);
            let reached = core.reach(self.maint, &mut changes, ia, level + 1, Over::Anything);
            self.stored |= changes.stored;
            reached?;
            return Ok(Broke::Enter);
        }
    }

    /// Step 1 for an entry that somebody froze. `None`: look again.
    fn take_over(&mut self, slot: &Slot<M::Table>, at: u64) -> Result<Option<Broke>, Error> {
        if !A::ALONE {
            return Err(Error::Busy);
        }
        // Nobody is at work: it belongs to a gather that comes later, or never,
        // or to somebody who was forgotten. It is invalidated here.
        let core = self.core;
        let (raw, end) = (slot.raw, at + (1 << slot.shift));
        if raw & format::ELSEWHERE == 0 {
            self.pending.table(at, end, core.shape.page_bits());
            self.held = true;
            let counted = core.counting.of(format::thaw(raw, slot.level));
            return Ok(Some(Broke::Done(-counted)));
        }
        let emptied = core.mem.cas(slot.table, slot.index, raw, 0).is_ok();
        if emptied && raw == format::GATHERED {
            core.add_count(slot.pa, -1);
            self.pending.leaves(&core.shape, at, end, slot.level);
        }
        Ok(None)
    }

    /// Breaks a leaf that goes whole. `Enter`: it has to be split before.
    /// `None`: look again.
    fn break_leaf(&mut self, slot: &Slot<M::Table>) -> Option<Broke> {
        let core = self.core;
        let (raw, level) = (slot.raw, slot.level);
        let size = 1u64 << slot.shift;
        let cleaned = self.job.clean && format::is_seen_uncached(raw, core.fwb);
        if cleaned && size > CACHE_STEP && level < 3 {
            return Some(Broke::Enter);
        }
        let visit = self.visits();
        let (new, of_new) = if visit {
            (format::freeze(raw, level), 0)
        } else {
            (self.job.blank, core.counting.of(self.job.blank))
        };
        core.mem.cas(slot.table, slot.index, raw, new).ok()?;
        if cleaned {
            self.budget.spend_bytes(size);
        }
        self.held |= visit;
        Some(Broke::Leaf(of_new - core.counting.of(raw)))
    }

    /// Cuts off a table of pages that the range covers. `None`: look again.
    fn cut_table(&mut self, slot: &Slot<M::Table>, at: u64) -> Option<Broke> {
        let core = self.core;
        let frozen = format::freeze(slot.raw, slot.level);
        core.mem
            .cas(slot.table, slot.index, slot.raw, frozen)
            .ok()?;
        // What is below tables of tables is spent as it is met.
        if slot.level == 2 {
            self.budget.spend(core.table_units::<Tell<'_, S>>(3) - 1);
        }
        let empty = slot.level == 2
            && core.counting.zero_is_empty()
            && core.mem.count(Pa::new(core.shape.decode_oa(slot.raw))) == 0;
        let smallest = if empty {
            slot.shift
        } else {
            core.shape.page_bits()
        };
        let step = 1u64 << slot.shift;
        self.pending.table(at, at + step, smallest);
        self.held = true;
        Some(Broke::Table(-1))
    }

    /// Cuts off the table at the end of `path` if nothing is left in it, and
    /// its parents likewise. `removed` is what this call took out of it.
    /// Returns the end of what is cut, 0 if nothing is.
    fn cut_empty(
        &mut self,
        path: &mut Path<M::Table>,
        ia: u64,
        removed: Option<(u64, u64)>,
    ) -> u64 {
        let core = self.core;
        let mut slot = path.last();
        let mut end = 0;
        while let Some(parent) = path.up() {
            if !self.is_done(&slot, &parent, ia) {
                break;
            }
            let frozen = format::freeze(parent.raw, parent.level);
            if core
                .mem
                .cas(parent.table, parent.index, parent.raw, frozen)
                .is_err()
            {
                break;
            }
            core.mem.add_count(Pa::new(parent.pa), -1);
            match removed {
                // What was removed is being invalidated by address; without
                // a level hint that takes the tables above along.
                Some((start, end)) => {
                    self.pending.table(start, end, core.shape.page_bits());
                }
                None => {
                    let base = parent.base(ia);
                    self.pending
                        .table(base, base + (1 << parent.shift), parent.shift);
                }
            }
            self.held = true;
            end = parent.end(ia);
            slot = parent;
        }
        end
    }

    /// True when all of the table of `slot`, which hangs at `parent`, has gone:
    /// nothing is in it, or it is covered and says `blank` throughout.
    fn is_done(&self, slot: &Slot<M::Table>, parent: &Slot<M::Table>, ia: u64) -> bool {
        let core = self.core;
        let blank = self.job.blank;
        if blank == 0 {
            let left = core.mem.count(Pa::new(slot.pa));
            return core.counting.zero_is_empty() && left < 1;
        }
        parent.inside(ia, self.job.start, self.job.end)
            && (0..core.shape.table_entries()).all(|index| {
                let raw = core.mem.load(slot.table, index);
                raw == blank || format::is_frozen(raw)
            })
    }

    /// Step 3: gives frozen entries in `[start, end)` their final value, after
    /// their memory was cleaned and told, and cut tables were freed.
    fn release(&mut self, range: (u64, u64), done: &Synced) {
        let (core, blank) = (self.core, self.job.blank);
        if self.job.clean {
            let mut out = CleanAndTell {
                fwb: core.fwb,
                maint: &mut *self.maint,
                sink: &mut *self.sink,
                stays: None,
            };
            core.release(&mut out, range, (blank, done), self.budget);
        } else {
            core.release(&mut Tell(self.sink), range, (blank, done), self.budget);
        }
    }
}

impl<M: TableMem> Core<M> {
    fn release<R: Release>(
        &self,
        out: &mut R,
        (start, end): (u64, u64),
        (blank, done): (u64, &Synced),
        budget: &mut Budget,
    ) {
        let of_blank = self.counting.of(blank);
        let mut ia = start;
        while ia < end {
            let slot = self.walk_to(ia, 3);
            let level = slot.level;
            let step = 1u64 << slot.shift;
            let mut at = slot.base(ia);
            let mut more = 0;
            let mut row = Row::of(level);
            for index in slot.index..slot.index + self.entries_left(&slot) {
                if at >= end {
                    break;
                }
                let raw = self.mem.load(slot.table, index);
                if format::is_frozen(raw) {
                    if format::was_table(raw, level) {
                        row.end(&self.shape, out);
                        let table = Cut {
                            pa: self.shape.decode_oa(raw),
                            level: level + 1,
                            base: at,
                        };
                        let units = self.reclaim(table, out, done);
                        if level < 2 {
                            budget.spend(units);
                        }
                    } else if R::WANTS {
                        let leaf = format::thaw(raw, level);
                        row.leaf(&self.shape, out, at, leaf);
                    }
                    self.mem.store(slot.table, index, blank);
                    more += of_blank;
                } else if format::is_table(raw, level) {
                    break;
                } else {
                    row.end(&self.shape, out);
                }
                at += step;
            }
            row.end(&self.shape, out);
            if more != 0 {
                self.mem.add_count(Pa::new(slot.pa), more);
            }
            // A table that the loop stopped at is entered next. If it is the
            // first entry, which the walk took for none, another CPU has
            // just made it: nothing of ours is in it.
            ia = if at > ia { at } else { slot.end(ia) };
        }
    }
}

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

use crate::addr::{Extent, Ia, Level, Pa};
use crate::desc::{CONTIGUOUS, Desc, Kind};
use crate::error::{Budget, CACHE_STEP, Error, Stopped};
use crate::maintenance::Maintenance;
use crate::mem::TableMem;
use crate::plan::Pending;
use crate::release::{CleanAndTell, Tell};
use crate::sink::LeafSink;
use crate::sync::Synced;
use crate::tree::{Access, Core, Over, Path, Slot};
use crate::work::{Changes, Work};

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

/// A range to clear, checked.
#[derive(Clone, Copy)]
pub(crate) struct UnmapJob {
    pub(crate) range: Extent,
    /// The annotation that entries get.
    pub(crate) blank: Desc,
    pub(crate) partial: Partial,
    /// Clean data caches of what was mapped, after the invalidation.
    pub(crate) clean: bool,
}

/// A removal under way, alone in its tree or beside others.
pub(crate) struct Removal<'a, M: TableMem, T, S, A> {
    work: Work<'a, M, T>,
    sink: &'a mut S,
    budget: &'a mut Budget,
    job: UnmapJob,
    /// Some entries are frozen: step 3 has work.
    held: bool,
    /// How far entries were frozen: a dropped block may end after the range.
    to: Ia,
    /// Covered tables at entries of this level and below go whole.
    whole: Level,
    access: PhantomData<A>,
}

/// What breaking an entry came to.
enum Broke {
    /// The entry is dealt with; the table's count changes by this.
    Done(i32),
    /// As `Done`, and a leaf stood there: to be invalidated.
    Leaf(i32),
    /// As `Done`, and a table stood there, which was noted.
    Table(i32),
    /// A table stands there that has to be entered.
    Enter,
    /// Somebody has changed it: look again.
    Again,
}

/// Neighbouring entries of one table that are broken, and what was found.
struct Broken {
    /// The first that was removed.
    first: Option<Ia>,
    /// Leaves in a row, to be noted together.
    run: Extent,
    /// What the table's count changes by.
    more: i32,
    /// How far it went.
    to: Ia,
}

impl<M: TableMem> Core<M> {
    /// Removes the page at `ia`, where nobody else changes the tree, its table maps
    /// more than that, and no cache is to be cleaned. False where it is another case:
    /// nothing was changed.
    pub(crate) fn unmap_one<T: Maintenance>(&self, maint: &mut T, ia: Ia) -> bool {
        if self.shape.check_ia(ia, self.shape.span(Level::L3)).is_err() {
            return false;
        }
        let slot = self.walk_to(ia, Level::L3);
        let is_page = slot.level == Level::L3 && slot.desc.is_leaf(slot.level);
        let alone = slot.desc.has(CONTIGUOUS) || self.mem.count(slot.pa) <= 1;
        if !is_page || alone || !self.features.fwb {
            return false;
        }
        let old = self.exchange(&slot, Desc::EMPTY);
        self.add_count(slot.pa, -self.counting.of(old));
        let _done = self.work(maint).sync_leaf(&slot);
        true
    }
}

impl<'a, M: TableMem, T: Maintenance, S: LeafSink, A: Access> Removal<'a, M, T, S, A> {
    pub(crate) fn new(
        work: Work<'a, M, T>,
        sink: &'a mut S,
        budget: &'a mut Budget,
        job: UnmapJob,
    ) -> Self {
        Self {
            work,
            sink,
            budget,
            job,
            held: false,
            to: job.range.start,
            whole: Level::L3,
            access: PhantomData,
        }
    }

    /// True when removed leaves are frozen until something is done for them.
    fn visits(&self) -> bool {
        S::WANTS || self.job.clean || !A::ALONE
    }

    /// What the TLBs still know of.
    fn pending(&mut self) -> &mut Pending {
        self.work.changes.pending()
    }

    pub(crate) fn run(mut self) -> Result<Ia, Stopped<Ia>> {
        let Extent { start, end } = self.job.range;
        let mut ia = start;
        loop {
            let from = ia;
            let mut why = None;
            while ia < end && why.is_none() {
                let next;
                (next, why) = self.break_run(ia);
                ia = if why.is_none() { next.min(end) } else { next };
                // A table that was only entered or made is no address done.
                let enough = self.budget.is_spent() && ia > start;
                if enough || (!A::ALONE && self.pending().is_full()) {
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
    fn sync_and_release(&mut self, from: Ia, ia: Ia) {
        let done = self.work.finish();
        if !core::mem::take(&mut self.held) {
            self.work.changes = Changes::NONE;
        } else if A::ALONE {
            self.work.changes = Changes::NONE;
            let end = self.to.max(ia);
            self.release(Extent { start: from, end }, &done);
        } else {
            let changes = core::mem::replace(&mut self.work.changes, Changes::NONE);
            for extent in changes.held_extents() {
                self.release(extent, &done);
            }
        }
    }

    /// Step 1 for neighbouring entries of one table. Returns where to go on, and
    /// what stopped it.
    fn break_run(&mut self, ia: Ia) -> (Ia, Option<Error>) {
        let core = self.work.core;
        // Beside others, and where caches are cleaned, every table is entered.
        self.whole = if A::ALONE && !self.job.clean {
            core.whole_from::<Tell<'_, S>>(self.budget)
        } else {
            Level::L3
        };
        let mut path = core.walk_path(ia, self.whole, self.job.range);
        let slot = path.last();
        let mut broken = Broken {
            first: None,
            run: Extent::new(slot.ia, 0),
            more: 0,
            to: slot.ia,
        };
        let why = self.break_entries(&slot, &mut broken).err();
        core.add_count(slot.pa, broken.more);
        let mut to = broken.to;
        if A::ALONE {
            self.pending().leaves(&core.shape, broken.run, slot.level);
            let removed = broken.first.map(|start| Extent { start, end: to });
            // What is cut has nothing more to break.
            to = to.max(self.cut_empty(&mut path, removed));
        } else {
            self.pending().held(&core.shape, broken.run, slot.level);
        }
        self.to = self.to.max(to);
        (to.max(ia), why)
    }

    /// Breaks entries of one table, from `slot` on.
    #[inline]
    fn break_entries(&mut self, slot: &Slot<M::Table>, broken: &mut Broken) -> Result<(), Error> {
        let (core, job) = (self.work.core, self.job);
        let visit = self.visits();
        // What is frozen gets its count with its final value.
        let of_new = if visit {
            0
        } else {
            core.counting.of(job.blank)
        };
        let most = self.budget.left().max(1);
        let mut spent = 0u64;
        let mut result = Ok(());
        for index in slot.index..slot.index + core.entries_left(slot) {
            let at = broken.to;
            if at >= job.range.end || spent >= most {
                break;
            }
            let desc = core.load(slot.table, index);
            let next = at.plus(slot.size());
            spent += 1;
            if desc == job.blank {
                broken.to = next;
                continue;
            }
            if !A::ALONE && at != broken.run.end && !broken.run.is_empty() {
                // One run at a time: there may be no room for another.
                break;
            }
            if !job.clean
                && desc.is_leaf(slot.level)
                && !desc.has(CONTIGUOUS)
                && at >= job.range.start
                && next <= job.range.end
            {
                // The common case, first.
                let new = if visit {
                    desc.freeze(slot.level)
                } else {
                    job.blank
                };
                if core.cas(slot.table, index, desc, new).is_ok() {
                    self.held |= visit;
                    self.note_leaf(broken, slot);
                    broken.more += of_new - core.counting.of(desc);
                    broken.to = next;
                    continue;
                }
            }
            match self.break_other(slot.after(index - slot.index, desc)) {
                Ok(Broke::Done(change)) => broken.more += change,
                Ok(Broke::Table(change)) => {
                    broken.more += change;
                    broken.first.get_or_insert(at);
                }
                Ok(Broke::Leaf(change)) => {
                    self.note_leaf(broken, slot);
                    broken.more += change;
                }
                Ok(Broke::Enter | Broke::Again) => break,
                Err(why) => {
                    result = Err(why);
                    break;
                }
            }
            broken.to = next;
            if self.budget.is_spent() {
                break;
            }
        }
        self.budget.spend(spent);
        result
    }

    /// Notes the leaf that was removed next, with its neighbours.
    #[inline]
    fn note_leaf(&mut self, broken: &mut Broken, slot: &Slot<M::Table>) {
        let at = broken.to;
        if at != broken.run.end {
            let shape = &self.work.core.shape;
            self.pending().leaves(shape, broken.run, slot.level);
            broken.run.start = at;
        }
        broken.run.end = at.plus(slot.size());
        broken.first.get_or_insert(at);
    }

    /// Step 1 for an entry that is not simply a leaf inside the range.
    #[cold]
    #[inline(never)]
    fn break_other(&mut self, mut slot: Slot<M::Table>) -> Result<Broke, Error> {
        let (core, blank, level) = (self.work.core, self.job.blank, slot.level);
        let covered = self.job.range.covers(slot.extent());
        loop {
            slot.desc = core.load(slot.table, slot.index);
            if slot.desc == blank {
                return Ok(Broke::Done(0));
            }
            let broke = match slot.kind(&core.shape) {
                // A table of tables goes when they have, where the budget is not
                // enough for all at once.
                Kind::Table(_) if !covered || level < self.whole => return Ok(Broke::Enter),
                Kind::Table(table) => self.cut_table(&slot, table),
                Kind::Invalid if covered => self.blank(&slot),
                Kind::Invalid => Broke::Enter,
                Kind::Leaf => self.break_leaf(&mut slot)?,
                Kind::Reserved => return Err(Error::Exists { level }),
                Kind::Elsewhere | Kind::FrozenLeaf(_) | Kind::FrozenTable(_) => {
                    self.take_over(&slot)?
                }
            };
            match broke {
                Broke::Again => (),
                Broke::Enter => {
                    // A block or an annotation that the range covers in part, or a
                    // block that is cleaned in parts.
                    let ia = slot.ia.max(self.job.range.start);
                    self.work.reach(ia, level.down(), Over::Anything)?;
                    return Ok(broke);
                }
                broke => return Ok(broke),
            }
        }
    }

    /// Step 1 for an annotation that goes whole.
    fn blank(&self, slot: &Slot<M::Table>) -> Broke {
        let (core, blank) = (self.work.core, self.job.blank);
        if !core.swap(slot, blank) {
            return Broke::Again;
        }
        Broke::Done(core.counting.of(blank) - core.counting.of(slot.desc))
    }

    /// Step 1 for an entry that somebody froze.
    fn take_over(&mut self, slot: &Slot<M::Table>) -> Result<Broke, Error> {
        if !A::ALONE {
            return Err(Error::Busy);
        }
        // Nobody is at work: it belongs to a gather that comes later, or never,
        // or to somebody who was forgotten. It is invalidated here.
        let core = self.work.core;
        let counted = match slot.kind(&core.shape) {
            Kind::FrozenLeaf(leaf) => core.counting.of(leaf),
            Kind::FrozenTable(_) => 1,
            _ => {
                let gathered = slot.desc == Desc::GATHERED;
                if core.swap(slot, Desc::EMPTY) && gathered {
                    core.add_count(slot.pa, -1);
                    self.pending()
                        .leaves(&core.shape, slot.extent(), slot.level);
                }
                return Ok(Broke::Again);
            }
        };
        self.pending().table(slot.extent(), core.shape.page_bits());
        self.held = true;
        Ok(Broke::Done(-counted))
    }

    /// Step 1 for a leaf. `Enter`: it has to be split before.
    fn break_leaf(&mut self, slot: &mut Slot<M::Table>) -> Result<Broke, Error> {
        let core = self.work.core;
        let level = slot.level;
        let covered = self.job.range.covers(slot.extent());
        if slot.desc.has(CONTIGUOUS) {
            self.work.break_group(slot)?;
            return Ok(Broke::Again);
        }
        if !covered && self.job.partial == Partial::Refuse {
            return Err(Error::InsideBlock { level });
        }
        let cleaned = self.job.clean && core.features.needs_clean(slot.desc);
        let too_long = cleaned && slot.size() > CACHE_STEP && level < Level::L3;
        if too_long || (!covered && self.job.partial == Partial::Split) {
            return Ok(Broke::Enter);
        }
        let visit = self.visits();
        let (new, of_new) = if visit {
            (slot.desc.freeze(level), 0)
        } else {
            (self.job.blank, core.counting.of(self.job.blank))
        };
        if !core.swap(slot, new) {
            return Ok(Broke::Again);
        }
        if cleaned {
            self.budget.spend_bytes(slot.size());
        }
        self.held |= visit;
        Ok(Broke::Leaf(of_new - core.counting.of(slot.desc)))
    }

    /// Cuts off the table at `slot`, which the range covers.
    fn cut_table(&mut self, slot: &Slot<M::Table>, table: Pa) -> Broke {
        let core = self.work.core;
        if !core.swap(slot, slot.desc.freeze(slot.level)) {
            return Broke::Again;
        }
        let mut smallest = core.shape.page_bits();
        // What is below tables of tables is spent as it is met.
        if slot.level == Level::L2 {
            let units = core.table_units::<Tell<'_, S>>(Level::L3);
            self.budget.spend(units - 1);
            if core.counting.zero_is_empty() && core.mem.count(table) == 0 {
                smallest = slot.shift;
            }
        }
        self.pending().table(slot.extent(), smallest);
        self.held = true;
        Broke::Table(-1)
    }

    /// Cuts off the table at the end of `path` if nothing is left in it, and
    /// its parents likewise. `removed` is what this call took out of it.
    /// Returns the end of what is cut, the first address if nothing is.
    fn cut_empty(&mut self, path: &mut Path<M::Table>, removed: Option<Extent>) -> Ia {
        let core = self.work.core;
        let mut slot = path.last();
        let mut end = Ia::new(0);
        while let Some(parent) = path.up() {
            let frozen = parent.desc.freeze(parent.level);
            if !self.is_done(&slot, &parent) || !core.swap(&parent, frozen) {
                break;
            }
            core.add_count(parent.pa, -1);
            match removed {
                // What was removed is being invalidated by address; without
                // a level hint that takes the tables above along.
                Some(removed) => self.pending().table(removed, core.shape.page_bits()),
                None => self.pending().table(parent.extent(), parent.shift),
            }
            self.held = true;
            end = parent.end();
            slot = parent;
        }
        end
    }

    /// True when all of the table of `slot`, which hangs at `parent`, has gone:
    /// nothing is in it, or it is covered and says `blank` throughout.
    fn is_done(&self, slot: &Slot<M::Table>, parent: &Slot<M::Table>) -> bool {
        let (core, blank) = (self.work.core, self.job.blank);
        if blank == Desc::EMPTY {
            let left = core.mem.count(slot.pa);
            return core.counting.zero_is_empty() && left < 1;
        }
        self.job.range.covers(parent.extent())
            && (0..core.shape.table_entries()).all(|index| {
                let desc = core.load(slot.table, index);
                desc == blank || desc.is_frozen()
            })
    }

    /// Step 3: gives frozen entries of `extent` their final value, after
    /// their memory was cleaned and told, and cut tables were freed.
    fn release(&mut self, extent: Extent, done: &Synced) {
        let (core, blank) = (self.work.core, self.job.blank);
        let units = if self.job.clean {
            let mut out = CleanAndTell {
                features: &core.features,
                maint: &mut *self.work.maint,
                sink: &mut *self.sink,
                stays: None,
            };
            core.release(&mut out, extent, blank, done)
        } else {
            core.release(&mut Tell(&mut *self.sink), extent, blank, done)
        };
        self.budget.spend(units);
    }
}

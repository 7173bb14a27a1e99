//! Splitting blocks ahead of need, from pages that the caller gives.
//!
//! A block is broken once, however deep it is split: its whole subtree is
//! built before. Neighbouring blocks of one table are broken together, with
//! one invalidation.

use crate::addr::{Ipa, Level, Pa};
use crate::error::{Budget, Error, Stopped};
use crate::format::{self, CONTIGUOUS};
use crate::maintenance::Maintenance;
use crate::mem::TableMem;
use crate::plan::Pending;
use crate::release::{Cut, Tell};
use crate::shape::Shape;
use crate::sink::Ignore;
use crate::stage2::{Stage2, typed};
use crate::sync::{self, Synced};
use crate::tree::{Core, Slot};

impl<M: TableMem> Stage2<M> {
    /// Splits all blocks of a range into leaves of level `to`. What they map,
    /// and how, stays. `pages` gives zeroed pages for tables of a level.
    ///
    /// Blocks that the range covers in part are split as far as the range
    /// goes. Returns the first IPA not done. Pages that turn out not to be
    /// needed go to [`TableMem::free`].
    ///
    /// ```
    /// # mod example { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/example.rs")); }
    /// # use {example::*, pgtable::*};
    /// # let (mut tree, mut cpu) = tree();
    /// # let all = &mut Budget::unlimited();
    /// let (ipa, size) = (Ipa::new(0x4000_0000), 2 << 20);
    /// tree.map(&mut cpu, &Map::new(ipa, Pa::new(0x8000_0000), size, Attrs::MEMORY), all)?;
    /// assert_eq!(tree.lookup(ipa)?.level, Level::L2);
    /// let pages = |_level| tree.mem().page();
    /// tree.split(&mut cpu, ipa, size, Level::L3, pages, all)?;
    /// assert_eq!(tree.lookup(ipa)?.level, Level::L3);
    /// assert_eq!(tree.translate(Ipa::new(0x4000_1000)).expect("as before").0, Pa::new(0x8000_1000));
    /// # let _ = (&mut tree, &mut cpu, all);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// `Range`, `Align`, `BlockLevel` at once; `NoMem` when `pages` has no
    /// more (what was built is in use, `next` says how far), `Range` when one
    /// of them lies outside the output space; `Busy`.
    pub fn split<T: Maintenance>(
        &self,
        maint: &mut T,
        ipa: Ipa,
        size: u64,
        to: Level,
        pages: impl FnMut(Level) -> Option<Pa>,
        budget: &mut Budget,
    ) -> Result<Ipa, Stopped<Ipa>> {
        let shape = &self.core.shape;
        let stop = |why| Stopped { why, next: ipa };
        let end = shape.check_ia(ipa.get(), size).map_err(stop)?;
        if !shape.leaf_ok(to) {
            return Err(stop(Error::BlockLevel { level: to }));
        }
        let mut job = SplitJob {
            start: ipa.get(),
            end,
            to: to.get(),
            pages,
            budget,
        };
        typed(self.core.split_range(maint, &mut job))
    }
}

/// A range whose blocks become tables down to level `to`, and what that takes.
struct SplitJob<'a, P> {
    start: u64,
    end: u64,
    to: i8,
    pages: P,
    budget: &'a mut Budget,
}

impl<M: TableMem> Core<M> {
    fn split_range<T: Maintenance, P: FnMut(Level) -> Option<Pa>>(
        &self,
        maint: &mut T,
        job: &mut SplitJob<'_, P>,
    ) -> Result<u64, Stopped<u64>> {
        let mut ia = job.start;
        while ia < job.end {
            let mut slot = self.walk_to(ia, job.to);
            let stop = |why| Err(Stopped { why, next: ia });
            if format::is_frozen(slot.raw) {
                return stop(Error::Busy);
            }
            if slot.level < job.to && format::is_leaf(slot.raw, slot.level) {
                if slot.raw & CONTIGUOUS != 0
                    && let Err(why) = self.break_group(maint, &mut slot, ia)
                {
                    return stop(why);
                }
                match self.split_run(maint, &slot, ia, job) {
                    Ok(next) => ia = next,
                    Err(stopped) => return Err(stopped),
                }
            } else {
                // Fine enough already: all of this table is, at level `to`.
                let wide = if slot.level == job.to && slot.level > self.shape.start_raw() {
                    slot.shift + self.shape.stride()
                } else {
                    slot.shift
                };
                ia = (ia & !((1 << wide) - 1)) + (1 << wide);
                job.budget.spend(1);
            }
            // A block that was only split on the way down is no address done.
            if job.budget.is_spent() && ia > job.start {
                break;
            }
        }
        Ok(ia.min(job.end))
    }

    /// Splits neighbouring blocks of one table. Returns how far it came.
    fn split_run<T: Maintenance, P: FnMut(Level) -> Option<Pa>>(
        &self,
        maint: &mut T,
        slot: &Slot<M::Table>,
        ia: u64,
        job: &mut SplitJob<'_, P>,
    ) -> Result<u64, Stopped<u64>> {
        let level = slot.level;
        let step = 1u64 << slot.shift;
        let mut pending = Pending::new();
        let mut at = slot.base(ia);
        let mut broken = 0;
        let mut next = ia;
        let mut why = None;
        let end = slot.index + self.entries_left(slot);
        let mut index = slot.index;
        while index < end {
            if at >= job.end || (broken > 0 && job.budget.is_spent()) {
                break;
            }
            let old = self.mem.load(slot.table, index);
            if !format::is_leaf(old, level) || old & CONTIGUOUS != 0 {
                break;
            }
            let child = Shape::level(level + 1);
            let pa = match self.page_of(job, child) {
                Ok(pa) => pa,
                Err(error) => {
                    why = Some(error);
                    break;
                }
            };
            let built = self.build(pa, old, slot, at, job);
            // Frozen as the table that it becomes: nothing fails from here.
            let new = format::table(&self.shape, pa.get());
            let stored = if self.bbm2 {
                new
            } else {
                format::freeze(new, level)
            };
            if self.mem.cas(slot.table, index, old, stored).is_err() {
                // Hardware has marked it, or another CPU was here: what was
                // built goes back, and it is looked at again.
                let never = Synced::never_linked();
                let table = Cut {
                    pa: pa.get(),
                    level: level + 1,
                    base: at,
                };
                let _spent = self.reclaim(table, &mut Tell(&mut Ignore), &never);
                continue;
            }
            pending.leaves(&self.shape, at, at + step, level);
            let more = 1 - self.counting.of(old);
            if more != 0 {
                self.mem.add_count(Pa::new(slot.pa), more);
            }
            broken += 1;
            match built {
                SplitProgress::Whole => next = at + step,
                SplitProgress::UpTo(end, error) => {
                    next = end.max(ia);
                    why = Some(error);
                    break;
                }
                SplitProgress::Budget(end) => {
                    next = end.max(ia);
                    break;
                }
                SplitProgress::OneLevel => break,
            }
            at += step;
            index += 1;
        }
        if broken > 0 {
            let _done: Synced = sync::sync(maint, &self.tlb, &pending);
            let frozen = if self.bbm2 { 0 } else { broken };
            for index in slot.index..slot.index + frozen {
                let frozen = self.mem.load(slot.table, index);
                self.mem
                    .store(slot.table, index, format::thaw(frozen, level));
            }
            sync::publish(maint, &self.tlb);
        }
        match why {
            None => Ok(next),
            Some(why) => Err(Stopped { why, next }),
        }
    }

    /// The caller's next page for a table of `level`.
    fn page_of<P: FnMut(Level) -> Option<Pa>>(
        &self,
        job: &mut SplitJob<'_, P>,
        level: Level,
    ) -> Result<Pa, Error> {
        let page = (job.pages)(level).ok_or(Error::NoMem)?;
        if self.shape.is_table_page(page.get()) {
            return Ok(page);
        }
        self.mem.free(page, level, &Synced::never_linked());
        Err(Error::Range)
    }

    /// Builds the subtree of a block in the page `pa`, unlinked.
    fn build<P: FnMut(Level) -> Option<Pa>>(
        &self,
        pa: Pa,
        old: u64,
        slot: &Slot<M::Table>,
        at: u64,
        job: &mut SplitJob<'_, P>,
    ) -> SplitProgress {
        self.fill_split(pa, old, slot.level, slot.shift);
        job.budget.spend(1 + self.shape.index_mask() as u64);
        let covered = at >= job.start && at + (1 << slot.shift) <= job.end;
        if slot.level + 1 >= job.to {
            return SplitProgress::Whole;
        }
        if !covered {
            // One level now; the caller comes again for the parts inside.
            return SplitProgress::OneLevel;
        }
        let table = self.mem.locate(pa);
        let shift = slot.shift - self.shape.stride();
        for index in 0..=self.shape.index_mask() {
            let child_at = at + ((index as u64) << shift);
            if index > 0 && job.budget.is_spent() {
                return SplitProgress::Budget(child_at);
            }
            let page = match self.page_of(job, Shape::level(slot.level + 2)) {
                Ok(page) => page,
                Err(error) => return SplitProgress::UpTo(child_at, error),
            };
            let raw = self.mem.load(table, index);
            let child = Slot {
                table,
                pa: pa.get(),
                level: slot.level + 1,
                shift,
                index,
                raw,
            };
            let built = self.build(page, raw, &child, child_at, job);
            self.mem
                .store(table, index, format::table(&self.shape, page.get()));
            let more = 1 - self.counting.of(raw);
            if more != 0 {
                self.mem.add_count(pa, more);
            }
            if built != SplitProgress::Whole {
                return built;
            }
        }
        SplitProgress::Whole
    }
}

/// How much of a block's subtree was built.
#[derive(Clone, Copy, PartialEq, Eq)]
enum SplitProgress {
    /// All of it.
    Whole,
    /// One level of it, as the range covers only a part.
    OneLevel,
    /// Up to here, where the pages ended, or one was of no use.
    UpTo(u64, Error),
    /// Up to here, where the budget ended.
    Budget(u64),
}

//! What is broken and invalidated is released: memory is cleaned and told, cut
//! tables are freed. The last step of every removal (see `unmap`), and of what a
//! mapping replaces.
//!
//! Whoever calls has the proof of the invalidation, and has spent the work's
//! budget when it broke the entries: nothing stops here.

use crate::addr::Pa;
use crate::error::Budget;
use crate::format;
use crate::maintenance::{CacheOp, Maintenance};
use crate::mem::TableMem;
use crate::shape::Shape;
use crate::sink::{LeafSink, RemovedLeaf, RemovedRun};
use crate::sync::Synced;
use crate::tree::Core;

/// What becomes of removed leaves, after their invalidation.
pub(crate) trait Release {
    /// False: leaves need not be visited.
    const WANTS: bool;

    /// Gets leaves in a row.
    fn run(&mut self, run: RemovedRun);
}

/// Leaves are told, no more.
pub(crate) struct Tell<'a, S>(pub(crate) &'a mut S);

impl<S: LeafSink> Release for Tell<'_, S> {
    const WANTS: bool = S::WANTS;

    #[inline]
    fn run(&mut self, run: RemovedRun) {
        self.0.run(run);
    }
}

/// The caches of leaves are cleaned and invalidated, then they are told: the
/// guest may have written past the caches.
pub(crate) struct CleanAndTell<'a, T, S> {
    pub(crate) fwb: bool,
    pub(crate) maint: &'a mut T,
    pub(crate) sink: &'a mut S,
    /// Output minus input address of a mapping that takes the leaf's place:
    /// memory that stays where it was need not be cleaned.
    pub(crate) stays: Option<u64>,
}

impl<T: Maintenance, S: LeafSink> Release for CleanAndTell<'_, T, S> {
    const WANTS: bool = true;

    fn run(&mut self, run: RemovedRun) {
        let offset = run.pa().get().wrapping_sub(run.ia());
        if format::is_seen_uncached(run.raw(), self.fwb) && self.stays != Some(offset) {
            self.maint.cache(CacheOp::CleanInvalidateData {
                pa: run.pa(),
                size: run.size(),
            });
        }
        self.sink.run(run);
    }
}

/// Neighbouring leaves that are met one by one, gathered into runs.
pub(crate) struct Row {
    first: u64,
    raw: u64,
    /// The descriptor that would go on with the row; [`NO_PAGE`] is none.
    next: u64,
    count: u64,
    level: i8,
}

/// What is no page: 01 is reserved at level 3.
const NO_PAGE: u64 = 0b01;

impl Row {
    pub(crate) const fn of(level: i8) -> Self {
        Self {
            first: 0,
            raw: 0,
            next: NO_PAGE,
            count: 0,
            level,
        }
    }

    /// Meets the entries of a table of pages from `index` on. Returns how many
    /// go on with the row.
    #[inline]
    pub(crate) fn pages<M: TableMem>(
        &mut self,
        core: &Core<M>,
        table: M::Table,
        (index, end): (usize, usize),
    ) -> usize {
        let step = core.shape.page_mask().wrapping_add(1);
        let mut next = self.next;
        let mut at = index;
        while at < end && core.mem.load(table, at) == next {
            next = next.wrapping_add(step);
            at = at.wrapping_add(1);
        }
        let more = at.wrapping_sub(index);
        self.next = next;
        self.count = self.count.wrapping_add(more as u64);
        more
    }

    /// Meets the leaf that stood at `at`, the next entry of its table.
    #[inline]
    pub(crate) fn leaf<R: Release>(&mut self, shape: &Shape, out: &mut R, at: u64, raw: u64) {
        if raw != self.next || self.count == 0 {
            self.end(shape, out);
            (self.first, self.raw) = (at, raw);
        }
        self.count = self.count.wrapping_add(1);
        self.next = raw.wrapping_add(shape.span_at(self.level));
    }

    /// Meets something else, or nothing more: the row is told.
    #[inline]
    pub(crate) fn end<R: Release>(&mut self, shape: &Shape, out: &mut R) {
        if self.count > 0 {
            let first = RemovedLeaf::new(shape, self.first, self.level, self.raw);
            out.run(RemovedRun::new(first, self.count));
        }
        (self.next, self.count) = (NO_PAGE, 0);
    }
}

/// A table that was cut off the tree, or never was in it.
#[derive(Clone, Copy)]
pub(crate) struct Cut {
    pub(crate) pa: u64,
    /// That of its entries.
    pub(crate) level: i8,
    /// The first address that it translated.
    pub(crate) base: u64,
}

impl<M: TableMem> Core<M> {
    /// Frees the table at `pa`, whose entries are of `level`, and all below
    /// it, telling `out` of leaves. A table of pages is one piece. Returns what
    /// it cost.
    pub(crate) fn reclaim<R: Release>(&self, table: Cut, out: &mut R, done: &Synced) -> u64 {
        let all = &mut Budget::unlimited();
        let _whole = self.reclaim_from(table, table.base, out, done, all);
        u64::MAX - all.left()
    }

    /// As [`reclaim`](Self::reclaim) from `from` on: what is before is done.
    /// Returns where the budget ended, if it did: from there on the tables are
    /// still there.
    pub(crate) fn reclaim_from<R: Release>(
        &self,
        Cut { pa, level, base }: Cut,
        from: u64,
        out: &mut R,
        done: &Synced,
        budget: &mut Budget,
    ) -> Option<u64> {
        let entries = self.shape.table_entries();
        if R::WANTS || level < 3 {
            let table = self.mem.locate(Pa::new(pa));
            let step = self.shape.span_at(level);
            let first = from.saturating_sub(base) >> self.shape.shift(level);
            let mut at = base.wrapping_add(first << self.shape.shift(level));
            let mut row = Row::of(level);
            let mut index = first as usize;
            while index < entries {
                if level == 3 && row.count > 0 {
                    let more = row.pages(self, table, (index, entries));
                    index = index.wrapping_add(more);
                    at = at.wrapping_add(step.wrapping_mul(more as u64));
                    if index >= entries {
                        break;
                    }
                }
                let raw = self.mem.load(table, index);
                let frozen = format::is_frozen(raw);
                if format::is_table(raw, level) || (frozen && format::was_table(raw, level)) {
                    row.end(&self.shape, out);
                    let below = Cut {
                        pa: self.shape.decode_oa(raw),
                        level: level + 1,
                        base: at,
                    };
                    let stopped = self.reclaim_from(below, from, out, done, budget);
                    if stopped.is_some() {
                        return stopped;
                    }
                    if budget.is_spent() && index + 1 < entries {
                        return Some(at.wrapping_add(step));
                    }
                } else if R::WANTS && format::is_leaf(raw, level) {
                    row.leaf(&self.shape, out, at, raw);
                } else if R::WANTS && frozen && raw & format::ELSEWHERE == 0 {
                    row.leaf(&self.shape, out, at, format::thaw(raw, level));
                } else {
                    row.end(&self.shape, out);
                }
                at = at.wrapping_add(step);
                index = index.wrapping_add(1);
            }
            row.end(&self.shape, out);
        }
        budget.spend(self.table_units::<R>(level));
        self.mem.free(Pa::new(pa), Shape::level(level), done);
        None
    }

    /// What freeing a table of entries of `level` costs: a unit, and one more
    /// for each entry that is looked at.
    #[inline]
    pub(crate) const fn table_units<R: Release>(&self, level: i8) -> u64 {
        if R::WANTS || level < 3 {
            1 + self.shape.table_entries() as u64
        } else {
            1
        }
    }

    /// The level of the highest entry whose table, with all that may be below
    /// it, is freed for what is left of a budget; tables of pages always are.
    #[inline]
    pub(crate) fn whole_from<R: Release>(&self, budget: &Budget) -> i8 {
        let entries = self.shape.table_entries() as u64;
        let mut level = 2;
        let mut units = self.table_units::<R>(3);
        while level > self.shape.start_raw() {
            units = entries.saturating_mul(units).saturating_add(1 + entries);
            if budget.left() < units {
                break;
            }
            level -= 1;
        }
        level
    }
}

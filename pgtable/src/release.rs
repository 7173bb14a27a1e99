//! What is broken and invalidated is released: memory is cleaned and told, cut
//! tables are freed. The last step of every removal (see `unmap`), and of what a
//! mapping replaces.
//!
//! Whoever calls has the proof of the invalidation, and has spent the work's
//! budget when it broke the entries: nothing stops here.

use crate::addr::{Extent, Ia, Level, Pa};
use crate::config::Features;
use crate::desc::{Desc, Kind};
use crate::error::Budget;
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
    pub(crate) features: &'a Features,
    pub(crate) maint: &'a mut T,
    pub(crate) sink: &'a mut S,
    /// How far output is above input in a mapping that takes the leaf's place:
    /// memory that stays where it was need not be cleaned.
    pub(crate) stays: Option<u64>,
}

impl<T: Maintenance, S: LeafSink> Release for CleanAndTell<'_, T, S> {
    const WANTS: bool = true;

    fn run(&mut self, run: RemovedRun) {
        if self.features.needs_clean(run.desc()) && self.stays != Some(run.offset()) {
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
    first: Ia,
    desc: Desc,
    /// The descriptor that would go on with the row; [`Desc::NO_PAGE`] is none.
    next: Desc,
    count: u64,
    level: Level,
}

impl Row {
    pub(crate) const fn of(level: Level) -> Self {
        Self {
            first: Ia::new(0),
            desc: Desc::EMPTY,
            next: Desc::NO_PAGE,
            count: 0,
            level,
        }
    }

    /// Meets the entries of a table of pages from `index` on. Returns how many
    /// go on with the row.
    #[inline]
    fn pages<M: TableMem>(
        &mut self,
        core: &Core<M>,
        table: M::Table,
        (index, end): (usize, usize),
    ) -> usize {
        let step = core.shape.page_mask().wrapping_add(1);
        let mut next = self.next;
        let mut at = index;
        while at < end && core.load(table, at) == next {
            next = next.plus(step);
            at = at.wrapping_add(1);
        }
        let more = at.wrapping_sub(index);
        self.next = next;
        self.count = self.count.wrapping_add(more as u64);
        more
    }

    /// Meets the leaf that stood at `at`, the next entry of its table.
    #[inline]
    pub(crate) fn leaf<R: Release>(&mut self, shape: &Shape, out: &mut R, at: Ia, desc: Desc) {
        if desc != self.next || self.count == 0 {
            self.end(shape, out);
            (self.first, self.desc) = (at, desc);
        }
        self.count = self.count.wrapping_add(1);
        self.next = desc.plus(shape.span(self.level));
    }

    /// Meets something else, or nothing more: the row is told.
    #[inline]
    pub(crate) fn end<R: Release>(&mut self, shape: &Shape, out: &mut R) {
        if self.count > 0 {
            let first = RemovedLeaf::new(shape, self.first, self.level, self.desc);
            out.run(RemovedRun::new(first, self.count));
        }
        (self.next, self.count) = (Desc::NO_PAGE, 0);
    }
}

/// A table that was cut off the tree, or never was in it.
#[derive(Clone, Copy)]
pub(crate) struct Cut {
    pub(crate) pa: Pa,
    /// That of its entries.
    pub(crate) level: Level,
    /// The first address that it translated.
    pub(crate) base: Ia,
    /// What is before is done.
    pub(crate) from: Ia,
}

impl Cut {
    /// The table at `pa` under the entry of `level` for `base`.
    pub(crate) const fn under(level: Level, base: Ia, pa: Pa) -> Self {
        Self {
            pa,
            level: level.down(),
            base,
            from: base,
        }
    }
}

impl<M: TableMem> Core<M> {
    /// Frees a table and all below it, telling `out` of leaves. A table of pages is
    /// one piece. Returns what it cost.
    #[inline]
    pub(crate) fn reclaim<R: Release>(&self, table: Cut, out: &mut R, done: &Synced) -> u64 {
        let all = &mut Budget::unlimited();
        let _whole = self.reclaim_from(table, out, done, all);
        u64::MAX - all.left()
    }

    /// As [`reclaim`](Self::reclaim), as far as the budget goes. Returns where it
    /// ended, if it did: from there on the tables are still there.
    #[inline]
    pub(crate) fn reclaim_from<R: Release>(
        &self,
        cut: Cut,
        out: &mut R,
        done: &Synced,
        budget: &mut Budget,
    ) -> Option<Ia> {
        let Cut { pa, level, .. } = cut;
        if R::WANTS || level < Level::L3 {
            let stopped = self.release_table(cut, out, done, budget);
            if stopped.is_some() {
                return stopped;
            }
        }
        budget.spend(self.table_units::<R>(level));
        self.mem.free(pa, level, done);
        None
    }

    /// Tells of the leaves of a table that was cut off, and frees the tables below
    /// it. Returns where the budget ended.
    #[inline(never)]
    fn release_table<R: Release>(
        &self,
        cut: Cut,
        out: &mut R,
        done: &Synced,
        budget: &mut Budget,
    ) -> Option<Ia> {
        let Cut {
            level, base, from, ..
        } = cut;
        let entries = self.shape.table_entries();
        let table = self.mem.locate(cut.pa);
        let step = self.shape.span(level);
        let mut index = if from > base {
            (from.since(base) >> self.shape.shift(level)) as usize
        } else {
            0
        };
        let mut at = base.plus(step.wrapping_mul(index as u64));
        let mut row = Row::of(level);
        while index < entries {
            if level == Level::L3 && row.count > 0 {
                let more = row.pages(self, table, (index, entries));
                index = index.wrapping_add(more);
                at = at.plus(step.wrapping_mul(more as u64));
                if index >= entries {
                    break;
                }
            }
            let desc = self.load(table, index);
            match desc.kind(level, &self.shape) {
                Kind::Table(pa) | Kind::FrozenTable(pa) => {
                    row.end(&self.shape, out);
                    let below = Cut {
                        from,
                        ..Cut::under(level, at, pa)
                    };
                    let stopped = self.reclaim_from(below, out, done, budget);
                    if stopped.is_some() {
                        return stopped;
                    }
                    if budget.is_spent() && index + 1 < entries {
                        return Some(at.plus(step));
                    }
                }
                Kind::Leaf if R::WANTS => row.leaf(&self.shape, out, at, desc),
                Kind::FrozenLeaf(leaf) if R::WANTS => row.leaf(&self.shape, out, at, leaf),
                _ => row.end(&self.shape, out),
            }
            at = at.plus(step);
            index = index.wrapping_add(1);
        }
        row.end(&self.shape, out);
        None
    }

    /// Gives what is frozen in `extent` its final value, after its memory was
    /// cleaned and told, and cut tables were freed. Returns what tables of tables
    /// cost, which was not known before.
    pub(crate) fn release<R: Release>(
        &self,
        out: &mut R,
        extent: Extent,
        blank: Desc,
        done: &Synced,
    ) -> u64 {
        let of_blank = self.counting.of(blank);
        let mut units = 0;
        let mut ia = extent.start;
        while ia < extent.end {
            let slot = self.walk_to(ia, Level::L3);
            let level = slot.level;
            let mut at = slot.ia;
            let mut more = 0;
            let mut row = Row::of(level);
            for index in slot.index..self.shape.entries(level) {
                if at >= extent.end {
                    break;
                }
                let desc = self.load(slot.table, index);
                let kind = desc.kind(level, &self.shape);
                match kind {
                    Kind::Table(_) => break,
                    Kind::FrozenTable(pa) => {
                        row.end(&self.shape, out);
                        let of_table = self.reclaim(Cut::under(level, at, pa), out, done);
                        if level < Level::L2 {
                            units += of_table;
                        }
                    }
                    Kind::FrozenLeaf(leaf) if R::WANTS => row.leaf(&self.shape, out, at, leaf),
                    _ => row.end(&self.shape, out),
                }
                if kind.is_frozen() {
                    self.store(slot.table, index, blank);
                    more += of_blank;
                }
                at = at.plus(slot.size());
            }
            row.end(&self.shape, out);
            self.add_count(slot.pa, more);
            // A table that the loop stopped at is entered next. If it is the
            // first entry, which the walk took for none, another CPU has
            // just made it: nothing of ours is in it.
            ia = if at > ia { at } else { slot.end() };
        }
        units
    }

    /// What freeing a table of entries of `level` costs: a unit, and one more
    /// for each entry that is looked at.
    #[inline]
    pub(crate) const fn table_units<R: Release>(&self, level: Level) -> u64 {
        if R::WANTS || level.get() < 3 {
            1 + self.shape.table_entries() as u64
        } else {
            1
        }
    }

    /// The level of the highest entry whose table, with all that may be below
    /// it, is freed for what is left of a budget; tables of pages always are.
    #[inline]
    pub(crate) fn whole_from<R: Release>(&self, budget: &Budget) -> Level {
        let entries = self.shape.table_entries() as u64;
        let mut level = Level::L2;
        let mut units = self.table_units::<R>(Level::L3);
        while level > self.shape.start() {
            units = entries.saturating_mul(units).saturating_add(1 + entries);
            if budget.left() < units {
                break;
            }
            level = level.up();
        }
        level
    }
}

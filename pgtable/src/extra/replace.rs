//! Mapping over what stands there: other permissions, other leaves, and blocks
//! in the place of tables.
//!
//! A table of tables becomes a block from below: each of its tables becomes a
//! block first, so that whatever is done at once is one table. These blocks
//! are the mapping's own: nobody is told of them.

use crate::addr::Level;
use crate::desc::{AF, CONTIGUOUS, Desc, Kind, MEMATTR, SH, TYPE};
use crate::error::Error;
use crate::maintenance::Maintenance;
use crate::map::{Mapping, Place, Step};
use crate::mem::TableMem;
use crate::plan::Pending;
use crate::release::{CleanAndTell, Cut, Release, Row, Tell};
use crate::shape::Shape;
use crate::sink::{LeafSink, RemovedRun};
use crate::sync::Synced;
use crate::tree::{Access, Core};

impl<M: TableMem, T: Maintenance, S: LeafSink, A: Access> Mapping<'_, M, T, S, A> {
    /// Puts leaves over a leaf or a table.
    pub(crate) fn replace(&mut self, place: &mut Place<M::Table>) -> Result<Step, Error> {
        let core = self.work.core;
        let slot = &mut place.slot;
        let (desc, level) = (slot.desc, slot.level);
        let table = desc.is_table(level);
        if place.later && (table || self.job.clean_old) && self.budget.is_spent() {
            return Ok(Step::Spent);
        }
        if table {
            if !A::ALONE {
                return Err(Error::NeedsExclusive { level });
            }
            if level < Level::L2 && !self.flatten(place)? {
                return Ok(Step::Spent);
            }
        } else if desc.has(CONTIGUOUS) {
            self.work.break_group(slot)?;
            return Ok(Step::Again);
        } else if !core.shape.needs_break(desc, place.leaf) {
            if !core.swap(slot, place.leaf) {
                return Ok(Step::Again);
            }
            let pending = self.work.changes.pending();
            pending.leaves(&core.shape, slot.extent(), level);
            return Ok(Step::Done(1));
        }
        Ok(match self.exchange(place) {
            // Hardware has marked the first one in between.
            0 => Step::Again,
            done => Step::Done(done),
        })
    }

    /// Makes blocks of the tables in the table at `place`, as they will be
    /// parts of its leaf. False when the budget ended before.
    fn flatten(&mut self, place: &Place<M::Table>) -> Result<bool, Error> {
        let core = self.work.core;
        let shape = &core.shape;
        let first = core.child(&place.slot, place.slot.ia);
        let attrs = place.leaf.without(TYPE | shape.oa_mask());
        let pa = place.leaf.leaf_pa(shape, place.slot.level);
        let mut worked = false;
        for index in 0..shape.table_entries() {
            let slot = first.after(index, core.load(first.table, index));
            if !slot.desc.is_table(slot.level) {
                continue;
            }
            if worked && self.budget.is_spent() {
                return Ok(false);
            }
            worked = true;
            let pa = pa.plus(slot.ia.since(place.slot.ia));
            let mut below = Place {
                slot,
                leaf: attrs.leaf(shape, pa, slot.level),
                count: 1,
                later: false,
            };
            if self.replace(&mut below)? == Step::Spent {
                return Ok(false);
            }
        }
        Ok(!(worked && self.budget.is_spent()))
    }

    /// Break-before-make of neighbouring leaves or tables, with one
    /// invalidation for all. Returns how many.
    fn exchange(&mut self, place: &Place<M::Table>) -> usize {
        let core = self.work.core;
        let slot = &place.slot;
        let mut pending = Pending::new();
        let (broken, counted) = self.break_row(place, &mut pending);
        if broken == 0 {
            return 0;
        }
        let done = self.work.sync(pending.runs());
        let new = core.counting.of(place.leaf) * broken as i32;
        core.add_count(slot.pa, new - counted);
        let pa = place.leaf.leaf_pa(&core.shape, slot.level);
        if self.job.clean_old {
            let mut out = CleanAndTell {
                features: &core.features,
                maint: &mut *self.work.maint,
                sink: &mut *self.sink,
                stays: Some(slot.ia.to(pa)),
            };
            core.install(&mut out, place, broken, &done);
        } else {
            core.install(&mut Tell(&mut *self.sink), place, broken, &done);
        }
        self.work.publish();
        broken
    }

    /// Freezes neighbouring leaves or tables, as many as are alike in that and for
    /// which the budget is enough. Returns how many, and how many of them counted.
    fn break_row(&mut self, place: &Place<M::Table>, pending: &mut Pending) -> (usize, i32) {
        let core = self.work.core;
        let level = place.slot.level;
        let tables = place.slot.desc.is_table(level);
        let costs = tables || self.job.clean_old;
        let mut leaf = place.leaf;
        let mut broken = 0;
        let mut counted = 0;
        while broken < place.count && !(broken > 0 && costs && self.budget.is_spent()) {
            let index = place.slot.index + broken;
            let slot = place.slot.after(broken, core.load(place.slot.table, index));
            // The run ends where something else begins, or a table of tables.
            let same = match slot.kind(&core.shape) {
                Kind::Table(_) => tables && (broken == 0 || level == Level::L2),
                Kind::Leaf => {
                    !tables && !slot.desc.has(CONTIGUOUS) && core.shape.needs_break(slot.desc, leaf)
                }
                _ => false,
            };
            if !same || !core.swap(&slot, slot.desc.freeze(level)) {
                break;
            }
            counted += core.counting.of(slot.desc);
            if tables {
                pending.table(slot.extent(), core.shape.page_bits());
                let units = core.table_units::<Tell<'_, S>>(level.down());
                self.budget.spend(units);
            } else {
                pending.leaves(&core.shape, slot.extent(), level);
            }
            if self.job.clean_old {
                self.budget.spend_bytes(slot.size());
            }
            broken += 1;
            leaf = leaf.plus(slot.size());
        }
        (broken, counted)
    }
}

/// Leaves are released unless the mapping says the same of them.
struct Others<'a, R> {
    out: &'a mut R,
    /// How far output is above input in the mapping.
    offset: u64,
    /// A leaf of it, and the bits in which they differ or may.
    like: Desc,
    ignored: u64,
}

impl<R: Release> Release for Others<'_, R> {
    const WANTS: bool = R::WANTS;

    fn run(&mut self, run: RemovedRun) {
        if run.offset() != self.offset || !run.desc().is_like(self.like, self.ignored) {
            self.out.run(run);
        }
    }
}

impl Shape {
    /// True when going from `old` to `new`, both valid leaves of one level,
    /// demands break-before-make: spec 1.8.
    #[inline]
    fn needs_break(&self, old: Desc, new: Desc) -> bool {
        !old.is_like(new, !(self.oa_mask() | MEMATTR | SH | CONTIGUOUS))
    }
}

impl<M: TableMem> Core<M> {
    /// Puts new leaves in the place of `count` neighbouring entries that this
    /// CPU holds frozen and no TLB knows, and releases what they were. The
    /// hole that a guest may meet ends before that.
    fn install<R: Release>(
        &self,
        out: &mut R,
        place: &Place<M::Table>,
        count: usize,
        done: &Synced,
    ) {
        let (shape, level) = (&self.shape, place.slot.level);
        let mut row = Row::of(level);
        for put in 0..count {
            let index = place.slot.index + put;
            let slot = place.slot.after(put, self.load(place.slot.table, index));
            let leaf = place.leaf.plus(slot.ia.since(place.slot.ia));
            self.put(&slot, leaf);
            match slot.kind(shape) {
                Kind::FrozenTable(pa) if level == Level::L2 => {
                    let _spent = self.reclaim(Cut::under(level, slot.ia, pa), out, done);
                }
                Kind::FrozenTable(pa) => {
                    let others = &mut Others {
                        out: &mut *out,
                        offset: slot.ia.to(leaf.leaf_pa(shape, level)),
                        like: place.leaf,
                        ignored: shape.oa_mask() | TYPE | AF | CONTIGUOUS,
                    };
                    let _spent = self.reclaim(Cut::under(level, slot.ia, pa), others, done);
                }
                Kind::FrozenLeaf(leaf) if R::WANTS => row.leaf(shape, out, slot.ia, leaf),
                _ => (),
            }
        }
        row.end(shape, out);
    }
}

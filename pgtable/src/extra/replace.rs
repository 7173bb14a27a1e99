//! Mapping over what stands there: other permissions, other leaves, and blocks
//! in the place of tables.
//!
//! A table of tables becomes a block from below: each of its tables becomes a
//! block first, so that whatever is done at once is one table. These blocks
//! are the mapping's own: nobody is told of them.

use crate::error::Error;
use crate::format::{self, AF, CONTIGUOUS};
use crate::maintenance::Maintenance;
use crate::map::{Mapping, Place};
use crate::mem::TableMem;
use crate::plan::Pending;
use crate::release::{CleanAndTell, Cut, Release, Row, Tell};
use crate::shape::Shape;
use crate::sink::{LeafSink, RemovedRun};
use crate::sync::{self, Synced};
use crate::tree::{Access, Slot};

impl<M: TableMem, T: Maintenance, S: LeafSink, A: Access> Mapping<'_, M, T, S, A> {
    /// Puts leaves over a leaf or a table. Returns how many entries are done,
    /// 0 when the budget ended; `None`: look again.
    pub(crate) fn replace(&mut self, place: &mut Place<M::Table>) -> Result<Option<usize>, Error> {
        let core = self.core;
        let (old, level) = (place.slot.raw, place.slot.level);
        let table = format::is_table(old, level);
        if place.later && (table || self.job.clean_old) && self.budget.is_spent() {
            return Ok(Some(0));
        }
        if table {
            if !A::ALONE {
                return Err(Error::NeedsExclusive {
                    level: Shape::level(level),
                });
            }
            if level < 2 && !self.flatten(place)? {
                return Ok(Some(0));
            }
        } else if old & CONTIGUOUS != 0 {
            core.break_group(self.maint, &mut place.slot, place.ia)?;
            return Ok(None);
        } else if !core.needs_break(old, place.leaf) {
            let slot = &place.slot;
            if core
                .mem
                .cas(slot.table, slot.index, old, place.leaf)
                .is_err()
            {
                return Ok(None);
            }
            let end = place.ia + (1 << slot.shift);
            let pending = self.changes.pending();
            pending.leaves(&core.shape, place.ia, end, level);
            return Ok(Some(1));
        }
        let done = self.exchange(place);
        // None: hardware has marked the first one in between.
        Ok((done > 0).then_some(done))
    }

    /// Makes blocks of the tables in the table at `place`, as they will be
    /// parts of its leaf. False when the budget ended before.
    fn flatten(&mut self, place: &Place<M::Table>) -> Result<bool, Error> {
        let core = self.core;
        let first = core.child(&place.slot, place.slot.base(place.ia));
        let attrs = place.leaf & !(format::TYPE | core.shape.oa_mask());
        let oa = format::leaf_oa(&core.shape, place.leaf, place.slot.level);
        let mut worked = false;
        for index in 0..core.shape.table_entries() {
            let slot = Slot {
                index,
                raw: core.mem.load(first.table, index),
                ..first
            };
            if !format::is_table(slot.raw, slot.level) {
                continue;
            }
            if worked && self.budget.is_spent() {
                return Ok(false);
            }
            worked = true;
            let offset = (index as u64) << slot.shift;
            let leaf = core.shape.encode_oa(oa + offset);
            let mut below = Place {
                slot,
                ia: place.ia + offset,
                leaf: attrs | leaf | format::leaf_type(slot.level),
                count: 1,
                later: false,
            };
            if self.replace(&mut below)? == Some(0) {
                return Ok(false);
            }
        }
        Ok(!(worked && self.budget.is_spent()))
    }

    /// Break-before-make of neighbouring leaves or tables, with one
    /// invalidation for all. Returns how many.
    fn exchange(&mut self, place: &Place<M::Table>) -> usize {
        let core = self.core;
        let slot = &place.slot;
        let level = slot.level;
        let step = 1u64 << slot.shift;
        let tables = format::is_table(slot.raw, level);
        let mut pending = Pending::new();
        let mut broken = 0;
        let mut more = 0;
        let mut leaf = place.leaf;
        let costs = tables || self.job.clean_old;
        while broken < place.count && !(broken > 0 && costs && self.budget.is_spent()) {
            let index = slot.index + broken;
            let old = core.mem.load(slot.table, index);
            let at = place.ia + ((broken as u64) << slot.shift);
            // The run ends where something else begins, or a table of tables.
            let same = if tables {
                format::is_table(old, level) && (broken == 0 || level == 2)
            } else {
                format::is_leaf(old, level) && old & CONTIGUOUS == 0 && core.needs_break(old, leaf)
            };
            let frozen = format::freeze(old, level);
            if !same || core.mem.cas(slot.table, index, old, frozen).is_err() {
                break;
            }
            if tables {
                more -= 1;
                pending.table(at, at + step, core.shape.page_bits());
                self.budget
                    .spend(core.table_units::<Tell<'_, S>>(level + 1));
            } else {
                more -= core.counting.of(old);
                pending.leaves(&core.shape, at, at + step, level);
            }
            if self.job.clean_old {
                self.budget.spend_bytes(step);
            }
            broken += 1;
            leaf = leaf.wrapping_add(step);
        }
        if broken == 0 {
            return 0;
        }
        let done = sync::sync(self.maint, &core.tlb, &pending);
        let new = core.counting.of(place.leaf) * broken as i32;
        core.add_count(slot.pa, more + new);
        if self.job.clean_old {
            let oa = format::leaf_oa(&core.shape, place.leaf, level);
            let mut out = CleanAndTell {
                fwb: core.fwb,
                maint: &mut *self.maint,
                sink: &mut *self.sink,
                stays: Some(oa.wrapping_sub(place.ia)),
            };
            core.install(&mut out, place, broken, &done);
        } else {
            core.install(&mut Tell(&mut *self.sink), place, broken, &done);
        }
        sync::publish(self.maint, &core.tlb);
        broken
    }
}

/// Leaves are released unless the mapping says the same of them.
struct Others<'a, R> {
    out: &'a mut R,
    /// Output minus input address of the mapping.
    offset: u64,
    /// The bits in which its leaves are alike, and which those are.
    alike: (u64, u64),
}

impl<R: Release> Release for Others<'_, R> {
    const WANTS: bool = R::WANTS;

    fn run(&mut self, run: RemovedRun) {
        let (attrs, mask) = self.alike;
        let offset = run.pa().get().wrapping_sub(run.ia());
        if offset != self.offset || (run.raw() ^ attrs) & mask != 0 {
            self.out.run(run);
        }
    }
}

impl<M: TableMem> crate::tree::Core<M> {
    /// True when going from `old` to `new`, both valid leaves of one level,
    /// demands break-before-make: spec 1.8.
    #[inline]
    pub(crate) fn needs_break(&self, old: u64, new: u64) -> bool {
        let rule = self.shape.oa_mask() | format::MEMATTR | format::SH | CONTIGUOUS;
        (old ^ new) & rule != 0
    }

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
        let slot = &place.slot;
        let (level, step) = (slot.level, 1u64 << slot.shift);
        let mut row = Row::of(level);
        for put in 0..count {
            let index = slot.index + put;
            let offset = step.wrapping_mul(put as u64);
            let at = place.ia.wrapping_add(offset);
            let held = self.mem.load(slot.table, index);
            let leaf = place.leaf.wrapping_add(offset);
            self.mem.store(slot.table, index, leaf);
            if format::was_table(held, level) {
                let table = Cut {
                    pa: self.shape.decode_oa(held),
                    level: level + 1,
                    base: at,
                };
                let _spent = if level == 2 {
                    self.reclaim(table, out, done)
                } else {
                    let oa = format::leaf_oa(&self.shape, place.leaf, level);
                    let mask = !(self.shape.oa_mask() | format::TYPE | AF | CONTIGUOUS);
                    let others = &mut Others {
                        out: &mut *out,
                        offset: oa.wrapping_sub(place.ia),
                        alike: (place.leaf, mask),
                    };
                    self.reclaim(table, others, done)
                };
            } else if R::WANTS {
                row.leaf(&self.shape, out, at, format::thaw(held, level));
            }
        }
        row.end(&self.shape, out);
    }
}

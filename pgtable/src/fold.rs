//! Folding a table of like entries into one.

use crate::addr::{Ipa, Level, Pa};
use crate::error::Error;
use crate::format::{self, AF, CONTIGUOUS};
use crate::maintenance::Maintenance;
use crate::mem::TableMem;
use crate::plan::Pending;
use crate::shape::{Shape, bytes};
use crate::stage2::Stage2;
use crate::sync;
use crate::tree::Core;

impl<M: TableMem> Stage2<M> {
    /// Makes one entry of `level` of the table that stands there: a block of
    /// its leaves, if they are alike in all but the access flag and adjacent
    /// in memory, or the annotation that fills it. The table is freed.
    ///
    /// ```
    /// # mod example { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/example.rs")); }
    /// # use {example::*, pgtable::*};
    /// # let (mut tree, mut cpu) = mapped();
    /// # let all = &mut Budget::unlimited();
    /// let ipa = Ipa::new(0x4000_0000);
    /// tree.fold(&mut cpu, ipa, Level::L2)?;
    /// assert_eq!(tree.lookup(ipa)?.level, Level::L2);
    /// # let _ = (&mut tree, &mut cpu, all);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// `Range`; `Missing` where no table stands at `level`; `Mismatch` of
    /// its entries; `BlockLevel` where no block may stand; `Busy`.
    pub fn fold<T: Maintenance>(
        &mut self,
        maint: &mut T,
        ipa: Ipa,
        level: Level,
    ) -> Result<(), Error> {
        let core = &self.core;
        if ipa.get() >= core.shape.ia_end() {
            return Err(Error::Range);
        }
        let slot = core.walk_to(ipa.get(), level.get());
        if format::is_frozen(slot.raw) {
            return Err(Error::Busy);
        }
        if slot.level != level.get() || !format::is_table(slot.raw, slot.level) {
            return Err(Error::Missing {
                level: Shape::level(slot.level),
            });
        }
        let table = Pa::new(core.shape.decode_oa(slot.raw));
        let below = slot.level + 1;
        let mismatch = Error::Mismatch {
            level: Shape::level(below),
        };
        let (_, valid) = core.uniform(table, below).ok_or(mismatch)?;
        if valid && !core.shape.leaf_at(slot.level) {
            return Err(Error::BlockLevel { level });
        }
        let frozen = format::freeze(slot.raw, slot.level);
        core.mem
            .cas(slot.table, slot.index, slot.raw, frozen)
            .map_err(|_| Error::Busy)?;
        let base = slot.base(ipa.get());
        let step = if valid {
            slot.shift - core.shape.stride()
        } else {
            slot.shift
        };
        let mut pending = Pending::new();
        pending.table(base, base + (1 << slot.shift), step);
        let done = sync::sync(maint, &core.tlb, &pending);
        // Hardware may have marked a page dirty until now. The table is as
        // it was then: put it back rather than lose the mark.
        let Some((new, _)) = core.uniform(table, below) else {
            core.mem.store(slot.table, slot.index, slot.raw);
            sync::publish(maint, &core.tlb);
            return Err(mismatch);
        };
        core.mem.store(slot.table, slot.index, new);
        sync::publish(maint, &core.tlb);
        core.mem
            .add_count(Pa::new(slot.pa), core.counting.of(new) - 1);
        core.mem.free(table, Shape::level(below), &done);
        Ok(())
    }
}

impl<M: TableMem> Core<M> {
    /// The one entry of the level above that says what all entries of a
    /// table of `level` say, and whether they are valid.
    ///
    /// Where entries have an address, they must be adjacent and the whole be
    /// aligned. The access flag is that of any. The contiguous hint goes.
    pub(crate) fn uniform(&self, table_pa: Pa, level: i8) -> Option<(u64, bool)> {
        let shape = &self.shape;
        let table = self.mem.locate(table_pa);
        let first = self.mem.load(table, 0);
        let valid = format::is_leaf(first, level);
        if !valid && !format::is_annotation(first) {
            return None;
        }
        let has_pa = valid || self.counting.annotation_has_oa(first);
        let step = if has_pa { bytes(shape.shift(level)) } else { 0 };
        let span = 1u64 << shape.shift(level - 1);
        if has_pa && shape.decode_oa(first) & (span - 1) & !((1 << shape.shift(level)) - 1) != 0 {
            return None;
        }
        let hint = if valid { CONTIGUOUS } else { 0 };
        let ignored = if valid { AF | CONTIGUOUS } else { 0 };
        let mut any = first;
        for index in 1..=shape.index_mask() {
            let raw = self.mem.load(table, index);
            let expected = first.wrapping_add(step * index as u64);
            if (raw ^ expected) & !ignored != 0 {
                return None;
            }
            any |= raw & AF;
        }
        if !valid {
            return Some((first, false));
        }
        let new = (first | any & AF) & !(format::TYPE | hint | format::NT);
        Some((new | format::leaf_type(level - 1), true))
    }
}

//! Folding a table of like entries into one.

use crate::addr::{Ipa, Level, Pa};
use crate::desc::{AF, CONTIGUOUS, Desc, Kind};
use crate::error::Error;
use crate::maintenance::Maintenance;
use crate::mem::TableMem;
use crate::plan::Run;
use crate::stage2::Stage2;
use crate::sync::Synced;
use crate::tree::{Core, Slot};
use crate::work::Work;

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
        let slot = core.walk_to(core.shape.check(ipa.into())?, level);
        let table = match slot.kind(&core.shape) {
            Kind::Table(table) if slot.level == level => table,
            kind if kind.is_frozen() => return Err(Error::Busy),
            _ => return Err(Error::Missing { level: slot.level }),
        };
        let below = level.down();
        let mismatch = Error::Mismatch { level: below };
        let new = core.uniform(table, below).ok_or(mismatch)?;
        if new.is_valid() && !core.shape.leaf_ok(level) {
            return Err(Error::BlockLevel { level });
        }
        let done = core.work(maint).fold(&slot, table, new).ok_or(mismatch)?;
        core.mem.free(table, below, &done);
        Ok(())
    }
}

impl<M: TableMem, T: Maintenance> Work<'_, M, T> {
    /// Makes one entry, `alike`, of the table at `pa` that `slot` points to, whose
    /// entries all say that. `None` where hardware has marked a page dirty until now:
    /// then the table is as it was, rather than that the mark is lost.
    pub(crate) fn fold(&mut self, slot: &Slot<M::Table>, pa: Pa, alike: Desc) -> Option<Synced> {
        let core = self.core;
        let below = slot.level.down();
        let smallest = if alike.is_valid() { below } else { slot.level };
        let done = self.break_table(slot, smallest);
        let new = if core.features.hw_access_flag {
            core.uniform(pa, below)
        } else {
            Some(alike)
        };
        self.remake(slot, new.unwrap_or(slot.desc));
        new.map(|_| done)
    }

    /// Takes the table at `slot` out of the tree and of all TLBs. What they may know
    /// of it are leaves of `smallest`; its own level where it has none.
    pub(crate) fn break_table(&mut self, slot: &Slot<M::Table>, smallest: Level) -> Synced {
        let core = self.core;
        core.put(slot, slot.desc.freeze(slot.level));
        let run = Run::table(slot.extent(), core.shape.shift(smallest));
        self.sync(&[run])
    }

    /// Makes `new` of the entry of a table that is broken.
    pub(crate) fn remake(&mut self, slot: &Slot<M::Table>, new: Desc) {
        let core = self.core;
        core.put(slot, new);
        core.add_count(slot.pa, core.counting.of(new) - 1);
        if new.is_valid() {
            self.publish();
        }
    }
}

impl<M: TableMem> Core<M> {
    /// The one entry of the level above that says what all entries of a
    /// table of `level` say.
    ///
    /// Where entries have an address, they must be adjacent and the whole be
    /// aligned. The access flag is that of any. The contiguous hint goes.
    pub(crate) fn uniform(&self, table: Pa, level: Level) -> Option<Desc> {
        let shape = &self.shape;
        let table = self.mem.locate(table);
        let first = self.load(table, 0);
        let leaf = first.is_leaf(level);
        if !leaf && !first.is_annotation() {
            return None;
        }
        let has_pa = leaf || self.counting.annotation_has_oa(first);
        let step = if has_pa { shape.span(level) } else { 0 };
        let pa = first.leaf_pa(shape, level);
        if has_pa && pa != pa.floor(shape.span(level.up())) {
            return None;
        }
        let ignored = if leaf { AF | CONTIGUOUS } else { 0 };
        let mut any = first;
        for index in 1..=shape.index_mask() {
            let desc = self.load(table, index);
            let expected = first.plus(step.wrapping_mul(index as u64));
            if !desc.is_like(expected, ignored) {
                return None;
            }
            any = any.with(desc.raw() & AF);
        }
        if !leaf {
            return Some(first);
        }
        let attrs = first.leaf_attrs(shape).with(any.raw() & AF);
        Some(attrs.leaf(shape, pa, level.up()))
    }
}

//! A subtree built aside and linked by one store.
//!
//! Nobody walks it while it is built: no barrier, no TLBI, no swap that can
//! fail. For populating much at once, or for replacing a block by other
//! mappings with one break.

use crate::addr::{Ipa, Level, Pa};
use crate::error::{Budget, Error, Stopped};
use crate::format;
use crate::maintenance::{Barrier, CacheOp, Maintenance, Stage2Regs, Tlbi};
use crate::map::Mapping;
use crate::mem::TableMem;
use crate::plan::Pending;
use crate::release::{Cut, Tell};
use crate::shape::Shape;
use crate::sink::Ignore;
use crate::stage2::{Map, Stage2, typed};
use crate::sync::{self, Synced};
use crate::tree::{Changes, Core, Exclusive, Over};

/// Tables for the span of one entry, not linked.
#[must_use = "link it or discard it: its pages are taken"]
#[derive(Debug)]
pub struct Subtree<'t, M: TableMem> {
    tree: &'t Stage2<M>,
    core: Core<&'t M>,
    base: u64,
    /// The level of the entry that it will stand at.
    level: i8,
}

/// A CPU that does cache maintenance only.
struct CachesOnly<'a, T>(&'a mut T);

impl<T: Maintenance> Maintenance for CachesOnly<'_, T> {
    fn barrier(&mut self, _: Barrier) {}
    fn tlbi(&mut self, _: Tlbi) {}
    fn cache(&mut self, op: CacheOp) {
        self.0.cache(op);
    }
    fn stage2(&mut self) -> Stage2Regs {
        self.0.stage2()
    }
    fn set_stage2(&mut self, _: Stage2Regs) {}
}

impl<M: TableMem> Stage2<M> {
    /// Starts a subtree for the entry of `level` at `ipa`: an empty table.
    ///
    /// ```
    /// # mod example { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/example.rs")); }
    /// # use {example::*, pgtable::*};
    /// # let (mut tree, mut cpu) = tree();
    /// # let all = &mut Budget::unlimited();
    /// let (ipa, pa) = (Ipa::new(0x4000_0000), Pa::new(0x8000_0000));
    /// let mut aside = tree.subtree(ipa, Level::L1)?;
    /// aside.map(&mut cpu, &Map::new(ipa, pa, 64 << 20, Attrs::MEMORY), all)?;
    /// assert_eq!(tree.translate(ipa), None);
    /// aside.link(&mut cpu, Over::Nothing).map_err(|(_aside, why)| why)?;
    /// assert_eq!(tree.translate(ipa).expect("mapped").0, pa);
    /// # let _ = (&mut tree, &mut cpu, all);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// `Range`; `Align`; `BlockLevel` at level 3, or above the root; `NoMem`.
    pub fn subtree(&self, ipa: Ipa, level: Level) -> Result<Subtree<'_, M>, Error> {
        let shape = &self.core.shape;
        if ipa.get() >= shape.ia_end() {
            return Err(Error::Range);
        }
        if level == Level::L3 || level < shape.start() {
            return Err(Error::BlockLevel { level });
        }
        if ipa.get() & (shape.span(level) - 1) != 0 {
            return Err(Error::Align);
        }
        let below = Shape::level(level.get() + 1);
        let root = self.core.mem.alloc(below).ok_or(Error::NoMem)?;
        if !shape.is_table_page(root.get()) {
            self.core.mem.free(root, below, &Synced::never_linked());
            return Err(Error::Range);
        }
        let core = Core {
            mem: &self.core.mem,
            shape: shape.below(level.get()),
            root: root.get(),
            tlb: self.core.tlb,
            counting: self.core.counting,
            caches_matter: self.core.caches_matter,
            fwb: self.core.fwb,
            dic: self.core.dic,
            xnx: self.core.xnx,
            bbm2: self.core.bbm2,
        };
        Ok(Subtree {
            tree: self,
            core,
            base: ipa.get(),
            level: level.get(),
        })
    }
}

impl<'t, M: TableMem> Subtree<'t, M> {
    /// Maps a range of IPAs in the subtree's span.
    ///
    /// # Errors
    /// As [`Stage2::map`]; `Range` outside the span.
    pub fn map<T: Maintenance>(
        &mut self,
        maint: &mut T,
        map: &Map,
        budget: &mut Budget,
    ) -> Result<Ipa, Stopped<Ipa>> {
        let stop = |why| Stopped { why, next: map.ipa };
        let mut job = self.tree.map_job(map).map_err(stop)?;
        let end = self.base + (1 << self.tree.core.shape.shift(self.level));
        if job.start < self.base || job.end > end {
            return Err(stop(Error::Range));
        }
        if job.top <= self.level {
            if job.exact {
                return Err(stop(Error::BlockLevel {
                    level: Shape::level(job.top),
                }));
            }
            job.top = self.level + 1;
        }
        job.start -= self.base;
        job.end -= self.base;
        let mut maint = CachesOnly(maint);
        let (core, sink) = (&self.core, &mut Ignore);
        let done = Mapping::<_, _, _, Exclusive>::new(core, &mut maint, sink, job, budget).run();
        let up = |at: u64| at + self.base;
        typed(match done {
            Ok(at) => Ok(up(at)),
            Err(Stopped { why, next }) => Err(Stopped {
                why,
                next: up(next),
            }),
        })
    }

    /// Links the subtree over what stands at its place: nothing, an
    /// annotation, or a leaf, as `over` allows. A leaf is broken first.
    ///
    /// # Errors
    /// With the subtree: `Exists`, `Busy`, `NoMem` for tables above it.
    // The subtree comes back so that it can be used or discarded.
    #[allow(clippy::result_large_err)]
    pub fn link<T: Maintenance>(self, maint: &mut T, over: Over) -> Result<(), (Self, Error)> {
        match self.try_link(maint, over) {
            Ok(()) => Ok(()),
            Err(error) => Err((self, error)),
        }
    }

    fn try_link<T: Maintenance>(&self, maint: &mut T, over: Over) -> Result<(), Error> {
        let core = &self.tree.core;
        let mut changes = Changes::new();
        let reached = core.reach(maint, &mut changes, self.base, self.level, over);
        let _done: Synced = core.finish(maint, &changes);
        let mut slot = reached?;
        let exists = Error::Exists {
            level: Shape::level(self.level),
        };
        let new = format::table(&core.shape, self.core.root);
        // Again when hardware has marked a leaf, or another CPU was here.
        let old = loop {
            let old = slot.raw;
            if format::is_frozen(old) {
                return Err(Error::Busy);
            }
            if format::is_annotation(old) {
                if old != 0 && over == Over::Nothing {
                    return Err(exists);
                }
                match core.mem.cas(slot.table, slot.index, old, new) {
                    Ok(()) => break old,
                    Err(now) => slot.raw = now,
                }
                continue;
            }
            if over != Over::Anything || !format::is_leaf(old, slot.level) {
                return Err(exists);
            }
            if old & format::CONTIGUOUS != 0 {
                core.break_group(maint, &mut slot, self.base)?;
                continue;
            }
            let frozen = format::freeze(old, slot.level);
            if let Err(now) = core.mem.cas(slot.table, slot.index, old, frozen) {
                slot.raw = now;
                continue;
            }
            let mut pending = Pending::new();
            let end = self.base + (1 << slot.shift);
            pending.leaves(&core.shape, self.base, end, slot.level);
            let _done: Synced = sync::sync(maint, &core.tlb, &pending);
            core.mem.store(slot.table, slot.index, new);
            break old;
        };
        sync::publish(maint, &core.tlb);
        let more = 1 - core.counting.of(old);
        if more != 0 {
            core.mem.add_count(Pa::new(slot.pa), more);
        }
        Ok(())
    }

    /// Frees the subtree's tables, as far as the budget goes.
    ///
    /// # Errors
    /// With what is left of it.
    // It comes back by value: it owns the tables.
    #[allow(clippy::result_large_err)]
    pub fn discard(self, budget: &mut Budget) -> Result<(), Remains<'t, M>> {
        let next = self.base;
        Remains { part: self, next }.discard(budget)
    }
}

/// What is left of a subtree that is discarded in steps.
#[must_use = "discard it to its end: its pages are taken"]
#[derive(Debug)]
pub struct Remains<'t, M: TableMem> {
    part: Subtree<'t, M>,
    /// What is before is gone.
    next: u64,
}

impl<M: TableMem> Remains<'_, M> {
    /// Frees more of it.
    ///
    /// # Errors
    /// With what is left.
    #[allow(clippy::result_large_err)]
    pub fn discard(self, budget: &mut Budget) -> Result<(), Self> {
        let Self { part, next } = &self;
        let never = Synced::never_linked();
        let table = Cut {
            pa: part.core.root,
            level: part.level + 1,
            base: part.base,
        };
        let out = &mut Tell(&mut Ignore);
        let core = &part.tree.core;
        match core.reclaim_from(table, *next, out, &never, budget) {
            None => Ok(()),
            Some(next) => Err(Self { next, ..self }),
        }
    }
}

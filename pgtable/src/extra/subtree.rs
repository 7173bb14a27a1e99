//! A subtree built aside and linked by one store.
//!
//! Nobody walks it while it is built: no barrier, no TLBI, no swap that can
//! fail. For populating much at once, or for replacing a block by other
//! mappings with one break.

use crate::addr::{Extent, Ia, Ipa, Level};
use crate::desc::{CONTIGUOUS, Desc, Kind};
use crate::error::{Budget, Error, Stopped};
use crate::maintenance::{Barrier, CacheOp, Maintenance, Stage2Regs, Tlbi};
use crate::map::Mapping;
use crate::mem::TableMem;
use crate::release::{Cut, Tell};
use crate::sink::Ignore;
use crate::stage2::{Map, Stage2, typed};
use crate::sync::Synced;
use crate::tree::{Core, Exclusive, Over};

/// Tables for the span of one entry, not linked.
#[must_use = "link it or discard it: its pages are taken"]
#[derive(Debug)]
pub struct Subtree<'t, M: TableMem> {
    tree: &'t Stage2<M>,
    core: Core<&'t M>,
    base: Ia,
    /// The level of the entry that it will stand at.
    level: Level,
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
        let core = &self.core;
        let base = core.shape.check(ipa.into())?;
        if level == Level::L3 || level < core.shape.start() {
            return Err(Error::BlockLevel { level });
        }
        if base != base.floor(core.shape.span(level)) {
            return Err(Error::Align);
        }
        let below = level.down();
        let core = Core {
            mem: &core.mem,
            shape: core.shape.below(level),
            root: core.page(core.mem.alloc(below), below)?,
            tlb: core.tlb,
            counting: core.counting,
            features: core.features,
        };
        Ok(Subtree {
            tree: self,
            core,
            base,
            level,
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
        if !self.extent().covers(job.range) {
            return Err(stop(Error::Range));
        }
        if job.top <= self.level {
            if job.exact {
                return Err(stop(Error::BlockLevel { level: job.top }));
            }
            job.top = self.level.down();
        }
        let start = Ia::new(job.range.start.since(self.base));
        job.range = Extent::new(start, job.range.size());
        let mut maint = CachesOnly(maint);
        let (work, sink) = (self.core.work(&mut maint), &mut Ignore);
        let mapping = Mapping::<_, _, _, Exclusive>::new(work, sink, budget, job);
        let up = |at: Ia| self.base.plus(at.get());
        typed(match mapping.run() {
            Ok(at) => Ok(up(at)),
            Err(Stopped { why, next }) => Err(Stopped {
                why,
                next: up(next),
            }),
        })
    }

    fn extent(&self) -> Extent {
        Extent::new(self.base, self.tree.core.shape.span(self.level))
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
        let mut work = core.work(maint);
        let reached = work.reach(self.base, self.level, over);
        let _done = work.finish();
        let mut slot = reached?;
        let level = self.level;
        let new = Desc::table(&core.shape, self.core.root);
        // Again when hardware has marked a leaf, or another CPU was here.
        loop {
            let kind = slot.kind(&core.shape);
            let stored = match kind {
                Kind::Invalid if slot.desc == Desc::EMPTY || over != Over::Nothing => new,
                Kind::Leaf if over == Over::Anything && slot.desc.has(CONTIGUOUS) => {
                    work.break_group(&mut slot)?;
                    continue;
                }
                Kind::Leaf if over == Over::Anything => slot.desc.freeze(level),
                _ if kind.is_frozen() => return Err(Error::Busy),
                _ => return Err(Error::Exists { level }),
            };
            match core.cas(slot.table, slot.index, slot.desc, stored) {
                Ok(()) => break,
                Err(now) => slot.desc = now,
            }
        }
        if slot.desc.is_valid() {
            let _done: Synced = work.sync_leaf(&slot);
            core.put(&slot, new);
        }
        work.publish();
        core.add_count(slot.pa, 1 - core.counting.of(slot.desc));
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
    next: Ia,
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
            from: *next,
            ..Cut::under(part.level, part.base, part.core.root)
        };
        let out = &mut Tell(&mut Ignore);
        let core = &part.tree.core;
        match core.reclaim_from(table, out, &never, budget) {
            None => Ok(()),
            Some(next) => Err(Self { next, ..self }),
        }
    }
}

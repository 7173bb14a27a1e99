//! Splitting blocks ahead of need, from pages that the caller gives.
//!
//! A block is broken once, however deep it is split: its whole subtree is
//! built before. Neighbouring blocks of one table are broken together, with
//! one invalidation.

use crate::addr::{Extent, Ia, Ipa, Level, Pa};
use crate::desc::{CONTIGUOUS, Desc, Kind};
use crate::error::{Budget, Error, Stopped};
use crate::maintenance::Maintenance;
use crate::mem::TableMem;
use crate::plan::Pending;
use crate::release::{Cut, Tell};
use crate::sink::Ignore;
use crate::stage2::{Stage2, typed};
use crate::sync::Synced;
use crate::tree::{Core, Slot};
use crate::work::Work;

/// A range whose blocks are split.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Split {
    /// First IPA, page-aligned.
    pub ipa: Ipa,
    /// Bytes, a multiple of the page.
    pub size: u64,
    /// The level of the leaves that come of it.
    pub to: Level,
}

impl<M: TableMem> Stage2<M> {
    /// Splits all blocks of a range into leaves of a level. What they map,
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
    /// tree.split(&mut cpu, &Split { ipa, size, to: Level::L3 }, pages, all)?;
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
        blocks: &Split,
        pages: impl FnMut(Level) -> Option<Pa>,
        budget: &mut Budget,
    ) -> Result<Ipa, Stopped<Ipa>> {
        let &Split { ipa, size, to } = blocks;
        let shape = &self.core.shape;
        let range = shape.check_ia(ipa.into(), size);
        let range = range.map_err(Stopped::at(ipa))?;
        if !shape.leaf_ok(to) {
            let (why, next) = (Error::BlockLevel { level: to }, ipa);
            return Err(Stopped { why, next });
        }
        let splitting = Splitting {
            work: self.core.work(maint),
            build: Build {
                core: &self.core,
                range,
                to,
                pages,
                budget,
            },
        };
        typed(splitting.run())
    }
}

/// Subtrees of blocks, and what they take.
struct Build<'a, M: TableMem, P> {
    core: &'a Core<M>,
    range: Extent,
    /// Blocks become tables down to this level.
    to: Level,
    pages: P,
    budget: &'a mut Budget,
}

/// A split of blocks under way.
struct Splitting<'a, M: TableMem, T, P> {
    work: Work<'a, M, T>,
    build: Build<'a, M, P>,
}

impl<M: TableMem, T: Maintenance, P: FnMut(Level) -> Option<Pa>> Splitting<'_, M, T, P> {
    fn run(mut self) -> Result<Ia, Stopped<Ia>> {
        let core = self.work.core;
        let Extent { start, end } = self.build.range;
        let to = self.build.to;
        let mut ia = start;
        while ia < end {
            let mut slot = core.walk_to(ia, to);
            match slot.kind(&core.shape) {
                kind if kind.is_frozen() => {
                    let (why, next) = (Error::Busy, ia);
                    return Err(Stopped { why, next });
                }
                Kind::Leaf if slot.level < to => {
                    if slot.desc.has(CONTIGUOUS) {
                        self.work.break_group(&mut slot).map_err(Stopped::at(ia))?;
                    }
                    ia = self.split_run(&slot, ia)?;
                }
                _ => {
                    // Fine enough already: all of this table is, at level `to`.
                    let wide = if slot.level == to && to > core.shape.start() {
                        core.shape.span(to.up())
                    } else {
                        slot.size()
                    };
                    ia = ia.floor(wide).plus(wide);
                    self.build.budget.spend(1);
                }
            }
            // A block that was only split on the way down is no address done.
            if self.build.budget.is_spent() && ia > start {
                break;
            }
        }
        Ok(ia.min(end))
    }

    /// Splits neighbouring blocks of one table. Returns how far it came.
    fn split_run(&mut self, first: &Slot<M::Table>, ia: Ia) -> Result<Ia, Stopped<Ia>> {
        let core = self.work.core;
        let mut pending = Pending::new();
        let mut broken = 0;
        let mut next = ia;
        let mut why = None;
        while broken < core.entries_left(first) {
            let index = first.index + broken;
            let slot = first.after(broken, core.load(first.table, index));
            let enough = broken > 0 && self.build.budget.is_spent();
            if enough
                || slot.ia >= self.build.range.end
                || !slot.desc.is_leaf(slot.level)
                || slot.desc.has(CONTIGUOUS)
            {
                break;
            }
            let built = match self.split_one(&slot) {
                Ok(Some(built)) => built,
                Ok(None) => continue,
                Err(error) => {
                    why = Some(error);
                    break;
                }
            };
            pending.leaves(&core.shape, slot.extent(), slot.level);
            broken += 1;
            match built {
                Built::Whole => next = slot.end(),
                Built::UpTo(end, error) => {
                    next = end.max(ia);
                    why = Some(error);
                    break;
                }
                Built::Budget(end) => {
                    next = end.max(ia);
                    break;
                }
                Built::OneLevel => break,
            }
        }
        if broken > 0 {
            let _done: Synced = self.work.sync(pending.runs());
            let frozen = if core.features.bbm2 { 0 } else { broken };
            for index in first.index..first.index + frozen {
                let held = core.load(first.table, index);
                if let Kind::FrozenTable(pa) = held.kind(first.level, &core.shape) {
                    core.store(first.table, index, Desc::table(&core.shape, pa));
                }
            }
            self.work.publish();
        }
        match why {
            None => Ok(next),
            Some(why) => Err(Stopped { why, next }),
        }
    }

    /// Builds the table of one block and breaks the block, if it is as it was then.
    fn split_one(&mut self, slot: &Slot<M::Table>) -> Result<Option<Built>, Error> {
        let core = self.work.core;
        let pa = self.build.page(slot.level.down())?;
        let built = self.build.table(pa, slot);
        // Frozen as the table that it becomes: nothing fails from here.
        let new = Desc::table(&core.shape, pa);
        let stored = if core.features.bbm2 {
            new
        } else {
            new.freeze(slot.level)
        };
        if !core.swap(slot, stored) {
            // Hardware has marked it, or another CPU was here: what was
            // built goes back, and it is looked at again.
            let never = Synced::never_linked();
            let table = Cut::under(slot.level, slot.ia, pa);
            let _spent = core.reclaim(table, &mut Tell(&mut Ignore), &never);
            return Ok(None);
        }
        core.add_count(slot.pa, 1 - core.counting.of(slot.desc));
        Ok(Some(built))
    }
}

impl<M: TableMem, P: FnMut(Level) -> Option<Pa>> Build<'_, M, P> {
    /// The caller's next page for a table of `level`.
    fn page(&mut self, level: Level) -> Result<Pa, Error> {
        self.core.page((self.pages)(level), level)
    }

    /// Builds the subtree of a block in the page `pa`, unlinked.
    fn table(&mut self, pa: Pa, block: &Slot<M::Table>) -> Built {
        let core = self.core;
        core.fill_split(pa, block);
        self.budget.spend(core.shape.table_entries() as u64);
        let below = block.level.down();
        if below >= self.to {
            return Built::Whole;
        }
        if !self.range.covers(block.extent()) {
            // One level now; the caller comes again for the parts inside.
            return Built::OneLevel;
        }
        let parent = block.after(0, Desc::table(&core.shape, pa));
        let first = core.child(&parent, block.ia);
        for index in 0..core.shape.table_entries() {
            let child = first.after(index, core.load(first.table, index));
            if index > 0 && self.budget.is_spent() {
                return Built::Budget(child.ia);
            }
            let page = match self.page(below.down()) {
                Ok(page) => page,
                Err(error) => return Built::UpTo(child.ia, error),
            };
            let built = self.table(page, &child);
            core.put(&child, Desc::table(&core.shape, page));
            core.add_count(pa, 1 - core.counting.of(child.desc));
            if built != Built::Whole {
                return built;
            }
        }
        Built::Whole
    }
}

/// How much of a block's subtree was built.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Built {
    /// All of it.
    Whole,
    /// One level of it, as the range covers only a part.
    OneLevel,
    /// Up to here, where the pages ended, or one was of no use.
    UpTo(Ia, Error),
    /// Up to here, where the budget ended.
    Budget(Ia),
}

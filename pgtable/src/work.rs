//! A CPU at work in a tree: what it makes on its way, and what it owes the TLBs.

use crate::addr::{Extent, Ia, Level, Pa};
use crate::desc::{CONTIGUOUS, Desc, Kind};
use crate::error::Error;
use crate::maintenance::{CacheOp, Maintenance};
use crate::mem::TableMem;
use crate::plan::{Pending, Run};
use crate::sync::{self, Synced};
use crate::tree::{Core, Over, Slot, Walk};

/// What an operation changed and has not made visible yet.
pub(crate) struct Changes {
    /// New valid entries or tables: a barrier is due.
    pub(crate) stored: bool,
    /// Changed valid entries: an invalidation is due.
    pending: Option<Pending>,
}

impl Changes {
    pub(crate) const NONE: Self = Self {
        stored: false,
        pending: None,
    };

    /// Where changed valid entries are noted.
    pub(crate) fn pending(&mut self) -> &mut Pending {
        self.pending.get_or_insert_with(Pending::new)
    }

    /// Where entries are held frozen.
    pub(crate) fn held_extents(&self) -> impl Iterator<Item = Extent> {
        self.pending.iter().flat_map(Pending::held_extents)
    }
}

/// An operation under way: where, by whom, and what it changed.
pub(crate) struct Work<'a, M: TableMem, T> {
    pub(crate) core: &'a Core<M>,
    pub(crate) maint: &'a mut T,
    pub(crate) changes: Changes,
}

impl<M: TableMem> Core<M> {
    pub(crate) fn work<'a, T>(&'a self, maint: &'a mut T) -> Work<'a, M, T> {
        Work {
            core: self,
            maint,
            changes: Changes::NONE,
        }
    }

    /// Makes the empty entry of a walk, whose table has entries of `level`,
    /// point to an empty table. False when there is no page, or another CPU
    /// was faster.
    #[inline]
    pub(crate) fn make_empty_table(&self, walk: &mut Walk<M::Table>, level: Level) -> bool {
        let child = level.down();
        let Ok(page) = self.page(self.mem.alloc(child), child) else {
            return false;
        };
        let new = Desc::table(&self.shape, page);
        if self.cas(walk.table, walk.index, Desc::EMPTY, new).is_err() {
            self.mem.free(page, child, &Synced::never_linked());
            return false;
        }
        walk.desc = new;
        self.mem.add_count(walk.pa, 1);
        true
    }
}

impl<M: TableMem, T: Maintenance> Work<'_, M, T> {
    /// Invalidates what `pending` names on all CPUs, and waits for it.
    pub(crate) fn sync(&mut self, pending: &[Run]) -> Synced {
        sync::sync(self.maint, &self.core.tlb, pending)
    }

    /// Invalidates the leaf that stood at `slot`.
    pub(crate) fn sync_leaf(&mut self, slot: &Slot<M::Table>) -> Synced {
        let run = Run::leaves(&self.core.shape, slot.extent(), slot.level);
        self.sync(&[run])
    }

    /// Invalidates everything of the tree's VMID, or of EL2, on all CPUs.
    pub(crate) fn sync_all(&mut self) -> Synced {
        sync::sync_all(self.maint, &self.core.tlb)
    }

    /// Makes new valid entries visible to walkers.
    #[inline]
    pub(crate) fn publish(&mut self) {
        sync::publish(self.maint, &self.core.tlb);
    }

    /// Makes all changes visible: by one invalidation, or by a barrier when only
    /// invalid entries became valid. Who goes on begins with none.
    #[inline]
    pub(crate) fn finish(&mut self) -> Synced {
        match &self.changes.pending {
            Some(pending) if !pending.is_empty() => {
                sync::sync(self.maint, &self.core.tlb, pending.runs())
            }
            _ => {
                if self.changes.stored {
                    self.publish();
                }
                Synced::never_linked()
            }
        }
    }

    /// Cache maintenance of what is about to be mapped.
    #[cold]
    #[inline(never)]
    pub(crate) fn maintain(&mut self, leaf: Desc, pa: Pa, size: u64) {
        if self.core.features.needs_clean(leaf) {
            self.maint.cache(CacheOp::CleanInvalidateData { pa, size });
        }
        if self.core.features.needs_fetch_sync(leaf) {
            self.maint.cache(CacheOp::InvalidateInstructions);
        }
    }

    /// Walks down for `ia` to `level`, making the tables that are missing.
    ///
    /// An annotation on the way is copied into every entry of the table made
    /// under it, so that it goes on saying what it said. A block on the way
    /// is split over anything, and is in the way otherwise.
    #[inline(always)]
    pub(crate) fn reach(
        &mut self,
        ia: Ia,
        level: Level,
        over: Over,
    ) -> Result<Slot<M::Table>, Error> {
        let mut slot = self.core.walk_to(ia, level);
        while slot.level < level {
            if !slot.desc.points_down() {
                self.make_table(&mut slot, over)?;
            }
            slot = self.core.child(&slot, ia);
        }
        Ok(slot)
    }

    /// Makes `slot` point to a table, whoever makes it.
    #[cold]
    #[inline(never)]
    fn make_table(&mut self, slot: &mut Slot<M::Table>, over: Over) -> Result<(), Error> {
        let core = self.core;
        let child = slot.level.down();
        let mut page = None;
        let done = loop {
            let kind = slot.kind(&core.shape);
            match kind {
                Kind::Table(_) => break Ok(()),
                Kind::Invalid if slot.desc == Desc::EMPTY || over != Over::Nothing => (),
                Kind::Leaf if over == Over::Anything => (),
                _ if kind.is_frozen() => break Err(Error::Busy),
                _ => break Err(Error::Exists { level: slot.level }),
            }
            let pa = match page {
                Some(pa) => pa,
                None => match core.page(core.mem.alloc(child), child) {
                    Ok(pa) => *page.insert(pa),
                    Err(why) => break Err(why),
                },
            };
            if kind == Kind::Leaf {
                break self.split(slot, pa).map(|()| page = None);
            }
            core.fill_uniform(pa, slot.desc);
            match core.link(slot, pa) {
                Ok(()) => {
                    self.changes.stored = true;
                    page = None;
                    break Ok(());
                }
                Err(now) => {
                    if slot.desc != Desc::EMPTY {
                        core.fill_row(pa, Desc::EMPTY, 0);
                        core.add_count(pa, -(core.mem.count(pa) as i32));
                    }
                    slot.desc = now;
                }
            }
        };
        if let Some(pa) = page {
            core.mem.free(pa, child, &Synced::never_linked());
        }
        done
    }

    /// Splits the leaf at `slot` into a table at `pa` (zeroed, unlinked)
    /// whose entries map the same with the same attributes.
    ///
    /// Break-before-make, unless FEAT_BBM level 2 is in use.
    pub(crate) fn split(&mut self, slot: &mut Slot<M::Table>, pa: Pa) -> Result<(), Error> {
        let core = self.core;
        let new = Desc::table(&core.shape, pa);
        let bbm2 = core.features.bbm2;
        // Filled before the break, so that nothing fails and little is done
        // while the guest sees a hole. The old entry's AF and dirty state are
        // those of the moment of the break: filled again if they changed.
        loop {
            if slot.desc.has(CONTIGUOUS) {
                self.break_group(slot)?;
            }
            if !slot.desc.is_leaf(slot.level) {
                return Err(Error::Busy);
            }
            let counted = core.fill_split(pa, slot);
            let broken = if bbm2 {
                new
            } else {
                slot.desc.freeze(slot.level)
            };
            match core.cas(slot.table, slot.index, slot.desc, broken) {
                Ok(()) => break,
                Err(now) => {
                    core.add_count(pa, -counted);
                    slot.desc = now;
                }
            }
        }
        let _done = self.sync_leaf(slot);
        if !bbm2 {
            core.put(slot, new);
            self.publish();
        }
        core.add_count(slot.pa, 1 - core.counting.of(slot.desc));
        slot.desc = new;
        Ok(())
    }

    /// Takes the hint off a group of leaves. Nobody sets it here.
    ///
    /// # Errors
    /// Always: it is not this crate's.
    #[cfg(not(feature = "extra"))]
    pub(crate) fn break_group(&mut self, slot: &mut Slot<M::Table>) -> Result<(), Error> {
        Err(Error::Mismatch { level: slot.level })
    }
}

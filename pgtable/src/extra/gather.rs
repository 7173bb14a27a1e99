//! Leaves that are taken out now and invalidated later, together.

use crate::addr::{Extent, Ia, Ipa, Level};
use crate::desc::Desc;
use crate::error::{Budget, Error, Stopped};
use crate::extra::alter::{Alter, Altering};
use crate::maintenance::Maintenance;
use crate::mem::TableMem;
use crate::plan::Pending;
use crate::shape::Shape;
use crate::sink::RemovedLeaf;
use crate::stage2::{Stage2, typed};
use crate::sync::Synced;
use crate::unmap::Partial;
use crate::work::Work;
use core::sync::atomic::{AtomicU64, Ordering};

/// Changes of leaves of one tree that some TLB may not know of yet. From
/// [`Stage2::gather`], and of use with that tree only: others answer
/// [`OtherTree`](crate::Error::OtherTree), and give it back unsynced.
///
/// Leaves may be gathered and flushed later, together; tables never. Until
/// [`sync`](crate::Stage2::sync) returns, guests may go on using what was
/// removed or restricted, and what was removed stays frozen: to map there is
/// answered [`Busy`](crate::Error::Busy), as it would be a make before the
/// break is complete.
#[derive(Debug)]
#[must_use = "until it is synced, TLBs go on using what was taken away"]
pub struct Gather {
    pub(crate) pending: Pending,
    serial: u64,
    /// `VTTBR_EL2` of the tree it is of: root and VMID.
    tree: u64,
}

impl Gather {
    /// Itself, if it is of the tree with this `VTTBR_EL2`.
    pub(crate) fn of(&mut self, vttbr: u64) -> Result<&mut Self, Error> {
        if self.tree == vttbr {
            Ok(self)
        } else {
            Err(Error::OtherTree)
        }
    }

    /// True when there is nothing to invalidate.
    pub const fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }
}

impl<M: TableMem, T: Maintenance> Work<'_, M, T> {
    /// Invalidates all that is noted, and empties what is held of it.
    pub(crate) fn flush_held(&mut self, pending: &mut Pending) -> Synced {
        let core = self.core;
        let done = self.sync(pending.runs());
        for Extent { start, end } in pending.held_extents() {
            let mut ia = start;
            while ia < end {
                let slot = core.walk_to(ia, Level::L3);
                let mut at = slot.ia;
                let mut more = 0;
                for index in slot.index..slot.index + core.entries_left(&slot) {
                    let desc = core.load(slot.table, index);
                    let below = index > slot.index && desc.is_table(slot.level);
                    if at >= end || below {
                        break;
                    }
                    // The tables that leaves were held in may be gone by now,
                    // and others come: only what still is held is emptied.
                    let next = at.plus(slot.size());
                    if at >= start && next <= end && desc == Desc::GATHERED {
                        core.store(slot.table, index, Desc::EMPTY);
                        more -= 1;
                    }
                    at = next;
                }
                core.add_count(slot.pa, more);
                ia = at;
            }
        }
        *pending = Pending::new();
        done
    }
}

/// A leaf that was taken out of the tree, and not yet out of every TLB.
#[derive(Debug)]
#[must_use = "its memory is released after the gather is synced"]
pub struct HeldLeaf {
    leaf: RemovedLeaf,
    serial: u64,
}

impl HeldLeaf {
    /// The first IPA.
    pub const fn ipa(&self) -> Ipa {
        self.leaf.ipa()
    }

    /// The leaf, whose output address may now go to another owner.
    ///
    /// # Errors
    /// Itself, when `proof` is not that of the gather it was noted in.
    pub fn release(self, proof: &Synced) -> Result<RemovedLeaf, Self> {
        if proof.serial() == self.serial {
            Ok(self.leaf)
        } else {
            Err(self)
        }
    }
}

/// A range whose leaves go into a gather.
#[derive(Debug)]
pub struct UnmapLater<'a> {
    /// First IPA, page-aligned.
    pub ipa: Ipa,
    /// Bytes, a multiple of the page.
    pub size: u64,
    /// What becomes of a block that it covers in part.
    pub partial: Partial,
    /// Where they are noted.
    pub gather: &'a mut Gather,
}

impl<'a> UnmapLater<'a> {
    /// Blocks at the ends are split.
    pub const fn new(ipa: Ipa, size: u64, gather: &'a mut Gather) -> Self {
        Self {
            ipa,
            size,
            partial: Partial::Split,
            gather,
        }
    }

    /// The same with something else for blocks at the ends.
    pub fn partial(self, partial: Partial) -> Self {
        Self { partial, ..self }
    }
}

/// Leaves are taken out, and told closed.
struct Take<'a, F> {
    shape: &'a Shape,
    serial: u64,
    sink: F,
}

impl<F: FnMut(HeldLeaf)> Alter for Take<'_, F> {
    const REMOVES: bool = true;
    const SURE: Option<u64> = Some(0);

    fn alter(&mut self, _: Desc) -> Desc {
        Desc::EMPTY
    }

    #[inline]
    fn altered(&mut self, at: Ia, level: Level, old: Desc) {
        let (leaf, serial) = (RemovedLeaf::new(self.shape, at, level, old), self.serial);
        (self.sink)(HeldLeaf { leaf, serial });
    }
}

impl<M: TableMem> Stage2<M> {
    /// A gather for this tree, with nothing in it.
    pub fn gather(&self) -> Gather {
        static SERIAL: AtomicU64 = AtomicU64::new(1);
        Gather {
            pending: Pending::new(),
            serial: SERIAL.fetch_add(1, Ordering::Relaxed),
            tree: self.vttbr(),
        }
    }

    /// Removes the leaves of a range now and invalidates them when its
    /// gather is synced, together with more. Tables and annotations stay, caches
    /// are not maintained. `sink` gets each leaf closed: only the gather's
    /// proof opens it.
    ///
    /// The entries stay frozen until the sync, which empties them: its work
    /// is in proportion to what was removed. A gather of more than
    /// [`RUNS`](crate::RUNS) places is invalidated in between.
    ///
    /// ```
    /// # mod example { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/example.rs")); }
    /// # use {example::*, pgtable::*};
    /// # let (mut tree, mut cpu) = mapped();
    /// # let all = &mut Budget::unlimited();
    /// let (mut gather, mut held) = (tree.gather(), Vec::new());
    /// for page in [0x4000_0000, 0x4000_9000] {
    ///     let ipa = Ipa::new(page);
    ///     let range = UnmapLater::new(ipa, 4096, &mut gather);
    ///     tree.unmap_later(&mut cpu, range, all, |leaf| held.push(leaf))?;
    /// }
    /// let proof = tree.sync(&mut cpu, gather).expect("of this tree");
    /// for leaf in held {
    ///     let leaf = leaf.release(&proof).expect("the gather's own proof");
    ///     assert_eq!(leaf.pa().get() - leaf.ipa().get(), 0x4000_0000);
    /// }
    /// # let _ = (&mut tree, &mut cpu, all);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// `Range`, `Align`, `OtherTree` at once; `InsideBlock`, `NoMem` (to
    /// split), `Busy` where it stopped.
    pub fn unmap_later<T: Maintenance>(
        &self,
        maint: &mut T,
        range: UnmapLater<'_>,
        budget: &mut Budget,
        sink: impl FnMut(HeldLeaf),
    ) -> Result<Ipa, Stopped<Ipa>> {
        let shape = &self.core.shape;
        let covered = shape.check_ia(range.ipa.into(), range.size);
        let covered = covered.map_err(Stopped::at(range.ipa))?;
        let gather = range.gather.of(self.vttbr());
        let Gather {
            pending, serial, ..
        } = gather.map_err(Stopped::at(range.ipa))?;
        let serial = *serial;
        let mut altering = Altering {
            work: self.core.work(maint),
            pending,
            budget,
            range: covered,
            partial: range.partial,
            change: Take {
                shape,
                serial,
                sink,
            },
            count: 0,
        };
        typed(altering.run())
    }

    /// Flushes what was gathered, on all CPUs, and waits for it.
    ///
    /// ```
    /// # mod example { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/example.rs")); }
    /// # use {example::*, pgtable::*};
    /// # let (mut tree, mut cpu) = mapped();
    /// # let all = &mut Budget::unlimited();
    /// let mut gather = tree.gather();
    /// for page in [0x4000_0000, 0x4000_8000] {
    ///     let range = Sweep::new(Ipa::new(page), 4096).later(&mut gather);
    ///     tree.write_protect(&mut cpu, range, all)?;
    /// }
    /// let _proof = tree.sync(&mut cpu, gather); // Both, with one invalidation.
    /// # let _ = (&mut tree, &mut cpu, all);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// The gather, unsynced, if it is another tree's.
    // It comes back by value: what it holds is still to be invalidated.
    #[allow(clippy::result_large_err)]
    pub fn sync<T: Maintenance>(
        &self,
        maint: &mut T,
        mut gather: Gather,
    ) -> Result<Synced, Gather> {
        if gather.of(self.vttbr()).is_err() {
            return Err(gather);
        }
        let done = self.core.work(maint).flush_held(&mut gather.pending);
        Ok(done.of(gather.serial))
    }
}

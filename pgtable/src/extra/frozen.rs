//! One entry held frozen while something outside is done about it.

use crate::addr::{Ipa, Level, Pa};
use crate::attrs::Attrs;
use crate::desc::{CONTIGUOUS, Desc, Kind};
use crate::error::Error;
use crate::format::{Annotation, Entry};
use crate::maintenance::Maintenance;
use crate::mem::TableMem;
use crate::stage2::Stage2;
use crate::tree::Slot;

/// An entry that this CPU alone may change. Everybody else, on other CPUs,
/// is told [`Error::Busy`] and comes again; the guest faults.
///
/// For changes that have a part elsewhere which may fail (an IOMMU's tables,
/// a firmware call): [`commit`](Self::commit) after it succeeded, else
/// [`rollback`](Self::rollback), which dropping does too, without a barrier.
#[must_use = "dropped, it puts the old entry back"]
pub struct Frozen<'t, M: TableMem> {
    tree: &'t Stage2<M>,
    slot: Slot<M::Table>,
}

/// What a frozen entry becomes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// Nothing, with an annotation.
    Invalid(Annotation),
    /// A leaf of the entry's level.
    Leaf(Pa, Attrs),
}

impl<M: TableMem> Stage2<M> {
    /// Freezes the leaf or the invalid entry of `level` at `ipa`.
    ///
    /// ```
    /// # mod example { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/example.rs")); }
    /// # use {example::*, pgtable::*};
    /// # let (mut tree, mut cpu) = tree();
    /// # let all = &mut Budget::unlimited();
    /// let ipa = Ipa::new(0x4000_0000);
    /// let frozen = tree.freeze(ipa, Level::L1)?;
    /// assert_eq!(frozen.old(), Entry::Invalid(Annotation::EMPTY));
    /// assert_eq!(tree.freeze(ipa, Level::L1).err(), Some(Error::Busy));
    /// // Something outside is done, and works.
    /// frozen.commit(&mut cpu, Change::Leaf(Pa::new(0x8000_0000), Attrs::DEVICE))?;
    /// assert!(tree.translate(ipa).is_some());
    /// # let _ = (&mut tree, &mut cpu, all);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// `Range`; `Missing` if the walk ends above `level`; `Exists` for a
    /// table or a member of a contiguous group
    /// ([`clear_contiguous`](Self::clear_contiguous) first); `Busy`.
    pub fn freeze(&self, ipa: Ipa, level: Level) -> Result<Frozen<'_, M>, Error> {
        let core = &self.core;
        let mut slot = core.walk_to(core.shape.check(ipa.into())?, level);
        if slot.level != level {
            return Err(Error::Missing { level: slot.level });
        }
        loop {
            let kind = slot.kind(&core.shape);
            let frozen = match kind {
                Kind::Leaf if !slot.desc.has(CONTIGUOUS) => slot.desc.freeze(level),
                // What it said is kept here, not there.
                Kind::Invalid => Desc::HELD,
                _ if kind.is_frozen() => return Err(Error::Busy),
                _ => return Err(Error::Exists { level }),
            };
            match core.cas(slot.table, slot.index, slot.desc, frozen) {
                Ok(()) => break,
                // Hardware may have marked it accessed or dirty.
                Err(now) => slot.desc = now,
            }
        }
        if !slot.desc.is_valid() {
            core.add_count(slot.pa, -core.counting.of(slot.desc));
        }
        Ok(Frozen { tree: self, slot })
    }
}

impl<M: TableMem> Frozen<'_, M> {
    /// What stood there.
    pub fn old(&self) -> Entry {
        let Slot { desc, level, .. } = self.slot;
        self.tree.geometry.decode(desc.raw(), level)
    }

    /// Gives the entry its new value; if it was a leaf, after every TLB has
    /// forgotten that. The caches of what it mapped are not maintained.
    ///
    /// # Errors
    /// As [`Geometry::encode_leaf`](crate::Geometry::encode_leaf), and
    /// `BlockLevel` for more than 2 MiB whose caches would have to be cleaned:
    /// the old entry is put back.
    pub fn commit<T: Maintenance>(self, maint: &mut T, change: Change) -> Result<(), Error> {
        let new = match self.encode(change) {
            Ok(new) => new,
            Err(why) => {
                self.rollback(maint);
                return Err(why);
            }
        };
        let core = &self.tree.core;
        let slot = self.slot;
        let mut work = core.work(maint);
        if slot.desc.is_valid() {
            let _done = work.sync_leaf(&slot);
        }
        if let Change::Leaf(pa, _) = change {
            work.maintain(new, pa, slot.size());
        }
        core.put(&slot, new);
        // What is frozen as empty is not counted meanwhile.
        let old = if slot.desc.is_valid() {
            core.counting.of(slot.desc)
        } else {
            0
        };
        core.add_count(slot.pa, core.counting.of(new) - old);
        if new.is_valid() {
            work.publish();
        }
        core::mem::forget(self);
        Ok(())
    }
}

impl<M: TableMem> Frozen<'_, M> {
    fn encode(&self, change: Change) -> Result<Desc, Error> {
        let core = &self.tree.core;
        match change {
            Change::Invalid(annotation) => Ok(Desc::new(annotation.get())),
            Change::Leaf(pa, attrs) => {
                let level = self.slot.level;
                let leaf = Desc::new(self.tree.geometry.encode_leaf(pa, attrs, level)?);
                if core.features.needs_clean(leaf) && level < core.shape.cleaned_top() {
                    return Err(Error::BlockLevel { level });
                }
                Ok(leaf)
            }
        }
    }

    /// Puts the old entry back and makes that visible to walkers.
    pub fn rollback<T: Maintenance>(self, maint: &mut T) {
        let core = &self.tree.core;
        drop(self);
        core.work(maint).publish();
    }
}

impl<M: TableMem> Drop for Frozen<'_, M> {
    fn drop(&mut self) {
        // Nothing was invalidated: TLBs that hold the old leaf hold what is
        // true again. A walker that sees it late takes a fault at most.
        let (core, slot) = (&self.tree.core, &self.slot);
        core.put(slot, slot.desc);
        if !slot.desc.is_valid() {
            core.add_count(slot.pa, core.counting.of(slot.desc));
        }
    }
}

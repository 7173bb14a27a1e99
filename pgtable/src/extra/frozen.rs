//! One entry held frozen while something outside is done about it.

use crate::addr::{Ipa, Level, Pa};
use crate::attrs::Attrs;
use crate::error::Error;
use crate::format::{self, Annotation, Entry, VALID};
use crate::maintenance::Maintenance;
use crate::mem::TableMem;
use crate::plan::Pending;
use crate::shape::Shape;
use crate::stage2::Stage2;
use crate::sync;
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
    ipa: u64,
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
        if ipa.get() >= core.shape.ia_end() {
            return Err(Error::Range);
        }
        let mut slot = core.walk_to(ipa.get(), level.get());
        if slot.level != level.get() {
            return Err(Error::Missing {
                level: Shape::level(slot.level),
            });
        }
        loop {
            let raw = slot.raw;
            if format::is_frozen(raw) {
                return Err(Error::Busy);
            }
            let leaf = format::is_leaf(raw, level.get()) && raw & format::CONTIGUOUS == 0;
            if !leaf && !format::is_annotation(raw) {
                return Err(Error::Exists { level });
            }
            let frozen = if leaf {
                format::freeze(raw, level.get())
            } else {
                // What it said is kept here, not there.
                format::TYPE_FROZEN | format::ELSEWHERE
            };
            match core.mem.cas(slot.table, slot.index, raw, frozen) {
                Ok(()) => break,
                // Hardware may have marked it accessed or dirty.
                Err(now) => slot.raw = now,
            }
        }
        if slot.raw & VALID == 0 {
            core.add_count(slot.pa, -core.counting.of(slot.raw));
        }
        Ok(Frozen {
            tree: self,
            slot,
            ipa: slot.base(ipa.get()),
        })
    }
}

impl<M: TableMem> Frozen<'_, M> {
    /// What stood there.
    pub fn old(&self) -> Entry {
        self.tree
            .geometry
            .decode(self.slot.raw, Shape::level(self.slot.level))
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
        if slot.raw & VALID != 0 {
            let mut pending = Pending::new();
            let end = self.ipa + (1 << slot.shift);
            pending.leaves(&core.shape, self.ipa, end, slot.level);
            let _done = sync::sync(maint, &core.tlb, &pending);
        }
        if let Change::Leaf(pa, _) = change {
            core.maintain(maint, new, pa, 1 << slot.shift);
        }
        core.mem.store(slot.table, slot.index, new);
        // What is frozen as empty is not counted meanwhile.
        let old = if slot.raw & VALID != 0 { slot.raw } else { 0 };
        let more = core.counting.of(new) - core.counting.of(old);
        if more != 0 {
            core.mem.add_count(Pa::new(slot.pa), more);
        }
        if new & VALID != 0 {
            sync::publish(maint, &core.tlb);
        }
        core::mem::forget(self);
        Ok(())
    }
}

impl<M: TableMem> Frozen<'_, M> {
    fn encode(&self, change: Change) -> Result<u64, Error> {
        let core = &self.tree.core;
        match change {
            Change::Invalid(annotation) => Ok(annotation.get()),
            Change::Leaf(pa, attrs) => {
                let level = Shape::level(self.slot.level);
                let leaf = self.tree.geometry.encode_leaf(pa, attrs, level)?;
                if core.needs_clean(leaf) && level.get() < core.shape.cleaned_top() {
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
        sync::publish(maint, &core.tlb);
    }
}

impl<M: TableMem> Drop for Frozen<'_, M> {
    fn drop(&mut self) {
        // Nothing was invalidated: TLBs that hold the old leaf hold what is
        // true again. A walker that sees it late takes a fault at most.
        let old = self.slot.raw;
        let mem = &self.tree.core.mem;
        mem.store(self.slot.table, self.slot.index, old);
        if old & VALID == 0 {
            let core = &self.tree.core;
            core.add_count(self.slot.pa, core.counting.of(old));
        }
    }
}

//! The contiguous hint: set on a group that qualifies, broken before any
//! member changes (spec 1.4).
//!
//! Either way every member goes through break-before-make, and every
//! member's address is invalidated: a CPU may ignore the hint and hold each
//! entry apart.

use crate::addr::Ipa;
use crate::error::Error;
use crate::format::{self, AF, CONTIGUOUS};
use crate::maintenance::Maintenance;
use crate::mem::TableMem;
use crate::plan::Pending;
use crate::shape::Shape;
use crate::stage2::Stage2;
use crate::sync::{self, Synced};
use crate::tree::{Core, Slot};

impl<M: TableMem> Stage2<M> {
    /// Sets the contiguous hint on the group of leaves around `ipa`, all of
    /// which must be alike and aligned in input and output.
    ///
    /// ```
    /// # mod example { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/example.rs")); }
    /// # use {example::*, pgtable::*};
    /// # let (mut tree, mut cpu) = mapped();
    /// # let all = &mut Budget::unlimited();
    /// let ipa = Ipa::new(0x4000_0000);
    /// let hint = |ipa| matches!(tree.lookup(ipa), Ok(Found { entry: Entry::Leaf { contiguous: true, .. }, .. }));
    /// tree.set_contiguous(&mut cpu, ipa)?; // Sixteen pages of 4 KiB.
    /// assert!(hint(Ipa::new(0x4000_f000)) && !hint(Ipa::new(0x4001_0000)));
    /// // A change of one member breaks the group before.
    /// tree.write_protect(&mut cpu, Ipa::new(0x4000_3000), 4096, Flush::Now, all)?;
    /// assert!(!hint(ipa));
    /// # let _ = (&mut tree, &mut cpu, all);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// `Range`; `Missing` where no leaf stands; `BlockLevel` at a level
    /// without the hint; `Mismatch`; `Busy`.
    pub fn set_contiguous<T: Maintenance>(&self, maint: &mut T, ipa: Ipa) -> Result<(), Error> {
        if ipa.get() >= self.core.shape.ia_end() {
            return Err(Error::Range);
        }
        let slot = self.core.walk_to(ipa.get(), 3);
        self.core.join_group(maint, &slot, ipa.get())
    }

    /// Takes the hint off the group around `ipa`, if it has it. Operations
    /// that change a member do so themselves.
    ///
    /// ```
    /// # mod example { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/example.rs")); }
    /// # use {example::*, pgtable::*};
    /// # let (mut tree, mut cpu) = mapped();
    /// # let all = &mut Budget::unlimited();
    /// tree.set_contiguous(&mut cpu, Ipa::new(0x4000_0000))?;
    /// tree.clear_contiguous(&mut cpu, Ipa::new(0x4000_f000))?;
    /// # let _ = (&mut tree, &mut cpu, all);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// `Range`; `Missing` where no leaf stands; `Busy`.
    pub fn clear_contiguous<T: Maintenance>(&self, maint: &mut T, ipa: Ipa) -> Result<(), Error> {
        if ipa.get() >= self.core.shape.ia_end() {
            return Err(Error::Range);
        }
        let mut slot = self.core.walk_to(ipa.get(), 3);
        if !format::is_leaf(slot.raw, slot.level) {
            return Err(Error::Missing {
                level: Shape::level(slot.level),
            });
        }
        if slot.raw & CONTIGUOUS == 0 {
            return Ok(());
        }
        self.core.break_group(maint, &mut slot, ipa.get())
    }
}

impl<M: TableMem> Core<M> {
    /// Takes the hint off the group of the leaf at `slot`.
    #[cold]
    #[inline(never)]
    pub(crate) fn break_group<T: Maintenance>(
        &self,
        maint: &mut T,
        slot: &mut Slot<M::Table>,
        ia: u64,
    ) -> Result<(), Error> {
        self.change_group(maint, slot, ia, 0)?;
        slot.raw = self.mem.load(slot.table, slot.index);
        Ok(())
    }

    /// Sets the hint on the group of the leaf at `slot` if all its members
    /// are alike and their output is adjacent and aligned.
    pub(crate) fn join_group<T: Maintenance>(
        &self,
        maint: &mut T,
        slot: &Slot<M::Table>,
        ia: u64,
    ) -> Result<(), Error> {
        let Some((first, count, _)) = self.group(slot, ia) else {
            return Err(Error::BlockLevel {
                level: Shape::level(slot.level),
            });
        };
        let mismatch = Error::Mismatch {
            level: Shape::level(slot.level),
        };
        let mut joined = true;
        for member in 0..count {
            let raw = self.mem.load(slot.table, first + member);
            if format::is_frozen(raw) {
                return Err(Error::Busy);
            }
            if !format::is_leaf(raw, slot.level) {
                return Err(if member == 0 {
                    Error::Missing {
                        level: Shape::level(slot.level),
                    }
                } else {
                    mismatch
                });
            }
            joined &= raw & CONTIGUOUS != 0;
        }
        if joined {
            return Ok(());
        }
        if !self.alike(slot, first, count, |raw| raw) {
            return Err(mismatch);
        }
        self.change_group(maint, slot, ia, CONTIGUOUS)
    }

    /// True when `count` leaves from `first` on, each read through `leaf`,
    /// may have the hint: alike in all but the access flag, which hardware
    /// may set in any of them, and adjacent and aligned in their output.
    fn alike(
        &self,
        slot: &Slot<M::Table>,
        first: usize,
        count: usize,
        leaf: impl Fn(u64) -> u64,
    ) -> bool {
        let step = 1u64 << slot.shift;
        let head = leaf(self.mem.load(slot.table, first));
        let oa = format::leaf_oa(&self.shape, head, slot.level);
        let whole = (count as u64) * step - 1;
        let ignored = AF | CONTIGUOUS;
        oa & whole == 0
            && (0..count).all(|member| {
                let raw = leaf(self.mem.load(slot.table, first + member));
                let expected = head.wrapping_add(step * member as u64);
                (raw ^ expected) & !ignored == 0
            })
    }

    /// First index, number of members and first address of a slot's group.
    fn group(&self, slot: &Slot<M::Table>, ia: u64) -> Option<(usize, usize, u64)> {
        let bits = self
            .shape
            .granule()
            .contiguous_bits(Shape::level(slot.level))?;
        let count = 1usize << bits;
        if count > self.shape.entries_at(slot.level) {
            return None;
        }
        let base = ia & !((1u64 << (slot.shift + u32::from(bits))) - 1);
        Some((slot.index & !(count - 1), count, base))
    }

    /// Rewrites all members with `hint` in place of their hint.
    fn change_group<T: Maintenance>(
        &self,
        maint: &mut T,
        slot: &Slot<M::Table>,
        ia: u64,
        hint: u64,
    ) -> Result<(), Error> {
        let Some((first, count, base)) = self.group(slot, ia) else {
            return Err(Error::BlockLevel {
                level: Shape::level(slot.level),
            });
        };
        let level = slot.level;
        let mut frozen = 0;
        while frozen < count {
            let raw = self.mem.load(slot.table, first + frozen);
            if !format::is_leaf(raw, level) {
                break;
            }
            // A failed swap is the hardware's access flag or dirty state, or
            // another CPU: look again.
            if self
                .mem
                .cas(slot.table, first + frozen, raw, format::freeze(raw, level))
                .is_ok()
            {
                frozen += 1;
            }
        }
        let whole = frozen == count;
        // Nobody changes a member any more, but somebody may have between
        // the caller's look and the freeze.
        let alike =
            hint == 0 || whole && self.alike(slot, first, count, |raw| format::thaw(raw, level));
        let mut pending = Pending::new();
        let step = 1u64 << slot.shift;
        pending.leaves(&self.shape, base, base + step * frozen as u64, level);
        let _done: Synced = sync::sync(maint, &self.tlb, &pending);
        for member in 0..frozen {
            let old = format::thaw(self.mem.load(slot.table, first + member), level);
            let bare = old & !CONTIGUOUS;
            let new = if whole && alike { bare | hint } else { old };
            self.mem.store(slot.table, first + member, new);
        }
        sync::publish(maint, &self.tlb);
        match (whole, alike) {
            (true, true) => Ok(()),
            (true, false) => Err(Error::Mismatch {
                level: Shape::level(level),
            }),
            (false, _) => Err(Error::Busy),
        }
    }
}

//! The contiguous hint: set on a group that qualifies, broken before any
//! member changes (spec 1.4).
//!
//! Either way every member goes through break-before-make, and every
//! member's address is invalidated: a CPU may ignore the hint and hold each
//! entry apart.

use crate::addr::{Extent, Ipa, Level};
use crate::desc::{AF, CONTIGUOUS, Desc, Kind};
use crate::error::Error;
use crate::granule::Granule;
use crate::maintenance::Maintenance;
use crate::mem::TableMem;
use crate::plan::Pending;
use crate::stage2::Stage2;
use crate::sync::Synced;
use crate::tree::{Core, Slot};
use crate::work::Work;

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
    /// tree.write_protect(&mut cpu, Sweep::new(Ipa::new(0x4000_3000), 4096), all)?;
    /// assert!(!hint(ipa));
    /// # let _ = (&mut tree, &mut cpu, all);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// `Range`; `Missing` where no leaf stands; `BlockLevel` at a level
    /// without the hint; `Mismatch`; `Busy`.
    pub fn set_contiguous<T: Maintenance>(&self, maint: &mut T, ipa: Ipa) -> Result<(), Error> {
        let ia = self.core.shape.check(ipa.into())?;
        let slot = self.core.walk_to(ia, Level::L3);
        self.core.work(maint).join_group(&slot)
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
        let ia = self.core.shape.check(ipa.into())?;
        let mut slot = self.core.walk_to(ia, Level::L3);
        if !slot.desc.is_leaf(slot.level) {
            return Err(Error::Missing { level: slot.level });
        }
        if !slot.desc.has(CONTIGUOUS) {
            return Ok(());
        }
        self.core.work(maint).break_group(&mut slot)
    }
}

impl Granule {
    /// log2 of how many neighbouring entries one contiguous hint joins at
    /// `level`, or `None` where the hint has no meaning (D8.7.1 of the Arm
    /// ARM; the level-1 groups of 16K and 64K are left unused).
    pub const fn contiguous_bits(self, level: Level) -> Option<u8> {
        match (self, level.get()) {
            (Self::K4, 1..=3) => Some(4),
            (Self::K16, 2) => Some(5),
            (Self::K16, 3) => Some(7),
            (Self::K64, 2 | 3) => Some(5),
            _ => None,
        }
    }
}

impl<M: TableMem> Core<M> {
    /// The first of the entries that one hint joins with a slot's, and how many they
    /// are.
    fn group(&self, slot: &Slot<M::Table>) -> Result<(Slot<M::Table>, usize), Error> {
        let level = slot.level;
        let bits = self.shape.granule().contiguous_bits(level);
        let count = bits.map_or(usize::MAX, |bits| 1usize << bits);
        if count > self.shape.entries(level) {
            return Err(Error::BlockLevel { level });
        }
        let index = slot.index & !(count - 1);
        let first = Slot {
            index,
            ia: slot.ia.floor(slot.size() * count as u64),
            desc: self.load(slot.table, index),
            ..*slot
        };
        Ok((first, count))
    }

    /// True when `count` leaves from `first` on, each read through `leaf`,
    /// may have the hint: alike in all but the access flag, which hardware
    /// may set in any of them, and adjacent and aligned in their output.
    fn alike(&self, first: &Slot<M::Table>, count: usize, leaf: impl Fn(Desc) -> Desc) -> bool {
        let head = leaf(self.load(first.table, first.index));
        let pa = head.leaf_pa(&self.shape, first.level);
        let whole = (count as u64) * first.size();
        pa == pa.floor(whole)
            && (0..count).all(|member| {
                let desc = leaf(self.load(first.table, first.index + member));
                let expected = head.plus(first.size() * member as u64);
                desc.is_like(expected, AF | CONTIGUOUS)
            })
    }
}

impl<M: TableMem, T: Maintenance> Work<'_, M, T> {
    /// Takes the hint off the group of the leaf at `slot`.
    #[cold]
    #[inline(never)]
    pub(crate) fn break_group(&mut self, slot: &mut Slot<M::Table>) -> Result<(), Error> {
        self.change_group(slot, 0)?;
        slot.desc = self.core.load(slot.table, slot.index);
        Ok(())
    }

    /// Sets the hint on the group of the leaf at `slot` if all its members
    /// are alike and their output is adjacent and aligned.
    fn join_group(&mut self, slot: &Slot<M::Table>) -> Result<(), Error> {
        let core = self.core;
        let level = slot.level;
        let (first, count) = core.group(slot)?;
        let mut joined = true;
        for member in 0..count {
            let desc = core.load(first.table, first.index + member);
            match desc.kind(level, &core.shape) {
                Kind::Leaf => joined &= desc.has(CONTIGUOUS),
                kind if kind.is_frozen() => return Err(Error::Busy),
                _ if member == 0 => return Err(Error::Missing { level }),
                _ => return Err(Error::Mismatch { level }),
            }
        }
        if joined {
            return Ok(());
        }
        if !core.alike(&first, count, |desc| desc) {
            return Err(Error::Mismatch { level });
        }
        self.change_group(slot, CONTIGUOUS)
    }

    /// Rewrites all members with `hint` in place of their hint.
    fn change_group(&mut self, slot: &Slot<M::Table>, hint: u64) -> Result<(), Error> {
        let core = self.core;
        let level = slot.level;
        let (first, count) = core.group(slot)?;
        let mut frozen = 0;
        while frozen < count {
            let desc = core.load(first.table, first.index + frozen);
            // A failed swap is the hardware's access flag or dirty state, or
            // another CPU: that is looked at, too.
            let member = first.after(frozen, desc);
            if !core.freeze_live(&member, |desc| desc.is_leaf(level)) {
                break;
            }
            frozen += 1;
        }
        let thawed = |desc: Desc| match desc.kind(level, &core.shape) {
            Kind::FrozenLeaf(leaf) => leaf,
            _ => desc,
        };
        let whole = frozen == count;
        // Nobody changes a member any more, but somebody may have between
        // the caller's look and the freeze.
        let alike = hint == 0 || whole && core.alike(&first, count, thawed);
        let mut pending = Pending::new();
        let extent = Extent::new(first.ia, first.size() * frozen as u64);
        pending.leaves(&core.shape, extent, level);
        let _done: Synced = self.sync(pending.runs());
        for member in 0..frozen {
            let index = first.index + member;
            let old = thawed(core.load(first.table, index));
            let new = if whole && alike {
                old.without(CONTIGUOUS).with(hint)
            } else {
                old
            };
            core.store(first.table, index, new);
        }
        self.publish();
        match (whole, alike) {
            (true, true) => Ok(()),
            (true, false) => Err(Error::Mismatch { level }),
            (false, _) => Err(Error::Busy),
        }
    }
}

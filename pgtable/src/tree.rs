//! The tree and the way down it: what every operation is built on.
//!
//! # Concurrency: the protocol
//!
//! *Entries are atomic.* Every change of an entry that others may see is a
//! compare-and-swap of its whole value, so hardware (access flag, dirty
//! state) and other CPUs never lose an update.
//!
//! *Shared and exclusive.* Operations that take `&self` may run on many CPUs
//! at once in one tree: they map, make tables, age, change permissions,
//! split blocks and remove leaves, but never remove a table. Operations that
//! remove tables take `&mut self`: whoever calls them has, by the type, no
//! other walker in the tree. So a table is freed only when (1) no walker can
//! be inside it, proven by `&mut`, and (2) the invalidation that covers it
//! is complete, proven by [`Synced`](crate::Synced). A hypervisor keeps each
//! tree in a reader-writer lock of its own: a guest's faults wait for a
//! table's removal in the same guest at most, never for another guest.
//!
//! *Frozen entries.* A change that needs several steps (break, invalidate,
//! make) swaps the entry to its frozen form first. Everybody else who meets
//! it answers [`Busy`](crate::Error::Busy). Only the CPU that froze it
//! writes it again: with the new value, or with the old one if it gives up.
//!
//! *Making a table.* The page is filled before it is linked, and linked by
//! compare-and-swap with release. The loser of a race gives its page back
//! and goes down the winner's table.

use crate::addr::Pa;
use crate::config::Features;
use crate::errata::Errata;
use crate::error::Error;
use crate::format::{self, CONTIGUOUS, VALID};
use crate::maintenance::Maintenance;
use crate::mem::TableMem;
use crate::plan::{Pending, Regime, Tlb};
use crate::shape::{Shape, bytes};
use crate::sync::{self, Synced};

/// Which entries a table's count counts. Tables and frozen tables always
/// count; the rest is the choice of whoever uses the count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Counting {
    /// A valid leaf with any of these bits does not count.
    uncounted_leaf: u64,
    /// An annotation with any of these bits counts.
    counted_annotation: u64,
}

impl Counting {
    /// Every entry that is not zero counts. A table that unmapping leaves
    /// with a count of 0 is removed.
    pub const NON_ZERO: Self = Self {
        uncounted_leaf: 0,
        counted_annotation: u64::MAX,
    };

    /// RMM's rule: child tables, protected leaves, and invalid entries that
    /// hold a data granule count; unprotected leaves do not.
    pub(crate) const fn rtt(unprotected: u64, assigned: u64) -> Self {
        Self {
            uncounted_leaf: unprotected,
            counted_annotation: assigned,
        }
    }

    /// True when a count of 0 means that every entry is zero.
    #[inline]
    pub(crate) const fn zero_is_empty(self) -> bool {
        self.counted_annotation == u64::MAX
    }

    /// True for an annotation that holds an output address.
    #[inline]
    pub(crate) const fn annotation_has_oa(self, raw: u64) -> bool {
        !self.zero_is_empty() && raw & self.counted_annotation != 0
    }

    #[inline]
    pub(crate) const fn of(self, raw: u64) -> i32 {
        let counts = if raw & VALID != 0 {
            raw & self.uncounted_leaf == 0
        } else {
            raw & self.counted_annotation != 0
        };
        counts as i32
    }
}

/// A place in the tree: an entry, and what was read there.
#[derive(Clone, Copy)]
pub(crate) struct Slot<T> {
    pub(crate) table: T,
    /// The table's address.
    pub(crate) pa: u64,
    pub(crate) level: i8,
    /// log2 of the entry's span.
    pub(crate) shift: u32,
    pub(crate) index: usize,
    pub(crate) raw: u64,
}

impl<T> Slot<T> {
    /// The first address that the entry for `ia` covers.
    #[inline]
    pub(crate) fn base(&self, ia: u64) -> u64 {
        ia & !bytes(self.shift).wrapping_sub(1)
    }

    /// One past the last address that the entry for `ia` covers.
    #[inline]
    pub(crate) fn end(&self, ia: u64) -> u64 {
        self.base(ia).wrapping_add(bytes(self.shift))
    }

    /// True when the entry for `ia` lies inside `[start, end)` whole.
    #[inline]
    pub(crate) fn inside(&self, ia: u64, start: u64, end: u64) -> bool {
        self.base(ia) >= start && self.end(ia) <= end
    }
}

/// The way down in its shortest form: what a fault needs.
///
/// The index into the table in hand is in the key's low bits, so that going
/// down takes one rotation, by whatever granule.
pub(crate) struct Walk<T> {
    key: u64,
    pub(crate) table: T,
    /// The table's address.
    pub(crate) pa: u64,
    pub(crate) index: usize,
    pub(crate) raw: u64,
}

/// The slots from the root down to some entry.
pub(crate) struct Path<T> {
    slots: [Slot<T>; 5],
    depth: usize,
}

impl<T: Copy> Path<T> {
    #[inline]
    pub(crate) fn last(&self) -> Slot<T> {
        self.slots[self.depth]
    }

    /// The slot that points to the last slot's table, which then is last.
    #[inline]
    pub(crate) fn up(&mut self) -> Option<Slot<T>> {
        if self.depth == 0 {
            None
        } else {
            self.depth -= 1;
            Some(self.slots[self.depth])
        }
    }
}

/// Whether other walkers may be in the tree.
pub(crate) trait Access {
    /// None is: tables may go.
    const ALONE: bool;
}

/// By `&mut`: no other walker is in the tree.
pub(crate) struct Exclusive;

/// By `&`: others may be.
pub(crate) struct Shared;

impl Access for Exclusive {
    const ALONE: bool = true;
}

impl Access for Shared {
    const ALONE: bool = false;
}

/// What an operation changed and has not made visible yet.
pub(crate) struct Changes {
    /// New valid entries or tables: a barrier is due.
    pub(crate) stored: bool,
    /// Changed valid entries: an invalidation is due.
    pending: Option<Pending>,
}

impl Changes {
    pub(crate) const fn new() -> Self {
        Self {
            stored: false,
            pending: None,
        }
    }

    /// Changes that are all noted in `pending`.
    pub(crate) const fn of(stored: bool, pending: Pending) -> Self {
        Self {
            stored,
            pending: Some(pending),
        }
    }

    /// The ranges that this CPU holds frozen.
    pub(crate) fn held_ranges(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.pending.iter().flat_map(Pending::held_ranges)
    }

    /// Where changed valid entries are noted.
    #[cfg(feature = "extra")]
    pub(crate) fn pending(&mut self) -> &mut Pending {
        self.pending.get_or_insert_with(Pending::new)
    }
}

/// A tree of tables of any regime, on raw numbers. The public faces are
/// [`Stage2`](crate::Stage2) and [`El2Map`](crate::El2Map).
#[derive(Debug)]
pub(crate) struct Core<M> {
    pub(crate) mem: M,
    pub(crate) shape: Shape,
    pub(crate) root: u64,
    pub(crate) tlb: Tlb,
    pub(crate) counting: Counting,
    /// Without FEAT_S2FWB or `CTR_EL0.DIC` mapping takes cache maintenance.
    pub(crate) caches_matter: bool,
    pub(crate) fwb: bool,
    pub(crate) dic: bool,
    pub(crate) xnx: bool,
    pub(crate) bbm2: bool,
}

impl<M: TableMem> Core<M> {
    pub(crate) fn new(
        mem: M,
        shape: &Shape,
        root: Pa,
        regime: Regime,
        features: &Features,
        errata: Errata,
    ) -> Self {
        Self {
            mem,
            shape: *shape,
            root: root.get(),
            tlb: Tlb::new(regime, shape, features, errata),
            counting: Counting::NON_ZERO,
            caches_matter: !(features.fwb && features.dic),
            fwb: features.fwb,
            dic: features.dic,
            xnx: features.xnx,
            bbm2: features.bbm2,
        }
    }

    /// The slot for `ia` (inside the space) in the root.
    #[inline(always)]
    fn root_slot(&self, ia: u64) -> Slot<M::Table> {
        let table = self.mem.locate(Pa::new(self.root));
        let index = ia.wrapping_shr(self.shape.root_shift()) as usize;
        Slot {
            table,
            pa: self.root,
            level: self.shape.start_raw(),
            shift: self.shape.root_shift(),
            index,
            raw: self.mem.load(table, index),
        }
    }

    /// The slot for `ia` in the table that `slot` points to.
    #[inline(always)]
    pub(crate) fn child(&self, slot: &Slot<M::Table>, ia: u64) -> Slot<M::Table> {
        let pa = self.shape.decode_oa(slot.raw);
        let table = self.mem.locate(Pa::new(pa));
        let shift = slot.shift.wrapping_sub(self.shape.stride());
        let index = ia.wrapping_shr(shift) as usize & self.shape.index_mask();
        Slot {
            table,
            pa,
            level: slot.level.wrapping_add(1),
            shift,
            index,
            raw: self.mem.load(table, index),
        }
    }

    /// Walks down for `ia` until `stop`, or until something else than a
    /// table stands there.
    #[inline(always)]
    pub(crate) fn walk_to(&self, ia: u64, stop: i8) -> Slot<M::Table> {
        let shape = &self.shape;
        let mut walk = self.begin(ia);
        // `stop` is 3 at most, so what is above it may be a table.
        let mut left = i32::from(stop) - i32::from(shape.start_raw());
        while left > 0 && walk.raw & format::TYPE == format::TYPE_TABLE {
            self.down(&mut walk);
            left -= 1;
        }
        let level = i32::from(stop).wrapping_sub(left) as i8;
        Slot {
            table: walk.table,
            pa: walk.pa,
            level,
            shift: shape.shift(level),
            index: walk.index,
            raw: walk.raw,
        }
    }

    /// Starts a walk for `ia` (inside the space) at the root.
    #[inline(always)]
    pub(crate) fn begin(&self, ia: u64) -> Walk<M::Table> {
        let key = ia.rotate_right(self.shape.root_shift());
        let index = key as usize & self.shape.root_mask();
        let table = self.mem.locate(Pa::new(self.root));
        Walk {
            key,
            table,
            pa: self.root,
            index,
            raw: self.mem.load(table, index),
        }
    }

    /// Goes down into the table that the walk's entry points to.
    #[inline(always)]
    pub(crate) fn down(&self, walk: &mut Walk<M::Table>) {
        walk.pa = self.shape.decode_oa(walk.raw);
        walk.table = self.mem.locate(Pa::new(walk.pa));
        walk.key = walk.key.rotate_left(self.shape.stride());
        walk.index = walk.key as usize & self.shape.index_mask();
        walk.raw = self.mem.load(walk.table, walk.index);
    }

    /// As [`walk_to`](Self::walk_to), and remembers the way. Tables at entries of
    /// `level` and below whose span lies in `[start, end)` whole are not entered.
    #[inline]
    pub(crate) fn walk_path(&self, ia: u64, (level, start, end): (i8, u64, u64)) -> Path<M::Table> {
        let mut slot = self.root_slot(ia);
        let mut path = Path {
            slots: [slot; 5],
            depth: 0,
        };
        while format::is_table(slot.raw, slot.level)
            && !(slot.level >= level && slot.inside(ia, start, end))
        {
            slot = self.child(&slot, ia);
            path.depth += 1;
            path.slots[path.depth] = slot;
        }
        path
    }

    /// Changes the count of the table at `pa`.
    #[inline]
    pub(crate) fn add_count(&self, pa: u64, more: i32) {
        if more != 0 {
            self.mem.add_count(Pa::new(pa), more);
        }
    }

    /// Writes a live entry whatever it is, and returns what it was: hardware
    /// may mark a leaf accessed or dirty until that moment.
    pub(crate) fn exchange(&self, table: M::Table, index: usize, new: u64) -> u64 {
        let mut old = self.mem.load(table, index);
        while let Err(now) = self.mem.cas(table, index, old, new) {
            old = now;
        }
        old
    }

    /// Entries from the slot to the end of its table.
    #[inline]
    pub(crate) fn entries_left(&self, slot: &Slot<M::Table>) -> usize {
        self.shape.entries_at(slot.level) - slot.index
    }

    /// Walks down for `ia` to `level`, making the tables that are missing.
    ///
    /// An annotation on the way is copied into every entry of the table made
    /// under it, so that it goes on saying what it said. A block on the way
    /// is split if `split`, and is in the way otherwise.
    #[inline(always)]
    pub(crate) fn reach<T: Maintenance>(
        &self,
        maint: &mut T,
        changes: &mut Changes,
        ia: u64,
        level: i8,
        over: Over,
    ) -> Result<Slot<M::Table>, Error> {
        let mut slot = self.walk_to(ia, level);
        while slot.level < level {
            if !format::is_table(slot.raw, slot.level) {
                self.make_table(maint, changes, &mut slot, ia, over)?;
            }
            slot = self.child(&slot, ia);
        }
        Ok(slot)
    }

    /// Makes the empty entry of a walk, whose table has entries of `level`,
    /// point to an empty table. False when there is no page, or another CPU
    /// was faster.
    #[inline]
    pub(crate) fn make_empty_table(&self, walk: &mut Walk<M::Table>, level: i8) -> bool {
        let child = Shape::level(level.wrapping_add(1));
        let Some(page) = self.mem.alloc(child) else {
            return false;
        };
        if !self.shape.is_table_page(page.get()) {
            self.mem.free(page, child, &Synced::never_linked());
            return false;
        }
        let new = format::table(&self.shape, page.get());
        if self.mem.cas(walk.table, walk.index, 0, new).is_err() {
            self.mem.free(page, child, &Synced::never_linked());
            return false;
        }
        walk.raw = new;
        self.mem.add_count(Pa::new(walk.pa), 1);
        true
    }

    /// Makes `slot` point to a table, whoever makes it.
    #[cold]
    #[inline(never)]
    fn make_table<T: Maintenance>(
        &self,
        maint: &mut T,
        changes: &mut Changes,
        slot: &mut Slot<M::Table>,
        ia: u64,
        over: Over,
    ) -> Result<(), Error> {
        let child = Shape::level(slot.level + 1);
        let mut page = None;
        let done = loop {
            let raw = slot.raw;
            if format::is_table(raw, slot.level) {
                break Ok(());
            }
            if format::is_frozen(raw) {
                break Err(Error::Busy);
            }
            let may = if format::is_annotation(raw) {
                raw == 0 || over != Over::Nothing
            } else {
                over == Over::Anything && format::is_leaf(raw, slot.level)
            };
            if !may {
                break Err(Error::Exists {
                    level: Shape::level(slot.level),
                });
            }
            let Some(pa) = page.or_else(|| self.mem.alloc(child)) else {
                break Err(Error::NoMem);
            };
            page = Some(pa);
            if !self.shape.is_table_page(pa.get()) {
                break Err(Error::Range);
            }
            if format::is_annotation(raw) {
                self.fill_uniform(pa, raw);
                match self.link(slot, raw, pa) {
                    Ok(()) => {
                        changes.stored = true;
                        page = None;
                        break Ok(());
                    }
                    Err(now) => {
                        if raw != 0 {
                            self.fill_uniform(pa, 0);
                            self.mem.add_count(pa, -(self.mem.count(pa) as i32));
                        }
                        slot.raw = now;
                    }
                }
            } else {
                match self.split_slot(maint, slot, ia, pa) {
                    Ok(()) => page = None,
                    Err(error) => break Err(error),
                }
                break Ok(());
            }
        };
        if let Some(pa) = page {
            self.mem.free(pa, child, &Synced::never_linked());
        }
        done
    }

    /// Fills an unlinked, zeroed table with one annotation.
    pub(crate) fn fill_uniform(&self, pa: Pa, raw: u64) {
        let entries = self.shape.table_entries();
        if raw != 0 || self.mem.count(pa) != 0 {
            let table = self.mem.locate(pa);
            for index in 0..entries {
                self.mem.store(table, index, raw);
            }
            self.mem
                .add_count(pa, entries as i32 * self.counting.of(raw));
        }
    }

    /// Links a filled table over the annotation `old`.
    pub(crate) fn link(&self, slot: &mut Slot<M::Table>, old: u64, pa: Pa) -> Result<(), u64> {
        let new = format::table(&self.shape, pa.get());
        self.mem.cas(slot.table, slot.index, old, new)?;
        slot.raw = new;
        let more = 1 - self.counting.of(old);
        if more != 0 {
            self.mem.add_count(Pa::new(slot.pa), more);
        }
        Ok(())
    }

    /// Splits the leaf at `slot` into a table at `pa` (zeroed, unlinked)
    /// whose entries map the same with the same attributes.
    ///
    /// Break-before-make, unless FEAT_BBM level 2 is in use.
    pub(crate) fn split_slot<T: Maintenance>(
        &self,
        maint: &mut T,
        slot: &mut Slot<M::Table>,
        ia: u64,
        pa: Pa,
    ) -> Result<(), Error> {
        let level = slot.level;
        let new = format::table(&self.shape, pa.get());
        let base = slot.base(ia);
        let mut pending = Pending::new();
        pending.leaves(&self.shape, base, base + (1 << slot.shift), level);
        // Filled before the break, so that nothing fails and little is done
        // while the guest sees a hole. The old entry's AF and dirty state are
        // those of the moment of the break: filled again if they changed.
        let old = loop {
            if slot.raw & CONTIGUOUS != 0 {
                self.break_group(maint, slot, ia)?;
            }
            let old = slot.raw;
            if !format::is_leaf(old, level) {
                return Err(Error::Busy);
            }
            let counted = self.fill_split(pa, old, level, slot.shift);
            let broken = if self.bbm2 {
                new
            } else {
                format::freeze(old, level)
            };
            match self.mem.cas(slot.table, slot.index, old, broken) {
                Ok(()) => break old,
                Err(now) => {
                    self.mem.add_count(pa, -counted);
                    slot.raw = now;
                }
            }
        };
        if self.bbm2 {
            let _done: Synced = sync::sync(maint, &self.tlb, &pending);
        } else {
            let _done: Synced = sync::sync(maint, &self.tlb, &pending);
            self.mem.store(slot.table, slot.index, new);
            sync::publish(maint, &self.tlb);
        }
        slot.raw = new;
        let more = 1 - self.counting.of(old);
        if more != 0 {
            self.mem.add_count(Pa::new(slot.pa), more);
        }
        Ok(())
    }

    /// Fills the table at `pa` with the parts of a leaf of `level`. Returns
    /// its count.
    pub(crate) fn fill_split(&self, pa: Pa, old: u64, level: i8, shift: u32) -> i32 {
        let shape = &self.shape;
        let entries = shape.table_entries();
        let table = self.mem.locate(pa);
        let child_shift = shift - shape.stride();
        let attrs = format::leaf_attr_bits(shape, old) & !format::NT;
        let mut raw = attrs
            | format::leaf_type(level + 1)
            | shape.encode_oa(format::leaf_oa(shape, old, level));
        let step = 1u64 << child_shift;
        // An entry's span never crosses the address where high bits change:
        // both are powers of two and the span is the smaller.
        for index in 0..entries {
            self.mem.store(table, index, raw);
            raw = raw.wrapping_add(step);
        }
        let counted = entries as i32 * self.counting.of(old);
        if counted != 0 {
            self.mem.add_count(pa, counted);
        }
        counted
    }

    /// Takes the hint off a group of leaves. Nobody sets it here.
    ///
    /// # Errors
    /// Always: it is not this crate's.
    #[cfg(not(feature = "extra"))]
    pub(crate) fn break_group<T: Maintenance>(
        &self,
        _: &mut T,
        slot: &mut Slot<M::Table>,
        _: u64,
    ) -> Result<(), Error> {
        let level = Shape::level(slot.level);
        Err(Error::Mismatch { level })
    }

    /// Invalidates the whole regime (VMID, or EL2) and waits for it.
    pub(crate) fn sync_all<T: Maintenance>(&self, maint: &mut T) -> Synced {
        sync::sync_vmid(maint, &self.tlb)
    }

    /// Makes an operation's changes visible: by one invalidation, or by a
    /// barrier when only invalid entries became valid.
    #[inline]
    pub(crate) fn finish<T: Maintenance>(&self, maint: &mut T, changes: &Changes) -> Synced {
        match &changes.pending {
            Some(pending) if !pending.is_empty() => sync::sync(maint, &self.tlb, pending),
            _ => {
                if changes.stored {
                    sync::publish(maint, &self.tlb);
                }
                Synced::never_linked()
            }
        }
    }
}

/// What a mapping may be put in place of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Over {
    /// Empty entries only.
    Nothing,
    /// Invalid entries: annotations are overwritten, and copied into tables
    /// that have to be made under them.
    Invalid,
    /// Anything: other leaves are replaced, blocks above split, and tables
    /// below collapsed (the last needs exclusive access).
    Anything,
}

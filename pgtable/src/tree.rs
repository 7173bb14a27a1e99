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

use crate::addr::{Extent, Ia, Level, Pa};
use crate::config::{Features, Format};
use crate::counting::Counting;
use crate::desc::{Desc, Kind};
use crate::error::Error;
use crate::mem::TableMem;
use crate::plan::{Regime, Tlb};
use crate::shape::{Shape, bytes};
use crate::sync::Synced;

/// A place in the tree: an entry, and what was read there.
#[derive(Clone, Copy)]
pub(crate) struct Slot<T> {
    pub(crate) table: T,
    /// The table's address.
    pub(crate) pa: Pa,
    pub(crate) level: Level,
    /// log2 of the entry's span.
    pub(crate) shift: u32,
    pub(crate) index: usize,
    /// The first address that the entry covers.
    pub(crate) ia: Ia,
    pub(crate) desc: Desc,
}

impl<T: Copy> Slot<T> {
    /// Bytes that the entry covers.
    #[inline]
    pub(crate) const fn size(&self) -> u64 {
        bytes(self.shift)
    }

    /// What the entry covers.
    #[inline]
    pub(crate) const fn extent(&self) -> Extent {
        Extent::new(self.ia, self.size())
    }

    /// One past the last address that the entry covers.
    #[inline]
    pub(crate) const fn end(&self) -> Ia {
        self.ia.plus(self.size())
    }

    /// The entry `more` further on in its table, of which `desc` was read.
    #[inline]
    pub(crate) const fn after(&self, more: usize, desc: Desc) -> Self {
        Self {
            index: self.index.wrapping_add(more),
            ia: self.ia.plus((more as u64).wrapping_shl(self.shift)),
            desc,
            ..*self
        }
    }

    #[inline]
    pub(crate) const fn kind(&self, shape: &Shape) -> Kind {
        self.desc.kind(self.level, shape)
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
    pub(crate) pa: Pa,
    pub(crate) index: usize,
    pub(crate) desc: Desc,
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
        self.depth = self.depth.checked_sub(1)?;
        Some(self.last())
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

/// A tree of tables of any regime. The public faces are
/// [`Stage2`](crate::Stage2) and [`El2Map`](crate::El2Map).
#[derive(Debug)]
pub(crate) struct Core<M> {
    pub(crate) mem: M,
    pub(crate) shape: Shape,
    pub(crate) root: Pa,
    pub(crate) tlb: Tlb,
    pub(crate) counting: Counting,
    pub(crate) features: Features,
}

impl<M: TableMem> Core<M> {
    pub(crate) fn new(mem: M, root: Pa, regime: Regime, format: &Format) -> Self {
        Self {
            mem,
            shape: format.shape,
            root,
            tlb: Tlb::new(regime, format),
            counting: Counting::NON_ZERO,
            features: format.features,
        }
    }

    #[inline(always)]
    pub(crate) fn load(&self, table: M::Table, index: usize) -> Desc {
        Desc::new(self.mem.load(table, index))
    }

    #[inline(always)]
    pub(crate) fn store(&self, table: M::Table, index: usize, desc: Desc) {
        self.mem.store(table, index, desc.raw());
    }

    /// Writes `new` where `old` stands. `Err` is what stands there instead.
    #[inline(always)]
    pub(crate) fn cas(
        &self,
        table: M::Table,
        index: usize,
        old: Desc,
        new: Desc,
    ) -> Result<(), Desc> {
        let done = self.mem.cas(table, index, old.raw(), new.raw());
        done.map_err(Desc::new)
    }

    /// Writes an entry that nobody else may write.
    #[inline]
    pub(crate) fn put(&self, slot: &Slot<M::Table>, desc: Desc) {
        self.store(slot.table, slot.index, desc);
    }

    /// Writes `new` if the entry is what it was. False: look again.
    #[inline]
    pub(crate) fn swap(&self, slot: &Slot<M::Table>, new: Desc) -> bool {
        self.cas(slot.table, slot.index, slot.desc, new).is_ok()
    }

    /// Writes a live entry whatever it is, and returns what it was: hardware
    /// may mark a leaf accessed or dirty until that moment.
    pub(crate) fn exchange(&self, slot: &Slot<M::Table>, new: Desc) -> Desc {
        let mut old = slot.desc;
        while let Err(now) = self.cas(slot.table, slot.index, old, new) {
            old = now;
        }
        old
    }

    /// Freezes an entry as long as `when` says so of it. False where it does not.
    pub(crate) fn freeze_live(&self, slot: &Slot<M::Table>, when: impl Fn(Desc) -> bool) -> bool {
        let mut desc = slot.desc;
        while when(desc) {
            let frozen = desc.freeze(slot.level);
            match self.cas(slot.table, slot.index, desc, frozen) {
                Ok(()) => return true,
                Err(now) => desc = now,
            }
        }
        false
    }

    /// The slot of `index` and `ia` in the table at `pa`.
    #[inline(always)]
    fn slot(&self, pa: Pa, level: Level, shift: u32, (index, ia): (usize, Ia)) -> Slot<M::Table> {
        let table = self.mem.locate(pa);
        Slot {
            table,
            pa,
            level,
            shift,
            index,
            ia: ia.floor(bytes(shift)),
            desc: self.load(table, index),
        }
    }

    /// The slot for `ia` (inside the space) in the root.
    #[inline(always)]
    pub(crate) fn root_slot(&self, ia: Ia) -> Slot<M::Table> {
        let shift = self.shape.root_shift();
        self.slot(
            self.root,
            self.shape.start(),
            shift,
            (self.shape.root_index(ia), ia),
        )
    }

    /// The slot for `ia` in the table that `slot` points to.
    #[inline(always)]
    pub(crate) fn child(&self, slot: &Slot<M::Table>, ia: Ia) -> Slot<M::Table> {
        let pa = self.shape.decode_oa(slot.desc);
        let shift = slot.shift.wrapping_sub(self.shape.stride());
        let index = ia.get().wrapping_shr(shift) as usize & self.shape.index_mask();
        self.slot(pa, slot.level.down(), shift, (index, ia))
    }

    /// Walks down for `ia` until `stop`, or until something else than a
    /// table stands there.
    #[inline(always)]
    pub(crate) fn walk_to(&self, ia: Ia, stop: Level) -> Slot<M::Table> {
        let mut walk = self.begin(ia);
        // `stop` is 3 at most, so what is above it may be a table.
        let mut left = stop.below(self.shape.start());
        while left > 0 && walk.desc.points_down() {
            self.down(&mut walk);
            left -= 1;
        }
        let level = stop.above(left);
        let shift = self.shape.shift(level);
        Slot {
            table: walk.table,
            pa: walk.pa,
            level,
            shift,
            index: walk.index,
            ia: ia.floor(bytes(shift)),
            desc: walk.desc,
        }
    }

    /// Starts a walk for `ia` (inside the space) at the root.
    #[inline(always)]
    pub(crate) fn begin(&self, ia: Ia) -> Walk<M::Table> {
        let key = ia.get().rotate_right(self.shape.root_shift());
        let index = key as usize & self.shape.root_mask();
        let table = self.mem.locate(self.root);
        Walk {
            key,
            table,
            pa: self.root,
            index,
            desc: self.load(table, index),
        }
    }

    /// Goes down into the table that the walk's entry points to.
    #[inline(always)]
    pub(crate) fn down(&self, walk: &mut Walk<M::Table>) {
        walk.pa = self.shape.decode_oa(walk.desc);
        walk.table = self.mem.locate(walk.pa);
        walk.key = walk.key.rotate_left(self.shape.stride());
        walk.index = walk.key as usize & self.shape.index_mask();
        walk.desc = self.load(walk.table, walk.index);
    }

    /// As [`walk_to`](Self::walk_to), and remembers the way. Tables at entries of
    /// `whole` and below that `within` covers are not entered.
    #[inline]
    pub(crate) fn walk_path(&self, ia: Ia, whole: Level, within: Extent) -> Path<M::Table> {
        let mut slot = self.root_slot(ia);
        let mut path = Path {
            slots: [slot; 5],
            depth: 0,
        };
        while slot.desc.is_table(slot.level)
            && !(slot.level >= whole && within.covers(slot.extent()))
        {
            slot = self.child(&slot, ia);
            path.depth += 1;
            path.slots[path.depth] = slot;
        }
        path
    }

    /// Changes the count of the table at `pa`.
    #[inline]
    pub(crate) fn add_count(&self, pa: Pa, more: i32) {
        if more != 0 {
            self.mem.add_count(pa, more);
        }
    }

    /// Entries from the slot to the end of its table.
    #[inline]
    pub(crate) fn entries_left(&self, slot: &Slot<M::Table>) -> usize {
        self.shape.entries(slot.level) - slot.index
    }

    /// A page for a table of `level`, as somebody gave it.
    pub(crate) fn page(&self, given: Option<Pa>, level: Level) -> Result<Pa, Error> {
        let page = given.ok_or(Error::NoMem)?;
        if self.shape.is_table_page(page) {
            return Ok(page);
        }
        self.mem.free(page, level, &Synced::never_linked());
        Err(Error::Range)
    }

    /// Fills an unlinked, zeroed table with one annotation.
    pub(crate) fn fill_uniform(&self, pa: Pa, desc: Desc) {
        if desc != Desc::EMPTY {
            self.fill_row(pa, desc, 0);
        }
    }

    /// Fills an unlinked table with entries whose outputs are `step` apart. Returns
    /// its count.
    pub(crate) fn fill_row(&self, pa: Pa, first: Desc, step: u64) -> i32 {
        let table = self.mem.locate(pa);
        let entries = self.shape.table_entries();
        let mut desc = first;
        for index in 0..entries {
            self.store(table, index, desc);
            desc = desc.plus(step);
        }
        let counted = entries as i32 * self.counting.of(first);
        self.add_count(pa, counted);
        counted
    }

    /// Fills the table at `pa` with the parts of a leaf. Returns its count.
    pub(crate) fn fill_split(&self, pa: Pa, leaf: &Slot<M::Table>) -> i32 {
        let (shape, level) = (&self.shape, leaf.level);
        let attrs = leaf.desc.leaf_attrs(shape);
        // An entry's span never crosses the address where high bits change:
        // both are powers of two and the span is the smaller.
        let first = attrs.leaf(shape, leaf.desc.leaf_pa(shape, level), level.down());
        self.fill_row(pa, first, bytes(leaf.shift - shape.stride()))
    }

    /// Makes the entry of `slot` point to the filled table at `pa`. `Err` is what
    /// stands there instead.
    pub(crate) fn link(&self, slot: &mut Slot<M::Table>, pa: Pa) -> Result<(), Desc> {
        let new = Desc::table(&self.shape, pa);
        self.cas(slot.table, slot.index, slot.desc, new)?;
        self.add_count(slot.pa, 1 - self.counting.of(slot.desc));
        slot.desc = new;
        Ok(())
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
    ///
    /// Memory that stays where it was and gets another memory type is not cleaned behind
    /// its break: nobody may use it meanwhile, and who changes the type flushes it before
    /// (DDI0487, B2.15, mismatched attributes). A subtree that is linked over a leaf
    /// tells nobody of what was there, and cleans nothing.
    Anything,
}

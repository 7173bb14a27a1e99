//! Realm translation tables: the RTT operations of RMI 1.0 on the same tree.
//!
//! The host supplies each table's page, so nothing here allocates. Entries
//! are those of TF-RMM (lib/s2tt), for any granule:
//!
//! | entry | bits |
//! |---|---|
//! | HIPAS of an invalid entry | \[4:2\]: 0 unassigned, 1 assigned |
//! | RIPAS of an invalid entry | \[6:5\]: 0 empty, 1 RAM, 2 destroyed |
//! | unprotected | bit 55, of invalid entries and leaves |
//! | output of an assigned invalid entry | where a descriptor has it |
//!
//! A table's count is RMM's reference count: child tables, protected leaves,
//! and assigned invalid entries. Unprotected leaves do not count, so a table
//! of them can be destroyed at once; whoever counts references to their
//! memory is told of each.
//!
//! All operations take `&mut self`: the realm's lock is held.

mod data;
mod ripas;
mod table;
#[cfg(test)]
mod tests;
mod unprotected;

use crate::addr::{Ipa, Level, Pa, Vmid};
use crate::attrs::Attrs;
use crate::config_error::ConfigError;
use crate::error::{Budget, Error};
use crate::format;
use crate::geometry::Geometry;
use crate::maintenance::{CacheOp, Maintenance, Stage2Regs};
use crate::mem::TableMem;
use crate::plan::Pending;
use crate::shape::Shape;
use crate::sink::{LeafSink, RemovedLeaf};
use crate::stage2::Stage2;
use crate::sync;
use crate::tree::{Counting, Slot};

const HIPAS_ASSIGNED: u64 = 1 << 2;
const RIPAS_SHIFT: u32 = 5;
const RIPAS: u64 = 0b11 << RIPAS_SHIFT;
const UNPROTECTED: u64 = 1 << 55;

/// Realm IPA state: what a realm was told of a protected IPA.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Ripas {
    /// Nothing: an access is an abort in the realm.
    Empty,
    /// Memory.
    Ram,
    /// Memory that the host has taken away.
    Destroyed,
}

impl Ripas {
    const fn bits(self) -> u64 {
        (self as u64) << RIPAS_SHIFT
    }

    const fn of(raw: u64) -> Self {
        match (raw & RIPAS) >> RIPAS_SHIFT {
            0 => Self::Empty,
            1 => Self::Ram,
            _ => Self::Destroyed,
        }
    }
}

/// Whether a change of RIPAS includes destroyed memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChangeDestroyed {
    /// Destroyed memory stays destroyed: the change stops there.
    No,
    /// Destroyed memory changes too.
    Yes,
}

/// What a new data granule's RIPAS is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fill {
    /// The content is known: RAM, whatever it was.
    Known,
    /// The content is unknown: as it was.
    Unknown,
}

/// Why an RTT operation changed nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RttError {
    /// RMI_ERROR_INPUT: level, alignment, or half of the IPA space; a tree that
    /// is being retired.
    Input,
    /// RMI_ERROR_RTT with this index.
    Rtt {
        /// The level that the walk reached, or as the command states it.
        level: Level,
        /// RMI's `top`: where there may be something again.
        top: Ipa,
    },
    /// The budget ended while the host's memory was released leaf by leaf: the
    /// same call goes on.
    Again,
}

impl core::fmt::Display for RttError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Input => f.write_str("level, alignment or IPA not valid for this realm"),
            Self::Rtt { level, top } => write!(f, "RTT entry at {level} (top {top})"),
            Self::Again => f.write_str("budget spent: call again to go on"),
        }
    }
}

impl core::error::Error for RttError {}

/// What stands in an RTT entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RttState {
    /// Nothing, in the protected half.
    Unassigned(Ripas),
    /// A data granule or block.
    Assigned {
        /// Its RIPAS: only RAM is mapped.
        ripas: Ripas,
        /// Its address.
        pa: Pa,
    },
    /// Nothing, in the unprotected half.
    UnassignedNs,
    /// The host's memory.
    AssignedNs {
        /// Its address.
        pa: Pa,
        /// How it is mapped.
        attrs: Attrs,
    },
    /// The next table.
    Table(Pa),
}

/// An RTT entry as read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RttEntry {
    /// The level that the walk reached.
    pub level: Level,
    /// What stands there.
    pub state: RttState,
    /// The descriptor.
    pub raw: u64,
}

/// Something taken out of the tree, and where to go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Removed {
    /// The table's or the data's address. Its content is untouched.
    pub pa: Pa,
    /// RMI's `top`.
    pub top: Ipa,
}

/// The stage 2 of a realm, or of a plain guest (all of it unprotected).
#[derive(Debug)]
pub struct Rtt<M: TableMem> {
    tree: Stage2<M>,
    protected_end: u64,
    /// Attribute bits of a protected leaf.
    data: u64,
    /// Set once it is being retired.
    end: Option<End>,
}

impl<M: TableMem> Rtt<M> {
    /// Takes charge of a root (as [`Stage2::new`]). IPAs below
    /// `protected_end`, a multiple of a root entry's span, are protected.
    ///
    /// Without FEAT_S2FWB leaves are of 2 MiB at most, whatever the geometry
    /// has: 4K has blocks of level 2, 16K and 64K have pages.
    ///
    /// # Errors
    /// As [`Stage2::new`].
    pub fn new(
        geometry: Geometry,
        root: Pa,
        vmid: Vmid,
        mem: M,
        protected_end: Ipa,
    ) -> Result<Self, ConfigError> {
        let geometry = geometry.cleaned();
        let counting = Counting::rtt(UNPROTECTED, HIPAS_ASSIGNED);
        let tree = Stage2::new(geometry, root, vmid, mem)?.counting(counting);
        let data = geometry.encode_attrs(Attrs::MEMORY).unwrap_or_default();
        let rtt = Self {
            tree,
            protected_end: protected_end.get(),
            data,
            end: None,
        };
        let shape = geometry.shape();
        let first = protected_end.get().min(shape.ia_end()) >> shape.root_shift();
        let table = rtt.tree.core.mem.locate(root);
        for index in first as usize..shape.root_entries() {
            rtt.tree.core.mem.store(table, index, UNPROTECTED);
        }
        Ok(rtt)
    }

    /// The geometry.
    pub const fn geometry(&self) -> &Geometry {
        self.tree.geometry()
    }

    /// `VTCR_EL2` and `VTTBR_EL2` while the realm runs.
    pub const fn regs(&self) -> Stage2Regs {
        self.tree.regs()
    }

    /// The first root table.
    pub const fn root(&self) -> Pa {
        self.tree.root()
    }

    /// Translates one IPA as hardware would, permissions apart.
    pub fn translate(&self, ipa: Ipa) -> Option<(Pa, Attrs)> {
        self.tree.translate(ipa)
    }

    /// True when `ipa` is in the protected half.
    pub const fn is_protected(&self, ipa: Ipa) -> bool {
        ipa.get() < self.protected_end
    }

    /// `top` of RMI: `ipa` itself if its entry is live, else the first live
    /// entry after it in the same table, else that table's end.
    pub(in crate::rtt) fn top(&self, slot: &Slot<M::Table>, ipa: u64) -> Ipa {
        let core = &self.tree.core;
        if live(core.mem.load(slot.table, slot.index)) {
            return Ipa::new(ipa);
        }
        // Of concatenated roots each is a table of its own.
        let mask = core.shape.index_mask();
        let end = ((slot.index | mask) + 1).min(core.shape.entries_at(slot.level));
        let mut at = slot.base(ipa);
        let mut index = slot.index;
        loop {
            index += 1;
            at += 1 << slot.shift;
            if index == end || live(core.mem.load(slot.table, index)) {
                return Ipa::new(at);
            }
        }
    }

    pub(in crate::rtt) fn fault(&self, slot: &Slot<M::Table>, ipa: u64) -> RttError {
        RttError::Rtt {
            level: Shape::level(slot.level),
            top: self.top(slot, ipa),
        }
    }

    /// What every command that changes entries asks of its IPA.
    pub(in crate::rtt) fn check(&self, ipa: Ipa, aligned_to: Level) -> Result<(), RttError> {
        match self.end {
            None => self.inside(ipa, aligned_to),
            Some(_) => Err(RttError::Input),
        }
    }

    fn inside(&self, ipa: Ipa, aligned_to: Level) -> Result<(), RttError> {
        let shape = &self.tree.core.shape;
        // Above the start there may be no level at all: its span would be nothing.
        if aligned_to < shape.start()
            || ipa.get() >= shape.ia_end()
            || ipa.get() & (shape.span(aligned_to) - 1) != 0
        {
            return Err(RttError::Input);
        }
        Ok(())
    }

    pub(in crate::rtt) fn check_page(&self, pa: Pa, span: u64) -> Result<(), RttError> {
        match self.tree.core.shape.check_oa(pa.get(), span) {
            Ok(()) if pa.get() & (span - 1) == 0 => Ok(()),
            _ => Err(RttError::Input),
        }
    }

    /// RTT_READ_ENTRY: what stands at `ipa`, going down to `level`.
    ///
    /// # Errors
    /// `Input`.
    pub fn read(&self, ipa: Ipa, level: Level) -> Result<RttEntry, RttError> {
        if level < self.tree.core.shape.start() {
            return Err(RttError::Input);
        }
        self.inside(ipa, level)?;
        let slot = self.tree.core.walk_to(ipa.get(), level.get());
        Ok(RttEntry {
            level: Shape::level(slot.level),
            state: self.state(slot.raw, slot.level),
            raw: slot.raw,
        })
    }

    /// As [`read`](Self::read) down to level 3 for any address, aligned or
    /// not: what a fault there means.
    ///
    /// # Errors
    /// `Input` outside the space.
    pub fn find(&self, ipa: Ipa) -> Result<RttEntry, RttError> {
        let page = self.tree.core.shape.page_bits();
        self.read(Ipa::new(ipa.get() >> page << page), Level::L3)
    }

    pub(in crate::rtt) fn state(&self, raw: u64, level: i8) -> RttState {
        let shape = &self.tree.core.shape;
        // Only what a realm's end has cut is frozen when nobody is at work.
        let raw = if format::is_frozen(raw) {
            format::thaw(raw, level)
        } else {
            raw
        };
        if format::is_table(raw, level) {
            return RttState::Table(Pa::new(shape.decode_oa(raw)));
        }
        let pa = Pa::new(format::leaf_oa(shape, raw, level));
        match (format::is_leaf(raw, level), raw & UNPROTECTED != 0) {
            (true, true) => RttState::AssignedNs {
                pa,
                attrs: self.tree.geometry.decode_attrs(raw),
            },
            (true, false) => RttState::Assigned {
                ripas: Ripas::Ram,
                pa,
            },
            (false, true) => RttState::UnassignedNs,
            (false, false) if raw & HIPAS_ASSIGNED != 0 => RttState::Assigned {
                ripas: Ripas::of(raw),
                pa,
            },
            (false, false) => RttState::Unassigned(Ripas::of(raw)),
        }
    }

    /// Invalidates the leaf that stood at `slot`.
    pub(in crate::rtt) fn forget<T: Maintenance>(
        &self,
        maint: &mut T,
        slot: &Slot<M::Table>,
        ipa: u64,
    ) {
        let core = &self.tree.core;
        let base = slot.base(ipa);
        let mut pending = Pending::new();
        pending.leaves(&core.shape, base, base + (1 << slot.shift), slot.level);
        let _done = sync::sync(maint, &core.tlb, &pending);
    }

    /// Cleans, tells and blanks an entry that is frozen and that no TLB knows
    /// any more. A leaf of the host's that a guest may have written past the
    /// caches is of 2 MiB at most.
    pub(in crate::rtt) fn release_leaf<T: Maintenance, S: LeafSink>(
        &self,
        maint: &mut T,
        sink: &mut S,
        entry: &Released<M::Table>,
        budget: &mut Budget,
    ) {
        let core = &self.tree.core;
        let &Released {
            table,
            index,
            level,
            base,
        } = entry;
        let raw = core.mem.load(table, index);
        if format::is_frozen(raw) {
            let raw = format::thaw(raw, level);
            let size = core.shape.span_at(level);
            let leaf = RemovedLeaf::new(&core.shape, base + index as u64 * size, level, raw);
            if !core.fwb && format::is_seen_uncached(raw, false) {
                let pa = leaf.pa();
                maint.cache(CacheOp::CleanInvalidateData { pa, size });
                budget.spend_bytes(size);
            }
            sink.leaf(leaf);
            core.mem.store(table, index, UNPROTECTED);
        }
        budget.spend(1);
    }

    /// True when a root table still holds counted entries: the realm cannot
    /// be destroyed.
    pub fn is_live(&self) -> bool {
        self.tree.core.mem.count(self.tree.root()) != 0
    }

    /// The end of the tree: cuts what the root maps, invalidates the VMID on
    /// all CPUs once, cleans the host's blocks that were cut if there is no
    /// FWB, and tells `sink` of them. Each entry of the root costs a unit of
    /// the budget when it is cut and when it is released. Returns the first
    /// IPA not done: call again until it is the end of the space. The root's
    /// pages and the VMID are free then, and not before. From the first call
    /// on, commands that change entries answer `Input`.
    ///
    /// # Errors
    /// [`InUse`](Error::InUse) while [`is_live`](Self::is_live).
    pub fn retire<T: Maintenance, S: LeafSink>(
        &mut self,
        maint: &mut T,
        sink: &mut S,
        budget: &mut Budget,
    ) -> Result<Ipa, Error> {
        let shape = self.tree.core.shape;
        if self.is_live() {
            let level = shape.start();
            return Err(Error::InUse { level });
        }
        let entries = shape.root_entries();
        let end = match self.end.unwrap_or(End::Cut(0)) {
            End::Cut(from) => self.cut_root(maint, from, budget),
            released => released,
        };
        let end = match end {
            End::Released(from) => End::Released(self.release_root(maint, sink, from, budget)),
            cut => cut,
        };
        self.end = Some(end);
        Ok(Ipa::new(match end {
            End::Cut(_) => 0,
            End::Released(to) if to == entries => shape.ia_end(),
            End::Released(to) => (to as u64) << shape.root_shift(),
        }))
    }

    /// Freezes what the root maps, from entry `from` on, so that nothing can
    /// refill a TLB; when all is, invalidates the VMID.
    fn cut_root<T: Maintenance>(&self, maint: &mut T, from: usize, budget: &mut Budget) -> End {
        let core = &self.tree.core;
        let table = core.mem.locate(self.tree.root());
        let level = core.shape.start().get();
        for index in from..core.shape.root_entries() {
            if index > from && budget.is_spent() {
                return End::Cut(index);
            }
            let mut raw = core.mem.load(table, index);
            while raw & format::VALID != 0 {
                match core.mem.cas(table, index, raw, format::freeze(raw, level)) {
                    Ok(()) => break,
                    Err(now) => raw = now,
                }
            }
            budget.spend(1);
        }
        let _done = core.sync_all(maint);
        End::Released(0)
    }

    /// Cleans, tells and blanks what was cut, from entry `from` on. Returns
    /// how far it came.
    fn release_root<T: Maintenance, S: LeafSink>(
        &self,
        maint: &mut T,
        sink: &mut S,
        from: usize,
        budget: &mut Budget,
    ) -> usize {
        let core = &self.tree.core;
        let root = self.tree.root();
        let level = core.shape.start().get();
        for index in from..core.shape.root_entries() {
            if index > from && budget.is_spent() {
                return index;
            }
            let entry = Released {
                table: core.mem.locate(root),
                index,
                level,
                base: 0,
            };
            self.release_leaf(maint, sink, &entry, budget);
        }
        core.shape.root_entries()
    }
}

/// How far the end of a tree has come.
#[derive(Clone, Copy, Debug)]
enum End {
    /// The root's entries before this one are cut.
    Cut(usize),
    /// All are, and no TLB knows them; those before this one are released.
    Released(usize),
}

/// An entry of a table that no TLB knows any more, or is to.
#[derive(Clone, Copy)]
struct Released<T> {
    table: T,
    index: usize,
    level: i8,
    /// The first IPA of the table.
    base: u64,
}

/// RMM's `live`: the entry has an address.
fn live(raw: u64) -> bool {
    raw & format::TYPE != 0 || raw & HIPAS_ASSIGNED != 0
}

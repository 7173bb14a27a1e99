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
mod unprotected;

pub use data::{DataRun, RemovedData};
pub use ripas::ChangeDestroyed;
pub use unprotected::HostPages;

use crate::addr::{Ipa, Level, Pa, Vmid};
use crate::attrs::Attrs;
use crate::config_error::ConfigError;
use crate::counting::Counting;
use crate::desc::{Desc, Kind};
use crate::error::{Budget, Error};
use crate::geometry::Geometry;
use crate::maintenance::{CacheOp, Maintenance, Stage2Regs};
use crate::mem::TableMem;
use crate::sink::{LeafSink, RemovedLeaf};
use crate::stage2::Stage2;
use crate::tree::Slot;
use crate::work::Work;

const HIPAS_ASSIGNED: u64 = 1 << 2;
const RIPAS_SHIFT: u32 = 5;
const RIPAS: u64 = 0b11 << RIPAS_SHIFT;
const UNPROTECTED: u64 = 1 << 55;

/// An entry of the unprotected half that maps nothing.
const UNASSIGNED_NS: Desc = Desc::new(UNPROTECTED);

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
    /// An unassigned entry that says it.
    pub(crate) const fn unassigned(self) -> Desc {
        Desc::new((self as u64) << RIPAS_SHIFT)
    }

    pub(crate) const fn of(desc: Desc) -> Self {
        match (desc.raw() & RIPAS) >> RIPAS_SHIFT {
            0 => Self::Empty,
            1 => Self::Ram,
            _ => Self::Destroyed,
        }
    }
}

impl Ripas {
    /// That of an address whose memory is taken away.
    const fn removed(self) -> Self {
        match self {
            Self::Empty => Self::Empty,
            Self::Ram | Self::Destroyed => Self::Destroyed,
        }
    }
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

/// A table, as RMI's commands name it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RttAt {
    /// The first IPA that it translates.
    pub ipa: Ipa,
    /// That of its entries: one more than that of the entry it hangs at.
    pub level: Level,
}

impl RttAt {
    /// The table of `level` at `ipa`.
    pub const fn new(ipa: Ipa, level: Level) -> Self {
        Self { ipa, level }
    }
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
    pub(crate) tree: Stage2<M>,
    pub(crate) protected_end: Ipa,
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
        let rtt = Self {
            tree,
            protected_end,
            end: None,
        };
        let core = &rtt.tree.core;
        let end = core.shape.space().end.min(protected_end.into());
        let table = core.mem.locate(root);
        for index in core.shape.root_index(end)..core.shape.root_entries() {
            core.store(table, index, UNASSIGNED_NS);
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

    /// True when `ipa` is in the protected half.
    pub fn is_protected(&self, ipa: Ipa) -> bool {
        ipa < self.protected_end
    }

    /// One past the last entry of the table of `slot`: of concatenated roots each
    /// is a table of its own.
    pub(crate) fn table_end(&self, slot: &Slot<M::Table>) -> usize {
        let shape = &self.tree.core.shape;
        ((slot.index | shape.index_mask()) + 1).min(shape.entries(slot.level))
    }

    /// `top` of RMI: `ipa` itself if its entry is live, else the first live
    /// entry after it in the same table, else that table's end.
    pub(crate) fn top(&self, slot: &Slot<M::Table>, ipa: Ipa) -> Ipa {
        let core = &self.tree.core;
        let dead = (slot.index..self.table_end(slot))
            .take_while(|&index| !live(core.load(slot.table, index)))
            .count();
        if dead == 0 {
            return ipa;
        }
        slot.after(dead, slot.desc).ia.into()
    }

    pub(crate) fn fault(&self, slot: &Slot<M::Table>, ipa: Ipa) -> RttError {
        RttError::Rtt {
            level: slot.level,
            top: self.top(slot, ipa),
        }
    }

    /// What every command that changes entries asks of its IPA.
    pub(crate) fn check(&self, ipa: Ipa, aligned_to: Level) -> Result<(), RttError> {
        match self.end {
            None => self.inside(ipa, aligned_to),
            Some(_) => Err(RttError::Input),
        }
    }

    fn inside(&self, ipa: Ipa, aligned_to: Level) -> Result<(), RttError> {
        let shape = &self.tree.core.shape;
        // Above the start there may be no level at all: its span would be nothing.
        if aligned_to < shape.start()
            || !shape.has(ipa.into())
            || ipa.get() & (shape.span(aligned_to) - 1) != 0
        {
            return Err(RttError::Input);
        }
        Ok(())
    }

    pub(crate) fn check_page(&self, pa: Pa, span: u64) -> Result<(), RttError> {
        match self.tree.core.shape.check_oa(pa, span) {
            Ok(()) if pa.get() & (span - 1) == 0 => Ok(()),
            _ => Err(RttError::Input),
        }
    }

    /// RTT_READ_ENTRY: what stands at `ipa`, going down to `level`.
    ///
    /// # Errors
    /// `Input`.
    pub fn read(&self, ipa: Ipa, level: Level) -> Result<RttEntry, RttError> {
        self.inside(ipa, level)?;
        let slot = self.tree.core.walk_to(ipa.into(), level);
        Ok(RttEntry {
            level: slot.level,
            state: self.state(&slot),
            raw: slot.desc.raw(),
        })
    }

    /// As [`read`](Self::read) down to level 3 for any address, aligned or
    /// not: what a fault there means.
    ///
    /// # Errors
    /// `Input` outside the space.
    pub fn find(&self, ipa: Ipa) -> Result<RttEntry, RttError> {
        let page = self.tree.core.shape.span(Level::L3);
        self.read(ipa.floor(page), Level::L3)
    }

    pub(crate) fn state(&self, slot: &Slot<M::Table>) -> RttState {
        let shape = &self.tree.core.shape;
        let (desc, level) = (slot.desc, slot.level);
        match desc.kind(level, shape) {
            // Only what a realm's end has cut is frozen when nobody is at work.
            Kind::Table(pa) | Kind::FrozenTable(pa) => RttState::Table(pa),
            Kind::FrozenLeaf(leaf) => self.state_of_leaf(leaf, level),
            Kind::Leaf => self.state_of_leaf(desc, level),
            _ if desc.has(UNPROTECTED) => RttState::UnassignedNs,
            _ if desc.has(HIPAS_ASSIGNED) => RttState::Assigned {
                ripas: Ripas::of(desc),
                pa: desc.leaf_pa(shape, level),
            },
            _ => RttState::Unassigned(Ripas::of(desc)),
        }
    }

    fn state_of_leaf(&self, leaf: Desc, level: Level) -> RttState {
        let pa = leaf.leaf_pa(&self.tree.core.shape, level);
        if leaf.has(UNPROTECTED) {
            let attrs = self.tree.geometry.decode_attrs(leaf);
            RttState::AssignedNs { pa, attrs }
        } else {
            let ripas = Ripas::Ram;
            RttState::Assigned { ripas, pa }
        }
    }

    /// Cleans, tells and blanks an entry that is frozen and that no TLB knows
    /// any more. A leaf of the host's that a guest may have written past the
    /// caches is of 2 MiB at most.
    fn release_leaf<T: Maintenance, S: LeafSink>(
        &self,
        maint: &mut T,
        sink: &mut S,
        entry: &Slot<M::Table>,
        budget: &mut Budget,
    ) {
        let core = &self.tree.core;
        let now = core.load(entry.table, entry.index);
        budget.spend(1);
        if let Kind::FrozenLeaf(leaf) = now.kind(entry.level, &core.shape) {
            let leaf = RemovedLeaf::new(&core.shape, entry.ia, entry.level, leaf);
            budget.spend_bytes(core.work(maint).clean_removed(&leaf));
            budget.spend(core.shape.blocks(entry.level).saturating_sub(1));
            sink.leaf(leaf);
            core.put(entry, UNASSIGNED_NS);
        }
    }

    /// True when a root table still holds counted entries: the realm cannot
    /// be destroyed.
    pub fn is_live(&self) -> bool {
        self.tree.core.mem.count(self.tree.root()) != 0
    }

    /// The end of the tree: cuts what the root maps, invalidates the VMID on
    /// all CPUs once, cleans the host's blocks that were cut if there is no
    /// FWB, and tells `sink` of them. Each entry of the root costs a unit of
    /// the budget when it is cut and when it is released, one of level 1 as many
    /// as it has blocks of level 2. Returns the first
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
        let end = match self.end.unwrap_or(End::Cut(0)) {
            End::Cut(from) => self.cut_root(maint, from, budget),
            released => released,
        };
        let end = match end {
            End::Released(from) => End::Released(self.release_root(maint, sink, from, budget)),
            cut => cut,
        };
        self.end = Some(end);
        Ok(match end {
            End::Cut(_) => Ipa::new(0),
            End::Released(to) => shape.root_ia(to).into(),
        })
    }

    /// The root's entries from this one on.
    fn root_from(&self, from: usize) -> impl Iterator<Item = Slot<M::Table>> {
        let core = &self.tree.core;
        let entries = from..core.shape.root_entries();
        entries.map(|index| core.root_slot(core.shape.root_ia(index)))
    }

    /// Freezes what the root maps, from entry `from` on, so that nothing can
    /// refill a TLB; when all is, invalidates the VMID.
    fn cut_root<T: Maintenance>(&self, maint: &mut T, from: usize, budget: &mut Budget) -> End {
        let core = &self.tree.core;
        for slot in self.root_from(from) {
            if slot.index > from && budget.is_spent() {
                return End::Cut(slot.index);
            }
            core.freeze_live(&slot, Desc::is_valid);
            budget.spend(1);
        }
        let _done = core.work(maint).sync_all();
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
        for slot in self.root_from(from) {
            if slot.index > from && budget.is_spent() {
                return slot.index;
            }
            self.release_leaf(maint, sink, &slot, budget);
        }
        self.tree.core.shape.root_entries()
    }
}

impl<M: TableMem, T: Maintenance> Work<'_, M, T> {
    /// Cleans the memory of a leaf that was removed, if a guest may have written it
    /// past the caches. Returns how many bytes that took.
    fn clean_removed(&mut self, leaf: &RemovedLeaf) -> u64 {
        let features = &self.core.features;
        if features.fwb || !features.needs_clean(Desc::new(leaf.raw())) {
            return 0;
        }
        let (pa, size) = (leaf.pa(), leaf.size());
        self.maint.cache(CacheOp::CleanInvalidateData { pa, size });
        size
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

/// RMM's `live`: the entry has an address.
const fn live(desc: Desc) -> bool {
    !desc.is_annotation() || desc.has(HIPAS_ASSIGNED)
}

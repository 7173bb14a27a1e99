//! Realm translation tables: the RTT operations of RMI 1.0 on the same tree.
//!
//! The host supplies each table's page, so nothing here allocates. Entries
//! are those of RMM (spec `rmi.md` 1.3), for any granule:
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

use crate::addr::{Ipa, Level, Pa, Vmid};
use crate::attrs::Attrs;
use crate::error::Error;
use crate::format;
use crate::geometry::{ConfigError, Geometry, Shape};
use crate::maintenance::Maintenance;
use crate::mem::TableMem;
use crate::plan::Pending;
use crate::stage2::Stage2;
use crate::sync;
use crate::tree::{Counting, Slot};
use crate::unmap::{LeafSink, RemovedLeaf};

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
    /// RMI_ERROR_INPUT: level, alignment, or half of the IPA space.
    Input,
    /// RMI_ERROR_RTT with this index.
    Rtt {
        /// The level that the walk reached, or as the command states it.
        level: Level,
        /// RMI's `top`: where there may be something again.
        top: Ipa,
    },
}

impl core::fmt::Display for RttError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Input => f.write_str("level, alignment or IPA not valid for this realm"),
            Self::Rtt { level, top } => write!(f, "RTT entry at {level} (top {top})"),
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
#[derive(Clone, Debug)]
pub struct Rtt<M: TableMem> {
    tree: Stage2<M>,
    protected_end: u64,
    /// Attribute bits of a protected leaf.
    data: u64,
}

impl<M: TableMem> Rtt<M> {
    /// Takes charge of a root (as [`Stage2::new`]). IPAs below
    /// `protected_end`, a multiple of a root entry's span, are protected.
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
        let counting = Counting::rtt(UNPROTECTED, HIPAS_ASSIGNED);
        let tree = Stage2::new(geometry, root, vmid, mem)?.counting(counting);
        let data = geometry.encode_attrs(Attrs::MEMORY).unwrap_or_default();
        let rtt = Self {
            tree,
            protected_end: protected_end.get(),
            data,
        };
        let shape = geometry.shape();
        let first = protected_end.get().min(shape.ia_end()) >> shape.root_shift();
        let table = rtt.tree.core.mem.locate(root);
        for index in first as usize..shape.root_entries() {
            rtt.tree.core.mem.store(table, index, UNPROTECTED);
        }
        Ok(rtt)
    }

    /// The tree.
    pub const fn tree(&self) -> &Stage2<M> {
        &self.tree
    }

    /// True when `ipa` is in the protected half.
    pub const fn is_protected(&self, ipa: Ipa) -> bool {
        ipa.get() < self.protected_end
    }

    /// `top` of RMI: `ipa` itself if its entry is live, else the first live
    /// entry after it in the same table, else that table's end.
    fn top(&self, slot: &Slot<M::Table>, ipa: u64) -> Ipa {
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

    fn fault(&self, slot: &Slot<M::Table>, ipa: u64) -> RttError {
        RttError::Rtt {
            level: Shape::level(slot.level),
            top: self.top(slot, ipa),
        }
    }

    fn check(&self, ipa: Ipa, aligned_to: Level) -> Result<(), RttError> {
        let shape = &self.tree.core.shape;
        if ipa.get() >= shape.ia_end() || ipa.get() & (shape.span(aligned_to) - 1) != 0 {
            return Err(RttError::Input);
        }
        Ok(())
    }

    /// Checks of the commands that name a table: its level and its span.
    fn check_table(&self, ipa: Ipa, level: Level) -> Result<(), RttError> {
        if level <= self.tree.core.shape.start() {
            return Err(RttError::Input);
        }
        self.check(ipa, Shape::level(level.get() - 1))
    }

    fn check_page(&self, pa: Pa, span: u64) -> Result<(), RttError> {
        match self.tree.core.shape.check_oa(pa.get(), span) {
            Ok(()) if pa.get() & (span - 1) == 0 => Ok(()),
            _ => Err(RttError::Input),
        }
    }

    /// RTT_CREATE: puts the zeroed page `rtt` as a table of `level` where an
    /// entry of `level − 1` stands. Its entries say what that entry said.
    ///
    /// # Errors
    /// `Input`; `Rtt` if the walk ended early or a table is there already.
    pub fn create<T: Maintenance>(
        &mut self,
        maint: &mut T,
        ipa: Ipa,
        level: Level,
        rtt: Pa,
    ) -> Result<(), RttError> {
        self.check_table(ipa, level)?;
        let core = &self.tree.core;
        self.check_page(rtt, core.shape.granule().page_size())?;
        let mut slot = core.walk_to(ipa.get(), level.get() - 1);
        if slot.level < level.get() - 1 || format::is_table(slot.raw, slot.level) {
            return Err(self.fault(&slot, ipa.get()));
        }
        if format::is_leaf(slot.raw, slot.level) {
            return core
                .split_slot(maint, &mut slot, ipa.get(), rtt)
                .map_err(|_| self.fault(&slot, ipa.get()));
        }
        let raw = slot.raw;
        if raw & HIPAS_ASSIGNED != 0 {
            let table = core.mem.locate(rtt);
            let entries = core.shape.index_mask() + 1;
            let mut entry = raw;
            for index in 0..entries {
                core.mem.store(table, index, entry);
                entry += 1 << (slot.shift - core.shape.stride());
            }
            core.mem.add_count(rtt, entries as i32);
        } else {
            core.fill_uniform(rtt, raw);
        }
        if core.link(&mut slot, raw, rtt).is_err() {
            return Err(self.fault(&slot, ipa.get()));
        }
        sync::publish(maint, &core.tlb);
        Ok(())
    }

    /// RTT_DESTROY: takes out the table of `level` at `ipa`, which must have
    /// a count of 0. `sink` is told of the unprotected leaves in it.
    ///
    /// # Errors
    /// `Input`; `Rtt` with the parent's level where no table is, with `level`
    /// where the table is in use.
    pub fn destroy<T: Maintenance, S: LeafSink>(
        &mut self,
        maint: &mut T,
        ipa: Ipa,
        level: Level,
        sink: &mut S,
    ) -> Result<Removed, RttError> {
        self.check_table(ipa, level)?;
        let core = &self.tree.core;
        let slot = core.walk_to(ipa.get(), level.get() - 1);
        if slot.level < level.get() - 1 || !format::is_table(slot.raw, slot.level) {
            return Err(self.fault(&slot, ipa.get()));
        }
        let rtt = Pa::new(core.shape.decode_oa(slot.raw));
        if core.mem.count(rtt) != 0 {
            return Err(RttError::Rtt { level, top: ipa });
        }
        let table = core.mem.locate(rtt);
        let entries = core.shape.index_mask() + 1;
        let protected = self.is_protected(ipa);
        let leaf = |raw| format::is_leaf(raw, level.get());
        let leaves = !protected && (0..entries).any(|index| leaf(core.mem.load(table, index)));
        let step = if leaves {
            slot.shift - core.shape.stride()
        } else {
            slot.shift
        };
        let blank = if protected {
            Ripas::Destroyed.bits()
        } else {
            UNPROTECTED
        };
        self.replace_table(maint, &slot, ipa, step, blank);
        if leaves && S::WANTS {
            for index in 0..entries {
                let raw = core.mem.load(table, index);
                if leaf(raw) {
                    let at = ipa.get() + ((index as u64) << (slot.shift - core.shape.stride()));
                    sink.leaf(RemovedLeaf::new(&core.shape, at, level.get(), raw));
                }
            }
        }
        Ok(Removed {
            pa: rtt,
            top: self.top(&slot, ipa.get()),
        })
    }

    /// Break-before-make of a table's entry to `new`, with entries of
    /// 2^`step` bytes at least under it.
    fn replace_table<T: Maintenance>(
        &self,
        maint: &mut T,
        slot: &Slot<M::Table>,
        ipa: Ipa,
        step: u8,
        new: u64,
    ) {
        let core = &self.tree.core;
        let base = slot.base(ipa.get());
        core.mem
            .store(slot.table, slot.index, format::freeze(slot.raw, slot.level));
        let mut pending = Pending::new();
        pending.table(base, base + (1 << slot.shift), step);
        let _done = sync::sync(maint, &core.tlb, &pending);
        core.mem.store(slot.table, slot.index, new);
        core.mem
            .add_count(Pa::new(slot.pa), core.counting.of(new) - 1);
        if new & format::VALID != 0 {
            sync::publish(maint, &core.tlb);
        }
    }

    /// RTT_FOLD: makes one entry of `level − 1` of a table of `level` whose
    /// entries are alike. Returns the table's page.
    ///
    /// # Errors
    /// `Input`; `Rtt` with the level reached where no table is, with `level`
    /// where entries are not alike or no block of that size may stand.
    pub fn fold<T: Maintenance>(
        &mut self,
        maint: &mut T,
        ipa: Ipa,
        level: Level,
    ) -> Result<Pa, RttError> {
        self.check_table(ipa, level)?;
        let core = &self.tree.core;
        let slot = core.walk_to(ipa.get(), level.get() - 1);
        if slot.level < level.get() - 1 || !format::is_table(slot.raw, slot.level) {
            return Err(self.fault(&slot, ipa.get()));
        }
        let rtt = Pa::new(core.shape.decode_oa(slot.raw));
        let refuse = RttError::Rtt { level, top: ipa };
        let count = core.mem.count(rtt);
        let (new, valid) = core.uniform(rtt, level.get()).ok_or(refuse)?;
        if live(new) {
            // Blocks at level 1 for protected data, level 2 for the host's.
            let least = if new & UNPROTECTED != 0 { 2 } else { 1 };
            if !core.shape.leaf_at(slot.level) || slot.level < least {
                return Err(refuse);
            }
        }
        let step = if valid {
            slot.shift - core.shape.stride()
        } else {
            slot.shift
        };
        self.replace_table(maint, &slot, ipa, step, new);
        core.mem.add_count(rtt, -(count as i32));
        Ok(rtt)
    }

    /// RTT_READ_ENTRY: what stands at `ipa`, going down to `level`.
    ///
    /// # Errors
    /// `Input`.
    pub fn read(&self, ipa: Ipa, level: Level) -> Result<RttEntry, RttError> {
        if level < self.tree.core.shape.start() {
            return Err(RttError::Input);
        }
        self.check(ipa, level)?;
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
        self.read(ipa.align_down(u32::from(page)), Level::L3)
    }

    fn state(&self, raw: u64, level: i8) -> RttState {
        let shape = &self.tree.core.shape;
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

    /// What DATA_CREATE asks before it copies: `ipa` is a protected page and
    /// its entry unassigned. Returns the RIPAS.
    ///
    /// # Errors
    /// `Input`; `Rtt` with the level reached.
    pub fn data_check(&self, ipa: Ipa) -> Result<Ripas, RttError> {
        self.check(ipa, Level::L3)?;
        if !self.is_protected(ipa) {
            return Err(RttError::Input);
        }
        let slot = self.tree.core.walk_to(ipa.get(), 3);
        match self.state(slot.raw, slot.level) {
            RttState::Unassigned(ripas) if slot.level == 3 => Ok(ripas),
            _ => Err(self.fault(&slot, ipa.get())),
        }
    }

    /// DATA_CREATE and DATA_CREATE_UNKNOWN: `data`, with its content in
    /// place, becomes the page at `ipa`.
    ///
    /// # Errors
    /// As [`data_check`](Self::data_check).
    pub fn data_create<T: Maintenance>(
        &mut self,
        maint: &mut T,
        ipa: Ipa,
        data: Pa,
        fill: Fill,
    ) -> Result<(), RttError> {
        let was = self.data_check(ipa)?;
        let core = &self.tree.core;
        let page = core.shape.granule().page_size();
        self.check_page(data, page)?;
        let ripas = if fill == Fill::Known { Ripas::Ram } else { was };
        let slot = core.walk_to(ipa.get(), 3);
        if ripas == Ripas::Ram {
            core.maintain(maint, self.data, data, page);
        }
        let new = self.assigned(data.get(), ripas, 3);
        core.mem.store(slot.table, slot.index, new);
        core.mem.add_count(Pa::new(slot.pa), 1);
        sync::publish(maint, &core.tlb);
        Ok(())
    }

    fn assigned(&self, pa: u64, ripas: Ripas, level: i8) -> u64 {
        let oa = self.tree.core.shape.encode_oa(pa);
        match ripas {
            Ripas::Ram => oa | self.data | format::leaf_type(level),
            _ => oa | HIPAS_ASSIGNED | ripas.bits(),
        }
    }

    /// DATA_DESTROY: takes the page at `ipa` out of the realm.
    ///
    /// # Errors
    /// `Input`; `Rtt` where no page is assigned.
    pub fn data_destroy<T: Maintenance>(
        &mut self,
        maint: &mut T,
        ipa: Ipa,
    ) -> Result<Removed, RttError> {
        self.check(ipa, Level::L3)?;
        if !self.is_protected(ipa) {
            return Err(RttError::Input);
        }
        let core = &self.tree.core;
        let slot = core.walk_to(ipa.get(), 3);
        let (ripas, pa) = match self.state(slot.raw, slot.level) {
            RttState::Assigned { ripas, pa } if slot.level == 3 => (ripas, pa),
            _ => return Err(self.fault(&slot, ipa.get())),
        };
        let blank = match ripas {
            Ripas::Empty => Ripas::Empty,
            Ripas::Ram | Ripas::Destroyed => Ripas::Destroyed,
        };
        let _ = core.exchange(slot.table, slot.index, blank.bits());
        core.mem.add_count(Pa::new(slot.pa), -1);
        if ripas == Ripas::Ram {
            self.forget(maint, &slot, ipa.get());
        }
        Ok(Removed {
            pa,
            top: self.top(&slot, ipa.get()),
        })
    }

    /// Invalidates the leaf that stood at `slot`.
    fn forget<T: Maintenance>(&self, maint: &mut T, slot: &Slot<M::Table>, ipa: u64) {
        let core = &self.tree.core;
        let base = slot.base(ipa);
        let mut pending = Pending::new();
        pending.leaves(&core.shape, base, base + (1 << slot.shift), slot.level);
        let _done = sync::sync(maint, &core.tlb, &pending);
    }

    /// RTT_MAP_UNPROTECTED for up to `count` neighbouring entries of one
    /// table (RMI has 1): memory of the host at `pa`, for loads, stores and
    /// fetches as `attrs` allow. Returns the first IPA not mapped.
    ///
    /// # Errors
    /// `Input`; `Rtt` with the level reached, or where something is mapped.
    pub fn map_unprotected<T: Maintenance>(
        &mut self,
        maint: &mut T,
        ipa: Ipa,
        level: Level,
        pa: Pa,
        attrs: Attrs,
        count: usize,
    ) -> Result<Ipa, RttError> {
        self.check(ipa, level)?;
        let core = &self.tree.core;
        let span = core.shape.span(level);
        if self.is_protected(ipa) || level < Level::L2 || !core.shape.leaf_ok(level) {
            return Err(RttError::Input);
        }
        let size = (count as u64).checked_mul(span).ok_or(RttError::Input)?;
        if count == 0 || core.shape.check_oa(pa.get(), size).is_err() {
            return Err(RttError::Input);
        }
        self.check_page(pa, span)?;
        let attrs = self
            .tree
            .geometry
            .encode_attrs(attrs)
            .map_err(|_| RttError::Input)?;
        let slot = core.walk_to(ipa.get(), level.get());
        if slot.level != level.get() || slot.raw != UNPROTECTED {
            return Err(self.fault(&slot, ipa.get()));
        }
        let free = (0..count.min(core.entries_left(&slot)))
            .take_while(|entry| core.mem.load(slot.table, slot.index + entry) == UNPROTECTED)
            .count();
        core.maintain(maint, attrs, pa, free as u64 * span);
        for entry in 0..free {
            let oa = core.shape.encode_oa(pa.get() + entry as u64 * span);
            let raw = oa | attrs | UNPROTECTED | format::leaf_type(slot.level);
            core.mem.store(slot.table, slot.index + entry, raw);
        }
        sync::publish(maint, &core.tlb);
        Ok(Ipa::new(ipa.get() + free as u64 * span))
    }

    /// RTT_UNMAP_UNPROTECTED. The page or block is out of every TLB when
    /// this returns its address.
    ///
    /// # Errors
    /// `Input`; `Rtt` with the level reached where nothing is mapped.
    pub fn unmap_unprotected<T: Maintenance>(
        &mut self,
        maint: &mut T,
        ipa: Ipa,
        level: Level,
    ) -> Result<Removed, RttError> {
        self.check(ipa, level)?;
        let core = &self.tree.core;
        if self.is_protected(ipa) || level < Level::L2 || !core.shape.leaf_ok(level) {
            return Err(RttError::Input);
        }
        let slot = core.walk_to(ipa.get(), level.get());
        let pa = match self.state(slot.raw, slot.level) {
            RttState::AssignedNs { pa, .. } if slot.level == level.get() => pa,
            _ => return Err(self.fault(&slot, ipa.get())),
        };
        let _ = core.exchange(slot.table, slot.index, UNPROTECTED);
        self.forget(maint, &slot, ipa.get());
        Ok(Removed {
            pa,
            top: self.top(&slot, ipa.get()),
        })
    }

    /// RTT_INIT_RIPAS: unassigned entries of `[base, top)` become RAM, to
    /// the end of one table. `measure` is told of each entry's range.
    /// Returns how far it came.
    ///
    /// # Errors
    /// `Input`; `Rtt` with the level reached if not one entry could change.
    pub fn init_ripas(
        &mut self,
        base: Ipa,
        top: Ipa,
        mut measure: impl FnMut(Ipa, Ipa),
    ) -> Result<Ipa, RttError> {
        self.ripas_run(
            base,
            top,
            |raw, _| {
                if format::is_annotation(raw) && raw & HIPAS_ASSIGNED == 0 {
                    match Ripas::of(raw) {
                        Ripas::Empty | Ripas::Ram => Some(Ripas::Ram.bits()),
                        Ripas::Destroyed => None,
                    }
                } else {
                    None
                }
            },
            |_, at, end, _| measure(Ipa::new(at), Ipa::new(end)),
        )
    }

    /// RTT_SET_RIPAS: entries of `[base, top)` become `ripas`, to the end of
    /// one table or the first that cannot change. Returns how far it came.
    ///
    /// # Errors
    /// `Input`; `Rtt` with the level reached if not one entry could change.
    pub fn set_ripas<T: Maintenance>(
        &mut self,
        maint: &mut T,
        base: Ipa,
        top: Ipa,
        ripas: Ripas,
        destroyed: ChangeDestroyed,
    ) -> Result<Ipa, RttError> {
        if ripas == Ripas::Destroyed {
            return Err(RttError::Input);
        }
        let core = &self.tree.core;
        let shape = core.shape;
        let mut pending = Pending::new();
        let mut made_valid = false;
        let result = self.ripas_run(
            base,
            top,
            |raw, level| {
                let (was, pa) = match self.state(raw, level) {
                    RttState::Unassigned(was) => (was, None),
                    RttState::Assigned { ripas, pa } => (ripas, Some(pa)),
                    _ => return None,
                };
                if was == Ripas::Destroyed && destroyed == ChangeDestroyed::No {
                    return None;
                }
                if was == ripas {
                    return Some(raw);
                }
                Some(match pa {
                    None => ripas.bits(),
                    Some(pa) => self.assigned(pa.get(), ripas, level),
                })
            },
            |level, at, end, (old, new)| match (old & format::VALID != 0, new & format::VALID != 0)
            {
                (true, false) => pending.leaves(&shape, at, end, level),
                (false, true) => made_valid = true,
                _ => (),
            },
        );
        if !pending.is_empty() {
            let _done = sync::sync(maint, &core.tlb, &pending);
        } else if made_valid {
            sync::publish(maint, &core.tlb);
        }
        result
    }

    /// Changes entries of one table from `base` on, as `change` says.
    fn ripas_run(
        &self,
        base: Ipa,
        top: Ipa,
        change: impl Fn(u64, i8) -> Option<u64>,
        mut changed: impl FnMut(i8, u64, u64, (u64, u64)),
    ) -> Result<Ipa, RttError> {
        self.check(base, Level::L3)?;
        let core = &self.tree.core;
        let page = u32::from(core.shape.page_bits());
        if base >= top || top.get() > self.protected_end || !top.is_aligned(page) {
            return Err(RttError::Input);
        }
        let slot = core.walk_to(base.get(), 3);
        let span = 1u64 << slot.shift;
        let mask = core.shape.index_mask();
        let end = ((slot.index | mask) + 1).min(core.shape.entries_at(slot.level));
        let mut at = base.get();
        if at & (span - 1) == 0 {
            for index in slot.index..end {
                if at + span > top.get() {
                    break;
                }
                let old = core.mem.load(slot.table, index);
                let Some(new) = change(old, slot.level) else {
                    break;
                };
                if new != old {
                    let _ = core.exchange(slot.table, index, new);
                }
                changed(slot.level, at, at + span, (old, new));
                at += span;
            }
        }
        if at == base.get() {
            return Err(self.fault(&slot, base.get()));
        }
        Ok(Ipa::new(at))
    }

    /// RSI_IPA_STATE_GET: the RIPAS at `base`, and how far in `[base, top)`
    /// and in the same table it holds.
    ///
    /// # Errors
    /// `Input`.
    pub fn ripas(&self, base: Ipa, top: Ipa) -> Result<(Ripas, Ipa), RttError> {
        self.check(base, Level::L3)?;
        let page = u32::from(self.tree.core.shape.page_bits());
        if base >= top || top.get() > self.protected_end || !top.is_aligned(page) {
            return Err(RttError::Input);
        }
        let core = &self.tree.core;
        let slot = core.walk_to(base.get(), 3);
        let of = |raw| match self.state(raw, slot.level) {
            RttState::Unassigned(ripas) | RttState::Assigned { ripas, .. } => Some(ripas),
            _ => None,
        };
        let Some(first) = of(slot.raw) else {
            return Err(RttError::Input);
        };
        let mut at = slot.end(base.get());
        for index in slot.index + 1..slot.index + core.entries_left(&slot) {
            if at >= top.get() || of(core.mem.load(slot.table, index)) != Some(first) {
                break;
            }
            at += 1 << slot.shift;
        }
        Ok((first, Ipa::new(at.min(top.get()))))
    }

    /// True when a root table still holds counted entries: the realm cannot
    /// be destroyed.
    pub fn is_live(&self) -> bool {
        self.tree.core.mem.count(self.tree.root()) != 0
    }

    /// The end of the tree: invalidates the VMID on all CPUs and tells `sink`
    /// of the host's blocks that the root still maps. The root's pages and
    /// the VMID are free after it.
    ///
    /// # Errors
    /// `InUse` while [`is_live`](Self::is_live).
    pub fn retire<T: Maintenance, S: LeafSink>(
        &mut self,
        maint: &mut T,
        sink: &mut S,
    ) -> Result<(), Error> {
        if self.is_live() {
            let level = self.tree.core.shape.start();
            return Err(Error::InUse { level });
        }
        let core = &self.tree.core;
        let table = core.mem.locate(self.tree.root());
        let level = core.shape.start().get();
        // Frozen first, so that nothing can refill a TLB; told afterwards.
        let leaves = |visit: &mut dyn FnMut(usize, u64)| {
            for index in 0..core.shape.root_entries() {
                let raw = core.mem.load(table, index);
                if raw & format::TYPE != 0 {
                    visit(index, raw);
                }
            }
        };
        let freeze = |index, mut raw| {
            while let Err(now) = core.mem.cas(table, index, raw, format::freeze(raw, level)) {
                raw = now;
            }
        };
        leaves(&mut |index, raw| freeze(index, raw));
        let _done = core.sync_all(maint);
        leaves(&mut |index, raw| {
            let at = (index as u64) << core.shape.root_shift();
            sink.leaf(RemovedLeaf::new(
                &core.shape,
                at,
                level,
                format::thaw(raw, level),
            ));
            core.mem.store(table, index, UNPROTECTED);
        });
        Ok(())
    }
}

/// RMM's `live`: the entry has an address.
fn live(raw: u64) -> bool {
    raw & format::TYPE != 0 || raw & HIPAS_ASSIGNED != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Log, Plain};
    use crate::{Granule, Ignore, Stage2Config};
    extern crate std;
    use std::vec::Vec;

    struct Bench {
        mem: Plain,
        geometry: Geometry,
    }

    impl Bench {
        fn new(granule: Granule) -> Self {
            let mut config = Stage2Config::new(granule, 40, 48);
            config.features.tlb_range = true;
            config.features.ttl = true;
            config.features.fwb = true;
            config.features.dic = true;
            let geometry = config.validate().unwrap();
            Self {
                mem: Plain::new(granule.page_size(), 16 << 20),
                geometry,
            }
        }

        fn rtt(&self, protected_end: u64) -> (Rtt<&Plain>, Log) {
            let root = self.mem.root(self.geometry.root_align());
            let vmid = Vmid::new(9);
            let rtt = Rtt::new(
                self.geometry,
                root,
                vmid,
                &self.mem,
                Ipa::new(protected_end),
            )
            .unwrap();
            let log = Log {
                vttbr: rtt.tree().vttbr(),
                ..Log::default()
            };
            (rtt, log)
        }

        fn page(&self) -> Pa {
            self.mem.alloc(Level::L3).unwrap()
        }
    }

    /// Creates tables down to level 3 at `ipa`.
    fn down(bench: &Bench, rtt: &mut Rtt<&Plain>, log: &mut Log, ipa: u64) {
        let start = rtt.tree().geometry().start().get();
        for level in start + 1..=3 {
            let level = Level::new(level).unwrap();
            let span = bench.geometry.span(Level::new(level.get() - 1).unwrap());
            match rtt.create(log, Ipa::new(ipa & !(span - 1)), level, bench.page()) {
                Ok(()) | Err(RttError::Rtt { .. }) => (),
                Err(RttError::Input) => panic!("input at {level}"),
            }
        }
    }

    #[test]
    fn a_realm_lives_and_dies() {
        for granule in Granule::ALL {
            let bench = Bench::new(granule);
            let page = granule.page_size();
            let (mut rtt, mut log) = bench.rtt(1 << 39);
            let base = 0x4000_0000u64;
            let leaf_table = bench.geometry.span(Level::L2);
            assert_eq!(
                rtt.data_check(Ipa::new(base)).unwrap_err(),
                rtt.fault_at(base),
            );
            down(&bench, &mut rtt, &mut log, base);
            assert!(rtt.is_live());
            let top = rtt
                .init_ripas(Ipa::new(base), Ipa::new(base + 16 * leaf_table), |_, _| ())
                .unwrap();
            assert_eq!(top, Ipa::new((base + leaf_table) & !(leaf_table - 1)));
            for index in [0, 1, 5] {
                let ipa = Ipa::new(base + index * page);
                rtt.data_create(
                    &mut log,
                    ipa,
                    Pa::new(0x8000_0000 + index * page),
                    Fill::Known,
                )
                .unwrap();
                let entry = rtt.read(ipa, Level::L3).unwrap();
                assert_eq!(
                    entry.state,
                    RttState::Assigned {
                        ripas: Ripas::Ram,
                        pa: Pa::new(0x8000_0000 + index * page)
                    }
                );
            }
            let table_ipa = Ipa::new(base & !(leaf_table - 1));
            assert_eq!(
                rtt.destroy(&mut log, table_ipa, Level::L3, &mut Ignore),
                Err(RttError::Rtt {
                    level: Level::L3,
                    top: table_ipa
                })
            );
            let first = rtt.data_destroy(&mut log, Ipa::new(base)).unwrap();
            assert_eq!(
                first,
                Removed {
                    pa: Pa::new(0x8000_0000),
                    top: Ipa::new(base + page)
                }
            );
            let second = rtt.data_destroy(&mut log, first.top).unwrap();
            assert_eq!(second.top, Ipa::new(base + 5 * page));
            let third = rtt.data_destroy(&mut log, second.top).unwrap();
            assert_eq!(third.top, Ipa::new(table_ipa.get() + leaf_table));
            assert_eq!(
                rtt.read(Ipa::new(base), Level::L3).unwrap().state,
                RttState::Unassigned(Ripas::Destroyed)
            );
            let start = bench.geometry.start().get();
            for level in (start + 1..=3).rev() {
                let level = Level::new(level).unwrap();
                let span = bench.geometry.span(Level::new(level.get() - 1).unwrap());
                let ipa = Ipa::new(base & !(span - 1));
                let removed = rtt.destroy(&mut log, ipa, level, &mut Ignore).unwrap();
                assert_eq!(bench.mem.count(removed.pa), 0);
                assert!(removed.top > ipa);
            }
            assert!(!rtt.is_live());
            assert!(rtt.retire(&mut log, &mut Ignore).is_ok());
        }
    }

    impl Rtt<&Plain> {
        fn fault_at(&self, ipa: u64) -> RttError {
            self.fault(&self.tree.core.walk_to(ipa, 3), ipa)
        }
    }

    #[test]
    fn unfolding_keeps_what_a_block_said_and_folding_puts_it_back() {
        let bench = Bench::new(Granule::K4);
        let (mut rtt, mut log) = bench.rtt(1 << 39);
        let base = Ipa::new(0x4000_0000);
        down(&bench, &mut rtt, &mut log, base.get());
        for index in 0..512u64 {
            let ipa = Ipa::new(base.get() + index * 4096);
            rtt.data_create(
                &mut log,
                ipa,
                Pa::new(0x8000_0000 + index * 4096),
                Fill::Known,
            )
            .unwrap();
        }
        let page = rtt.fold(&mut log, base, Level::L3).unwrap();
        assert_eq!(bench.mem.count(page), 0);
        let block = rtt.read(base, Level::L3).unwrap();
        assert_eq!(block.level, Level::L2);
        rtt.create(&mut log, base, Level::L3, bench.page()).unwrap();
        for index in 0..512u64 {
            let entry = rtt
                .read(Ipa::new(base.get() + index * 4096), Level::L3)
                .unwrap();
            let pa = Pa::new(0x8000_0000 + index * 4096);
            assert_eq!(
                entry.state,
                RttState::Assigned {
                    ripas: Ripas::Ram,
                    pa
                }
            );
        }
        // One page apart, and it is refused.
        rtt.data_destroy(&mut log, Ipa::new(base.get() + 4096))
            .unwrap();
        assert_eq!(
            rtt.fold(&mut log, base, Level::L3),
            Err(RttError::Rtt {
                level: Level::L3,
                top: base
            })
        );
    }

    #[test]
    fn a_table_of_unprotected_leaves_goes_at_once_and_each_is_told() {
        let bench = Bench::new(Granule::K4);
        let (mut rtt, mut log) = bench.rtt(0);
        let base = Ipa::new(0x4000_0000);
        down(&bench, &mut rtt, &mut log, base.get());
        let next = rtt
            .map_unprotected(
                &mut log,
                base,
                Level::L3,
                Pa::new(0x9000_0000),
                Attrs::MEMORY,
                700,
            )
            .unwrap();
        assert_eq!(next, Ipa::new(0x4020_0000));
        assert_eq!(
            rtt.map_unprotected(&mut log, base, Level::L3, Pa::new(0), Attrs::MEMORY, 1),
            Err(RttError::Rtt {
                level: Level::L3,
                top: base
            })
        );
        let removed = rtt.unmap_unprotected(&mut log, base, Level::L3).unwrap();
        assert_eq!(removed.pa, Pa::new(0x9000_0000));
        assert_eq!(removed.top, Ipa::new(0x4000_1000));
        let mut gone = Vec::new();
        rtt.destroy(&mut log, base, Level::L3, &mut |leaf: RemovedLeaf| {
            gone.push(leaf.pa())
        })
        .unwrap();
        assert_eq!(gone.len(), 511);
        assert_eq!(gone[0], Pa::new(0x9000_1000));
        assert_eq!(
            rtt.read(base, Level::L3).unwrap().state,
            RttState::UnassignedNs
        );
    }

    #[test]
    fn changing_ripas_unmaps_and_maps_again() {
        let bench = Bench::new(Granule::K4);
        let (mut rtt, mut log) = bench.rtt(1 << 39);
        let base = Ipa::new(0x4000_0000);
        let end = Ipa::new(0x4000_4000);
        down(&bench, &mut rtt, &mut log, base.get());
        rtt.init_ripas(base, end, |_, _| ()).unwrap();
        rtt.data_create(&mut log, base, Pa::new(0x8000_0000), Fill::Unknown)
            .unwrap();
        log.events.clear();
        let next = rtt
            .set_ripas(&mut log, base, end, Ripas::Empty, ChangeDestroyed::No)
            .unwrap();
        assert_eq!((next, log.tlbis()), (end, 2));
        assert_eq!(
            rtt.read(base, Level::L3).unwrap().state,
            RttState::Assigned {
                ripas: Ripas::Empty,
                pa: Pa::new(0x8000_0000)
            }
        );
        rtt.set_ripas(&mut log, base, end, Ripas::Ram, ChangeDestroyed::No)
            .unwrap();
        assert!(rtt.tree().translate(base).is_some());
        assert_eq!(
            rtt.ripas(base, Ipa::new(0x4010_0000)).unwrap(),
            (Ripas::Ram, end)
        );
        rtt.data_destroy(&mut log, base).unwrap();
        assert_eq!(
            rtt.set_ripas(&mut log, base, end, Ripas::Ram, ChangeDestroyed::No),
            Err(RttError::Rtt {
                level: Level::L3,
                top: end_of_table(base)
            })
        );
        rtt.set_ripas(&mut log, base, end, Ripas::Ram, ChangeDestroyed::Yes)
            .unwrap();
    }

    fn end_of_table(ipa: Ipa) -> Ipa {
        Ipa::new((ipa.get() & !0x1f_ffff) + 0x20_0000)
    }
}

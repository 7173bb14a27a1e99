//! Data granules: memory that a realm has for itself.

use core::ops::Range;

use super::{Fill, HIPAS_ASSIGNED, Removed, Ripas, Rtt, RttError, RttState};
use crate::addr::{Ipa, Level, Pa};
use crate::attrs::Attrs;
use crate::desc::Desc;
use crate::maintenance::Maintenance;
use crate::mem::TableMem;
use crate::tree::Slot;

/// Memory for a realm, of some pages one after another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DataRun {
    /// Where the realm has it.
    pub ipa: Ipa,
    /// Where it is.
    pub pa: Pa,
    /// Bytes.
    pub size: u64,
}

impl DataRun {
    /// The IPAs, if they do not go beyond the end of all.
    fn ipas(&self) -> Option<Range<Ipa>> {
        let end = self.ipa.get().checked_add(self.size)?;
        Some(self.ipa..Ipa::new(end))
    }
}

/// Memory taken out of a realm. Its content is untouched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RemovedData {
    /// The address of the first page.
    pub pa: Pa,
    /// Bytes that were mapped one after another.
    pub size: u64,
    /// RMI's `top` behind them.
    pub top: Ipa,
}

/// Whether a protected entry has nothing: neither leaf, table nor address.
const fn is_vacant(desc: Desc) -> bool {
    desc.is_annotation() && !desc.has(HIPAS_ASSIGNED)
}

impl Fill {
    /// The RIPAS of an entry that said `was` and gets memory.
    const fn ripas(self, was: Desc) -> Ripas {
        match self {
            Self::Known => Ripas::Ram,
            Self::Unknown => Ripas::of(was),
        }
    }
}

impl<M: TableMem> Rtt<M> {
    /// The unassigned entry of a protected page.
    ///
    /// # Errors
    /// `Input`; `Rtt` with the level reached.
    #[inline]
    pub(crate) fn vacant_page(&self, ipa: Ipa) -> Result<Slot<M::Table>, RttError> {
        let slot = self.protected_page(ipa)?;
        if slot.level == Level::L3 && is_vacant(slot.desc) {
            Ok(slot)
        } else {
            Err(self.fault(&slot, ipa))
        }
    }

    /// Where a walk for a protected page ends.
    fn protected_page(&self, ipa: Ipa) -> Result<Slot<M::Table>, RttError> {
        self.check(ipa, Level::L3)?;
        if !self.is_protected(ipa) {
            return Err(RttError::Input);
        }
        Ok(self.tree.core.walk_to(ipa.into(), Level::L3))
    }

    /// DATA_CREATE and DATA_CREATE_UNKNOWN: `data`, with its content in
    /// place, becomes the page at `ipa`.
    ///
    /// # Errors
    /// `Input`; `Rtt` with the level reached.
    pub fn data_create<T: Maintenance>(
        &mut self,
        maint: &mut T,
        ipa: Ipa,
        data: Pa,
        fill: Fill,
    ) -> Result<(), RttError> {
        self.put_page(maint, (ipa, data), fill, || true)
    }

    /// As [`data_create`](Self::data_create) of known content, which `write` puts in
    /// place once all else is sure: whether it could.
    ///
    /// # Errors
    /// As there; `Input` where it could not.
    pub fn data_create_with<T: Maintenance>(
        &mut self,
        maint: &mut T,
        ipa: Ipa,
        data: Pa,
        write: impl FnOnce() -> bool,
    ) -> Result<(), RttError> {
        self.put_page(maint, (ipa, data), Fill::Known, write)
    }

    fn put_page<T: Maintenance>(
        &mut self,
        maint: &mut T,
        (ipa, data): (Ipa, Pa),
        fill: Fill,
        write: impl FnOnce() -> bool,
    ) -> Result<(), RttError> {
        let slot = self.vacant_page(ipa)?;
        let core = &self.tree.core;
        let size = slot.size();
        self.check_page(data, size)?;
        if !write() {
            return Err(RttError::Input);
        }
        let ripas = fill.ripas(slot.desc);
        let mut work = core.work(maint);
        work.maintain(self.data_attrs(), data, size);
        core.put(&slot, self.assigned(data, ripas, Level::L3));
        core.add_count(slot.pa, 1);
        work.publish();
        Ok(())
    }

    /// How many bytes of `run` [`data_map`](Self::data_map) would map.
    ///
    /// # Errors
    /// As [`data_map`](Self::data_map).
    pub fn data_room(&self, run: &DataRun) -> Result<u64, RttError> {
        let (slot, count) = self.vacant(run)?;
        Ok((count as u64) << slot.shift)
    }

    /// The entries of one table that would map `run`: the first, and how many.
    fn vacant(&self, run: &DataRun) -> Result<(Slot<M::Table>, usize), RttError> {
        let ipas = run.ipas().ok_or(RttError::Input)?;
        let slot = self.protected(&ipas)?;
        let (shape, span) = (&self.tree.core.shape, slot.size());
        // As RTT_FOLD would make it.
        let fits = slot.level == Level::L3
            || (shape.leaf_ok(slot.level)
                && slot.level >= Level::L1
                && (run.ipa.get() | run.pa.get()) & (span - 1) == 0);
        let vacant =
            |entry: &Slot<M::Table>| is_vacant(entry.desc) && entry.end() <= ipas.end.into();
        let count = self.entries_from(slot).take_while(vacant).count();
        if !fits || count == 0 {
            return Err(self.fault(&slot, run.ipa));
        }
        self.check_page(run.pa, shape.span(Level::L3))?;
        if shape.check_oa(run.pa, run.size).is_err() {
            return Err(RttError::Input);
        }
        Ok((slot, count))
    }

    /// Memory, with its content in place, becomes a realm's: as much of `run`, from
    /// its start, as entries of one table map, which are unassigned: pages, or blocks
    /// where no table of pages stands and addresses and size allow. Returns how many
    /// bytes.
    ///
    /// What the mapping costs grows with that: the caller limits it.
    ///
    /// # Errors
    /// `Input`; `Rtt` with the level reached where not even the first could be
    /// mapped.
    pub fn data_map<T: Maintenance>(
        &mut self,
        maint: &mut T,
        run: &DataRun,
        fill: Fill,
    ) -> Result<u64, RttError> {
        let (slot, count) = self.vacant(run)?;
        let core = &self.tree.core;
        let size = (count as u64) << slot.shift;
        let mut work = core.work(maint);
        // Now, if it is mapped by a change of RIPAS later, too: between the
        // two only the realm could write it, and cannot yet.
        work.maintain(self.data_attrs(), run.pa, size);
        for entry in self.entries_from(slot).take(count) {
            let ripas = fill.ripas(entry.desc);
            let pa = run.pa.plus(entry.ia.since(slot.ia));
            core.put(&entry, self.assigned(pa, ripas, slot.level));
        }
        core.add_count(slot.pa, count as i32);
        work.publish();
        Ok(size)
    }

    /// The attributes of a protected leaf.
    fn data_attrs(&self) -> Desc {
        let attrs = self.tree.geometry().encode_attrs(Attrs::MEMORY);
        attrs.unwrap_or_default()
    }

    pub(crate) fn assigned(&self, pa: Pa, ripas: Ripas, level: Level) -> Desc {
        let shape = &self.tree.core.shape;
        match ripas {
            Ripas::Ram => self.data_attrs().leaf(shape, pa, level),
            _ => ripas
                .unassigned()
                .with(HIPAS_ASSIGNED | shape.encode_oa(pa)),
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
        let core = &self.tree.core;
        let slot = self.protected_page(ipa)?;
        let (ripas, pa) = match self.state(&slot) {
            RttState::Assigned { ripas, pa } if slot.level == Level::L3 => (ripas, pa),
            _ => return Err(self.fault(&slot, ipa)),
        };
        let _ = core.exchange(&slot, ripas.removed().unassigned());
        core.add_count(slot.pa, -1);
        if ripas == Ripas::Ram {
            let _done = core.work(maint).sync_leaf(&slot);
        }
        Ok(Removed {
            pa,
            top: self.top(&slot, ipa),
        })
    }

    /// Takes memory out of the realm, from the start of `range` on: what entries of
    /// one table map one after another there, in at most `most` bytes, or by one
    /// entry. No TLB knows it when this returns.
    ///
    /// A block above level 2, which folding makes, is split before: whoever gets its
    /// memory looks at each page of it.
    ///
    /// # Errors
    /// `Input`; `Rtt` where nothing is assigned, or by an entry that is not all in
    /// `range`, or by a block above level 2.
    pub fn data_unmap<T: Maintenance>(
        &mut self,
        maint: &mut T,
        range: Range<Ipa>,
        most: u64,
    ) -> Result<RemovedData, RttError> {
        let slot = self.protected(&range)?;
        let core = &self.tree.core;
        let assigned = |entry: &Slot<M::Table>| match self.state(entry) {
            RttState::Assigned { ripas, pa } if entry.end() <= range.end.into() => {
                Some((ripas, pa))
            }
            _ => None,
        };
        let whole = slot.ia == range.start.into() && slot.level >= Level::L2;
        let first = assigned(&slot).filter(|_| whole);
        let (_, pa) = first.ok_or_else(|| self.fault(&slot, range.start))?;
        let mut work = core.work(maint);
        let mut last = slot;
        for entry in self.entries_from(slot) {
            let size = entry.end().since(slot.ia);
            let ripas = match assigned(&entry) {
                Some((ripas, at)) if at == pa.plus(entry.ia.since(slot.ia)) => ripas,
                _ => break,
            };
            if entry.index > slot.index && size > most {
                break;
            }
            let _ = core.exchange(&entry, ripas.removed().unassigned());
            if ripas == Ripas::Ram {
                let pending = work.changes.pending();
                pending.leaves(&core.shape, entry.extent(), entry.level);
            }
            last = entry;
        }
        core.add_count(slot.pa, -((last.index - slot.index + 1) as i32));
        let _done = work.finish();
        Ok(RemovedData {
            pa,
            size: last.end().since(slot.ia),
            top: self.top(&last, last.ia.into()),
        })
    }
}

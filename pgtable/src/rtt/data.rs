//! Data granules: memory that a realm has for itself.

use super::{Fill, HIPAS_ASSIGNED, Removed, Ripas, Rtt, RttError, RttState};
use crate::addr::{Ipa, Level, Pa};
use crate::format;
use crate::maintenance::Maintenance;
use crate::mem::TableMem;
use crate::sync;

impl<M: TableMem> Rtt<M> {
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
        // Now, if it is mapped by a change of RIPAS later, too: between the
        // two only the realm could write it, and cannot yet.
        core.maintain(maint, self.data, data, page);
        let new = self.assigned(data.get(), ripas, 3);
        core.mem.store(slot.table, slot.index, new);
        core.mem.add_count(Pa::new(slot.pa), 1);
        sync::publish(maint, &core.tlb);
        Ok(())
    }

    pub(super) fn assigned(&self, pa: u64, ripas: Ripas, level: i8) -> u64 {
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
}

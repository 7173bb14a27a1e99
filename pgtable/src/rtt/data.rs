//! Data granules: memory that a realm has for itself.

use super::{Fill, HIPAS_ASSIGNED, Removed, Ripas, Rtt, RttError, RttState};
use crate::addr::{Ipa, Level, Pa};
use crate::attrs::Attrs;
use crate::desc::Desc;
use crate::maintenance::Maintenance;
use crate::mem::TableMem;
use crate::tree::Slot;

impl<M: TableMem> Rtt<M> {
    /// What DATA_CREATE asks before it copies: `ipa` is a protected page and
    /// its entry unassigned. Returns the RIPAS.
    ///
    /// # Errors
    /// `Input`; `Rtt` with the level reached.
    pub fn data_check(&self, ipa: Ipa) -> Result<Ripas, RttError> {
        let slot = self.protected_page(ipa)?;
        match self.state(&slot) {
            RttState::Unassigned(ripas) if slot.level == Level::L3 => Ok(ripas),
            _ => Err(self.fault(&slot, ipa)),
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
        let page = core.shape.span(Level::L3);
        self.check_page(data, page)?;
        let ripas = if fill == Fill::Known { Ripas::Ram } else { was };
        let slot = core.walk_to(ipa.into(), Level::L3);
        let mut work = core.work(maint);
        // Now, if it is mapped by a change of RIPAS later, too: between the
        // two only the realm could write it, and cannot yet.
        work.maintain(self.data_attrs(), data, page);
        core.put(&slot, self.assigned(data, ripas, Level::L3));
        core.add_count(slot.pa, 1);
        work.publish();
        Ok(())
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
        let blank = match ripas {
            Ripas::Empty => Ripas::Empty,
            Ripas::Ram | Ripas::Destroyed => Ripas::Destroyed,
        };
        let _ = core.exchange(&slot, blank.unassigned());
        core.add_count(slot.pa, -1);
        if ripas == Ripas::Ram {
            let _done = core.work(maint).sync_leaf(&slot);
        }
        Ok(Removed {
            pa,
            top: self.top(&slot, ipa),
        })
    }
}

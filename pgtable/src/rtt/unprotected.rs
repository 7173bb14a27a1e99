//! Memory of the host that a guest may use beside its own.

use super::{Removed, Rtt, RttError, RttState, UNPROTECTED};
use crate::addr::{Ipa, Level, Pa};
use crate::attrs::Attrs;
use crate::format;
use crate::maintenance::Maintenance;
use crate::mem::TableMem;
use crate::sink::RemovedLeaf;
use crate::sync;

impl<M: TableMem> Rtt<M> {
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
        let leaf = RemovedLeaf::new(&core.shape, ipa.get(), slot.level, slot.raw);
        core.clean_removed(maint, &leaf);
        Ok(Removed {
            pa,
            top: self.top(&slot, ipa.get()),
        })
    }
}

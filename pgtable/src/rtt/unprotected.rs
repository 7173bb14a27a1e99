//! Memory of the host that a guest may use beside its own.

use super::{Removed, Rtt, RttError, RttState, UNPROTECTED};
use crate::addr::{Ipa, Level, Pa};
use crate::attrs::Attrs;
use crate::error::Budget;
use crate::format;
use crate::maintenance::{CacheOp, Maintenance};
use crate::mem::TableMem;
use crate::sync;

impl<M: TableMem> Rtt<M> {
    /// RTT_MAP_UNPROTECTED for up to `count` neighbouring entries of one
    /// table (RMI has 1): memory of the host at `pa`, for loads, stores and
    /// fetches as `attrs` allow. Returns the first IPA not mapped.
    ///
    /// # Errors
    /// `Input`, for a block of more than 2 MiB whose memory has to be cleaned,
    /// too; `Rtt` with the level reached, or where something is mapped.
    // An RMI command's operands, the number of entries, CPU and budget.
    #[allow(clippy::too_many_arguments)]
    pub fn map_unprotected<T: Maintenance>(
        &mut self,
        maint: &mut T,
        ipa: Ipa,
        level: Level,
        pa: Pa,
        attrs: Attrs,
        count: usize,
        budget: &mut Budget,
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
        if core.needs_clean(attrs) && level.get() < core.shape.cleaned_top() {
            return Err(RttError::Input);
        }
        let slot = core.walk_to(ipa.get(), level.get());
        if slot.level != level.get() || slot.raw != UNPROTECTED {
            return Err(self.fault(&slot, ipa.get()));
        }
        let leaf = |oa: u64| {
            core.shape.encode_oa(oa) | attrs | UNPROTECTED | format::leaf_type(slot.level)
        };
        let most = count.min(core.entries_left(&slot)) as u64;
        let mut room = most.min(budget.left().max(1));
        if core.needs_clean(attrs) {
            room = room.min(budget.bytes_left() >> slot.shift).max(1);
        }
        let free = (0..room as usize)
            .take_while(|entry| core.mem.load(slot.table, slot.index + entry) == UNPROTECTED)
            .count() as u64;
        if core.needs_clean(attrs) {
            budget.spend_bytes(free * span);
        }
        core.maintain(maint, attrs, pa, free * span);
        budget.spend(free);
        for entry in 0..free {
            let raw = leaf(pa.get() + entry * span);
            core.mem.store(slot.table, slot.index + entry as usize, raw);
        }
        sync::publish(maint, &core.tlb);
        Ok(Ipa::new(ipa.get() + free * span))
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
        budget: &mut Budget,
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
        let raw = core.exchange(slot.table, slot.index, UNPROTECTED);
        self.forget(maint, &slot, ipa.get());
        if !core.fwb && format::is_seen_uncached(raw, false) {
            let size = core.shape.span(level);
            maint.cache(CacheOp::CleanInvalidateData { pa, size });
            budget.spend_bytes(size);
        }
        budget.spend(1);
        Ok(Removed {
            pa,
            top: self.top(&slot, ipa.get()),
        })
    }
}

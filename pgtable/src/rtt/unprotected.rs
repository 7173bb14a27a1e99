//! Memory of the host that a guest may use beside its own.

use super::{Removed, Rtt, RttError, RttState, UNPROTECTED};
use crate::addr::{Ipa, Level, Pa};
use crate::attrs::Attrs;
use crate::error::Budget;
use crate::format::{self, COMING};
use crate::maintenance::{CacheOp, Maintenance};
use crate::mem::TableMem;
use crate::sync;

impl<M: TableMem> Rtt<M> {
    /// RTT_MAP_UNPROTECTED for up to `count` neighbouring entries of one
    /// table (RMI has 1): memory of the host at `pa`, for loads, stores and
    /// fetches as `attrs` allow. Returns the first IPA not mapped.
    ///
    /// Until a command that said `Again` ends, or another takes its place,
    /// what was cleaned must stay so: nobody else gets the memory.
    ///
    /// # Errors
    /// `Input`; `Rtt` with the level reached, or where something is mapped;
    /// `Again` while the memory of a block is cleaned.
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
        let slot = core.walk_to(ipa.get(), level.get());
        // What a call began for a block and nobody went on with is nothing.
        let blank = |raw| raw == UNPROTECTED || format::is_coming(raw);
        if slot.level != level.get() || !blank(slot.raw) {
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
            .take_while(|entry| blank(core.mem.load(slot.table, slot.index + entry)))
            .count() as u64;
        if core.needs_clean(attrs) {
            let mask = format::cleaned_mask(&core.shape, slot.level);
            let coming = format::park(&core.shape, leaf(pa.get()), slot.level, COMING, 0);
            let cleaned = if slot.raw & !mask == coming {
                slot.raw & mask
            } else {
                0
            };
            let to = core.clean(maint, pa, free * span, cleaned, budget);
            if to < free * span {
                core.mem.store(slot.table, slot.index, coming | to);
                return Err(RttError::Again);
            }
        }
        budget.spend(free);
        if core.needs_fetch_sync(attrs) {
            maint.cache(CacheOp::InvalidateInstructions);
        }
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
    /// `Input`; `Rtt` with the level reached where nothing is mapped; `Again`
    /// while the memory of a block is cleaned, without FWB.
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
        // Held while it is cleaned: nothing else may come in its place.
        let held = if core.fwb {
            UNPROTECTED
        } else {
            format::freeze(slot.raw, slot.level)
        };
        if !format::is_frozen(slot.raw) {
            let _ = core.exchange(slot.table, slot.index, held);
            self.forget(maint, &slot, ipa.get());
        }
        if !core.fwb || format::is_frozen(slot.raw) {
            let place = (slot.table, slot.index);
            if !self.clean_out(maint, place, slot.raw, slot.level, budget) {
                return Err(RttError::Again);
            }
            core.mem.store(slot.table, slot.index, UNPROTECTED);
        }
        budget.spend(1);
        Ok(Removed {
            pa,
            top: self.top(&slot, ipa.get()),
        })
    }
}

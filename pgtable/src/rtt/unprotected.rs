//! Memory of the host that a guest may use beside its own.

use super::{Removed, Rtt, RttError, RttState, UNASSIGNED_NS, UNPROTECTED};
use crate::addr::{Ipa, Level, Pa};
use crate::attrs::Attrs;
use crate::error::Budget;
use crate::maintenance::Maintenance;
use crate::mem::TableMem;
use crate::sink::RemovedLeaf;
use crate::tree::Slot;

/// Memory of the host for neighbouring entries of one table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostPages {
    /// The first entry's IPA.
    pub ipa: Ipa,
    /// The entries' level.
    pub level: Level,
    /// The first one's memory; that of the others follows.
    pub pa: Pa,
    /// What loads, stores and fetches it allows.
    pub attrs: Attrs,
    /// How many entries, to the end of the table at most. RMI has 1.
    pub count: usize,
}

impl<M: TableMem> Rtt<M> {
    /// RTT_MAP_UNPROTECTED: the host's memory becomes the guest's, too. Returns the
    /// first IPA not mapped.
    ///
    /// # Errors
    /// `Input`, for a block of more than 2 MiB whose memory has to be cleaned,
    /// too; `Rtt` with the level reached, or where something is mapped.
    pub fn map_unprotected<T: Maintenance>(
        &mut self,
        maint: &mut T,
        map: &HostPages,
        budget: &mut Budget,
    ) -> Result<Ipa, RttError> {
        let &HostPages { ipa, level, pa, .. } = map;
        let core = &self.tree.core;
        let span = core.shape.span(level);
        let whole = (map.count as u64).checked_mul(span);
        let attrs = self.tree.geometry.encode_attrs(map.attrs);
        let (Some(size), Ok(attrs)) = (whole, attrs) else {
            return Err(RttError::Input);
        };
        let clean = core.features.needs_clean(attrs);
        if size == 0
            || core.shape.check_oa(pa, size).is_err()
            || (clean && level < core.shape.cleaned_top())
        {
            return Err(RttError::Input);
        }
        self.check_page(pa, span)?;
        let slot = self.unprotected(ipa, level)?;
        if slot.level != level || slot.desc != UNASSIGNED_NS {
            return Err(self.fault(&slot, ipa));
        }
        let most = map.count.min(core.entries_left(&slot)) as u64;
        let mut room = most.min(budget.left().max(1));
        if clean {
            room = room.min(budget.bytes_left() >> slot.shift).max(1);
        }
        let free = (0..room as usize)
            .take_while(|more| core.load(slot.table, slot.index + more) == UNASSIGNED_NS)
            .count();
        let size = free as u64 * span;
        if clean {
            budget.spend_bytes(size);
        }
        let mut work = core.work(maint);
        work.maintain(attrs, pa, size);
        budget.spend(free as u64);
        let attrs = attrs.with(UNPROTECTED);
        for more in 0..free {
            let pa = pa.plus(more as u64 * span);
            let leaf = attrs.leaf(&core.shape, pa, level);
            core.store(slot.table, slot.index + more, leaf);
        }
        work.publish();
        Ok(ipa.plus(size))
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
        let core = &self.tree.core;
        let slot = self.unprotected(ipa, level)?;
        let pa = match self.state(&slot) {
            RttState::AssignedNs { pa, .. } if slot.level == level => pa,
            _ => return Err(self.fault(&slot, ipa)),
        };
        let last = core.exchange(&slot, UNASSIGNED_NS);
        let mut work = core.work(maint);
        let _done = work.sync_leaf(&slot);
        let leaf = RemovedLeaf::new(&core.shape, slot.ia, level, last);
        budget.spend_bytes(work.clean_removed(&leaf));
        budget.spend(1);
        Ok(Removed {
            pa,
            top: self.top(&slot, ipa),
        })
    }

    /// Where a walk for an unprotected leaf of `level` at `ipa` ends.
    fn unprotected(&self, ipa: Ipa, level: Level) -> Result<Slot<M::Table>, RttError> {
        self.check(ipa, level)?;
        let core = &self.tree.core;
        if self.is_protected(ipa) || level < Level::L1 || !core.shape.leaf_ok(level) {
            return Err(RttError::Input);
        }
        Ok(core.walk_to(ipa.into(), level))
    }
}

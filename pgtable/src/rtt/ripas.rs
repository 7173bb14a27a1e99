//! RIPAS: what a realm was told of its addresses.

use super::{ChangeDestroyed, HIPAS_ASSIGNED, Ripas, Rtt, RttError, RttState};
use crate::addr::{Ipa, Level};
use crate::format;
use crate::maintenance::Maintenance;
use crate::mem::TableMem;
use crate::plan::Pending;
use crate::sync;

impl<M: TableMem> Rtt<M> {
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
        if base >= top || top.get() > self.protected_end || top.get() & core.shape.page_mask() != 0
        {
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
        if base >= top
            || top.get() > self.protected_end
            || top.get() & self.tree.core.shape.page_mask() != 0
        {
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
}

//! RIPAS: what a realm was told of its addresses.

use core::ops::Range;

use super::{HIPAS_ASSIGNED, Ripas, Rtt, RttError, RttState};
use crate::addr::{Ipa, Level};
use crate::desc::Desc;
use crate::maintenance::Maintenance;
use crate::mem::TableMem;
use crate::tree::Slot;

/// Whether a change of RIPAS includes destroyed memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChangeDestroyed {
    /// Destroyed memory stays destroyed: the change stops there.
    No,
    /// Destroyed memory changes too.
    Yes,
}

impl<M: TableMem> Rtt<M> {
    /// RTT_INIT_RIPAS: unassigned entries of `range` become RAM, to
    /// the end of one table. `measure` is told of each entry's range.
    /// Returns how far it came.
    ///
    /// # Errors
    /// `Input`; `Rtt` with the level reached if not one entry could change.
    pub fn init_ripas(
        &mut self,
        range: Range<Ipa>,
        mut measure: impl FnMut(Ipa, Ipa),
    ) -> Result<Ipa, RttError> {
        self.change_ripas(
            range,
            |entry| {
                let desc = entry.desc;
                let unassigned = desc.is_annotation() && !desc.has(HIPAS_ASSIGNED);
                unassigned.then(|| Ripas::Ram.unassigned())
            },
            |entry, _| measure(entry.ia.into(), entry.end().into()),
        )
    }

    /// RTT_SET_RIPAS: entries of `range` become `ripas`, to the end of
    /// one table or the first that cannot change. Returns how far it came.
    ///
    /// # Errors
    /// `Input`; `Rtt` with the level reached if not one entry could change.
    pub fn set_ripas<T: Maintenance>(
        &mut self,
        maint: &mut T,
        range: Range<Ipa>,
        ripas: Ripas,
        destroyed: ChangeDestroyed,
    ) -> Result<Ipa, RttError> {
        if ripas == Ripas::Destroyed {
            return Err(RttError::Input);
        }
        let core = &self.tree.core;
        let mut work = core.work(maint);
        let changes = &mut work.changes;
        let result = self.change_ripas(
            range,
            |entry| {
                let (was, pa) = match self.state(entry) {
                    RttState::Unassigned(was) => (was, None),
                    RttState::Assigned { ripas, pa } => (ripas, Some(pa)),
                    _ => return None,
                };
                if was == Ripas::Destroyed && destroyed == ChangeDestroyed::No {
                    return None;
                }
                if was == ripas {
                    return Some(entry.desc);
                }
                Some(match pa {
                    None => ripas.unassigned(),
                    Some(pa) => self.assigned(pa, ripas, entry.level),
                })
            },
            |entry, new| match (entry.desc.is_valid(), new.is_valid()) {
                (true, false) => {
                    changes
                        .pending()
                        .leaves(&core.shape, entry.extent(), entry.level);
                }
                (false, true) => changes.stored = true,
                _ => (),
            },
        );
        let _done = work.finish();
        result
    }

    /// RSI_IPA_STATE_GET: the RIPAS at the start of `range`, and how far in it
    /// and in the same table it holds.
    ///
    /// # Errors
    /// `Input`.
    pub fn ripas(&self, range: Range<Ipa>) -> Result<(Ripas, Ipa), RttError> {
        let slot = self.protected(&range)?;
        let of = |entry: &Slot<M::Table>| match self.state(entry) {
            RttState::Unassigned(ripas) | RttState::Assigned { ripas, .. } => Some(ripas),
            _ => None,
        };
        let first = of(&slot).ok_or(RttError::Input)?;
        let alike = self
            .entries_from(slot)
            .take_while(|entry| entry.ia < range.end.into() && of(entry) == Some(first));
        let end = alike.last().map_or(slot.end(), |entry| entry.end());
        Ok((first, range.end.min(end.into())))
    }

    /// Changes entries of one table from the range's start on, as `change` says.
    pub(crate) fn change_ripas(
        &self,
        range: Range<Ipa>,
        change: impl Fn(&Slot<M::Table>) -> Option<Desc>,
        mut changed: impl FnMut(&Slot<M::Table>, Desc),
    ) -> Result<Ipa, RttError> {
        let slot = self.protected(&range)?;
        let core = &self.tree.core;
        let start = range.start.into();
        let mut at = start;
        for entry in self.entries_from(slot) {
            // An entry changes whole or not at all.
            if entry.ia != at || entry.end() > range.end.into() {
                break;
            }
            let Some(new) = change(&entry) else {
                break;
            };
            if new != entry.desc {
                let _ = core.exchange(&entry, new);
            }
            changed(&entry, new);
            at = entry.end();
        }
        if at == start {
            return Err(self.fault(&slot, range.start));
        }
        Ok(at.into())
    }

    /// Where a walk for the start of a protected range ends.
    pub(crate) fn protected(&self, range: &Range<Ipa>) -> Result<Slot<M::Table>, RttError> {
        self.check(range.start, Level::L3)?;
        let core = &self.tree.core;
        let pages = range.end.get() & core.shape.page_mask() == 0;
        if range.is_empty() || range.end > self.protected_end || !pages {
            return Err(RttError::Input);
        }
        Ok(core.walk_to(range.start.into(), Level::L3))
    }

    /// The entries of a table from `slot` on.
    pub(crate) fn entries_from(
        &self,
        slot: Slot<M::Table>,
    ) -> impl Iterator<Item = Slot<M::Table>> {
        (0..self.table_end(&slot) - slot.index).map(move |more| {
            let desc = self.tree.core.load(slot.table, slot.index + more);
            slot.after(more, desc)
        })
    }
}

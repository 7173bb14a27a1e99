//! What a realm changes and asks of itself, and more to look at.

use core::ops::Range;

use crate::addr::{Ipa, Pa};
use crate::attrs::Attrs;
use crate::maintenance::Maintenance;
use crate::mem::TableMem;
use crate::rtt::{Ripas, Rtt, RttError, RttState};
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
    /// The first root table.
    pub const fn root(&self) -> Pa {
        self.tree.root()
    }

    /// Translates one IPA as hardware would, permissions apart.
    pub fn translate(&self, ipa: Ipa) -> Option<(Pa, Attrs)> {
        self.tree.translate(ipa)
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
}

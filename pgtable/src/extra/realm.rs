//! More of a realm's tables to look at.

use crate::addr::{Ipa, Pa};
use crate::attrs::Attrs;
use crate::mem::TableMem;
use crate::rtt::{Ripas, Rtt, RttError};

impl<M: TableMem> Rtt<M> {
    /// The first root table.
    pub const fn root(&self) -> Pa {
        self.tree.root()
    }

    /// Translates one IPA as hardware would, permissions apart.
    pub fn translate(&self, ipa: Ipa) -> Option<(Pa, Attrs)> {
        self.tree.translate(ipa)
    }

    /// Whether DATA_CREATE would find room at `ipa`, a protected page whose entry is
    /// unassigned: its RIPAS.
    ///
    /// # Errors
    /// `Input`; `Rtt` with the level reached.
    pub fn data_check(&self, ipa: Ipa) -> Result<Ripas, RttError> {
        self.vacant_page(ipa).map(|slot| Ripas::of(slot.desc))
    }
}

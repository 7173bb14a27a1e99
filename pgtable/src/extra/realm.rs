//! More of a realm's tables to look at.

use crate::addr::{Ipa, Pa};
use crate::attrs::Attrs;
use crate::mem::TableMem;
use crate::rtt::Rtt;

impl<M: TableMem> Rtt<M> {
    /// The first root table.
    pub const fn root(&self) -> Pa {
        self.tree.root()
    }

    /// Translates one IPA as hardware would, permissions apart.
    pub fn translate(&self, ipa: Ipa) -> Option<(Pa, Attrs)> {
        self.tree.translate(ipa)
    }
}

//! More of what is told of removed leaves.

use crate::addr::{Ipa, Level};
use crate::sink::{RemovedLeaf, RemovedRun};

impl RemovedLeaf {
    /// The first IPA.
    pub const fn ipa(&self) -> Ipa {
        Ipa::new(self.ia.get())
    }

    /// The level it stood at.
    pub const fn level(&self) -> Level {
        self.level
    }
}

impl RemovedRun {
    /// The first IPA.
    pub const fn ipa(&self) -> Ipa {
        self.first.ipa()
    }

    /// The level of the leaves.
    pub const fn level(&self) -> Level {
        self.first.level
    }

    /// The first one's descriptor; those of the others differ in the output
    /// address.
    pub const fn raw(&self) -> u64 {
        self.first.raw()
    }
}

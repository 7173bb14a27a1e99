//! The names that an assembler knows instructions by.

use core::fmt;

use crate::maintenance::{Barrier, Tlbi, TlbiKind};

impl Barrier {
    /// The instruction, as an assembler writes it.
    pub const fn mnemonic(self) -> &'static str {
        match self {
            Self::DsbIshst => "dsb ishst",
            Self::DsbIsh => "dsb ish",
            Self::DsbNshst => "dsb nshst",
            Self::DsbNsh => "dsb nsh",
            Self::Isb => "isb",
        }
    }
}

impl TlbiKind {
    /// The operation, as an assembler writes it.
    pub const fn mnemonic(self) -> &'static str {
        match self {
            Self::Ipas2e1is => "ipas2e1is",
            Self::Ripas2e1is => "ripas2e1is",
            Self::Ipas2e1 => "ipas2e1",
            Self::Vmalle1is => "vmalle1is",
            Self::Vmalle1 => "vmalle1",
            Self::Vmalls12e1is => "vmalls12e1is",
            Self::Alle1is => "alle1is",
            Self::Vae2is => "vae2is",
            Self::Rvae2is => "rvae2is",
            Self::Alle2is => "alle2is",
        }
    }

    /// True when the instruction takes a register.
    pub const fn has_operand(self) -> bool {
        matches!(
            self,
            Self::Ipas2e1is | Self::Ripas2e1is | Self::Ipas2e1 | Self::Vae2is | Self::Rvae2is
        )
    }
}

impl fmt::Display for Tlbi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.kind().has_operand() {
            write!(
                f,
                "tlbi {}, {:#018x}",
                self.kind().mnemonic(),
                self.operand()
            )
        } else {
            write!(f, "tlbi {}", self.kind().mnemonic())
        }
    }
}

//! Errors of machines that table code has to work around, as a table:
//! name, condition, work-around.

use core::ops::BitOr;

/// A set of errata in force on the machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Errata(u32);

impl Errata {
    /// None.
    pub const NONE: Self = Self(0);
    /// See `ERRATA`.
    pub const QEMU_RANGE_LENGTH: Self = Self(1 << 0);
    /// See `ERRATA`.
    pub const TLBI_SYNC_REPEAT: Self = Self(1 << 1);

    /// True when all of `other` are in force.
    #[inline]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets together.
    #[inline]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOr for Errata {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        self.with(other)
    }
}

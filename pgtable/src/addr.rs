//! Typed addresses: what a number means is part of its type.
//!
//! Raw `u64` appears only at the encoders of descriptors, registers and TLBI
//! operands, and at a caller's ABI.

use core::fmt;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident, $word:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// Makes an address of a byte number. Any number is accepted:
            /// what it is used for checks its range.
            #[inline]
            pub const fn new(byte: u64) -> Self {
                Self(byte)
            }

            /// The byte number.
            #[inline]
            pub const fn get(self) -> u64 {
                self.0
            }

        }

        #[cfg(feature = "extra")]
        impl $name {
            /// The address `bytes` further up, or `None` past 2^64.
            #[inline]
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(sum) => Some(Self(sum)),
                    None => None,
                }
            }

            /// True when the address is a multiple of 2^`bits` bytes.
            #[inline]
            pub const fn is_aligned(self, bits: u32) -> bool {
                bits < 64 && self.0 & ((1 << bits) - 1) == 0
            }

            /// The multiple of 2^`bits` bytes at or below the address.
            #[inline]
            pub const fn align_down(self, bits: u32) -> Self {
                if bits < 64 {
                    Self(self.0 & !((1 << bits) - 1))
                } else {
                    Self(0)
                }
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($word, " {:#x}"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

address! {
    /// An intermediate physical address: what a guest takes for physical.
    Ipa, "IPA"
}
address! {
    /// A physical address.
    Pa, "PA"
}
address! {
    /// A virtual address of EL2's own stage 1.
    Va, "VA"
}

/// An input address of some regime: [`Ipa`] for stage 2, [`Va`] for EL2.
pub trait InputAddress: Copy + fmt::Debug {
    /// Makes an address of a byte number.
    fn from_raw(byte: u64) -> Self;
}

impl InputAddress for Ipa {
    #[inline]
    fn from_raw(byte: u64) -> Self {
        Self(byte)
    }
}

impl InputAddress for Va {
    #[inline]
    fn from_raw(byte: u64) -> Self {
        Self(byte)
    }
}

/// A level of lookup, −1 to 3. Pages are at level 3.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Level(i8);

impl Level {
    /// Level −1: only with a 4K granule and LPA2.
    pub const MINUS_1: Self = Self(-1);
    /// Level 0.
    pub const L0: Self = Self(0);
    /// Level 1.
    pub const L1: Self = Self(1);
    /// Level 2.
    pub const L2: Self = Self(2);
    /// Level 3: pages.
    pub const L3: Self = Self(3);

    /// Makes a level of its number, −1 to 3.
    #[inline]
    pub const fn new(number: i8) -> Option<Self> {
        if number >= -1 && number <= 3 {
            Some(Self(number))
        } else {
            None
        }
    }

    /// The number, −1 to 3.
    #[inline]
    pub const fn get(self) -> i8 {
        self.0
    }
}

impl fmt::Debug for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "L{}", self.0)
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "level {}", self.0)
    }
}

/// A virtual machine identifier: the tag of a guest's TLB entries.
///
/// Only 8 of the 16 bits count unless `VTCR_EL2.VS` is set.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Vmid(u16);

impl Vmid {
    /// Makes an identifier of its number.
    #[inline]
    pub const fn new(number: u16) -> Self {
        Self(number)
    }

    /// The number.
    #[inline]
    pub const fn get(self) -> u16 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_outside_the_architecture_are_refused() {
        assert_eq!(Level::new(-2), None);
        assert_eq!(Level::new(4), None);
        for number in -1..=3 {
            assert_eq!(Level::new(number).map(Level::get), Some(number));
        }
    }

    #[test]
    fn alignment_is_in_bits() {
        assert!(Ipa::new(0x4000).is_aligned(14));
        assert!(!Ipa::new(0x4000).is_aligned(15));
        assert!(!Ipa::new(0).is_aligned(64));
        assert_eq!(Pa::new(0x12345).align_down(12), Pa::new(0x12000));
        assert_eq!(Pa::new(u64::MAX).checked_add(1), None);
    }
}

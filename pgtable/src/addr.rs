//! Typed addresses: what a number means is part of its type.
//!
//! Raw `u64` appears only at the encoders of descriptors, registers and TLBI
//! operands, and at a caller's ABI. Sizes and offsets are numbers of bytes.

use core::fmt;

macro_rules! address {
    ($(#[$doc:meta])* $seen:vis $name:ident, $word:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        $seen struct $name(u64);

        impl $name {
            /// Makes an address of a byte number. Any number is accepted:
            /// what it is used for checks its range.
            #[inline]
            pub const fn new(byte: u64) -> Self {
                Self(byte)
            }
        }

        // Not every kind of address needs each.
        #[allow(dead_code)]
        impl $name {
            /// The byte number.
            #[inline]
            pub const fn get(self) -> u64 {
                self.0
            }

            /// The address `bytes` further up, of a space that has it.
            #[inline]
            pub(crate) const fn plus(self, bytes: u64) -> Self {
                Self(self.0.wrapping_add(bytes))
            }

            /// True when `size` bytes from here on lie in a space of 2^`bits`.
            #[inline]
            pub(crate) const fn reaches(self, size: u64, bits: u8) -> bool {
                // A sum that wraps is below one of its parts, and both are checked.
                let limit = 1u64.wrapping_shl(bits as u32);
                let end = self.0.wrapping_add(size);
                self.0 <= limit && size <= limit && end <= limit
            }

            /// The first address of the piece of `size` bytes, a power of two,
            /// that this one is in.
            #[inline]
            pub(crate) const fn floor(self, size: u64) -> Self {
                Self(self.0 & !size.wrapping_sub(1))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($word, " {:#x}"), self.0)
            }
        }
    };
}

address! {
    /// An intermediate physical address: what a guest takes for physical.
    pub Ipa, "IPA"
}
address! {
    /// A physical address.
    pub Pa, "PA"
}
address! {
    /// A virtual address of EL2's own stage 1.
    pub Va, "VA"
}
address! {
    /// An input address of whatever regime a tree serves: an [`Ipa`] of a stage 2,
    /// a [`Va`] of EL2.
    pub(crate) Ia, "IA"
}

macro_rules! input {
    ($name:ident) => {
        impl From<$name> for Ia {
            #[inline]
            fn from(address: $name) -> Self {
                Self(address.0)
            }
        }

        impl From<Ia> for $name {
            #[inline]
            fn from(address: Ia) -> Self {
                Self(address.0)
            }
        }
    };
}

input!(Ipa);
input!(Va);

impl Ia {
    /// How far it is above `other`.
    #[inline]
    pub(crate) const fn since(self, other: Self) -> u64 {
        self.0.wrapping_sub(other.0)
    }

    /// What an output address is above it: the same for all of a range that is
    /// mapped in one piece.
    #[inline]
    pub(crate) const fn to(self, pa: Pa) -> u64 {
        pa.0.wrapping_sub(self.0)
    }
}

/// The addresses from `start` on, up to `end`, which is not of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Extent {
    pub(crate) start: Ia,
    pub(crate) end: Ia,
}

impl Extent {
    pub(crate) const EMPTY: Self = Self::new(Ia(0), 0);

    /// `size` bytes from `start` on.
    #[inline]
    pub(crate) const fn new(start: Ia, size: u64) -> Self {
        Self {
            start,
            end: start.plus(size),
        }
    }

    #[inline]
    pub(crate) const fn size(self) -> u64 {
        self.end.since(self.start)
    }

    #[inline]
    pub(crate) const fn is_empty(self) -> bool {
        self.start.0 >= self.end.0
    }

    /// True when all of `other` is in it.
    #[inline]
    pub(crate) const fn covers(self, other: Self) -> bool {
        self.start.0 <= other.start.0 && other.end.0 <= self.end.0
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

    /// How many levels it is above the pages'.
    #[inline]
    pub(crate) const fn above_pages(self) -> u32 {
        3i8.wrapping_sub(self.0) as u32
    }

    /// How many levels it is below `other`; less than nothing above it.
    #[inline]
    pub(crate) const fn below(self, other: Self) -> i32 {
        (self.0 as i32).wrapping_sub(other.0 as i32)
    }

    /// So many levels further up.
    #[inline]
    pub(crate) const fn above(self, levels: i32) -> Self {
        Self((self.0 as i32).wrapping_sub(levels) as i8)
    }

    /// That of the tables below an entry of this level, which is no page.
    #[inline]
    pub(crate) const fn down(self) -> Self {
        Self(self.0.wrapping_add(1))
    }

    /// That of the entry above a table of this level, which is no root.
    #[inline]
    pub(crate) const fn up(self) -> Self {
        Self(self.0.wrapping_sub(1))
    }
}

impl fmt::Debug for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "L{}", self.0)
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

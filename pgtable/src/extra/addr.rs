//! More arithmetic of addresses.

use core::fmt;

use crate::addr::{Ipa, Pa, Va};

macro_rules! arithmetic {
    ($name:ident) => {
        impl $name {
            /// The address `bytes` further up, or `None` past 2^64.
            #[inline]
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.get().checked_add(bytes) {
                    Some(sum) => Some(Self::new(sum)),
                    None => None,
                }
            }

            /// True when the address is a multiple of 2^`bits` bytes.
            #[inline]
            pub const fn is_aligned(self, bits: u32) -> bool {
                bits < 64 && self.get() & ((1 << bits) - 1) == 0
            }

            /// The multiple of 2^`bits` bytes at or below the address.
            #[inline]
            pub const fn align_down(self, bits: u32) -> Self {
                if bits < 64 {
                    self.floor(1 << bits)
                } else {
                    Self::new(0)
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.get())
            }
        }
    };
}

arithmetic!(Ipa);
arithmetic!(Pa);
arithmetic!(Va);

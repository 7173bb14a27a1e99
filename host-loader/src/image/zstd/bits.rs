//! Bits of a slice, from its start ([`Forward`]) or from its end ([`Backward`]).

use super::CORRUPT;
use crate::image::ImageError;

/// Bits from the first byte on, lowest first.
pub struct Forward<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Forward<'a> {
    /// All of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// The next `count` bits, at most 16; an error where the slice has fewer.
    pub fn take(&mut self, count: u32) -> Result<u32, ImageError> {
        let end = self.at + count as usize;
        if end > 8 * self.bytes.len() {
            return Err(CORRUPT);
        }
        let word = (0..3).rev().fold(0u32, |word, i| {
            word << 8 | u32::from(self.bytes.get(self.at / 8 + i).copied().unwrap_or(0))
        });
        let value = word >> (self.at % 8) & ((1 << count) - 1);
        self.at = end;
        Ok(value)
    }

    /// Gives the last bit back.
    pub fn back(&mut self) {
        self.at = self.at.saturating_sub(1);
    }

    /// Bytes that were begun.
    pub fn bytes_read(&self) -> usize {
        self.at.div_ceil(8)
    }
}

/// Bits from the last byte down, highest first, below a closing 1 bit.
pub struct Backward<'a> {
    bytes: &'a [u8],
    /// Bits not taken yet; negative when more were taken than there were.
    left: isize,
}

/// The most bits that one call reads.
const MOST: u32 = 56;

impl<'a> Backward<'a> {
    /// The bits below the highest 1 of the last byte, which must have one.
    pub fn new(bytes: &'a [u8]) -> Result<Self, ImageError> {
        let last = bytes.last().copied().filter(|&last| last != 0);
        let padding = last.ok_or(CORRUPT)?.leading_zeros() as usize + 1;
        Ok(Self {
            bytes,
            left: (8 * bytes.len() - padding) as isize,
        })
    }

    /// Bits not taken yet; negative when more were taken than there were.
    #[inline]
    pub fn left(&self) -> isize {
        self.left
    }

    /// The next `count` bits, at most 56, without taking them. Below the start
    /// of the slice there are zeroes.
    #[inline]
    pub fn peek(&self, count: u32) -> u64 {
        debug_assert!(count <= MOST);
        let start = self.left - count as isize;
        if start >= 0 {
            return self.load(start as usize) & ((1 << count) - 1);
        }
        if self.left <= 0 {
            return 0;
        }
        (self.load(0) & ((1 << self.left) - 1)) << -start
    }

    /// Takes `count` bits.
    #[inline]
    pub fn skip(&mut self, count: u32) {
        self.left -= count as isize;
    }

    /// The next `count` bits, at most 56.
    #[inline]
    pub fn take(&mut self, count: u32) -> u64 {
        let value = self.peek(count);
        self.skip(count);
        value
    }

    /// Bits from number `start` of the slice on: 57 or all there are.
    #[inline]
    fn load(&self, start: usize) -> u64 {
        let byte = start / 8;
        if let Some(word) = self.bytes.get(byte..).and_then(|rest| rest.first_chunk()) {
            return u64::from_le_bytes(*word) >> (start % 8);
        }
        // The last bytes: as part of the last word, or of a short slice.
        if let Some(word) = self.bytes.last_chunk() {
            return u64::from_le_bytes(*word) >> (start + 64 - 8 * self.bytes.len());
        }
        let word = (self.bytes.iter().rev()).fold(0, |word, &byte| word << 8 | u64::from(byte));
        word >> start
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    proptest! {
        #[test]
        fn bits_come_in_order_and_then_zeroes(
            mut bytes in prop::collection::vec(any::<u8>(), 1..40),
            counts in prop::collection::vec(0u32..=56, 1..40),
        ) {
            *bytes.last_mut().unwrap() |= 1;
            let mut bits: Vec<u64> =
                bytes.iter().flat_map(|&b| (0..8).map(move |i| u64::from(b >> i & 1))).collect();
            while bits.pop() == Some(0) {}
            let mut reader = Backward::new(&bytes).unwrap();
            for count in counts {
                prop_assert_eq!(reader.left(), bits.len() as isize - missing(&reader, bits.len()));
                let expected = (0..count).fold(0, |value, _| value << 1 | bits.pop().unwrap_or(0));
                prop_assert_eq!(reader.take(count), expected);
            }
        }

        #[test]
        fn forward_bits_end_with_the_slice(
            bytes in prop::collection::vec(any::<u8>(), 0..9),
            counts in prop::collection::vec(0u32..=16, 1..20),
        ) {
            let mut reader = Forward::new(&bytes);
            let bit = |at: usize| u32::from(bytes[at / 8] >> (at % 8) & 1);
            let mut at = 0;
            for count in counts {
                let end = at + count as usize;
                if end > 8 * bytes.len() {
                    prop_assert!(reader.take(count).is_err());
                    break;
                }
                let expected = (at..end).rev().fold(0, |value, i| value << 1 | bit(i));
                prop_assert_eq!(reader.take(count).unwrap(), expected);
                at = end;
                prop_assert_eq!(reader.bytes_read(), at.div_ceil(8));
            }
        }
    }

    /// Bits that were read and never there.
    fn missing(reader: &Backward<'_>, there: usize) -> isize {
        if there == 0 { -reader.left() } else { 0 }
    }
}

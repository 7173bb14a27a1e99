//! The Huffman code of literals (RFC 8878, 4.2).

use super::CORRUPT;
use super::bits::Backward;
use super::fse::{self, Limits};
use crate::image::ImageError;

/// The longest code, in bits.
const LONGEST: u32 = 11;
/// The most weights that are written; the last symbol's follows from them.
const WEIGHTS: usize = 255;

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    symbol: u8,
    bits: u8,
}

/// A decoding table; empty until it is read.
#[derive(Clone, Debug)]
pub struct Table {
    longest: u32,
    codes: [Entry; 1 << LONGEST],
    /// Of the weights.
    states: fse::Table,
}

impl Table {
    /// An empty table.
    pub const fn new() -> Self {
        const NONE: Entry = Entry { symbol: 0, bits: 0 };
        Self {
            longest: 0,
            codes: [NONE; 1 << LONGEST],
            states: fse::Table::new(),
        }
    }

    /// It is not read yet, or no longer.
    pub fn is_empty(&self) -> bool {
        self.longest == 0
    }

    /// Makes it empty.
    pub fn clear(&mut self) {
        self.longest = 0;
    }

    /// Reads a description: how many bytes it took.
    pub fn read(&mut self, source: &[u8]) -> Result<usize, ImageError> {
        self.longest = 0;
        let mut weights = [0u8; WEIGHTS + 1];
        let (&first, rest) = source.split_first().ok_or(CORRUPT)?;
        let (count, size) = if first < 128 {
            let size = usize::from(first);
            let count = self.packed_weights(rest.get(..size).ok_or(CORRUPT)?, &mut weights)?;
            (count, size)
        } else {
            let count = usize::from(first) - 127;
            let size = count.div_ceil(2);
            let nibbles = rest.get(..size).ok_or(CORRUPT)?;
            for (pair, &byte) in weights.chunks_mut(2).zip(nibbles) {
                pair.copy_from_slice(&[byte >> 4, byte & 0xf]);
            }
            weights[count..].fill(0);
            (count, size)
        };
        self.make(&mut weights, count)?;
        Ok(1 + size)
    }

    /// Weights by two states that take turns.
    fn packed_weights(
        &mut self,
        source: &[u8],
        weights: &mut [u8; WEIGHTS + 1],
    ) -> Result<usize, ImageError> {
        let limits = Limits {
            log: 6,
            symbol: LONGEST as u8 + 1,
        };
        let described = self.states.read(source, limits)?;
        let mut bits = Backward::new(source.get(described..).ok_or(CORRUPT)?)?;
        let table = &self.states;
        let mut now = fse::State::first(table, &mut bits);
        let mut then = fse::State::first(table, &mut bits);
        for count in 0..WEIGHTS - 1 {
            weights[count] = now.symbol();
            now = now.next(table, &mut bits);
            if bits.left() < 0 {
                weights[count + 1] = then.symbol();
                return Ok(count + 2);
            }
            core::mem::swap(&mut now, &mut then);
        }
        Err(CORRUPT)
    }

    /// Makes the table of `count` weights and the one that follows from them.
    fn make(&mut self, weights: &mut [u8; WEIGHTS + 1], count: usize) -> Result<(), ImageError> {
        let mut sum = 0u32;
        for &weight in &weights[..count] {
            if u32::from(weight) > LONGEST + 1 {
                return Err(CORRUPT);
            }
            sum += 1 << weight >> 1;
        }
        let longest = 32 - sum.leading_zeros();
        // Bits of no symbol's: all is the last one's, a power of two.
        let rest = (1u32 << longest) - sum;
        if sum == 0 || longest > LONGEST || !rest.is_power_of_two() {
            return Err(CORRUPT);
        }
        weights[count] = rest.ilog2() as u8 + 1;
        // Codes ascend by weight, then by symbol.
        let mut at = 0;
        for weight in 1..=longest {
            let size = 1usize << (weight - 1);
            for (symbol, _) in (0..=255u8)
                .zip(&weights[..=count])
                .filter(|&(_, &w)| u32::from(w) == weight)
            {
                self.codes[at..at + size].fill(Entry {
                    symbol,
                    bits: (longest + 1 - weight) as u8,
                });
                at += size;
            }
        }
        self.longest = longest;
        Ok(())
    }

    /// Unpacks a stream that holds exactly as many symbols as `out`.
    pub fn unpack(&self, stream: &[u8], out: &mut [u8]) -> Result<(), ImageError> {
        let mut bits = Backward::new(stream)?;
        let longest = self.longest;
        // Four codes at most take what one look can show.
        let (many, few) = out.as_chunks_mut::<4>();
        for out in many {
            let mut word = bits.peek(4 * LONGEST);
            let mut used = 0;
            for out in out {
                let code = self.codes[(word >> (4 * LONGEST - longest)) as usize & 0x7ff];
                *out = code.symbol;
                used += u32::from(code.bits);
                word = word << code.bits & ((1 << (4 * LONGEST)) - 1);
            }
            bits.skip(used);
        }
        for out in few {
            let code = self.codes[bits.peek(longest) as usize & 0x7ff];
            *out = code.symbol;
            bits.skip(code.bits.into());
        }
        if bits.left() == 0 {
            Ok(())
        } else {
            Err(CORRUPT)
        }
    }
}

//! Tables of finite state entropy (RFC 8878, 4.1).

use super::CORRUPT;
use super::bits::{Backward, Forward};
use crate::image::ImageError;

/// The most states of a table: of literal and match lengths.
const STATES: usize = 1 << 9;
/// The most symbols that are told apart: of match lengths.
pub const SYMBOLS: usize = 53;

/// A state: what it stands for, and how the next one is found.
#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    base: u16,
    symbol: u8,
    bits: u8,
}

/// A decoding table; empty until it is made.
#[derive(Clone, Debug)]
pub struct Table {
    log: u32,
    states: [Entry; STATES],
    made: bool,
}

/// Which tables there may be.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// log2 of the states at most, up to 9.
    pub log: u32,
    /// The highest symbol, below [`SYMBOLS`].
    pub symbol: u8,
}

impl Table {
    /// An empty table.
    pub const fn new() -> Self {
        const NONE: Entry = Entry {
            base: 0,
            symbol: 0,
            bits: 0,
        };
        Self {
            log: 0,
            states: [NONE; STATES],
            made: false,
        }
    }

    /// It is not made yet, or no longer.
    pub fn is_empty(&self) -> bool {
        !self.made
    }

    /// Makes it empty.
    pub fn clear(&mut self) {
        self.made = false;
    }

    /// The table of one symbol, which takes no bits.
    pub fn repeat(&mut self, symbol: u8) {
        self.log = 0;
        self.states[0] = Entry {
            base: 0,
            symbol,
            bits: 0,
        };
        self.made = true;
    }

    /// Reads a description of probabilities: how many bytes it took.
    pub fn read(&mut self, source: &[u8], limits: Limits) -> Result<usize, ImageError> {
        self.made = false;
        let mut bits = Forward::new(source);
        let log = 5 + bits.take(4)?;
        if log > limits.log {
            return Err(CORRUPT);
        }
        let mut odds = [0i16; SYMBOLS];
        let mut symbol = 0usize;
        let mut left = 1u32 << log;
        while left > 0 {
            // Values up to left + 1; the low ones take a bit less.
            let most = left + 1;
            let width = 32 - most.leading_zeros();
            let value = bits.take(width)?;
            let low = (1 << width) - 1 - most;
            let mask = (1 << (width - 1)) - 1;
            let value = if value & mask < low {
                bits.back();
                value & mask
            } else if value > mask {
                value - low
            } else {
                value
            };
            let odd = value as i16 - 1;
            if symbol > usize::from(limits.symbol) {
                return Err(CORRUPT);
            }
            odds[symbol] = odd;
            symbol += 1;
            left -= u32::from(odd.unsigned_abs());
            if odd == 0 {
                // Then two bits at a time tell how many more have none.
                loop {
                    let more = bits.take(2)?;
                    symbol += more as usize;
                    if more != 3 {
                        break;
                    }
                }
            }
        }
        self.make(log, odds.get(..symbol).ok_or(CORRUPT)?);
        Ok(bits.bytes_read())
    }

    /// Makes the table of these probabilities, whose sum is 2^`log`; -1 is a
    /// probability below 1, which counts as 1.
    pub fn make(&mut self, log: u32, odds: &[i16]) {
        let size = 1usize << log;
        let mut next = [0u16; SYMBOLS];
        let mut high = size;
        for (symbol, &odd) in odds.iter().enumerate() {
            if odd == -1 {
                high -= 1;
                self.states[high].symbol = symbol as u8;
            }
            next[symbol] = odd.unsigned_abs();
        }
        let mut at = 0;
        for (symbol, &odd) in odds.iter().enumerate() {
            for _ in 0..odd.max(0) {
                self.states[at].symbol = symbol as u8;
                loop {
                    at = (at + (size >> 1) + (size >> 3) + 3) & (size - 1);
                    if at < high || at == 0 {
                        break;
                    }
                }
            }
        }
        for state in &mut self.states[..size] {
            let number = &mut next[usize::from(state.symbol)];
            let bits = log - number.ilog2();
            state.bits = bits as u8;
            state.base = (*number << bits) - size as u16;
            *number += 1;
        }
        self.log = log;
        self.made = true;
    }
}

/// A state of a table.
#[derive(Clone, Copy, Debug)]
pub struct State(Entry);

impl State {
    /// The first one.
    #[inline]
    pub fn first(table: &Table, bits: &mut Backward<'_>) -> Self {
        Self(table.states[bits.take(table.log) as usize % STATES])
    }

    /// What it stands for.
    #[inline]
    pub fn symbol(self) -> u8 {
        self.0.symbol
    }

    /// The one after it.
    #[inline]
    pub fn next(self, table: &Table, bits: &mut Backward<'_>) -> Self {
        let more = bits.take(self.0.bits.into()) as usize;
        Self(table.states[(usize::from(self.0.base) + more) % STATES])
    }
}

//! The sequences of a block (RFC 8878, 3.1.1.3.2): so many literals, then so many
//! bytes from so far back.

use super::CORRUPT;
use super::bits::Backward;
use super::fse::{Limits, State, Table};
use super::ring::Ring;
use crate::image::ImageError;

/// What carries over from block to block.
#[derive(Clone, Debug)]
pub struct Tables {
    literals: Table,
    offsets: Table,
    matches: Table,
    /// The last three distances.
    recent: [u32; 3],
}

const LITERALS: Limits = Limits { log: 9, symbol: 35 };
const OFFSETS: Limits = Limits { log: 8, symbol: 31 };
const MATCHES: Limits = Limits { log: 9, symbol: 52 };

/// The predefined probabilities (RFC 8878, 3.1.1.3.2.2).
const LITERAL_ODDS: [i16; 36] = [
    4, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 2, 1, 1, 1, 1, 1,
    -1, -1, -1, -1,
];
const MATCH_ODDS: [i16; 53] = [
    1, 4, 3, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
    1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1,
];
const OFFSET_ODDS: [i16; 29] = [
    1, 1, 1, 1, 1, 1, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1,
];

/// Bits of a literal length's code: none up to 15.
const LITERAL_BITS: [u8; 20] = [
    1, 1, 1, 1, 2, 2, 3, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16,
];
/// Bits of a match length's code: none up to 31.
const MATCH_BITS: [u8; 21] = [
    1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16,
];

/// Each code's least length and the bits that add to it.
static LITERAL_LENGTHS: [(u32, u8); 36] = lengths(0, &LITERAL_BITS);
static MATCH_LENGTHS: [(u32, u8); 53] = lengths(3, &MATCH_BITS);

/// The table of codes from length `least` on, the last of which take `bits`.
const fn lengths<const N: usize>(least: u32, bits: &[u8]) -> [(u32, u8); N] {
    let mut all = [(0, 0); N];
    let (mut code, mut length) = (0, least);
    while code < N {
        let single = N - bits.len();
        let width = if code < single {
            0
        } else {
            bits[code - single]
        };
        all[code] = (length, width);
        length += 1 << width;
        code += 1;
    }
    all
}

impl Tables {
    /// Those of a frame's beginning.
    pub const fn new() -> Self {
        Self {
            literals: Table::new(),
            offsets: Table::new(),
            matches: Table::new(),
            recent: [1, 4, 8],
        }
    }

    /// As at a frame's beginning.
    pub fn clear(&mut self) {
        for table in [&mut self.literals, &mut self.offsets, &mut self.matches] {
            table.clear();
        }
        self.recent = [1, 4, 8];
    }

    /// Carries out the section `source` upon `literals`.
    pub fn execute(
        &mut self,
        source: &[u8],
        mut literals: &[u8],
        out: &mut Ring<'_>,
    ) -> Result<(), ImageError> {
        let (count, source) = count(source)?;
        if count == 0 {
            if !source.is_empty() {
                return Err(CORRUPT);
            }
            return out.push(literals);
        }
        let mut bits = Backward::new(self.read(source)?)?;
        let mut literal = State::first(&self.literals, &mut bits);
        let mut offset = State::first(&self.offsets, &mut bits);
        let mut matched = State::first(&self.matches, &mut bits);
        for left in (0..count).rev() {
            let wide = u32::from(offset.symbol() & 31);
            let offset_value = (1 << wide) + bits.take(wide) as u32;
            let (least, width) = MATCH_LENGTHS[usize::from(matched.symbol())];
            let match_length = least + bits.take(width.into()) as u32;
            let (least, width) = LITERAL_LENGTHS[usize::from(literal.symbol())];
            let literal_length = (least + bits.take(width.into()) as u32) as usize;
            if left > 0 {
                literal = literal.next(&self.literals, &mut bits);
                matched = matched.next(&self.matches, &mut bits);
                offset = offset.next(&self.offsets, &mut bits);
            }
            let (now, later) = literals.split_at_checked(literal_length).ok_or(CORRUPT)?;
            literals = later;
            out.push(now)?;
            let distance = self.distance(offset_value, literal_length == 0);
            out.repeat(distance as usize, match_length as usize)?;
        }
        if bits.left() != 0 {
            return Err(CORRUPT);
        }
        out.push(literals)
    }

    /// Makes the three tables as the section says: what is behind that.
    fn read<'s>(&mut self, source: &'s [u8]) -> Result<&'s [u8], ImageError> {
        let (&modes, mut rest) = source.split_first().ok_or(CORRUPT)?;
        if modes & 3 != 0 {
            return Err(CORRUPT);
        }
        for (mode, table, limits, log, odds) in [
            (
                modes >> 6,
                &mut self.literals,
                LITERALS,
                6,
                &LITERAL_ODDS[..],
            ),
            (modes >> 4 & 3, &mut self.offsets, OFFSETS, 5, &OFFSET_ODDS),
            (modes >> 2 & 3, &mut self.matches, MATCHES, 6, &MATCH_ODDS),
        ] {
            let size = match mode {
                0 => {
                    table.make(log, odds);
                    0
                }
                1 => {
                    let symbol = rest.first().filter(|&&s| s <= limits.symbol);
                    table.repeat(*symbol.ok_or(CORRUPT)?);
                    1
                }
                2 => table.read(rest, limits)?,
                _ if table.is_empty() => return Err(CORRUPT),
                _ => 0,
            };
            rest = rest.get(size..).ok_or(CORRUPT)?;
        }
        Ok(rest)
    }

    /// The distance that `value` says: one of the last three, or a new one. 0 is
    /// none.
    #[inline]
    fn distance(&mut self, value: u32, no_literals: bool) -> u32 {
        let [first, second, third] = self.recent;
        // Without literals the last distance makes no sense, and all shift by one.
        let distance = match (value, no_literals) {
            (1, false) => return first,
            (2, false) | (1, true) => {
                self.recent = [second, first, third];
                return second;
            }
            (3, false) | (2, true) => third,
            (3, true) => first - 1,
            _ => value - 3,
        };
        self.recent = [distance, first, second];
        distance
    }
}

/// The number of sequences, and what is behind it.
fn count(source: &[u8]) -> Result<(u32, &[u8]), ImageError> {
    match *source {
        [first @ 0..128, ref rest @ ..] => Ok((first.into(), rest)),
        [0xff, low, high, ref rest @ ..] => {
            Ok((u32::from(u16::from_le_bytes([low, high])) + 0x7f00, rest))
        }
        [first @ 128..=254, low, ref rest @ ..] => {
            Ok((u32::from(first - 128) << 8 | u32::from(low), rest))
        }
        _ => Err(CORRUPT),
    }
}

//! Which pieces of a guest's RAM are populated.
//!
//! RAM that a guest gets holds what others left there. A piece of it is *claimed*
//! by whoever zeroes it, before anything else is done to it, and *mapped* once the
//! guest has it. A guest whose RAM is populated lazily has each piece when it first
//! touches it, from several CPUs at once perhaps: one of them claims it.

use alloc::boxed::Box;
use core::sync::atomic::{AtomicU64, Ordering};
use guest_config::check::MEMORY_UNIT;

/// Bytes of a piece, and what it is aligned to, as the guest sees it. So much is
/// zeroed in one go at a guest's first touch: a level-2 block of 4K tables, and a
/// number of pages of the others, whose blocks would hold up a CPU for long.
pub const PIECE_SIZE: u64 = MEMORY_UNIT;

/// When the guest got a piece of RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Populated {
    /// Here.
    Now,
    /// Before, or from another CPU meanwhile.
    Before,
}

/// The pieces of one guest, by their number from RAM's base.
#[derive(Debug)]
pub struct Pieces {
    claimed: Bits,
    mapped: Bits,
}

impl Pieces {
    /// Those of `size` bytes (a multiple of [`PIECE_SIZE`]), none of them claimed.
    pub fn new(size: u64) -> Self {
        let count = (size / PIECE_SIZE) as usize;
        Self {
            claimed: Bits::new(count),
            mapped: Bits::new(count),
        }
    }

    /// Claims a piece: true for the one who is to zero it.
    pub fn claim(&self, piece: usize) -> bool {
        self.claimed.set(piece)
    }

    /// Gives back the claim of a piece that could not be mapped.
    pub fn unclaim(&self, piece: usize) {
        self.claimed.clear(piece);
    }

    /// The guest has this piece: whoever sees that sees it zeroed.
    pub fn set_mapped(&self, piece: usize) {
        self.mapped.set(piece);
    }

    /// Whether the guest has this piece.
    #[inline]
    pub fn is_mapped(&self, piece: usize) -> bool {
        self.mapped.get(piece)
    }

    /// Those that are claimed.
    pub fn claimed(&self) -> impl Iterator<Item = usize> {
        self.claimed.ones()
    }

    /// Those that the guest has.
    pub fn mapped(&self) -> impl Iterator<Item = usize> {
        self.mapped.ones()
    }

    /// Nobody has any of them any more, and what they hold is to be forgotten.
    pub fn forget(&self) {
        self.claimed.clear_all();
        self.mapped.clear_all();
    }
}

/// Bits that many may set at once.
#[derive(Debug)]
pub(super) struct Bits(Box<[AtomicU64]>);

impl Bits {
    pub(super) fn new(count: usize) -> Self {
        Self((0..count.div_ceil(64)).map(|_| AtomicU64::new(0)).collect())
    }

    /// Sets one: whether it was clear.
    pub(super) fn set(&self, bit: usize) -> bool {
        let mask = 1 << (bit % 64);
        self.0[bit / 64].fetch_or(mask, Ordering::AcqRel) & mask == 0
    }

    pub(super) fn clear(&self, bit: usize) {
        self.0[bit / 64].fetch_and(!(1 << (bit % 64)), Ordering::AcqRel);
    }

    #[inline]
    pub(super) fn get(&self, bit: usize) -> bool {
        self.0[bit / 64].load(Ordering::Acquire) >> (bit % 64) & 1 != 0
    }

    pub(super) fn clear_all(&self) {
        for word in &self.0 {
            word.store(0, Ordering::Release);
        }
    }

    /// Whether any of a range is set.
    pub(super) fn any(&self, range: core::ops::Range<usize>) -> bool {
        self.any_of(range, |word| word)
    }

    /// Whether any of a range is clear.
    pub(super) fn any_clear(&self, range: core::ops::Range<usize>) -> bool {
        self.any_of(range, |word| !word)
    }

    fn any_of(&self, range: core::ops::Range<usize>, of: impl Fn(u64) -> u64) -> bool {
        let mut at = range.start;
        while at < range.end {
            let end = (at / 64 + 1) * 64;
            let few = end.min(range.end) - at;
            let mask = u64::MAX >> (64 - few) << (at % 64);
            if of(self.0[at / 64].load(Ordering::Acquire)) & mask != 0 {
                return true;
            }
            at = end;
        }
        false
    }

    fn ones(&self) -> impl Iterator<Item = usize> {
        self.0.iter().enumerate().flat_map(|(at, word)| {
            let word = word.load(Ordering::Acquire);
            let set = (0..64).filter(move |bit| word >> bit & 1 != 0);
            set.map(move |bit| 64 * at + bit)
        })
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    #[test]
    fn a_piece_is_claimed_once_however_many_try() {
        let pieces = Pieces::new(130 * PIECE_SIZE);
        let all = || (0..130).filter(|&piece| pieces.claim(piece)).count();
        let claims: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(all)).collect();
            threads.into_iter().map(|t| t.join().unwrap()).sum()
        });
        assert_eq!(claims, 130);
        assert!(pieces.claimed().eq(0..130));
        pieces.unclaim(129);
        assert!(pieces.claim(129) && !pieces.claim(129));
    }

    #[test]
    fn any_of_a_range_is_as_each_says() {
        let bits = Bits::new(200);
        for bit in [3, 64, 127, 199] {
            bits.set(bit);
        }
        for start in 0..200 {
            for end in start..=200 {
                let each = (start..end).any(|bit| bits.get(bit));
                assert_eq!(bits.any(start..end), each, "{start}..{end}");
                let clear = (start..end).any(|bit| !bits.get(bit));
                assert_eq!(bits.any_clear(start..end), clear, "{start}..{end}");
            }
        }
    }

    #[test]
    fn pieces_are_claimed_and_mapped_each_for_itself_until_they_are_forgotten() {
        let pieces = Pieces::new(130 * PIECE_SIZE);
        for piece in [0, 63, 64, 129] {
            assert!(pieces.claim(piece) && !pieces.is_mapped(piece));
            pieces.set_mapped(piece);
            assert!(pieces.is_mapped(piece) && !pieces.is_mapped(piece ^ 2));
        }
        assert!(pieces.mapped().eq([0, 63, 64, 129]));
        assert!(pieces.claim(1));
        assert!(pieces.claimed().eq([0, 1, 63, 64, 129]));
        pieces.forget();
        assert_eq!(pieces.claimed().count() + pieces.mapped().count(), 0);
        assert!(pieces.claim(64));
    }
}

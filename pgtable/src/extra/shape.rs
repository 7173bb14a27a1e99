//! More arithmetic of a tree, for who walks its tables alone.

use crate::addr::{Ipa, Level};
use crate::shape::Shape;

impl Shape {
    /// log2 of the bytes that one entry of `level` covers.
    pub const fn span_bits(&self, level: Level) -> u8 {
        self.shift(level) as u8
    }

    /// The index of `ipa` in a table of `level`; at the start level it counts
    /// through all concatenated tables. A level above the start has none:
    /// what is said of it means nothing.
    pub const fn index(&self, level: Level, ipa: Ipa) -> usize {
        let bits = ipa.get() & ((1 << self.ia_bits()) - 1);
        let index = bits.unbounded_shr(self.shift(level)) as usize;
        if level.get() == self.start().get() {
            index
        } else {
            index & self.index_mask()
        }
    }
}

//! Removed leaves, and who is told of them.

use crate::addr::{Level, Pa};
use crate::format;
use crate::geometry::Shape;

/// A leaf that was taken out of the tree and of every TLB.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RemovedLeaf {
    ia: u64,
    level: Level,
    pa: Pa,
    raw: u64,
    size: u64,
}

impl RemovedLeaf {
    pub(crate) fn new(shape: &Shape, ia: u64, level: i8, raw: u64) -> Self {
        Self {
            ia,
            level: Shape::level(level),
            pa: Pa::new(mutant!(
                LeafToldWrong,
                format::leaf_oa(shape, raw, level),
                shape.decode_oa(raw) & !0xffff
            )),
            raw,
            size: 1 << shape.shift(level),
        }
    }

    /// The bytes `[from, to)` of it.
    pub(crate) const fn part(self, from: u64, to: u64) -> Self {
        Self {
            ia: self.ia + from,
            pa: Pa::new(self.pa.get() + from),
            size: to - from,
            ..self
        }
    }

    /// The first input address (an IPA, or a VA of EL2).
    pub const fn ia(&self) -> u64 {
        self.ia
    }

    /// The level it stood at.
    pub const fn level(&self) -> Level {
        self.level
    }

    /// The first output address.
    pub const fn pa(&self) -> Pa {
        self.pa
    }

    /// Bytes: what an entry of the level covers, or a part of that if a
    /// budget ended while it was cleaned.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// The descriptor as it last was, with access flag and dirty state.
    pub const fn raw(&self) -> u64 {
        self.raw
    }
}

/// Who is told of removed leaves, after the invalidation: from then on their
/// output addresses may go to another owner. A block that takes more cleaning
/// than the budget has is told in parts, as they are clean.
///
/// Any `FnMut(RemovedLeaf)` is one; [`Ignore`] is for those who need none,
/// and spares looking at leaves of tables that go as a whole.
pub trait LeafSink {
    /// False: leaves need not be visited.
    const WANTS: bool = true;

    /// Is told of one leaf.
    fn leaf(&mut self, leaf: RemovedLeaf);
}

/// Nobody wants to know.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ignore;

impl LeafSink for Ignore {
    const WANTS: bool = false;
    fn leaf(&mut self, _leaf: RemovedLeaf) {}
}

impl<F: FnMut(RemovedLeaf)> LeafSink for F {
    fn leaf(&mut self, leaf: RemovedLeaf) {
        self(leaf);
    }
}

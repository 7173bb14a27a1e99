//! Removed leaves, and who is told of them.

use crate::addr::{Ia, Level, Pa};
use crate::desc::Desc;
use crate::shape::Shape;

/// A leaf that was taken out of the tree and of every TLB.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RemovedLeaf {
    pub(crate) ia: Ia,
    // Who is told may ask.
    #[cfg_attr(not(feature = "extra"), allow(dead_code))]
    pub(crate) level: Level,
    pa: Pa,
    desc: Desc,
    size: u64,
}

impl RemovedLeaf {
    #[inline]
    pub(crate) fn new(shape: &Shape, ia: Ia, level: Level, desc: Desc) -> Self {
        Self {
            ia,
            level,
            pa: desc.leaf_pa(shape, level),
            desc,
            size: shape.span(level),
        }
    }

    /// The first output address.
    pub const fn pa(&self) -> Pa {
        self.pa
    }

    /// Bytes: what an entry of the level covers.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// The descriptor as it last was, with access flag and dirty state.
    pub const fn raw(&self) -> u64 {
        self.desc.raw()
    }
}

/// Neighbouring leaves of one table that were removed together, whose output
/// is adjacent and which were alike in all else.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RemovedRun {
    pub(crate) first: RemovedLeaf,
    count: u64,
}

impl RemovedRun {
    #[inline]
    pub(crate) const fn new(first: RemovedLeaf, count: u64) -> Self {
        Self { first, count }
    }

    /// The first output address.
    pub const fn pa(&self) -> Pa {
        self.first.pa
    }

    /// Bytes of all of them.
    pub const fn size(&self) -> u64 {
        self.first.size * self.count
    }

    pub(crate) const fn desc(&self) -> Desc {
        self.first.desc
    }

    /// How far its output is above its input.
    pub(crate) const fn offset(&self) -> u64 {
        self.first.ia.to(self.first.pa)
    }

    /// The leaves, one by one.
    pub fn leaves(self) -> impl Iterator<Item = RemovedLeaf> {
        let Self { first, count } = self;
        (0..count).map(move |index| {
            let offset = index.wrapping_mul(first.size);
            RemovedLeaf {
                ia: first.ia.plus(offset),
                pa: first.pa.plus(offset),
                desc: first.desc.plus(offset),
                ..first
            }
        })
    }
}

/// Who is told of removed leaves, after the invalidation: from then on their
/// output addresses may go to another owner.
///
/// Any `FnMut(RemovedLeaf)` is one; [`Ignore`] is for those who need none, and
/// spares looking at leaves of tables that go as a whole. Who takes neighbours
/// together has [`run`](Self::run).
pub trait LeafSink {
    /// False: leaves need not be visited.
    const WANTS: bool = true;

    /// Is told of one leaf.
    fn leaf(&mut self, leaf: RemovedLeaf);

    /// Is told of leaves in a row.
    #[inline]
    fn run(&mut self, run: RemovedRun) {
        run.leaves().for_each(|leaf| self.leaf(leaf));
    }
}

/// Nobody wants to know.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ignore;

impl LeafSink for Ignore {
    const WANTS: bool = false;
    fn leaf(&mut self, _leaf: RemovedLeaf) {}
    fn run(&mut self, _run: RemovedRun) {}
}

impl<F: FnMut(RemovedLeaf)> LeafSink for F {
    #[inline]
    fn leaf(&mut self, leaf: RemovedLeaf) {
        self(leaf);
    }
}

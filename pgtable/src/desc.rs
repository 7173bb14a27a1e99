//! A descriptor: where each bit stands, and what it says at its level.
//!
//! Common to stage 1 and stage 2 (spec 1.5): bits \[1:0\] are 11 for a table
//! (levels −1 to 2) or a page (level 3), 01 for a block, x0 for nothing.
//! This crate uses the two codes of "nothing" thus:
//!
//! | \[1:0\] | meaning |
//! |---|---|
//! | 00 | an [`Annotation`], 0 being the empty one |
//! | 10 | *frozen*: a change is in progress; the rest is what stood there |
//!
//! A frozen entry keeps the old entry's other bits. It is invalid for
//! hardware, is no annotation, and everybody else answers
//! [`Busy`](crate::Error::Busy) to it: the CPU that froze it is at work, or
//! holds it for a change that has a part elsewhere. Bit 63 says that it was a
//! table, bit 62 that nothing of it stands there: the entry was invalid, or
//! is a leaf that a gather took out.
//!
//! [`Annotation`]: crate::Annotation

use crate::addr::{Level, Pa};
use crate::shape::Shape;

const VALID: u64 = 1;
pub(crate) const TYPE: u64 = 0b11;
const TYPE_TABLE: u64 = 0b11;
const TYPE_BLOCK: u64 = 0b01;
const TYPE_FROZEN: u64 = 0b10;
const FROZEN_TABLE: u64 = 1 << 63;
/// Nothing of what stood there is in the entry, nor counted.
const ELSEWHERE: u64 = 1 << 62;

pub(crate) const MEMATTR_SHIFT: u32 = 2;
pub(crate) const MEMATTR: u64 = 0xf << MEMATTR_SHIFT;
pub(crate) const S2AP_SHIFT: u32 = 6;
pub(crate) const S2AP_READ: u64 = 1 << S2AP_SHIFT;
pub(crate) const S2AP_WRITE: u64 = 1 << (S2AP_SHIFT + 1);
pub(crate) const SH_SHIFT: u32 = 8;
pub(crate) const SH: u64 = 0b11 << SH_SHIFT;
pub(crate) const AF_SHIFT: u32 = 10;
pub(crate) const AF: u64 = 1 << AF_SHIFT;
const NT: u64 = 1 << 16;
pub(crate) const DBM_SHIFT: u32 = 51;
pub(crate) const DBM: u64 = 1 << DBM_SHIFT;
pub(crate) const CONTIGUOUS: u64 = 1 << 52;
pub(crate) const XN_SHIFT: u32 = 53;
pub(crate) const XN: u64 = 0b11 << XN_SHIFT;
pub(crate) const SOFT_SHIFT: u32 = 55;
pub(crate) const SOFT: u64 = 0xf << SOFT_SHIFT;

/// The 64 bits of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(transparent)]
pub(crate) struct Desc(u64);

/// What a descriptor says at a level, in a format.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// Not valid: empty, or an annotation.
    Invalid,
    /// A leaf that is being changed; this is what it was.
    FrozenLeaf(Desc),
    /// A table at this address that is being taken out.
    FrozenTable(Pa),
    /// Being changed, and what was there is kept elsewhere.
    Elsewhere,
    /// The table at this address.
    Table(Pa),
    /// A block or a page.
    Leaf,
    /// Nothing that this crate writes, and no walk goes through it: 01 at level 3.
    Reserved,
}

impl Kind {
    /// True for what only the CPU that froze it may change.
    #[inline]
    pub(crate) const fn is_frozen(self) -> bool {
        matches!(
            self,
            Self::FrozenLeaf(_) | Self::FrozenTable(_) | Self::Elsewhere
        )
    }
}

impl Desc {
    /// What a zeroed table's entries are.
    pub(crate) const EMPTY: Self = Self(0);
    /// A leaf that was taken out for later: a gather's sync empties the entry,
    /// which is counted until then.
    pub(crate) const GATHERED: Self = Self(TYPE_FROZEN | ELSEWHERE | 1 << 2);
    /// An invalid entry that somebody holds.
    #[cfg(feature = "extra")]
    pub(crate) const HELD: Self = Self(TYPE_FROZEN | ELSEWHERE);
    /// What is no page: 01 is reserved at level 3.
    pub(crate) const NO_PAGE: Self = Self(0b01);

    #[inline]
    pub(crate) const fn new(raw: u64) -> Self {
        Self(raw)
    }

    #[inline]
    pub(crate) const fn raw(self) -> u64 {
        self.0
    }

    /// True when any of `bits` is set.
    #[inline]
    pub(crate) const fn has(self, bits: u64) -> bool {
        self.0 & bits != 0
    }

    #[inline]
    pub(crate) const fn with(self, bits: u64) -> Self {
        Self(self.0 | bits)
    }

    #[inline]
    pub(crate) const fn without(self, bits: u64) -> Self {
        Self(self.0 & !bits)
    }

    /// True when both say the same but for `bits`.
    #[inline]
    pub(crate) const fn is_like(self, other: Self, bits: u64) -> bool {
        (self.0 ^ other.0) & !bits == 0
    }

    /// The same for memory `bytes` further up, as far as
    /// [`linear_left`](Shape::linear_left) says.
    #[inline]
    pub(crate) const fn plus(self, bytes: u64) -> Self {
        Self(self.0.wrapping_add(bytes))
    }

    #[inline]
    pub(crate) const fn is_valid(self) -> bool {
        self.has(VALID)
    }

    #[inline]
    pub(crate) const fn is_annotation(self) -> bool {
        self.0 & TYPE == 0
    }

    /// True for a page at level 3 and a block above it.
    #[inline]
    pub(crate) const fn is_leaf(self, level: Level) -> bool {
        self.0 & TYPE == leaf_type(level)
    }

    #[inline]
    pub(crate) const fn is_table(self, level: Level) -> bool {
        level.get() < 3 && self.points_down()
    }

    /// True for what is a table at every level but the last.
    #[inline]
    pub(crate) const fn points_down(self) -> bool {
        self.0 & TYPE == TYPE_TABLE
    }

    #[inline]
    pub(crate) const fn is_frozen(self) -> bool {
        self.0 & TYPE == TYPE_FROZEN
    }

    /// What stands there.
    #[inline]
    pub(crate) const fn kind(self, level: Level, shape: &Shape) -> Kind {
        match self.0 & TYPE {
            0 => Kind::Invalid,
            TYPE_FROZEN if self.has(ELSEWHERE) => Kind::Elsewhere,
            // No table hangs below level 3, whatever memory says.
            TYPE_FROZEN if level.get() < 3 && self.has(FROZEN_TABLE) => {
                Kind::FrozenTable(shape.decode_oa(self))
            }
            TYPE_FROZEN => Kind::FrozenLeaf(Self(self.unfrozen() | leaf_type(level))),
            TYPE_TABLE if level.get() < 3 => Kind::Table(shape.decode_oa(self)),
            _ if self.is_leaf(level) => Kind::Leaf,
            _ => Kind::Reserved,
        }
    }

    /// The frozen form of a leaf or a table.
    #[inline]
    pub(crate) const fn freeze(self, level: Level) -> Self {
        let was_table = if self.is_table(level) {
            FROZEN_TABLE
        } else {
            0
        };
        Self(self.unfrozen() | TYPE_FROZEN | was_table)
    }

    const fn unfrozen(self) -> u64 {
        self.0 & !(TYPE | FROZEN_TABLE | ELSEWHERE)
    }

    /// A table at `pa`. It has no attributes at stage 2, and at EL2's stage 1
    /// none that restrict.
    #[inline]
    pub(crate) const fn table(shape: &Shape, pa: Pa) -> Self {
        Self(shape.encode_oa(pa) | TYPE_TABLE)
    }

    /// A leaf of `level` at `pa` with these attribute bits.
    #[inline]
    pub(crate) const fn leaf(self, shape: &Shape, pa: Pa, level: Level) -> Self {
        Self(self.0 | shape.encode_oa(pa) | leaf_type(level))
    }

    /// All bits of a leaf that are neither type nor address, nor a hint.
    #[inline]
    pub(crate) const fn leaf_attrs(self, shape: &Shape) -> Self {
        self.without(shape.oa_mask() | TYPE | CONTIGUOUS | NT)
    }

    /// The output address of a leaf of `level`: below the entry's span the bits
    /// are not address (nT stands there in a block).
    #[inline]
    pub(crate) const fn leaf_pa(self, shape: &Shape, level: Level) -> Pa {
        shape.decode_oa(self).floor(shape.span(level))
    }
}

#[inline]
const fn leaf_type(level: Level) -> u64 {
    if level.get() == 3 {
        TYPE_TABLE
    } else {
        TYPE_BLOCK
    }
}

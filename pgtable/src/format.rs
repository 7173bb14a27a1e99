//! Descriptors: where each bit stands, and the only encoders and decoders.
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

use crate::addr::{Level, Pa};
use crate::attrs::{Access, Age, Attrs, Device, Dirty, Execute, Memory, Share};
use crate::config::Features;
use crate::error::Error;
use crate::geometry::Geometry;
use crate::shape::{OaForm, Shape};

pub(crate) const VALID: u64 = 1;
pub(crate) const TYPE: u64 = 0b11;
pub(crate) const TYPE_TABLE: u64 = 0b11;
pub(crate) const TYPE_BLOCK: u64 = 0b01;
pub(crate) const TYPE_FROZEN: u64 = 0b10;
pub(crate) const FROZEN_TABLE: u64 = 1 << 63;
/// Nothing of what stood there is in the entry, nor counted.
pub(crate) const ELSEWHERE: u64 = 1 << 62;
/// A leaf that was taken out for later: a gather's sync empties the entry,
/// which is counted until then.
pub(crate) const GATHERED: u64 = TYPE_FROZEN | ELSEWHERE | 1 << 2;

const S2AP_SHIFT: u32 = 6;
pub(crate) const S2AP_READ: u64 = 1 << S2AP_SHIFT;
pub(crate) const S2AP_WRITE: u64 = 1 << (S2AP_SHIFT + 1);
pub(crate) const SH_SHIFT: u32 = 8;
pub(crate) const SH: u64 = 0b11 << SH_SHIFT;
const AF_SHIFT: u32 = 10;
pub(crate) const AF: u64 = 1 << AF_SHIFT;
pub(crate) const NT: u64 = 1 << 16;
const DBM_SHIFT: u32 = 51;
pub(crate) const DBM: u64 = 1 << DBM_SHIFT;
pub(crate) const CONTIGUOUS: u64 = 1 << 52;
pub(crate) const XN_SHIFT: u32 = 53;
pub(crate) const XN: u64 = 0b11 << XN_SHIFT;
pub(crate) const SOFT_SHIFT: u32 = 55;
pub(crate) const SOFT: u64 = 0xf << SOFT_SHIFT;
const MEMATTR_SHIFT: u32 = 2;
pub(crate) const MEMATTR: u64 = 0xf << MEMATTR_SHIFT;

#[inline]
pub(crate) const fn is_table(raw: u64, level: i8) -> bool {
    level < 3 && raw & TYPE == TYPE_TABLE
}

/// True for a page at level 3 and a block above it.
#[inline]
pub(crate) const fn is_leaf(raw: u64, level: i8) -> bool {
    raw & TYPE == leaf_type(level)
}

#[inline]
pub(crate) const fn leaf_type(level: i8) -> u64 {
    if level == 3 { TYPE_TABLE } else { TYPE_BLOCK }
}

#[inline]
pub(crate) const fn is_frozen(raw: u64) -> bool {
    raw & TYPE == TYPE_FROZEN
}

#[inline]
pub(crate) const fn is_annotation(raw: u64) -> bool {
    raw & TYPE == 0
}

/// The frozen form of a leaf or a table.
#[inline]
pub(crate) const fn freeze(raw: u64, level: i8) -> u64 {
    let was_table = if is_table(raw, level) {
        FROZEN_TABLE
    } else {
        0
    };
    (raw & !(TYPE | FROZEN_TABLE | ELSEWHERE)) | TYPE_FROZEN | was_table
}

/// True for a frozen entry that was a table. No table hangs below level 3,
/// whatever memory says.
#[inline]
pub(crate) const fn was_table(raw: u64, level: i8) -> bool {
    level < 3 && raw & FROZEN_TABLE != 0
}

/// What [`freeze`] was given.
#[inline]
pub(crate) const fn thaw(raw: u64, level: i8) -> u64 {
    let kind = if raw & FROZEN_TABLE != 0 {
        TYPE_TABLE
    } else {
        leaf_type(level)
    };
    (raw & !(TYPE | FROZEN_TABLE | ELSEWHERE)) | kind
}

/// The descriptor of a table at `pa`. It has no attributes at stage 2, and
/// at EL2's stage 1 none that restrict.
#[inline]
pub(crate) const fn table(shape: &Shape, pa: u64) -> u64 {
    shape.encode_oa(pa) | TYPE_TABLE
}

/// The payload of an invalid entry: 62 bits that hardware ignores.
///
/// Bits \[1:0\] of the descriptor are 0. A caller gives the rest a meaning:
/// an owner, RIPAS and HIPAS, a reason to fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
#[repr(transparent)]
pub struct Annotation(u64);

impl Annotation {
    /// Nothing: the value of a zeroed table's entries.
    pub const EMPTY: Self = Self(0);

    /// Makes an annotation of a descriptor's bits, of which \[1:0\] must be 0.
    pub const fn new(raw: u64) -> Option<Self> {
        if raw & TYPE == 0 {
            Some(Self(raw))
        } else {
            None
        }
    }

    /// The descriptor's bits.
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// An entry of a stage-2 table, decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    /// Not valid.
    Invalid(Annotation),
    /// Being changed by some CPU.
    Frozen,
    /// The next table.
    Table(Pa),
    /// A block or a page.
    Leaf {
        /// Where it maps to.
        pa: Pa,
        /// What it allows.
        attrs: Attrs,
        /// Whether the contiguous hint is set.
        contiguous: bool,
    },
    /// Bits that hardware takes for a translation fault although bit 0 is
    /// set: 01 at level 3, or a block where none may stand.
    Reserved(u64),
}

impl Geometry {
    /// Decodes a descriptor found at `level`.
    pub fn decode(&self, raw: u64, level: Level) -> Entry {
        let shape = self.shape();
        let lvl = level.get();
        if is_frozen(raw) {
            Entry::Frozen
        } else if is_annotation(raw) {
            Entry::Invalid(Annotation(raw))
        } else if is_table(raw, lvl) {
            Entry::Table(Pa::new(shape.decode_oa(raw)))
        } else if is_leaf(raw, lvl) && shape.leaf_at(lvl) {
            Entry::Leaf {
                pa: Pa::new(leaf_oa(shape, raw, lvl)),
                attrs: self.decode_attrs(raw),
                contiguous: raw & CONTIGUOUS != 0,
            }
        } else {
            Entry::Reserved(raw)
        }
    }

    /// Encodes a leaf of `level`.
    ///
    /// # Errors
    /// `BlockLevel` where none may stand, `Align` and `Range` for the
    /// address, `Attributes` for EL0- or EL1-only execute without FEAT_XNX.
    pub fn encode_leaf(&self, pa: Pa, attrs: Attrs, level: Level) -> Result<u64, Error> {
        let shape = self.shape();
        if !shape.leaf_ok(level) {
            return Err(Error::BlockLevel { level });
        }
        if pa.get() & (shape.span(level) - 1) != 0 {
            return Err(Error::Align);
        }
        if pa.get() >> shape.oa_bits() != 0 {
            return Err(Error::Range);
        }
        Ok(self.encode_attrs(attrs)? | shape.encode_oa(pa.get()) | leaf_type(level.get()))
    }

    /// The attribute bits of a leaf: everything but type and address.
    #[inline]
    pub(crate) fn encode_attrs(&self, attrs: Attrs) -> Result<u64, Error> {
        let features = self.features();
        let execute = attrs.execute as u64;
        if execute & 0b01 != 0 && !features.xnx {
            return Err(Error::Attributes);
        }
        Ok(memattr(attrs.memory, features.fwb) << MEMATTR_SHIFT
            | (attrs.access as u64) << S2AP_SHIFT
            | (attrs.share as u64) << SH_SHIFT & !self.shape().oa_mask()
            | (attrs.age as u64) << AF_SHIFT
            | (attrs.dirty as u64) << DBM_SHIFT
            | execute << XN_SHIFT
            | ((attrs.soft & 0xf) as u64) << SOFT_SHIFT)
    }

    /// Reads the attribute bits of a leaf. Bits that no encoder writes are
    /// read as the nearest that it does.
    pub(crate) fn decode_attrs(&self, raw: u64) -> Attrs {
        let features = self.features();
        Attrs {
            access: match (raw & S2AP_READ != 0, raw & S2AP_WRITE != 0) {
                (false, false) => Access::None,
                (true, false) => Access::Read,
                (false, true) => Access::Write,
                (true, true) => Access::ReadWrite,
            },
            execute: match ((raw & XN) >> XN_SHIFT, features.xnx) {
                (0b00, _) | (0b01, false) => Execute::All,
                (0b01, true) => Execute::El0,
                (0b11, true) => Execute::El1,
                _ => Execute::Never,
            },
            memory: memory(((raw & MEMATTR) >> MEMATTR_SHIFT) as u8, features),
            share: if self.shape().oa_form() == OaForm::Lpa2 {
                Share::Inner
            } else {
                match (raw & SH) >> SH_SHIFT {
                    0b00 => Share::Non,
                    0b10 => Share::Outer,
                    _ => Share::Inner,
                }
            },
            age: if raw & AF != 0 { Age::Young } else { Age::Old },
            dirty: if raw & DBM != 0 {
                Dirty::Track
            } else {
                Dirty::Fault
            },
            soft: ((raw & SOFT) >> SOFT_SHIFT) as u8,
        }
    }
}

/// The output address of a leaf of `level`: below the entry's span the bits
/// are not address (nT stands there in a block).
#[inline]
pub(crate) const fn leaf_oa(shape: &Shape, raw: u64, level: i8) -> u64 {
    shape.decode_oa(raw) & !((1 << shape.shift(level)) - 1)
}

/// All bits of a leaf that are neither type nor address, nor the hint.
#[inline]
pub(crate) const fn leaf_attr_bits(shape: &Shape, raw: u64) -> u64 {
    raw & !(shape.oa_mask() | TYPE | CONTIGUOUS)
}

/// `MemAttr[3:0]`: spec 1.5, with and without `HCR_EL2.FWB`.
#[inline]
fn memattr(memory: Memory, fwb: bool) -> u64 {
    match memory {
        Memory::Normal if fwb => 0b0110,
        Memory::FromStage1 if fwb => 0b0111,
        Memory::Normal | Memory::FromStage1 => 0b1111,
        Memory::NormalNonCacheable => 0b0101,
        Memory::Device(device) => device as u64,
    }
}

const fn memory(memattr: u8, features: &Features) -> Memory {
    match (memattr, features.fwb) {
        (0b0110, true) | (0b1111, false) => Memory::Normal,
        (0b0111, true) => Memory::FromStage1,
        (0b0101, _) => Memory::NormalNonCacheable,
        (0b0001, _) => Memory::Device(Device::NGnRE),
        (0b0010, _) => Memory::Device(Device::NGRE),
        (0b0011, _) => Memory::Device(Device::GRE),
        (0b0000, _) => Memory::Device(Device::NGnRnE),
        // Combinations that nobody here writes: treat inner write-back as
        // cacheable, anything weaker as non-cacheable, FWB's reserved code
        // as the strictest.
        (_, true) => Memory::Device(Device::NGnRnE),
        (_, false) => Memory::NormalNonCacheable,
    }
}

/// True when a guest may reach the leaf's memory past the caches, so that
/// its lines have to be cleaned: Normal memory, unless FWB forces write-back.
pub(crate) const fn is_seen_uncached(raw: u64, fwb: bool) -> bool {
    let memattr = (raw & MEMATTR) >> MEMATTR_SHIFT;
    if fwb {
        memattr == 0b0101 || memattr == 0b0111
    } else {
        memattr & 0b1100 != 0
    }
}

/// True when the leaf may be fetched from at EL1 or EL0.
pub(crate) const fn is_executable(raw: u64, xnx: bool) -> bool {
    let xn = (raw & XN) >> XN_SHIFT;
    if xnx { xn != 0b10 } else { xn & 0b10 == 0 }
}

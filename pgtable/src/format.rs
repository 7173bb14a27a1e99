//! The attributes of stage 2: the only encoders and decoders of a leaf's bits.

use crate::addr::{Level, Pa};
use crate::attrs::{Access, Age, Attrs, Device, Dirty, Execute, Memory, Share};
use crate::config::Features;
use crate::desc::{
    AF, AF_SHIFT, CONTIGUOUS, DBM, DBM_SHIFT, Desc, Kind, MEMATTR, MEMATTR_SHIFT, S2AP_READ,
    S2AP_SHIFT, S2AP_WRITE, SH, SH_SHIFT, SOFT, SOFT_SHIFT, XN, XN_SHIFT,
};
use crate::error::Error;
use crate::geometry::Geometry;
use crate::shape::OaForm;

/// The payload of an invalid entry: 62 bits that hardware ignores.
///
/// Bits \[1:0\] of the descriptor are 0. A caller gives the rest a meaning:
/// an owner, RIPAS and HIPAS, a reason to fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
#[repr(transparent)]
pub struct Annotation(pub(crate) u64);

impl Annotation {
    /// Nothing: the value of a zeroed table's entries.
    pub const EMPTY: Self = Self(0);

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
        let desc = Desc::new(raw);
        match desc.kind(level, shape) {
            Kind::Invalid => Entry::Invalid(Annotation(raw)),
            Kind::Table(pa) => Entry::Table(pa),
            Kind::Leaf if shape.leaf_ok(level) => Entry::Leaf {
                pa: desc.leaf_pa(shape, level),
                attrs: self.decode_attrs(desc),
                contiguous: desc.has(CONTIGUOUS),
            },
            Kind::Leaf | Kind::Reserved => Entry::Reserved(raw),
            Kind::FrozenLeaf(_) | Kind::FrozenTable(_) | Kind::Elsewhere => Entry::Frozen,
        }
    }

    /// The attribute bits of a leaf: everything but type and address.
    #[inline]
    pub(crate) fn encode_attrs(&self, attrs: Attrs) -> Result<Desc, Error> {
        let features = self.features();
        let execute = attrs.execute as u64;
        if execute & 0b01 != 0 && !features.xnx {
            return Err(Error::Attributes);
        }
        let bits = memattr(attrs.memory, features.fwb) << MEMATTR_SHIFT
            | (attrs.access as u64) << S2AP_SHIFT
            | (attrs.share as u64) << SH_SHIFT & !self.shape().oa_mask()
            | (attrs.age as u64) << AF_SHIFT
            | (attrs.dirty as u64) << DBM_SHIFT
            | execute << XN_SHIFT
            | ((attrs.soft & 0xf) as u64) << SOFT_SHIFT;
        Ok(Desc::new(bits))
    }

    /// Reads the attribute bits of a leaf. Bits that no encoder writes are
    /// read as the nearest that it does.
    pub(crate) fn decode_attrs(&self, leaf: Desc) -> Attrs {
        let raw = leaf.raw();
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

impl Features {
    /// True when a guest may reach the leaf's memory past the caches, so that
    /// its lines have to be cleaned: Normal memory, unless FWB forces write-back.
    #[inline]
    pub(crate) const fn needs_clean(&self, leaf: Desc) -> bool {
        let memattr = (leaf.raw() & MEMATTR) >> MEMATTR_SHIFT;
        if self.fwb {
            memattr == 0b0101 || memattr == 0b0111
        } else {
            memattr & 0b1100 != 0
        }
    }

    /// True when instruction caches are to be invalidated of a new leaf: it may be
    /// fetched from at EL1 or EL0.
    #[inline]
    pub(crate) const fn needs_fetch_sync(&self, leaf: Desc) -> bool {
        let xn = (leaf.raw() & XN) >> XN_SHIFT;
        !self.dic && if self.xnx { xn != 0b10 } else { xn & 0b10 == 0 }
    }
}

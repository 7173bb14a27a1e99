//! A stage 2 that the architecture has, and the registers that say so.

use crate::addr::{Level, Pa, Vmid};
use crate::config::{Features, Format};
use crate::config_error::ConfigError;
use crate::granule::Granule;
use crate::shape::{OaForm, Shape};

/// The fields that `VTCR_EL2` and `TCR_EL2` have alike: size, write-back
/// inner-shareable walks, granule, `PS`, `DS`, and bit 31, which is RES1.
pub(crate) const fn walk_fields(shape: &Shape) -> u64 {
    let ps = match shape.oa_bits() {
        0..=35 => 0,
        36..=39 => 1,
        40..=41 => 2,
        42..=43 => 3,
        44..=47 => 4,
        48..=51 => 5,
        _ => 6,
    };
    (64 - shape.ia_bits() as u64)
        | 0b01 << 8 // IRGN0: write-back, read- and write-allocate
        | 0b01 << 10 // ORGN0: the same
        | 0b11 << 12 // SH0: inner shareable
        | shape.granule().tg0() << 14
        | ps << 16
        | 1 << 31 // RES1
        | (matches!(shape.oa_form(), OaForm::Lpa2) as u64) << 32
}

/// `BADDR` of a translation table base register: bits \[51:48\] of a root
/// go to \[5:2\] when output addresses have more than 48 bits.
///
/// # Errors
/// A root that is misaligned or out of range.
pub(crate) const fn baddr(root: Pa, shape: &Shape) -> Result<u64, ConfigError> {
    let align = shape.root_align();
    if root.get() & (align - 1) != 0 {
        return Err(ConfigError::RootAlign { align });
    }
    if !root.reaches(align, shape.oa_bits()) {
        return Err(ConfigError::RootRange);
    }
    let root = root.get();
    Ok(if shape.oa_bits() > 48 {
        (root & 0x0000_ffff_ffff_ffc0) | (((root >> 48) & 0xf) << 2)
    } else {
        root & 0x0000_ffff_ffff_fffe
    })
}

/// A stage 2 that the architecture has. Obtained from
/// [`Stage2Config::validate`](crate::Stage2Config::validate) only.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry(pub(crate) Format);

impl Geometry {
    /// Tables of 2^`stride` entries, for searches that visit every tree. Its
    /// registers mean nothing to a CPU.
    #[cfg(any(test, feature = "toy"))]
    pub fn toy(stride: u8, levels: u8, features: Features) -> Self {
        Self(Format {
            shape: Shape::toy(stride, levels),
            features,
            errata: crate::Errata::NONE,
        })
    }

    /// The same for a tree whose every leaf may have to be cleaned. Without
    /// FEAT_S2FWB its leaves are of 2 MiB at most.
    pub(crate) const fn cleaned(mut self) -> Self {
        if !self.features().fwb {
            self.0.shape = self.0.shape.cleaned();
        }
        self
    }

    /// The tree's arithmetic.
    #[inline]
    pub const fn shape(&self) -> &Shape {
        &self.0.shape
    }

    /// The features it was made for.
    #[inline]
    pub const fn features(&self) -> &Features {
        &self.0.features
    }

    /// The granule.
    #[inline]
    pub const fn granule(&self) -> Granule {
        self.0.shape.granule()
    }

    /// Bits of an IPA.
    #[inline]
    pub const fn ipa_bits(&self) -> u8 {
        self.0.shape.ia_bits()
    }

    /// Where a walk starts.
    #[inline]
    pub const fn start(&self) -> Level {
        self.0.shape.start()
    }

    /// Root tables: 1 to 16. They are adjacent in memory.
    #[inline]
    pub const fn root_tables(&self) -> usize {
        self.0.shape.root_tables()
    }

    /// The root's alignment in bytes: its whole size.
    #[inline]
    pub const fn root_align(&self) -> u64 {
        self.0.shape.root_align()
    }

    /// Bytes that one entry of `level` covers.
    #[inline]
    pub const fn span(&self, level: Level) -> u64 {
        self.0.shape.span(level)
    }

    /// True when a block or page may stand at `level`.
    #[inline]
    pub const fn leaf_ok(&self, level: Level) -> bool {
        self.0.shape.leaf_ok(level)
    }

    /// `VTCR_EL2` for this geometry: spec 1.1 and 1.2.
    pub const fn vtcr(&self) -> u64 {
        let (shape, features) = (self.shape(), self.features());
        let (sl2, sl0) = match (shape.granule(), shape.start().get()) {
            (Granule::K4, -1) => (1, 0),
            (Granule::K4, 0) => (0, 2),
            (Granule::K4, 1) => (0, 1),
            (Granule::K4, 2) => (0, 0),
            (Granule::K4, _) => (0, 3),
            (_, start) => (0, 3 - start as u64),
        };
        walk_fields(shape)
            | sl0 << 6
            | (features.vmid16 as u64) << 19
            | (features.hw_access_flag as u64) << 21
            | (features.hw_dirty as u64) << 22
            | sl2 << 33
    }

    /// `VTTBR_EL2` for a root and a VMID: spec 1.3.
    ///
    /// # Errors
    /// A root that is misaligned or out of range, a VMID too large.
    pub const fn vttbr(&self, root: Pa, vmid: Vmid) -> Result<u64, ConfigError> {
        if vmid.get() > 0xff && !self.features().vmid16 {
            return Err(ConfigError::Vmid { vmid: vmid.get() });
        }
        match baddr(root, self.shape()) {
            Err(error) => Err(error),
            Ok(baddr) => Ok((vmid.get() as u64) << 48 | baddr | self.features().cnp as u64),
        }
    }
}

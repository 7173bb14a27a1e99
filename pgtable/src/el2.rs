//! EL2's own stage 1 (nVHE, one VA range): the image's map.
//!
//! Registers and descriptors after the Arm ARM: `TCR_EL2`, `TTBR0_EL2` and
//! `MAIR_EL2` with `HCR_EL2.E2H` = 0; leaf bits AttrIndx \[4:2\], AP\[2\] in
//! bit 7 (1 = read-only), AP\[1\] in bit 6 (RES1), SH \[9:8\] (address with
//! DS), AF 10, XN 54.

use crate::addr::{Level, Pa, Va};
use crate::config::{Features, Format, oa_form, output_bits};
use crate::config_error::ConfigError;
use crate::desc::{AF, Desc, SH_SHIFT};
use crate::errata::Errata;
use crate::error::{Budget, Stopped};
use crate::geometry::{baddr, walk_fields};
use crate::granule::Granule;
use crate::maintenance::Maintenance;
use crate::map::{MapJob, Mapping};
use crate::mem::TableMem;
use crate::plan::Regime;
use crate::shape::{OaForm, Shape, Sizes};
use crate::sink::Ignore;
use crate::stage2::{Leaves, typed};
use crate::tree::{Core, Exclusive, Over};

pub(crate) const AP_RES1: u64 = 1 << 6;
pub(crate) const AP_READ_ONLY: u64 = 1 << 7;
pub(crate) const UXN_XN: u64 = 1 << 54;
pub(crate) const ATTR_INDEX_SHIFT: u32 = 2;

/// EL2's translation that somebody asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct El2Config {
    /// The granule.
    pub granule: Granule,
    /// Bits of a VA, 32 to 52. 48 is what every CPU has.
    pub va_bits: u8,
    /// `ID_AA64MMFR0_EL1.PARange` in bits.
    pub pa_bits: u8,
    /// FEAT_LPA2 for this granule's stage 1, `TCR_EL2.DS` will be set.
    pub lpa2: bool,
    /// FEAT_LVA: 52-bit VA with 64K.
    pub lva: bool,
    /// The CPU's features; the stage-2 ones are not looked at.
    pub features: Features,
    /// Errors of the machine to work around.
    pub errata: Errata,
}

impl El2Config {
    /// No LPA2, no LVA, no features.
    pub const fn new(granule: Granule, va_bits: u8, pa_bits: u8) -> Self {
        Self {
            granule,
            va_bits,
            pa_bits,
            lpa2: false,
            lva: false,
            features: Features::NONE,
            errata: Errata::NONE,
        }
    }

    /// Checks the combination once, so that nothing derived from it fails.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn validate(self) -> Result<El2Geometry, ConfigError> {
        let Self {
            granule, va_bits, ..
        } = self;
        if !(32..=52).contains(&va_bits) {
            return Err(ConfigError::InputSize { bits: va_bits });
        }
        let oa_bits = output_bits(granule, self.pa_bits, self.lpa2)?;
        let wide = self.lpa2 || (granule == Granule::K64 && self.lva);
        if va_bits > 48 && !wide {
            return Err(ConfigError::NeedsLpa { bits: va_bits });
        }
        let levels = (va_bits - granule.page_bits()).div_ceil(granule.stride());
        let shape = Shape::new(Sizes {
            granule,
            start: Level::L3.above(i32::from(levels) - 1),
            ia_bits: va_bits,
            oa_bits,
            oa_form: oa_form(granule, oa_bits, self.lpa2),
            largest: Level::L0,
            pa_52: self.pa_bits == 52,
        });
        Ok(El2Geometry(Format {
            shape,
            features: self.features,
            errata: self.errata,
        }))
    }
}

/// An EL2 stage 1 that the architecture has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct El2Geometry(Format);

impl El2Geometry {
    /// The tree's arithmetic.
    #[inline]
    pub const fn shape(&self) -> &Shape {
        &self.0.shape
    }

    /// `TCR_EL2`: T0SZ, write-back inner-shareable walks, granule, PS, DS.
    pub const fn tcr(&self) -> u64 {
        walk_fields(self.shape()) | 1 << 23 // RES1
    }

    /// `TTBR0_EL2` for a root.
    ///
    /// # Errors
    /// A root that is misaligned or out of range.
    pub const fn ttbr(&self, root: Pa) -> Result<u64, ConfigError> {
        match baddr(root, self.shape()) {
            Err(error) => Err(error),
            Ok(baddr) => Ok(baddr | self.0.features.cnp as u64),
        }
    }

    /// `MAIR_EL2`: index 0 Normal write-back, 1 Device-nGnRE, 2 Normal
    /// non-cacheable, 3 Device-nGnRnE.
    pub const fn mair(&self) -> u64 {
        0x00_44_04_ff
    }

    /// The attribute bits of a leaf.
    pub(crate) fn encode(&self, attrs: El2Attrs) -> Desc {
        let mut raw = AF | AP_RES1;
        raw |= match attrs.memory {
            El2Memory::Normal => 0,
            El2Memory::Device => 1,
            El2Memory::NonCacheable => 2,
            El2Memory::DeviceStrict => 3,
        } << ATTR_INDEX_SHIFT;
        if self.shape().oa_form() != OaForm::Lpa2 {
            raw |= 0b11 << SH_SHIFT;
        }
        raw |= match attrs.access {
            El2Access::ReadExecute => AP_READ_ONLY,
            El2Access::Read => AP_READ_ONLY | UXN_XN,
            El2Access::ReadWrite => UXN_XN,
        };
        Desc::new(raw)
    }
}

/// What EL2 may do there. Writable and executable together does not exist.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum El2Access {
    /// Code.
    ReadExecute,
    /// Constants.
    Read,
    /// Data.
    ReadWrite,
}

/// Memory types of EL2's own map, indices of [`El2Geometry::mair`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum El2Memory {
    /// Normal write-back, inner shareable.
    Normal,
    /// Device-nGnRE: UARTs and the like.
    Device,
    /// Normal non-cacheable.
    NonCacheable,
    /// Device-nGnRnE.
    DeviceStrict,
}

/// Everything that a leaf of EL2's map says apart from its address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct El2Attrs {
    /// Loads, stores, fetch.
    pub access: El2Access,
    /// Memory type.
    pub memory: El2Memory,
}

impl El2Attrs {
    /// Code.
    pub const CODE: Self = Self {
        access: El2Access::ReadExecute,
        memory: El2Memory::Normal,
    };
    /// Constants.
    pub const RODATA: Self = Self {
        access: El2Access::Read,
        memory: El2Memory::Normal,
    };
    /// Data.
    pub const DATA: Self = Self {
        access: El2Access::ReadWrite,
        memory: El2Memory::Normal,
    };
    /// Device registers.
    pub const DEVICE: Self = Self {
        access: El2Access::ReadWrite,
        memory: El2Memory::Device,
    };
}

/// A range to map for EL2.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct El2Range {
    /// First VA, page-aligned.
    pub va: Va,
    /// First PA, page-aligned.
    pub pa: Pa,
    /// Bytes, a multiple of the page.
    pub size: u64,
    /// What the leaves say.
    pub attrs: El2Attrs,
    /// Which leaves to use.
    pub leaves: Leaves,
    /// What may stand there now.
    pub over: Over,
}

impl El2Range {
    /// Largest leaves over empty entries.
    pub const fn new(va: Va, pa: Pa, size: u64, attrs: El2Attrs) -> Self {
        Self {
            va,
            pa,
            size,
            attrs,
            leaves: Leaves::Largest,
            over: Over::Nothing,
        }
    }
}

/// EL2's own tables. One writer at a time: it is EL2's own map.
#[derive(Debug)]
pub struct El2Map<M: TableMem> {
    pub(crate) core: Core<M>,
    pub(crate) geometry: El2Geometry,
    ttbr: u64,
}

impl<M: TableMem> El2Map<M> {
    /// Takes charge of a root: one zeroed page.
    ///
    /// # Errors
    /// A root that `TTBR0_EL2` cannot hold.
    pub fn new(geometry: El2Geometry, root: Pa, mem: M) -> Result<Self, ConfigError> {
        let ttbr = geometry.ttbr(root)?;
        Ok(Self {
            core: Core::new(mem, root, Regime::El2, &geometry.0),
            geometry,
            ttbr,
        })
    }

    /// `TTBR0_EL2` for this tree.
    pub const fn ttbr(&self) -> u64 {
        self.ttbr
    }

    /// Maps a range. Works before EL2's MMU is on, too: the TLBIs then do no
    /// harm.
    ///
    /// # Errors
    /// As [`Stage2::map`](crate::Stage2::map).
    pub fn map<T: Maintenance>(
        &mut self,
        maint: &mut T,
        range: &El2Range,
    ) -> Result<Va, Stopped<Va>> {
        self.map_as(maint, range, self.geometry.encode(range.attrs))
    }

    /// The same with these attribute bits.
    pub(crate) fn map_as<T: Maintenance>(
        &mut self,
        maint: &mut T,
        range: &El2Range,
        attrs: Desc,
    ) -> Result<Va, Stopped<Va>> {
        let of = (range.va.into(), range.pa, range.size);
        let (shape, leaves) = (&self.core.shape, range.leaves);
        let job = MapJob::new(shape, of, attrs, leaves, Level::MINUS_1);
        let job = MapJob {
            over: range.over,
            ..job.map_err(Stopped::at(range.va))?
        };
        let (sink, all) = (&mut Ignore, &mut Budget::unlimited());
        let work = self.core.work(maint);
        typed(Mapping::<M, T, _, Exclusive>::new(work, sink, all, job).run())
    }
}

//! A stage 2 as somebody asks for it, checked once against the architecture's
//! rules: what becomes of it is a [`Geometry`], whose arithmetic cannot fail.

use crate::addr::Level;
use crate::config_error::ConfigError;
use crate::errata::Errata;
use crate::geometry::Geometry;
use crate::granule::Granule;
use crate::shape::{OaForm, Shape, Sizes};

/// Which start level a configuration takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Start {
    /// KVM's policy: as few levels as 16 concatenated root tables allow, at
    /// least two, so that 2 MiB, 32 MiB or 512 MiB blocks remain possible.
    Concatenate,
    /// This level, if it is legal for the sizes.
    At(Level),
}

/// What the CPUs of the machine can do, as far as tables are concerned.
///
/// The default is a CPU of Armv8.0: nothing optional.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Features {
    /// FEAT_TLBIRANGE: `RIPAS2E1IS` and `RVAE2IS` exist.
    pub tlb_range: bool,
    /// FEAT_TTL: level hints in TLBI operands.
    pub ttl: bool,
    /// FEAT_S2FWB, and `HCR_EL2.FWB` will be set.
    pub fwb: bool,
    /// FEAT_XNX: execute permission apart for EL0 and EL1.
    pub xnx: bool,
    /// FEAT_VMID16, `VTCR_EL2.VS` will be set.
    pub vmid16: bool,
    /// FEAT_HAFDBS access flag, `VTCR_EL2.HA` will be set.
    pub hw_access_flag: bool,
    /// FEAT_HAFDBS dirty state, `VTCR_EL2.HD` will be set. Needs the former.
    pub hw_dirty: bool,
    /// FEAT_TTST: small tables, start level 3 with 4K.
    pub ttst: bool,
    /// FEAT_TTCNP: all CPUs share tables of one VMID; sets `CnP`.
    pub cnp: bool,
    /// `CTR_EL0.DIC`: no instruction cache maintenance is needed.
    pub dic: bool,
    /// FEAT_BBM level 2 on CPUs that do not abort: sizes may change without
    /// a break. Off unless somebody has checked the CPU.
    pub bbm2: bool,
}

impl Features {
    /// A CPU of Armv8.0: nothing optional.
    pub const NONE: Self = Self {
        tlb_range: false,
        ttl: false,
        fwb: false,
        xnx: false,
        vmid16: false,
        hw_access_flag: false,
        hw_dirty: false,
        ttst: false,
        cnp: false,
        dic: false,
        bbm2: false,
    };
}

/// A tree's arithmetic, and what of the machine makes a difference to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Format {
    pub(crate) shape: Shape,
    pub(crate) features: Features,
    pub(crate) errata: Errata,
}

/// A stage 2 that somebody asks for. [`validate`](Self::validate) says
/// whether the architecture has it.
///
/// ```
/// use pgtable::{Granule, Stage2Config, Level};
/// let geometry = Stage2Config::new(Granule::K4, 40, 40).validate().unwrap();
/// assert_eq!(geometry.start(), Level::L1);
/// assert_eq!(geometry.root_tables(), 2);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stage2Config {
    /// The granule.
    pub granule: Granule,
    /// Bits of an IPA, 32 to 52.
    pub ipa_bits: u8,
    /// `ID_AA64MMFR0_EL1.PARange` in bits: 32, 36, 40, 42, 44, 48 or 52.
    pub pa_bits: u8,
    /// FEAT_LPA2 for this granule's stage 2, `VTCR_EL2.DS` will be set.
    pub lpa2: bool,
    /// Which start level.
    pub start: Start,
    /// The largest block to use; the architecture may allow less.
    pub largest_block: Level,
    /// The CPU's features.
    pub features: Features,
    /// Errors of the machine to work around.
    pub errata: Errata,
}

impl Stage2Config {
    /// KVM's start level, all block sizes, no features, no LPA2.
    pub const fn new(granule: Granule, ipa_bits: u8, pa_bits: u8) -> Self {
        Self {
            granule,
            ipa_bits,
            pa_bits,
            lpa2: false,
            start: Start::Concatenate,
            largest_block: Level::L0,
            features: Features::NONE,
            errata: Errata::NONE,
        }
    }

    /// Checks the combination once, so that nothing derived from it fails.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn validate(self) -> Result<Geometry, ConfigError> {
        let Self {
            granule,
            ipa_bits,
            pa_bits,
            ..
        } = self;
        if !(32..=52).contains(&ipa_bits) {
            return Err(ConfigError::InputSize { bits: ipa_bits });
        }
        let oa_bits = output_bits(granule, pa_bits, self.lpa2)?;
        if ipa_bits > 48 && oa_bits < 52 && !self.lpa2 {
            return Err(ConfigError::NeedsLpa { bits: ipa_bits });
        }
        if ipa_bits > pa_bits {
            return Err(ConfigError::InputAbovePa {
                bits: ipa_bits,
                pa_bits,
            });
        }
        if self.features.hw_dirty && !self.features.hw_access_flag {
            return Err(ConfigError::DirtyWithoutAccess);
        }
        let start = match self.start {
            Start::At(level) => level,
            Start::Concatenate => {
                let levels = ((ipa_bits - 4 - 4) / granule.stride()).max(2);
                Level::L3.above(i32::from(levels) - 1)
            }
        };
        self.check_start(start)?;
        let shape = Shape::new(Sizes {
            granule,
            start,
            ia_bits: ipa_bits,
            oa_bits,
            oa_form: oa_form(granule, oa_bits, self.lpa2),
            largest: self.largest_block,
            pa_52: pa_bits == 52,
        });
        Ok(Geometry(Format {
            shape,
            features: self.features,
            errata: self.errata,
        }))
    }

    /// The start level's own rules: spec 1.2.
    fn check_start(&self, level: Level) -> Result<(), ConfigError> {
        let stride = self.granule.stride();
        let exists = match (self.granule, level.get()) {
            (Granule::K4, -1) | (Granule::K16, 0) => self.lpa2,
            (Granule::K4, 3) => self.features.ttst,
            (Granule::K4, 0..=2) | (Granule::K16 | Granule::K64, 1..=3) => true,
            _ => false,
        };
        if !exists {
            return Err(ConfigError::StartLevel { level });
        }
        let min = level.above_pages() as u8 * stride + self.granule.page_bits() + 1;
        let max = if level == Level::MINUS_1 {
            52
        } else {
            (min + stride + 3).min(52)
        };
        if self.ipa_bits < min || self.ipa_bits > max {
            return Err(ConfigError::StartSize { level, min, max });
        }
        let needs = match (self.granule, level.get()) {
            (Granule::K4, 0) | (Granule::K64, 1) => 44,
            (Granule::K16, 1) => 42,
            _ => 0,
        };
        if self.pa_bits < needs {
            return Err(ConfigError::StartNeedsPa {
                level,
                pa_bits: needs,
            });
        }
        Ok(())
    }
}

/// Output bits in force: the CPU's, but 48 at most without a 52-bit form.
pub(crate) fn output_bits(granule: Granule, pa_bits: u8, lpa2: bool) -> Result<u8, ConfigError> {
    if !matches!(pa_bits, 32 | 36 | 40 | 42 | 44 | 48 | 52) {
        return Err(ConfigError::PaSize { bits: pa_bits });
    }
    if lpa2 && granule == Granule::K64 {
        return Err(ConfigError::Lpa2With64k);
    }
    Ok(if lpa2 || granule == Granule::K64 {
        pa_bits
    } else {
        pa_bits.min(48)
    })
}

pub(crate) fn oa_form(granule: Granule, oa_bits: u8, lpa2: bool) -> OaForm {
    match (granule, lpa2) {
        (Granule::K64, _) if oa_bits == 52 => OaForm::Lpa64k,
        (_, true) => OaForm::Lpa2,
        _ => OaForm::Plain48,
    }
}

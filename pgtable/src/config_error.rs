//! Which of the architecture's rules a configuration breaks.

use crate::addr::Level;
use core::fmt;

/// A combination that the architecture does not have: which rule it breaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConfigError {
    /// Input address bits outside 32..=52.
    InputSize {
        /// The bits asked for.
        bits: u8,
    },
    /// A physical size that `PARange` cannot say.
    PaSize {
        /// The bits asked for.
        bits: u8,
    },
    /// DS is a matter of 4K and 16K: 64K has 52 bits by FEAT_LPA.
    Lpa2With64k,
    /// T0SZ below its minimum: more than 48 bits need DS, or 64K with LPA.
    NeedsLpa {
        /// The bits asked for.
        bits: u8,
    },
    /// An IPA may not be larger than the CPU's physical addresses.
    InputAbovePa {
        /// The bits asked for.
        bits: u8,
        /// The physical bits.
        pa_bits: u8,
    },
    /// The start level does not exist with this granule or without DS.
    StartLevel {
        /// The level asked for.
        level: Level,
    },
    /// The size is outside what this start level resolves with at most 16
    /// concatenated tables (S2InconsistentSL).
    StartSize {
        /// The level asked for.
        level: Level,
        /// The smallest size it serves.
        min: u8,
        /// The largest size it serves.
        max: u8,
    },
    /// This start level faults on a CPU of so few physical address bits.
    StartNeedsPa {
        /// The level asked for.
        level: Level,
        /// The physical bits it needs.
        pa_bits: u8,
    },
    /// Hardware dirty state without hardware access flag has no effect.
    DirtyWithoutAccess,
    /// A VMID above 255 without 16-bit VMIDs.
    Vmid {
        /// The identifier.
        vmid: u16,
    },
    /// The root is not aligned to its whole size.
    RootAlign {
        /// The alignment in bytes that it needs.
        align: u64,
    },
    /// The root lies outside the output addresses.
    RootRange,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InputSize { bits } => {
                write!(f, "{bits}-bit input addresses: 32 to 52 are possible")
            }
            Self::PaSize { bits } => write!(
                f,
                "{bits}-bit physical addresses: PARange says 32, 36, 40, 42, 44, 48 or 52"
            ),
            Self::Lpa2With64k => f.write_str(
                "DS with a 64K granule: 52 bits come from FEAT_LPA there, leave lpa2 off",
            ),
            Self::NeedsLpa { bits } => write!(
                f,
                "{bits}-bit input addresses: more than 48 need LPA2, or 64K on a 52-bit CPU"
            ),
            Self::InputAbovePa { bits, pa_bits } => write!(
                f,
                "{bits}-bit IPA on a CPU of {pa_bits}-bit physical addresses: T0SZ is refused"
            ),
            Self::StartLevel { level } => {
                write!(f, "start at {level}: SL0 has no such code for this granule")
            }
            Self::StartSize { level, min, max } => write!(
                f,
                "start at {level}: it resolves {min} to {max} bits (S2InconsistentSL)"
            ),
            Self::StartNeedsPa { level, pa_bits } => write!(
                f,
                "start at {level}: faults on a CPU of less than {pa_bits} physical bits"
            ),
            Self::DirtyWithoutAccess => {
                f.write_str("hardware dirty state (HD) needs the hardware access flag (HA)")
            }
            Self::Vmid { vmid } => write!(f, "VMID {vmid}: this CPU has 8-bit VMIDs"),
            Self::RootAlign { align } => write!(f, "the root must be aligned to {align:#x} bytes"),
            Self::RootRange => f.write_str("the root lies outside the output addresses"),
        }
    }
}

impl core::error::Error for ConfigError {}

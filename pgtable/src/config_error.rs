//! Which of the architecture's rules a configuration breaks.

use crate::addr::Level;

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

//! What errors and addresses are in words.

use core::fmt;

use crate::addr::Level;
use crate::config_error::ConfigError;
use crate::error::{Error, Stopped};
use crate::rtt::RttError;

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

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Range => f.write_str("address outside the translated space"),
            Self::Align => f.write_str("address or size not aligned to its level"),
            Self::NoMem => f.write_str("no page left for a table"),
            Self::Exists { level } => write!(f, "an entry stands in the way at {level}"),
            Self::Missing { level } => write!(f, "nothing there: the walk ended at {level}"),
            Self::Busy => f.write_str("entry being changed by another CPU: retry"),
            Self::Mismatch { level } => write!(f, "entries at {level} are not alike"),
            Self::BlockLevel { level } => write!(f, "no leaf may stand at {level}"),
            Self::InsideBlock { level } => write!(f, "the range ends inside a block at {level}"),
            Self::NeedsExclusive { level } => {
                write!(
                    f,
                    "a live table at {level} can only go with exclusive access"
                )
            }
            Self::InUse { level } => write!(f, "the table at {level} still has entries"),
            Self::Attributes => f.write_str("attributes that this CPU cannot encode"),
            Self::OtherTree => f.write_str("a gather of another tree: use that tree"),
        }
    }
}

impl core::error::Error for Error {}

impl<A: fmt::Debug> fmt::Display for Stopped<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (at {:?})", self.why, self.next)
    }
}

impl<A: fmt::Debug> core::error::Error for Stopped<A> {}

impl fmt::Display for RttError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Input => f.write_str("level, alignment or IPA not valid for this realm"),
            Self::Rtt { level, top } => write!(f, "RTT entry at {level} (top {top})"),
            Self::Again => f.write_str("budget spent: call again to go on"),
        }
    }
}

impl core::error::Error for RttError {}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "level {}", self.get())
    }
}

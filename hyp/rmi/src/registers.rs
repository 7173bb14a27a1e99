//! The page of `REC_READ` and `REC_WRITE`: a plain guest's vCPU, for a host that
//! emulates an access without a syndrome.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The registers that an emulated load or store reads and changes, and those
/// that say how the guest's addresses are translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Registers {
    /// V0 to V31, the low half first.
    pub v: [[u64; 2]; 32],
    /// X0 to X30.
    pub x: [u64; 31],
    /// SP_EL0 and SP_EL1.
    pub sp: [u64; 2],
    /// The program counter.
    pub pc: u64,
    /// PSTATE, as SPSR_EL2 has it. Of a write, N, Z, C and V are taken.
    pub pstate: u64,
    /// SCTLR_EL1; a write ignores it, TCR_EL1 and the bases.
    pub sctlr: u64,
    /// TCR_EL1.
    pub tcr: u64,
    /// TTBR0_EL1 and TTBR1_EL1.
    pub ttbr: [u64; 2],
    /// What a write ends the last exit with: [`Finish`].
    pub finish: u64,
    /// Of [`Finish::Abort`]: ESR_EL1\[10:0\], of which FnV (10), CM (8), WnR (6)
    /// and the fault status code (5:0) are taken.
    pub iss: u64,
    /// Of [`Finish::Abort`]: FAR_EL1.
    pub far: u64,
    /// Of [`Finish::Abort`]: 1 for a fetch, 0 for data.
    pub fetch: u64,
}

/// How an exit that had no syndrome ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Finish {
    /// The guest executes the instruction again: no register is taken.
    Again = 0,
    /// The instruction is done: registers, PC and flags are taken.
    Done = 1,
    /// Registers, PC and flags are taken, and the instruction at PC takes an
    /// abort to EL1.
    Abort = 2,
}

impl Finish {
    /// Reads the field.
    pub const fn from_raw(raw: u64) -> Option<Self> {
        match raw {
            0 => Some(Self::Again),
            1 => Some(Self::Done),
            2 => Some(Self::Abort),
            _ => None,
        }
    }
}

const _: () = assert!(size_of::<Registers>() <= 4096);

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::{offset_of, size_of};

    #[test]
    fn layout_is_without_holes() {
        assert_eq!(offset_of!(Registers, x), 512);
        assert_eq!(offset_of!(Registers, sp), 760);
        assert_eq!(offset_of!(Registers, finish), 824);
        assert_eq!(size_of::<Registers>(), 856);
    }
}

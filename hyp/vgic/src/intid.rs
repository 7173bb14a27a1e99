//! Interrupt numbers and affinities: what names an interrupt, and what names a PE.

use core::fmt;

/// The number of SPIs a guest's distributor has: INTIDs 32 to `32 + SPIS - 1`.
///
/// `GICD_TYPER.ITLinesNumber` says the same to the guest.
pub const SPIS: usize = 128;

/// The number of INTIDs a vCPU has for itself: SGIs 0–15 and PPIs 16–31.
pub const PRIVATE: usize = 32;

/// The words of 32 interrupts that the SPIs fill.
pub(crate) const SPI_WORDS: usize = SPIS / 32;

/// The first SPI.
pub(crate) const FIRST_SPI: u32 = 32;

/// The first PPI.
pub(crate) const FIRST_PPI: u32 = 16;

/// The bits of a priority that exist: five, the fewest that a GICv3 with one
/// Security state may have (IHI0069, section 4.8), and what every virtual CPU
/// interface has (`ICH_VTR_EL2.PRIbits`).
pub(crate) const PRIORITY_MASK: u8 = 0xf8;

/// Where a PE stands: `Aff3.Aff2.Aff1.Aff0`, a byte each, Aff3 on top.
///
/// This is the packing of `GICR_TYPER[63:32]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Affinity(u32);

impl Affinity {
    /// An affinity from its four levels.
    #[must_use]
    pub const fn new(aff3: u8, aff2: u8, aff1: u8, aff0: u8) -> Self {
        Self(u32::from_be_bytes([aff3, aff2, aff1, aff0]))
    }

    /// The affinity in an `MPIDR_EL1` or `GICD_IROUTER` value, which pack alike:
    /// Aff3 in bits 39:32, Aff2 to Aff0 in bits 23:0. Other bits are ignored.
    #[must_use]
    pub const fn from_mpidr(mpidr: u64) -> Self {
        Self(((mpidr >> 8) & 0xff00_0000) as u32 | (mpidr & 0x00ff_ffff) as u32)
    }

    /// The affinity fields as `MPIDR_EL1` and `GICD_IROUTER` pack them.
    #[must_use]
    pub const fn to_mpidr(self) -> u64 {
        ((self.0 as u64 & 0xff00_0000) << 8) | (self.0 as u64 & 0x00ff_ffff)
    }

    /// The affinity from its packed form, Aff3 on top.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// The packed form, Aff3 on top.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }
}

/// Why an interrupt could not be touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The INTID is not one that this call takes: an SPI is
    /// `32..32 + SPIS`, a PPI is `16..32`.
    NoSuchInterrupt(u32),
    /// The guest has no vCPU with this index.
    NoSuchVcpu(usize),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchInterrupt(intid) => write!(
                f,
                "no interrupt {intid} here: PPIs are 16 to 31, SPIs 32 to {}",
                FIRST_SPI as usize + SPIS - 1
            ),
            Self::NoSuchVcpu(vcpu) => write!(f, "the guest has no vCPU {vcpu}"),
        }
    }
}

impl core::error::Error for Error {}

/// The set bits of a word, lowest first.
pub(crate) fn bits(mut word: u32) -> impl Iterator<Item = usize> {
    core::iter::from_fn(move || {
        (word != 0).then(|| {
            let bit = word.trailing_zeros() as usize;
            word &= word - 1;
            bit
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn affinity_packs_as_mpidr_does() {
        let affinity = Affinity::new(4, 3, 2, 1);
        assert_eq!(affinity.bits(), 0x0403_0201);
        assert_eq!(affinity.to_mpidr(), 0x04_0003_0201);
        // The U, MT and RES1 bits of MPIDR_EL1 are no part of it.
        assert_eq!(Affinity::from_mpidr(0x04_c103_0201), affinity);
    }

    #[test]
    fn bits_come_lowest_first_and_all() {
        assert!(bits(0).next().is_none());
        assert!(bits(0x8000_0011).eq([0, 4, 31]));
        assert_eq!(bits(u32::MAX).count(), 32);
    }
}

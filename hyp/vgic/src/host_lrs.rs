//! HOST_LRS mode: the host's list registers, checked before they reach hardware
//! (RMI 1.0, REC_ENTER).

use core::fmt;

use arm64::intid::Kind;

use crate::list_registers::{MAX_LIST_REGISTERS, hcr, lr};

/// What the virtual CPU interface has, from `ICH_VTR_EL2` and `ICC_CTLR_EL1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interface {
    /// List registers, `ICH_VTR_EL2.ListRegs + 1`.
    pub list_registers: usize,
    /// Bits of priority, `ICH_VTR_EL2.PRIbits + 1`.
    pub priority_bits: u32,
    /// Bits of an INTID: 16 or 24 by `ICH_VTR_EL2.IDbits`.
    pub intid_bits: u32,
    /// The extended PPI and SPI ranges exist, `ICC_CTLR_EL1.ExtRange`.
    pub extended_range: bool,
}

/// Why the host's GIC state was refused; REC_ENTER answers `RMI_ERROR_REC`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BadListRegisters {
    /// `gicv3_hcr` has bits that are not the host's.
    Hcr,
    /// This list register sets HW, a reserved bit, or an INTID that cannot be.
    ListRegister(usize),
    /// This list register has the INTID of an earlier one.
    Duplicate(usize),
}

impl fmt::Display for BadListRegisters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hcr => f.write_str("gicv3_hcr: only UIE to VGrp1DIE and TDIR may be set"),
            Self::ListRegister(n) => write!(
                f,
                "list register {n}: HW or a reserved bit is set, or no such INTID"
            ),
            Self::Duplicate(n) => write!(f, "list register {n}: an earlier one has its INTID"),
        }
    }
}

impl core::error::Error for BadListRegisters {}

impl Interface {
    /// The bits of `gicv3_hcr` that are the host's.
    pub const HOST_HCR: u64 = hcr::MAINTENANCE | hcr::TDIR;

    /// Checks what a host gave to REC_ENTER. List registers that hardware lacks
    /// are not looked at and must not be used.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(
        &self,
        host_hcr: u64,
        lrs: &[u64; MAX_LIST_REGISTERS],
    ) -> Result<(), BadListRegisters> {
        if host_hcr & !Self::HOST_HCR != 0 {
            return Err(BadListRegisters::Hcr);
        }
        let lrs = &lrs[..self.list_registers.min(MAX_LIST_REGISTERS)];
        let valid = |value: u64| value & (lr::PENDING | lr::ACTIVE) != 0;
        for (n, &value) in lrs.iter().enumerate().filter(|&(_, &value)| valid(value)) {
            if !self.allows(value) {
                return Err(BadListRegisters::ListRegister(n));
            }
            // Two list registers with one vINTID are UNPREDICTABLE.
            let same = |&other: &u64| valid(other) && lr::intid(other) == lr::intid(value);
            if lrs[..n].iter().any(same) {
                return Err(BadListRegisters::Duplicate(n));
            }
        }
        Ok(())
    }

    fn allows(&self, value: u64) -> bool {
        let reserved = 0xff_u8.checked_shr(self.priority_bits).unwrap_or(0);
        value & (lr::HW | lr::NMI | lr::RESERVED) == 0
            && value & lr::PINTID_MASK & !lr::EOI == 0
            && lr::priority(value) & reserved == 0
            && self.has_intid(lr::intid(value))
    }

    fn has_intid(&self, intid: u32) -> bool {
        let end = 1_u64 << self.intid_bits.min(32);
        match Kind::of(intid) {
            Kind::Sgi | Kind::Ppi | Kind::Spi => true,
            Kind::ExtendedPpi | Kind::ExtendedSpi => self.extended_range,
            Kind::Lpi => u64::from(intid) < end,
            Kind::Special | Kind::Reserved => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERFACE: Interface = Interface {
        list_registers: 4,
        priority_bits: 5,
        intid_bits: 16,
        extended_range: false,
    };

    fn with(values: &[u64]) -> [u64; MAX_LIST_REGISTERS] {
        let mut lrs = [0; MAX_LIST_REGISTERS];
        lrs[..values.len()].copy_from_slice(values);
        lrs
    }

    #[test]
    fn hcr_bits_are_the_ones_of_the_host() {
        for bit in 0..64 {
            let allowed = matches!(bit, 1..=7 | 14);
            let answer = INTERFACE.check(1 << bit, &with(&[]));
            assert_eq!(answer.is_ok(), allowed, "bit {bit}");
        }
    }

    #[test]
    fn every_field_of_a_list_register_is_checked() {
        let refused = Err(BadListRegisters::ListRegister(0));
        for (value, expected) in [
            (lr::PENDING | 32, Ok(())),
            (
                lr::PENDING | lr::ACTIVE | lr::GROUP1 | lr::EOI | 1019,
                Ok(()),
            ),
            (lr::PENDING | 0xf8 << lr::PRIORITY_SHIFT | 32, Ok(())),
            (lr::PENDING | 0x04 << lr::PRIORITY_SHIFT | 32, refused),
            (lr::PENDING | lr::HW | 32, refused),
            (lr::PENDING | lr::NMI | 32, refused),
            (lr::PENDING | 1 << 45 | 32, refused),
            (lr::PENDING | 1 << 47 | 32, refused),
            (lr::PENDING | 1 << 56 | 32, refused),
            (lr::PENDING | 1 << 58 | 32, refused),
            (lr::ACTIVE | 1 << 40 | 32, refused),
            (lr::ACTIVE | 1 << 44 | 32, refused),
            (lr::PENDING | 1020, refused),
            (lr::PENDING | 1056, refused),
            (lr::PENDING | 8191, refused),
            (lr::PENDING | 8192, Ok(())),
            (lr::PENDING | 0xffff, Ok(())),
            (lr::PENDING | 0x1_0000, refused),
            // Invalid: its other fields mean nothing.
            (lr::HW | 1020, Ok(())),
        ] {
            assert_eq!(INTERFACE.check(0, &with(&[value])), expected, "{value:#x}");
        }
        let extended = Interface {
            extended_range: true,
            ..INTERFACE
        };
        assert_eq!(extended.check(0, &with(&[lr::PENDING | 4096])), Ok(()));
    }

    #[test]
    fn duplicates_count_only_where_valid_and_implemented() {
        let one = lr::PENDING | 40;
        assert_eq!(
            INTERFACE.check(0, &with(&[one, 0, lr::ACTIVE | 40])),
            Err(BadListRegisters::Duplicate(2))
        );
        assert_eq!(INTERFACE.check(0, &with(&[one, 40])), Ok(()));
        assert_eq!(INTERFACE.check(0, &with(&[one, 0, 0, 0, one])), Ok(()));
    }
}

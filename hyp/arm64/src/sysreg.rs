//! System register encodings, as a trapped MSR or MRS names them.
//!
//! ISS of EC 0x18 (DDI0487, D24.2.40): Op0 \[21:20\], Op2 \[19:17\], Op1 \[16:14\],
//! CRn \[13:10\], CRm \[4:1\].

use core::fmt;

use crate::syndrome::Syndrome;

/// A register's encoding in the syndrome's bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sysreg(u32);

/// Makes an encoding of its five numbers.
pub const fn sysreg(op0: u32, op1: u32, crn: u32, crm: u32, op2: u32) -> Sysreg {
    Sysreg(op0 << 20 | op2 << 17 | op1 << 14 | crn << 10 | crm << 1)
}

impl Sysreg {
    /// The encoding in a syndrome.
    pub const fn of(esr: Syndrome) -> Self {
        Self(esr.sysreg())
    }

    /// Op0.
    pub const fn op0(self) -> u32 {
        self.0 >> 20 & 3
    }
    /// Op1.
    pub const fn op1(self) -> u32 {
        self.0 >> 14 & 7
    }
    /// CRn.
    pub const fn crn(self) -> u32 {
        self.0 >> 10 & 0xf
    }
    /// CRm.
    pub const fn crm(self) -> u32 {
        self.0 >> 1 & 0xf
    }
    /// Op2.
    pub const fn op2(self) -> u32 {
        self.0 >> 17 & 7
    }

    /// The word of `msr` of it from a general register (DDI0487, C6.2).
    pub const fn msr(self, rt: u32) -> u32 {
        let [op0, op1, crn, crm, op2] =
            [self.op0(), self.op1(), self.crn(), self.crm(), self.op2()];
        0xd500_0000 | op0 << 19 | op1 << 16 | crn << 12 | crm << 8 | op2 << 5 | rt
    }

    /// The word of `mrs` of it to a general register.
    pub const fn mrs(self, rt: u32) -> u32 {
        self.msr(rt) | 1 << 21
    }

    /// An ID register: op0 3, op1 0, CRn 0, CRm 1 to 7 (HCR_EL2.TID3).
    pub const fn is_id(self) -> bool {
        self.op0() == 3 && self.op1() == 0 && self.crn() == 0 && self.crm() >= 1 && self.crm() <= 7
    }

    /// A debug register of EL1 or EL0 (op0 2, not trace).
    pub const fn is_debug(self) -> bool {
        self.op0() == 2 && (self.op1() == 0 || self.op1() == 3)
    }
}

impl fmt::Display for Sysreg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "S{}_{}_C{}_C{}_{}",
            self.op0(),
            self.op1(),
            self.crn(),
            self.crm(),
            self.op2()
        )
    }
}

impl fmt::Debug for Sysreg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::regs::CNTP_CTL_EL0;
    use std::string::ToString;

    #[test]
    fn encodings_are_those_of_the_syndrome() {
        // mrs x3, cntp_ctl_el0: EC 0x18, IL.
        let iss = 3 << 20 | 1 << 17 | 3 << 14 | 14 << 10 | 3 << 5 | 2 << 1 | 1;
        let esr = Syndrome(0x18 << 26 | 1 << 25 | iss);
        assert_eq!(Sysreg::of(esr), CNTP_CTL_EL0::ENCODING);
        assert_eq!((esr.sysreg_rt(), esr.sysreg_is_read()), (3, true));
        assert_eq!(CNTP_CTL_EL0::ENCODING.to_string(), "S3_3_C14_C2_1");
        assert!(sysreg(3, 0, 0, 4, 0).is_id() && !sysreg(3, 0, 0, 0, 5).is_id());
    }
}

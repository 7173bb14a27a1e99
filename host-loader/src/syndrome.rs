//! ESR_ELx in words (Arm ARM D24.2.40), and the fields of a data abort.

use core::fmt;

/// An exception syndrome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Esr(pub u64);

/// Exception classes that the host acts on, ESR bits 31:26.
pub mod class {
    /// WFI or WFE.
    pub const WFX: u64 = 0x01;
    /// Instruction abort from a lower Exception level.
    pub const INSTRUCTION_ABORT_LOWER: u64 = 0x20;
    /// Data abort from a lower Exception level.
    pub const DATA_ABORT_LOWER: u64 = 0x24;
}

/// An access that a data abort describes fully (ISV = 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// It writes.
    pub write: bool,
    /// Bytes: 1, 2, 4 or 8.
    pub size: u8,
    /// A read is sign-extended.
    pub sign_extend: bool,
    /// The register is 64 bits wide.
    pub wide: bool,
}

impl Access {
    /// What the guest's register gets for `value` read from the device: cut to
    /// the access, extended to the register.
    pub const fn extend(self, value: u64) -> u64 {
        let shift = 64 - 8 * self.size as u32;
        let value = value << shift;
        let value = if self.sign_extend {
            (value as i64 >> shift) as u64
        } else {
            value >> shift
        };
        if self.wide {
            value
        } else {
            value as u32 as u64
        }
    }

    /// The bits of a register that a write puts on the bus.
    pub const fn cut(self, value: u64) -> u64 {
        value & (u64::MAX >> (64 - 8 * self.size as u32))
    }
}

impl Esr {
    /// Exception class.
    pub const fn class(self) -> u64 {
        self.0 >> 26 & 0x3f
    }

    /// Fault status code of an abort.
    pub const fn status(self) -> u64 {
        self.0 & 0x3f
    }

    /// The access of a data abort; `None` when the syndrome does not hold it
    /// (ISV = 0: pairs, writeback, cache maintenance, table walks).
    pub const fn access(self) -> Option<Access> {
        if self.class() != class::DATA_ABORT_LOWER || self.0 >> 24 & 1 == 0 {
            return None;
        }
        Some(Access {
            write: self.0 >> 6 & 1 != 0,
            size: 1 << (self.0 >> 22 & 3),
            sign_extend: self.0 >> 21 & 1 != 0,
            wide: self.0 >> 15 & 1 != 0,
        })
    }
}

/// Says in words why the access at this fault status failed.
fn fault(status: u64) -> &'static str {
    match status & 0x3f {
        0x00..=0x03 => "address size fault",
        0x04..=0x07 | 0x2a | 0x2b => "translation fault",
        0x08..=0x0b => "access flag fault",
        0x0c..=0x0f => "permission fault",
        0x10 => "external abort",
        0x11 => "tag check fault",
        0x13..=0x17 => "external abort on a table walk",
        0x18 => "ECC error",
        0x1b..=0x1f => "ECC error on a table walk",
        0x21 => "alignment fault",
        0x28 | 0x29 | 0x2c..=0x2f => "granule or address size fault",
        0x30 => "TLB conflict",
        0x31 => "unsupported atomic update",
        _ => "fault of an unknown kind",
    }
}

impl fmt::Display for Esr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == u64::MAX {
            return f.write_str("interrupt");
        }
        let name = match self.class() {
            0x00 => "unknown reason",
            0x01 => "WFI or WFE",
            0x03 | 0x05 => "AArch32 coprocessor access",
            0x07 => "FP, SIMD or SVE access",
            0x0e => "illegal execution state",
            0x15 => "SVC",
            0x16 => "HVC",
            0x17 => "SMC",
            0x18 => "system register access",
            0x19 => "SVE access",
            0x20 | 0x21 => "instruction abort",
            0x22 => "PC alignment fault",
            0x24 | 0x25 => "data abort",
            0x26 => "SP alignment fault",
            0x2c => "floating-point exception",
            0x2f => "SError",
            0x30 | 0x31 => "breakpoint",
            0x32 | 0x33 => "software step",
            0x34 | 0x35 => "watchpoint",
            0x3c => "BRK",
            class => return write!(f, "exception class {class:#x}"),
        };
        f.write_str(name)?;
        match self.class() {
            0x24 | 0x25 => {
                let way = if self.0 >> 6 & 1 != 0 {
                    "write"
                } else {
                    "read"
                };
                write!(f, ", {way}, {}", fault(self.status()))?;
                if self.class() == class::DATA_ABORT_LOWER {
                    match self.access() {
                        Some(Access { size: 1, .. }) => f.write_str(", 1 byte")?,
                        Some(access) => write!(f, ", {} bytes", access.size)?,
                        None => f.write_str(", no syndrome")?,
                    }
                }
                Ok(())
            }
            0x20 | 0x21 => write!(f, ", {}", fault(self.status())),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::format;

    #[test]
    fn reads_are_cut_and_extended_to_the_register() {
        let access = |size, sign_extend, wide| Access {
            write: false,
            size,
            sign_extend,
            wide,
        };
        assert_eq!(access(1, false, false).extend(0x1ff), 0xff);
        assert_eq!(access(1, true, false).extend(0x80), 0xffff_ff80);
        assert_eq!(access(1, true, true).extend(0x80), 0xffff_ffff_ffff_ff80);
        assert_eq!(
            access(4, true, true).extend(0x8000_0000),
            0xffff_ffff_8000_0000
        );
        assert_eq!(access(8, false, true).extend(u64::MAX), u64::MAX);
        assert_eq!(access(2, false, true).cut(0x1234_5678), 0x5678);
        assert_eq!(access(8, false, true).cut(u64::MAX), u64::MAX);
    }

    #[test]
    fn a_store_byte_is_read_from_its_syndrome() {
        // EC 0x24, IL, ISV, SAS 0, SRT 3, WnR, translation fault level 2.
        let esr = Esr(0x24 << 26 | 1 << 25 | 1 << 24 | 3 << 16 | 1 << 6 | 6);
        let access = esr.access().unwrap();
        assert!(access.write && access.size == 1 && !access.wide);
        assert_eq!(
            format!("{esr}"),
            "data abort, write, translation fault, 1 byte"
        );
        assert_eq!(Esr(0x24 << 26 | 6).access(), None);
        assert_eq!(Esr(0x20 << 26 | 1 << 24).access(), None);
    }
}

//! ESR_ELx, in fields and in words (DDI0487, D24.2.40): EL2 acts on it, and
//! the host reads it from the exit record.

use core::fmt;

/// Exception class, ESR_ELx.EC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Class(pub u8);

macro_rules! classes {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $words:literal;)*) => {
        impl Class {
            $($(#[$doc])* pub const $name: Self = Self($value);)*

            /// The class in words; empty for one without a name here.
            pub const fn words(self) -> &'static str {
                match self.0 {
                    $($value => $words,)*
                    _ => "",
                }
            }
        }
    };
}

classes! {
    /// Unknown reason: an undefined instruction.
    UNKNOWN = 0x00, "unknown reason or undefined instruction";
    /// WFI, WFE and kin.
    WFX = 0x01, "WFI or WFE";
    /// MCR or MRC, coprocessor 15, of AArch32.
    CP15 = 0x03, "AArch32 coprocessor access";
    /// MCR or MRC, coprocessor 14, of AArch32.
    CP14 = 0x05, "AArch32 coprocessor access";
    /// FP or SIMD while trapped.
    FP = 0x07, "FP/SIMD access";
    /// PSTATE.IL.
    ILLEGAL_STATE = 0x0e, "illegal execution state";
    /// SVC of AArch64.
    SVC = 0x15, "SVC";
    /// HVC of AArch64.
    HVC = 0x16, "HVC";
    /// SMC of AArch64.
    SMC = 0x17, "SMC";
    /// MSR, MRS or SYS.
    SYSREG = 0x18, "system register access";
    /// SVE while trapped.
    SVE = 0x19, "SVE access";
    /// SME while trapped.
    SME = 0x1d, "SME access";
    /// Instruction abort of a lower level.
    INST_ABORT_LOWER = 0x20, "instruction abort of a lower level";
    /// Instruction abort of the same level.
    INST_ABORT = 0x21, "instruction abort";
    /// PC not aligned.
    PC_ALIGNMENT = 0x22, "PC alignment fault";
    /// Data abort of a lower level.
    DATA_ABORT_LOWER = 0x24, "data abort of a lower level";
    /// Data abort of the same level.
    DATA_ABORT = 0x25, "data abort";
    /// SP not aligned.
    SP_ALIGNMENT = 0x26, "SP alignment fault";
    /// A trapped floating-point exception of AArch64.
    FP_EXCEPTION = 0x2c, "floating-point exception";
    /// System error.
    SERROR = 0x2f, "SError";
    /// Breakpoint of a lower level.
    BREAKPOINT_LOWER = 0x30, "breakpoint of a lower level";
    /// Breakpoint of the same level.
    BREAKPOINT = 0x31, "breakpoint";
    /// Software step of a lower level.
    STEP_LOWER = 0x32, "software step of a lower level";
    /// Software step of the same level.
    STEP = 0x33, "software step";
    /// Watchpoint of a lower level.
    WATCHPOINT_LOWER = 0x34, "watchpoint of a lower level";
    /// Watchpoint of the same level.
    WATCHPOINT = 0x35, "watchpoint";
    /// BRK.
    BRK = 0x3c, "BRK instruction";
}

/// A syndrome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Syndrome(pub u64);

impl Syndrome {
    /// Of a system error that an `esb` has taken: DISR_EL1's IDS and what they say.
    pub const fn of_deferred(disr: u64) -> Self {
        Self((Class::SERROR.0 as u64) << 26 | 1 << 25 | disr & 0x1ff_ffff)
    }

    /// The class.
    pub const fn class(self) -> Class {
        Class((self.0 >> 26 & 0x3f) as u8)
    }

    /// The fault status code of an abort, IFSC or DFSC.
    pub const fn fault(self) -> Fault {
        Fault((self.0 & 0x3f) as u8)
    }

    /// Data abort: the access can be emulated from the syndrome (ISV).
    pub const fn has_access(self) -> bool {
        self.0 >> 24 & 1 != 0
    }

    /// A data abort of a lower level that can be emulated from its syndrome: no
    /// pair, no writeback, no cache maintenance, no table walk.
    pub const fn is_emulatable(self) -> bool {
        self.class().0 == Class::DATA_ABORT_LOWER.0 && self.has_access()
    }

    /// A data abort of a lower level with nothing beside it to find out: the access
    /// itself met no translation at a level of 0 to 3 (EC, CM, S1PTW, DFSC), and is
    /// described (ISV) and not sign-extended (SSE).
    pub const fn is_plain_access(self) -> bool {
        const LOOKED_AT: u64 = 0x3f << 26 | 1 << 24 | 1 << 21 | 1 << 8 | 1 << 7 | 0x3c;
        self.0 & LOOKED_AT == (Class::DATA_ABORT_LOWER.0 as u64) << 26 | 1 << 24 | 0x04
    }

    /// The same without its description of the access (ISV, SAS, SSE, SRT, SF, AR),
    /// as of a pair: IL is set then.
    pub const fn without_access(self) -> Self {
        const ACCESS: u64 = 0x7ff << 14;
        Self(self.0 & !ACCESS | 1 << 25)
    }

    /// The instruction has 4 bytes, not 2 (IL).
    pub const fn is_long(self) -> bool {
        self.0 >> 25 & 1 != 0
    }

    /// Data abort: it was a write (WnR). A cache maintenance instruction (CM)
    /// counts as none.
    pub const fn is_write(self) -> bool {
        self.0 >> 6 & 1 != 0 && self.0 >> 8 & 1 == 0
    }

    /// Data abort: WnR alone, of an access that is known to be no maintenance.
    pub const fn has_wnr(self) -> bool {
        self.0 >> 6 & 1 != 0
    }

    /// Data abort: of a cache maintenance instruction (CM).
    pub const fn is_cache_maintenance(self) -> bool {
        self.0 >> 8 & 1 != 0
    }

    /// Abort: it struck a stage-1 walk (S1PTW).
    pub const fn on_walk(self) -> bool {
        self.0 >> 7 & 1 != 0
    }

    /// Abort of a lower level: the IPA that it struck, as far as HPFAR_EL2 and
    /// FAR_EL2 hold it. FAR is the address that was translated: of a table that a
    /// walk read, the page alone is known.
    pub const fn ipa(self, hpfar: u64, far: u64) -> u64 {
        // HPFAR_EL2.FIPA: IPA[51:12] in bits 43:4.
        let page = (hpfar >> 4 & 0xff_ffff_ffff) << 12;
        if self.on_walk() {
            page
        } else {
            page | far & 0xfff
        }
    }

    /// WFIT or WFET: the register that has the time at which it ends (ISS of WF*: RN where
    /// RV, and TI\[1\]).
    pub const fn timeout(self) -> Option<u32> {
        if self.0 & 0b110 == 0b110 {
            Some((self.0 >> 5 & 0x1f) as u32)
        } else {
            None
        }
    }

    /// Abort of a lower level: HPFAR_EL2 was written for it (DDI0487, HPFAR_EL2). Else it
    /// holds what it held before.
    pub const fn has_hpfar(self) -> bool {
        let permission = matches!(self.fault().0, 0x0c..=0x0f);
        self.fault().is_of_address() && (!permission || self.on_walk())
    }

    /// Of an external abort, its kind (EA), which the machine's builder says.
    pub const EA: u64 = 1 << 9;

    /// Abort: FAR is not valid (FnV).
    pub const fn far_not_valid(self) -> bool {
        self.0 >> 10 & 1 != 0
    }

    /// Data abort with ISV: bytes of the access.
    pub const fn size(self) -> u32 {
        1 << self.size_shift()
    }

    /// Data abort with ISV: log2 of the bytes of the access (SAS).
    pub const fn size_shift(self) -> u32 {
        (self.0 >> 22 & 0b11) as u32
    }

    /// Data abort with ISV: the register named (SRT).
    pub const fn register(self) -> u32 {
        (self.0 >> 16 & 0x1f) as u32
    }

    /// Data abort with ISV: what is loaded into the register for `value` read:
    /// sign extension (SSE) and register width (SF).
    pub const fn extend(self, value: u64) -> u64 {
        let unused = 64 - 8 * self.size();
        let top = value << unused;
        if self.0 >> 21 & 1 == 0 || unused == 0 {
            return top >> unused;
        }
        let extended = (top as i64 >> unused) as u64;
        if self.0 >> 15 & 1 != 0 {
            extended
        } else {
            extended & 0xffff_ffff
        }
    }

    /// Data abort with ISV: what a store puts on the bus of the register's
    /// `value`.
    pub const fn cut(self, value: u64) -> u64 {
        value & (u64::MAX >> (64 - 8 * self.size()))
    }

    /// Data abort with ISV: between a register's value and the bus's, for an
    /// access that is big-endian or not.
    pub const fn ordered(self, value: u64, big_endian: bool) -> u64 {
        if big_endian {
            value.swap_bytes() >> (64 - 8 * self.size())
        } else {
            value
        }
    }

    /// System register access: the encoding, Op0 to CRm where `MSR` has them.
    pub const fn sysreg(self) -> u32 {
        (self.0 & 0x3f_fc1e) as u32
    }

    /// System register access: it is a read.
    pub const fn sysreg_is_read(self) -> bool {
        self.0 & 1 != 0
    }

    /// System register access: the general register named.
    pub const fn sysreg_rt(self) -> u32 {
        (self.0 >> 5 & 0x1f) as u32
    }
}

/// Fault status code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault(pub u8);

impl Fault {
    /// Address size fault, level 0.
    pub const ADDRESS_SIZE: Self = Self(0);
    /// Synchronous external abort.
    pub const EXTERNAL: Self = Self(0x10);
    /// Synchronous external abort on a walk, level 3.
    pub const EXTERNAL_ON_WALK: Self = Self(0x17);

    /// The kind in words.
    pub const fn words(self) -> &'static str {
        match self.0 {
            0x00..=0x03 => "address size fault",
            0x04..=0x07 | 0x2a | 0x2b => "translation fault",
            0x08..=0x0b => "access flag fault",
            0x0c..=0x0f => "permission fault",
            0x10 => "synchronous external abort",
            0x11 => "tag check fault",
            0x13..=0x17 => "external abort on a table walk",
            0x18 => "parity error",
            0x1b..=0x1f => "parity error on a table walk",
            0x21 => "alignment fault",
            0x28 | 0x29 | 0x2c..=0x2f => "granule protection or address size fault",
            0x30 => "TLB conflict",
            0x31 => "unsupported atomic update",
            0x35 => "unsupported exclusive or atomic access",
            _ => "fault",
        }
    }

    /// One of translation itself, at any level: of the address, the entry, the access flag
    /// or the permission.
    pub const fn is_of_address(self) -> bool {
        matches!(self.0, 0x00..=0x0f | 0x29..=0x2b)
    }

    /// A translation fault, at any level.
    pub const fn is_translation(self) -> bool {
        matches!(self.0, 0x04..=0x07 | 0x2b)
    }
}

impl fmt::Display for Syndrome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let class = self.class();
        if class.words().is_empty() {
            return write!(f, "exception class {:#x}", class.0);
        }
        f.write_str(class.words())?;
        let data = matches!(class, Class::DATA_ABORT | Class::DATA_ABORT_LOWER);
        if data || matches!(class, Class::INST_ABORT | Class::INST_ABORT_LOWER) {
            let fault = self.fault();
            write!(f, ", {}", fault.words())?;
            if fault.0 < 0x10 {
                write!(f, ", level {}", fault.0 & 3)?;
            }
        }
        let of_lower = matches!(class, Class::DATA_ABORT_LOWER | Class::INST_ABORT_LOWER);
        if of_lower && self.on_walk() {
            f.write_str(" of stage 2 on a stage-1 walk")?;
        }
        if data {
            f.write_str(if self.is_write() { ", write" } else { ", read" })?;
        }
        if class == Class::DATA_ABORT_LOWER {
            match (self.has_access(), self.size()) {
                (false, _) => f.write_str(", no syndrome of the access")?,
                (true, 1) => f.write_str(", 1 byte")?,
                (true, size) => write!(f, ", {size} bytes")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn words_say_what_happened() {
        for (esr, words) in [
            (0x9600_0046, "data abort, translation fault, level 2, write"),
            (
                // ISV, SAS 0, SRT 3, WnR, translation fault at level 2.
                0x24 << 26 | 1 << 25 | 1 << 24 | 3 << 16 | 1 << 6 | 6,
                "data abort of a lower level, translation fault, level 2, write, 1 byte",
            ),
            (
                0x24 << 26 | 0x10,
                "data abort of a lower level, synchronous external abort, read, \
                 no syndrome of the access",
            ),
            (
                // S1PTW.
                0x24 << 26 | 1 << 7 | 6,
                "data abort of a lower level, translation fault, level 2 of stage 2 \
                 on a stage-1 walk, read, no syndrome of the access",
            ),
            (
                0x20 << 26 | 1 << 7 | 7,
                "instruction abort of a lower level, translation fault, level 3 of \
                 stage 2 on a stage-1 walk",
            ),
            (0x5a00_0000, "HVC"),
            (0x3f << 26, "exception class 0x3f"),
        ] {
            assert_eq!(Syndrome(esr).to_string(), words);
        }
    }

    #[test]
    fn only_a_lower_levels_data_abort_with_its_access_is_emulatable() {
        let isv = 1 << 24;
        assert!(Syndrome(0x24 << 26 | isv).is_emulatable());
        assert!(!Syndrome(0x24 << 26).is_emulatable());
        assert!(!Syndrome(0x20 << 26 | isv).is_emulatable());
        assert!(!Syndrome(0x25 << 26 | isv).is_emulatable());
    }

    #[test]
    fn without_its_access_a_syndrome_is_that_of_a_pair() {
        // ISV, SAS 2, SRT 3, SF, WnR, translation fault at level 3; IL is clear.
        let esr = 0x24 << 26 | 1 << 24 | 2 << 22 | 3 << 16 | 1 << 15 | 1 << 6 | 7;
        let without = Syndrome(esr).without_access();
        assert_eq!(without.0, 0x24 << 26 | 1 << 25 | 1 << 6 | 7);
        assert!(!without.has_access());
    }

    #[test]
    fn of_a_table_that_a_walk_read_the_page_alone_is_known() {
        let (hpfar, far) = (0xf_1234_5670 << 4 | 0xf, 0xffff_8000_0000_0abc);
        assert_eq!(
            Syndrome(0x24 << 26).ipa(hpfar, far),
            0xf_1234_5670 << 12 | 0xabc
        );
        let walk = Syndrome(0x24 << 26 | 1 << 7);
        assert_eq!(walk.ipa(hpfar, far), 0xf_1234_5670 << 12);
    }

    #[test]
    fn stores_are_cut_to_the_access() {
        assert_eq!(Syndrome(1 << 22).cut(0x1234_5678), 0x5678);
        assert_eq!(Syndrome(3 << 22).cut(u64::MAX), u64::MAX);
    }

    #[test]
    fn loads_extend_as_the_instruction_says() {
        // ldrsb x: SAS 0, SSE 1, SF 1; ldrsh w: SAS 1, SSE 1, SF 0; ldr w: SAS 2.
        assert_eq!(
            Syndrome(1 << 24 | 1 << 21 | 1 << 15).extend(0x80),
            0xffff_ffff_ffff_ff80
        );
        assert_eq!(
            Syndrome(1 << 24 | 1 << 22 | 1 << 21).extend(0x8000),
            0xffff_8000
        );
        assert_eq!(Syndrome(1 << 24 | 2 << 22).extend(u64::MAX), 0xffff_ffff);
        assert_eq!(Syndrome(1 << 24 | 3 << 22).extend(u64::MAX), u64::MAX);
    }
}

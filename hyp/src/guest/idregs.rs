//! What a guest is told of its CPU, in one table: feature → shown, hidden or
//! fixed. A field that has no row is hidden: reads as 0.
//!
//! A feature is shown only where EL2 carries its state over a world switch, or
//! where it has none, and so each row has an upper bound: what a CPU of the
//! future adds to a field is hidden until somebody has looked. What is hidden is
//! trapped too, or has no state of its own: using it all the same harms the guest
//! alone. Fields: DDI0487, D24.2.

use arm64::regs::*;
use arm64::sysreg::Sysreg;

/// What becomes of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Show {
    /// The CPU's value, but no more than this: the newest that was looked at.
    AtMost(u64),
    /// The same for a field whose 0xf means that there is less than 0.
    Signed(u64),
    /// This value.
    Fixed(u64),
    /// PARange: the width of the guest's IPA space.
    IpaRange,
}
use Show::{AtMost, Fixed, IpaRange, Signed};

/// A row: register, lowest bit of a four-bit field, what becomes of it.
type Row = (Sysreg, u32, Show, &'static str);

const PFR0: Sysreg = ID_AA64PFR0_EL1::ENCODING;
const PFR1: Sysreg = ID_AA64PFR1_EL1::ENCODING;
const DFR0: Sysreg = ID_AA64DFR0_EL1::ENCODING;
const ISAR0: Sysreg = ID_AA64ISAR0_EL1::ENCODING;
const ISAR1: Sysreg = ID_AA64ISAR1_EL1::ENCODING;
const ISAR2: Sysreg = ID_AA64ISAR2_EL1::ENCODING;
const MMFR0: Sysreg = ID_AA64MMFR0_EL1::ENCODING;
const MMFR1: Sysreg = ID_AA64MMFR1_EL1::ENCODING;
const MMFR2: Sysreg = ID_AA64MMFR2_EL1::ENCODING;
const MMFR3: Sysreg = ID_AA64MMFR3_EL1::ENCODING;

/// Everything that a guest sees of AArch64 features. Hidden, because it has no
/// row: SVE, SME, MTE, RAS, AMU, MPAM, PMU, SPE, trace, nested virtualisation,
/// LOR, MOPS, WFxT, GCS, 128-bit registers, S1PIE/S1POE, ECV, FGT, RME.
const TABLE: &[Row] = &[
    (
        PFR0,
        0,
        AtMost(2),
        "EL0: AArch64, and AArch32 where the CPU has it",
    ),
    (PFR0, 4, Fixed(1), "EL1: AArch64"),
    (PFR0, 16, Signed(1), "FP"),
    (PFR0, 20, Signed(1), "AdvSIMD"),
    (PFR0, 24, Fixed(1), "GICv3 system registers"),
    (PFR0, 48, AtMost(1), "DIT"),
    (PFR0, 56, AtMost(1), "CSV2, without SCXTNUM"),
    (PFR0, 60, AtMost(1), "CSV3"),
    (PFR1, 0, AtMost(1), "BTI"),
    (PFR1, 4, AtMost(2), "SSBS"),
    (DFR0, 0, Fixed(6), "debug architecture v8.0"),
    (DFR0, 12, Fixed(1), "breakpoints: 2, which read as zero"),
    (DFR0, 20, Fixed(1), "watchpoints: 2, which read as zero"),
    (DFR0, 36, Signed(0), "double lock"),
    (ISAR0, 4, AtMost(2), "AES, PMULL"),
    (ISAR0, 8, AtMost(1), "SHA1"),
    (ISAR0, 12, AtMost(2), "SHA2"),
    (ISAR0, 16, AtMost(1), "CRC32"),
    (ISAR0, 20, AtMost(2), "LSE atomics, not of 128 bits"),
    (ISAR0, 28, AtMost(1), "RDM"),
    (ISAR0, 32, AtMost(1), "SHA3"),
    (ISAR0, 36, AtMost(1), "SM3"),
    (ISAR0, 40, AtMost(1), "SM4"),
    (ISAR0, 44, AtMost(1), "DotProd"),
    (ISAR0, 48, AtMost(1), "FHM"),
    (ISAR0, 52, AtMost(2), "FlagM"),
    (ISAR0, 56, AtMost(2), "TLBI OS and range"),
    (ISAR0, 60, AtMost(1), "RNG"),
    (ISAR1, 0, AtMost(2), "DPB"),
    (ISAR1, 4, AtMost(5), "pointer authentication, QARMA5"),
    (ISAR1, 8, AtMost(5), "pointer authentication, IMPDEF"),
    (ISAR1, 12, AtMost(1), "JSCVT"),
    (ISAR1, 16, AtMost(1), "FCMA"),
    (ISAR1, 20, AtMost(2), "LRCPC, to LRCPC2"),
    (ISAR1, 24, AtMost(1), "generic authentication, QARMA5"),
    (ISAR1, 28, AtMost(1), "generic authentication, IMPDEF"),
    (ISAR1, 32, AtMost(1), "FRINTTS"),
    (ISAR1, 36, AtMost(1), "SB"),
    (ISAR1, 40, AtMost(2), "SPECRES"),
    (ISAR1, 44, AtMost(2), "BF16"),
    (ISAR1, 48, AtMost(1), "DGH"),
    (ISAR1, 52, AtMost(1), "I8MM"),
    (ISAR2, 4, AtMost(1), "RPRES"),
    (ISAR2, 8, AtMost(1), "generic authentication, QARMA3"),
    (ISAR2, 12, AtMost(5), "pointer authentication, QARMA3"),
    (ISAR2, 20, AtMost(1), "HBC"),
    (ISAR2, 24, AtMost(1), "PAC frac"),
    (ISAR2, 28, AtMost(1), "CLRBHB"),
    (ISAR2, 40, AtMost(1), "PRFMSLC"),
    (ISAR2, 48, AtMost(1), "RPRFM"),
    (ISAR2, 52, AtMost(1), "CSSC, not compare-and-branch"),
    (MMFR0, 0, IpaRange, "PARange"),
    (MMFR0, 4, AtMost(2), "ASID bits"),
    (MMFR0, 8, AtMost(1), "mixed endian"),
    (MMFR0, 16, AtMost(1), "mixed endian at EL0"),
    (MMFR0, 20, AtMost(2), "16K granule"),
    (MMFR0, 24, Signed(0), "64K granule"),
    (MMFR0, 28, Signed(1), "4K granule"),
    (
        MMFR1,
        0,
        AtMost(2),
        "HAFDBS: access flag and dirty state of leaves; tables' and the dirty log need TCR2_EL1",
    ),
    (MMFR1, 12, AtMost(2), "HPDS"),
    (MMFR1, 20, AtMost(3), "PAN"),
    (MMFR1, 36, AtMost(3), "ETS"),
    (MMFR1, 44, AtMost(1), "AFP"),
    (MMFR1, 48, AtMost(1), "nTLBPA"),
    (MMFR1, 60, AtMost(1), "ECBHB"),
    (MMFR2, 0, AtMost(1), "CnP"),
    (MMFR2, 4, AtMost(1), "UAO"),
    (MMFR2, 8, AtMost(1), "LSMAOC"),
    (
        MMFR2,
        16,
        AtMost(1),
        "LVA, not the 56 bits of 128-bit descriptors",
    ),
    (MMFR2, 20, AtMost(1), "CCIDX"),
    (MMFR2, 28, AtMost(1), "TTST"),
    (MMFR2, 32, AtMost(1), "LSE2"),
    (MMFR2, 36, AtMost(1), "IDST"),
    (MMFR2, 48, AtMost(1), "TTL"),
    (MMFR2, 52, AtMost(2), "BBM"),
    (MMFR2, 60, AtMost(1), "E0PD"),
    (MMFR3, 60, AtMost(1), "Spec_FPACC"),
];

const PFR0_32: Sysreg = ID_PFR0_EL1::ENCODING;
const DFR0_32: Sysreg = ID_DFR0_EL1::ENCODING;
const PFR2_32: Sysreg = ID_PFR2_EL1::ENCODING;
const DFR1_32: Sysreg = ID_DFR1_EL1::ENCODING;

/// The AArch32 ID registers, CRm 1 to 3, are the CPU's, but for these fields:
/// A32 gets no new features, and what has state there is AArch64's too, where it
/// is hidden.
const AARCH32: &[Row] = &[
    (PFR0_32, 20, Fixed(0), "AMU"),
    (PFR0_32, 28, Fixed(0), "RAS"),
    (DFR0_32, 0, AtMost(6), "debug architecture v8.0"),
    (DFR0_32, 4, Fixed(0), "debug of the Secure state"),
    (DFR0_32, 12, Fixed(0), "trace"),
    (DFR0_32, 16, Fixed(0), "trace by memory"),
    (DFR0_32, 20, Fixed(0), "debug of M profile"),
    (DFR0_32, 24, Fixed(0), "PMU"),
    (DFR0_32, 28, Fixed(0), "trace filters"),
    (PFR2_32, 8, Fixed(0), "RAS frac"),
    (DFR1_32, 0, Fixed(0), "PMU of several threads"),
    (DFR1_32, 4, Fixed(0), "HPMN0"),
];

/// The code of ID_AA64MMFR0_EL1.PARange for the narrowest range that holds an
/// IPA space of `bits`: a guest that is told of less cannot reach all it has.
const fn pa_range(bits: u8) -> u64 {
    match bits {
        0..=32 => 0,
        33..=36 => 1,
        37..=40 => 2,
        41..=42 => 3,
        43..=44 => 4,
        45..=48 => 5,
        _ => 6,
    }
}

/// The value that a guest with `ipa_bits` of IPA space reads from an ID register
/// whose value on the CPU is `cpu`.
pub fn view(register: Sysreg, cpu: u64, ipa_bits: u8) -> u64 {
    // A field without a row is the CPU's in AArch32, and 0 in AArch64.
    let (table, without_row) = if register.crm() <= 3 {
        (AARCH32, cpu)
    } else {
        (TABLE, 0)
    };
    let rows = table.iter().filter(|row| row.0 == register);
    rows.fold(without_row, |value, &(_, shift, show, _)| {
        let field = cpu >> shift & 0xf;
        let shown = match show {
            AtMost(limit) => field.min(limit),
            Signed(limit) if field < 8 => field.min(limit),
            Signed(_) => field,
            Fixed(fixed) => fixed,
            IpaRange => field.min(pa_range(ipa_bits)),
        };
        value & !(0xf << shift) | shown << shift
    })
}

macro_rules! id_registers {
    ($($name:ident)*) => {
        /// The CPU's own value of an ID register; 0 for one that is reserved.
        pub fn of_cpu(register: Sysreg) -> u64 {
            match register {
                $($name::ENCODING => $name.get(),)*
                _ => 0,
            }
        }
    };
}

id_registers! {
    ID_PFR0_EL1 ID_PFR1_EL1 ID_DFR0_EL1 ID_AFR0_EL1
    ID_MMFR0_EL1 ID_MMFR1_EL1 ID_MMFR2_EL1 ID_MMFR3_EL1
    ID_ISAR0_EL1 ID_ISAR1_EL1 ID_ISAR2_EL1 ID_ISAR3_EL1
    ID_ISAR4_EL1 ID_ISAR5_EL1 ID_MMFR4_EL1 ID_ISAR6_EL1
    MVFR0_EL1 MVFR1_EL1 MVFR2_EL1 ID_PFR2_EL1
    ID_DFR1_EL1 ID_MMFR5_EL1 ID_AA64PFR0_EL1 ID_AA64PFR1_EL1
    ID_AA64DFR0_EL1 ID_AA64ISAR0_EL1 ID_AA64ISAR1_EL1 ID_AA64ISAR2_EL1
    ID_AA64MMFR0_EL1 ID_AA64MMFR1_EL1 ID_AA64MMFR2_EL1 ID_AA64MMFR3_EL1
}

#[cfg(test)]
mod tests {
    use super::*;
    use arm64::sysreg::sysreg;

    #[test]
    fn each_field_has_one_row() {
        for table in [TABLE, AARCH32] {
            for (n, a) in table.iter().enumerate() {
                for b in &table[n + 1..] {
                    assert!((a.0, a.1) != (b.0, b.1), "{} and {}", a.3, b.3);
                }
                assert_eq!(a.1 % 4, 0, "{}", a.3);
            }
        }
    }

    /// The largest values that were looked at, field by field, from the registers'
    /// descriptions: what is above, or what a new row shows, is a new feature.
    #[test]
    fn a_cpu_of_the_future_shows_nothing_new() {
        for (register, newest) in [
            (PFR0, 0x1101_0000_0111_0012),
            (PFR1, 0x21),
            (DFR0, 0x10_1006),
            (ISAR0, 0x1221_1111_1021_2120),
            (ISAR1, 0x0011_2211_1121_1552),
            (ISAR2, 0x0011_0100_1110_5110),
            (MMFR0, 0x1021_0126),
            (MMFR1, 0x1001_1030_0030_2002),
            (MMFR2, 0x1021_0011_1011_0111),
            (MMFR3, 0x1000_0000_0000_0000),
        ] {
            // Signed fields are at most 7.
            let fields = TABLE.iter().filter(|row| row.0 == register);
            let most = fields.fold(0, |all, row| {
                let field = if matches!(row.2, Signed(_)) { 7 } else { 0xf };
                all | field << row.1
            });
            let shown = view(register, most, 52);
            assert_eq!(shown, newest, "{register}: {shown:#x}");
        }
        // Less than nothing stays.
        assert_eq!(view(PFR0, 0x00ff_0000, 48) >> 16 & 0xff, 0xff, "no FP");
        assert_eq!(view(MMFR0, 0xff << 24, 48) >> 24 & 0xff, 0xff, "16K alone");
    }

    #[test]
    fn what_has_no_row_is_hidden() {
        assert_eq!(view(PFR0, u64::MAX, 48) >> 28 & 0xf_ffff, 0, "RAS to AMU");
        assert_eq!(view(PFR1, u64::MAX, 48), 0x21);
        assert_eq!(view(sysreg(3, 0, 0, 4, 4), u64::MAX, 48), 0, "SVE features");
        assert_eq!(view(sysreg(3, 0, 0, 7, 7), u64::MAX, 48), 0, "reserved");
    }

    #[test]
    fn the_guest_sees_as_many_address_bits_as_its_ipa_space_needs() {
        assert_eq!(view(MMFR0, 6, 32) & 0xf, 0);
        // 5 GiB of RAM from 1 GiB on: 33 bits, which no PARange names.
        assert_eq!(view(MMFR0, 6, 33) & 0xf, 1);
        assert_eq!(view(MMFR0, 6, 40) & 0xf, 2);
        for (bits, range) in [
            (36, 1),
            (37, 2),
            (41, 3),
            (42, 3),
            (43, 4),
            (44, 4),
            (45, 5),
        ] {
            assert_eq!(view(MMFR0, 6, bits) & 0xf, range, "{bits}");
        }
        assert_eq!(view(MMFR0, 6, 48) & 0xf, 5);
        assert_eq!(view(MMFR0, 6, 49) & 0xf, 6);
        assert_eq!(view(MMFR0, 2, 52) & 0xf, 2);
        assert_eq!(view(MMFR0, 6, 52) & 0xf, 6);
    }

    /// DIT has no state of its own; CSV2 and what A32 had at first stays.
    #[test]
    fn what_has_state_is_hidden_in_either_state() {
        assert_eq!(view(DFR0, u64::MAX, 48) >> 8 & 0xf, 0, "PMU");
        assert_eq!(view(PFR0, u64::MAX, 48) >> 28 & 0xf, 0, "RAS");
        for (register, all) in [
            (PFR0_32, 0x0f0f_ffff),
            (DFR0_32, 0x0000_0f06),
            (PFR2_32, 0xffff_f0ff),
            (DFR1_32, 0xffff_ff00),
        ] {
            let seen = view(register, 0xffff_ffff, 48);
            assert_eq!(seen, all, "{register}: {seen:#x}");
        }
        // Debug v8.0 as the AArch64 register says it, or less.
        assert_eq!(view(DFR0_32, 5, 48), 5);
        assert_eq!(view(sysreg(3, 0, 0, 2, 5), 0x1234_5678, 48), 0x1234_5678);
    }
}

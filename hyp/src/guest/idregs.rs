//! What a guest is told of its CPU, in one table: feature → shown, hidden or
//! fixed. A field that has no row is hidden: reads as 0.
//!
//! A feature is shown only where EL2 carries its state over a world switch, or
//! where it has none. What is hidden is trapped too, or has no state of its own:
//! using it all the same harms the guest alone. Fields: DDI0487, D24.2.

use super::sysreg::{Sysreg, sysreg};

/// What becomes of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Show {
    /// The CPU's value.
    Cpu,
    /// The CPU's value, but no more than this.
    AtMost(u64),
    /// This value.
    Fixed(u64),
    /// PARange: the width of the guest's IPA space.
    IpaRange,
}
use Show::{AtMost, Cpu, Fixed, IpaRange};

/// A row: register, lowest bit of a four-bit field, what becomes of it.
type Row = (Sysreg, u32, Show, &'static str);

const PFR0: Sysreg = sysreg(3, 0, 0, 4, 0);
const PFR1: Sysreg = sysreg(3, 0, 0, 4, 1);
const DFR0: Sysreg = sysreg(3, 0, 0, 5, 0);
const ISAR0: Sysreg = sysreg(3, 0, 0, 6, 0);
const ISAR1: Sysreg = sysreg(3, 0, 0, 6, 1);
const ISAR2: Sysreg = sysreg(3, 0, 0, 6, 2);
const MMFR0: Sysreg = sysreg(3, 0, 0, 7, 0);
const MMFR1: Sysreg = sysreg(3, 0, 0, 7, 1);
const MMFR2: Sysreg = sysreg(3, 0, 0, 7, 2);
const MMFR3: Sysreg = sysreg(3, 0, 0, 7, 3);

/// Everything that a guest sees of AArch64 features. Hidden, because it has no
/// row: SVE, SME, MTE, RAS, AMU, MPAM, PMU, SPE, trace, nested virtualisation,
/// LOR, MOPS, WFxT, GCS, 128-bit registers, S1PIE/S1POE, ECV, FGT, RME.
const TABLE: &[Row] = &[
    (
        PFR0,
        0,
        Cpu,
        "EL0: AArch64, and AArch32 where the CPU has it",
    ),
    (PFR0, 4, Fixed(1), "EL1: AArch64"),
    (PFR0, 16, Cpu, "FP"),
    (PFR0, 20, Cpu, "AdvSIMD"),
    (PFR0, 24, Fixed(1), "GICv3 system registers"),
    (PFR0, 48, Cpu, "DIT"),
    (PFR0, 56, AtMost(1), "CSV2, without SCXTNUM"),
    (PFR0, 60, Cpu, "CSV3"),
    (PFR1, 0, Cpu, "BTI"),
    (PFR1, 4, Cpu, "SSBS"),
    (DFR0, 0, Fixed(6), "debug architecture v8.0"),
    (DFR0, 12, Fixed(1), "breakpoints: 2, which read as zero"),
    (DFR0, 20, Fixed(1), "watchpoints: 2, which read as zero"),
    (DFR0, 36, Cpu, "double lock"),
    (ISAR0, 4, Cpu, "AES, PMULL"),
    (ISAR0, 8, Cpu, "SHA1"),
    (ISAR0, 12, Cpu, "SHA2"),
    (ISAR0, 16, Cpu, "CRC32"),
    (ISAR0, 20, Cpu, "LSE atomics"),
    (ISAR0, 28, Cpu, "RDM"),
    (ISAR0, 32, Cpu, "SHA3"),
    (ISAR0, 36, Cpu, "SM3"),
    (ISAR0, 40, Cpu, "SM4"),
    (ISAR0, 44, Cpu, "DotProd"),
    (ISAR0, 48, Cpu, "FHM"),
    (ISAR0, 52, Cpu, "FlagM"),
    (ISAR0, 56, Cpu, "TLBI OS and range"),
    (ISAR0, 60, Cpu, "RNG"),
    (ISAR1, 0, Cpu, "DPB"),
    (ISAR1, 4, Cpu, "pointer authentication, QARMA5"),
    (ISAR1, 8, Cpu, "pointer authentication, IMPDEF"),
    (ISAR1, 12, Cpu, "JSCVT"),
    (ISAR1, 16, Cpu, "FCMA"),
    (ISAR1, 20, Cpu, "LRCPC"),
    (ISAR1, 24, Cpu, "generic authentication, QARMA5"),
    (ISAR1, 28, Cpu, "generic authentication, IMPDEF"),
    (ISAR1, 32, Cpu, "FRINTTS"),
    (ISAR1, 36, Cpu, "SB"),
    (ISAR1, 40, Cpu, "SPECRES"),
    (ISAR1, 44, Cpu, "BF16"),
    (ISAR1, 48, Cpu, "DGH"),
    (ISAR1, 52, Cpu, "I8MM"),
    (ISAR2, 4, Cpu, "RPRES"),
    (ISAR2, 8, Cpu, "generic authentication, QARMA3"),
    (ISAR2, 12, Cpu, "pointer authentication, QARMA3"),
    (ISAR2, 20, Cpu, "HBC"),
    (ISAR2, 24, Cpu, "PAC frac"),
    (ISAR2, 28, Cpu, "CLRBHB"),
    (ISAR2, 40, Cpu, "PRFMSLC"),
    (ISAR2, 48, Cpu, "RPRFM"),
    (ISAR2, 52, Cpu, "CSSC"),
    (MMFR0, 0, IpaRange, "PARange"),
    (MMFR0, 4, Cpu, "ASID bits"),
    (MMFR0, 8, Cpu, "mixed endian"),
    (MMFR0, 16, Cpu, "mixed endian at EL0"),
    (MMFR0, 20, Cpu, "16K granule"),
    (MMFR0, 24, Cpu, "64K granule"),
    (MMFR0, 28, Cpu, "4K granule"),
    (MMFR1, 0, Cpu, "HAFDBS"),
    (MMFR1, 12, Cpu, "HPDS"),
    (MMFR1, 20, Cpu, "PAN"),
    (MMFR1, 36, Cpu, "ETS"),
    (MMFR1, 44, Cpu, "AFP"),
    (MMFR1, 48, Cpu, "nTLBPA"),
    (MMFR1, 60, Cpu, "ECBHB"),
    (MMFR2, 0, Cpu, "CnP"),
    (MMFR2, 4, Cpu, "UAO"),
    (MMFR2, 8, Cpu, "LSMAOC"),
    (MMFR2, 16, Cpu, "LVA"),
    (MMFR2, 20, Cpu, "CCIDX"),
    (MMFR2, 28, Cpu, "TTST"),
    (MMFR2, 32, Cpu, "LSE2"),
    (MMFR2, 36, Cpu, "IDST"),
    (MMFR2, 48, Cpu, "TTL"),
    (MMFR2, 52, Cpu, "BBM"),
    (MMFR2, 60, Cpu, "E0PD"),
    (MMFR3, 60, Cpu, "Spec_FPACC"),
];

/// The AArch32 ID registers, CRm 1 to 3, are the CPU's, but for these fields.
const AARCH32_HIDDEN: &[(Sysreg, u64, &str)] = &[
    (
        sysreg(3, 0, 0, 1, 0),
        0xff00_0000,
        "ID_PFR0_EL1: RAS, AMU's neighbours",
    ),
    (
        sysreg(3, 0, 0, 1, 2),
        0x0fff_f0f0,
        "ID_DFR0_EL1: PMU and trace",
    ),
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
    if register.crm() <= 3 {
        let hidden = AARCH32_HIDDEN.iter().find(|row| row.0 == register);
        return cpu & !hidden.map_or(0, |row| row.1);
    }
    let rows = TABLE.iter().filter(|row| row.0 == register);
    rows.fold(0, |value, &(_, shift, show, _)| {
        let field = cpu >> shift & 0xf;
        let shown = match show {
            Cpu => field,
            AtMost(limit) => field.min(limit),
            Fixed(fixed) => fixed,
            IpaRange => field.min(pa_range(ipa_bits)),
        };
        value | shown << shift
    })
}

macro_rules! id_registers {
    ($($crm:literal $op2:literal $name:literal),* $(,)?) => {
        /// The CPU's own value of an ID register; 0 for one that is reserved.
        pub fn of_cpu(register: Sysreg) -> u64 {
            match (register.crm(), register.op2()) {
                $(($crm, $op2) => crate::mrs!($name),)*
                _ => 0,
            }
        }
    };
}

id_registers! {
    1 0 "S3_0_C0_C1_0", 1 1 "S3_0_C0_C1_1", 1 2 "S3_0_C0_C1_2", 1 3 "S3_0_C0_C1_3",
    1 4 "S3_0_C0_C1_4", 1 5 "S3_0_C0_C1_5", 1 6 "S3_0_C0_C1_6", 1 7 "S3_0_C0_C1_7",
    2 0 "S3_0_C0_C2_0", 2 1 "S3_0_C0_C2_1", 2 2 "S3_0_C0_C2_2", 2 3 "S3_0_C0_C2_3",
    2 4 "S3_0_C0_C2_4", 2 5 "S3_0_C0_C2_5", 2 6 "S3_0_C0_C2_6", 2 7 "S3_0_C0_C2_7",
    3 0 "S3_0_C0_C3_0", 3 1 "S3_0_C0_C3_1", 3 2 "S3_0_C0_C3_2", 3 4 "S3_0_C0_C3_4",
    3 5 "S3_0_C0_C3_5", 3 6 "S3_0_C0_C3_6",
    4 0 "S3_0_C0_C4_0", 4 1 "S3_0_C0_C4_1",
    5 0 "S3_0_C0_C5_0",
    6 0 "S3_0_C0_C6_0", 6 1 "S3_0_C0_C6_1", 6 2 "S3_0_C0_C6_2",
    7 0 "S3_0_C0_C7_0", 7 1 "S3_0_C0_C7_1", 7 2 "S3_0_C0_C7_2", 7 3 "S3_0_C0_C7_3",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_field_has_one_row() {
        for (n, a) in TABLE.iter().enumerate() {
            for b in &TABLE[n + 1..] {
                assert!((a.0, a.1) != (b.0, b.1), "{} and {}", a.3, b.3);
            }
            assert_eq!(a.1 % 4, 0, "{}", a.3);
        }
    }

    #[test]
    fn what_has_no_row_is_hidden() {
        assert_eq!(view(PFR0, u64::MAX, 48) >> 28 & 0xf_ffff, 0, "RAS to AMU");
        assert_eq!(view(PFR1, u64::MAX, 48), 0xff);
        assert_eq!(view(sysreg(3, 0, 0, 4, 4), u64::MAX, 48), 0, "SVE features");
        assert_eq!(view(sysreg(3, 0, 0, 7, 7), u64::MAX, 48), 0, "reserved");
    }

    #[test]
    fn the_guest_sees_as_many_address_bits_as_its_ipa_space_needs() {
        assert_eq!(view(MMFR0, 6, 32) & 0xf, 0);
        // 5 GiB of RAM from 1 GiB on: 33 bits, which no PARange names.
        assert_eq!(view(MMFR0, 6, 33) & 0xf, 1);
        assert_eq!(view(MMFR0, 6, 40) & 0xf, 2);
        assert_eq!(view(MMFR0, 2, 52) & 0xf, 2);
        assert_eq!(view(MMFR0, 6, 52) & 0xf, 6);
    }

    #[test]
    fn no_pmu_in_either_state() {
        assert_eq!(view(DFR0, u64::MAX, 48) >> 8 & 0xf, 0);
        assert_eq!(view(sysreg(3, 0, 0, 1, 2), u64::MAX, 48) >> 24 & 0xf, 0);
    }
}

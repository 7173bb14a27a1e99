//! What a guest sees of its CPU, in one table: feature → shown, hidden or
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

/// A row: register, lowest bit of a four-bit field, its name, what becomes of it.
type Row = (Sysreg, u32, &'static str, Show);

macro_rules! table {
    ($(#[$doc:meta])* $table:ident = $($register:ident: $($field:ident $show:expr),+;)+) => {
        $(#[$doc])*
        const $table: &[Row] = &[$($(
            ($register::ENCODING, $register::$field.shift as u32, stringify!($field), $show),
        )+)+];
    };
}

table! {
    /// Everything that a guest sees of AArch64 features. Hidden, because it has no
    /// row: SVE, SME, MTE, RAS, AMU, MPAM, PMU, SPE, trace, nested virtualisation,
    /// LOR, MOPS, WFxT, GCS, 128-bit registers, S1PIE/S1POE, ECV, FGT, RME.
    ///
    /// Not all that a field names: EL0 has AArch32 where the CPU has it; CSV2 is
    /// without SCXTNUM, Atomic without 128 bits, LRCPC to LRCPC2, CSSC without
    /// compare-and-branch, VARange without the 56 bits of 128-bit descriptors.
    /// HAFDBS is access flag and dirty state of leaves: tables' and the dirty log
    /// need TCR2_EL1. Debug is v8.0, with 2 breakpoints and 2 watchpoints, which
    /// read as zero.
    TABLE =
    ID_AA64PFR0_EL1: EL0 AtMost(2), EL1 Fixed(1), FP Signed(1), AdvSIMD Signed(1),
        GIC Fixed(1), DIT AtMost(1), CSV2 AtMost(1), CSV3 AtMost(1);
    ID_AA64PFR1_EL1: BT AtMost(1), SSBS AtMost(2);
    ID_AA64DFR0_EL1: DebugVer Fixed(6), BRPs Fixed(1), WRPs Fixed(1),
        DoubleLock Signed(0);
    ID_AA64ISAR0_EL1: AES AtMost(2), SHA1 AtMost(1), SHA2 AtMost(2), CRC32 AtMost(1),
        Atomic AtMost(2), RDM AtMost(1), SHA3 AtMost(1), SM3 AtMost(1), SM4 AtMost(1),
        DP AtMost(1), FHM AtMost(1), TS AtMost(2), TLB AtMost(2), RNDR AtMost(1);
    ID_AA64ISAR1_EL1: DPB AtMost(2), APA AtMost(5), API AtMost(5), JSCVT AtMost(1),
        FCMA AtMost(1), LRCPC AtMost(2), GPA AtMost(1), GPI AtMost(1), FRINTTS AtMost(1),
        SB AtMost(1), SPECRES AtMost(2), BF16 AtMost(2), DGH AtMost(1), I8MM AtMost(1);
    ID_AA64ISAR2_EL1: RPRES AtMost(1), GPA3 AtMost(1), APA3 AtMost(5), BC AtMost(1),
        PAC_frac AtMost(1), CLRBHB AtMost(1), PRFMSLC AtMost(1), RPRFM AtMost(1),
        CSSC AtMost(1);
    ID_AA64MMFR0_EL1: PARange IpaRange, ASIDBits AtMost(2), BigEnd AtMost(1),
        BigEndEL0 AtMost(1), TGran16 AtMost(2), TGran64 Signed(0), TGran4 Signed(1);
    ID_AA64MMFR1_EL1: HAFDBS AtMost(2), HPDS AtMost(2), PAN AtMost(3), ETS AtMost(3),
        AFP AtMost(1), nTLBPA AtMost(1), ECBHB AtMost(1);
    ID_AA64MMFR2_EL1: CnP AtMost(1), UAO AtMost(1), LSM AtMost(1), VARange AtMost(1),
        CCIDX AtMost(1), ST AtMost(1), AT AtMost(1), IDS AtMost(1), TTL AtMost(1),
        BBM AtMost(2), E0PD AtMost(1);
    ID_AA64MMFR3_EL1: Spec_FPACC AtMost(1);
}

table! {
    /// The AArch32 ID registers, CRm 1 to 3, are the CPU's, but for these fields:
    /// A32 gets no new features, and what has state there is AArch64's too, where it
    /// is hidden.
    AARCH32 =
    ID_PFR0_EL1: AMU Fixed(0), RAS Fixed(0);
    ID_DFR0_EL1: CopDbg AtMost(6), CopSDbg Fixed(0), CopTrc Fixed(0), MMapTrc Fixed(0),
        MProfDbg Fixed(0), PerfMon Fixed(0), TraceFilt Fixed(0);
    ID_PFR2_EL1: RAS_frac Fixed(0);
    ID_DFR1_EL1: MTPMU Fixed(0), HPMN0 Fixed(0);
}

/// The code of ID_AA64MMFR0_EL1.PARange for the narrowest range that holds an
/// IPA space of `bits`: a guest that sees less cannot reach all it has.
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
    rows.fold(without_row, |value, &(_, shift, _, show)| {
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
                    assert!((a.0, a.1) != (b.0, b.1), "{} and {}", a.2, b.2);
                }
                assert_eq!(a.1 % 4, 0, "{}", a.2);
            }
        }
    }

    /// The largest values that were looked at, field by field, from the registers'
    /// descriptions: what is above, or what a new row shows, is a new feature.
    #[test]
    fn a_cpu_of_the_future_shows_nothing_new() {
        for (register, newest) in [
            (ID_AA64PFR0_EL1::ENCODING, 0x1101_0000_0111_0012),
            (ID_AA64PFR1_EL1::ENCODING, 0x21),
            (ID_AA64DFR0_EL1::ENCODING, 0x10_1006),
            (ID_AA64ISAR0_EL1::ENCODING, 0x1221_1111_1021_2120),
            (ID_AA64ISAR1_EL1::ENCODING, 0x0011_2211_1121_1552),
            (ID_AA64ISAR2_EL1::ENCODING, 0x0011_0100_1110_5110),
            (ID_AA64MMFR0_EL1::ENCODING, 0x1021_0126),
            (ID_AA64MMFR1_EL1::ENCODING, 0x1001_1030_0030_2002),
            (ID_AA64MMFR2_EL1::ENCODING, 0x1021_0011_1011_0111),
            (ID_AA64MMFR3_EL1::ENCODING, 0x1000_0000_0000_0000),
        ] {
            // Signed fields are at most 7.
            let fields = TABLE.iter().filter(|row| row.0 == register);
            let most = fields.fold(0, |all, row| {
                let field = if matches!(row.3, Signed(_)) { 7 } else { 0xf };
                all | field << row.1
            });
            let shown = view(register, most, 52);
            assert_eq!(shown, newest, "{register}: {shown:#x}");
        }
        // Less than nothing stays.
        assert_eq!(
            view(ID_AA64PFR0_EL1::ENCODING, 0x00ff_0000, 48) >> 16 & 0xff,
            0xff,
            "no FP"
        );
        assert_eq!(
            view(ID_AA64MMFR0_EL1::ENCODING, 0xff << 24, 48) >> 24 & 0xff,
            0xff,
            "16K alone"
        );
    }

    #[test]
    fn what_has_no_row_is_hidden() {
        assert_eq!(
            view(ID_AA64PFR0_EL1::ENCODING, u64::MAX, 48) >> 28 & 0xf_ffff,
            0,
            "RAS to AMU"
        );
        assert_eq!(view(ID_AA64PFR1_EL1::ENCODING, u64::MAX, 48), 0x21);
        assert_eq!(view(sysreg(3, 0, 0, 4, 4), u64::MAX, 48), 0, "SVE features");
        assert_eq!(view(sysreg(3, 0, 0, 7, 7), u64::MAX, 48), 0, "reserved");
    }

    #[test]
    fn the_guest_sees_as_many_address_bits_as_its_ipa_space_needs() {
        assert_eq!(view(ID_AA64MMFR0_EL1::ENCODING, 6, 32) & 0xf, 0);
        // 5 GiB of RAM from 1 GiB on: 33 bits, which no PARange names.
        assert_eq!(view(ID_AA64MMFR0_EL1::ENCODING, 6, 33) & 0xf, 1);
        assert_eq!(view(ID_AA64MMFR0_EL1::ENCODING, 6, 40) & 0xf, 2);
        for (bits, range) in [
            (36, 1),
            (37, 2),
            (41, 3),
            (42, 3),
            (43, 4),
            (44, 4),
            (45, 5),
        ] {
            assert_eq!(
                view(ID_AA64MMFR0_EL1::ENCODING, 6, bits) & 0xf,
                range,
                "{bits}"
            );
        }
        assert_eq!(view(ID_AA64MMFR0_EL1::ENCODING, 6, 48) & 0xf, 5);
        assert_eq!(view(ID_AA64MMFR0_EL1::ENCODING, 6, 49) & 0xf, 6);
        assert_eq!(view(ID_AA64MMFR0_EL1::ENCODING, 2, 52) & 0xf, 2);
        assert_eq!(view(ID_AA64MMFR0_EL1::ENCODING, 6, 52) & 0xf, 6);
    }

    /// DIT has no state of its own; CSV2 and what A32 had at first stays.
    #[test]
    fn what_has_state_is_hidden_in_either_state() {
        assert_eq!(
            view(ID_AA64DFR0_EL1::ENCODING, u64::MAX, 48) >> 8 & 0xf,
            0,
            "PMU"
        );
        assert_eq!(
            view(ID_AA64PFR0_EL1::ENCODING, u64::MAX, 48) >> 28 & 0xf,
            0,
            "RAS"
        );
        for (register, all) in [
            (ID_PFR0_EL1::ENCODING, 0x0f0f_ffff),
            (ID_DFR0_EL1::ENCODING, 0x0000_0f06),
            (ID_PFR2_EL1::ENCODING, 0xffff_f0ff),
            (ID_DFR1_EL1::ENCODING, 0xffff_ff00),
        ] {
            let seen = view(register, 0xffff_ffff, 48);
            assert_eq!(seen, all, "{register}: {seen:#x}");
        }
        // Debug v8.0 as the AArch64 register says it, or less.
        assert_eq!(view(ID_DFR0_EL1::ENCODING, 5, 48), 5);
        assert_eq!(view(sysreg(3, 0, 0, 2, 5), 0x1234_5678, 48), 0x1234_5678);
    }
}

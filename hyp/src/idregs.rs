//! What a guest sees of its CPU, in one table: feature → shown, hidden or
//! fixed. A field that has no row is hidden: reads as 0.
//!
//! A feature is shown only where EL2 carries its state over a world switch, or
//! where it has none, and so each row has an upper bound: what a CPU of the
//! future adds to a field is hidden until somebody has looked. What is hidden is
//! trapped too, or has no state of its own: using it all the same harms the guest
//! alone. Fields: DDI0487, D24.2.

use core::array::from_fn;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use arm64::regs::*;
use arm64::sysreg::Sysreg;
use rmi::smccc::{Smccc, VERSION_1_2};
use spin::mutex::SpinMutex;

use crate::features::{PA_BITS, Unfit};
use crate::mask::masked;
use crate::speculation::{Defence, Speculation};

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
    /// LOR, GCS, 128-bit registers, S1PIE/S1POE, ECV, FGT, RME; and WFxT, whose trapped
    /// waits QEMU reports as WFI, without their time.
    ///
    /// Not all that a field names: EL0 has AArch32 where the CPU has it; CSV2 is
    /// without SCXTNUM, Atomic without 128 bits, LRCPC to LRCPC2, CSSC without
    /// compare-and-branch, VARange without the 56 bits of 128-bit descriptors.
    /// HAFDBS is access flag and dirty state of leaves: tables' and the dirty log
    /// need TCR2_EL1. Debug is v8.0, with 2 breakpoints and 2 watchpoints.
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
    ID_AA64ISAR2_EL1: RPRES AtMost(1), GPA3 AtMost(1), APA3 AtMost(5),
        MOPS AtMost(1), BC AtMost(1), PAC_frac AtMost(1), CLRBHB AtMost(1),
        PRFMSLC AtMost(1), RPRFM AtMost(1), CSSC AtMost(1);
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
fn pa_range(bits: u8) -> u64 {
    let narrower = PA_BITS.iter().filter(|range| **range < bits);
    narrower.count() as u64
}

/// Bits of address that a guest with `ipa_bits` of IPA space is told: the narrowest range
/// of PARange that holds it.
pub fn told_bits(ipa_bits: u8) -> u8 {
    PA_BITS[pa_range(ipa_bits) as usize]
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
    rows.fold(without_row, |value, row| {
        let shift = row.1;
        value & !(0xf << shift) | shown(row, cpu, ipa_bits) << shift
    })
}

/// A row's field as it is shown, of a CPU's register.
fn shown(&(_, shift, _, show): &Row, cpu: u64, ipa_bits: u8) -> u64 {
    let field = cpu >> shift & 0xf;
    match show {
        AtMost(limit) => field.min(limit),
        Signed(limit) if field < 8 => field.min(limit),
        Signed(_) => field,
        Fixed(fixed) => fixed,
        IpaRange => field.min(pa_range(ipa_bits)),
    }
}

/// What guests are told, who may run on any CPU: field by field the least of all
/// that have come. Once one has been told, no CPU comes that has less.
#[derive(Debug, Default)]
pub struct Common(SpinMutex<Option<Least>>);

#[derive(Clone, Copy, Debug)]
struct Least {
    /// Of each row of the table.
    fields: [u64; TABLE.len()],
    speculation: Speculation,
    told: bool,
}

impl Common {
    /// This CPU has come, and stands so to speculation. True when guests are told
    /// of another stand now.
    ///
    /// # Errors
    /// What it has less of than guests have been told: it is not taken in.
    pub fn add(&self, speculation: Speculation) -> Result<bool, Unfit> {
        let fields = from_fn(|n| shown(&TABLE[n], of_cpu(TABLE[n].0), 52));
        let mut all = self.0.lock();
        let Some(was) = *all else {
            *all = Some(Least {
                fields,
                speculation,
                told: false,
            });
            return Ok(true);
        };
        let least = |n: usize| match TABLE[n].3 {
            // From what has less than nothing, 8 to 0xf, up to 7.
            Signed(_) => (fields[n] ^ 8).min(was.fields[n] ^ 8) ^ 8,
            _ => fields[n].min(was.fields[n]),
        };
        let now = Least {
            fields: from_fn(least),
            speculation: was.speculation.least(speculation),
            told: was.told,
        };
        let stands = was.speculation == now.speculation;
        if was.told {
            let less = (0..TABLE.len()).find(|&n| now.fields[n] != was.fields[n]);
            if let Some(n) = less {
                return Err(Unfit::Told(TABLE[n].2));
            }
            if !stands {
                return Err(Unfit::Told("defence from speculation"));
            }
        }
        *all = Some(now);
        Ok(!stands)
    }

    /// What is the least now, and stays it.
    fn told<R>(&self, f: impl FnOnce(&Least) -> R) -> Option<R> {
        let mut all = self.0.lock();
        let least = all.as_mut()?;
        least.told = true;
        Some(f(least))
    }

    /// The value that a guest with `ipa_bits` of IPA space reads from an ID
    /// register.
    pub fn tell(&self, register: Sysreg, ipa_bits: u8) -> u64 {
        if register.crm() <= 3 {
            return view(register, of_cpu(register), ipa_bits);
        }
        let value = |least: &Least| {
            let rows = TABLE.iter().zip(least.fields);
            let rows = rows.filter(|(row, _)| row.0 == register);
            rows.fold(0, |value, (row, field)| value | field << row.1)
        };
        view(register, self.told(value).unwrap_or(0), ipa_bits)
    }

    /// X0 of the answer to a call of the convention's own. What a work-around does,
    /// EL2's vectors have done before it is heard of.
    pub fn answer(&self, call: Smccc) -> u64 {
        match call {
            Smccc::Version => VERSION_1_2,
            Smccc::ArchFeatures { function } => {
                let asked = Smccc::decode(function as u32, [0; 3]);
                asked.map_or(rmi::NOT_SUPPORTED, |asked| self.feature(asked))
            }
            other => match self.feature(other) {
                rmi::NOT_SUPPORTED => rmi::NOT_SUPPORTED,
                _ => 0,
            },
        }
    }

    /// What SMCCC_ARCH_FEATURES says: 0, there; 1, a work-around that is not needed.
    fn feature(&self, call: Smccc) -> u64 {
        let stand = |of: fn(&Speculation) -> Defence| self.told(|least| of(&least.speculation));
        let defence = match call {
            Smccc::ArchWorkaround1 => stand(|s| s.v2),
            Smccc::ArchWorkaround3 => stand(|s| s.bhb),
            Smccc::Version | Smccc::ArchFeatures { .. } => return 0,
        };
        match defence {
            Some(Defence::Steps) => 0,
            Some(Defence::Unaffected) => 1,
            Some(Defence::None) | None => rmi::NOT_SUPPORTED,
        }
    }
}

/// AArch64 ID registers, CRm 4 to 7.
const SHOWN: usize = 32;

/// The values of AArch64's ID registers that a realm has been told, which stay the
/// same on every CPU for good ([`Common::tell`]).
#[derive(Debug)]
pub struct Shown {
    /// By index, which have been told.
    told: AtomicU32,
    values: [AtomicU64; SHOWN],
}

impl Shown {
    /// None.
    pub const fn new() -> Self {
        Self {
            told: AtomicU32::new(0),
            values: [const { AtomicU64::new(0) }; SHOWN],
        }
    }

    #[inline(always)]
    fn index(register: Sysreg) -> Option<usize> {
        let at = |crm: u32, op2: u32| (crm as usize - 4) * 8 + op2 as usize;
        (register.is_id() && register.crm() >= 4).then(|| at(register.crm(), register.op2()))
    }

    /// What was told of a register.
    #[inline(always)]
    pub fn get(&self, register: Sysreg) -> Option<u64> {
        let index = Self::index(register)?;
        let told = self.told.load(Ordering::Acquire) >> index & 1 != 0;
        let value = arm64::instr::element(&self.values, index)?;
        told.then(|| value.load(Ordering::Relaxed))
    }

    /// This is told of it.
    pub fn tell(&self, register: Sysreg, value: u64) {
        if let Some(index) = Self::index(register) {
            self.values[index].store(value, Ordering::Relaxed);
            self.told.fetch_or(1 << index, Ordering::Release);
        }
    }
}

impl Default for Shown {
    fn default() -> Self {
        Self::new()
    }
}

macro_rules! id_registers {
    ($($name:ident)*) => {
        /// The CPU's own value of an ID register, less what is [masked];
        /// 0 for one that is reserved.
        ///
        /// [masked]: crate::mask::Mask
        pub fn of_cpu(register: Sysreg) -> u64 {
            let value = match register {
                $($name::ENCODING => $name.get(),)*
                _ => 0,
            };
            masked(register, value | history(register))
        }
    };
}

/// ID_AA64MMFR1_EL1.ECBHB of a CPU that has FEAT_CSV2_3: branches of one context, and
/// their history, steer none of another's, so none of a higher level's either. Lower
/// levels are shown no such CSV2, which has registers, and know of it by this field.
fn history(register: Sysreg) -> u64 {
    let has =
        register == ID_AA64MMFR1_EL1::ENCODING && ID_AA64PFR0_EL1.read(ID_AA64PFR0_EL1::CSV2) >= 3;
    ID_AA64MMFR1_EL1::ECBHB.val(has.into()).value
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
    extern crate std;
    use super::*;
    use crate::exception::host::synchronous;
    use crate::rmi::fake;
    use arm64::recording;
    use arm64::sysreg::sysreg;
    use pgtable::Granule;

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
            (ID_AA64ISAR2_EL1::ENCODING, 0x0011_0100_1111_5110),
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

    fn stands(v2: Defence, bhb: Defence) -> Speculation {
        Speculation {
            v2,
            bhb,
            steps: Default::default(),
        }
    }

    const SAFE: (Defence, Defence) = (Defence::Unaffected, Defence::Unaffected);

    /// CSV2, CSV3, FP, CLRBHB and ECBHB of a CPU, in their registers.
    fn a_cpu_has([csv2, csv3, fp, clrbhb, ecbhb]: [u64; 5]) {
        recording::set(ID_AA64PFR0_EL1, csv2 << 56 | csv3 << 60 | fp << 16);
        recording::set(ID_AA64ISAR2_EL1, clrbhb << 28);
        recording::set(ID_AA64MMFR1_EL1, ecbhb << 60);
    }

    #[test]
    fn a_guest_is_told_of_what_all_cpus_have() {
        recording::reset();
        let common = Common::default();
        let told = || {
            let field = |register, shift: u32| common.tell(register, 48) >> shift & 0xf;
            [
                field(ID_AA64PFR0_EL1::ENCODING, 56),
                field(ID_AA64PFR0_EL1::ENCODING, 60),
                field(ID_AA64PFR0_EL1::ENCODING, 16),
                field(ID_AA64ISAR2_EL1::ENCODING, 28),
                field(ID_AA64MMFR1_EL1::ENCODING, 60),
            ]
        };
        for cpu in [
            [3, 1, 1, 1, 1],
            [1, 1, 1, 0, 1],
            [1, 0, 0xf, 1, 1],
            [2, 1, 0, 1, 1],
        ] {
            a_cpu_has(cpu);
            assert!(common.add(stands(SAFE.0, SAFE.1)).is_ok());
        }
        assert_eq!(told(), [1, 0, 0xf, 0, 1]);
        // Whichever it reads them on.
        a_cpu_has([3, 1, 1, 1, 1]);
        assert_eq!(told(), [1, 0, 0xf, 0, 1]);
        assert_eq!(common.add(stands(SAFE.0, SAFE.1)), Ok(false));
        // Too late to have less.
        a_cpu_has([1, 0, 0xf, 0, 0]);
        let refused = common.add(stands(SAFE.0, SAFE.1));
        assert_eq!(refused, Err(Unfit::Told("ECBHB")));
        a_cpu_has([0, 0, 0xf, 0, 1]);
        assert_eq!(common.add(stands(SAFE.0, SAFE.1)), Err(Unfit::Told("CSV2")));
        assert_eq!(told(), [1, 0, 0xf, 0, 1], "as before");
    }

    #[test]
    fn who_is_shown_less_of_csv2_knows_of_branch_history_all_the_same() {
        recording::reset();
        for (csv2, ecbhb, told) in [(3, 0, 1), (2, 0, 0), (1, 1, 1), (0, 0, 0)] {
            a_cpu_has([csv2, 0, 0, 0, ecbhb]);
            let common = Common::default();
            assert!(common.add(stands(SAFE.0, SAFE.1)).is_ok());
            assert_eq!(common.tell(ID_AA64MMFR1_EL1::ENCODING, 48) >> 60, told);
            let host = view(
                ID_AA64MMFR1_EL1::ENCODING,
                of_cpu(ID_AA64MMFR1_EL1::ENCODING),
                48,
            );
            assert_eq!(host >> 60, told);
            // Of no other register's the same bits: RNDR, and what is reserved.
            for register in [ID_AA64ISAR0_EL1::ENCODING, ID_AA64MMFR2_EL1::ENCODING] {
                assert_eq!(of_cpu(register), 0, "CSV2 {csv2}");
            }
        }
    }

    /// The host is told by the trap of its MRS, a guest by [`Common`].
    #[test]
    fn what_is_masked_is_shown_to_nobody() {
        use crate::mask::tests::{LPA2, LVA, mask, under};
        const MMFR0: u64 = 3 << 20 | 7 << 1;
        const MMFR2: u64 = MMFR0 | 2 << 17;
        for (mask, mmfr0, mmfr2) in [
            (mask(false, false), 0x1020_0126, 0x1_0011),
            (mask(true, false), 0x0010_0125, 0x1_0011),
            (mask(false, true), 0x0010_0126, 0x11),
            (mask(true, true), 0x0010_0125, 0x11),
        ] {
            recording::reset();
            let mut host = fake::Host::new(Granule::K4, 1 << 20);
            recording::set(ID_AA64MMFR0_EL1, LPA2);
            recording::set(ID_AA64MMFR2_EL1, LVA);
            let common = Common::default();
            let [host, guest] = under(mask, || {
                assert_eq!(common.add(stands(SAFE.0, SAFE.1)), Ok(true));
                let host = [MMFR0, MMFR2].map(|register| {
                    // MRS X5.
                    recording::set(ESR_EL2, 0x18 << 26 | register | 5 << 5 | 1);
                    synchronous(host.system, &mut host.cpu);
                    host.cpu.host.gprs.x[5]
                });
                let asked = [ID_AA64MMFR0_EL1::ENCODING, ID_AA64MMFR2_EL1::ENCODING];
                [host, asked.map(|register| common.tell(register, 52))]
            });
            assert_eq!(host, [mmfr0, mmfr2], "{mask:?}: {host:#x?}");
            assert_eq!(guest, [mmfr0, mmfr2], "{mask:?}: {guest:#x?}");
        }
    }

    #[test]
    fn the_work_arounds_of_a_machine_are_told_as_its_worst_cpu_has_them() {
        use Defence::{None, Steps, Unaffected};
        const NO: u64 = rmi::NOT_SUPPORTED;
        let ask = |common: &Common, call: Smccc| {
            let function = u64::from(call.encode()[0] as u32);
            let features = common.answer(Smccc::ArchFeatures { function });
            (features, common.answer(call))
        };
        for (cpus, v2, bhb) in [
            ([(Unaffected, Unaffected); 2], (1, 0), (1, 0)),
            (
                [(Unaffected, Unaffected), (Unaffected, Steps)],
                (1, 0),
                (0, 0),
            ),
            ([(Steps, Steps), (Unaffected, Unaffected)], (0, 0), (0, 0)),
            ([(Steps, None), (Unaffected, Steps)], (0, 0), (NO, NO)),
            ([(Unaffected, Steps), (None, None)], (NO, NO), (NO, NO)),
        ] {
            let common = Common::default();
            for (v2, bhb) in cpus {
                assert!(common.add(stands(v2, bhb)).is_ok());
            }
            assert_eq!(ask(&common, Smccc::ArchWorkaround1), v2, "{cpus:?}");
            assert_eq!(ask(&common, Smccc::ArchWorkaround3), bhb, "{cpus:?}");
            assert_eq!(ask(&common, Smccc::Version), (0, VERSION_1_2));
            let unknown = Smccc::ArchFeatures {
                function: 0x8000_7fff,
            };
            assert_eq!(common.answer(unknown), NO);
        }
        let common = Common::default();
        assert!(common.add(stands(Unaffected, Unaffected)).is_ok());
        ask(&common, Smccc::ArchWorkaround3);
        assert!(
            common.add(stands(Unaffected, Steps)).is_err(),
            "it has been told"
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

//! What the CPU has, read once, typed, and printed.
//!
//! Fields: DDI0487, D24.2.

use core::fmt;

use crate::errors::errors;
use crate::mask::masked;
use arm64::bits;
use arm64::regs::*;
use pgtable::Granule;

/// How one stage translates with one granule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GranuleSupport {
    /// Not at all.
    #[default]
    No,
    /// Up to 48 bits (64K: 52 bits, if the CPU has FEAT_LPA).
    Yes,
    /// 52 bits: FEAT_LPA2.
    Lpa2,
}

errors! {
    /// What a CPU lacks that EL2 cannot do without.
    CpuError {
        NoE2h0: "this CPU has no EL2 without VHE (FEAT_E2H0): not supported yet",
        NoGicRegisters: "this CPU has no GICv3 system registers (QEMU: -M virt,gic-version=3)",
        No4k: "undercroft.granule=4k: this CPU has no 4K stage 2",
        No16k: "undercroft.granule=16k: this CPU has no 16K stage 2 (try --granule 4k or 64k)",
        No64k: "undercroft.granule=64k: this CPU has no 64K stage 2 (try --granule 4k)",
        NoStage2: "this CPU has no stage 2",
        NoStage1: "this CPU has no translation at EL2",
        NarrowStage2: "this CPU has no stage 2 as wide as its physical addresses",
        NarrowStage1: "this CPU cannot map its physical addresses at EL2 with this granule",
    }
}

/// What the CPU has.
#[derive(Clone, Copy, Debug, Default)]
pub struct Features {
    /// Physical address bits, ID_AA64MMFR0_EL1.PARange.
    pub pa_bits: u8,
    /// 4K, 16K and 64K at EL2's stage 1.
    pub stage1: [GranuleSupport; 3],
    /// 4K, 16K and 64K at stage 2.
    pub stage2: [GranuleSupport; 3],
    /// VMIDs of 16 bits, else 8.
    pub vmid16: bool,
    /// FEAT_TLBIRANGE.
    pub tlbi_range: bool,
    /// FEAT_TTL.
    pub ttl: bool,
    /// FEAT_S2FWB.
    pub fwb: bool,
    /// FEAT_XNX.
    pub xnx: bool,
    /// FEAT_HAFDBS: 1 access flag, 2 dirty state too.
    pub hafdbs: u8,
    /// FEAT_BBM level.
    pub bbm: u8,
    /// FEAT_TTST: small translation tables.
    pub ttst: bool,
    /// FEAT_LVA: 52-bit virtual addresses with 64K.
    pub lva: bool,
    /// CTR_EL0.DIC: instruction caches need no maintenance.
    pub dic: bool,
    /// CTR_EL0.IDC: data caches need none for instruction fetches.
    pub idc: bool,
    /// Pointer authentication in any form.
    pub pauth: bool,
    /// FEAT_SVE.
    pub sve: bool,
    /// FEAT_SME.
    pub sme: bool,
    /// FEAT_HCX: HCRX_EL2 is there.
    pub hcx: bool,
    /// FEAT_FGT level: 1 fine-grained traps, 2 with FEAT_FGT2.
    pub fgt: u8,
    /// FEAT_ECV level.
    pub ecv: u8,
    /// FEAT_RNG.
    pub rng: bool,
    /// HCR_EL2.E2H can be 0 (not so without FEAT_E2H0).
    pub e2h0: bool,
    /// The GIC's system registers.
    pub gic_sysregs: bool,
    /// FEAT_RAS: a guest's DISR_EL1 is VDISR_EL2.
    pub ras: bool,
    /// FEAT_MPAM: EL2 must let EL1 at its registers or trap them.
    pub mpam: bool,
    /// Smallest data cache line in bytes.
    pub dcache_line: u64,
    /// Smallest instruction cache line in bytes.
    pub icache_line: u64,
    /// Bytes that `dc zva` clears; 0 where it is not allowed.
    pub zero_block: u64,
    /// MIDR_EL1.
    pub midr: u64,
}

/// ID registers, as the CPU has them.
#[derive(Clone, Copy, Debug, Default)]
pub struct IdRegisters {
    /// ID_AA64MMFR0_EL1 to ID_AA64MMFR4_EL1; the fourth is not looked at.
    pub mmfr: [u64; 5],
    /// ID_AA64ISAR0_EL1 to ID_AA64ISAR2_EL1.
    pub isar: [u64; 3],
    /// ID_AA64PFR0_EL1 and ID_AA64PFR1_EL1.
    pub pfr: [u64; 2],
    /// CTR_EL0.
    pub ctr: u64,
    /// DCZID_EL0.
    pub dczid: u64,
    /// MIDR_EL1.
    pub midr: u64,
}

impl IdRegisters {
    /// Those of this CPU.
    pub fn read() -> Self {
        Self {
            mmfr: [
                masked(ID_AA64MMFR0_EL1::ENCODING, ID_AA64MMFR0_EL1.get()),
                ID_AA64MMFR1_EL1.get(),
                masked(ID_AA64MMFR2_EL1::ENCODING, ID_AA64MMFR2_EL1.get()),
                0,
                ID_AA64MMFR4_EL1.get(),
            ],
            isar: [
                ID_AA64ISAR0_EL1.get(),
                ID_AA64ISAR1_EL1.get(),
                ID_AA64ISAR2_EL1.get(),
            ],
            pfr: [ID_AA64PFR0_EL1.get(), ID_AA64PFR1_EL1.get()],
            ctr: CTR_EL0.get(),
            dczid: DCZID_EL0.get(),
            midr: MIDR_EL1.get(),
        }
    }
}

/// Bits of physical address by the codes of ID_AA64MMFR0_EL1.PARange.
pub const PA_BITS: [u8; 8] = [32, 36, 40, 42, 44, 48, 52, 56];

impl Features {
    /// Reads the ID registers of this CPU.
    pub fn read() -> Self {
        Self::of(&IdRegisters::read())
    }

    /// What these ID registers say.
    pub fn of(registers: &IdRegisters) -> Self {
        let [mmfr0, mmfr1, mmfr2, _, mmfr4] = registers.mmfr;
        let [isar0, isar1, isar2] = registers.isar;
        let [pfr0, pfr1] = registers.pfr;
        let (stage1, stage2) = granules(mmfr0);
        Self {
            pa_bits: PA_BITS
                .get(ID_AA64MMFR0_EL1::PARange.read(mmfr0) as usize)
                .copied()
                .unwrap_or(48)
                .min(52),
            stage1,
            stage2,
            vmid16: ID_AA64MMFR1_EL1::VMIDBits.read(mmfr1) == 2,
            tlbi_range: ID_AA64ISAR0_EL1::TLB.read(isar0) >= 2,
            ttl: ID_AA64MMFR2_EL1::TTL.read(mmfr2) >= 1,
            fwb: ID_AA64MMFR2_EL1::FWB.read(mmfr2) >= 1,
            xnx: ID_AA64MMFR1_EL1::XNX.read(mmfr1) >= 1,
            hafdbs: ID_AA64MMFR1_EL1::HAFDBS.read(mmfr1) as u8,
            bbm: ID_AA64MMFR2_EL1::BBM.read(mmfr2) as u8,
            ttst: ID_AA64MMFR2_EL1::ST.read(mmfr2) >= 1,
            lva: ID_AA64MMFR2_EL1::VARange.read(mmfr2) >= 1,
            dic: CTR_EL0::DIC.is_set(registers.ctr),
            idc: CTR_EL0::IDC.is_set(registers.ctr),
            pauth: isar1 & bits!(ID_AA64ISAR1_EL1: APA, API, GPA, GPI) != 0
                || isar2 & bits!(ID_AA64ISAR2_EL1: GPA3, APA3) != 0,
            sve: ID_AA64PFR0_EL1::SVE.read(pfr0) >= 1,
            sme: ID_AA64PFR1_EL1::SME.read(pfr1) >= 1,
            hcx: ID_AA64MMFR1_EL1::HCX.read(mmfr1) >= 1,
            fgt: ID_AA64MMFR0_EL1::FGT.read(mmfr0) as u8,
            ecv: ID_AA64MMFR0_EL1::ECV.read(mmfr0) as u8,
            rng: ID_AA64ISAR0_EL1::RNDR.read(isar0) >= 1,
            e2h0: ID_AA64MMFR4_EL1::E2H0.read(mmfr4) == 0,
            gic_sysregs: ID_AA64PFR0_EL1::GIC.read(pfr0) >= 1,
            ras: ID_AA64PFR0_EL1::RAS.read(pfr0) >= 1,
            mpam: ID_AA64PFR0_EL1::MPAM.read(pfr0) >= 1
                || ID_AA64PFR1_EL1::MPAM_frac.read(pfr1) >= 1,
            dcache_line: 4 << CTR_EL0::DminLine.read(registers.ctr),
            icache_line: 4 << CTR_EL0::IminLine.read(registers.ctr),
            zero_block: if DCZID_EL0::DZP.is_set(registers.dczid) {
                0
            } else {
                4 << DCZID_EL0::BS.read(registers.dczid)
            },
            midr: registers.midr,
        }
    }

    /// Whether EL2 can run on this CPU.
    ///
    /// # Errors
    /// What it lacks.
    pub fn check(&self) -> Result<(), CpuError> {
        if !self.e2h0 {
            return Err(CpuError::NoE2h0);
        }
        if !self.gic_sysregs {
            return Err(CpuError::NoGicRegisters);
        }
        Ok(())
    }

    /// Why a PE that has `self` cannot do all that `boot`, the features that the
    /// tables were built for, ask of it; `None` when it can.
    pub fn unfit_for(&self, boot: &Self) -> Option<Unfit> {
        let differs = SAME.iter().find(|(_, of)| of(self) != of(boot));
        let lacks = LEAST.iter().find(|(_, of)| of(self) < of(boot));
        let differs = differs.map(|(name, _)| Unfit::Differs(name));
        differs.or(lacks.map(|(name, _)| Unfit::Lacks(name)))
    }

    /// Stage 2 of this granule.
    pub fn stage2(&self, granule: Granule) -> GranuleSupport {
        self.stage2[index(granule)]
    }

    /// The widest IPA space with this granule, in bits.
    pub fn max_ipa_bits(&self, granule: Granule) -> u8 {
        self.max_bits(granule, self.stage2(granule))
    }

    /// The widest addresses of a stage that has this support of this granule.
    pub fn max_bits(&self, granule: Granule, support: GranuleSupport) -> u8 {
        if granule == Granule::K64 || support == GranuleSupport::Lpa2 {
            self.pa_bits
        } else {
            self.pa_bits.min(48)
        }
    }

    /// EL2's stage 1 with this granule.
    pub fn stage1(&self, granule: Granule) -> GranuleSupport {
        self.stage1[index(granule)]
    }
}

/// Why a CPU stays off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// What it has otherwise than the boot CPU.
    Differs(&'static str),
    /// What it has less of than the boot CPU.
    Lacks(&'static str),
    /// What it has less of than guests have been told.
    Told(&'static str),
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Differs(what) => write!(f, "its {what} is not as the boot CPU's"),
            Self::Lacks(what) => write!(f, "it lacks {what} that the boot CPU has"),
            Self::Told(what) => {
                write!(
                    f,
                    "it has less {what} than guests have been told of: start it first"
                )
            }
        }
    }
}

type Row = (&'static str, fn(&Features) -> u64);

/// What EL2 switches or opens on every PE or on none, what tables are made of, and
/// what a guest reads on one CPU and goes by on another.
const SAME: &[Row] = &[
    ("stage-1 granules", |f| granule_word(f.stage1)),
    ("stage-2 granules", |f| granule_word(f.stage2)),
    ("VMID size", |f| f.vmid16.into()),
    ("FEAT_S2FWB", |f| f.fwb.into()),
    ("FEAT_PAuth", |f| f.pauth.into()),
    ("FEAT_E2H0", |f| f.e2h0.into()),
    ("GIC system registers", |f| f.gic_sysregs.into()),
    ("data cache line", |f| f.dcache_line),
    ("instruction cache line", |f| f.icache_line),
    ("block of DC ZVA", |f| f.zero_block),
    ("CTR_EL0.DIC", |f| f.dic.into()),
    ("CTR_EL0.IDC", |f| f.idc.into()),
    ("FEAT_RAS", |f| f.ras.into()),
    ("FEAT_SVE", |f| f.sve.into()),
    ("FEAT_SME", |f| f.sme.into()),
    ("FEAT_HCX", |f| f.hcx.into()),
    ("FEAT_FGT", |f| f.fgt.into()),
    ("FEAT_MPAM", |f| f.mpam.into()),
];

/// What EL2 uses where the boot PE has it.
const LEAST: &[Row] = &[
    ("physical address bits", |f| f.pa_bits.into()),
    ("FEAT_TLBIRANGE", |f| f.tlbi_range.into()),
    ("FEAT_TTL", |f| f.ttl.into()),
    ("FEAT_XNX", |f| f.xnx.into()),
    ("FEAT_TTST", |f| f.ttst.into()),
    ("FEAT_LVA", |f| f.lva.into()),
    ("FEAT_RNG", |f| f.rng.into()),
    ("FEAT_ECV", |f| f.ecv.into()),
];

fn granule_word(granules: [GranuleSupport; 3]) -> u64 {
    granules
        .iter()
        .fold(0, |word, granule| word << 2 | *granule as u64)
}

fn index(granule: Granule) -> usize {
    match granule {
        Granule::K4 => 0,
        Granule::K16 => 1,
        Granule::K64 => 2,
    }
}

/// The granules of stage 1 and stage 2, from ID_AA64MMFR0_EL1: TGran4 \[31:28\],
/// TGran64 \[27:24\], TGran16 \[23:20\], and the stage-2 fields \[43:32\], where 0
/// means "as stage 1".
fn granules(mmfr0: u64) -> ([GranuleSupport; 3], [GranuleSupport; 3]) {
    use GranuleSupport::{Lpa2, No, Yes};
    let stage1 = [
        match ID_AA64MMFR0_EL1::TGran4.read(mmfr0) {
            0 => Yes,
            0xf => No,
            _ => Lpa2,
        },
        match ID_AA64MMFR0_EL1::TGran16.read(mmfr0) {
            0 => No,
            1 => Yes,
            _ => Lpa2,
        },
        if ID_AA64MMFR0_EL1::TGran64.read(mmfr0) == 0 {
            Yes
        } else {
            No
        },
    ];
    let mut stage2 = stage1;
    let fields = [
        ID_AA64MMFR0_EL1::TGran4_2,
        ID_AA64MMFR0_EL1::TGran16_2,
        ID_AA64MMFR0_EL1::TGran64_2,
    ];
    for (granule, field) in fields.into_iter().enumerate() {
        stage2[granule] = match field.read(mmfr0) {
            0 => stage1[granule],
            1 => No,
            2 => Yes,
            _ => Lpa2,
        };
    }
    (stage1, stage2)
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "midr={:#010x} pa={}", self.midr, self.pa_bits)?;
        for (name, support) in ["4k", "16k", "64k"].iter().zip(self.stage2) {
            match support {
                GranuleSupport::No => {}
                GranuleSupport::Yes => write!(f, " {name}")?,
                GranuleSupport::Lpa2 => write!(f, " {name}+lpa2")?,
            }
        }
        write!(f, " vmid={}", if self.vmid16 { 16 } else { 8 })?;
        for (name, there) in [
            ("tlbirange", self.tlbi_range),
            ("ttl", self.ttl),
            ("fwb", self.fwb),
            ("xnx", self.xnx),
            ("pauth", self.pauth),
            ("sve", self.sve),
            ("sme", self.sme),
            ("fgt", self.fgt > 0),
            ("ecv", self.ecv > 0),
        ] {
            if there {
                write!(f, " {name}")?;
            }
        }
        write!(f, " hafdbs={} bbm={}", self.hafdbs, self.bbm)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::GranuleSupport::{Lpa2, No, Yes};
    use super::*;

    #[test]
    fn a_pe_covers_what_it_has_all_of() {
        let boot = Features {
            pa_bits: 44,
            ..Features::default()
        };
        assert_eq!(boot.unfit_for(&boot), None);
        let more = Features {
            pa_bits: 48,
            tlbi_range: true,
            ..boot
        };
        assert_eq!(more.unfit_for(&boot), None);
        let lacks = Some(Unfit::Lacks("physical address bits"));
        assert_eq!(boot.unfit_for(&more), lacks);
        let with = Features { fwb: true, ..boot };
        let differs = Some(Unfit::Differs("FEAT_S2FWB"));
        assert_eq!(with.unfit_for(&boot), differs, "another encoding");
        // By degrees, and each granule for itself.
        type Change = fn(&mut Features, u8);
        let degrees: [Change; 8] = [
            |f, n| f.fgt = n,
            |f, n| f.ecv = n,
            |f, n| f.stage1[0] = [No, Yes, Lpa2][usize::from(n)],
            |f, n| f.stage1[1] = [No, Yes, Lpa2][usize::from(n)],
            |f, n| f.stage1[2] = [No, Yes, Lpa2][usize::from(n)],
            |f, n| f.stage2[0] = [No, Yes, Lpa2][usize::from(n)],
            |f, n| f.stage2[1] = [Lpa2, No, Yes][usize::from(n)],
            |f, n| f.stage2[2] = [Yes, Lpa2, No][usize::from(n)],
        ];
        let is_least = 1;
        for (n, change) in degrees.into_iter().enumerate() {
            for (a, b) in [(0, 1), (0, 2), (1, 2), (1, 0), (2, 0), (2, 1)] {
                let (mut one, mut other) = (boot, boot);
                change(&mut one, a);
                change(&mut other, b);
                let fit = one.unfit_for(&other).is_none();
                assert_eq!(fit, n == is_least && a > b, "{n}: {a} for {b}");
            }
        }
        // What one granule has is not another's.
        let of = |stage1| Features { stage1, ..boot };
        for (one, other) in [
            ([No, Lpa2, No], [Yes, No, No]),
            ([Yes, No, No], [No, Lpa2, Yes]),
            ([No, Yes, No], [No, No, Lpa2]),
        ] {
            assert!(of(one).unfit_for(&of(other)).is_some());
        }
        // What EL2 switches or opens on every PE, or on none: neither more nor less.
        let with: [fn(&mut Features); 15] = [
            |f| f.stage1[0] = Yes,
            |f| f.stage2[2] = Lpa2,
            |f| f.vmid16 = true,
            |f| f.pauth = true,
            |f| f.dcache_line = 64,
            |f| f.icache_line = 64,
            |f| f.zero_block = 64,
            |f| f.ras = true,
            |f| f.sve = true,
            |f| f.sme = true,
            |f| f.hcx = true,
            |f| f.fgt = 1,
            |f| f.mpam = true,
            |f| f.dic = true,
            |f| f.idc = true,
        ];
        // What it uses where the boot CPU has it.
        let least: [fn(&mut Features); 7] = [
            |f| f.tlbi_range = true,
            |f| f.ttl = true,
            |f| f.xnx = true,
            |f| f.ttst = true,
            |f| f.lva = true,
            |f| f.rng = true,
            |f| f.ecv = 1,
        ];
        for (n, change) in with.iter().chain(&least).enumerate() {
            let mut other = boot;
            change(&mut other);
            assert!(boot.unfit_for(&other).is_some(), "{other:?}");
            let fit = other.unfit_for(&boot).is_none();
            assert_eq!(fit, n >= with.len(), "{other:?}");
        }
    }

    /// ID_AA64MMFR4_EL1.E2H0 is signed: what is less than 0 lacks some of it.
    #[test]
    fn a_cpu_without_e2h0_is_refused() {
        let with = |e2h0: u64, gic: u64| {
            Features::of(&IdRegisters {
                mmfr: [0, 0, 0, 0, e2h0 << 24],
                pfr: [gic << 24, 0],
                ..IdRegisters::default()
            })
            .check()
        };
        assert_eq!(with(0, 1), Ok(()));
        for lacking in [0xe, 0xf] {
            assert_eq!(with(lacking, 1), Err(CpuError::NoE2h0));
        }
        assert_eq!(with(0, 0), Err(CpuError::NoGicRegisters));
    }

    #[test]
    fn granules_of_known_cpus() {
        // Cortex-A72: 4K and 64K; stage 2 as stage 1.
        assert_eq!(granules(0x0000_1124), ([Yes, No, Yes], [Yes, No, Yes]));
        // Neoverse N2: 16K too, stage-2 fields 2.
        assert_eq!(
            granules(0x222_0010_1125),
            ([Yes, Yes, Yes], [Yes, Yes, Yes])
        );
        // All with LPA2, as QEMU's max: TGran4=1, TGran16=2, stage 2: 3, 3, 2.
        assert_eq!(
            granules(0x323_1020_0006),
            ([Lpa2, Lpa2, Yes], [Lpa2, Lpa2, Yes])
        );
    }

    /// One field of one register, and all that it says.
    #[test]
    fn every_feature_is_read_from_its_own_field() {
        type Case = (fn(&mut IdRegisters), fn(&mut Features));
        let none = Features::of(&IdRegisters::default());
        let cases: [Case; 38] = [
            (|r| r.mmfr[0] = 5, |f| f.pa_bits = 48),
            (|r| r.mmfr[0] = 7, |f| f.pa_bits = 52),
            (|r| r.mmfr[0] = 0xf, |f| f.pa_bits = 48),
            (|r| r.mmfr[0] = 1 << 56, |f| f.fgt = 1),
            (|r| r.mmfr[0] = 2 << 60, |f| f.ecv = 2),
            (|r| r.mmfr[1] = 2, |f| f.hafdbs = 2),
            (|r| r.mmfr[1] = 2 << 4, |f| f.vmid16 = true),
            (|r| r.mmfr[1] = 1 << 28, |f| f.xnx = true),
            (|r| r.mmfr[1] = 1 << 36, |_| {}),
            (|r| r.mmfr[1] = 1 << 40, |f| f.hcx = true),
            (|r| r.mmfr[2] = 1 << 16, |f| f.lva = true),
            (|r| r.mmfr[2] = 1 << 28, |f| f.ttst = true),
            (|r| r.mmfr[2] = 1 << 40, |f| f.fwb = true),
            (|r| r.mmfr[2] = 1 << 48, |f| f.ttl = true),
            (|r| r.mmfr[2] = 2 << 52, |f| f.bbm = 2),
            (|r| r.mmfr[4] = 0xe << 24, |f| f.e2h0 = false),
            (|r| r.isar[0] = 1 << 56, |_| {}),
            (|r| r.isar[0] = 2 << 56, |f| f.tlbi_range = true),
            (|r| r.isar[0] = 1 << 60, |f| f.rng = true),
            (|r| r.isar[1] = 1 << 4, |f| f.pauth = true),
            (|r| r.isar[1] = 1 << 8, |f| f.pauth = true),
            (|r| r.isar[1] = 1 << 24, |f| f.pauth = true),
            (|r| r.isar[1] = 1 << 28, |f| f.pauth = true),
            (|r| r.isar[2] = 1 << 8, |f| f.pauth = true),
            (|r| r.isar[2] = 1 << 12, |f| f.pauth = true),
            (|r| r.pfr[0] = 1 << 24, |f| f.gic_sysregs = true),
            (|r| r.pfr[0] = 1 << 28, |f| f.ras = true),
            (|r| r.pfr[0] = 1 << 32, |f| f.sve = true),
            (|r| r.pfr[0] = 1 << 40, |f| f.mpam = true),
            (|r| r.pfr[1] = 1 << 16, |f| f.mpam = true),
            (|r| r.pfr[1] = 1 << 24, |f| f.sme = true),
            (|r| r.ctr = 4 << 16, |f| f.dcache_line = 64),
            (|r| r.ctr = 4, |f| f.icache_line = 64),
            (|r| r.dczid = 4, |f| f.zero_block = 64),
            (|r| r.dczid = 1 << 4 | 4, |f| f.zero_block = 0),
            (|r| r.ctr = 1 << 28, |f| f.idc = true),
            (|r| r.ctr = 1 << 29, |f| f.dic = true),
            (|r| r.midr = 0x410f_d0c0, |f| f.midr = 0x410f_d0c0),
        ];
        for (n, (set, say)) in cases.into_iter().enumerate() {
            let (mut registers, mut right) = (IdRegisters::default(), none);
            set(&mut registers);
            say(&mut right);
            let read = Features::of(&registers);
            assert_eq!(std::format!("{read:?}"), std::format!("{right:?}"), "{n}");
        }
    }
}

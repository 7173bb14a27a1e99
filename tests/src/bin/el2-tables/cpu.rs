//! What the CPU has, as its ID registers tell it.

use arm64::regs::{
    CTR_EL0, ID_AA64ISAR0_EL1, ID_AA64MMFR0_EL1, ID_AA64MMFR1_EL1, ID_AA64MMFR2_EL1,
};
use pgtable::{Features, Granule};

/// What the CPU has.
#[derive(Debug)]
pub struct Cpu {
    /// Physical address bits.
    pub pa_bits: u8,
    /// Features of tables, with all that hardware updates by itself left out:
    /// access flag faults are what is to be seen.
    pub features: Features,
    /// `ID_AA64MMFR1_EL1.HAFDBS`: 1 access flag, 2 dirty state too.
    pub hafdbs: u8,
    /// `ID_AA64MMFR2_EL1.BBM`: the level of break-before-make.
    pub bbm: u8,
    /// Stage-2 granules 4K, 16K, 64K: 0 none, 1 there, 2 with LPA2.
    pub stage2: [u8; 3],
    /// The same for stage 1.
    pub stage1: [u8; 3],
    /// FEAT_LVA: 52 bits of VA with 64K.
    pub lva: bool,
}

impl Cpu {
    /// Reads the ID registers.
    pub fn read() -> Self {
        let field = |register: u64, shift: u32| (register >> shift & 0xf) as u8;
        let mmfr0 = ID_AA64MMFR0_EL1.get();
        let mmfr1 = ID_AA64MMFR1_EL1.get();
        let mmfr2 = ID_AA64MMFR2_EL1.get();
        let isar0 = ID_AA64ISAR0_EL1.get();
        // TGran4 and TGran64: 0 there, 15 none. TGran16: 0 none, 1 there.
        let stage1 = [
            match field(mmfr0, 28) {
                0 => 1,
                1 => 2,
                _ => 0,
            },
            match field(mmfr0, 20) {
                1 => 1,
                2 => 2,
                _ => 0,
            },
            u8::from(field(mmfr0, 24) == 0),
        ];
        // TGran_2: 0 as stage 1, 1 none, 2 there, 3 with LPA2.
        let stage2 = |shift: u32, stage1: u8| match field(mmfr0, shift) {
            0 => stage1,
            2 => 1,
            3 => 2,
            _ => 0,
        };
        Self {
            pa_bits: [32, 36, 40, 42, 44, 48, 52]
                .get(usize::from(field(mmfr0, 0)))
                .copied()
                .unwrap_or(48),
            features: Features {
                tlb_range: field(isar0, 56) >= 2,
                ttl: field(mmfr2, 48) >= 1,
                fwb: field(mmfr2, 40) >= 1,
                xnx: field(mmfr1, 28) >= 1,
                vmid16: field(mmfr1, 4) == 2,
                hw_access_flag: false,
                hw_dirty: false,
                ttst: field(mmfr2, 28) >= 1,
                cnp: false,
                dic: CTR_EL0.get() >> 29 & 1 != 0,
                bbm2: false,
            },
            hafdbs: field(mmfr1, 0),
            bbm: field(mmfr2, 52),
            stage2: [
                stage2(40, stage1[0]),
                stage2(32, stage1[1]),
                stage2(36, stage1[2]),
            ],
            stage1,
            lva: field(mmfr2, 16) >= 1,
        }
    }

    /// Whether stage 2 has this granule, with LPA2's descriptors.
    pub fn has(&self, granule: Granule, lpa2: bool) -> bool {
        self.stage2[index(granule)] > u8::from(lpa2)
    }

    /// Whether stage 1 has this granule, with LPA2's descriptors.
    pub fn has_stage1(&self, granule: Granule, lpa2: bool) -> bool {
        self.stage1[index(granule)] > u8::from(lpa2)
    }
}

/// 0 for 4K, 1 for 16K, 2 for 64K.
pub const fn index(granule: Granule) -> usize {
    match granule {
        Granule::K4 => 0,
        Granule::K16 => 1,
        Granule::K64 => 2,
    }
}

/// A granule's name.
pub const fn name(granule: Granule) -> &'static str {
    ["4k", "16k", "64k"][index(granule)]
}

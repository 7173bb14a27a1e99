//! What the modelled CPU implements: the identification registers, as facts.

/// Errata of machines, which make the model harsher than the architecture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Errata {
    /// Range invalidations compute their length in 32 bits, so that a length
    /// of a multiple of 4 GiB leaves entries behind (an emulator's defect).
    pub range_len_32: bool,
    /// A completed invalidation counts only after one more broadcast stage-1
    /// invalidation and its DSB (the repeat-TLBI family, CVE-2025-10263).
    pub repeat_tlbi: bool,
}

/// The features of every PE of a [`Machine`](crate::Machine).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// Physical address bits, 32 to 52 (ID_AA64MMFR0_EL1.PARange).
    pub pa_bits: u8,
    /// Granules implemented at both stages: 4K, 16K, 64K.
    pub granules: [bool; 3],
    /// FEAT_LPA2: TCR_ELx.DS and VTCR_EL2.DS take effect for 4K and 16K.
    pub lpa2: bool,
    /// FEAT_LVA: 52-bit virtual addresses with the 64K granule.
    pub lva: bool,
    /// FEAT_TTST: small translation tables (larger T0SZ, 4K start level 3).
    pub ttst: bool,
    /// FEAT_TTL: level hints in TLBI operands.
    pub ttl: bool,
    /// FEAT_TLBIRANGE: range invalidation.
    pub tlbirange: bool,
    /// FEAT_XNX: the four-way stage-2 execute-never field.
    pub xnx: bool,
    /// FEAT_S2FWB: HCR_EL2.FWB takes effect.
    pub fwb: bool,
    /// FEAT_BBM level: 0, 1 or 2.
    pub bbm: u8,
    /// FEAT_VMID16: VTCR_EL2.VS takes effect.
    pub vmid16: bool,
    /// FEAT_HAFDBS: 0 none, 1 access flag, 2 access flag and dirty state.
    pub hafdbs: u8,
    /// CTR_EL0.DIC: no instruction cache maintenance is needed.
    pub dic: bool,
    /// Errata in force.
    pub errata: Errata,
}

impl Features {
    /// Everything the model knows, 52 bits with every granule.
    pub const fn max() -> Self {
        Self {
            pa_bits: 52,
            granules: [true; 3],
            lpa2: true,
            lva: true,
            ttst: true,
            ttl: true,
            tlbirange: true,
            xnx: true,
            fwb: true,
            bbm: 2,
            vmid16: true,
            hafdbs: 2,
            dic: true,
            errata: Errata {
                range_len_32: false,
                repeat_tlbi: false,
            },
        }
    }

    /// An Armv8.0 part with 40 physical address bits: no optional feature.
    pub const fn v8_0() -> Self {
        Self {
            pa_bits: 40,
            granules: [true; 3],
            lpa2: false,
            lva: false,
            ttst: false,
            ttl: false,
            tlbirange: false,
            xnx: false,
            fwb: false,
            bbm: 0,
            vmid16: false,
            hafdbs: 0,
            dic: false,
            errata: Errata {
                range_len_32: false,
                repeat_tlbi: false,
            },
        }
    }
}

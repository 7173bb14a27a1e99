//! Fields of registers that `aarch64-cpu` lacks, or has in part (DDI0487, D24.2;
//! IHI0069H, chapter 12).
#![allow(missing_docs, non_snake_case)] // the names are the manual's

use tock_registers::register_bitfields;

register_bitfields! {u64,
    pub ID_AA64PFR0_EL1 [
        EL0 OFFSET(0) NUMBITS(4) [],
        EL1 OFFSET(4) NUMBITS(4) [],
        EL2 OFFSET(8) NUMBITS(4) [],
        FP OFFSET(16) NUMBITS(4) [],
        AdvSIMD OFFSET(20) NUMBITS(4) [],
        GIC OFFSET(24) NUMBITS(4) [],
        RAS OFFSET(28) NUMBITS(4) [],
        SVE OFFSET(32) NUMBITS(4) [],
        MPAM OFFSET(40) NUMBITS(4) [],
        AMU OFFSET(44) NUMBITS(4) [],
        CSV2 OFFSET(56) NUMBITS(4) []
    ],
    pub ID_AA64PFR1_EL1 [
        MTE OFFSET(8) NUMBITS(4) [],
        MPAM_frac OFFSET(16) NUMBITS(4) [],
        SME OFFSET(24) NUMBITS(4) [],
        GCS OFFSET(44) NUMBITS(4) []
    ],
    pub ID_AA64DFR0_EL1 [
        PMUVer OFFSET(8) NUMBITS(4) [],
        TraceFilt OFFSET(40) NUMBITS(4) []
    ],
    pub ID_AA64ISAR0_EL1 [
        Atomic OFFSET(20) NUMBITS(4) [],
        TLB OFFSET(56) NUMBITS(4) [
            /// Range maintenance: FEAT_TLBIRANGE.
            Range = 2
        ],
        RNDR OFFSET(60) NUMBITS(4) []
    ],
    pub ID_AA64ISAR1_EL1 [
        APA OFFSET(4) NUMBITS(4) [],
        API OFFSET(8) NUMBITS(4) [],
        LRCPC OFFSET(20) NUMBITS(4) [],
        GPA OFFSET(24) NUMBITS(4) [],
        GPI OFFSET(28) NUMBITS(4) []
    ],
    pub ID_AA64ISAR2_EL1 [
        GPA3 OFFSET(8) NUMBITS(4) [],
        APA3 OFFSET(12) NUMBITS(4) []
    ],
    pub ID_AA64MMFR0_EL1 [
        PARange OFFSET(0) NUMBITS(4) [],
        ASIDBits OFFSET(4) NUMBITS(4) [],
        BigEnd OFFSET(8) NUMBITS(4) [],
        TGran16 OFFSET(20) NUMBITS(4) [],
        TGran64 OFFSET(24) NUMBITS(4) [],
        TGran4 OFFSET(28) NUMBITS(4) [],
        TGran16_2 OFFSET(32) NUMBITS(4) [],
        TGran64_2 OFFSET(36) NUMBITS(4) [],
        TGran4_2 OFFSET(40) NUMBITS(4) [],
        FGT OFFSET(56) NUMBITS(4) [],
        ECV OFFSET(60) NUMBITS(4) []
    ],
    pub ID_AA64MMFR1_EL1 [
        HAFDBS OFFSET(0) NUMBITS(4) [],
        VMIDBits OFFSET(4) NUMBITS(4) [
            Bits16 = 2
        ],
        XNX OFFSET(28) NUMBITS(4) [],
        HCX OFFSET(40) NUMBITS(4) []
    ],
    pub ID_AA64MMFR3_EL1 [
        TCRX OFFSET(0) NUMBITS(4) [],
        SCTLRX OFFSET(4) NUMBITS(4) []
    ],
    pub ID_AA64MMFR4_EL1 [
        /// Signed: below 0, HCR_EL2.E2H cannot be 0.
        E2H0 OFFSET(24) NUMBITS(4) []
    ],
    pub CTR_EL0 [
        /// log2 of the words of the smallest data cache line.
        DminLine OFFSET(16) NUMBITS(4) [],
        DIC OFFSET(29) NUMBITS(1) []
    ],
    pub DCZID_EL0 [
        /// log2 of a block's words.
        BS OFFSET(0) NUMBITS(4) [],
        DZP OFFSET(4) NUMBITS(1) []
    ],
    pub SCTLR_EL1 [
        M OFFSET(0) NUMBITS(1) [],
        A OFFSET(1) NUMBITS(1) [],
        C OFFSET(2) NUMBITS(1) [],
        SA OFFSET(3) NUMBITS(1) [],
        I OFFSET(12) NUMBITS(1) [],
        WXN OFFSET(19) NUMBITS(1) [],
        SPAN OFFSET(23) NUMBITS(1) [],
        E0E OFFSET(24) NUMBITS(1) [],
        EE OFFSET(25) NUMBITS(1) [],
        DSSBS OFFSET(44) NUMBITS(1) []
    ],
    pub CPTR_EL2 [
        /// Bits 7 to 0, which read as ones.
        RES1_0 OFFSET(0) NUMBITS(8) [],
        TZ OFFSET(8) NUMBITS(1) [],
        RES1_9 OFFSET(9) NUMBITS(1) [],
        TFP OFFSET(10) NUMBITS(1) [],
        TSM OFFSET(12) NUMBITS(1) [],
        RES1_13 OFFSET(13) NUMBITS(1) [],
        TTA OFFSET(20) NUMBITS(1) [],
        TAM OFFSET(30) NUMBITS(1) [],
        TCPAC OFFSET(31) NUMBITS(1) []
    ],
    pub TCR_EL2 [
        T0SZ OFFSET(0) NUMBITS(6) [],
        IRGN0 OFFSET(8) NUMBITS(2) [],
        ORGN0 OFFSET(10) NUMBITS(2) [],
        SH0 OFFSET(12) NUMBITS(2) [],
        TG0 OFFSET(14) NUMBITS(2) [],
        PS OFFSET(16) NUMBITS(3) [],
        TBI OFFSET(20) NUMBITS(1) [],
        HA OFFSET(21) NUMBITS(1) [],
        HD OFFSET(22) NUMBITS(1) [],
        HPD OFFSET(24) NUMBITS(1) [],
        /// 52-bit addresses in 4K and 16K tables: FEAT_LPA2.
        DS OFFSET(32) NUMBITS(1) []
    ],
    pub VTCR_EL2 [
        T0SZ OFFSET(0) NUMBITS(6) [],
        SL0 OFFSET(6) NUMBITS(2) [],
        IRGN0 OFFSET(8) NUMBITS(2) [],
        ORGN0 OFFSET(10) NUMBITS(2) [],
        SH0 OFFSET(12) NUMBITS(2) [],
        TG0 OFFSET(14) NUMBITS(2) [],
        PS OFFSET(16) NUMBITS(3) [],
        VS OFFSET(19) NUMBITS(1) [],
        HA OFFSET(21) NUMBITS(1) [],
        HD OFFSET(22) NUMBITS(1) [],
        RES1 OFFSET(31) NUMBITS(1) [],
        /// 52-bit addresses in 4K and 16K tables: FEAT_LPA2.
        DS OFFSET(32) NUMBITS(1) [],
        /// With SL0, where walks of 52 bits start: FEAT_LPA2.
        SL2 OFFSET(33) NUMBITS(1) []
    ],
    pub MPAM2_EL2 [
        TRAPMPAM1EL1 OFFSET(48) NUMBITS(1) [],
        TRAPMPAM0EL1 OFFSET(49) NUMBITS(1) []
    ],
    pub CNTHCTL_EL2 [
        EL1PCTEN OFFSET(0) NUMBITS(1) [],
        EL1PCEN OFFSET(1) NUMBITS(1) []
    ],
    pub OSLSR_EL1 [
        OSLK OFFSET(1) NUMBITS(1) [],
        /// The OS lock is there.
        OSLM_1 OFFSET(3) NUMBITS(1) []
    ],
    pub ICC_IAR1_EL1 [
        INTID OFFSET(0) NUMBITS(24) []
    ],
    pub ICC_HPPIR1_EL1 [
        INTID OFFSET(0) NUMBITS(24) []
    ],
    pub ICC_CTLR_EL1 [
        CBPR OFFSET(0) NUMBITS(1) [],
        /// EOI drops the priority and no more.
        EOImode OFFSET(1) NUMBITS(1) []
    ],
    pub ICC_SRE_EL1 [
        SRE OFFSET(0) NUMBITS(1) [],
        DFB OFFSET(1) NUMBITS(1) [],
        DIB OFFSET(2) NUMBITS(1) []
    ],
    pub ICC_IGRPEN1_EL1 [
        Enable OFFSET(0) NUMBITS(1) []
    ],
    pub ICC_SGI1R_EL1 [
        TargetList OFFSET(0) NUMBITS(16) [],
        Aff1 OFFSET(16) NUMBITS(8) [],
        INTID OFFSET(24) NUMBITS(4) [],
        Aff2 OFFSET(32) NUMBITS(8) [],
        IRM OFFSET(40) NUMBITS(1) [],
        RS OFFSET(44) NUMBITS(4) [],
        Aff3 OFFSET(48) NUMBITS(8) []
    ],
    pub ICH_MISR_EL2 [
        EOI OFFSET(0) NUMBITS(1) [],
        U OFFSET(1) NUMBITS(1) []
    ],
    pub ICH_VMCR_EL2 [
        VENG0 OFFSET(0) NUMBITS(1) [],
        VENG1 OFFSET(1) NUMBITS(1) [],
        VCBPR OFFSET(4) NUMBITS(1) [],
        VEOIM OFFSET(9) NUMBITS(1) [],
        VBPR1 OFFSET(18) NUMBITS(3) [],
        VBPR0 OFFSET(21) NUMBITS(3) [],
        VPMR OFFSET(24) NUMBITS(8) []
    ]
}

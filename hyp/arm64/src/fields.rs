//! Fields of registers that `aarch64-cpu` lacks, or has in part: those that
//! somebody uses, and all of TCR_EL2 and VTCR_EL2 (DDI0487, D24.2; IHI0069H,
//! chapter 12).
#![allow(missing_docs, non_snake_case, non_upper_case_globals)] // the manual's names

/// Registers with their fields: name, lowest bit, bits.
macro_rules! fields {
    ($($register:ident: $($field:ident $offset:literal $bits:literal),+;)+) => {
        tock_registers::register_bitfields! {u64,
            $(pub $register [$($field OFFSET($offset) NUMBITS($bits) []),+]),+
        }
    };
}

// E2H0 is signed: below 0, HCR_EL2.E2H cannot be 0. DminLine and BS are log2 of
// words. DS and SL2 are FEAT_LPA2's: 52 bits of address, and where its walks start.
fields! {
    ID_AA64PFR0_EL1: EL0 0 4, EL1 4 4, EL3 12 4, FP 16 4, AdvSIMD 20 4, GIC 24 4, RAS 28 4, SVE 32 4,
        MPAM 40 4, DIT 48 4, CSV2 56 4, CSV3 60 4;
    ID_AA64PFR1_EL1: BT 0 4, SSBS 4 4, MPAM_frac 16 4, SME 24 4;
    ID_AA64ISAR0_EL1: AES 4 4, SHA1 8 4, SHA2 12 4, CRC32 16 4, Atomic 20 4, RDM 28 4,
        SHA3 32 4, SM3 36 4, SM4 40 4, DP 44 4, FHM 48 4, TS 52 4, TLB 56 4, RNDR 60 4;
    ID_AA64ISAR1_EL1: DPB 0 4, APA 4 4, API 8 4, JSCVT 12 4, FCMA 16 4, LRCPC 20 4,
        GPA 24 4, GPI 28 4, FRINTTS 32 4, SB 36 4, SPECRES 40 4, BF16 44 4, DGH 48 4,
        I8MM 52 4;
    ID_AA64ISAR2_EL1: RPRES 4 4, GPA3 8 4, APA3 12 4, MOPS 16 4, BC 20 4,
        PAC_frac 24 4, CLRBHB 28 4, PRFMSLC 40 4, RPRFM 48 4, CSSC 52 4;
    ID_AA64MMFR0_EL1: PARange 0 4, ASIDBits 4 4, BigEnd 8 4, BigEndEL0 16 4, TGran16 20 4,
        TGran64 24 4, TGran4 28 4, TGran16_2 32 4, TGran64_2 36 4, TGran4_2 40 4, FGT 56 4,
        ECV 60 4;
    ID_AA64MMFR1_EL1: HAFDBS 0 4, VMIDBits 4 4, HPDS 12 4, PAN 20 4, XNX 28 4, ETS 36 4,
        HCX 40 4, AFP 44 4, nTLBPA 48 4, ECBHB 60 4;
    ID_AA64MMFR4_EL1: E2H0 24 4;
    ID_AA64DFR0_EL1: DebugVer 0 4, BRPs 12 4, WRPs 20 4, DoubleLock 36 4;
    ID_AA64MMFR3_EL1: Spec_FPACC 60 4;
    ID_PFR0_EL1: AMU 20 4, RAS 28 4;
    ID_DFR0_EL1: CopDbg 0 4, CopSDbg 4 4, CopTrc 12 4, MMapTrc 16 4, MProfDbg 20 4,
        PerfMon 24 4, TraceFilt 28 4;
    ID_PFR2_EL1: RAS_frac 8 4;
    ID_DFR1_EL1: MTPMU 0 4, HPMN0 4 4;
    CTR_EL0: IminLine 0 4, DminLine 16 4, IDC 28 1, DIC 29 1;
    DCZID_EL0: BS 0 4, DZP 4 1;
    SCTLR_EL1: M 0 1, C 2 1, SA 3 1, SA0 4 1, CP15BEN 5 1, I 12 1, nTWI 16 1, nTWE 18 1,
        WXN 19 1, SPAN 23 1, EE 25 1, DSSBS 44 1;
    CPTR_EL2: RES1_0 0 8, TZ 8 1, RES1_9 9 1, TFP 10 1, TSM 12 1, RES1_13 13 1, TTA 20 1,
        TAM 30 1;
    TCR_EL2: T0SZ 0 6, IRGN0 8 2, ORGN0 10 2, SH0 12 2, TG0 14 2, PS 16 3, TBI 20 1,
        HA 21 1, HD 22 1, HPD 24 1, DS 32 1;
    VTCR_EL2: T0SZ 0 6, SL0 6 2, IRGN0 8 2, ORGN0 10 2, SH0 12 2, TG0 14 2, PS 16 3,
        VS 19 1, HA 21 1, HD 22 1, RES1 31 1, DS 32 1, SL2 33 1;
    MPAMIDR_EL1: HAS_HCR 17 1;
    MPAM2_EL2: TRAPMPAM1EL1 48 1, TRAPMPAM0EL1 49 1;
    HCRX_EL2: MSCEn 11 1;
    CNTHCTL_EL2: EL1PCTEN 0 1, EL1PCEN 1 1;
    OSLSR_EL1: OSLK 1 1, OSLM_1 3 1;
    ISR_EL1: A 8 1;
    ICC_IAR1_EL1: INTID 0 24;
    ICC_HPPIR1_EL1: INTID 0 24;
    ICC_CTLR_EL1: EOImode 1 1, ExtRange 19 1;
    ICC_SRE_EL1: SRE 0 1, DFB 1 1, DIB 2 1;
    ICC_IGRPEN1_EL1: Enable 0 1;
    ICC_SGI1R_EL1: TargetList 0 16, Aff1 16 8, INTID 24 4, Aff2 32 8, IRM 40 1, RS 44 4,
        Aff3 48 8;
}

//! What the CPU is and has: identification and the registers of AArch32's, which
//! HCR_EL2.TID3 traps (DDI0487, D24.2).

super::registers! {
    MIDR_EL1 3 0 0 0 0 [r] "implementer, part and revision", cpu;
    MPIDR_EL1 3 0 0 0 5 [r] "affinity", cpu;
    ID_PFR0_EL1 3 0 0 1 0 [r] "AArch32 processor features", ours;
    ID_PFR1_EL1 3 0 0 1 1 [r] "AArch32 processor features";
    ID_DFR0_EL1 3 0 0 1 2 [r] "AArch32 debug features", ours;
    ID_AFR0_EL1 3 0 0 1 3 [r] "AArch32 auxiliary features";
    ID_MMFR0_EL1 3 0 0 1 4 [r] "AArch32 memory model";
    ID_MMFR1_EL1 3 0 0 1 5 [r] "AArch32 memory model";
    ID_MMFR2_EL1 3 0 0 1 6 [r] "AArch32 memory model";
    ID_MMFR3_EL1 3 0 0 1 7 [r] "AArch32 memory model";
    ID_ISAR0_EL1 3 0 0 2 0 [r] "AArch32 instructions";
    ID_ISAR1_EL1 3 0 0 2 1 [r] "AArch32 instructions";
    ID_ISAR2_EL1 3 0 0 2 2 [r] "AArch32 instructions";
    ID_ISAR3_EL1 3 0 0 2 3 [r] "AArch32 instructions";
    ID_ISAR4_EL1 3 0 0 2 4 [r] "AArch32 instructions";
    ID_ISAR5_EL1 3 0 0 2 5 [r] "AArch32 instructions";
    ID_MMFR4_EL1 3 0 0 2 6 [r] "AArch32 memory model";
    ID_ISAR6_EL1 3 0 0 2 7 [r] "AArch32 instructions";
    MVFR0_EL1 3 0 0 3 0 [r] "AArch32 floating point";
    MVFR1_EL1 3 0 0 3 1 [r] "AArch32 floating point";
    MVFR2_EL1 3 0 0 3 2 [r] "AArch32 floating point";
    ID_PFR2_EL1 3 0 0 3 4 [r] "AArch32 processor features", ours;
    ID_DFR1_EL1 3 0 0 3 5 [r] "AArch32 debug features", ours;
    ID_MMFR5_EL1 3 0 0 3 6 [r] "AArch32 memory model";
    ID_AA64PFR0_EL1 3 0 0 4 0 [r] "processor features", ours;
    ID_AA64PFR1_EL1 3 0 0 4 1 [r] "processor features", ours;
    ID_AA64ZFR0_EL1 3 0 0 4 4 [r] "SVE features";
    ID_AA64SMFR0_EL1 3 0 0 4 5 [r] "SME features";
    ID_AA64DFR0_EL1 3 0 0 5 0 [r] "debug features", ours;
    ID_AA64ISAR0_EL1 3 0 0 6 0 [r] "instructions", ours;
    ID_AA64ISAR1_EL1 3 0 0 6 1 [r] "instructions", ours;
    ID_AA64ISAR2_EL1 3 0 0 6 2 [r] "instructions", ours;
    ID_AA64MMFR0_EL1 3 0 0 7 0 [r] "memory model", ours;
    ID_AA64MMFR1_EL1 3 0 0 7 1 [r] "memory model", ours;
    ID_AA64MMFR2_EL1 3 0 0 7 2 [r] "memory model", cpu;
    ID_AA64MMFR3_EL1 3 0 0 7 3 [r] "memory model", ours;
    ID_AA64MMFR4_EL1 3 0 0 7 4 [r] "memory model", ours;
    CTR_EL0 3 3 0 0 1 [r] "cache types", ours;
    DCZID_EL0 3 3 0 0 7 [r] "what `dc zva` zeroes", ours;
}

/// The affinity fields of MPIDR_EL1: as PSCI and device trees name a PE.
pub const AFFINITY: u64 = crate::bits!(MPIDR_EL1: Aff0, Aff1, Aff2, Aff3);

/// This PE's affinity.
#[inline]
pub fn affinity() -> u64 {
    MPIDR_EL1.get() & AFFINITY
}

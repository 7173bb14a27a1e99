//! State of EL1 and EL0 (DDI0487, D24.2).
//!
//! Where EL1 itself writes what steers its own translation or its vectors, that
//! takes a contract; EL2 keeps it when it switches worlds, as it runs by
//! registers of its own.

super::registers! {
    SCTLR_EL1 3 0 1 0 0 [r steer] "system control", ours;
    ACTLR_EL1 3 0 1 0 1 [r] "auxiliary control";
    CPACR_EL1 3 0 1 0 2 [r w] "access to FP, SVE and SME", cpu;
    TTBR0_EL1 3 0 2 0 0 [r steer] "translation table base of the lower half", cpu;
    TTBR1_EL1 3 0 2 0 1 [r steer] "translation table base of the upper half", cpu;
    TCR_EL1 3 0 2 0 2 [r steer] "translation control", cpu;
    APIAKeyLo_EL1 3 0 2 1 0 [r w] "pointer authentication key";
    APIAKeyHi_EL1 3 0 2 1 1 [r w] "pointer authentication key";
    APIBKeyLo_EL1 3 0 2 1 2 [r w] "pointer authentication key";
    APIBKeyHi_EL1 3 0 2 1 3 [r w] "pointer authentication key";
    APDAKeyLo_EL1 3 0 2 2 0 [r w] "pointer authentication key";
    APDAKeyHi_EL1 3 0 2 2 1 [r w] "pointer authentication key";
    APDBKeyLo_EL1 3 0 2 2 2 [r w] "pointer authentication key";
    APDBKeyHi_EL1 3 0 2 2 3 [r w] "pointer authentication key";
    APGAKeyLo_EL1 3 0 2 3 0 [r w] "pointer authentication key";
    APGAKeyHi_EL1 3 0 2 3 1 [r w] "pointer authentication key";
    SPSR_EL1 3 0 4 0 0 [r w] "state that an exception to EL1 saved", cpu;
    ELR_EL1 3 0 4 0 1 [r w] "where an exception to EL1 returns to";
    SP_EL0 3 0 4 1 0 [r steer] "stack pointer of EL0";
    CurrentEL 3 0 4 2 2 [r] "the exception level", cpu;
    SP_EL1 3 4 4 1 0 [r w] "stack pointer of EL1, as EL2 has it";
    DAIF 3 3 4 2 1 [r] "masks of interrupts", cpu;
    AFSR0_EL1 3 0 5 1 0 [r w] "auxiliary fault status";
    AFSR1_EL1 3 0 5 1 1 [r w] "auxiliary fault status";
    ESR_EL1 3 0 5 2 0 [r w] "syndrome of an exception to EL1", cpu;
    FAR_EL1 3 0 6 0 0 [r w] "fault address of EL1";
    PAR_EL1 3 0 7 4 0 [r w] "result of an address translation", cpu;
    MAIR_EL1 3 0 10 2 0 [r steer] "memory attributes", cpu;
    AMAIR_EL1 3 0 10 3 0 [r steer] "auxiliary memory attributes";
    MPAMIDR_EL1 3 0 10 4 4 [r] "shape of partitions, FEAT_MPAM", ours;
    MPAM1_EL1 3 0 10 5 0 [r w] "partition numbers of EL1, FEAT_MPAM";
    MPAM0_EL1 3 0 10 5 1 [r w] "partition numbers of EL0, FEAT_MPAM";
    ISR_EL1 3 0 12 1 0 [r] "pending interrupts", ours;
    DISR_EL1 3 0 12 1 1 [r w] "system error that `esb` has taken, FEAT_RAS";
    VBAR_EL1 3 0 12 0 0 [r steer] "vectors of EL1";
    CONTEXTIDR_EL1 3 0 13 0 1 [r w] "context number", cpu;
    TPIDR_EL1 3 0 13 0 4 [r steer] "thread number of EL1";
    TPIDR_EL0 3 3 13 0 2 [r w] "thread number of EL0";
    TPIDRRO_EL0 3 3 13 0 3 [r w] "thread number of EL0, to read there";
    CSSELR_EL1 3 2 0 0 0 [r w] "which cache CCSIDR_EL1 is of", cpu;
}

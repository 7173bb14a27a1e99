//! EL2's control of itself and of lower levels (DDI0487, D24.2), E2H clear.

super::registers! {
    VPIDR_EL2 3 4 0 0 0 [r w] "MIDR_EL1 of lower levels";
    VMPIDR_EL2 3 4 0 0 5 [r w] "MPIDR_EL1 of lower levels", cpu;
    SCTLR_EL2 3 4 1 0 0 [r steer] "system control", cpu;
    SCTLR2_EL2 3 4 1 0 3 [r steer] "system control, FEAT_SCTLR2";
    HCR_EL2 3 4 1 1 0 [r steer] "hypervisor configuration", cpu;
    MDCR_EL2 3 4 1 1 1 [r w] "traps of debug and performance monitors", cpu;
    CPTR_EL2 3 4 1 1 2 [r w] "traps of FP, SVE, SME and trace", ours;
    HSTR_EL2 3 4 1 1 3 [r w] "traps of AArch32 system registers";
    HFGRTR_EL2 3 4 1 1 4 [r w] "traps of register reads, FEAT_FGT", cpu;
    HFGWTR_EL2 3 4 1 1 5 [r w] "traps of register writes, FEAT_FGT", cpu;
    HFGITR_EL2 3 4 1 1 6 [r w] "traps of instructions, FEAT_FGT", cpu;
    TRFCR_EL2 3 4 1 2 1 [r w] "trace filter, FEAT_TRF";
    HCRX_EL2 3 4 1 2 2 [r w] "extended configuration, FEAT_HCX", ours;
    TTBR0_EL2 3 4 2 0 0 [r steer] "translation table base", cpu;
    TCR_EL2 3 4 2 0 2 [r steer] "translation control", ours;
    TCR2_EL2 3 4 2 0 3 [r steer] "translation control, FEAT_TCR2";
    VTTBR_EL2 3 4 2 1 0 [r steer] "stage-2 table base and VMID", cpu;
    VTCR_EL2 3 4 2 1 2 [r steer] "stage-2 translation control", ours;
    GCSCR_EL2 3 4 2 5 0 [r steer] "guarded control stacks, FEAT_GCS";
    HDFGRTR2_EL2 3 4 3 1 0 [r w] "traps of debug register reads, FEAT_FGT2";
    HDFGWTR2_EL2 3 4 3 1 1 [r w] "traps of debug register writes, FEAT_FGT2";
    HFGRTR2_EL2 3 4 3 1 2 [r w] "traps of register reads, FEAT_FGT2";
    HFGWTR2_EL2 3 4 3 1 3 [r w] "traps of register writes, FEAT_FGT2";
    HDFGRTR_EL2 3 4 3 1 4 [r w] "traps of debug register reads, FEAT_FGT", cpu;
    HDFGWTR_EL2 3 4 3 1 5 [r w] "traps of debug register writes, FEAT_FGT", cpu;
    HFGITR2_EL2 3 4 3 1 7 [r w] "traps of instructions, FEAT_FGT2";
    SPSR_EL2 3 4 4 0 0 [r w] "state that an exception to EL2 saved", cpu;
    ELR_EL2 3 4 4 0 1 [r w] "where an exception to EL2 came from";
    ESR_EL2 3 4 5 2 0 [r w] "syndrome of an exception to EL2", cpu;
    FAR_EL2 3 4 6 0 0 [r w] "fault address of EL2";
    HPFAR_EL2 3 4 6 0 4 [r w] "faulting IPA", cpu;
    MAIR_EL2 3 4 10 2 0 [r steer] "memory attributes", cpu;
    MPAMHCR_EL2 3 4 10 4 0 [r w] "virtual partition numbers, FEAT_MPAM";
    MPAM2_EL2 3 4 10 5 0 [r w] "partition numbers, and traps of EL1's", ours;
    VBAR_EL2 3 4 12 0 0 [r steer] "vectors of EL2";
    VSESR_EL2 3 4 5 2 3 [r w] "syndrome of a lower level's virtual SError, FEAT_RAS";
    VDISR_EL2 3 4 12 1 1 [r w] "DISR_EL1 of a lower level, FEAT_RAS";
    TPIDR_EL2 3 4 13 0 2 [r steer] "thread number of EL2";
}

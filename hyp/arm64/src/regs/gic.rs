//! The GIC's CPU interface and its virtual one (IHI0069, 12.2 and 12.4).

super::registers! {
    ICC_PMR_EL1 3 0 4 6 0 [r w] "priority mask";
    ICC_IAR0_EL1 3 0 12 8 0 [r] "acknowledges an interrupt of group 0";
    ICC_AP1R0_EL1 3 0 12 9 0 [r w] "active priorities of group 1";
    ICC_DIR_EL1 3 0 12 11 1 [w] "deactivates an interrupt";
    ICC_RPR_EL1 3 0 12 11 3 [r] "running priority";
    ICC_SGI1R_EL1 3 0 12 11 5 [w] "generates an SGI of group 1", ours;
    ICC_ASGI1R_EL1 3 0 12 11 6 [w] "generates an SGI of the other security state";
    ICC_SGI0R_EL1 3 0 12 11 7 [w] "generates an SGI of group 0";
    ICC_IAR1_EL1 3 0 12 12 0 [r] "acknowledges an interrupt of group 1", ours;
    ICC_EOIR1_EL1 3 0 12 12 1 [w] "ends an interrupt of group 1";
    ICC_HPPIR1_EL1 3 0 12 12 2 [r] "highest pending interrupt of group 1", ours;
    ICC_BPR1_EL1 3 0 12 12 3 [r w] "binary point of group 1";
    ICC_CTLR_EL1 3 0 12 12 4 [r w] "control", ours;
    ICC_SRE_EL1 3 0 12 12 5 [r w] "system register enable", ours;
    ICC_IGRPEN0_EL1 3 0 12 12 6 [r w] "group 0 enable";
    ICC_IGRPEN1_EL1 3 0 12 12 7 [r w] "group 1 enable", ours;
    ICC_SRE_EL2 3 4 12 9 5 [r w] "system register enable of EL2", cpu;
    ICH_AP0R0_EL2 3 4 12 8 0 [r w] "active priorities of group 0";
    ICH_AP0R1_EL2 3 4 12 8 1 [r w] "active priorities of group 0";
    ICH_AP0R2_EL2 3 4 12 8 2 [r w] "active priorities of group 0";
    ICH_AP0R3_EL2 3 4 12 8 3 [r w] "active priorities of group 0";
    ICH_AP1R0_EL2 3 4 12 9 0 [r w] "active priorities of group 1";
    ICH_AP1R1_EL2 3 4 12 9 1 [r w] "active priorities of group 1";
    ICH_AP1R2_EL2 3 4 12 9 2 [r w] "active priorities of group 1";
    ICH_AP1R3_EL2 3 4 12 9 3 [r w] "active priorities of group 1";
    ICH_HCR_EL2 3 4 12 11 0 [r w] "control of the virtual interface", cpu;
    ICH_VTR_EL2 3 4 12 11 1 [r] "shape of the virtual interface", cpu;
    ICH_MISR_EL2 3 4 12 11 2 [r] "maintenance interrupts";
    ICH_VMCR_EL2 3 4 12 11 7 [r w] "the virtual interface's own settings";
    ICH_LR0_EL2 3 4 12 12 0 [r w] "list register", cpu;
    ICH_LR1_EL2 3 4 12 12 1 [r w] "list register";
    ICH_LR2_EL2 3 4 12 12 2 [r w] "list register";
    ICH_LR3_EL2 3 4 12 12 3 [r w] "list register";
    ICH_LR4_EL2 3 4 12 12 4 [r w] "list register";
    ICH_LR5_EL2 3 4 12 12 5 [r w] "list register";
    ICH_LR6_EL2 3 4 12 12 6 [r w] "list register";
    ICH_LR7_EL2 3 4 12 12 7 [r w] "list register";
    ICH_LR8_EL2 3 4 12 13 0 [r w] "list register";
    ICH_LR9_EL2 3 4 12 13 1 [r w] "list register";
    ICH_LR10_EL2 3 4 12 13 2 [r w] "list register";
    ICH_LR11_EL2 3 4 12 13 3 [r w] "list register";
    ICH_LR12_EL2 3 4 12 13 4 [r w] "list register";
    ICH_LR13_EL2 3 4 12 13 5 [r w] "list register";
    ICH_LR14_EL2 3 4 12 13 6 [r w] "list register";
    ICH_LR15_EL2 3 4 12 13 7 [r w] "list register";
}

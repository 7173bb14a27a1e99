//! Self-hosted debug (DDI0487, D24.3).

super::registers! {
    MDSCR_EL1 2 0 0 2 2 [r w] "monitor debug control", cpu;
    DBGBVR0_EL1 2 0 0 0 4 [r w] "breakpoint 0, value";
    DBGBCR0_EL1 2 0 0 0 5 [r w] "breakpoint 0, control";
    DBGWVR0_EL1 2 0 0 0 6 [r w] "watchpoint 0, value";
    DBGWCR0_EL1 2 0 0 0 7 [r w] "watchpoint 0, control";
    DBGBVR1_EL1 2 0 0 1 4 [r w] "breakpoint 1, value";
    DBGBCR1_EL1 2 0 0 1 5 [r w] "breakpoint 1, control";
    DBGWVR1_EL1 2 0 0 1 6 [r w] "watchpoint 1, value";
    DBGWCR1_EL1 2 0 0 1 7 [r w] "watchpoint 1, control";
    DBGBCR2_EL1 2 0 0 2 5 [r w] "breakpoint 2, control";
    DBGWCR2_EL1 2 0 0 2 7 [r w] "watchpoint 2, control";
    DBGBCR3_EL1 2 0 0 3 5 [r w] "breakpoint 3, control";
    DBGWCR3_EL1 2 0 0 3 7 [r w] "watchpoint 3, control";
    DBGBCR4_EL1 2 0 0 4 5 [r w] "breakpoint 4, control";
    DBGWCR4_EL1 2 0 0 4 7 [r w] "watchpoint 4, control";
    DBGBCR5_EL1 2 0 0 5 5 [r w] "breakpoint 5, control";
    DBGWCR5_EL1 2 0 0 5 7 [r w] "watchpoint 5, control";
    DBGBCR6_EL1 2 0 0 6 5 [r w] "breakpoint 6, control";
    DBGWCR6_EL1 2 0 0 6 7 [r w] "watchpoint 6, control";
    DBGBCR7_EL1 2 0 0 7 5 [r w] "breakpoint 7, control";
    DBGWCR7_EL1 2 0 0 7 7 [r w] "watchpoint 7, control";
    DBGBCR8_EL1 2 0 0 8 5 [r w] "breakpoint 8, control";
    DBGWCR8_EL1 2 0 0 8 7 [r w] "watchpoint 8, control";
    DBGBCR9_EL1 2 0 0 9 5 [r w] "breakpoint 9, control";
    DBGWCR9_EL1 2 0 0 9 7 [r w] "watchpoint 9, control";
    DBGBCR10_EL1 2 0 0 10 5 [r w] "breakpoint 10, control";
    DBGWCR10_EL1 2 0 0 10 7 [r w] "watchpoint 10, control";
    DBGBCR11_EL1 2 0 0 11 5 [r w] "breakpoint 11, control";
    DBGWCR11_EL1 2 0 0 11 7 [r w] "watchpoint 11, control";
    DBGBCR12_EL1 2 0 0 12 5 [r w] "breakpoint 12, control";
    DBGWCR12_EL1 2 0 0 12 7 [r w] "watchpoint 12, control";
    DBGBCR13_EL1 2 0 0 13 5 [r w] "breakpoint 13, control";
    DBGWCR13_EL1 2 0 0 13 7 [r w] "watchpoint 13, control";
    DBGBCR14_EL1 2 0 0 14 5 [r w] "breakpoint 14, control";
    DBGWCR14_EL1 2 0 0 14 7 [r w] "watchpoint 14, control";
    DBGBCR15_EL1 2 0 0 15 5 [r w] "breakpoint 15, control";
    DBGWCR15_EL1 2 0 0 15 7 [r w] "watchpoint 15, control";
    OSLAR_EL1 2 0 1 0 4 [w] "OS lock, to write", cpu;
    OSLSR_EL1 2 0 1 1 4 [r] "OS lock, to read", ours;
    OSDLR_EL1 2 0 1 3 4 [r w] "OS double lock";
}

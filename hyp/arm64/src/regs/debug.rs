//! Self-hosted debug (DDI0487, D24.3).

super::registers! {
    MDSCR_EL1 2 0 0 2 2 [r w] "monitor debug control", cpu;
    DBGBVR0_EL1 2 0 0 0 4 [r w] "breakpoint 0, value";
    DBGBVR1_EL1 2 0 0 1 4 [r w] "breakpoint 1, value";
    DBGWVR0_EL1 2 0 0 0 6 [r w] "watchpoint 0, value";
    DBGWVR1_EL1 2 0 0 1 6 [r w] "watchpoint 1, value";
    OSLAR_EL1 2 0 1 0 4 [w] "OS lock, to write", cpu;
    OSLSR_EL1 2 0 1 1 4 [r] "OS lock, to read", ours;
    OSDLR_EL1 2 0 1 3 4 [r w] "OS double lock";
    DBGCLAIMSET_EL1 2 0 7 8 6 [r w] "claim tags: sets, and reads as those that there are";
    DBGCLAIMCLR_EL1 2 0 7 9 6 [r w] "claim tags: clears, and reads as those that are set";
}

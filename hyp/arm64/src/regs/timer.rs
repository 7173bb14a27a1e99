//! The generic timer (DDI0487, D24.10).

super::registers! {
    CNTFRQ_EL0 3 3 14 0 0 [r] "ticks of the counter in a second";
    CNTPCT_EL0 3 3 14 0 1 [r] "physical counter";
    CNTVCT_EL0 3 3 14 0 2 [r] "virtual counter";
    CNTP_TVAL_EL0 3 3 14 2 0 [r w] "physical timer, ticks to go";
    CNTP_CTL_EL0 3 3 14 2 1 [r w] "physical timer, control", cpu;
    CNTP_CVAL_EL0 3 3 14 2 2 [r w] "physical timer, compare value";
    CNTV_TVAL_EL0 3 3 14 3 0 [r w] "virtual timer, ticks to go";
    CNTV_CTL_EL0 3 3 14 3 1 [r w] "virtual timer, control", cpu;
    CNTV_CVAL_EL0 3 3 14 3 2 [r w] "virtual timer, compare value";
    CNTKCTL_EL1 3 0 14 1 0 [r w] "what of it EL0 may use", cpu;
    CNTVOFF_EL2 3 4 14 0 3 [r w] "virtual counter, offset";
    CNTHCTL_EL2 3 4 14 1 0 [r w] "what of it EL1 may use, E2H clear", ours;
    CNTHP_CTL_EL2 3 4 14 2 1 [r w] "EL2's physical timer, control", cpu;
    CNTHP_CVAL_EL2 3 4 14 2 2 [r w] "EL2's physical timer, compare value";
}

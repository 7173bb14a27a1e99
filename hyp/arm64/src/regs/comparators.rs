//! The controls of breakpoints and watchpoints (DDI0487, D24.3).

macro_rules! controls {
    ($($n:literal $breakpoint:ident $watchpoint:ident)*) => {
        super::registers! {$(
            $breakpoint 2 0 0 $n 5 [r w] "a breakpoint's control";
            $watchpoint 2 0 0 $n 7 [r w] "a watchpoint's control";
        )*}

        /// Disables all breakpoints and watchpoints, of which the CPU has 0 to these, as
        /// in ID_AA64DFR0_EL1.
        pub fn disable_comparators(breakpoints: u64, watchpoints: u64) {
            $(
                if (0..=breakpoints).contains(&$n) {
                    $breakpoint.set(0);
                }
                if (0..=watchpoints).contains(&$n) {
                    $watchpoint.set(0);
                }
            )*
        }
    };
}

controls! {
    0 DBGBCR0_EL1 DBGWCR0_EL1
    1 DBGBCR1_EL1 DBGWCR1_EL1
    2 DBGBCR2_EL1 DBGWCR2_EL1
    3 DBGBCR3_EL1 DBGWCR3_EL1
    4 DBGBCR4_EL1 DBGWCR4_EL1
    5 DBGBCR5_EL1 DBGWCR5_EL1
    6 DBGBCR6_EL1 DBGWCR6_EL1
    7 DBGBCR7_EL1 DBGWCR7_EL1
    8 DBGBCR8_EL1 DBGWCR8_EL1
    9 DBGBCR9_EL1 DBGWCR9_EL1
    10 DBGBCR10_EL1 DBGWCR10_EL1
    11 DBGBCR11_EL1 DBGWCR11_EL1
    12 DBGBCR12_EL1 DBGWCR12_EL1
    13 DBGBCR13_EL1 DBGWCR13_EL1
    14 DBGBCR14_EL1 DBGWCR14_EL1
    15 DBGBCR15_EL1 DBGWCR15_EL1
}

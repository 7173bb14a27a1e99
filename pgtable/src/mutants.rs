//! Deliberate faults, for the test that asks whether the tests would notice.
//!
//! `mutant!(Name, right, wrong)` is `right`. Only with the feature `mutants`,
//! which no build of an image enables, it is `wrong` while the mutant `Name`
//! is switched on.

#[cfg(not(feature = "mutants"))]
macro_rules! mutant {
    ($name:ident, $right:expr, $wrong:expr) => {
        $right
    };
}

#[cfg(feature = "mutants")]
macro_rules! mutant {
    ($name:ident, $right:expr, $wrong:expr) => {
        if $crate::mutants::is_on($crate::mutants::Mutant::$name) {
            $wrong
        } else {
            $right
        }
    };
}

#[cfg(feature = "mutants")]
pub use list::*;

#[cfg(feature = "mutants")]
mod list {
    use core::sync::atomic::{AtomicUsize, Ordering};

    macro_rules! mutants {
        ($($name:ident: $what:literal,)*) => {
            /// A deliberate fault.
            #[derive(Clone, Copy, PartialEq, Eq, Debug)]
            pub enum Mutant {
                $(#[doc = $what] $name,)*
            }

            impl Mutant {
                /// All of them.
                pub const ALL: &'static [Self] = &[$(Self::$name,)*];

                /// What is wrong while it is on.
                pub const fn what(self) -> &'static str {
                    match self {
                        $(Self::$name => $what,)*
                    }
                }
            }
        };
    }

    mutants! {
        TtlLevelOff: "TLBI level hint of another level",
        TableHinted: "TLBI level hint for a removed table",
        RunEndLost: "a run of changed entries does not grow",
        RangeBaseUnit: "range TLBI base in pages although DS=1",
        RangeNumMax: "33 units in one range TLBI",
        WrongRegime: "TLBI by address of EL2's regime for stage 2",
        WrongRangeRegime: "range TLBI of EL2's regime for stage 2",
        AddressByPage: "TLBI address by page instead of by 4K",
        TtlByTg0: "TG of a level hint coded as TG0",
        RangeTgByTg0: "TG of a range TLBI coded as TG0",
        RangeNumOff: "range TLBI one unit short",
        NoBarrierBetweenStages: "no DSB between stage-2 and stage-1 TLBI",
        NoStage1Invalidate: "no VMALLE1IS after stage-2 TLBIs",
        WholeVmidStage1Only: "VMALLE1IS for VMALLS12E1IS",
        WrongVmid: "VTTBR not switched to the tables' VMID",
        NoIsbAfterVttbr: "no ISB after VTTBR is switched",
        NoBarrierBeforeTlbi: "no DSB ISHST before the TLBI",
        LocalBarrierBeforeTlbi: "DSB NSHST before a broadcast TLBI",
        NoBarrierAfterTlbi: "no DSB ISH after the TLBI",
        LocalBarrierAfterTlbi: "DSB NSH after a broadcast TLBI",
        NoErratumRepeat: "erratum's second TLBI left out",
        NoIsbAtEnd: "no ISB at the end of a sync",
        VttbrNotRestored: "VTTBR not restored",
        NoBarrierAfterMap: "no DSB ISHST after mapping",
        SplitWithoutInvalidate: "a block split without TLBI between break and make",
        SplitDropsSoft: "split loses software bits",
        SplitAliases: "split maps every part to the first",
        NoBreakForMemAttr: "memory type changed without a break",
        ReplaceWithoutBreak: "a leaf replaced without a break",
        WriteProtectKeepsDbm: "write-protect leaves DBM set",
        RelaxWithoutLocalFlush: "no local TLBI after relaxing",
        TeardownUncut: "teardown leaves the root linked",
        FoldIgnoresSoft: "fold ignores differing software bits",
    }

    /// 0: none, else 1 + index.
    static ON: AtomicUsize = AtomicUsize::new(0);

    /// Switches one mutant on, or all off.
    pub fn switch(mutant: Option<Mutant>) {
        ON.store(
            mutant.map_or(0, |mutant| 1 + mutant as usize),
            Ordering::SeqCst,
        );
    }

    #[inline]
    pub(crate) fn is_on(mutant: Mutant) -> bool {
        ON.load(Ordering::Relaxed) == 1 + mutant as usize
    }
}

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
        JoinUnaligned: "contiguous hint on a group whose output is unaligned",
        JoinIgnoresPermissions: "contiguous hint on members that differ",
        GroupInvalidatedOnce: "one address of a contiguous group invalidated",
        GroupHintStays: "hint not taken off a broken group",
        HintNotSeenAgain: "contiguous hint set without a look after the freeze",
        GroupMemberChanged: "member of a contiguous group changed alone",
        FaultUncounted: "a fault's page is not counted",
        MapCountsOneMore: "mapping counts one entry too many",
        LinkUncounted: "a new table is not counted in its parent",
        SplitUncounted: "a split block's parts are not counted",
        EagerSplitCounts: "an eager split counts its parent twice",
        SubtreeUncounted: "a linked subtree is not counted",
        RemovedLeafCounts: "leaves removed for later still count",
        NoCleanBeforeMap: "data cache not cleaned without FWB",
        NoInstructionSync: "instruction cache not synchronised on map",
        ProtectNoInstructionSync: "instruction cache not synchronised on protect",
        CommitNoCaches: "caches not maintained on commit of a frozen entry",
        MapOverAnnotation: "annotation overwritten unasked",
        MapOverLeaf: "leaf overwritten unasked",
        RemapWithoutInvalidate: "permissions replaced without TLBI",
        ReplaceWithoutInvalidate: "no TLBI between break and make of a leaf",
        CollapseLosesBlock: "replaced entry stays frozen",
        AnnotationLost: "annotation not copied into a table under it",
        LostFaultLeaks: "table page leaked when another fault was faster",
        LostRaceLeaks: "table page leaked when it is not used",
        UnmapWithoutInvalidate: "no TLBI after unmap",
        UnmapOpenToOthers: "beside others, an entry emptied before its TLBI",
        FrozenOverwritten: "a table made over a frozen entry",
        TableSpanStartOnly: "only the first page of a removed table invalidated",
        TableTakenForEmpty: "a removed table with leaves invalidated as empty",
        SplitDropsWhole: "the rest of a block dropped although split was asked",
        CutWithOneLeft: "a table with one entry left is cut off",
        CutTableHinted: "a cut table's TLBI keeps its leaf hint",
        TableLeaked: "removed tables are not freed",
        LeafToldWrong: "removed leaf told with a wrong address",
        RunLostAtGap: "leaves changed before a gap not invalidated",
        ProofUnchecked: "a proof opens leaves of another gather",
        ProtectOnlyAdds: "protect does not take permissions away",
        ProtectWithoutInvalidate: "no TLBI after protect",
        HarvestLeavesWritable: "dirty harvest leaves the page writable",
        CleanToldDirty: "dirty harvest tells clean pages",
        CommitWithoutInvalidate: "no TLBI on commit of a frozen leaf",
        RollbackLosesEntry: "rollback empties the entry",
        SubtreeOverLiveLeaf: "a subtree linked over a live leaf",
        FoldWithoutInvalidate: "no TLBI between break and make of a fold",
        FoldUnaligned: "fold to a block whose output is unaligned",
        FoldIllegalBlock: "fold to a block where none may stand",
        FoldAliases: "fold of entries that map one page all",
        S2apSwapped: "read and write permission swapped",
        ShareOverAddress: "shareability written into address bits (DS)",
        FwbForgotten: "memory type coded without FWB under FWB",
        XnInverted: "execute-never inverted",
        BlockMisaligned: "block with an output not aligned to its size",
        BlockWhereNone: "block at a level that has none",
        QemuErratumIgnored: "range TLBIs of 4 GiB under the QEMU erratum",
        RangeBaseUnaligned: "range TLBI from a base that DS=1 cannot say",
        MixedLevelsHinted: "level hint for leaves of several levels",
        StepTooLong: "every second entry invalidated",
        TeardownSkipsLast: "teardown forgets the last root entry",
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

//! The one place where the order of stores, barriers and TLBIs stands.
//!
//! The caller has made its stores. [`sync`] then is, for stage 2:
//!
//! ```text
//! DSB ISHST                 the stores, before any walk that follows a TLBI
//!                           (DSB ISH when VTTBR_EL2 must be switched: it
//!                           also drains walks under the old one)
//! MSR VTTBR_EL2 ; ISB       only if another VMID is current
//! TLBI by address or range  stage 2 first ...
//! DSB ISH                   ... and complete, or a stage-1 walk refills a
//!                           combined entry from a stage-2 entry that dies
//! TLBI VMALLE1IS            stage-1 and combined entries
//! DSB ISH ; ISB
//! MSR VTTBR_EL2 ; ISB       back, if switched
//! ```
//!
//! with `TLBI VMALLS12E1IS` in place of both TLBIs for the whole VMID. EL2's
//! own stage 1 has one stage only: `DSB ISHST, TLBI VAE2IS..., DSB ISH, ISB`.
//!
//! Only after that may a table's page be freed, an output address be given
//! to somebody else, or a new valid entry be written where another stood:
//! [`Synced`] is the token of it, and only this module makes one.

use crate::errata::Errata;
use crate::maintenance::{Barrier, Maintenance, Tlbi, TlbiKind};
use crate::plan::{self, Pending, Plan, Regime, Tlb};

/// Proof that the invalidation which covers some removed entries is complete
/// on every CPU. Frees tables and releases output addresses.
#[derive(Debug)]
#[must_use]
pub struct Synced {
    /// The gather that was synced, 0 if it was none.
    serial: u64,
}

impl Synced {
    const fn new() -> Self {
        Self { serial: 0 }
    }

    /// The proof for a gather's leaves.
    pub(crate) const fn of(self, serial: u64) -> Self {
        Self { serial }
    }

    pub(crate) const fn serial(&self) -> u64 {
        self.serial
    }

    /// For a table that no walk ever reached: nothing to invalidate.
    pub(crate) const fn never_linked() -> Self {
        Self::new()
    }
}

const VMID: u64 = 0xffff << 48;

/// Invalidates what `pending` names on all CPUs and waits for it.
pub(crate) fn sync<T: Maintenance>(maint: &mut T, tlb: &Tlb, pending: &Pending) -> Synced {
    if pending.is_empty() {
        return Synced::new();
    }
    match tlb.regime {
        Regime::Stage2 { vttbr } => stage2(maint, tlb, vttbr, |maint| {
            match plan::decide(pending, tlb) {
                Plan::Whole => whole_vmid(maint),
                Plan::Ranges => {
                    plan::for_each(pending, tlb, |op| maint.tlbi(op));
                    if mutant!(NoBarrierBetweenStages, true, false) {
                        maint.barrier(Barrier::DsbIsh);
                    }
                    if mutant!(NoStage1Invalidate, true, false) {
                        maint.tlbi(Tlbi::new(TlbiKind::Vmalle1is, 0));
                    }
                }
            }
        }),
        Regime::El2 => {
            maint.barrier(Barrier::DsbIshst);
            match plan::decide(pending, tlb) {
                Plan::Whole => maint.tlbi(Tlbi::new(TlbiKind::Alle2is, 0)),
                Plan::Ranges => plan::for_each(pending, tlb, |op| maint.tlbi(op)),
            }
            maint.barrier(Barrier::DsbIsh);
            if tlb.errata.has(Errata::TLBI_SYNC_REPEAT) {
                maint.tlbi(Tlbi::new(TlbiKind::Vae2is, 0));
                maint.barrier(Barrier::DsbIsh);
            }
            maint.barrier(Barrier::Isb);
        }
    }
    Synced::new()
}

/// Invalidates everything of the VMID in `vttbr`, both stages, on all CPUs.
pub(crate) fn sync_vmid<T: Maintenance>(maint: &mut T, tlb: &Tlb) -> Synced {
    match tlb.regime {
        Regime::Stage2 { vttbr } => stage2(maint, tlb, vttbr, whole_vmid),
        Regime::El2 => {
            maint.barrier(Barrier::DsbIshst);
            maint.tlbi(Tlbi::new(TlbiKind::Alle2is, 0));
            maint.barrier(Barrier::DsbIsh);
            maint.barrier(Barrier::Isb);
        }
    }
    Synced::new()
}

fn whole_vmid<T: Maintenance>(maint: &mut T) {
    maint.tlbi(Tlbi::new(
        mutant!(
            WholeVmidStage1Only,
            TlbiKind::Vmalls12e1is,
            TlbiKind::Vmalle1is
        ),
        0,
    ));
}

/// The frame of a broadcast stage-2 invalidation around its TLBIs.
fn stage2<T: Maintenance>(maint: &mut T, tlb: &Tlb, vttbr: u64, invalidate: impl FnOnce(&mut T)) {
    let current = maint.vttbr();
    let foreign = mutant!(WrongVmid, (current ^ vttbr) & VMID != 0, false);
    if foreign {
        maint.barrier(Barrier::DsbIsh);
        maint.set_vttbr(vttbr);
        if mutant!(NoIsbAfterVttbr, true, false) {
            maint.barrier(Barrier::Isb);
        }
    } else if mutant!(NoBarrierBeforeTlbi, true, false) {
        maint.barrier(mutant!(
            LocalBarrierBeforeTlbi,
            Barrier::DsbIshst,
            Barrier::DsbNshst
        ));
    }
    invalidate(maint);
    if mutant!(NoBarrierAfterTlbi, true, false) {
        maint.barrier(mutant!(
            LocalBarrierAfterTlbi,
            Barrier::DsbIsh,
            Barrier::DsbNsh
        ));
    }
    let repeat = tlb.errata.has(Errata::TLBI_SYNC_REPEAT);
    if mutant!(NoErratumRepeat, repeat, false) {
        maint.tlbi(Tlbi::new(TlbiKind::Vmalle1is, 0));
        maint.barrier(Barrier::DsbIsh);
    }
    if mutant!(NoIsbAtEnd, true, false) {
        maint.barrier(Barrier::Isb);
    }
    if foreign {
        if mutant!(VttbrNotRestored, true, false) {
            maint.set_vttbr(current);
        }
        maint.barrier(Barrier::Isb);
    }
}

/// After permissions of one leaf grew: drops this CPU's stale entry, which
/// would fault for ever. Other CPUs fault once and come here themselves.
pub(crate) fn sync_local<T: Maintenance>(maint: &mut T, tlb: &Tlb, at: u64, level: i8) {
    let Regime::Stage2 { vttbr } = tlb.regime else {
        return;
    };
    let current = maint.vttbr();
    let foreign = (current ^ vttbr) & VMID != 0;
    if foreign {
        maint.barrier(Barrier::DsbNsh);
        maint.set_vttbr(vttbr);
        maint.barrier(Barrier::Isb);
    } else {
        maint.barrier(Barrier::DsbNshst);
    }
    maint.tlbi(plan::local(tlb, at, level));
    maint.barrier(Barrier::DsbNsh);
    maint.tlbi(Tlbi::new(TlbiKind::Vmalle1, 0));
    maint.barrier(Barrier::DsbNsh);
    maint.barrier(Barrier::Isb);
    if foreign {
        maint.set_vttbr(current);
        maint.barrier(Barrier::Isb);
    }
}

/// Makes new valid entries visible to walkers: invalid to valid needs no
/// TLBI. EL2 itself is about to use its map, so it takes an ISB too.
pub(crate) fn publish<T: Maintenance>(maint: &mut T, tlb: &Tlb) {
    if mutant!(NoBarrierAfterMap, true, false) {
        maint.barrier(Barrier::DsbIshst);
    }
    if matches!(tlb.regime, Regime::El2) {
        maint.barrier(Barrier::Isb);
    }
}

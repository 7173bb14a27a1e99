//! The one place where the order of stores, barriers and TLBIs stands.
//!
//! The caller has made its stores. [`sync`] then is, for stage 2:
//!
//! ```text
//! DSB ISHST                 the stores, before any walk that follows a TLBI
//!                           (DSB ISH when the registers must be switched: it
//!                           also drains walks under the old ones)
//! MSR VTCR_EL2              only if another VMID or another format
//! MSR VTTBR_EL2 ; ISB       is current
//! TLBI by address or range  stage 2 first ...
//! DSB ISH                   ... and complete, or a stage-1 walk refills a
//!                           combined entry from a stage-2 entry that dies
//! TLBI VMALLE1IS            stage-1 and combined entries
//! DSB ISH ; ISB
//! MSR VTCR_EL2
//! MSR VTTBR_EL2 ; ISB       back, if switched
//! ```
//!
//! with `TLBI VMALLS12E1IS` in place of both TLBIs for the whole VMID. EL2's
//! own stage 1 has one stage only: `DSB ISHST, TLBI VAE2IS..., DSB ISH, ISB`.
//!
//! Only after that may a table's page be freed, an output address be given
//! to somebody else, or a new valid entry be written where another stood:
//! [`Synced`] is the token of it, and only this module makes one.

#[cfg(feature = "extra")]
use crate::addr::{Ia, Level};
use crate::errata::Errata;
use crate::maintenance::{Barrier, Maintenance, Stage2Regs, Tlbi, TlbiKind};
use crate::plan::{self, Plan, Regime, Run, Tlb};

/// Proof that the invalidation which covers some removed entries is complete
/// on every CPU. Frees tables and releases output addresses.
#[derive(Debug)]
#[must_use]
pub struct Synced {
    /// The gather that was synced, 0 if it was none.
    #[cfg_attr(not(feature = "extra"), allow(dead_code))]
    serial: u64,
}

impl Synced {
    const fn new() -> Self {
        Self { serial: 0 }
    }

    /// The proof for a gather's leaves.
    #[cfg(feature = "extra")]
    pub(crate) const fn of(self, serial: u64) -> Self {
        Self { serial }
    }

    #[cfg(feature = "extra")]
    pub(crate) const fn serial(&self) -> u64 {
        self.serial
    }

    /// For a table that no walk ever reached: nothing to invalidate.
    pub(crate) const fn never_linked() -> Self {
        Self::new()
    }
}

/// Invalidates what was changed on all CPUs and waits for it.
pub(crate) fn sync<T: Maintenance>(maint: &mut T, tlb: &Tlb, pending: &[Run]) -> Synced {
    match pending {
        [] => Synced::new(),
        // What most changes are.
        [run] if run.is_one_entry() => by_address(maint, tlb, |maint| maint.tlbi(run.op(tlb))),
        _ => many(maint, tlb, pending),
    }
}

#[inline(never)]
fn many<T: Maintenance>(maint: &mut T, tlb: &Tlb, pending: &[Run]) -> Synced {
    match plan::decide(pending, tlb) {
        Plan::Whole => sync_all(maint, tlb),
        Plan::Ranges => by_address(maint, tlb, |maint| {
            plan::for_each(pending, tlb, |op| maint.tlbi(op));
        }),
    }
}

/// Invalidates by the operations that `ops` makes.
#[inline]
fn by_address<T: Maintenance>(maint: &mut T, tlb: &Tlb, ops: impl FnOnce(&mut T)) -> Synced {
    match tlb.regime {
        Regime::Stage2(regs) => stage2(maint, tlb, regs, |maint| {
            ops(maint);
            maint.barrier(Barrier::DsbIsh);
            maint.tlbi(Tlbi::new(TlbiKind::Vmalle1is, 0));
        }),
        Regime::El2 => el2(maint, tlb, ops),
    }
    Synced::new()
}

/// Invalidates everything of the tree's VMID, both stages, on all CPUs.
pub(crate) fn sync_all<T: Maintenance>(maint: &mut T, tlb: &Tlb) -> Synced {
    match tlb.regime {
        Regime::Stage2(regs) => stage2(maint, tlb, regs, whole_vmid),
        Regime::El2 => el2(maint, tlb, |maint| {
            maint.tlbi(Tlbi::new(TlbiKind::Alle2is, 0));
        }),
    }
    Synced::new()
}

fn whole_vmid<T: Maintenance>(maint: &mut T) {
    maint.tlbi(Tlbi::new(TlbiKind::Vmalls12e1is, 0));
}

/// The frame of a broadcast stage-2 invalidation around its TLBIs.
fn stage2<T: Maintenance>(
    maint: &mut T,
    tlb: &Tlb,
    regs: Stage2Regs,
    invalidate: impl FnOnce(&mut T),
) {
    let current = maint.stage2();
    let foreign = !current.names_as(regs);
    if foreign {
        maint.barrier(Barrier::DsbIsh);
        maint.set_stage2(regs);
        maint.barrier(Barrier::Isb);
    } else {
        maint.barrier(Barrier::DsbIshst);
    }
    invalidate(maint);
    maint.barrier(Barrier::DsbIsh);
    let repeat = repeats(maint, tlb);
    if repeat {
        maint.tlbi(Tlbi::new(TlbiKind::Vmalle1is, 0));
        maint.barrier(Barrier::DsbIsh);
    }
    maint.barrier(Barrier::Isb);
    if foreign {
        maint.set_stage2(current);
        maint.barrier(Barrier::Isb);
    }
}

/// The frame of a broadcast invalidation of EL2's own.
fn el2<T: Maintenance>(maint: &mut T, tlb: &Tlb, invalidate: impl FnOnce(&mut T)) {
    maint.barrier(Barrier::DsbIshst);
    invalidate(maint);
    maint.barrier(Barrier::DsbIsh);
    if repeats(maint, tlb) {
        maint.tlbi(Tlbi::new(TlbiKind::Vae2is, 0));
        maint.barrier(Barrier::DsbIsh);
    }
    maint.barrier(Barrier::Isb);
}

/// Whether a broadcast sequence ends with one more TLBI and DSB.
fn repeats<T: Maintenance>(maint: &T, tlb: &Tlb) -> bool {
    (maint.errata() | tlb.errata).has(Errata::TLBI_SYNC_REPEAT)
}

/// After permissions of one leaf grew: drops this CPU's stale entry, which
/// would fault for ever. Other CPUs fault once and come here themselves.
#[cfg(feature = "extra")]
pub(crate) fn sync_local<T: Maintenance>(maint: &mut T, tlb: &Tlb, at: Ia, level: Level) {
    let Regime::Stage2(regs) = tlb.regime else {
        return;
    };
    let current = maint.stage2();
    let foreign = !current.names_as(regs);
    if foreign {
        maint.barrier(Barrier::DsbNsh);
        maint.set_stage2(regs);
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
        maint.set_stage2(current);
        maint.barrier(Barrier::Isb);
    }
}

/// Makes new valid entries visible to walkers: invalid to valid needs no
/// TLBI. EL2 itself is about to use its map, so it takes an ISB too.
pub(crate) fn publish<T: Maintenance>(maint: &mut T, tlb: &Tlb) {
    maint.barrier(Barrier::DsbIshst);
    if matches!(tlb.regime, Regime::El2) {
        maint.barrier(Barrier::Isb);
    }
}

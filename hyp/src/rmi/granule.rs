//! `GRANULE_DELEGATE` and `GRANULE_UNDELEGATE`, and both of a range: memory changes
//! owner.
//!
//! Without RME it is EL2 that keeps the host out: what is given leaves the host's
//! stage 2 and every TLB before it is scrubbed, and comes back only when it is
//! all zero again.

use ::rmi::Status;

use super::Outcome;
use crate::memory::granule::State;
use crate::memory::guarded::{self, ExternalAbort};
use crate::memory::phys;
use crate::memory::run::LockedRun;
use crate::system::System;
use arm64::instr;

/// Most bytes that one call of a range's gives or takes, and what its end is aligned
/// to: zeroing them is some hundred microseconds.
pub const STEP: u64 = 2 << 20;

/// Takes the granule at `pa` from the host.
#[inline(always)]
pub fn delegate(system: &System, pa: u64) -> Outcome {
    delegate_range(system, pa, pa.saturating_add(system.granules.size())).map(|_| ())
}

/// Gives the granule at `pa` back to the host.
#[inline(always)]
pub fn undelegate(system: &System, pa: u64) -> Outcome {
    undelegate_range(system, pa, pa.saturating_add(system.granules.size())).map(|_| ())
}

/// Takes granules of `[base, top)` from the host, from the first on: how far it came.
#[inline(always)]
pub fn delegate_range(system: &System, base: u64, top: u64) -> Outcome<u64> {
    let given = give(system, base, top);
    given.map(|size| base + size).ok_or(Status::ErrorInput)
}

/// Gives granules of `[base, top)` back, from the first on: how far it came.
#[inline(always)]
pub fn undelegate_range(system: &System, base: u64, top: u64) -> Outcome<u64> {
    let taken = take(system, base, top);
    taken.map(|size| base + size).ok_or(Status::ErrorInput)
}

/// As many of them as one call does, which are in `state` and which nobody depends on:
/// no guest has them mapped. `None` where there is none, or no range.
fn lock_range(system: &System, base: u64, top: u64, state: State) -> Option<LockedRun<'_>> {
    if base >= top || !top.is_multiple_of(system.granules.size()) {
        return None;
    }
    let end = top.min((base | (STEP - 1)).saturating_add(1));
    system.granules.lock_run(base, end, state)
}

/// Gives the host's granules to EL2: how many bytes of them. `None` where nothing
/// changed.
fn give(system: &System, base: u64, top: u64) -> Option<u64> {
    let run = lock_range(system, base, top, State::Ns)?;
    let granule = system.granules.size();
    // SAFETY: `leave_host` has taken it from the host, who held it alone: no guest maps it,
    // by its count.
    let run = leave_host(system, run, |pa| unsafe { guarded::zero(pa, granule) })?;
    let done = run.size();
    run.unlock_as(State::Delegated);
    Some(done)
}

/// Takes granules out of the host's reach, up to the first of which `touch` says that
/// there is no memory behind it: those are still locked, and the others the host's.
/// `None` where all are.
pub fn leave_host<'a>(
    system: &System,
    mut run: LockedRun<'a>,
    touch: impl Fn(u64) -> Result<(), ExternalAbort>,
) -> Option<LockedRun<'a>> {
    let (pa, granule) = (run.pa(), system.granules.size());
    if !run.leave_host() {
        return None; // a guest has them mapped by a block
    }
    if system.host.take(pa, run.size()).is_err() {
        returned(system, &run);
        return None;
    }
    let is_there = |n: &u64| touch(pa + n * granule).is_ok();
    let good = (0..run.count()).take_while(is_there).count() as u64;
    give_back(system, run.split_off(good));
    (good > 0).then_some(run)
}

/// Undoes [`leave_host`], of a run that may be empty: no guest has had any of it. The
/// tables that they were mapped by a moment ago are still there.
pub fn give_back(system: &System, run: LockedRun<'_>) {
    if run.count() == 0 {
        return;
    }
    if system.host.give(run.pa(), run.size()).is_ok() {
        returned(system, &run);
    } else {
        run.unlock_as(State::Hyp);
    }
}

/// Counts granules as the host's again, which has them mapped: before anybody may map
/// them, for a block that holds one is counted by then. Whoever brings a span's last
/// makes it a block of the host's.
fn returned(system: &System, run: &LockedRun<'_>) {
    if run.return_to_host() {
        system.host.fold(run.pa());
    }
}

/// Gives granules back to the host: how many bytes of them; `None` where the host gets
/// nothing. Delegated ones are all zero: whatever they were used for since, the command
/// that ended that use scrubbed them. What was too much to scrub there is scrubbed here.
fn take(system: &System, base: u64, top: u64) -> Option<u64> {
    let delegated = lock_range(system, base, top, State::Delegated);
    let run = delegated.or_else(|| {
        let run = lock_range(system, base, top, State::Unscrubbed)?;
        // SAFETY: the run's locks are held; in that state RTT_DATA_UNMAP left it, which
        // took it out of its realm's tables and of every TLB.
        unsafe { phys::zero(run.pa(), run.size()) };
        Some(run)
    })?;
    let (pa, size) = (run.pa(), run.size());
    // Somebody may look past the caches, where what was written there before the
    // zeros can still stand: the host, where FEAT_S2FWB does not forbid it; a guest
    // by a mapping that is not cacheable; a device.
    // SAFETY: a delegated granule is RAM, which EL2's own map has.
    unsafe { guarded::clean_invalidate(pa, size, system.features.dcache_line) };
    // Of a guest's code some can still stand in instruction caches, for the host to run.
    if !system.features.dic {
        instr::ic_ialluis();
        instr::dsb_ish();
    }
    system.host.give(pa, size).ok()?;
    returned(system, &run);
    run.unlock_as(State::Ns);
    Some(size)
}

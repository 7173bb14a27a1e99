//! `GRANULE_DELEGATE` and `GRANULE_UNDELEGATE`, and both of a range: memory changes
//! owner.
//!
//! Without RME it is EL2 that keeps the host out: what is given leaves the host's
//! stage 2 and every TLB before it is scrubbed, and comes back only when it is
//! all zero again.

use ::rmi::Status;

use super::Outcome;
use crate::memory::granule::State;
use crate::memory::guarded;
use crate::memory::run::LockedRun;
use crate::system::System;

/// Most bytes that one call of a range's gives or takes, and what its end is aligned
/// to: zeroing them is some hundred microseconds.
const STEP: u64 = 2 << 20;

/// Takes the granule at `pa` from the host.
pub fn delegate(system: &System, pa: u64) -> Outcome {
    give(system, lock(system, pa, State::Ns)?).map(|_| ())
}

/// Gives the granule at `pa` back to the host.
pub fn undelegate(system: &System, pa: u64) -> Outcome {
    take(system, lock(system, pa, State::Delegated)?).map(|_| ())
}

/// Takes granules of `[base, top)` from the host, from the first on: how far it came.
pub fn delegate_range(system: &System, base: u64, top: u64) -> Outcome<u64> {
    Ok(base + give(system, lock_range(system, base, top, State::Ns)?)?)
}

/// Gives granules of `[base, top)` back, from the first on: how far it came.
pub fn undelegate_range(system: &System, base: u64, top: u64) -> Outcome<u64> {
    Ok(base + take(system, lock_range(system, base, top, State::Delegated)?)?)
}

/// The granule at `pa`, which is in `state`, and which nobody depends on: no guest
/// has it mapped.
fn lock(system: &System, pa: u64, state: State) -> Outcome<LockedRun<'_>> {
    lock_range(system, pa, pa.saturating_add(system.granules.size()), state)
}

/// As many of them as one call does.
fn lock_range(system: &System, base: u64, top: u64, state: State) -> Outcome<LockedRun<'_>> {
    if base >= top || !top.is_multiple_of(system.granules.size()) {
        return Err(Status::ErrorInput);
    }
    let end = top.min((base | (STEP - 1)).saturating_add(1));
    let run = system.granules.lock_run(base, end, state);
    run.ok_or(Status::ErrorInput)
}

/// Gives the host's granules to EL2: how many bytes of them.
fn give(system: &System, mut run: LockedRun<'_>) -> Outcome<u64> {
    let (pa, granule) = (run.pa(), system.granules.size());
    if !system.granules.leave_host(pa, run.count()) {
        return Err(Status::ErrorInput); // a guest has them mapped by a block
    }
    if system.host.take(pa, run.size()).is_err() {
        system.granules.return_to_host(pa, run.count());
        return Err(Status::ErrorInput);
    }
    // SAFETY: the host cannot reach it any more, nobody else ever could.
    let is_zero = |n: &u64| unsafe { guarded::zero(pa + n * granule, granule) }.is_ok();
    let good = (0..run.count()).take_while(is_zero).count() as u64;
    let rest = run.split_off(good);
    if rest.count() > 0 {
        // There is no memory behind the first of them: they stay the host's. The
        // tables that they were mapped by a moment ago are still there.
        if system.host.give(rest.pa(), rest.size()).is_ok() {
            system.granules.return_to_host(rest.pa(), rest.count());
        } else {
            rest.unlock_as(State::Hyp);
        }
    }
    let done = run.size();
    run.unlock_as(State::Delegated);
    if done > 0 {
        Ok(done)
    } else {
        Err(Status::ErrorInput)
    }
}

/// Gives delegated granules back to the host: how many bytes of them. They are all
/// zero: whatever they were used for since, the command that ended that use scrubbed
/// them.
fn take(system: &System, run: LockedRun<'_>) -> Outcome<u64> {
    let (pa, size) = (run.pa(), run.size());
    // Somebody may look past the caches, where what was written there before the
    // zeros can still stand: the host, where FEAT_S2FWB does not forbid it; a guest
    // by a mapping that is not cacheable; a device.
    // SAFETY: a delegated granule is RAM, which EL2's own map has.
    unsafe { guarded::clean_invalidate(pa, size, system.features.dcache_line) };
    system.host.give(pa, size).map_err(|_| Status::ErrorInput)?;
    // Before anybody may map them: a block that holds one is counted by then.
    system.granules.return_to_host(pa, run.count());
    run.unlock_as(State::Ns);
    Ok(size)
}

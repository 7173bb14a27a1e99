//! `GRANULE_DELEGATE` and `GRANULE_UNDELEGATE`: memory changes owner.
//!
//! Without RME it is EL2 that keeps the host out: the granule leaves the host's
//! stage 2 and every TLB before it is scrubbed, and comes back only when it is
//! all zero again.

use ::rmi::Status;

use super::{Outcome, args};
use crate::memory::granule::State;
use crate::memory::guarded;
use crate::system::System;

/// Takes the granule at `pa` from the host.
pub fn delegate(system: &System, pa: u64) -> Outcome {
    let locked = args::lock(system, pa, State::Ns)?;
    if locked.count() != 0 {
        return Err(Status::ErrorInput); // some guest has it mapped
    }
    if !system.granules.leave_host(pa) {
        return Err(Status::ErrorInput); // by a block
    }
    let size = system.granules.size();
    if system.host.take(pa, size).is_err() {
        system.granules.return_to_host(pa);
        return Err(Status::ErrorInput);
    }
    // SAFETY: the host cannot reach it any more, nobody else ever could.
    if unsafe { guarded::zero(pa, size) }.is_err() {
        // There is no memory behind it: it stays the host's. The tables that it
        // was mapped by a moment ago are still there.
        if system.host.give(pa, size).is_ok() {
            system.granules.return_to_host(pa);
        } else {
            locked.unlock_as(State::Hyp);
        }
        return Err(Status::ErrorInput);
    }
    locked.unlock_as(State::Delegated);
    Ok(())
}

/// Gives the granule at `pa` back to the host. It is all zero: whatever it was
/// used for since, the command that ended that use scrubbed it.
pub fn undelegate(system: &System, pa: u64) -> Outcome {
    let locked = args::lock(system, pa, State::Delegated)?;
    let size = system.granules.size();
    // Somebody may look past the caches, where what was written there before the
    // zeros can still stand: the host, where FEAT_S2FWB does not forbid it; a guest
    // by a mapping that is not cacheable; a device.
    // SAFETY: a delegated granule is RAM, which EL2's own map has.
    unsafe { guarded::clean_invalidate(pa, size, system.features.dcache_line) };
    system.host.give(pa, size).map_err(|_| Status::ErrorInput)?;
    // Before anybody may map it: a block that holds it is counted by then.
    system.granules.return_to_host(pa);
    locked.unlock_as(State::Ns);
    Ok(())
}

//! What a call's arguments must be: granules in a state, levels, structures in
//! the host's memory. What is not refuses the call before it changed anything.

use ::rmi::Status;
use pgtable::{Budget, Level};

use crate::memory::granule::{GranuleWord, Locked, Pin, State};
use crate::memory::guarded;
use crate::system::System;

/// Locks the granule at `pa`, which must be in `state`.
pub fn lock(system: &System, pa: u64, state: State) -> Result<Locked<'_>, Status> {
    let granule = system.granules.get(pa).ok_or(Status::ErrorInput)?;
    granule.lock(state).ok_or(Status::ErrorInput)
}

/// Asks for a granule that may be given a use, before it is locked: its lock comes
/// behind the realm's, and is only then sure to find it so.
pub fn delegated(system: &System, pa: u64) -> Result<&GranuleWord, Status> {
    let granule = system.granules.get(pa).ok_or(Status::ErrorInput)?;
    (granule.state() == State::Delegated)
        .then_some(granule)
        .ok_or(Status::ErrorInput)
}

/// Locks the vCPU at `pa`, which must not run.
pub fn lock_idle_rec(system: &System, pa: u64) -> Result<Locked<'_>, Status> {
    let rec = lock(system, pa, State::Rec)?;
    if rec.count() == 0 {
        Ok(rec)
    } else {
        Err(Status::ErrorRec)
    }
}

/// Keeps the granule at `pa` the host's as long as the value lives.
pub fn pin(system: &System, pa: u64) -> Result<Pin<'_>, Status> {
    let granule = system.granules.get(pa).ok_or(Status::ErrorInput)?;
    granule.pin(State::Ns).ok_or(Status::ErrorInput)
}

/// Keeps the granule that holds all of `[pa, pa + size)` the host's, as [`pin`]
/// does; `size` is no more than a granule's.
pub fn pin_around(system: &System, pa: u64, size: u64) -> Result<Pin<'_>, Status> {
    let offset = pa & (system.granules.size() - 1);
    if offset + size > system.granules.size() {
        return Err(Status::ErrorInput);
    }
    pin(system, pa - offset)
}

/// Reads one structure from a granule of the host's: copied once, and the
/// granule stays the host's for the time of the copy.
pub fn copy_from_host<T>(system: &System, pa: u64) -> Result<T, Status>
where
    T: zerocopy::FromBytes + zerocopy::IntoBytes,
{
    let _pin = pin(system, pa)?;
    // SAFETY: RAM of the host's, a granule from `pa`, which is aligned to one.
    unsafe { guarded::read(pa) }.map_err(|_| Status::ErrorInput)
}

/// The level of a table or an entry.
pub fn level(raw: i64) -> Result<Level, Status> {
    i8::try_from(raw)
        .ok()
        .and_then(Level::new)
        .ok_or(Status::ErrorInput)
}

/// Work of one call on a CPU without FEAT_S2FWB: 8 MiB of memory cleaned, a
/// few milliseconds. The host takes its interrupts, and goes on.
pub fn budget() -> Budget {
    Budget::entries(2048)
}

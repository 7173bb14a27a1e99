//! Granules that are EL2's while a realm is: its tables, its vCPUs and what they need.

use super::failure::RealmError;
use crate::granules::Granules;
use crate::rmi_call::{self, CallError};
use spin::Mutex;

/// A granule for this purpose, EL2's from here on.
pub(super) fn delegate_one(
    granules: &Mutex<Granules>,
    purpose: &'static str,
) -> Result<u64, RealmError> {
    let mut granules = granules.lock();
    let size = granules.granule();
    let pa = granules
        .take(size, size)
        .ok_or(RealmError::NoMemory(purpose))?;
    match rmi_call::granule_delegate(pa) {
        Ok(()) => Ok(pa),
        Err(error) => {
            granules.give(pa, size);
            Err(RealmError::Call("GRANULE_DELEGATE", error))
        }
    }
}

/// Takes a granule back that no realm has any more; one that EL2 keeps is leaked.
pub(super) fn reclaim(granules: &Mutex<Granules>, pa: u64) {
    match rmi_call::granule_undelegate(pa) {
        Ok(()) => {
            let mut granules = granules.lock();
            let size = granules.granule();
            granules.give(pa, size);
        }
        Err(error) => leaked("GRANULE_UNDELEGATE", error),
    }
}

/// Says that EL2 keeps memory.
pub(super) fn leaked(call: &str, error: CallError) {
    log::error!("{call}: {error}; memory is lost until the machine restarts");
}

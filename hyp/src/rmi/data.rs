//! The commands of a realm's own memory: granules of it, and what it was told of
//! its addresses (RIPAS).
//!
//! A granule of DATA is in no map but its realm's, and in EL2's. It is all zero when
//! it is DELEGATED again.

use ::rmi::Status;
use ::rmi::rtt::DataFlags;
use pgtable::{Fill, Ipa, Pa};

use super::args::{lock, lock_idle_rec, pin};
use super::rtt::{Tables, scrub, status, walked, with_rtt};
use super::{Outcome, Walked};
use crate::memory::granule::State;
use crate::memory::maintenance;
use crate::memory::{guarded, phys};
use crate::realm::{self, Realm};
use crate::rec::Rec;
use crate::system::System;

/// What `DATA_CREATE` copies.
pub struct Content {
    /// The host's granule.
    pub src: u64,
    /// [`DataFlags`].
    pub flags: u64,
}

/// Copies a granule of the host's into the granule `data`, and makes that memory of
/// a realm in state NEW at `ipa`.
pub fn create(system: &System, rd: u64, data: u64, ipa: u64, content: Content) -> Outcome {
    let Content { src, flags } = content;
    let flags = DataFlags::from_bits(flags).ok_or(Status::ErrorInput)?;
    if flags.contains(DataFlags::MEASURE) {
        return Err(Status::ErrorInput); // no realm is measured
    }
    // Before the realm is looked at, as TF-RMM has it; the source stays the host's,
    // for the time of the copy.
    let _src = pin(system, src)?;
    is_delegated(system, data)?;
    with_new_realm(system, rd, |tables, pe| {
        let page = lock(system, data, State::Delegated)?;
        tables.data_check(Ipa::new(ipa)).map_err(status)?;
        let size = system.granules.size();
        // SAFETY: a locked, delegated granule is EL2's alone; `src` is RAM of the
        // host's, pinned as such, and so another.
        let made = unsafe { guarded::copy(data, src, size) }
            .map_err(|_| Status::ErrorInput)
            .and_then(|()| {
                let (ipa, data) = (Ipa::new(ipa), Pa::new(data));
                let made = tables.data_create(pe, ipa, data, Fill::Known);
                made.map_err(status)
            });
        if made.is_err() {
            // SAFETY: as above. A part may have been copied.
            unsafe { phys::zero(data, size) };
        } else {
            page.unlock_as(State::Data);
        }
        made
    })
}

/// Makes the granule `data`, all zero, memory of a realm at `ipa`, whose RIPAS stays
/// what it is.
pub fn create_unknown(system: &System, rd: u64, data: u64, ipa: u64) -> Outcome {
    is_delegated(system, data)?;
    with_rtt(system, rd, |tables, pe| {
        let page = lock(system, data, State::Delegated)?;
        tables
            .data_create(pe, Ipa::new(ipa), Pa::new(data), Fill::Unknown)
            .map_err(status)?;
        page.unlock_as(State::Data);
        Ok(())
    })?
}

/// Takes the granule at `ipa` out of a realm: its PA.
pub fn destroy(system: &System, rd: u64, ipa: u64) -> Walked<u64> {
    let removed = with_rtt(system, rd, |tables, pe| {
        let removed = tables.data_destroy(pe, Ipa::new(ipa))?;
        scrub(system, removed.pa.get(), State::Data);
        Ok((removed.pa.get(), removed.top))
    });
    match removed {
        Err(status) => status.into(),
        // This command does all or nothing, and never says "again".
        Ok(result) => walked(result).unwrap_or_else(|| Status::ErrorInput.into()),
    }
}

/// Makes addresses of a realm in state NEW memory, from `base` to the end of one
/// table at most: how far it came.
pub fn init_ripas(system: &System, rd: u64, base: u64, top: u64) -> Outcome<u64> {
    if base >= top {
        return Err(Status::ErrorInput);
    }
    let rd_lock = lock(system, rd, State::Rd)?;
    // SAFETY: the RD's lock is held.
    let realm = unsafe { Realm::at(rd) };
    let granule = system.granules.size();
    if !base.is_multiple_of(granule) || !top.is_multiple_of(granule) || top > realm.shared_from {
        return Err(Status::ErrorInput);
    }
    if realm.state() != realm::State::New {
        return Err(Status::ErrorRealm(0));
    }
    let mut rtt = realm.rtt.lock();
    let tables = rtt.as_mut().ok_or(Status::ErrorInput)?;
    let reached = tables.init_ripas(Ipa::new(base)..Ipa::new(top), |_, _| ());
    drop(rd_lock);
    reached.map(Ipa::get).map_err(status)
}

/// Changes what a vCPU asked to have changed, which none can yet: RSI is not there.
pub fn set_ripas(system: &System, rd: u64, rec: u64, base: u64, top: u64) -> Outcome<u64> {
    if base >= top {
        return Err(Status::ErrorInput);
    }
    let _rd_lock = lock(system, rd, State::Rd)?;
    let _rec_lock = lock_idle_rec(system, rec)?;
    // SAFETY: the REC's lock is held.
    let _owned = unsafe { Rec::at(rec) }.rd == rd;
    Err(Status::ErrorInput)
}

/// As [`with_rtt`] for a command of a realm in state NEW, which it stays meanwhile.
fn with_new_realm<R>(
    system: &System,
    rd: u64,
    f: impl FnOnce(&mut Tables, &mut maintenance::Pe) -> Outcome<R>,
) -> Outcome<R> {
    let _rd_lock = lock(system, rd, State::Rd)?;
    // SAFETY: the RD's lock is held.
    let realm = unsafe { Realm::at(rd) };
    if realm.state() != realm::State::New {
        return Err(Status::ErrorRealm(0));
    }
    let mut rtt = realm.rtt.lock();
    let tables = rtt.as_mut().ok_or(Status::ErrorInput)?;
    f(tables, &mut system.host.pe())
}

fn is_delegated(system: &System, pa: u64) -> Outcome {
    match system.granules.get(pa) {
        Some(granule) if granule.state() == State::Delegated => Ok(()),
        _ => Err(Status::ErrorInput),
    }
}

//! The commands of a realm's own memory: granules of it, and what it was told of
//! its addresses (RIPAS).
//!
//! A granule of DATA is in no map but its realm's, and in EL2's. It is all zero when
//! it is DELEGATED again.

use ::rmi::Status;
use ::rmi::rtt::DataFlags;
use core::ops::Range;
use pgtable::{DataRun, Fill, Ipa, Pa, RemovedData};

use super::args::{delegated, lock, lock_idle_rec, pin};
use super::granule::{self, STEP};
use super::rtt::{Tables, scrub, status, walked_once, with_rtt};
use super::{Outcome, Walked};
use crate::measure::hash;
use crate::memory::granule::State;
use crate::memory::maintenance;
use crate::memory::run::LockedRun;
use crate::memory::{guarded, phys};
use crate::realm::{self, Mode, Realm};
use crate::rec::{Pending, Rec};
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
    let measure = flags.contains(DataFlags::MEASURE);
    // Before the realm is looked at, as TF-RMM has it; the source stays the host's,
    // for the time of the copy.
    let _src = pin(system, src)?;
    let page = delegated(system, data)?;
    with_new_realm(system, rd, |realm, tables, pe| {
        // Of a guest that is no realm nothing is measured.
        if measure && realm.mode != Mode::Realm {
            return Err(Status::ErrorInput);
        }
        let page = page.lock(State::Delegated).ok_or(Status::ErrorInput)?;
        let size = system.granules.size();
        let mut touched = false;
        let copy = || {
            touched = true;
            // SAFETY: `page` holds the lock of `data`, delegated and so EL2's alone; `_src`
            // pins `src` as RAM of the host's, and so another.
            unsafe { guarded::copy(data, src, size) }.is_ok()
        };
        let made = tables.data_create_with(pe, Ipa::new(ipa), Pa::new(data), copy);
        if made.is_err() && touched {
            // SAFETY: `page` is still locked and delegated. A part may have been copied.
            unsafe { phys::zero(data, size) };
        }
        made.map_err(status)?;
        if let Some(measured) = realm.measured.lock().as_mut() {
            let content = if measure {
                // SAFETY: `page` is locked; the realm, which has it now, is in state NEW, in
                // which the RD's lock keeps it: nobody runs that could write it.
                hash(measured.algorithm, unsafe { bytes(data, size) })
            } else {
                [0; 64]
            };
            measured.add_data(ipa, flags.bits(), &content);
        }
        page.unlock_as(State::Data);
        Ok(())
    })
}

/// The bytes of a granule.
///
/// # Safety
/// It is EL2's, and nobody writes it meanwhile.
unsafe fn bytes<'a>(pa: u64, size: u64) -> &'a [u8] {
    // SAFETY: the caller's promise; the range is RAM, mapped as all of it is.
    unsafe { core::slice::from_raw_parts(phys::pointer(pa), size as usize) }
}

/// Makes the granule `data`, all zero, memory of a realm at `ipa`, whose RIPAS stays
/// what it is.
pub fn create_unknown(system: &System, rd: u64, data: u64, ipa: u64) -> Outcome {
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
    walked_once(with_rtt(system, rd, |tables, pe| {
        let removed = tables.data_destroy(pe, Ipa::new(ipa))?;
        scrub(system, removed.pa.get(), State::Data);
        Ok((removed.pa.get(), removed.top))
    }))
}

/// Makes delegated granules from `pa` on memory of a realm at `ipas`, as [`create_unknown`]
/// does one: how far it came.
pub fn map_range(system: &System, rd: u64, ipas: Range<u64>, pa: u64) -> Outcome<u64> {
    with_rtt(system, rd, |tables, pe| {
        let run = run_of(system, tables, ipas, pa)?;
        let (run, mut granules) = lock_for(system, tables, run, State::Delegated)?;
        let done = tables.data_map(pe, &run, Fill::Unknown).map_err(status)?;
        drop(granules.split_off(done / system.granules.size()));
        granules.unlock_as(State::Data);
        Ok(run.ipa.get() + done)
    })?
}

/// Makes granules of the host's, from `pa` on, memory of a realm in state NEW at `ipas`,
/// with what is in them: how far it came.
pub fn donate_range(system: &System, rd: u64, ipas: Range<u64>, pa: u64) -> Outcome<u64> {
    with_new_realm(system, rd, |realm, tables, pe| {
        // What a realm begins with counts in its measurement.
        if realm.mode == Mode::Realm {
            return Err(Status::ErrorInput);
        }
        let run = run_of(system, tables, ipas, pa)?;
        let (_, granules) = lock_for(system, tables, run, State::Ns)?;
        let granule = system.granules.size();
        // What takes it out again does not ask any more.
        // SAFETY: the host cannot reach it any more, and no realm yet.
        let touch = |pa| unsafe { guarded::touch(pa, granule) };
        let left = granule::leave_host(system, granules, touch);
        let mut granules = left.ok_or(Status::ErrorInput)?;
        let size = granules.size();
        let mapped = tables.data_map(pe, &DataRun { size, ..run }, Fill::Known);
        let done = mapped.unwrap_or(0);
        granule::give_back(system, granules.split_off(done / granule));
        granules.unlock_as(State::Data);
        mapped.map(|_| run.ipa.get() + done).map_err(status)
    })
}

/// What a call names of a realm's memory, as much of it as one call does.
fn run_of(system: &System, tables: &Tables, ipas: Range<u64>, pa: u64) -> Outcome<DataRun> {
    let granule = system.granules.size();
    let left = ipas.end.saturating_sub(ipas.start);
    // A block is mapped whole. Without FEAT_S2FWB all of it is cleaned, and larger ones
    // are not made.
    let most = if system.features.fwb {
        system.granules.span_size()
    } else {
        STEP
    };
    let aligned = left.is_multiple_of(granule) && pa.is_multiple_of(granule);
    if left == 0 || !aligned || !tables.is_protected(Ipa::new(ipas.end - 1)) {
        return Err(Status::ErrorInput);
    }
    Ok(DataRun {
        ipa: Ipa::new(ipas.start),
        pa: Pa::new(pa),
        size: left.min(most),
    })
}

/// As much of a run as a realm has room for, and as there are granules in `state`: what
/// it is, and they.
fn lock_for<'a>(
    system: &'a System,
    tables: &Tables,
    run: DataRun,
    state: State,
) -> Outcome<(DataRun, LockedRun<'a>)> {
    let pa = run.pa.get();
    let size = tables.data_room(&run).map_err(status)?;
    let granules = system.granules.lock_run(pa, pa.saturating_add(size), state);
    let granules = granules.ok_or(Status::ErrorInput)?;
    let size = granules.size();
    Ok((DataRun { size, ..run }, granules))
}

/// Memory that was taken out of a realm.
#[derive(Clone, Copy, Debug, Default)]
pub struct Removed {
    /// Where it is.
    pub pa: u64,
    /// The IPA behind it.
    pub end: u64,
}

/// Takes out of a realm what it has at the start of `ipas`.
pub fn unmap_range(system: &System, rd: u64, ipas: Range<u64>) -> Walked<Removed> {
    walked_once(with_rtt(system, rd, |tables, pe| {
        let range = Ipa::new(ipas.start)..Ipa::new(ipas.end);
        let RemovedData { pa, size, top } = tables.data_unmap(pe, range, STEP)?;
        scrub_data(system, pa.get(), size);
        let (pa, end) = (pa.get(), ipas.start + size);
        Ok((Removed { pa, end }, top))
    }))
}

/// Scrubs what no realm has any more, unless that is too much for one call.
fn scrub_data(system: &System, pa: u64, size: u64) {
    let (mut at, end) = (pa, pa + size);
    while let Some(run) = system.granules.lock_run(at, end, State::Data) {
        at += run.size();
        if size > STEP {
            run.unlock_as(State::Unscrubbed);
        } else {
            // SAFETY: the tree has let go of it, and no TLB knows it.
            unsafe { phys::zero(run.pa(), run.size()) };
            run.unlock_as(State::Delegated);
        }
    }
}

/// Entries that one `RTT_INIT_RIPAS` changes at most, each of which is hashed: those of
/// a table with a granule of 4 KiB, 7 million instructions.
const INIT_ENTRIES: u64 = 512;

/// Makes addresses of a realm in state NEW memory, from `base` to the end of one
/// table at most, and no more than is hashed in one call: how far it came.
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
    let entry = tables.find(Ipa::new(base)).map_err(status)?;
    let most = INIT_ENTRIES * tables.geometry().span(entry.level);
    let top = top.min(base.saturating_add(most));
    let mut measured = realm.measured.lock();
    let reached = tables.init_ripas(Ipa::new(base)..Ipa::new(top), |base, top| {
        if let Some(measured) = measured.as_mut() {
            measured.add_ripas(base.get(), top.get());
        }
    });
    drop(measured);
    drop(rd_lock);
    reached.map(Ipa::get).map_err(status)
}

/// Changes what a vCPU asked to have changed, to the end of one table at most: how far
/// it came. The vCPU learns of it when it is entered.
pub fn set_ripas(system: &System, rd: u64, rec: u64, base: u64, top: u64) -> Outcome<u64> {
    if base >= top {
        return Err(Status::ErrorInput);
    }
    let _rd_lock = lock(system, rd, State::Rd)?;
    let _rec_lock = lock_idle_rec(system, rec)?;
    // SAFETY: the REC's lock is held.
    let vcpu = unsafe { Rec::at(rec) };
    if vcpu.rd != rd {
        return Err(Status::ErrorRec);
    }
    // SAFETY: locked and not running.
    let state = unsafe { &mut *vcpu.state.get() };
    let change = &mut state.ripas;
    if state.pending != Pending::Ripas || base != change.reached || top > change.top {
        return Err(Status::ErrorInput);
    }
    // SAFETY: the RD's lock is held.
    let realm = unsafe { Realm::at(rd) };
    let mut rtt = realm.rtt.lock();
    let tables = rtt.as_mut().ok_or(Status::ErrorInput)?;
    let (range, pe) = (Ipa::new(base)..Ipa::new(top), &mut system.host.pe());
    let reached = tables
        .set_ripas(pe, range, change.to, change.destroyed)
        .map_err(status)?;
    change.reached = reached.get();
    Ok(change.reached)
}

/// As [`with_rtt`] for a command of a realm in state NEW, which it stays meanwhile.
fn with_new_realm<R>(
    system: &System,
    rd: u64,
    f: impl FnOnce(&Realm, &mut Tables, &mut maintenance::Pe) -> Outcome<R>,
) -> Outcome<R> {
    let _rd_lock = lock(system, rd, State::Rd)?;
    // SAFETY: the RD's lock is held.
    let realm = unsafe { Realm::at(rd) };
    if realm.state() != realm::State::New {
        return Err(Status::ErrorRealm(0));
    }
    let mut rtt = realm.rtt.lock();
    let tables = rtt.as_mut().ok_or(Status::ErrorInput)?;
    f(realm, tables, &mut system.host.pe())
}

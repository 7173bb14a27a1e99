//! `REALM_CREATE`, `REALM_ACTIVATE`, `REALM_DESTROY`.

use ::rmi::Status;
use ::rmi::params::{RealmFlags, RealmParams};
use arrayvec::ArrayVec;
use attest::Algorithm;
use pgtable::{Ipa, Pa, RemovedLeaf, Rtt, Start, Vmid};

use super::args::{self, copy_from_host, lock};
use super::{NUM_BPS, NUM_WPS, Outcome};
use crate::ending;
use crate::features::GranuleSupport;
use crate::measure::Measurements;
use crate::memory::granule::{Locked, State};
use crate::memory::{host, phys};
use crate::realm::{self, Identity, Mode, Realm, Roots, RttMem};
use crate::system::System;
use crate::vmid;

/// Most root granules: 16 concatenated tables.
const MAX_ROOTS: usize = 16;

/// Builds a realm from its parameters, in state NEW.
pub fn create(system: &'static System, rd: u64, params: u64) -> Outcome {
    let params: RealmParams = copy_from_host(system, params)?;
    let vmid = vmid::of_number(params.vmid, system.features.vmid16);
    let identity = identity(&params, vmid.ok_or(Status::ErrorInput)?)?;
    let lpa2 = identity.flags.contains(RealmFlags::LPA2);
    if lpa2 && system.features.stage2(system.granule) != GranuleSupport::Lpa2 {
        return Err(Status::ErrorInput);
    }
    let level = args::level(params.rtt_level_start)?;
    let geometry = host::geometry(
        &system.features,
        system.granule,
        params.s2sz,
        lpa2,
        Start::At(level),
    )
    .map_err(|_| Status::ErrorInput)?;
    let roots = params.rtt_num_start as usize;
    if roots != geometry.root_tables() || !params.rtt_base.is_multiple_of(geometry.root_align()) {
        return Err(Status::ErrorInput);
    }

    let end = (roots as u64)
        .checked_mul(system.granules.size())
        .and_then(|size| params.rtt_base.checked_add(size))
        .ok_or(Status::ErrorInput)?;
    if (params.rtt_base..end).contains(&rd) {
        return Err(Status::ErrorInput);
    }
    if identity.mode != Mode::Plain {
        ending::protect_memory(system);
    }
    // By address: all are of one state.
    let low = (rd < params.rtt_base)
        .then(|| lock(system, rd, State::Delegated))
        .transpose()?;
    let mut root_locks = ArrayVec::<Locked<'_>, MAX_ROOTS>::new();
    for root in (params.rtt_base..end).step_by(system.granules.size() as usize) {
        root_locks.push(lock(system, root, State::Delegated)?);
    }
    let rd_lock = match low {
        Some(low) => low,
        None => lock(system, rd, State::Delegated)?,
    };
    if !system.vmids.claim(identity.vmid) {
        return Err(Status::ErrorInput);
    }
    let root = Pa::new(params.rtt_base);
    let tables = RttMem {
        granules: &system.granules,
    };
    let protected_end = Ipa::new(identity.mode.shared_from(params.s2sz));
    let Ok(rtt) = Rtt::new(
        geometry,
        root,
        Vmid::new(identity.vmid),
        tables,
        protected_end,
    ) else {
        system.vmids.release(identity.vmid);
        return Err(Status::ErrorInput);
    };
    let roots = Roots {
        base: params.rtt_base,
        count: roots as u64,
    };
    let realm = Realm::new(identity, roots, rtt);
    log::debug!(
        "realm {rd:#x}: VTCR_EL2 {:#x}, VTTBR_EL2 {:#x}",
        realm.vtcr,
        realm.vttbr
    );
    // SAFETY: a locked, delegated granule is EL2's, aligned, and large enough.
    unsafe { phys::pointer::<Realm>(rd).write(realm) };
    for root in root_locks {
        root.unlock_as(State::Rtt);
    }
    rd_lock.unlock_as(State::Rd);
    Ok(())
}

/// What a realm with these parameters is. Of a realm's own are looked at: how many
/// breakpoints and watchpoints, less one and not 0, and the hash.
fn identity(params: &RealmParams, vmid: u16) -> Outcome<Identity> {
    let flags = RealmFlags::from_bits(params.flags).ok_or(Status::ErrorInput)?;
    let mode = Mode::of(flags).ok_or(Status::ErrorInput)?;
    // SVE and PMU are hidden from all.
    if flags.intersects(RealmFlags::SVE | RealmFlags::PMU) {
        return Err(Status::ErrorInput);
    }
    let measured = if mode == Mode::Realm {
        let counts = [(params.num_bps, NUM_BPS), (params.num_wps, NUM_WPS)];
        let has = |(asked, most): &(u8, u8)| (1..=*most).contains(asked);
        let algorithm = Algorithm::from_raw(params.hash_algo).filter(|_| counts.iter().all(has));
        let algorithm = algorithm.ok_or(Status::ErrorInput)?;
        Some(Measurements::of_realm(algorithm, params))
    } else {
        None
    };
    Ok(Identity {
        flags,
        mode,
        vmid,
        rpv: params.rpv,
        measured,
    })
}

/// Lets the realm run.
pub fn activate(system: &System, rd: u64) -> Outcome {
    let _lock = lock(system, rd, State::Rd)?;
    // SAFETY: the RD's lock is held.
    let realm = unsafe { Realm::at(rd) };
    if realm.state() != realm::State::New {
        return Err(Status::ErrorRealm(0));
    }
    realm.set_state(realm::State::Active);
    Ok(())
}

/// Ends a realm that has no REC and no table below its root: RD and root go back
/// to DELEGATED, the VMID is free. `None`: call again.
pub fn destroy(system: &System, rd: u64) -> Outcome<Option<()>> {
    let rd_lock = lock(system, rd, State::Rd)?;
    // SAFETY: the RD's lock is held.
    let realm = unsafe { Realm::at(rd) };
    if rd_lock.count() != 0 {
        return Err(Status::ErrorRealm(0));
    }
    let mut rtt = realm.rtt.lock();
    let Some(tables) = rtt.as_mut() else {
        return Err(Status::ErrorRealm(0));
    };
    if tables.is_live() {
        return Err(Status::ErrorRealm(0));
    }
    let mut pe = system.host.pe();
    let mut unmapped = |leaf: RemovedLeaf| system.granules.take_back(leaf.pa().get(), leaf.size());
    let end = 1 << tables.geometry().ipa_bits();
    let done = tables
        .retire(&mut pe, &mut unmapped, &mut args::budget())
        .map_err(|_| Status::ErrorRealm(0))?;
    if done.get() < end {
        // Between two turns no vCPU comes to it, and nothing else that would keep it.
        realm.set_state(realm::State::SystemOff);
        return Ok(None);
    }
    *rtt = None;
    drop(rtt);
    realm.posted.end(&system.granules);
    let Roots { base, count } = realm.roots;
    system.vmids.release(realm.vmid);
    let size = system.granules.size();
    for root in (0..count).map(|n| base + n * size) {
        if let Some(lock) = system.granules.get(root).and_then(|g| g.lock(State::Rtt)) {
            // SAFETY: no walker and no TLB knows the root any more.
            unsafe { phys::zero(root, size) };
            lock.unlock_as(State::Delegated);
        }
    }
    // SAFETY: nobody else has the RD: its lock is held and its count is 0.
    unsafe { phys::zero(rd, size) };
    rd_lock.unlock_as(State::Delegated);
    Ok(Some(()))
}

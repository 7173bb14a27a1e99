//! `REC_CREATE`, `REC_DESTROY`, `REC_ENTER`, `PSCI_COMPLETE`, `REC_AUX_COUNT`.

use core::mem::offset_of;
use core::sync::atomic::Ordering;

use ::rmi::params::{MAX_REC_AUX, RecFlags, RecParams, mpidr_index};
use ::rmi::run::{EnterFlags, ExitReason, RecEnter, RecExit, RecRun};
use ::rmi::{Status, psci};
use arm64::bits;
use zerocopy::transmute_ref;

use super::Outcome;
use super::args::{copy_from_host, delegated, lock, lock_idle_rec, pin};
use crate::cpu::Cpu;
use crate::guest::exits;
use crate::guest::host_lrs::{self, Given};
use crate::guest::interrupts::intid;
use crate::guest::record::{Entry, Record};
use crate::guest::rsi;
use crate::guest::run;
use crate::guest::vcpu::RunningVcpu;
use crate::memory::granule::State;
use crate::memory::guarded::{self, ExternalAbort};
use crate::memory::phys;
use crate::realm::{self, Realm};
use crate::rec::{Pending, Rec, VcpuState};
use crate::system::System;

/// A REC fits in its granule: it needs no other.
pub fn aux_count(system: &System, rd: u64) -> Outcome<u64> {
    let _lock = lock(system, rd, State::Rd)?;
    Ok(0)
}

/// Makes a vCPU of a realm in state NEW.
pub fn create(system: &System, list_registers: usize, rd: u64, rec: u64, params: u64) -> Outcome {
    let params: RecParams = copy_from_host(system, params)?;
    let flags = RecFlags::from_bits(params.flags).ok_or(Status::ErrorInput)?;
    if params.num_aux > MAX_REC_AUX as u64 {
        return Err(Status::ErrorInput);
    }
    let rd_lock = lock(system, rd, State::Rd)?;
    delegated(system, rec)?;
    // SAFETY: the RD's lock is held.
    let realm = unsafe { Realm::at(rd) };
    if realm.state() != realm::State::New {
        return Err(Status::ErrorRealm(0));
    }
    let index = realm.created.load(Ordering::Acquire);
    if index as usize >= realm.most_recs() {
        return Err(Status::ErrorRealm(0));
    }
    if mpidr_index(params.mpidr) != Some(index) || params.num_aux != 0 {
        return Err(Status::ErrorInput);
    }
    let mut vcpu = Rec::new(rd, index as usize, params.mpidr, list_registers);
    let gprs = &mut vcpu.state.get_mut().gprs;
    gprs.pc = params.pc;
    gprs.x[..8].copy_from_slice(&params.gprs);
    vcpu.set_runnable(flags.contains(RecFlags::RUNNABLE));
    // A PPI of the guest's stands for one of the machine's: both are PPIs.
    let _ = vcpu
        .redistributor
        .get_mut()
        .link(intid::VIRTUAL_TIMER, system.gic.ppi.virtual_timer);
    // The realm's locks before the granule's, as every command has it.
    let vgic = realm.vgic.lock();
    let rec_lock = lock(system, rec, State::Delegated)?;
    // SAFETY: a locked, delegated granule is EL2's, aligned, and large enough.
    unsafe { phys::pointer::<Rec>(rec).write(vcpu) };
    if let Some(measured) = realm.measured.lock().as_mut() {
        measured.add_rec(&params);
    }
    rd_lock.granule().get();
    realm.set_rec(index as usize, rec);
    realm.created.store(index + 1, Ordering::Release);
    drop(vgic);
    // Last: from here on it may be destroyed, which takes it off the list and
    // uncounts it, and does not wait for the RD's lock.
    rec_lock.unlock_as(State::Rec);
    Ok(())
}

/// Ends a vCPU that does not run.
pub fn destroy(system: &System, rec: u64) -> Outcome {
    let rec_lock = lock_idle_rec(system, rec)?;
    // SAFETY: the REC's lock is held.
    let vcpu = unsafe { Rec::at(rec) };
    let (rd, index) = (vcpu.rd, vcpu.index);
    // SAFETY: this REC counts in its RD, so the RD is there.
    let realm = unsafe { Realm::at(rd) };
    {
        let _vgic = realm.vgic.lock();
        realm.set_rec(index, 0);
    }
    // SAFETY: nobody else has it: its lock is held, its count is 0, and the
    // realm does not list it any more.
    unsafe { phys::zero(rec, system.granules.size()) };
    rec_lock.unlock_as(State::Delegated);
    if let Some(rd) = system.granules.get(rd) {
        rd.put();
    }
    Ok(())
}

/// Runs a vCPU on this PE until the host is needed.
pub fn enter(system: &System, cpu: &mut Cpu, rec: u64, page: u64) -> Outcome {
    let _page = pin(system, page)?;
    let rec_lock = lock_idle_rec(system, rec)?;
    let granule = rec_lock.granule();
    let enter = offset_of!(RecRun, enter) as u64;
    let gprs = offset_of!(RecEnter, gprs) as u64;
    // SAFETY: the page is the host's RAM, pinned as such. Copied once.
    let read = |offset| unsafe { guarded::read::<u64>(page + enter + offset) };
    let (Ok(flags), Ok(value)) = (read(0), read(gprs)) else {
        return Err(Status::ErrorInput);
    };
    // SAFETY: the REC's lock is held, and then its count.
    let vcpu = unsafe { Rec::at(rec) };
    // SAFETY: it counts in its RD.
    let realm = unsafe { Realm::at(vcpu.rd) };
    let given = if realm.host_lrs {
        // SAFETY: the page is the host's RAM, pinned as such.
        Some(unsafe { Given::read(page) }.map_err(|_| Status::ErrorInput)?)
    } else {
        None
    };
    match realm.state() {
        realm::State::New => return Err(Status::ErrorRealm(0)),
        realm::State::SystemOff => return Err(Status::ErrorRealm(1)),
        realm::State::Active => {}
    }
    if !vcpu.runnable() {
        return Err(Status::ErrorRec);
    }
    // SAFETY: the lock is held and nobody runs it.
    let state = unsafe { &mut *vcpu.state.get() };
    let flags = EnterFlags::from_bits(flags).ok_or(Status::ErrorInput)?;
    if matches!(state.pending, Pending::CpuOn(..) | Pending::AffinityInfo(_)) {
        return Err(Status::ErrorRec);
    }
    if let Some(given) = &given {
        given.check(&cpu.gic).map_err(|_| Status::ErrorRec)?;
    }
    if !answers(&state.pending, flags) {
        return Err(Status::ErrorRec);
    }
    if let Some(given) = &given {
        given.take(&cpu.gic, state);
    }
    granule.get();
    drop(rec_lock);

    let mut guest = RunningVcpu {
        cpu,
        realm,
        rec: vcpu,
    };
    run::begin(&guest, rec);
    let record = match rsi::finish_host_call(&guest, state, page + enter + gprs) {
        Ok(()) => run::run(&mut guest, rec, state, &Entry { flags, value }),
        Err(missing) => run::not_entered(&guest, state, missing.exit()),
    };

    // SAFETY: the page is still pinned as the host's.
    let mut written = unsafe { write_exit(page, &record, state) };
    if realm.host_lrs {
        // SAFETY: as above.
        written = written.and(unsafe { host_lrs::write_exit(page, state) });
    }
    if exits::is_cpu_off(&record) {
        go_off(realm, vcpu, state);
    }
    granule.put();
    // A page that was read and cannot be written: the vCPU has run, and the host
    // does not learn how far.
    written.map_err(|_| Status::ErrorInput)
}

/// Whether what the host asks for is an answer to what the last exit left open.
fn answers(pending: &Pending, flags: EnterFlags) -> bool {
    let answers = EnterFlags::EMUL_MMIO | EnterFlags::INJECT_SEA;
    match pending {
        Pending::Mmio(..) => true,
        // An SEA answers any abort, and is all that is done then.
        Pending::Abort(..) => flags & answers != EnterFlags::EMUL_MMIO,
        _ => !flags.intersects(answers),
    }
}

/// Writes an exit record into the run page.
///
/// # Safety
/// The page is RAM of the host's.
unsafe fn write_exit(page: u64, record: &Record, state: &VcpuState) -> Result<(), ExternalAbort> {
    let exit = page + offset_of!(RecRun, exit) as u64;
    // SAFETY: the caller vouches for the page, a granule, and so aligned; `RecRun` is no
    // larger, and its `exit` is in it.
    unsafe {
        guarded::write_exit(exit, transmute_ref!(record), transmute_ref!(&state.exit))?;
        if record.reason == ExitReason::HostCall as u64 {
            let gprs = offset_of!(RecExit, gprs) as u64;
            guarded::write(exit + gprs, &state.host_call.gprs)?;
        }
    }
    Ok(())
}

/// Answers the PSCI call that `calling` waits for, about `target`.
pub fn psci_complete(system: &System, calling: u64, target: u64, status: i64) -> Outcome {
    if calling == target || !matches!(status, psci::SUCCESS | psci::DENIED) {
        return Err(Status::ErrorInput);
    }
    // By address, as the granules' lock order has it.
    let (low, high) = (calling.min(target), calling.max(target));
    let low_lock = lock(system, low, State::Rec)?;
    let high_lock = lock(system, high, State::Rec)?;
    let (caller_lock, target_lock) = if low == calling {
        (&low_lock, &high_lock)
    } else {
        (&high_lock, &low_lock)
    };
    // SAFETY: both RECs' locks are held.
    let (caller, other) = unsafe { (Rec::at(calling), Rec::at(target)) };
    if caller_lock.count() != 0 || caller.rd != other.rd {
        return Err(Status::ErrorInput);
    }
    // SAFETY: locked and not running.
    let state = unsafe { &mut *caller.state.get() };
    let other_index = |mpidr: u64| mpidr_index(mpidr) == Some(other.index as u64);
    // On its way out of CPU_OFF on another PE, it is not off yet.
    let is_on = other.runnable() || target_lock.count() != 0;
    let answer = match state.pending {
        // Denied only of one that is off.
        Pending::CpuOn(mpidr, entry, context)
            if other_index(mpidr) && (status == psci::SUCCESS || !is_on) =>
        {
            if is_on {
                psci::ALREADY_ON
            } else {
                if status == psci::SUCCESS {
                    start(other, entry, context, state.el1.sctlr);
                }
                status
            }
        }
        Pending::AffinityInfo(mpidr) if other_index(mpidr) && status == psci::SUCCESS => {
            if is_on {
                psci::AFFINITY_ON
            } else {
                psci::AFFINITY_OFF
            }
        }
        _ => return Err(Status::ErrorInput),
    };
    state.pending = Pending::Nothing;
    state.gprs.x[..4].copy_from_slice(&[answer as u64, 0, 0, 0]);
    Ok(())
}

/// A vCPU is off from here on: its redistributor sleeps, and what others write there stays
/// when it comes; its timers are off, and so are their lines. Whoever ends the machine may
/// have scrubbed the REC by now: nothing of the guest's is written.
pub(super) fn go_off(realm: &Realm, vcpu: &Rec, state: &mut VcpuState) {
    let index = vcpu.index;
    (state.vtimer, state.ptimer) = Default::default();
    realm.with_vgic(Some(index), |vgic| {
        vgic.reset_vcpu(index);
        for timer in [intid::VIRTUAL_TIMER, intid::PHYSICAL_TIMER] {
            // Both are PPIs, and the vCPU exists.
            let _ = vgic.set_ppi(index, timer, false);
        }
    });
    vcpu.set_runnable(false);
}

/// Turns a vCPU on, with data as big-endian as its caller's, by whose SCTLR_EL1. Its
/// granule is locked and it does not run.
fn start(vcpu: &Rec, entry: u64, context: u64, sctlr: u64) {
    // SAFETY: as the caller says.
    let state = unsafe { &mut *vcpu.state.get() };
    state.reset(entry, context);
    state.el1.sctlr |= sctlr & bits!(SCTLR_EL1: EE);
    vcpu.set_runnable(true);
}

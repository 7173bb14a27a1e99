//! `REC_READ` and `REC_WRITE`: a plain guest's registers, for a host that
//! emulates what the syndrome does not describe.
//!
//! A plain guest's memory is the host's to change anyway, so its registers are
//! no secret. What the host gives back is data: it reaches EL1's registers, the
//! PC and the flags, never the rest of PSTATE.

use ::rmi::Status;
use ::rmi::registers::{Finish, Registers};
use zerocopy::FromZeros;

use super::Outcome;
use super::args::{lock_idle_rec, pin_around};
use crate::cpu::inject;
use crate::memory::guarded;
use crate::realm::Realm;
use crate::rec::{NO_PE, Pending, Rec, VcpuState};
use crate::system::System;

/// N, Z, C and V.
const FLAGS: u64 = 0xf << 28;
/// PSTATE.SS and BTYPE, which an instruction that was executed leaves clear.
const OF_NEXT: u64 = 1 << 21 | 0b11 << 10;

/// Does `f` with the registers of a plain guest's vCPU that does not run, and
/// the page at `pa`, which is in a granule of the host's.
fn with<R>(
    system: &System,
    rec: u64,
    pa: u64,
    f: impl FnOnce(&mut VcpuState) -> Result<R, Status>,
) -> Result<R, Status> {
    if !pa.is_multiple_of(size_of::<Registers>().next_power_of_two() as u64) {
        return Err(Status::ErrorInput);
    }
    let _pin = pin_around(system, pa, size_of::<Registers>() as u64)?;
    let _lock = lock_idle_rec(system, rec)?;
    // SAFETY: the REC's lock is held.
    let vcpu = unsafe { Rec::at(rec) };
    // SAFETY: it counts in its RD.
    let realm = unsafe { Realm::at(vcpu.rd) };
    if realm.is_confidential() {
        return Err(Status::ErrorInput);
    }
    // SAFETY: the REC's lock is held, and it does not run.
    f(unsafe { &mut *vcpu.state.get() })
}

/// Gives the host a vCPU's registers.
pub fn read(system: &System, rec: u64, pa: u64) -> Outcome {
    with(system, rec, pa, |state| {
        let mut out = Registers::new_zeroed();
        for (out, q) in out.v.iter_mut().zip(state.fp.q()) {
            *out = [*q as u64, (*q >> 64) as u64];
        }
        let (gprs, el1) = (&state.gprs, &state.el1);
        out.x = gprs.x;
        out.sp = [el1.sp_el0, el1.sp_el1];
        (out.pc, out.pstate) = (gprs.pc, gprs.pstate);
        (out.sctlr, out.tcr) = (el1.sctlr, el1.tcr);
        out.ttbr = [el1.ttbr0, el1.ttbr1];
        // SAFETY: inside a granule of the host's, which `with` has pinned.
        let written = unsafe { guarded::write(pa, &out) };
        written.map_err(|_| Status::ErrorInput)
    })
}

/// Takes a vCPU's registers, and ends its last exit.
pub fn write(system: &System, rec: u64, pa: u64) -> Outcome {
    with(system, rec, pa, |state| {
        // SAFETY: inside a granule of the host's, which `with` has pinned.
        // Copied once.
        let new = unsafe { guarded::read::<Registers>(pa) };
        let new = new.map_err(|_| Status::ErrorInput)?;
        let finish = Finish::from_raw(new.finish).ok_or(Status::ErrorInput)?;
        if !matches!(state.pending, Pending::Abort(..) | Pending::Mmio(..)) {
            return Err(Status::ErrorRec);
        }
        state.pending = Pending::Nothing;
        if finish == Finish::Again {
            return Ok(());
        }
        take(state, &new);
        if finish == Finish::Abort {
            let VcpuState { gprs, el1, .. } = state;
            inject::abort_saved(gprs, el1, new.fetch & 1 != 0, new.iss, new.far);
        }
        Ok(())
    })
}

fn take(state: &mut VcpuState, new: &Registers) {
    let v = new
        .v
        .map(|[low, high]| u128::from(low) | u128::from(high) << 64);
    if v != *state.fp.q() {
        state.fp.set_q(v);
        // Whatever a PE still holds of them is old.
        state.fp_pe = NO_PE;
    }
    let (gprs, el1) = (&mut state.gprs, &mut state.el1);
    gprs.x = new.x;
    [el1.sp_el0, el1.sp_el1] = new.sp;
    if gprs.pc != new.pc {
        gprs.pstate &= !OF_NEXT;
    }
    gprs.pc = new.pc;
    gprs.pstate = gprs.pstate & !FLAGS | new.pstate & FLAGS;
}

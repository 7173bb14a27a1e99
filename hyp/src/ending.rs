//! The end of the machine: what a confidential guest's memory held does not outlive it.
//!
//! Firmware may start the next system with RAM as it is. So before EL2 asks for a
//! power-off or a reset, no PE runs a guest any more, and what was a guest's is zero, in
//! memory and not in a cache alone. No lock is taken: whoever has one may be stopped.

use core::sync::atomic::Ordering;

use arm64::regs::{CNTFRQ_EL0, CNTPCT_EL0, affinity};

use crate::cpu::dying;
use crate::cpu::pe::{self, NO_REC, Pe};
use crate::memory::granule::State;
use crate::memory::{guarded, phys};
use crate::system::System;

/// Seconds that a PE has to come out of its guest.
const PATIENCE: u64 = 5;

/// A PE runs a guest, and does not stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StillRuns {
    /// Its affinity.
    pub mpidr: u64,
}

/// Stops the other PEs and leaves nothing of confidential guests in RAM. What the host
/// calls from here on is not served; where nothing is a
/// guest's or delegated, there is nothing to wait for.
///
/// # Errors
/// A PE that goes on: then nothing was scrubbed, and the machine must not be reset.
pub fn scrub(system: &System) -> Result<(), StillRuns> {
    // What was a guest's may be DELEGATED by now: zero, perhaps in a cache alone.
    const TO_SCRUB: [State; 5] = [
        State::Data,
        State::Rec,
        State::Rtt,
        State::Rd,
        State::Delegated,
    ];
    dying::stop_others();
    let mut any = false;
    for state in TO_SCRUB {
        system.granules.each(state, |_| any = true);
    }
    if !any {
        return Ok(());
    }
    pe::interrupt_others();
    wait_for(pe::all())?;
    for state in TO_SCRUB {
        system.granules.each(state, |pa| scrub_granule(system, pa));
    }
    Ok(())
}

fn scrub_granule(system: &System, pa: u64) {
    let size = system.granules.size();
    // SAFETY: RAM that is no lower level's to reach; no PE runs a realm, and none of
    // EL2's commands comes to an end any more.
    unsafe {
        phys::zero(pa, size);
        guarded::clean_invalidate(pa, size, system.features.dcache_line);
    }
}

/// Waits until none of the others runs a guest.
fn wait_for(pes: &[Pe]) -> Result<(), StillRuns> {
    let second = CNTFRQ_EL0.get().max(1);
    let end = CNTPCT_EL0
        .get()
        .saturating_add(PATIENCE.saturating_mul(second));
    let me = affinity();
    let runs = |pe: &&Pe| pe.mpidr != me && pe.runs().load(Ordering::SeqCst) != NO_REC;
    while let Some(pe) = pes.iter().find(runs) {
        if CNTPCT_EL0.get() > end {
            return Err(StillRuns { mpidr: pe.mpidr });
        }
        core::hint::spin_loop();
    }
    Ok(())
}

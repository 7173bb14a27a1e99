//! The end of the machine: what a confidential guest's memory held does not outlive it.
//!
//! Firmware may start the next system with RAM as it is. So before EL2 asks for a
//! power-off or a reset, no PE runs a guest any more, and what was a guest's is zero, in
//! memory and not in a cache alone. No lock is taken: whoever has one may be stopped.

use core::sync::atomic::Ordering;

use arm64::instr;
use arm64::regs::{CNTFRQ_EL0, CNTPCT_EL0, affinity};

use crate::cpu::dying;
use crate::cpu::pe::{self, NO_REC, Pe};
use crate::memory::granule::State;
use crate::memory::phys;
use crate::system::System;

/// Seconds that a PE has to come out of its guest.
const PATIENCE: u64 = 5;

/// What is a guest's; and what may have been, and is zero in a cache alone.
const OF_GUESTS: [State; 6] = [
    State::Data,
    State::Unscrubbed,
    State::Rec,
    State::Rtt,
    State::Rd,
    State::Delegated,
];

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
    dying::stop_others();
    let mut any = false;
    for state in OF_GUESTS {
        system.granules.each(state, |_| any = true);
    }
    if !any {
        return Ok(());
    }
    pe::interrupt_others();
    wait_for(pe::all())?;
    scrub_all(system);
    Ok(())
}

fn scrub_all(system: &System) {
    for state in OF_GUESTS {
        system.granules.each(state, |pa| scrub_granule(system, pa));
    }
}

/// EL2 may be dying, and then runs on SP_EL0: this is no place for a guarded routine,
/// which ends on SP_EL2. A granule that is a guest's has answered before.
fn scrub_granule(system: &System, pa: u64) {
    let size = system.granules.size();
    // SAFETY: RAM that is no lower level's to reach; no PE runs a realm, and none of
    // EL2's commands comes to an end any more.
    unsafe { phys::zero(pa, size) };
    instr::clean_invalidate(pa, size, system.features.dcache_line);
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

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use crate::rmi::fake::Host;
    use ::rmi::{Command, fid};
    use arm64::recording::{self, Event};
    use pgtable::Granule;
    use std::vec::Vec;

    /// What was a guest's and is delegated by now is zero, perhaps in a cache alone.
    #[test]
    fn what_is_delegated_is_clean_at_the_end() {
        let mut host = Host::new(Granule::K4, 8 << 20);
        let pages: Vec<_> = (3..6).map(|n| host.page(n)).collect();
        for &pa in &pages {
            let answer = host.call(Command::GranuleDelegate { pa }.encode());
            assert_eq!(answer[0], 0, "{:#x}", fid::RMI_GRANULE_DELEGATE);
        }
        let done = recording::of(|| scrub_all(host.system));
        let lines = pages
            .iter()
            .flat_map(|pa| (*pa..pa + host.size).step_by(64));
        for line in lines {
            let cleaned = Event::Instruction("dc civac", Some(line));
            assert!(done.contains(&cleaned), "{line:#x}");
        }
    }
}

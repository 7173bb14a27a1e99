//! The end of the machine: what a confidential guest's memory held does not outlive it,
//! nor does the key that signs realms' tokens.
//!
//! Firmware may start the next system with RAM as it is. So before EL2 asks for a
//! power-off or a reset, no PE runs a guest any more, and what was a guest's is zero, in
//! memory and not in a cache alone. No lock is taken: whoever has one may be stopped.
//!
//! A reset from outside asks nobody. Firmware that has PSCI's MEM_PROTECT (DEN0022,
//! 5.1.20) clears RAM then; it is asked for with the first confidential guest. The host
//! has no such call, and so cannot end it.

use core::sync::atomic::Ordering;

use ::rmi::fid;
use ::rmi::psci::{MEM_PROTECT, MEM_PROTECT_CHECK_RANGE, SUCCESS};
use arm64::instr;
use arm64::regs::{CNTPCT_EL0, affinity};
use arm64::steering::smc;
use log::info;

use crate::cpu::dying;
use crate::cpu::pe::{self, NO_REC, Pe, ticks};
use crate::memory::granule::{Spans, State};
use crate::memory::phys;
use crate::memory::region::Region;
use crate::system::System;

/// Seconds that a PE has to come out of its guest.
const PATIENCE: u64 = 5;

/// What is a guest's; and what may have been, and is zero in a cache alone. A granule
/// counts in its span from before it is any of these until nothing is in it any more.
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

/// Has the firmware clear RAM at a reset that EL2 does not see, if it can: once, before
/// there is a secret.
pub fn protect_memory(system: &System) {
    // SAFETY: these calls write no memory before a reset.
    let firmware = |function: u32, [a, b]: [u64; 2]| unsafe {
        smc([function.into(), a, b, 0, 0, 0])[0] as i32
    };
    system.protection_asked.call_once(|| {
        let protected = is_protected(firmware, system.granules.ram());
        info!("the firmware clears RAM after a reset: {protected}");
    });
}

/// Turns the protection on; whether it is there for all of `ram`.
fn is_protected(
    firmware: impl Fn(u32, [u64; 2]) -> i32,
    mut ram: impl Iterator<Item = Region>,
) -> bool {
    let has = |function: u32| firmware(fid::PSCI_FEATURES, [function.into(), 0]) >= 0;
    let checks = |of: Region| {
        i64::from(firmware(MEM_PROTECT_CHECK_RANGE, [of.base(), of.size()])) == SUCCESS
    };
    // It answers what was before: on or off.
    has(MEM_PROTECT)
        && firmware(MEM_PROTECT, [1, 0]) >= 0
        && has(MEM_PROTECT_CHECK_RANGE)
        && ram.all(checks)
}

/// Stops the other PEs and leaves nothing of confidential guests in RAM, and no key. What
/// the host calls from here on is not served; where nothing is a guest's or delegated,
/// there is nothing to wait for.
///
/// # Errors
/// A PE that goes on: then nothing was scrubbed, and the machine must not be reset.
pub fn scrub(system: &System, spans: Spans) -> Result<(), StillRuns> {
    dying::stop_others();
    let mut any = false;
    system.granules.each(spans, &OF_GUESTS, |_| any = true);
    if any {
        pe::interrupt_others();
        wait_for(pe::all())?;
    }
    scrub_all(system, spans);
    Ok(())
}

fn scrub_all(system: &System, spans: Spans) {
    system
        .granules
        .each(spans, &OF_GUESTS, |pa| scrub_granule(system, pa));
    // SAFETY: no PE runs a realm, and so none signs.
    unsafe { system.forget_keys() };
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
    let end = CNTPCT_EL0.get().saturating_add(ticks(PATIENCE));
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
    use ::rmi::params::RealmFlags;
    use ::rmi::psci::{self, Psci};
    use ::rmi::{Command, fid};
    use arm64::recording::{self, Event};
    use core::cell::RefCell;
    use pgtable::Granule;
    use std::vec::Vec;

    /// A firmware that has these calls, and answers of what ranges it protects.
    fn asked(has: &[u32], now: i32, last: i32) -> (bool, Vec<(u32, [u64; 2])>) {
        let asked = RefCell::new(Vec::new());
        let ram = [(0x4000_0000, 0x100_0000), (0x8_0000_0000, 0x1000)];
        let ram = ram.map(|(base, size)| Region::new(base, size).expect("no overflow"));
        let firmware = |function, arguments: [u64; 2]| {
            asked.borrow_mut().push((function, arguments));
            match function {
                fid::PSCI_FEATURES if has.contains(&(arguments[0] as u32)) => 0,
                MEM_PROTECT => now,
                MEM_PROTECT_CHECK_RANGE if arguments[0] == ram[1].base() => last,
                MEM_PROTECT_CHECK_RANGE => 0,
                _ => -1,
            }
        };
        let protected = is_protected(firmware, ram.into_iter());
        (protected, asked.into_inner())
    }

    #[test]
    fn memory_is_protected_where_the_firmware_can() {
        let both = [MEM_PROTECT, MEM_PROTECT_CHECK_RANGE];
        // It was off, or on.
        for before in [0, 1] {
            let (protected, asked) = asked(&both, before, 0);
            assert!(protected);
            assert!(asked.contains(&(MEM_PROTECT, [1, 0])));
            let last = (MEM_PROTECT_CHECK_RANGE, [0x8_0000_0000, 0x1000]);
            assert_eq!(asked.last(), Some(&last));
        }
        // QEMU's has neither, and is not asked for what it has not.
        let (protected, all) = asked(&[], 0, 0);
        assert!(!protected && all == [(fid::PSCI_FEATURES, [MEM_PROTECT.into(), 0])]);
        for (has, now, last) in [(&both[..1], 0, 0), (&both, -1, 0), (&both, 0, -3)] {
            assert!(!asked(has, now, last).0, "{has:x?}, {now}, {last}");
        }
    }

    #[test]
    fn the_firmware_is_asked_with_the_first_confidential_guest() {
        let calls = |host: &mut Host, mode| {
            let events = recording::of(|| host.realm_of(mode));
            let calls = events.into_iter().filter_map(|event| match event {
                Event::Call("smc", function) => Some(function),
                _ => None,
            });
            calls.collect::<Vec<_>>()
        };
        let mut host = Host::new(Granule::K4, 8 << 20);
        assert_eq!(calls(&mut host, RealmFlags::NONCONF), []);
        drop(host);
        let mut host = Host::new(Granule::K4, 8 << 20);
        let first = calls(&mut host, RealmFlags::PROTECTED);
        assert_eq!(first.first(), Some(&fid::PSCI_FEATURES.into()));
        assert!(host.system.protection_asked.is_completed());
        let more = recording::of(|| protect_memory(host.system));
        assert_eq!(more, [], "once is enough");
    }

    /// The host cannot end what EL2 has asked for: there is no such call.
    #[test]
    fn protection_of_memory_is_no_call_of_a_lower_level() {
        for function in [MEM_PROTECT, MEM_PROTECT_CHECK_RANGE] {
            for function in [function, function ^ 1 << 30] {
                assert!(Psci::read(function, [0; 3]).is_none());
                assert_eq!(psci::features(function.into()), psci::NOT_SUPPORTED);
            }
        }
    }

    /// Whatever of a guest's it is, and what nobody has scrubbed yet.
    #[test]
    fn nothing_of_a_guests_is_left_at_the_end() {
        let host = Host::new(Granule::K4, 8 << 20);
        let states = [
            State::Delegated,
            State::Rd,
            State::Rec,
            State::Data,
            State::Rtt,
            State::Unscrubbed,
        ];
        for (n, state) in (3..).zip(states) {
            // SAFETY: a page of the fake machine's.
            unsafe { phys::write(host.page(n), [0x5au8; 4096]) };
            let (page, granules) = (host.page(n), &host.system.granules);
            let run = granules.lock_run(page, page + 4096, State::Ns);
            let run = run.expect("the host's");
            assert!(run.leave_host());
            run.unlock_as(state);
        }
        scrub_all(host.system, Spans::Counted);
        for (n, state) in (3..).zip(states) {
            assert!(host.is_zero(n), "{state:?}");
        }
    }

    /// Whoever has RAM afterwards signs nothing in the name of this boot.
    #[test]
    fn no_key_outlives_its_boot() {
        let host = Host::new(Granule::K4, 8 << 20);
        assert!(host.system.attester().is_some());
        let keys = host.system.attester.as_mut_ptr().cast::<u8>();
        // SAFETY: the fake machine's keys, as bytes.
        let is_zero = |n| unsafe { keys.add(n).read_volatile() } == 0;
        let mut all = 0..size_of::<attest::Attester>();
        assert!(!all.clone().all(is_zero));
        scrub_all(host.system, Spans::Counted);
        assert!(all.all(is_zero));
    }

    /// What was a guest's and is delegated by now is zero, perhaps in a cache alone.
    #[test]
    fn what_is_delegated_is_clean_at_the_end() {
        let mut host = Host::new(Granule::K4, 8 << 20);
        let pages: Vec<_> = (3..6).map(|n| host.page(n)).collect();
        for &pa in &pages {
            let answer = host.call(Command::GranuleDelegate { pa }.encode());
            assert_eq!(answer[0], 0, "{:#x}", fid::RMI_GRANULE_DELEGATE);
        }
        let done = recording::of(|| scrub_all(host.system, Spans::Counted));
        let lines = pages
            .iter()
            .flat_map(|pa| (*pa..pa + host.size).step_by(64));
        for line in lines {
            let cleaned = Event::Instruction("dc civac", Some(line));
            assert!(done.contains(&cleaned), "{line:#x}");
        }
    }
}

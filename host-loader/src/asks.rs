//! What a realm asks its host (RSI): to change what its RAM is, and calls by number.

use crate::guest::failure::RealmError;
use crate::guest::handle::{Guest, Stop};
use crate::guest::sharing::Asked;
use crate::machine::Machine;
use core::sync::atomic::Ordering;
use log::Level;
use rmi::run::{EnterFlags, RecRun};

/// A request that cannot be served has stopped the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped;

/// Serves a change of what RAM is: what the entry is to say of it. Outside the guest's
/// RAM there is none to be had, and nothing to share.
pub fn change(
    machine: &Machine,
    guest: &Guest,
    index: usize,
    run: &RecRun,
) -> Result<EnterFlags, Stopped> {
    let exit = &run.exit;
    let to = match exit.ripas_value {
        0 => Asked::Empty,
        _ => Asked::Ram,
    };
    let ipas = exit.ripas_base..exit.ripas_top;
    let rec = guest.vcpus[index].rec;
    match guest.memory.change(machine.granules, rec, ipas.clone(), to) {
        Some(Ok(())) => Ok(EnterFlags::empty()),
        None => Ok(EnterFlags::RIPAS_RESPONSE),
        Some(Err(error)) => {
            failed(machine, guest, index, ipas.start, error);
            Err(Stopped)
        }
    }
}

/// The guest's memory cannot be what it is to be.
pub fn failed(machine: &Machine, guest: &Guest, index: usize, ipa: u64, error: RealmError) {
    let text = format_args!("vCPU {index}: its RAM at IPA {ipa:#x}: {error}");
    guest.log(Level::Error, text);
    machine.stop(guest, Stop::Fault);
}

/// Answers a call by number. There is none yet: its registers stay what they are.
pub fn answer(guest: &Guest, index: usize, run: &mut RecRun) {
    if !guest.called.swap(true, Ordering::Relaxed) {
        let number = run.exit.imm;
        let text = format_args!("vCPU {index}: host call {number:#x} is none; it goes on");
        guest.log(Level::Warn, text);
    }
    run.enter.gprs = run.exit.gprs;
}

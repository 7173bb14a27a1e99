//! A vCPU's exits: entered until it needs more than its device models.

use crate::abort::{self, Next, Written};
use crate::asks;
use crate::guest::handle::{Guest, Stop};
use crate::machine::Machine;
use crate::rmi_call::{self, CallError};
use crate::trace;
use crate::wait;
use arm64::syndrome::{Class, Syndrome};
use core::fmt;
use log::Level;
use rmi::Status;
use rmi::call::Made;
use rmi::params::mpidr_index;
use rmi::psci::{self, Psci};
use rmi::run::{EnterFlags, ExitReason, RecExit};

/// What became of a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// An interrupt of the machine needs the host; the vCPU goes on after it.
    Interrupted,
    /// It waits for an interrupt of its own, at the latest until this value of
    /// the physical counter.
    Waits(Option<u64>),
    /// It is off until somebody starts it.
    Off,
    /// Its guest is stopping.
    Stopping,
}

/// Runs vCPU `index` of `guest`; `pending` are flags that its last exit asked
/// for and that no entry has taken yet.
pub fn run(
    machine: &Machine,
    guest: &Guest,
    index: usize,
    trap_wfi: bool,
    pending: &mut EnterFlags,
) -> Outcome {
    let vcpu = &guest.vcpus[index];
    let always = if trap_wfi {
        EnterFlags::TRAP_WFI
    } else {
        EnterFlags::empty()
    };
    let page = vcpu.run_page.expose_provenance() as u64;
    loop {
        // SAFETY: The page is the host's own memory, this CPU holds the vCPU, and
        // EL2 touches the page only inside the call.
        unsafe { (*vcpu.run_page).enter.flags = (always | *pending).bits() };
        match rmi_call::rec_enter(vcpu.rec, page) {
            Ok(()) => *pending = EnterFlags::empty(),
            Err(CallError::Status(Status::ErrorRec)) => return Outcome::Off,
            // Another vCPU has asked EL2 for the end, and its CPU is about to
            // stop it.
            Err(CallError::Status(Status::ErrorRealm(1))) => return Outcome::Interrupted,
            Err(why) => {
                error(guest, format_args!("vCPU {index}: REC_ENTER: {why}"));
                machine.stop(guest, Stop::Fault);
                return Outcome::Stopping;
            }
        }
        guest.take_posted();
        // SAFETY: As above; the reference ends before the next entry.
        let exit = unsafe { &(*vcpu.run_page).exit };
        trace::exit(&guest.name, index, exit);
        match ExitReason::from_raw(exit.exit_reason) {
            Some(ExitReason::Sync) => match sync(machine, guest, index, exit) {
                Sync::Mmio(value) => {
                    // SAFETY: As above.
                    unsafe { (*vcpu.run_page).enter.gprs[0] = value };
                    *pending = EnterFlags::EMUL_MMIO;
                }
                // The guest executes it again, after whoever else has a turn.
                Sync::Again => return Outcome::Interrupted,
                Sync::Wait => return Outcome::Waits(wait::ends_at(exit)),
                Sync::Abort(Next::Enter | Next::Later) => {}
                Sync::Abort(Next::External) => *pending = EnterFlags::INJECT_SEA,
                Sync::Abort(Next::Stopped) => return Outcome::Stopping,
            },
            Some(ExitReason::Irq | ExitReason::Fiq) => return Outcome::Interrupted,
            Some(ExitReason::Psci) => match psci_call(machine, guest, index, exit) {
                None => {}
                Some(outcome) => return outcome,
            },
            Some(ExitReason::SError) => {
                error(guest, format_args!("vCPU {index}: SError"));
                abort::report(guest, index, exit, None);
                machine.stop(guest, Stop::Fault);
                return Outcome::Stopping;
            }
            Some(ExitReason::RipasChange) => {
                // SAFETY: As above.
                let page = unsafe { &*vcpu.run_page };
                match asks::change(machine, guest, index, page) {
                    Ok(flags) => *pending = flags,
                    Err(asks::Stopped) => return Outcome::Stopping,
                }
            }
            Some(ExitReason::HostCall) => {
                // SAFETY: As above.
                asks::answer(guest, index, unsafe { &mut *vcpu.run_page });
            }
            None => {
                let reason = exit.exit_reason;
                error(guest, format_args!("vCPU {index}: exit {reason} is none"));
                machine.stop(guest, Stop::Fault);
                return Outcome::Stopping;
            }
        }
    }
}

enum Sync {
    /// An emulated access: what a read gives.
    Mmio(u64),
    /// An access that cannot be emulated yet.
    Again,
    /// WFI.
    Wait,
    /// Any other abort.
    Abort(Next),
}

#[inline]
fn sync(machine: &Machine, guest: &Guest, index: usize, exit: &RecExit) -> Sync {
    let esr = Syndrome(exit.esr);
    if esr.class() == Class::WFX {
        return Sync::Wait;
    }
    if esr.is_emulatable() {
        let (ipa, size) = (abort::ipa(exit), esr.size().into());
        if esr.is_write() {
            let value = esr.cut(exit.gprs[0]);
            match abort::device_write(guest, ipa, size, value) {
                Written::Done => return Sync::Mmio(0),
                Written::Later => return Sync::Again,
                Written::Nowhere => {}
            }
        } else if let Some(value) = abort::device_read(guest, ipa, size) {
            return Sync::Mmio(esr.extend(value));
        }
    }
    match abort::serve(machine, guest, index, exit) {
        Next::Later => Sync::Again,
        next => Sync::Abort(next),
    }
}

fn error(guest: &Guest, text: fmt::Arguments<'_>) {
    guest.log(Level::Error, text);
}

/// Serves a PSCI call: what became of the vCPU, or `None` to go on.
fn psci_call(machine: &Machine, guest: &Guest, index: usize, exit: &RecExit) -> Option<Outcome> {
    let [function, a, b, c, ..] = exit.gprs;
    let call = Psci::read(function as u32, [a, b, c]);
    match call {
        Some(Psci::CpuOn { target, .. } | Psci::AffinityInfo { target, .. }) => {
            let index_of_target = mpidr_index(target)
                .and_then(|i| usize::try_from(i).ok())
                .filter(|&i| i < guest.vcpus.len());
            let Some(target) = index_of_target else {
                // EL2 answers such calls itself.
                error(
                    guest,
                    format_args!("vCPU {index}: PSCI call for MPIDR {target:#x}, which is no vCPU"),
                );
                machine.stop(guest, Stop::Fault);
                return Some(Outcome::Stopping);
            };
            let calling = guest.vcpus[index].rec;
            let vcpu = &guest.vcpus[target];
            if let Err(why) = rmi_call::psci_complete(calling, vcpu.rec, psci::SUCCESS) {
                error(guest, format_args!("PSCI_COMPLETE: {why}"));
                machine.stop(guest, Stop::Fault);
                return Some(Outcome::Stopping);
            }
            if matches!(call, Some(Psci::CpuOn { .. })) {
                machine.start(vcpu);
            }
            None
        }
        Some(Psci::CpuOff) => Some(Outcome::Off),
        Some(Psci::CpuSuspend { .. }) => Some(Outcome::Waits(wait::ends_at(exit))),
        Some(Psci::SystemOff) => {
            machine.stop(guest, Stop::Off);
            Some(Outcome::Stopping)
        }
        Some(Psci::SystemReset) => {
            machine.stop(guest, Stop::Reset);
            Some(Outcome::Stopping)
        }
        // EL2 answers these itself.
        Some(Psci::Version | Psci::MigrateInfoType | Psci::Features { .. }) | None => {
            let made = Made {
                function,
                arguments: &[a, b, c],
            };
            error(
                guest,
                format_args!("vCPU {index}: the call {made} is not the host's"),
            );
            machine.stop(guest, Stop::Fault);
            Some(Outcome::Stopping)
        }
    }
}

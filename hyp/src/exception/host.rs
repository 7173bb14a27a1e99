//! The host's turn: it runs until it traps, the trap is served, it runs again.

use arm64::bits;
use arm64::regs::{ACTLR_EL1, ESR_EL2, FAR_EL2, OSLSR_EL1, TCR_EL1};
use log::{debug, error};

use super::redistributor;
use crate::cpu::Cpu;
use crate::cpu::context::{Exception, enter};
use crate::cpu::dying::{halt, stop_if_dying};
use crate::cpu::fault::faulting_ipa;
use crate::cpu::inject;
use crate::log::trace::{self, Answer};
use crate::memory::granule::Spans;
use crate::system::System;
use crate::{ending, psci, rmi as rmi_calls};
use crate::{errata, idregs};
use ::rmi::call::HostCall;
use ::rmi::psci::Psci;
use ::rmi::{NOT_SUPPORTED, fid};
use arm64::syndrome::{Class, Syndrome};
use arm64::sysreg::Sysreg;

/// Runs the host on this PE for ever.
pub fn run(system: &'static System, cpu: &mut Cpu) -> ! {
    loop {
        let exception = enter(&mut cpu.host.gprs);
        stop_if_dying();
        match exception {
            Exception::Sync => synchronous(system, cpu),
            Exception::SError => cpu.return_error(Syndrome(ESR_EL2.get())),
            // Neither is routed to EL2 while the host runs.
            exception => {
                panic!("{exception:?} from the host at {:#x}", cpu.host.gprs.pc)
            }
        }
        crate::log::turn();
    }
}

/// Serves a synchronous exception of the host.
pub fn synchronous(system: &'static System, cpu: &mut Cpu) {
    let esr = Syndrome(ESR_EL2.get());
    match esr.class() {
        // An SMC trapped by TSC leaves the PC at itself; HVC does not.
        Class::SMC => {
            cpu.host.gprs.step();
            call(system, cpu);
        }
        Class::HVC => call(system, cpu),
        Class::DATA_ABORT_LOWER | Class::INST_ABORT_LOWER => abort(system, cpu, esr),
        Class::SYSREG => system_register(cpu, esr),
        Class::FP => cpu.fp_to_host(),
        class => {
            debug!(
                "host: {} at {:#x}: undefined",
                class.words(),
                cpu.host.gprs.pc
            );
            inject::undefined(&mut cpu.host.gprs);
        }
    }
}

/// RMI, our own calls, or PSCI: function in X0.
fn call(system: &'static System, cpu: &mut Cpu) {
    if trace::calls() {
        traced(system, cpu);
    } else {
        serve(system, cpu);
    }
}

/// A call that the log shows.
#[cold]
fn traced(system: &'static System, cpu: &mut Cpu) {
    let x = arguments(cpu);
    if HostCall::decode(x).is_some_and(trace::is_last) {
        trace::of_host(&x, Answer::Never);
    }
    if serve(system, cpu) {
        trace::of_host(&x, Answer::Results(&cpu.host.gprs.x[..5]));
    }
}

fn arguments(cpu: &Cpu) -> [u64; 6] {
    let [x0, x1, x2, x3, x4, x5, ..] = cpu.host.gprs.x;
    [x0, x1, x2, x3, x4, x5]
}

/// Serves the call; whether it was all of it. In one place: what decodes a call and what
/// serves it are compiled as one.
#[inline(never)]
fn serve(system: &'static System, cpu: &mut Cpu) -> bool {
    let x = arguments(cpu);
    // What a host asks most is found before the search.
    let answer = if x[0] == fid::RMI_REC_ENTER {
        Some(rmi_calls::enter(system, cpu, x[1], x[2]))
    } else {
        match HostCall::decode(x) {
            Some(HostCall::Rmi(command)) => rmi_calls::serve(system, cpu, command),
            Some(HostCall::Vendor(call)) => Some(rmi_calls::serve_vendor(system, call)),
            Some(HostCall::Psci(call)) => return returned(cpu, power(system, call) as u64),
            Some(HostCall::Smccc(call)) => return returned(cpu, system.common.answer(call)),
            None => return returned(cpu, NOT_SUPPORTED),
        }
    };
    let Some(answer) = answer else {
        // After the host's interrupts, the same again.
        cpu.host.gprs.repeat();
        return false;
    };
    // One by one: a copy of five words would be a call.
    let x = &mut cpu.host.gprs.x;
    [x[0], x[1], x[2], x[3], x[4]] = answer;
    true
}

/// A PSCI call. Nothing of a confidential guest's is left in RAM when the machine ends;
/// where that cannot be had, it stands still.
fn power(system: &System, call: Psci) -> i64 {
    if let Psci::SystemOff | Psci::SystemReset = call
        && let Err(why) = ending::scrub(system, Spans::Counted)
    {
        error!(
            "cpu {:#x} runs a guest and does not stop: the machine stays on",
            why.mpidr
        );
        halt();
    }
    psci::relay(call)
}

/// The answer of a call that has X0 alone.
fn returned(cpu: &mut Cpu, x0: u64) -> bool {
    cpu.host.gprs.x[0] = x0;
    true
}

/// The host touched what its stage 2 does not map: a redistributor, which EL2
/// stands in for, or what is not the host's.
fn abort(system: &System, cpu: &mut Cpu, esr: Syndrome) {
    let ipa = faulting_ipa(esr);
    if esr.fault().is_translation() {
        if system.host.reaches(ipa) {
            return; // it may: a block around it was being split or folded
        }
        if redistributor::access(cpu, system.gic, esr, ipa) {
            cpu.host.gprs.step();
            return;
        }
    }
    debug!(
        "host: {} of {ipa:#x} at {:#x}: external abort",
        match (esr.on_walk(), esr.is_write()) {
            (true, _) => "walk",
            (_, true) => "write",
            (_, false) => "read",
        },
        cpu.host.gprs.pc
    );
    inject::external_abort(&mut cpu.host.gprs, esr, FAR_EL2.get());
}

fn system_register(cpu: &mut Cpu, esr: Syndrome) {
    let register = Sysreg::of(esr);
    let (rt, read) = (esr.sysreg_rt(), esr.sysreg_is_read());
    let gprs = &mut cpu.host.gprs;
    if register.is_id() && read {
        gprs.set(rt, idregs::view(register, idregs::of_cpu(register), 52));
    } else if register.is_debug() {
        if read {
            let is_lock = register == OSLSR_EL1::ENCODING;
            gprs.set(rt, if is_lock { bits!(OSLSR_EL1: OSLM_1) } else { 0 });
        }
    } else if register == ACTLR_EL1::ENCODING {
        // How the CPU itself works cannot be changed from a lower level.
        if read {
            gprs.set(rt, 0);
        }
    } else if register == TCR_EL1::ENCODING && !read {
        errata::set_tcr(gprs.get(rt));
    } else {
        debug!("host: access to {register} at {:#x}: undefined", gprs.pc);
        inject::undefined(gprs);
        return;
    }
    gprs.step();
}

#[cfg(test)]
mod tests;

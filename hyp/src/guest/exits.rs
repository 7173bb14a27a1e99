//! A guest's synchronous exceptions: what EL2 serves, and what is the host's.

use arm64::bits;
use arm64::regs::{
    ACTLR_EL1, CNTP_CTL_EL0, CNTP_CVAL_EL0, CNTP_TVAL_EL0, CNTPCT_EL0, FAR_EL2, ICC_ASGI1R_EL1,
    ICC_DIR_EL1, ICC_SGI0R_EL1, ICC_SGI1R_EL1, ICC_SRE_EL1, ICH_VMCR_EL2, SCTLR_EL1, TCR_EL1,
};
use core::fmt;
use core::sync::atomic::Ordering;
use log::warn;
use pgtable::RttState;
use rmi::psci::{self as codes, Psci};
use rmi::run::ExitReason;
use rmi::smccc::Smccc;
use rmi::vendor::{GICD_IPA, GICR_IPA};
use vgic::{At, Frame, Read, SgiRegister};

use super::confidential;
use super::host_lrs;
use super::psci::{self, Answer, Cpus};
use super::record::{Next, Record};
use super::rsi;
use super::vcpu::RunningVcpu;
use crate::cpu::{Cpu, access, gic, inject};
use crate::errata;
use crate::idregs;
use crate::log::trace;
use crate::realm::{Mode, Realm, State};
use crate::rec::{Pending, VcpuState};
use crate::system::words;
use arm64::syndrome::{Class, Syndrome};
use arm64::sysreg::Sysreg;

/// Serves a synchronous exception of the guest.
pub fn synchronous(
    vcpu: &mut RunningVcpu<'_>,
    pa: u64,
    state: &mut VcpuState,
    esr: Syndrome,
) -> Next {
    match esr.class() {
        Class::DATA_ABORT_LOWER => data_abort(vcpu, state, esr),
        Class::INST_ABORT_LOWER => match access::fault_ipa(esr, state.gprs.pstate) {
            Some(ipa) => abort_exit(vcpu, state, esr, ipa),
            None => Next::Enter,
        },
        Class::SYSREG => system_register(vcpu, state, esr),
        // A realm's calls are by SMC alone (DEN0137 1.0, A4.5).
        Class::HVC if vcpu.realm.mode != Mode::Realm => traced_call(vcpu, state),
        Class::SMC if let Some(call) = rsi::call_of(vcpu.realm, state) => {
            rsi::serve(vcpu, state, call)
        }
        Class::SMC => {
            state.gprs.step();
            traced_call(vcpu, state)
        }
        Class::HVC => {
            // Its PC is past it, and what is undefined has not been executed.
            state.gprs.repeat();
            inject::undefined(&mut state.gprs);
            Next::Enter
        }
        Class::WFX => wait(vcpu, state, esr),
        Class::FP => {
            let VcpuState { fp, fp_pe, .. } = state;
            vcpu.cpu.fp_to_guest(pa, fp, fp_pe);
            Next::Enter
        }
        // Hidden features, and what no guest of ours should do.
        class => {
            if vcpu.cpu.logged.first(0x8000_0000 | u32::from(class.0)) {
                undefined(vcpu.realm, state, format_args!("{esr}"));
            }
            inject::undefined(&mut state.gprs);
            Next::Enter
        }
    }
}

/// Says what a guest executed that it does not have; where, of a plain guest alone.
fn undefined(realm: &Realm, state: &VcpuState, what: fmt::Arguments<'_>) {
    let (vmid, pc) = (realm.vmid, state.gprs.pc);
    if realm.is_confidential() {
        warn!("guest vmid {vmid}: {what}: undefined");
    } else {
        warn!("guest vmid {vmid}: {what} at {pc:#x}: undefined");
    }
}

fn data_abort(vcpu: &mut RunningVcpu<'_>, state: &mut VcpuState, esr: Syndrome) -> Next {
    let Some(ipa) = access::fault_ipa(esr, state.gprs.pstate) else {
        return Next::Enter;
    };
    let frame = gic_frame(vcpu.realm, ipa).filter(|_| esr.fault().is_translation());
    // The host has no GIC, and sees no instruction of a confidential guest's.
    let alone = frame.is_some() || vcpu.realm.is_confidential();
    let esr = access::as_told(esr, state.gprs.pstate, alone);
    if esr.has_access()
        && let Some((frame, offset)) = frame
    {
        return gic_access(vcpu, state, esr, frame, offset);
    }
    let of_nothing = esr.fault().is_translation() && !vcpu.realm.is_protected(ipa);
    if esr.is_cache_maintenance() && of_nothing && !esr.on_walk() {
        // By address, of what is not memory: there is nothing to maintain. A protected
        // guest's own memory may be there, and in the host's hands for a moment; and the
        // host's may, whose entry another PE has broken to make another of it.
        let entry = vcpu.realm.entry(ipa);
        if !matches!(entry, Some(RttState::AssignedNs { .. })) {
            state.gprs.step_over(esr);
        }
        return Next::Enter;
    }
    abort_exit(vcpu, state, esr, ipa)
}

/// The register of the guest's interrupt controller that stands at `ipa`: QEMU
/// virt's map, in the half that is shared, which the host's device tree for it names
/// too.
#[inline(always)]
pub fn gic_frame(realm: &Realm, ipa: u64) -> Option<(Frame, u64)> {
    if realm.host_lrs {
        return None;
    }
    let ipa = ipa.checked_sub(realm.shared_from)?;
    if let Some(offset) = ipa.checked_sub(GICD_IPA)
        && offset < vgic::DISTRIBUTOR_SIZE
    {
        return Some((Frame::Distributor, offset));
    }
    let offset = ipa.checked_sub(GICR_IPA)?;
    let vcpus = realm.created.load(Ordering::Relaxed);
    (offset < vcpus * vgic::REDISTRIBUTOR_SIZE).then(|| Frame::of_redistributors(offset))
}

fn gic_access(
    vcpu: &mut RunningVcpu<'_>,
    state: &mut VcpuState,
    esr: Syndrome,
    frame: Frame,
    offset: u64,
) -> Next {
    vcpu.fold(state);
    let (index, size) = (vcpu.rec.index, esr.size() as usize);
    let big_endian = state.gprs.is_big_endian(SCTLR_EL1.get());
    if esr.is_write() {
        let value = esr.ordered(state.gprs.get(esr.register()), big_endian);
        vcpu.vgic(|v| v.write(index, frame, At { offset, size }, value));
    } else {
        match vcpu.vgic(|v| v.read(index, frame, At { offset, size })) {
            Read::Value(value) => {
                let value = esr.ordered(value, big_endian);
                state.gprs.set(esr.register(), esr.extend(value));
            }
            // Other vCPUs were kicked and will have answered when the guest
            // executes the instruction again.
            Read::Again => return Next::Enter,
        }
    }
    state.gprs.step_over(esr);
    Next::Enter
}

/// An abort that only the host can answer: by emulation, by mapping, or by
/// stopping the guest.
fn abort_exit(vcpu: &RunningVcpu<'_>, state: &mut VcpuState, esr: Syndrome, ipa: u64) -> Next {
    if vcpu.realm.is_confidential() {
        return confidential::abort(vcpu, state, esr, ipa);
    }
    let far = FAR_EL2.get();
    // No guest is told of fewer than 32 bits, and most devices stand there.
    if ipa >> 32 != 0 && ipa >> idregs::told_bits(vcpu.realm.ipa_bits) != 0 {
        inject::address_size(&mut state.gprs, esr, far);
        return Next::Enter;
    }
    let emulatable = esr.is_emulatable();
    state.pending = if emulatable {
        Pending::Mmio(esr, far)
    } else {
        Pending::Abort(esr, far)
    };
    let mut record = Record {
        esr: esr.0,
        far,
        hpfar: ipa >> 12 << 4,
        ..Record::new(ExitReason::Sync)
    };
    if emulatable && esr.is_write() {
        let big_endian = state.gprs.is_big_endian(SCTLR_EL1.get());
        record.gprs[0] = esr.ordered(state.gprs.get(esr.register()), big_endian);
    }
    Next::Exit(record)
}

/// WFI or WFE that the host had trapped.
fn wait(vcpu: &mut RunningVcpu<'_>, state: &mut VcpuState, esr: Syndrome) -> Next {
    let wfe = esr.0 & 1 != 0;
    if !vcpu.realm.host_lrs {
        vcpu.fold(state);
        if !wfe && vcpu.deliverable() {
            state.gprs.step_over(esr);
            return Next::Enter;
        }
        if !wfe && state.call_host_at.is_some() {
            // The host is about to be called: now, as the guest has nothing to do. It
            // waits after that.
            return Next::Exit(Record::new(ExitReason::Irq));
        }
    }
    state.gprs.step_over(esr);
    let mut record = Record {
        esr: confidential::of_wait(vcpu.realm, esr),
        ..Record::new(ExitReason::Sync)
    };
    if let Some(register) = esr.timeout() {
        record.gprs[0] = state.gprs.get(register);
    }
    Next::Exit(record)
}

impl Cpus for Cpu {
    fn random(&self) -> Option<[u64; 3]> {
        self.random.map(words)
    }
    fn answer(&self, call: Smccc) -> u64 {
        self.common.answer(call)
    }
}

/// HVC or SMC, and its line in the trace of calls, which a confidential guest has
/// none in.
fn traced_call(vcpu: &mut RunningVcpu<'_>, state: &mut VcpuState) -> Next {
    if !trace::calls() || vcpu.realm.is_confidential() {
        return call(vcpu, state);
    }
    let [x0, x1, x2, x3, ..] = state.gprs.x;
    let next = call(vcpu, state);
    let answer = match next {
        Next::Enter => trace::Answer::Results(&state.gprs.x[..4]),
        Next::Exit(_) => trace::Answer::ToHost,
    };
    trace::of_guest(vcpu.realm.vmid, vcpu.rec.index, &[x0, x1, x2, x3], answer);
    next
}

/// HVC or SMC. The PC is past it already.
fn call(vcpu: &mut RunningVcpu<'_>, state: &mut VcpuState) -> Next {
    let [x0, x1, x2, x3, ..] = state.gprs.x;
    let x = psci::arguments([x0, x1, x2, x3]);
    let answer = psci::call(&x, vcpu.realm.mode, vcpu.cpu);
    let returned = |state: &mut VcpuState, value: u64| {
        state.gprs.x[0] = value;
        Next::Enter
    };
    let exit = || {
        Next::Exit(Record {
            gprs: confidential::of_call(vcpu.realm, x),
            ..Record::new(ExitReason::Psci)
        })
    };
    match answer {
        Answer::Return(value) => returned(state, value),
        Answer::Random(values) => {
            state.gprs.x[..4].copy_from_slice(&values);
            Next::Enter
        }
        Answer::CpuOn {
            target,
            entry,
            context,
        } => {
            if known(vcpu, target).is_none() {
                return returned(state, codes::INVALID_PARAMETERS as u64);
            }
            if !vcpu.realm.is_executable(entry) || entry & 3 != 0 {
                return returned(state, codes::INVALID_ADDRESS as u64);
            }
            if known(vcpu, target) == Some(vcpu.rec.index) {
                return returned(state, codes::ALREADY_ON as u64);
            }
            state.pending = Pending::CpuOn(target, entry, context);
            exit()
        }
        Answer::AffinityInfo { target } => {
            if known(vcpu, target).is_none() {
                return returned(state, codes::INVALID_PARAMETERS as u64);
            }
            if known(vcpu, target) == Some(vcpu.rec.index) {
                return returned(state, codes::AFFINITY_ON as u64);
            }
            state.pending = Pending::AffinityInfo(target);
            exit()
        }
        Answer::CpuOff => exit(),
        Answer::Suspend => {
            state.gprs.x[0] = codes::SUCCESS as u64;
            exit()
        }
        Answer::SystemEnd => {
            vcpu.realm.set_state(State::SystemOff);
            exit()
        }
    }
}

fn known(vcpu: &RunningVcpu<'_>, mpidr: u64) -> Option<usize> {
    let index = rmi::params::mpidr_index(mpidr)? as usize;
    vcpu.realm.rec(index).map(|_| index)
}

/// True when an exit record is that of a `CPU_OFF`.
pub fn is_cpu_off(record: &Record) -> bool {
    let [function, registers @ ..] = record.gprs;
    record.reason == ExitReason::Psci as u64
        && Psci::read(function as u32, registers) == Some(Psci::CpuOff)
}

fn system_register(vcpu: &mut RunningVcpu<'_>, state: &mut VcpuState, esr: Syndrome) -> Next {
    let register = Sysreg::of(esr);
    let (rt, reads) = (esr.sysreg_rt(), esr.sysreg_is_read());
    if vcpu.realm.host_lrs && !reads && host_lrs::is_hosts(register) {
        return host_lrs::written(state, esr);
    }
    let done = if reads {
        let value = read(vcpu, state, register);
        value.map(|value| state.gprs.set(rt, value)).is_some()
    } else {
        let value = state.gprs.get(rt);
        write(vcpu, state, register, value)
    };
    if done {
        state.gprs.step();
    } else {
        if vcpu.cpu.logged.first(esr.sysreg()) {
            let what = if reads { "read" } else { "write" };
            undefined(vcpu.realm, state, format_args!("{what} of {register}"));
        }
        inject::undefined(&mut state.gprs);
    }
    Next::Enter
}

/// A trapped MRS: `None` for a register that the guest does not have.
fn read(vcpu: &RunningVcpu<'_>, state: &VcpuState, register: Sysreg) -> Option<u64> {
    Some(match register {
        r if r.is_id() => {
            let value = vcpu.cpu.common.tell(r, vcpu.realm.ipa_bits);
            vcpu.realm.shown.tell(r, value);
            value
        }
        ACTLR_EL1::ENCODING => 0,
        ICC_SRE_EL1::ENCODING => bits!(ICC_SRE_EL1: SRE, DFB, DIB),
        CNTP_CTL_EL0::ENCODING => state.ptimer.read_ctl(CNTPCT_EL0.get()),
        CNTP_CVAL_EL0::ENCODING => state.ptimer.cval,
        CNTP_TVAL_EL0::ENCODING => state.ptimer.cval.wrapping_sub(CNTPCT_EL0.get()) & 0xffff_ffff,
        r if r.is_debug() => state.debug.read(r),
        r => return gic::read_common(r),
    })
}

/// A trapped MSR: false for a register that the guest does not have.
fn write(vcpu: &mut RunningVcpu<'_>, state: &mut VcpuState, register: Sysreg, value: u64) -> bool {
    match register {
        ICC_SGI1R_EL1::ENCODING => send_sgi(vcpu, SgiRegister::Sgi1, value),
        ICC_SGI0R_EL1::ENCODING => send_sgi(vcpu, SgiRegister::Sgi0, value),
        ICC_ASGI1R_EL1::ENCODING => send_sgi(vcpu, SgiRegister::Asgi1, value),
        ICC_DIR_EL1::ENCODING => {
            vcpu.fold(state);
            let (index, vmcr) = (vcpu.rec.index, ICH_VMCR_EL2.get());
            vcpu.vgic(|v| v.deactivate(index, value, vmcr));
        }
        CNTP_CTL_EL0::ENCODING => {
            state.ptimer.ctl = value & 0b11;
            vcpu.physical_timer(state);
        }
        CNTP_CVAL_EL0::ENCODING => {
            state.ptimer.cval = value;
            vcpu.physical_timer(state);
        }
        CNTP_TVAL_EL0::ENCODING => {
            let ticks = value as u32 as i32 as i64 as u64;
            state.ptimer.cval = CNTPCT_EL0.get().wrapping_add(ticks);
            vcpu.physical_timer(state);
        }
        TCR_EL1::ENCODING => errata::set_tcr(value),
        ACTLR_EL1::ENCODING | ICC_SRE_EL1::ENCODING => {}
        r if r.is_debug() => state.debug.write(r, value),
        r => return gic::write_common(r, value),
    }
    true
}

fn send_sgi(vcpu: &mut RunningVcpu<'_>, register: SgiRegister, value: u64) {
    let from = vcpu.rec.index;
    vcpu.vgic(|v| v.send_sgi(from, register, value));
}

//! `REC_ENTER`: a vCPU runs on this PE until the host is needed.
//!
//! enter → exception → served here? → enter again; else → exit record, host.

use arm64::bits;
use arm64::regs::{CNTPCT_EL0, ESR_EL2, FAR_EL2};
use rmi::run::{EnterFlags, ExitReason};
use rmi::vendor::Exit;

use super::confidential;
use super::exits;
use super::host_lrs;
use super::record::{Entry, Next, Record};
use super::rsi;
use super::vcpu::RunningVcpu;
use crate::cpu::context::Exception;
use crate::cpu::dying;
use crate::cpu::fault::faulting_ipa;
use crate::cpu::{GuestState, SavedState};
use crate::realm::Realm;
use crate::rec::{Pending, RipasChange, VcpuState};
use arm64::syndrome::Syndrome;
use core::sync::atomic::Ordering;

/// Begins a call that runs the vCPU in the REC granule at `pa`, which this PE holds:
/// before anything of the guest's is written to the REC. Whoever ends the machine waits
/// until it [`run`]s no more, or was [`not_entered`]; a machine that ends is not begun in.
///
/// Published before the vCPU's interrupts are looked at, so that a kick that comes after
/// the look finds this PE.
pub fn begin(vcpu: &RunningVcpu<'_>, pa: u64) {
    let pe = &vcpu.cpu.pe;
    vcpu.rec.kicks.enters(pe.index, pe.runs(), pa);
    stop(vcpu);
}

/// Runs the vCPU in the REC granule at `pa`, as [`begin`] has told. The checks of
/// `REC_ENTER` are done.
pub fn run(vcpu: &mut RunningVcpu<'_>, pa: u64, state: &mut VcpuState, entry: &Entry) -> Record {
    let (realm, rec) = (vcpu.realm, vcpu.rec);
    let cpu = &mut *vcpu.cpu;
    finish_previous_exit(state, entry);
    state.call_host_at = None;
    state.gprs.host_is_called = false;
    state.gprs.at_vector = core::ptr::from_ref(realm).expose_provenance() as u64;
    let mut trap = 0;
    if entry.flags.contains(EnterFlags::TRAP_WFI) {
        trap |= bits!(HCR_EL2: TWI);
    }
    if entry.flags.contains(EnterFlags::TRAP_WFE) {
        trap |= bits!(HCR_EL2: TWE);
    }
    cpu.switch_to_guest(
        &GuestState {
            rec: pa,
            el1: &state.el1,
            vtimer: state.vtimer,
            interface: &state.interface,
            fp_pe: state.fp_pe,
            vmpidr: state.vmpidr,
            vttbr: realm.vttbr,
            vtcr: realm.vtcr,
            other_vcpu_ran_here: realm.runs_on(cpu.pe.index, rec.index),
        },
        trap,
    );
    if cpu.fp_owner.is_none() {
        // Without a trap: most guests use them soon, and QEMU translates a guest's code
        // once with the trap and once without.
        cpu.fp_to_guest(pa, &state.fp, &mut state.fp_pe);
    }
    state.debug.load(state.el1.mdscr);
    if realm.host_lrs {
        host_lrs::load(cpu, state);
    }
    if state.ptimer.ctl != 0 {
        vcpu.physical_timer(state);
    }
    let record = turns(vcpu, pa, state);
    vcpu.leave(state);
    let cpu = &mut *vcpu.cpu;
    let now = CNTPCT_EL0.get();
    cpu.switch_to_host(SavedState {
        el1: &mut state.el1,
        vtimer: &mut state.vtimer,
        interface: &mut state.interface,
        fp: &mut state.fp,
    });
    if !realm.is_confidential() {
        state.exit.pc = [state.gprs.pc, state.gprs.pstate];
    }
    tell(realm, state, now, &record);
    // Last: whoever ends the machine scrubs the REC when nothing of the guest's is written
    // to it any more. A kick meanwhile comes to the host, which looks.
    rec.kicks.leaves(cpu.pe.runs());
    record
}

/// What an exit tells beside its record.
fn tell(realm: &Realm, state: &mut VcpuState, now: u64, record: &Record) {
    let ctl = [state.ptimer.read_ctl(now), state.vtimer.ctl];
    if realm.host_lrs {
        host_lrs::tell(state, ctl);
    }
    let RipasChange {
        reached, top, to, ..
    } = state.ripas;
    let exit = &mut state.exit;
    exit.timers = [ctl[0], state.ptimer.cval, ctl[1], state.vtimer.cval];
    let is_change = record.reason == ExitReason::RipasChange as u64;
    exit.ripas = if is_change {
        [reached, top, to as u64]
    } else {
        [0; 3]
    };
    let is_call = record.reason == ExitReason::HostCall as u64;
    exit.imm = if is_call {
        state.host_call.imm.into()
    } else {
        0
    };
}

/// A vCPU exits that is not entered, because the host is needed before. Its call has
/// begun.
pub fn not_entered(vcpu: &RunningVcpu<'_>, state: &mut VcpuState, record: Record) -> Record {
    tell(vcpu.realm, state, CNTPCT_EL0.get(), &record);
    vcpu.rec.kicks.leaves(vcpu.cpu.pe.runs());
    record
}

/// Stops this PE if the machine ends; it runs no guest then, and says so.
#[inline]
fn stop(vcpu: &RunningVcpu<'_>) {
    if dying::is_told_to_stop() {
        vcpu.rec.kicks.leaves(vcpu.cpu.pe.runs());
        dying::halt();
    }
}

/// Enters the guest until an exit needs the host.
fn turns(vcpu: &mut RunningVcpu<'_>, pa: u64, state: &mut VcpuState) -> Record {
    loop {
        vcpu.rec.kicks.looks();
        if vcpu.rec.exit_requested.load(Ordering::SeqCst)
            && vcpu.rec.exit_requested.swap(false, Ordering::SeqCst)
        {
            return Record::new(ExitReason::Irq);
        }
        if !vcpu.prepare(state) {
            return Record::new(ExitReason::Irq);
        }
        stop(vcpu);
        let exception = state.enter();
        stop(vcpu);
        let esr = Syndrome(ESR_EL2.get());
        if !matches!(exception, Exception::HostSoon | Exception::HostNow) {
            note(state, exception, esr);
        }
        match exception {
            Exception::HostSoon => vcpu.call_host_in(state, vcpu.realm.posted.delay()),
            Exception::HostNow => return Record::new(ExitReason::Irq),
            Exception::Sync => match exits::synchronous(vcpu, pa, state, esr) {
                Next::Enter => {}
                Next::Exit(record) => return record,
            },
            Exception::Irq if vcpu.physical(state) => return Record::new(ExitReason::Irq),
            Exception::Irq => {}
            Exception::Fiq => return Record::new(ExitReason::Fiq),
            Exception::SError => {
                return Record {
                    esr: confidential::of_error(vcpu.realm, esr),
                    ..Record::new(ExitReason::SError)
                };
            }
        }
    }
}

#[inline]
fn note(state: &mut VcpuState, exception: Exception, esr: Syndrome) {
    let sync = exception == Exception::Sync;
    let abort = matches!(esr.class().0, 0x20 | 0x24);
    state.note(Exit {
        time: CNTPCT_EL0.get(),
        esr: if sync { esr.0 } else { Exit::INTERRUPT },
        elr: state.gprs.pc,
        far: if sync && abort { FAR_EL2.get() } else { 0 },
        ipa: if sync && abort { faulting_ipa(esr) } else { 0 },
    });
}

/// Completes what the previous exit left open, as the host answers it.
fn finish_previous_exit(state: &mut VcpuState, entry: &Entry) {
    match core::mem::replace(&mut state.pending, Pending::Nothing) {
        // Before the other answer, which it takes the place of.
        Pending::Mmio(esr, far) | Pending::Abort(esr, far)
            if entry.flags.contains(EnterFlags::INJECT_SEA) =>
        {
            state.inject_external_abort(esr, far);
        }
        Pending::Mmio(esr, _) if entry.flags.contains(EnterFlags::EMUL_MMIO) => {
            if !esr.is_write() {
                let big_endian = state.gprs.is_big_endian(state.el1.sctlr);
                let value = esr.ordered(entry.value, big_endian);
                state.gprs.set(esr.register(), esr.extend(value));
            }
            state.gprs.step_over(esr);
        }
        Pending::Ripas => rsi::finish_ripas(state, entry.flags),
        _ => {}
    }
}

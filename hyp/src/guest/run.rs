//! `REC_ENTER`: a vCPU runs on this PE until the host is needed.
//!
//! enter → exception → served here? → enter again; else → exit record, host.

use arm64::bits;
use arm64::regs::{CNTPCT_EL0, ESR_EL2, FAR_EL2};
use rmi::run::{EnterFlags, ExitReason};
use rmi::vendor::Exit;

use super::exits::{self, Next};
use super::interrupts::Interrupts;
use super::record::{Entry, Record};
use crate::cpu::context::{Exception, enter};
use crate::cpu::dying::stop_if_dying;
use crate::cpu::fault::faulting_ipa;
use crate::cpu::{GuestState, SavedState};
use crate::rec::{Pending, Run};
use arm64::syndrome::Syndrome;
use core::sync::atomic::Ordering;

/// Runs the vCPU in the REC granule at `pa`, which this PE holds. The checks of
/// `REC_ENTER` are done.
pub fn run(guest: &mut Interrupts<'_>, pa: u64, run: &mut Run, entry: &Entry) -> Record {
    let (realm, rec) = (guest.realm, guest.rec);
    let cpu = &mut *guest.cpu;
    finish_previous_exit(run, entry);
    run.call_host_at = None;
    run.gprs.host_is_called = false;
    run.gprs.at_vector = realm.posted.at_vector();
    // Published before the vCPU's interrupts are looked at, so that a kick that
    // comes after the look finds this PE.
    rec.kicks.enters(cpu.pe.index, cpu.pe.runs(), pa);
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
            el1: &run.el1,
            vtimer: run.vtimer,
            interface: &run.interface,
            fp_pe: run.fp_pe,
            vmpidr: run.vmpidr,
            vttbr: realm.vttbr,
            vtcr: realm.vtcr,
            other_vcpu_ran_here: realm.runs_on(cpu.pe.index, rec.index),
        },
        trap,
    );
    if run.ptimer.ctl != 0 {
        guest.physical_timer(run);
    }
    let mut record = turns(guest, pa, run);
    guest.leave(run);
    let cpu = &mut *guest.cpu;
    rec.kicks.leaves(cpu.pe.runs());
    let now = CNTPCT_EL0.get();
    cpu.switch_to_host(SavedState {
        rec: pa,
        el1: &mut run.el1,
        vtimer: &mut run.vtimer,
        interface: &mut run.interface,
        fp: &mut run.fp,
        fp_pe: &run.fp_pe,
    });
    record.pc = [run.gprs.pc, run.gprs.pstate];
    record.timers = [
        run.ptimer.read_ctl(now),
        run.ptimer.cval,
        run.vtimer.ctl,
        run.vtimer.cval,
    ];
    record
}

/// Enters the guest until an exit needs the host.
fn turns(guest: &mut Interrupts<'_>, pa: u64, run: &mut Run) -> Record {
    loop {
        guest.rec.kicks.looks();
        if guest.rec.exit_requested.load(Ordering::SeqCst)
            && guest.rec.exit_requested.swap(false, Ordering::SeqCst)
        {
            return Record::new(ExitReason::Irq);
        }
        guest.prepare(run);
        let exception = enter(&mut run.gprs);
        stop_if_dying();
        let esr = Syndrome(ESR_EL2.get());
        if !matches!(exception, Exception::HostSoon | Exception::HostNow) {
            note(run, exception, esr);
        }
        match exception {
            Exception::HostSoon => guest.call_host_in(run, guest.realm.posted.delay()),
            Exception::HostNow => return Record::new(ExitReason::Irq),
            Exception::Sync => match exits::synchronous(guest, pa, run, esr) {
                Next::Enter => {}
                Next::Exit(record) => return record,
            },
            Exception::Irq if guest.physical(run) => return Record::new(ExitReason::Irq),
            Exception::Irq => {}
            Exception::Fiq => return Record::new(ExitReason::Fiq),
            Exception::SError => {
                return Record {
                    esr: esr.0,
                    ..Record::new(ExitReason::SError)
                };
            }
        }
    }
}

#[inline]
fn note(run: &mut Run, exception: Exception, esr: Syndrome) {
    let sync = exception == Exception::Sync;
    let abort = matches!(esr.class().0, 0x20 | 0x24);
    run.note(Exit {
        time: CNTPCT_EL0.get(),
        esr: if sync { esr.0 } else { Exit::INTERRUPT },
        elr: run.gprs.pc,
        far: if sync && abort { FAR_EL2.get() } else { 0 },
        ipa: if sync && abort { faulting_ipa(esr) } else { 0 },
    });
}

/// Completes what the previous exit left open, as the host answers it.
fn finish_previous_exit(run: &mut Run, entry: &Entry) {
    match core::mem::replace(&mut run.pending, Pending::Nothing) {
        Pending::Mmio(esr, _) if entry.flags.contains(EnterFlags::EMUL_MMIO) => {
            if !esr.is_write() {
                let big_endian = run.gprs.is_big_endian(run.el1.sctlr);
                let value = esr.ordered(entry.value, big_endian);
                run.gprs.set(esr.register(), esr.extend(value));
            }
            run.gprs.step_over(esr);
        }
        Pending::Mmio(esr, far) | Pending::Abort(esr, far)
            if entry.flags.contains(EnterFlags::INJECT_SEA) =>
        {
            run.inject_external_abort(esr, far);
        }
        _ => {}
    }
}

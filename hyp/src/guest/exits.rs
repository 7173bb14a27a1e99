//! A guest's synchronous exceptions: what EL2 serves, and what is the host's.

use arm64::bits;
use arm64::regs::{
    ACTLR_EL1, CNTP_CTL_EL0, CNTP_CVAL_EL0, CNTP_TVAL_EL0, CNTPCT_EL0, FAR_EL2, ICC_ASGI1R_EL1,
    ICC_DIR_EL1, ICC_SGI0R_EL1, ICC_SGI1R_EL1, ICC_SRE_EL1, ICH_VMCR_EL2, MDSCR_EL1, OSLSR_EL1,
    SCTLR_EL1,
};
use log::warn;
use rmi::psci::{self as codes, Psci};
use rmi::run::ExitReason;
use vgic::{At, Frame, Read, SgiRegister};

use super::idregs;
use super::interrupts::Interrupts;
use super::psci::{self, Answer, Entropy};
use super::record::Record;
use crate::cpu::{access, inject};
use crate::log::trace;
use crate::realm::State;
use crate::rec::{Pending, Run};
use arm64::syndrome::{Class, Syndrome};
use arm64::sysreg::Sysreg;

/// What follows an exception.
#[derive(Debug)]
pub enum Next {
    /// The guest goes on.
    Enter,
    /// The host is needed.
    Exit(Record),
}

/// Where a plain guest finds its interrupt controller: QEMU virt's map, which
/// the host's device tree for it names too.
mod map {
    pub use rmi::vendor::{GICD_IPA, GICR_IPA};
}

/// Serves a synchronous exception of the guest.
pub fn synchronous(guest: &mut Interrupts<'_>, pa: u64, run: &mut Run, esr: Syndrome) -> Next {
    match esr.class() {
        Class::DATA_ABORT_LOWER => data_abort(guest, run, esr),
        Class::INST_ABORT_LOWER => match access::fault_ipa(esr, run.gprs.pstate) {
            Some(ipa) => abort_exit(run, esr, ipa),
            None => Next::Enter,
        },
        Class::SYSREG => system_register(guest, run, esr),
        Class::HVC => traced_call(guest, run),
        Class::SMC => {
            run.gprs.step();
            traced_call(guest, run)
        }
        Class::WFX => wait(guest, run, esr),
        Class::FP => {
            let Run { fp, fp_pe, .. } = run;
            guest.cpu.fp_to_guest(pa, fp, fp_pe);
            Next::Enter
        }
        // Hidden features, and what no guest of ours should do.
        class => {
            if guest.cpu.logged.first(0x8000_0000 | u32::from(class.0)) {
                warn!(
                    "guest vmid {}: {} at {:#x}: undefined",
                    guest.realm.vmid, esr, run.gprs.pc
                );
            }
            inject::undefined(&mut run.gprs);
            Next::Enter
        }
    }
}

fn data_abort(guest: &mut Interrupts<'_>, run: &mut Run, esr: Syndrome) -> Next {
    let Some(ipa) = access::fault_ipa(esr, run.gprs.pstate) else {
        return Next::Enter;
    };
    let esr = access::as_told(esr);
    if esr.has_access()
        && esr.fault().is_translation()
        && let Some((frame, offset)) = gic_frame(guest, ipa)
    {
        return gic_access(guest, run, esr, frame, offset);
    }
    if esr.is_cache_maintenance() && esr.fault().is_translation() && !esr.on_walk() {
        // By address, of what is not memory: there is nothing to maintain.
        run.gprs.step_over(esr);
        return Next::Enter;
    }
    abort_exit(run, esr, ipa)
}

fn gic_frame(guest: &Interrupts<'_>, ipa: u64) -> Option<(Frame, u64)> {
    if let Some(offset) = ipa.checked_sub(map::GICD_IPA)
        && offset < vgic::DISTRIBUTOR_SIZE
    {
        return Some((Frame::Distributor, offset));
    }
    let offset = ipa.checked_sub(map::GICR_IPA)?;
    let vcpus = guest
        .realm
        .created
        .load(core::sync::atomic::Ordering::Relaxed);
    (offset < vcpus * vgic::REDISTRIBUTOR_SIZE).then(|| Frame::of_redistributors(offset))
}

fn gic_access(
    guest: &mut Interrupts<'_>,
    run: &mut Run,
    esr: Syndrome,
    frame: Frame,
    offset: u64,
) -> Next {
    guest.fold(run);
    let (vcpu, size) = (guest.rec.index, esr.size() as usize);
    let big_endian = run.gprs.is_big_endian(SCTLR_EL1.get());
    if esr.is_write() {
        let value = esr.ordered(run.gprs.get(esr.register()), big_endian);
        guest.vgic(|v| v.write(vcpu, frame, At { offset, size }, value));
    } else {
        match guest.vgic(|v| v.read(vcpu, frame, At { offset, size })) {
            Read::Value(value) => {
                let value = esr.ordered(value, big_endian);
                run.gprs.set(esr.register(), esr.extend(value));
            }
            // Other vCPUs were kicked and will have answered when the guest
            // executes the instruction again.
            Read::Again => return Next::Enter,
        }
    }
    run.gprs.step_over(esr);
    Next::Enter
}

/// An abort that only the host can answer: by emulation, by mapping, or by
/// stopping the guest.
fn abort_exit(run: &mut Run, esr: Syndrome, ipa: u64) -> Next {
    let far = FAR_EL2.get();
    let emulatable = esr.is_emulatable();
    run.pending = if emulatable {
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
        let big_endian = run.gprs.is_big_endian(SCTLR_EL1.get());
        record.gprs[0] = esr.ordered(run.gprs.get(esr.register()), big_endian);
    }
    Next::Exit(record)
}

/// WFI or WFE that the host had trapped.
fn wait(guest: &mut Interrupts<'_>, run: &mut Run, esr: Syndrome) -> Next {
    run.gprs.step_over(esr);
    guest.fold(run);
    let wfe = esr.0 & 1 != 0;
    if !wfe && guest.deliverable() {
        return Next::Enter;
    }
    Next::Exit(Record {
        esr: esr.0,
        ..Record::new(ExitReason::Sync)
    })
}

struct CpuEntropy(bool);

impl Entropy for CpuEntropy {
    fn random(&mut self) -> Option<u64> {
        arm64::instr::rndr()
    }
    fn available(&self) -> bool {
        self.0
    }
}

/// HVC or SMC, told to who traces calls.
fn traced_call(guest: &mut Interrupts<'_>, run: &mut Run) -> Next {
    if !trace::calls() {
        return call(guest, run);
    }
    let x = [run.gprs.x[0], run.gprs.x[1], run.gprs.x[2], run.gprs.x[3]];
    let next = call(guest, run);
    let answer = match next {
        Next::Enter => trace::Answer::Results(&run.gprs.x[..4]),
        Next::Exit(_) => trace::Answer::ToHost,
    };
    trace::of_guest(guest.realm.vmid, guest.rec.index, &x, answer);
    next
}

/// HVC or SMC. The PC is past it already.
fn call(guest: &mut Interrupts<'_>, run: &mut Run) -> Next {
    let x = psci::arguments([run.gprs.x[0], run.gprs.x[1], run.gprs.x[2], run.gprs.x[3]]);
    let mut entropy = CpuEntropy(guest.cpu.features.rng);
    let answer = psci::call(&x, &mut entropy);
    let returned = |run: &mut Run, value: u64| {
        run.gprs.x[0] = value;
        Next::Enter
    };
    let exit = || {
        Next::Exit(Record {
            gprs: x,
            ..Record::new(ExitReason::Psci)
        })
    };
    match answer {
        Answer::Return(value) => returned(run, value),
        Answer::Random(values) => {
            run.gprs.x[..4].copy_from_slice(&values);
            Next::Enter
        }
        Answer::CpuOn {
            target,
            entry,
            context,
        } => {
            if known(guest, target).is_none() {
                return returned(run, codes::INVALID_PARAMETERS as u64);
            }
            if entry >> guest.realm.ipa_bits != 0 || entry & 3 != 0 {
                return returned(run, codes::INVALID_ADDRESS as u64);
            }
            if known(guest, target) == Some(guest.rec.index) {
                return returned(run, codes::ALREADY_ON as u64);
            }
            run.pending = Pending::CpuOn(target, entry, context);
            exit()
        }
        Answer::AffinityInfo { target } => {
            if known(guest, target).is_none() {
                return returned(run, codes::INVALID_PARAMETERS as u64);
            }
            if known(guest, target) == Some(guest.rec.index) {
                return returned(run, codes::AFFINITY_ON as u64);
            }
            run.pending = Pending::AffinityInfo(target);
            exit()
        }
        Answer::CpuOff => exit(),
        Answer::Suspend => {
            run.gprs.x[0] = codes::SUCCESS as u64;
            exit()
        }
        Answer::SystemEnd => {
            guest.realm.set_state(State::SystemOff);
            exit()
        }
    }
}

fn known(guest: &Interrupts<'_>, mpidr: u64) -> Option<usize> {
    let index = rmi::params::mpidr_index(mpidr)? as usize;
    guest.realm.rec(index).map(|_| index)
}

/// True when an exit record is that of a `CPU_OFF`.
pub fn is_cpu_off(record: &Record) -> bool {
    let [function, registers @ ..] = record.gprs;
    record.reason == ExitReason::Psci as u64
        && Psci::read(function as u32, registers) == Some(Psci::CpuOff)
}

fn system_register(guest: &mut Interrupts<'_>, run: &mut Run, esr: Syndrome) -> Next {
    let register = Sysreg::of(esr);
    let rt = esr.sysreg_rt();
    let done = if esr.sysreg_is_read() {
        match read(guest, run, register) {
            Some(value) => {
                run.gprs.set(rt, value);
                true
            }
            None => false,
        }
    } else {
        let value = run.gprs.get(rt);
        write(guest, run, register, value)
    };
    if done {
        run.gprs.step();
    } else {
        if guest.cpu.logged.first(esr.sysreg()) {
            let what = if esr.sysreg_is_read() {
                "read"
            } else {
                "write"
            };
            warn!(
                "guest vmid {}: {what} of {register} at {:#x}: undefined",
                guest.realm.vmid, run.gprs.pc
            );
        }
        inject::undefined(&mut run.gprs);
    }
    Next::Enter
}

/// A trapped MRS: `None` for a register that the guest does not have.
fn read(guest: &Interrupts<'_>, run: &Run, register: Sysreg) -> Option<u64> {
    Some(match register {
        r if r.is_id() => idregs::view(r, idregs::of_cpu(r), guest.realm.ipa_bits),
        ACTLR_EL1::ENCODING => 0,
        ICC_SRE_EL1::ENCODING => bits!(ICC_SRE_EL1: SRE, DFB, DIB),
        CNTP_CTL_EL0::ENCODING => run.ptimer.read_ctl(CNTPCT_EL0.get()),
        CNTP_CVAL_EL0::ENCODING => run.ptimer.cval,
        CNTP_TVAL_EL0::ENCODING => run.ptimer.cval.wrapping_sub(CNTPCT_EL0.get()) & 0xffff_ffff,
        MDSCR_EL1::ENCODING => MDSCR_EL1.get(),
        OSLSR_EL1::ENCODING => bits!(OSLSR_EL1: OSLM_1),
        r if r.is_debug() => 0,
        _ => return None,
    })
}

/// MDSCR_EL1 bits that a guest may set: single step, which needs nothing but
/// PSTATE, of EL1 by itself too, and access of EL0 to the (empty) debug channel.
const MDSCR: u64 = bits!(MDSCR_EL1: SS, KDE, TDCC);

/// A trapped MSR: false for a register that the guest does not have.
fn write(guest: &mut Interrupts<'_>, run: &mut Run, register: Sysreg, value: u64) -> bool {
    match register {
        ICC_SGI1R_EL1::ENCODING => send_sgi(guest, SgiRegister::Sgi1, value),
        ICC_SGI0R_EL1::ENCODING => send_sgi(guest, SgiRegister::Sgi0, value),
        ICC_ASGI1R_EL1::ENCODING => send_sgi(guest, SgiRegister::Asgi1, value),
        ICC_DIR_EL1::ENCODING => {
            guest.fold(run);
            let (vcpu, vmcr) = (guest.rec.index, ICH_VMCR_EL2.get());
            guest.vgic(|v| v.deactivate(vcpu, value, vmcr));
        }
        CNTP_CTL_EL0::ENCODING => {
            run.ptimer.ctl = value & 0b11;
            guest.physical_timer(run);
        }
        CNTP_CVAL_EL0::ENCODING => {
            run.ptimer.cval = value;
            guest.physical_timer(run);
        }
        CNTP_TVAL_EL0::ENCODING => {
            let ticks = value as u32 as i32 as i64 as u64;
            run.ptimer.cval = CNTPCT_EL0.get().wrapping_add(ticks);
            guest.physical_timer(run);
        }
        MDSCR_EL1::ENCODING => MDSCR_EL1.set(value & MDSCR),
        ACTLR_EL1::ENCODING | ICC_SRE_EL1::ENCODING => {}
        r if r.is_debug() => {}
        _ => return false,
    }
    true
}

fn send_sgi(guest: &mut Interrupts<'_>, register: SgiRegister, value: u64) {
    let from = guest.rec.index;
    guest.vgic(|v| v.send_sgi(from, register, value));
}

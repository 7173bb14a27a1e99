//! The fast paths: exits that are served at the vector, before EL2 leaves the guest.
//! There are five: an access of a device whose page the host keeps
//! ([`posting`](crate::posting)), a read of an ID register, of a register of the
//! distributor's that never changes, SMCCC_VERSION, and an SGI: to others, or to the
//! vCPU itself where that has a list register ([`append`]).
//!
//! What all have in common is that they need nothing of the host, and change none of
//! the vCPU's interrupts but that SGI. Whoever else changes one interrupts the PE, by an
//! interrupt that is still pending when the guest goes on. So nothing need be looked
//! at, as if it had not come out; and its history
//! ([`VcpuState::note`]) does not have them. Each does what [`exits::synchronous`]
//! would, or nothing: that is tested with whatever a CPU may report.

use arm64::frame::Gprs;
use arm64::regs::{ELR_EL2, ICC_SGI1R_EL1, SCTLR_EL1};
use arm64::syndrome::{Class, Syndrome};
use arm64::sysreg::Sysreg;
use rmi::fid::SMCCC_VERSION;
use rmi::smccc::VERSION_1_2;
use vgic::{Affinity, At, Frame, Reach, Rise, SgiRegister};

use super::exits;
use super::interrupts::append;
use crate::cpu::context::Served;
use crate::cpu::fault::faulting_ipa;
use crate::idregs::Shown;
use crate::log::trace;
use crate::memory::guarded::Taken;
use crate::realm::{Mode, Realm};
use crate::rec::VcpuState;

/// Serves a synchronous exception of a guest as soon as it is taken: ELR_EL2 and
/// SPSR_EL2 are as the guest left them. `realm` is [`Gprs::at_vector`]. What follows is
/// the way of every byte on a console; the others are functions of their own, which
/// need more registers.
pub extern "C" fn serve(state: &mut VcpuState, realm: &Realm) -> Served {
    /// ESR_EL2.EC of aborts, and of what is for debuggers, is 0x20 or more; of what an
    /// instruction is trapped for, less.
    const ABORT: u64 = 1 << 31;
    let taken = Taken::get();
    if taken.esr & ABORT == 0 {
        return trapped(state, realm);
    }
    let sctlr = SCTLR_EL1.get();
    match realm.posted.serve(&mut state.gprs, &taken, sctlr) {
        Served::No => distributor(&mut state.gprs, realm),
        served => {
            step(&taken);
            served
        }
    }
}

/// An instruction that is trapped, or calls.
#[inline(never)]
fn trapped(state: &mut VcpuState, realm: &Realm) -> Served {
    let taken = Taken::get();
    let esr = Syndrome(taken.esr);
    match esr.class() {
        Class::SYSREG if esr.sysreg_is_read() => id_register(&mut state.gprs, &realm.shown, &taken),
        Class::SYSREG => sgi(state, realm, &taken),
        Class::HVC if realm.mode != Mode::Realm => version(&mut state.gprs),
        _ => Served::No,
    }
}

/// An SGI that a vCPU sends itself alone, or others alone.
#[inline(always)]
fn sgi(state: &mut VcpuState, realm: &Realm, taken: &Taken) -> Served {
    let esr = Syndrome(taken.esr);
    let sends = Sysreg::of(esr) == ICC_SGI1R_EL1::ENCODING && !realm.host_lrs;
    if !sends || !Gprs::steps_plainly(taken.spsr) {
        return Served::No;
    }
    let (index, value) = (state.index, state.gprs.get(esr.sysreg_rt()));
    let done = match vgic::reach(value, Affinity::from_mpidr(state.vmpidr)) {
        Reach::Itself => append(realm, state, (vgic::sgi_of(value), Rise::Sgi)),
        Reach::Others => {
            realm.with_vgic(Some(index), |v| v.send_sgi(index, SgiRegister::Sgi1, value));
            true
        }
        Reach::Both => false,
    };
    if !done {
        return Served::No;
    }
    step(taken);
    Served::Enter
}

/// Goes on behind the instruction.
#[inline(always)]
fn step(taken: &Taken) {
    ELR_EL2.set(taken.elr.wrapping_add(4));
}

/// A plain read of a word of the distributor's that is always the same.
#[inline(never)]
fn distributor(gprs: &mut Gprs, realm: &Realm) -> Served {
    let (taken, sctlr) = (Taken::get(), SCTLR_EL1.get());
    let esr = Syndrome(taken.esr);
    let plain = esr.is_plain_access()
        && !esr.has_wnr()
        && Gprs::steps_plainly(taken.spsr)
        && !Gprs::may_be_big_endian(sctlr);
    if !plain {
        return Served::No;
    }
    let Some((Frame::Distributor, offset)) = exits::gic_frame(realm, faulting_ipa(esr)) else {
        return Served::No;
    };
    let size = esr.size() as usize;
    // None of these is the first word, which may be the end of an access that began in
    // the page before.
    let Some(value) = vgic::fixed(At { offset, size }) else {
        return Served::No;
    };
    gprs.set(esr.register(), value.into());
    step(&taken);
    Served::written(esr.register())
}

#[inline(always)]
fn id_register(gprs: &mut Gprs, shown: &Shown, taken: &Taken) -> Served {
    let esr = Syndrome(taken.esr);
    if !Gprs::steps_plainly(taken.spsr) {
        return Served::No;
    }
    let Some(value) = shown.get(Sysreg::of(esr)) else {
        return Served::No;
    };
    gprs.set(esr.sysreg_rt(), value);
    step(taken);
    Served::written(esr.sysreg_rt())
}

/// An HVC has its PC past it already.
#[inline(always)]
fn version(gprs: &mut Gprs) -> Served {
    if gprs.x[0] as u32 != SMCCC_VERSION || trace::calls() {
        return Served::No;
    }
    gprs.x[0] = VERSION_1_2;
    Served::Enter
}

//! Exceptions that EL2 makes a lower level take, at that level's own vectors.
//!
//! The level's EL1 registers are the CPU's at that moment (it has just come
//! from there). Rules: DDI0487, AArch64.TakeException.

use arm64::bits;
use arm64::frame::Gprs;
use arm64::regs::{ELR_EL1, ESR_EL1, FAR_EL1, SCTLR_EL1, SPSR_EL1, VBAR_EL1};

use super::context::El1;
use arm64::syndrome::{Class, Fault, Syndrome};

/// PSTATE.PAN.
const PAN: u64 = 1 << 22;
/// PAN is left alone when set.
const SPAN: u64 = bits!(SCTLR_EL1: SPAN);
/// Value of PSTATE.SSBS.
const DSSBS: u64 = bits!(SCTLR_EL1: DSSBS);
const IL: u64 = bits!(ESR_EL1: IL);

/// Makes the instruction at `gprs.pc` undefined.
pub fn undefined(gprs: &mut Gprs) {
    let mut el1 = Registers::live();
    take(gprs, &mut el1, u64::from(Class::UNKNOWN.0) << 26 | IL);
    el1.commit();
}

/// Answers an access with a synchronous external abort, at the address that the
/// level itself used.
pub fn external_abort(gprs: &mut Gprs, cause: Syndrome, far: u64) {
    live_abort(gprs, cause, far, external(cause));
}

/// Answers an access of what is beyond the range that the level is told, as if it were
/// beyond the CPU's own: an address size fault, of level 0.
pub fn address_size(gprs: &mut Gprs, cause: Syndrome, far: u64) {
    live_abort(gprs, cause, far, Fault::ADDRESS_SIZE);
}

/// As [`external_abort`], for a vCPU that is not loaded.
pub fn external_abort_saved(gprs: &mut Gprs, saved: &mut El1, cause: Syndrome, far: u64) {
    let fault = external(cause);
    saved_registers(saved, |el1| take_abort(gprs, el1, cause, far, fault));
}

/// An abort with these parts of a syndrome (WnR, CM, FnV, fault status), of a
/// fetch or of data, for a vCPU that is not loaded.
pub fn abort_saved(gprs: &mut Gprs, saved: &mut El1, fetch: bool, iss: u64, far: u64) {
    saved_registers(saved, |el1| {
        el1.far = far;
        let class = abort_class(fetch, gprs.pstate);
        let iss = iss & (abort_flags(fetch) | 0x3f);
        take(gprs, el1, u64::from(class.0) << 26 | IL | iss);
    });
}

fn saved_registers(saved: &mut El1, f: impl FnOnce(&mut Registers)) {
    let mut el1 = Registers {
        sctlr: saved.sctlr,
        vbar: saved.vbar,
        ..Registers::default()
    };
    f(&mut el1);
    (saved.esr, saved.elr, saved.spsr, saved.far) = (el1.esr, el1.elr, el1.spsr, el1.far);
}

/// What a syndrome holds of an abort besides its fault: FnV, and of data CM and
/// WnR. What only EL2's holds, ISV and its fields and S1PTW, is left out.
const fn abort_flags(fetch: bool) -> u64 {
    if fetch {
        1 << 10
    } else {
        1 << 10 | 1 << 8 | 1 << 6
    }
}

/// The class of an abort that EL1 takes from PSTATE's level.
fn abort_class(fetch: bool, pstate: u64) -> Class {
    let from_el0 = pstate & 0b1100 == 0;
    match (fetch, from_el0) {
        (true, true) => Class::INST_ABORT_LOWER,
        (true, false) => Class::INST_ABORT,
        (false, true) => Class::DATA_ABORT_LOWER,
        (false, false) => Class::DATA_ABORT,
    }
}

/// The EL1 registers that taking an exception reads and writes.
#[derive(Default)]
struct Registers {
    sctlr: u64,
    vbar: u64,
    esr: u64,
    elr: u64,
    spsr: u64,
    far: u64,
}

impl Registers {
    /// Those of the level that has just left the CPU.
    fn live() -> Self {
        Self {
            sctlr: SCTLR_EL1.get(),
            vbar: VBAR_EL1.get(),
            ..Self::default()
        }
    }

    fn commit(&self) {
        ESR_EL1.set(self.esr);
        ELR_EL1.set(self.elr);
        SPSR_EL1.set(self.spsr);
    }
}

/// That a walk was struck is in the fault code.
fn external(cause: Syndrome) -> Fault {
    if cause.on_walk() {
        Fault::EXTERNAL_ON_WALK
    } else {
        Fault::EXTERNAL
    }
}

fn live_abort(gprs: &mut Gprs, cause: Syndrome, far: u64, fault: Fault) {
    let mut el1 = Registers::live();
    take_abort(gprs, &mut el1, cause, far, fault);
    FAR_EL1.set(el1.far);
    el1.commit();
}

fn take_abort(gprs: &mut Gprs, el1: &mut Registers, cause: Syndrome, far: u64, fault: Fault) {
    let fetch = cause.class() == Class::INST_ABORT_LOWER;
    let class = abort_class(fetch, gprs.pstate);
    let keep = cause.0 & (abort_flags(fetch) | Syndrome::EA);
    el1.far = far;
    take(
        gprs,
        el1,
        u64::from(class.0) << 26 | IL | keep | u64::from(fault.0),
    );
}

/// Enters EL1's vector with this syndrome.
fn take(gprs: &mut Gprs, el1: &mut Registers, esr: u64) {
    el1.esr = esr;
    el1.elr = gprs.pc;
    el1.spsr = gprs.pstate;
    let (offset, pstate) = target(gprs.pstate, el1.sctlr);
    gprs.pc = (el1.vbar & !0x7ff) + offset;
    gprs.pstate = pstate;
}

/// Offset of the synchronous vector and the new PSTATE.
fn target(pstate: u64, sctlr: u64) -> (u64, u64) {
    let offset = match pstate & 0x1f {
        m if m & 0x10 != 0 => 0x600, // AArch32
        0b0000 => 0x400,             // EL0
        0b0100 => 0x000,             // EL1t
        _ => 0x200,                  // EL1h
    };
    // EL1h, DAIF set; N, Z, C, V, DIT and PAN stay.
    let mut new = 0x3c5 | pstate & (0xf000_0000 | 1 << 24 | PAN);
    if sctlr & SPAN == 0 {
        new |= PAN;
    }
    if sctlr & DSSBS != 0 {
        new |= 1 << 12;
    }
    (offset, new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_by_origin() {
        assert_eq!(target(0x3c5, SPAN), (0x200, 0x3c5));
        assert_eq!(target(0x3c4, SPAN).0, 0x000);
        assert_eq!(target(0x000, SPAN).0, 0x400);
        assert_eq!(target(0x010, SPAN).0, 0x600);
    }

    #[test]
    fn an_abort_shows_what_hardware_shows_of_it() {
        const DATA: u64 = 0x24 << 26;
        const FETCH: u64 = 0x20 << 26;
        const ISV: u64 = 1 << 24 | 2 << 22 | 3 << 16 | 1 << 15;
        const S1PTW: u64 = 1 << 7;
        let taken = |cause: u64, pstate: u64| {
            let (mut gprs, mut saved) = (Gprs::reset(0), El1::reset());
            gprs.pstate = pstate;
            external_abort_saved(&mut gprs, &mut saved, Syndrome(cause), 0x77);
            assert_eq!((saved.far, saved.spsr), (0x77, pstate));
            saved.esr
        };
        for (cause, pstate, esr) in [
            (DATA | ISV | 7, 0x3c5, 0x9600_0010),
            (DATA | ISV | 1 << 6 | 7, 0x3c5, 0x9600_0050),
            (DATA | 1 << 6 | 7, 0x000, 0x9200_0050),
            // An `at`, or maintenance, whose walk was struck.
            (DATA | S1PTW | 1 << 8 | 1 << 6 | 7, 0x3c5, 0x9600_0157),
            (DATA | S1PTW | 7, 0x000, 0x9200_0017),
            (FETCH | 7, 0x3c5, 0x8600_0010),
            (FETCH | S1PTW | 7, 0x000, 0x8200_0017),
            (FETCH | 1 << 10 | 1 << 6 | 7, 0x3c5, 0x8600_0410),
            // Of an external abort itself, its kind.
            (DATA | 1 << 9 | 0x10, 0x3c5, 0x9600_0210),
        ] {
            assert_eq!(taken(cause, pstate), esr, "{cause:#x} {pstate:#x}");
        }
    }

    #[test]
    fn whatever_a_host_says_of_an_abort_it_is_one() {
        for (fetch, esr) in [(false, 0x9600_0574), (true, 0x8600_0434)] {
            let (mut gprs, mut saved) = (Gprs::reset(0), El1::reset());
            gprs.pstate = 0x3c5;
            abort_saved(&mut gprs, &mut saved, fetch, !0b1011, 0);
            assert_eq!(saved.esr, esr);
        }
    }

    /// By the level's own SCTLR_EL1 and VBAR_EL1, in the CPU or in memory: where it goes on,
    /// with which PSTATE, and where it came from.
    #[test]
    fn an_exception_is_taken_by_the_levels_own_registers() {
        use arm64::recording;
        const DIT: u64 = 1 << 24;
        const SSBS: u64 = 1 << 12;
        const DATA: Syndrome = Syndrome(0x24 << 26 | 1 << 6 | 7);
        // Low bits of VBAR_EL1 are RES0, and may read as written.
        const VBAR: u64 = 0xffff_8000_0010_0000;
        for (sctlr, pstate, new) in [
            (0, 0x8000_0005 | DIT, 0x8000_03c5 | DIT | PAN),
            (SPAN, 0x5 | DIT, 0x3c5 | DIT),
            (SPAN, 0x5, 0x3c5),
            (SPAN | DSSBS, 0x5, 0x3c5 | SSBS),
            (SPAN, 0x5 | SSBS, 0x3c5),
        ] {
            let mut gprs = Gprs::reset(0x1234);
            gprs.pstate = pstate;
            let mut el1 = El1::reset();
            (el1.sctlr, el1.vbar) = (sctlr, VBAR | 0x7ff);
            external_abort_saved(&mut gprs, &mut el1, DATA, 0x77);
            let expected = (VBAR + 0x200, new);
            assert_eq!((gprs.pc, gprs.pstate), expected, "{sctlr:#x} {pstate:#x}");
            let saved = [el1.esr, el1.elr, el1.spsr, el1.far];
            assert_eq!(saved, [0x9600_0050, 0x1234, pstate, 0x77]);

            recording::reset();
            recording::set(SCTLR_EL1, sctlr);
            recording::set(VBAR_EL1, VBAR | 0x7ff);
            let mut gprs = Gprs::reset(0x1234);
            gprs.pstate = pstate;
            external_abort(&mut gprs, DATA, 0x77);
            assert_eq!((gprs.pc, gprs.pstate), expected, "{sctlr:#x} {pstate:#x}");
            let esr = recording::get(ESR_EL1);
            let [elr, spsr] = [recording::get(ELR_EL1), recording::get(SPSR_EL1)];
            assert_eq!([esr, elr, spsr, recording::get(FAR_EL1)], saved);

            let mut gprs = Gprs::reset(0x5678);
            gprs.pstate = pstate;
            undefined(&mut gprs);
            assert_eq!((gprs.pc, gprs.pstate), expected, "{sctlr:#x} {pstate:#x}");
            assert_eq!(recording::get(ESR_EL1), 1 << 25);
            assert_eq!(recording::get(ELR_EL1), 0x5678);
            assert_eq!(recording::get(SPSR_EL1), pstate);
            // Of what is undefined there is no address.
            assert_eq!(recording::get(FAR_EL1), 0x77);
        }
    }

    #[test]
    fn pan_follows_span() {
        assert_eq!(target(0x5, 0).1 & PAN, PAN);
        assert_eq!(target(0x5, SPAN).1 & PAN, 0);
        assert_eq!(target(0x5 | PAN, SPAN).1 & PAN, PAN);
        assert_eq!(target(0x8000_0005, SPAN).1 >> 28, 8);
    }
}

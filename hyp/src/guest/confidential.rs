//! What the host is told of a confidential guest: what RMI 1.0 says (DEN0137, A4.3),
//! and nothing else.

use arm64::regs::{FAR_EL2, SCTLR_EL1};
use arm64::syndrome::{Class, Syndrome};
use pgtable::{Ripas, RttState};
use rmi::psci::Psci;
use rmi::run::ExitReason;

use super::record::{Next, Record};
use super::vcpu::RunningVcpu;
use crate::cpu::inject;
use crate::realm::{Mode, Realm};
use crate::rec::{Pending, VcpuState};

/// ESR_EL2 of an abort that is not emulated: EC, SET, FnV, EA, DFSC.
const OF_ABORT: u64 = 0x3f << 26 | 0b11 << 11 | 1 << 10 | 1 << 9 | 0x3f;
/// And of one that is: ISV, SAS, SF, WnR too. The register stays unnamed: its value is
/// in the record.
const OF_ACCESS: u64 = OF_ABORT | 1 << 24 | 0b11 << 22 | 1 << 15 | 1 << 6;
/// Of WFI and WFE: EC, and which of them (TI).
const OF_WAIT: u64 = 0x3f << 26 | 0b11;
/// Of a trapped access to a system register: EC, IL, which register, which way, and the
/// general register.
const OF_REGISTER: u64 = 0x3f << 26 | 1 << 25 | 0x3f_ffff;
/// Of a system error: EC, IDS, AET, EA, DFSC.
const OF_ERROR: u64 = 0x3f << 26 | 1 << 24 | 0b111 << 10 | 1 << 9 | 0x3f;
/// Bits of an address that are told: where in a page.
const OF_ADDRESS: u64 = 0xfff;
/// PSTATE.nRW: AArch32.
const AARCH32: u64 = 1 << 4;

/// Who answers an abort at a protected address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answers {
    /// The guest was told that nothing is there: it gets the abort.
    Guest,
    /// The host, by memory.
    Host,
    /// Nobody: there is memory by now.
    Memory,
}

fn answers(realm: &Realm, ipa: u64) -> Answers {
    match realm.entry(ipa) {
        Some(RttState::Assigned {
            ripas: Ripas::Ram, ..
        }) => Answers::Memory,
        Some(
            RttState::Unassigned(Ripas::Ram | Ripas::Destroyed)
            | RttState::Assigned {
                ripas: Ripas::Destroyed,
                ..
            },
        ) => Answers::Host,
        _ => Answers::Guest,
    }
}

/// An abort of the guest's that EL2 serves no device for.
pub fn abort(vcpu: &RunningVcpu<'_>, state: &mut VcpuState, esr: Syndrome, ipa: u64) -> Next {
    let realm = vcpu.realm;
    if !esr.fault().is_translation() && realm.is_protected(ipa) {
        // Its memory is its to use in any way, so what is left is an error of the
        // machine's. The host is told that there was one, not where.
        inject::external_abort(&mut state.gprs, as_taken(realm, esr), FAR_EL2.get());
        return Next::Exit(Record {
            esr: esr.0 & OF_ABORT,
            ..Record::new(ExitReason::Sync)
        });
    }
    let outside = ipa >> realm.ipa_bits != 0;
    let fetches = esr.class() == Class::INST_ABORT_LOWER;
    let who = match realm.is_protected(ipa) {
        true => answers(realm, ipa),
        // What the host can write is not executed.
        false if outside || fetches => Answers::Guest,
        false => return shared(realm, state, esr, ipa),
    };
    match who {
        Answers::Memory => Next::Enter,
        Answers::Guest => {
            inject::external_abort(&mut state.gprs, as_taken(realm, esr), FAR_EL2.get());
            Next::Enter
        }
        Answers::Host => Next::Exit(Record {
            esr: esr.0 & OF_ABORT,
            hpfar: ipa >> 12 << 4,
            ..Record::new(ExitReason::Sync)
        }),
    }
}

/// An access to the half that the guest shares: the host's to emulate.
fn shared(realm: &Realm, state: &mut VcpuState, esr: Syndrome, ipa: u64) -> Next {
    let esr = if state.gprs.pstate & AARCH32 != 0 {
        esr.without_access()
    } else {
        esr
    };
    let emulatable = esr.is_emulatable();
    state.pending = if emulatable {
        Pending::Mmio(as_taken(realm, esr), FAR_EL2.get())
    } else {
        Pending::Abort(as_taken(realm, esr), FAR_EL2.get())
    };
    let mut record = Record {
        esr: esr.0 & if emulatable { OF_ACCESS } else { OF_ABORT },
        far: if emulatable {
            FAR_EL2.get() & OF_ADDRESS
        } else {
            0
        },
        hpfar: ipa >> 12 << 4,
        ..Record::new(ExitReason::Sync)
    };
    if emulatable && esr.is_write() {
        let big_endian = state.gprs.is_big_endian(SCTLR_EL1.get());
        let value = esr.ordered(state.gprs.get(esr.register()), big_endian);
        record.gprs[0] = esr.cut(value);
    }
    Next::Exit(record)
}

/// An abort that a realm takes as an external one has EA set (DEN0137 1.0, RVKNJW). In
/// others the bit, the implementation's own, is as QEMU's CPUs have it.
fn as_taken(realm: &Realm, esr: Syndrome) -> Syndrome {
    let ea = if realm.mode == Mode::Realm {
        Syndrome::EA
    } else {
        0
    };
    Syndrome(esr.0 | ea)
}

/// The syndrome of a WFI or WFE, as the host is told of it.
pub fn of_wait(realm: &Realm, esr: Syndrome) -> u64 {
    told(realm, esr, OF_WAIT)
}

/// The syndrome of a system error, likewise.
pub fn of_error(realm: &Realm, esr: Syndrome) -> u64 {
    told(realm, esr, OF_ERROR)
}

/// The syndrome of a write to a register of the host's interrupt controller.
pub fn of_register(esr: Syndrome) -> u64 {
    esr.0 & OF_REGISTER
}

fn told(realm: &Realm, esr: Syndrome, bits: u64) -> u64 {
    esr.0
        & if realm.is_confidential() {
            bits
        } else {
            u64::MAX
        }
}

/// X0 to X3 of a PSCI call that the host answers: what the function has, and of a
/// confidential guest nothing that it happened to hold beside, nor in X0 above W0.
pub fn of_call(realm: &Realm, x: [u64; 4]) -> [u64; 4] {
    if !realm.is_confidential() {
        return x;
    }
    let [function, registers @ ..] = x;
    let function = function as u32;
    let call = Psci::read(function, registers);
    let arguments = call.map_or(0, |call| call.info().arguments.len());
    core::array::from_fn(|n| match n {
        0 => function.into(),
        n if n <= arguments => x[n],
        _ => 0,
    })
}

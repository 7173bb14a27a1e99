//! The host's exceptions, on the fake machine.

extern crate std;

use super::*;
use crate::memory::granule::State;
use crate::rmi::fake::{Host, RAM};
use arm64::recording;
use arm64::regs::*;
use pgtable::Granule;

const PC: u64 = 0xffff_8000_1234_5678;
const SMC: u64 = 0x17 << 26 | 1 << 25;
const HVC: u64 = 0x16 << 26 | 1 << 25;
const FP: u64 = 0x07 << 26 | 1 << 25;
/// A data abort, translation fault at level 3.
const ABORT: u64 = 0x24 << 26 | 1 << 25 | 0x07;

/// What becomes of an exception of the host's: its PC, and the class that its own vector
/// gets, or 0.
fn comes(h: &mut Host, esr: u64) -> (u64, u64) {
    recording::set(ESR_EL2, esr);
    recording::set(ESR_EL1, 0);
    recording::set(VBAR_EL1, 0x8000);
    (h.cpu.host.gprs.pc, h.cpu.host.gprs.pstate) = (PC, 0x3c5);
    synchronous(h.system, &mut h.cpu);
    let class = recording::get(ESR_EL1) >> 26;
    (h.cpu.host.gprs.pc, class)
}

/// An HVC has its PC past it; an SMC is trapped at itself.
#[test]
fn a_call_is_made_once() {
    let mut h = Host::new(Granule::K4, 8 << 20);
    for (esr, pc) in [(SMC, PC + 4), (HVC, PC)] {
        for (call, answer) in [
            ([fid::RMI_GRANULE_DELEGATE, h.page(3)], 0),
            ([fid::RMI_GRANULE_UNDELEGATE, h.page(3)], 0),
            ([0xc600_1234, 0], NOT_SUPPORTED),
        ] {
            h.cpu.host.gprs.x[..2].copy_from_slice(&call);
            assert_eq!(comes(&mut h, esr), (pc, 0), "{call:x?}");
            assert_eq!(h.cpu.host.gprs.x[0], answer, "{call:x?}");
        }
    }
}

/// A command that has more to do is made again: the host's next instruction is the call.
#[test]
fn a_call_that_is_not_done_is_made_again() {
    use ::rmi::params::RealmFlags;
    for (esr, pc) in [(SMC, PC), (HVC, PC - 4)] {
        let mut h = Host::new(Granule::K4, 32 << 20);
        h.realm_of(RealmFlags::NONCONF);
        let (rd, size) = (h.page(1), h.size);
        let ok = |h: &mut Host, function, args: &[u64]| {
            let mut x = [function, 0, 0, 0, 0, 0];
            x[1..=args.len()].copy_from_slice(args);
            assert_eq!(h.call(x)[0], 0, "{function:#x}");
        };
        // Memory by blocks, which are cleaned when their table goes.
        let base = RAM & !((1 << 30) - 1);
        ok(&mut h, fid::RMI_GRANULE_DELEGATE, &[RAM + 42 * size]);
        ok(&mut h, fid::RMI_RTT_CREATE, &[rd, RAM + 42 * size, base, 2]);
        let desc = {
            use ::rmi::rtt::*;
            MEMATTR_NORMAL_WB << DESC_MEMATTR_SHIFT | DESC_READ | DESC_WRITE
        };
        let block = RAM + (2 << 20);
        for n in 0..8 {
            let ipa = base + (n << 21);
            ok(
                &mut h,
                fid::RMI_RTT_MAP_UNPROTECTED,
                &[rd, ipa, 2, block | desc],
            );
        }
        h.cpu.host.gprs.x[..4].copy_from_slice(&[fid::RMI_RTT_DESTROY, rd, base, 2]);
        let mut turns = 1;
        loop {
            let before = h.cpu.host.gprs.x;
            let (at, class) = comes(&mut h, esr);
            assert_eq!(class, 0);
            if h.cpu.host.gprs.x[0] != fid::RMI_RTT_DESTROY {
                assert_eq!((at, h.cpu.host.gprs.x[0]), (pc + 4, 0));
                break;
            }
            assert_eq!((at, h.cpu.host.gprs.x), (pc, before), "the same again");
            turns += 1;
        }
        assert!(turns > 1, "all in one");
    }
}

/// Where the host has its memory, another CPU was changing the tables around it: the host
/// goes on as if nothing was. Elsewhere it takes an external abort.
#[test]
fn an_abort_of_the_hosts_own_memory_is_none_of_its() {
    let mut h = Host::new(Granule::K4, 8 << 20);
    let given = h.page(3);
    let fault = |h: &mut Host, ipa: u64| {
        recording::set(HPFAR_EL2, ipa >> 12 << 4);
        recording::set(FAR_EL2, ipa);
        comes(h, ABORT)
    };
    assert_eq!(fault(&mut h, given), (PC, 0));
    h.call([fid::RMI_GRANULE_DELEGATE, given, 0, 0, 0, 0]);
    let delegated = h.system.granules.get(given).expect("RAM").state();
    assert_eq!(delegated, State::Delegated);
    for ipa in [given, RAM - 0x1000, 0] {
        let (pc, class) = fault(&mut h, ipa);
        assert_eq!((pc, class), (0x8200, 0x25), "{ipa:#x}");
        assert_eq!(recording::get(FAR_EL1), ipa);
    }
}

/// Its FP/SIMD registers, where a guest's are in the PE.
#[test]
fn the_host_gets_its_own_registers_when_it_uses_them() {
    use arm64::recording::Event;
    let mut h = Host::new(Granule::K4, 8 << 20);
    h.cpu.fp_owner = Some(0x1000);
    let events = recording::of(|| {
        assert_eq!(comes(&mut h, FP), (PC, 0), "it executes the same again");
    });
    assert!(events.contains(&Event::Instruction("fp restore", None)));
    assert_eq!(h.cpu.fp_owner, None);
}

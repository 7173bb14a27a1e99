//! RSI by a vCPU of the fake machine's, at each granule.

extern crate std;

use super::*;
use crate::features::Features;
use crate::guest::exits::synchronous;
use crate::guest::record::Record;
use crate::memory::phys;
use crate::memory::region::Region;
use crate::rec::{Pending, Rec, RipasChange};
use crate::rmi::fake::{Host, RAM};
use ::rmi::fid;
use ::rmi::params::RealmFlags;
use ::rmi::rsi::{ACCEPT, GRANULE, HostCall, REJECT};
use ::rmi::run::{EnterFlags, ExitReason};
use arm64::syndrome::{Class, Syndrome};
use pgtable::{ChangeDestroyed, Granule, Ripas};
use std::vec::Vec;

const REC: u64 = 60;
const DATA: u64 = 50;
const SHARED: u64 = 1 << 39;
const PC: u64 = 0x4000_0100;
const VERSION: u64 = 0xC400_0190;
const READ: u64 = 0xC400_0192;
const EXTEND: u64 = 0xC400_0193;
const CONFIG: u64 = 0xC400_0196;
const SET: u64 = 0xC400_0197;
const GET: u64 = 0xC400_0198;
const CALL: u64 = 0xC400_0199;
const LARGE: [Granule; 2] = [Granule::K16, Granule::K64];

/// A realm whose first granule at `RAM` is there, the next two are RAM and are not,
/// and all behind is EMPTY; its vCPU.
fn machine(granule: Granule) -> Host {
    machine_with(granule, |_| {})
}

/// The same with features of its CPU changed.
fn machine_with(granule: Granule, change: fn(&mut Features)) -> Host {
    let mut h = Host::with(granule, 8 << 20, change);
    h.realm_of(RealmFlags::empty());
    let (rd, g) = (h.page(1), h.geometry());
    let mut ok = |function, arguments: &[u64]| {
        let mut x = [function, 0, 0, 0, 0, 0];
        x[1..=arguments.len()].copy_from_slice(arguments);
        assert_eq!(h.call(x)[0], 0, "{function:#x} {arguments:x?}");
    };
    for level in g.start().get() + 1..=3 {
        let table = RAM + (40 + level as u64) * granule.page_size();
        ok(fid::RMI_GRANULE_DELEGATE, &[table]);
        ok(fid::RMI_RTT_CREATE, &[rd, table, RAM, level as u64]);
    }
    let size = granule.page_size();
    ok(fid::RMI_RTT_INIT_RIPAS, &[rd, RAM, RAM + 3 * size]);
    ok(fid::RMI_GRANULE_DELEGATE, &[RAM + DATA * size]);
    let data = [rd, RAM + DATA * size, RAM];
    ok(fid::RMI_DATA_CREATE_UNKNOWN, &data);
    h.rec(0, REC);
    h
}

/// What becomes of a call by SMC.
fn smc(h: &mut Host, call: &[u64]) -> (Next, &'static mut VcpuState) {
    let pa = h.page(REC);
    // SAFETY: the fake machine's realm and vCPU, which nobody runs.
    let (realm, rec) = unsafe { (Realm::at(h.page(1)), Rec::at(pa)) };
    // SAFETY: as above.
    let state = unsafe { &mut *rec.state.get() };
    state.pending = Pending::Nothing;
    state.gprs.pc = PC;
    state.gprs.x = core::array::from_fn(|n| 0xa5a5_0000 + n as u64);
    state.gprs.x[..call.len()].copy_from_slice(call);
    let mut vcpu = RunningVcpu {
        cpu: &mut h.cpu,
        realm,
        rec,
    };
    let smc = Syndrome(u64::from(Class::SMC.0) << 26 | 1 << 25);
    (synchronous(&mut vcpu, pa, state, smc), state)
}

/// X0 to X`N` of an answer that the realm has at once.
#[track_caller]
fn answered<const N: usize>(h: &mut Host, call: &[u64]) -> [u64; N] {
    let (next, state) = smc(h, call);
    assert!(matches!(next, Next::Enter), "{call:x?}: {next:x?}");
    assert_eq!((state.gprs.pc, state.pending), (PC + 4, Pending::Nothing));
    core::array::from_fn(|n| state.gprs.x[n])
}

/// The exit that a call is.
#[track_caller]
fn exit(h: &mut Host, call: &[u64]) -> (Record, &'static mut VcpuState) {
    match smc(h, call) {
        (Next::Exit(record), state) => (record, state),
        (Next::Enter, _) => panic!("{call:x?}: the realm goes on"),
    }
}

#[test]
fn the_low_half_names_the_function() {
    let mut h = machine(Granule::K4);
    for above in [0, 1 << 32, 0xdead_beef << 32] {
        let version = [VERSION | above, 0x1_0000];
        assert_eq!(answered(&mut h, &version), [0, 0x1_0000, 0x1_0000]);
    }
    // What is refused is told of what there is.
    assert_eq!(
        answered(&mut h, &[VERSION, 0x1_0001]),
        [1, 0x1_0000, 0x1_0000]
    );
    assert_eq!(answered(&mut h, &[VERSION | 1 << 31 | 0xf, 0]), [u64::MAX]);
}

#[test]
fn of_a_larger_granule_ram_is_what_is_ram_in_part() {
    for granule in LARGE {
        let (mut h, size) = (machine(granule), granule.page_size());
        for (base, top, first, last) in [
            (GRANULE, 2 * GRANULE, 0, size),
            (0, size, 0, size),
            (size - GRANULE, size + GRANULE, 0, 2 * size),
            (size, 3 * size - GRANULE, size, 3 * size),
        ] {
            let (record, state) = exit(&mut h, &[SET, RAM + base, RAM + top, 1, 0]);
            assert_eq!(record.reason, ExitReason::RipasChange as u64);
            assert_eq!((state.pending, state.gprs.pc), (Pending::Ripas, PC + 4));
            assert_eq!(
                state.ripas,
                RipasChange {
                    reached: RAM + first,
                    top: RAM + last,
                    asked: (RAM + base, RAM + top),
                    to: Ripas::Ram,
                    destroyed: ChangeDestroyed::No,
                },
                "{granule:?}"
            );
        }
    }
}

#[test]
fn of_a_larger_granule_empty_is_what_is_empty_whole() {
    for granule in LARGE {
        let (mut h, size) = (machine(granule), granule.page_size());
        // Parts of one, and of two.
        for (base, top) in [
            (0, size - GRANULE),
            (GRANULE, 2 * GRANULE),
            (GRANULE, size),
            (GRANULE, 2 * size - GRANULE),
        ] {
            let set = [SET, RAM + base, RAM + top, 0, 1];
            assert_eq!(
                answered(&mut h, &set),
                [0, RAM + top, ACCEPT],
                "{granule:?}"
            );
        }
        for (base, top, first, last) in [
            (0, size, 0, size),
            (GRANULE, 2 * size, size, 2 * size),
            (0, 2 * size - GRANULE, 0, size),
            (GRANULE, 3 * size - GRANULE, size, 2 * size),
        ] {
            let (_, state) = exit(&mut h, &[SET, RAM + base, RAM + top, 0, 1]);
            let RipasChange {
                reached,
                top,
                to,
                destroyed,
                ..
            } = state.ripas;
            assert_eq!((reached, top), (RAM + first, RAM + last), "{granule:?}");
            assert_eq!((to, destroyed), (Ripas::Empty, ChangeDestroyed::Yes));
        }
    }
}

#[test]
fn a_realm_is_told_in_its_own_terms_how_far_the_host_came() {
    let mut h = machine(Granule::K16);
    let (base, size) = (RAM, 0x4000);
    let (odd, end) = (base + GRANULE, base + 3 * size - GRANULE);
    let refuses = EnterFlags::RIPAS_RESPONSE;
    let none = EnterFlags::empty();
    for (ripas, reached, flags, told, response) in [
        // Of RAM, which begins before what was named and ends behind it.
        (1, base, none, odd, ACCEPT),
        (1, base, refuses, odd, REJECT),
        (1, base + size, none, base + size, ACCEPT),
        (1, base + 2 * size, refuses, base + 2 * size, REJECT),
        (1, base + 3 * size, none, end, ACCEPT),
        // What is done is not refused.
        (1, base + 3 * size, refuses, end, ACCEPT),
        // Of EMPTY, which begins behind and ends before; the host has no say.
        (0, base + size, none, base + size, ACCEPT),
        (0, base + size, refuses, base + size, ACCEPT),
        (0, base + 2 * size, none, end, ACCEPT),
    ] {
        let (_, state) = exit(&mut h, &[SET, odd, end, ripas, 0]);
        state.ripas.reached = reached;
        finish_ripas(state, flags);
        let told = [Code::Success as u64, told, response];
        assert_eq!(state.gprs.x[..3], told, "{ripas} {reached:#x}");
    }
}

#[test]
fn ripas_is_told_of_what_was_asked() {
    for granule in [Granule::K4, Granule::K16, Granule::K64] {
        let (mut h, size) = (machine(granule), granule.page_size());
        let mut get = |base, top| answered::<3>(&mut h, &[GET, RAM + base, RAM + top]);
        assert_eq!(get(0, size), [0, RAM + size, 1]);
        assert_eq!(get(size - GRANULE, size), [0, RAM + size, 1]);
        // Three granules are RAM, whatever is there.
        assert_eq!(get(0, 9 * size), [0, RAM + 3 * size, 1]);
        assert_eq!(get(0, 3 * size - GRANULE), [0, RAM + 3 * size - GRANULE, 1]);
        assert_eq!(get(3 * size, 4 * size), [0, RAM + 4 * size, 0]);
        assert_eq!(get(4 * size - GRANULE, 4 * size), [0, RAM + 4 * size, 0]);
    }
}

#[test]
fn ranges_that_cannot_be_are_refused() {
    let mut h = machine(Granule::K16);
    for (base, top) in [
        (RAM, RAM),
        (RAM + GRANULE, RAM),
        (RAM + 8, RAM + GRANULE),
        (RAM, RAM + GRANULE / 2),
        (SHARED, SHARED + GRANULE),
        (SHARED - GRANULE, SHARED + GRANULE),
        (1 << 63, (1 << 63) + GRANULE),
        (RAM, !(GRANULE - 1)),
    ] {
        assert_eq!(
            answered(&mut h, &[GET, base, top]),
            [1],
            "{base:#x} {top:#x}"
        );
        for ripas in [0, 1] {
            let set = [SET, base, top, ripas, 0];
            assert_eq!(answered(&mut h, &set), [1], "{base:#x} {top:#x}");
        }
    }
    for ripas in [2, 3, 1 << 32 | 1, u64::MAX] {
        let set = [SET, RAM, RAM + GRANULE, ripas, 0];
        assert_eq!(answered(&mut h, &set), [1], "{ripas:#x}");
    }
    // The last that is its own is.
    let last = [GET, SHARED - GRANULE, SHARED];
    assert_eq!(answered(&mut h, &last), [0, SHARED, 0]);
}

#[test]
fn a_measurement_is_extended_by_up_to_64_bytes() {
    let mut h = machine(Granule::K4);
    let read = |h: &mut Host, index| answered::<9>(h, &[READ, index]);
    let mut seen = Vec::new();
    for size in 0..=64 {
        let before = read(&mut h, 2);
        let extend = [EXTEND, 2, size, 1, 2, 3, 4, 5, 6, 7, 8];
        assert_eq!(answered(&mut h, &extend), [0]);
        let after = read(&mut h, 2);
        assert_ne!(after, before, "{size}");
        seen.push(after);
    }
    for (index, size) in [
        (0, 32),
        (5, 32),
        (u64::MAX, 0),
        (2, 65),
        (2, 1 << 32),
        (2, u64::MAX),
    ] {
        assert_eq!(
            answered(&mut h, &[EXTEND, index, size]),
            [1],
            "{index} {size}"
        );
    }
    assert_eq!(seen.last(), Some(&read(&mut h, 2)));
    // The others are what they were, and the initial one is.
    assert_eq!(read(&mut h, 1), [0; 9]);
    assert_ne!(read(&mut h, 0)[1..], [0; 8]);
    for index in [5, 1 << 32, u64::MAX] {
        let [x0, x1] = answered(&mut h, &[READ, index]);
        assert_eq!((x0, x1), (1, 0), "{index}: no output");
    }
}

#[test]
fn structures_lie_aligned_in_memory_of_its_own() {
    for granule in [Granule::K4, Granule::K64] {
        let (mut h, size) = (machine(granule), granule.page_size());
        for (function, aligned) in [(CONFIG, GRANULE), (CALL, 0x100)] {
            for ipa in [
                RAM + 8,
                RAM + aligned / 2,
                SHARED | RAM,
                1 << 63 | RAM,
                1 << 40,
                // Never was RAM.
                RAM + 3 * size,
                u64::MAX,
            ] {
                assert_eq!(answered(&mut h, &[function, ipa]), [1], "{ipa:#x}");
            }
            // RAM, and not there: the host brings it, and the call is made again.
            let ipa = RAM + 2 * size - aligned;
            let (record, state) = exit(&mut h, &[function, ipa]);
            assert_eq!((record.esr, record.far), (0x24 << 26 | 0b00_0111, 0));
            assert_eq!(record.hpfar, ipa >> 12 << 4);
            assert_eq!((state.gprs.pc, state.gprs.x[0]), (PC, function));
            assert_eq!(state.pending, Pending::Nothing);
        }
    }
}

#[test]
fn what_a_realm_is_fills_4_kib_and_no_more() {
    for granule in [Granule::K4, Granule::K16, Granule::K64] {
        let (mut h, size) = (machine(granule), granule.page_size());
        let data = h.page(DATA);
        let word = |at: u64| data + at;
        for at in (0..size).step_by(8) {
            // SAFETY: the fake machine's memory, which nobody else uses.
            unsafe { phys::write(word(at), u64::MAX) };
        }
        let from = size - GRANULE;
        assert_eq!(answered(&mut h, &[CONFIG, RAM + from]), [0]);
        for at in (0..size).step_by(8) {
            let expected = match at.checked_sub(from) {
                None => u64::MAX,
                Some(0) => 40,
                Some(_) => 0,
            };
            // SAFETY: as above.
            assert_eq!(unsafe { phys::read::<u64>(word(at)) }, expected, "{at:#x}");
        }
    }
}

#[test]
fn a_call_of_the_host_takes_its_registers_along_and_back() {
    let mut h = machine(Granule::K4);
    let call = HostCall {
        imm: 0x1234,
        pad: [0xff; 6],
        gprs: core::array::from_fn(|n| 100 + n as u64),
    };
    let (at, answer) = (h.page(DATA) + 0x300, h.page(5));
    // SAFETY: the fake machine's memory, which nobody else uses.
    unsafe { phys::write(at, call) };
    let (record, state) = exit(&mut h, &[CALL, RAM + 0x300]);
    assert_eq!(record.reason, ExitReason::HostCall as u64);
    assert_eq!(
        (state.pending, state.gprs.pc),
        (Pending::HostCall(RAM + 0x300), PC + 4)
    );
    assert_eq!(state.host_call, call);
    let gprs: [u64; 31] = core::array::from_fn(|n| 200 + n as u64);
    // SAFETY: as above.
    unsafe { phys::write(answer, gprs) };
    // SAFETY: the fake machine's realm and vCPU.
    let (realm, rec) = unsafe { (Realm::at(h.page(1)), Rec::at(h.page(REC))) };
    let cpu = &mut h.cpu;
    let vcpu = RunningVcpu { cpu, realm, rec };
    assert!(finish_host_call(&vcpu, state, answer).is_ok());
    assert_eq!((state.pending, state.gprs.x[0]), (Pending::Nothing, 0));
    // SAFETY: as above.
    let after = unsafe { phys::read::<HostCall>(at) };
    assert_eq!(after, HostCall { gprs, ..call });
}

/// A realm that has its caches off, as it begins, writes and reads past them where the
/// CPU has no FEAT_S2FWB.
#[test]
fn a_realm_with_its_caches_off_meets_what_is_written() {
    for fwb in [false, true] {
        let mut h = machine_with(
            Granule::K4,
            match fwb {
                true => |features| features.fwb = true,
                false => |_| {},
            },
        );
        for (call, offset, size) in [(CONFIG, 0, GRANULE), (CALL, 0x300, 0x100)] {
            phys::fake::cleaned();
            let _ = smc(&mut h, &[call, RAM + offset]);
            let at = Region::new(h.page(DATA) + offset, size).expect("no overflow");
            let twice = if fwb { Vec::new() } else { Vec::from([at; 2]) };
            assert_eq!(phys::fake::cleaned(), twice, "{call:#x}");
        }
    }
}

#[test]
fn a_fault_of_any_level_is_told() {
    for (level, status) in [(-1, 0b10_1011), (0, 4), (1, 5), (3, 7)] {
        let record = Missing {
            ipa: 0x1_2345,
            level,
        }
        .exit();
        assert_eq!((record.esr & 0x3f, record.hpfar), (status, 0x120));
    }
}

/// The measurements of a token are those of the call that has memory for it.
#[test]
fn a_call_that_fails_signs_nothing() {
    const INIT: u64 = 0xC400_0194;
    const CONTINUE: u64 = 0xC400_0195;
    let (mut h, size) = (machine(Granule::K4), GRANULE);
    // The memory is looked at before the token is.
    let (empty, missing) = (RAM + 4 * size, RAM + size);
    assert_eq!(answered(&mut h, &[CONTINUE, empty, 0, size]), [1]);
    assert_eq!(answered(&mut h, &[CONTINUE, RAM, 0, size]), [2]);
    let [code, length] = answered(&mut h, &[INIT, 7]);
    assert_eq!(code, 0);
    // What all tokens are made with takes a call for each half of it.
    for _ in 0..2 {
        assert_eq!(answered(&mut h, &[CONTINUE, empty, 0, size]), [1]);
        assert_eq!(answered(&mut h, &[CONTINUE, RAM, 0, size]), [3, 0]);
    }
    assert_eq!(answered(&mut h, &[CONTINUE, empty, 0, size]), [1]);
    let (record, _) = exit(&mut h, &[CONTINUE, missing, 0, size]);
    assert_eq!(record.hpfar, missing >> 12 << 4);
    assert_eq!(answered(&mut h, &[EXTEND, 2, 32, 1, 2, 3, 4]), [0]);
    let measured: [u64; 9] = answered(&mut h, &[READ, 2]);
    assert_eq!(answered(&mut h, &[CONTINUE, RAM, 0, size]), [0, length]);
    // SAFETY: the fake machine's memory.
    let token = unsafe { phys::read::<[u8; 4096]>(h.page(DATA)) };
    let measured = zerocopy::IntoBytes::as_bytes(&measured[1..5]);
    assert!(token.windows(32).any(|part| part == measured));
}

/// Neither the step that makes the keys, nor one that vouches for them or signs: what a
/// token is made with is on no stack, in memory, when the realm goes on.
#[test]
fn a_token_leaves_no_key_behind() {
    use crate::memory::residue::OF_A_SIGNATURE;
    use arm64::recording::{Event, of};
    let mut h = machine(Granule::K4);
    assert_eq!(answered::<2>(&mut h, &[0xC400_0194, 7])[0], 0);
    for step in 0..3 {
        let events = of(|| {
            answered::<1>(&mut h, &[0xC400_0195, RAM, 0, GRANULE]);
        });
        let cleaned = |event: &&Event| matches!(event, Event::Instruction("dc civac", Some(_)));
        let lines = events.iter().filter(cleaned).count();
        assert!(lines >= OF_A_SIGNATURE / 64, "{step}: {lines}");
    }
}

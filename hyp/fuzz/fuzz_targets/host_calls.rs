//! A hostile host calls what it likes with what it likes (REC_ENTER apart, which
//! needs a CPU). Whatever it did: no panic and no stray access; memory that it
//! gave away is not in its stage 2 and memory that it has is; delegated granules
//! are zero; and in the end it gets all of it back, uncounted.
//! `cargo fuzz run host_calls -- -max_len=1600 -len_control=0`.

#![no_main]

use hyp::memory::granule::State;
use hyp::memory::phys;
use hyp::rmi::Answer;
use hyp::rmi::fake::{Host, RAM};
use libfuzzer_sys::fuzz_target;
use pgtable::Granule;
use rmi::params::{RealmFlags, RealmParams, RecFlags, RecParams, index_mpidr};
use rmi::vendor::Vendor;
use rmi::{Command, NOT_SUPPORTED, Status, fid, rtt};
use zerocopy::{FromZeros, IntoBytes};

const DESC: u64 =
    rtt::MEMATTR_NORMAL_WB << rtt::DESC_MEMATTR_SHIFT | rtt::DESC_READ | rtt::DESC_WRITE;

/// The host's RAM.
const RAM_SIZE: u64 = 4 << 20;

/// Calls of which many are needed, beside one of each.
const OFTEN: [u64; 19] = [
    fid::RMI_GRANULE_DELEGATE,
    fid::RMI_GRANULE_DELEGATE,
    fid::RMI_GRANULE_DELEGATE,
    fid::RMI_GRANULE_DELEGATE,
    fid::RMI_GRANULE_DELEGATE,
    fid::RMI_RTT_CREATE,
    fid::RMI_RTT_CREATE,
    fid::RMI_RTT_CREATE,
    fid::RMI_RTT_MAP_UNPROTECTED,
    fid::RMI_RTT_MAP_UNPROTECTED,
    fid::RMI_REALM_CREATE,
    fid::RMI_REC_CREATE,
    fid::RMI_REC_CREATE,
    fid::RMI_RTT_UNMAP_UNPROTECTED,
    fid::RMI_DATA_CREATE,
    fid::RMI_DATA_CREATE_UNKNOWN,
    fid::RMI_DATA_CREATE_UNKNOWN,
    fid::RMI_RTT_INIT_RIPAS,
    0,
];

/// The `n`th call that is made at random.
fn function(n: usize) -> u64 {
    let tables = [Command::TABLE, Vendor::TABLE].into_iter().flatten();
    let each = tables
        .map(|info| info.function)
        .filter(|function| *function != fid::RMI_REC_ENTER);
    let all: Vec<u64> = each.chain(OFTEN).collect();
    all[n % all.len()]
}

/// Makes a call, all of it; its answer is one of RMI's.
fn call(host: &mut Host, x: [u64; 6]) -> Answer {
    let answer = host.call(x);
    let known = answer[0] == NOT_SUPPORTED || Status::unpack(answer[0]).is_some();
    assert!(known, "{x:x?} answers {:#x}", answer[0]);
    answer
}

#[track_caller]
fn ok(host: &mut Host, command: Command) -> Answer {
    let answer = call(host, command.encode());
    assert_eq!(answer[0], 0, "{command:x?}");
    answer
}

/// Writes to a page if it is the host's.
fn write<T: IntoBytes>(host: &Host, n: u64, value: T) {
    if host.granule(n).state() == State::Ns {
        // SAFETY: the page is the fake host's.
        unsafe { phys::write(host.page(n), value) }
    }
}

fn realm_params(host: &Host, vmid: u16, root: u64, bits: u8) -> RealmParams {
    let geometry = host.geometry();
    let mut params = RealmParams::new_zeroed();
    let mode = if vmid < 2 {
        RealmFlags::NONCONF
    } else {
        RealmFlags::PROTECTED
    };
    params.flags = (mode | RealmFlags::EL2_VGIC).bits();
    params.s2sz = bits;
    params.vmid = vmid;
    params.rtt_base = host.page(root);
    params.rtt_level_start = i64::from(geometry.start().get());
    params.rtt_num_start = geometry.root_tables() as u32;
    params
}

/// A number that means something often enough.
fn argument(host: &Host, selector: u8, raw: u64) -> u64 {
    let n = u64::from(selector);
    match selector {
        0..=95 => host.page(n),
        96..=103 => n - 96,
        104..=119 => (n - 104) << 28,
        120..=183 => host.page(n - 120) | DESC,
        184..=215 => (RAM + ((n - 184) << 21)) | DESC,
        216..=239 => RAM + ((n - 216) << 21),
        _ => raw,
    }
}

/// A realm at page 1 with its roots from page 16 on, to begin with.
fn realm(host: &mut Host, vmid: u16) {
    let roots = host.geometry().root_tables() as u64;
    for n in [1].into_iter().chain(16..16 + roots) {
        let pa = host.page(n);
        ok(host, Command::GranuleDelegate { pa });
    }
    write(host, 2, realm_params(host, vmid, 16, 40));
    let (rd, params) = (host.page(1), host.page(2));
    ok(host, Command::RealmCreate { rd, params });
}

fn step(host: &mut Host, bytes: &[u8; 16]) {
    let raw = u64::from_le_bytes(*bytes.last_chunk().expect("sixteen"));
    let n = u64::from(bytes[1]) % host.pages().min(96);
    match bytes[0] {
        // The host writes what calls read.
        0..=15 => {
            let (vmid, root) = (u16::from(bytes[2] % 4), u64::from(bytes[3]) % 96);
            let mut params = realm_params(host, vmid, root, 40);
            match bytes[4] % 8 {
                0 => params.s2sz = bytes[5],
                1 => params.rtt_num_start = bytes[5].into(),
                2 => params.rtt_level_start = raw as i64 % 8,
                3 => params.flags = raw,
                4 => params.rtt_base = raw,
                _ => {}
            }
            write(host, n, params);
        }
        16..=31 => {
            let mut params = RecParams::new_zeroed();
            params.mpidr = index_mpidr(u64::from(bytes[2] % 4));
            params.flags = RecFlags::RUNNABLE.bits() & u64::from(bytes[3]);
            match bytes[4] % 8 {
                0 => params.mpidr = raw,
                1 => params.flags = raw,
                2 => params.num_aux = raw,
                _ => params.pc = raw,
            }
            write(host, n, params);
        }
        32..=35 => write(host, n, [raw; 512]),
        which => {
            let function = function(which as usize - 36);
            let [a, b, c, d, e] = [1, 2, 3, 4, 5].map(|at| argument(host, bytes[at], raw));
            call(host, [function, a, b, c, d, e]);
        }
    }
}

/// The states of all granules agree with what the host can reach.
fn check(host: &Host) {
    for (n, mapped) in (0..).zip(host.mapped()) {
        let granule = host.granule(n);
        let state = granule.state();
        assert_eq!(mapped, state == State::Ns, "page {n} is {state:?}");
        if state == State::Delegated {
            assert!(host.is_zero(n), "page {n} is delegated and not zero");
            assert_eq!(granule.count(), 0, "page {n}");
        }
    }
}

fn in_state(host: &Host, state: State) -> Vec<u64> {
    (0..host.pages())
        .filter(|n| host.granule(*n).state() == state)
        .map(|n| host.page(n))
        .collect()
}

/// Takes a realm's memory out of it. There are no blocks: RAM is too small.
fn take_memory(host: &mut Host, rd: u64) {
    let mut ipa = 0;
    loop {
        let answer = call(host, Command::DataDestroy { rd, ipa }.encode());
        match Status::unpack(answer[0]) {
            // The end of what is its own; a plain guest's is at once.
            Some(Status::ErrorInput) => return,
            Some(Status::Success | Status::ErrorRtt(_)) => {}
            other => panic!("DATA_DESTROY: {other:?}"),
        }
        assert!(answer[2] > ipa, "top {:#x} is not past {ipa:#x}", answer[2]);
        ipa = answer[2];
    }
}

/// Takes everything down, as a host would that has lost its books.
fn take_down(host: &mut Host) {
    for rec in in_state(host, State::Rec) {
        ok(host, Command::RecDestroy { rec });
    }
    for rd in in_state(host, State::Rd) {
        take_memory(host, rd);
        for level in (0..=3).rev() {
            let mut ipa = 0;
            loop {
                let answer = call(host, Command::RttDestroy { rd, ipa, level }.encode());
                match Status::unpack(answer[0]) {
                    // The end of the space, or no such level in this realm.
                    Some(Status::ErrorInput) => break,
                    Some(Status::Success | Status::ErrorRtt(_)) => {}
                    other => panic!("RTT_DESTROY: {other:?}"),
                }
                assert!(answer[2] > ipa, "top {:#x} is not past {ipa:#x}", answer[2]);
                ipa = answer[2];
            }
        }
        ok(host, Command::RealmDestroy { rd });
    }
    for pa in in_state(host, State::Delegated) {
        ok(host, Command::GranuleUndelegate { pa });
    }
    for n in 0..host.pages() {
        let granule = host.granule(n);
        let (state, count) = (granule.state(), granule.count());
        assert_eq!((state, count), (State::Ns, 0), "page {n}");
    }
    // No span is counted either: blocks may be mapped again.
    let granules = &host.system.granules;
    let span = granules.span_size();
    for at in (RAM..RAM + RAM_SIZE).step_by(span as usize) {
        if at + span <= RAM + RAM_SIZE && at % span == 0 {
            assert!(granules.get_block(at), "span {at:#x} is counted");
            granules.put_block(at);
        }
    }
    assert!(host.mapped().iter().all(|mapped| *mapped));
    assert_eq!(host.tables(), 0, "its stage 2 is whole again");
}

fuzz_target!(|data: &[u8]| {
    let ([which, rest @ ..], _) = data.as_chunks::<16>() else {
        return;
    };
    let granule = Granule::ALL[[0, 0, 1, 2][which[0] as usize & 3]];
    let mut host = Host::new(granule, RAM_SIZE);
    if which[1] & 3 != 0 {
        realm(&mut host, u16::from(which[1] & 3));
    }
    for bytes in rest {
        step(&mut host, bytes);
    }
    check(&host);
    take_down(&mut host);
});

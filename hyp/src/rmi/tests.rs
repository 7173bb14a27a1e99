//! The handlers against a fake machine: RAM in a buffer, no CPU behind.
//!
//! A plain guest's life from first to last, the order of refusals, and random
//! hostile hosts: whatever they call, nothing panics, and what they gave away
//! comes back whole.

extern crate std;

mod between;
mod conformance;
mod exits;
mod fast;
mod host_lrs;
mod hostile;
mod interrupts;
mod locks;
mod posted;
mod protected;
mod ranges;
mod recs;
mod registers;
mod runs;
mod tables;

use std::vec::Vec;

use ::rmi::params::{RealmFlags, RealmParams, RecFlags, RecParams, index_mpidr};
use ::rmi::run::EnterFlags;
use ::rmi::{NOT_SUPPORTED, Status, fid, psci, rtt, vendor};
use pgtable::Granule;
use proptest::prelude::*;
use zerocopy::{FromZeros, IntoBytes};

use ::rmi::registers::{Finish, Registers};
use arm64::regs::VTCR_EL2;
use arm64::syndrome::Syndrome;

use super::Answer;
use super::fake::{Host, RAM};
use crate::cpu::context::El1;
use crate::features::GranuleSupport;
use crate::memory::granule::State;
use crate::memory::phys;
use crate::memory::region::Region;
use crate::realm::Realm;
use crate::rec::{NO_PE, Pending, Rec, VcpuState};

/// The host's RAM, unless more is needed.
const RAM_SIZE: u64 = 8 << 20;

/// X0 to X5 of a call, as a host has them that names no type.
fn raw(function: u64, args: &[u64]) -> [u64; 6] {
    let mut x = [0; 6];
    x[0] = function;
    x[1..=args.len()].copy_from_slice(args);
    x
}

impl Host {
    fn status(&mut self, function: u64, args: &[u64]) -> Status {
        Status::unpack(self.call(raw(function, args))[0]).expect("a status")
    }

    #[track_caller]
    fn ok(&mut self, function: u64, args: &[u64]) -> Answer {
        let answer = self.call(raw(function, args));
        assert_eq!(answer[0], 0, "{function:#x} {args:x?}");
        answer
    }

    fn state(&self, n: u64) -> State {
        self.system.granules.get(self.page(n)).unwrap().state()
    }

    fn write<T: IntoBytes>(&self, n: u64, value: T) {
        // SAFETY: the page is the fake host's.
        unsafe { phys::write(self.page(n), value) }
    }

    fn realm_params(&self, vmid: u16, root: u64) -> RealmParams {
        let geometry = self.geometry();
        let mut p = RealmParams::new_zeroed();
        p.flags = (RealmFlags::NONCONF | RealmFlags::EL2_VGIC).bits();
        p.s2sz = 40;
        (p.num_bps, p.num_wps) = (1, 1);
        p.vmid = vmid;
        p.rtt_base = self.page(root);
        p.rtt_level_start = i64::from(geometry.start().get());
        p.rtt_num_start = geometry.root_tables() as u32;
        p
    }

    /// RD at page 1, roots from 16 on (aligned for 16 of them), params at 2.
    pub(crate) fn realm(&mut self) {
        self.realm_of(RealmFlags::NONCONF);
    }

    /// The same, of another mode.
    pub(crate) fn realm_of(&mut self, mode: RealmFlags) {
        self.realm_with(|params| params.flags = (mode | RealmFlags::EL2_VGIC).bits());
    }

    /// The same, of these parameters.
    fn realm_with(&mut self, change: impl FnOnce(&mut RealmParams)) {
        let mut params = self.realm_params(1, 16);
        change(&mut params);
        let roots = u64::from(params.rtt_num_start);
        for n in (16..16 + roots).chain([1]) {
            self.ok(fid::RMI_GRANULE_DELEGATE, &[self.page(n)]);
        }
        self.write(2, params);
        self.ok(fid::RMI_REALM_CREATE, &[self.page(1), self.page(2)]);
    }

    /// Gives the realm so many RECs; one more is refused.
    fn fill_with_recs(&mut self, most: u64) {
        for index in 0..most {
            self.rec(index, 100 + index);
        }
        let mut p = RecParams::new_zeroed();
        p.mpidr = index_mpidr(most);
        self.write(2, p);
        self.ok(fid::RMI_GRANULE_DELEGATE, &[self.page(60)]);
        let args = [self.page(1), self.page(60), self.page(2)];
        let refused = self.status(fid::RMI_REC_CREATE, &args);
        assert_eq!(refused, Status::ErrorRealm(0));
    }

    pub(crate) fn rec(&mut self, index: u64, page: u64) {
        let mut p = RecParams::new_zeroed();
        p.flags = RecFlags::RUNNABLE.bits();
        p.mpidr = index_mpidr(index);
        self.write(2, p);
        self.ok(fid::RMI_GRANULE_DELEGATE, &[self.page(page)]);
        self.ok(
            fid::RMI_REC_CREATE,
            &[self.page(1), self.page(page), self.page(2)],
        );
    }
}

#[test]
fn a_vcpus_number_is_masked_before_it_indexes() {
    use arm64::recording::{Event, of};
    let mut h = Host::new(Granule::K4, RAM_SIZE);
    h.realm();
    h.rec(0, 60);
    // SAFETY: the fake machine's RD, which nobody takes.
    let realm = unsafe { Realm::at(h.page(1)) };
    let masked = Event::Instruction("csdb", None);
    assert_eq!(of(|| assert!(realm.rec(0).is_some())), [masked]);
    assert_eq!(of(|| assert!(realm.rec(1).is_none())), [masked]);
    assert_eq!(of(|| assert!(realm.rec(64).is_none())), []);
}

/// A vCPU whose last exit was an abort without a syndrome, and its state.
fn aborted(h: &mut Host) -> &'static mut VcpuState {
    h.realm();
    h.rec(0, 60);
    // SAFETY: the fake machine's REC, which nobody runs.
    let run = unsafe { &mut *Rec::at(h.page(60)).state.get() };
    run.pending = Pending::Abort(Syndrome(0x9200_0006), 0x900_0000);
    (run.gprs.pc, run.gprs.pstate) = (0x4000_0000, 0x8020_0c05);
    run.el1.vbar = 0x4000_8000;
    run
}

const DESC: u64 =
    rtt::MEMATTR_NORMAL_WB << rtt::DESC_MEMATTR_SHIFT | rtt::DESC_READ | rtt::DESC_WRITE;

#[test]
fn random_numbers_are_never_the_same() {
    let mut h = Host::new(Granule::K4, RAM_SIZE);
    let mut words: Vec<u64> = Vec::new();
    for _ in 0..20 {
        words.extend(&h.ok(vendor::RANDOM, &[])[1..]);
    }
    words.sort_unstable();
    words.dedup();
    assert_eq!(words.len(), 80);
}

/// What they were drawn from is on no stack, in memory.
#[test]
fn who_asks_for_random_numbers_leaves_none_of_their_state() {
    use crate::memory::residue::OF_RANDOM_NUMBERS;
    use arm64::recording::{Event, of};
    let mut h = Host::new(Granule::K4, RAM_SIZE);
    let events = of(|| {
        h.ok(vendor::RANDOM, &[]);
    });
    let cleaned = |event: &&Event| matches!(event, Event::Instruction("dc civac", Some(_)));
    assert!(events.iter().filter(cleaned).count() >= OF_RANDOM_NUMBERS / 64);
}

/// Of exits there are as many as are kept, the oldest of those first: what is behind them
/// in the host's page stays, and what is behind the page.
#[test]
fn of_a_history_no_more_is_told_than_is_kept() {
    let mut h = Host::new(Granule::K4, RAM_SIZE);
    h.realm();
    h.rec(0, 60);
    // SAFETY: the fake machine's vCPU, which nobody runs.
    let run = unsafe { &mut *Rec::at(h.page(60)).state.get() };
    let (kept, size) = (vendor::HISTORY_LEN as u64, size_of::<vendor::Exit>() as u64);
    for exits in [3, kept, kept + 1, 20, 1000] {
        run.exits = 0;
        for n in 0..exits {
            run.note(vendor::Exit {
                time: n,
                ..Default::default()
            });
        }
        h.write(3, [0xa5u8; 4096]);
        h.write(4, [0xa5u8; 4096]);
        let told = exits.min(kept);
        let answer = h.ok(vendor::REC_HISTORY, &[h.page(60), h.page(3)]);
        assert_eq!(answer[1], told);
        // SAFETY: the fake machine's pages.
        let word = |at: u64| unsafe { phys::read::<u64>(h.page(3) + at) };
        let times: Vec<_> = (0..told).map(|n| word(n * size)).collect();
        let last: Vec<_> = (exits - told..exits).collect();
        assert_eq!(times, last);
        let rest = (told * size..8192).step_by(8);
        assert!(rest.map(word).all(|word| word == 0xa5a5_a5a5_a5a5_a5a5));
    }
}

/// CNTx_CTL_EL0: what is off, or masked, wakes nobody; nor is there a third level of a line.
#[test]
fn who_waits_is_woken_by_a_timer_that_asserts() {
    use arm64::regs::CNTPCT_EL0;
    use vgic::{At, Frame};
    let mut h = Host::new(Granule::K4, RAM_SIZE);
    h.realm();
    h.rec(0, 60);
    let rd = h.page(1);
    // SAFETY: the fake machine's realm and vCPU, which nobody runs.
    let (realm, run) = unsafe { (Realm::at(rd), &mut *Rec::at(h.page(60)).state.get()) };
    run.interface.vmcr = vgic::vmcr::VENG0 | vgic::vmcr::VENG1 | 0xf8 << 24;
    realm.with_vgic(Some(0), |v| {
        v.write(0, Frame::Distributor, At { offset: 0, size: 4 }, 0b11);
        let at = At {
            offset: 0x100,
            size: 4,
        };
        v.write(0, Frame::Sgi(0), at, 1 << 27 | 1 << 30);
    });
    arm64::recording::set(CNTPCT_EL0, 100);
    for (ctl, cval, woken) in [
        (0, 0, 0),
        (1, 100, 1),
        (1, 101, 0),
        (2, 100, 0),
        (3, 100, 0),
    ] {
        for of_virtual in [true, false] {
            (run.vtimer, run.ptimer) = Default::default();
            if of_virtual {
                (run.vtimer.ctl, run.vtimer.cval) = (ctl, cval);
            } else {
                (run.ptimer.ctl, run.ptimer.cval) = (ctl, cval);
            }
            let pending = h.ok(vendor::REC_PENDING, &[h.page(60)])[1];
            assert_eq!(pending, woken, "{ctl} {cval} {of_virtual}");
        }
    }
    for level in [2, u64::MAX] {
        let set = h.status(vendor::SET_SPI, &[rd, 32, level]);
        assert_eq!(set, Status::ErrorInput);
    }
}

#[test]
fn a_plain_guest_from_first_to_last() {
    for granule in Granule::ALL {
        let mut h = Host::new(granule, RAM_SIZE);
        h.realm();
        let rd = h.page(1);
        let g = h.geometry();
        // Tables down to level 3 at IPA 1 GiB, then one page.
        let mut tables = Vec::new();
        for level in g.start().get() + 1..=3 {
            let page = 40 + level as u64;
            h.ok(fid::RMI_GRANULE_DELEGATE, &[h.page(page)]);
            h.ok(fid::RMI_RTT_CREATE, &[rd, h.page(page), RAM, level as u64]);
            assert_eq!(h.state(page), State::Rtt);
            tables.push((level, page));
        }
        h.ok(
            fid::RMI_RTT_MAP_UNPROTECTED,
            &[rd, RAM, 3, h.page(50) | DESC],
        );
        let entry = h.ok(fid::RMI_RTT_READ_ENTRY, &[rd, RAM, 3]);
        assert_eq!(entry[1..4], [3, 1, h.page(50) | DESC]);

        // Mapped memory cannot be given away; unmapped it can.
        assert_eq!(
            h.status(fid::RMI_GRANULE_DELEGATE, &[h.page(50)]),
            Status::ErrorInput
        );
        h.ok(fid::RMI_RTT_UNMAP_UNPROTECTED, &[rd, RAM, 3]);
        h.ok(fid::RMI_GRANULE_DELEGATE, &[h.page(50)]);
        h.ok(fid::RMI_GRANULE_UNDELEGATE, &[h.page(50)]);
        h.ok(
            fid::RMI_RTT_MAP_UNPROTECTED,
            &[rd, RAM, 3, h.page(50) | DESC],
        );

        h.rec(0, 60);
        h.rec(1, 61);
        h.ok(fid::RMI_REALM_ACTIVATE, &[rd]);
        assert_eq!(
            h.status(fid::RMI_REALM_DESTROY, &[rd]),
            Status::ErrorRealm(0),
            "has RECs"
        );
        h.ok(fid::RMI_REC_DESTROY, &[h.page(60)]);
        h.ok(fid::RMI_REC_DESTROY, &[h.page(61)]);
        if !tables.is_empty() {
            assert_eq!(
                h.status(fid::RMI_REALM_DESTROY, &[rd]),
                Status::ErrorRealm(0),
                "has tables"
            );
        }
        for &(level, page) in tables.iter().rev() {
            let gone = h.ok(fid::RMI_RTT_DESTROY, &[rd, RAM, level as u64]);
            assert_eq!(gone[1], h.page(page));
            assert!(gone[2] > RAM, "top is past it");
            h.ok(fid::RMI_GRANULE_UNDELEGATE, &[h.page(page)]);
        }
        h.ok(fid::RMI_REALM_DESTROY, &[rd]);
        for page in [1, 16, 60, 61] {
            assert_eq!(h.state(page), State::Delegated);
            h.ok(fid::RMI_GRANULE_UNDELEGATE, &[h.page(page)]);
        }
        let count = h.system.granules.get(h.page(50)).unwrap().count();
        assert_eq!(
            count, 0,
            "destroying the leaf table let go of what it mapped"
        );
    }
}

#[test]
fn what_comes_back_is_zero() {
    let mut h = Host::new(Granule::K4, RAM_SIZE);
    h.write(5, [0xffu8; 4096]);
    h.ok(fid::RMI_GRANULE_DELEGATE, &[h.page(5)]);
    h.ok(fid::RMI_GRANULE_UNDELEGATE, &[h.page(5)]);
    // SAFETY: the fake host's page.
    let bytes: [u8; 4096] = unsafe { phys::read(h.page(5)) };
    assert_eq!(bytes, [0; 4096]);
}

#[test]
fn arguments_named_twice_are_refused() {
    let mut h = Host::new(Granule::K4, RAM_SIZE);
    h.ok(fid::RMI_GRANULE_DELEGATE, &[h.page(16)]);
    h.ok(fid::RMI_GRANULE_DELEGATE, &[h.page(17)]);
    h.write(2, h.realm_params(1, 16));
    let create = |h: &mut Host, rd, params| h.status(fid::RMI_REALM_CREATE, &[rd, params]);
    let (a, b, params) = (h.page(16), h.page(17), h.page(2));
    assert_eq!(
        create(&mut h, a, params),
        Status::ErrorInput,
        "rd is a root"
    );
    assert_eq!(
        create(&mut h, b, params),
        Status::ErrorInput,
        "rd is the other root"
    );
    assert_eq!(create(&mut h, params, params), Status::ErrorInput);
    assert_eq!(
        (h.state(16), h.state(17)),
        (State::Delegated, State::Delegated)
    );
}

/// Neither fewer than a walk may index, nor more, which it would never reach.
#[test]
fn a_realm_has_the_root_tables_that_its_addresses_take() {
    for granule in Granule::ALL {
        let mut h = Host::new(granule, RAM_SIZE);
        let roots = h.geometry().root_tables() as u64;
        let all = 16..=16 + roots;
        for n in all.clone().chain([1]) {
            h.ok(fid::RMI_GRANULE_DELEGATE, &[h.page(n)]);
        }
        for (count, status) in [
            (roots - 1, Status::ErrorInput),
            (roots + 1, Status::ErrorInput),
            (roots, Status::Success),
        ] {
            let mut params = h.realm_params(1, 16);
            params.rtt_num_start = count as u32;
            h.write(2, params);
            let created = h.status(fid::RMI_REALM_CREATE, &[h.page(1), h.page(2)]);
            assert_eq!(created, status, "{granule:?}: {count} of {roots}");
            let used = all.clone().filter(|n| h.state(*n) == State::Rtt).count() as u64;
            let expected = if status == Status::Success { roots } else { 0 };
            assert_eq!(used, expected, "{granule:?}: {count} of {roots}");
        }
    }
}

/// Descriptors of 52 bits with 4K and 16K, VTCR_EL2.DS: addresses of more than 48 bits
/// take them, others may have them. 64K has none of that kind.
#[test]
fn a_realm_has_lpa2_where_its_host_says_so() {
    use Granule::{K4, K16, K64};
    // Granule and bits, start level and root tables, LPA2: whether there is such a realm.
    for ((granule, bits), (start, roots), lpa2, made) in [
        ((K4, 52), (-1, 1), true, true),
        ((K4, 52), (-1, 1), false, false),
        ((K4, 52), (0, 16), true, true),
        ((K4, 52), (0, 16), false, false),
        ((K4, 49), (0, 2), false, false),
        ((K4, 48), (0, 1), true, true),
        ((K4, 48), (0, 1), false, true),
        ((K16, 52), (0, 1), true, true),
        ((K16, 52), (0, 1), false, false),
        ((K16, 49), (1, 4), true, true),
        ((K16, 49), (1, 4), false, false),
        ((K16, 48), (1, 2), true, true),
        ((K16, 48), (1, 2), false, true),
        ((K64, 52), (1, 1), true, false),
        ((K64, 52), (1, 1), false, true),
    ] {
        let mut h = Host::with(granule, RAM_SIZE, |f| {
            f.pa_bits = 52;
            f.stage2 = [
                GranuleSupport::Lpa2,
                GranuleSupport::Lpa2,
                GranuleSupport::Yes,
            ];
        });
        for n in (16..16 + roots).chain([1]) {
            h.ok(fid::RMI_GRANULE_DELEGATE, &[h.page(n)]);
        }
        let mut params = h.realm_params(1, 16);
        let mut flags = RealmFlags::NONCONF | RealmFlags::EL2_VGIC;
        flags.set(RealmFlags::LPA2, lpa2);
        params.flags = flags.bits();
        (params.s2sz, params.rtt_level_start) = (bits, start);
        params.rtt_num_start = roots as u32;
        h.write(2, params);
        let what = std::format!("{granule:?}: {bits} bits from {start}, LPA2 {lpa2}");
        let status = h.status(fid::RMI_REALM_CREATE, &[h.page(1), h.page(2)]);
        let expected = [Status::ErrorInput, Status::Success][usize::from(made)];
        assert_eq!(status, expected, "{what}");
        if made {
            // SAFETY: the fake machine's RD, which nobody takes.
            let vtcr = unsafe { Realm::at(h.page(1)) }.vtcr;
            assert_eq!(VTCR_EL2::DS.is_set(vtcr), lpa2, "{what}: {vtcr:#x}");
            assert_eq!(VTCR_EL2::T0SZ.read(vtcr), 64 - u64::from(bits), "{what}");
        }
    }
}

#[test]
fn realms_do_not_share_a_vmid() {
    let mut h = Host::new(Granule::K4, RAM_SIZE);
    h.realm();
    for page in [3, 32, 33] {
        h.ok(fid::RMI_GRANULE_DELEGATE, &[h.page(page)]);
    }
    h.write(2, h.realm_params(1, 32));
    assert_eq!(
        h.status(fid::RMI_REALM_CREATE, &[h.page(3), h.page(2)]),
        Status::ErrorInput
    );
    h.write(2, h.realm_params(u16::MAX, 32));
    assert_eq!(
        h.status(fid::RMI_REALM_CREATE, &[h.page(3), h.page(2)]),
        Status::ErrorInput,
        "EL2's"
    );
    h.write(2, h.realm_params(2, 32));
    h.ok(fid::RMI_REALM_CREATE, &[h.page(3), h.page(2)]);
}

#[test]
fn what_is_not_there_says_so() {
    let mut h = Host::new(Granule::K4, RAM_SIZE);
    for function in [0xc400_0156, 0xc400_0160, 0xc400_0163, 0xc600_00ff, 0] {
        assert_eq!(
            h.call(raw(function, &[]))[0],
            NOT_SUPPORTED,
            "{function:#x}"
        );
    }
    assert_eq!(
        h.call(raw(fid::RMI_VERSION, &[0x1_0000]))[..3],
        [0, 0x1_0000, 0x1_0000]
    );
    assert_eq!(
        h.call(raw(fid::RMI_VERSION, &[0x2_0000]))[..3],
        [1, 0x1_0000, 0x1_0000]
    );
    assert_eq!(h.ok(fid::RMI_FEATURES, &[1])[1], 0);
    assert_eq!(h.ok(vendor::VERSION, &[])[1], vendor::VERSION_1_0);
    assert_eq!(h.status(vendor::MEMORY_RANGE, &[3]), Status::ErrorInput);
    assert_eq!(
        h.status(vendor::LOG, &[3, RAM + 4000, 200]),
        Status::ErrorInput,
        "over the granule's end"
    );
    assert_eq!(
        h.status(vendor::LOG, &[3, u64::MAX, 256]),
        Status::ErrorInput
    );
}

/// What a guest's or a file's text could hide or forge with is refused, whoever
/// lets it through.
#[test]
fn the_log_takes_plain_text_only() {
    let mut h = Host::new(Granule::K4, RAM_SIZE);
    let mut log = |text: &str| {
        let mut line = [0; 64];
        line[..text.len()].copy_from_slice(text.as_bytes());
        h.write(3, line);
        h.status(vendor::LOG, &[3, RAM + 3 * 0x1000, text.len() as u64])
    };
    for text in ["", "guest a: hello", "naïve 日本語 🙂"] {
        assert_eq!(log(text), Status::Success, "{text}");
    }
    for bad in [
        "\n",
        "\r",
        "\0",
        "\t",
        "\u{1b}[2J",
        "\u{7f}",
        "\u{9b}",
        "\u{ad}",
        "\u{200b}",
        "\u{2028}",
        "\u{2029}",
        "\u{202e}",
        "\u{2066}",
        "\u{feff}",
        "\u{fe0f}",
        "\u{e0041}",
    ] {
        assert_eq!(log(&std::format!("a{bad}b")), Status::ErrorInput, "{bad:?}");
    }
    // The log's UART is the host's here, or there is none.
    assert_eq!(h.status(vendor::LOG_INPUT, &[]), Status::ErrorInput);
}

//! How long the host looks at what a realm shares, by one change of its RAM: no guest
//! chooses how long the host works.

use std::time::{Duration, Instant};

use arm64::recording;
use guest_config::{Mode, PERSONALIZATION};
use host_loader::granules::Granules;
use host_loader::guest::live::LiveRam;
use host_loader::guest::ram::GuestRam;
use host_loader::guest::realm::{BuildContext, Kind, Realm, Shape};
use host_loader::guest::sharing::Asked;
use host_loader::pace::{Pace, at_once};
use rmi::call::HostCall;
use rmi::feature::VendorFeatures;
use rmi::{Command, Status};
use spin::Mutex;

const BASE: u64 = 0x4000_0000;
const SIZE: u64 = 4 << 30;
/// What a table of level 3 spans: as far as one RTT_SET_RIPAS comes.
const TABLE: u64 = 2 << 20;

/// The least of several.
fn least(mut what: impl FnMut()) -> Duration {
    let times = (0..5).map(|_| {
        let begin = Instant::now();
        what();
        begin.elapsed()
    });
    times.min().expect("five")
}

/// A realm on an EL2 that refuses nothing, in granules of `1 << shift` bytes.
fn with_realm(shift: u32, f: impl FnOnce(&Mutex<Granules>, &Realm)) {
    let mut bytes = vec![0u8; 4 << 20];
    let start = (bytes.as_mut_ptr().expose_provenance() as u64).next_multiple_of(1 << 16);
    let memory = start..start + (3 << 20);
    let granules = Mutex::new(Granules::new(1 << shift, &[memory], &[]));
    recording::reset();
    recording::answer_calls(Box::new(|call| {
        let reached = match HostCall::decode(call) {
            Some(HostCall::Rmi(Command::RttSetRipas { base, top, .. })) => {
                top.min((base + 1).next_multiple_of(TABLE))
            }
            _ => 0,
        };
        [Status::Success.pack(), reached, 0, 0, 0]
    }));
    let features = VendorFeatures {
        granule_shift: shift as u8,
        pa_bits: 48,
        fwb: true,
        nonconf: true,
        el2_vgic: true,
        protected: true,
        vmid16: true,
    };
    let pace = Pace::new();
    let context = BuildContext {
        granules: &granules,
        pace: &pace,
    };
    let kind = Kind {
        mode: Mode::Realm,
        shape: Shape::for_ipas(shift, 2 * (BASE + SIZE)),
        by_pages: false,
        lazy: true,
        personalization: [0; PERSONALIZATION],
    };
    let realm = at_once(Realm::create(context, kind, &features)).expect("EL2 refuses nothing");
    f(&granules, &realm);
}

/// What one vCPU has taken back goes on where it stopped, whatever another asks for in
/// between: no granule amid it is taken for its begin, and kept shared.
#[test]
fn a_change_goes_on_beside_anothers() {
    for beside in [false, true] {
        with_realm(16, |granules, realm| {
            let mut bytes = vec![0u8; 6 << 20];
            let at = (bytes.as_mut_ptr().expose_provenance() as u64).next_multiple_of(TABLE);
            // SAFETY: a part of `bytes`, which outlives it and which nobody else accesses.
            let ram = unsafe {
                GuestRam::of_realm(BASE, std::slice::from_ref(&(at..at + 2 * TABLE)), 16)
            };
            let ram = ram.shared().clone();
            let (all, second) = (BASE..BASE + 2 * TABLE, BASE + TABLE);
            ram.shares().lock().set_empty(&all, true);
            let live = LiveRam::new(ram.clone(), realm.stage2(), true);
            let touched = live.touch(granules, realm.shared() + second);
            touched.expect("it is EMPTY").expect("EL2 refuses nothing");
            let free = granules.lock().free_bytes();
            let change = |rec, ipas| {
                let changed = live.change(granules, rec, ipas, Asked::Ram);
                changed.expect("all RAM").expect("EL2 refuses nothing");
            };
            change(0x1000, all.clone());
            if beside {
                change(0x2000, BASE..BASE + 0x1_0000);
            }
            change(0x1000, second..all.end);
            let shares = ram.shares().lock();
            assert!(!shares.is_mapped(second), "beside another: {beside}");
            assert_eq!(granules.lock().free_bytes(), free);
        });
    }
}

#[test]
fn what_is_empty_already_is_looked_at_once_for_an_exit() {
    with_realm(12, look_once);
}

fn look_once(granules: &Mutex<Granules>, realm: &Realm) {
    // Nobody touches it: all of it is EMPTY, and never was the realm's.
    let elsewhere = 0x100_0000_0000..0x100_0000_0000 + SIZE;
    // SAFETY: it is never accessed: no granule of it has been the realm's.
    let ram = unsafe { GuestRam::of_realm(BASE, &[elsewhere], 12) };
    let ram = ram.shared().clone();
    let all = BASE..BASE + SIZE;
    ram.shares().lock().set_empty(&all, true);
    let live = LiveRam::new(ram.clone(), realm.stage2(), true);
    let once = least(|| assert_eq!(ram.shares().lock().first_own(&all), None));
    let exit = least(|| {
        let changed = live.change(granules, 0x1000, all.clone(), Asked::Empty);
        changed.expect("all RAM").expect("EL2 refuses nothing");
    });
    assert!(
        exit < 8 * once,
        "{exit:?} for an exit, {once:?} for a look at all"
    );
}

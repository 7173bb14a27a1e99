//! What must be so at the moment that a lock is let go, when another CPU may take it.

use std::rc::Rc;
use std::sync::Mutex;

use super::*;
use crate::memory::order;
use crate::rmi::fake::is_mapped;
use crate::rmi::granule::leave_host;

const TABLES: [u64; 2] = [42, 43];
const DATA: u64 = 50;
const SOURCE: u64 = 70;
const REC: u64 = 60;

/// A protected realm with a page of memory at 0, and a vCPU.
fn machine() -> Host {
    let mut h = Host::new(Granule::K4, RAM_SIZE);
    h.realm_of(RealmFlags::PROTECTED);
    let rd = h.page(1);
    for (page, level) in TABLES.into_iter().zip(2..) {
        h.ok(fid::RMI_GRANULE_DELEGATE, &[h.page(page)]);
        h.ok(fid::RMI_RTT_CREATE, &[rd, h.page(page), 0, level]);
    }
    h.ok(fid::RMI_GRANULE_DELEGATE, &[h.page(DATA)]);
    h.write(SOURCE, [0x5au8; 4096]);
    let create = [rd, h.page(DATA), 0, h.page(SOURCE), 0];
    h.ok(fid::RMI_DATA_CREATE, &create);
    h.rec(0, REC);
    h
}

/// Where the lock of the host's `n`th granule is.
fn place(h: &Host, n: u64) -> usize {
    core::ptr::from_ref(h.granule(n)) as usize
}

/// Makes a call after which granules are DELEGATED: each is zero when it is let go for
/// the last time.
fn scrubs(h: &mut Host, function: u64, args: &[u64], granules: &[u64]) {
    let watched = granules.iter().map(|n| (place(h, *n), h.page(*n)));
    let watched: Vec<_> = watched.collect();
    let seen = Rc::new(Mutex::new(std::vec![None; watched.len()]));
    let note = Rc::clone(&seen);
    let watcher = move |at: usize, _: &[u8]| {
        for (n, (place, pa)) in watched.iter().enumerate() {
            if at == *place {
                // SAFETY: a granule of the fake machine's.
                let bytes: [u8; 4096] = unsafe { phys::read(*pa) };
                note.lock().unwrap()[n] = Some(bytes == [0; 4096]);
            }
        }
    };
    order::watched(watcher, || h.ok(function, args));
    let seen = seen.lock().unwrap();
    let zero = seen.iter().all(|zero| *zero == Some(true));
    assert!(zero, "{function:#x}: {seen:?}");
}

#[test]
fn a_granule_is_scrubbed_before_it_is_let_go() {
    let mut h = machine();
    let (rd, rec, page) = (h.page(1), h.page(REC), h.page(71));
    h.write(71, [0xffu8; 4096]);
    scrubs(&mut h, fid::RMI_GRANULE_DELEGATE, &[page], &[71]);
    scrubs(&mut h, fid::RMI_REC_DESTROY, &[rec], &[REC]);
    scrubs(&mut h, fid::RMI_DATA_DESTROY, &[rd, 0], &[DATA]);
    scrubs(&mut h, fid::RMI_RTT_DESTROY, &[rd, 0, 3], &[TABLES[1]]);
    scrubs(&mut h, fid::RMI_RTT_DESTROY, &[rd, 0, 2], &[TABLES[0]]);
    scrubs(&mut h, fid::RMI_REALM_DESTROY, &[rd], &[1, 16, 17]);
}

/// By who takes it next it could be given away again, which a change of the host's
/// reach that comes late would undo.
#[test]
fn the_hosts_reach_has_changed_before_a_granule_is_let_go() {
    let mut h = machine();
    let (rd, pa, system) = (h.page(1), h.page(71), h.system);
    let top = pa + 4096;
    for (function, args, reached) in [
        (fid::RMI_GRANULE_DELEGATE, std::vec![pa], false),
        (fid::RMI_GRANULE_UNDELEGATE, std::vec![pa], true),
        (vendor::GRANULE_RANGE_DELEGATE, std::vec![pa, top], false),
        (vendor::GRANULE_RANGE_UNDELEGATE, std::vec![pa, top], true),
        (
            vendor::RTT_DATA_DONATE,
            std::vec![rd, 0x1000, 0x2000, pa],
            false,
        ),
    ] {
        let (at, seen) = (place(&h, 71), Rc::new(Mutex::new(None)));
        let note = Rc::clone(&seen);
        let watcher = move |place: usize, _: &[u8]| {
            if place == at {
                *note.lock().unwrap() = Some(is_mapped(system, pa));
            }
        };
        order::watched(watcher, || h.ok(function, &args));
        assert_eq!(*seen.lock().unwrap(), Some(reached), "{function:#x}");
    }
}

/// What the host could still write would not stay zero.
#[test]
fn memory_is_out_of_the_hosts_reach_before_it_is_touched() {
    let h = machine();
    let (pa, system) = (h.page(80), h.system);
    let run = system.granules.lock_run(pa, pa + 0x4000, State::Ns);
    let mut touched = Vec::new();
    let touch = std::cell::RefCell::new(&mut touched);
    let left = leave_host(system, run.expect("the host's"), |pa| {
        touch.borrow_mut().push((pa, is_mapped(system, pa)));
        Ok(())
    });
    left.expect("it is there").unlock_as(State::Delegated);
    let expected: Vec<_> = (80..84).map(|n| (h.page(n), false)).collect();
    assert_eq!(touched, expected);
}

/// A realm stays until its own lock is held, and new until it has what it gets as such.
#[test]
fn a_realm_is_let_go_when_its_tables_are_held() {
    let mut h = machine();
    let (rd, at) = (h.page(1), place(&h, 1));
    for n in [51, 52] {
        h.ok(fid::RMI_GRANULE_DELEGATE, &[h.page(n)]);
    }
    let (one, other, source) = (h.page(51), h.page(52), h.page(SOURCE));
    for (function, args, stays_new) in [
        (fid::RMI_RTT_READ_ENTRY, std::vec![rd, 0, 3], false),
        (
            fid::RMI_DATA_CREATE_UNKNOWN,
            std::vec![rd, one, 0x1000],
            false,
        ),
        (fid::RMI_DATA_DESTROY, std::vec![rd, 0x1000], false),
        (fid::RMI_RTT_CREATE, std::vec![rd, one, 1 << 30, 2], false),
        (fid::RMI_RTT_DESTROY, std::vec![rd, 1 << 30, 2], false),
        (
            fid::RMI_DATA_CREATE,
            std::vec![rd, other, 0x3000, source, 0],
            true,
        ),
    ] {
        // Whether the realm's lock stays held when the RD's is let go, and how many
        // were let go before.
        let seen = Rc::new(Mutex::new(Vec::new()));
        let (note, mut before) = (Rc::clone(&seen), 0);
        let watcher = move |place: usize, left: &[u8]| {
            if place == at {
                let held = left.contains(&order::REALM);
                note.lock().unwrap().push((held, before > 0));
            }
            before += 1;
        };
        order::watched(watcher, || h.ok(function, &args));
        let seen = seen.lock().unwrap();
        assert_eq!(*seen, [(!stays_new, stays_new)], "{function:#x}");
    }
}

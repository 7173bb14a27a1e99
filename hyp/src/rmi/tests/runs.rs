//! A realm's memory by ranges: what the commands of one granule do, many at a time.

use super::protected::{ASSIGNED, DESTROYED, EMPTY, RAM_STATE, SHARED, UNASSIGNED, entry, span};
use super::*;
use crate::features::Features;
use ::rmi::params::RealmFlags;
use arm64::recording::{self, Event};
use pgtable::Granule;
use proptest::prelude::*;

const MIB: u64 = 1 << 20;
/// Granules of tables: above any block that these tests map.
const TABLES: u64 = 40;

/// A protected realm at page 1 of a machine that has so much, with FEAT_S2FWB or
/// without.
fn machine(granule: Granule, ram: u64, fwb: bool) -> Host {
    let mut h = if fwb {
        Host::with(granule, ram, |features| features.fwb = true)
    } else {
        Host::new(granule, ram)
    };
    h.realm_of(RealmFlags::PROTECTED);
    h
}

/// Tables at `ipa` down to `level`, of granules from [`TABLES`] + `first` on.
fn tables(h: &mut Host, ipa: u64, level: i8, first: u64) {
    let rd = h.page(1);
    for (n, level) in (h.geometry().start().get() + 1..=level).enumerate() {
        let page = h.page(TABLES + first + n as u64);
        let base = ipa & !(span(h, level - 1) - 1);
        let create = [rd, page, base, level as u64];
        h.ok(fid::RMI_GRANULE_DELEGATE, &[page]);
        let answer = h.call(raw(fid::RMI_RTT_CREATE, &create));
        if answer[0] != 0 {
            h.ok(fid::RMI_GRANULE_UNDELEGATE, &[page]); // it is there
        }
    }
}

/// Delegates all of a range.
fn delegate(h: &mut Host, base: u64, top: u64) {
    let mut at = base;
    while at < top {
        at = h.ok(vendor::GRANULE_RANGE_DELEGATE, &[at, top])[1];
    }
}

/// Takes back all of a range: how many calls that took.
fn undelegate(h: &mut Host, base: u64, top: u64) -> usize {
    let (mut at, mut calls) = (base, 0);
    while at < top {
        at = h.ok(vendor::GRANULE_RANGE_UNDELEGATE, &[at, top])[1];
        calls += 1;
    }
    calls
}

/// What comes back is in no instruction cache any more, where such caches do not look
/// at data's: the host could run what a guest has left there.
#[test]
fn a_guests_code_is_in_no_instruction_cache_of_the_hosts() {
    let changes: [fn(&mut Features); 2] = [|f| f.dic = false, |f| f.dic = true];
    for (dic, change) in [false, true].into_iter().zip(changes) {
        let mut h = Host::with(Granule::K4, 16 * MIB, change);
        let (page, two) = (h.page(5), h.page(8));
        let ways: [(u64, &[u64], u64); 2] = [
            (fid::RMI_GRANULE_UNDELEGATE, &[page], page),
            (
                vendor::GRANULE_RANGE_UNDELEGATE,
                &[two, two + 2 * h.size],
                two,
            ),
        ];
        for (function, args, at) in ways {
            let top = at + 2 * h.size;
            delegate(&mut h, at, top);
            let events = recording::of(|| {
                h.ok(function, args);
            });
            let names: Vec<_> = events
                .iter()
                .filter_map(|event| match event {
                    Event::Instruction(name, _) => Some(*name),
                    _ => None,
                })
                .collect();
            let fetched = names.iter().position(|name| *name == "ic ialluis");
            assert_eq!(fetched.is_some(), !dic, "{function:#x}: {names:?}");
            if let Some(at) = fetched {
                assert_eq!(names[at + 1], "dsb ish");
            }
        }
    }
}

/// Status and outputs of a call.
fn answer(h: &mut Host, function: u64, args: &[u64]) -> (Status, [u64; 3]) {
    let answer = h.call(raw(function, args));
    let status = Status::unpack(answer[0]).expect("a status");
    (status, [answer[1], answer[2], answer[3]])
}

/// Where blocks fit there are blocks, up to the size that is scrubbed in one call and
/// above it; without FEAT_S2FWB of 2 MiB at most.
#[test]
fn memory_is_mapped_by_blocks_where_they_fit_and_comes_back_zero() {
    for (granule, fwb) in [
        (Granule::K4, true),
        (Granule::K4, false),
        (Granule::K16, true),
        (Granule::K16, false),
    ] {
        let block = if granule == Granule::K4 { 2 } else { 32 } * MIB;
        let mut h = machine(granule, 3 * block + MIB, fwb);
        let (rd, size) = (h.page(1), h.size);
        // Behind what the realm itself is made of.
        let pa = RAM + 2 * block;
        tables(&mut h, RAM, 2, 0);
        let init = h.ok(fid::RMI_RTT_INIT_RIPAS, &[rd, RAM, RAM + block])[1];
        assert_eq!(init, RAM + block);
        delegate(&mut h, pa, pa + block);
        let map = |ipa: u64, top: u64, pa: u64| [rd, ipa, top, pa];
        let has_blocks = fwb || granule == Granule::K4;
        // Not by what is no whole block, in either space.
        for args in [
            map(RAM, RAM + block - size, pa),
            map(RAM, RAM + block, pa + size),
            map(RAM + size, RAM + block, pa + size),
        ] {
            let (status, _) = answer(&mut h, vendor::RTT_DATA_MAP, &args);
            assert_eq!(status, Status::ErrorRtt(2), "{granule:?} {args:x?}");
        }
        let all = map(RAM, RAM + 4 * block, pa);
        let (status, [top, ..]) = answer(&mut h, vendor::RTT_DATA_MAP, &all);
        if !has_blocks {
            assert_eq!(status, Status::ErrorRtt(2));
            tables(&mut h, RAM, 3, 8);
            let step = 2 * MIB;
            let top = h.ok(vendor::RTT_DATA_MAP, &all)[1];
            assert_eq!(top, RAM + step, "what is cleaned in one call");
            assert_eq!(entry(&mut h, RAM), [3, ASSIGNED, pa, RAM_STATE]);
            continue;
        }
        assert_eq!((status, top), (Status::Success, RAM + block));
        let leaf = [2, ASSIGNED, pa, RAM_STATE];
        let read = h.ok(fid::RMI_RTT_READ_ENTRY, &[rd, RAM, 3]);
        assert_eq!(read[1..], leaf, "{granule:?}");
        let first = (pa - RAM) / size;
        assert!((first..first + block / size).all(|n| h.state(n) == State::Data));
        // A part of it goes by no call; all of it by one, and is scrubbed by as many as
        // that takes.
        h.write(first + 5, [0x5au8; 4096]);
        for function in [vendor::RTT_DATA_UNMAP, fid::RMI_DATA_DESTROY] {
            let (status, _) = answer(&mut h, function, &[rd, RAM, RAM + block - size]);
            assert_eq!(status, Status::ErrorRtt(2));
        }
        let (status, out) = answer(&mut h, vendor::RTT_DATA_UNMAP, &[rd, RAM, SHARED]);
        let end = (RAM | (span(&h, 1) - 1)) + 1;
        assert_eq!((status, out), (Status::Success, [pa, RAM + block, end]));
        let at_once = block <= 2 * MIB;
        let state = [State::Unscrubbed, State::Delegated][usize::from(at_once)];
        assert!((first..first + block / size).all(|n| h.state(n) == state));
        assert_eq!(h.is_zero(first + 5), at_once);
        let (status, _) = answer(&mut h, vendor::RTT_DATA_MAP, &all);
        let again = if at_once {
            Status::Success
        } else {
            Status::ErrorInput
        };
        assert_eq!(
            status, again,
            "what is not scrubbed is good for nothing else"
        );
        if at_once {
            h.ok(vendor::RTT_DATA_UNMAP, &[rd, RAM, RAM + block]);
        }
        let read = h.ok(fid::RMI_RTT_READ_ENTRY, &[rd, RAM, 3]);
        assert_eq!(read[1..], [2, UNASSIGNED, 0, DESTROYED]);
        let calls = undelegate(&mut h, pa, pa + block);
        assert_eq!(calls as u64, block / (2 * MIB));
        assert!((first..first + block / size).all(|n| h.is_zero(n)));
        assert!((first..first + block / size).all(|n| h.state(n) == State::Ns));
    }
}

/// What goes at once may lie in several spans.
#[test]
fn a_run_over_the_end_of_a_span_is_scrubbed_whole() {
    let mut h = machine(Granule::K4, 16 * MIB, false);
    let (rd, size) = (h.page(1), h.size);
    tables(&mut h, RAM, 3, 0);
    let first = 6 * MIB / size - 2;
    let (pa, end) = (h.page(first), RAM + 4 * size);
    delegate(&mut h, pa, pa + 4 * size);
    for (from, to) in [(0, 2), (2, 4)] {
        let map = [rd, RAM + from * size, end, pa + from * size];
        let top = h.ok(vendor::RTT_DATA_MAP, &map)[1];
        assert_eq!(top, RAM + to * size, "as far as the span");
    }
    (first..first + 4).for_each(|n| h.write(n, [0x5au8; 4096]));
    let (status, out) = answer(&mut h, vendor::RTT_DATA_UNMAP, &[rd, RAM, end]);
    assert_eq!((status, &out[..2]), (Status::Success, &[pa, end][..]));
    for n in first..first + 4 {
        assert!(h.is_zero(n) && h.state(n) == State::Delegated, "{n}");
    }
}

/// What the host has loaded becomes the realm's as it is, out of the host's reach; and
/// only before the realm runs.
#[test]
fn what_is_donated_keeps_its_content() {
    for granule in Granule::ALL {
        let mut h = machine(granule, 16 * MIB, false);
        let (rd, size) = (h.page(1), h.size);
        tables(&mut h, RAM, 3, 0);
        for n in 50..54 {
            h.write(n, [n as u8; 4096]);
        }
        let (ipa, pa) = (RAM + size, h.page(50));
        let donate = [rd, ipa, ipa + 4 * size, pa];
        let (status, [top, ..]) = answer(&mut h, vendor::RTT_DATA_DONATE, &donate);
        assert_eq!((status, top), (Status::Success, ipa + 4 * size));
        for n in 50..54 {
            // SAFETY: the fake machine's memory.
            let found = unsafe { phys::read::<[u8; 4096]>(h.page(n)) };
            assert_eq!(found, [n as u8; 4096]);
            assert_eq!(h.state(n), State::Data);
            assert!(!h.system.host.reaches(h.page(n)), "{granule:?}");
            let at = ipa + (n - 50) * size;
            // RAM, whatever was told before.
            assert_eq!(entry(&mut h, at), [3, ASSIGNED, h.page(n), RAM_STATE]);
        }
        let (status, out) = answer(&mut h, vendor::RTT_DATA_UNMAP, &[rd, ipa, SHARED]);
        let end = (RAM | (span(&h, 2) - 1)) + 1;
        assert_eq!((status, out), (Status::Success, [pa, ipa + 4 * size, end]));
        assert!((50..54).all(|n| h.is_zero(n) && h.state(n) == State::Delegated));
        h.rec(0, 60);
        h.ok(fid::RMI_REALM_ACTIVATE, &[rd]);
        let late = [rd, ipa, ipa + size, h.page(70)];
        let (status, _) = answer(&mut h, vendor::RTT_DATA_DONATE, &late);
        assert_eq!(status, Status::ErrorRealm(0));
        assert!(h.system.host.reaches(h.page(70)));
    }
}

/// Each refusal changes nothing.
#[test]
fn what_no_range_can_change_stays() {
    let mut h = machine(Granule::K4, 16 * MIB, true);
    let rd = h.page(1);
    tables(&mut h, RAM, 3, 0);
    let (pa, other) = (h.page(100), h.page(200));
    delegate(&mut h, pa, pa + 0x4000);
    let far = RAM + (1 << 30);
    for (what, args, status) in [
        ("nothing", [rd, RAM, RAM, pa], Status::ErrorInput),
        ("backwards", [rd, RAM + 0x1000, RAM, pa], Status::ErrorInput),
        (
            "in a page",
            [rd, RAM + 8, RAM + 0x1008, pa],
            Status::ErrorInput,
        ),
        ("its end", [rd, RAM, RAM + 8, pa], Status::ErrorInput),
        (
            "in a granule",
            [rd, RAM, RAM + 0x1000, pa + 8],
            Status::ErrorInput,
        ),
        ("no RAM", [rd, RAM, RAM + 0x1000, 0], Status::ErrorInput),
        (
            "nor there",
            [rd, RAM, RAM + 0x1000, !0xfff],
            Status::ErrorInput,
        ),
        ("the RD", [rd, RAM, RAM + 0x1000, rd], Status::ErrorInput),
        ("no realm", [pa, RAM, RAM + 0x1000, pa], Status::ErrorInput),
        (
            "shared",
            [rd, SHARED, SHARED + 0x1000, pa],
            Status::ErrorInput,
        ),
        (
            "into it",
            [rd, RAM, SHARED + 0x1000, pa],
            Status::ErrorInput,
        ),
        ("all", [rd, RAM, !0xfff, pa], Status::ErrorInput),
        ("no table", [rd, far, far + 0x1000, pa], Status::ErrorRtt(1)),
    ] {
        for function in [vendor::RTT_DATA_MAP, vendor::RTT_DATA_DONATE] {
            assert_eq!(answer(&mut h, function, &args).0, status, "{what}");
        }
        if args[3] == pa {
            let expected = match what {
                // `top` has nothing to do with granules.
                "in a granule" => Status::ErrorRtt(3),
                _ => status,
            };
            let got = answer(&mut h, vendor::RTT_DATA_UNMAP, &args[..3]).0;
            assert_eq!(got, expected, "{what}");
        }
        assert_eq!(entry(&mut h, RAM), [3, UNASSIGNED, 0, EMPTY], "{what}");
    }
    // Each call takes granules of its own state alone.
    let ipas = [RAM, RAM + 0x1000];
    for (function, pa) in [(vendor::RTT_DATA_MAP, other), (vendor::RTT_DATA_DONATE, pa)] {
        let args = [rd, ipas[0], ipas[1], pa];
        assert_eq!(answer(&mut h, function, &args).0, Status::ErrorInput);
    }
    // Memory that is not there, after some that is.
    h.write(202, [1u8; 4096]);
    phys::fake::make_hole(Region::new(h.page(203), 0x1000).unwrap());
    let args = [rd, RAM, RAM + 0x8000, h.page(202)];
    let (status, [top, ..]) = answer(&mut h, vendor::RTT_DATA_DONATE, &args);
    assert_eq!((status, top), (Status::Success, RAM + 0x1000));
    assert_eq!((h.state(202), h.state(203)), (State::Data, State::Ns));
    assert!(h.system.host.reaches(h.page(203)) && !h.system.host.reaches(h.page(202)));
    let args = [rd, RAM + 0x1000, RAM + 0x8000, h.page(203)];
    let (status, _) = answer(&mut h, vendor::RTT_DATA_DONATE, &args);
    assert_eq!(status, Status::ErrorInput);
    // A guest has a block of it mapped.
    assert!(h.system.granules.lend(RAM + 2 * MIB, 2 * MIB));
    let args = [rd, RAM + 0x1000, RAM + 0x8000, RAM + 2 * MIB];
    let (status, _) = answer(&mut h, vendor::RTT_DATA_DONATE, &args);
    assert_eq!(status, Status::ErrorInput);
    assert!(h.system.host.reaches(RAM + 2 * MIB));
}

/// EL2 dies of what does not answer when it scrubs: it asks of every 4 KiB before.
#[test]
fn a_granule_that_is_there_in_part_is_not_donated() {
    for granule in Granule::ALL {
        let mut h = machine(granule, 16 * MIB, false);
        let (rd, size) = (h.page(1), h.size);
        tables(&mut h, RAM, 3, 0);
        let hole = h.page(52) - 0x1000;
        phys::fake::make_hole(Region::new(hole, 0x1000).unwrap());
        let donate = [rd, RAM, RAM + 4 * size, h.page(50)];
        let top = h.ok(vendor::RTT_DATA_DONATE, &donate)[1];
        assert_eq!(top, RAM + size, "{granule:?}");
        assert_eq!((h.state(50), h.state(51)), (State::Data, State::Ns));
        let rest = [rd, top, RAM + 4 * size, h.page(51)];
        let (status, _) = answer(&mut h, vendor::RTT_DATA_DONATE, &rest);
        assert_eq!(status, Status::ErrorInput);
        assert!(h.system.host.reaches(h.page(51)));
    }
}

/// Where no table is left to split the host's block with, nothing changes, and nothing
/// is counted as gone.
#[test]
fn what_cannot_leave_the_host_stays_its_own() {
    let mut h = machine(Granule::K4, 16 * MIB, true);
    let rd = h.page(1);
    tables(&mut h, RAM, 3, 0);
    let block = RAM + 8 * MIB;
    h.use_up_tables();
    for (function, args) in [
        (vendor::GRANULE_RANGE_DELEGATE, &[block, block + 0x4000][..]),
        (fid::RMI_GRANULE_DELEGATE, &[block]),
        (vendor::RTT_DATA_DONATE, &[rd, RAM, RAM + 0x4000, block]),
    ] {
        assert_eq!(answer(&mut h, function, args).0, Status::ErrorInput);
        assert!(h.system.granules.lend(block, 2 * MIB), "all of it is there");
        h.system.granules.take_back(block, 2 * MIB);
    }
    assert!(h.system.host.reaches(block));
    assert_eq!(entry(&mut h, RAM), [3, UNASSIGNED, 0, EMPTY]);
}

/// Of a block that is not all there nothing is donated.
#[test]
fn half_a_block_is_given_back() {
    let mut h = machine(Granule::K4, 16 * MIB, true);
    let rd = h.page(1);
    tables(&mut h, RAM, 2, 0);
    let pa = RAM + 4 * MIB;
    let n = (pa - RAM) / h.size;
    phys::fake::make_hole(Region::new(h.page(n + 300), 0x1000).unwrap());
    let args = [rd, RAM, RAM + 2 * MIB, pa];
    let (status, _) = answer(&mut h, vendor::RTT_DATA_DONATE, &args);
    assert_eq!(status, Status::ErrorRtt(2), "no block of what is there");
    assert!((n..n + 512).all(|n| h.state(n) == State::Ns));
    let mapped = h.mapped();
    assert!(mapped[n as usize..n as usize + 512].iter().all(|is| *is));
    let other = [rd, RAM, RAM + 2 * MIB, pa + 2 * MIB];
    assert_eq!(h.ok(vendor::RTT_DATA_DONATE, &other)[1], RAM + 2 * MIB);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// By ranges or page by page: the same tables, states, content.
    #[test]
    fn ranges_and_single_pages_end_alike(
        steps in prop::collection::vec((0usize..3, 0u64..90, 0u64..90, 1u64..60), 1..24),
        which in 0usize..3,
    ) {
        let ends: Vec<_> = [true, false].into_iter().map(|by_range| {
            let mut h = machine(Granule::ALL[which], 16 * MIB, false);
            let (rd, size) = (h.page(1), h.size);
            tables(&mut h, RAM, 3, 0);
            let (base, top) = (h.page(100), h.page(190));
            delegate(&mut h, base, top);
            h.ok(fid::RMI_RTT_INIT_RIPAS, &[rd, RAM, RAM + 40 * size]);
            for &(kind, from, at, count) in &steps {
                let (first, mut ipa) = (h.page(100 + at), RAM + from * size);
                let begin = ipa;
                let end = ipa + count.min(90 - at) * size;
                while ipa < end {
                    let pa = first + (ipa - begin);
                    let limit = if by_range { end } else { ipa + size };
                    let next = match (kind, by_range) {
                        (0, true) => answer(&mut h, vendor::RTT_DATA_UNMAP, &[rd, ipa, limit]).1[1],
                        (0, false) => {
                            h.status(fid::RMI_DATA_DESTROY, &[rd, ipa]);
                            ipa + size
                        }
                        (_, true) => answer(&mut h, vendor::RTT_DATA_MAP, &[rd, ipa, limit, pa]).1[0],
                        (_, false) => {
                            h.status(fid::RMI_DATA_CREATE_UNKNOWN, &[rd, pa, ipa]);
                            ipa + size
                        }
                    };
                    // What cannot change is passed over.
                    ipa = next.max(ipa + size);
                }
            }
            let entries: Vec<_> = (0..160).map(|n| entry(&mut h, RAM + n * size)).collect();
            let states: Vec<_> = (0..h.pages()).map(|n| h.state(n)).collect();
            (entries, states, h.mapped())
        }).collect();
        prop_assert_eq!(&ends[0], &ends[1]);
    }
}

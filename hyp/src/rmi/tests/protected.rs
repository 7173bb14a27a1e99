//! Realms whose memory is their own: what RMI 1.0 says of each command, in the
//! order in which it is checked, and that a refusal changes nothing.

use super::*;
use ::rmi::params::RealmFlags;

/// Where the shared half begins: of 40 bits.
pub const SHARED: u64 = 1 << 39;
/// Granules of the tables above level 3, and of level 3.
const TABLES: u64 = 40;
/// A granule that becomes memory, one of the host's with content, and a vCPU.
const DATA: u64 = 50;
const SOURCE: u64 = 52;
const REC: u64 = 60;

/// A protected realm at page 1.
fn machine(granule: Granule) -> Host {
    let mut h = Host::new(granule, 16 << 20);
    h.realm_of(RealmFlags::PROTECTED);
    h
}

/// Tables at `ipa`, down to level 3; the granules that they are.
fn down(h: &mut Host, ipa: u64) -> Vec<(u64, u64)> {
    let start = h.geometry().start().get();
    (start + 1..=3)
        .map(|level| {
            let page = TABLES + level as u64;
            h.ok(fid::RMI_GRANULE_DELEGATE, &[h.page(page)]);
            let base = ipa & !(span(h, level - 1) - 1);
            h.ok(
                fid::RMI_RTT_CREATE,
                &[h.page(1), h.page(page), base, level as u64],
            );
            (level as u64, page)
        })
        .collect()
}

/// Bytes of an entry at `level`.
pub fn span(h: &Host, level: i8) -> u64 {
    h.geometry().span(pgtable::Level::new(level).unwrap())
}

/// Level, state, descriptor and RIPAS of what stands at `ipa`.
pub fn entry(h: &mut Host, ipa: u64) -> [u64; 4] {
    let rd = h.page(1);
    let read = h.ok(fid::RMI_RTT_READ_ENTRY, &[rd, ipa, 3]);
    [read[1], read[2], read[3], read[4]]
}

fn is_the_hosts(h: &Host, n: u64) -> bool {
    h.system.host.reaches(h.page(n))
}

pub const UNASSIGNED: u64 = 0;
pub const ASSIGNED: u64 = 1;
pub const EMPTY: u64 = 0;
pub const RAM_STATE: u64 = 1;
pub const DESTROYED: u64 = 2;

#[test]
fn a_protected_guest_from_first_to_last() {
    for granule in Granule::ALL {
        let mut h = machine(granule);
        let (rd, size) = (h.page(1), h.size);
        let tables = down(&mut h, RAM);
        assert_eq!(entry(&mut h, RAM), [3, UNASSIGNED, 0, EMPTY]);
        let reached = h.ok(fid::RMI_RTT_INIT_RIPAS, &[rd, RAM, RAM + 3 * size])[1];
        assert_eq!(reached, RAM + 3 * size);
        assert_eq!(entry(&mut h, RAM), [3, UNASSIGNED, 0, RAM_STATE]);

        // Content of the host's, and memory of zeros.
        for n in DATA..DATA + 2 {
            h.ok(fid::RMI_GRANULE_DELEGATE, &[h.page(n)]);
        }
        h.write(SOURCE, [0x5au8; 4096]);
        let (first, second, source) = (h.page(DATA), h.page(DATA + 1), h.page(SOURCE));
        h.ok(fid::RMI_DATA_CREATE, &[rd, first, RAM, source, 0]);
        // SAFETY: the fake machine's memory.
        assert_eq!(unsafe { phys::read::<[u8; 4096]>(first) }, [0x5a; 4096]);
        assert_eq!(entry(&mut h, RAM), [3, ASSIGNED, first, RAM_STATE]);
        h.ok(fid::RMI_DATA_CREATE_UNKNOWN, &[rd, second, RAM + 2 * size]);
        assert_eq!(
            entry(&mut h, RAM + 2 * size),
            [3, ASSIGNED, second, RAM_STATE]
        );
        for n in DATA..DATA + 2 {
            assert_eq!(h.state(n), State::Data);
            assert!(!is_the_hosts(&h, n), "{granule:?}");
            let taken = [fid::RMI_GRANULE_UNDELEGATE, fid::RMI_GRANULE_DELEGATE];
            for function in taken {
                assert_eq!(h.status(function, &[h.page(n)]), Status::ErrorInput);
            }
        }
        assert_eq!(h.granule(SOURCE).count(), 0, "it is not pinned any more");

        // What the host shares stands in the other half, and is never executed.
        h.rec(0, REC);
        h.ok(fid::RMI_REALM_ACTIVATE, &[rd]);
        assert_eq!(
            h.status(fid::RMI_DATA_CREATE, &[rd, h.page(3), RAM, source, 0]),
            Status::ErrorInput,
            "data that is not delegated, before the realm's state"
        );
        h.ok(fid::RMI_GRANULE_DELEGATE, &[h.page(3)]);
        for function in [fid::RMI_DATA_CREATE, fid::RMI_RTT_INIT_RIPAS] {
            let args = match function {
                fid::RMI_DATA_CREATE => [rd, h.page(3), RAM + size, source, 0],
                _ => [rd, RAM, RAM + size, 0, 0],
            };
            assert_eq!(h.status(function, &args), Status::ErrorRealm(0), "it runs");
        }

        // The end, as a host takes it: by what it is told of where to go on.
        h.ok(fid::RMI_REC_DESTROY, &[h.page(REC)]);
        let leaf = tables.last().copied();
        if let Some((level, _)) = leaf {
            let base = RAM & !(span(&h, level as i8 - 1) - 1);
            let answer = h.call(raw(fid::RMI_RTT_DESTROY, &[rd, base, level]));
            let status = Status::unpack(answer[0]).unwrap();
            assert_eq!((status, answer[2]), (Status::ErrorRtt(level as u8), base));
        }
        let gone = h.ok(fid::RMI_DATA_DESTROY, &[rd, RAM]);
        assert_eq!(gone[1..3], [first, RAM + 2 * size]);
        assert!(h.is_zero(DATA), "scrubbed");
        assert_eq!(entry(&mut h, RAM), [3, UNASSIGNED, 0, DESTROYED]);
        let gone = h.ok(fid::RMI_DATA_DESTROY, &[rd, RAM + 2 * size]);
        assert_eq!(gone[1], second);
        let end = (RAM | (span(&h, 2) - 1)) + 1;
        assert_eq!(gone[2], end, "the end of the table");
        for &(level, page) in tables.iter().rev() {
            let base = RAM & !(span(&h, level as i8 - 1) - 1);
            let gone = h.ok(fid::RMI_RTT_DESTROY, &[rd, base, level]);
            assert_eq!(gone[1], h.page(page));
            h.ok(fid::RMI_GRANULE_UNDELEGATE, &[h.page(page)]);
        }
        h.ok(fid::RMI_REALM_DESTROY, &[rd]);
        let roots = h.geometry().root_tables() as u64;
        let rest = [1, 3, DATA, DATA + 1, REC];
        for n in rest.into_iter().chain(16..16 + roots) {
            assert_eq!(h.state(n), State::Delegated, "{n}");
            assert!(h.is_zero(n), "{n}");
            h.ok(fid::RMI_GRANULE_UNDELEGATE, &[h.page(n)]);
        }
        assert!(h.mapped().into_iter().all(|mapped| mapped));
    }
}

/// Of a realm in state NEW: each refusal, and that what it named is as before.
#[test]
fn what_cannot_become_memory_changes_nothing() {
    let mut h = machine(Granule::K4);
    down(&mut h, RAM);
    let rd = h.page(1);
    let (data, source) = (h.page(DATA), h.page(SOURCE));
    h.write(SOURCE, [0x77u8; 4096]);
    h.ok(fid::RMI_GRANULE_DELEGATE, &[data]);
    h.ok(fid::RMI_GRANULE_DELEGATE, &[h.page(DATA + 1)]);
    h.ok(
        fid::RMI_DATA_CREATE_UNKNOWN,
        &[rd, h.page(DATA + 1), RAM + 0x1000],
    );
    let far = RAM + (1 << 30);
    let refused: &[(&str, [u64; 5], Status)] = &[
        ("flags", [rd, data, RAM, source, 2], Status::ErrorInput),
        ("measured", [rd, data, RAM, source, 1], Status::ErrorInput),
        ("no RAM", [rd, data, RAM, 0x1000, 0], Status::ErrorInput),
        (
            "in a granule",
            [rd, data, RAM, source + 8, 0],
            Status::ErrorInput,
        ),
        ("itself", [rd, data, RAM, data, 0], Status::ErrorInput),
        ("the RD", [rd, data, RAM, rd, 0], Status::ErrorInput),
        (
            "not given",
            [rd, source, RAM, source, 0],
            Status::ErrorInput,
        ),
        ("as data", [rd, rd, RAM, source, 0], Status::ErrorInput),
        (
            "in a granule",
            [rd, data + 8, RAM, source, 0],
            Status::ErrorInput,
        ),
        ("no realm", [data, data, RAM, source, 0], Status::ErrorInput),
        (
            "in a page",
            [rd, data, RAM + 8, source, 0],
            Status::ErrorInput,
        ),
        (
            "shared",
            [rd, data, SHARED | RAM, source, 0],
            Status::ErrorInput,
        ),
        (
            "its begin",
            [rd, data, SHARED, source, 0],
            Status::ErrorInput,
        ),
        (
            "outside",
            [rd, data, 1 << 40, source, 0],
            Status::ErrorInput,
        ),
        ("no table", [rd, data, far, source, 0], Status::ErrorRtt(1)),
        (
            "assigned",
            [rd, data, RAM + 0x1000, source, 0],
            Status::ErrorRtt(3),
        ),
    ];
    for (what, args, status) in refused {
        assert_eq!(h.status(fid::RMI_DATA_CREATE, args), *status, "{what}");
        // The same without content, where that is not what is wrong.
        let about_content = [source + 8, 0x1000, data, rd].contains(&args[3]);
        if args[4] == 0 && !about_content {
            let got = h.status(fid::RMI_DATA_CREATE_UNKNOWN, &args[..3]);
            assert_eq!(got, *status, "{what}");
        }
        assert_eq!(h.state(DATA), State::Delegated, "{what}");
        assert!(h.is_zero(DATA), "{what}");
        assert_eq!((h.state(SOURCE), h.granule(SOURCE).count()), (State::Ns, 0));
        assert_eq!(entry(&mut h, RAM), [3, UNASSIGNED, 0, EMPTY], "{what}");
    }
    // A source with no memory behind it.
    let gone = Region::new(h.page(SOURCE + 1) + 0x800, 0x800).unwrap();
    phys::fake::make_hole(gone);
    let hole = [rd, data, RAM, h.page(SOURCE + 1), 0];
    assert_eq!(h.status(fid::RMI_DATA_CREATE, &hole), Status::ErrorInput);
    assert!(h.is_zero(DATA), "what was copied is not left");
    assert_eq!(entry(&mut h, RAM), [3, UNASSIGNED, 0, EMPTY]);
}

#[test]
fn what_cannot_be_taken_out_says_where_to_go_on() {
    let mut h = machine(Granule::K4);
    down(&mut h, RAM);
    let rd = h.page(1);
    for (n, at) in [(DATA, 5), (DATA + 1, 9)] {
        h.ok(fid::RMI_GRANULE_DELEGATE, &[h.page(n)]);
        let ipa = RAM + at * 0x1000;
        h.ok(fid::RMI_DATA_CREATE_UNKNOWN, &[rd, h.page(n), ipa]);
    }
    for (what, args, status, top) in [
        ("no realm", [h.page(DATA), RAM], Status::ErrorInput, 0),
        ("in a page", [rd, RAM + 8], Status::ErrorInput, 0),
        ("shared", [rd, SHARED], Status::ErrorInput, 0),
        ("outside", [rd, 1 << 40], Status::ErrorInput, 0),
        ("a hole", [rd, RAM], Status::ErrorRtt(3), RAM + 5 * 0x1000),
        (
            "another",
            [rd, RAM + 6 * 0x1000],
            Status::ErrorRtt(3),
            RAM + 9 * 0x1000,
        ),
        (
            "the last",
            [rd, RAM + 10 * 0x1000],
            Status::ErrorRtt(3),
            RAM + 0x20_0000,
        ),
        ("no table", [rd, 0], Status::ErrorRtt(1), RAM),
        ("nor there", [rd, 2 << 30], Status::ErrorRtt(1), SHARED),
    ] {
        let answer = h.call(raw(fid::RMI_DATA_DESTROY, &args));
        assert_eq!(Status::unpack(answer[0]), Some(status), "{what}");
        assert_eq!(answer[1..3], [0, top], "{what}");
    }
    assert_eq!(
        (h.state(DATA), h.state(DATA + 1)),
        (State::Data, State::Data)
    );
}

#[test]
fn addresses_become_memory_by_tables() {
    let mut h = machine(Granule::K4);
    down(&mut h, RAM);
    let rd = h.page(1);
    let block = 0x20_0000;
    for (what, args, status) in [
        ("nothing", [rd, RAM, RAM], Status::ErrorInput),
        ("backwards", [rd, RAM + 0x1000, RAM], Status::ErrorInput),
        ("in a page", [rd, RAM + 8, RAM + 0x1000], Status::ErrorInput),
        ("in another", [rd, RAM, RAM + 0x1008], Status::ErrorInput),
        ("shared", [rd, SHARED, SHARED + 0x1000], Status::ErrorInput),
        (
            "into it",
            [rd, SHARED - 0x1000, SHARED + 0x1000],
            Status::ErrorInput,
        ),
        (
            "no realm",
            [h.page(3), RAM, RAM + 0x1000],
            Status::ErrorInput,
        ),
        (
            "a part of an entry",
            [rd, RAM + block + 0x1000, RAM + 2 * block],
            Status::ErrorRtt(2),
        ),
        (
            "less than one",
            [rd, RAM + block, RAM + block + 0x1000],
            Status::ErrorRtt(2),
        ),
    ] {
        assert_eq!(h.status(fid::RMI_RTT_INIT_RIPAS, &args), status, "{what}");
    }
    // To the end of the table of level 3, then of the one above it.
    let all = RAM + (1 << 30);
    let first = h.ok(fid::RMI_RTT_INIT_RIPAS, &[rd, RAM, all])[1];
    assert_eq!(first, RAM + block);
    let second = h.ok(fid::RMI_RTT_INIT_RIPAS, &[rd, first, all])[1];
    assert_eq!(second, all);
    assert_eq!(entry(&mut h, RAM + block), [2, UNASSIGNED, 0, RAM_STATE]);
    // Memory that is there already is not told anew.
    h.ok(fid::RMI_GRANULE_DELEGATE, &[h.page(DATA)]);
    h.ok(fid::RMI_DATA_CREATE_UNKNOWN, &[rd, h.page(DATA), RAM]);
    let again = h.status(fid::RMI_RTT_INIT_RIPAS, &[rd, RAM, RAM + 0x1000]);
    assert_eq!(again, Status::ErrorRtt(3));
    // And no vCPU has asked for a change.
    h.rec(0, REC);
    let change = [rd, h.page(REC), RAM, RAM + 0x1000];
    assert_eq!(
        h.status(fid::RMI_RTT_SET_RIPAS, &change),
        Status::ErrorInput
    );
}

/// The host's memory stands in the shared half alone, is never executed, and never a
/// device's.
#[test]
fn what_is_shared_is_shared_as_memory() {
    let mut h = machine(Granule::K4);
    down(&mut h, SHARED);
    let (rd, page) = (h.page(1), h.page(DATA));
    let map = |h: &mut Host, ipa, desc| h.status(fid::RMI_RTT_MAP_UNPROTECTED, &[rd, ipa, 3, desc]);
    assert_eq!(
        map(&mut h, RAM, page | DESC),
        Status::ErrorInput,
        "not shared"
    );
    for device in 0..4 {
        let desc = page | device << rtt::DESC_MEMATTR_SHIFT | rtt::DESC_READ;
        assert_eq!(
            map(&mut h, SHARED, desc),
            Status::ErrorInput,
            "RAM is no device"
        );
    }
    assert_eq!(map(&mut h, SHARED, page | DESC), Status::Success);
    // SAFETY: the fake machine's RD, which nobody takes.
    let realm = unsafe { Realm::at(rd) };
    let found = |ipa| {
        let tables = realm.rtt.lock();
        let tables = tables.as_ref().expect("it lives");
        tables
            .translate(pgtable::Ipa::new(ipa))
            .map(|(_, attrs)| attrs.execute)
    };
    assert_eq!(found(SHARED), Some(pgtable::Execute::Never));
    assert_eq!(
        h.status(fid::RMI_GRANULE_DELEGATE, &[page]),
        Status::ErrorInput
    );
    h.ok(fid::RMI_RTT_UNMAP_UNPROTECTED, &[rd, SHARED, 3]);
    h.ok(fid::RMI_GRANULE_DELEGATE, &[page]);
}

/// A source of which a part is no memory: nothing of the other part is left behind.
#[test]
fn content_that_was_copied_in_part_is_scrubbed() {
    let mut h = machine(Granule::K4);
    down(&mut h, RAM);
    h.ok(fid::RMI_GRANULE_DELEGATE, &[h.page(DATA)]);
    h.write(SOURCE, [0x5au8; 4096]);
    let hole = Region::new(h.page(SOURCE) + 2048, 64).unwrap();
    phys::fake::make_hole(hole);
    let create = [h.page(1), h.page(DATA), RAM, h.page(SOURCE), 0];
    assert_eq!(h.status(fid::RMI_DATA_CREATE, &create), Status::ErrorInput);
    assert_eq!(h.state(DATA), State::Delegated);
    assert!(h.is_zero(DATA));
    assert_eq!(entry(&mut h, RAM), [3, UNASSIGNED, 0, EMPTY]);
}

/// What is hashed in one call, whatever a table holds.
#[test]
fn ripas_begins_by_512_entries() {
    for granule in Granule::ALL {
        let mut h = machine(granule);
        let (rd, size) = (h.page(1), h.size);
        let table = span(&h, 2);
        let begin = RAM.next_multiple_of(table);
        down(&mut h, begin);
        let mut at = begin;
        while at < begin + table {
            let reached = h.ok(fid::RMI_RTT_INIT_RIPAS, &[rd, at, begin + table])[1];
            assert_eq!(reached, at + 512 * size, "{granule:?}");
            at = reached;
        }
        assert_eq!(at, begin + table);
    }
}

#[test]
fn a_realm_has_one_mode() {
    let vgic = RealmFlags::EL2_VGIC;
    for flags in [
        RealmFlags::NONCONF | RealmFlags::PROTECTED | vgic,
        RealmFlags::PROTECTED | RealmFlags::SVE | vgic,
        RealmFlags::PROTECTED | RealmFlags::PMU | vgic,
        RealmFlags::SVE,
        RealmFlags::PMU | vgic,
        // Their interrupts are EL2's.
        RealmFlags::NONCONF,
        RealmFlags::PROTECTED,
    ] {
        let mut h = Host::new(Granule::K4, 16 << 20);
        for n in [1, 16, 17] {
            h.ok(fid::RMI_GRANULE_DELEGATE, &[h.page(n)]);
        }
        let mut params = h.realm_params(1, 16);
        params.flags = flags.bits();
        h.write(2, params);
        let create = [h.page(1), h.page(2)];
        assert_eq!(h.status(fid::RMI_REALM_CREATE, &create), Status::ErrorInput);
    }
}

/// What the host may ask of a plain guest's vCPU alone.
#[test]
fn a_protected_vcpu_keeps_its_registers_and_its_history() {
    let mut h = machine(Granule::K4);
    h.rec(0, REC);
    let rec = h.page(REC);
    for function in [vendor::REC_READ, vendor::REC_WRITE, vendor::REC_HISTORY] {
        let args = [rec, h.page(3)];
        assert_eq!(
            h.status(function, &args),
            Status::ErrorInput,
            "{function:#x}"
        );
    }
}

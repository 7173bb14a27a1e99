//! Guests built and taken apart against a fake EL2 that keeps RMI's books.
//!
//! The fake knows who owns each granule and which tables stand where, and
//! refuses what RMI 1.0 refuses. So a wrong order, a wrong alignment, a granule
//! used twice, one forgotten or one touched while it is EL2's shows here, for every
//! granule size, for guests whose memory is the host's or their own, and also when
//! any one call fails.

mod counting;
mod el2;

use arm64::recording::{self, Event};
use counting::counted;
use el2::{Asks, El2, RealmState};
use guest_config::{Mode, Populate};
use host_loader::bundle::Bundle;
use host_loader::granules::{self, Granules};
use host_loader::guest::build::{self, Resources};
use host_loader::guest::error::{GuestError, Refusal};
use host_loader::guest::failure::RealmError;
use host_loader::guest::live::{LiveRam, Populated};
use host_loader::guest::map;
use host_loader::guest::pieces::PIECE_SIZE;
use host_loader::guest::ram::Ram;
use host_loader::guest::realm::Shape;
use host_loader::guest::sharing::Asked;
use host_loader::pace::{Pace, at_once};
use host_loader::platform::Platform;
use rmi::feature::{Feature0, VendorFeatures};
use spin::Mutex;
use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

/// Memory for granules, at real addresses.
struct Arena {
    _bytes: Vec<u8>,
    range: Range<u64>,
}

fn arena() -> Arena {
    let mut bytes = vec![0u8; 24 << 20];
    let start = (bytes.as_mut_ptr().expose_provenance() as u64).next_multiple_of(2 << 20);
    let end = bytes.as_ptr() as u64 + bytes.len() as u64;
    Arena {
        _bytes: bytes,
        range: start..end & !0xffff,
    }
}

fn cpio(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, data) in files.iter().chain([&("TRAILER!!!", &[][..])]) {
        out.extend(b"070701");
        let size = data.len();
        for value in [
            1,
            0o100_644,
            0,
            0,
            1,
            0,
            size,
            0,
            0,
            0,
            0,
            name.len() + 1,
            0,
        ] {
            out.extend(format!("{value:08x}").bytes());
        }
        out.extend(name.bytes());
        out.resize((out.len() + 1).next_multiple_of(4), 0);
        out.extend(*data);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    out
}

/// An ELF file of these segments: physical address and size.
fn elf(segments: &[(u64, u64)]) -> Vec<u8> {
    let mut out = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    out.extend([2, 0, 183, 0, 1, 0, 0, 0]);
    for word in [segments[0].0, 64, 0] {
        out.extend(word.to_le_bytes());
    }
    out.extend([0; 4]);
    for half in [64, 56, segments.len() as u16, 0, 0, 0] {
        out.extend(half.to_le_bytes());
    }
    for &(address, size) in segments {
        out.extend([1, 0, 0, 0, 5, 0, 0, 0]);
        for word in [4096, address, address, size, size, 1] {
            out.extend(u64::to_le_bytes(word));
        }
    }
    out.resize(4096 + 0x1000, 0x1f);
    out
}

/// A guest's files, and what it is built with.
struct Case<'a> {
    granule_shift: u32,
    arena: &'a Arena,
    /// The calls that fail.
    failing: Option<Range<usize>>,
    toml: &'a str,
    kernel: &'a [u8],
}

const TOML: &str = "[[guest]]\nname = \"g\"\nkernel = \"k\"\nmemory = \"6M\"\nvcpus = 3\n";

/// Calls `f` with the resources of a host of its own and the EL2 below it.
fn with_host<R>(case: &Case<'_>, f: impl FnOnce(&Resources<'_>, &RefCell<El2>) -> R) -> R {
    let el2 = Rc::new(RefCell::new(El2 {
        granule_shift: case.granule_shift,
        pa_bits: 48,
        memory: case.arena.range.clone(),
        failing: case.failing.clone(),
        ..El2::default()
    }));
    let served = el2.clone();
    recording::answer_calls(Box::new(move |a| {
        counting::aside(|| served.borrow_mut().call(a))
    }));
    let bytes = cpio(&[("guests.toml", case.toml.as_bytes()), ("k", case.kernel)]);
    let bundle = Bundle::parse(&bytes).unwrap();
    let granule = 1u64 << case.granule_shift;
    let mut free = Granules::new(granule, std::slice::from_ref(&case.arena.range), &[]);
    let blank = free.take(granule, granule).unwrap();
    let granules = Mutex::new(free);
    let unpacker = Mutex::new(build::unpacker(&bundle, &granules).unwrap());
    let seeds = host_loader::seed::Seeds::new(&[7; 32]);
    let resources = Resources {
        high_ram: false,
        seeds: &seeds,
        pace: &Pace::new(),
        granules: &granules,
        features: VendorFeatures {
            granule_shift: case.granule_shift as u8,
            pa_bits: 48,
            nonconf: true,
            el2_vgic: true,
            // Realms that cannot be ended keep theirs.
            vmid16: true,
            ..VendorFeatures::default()
        },
        rmi: Feature0 {
            s2sz: 48,
            max_recs_order: 5,
            ..Feature0::default()
        },
        bundle: &bundle,
        unpacker: &unpacker,
        blank,
    };
    f(&resources, &el2)
}

/// A guest's granule size, mode and way to be populated.
#[derive(Clone, Copy, Debug)]
struct Way {
    granule_shift: u32,
    mode: Mode,
    populate: Populate,
}

impl Way {
    /// All of them.
    fn all() -> impl Iterator<Item = Self> {
        let modes = [Mode::Plain, Mode::Protected, Mode::Realm];
        let ways = modes.map(|mode| Populate::ALL.map(|(_, p)| (mode, p)));
        let granules = [12, 14, 16].into_iter();
        granules.flat_map(move |granule_shift| {
            ways.into_iter()
                .flatten()
                .map(move |(mode, populate)| Self {
                    granule_shift,
                    mode,
                    populate,
                })
        })
    }

    /// As the configuration says it.
    fn toml(self) -> String {
        let (mode, populate) = (self.mode.word(), self.populate.word());
        format!("mode = \"{mode}\"\npopulate = \"{populate}\"\n")
    }
}

/// A guest's RAM.
const RAM: Range<u64> = 0x4000_0000..0x4060_0000;

/// Bytes of the kernel of [`round`]'s guest, no two granules of it alike.
const KERNEL: usize = 5000;

fn kernel() -> Vec<u8> {
    (0..KERNEL).map(|n| (n * 31 + n / 251) as u8).collect()
}

/// Builds and takes apart one guest: the calls made, and what went wrong in it.
fn round(way: Way, arena: &Arena, failing: Option<Range<usize>>) -> (Vec<u64>, Option<Failure>) {
    let fails = failing.is_some();
    let fails_once = failing.as_ref().is_none_or(|calls| calls.len() == 1);
    let case = Case {
        granule_shift: way.granule_shift,
        arena,
        failing,
        toml: &format!("{TOML}{}", way.toml()),
        kernel: &kernel(),
    };
    with_host(&case, |resources, el2| {
        let before = resources.granules.lock().free_bytes();
        let (lost, error) = build_once(resources, el2);
        let el2 = &mut *el2.borrow_mut();
        el2.assert_untouched();
        if !fails {
            assert_eq!(el2.errors, 0, "a call was refused");
        }
        // What EL2 has, nobody else gets.
        let free = resources.granules.lock();
        let mapped = el2.realm.as_ref().map(|realm| realm.maps());
        for pa in mapped
            .into_iter()
            .flatten()
            .chain(el2.owners.keys().copied())
        {
            let is_free = free.ranges().iter().any(|range| range.contains(&pa));
            assert!(!is_free, "{pa:#x} is EL2's or a guest's, and free");
        }
        // A call that fails while things are taken apart may leak, and only that.
        // A realm that could not be ended keeps its page, too. The RAM of a guest is
        // lost as a whole.
        let posted = el2.realm.as_ref().and_then(|realm| realm.posted);
        let owned = el2.owners.keys().filter(|pa| {
            let of_ram = lost.iter().any(|extent| extent.contains(pa));
            !of_ram
        });
        let leaked = (owned.count() + usize::from(posted.is_some())) as u64;
        let leaked = leaked << way.granule_shift;
        let lost: u64 = lost.iter().map(|extent| extent.end - extent.start).sum();
        assert_eq!(free.free_bytes() + leaked + lost, before);
        if !fails || (error.is_some() && fails_once) {
            assert_eq!(leaked, 0, "{error:?}: {:?}", el2.owners);
            assert!(el2.realm.is_none());
        }
        let may_lose = way.mode != Mode::Plain || error.is_none() || !fails_once;
        assert!(lost == 0 || (fails && may_lose), "{error:?}");
        (std::mem::take(&mut el2.calls), error)
    })
}

/// Why a guest did not live.
#[derive(Debug)]
enum Failure {
    /// It was not built.
    Built(GuestError),
    /// It did not get what it touched.
    Touched(RealmError),
}

/// Bytes of RAM that the guest has.
fn given(el2: &El2) -> u64 {
    let realm = el2.realm.as_ref().unwrap();
    let mapped = realm.mapped.keys().filter(|(_, ipa)| *ipa >= RAM.start);
    let mapped: u64 = mapped.map(|&(level, _)| realm.size(level)).sum();
    mapped + realm.data.len() as u64 * realm.size(3)
}

/// What the guest reads, of these addresses.
fn guest_bytes(el2: &El2, ipas: Range<u64>) -> Vec<u8> {
    let granule = 1 << el2.granule_shift;
    let (start, end) = (ipas.start & !(granule - 1), ipas.end);
    let mut bytes = Vec::new();
    for ipa in (start..end).step_by(granule as usize) {
        bytes.extend(el2.guest_reads(ipa).expect("the guest has it"));
    }
    bytes.truncate((end - start) as usize);
    bytes.split_off((ipas.start - start) as usize)
}

/// The device tree that X0 tells the guest of.
fn tree(el2: &El2) -> Vec<u8> {
    let (_, at) = el2.realm.as_ref().unwrap().start_at;
    let size = guest_bytes(el2, at + 4..at + 8);
    let size = u32::from_be_bytes(size.try_into().unwrap());
    guest_bytes(el2, at..at + u64::from(size))
}

/// What the guest is to find in its RAM: its kernel where it starts, the tree where X0
/// says and a copy at RAM's base, and zeros.
///
/// The tree tells of this machine: its devices in the half that it shares.
fn expected(el2: &El2) -> Vec<u8> {
    let realm = el2.realm.as_ref().unwrap();
    let (entry, tree_at) = realm.start_at;
    let tree = tree(el2);
    let told = Platform::parse(&tree).unwrap();
    assert_eq!(told.memory, [RAM]);
    let uart = told.console.unwrap().base;
    // A realm adds that itself.
    let at = if realm.is_realm { 0 } else { realm.shared };
    assert_eq!(uart, at + 0x0900_0000);
    let posted = realm.shared + 0x0900_0000;
    assert_eq!(realm.posted.map(|(_, ipa)| ipa), Some(posted));
    assert_eq!(told.gic.distributor.start, at + 0x0800_0000);
    let redistributors = &told.gic.redistributors[0];
    assert_eq!(redistributors.start, at + 0x080a_0000);

    let mut ram = vec![0; (RAM.end - RAM.start) as usize];
    let parts = [
        (entry, kernel()),
        (tree_at, tree.clone()),
        (RAM.start, tree),
    ];
    for (ipa, bytes) in parts {
        let at = (ipa - RAM.start) as usize;
        ram[at..at + bytes.len()].copy_from_slice(&bytes);
    }
    ram
}

/// The guest finds in its RAM what it is to find, and nobody's leftovers.
fn assert_finds(el2: &El2, ipas: Range<u64>, expected: &[u8]) {
    let found = guest_bytes(el2, ipas.clone());
    let expected = &expected[(ipas.start - RAM.start) as usize..][..found.len()];
    if found != expected
        && let Some(at) = (0..found.len()).find(|&at| found[at] != expected[at])
    {
        let ipa = ipas.start + at as u64;
        panic!("at {ipa:#x}: {:#x}, not {:#x}", found[at], expected[at]);
    }
}

/// Touches all of a guest's RAM, a piece after the other: each is then there, with what
/// is to be in it.
fn touch_all(live: &LiveRam, ram: &Ram, el2: &RefCell<El2>) -> Result<(), RealmError> {
    let is_protected = el2.borrow().realm.as_ref().unwrap().shared != 0;
    let expected = expected(&el2.borrow());
    for ipa in RAM.step_by(PIECE_SIZE as usize) {
        let before = given(&el2.borrow());
        let at = ipa + 0x8_0008;
        let mut populated = None;
        let done = recording::of(|| populated = live.populate(at));
        let cleaned = done.iter().any(|event| {
            let instruction =
                matches!(event, Event::Instruction(name, _) if name.starts_with("dc"));
            instruction && is_protected
        });
        assert!(!cleaned, "the host maintains what is EL2's");
        let now = given(&el2.borrow());
        match populated.expect("RAM") {
            Ok(Populated::Now) => assert_eq!(now, before + PIECE_SIZE),
            Ok(Populated::Before) => assert_eq!(now, before),
            Err(error) => {
                // Of what is a protected guest's own, its end takes back a half too.
                let is_whole = now == before || is_protected;
                assert!(ram.is_lost() || is_whole, "half a piece is mapped");
                // Who waits for it does not wait for ever: it can be claimed again.
                let piece = ram.piece_at(at).expect("RAM");
                assert!(ram.pieces().claim(piece), "nobody fills it");
                ram.pieces().unclaim(piece);
                return Err(error);
            }
        }
        assert_eq!(live.populate(at), Some(Ok(Populated::Before)));
        assert_eq!(live.spot(at, 8).is_none(), is_protected);
        assert_finds(&el2.borrow(), ipa..ipa + PIECE_SIZE, &expected);
    }
    assert_eq!(live.populate(0x3fff_ffff), None);
    assert_eq!(live.populate(0x4060_0000), None);
    assert_eq!(given(&el2.borrow()), 6 << 20);
    el2.borrow_mut().assert_untouched();
    Ok(())
}

/// What others left in all RAM.
const LEFT: u64 = 0xa5a5_a5a5_a5a5_a5a5;

/// Fills memory of the test's arena that is nobody else's.
fn fill(pas: Range<u64>, value: u64) {
    for pa in pas.step_by(8) {
        // SAFETY: As the caller has it.
        unsafe { std::ptr::with_exposed_provenance_mut::<u64>(pa as usize).write(value) };
    }
}

/// Builds a guest in fresh memory and lets it live, twice where no call fails: the RAM
/// that EL2 kept of it, and what went wrong.
fn build_once(resources: &Resources<'_>, el2: &RefCell<El2>) -> (Vec<Range<u64>>, Option<Failure>) {
    let config = &resources.bundle.guests[0];
    let mut memory = build::allocate(config, resources).unwrap();
    let ram = memory.ram.shared().clone();
    for extent in ram.extents() {
        fill(extent.pa..extent.pa + extent.size, LEFT);
    }
    let fails = el2.borrow().failing.is_some();
    let error =
        (0..if fails { 1 } else { 2 }).find_map(|_| live_once(resources, el2, &mut memory).err());
    let mut lost = Vec::new();
    if ram.is_lost() {
        let extents = ram.extents().iter();
        lost.extend(extents.map(|extent| extent.pa..extent.pa + extent.size));
        // It has had its last life.
        let calls = el2.borrow().calls.len();
        let refused = at_once(build::build(config, resources, &mut memory)).unwrap_err();
        assert!(matches!(refused.why, Refusal::LostMemory), "{refused:?}");
        assert_eq!(el2.borrow().calls.len(), calls);
        assert!(refused.to_string().contains("start the machine anew"));
    }
    build::release(memory, resources.granules);
    (lost, error)
}

/// Who is to be mapped by pages is, but for blocks that could not be split.
fn assert_by_pages(realm: &RealmState, populate: Populate, fails: bool) {
    let by_pages = realm.mapped.keys().all(|(level, _)| *level == 3);
    assert!(by_pages || !populate.is_by_pages() || fails);
}

/// A guest's life: it finds what it is to find in all of its RAM, and leaves it full.
fn live_once(
    resources: &Resources<'_>,
    el2: &RefCell<El2>,
    memory: &mut build::Memory,
) -> Result<(), Failure> {
    let config = &resources.bundle.guests[0];
    let built = at_once(build::build(config, resources, memory));
    let realm = built.map_err(Failure::Built)?;
    {
        let el2 = el2.borrow();
        let state = el2.realm.as_ref().unwrap();
        assert!(state.active);
        assert_eq!(state.recs.len(), 3);
        assert_eq!(state.rd, realm.rd());
        let protected = config.guest.mode != Mode::Plain;
        assert_eq!(state.shared != 0, protected);
        let told: Vec<u64> = RAM.step_by(1 << el2.granule_shift).collect();
        assert!(state.ram.iter().eq(told.iter().filter(|_| protected)));
        let all = given(&el2) == 6 << 20;
        let populate = config.guest.populate.unwrap();
        assert_eq!(all, !populate.is_lazy());
        assert_by_pages(state, populate, el2.failing.is_some());
    }
    let free = resources.granules.lock().free_bytes();
    let live = LiveRam::new(
        memory.ram.shared().clone(),
        realm.stage2(),
        resources.features.fwb,
    );
    let touched = touch_all(&live, memory.ram.shared(), el2);
    {
        let el2 = el2.borrow();
        let populate = config.guest.populate.unwrap();
        assert_by_pages(el2.realm.as_ref().unwrap(), populate, el2.failing.is_some());
    }
    let now = resources.granules.lock().free_bytes();
    assert_eq!(now, free, "a first touch took memory");
    el2.borrow_mut().guest_fills(RAM, LEFT);
    at_once(realm.destroy(resources.build_context()));
    touched.map_err(Failure::Touched)
}

/// Whole granules of a realm's files, the lowest first, and nothing else, count.
#[test]
fn a_realm_is_measured_by_what_its_files_hold_in_order() {
    let arena = arena();
    for way in Way::all().filter(|way| way.mode == Mode::Realm) {
        for (measure, counts) in [("all", true), ("none", false)] {
            let case = Case {
                granule_shift: way.granule_shift,
                arena: &arena,
                failing: None,
                toml: &format!("{TOML}{}measure = \"{measure}\"\n", way.toml()),
                kernel: &kernel(),
            };
            with_host(&case, |resources, el2| {
                let config = &resources.bundle.guests[0];
                let mut memory = build::allocate(config, resources).unwrap();
                let built = at_once(build::build(config, resources, &mut memory));
                let (entry, tree) = el2.borrow().realm.as_ref().unwrap().start_at;
                let size = guest_bytes(&el2.borrow(), tree + 4..tree + 8);
                let size = u32::from_be_bytes(size.try_into().unwrap());
                let files = [
                    (RAM.start, u64::from(size)),
                    (entry, KERNEL as u64),
                    (tree, u64::from(size)),
                ];
                let granule = 1u64 << way.granule_shift;
                let mut expected: Vec<u64> = Vec::new();
                for (at, size) in files.into_iter().filter(|_| counts) {
                    expected.extend((at & !(granule - 1)..at + size).step_by(granule as usize));
                }
                expected.sort_unstable();
                expected.dedup();
                let measured = el2.borrow().realm.as_ref().unwrap().measured.clone();
                assert_eq!(measured, expected, "{way:?}");
                at_once(built.unwrap().destroy(resources.build_context()));
                build::release(memory, resources.granules);
            });
        }
    }
}

/// What a vCPU of a realm asks for, until it is done or does not get on.
fn asks(
    live: &LiveRam,
    resources: &Resources<'_>,
    el2: &RefCell<El2>,
    ipas: &Range<u64>,
    to: Asked,
) -> Result<(), RealmError> {
    let mut rest = ipas.clone();
    while !rest.is_empty() {
        let rec = {
            let mut el2 = el2.borrow_mut();
            let realm = el2.realm.as_mut().unwrap();
            let rec = *realm.recs.keys().next().unwrap();
            let (ipas, to_ram) = (rest.clone(), to == Asked::Ram);
            realm.asks = Some(Asks { rec, ipas, to_ram });
            rec
        };
        live.change(resources.granules, rec, rest.clone(), to)
            .expect("RAM")?;
        let reached = el2.borrow_mut().realm.as_mut().unwrap().asks.take();
        let reached = reached.unwrap().ipas.start;
        assert!(reached > rest.start, "nothing of {rest:x?} is done");
        rest.start = reached;
    }
    Ok(())
}

/// A realm shares pieces and parts of pieces that it has touched or not, and takes them
/// back: the other half has what was shared, its own is zero, and all comes back.
fn share_once(
    resources: &Resources<'_>,
    el2: &RefCell<El2>,
    memory: &mut build::Memory,
) -> Result<(), Failure> {
    let config = &resources.bundle.guests[0];
    let built = at_once(build::build(config, resources, memory));
    let realm = built.map_err(Failure::Built)?;
    let shared = realm.shared();
    let live = LiveRam::new(memory.ram.shared().clone(), realm.stage2(), false);
    let body = || {
        let touch = |ipa: u64| live.touch(resources.granules, ipa);
        let granule = 1u64 << el2.borrow().granule_shift;
        let own = |ipa: u64| el2.borrow().guest_reads(ipa);
        let last = RAM.end - PIECE_SIZE..RAM.end;
        let part = last.start + 2 * granule..last.start + 5 * granule;
        assert_eq!(live.touch(resources.granules, 0x0900_0000 + shared), None);
        for ipas in [part.clone(), last.clone(), part] {
            asks(&live, resources, el2, &ipas, Asked::Empty)?;
            assert_eq!(own(ipas.start), None);
            for ipa in [ipas.start, ipas.end - granule] {
                let other = ipa + shared;
                if own(other).is_none() {
                    assert_eq!(touch(other + 8).expect("shared")?, Populated::Now);
                }
                assert_eq!(touch(other).expect("shared")?, Populated::Before);
                assert!(own(other).is_some(), "{other:x}");
            }
            el2.borrow_mut()
                .guest_fills(ipas.start + shared..ipas.end + shared, LEFT);
            // The rest of the piece is the realm's.
            if ipas != last {
                let touched = live.populate(last.start).expect("RAM")?;
                assert!(matches!(touched, Populated::Now | Populated::Before));
                assert!(own(last.start).is_some());
                assert_eq!(own(ipas.start), None);
            }
            asks(&live, resources, el2, &ipas, Asked::Ram)?;
            live.populate(ipas.start).expect("RAM")?;
            assert_eq!(own(ipas.start), Some(vec![0; granule as usize]));
        }
        // A part of a larger granule than the realm's: other memory.
        let part = last.start + shared;
        match touch(part) {
            None => assert_eq!(granule, 4096),
            // What was shared there before stays.
            Some(shown) => assert_eq!(shown?, Populated::Before),
        }
        assert_eq!(own(part).is_some(), granule > 4096);
        Ok(())
    };
    let shared = body();
    at_once(realm.destroy(resources.build_context()));
    shared.map_err(Failure::Touched)
}

fn share(way: Way, arena: &Arena, failing: Option<Range<usize>>) -> Vec<u64> {
    let fails = failing.is_some();
    let case = Case {
        granule_shift: way.granule_shift,
        arena,
        failing,
        toml: &format!("{TOML}{}", way.toml()),
        kernel: &kernel(),
    };
    with_host(&case, |resources, el2| {
        let before = resources.granules.lock().free_bytes();
        let config = &resources.bundle.guests[0];
        let mut memory = build::allocate(config, resources).unwrap();
        let ram = memory.ram.shared().clone();
        let result = share_once(resources, el2, &mut memory);
        let is_lost = ram.is_lost();
        build::release(memory, resources.granules);
        let el2 = &mut *el2.borrow_mut();
        let free = resources.granules.lock();
        // What EL2 has, or a realm that could not be ended, nobody else gets.
        let mapped = el2.realm.as_ref().map(|realm| realm.maps());
        for pa in mapped
            .into_iter()
            .flatten()
            .chain(el2.owners.keys().copied())
        {
            let is_free = free.ranges().iter().any(|range| range.contains(&pa));
            assert!(!is_free, "{pa:#x} is EL2's or a guest's, and free");
        }
        if !fails {
            result.unwrap();
            assert!(!is_lost);
            assert_eq!(free.free_bytes(), before, "{way:?}");
        }
        std::mem::take(&mut el2.calls)
    })
}

#[test]
fn what_a_realm_shares_comes_back_whichever_call_fails() {
    let arena = arena();
    for way in Way::all().filter(|way| way.mode == Mode::Realm) {
        let calls = share(way, &arena, None);
        for at in worth_a_failure(&calls) {
            share(way, &arena, Some(at..at + 1));
        }
    }
}

#[test]
fn every_granule_comes_back_for_every_granule_size() {
    let arena = arena();
    for way in Way::all().chain(Way::all()) {
        let (_, error) = round(way, &arena, None);
        assert!(error.is_none(), "{way:?}: {error:?}");
    }
}

/// The calls worth a failure: those near where other calls begin than the one or two
/// that were made in turn, and some of each long row.
fn worth_a_failure(calls: &[u64]) -> Vec<usize> {
    let changes: Vec<usize> = (0..calls.len())
        .filter(|&at| !calls[at.saturating_sub(2)..at].contains(&calls[at]))
        .collect();
    let near = |at: usize| changes.iter().any(|change| at.abs_diff(*change) < 3);
    let last = calls.len().saturating_sub(3);
    (0..calls.len())
        .filter(|&at| near(at) || at >= last || at % 61 == 0)
        .map(|at| at + 1)
        .collect()
}

/// Builds and takes apart guests of this kind with calls that fail, each time others.
fn fail_in_turn(way: Way, arena: &Arena, failing: impl Fn(usize) -> Range<usize>) {
    let (calls, _) = round(way, arena, None);
    let mut touches = 0;
    for at in worth_a_failure(&calls) {
        let (_, error) = round(way, arena, Some(failing(at)));
        let error = match error {
            Some(Failure::Built(error)) => error,
            Some(Failure::Touched(error)) => {
                assert!(matches!(error, RealmError::Call(..)), "{error:?}");
                touches += 1;
                continue;
            }
            None => continue,
        };
        assert!(matches!(error.why, Refusal::Realm(_)), "{error:?}");
        let sentence = error.to_string();
        assert!(
            sentence.starts_with("guests.toml:3:10: guest \"g\""),
            "{sentence}"
        );
    }
    assert_eq!(touches > 0, way.populate.is_lazy(), "{way:?}");
}

#[test]
fn whichever_call_fails_nothing_is_left_behind() {
    let arena = arena();
    for way in Way::all() {
        fail_in_turn(way, &arena, |at| at..at + 1);
    }
}

/// From some call on, EL2 refuses all: what it may have a part of is nobody's.
#[test]
fn memory_that_cannot_be_had_back_is_never_used_again() {
    let arena = arena();
    for way in Way::all().filter(|way| way.granule_shift != 12) {
        fail_in_turn(way, &arena, |at| at..usize::MAX);
    }
}

/// RAM in single granules: as many extents and tables as there can be.
fn scatter(resources: &Resources<'_>) {
    let size = resources.granules.lock().granule();
    let mut taken = Vec::new();
    while let Some(start) = resources.granules.lock().take(size, size) {
        taken.push(start);
    }
    granules::make_room(resources.granules, taken.len());
    // Every fourth is in use, so that there is no block anywhere.
    for start in taken {
        if !(start / size).is_multiple_of(4) {
            resources.granules.lock().give(start, size);
        }
    }
}

/// What resets allocate, and the granules that they take, is what was set aside
/// for them before the first start.
#[test]
fn resets_take_no_more_than_was_set_aside() {
    let arena = arena();
    let segments: Vec<(u64, u64)> = (0..71)
        .map(|i| (0x4000_0000 + i * 0x2000, 0x1000))
        .collect();
    let elf = elf(&segments);
    let packed = zstd::encode_all(&*vec![0x1f; 3 << 20], 19).unwrap();
    let kernels: [&[u8]; 3] = [&[0x1f; 5000], &elf, &packed];
    for (granule_shift, vcpus, scattered) in [
        (12, 1, false),
        (12, 32, false),
        (12, 3, true),
        (14, 9, true),
        (16, 9, true),
    ] {
        for kernel in kernels {
            for way in Way::all().filter(|way| way.granule_shift == granule_shift) {
                let toml = TOML.replace("vcpus = 3", &format!("vcpus = {vcpus}"));
                let case = Case {
                    granule_shift,
                    arena: &arena,
                    failing: None,
                    toml: &format!("{toml}{}", way.toml()),
                    kernel,
                };
                with_host(&case, |resources, _| reset_often(resources, scattered));
            }
        }
    }
}

fn reset_often(resources: &Resources<'_>, scattered: bool) {
    // Root tables stand in one run.
    const ROOTS: u64 = 256 << 10;
    let roots = resources.granules.lock().take(ROOTS, ROOTS).unwrap();
    if scattered {
        scatter(resources);
    }
    let config = &resources.bundle.guests[0];
    let mut memory = build::allocate(config, resources).unwrap();
    let needs = build::needs(config, resources, &memory).unwrap();
    resources.granules.lock().give(roots, ROOTS);
    let free = resources.granules.lock().free_bytes();
    let first = at_once(build::build(config, resources, &mut memory)).unwrap();
    let used = free - resources.granules.lock().free_bytes();
    let extents = used / resources.granules.lock().granule();
    assert!(
        extents as usize <= needs.extents,
        "{extents} extents, {needs:?}"
    );
    at_once(first.destroy(resources.build_context()));
    for _ in 0..3 {
        let (realm, used) =
            counted(|| at_once(build::build(config, resources, &mut memory)).unwrap());
        assert!(used.peak as u64 <= needs.heap, "{used:?}, {needs:?}");
        let ((), used) = counted(|| at_once(realm.destroy(resources.build_context())));
        assert_eq!(used.blocks, 0, "taking apart allocates");
    }
    build::release(memory, resources.granules);
}

#[test]
fn a_guest_that_asks_for_too_much_is_told_what_there_is() {
    let arena = arena();
    let little = |why: &Refusal| matches!(why, Refusal::LittleMemory { .. });
    let wide = |why: &Refusal| matches!(why, Refusal::WideMemory { .. });
    let bits = |why: &Refusal| matches!(why, Refusal::IpaBits { .. });
    let many = |why: &Refusal| matches!(why, Refusal::ManyVcpus { limit: 32, .. });
    let starts = |why: &Refusal| matches!(why, Refusal::StartLevel { .. });
    let cases: [Refused<'_>; 11] = [
        (
            "ram_base = 0x1_0000_0000_0000",
            wide,
            ["guests.toml:4", "ram_base = 0x1000000000000", "49 bits"],
        ),
        (
            "ram_base = 0x1_0000_0000\nipa_bits = 32",
            bits,
            ["guests.toml:5", "expected 33", "from 0x100000000 on"],
        ),
        (
            "memory = \"1G\"",
            little,
            ["guests.toml:4", "memory", "MiB left"],
        ),
        (
            "memory = \"4T\"",
            little,
            ["guests.toml:4", "memory", "MiB left"],
        ),
        ("memory = \"512T\"", wide, ["guests.toml:4", "memory", "48"]),
        // Half of the addresses is for what it shares.
        (
            "memory = \"130T\"\nmode = \"protected\"",
            wide,
            ["guests.toml:4", "memory", "49 bits"],
        ),
        (
            "memory = \"16777214T\"\nmode = \"protected\"",
            wide,
            ["guests.toml:4", "memory", "65 bits"],
        ),
        (
            "ipa_bits = 32\nmode = \"realm\"\nmemory = \"1536M\"",
            bits,
            ["guests.toml:4", "ipa_bits = 32", "33, which"],
        ),
        (
            "ipa_bits = 49\nmode = \"realm\"",
            bits,
            ["guests.toml:4", "ipa_bits = 49", "48, which"],
        ),
        (
            "start_level = 0\nipa_bits = 36",
            starts,
            ["guests.toml:4", "start_level = 0", "expected 1 to 1"],
        ),
        ("vcpus = 33", many, ["guests.toml:4", "vcpus", "at most 32"]),
    ];
    for case in cases {
        assert_refused(&arena, case);
    }
}

/// Settings, what they are refused for, and words of it.
type Refused<'a> = (&'a str, fn(&Refusal) -> bool, [&'a str; 3]);

/// A guest of these settings is refused for that, in these words, and nothing of it is
/// left.
fn assert_refused(arena: &Arena, (text, is_that, parts): Refused<'_>) {
    let toml = format!("[[guest]]\nname = \"g\"\nkernel = \"k\"\n{text}\n");
    let case = Case {
        granule_shift: 12,
        arena,
        failing: None,
        toml: &toml,
        kernel: &[1; 64],
    };
    let (error, lost) = with_host(&case, |resources, _| {
        let before = resources.granules.lock().free_bytes();
        let error = build::allocate(&resources.bundle.guests[0], resources).unwrap_err();
        (error, before - resources.granules.lock().free_bytes())
    });
    assert!(is_that(&error.why), "{error:?}");
    let sentence = error.to_string();
    for part in parts {
        assert!(sentence.contains(part), "{sentence}");
    }
    assert_eq!(lost, 0);
}

#[test]
fn flash_is_a_plain_guests_and_has_an_end() {
    let arena = arena();
    let little = |why: &Refusal| matches!(why, Refusal::LittleMemory { .. });
    let flash = |why: &Refusal| matches!(why, Refusal::Flash(_));
    let cases: [Refused<'_>; 3] = [
        (
            "load = 0\nmode = \"protected\"",
            flash,
            ["guests.toml:4", "load = 0x0", "a plain guest"],
        ),
        (
            "load = 0x3ff_ffff",
            flash,
            ["guests.toml:4", "load = 0x3ffffff", "0x400003f"],
        ),
        // What flash takes is given back.
        (
            "memory = \"62M\"\nload = 0",
            little,
            ["guests.toml:4", "memory", "left"],
        ),
    ];
    for case in cases {
        assert_refused(&arena, case);
    }
    let packed = zstd::encode_all(&*kernel(), 1).unwrap();
    let cases: [(&str, &[u8], [&str; 2]); 3] = [
        ("", &packed, ["guests.toml:6", "\"k\" is packed"]),
        (
            "",
            &elf(&[(0, 64)]),
            ["guests.toml:6", "itself where it goes"],
        ),
        (
            "entry = 0x4000_0000\n",
            &[1; 64],
            ["guests.toml:7", "entry = 0x40000000"],
        ),
    ];
    for (text, kernel, parts) in cases {
        let case = Case {
            granule_shift: 12,
            arena: &arena,
            failing: None,
            toml: &format!("{TOML}load = 0\n{text}"),
            kernel,
        };
        let error = with_host(&case, |resources, _| {
            let config = &resources.bundle.guests[0];
            let mut memory = build::allocate(config, resources)?;
            at_once(build::build(config, resources, &mut memory)).map(|_| ())
        });
        let sentence = error.unwrap_err().to_string();
        for part in parts {
            assert!(sentence.contains(part), "{sentence}");
        }
    }
}

/// Calls `f` with a host and an EL2 of a CPU of 52 bits, by LPA2 where the granule takes
/// that; `high_ram`: some of the machine's RAM takes them.
fn with_wide_host(case: &Case<'_>, high_ram: bool, f: impl FnOnce(&Resources<'_>, &RefCell<El2>)) {
    with_host(case, |resources, el2| {
        let lpa2 = case.granule_shift != 16;
        {
            let mut el2 = el2.borrow_mut();
            (el2.pa_bits, el2.lpa2) = (52, lpa2);
        }
        let wide = Resources {
            high_ram,
            features: VendorFeatures {
                pa_bits: 52,
                ..resources.features
            },
            rmi: Feature0 {
                s2sz: 52,
                lpa2,
                ..resources.rmi
            },
            ..*resources
        };
        f(&wide, el2);
    });
}

/// Builds a guest, which finds its RAM in these addresses, and takes it apart: how many
/// bits they have, and whether by LPA2.
fn live_at(resources: &Resources<'_>, el2: &RefCell<El2>, ram: &Range<u64>) -> (u32, bool) {
    let config = &resources.bundle.guests[0];
    let mut memory = build::allocate(config, resources).unwrap();
    let needs = build::needs(config, resources, &memory).unwrap();
    let free = resources.granules.lock().free_bytes();
    let built = at_once(build::build(config, resources, &mut memory));
    let realm = built.unwrap_or_else(|error| panic!("RAM in {ram:x?}: {error}"));
    let used = free - resources.granules.lock().free_bytes();
    let extents = used / resources.granules.lock().granule();
    assert!(extents as usize <= needs.extents, "{extents}, {needs:?}");
    let live = LiveRam::new(memory.ram.shared().clone(), realm.stage2(), false);
    for ipa in ram.clone().step_by(PIECE_SIZE as usize) {
        live.populate(ipa).expect("RAM").unwrap();
    }
    let found = {
        let el2 = el2.borrow();
        let state = el2.realm.as_ref().unwrap();
        let entry = state.start_at.0;
        assert_eq!(guest_bytes(&el2, entry..entry + KERNEL as u64), kernel());
        let told = Platform::parse(&tree(&el2)).unwrap();
        assert_eq!(told.memory, std::slice::from_ref(ram));
        (state.ipa_bits, state.lpa2)
    };
    at_once(realm.destroy(resources.build_context()));
    build::release(memory, resources.granules);
    found
}

/// A guest whose addresses, or whose machine's, are of more than 48 bits: where its RAM
/// is to begin, whether its machine's is high, and how many bits a plain guest's are.
const WIDE: [(u64, bool, u32); 6] = [
    (0x4000_0000, false, 32),
    (0x4000_0000, true, 32),
    (0xffff_ffe0_0000, false, 49),
    (0x1_0000_0000_0000, false, 49),
    (0x1_0000_0000_0000, true, 49),
    // What is shared takes the last bit.
    (0x7_ffff_ffa0_0000, false, 51),
];

#[test]
fn what_takes_descriptors_of_52_bits_is_created_with_them() {
    let arena = arena();
    for (base, high_ram, bits) in WIDE {
        for way in Way::all() {
            let case = Case {
                granule_shift: way.granule_shift,
                arena: &arena,
                failing: None,
                toml: &format!("{TOML}ram_base = {base}\n{}", way.toml()),
                kernel: &kernel(),
            };
            with_wide_host(&case, high_ram, |resources, el2| {
                let before = resources.granules.lock().free_bytes();
                let what = format!("{way:?}, RAM at {base:#x}, high RAM: {high_ram}");
                let (ipa_bits, lpa2) = live_at(resources, el2, &(base..base + (6 << 20)));
                let least = if way.granule_shift == 16 { 34 } else { 32 };
                let shared = u32::from(way.mode != Mode::Plain);
                assert_eq!(ipa_bits, bits.max(least) + shared, "{what}");
                let wide = ipa_bits > 48 || high_ram;
                assert_eq!(lpa2, wide && way.granule_shift != 16, "{what}");
                assert_eq!(el2.borrow().errors, 0, "a call was refused: {what}");
                assert_eq!(resources.granules.lock().free_bytes(), before, "{what}");
            });
        }
    }
}

/// By pieces a guest would have pages where it could have larger blocks.
#[test]
fn a_guest_that_does_not_say_is_lazy_where_no_entry_maps_more_than_a_piece() {
    let arena = arena();
    // A root of level 3 has no blocks below it.
    let pages = "ipa_bits = 32\nstart_level = 3\n";
    for (granule_shift, fwb, more, lazy) in [
        (12, true, "", true),
        (14, false, "", true),
        (14, true, "", false),
        (16, false, "", true),
        (16, true, "", false),
        (16, true, pages, true),
    ] {
        let case = Case {
            granule_shift,
            arena: &arena,
            failing: None,
            toml: &format!("{TOML}{more}"),
            kernel: &kernel(),
        };
        with_host(&case, |resources, el2| {
            let features = VendorFeatures {
                fwb,
                ..resources.features
            };
            let resources = Resources {
                features,
                ..*resources
            };
            let config = &resources.bundle.guests[0];
            let mut memory = build::allocate(config, &resources).unwrap();
            let realm = at_once(build::build(config, &resources, &mut memory)).unwrap();
            let given = given(&el2.borrow());
            assert_eq!(given < 6 << 20, lazy, "{granule_shift} {fwb} {more}");
            at_once(realm.destroy(resources.build_context()));
            build::release(memory, resources.granules);
        });
    }
}

#[test]
fn shapes_are_those_that_kvm_would_choose() {
    let shape = |shift, end| {
        let s = Shape::for_ipas(shift, end);
        (s.ipa_bits, s.start_level, s.roots)
    };
    const G: u64 = 1 << 30;
    assert_eq!(shape(12, 2 * G), (32, 2, 4));
    assert_eq!(shape(12, 16 * G), (34, 2, 16));
    assert_eq!(shape(12, 17 * G), (35, 1, 1));
    assert_eq!(shape(12, 1 << 40), (40, 1, 2));
    assert_eq!(shape(12, 1 << 44), (44, 0, 1));
    assert_eq!(shape(12, 1 << 48), (48, 0, 1));
    assert_eq!(shape(14, 2 * G), (32, 2, 1));
    assert_eq!(shape(14, 1 << 40), (40, 2, 16));
    assert_eq!(shape(14, 1 << 48), (48, 1, 2));
    assert_eq!(shape(16, 2 * G), (34, 2, 1));
    assert_eq!(shape(16, 1 << 44), (44, 2, 4));
    assert_eq!(shape(16, 1 << 48), (48, 1, 1));
}

/// What stands in the flash of a guest that starts from it, by IPA.
fn shown(el2: &RefCell<El2>) -> [bool; 2] {
    let el2 = el2.borrow();
    let mapped = &el2.realm.as_ref().unwrap().mapped;
    [0, map::FLASH.start].map(|ipa| mapped.keys().any(|(_, at)| *at == ipa))
}

/// A guest starts from flash, which it reads as memory; while it gives commands to the
/// second bank, that is none. What it writes there outlives resets.
#[test]
fn a_guest_starts_from_flash_and_keeps_what_it_wrote_there() {
    let arena = arena();
    let both = |command: u64| command << 16 | command;
    let at = map::FLASH.start + 0x1000;
    for granule_shift in [12, 14, 16] {
        let case = Case {
            granule_shift,
            arena: &arena,
            failing: None,
            toml: &format!("{TOML}load = 0\n"),
            kernel: &kernel(),
        };
        with_host(&case, |resources, el2| {
            let before = resources.granules.lock().free_bytes();
            let config = &resources.bundle.guests[0];
            let mut memory = build::allocate(config, resources).unwrap();
            let code = memory.flash.as_ref().unwrap().code.shared().clone();
            for extent in code.extents() {
                fill(extent.pa..extent.pa + extent.size, LEFT);
            }
            for value in [u64::from(u32::MAX), 0x1234_5678] {
                let realm = at_once(build::build(config, resources, &mut memory)).unwrap();
                let mut expected = kernel();
                expected.resize(PIECE_SIZE as usize, 0);
                let found = guest_bytes(&el2.borrow(), 0..PIECE_SIZE);
                assert!(found == expected, "what others left is there");
                let banks = memory.flash.as_ref().unwrap();
                let mut devices = banks.devices(realm.stage2(), true);
                assert_eq!(devices.read(at, 4), value, "in {granule_shift}");
                assert_eq!(shown(el2), [true, true]);
                devices.write(at, 4, both(0x40));
                assert_eq!(shown(el2), [true, false]);
                devices.write(at, 4, 0x1234_5678);
                assert_eq!(devices.read(at, 8), 0x0080_0080_0080_0080, "ready");
                devices.write(at, 4, both(0xff));
                assert_eq!(shown(el2), [true, true]);
                assert_eq!(devices.read(at, 8), 0xffff_ffff_1234_5678);
                let lost = devices.read(8, 8);
                devices.write(8, 8, !lost);
                assert_eq!(devices.read(8, 8), lost);
                // Powered off amid a command.
                devices.write(at, 4, both(0x70));
                devices.show(true);
                at_once(realm.destroy(resources.build_context()));
            }
            build::release(memory, resources.granules);
            assert_eq!(resources.granules.lock().free_bytes(), before);
            assert_eq!(el2.borrow().errors, 0, "a call was refused");
        });
    }
}

/// Resets of a guest that starts from flash take nothing that stays.
#[test]
fn resets_of_flash_take_no_more_than_was_set_aside() {
    let arena = arena();
    let case = Case {
        granule_shift: 12,
        arena: &arena,
        failing: None,
        toml: &format!("{TOML}load = 0\n"),
        kernel: &kernel(),
    };
    with_host(&case, |resources, _| {
        let config = &resources.bundle.guests[0];
        let mut memory = build::allocate(config, resources).unwrap();
        let needs = build::needs(config, resources, &memory).unwrap();
        let mut resets = |count| {
            for _ in 0..count {
                let realm = at_once(build::build(config, resources, &mut memory)).unwrap();
                at_once(realm.destroy(resources.build_context()));
            }
        };
        resets(2);
        let ((), once) = counted(|| resets(1));
        let ((), often) = counted(|| resets(300));
        assert_eq!(often.peak, once.peak);
        assert!(often.peak as u64 <= needs.heap, "{often:?}, {needs:?}");
        build::release(memory, resources.granules);
    });
}

/// Whichever call fails, of a start or of an end, what EL2 has is nobody's.
#[test]
fn whichever_call_fails_flash_is_given_back_or_lost() {
    let arena = arena();
    let kernel = kernel();
    for at in 1.. {
        let case = Case {
            granule_shift: 12,
            arena: &arena,
            failing: Some(at..at + 1),
            toml: &format!("{TOML}load = 0\n"),
            kernel: &kernel,
        };
        let over = with_host(&case, |resources, el2| {
            let before = resources.granules.lock().free_bytes();
            let config = &resources.bundle.guests[0];
            let mut memory = build::allocate(config, resources).unwrap();
            let built = at_once(build::build(config, resources, &mut memory));
            let ended = built.is_ok();
            if let Ok(realm) = built {
                at_once(realm.destroy(resources.build_context()));
            }
            build::release(memory, resources.granules);
            let granules = resources.granules.lock();
            let el2 = el2.borrow();
            let mapped = el2.realm.iter().flat_map(|realm| realm.maps());
            for pa in mapped.chain(el2.owners.keys().copied()) {
                let is_free = granules.ranges().iter().any(|range| range.contains(&pa));
                assert!(
                    !is_free,
                    "call {at}: {pa:#x} is EL2's or a guest's, and free"
                );
            }
            assert!(ended || granules.free_bytes() == before, "call {at}");
            el2.calls.len() < at
        });
        if over {
            break;
        }
    }
}

/// Calls `f` with a realm that is populated at its first touch, whose RAM holds what
/// others left.
fn with_lazy_realm(
    arena: &Arena,
    granule_shift: u32,
    f: impl FnOnce(&LiveRam, &Resources<'_>, &RefCell<El2>, u64),
) {
    let way = Way {
        granule_shift,
        mode: Mode::Realm,
        populate: Populate::Lazy,
    };
    let case = Case {
        granule_shift,
        arena,
        failing: None,
        toml: &format!("{TOML}{}", way.toml()),
        kernel: &kernel(),
    };
    with_host(&case, |resources, el2| {
        let config = &resources.bundle.guests[0];
        let mut memory = build::allocate(config, resources).unwrap();
        for extent in memory.ram.shared().extents() {
            fill(extent.pa..extent.pa + extent.size, LEFT);
        }
        let realm = at_once(build::build(config, resources, &mut memory)).unwrap();
        let live = LiveRam::new(memory.ram.shared().clone(), realm.stage2(), false);
        f(&live, resources, el2, realm.shared());
        at_once(realm.destroy(resources.build_context()));
    });
}

/// What a realm shares before it ever had it holds nobody's leftovers.
#[test]
fn what_is_shared_before_it_is_touched_is_zero() {
    let arena = arena();
    for granule_shift in [12, 14, 16] {
        with_lazy_realm(&arena, granule_shift, |live, resources, el2, shared| {
            let ipas = RAM.start + PIECE_SIZE..RAM.start + 2 * PIECE_SIZE;
            asks(live, resources, el2, &ipas, Asked::Empty).unwrap();
            let other = ipas.start + shared;
            live.touch(resources.granules, other).unwrap().unwrap();
            let found = el2.borrow().guest_reads(other).unwrap();
            assert!(found.iter().all(|&byte| byte == 0), "{granule_shift}");
        });
    }
}

/// Of a range that is taken back, what may be asked for in part stays shared: its ends,
/// and not those of the steps in which it is taken.
#[test]
fn of_what_is_taken_back_nothing_amid_it_stays_shared() {
    let arena = arena();
    for granule_shift in [14, 16] {
        with_lazy_realm(&arena, granule_shift, |live, resources, el2, shared| {
            let granule = 1u64 << granule_shift;
            let ipas = RAM.end - 2 * PIECE_SIZE..RAM.end;
            let middle = RAM.end - PIECE_SIZE;
            asks(live, resources, el2, &ipas, Asked::Empty).unwrap();
            for ipa in ipas.clone().step_by(granule as usize) {
                live.touch(resources.granules, ipa + shared)
                    .unwrap()
                    .unwrap();
            }
            asks(live, resources, el2, &ipas, Asked::Ram).unwrap();
            let is_shared = |ipa: u64| el2.borrow().guest_reads(ipa + shared).is_some();
            let found = [ipas.start, middle - granule, middle, ipas.end - granule].map(is_shared);
            assert_eq!(found, [true, false, false, true], "{granule_shift}");
        });
    }
}

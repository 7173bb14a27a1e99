//! Guests built and taken apart against a fake EL2 that keeps RMI's books.
//!
//! The fake knows who owns each granule and which tables stand where, and
//! refuses what RMI 1.0 refuses. So a wrong order, a wrong alignment, a granule
//! used twice or one forgotten shows here, for every granule size, and also when
//! any one call fails.

mod counting;

use arm64::recording;
use counting::counted;
use guest_config::Populate;
use host_loader::bundle::Bundle;
use host_loader::granules::{self, Granules};
use host_loader::guest::build::{self, Resources};
use host_loader::guest::error::{GuestError, Refusal};
use host_loader::guest::failure::RealmError;
use host_loader::guest::live::{LiveRam, Populated};
use host_loader::guest::pieces::PIECE_SIZE;
use host_loader::guest::realm::Shape;
use host_loader::pace::{Pace, at_once};
use rmi::call::HostCall;
use rmi::feature::{Feature0, VendorFeatures};
use rmi::params::{RealmFlags, RealmParams, RecFlags, RecParams};
use rmi::vendor::Vendor;
use rmi::{Command, Status};
use spin::Mutex;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use zerocopy::FromBytes;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Delegated,
    Rd,
    Root,
    Rtt,
    Rec,
    Aux,
}

#[derive(Default)]
struct El2 {
    granule_shift: u32,
    memory: std::ops::Range<u64>,
    owners: BTreeMap<u64, Owner>,
    realm: Option<RealmState>,
    calls: usize,
    fail_at: Option<usize>,
    errors: usize,
}

struct RealmState {
    rd: u64,
    ipa_bits: u32,
    start: i64,
    active: bool,
    roots: Vec<u64>,
    /// Tables below the roots: (level, base IPA) to granule.
    tables: BTreeMap<(i64, u64), u64>,
    /// Mapped entries: (level, IPA) to output address.
    mapped: BTreeMap<(i64, u64), u64>,
    recs: BTreeMap<u64, Vec<u64>>,
    /// A page of the host's for the realm's device.
    posted: Option<u64>,
}

const AUX: u64 = 3;

impl El2 {
    fn size(&self, level: i64) -> u64 {
        1 << (self.granule_shift + (3 - level) as u32 * (self.granule_shift - 3))
    }

    fn is(&self, pa: u64, owner: Owner) -> bool {
        self.owners.get(&pa) == Some(&owner)
    }

    fn take(&mut self, pa: u64, owner: Owner) -> bool {
        let ok = self.is(pa, Owner::Delegated);
        if ok {
            self.owners.insert(pa, owner);
        }
        ok
    }

    /// A structure in a page that must be the host's.
    fn read<T: FromBytes>(&self, pa: u64) -> Option<T> {
        if !pa.is_multiple_of(1 << self.granule_shift)
            || !self.memory.contains(&pa)
            || self.owners.contains_key(&pa)
        {
            return None;
        }
        // SAFETY: The page lies in the test's arena, which lives to the end.
        let bytes = unsafe {
            std::slice::from_raw_parts(std::ptr::with_exposed_provenance(pa as usize), 4096)
        };
        T::read_from_bytes(bytes).ok()
    }

    /// The level at which a walk towards `level` ends.
    fn reach(realm: &RealmState, size: impl Fn(i64) -> u64, ipa: u64, level: i64) -> i64 {
        let mut at = realm.start;
        while at < level && realm.tables.contains_key(&(at + 1, ipa & !(size(at) - 1))) {
            at += 1;
        }
        at
    }

    fn call(&mut self, a: [u64; 6]) -> [u64; 5] {
        if a[0] == rmi::vendor::RANDOM {
            // A CPU without: nothing fails for it.
            return [rmi::NOT_SUPPORTED, 0, 0, 0, 0];
        }
        self.calls += 1;
        if self.fail_at == Some(self.calls) {
            return [Status::ErrorInput.pack(), 0, 0, 0, 0];
        }
        let mut out = [0; 4];
        let call = HostCall::decode(a).expect("a call that there is");
        let status = self.serve(call, &mut out);
        if status != Status::Success && !matches!(status, Status::ErrorRtt(_)) {
            self.errors += 1;
        }
        [status.pack(), out[0], out[1], out[2], out[3]]
    }

    fn serve(&mut self, call: HostCall, out: &mut [u64; 4]) -> Status {
        match call {
            HostCall::Rmi(command) => self.command(command, out),
            HostCall::Vendor(Vendor::Log { .. }) => Status::Success,
            HostCall::Vendor(Vendor::SetPosted { rd, page, .. }) => self.set_posted(rd, page),
            other => panic!("{other:x?}"),
        }
    }

    /// The realm's page for its device, until it is destroyed.
    fn set_posted(&mut self, rd: u64, page: u64) -> Status {
        let hosts = self.memory.contains(&page) && !self.owners.contains_key(&page);
        match self.realm.as_mut().filter(|r| r.rd == rd) {
            Some(realm) if realm.posted.is_none() && hosts => realm.posted = Some(page),
            _ => return Status::ErrorInput,
        }
        Status::Success
    }

    fn command(&mut self, command: Command, out: &mut [u64; 4]) -> Status {
        const BAD: Status = Status::ErrorInput;
        let granule = 1u64 << self.granule_shift;
        match command {
            Command::GranuleDelegate { pa } => {
                let mapped = self.realm.as_ref().is_some_and(|r| {
                    r.mapped
                        .iter()
                        .any(|(&(l, _), &to)| (to..to + self.size(l)).contains(&pa))
                });
                if !pa.is_multiple_of(granule)
                    || !self.memory.contains(&pa)
                    || self.owners.contains_key(&pa)
                    || mapped
                    || self.realm.as_ref().is_some_and(|r| r.posted == Some(pa))
                {
                    return BAD;
                }
                self.owners.insert(pa, Owner::Delegated);
            }
            Command::GranuleUndelegate { pa } => {
                if !self.is(pa, Owner::Delegated) {
                    return BAD;
                }
                self.owners.remove(&pa);
            }
            Command::RealmCreate { rd, params } => return self.realm_create(rd, params),
            Command::RecAuxCount { .. } => out[0] = AUX,
            Command::RealmActivate { .. } => match &mut self.realm {
                Some(realm) if !realm.active => realm.active = true,
                _ => return BAD,
            },
            Command::RttCreate {
                rd,
                rtt,
                ipa,
                level,
            } => {
                let (up, ok) = (self.size(level - 1), self.is(rtt, Owner::Delegated));
                let size =
                    |l| 1u64 << (self.granule_shift + (3 - l) as u32 * (self.granule_shift - 3));
                let Some(realm) = self.realm.as_mut().filter(|r| r.rd == rd) else {
                    return BAD;
                };
                if !ok || !ipa.is_multiple_of(up) || level <= realm.start || level > 3 {
                    return BAD;
                }
                let reached = Self::reach(realm, size, ipa, level - 1);
                if reached < level - 1 || realm.tables.contains_key(&(level, ipa)) {
                    return Status::ErrorRtt(reached as u8);
                }
                realm.tables.insert((level, ipa), rtt);
                self.take(rtt, Owner::Rtt);
            }
            Command::RttMapUnprotected {
                rd,
                ipa,
                level,
                desc,
            } => {
                let size = self.size(level);
                let sizes =
                    |l| 1u64 << (self.granule_shift + (3 - l) as u32 * (self.granule_shift - 3));
                let pa = desc & rmi::rtt::DESC_OA & !(size - 1);
                let owned = (pa..pa + size)
                    .step_by(granule as usize)
                    .any(|g| self.owners.contains_key(&g) || !self.memory.contains(&g));
                let Some(realm) = self.realm.as_mut().filter(|r| r.rd == rd) else {
                    return BAD;
                };
                let rest = desc & !pa;
                let known = 7 << 2 | rmi::rtt::DESC_READ | rmi::rtt::DESC_WRITE;
                if !matches!(level, 2 | 3)
                    || !ipa.is_multiple_of(size)
                    || owned
                    || rest & !known != 0
                    || ipa + size > 1 << realm.ipa_bits
                {
                    return BAD;
                }
                let reached = Self::reach(realm, sizes, ipa, level);
                if reached != level || realm.mapped.contains_key(&(level, ipa)) {
                    return Status::ErrorRtt(reached as u8);
                }
                realm.mapped.insert((level, ipa), pa);
            }
            Command::RttUnmapUnprotected { ipa, level, .. } => {
                let Some(realm) = self.realm.as_mut() else {
                    return BAD;
                };
                if realm.mapped.remove(&(level, ipa)).is_none() {
                    return Status::ErrorRtt(realm.start as u8);
                }
                out[0] = ipa + self.size(level);
            }
            Command::RttDestroy { ipa, level, .. } => return self.rtt_destroy(ipa, level, out),
            Command::RecCreate { rd, rec, params } => return self.rec_create(rd, rec, params),
            Command::RecDestroy { rec } => {
                let Some(aux) = self.realm.as_mut().and_then(|r| r.recs.remove(&rec)) else {
                    return BAD;
                };
                for pa in aux.into_iter().chain([rec]) {
                    self.owners.insert(pa, Owner::Delegated);
                }
            }
            Command::RealmDestroy { .. } => {
                let Some(realm) = self
                    .realm
                    .take_if(|r| r.recs.is_empty() && r.tables.is_empty())
                else {
                    return Status::ErrorRealm(0);
                };
                // But when it was an unmapping that was made to fail.
                let left = !realm.mapped.is_empty() && self.fail_at.is_none();
                assert!(!left, "mappings outlive the realm");
                for pa in realm.roots.into_iter().chain([realm.rd]) {
                    self.owners.insert(pa, Owner::Delegated);
                }
            }
            other => panic!("{other:x?}"),
        }
        Status::Success
    }

    fn realm_create(&mut self, rd: u64, page: u64) -> Status {
        let Some(params) = self.read::<RealmParams>(page) else {
            return Status::ErrorInput;
        };
        let shape = Shape {
            granule_shift: self.granule_shift,
            ipa_bits: params.s2sz.into(),
            start_level: params.rtt_level_start,
            roots: params.rtt_num_start,
        };
        // What the architecture lets the root cover (Arm ARM D8.2.2).
        let covered =
            self.granule_shift + (4 - shape.start_level) as u32 * (self.granule_shift - 3);
        let roots_size = u64::from(shape.roots) << self.granule_shift;
        let roots: Vec<u64> = (0..u64::from(shape.roots))
            .map(|i| params.rtt_base + (i << self.granule_shift))
            .collect();
        if params.flags != (RealmFlags::NONCONF | RealmFlags::EL2_VGIC).bits()
            || self.realm.is_some()
            || params.vmid == 0
            || shape.roots > 16
            || u32::from(params.s2sz) > covered + shape.roots.ilog2()
            || (shape.roots > 1 && u32::from(params.s2sz) != covered + shape.roots.ilog2())
            || !params.rtt_base.is_multiple_of(roots_size)
            || !self.is(rd, Owner::Delegated)
            || roots
                .iter()
                .any(|&pa| pa == rd || !self.is(pa, Owner::Delegated))
        {
            return Status::ErrorInput;
        }
        self.take(rd, Owner::Rd);
        for &pa in &roots {
            self.take(pa, Owner::Root);
        }
        self.realm = Some(RealmState {
            rd,
            ipa_bits: shape.ipa_bits,
            start: shape.start_level,
            active: false,
            roots,
            tables: BTreeMap::new(),
            mapped: BTreeMap::new(),
            recs: BTreeMap::new(),
            posted: None,
        });
        Status::Success
    }

    fn rec_create(&mut self, rd: u64, rec: u64, page: u64) -> Status {
        let Some(params) = self.read::<RecParams>(page) else {
            return Status::ErrorInput;
        };
        let aux = params.aux[..params.num_aux.min(16) as usize].to_vec();
        let all: BTreeSet<u64> = aux.iter().copied().chain([rec]).collect();
        let Some(realm) = self.realm.as_ref().filter(|r| r.rd == rd && !r.active) else {
            return Status::ErrorRealm(0);
        };
        let index = realm.recs.len() as u64;
        let runs = params.flags == RecFlags::RUNNABLE.bits();
        if params.num_aux != AUX
            || all.len() as u64 != AUX + 1
            || all.iter().any(|&pa| !self.is(pa, Owner::Delegated))
            || rmi::params::mpidr_index(params.mpidr) != Some(index)
            || runs != (index == 0)
        {
            return Status::ErrorInput;
        }
        for &pa in &aux {
            self.take(pa, Owner::Aux);
        }
        self.take(rec, Owner::Rec);
        if let Some(realm) = &mut self.realm {
            realm.recs.insert(rec, aux);
        }
        Status::Success
    }

    fn rtt_destroy(&mut self, ipa: u64, level: i64, out: &mut [u64; 4]) -> Status {
        let up = self.size(level - 1);
        let size = |l| 1u64 << (self.granule_shift + (3 - l) as u32 * (self.granule_shift - 3));
        let Some(realm) = self.realm.as_mut() else {
            return Status::ErrorInput;
        };
        if level <= realm.start
            || level > 3
            || !ipa.is_multiple_of(up)
            || ipa >= 1 << realm.ipa_bits
        {
            return Status::ErrorInput;
        }
        let reached = Self::reach(realm, size, ipa, level - 1);
        // `top`: the next live entry of the table that the walk ended in, or
        // its end (DEN0137 1.0, RttSkipNonLiveEntries).
        let entry = size(reached);
        let table_end = if reached == realm.start {
            1 << realm.ipa_bits
        } else {
            (ipa & !(size(reached - 1) - 1)) + size(reached - 1)
        };
        let mut top = (ipa & !(entry - 1)) + entry;
        while top < table_end && !realm.tables.contains_key(&(reached + 1, top)) {
            top += entry;
        }
        if reached < level - 1 || !realm.tables.contains_key(&(level, ipa)) {
            out[1] = top;
            return Status::ErrorRtt(reached as u8);
        }
        let child = realm
            .tables
            .keys()
            .any(|&(l, base)| l == level + 1 && base >= ipa && base < ipa + up);
        if child {
            out[1] = ipa;
            return Status::ErrorRtt(level as u8);
        }
        let rtt = realm.tables.remove(&(level, ipa)).unwrap_or_default();
        out[0] = rtt;
        out[1] = top;
        self.owners.insert(rtt, Owner::Delegated);
        Status::Success
    }
}

/// Memory for granules, at real addresses.
struct Arena {
    _bytes: Vec<u8>,
    range: std::ops::Range<u64>,
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
    /// The call that fails.
    fail_at: Option<usize>,
    toml: &'a str,
    kernel: &'a [u8],
}

const TOML: &str = "[[guest]]\nname = \"g\"\nkernel = \"k\"\nmemory = \"6M\"\nvcpus = 3\n";

/// Calls `f` with the resources of a host of its own and the EL2 below it.
fn with_host<R>(case: &Case<'_>, f: impl FnOnce(&Resources<'_>, &RefCell<El2>) -> R) -> R {
    let el2 = Rc::new(RefCell::new(El2 {
        granule_shift: case.granule_shift,
        memory: case.arena.range.clone(),
        fail_at: case.fail_at,
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
        seeds: &seeds,
        pace: &Pace::new(),
        granules: &granules,
        features: VendorFeatures {
            granule_shift: case.granule_shift as u8,
            pa_bits: 48,
            nonconf: true,
            el2_vgic: true,
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

/// Ways to populate guests, as the configuration says them.
const POPULATE: [&str; 2] = ["populate = \"eager\"\n", "populate = \"lazy\"\n"];

/// Builds and takes apart one guest: calls made, and what went wrong in it.
fn round(
    granule_shift: u32,
    arena: &Arena,
    fail_at: Option<usize>,
    populate: &str,
) -> (usize, Option<Failure>) {
    let case = Case {
        granule_shift,
        arena,
        fail_at,
        toml: &format!("{TOML}{populate}"),
        kernel: &[0x1f; 5000],
    };
    with_host(&case, |resources, el2| {
        let before = resources.granules.lock().free_bytes();
        let error = build_once(resources, el2);
        let el2 = el2.borrow();
        if fail_at.is_none() {
            assert_eq!(el2.errors, 0, "a call was refused");
        }
        // A call that fails while things are taken apart may leak, and only that.
        // A realm that could not be ended keeps its page, too.
        let kept = el2.realm.as_ref().and_then(|realm| realm.posted);
        let leaked = (el2.owners.len() + usize::from(kept.is_some())) as u64;
        let leaked = leaked << granule_shift;
        assert_eq!(resources.granules.lock().free_bytes() + leaked, before);
        if error.is_some() || fail_at.is_none() {
            assert_eq!(leaked, 0, "{error:?}: {:?}", el2.owners);
            assert!(el2.realm.is_none());
        }
        (el2.calls, error)
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
fn mapped(el2: &El2) -> u64 {
    let mapped = el2.realm.as_ref().unwrap().mapped.keys();
    let ram = mapped.filter(|(_, ipa)| *ipa >= 0x4000_0000);
    ram.map(|&(level, _)| el2.size(level)).sum()
}

/// Touches all of a guest's RAM, a piece after the other: each is then there, and
/// was never seen as others left it.
fn touch_all(live: &LiveRam, el2: &RefCell<El2>) -> Result<(), RealmError> {
    // All of it once, and some where a call fails.
    let step = if el2.borrow().fail_at.is_none() {
        8
    } else {
        4096
    };
    for ipa in (0x4000_0000..0x4060_0000).step_by(PIECE_SIZE as usize) {
        let before = mapped(&el2.borrow());
        let at = ipa + 0x8_0008;
        let populated = live.populate(at).expect("RAM");
        let now = mapped(&el2.borrow());
        match populated {
            Ok(Populated::Now) => assert_eq!(now, before + PIECE_SIZE),
            Ok(Populated::Before) => assert_eq!(now, before),
            Err(error) => {
                assert_eq!(now, before, "half a piece is mapped");
                return Err(error);
            }
        }
        assert_eq!(live.populate(at), Some(Ok(Populated::Before)));
        for at in (ipa..ipa + PIECE_SIZE).step_by(step) {
            let loaded = live.spot(at, 8).expect("RAM").load(8, true);
            assert_ne!(loaded, LEFT, "at {at:#x} somebody's leftovers");
        }
    }
    assert_eq!(live.populate(0x3fff_ffff), None);
    assert_eq!(live.populate(0x4060_0000), None);
    assert_eq!(mapped(&el2.borrow()), 6 << 20);
    Ok(())
}

/// What others left in all RAM.
const LEFT: u64 = 0xa5a5_a5a5_a5a5_a5a5;

fn build_once(resources: &Resources<'_>, el2: &RefCell<El2>) -> Option<Failure> {
    let config = &resources.bundle.guests[0];
    let lazy = config.guest.populate == Some(Populate::Lazy);
    let mut memory = build::allocate(config, resources).unwrap();
    for extent in memory.ram.shared().extents() {
        let words = std::ptr::with_exposed_provenance_mut::<u64>(extent.pa as usize);
        for n in 0..extent.size as usize / 8 {
            // SAFETY: The extent lies in the test's arena, and is nobody else's.
            unsafe { words.add(n).write(LEFT) };
        }
    }
    let built = at_once(build::build(config, resources, &mut memory));
    let error = match built {
        Ok(realm) => {
            {
                let el2 = el2.borrow();
                let state = el2.realm.as_ref().unwrap();
                assert!(state.active);
                assert_eq!(state.recs.len(), 3);
                let all = mapped(&el2) == 6 << 20;
                assert_eq!(all, !lazy);
            }
            let free = resources.granules.lock().free_bytes();
            let live = LiveRam::new(memory.ram.shared().clone(), realm.stage2(), true);
            let touched = touch_all(&live, el2);
            let now = resources.granules.lock().free_bytes();
            assert_eq!(now, free, "a first touch took memory");
            at_once(realm.destroy(resources.build_context()));
            touched.err().map(Failure::Touched)
        }
        Err(error) => Some(Failure::Built(error)),
    };
    build::release(memory, resources.granules);
    error
}

#[test]
fn every_granule_comes_back_for_every_granule_size() {
    let arena = arena();
    for granule_shift in [12, 14, 16] {
        for populate in [POPULATE, POPULATE].concat() {
            let (_, error) = round(granule_shift, &arena, None, populate);
            assert!(error.is_none(), "{error:?}");
        }
    }
}

#[test]
fn whichever_call_fails_nothing_is_left_behind() {
    let arena = arena();
    let ways = [12, 14, 16].map(|granule| POPULATE.map(|populate| (granule, populate)));
    for (granule_shift, populate) in ways.concat() {
        let (calls, _) = round(granule_shift, &arena, None, populate);
        let mut touches = 0;
        for fail_at in 1..=calls {
            let (_, error) = round(granule_shift, &arena, Some(fail_at), populate);
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
        assert_eq!(touches > 0, populate == POPULATE[1], "{populate}");
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
            for populate in POPULATE {
                let toml = TOML.replace("vcpus = 3", &format!("vcpus = {vcpus}"));
                let case = Case {
                    granule_shift,
                    arena: &arena,
                    fail_at: None,
                    toml: &format!("{toml}{populate}"),
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
    let many = |why: &Refusal| matches!(why, Refusal::ManyVcpus { limit: 32, .. });
    type IsThat = fn(&Refusal) -> bool;
    let cases: [(&str, IsThat, [&str; 3]); 4] = [
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
        ("vcpus = 33", many, ["guests.toml:4", "vcpus", "at most 32"]),
    ];
    for (text, is_that, parts) in cases {
        let toml = format!("[[guest]]\nname = \"g\"\nkernel = \"k\"\n{text}\n");
        let case = Case {
            granule_shift: 12,
            arena: &arena,
            fail_at: None,
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

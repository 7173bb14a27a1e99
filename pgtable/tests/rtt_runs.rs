//! A realm's memory by runs: what one page after another comes to, by fewer steps.

mod log;

use log::{Event, Log, Plain};
use pgtable::{
    Barrier, CacheOp, DataRun, Fill, Geometry, Granule, Ipa, Level, Maintenance, Pa, RemovedData,
    Ripas, Rtt, RttAt, RttEntry, RttError, RttState, Stage2Config, Stage2Regs, TableMem, Tlbi,
    TlbiKind, Vmid,
};

/// Where the realm's memory begins, and the half that is not its own.
const BASE: u64 = 0x4000_0000;
const HALF: u64 = 1 << 39;
/// Where it is.
const MEMORY: u64 = 0x20_0000_0000;

struct Realm<'m> {
    mem: &'m Plain,
    rtt: Rtt<&'m Plain>,
    log: Log,
    page: u64,
}

fn geometry(granule: Granule, fwb: bool) -> Geometry {
    let mut config = Stage2Config::new(granule, 40, 48);
    config.features.tlb_range = true;
    config.features.ttl = true;
    config.features.fwb = fwb;
    config.features.dic = true;
    config.validate().expect("every CPU has it")
}

impl<'m> Realm<'m> {
    fn new(mem: &'m Plain, granule: Granule, fwb: bool) -> Self {
        Self::of(mem, geometry(granule, fwb))
    }

    fn of(mem: &'m Plain, geometry: Geometry) -> Self {
        let root = mem.root(geometry.root_align());
        let vmid = Vmid::new(9);
        let rtt = Rtt::new(geometry, root, vmid, mem, Ipa::new(HALF)).expect("it fits");
        let log = Log {
            regs: rtt.regs(),
            ..Log::default()
        };
        let page = geometry.granule().page_size();
        Self {
            mem,
            rtt,
            log,
            page,
        }
    }

    /// Tables down to `last` for `ipa`.
    fn down(&mut self, ipa: u64, last: Level) {
        let start = self.rtt.geometry().start().get();
        for level in (start + 1..=last.get()).filter_map(Level::new) {
            let above = Level::new(level.get() - 1).expect("there is one");
            let base = ipa & !(self.rtt.geometry().span(above) - 1);
            let page = self.mem.alloc(level).expect("memory");
            let _there = self
                .rtt
                .create(&mut self.log, RttAt::new(Ipa::new(base), level), page);
        }
    }

    fn map(&mut self, ipa: u64, pa: u64, size: u64) -> Result<u64, RttError> {
        let run = DataRun {
            ipa: Ipa::new(ipa),
            pa: Pa::new(pa),
            size,
        };
        let room = self.rtt.data_room(&run);
        let done = self.rtt.data_map(&mut self.log, &run, Fill::Unknown);
        assert_eq!(room, done, "what there is room for");
        done
    }

    fn unmap(&mut self, ipa: u64, end: u64, most: u64) -> Result<RemovedData, RttError> {
        let range = Ipa::new(ipa)..Ipa::new(end);
        self.rtt.data_unmap(&mut self.log, range, most)
    }

    fn read(&self, ipa: u64) -> RttEntry {
        self.rtt.read(Ipa::new(ipa), Level::L3).expect("inside")
    }

    fn tell_ram(&mut self, start: u64, end: u64) {
        let range = Ipa::new(start)..Ipa::new(end);
        self.rtt.init_ripas(range, |_, _| ()).expect("unassigned");
    }
}

fn numbers(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move |below| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) % below
    }
}

/// Each entry as if each page had been mapped and removed by itself.
#[test]
fn runs_and_pages_end_alike() {
    for granule in Granule::ALL {
        for seed in 0..if cfg!(miri) { 2 } else { 40 } {
            let (one, other) = (
                Plain::new(granule.page_size(), 4 << 20),
                Plain::new(granule.page_size(), 4 << 20),
            );
            let (mut runs, mut pages) = (
                Realm::new(&one, granule, true),
                Realm::new(&other, granule, true),
            );
            let page = granule.page_size();
            for realm in [&mut runs, &mut pages] {
                realm.down(BASE, Level::L3);
                realm.tell_ram(BASE, BASE + 30 * page);
            }
            let mut number = numbers(seed + 1);
            for _ in 0..20 {
                let (from, count) = (number(60), 1 + number(40));
                let (ipa, end) = (BASE + from * page, BASE + (from + count) * page);
                if number(2) == 0 {
                    let pa = MEMORY + number(30) * page;
                    let done = runs.map(ipa, pa, end - ipa).unwrap_or(0);
                    let each = (0..count).take_while(|n| {
                        let (ipa, pa) = (ipa + n * page, pa + n * page);
                        pages.map(ipa, pa, page).is_ok()
                    });
                    assert_eq!(done, each.count() as u64 * page);
                    continue;
                }
                let most = number(12) * page;
                let removed = runs.unmap(ipa, end, most);
                let Ok(RemovedData { pa, size, top }) = removed else {
                    assert_eq!(pages.unmap(ipa, end, 0).err(), removed.err());
                    continue;
                };
                assert!(size == page || size <= most);
                for done in (0..size).step_by(page as usize) {
                    let gone = pages.unmap(ipa + done, ipa + done + page, 0);
                    let gone = gone.expect("it is there");
                    assert_eq!((gone.pa, gone.size), (Pa::new(pa.get() + done), page));
                    assert!(done + page < size || gone.top == top);
                }
            }
            for n in 0..100 {
                let ipa = BASE + n * page;
                assert_eq!(runs.read(ipa), pages.read(ipa), "{granule:?} {seed} {n}");
            }
        }
    }
}

/// No page is missed by the TLBI, and all of a run go by one.
#[test]
fn a_run_is_invalidated_together() {
    let mem = Plain::new(4096, 4 << 20);
    let mut realm = Realm::new(&mem, Granule::K4, true);
    realm.down(BASE, Level::L3);
    realm.tell_ram(BASE, BASE + 0x10_0000);
    realm.map(BASE, MEMORY, 0x8_0000).expect("room");
    realm.log.events.clear();
    let removed = realm.unmap(BASE, BASE + 0x10_0000, 1 << 20);
    assert_eq!(removed.expect("it is there").size, 0x8_0000);
    let tlbis = realm.log.events.iter();
    let tlbis = tlbis.filter(|event| matches!(event, Event::Tlbi(_)));
    // By range, and both stages' combined entries.
    assert!((2..=4).contains(&tlbis.count()), "{:?}", realm.log.events);
    // What was never mapped is in no TLB.
    realm
        .map(BASE + 0x20_0000 - 0x4000, MEMORY, 0x4000)
        .expect("room");
    realm.log.events.clear();
    let removed = realm.unmap(BASE + 0x20_0000 - 0x4000, BASE + 0x20_0000, 1 << 20);
    assert_eq!(removed.expect("it is there").size, 0x4000);
    assert_eq!(realm.log.events, []);
}

/// By address, where the CPU has no ranges: each page that was RAM, whatever was first.
#[test]
fn each_page_of_a_run_that_was_ram_is_invalidated() {
    let mut config = Stage2Config::new(Granule::K4, 40, 48);
    config.features.fwb = true;
    config.features.dic = true;
    for ram in [&[1, 2, 5][..], &[0, 1], &[0, 7], &[7]] {
        let mem = Plain::new(4096, 4 << 20);
        let mut realm = Realm::of(&mem, config.validate().expect("every CPU has it"));
        realm.down(BASE, Level::L3);
        let at = |n: &u64| BASE + n * 0x1000;
        ram.iter()
            .for_each(|n| realm.tell_ram(at(n), at(n) + 0x1000));
        realm.map(BASE, MEMORY, 0x8000).expect("room");
        realm.log.events.clear();
        let removed = realm.unmap(BASE, BASE + 0x8000, 1 << 20);
        assert_eq!(removed.expect("it is there").size, 0x8000);
        let asked: Vec<_> = (realm.log.events.iter())
            .filter_map(|event| match event {
                Event::Tlbi(op) if op.kind() == TlbiKind::Ipas2e1is => Some(op.operand() << 12),
                _ => None,
            })
            .collect();
        assert_eq!(asked, ram.iter().map(at).collect::<Vec<_>>());
    }
}

/// A CPU that looks whether an entry is valid each time that it is asked for something.
struct Watch<'m> {
    mem: &'m Plain,
    table: Pa,
    regs: Stage2Regs,
    seen: Vec<(Event, bool)>,
}

impl Watch<'_> {
    fn note(&mut self, event: Event) {
        let entry = self.mem.load(self.mem.locate(self.table), 0);
        self.seen.push((event, entry & 1 != 0));
    }
}

impl Maintenance for Watch<'_> {
    fn barrier(&mut self, barrier: Barrier) {
        self.note(Event::Barrier(barrier));
    }
    fn tlbi(&mut self, op: Tlbi) {
        self.note(Event::Tlbi(op));
    }
    fn cache(&mut self, op: CacheOp) {
        self.note(Event::Cache(op));
    }
    fn stage2(&mut self) -> Stage2Regs {
        self.regs
    }
    fn set_stage2(&mut self, regs: Stage2Regs) {
        self.regs = regs;
    }
}

/// A guest whose accesses pass the caches may write as soon as the entry stands: what
/// is dirty by then would be written over that. And a walk sees the entry when the call
/// is over.
#[test]
fn memory_is_cleaned_before_it_is_mapped_and_mapped_when_the_call_ends() {
    for by_run in [true, false] {
        let mem = Plain::new(4096, 4 << 20);
        let mut realm = Realm::new(&mem, Granule::K4, false);
        realm.down(BASE, Level::L2);
        let table = mem.alloc(Level::L3).expect("memory");
        let at = RttAt::new(Ipa::new(BASE), Level::L3);
        let made = realm.rtt.create(&mut realm.log, at, table);
        made.expect("its place is free");
        let (ipa, pa, size) = (Ipa::new(BASE), Pa::new(MEMORY), 0x1000);
        let (regs, seen) = (realm.log.regs, Vec::new());
        let mut cpu = Watch {
            mem: &mem,
            table,
            regs,
            seen,
        };
        let done = if by_run {
            let run = DataRun { ipa, pa, size };
            realm.rtt.data_map(&mut cpu, &run, Fill::Known).map(drop)
        } else {
            realm.rtt.data_create(&mut cpu, ipa, pa, Fill::Known)
        };
        assert_eq!(done, Ok(()));
        let cleaned = Event::Cache(CacheOp::CleanInvalidateData { pa, size });
        let published = Event::Barrier(Barrier::DsbIshst);
        assert_eq!(cpu.seen, [(cleaned, false), (published, true)]);
    }
}

/// What the host wrote may be code: on a CPU without DIC, nothing stale is fetched.
#[test]
fn code_that_a_run_brings_can_be_fetched() {
    for dic in [false, true] {
        let mut config = Stage2Config::new(Granule::K4, 40, 48);
        config.features.dic = dic;
        let mem = Plain::new(4096, 4 << 20);
        let mut realm = Realm::of(&mem, config.validate().expect("every CPU has it"));
        realm.down(BASE, Level::L3);
        realm.log.events.clear();
        assert_eq!(realm.map(BASE, MEMORY, 0x4000), Ok(0x4000));
        let invalidated = Event::Cache(CacheOp::InvalidateInstructions);
        assert_eq!(realm.log.events.contains(&invalidated), !dic);
    }
}

/// Where a block fits there is one; it goes whole, and splits into what it was.
#[test]
fn a_block_stands_where_one_fits() {
    for (granule, fwb, blocks) in [
        (Granule::K4, true, true),
        (Granule::K4, false, true),
        (Granule::K16, true, true),
        (Granule::K16, false, false),
        (Granule::K64, true, true),
        (Granule::K64, false, false),
    ] {
        let mem = Plain::new(granule.page_size(), 8 << 20);
        let mut realm = Realm::new(&mem, granule, fwb);
        realm.down(BASE, Level::L2);
        let (page, block) = (realm.page, realm.rtt.geometry().span(Level::L2));
        realm.tell_ram(BASE, BASE + block);
        let missing = RttError::Rtt {
            level: Level::L2,
            // The end of its table: 64K has the root there.
            top: Ipa::new(((BASE | (realm.rtt.geometry().span(Level::L1) - 1)) + 1).min(1 << 40)),
        };
        for (ipa, pa, size) in [
            (BASE, MEMORY, block - page),
            (BASE, MEMORY + page, block),
            (BASE + page, MEMORY + page, block - page),
        ] {
            assert_eq!(realm.map(ipa, pa, size), Err(missing), "{granule:?}");
        }
        if !blocks {
            assert_eq!(realm.map(BASE, MEMORY, block), Err(missing));
            continue;
        }
        realm.log.events.clear();
        assert_eq!(realm.map(BASE, MEMORY, block), Ok(block));
        let cleaned = Event::Cache(CacheOp::CleanInvalidateData {
            pa: Pa::new(MEMORY),
            size: block,
        });
        assert_eq!(realm.log.events.contains(&cleaned), !fwb);
        let entry = realm.read(BASE);
        let (ripas, pa) = (Ripas::Ram, Pa::new(MEMORY));
        assert_eq!(entry.level, Level::L2);
        assert_eq!(entry.state, RttState::Assigned { ripas, pa });
        // Not a part of it, from its begin or its middle.
        for (from, to) in [(0, block - page), (page, block), (page, block + page)] {
            let removed = realm.unmap(BASE + from, BASE + to, block);
            assert!(matches!(removed, Err(RttError::Rtt { level, .. }) if level == Level::L2));
        }
        let whole = realm.unmap(BASE, BASE + 2 * block, 0).expect("one entry");
        assert_eq!((whole.pa, whole.size), (pa, block));
        assert_eq!(realm.map(BASE, MEMORY, block), Ok(block), "and again");
        realm.down(BASE, Level::L3);
        let last = realm.read(BASE + block - page);
        let pa = Pa::new(MEMORY + block - page);
        // It was DESTROYED when it came back, and is no RAM before it is made such.
        let ripas = Ripas::Destroyed;
        assert_eq!(last.state, RttState::Assigned { ripas, pa });
        let rest = realm.unmap(BASE + page, BASE + block, u64::MAX);
        assert_eq!(rest.expect("pages").size, block - page);
    }
}

/// A block of level 0, which DS has with 4K, is none that folding makes: whoever gives
/// so much at once is told to make a table, and gets blocks of level 1 in it.
#[test]
fn no_data_is_above_level_1() {
    let mut config = Stage2Config::new(Granule::K4, 48, 52);
    config.lpa2 = true;
    config.features.fwb = true;
    let mem = Plain::new(4096, 8 << 20);
    let mut realm = Realm::of(&mem, config.validate().expect("some CPU has it"));
    let (level, block) = (Level::L0, 1 << 39);
    assert!(realm.rtt.geometry().leaf_ok(level));
    let top = Ipa::new(1 << 48);
    let missing = Err(RttError::Rtt { level, top });
    assert_eq!(realm.map(0, 0, block), missing);
    realm.down(0, Level::L1);
    assert_eq!(realm.map(0, 0, block), Ok(block));
    assert_eq!(realm.read(0).level, Level::L1);
}

/// As much goes as was allowed, to the page, and `top` is where there is something again:
/// what is empty behind the run is not to be asked for.
#[test]
fn a_run_ends_where_it_was_told_and_names_what_is_next() {
    let mem = Plain::new(4096, 4 << 20);
    let mut realm = Realm::new(&mem, Granule::K4, true);
    realm.down(BASE, Level::L3);
    let page = realm.page;
    assert_eq!(realm.map(BASE, MEMORY, 8 * page), Ok(8 * page));
    let far = BASE + 100 * page;
    assert_eq!(realm.map(far, MEMORY + 100 * page, page), Ok(page));
    let mut unmap = |from, most| {
        let gone = realm.unmap(BASE + from * page, HALF, most).expect("mapped");
        (gone.size / page, gone.top.get())
    };
    assert_eq!(unmap(0, 3 * page), (3, BASE + 3 * page));
    assert_eq!(unmap(3, 3 * page + page / 2), (3, BASE + 6 * page));
    assert_eq!(unmap(6, u64::MAX), (2, far));
    assert_eq!(unmap(100, 0), (1, BASE + (2 << 20)));
}

/// What is folded above level 2 has more pages than a call may look at.
#[test]
fn a_block_above_level_2_is_split_before_it_goes() {
    let mem = Plain::new(4096, 4 << 20);
    let mut realm = Realm::new(&mem, Granule::K4, true);
    realm.down(BASE, Level::L2);
    let (block, whole) = (2 << 20, 1 << 30);
    realm.tell_ram(BASE, BASE + whole);
    assert_eq!(realm.map(BASE, MEMORY, whole), Ok(whole));
    let at = RttAt::new(Ipa::new(BASE), Level::L2);
    let table = realm.rtt.fold(&mut realm.log, at).expect("alike");
    let entry = realm.read(BASE);
    let (ripas, pa) = (Ripas::Ram, Pa::new(MEMORY));
    assert_eq!(entry.level, Level::L1);
    assert_eq!(entry.state, RttState::Assigned { ripas, pa });
    realm.log.events.clear();
    let split_first = RttError::Rtt {
        level: Level::L1,
        top: Ipa::new(BASE),
    };
    assert_eq!(realm.unmap(BASE, HALF, whole), Err(split_first));
    assert_eq!((realm.read(BASE), realm.log.events.len()), (entry, 0));
    let made = realm.rtt.create(&mut realm.log, at, table);
    assert_eq!(made, Ok(()));
    for at in (0..whole).step_by(block as usize) {
        let gone = realm.unmap(BASE + at, HALF, block).expect("a block");
        assert_eq!((gone.pa.get(), gone.size), (MEMORY + at, block));
    }
    assert_eq!(realm.rtt.fold(&mut realm.log, at), Ok(table));
}

/// Addresses whose high bits stand elsewhere in an entry: of what is mapped and of what
/// is not, as a block, as the pages that it splits into, and as the block again.
#[test]
fn memory_above_48_bits_is_itself_in_each_form() {
    let memory = 0xb_c000_0000_0000;
    for granule in Granule::ALL {
        for ripas in [Ripas::Ram, Ripas::Empty] {
            let mut config = Stage2Config::new(granule, 40, 52);
            config.lpa2 = granule != Granule::K64;
            config.features.fwb = true;
            let mem = Plain::new(granule.page_size(), 8 << 20);
            let mut realm = Realm::of(&mem, config.validate().expect("some CPU has it"));
            realm.down(BASE, Level::L2);
            let (page, block) = (realm.page, realm.rtt.geometry().span(Level::L2));
            if ripas == Ripas::Ram {
                realm.tell_ram(BASE, BASE + block);
            }
            let at = RttAt::new(Ipa::new(BASE), Level::L3);
            let is = |realm: &Realm<'_>, offset: u64, level| {
                let entry = realm.read(BASE + offset);
                let pa = Pa::new(memory + offset);
                assert_eq!(entry.state, RttState::Assigned { ripas, pa });
                assert_eq!(entry.level, level, "{granule:?}");
            };
            assert_eq!(realm.map(BASE, memory, block), Ok(block));
            is(&realm, 0, Level::L2);
            let table = mem.alloc(Level::L3).expect("memory");
            assert_eq!(realm.rtt.create(&mut realm.log, at, table), Ok(()));
            for offset in [0, page, block - page] {
                is(&realm, offset, Level::L3);
            }
            assert_eq!(realm.rtt.fold(&mut realm.log, at), Ok(table));
            is(&realm, 0, Level::L2);
            assert_eq!(realm.rtt.create(&mut realm.log, at, table), Ok(()));
            let gone = realm.unmap(BASE + page, HALF, u64::MAX).expect("pages");
            assert_eq!((gone.pa.get(), gone.size), (memory + page, block - page));
        }
    }
}

/// What no run may be.
#[test]
fn runs_that_cannot_be_are_refused() {
    let mem = Plain::new(4096, 4 << 20);
    let mut realm = Realm::new(&mem, Granule::K4, true);
    realm.down(BASE, Level::L3);
    realm.down(HALF - 0x1000, Level::L3);
    let end = 1u64 << 48;
    for (ipa, pa, size) in [
        (BASE, MEMORY, 0),
        (BASE, MEMORY, 0x1008),
        (BASE + 8, MEMORY, 0x1000),
        (BASE, MEMORY + 8, 0x1000),
        (BASE, end, 0x1000),
        (BASE, end - 0x1000, 0x2000),
        (BASE, !0xfff, 0x2000),
        (BASE, MEMORY, !0xfff),
        (HALF, MEMORY, 0x1000),
        (HALF - 0x1000, MEMORY, 0x2000),
        (1 << 40, MEMORY, 0x1000),
        (!0xfff, MEMORY, 0x1000),
    ] {
        let what = format!("{ipa:#x} {pa:#x} {size:#x}");
        assert_eq!(realm.map(ipa, pa, size), Err(RttError::Input), "{what}");
    }
    for (from, to) in [
        (BASE, BASE),
        (BASE + 0x1000, BASE),
        (BASE, BASE + 8),
        (BASE + 8, BASE + 0x1000),
        (HALF - 0x1000, HALF + 0x1000),
        (HALF, HALF + 0x1000),
        (!0xfff, !0),
    ] {
        let removed = realm.unmap(from, to, u64::MAX);
        assert_eq!(removed, Err(RttError::Input), "{from:#x} {to:#x}");
    }
    assert_eq!(realm.map(HALF - 0x1000, MEMORY, 0x1000), Ok(0x1000));
    let state = realm.read(BASE).state;
    assert_eq!(state, RttState::Unassigned(Ripas::Empty));
}

//! What each operation refuses, and that a refusal does nothing: no store, no
//! barrier, no page taken.

mod plain;

use pgtable::{
    Access, Age, Annotation, Attrs, Budget, Change, ConfigError, El2Attrs, El2Config, El2Map,
    El2Range, Error, Execute, Features, Geometry, Granule, Ignore, Ipa, Leaves, Level, Map, Next,
    Over, Pa, Partial, Permissions, RemovedLeaf, Split, Stage2, Stage2Config, Stage2Regs, Start,
    Stopped, Sweep, TableMem, Unmap, UnmapLater, Va, Vmid,
};
use plain::{Cpu, Did, Plain};

fn all() -> Budget {
    Budget::unlimited()
}

fn geometry(granule: Granule, ipa_bits: u8, pa_bits: u8, lpa2: bool) -> Geometry {
    let mut config = Stage2Config::new(granule, ipa_bits, pa_bits);
    config.lpa2 = lpa2;
    config.features = Features {
        fwb: true,
        dic: true,
        hw_access_flag: true,
        hw_dirty: true,
        ..Features::default()
    };
    config.validate().expect("legal")
}

/// One or two of each granule, narrow and as wide as it goes.
fn geometries() -> Vec<Geometry> {
    vec![
        geometry(Granule::K4, 32, 36, false),
        geometry(Granule::K4, 48, 48, false),
        geometry(Granule::K4, 52, 52, true),
        geometry(Granule::K16, 40, 48, false),
        geometry(Granule::K16, 52, 52, true),
        geometry(Granule::K64, 34, 40, false),
        geometry(Granule::K64, 52, 52, false),
    ]
}

struct Bench {
    mem: Plain,
    geometry: Geometry,
}

impl Bench {
    fn new(geometry: Geometry) -> Self {
        Self {
            mem: Plain::new(geometry.granule().page_size()),
            geometry,
        }
    }

    fn tree(&self) -> (Stage2<&Plain>, Cpu<'_>) {
        let root = self.mem.root(self.geometry.root_align());
        let tree = Stage2::new(self.geometry, root, Vmid::new(3), &self.mem).expect("a root");
        let cpu = self.mem.cpu(tree.regs());
        (tree, cpu)
    }

    fn page(&self) -> u64 {
        self.geometry.granule().page_size()
    }

    fn end(&self) -> u64 {
        1 << self.geometry.ipa_bits()
    }
}

/// Nothing was done that anybody could see, nor a barrier for nothing.
fn untouched(mem: &Plain, what: &str) {
    let mut changes = mem.changes();
    changes.retain(|did| !matches!(did, Did::Lost { .. }));
    assert!(changes.is_empty(), "{what}: {changes:?}");
}

/// Ranges that lie outside `[0, end)` or that are not of whole pages.
fn bad_ranges(end: u64, page: u64) -> Vec<(u64, u64, Error)> {
    let high = !(page - 1);
    vec![
        (end, page, Error::Range),
        (end - page, 2 * page, Error::Range),
        (0, end + page, Error::Range),
        (page, end, Error::Range),
        (high, page, Error::Range),
        (high, 2 * page, Error::Range),
        // Sums that wrap to 0, and into the space.
        (1 << 63, 1 << 63, Error::Range),
        (high, 2 * page, Error::Range),
        (page, high, Error::Range),
        (2 * page, high, Error::Range),
        (end + page, high - end + page, Error::Range),
        (1, page, Error::Align),
        (page / 2, page, Error::Align),
        (page - 1, page, Error::Align),
        (0, 1, Error::Align),
        (0, page / 2, Error::Align),
        (page, page + page / 2, Error::Align),
        (page / 2, page / 2, Error::Align),
        (8, page - 8, Error::Align),
    ]
}

type RangeOp = fn(&mut Stage2<&Plain>, &mut Cpu<'_>, Ipa, u64) -> Result<Ipa, Stopped<Ipa>>;

/// Every operation on a range of IPAs.
fn range_operations() -> Vec<(&'static str, RangeOp)> {
    [mappings(), removals(), changes(), looks()].concat()
}

fn mappings() -> Vec<(&'static str, RangeOp)> {
    vec![
        ("map", |tree, cpu, ipa, size| {
            let map = Map::new(ipa, Pa::new(0), size, Attrs::MEMORY);
            tree.map(cpu, &map, &mut all())
        }),
        ("map of pages", |tree, cpu, ipa, size| {
            let map =
                Map::new(ipa, Pa::new(0), size, Attrs::MEMORY).leaves(Leaves::Exactly(Level::L3));
            tree.map(cpu, &map, &mut all())
        }),
        ("map_exclusive", |tree, cpu, ipa, size| {
            let map = Map::new(ipa, Pa::new(0), size, Attrs::MEMORY).over(Over::Anything);
            tree.map_exclusive(cpu, &map, &mut Ignore, &mut all())
        }),
    ]
}

fn removals() -> Vec<(&'static str, RangeOp)> {
    vec![
        ("unmap", |tree, cpu, ipa, size| {
            tree.unmap(cpu, &Unmap::new(ipa, size), &mut Ignore, &mut all())
        }),
        ("unmap_leaves", |tree, cpu, ipa, size| {
            tree.unmap_leaves(cpu, &Unmap::new(ipa, size), &mut Ignore, &mut all())
        }),
        ("unmap_later", |tree, cpu, ipa, size| {
            let mut gather = tree.gather();
            let done = tree.unmap_later(
                cpu,
                UnmapLater::new(ipa, size, &mut gather),
                &mut all(),
                drop,
            );
            let _synced = tree.sync(cpu, gather).expect("of this tree");
            done
        }),
        ("annotate", |tree, cpu, ipa, size| {
            let note = Annotation::new(0x40).expect("bits 1:0 are zero");
            tree.unmap(
                cpu,
                &Unmap::new(ipa, size).leaving(note),
                &mut Ignore,
                &mut all(),
            )
        }),
    ]
}

/// Of leaves that stay.
fn changes() -> Vec<(&'static str, RangeOp)> {
    const PERMISSIONS: Permissions = Permissions {
        access: Access::Read,
        execute: Execute::Never,
    };
    vec![
        ("protect", |tree, cpu, ipa, size| {
            let range = Sweep::new(ipa, size).partial(Partial::Split);
            tree.protect(cpu, range, PERMISSIONS, &mut all())
        }),
        ("write_protect", |tree, cpu, ipa, size| {
            tree.write_protect(cpu, Sweep::new(ipa, size), &mut all())
        }),
        ("count_young", |tree, cpu, ipa, size| {
            tree.count_young(cpu, ipa, size, &mut all())
                .map(|(next, count)| {
                    assert_eq!(count, 0);
                    next
                })
        }),
        ("clear_young", |tree, cpu, ipa, size| {
            tree.clear_young(cpu, Sweep::new(ipa, size), &mut all())
                .map(|(next, count)| {
                    assert_eq!(count, 0);
                    next
                })
        }),
        ("harvest_dirty", |tree, cpu, ipa, size| {
            let dirty = |_, _| panic!("a leaf");
            tree.harvest_dirty(cpu, Sweep::new(ipa, size), &mut all(), dirty)
        }),
        ("split", |tree, cpu, ipa, size| {
            let none = |_| panic!("a page wanted");
            tree.split(
                cpu,
                &Split {
                    ipa,
                    size,
                    to: Level::L3,
                },
                none,
                &mut all(),
            )
        }),
    ]
}

fn looks() -> Vec<(&'static str, RangeOp)> {
    vec![
        ("walk", |tree, _, ipa, size| {
            tree.walk(ipa, size, &mut all(), |_| Next::Descend)
        }),
        ("flush_caches", |tree, cpu, ipa, size| {
            tree.flush_caches(cpu, ipa, size, &mut all())
        }),
    ]
}

#[test]
fn ranges_outside_the_space_or_of_broken_pages() {
    for geometry in geometries() {
        let bench = Bench::new(geometry);
        let (mut tree, mut cpu) = bench.tree();
        for (name, operation) in range_operations() {
            for (ipa, size, why) in bad_ranges(bench.end(), bench.page()) {
                let ipa = Ipa::new(ipa);
                let what = format!("{name} {ipa} {size:#x} {geometry:?}");
                let done = operation(&mut tree, &mut cpu, ipa, size);
                assert_eq!(done, Err(Stopped { why, next: ipa }), "{what}");
                untouched(&bench.mem, &what);
            }
            // Nothing is a range, too, up to the very end.
            for at in [0, bench.page(), bench.end()] {
                let what = format!("{name} of nothing at {at:#x} {geometry:?}");
                let done = operation(&mut tree, &mut cpu, Ipa::new(at), 0);
                assert_eq!(done, Ok(Ipa::new(at)), "{what}");
                untouched(&bench.mem, &what);
            }
        }
        assert_eq!(bench.mem.live(), 0);
    }
}

/// The last bytes of the space are as good as others, and nothing after them
/// is looked at: the memory would say so.
#[test]
fn up_to_the_very_end() {
    for geometry in geometries() {
        let bench = Bench::new(geometry);
        let (mut tree, mut cpu) = bench.tree();
        let (page, end) = (bench.page(), bench.end());
        for (name, operation) in range_operations() {
            if name.starts_with("map") {
                continue;
            }
            let block = geometry.span(Level::L2);
            for leaves in [Level::L3, Level::L2] {
                let size = if leaves == Level::L3 { 4 * page } else { block };
                let first = Ipa::new(end - size);
                let old = Attrs::MEMORY.age(Age::Old);
                let map = Map::new(first, Pa::new(0), size, old)
                    .leaves(Leaves::Exactly(leaves))
                    .over(Over::Anything);
                let what = format!("{name} {leaves} {geometry:?}");
                let all = &mut all();
                let done = tree.map_exclusive(&mut cpu, &map, &mut Ignore, all);
                assert_eq!(done, Ok(Ipa::new(end)), "{what}");
                // To pages a block may be split by nobody here.
                if name != "split" || leaves == Level::L3 {
                    let done = operation(&mut tree, &mut cpu, first, size);
                    assert_eq!(done, Ok(Ipa::new(end)), "{what}");
                    let done = operation(&mut tree, &mut cpu, Ipa::new(end - page), page);
                    assert_eq!(done, Ok(Ipa::new(end)), "{what}");
                }
                let (ipa, split) = (Ipa::new(end - block), Partial::Split);
                let mut sink = |_: RemovedLeaf| ();
                tree.unmap(
                    &mut cpu,
                    &Unmap::new(ipa, block).partial(split),
                    &mut sink,
                    all,
                )
                .expect("unmapped");
                assert_eq!(bench.mem.live(), 0, "{what}");
            }
        }
    }
}

/// Without FEAT_S2FWB the flush walks; its checks are the same.
#[test]
fn a_flush_that_walks_refuses_the_same() {
    let config = Stage2Config::new(Granule::K4, 40, 48);
    let bench = Bench::new(config.validate().expect("legal"));
    let (tree, mut cpu) = bench.tree();
    for (ipa, size, why) in bad_ranges(bench.end(), bench.page()) {
        let next = Ipa::new(ipa);
        let done = tree.flush_caches(&mut cpu, next, size, &mut all());
        assert_eq!(done, Err(Stopped { why, next }), "{ipa:#x} {size:#x}");
        untouched(&bench.mem, "flush");
    }
}

#[test]
fn output_outside_the_space_or_inside_a_page() {
    for geometry in geometries() {
        let bench = Bench::new(geometry);
        let (mut tree, mut cpu) = bench.tree();
        let page = bench.page();
        let end = 1u64 << geometry.shape().oa_bits();
        let cases = [
            (end, page, Error::Range),
            (end - page, 2 * page, Error::Range),
            (!(page - 1), page, Error::Range),
            (!(page - 1), 2 * page, Error::Range),
            (1, page, Error::Align),
            (page / 2, page, Error::Align),
            (page - 1, 2 * page, Error::Align),
        ];
        for (pa, size, why) in cases {
            for leaves in [Leaves::Largest, Leaves::Exactly(Level::L3)] {
                let ipa = Ipa::new(16 * page);
                let map = Map::new(ipa, Pa::new(pa), size, Attrs::MEMORY).leaves(leaves);
                let stopped = Err(Stopped { why, next: ipa });
                let what = format!("{map:?} {geometry:?}");
                assert_eq!(tree.map(&mut cpu, &map, &mut all()), stopped, "{what}");
                let exclusive = tree.map_exclusive(&mut cpu, &map, &mut Ignore, &mut all());
                assert_eq!(exclusive, stopped, "{what}");
                untouched(&bench.mem, &what);
            }
        }
        // Outside both spaces, by the same bit, is no less outside.
        let both = 1 << 60;
        let map = Map::new(Ipa::new(both), Pa::new(both), page, Attrs::MEMORY)
            .leaves(Leaves::Exactly(Level::L3));
        let (why, next) = (Error::Range, map.ipa);
        let done = tree.map(&mut cpu, &map, &mut all());
        assert_eq!(done, Err(Stopped { why, next }));
        untouched(&bench.mem, "outside both spaces");
        // The last page of either space is fine.
        let last = Map::new(
            Ipa::new(bench.end() - page),
            Pa::new(end - page),
            page,
            Attrs::MEMORY,
        )
        .leaves(Leaves::Exactly(Level::L3));
        assert_eq!(
            tree.map(&mut cpu, &last, &mut all()),
            Ok(Ipa::new(bench.end()))
        );
        assert_eq!(
            tree.translate(last.ipa).map(|(pa, _)| pa),
            Some(Pa::new(end - page))
        );
    }
}

/// Permissions that this CPU has no bits for.
#[test]
fn attributes_that_cannot_be() {
    for geometry in geometries() {
        let bench = Bench::new(geometry);
        let (tree, mut cpu) = bench.tree();
        let (ipa, page) = (Ipa::new(0), bench.page());
        for execute in [Execute::El0, Execute::El1] {
            let attrs = Attrs::MEMORY.execute(execute);
            for leaves in [Leaves::Largest, Leaves::Exactly(Level::L3)] {
                let map = Map::new(ipa, Pa::new(0), page, attrs).leaves(leaves);
                let why = Error::Attributes;
                let done = tree.map(&mut cpu, &map, &mut all());
                assert_eq!(done, Err(Stopped { why, next: ipa }));
            }
            let permissions = Permissions {
                access: Access::Read,
                execute,
            };
            let range = Sweep::new(ipa, page).partial(Partial::Split);
            let done = tree.protect(&mut cpu, range, permissions, &mut all());
            assert_eq!(done.map_err(|stopped| stopped.why), Err(Error::Attributes));
        }
        untouched(&bench.mem, "attributes");
    }
}

/// Every level, with its span and whether the tree may have leaves there.
fn levels(geometry: &Geometry) -> Vec<(Level, u64, bool)> {
    let level = |number| {
        let level = Level::new(number).expect("a level");
        let may = geometry.leaf_ok(level) && level >= geometry.start();
        (level, geometry.span(level), may)
    };
    (-1..=3).map(level).collect()
}

/// What both the IPA space and the memory have room for.
fn room(bench: &Bench) -> u64 {
    bench.end().min(1 << bench.geometry.shape().oa_bits())
}

#[test]
fn levels_that_have_no_leaves() {
    for geometry in geometries() {
        let bench = Bench::new(geometry);
        let (mut tree, mut cpu) = bench.tree();
        let (ipa, page) = (Ipa::new(0), bench.page());
        for (level, span, may) in levels(&geometry) {
            let why = Error::BlockLevel { level };
            let refused = Err(Stopped { why, next: ipa });
            // Above the root spans may be larger than any space.
            if !may && (page..=room(&bench)).contains(&span) {
                let leaves = Leaves::Exactly(level);
                let map = Map::new(ipa, Pa::new(0), span, Attrs::MEMORY).leaves(leaves);
                let done = tree.map(&mut cpu, &map, &mut all());
                assert_eq!(done, refused, "{geometry:?}");
                let done = tree.map_exclusive(&mut cpu, &map, &mut Ignore, &mut all());
                assert_eq!(done, refused, "{geometry:?}");
            }
            let split = Split {
                ipa,
                size: page,
                to: level,
            };
            let none = |_| panic!("a page wanted");
            let done = tree.split(&mut cpu, &split, none, &mut all());
            let want = if geometry.leaf_ok(level) {
                Ok(Ipa::new(page))
            } else {
                refused
            };
            assert_eq!(done, want, "{level} {geometry:?}");
        }
        untouched(&bench.mem, "level");
    }
}

/// What is forced to a level keeps to its span: IPA, PA and size.
#[test]
fn leaves_that_are_not_aligned_to_their_span() {
    for geometry in geometries() {
        let bench = Bench::new(geometry);
        let (tree, mut cpu) = bench.tree();
        let page = bench.page();
        for (level, span, may) in levels(&geometry) {
            if !may || level == Level::L3 || 2 * span > room(&bench) {
                continue;
            }
            for (at, to, size) in [
                (page, 0, span),
                (0, page, span),
                (page, page, span),
                (page, page, span + page),
                (0, page, span + page),
                (page, 0, span + page),
                (span / 2, span / 2, span),
                (0, 0, span + page),
                (0, 0, page),
            ] {
                let next = Ipa::new(at);
                let leaves = Leaves::Exactly(level);
                let map = Map::new(next, Pa::new(to), size, Attrs::MEMORY).leaves(leaves);
                let why = Error::Align;
                let done = tree.map(&mut cpu, &map, &mut all());
                assert_eq!(done, Err(Stopped { why, next }), "{map:?} {geometry:?}");
            }
        }
        untouched(&bench.mem, "span");
    }
}

/// Operations on one IPA: outside the space, and where nothing stands.
#[test]
fn one_address() {
    for geometry in geometries() {
        let bench = Bench::new(geometry);
        let (mut tree, mut cpu) = bench.tree();
        let permissions = Permissions {
            access: Access::Read,
            execute: Execute::All,
        };
        for at in [bench.end(), bench.end() + 8, u64::MAX] {
            let ipa = Ipa::new(at);
            assert_eq!(tree.lookup(ipa), Err(Error::Range));
            assert_eq!(tree.lookup_to(ipa, Level::L1), Err(Error::Range));
            assert_eq!(tree.translate(ipa), None);
            assert_eq!(tree.relax(&mut cpu, ipa, permissions), Err(Error::Range));
            assert_eq!(tree.mark_young(&mut cpu, ipa), Err(Error::Range));
            assert_eq!(tree.fold(&mut cpu, ipa, Level::L2), Err(Error::Range));
            assert_eq!(tree.set_contiguous(&mut cpu, ipa), Err(Error::Range));
            assert_eq!(tree.clear_contiguous(&mut cpu, ipa), Err(Error::Range));
            assert_eq!(tree.freeze(ipa, Level::L3).err(), Some(Error::Range));
            assert_eq!(tree.subtree(ipa, Level::L2).err(), Some(Error::Range));
        }
        // The last byte of the space is inside, and empty.
        let level = geometry.start();
        for at in [0, bench.end() - 1] {
            let ipa = Ipa::new(at);
            let missing = Err(Error::Missing { level });
            assert_eq!(tree.lookup(ipa).map(|found| found.level), Ok(level));
            assert_eq!(tree.relax(&mut cpu, ipa, permissions), missing);
            assert_eq!(tree.mark_young(&mut cpu, ipa), missing);
            assert_eq!(tree.fold(&mut cpu, ipa, level), missing);
            assert_eq!(tree.clear_contiguous(&mut cpu, ipa), missing);
            let frozen = tree.freeze(ipa, Level::L3).err();
            let deep = level < Level::L3;
            assert_eq!(frozen, deep.then_some(Error::Missing { level }));
        }
        if level < Level::L3 {
            untouched(&bench.mem, "one address");
        }
        for (at, level, why) in [
            (0, Level::L3, Error::BlockLevel { level: Level::L3 }),
            (bench.page(), Level::L2, Error::Align),
        ] {
            let none = tree.subtree(Ipa::new(at), level).err();
            if level >= geometry.start() {
                assert_eq!(none, Some(why), "{geometry:?}");
            }
        }
        for number in -1..geometry.start().get() {
            let level = Level::new(number).expect("a level");
            assert_eq!(
                tree.subtree(Ipa::new(0), level).err(),
                Some(Error::BlockLevel { level })
            );
        }
        assert_eq!(bench.mem.live(), 0);
    }
}

/// A subtree takes what lies in its span, and leaves below its own level.
#[test]
fn a_subtree_keeps_to_its_span() {
    let bench = Bench::new(geometry(Granule::K4, 40, 48, false));
    let (tree, mut cpu) = bench.tree();
    let (mib2, gib) = (2u64 << 20, 1u64 << 30);
    let base = 4 * gib;
    let mut built = tree.subtree(Ipa::new(base), Level::L1).expect("a page");
    bench.mem.forget();
    let mut map = |at: u64, size: u64, leaves| {
        let map = Map::new(Ipa::new(at), Pa::new(0), size, Attrs::MEMORY).leaves(leaves);
        built
            .map(&mut cpu, &map, &mut all())
            .map_err(|stopped| (stopped.why, stopped.next.get()))
    };
    for (at, size) in [
        (base - 4096, 4096),
        (base - 4096, 8192),
        (base + gib - 4096, 8192),
        (base + gib, 4096),
        (0, 4096),
    ] {
        let done = map(at, size, Leaves::Largest);
        assert_eq!(done, Err((Error::Range, at)));
    }
    let level = Level::L1;
    let done = map(base, gib, Leaves::Exactly(level));
    assert_eq!(done, Err((Error::BlockLevel { level }, base)));
    untouched(&bench.mem, "subtree");
    // All of it, in the largest leaves that may be below.
    let end = Ipa::new(base + gib);
    assert_eq!(map(base, gib, Leaves::Largest), Ok(end));
    let changes = bench.mem.changes();
    let writes = changes
        .iter()
        .filter(|did| matches!(did, Did::Write { .. }))
        .count();
    assert_eq!(writes as u64, gib / mib2);
    // Nobody walks it: no barrier, no TLBI.
    assert_eq!(changes.len(), writes);
    built
        .discard(&mut Budget::unlimited())
        .ok()
        .expect("no bound");
    assert_eq!(bench.mem.live(), 0);
}

const MIB2: u64 = 2 << 20;

/// A block of 2 MiB at 0, and a page at the beginning of the next 2 MiB.
fn furnished(bench: &Bench) -> (Stage2<&Plain>, Cpu<'_>) {
    let (tree, mut cpu) = bench.tree();
    for (at, size) in [(0, MIB2), (MIB2, 4096)] {
        let map = Map::new(Ipa::new(at), Pa::new(at), size, Attrs::MEMORY);
        tree.map(&mut cpu, &map, &mut all()).expect("mapped");
    }
    bench.mem.forget();
    (tree, cpu)
}

fn refused(done: Result<Ipa, Stopped<Ipa>>) -> Result<Ipa, Error> {
    done.map_err(|stopped| stopped.why)
}

/// What stands there says no, with its level: another leaf where one is, a
/// page under a block, a block over a table.
#[test]
fn what_a_mapping_meets() {
    let page = 4096;
    let bench = Bench::new(geometry(Granule::K4, 40, 48, false));
    let (tree, mut cpu) = furnished(&bench);
    for (ipa, pa, size, leaves, level) in [
        (0, MIB2, MIB2, Leaves::Largest, Level::L2),
        (0, 4 * page, page, Leaves::Exactly(Level::L3), Level::L2),
        (0, MIB2, MIB2, Leaves::Exactly(Level::L2), Level::L2),
        (MIB2, 0, MIB2, Leaves::Exactly(Level::L2), Level::L2),
        (MIB2, 0, page, Leaves::Exactly(Level::L3), Level::L3),
    ] {
        for over in [Over::Nothing, Over::Invalid] {
            let map = Map::new(Ipa::new(ipa), Pa::new(pa), size, Attrs::MEMORY)
                .leaves(leaves)
                .over(over);
            let done = refused(tree.map(&mut cpu, &map, &mut all()));
            assert_eq!(done, Err(Error::Exists { level }), "{map:?}");
        }
    }
    let changes = bench.mem.changes();
    // A fault's quick way tells late that the entry is taken.
    let harmless = |did: &Did| matches!(did, Did::Barrier(_) | Did::Lost { .. });
    assert!(changes.iter().all(harmless), "{changes:?}");
    let over = Map::new(Ipa::new(MIB2), Pa::new(0), MIB2, Attrs::MEMORY).over(Over::Anything);
    let done = refused(tree.map(&mut cpu, &over, &mut all()));
    assert_eq!(done, Err(Error::NeedsExclusive { level: Level::L2 }));
    untouched(&bench.mem, "in the way");
}

/// Ranges that end inside a block, where none is to be split.
#[test]
fn ends_inside_a_block() {
    let page = 4096;
    let bench = Bench::new(geometry(Granule::K4, 40, 48, false));
    let (mut tree, mut cpu) = furnished(&bench);
    let inside = Err(Error::InsideBlock { level: Level::L2 });
    let refuse = Partial::Refuse;
    let read = Permissions {
        access: Access::Read,
        execute: Execute::All,
    };
    for (ipa, size) in [(0, page), (page, MIB2 - page), (page, page)] {
        let ipa = Ipa::new(ipa);
        let range = &Unmap::new(ipa, size).partial(refuse);
        let done = tree.unmap(&mut cpu, range, &mut Ignore, &mut all());
        assert_eq!(refused(done), inside);
        let done = tree.unmap_leaves(&mut cpu, range, &mut Ignore, &mut all());
        assert_eq!(refused(done), inside);
        let sweep = Sweep::new(ipa, size).partial(refuse);
        let done = tree.protect(&mut cpu, sweep, read, &mut all());
        assert_eq!(refused(done), inside);
        let mut gather = tree.gather();
        let later = UnmapLater::new(ipa, size, &mut gather).partial(refuse);
        let done = tree.unmap_later(&mut cpu, later, &mut all(), |_| panic!("a leaf"));
        assert_eq!(refused(done), inside);
        let _synced = tree.sync(&mut cpu, gather).expect("of this tree");
    }
    untouched(&bench.mem, "inside a block");
}

/// What is refused inside a block is refused where the range begins: a caller who goes
/// on at `next` never goes back.
#[test]
fn a_stop_inside_a_block_is_not_before_the_range() {
    let bench = Bench::new(geometry(Granule::K4, 40, 48, false));
    let (mut tree, mut cpu) = furnished(&bench);
    let (ipa, size) = (Ipa::new(3 * 4096), 4096);
    let (why, next) = (Error::InsideBlock { level: Level::L2 }, ipa);
    let stopped = Err(Stopped { why, next });
    let refuse = Partial::Refuse;
    let sweep = Sweep::new(ipa, size).partial(refuse);
    assert_eq!(tree.write_protect(&mut cpu, sweep, &mut all()), stopped);
    let range = Unmap::new(ipa, size).partial(refuse);
    let done = tree.unmap(&mut cpu, &range, &mut Ignore, &mut all());
    assert_eq!(done, stopped);
    // Nor where a block cannot be split.
    bench.mem.limit.set(0);
    let stopped = Err(Stopped {
        why: Error::NoMem,
        next,
    });
    let sweep = Sweep::new(ipa, size).partial(Partial::Split);
    assert_eq!(tree.write_protect(&mut cpu, sweep, &mut all()), stopped);
}

/// Tables, groups and entries of a kind that the operation is not for.
#[test]
fn entries_of_the_wrong_kind() {
    let bench = Bench::new(geometry(Granule::K4, 40, 48, false));
    let (mut tree, mut cpu) = furnished(&bench);
    let (at, block) = (Ipa::new(MIB2), Ipa::new(0));
    let frozen = tree.freeze(at, Level::L2).err();
    assert_eq!(frozen, Some(Error::Exists { level: Level::L2 }));
    let cpu = &mut cpu;
    let mismatch = Err(Error::Mismatch { level: Level::L3 });
    let missing = |level| Err(Error::Missing { level });
    assert_eq!(tree.fold(cpu, at, Level::L2), mismatch);
    assert_eq!(tree.fold(cpu, at, Level::L3), missing(Level::L3));
    assert_eq!(tree.fold(cpu, block, Level::L2), missing(Level::L2));
    assert_eq!(tree.set_contiguous(cpu, at), mismatch.map(drop));
    let hole = Ipa::new(MIB2 + 20 * 4096);
    let done = tree.set_contiguous(cpu, hole);
    assert_eq!(done, missing(Level::L3).map(drop));
    untouched(&bench.mem, "of the wrong kind");
}

/// Without hardware dirty state nothing can be harvested.
#[test]
fn dirty_state_that_hardware_does_not_have() {
    let config = Stage2Config::new(Granule::K4, 40, 48);
    let bench = Bench::new(config.validate().expect("legal"));
    let (tree, mut cpu) = bench.tree();
    let ipa = Ipa::new(0);
    let done = tree.harvest_dirty(&mut cpu, Sweep::new(ipa, 4096), &mut all(), |_, _| ());
    let why = Error::Attributes;
    assert_eq!(done, Err(Stopped { why, next: ipa }));
    untouched(&bench.mem, "harvest");
}

/// A commit that cannot be encoded leaves the entry as it was.
#[test]
fn a_commit_that_fails_puts_the_old_entry_back() {
    let bench = Bench::new(geometry(Granule::K4, 40, 48, false));
    let (tree, mut cpu) = bench.tree();
    let map = Map::new(Ipa::new(0), Pa::new(0x20_0000), 0x20_0000, Attrs::MEMORY);
    tree.map(&mut cpu, &map, &mut all()).expect("mapped");
    let old = tree.lookup(Ipa::new(0)).expect("inside").raw;
    for (pa, attrs, why) in [
        (0x1000, Attrs::MEMORY, Error::Align),
        (0x10_0000, Attrs::MEMORY, Error::Align),
        (1 << 48, Attrs::MEMORY, Error::Range),
        (0, Attrs::MEMORY.execute(Execute::El0), Error::Attributes),
    ] {
        let frozen = tree.freeze(Ipa::new(0x1000), Level::L2).expect("a leaf");
        let done = frozen.commit(&mut cpu, Change::Leaf(Pa::new(pa), attrs));
        assert_eq!(done, Err(why));
        assert_eq!(tree.lookup(Ipa::new(0)).map(|found| found.raw), Ok(old));
    }
}

/// EL2's map, the same ranges.
#[test]
fn el2_refuses_the_same() {
    for (granule, va_bits, pa_bits, wide) in [
        (Granule::K4, 39, 40, false),
        (Granule::K4, 52, 52, true),
        (Granule::K16, 47, 48, false),
        (Granule::K64, 52, 52, true),
    ] {
        let mut config = El2Config::new(granule, va_bits, pa_bits);
        config.lpa2 = wide && granule != Granule::K64;
        config.lva = wide;
        let geometry = config.validate().expect("legal");
        let page = granule.page_size();
        let mem = Plain::new(page);
        let root = mem.root(page);
        let mut map = El2Map::new(geometry, root, &mem).expect("a root");
        let mut cpu = mem.cpu(Stage2Regs::default());
        let end = 1u64 << va_bits;
        for (va, size, why) in bad_ranges(end, page) {
            let next = Va::new(va);
            let stopped = Err(Stopped { why, next });
            let pa = Pa::new(0);
            let range = El2Range::new(next, pa, size, El2Attrs::DATA);
            for leaves in [Leaves::Largest, Leaves::Exactly(Level::L3)] {
                let done = map.map(&mut cpu, &range.leaves(leaves));
                assert_eq!(done, stopped, "{va:#x} {size:#x}");
            }
            assert_eq!(map.unmap(&mut cpu, next, size), stopped);
        }
        let out = 1u64 << geometry.shape().oa_bits();
        let va = Va::new(0);
        for (pa, size, leaves, why) in [
            (out, page, Leaves::Largest, Error::Range),
            (out - page, 2 * page, Leaves::Largest, Error::Range),
            (page / 2, page, Leaves::Largest, Error::Align),
            (page, page, Leaves::Exactly(Level::L2), Error::Align),
            (
                0,
                page,
                Leaves::Exactly(Level::MINUS_1),
                Error::BlockLevel {
                    level: Level::MINUS_1,
                },
            ),
        ] {
            let pa = Pa::new(pa);
            let range = El2Range::new(va, pa, size, El2Attrs::DATA);
            let done = map.map(&mut cpu, &range.leaves(leaves));
            assert_eq!(done, Err(Stopped { why, next: va }), "{range:?}");
        }
        // To a block's span all three must keep, each by itself.
        let block = geometry.shape().span(Level::L2);
        for (va, pa, size) in [
            (page, 0, block),
            (0, page, block),
            (page, page, block),
            (page, page, block + page),
            (0, page, block + page),
            (page, 0, block + page),
            (0, 0, block + page),
        ] {
            let next = Va::new(va);
            let pa = Pa::new(pa);
            let range = El2Range::new(next, pa, size, El2Attrs::DATA);
            let (leaves, why) = (Leaves::Exactly(Level::L2), Error::Align);
            let done = map.map(&mut cpu, &range.leaves(leaves));
            assert_eq!(done, Err(Stopped { why, next }), "{range:?}");
        }
        for at in [end, end + 8, u64::MAX] {
            assert_eq!(map.translate(Va::new(at)), None);
        }
        assert_eq!(map.translate(Va::new(end - 1)), None);
        untouched(&mem, "EL2");
    }
}

/// Roots that the registers cannot hold.
#[test]
fn roots_and_vmids() {
    for geometry in geometries() {
        let align = geometry.root_align();
        let out = 1u64 << geometry.shape().oa_bits();
        let vmid = Vmid::new(255);
        for root in [8, align / 2, align + 8, out + align / 2] {
            let error = ConfigError::RootAlign { align };
            assert_eq!(geometry.vttbr(Pa::new(root), vmid), Err(error));
        }
        for root in [out, !(align - 1), 1 << 63] {
            let error = ConfigError::RootRange;
            assert_eq!(geometry.vttbr(Pa::new(root), vmid), Err(error));
        }
        assert!(geometry.vttbr(Pa::new(out - align), vmid).is_ok());
        let vmid = 256;
        assert_eq!(
            geometry.vttbr(Pa::new(0), Vmid::new(vmid)),
            Err(ConfigError::Vmid { vmid })
        );
        let page = geometry.granule().page_size();
        let mem = Plain::new(page);
        assert!(Stage2::new(geometry, Pa::new(page / 2), Vmid::new(1), &mem).is_err());
        assert_eq!(mem.count(Pa::new(0)), 0);
    }
    let mut config = Stage2Config::new(Granule::K4, 40, 48);
    config.features.vmid16 = true;
    config.start = Start::At(Level::L1);
    let geometry = config.validate().expect("legal");
    let vttbr = geometry.vttbr(Pa::new(0), Vmid::new(0xffff));
    assert_eq!(vttbr, Ok(0xffff << 48));
}

//! A guest's tables, operation by operation, with what is asked of the CPU.

mod log;

use log::{Log, Plain};
use pgtable::{
    Annotation, Attrs, Budget, Entry, Error, Geometry, Granule, HeldLeaf, Ignore, Ipa, Leaves,
    Level, Map, Over, Pa, Partial, RemovedLeaf, Stage2, Stage2Config, Stage2Regs, Stopped, Unmap,
    UnmapLater, Vmid,
};

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

fn config(granule: Granule) -> Geometry {
    let mut config = Stage2Config::new(granule, 40, 48);
    config.features.tlb_range = true;
    config.features.ttl = true;
    config.features.fwb = true;
    config.features.dic = true;
    config.validate().unwrap()
}

fn tree(granule: Granule, mem: &Plain) -> (Stage2<&Plain>, Log) {
    let geometry = config(granule);
    let root = mem.root(geometry.root_align());
    let tree = Stage2::new(geometry, root, Vmid::new(5), mem).unwrap();
    let log = Log {
        regs: tree.regs(),
        ..Log::default()
    };
    (tree, log)
}

fn memory(granule: Granule) -> Plain {
    Plain::new(granule.page_size(), 16 * MIB)
}

#[test]
#[cfg_attr(miri, ignore = "too long there")]
fn largest_leaves_are_used() {
    let mem = memory(Granule::K4);
    let (tree, mut log) = tree(Granule::K4, &mem);
    let map = Map::new(
        Ipa::new(0x4000_0000),
        Pa::new(0x8000_0000),
        GIB + MIB * 4,
        Attrs::MEMORY,
    );
    let next = tree.map(&mut log, &map, &mut Budget::unlimited()).unwrap();
    assert_eq!(next, Ipa::new(0x8040_0000));
    assert_eq!(tree.lookup(Ipa::new(0x4123_4567)).unwrap().level, Level::L1);
    assert_eq!(tree.lookup(Ipa::new(0x8012_3456)).unwrap().level, Level::L2);
    let (pa, attrs) = tree.translate(Ipa::new(0x8012_3456)).unwrap();
    assert_eq!(pa, Pa::new(0xc012_3456));
    assert_eq!(attrs, Attrs::MEMORY);
    assert_eq!(mem.live.get(), 1);
    assert_eq!((log.tlbis(), log.barriers()), (0, 1));
}

#[test]
#[cfg_attr(miri, ignore = "too long there")]
fn a_gibibyte_of_pages_goes_with_two_tlbis() {
    let mem = memory(Granule::K4);
    let (mut tree, mut log) = tree(Granule::K4, &mem);
    let map = Map::new(
        Ipa::new(0x4000_0000),
        Pa::new(0x8000_0000),
        GIB,
        Attrs::MEMORY,
    )
    .leaves(Leaves::Exactly(Level::L3));
    tree.map(&mut log, &map, &mut Budget::unlimited()).unwrap();
    assert_eq!(mem.live.get(), 513);
    log.events.clear();
    let mut gone = 0u64;
    let mut sink = |leaf: RemovedLeaf| {
        assert_eq!(leaf.pa().get(), 0x8000_0000 + gone * 4096);
        gone += 1;
    };
    tree.unmap(
        &mut log,
        &Unmap::new(map.ipa, GIB),
        &mut sink,
        &mut Budget::unlimited(),
    )
    .unwrap();
    assert_eq!(gone, 262_144);
    assert_eq!(mem.live.get(), 0);
    assert_eq!((log.tlbis(), log.barriers()), (2, 4));
}

#[test]
#[cfg_attr(miri, ignore = "too long there")]
fn a_page_out_of_a_block_leaves_the_rest() {
    for granule in Granule::ALL {
        let mem = memory(granule);
        let (mut tree, mut log) = tree(granule, &mem);
        let span = tree.geometry().span(Level::L2);
        let page = granule.page_size();
        let base = 4 * span;
        let map = Map::new(Ipa::new(base), Pa::new(8 * span), span, Attrs::MEMORY);
        tree.map(&mut log, &map, &mut Budget::unlimited()).unwrap();
        assert_eq!(tree.lookup(Ipa::new(base)).unwrap().level, Level::L2);
        let hole = Ipa::new(base + 7 * page);
        let refused = tree.unmap(
            &mut log,
            &Unmap::new(hole, page).partial(Partial::Refuse),
            &mut Ignore,
            &mut Budget::unlimited(),
        );
        assert_eq!(
            refused,
            Err(Stopped {
                why: Error::InsideBlock { level: Level::L2 },
                next: hole
            })
        );
        tree.unmap(
            &mut log,
            &Unmap::new(hole, page),
            &mut Ignore,
            &mut Budget::unlimited(),
        )
        .unwrap();
        for index in 0..granule.entries() as u64 {
            let at = Ipa::new(base + index * page);
            let expected = (index != 7).then(|| Pa::new(8 * span + index * page));
            assert_eq!(tree.translate(at).map(|(pa, _)| pa), expected);
        }
        // Back again, then all of it: no table is left.
        let map = Map::new(hole, Pa::new(8 * span + 7 * page), page, Attrs::MEMORY);
        tree.map(&mut log, &map, &mut Budget::unlimited()).unwrap();
        tree.unmap(
            &mut log,
            &Unmap::new(Ipa::new(base), span),
            &mut Ignore,
            &mut Budget::unlimited(),
        )
        .unwrap();
        assert_eq!(mem.live.get(), 0);
    }
}

#[test]
#[cfg_attr(miri, ignore = "too long there")]
fn pages_become_a_block_again() {
    let mem = memory(Granule::K4);
    let (mut tree, mut log) = tree(Granule::K4, &mem);
    let block = Map::new(
        Ipa::new(0x4000_0000),
        Pa::new(0x8000_0000),
        4 * MIB,
        Attrs::MEMORY,
    );
    let pages = block.leaves(Leaves::Exactly(Level::L3));
    tree.map(&mut log, &pages, &mut Budget::unlimited())
        .unwrap();
    let shared = tree.map(
        &mut log,
        &block.over(Over::Anything),
        &mut Budget::unlimited(),
    );
    assert_eq!(
        shared.unwrap_err().why,
        Error::NeedsExclusive { level: Level::L2 }
    );
    let mut gone = Vec::new();
    tree.map_exclusive(
        &mut log,
        &block.over(Over::Anything),
        &mut |leaf: RemovedLeaf| gone.push(leaf.ipa().get()),
        &mut Budget::unlimited(),
    )
    .unwrap();
    assert_eq!(gone.len(), 1024);
    assert_eq!(mem.live.get(), 1);
    assert_eq!(tree.lookup(Ipa::new(0x4000_0000)).unwrap().level, Level::L2);
}

#[test]
fn annotations_stay_when_tables_are_made_under_them() {
    let mem = memory(Granule::K4);
    let (mut tree, mut log) = tree(Granule::K4, &mem);
    let owner = Annotation::new(0x1230).unwrap();
    tree.unmap(
        &mut log,
        &Unmap::new(Ipa::new(0x4000_0000), GIB).leaving(owner),
        &mut Ignore,
        &mut Budget::unlimited(),
    )
    .unwrap();
    assert_eq!(mem.live.get(), 0);
    let map = Map::new(
        Ipa::new(0x4000_5000),
        Pa::new(0x9000_0000),
        4096,
        Attrs::MEMORY,
    );
    let refused = tree
        .map(&mut log, &map, &mut Budget::unlimited())
        .unwrap_err();
    assert_eq!(refused.why, Error::Exists { level: Level::L1 });
    tree.map(&mut log, &map.over(Over::Invalid), &mut Budget::unlimited())
        .unwrap();
    assert_eq!(
        tree.lookup(Ipa::new(0x4000_4000)).unwrap().entry,
        Entry::Invalid(owner)
    );
    assert!(tree.translate(map.ipa).is_some());
}

#[test]
fn no_memory_leaves_what_is_below_next() {
    let mem = memory(Granule::K4);
    let (tree, mut log) = tree(Granule::K4, &mem);
    mem.limit.set(3);
    let map = Map::new(
        Ipa::new(0x4000_0000),
        Pa::new(0x8000_0000),
        8 * MIB,
        Attrs::MEMORY,
    )
    .leaves(Leaves::Exactly(Level::L3));
    let stopped = tree
        .map(&mut log, &map, &mut Budget::unlimited())
        .unwrap_err();
    assert_eq!(
        stopped,
        Stopped {
            why: Error::NoMem,
            next: Ipa::new(0x4040_0000)
        }
    );
    assert!(tree.translate(Ipa::new(0x403f_ffff)).is_some());
    assert!(tree.translate(Ipa::new(0x4040_0000)).is_none());
    assert_eq!(log.barriers(), 1);
}

#[test]
#[cfg_attr(miri, ignore = "too long there")]
fn a_budget_bounds_a_teardown_and_it_ends() {
    let mem = memory(Granule::K4);
    let (mut tree, mut log) = tree(Granule::K4, &mem);
    for gib in [1u64, 3, 500] {
        let map = Map::new(Ipa::new(gib * GIB), Pa::new(0), 64 * MIB, Attrs::MEMORY)
            .leaves(Leaves::Exactly(Level::L3));
        tree.map(&mut log, &map, &mut Budget::unlimited()).unwrap();
    }
    let end = 1u64 << 40;
    let mut at = Ipa::new(0);
    let mut calls = 0;
    while at.get() < end {
        let mut budget = Budget::entries(1);
        at = tree
            .unmap(
                &mut log,
                &Unmap::new(at, end - at.get()),
                &mut Ignore,
                &mut budget,
            )
            .unwrap();
        calls += 1;
        assert!(calls < 5000);
    }
    assert!(calls > 90);
    assert_eq!(mem.live.get(), 0);
}

#[test]
fn another_vmid_is_made_current_and_put_back() {
    let mem = memory(Granule::K4);
    let (mut tree, mut log) = tree(Granule::K4, &mem);
    let map = Map::new(Ipa::new(0), Pa::new(0), 4096, Attrs::MEMORY);
    tree.map(&mut log, &map, &mut Budget::unlimited()).unwrap();
    let other = Stage2Regs {
        vtcr: 0x8000_0000,
        vttbr: 0x0007_0000_1234_0000,
    };
    log.regs = other;
    log.events.clear();
    tree.unmap(
        &mut log,
        &Unmap::new(map.ipa, 4096),
        &mut Ignore,
        &mut Budget::unlimited(),
    )
    .unwrap();
    use log::Event::{self, Stage2 as Regs};
    use pgtable::{Barrier::*, TlbiKind::*};
    let b = Event::Barrier;
    let kinds: Vec<Event> = log.events.clone();
    assert_eq!(kinds[0], b(DsbIsh));
    assert_eq!(kinds[1], Regs(tree.regs()));
    assert_eq!(kinds[2], b(Isb));
    assert!(matches!(kinds[3], Event::Tlbi(op) if op.kind() == Ipas2e1is));
    assert_eq!(kinds[4], b(DsbIsh));
    assert!(matches!(kinds[5], Event::Tlbi(op) if op.kind() == Vmalle1is));
    assert_eq!(kinds[6], b(DsbIsh));
    assert_eq!(kinds[7], b(Isb));
    assert_eq!(kinds[8], Regs(other));
    assert_eq!(kinds[9], b(Isb));
    assert_eq!(kinds.len(), 10);
}

#[test]
fn without_fwb_lines_are_cleaned_before_and_after() {
    use pgtable::CacheOp::{self, CleanInvalidateData};
    let mem = memory(Granule::K4);
    let geometry = Stage2Config::new(Granule::K4, 40, 48).validate().unwrap();
    let root = mem.root(geometry.root_align());
    let mut tree = Stage2::new(geometry, root, Vmid::new(5), &mem).unwrap();
    let mut log = Log {
        regs: tree.regs(),
        ..Log::default()
    };
    let (pa, size) = (Pa::new(0x8000_0000), 3 * 4096);
    let map = Map::new(Ipa::new(0x4000_0000), pa, size, Attrs::MEMORY);
    tree.map(&mut log, &map, &mut Budget::unlimited()).unwrap();
    use log::Event;
    let caches: Vec<Event> = log.events.drain(..).collect();
    assert_eq!(
        caches[..2],
        [
            Event::Cache(CleanInvalidateData { pa, size }),
            Event::Cache(CacheOp::InvalidateInstructions),
        ]
    );
    let all = &mut Budget::unlimited();
    tree.unmap(&mut log, &Unmap::new(map.ipa, size), &mut Ignore, all)
        .unwrap();
    let tlbi = log
        .events
        .iter()
        .rposition(|event| matches!(event, Event::Tlbi(_)))
        .unwrap();
    let cleaned: Vec<usize> = (0..log.events.len())
        .filter(|&at| matches!(log.events[at], Event::Cache(CleanInvalidateData { .. })))
        .collect();
    // Three pages whose memory is adjacent: one run.
    let [last] = cleaned[..] else {
        panic!("{cleaned:?}");
    };
    assert_eq!(
        log.events[last],
        Event::Cache(CleanInvalidateData { pa, size })
    );
    assert!(last > tlbi);
}

/// A block and the pages of the table behind it are one range. When it is
/// flushed both are empty, and the table is still there.
#[test]
fn neighbours_of_two_levels_are_emptied_each_in_its_table() {
    let mem = Plain::new(4096, 1 << 20);
    let geometry = Stage2Config::new(Granule::K4, 39, 48).validate().unwrap();
    let root = mem.root(geometry.root_align());
    let tree = Stage2::new(geometry, root, Vmid::new(5), &mem).unwrap();
    let mut log = Log {
        regs: tree.regs(),
        ..Log::default()
    };
    let all = &mut Budget::unlimited();
    let block = 2u64 << 20;
    for (at, leaves) in [
        (0, Leaves::Largest),
        (block, Leaves::Exactly(Level::L3)),
        (2 * block, Leaves::Largest),
    ] {
        let map = Map::new(Ipa::new(at), Pa::new(at), block, Attrs::MEMORY);
        tree.map(&mut log, &map.leaves(leaves), all).unwrap();
    }
    let tables = mem.live.get();
    let (mut gather, mut held) = (tree.gather(), 0);
    let sink = |_: HeldLeaf| held += 1;
    let partial = Partial::Refuse;
    tree.unmap_later(
        &mut log,
        UnmapLater::new(Ipa::new(0), 3 * block, &mut gather).partial(partial),
        all,
        sink,
    )
    .unwrap();
    assert_eq!(held, 514);
    let _proof = tree.sync(&mut log, gather).unwrap();
    for page in 0..3 * 512 {
        assert_eq!(tree.lookup(Ipa::new(page << 12)).unwrap().raw, 0);
    }
    assert_eq!(mem.live.get(), tables);
    assert_eq!(tree.lookup(Ipa::new(block)).unwrap().level, Level::L3);
}

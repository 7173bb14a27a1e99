//! Splits, folds and contiguous groups: what they leave, what they cost, and
//! how far they come when pages or the budget end.

mod plain;

use pgtable::{
    Access, Age, Annotation, Attrs, Barrier, Budget, CacheOp, Change, Dirty, El2Attrs, El2Range,
    Entry, Error, Execute, Features, Flush, Geometry, Granule, Ignore, Ipa, Leaves, Level, Map,
    Over, Pa, Partial, Permissions, RemovedLeaf, Split, Stage2, Stage2Config, Start, Sweep,
    TableMem, TlbiKind, Unmap, Vmid,
};
use plain::{Cpu, Did, MODERN, Plain};

const PAGE: u64 = 4096;
const MIB2: u64 = 2 << 20;
const GIB: u64 = 1 << 30;

fn all() -> Budget {
    Budget::unlimited()
}

fn geometry(ipa_bits: u8, features: Features) -> Geometry {
    let mut config = Stage2Config::new(Granule::K4, ipa_bits, 48);
    config.start = Start::At(Level::L1);
    config.features = features;
    config.validate().expect("legal")
}

fn tree(mem: &Plain, features: Features) -> (Stage2<&Plain>, Cpu<'_>) {
    let geometry = geometry(39, features);
    let root = mem.root(geometry.root_align());
    let tree = Stage2::new(geometry, root, Vmid::new(3), mem).expect("a root");
    let cpu = mem.cpu(tree.regs());
    (tree, cpu)
}

fn map(tree: &Stage2<&Plain>, cpu: &mut Cpu<'_>, (ipa, pa): (u64, u64), size: u64, attrs: Attrs) {
    let map = Map::new(Ipa::new(ipa), Pa::new(pa), size, attrs);
    let done = tree.map(cpu, &map, &mut all());
    assert_eq!(done, Ok(Ipa::new(ipa + size)));
}

fn pages(
    tree: &Stage2<&Plain>,
    cpu: &mut Cpu<'_>,
    (ipa, pa): (u64, u64),
    count: u64,
    attrs: Attrs,
) {
    let map = Map::new(Ipa::new(ipa), Pa::new(pa), count * PAGE, attrs)
        .leaves(Leaves::Exactly(Level::L3));
    tree.map(cpu, &map, &mut all()).expect("mapped");
}

/// Every table counts what it holds, and is held once.
fn sound(tree: &Stage2<&Plain>) {
    let mem = *tree.mem();
    let mut tables = vec![(tree.root(), 1i8)];
    let mut below = 0;
    while let Some((table, number)) = tables.pop() {
        let level = Level::new(number).expect("a level");
        let entries = tree.geometry().shape().entries(level) as u64;
        let mut held = 0;
        for index in 0..entries {
            let raw = mem.word(table.get() + index * 8);
            held += u32::from(raw != 0);
            if let Entry::Table(next) = tree.geometry().decode(raw, level) {
                tables.push((next, number + 1));
                below += 1;
            }
        }
        assert_eq!(mem.count(table), held, "{table} of {level}");
    }
    assert_eq!(mem.live(), below);
}

const ATTRS: Attrs = Attrs {
    access: Access::Read,
    execute: Execute::El1,
    soft: 5,
    ..Attrs::MEMORY
};

/// The leaf at an address maps as the large block did.
fn maps(tree: &Stage2<&Plain>, ipa: u64, pa: u64, level: Level) {
    let found = tree.lookup(Ipa::new(ipa)).expect("inside");
    assert_eq!(found.level, level, "{ipa:#x}");
    assert_eq!(tree.translate(Ipa::new(ipa)), Some((Pa::new(pa), ATTRS)));
}

/// TLBIs by kind, and breaks of valid entries.
fn cost(mem: &Plain) -> (Vec<TlbiKind>, usize) {
    let changes = mem.changes();
    let breaks = |did: &&Did| matches!(did, Did::Write { old, new, .. } if old & 1 > new & 1);
    let broken = changes.iter().filter(breaks).count();
    let tlbis = changes.iter().filter_map(|did| match did {
        Did::Tlbi(op) => Some(op.kind()),
        _ => None,
    });
    (tlbis.collect(), broken)
}

const ONE_SYNC: [TlbiKind; 2] = [TlbiKind::Ipas2e1is, TlbiKind::Vmalle1is];
const RANGE_SYNC: [TlbiKind; 2] = [TlbiKind::Ripas2e1is, TlbiKind::Vmalle1is];

#[test]
fn a_large_block_becomes_pages_with_one_break() {
    for to in [Level::L2, Level::L3] {
        let mem = Plain::new(PAGE);
        let (tree, mut cpu) = tree(&mem, MODERN);
        map(&tree, &mut cpu, (4 * GIB, 8 * GIB), GIB, ATTRS);
        mem.forget();
        let mut levels = [0u64; 5];
        let page = |level: Level| {
            levels[level.get() as usize] += 1;
            mem.alloc(level)
        };
        let done = tree.split(
            &mut cpu,
            &Split {
                ipa: Ipa::new(4 * GIB),
                size: GIB,
                to,
            },
            page,
            &mut all(),
        );
        assert_eq!(done, Ok(Ipa::new(5 * GIB)));
        let deep = if to == Level::L3 { 512 } else { 0 };
        assert_eq!(levels, [0, 0, 1, deep, 0]);
        let barriers = [Barrier::DsbIshst, Barrier::DsbIsh, Barrier::DsbIsh];
        let done = mem.did.borrow().clone();
        let kinds: Vec<_> = done
            .iter()
            .filter_map(|did| match did {
                Did::Barrier(barrier) => Some(*barrier),
                _ => None,
            })
            .collect();
        assert_eq!(kinds[..3], barriers);
        assert_eq!(kinds[3..], [Barrier::Isb, Barrier::DsbIshst]);
        assert_eq!(cost(&mem), (ONE_SYNC.to_vec(), 1));
        for offset in [0, PAGE, MIB2 - PAGE, MIB2, 77 * MIB2 + 5 * PAGE, GIB - PAGE] {
            let at = 4 * GIB + offset + 9;
            maps(&tree, at, 8 * GIB + offset + 9, to);
        }
        sound(&tree);
    }
}

/// Neighbours go together; what is fine already is passed over quickly.
#[test]
fn neighbours_are_split_together() {
    let mem = Plain::new(PAGE);
    let (tree, mut cpu) = tree(&mem, MODERN);
    map(&tree, &mut cpu, (0, 0), 5 * MIB2, ATTRS);
    pages(&tree, &mut cpu, (5 * MIB2, 5 * MIB2), 512, ATTRS);
    map(&tree, &mut cpu, (6 * MIB2, 6 * MIB2), 2 * MIB2, ATTRS);
    mem.forget();
    let page = |level| mem.alloc(level);
    // From the middle of a block to the middle of another: both are whole.
    let (from, size) = (Ipa::new(MIB2 + PAGE), 6 * MIB2);
    let done = tree.split(
        &mut cpu,
        &Split {
            ipa: from,
            size,
            to: Level::L3,
        },
        page,
        &mut all(),
    );
    assert_eq!(done, Ok(Ipa::new(7 * MIB2 + PAGE)));
    let (tlbis, broken) = cost(&mem);
    assert_eq!(broken, 6);
    assert_eq!(tlbis, [RANGE_SYNC, RANGE_SYNC].concat());
    for index in 0..8 {
        let level = if index == 0 { Level::L2 } else { Level::L3 };
        let at = index * MIB2 + 300 * PAGE;
        maps(&tree, at, at, level);
    }
    sound(&tree);
    // Once more: nothing to do, and not every page is read for it.
    mem.forget();
    let done = tree.split(
        &mut cpu,
        &Split {
            ipa: from,
            size,
            to: Level::L3,
        },
        page,
        &mut all(),
    );
    assert_eq!(done, Ok(Ipa::new(7 * MIB2 + PAGE)));
    let visits = mem.visits();
    assert!(visits <= 7 * 4, "{visits}");
    assert_eq!(cost(&mem), (vec![], 0));
    // Up to level 2 there is nothing to do either.
    let done = tree.split(
        &mut cpu,
        &Split {
            ipa: Ipa::new(0),
            size: GIB,
            to: Level::L2,
        },
        page,
        &mut all(),
    );
    assert_eq!(done, Ok(Ipa::new(GIB)));
    assert_eq!(cost(&mem), (vec![], 0));
}

/// A block that the range covers in part is split as far as the range goes.
#[test]
fn a_large_block_is_split_where_it_is_covered() {
    for (from, size) in [
        (4 * GIB, 3 * PAGE),
        (4 * GIB + 5 * MIB2 - PAGE, 2 * PAGE),
        (5 * GIB - PAGE, PAGE),
        (5 * GIB - PAGE, 2 * PAGE),
        (4 * GIB + MIB2, GIB),
    ] {
        let mem = Plain::new(PAGE);
        let (tree, mut cpu) = tree(&mem, MODERN);
        map(&tree, &mut cpu, (4 * GIB, 8 * GIB), 2 * GIB, ATTRS);
        let page = |level| mem.alloc(level);
        let done = tree.split(
            &mut cpu,
            &Split {
                ipa: Ipa::new(from),
                size,
                to: Level::L3,
            },
            page,
            &mut all(),
        );
        assert_eq!(done, Ok(Ipa::new(from + size)), "{from:#x}");
        let end = from + size;
        for block in 4 * 512..6 * 512 {
            let at = block * MIB2;
            let covered = at < end && at + MIB2 > from;
            // The large block that is not touched at all stays whole.
            let large = at & !(GIB - 1);
            let level = if covered {
                Level::L3
            } else if large < end && large + GIB > from {
                Level::L2
            } else {
                Level::L1
            };
            maps(&tree, at, at + 4 * GIB, level);
        }
        sound(&tree);
    }
}

/// A range that begins inside an entry with nothing in it goes on at the end of that
/// entry, and meets the blocks that come next.
#[test]
fn a_split_that_begins_in_nothing() {
    let mem = Plain::new(PAGE);
    let (tree, mut cpu) = tree(&mem, MODERN);
    map(&tree, &mut cpu, (GIB, GIB), 2 * MIB2, ATTRS);
    let split = Split {
        ipa: Ipa::new(GIB - PAGE),
        size: PAGE + 2 * MIB2,
        to: Level::L3,
    };
    let done = tree.split(&mut cpu, &split, |level| mem.alloc(level), &mut all());
    assert_eq!(done, Ok(Ipa::new(GIB + 2 * MIB2)));
    maps(&tree, GIB, GIB, Level::L3);
    maps(&tree, GIB + MIB2, GIB + MIB2, Level::L3);
    sound(&tree);
}

/// When pages end, what was built is in use, and it goes on from there.
#[test]
fn a_split_that_runs_out_of_pages() {
    for given in [0u64, 1, 2, 100, 513, 514] {
        let mem = Plain::new(PAGE);
        let (tree, mut cpu) = tree(&mem, MODERN);
        map(&tree, &mut cpu, (4 * GIB, 8 * GIB), 2 * GIB, ATTRS);
        let (mut at, mut calls) = (4 * GIB, 0);
        while at < 6 * GIB {
            // Little first, then whatever it takes.
            let mut left = if calls == 0 { given } else { 10_000 };
            let page = |level| {
                left = u64::checked_sub(left, 1)?;
                mem.alloc(level)
            };
            mem.forget();
            let rest = 6 * GIB - at;
            let done = tree.split(
                &mut cpu,
                &Split {
                    ipa: Ipa::new(at),
                    size: rest,
                    to: Level::L3,
                },
                page,
                &mut all(),
            );
            if calls == 0 {
                let stopped = done.expect_err("more pages wanted");
                assert_eq!(stopped.why, Error::NoMem);
                // One page is the directory, the others are full of pages.
                let directories = given.div_ceil(513);
                let next = 4 * GIB + (given - directories) * MIB2;
                assert_eq!(stopped.next, Ipa::new(next), "{given}");
                if given == 0 {
                    let changes = mem.changes();
                    assert!(changes.is_empty(), "{changes:?}");
                }
                assert_eq!(mem.live() as u64, given);
                at = next;
            } else {
                assert_eq!(done, Ok(Ipa::new(6 * GIB)), "{given}");
                at = 6 * GIB;
            }
            sound(&tree);
            for block in 4 * 512..6 * 512 {
                let here = block * MIB2 + 7 * PAGE;
                let want = Some((Pa::new(here + 4 * GIB), ATTRS));
                assert_eq!(tree.translate(Ipa::new(here)), want, "{given}");
                if here < at {
                    maps(&tree, here, here + 4 * GIB, Level::L3);
                }
            }
            calls += 1;
        }
        assert_eq!(mem.live(), 2 * 513);
    }
}

/// The same when the budget ends, which is no error.
#[test]
fn a_split_in_pieces() {
    for units in [100u64, 1024, 5000] {
        let mem = Plain::new(PAGE);
        let (tree, mut cpu) = tree(&mem, MODERN);
        map(&tree, &mut cpu, (4 * GIB, 8 * GIB), 2 * GIB, ATTRS);
        let (mut at, mut calls) = (4 * GIB, 0u64);
        while at < 6 * GIB {
            let page = |level| mem.alloc(level);
            let mut budget = Budget::entries(units);
            mem.forget();
            let rest = 6 * GIB - at;
            let done = tree.split(
                &mut cpu,
                &Split {
                    ipa: Ipa::new(at),
                    size: rest,
                    to: Level::L3,
                },
                page,
                &mut budget,
            );
            let next = done.expect("pages enough").get();
            assert!(next >= at && (next > at || calls % 513 == 0), "{units}");
            assert!(next == 6 * GIB || budget.left() == 0, "{units}");
            // At most one table more than there was budget for.
            let most = 4 * (units + 2 * 513);
            assert!(mem.visits() < most, "{units}: {}", mem.visits());
            at = next;
            calls += 1;
            assert!(calls < 3000, "no end");
            if calls < 5 || at == 6 * GIB {
                sound(&tree);
            }
        }
        assert!(calls >= 2 * 513 * 512 / (units + 513), "{units}: {calls}");
        for block in 4 * 512..6 * 512 {
            let here = block * MIB2 + 7 * PAGE;
            maps(&tree, here, here + 4 * GIB, Level::L3);
        }
        assert_eq!(mem.live(), 2 * 513);
    }
}

/// Somebody changes one of two blocks meanwhile: both are split.
#[test]
fn a_split_that_loses_its_second_block() {
    for lost in [0u64, 1] {
        let mem = Plain::new(PAGE);
        let (tree, mut cpu) = tree(&mem, MODERN);
        let tracked = Attrs {
            dirty: Dirty::Track,
            ..ATTRS
        };
        map(&tree, &mut cpu, (0, 0), 2 * MIB2, tracked);
        let directory = match tree
            .lookup_to(Ipa::new(0), Level::L1)
            .expect("inside")
            .entry
        {
            Entry::Table(table) => table.get(),
            other => panic!("{other:?}"),
        };
        let mut once = true;
        mem.interfere(move |mem, pa| {
            if once && pa == directory + lost * 8 {
                once = false;
                mem.poke(pa, mem.word(pa) | 1 << 7);
            }
        });
        let page = |level| mem.alloc(level);
        let done = tree.split(
            &mut cpu,
            &Split {
                ipa: Ipa::new(0),
                size: 2 * MIB2,
                to: Level::L3,
            },
            page,
            &mut all(),
        );
        mem.undisturbed();
        // What was built for it goes back, and it is built again.
        assert_eq!(done, Ok(Ipa::new(2 * MIB2)));
        assert_eq!(mem.live(), 3);
        let marked = tree
            .translate(Ipa::new(lost * MIB2 + PAGE))
            .expect("mapped")
            .1;
        assert!(marked.is_dirty());
        sound(&tree);
    }
}

/// The access flag of a block is that of any page, its hint is gone, and each
/// page is invalidated where there are no ranges.
#[test]
fn a_fold_keeps_what_any_page_says() {
    for (young, hinted) in [
        (None, false),
        (Some(0u64), false),
        (Some(1), false),
        (Some(511), false),
        (None, true),
        (Some(40), true),
    ] {
        for tlb_range in [false, true] {
            let features = Features {
                tlb_range,
                ..MODERN
            };
            let mem = Plain::new(PAGE);
            let (mut tree, mut cpu) = tree(&mem, features);
            let old = ATTRS.age(Age::Old);
            pages(&tree, &mut cpu, (MIB2, MIB2), 512, old);
            if let Some(page) = young {
                tree.mark_young(&mut cpu, Ipa::new(MIB2 + page * PAGE))
                    .expect("mapped");
            }
            if hinted {
                for page in [0, 16, 32, 496] {
                    tree.set_contiguous(&mut cpu, Ipa::new(MIB2 + page * PAGE))
                        .expect("alike");
                }
            }
            mem.forget();
            tree.fold(&mut cpu, Ipa::new(MIB2 + 9), Level::L2)
                .expect("alike");
            let (mut tlbis, broken) = cost(&mem);
            assert_eq!(broken, 1);
            assert_eq!(tlbis.pop(), Some(TlbiKind::Vmalle1is));
            if tlb_range {
                assert_eq!(tlbis, [TlbiKind::Ripas2e1is]);
            } else {
                assert_eq!(tlbis, [TlbiKind::Ipas2e1is; 512]);
            }
            let age = if young.is_some() {
                Age::Young
            } else {
                Age::Old
            };
            let found = tree.lookup(Ipa::new(MIB2)).expect("inside");
            let leaf = Entry::Leaf {
                pa: Pa::new(MIB2),
                attrs: ATTRS.age(age),
                contiguous: false,
            };
            assert_eq!((found.level, found.entry), (Level::L2, leaf));
            sound(&tree);
        }
    }
}

/// A table of one annotation folds into it, with one TLBI.
#[test]
fn a_fold_of_annotations() {
    let mem = Plain::new(PAGE);
    let (mut tree, mut cpu) = tree(&mem, MODERN);
    let note = |bits| Annotation::new(bits).expect("bits 1:0 are zero");
    let split = Partial::Split;
    for (ipa, size, bits) in [(0, GIB, 0x40), (PAGE, PAGE, 0x80)] {
        let (ipa, note) = (Ipa::new(ipa), note(bits));
        tree.unmap(
            &mut cpu,
            &Unmap::new(ipa, size).partial(split).leaving(note),
            &mut Ignore,
            &mut all(),
        )
        .expect("annotated");
    }
    let level = Level::L3;
    let differ = tree.fold(&mut cpu, Ipa::new(0), Level::L2);
    assert_eq!(differ, Err(Error::Mismatch { level }));
    let ipa = Ipa::new(PAGE);
    tree.unmap(
        &mut cpu,
        &Unmap::new(ipa, PAGE).partial(split).leaving(note(0x40)),
        &mut Ignore,
        &mut all(),
    )
    .expect("annotated");
    mem.forget();
    tree.fold(&mut cpu, Ipa::new(0), Level::L2).expect("alike");
    assert_eq!(cost(&mem), (ONE_SYNC.to_vec(), 1));
    sound(&tree);
    tree.fold(&mut cpu, Ipa::new(0), Level::L1).expect("alike");
    let found = tree.lookup(ipa).expect("inside");
    assert_eq!(found.entry, Entry::Invalid(note(0x40)));
    assert_eq!(found.level, Level::L1);
    assert_eq!(mem.live(), 0);
}

/// One entry says what all said: a page that hardware may make writable is not like one
/// that it may not, and an annotation's bits are its caller's, to the last.
#[test]
fn a_fold_loses_no_bit() {
    let level = Level::L3;
    for other in [
        ATTRS.dirty(Dirty::Track),
        ATTRS.soft(7),
        ATTRS.execute(Execute::All),
        ATTRS.access(Access::ReadWrite),
    ] {
        for page in [0, 300, 511] {
            let mem = Plain::new(PAGE);
            let (mut tree, mut cpu) = tree(&mem, MODERN);
            pages(&tree, &mut cpu, (0, GIB), page, ATTRS);
            let at = page * PAGE;
            pages(&tree, &mut cpu, (at, GIB + at), 1, other);
            let next = at + PAGE;
            pages(&tree, &mut cpu, (next, GIB + next), 511 - page, ATTRS);
            mem.forget();
            let folded = tree.fold(&mut cpu, Ipa::new(0), Level::L2);
            assert_eq!(folded, Err(Error::Mismatch { level }), "{other:?}");
            assert_eq!(mem.changes(), []);
        }
    }
    let bits = [2, 3, 7, 8, 10, 11, 30, 47, 51, 52, 53, 54, 55, 58, 59, 61];
    for bit in bits.map(|bit| 1u64 << bit) {
        let mem = Plain::new(PAGE);
        let (mut tree, mut cpu) = tree(&mem, MODERN);
        for (size, raw) in [(MIB2, 0x40), (PAGE, 0x40 ^ bit)] {
            let note = Annotation::new(raw).expect("bits 1:0 are zero");
            let range = Unmap::new(Ipa::new(0), size).leaving(note);
            tree.unmap(&mut cpu, &range, &mut Ignore, &mut all())
                .expect("annotated");
        }
        let folded = tree.fold(&mut cpu, Ipa::new(0), Level::L2);
        assert_eq!(folded, Err(Error::Mismatch { level }), "{bit:#x}");
    }
}

/// Hardware that marks pages accessed, and not dirty, marks one that the fold has read
/// already: the block is as young as that page.
#[test]
fn a_fold_keeps_an_age_that_came_late() {
    const AF: u64 = 1 << 10;
    let features = Features {
        hw_dirty: false,
        ..MODERN
    };
    let mem = Plain::new(PAGE);
    let (mut tree, mut cpu) = tree(&mem, features);
    pages(&tree, &mut cpu, (0, GIB), 512, ATTRS.age(Age::Old));
    let entry = tree.lookup_to(Ipa::new(0), Level::L2).expect("inside");
    let Entry::Table(table) = entry.entry else {
        panic!("{entry:?}");
    };
    let (first, last) = (table.get(), table.get() + 511 * 8);
    mem.interfere_with_reads(move |mem, at| {
        if at == last {
            mem.poke(first, mem.word(first) | AF);
        }
    });
    tree.fold(&mut cpu, Ipa::new(0), Level::L2).expect("alike");
    mem.undisturbed();
    let (_, attrs) = tree.translate(Ipa::new(0)).expect("mapped");
    assert_eq!(attrs.age, Age::Young);
}

/// A member's hint, and how many around it have it.
fn hints(tree: &Stage2<&Plain>, from: u64, step: u64, count: u64) -> Vec<bool> {
    let hint = |index: u64| {
        let found = tree.lookup(Ipa::new(from + index * step)).expect("inside");
        matches!(
            found.entry,
            Entry::Leaf {
                contiguous: true,
                ..
            }
        )
    };
    (0..count).map(hint).collect()
}

/// Looking for what was used, and forgetting it, leaves groups what they are,
/// and counts each leaf once, wherever in its table it stands.
#[test]
fn a_group_stays_when_its_age_is_asked() {
    let mem = Plain::new(PAGE);
    let (tree, mut cpu) = tree(&mem, MODERN);
    let base = 32 * PAGE;
    pages(&tree, &mut cpu, (base, GIB + base), 16, ATTRS);
    pages(&tree, &mut cpu, (base + 20 * PAGE, GIB), 3, ATTRS);
    let (ipa, size) = (Ipa::new(base), 32 * PAGE);
    tree.set_contiguous(&mut cpu, ipa).expect("alike");
    let young = tree.count_young(&mut cpu, ipa, size, &mut all());
    assert_eq!(young, Ok((Ipa::new(base + size), 19)));
    let cleared = tree.clear_young(&mut cpu, Sweep::new(ipa, size), &mut all());
    assert_eq!(cleared, Ok((Ipa::new(base + size), 19)));
    assert_eq!(hints(&tree, base, PAGE, 16), [true; 16]);
    let young = tree.count_young(&mut cpu, ipa, size, &mut all());
    assert_eq!(young, Ok((Ipa::new(base + size), 0)));
}

/// A group that is removed whole is no block to be split or refused.
#[test]
fn a_group_is_removed_whole() {
    for partial in [Partial::Refuse, Partial::Split, Partial::DropWhole] {
        let mem = Plain::new(PAGE);
        let (mut tree, mut cpu) = tree(&mem, MODERN);
        pages(&tree, &mut cpu, (0, GIB), 17, ATTRS);
        tree.set_contiguous(&mut cpu, Ipa::new(0)).expect("alike");
        let mut told = 0;
        let mut sink = |_: RemovedLeaf| told += 1;
        let (ipa, size) = (Ipa::new(0), 16 * PAGE);
        let done = tree.unmap(
            &mut cpu,
            &Unmap::new(ipa, size).partial(partial),
            &mut sink,
            &mut all(),
        );
        assert_eq!((done, told), (Ok(Ipa::new(size)), 16));
    }
}

/// Blocks that are split together end before a group: it loses its hint first, and
/// whole, wherever in it the range ends.
#[test]
fn a_split_does_not_run_into_a_group() {
    for bbm2 in [false, true] {
        let features = Features { bbm2, ..MODERN };
        let mem = Plain::new(PAGE);
        let (tree, mut cpu) = tree(&mem, features);
        let group = 16 * MIB2;
        let at_most = Leaves::AtMost(Level::L2);
        let blocks = Map::new(Ipa::new(0), Pa::new(GIB), 2 * group, ATTRS).leaves(at_most);
        tree.map(&mut cpu, &blocks, &mut all()).expect("mapped");
        tree.set_contiguous(&mut cpu, Ipa::new(group))
            .expect("alike");
        assert_eq!(hints(&tree, group, MIB2, 16), [true; 16]);
        // The block before it, and two of its members.
        let split = Split {
            ipa: Ipa::new(group - MIB2),
            size: 3 * MIB2,
            to: Level::L3,
        };
        let done = tree.split(&mut cpu, &split, |level| mem.alloc(level), &mut all());
        assert_eq!(done, Ok(Ipa::new(group + 2 * MIB2)));
        assert_eq!(hints(&tree, group, MIB2, 16), [false; 16]);
        for member in 0..16 {
            let level = if member < 2 { Level::L3 } else { Level::L2 };
            let at = group + member * MIB2;
            maps(&tree, at, GIB + at, level);
        }
        sound(&tree);
    }
}

/// A page that nobody is told of takes a short way, and a member of a group does not: the
/// others would go on with a hint that is no longer true.
#[test]
fn a_page_alone_breaks_its_group() {
    for member in [0, 3, 15] {
        let mem = Plain::new(PAGE);
        let (mut tree, mut cpu) = tree(&mem, MODERN);
        pages(&tree, &mut cpu, (0, GIB), 17, ATTRS);
        tree.set_contiguous(&mut cpu, Ipa::new(0)).expect("alike");
        let page = Unmap::new(Ipa::new(member * PAGE), PAGE);
        tree.unmap(&mut cpu, &page, &mut Ignore, &mut all())
            .expect("mapped");
        assert_eq!(hints(&tree, 0, PAGE, 16), [false; 16]);
        assert_eq!(tree.translate(page.ipa), None);
        sound(&tree);
    }
}

/// Set on members that differ in their access flag at most, taken off whole
/// before one of them changes, and neither twice.
#[test]
fn a_group_is_joined_and_broken_whole() {
    let features = Features {
        tlb_range: false,
        ..MODERN
    };
    let mem = Plain::new(PAGE);
    let (tree, mut cpu) = tree(&mem, features);
    let base = 32 * PAGE;
    pages(&tree, &mut cpu, (base - PAGE, GIB + base - PAGE), 18, ATTRS);
    pages(&tree, &mut cpu, (0, GIB), 1, ATTRS);
    // Some were used, others not.
    let ipa = Ipa::new(base + 5 * PAGE);
    tree.clear_young(&mut cpu, Sweep::new(ipa, 4 * PAGE), &mut all())
        .expect("mapped");
    mem.forget();
    let member = Ipa::new(base + 7 * PAGE + 5);
    tree.set_contiguous(&mut cpu, member).expect("alike");
    let each = {
        let mut each = vec![TlbiKind::Ipas2e1is; 16];
        each.push(TlbiKind::Vmalle1is);
        each
    };
    assert_eq!(cost(&mem), (each.clone(), 16));
    let mut want = vec![true; 18];
    (want[0], want[17]) = (false, false);
    assert_eq!(hints(&tree, base - PAGE, PAGE, 18), want);
    let age = |page: u64| {
        tree.translate(Ipa::new(base + page * PAGE))
            .expect("mapped")
            .1
            .age
    };
    let old: Vec<u64> = (0..16).filter(|page| age(*page) == Age::Old).collect();
    assert_eq!(old, [5, 6, 7, 8]);
    tree.set_contiguous(&mut cpu, member)
        .expect("joined already");
    assert_eq!(cost(&mem), (vec![], 0));
    // The access flag is each one's own: no break for it.
    let permissions = Permissions {
        access: Access::Read,
        execute: Execute::El1,
    };
    tree.relax(&mut cpu, member, permissions).expect("mapped");
    let local = vec![TlbiKind::Ipas2e1, TlbiKind::Vmalle1];
    assert_eq!(cost(&mem), (local.clone(), 0));
    tree.mark_young(&mut cpu, Ipa::new(base + 6 * PAGE))
        .expect("mapped");
    assert_eq!(cost(&mem), (vec![], 0));
    assert_eq!((age(5), age(6), age(7)), (Age::Old, Age::Young, Age::Young));
    assert_eq!(hints(&tree, base, PAGE, 16), [true; 16]);
    // Permissions are the group's.
    let more = Permissions {
        access: Access::ReadWrite,
        ..permissions
    };
    tree.relax(&mut cpu, member, more).expect("mapped");
    let mut both = each.clone();
    both.extend(local);
    assert_eq!(cost(&mem), (both, 16));
    assert_eq!(hints(&tree, base, PAGE, 16), [false; 16]);
    let access = |page: u64| {
        tree.translate(Ipa::new(base + page * PAGE))
            .expect("mapped")
            .1
            .access
    };
    assert_eq!((access(6), access(7)), (Access::Read, Access::ReadWrite));
    // Now they differ.
    let level = Level::L3;
    let differ = Err(Error::Mismatch { level });
    assert_eq!(tree.set_contiguous(&mut cpu, member), differ);
    tree.clear_contiguous(&mut cpu, member)
        .expect("broken already");
    assert_eq!(cost(&mem), (vec![], 0));
    sound(&tree);
}

/// A group needs adjacent and aligned output, and all of its members.
#[test]
fn what_is_no_group() {
    let mem = Plain::new(PAGE);
    let (tree, mut cpu) = tree(&mem, MODERN);
    let level = Level::L3;
    let mut join = |pas: &dyn Fn(u64) -> Option<u64>, table: u64| {
        let base = table * MIB2;
        for page in 0..16 {
            if let Some(pa) = pas(page) {
                pages(&tree, &mut cpu, (base + page * PAGE, pa), 1, ATTRS);
            }
        }
        mem.forget();
        let done = tree.set_contiguous(&mut cpu, Ipa::new(base + 3 * PAGE));
        assert_eq!(cost(&mem).1, if done.is_ok() { 16 } else { 0 });
        done
    };
    let differ = Err(Error::Mismatch { level });
    assert_eq!(join(&|page| Some(GIB + page * PAGE), 0), Ok(()));
    // Adjacent, and not aligned; aligned, and one elsewhere; all in one place.
    assert_eq!(join(&|page| Some(GIB + (page + 1) * PAGE), 1), differ);
    assert_eq!(join(&|page| Some(GIB + (page + 8) * PAGE), 2), differ);
    let one = |page| Some(GIB + page * PAGE + if page == 15 { GIB } else { 0 });
    assert_eq!(join(&one, 3), differ);
    assert_eq!(join(&|_| Some(GIB), 4), differ);
    // The last, or the first, is missing.
    assert_eq!(
        join(&|page| (page < 15).then_some(GIB + page * PAGE), 5),
        differ
    );
    let missing = Err(Error::Missing { level });
    assert_eq!(
        join(&|page| (page > 0).then_some(GIB + page * PAGE), 6),
        missing
    );
}

/// A root smaller than a group has none; one as large has one.
#[test]
fn groups_in_a_root() {
    for (ipa_bits, joined) in [(33u8, false), (34, true), (35, true)] {
        let geometry = geometry(ipa_bits, MODERN);
        let mem = Plain::new(PAGE);
        let root = mem.root(geometry.root_align());
        let tree = Stage2::new(geometry, root, Vmid::new(3), &mem).expect("a root");
        let mut cpu = mem.cpu(tree.regs());
        let size = 1u64 << ipa_bits;
        map(&tree, &mut cpu, (0, 1 << 40), size, ATTRS);
        let done = tree.set_contiguous(&mut cpu, Ipa::new(5 * GIB));
        let level = Level::L1;
        if joined {
            assert_eq!(done, Ok(()));
            let mut want = vec![true; 16];
            want.resize((size / GIB) as usize, false);
            assert_eq!(hints(&tree, 0, GIB, size / GIB), want);
            tree.clear_contiguous(&mut cpu, Ipa::new(0))
                .expect("joined");
        } else {
            assert_eq!(done, Err(Error::BlockLevel { level }));
        }
        assert!(!hints(&tree, 0, GIB, size / GIB).contains(&true));
    }
}

/// The flag is set, once, without a TLBI, and nothing else is changed.
#[test]
fn a_leaf_is_marked_young() {
    let mem = Plain::new(PAGE);
    let (tree, mut cpu) = tree(&mem, MODERN);
    let old = ATTRS.age(Age::Old);
    for (ipa, size) in [(0, PAGE), (MIB2, MIB2), (GIB, GIB)] {
        map(&tree, &mut cpu, (ipa, 4 * GIB + ipa), size, old);
        let before = tree.lookup(Ipa::new(ipa)).expect("inside").raw;
        mem.forget();
        let at = Ipa::new(ipa + size - 1);
        tree.mark_young(&mut cpu, at).expect("mapped");
        assert_eq!(cost(&mem), (vec![], 0));
        let after = tree.lookup(at).expect("inside").raw;
        assert_eq!(after ^ before, 1 << 10);
        tree.mark_young(&mut cpu, at).expect("mapped");
        assert_eq!(tree.lookup(at).map(|found| found.raw), Ok(after));
    }
}

/// What hardware marked dirty is told with its size, once.
#[test]
fn dirty_leaves_are_told_with_their_sizes() {
    let mem = Plain::new(PAGE);
    let (tree, mut cpu) = tree(&mem, MODERN);
    let tracked = Attrs {
        dirty: Dirty::Track,
        access: Access::ReadWrite,
        ..ATTRS
    };
    map(&tree, &mut cpu, (0, 0), PAGE, tracked);
    map(&tree, &mut cpu, (PAGE, PAGE), PAGE, ATTRS);
    map(
        &tree,
        &mut cpu,
        (2 * PAGE, 2 * PAGE),
        PAGE,
        ATTRS.access(Access::ReadWrite),
    );
    map(&tree, &mut cpu, (MIB2, MIB2), MIB2, tracked);
    map(&tree, &mut cpu, (GIB, GIB), GIB, tracked);
    let mut harvest = || {
        let mut told = Vec::new();
        let now = Flush::Now;
        let size = 2 * GIB;
        tree.harvest_dirty(
            &mut cpu,
            Sweep {
                flush: now,
                ..Sweep::new(Ipa::new(0), size)
            },
            &mut all(),
            |ipa, size| {
                told.push((ipa.get(), size));
            },
        )
        .expect("mapped");
        told
    };
    assert_eq!(harvest(), [(0, PAGE), (MIB2, MIB2), (GIB, GIB)]);
    assert_eq!(harvest(), []);
    let attrs = |ipa: u64| tree.translate(Ipa::new(ipa)).expect("mapped").1;
    // Read-only and tracked now; what was only readable stays as it is.
    let clean = Attrs {
        dirty: Dirty::Track,
        ..ATTRS
    };
    assert_eq!([0, 2 * PAGE, MIB2, GIB].map(attrs), [clean; 4]);
    assert_eq!(attrs(PAGE), ATTRS);
}

/// An annotation that looks like cacheable memory is no memory.
#[test]
fn a_committed_annotation_is_not_cleaned() {
    let features = Features {
        fwb: false,
        dic: false,
        ..MODERN
    };
    let mem = Plain::new(PAGE);
    let (tree, mut cpu) = tree(&mem, features);
    let attrs = ATTRS;
    map(&tree, &mut cpu, (0, GIB), PAGE, attrs);
    for bits in [0, 0x3c, 0x7fc, 0x7f_ffff_f7fc] {
        let note = Annotation::new(bits).expect("bits 1:0 are zero");
        let frozen = tree.freeze(Ipa::new(0), Level::L3).expect("free");
        mem.forget();
        frozen
            .commit(&mut cpu, Change::Invalid(note))
            .expect("committed");
        let cleaned = |did: &Did| matches!(did, Did::Cache(CacheOp::CleanInvalidateData { .. }));
        assert!(!mem.changes().iter().any(cleaned));
    }
}

/// What is mapped in a subtree is there when it is linked, wherever it lies.
#[test]
fn a_subtree_is_what_was_mapped_in_it() {
    for level in [Level::L1, Level::L2] {
        let mem = Plain::new(PAGE);
        let (tree, mut cpu) = tree(&mem, MODERN);
        let base = 4 * GIB;
        let span = tree.geometry().span(level);
        let mut built = tree.subtree(Ipa::new(base), level).expect("a page");
        let places = [0, 5 * span / 512, span / 2 + PAGE, span - PAGE];
        for offset in places {
            let ipa = Ipa::new(base + offset);
            let one = Map::new(ipa, Pa::new(8 * GIB + offset), PAGE, ATTRS);
            built.map(&mut cpu, &one, &mut all()).expect("mapped");
        }
        mem.forget();
        assert!(built.link(&mut cpu, pgtable::Over::Nothing).is_ok());
        let changes = mem.changes();
        // The table above it is made, too; then one entry, one barrier.
        assert_eq!(changes.last(), Some(&Did::Barrier(Barrier::DsbIshst)));
        for offset in places {
            maps(&tree, base + offset + 9, 8 * GIB + offset + 9, Level::L3);
        }
        assert_eq!(tree.translate(Ipa::new(base + PAGE)), None);
        sound(&tree);
    }
}

/// In six places of 2 MiB: nothing (0), a note (1), a block (2), a table (3), and
/// a block of a contiguous group (40).
fn furnish(tree: &mut Stage2<&Plain>, cpu: &mut Cpu<'_>) {
    annotate_block(tree, cpu, 1);
    map(tree, cpu, (2 * MIB2, 0), MIB2, ATTRS);
    pages(tree, cpu, (3 * MIB2, 0), 1, ATTRS);
    map(tree, cpu, (32 * MIB2, 32 * MIB2), 32 * MIB2, ATTRS);
    tree.set_contiguous(cpu, Ipa::new(40 * MIB2))
        .expect("alike");
}

/// Leaves a note over 2 MiB, whatever is there.
fn annotate_block(tree: &mut Stage2<&Plain>, cpu: &mut Cpu<'_>, index: u64) {
    let note = Annotation::new(0x70).expect("bits 1:0 are zero");
    let range = Unmap::new(Ipa::new(index * MIB2), MIB2).leaving(note);
    tree.unmap(cpu, &range, &mut Ignore, &mut all())
        .expect("annotated");
}

/// Operations and addresses of the TLBIs since the last look.
fn tlbis(mem: &Plain) -> Vec<(TlbiKind, u64)> {
    let tlbi = |did| match did {
        Did::Tlbi(op) => Some((op.kind(), op.operand() & 0xff_ffff_ffff)),
        _ => None,
    };
    mem.changes().into_iter().filter_map(tlbi).collect()
}

/// A subtree goes over what it may go over, and breaks what was valid.
#[test]
fn what_a_subtree_is_linked_over() {
    let mem = Plain::new(PAGE);
    let (mut tree, mut cpu) = tree(&mem, MODERN);
    furnish(&mut tree, &mut cpu);
    let level = Level::L2;
    let exists = Err(Error::Exists { level });
    let overs = [Over::Nothing, Over::Invalid, Over::Anything];
    for (index, results) in [
        (0u64, [Ok(()); 3]),
        (1, [exists, Ok(()), Ok(())]),
        (2, [exists, exists, Ok(())]),
        (3, [exists; 3]),
        (40, [exists, exists, Ok(())]),
    ] {
        for (over, want) in overs.into_iter().zip(results) {
            let at = Ipa::new(index * MIB2);
            let before = tree.lookup_to(at, level).expect("inside");
            let built = tree.subtree(at, level).expect("a page");
            mem.forget();
            let done = built.link(&mut cpu, over).map_err(|(built, why)| {
                built.discard(&mut all()).ok().expect("no bound");
                why
            });
            assert_eq!(done, want, "{index} {over:?}");
            let tlbis = tlbis(&mem);
            if done.is_err() {
                assert_eq!(tree.lookup_to(at, level), Ok(before));
                assert_eq!(tlbis, []);
                continue;
            }
            if index == 40 {
                // A member leaves its group; the others stay what they were.
                assert!(!hints(&tree, 32 * MIB2, MIB2, 16).contains(&true));
                maps(&tree, 41 * MIB2, 41 * MIB2, level);
            } else if before.raw & 1 == 1 {
                let one = (TlbiKind::Ipas2e1is, at.get() >> 12);
                assert_eq!(tlbis, [one, (TlbiKind::Vmalle1is, 0)]);
            } else {
                assert_eq!(tlbis, []);
            }
            let found = tree.lookup_to(at, level).expect("inside");
            assert!(matches!(found.entry, Entry::Table(_)), "{found:?}");
            sound(&tree);
            // And away again, for the next: an empty table folds.
            let range = Unmap::new(at, MIB2).partial(Partial::Refuse);
            tree.unmap(&mut cpu, &range, &mut Ignore, &mut all())
                .expect("unmapped");
            if index == 1 {
                annotate_block(&mut tree, &mut cpu, 1);
            }
        }
    }
}

/// The end of a tree with leaves and notes in its very root.
#[test]
fn a_teardown_tells_leaves_with_their_addresses() {
    let mem = Plain::new(PAGE);
    let (mut tree, mut cpu) = tree(&mem, MODERN);
    map(&tree, &mut cpu, (3 * GIB, 8 * GIB), GIB, ATTRS);
    pages(&tree, &mut cpu, (5 * GIB + 7 * PAGE, GIB), 1, ATTRS);
    map(&tree, &mut cpu, (7 * GIB + MIB2, MIB2), MIB2, ATTRS);
    for (ipa, size) in [(6 * GIB, GIB), (7 * GIB, MIB2)] {
        let note = Annotation::new(0x70).expect("bits 1:0 are zero");
        let (ipa, split) = (Ipa::new(ipa), Partial::Split);
        tree.unmap(
            &mut cpu,
            &Unmap::new(ipa, size).partial(split).leaving(note),
            &mut Ignore,
            &mut all(),
        )
        .expect("annotated");
    }
    let mut told = Vec::new();
    let mut sink = |leaf: pgtable::RemovedLeaf| {
        told.push((leaf.ipa().get(), leaf.pa().get(), leaf.size()));
    };
    let end = tree.teardown(&mut cpu, Ipa::new(0), &mut sink, &mut all());
    assert_eq!(end, Ipa::new(1 << 39));
    let want = [
        (3 * GIB, 8 * GIB, GIB),
        (5 * GIB + 7 * PAGE, GIB, PAGE),
        (7 * GIB + MIB2, MIB2, MIB2),
    ];
    assert_eq!(told, want);
    assert_eq!(mem.live(), 0);
    assert_eq!(mem.count(tree.root()), 0);
    assert!((0..512).all(|index| mem.word(tree.root().get() + index * 8) == 0));
}

/// Blocks of 512 GiB, where LPA2 has them.
#[test]
fn the_largest_leaves_of_all() {
    let size = 512 * GIB;
    let mem = Plain::new(PAGE);
    let mut config = Stage2Config::new(Granule::K4, 48, 52);
    config.lpa2 = true;
    config.features = MODERN;
    let geometry = config.validate().expect("legal");
    let root = mem.root(geometry.root_align());
    let tree = Stage2::new(geometry, root, Vmid::new(3), &mem).expect("a root");
    let mut cpu = mem.cpu(tree.regs());
    map(&tree, &mut cpu, (size, 2 * size), size, ATTRS);
    maps(&tree, size + 5, 2 * size + 5, Level::L0);
    let at_most =
        Map::new(Ipa::new(3 * size), Pa::new(0), size, ATTRS).leaves(Leaves::AtMost(Level::L1));
    tree.map(&mut cpu, &at_most, &mut all()).expect("mapped");
    maps(&tree, 3 * size + 5, 5, Level::L1);
    let mut config = pgtable::El2Config::new(Granule::K4, 48, 52);
    config.lpa2 = true;
    let geometry = config.validate().expect("legal");
    let mut el2 = pgtable::El2Map::new(geometry, mem.root(PAGE), &mem).expect("a root");
    let (va, pa) = (pgtable::Va::new(size), Pa::new(2 * size));
    let data = El2Attrs::DATA;
    let range = El2Range::new(va, pa, size, data);
    el2.map(&mut cpu, &range).expect("mapped");
    let want = Some((Pa::new(2 * size + 5), data, Level::L0));
    assert_eq!(el2.translate(pgtable::Va::new(size + 5)), want);
}

/// A hole before a block hides nothing, and no budget is still one unit.
#[test]
fn a_split_goes_over_holes() {
    let mem = Plain::new(PAGE);
    let (tree, mut cpu) = tree(&mem, MODERN);
    for block in [1u64, 5, 511, 512, 1030] {
        map(&tree, &mut cpu, (block * MIB2, block * MIB2), MIB2, ATTRS);
    }
    let page = |level| mem.alloc(level);
    let (from, size) = (Ipa::new(0), 3 * GIB);
    let done = tree.split(
        &mut cpu,
        &Split {
            ipa: from,
            size,
            to: Level::L3,
        },
        page,
        &mut all(),
    );
    assert_eq!(done, Ok(Ipa::new(3 * GIB)));
    for block in [1u64, 5, 511, 512, 1030] {
        maps(&tree, block * MIB2 + 9, block * MIB2 + 9, Level::L3);
    }
    sound(&tree);
    map(&tree, &mut cpu, (4 * GIB, 4 * GIB), 2 * MIB2, ATTRS);
    let mut budget = Budget::entries(0);
    let at = Ipa::new(4 * GIB);
    let done = tree.split(
        &mut cpu,
        &Split {
            ipa: at,
            size: 2 * MIB2,
            to: Level::L3,
        },
        page,
        &mut budget,
    );
    assert_eq!(done, Ok(Ipa::new(4 * GIB + MIB2)));
    maps(&tree, 4 * GIB, 4 * GIB, Level::L3);
}

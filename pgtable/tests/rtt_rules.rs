//! Rules of the RTT operations that random sequences seldom meet: refused
//! arguments, data that is assigned and not mapped, the end of a realm, and
//! what exactly is done to caches and TLBs.

mod plain;

use pgtable::{
    Access, Attrs, Barrier, Budget, CacheOp, ChangeDestroyed, Error, Execute, Features, Fill,
    Geometry, Granule, HostPages, Ignore, Ipa, Level, Pa, RemovedLeaf, Ripas, Rtt, RttAt, RttError,
    RttState, Stage2Config, Start, TableMem, TlbiKind, Vmid,
};
use plain::{Cpu, Did, Plain};

const PAGE: u64 = 4096;
const MIB2: u64 = 2 << 20;
const GIB: u64 = 1 << 30;

fn geometry(fwb: bool, start: Level) -> Geometry {
    let mut config = Stage2Config::new(Granule::K4, 34, 48);
    config.start = Start::At(start);
    config.features = Features {
        tlb_range: true,
        ttl: true,
        fwb,
        dic: fwb,
        ..Features::default()
    };
    config.validate().expect("legal")
}

/// The lower half is protected.
const HALF: u64 = 1 << 33;

fn realm(mem: &Plain, fwb: bool, start: Level) -> (Rtt<&Plain>, Cpu<'_>) {
    let geometry = geometry(fwb, start);
    let root = mem.root(geometry.root_align());
    let rtt = Rtt::new(geometry, root, Vmid::new(3), mem, Ipa::new(HALF)).expect("a root");
    let cpu = mem.cpu(rtt.regs());
    mem.forget();
    (rtt, cpu)
}

fn all() -> Budget {
    Budget::unlimited()
}

/// Tables down to pages at `ipa`.
fn down(rtt: &mut Rtt<&Plain>, cpu: &mut Cpu<'_>, mem: &Plain, ipa: u64) {
    for (level, span) in [(Level::L2, GIB), (Level::L3, MIB2)] {
        let base = Ipa::new(ipa & !(span - 1));
        let above = Level::new(level.get() - 1).expect("a level");
        if level > rtt.geometry().start()
            && !matches!(state(rtt, base.get(), above).1, RttState::Table(_))
        {
            rtt.create(cpu, RttAt::new(base, level), mem.page())
                .expect("a table");
        }
    }
    mem.forget();
}

fn state(rtt: &Rtt<&Plain>, ipa: u64, level: Level) -> (Level, RttState) {
    let entry = rtt.read(Ipa::new(ipa), level).expect("inside");
    (entry.level, entry.state)
}

fn untouched(mem: &Plain, what: &str) {
    let changes = mem.changes();
    assert!(changes.is_empty(), "{what}: {changes:?}");
}

/// TLBIs, barriers and cache operations.
fn instructions(mem: &Plain) -> Vec<Did> {
    let mut did = mem.changes();
    did.retain(|did| matches!(did, Did::Tlbi(_) | Did::Barrier(_) | Did::Cache(_)));
    did
}

fn clean(pa: u64, size: u64) -> Did {
    let pa = Pa::new(pa);
    Did::Cache(CacheOp::CleanInvalidateData { pa, size })
}

const FETCH: Did = Did::Cache(CacheOp::InvalidateInstructions);

const STORED: Did = Did::Barrier(Barrier::DsbIshst);

#[test]
fn pages_that_cannot_be() {
    for fwb in [false, true] {
        let mem = Plain::new(PAGE);
        let (mut rtt, mut cpu) = realm(&mem, fwb, Level::L1);
        down(&mut rtt, &mut cpu, &mem, 0);
        down(&mut rtt, &mut cpu, &mem, HALF);
        let end = 1u64 << 48;
        for pa in [8, PAGE / 2, PAGE + 8, end, end + PAGE, !(PAGE - 1)] {
            let pa = Pa::new(pa);
            let ipa = Ipa::new(0);
            for fill in [Fill::Known, Fill::Unknown] {
                let done = rtt.data_create(&mut cpu, ipa, pa, fill);
                assert_eq!(done, Err(RttError::Input), "{pa}");
            }
            let next = Ipa::new(MIB2);
            let done = rtt.create(&mut cpu, RttAt::new(next, Level::L3), pa);
            assert_eq!(done, Err(RttError::Input), "{pa}");
            let ns = Ipa::new(HALF);
            let done = rtt.map_unprotected(
                &mut cpu,
                &HostPages {
                    ipa: ns,
                    level: Level::L3,
                    pa,
                    attrs: Attrs::MEMORY,
                    count: 1,
                },
                &mut all(),
            );
            assert_eq!(done, Err(RttError::Input), "{pa}");
        }
        let block = Ipa::new(HALF + MIB2);
        let map = |rtt: &mut Rtt<&Plain>, cpu: &mut Cpu<'_>, ipa, level, pa, count| {
            let pa = Pa::new(pa);
            rtt.map_unprotected(
                cpu,
                &HostPages {
                    ipa,
                    level,
                    pa,
                    attrs: Attrs::MEMORY,
                    count,
                },
                &mut all(),
            )
        };
        for (ipa, level, pa, count) in [
            // A block's address in a block, and no entries at all.
            (block, Level::L2, PAGE, 1),
            (block, Level::L2, MIB2 / 2, 1),
            (block, Level::L2, MIB2, 0),
            // More than there are output addresses, and more than u64 holds.
            (block, Level::L2, end - MIB2, 2),
            (block, Level::L2, 0, usize::MAX),
            (block, Level::L2, 0, 1 << 43),
            // Above the root; the lower half is protected memory's.
            (Ipa::new(HALF), Level::L0, 0, 1),
            (Ipa::new(0), Level::L3, 0, 1),
            (Ipa::new(HALF - MIB2), Level::L2, 0, 1),
            // Not aligned to the level, outside the space.
            (Ipa::new(HALF + PAGE), Level::L2, 0, 1),
            (Ipa::new(2 * HALF), Level::L3, 0, 1),
            (Ipa::new(HALF + 8), Level::L3, 0, 1),
        ] {
            let done = map(&mut rtt, &mut cpu, ipa, level, pa, count);
            assert_eq!(done, Err(RttError::Input), "{ipa} {level} {pa:#x} {count}");
        }
        let el0 = Attrs::MEMORY.execute(Execute::El0);
        let done = rtt.map_unprotected(
            &mut cpu,
            &HostPages {
                ipa: block,
                level: Level::L2,
                pa: Pa::new(0),
                attrs: el0,
                count: 1,
            },
            &mut all(),
        );
        assert_eq!(done, Err(RttError::Input));
        untouched(&mem, "refused");
    }
}

#[test]
fn ranges_of_ripas_that_cannot_be() {
    let mem = Plain::new(PAGE);
    let (mut rtt, mut cpu) = realm(&mem, true, Level::L1);
    down(&mut rtt, &mut cpu, &mem, 0);
    for (base, top) in [
        (0, 0),
        (PAGE, 0),
        (PAGE, PAGE),
        (0, 8),
        (0, PAGE + 8),
        (8, PAGE),
        (PAGE / 2, PAGE),
        (0, HALF + PAGE),
        (HALF, HALF + PAGE),
        (HALF - PAGE, HALF + PAGE),
        (2 * HALF, 2 * HALF + PAGE),
        (0, !(PAGE - 1)),
    ] {
        let (base, top) = (Ipa::new(base), Ipa::new(top));
        let input = Err(RttError::Input);
        assert_eq!(rtt.init_ripas(base..top, |_, _| ()), input, "{base} {top}");
        for ripas in [Ripas::Empty, Ripas::Ram] {
            let yes = ChangeDestroyed::Yes;
            let done = rtt.set_ripas(&mut cpu, base..top, ripas, yes);
            assert_eq!(done, input, "{base} {top}");
        }
        assert_eq!(rtt.ripas(base..top), Err(RttError::Input), "{base} {top}");
    }
    let (base, top) = (Ipa::new(0), Ipa::new(PAGE));
    let done = rtt.set_ripas(&mut cpu, base..top, Ripas::Destroyed, ChangeDestroyed::Yes);
    assert_eq!(done, Err(RttError::Input));
    untouched(&mem, "refused");
    // The last protected page is one.
    let (base, top) = (Ipa::new(HALF - PAGE), Ipa::new(HALF));
    assert_eq!(rtt.ripas(base..top), Ok((Ripas::Empty, top)));
}

/// A block of data that the realm does not see keeps its addresses through
/// fold and unfold, and folds only where they are adjacent.
#[test]
fn assigned_and_not_mapped() {
    for ripas in [Ripas::Empty, Ripas::Destroyed] {
        let mem = Plain::new(PAGE);
        let (mut rtt, mut cpu) = realm(&mem, true, Level::L1);
        down(&mut rtt, &mut cpu, &mem, 0);
        down(&mut rtt, &mut cpu, &mem, MIB2);
        if ripas == Ripas::Destroyed {
            for page in 0..1024 {
                let ipa = Ipa::new(page * PAGE);
                rtt.data_create(&mut cpu, ipa, Pa::new(GIB), Fill::Known)
                    .expect("assigned");
                rtt.data_destroy(&mut cpu, ipa).expect("destroyed");
            }
        }
        mem.forget();
        let pa = 4 * GIB;
        let assign = |rtt: &mut Rtt<&Plain>, cpu: &mut Cpu<'_>, page: u64, to: u64| {
            rtt.data_create(cpu, Ipa::new(page * PAGE), Pa::new(to), Fill::Unknown)
                .expect("assigned");
        };
        for page in 0..512 {
            assign(&mut rtt, &mut cpu, page, pa + page * PAGE);
            // One page is somewhere else; a run that is not aligned.
            let to = if page == 300 { 2 * pa } else { pa };
            assign(&mut rtt, &mut cpu, 512 + page, to + MIB2 + page * PAGE);
        }
        // Not mapped: no TLBI is due for it, no cache maintenance either.
        let done = instructions(&mem);
        assert!(done.iter().all(|did| *did == STORED), "{done:?}");
        let want = RttState::Assigned {
            ripas,
            pa: Pa::new(pa + 7 * PAGE),
        };
        assert_eq!(state(&rtt, 7 * PAGE, Level::L3), (Level::L3, want));
        assert_eq!(rtt.translate(Ipa::new(7 * PAGE)), None);
        let refused = RttError::Rtt {
            level: Level::L3,
            top: Ipa::new(MIB2),
        };
        let folded = rtt.fold(&mut cpu, RttAt::new(Ipa::new(MIB2), Level::L3));
        assert_eq!(folded, Err(refused));
        let table = rtt
            .fold(&mut cpu, RttAt::new(Ipa::new(0), Level::L3))
            .expect("alike");
        assert_eq!(mem.count(table), 0);
        let block = RttState::Assigned {
            ripas,
            pa: Pa::new(pa),
        };
        assert_eq!(state(&rtt, 0, Level::L3), (Level::L2, block));
        // RTT_INIT_RIPAS and destruction leave it alone.
        let (base, top) = (Ipa::new(0), Ipa::new(MIB2));
        let fault = RttError::Rtt {
            level: Level::L2,
            top: base,
        };
        assert_eq!(rtt.init_ripas(base..top, |_, _| ()), Err(fault));
        assert_eq!(rtt.data_destroy(&mut cpu, base), Err(fault));
        assert_eq!(state(&rtt, 0, Level::L3), (Level::L2, block));
        // Apart again, every page with its own address.
        mem.forget();
        let page = mem.page();
        rtt.create(&mut cpu, RttAt::new(base, Level::L3), page)
            .expect("unfolded");
        assert_eq!(mem.count(page), 512);
        assert_eq!(instructions(&mem), [STORED]);
        for index in 0..512 {
            let ipa = Ipa::new(index * PAGE);
            let removed = rtt.data_destroy(&mut cpu, ipa).expect("assigned");
            assert_eq!(removed.pa, Pa::new(pa + index * PAGE));
            let left = RttState::Unassigned(ripas);
            assert_eq!(state(&rtt, index * PAGE, Level::L3), (Level::L3, left));
        }
        assert_eq!(mem.count(page), 0);
        rtt.destroy(
            &mut cpu,
            RttAt::new(base, Level::L3),
            &mut Ignore,
            &mut all(),
        )
        .expect("empty");
    }
}

/// A run of adjacent pages is not enough: the block must be aligned.
#[test]
fn folds_are_aligned() {
    for (protected, offset) in [(true, PAGE), (false, PAGE), (true, 0), (false, 0)] {
        let mem = Plain::new(PAGE);
        let (mut rtt, mut cpu) = realm(&mem, true, Level::L1);
        let base = if protected { 0 } else { HALF };
        down(&mut rtt, &mut cpu, &mem, base);
        let pa = 4 * GIB + offset;
        if protected {
            for page in 0..512 {
                let (ipa, pa) = (Ipa::new(page * PAGE), Pa::new(pa + page * PAGE));
                rtt.data_create(&mut cpu, ipa, pa, Fill::Known)
                    .expect("assigned");
            }
        } else {
            let (ipa, pa) = (Ipa::new(base), Pa::new(pa));
            let next = rtt.map_unprotected(
                &mut cpu,
                &HostPages {
                    ipa,
                    level: Level::L3,
                    pa,
                    attrs: Attrs::MEMORY,
                    count: 600,
                },
                &mut all(),
            );
            assert_eq!(next, Ok(Ipa::new(base + MIB2)));
        }
        mem.forget();
        let folded = rtt.fold(&mut cpu, RttAt::new(Ipa::new(base), Level::L3));
        if offset != 0 {
            let (level, top) = (Level::L3, Ipa::new(base));
            assert_eq!(folded, Err(RttError::Rtt { level, top }));
            untouched(&mem, "fold");
            continue;
        }
        let table = folded.expect("aligned");
        assert_eq!(mem.count(table), 0);
        let at = rtt.translate(Ipa::new(base + 77 * PAGE + 5));
        assert_eq!(at.map(|(pa, _)| pa), Some(Pa::new(pa + 77 * PAGE + 5)));
        // The break is invalidated before the make, with pages in mind.
        let done = mem.changes();
        let tlbi = |did: &Did| matches!(did, Did::Tlbi(op) if op.kind() == TlbiKind::Ripas2e1is);
        let made = |did: &Did| matches!(did, Did::Write { new, .. } if new & 3 == 1);
        let first = done.iter().position(tlbi).expect("a TLBI of a range");
        let second = done.iter().position(made).expect("a block");
        assert!(first < second, "{done:?}");
        assert_eq!(*done.last().expect("a barrier"), STORED);
    }
}

/// Blocks: at level 1, of protected data and of the host's memory.
#[test]
fn how_large_folds_may_be() {
    for protected in [true, false] {
        let mem = Plain::new(PAGE);
        let (mut rtt, mut cpu) = realm(&mem, true, Level::L1);
        let base = if protected { 0 } else { HALF };
        rtt.create(&mut cpu, RttAt::new(Ipa::new(base), Level::L2), mem.page())
            .expect("a table");
        if protected {
            let first = Ipa::new(0);
            rtt.create(&mut cpu, RttAt::new(first, Level::L3), mem.page())
                .expect("a table");
            for page in 0..512 {
                let (ipa, pa) = (Ipa::new(page * PAGE), Pa::new(4 * GIB + page * PAGE));
                rtt.data_create(&mut cpu, ipa, pa, Fill::Known)
                    .expect("assigned");
            }
            rtt.fold(&mut cpu, RttAt::new(first, Level::L3))
                .expect("alike");
            // The other 511 as if they had come about in the same way.
            let RttState::Table(table) = state(&rtt, 0, Level::L1).1 else {
                panic!("no table");
            };
            let raw = mem.word(table.get());
            for block in 1..512 {
                mem.poke(table.get() + block * 8, raw + block * MIB2);
            }
            mem.add_count(table, 511);
        } else {
            let (ipa, pa) = (Ipa::new(base), Pa::new(4 * GIB));
            let next = rtt.map_unprotected(
                &mut cpu,
                &HostPages {
                    ipa,
                    level: Level::L2,
                    pa,
                    attrs: Attrs::MEMORY,
                    count: 512,
                },
                &mut all(),
            );
            assert_eq!(next, Ok(Ipa::new(base + GIB)));
        }
        let folded = rtt.fold(&mut cpu, RttAt::new(Ipa::new(base), Level::L2));
        assert!(folded.is_ok());
        let pa = Pa::new(4 * GIB);
        let block = if protected {
            let ripas = Ripas::Ram;
            RttState::Assigned { ripas, pa }
        } else {
            let attrs = Attrs::MEMORY.soft(1);
            RttState::AssignedNs { pa, attrs }
        };
        assert_eq!(state(&rtt, base, Level::L3), (Level::L1, block));
    }
}

/// A table of the host's pages goes at once: each is told with its address,
/// and cleaned where the guest may have written past the cache.
#[test]
fn a_destroyed_table_tells_its_leaves() {
    for fwb in [false, true] {
        for wanted in [false, true] {
            let mem = Plain::new(PAGE);
            let (mut rtt, mut cpu) = realm(&mem, fwb, Level::L1);
            down(&mut rtt, &mut cpu, &mem, HALF);
            let places = [(0u64, 3 * GIB), (5, 5 * GIB), (511, 7 * GIB)];
            for (page, pa) in places {
                let (ipa, pa) = (Ipa::new(HALF + page * PAGE), Pa::new(pa));
                rtt.map_unprotected(
                    &mut cpu,
                    &HostPages {
                        ipa,
                        level: Level::L3,
                        pa,
                        attrs: Attrs::MEMORY,
                        count: 1,
                    },
                    &mut all(),
                )
                .expect("mapped");
            }
            mem.forget();
            let mut told = Vec::new();
            let base = Ipa::new(HALF);
            let mut sink = |leaf: RemovedLeaf| {
                told.push((leaf.ipa().get(), leaf.pa().get(), leaf.size(), leaf.level()));
            };
            let removed = if wanted {
                rtt.destroy(&mut cpu, RttAt::new(base, Level::L3), &mut sink, &mut all())
            } else {
                rtt.destroy(
                    &mut cpu,
                    RttAt::new(base, Level::L3),
                    &mut Ignore,
                    &mut all(),
                )
            };
            assert_eq!(removed.expect("a table").top, Ipa::new(HALF + GIB));
            if wanted {
                let want = places.map(|(page, pa)| (HALF + page * PAGE, pa, PAGE, Level::L3));
                assert_eq!(told, want);
            }
            let mut cleaned = instructions(&mem);
            // All pages may be in TLBs: a range, without a hint.
            let ranges = cleaned.iter().filter_map(|did| match did {
                Did::Tlbi(op) if op.kind() == TlbiKind::Ripas2e1is => Some(op.operand()),
                _ => None,
            });
            let ranges: Vec<u64> = ranges.collect();
            assert_eq!(ranges.len(), 1);
            assert_eq!(ranges[0] >> 37 & 3, 0);
            cleaned.retain(|did| matches!(did, Did::Cache(_)));
            if fwb {
                assert_eq!(cleaned, []);
            } else {
                assert_eq!(cleaned, places.map(|(_, pa)| clean(pa, PAGE)));
            }
            let left = RttState::UnassignedNs;
            assert_eq!(state(&rtt, HALF, Level::L3), (Level::L2, left));
        }
    }
}

/// An empty table held no translation: one TLBI takes the walk caches along.
#[test]
fn an_empty_table_takes_one_tlbi() {
    for base in [0, HALF] {
        let mem = Plain::new(PAGE);
        let (mut rtt, mut cpu) = realm(&mem, true, Level::L1);
        down(&mut rtt, &mut cpu, &mem, base);
        let ipa = Ipa::new(base);
        rtt.destroy(
            &mut cpu,
            RttAt::new(ipa, Level::L3),
            &mut Ignore,
            &mut all(),
        )
        .expect("empty");
        let done = instructions(&mem);
        let ops: Vec<_> = done
            .iter()
            .filter_map(|did| match did {
                Did::Tlbi(op) => Some((op.kind(), op.operand())),
                _ => None,
            })
            .collect();
        let one = (TlbiKind::Ipas2e1is, base >> 12);
        assert_eq!(ops, [one, (TlbiKind::Vmalle1is, 0)]);
        // What is left is invalid: nothing to publish.
        assert_eq!(done.last(), Some(&Did::Barrier(Barrier::Isb)));
        let left = if base == 0 {
            RttState::Unassigned(Ripas::Destroyed)
        } else {
            RttState::UnassignedNs
        };
        assert_eq!(state(&rtt, base, Level::L3), (Level::L2, left));
    }
}

/// The host's memory: several entries at once, to the end of their table or
/// the first that is taken.
#[test]
fn the_hosts_memory_in_runs() {
    for fwb in [false, true] {
        let mem = Plain::new(PAGE);
        let (mut rtt, mut cpu) = realm(&mem, fwb, Level::L1);
        down(&mut rtt, &mut cpu, &mem, HALF);
        let attrs = Attrs::MEMORY.access(Access::Read);
        let mut map = |page: u64, pa: u64, count: usize| {
            let (ipa, pa) = (Ipa::new(HALF + page * PAGE), Pa::new(pa));
            let next = rtt.map_unprotected(
                &mut cpu,
                &HostPages {
                    ipa,
                    level: Level::L3,
                    pa,
                    attrs,
                    count,
                },
                &mut all(),
            );
            next.map(|next| (next.get() - HALF) / PAGE)
        };
        assert_eq!(map(10, GIB, 1), Ok(11));
        assert_eq!(map(7, 2 * GIB, 5), Ok(10));
        assert_eq!(map(508, 3 * GIB, 9), Ok(512));
        let want = |pages: &[(u64, u64)]| {
            let mut want = Vec::new();
            for &(pa, count) in pages {
                if !fwb {
                    want.push(clean(pa, count * PAGE));
                    want.push(FETCH);
                }
                want.push(STORED);
            }
            want
        };
        let runs = [(GIB, 1), (2 * GIB, 3), (3 * GIB, 4)];
        assert_eq!(instructions(&mem), want(&runs));
        for (page, pa) in [
            (7, 2 * GIB),
            (9, 2 * GIB + 2 * PAGE),
            (10, GIB),
            (511, 3 * GIB + 3 * PAGE),
        ] {
            let ns = RttState::AssignedNs {
                pa: Pa::new(pa),
                attrs: attrs.soft(1),
            };
            let ipa = HALF + page * PAGE;
            assert_eq!(state(&rtt, ipa, Level::L3), (Level::L3, ns));
            let got = rtt.translate(Ipa::new(ipa));
            assert_eq!(got, Some((Pa::new(pa), attrs.soft(1))));
            assert_eq!(
                rtt.find(Ipa::new(ipa + 77)).map(|entry| entry.state),
                Ok(ns)
            );
        }
        // And back: the leaf alone is invalidated, then cleaned.
        mem.forget();
        let ipa = Ipa::new(HALF + 9 * PAGE);
        let removed = rtt
            .unmap_unprotected(&mut cpu, ipa, Level::L3, &mut all())
            .expect("mapped");
        assert_eq!(removed.pa, Pa::new(2 * GIB + 2 * PAGE));
        assert_eq!(removed.top, Ipa::new(HALF + 10 * PAGE));
        let cleaned: Vec<_> = instructions(&mem)
            .into_iter()
            .filter(|did| matches!(did, Did::Cache(_)))
            .collect();
        let want = (!fwb).then(|| clean(2 * GIB + 2 * PAGE, PAGE));
        assert_eq!(cleaned, Vec::from_iter(want));
    }
}

/// A change of RIPAS invalidates what it unmaps and publishes what it maps.
#[test]
fn what_a_change_of_ripas_costs() {
    let mem = Plain::new(PAGE);
    let (mut rtt, mut cpu) = realm(&mem, true, Level::L1);
    down(&mut rtt, &mut cpu, &mem, 0);
    for page in [1u64, 2] {
        let (ipa, pa) = (Ipa::new(page * PAGE), Pa::new(GIB + page * PAGE));
        rtt.data_create(&mut cpu, ipa, pa, Fill::Known)
            .expect("assigned");
    }
    mem.forget();
    let mut set = |from: u64, to: u64, ripas| {
        let (base, top) = (Ipa::new(from * PAGE), Ipa::new(to * PAGE));
        let done = rtt.set_ripas(&mut cpu, base..top, ripas, ChangeDestroyed::No);
        assert_eq!(done, Ok(top));
        let kinds = instructions(&mem).into_iter().map(|did| match did {
            Did::Tlbi(op) => format!("{:?}", op.kind()),
            Did::Barrier(barrier) => format!("{barrier:?}"),
            other => format!("{other:?}"),
        });
        kinds.collect::<Vec<_>>().join(" ")
    };
    let synced = "DsbIshst Ripas2e1is DsbIsh Vmalle1is DsbIsh Isb";
    // Mapped so already; nothing there; unmapped; again; mapped; again.
    assert_eq!(set(1, 3, Ripas::Ram), "");
    assert_eq!(set(3, 6, Ripas::Ram), "");
    assert_eq!(set(0, 4, Ripas::Empty), synced);
    assert_eq!(set(0, 4, Ripas::Empty), "");
    assert_eq!(set(0, 3, Ripas::Ram), "DsbIshst");
    assert_eq!(set(0, 3, Ripas::Ram), "");
}

/// Known data becomes RAM and is mapped; unknown data is what it was.
#[test]
fn data_is_maintained_before_it_is_mapped() {
    for fwb in [false, true] {
        let mem = Plain::new(PAGE);
        let (mut rtt, mut cpu) = realm(&mem, fwb, Level::L1);
        down(&mut rtt, &mut cpu, &mem, 0);
        rtt.init_ripas(Ipa::new(PAGE)..Ipa::new(2 * PAGE), |_, _| ())
            .expect("RAM");
        for (page, fill, ripas) in [
            (0u64, Fill::Unknown, Ripas::Empty),
            (1, Fill::Unknown, Ripas::Ram),
            (2, Fill::Known, Ripas::Ram),
        ] {
            mem.forget();
            let (ipa, pa) = (Ipa::new(page * PAGE), GIB + page * PAGE);
            rtt.data_create(&mut cpu, ipa, Pa::new(pa), fill)
                .expect("assigned");
            let mut want = Vec::new();
            if !fwb {
                // Whatever its RIPAS: that may change, and map it.
                want.extend([clean(pa, PAGE), FETCH]);
            }
            want.push(STORED);
            assert_eq!(instructions(&mem), want);
            let pa = Pa::new(pa);
            let data = RttState::Assigned { ripas, pa };
            assert_eq!(state(&rtt, page * PAGE, Level::L3), (Level::L3, data));
            assert_eq!(rtt.translate(ipa).is_some(), ripas == Ripas::Ram);
        }
    }
}

/// What DATA_CREATE copies is copied once nothing else can refuse it, and before it is
/// mapped; where it cannot be, nothing is mapped.
#[test]
fn content_comes_between_the_checks_and_the_map() {
    let mem = Plain::new(PAGE);
    let (mut rtt, mut cpu) = realm(&mem, true, Level::L1);
    down(&mut rtt, &mut cpu, &mem, 0);
    let data = Pa::new(GIB);
    for (ipa, pa) in [
        (Ipa::new(8), data),
        (Ipa::new(HALF), data),
        (Ipa::new(MIB2), data),
        (Ipa::new(0), Pa::new(GIB + 8)),
        (Ipa::new(0), Pa::new(1 << 48)),
    ] {
        let done = rtt.data_create_with(&mut cpu, ipa, pa, || panic!("{ipa} {pa}"));
        assert!(done.is_err(), "{ipa} {pa}");
    }
    let failed = rtt.data_create_with(&mut cpu, Ipa::new(0), data, || false);
    assert_eq!(failed, Err(RttError::Input));
    untouched(&mem, "no content");
    let before = (Level::L3, RttState::Unassigned(Ripas::Empty));
    assert_eq!(state(&rtt, 0, Level::L3), before);
    rtt.data_create_with(&mut cpu, Ipa::new(0), data, || {
        untouched(&mem, "not yet mapped");
        true
    })
    .expect("vacant");
    // RAM, whatever it was.
    let assigned = RttState::Assigned {
        ripas: Ripas::Ram,
        pa: data,
    };
    assert_eq!(state(&rtt, 0, Level::L3), (Level::L3, assigned));
    let again = rtt.data_create_with(&mut cpu, Ipa::new(0), data, || panic!("twice"));
    assert!(matches!(again, Err(RttError::Rtt { .. })), "{again:?}");
}

/// A realm ends when nothing of it is left but the host's blocks in the root:
/// they are cut, forgotten everywhere, and told.
#[test]
fn the_end_of_a_realm() {
    let mem = Plain::new(PAGE);
    // A root of level 2: 16 concatenated tables with blocks in them.
    let (mut rtt, mut cpu) = realm(&mem, true, Level::L2);
    let root = rtt.root().get();
    let entry = |index: u64| mem.word(root + index * 8);
    let half = HALF / MIB2;
    assert!((0..half).all(|index| entry(index) == 0));
    let unprotected = entry(half);
    assert!((half..2 * half).all(|index| entry(index) == unprotected));
    let blocks = [(0u64, 3 * GIB), (1, 4 * GIB), (half - 1, 5 * GIB)];
    for (block, pa) in blocks {
        let (ipa, pa) = (Ipa::new(HALF + block * MIB2), Pa::new(pa));
        rtt.map_unprotected(
            &mut cpu,
            &HostPages {
                ipa,
                level: Level::L2,
                pa,
                attrs: Attrs::MEMORY,
                count: 1,
            },
            &mut all(),
        )
        .expect("mapped");
    }
    // A block of data, or a table, is life.
    down(&mut rtt, &mut cpu, &mem, 0);
    assert!(rtt.is_live());
    mem.forget();
    let used = Err(Error::InUse { level: Level::L2 });
    assert_eq!(rtt.retire(&mut cpu, &mut Ignore, &mut all()), used);
    untouched(&mem, "retire");
    rtt.destroy(
        &mut cpu,
        RttAt::new(Ipa::new(0), Level::L3),
        &mut Ignore,
        &mut all(),
    )
    .expect("empty");
    assert!(!rtt.is_live());
    mem.forget();
    let mut told = Vec::new();
    let mut sink = |leaf: RemovedLeaf| {
        told.push((leaf.ipa().get(), leaf.pa().get(), leaf.size(), leaf.level()));
    };
    rtt.retire(&mut cpu, &mut sink, &mut all()).expect("dead");
    let want = blocks.map(|(block, pa)| (HALF + block * MIB2, pa, MIB2, Level::L2));
    assert_eq!(told, want);
    assert!((half..2 * half).all(|index| entry(index) == unprotected));
    // Three entries broken, the VMID invalidated, three entries blank.
    let kinds: Vec<_> = mem
        .changes()
        .into_iter()
        .map(|did| match did {
            Did::Write { new, .. } => u64::from(new == unprotected),
            Did::Tlbi(op) if op.kind() == TlbiKind::Vmalls12e1is => 2,
            Did::Barrier(_) => 3,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(kinds, [0, 0, 0, 3, 2, 3, 3, 1, 1, 1]);
    rtt.retire(&mut cpu, &mut |_: RemovedLeaf| panic!("a leaf"), &mut all())
        .expect("dead");
}

/// Whatever the RIPAS of what is unassigned: also of what was data, and is destroyed.
#[test]
fn what_is_unassigned_can_become_ram() {
    let mem = Plain::new(PAGE);
    let (mut rtt, mut cpu) = realm(&mem, true, Level::L1);
    down(&mut rtt, &mut cpu, &mem, 0);
    for page in 0..2 {
        let (ipa, pa) = (Ipa::new(page * PAGE), Pa::new(GIB + page * PAGE));
        rtt.data_create(&mut cpu, ipa, pa, Fill::Known)
            .expect("assigned");
    }
    rtt.data_destroy(&mut cpu, Ipa::new(0)).expect("data");
    let destroyed = RttState::Unassigned(Ripas::Destroyed);
    assert_eq!(state(&rtt, 0, Level::L3), (Level::L3, destroyed));
    let mut become_ram = |from: u64, to: u64| {
        let reached = rtt.init_ripas(Ipa::new(from)..Ipa::new(to), |_, _| ());
        (reached.map(Ipa::get), state(&rtt, from, Level::L3).1)
    };
    let ram = RttState::Unassigned(Ripas::Ram);
    assert_eq!(become_ram(0, 3 * PAGE), (Ok(PAGE), ram));
    assert_eq!(become_ram(2 * PAGE, 3 * PAGE), (Ok(3 * PAGE), ram));
}

/// RIPAS is told as far as it holds, inside one table and the range.
#[test]
fn how_far_a_ripas_holds() {
    let mem = Plain::new(PAGE);
    let (mut rtt, mut cpu) = realm(&mem, true, Level::L1);
    down(&mut rtt, &mut cpu, &mem, 0);
    rtt.init_ripas(Ipa::new(3 * PAGE)..Ipa::new(6 * PAGE), |_, _| ())
        .expect("RAM");
    // Data in the middle changes nothing of it.
    rtt.data_create(&mut cpu, Ipa::new(4 * PAGE), Pa::new(GIB), Fill::Known)
        .expect("assigned");
    let at = |from: u64, to: u64| {
        let found = rtt.ripas(Ipa::new(from)..Ipa::new(to));
        found.map(|(ripas, end)| (ripas, end.get()))
    };
    assert_eq!(at(0, GIB), Ok((Ripas::Empty, 3 * PAGE)));
    assert_eq!(at(PAGE, 2 * PAGE), Ok((Ripas::Empty, 2 * PAGE)));
    assert_eq!(at(3 * PAGE, GIB), Ok((Ripas::Ram, 6 * PAGE)));
    assert_eq!(at(4 * PAGE, 5 * PAGE), Ok((Ripas::Ram, 5 * PAGE)));
    assert_eq!(at(6 * PAGE, GIB), Ok((Ripas::Empty, MIB2)));
    // An entry higher up, from the middle of it, and no further than asked.
    assert_eq!(at(MIB2 + PAGE, GIB), Ok((Ripas::Empty, GIB)));
    assert_eq!(
        at(MIB2 + PAGE, MIB2 + 2 * PAGE),
        Ok((Ripas::Empty, MIB2 + 2 * PAGE))
    );
    assert_eq!(at(GIB, HALF), Ok((Ripas::Empty, HALF)));
}

/// A block changes while it is being unfolded: its pages say what it said
/// last, and are counted once.
#[test]
fn an_unfolding_that_hardware_disturbs() {
    let mem = Plain::new(PAGE);
    let (mut rtt, mut cpu) = realm(&mem, true, Level::L1);
    down(&mut rtt, &mut cpu, &mem, 0);
    for page in 0..512 {
        let (ipa, pa) = (Ipa::new(page * PAGE), Pa::new(GIB + page * PAGE));
        rtt.data_create(&mut cpu, ipa, pa, Fill::Known)
            .expect("assigned");
    }
    rtt.fold(&mut cpu, RttAt::new(Ipa::new(0), Level::L3))
        .expect("alike");
    let mut once = true;
    mem.interfere(move |mem, pa| {
        if once && mem.word(pa) & 1 == 1 {
            once = false;
            mem.poke(pa, mem.word(pa) ^ 1 << 10);
        }
    });
    let page = mem.page();
    rtt.create(&mut cpu, RttAt::new(Ipa::new(0), Level::L3), page)
        .expect("unfolded");
    mem.undisturbed();
    assert_eq!(mem.count(page), 512);
    let young = |page| {
        rtt.read(Ipa::new(page * PAGE), Level::L3)
            .expect("a page")
            .raw
            >> 10
            & 1
    };
    assert!((0..512).all(|page| young(page) == 0));
}

/// Without range operations each page of a table that goes is invalidated.
#[test]
fn tables_that_go_page_by_page() {
    for protected in [true, false] {
        let mut config = Stage2Config::new(Granule::K4, 34, 48);
        config.start = Start::At(Level::L1);
        config.features.fwb = true;
        config.features.dic = true;
        let geometry = config.validate().expect("legal");
        let mem = Plain::new(PAGE);
        let root = mem.root(geometry.root_align());
        let half = Ipa::new(HALF);
        let mut rtt = Rtt::new(geometry, root, Vmid::new(3), &mem, half).expect("a root");
        let mut cpu = mem.cpu(rtt.regs());
        let base = if protected { 0 } else { HALF };
        let ipa = Ipa::new(base);
        down(&mut rtt, &mut cpu, &mem, base);
        if protected {
            for page in 0..512 {
                let (ipa, pa) = (Ipa::new(page * PAGE), Pa::new(GIB + page * PAGE));
                rtt.data_create(&mut cpu, ipa, pa, Fill::Known)
                    .expect("assigned");
            }
            mem.forget();
            rtt.fold(&mut cpu, RttAt::new(ipa, Level::L3))
                .expect("alike");
        } else {
            rtt.map_unprotected(
                &mut cpu,
                &HostPages {
                    ipa,
                    level: Level::L3,
                    pa: Pa::new(GIB),
                    attrs: Attrs::MEMORY,
                    count: 3,
                },
                &mut all(),
            )
            .expect("mapped");
            mem.forget();
            rtt.destroy(
                &mut cpu,
                RttAt::new(ipa, Level::L3),
                &mut Ignore,
                &mut all(),
            )
            .expect("no life in it");
        }
        let hit: Vec<u64> = mem
            .changes()
            .into_iter()
            .filter_map(|did| match did {
                Did::Tlbi(op) if op.kind() == TlbiKind::Ipas2e1is => Some(op.operand() << 12),
                _ => None,
            })
            .collect();
        let want: Vec<u64> = (0..512).map(|page| base + page * PAGE).collect();
        assert_eq!(hit, want);
    }
}

/// The bits that software has in a leaf are the realm's tables' own here:
/// whatever a caller puts there, the memory stays the host's.
#[test]
fn what_the_host_maps_is_the_hosts() {
    let mem = Plain::new(PAGE);
    let (mut rtt, mut cpu) = realm(&mem, true, Level::L1);
    down(&mut rtt, &mut cpu, &mem, HALF);
    for soft in 0..16 {
        let (ipa, pa) = (Ipa::new(HALF), Pa::new(5 * GIB));
        let attrs = Attrs::MEMORY.soft(soft);
        let mut all = Budget::unlimited();
        rtt.map_unprotected(
            &mut cpu,
            &HostPages {
                ipa,
                level: Level::L3,
                pa,
                attrs,
                count: 1,
            },
            &mut all,
        )
        .expect("mapped");
        let (level, entry) = state(&rtt, HALF, Level::L3);
        let hosts = matches!(entry, RttState::AssignedNs { pa: at, .. } if at == pa);
        assert!(level == Level::L3 && hosts, "{soft}: {entry:?}");
        let removed = rtt.unmap_unprotected(&mut cpu, ipa, Level::L3, &mut all);
        assert_eq!(removed.map(|removed| removed.pa), Ok(pa));
        let (_, entry) = state(&rtt, HALF, Level::L3);
        assert_eq!(entry, RttState::UnassignedNs);
    }
}

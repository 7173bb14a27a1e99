//! What one RTT command may do: leaves of the host's memory that one step
//! cleans, tables that go leaf by leaf, ends of realms in calls of a budget.

mod plain;

use pgtable::{
    Attrs, Budget, CacheOp, Device, Error, Granule, HostPages, Ignore, Ipa, Level, Memory, Pa,
    RemovedLeaf, Rtt, RttAt, RttError, RttState, Stage2Config, Start, TableMem, TlbiKind, Vmid,
};
use plain::{Cpu, Did, Plain};

const MEMORY: u64 = 64 << 30;
const MIB2: u64 = 2 << 20;

fn config(granule: Granule, fwb: bool) -> Stage2Config {
    let mut config = Stage2Config::new(granule, 40, 48);
    config.features.fwb = fwb;
    config.features.dic = true;
    config
}

/// Tables all of which are the host's.
fn tables(mem: &Plain, config: Stage2Config) -> (Rtt<&Plain>, Cpu<'_>) {
    let geometry = config.validate().expect("legal");
    let root = mem.root(geometry.root_align());
    let mut rtt = Rtt::new(geometry, root, Vmid::new(3), mem, Ipa::new(0)).expect("a root");
    let mut cpu = mem.cpu(rtt.regs());
    for level in geometry.start().get() + 1..=3 {
        if level == 3 && config.start == Start::At(Level::L2) {
            break;
        }
        let level = Level::new(level).expect("a level");
        rtt.create(&mut cpu, RttAt::new(Ipa::new(0), level), mem.page())
            .expect("a table");
    }
    mem.forget();
    (rtt, cpu)
}

fn least() -> Budget {
    Budget::entries(0)
}

fn all() -> Budget {
    Budget::unlimited()
}

fn mapped_to(rtt: &Rtt<&Plain>, ipa: u64) -> Option<u64> {
    match rtt.find(Ipa::new(ipa)).expect("inside").state {
        RttState::AssignedNs { pa, .. } => Some(pa.get()),
        RttState::UnassignedNs => None,
        other => panic!("{other:?}"),
    }
}

/// What was cleaned since, and how many TLBIs were done.
fn done(mem: &Plain) -> (Vec<(u64, u64)>, usize) {
    let mut cleaned = Vec::new();
    let mut tlbis = 0;
    for did in mem.changes() {
        match did {
            Did::Cache(CacheOp::CleanInvalidateData { pa, size }) => {
                cleaned.push((pa.get(), size));
            }
            Did::Tlbi(op) if op.kind() != TlbiKind::Vmalle1is => tlbis += 1,
            _ => (),
        }
    }
    (cleaned, tlbis)
}

/// Without FWB, or for memory that FWB does not force to write-back, an entry
/// maps 2 MiB at most: by command, and by folding.
#[test]
fn an_entry_maps_what_one_step_cleans() {
    for granule in Granule::ALL {
        for fwb in [false, true] {
            let mem = Plain::new(granule.page_size());
            let mut config = config(granule, fwb);
            // No table of level 3: a block may come.
            config.ipa_bits = 34;
            config.start = Start::At(Level::L2);
            let (mut rtt, mut cpu) = tables(&mem, config);
            let span = rtt.geometry().span(Level::L2);
            for (slot, memory, cleaned) in [
                (0, Memory::Normal, !fwb),
                (1, Memory::NormalNonCacheable, true),
                (2, Memory::FromStage1, true),
                (3, Memory::Device(Device::NGnRE), false),
            ] {
                let (ipa, pa) = (Ipa::new(slot * span), Pa::new(MEMORY));
                let attrs = Attrs::MEMORY.memory(memory);
                let mapped = rtt.map_unprotected(
                    &mut cpu,
                    &HostPages {
                        ipa,
                        level: Level::L2,
                        pa,
                        attrs,
                        count: 1,
                    },
                    &mut least(),
                );
                // Without FWB no entry is larger, whatever it maps.
                let refused = span > MIB2 && (cleaned || !fwb);
                let what = format!("{granule:?}, {fwb}, {memory:?}");
                if refused {
                    assert_eq!(mapped, Err(RttError::Input), "{what}");
                    continue;
                }
                assert_eq!(mapped, Ok(Ipa::new((slot + 1) * span)), "{what}");
                let want = if cleaned {
                    vec![(MEMORY, span)]
                } else {
                    vec![]
                };
                assert_eq!(done(&mem).0, want, "{what}");
                rtt.unmap_unprotected(&mut cpu, ipa, Level::L2, &mut least())
                    .expect("mapped");
                let seen = !fwb && !matches!(memory, Memory::Device(_));
                let want = if seen { vec![(MEMORY, span)] } else { vec![] };
                assert_eq!(done(&mem).0, want, "{what}");
            }
        }
    }
}

/// What the host maps and takes back is paid: a unit for an entry, and one for each 4 KiB
/// that is cleaned for it. Whoever does several commands for one budget relies on it.
#[test]
fn what_the_host_maps_and_takes_back_is_paid() {
    for (fwb, memory, maps, takes) in [
        (true, Memory::Normal, 3, 1),
        (true, Memory::NormalNonCacheable, 3 + 3, 1),
        (false, Memory::Normal, 3 + 3, 1 + 1),
        (false, Memory::Device(Device::NGnRE), 3, 1),
    ] {
        let mem = Plain::new(4096);
        let (mut rtt, mut cpu) = tables(&mem, config(Granule::K4, fwb));
        let pages = HostPages {
            ipa: Ipa::new(0),
            level: Level::L3,
            pa: Pa::new(MEMORY),
            attrs: Attrs::MEMORY.memory(memory),
            count: 3,
        };
        let budget = &mut Budget::entries(1000);
        let end = rtt.map_unprotected(&mut cpu, &pages, budget);
        assert_eq!(end, Ok(Ipa::new(3 * 4096)));
        assert_eq!(budget.left(), 1000 - maps, "{fwb}, {memory:?}");
        let budget = &mut Budget::entries(1000);
        rtt.unmap_unprotected(&mut cpu, pages.ipa, Level::L3, budget)
            .expect("mapped");
        assert_eq!(budget.left(), 1000 - takes, "{fwb}, {memory:?}");
    }
}

/// Alike pages become a block only if that is one that a command could map.
#[test]
fn pages_fold_to_what_one_step_cleans() {
    for granule in [Granule::K4, Granule::K16] {
        let mem = Plain::new(granule.page_size());
        let (mut rtt, mut cpu) = tables(&mem, config(granule, false));
        let span = rtt.geometry().span(Level::L2);
        let (page, count) = (granule.page_size(), granule.entries());
        let (zero, pa) = (Ipa::new(0), Pa::new(MEMORY));
        rtt.map_unprotected(
            &mut cpu,
            &HostPages {
                ipa: zero,
                level: Level::L3,
                pa,
                attrs: Attrs::MEMORY,
                count,
            },
            &mut all(),
        )
        .expect("mapped");
        let folded = rtt.fold(&mut cpu, RttAt::new(zero, Level::L3));
        if span > MIB2 {
            let (level, top) = (Level::L3, zero);
            assert_eq!(folded, Err(RttError::Rtt { level, top }));
        } else {
            folded.expect("alike");
        }
        assert_eq!(
            mapped_to(&rtt, 5 * page),
            Some(MEMORY + if span > MIB2 { 5 * page } else { 0 })
        );
    }
}

/// Several entries are mapped as far as a budget goes: those are clean, and
/// no others.
#[test]
fn entries_are_mapped_in_calls_of_a_budget() {
    let mem = Plain::new(4096);
    let (mut rtt, mut cpu) = tables(&mem, config(Granule::K4, false));
    let mut at = 0;
    while at < 512 * 4096 {
        let left = (512 - at / 4096) as usize;
        let budget = &mut Budget::entries(100);
        let (ipa, pa) = (Ipa::new(at), Pa::new(MEMORY + at));
        let next = rtt
            .map_unprotected(
                &mut cpu,
                &HostPages {
                    ipa,
                    level: Level::L3,
                    pa,
                    attrs: Attrs::MEMORY,
                    count: left,
                },
                budget,
            )
            .expect("mapped");
        let size = next.get() - at;
        assert!(size > 0 && size <= 100 * 4096);
        assert_eq!(done(&mem).0, [(MEMORY + at, size)]);
        assert_eq!(
            mapped_to(&rtt, at + size - 4096),
            Some(MEMORY + at + size - 4096)
        );
        at += size;
    }
}

/// A table goes when its leaves have: some in each call, each of them cleaned
/// once, told once, after its invalidation. What is left stays mapped.
#[test]
fn a_table_is_destroyed_in_steps() {
    for (granule, fwb) in [
        (Granule::K4, false),
        (Granule::K16, false),
        (Granule::K4, true),
        (Granule::K64, true),
    ] {
        let mem = Plain::new(granule.page_size());
        let (mut rtt, mut cpu) = tables(&mem, config(granule, fwb));
        let (page, count) = (granule.page_size(), granule.entries());
        let (zero, pa) = (Ipa::new(0), Pa::new(MEMORY));
        rtt.map_unprotected(
            &mut cpu,
            &HostPages {
                ipa: zero,
                level: Level::L3,
                pa,
                attrs: Attrs::MEMORY,
                count,
            },
            &mut all(),
        )
        .expect("mapped");
        // A hole on the way.
        let hole = 7 * page;
        rtt.unmap_unprotected(&mut cpu, Ipa::new(hole), Level::L3, &mut all())
            .expect("mapped");
        mem.forget();
        let mut told = Vec::new();
        let mut calls = 0;
        let removed = loop {
            let before = told.len();
            let mut sink = |leaf: RemovedLeaf| told.push((leaf.ipa().get(), leaf.pa().get()));
            let budget = &mut Budget::entries(200);
            let answer = rtt.destroy(&mut cpu, RttAt::new(zero, Level::L3), &mut sink, budget);
            calls += 1;
            let (cleaned, tlbis) = done(&mem);
            assert!(tlbis > 0, "{granule:?}");
            let bytes: u64 = cleaned.iter().map(|(_, size)| size).sum();
            let new = (told.len() - before) as u64;
            assert_eq!(bytes, if fwb { 0 } else { new * page });
            assert!(
                new <= 200 && bytes <= 200 * 4096,
                "{new} leaves, {bytes:#x}"
            );
            match answer {
                Err(RttError::Again) => {
                    let last = told.last().expect("one at least").0;
                    assert_eq!(mapped_to(&rtt, last), None);
                    assert_eq!(mapped_to(&rtt, last + page), Some(MEMORY + last + page));
                }
                other => break other.expect("an end"),
            }
            assert!(calls < 1000);
        };
        let want: Vec<_> = (0..count as u64)
            .map(|index| index * page)
            .filter(|at| *at != hole)
            .map(|at| (at, MEMORY + at))
            .collect();
        assert_eq!(told, want);
        assert!(calls > 2 && removed.pa != Pa::new(0));
        assert_eq!(mapped_to(&rtt, 0), None);
    }
}

/// Who is told of nothing and cleans nothing sees a full table go at once.
#[test]
fn a_table_that_nobody_asks_for_goes_at_once() {
    let mem = Plain::new(4096);
    let (mut rtt, mut cpu) = tables(&mem, config(Granule::K4, true));
    let (zero, pa) = (Ipa::new(0), Pa::new(MEMORY));
    rtt.map_unprotected(
        &mut cpu,
        &HostPages {
            ipa: zero,
            level: Level::L3,
            pa,
            attrs: Attrs::MEMORY,
            count: 512,
        },
        &mut all(),
    )
    .expect("mapped");
    rtt.destroy(
        &mut cpu,
        RttAt::new(zero, Level::L3),
        &mut Ignore,
        &mut least(),
    )
    .expect("destroyed");
}

#[test]
fn a_realm_ends_in_steps() {
    let mem = Plain::new(4096);
    let mut config = config(Granule::K4, false);
    (config.ipa_bits, config.start) = (33, Start::At(Level::L2));
    let (mut rtt, mut cpu) = tables(&mem, config);
    for (at, to) in [(0, MEMORY), (3 * MIB2, MEMORY + MIB2)] {
        let (ipa, pa) = (Ipa::new(at), Pa::new(to));
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
    mem.forget();
    let mut told = Vec::new();
    let mut at = Ipa::new(0);
    let mut calls = 0;
    let mut places = vec![at.get()];
    let mut clean = Vec::new();
    let mut whole = 0;
    while at.get() < 1 << 33 {
        let mut sink =
            |leaf: RemovedLeaf| told.push((leaf.ipa().get(), leaf.pa().get(), leaf.size()));
        let next = rtt.retire(&mut cpu, &mut sink, &mut least());
        let next = next.expect("no life in it");
        assert!(next >= at, "{next:?} after {at:?}");
        at = next;
        places.push(at.get());
        calls += 1;
        assert!(calls < 20_000);
        let (cleaned, tlbis) = done(&mem);
        assert!(cleaned.len() <= 1);
        clean.extend(cleaned);
        whole += tlbis;
    }
    // Each entry of the root takes a call, to be cut and to be released.
    places.dedup();
    let every: Vec<u64> = (0..=4096).map(|block| block * MIB2).collect();
    assert_eq!((places, whole), (every, 1));
    assert_eq!(told, [(0, MEMORY, MIB2), (3 * MIB2, MEMORY + MIB2, MIB2)]);
    assert_eq!(clean, [(MEMORY, MIB2), (MEMORY + MIB2, MIB2)]);
    let unmapped = (0..4096).all(|block| mapped_to(&rtt, block * MIB2).is_none());
    assert!(unmapped);
}

/// Life is not retired, in steps or at once.
#[test]
fn a_live_realm_does_not_begin_to_end() {
    let mem = Plain::new(4096);
    let (mut rtt, mut cpu) = tables(&mem, config(Granule::K4, false));
    let used = Err(Error::InUse { level: Level::L1 });
    assert_eq!(rtt.retire(&mut cpu, &mut Ignore, &mut least()), used);
    assert!(mem.changes().is_empty());
    assert_ne!(mem.count(rtt.root()), 0);
}

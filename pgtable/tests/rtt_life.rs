//! A realm's life, for each granule.

mod log;

use log::{Log, Plain};
use pgtable::{
    Attrs, Budget, ChangeDestroyed, Fill, Geometry, Granule, HostPages, Ignore, Ipa, Level, Pa,
    Removed, RemovedLeaf, Ripas, Rtt, RttAt, RttError, RttState, Stage2Config, TableMem, Vmid,
};

fn all() -> Budget {
    Budget::unlimited()
}

struct Bench {
    mem: Plain,
    geometry: Geometry,
}

impl Bench {
    fn new(granule: Granule) -> Self {
        let mut config = Stage2Config::new(granule, 40, 48);
        config.features.tlb_range = true;
        config.features.ttl = true;
        config.features.fwb = true;
        config.features.dic = true;
        let geometry = config.validate().unwrap();
        Self {
            mem: Plain::new(granule.page_size(), 16 << 20),
            geometry,
        }
    }

    fn rtt(&self, protected_end: u64) -> (Rtt<&Plain>, Log) {
        let root = self.mem.root(self.geometry.root_align());
        let vmid = Vmid::new(9);
        let rtt = Rtt::new(
            self.geometry,
            root,
            vmid,
            &self.mem,
            Ipa::new(protected_end),
        )
        .unwrap();
        let log = Log {
            regs: rtt.regs(),
            ..Log::default()
        };
        (rtt, log)
    }

    fn page(&self) -> Pa {
        self.mem.alloc(Level::L3).unwrap()
    }
}

/// Creates tables down to level 3 at `ipa`.
fn down(bench: &Bench, rtt: &mut Rtt<&Plain>, log: &mut Log, ipa: u64) {
    let start = rtt.geometry().start().get();
    for level in start + 1..=3 {
        let level = Level::new(level).unwrap();
        let span = bench.geometry.span(Level::new(level.get() - 1).unwrap());
        match rtt.create(
            log,
            RttAt::new(Ipa::new(ipa & !(span - 1)), level),
            bench.page(),
        ) {
            Ok(()) | Err(RttError::Rtt { .. }) => (),
            Err(error) => panic!("{error} at {level}"),
        }
    }
}

#[test]
fn a_realm_lives_and_dies() {
    for granule in Granule::ALL {
        let bench = Bench::new(granule);
        let page = granule.page_size();
        let (mut rtt, mut log) = bench.rtt(1 << 39);
        let base = 0x4000_0000u64;
        let leaf_table = bench.geometry.span(Level::L2);
        let start = rtt.geometry().start();
        let missing = rtt.data_check(Ipa::new(base));
        assert!(matches!(missing, Err(RttError::Rtt { level, .. }) if level == start));
        down(&bench, &mut rtt, &mut log, base);
        assert!(rtt.is_live());
        let top = rtt
            .init_ripas(Ipa::new(base)..Ipa::new(base + 16 * leaf_table), |_, _| ())
            .unwrap();
        assert_eq!(top, Ipa::new((base + leaf_table) & !(leaf_table - 1)));
        for index in [0, 1, 5] {
            let ipa = Ipa::new(base + index * page);
            rtt.data_create(
                &mut log,
                ipa,
                Pa::new(0x8000_0000 + index * page),
                Fill::Known,
            )
            .unwrap();
            let entry = rtt.read(ipa, Level::L3).unwrap();
            assert_eq!(
                entry.state,
                RttState::Assigned {
                    ripas: Ripas::Ram,
                    pa: Pa::new(0x8000_0000 + index * page)
                }
            );
        }
        let table_ipa = Ipa::new(base & !(leaf_table - 1));
        assert_eq!(
            rtt.destroy(
                &mut log,
                RttAt::new(table_ipa, Level::L3),
                &mut Ignore,
                &mut all()
            ),
            Err(RttError::Rtt {
                level: Level::L3,
                top: table_ipa
            })
        );
        let first = rtt.data_destroy(&mut log, Ipa::new(base)).unwrap();
        assert_eq!(
            first,
            Removed {
                pa: Pa::new(0x8000_0000),
                top: Ipa::new(base + page)
            }
        );
        let second = rtt.data_destroy(&mut log, first.top).unwrap();
        assert_eq!(second.top, Ipa::new(base + 5 * page));
        let third = rtt.data_destroy(&mut log, second.top).unwrap();
        assert_eq!(third.top, Ipa::new(table_ipa.get() + leaf_table));
        assert_eq!(
            rtt.read(Ipa::new(base), Level::L3).unwrap().state,
            RttState::Unassigned(Ripas::Destroyed)
        );
        let start = bench.geometry.start().get();
        for level in (start + 1..=3).rev() {
            let level = Level::new(level).unwrap();
            let span = bench.geometry.span(Level::new(level.get() - 1).unwrap());
            let ipa = Ipa::new(base & !(span - 1));
            let removed = rtt
                .destroy(&mut log, RttAt::new(ipa, level), &mut Ignore, &mut all())
                .unwrap();
            assert_eq!(bench.mem.count(removed.pa), 0);
            assert!(removed.top > ipa);
        }
        assert!(!rtt.is_live());
        assert!(rtt.retire(&mut log, &mut Ignore, &mut all()).is_ok());
    }
}

#[test]
#[cfg_attr(miri, ignore = "too long there")]
fn unfolding_keeps_what_a_block_said_and_folding_puts_it_back() {
    let bench = Bench::new(Granule::K4);
    let (mut rtt, mut log) = bench.rtt(1 << 39);
    let base = Ipa::new(0x4000_0000);
    down(&bench, &mut rtt, &mut log, base.get());
    for index in 0..512u64 {
        let ipa = Ipa::new(base.get() + index * 4096);
        rtt.data_create(
            &mut log,
            ipa,
            Pa::new(0x8000_0000 + index * 4096),
            Fill::Known,
        )
        .unwrap();
    }
    let page = rtt.fold(&mut log, RttAt::new(base, Level::L3)).unwrap();
    assert_eq!(bench.mem.count(page), 0);
    let block = rtt.read(base, Level::L3).unwrap();
    assert_eq!(block.level, Level::L2);
    rtt.create(&mut log, RttAt::new(base, Level::L3), bench.page())
        .unwrap();
    for index in 0..512u64 {
        let entry = rtt
            .read(Ipa::new(base.get() + index * 4096), Level::L3)
            .unwrap();
        let pa = Pa::new(0x8000_0000 + index * 4096);
        assert_eq!(
            entry.state,
            RttState::Assigned {
                ripas: Ripas::Ram,
                pa
            }
        );
    }
    // One page apart, and it is refused.
    rtt.data_destroy(&mut log, Ipa::new(base.get() + 4096))
        .unwrap();
    assert_eq!(
        rtt.fold(&mut log, RttAt::new(base, Level::L3)),
        Err(RttError::Rtt {
            level: Level::L3,
            top: base
        })
    );
}

#[test]
fn a_table_of_unprotected_leaves_goes_at_once_and_each_is_told() {
    let bench = Bench::new(Granule::K4);
    let (mut rtt, mut log) = bench.rtt(0);
    let base = Ipa::new(0x4000_0000);
    down(&bench, &mut rtt, &mut log, base.get());
    let next = rtt
        .map_unprotected(
            &mut log,
            &HostPages {
                ipa: base,
                level: Level::L3,
                pa: Pa::new(0x9000_0000),
                attrs: Attrs::MEMORY,
                count: 700,
            },
            &mut all(),
        )
        .unwrap();
    assert_eq!(next, Ipa::new(0x4020_0000));
    assert_eq!(
        rtt.map_unprotected(
            &mut log,
            &HostPages {
                ipa: base,
                level: Level::L3,
                pa: Pa::new(0),
                attrs: Attrs::MEMORY,
                count: 1
            },
            &mut all()
        ),
        Err(RttError::Rtt {
            level: Level::L3,
            top: base
        })
    );
    let removed = rtt
        .unmap_unprotected(&mut log, base, Level::L3, &mut all())
        .unwrap();
    assert_eq!(removed.pa, Pa::new(0x9000_0000));
    assert_eq!(removed.top, Ipa::new(0x4000_1000));
    let mut gone = Vec::new();
    rtt.destroy(
        &mut log,
        RttAt::new(base, Level::L3),
        &mut |leaf: RemovedLeaf| {
            gone.push(leaf.pa());
        },
        &mut all(),
    )
    .unwrap();
    assert_eq!(gone.len(), 511);
    assert_eq!(gone[0], Pa::new(0x9000_1000));
    assert_eq!(
        rtt.read(base, Level::L3).unwrap().state,
        RttState::UnassignedNs
    );
}

#[test]
fn changing_ripas_unmaps_and_maps_again() {
    let bench = Bench::new(Granule::K4);
    let (mut rtt, mut log) = bench.rtt(1 << 39);
    let base = Ipa::new(0x4000_0000);
    let end = Ipa::new(0x4000_4000);
    down(&bench, &mut rtt, &mut log, base.get());
    rtt.init_ripas(base..end, |_, _| ()).unwrap();
    rtt.data_create(&mut log, base, Pa::new(0x8000_0000), Fill::Unknown)
        .unwrap();
    log.events.clear();
    let next = rtt
        .set_ripas(&mut log, base..end, Ripas::Empty, ChangeDestroyed::No)
        .unwrap();
    assert_eq!((next, log.tlbis()), (end, 2));
    assert_eq!(
        rtt.read(base, Level::L3).unwrap().state,
        RttState::Assigned {
            ripas: Ripas::Empty,
            pa: Pa::new(0x8000_0000)
        }
    );
    rtt.set_ripas(&mut log, base..end, Ripas::Ram, ChangeDestroyed::No)
        .unwrap();
    assert!(rtt.translate(base).is_some());
    assert_eq!(
        rtt.ripas(base..Ipa::new(0x4010_0000)).unwrap(),
        (Ripas::Ram, end)
    );
    rtt.data_destroy(&mut log, base).unwrap();
    assert_eq!(
        rtt.set_ripas(&mut log, base..end, Ripas::Ram, ChangeDestroyed::No),
        Err(RttError::Rtt {
            level: Level::L3,
            top: end_of_table(base)
        })
    );
    rtt.set_ripas(&mut log, base..end, Ripas::Ram, ChangeDestroyed::Yes)
        .unwrap();
}

fn end_of_table(ipa: Ipa) -> Ipa {
    Ipa::new((ipa.get() & !0x1f_ffff) + 0x20_0000)
}

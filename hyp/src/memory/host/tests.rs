//! The host's stage 2 in memory of the test's.

extern crate std;

use super::super::phys;
use super::*;
use crate::errata::InForce;
use arm64::regs::VTCR_EL2;
use pgtable::{Granule, Start};
use proptest::prelude::*;
use std::boxed::Box;
use std::vec::Vec;

const RAM: u64 = 0x4000_0000;
const RAM_SIZE: u64 = 256 << 20;
const UART: u64 = 0x900_0000;
static NO_ERRATA: InForce = InForce::new();

fn set(regions: &[(u64, u64)]) -> Regions {
    let mut set = Regions::new();
    for &(base, size) in regions {
        set.insert(Region::new(base, size).unwrap()).unwrap();
    }
    set
}

/// A host with this RAM, without 2.2 MiB that are EL2's, and these devices.
fn host_with(granule: Granule, ram: &Regions, devices: &Regions) -> HostMemory {
    host_without(
        granule,
        ram,
        &set(&[(RAM + 0x20_0000, 0x23_0000)]),
        devices,
        0,
    )
}

/// A host whose pool begins so many bytes into EL2's memory.
fn host_without(
    granule: Granule,
    ram: &Regions,
    taken: &Regions,
    devices: &Regions,
    before: u64,
) -> HostMemory {
    let features = Features {
        pa_bits: 40,
        // Without it what leaves is cleaned, and here is no RAM to clean.
        fwb: true,
        ..Features::default()
    };
    let geometry = geometry(&features, granule, 40, false, Start::Concatenate).unwrap();
    let size = granule.page_size();
    let pages = pool_pages(ram, devices, &geometry);
    let bytes = Pool::bytes_for(pages, size);
    phys::fake::install(0x8000_0000, (before + bytes) as usize);
    let region = Region::new(0x8000_0000 + before, bytes).unwrap();
    // SAFETY: the fake memory is this test's.
    let pool = Box::leak(Box::new(unsafe { Pool::new(region, size) }));
    let ranges = Ranges {
        ram,
        taken,
        devices,
    };
    HostMemory::new(
        maintenance::Pe::new(64, &NO_ERRATA),
        geometry,
        &ranges,
        pool,
    )
    .unwrap()
}

/// Gives a granule back, and looks whether it was the last.
fn give(host: &HostMemory, page: u64, size: u64) {
    host.give(page, size).unwrap();
    host.fold(page);
}

fn host(granule: Granule) -> HostMemory {
    let devices = set(&[(UART, 0x1_0000), (0x800_0000, 0x1_0000)]);
    host_with(granule, &set(&[(RAM, RAM_SIZE)]), &devices)
}

#[test]
fn ram_is_there_and_what_is_taken_is_not() {
    for granule in Granule::ALL {
        let host = host(granule);
        let size = granule.page_size();
        assert!(host.reaches(RAM) && host.reaches(RAM + RAM_SIZE - 1));
        for at in (0x20_0000..0x43_0000).step_by(0x1_0000) {
            assert!(!host.reaches(RAM + at), "{granule:?} {at:#x}");
        }
        let page = RAM + (64 << 20) + size;
        host.take(page, size).unwrap();
        assert!(!host.reaches(page));
        assert!(host.reaches(page - 1) && host.reaches(page + size));
        give(&host, page, size);
        assert!(host.reaches(page));
    }
}

#[test]
fn nothing_is_a_device_because_it_is_no_ram() {
    for granule in Granule::ALL {
        let host = host(granule);
        for at in [UART, UART + 0xffff, 0x800_0000] {
            assert!(host.reaches(at), "{granule:?} {at:#x}");
        }
        for at in [
            0,
            UART - 1,
            UART + 0x1_0000,
            RAM - 1,
            RAM + RAM_SIZE,
            (1 << 40) - 1,
            1 << 40,
            u64::MAX,
        ] {
            assert!(!host.reaches(at), "{granule:?} {at:#x}");
        }
    }
}

#[test]
fn seventy_splits_given_back_take_no_tables() {
    for granule in Granule::ALL {
        let host = host(granule);
        let (size, before) = (granule.page_size(), host.pool.left());
        for page in (RAM + (8 << 20)..).step_by(3 << 20).take(70) {
            let page = page & !(size - 1);
            host.take(page, size).unwrap();
            give(&host, page, size);
            assert_eq!(host.pool.left(), before, "{granule:?} {page:#x}");
        }
        assert!(host.reaches(UART));
    }
}

/// A block that goes and comes back whole leaves nothing of its split either, at any level.
#[test]
fn blocks_given_back_take_no_tables() {
    let ram = set(&[(4 << 30, 4 << 30)]);
    for granule in Granule::ALL {
        let host = host_with(granule, &ram, &set(&[]));
        let block = granule.page_size() * granule.page_size() / 8;
        let before = host.pool.left();
        for at in [5 << 30, (6 << 30) - block, 6 << 30] {
            host.take(at, block).unwrap();
            assert!(!host.reaches(at) && host.reaches(at + block));
            give(&host, at, block);
            assert_eq!(host.pool.left(), before, "{granule:?} {at:#x}");
        }
    }
}

#[test]
fn every_granule_can_be_apart_with_every_device_mapped() {
    for granule in Granule::ALL {
        // RAM and devices that begin and end inside of every block there is.
        let odd = 3 * 0x1_0000;
        let ram = set(&[
            (RAM - odd, (96 << 20) + 2 * odd),
            (0x41_0000_0000 - odd, 2 * odd),
            (0x81_0000_0000 + odd, 32 << 20),
        ]);
        let devices: Vec<_> = (0..70)
            .map(|n| (0x1000_0000 + n * 0x2_8000_0000, 0x1_0000))
            .collect();
        let devices = set(&devices);
        let host = host_with(granule, &ram, &devices);
        let size = granule.page_size();
        let before = host.pool.left();
        let mut all = Vec::new();
        for region in ram.iter() {
            all.extend((region.base()..region.end()).step_by(size as usize));
        }
        all.retain(|page| host.reaches(*page));
        // Every other one first: then each table there can be is there.
        let (even, odd): (Vec<u64>, Vec<u64>) = all.iter().partition(|p| *p / size % 2 == 0);
        for page in even.iter().chain(&odd) {
            host.take(*page, size).unwrap();
        }
        for page in odd.iter().chain(&even) {
            give(&host, *page, size);
        }
        assert_eq!(host.pool.left(), before, "{granule:?}");
        assert!(devices.iter().all(|device| host.reaches(device.base())));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3))]

    /// Whatever went and came, the tables depend on what is gone at the moment.
    #[test]
    fn a_hundred_thousand_steps_end_where_they_began(seed in any::<u64>()) {
        for granule in Granule::ALL {
            let host = host(granule);
            let (size, before) = (granule.page_size(), host.pool.left());
            let mut gone = Vec::new();
            let mut random = seed | 1;
            for _ in 0..100_000 {
                // xorshift64
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let page = RAM + (8 << 20) + random % ((RAM_SIZE - (8 << 20)) / size) * size;
                match random >> 60 {
                    0..=7 => {
                        if host.reaches(page) {
                            host.take(page, size).unwrap();
                            gone.push(page);
                        }
                    }
                    8..=14 => {
                        if !gone.is_empty() {
                            let n = (random >> 32) as usize % gone.len();
                            let page = gone.swap_remove(n);
                            give(&host, page, size);
                            prop_assert!(host.reaches(page));
                        }
                    }
                    _ => prop_assert!(host.reaches(UART) && !host.reaches(UART - 1)),
                }
            }
            for page in gone {
                give(&host, page, size);
            }
            prop_assert_eq!(host.pool.left(), before, "{:?}", granule);
        }
    }
}

/// What is EL2's in part is all of it, and what is RAM in part is none.
#[test]
fn granules_that_are_the_hosts_in_part_are_not_its() {
    for granule in Granule::ALL {
        let size = granule.page_size();
        let half = size / 2;
        let ram = set(&[(RAM + half, RAM_SIZE)]);
        let own = RAM + (4 << 20);
        let taken = set(&[(own + half, size)]);
        let host = host_without(granule, &ram, &taken, &Regions::new(), 0);
        for (at, reached) in [
            (RAM + half, false),
            (RAM + size, true),
            (own - 1, true),
            (own, false),
            (own + half - 1, false),
            (own + 2 * size - 1, false),
            (own + 2 * size, true),
            (RAM + RAM_SIZE - 1, true),
            (RAM + RAM_SIZE, false),
        ] {
            assert_eq!(host.reaches(at), reached, "{granule:?} {at:#x}");
        }
    }
}

/// The root is aligned to all of its tables; the pool is to one.
#[test]
fn a_pool_that_begins_anywhere_has_room_for_every_granule_apart() {
    for granule in Granule::ALL {
        let size = granule.page_size();
        let ram = set(&[(RAM, 8 << 20)]);
        for before in (0..16).map(|n| n * size) {
            let none = Regions::new();
            let host = host_without(granule, &ram, &none, &none, before);
            for page in (RAM..RAM + (8 << 20)).step_by(size as usize) {
                host.take(page, size).unwrap();
            }
        }
    }
}

/// Each feature reaches the format: here VTCR_EL2.VS.
#[test]
fn vmids_are_as_wide_as_the_cpus() {
    for vmid16 in [false, true] {
        let features = Features {
            pa_bits: 40,
            vmid16,
            ..Features::default()
        };
        let geometry = geometry(&features, Granule::K4, 40, false, Start::Concatenate).unwrap();
        assert_eq!(geometry.vtcr() >> 19 & 1 != 0, vmid16);
    }
}

/// 52 bits of IPA with 4K are FEAT_LPA2's: DS, and for level -1 SL2 with SL0 clear.
#[test]
fn wide_tables_say_so_in_the_manuals_fields() {
    let features = Features {
        pa_bits: 52,
        ..Features::default()
    };
    let below = Start::At(pgtable::Level::MINUS_1);
    for (granule, lpa2, bits, start, tg0, level) in [
        (Granule::K4, true, 52, below, 0, Some((0, 1))),
        (Granule::K4, true, 52, Start::Concatenate, 0, Some((2, 0))),
        (Granule::K4, false, 48, Start::Concatenate, 0, Some((2, 0))),
        (Granule::K16, true, 52, Start::Concatenate, 2, None),
        (Granule::K64, false, 52, Start::Concatenate, 1, None),
    ] {
        let geometry = geometry(&features, granule, bits, lpa2, start).unwrap();
        let vtcr = geometry.vtcr();
        assert_eq!(VTCR_EL2::T0SZ.read(vtcr), 64 - u64::from(bits));
        assert_eq!(VTCR_EL2::TG0.read(vtcr), tg0);
        assert_eq!(VTCR_EL2::DS.is_set(vtcr), lpa2);
        assert!(VTCR_EL2::RES1.is_set(vtcr));
        if let Some(level) = level {
            let found = (VTCR_EL2::SL0.read(vtcr), VTCR_EL2::SL2.read(vtcr));
            assert_eq!(found, level, "{granule:?} {start:?}");
        }
    }
}

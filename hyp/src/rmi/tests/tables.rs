//! A realm's tables, what they count, and what comes back of them.

use super::*;

#[test]
fn blocks_and_pages_of_them_are_counted_alike() {
    let mut h = Host::new(Granule::K4, RAM_SIZE);
    h.realm();
    let rd = h.page(1);
    for (level, page) in [(2, 42), (3, 43)] {
        h.ok(fid::RMI_GRANULE_DELEGATE, &[h.page(page)]);
        if level == 2 {
            h.ok(fid::RMI_RTT_CREATE, &[rd, h.page(page), RAM, level]);
        }
    }
    let block = RAM + 0x20_0000;
    let inside = block + 0x5000;
    let give = |h: &mut Host| h.status(fid::RMI_GRANULE_DELEGATE, &[inside]);
    h.ok(fid::RMI_RTT_MAP_UNPROTECTED, &[rd, RAM, 2, block | DESC]);
    assert_eq!(give(&mut h), Status::ErrorInput, "in a block");
    // Unfolded: pages now.
    h.ok(fid::RMI_RTT_CREATE, &[rd, h.page(43), RAM, 3]);
    assert_eq!(give(&mut h), Status::ErrorInput, "in a page");
    h.ok(fid::RMI_RTT_UNMAP_UNPROTECTED, &[rd, RAM + 0x5000, 3]);
    assert_eq!(give(&mut h), Status::Success);
    assert_eq!(
        h.status(
            fid::RMI_RTT_MAP_UNPROTECTED,
            &[rd, RAM + 0x40_0000, 2, block | DESC]
        ),
        Status::ErrorInput,
        "a granule of it is not the host's"
    );
    h.ok(fid::RMI_GRANULE_UNDELEGATE, &[inside]);
    h.ok(
        fid::RMI_RTT_MAP_UNPROTECTED,
        &[rd, RAM + 0x5000, 3, inside | DESC],
    );
    // Folded: a block again.
    let table = h.ok(fid::RMI_RTT_FOLD, &[rd, RAM, 3]);
    assert_eq!(table[1], h.page(43));
    assert_eq!(give(&mut h), Status::ErrorInput);
    h.ok(fid::RMI_RTT_UNMAP_UNPROTECTED, &[rd, RAM, 2]);
    assert_eq!(give(&mut h), Status::Success);
    let granules = &h.system.granules;
    for page in (block..block + 0x20_0000).step_by(0x1000) {
        assert_eq!(granules.get(page).unwrap().count(), 0);
    }
}

/// A gigabyte, of which the host has not all, and which could not be cleaned in one turn.
#[test]
fn a_gigabyte_of_less_ram_is_refused() {
    let mut h = Host::new(Granule::K4, RAM_SIZE);
    h.realm();
    assert_eq!(h.geometry().start(), pgtable::Level::L1);
    let map = [h.page(1), RAM, 1, RAM | DESC];
    assert_eq!(
        h.status(fid::RMI_RTT_MAP_UNPROTECTED, &map),
        Status::ErrorInput
    );
    assert_eq!(h.granule(0).count(), 0);
}

#[test]
fn tables_that_are_refused_change_no_count() {
    let mut h = Host::new(Granule::K4, RAM_SIZE);
    h.realm();
    let (rd, block) = (h.page(1), RAM + 0x20_0000);
    for page in [42, 43] {
        h.ok(fid::RMI_GRANULE_DELEGATE, &[h.page(page)]);
    }
    h.ok(fid::RMI_RTT_CREATE, &[rd, h.page(42), RAM, 2]);
    h.ok(fid::RMI_RTT_MAP_UNPROTECTED, &[rd, RAM, 2, block | DESC]);
    // Not where an entry of level 2 begins.
    let create = [rd, h.page(43), RAM + 0x1000, 3];
    assert_eq!(h.status(fid::RMI_RTT_CREATE, &create), Status::ErrorInput);
    h.ok(fid::RMI_RTT_UNMAP_UNPROTECTED, &[rd, RAM, 2]);
    h.ok(fid::RMI_GRANULE_DELEGATE, &[block]);
    h.ok(fid::RMI_GRANULE_UNDELEGATE, &[block]);
    // A page is no block, though it is where one could begin.
    h.ok(fid::RMI_RTT_CREATE, &[rd, h.page(43), RAM, 3]);
    h.ok(fid::RMI_RTT_MAP_UNPROTECTED, &[rd, RAM, 3, block | DESC]);
    let folded = h.status(fid::RMI_RTT_FOLD, &[rd, RAM, 3]);
    assert!(matches!(folded, Status::ErrorRtt(_)), "{folded:?}");
    h.ok(fid::RMI_RTT_UNMAP_UNPROTECTED, &[rd, RAM, 3]);
    h.ok(fid::RMI_GRANULE_DELEGATE, &[block]);
}

/// Without FEAT_S2FWB what one entry maps is cleaned in one step: 2 MiB of 4K
/// granules, a page of larger ones.
#[test]
fn what_an_entry_maps_is_cleaned_in_one_turn() {
    for (granule, largest) in [(Granule::K4, 2), (Granule::K16, 3), (Granule::K64, 3)] {
        let mut h = Host::new(granule, 64 << 20);
        h.realm();
        let rd = h.page(1);
        for (n, level) in [(40, 1), (41, 2), (42, 3)] {
            if level > h.geometry().start().get() as i64 && level <= largest {
                let table = h.page(n);
                h.ok(fid::RMI_GRANULE_DELEGATE, &[table]);
                h.ok(fid::RMI_RTT_CREATE, &[rd, table, 0, level as u64]);
            }
        }
        let size = h
            .geometry()
            .span(pgtable::Level::new(largest as i8).unwrap());
        let memory = (RAM + (32 << 20)).next_multiple_of(size);
        for level in h.geometry().start().get() as i64..=3 {
            let at = h.geometry().span(pgtable::Level::new(level as i8).unwrap());
            if at > 2 << 20 {
                let map = [rd, 0, level as u64, memory & !(at - 1) | DESC];
                let status = h.status(fid::RMI_RTT_MAP_UNPROTECTED, &map);
                assert_eq!(status, Status::ErrorInput, "{granule:?}, {level}");
            }
        }
        let (at, largest) = (size, largest as u64);
        h.ok(
            fid::RMI_RTT_MAP_UNPROTECTED,
            &[rd, at, largest, memory | DESC],
        );
        let given = h.status(fid::RMI_GRANULE_DELEGATE, &[memory]);
        assert_eq!(given, Status::ErrorInput, "mapped");
        h.ok(fid::RMI_RTT_UNMAP_UNPROTECTED, &[rd, at, largest]);
        h.ok(fid::RMI_GRANULE_DELEGATE, &[memory]);
    }
}

/// A table of 64K granules that maps 512 MiB takes turns to go; memory is the
/// guest's until its turn.
#[test]
fn a_table_full_of_memory_takes_turns() {
    let size = 32 << 20;
    let mut h = Host::new(Granule::K16, 2 * size);
    h.realm();
    let rd = h.page(1);
    let table = h.page(40);
    h.ok(fid::RMI_GRANULE_DELEGATE, &[table]);
    h.ok(fid::RMI_RTT_CREATE, &[rd, table, RAM, 3]);
    let memory = RAM + size;
    for page in (0..size).step_by(h.size as usize) {
        h.ok(
            fid::RMI_RTT_MAP_UNPROTECTED,
            &[rd, RAM + page, 3, (memory + page) | DESC],
        );
    }
    let last = memory + size - h.size;
    let mut turns = 0;
    let destroy = raw(fid::RMI_RTT_DESTROY, &[rd, RAM, 3]);
    let answer = loop {
        let given = h.status(fid::RMI_GRANULE_DELEGATE, &[last]);
        assert_eq!(given, Status::ErrorInput, "turn {turns}: not clean yet");
        turns += 1;
        if let Some(answer) = h.turn(destroy) {
            break answer;
        }
        assert!(turns < 100);
    };
    assert_eq!(answer[0], Status::Success.pack());
    // 8 MiB a turn.
    assert!((4..=6).contains(&turns), "{turns}");
    h.ok(fid::RMI_GRANULE_DELEGATE, &[last]);
}

/// Every command of the tables at every level, those that no tree has included.
#[test]
fn levels_that_a_tree_has_not_are_refused() {
    for granule in Granule::ALL {
        let mut h = Host::new(granule, 64 << 20);
        h.realm();
        let (rd, rtt) = (h.page(1), h.page(40));
        h.ok(fid::RMI_GRANULE_DELEGATE, &[rtt]);
        let start = i64::from(h.geometry().start().get());
        for level in (-5..start).chain(4..9) {
            for ipa in [
                0,
                h.size,
                1 << 30,
                1 << 39,
                (1 << 40) - h.size,
                1 << 40,
                1 << 63,
            ] {
                let (at, page) = (level as u64, RAM | DESC);
                for (function, args) in [
                    (fid::RMI_RTT_MAP_UNPROTECTED, [rd, ipa, at, page]),
                    (fid::RMI_RTT_UNMAP_UNPROTECTED, [rd, ipa, at, 0]),
                    (fid::RMI_RTT_CREATE, [rd, rtt, ipa, at]),
                    (fid::RMI_RTT_DESTROY, [rd, ipa, at, 0]),
                    (fid::RMI_RTT_FOLD, [rd, ipa, at, 0]),
                    (fid::RMI_RTT_READ_ENTRY, [rd, ipa, at, 0]),
                ] {
                    let status = h.status(function, &args);
                    assert_eq!(status, Status::ErrorInput, "{function:#x} {ipa:#x} {level}");
                }
            }
        }
    }
}

/// Between the moment that a granule is the host's again and the one that its
/// block is whole, nothing that holds it becomes a block that nobody counts.
#[test]
fn pages_of_a_block_that_is_not_whole_do_not_fold() {
    let mut h = Host::new(Granule::K4, 16 << 20);
    h.realm();
    let (rd, block) = (h.page(1), RAM + (8 << 20));
    for (n, level) in [(40, 1), (41, 2), (42, 3)] {
        let table = h.page(n);
        h.ok(fid::RMI_GRANULE_DELEGATE, &[table]);
        let made = h.status(fid::RMI_RTT_CREATE, &[rd, table, 0, level]);
        let above = i64::from(h.geometry().start().get()) >= level as i64;
        assert_eq!(made == Status::Success, !above, "level {level}");
    }
    for at in (0..2 << 20).step_by(4096) {
        h.ok(
            fid::RMI_RTT_MAP_UNPROTECTED,
            &[rd, at, 3, (block + at) | DESC],
        );
    }
    // As UNDELEGATE on another CPU leaves it for a moment.
    assert!(h.system.granules.leave_host(block, 1));
    let folded = h.status(fid::RMI_RTT_FOLD, &[rd, 0, 3]);
    assert!(matches!(folded, Status::ErrorRtt(_)), "{folded:?}");
    assert!(h.system.granules.return_to_host(block, 1));
    h.ok(fid::RMI_RTT_FOLD, &[rd, 0, 3]);
    h.ok(fid::RMI_RTT_UNMAP_UNPROTECTED, &[rd, 0, 2]);
    h.ok(fid::RMI_GRANULE_DELEGATE, &[block]);
}

/// What stands at the address of no table is no reason to speak of tables: neither an
/// entry of the root, nor one amid a table, whatever memory it maps.
#[test]
fn what_names_no_table_is_not_folded() {
    let mut h = Host::new(Granule::K4, RAM_SIZE);
    h.realm();
    let (rd, block) = (h.page(1), RAM + 0x20_0000);
    // So that nobody can count it as a block.
    h.ok(fid::RMI_GRANULE_DELEGATE, &[block + 0x3000]);
    for (page, level) in [(42, 2), (43, 3)] {
        h.ok(fid::RMI_GRANULE_DELEGATE, &[h.page(page)]);
        h.ok(fid::RMI_RTT_CREATE, &[rd, h.page(page), RAM, level]);
    }
    let amid = RAM + 0x1000;
    h.ok(fid::RMI_RTT_MAP_UNPROTECTED, &[rd, amid, 3, block | DESC]);
    assert_eq!(
        h.status(fid::RMI_RTT_FOLD, &[rd, amid, 3]),
        Status::ErrorInput
    );

    drop(h);
    // A root of level 3: 16 tables of 64K for 33 bits.
    let mut h = Host::new(Granule::K64, 16 << 20);
    for n in [1].into_iter().chain(16..32) {
        h.ok(fid::RMI_GRANULE_DELEGATE, &[h.page(n)]);
    }
    let mut params = h.realm_params(1, 16);
    (params.s2sz, params.rtt_level_start, params.rtt_num_start) = (33, 3, 16);
    h.write(2, params);
    let rd = h.page(1);
    h.ok(fid::RMI_REALM_CREATE, &[rd, h.page(2)]);
    h.ok(fid::RMI_RTT_MAP_UNPROTECTED, &[rd, 0, 3, RAM | DESC]);
    assert_eq!(h.status(fid::RMI_RTT_FOLD, &[rd, 0, 3]), Status::ErrorInput);
}

/// Without FEAT_S2FWB a host looks past the caches: memory has the zeros too.
#[test]
fn what_comes_back_is_zero_in_memory() {
    // With FEAT_S2FWB too: a guest may have what is the host's mapped uncached.
    for (granule, fwb) in Granule::ALL
        .into_iter()
        .flat_map(|g| [(g, false), (g, true)])
    {
        let mut h = Host::with(
            granule,
            16 << 20,
            if fwb { |f| f.fwb = true } else { |_| {} },
        );
        let page = h.page(3);
        h.ok(fid::RMI_GRANULE_DELEGATE, &[page]);
        phys::fake::cleaned();
        h.ok(fid::RMI_GRANULE_UNDELEGATE, &[page]);
        let all = [Region::new(page, h.size).expect("no overflow")];
        assert_eq!(phys::fake::cleaned(), all);
    }
}

/// A realm's VMID is another's when the last turn of its end is over, and not
/// before: its root has 16 tables, which take many.
#[test]
fn a_vmid_is_free_when_its_realm_has_ended() {
    let mut h = Host::new(Granule::K16, 16 << 20);
    h.realm();
    let (rd, other) = (h.page(1), h.page(3));
    let roots = h.geometry().root_tables() as u64;
    assert_eq!(roots, 16);
    h.ok(fid::RMI_GRANULE_DELEGATE, &[other]);
    for n in 0..roots {
        h.ok(fid::RMI_GRANULE_DELEGATE, &[h.page(64 + n)]);
    }
    h.write(2, h.realm_params(1, 64));
    let params = h.page(2);
    let mut turns = 0;
    while h.turn(raw(fid::RMI_REALM_DESTROY, &[rd])).is_none() {
        turns += 1;
        let again = h.status(fid::RMI_REALM_CREATE, &[other, params]);
        assert_eq!(again, Status::ErrorInput, "after {turns} turns");
        assert_eq!((h.state(1), h.state(16)), (State::Rd, State::Rtt));
    }
    assert!(turns > 8, "{turns}");
    assert_eq!(h.state(16), State::Delegated);
    h.ok(fid::RMI_REALM_CREATE, &[other, params]);
}

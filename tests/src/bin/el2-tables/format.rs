//! One configuration: mapped, protected, split, folded, collapsed and unmapped,
//! and after each step what the CPU makes of it.

use pgtable::{
    Access, Age, Annotation, Attrs, Budget, Caches, Change, Entry, Error, Execute, Geometry,
    Granule, Ignore, Ipa, Leaves, Level, Map, Over, Pa, Partial, Permissions, Split, Stage2, Sweep,
    Unmap, Vmid,
};
use tests::bare::asm::{read64, write32, write64};
use tests::bare::console::Console;
use tests::suite::Suite;

use crate::cpu::{Cpu, name};
use crate::formats::is_lpa2;
use crate::guest::{self, Kind, Stage1, fetch, fetch_el0, met, read, write};
use crate::instructions::{Instructions, translate};
use crate::memory::Pool;
use crate::text::Name;

/// Checks a configuration: one line.
pub fn check(suite: &mut Suite<Console>, cpu: &Cpu, geometry: Geometry, high: Option<u64>) {
    let form = if is_lpa2(&geometry) { "-lpa2" } else { "" };
    let with = if *geometry.features() == cpu.features {
        ""
    } else {
        "/v8.0"
    };
    let title = Name::new(format_args!(
        "{}{form}/ipa{}/start{}/x{}{with}",
        name(geometry.granule()),
        geometry.ipa_bits(),
        geometry.start().get(),
        geometry.root_tables()
    ));
    let result = steps(cpu, geometry, high);
    suite.check(
        title.text(),
        result.is_ok(),
        result.err().unwrap_or_default(),
    );
}

/// Goes on when it holds, else says which step failed.
fn hold(right: bool, step: &'static str) -> Result<(), &'static str> {
    if right { Ok(()) } else { Err(step) }
}

fn steps(cpu: &Cpu, geometry: Geometry, high: Option<u64>) -> Result<(), &'static str> {
    let page = geometry.granule().page_size();
    let pool = Pool::new(page);
    let root = pool.block(geometry.root_align().max(page));
    let vmid = Vmid::new(7);
    let Ok(mut tree) = Stage2::new(geometry, Pa::new(root), vmid, &pool) else {
        return Err("new");
    };
    let maint = &mut Instructions;
    guest::load(&geometry, tree.vttbr(), Stage1::Off);
    let code = guest::code();
    let map = |tree: &Stage2<&Pool>, maint: &mut Instructions, map: Map| {
        tree.map(maint, &map, &mut Budget::unlimited()).is_ok()
    };
    let stub = Map::new(Ipa::new(code), Pa::new(code), page, Attrs::MEMORY);
    hold(map(&tree, maint, stub), "map EL1's code")?;

    // A page at the very top of the IPA space, and one in the middle, on RAM
    // that is as high as there is.
    let frames = pool.block(2 * page.max(64 << 10));
    // Output above 48 bits: all of them with LPA2, or with 64K on such a CPU.
    let out52 = is_lpa2(&geometry) || geometry.granule() == Granule::K64;
    let frame = match high {
        Some(high) if cpu.pa_bits == 52 && (high >> 48 == 0 || out52) => high,
        _ => frames,
    };
    let end = 1u64 << geometry.ipa_bits();
    for ipa in [end - page, end / 2 + 5 * page] {
        page_at(&mut tree, &pool, ipa, frame, page)?;
    }
    each_root_table(&mut tree, &pool)?;
    hold(
        translate(end).is_err() || end >> 52 != 0,
        "nothing beyond the space",
    )?;
    for level in [2, 1, 0] {
        let Some(level) = Level::new(level) else {
            continue;
        };
        if level < geometry.start() || geometry.span(level) >= end / 4 {
            continue;
        }
        if geometry.leaf_ok(level) {
            block_at(&mut tree, &pool, level, out52 && cpu.pa_bits == 52)?;
        } else {
            no_block_at(&mut tree, &pool, level)?;
        }
    }

    // The end: nothing is mapped, all tables are back.
    let mut from = Ipa::new(0);
    for _ in 0..10_000 {
        if from.get() >= end {
            break;
        }
        from = tree.teardown(maint, from, &mut Ignore, &mut Budget::entries(64));
    }
    hold(from.get() >= end, "teardown ends")?;
    hold(translate(code).is_err(), "teardown unmaps")?;
    hold(pool.live() == 0, "teardown frees all tables")
}

/// A page under each of the root's tables, all in other frames: each table is
/// where the walk looks for it.
fn each_root_table(tree: &mut Stage2<&Pool>, pool: &Pool) -> Result<(), &'static str> {
    let geometry = *tree.geometry();
    let (page, tables) = (
        geometry.granule().page_size(),
        geometry.root_tables() as u64,
    );
    let each = (1u64 << geometry.ipa_bits()) / tables;
    let frames = pool.block((tables * page).next_power_of_two());
    let place = |table: u64| (table * each + each / 2 + 3 * page, frames + table * page);
    for (ipa, frame) in (0..tables).map(place) {
        let map = Map::new(Ipa::new(ipa), Pa::new(frame), page, Attrs::MEMORY);
        let mapped = tree.map(&mut Instructions, &map, &mut Budget::unlimited());
        hold(mapped.is_ok(), "root table: map")?;
        // SAFETY: The frame.
        unsafe { write64(frame, frame) };
    }
    for (ipa, frame) in (0..tables).map(place) {
        hold(translate(ipa) == Ok(frame), "root table: AT")?;
        hold(read(ipa) == Ok(frame), "root table: load")?;
        let gone = tree.unmap(
            &mut Instructions,
            &Unmap::new(Ipa::new(ipa), page).partial(Partial::Refuse),
            &mut Ignore,
            &mut Budget::unlimited(),
        );
        hold(gone.is_ok(), "root table: unmap")?;
        hold(
            met(read(ipa), Kind::Translation, ipa),
            "root table: load after",
        )?;
    }
    Ok(())
}

/// A page: every access, before and after each change.
fn page_at(
    tree: &mut Stage2<&Pool>,
    pool: &Pool,
    ipa: u64,
    frame: u64,
    page: u64,
) -> Result<(), &'static str> {
    let maint = &mut Instructions;
    let budget = &mut Budget::unlimited();
    let last = ipa + page - 8;
    // SAFETY: A frame of this check's; `mov x0, #0x77 ; ret`.
    unsafe {
        write32(frame, 0xd280_0ee0);
        write32(frame + 4, 0xd65f_03c0);
        write64(frame + page - 8, 0x1122_3344_5566_7788);
    }
    hold(translate(ipa).is_err(), "page: AT before")?;
    hold(
        met(read(last), Kind::Translation, last),
        "page: load before",
    )?;
    let map = Map::new(Ipa::new(ipa), Pa::new(frame), page, Attrs::MEMORY);
    hold(tree.map(maint, &map, budget).is_ok(), "page: map")?;
    hold(translate(last) == Ok(frame + page - 8), "page: AT")?;
    hold(read(last) == Ok(0x1122_3344_5566_7788), "page: load")?;
    hold(write(last, 0x99).is_ok(), "page: store")?;
    // SAFETY: The frame.
    hold(unsafe { read64(frame + page - 8) } == 0x99, "page: stored")?;
    hold(fetch(ipa) == Ok(0x77), "page: fetch")?;
    hold(translate(ipa - page).is_err(), "page: AT below")?;

    let protect = |tree: &Stage2<&Pool>, access, execute| {
        tree.protect(
            &mut Instructions,
            Sweep::new(Ipa::new(ipa), page).partial(Partial::Refuse),
            Permissions { access, execute },
            &mut Budget::unlimited(),
        )
        .is_ok()
    };
    hold(protect(tree, Access::Read, Execute::Never), "page: protect")?;
    hold(read(last) == Ok(0x99), "page: load, read-only")?;
    let store = write(last, 1);
    hold(met(store, Kind::Permission, last), "page: store, read-only")?;
    hold(met(fetch(ipa), Kind::Permission, ipa), "page: fetch, never")?;
    if tree.geometry().features().xnx {
        hold(
            protect(tree, Access::ReadWrite, Execute::El0),
            "page: protect, EL0",
        )?;
        hold(
            met(fetch(ipa), Kind::Permission, ipa),
            "page: fetch, EL0 only",
        )?;
        hold(
            protect(tree, Access::ReadWrite, Execute::El1),
            "page: protect, EL1",
        )?;
        hold(
            fetch(ipa) == Ok(0x77) && met(fetch_el0(ipa), Kind::Permission, ipa),
            "page: fetch, EL1 only",
        )?;
    }
    hold(
        protect(tree, Access::Write, Execute::Never),
        "page: protect, write-only",
    )?;
    hold(
        met(read(last), Kind::Permission, last),
        "page: load, write-only",
    )?;
    hold(write(last, 0x55).is_ok(), "page: store, write-only")?;
    hold(
        protect(tree, Access::ReadWrite, Execute::All),
        "page: relax",
    )?;
    hold(read(last) == Ok(0x55), "page: load, relaxed")?;

    // Another frame in its place, with its own access flag.
    let old = Attrs::MEMORY.age(Age::Old);
    let other = frame ^ page;
    // SAFETY: Both are this check's.
    unsafe { write64(other + page - 8, 0xabcd) };
    let replace = Map::new(Ipa::new(ipa), Pa::new(other), page, old).over(Over::Anything);
    hold(tree.map(maint, &replace, budget).is_ok(), "page: replace")?;
    hold(met(read(last), Kind::AccessFlag, last), "page: access flag")?;
    hold(
        tree.mark_young(maint, Ipa::new(ipa)).is_ok(),
        "page: mark young",
    )?;
    hold(read(last) == Ok(0xabcd), "page: replaced")?;

    let live = pool.live();
    let gone = tree.unmap(
        maint,
        &Unmap::new(Ipa::new(ipa), page).partial(Partial::Refuse),
        &mut Ignore,
        budget,
    );
    hold(gone.is_ok(), "page: unmap")?;
    hold(translate(last).is_err(), "page: AT after")?;
    hold(met(read(last), Kind::Translation, last), "page: load after")?;
    hold(pool.live() <= live, "page: tables")
}

/// Unmaps a range. Of a block that is larger than what is cleaned at once, and has
/// no RAM behind it, no part has to be: it goes as the entry that it is.
fn unmap_whole(tree: &mut Stage2<&Pool>, ipa: Ipa, size: u64) -> Result<Ipa, Error> {
    let geometry = *tree.geometry();
    let mut at = ipa.get();
    while at < ipa.get() + size && !geometry.features().fwb {
        let found = tree.lookup(Ipa::new(at))?;
        let span = geometry.span(found.level);
        if matches!(found.entry, Entry::Leaf { .. }) && span > 2 << 20 {
            let nothing = Change::Invalid(Annotation::EMPTY);
            tree.freeze(found.base, found.level)?
                .commit(&mut Instructions, nothing)?;
        }
        at = found.base.get() + span;
    }
    let (budget, refuse) = (&mut Budget::unlimited(), Partial::Refuse);
    tree.unmap(
        &mut Instructions,
        &Unmap::new(ipa, size).partial(refuse),
        &mut Ignore,
        budget,
    )
    .map_err(|stopped| stopped.why)
}

/// A level without blocks: whatever is alike under it, there is none.
fn no_block_at(tree: &mut Stage2<&Pool>, pool: &Pool, level: Level) -> Result<(), &'static str> {
    let maint = &mut Instructions;
    let budget = &mut Budget::unlimited();
    let geometry = *tree.geometry();
    let span = geometry.span(level);
    let Some(below) = Level::new(level.get() + 1).filter(|&below| geometry.leaf_ok(below)) else {
        return Ok(());
    };
    if span > 1 << geometry.shape().oa_bits() {
        return Ok(());
    }
    let ipa = Ipa::new((1u64 << geometry.ipa_bits()) - span);
    let live = pool.live();
    let map = Map::new(ipa, Pa::new(0), span, Attrs::MEMORY).caches(Caches::Skip);
    hold(
        tree.map(maint, &map.leaves(Leaves::Exactly(level)), budget)
            .is_err(),
        "no block: map one",
    )?;
    hold(tree.map(maint, &map, budget).is_ok(), "no block: map")?;
    let found = |tree: &Stage2<&Pool>| tree.lookup(ipa).is_ok_and(|found| found.level == below);
    hold(found(tree), "no block: level")?;
    hold(
        tree.fold(maint, ipa, level) == Err(Error::BlockLevel { level }) && found(tree),
        "no block: fold",
    )?;
    let ends = [0, span / 2, span - 8];
    hold(
        ends.iter()
            .all(|&offset| translate(ipa.get() + offset) == Ok(offset)),
        "no block: AT",
    )?;
    let gone = unmap_whole(tree, ipa, span);
    hold(gone.is_ok() && pool.live() <= live, "no block: unmap")
}

/// A block of `level`: its ends, split, with a hole, folded, collapsed. Only its
/// translation is looked at, so that it needs no RAM behind it.
fn block_at(
    tree: &mut Stage2<&Pool>,
    pool: &Pool,
    level: Level,
    high: bool,
) -> Result<(), &'static str> {
    let maint = &mut Instructions;
    let budget = &mut Budget::unlimited();
    let geometry = *tree.geometry();
    let (page, span) = (geometry.granule().page_size(), geometry.span(level));
    let ipa = (1u64 << geometry.ipa_bits()) - span;
    // As high as the output goes, so that every address bit is used.
    let top = 1u64
        << if high {
            52
        } else {
            geometry.shape().oa_bits().min(48)
        };
    let pa = top - span;
    let right = |offset: u64| translate(ipa + offset) == Ok(pa + offset);
    let block = Map::new(Ipa::new(ipa), Pa::new(pa), span, Attrs::MEMORY)
        .leaves(Leaves::Exactly(level))
        .caches(Caches::Skip);
    hold(tree.map(maint, &block, budget).is_ok(), "block: map")?;
    hold(
        tree.lookup(Ipa::new(ipa))
            .is_ok_and(|found| found.level == level),
        "block: level",
    )?;
    let ends = [0, page - 4, page, span / 2, span - page, span - 1];
    hold(ends.iter().all(|&offset| right(offset)), "block: AT")?;
    hold(translate(ipa - 1).is_err(), "block: AT below")?;

    // Split one level down, which for level 2 are pages.
    let Some(below) = Level::new(level.get() + 1) else {
        return Err("block: level below");
    };
    let step = geometry.span(below);
    let to = if geometry.leaf_ok(below) {
        below
    } else {
        Level::L3
    };
    if to == below {
        let split = tree.split(
            maint,
            &Split {
                ipa: Ipa::new(ipa),
                size: span,
                to,
            },
            |_| pool.page(),
            budget,
        );
        hold(split.is_ok(), "block: split")?;
        hold(
            tree.lookup(Ipa::new(ipa))
                .is_ok_and(|found| found.level == to),
            "block: split level",
        )?;
        hold(ends.iter().all(|&offset| right(offset)), "block: AT, split")?;
        // A hole.
        let hole = ipa + step;
        let gone = unmap_whole(tree, Ipa::new(hole), step);
        hold(gone.is_ok(), "block: hole")?;
        hold(
            translate(hole).is_err() && translate(hole + step - 1).is_err(),
            "block: AT, hole",
        )?;
        hold(
            right(step - 1) && right(2 * step),
            "block: AT, beside the hole",
        )?;
        hold(
            tree.fold(maint, Ipa::new(ipa), level).is_err(),
            "block: fold with a hole",
        )?;
        let fill = Map::new(Ipa::new(hole), Pa::new(pa + step), step, Attrs::MEMORY)
            .leaves(Leaves::Exactly(to))
            .caches(Caches::Skip);
        hold(tree.map(maint, &fill, budget).is_ok(), "block: fill")?;
        hold(
            tree.fold(maint, Ipa::new(ipa), level).is_ok(),
            "block: fold",
        )?;
        hold(
            ends.iter().all(|&offset| right(offset)),
            "block: AT, folded",
        )?;
    }
    // A page of it with other rights, which splits it, then all over again.
    let part = tree.protect(
        maint,
        Sweep::new(Ipa::new(ipa), page).partial(Partial::Split),
        Permissions {
            access: Access::None,
            execute: Execute::Never,
        },
        budget,
    );
    hold(part.is_ok(), "block: protect a page")?;
    // Not by AT: QEMU 10.0 ends itself over an AT that stage 2 does not permit.
    hold(
        met(read(ipa), Kind::Permission, ipa) && right(page),
        "block: protected page",
    )?;
    let whole = block.over(Over::Anything);
    let collapsed = tree.map_exclusive(maint, &whole, &mut Ignore, budget);
    hold(collapsed.is_ok(), "block: collapse")?;
    hold(
        tree.lookup(Ipa::new(ipa))
            .is_ok_and(|found| found.level == level),
        "block: collapsed level",
    )?;
    hold(
        ends.iter().all(|&offset| right(offset)),
        "block: AT, collapsed",
    )?;
    // Its first page goes, the rest stays; then all.
    let gone = tree.unmap(maint, &Unmap::new(Ipa::new(ipa), page), &mut Ignore, budget);
    hold(gone.is_ok(), "block: unmap a page")?;
    hold(
        translate(ipa).is_err() && right(page) && right(span - 1),
        "block: AT, a page less",
    )?;
    let gone = unmap_whole(tree, Ipa::new(ipa), span);
    hold(gone.is_ok(), "block: unmap")?;
    hold(
        ends.iter().all(|&offset| translate(ipa + offset).is_err()),
        "block: AT, unmapped",
    )
}

//! Several CPUs in one tree, each with a guest of its own in it: the operations
//! that take `&self` meet, break-before-make is seen from the other side, and what
//! one CPU took away no other may go on using. All is bounded by counts.
//!
//! | module | what the CPUs do |
//! |---|---|
//! | [`faults`] | all fault on one page at once, where there is no table |
//! | [`pages`] | each changes pages of its own in tables that all share, and looks at everybody's |
//! | [`frames`] | all map and unmap the same pages; a frame that was given back is seen no more |
//! | [`blocks`] | one splits, folds, replaces and tears down, the others read on |
//! | [`marks`] | pages are accessed while one CPU harvests: hardware's marks, or faults |

mod blocks;
mod crew;
mod faults;
mod frames;
mod marks;
mod pages;

use pgtable::{
    Attrs, Budget, Error, Features, Geometry, Granule, Ipa, Level, Map, Pa, Stage2, Stage2Config,
    Stopped, Vmid,
};
use tests::bare::console::Console;
use tests::println;
use tests::suite::Suite;

use self::frames::Sink;
use self::marks::By;
use crate::cpu::{Cpu, name};
use crate::erratum::errata;
use crate::formats::is_lpa2;
use crate::guest::{self, Stage1};
use crate::instructions::Instructions;
use crate::memory::{Data, Pool};
use crate::sequence::{Memory, place};
use crate::text::Name;

/// The tree's space; every CPU here has it.
const IPA_BITS: u8 = 40;
/// Where EL1's code is mapped, and where everything else is.
const CODE: u64 = 1 << 36;
const BASE: u64 = 1 << 39;
/// Tries after which somebody else is stuck.
const TRIES: u32 = 50_000_000;

/// A format that CPUs share a tree of.
fn geometries(cpu: &Cpu, features: Features) -> impl Iterator<Item = Geometry> {
    let granules = [Granule::K4, Granule::K16, Granule::K64].into_iter();
    let forms = granules.flat_map(|granule| [(granule, false), (granule, true)]);
    let forms = forms.filter(|&(granule, lpa2)| cpu.has(granule, lpa2));
    forms.filter_map(move |(granule, lpa2)| {
        let config = Stage2Config {
            lpa2,
            features,
            errata: errata(),
            ..Stage2Config::new(granule, IPA_BITS, cpu.pa_bits)
        };
        config.validate().ok()
    })
}

/// An empty tree, with EL1's code in it.
fn tree(geometry: Geometry, pool: &Pool) -> Result<Stage2<&Pool>, Name> {
    let page = geometry.granule().page_size();
    let root = pool.block(geometry.root_align().max(page));
    let tree = Stage2::new(geometry, Pa::new(root), Vmid::new(11), pool)
        .map_err(|error| Name::new(format_args!("new: {error}")))?;
    let code = Map::new(Ipa::new(CODE), Pa::new(guest::code()), page, Attrs::MEMORY);
    tree.map(&mut Instructions, &code, &mut Budget::unlimited())
        .map_err(|stopped| Name::new(format_args!("EL1's code: {stopped}")))?;
    Ok(tree)
}

/// This CPU's guest is in the tree now.
fn enter(geometry: &Geometry, vttbr: u64) {
    guest::load(geometry, vttbr, Stage1::Off);
    guest::code_at(CODE);
}

/// Repeats what somebody else is busy with, from where it came to; counts how
/// often that was.
fn again(
    from: u64,
    busy: &mut u32,
    mut op: impl FnMut(u64) -> Result<Ipa, Stopped<Ipa>>,
) -> Result<u64, Error> {
    let mut at = from;
    for _ in 0..TRIES {
        match op(at) {
            Err(Stopped {
                why: Error::Busy,
                next,
            }) => {
                at = next.get();
                *busy += 1;
                core::hint::spin_loop();
            }
            Err(stopped) => return Err(stopped.why),
            Ok(next) => return Ok(next.get()),
        }
    }
    Err(Error::Busy)
}

fn title(what: &str, geometry: &Geometry) -> Name {
    let features = geometry.features();
    let flag = |has: bool, text: &'static str| if has { text } else { "" };
    Name::new(format_args!(
        "several/{what} {}{}{}{}{}{}{}",
        name(geometry.granule()),
        flag(is_lpa2(geometry), "-lpa2"),
        flag(features.tlb_range, " range"),
        flag(features.fwb, " fwb"),
        flag(features.hw_access_flag, " ha"),
        flag(features.hw_dirty, " hd"),
        flag(features.bbm2, " bbm2"),
    ))
}

/// The memory that a format's guests use.
fn data(geometry: &Geometry, memory: Memory) -> Data {
    place::for_format(geometry, memory, 0)
}

/// All of it, in every format.
pub fn checks(suite: &mut Suite<Console>, cpu: &Cpu, memory: Memory) {
    println!("several: {} CPUs", crew::size());
    let oldest = Stage2Config::new(Granule::K4, 40, 40).features;
    for features in [cpu.features, oldest] {
        for geometry in geometries(cpu, features) {
            faults::check(suite, geometry, data(&geometry, memory));
            pages::check(suite, geometry, data(&geometry, memory));
            for sink in [Sink::Told, Sink::Ignored] {
                frames::check(suite, geometry, data(&geometry, memory), sink);
            }
        }
    }
    for bbm2 in [false, true] {
        if bbm2 && cpu.bbm < 2 {
            println!("several: no FEAT_BBM level 2 on this CPU");
            continue;
        }
        let features = Features {
            bbm2,
            ..cpu.features
        };
        for geometry in geometries(cpu, features) {
            blocks::check(suite, geometry, data(&geometry, memory));
        }
    }
    for (by, hafdbs) in [(By::Fault, 0), (By::AccessFlag, 1), (By::Dirty, 2)] {
        if cpu.hafdbs < hafdbs {
            println!("several: {by:?}: no FEAT_HAFDBS of level {hafdbs} on this CPU");
            continue;
        }
        let features = Features {
            hw_access_flag: hafdbs >= 1,
            hw_dirty: hafdbs >= 2,
            ..cpu.features
        };
        for geometry in geometries(cpu, features) {
            marks::check(suite, geometry, data(&geometry, memory), by);
        }
    }
}

/// Every page of tables is back, but those that hold EL1's code.
fn nothing_left(tree: &mut Stage2<&Pool>, pool: &Pool) -> Result<(), Name> {
    let end = 1u64 << IPA_BITS;
    let mut at = Ipa::new(0);
    for _ in 0..100_000 {
        if at.get() >= end {
            break;
        }
        let mut budget = Budget::entries(256);
        at = tree.teardown(&mut Instructions, at, &mut pgtable::Ignore, &mut budget);
    }
    if at.get() < end || pool.live() != 0 {
        return Err(Name::new(format_args!(
            "torn down to {at}, {} tables left",
            pool.live()
        )));
    }
    Ok(())
}

/// The first IPA of the block that holds a slot's frame, and the slot's own, when
/// frames are mapped in order from [`BASE`] on.
fn slot(geometry: &Geometry, frames: u64, n: u64) -> (u64, u64) {
    let span = geometry.span(Level::L2);
    let page = geometry.granule().page_size();
    let base = BASE & !(span - 1);
    let ipa = base + (frames & (span - 1)) + n * page;
    (ipa & !(span - 1), ipa)
}

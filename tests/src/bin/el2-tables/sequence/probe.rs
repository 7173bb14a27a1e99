//! What EL1 sees at an IPA, held against what it should be.

use pgtable::{Age, Attrs, Entry, Execute, Geometry, Ipa, Memory as Type, Pa, Rtt, Stage2};

use super::Wrong;
use super::state::{Is, Shadow, change, reads, tracks, with_write, writes};
use crate::guest::{self, Kind, fetch, fetch_el0, met, read, write};
use crate::instructions::at_guest;
use crate::memory::{CODE, Data, Pool, RETURNS, read_coherent};
use crate::text::Name;

/// Where stores go in each 4 KiB of a guest's memory.
const SCRATCH: u64 = 16;

macro_rules! ensure {
    ($right:expr, $($text:tt)*) => {
        if !$right {
            return Err(Name::new(format_args!($($text)*)));
        }
    };
}

pub(super) use ensure;

/// EL1 loads from a page so that the TLB knows it, whatever comes of it.
pub fn touch(ipa: u64) {
    let _ = read(ipa & !0xfff);
}

/// PAR_EL1 tells a translation fault of stage 2.
fn is_hole(par: u64) -> bool {
    let status = par >> 1 & 0x3f;
    (status >> 2 == 1 || status == 0x2b) && par >> 9 & 1 == 1
}

/// Whether attributes are those that were asked for, the access flag apart.
fn alike(geometry: &Geometry, seen: Attrs, asked: Attrs) -> bool {
    let asked = Attrs {
        age: seen.age,
        share: seen.share,
        ..asked
    };
    // Without FWB two types have one encoding.
    let same = !geometry.features().fwb && asked.memory == Type::FromStage1;
    seen == asked
        || seen
            == Attrs {
                memory: if same { Type::Normal } else { asked.memory },
                ..asked
            }
}

/// What `PAR_EL1.ATTR` says of a type: stage 1 is off, and write-back.
const fn attr(memory: Type) -> u8 {
    match memory {
        Type::Normal | Type::FromStage1 => 0xff,
        Type::NormalNonCacheable => 0x44,
        Type::Device(device) => (device as u8) << 2,
    }
}

/// EL1 finds nothing at the 4 KiB at `ipa`.
pub fn hole(ipa: u64) -> Result<(), Wrong> {
    let load = read(ipa);
    ensure!(
        met(load, Kind::Translation, ipa),
        "{ipa:#x}: load {load:x?} where nothing is"
    );
    let at = at_guest(ipa);
    ensure!(
        at.is_err_and(is_hole),
        "{ipa:#x}: AT {at:x?} where nothing is"
    );
    Ok(())
}

/// Tables that translate.
pub trait Translate {
    /// Their geometry.
    fn geometry(&self) -> &Geometry;
    /// Where an IPA goes.
    fn translate(&self, ipa: Ipa) -> Option<(Pa, Attrs)>;
}

impl Translate for Stage2<&Pool> {
    fn geometry(&self) -> &Geometry {
        Stage2::geometry(self)
    }
    fn translate(&self, ipa: Ipa) -> Option<(Pa, Attrs)> {
        Stage2::translate(self, ipa)
    }
}

impl Translate for Rtt<&Pool> {
    fn geometry(&self) -> &Geometry {
        Rtt::geometry(self)
    }
    fn translate(&self, ipa: Ipa) -> Option<(Pa, Attrs)> {
        Rtt::translate(self, ipa)
    }
}

/// Checks the 4 KiB at `ipa`, in the tree and with every kind of access. Hardware
/// may set the access flag and the dirty state by it.
pub fn probe(
    tree: &Stage2<&Pool>,
    shadow: &mut Shadow,
    data: &Data,
    ipa: u64,
    number: u64,
) -> Result<(), Wrong> {
    let ipa = ipa & !0xfff;
    let geometry = tree.geometry();
    let Ok(found) = tree.lookup(Ipa::new(ipa)) else {
        return Err(Name::new(format_args!("{ipa:#x} is outside")));
    };
    match shadow.at(ipa) {
        Some(Is::Mapped { pa, attrs }) => {
            if leaf(tree, data, ipa, (pa, attrs), number)? {
                // The store marked the leaf.
                let base = found.base.get();
                let end = base + geometry.span(found.level);
                change(shadow, base, end, |attrs| Attrs {
                    access: with_write(attrs.access),
                    ..attrs
                });
            }
            Ok(())
        }
        other => {
            let bits = match other {
                Some(Is::Annotated(bits)) => bits,
                _ => 0,
            };
            ensure!(
                matches!(found.entry, Entry::Invalid(seen) if seen.get() == bits),
                "{ipa:#x}: entry {:#x}, not annotation {bits:#x}",
                found.raw
            );
            hole(ipa)
        }
    }
}

/// Checks the 4 KiB at `ipa`, which go to `pa`. True when a store marked the leaf
/// dirty.
pub fn leaf(
    tree: &impl Translate,
    data: &Data,
    ipa: u64,
    (pa, attrs): (u64, Attrs),
    number: u64,
) -> Result<bool, Wrong> {
    let geometry = tree.geometry();
    let Some((to, seen)) = tree.translate(Ipa::new(ipa)) else {
        return Err(Name::new(format_args!("{ipa:#x}: no leaf, not {pa:#x}")));
    };
    ensure!(
        to.get() == pa && alike(geometry, seen, attrs),
        "{ipa:#x}: {to} {seen:?}, not {pa:#x} {attrs:?}"
    );
    let backed = data.holds(pa);
    let features = geometry.features();
    if seen.age == Age::Old {
        if !features.hw_access_flag {
            let load = read(ipa);
            ensure!(
                met(load, Kind::AccessFlag, ipa),
                "{ipa:#x}: load {load:x?}, access flag clear"
            );
            return Ok(false);
        }
        if !backed || !reads(attrs.access) {
            return Ok(false);
        }
        // The load marks it.
        touch(ipa);
        let now = tree.translate(Ipa::new(ipa));
        ensure!(
            now.is_some_and(|(_, now)| now.age == Age::Young),
            "{ipa:#x}: a load has not set the access flag"
        );
    }
    if reads(attrs.access) {
        // Not without the right to read: QEMU 10.0 ends itself over that.
        let at = at_guest(ipa);
        ensure!(
            at.is_ok_and(|at| at.pa == pa),
            "{ipa:#x}: AT {at:x?}, not {pa:#x}"
        );
        let wanted = attr(attrs.memory);
        ensure!(
            at.is_ok_and(|at| at.attr == wanted && (wanted != 0xff || at.share == 3)),
            "{ipa:#x}: AT {at:x?}, not {:?}",
            attrs.memory
        );
    }
    if !backed {
        return Ok(false);
    }
    accesses(ipa, pa, &attrs, features.hw_dirty, number)?;
    Ok(!writes(attrs.access) && tracks(&attrs, features.hw_dirty))
}

/// A load, a store and a fetch of memory that says its own address.
fn accesses(ipa: u64, pa: u64, attrs: &Attrs, hw_dirty: bool, number: u64) -> Result<(), Wrong> {
    let load = read(ipa);
    if reads(attrs.access) {
        ensure!(load == Ok(pa), "{ipa:#x}: load {load:x?}, not {pa:#x}");
    } else {
        ensure!(
            met(load, Kind::Permission, ipa),
            "{ipa:#x}: load {load:x?}, {:?}",
            attrs.access
        );
    }
    let at = ipa + SCRATCH;
    let store = write(at, number);
    if writes(attrs.access) || tracks(attrs, hw_dirty) {
        ensure!(store.is_ok(), "{at:#x}: store {store:x?}, {attrs:?}");
        let stored = read_coherent(pa + SCRATCH);
        ensure!(
            stored == number,
            "{at:#x}: stored {number:#x}, {pa:#x} has {stored:#x}"
        );
    } else {
        ensure!(
            met(store, Kind::Permission, at),
            "{at:#x}: store {store:x?}, {:?}",
            attrs.access
        );
    }
    // What comes of fetches from Device memory is the CPU's choice.
    if !matches!(attrs.memory, Type::Device(_)) {
        let at = ipa + CODE;
        let el1 = matches!(attrs.execute, Execute::All | Execute::El1);
        let el0 = matches!(attrs.execute, Execute::All | Execute::El0);
        for (level, fetched, may) in [(1, fetch(at), el1), (0, fetch_el0(at), el0)] {
            let right = if may {
                fetched == Ok(RETURNS)
            } else {
                met(fetched, Kind::Permission, at)
            };
            ensure!(
                right,
                "{at:#x}: fetch at EL{level} {fetched:x?}, {:?}",
                attrs.execute
            );
        }
    }
    Ok(())
}

/// EL1 sees this guest now.
pub fn install(tree: &Stage2<&Pool>) {
    guest::switch(tree.vttbr());
}

//! What to invalidate: from changed entries to TLBI instructions.
//!
//! [`Pending`] collects what an operation changed. [`Plan`] turns it into
//! instructions by a rule that is written here and tested:
//!
//! 1. Changes are kept as up to [`RUNS`] runs of neighbouring entries. When
//!    more come, the last run grows to cover the new one (never outside the
//!    ranges of the operations that are gathered). Leaves that are held frozen
//!    until the invalidation are never covered so: what is there is flushed
//!    first. A run knows the smallest entry in it (its
//!    step) and its level, if all entries are leaves of one level.
//! 2. A run of one entry is one operation by address. With FEAT_TLBIRANGE a
//!    longer run is a series of range operations that covers it exactly.
//!    Without, it is one operation by address per step.
//! 3. If that makes more than one table's number of entries (512, 2048 or
//!    8192) of operations together, the whole VMID is invalidated instead.
//!
//! Level hints go only with leaves of levels 1 to 3, all of one level, and
//! need FEAT_TTL: a removed table is never hinted.

use crate::addr::{Extent, Ia, Level};
use crate::config::Format;
use crate::errata::Errata;
use crate::granule::Granule;
use crate::maintenance::{Stage2Regs, Tlbi, TlbiKind};
use crate::shape::{OaForm, Shape};

/// How many runs of changed entries an operation keeps apart before it covers
/// two by one.
pub const RUNS: usize = 8;

/// Neighbouring changed entries.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    extent: Extent,
    /// log2 of the smallest entry's span.
    step: u32,
    /// None for leaves of several levels, or a table: no hint.
    level: Option<Level>,
    /// Every entry of the run is frozen by whoever keeps the [`Pending`]:
    /// nothing else may be covered by it.
    held: bool,
}

impl Run {
    /// A table whose entries covered `extent`, as [`Pending::table`] has it.
    pub(crate) const fn table(extent: Extent, step: u32) -> Self {
        Self {
            extent,
            step,
            level: None,
            held: false,
        }
    }

    /// Whether rule 2's first case holds.
    #[inline]
    pub(crate) const fn is_one_entry(&self) -> bool {
        self.extent.size() >> self.step == 1
    }

    /// The operation of that case.
    #[inline]
    pub(crate) fn op(&self, tlb: &Tlb) -> Tlbi {
        by_address(tlb, self.extent.start, self.level)
    }

    /// Leaves of `level` in `extent`.
    pub(crate) const fn leaves(shape: &Shape, extent: Extent, level: Level) -> Self {
        Self {
            extent,
            step: shape.shift(level),
            level: Some(level),
            held: false,
        }
    }
}

const NO_RUN: Run = Run {
    extent: Extent::EMPTY,
    step: 12,
    level: None,
    held: false,
};

/// Changed entries whose old translations a TLB may still hold.
#[derive(Clone, Debug)]
pub(crate) struct Pending {
    runs: [Run; RUNS],
    used: usize,
}

impl Pending {
    pub(crate) const fn new() -> Self {
        Self {
            runs: [NO_RUN; RUNS],
            used: 0,
        }
    }

    #[inline]
    pub(crate) const fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Notes leaves of `level` that stood in `extent`.
    #[inline]
    pub(crate) fn leaves(&mut self, shape: &Shape, extent: Extent, level: Level) {
        self.add(Run::leaves(shape, extent, level));
    }

    /// As [`leaves`](Self::leaves) for leaves that the caller holds frozen.
    /// Such a run grows by neighbours only: [`is_full`](Self::is_full) is
    /// asked before.
    #[inline]
    pub(crate) fn held(&mut self, shape: &Shape, extent: Extent, level: Level) {
        self.add(Run {
            extent,
            step: shape.shift(level),
            level: Some(level),
            held: true,
        });
    }

    /// True when one more run would be covered by one that was noted before.
    #[inline]
    pub(crate) const fn is_full(&self) -> bool {
        self.used == RUNS
    }

    /// True when nothing can be added without covering entries that are
    /// held frozen together with others.
    #[cfg(feature = "extra")]
    #[inline]
    pub(crate) fn is_full_of_held(&self) -> bool {
        self.is_full() && self.runs[RUNS - 1].held
    }

    /// Where the entries are all held frozen.
    pub(crate) fn held_extents(&self) -> impl Iterator<Item = Extent> + '_ {
        let held = self.runs().iter().filter(|run| run.held);
        held.map(|run| run.extent)
    }

    /// Notes a table whose entries covered `extent`. `step` is log2 of
    /// the smallest entry that may have stood in it, or of the whole when
    /// nothing did.
    #[inline]
    pub(crate) fn table(&mut self, extent: Extent, step: u32) {
        self.add(Run::table(extent, step));
    }

    fn add(&mut self, new: Run) {
        if new.extent.is_empty() {
            return;
        }
        let full = self.is_full();
        if let Some(last) = self.runs[..self.used].last_mut() {
            let gap = new.extent.start > last.extent.end || new.extent.end < last.extent.start;
            if full || (new.held == last.held && !gap) {
                // A gap inside the grown run holds nothing that was changed,
                // but its entries may be of any size.
                last.extent.start = last.extent.start.min(new.extent.start);
                last.extent.end = last.extent.end.max(new.extent.end);
                last.step = last.step.min(new.step);
                if gap || last.level != new.level {
                    last.level = None;
                }
                return;
            }
        }
        self.runs[self.used] = new;
        self.used += 1;
    }

    pub(crate) fn runs(&self) -> &[Run] {
        &self.runs[..self.used]
    }
}

/// Whose translations: the regime that a tree of tables serves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Regime {
    /// Stage 2 under these registers.
    Stage2(Stage2Regs),
    /// EL2's own stage 1.
    El2,
}

/// What decides the form of TLBI operands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Tlb {
    pub(crate) regime: Regime,
    pub(crate) granule: Granule,
    /// log2 of the unit of a range operation's `BaseADDR`.
    base_bits: u32,
    range: bool,
    ttl: bool,
    pub(crate) errata: Errata,
}

impl Tlb {
    pub(crate) fn new(regime: Regime, format: &Format) -> Self {
        let Format {
            shape,
            features,
            errata,
        } = format;
        let lpa2 = shape.oa_form() == OaForm::Lpa2;
        let unit = if lpa2 { 16 } else { shape.page_bits() };
        Self {
            regime,
            granule: shape.granule(),
            base_bits: unit,
            range: features.tlb_range,
            ttl: features.ttl,
            errata: *errata,
        }
    }
}

/// What to do about a [`Pending`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Plan {
    /// The operations that [`for_each`] lists, which cover the changed
    /// entries exactly.
    Ranges,
    /// Everything of the regime (of the VMID, or of EL2).
    Whole,
}

/// Applies rule 3.
pub(crate) fn decide(pending: &[Run], tlb: &Tlb) -> Plan {
    let most = tlb.granule.entries() as u64;
    let mut ops = 0u64;
    for run in pending {
        ops = ops.saturating_add(if tlb.range {
            // At most: alignment, remainder, and 2^21 pages an operation, or
            // 2^16 where lengths have to stay below 4 GiB.
            let pages = run.extent.size() >> tlb.granule.page_bits();
            let short = tlb.errata.has(Errata::QEMU_RANGE_LENGTH);
            24 + (pages >> if short { 16 } else { 21 })
        } else {
            run.extent.size() >> run.step
        });
    }
    if ops > most {
        Plan::Whole
    } else {
        Plan::Ranges
    }
}

/// Calls `emit` for each operation of [`Plan::Ranges`].
pub(crate) fn for_each(pending: &[Run], tlb: &Tlb, mut emit: impl FnMut(Tlbi)) {
    for run in pending {
        if tlb.range && run.extent.size() >> run.step > 1 {
            series(run, tlb, &mut emit);
        } else {
            let mut at = run.extent.start;
            while at < run.extent.end {
                emit(by_address(tlb, at, run.level));
                at = at.plus(1 << run.step);
            }
        }
    }
}

/// The range operations that cover a run exactly, spec 1.6.
///
/// Scales go down, so that a base once aligned for `BaseADDR` stays so: all
/// but the last operation have lengths of 64 pages or more.
fn series(run: &Run, tlb: &Tlb, emit: &mut impl FnMut(Tlbi)) {
    let page = tlb.granule.page_bits();
    let mut at = run.extent.start;
    let mut pages = run.extent.size() >> page;
    let mut scale = 3u32;
    while pages > 0 {
        let unaligned = at.get() & ((1 << tlb.base_bits) - 1) != 0;
        if pages == 1 || unaligned {
            emit(by_address(tlb, at, run.level));
            at = at.plus(1 << page);
            pages -= 1;
            continue;
        }
        let unit = 5 * scale + 1;
        let mut units = (pages >> unit).min(32);
        if tlb.errata.has(Errata::QEMU_RANGE_LENGTH) {
            // Below 4 GiB: the largest multiple of the unit that is.
            let below = ((1u64 << 32) - 1) >> (unit + u32::from(page));
            units = units.min(below);
        }
        if units == 0 {
            // One page at least is left for scale 0 to find two of, or for
            // the operation by address above.
            scale -= 1;
            continue;
        }
        emit(range(tlb, at, scale, units, run.level));
        at = at.plus(units << (unit + u32::from(page)));
        pages -= units << unit;
    }
}

/// The level of a hint: 0 says nothing. Level 0 leaves go without.
fn hint(tlb: &Tlb, level: Option<Level>) -> u64 {
    match level {
        Some(level) if tlb.ttl && level >= Level::L1 => level.get() as u64,
        _ => 0,
    }
}

/// `TLBI IPAS2E1IS` or `VAE2IS`: address >> 12 whatever the granule.
fn by_address(tlb: &Tlb, at: Ia, level: Option<Level>) -> Tlbi {
    let kind = match tlb.regime {
        Regime::Stage2(_) => TlbiKind::Ipas2e1is,
        Regime::El2 => TlbiKind::Vae2is,
    };
    Tlbi::new(kind, address_operand(tlb, at, level))
}

fn address_operand(tlb: &Tlb, at: Ia, level: Option<Level>) -> u64 {
    let width = match tlb.regime {
        Regime::Stage2(_) => 40,
        Regime::El2 => 44,
    };
    let mut operand = (at.get() >> 12) & ((1 << width) - 1);
    let level = hint(tlb, level);
    if level != 0 {
        let tg = tlb.granule.tlbi_tg();
        operand |= (tg << 2 | level) << 44;
    }
    operand
}

/// `TLBI RIPAS2E1IS` or `RVAE2IS` of `units` (1 to 32) units of `scale`.
fn range(tlb: &Tlb, at: Ia, scale: u32, units: u64, level: Option<Level>) -> Tlbi {
    let kind = match tlb.regime {
        Regime::Stage2(_) => TlbiKind::Ripas2e1is,
        Regime::El2 => TlbiKind::Rvae2is,
    };
    let tg = tlb.granule.tlbi_tg();
    let num = units - 1;
    let operand = tg << 46
        | u64::from(scale) << 44
        | num << 39
        | hint(tlb, level) << 37
        | ((at.get() >> tlb.base_bits) & ((1 << 37) - 1));
    Tlbi::new(kind, operand)
}

/// The operation by address on this CPU alone, for a relaxed leaf.
#[cfg(feature = "extra")]
pub(crate) fn local(tlb: &Tlb, at: Ia, level: Level) -> Tlbi {
    Tlbi::new(TlbiKind::Ipas2e1, address_operand(tlb, at, Some(level)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Stage2Config;
    extern crate std;
    use std::vec::Vec;

    fn tlb(granule: Granule, lpa2: bool, errata: Errata) -> (Shape, Tlb) {
        let mut config = Stage2Config::new(granule, 48, 52);
        config.lpa2 = lpa2;
        config.features.tlb_range = true;
        config.features.ttl = true;
        config.errata = errata;
        let geometry = config.validate().unwrap();
        let regime = Regime::Stage2(Stage2Regs::default());
        (*geometry.shape(), Tlb::new(regime, &geometry.0))
    }

    fn ops(tlb: &Tlb, pending: &Pending) -> Vec<Tlbi> {
        let mut ops = Vec::new();
        for_each(pending.runs(), tlb, |op| ops.push(op));
        ops
    }

    /// The bytes that an operation covers, decoded from its bits alone.
    fn covers(op: Tlbi, granule: Granule, lpa2: bool) -> (u64, u64) {
        let x = op.operand();
        match op.kind() {
            TlbiKind::Ipas2e1is => {
                let at = (x & ((1 << 40) - 1)) << 12;
                (at, at + granule.page_size())
            }
            TlbiKind::Ripas2e1is => {
                let tg = match granule {
                    Granule::K4 => 1,
                    Granule::K16 => 2,
                    Granule::K64 => 3,
                };
                assert_eq!(x >> 46 & 3, tg);
                assert_eq!(x >> 48, 0);
                let (scale, num) = (x >> 44 & 3, x >> 39 & 31);
                let base_bits = if lpa2 {
                    16
                } else {
                    u32::from(granule.page_bits())
                };
                let at = (x & ((1 << 37) - 1)) << base_bits;
                (
                    at,
                    at + ((num + 1) << (5 * scale + 1)) * granule.page_size(),
                )
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_vectors_of_the_facts() {
        let cases = [
            (8u64 << 30, false, 0x0000_7f80_0004_0000u64),
            (8 << 30, true, 0x0000_7f80_0000_4000),
            (512 << 12, false, 0x0000_5380_0004_0000),
        ];
        for (size, lpa2, operand) in cases {
            let (_, tlb) = tlb(Granule::K4, lpa2, Errata::NONE);
            let mut pending = Pending::new();
            pending.table(Extent::new(Ia::new(0x4000_0000), size), 12);
            let ops = ops(&tlb, &pending);
            assert_eq!(ops.len(), 1);
            assert_eq!(ops[0].operand(), operand);
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "too long there")]
    fn series_cover_exactly() {
        let counts = [
            1u64,
            2,
            3,
            62,
            63,
            64,
            65,
            511,
            512,
            513,
            4096,
            (1 << 21) - 1,
            1 << 21,
        ];
        for granule in Granule::ALL {
            for lpa2 in [false, true] {
                if lpa2 && granule == Granule::K64 {
                    continue;
                }
                for errata in [Errata::NONE, Errata::QEMU_RANGE_LENGTH] {
                    let (shape, tlb) = tlb(granule, lpa2, errata);
                    for pages in counts.into_iter().chain([(1 << 21) + 1]) {
                        for first in [0u64, 1, 15, 16, 17, 63] {
                            let page = granule.page_size();
                            let start = (1 << 30) + first * page;
                            let end = start + pages * page;
                            let mut pending = Pending::new();
                            pending.leaves(
                                &shape,
                                Extent::new(Ia::new(start), end - start),
                                Level::L3,
                            );
                            let mut at = start;
                            for op in ops(&tlb, &pending) {
                                let (from, to) = covers(op, granule, lpa2);
                                assert_eq!(from, at);
                                if errata != Errata::NONE {
                                    assert!(to - from < 1 << 32);
                                }
                                at = to;
                            }
                            assert_eq!(at, end, "{granule:?} {lpa2} {pages} {first}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn hints_only_for_leaves_of_one_level() {
        let (shape, tlb) = tlb(Granule::K16, false, Errata::NONE);
        let mut pending = Pending::new();
        pending.leaves(&shape, Extent::new(Ia::new(0x4000_0000), 0x4000), Level::L3);
        // TTL = TG 2 << 2 | level 3, IPA >> 12 although pages have 16K.
        assert_eq!(ops(&tlb, &pending)[0].operand(), 0b1011 << 44 | 0x4_0000);
        pending.table(Extent::new(Ia::new(0x4000_4000), 0x4000), 14);
        assert!(
            ops(&tlb, &pending)
                .iter()
                .all(|op| op.operand() >> 37 & 3 == 0)
        );
    }

    #[test]
    fn more_runs_than_kept_apart_are_covered() {
        let (shape, tlb) = tlb(Granule::K4, false, Errata::NONE);
        let mut pending = Pending::new();
        let pages: Vec<u64> = (0..20).map(|i| 0x4000_0000 + i * 0x5000).collect();
        for &at in &pages {
            pending.leaves(&shape, Extent::new(Ia::new(at), 0x1000), Level::L3);
        }
        let ops = ops(&tlb, &pending);
        for &at in &pages {
            let hit = |op: &Tlbi| {
                let (from, to) = covers(*op, Granule::K4, false);
                from <= at && at < to
            };
            assert!(ops.iter().any(hit), "{at:#x}");
        }
    }
}

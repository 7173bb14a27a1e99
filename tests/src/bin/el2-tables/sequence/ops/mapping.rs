//! Mapping and unmapping: all that changes what is mapped where.

use pgtable::{
    Annotation, Attrs, Budget, Caches, Error, HeldLeaf, Ignore, Ipa, Leaves, Level, Map, Over, Pa,
    Partial, RemovedLeaf, Stopped, Unmap, UnmapLater,
};

use super::{Ended, Run, budget, ended, reached};
use crate::instructions::Instructions;
use crate::memory::DATA;
use crate::sequence::probe::ensure;
use crate::sequence::state::Is;
use crate::sequence::{Kind, Op, Wrong};
use crate::text::Name;

/// Calls after which an operation on a range should have ended. Each does one unit
/// of work at least: an entry, a table, or 4 KiB cleaned, which is why it may end
/// where it began.
fn patience(start: u64, end: u64) -> u64 {
    20_000 + (end - start).min(1 << 31) / 1024
}

impl Run<'_> {
    /// Pages that are alike all over the `size` bytes around `ipa`.
    pub(super) fn pages(
        &mut self,
        guest: usize,
        ipa: u64,
        size: u64,
        b: u64,
        c: u64,
    ) -> Result<(), Wrong> {
        let start = ipa & !(size - 1);
        // Memory that is aligned as the whole is: 64K has blocks too large for RAM.
        let variant = if size > DATA { 4 } else { c >> 20 & 1 };
        let numbers = [0, 0, b, variant << 20 | 1 << 4];
        let whole = (start, start + size);
        self.map(guest, whole, true, Over::Anything, numbers, Some(Level::L3))?;
        Ok(())
    }

    pub(super) fn map(
        &mut self,
        guest: usize,
        (start, end): (u64, u64),
        exclusive: bool,
        over: Over,
        [_, _, b, c]: Op,
        level: Option<Level>,
    ) -> Result<Ended, Wrong> {
        let attrs = self.places.attrs(b >> 8);
        let pa = self.places.target(start, c >> 20);
        let leaves = match (level, c >> 16 & 3) {
            (Some(level), _) => Leaves::Exactly(level),
            (None, 0) => Leaves::Exactly(Level::L3),
            (None, 1) => Leaves::AtMost(Level::L2),
            (None, _) => Leaves::Largest,
        };
        // QEMU has no caches: memory is clean, and blocks are as large as they
        // can be. Fewer pages are maintained as on a CPU that has.
        let caches = if end - start < self.geometry.span(Level::L2) {
            Caches::Maintain
        } else {
            Caches::Skip
        };
        let mut at = start;
        let mut calls = 0;
        loop {
            let here = pa + (at - start);
            let map = Map::new(Ipa::new(at), Pa::new(here), end - at, attrs)
                .leaves(leaves)
                .over(over)
                .caches(caches);
            let it = &mut self.guests[guest];
            let result = if exclusive {
                let mut sink = |_: RemovedLeaf| ();
                it.tree
                    .map_exclusive(&mut Instructions, &map, &mut sink, &mut budget(c))
            } else {
                it.tree.map(&mut Instructions, &map, &mut budget(c))
            };
            if let Err(Stopped { why, .. }) = result {
                let known = matches!(
                    why,
                    Error::Exists { .. } | Error::NoMem | Error::NeedsExclusive { .. }
                );
                ensure!(known, "{why}");
            }
            let next = reached(result);
            calls += 1;
            ensure!(calls < patience(start, end), "no end at {at:#x}");
            self.check_over(guest, (at, next), over, here, &attrs)?;
            let state = Is::Mapped { pa: here, attrs };
            self.guests[guest].shadow.set(at, next, state);
            at = next;
            if at >= end || result.is_err() {
                return Ok(ended(result));
            }
        }
    }

    /// What a mapping went over is what `over` allows.
    pub(super) fn check_over(
        &self,
        guest: usize,
        (start, end): (u64, u64),
        over: Over,
        pa: u64,
        attrs: &Attrs,
    ) -> Result<(), Wrong> {
        for piece in self.guests[guest].shadow.pieces(start, end) {
            let fine = match piece.state {
                Is::Mapped {
                    pa: was,
                    attrs: had,
                } => {
                    let same = Attrs {
                        age: attrs.age,
                        ..had
                    } == *attrs
                        || !self.geometry.features().fwb;
                    over == Over::Anything || (was == pa + (piece.start - start) && same)
                }
                Is::Annotated(_) => over != Over::Nothing,
            };
            ensure!(
                fine,
                "{:#x}: went over {:?} with {over:?}",
                piece.start,
                piece.state
            );
        }
        Ok(())
    }

    /// Unmaps in one of the three ways. EL1's code stays.
    pub(super) fn unmap(
        &mut self,
        guest: usize,
        start: u64,
        end: u64,
        kind: Kind,
        partial: Partial,
        c: u64,
    ) -> Result<Ended, Wrong> {
        let code = self.places.code();
        let all = start <= code && code < end;
        let it = &mut self.guests[guest];
        let shadow = &mut *it.shadow;
        let (mut low, mut high) = (u64::MAX, 0);
        let mut wrong = None;
        let mut sink = |leaf: RemovedLeaf| {
            let (ia, to, pa) = (
                leaf.ipa().get(),
                leaf.ipa().get() + leaf.size(),
                leaf.pa().get(),
            );
            if all && ia == code {
                return;
            }
            low = low.min(ia);
            high = high.max(to);
            let right = shadow.covers(ia, to)
                && shadow.pieces(ia, to).all(|piece| {
                    matches!(piece.state, Is::Mapped { pa: was, .. } if was == pa + (piece.start - ia))
                });
            if !right {
                let told = Name::new(format_args!("told of {ia:#x} to {to:#x} -> {pa:#x}"));
                wrong.get_or_insert(told);
            }
            shadow.clear(ia, to);
        };
        let cpu = &mut Instructions;
        let mut at = start;
        let mut result = Ok(Ipa::new(start));
        let mut calls = 0;
        while at < end {
            let (from, size) = (Ipa::new(at), end - at);
            let tree = &mut it.tree;
            result = match kind {
                Kind::UnmapLeaves => tree.unmap_leaves(
                    cpu,
                    &Unmap::new(from, size).partial(partial),
                    &mut sink,
                    &mut budget(c),
                ),
                Kind::UnmapLater => {
                    let mut gather = tree.gather();
                    let mut held: [Option<HeldLeaf>; 64] = [const { None }; 64];
                    let mut count = 0;
                    let done = tree.unmap_later(
                        cpu,
                        UnmapLater::new(from, size, &mut gather).partial(partial),
                        &mut Budget::entries(1 + (c >> 6 & 63)),
                        |leaf| {
                            held[count] = Some(leaf);
                            count += 1;
                        },
                    );
                    let synced = tree.sync(cpu, gather).expect("of this tree");
                    for leaf in held.into_iter().flatten() {
                        match leaf.release(&synced) {
                            Ok(leaf) => sink(leaf),
                            Err(leaf) => {
                                let ia = leaf.ipa().get();
                                return Err(Name::new(format_args!("{ia:#x} is not released")));
                            }
                        }
                    }
                    done
                }
                _ => tree.unmap(
                    cpu,
                    &Unmap::new(from, size).partial(partial),
                    &mut sink,
                    &mut budget(c),
                ),
            };
            calls += 1;
            let next = reached(result);
            ensure!(calls < patience(start, end), "no end at {at:#x}");
            at = next;
            if let Err(Stopped { why, .. }) = result {
                let known = matches!(why, Error::InsideBlock { .. } | Error::NoMem);
                ensure!(known, "{why}");
                break;
            }
        }
        if let Some(wrong) = wrong {
            return Err(wrong);
        }
        for piece in shadow.pieces(start, at) {
            ensure!(
                matches!(piece.state, Is::Annotated(_)),
                "{:#x} to {:#x} unmapped, and not told",
                piece.start,
                piece.end
            );
        }
        if kind != Kind::UnmapLater {
            shadow.clear(start, at);
        }
        if all {
            self.map_code(guest)?;
        }
        if low < high {
            self.settle(guest, low, high)?;
        }
        Ok(ended(result))
    }

    /// What is mapped in a range goes, and an annotation is left.
    pub(super) fn annotate(
        &mut self,
        guest: usize,
        start: u64,
        size: u64,
        partial: Partial,
        b: u64,
    ) -> Result<Ended, Wrong> {
        let it = &mut self.guests[guest];
        let annotation = Annotation::new((b >> 8 & 0xfff) << 2).unwrap_or(Annotation::EMPTY);
        let partial = if partial == Partial::DropWhole {
            Partial::Split
        } else {
            partial
        };
        let result = it.tree.unmap(
            &mut Instructions,
            &Unmap::new(Ipa::new(start), size)
                .partial(partial)
                .leaving(annotation),
            &mut Ignore,
            &mut Budget::unlimited(),
        );
        let next = reached(result);
        if annotation == Annotation::EMPTY {
            it.shadow.clear(start, next);
        } else {
            it.shadow.set(start, next, Is::Annotated(annotation.get()));
        }
        Ok(ended(result))
    }
}

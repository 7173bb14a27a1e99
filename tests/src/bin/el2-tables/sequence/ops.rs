//! Operations on two guests' trees by number, and what each of them should do.

use pgtable::{
    Annotation, Attrs, Budget, Change, Dirty, Entry, Error, Execute, Flush, Gather, Geometry,
    HeldLeaf, Ignore, Ipa, Leaves, Level, Map, Next, Over, Pa, Partial, Permissions, RemovedLeaf,
    Stage2, Stopped, TableMem, Visit, Vmid,
};
use tests::random::Random;
use tests::{mrs, println};

use super::place::Places;
use super::probe::{ensure, install, probe, touch};
use super::state::{Is, PIECES, Shadow, change, either, shadow, without_write};
use super::{KINDS, Op, Tally, Wrong, block, told};
use crate::census;
use crate::guest::{self, Kind, Stage1};
use crate::instructions::Instructions;
use crate::memory::{DATA, Data, Pool};
use crate::text::Name;

/// IPAs that are looked at after an operation.
const POINTS: usize = 20;

struct Guest<'p> {
    tree: Stage2<&'p Pool>,
    shadow: &'static mut Shadow,
}

/// How an operation ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ended {
    Done,
    Refused,
}

fn ended<A: PartialEq>(result: Result<A, Stopped<A>>) -> Ended {
    match result {
        Ok(_) => Ended::Done,
        Err(_) => Ended::Refused,
    }
}

struct Run<'p> {
    pool: &'p Pool,
    geometry: Geometry,
    places: Places,
    data: Data,
    guests: [Guest<'p>; 2],
    random: Random,
}

/// Runs `length` operations, and takes everything apart.
pub fn run(
    random: &mut Random,
    geometry: Geometry,
    data: Data,
    length: u64,
    tally: &mut Tally,
) -> Result<(), Wrong> {
    let page = geometry.granule().page_size();
    let pool = Pool::new(page);
    let guest = |index: usize, vmid: u16| {
        let root = pool.block(geometry.root_align().max(page));
        let tree = Stage2::new(geometry, Pa::new(root), Vmid::new(vmid), &pool)
            .map_err(|error| Name::new(format_args!("new: {error}")))?;
        // SAFETY: One run at a time, and one guest of each number in it.
        let shadow = unsafe { shadow(index) };
        Ok(Guest { tree, shadow })
    };
    let mut run = Run {
        pool: &pool,
        geometry,
        places: Places::new(geometry, data),
        data,
        guests: [guest(0, 5)?, guest(1, 9)?],
        random: random.clone(),
    };
    for guest in 0..2 {
        run.map_code(guest)?;
    }
    guest::load(&geometry, run.guests[0].tree.vttbr(), Stage1::Off);
    guest::code_at(run.places.code());
    let result = run.operations(length, tally);
    pool.limit(u64::MAX);
    let end = run.finish();
    guest::code_at(guest::code());
    result.and(end)
}

fn budget(c: u64) -> Budget {
    match c >> 4 & 3 {
        0 => Budget::entries(1 + (c >> 6 & 63)),
        _ => Budget::unlimited(),
    }
}

impl<'p> Run<'p> {
    /// Every other sequence is of a few kinds in one place, so that they meet.
    fn operations(&mut self, length: u64, tally: &mut Tally) -> Result<(), Wrong> {
        let focus = self.random.word();
        for number in 0..length {
            let mut op: Op = core::array::from_fn(|_| self.random.word());
            let mut kind = op[0] % KINDS.len() as u64;
            if focus & 1 == 1 {
                let few = [0, 3, focus >> 8 & 31, focus >> 13 & 31, focus >> 18 & 31];
                kind = few[(op[0] >> 40) as usize % few.len()] % KINDS.len() as u64;
                op[1] = op[1] & !0x1f | focus >> 3 & 0x1f;
            }
            let kind = kind as usize;
            if told() {
                println!("  operation {number}, {}: {op:x?}", KINDS[kind]);
            }
            let ended = self.step(kind, op).map_err(|what| {
                Name::new(format_args!(
                    "operation {number} of {length}, {}: {what}",
                    KINDS[kind]
                ))
            })?;
            match ended {
                Ended::Done => tally.done[kind] += 1,
                Ended::Refused => tally.refused[kind] += 1,
            }
        }
        Ok(())
    }

    /// EL1's code, where it will run.
    fn map_code(&self, guest: usize) -> Result<(), Wrong> {
        let map = Map::new(
            Ipa::new(self.places.code()),
            Pa::new(guest::code()),
            self.places.page(),
            Attrs::MEMORY,
        );
        let tree = &self.guests[guest].tree;
        let mapped = tree.map(&mut Instructions, &map, &mut Budget::unlimited());
        ensure!(mapped.is_ok(), "EL1's code: {mapped:?}");
        Ok(())
    }

    /// The first IPA and the end of the leaf at `ipa`.
    fn leaf(&self, guest: usize, ipa: u64) -> Option<(u64, u64)> {
        let found = self.guests[guest].tree.lookup(Ipa::new(ipa)).ok()?;
        let base = found.base.get();
        matches!(found.entry, Entry::Leaf { .. })
            .then(|| (base, base + self.geometry.span(found.level)))
    }

    /// `[start, end)` with the leaves at its ends whole.
    fn whole(&self, guest: usize, start: u64, end: u64) -> (u64, u64) {
        let low = self.leaf(guest, start).map_or(start, |leaf| leaf.0);
        let high = self
            .leaf(guest, end - 1)
            .map_or(end, |leaf| leaf.1.max(end));
        (low, high)
    }

    /// Lets the TLB know a page, if there is memory behind it.
    fn touch(&self, guest: usize, ipa: u64) {
        let backed = match self.guests[guest].shadow.at(ipa & !0xfff) {
            Some(Is::Mapped { pa, .. }) => self.data.holds(pa),
            _ => true,
        };
        if backed {
            touch(ipa);
        }
    }

    fn step(&mut self, kind: usize, op: Op) -> Result<Ended, Wrong> {
        let [bits, a, b, c] = op;
        // Mostly the guest that is installed: its TLB entries live.
        let installed = mrs!("vttbr_el2");
        let current = usize::from(self.guests[1].tree.vttbr() == installed);
        let guest = if bits >> 10 & 3 == 3 {
            1 - current
        } else {
            current
        };
        if self.guests[guest].shadow.len() > PIECES - 100 {
            self.unmap(guest, 0, self.places.end(), 8, Partial::Split, 0x40)?;
        }
        let (start, size) = self.places.range(a, b);
        let end = start + size;
        let (low, high) = self.whole(guest, start, end);
        if guest == current {
            for ipa in [start, start + size / 2, end - 1, low, high - 1] {
                self.touch(guest, ipa);
            }
        }
        // Now and then there is soon no memory for tables.
        self.pool.limit(if bits >> 12 & 7 == 7 {
            bits >> 15 & 3
        } else {
            u64::MAX
        });
        let result = self.operate(kind, guest, (start, end), (low, high), [bits, a, b, c]);
        self.pool.limit(u64::MAX);
        let ended = result?;
        let now = mrs!("vttbr_el2");
        ensure!(
            now == installed || matches!(kind, 14 | 15 | 23 | 26),
            "VTTBR_EL2 is {now:#x}, was {installed:#x}"
        );
        if kind != 25 {
            self.settle(guest, low.min(start), high.max(end))?;
        }
        Ok(ended)
    }

    fn operate(
        &mut self,
        kind: usize,
        guest: usize,
        (start, end): (u64, u64),
        (low, high): (u64, u64),
        [bits, a, b, c]: Op,
    ) -> Result<Ended, Wrong> {
        let cpu = &mut Instructions;
        let all = &mut Budget::unlimited();
        let (ipa, size) = (Ipa::new(start), end - start);
        let partial = [Partial::Split, Partial::DropWhole, Partial::Refuse][(c % 3) as usize];
        let over = [Over::Anything, Over::Invalid, Over::Nothing][(c / 3 % 3) as usize];
        let it = &mut self.guests[guest];
        match kind {
            0..=5 => {
                let numbers = [bits, a, b, c];
                return self.map(guest, (start, end), kind >= 3, over, numbers, None);
            }
            6..=9 => return self.unmap(guest, start, end, kind, partial, c),
            10 => {
                let bits = (b >> 8 & 0xfff) << 2;
                let annotation = Annotation::new(bits).unwrap_or(Annotation::EMPTY);
                let keep = if partial == Partial::DropWhole {
                    Partial::Split
                } else {
                    partial
                };
                let result = it
                    .tree
                    .annotate(cpu, ipa, size, annotation, keep, &mut Ignore, all);
                let next = reached(result);
                if annotation == Annotation::EMPTY {
                    it.shadow.clear(start, next);
                } else {
                    it.shadow.set(start, next, Is::Annotated(annotation.get()));
                }
                return Ok(ended(result));
            }
            11 | 12 => {
                let wanted = self.places.attrs(b >> 8);
                let permissions = Permissions {
                    access: wanted.access,
                    execute: wanted.execute,
                };
                let mut gather = Gather::new();
                let flush = if c >> 8 & 1 == 1 {
                    Flush::Later(&mut gather)
                } else {
                    Flush::Now
                };
                let result = it
                    .tree
                    .protect(cpu, ipa, size, permissions, partial, flush, all);
                let _synced = it.tree.sync(cpu, gather);
                let next = reached(result);
                let (from, to) = match partial {
                    Partial::DropWhole if next >= end => (low, high),
                    Partial::DropWhole => (low, next),
                    _ => (start, next),
                };
                let keeps = super::state::writes(wanted.access);
                change(it.shadow, from, to, |attrs| Attrs {
                    access: wanted.access,
                    execute: wanted.execute,
                    dirty: if keeps { attrs.dirty } else { Dirty::Fault },
                    ..attrs
                });
                return Ok(ended(result));
            }
            13 => {
                let result = it.tree.write_protect(cpu, ipa, size, Flush::Now, all);
                ensure!(result == Ok(Ipa::new(end)), "{result:?}");
                change(it.shadow, low, high, |attrs| Attrs {
                    access: without_write(attrs.access),
                    dirty: Dirty::Fault,
                    ..attrs
                });
            }
            14 => return self.relax(guest, start, b),
            15 => return self.age(guest, start, size, c),
            16 => {
                let marked = it.tree.mark_young(cpu, ipa);
                let mapped = matches!(it.shadow.at(start), Some(Is::Mapped { .. }));
                ensure!(marked.is_ok() == mapped, "{marked:?}, mapped {mapped}");
                if !mapped {
                    return Ok(Ended::Refused);
                }
            }
            17 => return self.harvest(guest, (start, end), (low, high)),
            18 => return self.split(guest, start, end, b, c),
            19 => {
                // Every other time there is something to fold.
                if b & 1 == 0 {
                    self.pages(guest, start, block(&self.geometry), b, c)?;
                }
                return self.fold(guest, start);
            }
            20 => {
                let bits = self.geometry.granule().contiguous_bits(Level::L3);
                if c & 3 == 0 {
                    let group = self.places.page() << bits.unwrap_or(4);
                    self.pages(guest, start, group, b, c)?;
                }
                return self.contiguous(guest, start, b);
            }
            21 => return self.subtree(guest, start, b, c, over),
            22 => return self.freeze(guest, start, b, c),
            23 => install(&self.guests[(a & 1) as usize].tree),
            24 => self.walk(guest, start, end)?,
            25 => return self.tear_down(guest, c),
            26 => {
                install(&it.tree);
                for n in 0..8 {
                    self.touch(guest, start + size / 8 * n);
                }
            }
            _ => {
                let result = it.tree.flush_caches(cpu, ipa, size, all);
                ensure!(result.is_ok(), "{result:?}");
            }
        }
        Ok(Ended::Done)
    }

    /// Pages that are alike all over the `size` bytes around `ipa`.
    fn pages(&mut self, guest: usize, ipa: u64, size: u64, b: u64, c: u64) -> Result<(), Wrong> {
        let start = ipa & !(size - 1);
        // Memory that is aligned as the whole is: 64K has blocks too large for RAM.
        let variant = if size > DATA { 4 } else { c >> 20 & 1 };
        let numbers = [0, 0, b, variant << 20 | 1 << 4];
        let whole = (start, start + size);
        self.map(guest, whole, true, Over::Anything, numbers, Some(Level::L3))?;
        Ok(())
    }

    fn fold(&mut self, guest: usize, ipa: u64) -> Result<Ended, Wrong> {
        let it = &mut self.guests[guest];
        match it.tree.fold(&mut Instructions, Ipa::new(ipa), Level::L2) {
            Ok(()) => {
                let level = it.tree.lookup(Ipa::new(ipa)).map(|found| found.level);
                ensure!(level == Ok(Level::L2), "a table is left: {level:?}");
                let base = ipa & !(block(&self.geometry) - 1);
                self.settle(guest, base, base + block(&self.geometry))?;
                Ok(Ended::Done)
            }
            Err(Error::Missing { .. } | Error::Mismatch { .. } | Error::BlockLevel { .. }) => {
                Ok(Ended::Refused)
            }
            Err(error) => Err(Name::new(format_args!("{error}"))),
        }
    }

    /// The hint, set or taken away; a second time it changes nothing.
    fn contiguous(&mut self, guest: usize, ipa: u64, b: u64) -> Result<Ended, Wrong> {
        let tree = &self.guests[guest].tree;
        let set = b & 3 != 0;
        let change = || {
            if set {
                tree.set_contiguous(&mut Instructions, Ipa::new(ipa))
            } else {
                tree.clear_contiguous(&mut Instructions, Ipa::new(ipa))
            }
        };
        match change() {
            Ok(()) => {
                let raw = tree.lookup(Ipa::new(ipa)).map(|found| found.raw);
                let has = raw.is_ok_and(|raw| raw >> 52 & 1 == u64::from(set));
                ensure!(has && change() == Ok(()), "{ipa:#x}: {raw:x?}, set {set}");
                Ok(Ended::Done)
            }
            Err(Error::Missing { .. } | Error::Mismatch { .. } | Error::BlockLevel { .. }) => {
                Ok(Ended::Refused)
            }
            Err(error) => Err(Name::new(format_args!("{error}"))),
        }
    }

    fn map(
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
        let mut at = start;
        loop {
            let here = pa + (at - start);
            let map = Map::new(Ipa::new(at), Pa::new(here), end - at, attrs)
                .leaves(leaves)
                .over(over);
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
            ensure!(next > at || result.is_err(), "no progress at {at:#x}");
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
    fn check_over(
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

    /// Kinds 6 `unmap_leaves`, 7 `unmap_later`, else `unmap`. EL1's code stays.
    fn unmap(
        &mut self,
        guest: usize,
        start: u64,
        end: u64,
        kind: usize,
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
            let (ia, to, pa) = (leaf.ia(), leaf.ia() + leaf.size(), leaf.pa().get());
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
                6 => tree.unmap_leaves(cpu, from, size, partial, &mut sink, &mut budget(c)),
                7 => {
                    let mut gather = Gather::new();
                    let mut held: [Option<HeldLeaf>; 64] = [const { None }; 64];
                    let mut count = 0;
                    let done = tree.unmap_later(
                        cpu,
                        from,
                        size,
                        partial,
                        &mut gather,
                        &mut Budget::entries(1 + (c >> 6 & 63)),
                        |leaf| {
                            held[count] = Some(leaf);
                            count += 1;
                        },
                    );
                    let synced = tree.sync(cpu, gather);
                    for leaf in held.into_iter().flatten() {
                        match leaf.release(&synced) {
                            Ok(leaf) => sink(leaf),
                            Err(leaf) => {
                                let ia = leaf.ia();
                                return Err(Name::new(format_args!("{ia:#x} is not released")));
                            }
                        }
                    }
                    done
                }
                _ => tree.unmap(cpu, from, size, partial, &mut sink, &mut budget(c)),
            };
            calls += 1;
            let next = reached(result);
            // A table taken apart half ends where it began.
            if result.is_ok() && next <= at && (kind < 8 || calls > 100_000) {
                return Err(Name::new(format_args!("no progress at {at:#x}")));
            }
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
        if kind != 7 {
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

    fn relax(&mut self, guest: usize, ipa: u64, b: u64) -> Result<Ended, Wrong> {
        let it = &mut self.guests[guest];
        install(&it.tree);
        let wanted = if b & 1 == 0 {
            pgtable::Access::ReadWrite
        } else {
            pgtable::Access::Read
        };
        let permissions = Permissions {
            access: wanted,
            execute: Execute::Never,
        };
        let mapped = match it.shadow.at(ipa) {
            Some(Is::Mapped { pa, .. }) => Some(pa),
            _ => None,
        };
        // The guest touches it, faults, is helped, and touches it again.
        self.touch(guest, ipa);
        let it = &mut self.guests[guest];
        let relaxed = it.tree.relax(&mut Instructions, Ipa::new(ipa), permissions);
        ensure!(relaxed.is_ok() == mapped.is_some(), "{relaxed:?}");
        let Some(pa) = mapped else {
            return Ok(Ended::Refused);
        };
        if self.data.holds(pa) {
            let again = guest::read(ipa);
            ensure!(again == Ok(pa), "{ipa:#x}: load {again:x?} after relax");
        }
        if let Some((base, end)) = self.leaf(guest, ipa) {
            change(self.guests[guest].shadow, base, end, |attrs| Attrs {
                access: either(attrs.access, wanted),
                ..attrs
            });
        }
        Ok(Ended::Done)
    }

    fn age(&mut self, guest: usize, start: u64, size: u64, c: u64) -> Result<Ended, Wrong> {
        let tree = &self.guests[guest].tree;
        let cpu = &mut Instructions;
        let ipa = Ipa::new(start);
        let mut gather = Gather::new();
        let flush = if c & 1 == 0 {
            Flush::Now
        } else {
            Flush::Later(&mut gather)
        };
        let before = tree.count_young(cpu, ipa, size, &mut Budget::unlimited());
        let done = tree.clear_young(cpu, ipa, size, flush, &mut Budget::unlimited());
        let _synced = tree.sync(cpu, gather);
        let after = tree.count_young(cpu, ipa, size, &mut Budget::unlimited());
        ensure!(
            before == done && done.is_ok() && after.map(|(_, young)| young) == Ok(0),
            "{before:?}, {done:?}, {after:?}"
        );
        // Without hardware's help EL1 faults, is helped, and goes on.
        if !self.geometry.features().hw_access_flag
            && let Some(Is::Mapped { pa, attrs }) = self.guests[guest].shadow.at(start)
            && self.data.holds(pa)
            && c & 2 == 0
        {
            install(&self.guests[guest].tree);
            let load = guest::read(start);
            ensure!(
                guest::met(load, Kind::AccessFlag, start),
                "{start:#x}: load {load:x?}, aged"
            );
            let marked = self.guests[guest].tree.mark_young(cpu, ipa);
            ensure!(marked.is_ok(), "{marked:?}");
            let load = guest::read(start);
            ensure!(
                load == Ok(pa) || !super::state::reads(attrs.access),
                "{start:#x}: load {load:x?}, young"
            );
        }
        Ok(Ended::Done)
    }

    fn harvest(
        &mut self,
        guest: usize,
        (start, end): (u64, u64),
        (low, high): (u64, u64),
    ) -> Result<Ended, Wrong> {
        let it = &mut self.guests[guest];
        let shadow = &mut *it.shadow;
        let mut wrong = None;
        let mut told = 0;
        let result = it.tree.harvest_dirty(
            &mut Instructions,
            Ipa::new(start),
            end - start,
            Flush::Now,
            &mut Budget::unlimited(),
            |at, size| {
                let (from, to) = (at.get(), at.get() + size);
                let right = shadow.covers(from, to)
                    && shadow.pieces(from, to).all(
                        |piece| matches!(piece.state, Is::Mapped { attrs, .. } if attrs.is_dirty()),
                    );
                if !right {
                    let text = Name::new(format_args!("{from:#x} told dirty, is not"));
                    wrong.get_or_insert(text);
                }
                told += size;
            },
        );
        if let Some(wrong) = wrong {
            return Err(wrong);
        }
        if !self.geometry.features().hw_dirty {
            let why = result.map_err(|stopped| stopped.why);
            ensure!(why == Err(Error::Attributes), "{why:?} without HD");
            return Ok(Ended::Refused);
        }
        ensure!(result == Ok(Ipa::new(end)), "{result:?}");
        let dirty: u64 = shadow
            .pieces(low, high)
            .map(|piece| match piece.state {
                Is::Mapped { attrs, .. } if attrs.is_dirty() => piece.end - piece.start,
                _ => 0,
            })
            .sum();
        ensure!(told == dirty, "{told:#x} bytes told dirty, {dirty:#x} are");
        change(shadow, low, high, |attrs| Attrs {
            access: without_write(attrs.access),
            dirty: if super::state::writes(attrs.access) {
                Dirty::Track
            } else {
                attrs.dirty
            },
            ..attrs
        });
        Ok(Ended::Done)
    }

    fn split(
        &mut self,
        guest: usize,
        start: u64,
        end: u64,
        b: u64,
        c: u64,
    ) -> Result<Ended, Wrong> {
        let to = if b & 1 == 0 || !self.geometry.leaf_ok(Level::L2) {
            Level::L3
        } else {
            Level::L2
        };
        let pool = self.pool;
        let tree = &self.guests[guest].tree;
        let mut at = start;
        while at < end {
            let result = tree.split(
                &mut Instructions,
                Ipa::new(at),
                end - at,
                to,
                |_| pool.page(),
                &mut budget(c),
            );
            match result {
                Ok(next) => {
                    ensure!(next.get() > at, "no progress at {at:#x}");
                    at = next.get();
                }
                Err(Stopped {
                    why: Error::NoMem, ..
                }) => return Ok(Ended::Refused),
                Err(Stopped { why, .. }) => return Err(Name::new(format_args!("{why}"))),
            }
        }
        Ok(Ended::Done)
    }

    fn subtree(
        &mut self,
        guest: usize,
        start: u64,
        b: u64,
        c: u64,
        over: Over,
    ) -> Result<Ended, Wrong> {
        let span = block(&self.geometry);
        let base = start & !(span - 1);
        if self.geometry.start() > Level::L2 {
            return Ok(Ended::Refused);
        }
        let attrs = self.places.attrs(b >> 8);
        let pa = self.places.target(base, c >> 20);
        let size = (1 + b % 7) * self.places.page();
        let cpu = &mut Instructions;
        let it = &mut self.guests[guest];
        let mut built = match it.tree.subtree(Ipa::new(base), Level::L2) {
            Ok(built) => built,
            Err(Error::NoMem) => return Ok(Ended::Refused),
            Err(error) => return Err(Name::new(format_args!("{error}"))),
        };
        let map = Map::new(Ipa::new(base), Pa::new(pa), size, attrs);
        let mapped = built.map(cpu, &map, &mut Budget::unlimited());
        let linked = match mapped {
            Ok(_) => built.link(cpu, over),
            Err(Stopped { why, .. }) => {
                built.discard();
                return Err(Name::new(format_args!("in the subtree: {why}")));
            }
        };
        let done = match linked {
            Ok(()) => {
                it.shadow.clear(base, base + span);
                it.shadow.set(base, base + size, Is::Mapped { pa, attrs });
                Ended::Done
            }
            Err((built, why)) => {
                built.discard();
                let known = matches!(why, Error::Exists { .. } | Error::NoMem);
                ensure!(known, "link: {why}");
                Ended::Refused
            }
        };
        self.settle(guest, base, base + span)?;
        Ok(done)
    }

    fn freeze(&mut self, guest: usize, start: u64, b: u64, c: u64) -> Result<Ended, Wrong> {
        let cpu = &mut Instructions;
        let level = if b & 1 == 0 { Level::L3 } else { Level::L2 };
        let attrs = self.places.attrs(b >> 8);
        let span = self.geometry.span(level);
        let base = start & !(span - 1);
        let pa = self.places.target(base, c >> 20 & 3) & !(span - 1);
        let it = &mut self.guests[guest];
        let Ok(frozen) = it.tree.freeze(Ipa::new(start), level) else {
            return Ok(Ended::Refused);
        };
        // Somebody else comes by.
        let map = Map::new(Ipa::new(base), Pa::new(pa), self.places.page(), attrs);
        let map = map.over(Over::Anything);
        let other = it.tree.map(cpu, &map, &mut Budget::unlimited());
        let other = other.map_err(|stopped| stopped.why);
        ensure!(other == Err(Error::Busy), "{other:?} where it is frozen");
        match c & 3 {
            0 => frozen.rollback(cpu),
            1 => {
                let annotation = Annotation::new(b & 0xffc).unwrap_or(Annotation::EMPTY);
                let done = frozen.commit(cpu, Change::Invalid(annotation));
                ensure!(done.is_ok(), "{done:?}");
                it.shadow.clear(base, base + span);
                if annotation != Annotation::EMPTY {
                    it.shadow
                        .set(base, base + span, Is::Annotated(annotation.get()));
                }
            }
            _ => match frozen.commit(cpu, Change::Leaf(Pa::new(pa), attrs)) {
                Ok(()) => it.shadow.set(base, base + span, Is::Mapped { pa, attrs }),
                Err(Error::BlockLevel { .. }) => (),
                Err(error) => return Err(Name::new(format_args!("{error}"))),
            },
        }
        self.settle(guest, base, base + span)?;
        Ok(Ended::Done)
    }

    /// What a visitor sees in a range is what is mapped there.
    fn walk(&mut self, guest: usize, start: u64, end: u64) -> Result<(), Wrong> {
        let it = &self.guests[guest];
        let (mut seen, mut pages) = (0, true);
        let shape = *self.geometry.shape();
        let result = it.tree.walk(
            Ipa::new(start),
            end - start,
            &mut Budget::unlimited(),
            |entry| {
                if let (Visit::Leaf, Entry::Leaf { pa, .. }) = (entry.visit, entry.entry) {
                    let (base, to) = (entry.ipa.get(), entry.ipa.get() + shape.span(entry.level));
                    let (from, to) = (base.max(start), to.min(end));
                    seen += to - from;
                    pages &= it.shadow.pieces(from, to).all(|piece| {
                        let wanted = pa.get() + (piece.start - base);
                        matches!(piece.state, Is::Mapped { pa, .. } if pa == wanted)
                    });
                }
                Next::Descend
            },
        );
        ensure!(result == Ok(Ipa::new(end)), "{result:?}");
        let mapped: u64 = it
            .shadow
            .pieces(start, end)
            .filter(|piece| matches!(piece.state, Is::Mapped { .. }))
            .map(|piece| piece.end - piece.start)
            .sum();
        ensure!(
            seen == mapped && pages,
            "{seen:#x} bytes seen, {mapped:#x} mapped"
        );
        Ok(())
    }

    /// Tears the tree down in steps, and begins again.
    fn tear_down(&mut self, guest: usize, c: u64) -> Result<Ended, Wrong> {
        let places = [0, 1, 2, 3].map(|n| self.places.place(n));
        let it = &mut self.guests[guest];
        let current = it.tree.vttbr() == mrs!("vttbr_el2");
        let mut at = Ipa::new(0);
        let mut calls = 0;
        while at.get() < self.places.end() {
            let mut budget = Budget::entries(1 + (c >> 6 & 1023));
            at = it
                .tree
                .teardown(&mut Instructions, at, &mut Ignore, &mut budget);
            calls += 1;
            ensure!(calls < 100_000, "no end at {at}");
        }
        it.shadow.reset();
        let count = self.pool.count(it.tree.root());
        ensure!(count == 0, "the root counts {count}");
        self.pool.limit(u64::MAX);
        self.map_code(guest)?;
        if current {
            for ipa in places {
                let load = guest::read(ipa);
                ensure!(
                    guest::met(load, Kind::Translation, ipa),
                    "{ipa:#x}: load {load:x?} after the end"
                );
            }
        }
        Ok(Ended::Done)
    }

    /// Looks at the edges of everything in a range, and a little beside it.
    fn settle(&mut self, guest: usize, low: u64, high: u64) -> Result<(), Wrong> {
        let mut points = [0; POINTS];
        let mut count = 0;
        let mut add = |ipa: u64| {
            if count < POINTS && !points[..count].contains(&ipa) {
                points[count] = ipa;
                count += 1;
            }
        };
        let it = &mut self.guests[guest];
        let end = self.places.end();
        let middle = low + self.random.below(high - low);
        for ipa in [low, high - 1, middle, high, low.wrapping_sub(1)] {
            if ipa < end {
                add(ipa & !0xfff);
            }
        }
        // The edges of a few pieces, from some piece on.
        let pieces = it.shadow.pieces(low, high).count() as u64;
        let first = self.random.below(pieces.saturating_sub(3));
        for piece in it.shadow.pieces(low, high).skip(first as usize) {
            add(piece.start & !0xfff);
            add((piece.end - 1) & !0xfff);
            if piece.end < high {
                add(piece.end);
            }
        }
        let code = self.places.code();
        let code = code..code + self.places.page();
        let installed = mrs!("vttbr_el2");
        install(&it.tree);
        let mut result = Ok(());
        for &ipa in points[..count].iter().filter(|ipa| !code.contains(ipa)) {
            let number = self.random.word();
            result = probe(&it.tree, it.shadow, &self.data, ipa, number);
            if result.is_err() {
                break;
            }
        }
        guest::switch(installed);
        result
    }

    /// Every count is right, and at the end nothing is left.
    fn finish(&mut self) -> Result<(), Wrong> {
        let end = self.places.end();
        for guest in 0..2 {
            census::counts(&self.guests[guest].tree, self.pool)?;
            self.unmap(guest, 0, end, 8, Partial::Split, 0x40 * 5)?;
            let gone = self.guests[guest].tree.unmap(
                &mut Instructions,
                Ipa::new(self.places.code()),
                self.places.page(),
                Partial::Refuse,
                &mut Ignore,
                &mut Budget::unlimited(),
            );
            ensure!(gone.is_ok(), "EL1's code: {gone:?}");
            let root = self.guests[guest].tree.root();
            let count = self.pool.count(root);
            ensure!(count == 0, "the root counts {count} at the end");
        }
        let live = self.pool.live();
        ensure!(live == 0, "{live} tables are left");
        Ok(())
    }
}

/// How far an operation came.
fn reached(result: Result<Ipa, Stopped<Ipa>>) -> u64 {
    match result {
        Ok(next) => next.get(),
        Err(stopped) => stopped.next.get(),
    }
}

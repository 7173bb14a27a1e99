//! Operations on two guests' trees by number, and what each of them should do.

mod leaves;
mod mapping;
mod shape;
mod whole;

use arm64::regs::VTTBR_EL2;
use pgtable::{
    Attrs, Budget, Dirty, Entry, Geometry, Ignore, Ipa, Level, Map, Over, Pa, Partial, Stage2,
    Stopped, Sweep, TableMem, Unmap, Vmid,
};
use tests::println;
use tests::random::Random;

use super::place::Places;
use super::probe::{ensure, install, probe, touch};
use super::state::{Is, PIECES, Shadow, change, shadow, without_write};
use super::{Kind, MIX, Op, Tally, Wrong, block, told};
use crate::census;
use crate::guest::{self, Stage1};
use crate::instructions::Instructions;
use crate::memory::{Data, Pool};
use crate::text::Name;

/// IPAs that are looked at after an operation.
const POINTS: usize = 20;

struct Guest<'p> {
    tree: Stage2<&'p Pool>,
    shadow: &'static mut Shadow,
}

/// A software bit, in an operation's second number.
const SOFT: u64 = 1 << (8 + 11);

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
            let mut kind = op[0] % MIX.len() as u64;
            if focus & 1 == 1 {
                let few = [0, 3, focus >> 8 & 31, focus >> 13 & 31, focus >> 18 & 31];
                kind = few[(op[0] >> 40) as usize % few.len()] % MIX.len() as u64;
                op[1] = op[1] & !0x1f | focus >> 3 & 0x1f;
            }
            let kind = MIX[kind as usize];
            if told() {
                println!("  operation {number}, {}: {op:x?}", kind.name());
            }
            let ended = self.step(kind, op).map_err(|what| {
                Name::new(format_args!(
                    "operation {number} of {length}, {}: {what}",
                    kind.name()
                ))
            })?;
            match ended {
                Ended::Done => tally.done[kind as usize] += 1,
                Ended::Refused => tally.refused[kind as usize] += 1,
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

    fn step(&mut self, kind: Kind, op: Op) -> Result<Ended, Wrong> {
        let [bits, a, b, c] = op;
        // Mostly the guest that is installed: its TLB entries live.
        let installed = VTTBR_EL2.get();
        let current = usize::from(self.guests[1].tree.vttbr() == installed);
        let guest = if bits >> 10 & 3 == 3 {
            1 - current
        } else {
            current
        };
        if self.guests[guest].shadow.len() > PIECES - 100 {
            self.unmap(
                guest,
                0,
                self.places.end(),
                Kind::Unmap,
                Partial::Split,
                0x40,
            )?;
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
        let now = VTTBR_EL2.get();
        ensure!(
            now == installed
                || matches!(
                    kind,
                    Kind::Relax | Kind::Age | Kind::OtherGuest | Kind::Touch
                ),
            "VTTBR_EL2 is {now:#x}, was {installed:#x}"
        );
        if kind != Kind::TearDown {
            self.settle(guest, low.min(start), high.max(end))?;
        }
        Ok(ended)
    }

    fn operate(
        &mut self,
        kind: Kind,
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
            Kind::Map | Kind::MapOver => {
                let numbers = [bits, a, b, c];
                return self.map(
                    guest,
                    (start, end),
                    kind == Kind::MapOver,
                    over,
                    numbers,
                    None,
                );
            }
            Kind::UnmapLeaves | Kind::UnmapLater | Kind::Unmap => {
                return self.unmap(guest, start, end, kind, partial, c);
            }
            Kind::Annotate => return self.annotate(guest, start, size, partial, b),
            Kind::Protect => {
                return self.protect(guest, (start, end), (low, high), partial, b, c);
            }
            Kind::WriteProtect => {
                let result = it.tree.write_protect(cpu, Sweep::new(ipa, size), all);
                ensure!(result == Ok(Ipa::new(end)), "{result:?}");
                change(it.shadow, low, high, |attrs| Attrs {
                    access: without_write(attrs.access),
                    dirty: Dirty::Fault,
                    ..attrs
                });
            }
            Kind::Relax => return self.relax(guest, start, b),
            Kind::Age => return self.age(guest, start, size, c),
            Kind::MarkYoung => {
                let marked = it.tree.mark_young(cpu, ipa);
                let mapped = matches!(it.shadow.at(start), Some(Is::Mapped { .. }));
                ensure!(marked.is_ok() == mapped, "{marked:?}, mapped {mapped}");
                if !mapped {
                    return Ok(Ended::Refused);
                }
            }
            Kind::Harvest => return self.harvest(guest, (start, end), (low, high)),
            Kind::Split => return self.split(guest, start, end, b, c),
            Kind::Fold => {
                // Every other time there is something to fold.
                if b & 1 == 0 {
                    self.pages(guest, start, block(&self.geometry), b, c)?;
                    // Or not quite: a page has another software bit.
                    if b & 6 == 2 {
                        self.pages(guest, start, self.places.page(), b ^ SOFT, c)?;
                    }
                }
                return self.fold(guest, start);
            }
            Kind::Contiguous => {
                let bits = self.geometry.granule().contiguous_bits(Level::L3);
                if c & 3 == 0 {
                    let group = self.places.page() << bits.unwrap_or(4);
                    self.pages(guest, start, group, b, c)?;
                }
                return self.contiguous(guest, start, b);
            }
            Kind::Subtree => return self.subtree(guest, start, b, c, over),
            Kind::Freeze => return self.freeze(guest, start, b, c),
            Kind::OtherGuest => install(&self.guests[(a & 1) as usize].tree),
            Kind::Walk => self.walk(guest, start, end)?,
            Kind::TearDown => return self.tear_down(guest, c),
            Kind::Touch => {
                install(&it.tree);
                for n in 0..8 {
                    self.touch(guest, start + size / 8 * n);
                }
            }
            Kind::FlushCaches => {
                let result = it.tree.flush_caches(cpu, ipa, size, all);
                ensure!(result.is_ok(), "{result:?}");
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
        let installed = VTTBR_EL2.get();
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
            self.unmap(guest, 0, end, Kind::Unmap, Partial::Split, 63 << 6)?;
            let gone = self.guests[guest].tree.unmap(
                &mut Instructions,
                &Unmap::new(Ipa::new(self.places.code()), self.places.page())
                    .partial(Partial::Refuse),
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

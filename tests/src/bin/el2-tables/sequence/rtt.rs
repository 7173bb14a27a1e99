//! The commands of realm translation tables, on the same walker: half of the IPA
//! space is protected, half is the host's.

use core::cell::UnsafeCell;

use pgtable::{
    Access, Attrs, ChangeDestroyed, Execute, Fill, Geometry, Ignore, Ipa, Level, Pa, RemovedLeaf,
    Ripas, Rtt, RttError, RttState, Vmid,
};
use tests::println;
use tests::random::Random;
use tests::ranges::{Ranges, State};

use super::probe::{ensure, hole, leaf, touch};
use super::state::PIECES;
use super::{Wrong, block, told};
use crate::guest::{self, Stage1};
use crate::instructions::Instructions;
use crate::memory::{DATA, Data, Pool};
use crate::text::Name;

/// Names of the commands, in the order of their numbers.
const COMMANDS: [&str; 14] = [
    "RTT_CREATE",
    "RTT_CREATE",
    "RTT_DESTROY",
    "RTT_FOLD",
    "DATA_CREATE",
    "DATA_CREATE",
    "DATA_CREATE all",
    "DATA_DESTROY",
    "INIT_RIPAS",
    "SET_RIPAS",
    "MAP_UNPROTECTED",
    "MAP_UNPROT. all",
    "UNMAP_UNPROT.",
    "READ_ENTRY",
];

/// How often commands did something, and how often they refused.
#[derive(Debug, Default)]
pub struct Tally {
    done: [u32; COMMANDS.len()],
    refused: [u32; COMMANDS.len()],
}

impl Tally {
    /// Prints it, when there were any.
    pub fn print(&self) {
        for (kind, text) in COMMANDS.iter().enumerate() {
            if self.done[kind] + self.refused[kind] > 0 {
                let (done, refused) = (self.done[kind], self.refused[kind]);
                println!("{text:>15}: {done:>5} done, {refused:>6} refused");
            }
        }
    }
}

/// What an IPA of a realm is; nothing at all is unassigned, and empty if it is
/// protected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Is {
    /// Unassigned, and this was said of it.
    Blank(Ripas),
    /// Assigned; mapped when it is RAM.
    Data { ripas: Ripas, pa: u64 },
    /// The host's memory.
    Host { pa: u64, attrs: Attrs },
}

impl State for Is {
    fn onward(self, bytes: u64) -> Self {
        match self {
            same @ Self::Blank(_) => same,
            Self::Data { ripas, pa } => Self::Data {
                ripas,
                pa: pa + bytes,
            },
            Self::Host { pa, attrs } => Self::Host {
                pa: pa + bytes,
                attrs,
            },
        }
    }
}

impl Is {
    const fn is_live(self) -> bool {
        !matches!(self, Self::Blank(_))
    }
}

type Shadow = Ranges<Is, PIECES>;

struct Cell(UnsafeCell<Shadow>);

// SAFETY: The boot CPU alone runs sequences, one at a time.
unsafe impl Sync for Cell {}

static SHADOW: Cell = Cell(UnsafeCell::new(Ranges::new()));

/// Whether a format has room for it: two places in each half, and tables.
pub fn fits(geometry: &Geometry) -> bool {
    geometry.start() < Level::L3 && (1 << geometry.ipa_bits()) / block(geometry) >= 16
}

struct Run<'p> {
    pool: &'p Pool,
    geometry: Geometry,
    data: Data,
    rtt: Rtt<&'p Pool>,
    shadow: &'static mut Shadow,
    random: Random,
}

/// Runs `length` commands, and takes everything apart as a host does.
pub fn run(
    random: &mut Random,
    geometry: Geometry,
    data: Data,
    length: u64,
    tally: &mut Tally,
) -> Result<(), Wrong> {
    let page = geometry.granule().page_size();
    let pool = Pool::new(page);
    let root = pool.block(geometry.root_align().max(page));
    let half = Ipa::new(1 << (geometry.ipa_bits() - 1));
    let rtt = Rtt::new(geometry, Pa::new(root), Vmid::new(3), &pool, half)
        .map_err(|error| Name::new(format_args!("new: {error}")))?;
    // SAFETY: One run at a time.
    let shadow = unsafe { &mut *SHADOW.0.get() };
    shadow.reset();
    let mut run = Run {
        pool: &pool,
        geometry,
        data,
        rtt,
        shadow,
        random: random.clone(),
    };
    let code = run.code();
    run.reach(code, Level::L3)?;
    let memory = Pa::new(guest::code());
    let mapped = run.rtt.map_unprotected(
        &mut Instructions,
        Ipa::new(code),
        Level::L3,
        memory,
        Attrs::MEMORY,
        1,
    );
    ensure!(mapped.is_ok(), "EL1's code: {mapped:?}");
    guest::load(&geometry, run.rtt.tree().vttbr(), Stage1::Off);
    guest::code_at(code);
    let result = run.commands(length, tally);
    let end = run.finish();
    guest::code_at(guest::code());
    result.and(end)
}

/// The first address of a level's entry; of the root's, above the root.
fn align(geometry: &Geometry, ipa: u64, level: Level) -> Ipa {
    let level = level.max(geometry.start());
    Ipa::new(ipa & !(geometry.span(level) - 1))
}

fn above(level: Level) -> Level {
    Level::new(level.get() - 1).unwrap_or(Level::MINUS_1)
}

impl Run<'_> {
    fn half(&self) -> u64 {
        1 << (self.geometry.ipa_bits() - 1)
    }

    /// Where EL1's code is mapped, out of reach of all places.
    fn code(&self) -> u64 {
        self.half() + 3 * block(&self.geometry)
    }

    /// The first IPAs of places of two blocks each: two protected, two not.
    fn places(&self) -> [u64; 4] {
        let (half, two) = (self.half(), 2 * block(&self.geometry));
        [0, half - two, half, 2 * half - two]
    }

    /// A page in a place: of its first, or around the border of its blocks.
    fn page(&mut self, unprotected: bool) -> u64 {
        let page = self.geometry.granule().page_size();
        let place = 2 * usize::from(unprotected) + self.random.below(2) as usize;
        let offset = match self.random.below(3) {
            0 => block(&self.geometry) - 4 * page,
            _ => 0,
        };
        self.places()[place] + offset + self.random.below(8) * page
    }

    /// A page for a command: mostly one where it has something to do.
    fn choose(&mut self, kind: usize, unprotected: bool) -> Result<u64, Wrong> {
        let ipa = self.page(unprotected);
        if self.random.below(4) == 0 {
            return Ok(ipa);
        }
        match kind {
            4..=6 | 10 | 11 => self.reach(ipa, Level::L3)?,
            3 | 7 | 12 => {
                let first = self.random.below(self.shadow.len() as u64) as usize;
                let wanted = |is| match is {
                    Is::Data { .. } => kind != 12,
                    Is::Host { .. } => kind != 7,
                    Is::Blank(_) => false,
                };
                let mut pieces = (first..self.shadow.len()).filter_map(|n| self.shadow.get(n));
                if let Some(piece) = pieces.find(|piece| wanted(piece.state)) {
                    return Ok(piece.start);
                }
            }
            _ => (),
        }
        Ok(ipa)
    }

    /// Memory for an IPA.
    fn memory(&self, ipa: u64, variant: u64) -> u64 {
        let shift = variant % 2 * self.geometry.granule().page_size();
        self.data.base + (ipa & (DATA - 1)) + shift
    }

    /// Makes the tables that are missing down to `level`.
    fn reach(&mut self, ipa: u64, level: Level) -> Result<(), Wrong> {
        loop {
            let at = align(&self.geometry, ipa, Level::L3);
            let entry = self.rtt.read(at, Level::L3);
            let reached = entry.map_or(Level::L3, |entry| entry.level);
            if reached >= level {
                return Ok(());
            }
            ensure!(
                self.create(ipa, reached)?,
                "{ipa:#x}: no table at {reached}"
            );
        }
    }

    /// Makes the table below the entry of `level`.
    fn create(&mut self, ipa: u64, level: Level) -> Result<bool, Wrong> {
        let Some(below) = Level::new(level.get() + 1) else {
            return Ok(false);
        };
        let Some(page) = self.pool.page() else {
            return Err(Name::new(format_args!("no page")));
        };
        let at = align(&self.geometry, ipa, level);
        let done = self.rtt.create(&mut Instructions, at, below, page);
        if done.is_err() {
            self.pool.give_back(page);
        }
        Ok(done.is_ok())
    }

    fn commands(&mut self, length: u64, tally: &mut Tally) -> Result<(), Wrong> {
        for number in 0..length {
            let kind = self.random.below(COMMANDS.len() as u64) as usize;
            // What TLBs may know of.
            let unprotected = match kind {
                0..=3 | 13 => self.random.below(2) == 0,
                4..=9 => false,
                _ => true,
            };
            let ipa = self.choose(kind, unprotected)?;
            if told() {
                println!("  command {number}, {} at {ipa:#x}", COMMANDS[kind]);
            }
            self.touch(ipa);
            let done = self.command(kind, ipa).and_then(|done| {
                self.settle(ipa)?;
                Ok(done)
            });
            let done = done.map_err(|what| {
                Name::new(format_args!(
                    "command {number} of {length}, {}: {what}",
                    COMMANDS[kind]
                ))
            })?;
            if done {
                tally.done[kind] += 1;
            } else {
                tally.refused[kind] += 1;
            }
        }
        Ok(())
    }

    /// A command; false when it refused.
    fn command(&mut self, kind: usize, ipa: u64) -> Result<bool, Wrong> {
        let page = self.geometry.granule().page_size();
        let cpu = &mut Instructions;
        match kind {
            0 | 1 => {
                let at = align(&self.geometry, ipa, Level::L3);
                let entry = self.rtt.read(at, Level::L3);
                let mut level = entry.map_or(Level::L3, |entry| entry.level);
                if kind == 1 && self.random.below(4) == 0 {
                    level = self.level();
                }
                return self.create(ipa, level);
            }
            2 => {
                // Mostly the lowest: above it there are tables mostly.
                let level = match self.random.below(4) {
                    0 => self.level(),
                    _ => Level::L3,
                };
                return self.destroy(ipa, level);
            }
            3 => return self.fold(ipa),
            4 | 5 => {
                let variant = self.random.below(2);
                let fill = if kind == 4 {
                    Fill::Known
                } else {
                    Fill::Unknown
                };
                return self.data_create(ipa, variant, fill);
            }
            6 => {
                // A whole block, so that it may be folded.
                let span = block(&self.geometry);
                if span > DATA {
                    return Ok(false);
                }
                let (mut some, base) = (false, ipa & !(span - 1));
                for at in (base..base + span).step_by(page as usize) {
                    some |= self.data_create(at, 0, Fill::Known)?;
                }
                return Ok(some);
            }
            7 => return self.data_destroy(ipa),
            8 => {
                let top = ipa + (1 + self.random.below(6)) * page;
                let done = self.rtt.init_ripas(Ipa::new(ipa), Ipa::new(top), |_, _| ());
                let Ok(next) = done else { return Ok(false) };
                let fine = self.shadow.pieces(ipa, next.get()).all(
                    |piece| matches!(piece.state, Is::Blank(ripas) if ripas != Ripas::Destroyed),
                );
                ensure!(fine, "{ipa:#x} to {next}: was not unassigned");
                self.shadow.set(ipa, next.get(), Is::Blank(Ripas::Ram));
            }
            9 => return self.set_ripas(ipa),
            10 => {
                let count = 1 + self.random.below(6) as usize;
                let attrs = self.attrs();
                return self.map_unprotected(ipa, Level::L3, count, attrs);
            }
            11 => {
                let base = ipa & !(block(&self.geometry) - 1);
                let level = match self.random.below(2) {
                    0 => Level::L2,
                    _ => Level::L3,
                };
                let count = if level == Level::L2 {
                    1
                } else {
                    self.geometry.granule().entries()
                };
                return self.map_unprotected(base, level, count, Attrs::MEMORY);
            }
            12 => {
                let level = match self.random.below(4) {
                    0 => Level::L2,
                    _ => Level::L3,
                };
                let at = align(&self.geometry, ipa, level).get();
                let Ok(removed) = self.rtt.unmap_unprotected(cpu, Ipa::new(at), level) else {
                    return Ok(false);
                };
                let was = self.shadow.at(at);
                ensure!(
                    matches!(was, Some(Is::Host { pa, .. }) if pa == removed.pa.get()),
                    "{at:#x}: {removed:?}, was {was:?}"
                );
                self.shadow.clear(at, at + self.geometry.span(level));
                if level == Level::L3 {
                    self.top(at, removed.top.get())?;
                }
            }
            _ => self.read(ipa)?,
        }
        Ok(true)
    }

    fn level(&mut self) -> Level {
        Level::new(self.random.below(5) as i8 - 1).unwrap_or(Level::L3)
    }

    /// The host's choice of attributes.
    fn attrs(&mut self) -> Attrs {
        let access = [Access::ReadWrite, Access::Read][self.random.below(2) as usize];
        let execute = [Execute::All, Execute::Never][self.random.below(2) as usize];
        Attrs::MEMORY.access(access).execute(execute)
    }

    fn destroy(&mut self, ipa: u64, level: Level) -> Result<bool, Wrong> {
        if level <= self.geometry.start() {
            return Ok(false);
        }
        let at = align(&self.geometry, ipa, above(level));
        let (base, end) = (at.get(), at.get() + self.geometry.span(above(level)));
        let code = self.code();
        if (base..end).contains(&code) {
            return Ok(false);
        }
        let shadow = &mut *self.shadow;
        let mut wrong = None;
        let mut sink = |leaf: RemovedLeaf| {
            let (ia, to, pa) = (leaf.ia(), leaf.ia() + leaf.size(), leaf.pa().get());
            let right = shadow.covers(ia, to)
                && shadow.pieces(ia, to).all(|piece| {
                    matches!(piece.state, Is::Host { pa: was, .. } if was == pa + (piece.start - ia))
                });
            if !right {
                wrong.get_or_insert(ia);
            }
            shadow.clear(ia, to);
        };
        let done = self.rtt.destroy(&mut Instructions, at, level, &mut sink);
        if let Some(ia) = wrong {
            return Err(Name::new(format_args!(
                "told of {ia:#x}, was not mapped so"
            )));
        }
        let Ok(removed) = done else { return Ok(false) };
        let live = self
            .shadow
            .pieces(base, end)
            .any(|piece| piece.state.is_live());
        ensure!(!live, "{at}: {level} destroyed with something in it");
        if self.rtt.is_protected(at) {
            self.shadow.set(base, end, Is::Blank(Ripas::Destroyed));
        } else {
            self.shadow.clear(base, end);
        }
        self.pool.give_back(removed.pa);
        self.settle(base)?;
        Ok(true)
    }

    fn fold(&mut self, ipa: u64) -> Result<bool, Wrong> {
        let level = match self.random.below(4) {
            0 => self.level(),
            _ => Level::L3,
        };
        if level <= self.geometry.start() {
            return Ok(false);
        }
        let at = align(&self.geometry, ipa, above(level));
        let Ok(page) = self.rtt.fold(&mut Instructions, at, level) else {
            return Ok(false);
        };
        self.pool.give_back(page);
        let end = at.get() + self.geometry.span(above(level));
        // One piece of like memory, or nothing.
        let pieces = self.shadow.pieces(at.get(), end).count();
        let covered = self.shadow.covers(at.get(), end);
        ensure!(
            pieces == 0 || (pieces == 1 && covered),
            "{at}: {pieces} pieces folded"
        );
        self.settle(at.get())?;
        self.settle(end - 1)?;
        Ok(true)
    }

    fn data_create(&mut self, ipa: u64, variant: u64, fill: Fill) -> Result<bool, Wrong> {
        let page = self.geometry.granule().page_size();
        let pa = self.memory(ipa, variant);
        let was = match self.shadow.at(ipa) {
            None => Some(Ripas::Empty),
            Some(Is::Blank(ripas)) => Some(ripas),
            _ => None,
        };
        let checked = self.rtt.data_check(Ipa::new(ipa));
        ensure!(
            checked.is_err() || checked.ok() == was,
            "{ipa:#x}: {checked:?}, is {was:?}"
        );
        let done = self
            .rtt
            .data_create(&mut Instructions, Ipa::new(ipa), Pa::new(pa), fill);
        ensure!(
            done.is_ok() == checked.is_ok(),
            "{ipa:#x}: {done:?} after {checked:?}"
        );
        let (Ok(()), Some(was)) = (done, was) else {
            return Ok(false);
        };
        let ripas = if fill == Fill::Known { Ripas::Ram } else { was };
        self.shadow.set(ipa, ipa + page, Is::Data { ripas, pa });
        Ok(true)
    }

    fn data_destroy(&mut self, ipa: u64) -> Result<bool, Wrong> {
        let page = self.geometry.granule().page_size();
        let Ok(removed) = self.rtt.data_destroy(&mut Instructions, Ipa::new(ipa)) else {
            return Ok(false);
        };
        let Some(Is::Data { ripas, pa }) = self.shadow.at(ipa) else {
            return Err(Name::new(format_args!("{ipa:#x}: nothing was assigned")));
        };
        ensure!(
            removed.pa.get() == pa,
            "{ipa:#x}: {} is back, was {pa:#x}",
            removed.pa
        );
        match ripas {
            Ripas::Empty => self.shadow.clear(ipa, ipa + page),
            _ => self
                .shadow
                .set(ipa, ipa + page, Is::Blank(Ripas::Destroyed)),
        }
        self.top(ipa, removed.top.get())?;
        Ok(true)
    }

    /// `top` of a command on a page: the first that is live, or the table's end.
    fn top(&self, ipa: u64, top: u64) -> Result<(), Wrong> {
        let end = (ipa | (block(&self.geometry) - 1)) + 1;
        let live = self
            .shadow
            .pieces(ipa, end)
            .find(|piece| piece.state.is_live())
            .map_or(end, |piece| piece.start);
        ensure!(top == live, "{ipa:#x}: top {top:#x}, not {live:#x}");
        Ok(())
    }

    fn set_ripas(&mut self, ipa: u64) -> Result<bool, Wrong> {
        let page = self.geometry.granule().page_size();
        let top = ipa + (1 + self.random.below(12)) * page;
        let ripas = [Ripas::Ram, Ripas::Empty][self.random.below(2) as usize];
        let destroyed = [ChangeDestroyed::No, ChangeDestroyed::Yes][self.random.below(2) as usize];
        for at in (ipa..top).step_by(page as usize) {
            self.touch(at);
        }
        let done = self.rtt.set_ripas(
            &mut Instructions,
            Ipa::new(ipa),
            Ipa::new(top),
            ripas,
            destroyed,
        );
        let Ok(next) = done else { return Ok(false) };
        let mut kept = false;
        self.shadow.change(ipa, next.get(), |is| {
            let was = match is {
                Is::Blank(was) | Is::Data { ripas: was, .. } => was,
                Is::Host { .. } => Ripas::Empty,
            };
            kept |= was == Ripas::Destroyed && destroyed == ChangeDestroyed::No;
            match is {
                Is::Data { pa, .. } => Some(Is::Data { ripas, pa }),
                _ => Some(Is::Blank(ripas)),
            }
        });
        ensure!(!kept, "{ipa:#x}: destroyed memory changed");
        // What was empty before is in no piece.
        let mut at = ipa;
        while at < next.get() {
            if self.shadow.at(at).is_none() {
                self.shadow.set(at, at + page, Is::Blank(ripas));
            }
            at += page;
        }
        if ripas == Ripas::Empty {
            self.shadow.change(ipa, next.get(), |is| match is {
                Is::Blank(_) => None,
                other => Some(other),
            });
        }
        for at in (ipa..next.get()).step_by(page as usize) {
            self.look(at)?;
        }
        Ok(true)
    }

    fn map_unprotected(
        &mut self,
        ipa: u64,
        level: Level,
        count: usize,
        attrs: Attrs,
    ) -> Result<bool, Wrong> {
        let pa = self.memory(ipa, 0);
        let done = self.rtt.map_unprotected(
            &mut Instructions,
            Ipa::new(ipa),
            level,
            Pa::new(pa),
            attrs,
            count,
        );
        let Ok(next) = done else { return Ok(false) };
        let free = self.shadow.pieces(ipa, next.get()).next().is_none();
        ensure!(free, "{ipa:#x} to {next}: mapped over something");
        // Software bit 0 says that it is the host's.
        let attrs = attrs.soft(1);
        self.shadow.set(ipa, next.get(), Is::Host { pa, attrs });
        Ok(true)
    }

    /// RTT_READ_ENTRY and RSI_IPA_STATE_GET say what is there.
    fn read(&mut self, ipa: u64) -> Result<(), Wrong> {
        let entry = self.rtt.read(Ipa::new(ipa), Level::L3);
        let Ok(entry) = entry else {
            return Err(Name::new(format_args!("{ipa:#x}: {entry:?}")));
        };
        let offset = ipa & (self.geometry.span(entry.level) - 1);
        let right = match (entry.state, self.shadow.at(ipa)) {
            (RttState::Unassigned(Ripas::Empty) | RttState::UnassignedNs, None) => true,
            (RttState::Unassigned(seen), Some(Is::Blank(ripas))) => seen == ripas,
            (
                RttState::Assigned {
                    ripas: seen,
                    pa: at,
                },
                Some(Is::Data { ripas, pa }),
            ) => seen == ripas && at.get() + offset == pa,
            (RttState::AssignedNs { pa: at, .. }, Some(Is::Host { pa, .. })) => {
                at.get() + offset == pa
            }
            _ => false,
        };
        let is = self.shadow.at(ipa);
        ensure!(right, "{ipa:#x}: {:?}, is {is:?}", entry.state);
        if self.rtt.is_protected(Ipa::new(ipa)) {
            let page = self.geometry.granule().page_size();
            let told = self.rtt.ripas(Ipa::new(ipa), Ipa::new(ipa + page));
            let ripas = match is {
                Some(Is::Blank(ripas) | Is::Data { ripas, .. }) => ripas,
                _ => Ripas::Empty,
            };
            ensure!(
                told.is_ok_and(|(seen, _)| seen == ripas),
                "{ipa:#x}: {told:?}, is {ripas:?}"
            );
        }
        Ok(())
    }

    /// Lets the TLB know a page, if there is memory behind it.
    fn touch(&self, ipa: u64) {
        let backed = match self.shadow.at(ipa & !0xfff) {
            Some(Is::Data { pa, .. } | Is::Host { pa, .. }) => self.data.holds(pa),
            _ => true,
        };
        if backed {
            touch(ipa);
        }
    }

    /// What EL1 finds at a page.
    fn look(&mut self, ipa: u64) -> Result<(), Wrong> {
        let number = self.random.word();
        let ipa = ipa & !0xfff;
        let (pa, attrs) = match self.shadow.at(ipa) {
            Some(Is::Data {
                ripas: Ripas::Ram,
                pa,
            }) => (pa, Attrs::MEMORY),
            Some(Is::Host { pa, attrs }) => (pa, attrs),
            _ => return hole(ipa),
        };
        leaf(self.rtt.tree(), &self.data, ipa, (pa, attrs), number).map(drop)
    }

    /// Looks at a page and beside it.
    fn settle(&mut self, ipa: u64) -> Result<(), Wrong> {
        let page = self.geometry.granule().page_size();
        let base = ipa & !(page - 1);
        let near = base ^ (page * (1 + self.random.below(7)));
        for at in [base, base ^ page, near, ipa] {
            self.look(at)?;
        }
        self.read(base)
    }

    /// As a host ends a realm: data, then tables from below, then the realm.
    fn finish(&mut self) -> Result<(), Wrong> {
        let page = self.geometry.granule().page_size();
        let places = self.places();
        for n in 0.. {
            // Data goes from the front; what is left of it is not live.
            let Some(piece) = self.shadow.get(n) else {
                break;
            };
            let Is::Data { .. } = piece.state else {
                continue;
            };
            for at in (piece.start..piece.end).step_by(page as usize) {
                self.reach(at, Level::L3)?;
                let gone = self.rtt.data_destroy(&mut Instructions, Ipa::new(at));
                ensure!(gone.is_ok(), "{at:#x}: DATA_DESTROY {gone:?}");
            }
        }
        let span = block(&self.geometry);
        let mut level = Level::L3;
        while level > self.geometry.start() {
            let starts = places.iter().flat_map(|&place| [place, place + span]);
            for ipa in starts.chain([self.code()]) {
                let at = align(&self.geometry, ipa, above(level));
                match self.rtt.destroy(&mut Instructions, at, level, &mut Ignore) {
                    Ok(removed) => self.pool.give_back(removed.pa),
                    Err(RttError::Rtt { level: seen, .. }) if seen < level => (),
                    Err(error) => return Err(Name::new(format_args!("{at}: {error}"))),
                }
            }
            level = above(level);
        }
        ensure!(!self.rtt.is_live(), "the root is live at the end");
        let retired = self.rtt.retire(&mut Instructions, &mut Ignore);
        ensure!(retired.is_ok(), "{retired:?}");
        let live = self.pool.live();
        ensure!(live == 0, "{live} tables are left");
        Ok(())
    }
}

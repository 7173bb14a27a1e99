//! The commands of realm translation tables, on the same walker: half of the IPA
//! space is protected, half is the host's.

mod commands;

use core::cell::UnsafeCell;

use pgtable::{
    Access, Attrs, Budget, Execute, Fill, Geometry, HostPages, Ignore, Ipa, Level, Pa, Ripas, Rtt,
    RttAt, RttError, Vmid,
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

macro_rules! commands {
    ($($command:ident $name:literal,)*) => {
        /// A command, or many of a kind.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        enum Command {
            $($command,)*
        }

        impl Command {
            /// All of them, in the order of their numbers.
            const ALL: &'static [Self] = &[$(Self::$command,)*];

            const fn name(self) -> &'static str {
                match self {
                    $(Self::$command => $name,)*
                }
            }
        }
    };
}

commands! {
    Create "RTT_CREATE",
    CreateAnywhere "RTT_CREATE, any",
    Destroy "RTT_DESTROY",
    Fold "RTT_FOLD",
    DataCreate "DATA_CREATE",
    DataUnknown "DATA_CR._UNKN.",
    DataWhole "DATA_CREATE all",
    DataDestroy "DATA_DESTROY",
    InitRipas "INIT_RIPAS",
    SetRipas "SET_RIPAS",
    MapUnprotected "MAP_UNPROTECTED",
    MapWhole "MAP_UNPROT. all",
    UnmapUnprotected "UNMAP_UNPROT.",
    ReadEntry "READ_ENTRY",
}

/// How often commands did something, and how often they refused.
#[derive(Debug, Default)]
pub struct Tally {
    done: [u32; Command::ALL.len()],
    refused: [u32; Command::ALL.len()],
}

impl Tally {
    /// Prints it, when there were any.
    pub fn print(&self) {
        for &command in Command::ALL {
            let (done, refused) = (self.done[command as usize], self.refused[command as usize]);
            if done + refused > 0 {
                println!(
                    "{:>15}: {done:>5} done, {refused:>6} refused",
                    command.name()
                );
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
        &HostPages {
            ipa: Ipa::new(code),
            level: Level::L3,
            pa: memory,
            attrs: Attrs::MEMORY,
            count: 1,
        },
        &mut Budget::unlimited(),
    );
    ensure!(mapped.is_ok(), "EL1's code: {mapped:?}");
    guest::load(&geometry, run.rtt.regs().vttbr, Stage1::Off);
    guest::code_at(code);
    let result = run.commands(length, tally);
    let end = run.finish();
    guest::code_at(guest::code());
    result.and(end)
}

/// Work of a step: a table of 64K pages told, or 32 MiB cleaned.
const STEP: u64 = 8192;

/// Calls a command until it is done or refused.
fn in_steps<T>(mut command: impl FnMut(&mut Budget) -> Result<T, RttError>) -> Result<T, RttError> {
    loop {
        match command(&mut Budget::entries(STEP)) {
            Err(RttError::Again) => (),
            answer => return answer,
        }
    }
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
    fn choose(&mut self, kind: Command, unprotected: bool) -> Result<u64, Wrong> {
        let ipa = self.page(unprotected);
        if self.random.below(4) == 0 {
            return Ok(ipa);
        }
        match kind {
            Command::DataCreate
            | Command::DataUnknown
            | Command::DataWhole
            | Command::MapUnprotected
            | Command::MapWhole => self.reach(ipa, Level::L3)?,
            Command::Fold | Command::DataDestroy | Command::UnmapUnprotected => {
                let first = self.random.below(self.shadow.len() as u64) as usize;
                let wanted = |is| match is {
                    Is::Data { .. } => kind != Command::UnmapUnprotected,
                    Is::Host { .. } => kind != Command::DataDestroy,
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
        let done = self
            .rtt
            .create(&mut Instructions, RttAt::new(at, below), page);
        if done.is_err() {
            self.pool.give_back(page);
        }
        Ok(done.is_ok())
    }

    fn commands(&mut self, length: u64, tally: &mut Tally) -> Result<(), Wrong> {
        for number in 0..length {
            let kind = Command::ALL[self.random.below(Command::ALL.len() as u64) as usize];
            // What TLBs may know of.
            let unprotected = match kind {
                Command::Create
                | Command::CreateAnywhere
                | Command::Destroy
                | Command::Fold
                | Command::ReadEntry => self.random.below(2) == 0,
                Command::MapUnprotected | Command::MapWhole | Command::UnmapUnprotected => true,
                _ => false,
            };
            let ipa = self.choose(kind, unprotected)?;
            if told() {
                println!("  command {number}, {} at {ipa:#x}", kind.name());
            }
            self.touch(ipa);
            let done = self.command(kind, ipa).and_then(|done| {
                self.settle(ipa)?;
                Ok(done)
            });
            let done = done.map_err(|what| {
                Name::new(format_args!(
                    "command {number} of {length}, {}: {what}",
                    kind.name()
                ))
            })?;
            if done {
                tally.done[kind as usize] += 1;
            } else {
                tally.refused[kind as usize] += 1;
            }
        }
        Ok(())
    }

    /// A command; false when it refused.
    fn command(&mut self, kind: Command, ipa: u64) -> Result<bool, Wrong> {
        let page = self.geometry.granule().page_size();
        let cpu = &mut Instructions;
        match kind {
            Command::Create | Command::CreateAnywhere => {
                let at = align(&self.geometry, ipa, Level::L3);
                let entry = self.rtt.read(at, Level::L3);
                let mut level = entry.map_or(Level::L3, |entry| entry.level);
                if kind == Command::CreateAnywhere && self.random.below(4) == 0 {
                    level = self.level();
                }
                return self.create(ipa, level);
            }
            Command::Destroy => {
                // Mostly the lowest: above it there are tables mostly.
                let level = match self.random.below(4) {
                    0 => self.level(),
                    _ => Level::L3,
                };
                return self.destroy(ipa, level);
            }
            Command::Fold => return self.fold(ipa),
            Command::DataCreate | Command::DataUnknown => {
                let variant = self.random.below(2);
                let fill = if kind == Command::DataCreate {
                    Fill::Known
                } else {
                    Fill::Unknown
                };
                return self.data_create(ipa, variant, fill);
            }
            Command::DataWhole => {
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
            Command::DataDestroy => return self.data_destroy(ipa),
            Command::InitRipas => {
                let top = ipa + (1 + self.random.below(6)) * page;
                let done = self.rtt.init_ripas(Ipa::new(ipa)..Ipa::new(top), |_, _| ());
                let Ok(next) = done else { return Ok(false) };
                let fine = self
                    .shadow
                    .pieces(ipa, next.get())
                    .all(|piece| matches!(piece.state, Is::Blank(_)));
                ensure!(fine, "{ipa:#x} to {next}: was not unassigned");
                self.shadow.set(ipa, next.get(), Is::Blank(Ripas::Ram));
            }
            Command::SetRipas => return self.set_ripas(ipa),
            Command::MapUnprotected => {
                let count = 1 + self.random.below(6) as usize;
                let attrs = self.attrs();
                return self.map_unprotected(ipa, Level::L3, count, attrs);
            }
            Command::MapWhole => {
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
            Command::UnmapUnprotected => {
                let level = match self.random.below(4) {
                    0 => Level::L2,
                    _ => Level::L3,
                };
                let at = align(&self.geometry, ipa, level).get();
                let done =
                    in_steps(|budget| self.rtt.unmap_unprotected(cpu, Ipa::new(at), level, budget));
                let Ok(removed) = done else {
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
            Command::ReadEntry => self.read(ipa)?,
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
        leaf(&self.rtt, &self.data, ipa, (pa, attrs), number).map(drop)
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
                let done = in_steps(|budget| {
                    self.rtt.destroy(
                        &mut Instructions,
                        RttAt::new(at, level),
                        &mut Ignore,
                        budget,
                    )
                });
                match done {
                    Ok(removed) => self.pool.give_back(removed.pa),
                    Err(RttError::Rtt { level: seen, .. }) if seen < level => (),
                    Err(error) => return Err(Name::new(format_args!("{at}: {error}"))),
                }
            }
            level = above(level);
        }
        ensure!(!self.rtt.is_live(), "the root is live at the end");
        let whole = Ipa::new(1 << self.geometry.ipa_bits());
        let retired = loop {
            let budget = &mut Budget::entries(STEP);
            match self.rtt.retire(&mut Instructions, &mut Ignore, budget) {
                Ok(next) if next < whole => (),
                retired => break retired,
            }
        };
        ensure!(retired.is_ok(), "{retired:?}");
        let live = self.pool.live();
        ensure!(live == 0, "{live} tables are left");
        Ok(())
    }
}

//! Each CPU changes pages of its own, in tables that all share, and looks at
//! everybody's.
//!
//! A page has a word that says what it is: its owner clears it before a change
//! and writes it anew after the operation has returned. Who sees the same word
//! before and after an access of EL1 knows what must have come of it: the frame
//! and the rights are the word's, and what is unmapped faults. A page that is
//! mapped may fault for a moment, while somebody breaks the block or the group
//! around it; then it is tried again.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use pgtable::{
    Access, Attrs, Budget, Caches, Change, Entry, Error, Execute, Flush, Geometry, HeldLeaf,
    Ignore, Ipa, Leaves, Level, Map, Next, Over, Pa, Partial, Permissions, RemovedLeaf, Split,
    Stage2, Sweep, Unmap, UnmapLater, Visit,
};
use tests::bare::asm::dsb;
use tests::bare::console::Console;
use tests::println;
use tests::random::Random;
use tests::suite::Suite;

use super::crew::{self, Report};
use super::{TRIES, again, enter, nothing_left, slot, title, tree};
use crate::census::counts;
use crate::guest::{self, Kind};
use crate::instructions::Instructions;
use crate::memory::{DATA, Data, Pool, read_coherent};
use crate::text::Name;

const SLOTS: u64 = 32;
/// Neighbours with one owner.
const RUN: u64 = 4;
/// Rounds, each of which begins with one block.
const ROUNDS: u64 = 3;
/// Operations and looks of each CPU in a round.
const STEPS: u64 = 150;

const CHANGING: u64 = 0;
const UNMAPPED: u64 = 1;
const MAPPED: u64 = 0x10;
/// The other of two frames.
const OTHER: u64 = 1;
const WRITABLE: u64 = 2;

static WORDS: [AtomicU64; SLOTS as usize] = [const { AtomicU64::new(0) }; SLOTS as usize];

/// What a page is, by its word.
const fn kind(word: u64) -> u64 {
    word & 0xff
}

/// Runs it, in one format.
pub fn check(suite: &mut Suite<Console>, geometry: Geometry, data: Data) {
    let pool = Pool::new(geometry.granule().page_size());
    let mut report = Report::new();
    let seen = Seen::default();
    let result = tree(geometry, &pool).and_then(|mut tree| {
        for round in 0..ROUNDS {
            begin(&mut tree, data)?;
            let job = |pe: usize| {
                let mut worker = Worker {
                    tree: &tree,
                    pool: &pool,
                    data,
                    pe: pe as u64,
                    random: Random::new(round << 8 | pe as u64),
                    busy: 0,
                    looks: 0,
                };
                if let Err(what) = worker.work(&report) {
                    report.wrong(Name::new(format_args!("round {round}, cpu {pe}: {what}")));
                }
                seen.busy.fetch_add(worker.busy, Ordering::Relaxed);
                seen.looks.fetch_add(worker.looks, Ordering::Relaxed);
            };
            if !crew::all(&job) {
                return Err(Name::new(format_args!("a CPU did not come or go")));
            }
            if report.is_wrong() {
                return Ok(());
            }
            end(&tree, &pool, data)?;
        }
        nothing_left(&mut tree, &pool)
    });
    if let Err(what) = result {
        report.wrong(what);
    }
    let title = title("pages", &geometry);
    report.check(suite, &title);
    println!(
        "{title}: {} looks at what stood still, {} times busy",
        seen.looks.load(Ordering::Relaxed),
        seen.busy.load(Ordering::Relaxed)
    );
}

#[derive(Default)]
struct Seen {
    busy: AtomicU32,
    looks: AtomicU32,
}

fn frame(geometry: &Geometry, data: Data, n: u64, word: u64) -> u64 {
    data.base + (word & OTHER) * DATA / 2 + n * geometry.granule().page_size()
}

/// One block over all pages, whatever is there.
fn begin(tree: &mut Stage2<&Pool>, data: Data) -> Result<(), Name> {
    let geometry = *tree.geometry();
    let span = geometry.span(Level::L2);
    let (base, _) = slot(&geometry, data.base, 0);
    let pa = Pa::new(data.base & !(span - 1));
    let block = Map::new(Ipa::new(base), pa, span, Attrs::MEMORY)
        .leaves(Leaves::Exactly(Level::L2))
        .over(Over::Anything)
        .caches(Caches::Skip);
    tree.map_exclusive(
        &mut Instructions,
        &block,
        &mut Ignore,
        &mut Budget::unlimited(),
    )
    .map_err(|stopped| Name::new(format_args!("block: {stopped}")))?;
    for word in &WORDS {
        word.store(MAPPED | WRITABLE, Ordering::Relaxed);
    }
    Ok(())
}

/// The tree says what the words say.
fn end(tree: &Stage2<&Pool>, pool: &Pool, data: Data) -> Result<(), Name> {
    let geometry = *tree.geometry();
    for n in 0..SLOTS {
        let word = WORDS[n as usize].load(Ordering::Relaxed);
        let (_, ipa) = slot(&geometry, data.base, n);
        let is = tree.translate(Ipa::new(ipa));
        let right = match kind(word) {
            UNMAPPED => is.is_none(),
            _ => is.is_some_and(|(pa, attrs)| {
                let writable = attrs.access == Access::ReadWrite;
                pa.get() == frame(&geometry, data, n, word) && writable == (word & WRITABLE != 0)
            }),
        };
        if !right {
            return Err(Name::new(format_args!("{ipa:#x} is {is:?}, {word:#x}")));
        }
    }
    counts(tree, pool)
}

struct Worker<'a, 'p> {
    tree: &'a Stage2<&'p Pool>,
    pool: &'p Pool,
    data: Data,
    pe: u64,
    random: Random,
    /// How often somebody else was at it.
    busy: u32,
    /// Accesses whose outcome was known before.
    looks: u32,
}

impl Worker<'_, '_> {
    fn work(&mut self, report: &Report) -> Result<(), Name> {
        enter(self.tree.geometry(), self.tree.vttbr());
        for _ in 0..STEPS {
            if report.is_wrong() {
                return Ok(());
            }
            let n = self.random.below(SLOTS);
            if self.random.below(3) == 0 {
                let runs = SLOTS / RUN / crew::size() as u64;
                let run = self.random.below(runs.max(1)) * crew::size() as u64 + self.pe;
                self.change((run * RUN + n % RUN) % SLOTS)?;
            } else {
                self.look(n)?;
            }
        }
        Ok(())
    }

    fn frame(&self, n: u64, word: u64) -> u64 {
        frame(self.tree.geometry(), self.data, n, word)
    }

    fn ipa(&self, n: u64) -> u64 {
        slot(self.tree.geometry(), self.data.base, n).1
    }

    /// EL1 loads or stores.
    fn look(&mut self, n: u64) -> Result<(), Name> {
        let ipa = self.ipa(n);
        let stores = self.random.below(3) == 0;
        let number = self.random.word();
        let own = 64 + 8 * self.pe;
        for _ in 0..TRIES {
            let word = WORDS[n as usize].load(Ordering::Acquire);
            if kind(word) == CHANGING {
                return Ok(());
            }
            let result = if stores {
                guest::write(ipa + own, number).map(|()| 0)
            } else {
                guest::read(ipa)
            };
            dsb();
            let still = WORDS[n as usize].load(Ordering::Acquire) == word;
            let wrong = || {
                let what = if stores { "store" } else { "load" };
                Name::new(format_args!(
                    "{ipa:#x}: {what} {result:x?}, word {word:#x}, still {still}"
                ))
            };
            // Never anybody else's, whatever goes on.
            let frames = [0, OTHER].map(|word| self.frame(n, word));
            if !stores && result.is_ok_and(|value| !frames.contains(&value)) {
                return Err(wrong());
            }
            if !still {
                return Ok(());
            }
            let mapped = word & MAPPED != 0;
            let may = mapped && (!stores || word & WRITABLE != 0);
            match result.map_err(|fault| fault.kind) {
                Ok(value) if may => {
                    let frame = self.frame(n, word);
                    let right = if stores {
                        read_coherent(frame + own) == number
                    } else {
                        value == frame
                    };
                    if !right {
                        return Err(wrong());
                    }
                }
                Err(Kind::Translation) if !mapped => (),
                Err(Kind::Permission) if mapped && !may => (),
                // A block or a group around it is broken for a moment.
                Err(Kind::Translation) => {
                    self.busy += 1;
                    continue;
                }
                Err(Kind::AccessFlag) if mapped => {
                    let marked = self.tree.mark_young(&mut Instructions, Ipa::new(ipa));
                    if !matches!(marked, Ok(()) | Err(Error::Missing { .. } | Error::Busy)) {
                        return Err(Name::new(format_args!("{ipa:#x}: {marked:?}")));
                    }
                    continue;
                }
                _ => return Err(wrong()),
            }
            self.looks += 1;
            return Ok(());
        }
        Err(Name::new(format_args!("{ipa:#x} faults for ever")))
    }

    /// Changes a page of this CPU's own, or the run that it is in.
    fn change(&mut self, n: u64) -> Result<(), Name> {
        let kind = self.random.below(14);
        // An unmapping may be of the whole run.
        let run = if kind == 2 {
            n / RUN * RUN..(n / RUN + 1) * RUN
        } else {
            n..n + 1
        };
        let old = WORDS[n as usize].load(Ordering::Relaxed);
        let mut words = [0; RUN as usize];
        for (word, at) in words.iter_mut().zip(run.clone()) {
            *word = WORDS[at as usize].load(Ordering::Relaxed);
            WORDS[at as usize].store(*word & !0xff | CHANGING, Ordering::Relaxed);
        }
        let new = self
            .operate(kind, &run, old, &words)
            .map_err(|what| Name::new(format_args!("{:#x}, change {kind}: {what}", self.ipa(n))))?;
        for (word, at) in words.into_iter().zip(run) {
            let new = ((word & !0xff) + 0x100) | new;
            WORDS[at as usize].store(new, Ordering::Release);
        }
        Ok(())
    }

    /// An operation; what the pages are then.
    fn operate(
        &mut self,
        kind: u64,
        run: &core::ops::Range<u64>,
        old: u64,
        words: &[u64],
    ) -> Result<u64, Name> {
        let tree = self.tree;
        let cpu = &mut Instructions;
        let n = run.start;
        let page = tree.geometry().granule().page_size();
        let (start, end) = (self.ipa(run.start), self.ipa(run.end - 1) + page);
        let ipa = Ipa::new(start);
        let mapped = old & MAPPED != 0;
        let was = old & 0xff;
        let number = self.random.word();
        let wrong = |error: Error| Name::new(format_args!("{error}"));
        let all = || Budget::unlimited();
        let (first, _) = slot(tree.geometry(), self.data.base, 0);
        let area = (first, first + tree.geometry().span(Level::L2));
        match kind {
            0 | 1 => {
                let new = MAPPED | number & (OTHER | WRITABLE);
                let map = self.map(
                    n,
                    new,
                    if mapped {
                        Over::Anything
                    } else {
                        Over::Nothing
                    },
                );
                again(start, &mut self.busy, |_| tree.map(cpu, &map, &mut all())).map_err(wrong)?;
                Ok(new)
            }
            2 | 3 => {
                let (mut told, mut right) = (0, true);
                let frames: [u64; RUN as usize] = core::array::from_fn(|at| {
                    frame(tree.geometry(), self.data, n + at as u64, words[at])
                });
                let mut sink = |leaf: RemovedLeaf| {
                    let at = (leaf.ipa().get().wrapping_sub(start) / page) as usize;
                    right &= frames.get(at) == Some(&leaf.pa().get()) && leaf.size() == page;
                    told += 1;
                };
                again(start, &mut self.busy, |at| {
                    let (from, size) = (Ipa::new(at), end - at);
                    tree.unmap_leaves(cpu, &Unmap::new(from, size), &mut sink, &mut all())
                })
                .map_err(wrong)?;
                let had = words.iter().filter(|&&word| word & MAPPED != 0).count();
                if told != had || !right {
                    return Err(Name::new(format_args!("told of {told}, {had} were mapped")));
                }
                Ok(UNMAPPED)
            }
            4 => {
                let mut gather = tree.gather();
                let mut held: Option<HeldLeaf> = None;
                again(start, &mut self.busy, |at| {
                    let sink = |leaf| held = Some(leaf);
                    let (from, split) = (Ipa::new(at), Partial::Split);
                    tree.unmap_later(
                        cpu,
                        UnmapLater::new(from, end - at, &mut gather).partial(split),
                        &mut all(),
                        sink,
                    )
                })
                .map_err(wrong)?;
                let synced = tree.sync(cpu, gather).expect("of this tree");
                let leaf = held.map(|leaf| leaf.release(&synced));
                let right = match leaf {
                    None => !mapped,
                    Some(leaf) => leaf.is_ok_and(|leaf| leaf.pa().get() == self.frame(n, old)),
                };
                if !right {
                    return Err(Name::new(format_args!("not told of what was mapped")));
                }
                Ok(UNMAPPED)
            }
            5 | 6 => {
                let writable = number & WRITABLE;
                let access = [Access::Read, Access::ReadWrite][usize::from(writable != 0)];
                let permissions = Permissions {
                    access,
                    execute: Execute::All,
                };
                again(start, &mut self.busy, |at| {
                    let (from, flush) = (Ipa::new(at), Flush::Now);
                    let split = Partial::Split;
                    tree.protect(
                        cpu,
                        Sweep {
                            flush,
                            ..Sweep::new(from, end - at).partial(split)
                        },
                        permissions,
                        &mut all(),
                    )
                })
                .map_err(wrong)?;
                Ok(if mapped {
                    was & !WRITABLE | writable
                } else {
                    was
                })
            }
            7 | 8 => {
                // Only what is a page already loses no more than it should.
                self.split(start, end)?;
                again(start, &mut self.busy, |at| {
                    let from = Ipa::new(at);
                    tree.write_protect(cpu, Sweep::new(from, end - at), &mut all())
                })
                .map_err(wrong)?;
                Ok(if mapped { was & !WRITABLE } else { was })
            }
            9 => {
                // All of the area, whoever's it is: only the access flag goes.
                again(area.0, &mut self.busy, |at| {
                    let from = Ipa::new(at);
                    let done = tree.clear_young(cpu, Sweep::new(from, area.1 - at), &mut all());
                    done.map(|(next, _)| next)
                })
                .map_err(wrong)?;
                Ok(was)
            }
            10 => self.freeze(n, was, number),
            11 => {
                let result = if number & 3 != 0 {
                    tree.set_contiguous(cpu, ipa)
                } else {
                    tree.clear_contiguous(cpu, ipa)
                };
                match result {
                    Ok(()) | Err(Error::Missing { .. } | Error::Mismatch { .. } | Error::Busy) => {
                        Ok(was)
                    }
                    Err(error) => Err(wrong(error)),
                }
            }
            12 => {
                let mut seen = None;
                let here = |from: u64, to: u64| from <= start && start < to;
                let walked = tree.walk(Ipa::new(area.0), area.1 - area.0, &mut all(), |entry| {
                    let from = entry.ipa.get();
                    let to = from + tree.geometry().span(entry.level);
                    if let (Visit::Leaf, Entry::Leaf { pa, .. }) = (entry.visit, entry.entry)
                        && here(from, to)
                    {
                        seen = Some(pa.get() + (start - from));
                    }
                    Next::Descend
                });
                walked.map_err(|stopped| wrong(stopped.why))?;
                // A group around it may be broken just now: then it is frozen.
                let expected = mapped.then(|| self.frame(n, old));
                if seen.is_some() && seen != expected {
                    return Err(Name::new(format_args!("walked to {seen:x?}")));
                }
                Ok(was)
            }
            _ => {
                if was & (MAPPED | WRITABLE) == MAPPED | WRITABLE {
                    let permissions = Permissions {
                        access: Access::ReadWrite,
                        execute: Execute::All,
                    };
                    again(start, &mut self.busy, |_| {
                        let relaxed = tree.relax(cpu, ipa, permissions);
                        relaxed
                            .map(|()| ipa)
                            .map_err(|why| pgtable::Stopped { why, next: ipa })
                    })
                    .map_err(wrong)?;
                } else {
                    self.split(start, end)?;
                }
                Ok(was)
            }
        }
    }

    fn map(&self, n: u64, word: u64, over: Over) -> Map {
        let access = [Access::Read, Access::ReadWrite][usize::from(word & WRITABLE != 0)];
        Map::new(
            Ipa::new(self.ipa(n)),
            Pa::new(self.frame(n, word)),
            self.tree.geometry().granule().page_size(),
            Attrs::MEMORY.access(access),
        )
        .leaves(Leaves::Exactly(Level::L3))
        .over(over)
    }

    /// Pages, where a block is.
    fn split(&mut self, start: u64, end: u64) -> Result<(), Name> {
        let (tree, pool) = (self.tree, self.pool);
        let result = again(start, &mut self.busy, |at| {
            let pages = |_| pool.page();
            let budget = &mut Budget::unlimited();
            let from = Ipa::new(at);
            tree.split(
                &mut Instructions,
                &Split {
                    ipa: from,
                    size: end - at,
                    to: Level::L3,
                },
                pages,
                budget,
            )
        });
        result
            .map(drop)
            .map_err(|error| Name::new(format_args!("split: {error}")))
    }

    /// Holds the entry, lets somebody else try it, and gives it a value.
    fn freeze(&mut self, n: u64, was: u64, number: u64) -> Result<u64, Name> {
        let cpu = &mut Instructions;
        let ipa = Ipa::new(self.ipa(n));
        self.split(
            ipa.get(),
            ipa.get() + self.tree.geometry().granule().page_size(),
        )?;
        let mut frozen = None;
        for _ in 0..TRIES {
            match self.tree.freeze(ipa, Level::L3) {
                Ok(held) => {
                    frozen = Some(held);
                    break;
                }
                Err(Error::Busy) => self.busy += 1,
                // Nothing is there, not even a table; or it is in a group.
                Err(Error::Missing { .. } | Error::Exists { .. }) => return Ok(was),
                Err(error) => return Err(Name::new(format_args!("freeze: {error}"))),
            }
        }
        let Some(frozen) = frozen else {
            return Err(Name::new(format_args!("busy for ever")));
        };
        let map = self.map(n, MAPPED, Over::Anything);
        let other = self.tree.map(cpu, &map, &mut Budget::unlimited());
        let other = other.map_err(|stopped| stopped.why);
        if other != Err(Error::Busy) {
            frozen.rollback(cpu);
            return Err(Name::new(format_args!("{other:?} where it is frozen")));
        }
        let error = |error: Error| Name::new(format_args!("commit: {error}"));
        match number >> 8 & 3 {
            0 => {
                frozen.rollback(cpu);
                Ok(was)
            }
            1 => {
                let nothing = Change::Invalid(pgtable::Annotation::EMPTY);
                frozen.commit(cpu, nothing).map_err(error)?;
                Ok(UNMAPPED)
            }
            _ => {
                let new = MAPPED | number & (OTHER | WRITABLE);
                let access = [Access::Read, Access::ReadWrite][usize::from(new & WRITABLE != 0)];
                let pa = Pa::new(self.frame(n, new));
                let leaf = Change::Leaf(pa, Attrs::MEMORY.access(access));
                frozen.commit(cpu, leaf).map_err(error)?;
                Ok(new)
            }
        }
    }
}

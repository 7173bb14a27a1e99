//! All CPUs map and unmap the same few pages, each time with a frame that was
//! never used before, and look at what is there.
//!
//! - Each frame that was mapped is told to one who unmapped it, once, or still is
//!   mapped at the end.
//! - A frame that was told (so that it could be another's now) is seen by no
//!   access that began after that.
//! - After a mapping has returned, no access that begins sees an older frame.
//!
//! Times are of one clock that all CPUs count up.

use core::sync::atomic::{AtomicU32, Ordering};

use pgtable::{
    Access, Annotation, Attrs, Budget, Change, Entry, Error, Execute, Flush, Geometry, HeldLeaf,
    Ignore, Ipa, Leaves, Level, Map, Pa, Partial, Permissions, RemovedLeaf, Stage2, Sweep, Unmap,
    UnmapLater,
};
use tests::bare::asm::dsb;
use tests::bare::console::Console;
use tests::println;
use tests::random::Random;
use tests::suite::Suite;

use super::crew::{self, Report};
use super::{BASE, TRIES, again, enter, nothing_left, title, tree};
use crate::census::counts;
use crate::guest::{self, Kind};
use crate::instructions::Instructions;
use crate::memory::{DATA, Data, Pool};
use crate::text::Name;

/// Pages that all meet on.
const PAGES: u64 = 6;
/// Operations and looks of each CPU.
const STEPS: u32 = 600;
/// Frames, at most.
const FRAMES: usize = (DATA >> 12) as usize;

/// When things happened to a frame, by the clock; 0 for never.
struct Times {
    /// A mapping of it was asked for.
    asked: AtomicU32,
    /// It returned, and it was mapped by it.
    mapped: AtomicU32,
    /// Somebody was told that it is free.
    told: AtomicU32,
}

static TIMES: [Times; FRAMES] = [const {
    Times {
        asked: AtomicU32::new(0),
        mapped: AtomicU32::new(0),
        told: AtomicU32::new(0),
    }
}; FRAMES];
static CLOCK: AtomicU32 = AtomicU32::new(0);
static NEXT: AtomicU32 = AtomicU32::new(0);
/// Of the mappings of a page that have returned, the latest time that one was
/// asked for.
static LATEST: [AtomicU32; PAGES as usize] = [const { AtomicU32::new(0) }; PAGES as usize];

fn now() -> u32 {
    CLOCK.fetch_add(1, Ordering::SeqCst) + 1
}

/// Whether whoever unmaps wants to know the leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sink {
    /// Each of them.
    Told,
    /// None: then nobody knows which frames are free.
    Ignored,
}

/// Runs it, in one format.
pub fn check(suite: &mut Suite<Console>, geometry: Geometry, data: Data, sink: Sink) {
    let pool = Pool::new(geometry.granule().page_size());
    for time in TIMES
        .iter()
        .flat_map(|frame| [&frame.asked, &frame.mapped, &frame.told])
    {
        time.store(0, Ordering::Relaxed);
    }
    for time in LATEST.iter().chain([&CLOCK, &NEXT]) {
        time.store(0, Ordering::Relaxed);
    }
    let mut report = Report::new();
    let (looks, busy) = (AtomicU32::new(0), AtomicU32::new(0));
    let result = tree(geometry, &pool).and_then(|mut tree| {
        let job = |pe: usize| {
            let mut worker = Worker {
                tree: &tree,
                data,
                sink,
                random: Random::new(0x100 + pe as u64),
                spare: None,
                busy: 0,
                looks: 0,
            };
            if let Err(what) = worker.work(&report) {
                report.wrong(Name::new(format_args!("cpu {pe}: {what}")));
            }
            busy.fetch_add(worker.busy, Ordering::Relaxed);
            looks.fetch_add(worker.looks, Ordering::Relaxed);
        };
        if !crew::all(&job) {
            return Err(Name::new(format_args!("a CPU did not come or go")));
        }
        if report.is_wrong() {
            return Ok(());
        }
        counts(&tree, &pool)?;
        if sink == Sink::Told {
            accounts(&tree, data)?;
        }
        nothing_left(&mut tree, &pool)
    });
    if let Err(what) = result {
        report.wrong(what);
    }
    let what = match sink {
        Sink::Told => "frames",
        Sink::Ignored => "frames unsaid",
    };
    let title = title(what, &geometry);
    report.check(suite, &title);
    println!(
        "{title}: {} frames, {} looks, {} times busy",
        NEXT.load(Ordering::Relaxed),
        looks.load(Ordering::Relaxed),
        busy.load(Ordering::Relaxed)
    );
}

fn ipa(geometry: &Geometry, page: u64) -> u64 {
    BASE + page * geometry.granule().page_size()
}

/// The frame that memory belongs to.
fn index(geometry: &Geometry, data: Data, pa: u64) -> Option<usize> {
    let index = pa.wrapping_sub(data.base) / geometry.granule().page_size();
    (data.holds(pa) && index < u64::from(NEXT.load(Ordering::Relaxed))).then_some(index as usize)
}

/// Every frame that was mapped was told, or is mapped.
fn accounts(tree: &Stage2<&Pool>, data: Data) -> Result<(), Name> {
    let geometry = tree.geometry();
    let mut standing = [None; PAGES as usize];
    for (page, frame) in standing.iter_mut().enumerate() {
        let at = Ipa::new(ipa(geometry, page as u64));
        *frame = tree.translate(at).map(|(pa, _)| pa.get());
    }
    for (frame, times) in TIMES
        .iter()
        .enumerate()
        .take(NEXT.load(Ordering::Relaxed) as usize)
    {
        let pa = data.base + frame as u64 * geometry.granule().page_size();
        let mapped = times.mapped.load(Ordering::Relaxed) != 0;
        let told = times.told.load(Ordering::Relaxed) != 0;
        let stands = standing.contains(&Some(pa));
        if mapped != (told || stands) || (told && stands) {
            return Err(Name::new(format_args!(
                "frame {pa:#x}: mapped {mapped}, told {told}, still there {stands}"
            )));
        }
    }
    Ok(())
}

struct Worker<'a, 'p> {
    tree: &'a Stage2<&'p Pool>,
    data: Data,
    sink: Sink,
    random: Random,
    /// A frame that was taken and not mapped.
    spare: Option<usize>,
    busy: u32,
    looks: u32,
}

impl Worker<'_, '_> {
    fn work(&mut self, report: &Report) -> Result<(), Name> {
        enter(self.tree.geometry(), self.tree.vttbr());
        for _ in 0..STEPS {
            if report.is_wrong() {
                return Ok(());
            }
            let page = self.random.below(PAGES);
            match self.random.below(13) {
                0..=2 => self.map(page)?,
                3 | 4 => self.unmap(page)?,
                5 => self.unmap_later(page)?,
                6 => self.freeze(page)?,
                7 => self.change(page)?,
                _ => self.look(page)?,
            }
        }
        Ok(())
    }

    fn page_size(&self) -> u64 {
        self.tree.geometry().granule().page_size()
    }

    fn ipa(&self, page: u64) -> u64 {
        ipa(self.tree.geometry(), page)
    }

    /// A frame that nobody has used.
    fn take(&mut self) -> Option<usize> {
        if let Some(frame) = self.spare.take() {
            return Some(frame);
        }
        let all = (DATA / self.page_size()) as u32;
        let frame = NEXT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| {
            (next < all).then_some(next + 1)
        });
        frame.ok().map(|frame| frame as usize)
    }

    /// A guest's fault: a frame, where nothing is.
    fn map(&mut self, page: u64) -> Result<(), Name> {
        let Some(frame) = self.take() else {
            return Ok(());
        };
        let times = &TIMES[frame];
        let pa = self.data.base + frame as u64 * self.page_size();
        let at = Ipa::new(self.ipa(page));
        let map = Map::new(at, Pa::new(pa), self.page_size(), Attrs::MEMORY)
            .leaves(Leaves::Exactly(Level::L3));
        let asked = now();
        times.asked.store(asked, Ordering::SeqCst);
        let tree = self.tree;
        let result = again(at.get(), &mut self.busy, |_| {
            tree.map(&mut Instructions, &map, &mut Budget::unlimited())
        });
        match result {
            Ok(_) => {
                times.mapped.store(now(), Ordering::SeqCst);
                LATEST[page as usize].fetch_max(asked, Ordering::SeqCst);
                Ok(())
            }
            Err(Error::Exists { .. }) => {
                self.spare = Some(frame);
                Ok(())
            }
            Err(error) => Err(Name::new(format_args!("{at}: map: {error}"))),
        }
    }

    /// Some pages go; what was there is free.
    fn unmap(&mut self, page: u64) -> Result<(), Name> {
        let pages = 1 + self.random.below(PAGES - page);
        let end = self.ipa(page + pages);
        let start = self.ipa(page);
        let (geometry, data) = (*self.tree.geometry(), self.data);
        let mut wrong = None;
        let mut sink = |leaf: RemovedLeaf| {
            if let Err(what) = told(&geometry, data, leaf.pa().get()) {
                wrong.get_or_insert(what);
            }
        };
        let (tree, told_to) = (self.tree, self.sink);
        let split = Partial::Split;
        let result = again(start, &mut self.busy, |at| {
            let (from, budget) = (Ipa::new(at), &mut Budget::unlimited());
            let cpu = &mut Instructions;
            if told_to == Sink::Ignored {
                return tree.unmap_leaves(
                    cpu,
                    &Unmap::new(from, end - at).partial(split),
                    &mut Ignore,
                    budget,
                );
            }
            tree.unmap_leaves(
                cpu,
                &Unmap::new(from, end - at).partial(split),
                &mut sink,
                budget,
            )
        });
        match (result, wrong) {
            (_, Some(wrong)) => Err(wrong),
            (Err(error), _) => Err(Name::new(format_args!("{start:#x}: unmap: {error}"))),
            _ => Ok(()),
        }
    }

    /// Some pages go, and are free when the gather is synced.
    fn unmap_later(&mut self, page: u64) -> Result<(), Name> {
        let pages = 1 + self.random.below(PAGES - page);
        let (start, end) = (self.ipa(page), self.ipa(page + pages));
        let mut gather = self.tree.gather();
        let mut held: [Option<HeldLeaf>; PAGES as usize] = [const { None }; PAGES as usize];
        let mut count = 0;
        let cpu = &mut Instructions;
        // Not from where it came to: somebody who waits while holding pages
        // could wait for one who waits for these.
        let result = self.tree.unmap_later(
            cpu,
            UnmapLater::new(Ipa::new(start), end - start, &mut gather),
            &mut Budget::unlimited(),
            |leaf| {
                held[count] = Some(leaf);
                count += 1;
            },
        );
        let synced = self.tree.sync(cpu, gather).expect("of this tree");
        for leaf in held.into_iter().flatten() {
            let Ok(leaf) = leaf.release(&synced) else {
                return Err(Name::new(format_args!(
                    "{start:#x}: a leaf is not released"
                )));
            };
            told(self.tree.geometry(), self.data, leaf.pa().get())?;
        }
        match result {
            Ok(_) => Ok(()),
            Err(stopped) if stopped.why == Error::Busy => {
                self.busy += 1;
                Ok(())
            }
            Err(stopped) => Err(Name::new(format_args!("unmap later: {stopped}"))),
        }
    }

    /// An entry is held; what was there goes, or stays.
    fn freeze(&mut self, page: u64) -> Result<(), Name> {
        let ipa = Ipa::new(self.ipa(page));
        let frozen = match self.tree.freeze(ipa, Level::L3) {
            Ok(frozen) => frozen,
            Err(Error::Busy) => {
                self.busy += 1;
                return Ok(());
            }
            Err(Error::Missing { .. }) => return Ok(()),
            Err(error) => return Err(Name::new(format_args!("{ipa}: freeze: {error}"))),
        };
        let old = frozen.old();
        if self.random.below(2) == 0 {
            frozen.rollback(&mut Instructions);
            return Ok(());
        }
        let nothing = Change::Invalid(Annotation::EMPTY);
        frozen
            .commit(&mut Instructions, nothing)
            .map_err(|error| Name::new(format_args!("{ipa}: commit: {error}")))?;
        match old {
            Entry::Leaf { pa, .. } => told(self.tree.geometry(), self.data, pa.get()),
            _ => Ok(()),
        }
    }

    /// Rights and age change under the others' hands.
    fn change(&mut self, page: u64) -> Result<(), Name> {
        let (start, end) = (self.ipa(0), self.ipa(PAGES));
        let (from, to) = (self.ipa(page), self.ipa(page + 1));
        let access = [Access::ReadWrite, Access::Read][self.random.below(2) as usize];
        let tree = self.tree;
        let cpu = &mut Instructions;
        let all = || Budget::unlimited();
        let result = match self.random.below(3) {
            0 => {
                let permissions = Permissions {
                    access,
                    execute: Execute::All,
                };
                again(from, &mut self.busy, |at| {
                    let (split, now) = (Partial::Split, Flush::Now);
                    let at_ipa = Ipa::new(at);
                    tree.protect(
                        cpu,
                        Sweep {
                            flush: now,
                            ..Sweep::new(at_ipa, to - at).partial(split)
                        },
                        permissions,
                        &mut all(),
                    )
                })
            }
            1 => again(start, &mut self.busy, |at| {
                let done = tree.clear_young(cpu, Sweep::new(Ipa::new(at), end - at), &mut all());
                done.map(|(next, _)| next)
            }),
            _ => again(start, &mut self.busy, |at| {
                tree.write_protect(cpu, Sweep::new(Ipa::new(at), end - at), &mut all())
            }),
        };
        result
            .map(drop)
            .map_err(|error| Name::new(format_args!("{from:#x}: change: {error}")))
    }

    /// EL1 loads; it may be any frame that still counts.
    fn look(&mut self, page: u64) -> Result<(), Name> {
        let ipa = self.ipa(page);
        for _ in 0..TRIES {
            let latest = LATEST[page as usize].load(Ordering::SeqCst);
            let began = CLOCK.load(Ordering::SeqCst);
            dsb();
            let load = guest::read(ipa);
            dsb();
            let pa = match load {
                Ok(pa) => pa,
                Err(fault) if fault.kind == Kind::Translation => return Ok(()),
                Err(fault) if fault.kind == Kind::AccessFlag => {
                    let marked = self.tree.mark_young(&mut Instructions, Ipa::new(ipa));
                    if !matches!(marked, Ok(()) | Err(Error::Missing { .. } | Error::Busy)) {
                        return Err(Name::new(format_args!("{ipa:#x}: {marked:?}")));
                    }
                    continue;
                }
                Err(fault) => return Err(Name::new(format_args!("{ipa:#x}: load {fault:x?}"))),
            };
            self.looks += 1;
            let Some(frame) = index(self.tree.geometry(), self.data, pa) else {
                return Err(Name::new(format_args!("{ipa:#x}: load {pa:#x}")));
            };
            let times = &TIMES[frame];
            let told = times.told.load(Ordering::SeqCst);
            if told != 0 && told <= began {
                return Err(Name::new(format_args!(
                    "{ipa:#x}: frame {pa:#x} seen at {began}, was free at {told}"
                )));
            }
            let mapped = times.mapped.load(Ordering::SeqCst);
            if mapped != 0 && mapped < latest {
                return Err(Name::new(format_args!(
                    "{ipa:#x}: frame {pa:#x} of {mapped} seen at {began}, another was asked for at {latest}"
                )));
            }
            return Ok(());
        }
        Err(Name::new(format_args!("{ipa:#x} faults for ever")))
    }
}

/// A frame is free now, and was not before.
fn told(geometry: &Geometry, data: Data, pa: u64) -> Result<(), Name> {
    let Some(frame) = index(geometry, data, pa) else {
        return Err(Name::new(format_args!("told of {pa:#x}")));
    };
    let was = TIMES[frame].told.swap(now(), Ordering::SeqCst);
    if was != 0 {
        return Err(Name::new(format_args!("told of {pa:#x} twice")));
    }
    Ok(())
}

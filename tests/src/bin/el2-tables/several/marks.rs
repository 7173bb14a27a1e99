//! Guests access pages while one CPU harvests what was accessed or written: by
//! hardware's marks (FEAT_HAFDBS at stage 2), or by the faults of write-protected
//! pages. No access is lost.
//!
//! A CPU notes how many harvests have begun, accesses a page, and leaves that
//! number at the page. The page then must be reported by that harvest or a later
//! one. With hardware's marks that holds at each harvest; with faults it does at
//! the end, as a store may go through because of a CPU that has yet to log it.
//!
//! Logging by faults, in this order: the right to write, the log, the store again.
//! The harvest takes the log, then the right.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use pgtable::{
    Access, Age, Attrs, Budget, Dirty, Error, Execute, Geometry, Ipa, Leaves, Level, Map, Pa,
    Permissions, Stage2, Sweep,
};
use tests::bare::asm::dsb;
use tests::bare::console::Console;
use tests::println;
use tests::random::Random;
use tests::suite::Suite;

use super::crew::{self, Report};
use super::{BASE, TRIES, again, enter, nothing_left, title, tree};
use crate::guest::{self, Fault, Kind};
use crate::instructions::Instructions;
use crate::memory::{Data, Pool};
use crate::text::Name;

/// Pages; the last [`QUIET`] of them are not accessed.
const PAGES: usize = 40;
const QUIET: usize = 8;
/// Accesses of each CPU.
const ACCESSES: u32 = 400;
/// Harvests, at least.
const HARVESTS: u32 = 30;

/// Who marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// Hardware sets the access flag.
    AccessFlag,
    /// Hardware makes what is written writable.
    Dirty,
    /// Whoever serves the fault logs it.
    Fault,
}

struct Scene {
    by: By,
    geometry: Geometry,
    /// Harvests that have begun.
    begun: AtomicU32,
    /// Of the latest access, how many harvests had begun, and one; 0 for none.
    accessed: [AtomicU32; PAGES],
    /// Pages that were written, by faults.
    log: [AtomicBool; PAGES],
    /// CPUs that still access.
    busy: AtomicU32,
}

/// Runs it, in one format.
pub fn check(suite: &mut Suite<Console>, geometry: Geometry, data: Data, by: By) {
    let pool = Pool::new(geometry.granule().page_size());
    let mut report = Report::new();
    let scene = Scene {
        by,
        geometry,
        begun: AtomicU32::new(0),
        accessed: [const { AtomicU32::new(0) }; PAGES],
        log: [const { AtomicBool::new(false) }; PAGES],
        busy: AtomicU32::new(crew::size() as u32 - 1),
    };
    let mut marks = 0;
    let result = tree(geometry, &pool).and_then(|mut tree| {
        let page = geometry.granule().page_size();
        let attrs = match by {
            By::AccessFlag => Attrs::MEMORY.age(Age::Old),
            By::Dirty => Attrs::MEMORY.access(Access::Read).dirty(Dirty::Track),
            By::Fault => Attrs::MEMORY.access(Access::Read),
        };
        let size = PAGES as u64 * page;
        let map = Map::new(Ipa::new(BASE), Pa::new(data.base), size, attrs)
            .leaves(Leaves::Exactly(Level::L3));
        tree.map(&mut Instructions, &map, &mut Budget::unlimited())
            .map_err(|stopped| Name::new(format_args!("map: {stopped}")))?;
        let vttbr = tree.vttbr();
        let access = |pe: usize| {
            enter(&geometry, vttbr);
            let mut random = Random::new(0x300 + pe as u64);
            for _ in 0..ACCESSES {
                if report.is_wrong() {
                    break;
                }
                if let Err(what) = scene.access(&tree, &mut random, pe) {
                    report.wrong(Name::new(format_args!("cpu {pe}: {what}")));
                }
            }
            scene.busy.fetch_sub(1, Ordering::AcqRel);
        };
        let mut result = Ok(0);
        let came = crew::with(&access, || {
            enter(&geometry, vttbr);
            result = scene.harvests(&tree, &report);
        });
        marks = result?;
        if !came {
            return Err(Name::new(format_args!("a CPU did not come or go")));
        }
        nothing_left(&mut tree, &pool)
    });
    if let Err(what) = result {
        report.wrong(what);
    }
    let what = match by {
        By::AccessFlag => "accessed",
        By::Dirty => "dirty",
        By::Fault => "logged",
    };
    let title = title(what, &geometry);
    report.check(suite, &title);
    println!(
        "{title}: {} harvests, {marks} marks",
        scene.begun.load(Ordering::Relaxed)
    );
}

impl Scene {
    fn ipa(&self, page: usize) -> u64 {
        BASE + page as u64 * self.geometry.granule().page_size()
    }

    /// EL1 loads from a page, or stores to it.
    fn access(&self, tree: &Stage2<&Pool>, random: &mut Random, pe: usize) -> Result<(), Name> {
        let page = random.below((PAGES - QUIET) as u64) as usize;
        let ipa = self.ipa(page);
        for _ in 0..TRIES {
            let begun = self.begun.load(Ordering::SeqCst);
            let met = if self.by == By::AccessFlag {
                guest::read(ipa).map(drop)
            } else {
                guest::write(ipa + 64 + 8 * pe as u64, random.word())
            };
            dsb();
            match met {
                Ok(()) => {
                    self.accessed[page].fetch_max(begun + 1, Ordering::SeqCst);
                    return Ok(());
                }
                Err(Fault {
                    kind: Kind::Permission,
                    ..
                }) if self.by == By::Fault => {
                    let rights = Permissions {
                        access: Access::ReadWrite,
                        execute: Execute::Never,
                    };
                    let relaxed = tree.relax(&mut Instructions, Ipa::new(ipa), rights);
                    if !matches!(relaxed, Ok(()) | Err(Error::Busy)) {
                        return Err(Name::new(format_args!("{ipa:#x}: relax: {relaxed:?}")));
                    }
                    if relaxed.is_ok() {
                        self.log[page].store(true, Ordering::SeqCst);
                    }
                }
                Err(fault) => return Err(Name::new(format_args!("{ipa:#x}: {fault:x?}"))),
            }
        }
        Err(Name::new(format_args!("{ipa:#x} faults for ever")))
    }

    /// Harvests until all are done; how many marks there were.
    fn harvests(&self, tree: &Stage2<&Pool>, report: &Report) -> Result<u32, Name> {
        let mut random = Random::new(0x300);
        let mut reported = [0u32; PAGES];
        let mut marks = 0;
        let mut last = false;
        while !last && !report.is_wrong() {
            // The others' last accesses come before the last harvest.
            let quiet = self.busy.load(Ordering::Acquire) == 0;
            last = quiet && self.begun.load(Ordering::Relaxed) >= HARVESTS;
            for _ in 0..3 {
                self.access(tree, &mut random, 0)?;
            }
            let mut accessed = [0; PAGES];
            for (before, page) in accessed.iter_mut().zip(&self.accessed) {
                if self.by != By::Fault || last {
                    *before = page.swap(0, Ordering::SeqCst);
                }
            }
            let number = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
            marks += self.harvest(tree, number, &mut reported)?;
            for (page, before) in accessed.iter().enumerate() {
                // In the harvest that had begun last, or in a later one.
                let from = before.saturating_sub(1);
                if *before != 0 && reported[page] < from.max(1) {
                    return Err(Name::new(format_args!(
                        "page {page}: accessed after harvest {from} began, last reported by {} of {number}",
                        reported[page]
                    )));
                }
            }
        }
        let quiet = reported[PAGES - QUIET..].iter().all(|&number| number == 0);
        if self.by != By::AccessFlag && !quiet {
            return Err(Name::new(format_args!("a page that nobody wrote is dirty")));
        }
        Ok(marks)
    }

    /// One harvest of all pages.
    fn harvest(
        &self,
        tree: &Stage2<&Pool>,
        number: u32,
        reported: &mut [u32; PAGES],
    ) -> Result<u32, Name> {
        let page = self.geometry.granule().page_size();
        let cpu = &mut Instructions;
        let mut marks = 0;
        let failed = |why| Name::new(format_args!("harvest: {why}"));
        let size = PAGES as u64 * page;
        let all = || Budget::unlimited();
        if self.by == By::Dirty {
            let mut budget = all();
            tree.harvest_dirty(
                cpu,
                Sweep::new(Ipa::new(BASE), size),
                &mut budget,
                |at, _| {
                    reported[((at.get() - BASE) / page) as usize] = number;
                    marks += 1;
                },
            )
            .map_err(|stopped| failed(stopped.why))?;
            return Ok(marks);
        }
        if self.by == By::Fault {
            for (last, log) in reported.iter_mut().zip(&self.log) {
                if log.swap(false, Ordering::SeqCst) {
                    *last = number;
                    marks += 1;
                }
            }
            let mut busy = 0;
            again(BASE, &mut busy, |at| {
                let size = BASE + size - at;
                tree.write_protect(cpu, Sweep::new(Ipa::new(at), size), &mut all())
            })
            .map_err(failed)?;
            return Ok(marks);
        }
        for (at, last) in reported.iter_mut().enumerate() {
            let (_, young) = tree
                .clear_young(cpu, Sweep::new(Ipa::new(self.ipa(at)), page), &mut all())
                .map_err(|stopped| failed(stopped.why))?;
            if young > 0 {
                *last = number;
                marks += 1;
            }
        }
        Ok(marks)
    }
}

//! Hardware marks pages accessed and dirty (FEAT_HAFDBS at stage 2) while one CPU
//! harvests the marks: no access is lost.
//!
//! A CPU notes how many harvests have begun, accesses a page, and leaves that
//! number at the page. The page then must be reported by that harvest or a later
//! one: whoever finds the number knows which harvest was the last to report it.

use core::sync::atomic::{AtomicU32, Ordering};

use pgtable::{
    Access, Age, Attrs, Budget, Dirty, Flush, Geometry, Ipa, Leaves, Level, Map, Pa, Stage2,
};
use tests::bare::asm::dsb;
use tests::bare::console::Console;
use tests::println;
use tests::random::Random;
use tests::suite::Suite;

use super::crew::{self, Report};
use super::{BASE, enter, nothing_left, title, tree};
use crate::guest;
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

struct Scene {
    geometry: Geometry,
    /// Harvests that have begun.
    begun: AtomicU32,
    /// Of the latest access, how many harvests had begun, and one; 0 for none.
    accessed: [AtomicU32; PAGES],
    /// CPUs that still access.
    busy: AtomicU32,
}

/// Runs it, in one format.
pub fn check(suite: &mut Suite<Console>, geometry: Geometry, data: Data) {
    let pool = Pool::new(geometry.granule().page_size());
    let mut report = Report::new();
    let scene = Scene {
        geometry,
        begun: AtomicU32::new(0),
        accessed: [const { AtomicU32::new(0) }; PAGES],
        busy: AtomicU32::new(crew::size() as u32 - 1),
    };
    let mut marks = 0;
    let result = tree(geometry, &pool).and_then(|mut tree| {
        let page = geometry.granule().page_size();
        let attrs = Attrs::MEMORY
            .access(if scene.dirty() {
                Access::Read
            } else {
                Access::ReadWrite
            })
            .age(Age::Old)
            .dirty(if scene.dirty() {
                Dirty::Track
            } else {
                Dirty::Fault
            });
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
                if let Err(what) = scene.access(&mut random, pe) {
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
    let title = title("marks", &geometry);
    report.check(suite, &title);
    println!(
        "{title}: {} harvests, {marks} marks",
        scene.begun.load(Ordering::Relaxed)
    );
}

impl Scene {
    fn dirty(&self) -> bool {
        self.geometry.features().hw_dirty
    }

    fn ipa(&self, page: usize) -> u64 {
        BASE + page as u64 * self.geometry.granule().page_size()
    }

    /// EL1 loads from a page, or stores to it.
    fn access(&self, random: &mut Random, pe: usize) -> Result<(), Name> {
        let page = random.below((PAGES - QUIET) as u64) as usize;
        let ipa = self.ipa(page);
        let begun = self.begun.load(Ordering::SeqCst);
        let met = if self.dirty() {
            guest::write(ipa + 64 + 8 * pe as u64, random.word())
        } else {
            guest::read(ipa).map(drop)
        };
        dsb();
        self.accessed[page].fetch_max(begun + 1, Ordering::SeqCst);
        met.map_err(|fault| Name::new(format_args!("{ipa:#x}: {fault:x?}")))
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
                self.access(&mut random, 0)?;
            }
            let mut accessed = [0; PAGES];
            for (before, page) in accessed.iter_mut().zip(&self.accessed) {
                *before = page.swap(0, Ordering::SeqCst);
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
        if self.dirty() && !quiet {
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
        if self.dirty() {
            let size = PAGES as u64 * page;
            let all = &mut Budget::unlimited();
            tree.harvest_dirty(cpu, Ipa::new(BASE), size, Flush::Now, all, |at, _| {
                reported[((at.get() - BASE) / page) as usize] = number;
                marks += 1;
            })
            .map_err(|stopped| failed(stopped.why))?;
            return Ok(marks);
        }
        for (at, last) in reported.iter_mut().enumerate() {
            let all = &mut Budget::unlimited();
            let (_, young) = tree
                .clear_young(cpu, Ipa::new(self.ipa(at)), page, Flush::Now, all)
                .map_err(|stopped| failed(stopped.why))?;
            if young > 0 {
                *last = number;
                marks += 1;
            }
        }
        Ok(marks)
    }
}

//! One CPU takes a block apart and puts it together again, by everything that
//! changes sizes, while the others read on in it: they see what is mapped there,
//! before and after alike, or fault for a moment while an entry is broken. Never
//! anything else. Where FEAT_BBM level 2 is used, a split is not even a moment;
//! and when the tree was torn down, there is nothing but faults.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use pgtable::{
    Access, Attrs, Budget, Caches, Error, Execute, Flush, Geometry, Ignore, Ipa, Leaves, Level,
    Map, Over, Pa, Partial, Permissions, Split, Stage2, Sweep, Unmap,
};
use tests::bare::asm::dsb;
use tests::bare::console::Console;
use tests::println;
use tests::random::Random;
use tests::suite::Suite;

use super::crew::{self, Report};
use super::{IPA_BITS, enter, slot, title, tree};
use crate::guest::{self, Kind};
use crate::instructions::Instructions;
use crate::memory::{Data, Pool};
use crate::text::Name;

/// Pages that are read.
const PAGES: u64 = 32;
/// A page that changes, outside every group that they can be in.
const BESIDE: u64 = 200;
/// Times that the block is taken apart.
const ROUNDS: u64 = 6;
/// Accesses of all readers between two changes.
const READS: u32 = 40;

/// Anything may be broken for a moment.
const MOMENTS: u32 = 0;
/// A split under FEAT_BBM level 2: no faults.
const SMOOTH: u32 = 1;
/// Everything is gone: nothing but faults.
const GONE: u32 = 2;
/// The readers may go.
const OVER: u32 = 3;

struct Scene {
    geometry: Geometry,
    data: Data,
    phase: AtomicU32,
    reads: AtomicU32,
    faults: AtomicU32,
    seed: AtomicU64,
}

/// Runs it, in one format.
pub fn check(suite: &mut Suite<Console>, geometry: Geometry, data: Data) {
    let pool = Pool::new(geometry.granule().page_size());
    let mut report = Report::new();
    let scene = Scene {
        geometry,
        data,
        phase: AtomicU32::new(MOMENTS),
        reads: AtomicU32::new(0),
        faults: AtomicU32::new(0),
        seed: AtomicU64::new(1),
    };
    let result = tree(geometry, &pool).and_then(|mut tree| {
        let vttbr = tree.vttbr();
        scene.whole(&mut tree, Level::L2)?;
        // The boot CPU alone has the tree; the others have its VTTBR_EL2.
        let read = |pe: usize| {
            enter(&geometry, vttbr);
            if let Err(what) = scene.read(&report) {
                report.wrong(Name::new(format_args!("cpu {pe}: {what}")));
            }
        };
        let mut result = Ok(());
        let came = crew::with(&read, || {
            enter(&geometry, vttbr);
            result = scene.change(&mut tree, &pool, &report);
            scene.phase.store(OVER, Ordering::Release);
        });
        if !came {
            return Err(Name::new(format_args!("a CPU did not come or go")));
        }
        result
    });
    if let Err(what) = result {
        report.wrong(what);
    }
    let title = title("blocks", &geometry);
    report.check(suite, &title);
    println!(
        "{title}: {} reads, {} faults for a moment",
        scene.reads.load(Ordering::Relaxed),
        scene.faults.load(Ordering::Relaxed)
    );
}

impl Scene {
    fn ipa(&self, n: u64) -> u64 {
        slot(&self.geometry, self.data.base, n).1
    }

    fn page(&self) -> u64 {
        self.geometry.granule().page_size()
    }

    /// Reads until it is over.
    fn read(&self, report: &Report) -> Result<(), Name> {
        let mut random = Random::new(self.seed.fetch_add(1, Ordering::Relaxed));
        loop {
            let before = self.phase.load(Ordering::Acquire);
            if before == OVER || report.is_wrong() {
                return Ok(());
            }
            let n = random.below(PAGES);
            let load = guest::read(self.ipa(n));
            dsb();
            let still = self.phase.load(Ordering::Acquire) == before;
            self.judge(n, load, if still { before } else { MOMENTS })?;
            self.reads.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// What an access met is what it may meet.
    fn judge(&self, n: u64, load: Result<u64, guest::Fault>, phase: u32) -> Result<(), Name> {
        let wanted = self.data.base + n * self.page();
        let right = match load.map_err(|fault| fault.kind) {
            Ok(value) => value == wanted && phase != GONE,
            Err(Kind::Translation) => phase != SMOOTH,
            Err(_) => false,
        };
        if load.is_err() && phase == MOMENTS {
            self.faults.fetch_add(1, Ordering::Relaxed);
        }
        if right {
            return Ok(());
        }
        Err(Name::new(format_args!(
            "{:#x}: load {load:x?} in phase {phase}, not {wanted:#x}",
            self.ipa(n)
        )))
    }

    /// Lets the readers read, and reads here too.
    fn wait(&self, report: &Report, phase: u32) -> Result<(), Name> {
        let goal = self.reads.load(Ordering::Acquire).wrapping_add(READS);
        for n in 0..PAGES {
            self.judge(n, guest::read(self.ipa(n)), phase)?;
        }
        // Without others there is nobody to wait for.
        while crew::size() > 1 && !report.is_wrong() {
            if goal.wrapping_sub(self.reads.load(Ordering::Acquire)) as i32 <= 0 {
                break;
            }
            core::hint::spin_loop();
        }
        Ok(())
    }

    /// The block, as leaves of this level, whatever is there.
    fn whole(&self, tree: &mut Stage2<&Pool>, level: Level) -> Result<(), Name> {
        let span = self.geometry.span(Level::L2);
        let (base, _) = slot(&self.geometry, self.data.base, 0);
        let pa = Pa::new(self.data.base & !(span - 1));
        let map = Map::new(Ipa::new(base), pa, span, Attrs::MEMORY)
            .leaves(Leaves::Exactly(level))
            .over(Over::Anything)
            .caches(Caches::Skip);
        let all = &mut Budget::unlimited();
        tree.map_exclusive(&mut Instructions, &map, &mut Ignore, all)
            .map_err(|stopped| Name::new(format_args!("whole at {level}: {stopped}")))?;
        self.expect(tree, level)
    }

    fn expect(&self, tree: &Stage2<&Pool>, level: Level) -> Result<(), Name> {
        let found = tree.lookup(Ipa::new(self.ipa(0))).map(|found| found.level);
        if found == Ok(level) {
            return Ok(());
        }
        Err(Name::new(format_args!("{found:?}, not {level}")))
    }

    /// Changes sizes in all ways, then takes everything away.
    fn change(&self, tree: &mut Stage2<&Pool>, pool: &Pool, report: &Report) -> Result<(), Name> {
        let cpu = &mut Instructions;
        let first = Ipa::new(self.ipa(0));
        let beside = Ipa::new(self.ipa(BESIDE));
        let page = self.page();
        let all = || Budget::unlimited();
        let wrong = |what: &str, error: Error| Name::new(format_args!("{what}: {error}"));
        let rights = |access| Permissions {
            access,
            execute: Execute::All,
        };
        for round in 0..ROUNDS {
            if report.is_wrong() {
                return Ok(());
            }
            let step = |what: &'static str| move |error: Error| wrong(what, error);
            self.wait(report, MOMENTS)?;
            // A page of it gets other rights: split.
            let smooth = self.geometry.features().bbm2;
            let phase = if smooth { SMOOTH } else { MOMENTS };
            self.phase.store(phase, Ordering::Release);
            self.wait(report, phase)?;
            let (split, now) = (Partial::Split, Flush::Now);
            tree.protect(
                cpu,
                Sweep {
                    flush: now,
                    ..Sweep::new(beside, page).partial(split)
                },
                rights(Access::Read),
                &mut all(),
            )
            .map_err(|stopped| wrong("protect", stopped.why))?;
            self.expect(tree, Level::L3)?;
            self.wait(report, phase)?;
            self.phase.store(MOMENTS, Ordering::Release);
            // A group gets the hint, and loses it.
            tree.set_contiguous(cpu, first).map_err(step("hint"))?;
            self.wait(report, MOMENTS)?;
            tree.clear_contiguous(cpu, first).map_err(step("no hint"))?;
            // The page goes, and comes back as it was.
            let mut told = 0;
            let mut sink = |_: pgtable::RemovedLeaf| told += 1;
            tree.unmap(
                cpu,
                &Unmap::new(beside, page).partial(Partial::Refuse),
                &mut sink,
                &mut all(),
            )
            .map_err(|stopped| wrong("unmap", stopped.why))?;
            let pa = Pa::new(self.data.base + BESIDE * page);
            let back = Map::new(beside, pa, page, Attrs::MEMORY);
            tree.map(cpu, &back, &mut all())
                .map_err(|stopped| wrong("map", stopped.why))?;
            if told != 1 {
                return Err(Name::new(format_args!("told of {told} pages")));
            }
            self.wait(report, MOMENTS)?;
            // All alike again: a block by folding, or by mapping one.
            if round % 2 == 0 {
                tree.fold(cpu, first, Level::L2).map_err(step("fold"))?;
                self.expect(tree, Level::L2)?;
            } else {
                self.whole(tree, Level::L2)?;
            }
            self.wait(report, MOMENTS)?;
            // Split ahead of need, and mapped as pages over a block.
            if round % 3 == 0 {
                let size = self.geometry.span(Level::L2);
                let base = Ipa::new(self.ipa(0) & !(size - 1));
                let pages = |_| pool.page();
                tree.split(
                    cpu,
                    &Split {
                        ipa: base,
                        size,
                        to: Level::L3,
                    },
                    pages,
                    &mut all(),
                )
                .map_err(|stopped| wrong("split", stopped.why))?;
                self.expect(tree, Level::L3)?;
            } else {
                self.whole(tree, Level::L3)?;
            }
            self.wait(report, MOMENTS)?;
            self.whole(tree, Level::L2)?;
        }
        // All of it goes, in small steps, with the readers in it.
        let end = 1u64 << IPA_BITS;
        let mut at = Ipa::new(0);
        for _ in 0..100_000 {
            if at.get() >= end {
                break;
            }
            at = tree.teardown(cpu, at, &mut Ignore, &mut Budget::entries(64));
        }
        self.phase.store(GONE, Ordering::Release);
        self.wait(report, GONE)?;
        if at.get() < end || pool.live() != 0 {
            let live = pool.live();
            return Err(Name::new(format_args!("torn down to {at}, {live} tables")));
        }
        Ok(())
    }
}

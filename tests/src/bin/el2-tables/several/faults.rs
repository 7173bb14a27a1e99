//! All CPUs fault on the same page at once, where there is not even a table: one
//! makes it, the others find it made, and no page of a table is lost.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use pgtable::{Attrs, Budget, Entry, Error, Geometry, Ipa, Leaves, Level, Map, Next, Pa, Visit};
use tests::bare::console::Console;
use tests::println;
use tests::suite::Suite;

use super::crew::{self, Report};
use super::{BASE, IPA_BITS, TRIES, enter, nothing_left, title, tree};
use crate::census::counts;
use crate::guest::{self, Kind};
use crate::instructions::Instructions;
use crate::memory::{Data, Pool};
use crate::text::Name;

/// Tables that are made.
const TABLES: u64 = 40;

/// Runs it, in one format.
pub fn check(suite: &mut Suite<Console>, geometry: Geometry, data: Data) {
    let pool = Pool::new(geometry.granule().page_size());
    let mut report = Report::new();
    let (came, served) = (AtomicU64::new(0), AtomicU32::new(0));
    let page = geometry.granule().page_size();
    let result = tree(geometry, &pool).and_then(|mut tree| {
        let place = |n: u64| {
            let ipa = BASE + n * geometry.span(Level::L2) + n % 5 * page;
            (ipa, data.base + n * page)
        };
        let fault = |n: u64| {
            let (ipa, frame) = place(n);
            let map = Map::new(Ipa::new(ipa), Pa::new(frame), page, Attrs::MEMORY)
                .leaves(Leaves::Exactly(Level::L3));
            for _ in 0..TRIES {
                match guest::read(ipa) {
                    Ok(value) if value == frame => return Ok(()),
                    Err(fault) if fault.kind == Kind::Translation => {}
                    load => return Err(Name::new(format_args!("{ipa:#x}: load {load:x?}"))),
                }
                let mapped = tree.map(&mut Instructions, &map, &mut Budget::unlimited());
                match mapped.map_err(|stopped| stopped.why) {
                    Ok(_) => served.fetch_add(1, Ordering::Relaxed),
                    Err(Error::Busy) => continue,
                    Err(error) => return Err(Name::new(format_args!("{ipa:#x}: {error}"))),
                };
            }
            Err(Name::new(format_args!("{ipa:#x} faults for ever")))
        };
        let job = |pe: usize| {
            enter(&geometry, tree.vttbr());
            for n in 0..TABLES {
                // All of them, to the same page.
                came.fetch_add(1, Ordering::AcqRel);
                let all = (n + 1) * crew::size() as u64;
                while came.load(Ordering::Acquire) < all && !report.is_wrong() {
                    core::hint::spin_loop();
                }
                if let Err(what) = fault(n) {
                    report.wrong(Name::new(format_args!("cpu {pe}: {what}")));
                }
                if report.is_wrong() {
                    return;
                }
            }
        };
        if !crew::all(&job) {
            return Err(Name::new(format_args!("a CPU did not come or go")));
        }
        if report.is_wrong() {
            return Ok(());
        }
        let (mut tables, end) = (0, 1u64 << IPA_BITS);
        let walked = tree.walk(Ipa::new(0), end, &mut Budget::unlimited(), |seen| {
            let table = matches!(seen.entry, Entry::Table(_));
            tables += u64::from(seen.visit == Visit::TablePre && table);
            Next::Descend
        });
        let live = pool.live();
        if walked.is_err() || live != tables {
            return Err(Name::new(format_args!("{tables} tables, {live} taken")));
        }
        counts(&tree, &pool)?;
        nothing_left(&mut tree, &pool)
    });
    if let Err(what) = result {
        report.wrong(what);
    }
    let title = title("faults", &geometry);
    report.check(suite, &title);
    println!(
        "{title}: {} faults for {TABLES} pages",
        served.load(Ordering::Relaxed)
    );
}

//! Work on all CPUs at once, and what they found.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use tests::bare::console::Console;
use tests::bare::cpu;
use tests::suite::Suite;

use crate::guest;
use crate::text::Name;

/// What all CPUs do; it gets the CPU's index.
type Work<'a> = &'a (dyn Fn(usize) + Sync);

/// The address of the [`Work`] that is under way.
static WORK: AtomicUsize = AtomicUsize::new(0);
static DONE: AtomicUsize = AtomicUsize::new(0);

/// CPUs that work.
pub fn size() -> usize {
    cpu::count()
}

fn job() {
    guest::start();
    let work = core::ptr::with_exposed_provenance::<Work<'_>>(WORK.load(Ordering::Acquire));
    // SAFETY: `all` keeps it until every CPU has said that it is done.
    (unsafe { *work })(cpu::index());
    DONE.fetch_add(1, Ordering::Release);
}

/// Does `work` on all CPUs at once, and returns when all have done it; false when
/// a CPU did not start or stop.
pub fn all(work: Work<'_>) -> bool {
    with(work, || work(0))
}

/// Does `mine` here and `others` on all other CPUs, at once.
pub fn with(others: Work<'_>, mine: impl FnOnce()) -> bool {
    DONE.store(0, Ordering::Relaxed);
    WORK.store((&raw const others).expose_provenance(), Ordering::Release);
    cpu::together(job, || {
        mine();
        while DONE.load(Ordering::Acquire) < size() - 1 {
            core::hint::spin_loop();
        }
    })
}

/// What is wrong, of all CPUs: how often, and the first text.
#[derive(Debug)]
pub struct Report {
    count: AtomicU32,
    first: UnsafeCell<Option<Name>>,
}

// SAFETY: The CPU that counts the first writes `first`; it is read when all CPUs
// are done, through `&mut`.
unsafe impl Sync for Report {}

impl Report {
    /// Nothing is wrong.
    pub const fn new() -> Self {
        Self {
            count: AtomicU32::new(0),
            first: UnsafeCell::new(None),
        }
    }

    /// Something is.
    pub fn wrong(&self, what: Name) {
        if self.count.fetch_add(1, Ordering::AcqRel) == 0 {
            // SAFETY: Only one CPU comes here.
            unsafe { *self.first.get() = Some(what) };
        }
    }

    /// True when something is wrong: then there is no use in going on.
    pub fn is_wrong(&self) -> bool {
        self.count.load(Ordering::Acquire) > 0
    }

    /// One line of the suite.
    pub fn check(&mut self, suite: &mut Suite<Console>, title: &Name) -> bool {
        let count = *self.count.get_mut();
        let first = *self.first.get_mut();
        let first = first.unwrap_or_else(|| Name::new(format_args!("")));
        suite.check(title.text(), count == 0, format_args!("{count}: {first}"))
    }
}

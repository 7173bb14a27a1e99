//! Long work in steps: a CPU that builds or takes apart a guest goes on with its
//! vCPUs in between.
//!
//! Such work is an `async fn` that asks [`Pace::step`] wherever it may stop. What
//! polls it says until when it may work ([`Pace::allow`]); nothing wakes it, it is
//! polled again at its next turn.

use arm64::regs::CNTPCT_EL0;
use core::future::{Future, poll_fn};
use core::pin::pin;
use core::sync::atomic::{AtomicU64, Ordering};
use core::task::{Context, Poll, Waker};

/// The most bytes that are copied, zeroed or cleaned between two steps: a fraction
/// of a millisecond's work.
pub const PIECE: u64 = 128 << 10;

/// Until when one piece of work may go on.
#[derive(Debug)]
pub struct Pace(AtomicU64);

impl Pace {
    /// Without an end.
    pub const fn new() -> Self {
        Self(AtomicU64::new(u64::MAX))
    }

    /// Lets the work go on until this value of the physical counter.
    pub fn allow(&self, until: u64) {
        self.0.store(until, Ordering::Relaxed);
    }

    /// Stops here if the time is over.
    pub async fn step(&self) {
        let mut stopped = false;
        poll_fn(|_| {
            if stopped || CNTPCT_EL0.get() < self.0.load(Ordering::Relaxed) {
                return Poll::Ready(());
            }
            stopped = true;
            Poll::Pending
        })
        .await;
    }

    /// Stops here, whatever time is left: what the work waits for is another's.
    pub async fn wait(&self) {
        let mut stopped = false;
        poll_fn(|_| {
            if stopped {
                return Poll::Ready(());
            }
            stopped = true;
            Poll::Pending
        })
        .await;
    }
}

impl Default for Pace {
    fn default() -> Self {
        Self::new()
    }
}

/// Does all of it at once.
pub fn at_once<R>(work: impl Future<Output = R>) -> R {
    let mut work = pin!(work);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(result) = work.as_mut().poll(&mut context) {
            return result;
        }
        core::hint::spin_loop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::Cell;

    #[test]
    fn work_stops_where_its_time_is_over_and_goes_on_at_its_next_turn() {
        let pace = Pace::new();
        let done = Cell::new(0);
        let mut work = pin!(async {
            for n in 1..=3 {
                done.set(n);
                pace.step().await;
            }
            pace.wait().await;
        });
        let mut context = Context::from_waker(Waker::noop());
        let mut poll = || work.as_mut().poll(&mut context).is_ready();
        // The counter stands at 0 here.
        pace.allow(0);
        assert!(!poll());
        assert_eq!(done.get(), 1);
        pace.allow(1);
        assert!(!poll(), "it waits for another");
        assert_eq!(done.get(), 3);
        assert!(poll());
    }
}

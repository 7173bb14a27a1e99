//! The log between CPUs: whoever finds the sender at work leaves its line to it.
//!
//! Alone in its process: what others write there is not sent by who waits here.

use core::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use log::Level;

/// No line waits once everybody who wrote one has gone: no turn may come for long.
#[test]
fn a_line_that_is_left_to_who_sends_is_sent() {
    const ROUNDS: usize = 50_000;
    hyp::log::share();
    hyp::log::host_runs();
    let come = AtomicUsize::new(0);
    let meet = |at: usize| {
        come.fetch_add(1, Ordering::SeqCst);
        while come.load(Ordering::SeqCst) < at {
            thread::yield_now();
        }
    };
    let each = || {
        for round in 0..ROUNDS {
            meet(6 * round + 2);
            hyp::log::of_host(Level::Info, "a line");
            hyp::log::written();
            meet(6 * round + 4);
            assert!(!hyp::log::is_behind(), "left in round {round}");
            meet(6 * round + 6);
        }
    };
    thread::scope(|scope| {
        scope.spawn(each);
        each();
    });
}

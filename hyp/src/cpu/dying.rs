//! Whether EL2 is at its end: one PE reports its death, or ends the machine, and the
//! others stop.

use core::sync::atomic::{AtomicU64, Ordering};

use arm64::instr;
use arm64::regs::affinity;

/// Set by the first PE that dies, to what [`me`] says; the others stop at their
/// next entry to EL2.
static DYING: AtomicU64 = AtomicU64::new(0);

fn me() -> u64 {
    affinity() + 1
}

/// Has the others stop at their next entry to EL2, before any guest; this PE goes on.
/// A PE that others stop ends here.
pub fn stop_others() {
    let first = DYING.compare_exchange(0, me(), Ordering::SeqCst, Ordering::SeqCst);
    if first.is_err_and(|who| who != me()) {
        halt();
    }
}

/// Whether this PE is to stop, and not to run a guest: what it has published before,
/// whoever stops it sees.
#[inline]
pub fn is_told_to_stop() -> bool {
    DYING.load(Ordering::SeqCst) != 0
}

/// Stops this PE for good if another has reported EL2's death.
#[inline]
pub fn stop_if_dying() {
    if DYING.load(Ordering::Relaxed) != 0 {
        halt();
    }
}

/// Claims the one report: true for the PE that dies first. Another's death ends
/// here. `alone`: no other PE runs, and exclusive accesses need not work (the MMU
/// may be off).
pub fn claim(alone: bool) -> bool {
    let first = if alone {
        let first = DYING.load(Ordering::Relaxed) == 0;
        DYING.store(me(), Ordering::Relaxed);
        first
    } else {
        DYING
            .compare_exchange(0, me(), Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    };
    if DYING.load(Ordering::Relaxed) != me() {
        halt();
    }
    first
}

/// Stops this PE for good.
pub fn halt() -> ! {
    loop {
        instr::wfe();
    }
}

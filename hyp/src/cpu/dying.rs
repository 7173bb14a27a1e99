//! Whether EL2 is dying: one PE reports it, the others stop.

use core::sync::atomic::{AtomicU64, Ordering};

use arm64::instr;
use arm64::regs::affinity;

/// Set by the first PE that dies, to what [`me`] says; the others stop at their
/// next entry to EL2.
static DYING: AtomicU64 = AtomicU64::new(0);

fn me() -> u64 {
    affinity() + 1
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

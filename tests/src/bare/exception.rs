//! Exceptions: those that a check expects, those that it serves, and the report
//! of all others, which ends the program.

use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use super::{MAX_CPUS, console, cpu, psci};

/// What the vectors save.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(16))]
pub struct Frame {
    /// X0 to X30.
    pub x: [u64; 31],
    /// Where it goes on.
    pub elr: u64,
    /// PSTATE of the return.
    pub spsr: u64,
    /// Syndrome.
    pub esr: u64,
    /// Address.
    pub far: u64,
}

/// An exception that a [`probe`] met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caught {
    /// Syndrome.
    pub esr: u64,
    /// Address.
    pub far: u64,
}

impl Caught {
    /// Exception class.
    pub fn class(self) -> u64 {
        self.esr >> 26 & 0x3f
    }
    /// Whether the instruction was undefined.
    pub fn is_undefined(self) -> bool {
        self.class() == 0
    }
    /// Whether it is a synchronous external abort, of data or instructions.
    pub fn is_external_abort(self) -> bool {
        matches!(self.class(), 0x21 | 0x25) && self.esr & 0x3f == 0x10
    }
}

struct Probe {
    active: AtomicBool,
    met: AtomicU64,
    esr: AtomicU64,
    far: AtomicU64,
}

static PROBES: [Probe; MAX_CPUS] = [const {
    Probe {
        active: AtomicBool::new(false),
        met: AtomicU64::new(0),
        esr: AtomicU64::new(0),
        far: AtomicU64::new(0),
    }
}; MAX_CPUS];

/// A `fn()` that serves IRQs, and a `fn(&mut Frame) -> bool` that sees
/// synchronous exceptions first; 0 for none.
static IRQ: AtomicUsize = AtomicUsize::new(0);
static SYNC: AtomicUsize = AtomicUsize::new(0);

/// Sets what serves IRQs, on all CPUs.
pub fn on_irq(handler: fn()) {
    IRQ.store(handler as usize, Ordering::Release);
}

/// Sets what sees synchronous exceptions first; it says whether it served it.
pub fn on_sync(handler: fn(&mut Frame) -> bool) {
    SYNC.store(handler as usize, Ordering::Release);
}

/// Does `what`, skipping every instruction that takes a synchronous exception;
/// tells the first of them.
pub fn probe<R>(what: impl FnOnce() -> R) -> Result<R, Caught> {
    let probe = &PROBES[cpu::index()];
    probe.met.store(0, Ordering::Relaxed);
    probe.active.store(true, Ordering::SeqCst);
    let result = what();
    probe.active.store(false, Ordering::SeqCst);
    if probe.met.load(Ordering::Relaxed) == 0 {
        return Ok(result);
    }
    Err(Caught {
        esr: probe.esr.load(Ordering::Relaxed),
        far: probe.far.load(Ordering::Relaxed),
    })
}

pub(super) extern "C" fn exception(frame: &mut Frame, vector: u64) {
    if vector & 3 == 1 {
        let handler = IRQ.load(Ordering::Acquire);
        if handler != 0 {
            // SAFETY: `on_irq` stored a `fn()`.
            let handler: fn() = unsafe { core::mem::transmute(handler) };
            return handler();
        }
    }
    if vector & 3 == 0 && synchronous(frame) {
        return;
    }
    console::unlock();
    let index = cpu::index();
    crate::println!(
        "FAIL exception: cpu {index} vector {vector} esr {:#x} elr {:#x} (image + {:#x}) far {:#x} spsr {:#x}",
        frame.esr,
        frame.elr,
        frame.elr.wrapping_sub(super::machine::get().image.start),
        frame.far,
        frame.spsr
    );
    psci::system_off()
}

fn synchronous(frame: &mut Frame) -> bool {
    let handler = SYNC.load(Ordering::Acquire);
    if handler != 0 {
        // SAFETY: `on_sync` stored a `fn(&mut Frame) -> bool`.
        let handler: fn(&mut Frame) -> bool = unsafe { core::mem::transmute(handler) };
        if handler(frame) {
            return true;
        }
    }
    let probe = &PROBES[cpu::index()];
    if !probe.active.load(Ordering::SeqCst) {
        return false;
    }
    if probe.met.fetch_add(1, Ordering::Relaxed) == 0 {
        probe.esr.store(frame.esr, Ordering::Relaxed);
        probe.far.store(frame.far, Ordering::Relaxed);
    }
    // A fetch that failed: back to who branched there. Else the next one.
    let fetch = matches!(frame.esr >> 26 & 0x3f, 0x20 | 0x21);
    frame.elr = if fetch { frame.x[30] } else { frame.elr + 4 };
    true
}

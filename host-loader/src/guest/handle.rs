//! A guest that runs, as the CPUs that hold its vCPUs share it.

use super::build::Memory;
use super::flash;
use super::live::LiveRam;
use super::ram::Spot;
use super::realm::Realm;
use crate::alarm::WallClock;
use crate::console::{Console, PostedPage};
use crate::logger;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use log::Level;
use rmi::run::RecRun;
use spin::Mutex;

/// How often an access may be left to the guest again, one time after the other. It
/// faults otherwise than the tables say only while they change.
const AGAIN: u64 = 16;

/// Why a guest stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Stop {
    /// It asked to be powered off.
    Off = 1,
    /// It asked to be reset.
    Reset = 2,
    /// It did what it may not, or EL2 would not run it.
    Fault = 3,
}

/// A vCPU, as others than its CPU may see it.
pub struct Vcpu {
    /// Its REC's PA.
    pub rec: u64,
    /// Its run page; only the CPU that holds the vCPU touches it.
    pub run_page: *mut RecRun,
    /// How often it was asked to start.
    pub starts: AtomicU32,
    /// Its CPU has found it off, and looks at it only when notified.
    pub off: AtomicBool,
    /// The CPU that it runs on.
    pub cpu: usize,
    /// How often an instruction was left to it again.
    pub repeats: Repeats,
    /// How often it aborted at RAM that it has.
    pub spurious: Repeats,
}

/// A guest that runs.
pub struct Guest {
    /// Its place in the configuration.
    pub config: usize,
    /// How messages call it.
    pub name: Arc<str>,
    /// The realm descriptor's PA.
    pub rd: u64,
    /// Its RAM, IPAs.
    pub ram: Range<u64>,
    /// And what of that it has.
    pub memory: LiveRam,
    /// Where the half of its addresses begins that it shares with the host, and that
    /// its devices stand in: 0 for a plain guest.
    pub shared: u64,
    /// It is stopped when it accesses what it does not have.
    pub strict: bool,
    /// It has done so, and the log has it.
    pub trespassed: AtomicBool,
    /// It has called the host by a number that is none, and the log has it.
    pub called: AtomicBool,
    /// Its vCPUs.
    pub vcpus: Vec<Vcpu>,
    /// Its UART, and where that leads.
    pub console: Mutex<Console>,
    /// The UART's page; under the console's lock, but for a look whether anything
    /// waits.
    pub posted: PostedPage,
    /// Its clock.
    pub clock: WallClock,
    /// The devices of one that starts from flash.
    pub flash: Option<Mutex<flash::Devices>>,
    /// A [`Stop`], or 0.
    pub stop: AtomicU8,
    /// vCPUs that CPUs hold.
    pub attached: AtomicUsize,
    /// What it is made of, until it is taken apart.
    pub parts: Mutex<Option<(Realm, Memory)>>,
}

// SAFETY: What is not Send and Sync by itself is `run_page`, which only the CPU that holds
// the vCPU follows.
unsafe impl Send for Vcpu {}
// SAFETY: As above.
unsafe impl Sync for Vcpu {}

impl Guest {
    /// Logs what it has done, or had done to it: every line has its name.
    pub fn log(&self, level: Level, text: fmt::Arguments<'_>) {
        logger::of_guest(&self.name, level, text);
    }

    /// The host knows nothing of its registers and its memory.
    pub fn is_protected(&self) -> bool {
        self.shared != 0
    }

    /// After an exit: takes what its vCPUs have written meanwhile.
    #[inline]
    pub fn take_posted(&self) {
        if self.posted.get().is_some_and(|page| !page.is_empty()) {
            self.console.lock().catch_up();
        }
    }

    /// The program of one that starts from flash, where it has so many bytes.
    pub fn program_at(&self, ipa: u64, size: u64) -> Option<Spot> {
        self.flash.as_ref()?.lock().program_at(ipa, size)
    }

    /// It is about to stop: do not enter it again.
    #[inline]
    pub fn stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire) != 0
    }
}

/// How often in succession an access of one address was left to its guest.
#[derive(Debug, Default)]
pub struct Repeats {
    address: AtomicU64,
    count: AtomicU64,
}

impl Repeats {
    /// Counts one more at this address; true when these are too many.
    pub fn add(&self, address: u64) -> bool {
        // Only the CPU that holds the vCPU is here.
        let count = if self.address.swap(address, Ordering::Relaxed) == address {
            self.count.load(Ordering::Relaxed) + 1
        } else {
            1
        };
        self.count.store(count, Ordering::Relaxed);
        count > AGAIN
    }

    /// It was left to it no more.
    pub fn clear(&self) {
        self.count.store(0, Ordering::Relaxed);
    }
}

//! The one instance of everything that CPUs share.
//!
//! Lock order, outer to inner: [`Machine::console_guest`], a guest's UART, a port. [`Machine::granules`],
//! the GIC and a CPU's inbox are innermost: nothing is locked while they are held,
//! and nothing is allocated, since the heap takes RAM from the granules.

use crate::arch::local;
use crate::bundle::Bundle;
use crate::clock::Time;
use crate::gic::{self, Controller};
use crate::granules::Granules;
use crate::guest::handle::{Guest, Stop, Vcpu};
use crate::image::stream::Unpacker;
use crate::pace::Pace;
use crate::platform::Platform;
use crate::port::SharedPort;
use crate::seed::Seeds;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use rmi::feature::{Feature0, VendorFeatures};
use spin::{Mutex, Once};

/// A vCPU that joins a CPU: its guest and its index there.
pub type Arrival = (Arc<Guest>, usize);

/// A CPU of the machine.
pub struct Cpu {
    /// Its affinity.
    pub mpidr: u64,
    /// Top of the stack it runs on, and of that for exceptions; 0 for the
    /// boot CPU, which has its own.
    pub stacks: (u64, u64),
    /// vCPUs that shall run here and have not been taken up.
    pub inbox: Mutex<Vec<Arrival>>,
    /// It was started.
    pub started: AtomicBool,
}

/// All that CPUs share.
pub struct Machine {
    /// The machine's device tree.
    pub platform: Platform,
    /// What EL2 can.
    pub features: VendorFeatures,
    /// What RMI offers.
    pub rmi: Feature0,
    /// Free RAM.
    pub granules: &'static Mutex<Granules>,
    /// Guests' files.
    pub bundle: Bundle<'static>,
    /// What unpacks kernels.
    pub unpacker: Mutex<Unpacker>,
    /// How long each guest's jobs go on, by its place in the configuration.
    pub paces: Vec<Pace>,
    /// A granule of ones; see [`crate::guest::build::Resources`].
    pub blank: u64,
    /// Randomness for guests.
    pub seeds: Seeds,
    /// The CPUs, in the device tree's order.
    pub cpus: Vec<Cpu>,
    /// What time it is.
    pub time: Time,
    /// The interrupt controller.
    pub gic: Mutex<Controller>,
    /// The first UART: the console guest's.
    pub console: SharedPort,
    /// The guest that owns the console now.
    pub console_guest: Mutex<Option<Arc<Guest>>>,
    /// Guests that have not ended for good.
    pub live: AtomicUsize,
    /// A guest was stopped by a fault.
    pub faulted: AtomicBool,
    /// Requests for a report of all vCPUs so far.
    pub reports: AtomicU32,
}

static MACHINE: Once<Machine> = Once::new();

/// Installs the machine, once.
pub fn install(machine: Machine) -> &'static Machine {
    MACHINE.call_once(|| machine)
}

/// The machine. Only called by what runs after [`install`].
#[inline]
pub fn get() -> &'static Machine {
    MACHINE.wait()
}

/// The machine, once there is one.
pub fn try_get() -> Option<&'static Machine> {
    MACHINE.get()
}

impl Machine {
    /// Makes CPU `index` look at its inbox, its guests and the reports, unless
    /// it is the caller's own.
    pub fn wake(&self, index: usize) {
        if index != local::index() {
            gic::send(gic::CALL_SGI, self.cpus[index].mpidr);
        }
    }

    /// Asks all CPUs to leave a guest. The first reason counts, except that a fault
    /// outweighs a wish.
    pub fn stop(&self, guest: &Guest, why: Stop) {
        guest.stop.fetch_max(why as u8, Ordering::AcqRel);
        for vcpu in &guest.vcpus {
            self.wake(vcpu.cpu);
        }
    }

    /// Has a vCPU that was started looked at by its CPU, if that has found it off:
    /// one that runs has nothing to look at.
    pub fn start(&self, vcpu: &Vcpu) {
        // Either this CPU sees that the other found it off, or the other sees the
        // start when it looks after saying so.
        vcpu.starts.fetch_add(1, Ordering::SeqCst);
        if vcpu.off.load(Ordering::SeqCst) {
            self.wake(vcpu.cpu);
        }
    }
}

//! Undercroft's EL2 image: owns all memory, runs the EL1 host and its guests.
//!
//! Start reading at `main.rs`, which follows a boot downwards. The rooms:
//!
//! | module | holds |
//! |---|---|
//! | [`boot`] | device tree, layout of EL2's memory, the host's image |
//! | [`cpu`] | features, registers of lower levels, traps, the physical GIC |
//! | [`memory`] | granule ownership, EL2's own map, the host's stage 2 |
//! | [`exception`] | the host's traps, injection, reports of EL2's own death |
//! | [`rmi`] | the host's calls |
//! | [`realm`], [`rec`] | what a guest and a vCPU are |
//! | [`kicks`] | who interrupts whom when a vCPU's interrupts change |
//! | [`guest`] | a guest's turn: exits, interrupts, ID registers, PSCI |
//! | [`psci`] | the host's power calls, relayed to the firmware |
//! | [`log`] | a ring, and the UART that follows it |
//!
//! The library also builds on the development machine, where everything but the
//! assembly (`asm.S`) is tested, and the order of instructions too: there
//! `arm64` records them.
#![no_std]
#![deny(clippy::too_many_lines, clippy::too_many_arguments)]

pub mod boot;
pub mod cpu;
pub mod exception;
pub mod guest;
pub mod kicks;
pub mod log;
pub mod memory;
pub mod psci;
pub mod realm;
pub mod rec;
pub mod rmi;
pub mod vmid;

use boot::tree::Machine;
use cpu::features::{Features, GranuleSupport};
use memory::granule::Granules;
use memory::host::HostMemory;
use memory::region::Region;

/// Everything that all PEs share, complete before a lower level runs.
#[derive(Debug)]
pub struct System {
    /// The machine.
    pub machine: &'static Machine,
    /// Its CPUs' features: those of the boot PE, which the others must share.
    pub features: Features,
    /// The granule of every table.
    pub granule: pgtable::Granule,
    /// Who owns each granule of RAM.
    pub granules: Granules,
    /// The host's stage 2.
    pub host: HostMemory,
    /// RAM that is EL2's own: image and working memory.
    pub own: [Region; 2],
    /// Where the host's image was placed.
    pub host_image: Region,
    /// VMIDs in use.
    pub vmids: vmid::Vmids,
}

#[cfg(target_os = "none")]
static SYSTEM: spin::Once<System> = spin::Once::new();

/// What all PEs share.
///
/// # Panics
/// Before boot has built it.
#[cfg(target_os = "none")]
pub fn system() -> &'static System {
    SYSTEM
        .get()
        .expect("boot builds the system before it is used")
}

/// What all PEs share, once boot has built it: for reports of EL2's death.
#[cfg(target_os = "none")]
pub fn try_system() -> Option<&'static System> {
    SYSTEM.get()
}

/// Makes it known.
#[cfg(target_os = "none")]
pub fn set_system(system: System) -> &'static System {
    SYSTEM.call_once(|| system)
}

#[cfg(not(target_os = "none"))]
extern crate std;

#[cfg(not(target_os = "none"))]
std::thread_local! {
    static SYSTEM: core::cell::Cell<Option<&'static System>> = const { core::cell::Cell::new(None) };
}

/// What all PEs share: on the development machine, of this test.
///
/// # Panics
/// Before the test has set it.
#[cfg(not(target_os = "none"))]
pub fn system() -> &'static System {
    SYSTEM
        .get()
        .expect("the test sets the system before it is used")
}

/// The same, where there is one.
#[cfg(not(target_os = "none"))]
pub fn try_system() -> Option<&'static System> {
    SYSTEM.get()
}

/// Makes it known to this test, or forgets it.
#[cfg(not(target_os = "none"))]
pub fn set_system(system: Option<&'static System>) {
    SYSTEM.set(system);
}

/// The widest IPA space that this CPU has with this granule, in bits.
pub fn max_ipa_bits(features: &Features, granule: pgtable::Granule) -> u8 {
    let wide = granule == pgtable::Granule::K64 || features.stage2(granule) == GranuleSupport::Lpa2;
    if wide {
        features.pa_bits
    } else {
        features.pa_bits.min(48)
    }
}

//! What all PEs share: built once by boot, then handed to who needs it.

use spin::Once;

use crate::cpu::gic::Frames;
use crate::features::Features;
use crate::memory::granule::Granules;
use crate::memory::host::HostMemory;
use crate::memory::region::{Region, Regions};
use crate::vmid::Vmids;

/// Everything that all PEs share, complete before a lower level runs.
#[derive(Debug)]
pub struct System {
    /// The CPUs' features: those of the boot PE, which the others must share.
    pub features: Features,
    /// The interrupt controller.
    pub gic: &'static Frames,
    /// The granule of every table.
    pub granule: pgtable::Granule,
    /// Who owns each granule of RAM.
    pub granules: Granules,
    /// The host's stage 2.
    pub host: HostMemory,
    /// RAM that is EL2's own: image and working memory.
    pub own: [Region; 2],
    /// RAM that neither EL2 nor the host touches.
    pub withheld: &'static Regions,
    /// Where the host's image was placed.
    pub host_image: Region,
    /// VMIDs in use.
    pub vmids: Vmids,
}

static SYSTEM: Once<System> = Once::new();

impl System {
    /// Keeps it for the PEs that start later, and for a report of EL2's death.
    pub fn install(self) -> &'static Self {
        SYSTEM.call_once(|| self)
    }

    /// The one that was installed. Of use only where nothing hands it on: where a
    /// PE starts, and in a panic.
    pub fn installed() -> Option<&'static Self> {
        SYSTEM.get()
    }
}

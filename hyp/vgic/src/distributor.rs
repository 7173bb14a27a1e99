//! The distributor's state: one per guest, its SPIs and `GICD_CTLR`.

use crate::bank::{Bank, Groups};
use crate::intid::{SPI_WORDS, SPIS};
use crate::redistributor::Redistributor;
use crate::vmcr;

/// `GICD_CTLR.EnableGrp0` and `EnableGrp1`, the bits a guest may change.
pub(crate) const CTLR_ENABLES: u32 = 0b11;

/// The state of a guest's distributor: plain integers, no pointers.
///
/// At most 2 KiB, so that it fits in a granule beside other things of the
/// guest. Every bit pattern is a valid value as far as memory safety and
/// panics go.
#[repr(C)]
#[derive(Clone, Debug)]
pub struct Distributor {
    pub(crate) banks: [Bank; SPI_WORDS],
    /// `GICD_IROUTER<n>`, affinity fields.
    pub(crate) route: [u32; SPIS],
    /// `GICD_IROUTER<n>.Interrupt_Routing_Mode`.
    pub(crate) any: [u32; SPI_WORDS],
    /// Held or active: the vCPU whose list register has it, or which must give
    /// it one. Otherwise of no meaning.
    pub(crate) owner: [u16; SPIS],
    /// The enable bits of `GICD_CTLR`.
    pub(crate) ctlr: u32,
    /// Counts the folds of list registers: which came later.
    pub(crate) epoch: u32,
}

const _: () = assert!(size_of::<Distributor>() <= 2048);

impl Distributor {
    /// A distributor at reset: everything off, every SPI level-sensitive, in
    /// Group 0, at priority 0, routed to affinity 0.0.0.0.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            banks: [const { Bank::new(0, 0) }; SPI_WORDS],
            route: [0; SPIS],
            any: [0; SPI_WORDS],
            owner: [0; SPIS],
            ctlr: 0,
            epoch: 0,
        }
    }

    pub(crate) fn groups(&self) -> Groups {
        Groups {
            group0: self.ctlr & 1 != 0,
            group1: self.ctlr & 2 != 0,
        }
    }

    pub(crate) fn routed_to_any(&self, spi: usize) -> bool {
        self.any[spi / 32] & (1 << (spi % 32)) != 0
    }

    /// True if the SPI goes to this vCPU: its route is the vCPU's affinity, or it
    /// is for any PE and this one takes part.
    pub(crate) fn routes_to(&self, spi: usize, redist: &Redistributor) -> bool {
        if self.routed_to_any(spi) {
            redist.is_awake()
        } else {
            self.route[spi] == redist.affinity.bits()
        }
    }

    /// True if the SPI goes to this vCPU and, if that is for it to take or leave,
    /// the vCPU has the group enabled.
    pub(crate) fn is_taken_by(&self, spi: usize, redist: &Redistributor) -> bool {
        let group1 = self.banks[spi / 32].is_group1(spi % 32);
        self.routes_to(spi, redist)
            && (!self.routed_to_any(spi) || vmcr::enables(redist.vmcr.into(), group1))
    }
}

impl Default for Distributor {
    fn default() -> Self {
        Self::new()
    }
}

//! Stage 1 of EL1 alone, with nothing at EL0: the map of an operating system's lower
//! half, or of a host that has no processes.
//!
//! Registers and descriptors after the Arm ARM: `TCR_EL1` and `TTBR0_EL1`; leaf bits
//! as EL2's, but for AP\[1\] in bit 6, which would let EL0 in and stays 0, nG in bit
//! 11, PXN in bit 53, and UXN in bit 54, which is always set. All leaves are non-global.

use crate::addr::{Pa, Va};
use crate::config_error::ConfigError;
use crate::desc::Desc;
use crate::el2::{AP_RES1, El2Access, El2Attrs, El2Geometry, El2Map, El2Range, UXN_XN};
use crate::error::Stopped;
use crate::geometry::walk_fields;
use crate::maintenance::Maintenance;
use crate::mem::TableMem;

const NON_GLOBAL: u64 = 1 << 11;
const PXN: u64 = 1 << 53;

const TCR_EPD1: u64 = 1 << 23;
const TCR_IPS: u32 = 32;
const TCR_DS: u32 = 59;
/// `TCR_EL2.PS` and its DS, of which EL1's stand elsewhere.
const EL2_PS: u32 = 16;
const EL2_DS: u32 = 32;
const ASID: u32 = 48;

impl El2Geometry {
    /// `TCR_EL1` for EL1 alone with this geometry: as [`tcr`](Self::tcr), and no walks
    /// by `TTBR1_EL1`.
    pub const fn tcr_el1(&self) -> u64 {
        let fields = walk_fields(self.shape());
        fields & 0xffff
            | (fields >> EL2_PS & 7) << TCR_IPS
            | (fields >> EL2_DS & 1) << TCR_DS
            | TCR_EPD1
    }
}

/// The attribute bits of a leaf.
fn encode(geometry: &El2Geometry, attrs: El2Attrs) -> Desc {
    let mut raw = geometry.encode(attrs).raw() & !AP_RES1 | NON_GLOBAL | UXN_XN;
    if attrs.access != El2Access::ReadExecute {
        raw |= PXN;
    }
    Desc::new(raw)
}

/// Tables of EL1 that are built at once, to be walked when they are whole.
#[derive(Debug)]
pub struct El1Map<M: TableMem>(El2Map<M>);

impl<M: TableMem> El1Map<M> {
    /// Takes charge of a root: one zeroed page.
    ///
    /// # Errors
    /// A root that `TTBR0_EL1` cannot hold.
    pub fn new(geometry: El2Geometry, root: Pa, mem: M) -> Result<Self, ConfigError> {
        El2Map::new(geometry, root, mem).map(Self)
    }

    /// `TTBR0_EL1` for this tree and an address space number of 8 bits.
    pub const fn ttbr(&self, asid: u8) -> u64 {
        self.0.ttbr() | (asid as u64) << ASID
    }

    /// Maps a range where nothing is mapped, before or after this tree is walked: what
    /// was not valid needs no invalidation.
    ///
    /// # Errors
    /// As [`Stage2::map`](crate::Stage2::map); `Mapped` where something stands.
    pub fn map<T: Maintenance>(
        &mut self,
        maint: &mut T,
        range: &El2Range,
    ) -> Result<Va, Stopped<Va>> {
        let attrs = encode(&self.0.geometry, range.attrs);
        self.0.map_as(maint, range, attrs)
    }
}

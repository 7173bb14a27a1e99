//! A redistributor's state: one per vCPU, its SGIs and PPIs and what its list
//! registers hold.

use crate::bank::Bank;
use crate::intid::{Affinity, Error, FIRST_PPI};
use crate::list_registers::{MAX_LIST_REGISTERS, vmcr};

/// SGIs are edge-triggered, and enabled from the start: whether they are is
/// IMPLEMENTATION DEFINED, and a guest that forgets to enable them works on KVM.
pub(crate) const SGIS: u32 = 0xffff;

/// `GICR_WAKER.ProcessorSleep`.
pub(crate) const PROCESSOR_SLEEP: u32 = 1 << 1;

/// The state of one vCPU's redistributor: plain integers, no pointers.
///
/// At most 1 KiB. Every bit pattern is a valid value as far as memory safety
/// and panics go.
#[repr(C)]
#[derive(Clone, Debug)]
pub struct Redistributor {
    pub(crate) bank: Bank,
    pub(crate) affinity: Affinity,
    /// `GICR_WAKER.ProcessorSleep`, in place.
    pub(crate) waker: u32,
    /// Something happened that `fill` has not seen.
    pub(crate) dirty: u32,
    /// SGIs, by INTID, that were sent since, which for themselves take no `fill`.
    pub(crate) sent: u32,
    /// The list registers in use; `lr[..used]` are their INTIDs.
    pub(crate) used: u32,
    /// Of those, a bit for each that was filled pending.
    pub(crate) filled_pending: u32,
    pub(crate) lr: [u16; MAX_LIST_REGISTERS],
    /// The maintenance interrupts that `fill` asked for in `ICH_HCR_EL2`.
    pub(crate) notices: u32,
    /// PPIs that stand for a physical interrupt.
    pub(crate) hw: u32,
    /// Of those, the ones whose physical interrupt is active on our behalf.
    pub(crate) linked: u32,
    /// The physical INTID of each PPI in `hw`.
    pub(crate) physical: [u8; 16],
    /// `ICH_VMCR_EL2` when last seen.
    pub(crate) vmcr: u32,
    /// The distributor's epoch when the list registers were last folded.
    pub(crate) synced: u32,
    /// Counts `fill`, and what is lent without one.
    pub(crate) entries: u32,
    /// The register whose read waits for other vCPUs to fold, or 0.
    pub(crate) awaited: u32,
    /// The epoch in which that wait began.
    pub(crate) awaited_since: u32,
    /// `entries` when it was last tried.
    pub(crate) awaited_entry: u32,
}

const _: () = assert!(size_of::<Redistributor>() <= 1024);

impl Redistributor {
    /// A redistributor at reset, for the vCPU at `affinity`.
    #[must_use]
    pub const fn new(affinity: Affinity) -> Self {
        Self {
            bank: Bank::new(SGIS, SGIS),
            affinity,
            waker: PROCESSOR_SLEEP,
            dirty: 1,
            sent: 0,
            used: 0,
            filled_pending: 0,
            lr: [0; MAX_LIST_REGISTERS],
            notices: 0,
            hw: 0,
            linked: 0,
            physical: [0; 16],
            vmcr: 0,
            synced: 0,
            entries: 0,
            awaited: 0,
            awaited_since: 0,
            awaited_entry: 0,
        }
    }

    /// The vCPU's affinity.
    #[must_use]
    pub const fn affinity(&self) -> Affinity {
        self.affinity
    }

    /// Makes a PPI stand for the physical PPI `physical` of the PE that the vCPU
    /// runs on: its list registers get HW = 1, so that the guest's deactivation
    /// deactivates the physical interrupt too. Such a PPI is level-sensitive.
    ///
    /// # Errors
    /// [`Error::NoSuchInterrupt`] if either is no PPI.
    pub fn link(&mut self, ppi: u32, physical: u32) -> Result<(), Error> {
        let bit = ppi_bit(ppi)?;
        let host = ppi_bit(physical)?;
        self.hw |= 1 << bit;
        self.bank.edge &= !(1 << bit);
        self.physical[bit - FIRST_PPI as usize] = host as u8;
        self.dirty = 1;
        Ok(())
    }

    /// True if the list registers, empty or as last filled, no longer say all
    /// there is to say: before the guest runs, [`top_up`](crate::Vgic::top_up) where the
    /// list registers are loaded, and if that is not enough, `fill` (after `sync`, if
    /// [`needs_sync`](Self::needs_sync)).
    ///
    /// While this is false the guest may be entered again with the list
    /// registers as they are, without either call.
    #[must_use]
    pub fn needs_fill(&self) -> bool {
        self.dirty | self.sent != 0
    }

    /// True if `sync` has something to do: list registers were filled and not
    /// folded since, a maintenance interrupt was asked for, or a linked PPI is
    /// kept quiet and its source must be sampled.
    #[must_use]
    pub fn needs_sync(&self) -> bool {
        self.used | self.notices | self.linked != 0
    }

    /// Makes [`needs_fill`](Self::needs_fill) true: the vCPU comes to a PE whose
    /// virtual CPU interface and physical PPIs are another's.
    pub fn reload(&mut self) {
        self.dirty = 1;
    }

    /// The vCPU takes part in the delivery of SPIs that any PE may take.
    pub(crate) fn is_awake(&self) -> bool {
        self.waker & PROCESSOR_SLEEP == 0
    }

    /// Takes note of `ICH_VMCR_EL2`. Answers if the guest has fewer groups
    /// enabled than was known.
    pub(crate) fn learn(&mut self, vmcr: u64) -> bool {
        let before = core::mem::replace(&mut self.vmcr, vmcr as u32);
        u64::from(before & !self.vmcr) & (vmcr::VENG0 | vmcr::VENG1) != 0
    }

    /// The physical INTID of a linked PPI, by bit.
    pub(crate) fn physical_of(&self, bit: usize) -> u32 {
        let physical = bit
            .checked_sub(FIRST_PPI as usize)
            .and_then(|ppi| self.physical.get(ppi));
        u32::from(*physical.unwrap_or(&0)) & 31
    }

    /// The linked PPIs by physical INTID.
    pub(crate) fn physical_active(&self) -> u32 {
        crate::intid::bits(self.linked).fold(0, |mask, bit| mask | 1 << self.physical_of(bit))
    }

    /// The INTIDs in the list registers.
    pub(crate) fn held(&self) -> ([u16; MAX_LIST_REGISTERS], usize) {
        (self.lr, (self.used as usize).min(MAX_LIST_REGISTERS))
    }
}

/// The bit of a PPI in its bank.
pub(crate) fn ppi_bit(intid: u32) -> Result<usize, Error> {
    if (FIRST_PPI..32).contains(&intid) {
        Ok(intid as usize)
    } else {
        Err(Error::NoSuchInterrupt(intid))
    }
}

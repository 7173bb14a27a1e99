//! The machine's GICv3, as far as the host uses it.
//!
//! Only the interrupts of the host's own are touched, bit by bit: EL2 keeps
//! PPIs and an SGI of its own in the same redistributors. The host runs with
//! interrupts masked and acknowledges them here, where the run loop asks.
//!
//! Distributor and redistributor writes happen at boot and when a CPU starts,
//! under one lock.

use crate::platform::Gic;
use alloc::vec::Vec;
use arm_gic::gicv3::registers::{Gicd, GicrSgi};
use arm_gic::gicv3::{
    GicCpuInterface, GicDistributor, GicRedistributorIterator, Group, SgiTarget, SgiTargetGroup,
};
use arm_gic::{IntId, InterruptGroup, Trigger};
use arm64::instr;
use arm64::intid::Kind;
use arm64::regs::{ICC_CTLR_EL1, affinity};
use core::fmt;
use core::ptr::NonNull;
use safe_mmio::UniqueMmioPointer;

/// The SGI by which one CPU of the host calls another. EL2 takes
/// [`rmi::vendor::KICK_SGI`] itself while a guest runs, and hands this one on.
pub const CALL_SGI: u32 = 1;

/// Priority of all the host's interrupts: the highest, and what EL2 gives the virtual
/// timer's for a guest's turn, so that nothing changes with it.
const PRIORITY: u8 = 0;

/// The distributor and where the redistributors are.
pub struct Controller {
    distributor: GicDistributor<'static>,
    redistributors: Vec<NonNull<GicrSgi>>,
}

// SAFETY: The pointers are to device registers, which any CPU may use; the lock
// around the controller makes them one's at a time.
unsafe impl Send for Controller {}

fn intid(number: u32) -> Option<IntId> {
    match Kind::of(number) {
        Kind::Sgi => Some(IntId::sgi(number)),
        Kind::Ppi => Some(IntId::ppi(number - 16)),
        Kind::Spi => Some(IntId::spi(number - 32)),
        Kind::ExtendedPpi => Some(IntId::eppi(number - 1056)),
        Kind::ExtendedSpi => Some(IntId::espi(number - 4096)),
        Kind::Special | Kind::Lpi | Kind::Reserved => None,
    }
}

/// Why the GIC is not as it must be.
#[derive(Clone, Copy, Debug)]
pub enum GicError {
    /// The device tree has its distributor at 0.
    NoDistributor,
    /// The CPU with this affinity has no redistributor.
    NoRedistributor(u64),
    /// The device tree gives a device this interrupt, which is no SPI.
    NoSpi(u32),
    /// The driver says so.
    Driver(arm_gic::gicv3::GicError),
}

impl fmt::Display for GicError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDistributor => f.write_str("device tree: the GIC distributor is at 0"),
            Self::NoRedistributor(mpidr) => {
                write!(f, "GIC: no redistributor for CPU {mpidr:#x}")
            }
            Self::NoSpi(number) => write!(f, "device tree: interrupt {number} is no SPI"),
            Self::Driver(why) => write!(f, "GIC: {why}"),
        }
    }
}

impl Controller {
    /// The GIC of the device tree, its distributor set up for non-secure
    /// group 1 with affinity routing.
    ///
    /// # Safety
    /// Its registers are mapped as Device at their own addresses; this is the
    /// host's only driver of them.
    pub unsafe fn new(gic: &Gic) -> Result<Self, GicError> {
        let distributor: NonNull<Gicd> = NonNull::new(core::ptr::with_exposed_provenance_mut(
            gic.distributor.start as usize,
        ))
        .ok_or(GicError::NoDistributor)?;
        // SAFETY: The caller's contract.
        let mut distributor = GicDistributor::new(unsafe { UniqueMmioPointer::new(distributor) });
        distributor.enable_affinity_routing_secure(true);
        distributor.wait_for_pending_write();
        distributor.enable_group1_non_secure(true);
        distributor.wait_for_pending_write();
        Ok(Self {
            distributor,
            redistributors: gic
                .redistributors
                .iter()
                .filter_map(|range| {
                    NonNull::new(core::ptr::with_exposed_provenance_mut(range.start as usize))
                })
                .collect(),
        })
    }

    /// Sets this CPU up: its interface, and the private interrupts `private`.
    ///
    /// Errors say what is missing.
    pub fn start_cpu(&mut self, private: &[u32]) -> Result<(), GicError> {
        let mpidr = affinity();
        let lacks = GicError::NoRedistributor(mpidr);
        let mut mine = None;
        for &base in &self.redistributors {
            // SAFETY: `new`'s caller answers for the registers; the lock around
            // `self` keeps others away from them.
            let frames = unsafe { GicRedistributorIterator::new(base) }.map_err(|_| lacks)?;
            for frame in frames {
                if frame.typer().core_mpidr() == mpidr {
                    mine = Some(frame);
                    break;
                }
            }
        }
        let mut frame = mine.ok_or(lacks)?;
        GicCpuInterface::enable_system_register_el1();
        // It is awake already where firmware or EL2 woke it.
        let _ = frame.mark_core_awake();
        for id in private.iter().filter_map(|&number| intid(number)) {
            let set_up = frame
                .set_group(id, Group::Group1NS)
                .and_then(|()| frame.set_interrupt_priority(id, PRIORITY))
                .and_then(|()| frame.enable_interrupt(id, true));
            set_up.map_err(GicError::Driver)?;
        }
        ICC_CTLR_EL1.set(0);
        GicCpuInterface::set_priority_mask(0xff);
        GicCpuInterface::enable_group1(true);
        instr::isb();
        Ok(())
    }

    /// Routes the level-sensitive SPI `number` to the CPU `mpidr`.
    ///
    /// Errors say which interrupt cannot be used.
    pub fn route(&mut self, number: u32, mpidr: u64) -> Result<(), GicError> {
        let id = intid(number)
            .filter(|id| id.is_spi() || id.is_espi())
            .ok_or(GicError::NoSpi(number))?;
        self.distributor
            .set_group(id, Group::Group1NS)
            .and_then(|()| self.distributor.set_trigger(id, Trigger::Level))
            .and_then(|()| self.distributor.set_interrupt_priority(id, PRIORITY))
            .and_then(|()| self.distributor.set_routing(id, Some(mpidr)))
            .and_then(|()| self.distributor.enable_interrupt(id, true))
            .map_err(GicError::Driver)
    }
}

/// Acknowledges this CPU's pending interrupts one by one, and ends each when
/// `handle` has made its line drop.
pub fn take_all(mut handle: impl FnMut(u32)) {
    while let Some(id) = GicCpuInterface::get_and_acknowledge_interrupt(InterruptGroup::Group1)
        && Kind::of(id.raw_value()) != Kind::Special
    {
        // It is acknowledged before the device is asked why (IHI0069H, observability of
        // the effects of accesses to the GIC registers).
        instr::dsb_sy();
        handle(id.raw_value());
        GicCpuInterface::end_interrupt(id, InterruptGroup::Group1);
    }
}

/// Sends SGI `number` to the CPU `mpidr`.
pub fn send(number: u32, mpidr: u64) {
    let aff0 = mpidr & 0xff;
    let target = if aff0 < 16 {
        SgiTarget::List {
            affinity3: (mpidr >> 32) as u8,
            affinity2: (mpidr >> 16) as u8,
            affinity1: (mpidr >> 8) as u8,
            target_list: 1 << aff0,
        }
    } else {
        // Beyond what a list without a range names: those that did not need
        // it find nothing to do.
        SgiTarget::All
    };
    // What the sender wrote is there when the other looks.
    instr::dsb_sy();
    // Only a number that is no SGI is refused.
    let _ = GicCpuInterface::send_sgi(IntId::sgi(number), target, SgiTargetGroup::CurrentGroup1);
    instr::isb();
}

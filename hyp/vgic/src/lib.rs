//! The GICv3 that a guest sees: distributor, redistributors and list registers
//! as a pure state machine.
//!
//! The idea: an interrupt's state lives in a [`Distributor`] (SPIs) or in its
//! vCPU's [`Redistributor`] (SGIs, PPIs). [`Vgic::fill`] lends what can be
//! delivered to the list registers before the guest runs, [`Vgic::sync`] folds
//! them back after it stopped, and everything else (register accesses, SGIs,
//! lines) changes the state and [kicks](VcpuSet::kick) whoever has to look again.
//! Nothing here touches hardware, allocates or blocks, and nothing a guest or a
//! host passes in can make it panic.
//!
//! # Lock protocol
//! One lock around a guest's whole vGIC: whoever holds it has `&mut` on the
//! distributor and on every redistributor, and hence a [`Vgic`]. It is held for
//! one call at a time, never while a guest runs. So interrupts in list registers
//! of a running vCPU are out of reach; they are marked, and that vCPU is kicked.
//!
//! # One round of a vCPU
//! ```text
//! publish "vCPU n runs on PE p", so that a kick finds it; reload
//! loop:  if needs_fill and top_up is not enough
//!            { if needs_sync { sync* }; fill; write ICH_* }
//!        enter … exit
//!        before a register access or WFI: if needs_sync { sync* }
//! before it leaves the PE: sync*
//! sync* = read ICH_*; sync; set_ppi for each PPI that it says to sample
//! ```
//! An exit that does not concern the vGIC and finds `needs_fill` false may enter
//! again with neither call: the list registers stay where they are. The kick is
//! an SGI on the PE, so one that comes after the look still forces an exit.
//!
//! An SGI and the virtual timer's interrupt mostly need one list register alone, and
//! have a short way to it: [`Vgic::append`], [`Vgic::top_up`].
//!
//! # The guest's GIC
//! GICv3, one Security state (`GICD_CTLR.DS` = 1), affinity routing always on,
//! two groups, [`SPIS`] SPIs, 16 SGIs and 16 PPIs, 32 priorities, no LPIs.
#![no_std]
#![forbid(unsafe_code)]

mod append;
mod bank;
mod deliver;
mod distributor;
mod host_lrs;
mod intid;
mod list_registers;
mod mmio;
mod redistributor;
mod sgi;
mod signal;

pub use append::{Appended, Loaded, Rise};
pub use deliver::Synced;
pub use distributor::Distributor;
pub use host_lrs::{BadListRegisters, Interface};
pub use intid::{Affinity, Error, PRIVATE, SPIS};
pub use list_registers::{ListRegisters, MAX_LIST_REGISTERS, hcr, lr, vmcr};
pub use mmio::{At, DISTRIBUTOR_SIZE, Frame, REDISTRIBUTOR_SIZE, Read, fixed};
pub use redistributor::Redistributor;
pub use sgi::{Reach, SgiRegister, reach, sgi_of};

/// The vCPUs of a guest, as the vGIC needs them: where their redistributors are
/// and how to make them look at their interrupts.
pub trait VcpuSet {
    /// The number of vCPUs; their indices are below it, in the order of their
    /// redistributor frames. At most 65,535.
    fn count(&self) -> usize;

    /// The redistributor of a vCPU, or `None` if there is none of that index.
    fn redistributor(&mut self, vcpu: usize) -> Option<&mut Redistributor>;

    /// The vCPU at an affinity. Override it where the index can be computed.
    fn find(&mut self, affinity: Affinity) -> Option<usize> {
        (0..self.count()).find(|&vcpu| {
            self.redistributor(vcpu)
                .is_some_and(|redistributor| redistributor.affinity() == affinity)
        })
    }

    /// Makes the vCPU pass through `sync` and `fill` soon: takes it out of the
    /// guest if it runs there, wakes it if it waits for an interrupt, does
    /// nothing otherwise, nor for the vCPU that is at this moment out of the
    /// guest to make the very call. May be called several times in one call.
    fn kick(&mut self, vcpu: usize);
}

/// A guest's vGIC, while its lock is held.
pub struct Vgic<'a, S: VcpuSet + ?Sized> {
    dist: &'a mut Distributor,
    vcpus: &'a mut S,
}

impl<'a, S: VcpuSet + ?Sized> Vgic<'a, S> {
    /// Joins the two halves of the state, both under the guest's vGIC lock.
    pub fn new(dist: &'a mut Distributor, vcpus: &'a mut S) -> Self {
        Self { dist, vcpus }
    }
}

//! The short way into a list register, for an interrupt of the vCPU's own that has just
//! become deliverable: an SGI that it sent itself, or its timer's.
//!
//! [`sync`](Vgic::sync) and [`fill`](Vgic::fill) take back and lend out all there is.
//! While nothing waits outside the list registers and no maintenance is asked for, one
//! more needs one list register alone: the one that it had before, if the guest is done
//! with it, or one that is free. The others stay as they are; what the guest is done
//! with is taken back by the next `sync`. Where anything else is the case, this does
//! nothing, and the general way does it all.

use crate::bank::{Bank, Groups};
use crate::deliver::{Terms, compose, take_back};
use crate::list_registers::{ListRegisters, MAX_LIST_REGISTERS, lr};
use crate::redistributor::Redistributor;
use crate::{VcpuSet, Vgic, vmcr};

/// How an interrupt of a vCPU's own becomes pending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rise {
    /// By its own `ICC_SGI1R_EL1`.
    Sgi,
    /// The source of a linked PPI is high, and its physical interrupt active.
    Linked,
}

/// A list register that the guest goes on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Which, from 0.
    pub index: usize,
    /// Its value.
    pub value: u64,
}

/// List registers that are in the CPU since the last `fill`.
#[derive(Debug)]
pub struct Loaded<'a, R> {
    /// What `fill` gave.
    pub lrs: &'a mut ListRegisters,
    /// `ICH_VMCR_EL2`.
    pub vmcr: u64,
    /// Reads one of them, from 0.
    pub read: R,
}

impl<S: VcpuSet + ?Sized> Vgic<'_, S> {
    /// Makes a private interrupt of the vCPU pending and lends it, while its list
    /// registers stay in the CPU. `None`: nothing has changed, and it is to be made
    /// pending and lent the general way.
    pub fn append<R: Fn(usize) -> u64>(
        &mut self,
        vcpu: usize,
        (intid, rise): (u32, Rise),
        loaded: Loaded<'_, R>,
    ) -> Option<Appended> {
        let groups = self.dist.groups();
        let redist = self.vcpus.redistributor(vcpu)?;
        let bit = intid as usize & 31;
        let (index, old) = redist.place(bit, groups, &loaded)?;
        let Loaded { lrs, vmcr, .. } = loaded;
        if let Some(value) = old {
            let taken = redist.filled_pending & 1 << index != 0;
            let split = vmcr & vmcr::VEOIM != 0;
            take_back(&mut redist.bank, bit, value, taken, split);
        }
        let physical = match rise {
            Rise::Sgi => {
                redist.bank.set_pending(1 << bit);
                None
            }
            Rise::Linked => {
                redist.bank.set_line(bit, true);
                redist.linked |= 1 << bit & redist.hw;
                lrs.physical_active = redist.physical_active();
                (redist.linked & 1 << bit != 0).then(|| redist.physical_of(bit))
            }
        };
        let terms = Terms {
            groups,
            again: true,
        };
        let value = compose(&mut redist.bank, bit, terms, physical) | bit as u64;
        redist.hold(index, bit);
        lrs.put(index, value);
        Some(Appended { index, value })
    }
}

impl Redistributor {
    /// The list register that the interrupt may go to, and its value if it was there
    /// before and the guest is done with it.
    fn place<R: Fn(usize) -> u64>(
        &self,
        bit: usize,
        groups: Groups,
        loaded: &Loaded<'_, R>,
    ) -> Option<(usize, Option<u64>)> {
        const GROUPS: u64 = vmcr::VENG0 | vmcr::VENG1;
        let mask = 1_u32 << bit;
        let Bank {
            enabled,
            group1,
            active,
            held,
            edited,
            ..
        } = self.bank;
        let settled = self.dirty | self.notices == 0
            && (loaded.vmcr ^ u64::from(self.vmcr)) & GROUPS == 0
            && enabled & groups.admit(group1) & mask != 0;
        if !settled {
            return None;
        }
        let used = (self.used as usize).min(MAX_LIST_REGISTERS);
        if held & mask == 0 {
            return (used < loaded.lrs.count() && active & mask == 0).then_some((used, None));
        }
        let index = self.lr[..used]
            .iter()
            .position(|&intid| usize::from(intid) == bit)?;
        let value = (loaded.read)(index);
        // With EOI set it has asked for maintenance, which comes first.
        let asks = value & (lr::HW | lr::EOI) == lr::EOI;
        let done = value & (lr::PENDING | lr::ACTIVE) == 0 && !asks && edited & mask == 0;
        done.then_some((index, Some(value)))
    }

    /// Notes that a list register has the interrupt, pending.
    fn hold(&mut self, index: usize, bit: usize) {
        self.lr[index] = bit as u16;
        self.filled_pending |= 1 << index;
        self.used = self.used.max(index as u32 + 1);
    }
}

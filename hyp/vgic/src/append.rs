//! The short way into a list register, for a private interrupt that has just become
//! deliverable: an SGI, or the timer's.
//!
//! [`sync`](Vgic::sync) and [`fill`](Vgic::fill) take back and lend out all there is.
//! While nothing waits outside the list registers and no maintenance is asked for, one
//! more needs one list register alone: the one that it had before, if the guest is done
//! with it, or one that is free. The others stay as they are; what the guest is done
//! with is taken back by the next `sync`. Where anything else is the case, this does
//! nothing, and the general way does it all.

use crate::bank::{Bank, Groups};
use crate::deliver::{Terms, compose, take_back};
use crate::intid::bits;
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
        let index = redist.place(bit, groups, &loaded)?;
        let physical = match rise {
            Rise::Sgi => {
                redist.bank.set_pending(1 << bit);
                None
            }
            Rise::Linked => {
                redist.bank.set_line(bit, true);
                redist.linked |= 1 << bit & redist.hw;
                (redist.linked & 1 << bit != 0).then(|| redist.physical_of(bit))
            }
        };
        let value = redist.lend(bit, index, groups, physical);
        loaded.lrs.put(index, value);
        Some(Appended { index, value })
    }

    /// Lends the SGIs that were sent to the vCPU, while its list registers stay in the
    /// CPU; `write` writes one of them. False: `sync` and `fill` have more to do.
    pub fn top_up<R: Fn(usize) -> u64>(
        &mut self,
        vcpu: usize,
        loaded: Loaded<'_, R>,
        mut write: impl FnMut(Appended),
    ) -> bool {
        let groups = self.dist.groups();
        let Some(redist) = self.vcpus.redistributor(vcpu) else {
            return false;
        };
        if redist.dirty != 0 {
            return false;
        }
        // What a write took back is pending no more.
        let sent = core::mem::take(&mut redist.sent) & redist.bank.pending();
        for bit in bits(sent) {
            let Some(index) = redist.place(bit, groups, &loaded) else {
                redist.dirty = 1;
                return false;
            };
            let value = redist.lend(bit, index, groups, None);
            loaded.lrs.put(index, value);
            write(Appended { index, value });
        }
        true
    }
}

impl Redistributor {
    /// The list register that the interrupt may go to; taken back, as `sync` does, if it
    /// was there before and the guest is done with it.
    fn place<R: Fn(usize) -> u64>(
        &mut self,
        bit: usize,
        groups: Groups,
        loaded: &Loaded<'_, R>,
    ) -> Option<usize> {
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
        let settled = self.dirty | self.sent | self.notices == 0
            && (loaded.vmcr ^ u64::from(self.vmcr)) & GROUPS == 0
            && enabled & groups.admit(group1) & mask != 0;
        if !settled {
            return None;
        }
        let used = (self.used as usize).min(MAX_LIST_REGISTERS);
        if held & mask == 0 {
            // While there is room, all that is active is held.
            let has_room = used < loaded.lrs.count();
            debug_assert!(!has_room || active & mask == 0);
            return has_room.then_some(used);
        }
        let index = self.lr[..used]
            .iter()
            .position(|&intid| usize::from(intid) == bit)?;
        let value = (loaded.read)(index);
        // With EOI set it has asked for maintenance, which comes first.
        let asks = value & (lr::HW | lr::EOI) == lr::EOI;
        // A write to its state leaves the vCPU dirty.
        debug_assert!(edited & mask == 0);
        if value & (lr::PENDING | lr::ACTIVE) != 0 || asks {
            return None;
        }
        // How it came to be neither pending nor active makes no difference.
        take_back(&mut self.bank, bit, 0, false, false);
        Some(index)
    }

    /// Lends an interrupt that is pending, as `fill` does: its list register.
    #[inline(always)]
    fn lend(&mut self, bit: usize, index: usize, groups: Groups, physical: Option<u32>) -> u64 {
        let terms = Terms {
            groups,
            again: true,
        };
        // It interrupts what the guest was about to try again (`Read::Again`).
        self.entries = self.entries.wrapping_add(1);
        self.lr[index] = bit as u16;
        self.filled_pending |= 1 << index;
        self.used = self.used.max(index as u32 + 1);
        compose(&mut self.bank, bit, terms, physical) | bit as u64
    }
}

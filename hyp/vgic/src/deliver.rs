//! From state to list registers and back.
//!
//! # What goes in, when not all fits
//! *Pending first in line*: the pending interrupt that would be signalled first
//! always has a list register. While others wait outside, `NPIE` asks for a
//! refill once no pending one is left inside; as those inside come first, that
//! is early enough. (`UIE` would come too late for preemption, and with one
//! list register would never be quiet.) For that an active interrupt may not
//! become a pending one inside unseen: while there is overflow it is lent as
//! active alone, and its deactivation comes here. Group enables are the guest's and
//! change without a trap, so interrupts of disabled groups go last, and the
//! `VGrp` bits ask for a refill when what was assumed no longer holds.
//!
//! *Active ones may stay outside*: the guest's EOI of one without a list
//! register counts in `EOIcount` and `LRENPIE` reports it. As EOIs come in
//! reverse order of acknowledgement, it meant the one of highest acknowledged
//! priority. With EOImode 1 order is free, and `TDIR` traps `ICC_DIR_EL1`.
//!
//! # Level-sensitive interrupts
//! A list register knows edges only. One that is lent while its input is high
//! has EOI set, so that its deactivation comes here and the input is looked at
//! again; a falling input kicks the vCPU that holds it.
//!
//! # Linked PPIs
//! While the source is high or the guest has the interrupt active, the physical
//! interrupt must be active so as not to fire, and the list register has HW = 1:
//! the guest's deactivation ends both. Hardware has no pending-and-active for
//! these: if the source is still high, the physical interrupt fires again.

use crate::bank::{Bank, Groups, NOT_ACKNOWLEDGED};
use crate::intid::{FIRST_SPI, bits};
use crate::list_registers::{ListRegisters, MAX_LIST_REGISTERS, hcr, lr};
use crate::signal::spi_index;
use crate::{VcpuSet, Vgic, vmcr};

/// What [`Vgic::sync`] leaves to its caller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use = "linked PPIs must be sampled again"]
pub struct Synced {
    /// Linked PPIs, by INTID, whose level is unknown by now: sample the source
    /// and say so by `set_ppi`, before the next `fill`.
    pub resample: u32,
    /// Physical PPIs, by INTID, that are still active on this PE: those that
    /// `fill` asked for, but for what the guest deactivated.
    pub physical_active: u32,
}

/// The first of a class by priority, in order, and how many there are.
struct Shortlist {
    keys: [u32; MAX_LIST_REGISTERS],
    len: usize,
    total: usize,
}

/// The bits of a key below the priority are the INTID.
const KEY_PRIORITY_SHIFT: u32 = 16;

/// Set in the key of an interrupt that goes after all others.
const KEY_LAST: u32 = 1 << 24;

impl Shortlist {
    const fn new() -> Self {
        Self {
            keys: [0; MAX_LIST_REGISTERS],
            len: 0,
            total: 0,
        }
    }

    fn add(&mut self, limit: usize, last: bool, priority: u8, intid: usize) {
        let key = if last { KEY_LAST } else { 0 }
            | u32::from(priority) << KEY_PRIORITY_SHIFT
            | intid as u32;
        self.total += 1;
        let limit = limit.min(MAX_LIST_REGISTERS);
        if self.len < limit {
            self.len += 1;
        } else if key >= self.keys[limit - 1] {
            return;
        }
        let mut at = self.len - 1;
        while at > 0 && self.keys[at - 1] > key {
            self.keys[at] = self.keys[at - 1];
            at -= 1;
        }
        self.keys[at] = key;
    }
}

/// The INTID of a key.
fn intid_of(key: u32) -> u32 {
    key & 0xffff
}

impl<S: VcpuSet + ?Sized> Vgic<'_, S> {
    /// Lends the vCPU's interrupts to the list registers, for an entry with
    /// `ICH_VMCR_EL2` = `vmcr`. List registers lent before must have been folded
    /// by [`sync`](Self::sync).
    pub fn fill(&mut self, vcpu: usize, vmcr: u64, lrs: &mut ListRegisters) {
        self.abandon(vcpu);
        lrs.clear();
        let count = self.vcpus.count();
        let groups = self.dist.groups();
        let limit = lrs.count();
        let Some(redist) = self.vcpus.redistributor(vcpu) else {
            return;
        };
        redist.dirty = 0;
        redist.sent = 0;
        let less = redist.learn(vmcr);
        redist.entries = redist.entries.wrapping_add(1);
        redist.filled_pending = 0;
        redist.linked = redist.hw & (redist.bank.line | redist.linked & redist.bank.active);
        lrs.physical_active = redist.physical_active();

        let mut pending = Shortlist::new();
        let mut active = Shortlist::new();
        // Pending interrupts by group, to know of which some stay outside.
        let mut waiting = [0_usize; 2];
        // Groups that, if the guest enables them, give it more to take.
        let mut on_enable = 0;

        let bank = &redist.bank;
        let mut offer = |bank: &Bank, bit: usize, intid: usize| {
            let group1 = bank.is_group1(bit);
            waiting[usize::from(group1)] += 1;
            let off = !vmcr::enables(vmcr, group1);
            pending.add(limit, off, bank.priority[bit], intid);
        };
        for bit in bits(bank.deliverable(groups)) {
            offer(bank, bit, bit);
        }
        for bit in bits(bank.active) {
            active.add(limit, false, bank.acknowledged[bit], bit);
        }
        for (word, bank) in self.dist.banks.iter().enumerate() {
            for bit in bits(bank.deliverable(groups)) {
                let spi = word * 32 + bit;
                if self.dist.is_taken_by(spi, redist) {
                    offer(bank, bit, spi + FIRST_SPI as usize);
                } else if self.dist.routes_to(spi, redist) {
                    on_enable |= enabled_notice(bank.is_group1(bit));
                }
            }
            for bit in bits(bank.active & !bank.held) {
                let spi = word * 32 + bit;
                if usize::from(self.dist.owner[spi]) == vcpu {
                    active.add(limit, false, bank.acknowledged[bit], spi + 32);
                }
            }
        }

        let (pending_in, active_in) = share(&pending, &active, limit, vmcr);
        let overflow = pending.total > pending_in;
        let terms = Terms {
            groups,
            again: !overflow,
        };
        for &key in &pending.keys[..pending_in] {
            let group1 = self.lend(vcpu, intid_of(key), terms, lrs);
            waiting[usize::from(group1)] -= 1;
        }
        for &key in &active.keys[..active_in] {
            self.lend(vcpu, intid_of(key), terms, lrs);
        }

        if overflow {
            lrs.hcr |= notices_of_rest(vmcr, waiting);
        }
        lrs.hcr |= on_enable;
        if active.total > active_in {
            lrs.hcr |= hcr::LRENPIE | hcr::TDIR;
        }
        // A vCPU may deactivate the SPI that another acknowledged; no hardware
        // finds that list register.
        if count > 1 {
            lrs.hcr |= hcr::TDIR;
        }
        if let Some(redist) = self.vcpus.redistributor(vcpu) {
            redist.notices = (lrs.hcr & hcr::MAINTENANCE) as u32;
        }
        if less {
            self.find_others();
        }
    }

    /// Puts an interrupt into the next list register: whether it is of group 1.
    fn lend(&mut self, vcpu: usize, intid: u32, terms: Terms, lrs: &mut ListRegisters) -> bool {
        let Some(redist) = self.vcpus.redistributor(vcpu) else {
            return false;
        };
        let index = lrs.used();
        let (value, group1) = match spi_index(intid) {
            Some(spi) => {
                self.dist.owner[spi] = vcpu as u16;
                let terms = Terms {
                    again: terms.again && self.dist.routes_to(spi, redist),
                    ..terms
                };
                let bank = &mut self.dist.banks[spi / 32];
                let value = compose(bank, spi % 32, terms, None);
                (value, bank.is_group1(spi % 32))
            }
            None => {
                let bit = intid as usize & 31;
                let physical = (redist.linked & 1 << bit != 0).then(|| redist.physical_of(bit));
                let value = compose(&mut redist.bank, bit, terms, physical);
                (value, redist.bank.is_group1(bit))
            }
        };
        lrs.push(value | u64::from(intid));
        redist.lr[index] = intid as u16;
        redist.used = lrs.used() as u32;
        if value & lr::PENDING != 0 {
            redist.filled_pending |= 1 << index;
        }
        group1
    }

    /// Folds the list registers back: `lrs` is what the last
    /// [`fill`](Self::fill) gave, with `lr[..used]` and `hcr` as read after the
    /// exit, `vmcr` is `ICH_VMCR_EL2`.
    ///
    /// Besides where [`Redistributor::needs_sync`](crate::Redistributor::needs_sync)
    /// asks for it, call it whenever the vCPU leaves the PE: it also reads which
    /// groups the guest has enabled.
    pub fn sync(&mut self, vcpu: usize, vmcr: u64, lrs: &ListRegisters) -> Synced {
        let Some(redist) = self.vcpus.redistributor(vcpu) else {
            return Synced::default();
        };
        let less = redist.learn(vmcr);
        // Those that are kept quiet without a list register.
        let mut resample = redist.linked;
        if redist.used == 0 && redist.notices == 0 {
            let physical_active = redist.physical_active();
            if less {
                self.find_others();
            }
            return Synced {
                resample,
                physical_active,
            };
        }
        let (held, used) = redist.held();
        // With EOImode 1 the count is none of deactivations: those were trapped.
        if vmcr & vmcr::VEOIM == 0 {
            for _ in 0..hcr::eoi_count(lrs.hcr) {
                resample |= self.end_outside(vcpu);
            }
        }
        for (index, &intid) in held[..used].iter().enumerate() {
            resample |= self.fold(vcpu, index, intid.into(), lrs.lr[index]);
        }
        self.dist.epoch = self.dist.epoch.wrapping_add(1);
        let Some(redist) = self.vcpus.redistributor(vcpu) else {
            return Synced::default();
        };
        redist.used = 0;
        redist.notices = 0;
        redist.dirty = 1;
        redist.synced = self.dist.epoch;
        let physical_active = redist.physical_active();
        if less {
            self.find_others();
        }
        Synced {
            resample,
            physical_active,
        }
    }

    /// Takes one interrupt back from its list register.
    fn fold(&mut self, vcpu: usize, index: usize, intid: u32, value: u64) -> u32 {
        let groups = self.dist.groups();
        let Some(redist) = self.vcpus.redistributor(vcpu) else {
            return 0;
        };
        let split = u64::from(redist.vmcr) & vmcr::VEOIM != 0;
        let taken = redist.filled_pending & 1 << index != 0 && value & lr::PENDING == 0;
        let Some(spi) = spi_index(intid) else {
            let bit = intid as usize & 31;
            take_back(&mut redist.bank, bit, value, taken, split);
            let mask = 1 << bit & redist.hw;
            if value & lr::HW != 0 && value & (lr::PENDING | lr::ACTIVE) == 0 {
                redist.linked &= !mask;
            }
            // Acknowledged or deactivated: the level sampled then is history.
            if taken || value & (lr::PENDING | lr::ACTIVE) == 0 {
                redist.bank.line &= !mask;
            }
            return mask;
        };
        let bank = &mut self.dist.banks[spi / 32];
        take_back(bank, spi % 32, value, taken, split);
        let waits = bank.deliverable(groups) & 1 << (spi % 32) != 0;
        if waits && !self.dist.is_taken_by(spi, redist) {
            self.announce(spi);
        }
        0
    }

    /// The guest deactivated an interrupt without a list register: the active
    /// one of highest acknowledged priority.
    fn end_outside(&mut self, vcpu: usize) -> u32 {
        let groups = self.dist.groups();
        let Some(redist) = self.vcpus.redistributor(vcpu) else {
            return 0;
        };
        let mut outside = Shortlist::new();
        let bank = &redist.bank;
        for bit in bits(bank.active & !bank.held) {
            outside.add(1, false, bank.acknowledged[bit], bit);
        }
        for (word, bank) in self.dist.banks.iter().enumerate() {
            for bit in bits(bank.active & !bank.held) {
                let spi = word * 32 + bit;
                if usize::from(self.dist.owner[spi]) == vcpu {
                    outside.add(1, false, bank.acknowledged[bit], spi + 32);
                }
            }
        }
        if outside.len == 0 {
            return 0;
        }
        let intid = intid_of(outside.keys[0]);
        let Some(spi) = spi_index(intid) else {
            let mask = 1 << (intid & 31);
            redist.bank.active &= !mask;
            redist.bank.line &= !(mask & redist.hw);
            return mask & redist.hw;
        };
        let mask = 1 << (spi % 32);
        let bank = &mut self.dist.banks[spi / 32];
        bank.active &= !mask;
        if bank.deliverable(groups) & mask != 0 {
            self.announce(spi);
        }
        0
    }

    /// True if the vCPU, whose list registers are folded, has an interrupt that
    /// its guest would be signalled with `ICH_VMCR_EL2` = `vmcr`: it need not wait
    /// in WFI. Says yes rather than no where only a running handler stands
    /// before it.
    pub fn pending(&mut self, vcpu: usize, vmcr: u64) -> bool {
        let groups = self.dist.groups();
        let Some(redist) = self.vcpus.redistributor(vcpu) else {
            return false;
        };
        let passes = |bank: &Bank, bit: usize| {
            vmcr::enables(vmcr, bank.is_group1(bit))
                && bank.priority[bit] < vmcr::priority_mask(vmcr)
        };
        let bank = &redist.bank;
        if bits(bank.deliverable(groups)).any(|bit| passes(bank, bit)) {
            return true;
        }
        self.dist.banks.iter().enumerate().any(|(word, bank)| {
            bits(bank.deliverable(groups))
                .any(|bit| passes(bank, bit) && self.dist.routes_to(word * 32 + bit, redist))
        })
    }
}

/// How many of each get a list register.
fn share(pending: &Shortlist, active: &Shortlist, limit: usize, vmcr: u64) -> (usize, usize) {
    if pending.total + active.total <= limit {
        return (pending.len, active.len);
    }
    // With EOImode 1 a list register for an active one saves nothing: its
    // deactivation is trapped. With EOImode 0 it saves an exit.
    let reserved = if vmcr & vmcr::VEOIM == 0 {
        pending.len.min(1)
    } else {
        pending.len
    };
    let active_in = active.len.min(limit - reserved);
    (pending.len.min(limit - active_in), active_in)
}

fn enabled_notice(group1: bool) -> u64 {
    if group1 { hcr::VGRP1EIE } else { hcr::VGRP0EIE }
}

fn disabled_notice(group1: bool) -> u64 {
    if group1 { hcr::VGRP1DIE } else { hcr::VGRP0DIE }
}

/// What is to interrupt while so many pending interrupts of each group are in no
/// list register.
fn notices_of_rest(vmcr: u64, waiting: [usize; 2]) -> u64 {
    let mut notices = hcr::NPIE;
    for group1 in [false, true] {
        if vmcr::enables(vmcr, group1) {
            notices |= disabled_notice(group1);
        } else if waiting[usize::from(group1)] > 0 {
            notices |= enabled_notice(group1);
        }
    }
    notices
}

/// On which terms an interrupt is lent.
#[derive(Clone, Copy)]
pub(crate) struct Terms {
    /// The groups that the distributor has on.
    pub(crate) groups: Groups,
    /// Once deactivated, it may come to this vCPU at once: one that is active is
    /// pending too.
    pub(crate) again: bool,
}

/// A list register for the interrupt, but for its INTID, and the lending of it.
/// `physical` says which physical interrupt is active on its behalf.
#[inline(always)]
pub(crate) fn compose(bank: &mut Bank, bit: usize, terms: Terms, physical: Option<u32>) -> u64 {
    let Terms { groups, again } = terms;
    let mask = 1_u32 << bit;
    let ready = bank.ready(groups) & mask != 0;
    let active = bank.active & mask != 0;
    let latched = bank.latch & mask != 0;
    let current = bank.priority[bit];
    let priority = match bank.acknowledged[bit] {
        acknowledged if active && acknowledged != NOT_ACKNOWLEDGED => acknowledged,
        _ => current,
    };
    // Pending and active at once is beyond a list register with HW.
    let hw = physical.filter(|_| !(active && ready && latched));
    let pending = ready && (!active || again && priority == current && hw.is_none());

    let mut value = u64::from(priority) << lr::PRIORITY_SHIFT;
    if bank.is_group1(bit) {
        value |= lr::GROUP1;
    }
    if active {
        value |= lr::ACTIVE;
    }
    if pending {
        value |= lr::PENDING;
        bank.lent |= bank.latch & mask;
        bank.latch &= !mask;
    }
    match hw {
        Some(physical) => value |= lr::HW | u64::from(physical) << lr::PINTID_SHIFT,
        // Its deactivation is news if there is more to deliver then.
        None if ready && !pending || bank.level() & mask != 0 || physical.is_some() => {
            value |= lr::EOI;
        }
        None => {}
    }
    bank.held |= mask;
    bank.edited &= !mask;
    value
}

/// The state of an interrupt after its list register: `taken` says that it was
/// lent pending and has been acknowledged since, `split` that the guest has
/// EOImode 1.
pub(crate) fn take_back(bank: &mut Bank, bit: usize, value: u64, taken: bool, split: bool) {
    let mask = 1_u32 << bit;
    bank.held &= !mask;
    if value & lr::PENDING != 0 {
        bank.latch |= bank.lent & mask;
    }
    bank.lent &= !mask;
    if taken && value & lr::ACTIVE != 0 {
        // With EOImode 1 no EOI will deactivate it.
        bank.acknowledged[bit] = if split {
            NOT_ACKNOWLEDGED
        } else {
            lr::priority(value)
        };
    }
    if bank.edited & mask != 0 {
        bank.edited &= !mask;
        if value & lr::ACTIVE == 0 {
            // What a write has made active, behind the guest's own EOI of it.
            bank.acknowledged[bit] = NOT_ACKNOWLEDGED;
        }
    } else if value & lr::ACTIVE != 0 {
        bank.active |= mask;
    } else {
        bank.active &= !mask;
    }
}

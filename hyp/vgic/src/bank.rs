//! Thirty-two interrupts: their configuration and state, a bit of each word and
//! a byte of each table per interrupt.
//!
//! A vCPU's SGIs and PPIs are one bank, the SPIs are [`SPI_WORDS`] of them, and
//! `GICD_*` and `GICR_*0` registers are the same operations on a bank.
//!
//! # Where the truth is
//! Between `fill` and `sync` an interrupt may be *held* by a list register, and
//! then hardware owns its pending and active bits. Meanwhile this side keeps:
//! * `lent`, the latch that went into the list register. It comes back if the
//!   list register is still pending at `sync`; clearing it here is how a guest's
//!   ICPENDR reaches an interrupt that somebody else's list register holds.
//! * `latch`, a pending edge that came since.
//! * `active` as of `fill`, and `edited` where a guest has since written it, in
//!   which case the write beats the list register at `sync`.
//!
//! [`SPI_WORDS`]: crate::intid::SPI_WORDS

use crate::intid::{PRIORITY_MASK, PRIVATE};

/// An acknowledged priority that is none: no EOI will deactivate the interrupt,
/// as it was made active by a register write, or the guest has EOImode 1. No
/// interrupt is ever acknowledged at 0xff.
pub(crate) const NOT_ACKNOWLEDGED: u8 = 0xff;

/// The interrupt groups that `GICD_CTLR` lets through.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Groups {
    pub(crate) group0: bool,
    pub(crate) group1: bool,
}

impl Groups {
    /// Of the interrupts whose group bits are `group1`, those let through.
    pub(crate) fn admit(self, group1: u32) -> u32 {
        let mut admitted = 0;
        if self.group0 {
            admitted |= !group1;
        }
        if self.group1 {
            admitted |= group1;
        }
        admitted
    }
}

#[repr(C)]
#[derive(Clone, Debug)]
pub(crate) struct Bank {
    /// `ISENABLER`.
    pub(crate) enabled: u32,
    /// `IGROUPR`: set is Group 1.
    pub(crate) group1: u32,
    /// `ICFGR`: set is edge-triggered.
    pub(crate) edge: u32,
    /// The level of the input.
    pub(crate) line: u32,
    /// Pending by an edge or by software.
    pub(crate) latch: u32,
    /// The latch that a list register was given.
    pub(crate) lent: u32,
    /// Active; while held, as of `fill`.
    pub(crate) active: u32,
    /// In a list register of a vCPU that is running or about to.
    pub(crate) held: u32,
    /// Held, and `active` was written since.
    pub(crate) edited: u32,
    /// `IPRIORITYR`.
    pub(crate) priority: [u8; PRIVATE],
    /// The priority at which an active interrupt was acknowledged and that its
    /// EOI drops, or [`NOT_ACKNOWLEDGED`].
    pub(crate) acknowledged: [u8; PRIVATE],
}

impl Bank {
    /// A bank at reset. `edge` and `enabled` give what SGIs have from the start.
    pub(crate) const fn new(edge: u32, enabled: u32) -> Self {
        Self {
            enabled,
            group1: 0,
            edge,
            line: 0,
            latch: 0,
            lent: 0,
            active: 0,
            held: 0,
            edited: 0,
            priority: [0; PRIVATE],
            acknowledged: [NOT_ACKNOWLEDGED; PRIVATE],
        }
    }

    /// Level-sensitive interrupts whose input is high.
    pub(crate) fn level(&self) -> u32 {
        self.line & !self.edge
    }

    /// Pending, apart from what list registers were lent.
    pub(crate) fn pending(&self) -> u32 {
        self.latch | self.level()
    }

    /// Pending as `ISPENDR` shows it.
    pub(crate) fn pending_seen(&self) -> u32 {
        self.pending() | self.lent
    }

    /// Pending, enabled, and of a group that is let through: what would be
    /// signalled were it not active.
    pub(crate) fn ready(&self, groups: Groups) -> u32 {
        self.pending() & self.enabled & groups.admit(self.group1)
    }

    /// What a list register should be found for.
    pub(crate) fn deliverable(&self, groups: Groups) -> u32 {
        self.ready(groups) & !self.active & !self.held
    }

    /// Of changed interrupts, those that somebody must hear of: a list register has them,
    /// or should be found for them.
    pub(crate) fn concerned(&self, changed: u32, groups: Groups) -> u32 {
        changed & (self.held | self.deliverable(groups))
    }

    pub(crate) fn is_group1(&self, bit: usize) -> bool {
        self.group1 & (1 << bit) != 0
    }

    /// `ISENABLER` or `ICENABLER`. Answers what changed.
    pub(crate) fn set_enabled(&mut self, mask: u32, to: bool) -> u32 {
        let before = self.enabled;
        put(&mut self.enabled, mask, to);
        before ^ self.enabled
    }

    /// `ISPENDR`: latches.
    pub(crate) fn set_pending(&mut self, mask: u32) {
        self.latch |= mask;
    }

    /// `ICPENDR`: takes the latch back, also from a list register. A level that
    /// is still high stays pending.
    pub(crate) fn clear_pending(&mut self, mask: u32) {
        self.latch &= !mask;
        self.lent &= !mask;
    }

    /// `ISACTIVER` or `ICACTIVER`. Answers those that are newly active without a
    /// list register, and so need somebody to hold them.
    pub(crate) fn set_active(&mut self, mask: u32, to: bool) -> u32 {
        self.edited |= mask & self.held;
        let fresh = if to { mask & !self.active } else { 0 };
        for bit in crate::intid::bits(fresh) {
            self.acknowledged[bit] = NOT_ACKNOWLEDGED;
        }
        put(&mut self.active, mask, to);
        fresh & !self.held
    }

    /// `IGROUPR`. Answers what changed.
    pub(crate) fn set_group(&mut self, group1: u32) -> u32 {
        let before = core::mem::replace(&mut self.group1, group1);
        before ^ group1
    }

    /// `ICFGR` for the interrupts in `mask`. Answers what changed.
    pub(crate) fn set_edge(&mut self, mask: u32, edge: u32) -> u32 {
        let before = self.edge;
        self.edge = before & !mask | edge & mask;
        before ^ self.edge
    }

    /// `IPRIORITYR` of one interrupt. Answers what changed.
    pub(crate) fn set_priority(&mut self, bit: usize, priority: u8) -> u32 {
        let priority = priority & PRIORITY_MASK;
        let before = core::mem::replace(&mut self.priority[bit], priority);
        u32::from(before != priority) << bit
    }

    /// Moves the input of one interrupt: a rising edge latches where edges
    /// count. Answers what changed.
    pub(crate) fn set_line(&mut self, bit: usize, level: bool) -> u32 {
        let mask = 1 << bit;
        let before = self.line;
        put(&mut self.line, mask, level);
        let changed = before ^ self.line;
        if level {
            self.latch |= changed & self.edge;
        }
        changed
    }

    /// Back to reset, but for the inputs, which belong to the devices.
    pub(crate) fn reset(&mut self, edge: u32, enabled: u32) {
        let line = self.line;
        *self = Self::new(edge, enabled);
        self.line = line;
    }
}

/// Sets or clears the bits of `mask` in `word`.
fn put(word: &mut u32, mask: u32, to: bool) {
    if to {
        *word |= mask;
    } else {
        *word &= !mask;
    }
}

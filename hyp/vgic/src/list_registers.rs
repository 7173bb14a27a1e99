//! `ICH_LR<n>_EL2`, and the fields of `ICH_HCR_EL2` and `ICH_VMCR_EL2` that
//! delivery is made of (IHI0069, section 12.4).

/// The most list registers that hardware can have (`ICH_VTR_EL2.ListRegs`).
pub const MAX_LIST_REGISTERS: usize = 16;

/// What goes into the virtual CPU interface before entry, and what is read
/// back from it after exit.
#[derive(Clone, Debug)]
pub struct ListRegisters {
    /// `ICH_LR<n>_EL2`. Those from [`used`](Self::used) on are zero after `fill`.
    pub lr: [u64; MAX_LIST_REGISTERS],
    /// `ICH_HCR_EL2`: after `fill`, the value to write, `EOIcount` zero; for
    /// `sync`, the value read back.
    pub hcr: u64,
    /// The physical PPIs of this PE, by INTID, that must be active while the
    /// guest runs; all other linked ones must be inactive. Set by `fill`.
    pub physical_active: u32,
    /// The list registers that `fill` used: `lr[..used]`.
    used: usize,
    /// The list registers that hardware has.
    count: usize,
}

impl ListRegisters {
    /// Empty list registers. `count` is what hardware has,
    /// `ICH_VTR_EL2.ListRegs + 1`, taken as 1 to 16.
    #[must_use]
    pub const fn new(count: usize) -> Self {
        Self {
            lr: [0; MAX_LIST_REGISTERS],
            hcr: hcr::EN,
            physical_active: 0,
            used: 0,
            count: if count == 0 {
                1
            } else if count > MAX_LIST_REGISTERS {
                MAX_LIST_REGISTERS
            } else {
                count
            },
        }
    }

    /// The list registers in use: write these, clear the rest, and after exit
    /// read these.
    #[must_use]
    pub const fn used(&self) -> usize {
        self.used
    }

    /// Nothing is lent and no maintenance asked for: `sync` needs to read none of them.
    #[must_use]
    pub const fn asks_nothing(&self) -> bool {
        self.used == 0 && self.hcr & hcr::MAINTENANCE == 0
    }

    /// The list registers that hardware has.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.count
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::new(self.count);
    }

    /// Puts it to where one is in use, or behind them.
    pub(crate) fn put(&mut self, index: usize, lr: u64) {
        if let Some(at) = self.lr.get_mut(index) {
            *at = lr;
            self.used = self.used.max(index + 1);
        }
    }

    pub(crate) fn push(&mut self, lr: u64) {
        if self.used < self.count {
            self.lr[self.used] = lr;
            self.used += 1;
        }
    }
}

/// Fields of `ICH_LR<n>_EL2`.
pub mod lr {
    /// State: pending.
    pub const PENDING: u64 = 1 << 62;
    /// State: active.
    pub const ACTIVE: u64 = 1 << 63;
    /// Stands for the physical interrupt in `pINTID`.
    pub const HW: u64 = 1 << 61;
    /// Group 1.
    pub const GROUP1: u64 = 1 << 60;
    /// Has non-maskable priority (FEAT_GICv3_NMI), which no guest is told of.
    pub const NMI: u64 = 1 << 59;
    /// RES0: beside the priority, and below it.
    pub const RESERVED: u64 = 0b111 << 56 | 0b111 << 45;
    /// Maintenance interrupt on deactivation, when [`HW`] is 0.
    pub const EOI: u64 = 1 << 41;
    /// Least bit of the priority.
    pub const PRIORITY_SHIFT: u32 = 48;
    /// Least bit of the physical INTID.
    pub const PINTID_SHIFT: u32 = 32;
    /// The physical INTID, or [`EOI`] and reserved bits.
    pub const PINTID_MASK: u64 = 0x1fff << PINTID_SHIFT;

    /// The virtual INTID.
    #[must_use]
    pub const fn intid(lr: u64) -> u32 {
        lr as u32
    }

    /// The priority.
    #[must_use]
    pub const fn priority(lr: u64) -> u8 {
        (lr >> PRIORITY_SHIFT) as u8
    }
}

/// Fields of `ICH_HCR_EL2`.
pub mod hcr {
    /// The virtual CPU interface is on.
    pub const EN: u64 = 1;
    /// Maintenance while at most one list register is valid.
    pub const UIE: u64 = 1 << 1;
    /// Maintenance while `EOIcount` is not zero.
    pub const LRENPIE: u64 = 1 << 2;
    /// Maintenance while no list register is pending.
    pub const NPIE: u64 = 1 << 3;
    /// Maintenance while the guest has Group 0 enabled.
    pub const VGRP0EIE: u64 = 1 << 4;
    /// Maintenance while the guest has Group 0 disabled.
    pub const VGRP0DIE: u64 = 1 << 5;
    /// Maintenance while the guest has Group 1 enabled.
    pub const VGRP1EIE: u64 = 1 << 6;
    /// Maintenance while the guest has Group 1 disabled.
    pub const VGRP1DIE: u64 = 1 << 7;
    /// All of the above that ask for a maintenance interrupt.
    pub const MAINTENANCE: u64 = UIE | LRENPIE | NPIE | VGRP0EIE | VGRP0DIE | VGRP1EIE | VGRP1DIE;
    /// Trap the registers that both groups have: `ICC_DIR_EL1`, `ICC_PMR_EL1`,
    /// `ICC_CTLR_EL1`, `ICC_RPR_EL1` and the SGIs'.
    pub const TC: u64 = 1 << 10;
    /// Trap the guest's `ICC_DIR_EL1`.
    pub const TDIR: u64 = 1 << 14;
    /// The guest's deactivations of interrupts that no list register had, modulo 32.
    pub const EOI_COUNT: u64 = 0x1f << EOI_COUNT_SHIFT;
    const EOI_COUNT_SHIFT: u32 = 27;

    /// The guest's deactivations of interrupts that no list register had.
    #[must_use]
    pub const fn eoi_count(hcr: u64) -> u32 {
        ((hcr & EOI_COUNT) >> EOI_COUNT_SHIFT) as u32
    }
}

/// Fields of `ICH_VMCR_EL2`.
pub mod vmcr {
    /// The guest has Group 0 enabled.
    pub const VENG0: u64 = 1;
    /// The guest has Group 1 enabled.
    pub const VENG1: u64 = 1 << 1;
    /// The guest's EOImode: priority drop and deactivation are separate.
    pub const VEOIM: u64 = 1 << 9;

    /// The guest's priority mask.
    #[must_use]
    pub const fn priority_mask(vmcr: u64) -> u8 {
        (vmcr >> 24) as u8
    }

    /// True if the guest has this group enabled.
    #[must_use]
    pub const fn enables(vmcr: u64, group1: bool) -> bool {
        vmcr & (if group1 { VENG1 } else { VENG0 }) != 0
    }
}

//! The virtual CPU interface of a PE, as hardware does it: `ICH_*` on one side,
//! `ICV_IAR`, `EOIR` and `DIR` on the other (IHI0069, chapter 6).

use vgic::{hcr, lr, vmcr};

/// No interrupt.
pub const SPURIOUS: u32 = 1023;

const STATE: u64 = lr::PENDING | lr::ACTIVE;

#[derive(Clone, Debug)]
pub struct Interface {
    pub lr: Vec<u64>,
    pub hcr: u64,
    pub vmcr: u64,
    /// Active priorities, `ICH_AP<n>R`.
    priorities: Vec<u8>,
    /// Active physical PPIs.
    pub physical_active: u32,
}

impl Interface {
    pub fn new(list_registers: usize) -> Self {
        Self {
            lr: vec![0; list_registers],
            hcr: 0,
            vmcr: 0,
            priorities: Vec::new(),
            physical_active: 0,
        }
    }

    /// The list register that is signalled.
    fn signalled(&self) -> Option<usize> {
        let running = self.priorities.iter().copied().min().unwrap_or(0xff);
        let bar = running.min(vmcr::priority_mask(self.vmcr));
        (0..self.lr.len())
            .filter(|&n| {
                let value = self.lr[n];
                value & STATE == lr::PENDING && vmcr::enables(self.vmcr, value & lr::GROUP1 != 0)
            })
            .min_by_key(|&n| lr::priority(self.lr[n]))
            .filter(|&n| self.hcr & hcr::EN != 0 && lr::priority(self.lr[n]) < bar)
    }

    /// The interrupt that is signalled, its priority, and if it is Group 1.
    pub fn peek(&self) -> Option<(u32, u8, bool)> {
        self.signalled().map(|n| {
            let value = self.lr[n];
            let group1 = value & lr::GROUP1 != 0;
            (lr::intid(value), lr::priority(value), group1)
        })
    }

    /// `ICV_IAR<group>_EL1`
    pub fn acknowledge(&mut self, group1: bool) -> u32 {
        match self.signalled() {
            Some(n) if (self.lr[n] & lr::GROUP1 != 0) == group1 => {
                self.lr[n] ^= STATE;
                self.priorities.push(lr::priority(self.lr[n]));
                lr::intid(self.lr[n])
            }
            _ => SPURIOUS,
        }
    }

    /// `ICV_EOIR<group>_EL1`
    pub fn end(&mut self, intid: u32, group1: bool) {
        let Some(dropped) = self.priorities.iter().copied().min() else {
            return;
        };
        self.priorities.retain(|&p| p != dropped);
        match self.find_active(intid) {
            Some(n) => {
                let matches =
                    (self.lr[n] & lr::GROUP1 != 0) == group1 && lr::priority(self.lr[n]) == dropped;
                if matches && self.vmcr & vmcr::VEOIM == 0 {
                    self.deactivate(n);
                }
            }
            // Some implementations count with EOImode 1 too.
            None => self.count(),
        }
    }

    /// `ICV_DIR_EL1`, not trapped
    pub fn deactivate_by_guest(&mut self, intid: u32) {
        assert_eq!(self.hcr & hcr::TDIR, 0, "DIR is trapped");
        if self.vmcr & vmcr::VEOIM != 0 {
            match self.find_active(intid) {
                Some(n) => self.deactivate(n),
                None => self.count(),
            }
        }
    }

    fn find_active(&self, intid: u32) -> Option<usize> {
        self.lr
            .iter()
            .position(|&value| value & lr::ACTIVE != 0 && lr::intid(value) == intid)
    }

    fn deactivate(&mut self, n: usize) {
        self.lr[n] &= !lr::ACTIVE;
        if self.lr[n] & lr::HW != 0 {
            let physical = (self.lr[n] & lr::PINTID_MASK) >> lr::PINTID_SHIFT;
            self.physical_active &= !(1 << physical);
        }
    }

    fn count(&mut self) {
        let count = hcr::eoi_count(self.hcr) + 1;
        self.hcr = self.hcr & !(0x1f << 27) | u64::from(count & 0x1f) << 27;
    }

    /// The maintenance interrupt, `ICH_MISR_EL2` != 0.
    pub fn maintenance(&self) -> bool {
        let state_is = |state: u64| self.lr.iter().filter(move |&&v| v & STATE == state);
        let wants = |bit: u64| self.hcr & bit != 0;
        let enabled = |group1| vmcr::enables(self.vmcr, group1);
        state_is(0).any(|&v| v & (lr::HW | lr::EOI) == lr::EOI)
            || wants(hcr::UIE) && state_is(0).count() + 1 >= self.lr.len()
            || wants(hcr::LRENPIE) && hcr::eoi_count(self.hcr) != 0
            || wants(hcr::NPIE) && state_is(lr::PENDING).count() == 0
            || wants(hcr::VGRP0EIE) && enabled(false)
            || wants(hcr::VGRP0DIE) && !enabled(false)
            || wants(hcr::VGRP1EIE) && enabled(true)
            || wants(hcr::VGRP1DIE) && !enabled(true)
    }
}

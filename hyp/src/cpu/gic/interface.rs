//! The virtual CPU interface: what of it a vCPU carries, and its list registers.

use arm64::regs::*;
use vgic::Interface;

/// The virtual CPU interface of a vCPU while it does not run.
#[derive(Clone, Copy, Debug, Default)]
pub struct VirtualInterface {
    /// ICH_VMCR_EL2.
    pub vmcr: u64,
    ap0r: [u64; 4],
    ap1r: [u64; 4],
}

/// What the CPU has, from ICH_VTR_EL2 and ICC_CTLR_EL1.
pub(super) fn of_cpu(vtr: u64, ctlr: u64) -> Interface {
    Interface {
        list_registers: ICH_VTR_EL2::ListRegs.read(vtr) as usize + 1,
        priority_bits: ICH_VTR_EL2::PRIbits.read(vtr) as u32 + 1,
        intid_bits: match ICH_VTR_EL2::IDbits.read(vtr) {
            0 => 16,
            _ => 24,
        },
        extended_range: ICC_CTLR_EL1::ExtRange.is_set(ctlr),
    }
}

/// Words of active priorities for a count of preemption bits, from ICH_VTR_EL2.
pub(super) fn active_words(vtr: u64) -> usize {
    match ICH_VTR_EL2::PREbits.read(vtr) + 1 {
        7 => 4,
        6 => 2,
        _ => 1,
    }
}

macro_rules! active_priorities {
    ($($n:literal $group0:ident $group1:ident)*) => {
        impl VirtualInterface {
            /// Loads it, all but the list registers. The CPU has `words` of active
            /// priorities.
            pub(super) fn load(&self, words: usize) {
                ICH_VMCR_EL2.set(self.vmcr);
                $(if words > $n {
                    $group0.set(self.ap0r[$n]);
                    $group1.set(self.ap1r[$n]);
                })*
            }

            /// Saves what [`Self::load`] loads, and turns the interface off.
            pub(super) fn save(&mut self, words: usize) {
                ICH_HCR_EL2.set(0);
                self.vmcr = ICH_VMCR_EL2.get();
                $(if words > $n {
                    self.ap0r[$n] = $group0.get();
                    self.ap1r[$n] = $group1.get();
                })*
            }
        }
    };
}

active_priorities! {
    0 ICH_AP0R0_EL2 ICH_AP1R0_EL2
    1 ICH_AP0R1_EL2 ICH_AP1R1_EL2
    2 ICH_AP0R2_EL2 ICH_AP1R2_EL2
    3 ICH_AP0R3_EL2 ICH_AP1R3_EL2
}

macro_rules! list_registers {
    ($($n:literal $register:ident)*) => {
        /// Reads the first `n` list registers.
        pub fn read_lrs(n: usize, lrs: &mut [u64; 16]) {
            $(if n > $n { lrs[$n] = $register.get(); })*
        }

        /// Reads one list register.
        pub fn read_lr(n: usize) -> u64 {
            match n {
                $($n => $register.get(),)*
                _ => 0,
            }
        }

        /// Writes one list register.
        pub fn write_lr(n: usize, lr: u64) {
            match n {
                $($n => $register.set(lr),)*
                _ => {}
            }
        }

        /// Writes the first `n` list registers.
        pub fn write_lrs(n: usize, lrs: &[u64; 16]) {
            $(if n > $n { $register.set(lrs[$n]); })*
        }
    };
}

list_registers! {
    0 ICH_LR0_EL2 1 ICH_LR1_EL2 2 ICH_LR2_EL2 3 ICH_LR3_EL2
    4 ICH_LR4_EL2 5 ICH_LR5_EL2 6 ICH_LR6_EL2 7 ICH_LR7_EL2
    8 ICH_LR8_EL2 9 ICH_LR9_EL2 10 ICH_LR10_EL2 11 ICH_LR11_EL2
    12 ICH_LR12_EL2 13 ICH_LR13_EL2 14 ICH_LR14_EL2 15 ICH_LR15_EL2
}

#[cfg(test)]
mod tests {
    use super::*;

    /// ICH_VTR_EL2.PREbits of 4, 5 and 6: 5, 6 and 7 bits of preemption.
    #[test]
    fn active_priorities_have_the_words_of_their_bits() {
        for (field, words) in [(4, 1), (5, 2), (6, 4)] {
            assert_eq!(active_words(field << 26 | 0x9000_000f), words, "{field}");
        }
    }

    /// IHI0069H, 12.4.10 and 12.2.6.
    #[test]
    fn what_the_interface_has_is_read_from_its_fields() {
        let vtr = 4 << 29 | 4 << 26 | 3;
        let has = Interface {
            list_registers: 4,
            priority_bits: 5,
            intid_bits: 16,
            extended_range: false,
        };
        assert_eq!(of_cpu(vtr, !(1 << 19)), has);
        let has = Interface {
            list_registers: 16,
            priority_bits: 8,
            intid_bits: 24,
            extended_range: true,
        };
        assert_eq!(of_cpu(7 << 29 | 6 << 26 | 1 << 23 | 15, 1 << 19), has);
    }
}

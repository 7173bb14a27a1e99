//! The virtual CPU interface: what of it a vCPU carries, and its list registers.

use arm64::regs::*;
use arm64::sysreg::Sysreg;
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

        /// The highest priority that is active (ICV_RPR_EL1), by each bit of preemption.
        fn running(vtr: u64) -> u64 {
            let shift = 7 - ICH_VTR_EL2::PREbits.read(vtr);
            $(if active_words(vtr) > $n {
                let active = ($group0.get() | $group1.get()) as u32;
                if active != 0 {
                    return u64::from($n * 32 + active.trailing_zeros()) << shift;
                }
            })*
            0xff
        }
    };
}

active_priorities! {
    0 ICH_AP0R0_EL2 ICH_AP1R0_EL2
    1 ICH_AP0R1_EL2 ICH_AP1R1_EL2
    2 ICH_AP0R2_EL2 ICH_AP1R2_EL2
    3 ICH_AP0R3_EL2 ICH_AP1R3_EL2
}

/// ICH_VMCR_EL2: VCBPR and VEOIM, and VPMR.
const VMCR_CTLR: u64 = 1 << 9 | 1 << 4;
const VMCR_PMR: u64 = 0xff << 24;

/// A register of the virtual interface that both groups have, where its read traps
/// (ICH_HCR_EL2.TC).
pub fn read_common(register: Sysreg) -> Option<u64> {
    let (vmcr, vtr) = (ICH_VMCR_EL2.get(), ICH_VTR_EL2.get());
    Some(match register {
        ICC_PMR_EL1::ENCODING => (vmcr & VMCR_PMR) >> 24,
        // EOImode and CBPR; A3V, SEIS, IDbits and PRIbits.
        ICC_CTLR_EL1::ENCODING => {
            let shape = (vtr >> 21 & 1) << 15 | (vtr >> 22 & 1) << 14;
            vmcr >> 8 & 2 | vmcr >> 4 & 1 | shape | (vtr >> 23 & 7) << 11 | (vtr >> 29 & 7) << 8
        }
        ICC_RPR_EL1::ENCODING => running(vtr),
        _ => return None,
    })
}

/// The same of its write; false for what cannot be written.
pub fn write_common(register: Sysreg, value: u64) -> bool {
    let (mask, to) = match register {
        ICC_PMR_EL1::ENCODING => (VMCR_PMR, value << 24),
        ICC_CTLR_EL1::ENCODING => (VMCR_CTLR, (value & 2) << 8 | (value & 1) << 4),
        _ => return false,
    };
    ICH_VMCR_EL2.set(ICH_VMCR_EL2.get() & !mask | to & mask);
    true
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
    use arm64::recording;

    /// ICH_VTR_EL2.PREbits of 4, 5 and 6: 5, 6 and 7 bits of preemption.
    #[test]
    fn active_priorities_have_the_words_of_their_bits() {
        for (field, words) in [(4, 1), (5, 2), (6, 4)] {
            assert_eq!(active_words(field << 26 | 0x9000_000f), words, "{field}");
        }
    }

    /// IHI0069H, 12.3 and 12.4: what a guest writes and reads by way of EL2 is where the
    /// interface would have it.
    #[test]
    fn what_traps_of_the_interface_is_the_interfaces() {
        recording::reset();
        // Five bits of priority and of preemption, INTIDs of 16, SEIS and A3V.
        recording::set(ICH_VTR_EL2, 4 << 29 | 4 << 26 | 0b11 << 21 | 3);
        recording::set(ICH_VMCR_EL2, 0xf002_0003);
        let [pmr, ctlr, rpr] = [
            ICC_PMR_EL1::ENCODING,
            ICC_CTLR_EL1::ENCODING,
            ICC_RPR_EL1::ENCODING,
        ];
        assert_eq!(read_common(pmr), Some(0xf0));
        assert_eq!(read_common(ctlr), Some(0b11 << 14 | 4 << 8));
        for (register, value, vmcr) in [
            (ctlr, 0b10, 0xf002_0203),
            (ctlr, !0b10, 0xf002_0013),
            (ctlr, 0b11, 0xf002_0213),
            (pmr, 0x1_00a0, 0xa002_0213),
        ] {
            assert!(write_common(register, value));
            assert_eq!(recording::get(ICH_VMCR_EL2), vmcr, "{register} {value:#x}");
        }
        assert_eq!(read_common(ctlr), Some(0b11 << 14 | 4 << 8 | 0b11));
        // Either group's; none.
        assert_eq!(read_common(rpr), Some(0xff));
        recording::set(ICH_AP0R0_EL2, 1 << 20);
        assert_eq!(read_common(rpr), Some(0xa0));
        recording::set(ICH_AP1R0_EL2, 1 << 4 | 1 << 31);
        assert_eq!(read_common(rpr), Some(0x20));
        recording::set(ICH_VTR_EL2, 6 << 29 | 6 << 26);
        recording::set(ICH_AP0R0_EL2, 0);
        recording::set(ICH_AP1R0_EL2, 0);
        recording::set(ICH_AP1R2_EL2, 1 << 3);
        assert_eq!(read_common(rpr), Some(67 << 1));
        assert_eq!(read_common(ICC_BPR1_EL1::ENCODING), None);
        assert!(!write_common(rpr, 0) && !write_common(ICC_BPR1_EL1::ENCODING, 0));
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

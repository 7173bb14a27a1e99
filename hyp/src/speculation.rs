//! Branches that a CPU predicts by what another world has done: Spectre-v2
//! (CVE-2017-5715) and branch history (BHB, CVE-2022-23960). What a CPU needs when
//! it comes out of a lower level, in EL2's vectors (asm.S), which stand between any
//! two worlds.
//!
//! A CPU says by ID registers that it needs nothing, or what clears its history; for
//! older ones there are lists, and the firmware's word (DEN0028, SMCCC 1.3, 7.4 to
//! 7.6). Lists: Arm, "Spectre-BHB", and Linux 7.2, arch/arm64/kernel/proton-pack.c.

use core::fmt;

use arm64::regs::*;
use rmi::smccc::fid;

use crate::features::IdRegisters;

/// How a CPU, or a machine, stands to an attack; the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Defence {
    /// It may succeed, and there is nothing to be done.
    None,
    /// It does not between worlds: EL2 or the CPU itself takes steps.
    Steps,
    /// The CPU is not affected.
    Unaffected,
}

/// What the vectors do: asm.S's word. 0 for nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Steps(pub u64);

impl Steps {
    /// The CPU has no FEAT_RAS: a lower level's system error is waited for by
    /// barriers.
    pub const WITHOUT_RAS: Self = Self(1 << 32);
    /// `clrbhb`.
    const CLEAR: Self = Self(1 << 8);

    /// A call of the firmware, whose functions have bit 31 set.
    const fn call(function: u32) -> Self {
        Self(function as u64)
    }

    /// Both.
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// How a CPU stands, and what it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Speculation {
    /// Spectre-v2.
    pub v2: Defence,
    /// Branch history.
    pub bhb: Defence,
    /// In EL2's vectors.
    pub steps: Steps,
}

/// Implementer and part number: 0x41 Arm, 0x42 Broadcom, 0x48 HiSilicon, 0x51
/// Qualcomm, 0xc0 Ampere.
fn model(midr: u64) -> u64 {
    MIDR_EL1::Implementer.read(midr) << 12 | MIDR_EL1::PartNum.read(midr)
}

/// Predict nothing across worlds, though they are too old to say so.
fn is_safe_of_v2(midr: u64) -> bool {
    matches!(
        model(midr),
        0x4_1d03..=0x4_1d05 | 0x4_2100 | 0x4_8d01 | 0x5_1801 | 0x5_1803 | 0x5_1805
    )
}

fn is_safe_of_bhb(midr: u64) -> bool {
    matches!(
        model(midr),
        0x4_1d03..=0x4_1d05 | 0x4_1d46 | 0x4_1d80 | 0x4_2100 | 0x5_1801 | 0x5_1803 | 0x5_1805
    )
}

/// Branches that a history holds, where that is known; below 256.
fn branches(midr: u64) -> Option<u64> {
    Some(match model(midr) {
        0x4_1d07 | 0x4_1d08 => 8,
        0xc_0ac3 => 11,
        0x4_1d0b..=0x4_1d0e | 0x4_8d02 | 0x5_1804 => 24,
        0x4_1d40..=0x4_1d42 | 0x4_1d44 | 0x4_1d47..=0x4_1d49 | 0x4_1d4b..=0x4_1d4c | 0x4_8d01 => 32,
        0x4_1d4d | 0x4_1d81 | 0x4_1d89 => 38,
        0x4_1d4e | 0x4_1d4f => 132,
        _ => return None,
    })
}

/// What SMCCC_ARCH_FEATURES says of a work-around: 0, to be called; 1, not needed
/// on this CPU; below, nobody knows.
fn by_firmware(answer: i64) -> Defence {
    match answer {
        0 => Defence::Steps,
        1 => Defence::Unaffected,
        _ => Defence::None,
    }
}

impl Speculation {
    /// Of the CPU with these registers. `firmware` is SMCCC_ARCH_FEATURES.
    pub fn of(cpu: &IdRegisters, firmware: impl Fn(u32) -> i64) -> Self {
        let csv2 = ID_AA64PFR0_EL1::CSV2.read(cpu.pfr[0]);
        let none = Steps::default();
        let (v2, by_call) = if csv2 >= 1 || is_safe_of_v2(cpu.midr) {
            (Defence::Unaffected, none)
        } else {
            match by_firmware(firmware(fid::SMCCC_ARCH_WORKAROUND_1)) {
                Defence::Steps => (Defence::Steps, Steps::call(fid::SMCCC_ARCH_WORKAROUND_1)),
                other => (other, none),
            }
        };
        let (bhb, steps) = if csv2 >= 3 || is_safe_of_bhb(cpu.midr) {
            (Defence::Unaffected, by_call)
        } else if v2 == Defence::None {
            // Whoever predicts by all branches needs no history.
            (Defence::None, by_call)
        } else {
            Self::of_history(cpu, by_call, firmware)
        };
        Self { v2, bhb, steps }
    }

    fn of_history(
        cpu: &IdRegisters,
        by_call: Steps,
        firmware: impl Fn(u32) -> i64,
    ) -> (Defence, Steps) {
        let own = if ID_AA64MMFR1_EL1::ECBHB.read(cpu.mmfr[1]) >= 1 {
            Some(Steps::default())
        } else if ID_AA64ISAR2_EL1::CLRBHB.read(cpu.isar[2]) >= 1 {
            Some(Steps::CLEAR)
        } else {
            branches(cpu.midr).map(Steps)
        };
        match own {
            // The call for all branches forgets their history with them.
            Some(own) if by_call == Steps::default() => (Defence::Steps, own),
            Some(_) => (Defence::Steps, by_call),
            None => match by_firmware(firmware(fid::SMCCC_ARCH_WORKAROUND_3)) {
                // It is the other one, and more.
                Defence::Steps => (Defence::Steps, Steps::call(fid::SMCCC_ARCH_WORKAROUND_3)),
                other => (other, by_call),
            },
        }
    }

    /// The worse of both, defence by defence.
    pub fn least(self, other: Self) -> Self {
        Self {
            v2: self.v2.min(other.v2),
            bhb: self.bhb.min(other.bhb),
            ..self
        }
    }
}

impl fmt::Display for Speculation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = |defence| match defence {
            Defence::None => "no defence (newer firmware may have one)",
            Defence::Steps => "kept between worlds",
            Defence::Unaffected => "not affected",
        };
        write!(
            f,
            "Spectre-v2: {}; branch history: {}",
            words(self.v2),
            words(self.bhb)
        )
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::Defence::{None, Steps as Kept, Unaffected};
    use super::*;
    use std::vec::Vec;

    const NOT_SUPPORTED: i64 = -1;
    const WA1: u64 = 0x8000_8000;
    const WA3: u64 = 0x8000_3fff;

    /// CSV2, CLRBHB, ECBHB and the part, by Arm.
    fn cpu(csv2: u64, clrbhb: u64, ecbhb: u64, part: u64) -> IdRegisters {
        IdRegisters {
            pfr: [csv2 << 56, 0],
            isar: [0, 0, clrbhb << 28],
            mmfr: [0, ecbhb << 60, 0, 0, 0],
            midr: 0x410f_0000 | part << 4,
            ..IdRegisters::default()
        }
    }

    #[test]
    fn a_cpu_takes_the_steps_that_it_needs() {
        const NEW: u64 = 0xfff;
        type Case = (IdRegisters, [i64; 2], Defence, Defence, u64);
        let cases: [Case; 17] = [
            // It says that it is not affected, as QEMU's max does.
            (cpu(3, 1, 1, NEW), [0, 0], Unaffected, Unaffected, 0),
            (cpu(3, 0, 0, 0xd0c), [0, 0], Unaffected, Unaffected, 0),
            // Exceptions clear the history, or an instruction does.
            (cpu(2, 1, 1, NEW), [0, 0], Unaffected, Kept, 0),
            (cpu(1, 1, 0, NEW), [0, 0], Unaffected, Kept, 1 << 8),
            // Cortex-A76, A78, A715, X3, Neoverse-N1.
            (cpu(1, 0, 0, 0xd0b), [0, 0], Unaffected, Kept, 24),
            (cpu(1, 0, 0, 0xd41), [0, 0], Unaffected, Kept, 32),
            (cpu(2, 0, 0, 0xd4d), [0, 0], Unaffected, Kept, 38),
            (cpu(2, 0, 0, 0xd4e), [0, 0], Unaffected, Kept, 132),
            (cpu(1, 0, 0, 0xd0c), [-1, -1], Unaffected, Kept, 24),
            // Cortex-A53 and A35: nothing to predict by.
            (cpu(0, 0, 0, 0xd03), [-1, -1], Unaffected, Unaffected, 0),
            (cpu(0, 0, 0, 0xd04), [-1, -1], Unaffected, Unaffected, 0),
            // Cortex-A72: the firmware's call, which does for both; or nothing.
            (cpu(0, 0, 0, 0xd08), [0, 0], Kept, Kept, WA1),
            (cpu(0, 1, 0, 0xd08), [0, 0], Kept, Kept, WA1),
            (cpu(0, 0, 0, 0xd08), [-1, -1], None, None, 0),
            (cpu(0, 0, 0, 0xd08), [1, -1], Unaffected, Kept, 8),
            // Cortex-A73: its branches by one call, its history by the other.
            (cpu(0, 0, 0, 0xd09), [0, 0], Kept, Kept, WA3),
            (cpu(0, 0, 0, 0xd09), [0, -1], Kept, None, WA1),
        ];
        for (n, (cpu, firmware, v2, bhb, steps)) in cases.into_iter().enumerate() {
            let answers = |function: u32| match u64::from(function) {
                WA1 => firmware[0],
                WA3 => firmware[1],
                _ => NOT_SUPPORTED,
            };
            let found = Speculation::of(&cpu, answers);
            let right = Speculation {
                v2,
                bhb,
                steps: Steps(steps),
            };
            assert_eq!(found, right, "{n}");
        }
    }

    /// Implementer and part: those that predict nothing by another world's branches,
    /// those that predict nothing by its history, and how many branches are one.
    #[test]
    fn the_lists_have_the_cpus_that_their_designers_name() {
        const V2: &[u64] = &[
            0x4_1d03, 0x4_1d04, 0x4_1d05, 0x4_2100, 0x4_8d01, 0x5_1801, 0x5_1803, 0x5_1805,
        ];
        const BHB: &[u64] = &[
            0x4_1d03, 0x4_1d04, 0x4_1d05, 0x4_1d46, 0x4_1d80, 0x4_2100, 0x5_1801, 0x5_1803,
            0x5_1805,
        ];
        const HISTORY: &[(u64, &[u64])] = &[
            (8, &[0x4_1d07, 0x4_1d08]),
            (11, &[0xc_0ac3]),
            (
                24,
                &[0x4_1d0b, 0x4_1d0c, 0x4_1d0d, 0x4_1d0e, 0x4_8d02, 0x5_1804],
            ),
            (
                32,
                &[
                    0x4_1d40, 0x4_1d41, 0x4_1d42, 0x4_1d44, 0x4_1d47, 0x4_1d48, 0x4_1d49, 0x4_1d4b,
                    0x4_1d4c, 0x4_8d01,
                ],
            ),
            (38, &[0x4_1d4d, 0x4_1d81, 0x4_1d89]),
            (132, &[0x4_1d4e, 0x4_1d4f]),
        ];
        for model in 0..0x10_0000u64 {
            // Variant, architecture and revision do not count.
            let midr = (model >> 12) << 24 | (model & 0xfff) << 4 | 0x3f_0002;
            assert_eq!(is_safe_of_v2(midr), V2.contains(&model), "{model:#x}");
            assert_eq!(is_safe_of_bhb(midr), BHB.contains(&model), "{model:#x}");
            let history = HISTORY.iter().find(|(_, of)| of.contains(&model));
            assert_eq!(branches(midr), history.map(|(n, _)| *n), "{model:#x}");
        }
    }

    /// asm.S tells them apart by bits 31 and 8, and counts in the lowest 8.
    #[test]
    fn each_step_has_bits_of_its_own() {
        for part in 0..0x1000 {
            let count = branches(0x410f_0000 | part << 4).unwrap_or(1);
            assert!((1..256).contains(&count));
        }
        for function in [WA1, WA3] {
            assert_eq!(Steps::call(function as u32).0 >> 31, 1);
        }
        assert_eq!(Steps::CLEAR.and(Steps::WITHOUT_RAS).0, 1 << 32 | 1 << 8);
    }

    #[test]
    fn the_firmware_is_asked_where_nothing_else_says() {
        for (cpu, asked) in [
            (cpu(3, 0, 0, 0xfff), [].as_slice()),
            (cpu(1, 0, 0, 0xd0b), &[]),
            (cpu(0, 0, 0, 0xd03), &[]),
            (cpu(0, 0, 0, 0xd08), &[WA1]),
            (cpu(1, 0, 0, 0xfff), &[WA3]),
        ] {
            let calls = core::cell::RefCell::new(Vec::new());
            Speculation::of(&cpu, |function| {
                calls.borrow_mut().push(u64::from(function));
                NOT_SUPPORTED
            });
            assert_eq!(calls.take(), asked);
        }
    }

    #[test]
    fn a_machine_is_as_its_worst_cpus() {
        let good = Speculation::of(&cpu(3, 0, 0, 0), |_| NOT_SUPPORTED);
        let kept = Speculation::of(&cpu(1, 0, 0, 0xd0b), |_| NOT_SUPPORTED);
        let bad = Speculation::of(&cpu(0, 0, 0, 0xd08), |_| NOT_SUPPORTED);
        assert_eq!(good.least(kept).bhb, Kept);
        assert_eq!(kept.least(good).bhb, Kept);
        assert_eq!(kept.least(bad).v2, None);
    }
}

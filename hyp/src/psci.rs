//! PSCI towards the firmware: what the host asks, relayed.
//!
//! The host's PSCI calls trap here. Power is the firmware's, but a PE that
//! starts must start in EL2, so `CPU_ON` goes down with EL2's own entry and the
//! host's is kept for it.

use rmi::{fid, psci};

#[cfg(not(target_os = "none"))]
pub mod fake;

use crate::cpu::instr;
use crate::cpu::pe::{self, Pe, Power};

/// Turns the machine off.
pub fn system_off() {
    instr::smc(u64::from(fid::PSCI_SYSTEM_OFF), [0; 3]);
}

/// Serves a PSCI or SMCCC call of the host: X0 of the answer, or `None` when it
/// is none of those.
pub fn relay(function: u64, args: [u64; 3]) -> Option<u64> {
    let relay = Relay {
        pes: pe::all(),
        me: pe::find(crate::mrs!("mpidr_el1")),
        firmware: &Smc,
    };
    relay.call(function, args)
}

/// Turns this PE off again that was started and will not do.
pub fn refuse_start(pe: &Pe) {
    refuse(pe, &Smc);
}

fn refuse(pe: &Pe, firmware: &impl Firmware) {
    pe.arrive(Power::Off);
    firmware.call(fid::PSCI_CPU_OFF, [0; 3]);
}

/// Whoever has the machine's power: EL3, or a model of it.
pub trait Firmware {
    /// A PSCI call with SMC64's arguments; X0 of the answer.
    fn call(&self, function: u32, args: [u64; 3]) -> i64;
    /// Where a PE starts, for `CPU_ON`: EL2's own entry.
    fn entry(&self) -> u64;
    /// Waits until an interrupt is pending.
    fn standby(&self);
}

/// The firmware under EL2.
struct Smc;

impl Firmware for Smc {
    fn call(&self, function: u32, args: [u64; 3]) -> i64 {
        let call = || instr::smc(u64::from(function), args) as i64;
        match function {
            fid::PSCI_SYSTEM_OFF | fid::PSCI_SYSTEM_RESET => crate::log::closing(call),
            _ => call(),
        }
    }

    fn entry(&self) -> u64 {
        #[cfg(target_os = "none")]
        {
            unsafe extern "C" {
                fn secondary_entry();
            }
            secondary_entry as *const () as u64
        }
        #[cfg(not(target_os = "none"))]
        0
    }

    fn standby(&self) {
        instr::wfi();
    }
}

/// One PE's call on its way.
#[derive(Debug)]
pub struct Relay<'a, F> {
    /// All PEs that EL2 drives.
    pub pes: &'a [Pe],
    /// The one that calls.
    pub me: Option<&'a Pe>,
    /// What it is relayed to.
    pub firmware: &'a F,
}

impl<F: Firmware> Relay<'_, F> {
    /// Serves a call: X0 of the answer, or `None` when it is neither PSCI's nor
    /// the SMCCC's.
    pub fn call(&self, function: u64, args: [u64; 3]) -> Option<u64> {
        let function = u32::try_from(function).ok()?;
        // A 32-bit call counts the low halves only (SMCCC 1.2, 3.1).
        let narrow = function & 1 << 30 == 0;
        let args = args.map(|arg| if narrow { arg & 0xffff_ffff } else { arg });
        let answer = match function {
            fid::SMCCC_VERSION => psci::SMCCC_VERSION_1_2 as i64,
            fid::PSCI_VERSION => psci::VERSION_1_1 as i64,
            fid::PSCI_CPU_ON_32 | fid::PSCI_CPU_ON_64 => self.cpu_on(args),
            fid::PSCI_AFFINITY_INFO_32 | fid::PSCI_AFFINITY_INFO_64 => {
                self.affinity_info(args[0], args[1])
            }
            // Standby only: EL2 keeps its state, and any interrupt ends the wait.
            fid::PSCI_CPU_SUSPEND_32 | fid::PSCI_CPU_SUSPEND_64 => {
                self.firmware.standby();
                psci::SUCCESS
            }
            fid::PSCI_CPU_OFF => self.cpu_off(),
            fid::PSCI_MIGRATE_INFO_TYPE => psci::MIGRATE_NOT_REQUIRED,
            fid::PSCI_SYSTEM_OFF | fid::PSCI_SYSTEM_RESET => self.firmware.call(function, [0; 3]),
            fid::PSCI_FEATURES => features(args[0]),
            0x8400_0000..=0x8400_001f | 0xc400_0000..=0xc400_001f => psci::NOT_SUPPORTED,
            _ => return None,
        };
        Some(answer as u64)
    }

    /// The PE at this affinity, as a caller names it: other bits must be zero.
    fn at(&self, affinity: u64) -> Option<&Pe> {
        self.pes.iter().find(|pe| pe.mpidr == affinity)
    }

    fn affinity_info(&self, target: u64, level: u64) -> i64 {
        let pe = self.at(target).filter(|_| level == 0);
        match pe.map(Pe::power) {
            None => psci::INVALID_PARAMETERS,
            Some(Power::Starting) => psci::AFFINITY_ON_PENDING,
            Some(Power::On) => psci::AFFINITY_ON,
            // On its way out of CPU_OFF it is off for the firmware only when it
            // has got there: from then on a CPU_ON works.
            Some(Power::Off) => {
                let asked = [target, 0, 0];
                match self.firmware.call(fid::PSCI_AFFINITY_INFO_64, asked) {
                    state @ (psci::AFFINITY_ON | psci::AFFINITY_ON_PENDING) => state,
                    _ => psci::AFFINITY_OFF,
                }
            }
        }
    }

    fn cpu_on(&self, [target, entry, context]: [u64; 3]) -> i64 {
        let Some(pe) = self.at(target) else {
            return psci::INVALID_PARAMETERS;
        };
        let claim = match pe.claim_start(entry, context) {
            Err(Power::Starting) => return psci::ON_PENDING,
            Err(_) => return psci::ALREADY_ON,
            Ok(claim) => claim,
        };
        let start = [
            pe.mpidr,
            self.firmware.entry(),
            core::ptr::from_ref(pe) as u64,
        ];
        let answer = self.firmware.call(fid::PSCI_CPU_ON_64, start);
        if answer != psci::SUCCESS {
            pe.give_up_start(claim);
        }
        answer
    }

    /// Does not come back, unless the firmware denies it.
    fn cpu_off(&self) -> i64 {
        if let Some(pe) = self.me
            && !pe.leave()
        {
            return psci::DENIED;
        }
        let answer = self.firmware.call(fid::PSCI_CPU_OFF, [0; 3]);
        if let Some(pe) = self.me {
            pe.stay();
        }
        answer
    }
}

fn features(function: u64) -> i64 {
    match function as u32 {
        fid::SMCCC_VERSION
        | fid::PSCI_VERSION
        | fid::PSCI_CPU_ON_32
        | fid::PSCI_CPU_ON_64
        | fid::PSCI_AFFINITY_INFO_32
        | fid::PSCI_AFFINITY_INFO_64
        | fid::PSCI_CPU_SUSPEND_32
        | fid::PSCI_CPU_SUSPEND_64
        | fid::PSCI_CPU_OFF
        | fid::PSCI_MIGRATE_INFO_TYPE
        | fid::PSCI_SYSTEM_OFF
        | fid::PSCI_SYSTEM_RESET
        | fid::PSCI_FEATURES => psci::SUCCESS,
        _ => psci::NOT_SUPPORTED,
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::cpu::pe::{Regime, Stacks};
    use crate::memory::region::Region;
    use core::cell::{Cell, RefCell};
    use proptest::prelude::*;
    use std::vec::Vec;

    /// A firmware that answers everything alike, and what it was asked.
    struct Says {
        answer: i64,
        asked: RefCell<Vec<(u32, [u64; 3])>>,
        waited: Cell<u32>,
    }

    impl Firmware for Says {
        fn call(&self, function: u32, args: [u64; 3]) -> i64 {
            self.asked.borrow_mut().push((function, args));
            self.answer
        }
        fn entry(&self) -> u64 {
            0x4008_0000
        }
        fn standby(&self) {
            self.waited.set(self.waited.get() + 1);
        }
    }

    fn says(answer: i64) -> Says {
        Says {
            answer,
            asked: RefCell::default(),
            waited: Cell::default(),
        }
    }

    /// PEs 0 and 1, which are off.
    fn two() -> [Pe; 2] {
        let stacks = Region::new(0, 2 * Stacks::stride(0x1000)).expect("no overflow");
        let stacks = Stacks::new(stacks, 0x1000);
        [0, 1].map(|n| Pe::new(n, n as u64, 0, &stacks, Regime::default(), 0))
    }

    #[track_caller]
    fn answers(pes: &[Pe], firmware: &Says, function: u32, args: [u64; 3], expected: i64) {
        let relay = Relay {
            pes,
            me: pes.first(),
            firmware,
        };
        let answer = relay.call(function.into(), args).map(|x0| x0 as i64);
        assert_eq!(answer, Some(expected), "{function:#x} {args:x?}");
    }

    #[test]
    fn every_function_that_features_names_is_served() {
        let (pes, firmware) = (two(), says(psci::SUCCESS));
        for function in (0x8400_0000u32..0x8400_0020).chain(0xc400_0000..0xc400_0020) {
            let relay = Relay {
                pes: &pes,
                me: None,
                firmware: &firmware,
            };
            let args = [fid::PSCI_VERSION.into(), 0, 0];
            let served = relay.call(function.into(), args) != Some(psci::NOT_SUPPORTED as u64);
            let told = features(function.into()) == psci::SUCCESS;
            assert_eq!(told, served, "{function:#x}");
        }
    }

    #[test]
    fn affinities_are_whole_and_of_level_0() {
        let (pes, firmware) = (two(), says(psci::AFFINITY_OFF));
        let on = fid::PSCI_CPU_ON_64;
        let info = fid::PSCI_AFFINITY_INFO_64;
        for bits in [2, 1 << 8, 1 << 24, 1 << 31, 1 << 32, 1 << 63] {
            for function in [on, info] {
                let args = [bits | 1, 0, 0];
                answers(&pes, &firmware, function, args, psci::INVALID_PARAMETERS);
            }
        }
        answers(&pes, &firmware, info, [1, 1, 0], psci::INVALID_PARAMETERS);
        assert_eq!(firmware.asked.take(), []);
        // A 32-bit call has no upper halves.
        let high = 7 << 32;
        let args = [high | 1, high, high];
        answers(
            &pes,
            &firmware,
            fid::PSCI_AFFINITY_INFO_32,
            args,
            psci::AFFINITY_OFF,
        );
        answers(
            &pes,
            &firmware,
            fid::PSCI_CPU_ON_32,
            [high | 1, high | 8, high | 9],
            1,
        );
        let block = core::ptr::from_ref(&pes[1]) as u64;
        let asked = [
            (fid::PSCI_AFFINITY_INFO_64, [1, 0, 0]),
            (fid::PSCI_CPU_ON_64, [1, 0x4008_0000, block]),
        ];
        assert_eq!(firmware.asked.take(), asked);
        assert_eq!(pes[1].start(), (8, 9));
    }

    #[test]
    fn a_pe_is_off_when_the_firmware_says_so() {
        let pes = two();
        let info = fid::PSCI_AFFINITY_INFO_64;
        for (firmware, told) in [
            (psci::AFFINITY_ON, psci::AFFINITY_ON),
            (psci::AFFINITY_ON_PENDING, psci::AFFINITY_ON_PENDING),
            (psci::AFFINITY_OFF, psci::AFFINITY_OFF),
            (psci::INVALID_PARAMETERS, psci::AFFINITY_OFF),
        ] {
            answers(&pes, &says(firmware), info, [1, 0, 0], told);
        }
        let firmware = says(psci::SUCCESS);
        answers(
            &pes,
            &firmware,
            fid::PSCI_CPU_ON_64,
            [1, 0, 0],
            psci::SUCCESS,
        );
        for (power, of_on, of_info) in [
            (Power::Starting, psci::ON_PENDING, psci::AFFINITY_ON_PENDING),
            (Power::On, psci::ALREADY_ON, psci::AFFINITY_ON),
        ] {
            pes[1].arrive(power);
            answers(&pes, &firmware, fid::PSCI_CPU_ON_64, [1, 0, 0], of_on);
            answers(&pes, &firmware, info, [1, 0, 0], of_info);
        }
        assert_eq!(firmware.asked.borrow().len(), 1, "the first start alone");
    }

    #[test]
    fn a_suspended_pe_waits() {
        let (pes, firmware) = (two(), says(psci::DENIED));
        for function in [fid::PSCI_CPU_SUSPEND_32, fid::PSCI_CPU_SUSPEND_64] {
            answers(&pes, &firmware, function, [0; 3], psci::SUCCESS);
        }
        assert_eq!(
            (firmware.waited.get(), firmware.asked.take()),
            (2, Vec::new())
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

        /// Whatever PEs turn themselves off and each other on, and whatever the
        /// firmware refuses meanwhile.
        #[test]
        fn cpus_go_off_and_on_in_any_order(
            count in 1usize..4,
            input in prop::collection::vec(prop_oneof![any::<u8>(), 0u8..4], 1..256),
        ) {
            fake::run(count, &input);
        }
    }

    /// One PE claims the other's start while that is on its way out of a
    /// `CPU_OFF` that the firmware denies, and is off for good, by the next, when
    /// the firmware is asked to start it.
    #[test]
    fn a_claim_outlives_a_denied_cpu_off() {
        let input = [
            0, 169, 0, 0, 2, 0, 0, 53, 0, 0, 0, 0, 0, 0, 71, 0, 0, 0, 0, 0, 0, 133, 0, 0, 109, 24,
            0, 0, 1, 30, 49, 0, 0, 20, 219, 0, 0, 0, 11, 0, 53, 0, 0, 0, 0, 0, 0, 0, 11, 0, 0, 0,
            7, 0, 0, 49, 46, 0, 0, 7, 1, 0, 14, 118, 0, 55, 161, 53, 0, 0, 5, 172, 0, 0, 215, 2,
        ];
        fake::run(2, &input);
    }
}

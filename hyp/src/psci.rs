//! PSCI towards the firmware: what the host asks, relayed.
//!
//! The host's PSCI calls trap here. Power is the firmware's, but a PE that
//! starts must start in EL2, so `CPU_ON` goes down with EL2's own entry and the
//! host's is kept for it.

use rmi::{fid, psci};

#[cfg(not(target_os = "none"))]
pub mod fake;
#[cfg(test)]
mod tests;

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

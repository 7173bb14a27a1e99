//! PSCI towards the firmware: what the host asks, relayed.
//!
//! The host's PSCI calls trap here. Power is the firmware's, but a PE that
//! starts must start in EL2, so `CPU_ON` goes down with EL2's own entry and the
//! host's is kept for it.

use rmi::fid;
use rmi::psci::{self, Psci};

#[cfg(not(target_os = "none"))]
pub mod fake;
#[cfg(test)]
mod tests;

use arm64::regs::{CNTPCT_EL0, HCR_EL2, ID_AA64PFR0_EL1, affinity};
use arm64::steering::smc;
use arm64::{bits, instr};
use log::warn;

use crate::cpu::dying::stop_if_dying;
use crate::cpu::pe::{self, Pe, Power, ticks};

/// Calls the firmware with SMC64's arguments; X0 of the answer.
fn firmware(function: u32, [a, b, c]: [u64; 3]) -> u64 {
    // SAFETY: PSCI's power calls write no memory; a PE that they start begins at
    // EL2's own entry.
    unsafe { smc([function.into(), a, b, c, 0, 0])[0] }
}

/// Turns the machine off.
pub fn system_off() {
    firmware(fid::PSCI_SYSTEM_OFF, [0; 3]);
}

/// What the firmware answers to SMCCC_ARCH_FEATURES: below 0 where it, or that
/// question, is not there.
pub fn arch_features(function: u32) -> i64 {
    if !has_conventions() {
        return psci::NOT_SUPPORTED;
    }
    asked(fid::SMCCC_ARCH_FEATURES, function).into()
}

/// 192 bits of the firmware's entropy (TRNG_RND; DEN0098, 2.4), where it has any.
pub fn entropy() -> Option<[u64; 3]> {
    if !has_conventions() || asked(fid::TRNG_VERSION, 0) < 1 << 16 {
        return None;
    }
    // SAFETY: the call writes no memory.
    let [status, words @ .., _] = unsafe { smc([fid::TRNG_RND.into(), 192, 0, 0, 0, 0]) };
    (status == 0).then_some(words)
}

/// There is a firmware, and it tells what it has beyond PSCI.
fn has_conventions() -> bool {
    let no_el3 = ID_AA64PFR0_EL1.read(ID_AA64PFR0_EL1::EL3) == 0;
    !no_el3 && asked(fid::PSCI_FEATURES, fid::SMCCC_VERSION) >= 0
}

fn asked(function: u32, about: u32) -> i32 {
    firmware(function, [about.into(), 0, 0]) as i32
}

/// Serves a PSCI call of the host: X0 of the answer.
pub fn relay(call: Psci) -> i64 {
    let relay = Relay {
        pes: pe::all(),
        me: pe::find(affinity()),
        firmware: &Smc,
    };
    relay.call(call)
}

/// Turns this PE off again that was started and will not do.
pub fn refuse_start(pe: &Pe) {
    refuse(pe, &Smc);
}

fn refuse(pe: &Pe, firmware: &impl Firmware) {
    pe.arrive_unfit();
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
    /// What the counter says, in ticks.
    fn now(&self) -> u64;
    /// How many ticks a PE that was started is waited for.
    fn patience(&self) -> u64;
    /// Waits a moment for what another PE does.
    fn pause(&self);
}

/// Seconds that a PE that was started is waited for: more than any takes, few enough
/// for who starts it.
const PATIENCE: u64 = 5;

/// The firmware under EL2.
struct Smc;

impl Firmware for Smc {
    fn call(&self, function: u32, args: [u64; 3]) -> i64 {
        let call = || firmware(function, args) as i64;
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

    /// Only what is this level's to take, masked or not, wakes it (DDI0487, Wait for
    /// Interrupt): the host's interrupts are, meanwhile.
    fn standby(&self) {
        let hcr = HCR_EL2.get();
        instr::dsb_sy();
        // SAFETY: it is the host's again before the host runs.
        unsafe { HCR_EL2.steer(hcr | bits!(HCR_EL2: FMO, IMO)) };
        instr::isb();
        instr::wfi();
        // SAFETY: as above.
        unsafe { HCR_EL2.steer(hcr) };
        instr::isb();
    }

    fn now(&self) -> u64 {
        CNTPCT_EL0.get()
    }

    fn patience(&self) -> u64 {
        ticks(PATIENCE)
    }

    /// Not by WFE: nothing need ever wake a PE whose firmware loses the other.
    fn pause(&self) {
        stop_if_dying();
        core::hint::spin_loop();
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
    /// Serves a call: X0 of the answer.
    pub fn call(&self, call: Psci) -> i64 {
        match call {
            Psci::Version => psci::VERSION_1_1 as i64,
            Psci::CpuOn {
                target,
                entry,
                context,
            } => self.cpu_on(target, entry, context),
            Psci::AffinityInfo { target, level } => self.affinity_info(target, level),
            // Standby only: EL2 keeps its state, and any interrupt ends the wait.
            Psci::CpuSuspend { .. } => {
                self.firmware.standby();
                psci::SUCCESS
            }
            Psci::CpuOff => self.cpu_off(),
            Psci::MigrateInfoType => psci::MIGRATE_NOT_REQUIRED,
            Psci::SystemOff => self.firmware.call(fid::PSCI_SYSTEM_OFF, [0; 3]),
            Psci::SystemReset => self.firmware.call(fid::PSCI_SYSTEM_RESET, [0; 3]),
            Psci::Features { function } => psci::features(function),
        }
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
                match self.firmware.call(fid::PSCI_AFFINITY_INFO, asked) {
                    state @ (psci::AFFINITY_ON | psci::AFFINITY_ON_PENDING) => state,
                    _ => psci::AFFINITY_OFF,
                }
            }
        }
    }

    fn cpu_on(&self, target: u64, entry: u64, context: u64) -> i64 {
        let Some(pe) = self.at(target) else {
            return psci::INVALID_PARAMETERS;
        };
        if pe.is_unfit() {
            return psci::INTERNAL_FAILURE;
        }
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
        // Where it begins is a store that has been made, but need not be seen: a store
        // does not wait for those before it that release, and what turns the PE on is
        // the firmware's store to a device.
        instr::dsb_ishst();
        let answer = self.firmware.call(fid::PSCI_CPU_ON, start);
        if answer != psci::SUCCESS {
            pe.give_up_start(claim);
            return answer;
        }
        // Only on itself does it find whether it will do.
        let begin = self.firmware.now();
        while pe.is_started_by(claim) {
            if self.firmware.now().wrapping_sub(begin) > self.firmware.patience() {
                // It may come yet, and begins where it was told then: no failure.
                warn!("cpu {:#x} was started and does not come", pe.mpidr);
                return answer;
            }
            self.firmware.pause();
        }
        if pe.is_unfit() {
            return psci::INTERNAL_FAILURE;
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

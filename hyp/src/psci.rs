//! PSCI towards the firmware: what the host asks, relayed.
//!
//! The host's PSCI calls trap here. Power is the firmware's, but a PE that
//! starts must start in EL2, so `CPU_ON` goes down with EL2's own entry and the
//! host's is kept for it.

use rmi::{fid, psci};

use crate::cpu::instr;
use crate::cpu::pe::{self, Power};

/// Turns the machine off.
pub fn system_off() {
    instr::smc(u64::from(fid::PSCI_SYSTEM_OFF), [0; 3]);
}

/// Serves a PSCI or SMCCC call of the host: X0 of the answer, or `None` when it
/// is none of those.
pub fn relay(function: u64, args: [u64; 3]) -> Option<u64> {
    let function = u32::try_from(function).ok()?;
    // A 32-bit call counts the low halves only (SMCCC 1.2, 3.1).
    let narrow = function & 1 << 30 == 0;
    let args = args.map(|arg| if narrow { arg & 0xffff_ffff } else { arg });
    let answer = match function {
        fid::SMCCC_VERSION => psci::SMCCC_VERSION_1_2 as i64,
        fid::PSCI_VERSION => psci::VERSION_1_1 as i64,
        fid::PSCI_CPU_ON_32 | fid::PSCI_CPU_ON_64 => cpu_on(args),
        fid::PSCI_AFFINITY_INFO_32 | fid::PSCI_AFFINITY_INFO_64 => affinity_info(args[0], args[1]),
        // Standby only: EL2 keeps its state, and any interrupt ends the wait.
        fid::PSCI_CPU_SUSPEND_32 | fid::PSCI_CPU_SUSPEND_64 => {
            instr::wfi();
            psci::SUCCESS
        }
        fid::PSCI_CPU_OFF => cpu_off(),
        fid::PSCI_MIGRATE_INFO_TYPE => psci::MIGRATE_NOT_REQUIRED,
        fid::PSCI_SYSTEM_OFF | fid::PSCI_SYSTEM_RESET => {
            crate::log::closing(|| instr::smc(u64::from(function), [0; 3]) as i64)
        }
        fid::PSCI_FEATURES => features(args[0]),
        0x8400_0000..=0x8400_001f | 0xc400_0000..=0xc400_001f => psci::NOT_SUPPORTED,
        _ => return None,
    };
    Some(answer as u64)
}

fn affinity_info(target: u64, level: u64) -> i64 {
    let pe = pe::at(target).filter(|_| level == 0);
    match pe.map(pe::Pe::power) {
        None => psci::INVALID_PARAMETERS,
        Some(Power::Starting) => psci::AFFINITY_ON_PENDING,
        Some(Power::On) => psci::AFFINITY_ON,
        // On its way out of CPU_OFF it is off for the firmware only when it has
        // got there: from then on a CPU_ON works.
        Some(Power::Off) => {
            let function = u64::from(fid::PSCI_AFFINITY_INFO_64);
            match instr::smc(function, [target, 0, 0]) as i64 {
                state @ (psci::AFFINITY_ON | psci::AFFINITY_ON_PENDING) => state,
                _ => psci::AFFINITY_OFF,
            }
        }
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

fn cpu_on([target, entry, context]: [u64; 3]) -> i64 {
    let Some(pe) = pe::at(target) else {
        return psci::INVALID_PARAMETERS;
    };
    match pe.claim_start(entry, context) {
        Err(Power::Starting) => return psci::ON_PENDING,
        Err(_) => return psci::ALREADY_ON,
        Ok(()) => {}
    }
    let answer = start(pe) as i64;
    if answer != psci::SUCCESS {
        pe.give_up_start();
    }
    answer
}

/// Has the firmware start the PE in EL2.
fn start(pe: &'static pe::Pe) -> u64 {
    #[cfg(target_os = "none")]
    {
        unsafe extern "C" {
            fn secondary_entry();
        }
        let entry = secondary_entry as *const () as u64;
        instr::smc(
            u64::from(fid::PSCI_CPU_ON_64),
            [pe.mpidr, entry, core::ptr::from_ref(pe) as u64],
        )
    }
    #[cfg(not(target_os = "none"))]
    {
        let _ = pe;
        rmi::NOT_SUPPORTED
    }
}

/// Turns this PE off again that was started and will not do.
pub fn refuse_start(pe: &pe::Pe) {
    pe.set_power(Power::Off);
    instr::smc(u64::from(fid::PSCI_CPU_OFF), [0; 3]);
}

/// Does not come back, unless the firmware denies it.
fn cpu_off() -> i64 {
    let me = pe::find(crate::mrs!("mpidr_el1"));
    if let Some(pe) = me {
        pe.set_power(Power::Off);
    }
    let answer = instr::smc(u64::from(fid::PSCI_CPU_OFF), [0; 3]) as i64;
    if let Some(pe) = me {
        pe.set_power(Power::On);
    }
    answer
}

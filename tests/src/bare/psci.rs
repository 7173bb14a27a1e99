//! PSCI 1.1 (DEN0022), as the device tree says it is called.

use super::asm::{Conduit, call, wfe};
use super::{console, machine, pl011};

/// Function identifiers; `_64` is the SMC64 form.
pub mod fid {
    #![allow(missing_docs)] // the names are the specification's
    pub const VERSION: u64 = 0x8400_0000;
    pub const CPU_SUSPEND: u64 = 0x8400_0001;
    pub const CPU_SUSPEND_64: u64 = 0xC400_0001;
    pub const CPU_OFF: u64 = 0x8400_0002;
    pub const CPU_ON: u64 = 0x8400_0003;
    pub const CPU_ON_64: u64 = 0xC400_0003;
    pub const AFFINITY_INFO: u64 = 0x8400_0004;
    pub const AFFINITY_INFO_64: u64 = 0xC400_0004;
    pub const MIGRATE_INFO_TYPE: u64 = 0x8400_0006;
    pub const SYSTEM_OFF: u64 = 0x8400_0008;
    pub const SYSTEM_RESET: u64 = 0x8400_0009;
    pub const FEATURES: u64 = 0x8400_000A;
    pub const SMCCC_VERSION: u64 = 0x8000_0000;
}

/// Calls by the device tree's conduit; the first result.
pub fn psci(function: u64, a: u64, b: u64, c: u64) -> i64 {
    call_by(machine::get().conduit, function, a, b, c)
}

/// Calls by a conduit of the caller's choice; the first result.
pub fn call_by(conduit: Conduit, function: u64, a: u64, b: u64, c: u64) -> i64 {
    call(conduit, [function, a, b, c, 0, 0, 0, 0])[0] as i64
}

/// The state of a CPU: 0 on, 1 off, 2 on its way.
pub fn affinity_info(mpidr: u64) -> i64 {
    psci(fid::AFFINITY_INFO_64, mpidr, 0, 0)
}

/// Ends the machine.
pub fn system_off() -> ! {
    pl011::flush(machine::get().uart);
    psci(fid::SYSTEM_OFF, 0, 0, 0);
    end("SYSTEM_OFF")
}

/// Starts the machine again.
pub fn system_reset() -> ! {
    pl011::flush(machine::get().uart);
    psci(fid::SYSTEM_RESET, 0, 0, 0);
    end("SYSTEM_RESET")
}

fn end(function: &str) -> ! {
    console::unlock();
    crate::println!("FAIL psci/{function}: it came back");
    loop {
        wfe();
    }
}

//! PSCI 1.1 (DEN0022): its calls, return values and states.
//!
//! The answer is in X0: one of the codes here, or what the call asks for.

use crate::fid::SMCCC_VERSION;
use crate::smccc::{SMC64, counted};
use crate::table::calls;

calls! {
    /// A call about power.
    enum Psci(u32), "", 3 arguments;

    /// The interface's version.
    0x8400_0000 PSCI_VERSION = Version;
    /// Waits for an interrupt, or goes off until one.
    0xC400_0001 PSCI_CPU_SUSPEND = CpuSuspend { state, entry, context };
    /// Turns the calling CPU off.
    0x8400_0002 PSCI_CPU_OFF = CpuOff;
    /// Starts the CPU of the MPIDR `target` at `entry`, with `context` in X0.
    0xC400_0003 PSCI_CPU_ON = CpuOn { target, entry, context };
    /// Whether the CPU of the MPIDR `target` is on.
    0xC400_0004 PSCI_AFFINITY_INFO = AffinityInfo { target, level };
    /// Which kind of trusted OS there is.
    0x8400_0006 PSCI_MIGRATE_INFO_TYPE = MigrateInfoType;
    /// Turns the machine off.
    0x8400_0008 PSCI_SYSTEM_OFF = SystemOff;
    /// Starts the machine anew.
    0x8400_0009 PSCI_SYSTEM_RESET = SystemReset;
    /// Whether the function is there.
    0x8400_000A PSCI_FEATURES = Features { function };
}

impl Psci {
    /// The call of either form.
    pub const fn read(function: u32, registers: [u64; 3]) -> Option<Self> {
        let registers = counted(function, registers);
        match Self::decode(function, registers) {
            None => Self::decode(function | SMC64, registers),
            found => found,
        }
    }
}

/// What `PSCI_FEATURES` answers of a function, wherever every call of the table
/// is served: all of them, and that SMCCC has a version (DEN0022, 5.1.15).
pub const fn features(function: u64) -> i64 {
    let function = function as u32;
    if function == SMCCC_VERSION || Psci::read(function, [0; 3]).is_some() {
        SUCCESS
    } else {
        NOT_SUPPORTED
    }
}

/// MEM_PROTECT (DEN0022, 5.1.20), which no lower level has: `[1]` has RAM cleared after
/// a reset, `[0]` not; what was before.
pub const MEM_PROTECT: u32 = 0x8400_0013;
/// MEM_PROTECT_CHECK_RANGE (5.1.21): whether `[base, length]` is cleared then.
pub const MEM_PROTECT_CHECK_RANGE: u32 = 0xC400_0014;

/// The call did what it says.
pub const SUCCESS: i64 = 0;
/// The function, or this use of it, is not there.
pub const NOT_SUPPORTED: i64 = -1;
/// A parameter names nothing.
pub const INVALID_PARAMETERS: i64 = -2;
/// Refused.
pub const DENIED: i64 = -3;
/// The CPU is on.
pub const ALREADY_ON: i64 = -4;
/// A `CPU_ON` for it is under way.
pub const ON_PENDING: i64 = -5;
/// The call failed inside.
pub const INTERNAL_FAILURE: i64 = -6;
/// The entry point is no address of the guest's.
pub const INVALID_ADDRESS: i64 = -9;

/// `AFFINITY_INFO`: at least one CPU is on.
pub const AFFINITY_ON: i64 = 0;
/// `AFFINITY_INFO`: all are off.
pub const AFFINITY_OFF: i64 = 1;
/// `AFFINITY_INFO`: a `CPU_ON` is under way.
pub const AFFINITY_ON_PENDING: i64 = 2;

/// The PSCI version that guests see: 1.1.
pub const VERSION_1_1: u64 = 0x1_0001;
/// `MIGRATE_INFO_TYPE`: no trusted OS, or none that needs migration.
pub const MIGRATE_NOT_REQUIRED: i64 = 2;

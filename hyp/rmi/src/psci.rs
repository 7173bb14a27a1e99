//! PSCI 1.1 return values and states (DEN0022, 5.2).

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

/// The PSCI version that guests are told: 1.1.
pub const VERSION_1_1: u64 = 0x1_0001;
/// The SMCCC version that guests are told: 1.2.
pub const SMCCC_VERSION_1_2: u64 = 0x1_0002;
/// `MIGRATE_INFO_TYPE`: no trusted OS, or none that needs migration.
pub const MIGRATE_NOT_REQUIRED: i64 = 2;

//! Exceptions: the host's traps, and EL2's own.

pub mod host;
pub mod redistributor;
pub mod report;

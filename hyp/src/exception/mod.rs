//! Exceptions: the host's traps, injection into lower levels, and EL2's own.

pub mod host;
pub mod inject;
pub mod redistributor;
pub mod report;

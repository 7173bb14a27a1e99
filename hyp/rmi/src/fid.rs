//! Function identifiers (SMCCC 1.2: bit 31 fast, bit 30 SMC64, 29:24 owner), by
//! the names of their specifications. Each stands in the row of its call: here
//! they are all together. Those of the vendor range are [`crate::vendor`]'s.

pub use crate::command::fid::*;
pub use crate::psci::fid::*;
pub use crate::rsi::fid::*;
pub use crate::smccc::fid::*;
pub use crate::smccc::trng::fid::*;

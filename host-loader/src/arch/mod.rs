//! What only this processor has: entry, translation, CPUs, reports, and bytes in
//! bulk, which stand natively too. Instructions and registers are `arm64`'s.

pub mod bytes;

#[cfg(target_os = "none")]
pub mod cpu;
#[cfg(target_os = "none")]
pub mod exception;
#[cfg(target_os = "none")]
pub mod local;
#[cfg(target_os = "none")]
pub mod mmu;

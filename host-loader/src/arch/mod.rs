//! What only this processor has, of the image alone: entry, translation, CPUs,
//! reports. Instructions and registers are `arm64`'s.

#[cfg(target_os = "none")]
pub mod cpu;
#[cfg(target_os = "none")]
pub mod exception;
#[cfg(target_os = "none")]
pub mod mmu;

//! What only this processor has: instructions, registers, translation.
//!
//! [`insn`] has one documented function per instruction and stands natively
//! too, so that all above it compiles under test. The rest is the image's.

pub mod insn;

#[cfg(target_os = "none")]
pub mod cpu;
#[cfg(target_os = "none")]
pub mod exception;
#[cfg(target_os = "none")]
pub mod mmu;

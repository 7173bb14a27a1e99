//! The CPU as EL2, the EL1 host and the bare-metal tests drive it.
//!
//! | module | holds |
//! |---|---|
//! | [`regs`] | system registers: encodings, fields, access |
//! | [`instr`] | one function per instruction |
//! | [`steering`] | what is `unsafe`: writes that steer a translation or lose data |
//! | [`intid`] | what an interrupt's number says of it |
//! | [`mmio`] | registers of devices, by bounded frames |
//! | [`frame`] | what a lower level has in general and FP/SIMD registers |
//! | [`sha256`] | a hash by instructions |
//! | [`syndrome`], [`sysreg`] | ESR_ELx and encodings, in fields and words |
//! | `recording` | the CPU of the development machine |
//!
//! There are two backends. On bare metal an access is the instruction. On the
//! development machine it goes to a register file of the thread's own, which
//! keeps what was written and records what came before what.
#![no_std]

#[cfg(not(target_os = "none"))]
extern crate std;

mod fields;
pub mod frame;
pub mod instr;
pub mod intid;
pub mod mmio;
#[cfg(not(target_os = "none"))]
pub mod recording;
pub mod regs;
pub mod sha256;
pub mod steering;
pub mod syndrome;
pub mod sysreg;

#[cfg(test)]
#[path = "../tests/assembler/mod.rs"]
mod assembler;

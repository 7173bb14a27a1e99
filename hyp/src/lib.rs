//! Undercroft's EL2 image: owns all memory, runs the EL1 host and its guests.
//!
//! Start reading at `main.rs`, which follows a boot downwards. The rooms:
//!
//! | module | holds |
//! |---|---|
//! | [`exception`] | the host's traps, reports of EL2's own death |
//! | [`boot`] | device tree, layout of EL2's memory, the host's image |
//! | [`rmi`] | the host's calls |
//! | [`psci`] | the host's power calls, relayed to the firmware |
//! | [`guest`] | a guest's turn: exits, interrupts, ID registers, PSCI |
//! | [`system`] | what all PEs share |
//! | [`realm`], [`rec`] | what a guest and a vCPU are |
//! | [`posting`] | the page of a realm's posted accesses |
//! | [`kicks`] | which PE is interrupted when a vCPU's interrupts change |
//! | [`vmid`] | VMIDs in use |
//! | [`mask`] | what of the CPU is taken for absent |
//! | [`cpu`] | registers of lower levels, traps, injection, the physical GIC |
//! | [`memory`] | granule ownership, EL2's own map, the host's stage 2 |
//! | [`features`] | what the CPU has |
//! | [`log`] | a ring, and the UART that follows it |
//!
//! The higher stand above: which may name which is a picture of
//! `docs/architecture.md`, held by `cargo qemu test --filter check/floors`.
//!
//! The library also builds on the development machine, where everything but the
//! assembly (`asm.S`) is tested, and the order of instructions too: there
//! `arm64` records them.
#![no_std]

pub mod boot;
pub mod cpu;
pub mod early;
pub mod ending;
pub mod errata;
mod errors;
pub mod exception;
pub mod features;
pub mod guest;
pub mod idregs;
pub mod kicks;
pub mod log;
pub mod mask;
pub mod measure;
pub mod memory;
pub mod posting;
pub mod psci;
pub mod realm;
pub mod rec;
pub mod rmi;
pub mod speculation;
pub mod system;
pub mod vmid;

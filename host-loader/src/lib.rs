//! The EL1 host: builds guests from a bundle, runs them, models their devices.
//!
//! It holds policy only. EL2 owns all memory and does what the host asks for by
//! RMI ([`rmi_call`]); the host may be wrong, and EL2 will say so.
//!
//! | module | holds |
//! |---|---|
//! | [`platform`] | the machine, as its device tree describes it |
//! | [`granules`] | the RAM that the host owns |
//! | [`bundle`] | cpio archive, and the guests of its `guests.toml` (`guest-config`) |
//! | [`image`] | kernel formats, streamed into a guest's memory |
//! | [`guest`] | a guest's map, device tree and realm |
//! | [`device`] | device models |
//! | [`emulate`] | accesses that their syndrome does not describe |
//! | [`seed`] | randomness for guests |
//! | [`clock`] | what time it is |
//! | [`turns`] | whose turn it is on a CPU |
//! | [`wait`] | when a vCPU's wait ends |
//! | [`pace`] | long work in steps |
//! | [`rmi_call`] | calls to EL2 |
//! | [`logger`] | the log |
//! | [`transcript`] | what a guest without a console writes, line by line |
//! | [`arch`] | instructions, translation, exceptions |
//!
//! The image has these besides: `machine` (the one instance of all), `heap`,
//! `port` and `gic` (the machine's devices), `sched` (which vCPU runs where), `run`
//! (a vCPU's exits), `abort` (those by an access), `asks` (what a realm asks), `life` (start, stop and reset of
//! guests), `console` and `monitor`.
//!
//! Which may name which is a picture of `docs/architecture.md`, held by
//! `cargo qemu test --filter check/floors`.
#![no_std]

extern crate alloc;

pub mod alarm;
pub mod arch;
pub mod bundle;
pub mod clock;
pub mod device;
pub mod emulate;
pub mod granules;
pub mod guest;
pub mod image;
pub mod logger;
pub mod pace;
pub mod platform;
pub mod rmi_call;
pub mod seed;
pub mod trace;
pub mod transcript;
pub mod turns;
pub mod wait;

#[cfg(target_os = "none")]
pub mod abort;
#[cfg(target_os = "none")]
pub mod asks;
#[cfg(target_os = "none")]
pub mod console;
#[cfg(target_os = "none")]
pub mod gic;
#[cfg(target_os = "none")]
pub mod heap;
#[cfg(target_os = "none")]
pub mod life;
#[cfg(target_os = "none")]
pub mod machine;
#[cfg(target_os = "none")]
pub mod monitor;
#[cfg(target_os = "none")]
pub mod port;
#[cfg(target_os = "none")]
pub mod run;
#[cfg(target_os = "none")]
pub mod sched;

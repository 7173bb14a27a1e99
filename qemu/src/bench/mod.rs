//! Benchmarks: `cargo qemu bench boot` here; those of the libraries run by
//! cargo itself.

pub mod boot;
pub mod first_process;

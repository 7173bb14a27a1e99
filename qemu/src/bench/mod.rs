//! Benchmarks: `cargo qemu bench boot` here; those of the libraries are run by
//! cargo itself, and read here.

pub mod boot;
pub mod first_process;
pub mod pgtable;

//! Benchmarks: `cargo qemu bench boot`, `console`, `exits` and `memory` here; those of the libraries are run by
//! cargo itself, and read here.

pub mod boot;
pub mod console;
pub mod counted;
pub mod exits;
pub mod first_process;
pub mod memory;
pub mod pgtable;

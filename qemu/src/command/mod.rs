//! The subcommands of `cargo qemu`, each in terms of the other modules.

pub mod bench;
pub mod guests;
pub mod image;
pub mod run;
pub mod test;

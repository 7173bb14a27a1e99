//! What a fresh machine lacks, found out and put there: the Rust target, a
//! QEMU that is new enough, valgrind. Each part looks first and acts only when
//! it must.

pub mod apt;
pub mod fvp;
pub mod package;
pub mod qemu;
pub mod rust;
pub mod sources;
pub mod valgrind;

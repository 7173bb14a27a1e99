//! `cargo qemu run`: boots guests and stays with them to the end.

pub mod capture;
pub mod ending;
pub mod gdb;
pub mod marks;
pub mod one_uart;
pub mod options;
pub mod plan;
pub mod session;
pub mod watch;

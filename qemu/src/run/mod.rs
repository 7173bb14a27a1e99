//! `cargo qemu run`: boots guests and stays with them to the end.

pub mod capture;
pub mod ending;
pub mod fvp;
pub mod gdb;
pub mod marks;
pub mod model;
pub mod one_uart;
pub mod options;
pub mod outlet;
pub mod plan;
pub mod qmp;
pub mod session;
pub mod terminal;
pub mod watch;

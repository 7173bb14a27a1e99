//! Machines that the image runs on, as commands that start them.
//!
//! | module | idea |
//! |---|---|
//! | [`virt`] | QEMU's `virt` machine |
//! | [`fvp`] | Arm's Base RevC model, with firmware at EL3 |

pub mod fvp;
pub mod virt;

use std::path::PathBuf;

use clap::ValueEnum;
use rmi::end::{BOOT_ARGUMENT, Token};

use crate::size::Size;

/// Which machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// QEMU's `virt`
    Qemu,
    /// Arm's `FVP_Base_RevC-2xAEMvA`
    Fvp,
}

/// What a machine has and what stands on it, whichever it is.
#[derive(Clone, Debug)]
pub struct Description {
    /// Number of CPUs.
    pub cpus: u32,
    /// Amount of RAM.
    pub ram: Size,
    /// The image.
    pub kernel: PathBuf,
    /// What is loaded beside it.
    pub initrd: Option<PathBuf>,
    /// Boot arguments.
    pub append: String,
    /// What the image's last word must hold, so that it is no guest's.
    pub end: Option<Token>,
    /// Whether the log has a UART of its own.
    pub log_uart: bool,
}

/// Boot arguments for an image whose end is watched by `token`, if it is.
fn watched(arguments: &str, token: Option<&Token>) -> String {
    match token {
        Some(token) => format!("{arguments} {BOOT_ARGUMENT}={}", token.as_str()),
        None => arguments.into(),
    }
}

/// A command as a person would type it.
fn typed<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    let words: Vec<_> = words.into_iter().map(quoted).collect();
    words.join(" ")
}

/// Quotes a word for a POSIX shell.
fn quoted(word: &str) -> String {
    match shlex::try_quote(word) {
        Ok(word) => word.into_owned(),
        // Only a NUL cannot be quoted, and no argument of a process holds one.
        Err(_) => word.replace('\0', ""),
    }
}

//! The initial RAM disk of a Linux guest: busybox, our first programs, and what this
//! run asks of it. Built anew for each run, in memory.

use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::{BuildHasher, Hasher};
use std::path::Path;

use anyhow::{Context, Result};

use crate::newc::Archive;

const INIT: &[u8] = include_bytes!("init.sh");
const SESSION: &[u8] = include_bytes!("session.sh");

/// What the first process does.
#[derive(Clone, Debug)]
pub enum Task {
    /// Leave the user at a shell.
    Shell,
    /// Run a command and tell its output and status.
    Command {
        /// A script of the shell's, of any size.
        command: Vec<u8>,
        /// The mark around its output.
        mark: String,
    },
}

/// A mark that no output holds by chance: 128 bits that the process's random
/// hash keys, which come from the operating system, determine.
pub fn mark() -> String {
    let word = || RandomState::new().build_hasher().finish();
    format!("undercroft-{:016x}{:016x}", word(), word())
}

/// Builds the archive for a guest called `name`, to stand alone or behind an
/// archive of the user's.
///
/// # Errors
/// When busybox cannot be read.
pub fn build(busybox: &Path, name: &str, task: &Task) -> Result<Vec<u8>> {
    let busybox =
        fs::read(busybox).with_context(|| format!("cannot read {}", busybox.display()))?;
    let mut archive = Archive::new();
    for folder in ["bin", "dev", "etc", "undercroft"] {
        archive.folder(folder)?;
    }
    archive.device("dev/console", 5, 1)?;
    archive.device("dev/null", 1, 3)?;
    archive.device("dev/ttyAMA0", 204, 64)?;
    archive.program("bin/busybox", &busybox)?;
    archive.program("init", INIT)?;
    archive.program("undercroft/session", SESSION)?;
    archive.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")?;
    archive.file("etc/profile", b"PS1='\\h:\\w\\$ '\n")?;
    archive.file("undercroft/name", name.as_bytes())?;
    archive.file("undercroft/terminal", terminal(task).as_bytes())?;
    if let Task::Command { command, mark } = task {
        archive.file("undercroft/command", command)?;
        archive.file("undercroft/mark", mark.as_bytes())?;
    }
    archive.finish()
}

/// Builds the archive whose `/init` is `program` and nothing else.
///
/// # Errors
/// None in practice: programs are small.
pub fn of_program(program: &[u8]) -> Result<Vec<u8>> {
    let mut archive = Archive::new();
    archive.folder("dev")?;
    archive.device("dev/console", 5, 1)?;
    archive.program("init", program)?;
    archive.finish()
}

/// Lines for the guest's shell that describe the user's terminal.
fn terminal(task: &Task) -> String {
    let kind = std::env::var("TERM")
        .ok()
        .filter(|kind| {
            kind.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-+.".contains(&b))
        })
        .unwrap_or_else(|| "vt100".into());
    let mut text = format!("export TERM={kind}\n");
    if matches!(task, Task::Shell)
        && let Ok(size) = rustix::termios::tcgetwinsize(rustix::stdio::stdout())
        && size.ws_row > 0
    {
        text += &format!("rows={} cols={}\n", size.ws_row, size.ws_col);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_differ_and_are_long() {
        assert_ne!(mark(), mark());
        assert_eq!(mark().len(), "undercroft-".len() + 32);
    }
}

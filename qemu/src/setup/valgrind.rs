//! Valgrind, whose callgrind counts the instructions of benchmarks: found, or
//! installed.

use std::path::Path;

use anyhow::{Context, Result};

use super::apt;
use super::package::{self, From};
use crate::ui;
use crate::workspace::in_path;

/// Looks for valgrind and installs it where it is missing. `None` is a reason
/// why nothing can be counted here.
///
/// # Errors
/// When apt is there and cannot install it.
pub fn ensure(scratch: &Path) -> Result<std::result::Result<(), &'static str>> {
    if !cfg!(target_arch = "x86_64") {
        return Ok(Err("its goals are counts of x86-64 instructions"));
    }
    if in_path("valgrind").is_some() {
        return Ok(Ok(()));
    }
    if !apt::available() {
        return Ok(Err(
            "there is no valgrind in PATH, and no apt to install it",
        ));
    }
    ui::note("Need", "valgrind is not installed");
    package::install(scratch, "valgrind", From::Release)
        .context("install valgrind, which counts the instructions")?;
    Ok(Ok(()))
}

//! Valgrind, whose callgrind counts the instructions of benchmarks: found, or
//! installed.

use std::path::Path;

use anyhow::Result;

use super::package;

/// Looks for valgrind and installs it where it is missing. `None` is a reason
/// why nothing can be counted here.
///
/// # Errors
/// When apt is there and cannot install it.
pub fn ensure(scratch: &Path) -> Result<std::result::Result<(), &'static str>> {
    if !cfg!(target_arch = "x86_64") {
        return Ok(Err("its goals are counts of x86-64 instructions"));
    }
    let there = package::ensure(scratch, "valgrind", "valgrind")?;
    Ok(there.ok_or("there is no valgrind in PATH, and no apt to install it"))
}

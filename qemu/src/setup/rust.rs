//! The Rust target of everything that runs on the machine itself.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::ui::Step;
use crate::workspace::in_path;

/// The target of the images and of all bare-metal programs: no floating point,
/// so that the guests' registers stay in place.
pub const TARGET: &str = "aarch64-unknown-none-softfloat";

/// Whether the toolchain that cargo was started with is one of rustup's and has
/// [`TARGET`], by its folder: to ask rustc takes a while.
fn is_rustups() -> bool {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty());
    let home = set("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| set("HOME").map(|home| Path::new(&home).join(".rustup")));
    home.zip(set("RUSTUP_TOOLCHAIN"))
        .is_some_and(|(home, toolchain)| {
            let target = home.join("toolchains").join(toolchain);
            target.join("lib/rustlib").join(TARGET).join("lib").is_dir()
        })
}

/// Adds [`TARGET`] to the toolchain unless it is there.
///
/// # Errors
/// When there is no rustc, or the target is missing and rustup cannot add it.
pub fn ensure_target(root: &Path) -> Result<()> {
    if is_rustups() {
        return Ok(());
    }
    let output = Command::new("rustc")
        .args(["--print", "target-libdir", "--target", TARGET])
        .current_dir(root)
        .output()
        .context("cannot run rustc: install Rust by https://rustup.rs")?;
    let libdir = String::from_utf8_lossy(&output.stdout);
    if output.status.success() && Path::new(libdir.trim()).is_dir() {
        return Ok(());
    }
    if in_path("rustup").is_none() {
        bail!(
            "Rust's target {TARGET} is not installed and there is no rustup to \
             add it: install Rust by https://rustup.rs, or that target by \
             whatever installed this rustc"
        );
    }
    let step = Step::new("Adding", format!("Rust target {TARGET}"));
    let output = Command::new("rustup")
        .args(["target", "add", TARGET])
        .current_dir(root)
        .output()
        .context("cannot run rustup")?;
    if !output.status.success() {
        bail!(
            "rustup cannot add the target {TARGET}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    step.done("Added", format!("Rust target {TARGET}"));
    Ok(())
}

//! A package of the machine's own distribution, installed.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{apt, sources};
use crate::ui::Step;

/// How new a package must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// As the release has it.
    Release,
    /// Debian 12's is too old: from its backports, where that is the machine.
    Backports,
}

/// Installs `package` from the machine's own mirror.
///
/// `scratch` is where an apt state may be kept.
///
/// # Errors
/// When this user may not, or with apt's own words when it fails.
pub fn install(scratch: &Path, package: &'static str, newness: From) -> Result<()> {
    apt::ask_for_root(package)?;
    let step = Step::new("Installing", package);
    let mut from = sources::of_machine();
    let backports = newness == From::Backports && codename().as_deref() == Some("bookworm");
    let release = backports.then_some("bookworm-backports");
    if let (Some(release), Some(mirror)) = (release, sources::mirror()) {
        from.push(mirror.with_suites(&[release]));
    }
    if from.is_empty() {
        // Not Debian: its own apt knows best.
        let update = ["-qq", "update"];
        let install = ["-qq", "install", "-y", "--no-install-recommends", package];
        for arguments in [&update[..], &install[..]] {
            as_root("apt-get", arguments)?;
        }
    } else {
        let apt = apt::Apt::native(&scratch.join("apt-machine"), &from)?;
        apt.update(true, &step)?;
        apt.install(release, &[package], &step)?;
    }
    step.done("Installed", package);
    Ok(())
}

fn as_root(program: &str, arguments: &[&str]) -> Result<()> {
    let mut command = if rustix::process::geteuid().is_root() {
        Command::new(program)
    } else {
        let mut sudo = Command::new("sudo");
        sudo.arg(program);
        sudo
    };
    let output = command
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Debian's name for the release that this machine runs.
fn codename() -> Option<String> {
    let text = fs::read_to_string("/etc/os-release").ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .map(|name| name.trim_matches('"').to_string())
}

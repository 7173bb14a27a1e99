//! A package of the machine's own distribution, installed.

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result};

use super::apt::{self, Apt};
use super::sources::{self, Source};
use crate::scratch;
use crate::ui::{self, Step};
use crate::workspace::in_path;

/// What Debian 12 has of newer packages.
const BACKPORTS: &str = "bookworm-backports";

/// How new a package must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// As the release has it.
    Release,
    /// Debian 12's is too old: from its backports, where that is the machine.
    Backports,
}

/// Looks for a program and installs its package where it is missing. `None`
/// where there is no apt to do that.
///
/// # Errors
/// When apt is there and cannot install it.
pub fn ensure(scratch: &Path, program: &str, package: &str) -> Result<Option<()>> {
    ensure_all(scratch, &[(program, package)])
}

/// The same for programs, each with its package: those that are missing are installed
/// by one command.
///
/// # Errors
/// When apt is there and cannot install them.
pub fn ensure_all(scratch: &Path, needs: &[(&str, &str)]) -> Result<Option<()>> {
    let missing = || -> Vec<_> {
        let all = needs.iter().copied();
        all.filter(|(program, _)| in_path(program).is_none())
            .collect()
    };
    if missing().is_empty() {
        return Ok(Some(()));
    }
    if !apt::available() {
        return Ok(None);
    }
    // One at a time: somebody else may be installing just this.
    let _alone = alone(scratch)?;
    let missing = missing();
    if missing.is_empty() {
        return Ok(Some(()));
    }
    for (program, _) in &missing {
        ui::note("Need", format_args!("{program} is not installed"));
    }
    let packages: Vec<_> = missing.iter().map(|(_, package)| *package).collect();
    install_alone(scratch, &packages, From::Release)
        .with_context(|| format!("install {}", packages.join(" ")))?;
    Ok(Some(()))
}

/// Installs `package` from the machine's own mirror.
///
/// `scratch` is where an apt state may be kept. What is in it is this user's:
/// root reads it, and writes where root's packages go.
///
/// # Errors
/// When this user may not, or with apt's own words when it fails.
pub fn install(scratch: &Path, package: &'static str, newness: From) -> Result<()> {
    let _alone = alone(scratch)?;
    install_alone(scratch, &[package], newness)
}

/// Keeps the apt state of this machine to whoever holds this.
fn alone(scratch: &Path) -> Result<File> {
    scratch::make(scratch)?;
    let lock = scratch.join("apt-machine.lock");
    let lock = File::create(&lock).with_context(|| format!("cannot write {}", lock.display()))?;
    lock.lock()
        .context("cannot wait for another run that installs packages")?;
    Ok(lock)
}

fn install_alone(scratch: &Path, packages: &[&str], newness: From) -> Result<()> {
    let all = packages.join(" ");
    let step = || Step::new("Installing", all.clone());
    let dir = scratch.join("apt-machine");
    let mut from = sources::of_machine(&dir)?;
    let backports = match (codename().as_deref(), sources::mirrors()?.first()) {
        (Some("bookworm"), Some(mirror)) => Some(mirror.with_suites(&[BACKPORTS])),
        _ => None,
    };
    if from.is_empty() && (newness == From::Release || backports.is_none()) {
        // Not Debian: its own apt knows best.
        let words = |text: &str| text.split(' ').map(String::from).collect::<Vec<_>>();
        apt::as_root(&words("apt-get -qq update"), &all, step)?;
        let install = "env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y \
                       --no-install-recommends";
        let mut install = words(install);
        install.extend(packages.iter().map(ToString::to_string));
        return apt::as_root(&install, &all, step);
    }
    let prepare = |from: &[Source]| -> Result<Apt> {
        let apt = Apt::native(&dir, from)?;
        apt.update(&Step::new("Reading", "the index of packages"))?;
        Ok(apt)
    };
    let mut apt = prepare(&from)?;
    let mut release = None;
    // Where libraries came along with a QEMU from backports, the release alone may
    // have nothing that goes with them.
    if let Some(backports) = backports
        && (newness == From::Backports || !apt.can_install(packages))
    {
        from.push(backports);
        apt = prepare(&from)?;
        release = Some(BACKPORTS);
    }
    apt::as_root(&apt.install_command(release, packages), &all, step)
}

/// Debian's name for the release that this machine runs.
fn codename() -> Option<String> {
    let text = fs::read_to_string("/etc/os-release").ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .map(|name| name.trim_matches('"').to_string())
}

//! A QEMU that is new enough: found, or installed from the package archive.

use std::env;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::apt;
use super::package::{self, From};
use crate::ui;
use crate::workspace::in_path;

/// The program that plays the machine.
const PROGRAM: &str = "qemu-system-aarch64";

/// Names another program, for instance one built by hand.
const VARIABLE: &str = "UNDERCROFT_QEMU";

/// A release of QEMU: major and minor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32);

/// The oldest QEMU whose machine is complete enough.
pub const OLDEST: Version = Version(8, 2);

/// From here on `virt` has a second UART, and its device tree names it.
pub const SECOND_UART: Version = Version(9, 1);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// A QEMU on this machine.
#[derive(Clone, Debug)]
pub struct Qemu {
    /// The program's file.
    pub program: PathBuf,
    /// What it says it is.
    pub version: Version,
}

impl Qemu {
    /// The version of the plugin API to build for (`QEMU_PLUGIN_VERSION` in its
    /// `qemu-plugin.h`): from 11.1 on none before 7 is taken.
    pub fn plugin_api(&self) -> u32 {
        if self.version >= Version(11, 1) { 7 } else { 2 }
    }
}

/// Finds QEMU, or installs it where there is none that is new enough.
///
/// `scratch` is where an apt state may be kept.
///
/// # Errors
/// When there is none and none can be installed; the message says what to do.
pub fn ensure(scratch: &Path) -> Result<Qemu> {
    if let Some(program) = env::var_os(VARIABLE).filter(|v| !v.is_empty()) {
        let qemu = ask(PathBuf::from(program)).context(VARIABLE)?;
        if qemu.version < OLDEST {
            bail!(
                "QEMU {} ({VARIABLE}={}) is too old: Undercroft needs {OLDEST} or newer",
                qemu.version,
                qemu.program.display()
            );
        }
        return Ok(qemu);
    }
    let found = in_path(PROGRAM).map(ask).transpose()?;
    if let Some(qemu) = &found
        && qemu.version >= OLDEST
    {
        if !apt::available() {
            ui::note(
                "Using",
                format_args!(
                    "QEMU {} in {}; there is no apt, so guests are those of \
                     --kernel and --initrd",
                    qemu.version,
                    qemu.program.display()
                ),
            );
        }
        return Ok(qemu.clone());
    }
    let lack = match &found {
        Some(qemu) => format!("QEMU {} is too old (need {OLDEST})", qemu.version),
        None => format!("QEMU ({PROGRAM}) is not installed"),
    };
    if !apt::available() {
        bail!(
            "{lack}, and there is no apt to install it with: put a QEMU of \
             {OLDEST} or newer into PATH, or name one in {VARIABLE}"
        );
    }
    ui::note("Need", &lack);
    // Debian 12's own QEMU is 7.2.
    package::install(scratch, "qemu-system-arm", From::Backports).with_context(|| {
        format!("{lack}: install qemu-system-arm {OLDEST} or newer, or name one in {VARIABLE}")
    })?;
    let Some(program) = in_path(PROGRAM) else {
        bail!("{PROGRAM} is not in PATH although apt installed qemu-system-arm");
    };
    let qemu = ask(program)?;
    if qemu.version < OLDEST {
        bail!(
            "QEMU {} is the newest that this machine's package archive has, and \
             Undercroft needs {OLDEST}: put a newer one into PATH, or name it in {VARIABLE}",
            qemu.version
        );
    }
    Ok(qemu)
}

/// Asks a QEMU for its version.
fn ask(program: PathBuf) -> Result<Qemu> {
    let output = Command::new(&program)
        .arg("--version")
        .output()
        .with_context(|| format!("cannot run {}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = parse(&text).with_context(|| {
        format!(
            "{} --version does not tell a version of QEMU",
            program.display()
        )
    })?;
    Ok(Qemu { program, version })
}

/// Reads `QEMU emulator version 10.0.2 (Debian …)`.
fn parse(text: &str) -> Option<Version> {
    let numbers = text.split_once("version ")?.1;
    let mut parts = numbers.split(|c: char| !c.is_ascii_digit());
    Some(Version(
        parts.next()?.parse().ok()?,
        parts.next()?.parse().ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_compared() {
        let text = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright";
        assert_eq!(parse(text), Some(Version(10, 0)));
        assert_eq!(parse("QEMU emulator version 7.2.0"), Some(Version(7, 2)));
        assert_eq!(parse("something else"), None);
        assert!(Version(10, 0) > OLDEST && Version(7, 2) < OLDEST && Version(8, 1) < OLDEST);
    }
}

//! apt with a state of its own, so that fetching an arm64 package or reading
//! another release's index leaves the machine's own apt as it was.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use super::sources::Source;
use crate::ui::Step;
use crate::workspace::in_path;

/// Whether this machine has apt and dpkg.
pub fn available() -> bool {
    in_path("apt-get").is_some() && in_path("dpkg-deb").is_some()
}

/// An apt whose sources and state lie in one folder.
#[derive(Clone, Debug)]
pub struct Apt {
    dir: PathBuf,
    options: Vec<String>,
}

impl Apt {
    /// Prepares an apt for packages of `architecture`, which need not be the
    /// machine's and of which nothing counts as installed.
    ///
    /// # Errors
    /// When `dir` cannot be written.
    pub fn foreign(dir: &Path, sources: &[Source], architecture: &str) -> Result<Self> {
        let stanzas = sources
            .iter()
            .map(|s| s.stanza(Some(architecture)))
            .collect();
        let mut apt = Self::prepare(dir, stanzas)?;
        let status = dir.join("status");
        fs::write(&status, "").with_context(|| format!("cannot write {}", status.display()))?;
        apt.set("Dir::State::status", status.display());
        apt.set("Dir::Cache", dir.join("cache").display());
        apt.set("APT::Architecture", architecture);
        apt.set("APT::Architectures::", architecture);
        Ok(apt)
    }

    /// Prepares an apt that installs into this machine from `sources`.
    ///
    /// # Errors
    /// When `dir` cannot be written.
    pub fn native(dir: &Path, sources: &[Source]) -> Result<Self> {
        Self::prepare(dir, sources.iter().map(|s| s.stanza(None)).collect())
    }

    fn prepare(dir: &Path, stanzas: String) -> Result<Self> {
        for folder in ["lists/partial", "cache/archives/partial"] {
            let folder = dir.join(folder);
            fs::create_dir_all(&folder)
                .with_context(|| format!("cannot make {}", folder.display()))?;
        }
        let list = dir.join("debian.sources");
        fs::write(&list, stanzas).with_context(|| format!("cannot write {}", list.display()))?;
        let mut apt = Self {
            dir: dir.to_path_buf(),
            options: Vec::new(),
        };
        apt.set("Dir::State::lists", dir.join("lists").display());
        apt.set("Dir::Etc::sourcelist", list.display());
        for (name, value) in [
            ("Dir::Etc::sourceparts", "/dev/null"),
            ("Dir::Etc::preferences", "/dev/null"),
            ("Dir::Etc::preferencesparts", "/dev/null"),
            ("Dir::Cache::pkgcache", ""),
            ("Dir::Cache::srcpkgcache", ""),
            // Nothing but the index of packages is of use here.
            ("Acquire::Languages", "none"),
            (
                "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled",
                "false",
            ),
            (
                "Acquire::IndexTargets::deb::DEP-11-icons-small::DefaultEnabled",
                "false",
            ),
            (
                "Acquire::IndexTargets::deb::DEP-11-icons::DefaultEnabled",
                "false",
            ),
            ("Acquire::IndexTargets::deb::CNF::DefaultEnabled", "false"),
            ("Acquire::Retries", "3"),
            // Our folders may lie where apt's own user cannot look.
            ("APT::Sandbox::User", "root"),
            // Another apt at work is waited for.
            ("DPkg::Lock::Timeout", "600"),
            // Hooks of the machine are about its own state.
            ("APT::Update::Post-Invoke-Success", ""),
        ] {
            apt.set(name, value);
        }
        Ok(apt)
    }

    fn set(&mut self, name: &str, value: impl std::fmt::Display) {
        self.options.push("-o".into());
        self.options.push(format!("{name}={value}"));
    }

    /// Fetches the index of packages.
    ///
    /// # Errors
    /// With apt's own words when it fails.
    pub fn update(&self, privileged: bool, step: &Step) -> Result<()> {
        let mut command = self.get(privileged);
        command.arg("update");
        follow(command, step).context("apt cannot fetch the index of packages")
    }

    /// Installs `packages` into this machine.
    ///
    /// # Errors
    /// With apt's own words when it fails.
    pub fn install(&self, release: Option<&str>, packages: &[&str], step: &Step) -> Result<()> {
        let mut command = self.get(true);
        command.args(["install", "-y", "--no-install-recommends"]);
        if let Some(release) = release {
            command.args(["-t", release]);
        }
        command.args(packages);
        follow(command, step).with_context(|| format!("apt cannot install {}", packages.join(" ")))
    }

    /// Downloads `package` and returns its file, and the folder that holds it
    /// while it is kept.
    ///
    /// # Errors
    /// With apt's own words when it fails.
    pub fn download(&self, package: &str, step: &Step) -> Result<(TempDir, PathBuf)> {
        let folder = tempfile::tempdir_in(&self.dir)
            .with_context(|| format!("cannot make a folder in {}", self.dir.display()))?;
        let mut command = self.get(false);
        command
            .arg("download")
            .arg(package)
            .current_dir(folder.path());
        follow(command, step).with_context(|| format!("apt cannot download {package}"))?;
        let file = fs::read_dir(folder.path())?
            .flatten()
            .map(|entry| entry.path())
            .find(|file| file.extension().is_some_and(|e| e == "deb"))
            .with_context(|| format!("apt left no file of {package}"))?;
        Ok((folder, file))
    }

    /// A field of the newest version of `package`, for instance `Depends`.
    ///
    /// # Errors
    /// When the archive does not have the package.
    pub fn field(&self, package: &str, field: &str) -> Result<String> {
        let output = Command::new("apt-cache")
            .args(&self.options)
            .args(["show", "--no-all-versions", package])
            .env("LC_ALL", "C")
            .output()
            .context("cannot run apt-cache")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(": "))
            .map(String::from)
            .with_context(|| format!("the archive has no package {package} (field {field})"))
    }

    fn get(&self, privileged: bool) -> Command {
        let mut command = if privileged && !rustix::process::geteuid().is_root() {
            let mut sudo = Command::new("sudo");
            sudo.args([
                "env",
                "DEBIAN_FRONTEND=noninteractive",
                "LC_ALL=C",
                "apt-get",
            ]);
            sudo
        } else {
            Command::new("apt-get")
        };
        command
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("LC_ALL", "C")
            .args(["-qq", "-o", "APT::Status-Fd=1", "-o", "Dpkg::Use-Pty=0"])
            .args(&self.options);
        command
    }
}

/// Asks for the password of sudo, where one is needed, before a progress bar
/// would write over the question.
///
/// # Errors
/// When this user may not become root.
pub fn ask_for_root(what_for: &str) -> Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    if in_path("sudo").is_none() {
        bail!("{what_for} must be installed by root, and there is no sudo");
    }
    let status = Command::new("sudo")
        .arg("-v")
        .status()
        .context("cannot run sudo")?;
    if !status.success() {
        bail!("{what_for} must be installed by root, and sudo refused");
    }
    Ok(())
}

/// Runs apt and shows its progress, which it reports on its standard output as
/// `dlstatus:ITEM:PERCENT:TEXT` and `pmstatus:ITEM:PERCENT:TEXT`.
fn follow(mut command: Command, step: &Step) -> Result<()> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run apt-get")?;
    let stderr = child.stderr.take();
    let errors = thread::spawn(move || {
        let mut text = String::new();
        if let Some(mut stderr) = stderr {
            // What is not UTF-8 there is lost; the exit status is not.
            let _ = stderr.read_to_string(&mut text);
        }
        text
    });
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let mut parts = line.splitn(4, ':');
            let kind = parts.next();
            if let (Some("dlstatus" | "pmstatus"), Some(percent)) = (kind, parts.nth(1))
                && let Ok(percent) = percent.parse::<f64>()
            {
                step.at(percent / 100.0);
            }
        }
    }
    let status = child.wait().context("apt-get was lost")?;
    let errors = errors.join().unwrap_or_default();
    if !status.success() {
        let told: Vec<_> = errors
            .lines()
            .filter(|line| line.starts_with("E:"))
            .collect();
        let told = if told.is_empty() {
            errors.trim().to_string()
        } else {
            told.join("; ")
        };
        bail!("{told}");
    }
    Ok(())
}

//! Where things are: the project, cargo's target directory, the cache.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// The directories of the project that the runner works in.
#[derive(Clone, Debug)]
pub struct Workspace {
    /// The folder of the root `Cargo.toml`.
    pub root: PathBuf,
    /// Cargo's target directory.
    pub target: PathBuf,
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Metadata {
    workspace_root: PathBuf,
    target_directory: PathBuf,
    packages: Vec<Package>,
}

#[derive(Clone, Debug, Deserialize)]
struct Package {
    name: String,
    targets: Vec<Target>,
}

#[derive(Clone, Debug, Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

impl Workspace {
    /// Asks cargo, from the folder that the runner was built in.
    ///
    /// # Errors
    /// When cargo cannot be run, or the sources are no longer where the
    /// runner was built.
    pub fn find() -> Result<Self> {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        let output = Command::new(cargo())
            .args([
                "metadata",
                "--no-deps",
                "--format-version=1",
                "--manifest-path",
            ])
            .arg(&manifest)
            .output()
            .context("cannot run cargo: install Rust by https://rustup.rs")?;
        if !output.status.success() {
            bail!(
                "cargo cannot read this project: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        let read: Metadata = serde_json::from_slice(&output.stdout)
            .context("cargo's description of the project is not as expected")?;
        Ok(Self {
            root: read.workspace_root,
            target: read.target_directory,
            packages: read.packages,
        })
    }

    /// Where the runner keeps images and its own apt state.
    pub fn scratch(&self) -> PathBuf {
        self.target.join("undercroft")
    }

    /// Where guests' kernels are kept: `$UNDERCROFT_GUESTS`, or `guests` in
    /// the target directory.
    pub fn guests(&self) -> PathBuf {
        match env::var_os("UNDERCROFT_GUESTS") {
            Some(dir) if !dir.is_empty() => dir.into(),
            _ => self.target.join("guests"),
        }
    }

    /// Whether `package` has a program called `name`.
    pub fn has_bin(&self, package: &str, name: &str) -> bool {
        self.packages.iter().any(|p| {
            p.name == package
                && p.targets
                    .iter()
                    .any(|t| t.name == name && t.kind.iter().any(|k| k == "bin"))
        })
    }

    /// Whether `package` has a library.
    pub fn has_lib(&self, package: &str) -> bool {
        self.packages.iter().any(|p| {
            p.name == package && p.targets.iter().any(|t| t.kind.iter().any(|k| k == "lib"))
        })
    }

    /// The names of all packages of the workspace.
    pub fn packages(&self) -> impl Iterator<Item = &str> {
        self.packages.iter().map(|p| p.name.as_str())
    }
}

/// The cargo that runs us, or the one in `PATH`.
pub fn cargo() -> PathBuf {
    env::var_os("CARGO").map_or_else(|| "cargo".into(), PathBuf::from)
}

/// Finds a program in `PATH`, as a shell does.
pub fn in_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata()
        .is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

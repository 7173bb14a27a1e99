//! Where things are: the project, cargo's target directory, the cache.

use std::env;
use std::path::{self, Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// Names a cache of guests of the user's.
pub const GUESTS: &str = "UNDERCROFT_GUESTS";

/// The directories of the project that the runner works in.
#[derive(Clone, Debug)]
pub struct Workspace {
    /// The folder of the root `Cargo.toml`.
    pub root: PathBuf,
    /// Cargo's target directory.
    pub target: PathBuf,
    packages: Vec<Package>,
    guests: Option<PathBuf>,
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

/// The tree that the runner works in: the one that cargo started it from, else
/// the one that its program lies in, else the one that it was built from. A
/// tree that was copied with its target directory is one of its own.
///
/// # Errors
/// When none of them is there any more.
pub fn root() -> Result<PathBuf> {
    let started_from = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let program = env::current_exe().ok();
    let built_from = Some(PathBuf::from(env!("CARGO_MANIFEST_DIR")));
    let ours = |dir: &&Path| {
        ["hyp", "qemu"]
            .iter()
            .all(|package| dir.join(package).join("Cargo.toml").is_file())
    };
    [started_from, program, built_from]
        .iter()
        .flatten()
        .find_map(|place| place.ancestors().find(ours))
        .map(Path::to_path_buf)
        .context("the project's sources are no longer there; run cargo qemu inside of them")
}

/// A variable that names a file or a folder, which may be relative to where
/// the user is.
///
/// # Errors
/// When the current folder is gone.
pub fn path_from(variable: &str) -> Result<Option<PathBuf>> {
    let Some(value) = env::var_os(variable).filter(|value| !value.is_empty()) else {
        return Ok(None);
    };
    let path = path::absolute(&value)
        .with_context(|| format!("{variable}={}", Path::new(&value).display()))?;
    Ok(Some(path))
}

impl Workspace {
    /// Asks cargo about the tree that the runner works in.
    ///
    /// # Errors
    /// When cargo cannot be run, or there is no such tree.
    pub fn find() -> Result<Self> {
        let manifest = root()?.join("Cargo.toml");
        // Where the user is: a relative target directory is meant from there.
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
            guests: path_from(GUESTS)?,
        })
    }

    /// Cargo in this tree, building where it builds for the user.
    pub fn cargo(&self) -> Command {
        let mut command = Command::new(cargo());
        command
            .current_dir(&self.root)
            // A relative one would be another folder there.
            .env("CARGO_TARGET_DIR", &self.target);
        command
    }

    /// The same for a copy of the tree, which is built elsewhere.
    pub fn copied(&self, root: PathBuf, target: PathBuf) -> Self {
        Self {
            root,
            target,
            ..self.clone()
        }
    }

    /// Where the runner keeps images and its own apt state.
    pub fn scratch(&self) -> PathBuf {
        self.target.join("undercroft")
    }

    /// Where guests' kernels are kept unless the user says otherwise.
    pub fn guests(&self) -> PathBuf {
        self.target.join("guests")
    }

    /// Where else guests' kernels may be: `$UNDERCROFT_GUESTS`.
    pub fn guests_of_user(&self) -> Option<&Path> {
        self.guests.as_deref()
    }

    /// Whether `package` has a program called `name`.
    pub fn has_bin(&self, package: &str, name: &str) -> bool {
        self.bins(package).any(|bin| bin == name)
    }

    /// The names of the programs of `package`.
    pub fn bins(&self, package: &str) -> impl Iterator<Item = &str> {
        let of = self.packages.iter().filter(move |p| p.name == package);
        of.flat_map(|p| &p.targets)
            .filter(|t| t.kind.iter().any(|k| k == "bin"))
            .map(|t| t.name.as_str())
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

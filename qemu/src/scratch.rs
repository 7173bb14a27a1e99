//! Folders of one run alone, which go with it: at its end or, if it was killed,
//! when the next one starts.
//!
//! A folder belongs to whoever holds the lock of the file in it; making one and
//! sweeping the others happens under a lock of all.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::workspace::Workspace;

/// How such folders are called.
const PREFIX: &str = "run-";

/// The file in each that is locked.
const LOCK: &str = ".lock";

/// A folder of this run alone.
#[derive(Debug)]
pub struct Folder {
    dir: TempDir,
    // Held until the folder is gone: fields go in this order.
    _lock: File,
}

impl Folder {
    /// Where it is.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

/// A folder for files of this run alone.
///
/// # Errors
/// When it cannot be made.
pub fn folder(workspace: &Workspace) -> Result<Folder> {
    within(&workspace.scratch())
}

fn within(scratch: &Path) -> Result<Folder> {
    make(scratch)?;
    let all = locked(&scratch.join(LOCK))?;
    sweep(scratch);
    let dir = tempfile::Builder::new()
        .prefix(PREFIX)
        // A debugger's socket in it is nobody else's.
        .permissions(Permissions::from_mode(0o700))
        .tempdir_in(scratch)
        .with_context(|| format!("cannot make a folder in {}", scratch.display()))?;
    let lock = locked(&dir.path().join(LOCK))?;
    drop(all);
    Ok(Folder { dir, _lock: lock })
}

fn locked(file: &Path) -> Result<File> {
    let lock = File::create(file).with_context(|| format!("cannot write {}", file.display()))?;
    lock.lock()
        .with_context(|| format!("cannot lock {}", file.display()))?;
    Ok(lock)
}

/// Removes the folders of runs that are no more.
fn sweep(scratch: &Path) {
    for entry in fs::read_dir(scratch).into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let dead = File::open(entry.path().join(LOCK)).map_or(true, |lock| lock.try_lock().is_ok());
        if dead {
            // What another user's run left is not ours to remove.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Makes a folder and those above it, unless they are there.
///
/// # Errors
/// When one cannot be made.
pub fn make(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_killed_runs_go_and_those_of_others_stay() {
        let scratch = tempfile::tempdir().expect("a folder");
        let other = within(scratch.path()).expect("a folder");
        let killed = scratch.path().join("run-killed");
        fs::create_dir(&killed).expect("makes");
        File::create(killed.join(LOCK)).expect("writes");
        let barely_begun = scratch.path().join("run-begun");
        fs::create_dir(&barely_begun).expect("makes");
        let kept = scratch.path().join("dry-run");
        fs::create_dir(&kept).expect("makes");

        let own = within(scratch.path()).expect("a folder");
        let mode = own.path().metadata().expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "whoever looks into it is this user");
        assert!(own.path().is_dir() && other.path().is_dir() && kept.is_dir());
        assert!(!killed.exists() && !barely_begun.exists());
        let place = own.path().to_path_buf();
        drop(own);
        assert!(!place.exists());
    }
}

//! Checks that read the tree itself.
//!
//! | module | idea |
//! |---|---|
//! | [`citations`] | what comments and pages name is there |
//! | [`kept`] | what git keeps is small, and text |
//! | [`lines`] | how much code runs at EL2, held to a limit |
//! | [`floors`] | no module names one that stands above it |
//! | [`reached`] | what of the table library EL2 reaches |
//! | [`rust`] | what of a Rust crate its image has |
//! | [`dependencies`] | what else is taken from elsewhere, and on which terms |

pub mod citations;
pub mod dependencies;
pub mod floors;
pub mod kept;
pub mod lines;
pub mod reached;
pub mod rust;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::Case;

/// The cases.
pub fn cases() -> Vec<Case> {
    vec![
        Case::of_cargo("check/citations", citations::check),
        Case::new("check/kept", |context| kept::check(context).map(|_| ())),
        Case::of_cargo("check/lines", lines::check),
        Case::of_cargo("check/floors", floors::check),
        Case::of_cargo("check/reached", reached::check),
        Case::of_cargo("check/dependencies", dependencies::check),
    ]
}

/// A file by which cargo's target directories are known.
const TAG: &str = "CACHEDIR.TAG";

/// The files of a tree, without what cargo built and what git keeps.
fn files(root: &Path) -> Result<Vec<PathBuf>> {
    let (mut files, mut folders) = (Vec::new(), vec![root.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder);
        for entry in entries.with_context(|| format!("cannot read {}", folder.display()))? {
            let path = entry?.path();
            if !path.is_dir() {
                files.push(path);
            } else if !path.ends_with(".git") && !path.join(TAG).exists() {
                folders.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

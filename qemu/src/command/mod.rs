//! The subcommands of `cargo qemu`, each in terms of the other modules.

pub mod bench;
pub mod completions;
pub mod guests;
pub mod image;
pub mod matrix;
pub mod run;
pub mod test;

use std::process::Command;

use crate::workspace;

/// The version with the commit of the tree, `-dirty` where files differ from
/// it. Cargo has just built the runner from that tree.
pub fn version() -> String {
    let version = env!("CARGO_PKG_VERSION");
    let commit = workspace::root().ok().and_then(|root| {
        let output = Command::new("git")
            .args([
                "describe",
                "--always",
                "--dirty",
                "--abbrev=12",
                "--exclude=*",
            ])
            .current_dir(&root)
            .output()
            .ok()
            .filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_string())
    });
    match commit {
        Some(commit) => format!("{version} ({commit})"),
        None => format!("{version} (no git to tell the commit)"),
    }
}

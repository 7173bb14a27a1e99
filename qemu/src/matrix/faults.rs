//! Would the matrix notice? Each file of `qemu/matrix/faults/` is a fault of the image,
//! as a patch: with it the configurations that it names `red` must not pass, and those
//! that it names `green` must. It is put into a copy of the tree, whose image is booted.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::{Cell, Manner, boot, cells};
use crate::build;
use crate::suite::{Case, Context, Counts, Outcome, Tier};
use crate::workspace::Workspace;

/// What of the tree an image is built of.
const COPIED: [&str; 10] = [
    ".cargo",
    "Cargo.lock",
    "Cargo.toml",
    "host-loader",
    "hyp",
    "linker",
    "pgtable",
    "qemu",
    "rust-toolchain.toml",
    "tests",
];

/// Configurations that are booted of each filter.
const BOOTED: usize = 2;

/// A machine whose fault has it say nothing is not waited for as long as others.
const PATIENCE: Duration = Duration::from_secs(100);

/// The faults.
const FAULTS: [(&str, &str); 5] = [
    (
        "combined-entries-stay",
        include_str!("../../matrix/faults/combined-entries-stay.patch"),
    ),
    (
        "high-bits-lost",
        include_str!("../../matrix/faults/high-bits-lost.patch"),
    ),
    (
        "local-invalidation",
        include_str!("../../matrix/faults/local-invalidation.patch"),
    ),
    (
        "root-misaligned",
        include_str!("../../matrix/faults/root-misaligned.patch"),
    ),
    (
        "wrong-start-level",
        include_str!("../../matrix/faults/wrong-start-level.patch"),
    ),
];

/// The cases of the suite: hours, since each builds an image.
pub fn cases() -> Vec<Case> {
    FAULTS
        .iter()
        .map(|&(name, patch)| {
            Case::of_cargo(format!("matrix-faults/{name}"), move |context| {
                noticed(context, name, patch)
            })
            .boots(&["debian12", "debian13", "debian13-16k", "debian-backports"])
            .full()
        })
        .collect()
}

fn noticed(context: &Context, name: &str, patch: &str) -> Result<Outcome> {
    let image = faulty(&context.workspace, name, patch)?;
    let faulty = Context {
        workspace: context.workspace.clone(),
        runner: context.runner.clone(),
        qemu: context.qemu.clone(),
        image: Ok(image),
        missing: Vec::new(),
        folder: context.folder.clone(),
        reports: None,
        tier: context.tier,
    };
    let manner = Manner {
        patience: Some(PATIENCE),
        ..Manner::default()
    };
    let mut table = String::new();
    let mut wrong = false;
    for (colour, cell) in wanted(patch)? {
        let booted = boot(&faulty, &cell, &manner);
        let passed = match &booted {
            Ok(outcome) if outcome.counts.passed == 0 => continue,
            booted => booted.is_ok(),
        };
        let why = booted.err().map_or_else(String::new, |error| {
            let why = format!("{error:#}");
            format!(": {}", why.lines().next().unwrap_or_default())
        });
        wrong |= passed == (colour == "red");
        table += &format!("{colour:<6}{}{why}\n", cell.name());
    }
    ensure!(!wrong, "not as the fault has it:\n{table}");
    Ok(Outcome {
        counts: Counts::ONE,
        says: Some(table.trim_end().into()),
        ..Outcome::default()
    })
}

/// The configurations that a patch names, each with what it is to be.
fn wanted(patch: &str) -> Result<Vec<(&str, Cell)>> {
    let all = cells(Tier::Full);
    let mut wanted = Vec::new();
    for line in patch.lines().take_while(|line| !line.starts_with("diff ")) {
        let Some((colour @ ("red" | "green"), filter)) = line.split_once(": ") else {
            continue;
        };
        Cell::checked(filter)?;
        let fits = all.iter().filter(|cell| cell.matches(filter));
        let before = wanted.len();
        wanted.extend(fits.take(BOOTED).map(|cell| (colour, *cell)));
        ensure!(wanted.len() > before, "no configuration is {filter}");
    }
    Ok(wanted)
}

/// The image of a copy of the tree with this fault.
fn faulty(workspace: &Workspace, name: &str, patch: &str) -> Result<build::Image> {
    let folder = workspace.scratch().join("faults");
    let root = folder.join("tree");
    let _ = fs::remove_dir_all(&root);
    for part in COPIED {
        copy(&workspace.root.join(part), &root.join(part))
            .with_context(|| format!("cannot copy {part}"))?;
    }
    let file = folder.join(format!("{name}.patch"));
    fs::write(&file, patch)?;
    let applied = Command::new("git")
        .args(["apply", "--whitespace=nowarn"])
        .arg(&file)
        .current_dir(&root)
        // The copy is no part of the tree that it lies in.
        .env("GIT_CEILING_DIRECTORIES", &folder)
        .output()
        .context("cannot run git")?;
    if !applied.status.success() {
        let said = String::from_utf8_lossy(&applied.stderr);
        bail!("{name} does not fit the source any more: {said}");
    }
    build::image(&workspace.copied(root, folder.join("target")))
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    if !from.is_dir() {
        return fs::copy(from, to).map(|_| ());
    }
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry: PathBuf = entry?.path();
        let name = entry.file_name().unwrap_or_default();
        if name != "target" {
            copy(&entry, &to.join(name))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fault_names_what_it_turns_red_and_what_it_does_not() {
        let files = fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/matrix/faults"))
            .expect("the faults");
        assert_eq!(files.count(), FAULTS.len());
        for (name, patch) in FAULTS {
            let wanted = wanted(patch).expect(name);
            for colour in ["red", "green"] {
                assert!(wanted.iter().any(|(is, _)| *is == colour), "{name}");
            }
        }
    }
}

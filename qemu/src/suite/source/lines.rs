//! How much code runs at EL2, by crate, held to a limit: it is to be read in a
//! weekend.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use super::super::call::{Call, LIMIT as PATIENCE};
use super::super::{Context, Counts, Outcome};
use super::rust;
use crate::setup::rust::TARGET;

/// The lines of code that may run at EL2, without comments, blank lines, tests
/// and stand-ins for the machine. It goes down with what is made smaller: 12,500
/// is where it is to be.
const LIMIT: usize = 21_478;

/// The crate whose program the image is.
const PROGRAM: &str = "hyp";

/// Counts, and holds the sum against the limit.
///
/// # Errors
/// When it is more, or when a crate cannot be read.
pub fn check(context: &Context) -> Result<Outcome> {
    let mut table = String::from("lines of code at EL2\n");
    let mut sum = 0;
    for (name, folder) in crates(context)? {
        let source = folder.join("src");
        let roots = ["lib.rs", "main.rs"].map(|root| source.join(root));
        let roots: Vec<_> = roots.into_iter().filter(|root| root.is_file()).collect();
        ensure!(
            !roots.is_empty(),
            "{name} has no source in {}",
            source.display()
        );
        let rust = rust::lines(&roots)?;
        let mut assembly = 0;
        for file in super::files(&source)? {
            if file
                .extension()
                .is_some_and(|kind| kind == "s" || kind == "S")
            {
                let text = fs::read_to_string(&file)?;
                assembly += lines_of_assembly(&text);
            }
        }
        sum += rust + assembly;
        // A String takes all that is written.
        let _ = write!(table, "{name:<12}{:>7}", rust + assembly);
        if assembly > 0 {
            let _ = write!(table, "  ({assembly} of them assembly)");
        }
        table.push('\n');
    }
    let _ = write!(table, "{:<12}{sum:>7}  of {LIMIT} at most", "all");
    ensure!(
        sum <= LIMIT,
        "{table}\nwhat is not needed there can go, or stand at EL1; the limit stands in {}",
        file!()
    );
    Ok(Outcome {
        counts: Counts::ONE,
        says: Some(table),
        ..Outcome::default()
    })
}

/// The crates of this tree that the image is made of, and their folders, as cargo
/// resolves them.
fn crates(context: &Context) -> Result<Vec<(String, PathBuf)>> {
    let called = Call::of(context.workspace.cargo(), PATIENCE)
        .args([
            "tree", "-p", PROGRAM, "--edges", "normal", "--target", TARGET,
        ])
        .args(["--prefix", "none", "--no-dedupe"])
        .env("CARGO_TERM_COLOR", "never")
        .call()?
        .ended(0)?;
    let crates = crates_of(&called.stdout, &context.workspace.root);
    ensure!(
        crates.iter().any(|(name, _)| name == PROGRAM) && crates.len() > 1,
        "cargo says otherwise what {PROGRAM} is made of:\n{}",
        called.stdout
    );
    Ok(crates)
}

/// Reads lines such as `rmi v0.1.0 (/home/me/undercroft/hyp/rmi)`.
fn crates_of(text: &str, root: &Path) -> Vec<(String, PathBuf)> {
    let own = |line: &str| {
        let (name, rest) = line.split_once(' ')?;
        let folder = rest.split_once(" (")?.1.split(')').next()?;
        let folder = PathBuf::from(folder);
        folder.starts_with(root).then(|| (name.to_string(), folder))
    };
    let mut all: Vec<_> = text.lines().filter_map(own).collect();
    all.sort();
    all.dedup();
    all
}

/// Lines of an assembler's source that are neither blank nor comments.
fn lines_of_assembly(text: &str) -> usize {
    let mut within = false;
    let mut count = 0;
    for line in text.lines() {
        let mut code = String::new();
        let mut rest = line;
        while !rest.is_empty() {
            if within {
                let Some((_, after)) = rest.split_once("*/") else {
                    break;
                };
                (within, rest) = (false, after);
            } else if let Some((before, after)) = rest.split_once("/*") {
                code += before;
                (within, rest) = (true, after);
            } else {
                code += rest;
                break;
            }
        }
        let code = code.split("//").next().unwrap_or_default();
        count += usize::from(!code.trim().is_empty());
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assembly_is_counted_without_comments() {
        let text = "// a\n/* b\n   c */ nop\n\nret // d\n/* e */\n  /* f */ b . /* g\n*/\n";
        assert_eq!(lines_of_assembly(text), 3);
    }

    #[test]
    fn crates_of_this_tree_are_told_from_others() {
        let text = "hyp v0.1.0 (/a b/hyp)\nlog v0.4.1\nrmi v0.1.0 (/a b/hyp/rmi)\n\
                    rmi v0.1.0 (/a b/hyp/rmi)\nx v1.0.0 (proc-macro)\ny v0.1.0 (/z/y)\n";
        let crates = crates_of(text, Path::new("/a b"));
        let names: Vec<_> = crates.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["hyp", "rmi"]);
        assert_eq!(crates[1].1, Path::new("/a b/hyp/rmi"));
    }
}

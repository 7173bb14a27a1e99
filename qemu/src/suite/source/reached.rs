//! Whether the table library's core has something that EL2 does not reach: hyp and
//! pgtable are built as one program, of which the compiler says what is dead.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::super::call::{Call, LIMIT};
use super::super::{Context, Counts, Outcome};
use crate::scratch;
use crate::setup::rust::TARGET;

/// A function that is put into the library, and that nobody calls: if the
/// compiler does not name it, it would name no other.
const NOBODY: &str = "nobody_reaches_this";

/// What of a program has to be reached. Values of an enumeration that is the
/// architecture's, and a field that is for others, need not be.
const KINDS: [&str; 7] = [
    "function",
    "method",
    "item",
    "struct",
    "enum",
    "trait",
    "type alias",
];

/// Builds both as one, and asks.
///
/// # Errors
/// When the library has something that is not reached without the feature `extra`,
/// or when the compiler does not see what is not.
pub fn check(context: &Context) -> Result<Outcome> {
    let root = &context.workspace.root;
    let folder = scratch::folder(&context.workspace)?;
    one_program(root, folder.path())?;
    let target = context.workspace.scratch().join("reached");
    let called = Call::of(context.workspace.cargo(), LIMIT)
        .args(["check", "--target", TARGET, "--message-format", "short"])
        .env("CARGO_TARGET_DIR", &target)
        .env("CARGO_TERM_COLOR", "never")
        .within(folder.path())
        .call()?;
    ensure!(called.code == Some(0), "{}", called.stderr);
    let dead = dead(&called.stderr);
    let (seen, others): (Vec<_>, Vec<_>) = dead.iter().partition(|line| line.contains(NOBODY));
    ensure!(
        seen.len() == 1,
        "the compiler did not see what nobody reaches:\n{}",
        called.stderr
    );
    ensure!(
        others.is_empty(),
        "EL2 does not reach, so it belongs in pgtable/src/extra:\n{}",
        others.into_iter().cloned().collect::<Vec<_>>().join("\n")
    );
    Ok(Counts::ONE.into())
}

/// What the compiler found dead in the library.
fn dead(said: &str) -> BTreeSet<String> {
    said.lines()
        .filter(|line| line.starts_with("src/pgtable/") && line.contains(" never "))
        .filter(|line| {
            let what = line.split_once("warning: ").map_or("", |(_, what)| what);
            let what = what.trim_start_matches("multiple ");
            let what = what.trim_start_matches("associated ");
            KINDS.iter().any(|kind| what.starts_with(kind))
        })
        .map(String::from)
        .collect()
}

/// Writes a crate of one program: hyp's library as its root, hyp's program and the
/// table library as modules.
fn one_program(root: &Path, to: &Path) -> Result<()> {
    let hyp = root.join("hyp");
    let source = to.join("src");
    for (from, into) in [("hyp/src", ""), ("pgtable/src", "pgtable")] {
        let from = root.join(from);
        for file in super::files(&from)? {
            let into = source.join(into).join(file.strip_prefix(&from)?);
            let parent = into.parent().context("a file has a folder")?;
            fs::create_dir_all(parent)?;
            let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
            fs::write(&into, as_module(&text, &file, &hyp))?;
        }
    }
    let library = source.join("pgtable");
    fs::rename(library.join("lib.rs"), library.join("mod.rs"))?;
    let address = library.join("addr.rs");
    let text = fs::read_to_string(&address)?;
    fs::write(&address, format!("{text}\npub fn {NOBODY}() {{}}\n"))?;
    fs::rename(source.join("main.rs"), source.join("program.rs"))?;
    let text = fs::read_to_string(source.join("lib.rs"))?;
    // What a public module names would count as reached from outside.
    let text = text.replace("\npub mod ", "\nmod ");
    let text = format!("#![no_std]\n#![no_main]\nmod pgtable;\nmod program;\n{text}");
    fs::write(source.join("main.rs"), text)?;
    fs::remove_file(source.join("lib.rs"))?;
    fs::write(to.join("Cargo.toml"), manifest(&hyp)?)?;
    fs::copy(root.join("Cargo.lock"), to.join("Cargo.lock"))?;
    Ok(())
}

/// A file's text in the one crate: paths begin at its root, and what is said of a
/// crate as a whole goes.
fn as_module(text: &str, file: &Path, hyp: &Path) -> String {
    let roots = ["lib.rs", "main.rs"];
    let is_root = roots
        .iter()
        .any(|root| file.ends_with(Path::new("src").join(root)));
    let of_library = !file.starts_with(hyp);
    let mut out = String::new();
    for line in text.lines() {
        if is_root && (line.starts_with("#![") || line.starts_with("//!")) {
            continue;
        }
        let line = if of_library {
            renamed(line, "crate::", "crate::pgtable::")
        } else {
            let line = renamed(line, "pgtable::", "crate::pgtable::");
            let line = renamed(&line, "hyp::", "crate::");
            let arm64 = hyp.join("arm64");
            line.replace("\"../arm64/", &format!("\"{}/", arm64.display()))
        };
        out += &line;
        out.push('\n');
    }
    out
}

/// Paths that begin with `from` begin with `to`.
fn renamed(line: &str, from: &str, to: &str) -> String {
    let mut out = String::new();
    let mut rest = line;
    while let Some(at) = rest.find(from) {
        let before = rest[..at].chars().next_back();
        let within = before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':');
        out += &rest[..at];
        out += if within { from } else { to };
        rest = &rest[at + from.len()..];
    }
    out + rest
}

/// The manifest: what hyp depends on, but for the table library.
fn manifest(hyp: &Path) -> Result<String> {
    let text = fs::read_to_string(hyp.join("Cargo.toml"))?;
    let (_, dependencies) = text
        .split_once("[dependencies]\n")
        .context("hyp has dependencies")?;
    let dependencies = dependencies.split("\n[").next().unwrap_or_default();
    let mut out = String::from(
        "[package]\nname = \"reached\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\
         [features]\nextra = []\ntoy = []\nfixed-4k = []\n[workspace]\n[dependencies]\n",
    );
    for line in dependencies
        .lines()
        .filter(|line| !line.starts_with("pgtable"))
    {
        let line = match line.split_once("path = \"") {
            Some((before, path)) => {
                let folder: PathBuf = hyp.join("");
                format!("{before}path = \"{}{path}", folder.display())
            }
            None => line.to_string(),
        };
        out += &line;
        out.push('\n');
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dead_is_found_by_its_kind() {
        let said = "src/pgtable/a.rs:1:2: warning: function `f` is never used\n\
                    src/pgtable/a.rs:1:2: warning: multiple methods are never used\n\
                    src/pgtable/a.rs:1:2: warning: associated function `n` is never used\n\
                    src/pgtable/a.rs:1:2: warning: variant `V` is never constructed\n\
                    src/pgtable/a.rs:1:2: warning: field `x` is never read\n\
                    src/memory/a.rs:1:2: warning: function `g` is never used\n";
        assert_eq!(dead(said).len(), 3);
    }

    #[test]
    fn a_path_begins_at_the_one_root() {
        for (line, want) in [
            ("use pgtable::{A};", "use crate::pgtable::{A};"),
            (
                "f(x::pgtable::A, pgtable::B)",
                "f(x::pgtable::A, crate::pgtable::B)",
            ),
            ("no_pgtable::A", "no_pgtable::A"),
        ] {
            assert_eq!(renamed(line, "pgtable::", "crate::pgtable::"), want);
        }
    }
}

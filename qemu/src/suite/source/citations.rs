//! What comments and pages cite is there: a reader who follows a name finds the
//! file. Citations of the architecture's manual stand as section and rule, and
//! are the reader's to check.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::super::{Context, Counts};

/// Files of other projects that are cited by a name that could be one of ours.
const OF_OTHERS: [&str; 1] = ["drivers/firmware/efi/libstub/zboot-header.S"];

/// The kinds of files that are cited by name.
const CITED: [&str; 5] = ["rs", "s", "S", "ld", "md"];

/// How the comments of a kind of file begin; all of a page is read.
fn comment(file: &Path) -> Option<&'static [&'static str]> {
    Some(match file.extension()?.to_str()? {
        "rs" => &["//"],
        "s" | "S" | "ld" => &["//", "/*", " *"],
        "toml" | "sh" => &["#"],
        "md" => &[""],
        _ => return None,
    })
}

/// Asks that each file that is cited is there.
///
/// # Errors
/// Names those that are not, and where they are cited.
pub fn check(context: &Context) -> Result<Counts> {
    let root = &context.workspace.root;
    let files: Vec<PathBuf> = super::files(root)?
        .into_iter()
        .filter_map(|file| Some(file.strip_prefix(root).ok()?.to_path_buf()))
        .collect();
    let mut dangling = String::new();
    for file in &files {
        let Some(begins) = comment(file) else {
            continue;
        };
        let bytes = fs::read(root.join(file)).with_context(|| file.display().to_string())?;
        let text = String::from_utf8_lossy(&bytes);
        for (index, line) in text.lines().enumerate() {
            for cited in cited(line, begins) {
                if !is_there(&files, file, cited) {
                    dangling += &format!("{}:{}: {cited}\n", file.display(), index + 1);
                }
            }
        }
    }
    ensure!(
        dangling.is_empty(),
        "there is no such file in this tree:\n{dangling}cite the manual's section and rule, \
         or a page that is here"
    );
    Ok(Counts::ONE)
}

/// The files that a line cites: what a comment names, and what a page links to.
fn cited<'a>(line: &'a str, begins: &[&str]) -> Vec<&'a str> {
    // Not the `//` of an address.
    let starts = |at: usize| at == 0 || line[..at].ends_with(char::is_whitespace);
    let comments = begins.iter().filter_map(|begin| {
        let found = line.match_indices(begin).find(|(at, _)| starts(*at));
        found.map(|(at, _)| &line[at..])
    });
    let Some(text) = comments.max_by_key(|text| text.len()) else {
        return Vec::new();
    };
    let is_cited = |word: &&str| {
        let name = word.rsplit('/').next().unwrap_or(word);
        let kind = name.rsplit_once('.');
        kind.is_some_and(|(stem, kind)| !stem.is_empty() && CITED.contains(&kind))
    };
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || "/._-".contains(c)));
    let mut all: Vec<_> = words
        .map(|word| word.trim_end_matches(['.', '-']))
        // Addresses have two slashes in front, folders of the user's one.
        .filter(|word| !word.starts_with('/') && is_cited(word))
        .collect();
    if *begins == [""] {
        let links = text.split("](").skip(1).filter_map(|link| {
            let target = link.split([')', '#']).next()?;
            let elsewhere = target.is_empty() || target.contains("://");
            (!elsewhere && !is_cited(&target)).then_some(target)
        });
        all.extend(links);
    }
    all
}

/// Whether a citation in `file` leads to one of `files`: from where it stands, or
/// by the end of a path, as people shorten it.
fn is_there(files: &[PathBuf], file: &Path, cited: &str) -> bool {
    if OF_OTHERS.contains(&cited) {
        return true;
    }
    let mut from_here = file.parent().unwrap_or(Path::new("")).to_path_buf();
    for part in Path::new(cited) {
        match part.to_str() {
            Some(".") => {}
            Some("..") => {
                from_here.pop();
            }
            _ => from_here.push(part),
        }
    }
    let is_folder = || files.iter().any(|other| other.starts_with(&from_here));
    let by_its_end = |other: &PathBuf| other.ends_with(cited.trim_start_matches("./"));
    files.contains(&from_here) || files.iter().any(by_its_end) || is_folder()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_comment_names_is_found() {
        for (line, expected) in [
            ("// As in cpu/gone.rs: so.", &["cpu/gone.rs"][..]),
            ("let x = 1; // see asm.S, entry.s.", &["asm.S", "entry.s"]),
            ("let url = \"https://rustup.rs\";", &[]),
            ("//! by https://rustup.rs or https://x.org/a.md", &[]),
            ("let file = \"none.rs\";", &[]),
            ("// the rmi.md's 1.3", &["rmi.md"]),
            ("// v1.s, but no .rs and no Cargo.toml", &["v1.s"]),
        ] {
            assert_eq!(cited(line, &["//"]), expected, "{line}");
        }
        assert_eq!(
            cited(
                "See [it](docs/gone.md#part), [that](LICENSE-NONE) (x).",
                &[""]
            ),
            ["docs/gone.md", "LICENSE-NONE"]
        );
        assert_eq!(cited(" * by entry.s */", &["/*", " *"]), ["entry.s"]);
    }

    #[test]
    fn a_citation_leads_somewhere() {
        let files = ["hyp/src/cpu/pe.rs", "hyp/README.md", "README.md"].map(PathBuf::from);
        let here = Path::new("hyp/src/main.rs");
        for cited in ["cpu/pe.rs", "pe.rs", "hyp/src/cpu/pe.rs", "../README.md"] {
            assert!(is_there(&files, here, cited), "{cited}");
        }
        for cited in ["cpu/el2.rs", "../../docs/x.md", "e.rs"] {
            assert!(!is_there(&files, here, cited), "{cited}");
        }
    }
}

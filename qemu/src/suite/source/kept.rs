//! What git keeps is text that somebody wrote, and small: what was built, dumped or
//! downloaded stays in everybody's clone for good.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::super::call::Call;
use super::super::{Context, Counts};

/// Bytes that a file may have: the longest is a third of this.
const LIMIT: u64 = 192 * 1024;

/// Kinds of files that are no text.
const PICTURES: [&str; 1] = ["png"];

/// How long git may take to list them.
const PATIENCE: Duration = Duration::from_secs(60);

/// Asks that each file that git keeps is small, and text or a picture.
///
/// # Errors
/// Names those that are not.
pub fn check(context: &Context) -> Result<Counts> {
    let root = &context.workspace.root;
    let mut foreign = String::new();
    for file in kept(root)? {
        let path = root.join(&file);
        // One that is deleted, and not yet from git, is none.
        let Ok(about) = path.symlink_metadata() else {
            continue;
        };
        let bytes = if about.len() <= LIMIT {
            fs::read(&path).with_context(|| file.display().to_string())?
        } else {
            Vec::new()
        };
        if let Some(why) = objection(&file, about.len(), &bytes) {
            // A String takes all that is written.
            let _ = writeln!(foreign, "{}: {why}", file.display());
        }
    }
    ensure!(
        foreign.is_empty(),
        "git keeps what nobody wrote:\n{foreign}take it out (git rm --cached), and have \
         .gitignore name it"
    );
    Ok(Counts::ONE)
}

/// The files that git keeps, from the tree's root; all files where it knows of none.
fn kept(root: &Path) -> Result<Vec<PathBuf>> {
    let listed = Call::program("git", PATIENCE)
        .args(["ls-files", "-z"])
        .within(root)
        .call();
    if let Ok(listed) = listed.and_then(|called| called.ended(0)) {
        let files = listed.stdout.split('\0').filter(|name| !name.is_empty());
        let files: Vec<_> = files.map(PathBuf::from).collect();
        if !files.is_empty() {
            return Ok(files);
        }
    }
    let files = super::files(root)?.into_iter();
    Ok(files
        .filter_map(|file| Some(file.strip_prefix(root).ok()?.to_path_buf()))
        .collect())
}

/// Why a file is none to keep.
fn objection(file: &Path, size: u64, bytes: &[u8]) -> Option<String> {
    if size > LIMIT {
        return Some(format!("{size} bytes, {LIMIT} at most"));
    }
    let kind = file.extension().and_then(|kind| kind.to_str());
    let text = std::str::from_utf8(bytes).is_ok_and(|text| !text.contains('\0'));
    (!text && !kind.is_some_and(|kind| PICTURES.contains(&kind))).then(|| "is no text".to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_long_or_no_text_is_objected_to() {
        let objection = |file: &str, size, bytes: &[u8]| objection(Path::new(file), size, bytes);
        assert_eq!(objection("a.rs", 3, b"abc"), None);
        assert_eq!(objection("a.rs", LIMIT, b"\xc3\xa4"), None);
        assert_eq!(objection("a.png", 3, b"\x89P\0"), None);
        assert!(objection("a.png", LIMIT + 1, b"").is_some());
        assert!(objection("core", 4, b"\x7fELF\0").is_some());
        assert!(objection("a.rs", 2, b"\xff\xfe").is_some());
    }
}

//! Would the tests notice? Each file of `mutants/` is a fault: it is put into a
//! copy of the source, and the tests of the copy must fail.
//!
//! ```text
//! cargo test -p pgtable --features mutants --test faults -- --nocapture
//! ```
//!
//! prints the table; `PGTABLE_FAULT=name` tries one. A file has a line that says
//! what is wrong, and a unified diff, whose hunks are found by their text
//! wherever it stands.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The tests that need nothing but the crate.
const TESTS: [&str; 2] = ["strangers", "exact"];

/// A copy of the crate that builds alone.
struct Copy {
    root: PathBuf,
    target: PathBuf,
}

impl Copy {
    fn new() -> Self {
        let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("faults");
        let root = target.join("pgtable");
        let _ = fs::remove_dir_all(&root);
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        copy(&here.join("src"), &root.join("src"));
        copy(&here.join("tests/plain"), &root.join("tests/plain"));
        for test in TESTS {
            let name = format!("tests/{test}.rs");
            fs::copy(here.join(&name), root.join(&name)).expect("a test to copy");
        }
        fs::copy(here.join("README.md"), root.join("README.md")).expect("the crate's text");
        let manifest = "[package]\nname = \"pgtable\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\
                        [features]\nmutants = []\ntoy = []\nfixed-4k = []\n[workspace]\n\
                        [profile.dev]\nopt-level = 1\n";
        fs::write(root.join("Cargo.toml"), manifest).expect("a manifest");
        Self { root, target }
    }

    fn cargo(&self, arguments: &[&str]) -> Output {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.arg("test").arg("--quiet").args(arguments);
        for test in TESTS {
            cargo.args(["--test", test]);
        }
        cargo
            .current_dir(&self.root)
            .env("CARGO_TARGET_DIR", self.target.join("target"))
            .output()
            .expect("cargo runs")
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder to copy") {
        let entry = entry.expect("an entry");
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).expect("a file to copy");
        }
    }
}

/// The path that a diff names, and its hunks: what stands there, and what is
/// to stand there.
fn parse(diff: &str) -> (&str, Vec<(String, String)>) {
    let path = diff.lines().find_map(|line| line.strip_prefix("+++ b/"));
    let mut hunks: Vec<(String, String)> = Vec::new();
    for line in diff.lines() {
        if line.starts_with("@@") {
            hunks.push(Default::default());
        } else if let Some((old, new)) = hunks.last_mut() {
            let (sign, text) = line.split_at_checked(1).unwrap_or((" ", ""));
            for (side, signs) in [(old, [" ", "-"]), (new, [" ", "+"])] {
                if signs.contains(&sign) {
                    side.push_str(text);
                    side.push('\n');
                }
            }
        }
    }
    (path.expect("a line +++ b/path"), hunks)
}

/// The source with the fault in it.
fn spoil(source: &str, hunks: &[(String, String)], name: &str) -> String {
    let mut source = source.to_owned();
    for (old, new) in hunks {
        let found = source.matches(old.as_str()).count();
        assert_eq!(found, 1, "{name}: its hunk stands {found} times:\n{old}");
        source = source.replacen(old.as_str(), new, 1);
    }
    source
}

#[test]
fn every_fault_is_noticed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mutants");
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .expect("the faults")
        .map(|entry| entry.expect("a file").path())
        .collect();
    files.sort();
    let copy = Copy::new();
    let right = copy.cargo(&[]);
    let said = String::from_utf8_lossy(&right.stderr);
    assert!(right.status.success(), "without a fault: {said}");
    let only = std::env::var("PGTABLE_FAULT").ok();
    let mut survivors = Vec::new();
    let mut tried = 0;
    println!("{:<34}  killed by", "fault");
    for file in &files {
        let name = file.file_stem().expect("a name").to_string_lossy();
        if only.as_ref().is_some_and(|only| *only != name) {
            continue;
        }
        tried += 1;
        let text = fs::read_to_string(file).expect("a fault");
        let (path, hunks) = parse(&text);
        let path = copy.root.join(path);
        let source = fs::read_to_string(&path).expect("a source");
        fs::write(&path, spoil(&source, &hunks, &name)).expect("a copy");
        let run = copy.cargo(&["--no-fail-fast"]);
        fs::write(&path, source).expect("a copy");
        let said = String::from_utf8_lossy(&run.stderr);
        let built = !said.contains("could not compile");
        assert!(built, "{name} does not build: {said}");
        let said = String::from_utf8_lossy(&run.stdout);
        let by = said.lines().find_map(|line| {
            let line = line.strip_prefix("---- ")?;
            line.strip_suffix(" stdout ----")
        });
        match by {
            Some(by) => println!("{name:<34}  {by:.44}"),
            None => {
                println!("{name:<34}  SURVIVES");
                survivors.push(name.into_owned());
            }
        }
    }
    println!("{tried} faults, {} survive", survivors.len());
    assert!(survivors.is_empty(), "{survivors:?}");
}

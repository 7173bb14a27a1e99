//! Would a crate's tests notice? Each file of its `tests/mutants/` is a fault. All of
//! them are put into one copy of its source, of which a number chosen at start says
//! which runs; and for each a test of the copy must fail.
//!
//! `MUTANT=name` tries one.

mod instrument;
mod patch;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use patch::{Change, Fault};

/// A test of the copy: a program, as cargo names its target.
#[derive(Clone, Debug, Default)]
pub struct Test {
    /// The target.
    pub name: &'static str,
    /// What the program is told beside.
    pub arguments: &'static [&'static str],
    /// Its environment.
    pub environment: &'static [(&'static str, &'static str)],
}

/// A crate, and how it is copied.
#[derive(Debug)]
pub struct Plan {
    /// Its folder.
    pub root: PathBuf,
    /// Where the copy is built.
    pub target: PathBuf,
    /// The `Cargo.toml` of the copy.
    pub manifest: String,
    /// What is copied beside `src`: files and folders of it, and where to.
    pub copied: Vec<(String, String)>,
    /// The copy's tests, in the order in which they run.
    pub tests: Vec<Test>,
}

/// How long a test may take: one without end has noticed, too.
const PATIENCE: Duration = Duration::from_secs(600);

/// What says in the copy which fault runs; 0 is none.
const SWITCH: &str = "
/// Which fault runs.
pub mod fault {
    extern crate std;
    pub(crate) fn on() -> usize {
        static ON: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
        *ON.get_or_init(|| {
            let number = std::env::var(\"MUTANT_NUMBER\").unwrap_or_default();
            number.parse().unwrap_or(0)
        })
    }
}
";

/// Copies the crate, puts the faults of its `tests/mutants/` into the copy, and runs the
/// tests for each; prints a table of which test noticed. Returns those that none did.
///
/// # Panics
/// When a fault no longer fits the source, when the copy does not build, or when its
/// tests fail without a fault.
pub fn survivors(plan: &Plan) -> Vec<String> {
    let faults = faults(&plan.root);
    let programs = build(plan, &faults);
    assert_eq!(run(&programs, 0), None, "without a fault");
    let only = std::env::var("MUTANT").ok();
    let next = Mutex::new(faults.iter().enumerate());
    let survivors = Mutex::new(Vec::new());
    let count = Mutex::new(0);
    println!("{:<34}  killed by", "fault");
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let Some((index, fault)) = next.lock().expect("no panic").next() else {
                        break;
                    };
                    let Fault { name, what, .. } = fault;
                    if only.as_ref().is_some_and(|only| only != name) {
                        continue;
                    }
                    *count.lock().expect("no panic") += 1;
                    match run(&programs, 1 + index) {
                        Some(by) => println!("{name:<34}  {by}"),
                        None => {
                            println!("{name:<34}  SURVIVES: {what}");
                            survivors.lock().expect("no panic").push(name.clone());
                        }
                    }
                }
            });
        }
    });
    let survivors = survivors.into_inner().expect("no panic");
    let count = count.into_inner().expect("no panic");
    println!("{count} faults, {} survive", survivors.len());
    survivors
}

/// The faults of the crate in this folder, in order.
fn faults(root: &Path) -> Vec<Fault> {
    let mut files: Vec<PathBuf> = fs::read_dir(root.join("tests/mutants"))
        .expect("the faults")
        .map(|entry| entry.expect("a file").path())
        .collect();
    files.sort();
    files
        .iter()
        .map(|file| {
            let name = file.file_stem().expect("a name").to_string_lossy();
            Fault::parse(&name, &fs::read_to_string(file).expect("a fault"))
        })
        .collect()
}

/// Builds a copy of the crate with all faults in it: its tests' programs, in order.
fn build(plan: &Plan, faults: &[Fault]) -> Vec<(Test, PathBuf)> {
    let root = plan.target.join("copy");
    let _ = fs::remove_dir_all(&root);
    copy(&plan.root.join("src"), &root.join("src"));
    for (from, to) in &plan.copied {
        copy(&plan.root.join(from), &root.join(to));
    }
    fs::write(root.join("Cargo.toml"), &plan.manifest).expect("a manifest");
    spoil(&root, faults);
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["test", "--no-run", "--message-format", "json"]);
    cargo.args(["--lib", "--tests"]);
    let built = cargo
        .current_dir(&root)
        .env("CARGO_TARGET_DIR", plan.target.join("target"))
        .env("RUSTFLAGS", "--cap-lints=allow")
        .output()
        .expect("cargo runs");
    let said = String::from_utf8_lossy(&built.stdout);
    if !built.status.success() {
        let errors = said
            .lines()
            .filter(|line| line.contains("\"level\":\"error\""));
        for line in errors {
            println!("{}", rendered(line));
        }
        let said = String::from_utf8_lossy(&built.stderr);
        panic!("the copy does not build: {said}");
    }
    let programs: BTreeMap<String, PathBuf> = said.lines().filter_map(program).collect();
    let find = |test: &Test| {
        let path = programs.get(test.name);
        let path = path.unwrap_or_else(|| panic!("no program {}", test.name));
        (test.clone(), path.clone())
    };
    plan.tests.iter().map(find).collect()
}

/// Runs the tests with a fault. Returns which one failed.
fn run(programs: &[(Test, PathBuf)], number: usize) -> Option<String> {
    programs.iter().find_map(|(test, path)| {
        let name = test.name;
        let mut run = Command::new(path);
        let mut run = run
            .env("MUTANT_NUMBER", number.to_string())
            .env("RUST_BACKTRACE", "0")
            .envs(test.environment.iter().copied())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .args(test.arguments)
            .arg("--test-threads=1")
            .spawn()
            .expect("a test runs");
        let began = Instant::now();
        loop {
            match run.try_wait().expect("a test ends") {
                Some(status) if status.success() => return None,
                Some(_) => return Some(name.to_owned()),
                None if began.elapsed() > PATIENCE => {
                    run.kill().expect("a test ends");
                    let _ = run.wait();
                    return Some(format!("{name}, without end"));
                }
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    })
}

/// Puts all faults into the copy's source.
fn spoil(root: &Path, faults: &[Fault]) {
    for (path, text) in spoilt(root, faults) {
        fs::write(root.join(path), text).expect("a source");
    }
    let lib = root.join("src/lib.rs");
    let text = fs::read_to_string(&lib).expect("a source");
    fs::write(lib, text + SWITCH).expect("a source");
}

/// The files that have faults, with them; they are numbered from 1 on.
fn spoilt<'a>(root: &Path, faults: &'a [Fault]) -> BTreeMap<&'a str, String> {
    let mut changes: BTreeMap<&str, Vec<(usize, Change)>> = BTreeMap::new();
    let mut sources: BTreeMap<&str, String> = BTreeMap::new();
    for (index, fault) in faults.iter().enumerate() {
        for edit in &fault.edits {
            let source = sources
                .entry(&edit.path)
                .or_insert_with(|| fs::read_to_string(root.join(&edit.path)).expect("a source"));
            let change = edit.change(source, &fault.name);
            changes
                .entry(&edit.path)
                .or_default()
                .push((1 + index, change));
        }
    }
    let with = |(path, changes): (&'a str, Vec<_>)| {
        let text = instrument::instrument(&sources[path], &changes);
        (path, text.unwrap_or_else(|what| panic!("{path}: {what}")))
    };
    changes.into_iter().map(with).collect()
}

fn copy(from: &Path, to: &Path) {
    if from.is_file() {
        fs::create_dir_all(to.parent().expect("a folder")).expect("a folder");
        fs::copy(from, to).expect("a file to copy");
        return;
    }
    for entry in fs::read_dir(from).expect("a folder to copy") {
        let entry = entry.expect("an entry");
        copy(&entry.path(), &to.join(entry.file_name()));
    }
}

/// A field of a line of JSON that has it once, and no quotation marks in it.
fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = line.split_once(&format!("\"{name}\":\""))?;
    rest.split('"').next()
}

/// A test's program, from a line of cargo's.
fn program(line: &str) -> Option<(String, PathBuf)> {
    let path = field(line, "executable")?;
    let (_, target) = line.split_once("\"target\":")?;
    Some((field(target, "name")?.to_owned(), path.into()))
}

/// What the compiler says, in a line of cargo's.
fn rendered(line: &str) -> String {
    let text = line
        .split_once("\"rendered\":\"")
        .map_or(line, |(_, text)| text);
    text.replace("\\n", "\n").replace("\\\"", "\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As long as they are only tried now and then, nobody else would notice one that
    /// no longer fits, or that stands in no function.
    #[test]
    fn the_projects_faults_fit_its_sources() {
        let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        for (package, least) in [("hyp", 150), ("pgtable", 150)] {
            let root = project.join(package);
            let faults = faults(&root);
            assert!(faults.len() >= least, "{package} has {}", faults.len());
            assert!(!spoilt(&root, &faults).is_empty());
        }
    }
}

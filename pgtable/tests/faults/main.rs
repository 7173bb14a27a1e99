//! Would the tests notice? Each file of `tests/mutants/` is a fault. All of them
//! are put into one copy of the source, of which a number chosen at start says
//! which runs; and for each the tests of the copy must fail.
//!
//! ```text
//! cargo test -p pgtable --features faults --test faults -- --nocapture
//! ```
//!
//! prints the table; `PGTABLE_FAULT=name` tries one.

mod instrument;
mod patch;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use patch::{Change, Fault};

/// The tests of the crate that the copy has, in the order in which they run;
/// then the model's ([`SEEDS`]).
const TESTS: [&str; 9] = [
    "strangers",
    "exact",
    "bounds",
    "rtt_budgets",
    "budgets",
    "gather",
    "walks",
    "shape",
    "encodings",
];

const SEEDS: &str = "seeds";

/// How long a test may take: one without end has noticed, too.
const PATIENCE: Duration = Duration::from_secs(600);

/// What says in the copy which fault runs; 0 is none.
const SWITCH: &str = "
/// Which fault runs.
pub mod fault {
    pub(crate) fn on() -> usize {
        static ON: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
        *ON.get_or_init(|| {
            let number = std::env::var(\"PGTABLE_FAULT_NUMBER\").unwrap_or_default();
            number.parse().unwrap_or(0)
        })
    }
}
";

/// A copy of the crate with all faults in it, built.
struct Copy {
    /// The tests' programs.
    programs: Vec<(String, PathBuf)>,
}

impl Copy {
    fn build(faults: &[Fault]) -> Self {
        let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("faults");
        let root = target.join("pgtable");
        let _ = fs::remove_dir_all(&root);
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        copy(&here.join("src"), &root.join("src"));
        for folder in ["tests/plain", "tests/judge"] {
            copy(&here.join(folder), &root.join(folder));
        }
        for test in TESTS {
            let name = format!("tests/{test}.rs");
            fs::copy(here.join(&name), root.join(&name)).expect("a test to copy");
        }
        fs::copy(
            here.join("tests/faults/seeds.rs"),
            root.join("tests/seeds.rs"),
        )
        .expect("seeds");
        fs::copy(here.join("README.md"), root.join("README.md")).expect("the crate's text");
        let model = here.join("model");
        let manifest = format!(
            "[package]\nname = \"pgtable\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\
             [features]\ndefault = [\"extra\"]\nextra = []\ntoy = []\nfixed-4k = []\n\
             [workspace]\n[dev-dependencies]\nmmu-model = {{ path = {model:?} }}\n\
             [profile.dev]\nopt-level = 1\ndebug = false\n\
             [profile.dev.package.mmu-model]\nopt-level = 3\n"
        );
        fs::write(root.join("Cargo.toml"), manifest).expect("a manifest");
        spoil(&root, faults);
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["test", "--no-run", "--message-format", "json", "--tests"]);
        let built = cargo
            .current_dir(&root)
            .env("CARGO_TARGET_DIR", target.join("target"))
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
        let order = TESTS.iter().chain([&SEEDS]);
        let programs = order
            .map(|name| {
                let path = programs.get(*name).unwrap_or_else(|| panic!("no {name}"));
                ((*name).to_owned(), path.clone())
            })
            .collect();
        Self { programs }
    }

    /// Runs the tests with a fault. Returns which one failed.
    fn run(&self, number: usize) -> Option<String> {
        self.programs.iter().find_map(|(name, path)| {
            let mut run = Command::new(path);
            let mut run = run
                .env("PGTABLE_FAULT_NUMBER", number.to_string())
                .env("RUST_BACKTRACE", "0")
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .arg("--test-threads=1")
                .spawn()
                .expect("a test runs");
            let began = Instant::now();
            loop {
                match run.try_wait().expect("a test ends") {
                    Some(status) if status.success() => return None,
                    Some(_) => return Some(name.clone()),
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
}

/// Puts all faults into the copy's source; they are numbered from 1 on.
fn spoil(root: &Path, faults: &[Fault]) {
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
    for (path, changes) in changes {
        let text = instrument::instrument(&sources[path], &changes);
        let text = text.unwrap_or_else(|what| panic!("{path}: {what}"));
        fs::write(root.join(path), text).expect("a source");
    }
    let lib = root.join("src/lib.rs");
    let text = fs::read_to_string(&lib).expect("a source");
    let text = text.replace("#![no_std]\n", "") + SWITCH;
    fs::write(lib, text).expect("a source");
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

#[test]
fn every_fault_is_noticed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mutants");
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .expect("the faults")
        .map(|entry| entry.expect("a file").path())
        .collect();
    files.sort();
    let faults: Vec<Fault> = files
        .iter()
        .map(|file| {
            let name = file.file_stem().expect("a name").to_string_lossy();
            Fault::parse(&name, &fs::read_to_string(file).expect("a fault"))
        })
        .collect();
    let copy = Copy::build(&faults);
    assert_eq!(copy.run(0), None, "without a fault");
    let only = std::env::var("PGTABLE_FAULT").ok();
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
                    match copy.run(1 + index) {
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
    println!(
        "{} faults, {} survive",
        count.into_inner().expect("no panic"),
        survivors.len()
    );
    assert!(survivors.is_empty(), "{survivors:?}");
}

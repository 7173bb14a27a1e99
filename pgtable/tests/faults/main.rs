//! Would the tests notice? Each file of `tests/mutants/` is a fault (crate `mutants`).
//!
//! ```text
//! cargo test -p pgtable --features faults --test faults -- --nocapture
//! ```
//!
//! prints the table; `MUTANT=name` tries one.

use std::path::Path;

use mutants::{Plan, Test, survivors};

/// The tests of the crate that the copy has, in the order in which they run;
/// then the model's (`seeds.rs`).
const TESTS: [&str; 12] = [
    "strangers",
    "rtt_rules",
    "exact",
    "bounds",
    "rtt_budgets",
    "budgets",
    "gather",
    "walks",
    "shape",
    "encodings",
    "refusals",
    "rtt_runs",
];

#[test]
fn every_fault_is_noticed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let model = root.join("model");
    let manifest = format!(
        "[package]\nname = \"pgtable\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\
         [features]\ndefault = [\"extra\"]\nextra = []\ntoy = []\nfixed-4k = []\n\
         [workspace]\n[dev-dependencies]\nmmu-model = {{ path = {model:?} }}\n\
         [profile.dev]\nopt-level = 1\ndebug = false\n\
         [profile.dev.package.mmu-model]\nopt-level = 3\n"
    );
    let same = |path: String| (path.clone(), path);
    let folders = ["tests/plain", "tests/log", "tests/judge", "README.md"].map(String::from);
    let tests = TESTS.map(|test| format!("tests/{test}.rs"));
    let seeds = ("tests/faults/seeds.rs".into(), "tests/seeds.rs".into());
    let copied = folders.into_iter().chain(tests).map(same).chain([seeds]);
    let test = |name| Test {
        name,
        ..Test::default()
    };
    let plan = Plan {
        root: root.into(),
        target: Path::new(env!("CARGO_TARGET_TMPDIR")).join("faults"),
        manifest,
        copied: copied.collect(),
        tests: TESTS.into_iter().chain(["seeds"]).map(test).collect(),
    };
    let survivors = survivors(&plan);
    assert!(survivors.is_empty(), "{survivors:?}");
}

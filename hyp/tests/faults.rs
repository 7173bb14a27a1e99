//! Would the tests notice? Each file of `tests/mutants/` is a fault of the RMI layer or
//! of what it stands on (crate `mutants`).
//!
//! ```text
//! cargo test -p hyp --features faults --test faults -- --nocapture
//! ```
//!
//! prints the table; `MUTANT=name` tries one.

use std::path::Path;

use mutants::{Plan, Test, survivors};

/// The copy's manifest: what hyp has, from where it stands.
fn manifest(root: &Path) -> String {
    let own = std::fs::read_to_string(root.join("Cargo.toml")).expect("hyp's manifest");
    let mut text = String::from(
        "[package]\nname = \"hyp\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\
         autobins = false\n[workspace]\n[features]\nworlds = []\n\
         [profile.dev]\nopt-level = 2\ndebug = false\noverflow-checks = true\n\
         [profile.dev.package.\"*\"]\nopt-level = 3\n",
    );
    let from = own.find("[dependencies]").expect("hyp has some");
    for line in own[from..].lines() {
        if line.starts_with("mutants ") {
            continue;
        }
        let line = line.replace("path = \"", &format!("path = \"{}/", root.display()));
        text += &line;
        text.push('\n');
    }
    text
}

#[test]
fn every_fault_is_noticed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let plan = Plan {
        root: root.into(),
        target: Path::new(env!("CARGO_TARGET_TMPDIR")).join("faults"),
        manifest: manifest(root),
        // The same dependencies; and a page that a test reads.
        copied: [
            ("tests/rmi", "tests/rmi"),
            ("../Cargo.lock", "Cargo.lock"),
            ("../docs/worlds.md", "../docs/worlds.md"),
        ]
        .map(|(from, to)| (from.into(), to.into()))
        .to_vec(),
        tests: vec![
            // What one CPU calls, then what several do.
            Test {
                name: "rmi",
                environment: &[("HYP_COMMANDS", "40000"), ("HYP_SHORTEN", "0")],
                ..Test::default()
            },
            Test {
                name: "hyp",
                ..Test::default()
            },
        ],
    };
    let survivors = survivors(&plan);
    assert!(survivors.is_empty(), "{survivors:?}");
}

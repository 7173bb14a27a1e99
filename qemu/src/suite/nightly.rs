//! What takes a nightly toolchain, in the full tier: Miri, and a while of each
//! fuzz target. Without such a toolchain the cases say how to get one.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Result, ensure};

use super::call::Call;
use super::{Case, Context, Counts, Outcome};

/// One call, building included.
const LIMIT: Duration = Duration::from_secs(3600);

/// How long each target is fuzzed. Longer runs: the folders' READMEs.
const FUZZED: &str = "-max_total_time=60";

/// Crates that Miri interprets, and which of their tests: those that feed a
/// model take minutes for one operation there.
const MIRI: [(&str, &[&str]); 4] = [
    (
        "pgtable",
        &["--lib", "--test", "stage2", "--test", "gather"],
    ),
    ("rmi", &["--lib"]),
    ("vgic", &["--lib", "--test", "registers"]),
    (
        "hyp",
        &[
            "--lib",
            "--",
            "rmi::tests",
            "cpu::",
            "guest::",
            "exception::",
            "rec::",
            "vmid",
            "memory::granule",
            "memory::pool",
            "memory::region",
            "--skip",
            "a_hostile_host",
        ],
    ),
];

/// Property tests read a file of past failures; hyp's tests give its handlers
/// memory by address, and leave it.
const MIRI_FLAGS: &str =
    "-Zmiri-disable-isolation -Zmiri-permissive-provenance -Zmiri-ignore-leaks";

/// Folders with fuzz targets, the targets, and the longest input of each.
const FUZZ: [(&str, &str, &str); 12] = [
    ("pgtable", "operations", "-max_len=1288"),
    ("pgtable", "realm", "-max_len=2048"),
    ("pgtable", "el2", "-max_len=1024"),
    ("pgtable", "arbitrary_memory", "-max_len=2048"),
    ("hyp", "host_calls", "-max_len=1600"),
    ("hyp", "cpu_life", "-max_len=512"),
    ("hyp/rmi", "decode", "-max_len=4096"),
    ("hyp/vgic", "delivery", "-max_len=1280"),
    ("hyp/vgic", "hostile", "-max_len=4096"),
    ("host-loader", "bundle", "-max_len=65536"),
    ("host-loader", "config", "-max_len=4096"),
    ("host-loader", "kernel", "-max_len=65536"),
];

/// Those of them whose crates have `unsafe`.
const UNSAFE: [&str; 2] = ["hyp", "host-loader"];

/// Folders with fuzz targets.
pub fn fuzz_folders() -> Vec<&'static str> {
    let mut folders = FUZZ.map(|(folder, ..)| folder).to_vec();
    folders.dedup();
    folders
}

/// The cases.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (package, tests) in MIRI {
        cases.push(Case::of_cargo(format!("miri/{package}"), move |context| {
            miri(context, package, tests)
        }));
    }
    for (folder, target, longest) in FUZZ {
        cases.push(Case::of_cargo(
            format!("fuzz/{folder}-{target}"),
            move |context| fuzz(context, folder, target, longest),
        ));
    }
    cases.into_iter().map(Case::full).collect()
}

fn miri(context: &Context, package: &str, tests: &[&str]) -> Result<Outcome> {
    if !works(&["miri", "--version"]) {
        return Ok(Outcome::skipped(
            "no Miri: rustup toolchain install nightly --component miri,rust-src",
        ));
    }
    nightly(context, "miri", &["miri", "test", "-p", package])
        .args(tests)
        .env("MIRIFLAGS", MIRI_FLAGS)
        .env("PROPTEST_CASES", "1")
        .call()?
        .ended(0)?
        .shows(&["test result: ok."])?;
    Ok(Counts::ONE.into())
}

fn fuzz(context: &Context, folder: &str, target: &str, longest: &str) -> Result<Outcome> {
    if !works(&["fuzz", "--version"]) {
        return Ok(Outcome::skipped(
            "no cargo-fuzz: rustup toolchain install nightly; cargo install cargo-fuzz",
        ));
    }
    let corpus = tempfile::tempdir_in(&context.folder)?;
    let artifacts = context.folder.join("");
    // Most crates have no `unsafe`: there is nothing for a sanitizer.
    let sanitizer = if UNSAFE.contains(&folder) {
        "address"
    } else {
        "none"
    };
    let dir = context.workspace.root.join(folder).join("fuzz");
    let called = nightly(context, sanitizer, &["fuzz", "run", "-s", sanitizer])
        .args(["--fuzz-dir"])
        .args([&dir])
        .args([target.as_ref(), corpus.path()])
        .args(["--", FUZZED, longest, "-len_control=0"])
        .args([format!("-artifact_prefix={}", artifacts.display())])
        .call()?
        .ended(0)?;
    let done = called.stderr.lines().rfind(|l| l.starts_with("Done "));
    ensure!(done.is_some(), "it did not fuzz\n{}", called.stderr);
    Ok(Outcome {
        counts: Counts::ONE,
        says: done.map(String::from),
        ..Outcome::default()
    })
}

/// `cargo` of the nightly toolchain; builds of one `kind` share what they can.
fn nightly(context: &Context, kind: &str, arguments: &[&str]) -> Call {
    let target = context.workspace.target.join("nightly").join(kind);
    Call::program("rustup", LIMIT)
        .args(["run", "nightly", "cargo"])
        .args(arguments)
        .within(&context.workspace.root)
        .env("CARGO_TARGET_DIR", target)
        .env("CARGO_TERM_COLOR", "never")
}

/// Whether that toolchain has this subcommand.
fn works(arguments: &[&str]) -> bool {
    Command::new("rustup")
        .args(["run", "nightly", "cargo"])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

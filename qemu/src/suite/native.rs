//! Checks and tests that need no machine: format, lints, documentation, and
//! the tests of each crate on this machine.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::call::Call;
use super::{Case, Context, Counts, Tier, nightly};
use crate::setup::rust::TARGET;
use crate::workspace::Workspace;

/// Crates whose programs run on the machine, not here.
const BARE_METAL: [&str; 3] = ["hyp", "host-loader", "tests"];

/// How long one call of cargo may take, building included.
const LIMIT: Duration = Duration::from_secs(15 * 60);
const LIMIT_OF_FULL: Duration = Duration::from_secs(6 * 3600);

/// The cases: checks first, then one of each crate.
pub fn cases(workspace: &Workspace) -> Vec<Case> {
    let mut cases = vec![
        check("check/format", |_| vec![vec!["fmt", "--all", "--check"]]),
        check("check/lints", |workspace| {
            // In one call, so that what several use is looked at once.
            let mut here = vec!["clippy", "--quiet", "--workspace"];
            here.extend(["--lib", "--tests", "--examples", "--benches"]);
            let mut there = vec!["clippy", "--quiet", "--release", "--target", TARGET];
            for package in BARE_METAL {
                there.extend(["-p", package]);
            }
            // Programs of the others do not build here.
            for package in workspace.packages().filter(|p| !BARE_METAL.contains(p)) {
                here.extend(workspace.bins(package).flat_map(|bin| ["--bin", bin]));
            }
            for call in [&mut here, &mut there] {
                call.extend(["--", "-D", "warnings"]);
            }
            vec![here, there]
        }),
        check("check/documentation", |_| {
            let mut here = vec!["doc", "--quiet", "--no-deps", "--workspace"];
            let mut there = vec!["doc", "--quiet", "--no-deps", "--target", TARGET];
            for package in BARE_METAL {
                here.extend(["--exclude", package]);
                there.extend(["-p", package]);
            }
            // Nobody but their readers uses them: all of them is to be read.
            there.push("--document-private-items");
            vec![here, there]
        }),
        Case::of_cargo("check/fuzz-targets", fuzz_targets),
    ];
    for package in workspace.packages() {
        let package = package.to_string();
        let (library, programs) = (
            workspace.has_lib(&package),
            !BARE_METAL.contains(&&*package),
        );
        if !library && !programs {
            continue;
        }
        cases.push(Case::of_cargo(format!("crate/{package}"), move |context| {
            let mut counts = Counts::default();
            let mut arguments = vec!["test", "-p", &package, "--no-fail-fast"];
            if programs {
                counts += test(context, &arguments)?;
            } else {
                arguments.extend(["--lib", "--tests"]);
                counts += test(context, &arguments)?;
                counts += test(context, &["test", "-p", &package, "--doc"])?;
            }
            Ok(counts)
        }));
    }
    cases
}

/// A case that passes when all these calls of cargo do.
fn check(name: &str, calls: fn(&Workspace) -> Vec<Vec<&str>>) -> Case {
    Case::of_cargo(name, move |context| {
        let mut wrong = String::new();
        for arguments in calls(&context.workspace) {
            let (ok, output) = call(context, &arguments)?;
            if !ok {
                wrong += &format!("cargo {}\n{}", arguments.join(" "), tail(&output));
            }
        }
        ensure!(wrong.is_empty(), "{wrong}");
        Ok(Counts::ONE)
    })
}

/// Fuzz targets are of workspaces of their own, and run with a nightly compiler: here
/// they are compiled, so that what they call is not changed without them, and
/// held to the lints of their manifests.
fn fuzz_targets(context: &Context) -> Result<Counts> {
    let target = context.workspace.scratch().join("fuzz");
    for folder in nightly::fuzz_folders() {
        let manifest = context.workspace.root.join(folder).join("fuzz/Cargo.toml");
        let called = Call::of(context.workspace.cargo(), LIMIT)
            .args(["clippy", "--quiet", "--manifest-path"])
            .args([&manifest])
            .args(["--target-dir"])
            .args([&target])
            // Nothing is linked: the fuzzer itself needs no building.
            .env("CUSTOM_LIBFUZZER_PATH", target.join("none"))
            .env("CARGO_TERM_COLOR", "never")
            .call()?;
        let output = called.stdout + &called.stderr;
        ensure!(called.code == Some(0), "{folder}/fuzz\n{}", tail(&output));
    }
    Ok(Counts::ONE)
}

/// Runs `cargo test` and adds up what its programs report.
fn test(context: &Context, arguments: &[&str]) -> Result<Counts> {
    let (ok, output) = call(context, arguments)?;
    let counts = count(&output);
    if !ok {
        let mut counts = counts;
        // One that did not even come to a report has failed as well.
        counts.failed = counts.failed.max(1);
        bail!(TestsFailed(
            counts,
            format!("cargo {}\n{}", arguments.join(" "), tail(&output))
        ));
    }
    Ok(counts)
}

/// Tests of a crate that failed, with those that passed.
#[derive(Debug)]
pub struct TestsFailed(pub Counts, String);

impl std::fmt::Display for TestsFailed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.1)
    }
}

impl std::error::Error for TestsFailed {}

/// Reads `test result: ok. 12 passed; 0 failed; 1 ignored; …` lines.
fn count(output: &str) -> Counts {
    let mut counts = Counts::default();
    for line in output
        .lines()
        .filter_map(|line| line.strip_prefix("test result: "))
    {
        let words: Vec<_> = line
            .split([' ', ';', '.'])
            .filter(|word| !word.is_empty())
            .collect();
        let number = |what: &str| -> u32 {
            let at = words.iter().position(|word| *word == what);
            at.and_then(|at| words.get(at.checked_sub(1)?)?.parse().ok())
                .unwrap_or(0)
        };
        counts += Counts {
            passed: number("passed"),
            failed: number("failed"),
            skipped: number("ignored"),
        };
    }
    counts
}

/// Calls cargo; returns whether it succeeded, and all that it said.
fn call(context: &Context, arguments: &[&str]) -> Result<(bool, String)> {
    let limit = match context.tier {
        Tier::Quick => LIMIT,
        Tier::Full => LIMIT_OF_FULL,
    };
    let mut call = Call::of(context.workspace.cargo(), limit)
        .args(arguments)
        .env("RUSTDOCFLAGS", "-D warnings")
        .env("CARGO_TERM_COLOR", "never");
    if context.tier == Tier::Full {
        // Property tests ask it how much they are to do.
        call = call.env("UNDERCROFT_TIER", "full");
    }
    let called = call
        .call()
        .with_context(|| format!("cargo {}", arguments.join(" ")))?;
    Ok((called.code == Some(0), called.stdout + &called.stderr))
}

fn tail(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..]
        .iter()
        .map(|line| format!("  | {line}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_of_several_programs_are_added_up() {
        let output = "running 3 tests\ntest result: ok. 12 passed; 0 failed; 1 ignored; \
                      0 measured; 0 filtered out; finished in 0.02s\n\
                      test result: FAILED. 2 passed; 3 failed; 0 ignored; 0 measured\n";
        let counts = count(output);
        assert_eq!((counts.passed, counts.failed, counts.skipped), (14, 3, 1));
        assert_eq!(count("error: could not compile"), Counts::default());
    }
}

//! Each configuration of the boot matrix as a test, so that cargo-nextest and whatever
//! else runs Rust's tests finds, filters, repeats and spreads them:
//!
//! ```text
//! cargo nextest run -p qemu --test matrix hyp16k --partition count:2/8
//! cargo test -p qemu --test matrix -- --list
//! ```
//!
//! The runner knows them and boots them: this asks it. `UNDERCROFT_TIER=full` takes all
//! triples instead of all pairs; `UNDERCROFT_REPORT=DIR` leaves what each machine was and
//! said in a folder of its name there, from the workspace's root on, which
//! `cargo qemu matrix --join` brings together.

use std::env;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use libtest_mimic::{Arguments, Failed, Trial};

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let names = match names() {
        Ok(names) => names,
        Err(why) => {
            eprintln!("{why}");
            return ExitCode::FAILURE;
        }
    };
    let trials = names
        .into_iter()
        .map(|name| Trial::test(name.clone(), move || boot(&name)))
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// The runner, behind `cargo qemu matrix`.
fn matrix() -> Command {
    // Where tests run elsewhere than they were built, nextest says where the runner is.
    let moved = env::var_os("NEXTEST_BIN_EXE_qemu");
    let runner = moved.map_or_else(|| env!("CARGO_BIN_EXE_qemu").into(), PathBuf::from);
    let mut command = Command::new(runner);
    command.arg("matrix");
    command
}

/// All configurations of the tier.
fn names() -> Result<Vec<String>, String> {
    let tier = env::var("UNDERCROFT_TIER").unwrap_or_else(|_| "quick".into());
    let listed = matrix()
        .args(["--list", "--tier", &tier])
        .output()
        .map_err(|error| format!("cannot run the runner: {error}"))?;
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    if !listed.status.success() {
        return Err(text(&listed.stderr));
    }
    Ok(text(&listed.stdout).lines().map(String::from).collect())
}

fn boot(name: &str) -> Result<(), Failed> {
    let mut command = matrix();
    command.args(["--json", "--case", name]);
    if let Some(folder) = env::var_os("UNDERCROFT_REPORT") {
        // Cargo runs tests in their package's folder.
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
        let folder = PathBuf::from(root).join(folder);
        command.arg("--report").arg(folder.join(name));
    }
    // Whoever joins the reports says what all of them come to.
    command.env_remove("GITHUB_STEP_SUMMARY");
    let booted = command.output()?;
    if booted.status.success() {
        return Ok(());
    }
    let (said, more) = (
        String::from_utf8_lossy(&booted.stdout),
        String::from_utf8_lossy(&booted.stderr),
    );
    Err(format!("{said}{more}").into())
}

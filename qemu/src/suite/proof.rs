//! The longer proofs: of the table library, a run of the state machine against the
//! model, deliberate faults, instruction counts; of the RMI layer, a run against its
//! specification.

use std::time::Duration;

use anyhow::{Result, bail, ensure};

use super::call::{Call, Called};
use super::{Case, Context, Counts, Outcome, Tier};
use crate::bench::{exits, memory};
use crate::setup::valgrind;

/// Building included.
const LIMIT: Duration = Duration::from_secs(20 * 60);
/// Of the full tier's run: a slow machine's night.
const LIMIT_OF_FULL: Duration = Duration::from_secs(12 * 3600);

/// Operations on tables, each judged, at each change.
const OPERATIONS: &str = "1000000";
/// And in the full tier.
const OPERATIONS_OF_FULL: &str = "100000000";

/// The host's calls, each compared with the specification of the RMI layer.
const COMMANDS: &str = "1000000";
/// And in the full tier.
const COMMANDS_OF_FULL: &str = "50000000";

/// Of what a failed run has to say.
const FIRST_LINES: usize = 40;

/// The cases.
pub fn cases() -> Vec<Case> {
    vec![
        Case::of_cargo("proof/operations", operations),
        Case::of_cargo("proof/commands", commands),
        Case::of_cargo("proof/mutants", mutants),
        Case::of_cargo("proof/mutants-rmi", mutants_of_rmi),
        Case::of_cargo("proof/speed", speed),
        Case::new("tests/memory-costs", memory),
        Case::new("tests/exit-costs", exits),
    ]
}

/// What handing memory over costs.
fn memory(context: &Context) -> Result<()> {
    let rows = memory::measure(&context.workspace, context.qemu()?)?;
    let missed = rows.iter().find(|row| !row.passes());
    if let Some(row) = missed {
        bail!("a gate was missed\n{}\n{row}", memory::HEAD);
    }
    Ok(())
}

/// Each way out of a guest costs what it did, also beside many.
fn exits(context: &Context) -> Result<()> {
    let rows = exits::measure(&context.workspace, context.qemu()?)?;
    let missed = rows.iter().find(|row| !row.passes());
    if let Some(row) = missed {
        bail!(
            "{row:?}\na row differs from its figure in qemu/src/bench/exits.rs: put the new one \
             in by hand, and say why in the commit"
        );
    }
    Ok(())
}

/// All operations of the library in random order, against the model. The full
/// tier's run says how far it is, and goes on there when it was stopped.
fn operations(context: &Context) -> Result<Outcome> {
    let full = context.tier == Tier::Full;
    let (operations, limit) = if full {
        (OPERATIONS_OF_FULL, LIMIT_OF_FULL)
    } else {
        (OPERATIONS, LIMIT)
    };
    // What crate/pgtable builds is optimized, and soon done with a million of them: one
    // more build would take longer than it saves.
    let profile = if full { "release" } else { "dev" };
    let mut call = cargo_call(context, limit)
        .args(["test", "--profile", profile, "-p", "pgtable"])
        .args(["--test", "state_machine", "--", "--nocapture"])
        .args(["many_operations_keep_the_rules"])
        .env("PGTABLE_OPS", operations);
    if full {
        call = call
            .env("PGTABLE_STATE", context.folder.join("operations.seed"))
            .env("PGTABLE_TALLY", "1")
            .stderr_shown();
    }
    let called = call.call()?;
    if called.code != Some(0) {
        bail!("{}", what_failed(&called));
    }
    let called = passed(called, 1)?;
    let last = called.stderr.lines().rfind(|l| l.starts_with("seeds "));
    Ok(Outcome {
        counts: Counts::ONE,
        says: last.map(String::from),
        ..Outcome::default()
    })
}

/// The seed, what was wrong, and how to repeat it come first; what is behind them is
/// for a debugger.
fn what_failed(called: &Called) -> String {
    let said: Vec<_> = called.stderr.lines().collect();
    let from = said.iter().position(|l| l.starts_with("seed "));
    let from = from.unwrap_or(said.len().saturating_sub(FIRST_LINES));
    said[from..said.len().min(from + FIRST_LINES)].join("\n")
}

/// A host's calls in random order, natively, against the specification.
fn commands(context: &Context) -> Result<Outcome> {
    // As of the operations, with what crate/hyp builds.
    let (commands, limit, profile) = if context.tier == Tier::Full {
        (COMMANDS_OF_FULL, LIMIT_OF_FULL, "proof")
    } else {
        (COMMANDS, LIMIT, "dev")
    };
    let called = cargo_call(context, limit)
        .args(["test", "--profile", profile, "-p", "hyp"])
        .args(["--test", "rmi", "--", "--nocapture"])
        .env("HYP_COMMANDS", commands)
        .call()?;
    if called.code != Some(0) {
        bail!("{}", what_failed(&called));
    }
    // One CPU's calls, and those of several.
    let called = passed(called, 2)?;
    let last = called.stderr.lines().rfind(|l| l.starts_with("sequences "));
    Ok(Outcome {
        counts: Counts::ONE,
        says: last.map(String::from),
        ..Outcome::default()
    })
}

/// Faults put into a copy of the table library's source, one of which runs at a time:
/// each must be noticed.
fn mutants(context: &Context) -> Result<Outcome> {
    faults_of(context, "pgtable", 140)
}

/// The same of the RMI layer.
fn mutants_of_rmi(context: &Context) -> Result<Outcome> {
    faults_of(context, "hyp", 125)
}

/// The faults of a crate, `least` at least.
fn faults_of(context: &Context, package: &str, least: usize) -> Result<Outcome> {
    let called = cargo_call(context, LIMIT)
        .args(["test", "-p", package, "--features", "faults"])
        .args(["--test", "faults", "--", "--nocapture"])
        .call()?;
    let called = passed(called, 1)?;
    let table: Vec<_> = called
        .stdout
        .lines()
        .skip_while(|line| !line.starts_with("fault "))
        .take_while(|line| !line.starts_with("test result"))
        // The harness says in between that a test takes long.
        .filter(|line| !line.is_empty() && !line.starts_with("test "))
        .collect();
    ensure!(
        table.len() >= least,
        "only {} lines of a table\n{}",
        table.len(),
        called.stdout
    );
    Ok(Outcome {
        counts: Counts::ONE,
        says: Some(table.join("\n")),
        ..Outcome::default()
    })
}

/// Instructions, stores, TLBIs and barriers of each workload, against goals.
fn speed(context: &Context) -> Result<Outcome> {
    if let Err(why) = valgrind::ensure(&context.workspace.scratch())? {
        return Ok(Outcome::skipped(why));
    }
    let called = cargo_call(context, LIMIT)
        .args(["bench", "-p", "pgtable", "--bench", "instructions"])
        .args(["--", "--all", "--fixed"])
        .call()?;
    if called.code != Some(0) {
        bail!("{}{}", called.stdout, called.stderr);
    }
    Ok(Outcome {
        counts: Counts::ONE,
        says: Some(called.stdout),
        ..Outcome::default()
    })
}

fn cargo_call(context: &Context, limit: Duration) -> Call {
    Call::of(context.workspace.cargo(), limit).env("CARGO_TERM_COLOR", "never")
}

/// Asks that as many of cargo's tests ran as meant, and passed.
fn passed(called: Called, tests: u32) -> Result<Called> {
    called
        .ended(0)?
        .shows(&[&format!("test result: ok. {tests} passed")])
}

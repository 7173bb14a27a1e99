//! The longer proofs of the table library: a run of the state machine against
//! the model, deliberate faults, instruction counts; and in the full tier what
//! needs a nightly toolchain.

use std::time::Duration;

use anyhow::{Result, bail, ensure};

use super::call::{Call, Called};
use super::{Case, Context, Counts, Outcome, Tier};
use crate::bench::memory;
use crate::setup::valgrind;

/// Building included.
const LIMIT: Duration = Duration::from_secs(20 * 60);
/// Of the full tier's run: a slow machine's night.
const LIMIT_OF_FULL: Duration = Duration::from_secs(12 * 3600);

/// Operations on tables, each judged, at each change.
const OPERATIONS: &str = "1000000";
/// And in the full tier.
const OPERATIONS_OF_FULL: &str = "100000000";

/// Of what a failed run has to say.
const FIRST_LINES: usize = 40;

/// The cases.
pub fn cases() -> Vec<Case> {
    vec![
        Case::of_cargo("proof/operations", operations),
        Case::of_cargo("proof/mutants", mutants),
        Case::of_cargo("proof/speed", speed),
        Case::new("tests/memory-costs", memory),
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

/// All operations of the library in random order, against the model. The full
/// tier's run says how far it is, and goes on there when it was stopped.
fn operations(context: &Context) -> Result<Outcome> {
    let full = context.tier == Tier::Full;
    let (operations, limit) = if full {
        (OPERATIONS_OF_FULL, LIMIT_OF_FULL)
    } else {
        (OPERATIONS, LIMIT)
    };
    let mut call = cargo_call(context, limit)
        .args(["test", "--release", "-p", "pgtable"])
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
        // The seed, what was wrong, and how to repeat it come first; the
        // operations behind them are for a debugger.
        let said: Vec<_> = called.stderr.lines().collect();
        let from = said.iter().position(|l| l.starts_with("seed "));
        let from = from.unwrap_or(said.len().saturating_sub(FIRST_LINES));
        let said = &said[from..said.len().min(from + FIRST_LINES)];
        bail!("{}", said.join("\n"));
    }
    let called = passed(called, 1)?;
    let last = called.stderr.lines().rfind(|l| l.starts_with("seeds "));
    Ok(Outcome {
        counts: Counts::ONE,
        says: last.map(String::from),
    })
}

/// Faults put into a copy of the source, one of which runs at a time: each must be
/// noticed.
fn mutants(context: &Context) -> Result<Outcome> {
    let called = cargo_call(context, LIMIT)
        .args(["test", "-p", "pgtable", "--features", "faults"])
        .args(["--test", "faults", "--", "--nocapture"])
        .call()?;
    // The faults, and that each of them is in the copy that runs.
    let called = passed(called, 2)?;
    let table: Vec<_> = called
        .stdout
        .lines()
        .skip_while(|line| !line.starts_with("fault "))
        .take_while(|line| !line.starts_with("test result"))
        // The harness says in between that a test takes long.
        .filter(|line| !line.is_empty() && !line.starts_with("test "))
        .collect();
    ensure!(
        table.len() >= 140,
        "only {} lines of a table\n{}",
        table.len(),
        called.stdout
    );
    Ok(Outcome {
        counts: Counts::ONE,
        says: Some(table.join("\n")),
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

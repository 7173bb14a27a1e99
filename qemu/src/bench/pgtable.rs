//! `cargo qemu bench pgtable`: the table library's own benchmarks, shown as they
//! are or read into rows.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::ui::{self, Step};
use crate::workspace::Workspace;

/// Counts instructions in every format, and what the choice of a granule costs.
pub const COUNT: &[&str] = &["--bench", "instructions", "--", "--all", "--fixed"];

/// Measures time.
pub const TIME: &[&str] = &["--bench", "time", "--", "--quiet"];

/// The same, a line each: `test NAME ... bench:  123 ns/iter (+/- 4)`.
const TIME_LINES: &[&str] = &["--bench", "time", "--", "--output-format", "bencher"];

/// What a workload takes in a format.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Counted {
    format: String,
    workload: String,
    /// What is counted in: entries, pages.
    unit: String,
    /// Instructions a unit.
    instructions: f64,
    /// The most that they may be.
    goal: f64,
    /// Stores to tables a unit.
    stores: f64,
    tlbis: u64,
    barriers: u64,
    /// Pages of tables.
    tables: u64,
}

/// How long a workload takes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Timed {
    workload: String,
    nanoseconds: f64,
}

/// Runs a benchmark that prints its own tables; whether it says that all is well.
///
/// # Errors
/// When cargo cannot be run, or standard output has no reader.
pub fn show(workspace: &Workspace, arguments: &[&str]) -> Result<bool> {
    let (text, well) = run(workspace, arguments)?;
    ui::print(text.trim_end())?;
    Ok(well)
}

/// Counts; whether all goals were met.
///
/// # Errors
/// When cargo cannot be run, or nothing was counted.
pub fn count(workspace: &Workspace) -> Result<(Vec<Counted>, bool)> {
    let (text, well) = run(workspace, COUNT)?;
    let rows = counted(&text);
    ensure!(!rows.is_empty(), "nothing was counted:\n{text}");
    Ok((rows, well))
}

/// Measures time.
///
/// # Errors
/// When cargo cannot be run, or nothing was measured.
pub fn time(workspace: &Workspace) -> Result<Vec<Timed>> {
    let (text, _) = run(workspace, TIME_LINES)?;
    let rows: Vec<Timed> = text.lines().filter_map(timed).collect();
    ensure!(!rows.is_empty(), "nothing was measured:\n{text}");
    Ok(rows)
}

fn run(workspace: &Workspace, arguments: &[&str]) -> Result<(String, bool)> {
    let step = Step::new("Measuring", "the table library");
    let output = workspace
        .cargo()
        .args(["bench", "--quiet", "-p", "pgtable"])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .context("cannot run cargo")?;
    drop(step);
    let errors = String::from_utf8_lossy(&output.stderr);
    if !errors.trim().is_empty() {
        ui::say(errors.trim_end());
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok((text, output.status.success()))
}

/// Reads the table that `pgtable/benches/instructions.rs` prints.
fn counted(text: &str) -> Vec<Counted> {
    let row = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        let [
            format,
            workload,
            unit,
            instructions,
            goal,
            stores,
            tlbis,
            barriers,
            tables,
        ] = words.as_slice()
        else {
            return None;
        };
        Some(Counted {
            format: (*format).into(),
            workload: (*workload).into(),
            unit: (*unit).into(),
            instructions: instructions.parse().ok()?,
            goal: goal.parse().ok()?,
            stores: stores.parse().ok()?,
            tlbis: tlbis.parse().ok()?,
            barriers: barriers.parse().ok()?,
            tables: tables.parse().ok()?,
        })
    };
    text.lines().filter_map(row).collect()
}

fn timed(line: &str) -> Option<Timed> {
    let (workload, rest) = line.strip_prefix("test ")?.split_once(" ... bench:")?;
    let (nanoseconds, _) = rest.trim().split_once(" ns/iter")?;
    Some(Timed {
        workload: workload.trim().into(),
        nanoseconds: nanoseconds.replace(',', "").parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_from_what_the_benchmarks_print() {
        let text = "format   workload         unit     instr   goal  stores  TLBIs  barr.  tables\n\
                    4k       map-pages         page     12.34     30   1.002      0      2     513\n\
                    LPA2 to 4K without, by 5 % at most:\n  \
                    map-pages          12.34     12.30   +0.3 %\n";
        let rows = counted(text);
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].workload, "map-pages");
        assert_eq!((rows[0].instructions, rows[0].tables), (12.34, 513));
        let row = timed("test 4k/map-pages ... bench:     123,456 ns/iter (+/- 78)");
        let row = row.expect("a row");
        assert_eq!(row.workload, "4k/map-pages");
        assert_eq!(row.nanoseconds, 123_456.0);
        assert_eq!(timed("running 3 tests"), None);
    }
}

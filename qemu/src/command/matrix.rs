//! `cargo qemu matrix`.

use std::path::{self, Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde::Serialize;

use super::test::{self, How};
use crate::matrix::cell::KEYS;
use crate::matrix::known::List;
use crate::matrix::{self, Cell, Manner, reference, report};
use crate::run::ending::FAILED;
use crate::run::options::port;
use crate::ui;
use crate::workspace::Workspace;

/// Which configurations, and what to do with them.
#[derive(Args, Debug)]
pub struct Options {
    #[command(flatten)]
    how: How,

    /// Only configurations with these values, as `hw=lpa2,hyp=16k`; may be given more
    /// than once
    #[arg(long, value_name = "KEY=VALUE,...")]
    filter: Vec<String>,

    /// The rows of the test that proved LPA2 for KVM
    #[arg(long, conflicts_with = "rerun_failed")]
    reference: bool,

    /// Only each N-th configuration, from the I-th on
    #[arg(long, value_name = "I/N", value_parser = shard)]
    shard: Option<(usize, usize)>,

    /// Only those that failed or did not report in this folder of a --report: after an
    /// interruption, the rest
    #[arg(long, value_name = "DIR")]
    rerun_failed: Option<PathBuf>,

    /// List the configurations instead of booting them
    #[arg(long)]
    list: bool,

    /// Tell what a configuration is, or which rule excludes it
    #[arg(long, value_name = "NAME", conflicts_with_all = ["list", "case"])]
    explain: Option<String>,

    /// Boot this configuration, of whatever tier, and show what it says
    #[arg(long, value_name = "NAME")]
    #[arg(conflicts_with_all = ["list", "filter", "shard", "rerun_failed", "reference"])]
    case: Option<String>,

    /// Let its machine wait for a debugger, on a socket of its own or this TCP port
    #[arg(long, value_name = "PORT", requires = "case", value_parser = port)]
    #[allow(clippy::option_option, reason = "an option with an optional value")]
    gdb: Option<Option<u16>>,

    /// Leave what each machine was and said there, all results, JUnit and a page
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,

    /// Boot nothing: bring these folders of other --reports together in --report
    #[arg(long, value_name = "DIR", num_args = 1.., requires = "report")]
    #[arg(conflicts_with_all = [
        "list", "case", "filter", "shard", "rerun_failed", "reference", "expected", "gdb",
        "image", "patience",
    ])]
    join: Vec<PathBuf>,

    /// Say what is newly red since this folder of an earlier --report
    #[arg(long, value_name = "DIR", requires = "report")]
    against: Option<PathBuf>,

    /// How long a machine may say nothing [default: 300]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    patience: Option<u32>,

    /// Failures that are known: a TOML file of `expected` tables with a filter, a reason
    /// and a link
    #[arg(long, value_name = "FILE")]
    expected: Option<PathBuf>,
}

/// A line of a list.
#[derive(Serialize)]
struct Listed {
    name: String,
    #[serde(flatten)]
    values: std::collections::BTreeMap<&'static str, String>,
    masked: bool,
}

/// Boots configurations; the exit status is 0 when nothing failed.
///
/// # Errors
/// When it does not come to a boot.
pub fn matrix(options: &Options) -> Result<u8> {
    if let Some(name) = &options.explain {
        explain(name)?;
        return Ok(0);
    }
    let report = options.report.as_deref().map(path::absolute).transpose()?;
    let against = options.against.as_deref();
    if let (false, Some(folder)) = (options.join.is_empty(), &report) {
        report::join(&options.join, folder)?;
        return finish(folder, against, 0);
    }
    ensure!(
        options.gdb.is_none() || options.case.is_some(),
        "--gdb is for one configuration: --case NAME"
    );
    let cells = chosen(options)?;
    if options.list {
        for cell in cells {
            list(&cell, options.how.json)?;
        }
        return Ok(0);
    }
    if cells.is_empty() {
        ui::say("nothing of that report is left to boot");
        // The run before may have been ended just then.
        return match &report {
            Some(folder) if same(options.rerun_failed.as_deref(), folder) => {
                finish(folder, against, 0)
            }
            _ => Ok(0),
        };
    }
    // Before hours of boots, not behind them.
    against.map(report::read).transpose()?;
    let known = options.expected.as_deref().map(List::read).transpose()?;
    for known in known.iter().flat_map(|list| list.idle(&cells)) {
        ui::warn(format_args!("--expected: none is `{}`", known.filter));
    }
    let manner = |cell: &Cell| Manner {
        known: known.as_ref().and_then(|list| list.find(cell)).cloned(),
        shown: options.case.is_some() && !options.how.json,
        patience: (options.patience).map(|seconds| Duration::from_secs(seconds.into())),
        gdb: options.gdb,
    };
    let case = |cell: &Cell| matrix::case(*cell, manner(cell));
    if let Some(folder) = &report {
        report::plan(folder, &cells)?;
    }
    let status = test::run(
        Workspace::find()?,
        cells.iter().map(case).collect(),
        &options.how,
        report.as_deref(),
    )?;
    match &report {
        Some(folder) => finish(folder, against, status),
        None => Ok(status),
    }
}

/// Whether these are one folder.
fn same(one: Option<&Path>, other: &Path) -> bool {
    let whole = |folder: &Path| folder.canonicalize().ok();
    one.is_some_and(|one| whole(one).is_some() && whole(one) == whole(other))
}

/// Makes of a report what people read; the exit status is 0 where all of it is well.
fn finish(folder: &Path, against: Option<&Path>, status: u8) -> Result<u8> {
    let finished = report::finish(folder, against)?;
    for line in finished.summary.lines() {
        ui::say(ui::fold(line.trim_start_matches("- "), "  "));
    }
    ui::say(finished.page.display());
    Ok(if finished.is_well { status } else { FAILED })
}

/// The configurations that the options ask for.
fn chosen(options: &Options) -> Result<Vec<Cell>> {
    if let Some(name) = &options.case {
        let cell = find(name)?;
        if let Some(rule) = cell.excluded() {
            bail!("{name} cannot be: {rule}");
        }
        return Ok(vec![cell]);
    }
    for filter in &options.filter {
        Cell::checked(filter).context("--filter")?;
    }
    let fits = |cell: &Cell| {
        options.filter.is_empty() || options.filter.iter().any(|filter| cell.matches(filter))
    };
    let mut cells = if options.reference {
        let mut rows: Vec<Cell> = Vec::new();
        for row in reference::rows() {
            if !rows.contains(&row.cell) {
                rows.push(row.cell);
            }
        }
        rows
    } else {
        matrix::cells(options.how.tier)
    };
    cells.retain(fits);
    if let Some(folder) = &options.rerun_failed {
        let rows = report::read(folder).context("--rerun-failed")?;
        let bad = rows.iter().filter(|row| row.status.is_bad());
        let mut failed: Vec<_> = bad.map(|row| row.cell).collect();
        failed.retain(|cell| fits(cell));
        cells = failed;
    }
    if let Some((first, of)) = options.shard {
        cells = cells.into_iter().skip(first - 1).step_by(of).collect();
    }
    ensure!(
        !cells.is_empty() || options.rerun_failed.is_some(),
        "no configuration is left: --list shows those of a tier, and --tier full has more"
    );
    Ok(cells)
}

fn list(cell: &Cell, json: bool) -> Result<()> {
    if !json {
        return Ok(ui::print(cell.name())?);
    }
    let listed = Listed {
        name: cell.name(),
        values: KEYS.into_iter().zip(cell.words()).collect(),
        masked: cell.is_masked(),
    };
    Ok(ui::print(serde_json::to_string(&listed)?)?)
}

/// The configuration of this name, as the suite has it too.
fn find(name: &str) -> Result<Cell> {
    Cell::called(name.strip_prefix("matrix/").unwrap_or(name))
}

fn explain(name: &str) -> Result<()> {
    let cell = find(name)?;
    for (key, word) in KEYS.iter().zip(cell.words()) {
        ui::print(format_args!("{key:<10} {word}"))?;
    }
    ui::print(format_args!("{:<10} {}", "cpu", cell.hw.cpu()))?;
    if cell.is_masked() {
        ui::print("masked     the CPU has it, a boot argument takes it away")?;
    }
    if let Some(geometry) = cell.geometry() {
        ui::print(format_args!(
            "stage 2    VTCR_EL2 {:#x}, from level {}, root tables: {}",
            geometry.vtcr(),
            geometry.start().get(),
            geometry.root_tables()
        ))?;
    }
    match cell.excluded() {
        Some(rule) => ui::print(ui::fold(&format!("excluded   {rule}"), "           "))?,
        None => ui::print(format_args!(
            "boot it    cargo qemu matrix --case {}",
            cell.name()
        ))?,
    }
    Ok(())
}

fn shard(text: &str) -> Result<(usize, usize), String> {
    let numbers = text.split_once('/');
    let numbers = numbers.and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    numbers
        .filter(|(first, of)| (1..=*of).contains(first))
        .ok_or_else(|| "expected I/N, from 1/N to N/N".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_parts_of_a_whole() {
        assert_eq!(shard("1/1"), Ok((1, 1)));
        assert_eq!(shard("3/3"), Ok((3, 3)));
        for wrong in ["0/3", "4/3", "3", "1/0", "a/b", "-1/2", ""] {
            assert!(shard(wrong).is_err(), "{wrong}");
        }
    }
}

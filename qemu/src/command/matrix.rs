//! `cargo qemu matrix`.

use std::fs;
use std::path::{self, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};

use super::test::{self, How};
use crate::matrix::cell::KEYS;
use crate::matrix::{self, Cell, cover};
use crate::suite::report::RESULTS;
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

    /// Only each N-th configuration, from the I-th on
    #[arg(long, value_name = "I/N", value_parser = shard)]
    shard: Option<(usize, usize)>,

    /// Only those that did not pass when this folder was written by --report
    #[arg(long, value_name = "DIR")]
    rerun_failed: Option<PathBuf>,

    /// List the configurations instead of booting them
    #[arg(long)]
    list: bool,

    /// Tell what a configuration is, or which rule excludes it
    #[arg(long, value_name = "NAME", conflicts_with_all = ["list", "case"])]
    explain: Option<String>,

    /// Boot this configuration, of whatever tier
    #[arg(long, value_name = "NAME", conflicts_with = "list")]
    case: Option<String>,

    /// Leave what each machine was and said there, and all results
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
}

/// A line of a list.
#[derive(Serialize)]
struct Listed {
    name: String,
    #[serde(flatten)]
    values: std::collections::BTreeMap<&'static str, String>,
    masked: bool,
}

/// What is read of a result that was kept.
#[derive(Deserialize)]
struct Kept {
    name: String,
    status: String,
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
    let cells = chosen(options)?;
    if options.list {
        for cell in cells {
            list(&cell, options.how.json)?;
        }
        return Ok(0);
    }
    let reports = options.report.as_deref().map(path::absolute).transpose()?;
    test::run(
        Workspace::find()?,
        cells.into_iter().map(matrix::case).collect(),
        &options.how,
        reports.as_deref(),
    )
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
    for term in options.filter.iter().flat_map(|filter| filter.split(',')) {
        let key = term.split_once('=').map(|(key, _)| key.trim());
        ensure!(
            key.is_none_or(|key| KEYS.contains(&key)),
            "--filter: there is no axis `{}`: {}",
            key.unwrap_or_default(),
            KEYS.join(", ")
        );
    }
    let mut cells = matrix::cells(options.how.tier);
    cells.retain(|cell| {
        options.filter.is_empty() || options.filter.iter().any(|filter| cell.matches(filter))
    });
    if let Some(folder) = &options.rerun_failed {
        let failed = failed(folder)?;
        cells.retain(|cell| failed.contains(&format!("matrix/{}", cell.name())));
    }
    if let Some((first, of)) = options.shard {
        cells = cells.into_iter().skip(first - 1).step_by(of).collect();
    }
    ensure!(
        !cells.is_empty(),
        "no configuration is left: --list shows those of a tier"
    );
    Ok(cells)
}

/// Names of those that did not pass.
fn failed(folder: &path::Path) -> Result<Vec<String>> {
    let file = folder.join(RESULTS);
    let text = fs::read_to_string(&file)
        .with_context(|| format!("--rerun-failed: cannot read {}", file.display()))?;
    let mut failed = Vec::new();
    for line in text.lines() {
        let kept: Kept = serde_json::from_str(line)
            .with_context(|| format!("{} has a line that is no result", file.display()))?;
        failed.retain(|name| *name != kept.name);
        if kept.status == "failed" {
            failed.push(kept.name);
        }
    }
    Ok(failed)
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

/// The configuration of this name, whether it can be or not.
fn find(name: &str) -> Result<Cell> {
    let name = name.strip_prefix("matrix/").unwrap_or(name);
    let mut all = cover::all().map(Cell::of);
    all.find(|cell| cell.name() == name)
        .with_context(|| format!("no configuration is called {name}: --list shows names"))
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
        Some(rule) => ui::print(format_args!("excluded   {rule}"))?,
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
    use crate::suite::Tier;

    #[test]
    fn shards_are_parts_of_a_whole() {
        assert_eq!(shard("1/1"), Ok((1, 1)));
        assert_eq!(shard("3/3"), Ok((3, 3)));
        for wrong in ["0/3", "4/3", "3", "1/0", "a/b", "-1/2", ""] {
            assert!(shard(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_name_is_a_configuration() {
        let cell = matrix::cells(Tier::Quick)[3];
        assert_eq!(find(&cell.name()).unwrap(), cell);
        assert_eq!(find(&format!("matrix/{}", cell.name())).unwrap(), cell);
        assert!(find("nothing").is_err());
    }
}

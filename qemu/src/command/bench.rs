//! `cargo qemu bench`.

use std::fmt;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use serde::Serialize;

use crate::bench::pgtable::{self, Counted, Timed};
use crate::bench::{boot, console, exits, memory};
use crate::run::ending::FAILED;
use crate::setup::qemu::{self, Qemu};
use crate::setup::valgrind;
use crate::ui;
use crate::workspace::Workspace;

/// Which benchmark.
#[derive(Args, Debug)]
pub struct Options {
    /// Print JSON: an object a line for each row
    #[arg(long, global = true)]
    json: bool,

    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Instructions of a guest's boot, bare and under Undercroft
    Boot(boot::Options),
    /// What a byte on a guest's console costs, bare and under Undercroft
    Console(console::Options),
    /// What each way out of a guest and back costs, beside many vCPUs and guests too
    Exits,
    /// What handing memory over costs: each command, a gibibyte by pages and by
    /// ranges, a realm, a way into a guest and out
    Memory,
    /// The table library: instructions, stores, TLBIs, barriers, table pages
    /// of each workload in each format, what the choice of a granule costs; then
    /// nanoseconds, for information
    Pgtable,
}

/// A row of `bench boot` with what is computed from it.
#[derive(Serialize)]
struct Boot<'a> {
    #[serde(flatten)]
    row: &'a boot::Row,
    ratio: f64,
    gate: f64,
    passed: bool,
}

/// Measures; a missed gate is a failure.
///
/// # Errors
/// When it does not come to a measurement.
pub fn bench(options: &Options) -> Result<u8> {
    let workspace = Workspace::find()?;
    let well = match &options.what {
        What::Boot(what) => boot(&workspace, what, options.json)?,
        What::Console(what) => console(&workspace, what, options.json)?,
        What::Exits => exits(&workspace, options.json)?,
        What::Memory => memory(&workspace, options.json)?,
        What::Pgtable => pgtable(&workspace, options.json)?,
    };
    Ok(if well { 0 } else { FAILED })
}

fn boot(workspace: &Workspace, options: &boot::Options, json: bool) -> Result<bool> {
    let qemu = qemu::ensure(&workspace.scratch())?;
    let rows = boot::measure(workspace, &qemu, options)?;
    if !json {
        ui::print(format_args!(
            "instructions from EL2 entry to /init (QEMU {}, -icount)\n{}",
            qemu.version,
            boot::HEAD
        ))?;
    }
    for row in &rows {
        if json {
            object(&Boot {
                row,
                ratio: row.ratio(),
                gate: row.gate(),
                passed: row.passes(),
            })?;
        } else {
            ui::print(row)?;
        }
    }
    Ok(rows.iter().all(boot::Row::passes))
}

fn console(workspace: &Workspace, options: &console::Options, json: bool) -> Result<bool> {
    let qemu = qemu::ensure(&workspace.scratch())?;
    let row = console::measure(workspace, &qemu, options)?;
    if json {
        object(&row)?;
    } else {
        ui::print(&row)?;
    }
    Ok(row.passes())
}

fn memory(workspace: &Workspace, json: bool) -> Result<bool> {
    let qemu = qemu::ensure(&workspace.scratch())?;
    let rows = memory::measure(workspace, &qemu)?;
    show(&rows, json, &qemu, "granules of 4 KiB", memory::HEAD)?;
    Ok(rows.iter().all(memory::Row::passes))
}

fn exits(workspace: &Workspace, json: bool) -> Result<bool> {
    let qemu = qemu::ensure(&workspace.scratch())?;
    let rows = exits::measure(workspace, &qemu)?;
    show(&rows, json, &qemu, "medians of 1000", exits::HEAD)?;
    Ok(rows.iter().all(exits::Row::passes))
}

/// Shows rows of instructions, and for people what they are.
fn show<R: Serialize + fmt::Display>(
    rows: &[R],
    json: bool,
    qemu: &Qemu,
    what: &str,
    head: &str,
) -> Result<()> {
    if json {
        return rows.iter().try_for_each(object);
    }
    let version = &qemu.version;
    ui::print(format_args!(
        "instructions (QEMU {version}, -icount), {what}\n{head}"
    ))?;
    Ok(rows.iter().try_for_each(ui::print)?)
}

fn pgtable(workspace: &Workspace, json: bool) -> Result<bool> {
    let counted = valgrind::ensure(&workspace.scratch())?;
    if let Err(why) = &counted {
        ui::warn(format_args!("instructions are not counted: {why}"));
    }
    if !json {
        let counted = counted.is_err() || pgtable::show(workspace, pgtable::COUNT)?;
        return Ok(counted && pgtable::show(workspace, pgtable::TIME)?);
    }
    let mut well = true;
    if counted.is_ok() {
        let (rows, passed): (Vec<Counted>, bool) = pgtable::count(workspace)?;
        rows.iter().try_for_each(object)?;
        well = passed;
    }
    let rows: Vec<Timed> = pgtable::time(workspace)?;
    rows.iter().try_for_each(object)?;
    Ok(well)
}

fn object(row: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string(row).context("a row is JSON")?;
    Ok(ui::print(text)?)
}

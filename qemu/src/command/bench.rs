//! `cargo qemu bench`.

use std::process::Command;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};

use crate::bench::boot;
use crate::run::ending::FAILED;
use crate::setup::{qemu, valgrind};
use crate::ui;
use crate::workspace::{Workspace, cargo};

/// Which benchmark.
#[derive(Args, Debug)]
pub struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Instructions of a guest's boot, bare and under Undercroft
    Boot(boot::Options),
    /// The table library: instructions, stores, TLBIs, barriers, table pages
    /// of each workload in each format, what the choice of a granule costs; then
    /// nanoseconds, for information
    Pgtable,
}

/// Measures; a missed gate is a failure.
///
/// # Errors
/// When it does not come to a measurement.
pub fn bench(options: &Options) -> Result<u8> {
    let workspace = Workspace::find()?;
    match &options.what {
        What::Boot(options) => {
            let qemu = qemu::ensure(&workspace.scratch())?;
            let rows = boot::measure(&workspace, &qemu, options)?;
            println!(
                "instructions from EL2 entry to /init (QEMU {}, -icount)",
                qemu.version
            );
            println!("{}", boot::HEAD);
            for row in &rows {
                println!("{row}");
            }
            Ok(if rows.iter().all(boot::Row::passes) {
                0
            } else {
                FAILED
            })
        }
        What::Pgtable => {
            if let Err(why) = valgrind::ensure(&workspace.scratch())? {
                ui::warn(format_args!("instructions are not counted: {why}"));
            } else if !cargo_bench(
                &workspace,
                &["--bench", "instructions", "--", "--all", "--fixed"],
            )? {
                return Ok(FAILED);
            }
            if !cargo_bench(&workspace, &["--bench", "time", "--", "--quiet"])? {
                return Ok(FAILED);
            }
            Ok(0)
        }
    }
}

/// Runs a benchmark of pgtable; whether it says that all is well.
fn cargo_bench(workspace: &Workspace, arguments: &[&str]) -> Result<bool> {
    let status = Command::new(cargo())
        .args(["bench", "--quiet", "-p", "pgtable"])
        .args(arguments)
        .current_dir(&workspace.root)
        .status()
        .context("cannot run cargo")?;
    Ok(status.success())
}

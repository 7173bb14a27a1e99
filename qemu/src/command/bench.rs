//! `cargo qemu bench`.

use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};

use crate::bench::boot;
use crate::run::ending::FAILED;
use crate::setup::qemu;
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
    /// The table library: instructions, stores, TLBIs and time a page
    Pgtable {
        /// Passed to the benchmark
        #[arg(last = true)]
        rest: Vec<String>,
    },
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
        What::Pgtable { rest } => {
            let status = Command::new(cargo())
                .args(["bench", "-p", "pgtable", "--"])
                .args(rest)
                .current_dir(&workspace.root)
                .status()
                .context("cannot run cargo")?;
            if !status.success() {
                bail!("the benchmark of pgtable failed ({status})");
            }
            Ok(0)
        }
    }
}

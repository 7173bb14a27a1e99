//! `cargo qemu run`.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::build::{self, Image};
use crate::machine::virt::{Console, Machine};
use crate::run::gdb;
use crate::run::options::Run;
use crate::run::plan::{self, Guests, Shell, Style};
use crate::run::watch::{self, Manner};
use crate::setup::qemu::{self, Qemu};
use crate::ui;
use crate::workspace::Workspace;

/// Patience without a terminal, unless `--timeout` says otherwise.
const PATIENCE: Duration = Duration::from_secs(300);

/// Runs, and returns the exit status.
///
/// # Errors
/// When it does not come to a running machine; the message says why.
pub fn run(options: &Run) -> Result<u8> {
    ui::set_quiet(options.quiet);
    let workspace = Workspace::find()?;
    let qemu = qemu::ensure(&workspace.scratch())?;
    let shell = Shell::of(options);
    if options.dry_run {
        // Its files must outlive this process, or the command would not work.
        let folder = workspace.scratch().join("dry-run");
        make(&folder)?;
        let (machine, guests, _) = prepare(&workspace, qemu, options, &shell, &folder)?;
        println!("{}", machine.command_line(console(&guests)));
        return Ok(0);
    }
    let folder = temporary(&workspace)?;
    let (machine, guests, image) = prepare(&workspace, qemu, options, &shell, folder.path())?;
    if let Some(image) = &image {
        gdb::tell(&machine, image, &guests);
    }
    if guests.style == Style::Terminal {
        ui::note("Booting", "leave with Ctrl-a x");
    }
    let default = (guests.style != Style::Terminal && options.gdb.is_none()).then_some(PATIENCE);
    let timeout = match options.timeout {
        None => default,
        Some(0) => None,
        Some(seconds) => Some(Duration::from_secs(seconds)),
    };
    let manner = Manner {
        style: guests.style.clone(),
        timeout,
        bare: options.bare,
        verbose: options.verbose,
    };
    Ok(watch::run(&machine, &manner)?.exit_code())
}

fn prepare(
    workspace: &Workspace,
    qemu: Qemu,
    options: &Run,
    shell: &Shell,
    folder: &Path,
) -> Result<(Machine, Guests, Option<Image>)> {
    let guests = plan::guests(workspace, &options.boot, shell, folder)?;
    if options.bare {
        let machine = plan::bare_machine(qemu, options, &guests)?;
        return Ok((machine, guests, None));
    }
    let image = build::image_or(workspace, options.boot.image.as_deref())?;
    let machine = plan::machine(qemu, options, &guests, &image, folder)?;
    Ok((machine, guests, Some(image)))
}

fn console(guests: &Guests) -> Console {
    match guests.style {
        Style::Terminal => Console::Terminal,
        Style::Command { .. } | Style::Raw => Console::Pipes,
    }
}

/// A folder for files of this run alone.
///
/// # Errors
/// When it cannot be made.
pub fn temporary(workspace: &Workspace) -> Result<TempDir> {
    let scratch = workspace.scratch();
    make(&scratch)?;
    tempfile::Builder::new()
        .prefix("run-")
        .tempdir_in(&scratch)
        .with_context(|| format!("cannot make a folder in {}", scratch.display()))
}

fn make(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))
}

//! `cargo qemu run --machine fvp`: the same guests on Arm's model.
//!
//! The model has no sockets for a console, a log and a monitor as QEMU has: its UARTs
//! write files, and [`model`] reads them. So a run is one of a command or
//! of a guest that needs no keyboard; a person at a terminal takes `--dry-run`'s command.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};

use super::model;
use super::options::Run;
use super::plan::{self, Guests, Shell, Style};
use super::watch::Manner;
use crate::build;
use crate::machine::fvp::{FIP, Machine, Means, Uarts};
use crate::machine::virt::DEFAULT_CPU;
use crate::scratch;
use crate::setup::fvp;
use crate::ui;
use crate::workspace::Workspace;

/// Runs, and returns the exit status; `manner` says how guests are watched.
///
/// # Errors
/// When it does not come to a running machine; the message says why.
pub fn run(
    workspace: &Workspace,
    options: &Run,
    manner: impl FnOnce(&Guests) -> Result<Manner>,
) -> Result<u8> {
    refuse(options)?;
    let (model, firmware) = (fvp::words()?, fvp::firmware(options.firmware.as_deref())?);
    let shell = Shell::of(options);
    if options.dry_run {
        let folder = workspace.scratch().join("dry-run");
        scratch::make(&folder)?;
        let (machine, _) = prepare(
            workspace,
            options,
            &shell,
            &means(model, &firmware, &folder),
        )?;
        tell(&machine, &folder, firmware.is_some());
        let uarts = Uarts {
            console: "-".into(),
            log: folder.join("undercroft.log"),
        };
        ui::print(machine.command_line(&uarts))?;
        return Ok(0);
    }
    // Before anything is built for it.
    fvp::check(&model)?;
    ensure!(firmware.is_some(), "{}", fvp::no_firmware());
    let folder = scratch::folder(workspace)?;
    let means = means(model, &firmware, folder.path());
    let (machine, guests) = prepare(workspace, options, &shell, &means)?;
    if guests.style == Style::Terminal {
        bail!(
            "--machine fvp gives nobody a keyboard: take --exec, or --dry-run and the \
             model's own terminal (README.md, \"Arm's FVP\")"
        );
    }
    let outcome = model::run(&machine, &manner(&guests)?, folder.path())?;
    Ok(outcome.exit_code())
}

fn means<'a>(model: Vec<String>, firmware: &'a Option<PathBuf>, folder: &'a Path) -> Means<'a> {
    Means {
        model,
        firmware: firmware.as_deref(),
        folder,
    }
}

/// Options that say something of QEMU.
fn refuse(options: &Run) -> Result<()> {
    let of_qemu = [
        ("--gdb", options.gdb.is_some()),
        ("--bare", options.bare),
        ("--cpu", options.cpu != DEFAULT_CPU),
        ("--one-uart", options.one_uart),
        ("--trace", !options.trace.is_empty()),
        ("what stands behind --", !options.extra.is_empty()),
    ];
    for (name, said) in of_qemu {
        ensure!(!said, "{name} is for QEMU alone, not for --machine fvp");
    }
    Ok(())
}

fn prepare(
    workspace: &Workspace,
    options: &Run,
    shell: &Shell,
    means: &Means<'_>,
) -> Result<(Machine, Guests)> {
    let image = build::begin_image_or(workspace, options.boot.image.as_deref());
    let guests = plan::guests(
        workspace,
        &options.boot,
        shell,
        options.verbose,
        means.folder,
    )?;
    let (described, _) = plan::describe(options, &guests, image, means.folder, true)?;
    let machine = Machine::of(described, means.clone(), !options.dry_run)?;
    Ok((machine, guests))
}

/// Says what stands where, and what the firmware still lacks.
fn tell(machine: &Machine, folder: &Path, has_firmware: bool) {
    for part in &machine.parts {
        let span = part.span;
        ui::note(
            "Places",
            format_args!("{} at {:#x}..{:#x}", part.name, span.at, span.end()),
        );
    }
    let tree = Machine::tree(folder);
    ui::note("Wrote", tree.display());
    if !has_firmware {
        ui::warn(fvp::no_firmware());
        ui::warn(format_args!(
            "by hand: `fiptool update --hw-config {} {FIP}`",
            tree.display()
        ));
    }
}

//! `cargo qemu run`.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::build::{self, Image};
use crate::config;
use crate::machine::Kind;
use crate::machine::virt::{Console, Machine};
use crate::run::fvp;
use crate::run::gdb::{self, Gdb};
use crate::run::options::Run;
use crate::run::plan::{self, Guests, Shell, Style};
use crate::run::watch::{self, Manner};
use crate::scratch;
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
    if options.machine == Kind::Fvp {
        return fvp::run(&workspace, options, |guests| manner(options, guests, None));
    }
    if options.firmware.is_some() {
        bail!("--firmware is for --machine fvp: QEMU's machine begins without any");
    }
    let file = options.boot.image.as_deref();
    let image = (!options.bare).then(|| build::begin_image_or(&workspace, file));
    let qemu = qemu::ensure(&workspace.scratch())?;
    // QEMU would print its list where the guest's console is, and end.
    if ["help", "?"].contains(&options.cpu.as_str()) {
        bail!(
            "--cpu {}: `{} -cpu help` lists QEMU's CPUs",
            options.cpu,
            qemu.program.display()
        );
    }
    if options.dry_run {
        // Its files must outlive this process, or the command would not work.
        let folder = workspace.scratch().join("dry-run");
        scratch::make(&folder)?;
        // Whoever can look into it can connect to the debugger's socket.
        fs::set_permissions(&folder, Permissions::from_mode(0o700))
            .with_context(|| format!("cannot keep others out of {}", folder.display()))?;
        let mut prepared = prepare(&workspace, (qemu, image), options, &folder)?;
        let (gdb, ready) = debugger(options, &mut prepared, &folder)?.unzip();
        ready.iter().for_each(ui::say);
        let (machine, guests, _) = prepared;
        ui::print(machine.command_line(console(&guests)))?;
        // QEMU makes its socket where we say, which then must be there.
        if let Some(gdb) = gdb {
            gdb.keep();
        }
        return Ok(0);
    }
    let folder = scratch::folder(&workspace)?;
    let mut prepared = prepare(&workspace, (qemu, image), options, folder.path())?;
    let (_gdb, ready) = debugger(options, &mut prepared, folder.path())?.unzip();
    let (machine, guests, _) = prepared;
    tell_consoles(&guests);
    let manner = manner(options, &guests, ready)?;
    Ok(watch::run(&machine, &manner)?.exit_code())
}

/// How to watch these guests; `ready` is said once the machine is there.
fn manner(options: &Run, guests: &Guests, ready: Option<String>) -> Result<Manner> {
    let default = (guests.style != Style::Terminal && options.gdb.is_none()).then_some(PATIENCE);
    let timeout = match options.timeout {
        None => default,
        Some(0) => None,
        Some(seconds) => Some(Duration::from_secs(seconds)),
    };
    Ok(Manner {
        style: guests.style.clone(),
        timeout,
        bare: options.bare,
        verbose: options.verbose,
        log: options.boot.log,
        speaks: guests.console_owner().is_some(),
        ready,
        trace: (!options.trace.is_empty()).then(|| options.trace_file.clone()),
        settings: guests.places.packed(&config::packed(&guests.list)?),
    })
}

fn prepare(
    workspace: &Workspace,
    (qemu, image): (Qemu, Option<impl FnOnce() -> Result<Image>>),
    options: &Run,
    folder: &Path,
) -> Result<(Machine, Guests, Option<Image>)> {
    let shell = Shell::of(options);
    let mut guests = plan::guests(workspace, &options.boot, &shell, options.verbose, folder)?;
    if let Some(file) = &options.guest_symbols {
        plan::debugged(&mut guests, file)?;
    }
    let Some(image) = image else {
        let machine = plan::bare_machine(qemu, options, &guests)?;
        return Ok((machine, guests, None));
    };
    guests.suit_qemu(options.boot.granule);
    let (machine, image) = plan::machine(qemu, options, &guests, image, folder)?;
    Ok((machine, guests, Some(image)))
}

/// Lets the machine wait for a debugger if that is asked for; how to start one is
/// the text.
fn debugger(
    options: &Run,
    (machine, guests, image): &mut (Machine, Guests, Option<Image>),
    folder: &Path,
) -> Result<Option<(Gdb, String)>> {
    let (Some(port), Some(image)) = (options.gdb, image) else {
        return Ok(None);
    };
    let gdb = Gdb::open(port, folder)?;
    machine.debugger = Some(gdb.at.clone());
    let told = gdb::told(
        machine,
        image,
        &guests.list,
        guests.symbols.as_deref(),
        folder,
    )?;
    Ok(told.map(|told| (gdb, told)))
}

fn console(guests: &Guests) -> Console {
    match guests.style {
        Style::Terminal => Console::Terminal,
        Style::Command { .. } | Style::Raw => Console::Pipes,
    }
}

/// Several guests: who has the console, and where the others' words go.
fn tell_consoles(guests: &Guests) {
    if guests.list.len() < 2 {
        return;
    }
    let owner = guests.console_owner();
    if let Some(owner) = owner {
        let place = match guests.style {
            Style::Terminal => "this terminal",
            Style::Command { .. } | Style::Raw => "standard input and output",
        };
        ui::note("Console", format_args!("guest {} has {place}", owner.name));
    }
    for guest in &guests.list {
        if owner.is_none_or(|owner| owner.name != guest.name) {
            ui::note(
                "Console",
                format_args!("guest {0} writes to the log, as `guest {0}: …`", guest.name),
            );
        }
    }
    if owner.is_some() {
        ui::note("", "`console = true` in guests.toml gives it to another");
    }
}

//! The boot matrix: every granule, every size, every CPU, every mode, booted for real.
//!
//! A [`Cell`] is a configuration. What excludes one is a rule with words
//! ([`Cell::excluded`]); which of the others are booted is computed ([`cover`]): at
//! each change so that all pairs of values meet, in the full tier all triples.

pub mod axes;
pub mod cell;
pub mod check;
pub mod cover;
pub mod faults;
pub mod known;
pub mod machine;
pub mod page;
pub mod reference;
pub mod report;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

pub use self::cell::Cell;
use self::check::{Said, TASK};
use self::known::Known;
use crate::guests::initrd::{self, Task};
use crate::run::capture::Capture;
use crate::run::ending::Ending;
use crate::run::gdb::{self, Gdb};
use crate::suite::report::Status;
use crate::suite::{Case, Context, Counts, Outcome, Tier};
use crate::ui;

/// How long a machine may run, and how long it may say nothing: a kernel that boots
/// quietly on a machine with much else to do takes a minute.
const LIMIT: Duration = Duration::from_secs(900);
const PATIENCE: Duration = Duration::from_secs(300);

/// The patience of whoever debugs.
const DEBUGGED: Duration = Duration::from_secs(24 * 3600);

/// IPA sizes at each change: the narrowest, the widest of each start level that some
/// granule has, and both sides of 2^48. The full tier has all.
const IPA_BITS_OF_QUICK: [u8; 7] = [32, 36, 40, 44, 48, 49, 52];

/// The configurations of a tier, in the order in which they are booted.
pub fn cells(tier: Tier) -> Vec<Cell> {
    let [quick, more] = cells_by_tier(tier);
    [quick, more].concat()
}

/// Those of the quick tier, and those of this tier beside them.
fn cells_by_tier(tier: Tier) -> [Vec<Cell>; 2] {
    let all = cover::legal();
    let quick: Vec<_> = all
        .iter()
        .copied()
        .filter(|places| IPA_BITS_OF_QUICK.contains(&Cell::of(*places).ipa))
        .collect();
    let chosen = cover::cover(&quick, 2, &[]);
    let quick: Vec<_> = chosen.iter().copied().map(Cell::of).collect();
    let mut more = Vec::new();
    if tier == Tier::Full {
        more.extend(cover::cover(&all, 3, &chosen).into_iter().map(Cell::of));
        for row in reference::rows() {
            if !quick.contains(&row.cell) && !more.contains(&row.cell) {
                more.push(row.cell);
            }
        }
    }
    [quick, more]
}

/// The cases of the suite.
pub fn cases(tier: Tier) -> Vec<Case> {
    let [quick, more] = cells_by_tier(tier);
    let case = |cell| case(cell, Manner::default());
    let more = more.into_iter().map(|cell| case(cell).full());
    quick.into_iter().map(case).chain(more).collect()
}

/// How a configuration is booted.
#[derive(Clone, Debug, Default)]
pub struct Manner {
    /// It is known to fail.
    pub known: Option<Known>,
    /// What it says is shown at once.
    pub shown: bool,
    /// How long it may say nothing.
    pub patience: Option<Duration>,
    /// It waits for a debugger, on this TCP port or a socket of its own.
    pub gdb: Option<Option<u16>>,
}

/// A configuration as a case.
pub fn case(cell: Cell, manner: Manner) -> Case {
    let case = Case::skipping(format!("matrix/{}", cell.name()), move |context| {
        let outcome = boot(context, &cell, &manner);
        match (&manner.known, outcome) {
            (None, outcome) => outcome,
            (Some(known), Err(error)) if error.downcast_ref() != Some(&Status::Error) => {
                let Known { reason, link, .. } = known;
                Ok(Outcome::expected(format!("{reason} ({link}): {error:#}")))
            }
            (Some(known), Ok(outcome)) if outcome.status() == Status::Passed => bail!(
                "it passes, and is known to fail because {}: take `{}` off the list",
                known.reason,
                known.filter
            ),
            (Some(_), outcome) => outcome,
        }
    });
    if cell.kernel.is_packaged() {
        case.boots(&[cell.kernel.word()])
    } else {
        case
    }
}

/// Boots a configuration, and holds what it says to it. What the machine was and said
/// goes into a folder of its name where reports are wanted.
fn boot(context: &Context, cell: &Cell, manner: &Manner) -> Result<Outcome> {
    let kernel = match machine::kernel(&context.workspace, cell.kernel).context(Status::Error)? {
        Ok(file) => file,
        Err(why) => return Ok(Outcome::skipped(why)),
    };
    let folder = tempfile::tempdir_in(&context.folder).context(Status::Error)?;
    let mark = initrd::mark();
    let task = Task::Command {
        command: TASK.into(),
        mark: mark.clone(),
    };
    let mut prepared =
        machine::machine(context, folder.path(), cell, kernel, &task).context(Status::Error)?;
    let gdb = debugger(context, &mut prepared, folder.path(), manner)?;
    let machine::Prepared {
        machine, inputs, ..
    } = prepared;
    let capture = match gdb {
        Some(_) => Capture::start(&machine, DEBUGGED, false),
        None => Capture::start(&machine, LIMIT, false)
            .map(|capture| capture.patient_for(manner.patience.unwrap_or(PATIENCE))),
    };
    let mut capture = capture.context(Status::Error)?;
    capture.shown = manner.shown;
    if let Some((_, told)) = &gdb {
        ui::say(told);
    }
    let ending = capture.finish();
    let console = String::from_utf8_lossy(&capture.console).into_owned();
    let judged = judge(cell, &mark, &ending, &console, &capture);
    if let Some(reports) = &context.reports {
        let kept = report::Kept {
            machine: &machine,
            inputs: &inputs,
            console: &console,
            log: &capture.log,
        };
        let to = reports.join(cell.name());
        let is_kept = kept.keep(&to, folder.path());
        // What the machine was is worth more than that nobody can read of it.
        if judged.is_ok() {
            is_kept.context(Status::Error)?;
        } else if let Err(error) = is_kept {
            ui::warn(format_args!("{}: {error:#}", cell.name()));
        }
    }
    judged.map(|()| Counts::ONE.into())
}

/// Lets the machine wait for a debugger where that is asked for; the text says how to
/// start one.
fn debugger(
    context: &Context,
    prepared: &mut machine::Prepared,
    folder: &Path,
    manner: &Manner,
) -> Result<Option<(Gdb, String)>> {
    let Some(port) = manner.gdb else {
        return Ok(None);
    };
    let gdb = Gdb::open(port, folder)?;
    prepared.machine.debugger = Some(gdb.at.clone());
    let guests = std::slice::from_ref(&prepared.guest);
    let told = gdb::told(&prepared.machine, context.image()?, guests, None, folder)?;
    Ok(told.map(|told| (gdb, told)))
}

fn judge(
    cell: &Cell,
    mark: &str,
    ending: &Result<Ending>,
    console: &str,
    capture: &Capture,
) -> Result<()> {
    let failed = |status: Status, why: String| {
        anyhow::anyhow!("{why}\n{}", capture.last_words()).context(status)
    };
    match ending {
        Ok(Ending::Status(0)) => {}
        Ok(ending) => {
            let status = match ending {
                Ending::TimedOut(_) => Status::Timeout,
                Ending::Silent(_) => Status::Silent,
                Ending::Qemu(_) => Status::Error,
                _ => Status::Failed,
            };
            return Err(failed(status, ending.to_string()));
        }
        Err(error) => return Err(failed(Status::Error, format!("{error:#}"))),
    }
    let guest = console
        .split_once(&format!("{mark} begin"))
        .and_then(|(_, rest)| rest.split_once(&format!("{mark} end 0")))
        .map(|(text, _)| text);
    let guest = guest.with_context(|| format!("no end of its task\n{}", capture.last_words()))?;
    let log = &capture.log;
    check::check(cell, &Said { guest, log })
        .with_context(|| format!("it is not what was asked for\n{}", capture.last_words()))
}

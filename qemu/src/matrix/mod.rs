//! The boot matrix: every granule, every size, every CPU, every mode, booted for real.
//!
//! A [`Cell`] is a configuration. What excludes one is a rule with words
//! ([`Cell::excluded`]); which of the others are booted is computed ([`cover`]): at
//! each change so that all pairs of values meet, in the full tier all triples.

pub mod axes;
pub mod cell;
pub mod check;
pub mod cover;
pub mod machine;

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

pub use self::cell::Cell;
use self::check::{Said, TASK};
use crate::guests::initrd::{self, Task};
use crate::machine::virt::Console;
use crate::run::capture::Capture;
use crate::run::ending::Ending;
use crate::suite::{Case, Context, Counts, Outcome, Tier};

/// How long a machine may run.
const LIMIT: Duration = Duration::from_secs(600);

/// IPA sizes at each change: the narrowest, the widest of each start level that some
/// granule has, and both sides of 2^48. The full tier has all.
const IPA_BITS_OF_QUICK: [u8; 7] = [32, 36, 40, 44, 48, 49, 52];

/// The configurations of a tier, in the order in which they are booted.
pub fn cells(tier: Tier) -> Vec<Cell> {
    let all = cover::legal();
    let quick: Vec<_> = all
        .iter()
        .copied()
        .filter(|places| IPA_BITS_OF_QUICK.contains(&Cell::of(*places).ipa))
        .collect();
    let mut chosen = cover::cover(&quick, 2, &[]);
    if tier == Tier::Full {
        let more = cover::cover(&all, 3, &chosen);
        chosen.extend(more);
    }
    chosen.into_iter().map(Cell::of).collect()
}

/// The cases of the suite.
pub fn cases(tier: Tier) -> Vec<Case> {
    let quick = cells(Tier::Quick).len();
    cells(tier)
        .into_iter()
        .enumerate()
        .map(|(n, cell)| {
            let case = case(cell);
            if n < quick { case } else { case.full() }
        })
        .collect()
}

/// A configuration as a case.
pub fn case(cell: Cell) -> Case {
    let case = Case::skipping(format!("matrix/{}", cell.name()), move |context| {
        boot(context, &cell)
    });
    if cell.kernel.is_packaged() {
        case.boots(&[cell.kernel.word()])
    } else {
        case
    }
}

/// Boots a configuration, and holds what it says to it. What the machine was and said
/// goes into a folder of its name where reports are wanted.
fn boot(context: &Context, cell: &Cell) -> Result<Outcome> {
    let kernel = match machine::kernel(&context.workspace, cell.kernel)? {
        Ok(file) => file,
        Err(why) => return Ok(Outcome::skipped(why)),
    };
    let folder = tempfile::tempdir_in(&context.folder)?;
    let mark = initrd::mark();
    let task = Task::Command {
        command: TASK.into(),
        mark: mark.clone(),
    };
    let machine = machine::machine(context, folder.path(), cell, kernel, &task)?;
    let mut capture = Capture::start(&machine, LIMIT, false)?;
    let ending = capture.finish();
    let console = String::from_utf8_lossy(&capture.console).into_owned();
    let judged = judge(cell, &mark, &ending, &console, &capture);
    if let Some(reports) = &context.reports {
        let command = machine.command_line(Console::Pipes);
        keep(
            &reports.join(cell.name()),
            folder.path(),
            &command,
            &console,
            &capture.log,
        )?;
    }
    judged.map(|()| Counts::ONE.into())
}

fn judge(
    cell: &Cell,
    mark: &str,
    ending: &Result<Ending>,
    console: &str,
    capture: &Capture,
) -> Result<()> {
    match ending {
        Ok(Ending::Status(0)) => {}
        Ok(ending) => bail!("{ending}\n{}", capture.last_words()),
        Err(error) => bail!("{error:#}\n{}", capture.last_words()),
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

/// Leaves what a machine was and said.
fn keep(to: &Path, from: &Path, command: &str, console: &str, log: &[String]) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    let write = |name: &str, text: &str| {
        fs::write(to.join(name), text).with_context(|| format!("cannot write {name}"))
    };
    write("console.log", console)?;
    write("log", &(log.join("\n") + "\n"))?;
    write("command", &format!("{command}\n"))?;
    let tree = from.join("tree.dtb");
    if tree.is_file() {
        fs::copy(tree, to.join("tree.dtb"))?;
    }
    Ok(())
}

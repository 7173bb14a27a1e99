//! `cargo qemu bench console`: what a byte costs that a Linux guest writes to its
//! console, in instructions, and what many cost in time: bare, and under
//! Undercroft.
//!
//! The first process writes lines and waits until they have left; a boot with no
//! lines is taken off. Where instructions are counted it sleeps first, until the
//! kernel has nothing else to do that would run beside it. So the count holds all there is: the system call, the
//! terminal, the driver with its interrupts, and what serves its accesses.

use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;

use super::counted::{self, Counting, LIMIT, MEMORY};
use super::first_process::{self, LINE};
use crate::build;
use crate::config::{Guest, Populate};
use crate::guests::catalogue;
use crate::guests::fetch::Cache;
use crate::machine::virt::Machine;
use crate::run::capture::Capture;
use crate::run::ending::Ending;
use crate::run::options::Granule;
use crate::scratch;
use crate::setup::qemu::Qemu;
use crate::ui::Step;
use crate::workspace::Workspace;

/// Lines that are written: 100 KiB.
const LINES: u16 = 1576;
const BYTES: u64 = LINES as u64 * LINE;

/// Seconds, of the machine's, that the first process sleeps for.
const SLEEP: u64 = 30;

/// The most instructions that a byte may cost under Undercroft, all in all: the 396
/// that were reached, and 5 in 100.
const GATE: f64 = 416.0;
/// And the goal: Linux's driver reads the flags before each byte, which are two
/// exits to EL2.
const GOAL: f64 = 400.0;
/// What as many bytes are to cost in time, at most, as a ratio to bare: for
/// information, since time is the machine's. The time that CPUs work for QEMU says
/// more than the clock where the machine has other work to do, too.
pub const TIME_GOAL: f64 = 1.5;

/// Runs of which the median time counts.
const ROUNDS: usize = 5;

/// What to measure.
#[derive(Args, Clone, Debug, Default)]
pub struct Options {
    /// An image built before, instead of building one
    #[arg(long, value_name = "FILE")]
    pub image: Option<PathBuf>,

    /// Count instructions alone: no time is taken
    #[arg(long)]
    pub only_count: bool,
}

/// What was measured, as JSON too.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    bytes: u64,
    /// Instructions a byte.
    bare: f64,
    #[serde(rename = "undercroft")]
    under: f64,
    gate: f64,
    goal: f64,
    /// Whole runs, boot included, by the clock, where time was taken.
    seconds: Option<f64>,
    seconds_undercroft: Option<f64>,
    /// What CPUs worked for QEMU meanwhile, where that is known.
    cpu_seconds: Option<f64>,
    cpu_seconds_undercroft: Option<f64>,
}

impl Row {
    /// Whether it stays within the gate.
    pub fn passes(&self) -> bool {
        self.under <= self.gate
    }

    /// Times bare and under Undercroft, boot included, with what they are.
    fn times(&self) -> impl Iterator<Item = (&'static str, f64, f64)> {
        let clock = self.seconds.zip(self.seconds_undercroft);
        let cpus = self.cpu_seconds.zip(self.cpu_seconds_undercroft);
        [("seconds, with boot", clock), ("seconds of CPUs", cpus)]
            .into_iter()
            .filter_map(|(what, times)| times.map(|(bare, under)| (what, bare, under)))
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.under {
            under if under <= self.goal => "ok, and the goal",
            under if under <= self.gate => "ok",
            _ => "MISSED",
        };
        write!(
            f,
            "{} bytes    bare  undercroft  ratio    gate   goal\n\
             instructions/byte{:>7.0}{:>12.0}{:>6.2}x{:>8.0}{:>7.0}  {verdict}",
            self.bytes,
            self.bare,
            self.under,
            self.under / self.bare,
            self.gate,
            self.goal
        )?;
        for (what, bare, under) in self.times() {
            let ratio = under / bare;
            let reached = if ratio <= TIME_GOAL {
                "reached"
            } else {
                "not reached"
            };
            write!(
                f,
                "\n{what:<18}{bare:>6.1}{under:>12.1}{ratio:>6.2}x{TIME_GOAL:>7.1}x  {reached}"
            )?;
        }
        Ok(())
    }
}

/// Measures.
///
/// # Errors
/// When something cannot be built, fetched or booted.
pub fn measure(workspace: &Workspace, qemu: &Qemu, options: &Options) -> Result<Row> {
    let image = build::image_or(workspace, options.image.as_deref())?;
    let plugin = build::plugin(workspace, qemu)?;
    let folder = scratch::folder(workspace)?;
    let name = "debian13";
    let kernel = Cache::of(workspace).kernel(catalogue::find(name)?)?;
    let step = Step::new("Measuring", "a console's bytes".to_string());
    // Instructions, by lines and kind of machine; and the times of those that write.
    let mut counts = [[0u64; 2]; 2];
    let mut times = None;
    for (n, lines) in [0, LINES].into_iter().enumerate() {
        let (ramdisk, until) = first_process::writer(SLEEP, lines)?;
        let initrd = folder.path().join("initrd");
        let write =
            |ramdisk| fs::write(&initrd, ramdisk).context("cannot write the initial RAM disk");
        write(ramdisk)?;
        let guest = Guest {
            initrd: Some(initrd.clone()),
            cmdline: Some("console=ttyAMA0 quiet".into()),
            // As `cargo qemu run` has it.
            populate: Some(Populate::LazyPages),
            ..Guest::new(name, kernel.clone(), MEMORY)
        };
        let machines = [
            counted::bare(qemu, &guest),
            counted::under(qemu, &guest, &image, Granule::K4, folder.path())?,
        ];
        for (m, machine) in machines.iter().enumerate() {
            step.at((2 * n + m) as f64 / 4.0);
            let how = Counting {
                plugin: &plugin,
                folder: folder.path(),
                until,
                seed: 1,
            };
            counts[m][n] = counted::count(machine, how, m == 0)?;
        }
        if lines != 0 && !options.only_count {
            write(first_process::writer(0, lines)?.0)?;
            let again = counted::under(qemu, &guest, &image, Granule::K4, folder.path())?;
            times = Some(side_by_side([(&machines[0], true), (&again, false)])?);
        }
    }
    step.done("Measured", "a console's bytes".to_string());
    let per_byte = |[none, all]: [u64; 2]| (all as f64 - none as f64) / BYTES as f64;
    let [bare, under] = counts.map(per_byte);
    let seconds = |m: usize| times.map(|times| times[m].clock.as_secs_f64());
    let cpu_seconds = |m: usize| times.and_then(|times| Some(times[m].cpus?.as_secs_f64()));
    Ok(Row {
        bytes: BYTES,
        bare,
        under,
        gate: GATE,
        goal: GOAL,
        seconds: seconds(0),
        seconds_undercroft: seconds(1),
        cpu_seconds: cpu_seconds(0),
        cpu_seconds_undercroft: cpu_seconds(1),
    })
}

/// What a run took, or the medians of several.
#[derive(Clone, Copy, Debug, Default)]
struct Took {
    /// By the clock.
    clock: Duration,
    /// What CPUs worked for QEMU.
    cpus: Option<Duration>,
}

/// The median times of each machine, in turns: what else the machine does falls on
/// all of them.
fn side_by_side(machines: [(&Machine, bool); 2]) -> Result<[Took; 2]> {
    let mut all = [[Took::default(); ROUNDS]; 2];
    for round in 0..ROUNDS {
        for (all, (machine, bare)) in all.iter_mut().zip(machines) {
            all[round] = time(machine, bare)?;
        }
    }
    Ok(all.map(|all| Took {
        clock: median(all.map(|took| took.clock)),
        cpus: median(all.map(|took| took.cpus)),
    }))
}

fn median<T: Copy + Ord>(mut all: [T; ROUNDS]) -> T {
    all.sort_unstable();
    all[ROUNDS / 2]
}

/// How long a run takes that nobody counts.
fn time(machine: &Machine, bare: bool) -> Result<Took> {
    let begun = Instant::now();
    let mut capture = Capture::start(machine, LIMIT, bare)?;
    match capture.finish()? {
        Ending::Status(0) => Ok(Took {
            clock: begun.elapsed(),
            cpus: capture.worked(),
        }),
        ending => bail!("{ending}"),
    }
}

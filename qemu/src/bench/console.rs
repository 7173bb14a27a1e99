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
use crate::config::{Guest, Mode};
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
/// information, since time is the machine's.
pub const TIME_GOAL: f64 = 1.5;

/// Runs of which the median time counts.
const ROUNDS: usize = 5;

/// What to measure.
#[derive(Args, Clone, Debug, Default)]
pub struct Options {
    /// An image built before, instead of building one
    #[arg(long, value_name = "FILE")]
    pub image: Option<PathBuf>,
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
    /// Whole runs, boot included.
    seconds: f64,
    seconds_undercroft: f64,
}

impl Row {
    /// Whether it stays within the gate.
    pub fn passes(&self) -> bool {
        self.under <= self.gate
    }

    /// Time under Undercroft for time bare, boot included.
    pub fn time_ratio(&self) -> f64 {
        self.seconds_undercroft / self.seconds
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.under {
            under if under <= self.goal => "ok, and the goal",
            under if under <= self.gate => "ok",
            _ => "MISSED",
        };
        writeln!(
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
        let reached = if self.time_ratio() <= TIME_GOAL {
            "reached"
        } else {
            "not reached"
        };
        write!(
            f,
            "seconds, with boot{:>6.1}{:>12.1}{:>6.2}x{:>7.1}x  {reached}",
            self.seconds,
            self.seconds_undercroft,
            self.time_ratio(),
            TIME_GOAL
        )
    }
}

/// Measures.
///
/// # Errors
/// When something cannot be built, fetched or booted.
pub fn measure(workspace: &Workspace, qemu: &Qemu, options: &Options) -> Result<Row> {
    let plugin = build::plugin(workspace, qemu)?;
    let image = build::image_or(workspace, options.image.as_deref())?;
    let folder = scratch::folder(workspace)?;
    let name = "debian13";
    let kernel = Cache::of(workspace).kernel(catalogue::find(name)?)?;
    let step = Step::new("Measuring", "a console's bytes".to_string());
    // Instructions, by lines and kind of machine; and the time of those that write.
    let mut counts = [[0u64; 2]; 2];
    let mut times = [Duration::ZERO; 2];
    for (n, lines) in [0, LINES].into_iter().enumerate() {
        let (ramdisk, until) = first_process::writer(SLEEP, lines)?;
        let initrd = folder.path().join("initrd");
        let write =
            |ramdisk| fs::write(&initrd, ramdisk).context("cannot write the initial RAM disk");
        write(ramdisk)?;
        let guest = Guest {
            name: name.into(),
            kernel: kernel.clone(),
            initrd: Some(initrd.clone()),
            cmdline: Some("console=ttyAMA0 quiet".into()),
            memory: MEMORY,
            vcpus: 1,
            mode: Mode::Plain,
            measure: None,
            personalization: None,
            populate: None,
            console: None,
            strict: false,
            load: None,
            entry: None,
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
        if lines != 0 {
            write(first_process::writer(0, lines)?.0)?;
            let again = counted::under(qemu, &guest, &image, Granule::K4, folder.path())?;
            times = side_by_side([(&machines[0], true), (&again, false)])?;
        }
    }
    step.done("Measured", "a console's bytes".to_string());
    let per_byte = |[none, all]: [u64; 2]| (all as f64 - none as f64) / BYTES as f64;
    let [bare, under] = counts.map(per_byte);
    let [seconds, seconds_undercroft] = times.map(|time| time.as_secs_f64());
    Ok(Row {
        bytes: BYTES,
        bare,
        under,
        gate: GATE,
        goal: GOAL,
        seconds,
        seconds_undercroft,
    })
}

/// The median time of each machine, in turns: what else the machine does falls on
/// all of them.
fn side_by_side(machines: [(&Machine, bool); 2]) -> Result<[Duration; 2]> {
    let mut times = [[Duration::ZERO; ROUNDS]; 2];
    for round in 0..ROUNDS {
        for (times, (machine, bare)) in times.iter_mut().zip(machines) {
            times[round] = time(machine, bare)?;
        }
    }
    Ok(times.map(|mut times| {
        times.sort_unstable();
        times[ROUNDS / 2]
    }))
}

/// How long a run takes that nobody counts.
fn time(machine: &Machine, bare: bool) -> Result<Duration> {
    let begun = Instant::now();
    match Capture::start(machine, LIMIT, bare)?.finish()? {
        Ending::Status(0) => Ok(begun.elapsed()),
        ending => bail!("{ending}"),
    }
}

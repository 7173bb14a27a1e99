//! `cargo qemu bench boot`: how many instructions a Linux guest's boot takes,
//! from the first at EL2 to the first of `/init`: bare, and under Undercroft.

use std::fmt;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::counted::{self, Counting, MEMORY};
use super::first_process;
use crate::build;
use crate::config::{Guest, Mode, Populate};
use crate::guests::catalogue;
use crate::guests::fetch::Cache;
use crate::machine::virt::{DEFAULT_CPU, Machine};
use crate::run::options::{Granule, modes, populates};
use crate::scratch;
use crate::setup::qemu::Qemu;
use crate::ui::Step;
use crate::workspace::Workspace;

/// What to measure.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// The guests to boot
    #[arg(long = "guest", value_name = "NAME", default_value = "debian13")]
    pub guests: Vec<String>,

    /// Measure with this many seeds for the CPU's random numbers, and take the
    /// mean: what a kernel's boot draws by lot moves its count by some percent
    #[arg(long, value_name = "N", default_value_t = 3)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=100))]
    pub seeds: u32,

    /// Measure with a quiet console, or a full one [default: both]
    #[arg(long = "console", value_name = "HOW")]
    pub consoles: Vec<Chatter>,

    /// Measure each boot this often, and fail if the counts differ
    #[arg(long, value_name = "N", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=100))]
    pub repeat: u32,

    /// QEMU's name of the CPU
    #[arg(long, value_name = "NAME", default_value = DEFAULT_CPU)]
    pub cpu: String,

    /// Granule of Undercroft's own translation tables
    #[arg(long, value_name = "GRANULE", default_value = "4k")]
    pub granule: Granule,

    /// How the guest's memory stands towards the host
    #[arg(long, value_parser = modes(), default_value = "plain")]
    pub mode: Mode,

    /// When the guest gets its memory: all at start, or a piece at its first touch
    /// [default: the host's choice]
    #[arg(long, value_parser = populates())]
    pub populate: Option<Populate>,

    /// An image built before, instead of building one
    #[arg(long, value_name = "FILE")]
    pub image: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            guests: vec!["debian13".into()],
            seeds: 3,
            consoles: Vec::new(),
            repeat: 1,
            cpu: DEFAULT_CPU.into(),
            granule: Granule::K4,
            mode: Mode::Plain,
            populate: None,
            image: None,
        }
    }
}

impl Options {
    /// Whether a boot with this console is measured.
    fn has(&self, chatter: Chatter) -> bool {
        self.consoles.is_empty() || self.consoles.contains(&chatter)
    }
}

/// What the guest's console says, and what Undercroft may cost with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Chatter {
    /// The kernel's errors only.
    Quiet,
    /// All that the kernel says.
    Full,
}

impl Chatter {
    /// The gate, as a ratio to bare.
    const fn gate(self) -> f64 {
        match self {
            Self::Quiet => 1.05,
            Self::Full => 1.25,
        }
    }

    const fn cmdline(self) -> &'static str {
        match self {
            Self::Quiet => "console=ttyAMA0 quiet",
            Self::Full => "console=ttyAMA0",
        }
    }
}

impl fmt::Display for Chatter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Quiet => "quiet",
            Self::Full => "full",
        })
    }
}

/// One row of the table, as JSON too.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    guest: String,
    #[serde(rename = "console")]
    chatter: Chatter,
    /// Instructions on the bare machine.
    bare: u64,
    /// Instructions under Undercroft.
    #[serde(rename = "undercroft")]
    under: u64,
}

impl Row {
    /// How much more runs under Undercroft.
    pub fn ratio(&self) -> f64 {
        self.under as f64 / self.bare as f64
    }

    /// The most that the ratio may be.
    pub fn gate(&self) -> f64 {
        self.chatter.gate()
    }

    /// Whether the row stays within its gate.
    pub fn passes(&self) -> bool {
        self.ratio() <= self.chatter.gate()
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.passes() { "ok" } else { "MISSED" };
        write!(
            f,
            "{:<14}{:<8}{:>15}{:>15}{:>8.3}x{:>8.2}x  {verdict}",
            self.guest,
            self.chatter,
            self.bare,
            self.under,
            self.ratio(),
            self.chatter.gate()
        )
    }
}

/// The head of the table.
pub const HEAD: &str = "guest         console            bare     undercroft    ratio     gate";

/// The guest of this name, which boots to an `/init` of ours.
fn booted(name: &str) -> Result<&'static catalogue::Guest> {
    let guest = catalogue::find(name)?;
    if !guest.has_shell() {
        bail!("guest `{name}` has no /init to boot to");
    }
    Ok(guest)
}

/// Measures all rows.
///
/// # Errors
/// When something cannot be built, fetched or booted, or a count differs from
/// the same count before.
pub fn measure(workspace: &Workspace, qemu: &Qemu, options: &Options) -> Result<Vec<Row>> {
    // What may be a mistake comes before minutes of building.
    let guests: Vec<_> = (options.guests.iter().map(|name| booted(name))).collect::<Result<_>>()?;
    let image = build::image_or(workspace, options.image.as_deref())?;
    let plugin = build::plugin(workspace, qemu)?;
    let folder = scratch::folder(workspace)?;
    let initrd = folder.path().join("initrd");
    fs::write(&initrd, first_process::ramdisk()?).context("cannot write the initial RAM disk")?;
    let mut rows = Vec::new();
    for (name, guest) in options.guests.iter().zip(guests) {
        let kernel = Cache::of(workspace).kernel(guest)?;
        for chatter in [Chatter::Quiet, Chatter::Full] {
            if !options.has(chatter) {
                continue;
            }
            let guest = Guest {
                initrd: Some(initrd.clone()),
                cmdline: Some(chatter.cmdline().into()),
                mode: options.mode,
                populate: options.populate,
                ..Guest::new(name.clone(), kernel.clone(), MEMORY)
            };
            let count = |what: &str, machine: &Machine, bare: bool| {
                let title = format!("{name}, {chatter} console, {what}");
                let step = Step::new("Measuring", title.clone());
                let mut sum = 0;
                for seed in 1..=options.seeds {
                    step.at(f64::from(seed - 1) / f64::from(options.seeds));
                    let counts = (0..options.repeat)
                        .map(|_| {
                            let how = Counting {
                                plugin: &plugin,
                                folder: folder.path(),
                                until: first_process::entry(),
                                seed,
                            };
                            counted::count(machine, how, bare)
                        })
                        .collect::<Result<Vec<_>>>()
                        .with_context(|| title.clone())?;
                    if counts.iter().any(|count| *count != counts[0]) {
                        bail!("{title}, seed {seed}: counts differ: {counts:?}");
                    }
                    sum += counts[0];
                }
                step.done("Measured", title);
                Ok(sum / u64::from(options.seeds))
            };
            let machine = |machine: Machine| Machine {
                cpu: options.cpu.clone(),
                ..machine
            };
            let bare = count("bare", &machine(counted::bare(qemu, &guest)), true)?;
            let under = counted::under(qemu, &guest, &image, options.granule, folder.path())?;
            let under = count("under Undercroft", &machine(under), false)?;
            rows.push(Row {
                guest: name.clone(),
                chatter,
                bare,
                under,
            });
        }
    }
    Ok(rows)
}

//! `cargo qemu bench boot`: how many instructions a Linux guest's boot takes,
//! from the first at EL2 to the first of `/init`: bare, and under Undercroft.
//!
//! QEMU counts them (`plugin/count.rs`), with `-icount`, so that the same
//! images give the same number each time. *Bare* is the same kernel, initial
//! RAM disk and CPU on a machine whose CPUs begin at EL1, which is what the
//! guest sees under Undercroft.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use rmi::end::Token;
use serde::Serialize;

use super::first_process;
use crate::build::{self, Image};
use crate::bundle;
use crate::config::{Guest, Mode};
use crate::guests::catalogue;
use crate::guests::fetch::Cache;
use crate::machine::virt::{DEFAULT_CPU, Machine};
use crate::run::capture::Capture;
use crate::run::ending::Ending;
use crate::scratch;
use crate::setup::qemu::Qemu;
use crate::size::Size;
use crate::ui::{self, Step};
use crate::workspace::Workspace;

/// The guest's memory; the machine has as much more for Undercroft.
const MEMORY: Size = Size::mib(512);
const RAM: Size = Size::mib(1024);

/// How long one boot may take.
const LIMIT: Duration = Duration::from_secs(600);

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

    /// Measure each boot this often, and fail if the counts differ
    #[arg(long, value_name = "N", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=100))]
    pub repeat: u32,

    /// An image built before, instead of building one
    #[arg(long, value_name = "FILE")]
    pub image: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            guests: vec!["debian13".into()],
            seeds: 3,
            repeat: 1,
            image: None,
        }
    }
}

/// What the guest's console says, and what Undercroft may cost with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Chatter {
    Quiet,
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

/// Measures all rows.
///
/// # Errors
/// When something cannot be built, fetched or booted, or a count differs from
/// the same count before.
pub fn measure(workspace: &Workspace, qemu: &Qemu, options: &Options) -> Result<Vec<Row>> {
    let plugin = build::plugin(workspace, qemu)?;
    let image = build::image_or(workspace, options.image.as_deref())?;
    let folder = scratch::folder(workspace)?;
    let initrd = folder.path().join("initrd");
    fs::write(&initrd, first_process::ramdisk()?).context("cannot write the initial RAM disk")?;
    let mut rows = Vec::new();
    for name in &options.guests {
        let guest = catalogue::find(name)?;
        if !guest.has_shell() {
            bail!("guest `{name}` has no /init to boot to");
        }
        let kernel = Cache::of(workspace).kernel(guest)?;
        for chatter in [Chatter::Quiet, Chatter::Full] {
            let guest = Guest {
                name: name.clone(),
                kernel: kernel.clone(),
                initrd: Some(initrd.clone()),
                cmdline: Some(chatter.cmdline().into()),
                memory: MEMORY,
                vcpus: 1,
                mode: Mode::Plain,
                console: None,
                strict: false,
                entry: None,
            };
            let count = |what: &str, machine: &Machine, bare: bool| {
                let title = format!("{name}, {chatter} console, {what}");
                let step = Step::new("Measuring", title.clone());
                let mut sum = 0;
                for seed in 1..=options.seeds {
                    step.at(f64::from(seed - 1) / f64::from(options.seeds));
                    let counts = (0..options.repeat)
                        .map(|_| count(machine, seed, &plugin, folder.path(), bare))
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
            let bare = count("bare", &bare(qemu, &guest), true)?;
            let machine = under(qemu, &guest, &image, folder.path())?;
            let under = count("under Undercroft", &machine, false)?;
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

fn bare(qemu: &Qemu, guest: &Guest) -> Machine {
    Machine {
        qemu: qemu.clone(),
        cpu: DEFAULT_CPU.into(),
        cpus: 1,
        ram: guest.memory,
        kernel: Some(guest.kernel.clone()),
        initrd: guest.initrd.clone(),
        append: guest.cmdline.clone().unwrap_or_default(),
        end: None,
        el2: false,
        log_uart: false,
        debugger: None,
        extra: Vec::new(),
    }
}

fn under(qemu: &Qemu, guest: &Guest, image: &Image, folder: &Path) -> Result<Machine> {
    let file = folder.join("bundle.cpio");
    fs::write(&file, bundle::pack(std::slice::from_ref(guest))?)
        .with_context(|| format!("cannot write {}", file.display()))?;
    let log_uart = Machine::can_have_log_uart(qemu);
    let log = if log_uart {
        " undercroft.log=serial1"
    } else {
        ""
    };
    Ok(Machine {
        ram: RAM,
        kernel: Some(image.file.clone()),
        initrd: Some(file),
        append: format!("undercroft.granule=4k undercroft.loglevel=info{log}"),
        // The same at each boot, as all that could make a difference.
        end: Some(Token::of_bits(1)),
        el2: true,
        log_uart,
        ..bare(qemu, guest)
    })
}

/// Boots once and returns the count at `/init`.
fn count(machine: &Machine, seed: u32, plugin: &Path, folder: &Path, bare: bool) -> Result<u64> {
    let out = folder.join("count");
    // Of an earlier boot; there may be none.
    let _ = fs::remove_file(&out);
    let mut machine = machine.clone();
    let plugin = format!(
        "{},until={:#x},out={}",
        plugin.display(),
        first_process::entry(),
        out.display()
    );
    // One tick an instruction, and nothing that differs from run to run: no
    // seeds in the device tree, the same random numbers of the CPU's own, no
    // clock of the day.
    let steady = [
        "-icount",
        "shift=0,sleep=off",
        "-machine",
        "dtb-randomness=off",
    ];
    let seed = seed.to_string();
    let fixed = [
        "-seed",
        &seed,
        "-rtc",
        "base=2026-01-01,clock=vm",
        "-plugin",
        &plugin,
    ];
    let all = steady.into_iter().chain(fixed);
    machine.extra.extend(all.map(OsString::from));
    let mut capture = Capture::start(&machine, LIMIT, bare)?;
    let ending = capture.finish()?;
    let count = fs::read_to_string(&out)
        .ok()
        .and_then(|text| text.trim().parse().ok());
    match (ending, count) {
        (Ending::Status(0), Some(count)) => Ok(count),
        (ending, count) => {
            ui::say(capture.last_words().trim_end());
            if count.is_none() {
                ui::warn("the guest did not reach /init");
            }
            bail!("{ending}")
        }
    }
}

//! The options of `cargo qemu run`, each with a default for a first run.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum, ValueHint};

use crate::config::{MAX_VCPUS, Mode, Populate};
use crate::machine::Kind;
use crate::machine::virt::DEFAULT_CPU;
use crate::size::Size;

/// The groups of options in the help.
const WHAT: &str = "What to boot";
const MACHINE: &str = "The guest and its machine";
const HOW: &str = "What to do with it";
const SAYS: &str = "What is said";

/// What to boot.
#[derive(Args, Clone, Debug)]
pub struct Boot {
    /// A guest of the catalogue: see `cargo qemu guests`
    #[arg(long, value_name = "NAME", default_value = "debian13")]
    #[arg(conflicts_with_all = ["kernel", "initrd", "guests", "bundle"])]
    #[arg(help_heading = WHAT)]
    pub guest: String,

    /// A kernel of your own: arm64 Image (plain, gzip, zstd, EFI zboot), ELF or raw
    /// binary
    #[arg(long, value_name = "FILE", conflicts_with_all = ["guests", "bundle"])]
    #[arg(help_heading = WHAT, value_hint = ValueHint::FilePath)]
    pub kernel: Option<PathBuf>,

    /// Its initial RAM disk; without, a Linux gets one with a busybox shell
    /// (`none`: it gets none)
    #[arg(long, value_name = "FILE", requires = "kernel")]
    #[arg(help_heading = WHAT, value_hint = ValueHint::FilePath)]
    pub initrd: Option<PathBuf>,

    /// The kernel's command line, or what is added to a catalogue guest's
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    #[arg(conflicts_with_all = ["guests", "bundle"])]
    #[arg(help_heading = WHAT)]
    pub append: Option<String>,

    /// Guests of your own configuration, a guests.toml
    #[arg(long, value_name = "FILE", conflicts_with = "bundle")]
    #[arg(help_heading = WHAT, value_hint = ValueHint::FilePath)]
    pub guests: Option<PathBuf>,

    /// A bundle made before, as it is (`none`: boot without one)
    #[arg(long, value_name = "FILE")]
    #[arg(help_heading = WHAT, value_hint = ValueHint::FilePath)]
    pub bundle: Option<PathBuf>,

    /// CPUs of the guest, and of the machine: 1 to 64; of a machine for --guests
    /// or --bundle as many as QEMU allows
    #[arg(long, value_name = "N", value_parser = cpus)]
    #[arg(help_heading = MACHINE)]
    pub smp: Option<u32>,

    /// Memory of the guest
    #[arg(long, value_name = "SIZE", default_value = "512M")]
    #[arg(conflicts_with_all = ["guests", "bundle"])]
    #[arg(help_heading = MACHINE)]
    pub memory: Size,

    /// Memory of the whole machine, instead of what the guests need
    #[arg(long, value_name = "SIZE")]
    #[arg(help_heading = MACHINE)]
    pub ram: Option<Size>,

    /// How the guest's memory stands towards the host
    #[arg(long, value_parser = modes(), default_value = "plain")]
    #[arg(conflicts_with_all = ["guests", "bundle"])]
    #[arg(help_heading = MACHINE)]
    pub mode: Mode,

    /// When guests get their memory, all of it at start or a piece at its first
    /// touch, and whether by pages alone [default: lazy-pages, which QEMU runs
    /// quickest; of other granules and machines the host's choice]
    #[arg(long, value_parser = populates(), conflicts_with = "bundle")]
    #[arg(help_heading = MACHINE)]
    pub populate: Option<Populate>,

    /// Stop a guest that accesses what it does not have
    #[arg(long, conflicts_with = "bundle")]
    #[arg(help_heading = MACHINE)]
    pub strict: bool,

    /// Granule of Undercroft's own translation tables
    #[arg(long, value_enum, default_value = "4k")]
    #[arg(help_heading = MACHINE)]
    pub granule: Granule,

    /// How much Undercroft logs
    #[arg(long, value_enum, value_name = "LEVEL", default_value = "info")]
    #[arg(help_heading = SAYS)]
    pub log: Level,

    /// An image built before, instead of building one
    #[arg(long, value_name = "FILE")]
    #[arg(help_heading = WHAT, value_hint = ValueHint::FilePath)]
    pub image: Option<PathBuf>,
}

/// How to run it.
#[derive(Args, Clone, Debug)]
pub struct Run {
    #[command(flatten)]
    pub boot: Boot,

    /// What plays the machine
    #[arg(long, value_enum, value_name = "MACHINE", default_value = "qemu")]
    #[arg(help_heading = MACHINE)]
    pub machine: Kind,

    /// The folder of the firmware that Arm's FVP starts with: TF-A's bl1.bin and
    /// fip.bin
    #[arg(long, value_name = "DIR")]
    #[arg(help_heading = MACHINE, value_hint = ValueHint::DirPath)]
    pub firmware: Option<PathBuf>,

    /// The CPU, as QEMU calls it
    #[arg(long, value_name = "NAME", default_value = DEFAULT_CPU)]
    #[arg(help_heading = MACHINE)]
    pub cpu: String,

    /// Run CMD in the guest's shell instead of leaving you there; its output
    /// and exit status are ours
    #[arg(
        long,
        value_name = "CMD",
        allow_hyphen_values = true,
        conflicts_with = "bundle"
    )]
    #[arg(help_heading = HOW)]
    pub exec: Option<String>,

    /// End the machine after this many seconds (0: never) [default: 300, or
    /// never at a terminal]
    #[arg(long, value_name = "SECONDS", overrides_with = "timeout", value_parser = seconds)]
    #[arg(help_heading = HOW)]
    pub timeout: Option<u64>,

    /// Wait for a debugger, and print the line that starts one; with PORT it
    /// connects there, where every user of this machine can
    #[arg(long, value_name = "PORT", num_args = 0..=1, value_parser = port)]
    #[arg(help_heading = HOW)]
    pub gdb: Option<Option<u16>>,

    /// The guest's names for the debugger, such as its vmlinux; a Linux gets
    /// `nokaslr` on its command line
    #[arg(long, value_name = "FILE", requires = "gdb", conflicts_with = "bundle")]
    #[arg(help_heading = HOW, value_hint = ValueHint::FilePath)]
    pub guest_symbols: Option<PathBuf>,

    /// Keep the log on the guest's console, as QEMU before 9.1 must
    #[arg(long)]
    #[arg(help_heading = SAYS)]
    pub one_uart: bool,

    /// Write each call of the host's and of guests (RMI, PSCI, vendor) with its
    /// result, or each exit of a vCPU to the host, into --trace-file
    #[arg(long, value_enum, value_name = "WHAT", value_delimiter = ',')]
    #[arg(help_heading = SAYS)]
    pub trace: Vec<Trace>,

    /// Where --trace writes
    #[arg(long, value_name = "FILE", requires = "trace")]
    #[arg(default_value = "undercroft.trace")]
    #[arg(help_heading = SAYS, value_hint = ValueHint::FilePath)]
    pub trace_file: PathBuf,

    /// Print the command of the machine instead of running it
    #[arg(long)]
    #[arg(help_heading = HOW)]
    pub dry_run: bool,

    /// Boot the guest on QEMU itself, without Undercroft, to compare
    #[arg(long, conflicts_with_all = ["guests", "bundle", "image", "gdb", "trace"])]
    #[arg(conflicts_with_all = ["ram", "mode", "populate", "strict", "granule", "log", "one_uart"])]
    #[arg(help_heading = HOW)]
    pub bare: bool,

    /// Show the guest's boot messages on standard error with --exec, too
    #[arg(long, short)]
    #[arg(help_heading = SAYS)]
    pub verbose: bool,

    /// Say nothing but what the guest and Undercroft say
    #[arg(long, short)]
    #[arg(help_heading = SAYS)]
    pub quiet: bool,

    /// Passed to QEMU
    #[arg(last = true, value_name = "QEMU ARGUMENTS")]
    #[arg(help_heading = HOW)]
    pub extra: Vec<OsString>,
}

/// The modes of guests, by the words for them.
pub fn modes() -> impl TypedValueParser<Value = Mode> {
    PossibleValuesParser::new(Mode::ALL.map(|(word, _)| word)).try_map(|word| word.parse::<Mode>())
}

/// When guests get their memory, by the words for it.
pub fn populates() -> impl TypedValueParser<Value = Populate> {
    let words = PossibleValuesParser::new(Populate::ALL.map(|(word, _)| word));
    words.try_map(|word| word.parse::<Populate>())
}

/// A number of CPUs. How many a machine has at most is QEMU's to say.
fn cpus(text: &str) -> Result<u32, String> {
    let cpus = text.parse().ok().filter(|cpus| *cpus > 0);
    cpus.ok_or_else(|| {
        format!(
            "expected 1 to {MAX_VCPUS}, as many as a guest can have; for a machine of \
             several guests (--guests, --bundle) as many as QEMU allows"
        )
    })
}

/// A time in seconds.
fn seconds(text: &str) -> Result<u64, String> {
    let seconds = text.parse();
    seconds.map_err(|_| "expected a whole number of seconds, such as 60; 0: never".into())
}

/// A TCP port. At 0 QEMU would take one that nobody is told.
pub fn port(text: &str) -> Result<u16, String> {
    let port = text.parse().ok().filter(|port| *port > 0);
    port.ok_or_else(|| "expected a TCP port, 1 to 65535, or --gdb alone, which needs none".into())
}

/// What is traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Trace {
    /// Calls with arguments and results
    Calls,
    /// Exits of vCPUs to the host
    Exits,
}

/// A translation granule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Granule {
    /// 4 KiB
    #[value(name = "4k")]
    K4,
    /// 16 KiB
    #[value(name = "16k")]
    K16,
    /// 64 KiB
    #[value(name = "64k")]
    K64,
}

impl fmt::Display for Granule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value();
        f.pad(value.as_ref().map_or("", |value| value.get_name()))
    }
}

/// A level of the log; later ones hold the earlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Level {
    /// What failed
    Error,
    /// And what is odd
    Warn,
    /// And what happens
    Info,
    /// And how
    Debug,
    /// And every step
    Trace,
}

impl Run {
    /// The boot arguments of the image, which is to log at `level`.
    pub fn bootargs(&self, log_uart: bool, level: Level) -> String {
        let mut text = self.boot.bootargs(log_uart, level);
        let kinds = self.trace.iter().filter_map(ValueEnum::to_possible_value);
        let kinds: Vec<_> = kinds.map(|kind| kind.get_name().to_string()).collect();
        if !kinds.is_empty() {
            text += &format!(" undercroft.trace={}", kinds.join(","));
        }
        text
    }
}

impl Boot {
    /// The boot arguments of the image, which is to log at `level`.
    pub fn bootargs(&self, log_uart: bool, level: Level) -> String {
        let name = |value: Option<clap::builder::PossibleValue>| {
            value.map_or_else(String::new, |value| value.get_name().to_string())
        };
        let mut text = format!(
            "undercroft.granule={} undercroft.loglevel={}",
            self.granule,
            name(level.to_possible_value())
        );
        if log_uart {
            text += " undercroft.log=serial1";
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine without Undercroft has none of what these ask for.
    #[test]
    fn bare_goes_with_nothing_of_undercrofts() {
        #[derive(clap::Parser)]
        struct Words {
            #[command(flatten)]
            run: Run,
        }
        let read = |words: &str| {
            let words = ["run --bare", words].join(" ");
            let read = <Words as clap::Parser>::try_parse_from(words.split_whitespace());
            read.map(|words| words.run.bare)
        };
        assert!(read("--guest debian12 --smp 2 --memory 1G --verbose").expect("read"));
        for words in [
            "--ram 1G",
            "--mode realm",
            "--populate eager",
            "--strict",
            "--granule 64k",
            "--log debug",
            "--one-uart",
            "--image undercroft.img",
            "--trace calls",
        ] {
            let said = read(words).expect_err(words).to_string();
            let (option, _) = words.split_once(' ').unwrap_or((words, ""));
            assert!(said.contains("--bare") && said.contains(option), "{said}");
        }
    }

    #[test]
    fn numbers_of_options_are_read_or_told() {
        assert_eq!((seconds("0"), seconds("60")), (Ok(0), Ok(60)));
        for text in ["", "5s", "1.5", "-1", "99999999999999999999"] {
            assert!(
                seconds(text).is_err_and(|said| said.contains("such as 60")),
                "{text}"
            );
        }
        assert_eq!(port("1234"), Ok(1234));
        for text in ["", "0", "65536", "22x", "-1"] {
            assert!(
                port(text).is_err_and(|said| said.contains("1 to 65535")),
                "{text}"
            );
        }
    }
}

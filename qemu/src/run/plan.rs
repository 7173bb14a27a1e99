//! From options to a machine: which guests, with which files, in how much RAM.

use std::fmt::Display;
use std::fs;
use std::io::{IsTerminal, Read};
use std::path::{self, Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::ending;
use super::options::{Boot, Granule, Level, Run};
use crate::build::{self, Image};
use crate::bundle;
use crate::config::places::Places;
use crate::config::{self, Guest, Mode, Populate};
use crate::guests::catalogue::{self, Origin};
use crate::guests::fetch::Cache;
use crate::guests::initrd::{self, Task};
use crate::image::header;
use crate::machine::Description;
use crate::machine::virt::{Machine, RAM_BASE};
use crate::setup::qemu::Qemu;
use crate::size::Size;
use crate::ui;
use crate::workspace::Workspace;

/// RAM beside the guests': for EL2, the host and the tables of both.
const OVERHEAD: Size = Size::mib(256);

/// What keeps a Linux where it is linked (Documentation/admin-guide/
/// kernel-parameters.txt).
const NO_KASLR: &str = "nokaslr";

/// Below that, a program is loaded into flash (host-loader's `map::FLASH_CODE`).
const FLASH: u64 = 0x0400_0000;

/// The word that asks for no file.
const NONE: &str = "none";

/// How files begin: A64's NOP, and what gzip (RFC 1952) and zstd (RFC 8878) pack.
const NOP: [u8; 4] = 0xd503_201f_u32.to_le_bytes();
const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = 0xfd2f_b528_u32.to_le_bytes();

/// How the user and the guests' console meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Style {
    /// The user's terminal is the console.
    Terminal,
    /// A command's output is taken from between marks.
    Command {
        /// The mark.
        mark: String,
    },
    /// Standard input and output are the console.
    Raw,
}

/// Guests ready to be packed or booted.
#[derive(Debug)]
pub struct Guests {
    /// The guests; empty where a bundle is taken as it is.
    pub list: Vec<Guest>,
    /// A bundle to take as it is: `Some(None)` for none at all.
    pub bundle: Option<Option<PathBuf>>,
    /// Where the guests' console goes.
    pub style: Style,
    /// Where each guest's settings come from.
    pub places: Places,
    /// The only guest is a firmware, which QEMU itself boots from flash.
    pub firmware: bool,
    /// Where a debugger finds the names of the first guest.
    pub symbols: Option<PathBuf>,
}

impl Guests {
    /// Guests that do not say how they get their memory get it as QEMU is quickest: with
    /// entries of no more than its TLB's own pages, which Undercroft's of 4K are. For
    /// each larger one it forgets all that it holds when one address is to be forgotten.
    pub fn suit_qemu(&mut self, granule: Granule) {
        if granule == Granule::K4 {
            for guest in &mut self.list {
                guest.populate.get_or_insert(Populate::LazyPages);
            }
        }
    }

    /// The guest whose console is the machine's: the one that says so, else the
    /// first, unless it says that it is not.
    pub fn console_owner(&self) -> Option<&Guest> {
        let says = self.list.iter().map(|guest| guest.console);
        guest_config::console_owner(says).and_then(|owner| self.list.get(owner))
    }
}

/// What decides the style of a run.
#[derive(Clone, Debug)]
pub enum Shell {
    /// A terminal is there.
    Interactive,
    /// This command is to be run.
    Command(String),
    /// Neither a terminal nor a command: the shell reads standard input.
    Script,
}

impl Shell {
    /// What the options and the surroundings ask for.
    pub fn of(options: &Run) -> Self {
        match &options.exec {
            Some(command) => Self::Command(command.clone()),
            // Whoever takes the printed command will be at a terminal.
            None if options.dry_run => Self::Interactive,
            None if std::io::stdin().is_terminal() && std::io::stdout().is_terminal() => {
                Self::Interactive
            }
            None => Self::Script,
        }
    }
}

/// Finds, fetches and builds what `boot` asks for. Files of this run alone go
/// into `folder`. A command's guest keeps its boot messages to itself unless it is to be
/// `verbose`.
///
/// # Errors
/// When something is missing or makes no sense; the message names it.
pub fn guests(
    workspace: &Workspace,
    boot: &Boot,
    shell: &Shell,
    verbose: bool,
    folder: &Path,
) -> Result<Guests> {
    if let Some(bundle) = &boot.bundle {
        let bundle = (bundle.as_os_str() != NONE).then(|| bundle.clone());
        if let Some(file) = &bundle {
            config::check_file(file).context("--bundle")?;
        }
        return Ok(Guests {
            list: Vec::new(),
            bundle: Some(bundle),
            style: as_they_are(shell)?,
            places: Places::default(),
            firmware: false,
            symbols: None,
        });
    }
    if let Some(file) = &boot.guests {
        let (mut list, places) = config::read(file)?;
        for guest in &mut list {
            guest.strict |= boot.strict;
            guest.populate = boot.populate.or(guest.populate);
        }
        return Ok(Guests {
            list,
            bundle: None,
            style: as_they_are(shell)?,
            places,
            firmware: false,
            symbols: None,
        });
    }
    check(boot)?;
    let places = of_options(boot);
    let wants = Wants::of(workspace, boot, shell)?;
    let cache = Cache::of(workspace);
    let (initrd, style) = match wants.initrd {
        Initrd::None => (None, as_they_are(shell)?),
        Initrd::Theirs(ref file) => match shell {
            Shell::Command(_) => {
                let (task, style) = task(shell)?;
                let mut data =
                    fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
                // Linux unpacks one archive behind the other; later files win.
                data.resize(data.len().next_multiple_of(4), 0);
                data.extend(initrd::build(&cache.busybox()?, &wants.name, &task)?);
                (Some(write(folder, "initrd", &data)?), style)
            }
            Shell::Interactive | Shell::Script => (Some(file.clone()), as_they_are(shell)?),
        },
        Initrd::Ours => {
            let (task, style) = task(shell)?;
            let data = initrd::build(&cache.busybox()?, &wants.name, &task)?;
            (Some(write(folder, "initrd", &data)?), style)
        }
    };
    let cmdline = cmdline(&wants, &style, verbose)?;
    Ok(Guests {
        list: vec![Guest {
            initrd,
            cmdline: (!cmdline.is_empty()).then_some(cmdline),
            vcpus: boot.smp.unwrap_or(1),
            mode: boot.mode,
            populate: boot.populate,
            strict: boot.strict,
            load: wants.load,
            ..Guest::new(wants.name, wants.kernel, boot.memory)
        }],
        bundle: None,
        style,
        places,
        firmware: wants.firmware,
        symbols: None,
    })
}

/// The command line of a guest that options describe.
fn cmdline(wants: &Wants<'_>, style: &Style, verbose: bool) -> Result<String> {
    // Boot messages are of use to a person who watches, not to a command.
    let ours = match (style, verbose) {
        (Style::Command { .. }, false) => Some("quiet nowatchdog"),
        (Style::Command { .. }, true) => Some("nowatchdog"),
        (Style::Terminal | Style::Raw, _) => None,
    };
    let cmdline = [
        wants.cmdline.as_deref(),
        ours.filter(|_| wants.ours),
        wants.append,
    ]
    .into_iter()
    .flatten()
    .filter(|text| !text.is_empty())
    .collect::<Vec<_>>()
    .join(" ");
    config::check_cmdline(&cmdline).context("--append")?;
    Ok(cmdline)
}

/// Lets the first guest be debugged with the symbols in `file`: a Linux then
/// stands where it is linked.
///
/// # Errors
/// When there is no such file, or no such guest.
pub fn debugged(guests: &mut Guests, file: &Path) -> Result<()> {
    config::check_file(file).context("--guest-symbols")?;
    if !header::read(file)?.starts_with(&object::elf::ELFMAG) {
        bail!(
            "--guest-symbols: {} is no ELF file; a kernel's names are in its vmlinux",
            file.display()
        );
    }
    let Some(guest) = guests.list.first_mut() else {
        bail!("--guest-symbols: which guests the bundle holds is not known here");
    };
    if is_linux(&header::read(&guest.kernel)?) {
        let cmdline = guest.cmdline.get_or_insert_default();
        *cmdline = format!("{cmdline} {NO_KASLR}").trim_start().to_string();
        config::check_cmdline(cmdline).with_context(|| format!("with {NO_KASLR}"))?;
    }
    guests.symbols = Some(path::absolute(file)?);
    Ok(())
}

/// What is wrong with a single guest as the options describe it, before anything
/// is fetched or read for it.
fn check(boot: &Boot) -> Result<()> {
    config::check_memory(boot.memory).with_context(|| format!("--memory {}", boot.memory))?;
    if let Some(smp) = boot.smp {
        config::check_vcpus(smp).with_context(|| format!("--smp {smp}"))?;
    }
    Ok(())
}

/// The options that a single guest's settings come from.
fn of_options(boot: &Boot) -> Places {
    let option = |name: &str, value: &dyn Display| format!("--{name} {value}");
    let kernel = match &boot.kernel {
        Some(file) => option("kernel", &file.display()),
        None => option("guest", &boot.guest),
    };
    let initrd = boot.initrd.as_ref();
    Places::by_options([
        ("name", kernel.clone()),
        (
            "initrd",
            initrd.map_or(kernel.clone(), |file| option("initrd", &file.display())),
        ),
        ("kernel", kernel),
        ("cmdline", "--append".into()),
        ("memory", option("memory", &boot.memory)),
        ("vcpus", option("smp", &boot.smp.unwrap_or(1))),
    ])
}

enum Initrd {
    None,
    Ours,
    Theirs(PathBuf),
}

/// One guest as the options name it.
struct Wants<'a> {
    name: String,
    kernel: PathBuf,
    initrd: Initrd,
    cmdline: Option<String>,
    append: Option<&'a str>,
    /// Whether the command line is ours to add to.
    ours: bool,
    firmware: bool,
    /// Where a raw binary goes.
    load: Option<u64>,
}

impl<'a> Wants<'a> {
    fn of(workspace: &Workspace, boot: &'a Boot, shell: &Shell) -> Result<Self> {
        let append = boot.append.as_deref();
        let Some(kernel) = &boot.kernel else {
            return Self::of_catalogue(workspace, boot, shell);
        };
        config::check_packed(kernel).context("--kernel")?;
        let head = header::read(kernel).context("--kernel")?;
        if head.is_empty() {
            bail!("--kernel: {} is empty", kernel.display());
        }
        // U-Boot looks alike: one for whom `--exec` is asked is taken for a Linux.
        let asked = matches!(shell, Shell::Command(_)) && header::is_image(&head);
        let is_linux = is_linux(&head) || asked;
        if let (Shell::Command(_), false) = (shell, is_linux) {
            bail!(
                "--exec needs a Linux, and {} does not begin like one: give --kernel an arm64 \
                 Image, plain or packed by gzip or zstd, or an EFI zboot image",
                kernel.display()
            );
        }
        let initrd = match &boot.initrd {
            Some(file) if file.as_os_str() == NONE => Initrd::None,
            Some(file) => {
                config::check_packed(file).context("--initrd")?;
                Initrd::Theirs(file.clone())
            }
            None if is_linux => {
                ui::note(
                    "Adding",
                    "an initial RAM disk with busybox (--initrd none: none)",
                );
                Initrd::Ours
            }
            None => Initrd::None,
        };
        // What is no Linux may mean anything by its command line.
        let ours = is_linux && !matches!(initrd, Initrd::None) && append.is_none();
        Ok(Self {
            name: "guest".into(),
            kernel: kernel.clone(),
            initrd,
            cmdline: ours.then(|| "console=ttyAMA0".to_string()),
            ours,
            firmware: false,
            load: None,
            append,
        })
    }

    fn of_catalogue(workspace: &Workspace, boot: &'a Boot, shell: &Shell) -> Result<Self> {
        let guest = catalogue::find(&boot.guest)?;
        if let (Shell::Command(_), false) = (shell, guest.has_shell()) {
            bail!(
                "guest `{}` has no shell for --exec: its console is standard \
                 input and output without a terminal",
                guest.name
            );
        }
        if let (Mode::Protected | Mode::Realm, Origin::Firmware { .. }) = (boot.mode, guest.origin)
        {
            let mode = match boot.mode {
                Mode::Realm => "realm",
                _ => "protected guest",
            };
            bail!(
                "guest `{}` asks QEMU's virt machine for its UART and flash, which a \
                 {mode} has elsewhere or not at all: use --mode plain",
                guest.name
            );
        }
        if boot.mode == Mode::Realm && !guest.knows_realms() {
            bail!(
                "guest `{}` knows nothing of realms (Linux does from 6.13), and would not \
                 find its devices: use --guest debian-backports, or --mode protected",
                guest.name
            );
        }
        let kernel = match guest.origin {
            Origin::Ours { program } => build::program(workspace, program)?,
            Origin::Linux { .. } | Origin::Tiny { .. } | Origin::Firmware { .. } => {
                Cache::of(workspace).kernel(guest)?
            }
        };
        Ok(Self {
            name: guest.name.into(),
            kernel,
            initrd: if guest.has_shell() {
                Initrd::Ours
            } else {
                Initrd::None
            },
            cmdline: guest.has_shell().then(|| "console=ttyAMA0".to_string()),
            append: boot.append.as_deref(),
            ours: true,
            firmware: matches!(guest.origin, Origin::Firmware { .. }),
            load: match guest.origin {
                Origin::Firmware { load, .. } => load,
                _ => None,
            },
        })
    }
}

/// Whether a file that begins with `head` is surely a Linux, or packed as one.
fn is_linux(head: &[u8]) -> bool {
    // An EFI program begins with "MZ", one without EFI with a NOP (from Linux 5.10 on);
    // U-Boot with a branch, as older ones did.
    let image = header::is_image(head) && [&b"MZ"[..], &NOP].iter().any(|b| head.starts_with(b));
    let zboot = head.starts_with(b"MZ\0\0zimg");
    let packed = [&GZIP[..], &ZSTD].iter().any(|b| head.starts_with(b));
    image || zboot || packed
}

/// The style where the guests have no first process of ours.
fn as_they_are(shell: &Shell) -> Result<Style> {
    match shell {
        Shell::Interactive => Ok(Style::Terminal),
        Shell::Script => Ok(Style::Raw),
        Shell::Command(_) => bail!(
            "--exec needs a guest with a shell: one of the catalogue's Linux \
             kernels, or --kernel with a Linux"
        ),
    }
}

/// The work of our first process, and the style that goes with it.
fn task(shell: &Shell) -> Result<(Task, Style)> {
    let command = match shell {
        Shell::Interactive => return Ok((Task::Shell, Style::Terminal)),
        Shell::Command(command) => command.clone().into_bytes(),
        Shell::Script => {
            ui::note(
                "Reading",
                "the guest's shell script from standard input (no terminal)",
            );
            let mut script = Vec::new();
            std::io::stdin()
                .read_to_end(&mut script)
                .context("cannot read the shell script on standard input")?;
            script
        }
    };
    let mark = initrd::mark();
    let style = Style::Command { mark: mark.clone() };
    Ok((Task::Command { command, mark }, style))
}

fn write(folder: &Path, name: &str, data: &[u8]) -> Result<PathBuf> {
    let file = folder.join(name);
    fs::write(&file, data).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(file)
}

/// QEMU's machine for `guests` under Undercroft, with a bundle in `folder`.
///
/// # Errors
/// When the guests do not fit the machine that the options describe.
pub fn machine(
    qemu: Qemu,
    options: &Run,
    guests: &Guests,
    image: impl FnOnce() -> Result<Image>,
    folder: &Path,
) -> Result<(Machine, Image)> {
    let log_uart = Machine::can_have_log_uart(&qemu) && !options.one_uart;
    let (described, image) = describe(options, guests, image, folder, log_uart)?;
    let machine = Machine::of(described, qemu, &options.cpu, &options.extra);
    Ok((machine, image))
}

/// What any machine for `guests` under Undercroft has, with a bundle in `folder`; `image`
/// is asked for when that is packed.
///
/// # Errors
/// When the guests do not fit the machine that the options describe.
pub fn describe(
    options: &Run,
    guests: &Guests,
    image: impl FnOnce() -> Result<Image>,
    folder: &Path,
    log_uart: bool,
) -> Result<(Description, Image)> {
    let cpus = cpus(&options.boot, guests)?;
    let (initrd, packed) = pack(guests, folder)?;
    let image = image()?;
    let ram = ram(&options.boot, guests, packed)?;
    // What a machine that is watched says of resets and of its last exits, we
    // need; what of it is shown is the user's choice.
    let level = match options.dry_run {
        true => options.boot.log,
        false => options.boot.log.max(Level::Info),
    };
    let description = Description {
        cpus,
        ram,
        kernel: image.file.clone(),
        initrd,
        append: options.bootargs(log_uart, level),
        end: Some(ending::token()?),
        log_uart,
    };
    Ok((description, image))
}

/// As many CPUs as the largest guest has, or as the user says, if that is enough.
///
/// # Errors
/// When a guest has more.
pub fn cpus(boot: &Boot, guests: &Guests) -> Result<u32> {
    let most = guests.list.iter().map(|guest| guest.vcpus).max();
    let cpus = boot.smp.or(most).unwrap_or(1);
    for (index, guest) in guests.list.iter().enumerate() {
        if guest.vcpus > cpus {
            bail!(
                "{}guest `{}` wants {} vCPUs and the machine has {cpus} CPUs: give it \
                 more with --smp",
                at(guests.places.of(index, "vcpus")),
                guest.name,
                guest.vcpus
            );
        }
    }
    Ok(cpus)
}

/// The guests' bundle, in `folder` if it is made here, and its bytes.
fn pack(guests: &Guests, folder: &Path) -> Result<(Option<PathBuf>, u64)> {
    let Some(bundle) = &guests.bundle else {
        let file = folder.join("bundle.cpio");
        let size = bundle::write(&guests.list, &file)?;
        return Ok((Some(file), size));
    };
    let size = (bundle.as_ref()).map_or(Ok(0), |file| file.metadata().map(|m| m.len()))?;
    Ok((bundle.clone(), size))
}

/// A place where the user has said something, to begin a message with.
fn at(place: Option<&str>) -> String {
    place.map_or_else(String::new, |place| format!("{place}: "))
}

/// As much RAM as the guests and a bundle of so many bytes need, or what the user says, if
/// they fit.
///
/// # Errors
/// When they do not.
pub fn ram(boot: &Boot, guests: &Guests, bundle: u64) -> Result<Size> {
    let (list, places) = (&guests.list, &guests.places);
    let sum: u64 = list
        .iter()
        .try_fold(0u64, |sum, guest| sum.checked_add(guest.memory.bytes()))
        .context("the guests' memory is more than any machine has")?;
    if let Some(ram) = boot.ram {
        if let Some((index, guest)) = list.iter().enumerate().find(|(_, g)| g.memory >= ram) {
            bail!(
                "{}guest `{}` wants {} of memory and the machine has {ram}: give \
                 it less, or the machine more with --ram",
                at(places.of(index, "memory")),
                guest.name,
                guest.memory
            );
        }
        if sum >= ram.bytes() {
            bail!(
                "the guests want {} MiB of memory together and the machine has {ram}: give \
                 them less, or the machine more with --ram",
                sum >> 20
            );
        }
        return Ok(ram);
    }
    let sum = if list.is_empty() {
        boot.memory.bytes()
    } else {
        sum
    };
    // The bundle lies in RAM beside what the guests get of it.
    let mib = (sum >> 20) + OVERHEAD.as_mib() + 2 * (bundle >> 20);
    Ok(Size::mib(mib.next_multiple_of(128)))
}

/// The machine that boots a single guest without Undercroft.
///
/// # Errors
/// When there is no single guest.
pub fn bare_machine(qemu: Qemu, options: &Run, guests: &Guests) -> Result<Machine> {
    let [guest] = guests.list.as_slice() else {
        bail!("--bare boots one guest");
    };
    let mut extra = options.extra.clone();
    let flash = guests.firmware || guest.load.is_some_and(|at| at < FLASH);
    if flash {
        extra.extend(["-bios".into(), guest.kernel.clone().into()]);
    }
    Ok(Machine {
        qemu,
        cpu: options.cpu.clone(),
        cpus: guest.vcpus,
        ram: guest.memory,
        ram_base: RAM_BASE,
        kernel: (!flash).then(|| guest.kernel.clone()),
        initrd: guest.initrd.clone(),
        append: guest.cmdline.clone().unwrap_or_default(),
        end: None,
        // As Undercroft shows it: a machine whose CPUs begin at EL1.
        el2: false,
        log_uart: false,
        debugger: None,
        extra,
    })
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::io::Write as _;

    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Words {
        #[command(flatten)]
        boot: Boot,
    }

    /// What `--exec` says to these further words.
    fn refused(words: &[&OsStr]) -> String {
        let words = [&[OsStr::new("run")], words].concat();
        let boot = Words::try_parse_from(words).expect("options").boot;
        let workspace = Workspace::find().expect("a workspace");
        let shell = Shell::Command("true".into());
        let error = guests(&workspace, &boot, &shell, false, Path::new("/nonexistent"));
        format!("{:#}", error.expect_err("no guests"))
    }

    #[test]
    fn a_command_for_what_is_no_linux_is_refused_with_its_name() {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(b"\xfd7zXZ\0").expect("writes");
        let said = refused(&["--kernel".as_ref(), file.path().as_ref()]);
        assert!(said.contains(&file.path().display().to_string()), "{said}");
        assert!(said.contains("gzip or zstd"), "{said}");
    }

    #[test]
    fn a_bundle_of_nothing_is_refused() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let said = refused(&["--bundle".as_ref(), file.path().as_ref()]);
        assert!(
            said.starts_with("--bundle: ") && said.ends_with("is empty"),
            "{said}"
        );
        let said = refused(&["--bundle".as_ref(), "/".as_ref()]);
        assert_eq!(said, "--bundle: / is no file");
    }

    /// An Image's header that begins with `code`.
    fn image(code: &[u8]) -> Vec<u8> {
        let mut head = vec![0; 64];
        head[..code.len()].copy_from_slice(code);
        head[56..60].copy_from_slice(b"ARM\x64");
        head
    }

    #[test]
    fn a_verbose_guest_is_not_told_to_be_quiet() {
        let wants = Wants {
            name: "a".into(),
            kernel: PathBuf::from("a"),
            initrd: Initrd::Ours,
            cmdline: Some("console=ttyAMA0".into()),
            append: Some("x"),
            ours: true,
            firmware: false,
            load: None,
        };
        let command = Style::Command {
            mark: "mark".into(),
        };
        for (style, verbose, expected) in [
            (&command, false, "console=ttyAMA0 quiet nowatchdog x"),
            (&command, true, "console=ttyAMA0 nowatchdog x"),
            (&Style::Terminal, false, "console=ttyAMA0 x"),
        ] {
            assert_eq!(cmdline(&wants, style, verbose).expect("short"), expected);
        }
    }

    #[test]
    fn a_linux_is_known_by_how_it_begins() {
        for (what, head) in [
            ("with EFI", image(b"MZ")),
            ("without EFI", image(&[0x1f, 0x20, 0x03, 0xd5])),
            ("zboot", b"MZ\0\0zimg".to_vec()),
            ("gzip", vec![0x1f, 0x8b, 8]),
            ("zstd", vec![0x28, 0xb5, 0x2f, 0xfd]),
        ] {
            assert!(is_linux(&head), "{what}");
        }
        for (what, head) in [
            ("U-Boot", image(&[0x0a, 0, 0, 0x14])),
            ("a raw binary", vec![0x1f, 0x20, 0x03, 0xd5]),
            ("an x86 kernel", b"MZ\xea\x07".to_vec()),
            ("nothing", Vec::new()),
        ] {
            assert!(!is_linux(&head), "{what}");
        }
    }
}

//! Guests that boot under Undercroft: each kernel, number of CPUs, CPU and
//! way of starting that the project promises.

use std::fs;
use std::ops::Add;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::call::Call;
use super::{Case, Context};
use crate::bench::boot::{self, Chatter};
use crate::bundle;
use crate::config::Guest;
use crate::guests::catalogue;
use crate::guests::fetch::Cache;
use crate::guests::initrd::{self, Task};
use crate::machine::virt::{DEFAULT_CPU, Machine, RAM_BASE, loaded};
use crate::run::capture::Capture;
use crate::run::ending::{self, Ending};
use crate::size::Size;

/// The guest that most cases boot.
const LINUX: &[&str] = &["debian13"];

/// What each Linux guest is asked.
const QUESTION: &str = "uname -a; grep -c processor /proc/cpuinfo; dmesg | grep -i psci";

/// How long a machine of a case may run.
pub const LIMIT: Duration = Duration::from_secs(600);

/// Every granule with CPUs of each kind that can translate with it.
const EVERY_GRANULE: [(&str, &str); 13] = [
    ("4k", "cortex-a53"),
    ("4k", "cortex-a72"),
    ("4k", "cortex-a76"),
    ("4k", "neoverse-n1"),
    ("4k", "neoverse-n2"),
    ("4k", "neoverse-v1"),
    ("4k", "max,lpa2=off"),
    ("16k", "cortex-a76"),
    ("16k", "neoverse-n2"),
    ("16k", "max"),
    ("64k", "cortex-a53"),
    ("64k", "neoverse-n1"),
    ("64k", "max,lpa2=off"),
];

/// Every granule with CPUs that have FEAT_S2FWB and such that have not, for guests
/// whose memory is their own.
const PROTECTED: [(&str, &str); 5] = [
    ("4k", "max"),
    ("16k", "max"),
    ("64k", "max"),
    ("4k", "cortex-a72"),
    ("64k", "cortex-a72"),
];

/// The cases.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (guest, release) in [
        ("debian12", " 6.1."),
        ("debian13", " 6.12."),
        ("debian13-16k", "-16k "),
    ] {
        for smp in ["1", "2", "4"] {
            cases.push(
                Case::new(format!("boots/{guest}-smp{smp}"), move |context| {
                    let called = Call::run(context)?
                        .args(["--guest", guest, "--smp", smp, "--exec", QUESTION])
                        .call()?
                        .ended(0)?
                        .shows(&[
                            release,
                            "aarch64",
                            "psci: PSCIv1.",
                            "SMC Calling Convention v1.",
                        ])?;
                    let processors = called.stdout.lines().nth(1);
                    ensure!(
                        processors == Some(smp),
                        "{processors:?} processors, expected {smp}"
                    );
                    called.calmly()?;
                    Ok(())
                })
                .boots(&[guest]),
            );
        }
    }
    for cpu in ["cortex-a72", "neoverse-n1", "max"] {
        cases.push(
            Case::new(format!("boots/debian12-{cpu}"), move |context| {
                Call::run(context)?
                    .args(["--guest", "debian12", "--cpu", cpu, "--exec", "uname -m"])
                    .call()?
                    .ended(0)?
                    .printed("aarch64\n")?
                    .calmly()?;
                Ok(())
            })
            .boots(&["debian12"]),
        );
    }
    // A CPU that cannot translate with a granule is no CPU for it.
    // The last has no FWB, and memory enough for blocks of 512 MiB: cleaning
    // one takes a host's call many turns.
    for (granule, cpu, memory) in [
        ("16k", "max", "512M"),
        ("64k", "max", "512M"),
        ("64k", "cortex-a72", "1280M"),
    ] {
        cases.push(
            Case::new(
                format!("boots/debian13-granule-{granule}-{cpu}"),
                move |context| {
                    Call::run(context)?
                        .args(["--guest", "debian13", "--cpu", cpu, "--granule", granule])
                        .args(["--memory", memory, "--exec", "uname -m"])
                        .call()?
                        .ended(0)?
                        .printed("aarch64\n")?;
                    Ok(())
                },
            )
            .boots(LINUX),
        );
    }
    for (granule, cpu) in PROTECTED {
        let name = format!("boots/protected-{granule}-{cpu}");
        let body = move |context: &Context| {
            let granule = ["--cpu", cpu, "--granule", granule];
            protected(context, "debian13", &granule, 1)
        };
        cases.push(Case::new(name, body).boots(LINUX));
    }
    for (name, guest, more) in [
        ("debian12", "debian12", &[][..]),
        ("eager", "debian13", &["--populate", "eager"]),
        ("smp4", "debian13", &["--smp", "4"]),
    ] {
        let body = move |context: &Context| {
            let vcpus = if name == "smp4" { 4 } else { 1 };
            protected(context, guest, more, vcpus)
        };
        cases.push(Case::new(format!("boots/protected-{name}"), body).boots(&[guest]));
    }
    cases.push(Case::new("boots/protected-beside-plain", side_by_side).boots(LINUX));
    // Of Debian's newest kernels what matters is that they are found and boot.
    for guest in ["debian-backports", "debian-backports-16k"] {
        let body = move |context: &Context| {
            Call::run(context)?
                .args(["--guest", guest, "--smp", "2", "--exec", "nproc"])
                .call()?
                .ended(0)?
                .printed("2\n")?
                .calmly()?;
            Ok(())
        };
        cases.push(
            Case::new(format!("boots/{guest}"), body)
                .boots(&[guest])
                .full(),
        );
    }
    for guest in ["debian12", "debian13", "debian13-16k"] {
        for (granule, cpu) in EVERY_GRANULE {
            let name = format!("boots/all-{guest}-{granule}-{cpu}");
            let body = move |context: &Context| {
                Call::run(context)?
                    .args(["--guest", guest, "--cpu", cpu, "--granule", granule])
                    .args(["--smp", "4", "--exec", "nproc"])
                    .call()?
                    .ended(0)?
                    .printed("4\n")?
                    .calmly()?;
                Ok(())
            };
            // These kernels need 16K stage 1, which these CPUs do not have.
            let cannot = guest == "debian13-16k" && ["cortex-a53", "cortex-a72"].contains(&cpu);
            if !cannot {
                cases.push(Case::new(name, body).boots(&[guest]).full());
            }
        }
    }
    // Other ways than each granule's own with QEMU; see `bench boot` for what it costs.
    for (granule, populate) in [
        ("4k", "eager"),
        ("4k", "lazy"),
        ("16k", "lazy"),
        ("64k", "lazy"),
    ] {
        let body = move |context: &Context| {
            Call::run(context)?
                .args(["--guest", "debian13", "--smp", "4", "--exec", "nproc"])
                .args(["--granule", granule, "--populate", populate])
                .call()?
                .ended(0)?
                .printed("4\n")?
                .calmly()?;
            Ok(())
        };
        cases.push(Case::new(format!("boots/{populate}-{granule}"), body).boots(LINUX));
    }
    cases.extend([
        Case::new("boots/exec-status", |context| {
            Call::run(context)?
                .args(["--guest", "debian13", "--exec", "echo out; exit 42"])
                .call()?
                .ended(42)?
                .printed("out\n")?;
            Ok(())
        })
        .boots(LINUX),
        Case::new("boots/one-uart", |context| {
            Call::run(context)?
                .args(["--one-uart", "--log", "debug", "--guest", "debian13"])
                .args(["--exec", "seq 1000; printf '[ 1.0] x'"])
                .call()?
                .ended(0)?
                .printed(
                    &(1..=1000)
                        .map(|i| format!("{i}\n"))
                        .collect::<String>()
                        .add("[ 1.0] x"),
                )?
                .tells(&["host", "end: ", "status 0"])?;
            Ok(())
        })
        .boots(LINUX),
        Case::new("boots/image-folder", |context| {
            // What `cargo qemu image` leaves boots as its README.txt says.
            let folder = tempfile::tempdir_in(&context.folder)?;
            Call::program(&context.runner, LIMIT)
                .args(["image", "--guest", "hello", "--image"])
                .args([&context.image()?.file])
                .args(["-o"])
                .args([folder.path()])
                .call()?
                .ended(0)?;
            let text = fs::read_to_string(folder.path().join("README.txt"))?;
            let command = text
                .find("qemu-system")
                .context("no command in README.txt")?;
            Call::program("sh", LIMIT)
                .args(["-c", &text[command..]])
                .within(folder.path())
                .call()?
                .ended(0)?
                .shows(&["hello", "end: status 0"])?;
            Ok(())
        }),
        // Another board: RAM from address 0 on, in two pieces, and no randomness.
        Case::new("boots/xlnx-versal-4k", |context| versal(context, "4k")),
        Case::new("boots/xlnx-versal-64k", |context| versal(context, "64k")),
        Case::new("boots/hello", |context| {
            Call::run(context)?
                .args(["--guest", "hello"])
                .call()?
                .ended(0)?
                .shows(&["hello"])?
                .calmly()?;
            Ok(())
        }),
        Case::new("boots/u-boot", |context| {
            let folder = tempfile::tempdir_in(&context.folder)?;
            let guest = guest(context, "u-boot")?;
            let machine = machine(context, folder.path(), &[guest])?;
            talk_to_u_boot(Capture::start(&machine, LIMIT, false)?)
        })
        .boots(&["u-boot"]),
        Case::new("boots/edk2", |context| in_flash(context, "4k", "max")).boots(&["edk2"]),
        // By pages, and without FEAT_S2FWB.
        Case::new("boots/edk2-16k", |context| {
            in_flash(context, "16k", "cortex-a76")
        })
        .boots(&["edk2"]),
        Case::new("boots/edk2-64k", |context| in_flash(context, "64k", "max")).boots(&["edk2"]),
        Case::new("boots/console-input", console_input).boots(LINUX),
        Case::new("boots/first-input-byte", |context| {
            // Typed before there is anybody to read: the first key stops the
            // automatic boot, and none is lost.
            Call::run(context)?
                .args(["--guest", "u-boot"])
                .stdin("hello\nversion\npoweroff\n")
                .call()?
                .ended(0)?
                .shows(&["command 'ello'", "U-Boot 20"])?;
            Ok(())
        })
        .boots(&["u-boot"]),
        Case::new("boots/random-from-the-start", |context| {
            // A CPU that has no random numbers of its own.
            Call::run(context)?
                .args(["--guest", "debian13", "--cpu", "cortex-a72"])
                .args(["--exec", "dmesg | grep -e KASLR -e 'crng init'"])
                .call()?
                .ended(0)?
                .shows(&["KASLR enabled", "[    0.000000] random: crng init done"])?;
            Ok(())
        })
        .boots(LINUX),
        Case::new("boots/from-u-boot", from_u_boot).boots(&["debian13", "u-boot"]),
        Case::new("boots/large-memory", |context| {
            // More than the first GiB, and RAM across a 4 GiB boundary.
            Call::run(context)?
                .args(["--guest", "debian13", "--memory", "5G", "--exec"])
                .args(["head -1 /proc/meminfo | tr -dc 0-9"])
                .call()?
                .ended(0)
                .and_then(|called| {
                    let kib: u64 = called
                        .stdout
                        .trim()
                        .parse()
                        .context("no amount of memory")?;
                    ensure!(kib > 4_800_000, "the guest has {kib} KiB");
                    Ok(())
                })
        })
        .boots(LINUX),
    ]);
    cases.extend(instructions());
    cases
}

/// The gates of a boot's instructions. A boot draws by lot what moves its count by up
/// to 5 %. The mean of eight moves by less than 1 %, far less than the quiet console's
/// gate leaves; what the full one's leaves, one boot does not reach.
fn instructions() -> [Case; 2] {
    [
        ("boots/instructions", Chatter::Quiet, 8),
        ("boots/instructions-full-console", Chatter::Full, 1),
    ]
    .map(|(name, chatter, seeds)| {
        let measured = move |context: &Context| {
            let options = boot::Options {
                image: Some(context.image()?.file.clone()),
                seeds,
                consoles: vec![chatter],
                ..boot::Options::default()
            };
            let rows = boot::measure(&context.workspace, context.qemu()?, &options)?;
            let missed: Vec<_> = rows.iter().filter(|row| !row.passes()).collect();
            if !missed.is_empty() {
                let rows: String = rows.iter().map(|row| format!("  | {row}\n")).collect();
                bail!("a gate was missed\n  | {}\n{rows}", boot::HEAD);
            }
            Ok(())
        };
        Case::new(name, measured).boots(LINUX)
    })
}

/// An unmodified Linux whose memory the host cannot read: all of its RAM can be used,
/// and its console stands in the half that it shares, as its device tree alone says.
fn protected(context: &Context, guest: &str, more: &[&str], vcpus: u64) -> Result<()> {
    // Touches most of its RAM, and fills some of it to read it back.
    const TASK: &str = "nproc; mkdir /mnt; mount -t tmpfs tmpfs /mnt; cd /mnt; \
         dd if=/dev/zero of=zeros bs=1M count=160 2>/dev/null; \
         seq 300000 >one; seq 300000 | cmp - one && echo same; \
         dmesg | grep -o 'ttyAMA0 at MMIO 0x[0-9a-f]*'";
    let called = Call::run(context)?
        .args(["--mode", "protected", "--guest", guest])
        .args(more)
        .args(["--exec", TASK])
        .call()?
        .ended(0)?
        .calmly()?;
    let lines: Vec<_> = called.stdout.lines().collect();
    let (_, uart) = (lines.last())
        .and_then(|line| line.rsplit_once("0x"))
        .context("no UART")?;
    let uart = u64::from_str_radix(uart, 16)?;
    // The map's own address, above all of the guest's RAM.
    ensure!(
        lines[..lines.len() - 1] == [vcpus.to_string().as_str(), "same"]
            && (uart & !(1 << uart.ilog2())) == 0x0900_0000
            && uart.ilog2() >= 32,
        "{lines:#?}"
    );
    Ok(())
}

/// One guest whose memory is the host's and one whose memory is its own: each has its
/// devices where its mode has them, and powers itself off.
fn side_by_side(context: &Context) -> Result<()> {
    let folder = tempfile::tempdir_in(&context.folder)?;
    let kernel = Cache::of(&context.workspace).kernel(catalogue::find("debian13")?)?;
    let busybox = Cache::of(&context.workspace).busybox()?;
    let mut toml = String::new();
    for (mode, console) in [("plain", false), ("protected", true)] {
        let task = Task::Command {
            command: b"dmesg | grep -o 'ttyAMA0 at MMIO 0x[0-9a-f]*'; poweroff -f".to_vec(),
            mark: initrd::mark(),
        };
        let initrd = folder.path().join(format!("{mode}.cpio"));
        fs::write(&initrd, initrd::build(&busybox, mode, &task)?)?;
        toml += &format!(
            "[[guest]]\nname = {mode:?}\nmode = {mode:?}\nkernel = {kernel:?}\n\
             initrd = {initrd:?}\ncmdline = \"console=ttyAMA0 quiet\"\n\
             memory = \"256M\"\nconsole = {console}\n"
        );
    }
    let file = folder.path().join("guests.toml");
    fs::write(&file, toml)?;
    Call::run(context)?
        .args(["--smp", "2", "--log", "debug", "--guests"])
        .args([&file])
        .call()?
        .ended(0)?
        .shows(&["ttyAMA0 at MMIO 0x109000000"])?
        .tells(&["guest plain: ", "ttyAMA0 at MMIO 0x9000000"])?
        .tells(&["guest plain: powered off"])?
        .tells(&["guest protected: powered off"])?
        .calmly()?;
    Ok(())
}

/// A guest of the catalogue with one CPU and nothing but its kernel.
fn guest(context: &Context, name: &str) -> Result<Guest> {
    Ok(Guest::new(
        "guest",
        Cache::of(&context.workspace).kernel(catalogue::find(name)?)?,
        Size::mib(256),
    ))
}

/// The machine for a Linux guest of one CPU, with a shell on its console.
///
/// # Errors
/// When something cannot be had.
pub fn machine_with_shell(context: &Context, folder: &Path) -> Result<Machine> {
    let busybox = Cache::of(&context.workspace).busybox()?;
    let initrd = folder.join("initrd");
    fs::write(&initrd, initrd::build(&busybox, "guest", &Task::Shell)?)?;
    let guest = Guest {
        initrd: Some(initrd),
        cmdline: Some("console=ttyAMA0 quiet".into()),
        ..guest(context, "debian13")?
    };
    machine(context, folder, &[guest])
}

/// Talks with a U-Boot that is the machine's guest, or the machine's own.
///
/// # Errors
/// When it does not come to its prompt, or not to an end.
pub fn talk_to_u_boot(mut capture: Capture) -> Result<()> {
    let talk = |capture: &mut Capture| -> Result<Ending> {
        capture.until("autoboot")?;
        capture.type_in("\n")?;
        capture.until("=> ")?;
        capture.type_in("version\n")?;
        capture.until("U-Boot 20")?;
        capture.until("=> ")?;
        capture.type_in("poweroff\n")?;
        capture.finish()
    };
    ended_well(talk(&mut capture), &capture)
}

/// What names a variable of nobody else's in UEFI's shell.
const VARIABLE: &str = "setvar Undercroft -guid 12345678-1234-1234-1234-123456789abc";

/// QEMU's model of a Xilinx Versal board, which knows nothing of the runner's machine.
fn versal(context: &Context, granule: &str) -> Result<()> {
    let folder = tempfile::tempdir_in(&context.folder)?;
    Call::program(&context.runner, LIMIT)
        .args(["image", "--guest", "hello", "--mode", "protected"])
        .args(["--smp", "2", "--image"])
        .args([&context.image()?.file])
        .args(["-o"])
        .args([folder.path()])
        .call()?
        .ended(0)?;
    Call::program(&context.qemu()?.program, LIMIT)
        .args(["-machine", "xlnx-versal-virt", "-m", "4G"])
        .args(["-nographic", "-monitor", "none", "-no-reboot"])
        .args(["-kernel", "undercroft.img", "-initrd", "bundle.cpio"])
        .args(["-append", &format!("undercroft.granule={granule}")])
        .within(folder.path())
        .call()?
        .ended(0)?
        .shows(&["hello from EL1, 2 vcpus", "end: status 0"])?;
    Ok(())
}

/// EDK2 from flash: it comes to its shell, a variable outlives a reset, and it powers
/// off.
fn in_flash(context: &Context, granule: &str, cpu: &str) -> Result<()> {
    let folder = tempfile::tempdir_in(&context.folder)?;
    let guest = Guest {
        load: Some(0),
        ..guest(context, "edk2")?
    };
    let mut machine = machine(context, folder.path(), &[guest])?;
    machine.cpu = cpu.into();
    machine.append = (machine.append).replace("granule=4k", &format!("granule={granule}"));
    let mut capture = Capture::start(&machine, LIMIT, false)?;
    let talk = |capture: &mut Capture| -> Result<Ending> {
        capture.until("Shell> ")?;
        capture.type_in(&format!("{VARIABLE} -nv -bs =4b657074\r"))?;
        capture.until("Shell> ")?;
        capture.type_in("date\r")?;
        capture.until("/20")?;
        capture.until("Shell> ")?;
        capture.type_in("reset\r")?;
        capture.until("Shell> ")?;
        capture.type_in(&format!("{VARIABLE}\r"))?;
        capture.until("4B 65 70 74")?;
        capture.until("Shell> ")?;
        capture.type_in("reset -s\r")?;
        capture.finish()
    };
    ended_well(talk(&mut capture), &capture)
}

/// The machine for these guests, with their bundle in `folder`.
///
/// # Errors
/// When something cannot be had.
pub fn machine(context: &Context, folder: &Path, guests: &[Guest]) -> Result<Machine> {
    let bundle = folder.join("bundle.cpio");
    bundle::write(guests, &bundle)?;
    let qemu = context.qemu()?.clone();
    let log_uart = Machine::can_have_log_uart(&qemu);
    let log = if log_uart {
        " undercroft.log=serial1"
    } else {
        ""
    };
    Ok(Machine {
        qemu,
        cpu: DEFAULT_CPU.into(),
        cpus: 1,
        ram: Size::mib(1024),
        ram_base: RAM_BASE,
        kernel: Some(context.image()?.file.clone()),
        initrd: Some(bundle),
        append: format!("undercroft.granule=4k undercroft.loglevel=info{log}"),
        end: Some(ending::token()?),
        el2: true,
        log_uart,
        debugger: None,
        extra: Vec::new(),
    })
}

/// What is typed arrives, in order, however much it is.
fn console_input(context: &Context) -> Result<()> {
    let folder = tempfile::tempdir_in(&context.folder)?;
    let machine = machine_with_shell(context, folder.path())?;
    let mut capture = Capture::start(&machine, LIMIT, false)?;
    let talk = |capture: &mut Capture| -> Result<Ending> {
        capture.until("# ")?;
        let text = "0123456789".repeat(20);
        capture.type_in(&format!(
            "echo -n {text} | md5sum; echo {text} | wc -c; stty -echo\n"
        ))?;
        capture.until("\r\n201")?;
        capture.until("# ")?;
        capture.type_in("echo $((6 * 7)); exit\n")?;
        capture.until("42")?;
        capture.finish()
    };
    ended_well(talk(&mut capture), &capture)
}

/// The image as U-Boot's `booti` starts it: U-Boot at EL2 from flash, the
/// image and the bundle where somebody has loaded them.
fn from_u_boot(context: &Context) -> Result<()> {
    const IMAGE_AT: u64 = 0x4820_0000;
    const BUNDLE_AT: u64 = 0x5000_0000;
    let folder = tempfile::tempdir_in(&context.folder)?;
    let mut machine = machine_with_shell(context, folder.path())?;
    let image = machine.kernel.take().context("there is an image")?;
    let bundle = machine.initrd.take().context("there is a bundle")?;
    let bootargs = machine.boot_arguments();
    machine.append.clear();
    let size = bundle.metadata()?.len();
    let u_boot = Cache::of(&context.workspace).kernel(catalogue::find("u-boot")?)?;
    machine.extra.extend(["-bios".into(), u_boot.into()]);
    for (file, at) in [(&image, IMAGE_AT), (&bundle, BUNDLE_AT)] {
        machine.extra.extend(loaded(file, at).map(Into::into));
    }
    let mut capture = Capture::start(&machine, LIMIT, false)?;
    let talk = |capture: &mut Capture| -> Result<Ending> {
        capture.until("autoboot")?;
        capture.type_in("\n")?;
        capture.until("=> ")?;
        capture.type_in(&format!("setenv bootargs {bootargs}\n"))?;
        capture.until("=> ")?;
        capture.type_in(&format!(
            "booti {IMAGE_AT:#x} {BUNDLE_AT:#x}:{size:x} $fdtcontroladdr\n"
        ))?;
        capture.until("guest:~# ")?;
        capture.type_in("exit\n")?;
        capture.finish()
    };
    ended_well(talk(&mut capture), &capture)
}

/// Asks for an end with every guest powered off.
///
/// # Errors
/// When it was another, or did not come to an end.
pub fn ended_well(ending: Result<Ending>, capture: &Capture) -> Result<()> {
    match ending {
        Ok(Ending::Status(0)) => Ok(()),
        Ok(ending) => bail!("{ending}\n{}", capture.last_words()),
        Err(error) => {
            Err(error.context(format!("the machine said last\n{}", capture.last_words())))
        }
    }
}

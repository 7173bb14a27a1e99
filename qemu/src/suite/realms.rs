//! Realms: unmodified kernels that know what they are, and a program that shares its
//! memory and takes it back.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};

use super::boots::{LIMIT, ended_well, machine};
use super::call::{Call, Called};
use super::on_target::failed_none;
use super::{Case, Context, Counts, Outcome};
use crate::build;
use crate::config::{Guest, Mode};
use crate::guests::catalogue;
use crate::guests::fetch::Cache;
use crate::guests::initrd::{self, Task};
use crate::run::capture::Capture;
use crate::run::ending::Ending;
use crate::size::Size;

/// What each Linux is asked: its realm, its CPUs, its UART, and memory that it fills and
/// reads back.
const TASK: &str = "dmesg | grep -o 'RSI version 1.0'; nproc; \
     dmesg | grep -q -e 'ttyAMA0 MMIO:0x0*9000000 ' -e 'ttyAMA0 at MMIO 0x9000000 ' && echo uart; \
     mkdir -p /mnt; mount -t tmpfs tmpfs /mnt 2>/dev/null; cd /mnt; \
     seq 300000 >one; seq 300000 | cmp - one && echo same";

/// The kernels of a page size and an address size that a user's cache may hold: no
/// package has them.
const TINY: [&str; 6] = [
    "4k-va48-pa48",
    "4k-va52-pa52",
    "16k-va48-pa48",
    "16k-va52-pa52",
    "64k-va48-pa48",
    "64k-va52-pa52",
];

/// Granules in bytes, by their names.
const GRANULES: [(&str, u64); 3] = [("4k", 4 << 10), ("16k", 16 << 10), ("64k", 64 << 10)];

/// The cases.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    // Debian's newest kernels; the first is what README shows.
    for (guest, more, vcpus, quick) in [
        ("debian-backports", &["--smp", "2"][..], 2, true),
        ("debian-backports", &["--granule", "16k"], 1, false),
        ("debian-backports", &["--granule", "64k"], 1, false),
        ("debian-backports", &["--cpu", "cortex-a72"], 1, false),
        ("debian-backports", &["--populate", "eager"], 1, false),
        ("debian-backports-16k", &["--smp", "2"], 2, false),
        ("debian-backports-16k", &["--granule", "16k"], 1, false),
        ("debian-backports-16k", &["--granule", "64k"], 1, false),
    ] {
        let suffix: String = more.join("").replace("--", "-");
        let body = move |context: &Context| {
            let called = linux(context, &["--guest", guest], more, vcpus)?;
            called.calmly().map(drop)
        };
        let case = Case::new(format!("realms/{guest}{suffix}"), body).boots(&[guest]);
        cases.push(if quick { case } else { case.full() });
    }
    let hotplug = |context: &Context| {
        let task = "cd /sys/devices/system/cpu; \
             for n in 1 2 3; do echo 0 >cpu1/online; nproc; echo 1 >cpu1/online; nproc; done";
        Call::run(context)?
            .args(["--mode", "realm", "--guest", "debian-backports"])
            .args(["--smp", "2", "--exec", task])
            .call()?
            .ended(0)?
            .printed("1\n2\n1\n2\n1\n2\n")?
            .calmly()
            .map(drop)
    };
    cases.push(Case::new("realms/cpus-leave-and-come-back", hotplug).boots(&["debian-backports"]));
    cases.push(Case::new("realms/suspends", suspends).boots(&["debian-backports"]));
    for tiny in TINY {
        for (granule, _) in GRANULES {
            let body = move |context: &Context| tiny_linux(context, tiny, granule);
            let case = Case::skipping(format!("realms/tiny-{tiny}-on-{granule}"), body);
            // Of each granule of EL2's one, which no other kernel's pages have there.
            let quick = [
                ("16k-va48-pa48", "16k"),
                ("4k-va48-pa48", "64k"),
                ("64k-va52-pa52", "64k"),
            ];
            let is_quick = quick.contains(&(tiny, granule));
            cases.push(if is_quick { case } else { case.full() });
            for (bits, cpu) in WIDE.iter().filter(|(bits, _)| reaches(tiny, *bits)) {
                let body = move |context: &Context| wide(context, tiny, granule, *bits, cpu);
                let name = format!("realms/tiny-{tiny}-on-{granule}-of-{bits}-bits-{cpu}");
                cases.push(Case::skipping(name, body).full());
            }
        }
    }
    for (granule, bytes) in GRANULES {
        for cpu in ["max", "cortex-a72"] {
            // Its tables have no such granule.
            if (granule, cpu) == ("16k", "cortex-a72") {
                continue;
            }
            let body = move |context: &Context| shares(context, granule, bytes, cpu, "lazy");
            cases.push(Case::new(format!("realms/shares-{granule}-{cpu}"), body));
            let body = move |context: &Context| shares(context, granule, bytes, cpu, "eager");
            let case = Case::new(format!("realms/shares-eager-{granule}-{cpu}"), body);
            cases.push(if granule == "16k" { case } else { case.full() });
        }
    }
    cases.push(Case::new("realms/twenty-resets", |context| {
        resets(context, 20, "4k")
    }));
    cases.push(Case::new("realms/twenty-resets-64k", |context| {
        resets(context, 20, "64k")
    }));
    for (granule, _) in GRANULES {
        let reboots = move |context: &Context| tiny_reboots(context, 100, granule);
        let name = format!("realms/hundred-reboots-{granule}");
        cases.push(Case::skipping(name, reboots).full());
    }
    let reboots = |context: &Context| tiny_reboots(context, 3, "4k");
    cases.push(Case::skipping("realms/three-reboots", reboots));
    cases.push(
        Case::new("realms/measure-none", measure_none)
            .boots(&["debian-backports"])
            .full(),
    );
    cases
}

/// A Linux that knows that it is a realm, and has all that it is given.
fn linux(context: &Context, kernel: &[&str], more: &[&str], vcpus: u64) -> Result<Called> {
    Call::run(context)?
        .args(["--mode", "realm"])
        .args(kernel)
        .args(more)
        .args(["--exec", TASK])
        .call()?
        .ended(0)?
        .printed(&said(vcpus))
}

/// What a Linux says to its [`TASK`].
fn said(vcpus: u64) -> String {
    format!("RSI version 1.0\n{vcpus}\nuart\nsame\n")
}

fn tiny_linux(context: &Context, name: &str, granule: &str) -> Result<Outcome> {
    let guest = format!("tiny-{name}");
    if let Err(why) = Cache::of(&context.workspace).tiny_kernel(&guest) {
        return Ok(Outcome::skipped(why));
    }
    linux(context, &["--guest", &guest], &["--granule", granule], 1)?.calmly()?;
    Ok(Counts::ONE.into())
}

/// The program `realm`: what it shares, and what it then finds.
fn shares(context: &Context, granule: &str, bytes: u64, cpu: &str, populate: &str) -> Result<()> {
    let kernel = build::program(&context.workspace, "realm")?;
    let append = format!("granule={bytes}");
    let called = Call::run(context)?
        .args(["--mode", "realm", "--kernel"])
        .args([&kernel])
        .args(["--smp", "2", "--memory", "64M", "--cpu", cpu])
        .args(["--granule", granule, "--populate", populate])
        .args(["--append", &append])
        .call()?
        .ended(0)?;
    failed_none(&called)?;
    called
        .shows(&[" passed, 0 failed"])?
        .tells(&["host call 0x77"])?;
    Ok(())
}

/// The RAM that the host had free each time when a guest was taken apart.
fn free_after_lives(capture: &Capture) -> Vec<String> {
    let lines = capture.log().iter();
    lines
        .filter(|line| line.contains("taken apart; "))
        .filter_map(|line| line.split_once("taken apart; "))
        .map(|(_, free)| free.to_string())
        .collect()
}

/// All of it comes back each time.
fn leaked_nothing(capture: &Capture, lives: usize) -> Result<()> {
    let free = free_after_lives(capture);
    let kinds: BTreeSet<_> = free.iter().collect();
    ensure!(
        free.len() >= lives && kinds.len() == 1,
        "{} lives, and then {kinds:?}",
        free.len()
    );
    let errors: Vec<_> = (capture.log().iter())
        .filter(|line| line.contains(" ERROR "))
        .collect();
    ensure!(errors.is_empty(), "{errors:#?}");
    Ok(())
}

/// A realm resets again and again, one of its CPUs on each time.
fn resets(context: &Context, times: usize, granule: &str) -> Result<()> {
    let folder = tempfile::tempdir_in(&context.folder)?;
    let guest = Guest {
        kernel: build::program(&context.workspace, "reset")?,
        memory: Size::mib(8),
        vcpus: 2,
        ..realm()
    };
    let mut machine = machine(context, folder.path(), &[guest])?;
    machine.cpus = 2;
    machine.append = (machine.append)
        .replace("granule=4k", &format!("granule={granule}"))
        .replace("loglevel=info", "loglevel=debug");
    let mut capture = Capture::start(&machine, LIMIT, false)?;
    let talk = |capture: &mut Capture| -> Result<Ending> {
        for _ in 0..times {
            capture.until("boot")?;
            capture.type_in("r")?;
        }
        capture.until("boot")?;
        capture.type_in("q")?;
        capture.finish()
    };
    ended_well(talk(&mut capture), &capture)?;
    if capture.last_words().contains("FAIL") {
        bail!("{}", capture.last_words());
    }
    leaked_nothing(&capture, times)
}

/// A Linux reboots itself so often.
fn tiny_reboots(context: &Context, times: usize, granule: &str) -> Result<Outcome> {
    const NAME: &str = "4k-va48-pa48";
    let kernel = match Cache::of(&context.workspace).tiny_kernel(&format!("tiny-{NAME}")) {
        Ok(file) => file,
        Err(why) => return Ok(Outcome::skipped(why)),
    };
    let folder = tempfile::tempdir_in(&context.folder)?;
    let busybox = Cache::of(&context.workspace).busybox()?;
    let initrd = folder.path().join("initrd");
    fs::write(&initrd, initrd::build(&busybox, "guest", &Task::Shell)?)?;
    let guest = Guest {
        kernel,
        initrd: Some(initrd),
        cmdline: Some("console=ttyAMA0 quiet".into()),
        memory: Size::mib(128),
        ..realm()
    };
    let mut machine = machine(context, folder.path(), &[guest])?;
    machine.append = (machine.append)
        .replace("granule=4k", &format!("granule={granule}"))
        .replace("loglevel=info", "loglevel=debug");
    let mut capture = Capture::start(&machine, 6 * LIMIT, false)?;
    let talk = |capture: &mut Capture| -> Result<Ending> {
        for _ in 0..times {
            capture.until("guest:~# ")?;
            capture.type_in("reboot -f\n")?;
        }
        capture.until("guest:~# ")?;
        capture.type_in("poweroff -f\n")?;
        capture.finish()
    };
    ended_well(talk(&mut capture), &capture)?;
    leaked_nothing(&capture, times)?;
    Ok(Counts::ONE.into())
}

/// A Linux suspends itself, again and again, until a key of its console wakes it; what
/// it had in its memory is there, and its CPUs are.
///
/// To idle it is, whatever it is asked for: PSCI has no `SYSTEM_SUSPEND` for realms
/// (RMM specification, *PSCI*). The UART is what a realm has that can wake it.
fn suspends(context: &Context) -> Result<()> {
    const PREPARE: &str = "mkdir -p /mnt; mount -t tmpfs tmpfs /mnt; seq 300000 >/mnt/one; \
         echo enabled >/sys/class/tty/ttyAMA0/power/wakeup; \
         echo 1 >/sys/power/pm_debug_messages; dmesg -n 8; cat /sys/power/mem_sleep\n";
    const LOOK: &str = "seq 300000 | cmp - /mnt/one && echo same, $(nproc) CPUs, \
         $(cat /sys/power/suspend_stats/success) times; poweroff -f\n";
    let folder = tempfile::tempdir_in(&context.folder)?;
    let busybox = Cache::of(&context.workspace).busybox()?;
    let initrd = folder.path().join("initrd");
    fs::write(&initrd, initrd::build(&busybox, "guest", &Task::Shell)?)?;
    let guest = Guest {
        kernel: Cache::of(&context.workspace).kernel(catalogue::find("debian-backports")?)?,
        initrd: Some(initrd),
        cmdline: Some("console=ttyAMA0 quiet no_console_suspend".into()),
        vcpus: 2,
        ..realm()
    };
    let mut machine = machine(context, folder.path(), &[guest])?;
    machine.cpus = 2;
    let mut capture = Capture::start(&machine, LIMIT, false)?;
    let talk = |capture: &mut Capture| -> Result<Ending> {
        capture.until("guest:~# ")?;
        capture.type_in(PREPARE)?;
        capture.until("[s2idle]")?;
        for state in ["freeze", "mem", "freeze"] {
            capture.until("guest:~# ")?;
            capture.type_in(&format!("echo {state} >/sys/power/state; echo back $?\n"))?;
            // From here on the UART's interrupt wakes it.
            capture.until("PM: suspend-to-idle")?;
            capture.type_in("\n")?;
            capture.until("PM: resume from suspend-to-idle")?;
            capture.until("back 0")?;
        }
        capture.until("guest:~# ")?;
        capture.type_in(LOOK)?;
        capture.until("same, 2 CPUs, 3 times")?;
        capture.finish()
    };
    ended_well(talk(&mut capture), &capture)
}

/// A realm with settings of realms in its file.
fn measure_none(context: &Context) -> Result<()> {
    let kernel = Cache::of(&context.workspace).kernel(catalogue::find("debian-backports")?)?;
    let settings = "measure = \"none\"\npersonalization = \"00ff\"\n";
    of_file(context, &kernel, settings, &[])?
        .shows(&[&said(1)])?
        .calmly()?;
    Ok(())
}

/// Bits of IPAs, and the CPU: one that has 52 of them with each granule, and one that
/// has 48.
const WIDE: [(u32, &str); 3] = [(48, "max"), (52, "max"), (48, "neoverse-n2")];

/// Whether this kernel reaches what a realm of so many bits shares: its upper half.
fn reaches(tiny: &str, bits: u32) -> bool {
    bits <= 48 || tiny.ends_with("-pa52")
}

/// Such a kernel where IPAs have so many bits. It computes from them where its UART is
/// and what it shares, or says nothing.
fn wide(context: &Context, name: &str, granule: &str, bits: u32, cpu: &str) -> Result<Outcome> {
    let kernel = match Cache::of(&context.workspace).tiny_kernel(&format!("tiny-{name}")) {
        Ok(file) => file,
        Err(why) => return Ok(Outcome::skipped(why)),
    };
    let settings = format!("ipa_bits = {bits}\n");
    let options = ["--granule", granule, "--cpu", cpu, "--log", "debug"];
    of_file(context, &kernel, &settings, &options)?
        .shows(&[&said(1)])?
        .tells(&["guest guest: ", &format!("{bits} bits of IPA")])?
        .calmly()?;
    Ok(Counts::ONE.into())
}

/// A Linux that is a realm with these settings of the file does the task, and powers
/// itself off.
fn of_file(context: &Context, kernel: &Path, settings: &str, options: &[&str]) -> Result<Called> {
    let folder = tempfile::tempdir_in(&context.folder)?;
    let busybox = Cache::of(&context.workspace).busybox()?;
    let task = Task::Command {
        command: TASK.into(),
        mark: initrd::mark(),
    };
    let initrd = folder.path().join("initrd");
    fs::write(&initrd, initrd::build(&busybox, "guest", &task)?)?;
    let file = folder.path().join("guests.toml");
    let toml = format!(
        "[[guest]]\nname = \"guest\"\nmode = \"realm\"\nkernel = {kernel:?}\n\
         initrd = {initrd:?}\ncmdline = \"console=ttyAMA0 quiet\"\n{settings}"
    );
    fs::write(&file, toml)?;
    Call::run(context)?
        .args(options)
        .args(["--guests"])
        .args([&file])
        .call()?
        .ended(0)?
        .tells(&["guest guest: powered off"])
}

/// A realm of one CPU, without a kernel yet.
fn realm() -> Guest {
    Guest {
        mode: Mode::Realm,
        console: Some(true),
        ..Guest::new("guest", PathBuf::new(), Size::mib(256))
    }
}

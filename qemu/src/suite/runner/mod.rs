//! The runner itself, most of it with guests that QEMU boots without Undercroft:
//! what fails here is not the image's fault.
//!
//! | module | idea |
//! |---|---|
//! | [`exit`] | what the exit status says |
//! | [`output`] | what is said, at a terminal and elsewhere |
//! | [`boot_loader`] | the files of `cargo qemu image`, and who boots them |
//! | [`debug`] | a debugger on a machine, and what is traced of it |
//! | [`matrix`] | what the boot matrix leaves, and wrong inputs to it |
//! | [`first`] | the first hour: what a machine lacks, and where things go |
//! | [`fvp`] | what is made for Arm's model |

pub mod boot_loader;
pub mod debug;
pub mod exit;
pub mod first;
pub mod fvp;
pub mod matrix;
pub mod output;

use std::os::unix::fs::{PermissionsExt, symlink};

use anyhow::{Context as _, Result, ensure};

use self::exit::once_begun;
use super::boots::{LIMIT, talk_to_u_boot};
use super::call::Call;
use super::{Case, Context};
use crate::guests::catalogue;
use crate::guests::fetch::Cache;
use crate::machine::virt::{DEFAULT_CPU, Machine, RAM_BASE};
use crate::run::capture::Capture;
use crate::size::Size;
use crate::workspace::in_path;

/// The guest that most cases boot.
const LINUX: &[&str] = &["debian13"];

/// The cases.
pub fn cases() -> Vec<Case> {
    let mut cases = basics();
    cases.extend(exit::cases());
    cases.extend(output::cases());
    cases.extend(first::cases());
    cases.extend(debug::cases());
    cases.extend(boot_loader::cases());
    cases.extend(matrix::cases());
    cases.extend(fvp::cases());
    cases
}

fn basics() -> Vec<Case> {
    vec![
        Case::new("runner/exec", |context| {
            let command = r"printf 'a\r\n\0b'; echo c >&2; exit 7";
            bare(context)
                .args(["--exec", command])
                .call()?
                .ended(7)?
                .printed("a\r\n\0bc\n")?;
            Ok(())
        })
        .boots(LINUX),
        Case::new("runner/script", |context| {
            // Neither a terminal nor a command: the shell reads our input.
            bare(context)
                .stdin("uname -m\nexit 3\n")
                .call()?
                .ended(3)?
                .printed("aarch64\n")?;
            Ok(())
        })
        .boots(LINUX),
        Case::new("runner/own-kernel", |context| {
            let kernel = kernel(context)?;
            Call::bare(context)
                .args([
                    "--bare",
                    "--exec",
                    "cat /proc/cmdline",
                    "--append",
                    "one two",
                    "--kernel",
                ])
                .args([kernel])
                .call()?
                .ended(0)?
                .printed("one two\n")?;
            Ok(())
        })
        .boots(LINUX),
        Case::new("runner/timeout", |context| {
            let command = ["--exec", "echo begun; sleep 10000"];
            once_begun(|patience| Ok(bare(context).args(command).args(["--timeout", patience])))?
                .ended(124)?
                .printed("begun\n")?
                .tells(&["not done after"])?
                .tells(&["PC="])?;
            Ok(())
        })
        .boots(LINUX),
        Case::new("runner/guest-panic", |context| {
            bare(context)
                .args(["--exec", "echo c >/proc/sysrq-trigger"])
                .call()?
                .ended(125)?
                .tells(&["guest's kernel panicked"])?;
            Ok(())
        })
        .boots(LINUX),
        Case::new("runner/dry-run", |context| {
            let called = Call::bare(context)
                .args(["--bare", "--dry-run", "--cpu", "cortex-a72", "--smp", "3"])
                .args(["--memory", "700M", "--", "-name", "a b"])
                .call()?
                .ended(0)?;
            let words = shlex::split(called.stdout.trim()).context("a shell cannot read it")?;
            for pair in [
                ["-cpu", "cortex-a72"],
                ["-smp", "3"],
                ["-m", "700M"],
                ["-name", "a b"],
            ] {
                ensure!(
                    words.windows(2).any(|w| w == pair),
                    "{pair:?} not in {words:?}"
                );
            }
            Ok(())
        })
        .boots(LINUX),
        Case::new("runner/u-boot", |context| {
            let mut machine = Machine {
                qemu: context.qemu()?.clone(),
                cpu: DEFAULT_CPU.into(),
                cpus: 1,
                ram: Size::mib(256),
                ram_base: RAM_BASE,
                kernel: None,
                initrd: None,
                append: String::new(),
                end: None,
                el2: false,
                log_uart: false,
                debugger: None,
                extra: vec!["-bios".into()],
            };
            let file = Cache::of(&context.workspace).kernel(catalogue::find("u-boot")?)?;
            machine.extra.push(file.into());
            talk_to_u_boot(Capture::start(&machine, LIMIT, true)?)
        })
        .boots(&["u-boot"]),
        Case::new("runner/no-apt", |context| {
            // Another distribution: programs are there, apt is not.
            let folder = tempfile::tempdir_in(&context.folder)?;
            let programs = folder.path().join("bin");
            std::fs::create_dir(&programs)?;
            for program in ["cargo", "rustc"] {
                let real = in_path(program).with_context(|| format!("{program} is not in PATH"))?;
                symlink(real, programs.join(program))?;
            }
            let qemu = &context.qemu()?.program;
            symlink(qemu, programs.join("qemu-system-aarch64"))?;
            let call = || {
                Call::bare(context)
                    .args(["--bare", "--exec", "uname -m"])
                    .env("PATH", &programs)
                    .without("UNDERCROFT_QEMU")
                    .env("UNDERCROFT_GUESTS", folder.path().join("guests"))
            };
            let called = call().call()?.failed()?.calmly()?;
            called
                .tells(&["no apt", "QEMU"])?
                .tells(&["error", "no apt", "--kernel", "--initrd"])?;
            // With files of one's own it works.
            let busybox = Cache::of(&context.workspace).busybox()?;
            let cached = folder.path().join("guests/busybox");
            std::fs::create_dir_all(&cached)?;
            std::fs::copy(busybox, cached.join("busybox"))?;
            let kernel = kernel(context)?;
            call()
                .args(["--kernel"])
                .args([kernel])
                .call()?
                .ended(0)?
                .printed("aarch64\n")?;
            Ok(())
        })
        .boots(LINUX),
        Case::new("runner/old-qemu", |context| {
            let folder = tempfile::tempdir_in(&context.folder)?;
            let program = folder.path().join("qemu");
            self::program(&program, "#!/bin/sh\necho QEMU emulator version 7.2.0\n")?;
            Call::bare(context)
                .args(["--dry-run"])
                .env("UNDERCROFT_QEMU", &program)
                .call()?
                .failed()?
                .tells(&["error: QEMU 7.2", "too old", "8.2"])?
                .calmly()?;
            Ok(())
        }),
    ]
}

/// A call that boots a Linux on QEMU itself.
fn bare(context: &Context) -> Call {
    Call::bare(context).args(["--bare", "--guest", "debian13"])
}

/// Some Linux, as a file of the user's own.
pub fn kernel(context: &Context) -> Result<std::path::PathBuf> {
    Cache::of(&context.workspace).kernel(catalogue::find("debian13")?)
}

/// Writes a program.
fn program(file: &std::path::Path, text: &str) -> Result<()> {
    std::fs::write(file, text)?;
    Ok(std::fs::set_permissions(
        file,
        PermissionsExt::from_mode(0o755),
    )?)
}

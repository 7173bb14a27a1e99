//! What a run's exit status says: a command's own, or that it was not the
//! command that failed.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::super::call::{Call, Called};
use super::super::{Case, Context};
use super::{LINUX, bare};
use crate::image::appendix;

/// What marks of the runner's own begin with.
const MARK: &str = "undercroft-";

/// A raw arm64 program that powers its machine off and says nothing:
/// `mov w0, #8; movk w0, #0x8400, lsl #16; hvc #0; b .`
const SILENT: [u32; 4] = [0x5280_0100, 0x72b0_8000, 0xd400_0002, 0x1400_0000];

/// The cases.
pub fn cases() -> Vec<Case> {
    let mut cases = cut_short();
    cases.extend(whose_fault());
    cases.extend(any_input());
    cases
}

/// Commands whose guest ends before they do.
fn cut_short() -> Vec<Case> {
    let mut cases = Vec::new();
    for (way, call) in [("", under as Way), ("-bare", |context| Ok(bare(context)))] {
        cases.push(
            Case::new(format!("runner/exec-powers-off{way}"), move |context| {
                let command = "echo hi; poweroff -f; sleep 100; exit 3";
                let called = call(context)?.args(["--exec", command]).call()?;
                let called = cut(called, "hi\n")?;
                called.tells(&["error", "powered off before its command had ended"])?;
                Ok(())
            })
            .boots(LINUX),
        );
        cases.push(
            Case::new(format!("runner/exec-resets{way}"), move |context| {
                let command = "echo once; reboot -f; sleep 100; exit 3";
                let called = call(context)?.args(["--exec", command]).call()?;
                let called = cut(called, "once\n")?;
                called.tells(&["error", "reset before its command had ended"])?;
                Ok(())
            })
            .boots(LINUX),
        );
        cases.push(
            Case::new(format!("runner/exec-kernel-panics{way}"), move |context| {
                let command = "echo hi; echo c >/proc/sysrq-trigger";
                let called = call(context)?.args(["--exec", command]).call()?;
                let called = cut(called, "hi\n")?;
                called.tells(&["error", "guest's kernel panicked"])?;
                Ok(())
            })
            .boots(LINUX),
        );
    }
    cases
}

/// Runs that fail, or do not, and by whom.
fn whose_fault() -> Vec<Case> {
    vec![
        Case::new("runner/exec-prints-a-panic", |context| {
            // Words of the command's: it goes on, however long it takes.
            let command = "echo '[ 1.0] Kernel panic - not syncing: x'; sleep 8; echo on; exit 4";
            bare(context)
                .args(["--exec", command])
                .call()?
                .ended(4)?
                .printed("[ 1.0] Kernel panic - not syncing: x\non\n")?;
            Ok(())
        })
        .boots(LINUX),
        Case::new("runner/exec-guest-cannot-start", |context| {
            under(context)?
                .args(["--memory", "16M", "--exec", "exit 2"])
                .call()?
                .ended(125)?
                .tells(&["ERROR --memory 16M: ", "more memory"])?
                .tells(&["error", "could not be started"])?
                .calmly()?;
            Ok(())
        })
        .boots(LINUX),
        Case::new("runner/wrong-options", |context| {
            for arguments in [
                &["--smp", "0", "--exec", "exit 2"][..],
                &["--no-such-option"],
                &["--smp", "124"],
                &["--memory", "129M"],
                &["--append", "a\nb", "--guests", "x"],
            ] {
                Call::bare(context)
                    .args(arguments)
                    .call()?
                    .ended(125)?
                    .tells(&["error"])?
                    .printed("")?;
            }
            Call::bare(context).args(["--help"]).call()?.ended(0)?;
            Ok(())
        })
        .boots(LINUX),
        Case::new("runner/wrong-image", |context| {
            let folder = tempfile::tempdir_in(&context.folder)?;
            fs::write(folder.path().join("text"), "nothing that boots\n".repeat(9))?;
            fs::write(folder.path().join("empty"), "")?;
            // A kernel, as it is and where something stands behind it.
            let mut kernel = vec![0u8; 256 << 10];
            kernel[0x38..0x3c].copy_from_slice(b"ARM\x64");
            fs::write(folder.path().join("kernel"), &kernel)?;
            appendix::append(&mut kernel, b"", b"names");
            fs::write(folder.path().join("host"), &kernel)?;
            for (file, says) in [
                ("text", "no image of Undercroft's"),
                ("kernel", "--kernel"),
                ("host", "--kernel"),
                ("empty", "is empty"),
                (".", "is no file"),
                ("none", "there is no file"),
            ] {
                Call::bare(context)
                    .args(["--guest", "hello", "--image", file])
                    .within(folder.path())
                    .call()?
                    .ended(125)?
                    .tells(&["--image", says])?
                    .printed("")?;
            }
            Ok(())
        }),
        Case::new("runner/kernel-without-a-word", |context| {
            let folder = tempfile::tempdir_in(&context.folder)?;
            let kernel = folder.path().join("silent");
            let code: Vec<u8> = SILENT.iter().flat_map(|word| word.to_le_bytes()).collect();
            fs::write(&kernel, code)?;
            Call::run(context)?
                .args(["--kernel"])
                .args([&kernel])
                .call()?
                .ended(125)?
                .tells(&["powered off"])?
                .tells(&["error", "without a word"])?;
            Ok(())
        }),
    ]
}

/// Whatever comes in, and whoever does not take what comes out.
fn any_input() -> Vec<Case> {
    vec![
        Case::new("runner/large-script", |context| {
            let mut script = "# line xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\n".repeat(5000);
            script += "echo end; exit 5\n";
            assert!(script.len() > 2 * 128 * 1024);
            bare(context)
                .stdin(&script)
                .call()?
                .ended(5)?
                .printed("end\n")?;
            Ok(())
        })
        .boots(LINUX),
        Case::new("runner/script-of-any-bytes", |context| {
            bare(context)
                .stdin_bytes(b"echo \xff\xfe | wc -c\nexit 6\n")
                .call()?
                .ended(6)?
                .printed("3\n")?;
            Ok(())
        })
        .boots(LINUX),
        Case::new("runner/initrd-with-a-raw-kernel", |context| {
            let folder = tempfile::tempdir_in(&context.folder)?;
            for name in ["kernel", "initrd"] {
                fs::write(folder.path().join(name), "something")?;
            }
            let called = Call::bare(context)
                .args([
                    "--bare",
                    "--dry-run",
                    "--kernel",
                    "kernel",
                    "--initrd",
                    "initrd",
                ])
                .within(folder.path())
                .call()?
                .ended(0)?;
            ensure!(!called.stdout.contains("-append"), "{}", called.stdout);
            Ok(())
        }),
        Case::new("runner/initrd-of-a-catalogue-guest", |context| {
            // Clap asks for no --kernel where --guest rules it out.
            Call::bare(context)
                .args(["--bare", "--dry-run", "--guest", "debian13"])
                .args(["--initrd", "initrd"])
                .call()?
                .ended(125)?
                .tells(&["--guest", "--initrd"])?;
            Ok(())
        }),
        Case::new("runner/cpu-without-el2", |context| {
            Call::run(context)?
                .args(["--bundle", "none", "--cpu", "cortex-a15"])
                .call()?
                .ended(125)?
                .tells(&["error: --cpu cortex-a15", "AArch64"])?;
            Call::run(context)?
                .args(["--bundle", "none", "--cpu", "cortex-a72"])
                .args(["--", "-machine", "virtualization=off"])
                .call()?
                .ended(125)?
                .tells(&["error: --cpu cortex-a72", "EL2"])?;
            Ok(())
        }),
        Case::new("runner/timeout-without-a-reader", |context| {
            // Whoever does not read holds up the guest, but not the time.
            let called = bare(context)
                .args(["--exec", "yes", "--timeout", "20"])
                .unread()
                .call()?;
            called.ended(124)?.tells(&["not done after"])?;
            Ok(())
        })
        .boots(LINUX),
    ]
}

type Way = fn(&Context) -> Result<Call>;

fn under(context: &Context) -> Result<Call> {
    Ok(Call::run(context)?.args(["--guest", "debian13"]))
}

/// Asks for a command that came to no end: the runner's status, what it had said,
/// and no mark of ours anywhere.
fn cut(called: Called, output: &str) -> Result<Called> {
    let called = called.ended(125)?.calmly()?;
    ensure!(
        called.stdout.starts_with(output) && called.stdout.matches(output).count() == 1,
        "it printed {:?}",
        called.stdout
    );
    for said in [&called.stdout, &called.stderr] {
        ensure!(!said.contains(MARK), "a mark was shown:\n{said}");
    }
    Ok(called)
}

/// Calls with ever more patience until the command in the guest has begun, which
/// it says by `begun`: how fast the machine is decides nothing.
///
/// # Errors
/// When it never begins.
pub fn once_begun(call: impl Fn(&str) -> Result<Call>) -> Result<Called> {
    let mut patience = Duration::from_secs(15);
    loop {
        let called = call(&patience.as_secs().to_string())?.call()?;
        if called.stdout.contains("begun") || patience > Duration::from_secs(120) {
            return Ok(called);
        }
        patience *= 2;
    }
}

//! Resets again and again, beside guests that stay, and where memory is short.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use super::boots::{LIMIT, ended_well, machine};
use super::call::{Call, Called};
use super::{Case, Context};
use crate::build;
use crate::config::{Guest, Mode};
use crate::run::capture::Capture;
use crate::run::ending::Ending;
use crate::size::Size;

/// More than there are VMIDs of 8 bits, twice.
const MANY: usize = 600;

/// Resets of each guest where memory is short.
const TIMES: usize = 20;

/// Bytes of such a guest's kernel, unpacked: those of a distribution's.
const KERNEL: usize = 45 << 20;

/// What a frame of `zstd -22 --ultra` may look back on, as `log2`.
const WINDOW: u8 = 27;

/// The cases.
pub fn cases() -> Vec<Case> {
    let mut cases = vec![
        Case::new("resets/six-hundred-beside-a-guest-that-stays", beside),
        Case::new("resets/zstd-kernels-where-ram-is-short", |context| {
            // Too little for the guests, for the window, and for two of them;
            // and enough.
            [128, 256, 320, 448, 640]
                .into_iter()
                .try_for_each(|ram| together(context, ram))
        }),
    ];
    for ram in (128..=1280).step_by(64) {
        let name = format!("resets/zstd-kernels-in-{ram}-MiB");
        cases.push(Case::new(name, move |context| together(context, ram)).full());
    }
    cases
}

/// One guest resets more often than there are VMIDs while another one stays,
/// which then resets for the first time.
fn beside(context: &Context) -> Result<()> {
    let folder = tempfile::tempdir_in(&context.folder)?;
    let kernel = build::program(&context.workspace, "reset")?;
    let guests = [
        guest("stays", &kernel, "times=1 waits=yes", true),
        guest("resets", &kernel, &format!("times={MANY}"), false),
    ];
    // A CPU whose VMIDs have 8 bits.
    let mut machine = machine(context, folder.path(), &guests)?;
    machine.cpu = "cortex-a57".into();
    machine.cpus = 2;
    let mut capture = Capture::start(&machine, 4 * LIMIT, false)?;
    let talk = |capture: &mut Capture| -> Result<Ending> {
        capture.until("waits")?;
        capture.until_logged(&format!("resets: {MANY} resets"))?;
        capture.type_in("\n")?;
        capture.until("1 resets")?;
        capture.finish()
    };
    ended_well(talk(&mut capture), &capture)
}

/// A guest of the program `reset`, with as little memory as it runs in.
fn guest(name: &str, kernel: &Path, cmdline: &str, console: bool) -> Guest {
    Guest {
        name: name.into(),
        kernel: kernel.into(),
        initrd: None,
        cmdline: Some(cmdline.into()),
        memory: Size::mib(8),
        vcpus: 1,
        mode: Mode::Plain,
        console: Some(console),
        entry: None,
    }
}

/// Two guests with zstd kernels that reset together, again and again, in `ram`
/// MiB: all of it goes well, or one sentence says what is missing.
fn together(context: &Context, ram: u32) -> Result<()> {
    let folder = tempfile::tempdir_in(&context.folder)?;
    let kernel = packed(context, folder.path())?;
    let cmdline = format!("times={TIMES}");
    let guests = [("one", true), ("two", false)].map(|(name, console)| Guest {
        memory: Size::mib(64),
        ..guest(name, &kernel, &cmdline, console)
    });
    let bundle = folder.path().join("bundle.cpio");
    fs::write(&bundle, crate::bundle::pack(&guests)?)?;
    let called = Call::run(context)?
        .args(["--smp", "2", "--ram", &format!("{ram}M"), "--bundle"])
        .args([&bundle])
        .call()?
        .calmly()?;
    judged(called).map_err(|error| error.context(format!("{ram} MiB of RAM")))
}

fn judged(called: Called) -> Result<()> {
    if called.code == Some(0) {
        let all = format!("{TIMES} resets");
        called.shows(&[&all])?.tells(&["two", &all])?;
        return Ok(());
    }
    let errors: Vec<&str> = (called.stderr.lines())
        .filter(|line| line.contains("host ERROR") && !line.contains("end: "))
        .collect();
    ensure!(
        called.code == Some(2) && errors.len() == 1 && errors[0].contains("MiB"),
        "ended with {:?} and {errors:#?}",
        called.code
    );
    Ok(())
}

/// The program `reset` and 45 MB of one byte behind it, as a zstd frame (RFC
/// 8878, 3.1.1) of blocks that are not packed and blocks that repeat a byte.
fn packed(context: &Context, folder: &Path) -> Result<PathBuf> {
    const BLOCK: usize = 128 << 10;
    let program = fs::read(build::program(&context.workspace, "reset")?)?;
    // No checksum, no size: a window descriptor alone.
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0, (WINDOW - 10) << 3];
    let block = |last: bool, kind: u32, size: usize| {
        let size = u32::try_from(size).unwrap_or(u32::MAX);
        (size << 3 | kind << 1 | u32::from(last)).to_le_bytes()
    };
    for part in program.chunks(BLOCK) {
        frame.extend(&block(false, 0, part.len())[..3]);
        frame.extend(part);
    }
    let count = KERNEL / BLOCK;
    for index in 1..=count {
        frame.extend(&block(index == count, 1, BLOCK)[..3]);
        frame.push(0x5a);
    }
    let file = folder.join("kernel.zst");
    fs::write(&file, frame)?;
    Ok(file)
}

//! Resets again and again, beside guests that stay, and where memory is short.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use super::boots::{LIMIT, ended_well, machine};
use super::{Case, Context};
use crate::build;
use crate::config::{Guest, Mode, Populate};
use crate::machine::virt::loaded;
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
        Case::new("resets/ten", ten),
    ];
    for (name, granule, cpu, populate) in [
        ("", "4k", "max", None),
        ("-without-fwb", "4k", "cortex-a72", None),
        ("-eager", "4k", "max", Some(Populate::Eager)),
        ("-lazy-pages", "4k", "max", Some(Populate::LazyPages)),
        ("-eager-16k", "16k", "max", Some(Populate::Eager)),
        ("-lazy-16k", "16k", "max", Some(Populate::Lazy)),
        (
            "-lazy-16k-without-fwb",
            "16k",
            "cortex-a76",
            Some(Populate::Lazy),
        ),
        ("-lazy-64k", "64k", "max", Some(Populate::Lazy)),
    ] {
        cases.push(Case::new(
            format!("resets/ram-is-zero{name}"),
            move |context| zero(context, granule, cpu, [(Mode::Plain, populate); 2]),
        ));
    }
    // Beside a plain guest, whose memory it may have next.
    for (name, granule, cpu, populate) in [
        ("", "4k", "max", None),
        ("-without-fwb", "4k", "cortex-a72", None),
        ("-eager", "4k", "max", Some(Populate::Eager)),
        ("-lazy-pages", "4k", "max", Some(Populate::LazyPages)),
        ("-16k", "16k", "max", None),
        ("-64k", "64k", "max", None),
    ] {
        let modes = [Mode::Protected, Mode::Plain].map(|mode| (mode, populate));
        cases.push(Case::new(
            format!("resets/protected-ram-is-zero{name}"),
            move |context| zero(context, granule, cpu, modes),
        ));
    }
    for ram in (128..=1280).step_by(64) {
        let name = format!("resets/zstd-kernels-in-{ram}-MiB");
        cases.push(Case::new(name, move |context| together(context, ram)).full());
    }
    cases
}

/// A guest of two vCPUs resets ten times, each time with one of them off.
fn ten(context: &Context) -> Result<()> {
    let folder = tempfile::tempdir_in(&context.folder)?;
    let kernel = build::program(&context.workspace, "reset")?;
    let mut only = guest("resets", &kernel, "", true);
    only.vcpus = 2;
    let mut machine = machine(context, folder.path(), &[only])?;
    machine.cpus = 2;
    let mut capture = Capture::start(&machine, LIMIT, false)?;
    let talk = |capture: &mut Capture| -> Result<Ending> {
        for _ in 0..10 {
            capture.until("boot")?;
            capture.type_in("r")?;
        }
        capture.until("boot")?;
        capture.type_in("q")?;
        capture.finish()
    };
    ended_well(talk(&mut capture), &capture)?;
    ensure!(
        !capture.last_words().contains("FAIL"),
        "{}",
        capture.last_words()
    );
    Ok(())
}

/// One guest resets more often than there are VMIDs while another one stays,
/// which then resets for the first time.
fn beside(context: &Context) -> Result<()> {
    let folder = tempfile::tempdir_in(&context.folder)?;
    let kernel = build::program(&context.workspace, "reset")?;
    let guests = [
        guest("stays", &kernel, "", true),
        guest("resets", &kernel, "again=yes", false),
    ];
    // A CPU whose VMIDs have 8 bits.
    let mut machine = machine(context, folder.path(), &guests)?;
    machine.cpu = "cortex-a57".into();
    machine.cpus = 2;
    let mut capture = Capture::start(&machine, 4 * LIMIT, false)?;
    let talk = |capture: &mut Capture| -> Result<()> {
        capture.until("boot")?;
        capture.until_logged_often(&["guest resets: reset"], MANY)?;
        capture.type_in("r")?;
        capture.until("boot")
    };
    talk(&mut capture).map_err(|error| error.context(capture.last_words()))?;
    // Each start has a seed of its own.
    let seeds: Vec<_> = (capture.log().iter())
        .filter_map(|line| line.split_once("guest resets: seed "))
        .map(|(_, seed)| seed)
        .collect();
    let distinct: BTreeSet<_> = seeds.iter().filter(|seed| **seed != "0x0").collect();
    ensure!(
        seeds.len() >= MANY && distinct.len() == seeds.len(),
        "{} seeds, {} of them distinct",
        seeds.len(),
        distinct.len()
    );
    without_errors(&capture)
}

/// No line of the log is an error.
fn without_errors(capture: &Capture) -> Result<()> {
    let errors: Vec<_> = (capture.log().iter())
        .filter(|line| line.contains(" ERROR "))
        .collect();
    ensure!(errors.is_empty(), "{errors:#?}");
    Ok(())
}

/// A guest of the program `reset`, with as little memory as it runs in.
fn guest(name: &str, kernel: &Path, cmdline: &str, console: bool) -> Guest {
    Guest {
        cmdline: Some(cmdline.into()),
        console: Some(console),
        ..Guest::new(name, kernel, Size::mib(8))
    }
}

/// Two guests with zstd kernels that reset together, again and again, in `ram`
/// MiB: all of it goes well, or one sentence says what is missing.
fn together(context: &Context, ram: u64) -> Result<()> {
    let folder = tempfile::tempdir_in(&context.folder)?;
    let kernel = packed(context, folder.path())?;
    let guests = [("one", true), ("two", false)].map(|(name, console)| Guest {
        memory: Size::mib(64),
        ..guest(name, &kernel, "again=yes", console)
    });
    let mut machine = machine(context, folder.path(), &guests)?;
    machine.ram = Size::mib(ram);
    machine.cpus = 2;
    let mut capture = Capture::start(&machine, LIMIT, false)?;
    let all = capture.until_logged_often(&["guest one: reset", "guest two: reset"], TIMES);
    let judged = match all {
        Ok(()) => without_errors(&capture),
        Err(error) => refused(&mut capture).map_err(|why| error.context(why)),
    };
    judged.map_err(|error| error.context(format!("{ram} MiB of RAM\n{}", capture.last_words())))
}

/// The machine ended with status 2 and one sentence that says how much is missing.
fn refused(capture: &mut Capture) -> Result<()> {
    let ending = capture.finish()?;
    let errors: Vec<_> = (capture.log().iter())
        .filter(|line| line.contains(" ERROR ") && !line.contains("end: "))
        .collect();
    ensure!(
        ending == Ending::Status(2) && errors.len() == 1 && errors[0].contains("MiB"),
        "{ending} and {errors:#?}"
    );
    Ok(())
}

/// A guest finds its RAM zero when it starts for the first time and after a reset,
/// whatever the boot loader, the other guests' files and itself have left there.
fn zero(
    context: &Context,
    granule: &str,
    cpu: &str,
    modes: [(Mode, Option<Populate>); 2],
) -> Result<()> {
    let folder = tempfile::tempdir_in(&context.folder)?;
    let kernel = build::program(&context.workspace, "reset")?;
    let initrd = folder.path().join("initrd");
    fs::write(&initrd, vec![0x5a; 8 << 20])?;
    let mut guests = [
        guest("sweeps", &kernel, "sweep=yes", true),
        guest("other", &kernel, "again=yes", false),
    ];
    guests[0].memory = Size::mib(192);
    guests[1].memory = Size::mib(64);
    guests[1].initrd = Some(initrd);
    for (guest, mode) in guests.iter_mut().zip(modes) {
        (guest.mode, guest.populate) = mode;
    }
    let mut machine = machine(context, folder.path(), &guests)?;
    machine.cpu = cpu.into();
    machine.ram = Size::mib(768);
    let own = format!("granule={granule}");
    machine.append = machine.append.replace("granule=4k", &own);
    let pattern = folder.path().join("pattern");
    fs::write(&pattern, vec![0xa5; 256 << 20])?;
    machine.extra = loaded(&pattern, 0x6000_0000).map(Into::into).into();
    let mut capture = Capture::start(&machine, LIMIT, false)?;
    let talk = |capture: &mut Capture| -> Result<()> {
        for life in 1..=3 {
            capture.until("sweep: ")?;
            capture.until("boot")?;
            let clean = !capture.last_words().contains("FAIL");
            ensure!(clean, "life {life}: its RAM is not zero");
            capture.type_in("r")?;
        }
        Ok(())
    };
    talk(&mut capture).map_err(|error| error.context(capture.last_words()))
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

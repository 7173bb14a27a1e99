//! The log and the machine's end: who can write what, and UARTs that do not
//! answer.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};

use super::boots::LIMIT;
use super::call::Call;
use super::on_target::hostile_image;
use super::{Case, Context};
use crate::build;
use crate::bundle;
use crate::config::Guest;
use crate::machine::virt::{self, DEFAULT_CPU, Machine, RAM_BASE};
use crate::run::capture::Capture;
use crate::run::ending::{self, Ending};
use crate::size::Size;

/// RAM that the device tree does not name. A device tree that puts a PL011 there
/// makes it one whose registers are whatever was written to them last.
const UNNAMED_RAM: u64 = 0x8000_0000;

/// FR of a UART there that never has room, nor receives: TXFF, RXFE, BUSY.
const NO_ROOM: &str = "0x38";

/// Where QEMU's virt machine has nothing at all: an access is an external abort.
const NOTHING: u64 = 0x0b00_0000;

/// Where its UARTs are: the console's, and the log's.
const CONSOLE: u64 = 0x0900_0000;
const LOG: u64 = 0x0904_0000;

/// What `forge` writes last, but for a line that it does not end.
const ALL: &str = "forge: all was written";

/// The cases.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (how, ending) in [
        ("off", Ending::Status(0)),
        ("fault", Ending::Status(1)),
        ("killed", Ending::Qemu(String::new())),
    ] {
        let (beside, owning) = (ending.clone(), ending);
        cases.push(Case::new(
            format!("log/forged-beside-the-console-{how}"),
            move |context| forge(context, how, &beside, false),
        ));
        cases.push(Case::new(
            format!("log/forged-on-one-uart-{how}"),
            move |context| forge(context, how, &owning, true),
        ));
    }
    cases.push(Case::new("log/forged-and-hung", |context| {
        let kernel = build::program(&context.workspace, "forge")?;
        Call::run(context)?
            .args(["--one-uart", "--initrd", "none", "--timeout", "20"])
            .args(["--append", "then=hang", "--kernel"])
            .args([kernel])
            .call()?
            .ended(124)?;
        Ok(())
    }));
    cases.push(Case::new("log/uart-that-never-drains", |context| {
        let folder = tempfile::tempdir_in(&context.folder)?;
        let guests = [guest(context, "hello", "", true)?];
        let mut machine = machine(context, folder.path(), &guests, true)?;
        let uart = move_uart(&mut machine, folder.path(), LOG, UNNAMED_RAM)?;
        no_room(&mut machine, uart);
        let mut capture = Capture::start(&machine, LIMIT, false)?;
        let ending = capture.finish()?;
        // The guest ran and the machine went off; nobody heard why.
        let console = String::from_utf8_lossy(&capture.console).into_owned();
        ensure!(
            ending == Ending::Unsaid && console.contains("goodbye"),
            "{ending}\n{}",
            capture.last_words()
        );
        Ok(())
    }));
    cases.push(Case::new("log/uart-that-faults", |context| {
        let folder = tempfile::tempdir_in(&context.folder)?;
        let guests = [guest(context, "hello", "", true)?];
        let mut machine = machine(context, folder.path(), &guests, true)?;
        move_uart(&mut machine, folder.path(), LOG, NOTHING)?;
        let mut capture = Capture::start(&machine, LIMIT, false)?;
        let ending = capture.finish()?;
        let console = String::from_utf8_lossy(&capture.console).into_owned();
        let told = ["the log's UART faults", "external abort", "b000030", "#0 "];
        ensure!(
            ending == Ending::Panic && told.iter().all(|part| console.contains(part)),
            "{ending}\n{console}",
        );
        Ok(())
    }));
    cases.push(Case::new("log/secure-uart-is-no-silence", |context| {
        let called = Call::run(context)?
            .args(["--guest", "hello", "--", "-machine", "secure=on"])
            .call()?;
        ensure!(called.code != Some(124), "it hung");
        let said = format!("{}{}", called.stdout, called.stderr);
        ensure!(said.contains("end: "), "it was silent\n{said}");
        Ok(())
    }));
    for owner in ["hello", "forge"] {
        // One asks its UART for room, the other just writes.
        cases.push(Case::new(
            format!("log/console-that-never-drains-{owner}"),
            move |context| stuck_console(context, owner),
        ));
    }
    cases.push(Case::new(
        "log/hostile-host-and-a-uart-that-never-drains",
        |context| {
            let folder = tempfile::tempdir_in(&context.folder)?;
            let mut machine = machine(context, folder.path(), &[], true)?;
            machine.kernel = Some(hostile_image(context, folder.path())?);
            machine.initrd = None;
            machine.append += " calls=2000 bound=20000";
            // A tick of the counter is a number of instructions, and no time passes
            // but theirs.
            machine.extra = ["-icount", "shift=0,sleep=off"].map(Into::into).into();
            let uart = move_uart(&mut machine, folder.path(), LOG, UNNAMED_RAM)?;
            no_room(&mut machine, uart);
            let mut capture = Capture::start(&machine, LIMIT, false)?;
            let ending = capture.finish()?;
            let console = String::from_utf8_lossy(&capture.console).into_owned();
            let right = console.contains("ok log/bounded") && console.contains(" passed, 0 failed");
            ensure!(
                ending == Ending::Unsaid && right,
                "{ending}\n{}",
                lines(&console, "FAIL")
            );
            Ok(())
        },
    ));
    cases
}

/// A guest of one vCPU with a bare-metal program as its kernel.
fn guest(context: &Context, program: &str, cmdline: &str, console: bool) -> Result<Guest> {
    Ok(Guest {
        cmdline: (!cmdline.is_empty()).then(|| cmdline.into()),
        console: Some(console),
        ..Guest::new(
            program,
            build::program(&context.workspace, program)?,
            Size::mib(64),
        )
    })
}

/// A machine of one CPU for these guests.
fn machine(context: &Context, folder: &Path, guests: &[Guest], log_uart: bool) -> Result<Machine> {
    let file = folder.join("bundle.cpio");
    bundle::write(guests, &file)?;
    let log = if log_uart {
        " undercroft.log=serial1"
    } else {
        ""
    };
    Ok(Machine {
        qemu: context.qemu()?.clone(),
        cpu: DEFAULT_CPU.into(),
        cpus: 1,
        ram: Size::mib(1024),
        ram_base: RAM_BASE,
        kernel: Some(context.image()?.file.clone()),
        initrd: Some(file),
        append: format!("undercroft.granule=4k undercroft.loglevel=info{log}"),
        end: Some(ending::token()?),
        el2: true,
        log_uart,
        debugger: None,
        extra: Vec::new(),
    })
}

/// `forge` writes what it can, beside the console or as its owner on the one
/// UART, and ends or is ended `how`. The runner believes nothing of it, and every
/// line of the log that it caused has its name.
fn forge(context: &Context, how: &str, expected: &Ending, one_uart: bool) -> Result<()> {
    let folder = tempfile::tempdir_in(&context.folder)?;
    let then = if how == "killed" { "hang" } else { how };
    let guests = [Guest {
        strict: true,
        ..guest(context, "forge", &format!("then={then}"), one_uart)?
    }];
    let machine = machine(context, folder.path(), &guests, !one_uart)?;
    let mut capture = Capture::start(&machine, LIMIT, false)?;
    if how == "killed" {
        if one_uart {
            capture.until(ALL)?;
        } else {
            capture.until_logged(ALL)?;
        }
        capture.kill()?;
    }
    let ending = capture.finish()?;
    let right = match expected {
        Ending::Qemu(_) => matches!(ending, Ending::Qemu(_)),
        expected => ending == *expected,
    };
    ensure!(right, "{ending}\n{}", capture.last_words());
    let console = String::from_utf8_lossy(&capture.console);
    ensure!(!console.contains("FAIL"), "{}", capture.last_words());
    if one_uart {
        // The stream is the guest's too: what looks like the log is no news.
        return Ok(());
    }
    ensure!(console.is_empty(), "the console says {console:?}");
    let mut count = 0;
    for line in &capture.log {
        let text =
            ending::message(line).with_context(|| format!("no line of the log: {line:?}"))?;
        ensure!(ending::shown(line) == *line, "not plain: {line:?}");
        if text.starts_with("guest forge: ") {
            count += 1;
            ensure!(!text.contains("FAIL"), "{line}");
        } else if ["9.0000", "xxx", "\u{fffd}", "forged"]
            .iter()
            .any(|part| text.contains(part))
        {
            bail!("the guest wrote a line without its name: {line:?}");
        }
    }
    ensure!(count > 200, "{count} lines of the guest's");
    let ends = capture
        .log
        .iter()
        .filter(|line| line.contains("forge: all was written"));
    ensure!(ends.count() == 1, "its own last line is missing");
    Ok(())
}

/// The console's UART never has room. Its owner waits on its own time: the guest
/// beside it, on the same CPU, comes to its end, and the monitor answers.
fn stuck_console(context: &Context, owner: &str) -> Result<()> {
    let folder = tempfile::tempdir_in(&context.folder)?;
    let mut neighbour = guest(context, "hello", "", false)?;
    neighbour.name = "neighbour".into();
    let guests = [guest(context, owner, "then=off", true)?, neighbour];
    let mut machine = machine(context, folder.path(), &guests, true)?;
    let uart = move_uart(&mut machine, folder.path(), CONSOLE, UNNAMED_RAM)?;
    no_room(&mut machine, uart);
    let mut capture = Capture::start(&machine, LIMIT, false)?;
    let talk = |capture: &mut Capture| -> Result<()> {
        capture.until_logged("guest neighbour: goodbye")?;
        capture.until_logged("guest neighbour: powered off")?;
        capture.ask_last_exits()?;
        capture.until_logged(&format!("vcpu {owner}/0: "))?;
        Ok(())
    };
    let talked = talk(&mut capture);
    talked.with_context(|| format!("the machine said last\n{}", capture.last_words()))?;
    let ended = capture.log.iter().any(|line| line.contains("end: "));
    ensure!(!ended, "{}", capture.last_words());
    Ok(())
}

/// Gives the machine a device tree in which the UART at `from` is at `to`.
fn move_uart(machine: &mut Machine, folder: &Path, from: u64, to: u64) -> Result<u64> {
    let file = folder.join("machine.dtb");
    let mut dump = machine.clone();
    (dump.kernel, dump.initrd) = (None, None);
    dump.append.clear();
    let words = format!("dumpdtb={}", file.display());
    dump.extra = ["-machine".into(), words.into()].into();
    more_ram(&mut dump);
    let control = crate::machine::virt::Control::Plain;
    let console = crate::machine::virt::Console::Pipes;
    Call::program(&dump.qemu.program, LIMIT)
        .args(dump.arguments(console, control))
        .call()?
        .ended(0)?;
    let mut tree = fs::read(&file).context("QEMU wrote no device tree")?;
    // `reg` of a node below the root: address and size, two cells each.
    let reg = |at: u64| [at.to_be_bytes(), 0x1000u64.to_be_bytes()].concat();
    let old = reg(from);
    let places: Vec<usize> = (0..tree.len() - old.len())
        .filter(|&at| tree[at..].starts_with(&old))
        .collect();
    let [place] = places[..] else {
        bail!("{} nodes have a UART at {from:#x}", places.len());
    };
    tree[place..place + old.len()].copy_from_slice(&reg(to));
    // QEMU leaves a mebibyte for more, and doubles what it reads: too much for the
    // boot protocol. The strings stand last.
    let word = |tree: &[u8], at: usize| -> Result<usize> {
        let bytes: [u8; 4] = tree[at..at + 4].try_into()?;
        Ok(u32::from_be_bytes(bytes) as usize)
    };
    let length = word(&tree, 12)? + word(&tree, 32)?;
    tree[4..8].copy_from_slice(&u32::try_from(length)?.to_be_bytes());
    tree.truncate(length);
    fs::write(&file, tree)?;
    machine.extra.extend(["-dtb".into(), file.into()]);
    more_ram(machine);
    Ok(to)
}

/// RAM that no device tree names, at [`UNNAMED_RAM`].
fn more_ram(machine: &mut Machine) {
    let ram = virt::more_ram(UNNAMED_RAM, Size::mib(64), "3G");
    machine.extra.extend(ram.map(Into::into));
}

/// Makes RAM at `at` a UART that never has room.
fn no_room(machine: &mut Machine, at: u64) {
    let flags = at + 0x18;
    let word = format!("loader,addr={flags:#x},data={NO_ROOM},data-len=4");
    machine.extra.extend(["-device".into(), word.into()]);
}

/// The lines that begin with this word.
fn lines(text: &str, word: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| line.starts_with(word)).collect();
    lines.join("\n")
}

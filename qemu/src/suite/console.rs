//! A guest's console, whose bytes need not come to the host one by one: none is
//! lost, none is late, none overtakes another, and each costs little.

use std::fmt::Write as _;
use std::fs;

use anyhow::{Context as _, Result, bail, ensure};

use super::boots::{LIMIT, ended_well, machine, machine_with_shell};
use super::call::Call;
use super::runner::debug::{debugged, gdb, line, with_gdb};
use super::runner::exit::once_begun;
use super::{Case, Context};
use crate::bench::console as bench;
use crate::build;
use crate::config::Guest;
use crate::run::capture::Capture;
use crate::run::ending::Ending;
use crate::size::Size;

/// What the program `posts` writes last.
const LAST: &str = "the last bytes";

/// Within this time a byte is on its way, in microseconds.
const IN_TIME: u64 = 20_000;

/// Numbers that the CPUs of `posts` write in turns.
const TURNS: u32 = 3000;

/// Resets that are watched.
const RESETS: usize = 20;

/// What is typed at Linux while it prints: lines, and numbers printed.
const TYPED: usize = 300;
const PRINTED: usize = 4000;

/// The cases.
pub fn cases() -> Vec<Case> {
    let mut cases = vec![
        Case::new("console/last-bytes-before-power-off", |context| {
            posts(context, &["--append", "do=off"])?
                .call()?
                .ended(0)?
                .printed(LAST)?;
            Ok(())
        }),
        Case::new("console/last-bytes-before-power-off-in-the-log", logged),
        Case::new("console/last-bytes-before-cpu-off", cpu_off),
        Case::new("console/last-bytes-before-a-reset", resets),
        Case::new("console/last-bytes-before-a-fault", |context| {
            posts(context, &["--strict", "--append", "do=fault"])?
                .call()?
                .failed()?
                .printed(LAST)?
                .tells(&["read from IPA"])?;
            Ok(())
        }),
        Case::new("console/last-bytes-before-a-timeout", |context| {
            let call =
                |patience: &str| posts(context, &["--append", "do=spin", "--timeout", patience]);
            once_begun(call)?.ended(124)?.shows(&[LAST, " us\r\n"])?;
            Ok(())
        }),
        with_gdb("console/last-bytes-before-el2-dies", el2_dies),
        Case::new("console/input-while-linux-prints", types_while_it_prints).boots(&["debian13"]),
        Case::new("console/instructions", instructions).boots(&["debian13"]),
    ];
    for how in ["spin", "idle", "timer", "fired", "again"] {
        for others in [0, 1] {
            let beside = ["", "-beside-another"][others];
            cases.push(Case::new(
                format!("console/bytes-in-time-{how}{beside}"),
                move |context| in_time(context, how, others),
            ));
        }
    }
    for cpus in ["2", "4"] {
        cases.push(Case::new(
            format!("console/vcpus-in-turns-{cpus}"),
            move |context| {
                let numbers = (0..TURNS).fold(String::new(), |mut text, number| {
                    // A String takes all that is written.
                    let _ = write!(text, "{number}\r\n");
                    text
                });
                posts(context, &["--smp", cpus, "--append", "do=turns"])?
                    .call()?
                    .ended(0)?
                    .printed(&numbers)?;
                Ok(())
            },
        ));
    }
    cases
}

/// The program `posts` as the one guest.
fn posts(context: &Context, options: &[&str]) -> Result<Call> {
    let kernel = build::program(&context.workspace, "posts")?;
    Ok(Call::run(context)?
        .args(["--initrd", "none", "--kernel"])
        .args([kernel])
        .args(options))
}

fn guest(context: &Context, name: &str, how: &str, vcpus: u32) -> Result<Guest> {
    Ok(Guest {
        cmdline: Some(format!("do={how}")),
        vcpus,
        console: Some(false),
        ..Guest::new(
            name,
            build::program(&context.workspace, "posts")?,
            Size::mib(8),
        )
    })
}

/// Of a guest whose console is not the machine's, in the log.
fn logged(context: &Context) -> Result<()> {
    let folder = tempfile::tempdir_in(&context.folder)?;
    let machine = machine(
        context,
        folder.path(),
        &[guest(context, "posts", "off", 1)?],
    )?;
    let mut capture = Capture::start(&machine, LIMIT, false)?;
    ended_well(capture.finish(), &capture)?;
    let line = format!("guest posts: {LAST}");
    ensure!(
        capture.log().iter().any(|logged| logged.contains(&line)),
        "{}",
        capture.last_words()
    );
    Ok(())
}

/// Of a vCPU that turns itself off, while the other one waits for ever.
fn cpu_off(context: &Context) -> Result<()> {
    let folder = tempfile::tempdir_in(&context.folder)?;
    let guest = guest(context, "posts", "off-cpu", 2)?;
    let mut machine = machine(context, folder.path(), &[guest])?;
    machine.cpus = 2;
    let mut capture = Capture::start(&machine, LIMIT, false)?;
    let logged = capture.until_logged(&format!("guest posts: {LAST}, written at "));
    logged.map_err(|error| error.context(capture.last_words()))
}

fn resets(context: &Context) -> Result<()> {
    let folder = tempfile::tempdir_in(&context.folder)?;
    let guest = Guest {
        console: Some(true),
        ..guest(context, "posts", "reset", 1)?
    };
    let machine = machine(context, folder.path(), &[guest])?;
    let mut capture = Capture::start(&machine, LIMIT, false)?;
    let all = (0..RESETS).try_for_each(|_| capture.until(LAST));
    all.map_err(|error| error.context(capture.last_words()))?;
    let console = String::from_utf8_lossy(&capture.console);
    let whole = console.replace(LAST, "");
    ensure!(LAST.starts_with(&whole), "between them is {whole:?}");
    Ok(())
}

/// EL2 dies, by a debugger's hand, of the call that turns the guest off: what
/// waits then is in its report.
fn el2_dies(context: &Context) -> Result<()> {
    let kernel = build::program(&context.workspace, "posts")?;
    let mut pty = debugged(context, |command| {
        command.args(["--initrd", "none", "--append", "do=off", "--kernel"]);
        command.arg(&kernel);
        Ok(())
    })?;
    let line = line(&mut pty)?;
    let called = gdb(
        &line,
        &[
            "break hyp::guest::exits::call if state.gprs.x[0] == 0x84000008",
            "continue",
            "delete",
            "set $pc = 0",
            "detach",
        ],
    )?;
    called.shows(&["Breakpoint 1,", "hyp::guest::exits::"])?;
    let status = pty.finish()?;
    let text = pty.text();
    // On a slow machine the host may have come for the first of them.
    let (before, report) = text.split_once("*** EL2 exception").unwrap_or_default();
    let lost = (0..=LAST.len()).all(|taken| {
        let (taken, left) = LAST.split_at(taken);
        let told = format!("the host has not seen: {left}");
        let has_left = report.contains(&told) || left.is_empty();
        !(has_left && before.contains(taken))
    });
    ensure!(
        status == Some(125) && !report.is_empty() && !lost,
        "it ended with {status:?}\n{text}"
    );
    Ok(())
}

/// The guest writes a line, and the time, and never comes to the host by itself:
/// the log, which has the line when its last byte is taken, has the time of that.
/// Instructions are counted, so that no machine is too slow for it.
fn in_time(context: &Context, how: &str, others: usize) -> Result<()> {
    let folder = tempfile::tempdir_in(&context.folder)?;
    let mut guests = vec![guest(context, "posts", how, 1)?];
    guests.extend(
        (0..others)
            .map(|_| guest(context, "other", "idle", 1))
            .collect::<Result<Vec<_>>>()?,
    );
    let mut machine = machine(context, folder.path(), &guests)?;
    machine.extra = vec!["-icount".into(), "shift=0,sleep=off".into()];
    let mut capture = Capture::start(&machine, LIMIT, false)?;
    let sign = format!("guest posts: {LAST}, written at ");
    capture
        .until_logged(&sign)
        .map_err(|error| error.context(capture.last_words()))?;
    let line = capture.log().iter().find(|line| line.contains(&sign));
    let line = line.context("a line")?;
    let logged = micros(line).with_context(|| format!("no time in {line}"))?;
    let (_, written) = line.split_once(&sign).context("a sign")?;
    let written: u64 = written.trim_end_matches(" us").parse()?;
    let took = logged.checked_sub(written);
    ensure!(
        took.is_some_and(|took| took <= IN_TIME),
        "written at {written} us, and logged at {logged} us"
    );
    Ok(())
}

/// The time of a line of the log, in microseconds.
fn micros(line: &str) -> Option<u64> {
    let (time, _) = line.strip_prefix('[')?.split_once(']')?;
    let (seconds, micros) = time.trim().split_once('.')?;
    Some(seconds.parse::<u64>().ok()? * 1_000_000 + micros.parse::<u64>().ok()?)
}

/// Linux reads lines while it prints others: none of either is lost.
fn types_while_it_prints(context: &Context) -> Result<()> {
    let folder = tempfile::tempdir_in(&context.folder)?;
    let machine = machine_with_shell(context, folder.path())?;
    let mut capture = Capture::start(&machine, LIMIT, false)?;
    let typed: String = (0..TYPED).map(|n| format!("typed line {n}\n")).collect();
    let script = folder.path().join("typed");
    fs::write(&script, &typed)?;
    let talk = |capture: &mut Capture| -> Result<Ending> {
        capture.until("# ")?;
        capture.type_in("stty -echo; echo qui''et\n")?;
        capture.until("quiet")?;
        capture.until("# ")?;
        let prints =
            format!("echo; seq {PRINTED} | sed s/$/p/ & head -n {TYPED} >/tmp/typed; wait");
        let says = "echo; md5sum </tmp/typed; wc -l </tmp/typed; exit";
        capture.type_in(&format!("{prints}; {says}\n{typed}"))?;
        capture.finish()
    };
    let ending = talk(&mut capture);
    ended_well(ending, &capture)?;
    // The terminal asks a sender of input that is too fast to stop, and to go on.
    let console = String::from_utf8_lossy(&capture.console).replace(['\u{11}', '\u{13}'], "");
    let numbers = console
        .lines()
        .filter_map(|line| line.trim().strip_suffix('p'));
    let numbers: Vec<usize> = numbers.filter_map(|number| number.parse().ok()).collect();
    let missing = (1..=PRINTED).find(|number| numbers.get(number - 1) != Some(number));
    if let Some(missing) = missing {
        let before = format!("\n{}p", missing - 1);
        let at = console.find(&before).unwrap_or(0);
        let around: String = console[at..].chars().take(200).collect();
        bail!("{missing} of {PRINTED} is not where it belongs: {around:?}");
    }
    let sum = Call::program("md5sum", LIMIT)
        .args([&script])
        .call()?
        .ended(0)?;
    let sum = sum.stdout.split(' ').next().context("a sum")?.to_string();
    ensure!(console.contains(&sum), "{}", capture.last_words());
    Ok(())
}

/// What a byte of Linux's costs.
fn instructions(context: &Context) -> Result<()> {
    let options = bench::Options {
        image: Some(context.image()?.file.clone()),
        // Nothing is judged by time.
        only_count: true,
    };
    let row = bench::measure(&context.workspace, context.qemu()?, &options)?;
    if !row.passes() {
        bail!("a gate was missed\n{row}");
    }
    Ok(())
}

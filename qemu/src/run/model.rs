//! A model that runs: its UARTs are files that are read while they grow.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rmi::end::Token;
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::iterator::Signals;

use super::ending::{self, Cut, Ending, Said};
use super::marks::Scanner;
use super::plan::Style;
use super::watch::{Manner, Outcome};
use crate::child::end_with_us;
use crate::machine::fvp::{Machine, Uarts};
use crate::signals;
use crate::ui;

/// How often the files are looked at.
const PAUSE: Duration = Duration::from_millis(100);

/// How long the model may take to end after the image's last word, and after it was
/// asked to.
const POWER_OFF: Duration = Duration::from_secs(30);
const CLEAN_UP: Duration = Duration::from_secs(5);

/// A longer line of the log is cut in two.
const LONGEST_LINE: usize = 16 << 10;

/// Starts `machine`, whose UARTs write into `folder`, and stays with it.
///
/// # Errors
/// When the model cannot be run; what it does is an [`Outcome`].
pub fn run(machine: &Machine, manner: &Manner, folder: &Path) -> Result<Outcome> {
    let uarts = Uarts {
        console: folder.join("console"),
        log: folder.join("log"),
    };
    let mut watch = Watch {
        manner,
        token: machine.description.end,
        console: Growing::begin(&uarts.console)?,
        log: Growing::begin(&uarts.log)?,
        line: Vec::new(),
        scanner: match &manner.style {
            Style::Command { mark } => Some(Scanner::new(mark)),
            Style::Terminal | Style::Raw => None,
        },
        said: None,
        unwritten: None,
    };
    let mut signals = Signals::new(signals::ending()).context("cannot watch for signals")?;
    let words = machine.command(&uarts);
    let (program, arguments) = words.split_first().context("no model")?;
    let mut command = Command::new(program);
    // What the model itself says is not the guest's.
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(io::stderr());
    // What a terminal sends to all of a job is ours to pass on.
    command.process_group(0);
    end_with_us(&mut command);
    let child = command
        .spawn()
        .with_context(|| format!("cannot run {program}"))?;
    let ending = watch.until_end(&mut Model(child), || signals.pending().next())?;
    let command = watch.scanner.as_ref().and_then(Scanner::status);
    let ending = match ending {
        Ending::Status(0) if watch.scanner.is_some() && command.is_none() => {
            Ending::Cut(Cut::PoweredOff)
        }
        Ending::Qemu(status) => Ending::Model(status),
        ending => ending,
    };
    let outcome = Outcome { ending, command };
    if outcome.exit_code() != 0 && !matches!(outcome.ending, Ending::Status(0)) {
        ui::error(&outcome.ending);
    }
    Ok(outcome)
}

/// The model, which does not outlive this.
struct Model(Child);

impl Model {
    /// Has it end, as Ctrl-C would: a container's client passes that on.
    fn stop(&mut self) {
        // Errors mean that it has ended already.
        let _ = kill_process(Pid::from_child(&self.0), Signal::TERM);
        let end = Instant::now() + CLEAN_UP;
        while matches!(self.0.try_wait(), Ok(None)) && Instant::now() < end {
            thread::sleep(PAUSE);
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            self.stop();
        }
    }
}

/// A file that somebody else writes.
struct Growing(File);

impl Growing {
    fn begin(file: &Path) -> Result<Self> {
        let cannot = || format!("cannot write {}", file.display());
        File::create(file).with_context(cannot)?;
        Ok(Self(File::open(file).with_context(cannot)?))
    }

    /// What has come since.
    fn more(&mut self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.0
            .read_to_end(&mut bytes)
            .context("cannot read what a UART wrote")?;
        Ok(bytes)
    }
}

struct Watch<'a> {
    manner: &'a Manner,
    token: Option<Token>,
    console: Growing,
    log: Growing,
    /// The log's line that is not whole yet.
    line: Vec<u8>,
    scanner: Option<Scanner>,
    said: Option<Said>,
    /// Standard output is gone, and this is why.
    unwritten: Option<Ending>,
}

impl Watch<'_> {
    fn until_end(
        &mut self,
        model: &mut Model,
        mut signal: impl FnMut() -> Option<i32>,
    ) -> Result<Ending> {
        let begun = Instant::now();
        let mut deadline = (self.manner.timeout).and_then(|timeout| begun.checked_add(timeout));
        let mut hurried = false;
        loop {
            // What it wrote before it ended is there when its end is seen.
            let over = model.0.try_wait().context("the model was lost")?;
            self.read(over.is_some())?;
            let ending = match (over, signal(), self.unwritten.take()) {
                (Some(status), ..) => return Ok(Ending::of(self.said, status, false)),
                (None, Some(number), _) => Some(Ending::Signal(number)),
                (None, None, unwritten) => unwritten,
            };
            let late = deadline.is_some_and(|deadline| Instant::now() >= deadline);
            let late = late.then(|| Ending::TimedOut(begun.elapsed()));
            if let Some(ending) = ending.or(late) {
                model.stop();
                self.read(true)?;
                return Ok(ending);
            }
            if !hurried && self.said.is_some() {
                hurried = true;
                let soon = Instant::now() + POWER_OFF;
                deadline = Some(deadline.map_or(soon, |deadline| deadline.min(soon)));
            }
            thread::sleep(PAUSE);
        }
    }

    /// Takes what the UARTs have written; `all` of it, when no more comes.
    fn read(&mut self, all: bool) -> Result<()> {
        for byte in self.log.more()? {
            if byte != b'\n' {
                self.line.push(byte);
            }
            if byte == b'\n' || self.line.len() >= LONGEST_LINE {
                self.tell();
            }
        }
        if all && !self.line.is_empty() {
            self.tell();
        }
        let bytes = self.console.more()?;
        let mut output = match &mut self.scanner {
            Some(scanner) => {
                if self.manner.verbose && !scanner.begun() {
                    ui::say(ui::plain(&String::from_utf8_lossy(&bytes)));
                }
                scanner.feed(&bytes)
            }
            None => bytes,
        };
        if all && let Some(scanner) = &mut self.scanner {
            output.extend(scanner.rest());
        }
        let mut to = io::stdout().lock();
        if let Err(error) = to.write_all(&output).and_then(|()| to.flush()) {
            self.unwritten = Some(match error.kind() {
                io::ErrorKind::BrokenPipe => Ending::NoReader,
                _ => Ending::Unwritten(error.to_string()),
            });
        }
        Ok(())
    }

    /// Takes a line of the log.
    fn tell(&mut self) {
        let line = std::mem::take(&mut self.line);
        let line = String::from_utf8_lossy(&line).trim_end().to_string();
        if let Some(said) = ending::said(&line, self.token) {
            self.said = Some(said);
        }
        if ending::level(&line).is_some_and(|level| level > self.manner.log) {
            return;
        }
        let line = self.manner.settings.told(&line).unwrap_or(line);
        // Nobody is to know by what we know the image's last word.
        let line = match &self.token {
            Some(token) => line.replace(&format!("{} ", token.as_str()), ""),
            None => line,
        };
        ui::say(ui::fold(&ui::plain(&line), "    "));
    }
}

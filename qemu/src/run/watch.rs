//! Stays with a running machine until it ends, and says why it did.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::process::ChildStdin;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rmi::end::Token;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::ending::{self, Ending, Said};
use super::marks::Scanner;
use super::plan::Style;
use super::session::{Event, Session};
use crate::machine::virt::{Console, Machine};

/// How long a machine may take to end after its command was done, and after
/// its guest's kernel gave up.
const POWER_OFF: Duration = Duration::from_secs(30);
const LAST_WORDS: Duration = Duration::from_secs(5);

/// How long the answer to "last exits" is awaited, and the pause that ends it.
const ANSWER: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(700);

/// How much of a console is kept for a report.
const TAIL: usize = 4 << 10;

/// What Linux says when it gives up.
const GUEST_PANIC: &[u8] = b"Kernel panic - not syncing";

/// A machine's end, and a command's status where there was one.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Why the machine ended.
    pub ending: Ending,
    /// The exit status of the command that ran in the guest.
    pub command: Option<u8>,
}

impl Outcome {
    /// The runner's own exit status.
    pub fn exit_code(&self) -> u8 {
        match (self.command, &self.ending) {
            (Some(status), Ending::Status(0)) => status,
            // The command's success is worth nothing if what followed failed.
            (_, ending) => ending.exit_code(),
        }
    }
}

/// How to watch.
#[derive(Clone, Debug)]
pub struct Manner {
    /// Where the console goes.
    pub style: Style,
    /// The end of patience.
    pub timeout: Option<Duration>,
    /// No image is on the machine: QEMU's own end is the end.
    pub bare: bool,
    /// The guest's boot messages go to standard error.
    pub verbose: bool,
}

/// Starts `machine` and stays with it.
///
/// # Errors
/// When QEMU cannot be run; what the machine does is an [`Outcome`].
pub fn run(machine: &Machine, manner: &Manner) -> Result<Outcome> {
    let console = match manner.style {
        Style::Terminal => Console::Terminal,
        Style::Command { .. } | Style::Raw => Console::Pipes,
    };
    let _terminal = (console == Console::Terminal).then(Terminal::keep);
    let mut session = Session::start(machine, console)?;
    watch_signals(&session)?;
    if manner.style == Style::Raw
        && let Some(input) = session.take_input()
    {
        thread::spawn(move || forward(input));
    }
    Watch::new(manner, machine.end).until_end(&mut session)
}

/// One watch over one machine.
struct Watch<'a> {
    manner: &'a Manner,
    scanner: Option<Scanner>,
    token: Option<Token>,
    said: Option<Said>,
    tail: VecDeque<u8>,
    guest_panic: bool,
    /// Lines of QEMU's own, shown when it fails.
    complaints: Vec<String>,
    /// Standard output is gone: nobody wants the rest.
    deaf: bool,
}

impl<'a> Watch<'a> {
    fn new(manner: &'a Manner, token: Option<Token>) -> Self {
        let scanner = match &manner.style {
            Style::Command { mark } => Some(Scanner::new(mark)),
            Style::Terminal | Style::Raw => None,
        };
        Self {
            manner,
            scanner,
            token,
            said: None,
            tail: VecDeque::new(),
            guest_panic: false,
            complaints: Vec::new(),
            deaf: false,
        }
    }

    fn until_end(mut self, session: &mut Session) -> Result<Outcome> {
        let begun = Instant::now();
        let mut deadline = self.manner.timeout.map(|timeout| begun + timeout);
        let mut hurried = false;
        let ending = loop {
            match session.next(deadline) {
                Some(Event::Signal(number)) => {
                    session.stop()?;
                    break Ending::Signal(number);
                }
                Some(event) => self.take(event)?,
                None if session.is_over() => {
                    let status = session.wait()?;
                    if self.guest_panic && self.said.is_none_or(|said| said != Said::Panic) {
                        break Ending::GuestPanic;
                    }
                    break Ending::of(self.said, status, self.manner.bare);
                }
                None => {
                    let ending = if self.guest_panic {
                        Ending::GuestPanic
                    } else {
                        Ending::TimedOut(begun.elapsed())
                    };
                    self.diagnose(session)?;
                    session.stop()?;
                    break ending;
                }
            }
            if !hurried && (self.guest_panic || self.command().is_some()) {
                hurried = true;
                let patience = if self.guest_panic {
                    LAST_WORDS
                } else {
                    POWER_OFF
                };
                let soon = Instant::now() + patience;
                deadline = Some(deadline.map_or(soon, |deadline| deadline.min(soon)));
            }
        };
        if let Some(rest) = self.scanner.as_mut().map(Scanner::rest) {
            self.print(&rest);
        }
        let command = self.command();
        let outcome = Outcome { ending, command };
        self.report(&outcome);
        Ok(outcome)
    }

    fn command(&self) -> Option<u8> {
        self.scanner.as_ref()?.status()
    }

    fn take(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Console(bytes) => self.console(&bytes),
            Event::Log(line) => {
                if let Some(said) = ending::said(&line, self.token) {
                    self.said = Some(said);
                }
                eprintln!("{}", ending::shown(&line));
            }
            Event::Qemu(line) => {
                eprintln!("{line}");
                self.complaints.push(line);
            }
            Event::Signal(_) | Event::Closed => {}
        }
        Ok(())
    }

    fn console(&mut self, bytes: &[u8]) {
        self.tail.extend(bytes);
        let contiguous = self.tail.make_contiguous();
        let watched = self.manner.style != Style::Terminal;
        if watched && !self.guest_panic && self.scanner.is_some() {
            let from = contiguous
                .len()
                .saturating_sub(bytes.len() + GUEST_PANIC.len());
            let new = &contiguous[from..];
            self.guest_panic = new.windows(GUEST_PANIC.len()).any(|w| w == GUEST_PANIC);
        }
        let surplus = self.tail.len().saturating_sub(TAIL);
        self.tail.drain(..surplus);
        match &mut self.scanner {
            None => self.print(bytes),
            Some(scanner) => {
                let booting = !scanner.begun();
                let output = scanner.feed(bytes);
                if booting && self.manner.verbose {
                    // Nobody is told if standard error is gone.
                    let _ = io::stderr().write_all(bytes);
                }
                self.print(&output);
            }
        }
    }

    fn print(&mut self, bytes: &[u8]) {
        if bytes.is_empty() || self.deaf {
            return;
        }
        let mut out = io::stdout().lock();
        // A reader that has gone does not end the guest's command.
        self.deaf = out.write_all(bytes).and_then(|()| out.flush()).is_err();
    }

    /// What a machine that hangs was doing: the last exits of every vCPU by
    /// the host's own account or, where the host says nothing, the registers.
    fn diagnose(&mut self, session: &mut Session) -> Result<()> {
        eprintln!("the machine hangs; asking it for the last exits of every vCPU");
        let mut answers = 0;
        if !self.manner.bare && session.ask_last_exits() {
            let end = Instant::now() + ANSWER;
            let mut next = end;
            while let Some(event) = session.next(Some(next.min(end))) {
                if let Event::Log(_) = &event {
                    answers += 1;
                    next = Instant::now() + PAUSE;
                }
                self.take(event)?;
            }
        }
        if answers == 0 {
            eprintln!("no answer; the CPUs stand at");
            for line in interesting(&session.registers()) {
                eprintln!("  {line}");
            }
        }
        Ok(())
    }

    fn report(&self, outcome: &Outcome) {
        let code = outcome.exit_code();
        let told = outcome.command.is_some() && matches!(outcome.ending, Ending::Status(0));
        if code == 0 || told {
            return;
        }
        if self.scanner.is_some() && !self.tail.is_empty() {
            eprintln!("the guest's console said last:");
            let tail: Vec<u8> = self.tail.iter().copied().collect();
            let text = String::from_utf8_lossy(&tail);
            let lines: Vec<_> = text.lines().collect();
            for line in &lines[lines.len().saturating_sub(20)..] {
                eprintln!("  | {}", line.trim_end());
            }
        }
        eprintln!("error: {}", outcome.ending);
    }
}

/// The lines of QEMU's register dump that say where a CPU is.
fn interesting(dump: &str) -> Vec<&str> {
    dump.lines()
        .map(str::trim)
        .filter(|line| {
            ["CPU#", "PC=", " PC=", "PSTATE="]
                .iter()
                .any(|word| line.starts_with(word.trim()))
        })
        .take(64)
        .collect()
}

/// Turns signals that would end the runner into events, so that it can end the
/// machine first.
fn watch_signals(session: &Session) -> Result<()> {
    let to = session.sender();
    let mut signals =
        Signals::new([SIGINT, SIGTERM, SIGHUP]).context("cannot watch for signals")?;
    thread::spawn(move || {
        for number in signals.forever() {
            if to.send(Event::Signal(number)).is_err() {
                return;
            }
        }
    });
    Ok(())
}

/// Sends standard input to the guest's console until either is gone.
fn forward(mut to: ChildStdin) {
    let mut from = io::stdin().lock();
    let mut buffer = [0; 4096];
    loop {
        match from.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(count) => {
                if to
                    .write_all(&buffer[..count])
                    .and_then(|()| to.flush())
                    .is_err()
                {
                    break;
                }
            }
        }
    }
    // QEMU goes on without an input; the console stays as it is.
    std::mem::forget(to);
}

/// The terminal's settings, put back at the end whatever QEMU left.
struct Terminal(Option<rustix::termios::Termios>);

impl Terminal {
    fn keep() -> Self {
        Self(rustix::termios::tcgetattr(rustix::stdio::stdin()).ok())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(settings) = &self.0 {
            use rustix::termios::{OptionalActions, tcsetattr};
            // Where it fails there is no terminal any more.
            let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, settings);
        }
    }
}

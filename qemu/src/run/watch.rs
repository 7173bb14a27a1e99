//! Stays with a running machine until it ends, and says why it did.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rmi::end::Token;
use signal_hook::iterator::Signals;

use super::ending::{self, Cut, Ending, Said};
use super::marks::Scanner;
use super::options::Level;
use super::outlet::{Outlet, Taken, To};
use super::plan::Style;
use super::session::{Event, Sent, Session};
use super::terminal::{Terminal, forward};
use crate::config::places::Packed;
use crate::machine::virt::{Console, Machine};
use crate::signals;
use crate::ui;

/// How long a machine may take to end after its command was done, and after
/// its guest's kernel gave up.
const POWER_OFF: Duration = Duration::from_secs(30);
const LAST_WORDS: Duration = Duration::from_secs(5);

/// How long the answer to "last exits" is awaited, and the pause that ends it.
const ANSWER: Duration = Duration::from_secs(15);
const PAUSE: Duration = Duration::from_millis(700);

/// How long a reader may take for the rest after a run that was cut short.
const LAST_BYTES: Duration = Duration::from_secs(1);

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
    /// What of Undercroft's log is shown.
    pub log: Level,
    /// A guest whose console we have is expected to say something.
    pub speaks: bool,
    /// What to say once QEMU is there, and listens where it is to.
    pub ready: Option<String>,
    /// Where calls and exits are written that the image traces.
    pub trace: Option<PathBuf>,
    /// What the lines of the bundle's configuration are to the user.
    pub settings: Packed,
}

/// Starts `machine` and stays with it.
///
/// # Errors
/// When QEMU cannot be run; what the machine does is an [`Outcome`].
pub fn run(machine: &Machine, manner: &Manner) -> Result<Outcome> {
    let trace = manner.trace.as_deref().map(Trace::create).transpose()?;
    let console = match manner.style {
        Style::Terminal => Console::Terminal,
        Style::Command { .. } | Style::Raw => Console::Pipes,
    };
    let mut session = Session::start_checked(machine, console)?;
    manner.ready.iter().for_each(ui::say);
    let _terminal = (console == Console::Terminal).then(Terminal::raw);
    watch_signals(session.sender())?;
    if !matches!(manner.style, Style::Command { .. })
        && let Some(input) = session.take_input()
    {
        thread::spawn(move || forward(input));
    }
    let outlet = Outlet::open(session.sender());
    let mut watch = Watch::new(manner, outlet, machine);
    watch.trace = trace;
    watch.until_end(&mut session)
}

/// One watch over one machine.
struct Watch<'a> {
    manner: &'a Manner,
    outlet: Outlet,
    scanner: Option<Scanner>,
    token: Option<Token>,
    said: Option<Said>,
    tail: VecDeque<u8>,
    /// The guest's kernel gave up before its command began.
    guest_panic: bool,
    /// The host has reset the guest.
    guest_reset: bool,
    /// No guest writes where the log is.
    log_apart: bool,
    /// QEMU was told to end.
    told: bool,
    /// Standard output is gone, and this is why: nobody gets the rest.
    deaf: Option<Ending>,
    /// Every level of the log is shown.
    all_levels: bool,
    /// Where the console's output and ours meet: whether what was written last
    /// there has left the line open.
    open_line: bool,
    /// Console and log share a terminal.
    shared: bool,
    trace: Option<Trace>,
}

/// A file of traced calls and exits.
struct Trace {
    file: BufWriter<File>,
    name: PathBuf,
    lines: u64,
    failed: Option<io::Error>,
}

impl Trace {
    fn create(name: &Path) -> Result<Self> {
        let file = File::create(name)
            .with_context(|| format!("--trace-file: cannot write {}", name.display()))?;
        Ok(Self {
            file: BufWriter::new(file),
            name: name.to_path_buf(),
            lines: 0,
            failed: None,
        })
    }

    /// Takes a line of the log if it is one of the trace's.
    fn takes(&mut self, line: &str) -> bool {
        if !is_traced(line) {
            return false;
        }
        self.lines += 1;
        if self.failed.is_none() {
            self.failed = writeln!(self.file, "{}", ending::shown(line)).err();
        }
        true
    }

    /// Says where it is, or why it is not whole.
    fn close(mut self) {
        let failed = self.failed.take().or_else(|| self.file.flush().err());
        let name = self.name.display();
        match failed {
            Some(error) => ui::warn(format_args!("{name} is not whole: {error}")),
            None => ui::note("Traced", format_args!("{} lines into {name}", self.lines)),
        }
    }
}

/// The ending of a run whose output cannot be written.
fn deaf(why: Option<String>) -> Ending {
    why.map_or(Ending::NoReader, Ending::Unwritten)
}

/// Whether a line of the log is one that was asked for by `--trace`. A guest's
/// own words stand behind its name, and so are none.
fn is_traced(line: &str) -> bool {
    ending::level(line) == Some(Level::Trace)
        && ending::message(line)
            .is_some_and(|text| text.starts_with("call ") || text.starts_with("exit "))
}

impl<'a> Watch<'a> {
    fn new(manner: &'a Manner, outlet: Outlet, machine: &Machine) -> Self {
        let scanner = match &manner.style {
            Style::Command { mark } => Some(Scanner::new(mark)),
            Style::Terminal | Style::Raw => None,
        };
        Self {
            manner,
            outlet,
            scanner,
            token: machine.end,
            said: None,
            tail: VecDeque::new(),
            guest_panic: false,
            guest_reset: false,
            log_apart: machine.log_uart,
            told: false,
            deaf: None,
            all_levels: false,
            open_line: false,
            trace: None,
            shared: std::io::stdout().is_terminal() && std::io::stderr().is_terminal(),
        }
    }

    fn until_end(mut self, session: &mut Session) -> Result<Outcome> {
        let begun = Instant::now();
        let mut deadline = (self.manner.timeout).and_then(|timeout| begun.checked_add(timeout));
        let mut hurried = false;
        // Why the machine was stopped; what it had said before still comes.
        let mut stopped = None;
        let ending = loop {
            match session.next(deadline) {
                Some(Event::Signal(number)) => {
                    session.stop()?;
                    break Ending::Signal(number);
                }
                Some(event) => {
                    let taken = session.taken();
                    self.take(event, taken);
                }
                None if stopped.is_some() || session.is_over() => {
                    if let Some(ending) = stopped {
                        break ending;
                    }
                    let status = session.wait()?;
                    if self.told && self.manner.style == Style::Terminal && self.said.is_none() {
                        break Ending::Left;
                    }
                    break Ending::of(self.said, status, self.manner.bare);
                }
                None => {
                    let ending = if self.guest_panic {
                        Ending::GuestPanic
                    } else {
                        Ending::TimedOut(begun.elapsed())
                    };
                    self.diagnose(session);
                    session.stop()?;
                    break ending;
                }
            }
            if let Some(ending) = self.no_use_to_wait().filter(|_| stopped.is_none()) {
                session.stop()?;
                stopped = Some(ending);
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
            self.print(rest, Taken::default());
        }
        let command = self.command();
        let ending = self.judged(ending);
        let ending = self.drain(session, ending);
        if let Some(trace) = self.trace.take() {
            trace.close();
        }
        let outcome = Outcome { ending, command };
        self.report(&outcome);
        Ok(outcome)
    }

    /// Why the machine need not run on, if it need not.
    fn no_use_to_wait(&self) -> Option<Ending> {
        if let Some(deaf) = &self.deaf {
            return Some(deaf.clone());
        }
        let scanner = self.scanner.as_ref()?;
        let again = scanner.began_again() || (self.guest_reset && scanner.status().is_none());
        // What ran once is not run again and again.
        again.then_some(Ending::Cut(Cut::Reset))
    }

    /// The ending that a machine's end is for the guest's command.
    fn judged(&self, ending: Ending) -> Ending {
        let ended = matches!(ending, Ending::Status(0) | Ending::Cut(Cut::Reset));
        if !ended || self.command().is_some() {
            return ending;
        }
        match self.scanner {
            Some(_) if self.guest_panic || has_panic(&self.tail) => Ending::GuestPanic,
            Some(_) if ending == Ending::Status(0) => Ending::Cut(Cut::PoweredOff),
            None if self.manner.speaks && self.tail.is_empty() => Ending::Cut(Cut::Silent),
            _ => ending,
        }
    }

    /// Waits until all is written, as any program does; after a run that was cut
    /// short not for long.
    fn drain(&mut self, session: &mut Session, ending: Ending) -> Ending {
        let cut = matches!(ending, Ending::TimedOut(_) | Ending::Signal(_));
        let deadline = cut.then(|| Instant::now() + LAST_BYTES);
        self.outlet.close();
        loop {
            match session.next_after_end(deadline) {
                Some(Event::Drained) | None => return ending,
                Some(Event::Signal(number)) => return Ending::Signal(number),
                Some(Event::Deaf(why)) => return deaf(why),
                // QEMU is gone; what it had said before has been taken.
                Some(_) => {}
            }
        }
    }

    fn command(&self) -> Option<u8> {
        self.scanner.as_ref()?.status()
    }

    fn take(&mut self, event: Event, taken: Taken) {
        match event {
            Event::Console(bytes) => self.console(&bytes, taken),
            Event::Log(line) => {
                if let Some(said) = ending::said(&line, self.token) {
                    self.said = Some(said);
                }
                if self.log_apart && ending::message(&line).is_some_and(is_reset) {
                    self.guest_reset = true;
                }
                if self.trace.as_mut().is_some_and(|trace| trace.takes(&line)) {
                    return;
                }
                if self.all_levels || ending::level(&line).is_none_or(|l| l <= self.manner.log) {
                    let line = self.manner.settings.told(&line).unwrap_or(line);
                    self.tell(&line, taken);
                }
            }
            Event::Qemu(line) => self.tell(&line, taken),
            Event::Told => self.told = true,
            // Of a machine that is all the guest's.
            Event::Reset => self.guest_reset |= self.manner.bare,
            Event::Deaf(why) => self.deaf = Some(deaf(why)),
            Event::Signal(_) | Event::Closed | Event::Drained => {}
        }
    }

    fn console(&mut self, bytes: &[u8], taken: Taken) {
        if self.tail.is_empty() && self.manner.style == Style::Terminal {
            self.hint();
        }
        self.tail.extend(bytes);
        let surplus = self.tail.len().saturating_sub(TAIL.max(bytes.len()));
        self.tail.drain(..surplus);
        match &mut self.scanner {
            None => self.print(bytes.to_vec(), taken),
            Some(scanner) => {
                let booting = !scanner.begun();
                let output = scanner.feed(bytes);
                // Later it could be the command's own words.
                self.guest_panic |= booting && !scanner.begun() && has_panic(&self.tail);
                if booting && self.manner.verbose {
                    self.outlet
                        .write(To::Errors, bytes.to_vec(), Taken::default());
                }
                self.print(output, taken);
            }
        }
        let surplus = self.tail.len().saturating_sub(TAIL);
        self.tail.drain(..surplus);
    }

    /// How to leave: the last of our words before the guest's first.
    fn hint(&mut self) {
        let text = "the guest has the terminal; leave with Ctrl-a x";
        if let Some(line) = ui::note_line("Booting", text) {
            self.outlet
                .write(To::Errors, line.into_bytes(), Taken::default());
        }
    }

    fn print(&mut self, bytes: Vec<u8>, taken: Taken) {
        let Some(last) = bytes.last() else { return };
        self.open_line = *last != b'\n';
        if self.deaf.is_none() {
            self.outlet.write(To::Output, bytes, taken);
        }
    }

    /// Writes a line on standard error, on a line of its own.
    fn tell(&mut self, line: &str, taken: Taken) {
        // Nobody is to know by what we know the image's last word.
        let token = self.token.as_ref().map_or("", Token::as_str);
        let line = match token {
            "" => line.to_string(),
            token => line.replace(&format!("{token} "), ""),
        };
        let mut text = ui::fold(&ui::plain(&line), "    ");
        text.push('\n');
        if self.shared && std::mem::take(&mut self.open_line) {
            text.insert(0, '\n');
        }
        self.outlet.write(To::Errors, text.into_bytes(), taken);
    }

    /// What a machine that hangs was doing: the last exits of every vCPU by
    /// the host's own account or, where the host says nothing, the registers.
    fn diagnose(&mut self, session: &mut Session) {
        self.all_levels = true;
        let none = Taken::default;
        self.tell(
            "the machine hangs; asking it for the last exits of every vCPU",
            none(),
        );
        let mut answers = 0;
        if !self.manner.bare && session.ask_last_exits() {
            let end = Instant::now() + ANSWER;
            let mut next = end;
            while let Some(event) = session.next(Some(next.min(end))) {
                if let Event::Log(_) = &event {
                    answers += 1;
                    next = Instant::now() + PAUSE;
                }
                let taken = session.taken();
                self.take(event, taken);
            }
        }
        if answers == 0 {
            self.tell("no answer; the CPUs stand at", none());
            for line in interesting(&session.registers()) {
                self.tell(&format!("  {line}"), none());
            }
        }
    }

    fn report(&self, outcome: &Outcome) {
        let code = outcome.exit_code();
        let told = outcome.command.is_some() && matches!(outcome.ending, Ending::Status(0));
        let line = if self.shared && self.open_line {
            "\n"
        } else {
            ""
        };
        if code == 0 || told || outcome.ending == Ending::NoReader {
            if !line.is_empty() && self.manner.style == Style::Terminal {
                ui::say("");
            }
            return;
        }
        let last = match &self.manner.style {
            Style::Command { mark } => last_words(&self.tail, mark),
            Style::Terminal | Style::Raw => Vec::new(),
        };
        if !last.is_empty() {
            ui::say(format_args!("{line}the guest's console said last:"));
            for line in last {
                ui::say(format_args!("  | {line}"));
            }
        } else if !line.is_empty() {
            ui::say("");
        }
        ui::error(&outcome.ending);
    }
}

/// Whether the host says, in its own words, that it has reset the guest.
fn is_reset(message: &str) -> bool {
    let rest = message.strip_prefix("guest ");
    let words = rest.and_then(|rest| rest.split_once(": "));
    words.is_some_and(|(name, what)| !name.contains(' ') && what == "reset")
}

/// Whether Linux has given up: a line of its own says so.
fn has_panic(console: &VecDeque<u8>) -> bool {
    let bytes: Vec<u8> = console.iter().copied().collect();
    bytes.split(|b| *b == b'\n').any(|line| {
        // A time goes before it: `[   12.345678] Kernel panic …`.
        let text = match line.iter().position(|b| *b == b']') {
            Some(at) if line.starts_with(b"[") => &line[at + 1..],
            _ => line,
        };
        text.trim_ascii_start().starts_with(GUEST_PANIC)
    })
}

/// What a console said last, for people: without marks of ours, blank lines around it,
/// and what would steer a terminal.
fn last_words(tail: &VecDeque<u8>, mark: &str) -> Vec<String> {
    let bytes: Vec<u8> = tail.iter().copied().collect();
    let text = String::from_utf8_lossy(&bytes);
    // The first line of what was kept, and a mark at its end, may be parts.
    let cut = usize::from(tail.len() >= TAIL);
    let lines: Vec<String> = text
        .lines()
        .skip(cut)
        .filter(|line| !line.contains(mark) && (line.is_empty() || !mark.starts_with(line)))
        .map(|line| ui::plain(line).trim_end().to_string())
        .collect();
    let said = |line: &String| !line.is_empty();
    let end = lines.iter().rposition(said).map_or(0, |last| last + 1);
    let lines = &lines[end.saturating_sub(20)..end];
    let begin = lines.iter().position(said).unwrap_or(0);
    lines[begin..].to_vec()
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
fn watch_signals(to: Sender<Sent>) -> Result<()> {
    let mut signals = Signals::new(signals::ending()).context("cannot watch for signals")?;
    thread::spawn(move || {
        for number in signals.forever() {
            if to.send(Event::Signal(number).into()).is_err() {
                return;
            }
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tail(text: &str) -> VecDeque<u8> {
        text.bytes().collect()
    }

    #[test]
    fn a_panic_is_a_line_of_the_kernels_own() {
        for text in [
            "[    1.234567] Kernel panic - not syncing: VFS\r\n",
            "a\r\nKernel panic - not syncing: x",
            "[   12.0][  T1] Kernel panic - not syncing: x"
                .replace("[  T1] ", "")
                .as_str(),
        ] {
            assert!(has_panic(&tail(text)), "{text}");
        }
        for text in ["grep: Kernel panic - not syncing", "Kernel panics", ""] {
            assert!(!has_panic(&tail(text)), "{text}");
        }
    }

    #[test]
    fn a_traced_line_is_no_guests() {
        assert!(is_traced(
            "[    0.1] hyp  TRACE call RMI_FEATURES(0x0) = 0x0, 0x1"
        ));
        assert!(is_traced("[    0.1] host TRACE exit a/0: interrupt"));
        for line in [
            "[    0.1] host INFO  exit a/0: interrupt",
            "[    0.1] host TRACE guest a: call x()",
            "call x()",
        ] {
            assert!(!is_traced(line), "{line}");
        }
    }

    #[test]
    fn a_reset_is_told_by_the_host_alone() {
        assert!(is_reset("guest debian13: reset"));
        for text in [
            "guest a: I say: reset",
            "guest a: resets",
            "guest a b: reset",
            "reset",
        ] {
            assert!(!is_reset(text), "{text}");
        }
    }

    #[test]
    fn last_words_have_no_marks_and_steer_no_terminal() {
        let words = last_words(&tail("one\r\nM-1 begin\n\u{1b}[31mtwo\u{7}\nM-"), "M-1");
        assert_eq!(words, ["one", "two"]);
        let words = last_words(&tail("\r\n\r\none\r\n\r\ntwo\r\n\r\n"), "M-1");
        assert_eq!(words, ["one", "", "two"]);
        assert_eq!(last_words(&tail("\r\n"), "M-1"), [""; 0]);
    }
}

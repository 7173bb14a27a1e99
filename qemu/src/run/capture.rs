//! Runs a machine to its end, or to a sign on its console, and keeps what it
//! said: for tests and benchmarks, which look at it afterwards.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use rmi::end::Token;

use super::ending::{self, Ending, Said};
use super::session::{Event, Session};
use crate::machine::virt::{Console, Machine};
use crate::ui;

/// A machine whose words are kept.
#[derive(Debug)]
pub struct Capture {
    session: Session,
    bare: bool,
    deadline: Instant,
    limit: Duration,
    patience: Option<Duration>,
    /// What is said is shown at once, too.
    pub shown: bool,
    token: Option<Token>,
    said: Option<Said>,
    /// All bytes of the console so far.
    pub console: Vec<u8>,
    /// All lines of the log, and of QEMU's own, so far.
    pub log: Vec<String>,
    /// Where the next search of the console begins.
    searched: usize,
}

impl Capture {
    /// Starts a machine that may run for `limit`.
    ///
    /// # Errors
    /// When QEMU cannot be started.
    pub fn start(machine: &Machine, limit: Duration, bare: bool) -> Result<Self> {
        Ok(Self {
            session: Session::start(machine, Console::Pipes)?,
            bare,
            deadline: Instant::now() + limit,
            limit,
            patience: None,
            shown: false,
            token: machine.end,
            said: None,
            console: Vec::new(),
            log: Vec::new(),
            searched: 0,
        })
    }

    /// The same, which [ends](Self::finish) when it says nothing for so long.
    pub fn patient_for(mut self, patience: Duration) -> Self {
        self.patience = Some(patience);
        self
    }

    /// Waits until the console says `sign`, after what was awaited before.
    ///
    /// # Errors
    /// When the machine ends or the time is over without it.
    pub fn until(&mut self, sign: &str) -> Result<()> {
        loop {
            let new = &self.console[self.searched..];
            if let Some(at) = new.windows(sign.len()).position(|w| w == sign.as_bytes()) {
                self.searched += at + sign.len();
                return Ok(());
            }
            match self.session.next(Some(self.deadline)) {
                Some(event) => self.take(event),
                None if self.session.is_over() => bail!("the machine ended before `{sign}`"),
                None => bail!("no `{sign}` within {} s", self.limit.as_secs()),
            }
        }
    }

    /// Waits until a line of the log has `sign` in it, from the first line on.
    ///
    /// # Errors
    /// When the machine ends or the time is over without it.
    pub fn until_logged(&mut self, sign: &str) -> Result<()> {
        let mut looked_at = 0;
        loop {
            if self.log[looked_at..].iter().any(|line| line.contains(sign)) {
                return Ok(());
            }
            looked_at = self.log.len();
            match self.session.next(Some(self.deadline)) {
                Some(event) => self.take(event),
                None if self.session.is_over() => bail!("the machine ended before `{sign}`"),
                None => bail!("no `{sign}` in the log within {} s", self.limit.as_secs()),
            }
        }
    }

    /// Waits until so many lines of the log have each of these `signs`.
    ///
    /// # Errors
    /// When the machine ends or the time is over before.
    pub fn until_logged_often(&mut self, signs: &[&str], times: usize) -> Result<()> {
        let mut counts = vec![0; signs.len()];
        let mut looked_at = 0;
        loop {
            for line in &self.log[looked_at..] {
                for (count, sign) in counts.iter_mut().zip(signs) {
                    *count += usize::from(line.contains(sign));
                }
            }
            looked_at = self.log.len();
            if counts.iter().all(|count| *count >= times) {
                return Ok(());
            }
            match self.session.next(Some(self.deadline)) {
                Some(event) => self.take(event),
                None => bail!("{signs:?} {counts:?} times, expected {times}"),
            }
        }
    }

    /// The lines of the log so far.
    pub fn log(&self) -> &[String] {
        &self.log
    }

    /// Asks for the last exits of every vCPU.
    ///
    /// # Errors
    /// When there is no way to ask.
    pub fn ask_last_exits(&mut self) -> Result<()> {
        ensure!(self.session.ask_last_exits(), "the machine is gone");
        Ok(())
    }

    /// Has QEMU killed as if somebody else had done it.
    ///
    /// # Errors
    /// When it has ended already.
    pub fn kill(&mut self) -> Result<()> {
        self.session.kill()
    }

    /// Types on the console.
    ///
    /// # Errors
    /// When the machine is gone.
    pub fn type_in(&mut self, text: &str) -> Result<()> {
        self.session.type_in(text)
    }

    /// Waits for the machine's end.
    ///
    /// # Errors
    /// When the child was lost.
    pub fn finish(&mut self) -> Result<Ending> {
        loop {
            let silent = self.patience.map(|patience| Instant::now() + patience);
            let until = silent.map_or(self.deadline, |silent| silent.min(self.deadline));
            match self.session.next(Some(until)) {
                Some(event) => self.take(event),
                None if self.session.is_over() => {
                    let status = self.session.wait()?;
                    return Ok(Ending::of(self.said, status, self.bare));
                }
                None => {
                    self.session.stop()?;
                    return Ok(match self.patience {
                        Some(patience) if until < self.deadline => Ending::Silent(patience),
                        _ => Ending::TimedOut(self.session.elapsed()),
                    });
                }
            }
        }
    }

    /// How long CPUs have worked for QEMU, when it has [ended](Self::finish) by
    /// itself, where that can be known.
    pub fn worked(&self) -> Option<Duration> {
        self.session.worked()
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Console(bytes) => {
                let from = self.console.iter().rposition(|byte| *byte == b'\n');
                let from = from.map_or(0, |at| at + 1);
                self.console.extend(bytes);
                if self.shown {
                    self.show(from);
                }
            }
            Event::Log(line) => {
                if self.shown {
                    ui::say(ending::shown(&line));
                }
                if let Some(said) = ending::said(&line, self.token) {
                    self.said = Some(said);
                }
                self.log.push(line);
            }
            Event::Qemu(line) => self.log.push(line),
            Event::Signal(_)
            | Event::Told
            | Event::Reset
            | Event::Deaf(_)
            | Event::Drained
            | Event::Closed => {}
        }
    }

    /// Shows the lines of the console from `from` on that are whole.
    fn show(&self, from: usize) {
        let text = &self.console[from..];
        let end = text.iter().rposition(|byte| *byte == b'\n').unwrap_or(0);
        let text = String::from_utf8_lossy(&text[..end]);
        text.lines().for_each(|line| ui::say(ui::plain(line)));
    }

    /// What was said last, for a report.
    pub fn last_words(&self) -> String {
        let console = String::from_utf8_lossy(&self.console);
        let console: Vec<&str> = console.lines().collect();
        let mut text = String::new();
        for line in &self.log[self.log.len().saturating_sub(20)..] {
            text += &format!("{line}\n");
        }
        for line in &console[console.len().saturating_sub(20)..] {
            text += &format!("  | {}\n", ui::plain(line).trim_end());
        }
        text
    }
}

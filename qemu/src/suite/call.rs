//! Calls a program as a user would, within a time limit, and checks what it
//! said and how it ended.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process_group};

use super::Context;
use crate::child::end_with_us;
use crate::ui;

/// How long a call of the runner may take in all, beyond its own `--timeout`.
pub const LIMIT: Duration = Duration::from_secs(660);

/// How long a program may take to end after it was asked to.
const CLEAN_UP: Duration = Duration::from_secs(5);

/// The patience that cases give a machine.
const TIMEOUT: &str = "600";

/// How a call ended.
#[derive(Clone, Debug)]
pub struct Called {
    /// The exit status; `None` for a signal.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// A call to make.
#[derive(Debug)]
pub struct Call {
    command: Command,
    stdin: Vec<u8>,
    stderr_shown: bool,
    unread: bool,
    limit: Duration,
}

impl Call {
    /// A call of any program.
    pub fn program(program: impl AsRef<OsStr>, limit: Duration) -> Self {
        Self::of(Command::new(program), limit)
    }

    /// A call of a command that is prepared already.
    pub fn of(command: Command, limit: Duration) -> Self {
        Self {
            command,
            stdin: Vec::new(),
            stderr_shown: false,
            unread: false,
            limit,
        }
    }

    /// `cargo qemu run` with the image under test.
    ///
    /// # Errors
    /// When there is no image.
    pub fn run(context: &Context) -> Result<Self> {
        let image = &context.image()?.file;
        Ok(Self::bare(context).args(["--image"]).args([image]))
    }

    /// `cargo qemu run` without an image.
    pub fn bare(context: &Context) -> Self {
        let mut call = Self::program(&context.runner, LIMIT);
        call.command.args(["run", "--timeout", TIMEOUT]);
        call
    }

    /// More arguments.
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    /// What it reads on standard input; nothing otherwise.
    pub fn stdin(self, text: &str) -> Self {
        self.stdin_bytes(text.as_bytes())
    }

    /// The same, of any bytes.
    pub fn stdin_bytes(mut self, bytes: &[u8]) -> Self {
        self.stdin = bytes.to_vec();
        self
    }

    /// Its standard output is read only when it has ended.
    pub fn unread(mut self) -> Self {
        self.unread = true;
        self
    }

    /// A variable less of its environment.
    pub fn without(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    /// A variable of its environment.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Where it runs.
    pub fn within(mut self, folder: &Path) -> Self {
        self.command.current_dir(folder);
        self
    }

    /// Whoever waits for it sees its standard error at once.
    pub fn stderr_shown(mut self) -> Self {
        self.stderr_shown = true;
        self
    }

    /// Makes the call.
    ///
    /// # Errors
    /// When it cannot be made or takes too long.
    pub fn call(mut self) -> Result<Called> {
        let begun = Instant::now();
        end_with_us(&mut self.command);
        let mut child = self
            .command
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(if self.stderr_shown {
                Stdio::inherit()
            } else {
                Stdio::piped()
            })
            .spawn()
            .with_context(|| format!("cannot run {:?}", self.command.get_program()))?;
        let _live = Live::begin(&child);
        if let Some(mut stdin) = child.stdin.take() {
            let text = std::mem::take(&mut self.stdin);
            // A program that does not read it all is judged by what it says.
            thread::spawn(move || stdin.write_all(&text));
        }
        let stderr = collect(child.stderr.take());
        let (ended, end) = mpsc::channel();
        let wait_for = self.unread.then_some(end);
        let stdout = collect_after(child.stdout.take(), wait_for);
        let left = || self.limit.saturating_sub(begun.elapsed());
        let read = |from: &mpsc::Receiver<Vec<u8>>| {
            let bytes = from.recv_timeout(left()).ok()?;
            Some(String::from_utf8_lossy(&bytes).into_owned())
        };
        // With its standard error closed it has ended, and may be read.
        let err = read(&stderr);
        drop(ended);
        let (Some(out), Some(err)) = (read(&stdout), err) else {
            // What it still says shows that it has cleaned up behind itself.
            signal_all(&child, Signal::TERM);
            let said = |from: &mpsc::Receiver<Vec<u8>>| {
                let bytes = from.recv_timeout(CLEAN_UP).unwrap_or_default();
                String::from_utf8_lossy(&bytes).into_owned()
            };
            let called = Called {
                code: None,
                stdout: said(&stdout),
                stderr: said(&stderr),
            };
            signal_all(&child, Signal::KILL);
            child.wait().context("the program was lost")?;
            bail!(
                "still running after {} s\n{}",
                self.limit.as_secs(),
                called.last_words()
            );
        };
        let status = child.wait().context("the program was lost")?;
        Ok(Called {
            code: status.code(),
            stdout: out,
            stderr: err,
        })
    }
}

/// Process groups of calls under way.
static LIVE: Mutex<Vec<u32>> = Mutex::new(Vec::new());

/// Ends all calls that are under way.
pub fn end_all() {
    for group in LIVE.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        signal_group(*group, Signal::TERM);
    }
}

/// A call under way.
struct Live(u32);

impl Live {
    fn begin(child: &Child) -> Self {
        let mut live = LIVE.lock().unwrap_or_else(PoisonError::into_inner);
        live.push(child.id());
        Self(child.id())
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        let mut live = LIVE.lock().unwrap_or_else(PoisonError::into_inner);
        live.retain(|group| *group != self.0);
    }
}

/// Sends a signal to a child and to its own children.
fn signal_all(child: &Child, signal: Signal) {
    signal_group(child.id(), signal);
}

fn signal_group(group: u32, signal: Signal) {
    let group = i32::try_from(group).ok().and_then(Pid::from_raw);
    if let Some(group) = group {
        // An error means that all of them have ended.
        let _ = kill_process_group(group, signal);
    }
}

fn collect(from: Option<impl Read + Send + 'static>) -> mpsc::Receiver<Vec<u8>> {
    collect_after(from, None)
}

/// Collects what comes after `end` is dropped, where there is one.
fn collect_after(
    from: Option<impl Read + Send + 'static>,
    end: Option<mpsc::Receiver<()>>,
) -> mpsc::Receiver<Vec<u8>> {
    let (to, receiver) = mpsc::channel();
    thread::spawn(move || {
        // An error means that it is dropped, which is what is waited for.
        let _ = end.map(|end| end.recv());
        let mut bytes = Vec::new();
        if let Some(mut from) = from {
            // What was read before an error counts.
            let _ = from.read_to_end(&mut bytes);
        }
        // Nobody waits any more after the limit.
        let _ = to.send(bytes);
    });
    receiver
}

impl Called {
    /// Asks for an exit status.
    ///
    /// # Errors
    /// When it was another; the message has what was said last.
    pub fn ended(self, code: i32) -> Result<Self> {
        ensure!(
            self.code == Some(code),
            "ended with {}, expected {code}\n{}",
            self.code
                .map_or_else(|| "a signal".into(), |code| code.to_string()),
            self.last_words()
        );
        Ok(self)
    }

    /// Asks for a failure: any exit status but 0, no signal.
    ///
    /// # Errors
    /// When it succeeded.
    pub fn failed(self) -> Result<Self> {
        ensure!(
            self.code.is_some_and(|code| code != 0),
            "ended with {:?}, expected a failure\n{}",
            self.code,
            self.last_words()
        );
        Ok(self)
    }

    /// Asks for standard output, exactly.
    ///
    /// # Errors
    /// When it was another.
    pub fn printed(self, text: &str) -> Result<Self> {
        ensure!(
            self.stdout == text,
            "printed {:?}, expected {text:?}\n{}",
            self.stdout,
            self.last_words()
        );
        Ok(self)
    }

    /// Asks for all of `parts` in standard output, in any case of letters.
    ///
    /// # Errors
    /// When one is missing.
    pub fn shows(self, parts: &[&str]) -> Result<Self> {
        has(&self.stdout, parts)
            .with_context(|| format!("standard output\n{}", self.last_words()))?;
        Ok(self)
    }

    /// Asks for all of `parts` in one line of standard error, in any case of
    /// letters.
    ///
    /// # Errors
    /// When there is no such line.
    pub fn tells(self, parts: &[&str]) -> Result<Self> {
        let holds = |line: &str| parts.iter().all(|part| contains(line, part));
        ensure!(
            self.stderr.lines().any(holds),
            "no line of the log or of the errors has all of {parts:?}\n{}",
            self.last_words()
        );
        Ok(self)
    }

    /// Asks that there is nothing of an internal failure.
    ///
    /// # Errors
    /// When there is.
    pub fn calmly(self) -> Result<Self> {
        let ends = |line: &str| line.contains("end: ") && line.ends_with(" panic");
        ensure!(
            !self.stderr.lines().any(ends),
            "Undercroft failed\n{}",
            self.last_words()
        );
        for sign in [
            "end: panic",
            "panicked at",
            "stack backtrace",
            "RUST_BACKTRACE",
        ] {
            ensure!(
                !self.stderr.contains(sign),
                "it said `{sign}`\n{}",
                self.last_words()
            );
        }
        Ok(self)
    }

    fn last_words(&self) -> String {
        let mut text = String::new();
        for (mark, from) in [('>', &self.stdout), ('|', &self.stderr)] {
            let lines: Vec<_> = from.lines().collect();
            for line in &lines[lines.len().saturating_sub(25)..] {
                // A String takes all that is written.
                let _ = writeln!(text, "  {mark} {}", ui::plain(line));
            }
        }
        text
    }
}

fn contains(text: &str, part: &str) -> bool {
    text.to_lowercase().contains(&part.to_lowercase())
}

fn has(text: &str, parts: &[&str]) -> Result<()> {
    for part in parts {
        ensure!(contains(text, part), "`{part}` is missing");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_takes_too_long_ends_with_what_it_said() {
        let begun = Instant::now();
        let call = Call::program("sh", Duration::from_secs(1));
        let error = call
            .args(["-c", "echo begun; sleep 1000 & wait"])
            .call()
            .expect_err("hangs");
        let text = error.to_string();
        assert!(text.contains("still running after 1 s"), "{text}");
        assert!(begun.elapsed() < Duration::from_secs(100));
    }

    #[test]
    fn what_was_said_is_checked() {
        let call = |script: &str| {
            let call = Call::program("sh", Duration::from_secs(60)).args(["-c", script]);
            call.stdin("in").call().expect("runs")
        };
        let called = call("cat; echo Error: file.toml:3: key >&2; exit 3");
        called
            .clone()
            .ended(3)
            .expect("status")
            .printed("in")
            .expect("output");
        called
            .clone()
            .tells(&["error", "file.toml:3:", "key"])
            .expect("one line has all");
        assert!(called.clone().ended(0).is_err());
        assert!(called.clone().printed("out").is_err());
        assert!(called.tells(&["error", "other"]).is_err());
        assert!(
            call("kill -9 $$").failed().is_err(),
            "a signal is no answer"
        );
        assert!(
            call("echo thread panicked at x >&2; exit 1")
                .calmly()
                .is_err()
        );
    }
}

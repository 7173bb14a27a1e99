//! A program at a terminal of 80 columns, as a person has it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{ioctl_tiocsctty, setsid};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::child::end_with_us;
use crate::ui;

/// The terminal's columns.
pub const COLUMNS: u16 = 80;

/// A program at a terminal.
pub struct Pty {
    child: Child,
    terminal: File,
    output: Receiver<Vec<u8>>,
    deadline: Instant,
    /// All that was shown so far.
    pub shown: Vec<u8>,
    searched: usize,
}

/// The same program, with the signals of a terminal as a login has them: whoever runs the
/// suite may ignore them, as `nohup` does, and what is started inherits that.
fn as_at_login(command: &Command) -> Command {
    let mut login = Command::new("env");
    login
        .arg("--default-signal=INT,HUP,TERM")
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => login.env(name, value),
            None => login.env_remove(name),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        login.current_dir(folder);
    }
    login
}

impl Pty {
    /// Starts a program, which may take `limit` in all.
    ///
    /// # Errors
    /// When there is no terminal, or the program cannot be started.
    pub fn start(command: Command, limit: Duration) -> Result<Self> {
        let mut command = as_at_login(&command);
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).context("no terminal")?;
        grantpt(&ours)?;
        unlockpt(&ours)?;
        let name = ptsname(&ours, Vec::new())?;
        let size = Winsize {
            ws_row: 25,
            ws_col: COLUMNS,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&ours, size)?;
        let theirs = File::options()
            .read(true)
            .write(true)
            .open(name.to_str()?)?;
        command
            .stdin(Stdio::from(theirs.try_clone()?))
            .stdout(Stdio::from(theirs.try_clone()?))
            .stderr(Stdio::from(theirs));
        let own_session = || {
            setsid()?;
            ioctl_tiocsctty(rustix::stdio::stdin())?;
            Ok(())
        };
        // SAFETY: between fork and exec the hook makes two system calls; it takes
        // no lock and allocates nothing.
        unsafe { command.pre_exec(own_session) };
        end_with_us(&mut command);
        let child = command.spawn().context("cannot run it")?;
        // Our copies of its end must close, or its end would go unseen.
        drop(command);
        let terminal = File::from(ours);
        let mut from = terminal.try_clone()?;
        let (to, output) = mpsc::channel();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                match from.read(&mut buffer) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    // EIO: the last program at the terminal is gone.
                    Ok(0) | Err(_) => return,
                    Ok(count) => {
                        if to.send(buffer[..count].to_vec()).is_err() {
                            return;
                        }
                    }
                }
            }
        });
        Ok(Self {
            child,
            terminal,
            output,
            deadline: Instant::now() + limit,
            shown: Vec::new(),
            searched: 0,
        })
    }

    /// Types.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub fn type_in(&mut self, text: &str) -> Result<()> {
        self.terminal
            .write_all(text.as_bytes())
            .context("the terminal is gone")
    }

    /// Waits until `sign` is shown, after what was awaited before.
    ///
    /// # Errors
    /// When the program ends or the time is over without it.
    pub fn until(&mut self, sign: &str) -> Result<()> {
        loop {
            let new = &self.shown[self.searched..];
            if let Some(at) = new.windows(sign.len()).position(|w| w == sign.as_bytes()) {
                self.searched += at + sign.len();
                return Ok(());
            }
            if !self.more()? {
                bail!("it ended before `{sign}`:\n{}", self.text());
            }
        }
    }

    /// What was shown up to the end of what was awaited last; more may have come
    /// with it.
    pub fn until_now(&self) -> String {
        String::from_utf8_lossy(&self.shown[..self.searched]).into_owned()
    }

    /// Waits for the program's end, and returns its exit status.
    ///
    /// # Errors
    /// When the time is over before.
    pub fn finish(&mut self) -> Result<Option<i32>> {
        while self.more()? {}
        Ok(self.child.wait().context("the program was lost")?.code())
    }

    fn more(&mut self) -> Result<bool> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        match self.output.recv_timeout(left) {
            Ok(bytes) => {
                self.shown.extend(bytes);
                Ok(true)
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => Ok(false),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                bail!("it takes too long:\n{}", self.text())
            }
        }
    }

    /// What was shown, without what only moved the cursor.
    pub fn text(&self) -> String {
        self.lines().join("\n")
    }

    /// The lines that were shown, each as often as it was drawn.
    pub fn lines(&self) -> Vec<String> {
        let text = String::from_utf8_lossy(&self.shown).into_owned();
        // Going up or to a line's beginning is how a line is drawn anew.
        let anew = ["\u{1b}[1A", "\u{1b}[2K", "\u{1b}[K"];
        let text = anew
            .iter()
            .fold(text, |text, code| text.replace(code, "\n"));
        text.split(['\n', '\r'])
            .map(ui::plain)
            .filter(|line| !line.trim().is_empty())
            .collect()
    }
}

impl Drop for Pty {
    fn drop(&mut self) {
        // Errors mean that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

//! A machine that runs: QEMU as a child, its console, its log, its end.
//!
//! Everything that happens arrives as one stream of [`Event`]s. Readers are
//! threads that end when QEMU does; QEMU ends when the session is dropped, or
//! when the runner itself dies.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use command_fds::{CommandFdExt, FdMapping};

use super::one_uart::{Part, Splitter};
use super::outlet::{Room, Taken};
use super::qmp::{self, Cpus, Qmp, Start};
use crate::child::{cpu_time, end_with_us};
use crate::machine::virt::{Console, Control, Machine};

/// Where QEMU finds the sockets that it inherits.
const LOG_FD: i32 = 3;
const MONITOR_FD: i32 = 4;

/// The byte that asks `host-loader` for the last exits of every vCPU: Ctrl-T,
/// on the log's UART.
const LAST_EXITS: u8 = 0x14;

/// Something that a machine, or somebody else, did.
#[derive(Clone, Debug)]
pub enum Event {
    /// Bytes of the guest's console.
    Console(Vec<u8>),
    /// A line of the log.
    Log(String),
    /// A line of QEMU's own.
    Qemu(String),
    /// A signal to the runner.
    Signal(i32),
    /// QEMU ends because it was told to, for instance by Ctrl-a x.
    Told,
    /// QEMU ends because what runs on the machine has reset it.
    Reset,
    /// Standard output cannot be written, and why; `None` where its reader has gone.
    Deaf(Option<String>),
    /// All that was to be written has been.
    Drained,
    /// QEMU has closed one of its outputs; there are as many as readers.
    Closed,
}

/// An event, and the room that its bytes take until they are written.
#[derive(Debug)]
pub struct Sent {
    /// The event.
    pub event: Event,
    taken: Taken,
}

impl From<Event> for Sent {
    fn from(event: Event) -> Self {
        Self {
            event,
            taken: Taken::default(),
        }
    }
}

/// A machine that runs.
pub struct Session {
    child: Child,
    stdin: Option<ChildStdin>,
    log: Option<UnixStream>,
    qmp: Qmp,
    events: Receiver<Sent>,
    sender: Sender<Sent>,
    room: Arc<Room>,
    /// Of the event that was taken last.
    taken: Taken,
    readers: usize,
    begun: Instant,
    worked: Option<Duration>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("qemu", &self.child.id())
            .finish_non_exhaustive()
    }
}

impl Session {
    /// Starts the machine.
    ///
    /// # Errors
    /// When QEMU cannot be started.
    pub fn start(machine: &Machine, console: Console) -> Result<Self> {
        Self::begin(machine, console, &[])
    }

    /// Starts the machine, unless its CPUs begin where they cannot run what is on
    /// it.
    ///
    /// # Errors
    /// When QEMU cannot be started, or its CPUs are not of the right kind.
    pub fn start_checked(machine: &Machine, console: Console) -> Result<Self> {
        let mut session = Self::begin(machine, console, &["-S"])?;
        let registers = session.qmp.registers(Cpus::First, None);
        check(qmp::start(&registers), machine)?;
        if machine.debugger.is_none() {
            session.qmp.go();
        }
        Ok(session)
    }

    fn begin(machine: &Machine, console: Console, arguments: &[&str]) -> Result<Self> {
        let (log, log_of_qemu) = UnixStream::pair().context("cannot make a socket")?;
        let (monitor, monitor_of_qemu) = UnixStream::pair().context("cannot make a socket")?;
        let control = Control::Sockets {
            log: LOG_FD,
            monitor: MONITOR_FD,
        };
        let mut command = Command::new(&machine.qemu.program);
        command.args(machine.arguments(console, control));
        command.args(arguments);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .fd_mappings(vec![
                FdMapping {
                    parent_fd: OwnedFd::from(log_of_qemu),
                    child_fd: LOG_FD,
                },
                FdMapping {
                    parent_fd: OwnedFd::from(monitor_of_qemu),
                    child_fd: MONITOR_FD,
                },
            ])
            .context("two sockets for one number")?;
        // What a terminal or a shell sends to all of a job is ours to pass on, or not.
        command.process_group(0);
        end_with_us(&mut command);
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot run {}", machine.qemu.program.display()))?;
        // Our copies of QEMU's ends must close, or its end would go unseen.
        drop(command);

        let (sender, events) = mpsc::channel();
        let (qmp, listener) = qmp::open(monitor)?;
        let mut session = Self {
            stdin: child.stdin.take(),
            log: None,
            qmp,
            events,
            sender,
            room: Arc::default(),
            taken: Taken::default(),
            readers: 0,
            begun: Instant::now(),
            worked: None,
            child,
        };
        if let Some(stdout) = session.child.stdout.take() {
            let splitter = if machine.log_uart {
                Splitter::apart(machine.end)
            } else {
                Splitter::new(machine.end)
            };
            session.reader(move |to| read_console(stdout, to, splitter));
        }
        if let Some(stderr) = session.child.stderr.take() {
            session.reader(move |to| read_lines(stderr, to, Event::Qemu));
        }
        if machine.log_uart {
            session.log = Some(log.try_clone().context("cannot copy a socket")?);
            session.reader(move |to| read_lines(log, to, Event::Log));
        }
        session.reader(move |to| {
            listener.listen(|name, data| {
                let event = match (name, data["reason"].as_str()) {
                    ("SHUTDOWN", Some("host-qmp-quit" | "host-ui")) => Event::Told,
                    ("SHUTDOWN", Some("guest-reset")) => Event::Reset,
                    _ => return,
                };
                to.send(event, 0);
            });
        });
        session.qmp.begin();
        Ok(session)
    }

    fn reader(&mut self, read: impl FnOnce(&Way) + Send + 'static) {
        self.readers += 1;
        let way = Way {
            to: self.sender.clone(),
            room: self.room.clone(),
        };
        thread::spawn(move || {
            read(&way);
            way.send(Event::Closed, 0);
        });
    }

    /// Through which others report events, such as signals.
    pub fn sender(&self) -> Sender<Sent> {
        self.sender.clone()
    }

    /// How long the machine has run.
    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// The next event; `None` when there was none until `deadline`, or when
    /// QEMU has closed everything.
    pub fn next(&mut self, deadline: Option<Instant>) -> Option<Event> {
        while self.readers > 0 {
            match self.receive(deadline)? {
                Event::Closed => self.readers -= 1,
                event => return Some(event),
            }
        }
        None
    }

    /// As [`Session::next`], after QEMU has closed everything.
    pub fn next_after_end(&mut self, deadline: Option<Instant>) -> Option<Event> {
        self.receive(deadline)
    }

    fn receive(&mut self, deadline: Option<Instant>) -> Option<Event> {
        self.taken = Taken::default();
        let sent = match deadline {
            None => self.events.recv().ok()?,
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                match self.events.recv_timeout(left) {
                    Ok(sent) => sent,
                    Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                        return None;
                    }
                }
            }
        };
        self.taken = sent.taken;
        Some(sent.event)
    }

    /// The room that the last event's bytes take: whoever keeps them keeps it.
    pub fn taken(&mut self) -> Taken {
        std::mem::take(&mut self.taken)
    }

    /// Whether QEMU has closed everything, and no event will come.
    pub fn is_over(&self) -> bool {
        self.readers == 0
    }

    /// Where bytes for the guest's console go; taken once.
    pub fn take_input(&mut self) -> Option<ChildStdin> {
        self.stdin.take()
    }

    /// Types `text` on the guest's console.
    ///
    /// # Errors
    /// When QEMU is gone.
    pub fn type_in(&mut self, text: &str) -> Result<()> {
        let stdin = self
            .stdin
            .as_mut()
            .context("the console's input is elsewhere")?;
        stdin
            .write_all(text.as_bytes())
            .context("the machine is gone")?;
        stdin.flush().context("the machine is gone")
    }

    /// Asks `host-loader` for the last exits of every vCPU; they come as lines
    /// of the log. Returns whether there is a way to ask.
    pub fn ask_last_exits(&mut self) -> bool {
        let byte = [LAST_EXITS];
        match (&mut self.log, &mut self.stdin) {
            (Some(log), _) => log.write_all(&byte).is_ok(),
            (None, Some(stdin)) => stdin.write_all(&byte).and_then(|()| stdin.flush()).is_ok(),
            (None, None) => false,
        }
    }

    /// Asks QEMU's monitor for the registers of all CPUs.
    pub fn registers(&mut self) -> String {
        // A monitor that does not answer is not waited for for long.
        self.qmp.registers(Cpus::All, Some(Duration::from_secs(2)))
    }

    /// Has QEMU killed as if somebody else had done it.
    ///
    /// # Errors
    /// When it has ended already.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().context("QEMU is gone")
    }

    /// Ends QEMU if it still runs, and waits for it.
    ///
    /// # Errors
    /// When the child was lost.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        // An error means that it has ended already.
        let _ = self.child.kill();
        self.child.wait().context("QEMU was lost")
    }

    /// Waits for QEMU, which has closed its outputs.
    ///
    /// # Errors
    /// When the child was lost.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        self.worked = self.worked.or_else(|| cpu_time(&self.child));
        self.child.wait().context("QEMU was lost")
    }

    /// How long CPUs have worked for QEMU, once it was [waited for](Self::wait), where
    /// that can be known.
    pub fn worked(&self) -> Option<Duration> {
        self.worked
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Errors mean that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Refuses CPUs that cannot run what is on the machine.
fn check(start: Start, machine: &Machine) -> Result<()> {
    match (start, machine.el2) {
        (Start::Aarch32, _) => bail!(
            "--cpu {}: it has no AArch64 to run 64-bit code in: take one that has, such as \
             max, cortex-a72 or neoverse-n1",
            machine.cpu
        ),
        (Start::Level(level @ (0 | 1)), true) => bail!(
            "--cpu {}: it starts at EL{level}, and Undercroft needs EL2: take a CPU that has \
             EL2, and QEMU's `virtualization=on`",
            machine.cpu
        ),
        // A machine that says nothing has ended; its own words tell why.
        (Start::Level(_) | Start::Unknown, _) => Ok(()),
    }
}

/// A reader's way to the session.
struct Way {
    to: Sender<Sent>,
    room: Arc<Room>,
}

impl Way {
    /// Sends an event of so many bytes; whether somebody listens.
    fn send(&self, event: Event, bytes: usize) -> bool {
        let taken = match bytes {
            0 => Taken::default(),
            bytes => self.room.take(bytes),
        };
        self.to.send(Sent { event, taken }).is_ok()
    }
}

fn read_console(mut from: impl Read, to: &Way, mut splitter: Splitter) {
    let mut buffer = [0; 4096];
    let send = |parts: Vec<Part>| {
        parts.into_iter().all(|part| match part {
            Part::Console(bytes) => {
                let count = bytes.len();
                to.send(Event::Console(bytes), count)
            }
            Part::Log(line) => {
                let count = line.len();
                to.send(Event::Log(line), count)
            }
        })
    };
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        if !send(splitter.feed(&buffer[..count])) {
            return;
        }
    }
    send(splitter.rest());
}

/// Reads lines, bounded in length, whatever bytes they hold.
fn read_lines(from: impl Read, to: &Way, event: fn(String) -> Event) {
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    loop {
        line.clear();
        match from.by_ref().take(16 << 10).read_until(b'\n', &mut line) {
            Ok(0) => return,
            Ok(count) => {
                let text = String::from_utf8_lossy(&line).trim_end().to_string();
                if !to.send(event(text), count) {
                    return;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

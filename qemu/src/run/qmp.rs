//! QEMU's control channel, QMP (docs/interop/qmp-spec): JSON lines over a
//! socket. What QEMU reports by itself becomes an event of the session; what it
//! answers is awaited.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// The longest line that is read: a dump of the registers of many CPUs.
const LONGEST: u64 = 4 << 20;

/// Our end of the channel.
#[derive(Debug)]
pub struct Qmp {
    to: UnixStream,
    answers: Receiver<Value>,
}

/// The reading side, for a thread of its own.
#[derive(Debug)]
pub struct Listener {
    from: UnixStream,
    answers: Sender<Value>,
}

/// Both sides of the channel that `socket` is.
///
/// # Errors
/// When the socket cannot be copied.
pub fn open(socket: UnixStream) -> Result<(Qmp, Listener)> {
    let from = socket.try_clone().context("cannot copy a socket")?;
    let (to, answers) = mpsc::channel();
    let qmp = Qmp {
        to: socket,
        answers,
    };
    Ok((qmp, Listener { from, answers: to }))
}

impl Listener {
    /// Reads until QEMU is gone; whatever QEMU reports by itself goes to `event`
    /// with its name.
    pub fn listen(self, mut event: impl FnMut(&str, &Value)) {
        let mut from = BufReader::new(self.from);
        let mut line = Vec::new();
        loop {
            line.clear();
            match from.by_ref().take(LONGEST).read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            let Ok(value) = serde_json::from_slice::<Value>(&line) else {
                continue;
            };
            if let Some(name) = value["event"].as_str() {
                event(name, &value["data"]);
            } else if value.get("QMP").is_none() {
                // Nobody waits any more: then it does not matter.
                let _ = self.answers.send(value);
            }
        }
    }
}

impl Qmp {
    /// Begins the conversation: without it QEMU answers nothing else.
    pub fn begin(&mut self) {
        self.call(&json!({ "execute": "qmp_capabilities" }), None);
    }

    /// Lets a machine run that was started stopped.
    pub fn go(&mut self) {
        self.call(&json!({ "execute": "cont" }), None);
    }

    /// The registers of the CPUs as QEMU's monitor shows them, of all of them or
    /// of the first; nothing if it does not answer within `patience`.
    pub fn registers(&mut self, which: Cpus, patience: Option<Duration>) -> String {
        let line = match which {
            Cpus::First => "info registers",
            Cpus::All => "info registers -a",
        };
        let command = json!({
            "execute": "human-monitor-command",
            "arguments": { "command-line": line },
        });
        let answer = self.call(&command, patience);
        let text = answer.as_ref().and_then(|answer| answer["return"].as_str());
        text.unwrap_or_default().replace('\r', "")
    }

    /// Calls a command and waits for its answer, without end unless `patience`
    /// says otherwise: QEMU answers or ends.
    fn call(&mut self, command: &Value, patience: Option<Duration>) -> Option<Value> {
        // Of a call that was not waited for.
        while self.answers.try_recv().is_ok() {}
        self.to.write_all(format!("{command}\n").as_bytes()).ok()?;
        match patience {
            None => self.answers.recv().ok(),
            Some(patience) => self.answers.recv_timeout(patience).ok(),
        }
    }
}

/// Which CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cpus {
    /// The first.
    First,
    /// All of them.
    All,
}

/// How a CPU starts, by the registers that QEMU's monitor shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// In AArch32: it has no AArch64, or does not begin in it.
    Aarch32,
    /// In AArch64, at this exception level.
    Level(u8),
    /// It does not say.
    Unknown,
}

/// Reads `PSTATE=400003c9 -Z-- EL2h …` or, in AArch32, `PSR=400001da … hyp32`.
/// From QEMU 11.1 on PSTATE has 16 digits.
pub fn start(registers: &str) -> Start {
    let word = |name: &str| {
        let (_, rest) = registers.split_once(name)?;
        let digits = rest.split(|c: char| !c.is_ascii_hexdigit()).next()?;
        // Fewer are the beginning of a dump that was cut.
        let whole = digits.len() >= 8;
        u64::from_str_radix(digits, 16).ok().filter(|_| whole)
    };
    match (word("PSTATE="), word("PSR=")) {
        // PSTATE.M[3:2], Arm ARM C5.2.20 (SPSR_EL2).
        (Some(pstate), _) => Start::Level((pstate >> 2) as u8 & 3),
        (None, Some(_)) => Start::Aarch32,
        (None, None) => Start::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn where_a_cpu_starts_is_read_from_its_registers() {
        for (text, expected) in [
            (
                " PC=0 X00=0\nPSTATE=400003c9 -Z-- EL2h  SVCR=0",
                Start::Level(2),
            ),
            ("PSTATE=400003c5 -Z-- EL1h    FPU disabled", Start::Level(1)),
            ("PSTATE=00000000400003c9 -Z-- EL2h  SVCR=0", Start::Level(2)),
            ("PSTATE=000003cd ---- S EL3h", Start::Level(3)),
            ("R00=00000000\nPSR=400001da -Z-- A hyp32", Start::Aarch32),
            ("", Start::Unknown),
            ("PSTATE=4", Start::Unknown),
        ] {
            assert_eq!(start(text), expected, "{text}");
        }
    }

    #[test]
    fn answers_and_events_are_told_apart() {
        let (ours, theirs) = UnixStream::pair().expect("sockets");
        let (mut qmp, listener) = open(ours).expect("opens");
        let emulator = thread::spawn(move || {
            let mut out = theirs.try_clone().expect("copies");
            out.write_all(b"{\"QMP\": {}}\nnonsense\n").expect("greets");
            for line in BufReader::new(theirs).lines().map_while(Result::ok) {
                let answer = if line.contains("human-monitor") {
                    "{\"event\": \"RESUME\"}\n{\"return\": \"PSTATE=00000009\\r\\n\"}\n"
                } else {
                    "{\"return\": {}}\n"
                };
                out.write_all(answer.as_bytes()).expect("answers");
            }
        });
        let listening = thread::spawn(move || {
            let mut names = Vec::new();
            listener.listen(|name, _| names.push(name.to_string()));
            names
        });
        qmp.begin();
        let registers = qmp.registers(Cpus::All, None);
        assert_eq!(registers, "PSTATE=00000009\n");
        qmp.go();
        qmp.to.shutdown(std::net::Shutdown::Both).expect("closes");
        emulator.join().expect("ends");
        assert_eq!(listening.join().expect("ends"), ["RESUME"]);
    }
}

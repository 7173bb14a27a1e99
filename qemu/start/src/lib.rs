//! A build by cargo whose own messages are kept back: what it is at, while it
//! goes well, and all that it said, when it does not.
//!
//! Cargo tells how far it is in its progress bar alone, so it is asked for that
//! bar, and the bar is read: `Building [==>  ] 12/90: syn, serde`.

use std::io::{self, Read};
use std::process::{Command, Stdio};
use std::thread;

/// How wide cargo takes its terminal to be: wide enough for the names of what
/// it compiles.
const WIDTH: &str = "200";

/// What cargo is at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum At {
    /// Of so many units, so many are done; these are under way.
    Building {
        /// Units that are done.
        done: u32,
        /// All units.
        of: u32,
        /// Names of those under way.
        what: String,
    },
    /// Something else, in cargo's words: `Downloading crates …`, `Blocking
    /// waiting for file lock on build directory`.
    Other(String),
}

/// How a build went.
#[derive(Debug)]
pub struct Built {
    /// Whether it succeeded.
    pub well: bool,
    /// Cargo's standard output: messages for programs.
    pub stdout: Vec<u8>,
    /// Cargo's messages for people, without those about its progress.
    pub said: Vec<u8>,
}

/// Runs a build, which `command` describes but for how it is to be told, and
/// calls `at` whenever cargo is at something else.
///
/// # Errors
/// When cargo cannot be run.
pub fn build(command: &mut Command, colour: bool, mut at: impl FnMut(At)) -> io::Result<Built> {
    let mut child = command
        .env("CARGO_TERM_PROGRESS_WHEN", "always")
        .env("CARGO_TERM_PROGRESS_WIDTH", WIDTH)
        .env("CARGO_TERM_COLOR", if colour { "always" } else { "never" })
        .env("CARGO_TERM_QUIET", "false")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let stdout = child.stdout.take();
    let messages = thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read before an error counts; the exit status tells the rest.
        let _ = stdout.map(|mut from| from.read_to_end(&mut bytes));
        bytes
    });
    let mut said = Vec::new();
    if let Some(mut from) = child.stderr.take() {
        let mut lines = Lines::default();
        let mut buffer = [0; 4096];
        loop {
            let count = match from.read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Ok(0) | Err(_) => break,
                Ok(count) => count,
            };
            lines.feed(&buffer[..count], &mut |line| take(line, &mut said, &mut at));
        }
        lines.rest(&mut |line| take(line, &mut said, &mut at));
    }
    Ok(Built {
        well: child.wait()?.success(),
        stdout: messages.join().unwrap_or_default(),
        said,
    })
}

/// A line of cargo's: where it is, or something to keep.
fn take(line: &[u8], said: &mut Vec<u8>, at: &mut impl FnMut(At)) {
    let text = plain(line);
    match read(text.trim()) {
        Some(now) => at(now),
        None if text.trim().is_empty() && said.is_empty() => {}
        None => {
            said.extend_from_slice(line);
            said.push(b'\n');
        }
    }
}

/// What a line says about the progress, if it does.
fn read(line: &str) -> Option<At> {
    let (verb, rest) = line.split_once(' ')?;
    if verb == "Building" {
        let (_, rest) = rest.split_once("] ")?;
        let (counts, what) = rest.split_once(": ").unwrap_or((rest, ""));
        let (done, of) = counts.split_once('/')?;
        return Some(At::Building {
            done: done.parse().ok()?,
            of: of.trim().parse().ok()?,
            what: what.trim().into(),
        });
    }
    let known = [
        "Compiling",
        "Checking",
        "Fresh",
        "Finished",
        "Downloading",
        "Downloaded",
        "Updating",
        "Locking",
        "Adding",
        "Blocking",
        "Fetch",
        "Unpacking",
    ];
    known.contains(&verb).then(|| At::Other(line.into()))
}

/// Text without what moves a terminal's cursor or colours its letters.
fn plain(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let mut plain = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c == '\u{1b}' {
            // `ESC [ … letter`, or `ESC ] … BEL` around a link.
            match chars.next() {
                Some('[') => drop(chars.find(|c| c.is_ascii_alphabetic())),
                Some(']') => drop(chars.find(|c| ['\u{7}', '\\'].contains(c))),
                _ => {}
            }
        } else if !c.is_control() {
            plain.push(c);
        }
    }
    plain
}

/// Cuts a stream into lines, which end with CR, LF or both.
#[derive(Default)]
struct Lines {
    line: Vec<u8>,
    /// A CR has ended the last line: an LF behind it belongs to it.
    returned: bool,
}

impl Lines {
    fn feed(&mut self, bytes: &[u8], to: &mut impl FnMut(&[u8])) {
        for byte in bytes {
            let returned = std::mem::replace(&mut self.returned, *byte == b'\r');
            match byte {
                b'\n' if returned => {}
                b'\n' => {
                    to(&self.line);
                    self.line.clear();
                }
                b'\r' => self.rest(to),
                byte => self.line.push(*byte),
            }
        }
    }

    fn rest(&mut self, to: &mut impl FnMut(&[u8])) {
        if !self.line.is_empty() {
            to(&self.line);
            self.line.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLD: &[u8] = b"\x1b[1m\x1b[92m   Compiling\x1b[0m syn v2.0.1\n\
        \x1b[1m\x1b[96m    Building\x1b[0m [==>    ] 12/90: syn, serde(build)   \r\x1b[K\
        warning: unused variable\n\n  --> src/lib.rs:1:1\r\n\
        \x1b[1m\x1b[96m    Building\x1b[0m [==>    ] 13/90: serde\r\
        \x1b[K\x1b[1m\x1b[92m    Finished\x1b[0m `dev` profile in 1.2s\n";

    #[test]
    fn progress_is_read_and_the_rest_is_kept_however_it_arrives() {
        for chunk in 1..COLD.len() {
            let (mut said, mut seen) = (Vec::new(), Vec::new());
            let mut lines = Lines::default();
            let mut line = |line: &[u8]| take(line, &mut said, &mut |at| seen.push(at));
            for part in COLD.chunks(chunk) {
                lines.feed(part, &mut line);
            }
            lines.rest(&mut line);
            let building = |done, what: &str| At::Building {
                done,
                of: 90,
                what: what.into(),
            };
            assert_eq!(seen[0], At::Other("Compiling syn v2.0.1".into()));
            assert_eq!(seen[1], building(12, "syn, serde(build)"));
            assert_eq!(seen[2], building(13, "serde"));
            assert_eq!(seen.len(), 4, "{seen:?}");
            let said = plain_lines(&said);
            assert_eq!(
                said,
                ["warning: unused variable", "", "  --> src/lib.rs:1:1"],
                "chunks of {chunk}"
            );
        }
    }

    fn plain_lines(said: &[u8]) -> Vec<String> {
        said.strip_suffix(b"\n")
            .unwrap_or(said)
            .split(|b| *b == b'\n')
            .map(plain)
            .collect()
    }

    #[test]
    fn what_only_looks_like_progress_is_kept() {
        for line in [
            "error: linker `cc` not found",
            "Building blocks",
            "Building [=> ] many/2: x",
        ] {
            assert_eq!(read(line), None, "{line}");
        }
    }

    #[test]
    fn a_build_that_fails_says_why() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo out; echo 'error: no' >&2; exit 101"]);
        let built = build(&mut command, false, |_| ()).expect("runs");
        assert!(!built.well);
        assert_eq!(built.stdout, b"out\n");
        assert_eq!(built.said, b"error: no\n");
    }
}

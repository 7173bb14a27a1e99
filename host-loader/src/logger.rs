//! The log: lines go to EL2, which adds time and name and serialises them.
//!
//! A line is put together in [`Line`], 256 bytes on the caller's stack, aligned
//! so that it lies inside one granule; longer text goes on in another line.
//!
//! Text that a guest has a part in is a guest's ([`of_guest`]): each of its lines
//! begins with the guest's name, however long it is and whatever is in it. Of
//! other text, each line but the first is indented. So no text that came from
//! elsewhere stands where the host's own words begin.

use crate::rmi_call;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU64, Ordering};
use log::{Level, LevelFilter, Log, Metadata, Record};
use rmi::end::{End, How, Token};
use rmi::text::plain;
use rmi::vendor::LOG_LINE_MAX;
use spin::Once;

/// `level` of an error in the vendor LOG call; [`log::Level`]'s numbers.
pub const ERROR: u64 = Level::Error as u64;

/// One line in the making.
#[repr(align(256))]
pub struct Line {
    bytes: [u8; LOG_LINE_MAX as usize],
    len: usize,
}

impl Line {
    /// An empty line.
    pub const fn new() -> Self {
        Self {
            bytes: [0; LOG_LINE_MAX as usize],
            len: 0,
        }
    }

    /// The text so far.
    pub fn as_str(&self) -> &str {
        // Only whole characters are ever put in.
        core::str::from_utf8(&self.bytes[..self.len]).unwrap_or("")
    }

    /// Puts `c` in, if it fits.
    fn push(&mut self, c: char) -> bool {
        let mut encoded = [0; 4];
        let encoded = c.encode_utf8(&mut encoded).as_bytes();
        let Some(room) = self.bytes.get_mut(self.len..self.len + encoded.len()) else {
            return false;
        };
        room.copy_from_slice(encoded);
        self.len += encoded.len();
        true
    }

    fn send(&mut self, level: u64) {
        // A log that cannot be written has nowhere to complain.
        let _ = rmi_call::log_line(level, &self.bytes[..self.len]);
        self.len = 0;
    }
}

impl Default for Line {
    fn default() -> Self {
        Self::new()
    }
}

impl Write for Line {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        if s.chars().all(|c| self.push(c)) {
            Ok(())
        } else {
            Err(fmt::Error)
        }
    }
}

/// Whose text it is.
#[derive(Clone, Copy)]
enum Who<'a> {
    Host,
    Guest(&'a str),
}

struct Sender<'a> {
    line: Line,
    level: u64,
    who: Who<'a>,
    /// Lines sent so far.
    sent: usize,
}

impl Sender<'_> {
    /// Puts in what the line begins with. It leaves room for text: names are
    /// short.
    fn begin(&mut self) {
        let _ = match self.who {
            Who::Guest(name) => write!(self.line, "guest {name}: "),
            Who::Host if self.sent > 0 => self.line.write_str("  "),
            Who::Host => Ok(()),
        };
    }

    fn send(&mut self) {
        if self.line.len == 0 {
            self.begin();
        }
        self.line.send(self.level);
        self.sent += 1;
    }
}

impl Write for Sender<'_> {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for c in s.chars() {
            if c == '\n' {
                self.send();
                continue;
            }
            if self.line.len == 0 {
                self.begin();
            }
            // What a guest's or an error's text holds stays text.
            let c = plain(c);
            if !self.line.push(c) {
                self.send();
                self.begin();
                self.line.push(c);
            }
        }
        Ok(())
    }
}

fn send(level: u64, who: Who<'_>, arguments: fmt::Arguments<'_>) {
    let mut sender = Sender {
        line: Line::new(),
        level,
        who,
        sent: 0,
    };
    let _ = sender.write_fmt(arguments);
    if sender.line.len > 0 {
        sender.send();
    }
}

/// Writes to the log whatever the filter says, taking no lock.
pub fn raw(level: u64, arguments: fmt::Arguments<'_>) {
    send(level, Who::Host, arguments);
}

/// Logs what guest `name` has said, done or had done to it.
pub fn of_guest(name: &str, level: Level, arguments: fmt::Arguments<'_>) {
    if level <= log::max_level() {
        send(level as u64, Who::Guest(name), arguments);
    }
}

static TOKEN: Once<Token> = Once::new();

/// Takes the token of the machine's last line from `bootargs`.
pub fn set_token(bootargs: &str) {
    if let Some(token) = Token::of_boot_arguments(bootargs) {
        TOKEN.call_once(|| token);
    }
}

/// Says how the machine ends, whatever the log level: who started it waits for
/// this line.
pub fn end(how: How) {
    let level = match how {
        How::Status(_) => Level::Info,
        How::Panic => Level::Error,
    };
    let token = TOKEN.get().copied();
    raw(level as u64, format_args!("{}", End { token, how }));
}

struct Logger;

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            raw(record.level() as u64, *record.args());
        }
    }

    fn flush(&self) {}
}

/// Installs the logger, at level INFO until [`set_level`].
pub fn init() {
    if log::set_logger(&Logger).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

/// Takes the level from `undercroft.loglevel=` of `bootargs`; an unknown level
/// is reported and leaves INFO.
pub fn set_level(bootargs: &str) {
    let Some(word) = crate::platform::boot_argument(bootargs, "undercroft.loglevel") else {
        return;
    };
    match word.parse() {
        Ok(level) => log::set_max_level(level),
        Err(_) => log::warn!(
            "undercroft.loglevel={word}: expected error, warn, info, debug or trace; \
             info is used"
        ),
    }
}

static RAM_START: AtomicU64 = AtomicU64::new(0);
static RAM_END: AtomicU64 = AtomicU64::new(0);

/// Says which addresses a backtrace may read: from the image's RAM range.
pub fn set_readable(start: u64, end: u64) {
    RAM_START.store(start, Ordering::Relaxed);
    RAM_END.store(end, Ordering::Relaxed);
}

/// A frame record at `address` may be read.
pub fn readable(address: u64) -> bool {
    address >= RAM_START.load(Ordering::Relaxed)
        && address.saturating_add(16) <= RAM_END.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use arm64::recording;
    use std::boxed::Box;
    use std::cell::RefCell;
    use std::rc::Rc;
    use std::string::{String, ToString};
    use std::vec::Vec;

    /// What `log` sends to EL2: levels and lines.
    fn sent(log: impl FnOnce()) -> Vec<(u64, String)> {
        let lines = Rc::new(RefCell::new(Vec::<(u64, String)>::new()));
        let seen = lines.clone();
        recording::answer_calls(Box::new(move |[fid, level, at, len, ..]| {
            assert_eq!(fid, rmi::vendor::LOG);
            assert!(len <= LOG_LINE_MAX);
            assert_eq!(at / 4096, (at + len - 1) / 4096);
            // SAFETY: `send` passes a line that lives across the call.
            let bytes = unsafe {
                std::slice::from_raw_parts(
                    std::ptr::with_exposed_provenance::<u8>(at as usize),
                    len as usize,
                )
            };
            let text = std::str::from_utf8(bytes).unwrap().to_string();
            assert!(text.chars().all(rmi::text::is_plain), "{text:?}");
            seen.borrow_mut().push((level, text));
            [0; 5]
        }));
        log();
        lines.take()
    }

    #[test]
    fn long_text_is_split_and_control_characters_stay_out() {
        let lines = sent(|| raw(3, format_args!("a\x1bb\n{}", "é".repeat(200))));
        assert_eq!(lines[0], (3, "a\u{fffd}b".to_string()));
        assert_eq!(lines[1].1, "  ".to_string() + &"é".repeat(127));
        assert_eq!(lines[2].1, "  ".to_string() + &"é".repeat(73));
    }

    #[test]
    fn every_line_of_a_guest_begins_with_its_name() {
        log::set_max_level(LevelFilter::Info);
        let name = "n".repeat(32);
        let forged = "[    9.000000] host INFO  end: status 0";
        for text in [
            "\u{fffd}".repeat(81) + forged,
            "é".repeat(5000),
            std::format!("\n\n{forged}\n"),
            std::format!("\r{forged}\u{2028}{forged}\u{85}{forged}"),
            "x".repeat(216 - 2) + forged,
        ] {
            let lines = sent(|| of_guest(&name, Level::Info, format_args!("{text}")));
            assert!(!lines.is_empty());
            let prefix = std::format!("guest {name}: ");
            let mut all = String::new();
            for (_, line) in &lines {
                all += line.strip_prefix(&prefix).expect(line);
            }
            let expected: String = text.chars().filter(|&c| c != '\n').map(plain).collect();
            assert_eq!(all, expected, "nothing is lost");
        }
    }

    #[test]
    fn text_from_elsewhere_does_not_begin_a_line() {
        // A name from the bundle, in a message of the host's own.
        let name = "k\nend: status 0";
        let lines = sent(|| raw(1, format_args!("no file {name} {}", "x".repeat(600))));
        assert!(lines.len() > 3);
        assert!(lines[1..].iter().all(|(_, line)| line.starts_with("  ")));
    }

    #[test]
    fn the_last_line_has_the_token() {
        let token = "00112233445566778899aabbccddeeff";
        set_token(&std::format!("quiet undercroft.end={token} x"));
        let lines = sent(|| end(How::Status(7)));
        assert_eq!(lines, [(3, std::format!("end: {token} status 7"))]);
        let lines = sent(|| end(How::Panic));
        assert_eq!(lines, [(1, std::format!("end: {token} panic"))]);
    }
}

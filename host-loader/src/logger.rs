//! The log: lines go to EL2, which adds time and name and serialises them.
//!
//! A line is put together in [`Line`], 256 bytes on the caller's stack, aligned
//! so that it lies inside one granule; longer text goes on in another line.

use crate::rmi_call;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU64, Ordering};
use log::{Level, LevelFilter, Log, Metadata, Record};
use rmi::vendor::LOG_LINE_MAX;

/// `level` of an error in the vendor LOG call; [`log::Level`]'s numbers.
pub const ERROR: u64 = Level::Error as u64;
/// `level` of information.
pub const INFO: u64 = Level::Info as u64;

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

struct Sender {
    line: Line,
    level: u64,
}

impl Write for Sender {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for c in s.chars() {
            if c == '\n' {
                self.line.send(self.level);
                continue;
            }
            // Control characters of a guest's or of an error's text stay text.
            let c = if c.is_control() { '\u{fffd}' } else { c };
            if !self.line.push(c) {
                self.line.send(self.level);
                self.line.push(c);
            }
        }
        Ok(())
    }
}

/// Writes to the log whatever the filter says, taking no lock.
pub fn raw(level: u64, arguments: fmt::Arguments<'_>) {
    let mut sender = Sender {
        line: Line::new(),
        level,
    };
    let _ = sender.write_fmt(arguments);
    if sender.line.len > 0 {
        sender.line.send(level);
    }
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
/// is told and leaves INFO.
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
    use crate::arch::insn::fake;
    use std::boxed::Box;
    use std::cell::RefCell;
    use std::rc::Rc;
    use std::string::{String, ToString};
    use std::vec::Vec;

    #[test]
    fn long_text_is_split_and_control_characters_stay_out() {
        let lines = Rc::new(RefCell::new(Vec::<(u64, String)>::new()));
        let seen = lines.clone();
        fake::set(Box::new(move |[fid, level, at, len, ..]| {
            assert_eq!(fid, rmi::vendor::LOG);
            assert!(len <= LOG_LINE_MAX);
            assert_eq!(at / 4096, (at + len - 1) / 4096);
            // SAFETY: `raw` passes a line that lives across the call.
            let bytes = unsafe {
                std::slice::from_raw_parts(
                    std::ptr::with_exposed_provenance::<u8>(at as usize),
                    len as usize,
                )
            };
            let text = std::str::from_utf8(bytes).unwrap().to_string();
            seen.borrow_mut().push((level, text));
            [0; 5]
        }));
        raw(INFO, format_args!("a\x1bb\n{}", "é".repeat(200)));
        let lines = lines.borrow();
        assert_eq!(lines[0], (3, "a\u{fffd}b".to_string()));
        assert_eq!(lines[1].1, "é".repeat(128));
        assert_eq!(lines[2].1, "é".repeat(72));
    }
}

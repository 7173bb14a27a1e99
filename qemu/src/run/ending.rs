//! Why a machine ended, and what that is as an exit status.
//!
//! The image says it in the last line of its log: `end: status N`, or
//! `end: panic` after the report of an error of its own. Without such a line
//! something is wrong, whatever QEMU's own status.

use std::fmt;
use std::process::ExitStatus;
use std::time::Duration;

use crate::ui;

/// Exit status when the time was over, as `timeout` has it.
pub const TIMED_OUT: u8 = 124;
/// Exit status when Undercroft or the machine failed, not the guest's command.
pub const FAILED: u8 = 125;

/// Why a machine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The image ended it, with a status; 0 when every guest powered off.
    Status(u8),
    /// EL2 or the host failed.
    Panic,
    /// The machine ended, QEMU without complaint, but the image said nothing.
    Unsaid,
    /// QEMU failed or was killed.
    Qemu(String),
    /// The guest's kernel gave up.
    GuestPanic,
    /// It took too long.
    TimedOut(Duration),
    /// The user or another process ended us by this signal.
    Signal(i32),
}

impl Ending {
    /// What the runner's own exit status is, unless a command's is told.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Status(status) => *status,
            Self::TimedOut(_) => TIMED_OUT,
            Self::Signal(number) => 128u8.saturating_add(u8::try_from(*number).unwrap_or(0)),
            Self::Panic | Self::Unsaid | Self::Qemu(_) | Self::GuestPanic => FAILED,
        }
    }

    /// What QEMU's exit and the log's last word say together.
    pub fn of(said: Option<Said>, status: ExitStatus, bare: bool) -> Self {
        match said {
            Some(Said::Status(status)) => Self::Status(status),
            Some(Said::Panic) => Self::Panic,
            None if !status.success() => Self::Qemu(status.to_string()),
            None if bare => Self::Status(0),
            None => Self::Unsaid,
        }
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(0) => write!(f, "every guest powered off"),
            Self::Status(status) => write!(f, "the machine ended with status {status}"),
            Self::Panic => write!(f, "Undercroft failed: its report stands in the log above"),
            Self::Unsaid => write!(
                f,
                "the machine went off or reset without Undercroft saying why \
                 (no `end:` line in its log)"
            ),
            Self::Qemu(status) => write!(f, "QEMU failed ({status})"),
            Self::GuestPanic => write!(f, "the guest's kernel panicked"),
            Self::TimedOut(after) => write!(f, "not done after {}", ui::seconds(*after)),
            Self::Signal(number) => write!(f, "ended by signal {number}"),
        }
    }
}

/// The image's last word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// `end: status N`.
    Status(u8),
    /// `end: panic`.
    Panic,
}

/// The text of a line of the log, behind `[   1.234567] hyp  INFO  `, or
/// `None` when the line is not one of the log.
pub fn message(line: &str) -> Option<&str> {
    let (time, rest) = line.trim_start().strip_prefix('[')?.split_once(']')?;
    let (whole, fraction) = time.trim().split_once('.')?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(fraction) {
        return None;
    }
    let (who, rest) = rest.trim_start().split_once(' ')?;
    if who != "hyp" && who != "host" {
        return None;
    }
    let (level, text) = rest.trim_start().split_once(' ')?;
    let known = ["ERROR", "WARN", "INFO", "DEBUG", "TRACE"].contains(&level);
    known.then(|| text.trim())
}

/// The last word that a line of the log holds, if it does. The report of a
/// panic is written without the log's help, so its last line is bare.
pub fn said(line: &str) -> Option<Said> {
    if line.trim() == "end: panic" {
        return Some(Said::Panic);
    }
    let end = message(line)?.strip_prefix("end: ")?;
    if end.starts_with("panic") {
        return Some(Said::Panic);
    }
    let status: u32 = end.strip_prefix("status ")?.trim().parse().ok()?;
    // A status that an exit status cannot hold is still not a success.
    Some(Said::Status(u8::try_from(status).unwrap_or(FAILED)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_is_understood() {
        assert_eq!(
            said("[   1.234567] host INFO  end: status 0"),
            Some(Said::Status(0))
        );
        assert_eq!(
            said("[  12.000000] host ERROR end: status 3\r"),
            Some(Said::Status(3))
        );
        assert_eq!(
            said("[   1.234567] hyp  ERROR end: panic"),
            Some(Said::Panic)
        );
        assert_eq!(
            said("[   1.234567] host INFO  end: status 4096"),
            Some(Said::Status(FAILED))
        );
        for line in [
            "end: status 0",
            "[    1.234567] Kernel: end: status 0",
            "[   1.234567] host INFO  guest a: end: status 0",
            "[   1.2x4567] host INFO  end: status 0",
        ] {
            assert_eq!(said(line), None, "{line}");
        }
    }

    #[test]
    fn only_success_is_success() {
        for (ending, code) in [
            (Ending::Status(0), 0),
            (Ending::Status(9), 9),
            (Ending::Panic, FAILED),
            (Ending::Unsaid, FAILED),
            (Ending::GuestPanic, FAILED),
            (Ending::TimedOut(Duration::from_secs(1)), TIMED_OUT),
            (Ending::Signal(15), 143),
        ] {
            assert_eq!(ending.exit_code(), code, "{ending}");
        }
    }
}

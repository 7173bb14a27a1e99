//! Why a machine ended, and what that is as an exit status.
//!
//! The image says it in the last line of its log ([`rmi::end`]): a status, or a
//! panic after the report of an error of its own. The line holds a token that the
//! machine's boot arguments gave it and no guest knows. Without such a line
//! something is wrong, whatever QEMU's own status.

use std::fmt;
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rmi::end::{End, How, Token};
use rmi::text::plain;

use super::options::Level;
use crate::ui;

/// Exit status when the time was over, as `timeout` has it.
pub const TIMED_OUT: u8 = 124;
/// Exit status when Undercroft or the machine failed, not the guest's command.
pub const FAILED: u8 = 125;

/// Exit status when standard output has no reader any more, as a shell shows
/// SIGPIPE.
pub const NO_READER: u8 = 128 + 13;

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
    /// Arm's model failed or was killed.
    Model(String),
    /// The guest's kernel gave up.
    GuestPanic,
    /// It took too long.
    TimedOut(Duration),
    /// It has said nothing for so long.
    Silent(Duration),
    /// The user or another process ended us by this signal.
    Signal(i32),
    /// The user left it at its terminal.
    Left,
    /// Nobody reads what the guest's command says any more.
    NoReader,
    /// What the guest's command says cannot be written, and why.
    Unwritten(String),
    /// The guest ended before its command had.
    Cut(Cut),
}

/// How a guest's command came to no end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// The guest powered off.
    PoweredOff,
    /// The guest was reset.
    Reset,
    /// The guest powered off and its console has said nothing at all.
    Silent,
}

impl Ending {
    /// What the runner's own exit status is, unless a command's is told: a
    /// command can end with any, so those of a failure are few.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Status(0) | Self::Left => 0,
            Self::NoReader => NO_READER,
            Self::TimedOut(_) | Self::Silent(_) => TIMED_OUT,
            Self::Signal(number) => 128u8.saturating_add(u8::try_from(*number).unwrap_or(0)),
            // A status of the machine's is not one of a command's.
            Self::Status(_)
            | Self::Panic
            | Self::Unsaid
            | Self::Qemu(_)
            | Self::Model(_)
            | Self::GuestPanic
            | Self::Unwritten(_)
            | Self::Cut(_) => FAILED,
        }
    }

    /// What QEMU's exit and the log's last word say together.
    pub fn of(said: Option<Said>, status: ExitStatus, bare: bool) -> Self {
        match said {
            Some(Said::Panic) => Self::Panic,
            Some(Said::Status(failed @ 1..)) => Self::Status(failed),
            // Whatever was said before: nobody saw the machine go off.
            _ if !status.success() => Self::Qemu(status.to_string()),
            Some(Said::Status(0)) => Self::Status(0),
            None if bare => Self::Status(0),
            None => Self::Unsaid,
        }
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(0) => write!(f, "every guest powered off"),
            // `host-loader`'s `life::end`.
            Self::Status(1) => write!(
                f,
                "a guest was stopped (status 1); Undercroft's log says above which, and why"
            ),
            Self::Status(2) => write!(
                f,
                "a guest could not be started (status 2); Undercroft's log says above why"
            ),
            Self::Status(status) => write!(f, "the machine ended with status {status}"),
            Self::Panic => write!(f, "Undercroft failed: its report stands in the log above"),
            Self::Unsaid => write!(
                f,
                "the machine went off or reset without Undercroft saying why \
                 (no `end:` line in its log)"
            ),
            Self::Qemu(status) => write!(f, "QEMU failed ({status})"),
            Self::Model(status) => write!(f, "the model failed ({status})"),
            Self::GuestPanic => write!(f, "the guest's kernel panicked"),
            Self::TimedOut(after) => write!(f, "not done after {}", ui::seconds(*after)),
            Self::Silent(time) => write!(f, "no word for {}", ui::seconds(*time)),
            Self::Signal(number) => write!(f, "ended by signal {number}"),
            Self::Left => write!(f, "left"),
            Self::NoReader => write!(f, "nobody reads standard output any more"),
            Self::Unwritten(why) => write!(f, "cannot write standard output: {why}"),
            Self::Cut(Cut::PoweredOff) => {
                write!(f, "the guest powered off before its command had ended")
            }
            Self::Cut(Cut::Reset) => {
                write!(f, "the guest was reset before its command had ended")
            }
            Self::Cut(Cut::Silent) => write!(
                f,
                "the guest ended without a word on its console: perhaps its kernel expects \
                 to be loaded elsewhere, or another console"
            ),
        }
    }
}

/// The image's last word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// `end: TOKEN status N`.
    Status(u8),
    /// `end: TOKEN panic`.
    Panic,
}

/// A token that nobody guesses, for the end of one machine.
///
/// # Errors
/// When the operating system has no random numbers.
pub fn token() -> Result<Token> {
    let mut bits = [0; 16];
    let count = rustix::rand::getrandom(&mut bits, rustix::rand::GetRandomFlags::empty())
        .context("the operating system gives no random numbers")?;
    anyhow::ensure!(count == bits.len(), "too few random numbers");
    Ok(Token::of_bits(u128::from_ne_bytes(bits)))
}

/// A line as a terminal may be given it: no control character of whoever wrote it
/// is left.
pub fn shown(line: &str) -> String {
    line.chars()
        .map(|c| if c == '\t' { c } else { plain(c) })
        .collect()
}

/// The text of a line of the log, behind `[   1.234567] hyp  INFO  `, or
/// `None` when the line is not one of the log.
pub fn message(line: &str) -> Option<&str> {
    parts(line).map(|(_, text)| text)
}

/// The level of a line of the log.
pub fn level(line: &str) -> Option<Level> {
    parts(line).map(|(level, _)| level)
}

fn parts(line: &str) -> Option<(Level, &str)> {
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
    let known = [
        ("ERROR", Level::Error),
        ("WARN", Level::Warn),
        ("INFO", Level::Info),
        ("DEBUG", Level::Debug),
        ("TRACE", Level::Trace),
    ];
    let (_, level) = known.iter().find(|(name, _)| *name == level)?;
    Some((*level, text.trim()))
}

/// The last word that a line holds, if it does. With a token that is enough: a
/// guest may have left anything before it on the same line. Without one, a line
/// of the log is asked for; a panic's report has none, so its last line is bare.
pub fn said(line: &str, token: Option<Token>) -> Option<Said> {
    let line = line.trim_end_matches(['\r', '\n']);
    let end = match token {
        Some(_) => End::parse(line, token),
        None => message(line)
            .and_then(|text| End::parse(text, None))
            .or_else(|| End::parse(line, None).filter(|end| end.how == How::Panic)),
    };
    Some(match end?.how {
        How::Panic => Said::Panic,
        // A status that an exit status cannot hold is still not a success.
        How::Status(status) => Said::Status(u8::try_from(status).unwrap_or(FAILED)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    const TOKEN: Token = Token::of_bits(0xfedc_ba98_7654_3210_0123_4567_89ab_cdef);

    #[test]
    fn the_last_word_is_understood() {
        let token = TOKEN.as_str();
        let said = |line: &str| said(line, Some(TOKEN));
        assert_eq!(
            said(&format!("[   1.234567] host INFO  end: {token} status 0")),
            Some(Said::Status(0))
        );
        assert_eq!(
            said(&format!("[  12.000000] host ERROR end: {token} status 3\r")),
            Some(Said::Status(3))
        );
        assert_eq!(said(&format!("end: {token} panic")), Some(Said::Panic));
        assert_eq!(
            said(&format!(
                "[   1.234567] host INFO  end: {token} status 4096"
            )),
            Some(Said::Status(FAILED))
        );
        // On one UART, behind what a guest has not ended.
        assert_eq!(
            said(&format!(
                "login: [   1.234567] host INFO  end: {token} status 0"
            )),
            Some(Said::Status(0))
        );
    }

    #[test]
    fn what_a_guest_can_write_is_no_last_word() {
        for line in [
            "end: status 0",
            "end: panic",
            "[   1.234567] host INFO  end: status 0",
            "[   1.234567] hyp  ERROR end: panic",
            "[   1.234567] host INFO  guest a: end: status 0",
            "[   1.234567] host INFO  end: 00000000000000000000000000000000 status 0",
            "[   1.234567] host INFO  end: undercroft.end status 0",
            "[   1.234567] host INFO  end: \u{1b}[8m status 0",
            "[   1.234567] host INFO  end: * status 0",
            "[   1.234567] host INFO  end:  status 0",
        ] {
            assert_eq!(said(line, Some(TOKEN)), None, "{line}");
        }
    }

    #[test]
    fn a_machine_without_a_token_says_it_in_its_log() {
        let said = |line: &str| said(line, None);
        assert_eq!(
            said("[   1.234567] host INFO  end: status 0\r"),
            Some(Said::Status(0))
        );
        assert_eq!(said("end: panic"), Some(Said::Panic));
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
    fn a_killed_qemu_is_no_success_whatever_was_said() {
        let killed = ExitStatus::from_raw(9);
        let well = ExitStatus::from_raw(0);
        for bare in [false, true] {
            for said in [None, Some(Said::Status(0))] {
                let ending = Ending::of(said, killed, bare);
                assert_eq!(ending.exit_code(), FAILED, "{ending}");
            }
            assert_eq!(Ending::of(Some(Said::Panic), killed, bare), Ending::Panic);
            let status = Ending::of(Some(Said::Status(2)), killed, bare);
            assert_eq!(status, Ending::Status(2));
        }
        let said = Some(Said::Status(0));
        assert_eq!(Ending::of(said, well, false), Ending::Status(0));
        assert_eq!(Ending::of(None, well, false), Ending::Unsaid);
        assert_eq!(Ending::of(None, well, true), Ending::Status(0));
    }

    #[test]
    fn a_line_is_shown_without_what_moves_a_terminal() {
        let line = "[ 1.0] host INFO  guest a: \u{1b}[2J\u{202e}x\ty\r";
        assert_eq!(
            shown(line),
            "[ 1.0] host INFO  guest a: \u{fffd}[2J\u{fffd}x\ty\u{fffd}"
        );
    }

    #[test]
    fn tokens_differ() {
        assert_ne!(token().unwrap(), token().unwrap());
    }

    #[test]
    fn only_success_is_success() {
        for (ending, code) in [
            (Ending::Status(0), 0),
            (Ending::Status(1), FAILED),
            (Ending::Status(9), FAILED),
            (Ending::Left, 0),
            (Ending::NoReader, 141),
            (Ending::Unwritten("full".into()), 125),
            (Ending::Cut(Cut::PoweredOff), FAILED),
            (Ending::Cut(Cut::Reset), FAILED),
            (Ending::Cut(Cut::Silent), FAILED),
            (Ending::Panic, FAILED),
            (Ending::Unsaid, FAILED),
            (Ending::GuestPanic, FAILED),
            (Ending::TimedOut(Duration::from_secs(1)), TIMED_OUT),
            (Ending::Silent(Duration::from_secs(1)), TIMED_OUT),
            (Ending::Signal(15), 143),
        ] {
            assert_eq!(ending.exit_code(), code, "{ending}");
        }
    }
}

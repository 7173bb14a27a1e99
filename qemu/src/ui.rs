//! What the user sees of the runner's own work: one line a step on standard
//! error, in the manner of cargo, and below it, at a terminal, one status line
//! that says what is under way.
//!
//! All that the runner writes goes through here, so that no line is mangled by
//! the status line, wraps where it could be folded, or ends the runner because
//! its reader has gone.
//!
//! Standard output belongs to the guest's command, and to commands whose
//! purpose is what they print ([`print()`]).

use std::borrow::Cow;
use std::env;
use std::fmt::{self, Display};
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use console::{Style, Term};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle, TermLike};

/// Set by `--quiet`: steps are silent, errors and warnings are not.
static QUIET: AtomicBool = AtomicBool::new(false);

/// Steps shorter than this do not show their time.
const NOTICEABLE: Duration = Duration::from_millis(1500);

/// Terminals narrower than this are left to wrap as they like.
const NARROW: usize = 20;

/// Where a line's text begins, behind its verb.
const INDENT: &str = "             ";

/// Silences steps and notes for the rest of the process.
pub fn set_quiet(quiet: bool) {
    QUIET.store(quiet, Ordering::Relaxed);
}

fn quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

/// Standard output cannot be written any more.
#[derive(Debug)]
pub struct Unwritten(io::Error);

impl Unwritten {
    /// Whether whoever has read it has gone: then all is said.
    pub fn reader_gone(&self) -> bool {
        self.0.kind() == io::ErrorKind::BrokenPipe
    }
}

impl fmt::Display for Unwritten {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot write standard output: {}", self.0)
    }
}

impl std::error::Error for Unwritten {}

/// Writes a line to standard output.
///
/// # Errors
/// When it cannot be written; without a reader all ends, in silence.
pub fn print(text: impl Display) -> Result<(), Unwritten> {
    // As one write: lines of other processes do not come between.
    let text = format!("{text}\n");
    beside_status(|| {
        let mut out = io::stdout().lock();
        let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        written.map_err(Unwritten)
    })
}

/// Writes lines to standard error as they are.
pub fn say(text: impl Display) {
    let text = format!("{text}\n");
    beside_status(|| {
        // Without standard error there is nobody to tell.
        let _ = io::stderr().lock().write_all(text.as_bytes());
    });
}

/// The line of a note with its end, for whoever writes it elsewhere; none when
/// the user wants none.
pub fn note_line(verb: &str, text: impl Display) -> Option<String> {
    (!quiet()).then(|| format!("{}\n", line(verb, text)))
}

fn line(verb: &str, text: impl Display) -> String {
    let text = fold(&format!("{INDENT}{text}"), INDENT);
    let text = text.trim_start();
    let verb = Style::new()
        .for_stderr()
        .green()
        .bold()
        .apply_to(format!("{verb:>12}"));
    format!("{verb} {text}")
}

/// Says something that is not a step: a choice taken, a path to know.
pub fn note(verb: &str, text: impl Display) {
    if !quiet() {
        say(line(verb, text));
    }
}

/// Says something that the user should look at although the run goes on.
pub fn warn(text: impl Display) {
    say(fold(&format!("warning: {text}"), "  "));
}

/// Says why it does not go on.
pub fn error(text: impl Display) {
    say(fold(&format!("error: {text}"), "  "));
}

/// Folds text to the terminal's width, if standard error is a terminal; lines
/// that go on begin with `indent`. A program that reads it gets it whole.
pub fn fold(text: &str, indent: &str) -> String {
    let Some(width) = width() else {
        return text.into();
    };
    folded(text, width, indent)
}

fn folded(text: &str, width: usize, indent: &str) -> String {
    if width < NARROW {
        return text.into();
    }
    let options = textwrap::Options::new(width)
        .subsequent_indent(indent)
        .word_splitter(textwrap::WordSplitter::NoHyphenation)
        // A path or a word that is longer than a line can be copied whole.
        .break_words(false);
    let lines: Vec<String> = text
        .lines()
        .map(|line| {
            if console::measure_text_width(line) <= width {
                // Nothing to fold: blanks stay as they are.
                line.into()
            } else {
                textwrap::fill(line, &options)
            }
        })
        .collect();
    lines.join("\n")
}

/// The columns of the terminal that standard error is.
fn width() -> Option<usize> {
    let term = Term::stderr();
    if !io::stderr().is_terminal() {
        return None;
    }
    let (_, columns) = term.size_checked().unwrap_or((25, 80));
    // A terminal that does not know its size says none.
    Some(if columns == 0 {
        80
    } else {
        usize::from(columns)
    })
}

/// Text of others without what would steer a terminal: escape sequences,
/// control characters, and those that turn the direction of writing.
pub fn plain(text: &str) -> String {
    console::strip_ansi_codes(text)
        .chars()
        .map(|c| if c == '\t' { ' ' } else { c })
        .filter(|c| {
            // No character at all, which XML does not take, either.
            let none = matches!(c, '\u{fffe}' | '\u{ffff}');
            let turns = matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
            !c.is_control() && !none && !turns
        })
        .collect()
}

/// A step under way.
struct Entry {
    id: u64,
    verb: &'static str,
    text: Cow<'static, str>,
    /// How far it has come, of how much, and how that is shown.
    at: Option<(u64, u64, Measure)>,
    begun: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Measure {
    Percent,
    Count,
}

/// The status line shows the step that began last.
#[derive(Default)]
struct Status {
    steps: Vec<Entry>,
    bar: Option<ProgressBar>,
    next: u64,
}

static STATUS: Mutex<Status> = Mutex::new(Status {
    steps: Vec::new(),
    bar: None,
    next: 0,
});

/// Whether there is a status line at all.
static SHOWN: LazyLock<bool> = LazyLock::new(|| {
    io::stderr().is_terminal()
        && env::var_os("TERM").is_some_and(|term| !term.is_empty() && term != "dumb")
});

fn status() -> MutexGuard<'static, Status> {
    // What a thread that failed left behind is a line of text.
    STATUS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Does something that writes, with the status line out of its way.
fn beside_status<R>(write: impl FnOnce() -> R) -> R {
    // Held meanwhile, so that no other thread draws it anew.
    let status = status();
    match &status.bar {
        Some(bar) => bar.suspend(write),
        None => write(),
    }
}

impl Status {
    fn draw(&mut self) {
        let Some(top) = self.steps.last() else {
            if let Some(bar) = self.bar.take() {
                bar.finish_and_clear();
            }
            return;
        };
        let bar = self.bar.get_or_insert_with(|| {
            let target = ProgressDrawTarget::term_like(Box::new(Narrow(Term::stderr())));
            let bar = ProgressBar::with_draw_target(None, target);
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        bar.set_style(style(top.at.map(|(_, _, measure)| measure)));
        bar.set_elapsed(top.begun.elapsed());
        bar.set_prefix(top.verb);
        bar.set_message(top.text.clone());
        if let Some((at, of, _)) = top.at {
            bar.set_length(of);
            bar.set_position(at);
        }
        bar.tick();
    }

    fn of(&mut self, id: u64) -> Option<&mut Entry> {
        self.steps.iter_mut().find(|step| step.id == id)
    }
}

/// A step under way: shown in the status line at a terminal, a line of its own
/// elsewhere.
///
/// Dropped without [`Step::done`], it leaves no line: the error that follows
/// tells the rest.
#[derive(Debug)]
pub struct Step {
    /// Its number, where it is in the status line.
    id: Option<u64>,
    begun: Instant,
}

impl Step {
    /// Begins a step, for instance `Step::new("Fetching", "busybox")`.
    pub fn new(verb: &'static str, text: impl Into<Cow<'static, str>>) -> Self {
        let text = text.into();
        let step = Self::hidden(verb, text.clone());
        if step.id.is_none() {
            note(verb, text);
        }
        step
    }

    /// Begins a step that leaves no line where there is no status line.
    pub fn hidden(verb: &'static str, text: impl Into<Cow<'static, str>>) -> Self {
        let begun = Instant::now();
        if quiet() || !*SHOWN {
            return Self { id: None, begun };
        }
        let mut status = status();
        let id = status.next;
        status.next += 1;
        status.steps.push(Entry {
            id,
            verb,
            text: text.into(),
            at: None,
            begun,
        });
        status.draw();
        Self {
            id: Some(id),
            begun,
        }
    }

    fn change(&self, change: impl FnOnce(&mut Entry)) {
        let Some(id) = self.id else { return };
        let mut status = status();
        if let Some(entry) = status.of(id) {
            change(entry);
        }
        status.draw();
    }

    /// Shows how far the step has come, as a fraction from 0 to 1.
    pub fn at(&self, fraction: f64) {
        let position = (fraction.clamp(0.0, 1.0) * 1000.0) as u64;
        self.change(|entry| entry.at = Some((position, 1000, Measure::Percent)));
    }

    /// Shows that `done` things `of` so many are done.
    pub fn count(&self, done: u64, of: u64) {
        self.change(|entry| entry.at = Some((done, of, Measure::Count)));
    }

    /// Replaces the text behind the verb.
    pub fn say(&self, text: impl Into<Cow<'static, str>>) {
        let text = text.into();
        self.change(|entry| entry.text = text);
    }

    /// Takes the step out of the status line, for good.
    pub fn clear(&mut self) {
        let Some(id) = self.id.take() else { return };
        let mut status = status();
        status.steps.retain(|step| step.id != id);
        status.draw();
    }

    /// Ends the step with one line that says what there is now, if there was
    /// time to notice it.
    pub fn done(self, verb: &str, text: impl Display) {
        let (elapsed, shown) = (self.begun.elapsed(), self.id.is_some());
        drop(self);
        if elapsed >= NOTICEABLE {
            note(verb, format_args!("{text} in {}", seconds(elapsed)));
        } else if shown {
            note(verb, text);
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.clear();
    }
}

/// A terminal that is said to be narrower than it is: what it echoes behind the
/// status line, such as `^C`, stays on that line and goes with it.
#[derive(Debug)]
struct Narrow(Term);

/// Columns that are left for that.
const ECHOED: u16 = 4;

impl TermLike for Narrow {
    fn width(&self) -> u16 {
        self.0.size().1.saturating_sub(ECHOED).max(1)
    }

    fn height(&self) -> u16 {
        self.0.size().0
    }

    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        self.0.move_cursor_up(n)
    }

    fn move_cursor_down(&self, n: usize) -> io::Result<()> {
        self.0.move_cursor_down(n)
    }

    fn move_cursor_right(&self, n: usize) -> io::Result<()> {
        self.0.move_cursor_right(n)
    }

    fn move_cursor_left(&self, n: usize) -> io::Result<()> {
        self.0.move_cursor_left(n)
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        self.0.write_line(text)
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        self.0.write_str(text)
    }

    fn clear_line(&self) -> io::Result<()> {
        self.0.clear_line()
    }

    fn flush(&self) -> io::Result<()> {
        self.0.flush()
    }
}

/// A line that never wraps: its text is cut where the terminal ends.
fn style(measure: Option<Measure>) -> ProgressStyle {
    static STYLES: LazyLock<[ProgressStyle; 3]> = LazyLock::new(|| {
        [
            "{prefix:>12.cyan.bold} {wide_msg} {elapsed:>4}",
            "{prefix:>12.cyan.bold} {wide_msg} [{bar:16}] {percent:>3}% {elapsed:>4}",
            "{prefix:>12.cyan.bold} {wide_msg} {pos}/{len} {elapsed:>4}",
        ]
        .map(|template| {
            ProgressStyle::with_template(template)
                .unwrap_or_else(|_| ProgressStyle::default_bar())
                .progress_chars("=> ")
        })
    });
    let index = match measure {
        None => 0,
        Some(Measure::Percent) => 1,
        Some(Measure::Count) => 2,
    };
    STYLES[index].clone()
}

/// Shows a duration as people say it: `4.2 s`, `3 min 12 s`.
pub fn seconds(duration: Duration) -> String {
    let all = duration.as_secs_f64();
    if all < 100.0 {
        format!("{all:.1} s")
    } else {
        format!("{} min {} s", all as u64 / 60, all as u64 % 60)
    }
}

/// Shows a number of bytes in the largest unit that keeps it readable.
pub fn bytes(count: u64) -> String {
    match count {
        0..=9_999 => format!("{count} bytes"),
        10_000..=999_999 => format!("{:.1} KiB", count as f64 / 1024.0),
        _ => format!("{:.1} MiB", count as f64 / (1024.0 * 1024.0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_well() {
        assert_eq!(seconds(Duration::from_millis(4230)), "4.2 s");
        assert_eq!(seconds(Duration::from_secs(192)), "3 min 12 s");
    }

    #[test]
    fn sizes_read_well() {
        assert_eq!(bytes(64), "64 bytes");
        assert_eq!(bytes(65536), "64.0 KiB");
        assert_eq!(bytes(37_660_608), "35.9 MiB");
    }

    #[test]
    fn no_line_is_wider_than_the_terminal_and_no_word_is_cut() {
        let path = "/a/path/that/is/longer/than/a/line";
        let text = format!("error: cannot read {path}: no such file\n  second line");
        let folded = folded(&text, 24, "  ");
        let holds = |line: &&str| line.contains(path);
        assert!(folded.lines().any(|line| holds(&line)), "{folded}");
        for line in folded.lines().filter(|line| !holds(line)) {
            assert!(line.len() <= 24, "{line}");
        }
        let words = |text: &str| {
            text.split_whitespace()
                .map(String::from)
                .collect::<Vec<_>>()
        };
        assert_eq!(words(&folded), words(&text));
    }

    #[test]
    fn text_of_others_steers_no_terminal() {
        let evil = "a\u{1b}[2J\u{1b}]0;title\u{7}b\r\u{8}\u{9b}31mc\u{202e}d\u{1b}[31m e\tf";
        let plain = plain(evil);
        assert!(!plain.chars().any(char::is_control), "{plain:?}");
        for letter in ["a", "b", "c", "d e f"] {
            assert!(plain.contains(letter), "{plain:?}");
        }
    }
}

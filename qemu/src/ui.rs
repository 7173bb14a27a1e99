//! What the user sees of the runner's own work: one line a step on standard
//! error, in the manner of cargo, with a progress bar where there is a
//! terminal and elapsed time where a step was long enough to notice.
//!
//! Standard output is never written here: it belongs to the guest's command.

use std::borrow::Cow;
use std::fmt::Display;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Set by `--quiet`: steps are silent, errors and warnings are not.
static QUIET: AtomicBool = AtomicBool::new(false);

/// Steps shorter than this do not show their time.
const NOTICEABLE: Duration = Duration::from_millis(1500);

/// Silences steps and notes for the rest of the process.
pub fn set_quiet(quiet: bool) {
    QUIET.store(quiet, Ordering::Relaxed);
}

fn quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

fn line(verb: &str, text: impl Display) {
    eprintln!("{verb:>12} {text}");
}

/// Says something that is not a step: a choice taken, a path to know.
pub fn note(verb: &str, text: impl Display) {
    if !quiet() {
        line(verb, text);
    }
}

/// Says something that the user should look at although the run goes on.
pub fn warn(text: impl Display) {
    eprintln!("warning: {text}");
}

/// A step under way: a bar on a terminal, a line otherwise.
///
/// Dropped without [`Step::done`], it takes its bar away and leaves no line:
/// the error that follows tells the rest.
pub struct Step {
    bar: Option<ProgressBar>,
    begun: Instant,
}

impl Step {
    /// Begins a step, for instance `Step::new("Building", "hyp")`.
    pub fn new(verb: &'static str, text: impl Into<Cow<'static, str>>) -> Self {
        let text = text.into();
        if quiet() {
            return Self {
                bar: None,
                begun: Instant::now(),
            };
        }
        let bar = ProgressBar::new(0);
        if bar.is_hidden() {
            line(verb, &text);
            return Self {
                bar: None,
                begun: Instant::now(),
            };
        }
        bar.set_style(spinner());
        bar.set_prefix(verb);
        bar.set_message(text);
        bar.enable_steady_tick(Duration::from_millis(100));
        Self {
            bar: Some(bar),
            begun: Instant::now(),
        }
    }

    /// Shows how far the step has come, as a fraction from 0 to 1.
    pub fn at(&self, fraction: f64) {
        if let Some(bar) = &self.bar {
            if bar.length() != Some(1000) {
                bar.set_length(1000);
                bar.set_style(measured());
            }
            bar.set_position((fraction.clamp(0.0, 1.0) * 1000.0) as u64);
        }
    }

    /// Replaces the text behind the verb.
    pub fn say(&self, text: impl Into<Cow<'static, str>>) {
        if let Some(bar) = &self.bar {
            bar.set_message(text);
        }
    }

    /// Ends the step with one line that says what there is now.
    pub fn done(mut self, verb: &str, text: impl Display) {
        let bar = self.bar.take();
        if let Some(bar) = &bar {
            bar.finish_and_clear();
        }
        if quiet() {
            return;
        }
        let elapsed = self.begun.elapsed();
        if elapsed >= NOTICEABLE {
            line(verb, format_args!("{text} in {}", seconds(elapsed)));
        } else if bar.is_some() {
            line(verb, text);
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn spinner() -> ProgressStyle {
    style("{prefix:>12.cyan.bold} {msg} {spinner} {elapsed}")
}

fn measured() -> ProgressStyle {
    style("{prefix:>12.cyan.bold} {msg} [{bar:24}] {percent:>3}% {elapsed}")
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
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
}

//! What `cargo qemu test` says: a line a case, failures in full at the end,
//! and a closing line with the sums, alone on its line.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use super::Counts;
use crate::ui::{self, Unwritten};

/// The file of results in a folder of reports: a JSON object a line.
pub const RESULTS: &str = "results.jsonl";

/// How a case ended. As the context of an error it says what kind of failure that is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Well.
    Passed,
    /// What was tested is wrong.
    #[default]
    Failed,
    /// What tests could not: QEMU, a file, a program that is not there.
    Error,
    /// The machine said nothing for so long that it was ended.
    Silent,
    /// It was not done in time.
    Timeout,
    /// It cannot be run here.
    Skipped,
    /// It failed as a list said that it would.
    Expected,
}

impl Status {
    /// All, worst first.
    pub const ALL: [Self; 7] = [
        Self::Failed,
        Self::Error,
        Self::Silent,
        Self::Timeout,
        Self::Expected,
        Self::Skipped,
        Self::Passed,
    ];

    /// The word for it, as JSON has it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::Error => "error",
            Self::Silent => "silent",
            Self::Timeout => "timeout",
            Self::Skipped => "skipped",
            Self::Expected => "expected",
        }
    }

    /// Whether it makes the whole fail.
    pub const fn is_bad(self) -> bool {
        matches!(
            self,
            Self::Failed | Self::Error | Self::Silent | Self::Timeout
        )
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// The result of a case.
#[derive(Clone, Debug)]
pub struct Result {
    /// The case's name.
    pub name: String,
    /// How it ended.
    pub status: Status,
    /// How many tests it was.
    pub counts: Counts,
    /// How long it took.
    pub took: Duration,
    /// What it found out, or why it was skipped.
    pub says: Option<String>,
    /// Why it failed, if it did.
    pub why: Option<String>,
}

/// A result as one JSON object on a line.
#[derive(Serialize)]
struct Line<'a> {
    name: &'a str,
    status: Status,
    seconds: f64,
    passed: u32,
    failed: u32,
    skipped: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    says: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<&'a str>,
}

/// The sums as one JSON object on the last line.
#[derive(Serialize)]
struct Sums {
    passed: u32,
    failed: u32,
    skipped: u32,
    seconds: f64,
    /// Cases that were not run, or not to their end.
    #[serde(skip_serializing_if = "Option::is_none")]
    interrupted: Option<usize>,
}

/// A file that lines are added to: where its last one was cut short, they begin on
/// the next.
///
/// # Errors
/// When it cannot be written.
pub fn added_to(file: &Path) -> std::io::Result<File> {
    let is_cut = fs::read(file).is_ok_and(|text| text.last().is_some_and(|byte| *byte != b'\n'));
    let mut file = OpenOptions::new().create(true).append(true).open(file)?;
    if is_cut {
        file.write_all(b"\n")?;
    }
    Ok(file)
}

/// Whether all cases were run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whole {
    /// All.
    Yes,
    /// It was interrupted.
    No {
        /// The number of all cases.
        of: usize,
        /// Those that were under way.
        running: Vec<String>,
    },
}

/// Writes results as they come.
#[derive(Debug)]
pub struct Report {
    json: bool,
    /// Where each is kept as it comes: a file of this folder.
    kept: Option<(File, PathBuf)>,
    results: Vec<Result>,
}

impl Report {
    /// A report for people, or one of JSON lines on standard output.
    pub fn new(json: bool) -> Self {
        Self {
            json,
            kept: None,
            results: Vec::new(),
        }
    }

    /// The same, which adds each result to a file of this folder, too.
    ///
    /// # Errors
    /// When there is none to be had.
    pub fn kept(json: bool, folder: Option<&Path>) -> anyhow::Result<Self> {
        let Some(folder) = folder else {
            return Ok(Self::new(json));
        };
        let file = folder.join(RESULTS);
        let opened = fs::create_dir_all(folder)
            .and_then(|()| added_to(&file))
            .with_context(|| format!("cannot write {}", file.display()))?;
        Ok(Self {
            kept: Some((opened, folder.into())),
            ..Self::new(json)
        })
    }

    /// Takes a result and writes its line.
    ///
    /// # Errors
    /// When nobody reads it.
    pub fn take(&mut self, result: Result) -> std::result::Result<(), Unwritten> {
        let status = result.status;
        let line = Line {
            name: &result.name,
            status,
            seconds: result.took.as_secs_f64(),
            passed: result.counts.passed,
            failed: result.counts.failed,
            skipped: result.counts.skipped,
            says: result.says.as_deref(),
            why: result.why.as_deref(),
        };
        if let (Some((file, _)), Ok(text)) = (&mut self.kept, serde_json::to_string(&line)) {
            // In one piece, since others may add to it, too. Who reads the folder misses
            // it; who looks on sees it.
            let _ = file.write_all((text + "\n").as_bytes());
        }
        if self.json {
            self.print(&line)?;
        } else {
            let tests = match result.counts.passed + result.counts.failed {
                0 | 1 => String::new(),
                tests => format!(", {tests} tests"),
            };
            ui::print(format_args!(
                "{:>12} {} ({}{tests})",
                status.word(),
                result.name,
                ui::seconds(result.took)
            ))?;
            for line in result.says.iter().flat_map(|says| says.lines()) {
                ui::print(line)?;
            }
        }
        self.results.push(result);
        Ok(())
    }

    /// Writes the failures and the closing line; returns whether all is well.
    ///
    /// # Errors
    /// When nobody reads it.
    pub fn close(self, took: Duration, whole: Whole) -> std::result::Result<bool, Unwritten> {
        let interrupted = match &whole {
            Whole::Yes => None,
            Whole::No { of, .. } => Some(of - self.results.len()),
        };
        let mut sums = Counts::default();
        for result in &self.results {
            sums += result.counts;
        }
        if self.json {
            self.print(&Sums {
                passed: sums.passed,
                failed: sums.failed,
                skipped: sums.skipped,
                seconds: took.as_secs_f64(),
                interrupted,
            })?;
            return Ok(sums.failed == 0);
        }
        for result in &self.results {
            if let Some(why) = &result.why {
                ui::print(format_args!(
                    "\n{}: {}\n{}",
                    result.status,
                    result.name,
                    why.trim_end()
                ))?;
            }
        }
        if let Whole::No { of, running } = whole {
            ui::print(format_args!(
                "\ninterrupted: {} of {of} cases have ended",
                self.results.len()
            ))?;
            for name in running {
                ui::print(format_args!("  under way: {name}"))?;
            }
            if let Some((_, folder)) = &self.kept {
                let folder = folder.display();
                ui::print("the rest, and then the page of all:")?;
                ui::print(format_args!(
                    "  cargo qemu matrix --rerun-failed {folder} --report {folder}"
                ))?;
            }
        }
        ui::print(format_args!("\nin {}", ui::seconds(took)))?;
        let skipped = match sums.skipped {
            0 => String::new(),
            skipped => format!(", {skipped} skipped"),
        };
        ui::print(format_args!(
            "{} passed, {} failed{skipped}",
            sums.passed, sums.failed
        ))?;
        Ok(sums.failed == 0)
    }

    fn print(&self, line: &impl Serialize) -> std::result::Result<(), Unwritten> {
        ui::print(serde_json::to_string(line).expect("text and numbers are JSON"))
    }
}

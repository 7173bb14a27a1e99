//! How operations ended, counted: one that nearly always fails proves
//! nothing.

use pgtable::Error;
use std::collections::BTreeMap;

/// How one operation ended.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Outcome {
    /// It did what was asked, to the end.
    Done,
    /// It stopped and said why.
    Refused(&'static str),
    /// There was nothing to try it on.
    Nothing,
}

impl From<Error> for Outcome {
    fn from(error: Error) -> Self {
        Self::Refused(match error {
            Error::Range => "range",
            Error::Align => "align",
            Error::NoMem => "no memory",
            Error::Exists { .. } => "exists",
            Error::Missing { .. } => "missing",
            Error::Busy => "busy",
            Error::Mismatch { .. } => "mismatch",
            Error::BlockLevel { .. } => "block level",
            Error::InsideBlock { .. } => "inside block",
            Error::NeedsExclusive { .. } => "needs exclusive",
            Error::InUse { .. } => "in use",
            Error::Attributes => "attributes",
            Error::OtherTree => "other tree",
        })
    }
}

impl<T> From<Result<T, Error>> for Outcome {
    fn from(result: Result<T, Error>) -> Self {
        match result {
            Ok(_) => Self::Done,
            Err(error) => error.into(),
        }
    }
}

/// Counts of outcomes and of events, by kind of operation.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    kinds: BTreeMap<&'static str, (BTreeMap<Outcome, u64>, u64)>,
}

impl Tally {
    /// Notes an operation of `kind` that made so many events.
    pub fn note(&mut self, kind: &'static str, outcome: Outcome, events: u64) {
        let (outcomes, sum) = self.kinds.entry(kind).or_default();
        *outcomes.entry(outcome).or_default() += 1;
        *sum += events;
    }

    /// Adds what another thread counted.
    pub fn add(&mut self, other: &Self) {
        for (kind, (outcomes, events)) in &other.kinds {
            let (mine, sum) = self.kinds.entry(kind).or_default();
            for (outcome, count) in outcomes {
                *mine.entry(*outcome).or_default() += count;
            }
            *sum += events;
        }
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(
            f,
            "{:<16} {:>9} {:>7} {:>8}  otherwise",
            "operation", "count", "done", "events"
        )?;
        for (kind, (outcomes, events)) in &self.kinds {
            let count: u64 = outcomes.values().sum();
            let percent = |of: u64| of as f64 * 100.0 / count as f64;
            let done = outcomes.get(&Outcome::Done).copied().unwrap_or(0);
            write!(
                f,
                "{kind:<16} {count:>9} {:>6.1}% {:>8.1} ",
                percent(done),
                *events as f64 / count as f64
            )?;
            for (outcome, count) in outcomes {
                let name = match outcome {
                    Outcome::Done => continue,
                    Outcome::Refused(why) => why,
                    Outcome::Nothing => "nothing there",
                };
                write!(f, " {name} {:.1}%", percent(*count))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

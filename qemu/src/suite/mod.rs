//! Every test of the project, as one list: checks and tests of the crates,
//! then machines that boot. `cargo qemu test` runs it.
//!
//! A case is a function that fails with a reason. Cases of a *lane* run one after the
//! other (cargo uses all CPUs where it can) or side by side (a machine of one CPU uses
//! one). The lanes run at the same time: there is a test that uses one CPU, or waits
//! for a linker, in most of what cargo does.

pub mod attestation;
pub mod audits;
pub mod bad_input;
pub mod boots;
pub mod call;
pub mod console;
pub mod devices;
pub mod early;
pub mod log;
pub mod native;
pub mod nightly;
pub mod on_target;
pub mod pages;
pub mod placement;
pub mod proof;
pub mod pty;
pub mod realms;
pub mod report;
pub mod resets;
pub mod runner;
pub mod shares;
pub mod source;
pub mod stays_up;
pub mod tiers;
pub mod time;
pub mod trees;
pub mod tsm;
pub mod units;

use std::collections::VecDeque;
use std::path::PathBuf;

use anyhow::Result;
use clap::ValueEnum;

use self::report::Status;
use crate::build::Image;
use crate::matrix;
use crate::setup::qemu::Qemu;
use crate::workspace::Workspace;

/// How much is tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Tier {
    /// What must hold at each change; of the matrix, all pairs of values
    Quick,
    /// And what takes hours; of the matrix, all triples
    Full,
}

/// What a case may use.
#[derive(Debug)]
pub struct Context {
    /// The project's folders.
    pub workspace: Workspace,
    /// This program.
    pub runner: PathBuf,
    /// The emulator; absent where only crates are tested.
    pub qemu: Option<Qemu>,
    /// The image under test; `Err` says why there is none.
    pub image: Result<Image, String>,
    /// Guests that cannot be had, and why.
    pub missing: Vec<(&'static str, String)>,
    /// Where cases leave what they made, each in a folder of its name.
    pub folder: PathBuf,
    /// Where what a machine was and said is kept for good, if anywhere.
    pub reports: Option<PathBuf>,
    /// How much is tested.
    pub tier: Tier,
}

impl Context {
    /// The image under test.
    ///
    /// # Errors
    /// When it could not be built.
    pub fn image(&self) -> Result<&Image> {
        self.image
            .as_ref()
            .map_err(|why| anyhow::anyhow!("there is no image to boot: {why}"))
    }

    /// The emulator.
    ///
    /// # Errors
    /// When there is none.
    pub fn qemu(&self) -> Result<&Qemu> {
        self.qemu
            .as_ref()
            .ok_or_else(|| anyhow::anyhow!("there is no QEMU"))
    }
}

/// How many tests a case was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Those that passed.
    pub passed: u32,
    /// Those that failed.
    pub failed: u32,
    /// Those that were not run.
    pub skipped: u32,
}

impl Counts {
    /// One that passed.
    pub const ONE: Self = Self {
        passed: 1,
        failed: 0,
        skipped: 0,
    };

    /// One that failed.
    pub const FAILED: Self = Self {
        passed: 0,
        failed: 1,
        skipped: 0,
    };
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// Whether other cases may run beside this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// One of these at a time: it uses all CPUs where it can.
    Cargo,
    /// Beside any other.
    Shared,
}

/// Cases that wait for someone to run them.
#[derive(Debug, Default)]
pub struct Queue {
    cases: VecDeque<Case>,
    /// One of [`Lane::Cargo`] is under way.
    cargo_runs: bool,
}

impl Queue {
    /// These, in their order.
    pub fn of(cases: Vec<Case>) -> Self {
        Self {
            cases: cases.into(),
            cargo_runs: false,
        }
    }

    /// The next to be run; `None` when those that are left are for who runs the one
    /// that they may not run beside.
    pub fn take(&mut self) -> Option<Case> {
        let may_run = |case: &Case| case.lane == Lane::Shared || !self.cargo_runs;
        let at = self.cases.iter().position(may_run)?;
        let case = self.cases.remove(at)?;
        self.cargo_runs |= case.lane == Lane::Cargo;
        Some(case)
    }

    /// What [`Self::take`] gave has been run.
    pub fn done(&mut self, case: &Case) {
        if case.lane == Lane::Cargo {
            self.cargo_runs = false;
        }
    }
}

/// How a case ended that did not fail.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// How many tests it was.
    pub counts: Counts,
    /// What it found out, for people: a table, or why it was skipped.
    pub says: Option<String>,
    /// It failed as it was known to.
    pub is_expected: bool,
}

impl Outcome {
    /// A case that could not be run here, and why.
    pub fn skipped(why: impl Into<String>) -> Self {
        Self {
            counts: Counts {
                skipped: 1,
                ..Counts::default()
            },
            says: Some(why.into()),
            is_expected: false,
        }
    }

    /// A case that failed as it was known to, and why it does.
    pub fn expected(why: impl Into<String>) -> Self {
        Self {
            is_expected: true,
            ..Self::skipped(why)
        }
    }

    /// What that is of a case that ran to its end.
    pub fn status(&self) -> Status {
        if self.is_expected {
            Status::Expected
        } else if self.counts.passed == 0 && self.counts.skipped > 0 {
            Status::Skipped
        } else {
            Status::Passed
        }
    }
}

impl From<Counts> for Outcome {
    fn from(counts: Counts) -> Self {
        Self {
            counts,
            ..Self::default()
        }
    }
}

type Body = Box<dyn Fn(&Context) -> Result<Outcome> + Send + Sync>;

/// A test.
pub struct Case {
    /// Its name, `group/what`.
    pub name: String,
    /// From which tier on it runs.
    pub tier: Tier,
    /// Whether others may run beside it.
    pub lane: Lane,
    /// Guests of the archive that it boots, so that they are there before its time
    /// is measured.
    pub guests: Vec<&'static str>,
    body: Body,
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Case")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Case {
    /// A case of the quick tier that boots machines or calls the runner.
    pub fn new(
        name: impl Into<String>,
        body: impl Fn(&Context) -> Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self {
            name: name.into(),
            tier: Tier::Quick,
            lane: Lane::Shared,
            guests: Vec::new(),
            body: Box::new(move |context| body(context).map(|()| Counts::ONE.into())),
        }
    }

    /// A case of the quick tier that cargo runs.
    pub fn of_cargo<O: Into<Outcome>>(
        name: impl Into<String>,
        body: impl Fn(&Context) -> Result<O> + Send + Sync + 'static,
    ) -> Self {
        Self {
            name: name.into(),
            tier: Tier::Quick,
            lane: Lane::Cargo,
            guests: Vec::new(),
            body: Box::new(move |context| body(context).map(Into::into)),
        }
    }

    /// A case of the quick tier that may find that it cannot be run here.
    pub fn skipping(
        name: impl Into<String>,
        body: impl Fn(&Context) -> Result<Outcome> + Send + Sync + 'static,
    ) -> Self {
        Self::of_cargo(name, body).beside()
    }

    /// The same case, in the full tier alone.
    pub fn full(mut self) -> Self {
        self.tier = Tier::Full;
        self
    }

    /// The same case, beside which another may run.
    pub fn beside(mut self) -> Self {
        self.lane = Lane::Shared;
        self
    }

    /// The same case, which boots these guests of the archive.
    pub fn boots(mut self, guests: &[&'static str]) -> Self {
        self.guests.extend(guests);
        self
    }

    /// Runs it.
    ///
    /// # Errors
    /// When it fails; the error is the reason.
    pub fn run(&self, context: &Context) -> Result<Outcome> {
        let lacks = |(name, _): &&(&str, String)| self.guests.contains(name);
        if let Some((name, why)) = context.missing.iter().find(lacks) {
            let why = anyhow::anyhow!("there is no guest {name} to boot: {why}");
            return Err(why.context(Status::Error));
        }
        (self.body)(context)
    }

    /// Whether it needs the image and QEMU.
    pub fn needs_machine(&self) -> bool {
        !["check/", "crate/", "proof/", "miri/", "fuzz/"]
            .iter()
            .any(|group| self.name.starts_with(group))
    }
}

/// All cases, in the order in which they are worth knowing; of the matrix those of a
/// tier.
pub fn all(workspace: &Workspace, tier: Tier) -> Vec<Case> {
    let mut cases = source::cases();
    cases.extend(native::cases(workspace));
    cases.extend(attestation::cases());
    cases.extend(proof::cases());
    cases.extend(nightly::cases());
    cases.extend(runner::cases());
    cases.extend(boots::cases());
    cases.extend(realms::cases());
    cases.push(tsm::case());
    cases.extend(stays_up::cases());
    cases.extend(resets::cases());
    cases.extend(shares::cases());
    cases.extend(log::cases());
    cases.extend(on_target::cases());
    cases.extend(audits::cases());
    cases.extend(console::cases());
    cases.extend(devices::cases());
    cases.extend(bad_input::cases());
    cases.extend(trees::cases());
    cases.extend(placement::cases());
    cases.extend(pages::cases());
    cases.extend(early::cases());
    cases.extend(time::cases());
    cases.extend(units::cases());
    cases.extend(matrix::cases(tier));
    cases.extend(matrix::faults::cases());
    tiers::settle(&mut cases);
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_cargos_runs_beside_machines() {
        let cargo = |name| Case::of_cargo(name, |_| Ok(Counts::ONE));
        let machine = |name| Case::new(name, |_| Ok(()));
        let mut queue = Queue::of(vec![
            cargo("a"),
            cargo("b"),
            machine("c"),
            machine("d"),
            cargo("e"),
        ]);
        let mut next = || queue.take().map(|case| (case.name.clone(), case));
        let (a, case_a) = next().expect("the first");
        let (c, _) = next().expect("a machine");
        let (d, _) = next().expect("another");
        assert_eq!([&*a, &*c, &*d], ["a", "c", "d"]);
        assert!(next().is_none(), "b is for who runs a");
        queue.done(&case_a);
        let case_b = queue.take().expect("b");
        assert_eq!(case_b.name, "b");
        assert!(queue.take().is_none());
        queue.done(&case_b);
        assert_eq!(queue.take().expect("e").name, "e");
        assert!(queue.take().is_none());
    }
}

//! `cargo qemu test`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{self, Path, PathBuf};
use std::sync::Mutex;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use signal_hook::iterator::Signals;

use crate::build;
use crate::command::guests;
use crate::guests::catalogue;
use crate::run::ending::{Ending, FAILED, NO_READER};
use crate::scratch;
use crate::setup::qemu;
use crate::signals;
use crate::suite::native::TestsFailed;
use crate::suite::report::{self, Report, Status, Whole};
use crate::suite::{self, Case, Context, Counts, Lane, Outcome, Queue, Tier, call};
use crate::ui::{self, Step};
use crate::workspace::Workspace;

/// What to test, and how to tell.
#[derive(Args, Debug)]
pub struct Options {
    /// Only cases whose name holds this; may be given more than once
    #[arg(long, value_name = "TEXT")]
    filter: Vec<String>,

    #[command(flatten)]
    how: How,

    /// List the cases instead of running them
    #[arg(long)]
    list: bool,
}

/// Tests; the exit status is 0 when nothing failed.
///
/// # Errors
/// When it does not come to a test.
pub fn test(options: &Options) -> Result<u8> {
    let workspace = Workspace::find()?;
    let filter = &options.filter;
    let named = |case: &Case| filter.iter().any(|text| case.name.contains(text.as_str()));
    let of = |tier| {
        let mut cases = suite::all(&workspace, tier);
        cases.retain(|case| case.tier <= tier && (filter.is_empty() || named(case)));
        cases
    };
    let cases = of(options.how.tier);
    if cases.is_empty() {
        let names = filter.join(" or ");
        match of(Tier::Full).len() {
            0 => bail!("no case has {names} in its name: --tier full --list shows all"),
            1 => bail!("no case of this tier has {names} in its name; of --tier full 1 does"),
            n => bail!("no case of this tier has {names} in its name; of --tier full {n} do"),
        }
    }
    if options.list {
        for case in &cases {
            if options.how.json {
                ui::print(serde_json::json!({ "name": case.name }))?;
            } else {
                ui::print(&case.name)?;
            }
        }
        return Ok(0);
    }
    run(workspace, cases, &options.how, None)
}

/// How cases are run.
#[derive(Args, Debug)]
pub struct How {
    /// How much to test
    #[arg(long, value_enum, default_value = "quick")]
    pub tier: Tier,

    /// Cases that run side by side: of those that call cargo, one at a time
    #[arg(long, value_name = "N", default_value_t = 2)]
    #[arg(value_parser = clap::value_parser!(u8).range(1..=64))]
    jobs: u8,

    /// Print JSON: an object a line for each case, the sums on the last line
    #[arg(long)]
    pub json: bool,

    /// An image built before, instead of building one
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
}

/// Runs cases, and keeps results and what machines said in `reports`, where there is
/// such a folder; the exit status is 0 when nothing failed.
///
/// # Errors
/// When it does not come to a test.
pub fn run(
    workspace: Workspace,
    cases: Vec<Case>,
    how: &How,
    reports: Option<&Path>,
) -> Result<u8> {
    let begun = Instant::now();
    let folder = scratch::folder(&workspace)?;
    let mut context = prepare(workspace, how, &cases, folder.path())?;
    context.reports = reports.map(Path::to_path_buf);
    let (to, events) = mpsc::channel();
    watch_signals(to.clone())?;
    let mut test = Run {
        report: Report::kept(how.json, reports)?,
        step: Step::hidden("Testing", "the first"),
        all: cases.len(),
        done: 0,
        running: Vec::new(),
        begun,
    };
    test.step.count(0, test.all as u64);
    // What builds a tree of its own has the machine for itself.
    let alone = |case: &Case| case.lane == Lane::Cargo && case.needs_machine();
    let (last, first): (Vec<_>, Vec<_>) = cases.into_iter().partition(alone);
    for (cases, jobs) in [(first, how.jobs), (last, 1)] {
        test.run(cases, usize::from(jobs), &context, (&to, &events));
    }
    drop(test.step);
    let well = test.report.close(begun.elapsed(), Whole::Yes)?;
    Ok(if well { 0 } else { FAILED })
}

/// Sets up what the cases share: QEMU, the image, and the guests that they boot.
fn prepare(workspace: Workspace, how: &How, cases: &[Case], folder: &Path) -> Result<Context> {
    let (mut found, mut image) = (None, Err("it was not asked for".to_string()));
    let mut missing = Vec::new();
    if cases.iter().any(Case::needs_machine) {
        found = Some(qemu::ensure(&workspace.scratch())?);
        let given = how.image.as_deref().map(path::absolute).transpose()?;
        let built = build::image_or(&workspace, given.as_deref());
        // What was asked for is the caller's to mend, before minutes of fetching.
        image = match built {
            Err(error) if given.is_some() => return Err(error),
            built => built.map_err(|error| format!("{error:#}")),
        };
        if let Err(why) = &image {
            ui::warn(format_args!("no image: {why}"));
        }
        let mut names: Vec<_> = cases.iter().flat_map(|case| &case.guests).collect();
        names.sort();
        names.dedup();
        for name in names {
            // The others need not wait for this one.
            if let Err(error) = guests::fetch(&workspace, catalogue::find(name)?) {
                ui::warn(format_args!("no guest {name}: {error:#}"));
                missing.push((*name, format!("{error:#}")));
            }
        }
    }
    Ok(Context {
        runner: std::env::current_exe().context("cannot find this program")?,
        qemu: found,
        image,
        missing,
        folder: folder.to_path_buf(),
        reports: None,
        tier: how.tier,
        workspace,
    })
}

/// What happens while cases run.
enum Event {
    Begun(String),
    Done(report::Result),
    /// A worker has no more to do.
    Idle,
    Signal(i32),
}

/// Turns signals that would end us into events: what was found out is said first.
fn watch_signals(to: Sender<Event>) -> Result<()> {
    let mut signals = Signals::new(signals::ending()).context("cannot watch for signals")?;
    thread::spawn(move || {
        for number in signals.forever() {
            if to.send(Event::Signal(number)).is_err() {
                return;
            }
        }
    });
    Ok(())
}

/// Cases under way.
struct Run {
    report: Report,
    step: Step,
    all: usize,
    done: usize,
    running: Vec<String>,
    begun: Instant,
}

impl Run {
    /// Runs cases, some side by side, and reports each when it is done.
    fn run(
        &mut self,
        cases: Vec<Case>,
        jobs: usize,
        context: &Context,
        (to, events): (&Sender<Event>, &Receiver<Event>),
    ) {
        let queue = Mutex::new(Queue::of(cases));
        thread::scope(|scope| {
            for _ in 0..jobs {
                let (to, queue) = (to.clone(), &queue);
                scope.spawn(move || {
                    loop {
                        let next = queue.lock().ok().and_then(|mut queue| queue.take());
                        let Some(case) = next else { break };
                        // The receiver lives as long as this scope.
                        let _ = to.send(Event::Begun(case.name.clone()));
                        let result = one(&case, context);
                        if let Ok(mut queue) = queue.lock() {
                            queue.done(&case);
                        }
                        let _ = to.send(Event::Done(result));
                    }
                    let _ = to.send(Event::Idle);
                });
            }
            let mut workers = jobs;
            while workers > 0
                && let Ok(event) = events.recv()
            {
                match event {
                    Event::Begun(name) => self.running.push(name),
                    Event::Done(result) => {
                        self.done += 1;
                        self.running.retain(|name| *name != result.name);
                        if let Err(why) = self.report.take(result) {
                            if why.reader_gone() {
                                leave(NO_READER);
                            }
                            ui::error(why);
                            leave(FAILED);
                        }
                    }
                    Event::Idle => workers -= 1,
                    Event::Signal(number) => self.interrupted(number),
                }
                self.step.say(self.running.join(", "));
                self.step.count(self.done as u64, self.all as u64);
            }
        });
    }

    /// Says what was found out so far, and ends.
    fn interrupted(&mut self, signal: i32) -> ! {
        let report = std::mem::replace(&mut self.report, Report::new(false));
        let rest = Whole::No {
            of: self.all,
            running: std::mem::take(&mut self.running),
        };
        self.step.clear();
        // Without a reader there is nobody to tell.
        let _ = report.close(self.begun.elapsed(), rest);
        leave(Ending::Signal(signal).exit_code())
    }
}

/// Ends at once, with all that cases have started.
fn leave(status: u8) -> ! {
    call::end_all();
    std::process::exit(status.into())
}

fn one(case: &Case, context: &Context) -> report::Result {
    let begun = Instant::now();
    let outcome = catch_unwind(AssertUnwindSafe(|| case.run(context)))
        .unwrap_or_else(|_| Err(anyhow::anyhow!("the test itself failed: see above")));
    let (status, outcome, why) = match outcome {
        Ok(outcome) => (outcome.status(), outcome, None),
        Err(error) => {
            let counts = error
                .downcast_ref::<TestsFailed>()
                .map_or(Counts::FAILED, |f| f.0);
            let status = error.downcast_ref().copied().unwrap_or(Status::Failed);
            (status, Outcome::from(counts), Some(format!("{error:#}")))
        }
    };
    report::Result {
        name: case.name.clone(),
        status,
        counts: outcome.counts,
        says: outcome.says,
        took: begun.elapsed(),
        why,
    }
}

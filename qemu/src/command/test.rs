//! `cargo qemu test`.

use std::collections::VecDeque;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::build;
use crate::command::guests;
use crate::guests::catalogue::CATALOGUE;
use crate::run::ending::FAILED;
use crate::setup::qemu;
use crate::suite::native::TestsFailed;
use crate::suite::report::{self, Report};
use crate::suite::{self, Case, Context, Counts, Lane, Outcome, Tier};
use crate::ui;
use crate::workspace::Workspace;

/// What to test, and how to tell.
#[derive(Args, Debug)]
pub struct Options {
    /// Only cases whose name holds this; may be given more than once
    #[arg(long, value_name = "TEXT")]
    filter: Vec<String>,

    /// How much to test
    #[arg(long, value_enum, default_value = "quick")]
    tier: Tier,

    /// Machines that run side by side
    #[arg(long, value_name = "N", default_value_t = 2)]
    #[arg(value_parser = clap::value_parser!(u8).range(1..=64))]
    jobs: u8,

    /// Print JSON: an object a line for each case, the sums on the last line
    #[arg(long)]
    json: bool,

    /// An image built before, instead of building one
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,

    /// List the cases instead of running them
    #[arg(long)]
    list: bool,
}

/// Tests; the exit status is 0 when nothing failed.
///
/// # Errors
/// When it does not come to a test.
pub fn test(options: &Options) -> Result<u8> {
    let begun = Instant::now();
    let workspace = Workspace::find()?;
    let chosen = |case: &Case| {
        case.tier <= options.tier
            && (options.filter.is_empty()
                || options
                    .filter
                    .iter()
                    .any(|text| case.name.contains(text.as_str())))
    };
    let cases: Vec<Case> = suite::all(&workspace).into_iter().filter(chosen).collect();
    if options.list {
        for case in &cases {
            println!("{}", case.name);
        }
        return Ok(0);
    }
    if cases.is_empty() {
        bail!(
            "no case has {} in its name: --list shows all",
            options.filter.join(" or ")
        );
    }
    let context = prepare(workspace, options, cases.iter().any(Case::needs_machine))?;
    let mut report = Report::new(options.json);
    let (alone, shared): (Vec<_>, Vec<_>) =
        cases.into_iter().partition(|case| case.lane == Lane::Alone);
    let (first, last): (Vec<_>, Vec<_>) = alone.into_iter().partition(|case| !case.needs_machine());
    for (cases, jobs) in [(first, 1), (shared, options.jobs), (last, 1)] {
        run(cases, usize::from(jobs), &context, &mut report);
    }
    let well = report.close(begun.elapsed());
    Ok(if well { 0 } else { FAILED })
}

/// Sets up what the cases share: QEMU, guests, the image.
fn prepare(workspace: Workspace, options: &Options, machines: bool) -> Result<Context> {
    let folder = workspace.scratch().join("test");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let (mut found, mut image) = (None, Err("it was not asked for".to_string()));
    if machines {
        found = Some(qemu::ensure(&workspace.scratch())?);
        let fetched: Vec<_> = CATALOGUE
            .iter()
            .filter(|guest| !matches!(guest.origin, crate::guests::catalogue::Origin::Ours { .. }))
            .collect();
        guests::fetch(&workspace, &fetched)?;
        image = build::image_or(&workspace, options.image.as_deref())
            .map_err(|error| format!("{error:#}"));
        if let Err(why) = &image {
            ui::warn(format_args!("no image: {why}"));
        }
    }
    Ok(Context {
        runner: std::env::current_exe().context("cannot find this program")?,
        qemu: found,
        image,
        folder,
        tier: options.tier,
        workspace,
    })
}

/// Runs cases, some side by side, and reports each when it is done.
fn run(cases: Vec<Case>, jobs: usize, context: &Context, report: &mut Report) {
    let queue = Mutex::new(VecDeque::from(cases));
    let (to, results) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..jobs {
            let to = to.clone();
            let queue = &queue;
            scope.spawn(move || {
                loop {
                    let next = queue.lock().ok().and_then(|mut queue| queue.pop_front());
                    let Some(case) = next else { return };
                    // The receiver lives as long as this scope.
                    let _ = to.send(one(&case, context));
                }
            });
        }
        drop(to);
        for result in results {
            report.take(result);
        }
    });
}

fn one(case: &Case, context: &Context) -> report::Result {
    let begun = Instant::now();
    let outcome = catch_unwind(AssertUnwindSafe(|| case.run(context)))
        .unwrap_or_else(|_| Err(anyhow::anyhow!("the test itself failed: see above")));
    let (outcome, why) = match outcome {
        Ok(outcome) => (outcome, None),
        Err(error) => {
            let counts = error
                .downcast_ref::<TestsFailed>()
                .map_or(Counts::FAILED, |f| f.0);
            (Outcome::from(counts), Some(format!("{error:#}")))
        }
    };
    report::Result {
        name: case.name.clone(),
        counts: outcome.counts,
        says: outcome.says,
        took: begun.elapsed(),
        why,
    }
}

//! Hostile hosts whose machine is looked at from outside while they stand still.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};

use super::boots::LIMIT;
use super::on_target::hostile_image;
use super::{Case, Context};
use crate::audit::Audit;
use crate::audit::judge::Report;
use crate::audit::layout::Layout;
use crate::audit::plants;
use crate::audit::ram::Ram;
use crate::audit::state::{Kind, State};
use crate::machine::virt::{DEFAULT_CPU, Machine, RAM_BASE};
use crate::run::capture::Capture;
use crate::run::ending::{self, Ending};
use crate::size::Size;

/// MiB of RAM.
const RAM: u64 = 1024;
/// What a protected guest of `hostile` fills its memory with.
const SECRET: u64 = 0xe75e_5ec2_e75e_5ec2;

/// Calls of each CPU in a case of its own.
const CALLS: u64 = 20_000;

/// What no host of the quick tier's has succeed.
const NEVER: [&str; 3] = ["RMI_RTT_SET_RIPAS", "VENDOR_LOG_INPUT", "VENDOR_REC_WRITE"];

/// The cases.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for granule in ["16k", "64k"] {
        let name = format!("tests/hostile-audit-{granule}");
        let body = move |context: &Context| hostile(context, "2", granule, "calls=500 seed=1");
        cases.push(Case::new(name, body).full());
    }
    for granule in ["4k", "16k", "64k"] {
        let name = format!("tests/hostile-cycles-{granule}");
        cases.push(Case::new(name, move |context| cycles(context, granule)));
        let name = format!("tests/hostile-tries-{granule}");
        cases.push(Case::new(name, move |context| {
            let words = format!("undercroft.granule={granule} do=tries");
            tried_out(&audited(context, "1", &words)?)
        }));
    }
    for (granule, seed) in [("4k", 1), ("16k", 2), ("64k", 3)] {
        let name = format!("tests/hostile-stress-{granule}");
        cases.push(Case::new(name, move |context| {
            stress(context, granule, seed)
        }));
    }
    cases
}

/// All checks of `hostile`. Where its protected guest lives, the audit is tried out.
///
/// # Errors
/// What a check or the audit found.
pub fn hostile(context: &Context, smp: &str, granule: &str, words: &str) -> Result<()> {
    let words = format!("undercroft.granule={granule} {words}");
    tried_out(&audited(context, smp, &words)?)
}

/// A guest with a secret was there, and each fault that was planted beside it found.
fn tried_out(seen: &Seen) -> Result<()> {
    let live = seen.points.iter().find(|point| point.name == "tries");
    let live = live.context("it never came to its guest")?;
    ensure!(
        live.report.secrets > 0 && live.report.count(Kind::Data) > 0,
        "its guest holds nothing: {}",
        live.report
    );
    ensure!(live.planted > 40, "{} faults planted", live.planted);
    Ok(())
}

/// All commands, from four CPUs at once: each succeeds, all memory comes back, and what
/// stands in between is in order.
fn stress(context: &Context, granule: &str, seed: u64) -> Result<()> {
    let words = format!("undercroft.granule={granule} do=stress calls={CALLS} seed={seed}");
    let seen = audited(context, "4", &words)?;
    let lines = seen
        .console
        .lines()
        .filter_map(|line| line.strip_prefix("fuzz: "));
    let never: Vec<_> = lines
        .filter_map(|line| line.trim().strip_suffix(" succeeded 0 times"))
        .filter(|name| !NEVER.contains(name))
        .collect();
    ensure!(never.is_empty(), "never successful: {never:?}");
    Ok(())
}

/// A thousand lives of guests of each mode leave nothing, and take nothing.
fn cycles(context: &Context, granule: &str) -> Result<()> {
    let words = format!("undercroft.granule={granule} do=cycles");
    let seen = audited(context, "1", &words)?;
    let live = seen.points.iter().find(|point| point.name == "cycles");
    let live = &live.context("it never came to the middle")?.report;
    ensure!(live.secrets > 0, "the guest holds nothing: {live}");
    Ok(())
}

/// What a run was seen to be.
struct Seen {
    points: Vec<Point>,
    console: String,
}

/// A moment at which the machine was looked at.
struct Point {
    name: String,
    report: Report,
    pool_left: u64,
    planted: usize,
}

/// `hostile`, looked at at each of its points. At the end all must be as it was at the
/// beginning.
fn audited(context: &Context, smp: &str, words: &str) -> Result<Seen> {
    let folder = tempfile::tempdir_in(&context.folder)?;
    let shared = Path::new("/dev/shm");
    let fast = if shared.is_dir() {
        tempfile::tempdir_in(shared)
    } else {
        tempfile::tempdir_in(&context.folder)
    }?;
    let file = fast.path().join("ram");
    let machine = machine(context, folder.path(), &file, (smp, words))?;
    let mut capture = Capture::start(&machine, LIMIT, false)?;
    let talk = |capture: &mut Capture| -> Result<Vec<Point>> {
        let mut points = Vec::new();
        loop {
            capture.until("audit ")?;
            capture.until("\n")?;
            let console = String::from_utf8_lossy(&capture.console).into_owned();
            let last = console
                .lines()
                .rev()
                .find_map(|line| line.strip_prefix("audit "));
            let name = last.unwrap_or_default().trim().to_string();
            points.push(look(context, capture, &file, &name)?);
            capture.type_in("\n")?;
            if name == "end" {
                break;
            }
        }
        match capture.finish()? {
            Ending::Status(0) => Ok(points),
            other => bail!("it ended with {other}"),
        }
    };
    let points = talk(&mut capture).map_err(|error| error.context(capture.last_words()))?;
    let console = String::from_utf8_lossy(&capture.console).into_owned();
    let failed = console.lines().filter(|line| line.starts_with("FAIL"));
    let failed: Vec<_> = failed.collect();
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    let (first, last) = (&points[0], &points[points.len() - 1]);
    ensure!(
        last.report.is_at_rest() && last.pool_left == first.pool_left,
        "something is left: {}; {} pages of tables, {} before",
        last.report,
        last.pool_left,
        first.pool_left
    );
    Ok(Seen { points, console })
}

fn machine(
    context: &Context,
    folder: &Path,
    ram: &Path,
    (smp, words): (&str, &str),
) -> Result<Machine> {
    let qemu = context.qemu()?.clone();
    let backend = format!(
        "memory-backend-file,id=ram,size={RAM}M,mem-path={},share=on",
        ram.display()
    );
    let extra = ["-object", &backend, "-machine", "memory-backend=ram"];
    Ok(Machine {
        log_uart: Machine::can_have_log_uart(&qemu),
        qemu,
        cpu: DEFAULT_CPU.into(),
        cpus: smp.parse()?,
        ram: Size::mib(RAM),
        ram_base: RAM_BASE,
        kernel: Some(hostile_image(context, folder)?),
        initrd: None,
        append: format!("undercroft.loglevel=info undercroft.log=serial1 audit=1 {words}"),
        end: Some(ending::token()?),
        el2: true,
        debugger: None,
        extra: extra.map(Into::into).into(),
    })
}

/// Looks at the memory, and at copies of it that have a fault each.
fn look(context: &Context, capture: &Capture, file: &Path, name: &str) -> Result<Point> {
    let hyp: Option<&PathBuf> = context.image()?.hyp.as_ref();
    let elf = std::fs::read(hyp.context("an audit needs an image that was built here")?)?;
    let begins = capture.log().iter().find_map(|line| {
        let (_, at) = line.split_once("Undercroft ")?.1.split_once(" at 0x")?;
        u64::from_str_radix(at.trim(), 16).ok()
    });
    let mut audit = Audit {
        ram: Ram::open(file, RAM_BASE)?,
        layout: Layout::of(&elf)?,
        image: begins.context("the log does not say where the image is")?,
        secret: SECRET,
    };
    let report = audit.look()?;
    let said: Vec<_> = report
        .findings
        .iter()
        .take(20)
        .map(ToString::to_string)
        .collect();
    ensure!(
        said.is_empty(),
        "{name}: {report}\n{} findings\n{}",
        report.findings.len(),
        said.join("\n")
    );
    let state: State = audit.state()?;
    let planted = if name == "tries" {
        plants::all_are_found(&mut audit, &state)?
    } else {
        0
    };
    Ok(Point {
        name: name.into(),
        report,
        pool_left: state.pool_left,
        planted,
    })
}

//! `cargo qemu bench memory`: what handing memory over costs, in instructions: each
//! command, a gibibyte by pages and by ranges, a realm and its own calls, a way into a
//! guest and out.
//!
//! A small host (`hostile` of the crate `tests`, which does everything right here) times
//! its calls by the counter, one tick an instruction (`-icount`), and looks at the memory
//! afterwards. What grows with the granule is scrubbing, copying, cleaning, or filling a
//! table: so the same calls with granules of 4 KiB and 16 KiB tell it from the rest.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use super::counted::LIMIT;
use crate::build;
use crate::image::assemble;
use crate::machine::virt::{DEFAULT_CPU, Machine, RAM_BASE};
use crate::run::capture::Capture;
use crate::run::ending::Ending;
use crate::run::options::Granule;
use crate::scratch;
use crate::setup::qemu::Qemu;
use crate::size::Size;
use crate::ui::{self, Step};
use crate::workspace::Workspace;

/// Instructions that a call is to cost beside what grows with the granule.
const CALL: f64 = 700.0;
/// The commands, and what that may be of each: what was reached, and 5 in 100, up to
/// what it is to be. TLB maintenance counts, where a command does any.
const COMMANDS: [(&str, f64); 8] = [
    ("VERSION", 200.0),
    ("GRANULE_DELEGATE", CALL),
    ("GRANULE_UNDELEGATE", CALL),
    ("DATA_CREATE", CALL),
    ("DATA_CREATE_UNKNOWN", 585.0),
    ("DATA_DESTROY", 680.0),
    ("RTT_CREATE", 665.0),
    ("RTT_DESTROY", CALL),
];
/// What a gibibyte by ranges may cost of one by pages, likewise.
const RANGES: f64 = 1.0 / 20.0;
/// What an exit of a protected guest may cost of a plain one's.
const EXIT: f64 = 1.1;

/// Ticks a second where a tick is an instruction.
const NANOSECONDS: u64 = 1_000_000_000;

/// Granules whose difference tells what grows with them.
const SMALL: f64 = 4096.0;
const LARGE: f64 = 16384.0;

/// One figure, as JSON too. Instructions.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What was done.
    name: String,
    /// Calls.
    calls: u64,
    /// Of each call, or of all where it is a gibibyte.
    total: f64,
    /// Of that, what grows with the granule.
    by_size: f64,
    /// The rest.
    rest: f64,
    /// What the rest is to be, and what it may be.
    #[serde(skip_serializing_if = "Option::is_none")]
    limits: Option<Limits>,
}

/// Instructions.
#[derive(Clone, Copy, Debug, Serialize)]
struct Limits {
    goal: f64,
    gate: f64,
}

impl Row {
    /// Whether it stays within its gate.
    pub fn passes(&self) -> bool {
        self.limits.is_none_or(|limits| self.rest <= limits.gate)
    }
}

/// Above the rows.
pub const HEAD: &str = "                          calls      total    by size      rest     goal";

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            calls,
            total,
            by_size,
            rest,
            limits,
        } = self;
        write!(
            f,
            "{name:<24}{calls:>7}{total:>11.0}{by_size:>11.0}{rest:>10.0}"
        )?;
        let Some(Limits { goal, gate }) = limits else {
            return Ok(());
        };
        let verdict = match rest {
            rest if rest > gate => "MISSED",
            rest if rest > goal => "not yet",
            _ => "ok",
        };
        write!(f, "{goal:>9.0} {verdict}")
    }
}

/// Calls and ticks, by name.
type Costs = BTreeMap<String, (u64, u64)>;

/// Measures.
///
/// # Errors
/// When something cannot be built, or the host finds something wrong.
pub fn measure(workspace: &Workspace, qemu: &Qemu) -> Result<Vec<Row>> {
    let folder = scratch::folder(workspace)?;
    let file = folder.path().join("costs.img");
    let image = build::image(workspace)?;
    let hyp = image.hyp.as_ref().context("the image was not built here")?;
    let host = build::elf(workspace, "hostile")?;
    fs::write(&file, assemble::image(&fs::read(hyp)?, &fs::read(host)?)?)
        .with_context(|| format!("cannot write {}", file.display()))?;
    let step = Step::new("Measuring", "what memory costs".to_string());
    let mut costs = Vec::new();
    for (granule, ram) in [
        // A quarter is the host's to give away.
        (Granule::K4, Size::mib(6144)),
        (Granule::K16, Size::mib(2048)),
    ] {
        step.at(costs.len() as f64 / 2.0);
        let machine = Machine {
            qemu: qemu.clone(),
            cpu: DEFAULT_CPU.into(),
            cpus: 1,
            ram,
            ram_base: RAM_BASE,
            kernel: Some(file.clone()),
            initrd: None,
            append: format!("undercroft.granule={granule} undercroft.loglevel=info do=costs"),
            end: None,
            el2: true,
            log_uart: false,
            debugger: None,
            extra: ["-icount", "shift=0,sleep=off"].map(Into::into).into(),
        };
        costs.push(run(&machine)?);
    }
    step.done("Measured", "what memory costs".to_string());
    let [small, large] = &costs[..] else {
        bail!("a machine is missing");
    };
    rows(small, large)
}

/// Runs the host once: what it says.
fn run(machine: &Machine) -> Result<Costs> {
    let mut capture = Capture::start(machine, LIMIT, false)?;
    let ending = capture.finish()?;
    let said = String::from_utf8_lossy(&capture.console).into_owned();
    if ending != Ending::Status(0) {
        ui::say(capture.last_words().trim_end());
        bail!("{ending}");
    }
    parse(&said)
}

fn parse(said: &str) -> Result<Costs> {
    let mut costs = Costs::new();
    for line in said.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        if let ["cost", name, calls, ticks] = words[..] {
            let numbers = (calls.parse()?, ticks.parse()?);
            costs.insert(name.to_owned(), numbers);
        }
    }
    let frequency = costs.remove("ticks-a-second").map(|(hertz, _)| hertz);
    ensure!(
        frequency == Some(NANOSECONDS),
        "the counter has {frequency:?} ticks a second; instructions are counted where it has 10^9"
    );
    Ok(costs)
}

/// The table of two machines' figures.
fn rows(small: &Costs, large: &Costs) -> Result<Vec<Row>> {
    let each = |costs: &Costs, name: &str| -> Result<f64> {
        let (calls, ticks) = costs.get(name).with_context(|| format!("no {name}"))?;
        Ok(*ticks as f64 / *calls as f64)
    };
    // What a call does for each byte of a granule.
    let slope = |name: &str| -> Result<f64> {
        Ok((each(large, name)? - each(small, name)?) / (LARGE - SMALL))
    };
    let mut rows = Vec::new();
    let mut one = |name: &str, limits: Option<Limits>| -> Result<()> {
        let total = each(small, name)?;
        // Of what is done once, another shape of tables may cost more or less.
        let by_size = (slope(name)? * SMALL).clamp(0.0, total);
        rows.push(Row {
            name: name.into(),
            calls: small[name].0,
            total,
            by_size,
            rest: total - by_size,
            limits,
        });
        Ok(())
    };
    for (name, gate) in COMMANDS {
        one(name, Some(Limits { goal: CALL, gate }))?;
    }
    one("REALM_CREATE", None)?;
    one("REALM_DESTROY", None)?;
    one("DATA_CREATE/measured", None)?;
    for name in small.keys().filter(|name| name.starts_with("RSI/")) {
        one(name, None)?;
    }
    let gib = f64::from(1u32 << 30);
    let mut sums = [0.0; 2];
    let parts = [
        ("hand-over", "GRANULE_DELEGATE"),
        ("populate", "DATA_CREATE_UNKNOWN"),
        ("empty", "DATA_DESTROY"),
        ("take-back", "GRANULE_UNDELEGATE"),
    ];
    for (sum, way) in sums.iter_mut().zip(["page", "range"]) {
        for (part, command) in parts {
            let name = format!("1GiB/{way}/{part}");
            let &(calls, ticks) = small.get(&name).with_context(|| format!("no {name}"))?;
            let by_size = (slope(command)? * gib).max(0.0);
            let rest = ticks as f64 - by_size;
            *sum += rest;
            rows.push(Row {
                name,
                calls,
                total: ticks as f64,
                by_size,
                rest,
                limits: None,
            });
        }
    }
    let [pages, ranges] = sums;
    // What has one limit has the goal for its gate.
    let sum = |name: &str, rest: f64, goal: Option<f64>| Row {
        name: name.into(),
        calls: 0,
        total: rest,
        by_size: 0.0,
        rest,
        limits: goal.map(|goal| Limits { goal, gate: goal }),
    };
    rows.push(sum("rests, by pages", pages, None));
    rows.push(sum("rests, by ranges", ranges, Some(pages * RANGES)));
    let plain = each(small, "exit/plain")?;
    let protected = each(small, "exit/protected")?;
    rows.push(sum("a plain exit", plain, None));
    rows.push(sum("a protected exit", protected, Some(plain * EXIT)));
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_grows_with_the_granule_is_told_from_the_rest() {
        let costs = |granule: u64| -> Costs {
            let mut text = String::from("cost ticks-a-second 1000000000 0\n");
            for name in [
                "VERSION",
                "GRANULE_DELEGATE",
                "GRANULE_UNDELEGATE",
                "DATA_CREATE",
                "DATA_CREATE_UNKNOWN",
                "DATA_DESTROY",
                "RTT_CREATE",
                "RTT_DESTROY",
                "REALM_CREATE",
                "REALM_DESTROY",
                "DATA_CREATE/measured",
                "RSI/IPA_STATE_SET/EMPTY",
                "exit/plain",
                "exit/protected",
            ] {
                let ticks = 10 * (200 + granule / 8);
                text += &format!("noise\ncost {name} 10 {ticks}\n");
            }
            for way in ["page", "range"] {
                for part in ["hand-over", "populate", "empty", "take-back"] {
                    let rest = if way == "page" { 1 << 20 } else { 1 << 19 };
                    text += &format!("cost 1GiB/{way}/{part} 7 {}\n", (1 << 27) + rest);
                }
            }
            parse(&text).expect("what a host says")
        };
        let rows = rows(&costs(4096), &costs(16384)).expect("all is there");
        for row in &rows[..12] {
            assert_eq!((row.by_size, row.rest), (512.0, 200.0), "{}", row.name);
            assert!(row.passes());
        }
        let of = |name: &str| rows.iter().find(|row| row.name == name).expect(name);
        assert_eq!(of("1GiB/page/empty").rest, f64::from(1u32 << 20));
        let ranges = of("rests, by ranges");
        assert_eq!(ranges.rest, f64::from(1u32 << 21));
        assert!(!ranges.passes(), "half is more than a twentieth");
        assert!(of("a protected exit").passes());
        for row in &rows {
            assert!(row.to_string().len() <= 80, "{row}");
        }
        assert!(parse("cost ticks-a-second 62500000 0\n").is_err());
    }
}

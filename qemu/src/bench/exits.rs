//! `cargo qemu bench exits`: what each way out of a guest and back costs, in
//! instructions, and whether that stays so beside many vCPUs and many guests.
//!
//! The guest (`exits` of the crate `tests`) times itself by the counter, one tick an
//! instruction (`-icount`): all that is executed on the machine until it goes on, in
//! EL2 and in the host.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use super::counted::LIMIT;
use crate::build;
use crate::bundle;
use crate::config::{Guest, Populate};
use crate::machine::virt::{DEFAULT_CPU, Machine, RAM_BASE};
use crate::run::capture::Capture;
use crate::run::options::Granule;
use crate::scratch;
use crate::setup::qemu::Qemu;
use crate::size::Size;
use crate::ui::Step;
use crate::workspace::Workspace;

/// A row.
struct Exit {
    /// As the guest calls it.
    name: &'static str,
    what: &'static str,
    /// What it costs under KVM (Linux, nVHE) and Xen 4.20, on the same machine by a
    /// program of the same kind.
    elsewhere: [Option<u64>; 2],
    /// What it is to cost.
    goal: u64,
    /// What it costs: the one that changes it says so here, and why in the commit.
    figure: u64,
}

const fn exit(
    (name, what): (&'static str, &'static str),
    elsewhere: [Option<u64>; 2],
    goal: u64,
    figure: u64,
) -> Exit {
    Exit {
        name,
        what,
        elsewhere,
        goal,
        figure,
    }
}

#[rustfmt::skip]
const EXITS: [Exit; 9] = [
    exit(("hvc", "SMCCC_VERSION by HVC"), [Some(1835), Some(448)], 120, 82),
    exit(("id-register", "trapped ID register"), [Some(2221), Some(433)], 160, 104),
    exit(("gicd", "read of GICD_IIDR"), [Some(2607), Some(572)], 220, 114),
    exit(("device", "read of the host's device"), [Some(6691), Some(626)], 1200, 2005),
    exit(("timer", "virtual timer, guest busy"), [Some(3134), Some(1085)], 450, 408),
    exit(("blocked", "the same, blocked"), [Some(8645), Some(4197)], 1500, 1402),
    exit(("sgi", "SGI to itself"), [Some(3213), Some(1027)], 400, 349),
    exit(("ipi", "IPI there and back, WFI"), [Some(12435), Some(15448)], 1500, 1373),
    exit(("touch", "first touch of a 4K page"), [Some(8266), None], 3000, 11),
];

/// The QEMU that they are of: the CPU of another may have more to save and to restore.
const QEMU: &str = "10.";

/// How much dearer a row may be beside many, or on another QEMU.
const SCALES_BY: f64 = 1.1;

/// How many there are: vCPUs of the guest, and guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Scale {
    vcpus: u32,
    guests: u32,
}

const SCALES: [Scale; 5] = [
    Scale {
        vcpus: 1,
        guests: 1,
    },
    Scale {
        vcpus: 8,
        guests: 1,
    },
    Scale {
        vcpus: 32,
        guests: 1,
    },
    Scale {
        vcpus: 1,
        guests: 8,
    },
    Scale {
        vcpus: 1,
        guests: 32,
    },
];

/// One row, as JSON too: instructions.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    name: &'static str,
    #[serde(skip)]
    what: &'static str,
    kvm: Option<u64>,
    xen: Option<u64>,
    goal: u64,
    /// What it was when it was last looked at.
    figure: u64,
    /// It is to be just that.
    exact: bool,
    /// The least of all rounds, with one vCPU.
    least: u64,
    /// Medians, with 1, 8 and 32 vCPUs, and with 8 and 32 guests.
    medians: Vec<u64>,
}

impl Row {
    /// Whether it is what it was, and stays so beside many.
    pub fn passes(&self) -> bool {
        let [first, many @ ..] = &self.medians[..] else {
            return false;
        };
        let within = |median: u64, of: u64| median as f64 <= of as f64 * SCALES_BY;
        let was = *first == self.figure || !self.exact && within(*first, self.figure);
        was && many.iter().all(|&median| within(median, *first))
    }
}

/// Above the rows.
pub const HEAD: &str =
    "                          KVM   Xen  goal  vCPUs: 1     8    32   guests: 8   32";

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |n: Option<u64>| n.map_or("-".into(), |n| n.to_string());
        let (kvm, xen) = (number(self.kvm), number(self.xen));
        write!(f, "{:<26}{kvm:>5}{xen:>6}{:>6}", self.what, self.goal)?;
        for median in &self.medians {
            write!(f, "{median:>6}")?;
        }
        let one = self.medians.first().copied().unwrap_or(u64::MAX);
        let verdict = match self.passes() {
            false => "NEW",
            true if one > self.goal => "far",
            true => "ok",
        };
        write!(f, " {verdict}")
    }
}

/// Min and median, by name.
type Costs = BTreeMap<String, (u64, u64)>;

/// Measures.
///
/// # Errors
/// When something cannot be built, or the guest finds something wrong.
pub fn measure(workspace: &Workspace, qemu: &Qemu) -> Result<Vec<Row>> {
    let folder = scratch::folder(workspace)?;
    let image = build::image(workspace)?;
    let program = build::program(workspace, "exits")?;
    let step = Step::new("Measuring", "what exits cost".to_string());
    let mut all = Vec::new();
    for (n, scale) in SCALES.into_iter().enumerate() {
        step.at(n as f64 / SCALES.len() as f64);
        let mut costs = Costs::new();
        for what in ["exits", "ipi", "blocked", "touch"] {
            let (guests, cpus) = guests(what, &program, scale);
            let file = folder.path().join("bundle.cpio");
            bundle::write(&guests, &file)?;
            let machine = Machine {
                qemu: qemu.clone(),
                cpu: DEFAULT_CPU.into(),
                cpus,
                ram: Size::mib(1024 + 64 * u64::from(scale.guests)),
                ram_base: RAM_BASE,
                kernel: Some(image.file.clone()),
                initrd: Some(file),
                append: format!(
                    "undercroft.granule={} undercroft.loglevel=warn",
                    Granule::K4
                ),
                end: None,
                el2: true,
                log_uart: false,
                debugger: None,
                extra: ["-icount", "shift=0,sleep=off"].map(Into::into).into(),
            };
            costs.append(&mut run(&machine)?);
        }
        all.push(costs);
    }
    step.done("Measured", "what exits cost".to_string());
    let exact = qemu.version.to_string().starts_with(QEMU);
    EXITS.iter().map(|exit| row(exit, &all, exact)).collect()
}

/// The guests of a machine, and how many CPUs it has: each vCPU has one for itself, but
/// where two are to share.
fn guests(what: &str, program: &Path, scale: Scale) -> (Vec<Guest>, u32) {
    let guest = |name: &str, does: &str, vcpus: u32| Guest {
        cmdline: Some(format!("do={does} vcpus={vcpus}")),
        vcpus,
        populate: (does == "touch").then_some(Populate::Lazy),
        ..Guest::new(name, program, Size::mib(48))
    };
    let vcpus = if what == "ipi" {
        scale.vcpus.max(2)
    } else {
        scale.vcpus
    };
    let mut guests = vec![guest("measures", what, vcpus)];
    let shared = what == "blocked";
    let waiting = (scale.guests - 1).saturating_sub(shared.into());
    for n in 1..=waiting {
        guests.push(guest(&format!("waits{n}"), "wait", 1));
    }
    if shared {
        guests.push(guest("spins", "spin", 1));
    }
    (guests, vcpus + waiting)
}

/// Runs a machine until all is measured: what the guest says.
fn run(machine: &Machine) -> Result<Costs> {
    let mut capture = Capture::start(machine, LIMIT, false)?;
    capture.until("exits measured")?;
    let said = String::from_utf8_lossy(&capture.console).into_owned();
    capture.kill()?;
    let mut costs = Costs::new();
    for line in said.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        if let ["exit", name, least, median] = words[..] {
            costs.insert(name.to_owned(), (least.parse()?, median.parse()?));
        }
    }
    Ok(costs)
}

fn row(exit: &Exit, all: &[Costs], exact: bool) -> Result<Row> {
    let figures = all.iter().map(|costs| {
        let figure = costs.get(exit.name);
        figure.with_context(|| format!("the guest does not say what {} costs", exit.name))
    });
    let figures = figures.collect::<Result<Vec<_>>>()?;
    let [kvm, xen] = exit.elsewhere;
    Ok(Row {
        name: exit.name,
        what: exit.what,
        kvm,
        xen,
        goal: exit.goal,
        figure: exit.figure,
        exact,
        least: figures[0].0,
        medians: figures.iter().map(|figure| figure.1).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(medians: &[u64]) -> Row {
        let costs = |&median: &u64| Costs::from([("device".to_owned(), (1, median))]);
        let all: Vec<_> = medians.iter().map(costs).collect();
        row(&EXITS[3], &all, true).expect("all is there")
    }

    #[test]
    fn what_costs_more_or_less_than_it_did_is_told() {
        let figure = EXITS[3].figure;
        for (first, passes) in [(figure, true), (figure + 1, false), (figure - 1, false)] {
            assert_eq!(of(&[first]).passes(), passes, "{first}");
        }
        let most = figure + figure / 10;
        for (first, passes) in [(most, true), (figure - 1, true), (most + 2, false)] {
            let row = Row {
                exact: false,
                ..of(&[first])
            };
            assert_eq!(row.passes(), passes, "{first}, of another QEMU");
        }
        assert!(of(&[figure, most, figure]).passes());
        assert!(!of(&[figure, most + 2]).passes());
        assert!(row(&EXITS[0], &[Costs::new()], true).is_err());
        assert!(of(&[figure; 5]).to_string().len() <= 80);
        assert!(HEAD.len() <= 80, "{}", HEAD.len());
    }

    #[test]
    fn two_share_a_cpu_where_they_are_to() {
        for scale in SCALES {
            for (what, beside) in [("exits", 0), ("ipi", 0), ("blocked", 1), ("touch", 0)] {
                let (guests, cpus) = guests(what, Path::new("exits"), scale);
                let vcpus: u32 = guests.iter().map(|guest| guest.vcpus).sum();
                assert_eq!(vcpus - cpus, beside, "{what} {scale:?}");
                assert!(guests.len() >= scale.guests as usize);
            }
        }
    }
}

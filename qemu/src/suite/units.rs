//! The program `units`: its checks, and its facts, which are the same as on QEMU's machine
//! alone but for those that are named here.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

use super::call::{Call, Called};
use super::on_target::{all_passed, guest};
use super::{Case, Context};
use crate::build;

/// Facts that are others here, by how their names begin, and why.
const OTHERS: [(&str, &str); 20] = [
    ("tree/virtio", "no node for the empty transports"),
    ("tree/arm,pl061", "no GPIO"),
    ("tree/pci-host-ecam-generic", "no PCI"),
    ("tree/qemu,fw-cfg-mmio", "no fw_cfg"),
    ("tree/cfi-flash", "flash for firmware alone"),
    ("tree/arm,armv8-pmuv3", "no PMU"),
    ("tree/its", "no ITS"),
    ("first/gicr-ctlr", "GICR_CTLR.IR: LPIs alone have it"),
    ("first/isenabler0", "SGIs begin enabled"),
    ("gic/defaults-isenabler", "128 SPIs, not 256"),
    ("gic/priority-mask", "5 bits of priority, not 8"),
    ("gic/sizes/", "the same two, and what identifies the GIC"),
    ("gic/sweep/", "the same, and PIDR0, 1 and 4"),
    (
        "timer/27/pending-fallen-taken",
        "README: What it does not do",
    ),
    ("timer/27/hand-icfgr1-ones", "the timer's PPI stays level"),
    ("timer/30/hand-icfgr1-ones", "as above"),
    ("power/function-0x80000000", "SMCCC_VERSION"),
    ("power/features-0x80000000", "the same"),
    (
        "power/affinity/",
        "levels above 0, which PSCI 1.0 may refuse",
    ),
    ("power/cpu-on/0x84000003-", "32 bits of the target count"),
];

/// A fact's values by its name, in their order.
type Facts = BTreeMap<String, Vec<String>>;

/// The cases.
pub fn cases() -> Vec<Case> {
    let mut cases = vec![
        Case::new("tests/units-bare", |context| {
            all_passed(alone(context, &["--smp", "2", "--append", "bare"])?)
        }),
        Case::new("tests/units-facts", same_facts),
    ];
    for (name, options) in [
        ("smp1", ["--smp", "1", "--mode", "plain", "--granule", "4k"]),
        ("smp8", ["--smp", "8", "--mode", "plain", "--granule", "4k"]),
        (
            "protected",
            ["--smp", "2", "--mode", "protected", "--granule", "64k"],
        ),
        (
            "realm",
            ["--smp", "2", "--mode", "realm", "--granule", "4k"],
        ),
    ] {
        cases.push(Case::new(format!("tests/units-{name}"), move |context| {
            all_passed(guest(context, "units", &options)?)
        }));
    }
    cases
}

/// On QEMU's machine alone.
fn alone(context: &Context, options: &[&str]) -> Result<Called> {
    let program = build::program(&context.workspace, "units")?;
    Call::bare(context)
        .args(["--bare", "--initrd", "none", "--kernel"])
        .args([program])
        .args(options)
        .call()
}

fn same_facts(context: &Context) -> Result<()> {
    // A tick of the counter is a number of instructions, however fast this machine is.
    let on = |words| {
        ["--smp", "1", "--append", words]
            .into_iter()
            .chain(["--", "-icount", "shift=0,sleep=off"])
    };
    let parts = "only=start,vectors,gic,timer,power";
    let bare: Vec<_> = on("only=start,vectors,gic,timer,power bare").collect();
    let here: Vec<_> = on(parts).collect();
    let there = facts(&alone(context, &bare)?.ended(0)?);
    let here = facts(&guest(context, "units", &here)?.ended(0)?);
    ensure!(there.len() > 200, "{} facts", there.len());
    let names = there.keys().chain(here.keys());
    let differ: Vec<&String> = names
        .filter(|name| here.get(*name) != there.get(*name))
        .collect();
    let is_of = |name: &str, (begins, _): &(&str, &str)| name.starts_with(begins);
    let unnamed = differ
        .iter()
        .filter(|name| !OTHERS.iter().any(|other| is_of(name, other)));
    let lines: Vec<String> = unnamed
        .map(|name| {
            format!(
                "{name}: {:?}, alone {:?}",
                here.get(*name),
                there.get(*name)
            )
        })
        .collect();
    ensure!(lines.is_empty(), "{}", lines.join("\n"));
    let equal: Vec<_> = OTHERS
        .iter()
        .filter(|other| !differ.iter().any(|name| is_of(name, other)))
        .collect();
    ensure!(equal.is_empty(), "the same by now: {equal:?}");
    Ok(())
}

/// Those that it printed.
fn facts(called: &Called) -> Facts {
    let mut facts = Facts::new();
    let lines = called.stdout.lines();
    for fact in lines.filter_map(|line| line.trim_end().strip_prefix("= ")) {
        let (name, value) = fact.split_once(' ').unwrap_or((fact, ""));
        facts.entry(name.into()).or_default().push(value.into());
    }
    facts
}

//! Every guest has its share of a CPU, whatever the other one on it does: counted
//! in instructions, so that no machine is too slow for it.

use std::fs;

use anyhow::{Result, ensure};
use ruzstd::encoding::{CompressionLevel, compress_to_vec};

use super::boots::{LIMIT, machine};
use super::{Case, Context};
use crate::build;
use crate::config::Guest;
use crate::guests::catalogue;
use crate::guests::fetch::Cache;
use crate::run::capture::Capture;
use crate::size::Size;

/// The least share of a CPU that two have, in thousandths.
const LEAST: u32 = 450;

/// The longest time that one of them does not run, in microseconds.
const LONGEST: u32 = 50_000;

/// What the other one does: see `tests/src/bin/neighbour.rs`. All is on one CPU:
/// QEMU lets several count instructions in turns of 100 ms only. What comes from
/// other CPUs, the host's `turns` are tested with.
const ATTACKS: [&str; 11] = [
    "sleep", "nap", "doze", "physical", "wfi", "wfe", "suspend", "sgi", "exits", "console", "psci",
];

/// That of them which takes minutes: QEMU's WFE does not wait.
const LONG: &str = "wfe";

/// The cases.
pub fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = ATTACKS
        .iter()
        .map(|attack| {
            let case = Case::new(format!("shares/beside-{attack}"), move |context| {
                beside(context, "max", guest(context, attack)?, "for=600000")
            });
            if *attack == LONG { case.full() } else { case }
        })
        .collect();
    for cpu in ["max", "cortex-a72"] {
        cases.push(Case::new(
            format!("shares/beside-resets-{cpu}"),
            move |context| beside_resets(context, cpu),
        ));
    }
    cases
}

/// Beside a guest as large as they are, with a distribution's kernel packed by
/// zstd, that resets again and again: more than one whole reset is watched.
fn beside_resets(context: &Context, cpu: &str) -> Result<()> {
    let folder = tempfile::tempdir_in(&context.folder)?;
    let initrd = folder.path().join("initrd");
    fs::write(&initrd, vec![0x5a; 300 << 20])?;
    let resets = guest(context, "reset")?;
    let debian = Cache::of(&context.workspace).kernel(catalogue::find("debian13")?)?;
    let mut program = fs::read(&resets.kernel)?;
    program.extend(fs::read(debian)?);
    let kernel = folder.path().join("kernel.zst");
    let packed = compress_to_vec(program.as_slice(), CompressionLevel::Fastest);
    fs::write(&kernel, packed)?;
    let resets = Guest {
        memory: Size::mib(1024),
        initrd: Some(initrd),
        kernel,
        ..resets
    };
    beside(context, cpu, resets, "for=3000000")
}

fn guest(context: &Context, what: &str) -> Result<Guest> {
    Ok(Guest {
        cmdline: Some(format!("do={what}")),
        console: Some(what == "measure"),
        ..Guest::new(
            what,
            build::program(&context.workspace, "neighbour")?,
            Size::mib(16),
        )
    })
}

/// One guest measures its share of the one CPU beside `other`, so long.
fn beside(context: &Context, cpu: &str, other: Guest, long: &str) -> Result<()> {
    let folder = tempfile::tempdir_in(&context.folder)?;
    let ram = Size::mib(1024 + other.memory.as_mib());
    let measure = Guest {
        cmdline: Some(format!("do=measure least={LEAST} longest={LONGEST} {long}")),
        ..guest(context, "measure")?
    };
    let mut machine = machine(context, folder.path(), &[measure, other])?;
    machine.cpu = cpu.into();
    machine.ram = ram;
    machine.extra = vec!["-icount".into(), "shift=0,sleep=off".into()];
    let mut capture = Capture::start(&machine, LIMIT, false)?;
    let measured = capture.until("measured");
    measured.map_err(|error| error.context(capture.last_words()))?;
    let words = capture.last_words();
    ensure!(words.contains("| ok share"), "{words}");
    Ok(())
}

//! The programs of crate `tests`: guests that check what they may expect,
//! trespass or reset, hosts that are hostile, and tables that a real MMU walks.
//! And EL2's own death, on request.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::boots::LIMIT;
use super::call::{Call, Called};
use super::{Case, Context, Tier, audits};
use crate::build;
use crate::image::assemble;
use crate::machine::virt;
use crate::size::Size;

/// Of the long sequences of the full tier.
const LIMIT_OF_FULL: Duration = Duration::from_secs(3600);

/// Lines of `straddles`, at the least.
const STRADDLES: usize = 1000;

/// Lines of `accesses`.
const KINDS_OF_ACCESS: usize = 23;

/// What `trespass` can be told to do that its guest takes an abort for.
const TRESPASSES: [&str; 14] = [
    "read-above",
    "write-above",
    "exec-above",
    "pair-above",
    "store-pair-above",
    "post-above",
    "zeros-above",
    "straddle-above",
    "beyond",
    "walk-above",
    "exec-walk-above",
    "write-walk-above",
    "at-walk-above",
    // QEMU's own machine has something there.
    "read-hole",
];

/// Accesses without a syndrome, how far in they are, and the WnR of their aborts:
/// of an instruction that does both, the read's.
const WITHOUT_SYNDROME: [(&str, u64, u64); 11] = [
    ("ldp w1, w2, [x0]", 0, 0),
    ("stp w1, w2, [x0]", 0, 1),
    ("ldp x1, x2, [x0]", 0, 0),
    ("ldr w1, [x0], #4", 0, 0),
    ("str w1, [x0, #4]!", 4, 1),
    ("ldr d1, [x0]", 0, 0),
    ("st1 {v1.4s}, [x0]", 0, 1),
    ("ldxr w1, [x0]", 0, 0),
    ("ldadd w1, w2, [x0]", 0, 0),
    ("swp w1, w2, [x0]", 0, 0),
    ("casal w1, w2, [x0]", 0, 0),
];

/// QEMU's CPUs of AArch64 with EL2, and whether each is tried at every change.
const MODELS: [(&str, bool); 12] = [
    ("max", true),
    ("cortex-a35", false),
    ("cortex-a53", true),
    ("cortex-a55", false),
    ("cortex-a57", false),
    ("cortex-a72", true),
    ("cortex-a76", false),
    ("cortex-a710", false),
    ("neoverse-n1", true),
    ("neoverse-n2", false),
    ("neoverse-v1", false),
    ("a64fx", false),
];

/// The cases.
pub fn cases() -> Vec<Case> {
    let mut cases = vec![
        Case::new("tests/hello", |context| {
            Call::run(context)?
                .args(["--guest", "hello", "--smp", "4"])
                .call()?
                .ended(0)?
                .shows(&["hello from EL1, 4 vcpus"])?
                .shows(&["hello from vcpu 3"])?;
            Ok(())
        }),
        Case::new("tests/conformance-bare", |context| {
            let program = build::program(&context.workspace, "conformance")?;
            let called = Call::bare(context)
                .args(["--bare", "--initrd", "none", "--append", "bare", "--kernel"])
                .args([program])
                .call()?;
            all_passed(called)
        }),
    ];
    for what in TRESPASSES {
        cases.push(Case::new(
            format!("tests/trespass-{what}"),
            move |context| trespass(context, what),
        ));
        cases.push(Case::new(
            format!("tests/trespass-{what}-strict"),
            move |context| {
                let append = format!("do={what}");
                let called = guest(context, "trespass", &["--strict", "--append", &append])?;
                let called = called.failed()?.tells(&["guest", "IPA"])?;
                ensure!(!called.stdout.contains("went on"), "it went on");
                Ok(())
            },
        ));
    }
    cases.push(Case::new("tests/trespass-gic", |context| {
        let called = guest(context, "trespass", &["--append", "do=gic"])?.ended(0)?;
        failed_none(&called)?;
        for (word, offset, wnr) in WITHOUT_SYNDROME {
            let esr = 0x9600_0010 | wnr << 6;
            let told = [0x800_0000, 0x80a_0000]
                .map(|at| format!("{word}: {esr:#x} at {:#x}", at + offset));
            told.iter().try_for_each(|line| {
                let shows = called.stdout.lines().any(|l| l == line);
                ensure!(shows, "not told: {line}");
                Ok(())
            })?;
        }
        // EL2 serves the frames, and the host tells of the first alone.
        reported_once(&called.tells(&["vCPU 0 read from IPA 0x8000000"])?)
    }));
    for cpu in ["max", "cortex-a72"] {
        cases.push(Case::new(
            format!("tests/straddles-as-on-qemu-{cpu}"),
            move |context| straddles(context, cpu),
        ));
    }
    cases.extend(touches());
    for what in ["odd-gic", "code-gone", "races"] {
        cases.push(Case::new(
            format!("tests/trespass-{what}"),
            move |context| {
                let append = format!("do={what}");
                let called = guest(context, "trespass", &["--smp", "2", "--append", &append])?;
                failed_none(&called.ended(0)?.shows(&["went on"])?)
            },
        ));
    }
    for (cpu, seed) in [("max", 1), ("max", 2), ("cortex-a72", 3)] {
        cases.push(Case::new(
            format!("tests/accesses-as-on-qemu-{cpu}-{seed}"),
            move |context| accesses(context, cpu, &format!("seed={seed}")),
        ));
    }
    for (name, options) in [
        ("smp1", ["--smp", "1", "--cpu", "max", "--granule", "4k"]),
        ("smp2", ["--smp", "2", "--cpu", "max", "--granule", "4k"]),
        ("smp4", ["--smp", "4", "--cpu", "max", "--granule", "4k"]),
        (
            "a72",
            ["--smp", "4", "--cpu", "cortex-a72", "--granule", "4k"],
        ),
        (
            "n1",
            ["--smp", "4", "--cpu", "neoverse-n1", "--granule", "4k"],
        ),
        ("16k", ["--smp", "2", "--cpu", "max", "--granule", "16k"]),
        ("64k", ["--smp", "2", "--cpu", "max", "--granule", "64k"]),
    ] {
        cases.push(Case::new(
            format!("tests/conformance-{name}"),
            move |context| {
                let called = guest(context, "conformance", &options)?;
                // It takes many aborts, and knows of each that it came.
                reported_once(&called)?;
                all_passed(called)
            },
        ));
    }
    for (how, words, frame) in [
        (
            "panic",
            ["*** EL2 panic", "undercroft.crash=panic"],
            "primary_main",
        ),
        ("abort", ["permission fault", "write"], "primary_main"),
        (
            "stack",
            ["guard page", "the stack overflowed"],
            "crash::deeper",
        ),
    ] {
        // EL2 dies as it is told to, and says all that there is to say.
        cases.push(Case::new(
            format!("tests/el2-dies-of-{how}"),
            move |context| {
                let append = format!("undercroft.log=serial1 undercroft.crash={how}");
                Call::run(context)?
                    .args(["--bundle", "none", "--", "-append", &append])
                    .call()?
                    .failed()?
                    .tells(&words)?
                    .tells(&["#0"])?
                    .tells(&[frame])?
                    .tells(&["end: ", " panic"])?;
                Ok(())
            },
        ));
    }
    for smp in ["1", "4"] {
        cases.push(Case::new(
            format!("tests/hostile-smp{smp}"),
            move |context| audits::hostile(context, smp, "4k", "calls=5000 seed=1"),
        ));
    }
    cases.push(Case::new("tests/hostile-one-uart", |context| {
        let folder = tempfile::tempdir_in(&context.folder)?;
        let file = hostile_image(context, folder.path())?;
        let append = "undercroft.loglevel=debug calls=100 seed=1";
        let called = Call::bare(context)
            .args(["--one-uart", "--bundle", "none", "--smp", "4", "--image"])
            .args([&file])
            .args(["--", "-append", append])
            .call()?
            .tells(&["end: ", "status 0"])?;
        // The sum may stand amidst lines of the log; the status says the same.
        called.ended(0)?;
        Ok(())
    }));
    for cpu in ["max", "cortex-a72"] {
        cases.push(Case::new(
            format!("tests/hostile-off-and-on-beside-guests-{cpu}"),
            move |context| hostile_on(context, "3", "4k", "do=power", ["-cpu", cpu]),
        ));
    }
    for (granule, smp) in [("4k", "1"), ("16k", "2"), ("64k", "2")] {
        // The machine is reset, which keeps RAM, where else it would end.
        let machine = ["-action", "reboot=reset"];
        cases.push(Case::new(
            format!("tests/hostile-canary-{granule}"),
            move |context| hostile_on(context, smp, granule, "do=canary", machine),
        ));
        cases.push(Case::new(
            format!("tests/hostile-canary-of-vcpu-{granule}"),
            move |context| hostile_on(context, "1", granule, "do=canary-of-vcpu", machine),
        ));
    }
    for (granule, smp) in [("4k", "1"), ("4k", "2"), ("16k", "2"), ("64k", "2")] {
        let name = format!("tests/hostile-host-lrs-{granule}-smp{smp}");
        cases.push(Case::new(name, move |context| {
            hostile_on(context, smp, granule, "do=host-lrs", ["-cpu", "max"])
        }));
    }
    for (cpu, is_usual) in MODELS {
        // One writes and another reads all registers of the CPU.
        let case = Case::new(format!("tests/hostile-worlds-{cpu}"), move |context| {
            hostile_on(context, "2", "4k", "do=worlds", ["-cpu", cpu])
        });
        cases.push(if is_usual { case } else { case.full() });
    }
    for (seed, granule) in (1..=20).zip(["4k", "16k", "64k"].into_iter().cycle()) {
        let body = move |context: &Context| {
            audits::hostile(context, "4", granule, &format!("calls=40000 seed={seed}"))
        };
        cases.push(Case::new(format!("tests/hostile-seed{seed}-{granule}"), body).full());
    }
    for (cpu, smp) in [
        ("max", "1"),
        ("max", "4"),
        ("max,lpa2=off", "4"),
        ("cortex-a72", "1"),
        ("cortex-a72", "4"),
        ("neoverse-n1", "4"),
        ("neoverse-n2", "4"),
    ] {
        cases.push(Case::new(
            format!("tests/el2-tables-{cpu}-smp{smp}"),
            move |context| tables(context, cpu, smp, &["-m", "512M"]),
        ));
    }
    // Output addresses of 49 and of 52 bits.
    for (name, room, at) in [("49", "1P", 1 << 48), ("52", "4000T", 0xe_8000_0000_0000)] {
        let case = Case::new(
            format!("tests/el2-tables-output-{name}-bits"),
            move |context| {
                let ram = virt::more_ram(at, Size::mib(1024), room);
                let words = format!("high={at:#x}");
                let mut high = vec!["-m", "1G", "-append", &words];
                high.extend(ram.iter().map(String::as_str));
                tables(context, "max", "4", &high)
            },
        );
        cases.push(if name == "52" { case } else { case.full() });
    }
    for cpu in ["max", "neoverse-n1"] {
        cases.push(
            Case::new(format!("tests/el2-tables-{cpu}-long"), move |context| {
                let words = "seed=1000 runs=1000 ops=100";
                tables(context, cpu, "4", &["-m", "512M", "-append", words])
            })
            .full(),
        );
    }
    cases
}

/// Fresh RAM is zero however it is touched, whenever the guest gets it; and so it is
/// on QEMU itself.
fn touches() -> Vec<Case> {
    let mut cases = vec![Case::new("tests/touches-bare", |context| {
        let kernel = build::program(&context.workspace, "touches")?;
        let called = Call::bare(context)
            .args(["--bare", "--initrd", "none", "--smp", "4"])
            .args(["--memory", "384M", "--kernel"])
            .args([kernel])
            .call()?;
        all_passed(called)
    })];
    for (granule, populate, cpu) in [
        ("4k", "lazy", "max"),
        // Without FEAT_S2FWB.
        ("4k", "lazy", "neoverse-n1"),
        ("4k", "lazy-pages", "max"),
        ("4k", "lazy-pages", "neoverse-n1"),
        ("4k", "eager", "max"),
        ("16k", "lazy", "max"),
        ("16k", "lazy", "cortex-a76"),
        ("16k", "eager", "max"),
        ("64k", "lazy", "max"),
        ("64k", "lazy", "neoverse-n1"),
    ] {
        let name = format!("tests/touches-{populate}-{granule}-{cpu}");
        cases.push(Case::new(name, move |context| {
            let machine = ["--smp", "4", "--memory", "384M", "--cpu", cpu];
            let how = ["--granule", granule, "--populate", populate];
            let options = [&machine[..], &how].concat();
            let called = guest(context, "touches", &options)?;
            ensure!(
                !called.stderr.contains(" ERROR "),
                "it is told of an error\n{}",
                called.stderr
            );
            all_passed(called)
        }));
    }
    cases
}

/// A guest that trespasses meets what it meets on QEMU itself, and the log has
/// one report.
fn trespass(context: &Context, what: &str) -> Result<()> {
    let append = format!("do={what}");
    let called = guest(context, "trespass", &["--append", &append])?.ended(0)?;
    let mut called = called.tells(&["guest", "IPA"])?;
    reported_once(&called)?;
    if what.contains("walk") {
        // The IPA is a table's, of whose address HPFAR has the page alone.
        called = called
            .tells(&["has its tables at IPA 0xe0000000"])?
            .tells(&["of stage 2 on a stage-1 walk"])?;
    }
    // What it says from its first line on, up to that it went on.
    let went_on = |called: &Called| {
        let from = called.stdout.find("trespass:");
        let text = from.map_or("", |at| &called.stdout[at..]);
        let lines: Vec<_> = text.lines().map(str::trim_end).collect();
        let last = lines.iter().position(|line| line.contains("went on"));
        last.map(|n| lines[..=n].join("\n"))
            .context("it did not go on")
    };
    let here = went_on(&called)?;
    ensure!(here.contains("exception"), "no exception: {here}");
    if what == "read-hole" {
        return Ok(());
    }
    let kernel = build::program(&context.workspace, "trespass")?;
    let bare = Call::bare(context)
        .args([
            "--bare", "--initrd", "none", "--append", &append, "--kernel",
        ])
        .args([kernel])
        .call()?
        .ended(0)?;
    let there = went_on(&bare)?;
    ensure!(here == there, "here {here}\non QEMU {there}");
    Ok(())
}

/// Loads and stores of the UART do in a guest what they do on QEMU itself.
fn accesses(context: &Context, cpu: &str, append: &str) -> Result<()> {
    let kernel = build::program(&context.workspace, "accesses")?;
    let digests = |call: Call| -> Result<Vec<String>> {
        let called = call
            .args(["--initrd", "none", "--cpu", cpu, "--append", append])
            .args(["--kernel".as_ref(), kernel.as_os_str()])
            .call()?
            .ended(0)?
            .shows(&["all told"])?;
        let lines = called.stdout.lines().filter(|l| l.contains("digest"));
        Ok(lines.map(str::to_owned).collect())
    };
    let here = digests(Call::run(context)?)?;
    let there = digests(Call::bare(context).args(["--bare"]))?;
    let differ = here.iter().zip(&there).filter(|(a, b)| a != b);
    let differ: String = differ
        .map(|(a, b)| format!("here {a}\nQEMU {b}\n"))
        .collect();
    ensure!(here.len() == there.len() && differ.is_empty(), "{differ}");
    ensure!(
        here.len() == KINDS_OF_ACCESS,
        "{} kinds of access, expected {KINDS_OF_ACCESS}",
        here.len()
    );
    // A CPU that has all of them did some of each.
    let none = here.iter().find(|line| line.contains(": 0 done"));
    ensure!(none.is_none() || cpu != "max", "{none:?}");
    Ok(())
}

/// Accesses of two pages do in a guest what they do on QEMU itself.
fn straddles(context: &Context, cpu: &str) -> Result<()> {
    let kernel = build::program(&context.workspace, "straddles")?;
    let lines = |call: Call| -> Result<Vec<String>> {
        let called = call
            .args(["--initrd", "none", "--cpu", cpu])
            .args(["--kernel".as_ref(), kernel.as_os_str()])
            .call()?
            .ended(0)?
            .shows(&["all told"])?;
        // Its line has what looped back, too: no text, and so not compared.
        let is_text = |c: &char| (' '..='~').contains(c);
        let text = |line: &str| -> String { line.chars().filter(is_text).collect() };
        let lines = called.stdout.lines().map(text);
        Ok(lines.skip_while(|l| !l.contains("straddles")).collect())
    };
    let here = lines(Call::run(context)?)?;
    let there = lines(Call::bare(context).args(["--bare"]))?;
    let differ = (0..here.len().max(there.len())).find(|n| here.get(*n) != there.get(*n));
    if let Some(n) = differ {
        let around = |lines: &[String]| {
            let from = n.saturating_sub(3).min(lines.len());
            lines[from..lines.len().min(n + 3)].join("\n")
        };
        bail!("here\n{}\nQEMU\n{}", around(&here), around(&there));
    }
    ensure!(here.len() > STRADDLES, "{} lines", here.len());
    Ok(())
}

/// The log tells one abort of the guest's, and says that it tells no more.
fn reported_once(called: &Called) -> Result<()> {
    let count = |sign: &str| called.stderr.matches(sign).count();
    let (reports, promises) = (count(" elr="), count("more of them are not reported"));
    ensure!(
        (reports, promises) == (1, 1),
        "{reports} reports and {promises} ends of them\n{}",
        called.stderr
    );
    Ok(())
}

/// Runs a program as the one guest.
pub fn guest(context: &Context, program: &str, options: &[&str]) -> Result<Called> {
    let kernel = build::program(&context.workspace, program)?;
    Call::run(context)?
        .args(["--initrd", "none", "--kernel"])
        .args([kernel])
        .args(options)
        .call()
}

/// `hostile` in the place of host-loader, on a machine with these further arguments of QEMU. It has no bundle,
/// so its words go to QEMU itself, where the last `-append` counts.
pub fn hostile_on<S: AsRef<OsStr>>(
    context: &Context,
    smp: &str,
    granule: &str,
    words: &str,
    machine: impl IntoIterator<Item = S>,
) -> Result<()> {
    let folder = tempfile::tempdir_in(&context.folder)?;
    let file = hostile_image(context, folder.path())?;
    let append = format!(
        "undercroft.granule={granule} undercroft.loglevel=info undercroft.log=serial1 {words}"
    );
    let called = Call::bare(context)
        .args(["--bundle", "none", "--smp", smp, "--image"])
        .args([&file])
        .args(["--", "-append", &append])
        .args(machine)
        .call()?;
    // What failed says more than how it ended.
    failed_none(&called)?;
    all_passed(called.tells(&["end: ", "status 0"])?)
}

/// The image with `hostile` in the place of host-loader, as a file in `folder`.
///
/// # Errors
/// When it does not build.
pub fn hostile_image(context: &Context, folder: &Path) -> Result<PathBuf> {
    let hyp = context.image()?.hyp.as_ref();
    let hyp = hyp.context("a hostile host needs an image that was built here")?;
    let host = build::elf(&context.workspace, "hostile")?;
    let image = assemble::image(&fs::read(hyp)?, &fs::read(host)?)?;
    let file = folder.join("hostile.img");
    fs::write(&file, image)?;
    Ok(file)
}

/// `el2-tables` at EL2 of QEMU itself.
fn tables(context: &Context, cpu: &str, smp: &str, options: &[&str]) -> Result<()> {
    let program: PathBuf = build::program(&context.workspace, "el2-tables")?;
    let limit = match context.tier {
        Tier::Quick => LIMIT,
        Tier::Full => LIMIT_OF_FULL,
    };
    let called = Call::program(&context.qemu()?.program, limit)
        .args(["-machine", "virt,virtualization=on,gic-version=3"])
        .args([
            "-nodefaults",
            "-display",
            "none",
            "-no-reboot",
            "-nic",
            "none",
        ])
        .args(["-cpu", cpu, "-smp", smp, "-serial", "stdio", "-kernel"])
        .args([program])
        .args(options)
        .call()?;
    all_passed(called)
}

/// A program that counts its checks ended well, and none of them failed.
pub fn all_passed(called: Called) -> Result<()> {
    // First which: the end of what it says may not hold it.
    failed_none(&called)?;
    called.ended(0)?.shows(&[" passed, 0 failed"])?;
    Ok(())
}

/// No check of a program failed.
pub fn failed_none(called: &Called) -> Result<()> {
    let failed: Vec<_> = called
        .stdout
        .lines()
        .filter(|l| l.starts_with("FAIL"))
        .collect();
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

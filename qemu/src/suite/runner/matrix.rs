//! `cargo qemu matrix`: what it leaves for people and CI, and what it says of wrong
//! inputs.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::matrix::{Cell, cells, report};
use crate::suite::call::{Call, LIMIT};
use crate::suite::{Case, Context, Counts, Outcome, Tier};
use crate::workspace::in_path;

/// A configuration that needs no guest of the archive and takes a second.
const ONE: &str = "lpa2_all_hyp4k_own_ramlow_ipa40_short_realm_tour_load1g_2cpu_lazy";

/// The cases.
pub fn cases() -> Vec<Case> {
    vec![
        Case::new("runner/matrix-report", reports),
        Case::new("runner/matrix-wrong-inputs", wrong_inputs),
        Case::skipping("runner/matrix-page", page),
        Case::of_cargo("runner/matrix-as-tests", |context| {
            as_tests(context).map(|()| Counts::ONE)
        }),
    ]
}

fn matrix(context: &Context) -> Result<Call> {
    let image = &context.image()?.file;
    let call = Call::program(&context.runner, LIMIT).args(["matrix"]);
    Ok(call.args(["--image"]).args([image]))
}

/// One that boots, the same as one that is expected to fail, and one that never was.
fn reports(context: &Context) -> Result<()> {
    let folder = tempfile::tempdir_in(&context.folder)?;
    let (first, second) = (folder.path().join("first"), folder.path().join("second"));
    matrix(context)?
        .args(["--case", ONE, "--report"])
        .args([&first])
        .call()?
        .ended(0)?
        .shows(&["passed", ONE])?
        .tells(&["1 passed"])?;
    for name in [
        "command",
        "console.log",
        "log",
        "qemu",
        "sha256",
        "tree.dtb",
    ] {
        let file = first.join(ONE).join(name);
        let size = file.metadata().with_context(|| name.to_string())?.len();
        ensure!(size > 0, "{name} is empty");
    }
    let read = |name: &str| fs::read_to_string(first.join(name)).context(name.to_string());
    ensure!(read("junit.xml")?.contains("tests=\"1\""), "JUnit");
    ensure!(read("summary.md")?.lines().count() == 5, "five lines");
    let list = folder.path().join("expected.toml");
    let entry = "[[expected]]\nfilter = \"kernel=tour\"\nreason = \"it is said to\"\n\
                 link = \"https://example.org/1\"\n";
    fs::write(&list, entry)?;
    matrix(context)?
        .args(["--case", ONE, "--expected"])
        .args([&list])
        .args(["--report".as_ref(), second.as_os_str()])
        .args(["--against".as_ref(), first.as_os_str()])
        .call()?
        .ended(125)?
        .shows(&["it passes, and is known to fail"])?
        .tells(&["newly red", ONE])?;
    // Nothing of the first is left; of the second all is.
    let again = |from: &Path| {
        let call = matrix(context)?.args(["--list", "--rerun-failed"]);
        call.args([from]).call()?.ended(0)
    };
    ensure!(again(&first)?.stdout.is_empty(), "nothing failed there");
    again(&second)?.printed(&format!("{ONE}\n"))?;
    Ok(())
}

fn wrong_inputs(context: &Context) -> Result<()> {
    let folder = tempfile::tempdir_in(&context.folder)?;
    let nowhere = folder.path().join("nowhere");
    let nowhere = nowhere.to_string_lossy();
    let list = folder.path().join("expected.toml");
    fs::write(
        &list,
        "[[expected]]\nfilter = \"hw=lpa3\"\nreason = \"x\"\nlink = \"x://y\"\n",
    )?;
    let list = list.to_string_lossy();
    let excluded = ONE.replace("lpa2_all", "a72_all").replace("ipa40", "ipa48");
    let wrong: [(&[&str], &[&str]); 13] = [
        (&["--list", "--filter", ","], &["names nothing"]),
        (&["--gdb", "--filter", "hw=n2"], &["--gdb", "--case"]),
        (
            &["--join", &nowhere, "--report", &nowhere, "--reference"],
            &["--reference"],
        ),
        (
            &["--case", ONE, "--image", &nowhere],
            &["--image", &nowhere],
        ),
        (&["--list", "--filter", "hv=lpa2"], &["hv", "hw"]),
        (&["--list", "--filter", "hw=lpa3"], &["lpa3", "lpa2"]),
        (&["--case", "nothing"], &["nothing", "--list"]),
        (&["--case", &excluded], &["cannot be", "wider"]),
        (&["--list", "--rerun-failed", &nowhere], &[&nowhere]),
        (&["--join", &nowhere, "--report", &nowhere], &[&nowhere]),
        (&["--list", "--shard", "3/2"], &["3/2", "I/N"]),
        (&["--case", ONE, "--filter", "hw=lpa2"], &["--filter"]),
        (&["--case", ONE, "--expected", &list], &["expected.toml"]),
    ];
    for (arguments, parts) in wrong {
        let called = Call::program(&context.runner, LIMIT).args(["matrix"]);
        let called = called.args(arguments).call()?.ended(125)?;
        for part in parts {
            ensure!(
                called.stderr.contains(part),
                "{arguments:?}: {}",
                called.stderr
            );
        }
    }
    Ok(())
}

/// A browser shows what the page is asked for, and runs nothing that a guest has said.
fn page(context: &Context) -> Result<Outcome> {
    let Some(browser) = in_path("chromium") else {
        return Ok(Outcome::skipped(
            "no chromium in PATH: Debian's package chromium",
        ));
    };
    let folder = tempfile::tempdir_in(&context.folder)?;
    let at = |name: &str| folder.path().join(name);
    let cells: Vec<Cell> = cells(Tier::Quick).into_iter().take(6).collect();
    report::plan(folder.path(), &cells)?;
    let hostile = "no end </script><img src=x onerror=document.title='run'>";
    let results: String = cells
        .iter()
        .enumerate()
        .map(|(n, cell)| {
            let line = serde_json::json!({
                "name": format!("matrix/{}", cell.name()),
                "status": if n == 0 { "failed" } else { "passed" },
                "seconds": 1.0,
                "why": (n == 0).then_some(hostile),
            });
            format!("{line}\n")
        })
        .collect();
    fs::write(at("results.jsonl"), results)?;
    let finished = report::finish(folder.path(), None)?;
    let shown = |words: &str| -> Result<String> {
        let called = Call::program(&browser, Duration::from_secs(300))
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--no-first-run",
            ])
            .args(["--disable-background-networking", "--disable-sync"])
            .args(["--disable-component-update", "--disable-quic"])
            .args([format!("--user-data-dir={}", at("profile").display())])
            .args([
                "--dump-dom".into(),
                format!("file://{}#{words}", finished.page.display()),
            ])
            .call()?
            .ended(0)?;
        Ok(called.stdout)
    };
    let all = shown("rows=hw&columns=hyp")?;
    ensure!(all.contains("6 configurations"), "{all}");
    ensure!(all.contains("1 red of"), "{all}");
    let red = shown("rows=mode&columns=ipa&status=red")?;
    ensure!(
        red.contains("mode \\ ipa") && red.contains("1 configurations"),
        "{red}"
    );
    ensure!(red.contains("&lt;img src=x"), "what it said is text: {red}");
    ensure!(!red.contains("<title>run"), "what a guest said was run");
    let none = shown("status=newly%20red")?;
    ensure!(none.contains("0 configurations"), "{none}");
    Ok(Counts::ONE.into())
}

/// The program that cargo-nextest runs knows the same configurations, and boots one.
fn as_tests(context: &Context) -> Result<()> {
    let cargo = |arguments: &[&str]| {
        Call::of(context.workspace.cargo(), LIMIT)
            .args(["test", "--quiet", "-p", "qemu", "--test", "matrix", "--"])
            .args(arguments)
            .call()?
            .ended(0)
    };
    let listed = cargo(&["--list", "--format", "terse"])?;
    let names: Vec<_> = listed
        .stdout
        .lines()
        .filter_map(|line| line.strip_suffix(": test"))
        .collect();
    let quick: Vec<_> = cells(Tier::Quick).iter().map(Cell::name).collect();
    ensure!(names == quick, "{names:?}");
    let tour = quick.iter().find(|name| name.contains("_tour_"));
    let tour = tour.context("a configuration without a Linux")?;
    cargo(&["--exact", tour])?.shows(&["1 passed"])?;
    Ok(())
}

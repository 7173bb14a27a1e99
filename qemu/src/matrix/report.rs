//! What is left of a matrix: a folder with `planned`, `results.jsonl` and a folder for
//! each configuration, and what is made of it for machines and people.
//!
//! | file | idea |
//! |---|---|
//! | `planned` | names, so that what did not report is seen |
//! | `results.jsonl` | a result a line, as it comes; of a name the last one counts |
//! | `NAME/` | consoles, command, device tree and digests of a machine |
//! | `junit.xml`, `report.html`, a summary in Markdown | all of it, for CI and people |
//! | a table of the reference | where its rows are there: KVM's results beside ours |

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use quick_junit::{NonSuccessKind, Report as Junit, TestCase, TestCaseStatus, TestSuite};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::{Cell, machine, page, reference};
use crate::machine::virt::{Console, Machine};
use crate::suite::report::{RESULTS, Status, added_to};
use crate::ui;

/// The file of planned names.
const PLANNED: &str = "planned";

/// What is said of a configuration that said nothing.
const UNSAID: &str = "it did not report";

/// What a machine was and said.
#[derive(Clone, Copy, Debug)]
pub struct Kept<'a> {
    /// The machine.
    pub machine: &'a Machine,
    /// The files that it was made of.
    pub inputs: &'a [PathBuf],
    /// Its first UART: the guest's console.
    pub console: &'a str,
    /// Its second: the log of EL2 and the host, and QEMU's own words.
    pub log: &'a [String],
}

impl Kept<'_> {
    /// Leaves it in a folder; `from` is the machine's own.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep(&self, to: &Path, from: &Path) -> Result<()> {
        fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
        let write = |name: &str, text: &str| {
            fs::write(to.join(name), text).with_context(|| format!("cannot write {name}"))
        };
        write("console.log", self.console)?;
        write("log", &(self.log.join("\n") + "\n"))?;
        let command = self.machine.command_line(Console::Pipes);
        write("command", &format!("{command}\n"))?;
        let version = &self.machine.qemu.version;
        write("qemu", &format!("QEMU {}.{}\n", version.0, version.1))?;
        let mut digests = String::new();
        for file in self.inputs {
            digests += &format!("{}  {}\n", digest(file)?, file.display());
        }
        write("sha256", &digests)?;
        let mut tree = from.join("tree.dtb");
        if !tree.is_file() {
            tree = machine::tree(from, self.machine)?;
        }
        fs::copy(&tree, to.join("tree.dtb")).context("cannot keep the device tree")?;
        Ok(())
    }
}

/// A file's SHA-256. Kernels and the image are read once.
fn digest(file: &Path) -> Result<String> {
    static KNOWN: Mutex<BTreeMap<PathBuf, String>> = Mutex::new(BTreeMap::new());
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(digest) = known.get(file) {
        return Ok(digest.clone());
    }
    let data = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let digest: String = Sha256::digest(&data)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    known.insert(file.into(), digest.clone());
    Ok(digest)
}

/// A configuration and its result.
#[derive(Clone, Debug)]
pub struct Row {
    /// What it is.
    pub cell: Cell,
    /// How it ended.
    pub status: Status,
    /// How long it took.
    pub seconds: f64,
    /// Why it was not passed.
    pub why: Option<String>,
    /// It was well in an earlier report.
    pub is_newly_bad: bool,
}

/// A result as [`RESULTS`] has it.
#[derive(Clone, Debug, Deserialize)]
struct Line {
    name: String,
    status: Status,
    seconds: f64,
    says: Option<String>,
    why: Option<String>,
}

/// Notes what is to be booted, so that what does not report is seen: what was said of it
/// before counts no more.
///
/// # Errors
/// When the folder holds something else, or it cannot be written.
pub fn plan(folder: &Path, cells: &[Cell]) -> Result<()> {
    let before = if folder.join(PLANNED).exists() {
        read(folder)?
    } else {
        Vec::new()
    };
    let (mut names, mut unsaid) = (String::new(), String::new());
    for cell in cells {
        let name = cell.name();
        names += &format!("{name}\n");
        if before.iter().any(|row| row.cell == *cell) {
            let line = serde_json::json!({
                "name": format!("matrix/{name}"),
                "status": Status::Error,
                "seconds": 0.0,
                "why": UNSAID,
            });
            unsaid += &format!("{line}\n");
        }
    }
    add(folder, PLANNED, &names)?;
    add(folder, RESULTS, &unsaid)
}

/// Adds to a file of a folder, which is made where it is not there.
fn add(folder: &Path, name: &str, text: &str) -> Result<()> {
    let file = folder.join(name);
    fs::create_dir_all(folder)
        .and_then(|()| added_to(&file)?.write_all(text.as_bytes()))
        .with_context(|| format!("cannot write {}", file.display()))
}

/// All that was planned in a folder, with how it ended.
///
/// # Errors
/// When the folder is none of ours.
pub fn read(folder: &Path) -> Result<Vec<Row>> {
    let read = |name: &str| {
        let file = folder.join(name);
        let data = fs::read(&file).with_context(|| {
            format!(
                "cannot read {}: `cargo qemu matrix --report DIR` writes it",
                file.display()
            )
        })?;
        // A line may have been cut within a character.
        anyhow::Ok(String::from_utf8_lossy(&data).into_owned())
    };
    let planned = read(PLANNED)?;
    // Where no configuration has come to its end, there is none yet.
    let has_results = folder.join(RESULTS).exists();
    let text = if has_results {
        read(RESULTS)?
    } else {
        String::new()
    };
    let mut results = BTreeMap::new();
    for line in text.lines() {
        // The last one may have been cut short by whatever ended the run.
        let Ok(line) = serde_json::from_str::<Line>(line) else {
            continue;
        };
        results.insert(line.name.clone(), line);
    }
    let mut seen = BTreeSet::new();
    let mut rows = Vec::new();
    let names = planned.lines().filter(|name| !name.trim().is_empty());
    for name in names.filter(|name| seen.insert(*name)) {
        let cell = Cell::called(name).with_context(|| format!("{}", folder.display()))?;
        rows.push(match results.remove(&format!("matrix/{name}")) {
            Some(line) => Row {
                cell,
                status: line.status,
                seconds: line.seconds,
                why: line.why.or(line.says),
                is_newly_bad: false,
            },
            None => Row {
                cell,
                status: Status::Error,
                seconds: 0.0,
                why: Some(UNSAID.into()),
                is_newly_bad: false,
            },
        });
    }
    Ok(rows)
}

/// Brings the reports of several runs together.
///
/// # Errors
/// When one of them is no report, or it cannot be written.
pub fn join(from: &[PathBuf], to: &Path) -> Result<()> {
    // All of them before anything is written.
    let reports: Vec<_> = from
        .iter()
        .map(|folder| read(folder))
        .collect::<Result<_>>()?;
    for (folder, rows) in from.iter().zip(reports) {
        let cells: Vec<_> = rows.iter().map(|row| row.cell).collect();
        if fs::canonicalize(folder).ok() == fs::canonicalize(to).ok() {
            continue;
        }
        plan(to, &cells)?;
        let results = fs::read_to_string(folder.join(RESULTS)).unwrap_or_default();
        add(to, RESULTS, &(results.trim_end().to_string() + "\n"))?;
        for cell in cells {
            let (from, to) = (folder.join(cell.name()), to.join(cell.name()));
            copy(&from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
        }
    }
    Ok(())
}

/// Copies the files of a folder, where there is one.
fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    if !from.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.path().is_file() {
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// What a report comes to.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Whether nothing is red.
    pub is_well: bool,
    /// Five lines, for people.
    pub summary: String,
    /// The page.
    pub page: PathBuf,
}

/// Makes of a folder's results what machines and people read. `before` is an earlier
/// report.
///
/// # Errors
/// When something cannot be read or written.
pub fn finish(folder: &Path, before: Option<&Path>) -> Result<Finished> {
    let mut rows = read(folder)?;
    ensure!(!rows.is_empty(), "{} has no results", folder.display());
    if let Some(before) = before {
        ensure!(
            fs::canonicalize(before).ok() != fs::canonicalize(folder).ok(),
            "--against: {} is the report itself",
            before.display()
        );
        let well: Vec<_> = read(before)?
            .into_iter()
            .filter(|row| !row.status.is_bad())
            .map(|row| row.cell)
            .collect();
        for row in &mut rows {
            row.is_newly_bad = row.status.is_bad() && well.contains(&row.cell);
        }
    }
    let write = |name: &str, text: &str| {
        fs::write(folder.join(name), text).with_context(|| format!("cannot write {name}"))
    };
    write("junit.xml", &junit(&rows)?)?;
    write("report.html", &page::page(folder, &rows)?)?;
    if let Some(table) = reference::table(&rows) {
        write("reference.md", &table)?;
    }
    let summary = summary(&rows, before.is_some());
    write("summary.md", &summary)?;
    if let Some(file) = std::env::var_os("GITHUB_STEP_SUMMARY") {
        let file = PathBuf::from(file);
        let (folder, name) = (file.parent(), file.file_name());
        if let (Some(folder), Some(name)) = (folder, name.and_then(|name| name.to_str()))
            && let Err(error) = add(folder, name, &summary)
        {
            ui::warn(format_args!("GITHUB_STEP_SUMMARY: {error:#}"));
        }
    }
    Ok(Finished {
        is_well: !rows.iter().any(|row| row.status.is_bad()),
        summary,
        page: folder.join("report.html"),
    })
}

/// Seconds of a file that anybody may have written.
fn duration(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

/// Five lines, for people.
fn summary(rows: &[Row], compared: bool) -> String {
    let count = |status| rows.iter().filter(|row| row.status == status).count();
    let masked = rows.iter().filter(|row| row.cell.is_masked()).count();
    let booted: f64 = rows.iter().map(|row| row.seconds).sum();
    let counts: Vec<_> = Status::ALL
        .into_iter()
        .rev()
        .map(|status| format!("{} {status}", count(status)))
        .collect();
    let names = |wanted: &dyn Fn(&Row) -> bool| {
        let names: Vec<_> = rows
            .iter()
            .filter(|row| wanted(row))
            .map(|row| row.cell.name())
            .collect();
        match names.len() {
            0 => "none".into(),
            1..=3 => names.join(", "),
            n => format!("{} and {} more", names[..3].join(", "), n - 3),
        }
    };
    let newly = if compared {
        names(&|row| row.is_newly_bad)
    } else {
        "no earlier report was given".into()
    };
    let slowest = rows.iter().max_by(|a, b| a.seconds.total_cmp(&b.seconds));
    let slowest = slowest.map_or_else(String::new, |row| {
        let took = duration(row.seconds);
        format!("{} ({})", row.cell.name(), ui::seconds(took))
    });
    format!(
        "- Boot matrix: {} configurations, {masked} of them masked\n\
         - {}\n\
         - Red: {}; newly red: {newly}\n\
         - Machines ran for {} in all\n\
         - Slowest: {slowest}\n",
        rows.len(),
        counts.join(", "),
        names(&|row| row.status.is_bad()),
        ui::seconds(duration(booted)),
    )
}

/// The results as JUnit has them.
fn junit(rows: &[Row]) -> Result<String> {
    let mut report = Junit::new("undercroft");
    let mut suite = TestSuite::new("matrix");
    for row in rows {
        let why = row.why.as_deref().unwrap_or_default();
        let head = ui::plain(why.lines().next().unwrap_or_default());
        let mut status = match row.status {
            Status::Passed => TestCaseStatus::success(),
            Status::Skipped | Status::Expected => TestCaseStatus::skipped(),
            Status::Error => TestCaseStatus::non_success(NonSuccessKind::Error),
            Status::Failed | Status::Silent | Status::Timeout => {
                TestCaseStatus::non_success(NonSuccessKind::Failure)
            }
        };
        if row.status != Status::Passed {
            status.set_message(head);
            status.set_type(row.status.word());
            status.set_description(why.lines().map(ui::plain).collect::<Vec<_>>().join("\n"));
        }
        let mut case = TestCase::new(row.cell.name(), status);
        case.set_classname("matrix");
        case.set_time(duration(row.seconds));
        suite.add_test_case(case);
    }
    report.add_test_suite(suite);
    report.to_string().context("cannot write JUnit")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::cells;
    use crate::suite::Tier;

    fn result(cell: &Cell, status: &str, why: Option<&str>) -> String {
        let why = why.map_or_else(String::new, |why| {
            format!(",\"why\":{}", serde_json::to_string(why).expect("text"))
        });
        format!(
            "{{\"name\":\"matrix/{}\",\"status\":\"{status}\",\"seconds\":1.5,\
             \"passed\":1,\"failed\":0,\"skipped\":0{why}}}\n",
            cell.name()
        )
    }

    #[test]
    fn what_did_not_report_is_seen_and_the_last_word_counts() {
        let folder = tempfile::tempdir().expect("a folder");
        let cells = &cells(Tier::Quick)[..4];
        plan(folder.path(), cells).expect("is written");
        let results = [
            result(&cells[0], "failed", Some("no end")),
            result(&cells[1], "passed", None),
            result(&cells[0], "passed", None),
            result(&cells[2], "silent", Some("no word")),
            "{\"name\":\"matrix/".into(),
        ];
        add(folder.path(), RESULTS, &results.concat()).expect("is written");
        let rows = read(folder.path()).expect("a report");
        let statuses: Vec<_> = rows.iter().map(|row| row.status).collect();
        let expected = [
            Status::Passed,
            Status::Passed,
            Status::Silent,
            Status::Error,
        ];
        assert_eq!(statuses, expected);
        assert_eq!(rows[3].why.as_deref(), Some("it did not report"));
        // The last line was cut short: what comes is not lost by that.
        add(folder.path(), RESULTS, &result(&cells[3], "passed", None)).expect("is written");
        let status = |n: usize| read(folder.path()).expect("a report")[n].status;
        assert_eq!(status(3), Status::Passed);
        // What is to be booted again has not reported, whatever it was before.
        plan(folder.path(), &cells[..1]).expect("is written");
        assert_eq!([status(0), status(1)], [Status::Error, Status::Passed]);
        assert_eq!(read(folder.path()).expect("a report").len(), 4);
        fs::write(folder.path().join(PLANNED), "my plans\n").expect("is written");
        assert!(plan(folder.path(), cells).is_err(), "another's folder");
    }

    #[test]
    fn shards_come_together() {
        let (one, two, all) = (
            tempfile::tempdir().expect("a folder"),
            tempfile::tempdir().expect("a folder"),
            tempfile::tempdir().expect("a folder"),
        );
        let cells = &cells(Tier::Quick)[..2];
        for (shard, cell) in [&one, &two].into_iter().zip(cells) {
            plan(shard.path(), std::slice::from_ref(cell)).expect("is written");
            let hostile = "</script><b>&\u{1b}[2J \u{202e}\u{ffff}";
            add(
                shard.path(),
                RESULTS,
                &result(cell, "failed", Some(hostile)),
            )
            .expect("is written");
            add(&shard.path().join(cell.name()), "log", "a line\n").expect("is written");
        }
        let from = [one.path().to_path_buf(), two.path().to_path_buf()];
        join(&from, all.path()).expect("they come together");
        let finished = finish(all.path(), None).expect("a report");
        assert!(!finished.is_well, "both failed");
        let read = |name: &str| fs::read_to_string(all.path().join(name)).expect(name);
        let (xml, page, summary) = (read("junit.xml"), read("report.html"), read("summary.md"));
        assert!(
            xml.contains("tests=\"2\"") && xml.contains("failures=\"2\""),
            "{xml}"
        );
        assert_eq!(summary.lines().count(), 5, "{summary}");
        for cell in cells {
            for text in [&xml, &page, &summary] {
                assert!(text.contains(&cell.name()));
            }
        }
        // What a guest said is text, whatever it says.
        assert_eq!(page.matches("</script").count(), 1, "{page}");
        assert!(!xml.contains(['\u{1b}', '\u{ffff}']));
        assert!(summary.contains("no earlier report"));
        assert!(finish(all.path(), Some(all.path())).is_err(), "itself");
        // Against one that was well, what failed is new.
        let before = tempfile::tempdir().expect("a folder");
        plan(before.path(), cells).expect("is written");
        add(before.path(), RESULTS, &result(&cells[0], "passed", None)).expect("is written");
        let finished = finish(all.path(), Some(before.path())).expect("a report");
        let newly = format!("newly red: {}\n", cells[0].name());
        assert!(finished.summary.contains(&newly), "{}", finished.summary);
    }
}

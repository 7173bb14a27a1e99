//! A report as one page that needs nothing else: a grid by any two axes, filters, and
//! of each configuration its geometry and what its log says where it went wrong.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::cell::KEYS;
use super::report::Row;
use crate::suite::report::Status;
use crate::ui;

/// The page, but for its data.
const PAGE: &str = include_str!("page.html");

/// Where the data go.
const PLACE: &str = "\"DATA\"";

/// How much of a log is shown of a configuration that is red.
const LINES: usize = 200;

/// What the page knows.
#[derive(Serialize)]
struct Data {
    axes: [&'static str; KEYS.len()],
    statuses: [&'static str; Status::ALL.len()],
    rows: Vec<Shown>,
}

/// A configuration.
#[derive(Serialize)]
struct Shown {
    name: String,
    values: [String; KEYS.len()],
    status: Status,
    bad: bool,
    newly: bool,
    masked: bool,
    seconds: f64,
    geometry: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    log: Vec<String>,
    /// Whether its files stand beside the page.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    files: Vec<&'static str>,
}

/// Files of a configuration's folder that are worth a look.
const FILES: [&str; 5] = ["log", "console.log", "command", "sha256", "tree.dtb"];

/// The page of these results; the files of each stand in `folder`.
///
/// # Errors
/// When they are no JSON, which they are.
pub fn page(folder: &Path, rows: &[Row]) -> Result<String> {
    let rows = rows.iter().map(|row| shown(folder, row)).collect();
    let data = Data {
        axes: KEYS,
        statuses: Status::ALL.map(Status::word),
        rows,
    };
    let data = serde_json::to_string(&data).context("results are JSON")?;
    // Within a script nothing that a guest has said may end it.
    let data = data.replace('<', "\\u003c");
    Ok(PAGE.replacen(PLACE, &data, 1))
}

fn shown(folder: &Path, row: &Row) -> Shown {
    let cell = &row.cell;
    let geometry = cell.geometry().map_or_else(String::new, |geometry| {
        format!(
            "{} bits of IPA, from level {}, root tables: {}, VTCR_EL2 {:#x}",
            cell.ipa,
            geometry.start().get(),
            geometry.root_tables(),
            geometry.vtcr()
        )
    });
    let own = folder.join(cell.name());
    let mut log = Vec::new();
    if row.status.is_bad() {
        let text = fs::read(own.join("log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().map(ui::plain).collect();
        log = lines[lines.len().saturating_sub(LINES)..].to_vec();
    }
    let why = row.why.as_deref();
    Shown {
        name: cell.name(),
        values: cell.words(),
        status: row.status,
        bad: row.status.is_bad(),
        newly: row.is_newly_bad,
        masked: cell.is_masked(),
        seconds: row.seconds,
        geometry,
        why: why.map(|why| why.lines().map(ui::plain).collect::<Vec<_>>().join("\n")),
        log,
        files: FILES
            .into_iter()
            .filter(|file| own.join(file).is_file())
            .collect(),
    }
}

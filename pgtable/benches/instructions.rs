//! Instructions per unit, counted by callgrind, with stores, TLBIs, barriers
//! and table pages beside: the gate of the speed goals.
//!
//! Runs itself under valgrind, once for each workload and format, and counts
//! only inside `Prepared::measured`. It ends with 1 if a goal is missed:
//!
//! - each workload's goal, in every format: an entry costs the same whatever
//!   the granule, so the goal of a collapse counts although tables of 16K and
//!   64K have more of them;
//! - with `--all` (every format), 4K with LPA2 within 5 % of 4K without;
//! - with `--fixed`, the choice of a granule at run time within 5 % of a build
//!   with 4K as constants, which it has cargo make. A tenth of an instruction
//!   is no miss: what goes with a whole table costs so little a page.

mod common;

use common::{Counted, FORMATS, Plain, Prepared, WORKLOADS};
use std::process::Command;

/// Room for the tables of every workload.
const PAGES: [u64; 5] = [1600, 1600, 1600, 600, 600];

/// More than this over what it is compared with is a missed goal.
const MOST: f64 = 1.05;

/// So many instructions more are no miss.
const LITTLE: f64 = 0.1;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if let [_, one, format, workload] = &args[..]
        && one == "--one"
    {
        let index = FORMATS
            .iter()
            .position(|known| known.name == format)
            .expect("a format");
        let plain = Plain::new(FORMATS[index].granule, PAGES[index]);
        let root = plain.root(FORMATS[index].geometry().root_align());
        let mut prepared = Prepared::new(FORMATS[index], root, &plain, workload);
        println!("{}", prepared.measured(workload));
        return;
    }
    let wants = |flag: &str| args.iter().any(|arg| arg == flag);
    let formats = if wants("--all") { FORMATS.len() } else { 1 };
    println!(
        "{:<8} {:<14} {:>6} {:>9} {:>6} {:>7} {:>6} {:>6} {:>7}",
        "format", "workload", "unit", "instr", "goal", "stores", "TLBIs", "barr.", "tables"
    );
    let mut missed = Vec::new();
    let mut first = Vec::new();
    for (index, format) in FORMATS.iter().enumerate().take(formats) {
        let rows = measure(index, &mut missed);
        if format.lpa2 {
            compare("LPA2 to 4K without", &rows, &first, &mut missed);
        } else if index == 0 {
            first = rows;
        }
    }
    if wants("--fixed") {
        let fixed = fixed();
        println!();
        compare("run time to constants", &first, &fixed, &mut missed);
    }
    if !missed.is_empty() {
        for what in missed {
            eprintln!("missed: {what}");
        }
        std::process::exit(1);
    }
}

/// Instructions per unit of each workload in one format.
fn measure(index: usize, missed: &mut Vec<String>) -> Vec<f64> {
    let format = FORMATS[index];
    let mut rows = Vec::new();
    for (workload, unit, goal) in WORKLOADS {
        let plain = Plain::new(format.granule, PAGES[index]);
        let root = plain.root(format.geometry().root_align());
        let mut prepared = Prepared::new(format, root, Counted(&plain), workload);
        plain.stores.set(0);
        plain.tables.set(0);
        let units = prepared.measured(workload);
        let each = callgrind(format.name, workload) as f64 / units as f64;
        if each > goal as f64 {
            missed.push(format!("{} {workload}: {each:.1}, not {goal}", format.name));
        }
        println!(
            "{:<8} {:<14} {:>6} {:>9.2} {:>6} {:>7.3} {:>6} {:>6} {:>7}",
            format.name,
            workload,
            unit,
            each,
            goal,
            plain.stores.get() as f64 / units as f64,
            prepared.cpu.tlbis,
            prepared.cpu.barriers,
            plain.tables.get(),
        );
        rows.push(each);
    }
    rows
}

/// Prints how much more one column is than another.
fn compare(what: &str, one: &[f64], other: &[f64], missed: &mut Vec<String>) {
    println!("{what}, by {:.0} % at most:", 100.0 * (MOST - 1.0));
    for ((workload, ..), (one, other)) in WORKLOADS.iter().zip(one.iter().zip(other)) {
        let more = 100.0 * (one / other - 1.0);
        println!("  {workload:<14} {one:>9.2} {other:>9.2} {more:>+6.1} %");
        if *one > other * MOST && one - other > LITTLE {
            missed.push(format!("{what}: {workload} {more:+.1} %"));
        }
    }
}

/// The first format's figures of a build with 4K as constants: this program
/// again, made by cargo with the feature for it.
fn fixed() -> Vec<f64> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let output = Command::new(cargo)
        .args(["bench", "-p", "pgtable", "--features", "fixed-4k"])
        .args(["--bench", "instructions"])
        .output()
        .expect("cargo builds it");
    let text = String::from_utf8_lossy(&output.stdout);
    let lines = text.lines().map(|line| line.split_whitespace());
    let rows: Vec<f64> = lines
        .filter_map(|mut words| (words.next()? == FORMATS[0].name).then(|| words.nth(2))?)
        .filter_map(|word| word.parse().ok())
        .collect();
    assert_eq!(
        rows.len(),
        WORKLOADS.len(),
        "the build with constants failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    rows
}

/// Instructions inside `measured`.
fn callgrind(format: &str, workload: &str) -> u64 {
    let exe = std::env::current_exe().expect("this program's path");
    let output = Command::new("valgrind")
        .args([
            "--tool=callgrind",
            "--callgrind-out-file=/dev/null",
            "--collect-atstart=no",
            "--toggle-collect=*measured*",
        ])
        .arg(exe)
        .args(["--one", format, workload])
        .output()
        .expect("valgrind is installed (apt-get install valgrind)");
    let text = String::from_utf8_lossy(&output.stderr);
    let line = text.lines().find(|line| line.contains("Collected :"));
    let number = line
        .and_then(|line| line.rsplit(' ').next())
        .and_then(|word| word.parse().ok());
    number.unwrap_or_else(|| panic!("callgrind counted nothing: {text}"))
}

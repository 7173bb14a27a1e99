//! Instructions per unit, counted by callgrind, with stores, TLBIs, barriers
//! and table pages beside: the gate of the speed goals.
//!
//! Runs itself under valgrind, once for each workload and format, and counts
//! only inside `Prepared::measured`.

mod common;

use common::{Counted, FORMATS, Plain, Prepared, WORKLOADS};
use std::process::Command;

/// Room for the tables of every workload.
const PAGES: [u64; 4] = [1600, 1600, 600, 600];

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
    let all = args.iter().any(|arg| arg == "--all");
    println!(
        "{:<8} {:<14} {:>6} {:>9} {:>6} {:>7} {:>6} {:>6} {:>7}",
        "format", "workload", "unit", "instr", "goal", "stores", "TLBIs", "barr.", "tables"
    );
    let mut missed = false;
    for (index, format) in FORMATS.iter().enumerate() {
        if !all && index > 0 {
            break;
        }
        for (workload, unit, goal) in WORKLOADS {
            let plain = Plain::new(format.granule, PAGES[index]);
            let root = plain.root(format.geometry().root_align());
            let mut prepared = Prepared::new(*format, root, Counted(&plain), workload);
            plain.stores.set(0);
            plain.tables.set(0);
            let units = prepared.measured(workload);
            let instructions = callgrind(format.name, workload);
            let each = instructions as f64 / units as f64;
            // An entry costs the same whatever the granule: the goal of a
            // collapse counts for each, though tables have more of them.
            missed |= each > goal as f64;
            println!(
                "{:<8} {:<14} {:>6} {:>9.1} {:>6} {:>7.3} {:>6} {:>6} {:>7}",
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
        }
    }
    if missed {
        eprintln!("a goal was missed");
        std::process::exit(1);
    }
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

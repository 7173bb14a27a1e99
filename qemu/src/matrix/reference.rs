//! The test that proved LPA2 for KVM, row by row in our terms: 180 boots, of which 12
//! failed, by hosts of 4K and 16K pages above 2^48.
//!
//! | there | here |
//! |---|---|
//! | hw_pa, hw_va 48, 48 | Neoverse N2 |
//! | 48, 52; LPA, 48 | a CPU with FEAT_LPA that is told to do without: masked |
//! | LPA, 52; LPA2, 52 | `max` without FEAT_LPA2; `max` |
//! | host's page size | EL2's granule |
//! | host's VA and PA bits, as far as the CPU has them | those of EL2's own stage 1 |
//! | host loaded high | EL2, the host and all guests' memory from 2^48 on |
//! | KVM's mode: VHE, nVHE, protected | the guest's: plain, realm, protected |
//! | guest of 64K pages | the same; loaded high, where no Linux begins any more, our tour |
//!
//! What the rows do not say is as KVM has it: 40 bits of IPA where they do, the fewest
//! levels, memory at first touch.

use super::axes::{Hardware, Kernel, Load, Mask, Mode, Own, Pages, Populate, Ram, Start};
use super::cell::Cell;
use super::report;
use crate::suite::report::Status;

/// The rows, as they were published.
const ROWS: &str = include_str!("../../matrix/reference.tsv");

/// A row of theirs, and what it is here.
#[derive(Clone, Debug)]
pub struct Row {
    /// The CPU's PA and VA, the host's page size, where host and guest are loaded.
    pub group: [&'static str; 5],
    /// Whether it booted there.
    pub passed: bool,
    /// What it is here.
    pub cell: Cell,
}

/// Their results beside ours, as a table in Markdown; `None` where some of the rows have
/// no result.
pub fn table(results: &[report::Row]) -> Option<String> {
    let mut groups: Vec<([&str; 5], [usize; 3])> = Vec::new();
    for row in rows() {
        let ours = results.iter().find(|result| result.cell == row.cell)?;
        let counts = [true, row.passed, ours.status == Status::Passed];
        if groups.last().is_none_or(|(group, _)| *group != row.group) {
            groups.push((row.group, [0; 3]));
        }
        let (_, sums) = groups.last_mut()?;
        for (sum, count) in sums.iter_mut().zip(counts) {
            *sum += usize::from(count);
        }
    }
    groups.sort();
    groups.dedup_by(|next, last| {
        let same = next.0 == last.0;
        if same {
            for (sum, more) in last.1.iter_mut().zip(next.1) {
                *sum += more;
            }
        }
        same
    });
    let mut text = String::from(
        "| CPU's PA, VA | host or EL2 | it is loaded | guest is loaded | rows | KVM | Undercroft |\n\
         |---|---|---|---|---|---|---|\n",
    );
    let mut all = [0; 3];
    for ([pa, va, pages, host, guest], [rows, theirs, ours]) in groups {
        text +=
            &format!("| {pa}, {va} | {pages} | {host} | {guest} | {rows} | {theirs} | {ours} |\n");
        for (sum, more) in all.iter_mut().zip([rows, theirs, ours]) {
            *sum += more;
        }
    }
    let [rows, theirs, ours] = all;
    text += &format!("| all | | | | {rows} | {theirs} | {ours} |\n");
    Some(text)
}

/// All rows; several of them can be one configuration here.
pub fn rows() -> Vec<Row> {
    let lines = ROWS.lines().filter(|line| !line.starts_with('#')).skip(1);
    lines.filter_map(row).collect()
}

fn row(line: &'static str) -> Option<Row> {
    let theirs: Vec<_> = line.split('\t').collect();
    let &[
        hw_pa,
        hw_va,
        mode,
        pages,
        host_va,
        host_pa,
        host,
        guest,
        passed,
    ] = theirs.as_slice()
    else {
        return None;
    };
    let (hw, mask) = match (hw_pa, hw_va) {
        ("48", "48") => (Hardware::N2, Mask::Nothing),
        ("48", "52") => (Hardware::Lpa, Mask::Pa52),
        ("lpa", "48") => (Hardware::Lpa, Mask::Va52),
        ("lpa", "52") => (Hardware::Lpa, Mask::Nothing),
        ("lpa2", "52") => (Hardware::Lpa2, Mask::Nothing),
        _ => return None,
    };
    let mode = match mode {
        "vhe" => Mode::Plain,
        "nvhe" => Mode::Realm,
        "protected" => Mode::Protected,
        _ => return None,
    };
    let is_high = |word: &str| word == "high";
    let (load, kernel, ipa) = if is_high(guest) {
        (Load::Above48, Kernel::Tour, 52)
    } else {
        (Load::Low, Kernel::Tiny64k52, 40)
    };
    let cell = Cell {
        hw,
        mask,
        hyp: *Pages::ALL.iter().find(|p| p.word() == pages)?,
        own: Own::All,
        ram: if is_high(host) {
            Ram::Above48
        } else {
            Ram::Low
        },
        ipa,
        start: Start::Lowest,
        mode,
        kernel,
        load,
        cpus: 2,
        populate: Populate::Lazy,
    };
    let (va, pa) = cell.widest();
    let wanted = (va.min(host_va.parse().ok()?), pa.min(host_pa.parse().ok()?));
    let own = (Own::ALL.iter()).find(|own| Cell { own: **own, ..cell }.own_bits() == wanted)?;
    Some(Row {
        group: [hw_pa, hw_va, pages, host, guest],
        passed: passed == "True",
        cell: Cell { own: *own, ..cell },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::cells;
    use crate::suite::Tier;

    #[test]
    fn every_row_is_a_configuration_that_is_booted() {
        let rows = rows();
        assert_eq!(rows.len(), 180);
        assert_eq!(rows.iter().filter(|row| !row.passed).count(), 12);
        let full = cells(Tier::Full);
        for Row { group, cell, .. } in &rows {
            assert_eq!(cell.excluded(), None, "{group:?}: {}", cell.name());
            assert!(full.contains(cell), "{group:?}: {}", cell.name());
        }
        let masked = rows.iter().filter(|row| row.cell.is_masked()).count();
        assert_eq!(masked, 48, "rows that no CPU of QEMU's has");
    }

    #[test]
    fn theirs_and_ours_stand_side_by_side() {
        let mut results: Vec<_> = rows()
            .into_iter()
            .map(|row| report::Row {
                cell: row.cell,
                status: Status::Passed,
                seconds: 1.0,
                why: None,
                is_newly_bad: false,
            })
            .collect();
        let text = table(&results).expect("all are there");
        assert!(
            text.ends_with("| all | | | | 180 | 168 | 180 |\n"),
            "{text}"
        );
        assert!(
            text.contains("| lpa2, 52 | 4k | high | low | 3 | 0 | 3 |"),
            "{text}"
        );
        let first = results[0].cell;
        for result in results.iter_mut().filter(|result| result.cell == first) {
            result.status = Status::Failed;
        }
        assert!(!table(&results).expect("as before").contains("| 180 |\n"));
        results.retain(|result| result.cell != first);
        assert_eq!(table(&results), None);
    }
}

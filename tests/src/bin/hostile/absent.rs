//! Memory that the device tree names and that is not the host's to use: where
//! there is none (`absent=0x…` of the command line) and where firmware keeps it
//! (`keep=0x…`, by `no-map`).

use rmi::Command;
use rmi::vendor::{self, Vendor};
use tests::bare::console::Console;
use tests::bare::machine;
use tests::suite::Suite;

use crate::calls::{self, INPUT, SUCCESS, granule, memory_ranges, status};
use crate::devices::number;
use crate::granules::{at, delegate, fill, kept_out, read, undelegate};
use crate::realm::{PARAMS, RD, RECS, ROOT, RUN, write_params, write_rec};

/// The checks: none where the command line names no such memory.
pub fn checks(suite: &mut Suite<Console>) {
    let word = |name| machine::get().argument(name).and_then(number);
    if let Some(pa) = word("absent") {
        absent(suite, pa);
        crate::races::walk_to_nowhere(suite, pa);
    }
    if let Some(pa) = word("keep") {
        kept(suite, pa);
    }
    edges(suite);
    calls::still_there(suite, "absent/rmi-version");
}

/// EL2 takes it for the host's RAM, and meets an external abort whenever it
/// touches it: each command fails, and nothing has changed.
fn absent(suite: &mut Suite<Console>, pa: u64) {
    suite.check("absent/host", kept_out(pa), "there is memory");
    for _ in 0..3 {
        suite.equal("absent/delegate", delegate(pa), INPUT);
        suite.equal("absent/undelegate", undelegate(pa), INPUT);
    }
    // Had it left the host, the abort would be EL2's: it is the machine's still.
    suite.check("absent/host-again", kept_out(pa), "there is memory");
    let line = |at| {
        status(Vendor::Log {
            level: 3,
            pa: at,
            length: 5,
        })
    };
    suite.equal("absent/log", line(pa), INPUT);
    suite.equal("absent/log-odd", line(pa + 13), INPUT);

    let rd = at(RD);
    for n in [RD, ROOT, RECS] {
        delegate(at(n));
    }
    let create = |params| status(Command::RealmCreate { rd, params });
    suite.equal("absent/realm-params", create(pa), INPUT);
    write_params(at(PARAMS), at(ROOT), 9);
    suite.equal("absent/realm", create(at(PARAMS)), SUCCESS);
    let rec = |params| {
        status(Command::RecCreate {
            rd,
            rec: at(RECS),
            params,
        })
    };
    suite.equal("absent/rec-params", rec(pa), INPUT);
    write_rec(at(PARAMS), 0, true, 0x4000_0000, 0);
    suite.equal("absent/rec", rec(at(PARAMS)), SUCCESS);
    let activate = status(Command::RealmActivate { rd });
    suite.equal("absent/activate", activate, SUCCESS);
    fill(at(RUN), 0);
    let enter = |page| {
        status(Command::RecEnter {
            rec: at(RECS),
            run: page,
        })
    };
    suite.equal("absent/enter-page", enter(pa), INPUT);
    // It has no memory: an exit for each entry, and a history.
    suite.equal("absent/enter", enter(at(RUN)), SUCCESS);
    let history = |page| {
        calls::ask(Vendor::RecHistory {
            rec: at(RECS),
            pa: page,
        })
    };
    suite.equal("absent/history-page", history(pa)[0], INPUT);
    let rec = at(RECS);
    let (read, write) = (Vendor::RecRead { rec, pa }, Vendor::RecWrite { rec, pa });
    for call in [read, write] {
        suite.equal("absent/registers", status(call), INPUT);
    }
    let told = history(at(PARAMS));
    let right = told[0] == SUCCESS && told[1] > 0;
    suite.check("absent/history", right, format_args!("{told:x?}"));

    suite.equal(
        "absent/rec-destroy",
        status(Command::RecDestroy { rec: at(RECS) }),
        SUCCESS,
    );
    suite.equal(
        "absent/realm-destroy",
        status(Command::RealmDestroy { rd }),
        SUCCESS,
    );
    for n in [RD, ROOT, RECS] {
        suite.equal("absent/back", undelegate(at(n)), SUCCESS);
    }
}

/// Nobody's: no granule, not mapped; its neighbours are the host's.
fn kept(suite: &mut Suite<Console>, pa: u64) {
    let first = pa & !(granule() - 1);
    for inside in [first, pa & !7, first + granule() - 8] {
        suite.check("keep/host", kept_out(inside), "the host reaches it");
    }
    suite.equal("keep/delegate", delegate(first), INPUT);
    suite.equal("keep/undelegate", undelegate(first), INPUT);
    suite.equal(
        "keep/log",
        status(Vendor::Log {
            level: 3,
            pa,
            length: 5,
        }),
        INPUT,
    );
    let named = memory_ranges().any(|(base, size, kind)| {
        kind == vendor::RangeKind::Withheld as u64 && (base..base + size).contains(&pa)
    });
    suite.check("keep/named", named, "MEMORY_RANGE does not name it");
    let end = (pa + 0x1000).next_multiple_of(granule());
    for neighbour in [first - 8, end] {
        suite.check(
            "keep/neighbour",
            read(neighbour).is_ok(),
            "no memory of the host's",
        );
    }
}

/// The ends of RAM, which may be no whole granules.
fn edges(suite: &mut Suite<Console>) {
    for ram in machine::get().ram.iter().filter(|ram| !ram.is_empty()) {
        let end = ram.end & !(granule() - 1);
        if end != ram.end {
            suite.equal("edges/delegate", delegate(end), INPUT);
            suite.check("edges/kept-out", kept_out(end), "the host reaches it");
        }
        let start = ram.start.next_multiple_of(granule());
        if start != ram.start {
            suite.equal("edges/delegate-first", delegate(start - granule()), INPUT);
            suite.check(
                "edges/first-kept-out",
                kept_out(start - 8),
                "the host reaches it",
            );
        }
    }
}

//! Realms, RECs and tables: building one, and every way to build it wrong.

use core::mem::offset_of;

use rmi::Command;
use rmi::params::{RealmFlags, RealmParams, RecFlags, RecParams};
use rmi::rtt::{DESC_READ, DESC_WRITE, MEMATTR_NORMAL_WB};
use rmi::vendor::RangeKind;
use tests::bare::asm::{write8, write16, write32, write64};
use tests::bare::console::Console;
use tests::bare::machine;
use tests::suite::Suite;

use crate::calls::{INPUT, SUCCESS, ask, granule, memory_ranges, realm, rtt, status};
use crate::granules::{at, delegate, fill, is_zero, kept_out, undelegate};

/// Width of the guests' IPA space: one root table with every granule.
pub const IPA_BITS: u8 = 36;

/// The start level for it.
pub fn start_level() -> i64 {
    if granule() == 4096 { 1 } else { 2 }
}

/// Bytes that an entry of `level` maps.
pub fn span(level: i64) -> u64 {
    let page = granule().trailing_zeros();
    1 << (page + (3 - level) as u32 * (page - 3))
}

/// Granules of this host's own, by use: they are not those of other checks.
pub const RD: u64 = 16;
/// The root table.
pub const ROOT: u64 = 17;
/// RECs, two of them.
pub const RECS: u64 = 18;
/// A page of parameters.
pub const PARAMS: u64 = 20;
/// The run page.
pub const RUN: u64 = 21;
/// The guest's memory.
pub const CODE: u64 = 22;
/// Tables below the root, one for each level at most.
pub const TABLES: u64 = 24;

/// Writes parameters for a plain guest.
pub fn write_params(page: u64, root: u64, vmid: u16) {
    fill(page, 0);
    let flags = RealmFlags::NONCONF | RealmFlags::EL2_VGIC;
    // SAFETY: A granule of this host's.
    unsafe {
        write64(page + offset_of!(RealmParams, flags) as u64, flags.bits());
        write8(page + offset_of!(RealmParams, s2sz) as u64, IPA_BITS);
        write16(page + offset_of!(RealmParams, vmid) as u64, vmid);
        write64(page + offset_of!(RealmParams, rtt_base) as u64, root);
        write64(
            page + offset_of!(RealmParams, rtt_level_start) as u64,
            start_level() as u64,
        );
        write32(page + offset_of!(RealmParams, rtt_num_start) as u64, 1);
    }
}

/// Writes parameters for a vCPU.
pub fn write_rec(page: u64, index: u64, runnable: bool, pc: u64, x0: u64) {
    fill(page, 0);
    let flags = if runnable {
        RecFlags::RUNNABLE.bits()
    } else {
        0
    };
    // SAFETY: A granule of this host's.
    unsafe {
        write64(page + offset_of!(RecParams, flags) as u64, flags);
        write64(
            page + offset_of!(RecParams, mpidr) as u64,
            rmi::params::index_mpidr(index),
        );
        write64(page + offset_of!(RecParams, pc) as u64, pc);
        write64(page + offset_of!(RecParams, gprs) as u64, x0);
    }
}

/// Normal memory, read and write.
pub fn normal(pa: u64) -> u64 {
    pa | MEMATTR_NORMAL_WB << 2 | DESC_READ | DESC_WRITE
}

/// `RTT_CREATE`.
pub fn table(rd: u64, table: u64, ipa: u64, level: i64) -> u64 {
    status(Command::RttCreate {
        rd,
        rtt: table,
        ipa,
        level,
    })
}

/// `RTT_MAP_UNPROTECTED`.
pub fn map(rd: u64, ipa: u64, level: i64, descriptor: u64) -> u64 {
    status(Command::RttMapUnprotected {
        rd,
        ipa,
        level,
        desc: descriptor,
    })
}

/// The checks.
pub fn checks(suite: &mut Suite<Console>) {
    create(suite);
    recs(suite);
    tables(suite);
    end(suite);
}

fn create(suite: &mut Suite<Console>) {
    let (rd, root, page) = (at(RD), at(ROOT), at(PARAMS));
    let make = |rd: u64, page: u64| status(Command::RealmCreate { rd, params: page });
    write_params(page, root, 7);
    suite.equal("realm/rd-not-delegated", make(rd, page), INPUT);
    suite.equal("realm/delegate-rd", delegate(rd), SUCCESS);
    suite.equal("realm/root-not-delegated", make(rd, page), INPUT);
    suite.equal("realm/delegate-root", delegate(root), SUCCESS);

    suite.equal("realm/params-unaligned", make(rd, page + 8), INPUT);
    suite.equal("realm/params-delegated", make(rd, root), INPUT);
    suite.equal("realm/params-device", make(rd, machine::get().uart), INPUT);
    suite.equal("realm/params-nowhere", make(rd, !(granule() - 1)), INPUT);
    suite.equal("realm/rd-unaligned", make(rd + 8, page), INPUT);
    for (base, _, kind) in memory_ranges() {
        if kind == RangeKind::Hypervisor as u64 {
            suite.equal("realm/params-el2", make(rd, base), INPUT);
            suite.equal("realm/rd-el2", make(base, page), INPUT);
        }
    }
    type Wrong = (&'static str, usize, u64, u8);
    let wrong: [Wrong; 15] = [
        (
            "realm/flags-unknown",
            offset_of!(RealmParams, flags),
            u64::MAX,
            8,
        ),
        ("realm/s2sz-0", offset_of!(RealmParams, s2sz), 0, 1),
        ("realm/s2sz-255", offset_of!(RealmParams, s2sz), 255, 1),
        ("realm/s2sz-64", offset_of!(RealmParams, s2sz), 64, 1),
        (
            "realm/vmid-of-el2",
            offset_of!(RealmParams, vmid),
            0xffff,
            2,
        ),
        (
            "realm/root-unaligned",
            offset_of!(RealmParams, rtt_base),
            root + 8,
            8,
        ),
        ("realm/root-is-rd", offset_of!(RealmParams, rtt_base), rd, 8),
        ("realm/root-own", offset_of!(RealmParams, rtt_base), page, 8),
        (
            "realm/root-top",
            offset_of!(RealmParams, rtt_base),
            !0xffff,
            8,
        ),
        (
            "realm/level-4",
            offset_of!(RealmParams, rtt_level_start),
            4,
            8,
        ),
        (
            "realm/level-3",
            offset_of!(RealmParams, rtt_level_start),
            3,
            8,
        ),
        (
            "realm/level-min",
            offset_of!(RealmParams, rtt_level_start),
            1 << 63,
            8,
        ),
        (
            "realm/level-256",
            offset_of!(RealmParams, rtt_level_start),
            256 + 1,
            8,
        ),
        (
            "realm/roots-0",
            offset_of!(RealmParams, rtt_num_start),
            0,
            4,
        ),
        (
            "realm/roots-max",
            offset_of!(RealmParams, rtt_num_start),
            u32::MAX.into(),
            4,
        ),
    ];
    for (name, offset, value, size) in wrong {
        write_params(page, root, 7);
        let to = page + offset as u64;
        // SAFETY: Inside the page.
        unsafe {
            match size {
                1 => write8(to, value as u8),
                2 => write16(to, value as u16),
                4 => write32(to, value as u32),
                _ => write64(to, value),
            }
        }
        suite.equal(name, make(rd, page), INPUT);
    }
    write_params(page, root, 7);
    suite.equal("realm/create", make(rd, page), SUCCESS);
    suite.equal("realm/create-again", make(rd, page), INPUT);
    suite.check("realm/rd-kept-out", kept_out(rd), "the host reads it");
    suite.check("realm/root-kept-out", kept_out(root), "the host reads it");
    suite.equal("realm/rd-undelegate", undelegate(rd), INPUT);
    suite.equal("realm/root-undelegate", undelegate(root), INPUT);
    // A second realm with the same VMID.
    let (rd2, root2) = (at(RD + 20), at(RD + 21));
    delegate(rd2);
    delegate(root2);
    write_params(page, root2, 7);
    suite.equal("realm/same-vmid", make(rd2, page), INPUT);
    write_params(page, root, 8);
    suite.equal("realm/same-root", make(rd2, page), INPUT);
    suite.equal("realm/rd2-back", undelegate(rd2), SUCCESS);
    suite.equal("realm/root2-back", undelegate(root2), SUCCESS);
}

fn recs(suite: &mut Suite<Console>) {
    let (rd, page, run) = (at(RD), at(PARAMS), at(RUN));
    let make = |rec: u64| {
        status(Command::RecCreate {
            rd,
            rec,
            params: page,
        })
    };
    let aux = ask(Command::RecAuxCount { rd });
    suite.check(
        "rec/aux-count",
        aux[0] == SUCCESS && aux[1] <= 16,
        format_args!("{aux:x?}"),
    );
    suite.equal(
        "rec/aux-count-no-rd",
        status(Command::RecAuxCount { rd: page }),
        INPUT,
    );
    write_rec(page, 0, true, 0, 0);
    suite.equal("rec/not-delegated", make(at(RECS)), INPUT);
    for n in 0..2 {
        delegate(at(RECS + n));
    }
    suite.equal("rec/is-rd", make(rd), INPUT);
    suite.equal(
        "rec/params-is-rec",
        status(Command::RecCreate {
            rd,
            rec: at(RECS),
            params: at(RECS),
        }),
        INPUT,
    );
    suite.equal(
        "rec/no-realm",
        status(Command::RecCreate {
            rd: at(RECS + 1),
            rec: at(RECS),
            params: page,
        }),
        INPUT,
    );
    write_rec(page, 1, true, 0, 0);
    suite.equal("rec/not-next", make(at(RECS)), INPUT);
    write_rec(page, 0, true, 0, 0);
    // SAFETY: Inside the page.
    unsafe { write64(page + offset_of!(RecParams, mpidr) as u64, 1 << 31) };
    suite.equal("rec/mpidr-reserved", make(at(RECS)), INPUT);
    write_rec(page, 0, true, 0, 0);
    // SAFETY: Inside the page.
    unsafe { write64(page + offset_of!(RecParams, num_aux) as u64, u64::MAX) };
    suite.equal("rec/num-aux", make(at(RECS)), INPUT);
    write_rec(page, 0, true, 0x4000_0000, 0x0900_0000);
    suite.equal("rec/create", make(at(RECS)), SUCCESS);
    suite.equal("rec/create-again", make(at(RECS)), INPUT);
    write_rec(page, 1, false, 0, 0);
    suite.equal("rec/create-second", make(at(RECS + 1)), SUCCESS);
    suite.check("rec/kept-out", kept_out(at(RECS)), "the host reads it");
    suite.equal("rec/undelegate", undelegate(at(RECS)), INPUT);

    let enter = |rec: u64, run: u64| status(Command::RecEnter { rec, run });
    fill(run, 0);
    suite.equal("enter/new", enter(at(RECS), run), realm(0));
    // The run page comes first, then the REC, then its state.
    suite.equal("enter/run-unaligned", enter(at(RECS), run + 8), INPUT);
    suite.equal("enter/run-delegated", enter(at(RECS), at(RECS + 1)), INPUT);
    suite.equal("enter/run-is-rec", enter(at(RECS), at(RECS)), INPUT);
    suite.equal(
        "enter/run-device",
        enter(at(RECS), machine::get().uart),
        INPUT,
    );
    suite.equal("enter/no-rec", enter(rd, run), INPUT);
    suite.equal("enter/rec-own", enter(run, run), INPUT);
    suite.equal(
        "realm/destroy-with-recs",
        status(Command::RealmDestroy { rd }),
        realm(0),
    );
    suite.equal(
        "realm/activate-no-rd",
        status(Command::RealmActivate { rd: run }),
        INPUT,
    );
}

fn tables(suite: &mut Suite<Console>) {
    let (rd, code) = (at(RD), at(CODE));
    let ipa = 0x4000_0000;
    let read = |ipa: u64, level: i64| ask(Command::RttReadEntry { rd, ipa, level });
    let first = start_level() + 1;
    suite.equal(
        "rtt/map-no-table",
        map(rd, ipa, 3, normal(code)),
        rtt(start_level()),
    );
    for level in [
        start_level(),
        start_level() - 1,
        4,
        -2,
        i64::MAX,
        i64::MIN,
        256 + 3,
    ] {
        suite.equal("rtt/create-level", table(rd, at(TABLES), ipa, level), INPUT);
    }
    suite.equal(
        "rtt/create-not-delegated",
        table(rd, at(TABLES), ipa, first),
        INPUT,
    );
    let count = (3 - start_level()) as u64;
    for n in 0..count {
        delegate(at(TABLES + n));
    }
    suite.equal(
        "rtt/create-unaligned",
        table(rd, at(TABLES), ipa + granule(), first),
        INPUT,
    );
    suite.equal(
        "rtt/create-outside",
        table(rd, at(TABLES), 1 << IPA_BITS, first),
        INPUT,
    );
    suite.equal(
        "rtt/create-far-outside",
        table(rd, at(TABLES), 1 << 63, first),
        INPUT,
    );
    suite.equal("rtt/create-rd", table(rd, rd, ipa, first), INPUT);
    if first < 3 {
        suite.equal(
            "rtt/create-too-deep",
            table(rd, at(TABLES), ipa, 3),
            rtt(start_level()),
        );
    }
    for n in 0..count {
        let level = first + n as i64;
        let base = ipa & !(span(level - 1) - 1);
        suite.equal(
            "rtt/create",
            table(rd, at(TABLES + n), base, level),
            SUCCESS,
        );
        suite.check(
            "rtt/kept-out",
            kept_out(at(TABLES + n)),
            "the host reads it",
        );
        let entry = read(base, level - 1);
        let right = entry[0] == SUCCESS && entry[1] == (level - 1) as u64 && entry[2] == 2;
        suite.check("rtt/read-table", right, format_args!("{entry:x?}"));
    }
    delegate(at(TABLES + 3));
    let base = ipa & !(span(2) - 1);
    suite.equal(
        "rtt/create-again",
        table(rd, at(TABLES + 3), base, 3),
        rtt(2),
    );
    undelegate(at(TABLES + 3));

    // Only the host's memory can be mapped, by a descriptor of the host's bits.
    for (name, descriptor) in [
        (
            "rtt/map-el2",
            memory_ranges().next().map_or(0, |range| normal(range.0)),
        ),
        ("rtt/map-rd", normal(rd)),
        ("rtt/map-table", normal(at(TABLES))),
        (
            "rtt/map-device",
            normal(machine::get().uart & !(granule() - 1)),
        ),
        ("rtt/map-nowhere", normal(0)),
        ("rtt/map-far", normal(1 << 47)),
        ("rtt/map-valid-bit", normal(code) | 1),
        ("rtt/map-software", normal(code) | 1 << 55),
        ("rtt/map-never-execute", normal(code) | 1 << 54),
        ("rtt/map-af", normal(code) | 1 << 10),
        ("rtt/map-reserved-type", code | 4 << 2 | DESC_READ),
        ("rtt/map-high", normal(code) | 1 << 63),
    ] {
        suite.equal(name, map(rd, ipa, 3, descriptor), INPUT);
    }
    suite.equal("rtt/map-level-4", map(rd, ipa, 4, normal(code)), INPUT);
    suite.equal(
        "rtt/map-level-huge",
        map(rd, ipa, i64::MIN, normal(code)),
        INPUT,
    );
    suite.equal(
        "rtt/map-unaligned",
        map(rd, ipa + 8, 3, normal(code)),
        INPUT,
    );
    suite.equal(
        "rtt/map-outside",
        map(rd, 1 << IPA_BITS, 3, normal(code)),
        INPUT,
    );
    let block_of_own = at(0).next_multiple_of(span(2)) + span(2);
    let fits = block_of_own + span(2) <= crate::granules::own().1;
    suite.equal(
        "rtt/map-block-on-table",
        map(rd, base, 2, normal(block_of_own)),
        if fits { rtt(2) } else { INPUT },
    );
    suite.equal("rtt/map", map(rd, ipa, 3, normal(code)), SUCCESS);
    suite.equal("rtt/map-again", map(rd, ipa, 3, normal(code)), rtt(3));
    suite.equal("rtt/mapped-not-delegated", delegate(code), INPUT);
    let entry = read(ipa, 3);
    suite.check(
        "rtt/read-mapped",
        entry[..4] == [SUCCESS, 3, 1, normal(code)],
        format_args!("{entry:x?}"),
    );
    // Mapped twice, it is the host's alone after both are gone.
    suite.equal(
        "rtt/map-alias",
        map(rd, ipa + granule(), 3, normal(code)),
        SUCCESS,
    );
    let unmap = |ipa: u64, level: i64| ask(Command::RttUnmapUnprotected { rd, ipa, level });
    let gone = unmap(ipa, 3);
    suite.check(
        "rtt/unmap",
        gone[..2] == [SUCCESS, ipa + granule()],
        format_args!("{gone:x?}"),
    );
    suite.equal("rtt/alias-not-delegated", delegate(code), INPUT);
    let gone = unmap(ipa + granule(), 3);
    let end = base + span(2);
    suite.check(
        "rtt/unmap-alias",
        gone[..2] == [SUCCESS, end],
        format_args!("{gone:x?}"),
    );
    let none = unmap(ipa, 3);
    suite.check(
        "rtt/unmap-nothing",
        none[..2] == [rtt(3), end],
        format_args!("{none:x?}"),
    );
    suite.equal("rtt/unmapped-delegated", delegate(code), SUCCESS);
    suite.equal("rtt/unmapped-undelegated", undelegate(code), SUCCESS);
    let outside = unmap(1 << IPA_BITS, 3);
    suite.check(
        "rtt/unmap-outside",
        outside[..2] == [INPUT, 0],
        format_args!("{outside:x?}"),
    );
    suite.equal(
        "rtt/destroy-root",
        status(Command::RttDestroy {
            rd,
            ipa: 0,
            level: start_level(),
        }),
        INPUT,
    );
    suite.equal(
        "rtt/fold-root",
        status(Command::RttFold {
            rd,
            ipa: 0,
            level: start_level(),
        }),
        INPUT,
    );
    // A block, and its fold and unfold.
    let (block, from) = (span(2), block_of_own);
    let to = base + block;
    if fits {
        suite.equal("rtt/map-block", map(rd, to, 2, normal(from)), SUCCESS);
        suite.equal(
            "rtt/block-not-delegated",
            delegate(from + block - granule()),
            INPUT,
        );
        suite.equal("rtt/map-in-block", map(rd, to, 3, normal(code)), rtt(2));
        delegate(at(TABLES + 3));
        suite.equal("rtt/unfold", table(rd, at(TABLES + 3), to, 3), SUCCESS);
        let entry = read(to + granule(), 3);
        let right = entry[..4] == [SUCCESS, 3, 1, normal(from + granule())];
        suite.check("rtt/unfolded", right, format_args!("{entry:x?}"));
        let folded = ask(Command::RttFold {
            rd,
            ipa: to,
            level: 3,
        });
        suite.check(
            "rtt/fold",
            folded[..2] == [SUCCESS, at(TABLES + 3)],
            format_args!("{folded:x?}"),
        );
        suite.equal("rtt/fold-table-back", undelegate(at(TABLES + 3)), SUCCESS);
        suite.check(
            "rtt/fold-zero",
            is_zero(at(TABLES + 3)),
            "the old table shows",
        );
        suite.equal("rtt/unmap-block", unmap(to, 2)[0], SUCCESS);
        suite.equal(
            "rtt/block-delegated",
            delegate(from + block - granule()),
            SUCCESS,
        );
        suite.equal(
            "rtt/block-undelegated",
            undelegate(from + block - granule()),
            SUCCESS,
        );
    }
}

/// Takes it all apart; the guest's own checks come after and build it anew.
fn end(suite: &mut Suite<Console>) {
    let (rd, ipa) = (at(RD), 0x4000_0000);
    for n in 0..2 {
        suite.equal(
            "rec/destroy",
            status(Command::RecDestroy { rec: at(RECS + n) }),
            SUCCESS,
        );
        suite.equal(
            "rec/destroy-again",
            status(Command::RecDestroy { rec: at(RECS + n) }),
            INPUT,
        );
        suite.equal("rec/back", undelegate(at(RECS + n)), SUCCESS);
        suite.check("rec/zero", is_zero(at(RECS + n)), "the old REC shows");
    }
    suite.equal(
        "realm/destroy-with-tables",
        status(Command::RealmDestroy { rd }),
        realm(0),
    );
    take_tables(suite, rd, ipa);
    suite.equal(
        "realm/destroy",
        status(Command::RealmDestroy { rd }),
        SUCCESS,
    );
    suite.equal(
        "realm/destroy-again",
        status(Command::RealmDestroy { rd }),
        INPUT,
    );
    for n in [RD, ROOT] {
        suite.equal("realm/back", undelegate(at(n)), SUCCESS);
        suite.check("realm/zero", is_zero(at(n)), "the old realm shows");
    }
}

/// Destroys the tables above `ipa`, the lowest first.
pub fn take_tables(suite: &mut Suite<Console>, rd: u64, ipa: u64) {
    if start_level() + 1 < 3 {
        let above = ask(Command::RttDestroy {
            rd,
            ipa: ipa & !(span(1) - 1),
            level: 2,
        });
        suite.equal("rtt/destroy-with-table", above[0], rtt(2));
    }
    for n in (0..(3 - start_level()) as u64).rev() {
        let level = start_level() + 1 + n as i64;
        let base = ipa & !(span(level - 1) - 1);
        let gone = ask(Command::RttDestroy {
            rd,
            ipa: base,
            level,
        });
        let right = gone[..2] == [SUCCESS, at(TABLES + n)] && gone[2] > base;
        suite.check("rtt/destroy", right, format_args!("{gone:x?}"));
        suite.equal("rtt/back", undelegate(at(TABLES + n)), SUCCESS);
        suite.check("rtt/zero", is_zero(at(TABLES + n)), "the old table shows");
        let none = ask(Command::RttDestroy {
            rd,
            ipa: base,
            level,
        });
        suite.equal("rtt/destroy-nothing", none[0], rtt(level - 1));
    }
}

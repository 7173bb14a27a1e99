//! What each command costs a host, in ticks of the counter: for `cargo qemu bench
//! memory`, where a tick is an instruction. This host does all of it right.
//!
//! A line `cost NAME COUNT TICKS` for each; the program that reads them knows what they
//! mean. What memory holds, and whose it is, is looked at afterwards.

use core::arch::{asm, global_asm};
use core::mem::offset_of;
use core::ops::Range;

use rmi::Command;
use rmi::params::{RealmFlags, RealmParams};
use rmi::run::{EnterFlags, RecEnter, RecRun};
use rmi::vendor::Vendor;
use tests::bare::asm::{read32, write8, write32, write64};
use tests::bare::console::Console;
use tests::bare::cpu;
use tests::println;
use tests::suite::Suite;

mod rsi;

use crate::calls::{Answer, SUCCESS, granule};
use crate::granules::{at, fill, is_zero, kept_out, own};
use crate::realm::{
    IPA_BITS, PARAMS, RD, RECS, ROOT, RUN, map, normal, span, start_level, write_params, write_rec,
};

// x0 = a device: reads it for ever.
global_asm!(
    ".balign 4096",
    ".global costs_code",
    "costs_code:",
    "1: ldr x1, [x0]",
    "b 1b",
    ".org costs_code + 0x1000",
);

unsafe extern "C" {
    static costs_code: u8;
}

/// The guest's memory, and where the half begins that the host shares.
const RAM: u64 = 0x4000_0000;
const SHARED: u64 = 1 << (IPA_BITS - 1);
const DEVICE: u64 = 0x0900_0000;

/// Granules of this check: tables, and a page of content.
const TABLES: u64 = 64;
const SOURCE: u64 = 32;
/// What is given to realms.
const MEMORY: u64 = 2048;

/// How often each command of one granule is made.
const CALLS: u64 = 256;
const ENTRIES: u64 = 1000;
const GIB: u64 = 1 << 30;

/// Makes a call by SMC with no more around it than a host needs.
#[inline(always)]
fn ask(call: impl Into<[u64; 6]>) -> Answer {
    let [mut x0, mut x1, mut x2, mut x3, mut x4, x5] = call.into();
    // SAFETY: EL2 changes X0 to X17 at most; what it does with memory of this host's was
    // asked for.
    unsafe {
        asm!(
            "smc #0",
            inout("x0") x0, inout("x1") x1, inout("x2") x2, inout("x3") x3, inout("x4") x4,
            inout("x5") x5 => _, out("x6") _, out("x7") _, out("x8") _, out("x9") _,
            out("x10") _, out("x11") _, out("x12") _, out("x13") _, out("x14") _,
            out("x15") _, out("x16") _, out("x17") _,
            options(nostack),
        );
    }
    [x0, x1, x2, x3, x4]
}

#[inline(always)]
fn status(call: impl Into<[u64; 6]>) -> u64 {
    ask(call)[0]
}

fn delegate(pa: u64) -> u64 {
    status(Command::GranuleDelegate { pa })
}

fn undelegate(pa: u64) -> u64 {
    status(Command::GranuleUndelegate { pa })
}

fn table(rd: u64, rtt: u64, ipa: u64, level: i64) -> u64 {
    status(Command::RttCreate {
        rd,
        rtt,
        ipa,
        level,
    })
}

/// Makes calls that must succeed: how many do not.
struct Meter {
    failed: u64,
}

impl Meter {
    /// Times `count` calls.
    fn time(&mut self, name: &str, count: u64, mut call: impl FnMut(u64) -> u64) {
        let mut failed = 0;
        let begun = cpu::now();
        for n in 0..count {
            failed += u64::from(call(n) != SUCCESS);
        }
        let ticks = cpu::now() - begun;
        self.failed += failed;
        println!("cost {name} {count} {ticks}");
    }

    /// Times `count` commands, put together before: what is counted is EL2's work.
    fn commands(&mut self, name: &str, count: u64, command: impl Fn(u64) -> Command) {
        let mut calls = [[0; 6]; CALLS as usize];
        for (n, call) in (0..count).zip(&mut calls) {
            *call = command(n).into();
        }
        self.time(name, count, |n| status(calls[n as usize]));
    }

    /// Times calls that each do a part of a range, as the next of it says.
    fn sweep(&mut self, name: &str, range: Range<u64>, mut call: impl FnMut(u64) -> (u64, u64)) {
        let (mut at, mut calls) = (range.start, 0);
        let begun = cpu::now();
        while at < range.end {
            let (status, next) = call(at);
            calls += 1;
            if status != SUCCESS || next <= at {
                self.failed += 1;
                break;
            }
            at = next;
        }
        let ticks = cpu::now() - begun;
        println!("cost {name} {calls} {ticks}");
    }
}

/// Measures everything.
pub fn measure(suite: &mut Suite<Console>) {
    println!("cost ticks-a-second {} 0", arm64::regs::CNTFRQ_EL0.get());
    let mut meter = Meter { failed: 0 };
    let requested = rmi::VERSION_1_0;
    meter.commands("VERSION", CALLS, |_| Command::Version { requested });
    let (low, high) = own();
    for n in 0..(high - low) / granule() {
        // Nothing of another check's, nothing that this one would not see.
        if n < MEMORY {
            fill(at(n), n);
        }
    }
    meter.commands("GRANULE_DELEGATE", CALLS, |n| Command::GranuleDelegate {
        pa: at(MEMORY + n),
    });
    meter.commands("GRANULE_UNDELEGATE", CALLS, |n| {
        Command::GranuleUndelegate { pa: at(MEMORY + n) }
    });
    tables(suite, &mut meter);
    pages(suite, &mut meter);
    if granule() == 4096 && high - at(MEMORY) > GIB {
        gibibyte(suite, &mut meter);
    }
    for flags in [RealmFlags::NONCONF, RealmFlags::PROTECTED] {
        exits(suite, &mut meter, flags);
    }
    rsi::measure(suite, &mut meter);
    suite.equal("costs/failed", meter.failed, 0);
}

/// A realm in state NEW.
fn build(flags: RealmFlags) -> u64 {
    let params = at(PARAMS);
    write_params(params, at(ROOT), 9);
    let flags = flags | RealmFlags::EL2_VGIC;
    // SAFETY: A granule of this host's.
    unsafe {
        write64(params + offset_of!(RealmParams, flags) as u64, flags.bits());
        write8(params + offset_of!(RealmParams, num_bps) as u64, 1);
        write8(params + offset_of!(RealmParams, num_wps) as u64, 1);
    }
    delegate(at(RD));
    delegate(at(ROOT));
    let rd = at(RD);
    status(Command::RealmCreate { rd, params })
}

/// Tables for `ipa`, down to level `last`, of granules from the `first` on.
fn down(first: u64, ipa: u64, last: i64) {
    for (n, level) in (start_level() + 1..=last).enumerate() {
        let page = at(first + n as u64);
        delegate(page);
        table(at(RD), page, ipa & !(span(level - 1) - 1), level);
    }
}

/// Takes a realm's tables for `ipa` down, and those that hold nothing.
fn up(ipa: u64) {
    for level in (start_level() + 1..=3).rev() {
        let base = ipa & !(span(level - 1) - 1);
        let gone = ask(Command::RttDestroy {
            rd: at(RD),
            ipa: base,
            level,
        });
        if gone[0] == SUCCESS {
            undelegate(gone[1]);
        }
    }
}

fn end(suite: &mut Suite<Console>, name: &str) {
    let rd = at(RD);
    suite.equal(name, status(Command::RealmDestroy { rd }), SUCCESS);
    undelegate(rd);
    undelegate(at(ROOT));
}

/// Realms and their tables.
fn tables(suite: &mut Suite<Console>, meter: &mut Meter) {
    let (rd, params) = (at(RD), at(PARAMS));
    build(RealmFlags::PROTECTED);
    end(suite, "costs/first-realm");
    delegate(rd);
    delegate(at(ROOT));
    meter.time("REALM_CREATE", 1, |_| {
        status(Command::RealmCreate { rd, params })
    });
    meter.time("REALM_DESTROY", 1, |_| status(Command::RealmDestroy { rd }));
    undelegate(rd);
    undelegate(at(ROOT));

    build(RealmFlags::PROTECTED);
    down(TABLES, RAM, 2);
    // As many as one table of level 2 has room for from RAM's begin on.
    let count = CALLS.min((SHARED - RAM) / span(2)).min(32);
    for n in 0..count {
        delegate(at(MEMORY + n));
    }
    meter.commands("RTT_CREATE", count, |n| Command::RttCreate {
        rd,
        rtt: at(MEMORY + n),
        ipa: RAM + n * span(2),
        level: 3,
    });
    meter.commands("RTT_DESTROY", count, |n| Command::RttDestroy {
        rd,
        ipa: RAM + n * span(2),
        level: 3,
    });
    for n in 0..count {
        undelegate(at(MEMORY + n));
    }
    up(RAM);
    end(suite, "costs/tables");
}

/// A realm's own memory, a granule at a time.
fn pages(suite: &mut Suite<Console>, meter: &mut Meter) {
    build(RealmFlags::PROTECTED);
    down(TABLES, RAM, 3);
    let (rd, src) = (at(RD), at(SOURCE));
    let half = CALLS / 2;
    let ipa = |n: u64| RAM + n * granule();
    for n in 0..CALLS {
        delegate(at(MEMORY + n));
    }
    meter.commands("DATA_CREATE", half, |n| Command::DataCreate {
        rd,
        data: at(MEMORY + n),
        ipa: ipa(n),
        src,
        flags: 0,
    });
    meter.commands("DATA_CREATE_UNKNOWN", half, |n| {
        Command::DataCreateUnknown {
            rd,
            data: at(MEMORY + half + n),
            ipa: ipa(half + n),
        }
    });
    let reached = (0..CALLS).find(|n| !kept_out(at(MEMORY + n)));
    suite.check("costs/kept-out", reached.is_none(), "the host reaches it");
    meter.commands("DATA_DESTROY", CALLS, |n| Command::DataDestroy {
        rd,
        ipa: ipa(n),
    });
    for n in 0..CALLS {
        undelegate(at(MEMORY + n));
    }
    let left = (0..CALLS).find(|n| !is_zero(at(MEMORY + n)));
    suite.check("costs/zero", left.is_none(), "something is left in it");
    up(RAM);
    end(suite, "costs/pages");
}

/// A gibibyte: handed over, populated and taken back, by pages and by ranges.
fn gibibyte(suite: &mut Suite<Console>, meter: &mut Meter) {
    let rd = at(RD);
    let pa = at(MEMORY).next_multiple_of(span(2));
    let (tables, pages) = (GIB / span(2), GIB / granule());
    for by_range in [false, true] {
        build(RealmFlags::PROTECTED);
        down(TABLES, RAM, 2);
        for n in 0..if by_range { 0 } else { tables } {
            delegate(at(TABLES + 8 + n));
            table(rd, at(TABLES + 8 + n), RAM + n * span(2), 3);
        }
        for place in (pa..pa + GIB).step_by(1 << 20) {
            // SAFETY: Memory of this host's.
            unsafe { write64(place, place) };
        }
        if by_range {
            ranges(meter, pa);
        } else {
            let page = |n: u64| (pa + n * granule(), RAM + n * granule());
            meter.time("1GiB/page/hand-over", pages, |n| delegate(page(n).0));
            meter.time("1GiB/page/populate", pages, |n| {
                let (data, ipa) = page(n);
                status(Command::DataCreateUnknown { rd, data, ipa })
            });
            meter.time("1GiB/page/empty", pages, |n| {
                let ipa = page(n).1;
                status(Command::DataDestroy { rd, ipa })
            });
            meter.time("1GiB/page/take-back", pages, |n| undelegate(page(n).0));
        }
        // SAFETY: Memory of this host's, which it is again.
        let words = (pa..pa + GIB).step_by(4096).map(|at| unsafe { read32(at) });
        suite.equal("costs/gib-zero", words.map(u64::from).sum::<u64>(), 0);
        for n in 0..if by_range { 0 } else { tables } {
            let ipa = RAM + n * span(2);
            status(Command::RttDestroy { rd, ipa, level: 3 });
            undelegate(at(TABLES + 8 + n));
        }
        up(RAM);
        end(suite, "costs/gib");
    }
}

fn ranges(meter: &mut Meter, pa: u64) {
    let (rd, top) = (at(RD), pa + GIB);
    let next = |answer: [u64; 5]| (answer[0], answer[1]);
    meter.sweep("1GiB/range/hand-over", pa..top, |base| {
        next(ask(Vendor::GranuleRangeDelegate { base, top }))
    });
    let end = RAM + GIB;
    meter.sweep("1GiB/range/populate", RAM..end, |ipa| {
        next(ask(Vendor::RttDataMap {
            rd,
            ipa,
            top: end,
            pa: pa + (ipa - RAM),
        }))
    });
    meter.sweep("1GiB/range/empty", RAM..end, |ipa| {
        let top = end;
        let [status, from, reached, ..] = ask(Vendor::RttDataUnmap { rd, ipa, top });
        let is_its = from == pa + (ipa - RAM);
        (if is_its { status } else { !status }, reached)
    });
    meter.sweep("1GiB/range/take-back", pa..top, |base| {
        next(ask(Vendor::GranuleRangeUndelegate { base, top }))
    });
}

/// A vCPU that reads a device for ever: a way in and out, and what its host does.
fn exits(suite: &mut Suite<Console>, meter: &mut Meter, flags: RealmFlags) {
    build(flags);
    let (rd, rec, params, run) = (at(RD), at(RECS), at(PARAMS), at(RUN));
    let is_plain = flags.contains(RealmFlags::NONCONF);
    down(TABLES, RAM, 3);
    let source = at(SOURCE);
    let from = (&raw const costs_code).addr() as u64;
    for offset in (0..4096).step_by(4) {
        // SAFETY: The program's code, and a granule of its own.
        unsafe { write32(source + offset, read32(from + offset)) };
    }
    let data = at(MEMORY);
    let placed = if is_plain {
        map(rd, RAM, 3, normal(source))
    } else {
        delegate(data);
        status(Command::DataCreate {
            rd,
            data,
            ipa: RAM,
            src: source,
            flags: 0,
        })
    };
    suite.equal("costs/code", placed, SUCCESS);
    let device = if is_plain { DEVICE } else { SHARED | DEVICE };
    write_rec(params, 0, true, RAM, device);
    delegate(rec);
    let made = status(Command::RecCreate { rd, rec, params });
    suite.equal("costs/rec", made, SUCCESS);
    status(Command::RealmActivate { rd });
    let enter = |flags: EnterFlags| {
        // SAFETY: The run page is the host's.
        unsafe {
            write64(
                run + offset_of!(RecRun, enter) as u64 + offset_of!(RecEnter, flags) as u64,
                flags.bits(),
            );
        }
        status(Command::RecEnter { rec, run })
    };
    fill(run, 0);
    suite.equal("costs/enter", enter(EnterFlags::empty()), SUCCESS);
    let text = if is_plain {
        "exit/plain"
    } else {
        "exit/protected"
    };
    meter.time(text, ENTRIES, |_| enter(EnterFlags::EMUL_MMIO));
    status(Command::RecDestroy { rec });
    undelegate(rec);
    if is_plain {
        status(Command::RttUnmapUnprotected {
            rd,
            ipa: RAM,
            level: 3,
        });
    } else {
        status(Command::DataDestroy { rd, ipa: RAM });
        undelegate(data);
    }
    up(RAM);
    end(suite, "costs/exits");
}

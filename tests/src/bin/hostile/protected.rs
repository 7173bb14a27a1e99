//! A protected guest of a few instructions: its memory is kept from this host, and of
//! its exits the host learns what RMI 1.0 says.

use core::arch::global_asm;
use core::mem::offset_of;

use rmi::params::{RealmFlags, RealmParams};
use rmi::run::{EnterFlags, ExitReason, RecEnter, RecExit, RecRun};
use rmi::vendor::Vendor;
use rmi::{Command, fid};
use tests::bare::asm::{read32, read64, write32, write64};
use tests::bare::console::Console;
use tests::bare::psci::psci;
use tests::bare::{cpu, machine};
use tests::println;
use tests::suite::Suite;

use crate::audit;
use crate::calls::{INPUT, SUCCESS, ask, granule, realm, rtt, status};
use crate::granules::{self, at, delegate, fill, is_zero, kept_out, undelegate};
use crate::realm::{
    CODE, IPA_BITS, PARAMS, RD, RECS, ROOT, RUN, TABLES, map, normal, span, start_level, table,
    take_tables, write_params, write_rec,
};

// x0 = a device in the shared half. Position independent, at most 4 KiB; its vectors
// at 2 KiB. X2 holds what nobody else may know.
global_asm!(
    ".balign 4096",
    ".global protected_code",
    "protected_code:",
    "mov x19, x0",
    "adr x10, protected_code",
    "add x9, x10, #0x800",
    "msr vbar_el1, x9",
    "isb",
    "movz x2, #0x5ec2",
    "movk x2, #0xe75e, lsl #16",
    "movk x2, #0x5ec2, lsl #32",
    "movk x2, #0xe75e, lsl #48",
    // The granule's size.
    "ldr x1, [x19]",
    // A page of zeros, which is filled.
    "add x11, x10, x1",
    "ldr x3, [x11]",
    "str x3, [x19, #8]",
    "add x4, x11, x1",
    "1: str x2, [x11], #8",
    "cmp x11, x4",
    "b.lo 1b",
    "dsb sy",
    "str xzr, [x19, #16]",
    // A page that comes when it is touched.
    "ldr x3, [x4]",
    "str x2, [x4]",
    "str x3, [x19, #24]",
    // An address that is no memory.
    "add x5, x4, x1",
    "ldr x3, [x5]",
    "str x20, [x19, #32]",
    // Memory of the host's: not executed, but read.
    "ldr x14, [x19, #40]",
    "blr x14",
    "str x20, [x19, #48]",
    "ldr x3, [x14]",
    "str x3, [x19, #56]",
    // Of a register, what is written.
    "strb w2, [x19, #64]",
    "mov x1, x2",
    "mov x3, x2",
    "mov x0, #2",
    "movk x0, #0x8400, lsl #16",
    "hvc #0",
    "b .",
    ".org protected_code + 0xa00",
    "mrs x20, esr_el1",
    "mrs x22, elr_el1",
    "add x22, x22, #4",
    // EC of a fetch: back to who called.
    "lsr x21, x20, #26",
    "cmp x21, #0x21",
    "csel x22, x30, x22, eq",
    "msr elr_el1, x22",
    "eret",
    ".org protected_code + 0x1000",
);

unsafe extern "C" {
    static protected_code: u8;
}

const RAM: u64 = 0x4000_0000;
/// Where the half begins that the host shares.
const SHARED: u64 = 1 << (IPA_BITS - 1);
const DEVICE: u64 = SHARED | 0x0900_0000;
const SECRET: u64 = 0xe75e_5ec2_e75e_5ec2;
/// What the host wrote into what it shares: `ret`, twice.
const RET: u64 = 0xd65f_03c0_d65f_03c0;

/// Granules of the guest's memory: code, one of zeros, and one for the first touch.
const DATA: u64 = CODE + 32;
/// The tables of the shared half, and the granule that is shared.
const SHARED_TABLES: u64 = DATA + 3;
const PAGE: u64 = SHARED_TABLES + 3;

/// What the run page holds before an entry.
const STALE: u64 = 0x5a1e_5a1e_5a1e_5a1e;
/// Words of the exit that each exit writes: the first, and how many.
const WRITTEN: [(usize, usize); 9] = [
    (offset_of!(RecExit, exit_reason), 1),
    (offset_of!(RecExit, esr), 3),
    (offset_of!(RecExit, gprs), 32),
    (offset_of!(RecExit, gicv3_hcr), 1),
    (offset_of!(RecExit, gicv3_misr), 2),
    (offset_of!(RecExit, cntp_ctl), 4),
    (offset_of!(RecExit, ripas_base), 3),
    (offset_of!(RecExit, imm), 1),
    (offset_of!(RecExit, elr), 3),
];
/// Those of them that this guest's aborts have nothing for: X1 to X30, the GIC's, what
/// tells of RIPAS and of calls, the PC and PSTATE, the PMU.
const UNUSED: [(usize, usize); 6] = [
    (offset_of!(RecExit, gprs) + 8, 31),
    (offset_of!(RecExit, gicv3_hcr), 1),
    (offset_of!(RecExit, gicv3_misr), 2),
    (offset_of!(RecExit, ripas_base), 3),
    (offset_of!(RecExit, imm), 1),
    (offset_of!(RecExit, elr), 3),
];

fn offsets(words: &[(usize, usize)]) -> impl Iterator<Item = usize> {
    let each = |&(first, count)| (first..first + 8 * count).step_by(8);
    words.iter().flat_map(each)
}

/// An exit, and whether the run page holds what it may not.
#[derive(Clone, Copy, Debug)]
struct Exit {
    status: u64,
    reason: u64,
    esr: u64,
    far: u64,
    hpfar: u64,
    value: u64,
    secrets: usize,
    /// Words that are not what an abort leaves there.
    wrong: usize,
}

fn enter(flags: EnterFlags, value: u64) -> Exit {
    let run = at(RUN);
    let exit = run + offset_of!(RecRun, exit) as u64;
    // SAFETY: The run page is the host's.
    let word = |offset: usize| unsafe { read64(exit + offset as u64) };
    loop {
        // SAFETY: The run page is the host's.
        unsafe {
            for offset in (0..size_of::<RecExit>() as u64).step_by(8) {
                write64(exit + offset, STALE);
            }
            write64(run + offset_of!(RecEnter, flags) as u64, flags.bits());
            write64(run + offset_of!(RecEnter, gprs) as u64, value);
        }
        let status = status(Command::RecEnter { rec: at(RECS), run });
        let reason = word(offset_of!(RecExit, exit_reason));
        if status == SUCCESS && reason == ExitReason::Irq as u64 {
            continue;
        }
        let leaks = |word: &u64| *word == SECRET || (RAM..RAM + 0x4_0000).contains(word);
        return Exit {
            status,
            reason,
            esr: word(offset_of!(RecExit, esr)),
            far: word(offset_of!(RecExit, far)),
            hpfar: word(offset_of!(RecExit, hpfar)),
            value: word(offset_of!(RecExit, gprs)),
            secrets: (0..0x800).step_by(8).map(word).filter(leaks).count(),
            wrong: (0..size_of::<RecExit>())
                .step_by(8)
                .filter(|&offset| {
                    let is_stale = word(offset) == STALE;
                    is_stale == offsets(&WRITTEN).any(|written| written == offset)
                })
                .chain(offsets(&UNUSED).filter(|&offset| word(offset) != 0))
                .count(),
        };
    }
}

/// An access of the device's register there.
fn is_access(exit: &Exit, offset: u64) -> bool {
    let data_abort = exit.esr >> 26 == 0x24 && exit.esr & 1 << 24 != 0;
    exit.status == SUCCESS
        && exit.reason == ExitReason::Sync as u64
        && data_abort
        && exit.hpfar == DEVICE >> 12 << 4
        && exit.far == offset
        && exit.secrets == 0
        && exit.wrong == 0
}

/// Builds it, runs it, takes it apart.
pub fn checks(suite: &mut Suite<Console>) {
    build(suite);
    run(suite);
    ends(suite);
}

fn build(suite: &mut Suite<Console>) {
    let rd = at(RD);
    for n in [RD, ROOT, RECS, DATA, DATA + 1, DATA + 2] {
        suite.equal("protected/delegate", delegate(at(n)), SUCCESS);
    }
    let params = at(PARAMS);
    write_params(params, at(ROOT), 9);
    let flags = RealmFlags::PROTECTED | RealmFlags::EL2_VGIC;
    // SAFETY: A granule of this host's.
    unsafe { write64(params + offset_of!(RealmParams, flags) as u64, flags.bits()) };
    let made = status(Command::RealmCreate { rd, params });
    suite.equal("protected/realm", made, SUCCESS);
    tables(suite, TABLES, RAM);
    let top = RAM + 3 * granule();
    let ripas = |base: u64| ask(Command::RttInitRipas { rd, base, top })[..2] == [SUCCESS, top];
    suite.check("protected/init-ripas", ripas(RAM), "not all of it");

    // The code, copied from a page that changes afterwards.
    let from = (&raw const protected_code).addr() as u64;
    let source = at(PAGE);
    fill(source, 0);
    for offset in (0..4096).step_by(4) {
        // SAFETY: The program's code, and a granule of its own.
        unsafe { write32(source + offset, read32(from + offset)) };
    }
    let create = |data: u64, ipa: u64, src: u64| {
        status(Command::DataCreate {
            rd,
            data,
            ipa,
            src,
            flags: 0,
        })
    };
    let (code, zeros) = (at(DATA), at(DATA + 1));
    suite.equal(
        "protected/no-table",
        create(code, 0, source),
        rtt(start_level()),
    );
    suite.equal("protected/of-el2", create(code, RAM, rd), INPUT);
    suite.equal("protected/of-itself", create(code, RAM, code), INPUT);
    suite.equal("protected/shared", create(code, SHARED, source), INPUT);
    suite.equal("protected/code", create(code, RAM, source), SUCCESS);
    fill(source, RET);
    let unknown = |data: u64, ipa: u64| status(Command::DataCreateUnknown { rd, data, ipa });
    suite.equal("protected/twice", unknown(code, RAM + granule()), INPUT);
    suite.equal("protected/taken", unknown(zeros, RAM), rtt(3));
    suite.equal("protected/zeros", unknown(zeros, RAM + granule()), SUCCESS);
    tables(suite, SHARED_TABLES, SHARED);
    let shared = map(rd, SHARED, 3, normal(source));
    suite.equal("protected/map-shared", shared, SUCCESS);
    suite.equal("protected/map-own", map(rd, RAM, 3, normal(at(RUN))), INPUT);
    write_rec(params, 0, true, RAM, DEVICE);
    let rec = at(RECS);
    let made = status(Command::RecCreate { rd, rec, params });
    suite.equal("protected/rec", made, SUCCESS);
    suite.equal(
        "protected/activate",
        status(Command::RealmActivate { rd }),
        SUCCESS,
    );
    suite.equal(
        "protected/too-late",
        create(at(DATA + 2), top, source),
        realm(0),
    );
}

fn tables(suite: &mut Suite<Console>, first: u64, ipa: u64) {
    for n in 0..(3 - start_level()) as u64 {
        delegate(at(first + n));
        let level = start_level() + 1 + n as i64;
        let made = table(at(RD), at(first + n), ipa & !(span(level - 1) - 1), level);
        suite.equal("protected/table", made, SUCCESS);
    }
}

/// Everything that is the guest's, or of it.
fn all_of_it() -> impl Iterator<Item = u64> {
    let tables = (3 - start_level()) as u64;
    [RD, ROOT, RECS, DATA, DATA + 1]
        .into_iter()
        .chain(TABLES..TABLES + tables)
        .chain(SHARED_TABLES..SHARED_TABLES + tables)
}

fn run(suite: &mut Suite<Console>) {
    let mut expect = |name: &str, right: bool, exit: Exit| {
        suite.check(name, right, format_args!("{exit:x?}"));
    };
    let emulate = EnterFlags::EMUL_MMIO;
    let none = EnterFlags::empty();
    let exit = enter(none, 0);
    expect("protected/reads-device", is_access(&exit, 0), exit);
    let exit = enter(emulate, granule());
    expect(
        "protected/zero",
        is_access(&exit, 8) && exit.value == 0,
        exit,
    );
    let exit = enter(emulate, 0);
    expect("protected/filled", is_access(&exit, 16), exit);
    let reached = all_of_it().find(|n| !kept_out(at(*n)));
    suite.check(
        "protected/kept-out",
        reached.is_none(),
        format_args!("{reached:?}"),
    );
    for (name, function) in [
        (
            "protected/registers",
            Vendor::RecRead {
                rec: at(RECS),
                pa: at(PARAMS),
            },
        ),
        (
            "protected/set",
            Vendor::RecWrite {
                rec: at(RECS),
                pa: at(PARAMS),
            },
        ),
        (
            "protected/history",
            Vendor::RecHistory {
                rec: at(RECS),
                pa: at(PARAMS),
            },
        ),
    ] {
        suite.equal(name, status(function), INPUT);
    }
    audit::point("protected");
    touches(suite);
    shares(suite);
}

/// Memory that comes at its first touch, and what never is memory.
fn touches(suite: &mut Suite<Console>) {
    let (rd, emulate) = (at(RD), EnterFlags::EMUL_MMIO);
    let missing = RAM + 2 * granule();
    let is_missing = |exit: &Exit| {
        let quiet = exit.far == 0 && exit.value == 0 && exit.secrets == 0;
        let told = exit.esr & !(0x3f << 26 | 0x3f) == 0 && exit.esr >> 26 == 0x24;
        exit.status == SUCCESS && quiet && told && exit.hpfar == missing >> 12 << 4
    };
    let mut expect = |name: &str, right: bool, exit: Exit| {
        suite.check(name, right, format_args!("{exit:x?}"));
    };
    let exit = enter(emulate, 0);
    expect("protected/missing", is_missing(&exit), exit);
    // The host cannot answer it with an abort.
    let exit = enter(EnterFlags::INJECT_SEA, 0);
    expect("protected/no-abort", exit.status == crate::calls::REC, exit);
    let exit = enter(EnterFlags::empty(), 0);
    expect("protected/missing-again", is_missing(&exit), exit);
    let given = status(Command::DataCreateUnknown {
        rd,
        data: at(DATA + 2),
        ipa: missing,
    });
    suite.equal("protected/given", given, SUCCESS);
    let mut expect = |name: &str, right: bool, exit: Exit| {
        suite.check(name, right, format_args!("{exit:x?}"));
    };
    let exit = enter(EnterFlags::empty(), 0);
    expect(
        "protected/given-zero",
        is_access(&exit, 24) && exit.value == 0,
        exit,
    );
    let exit = enter(emulate, 0);
    let sea = exit.value >> 26 == 0x25 && exit.value & 0x3f == 0x10;
    expect("protected/nothing-there", is_access(&exit, 32) && sea, exit);
}

/// What it shares, and its last call.
fn shares(suite: &mut Suite<Console>) {
    let mut expect = |name: &str, right: bool, exit: Exit| {
        suite.check(name, right, format_args!("{exit:x?}"));
    };
    let emulate = EnterFlags::EMUL_MMIO;
    let exit = enter(emulate, 0);
    expect("protected/asks", is_access(&exit, 40), exit);
    let exit = enter(emulate, SHARED);
    let sea = exit.value >> 26 == 0x21 && exit.value & 0x3f == 0x10;
    expect("protected/not-executed", is_access(&exit, 48) && sea, exit);
    let exit = enter(emulate, 0);
    expect(
        "protected/shared-read",
        is_access(&exit, 56) && exit.value == RET,
        exit,
    );
    let exit = enter(emulate, 0);
    let byte = exit.value == SECRET & 0xff;
    expect("protected/one-byte", is_access(&exit, 64) && byte, exit);
    let exit = enter(emulate, 0);
    let off = exit.reason == ExitReason::Psci as u64
        && exit.value == u64::from(fid::PSCI_CPU_OFF)
        && exit.secrets == 0;
    expect("protected/cpu-off", off, exit);
}

/// The end, by what each call says of where to go on.
fn ends(suite: &mut Suite<Console>) {
    let rd = at(RD);
    let base = RAM & !(span(2) - 1);
    let live = ask(Command::RttDestroy {
        rd,
        ipa: base,
        level: 3,
    });
    let right = live[0] == rtt(3) && live[2] == base;
    suite.check("protected/table-in-use", right, format_args!("{live:x?}"));
    let rec = at(RECS);
    suite.equal(
        "protected/rec-ends",
        status(Command::RecDestroy { rec }),
        SUCCESS,
    );
    let mut ipa = base;
    for _ in 0..8 {
        let gone = ask(Command::DataDestroy { rd, ipa });
        if gone[0] == SUCCESS {
            let pa = gone[1];
            suite.equal("protected/data-back", undelegate(pa), SUCCESS);
            suite.check("protected/data-zero", is_zero(pa), format_args!("{pa:#x}"));
        }
        ipa = gone[2];
        if ipa == base + span(2) {
            break;
        }
    }
    suite.equal("protected/all-found", ipa, base + span(2));
    for n in (0..(3 - start_level()) as u64).rev() {
        let level = start_level() + 1 + n as i64;
        let ipa = SHARED & !(span(level - 1) - 1);
        let gone = ask(Command::RttDestroy { rd, ipa, level });
        let right = gone[..2] == [SUCCESS, at(SHARED_TABLES + n)];
        suite.check("protected/shared-table", right, format_args!("{gone:x?}"));
        undelegate(at(SHARED_TABLES + n));
    }
    take_tables(suite, rd, RAM);
    suite.equal(
        "protected/realm-ends",
        status(Command::RealmDestroy { rd }),
        SUCCESS,
    );
    for n in [RD, ROOT, RECS] {
        suite.equal("protected/back", undelegate(at(n)), SUCCESS);
    }
    let left = all_of_it().find(|n| !is_zero(at(*n)));
    suite.check(
        "protected/all-zero",
        left.is_none(),
        format_args!("{left:?}"),
    );
}

/// What this host leaves in its own memory, and finds after a reset.
const MARK: u64 = 0x6d61_726b_6564_2121;
/// Granules of it, apart from all others.
const MARKED: u64 = 200;
/// So many words of a canary, one after another, are one.
const LENGTH: u64 = 8;

/// What a protected guest's memory held is nowhere when the machine is reset: the first
/// start fills some and resets the machine, which keeps RAM; the second looks for it.
pub fn canary(suite: &mut Suite<Console>) {
    if !is_marked() {
        build(suite);
        // As far as it has filled its page.
        let emulate = EnterFlags::EMUL_MMIO;
        enter(EnterFlags::empty(), 0);
        enter(emulate, granule());
        let filled = enter(emulate, 0);
        suite.check(
            "canary/filled",
            is_access(&filled, 16),
            format_args!("{filled:x?}"),
        );
        suite.check(
            "canary/kept-out",
            kept_out(at(DATA + 1)),
            "the host reads it",
        );
        mark();
        if cpu::count() > 1 {
            // While another CPU goes in and out of the guest.
            cpu::start(1, || {
                loop {
                    enter(EnterFlags::EMUL_MMIO, 0);
                }
            });
        }
        println!("canary: reset");
        psci(fid::PSCI_SYSTEM_RESET.into(), 0, 0, 0);
        suite.check("canary/reset", false, "the machine goes on");
        return;
    }
    search(suite);
}

/// Whether this is the second start.
pub fn is_marked() -> bool {
    // SAFETY: Memory of the host's.
    unsafe { read64(at(MARKED)) == MARK }
}

/// Has [`is_marked`] be true after a reset.
pub fn mark() {
    let marked = at(MARKED);
    fill(marked, MARK);
    tests::bare::asm::clean(marked, marked + granule());
}

/// Looks for the secret in all memory of the host's.
pub fn search(suite: &mut Suite<Console>) {
    let (mut marks, mut secrets) = (0, 0);
    for range in &machine::get().ram {
        for page in (range.start..range.end).step_by(granule() as usize) {
            if granules::read(page).is_err() {
                continue; // EL2's own
            }
            match canary_in(page) {
                Some(MARK) => marks += 1,
                Some(_) => secrets += 1,
                None => {}
            }
        }
    }
    suite.check("canary/ram-is-kept", marks == 1, marks);
    suite.equal("canary/nowhere", secrets, 0);
}

/// The canary that a page of the host's holds.
fn canary_in(page: u64) -> Option<u64> {
    let (mut last, mut count) = (0, 0);
    for at in (page..page + granule()).step_by(8) {
        // SAFETY: Memory of the host's.
        let word = unsafe { read64(at) };
        count = if word == last { count + 1 } else { 1 };
        last = word;
        if count == LENGTH && [MARK, SECRET].contains(&word) {
            return Some(word);
        }
    }
    None
}

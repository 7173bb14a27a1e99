//! A plain guest of a few instructions: every exit and every answer to it.

use core::arch::global_asm;
use core::mem::offset_of;

use rmi::registers::{Finish, Registers};
use rmi::run::{EnterFlags, ExitReason, RecEnter, RecExit, RecRun};
use rmi::vendor::{self, Vendor};
use rmi::{Command, fid};
use tests::bare::asm::{read32, read64, write32, write64};
use tests::bare::console::Console;
use tests::bare::{cpu, gic};
use tests::suite::Suite;

use crate::calls::{INPUT, REC, SUCCESS, ask, granule, realm, status};
use crate::granules::{at, delegate, is_zero, undelegate};
use crate::realm::{
    CODE, PARAMS, RD, RECS, ROOT, RUN, TABLES, map, normal, span, start_level, table, take_tables,
    write_params, write_rec,
};

// x0 = a device. Position independent, at most 4 KiB; its vectors at 2 KiB.
global_asm!(
    ".balign 4096",
    ".global guest_code",
    "guest_code:",
    "mov x19, x0",
    "adr x9, guest_code",
    "add x9, x9, #0x800",
    "msr vbar_el1, x9",
    "isb",
    "ldr w1, [x19]",
    "str w1, [x19, #4]",
    "ldrsb x2, [x19, #8]",
    "str x2, [x19, #16]",
    "ldp x3, x4, [x19]",
    "str x20, [x19, #24]",
    "str x21, [x19, #32]",
    "mov x20, xzr",
    "ldr w5, [x19, #40]",
    "str x20, [x19, #24]",
    "wfi",
    "mov x0, #3",
    "movk x0, #0xc400, lsl #16",
    "mov x1, #1",
    "adr x2, guest_second",
    "mov x3, x19",
    "hvc #0",
    "str x0, [x19, #48]",
    "mov x0, #4",
    "movk x0, #0xc400, lsl #16",
    "mov x1, #1",
    "mov x2, xzr",
    "smc #0",
    "str x0, [x19, #48]",
    "mov x0, #3",
    "movk x0, #0xc400, lsl #16",
    "mov x1, #1",
    "adr x2, guest_second",
    "mov x3, x19",
    "hvc #0",
    "str x0, [x19, #48]",
    "mov x0, #0x190",
    "movk x0, #0xc400, lsl #16",
    "mov x1, #0x10000",
    "smc #0",
    "str x0, [x19, #48]",
    "mov x0, #2",
    "movk x0, #0x8400, lsl #16",
    "hvc #0",
    "1: wfi",
    "b 1b",
    "guest_second:",
    "str x0, [x0, #56]",
    "2: ldr w1, [x0]",
    "cbnz w1, 2b",
    "mov x0, #8",
    "movk x0, #0x8400, lsl #16",
    "hvc #0",
    "b .",
    ".org guest_code + 0xa00",
    "mrs x20, esr_el1",
    "mrs x21, far_el1",
    "mrs x22, elr_el1",
    "add x22, x22, #4",
    "msr elr_el1, x22",
    "eret",
    ".org guest_code + 0x1000",
);

unsafe extern "C" {
    static guest_code: u8;
}

const RAM: u64 = 0x4000_0000;
const DEVICE: u64 = 0x0900_0000;

/// What an exit says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Exit {
    status: u64,
    reason: u64,
    esr: u64,
    far: u64,
    hpfar: u64,
    gprs: [u64; 4],
}

fn exit_word(offset: usize) -> u64 {
    // SAFETY: The run page is the host's.
    unsafe { read64(at(RUN) + offset_of!(RecRun, exit) as u64 + offset as u64) }
}

fn enter(n: u64, flags: EnterFlags, value: u64) -> Exit {
    let run = at(RUN);
    loop {
        // SAFETY: The run page is the host's.
        unsafe {
            write64(run + offset_of!(RecEnter, flags) as u64, flags.bits());
            write64(run + offset_of!(RecEnter, gprs) as u64, value);
            // What EL2 must overwrite.
            write64(run + offset_of!(RecRun, exit) as u64, 0xff);
        }
        let status = status(Command::RecEnter {
            rec: at(RECS + n),
            run,
        });
        let exit = Exit {
            status,
            reason: exit_word(offset_of!(RecExit, exit_reason)),
            esr: exit_word(offset_of!(RecExit, esr)),
            far: exit_word(offset_of!(RecExit, far)),
            hpfar: exit_word(offset_of!(RecExit, hpfar)),
            gprs: [0, 1, 2, 3].map(|n| exit_word(offset_of!(RecExit, gprs) + 8 * n)),
        };
        // An interrupt of the machine's, which this host has none of: again.
        if status != SUCCESS || exit.reason != ExitReason::Irq as u64 {
            return exit;
        }
    }
}

const NONE: EnterFlags = EnterFlags::empty();

/// An access to the device: 8 bits of the offset, size, direction.
fn is_access(exit: &Exit, offset: u64, size: u64, write: bool) -> bool {
    exit.status == SUCCESS
        && exit.reason == ExitReason::Sync as u64
        && exit.esr >> 26 == 0x24
        && exit.esr & 1 << 24 != 0
        && 1 << (exit.esr >> 22 & 3) == size
        && (exit.esr >> 6 & 1 == 1) == write
        && exit.hpfar == DEVICE >> 12 << 4
        && exit.far & 0xfff == offset
}

/// Builds it, runs it, takes it apart.
pub fn checks(suite: &mut Suite<Console>) {
    let rd = at(RD);
    for n in [RD, ROOT, RECS, RECS + 1] {
        delegate(at(n));
    }
    write_params(at(PARAMS), at(ROOT), 9);
    suite.equal(
        "guest/realm",
        status(Command::RealmCreate {
            rd,
            params: at(PARAMS),
        }),
        SUCCESS,
    );
    for n in 0..(3 - start_level()) as u64 {
        delegate(at(TABLES + n));
        let level = start_level() + 1 + n as i64;
        let made = table(rd, at(TABLES + n), RAM & !(span(level - 1) - 1), level);
        suite.equal("guest/table", made, SUCCESS);
    }
    let from = (&raw const guest_code).addr() as u64;
    for offset in (0..4096).step_by(4) {
        // SAFETY: The program's code, and a granule of its own.
        unsafe { write32(at(CODE) + offset, read32(from + offset)) };
    }
    tests::bare::asm::clean(at(CODE), at(CODE) + granule());
    suite.equal("guest/map", map(rd, RAM, 3, normal(at(CODE))), SUCCESS);
    for n in 0..2 {
        write_rec(at(PARAMS), n, n == 0, RAM, DEVICE);
        let made = status(Command::RecCreate {
            rd,
            rec: at(RECS + n),
            params: at(PARAMS),
        });
        suite.equal("guest/rec", made, SUCCESS);
    }
    suite.equal(
        "guest/activate",
        status(Command::RealmActivate { rd }),
        SUCCESS,
    );
    suite.equal(
        "guest/activate-again",
        status(Command::RealmActivate { rd }),
        realm(0),
    );
    suite.equal(
        "guest/rec-too-late",
        status(Command::RecCreate {
            rd,
            rec: at(RD + 20),
            params: at(PARAMS),
        }),
        INPUT,
    );
    suite.equal("enter/not-runnable", enter(1, NONE, 0).status, REC);
    suite.equal(
        "enter/mmio-without-one",
        enter(0, EnterFlags::EMUL_MMIO, 0).status,
        REC,
    );
    suite.equal(
        "enter/sea-without-one",
        enter(0, EnterFlags::INJECT_SEA, 0).status,
        REC,
    );

    devices(suite);
    power(suite);
    last(suite);
}

fn devices(suite: &mut Suite<Console>) {
    let mut expect = |name: &str, right: bool, exit: Exit| {
        suite.check(name, right, format_args!("{exit:x?}"));
    };
    let emulate = EnterFlags::EMUL_MMIO;
    let exit = enter(0, NONE, 0);
    expect(
        "exit/mmio-read",
        is_access(&exit, 0, 4, false) && exit.gprs[0] == 0,
        exit,
    );
    // Not answered, it comes again.
    let exit = enter(0, NONE, 0);
    expect("exit/mmio-unanswered", is_access(&exit, 0, 4, false), exit);
    let exit = enter(0, emulate, 0xffff_ffff_1234_5678);
    let right = is_access(&exit, 4, 4, true) && exit.gprs[0] & 0xffff_ffff == 0x1234_5678;
    expect("exit/mmio-write", right, exit);
    let exit = enter(0, emulate, 0);
    expect("exit/mmio-signed", is_access(&exit, 8, 1, false), exit);
    let exit = enter(0, emulate, 0x1280);
    let right = is_access(&exit, 16, 8, true) && exit.gprs[0] == -128i64 as u64;
    expect("exit/mmio-extended", right, exit);
    let exit = enter(0, emulate, 0);
    let right = exit.reason == 0 && exit.esr >> 26 == 0x24 && exit.esr & 1 << 24 == 0;
    expect(
        "exit/pair-no-syndrome",
        right && exit.hpfar == DEVICE >> 12 << 4,
        exit,
    );
    let exit = enter(0, emulate, 0);
    expect("enter/pair-not-emulated", exit.status == REC, exit);
    registers(suite);
    let mut expect = |name: &str, right: bool, exit: Exit| {
        suite.check(name, right, format_args!("{exit:x?}"));
    };
    let exit = enter(0, EnterFlags::INJECT_SEA, 0);
    let right =
        is_access(&exit, 24, 8, true) && exit.gprs[0] >> 26 == 0x25 && exit.gprs[0] & 0x3f == 0x10;
    expect("exit/sea-esr", right, exit);
    let exit = enter(0, emulate, 0);
    expect(
        "exit/sea-far",
        is_access(&exit, 32, 8, true) && exit.gprs[0] == DEVICE,
        exit,
    );
    let exit = enter(0, emulate, 0);
    expect("exit/mmio-for-sea", is_access(&exit, 40, 4, false), exit);
    let exit = enter(0, EnterFlags::INJECT_SEA, 0);
    let right = is_access(&exit, 24, 8, true) && exit.gprs[0] >> 26 == 0x25;
    expect("exit/mmio-sea", right, exit);
    let exit = enter(0, emulate | EnterFlags::TRAP_WFI, 0);
    let right = exit.reason == 0 && exit.esr >> 26 == 1 && exit.esr & 1 == 0;
    expect("exit/wfi", right, exit);
    suite.equal(
        "rec/not-pending",
        ask(Vendor::RecPending { rec: at(RECS) })[1],
        0,
    );
}

/// The vCPU's registers at an access without a syndrome: told, taken back as the
/// guest's own, and the access left to it again.
fn registers(suite: &mut Suite<Console>) {
    let (rec, page) = (at(RECS), at(PARAMS));
    // SAFETY: The page is the host's, and no reference to it is left.
    let registers =
        || unsafe { &mut *core::ptr::with_exposed_provenance_mut::<Registers>(page as usize) };
    suite.equal(
        "registers/read",
        status(Vendor::RecRead { rec, pa: page }),
        SUCCESS,
    );
    let right = registers().pc == RAM + 36 && registers().x[19] == DEVICE;
    suite.check(
        "registers/told",
        right,
        format_args!("{:x?}", registers().pc),
    );
    suite.equal(
        "registers/unaligned",
        status(Vendor::RecRead { rec, pa: page + 8 }),
        INPUT,
    );
    suite.equal(
        "registers/no-rec",
        status(Vendor::RecRead {
            rec: at(RD),
            pa: page,
        }),
        INPUT,
    );
    suite.equal(
        "registers/into-rec",
        status(Vendor::RecRead { rec, pa: rec }),
        INPUT,
    );
    registers().finish = 77;
    suite.equal(
        "registers/no-end",
        status(Vendor::RecWrite { rec, pa: page }),
        INPUT,
    );
    // EL2h is what a guest would love to be.
    registers().pstate = 0x3c9;
    registers().finish = Finish::Abort as u64;
    (registers().iss, registers().far) = (0x21, 0x77);
    suite.equal(
        "registers/write",
        status(Vendor::RecWrite { rec, pa: page }),
        SUCCESS,
    );
    suite.equal(
        "registers/write-again",
        status(Vendor::RecWrite { rec, pa: page }),
        REC,
    );
    let exit = enter(0, NONE, 0);
    let right = is_access(&exit, 24, 8, true) && exit.gprs[0] == 0x9600_0021;
    suite.check("registers/abort", right, format_args!("{exit:x?}"));
    let exit = enter(0, EnterFlags::EMUL_MMIO, 0);
    let right = is_access(&exit, 32, 8, true) && exit.gprs[0] == 0x77;
    suite.check("registers/abort-far", right, format_args!("{exit:x?}"));
    // The pair once more, from its place.
    suite.equal(
        "registers/read-again",
        status(Vendor::RecRead { rec, pa: page }),
        SUCCESS,
    );
    registers().pc = RAM + 36;
    registers().finish = Finish::Done as u64;
    suite.equal(
        "registers/back",
        status(Vendor::RecWrite { rec, pa: page }),
        SUCCESS,
    );
    let exit = enter(0, NONE, 0);
    let right = exit.reason == 0 && exit.esr >> 26 == 0x24 && exit.esr & 1 << 24 == 0;
    suite.check("registers/pair-again", right, format_args!("{exit:x?}"));
}

fn is_psci(exit: &Exit, call: &[u64]) -> bool {
    exit.status == SUCCESS
        && exit.reason == ExitReason::Psci as u64
        && exit.gprs[..call.len()] == *call
}

fn power(suite: &mut Suite<Console>) {
    let (first, second) = (at(RECS), at(RECS + 1));
    let emulate = EnterFlags::EMUL_MMIO;
    let complete = |a: u64, b: u64, answer: i64| {
        status(Command::PsciComplete {
            calling: a,
            target: b,
            status: answer,
        })
    };
    let on = u64::from(fid::PSCI_CPU_ON);
    let exit = enter(0, NONE, 0);
    suite.check(
        "psci/cpu-on-exit",
        is_psci(&exit, &[on, 1]),
        format_args!("{exit:x?}"),
    );
    suite.equal("enter/psci-pending", enter(0, NONE, 0).status, REC);
    suite.equal("psci/complete-self", complete(first, first, 0), INPUT);
    suite.equal("psci/complete-wrong-way", complete(second, first, 0), INPUT);
    suite.equal("psci/complete-no-rec", complete(first, at(RD), 0), INPUT);
    suite.equal("psci/complete-status", complete(first, second, -2), INPUT);
    suite.equal(
        "psci/complete-status-huge",
        complete(first, second, i64::MAX),
        INPUT,
    );
    suite.equal("psci/complete-denied", complete(first, second, -3), SUCCESS);
    suite.equal("psci/complete-twice", complete(first, second, 0), INPUT);
    let exit = enter(0, NONE, 0);
    let right = is_access(&exit, 48, 8, true) && exit.gprs[0] == -3i64 as u64;
    suite.check("psci/denied", right, format_args!("{exit:x?}"));
    suite.equal("psci/denied-stays-off", enter(1, NONE, 0).status, REC);

    let exit = enter(0, emulate, 0);
    let affinity = u64::from(fid::PSCI_AFFINITY_INFO);
    suite.check(
        "psci/affinity-exit",
        is_psci(&exit, &[affinity, 1]),
        format_args!("{exit:x?}"),
    );
    suite.equal(
        "psci/complete-affinity",
        complete(first, second, 0),
        SUCCESS,
    );
    let exit = enter(0, NONE, 0);
    let right = is_access(&exit, 48, 8, true) && exit.gprs[0] == 1;
    suite.check("psci/affinity-off", right, format_args!("{exit:x?}"));

    let exit = enter(0, emulate, 0);
    suite.check(
        "psci/cpu-on-again",
        is_psci(&exit, &[on, 1]),
        format_args!("{exit:x?}"),
    );
    suite.equal("psci/complete", complete(first, second, 0), SUCCESS);
    let exit = enter(0, NONE, 0);
    let right = is_access(&exit, 48, 8, true) && exit.gprs[0] == 0;
    suite.check("psci/on", right, format_args!("{exit:x?}"));
    let exit = enter(1, NONE, 0);
    let right = is_access(&exit, 56, 8, true) && exit.gprs[0] == DEVICE;
    suite.check("psci/second-runs", right, format_args!("{exit:x?}"));

    let exit = enter(0, emulate, 0);
    let right = is_access(&exit, 48, 8, true) && exit.gprs[0] == u64::MAX;
    suite.check("guest/no-rsi", right, format_args!("{exit:x?}"));
    let exit = enter(0, emulate, 0);
    let off = u64::from(fid::PSCI_CPU_OFF);
    suite.check(
        "psci/cpu-off-exit",
        is_psci(&exit, &[off]),
        format_args!("{exit:x?}"),
    );
    suite.equal("enter/cpu-off", enter(0, NONE, 0).status, REC);

    // What one CPU runs, no other runs or destroys: CPU 1 has it spin on the
    // device's register being mapped memory.
    let exit = if cpu::count() > 1 {
        running(suite)
    } else {
        enter(1, emulate, 0)
    };
    suite.check(
        "guest/second-polls",
        is_access(&exit, 0, 4, false),
        format_args!("{exit:x?}"),
    );
    let exit = enter(1, emulate, 0);
    let off = u64::from(fid::PSCI_SYSTEM_OFF);
    suite.check(
        "psci/system-off-exit",
        is_psci(&exit, &[off]),
        format_args!("{exit:x?}"),
    );
    suite.equal("enter/system-off", enter(1, NONE, 0).status, realm(1));
    suite.equal("enter/system-off-first", enter(0, NONE, 0).status, realm(1));
}

/// Another CPU enters the second vCPU while its device is memory, so that it
/// polls for ever; here, what must not work meanwhile, and the kick that ends it.
fn running(suite: &mut Suite<Console>) -> Exit {
    use core::sync::atomic::{AtomicU64, Ordering};
    static ANSWER: AtomicU64 = AtomicU64::new(0);
    static ENTERED: AtomicU64 = AtomicU64::new(0);
    let (rd, second) = (at(RD), at(RECS + 1));
    let page = at(CODE + 1);
    // SAFETY: A granule of the host's.
    unsafe { write64(page, 1) };
    // Tables for the device, if it has none of the memory's.
    let mut spare = CODE + 10;
    for level in start_level() + 1..=3 {
        delegate(at(spare));
        let made = table(rd, at(spare), DEVICE & !(span(level - 1) - 1), level);
        if made == SUCCESS {
            spare += 1;
        } else {
            undelegate(at(spare));
        }
    }
    let ipa = DEVICE & !(granule() - 1);
    suite.equal("running/map", map(rd, ipa, 3, normal(page)), SUCCESS);
    // SAFETY: The run page is the host's.
    unsafe {
        write64(
            at(RUN) + offset_of!(RecEnter, flags) as u64,
            EnterFlags::EMUL_MMIO.bits(),
        );
    }
    // A host keeps the SGI enabled by which EL2 brings a vCPU out.
    gic::start_distributor();
    let job = || {
        gic::start_cpu();
        gic::enable(vendor::KICK_SGI, 0x80);
        ENTERED.store(1, Ordering::SeqCst);
        let answer = status(Command::RecEnter {
            rec: at(RECS + 1),
            run: at(RUN),
        });
        ANSWER.store(answer, Ordering::SeqCst);
        ENTERED.store(2, Ordering::SeqCst);
    };
    suite.equal("running/cpu", cpu::start(1, job) as u64, 0);
    let runs = cpu::eventually(|| {
        ENTERED.load(Ordering::SeqCst) == 1 && status(Vendor::RecPending { rec: second }) == REC
    });
    if runs {
        // Its page is pinned while it runs: then it cannot be delegated.
        suite.equal("running/pinned", delegate(at(RUN)), INPUT);
        let other = at(PARAMS);
        suite.equal(
            "running/enter",
            status(Command::RecEnter {
                rec: second,
                run: other,
            }),
            REC,
        );
        suite.equal(
            "running/destroy",
            status(Command::RecDestroy { rec: second }),
            REC,
        );
        suite.equal(
            "running/pending",
            status(Vendor::RecPending { rec: second }),
            REC,
        );
        suite.equal(
            "running/spi",
            status(Vendor::SetSpi {
                rd,
                intid: 33,
                level: 1,
            }),
            SUCCESS,
        );
        suite.equal(
            "running/kick",
            status(Vendor::Kick { rec: second }),
            SUCCESS,
        );
    }
    suite.check("running/runs", runs, "the vCPU is not seen to run");
    let left = cpu::eventually(|| ENTERED.load(Ordering::SeqCst) == 2);
    let reason = exit_word(offset_of!(RecExit, exit_reason));
    let answer = ANSWER.load(Ordering::SeqCst);
    let right = left && answer == SUCCESS && reason == ExitReason::Irq as u64;
    suite.check(
        "running/kicked",
        right,
        format_args!("{left} {answer:#x} reason {reason}"),
    );
    suite.check("running/cpu-off", cpu::wait_off(1), "CPU 1 stays on");
    let gone = ask(Command::RttUnmapUnprotected { rd, ipa, level: 3 });
    suite.equal("running/unmap", gone[0], SUCCESS);
    // The poll comes out as an access again.
    let exit = enter(1, NONE, 0);
    suite.check(
        "running/access",
        is_access(&exit, 0, 4, false),
        format_args!("{exit:x?}"),
    );
    // Those of its own tables go with the rest: from the lowest.
    for level in (start_level() + 1..=3).rev() {
        let base = DEVICE & !(span(level - 1) - 1);
        let gone = ask(Command::RttDestroy {
            rd,
            ipa: base,
            level,
        });
        if gone[0] == SUCCESS {
            suite.equal("running/table-back", undelegate(gone[1]), SUCCESS);
        }
    }
    // Answered as a read of 1: it polls again.
    enter(1, EnterFlags::EMUL_MMIO, 1)
}

fn last(suite: &mut Suite<Console>) {
    let rd = at(RD);
    let gone = ask(Command::RttUnmapUnprotected {
        rd,
        ipa: RAM,
        level: 3,
    });
    suite.equal("guest/unmap", gone[0], SUCCESS);
    for n in 0..2 {
        suite.equal(
            "guest/rec-destroy",
            status(Command::RecDestroy { rec: at(RECS + n) }),
            SUCCESS,
        );
    }
    take_tables(suite, rd, RAM);
    suite.equal(
        "guest/destroy",
        status(Command::RealmDestroy { rd }),
        SUCCESS,
    );
    for n in [RD, ROOT, RECS, RECS + 1] {
        suite.equal("guest/back", undelegate(at(n)), SUCCESS);
        suite.check("guest/zero", is_zero(at(n)), "something of the realm shows");
    }
}

//! What a realm's own calls cost, counted by the guest that makes them between two
//! readings of a device: so much for so many calls, less what it costs for one.

use core::arch::global_asm;
use core::mem::offset_of;

use arm64::syndrome::Syndrome;
use rmi::params::RealmFlags;
use rmi::rtt::{DataFlags, Ripas};
use rmi::run::{EnterFlags, ExitReason, RecEnter, RecExit, RecRun};
use rmi::{Command, fid, rsi};
use tests::bare::asm::{read32, read64, write32, write64};
use tests::bare::console::Console;
use tests::bare::cpu;
use tests::println;
use tests::suite::Suite;

use super::{
    MEMORY, Meter, RAM, SHARED, SOURCE, build, delegate, down, end, status, undelegate, up,
};
use crate::calls::{SUCCESS, granule};
use crate::granules::{at, fill};
use crate::realm::{PARAMS, RD, RECS, RUN, write_rec};

// x0 = a device. For ever: reads a count, and X0 to X4 of a call; makes that call so
// often; writes what the last one answered in X0.
global_asm!(
    ".balign 4096",
    ".global costs_calls",
    "costs_calls:",
    "mov x28, x0",
    "1: ldr x19, [x28]",
    "ldr x20, [x28]",
    "ldr x21, [x28]",
    "ldr x22, [x28]",
    "ldr x23, [x28]",
    "ldr x24, [x28]",
    "2: mov x0, x20",
    "mov x1, x21",
    "mov x2, x22",
    "mov x3, x23",
    "mov x4, x24",
    "smc #0",
    "subs x19, x19, #1",
    "b.ne 2b",
    "str x0, [x28]",
    "b 1b",
    ".org costs_calls + 0x1000",
);

unsafe extern "C" {
    static costs_calls: u8;
}

/// How often a call is made.
const CALLS: u64 = 256;
/// Where the guest reads what to call, and a page for what calls write.
const DEVICE: u64 = SHARED | super::DEVICE;
const PAGE: u64 = RAM + rsi::GRANULE;
/// Granules of the realm's own memory.
const PAGES: u64 = 4;
/// A gibibyte without tables.
const GIB: u64 = 1 << 30;
const FAR: u64 = 2 * GIB;
/// Exits for one order at the most.
const PATIENCE: u64 = 100 * CALLS;

/// Measures each call.
pub fn measure(suite: &mut Suite<Console>, meter: &mut Meter) {
    let code = at(MEMORY);
    build(RealmFlags::empty());
    let (rd, rec, params, run) = (at(RD), at(RECS), at(PARAMS), at(RUN));
    down(super::TABLES, RAM, 3);
    let base = RAM;
    let top = RAM + PAGES * granule();
    meter.sweep("RTT_INIT_RIPAS", base..top, |base| {
        let answer = super::ask(Command::RttInitRipas { rd, base, top });
        (answer[0], answer[1])
    });
    let from = (&raw const costs_calls).addr() as u64;
    fill(at(SOURCE), 0);
    for offset in (0..4096).step_by(4) {
        // SAFETY: the program's code, and a granule of its own.
        unsafe { write32(at(SOURCE) + offset, read32(from + offset)) };
    }
    for n in 0..PAGES {
        delegate(code + n * granule());
    }
    meter.time("DATA_CREATE/measured", PAGES, |n| {
        let (data, ipa) = (code + n * granule(), RAM + n * granule());
        let (src, flags) = (at(SOURCE + n), DataFlags::MEASURE.bits());
        status(Command::DataCreate {
            rd,
            data,
            ipa,
            src,
            flags,
        })
    });
    write_rec(params, 0, true, RAM, DEVICE);
    delegate(rec);
    suite.equal(
        "costs/rsi-rec",
        status(Command::RecCreate { rd, rec, params }),
        SUCCESS,
    );
    status(Command::RealmActivate { rd });
    fill(run, 0);
    let mut guest = Guest {
        flags: EnterFlags::empty(),
        right: true,
    };
    guest.calls();
    suite.check("costs/rsi", guest.right, "a call failed");
    status(Command::RecDestroy { rec });
    undelegate(rec);
    for n in 0..PAGES {
        status(Command::DataDestroy {
            rd,
            ipa: RAM + n * granule(),
        });
        undelegate(code + n * granule());
    }
    up(RAM);
    end(suite, "costs/rsi-end");
}

/// The vCPU that calls.
struct Guest {
    /// How it is entered next.
    flags: EnterFlags,
    right: bool,
}

impl Guest {
    fn calls(&mut self) {
        let (ram, empty) = (Ripas::Ram as u64, Ripas::Empty as u64);
        for (name, call) in [
            ("VERSION", [fid::RSI_VERSION, rmi::VERSION_1_0, 0, 0, 0]),
            ("FEATURES", [fid::RSI_FEATURES, 0, 0, 0, 0]),
            ("REALM_CONFIG", [fid::RSI_REALM_CONFIG, PAGE, 0, 0, 0]),
            ("IPA_STATE_GET", [fid::RSI_IPA_STATE_GET, RAM, PAGE, 0, 0]),
            (
                "IPA_STATE_SET/RAM",
                [fid::RSI_IPA_STATE_SET, FAR, FAR + GIB, ram, 0],
            ),
            (
                "IPA_STATE_SET/EMPTY",
                [fid::RSI_IPA_STATE_SET, FAR, FAR + GIB, empty, 0],
            ),
            ("MEASUREMENT_READ", [fid::RSI_MEASUREMENT_READ, 0, 0, 0, 0]),
            (
                "MEASUREMENT_EXTEND",
                [fid::RSI_MEASUREMENT_EXTEND, 1, 32, 0, 0],
            ),
            ("HOST_CALL", [fid::RSI_HOST_CALL, PAGE, 0, 0, 0]),
        ] {
            let (one, _) = self.order(1, call);
            let (all, code) = self.order(CALLS, call);
            self.right &= code == rsi::Code::Success as u64;
            println!("cost RSI/{name} {} {}", CALLS - 1, all.saturating_sub(one));
        }
        let (none, _) = self.order(1, [fid::RSI_VERSION, rmi::VERSION_1_0, 0, 0, 0]);
        let (init, code) = self.order(1, [fid::RSI_ATTESTATION_TOKEN_INIT, 1, 2, 3, 4]);
        self.right &= code == rsi::Code::Success as u64;
        println!("cost RSI/TOKEN_INIT 1 {}", init.saturating_sub(none));
        let next = [
            fid::RSI_ATTESTATION_TOKEN_CONTINUE,
            PAGE,
            0,
            rsi::GRANULE,
            0,
        ];
        for n in 1..=PATIENCE {
            let (ticks, code) = self.order(1, next);
            println!(
                "cost RSI/TOKEN_CONTINUE-{n} 1 {}",
                ticks.saturating_sub(none)
            );
            if code != rsi::Code::Incomplete as u64 {
                self.right &= code == rsi::Code::Success as u64;
                break;
            }
        }
    }

    /// Has it make a call so often: ticks, and X0 of the last answer.
    fn order(&mut self, count: u64, call: [u64; 5]) -> (u64, u64) {
        let [x0, x1, x2, x3, x4] = call;
        let run = at(RUN);
        let enter = run + offset_of!(RecRun, enter) as u64;
        let exit = run + offset_of!(RecRun, exit) as u64;
        // SAFETY: the run page is this host's.
        let told = |offset| unsafe { read64(exit + offset as u64) };
        let mut words = [count, x0, x1, x2, x3, x4].into_iter();
        let mut begun = cpu::now();
        for _ in 0..PATIENCE {
            let flags = core::mem::replace(&mut self.flags, EnterFlags::empty());
            // SAFETY: the run page is this host's.
            unsafe { write64(enter + offset_of!(RecEnter, flags) as u64, flags.bits()) };
            let (rd, rec) = (at(RD), at(RECS));
            if status(Command::RecEnter { rec, run }) != SUCCESS {
                break;
            }
            match ExitReason::from_raw(told(offset_of!(RecExit, exit_reason))) {
                Some(ExitReason::Sync) => {
                    self.flags = EnterFlags::EMUL_MMIO;
                    if Syndrome(told(offset_of!(RecExit, esr))).is_write() {
                        return (cpu::now() - begun, told(offset_of!(RecExit, gprs)));
                    }
                    let Some(word) = words.next() else { break };
                    // SAFETY: the run page is this host's.
                    unsafe { write64(enter + offset_of!(RecEnter, gprs) as u64, word) };
                    begun = cpu::now();
                }
                Some(ExitReason::RipasChange) => {
                    let top = told(offset_of!(RecExit, ripas_top));
                    let mut base = told(offset_of!(RecExit, ripas_base));
                    while base < top {
                        let [status, next, ..] =
                            super::ask(Command::RttSetRipas { rd, rec, base, top });
                        if status != SUCCESS || next <= base {
                            break;
                        }
                        base = next;
                    }
                }
                Some(ExitReason::HostCall) => {}
                _ => break,
            }
        }
        self.right = false;
        (0, u64::MAX)
    }
}

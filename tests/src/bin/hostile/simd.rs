//! FP/SIMD registers: each world has its own, whoever used them last on its CPU. Two guests
//! and the host, by turns, each with marks of its own.

use core::arch::{asm, global_asm};

use rmi::run::EnterFlags;
use tests::bare::console::Console;
use tests::suite::Suite;

use crate::calls::{self, granule};
use crate::tiny::Tiny;

/// The host's mark, and the guests'.
const HOST: u64 = 0x4057_4057_4057_4057;
const MARKS: [u64; 2] = [0xaaaa_0001_aaaa_0001, 0xbbbb_0002_bbbb_0002];

/// What a guest's accesses of its device say.
const ASKS: u64 = 0;
const FILLED: u64 = 8;
const TELLS: [u64; 2] = [16, 24];
const BEGAN: u64 = 32;

// Tells what V0 holds as it begins; then asks for a mark, fills V0 and V31 with it, says
// so, and tells what they hold when it goes on.
global_asm!(
    ".arch_extension fp",
    ".arch_extension simd",
    ".balign 4096",
    "simd_code:",
    "mov x0, #0x09000000",
    "mov x1, #3 << 20",
    "msr cpacr_el1, x1",
    "isb",
    "umov x2, v0.d[0]",
    "str x2, [x0, #32]",
    "1: ldr x2, [x0]",
    "dup v0.2d, x2",
    "dup v31.2d, x2",
    "str xzr, [x0, #8]",
    "umov x2, v0.d[1]",
    "str x2, [x0, #16]",
    "umov x2, v31.d[0]",
    "str x2, [x0, #24]",
    "b 1b",
    ".org simd_code + 4096",
);

unsafe extern "C" {
    static simd_code: u8;
}

/// Fills the host's.
fn fill(mark: u64) {
    // SAFETY: FP/SIMD, which this program does not use otherwise.
    unsafe {
        asm!(
            ".arch_extension fp", ".arch_extension simd",
            "msr cpacr_el1, {all}", "isb",
            "dup v0.2d, {mark}", "dup v31.2d, {mark}",
            all = in(reg) 3u64 << 20, mark = in(reg) mark,
        );
    }
}

/// What the host's hold.
fn look() -> [u64; 2] {
    let (first, last);
    // SAFETY: as above.
    unsafe {
        asm!(
            ".arch_extension fp", ".arch_extension simd",
            "umov {first}, v0.d[0]", "umov {last}, v31.d[1]",
            first = out(reg) first, last = out(reg) last,
        );
    }
    [first, last]
}

/// The host's are as it filled them.
fn own_stay(suite: &mut Suite<Console>, name: &str) {
    let now = look();
    suite.check(name, now == [HOST; 2], format_args!("{now:x?}"));
}

/// The checks.
pub fn checks(suite: &mut Suite<Console>) {
    let code = &raw const simd_code;
    let built = [0, 1].map(|n| Tiny::build(n, 60 + n as u16, code, granule(), 1));
    let [Some(one), Some(two)] = built else {
        suite.check("simd/guests", false, "not built");
        return;
    };
    let guests = [one, two];
    fill(HOST);
    for guest in guests {
        let began = guest.go(0, EnterFlags::empty(), 0);
        let right = (began.access(), began.value) == (Some(BEGAN), 0);
        suite.check("simd/begin", right, format_args!("{began:x?}"));
        let asks = guest.go(0, EnterFlags::EMUL_MMIO, 0);
        suite.check(
            "simd/asks",
            asks.access() == Some(ASKS),
            format_args!("{asks:x?}"),
        );
    }
    for host_looks in [false, true, false] {
        let own = |suite: &mut Suite<Console>| {
            if host_looks {
                own_stay(suite, "simd/host");
            }
        };
        for (guest, mark) in guests.into_iter().zip(MARKS) {
            let filled = guest.go(0, EnterFlags::EMUL_MMIO, mark);
            suite.check(
                "simd/filled",
                filled.access() == Some(FILLED),
                format_args!("{filled:x?}"),
            );
            own(suite);
        }
        for (guest, mark) in guests.into_iter().zip(MARKS) {
            for place in TELLS {
                let told = guest.go(0, EnterFlags::EMUL_MMIO, 0);
                let right = (told.access(), told.value) == (Some(place), mark);
                suite.check("simd/guest", right, format_args!("{told:x?}"));
                own(suite);
            }
            let asks = guest.go(0, EnterFlags::EMUL_MMIO, 0);
            suite.check(
                "simd/asks",
                asks.access() == Some(ASKS),
                format_args!("{asks:x?}"),
            );
        }
    }
    own_stay(suite, "simd/host-at-last");
    suite.check(
        "simd/ends",
        guests.into_iter().all(Tiny::destroy),
        "it stays",
    );
    calls::still_there(suite, "simd/rmi-version");
}

//! Every page of a protected guest, and of EL2's for it, by every kind of access: each
//! is an abort here, and the guest sees nothing of it.

use core::arch::asm;

use tests::bare::console::Console;
use tests::bare::exception::{self, Caught};
use tests::bare::{asm as instr, mmu};
use tests::suite::Suite;

use crate::audit;
use crate::calls::{SUCCESS, granule};
use crate::cycles;
use crate::granules::{at, delegate, read, undelegate};

/// A granule of the host's own, to compare with.
const PLAIN: u64 = 300;

/// An access of an address: what it loads, or 0.
type Access = unsafe fn(u64) -> u64;

macro_rules! accesses {
    ($($name:literal: $($line:literal),+;)+) => {
        [$(($name, {
            unsafe fn access(at: u64) -> u64 {
                let value: u64;
                // SAFETY: the caller's promise.
                unsafe {
                    asm!(
                        ".arch_extension fp", ".arch_extension simd", ".arch_extension lse",
                        $($line,)+
                        in("x0") at, inout("x1") 0u64 => value, out("x2") _, out("x4") _, out("x5") _,
                    );
                }
                value
            }
            access as Access
        })),+]
    };
}

/// Those that are an abort.
fn accesses() -> impl Iterator<Item = (&'static str, Access)> {
    let always = accesses! {
        "ldrb": "ldrb w1, [x0]";
        "ldrh": "ldrh w1, [x0]";
        "ldr w": "ldr w1, [x0]";
        "ldr x": "ldr x1, [x0]";
        "ldr, unaligned": "ldur x1, [x0, #3]";
        "ldp": "ldp x1, x2, [x0]";
        "ldr q": "ldr q0, [x0]", "umov x1, v0.d[0]";
        "ld1": "ld1 {{v0.2d, v1.2d}}, [x0]", "umov x1, v0.d[0]";
        "ldar": "ldar x1, [x0]";
        "ldxr": "ldxr x1, [x0]";
        "ldaxp": "ldaxp x1, x2, [x0]";
        "strb": "strb wzr, [x0]";
        "strh": "strh wzr, [x0]";
        "str w": "str wzr, [x0]";
        "str x": "str xzr, [x0]";
        "stp": "stp xzr, xzr, [x0]";
        "str q": "movi v0.2d, #0", "str q0, [x0]";
        "st1": "movi v0.2d, #0", "st1 {{v0.2d}}, [x0]";
        "stlr": "stlr xzr, [x0]";
        "dc zva": "dc zva, x0";
    };
    let atomic = accesses! {
        "ldadd": "ldadd xzr, x1, [x0]";
        "swp": "swp xzr, x1, [x0]";
        "cas": "cas x1, xzr, [x0]";
        "casp": "mov x4, #0", "mov x5, #0", "casp x4, x5, x4, x5, [x0]";
        "stadd": "stadd xzr, [x0]";
    };
    let isar0: u64;
    // SAFETY: an ID register.
    unsafe { asm!("mrs {}, id_aa64isar0_el1", out(reg) isar0) };
    let has_atomics = isar0 >> 20 & 0xf != 0;
    let atomic = atomic.into_iter().filter(move |_| has_atomics);
    always.into_iter().chain(atomic)
}

/// Those that may be an abort or do nothing at all: no data comes of them.
const QUIET: [(&str, Access); 7] = accesses! {
    "dc cvac": "dc cvac, x0";
    "dc civac": "dc civac, x0";
    "dc ivac": "dc ivac, x0";
    "dc cvau": "dc cvau, x0";
    "ic ivau": "ic ivau, x0";
    "prfm": "prfm pldl1keep, [x0]";
    "stxr": "stxr w1, xzr, [x0]", "mov x1, #0";
};

/// The checks.
pub fn checks(suite: &mut Suite<Console>) {
    let Some(guest) = cycles::with_secret(30) else {
        suite.check("tries/guest", false, "not built");
        return;
    };
    let given = at(PLAIN + 1);
    suite.equal("tries/delegate", delegate(given), SUCCESS);
    audit::point("tries");
    // SAFETY: FP/SIMD, which this program does not use otherwise.
    unsafe { asm!("msr cpacr_el1, {}", "isb", in(reg) 3u64 << 20) };
    let last = granule() - 64;
    let (mut tried, mut pages) = (0, 0);
    for page in guest.of_el2() {
        pages += 1;
        for place in [page, page + last] {
            for (name, access) in accesses() {
                // SAFETY: it is an abort; if not, EL2 is broken, which is what is to be
                // found out.
                let met = exception::probe(|| unsafe { access(place) });
                let right = met.is_err_and(|met| met.is_external_abort());
                let seen = format_args!("{name}: {met:x?}");
                suite.check_quietly("tries/access", right, seen);
                tried += 1;
            }
            for (name, access) in QUIET {
                // SAFETY: as above.
                let met = exception::probe(|| unsafe { access(place) });
                let right = met.map_or_else(Caught::is_external_abort, |value| value == 0);
                let seen = format_args!("{name}: {met:x?}");
                suite.check_quietly("tries/quiet", right, seen);
            }
            others(suite, page, place);
        }
    }
    // Its RD, its root and its vCPU at least, at both ends; 20 kinds are every CPU's.
    let all = pages >= 3 && tried >= pages * 2 * 20;
    suite.check("tries/all", all, format_args!("{tried} of {pages} pages"));
    let changed = cycles::changed(&guest);
    suite.check(
        "tries/guest-saw-nothing",
        changed == Some(0),
        format_args!("{changed:?}"),
    );
    suite.equal("tries/undelegate", undelegate(given), SUCCESS);
    suite.check("tries/gone", guest.destroy(), "something did not come back");
}

/// Fetches, table walks and questions.
fn others(suite: &mut Suite<Console>, page: u64, place: u64) {
    // SAFETY: as in `checks`.
    let fetch = exception::probe(|| unsafe {
        asm!("blr {}", in(reg) place, out("x30") _, clobber_abi("C"));
    });
    let right = fetch.is_err_and(|met| met.class() == 0x21 && met.is_external_abort());
    suite.check_quietly("tries/fetch", right, format_args!("{fetch:x?}"));
    // SAFETY: as in `checks`.
    let walk = exception::probe(|| unsafe {
        let va = mmu::map_table(509, page);
        instr::read64(va)
    });
    suite.check_quietly("tries/walk", walk.is_err(), format_args!("{walk:x?}"));
    // What a translation of such an address tells is stage 1's, as of any other.
    let own = [translate(at(PLAIN)), translate_for_write(at(PLAIN))];
    let theirs = [translate(place), translate_for_write(place)];
    let differ = own.iter().zip(&theirs).any(|(own, theirs)| {
        own.map(|par| par ^ at(PLAIN)) != theirs.map(|par| par ^ (place & !0xfff))
    });
    suite.check_quietly("tries/at", !differ, format_args!("{own:x?}, {theirs:x?}"));
    // By a table that is the guest's, it is an abort or says so, and tells no word.
    let at_walk = exception::probe(|| {
        let va = mmu::map_table(509, page);
        translate_here(va)
    });
    let told = at_walk.is_ok_and(|par| par & 1 == 0);
    suite.check_quietly("tries/at-walk", !told, format_args!("{at_walk:x?}"));
    mmu::map_gib(509, 0, false, 0);
    // Nothing of what was tried is left in the host's way.
    suite.check_quietly("tries/host", read(at(PLAIN)).is_ok(), "its own is gone");
}

fn translate_here(va: u64) -> u64 {
    let par;
    // SAFETY: a question; PAR_EL1 is nobody's.
    unsafe {
        asm!("at s1e1r, {va}", "isb", "mrs {par}, par_el1", va = in(reg) va, par = out(reg) par);
    };
    par
}

fn translate(va: u64) -> Result<u64, Caught> {
    exception::probe(|| translate_here(va))
}

fn translate_for_write(va: u64) -> Result<u64, Caught> {
    exception::probe(|| {
        let par;
        // SAFETY: as above.
        unsafe {
            asm!("at s1e1w, {va}", "isb", "mrs {par}, par_el1", va = in(reg) va, par = out(reg) par);
        };
        par
    })
}

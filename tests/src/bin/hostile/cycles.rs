//! A thousand guests of each mode, one after another: built, run, taken apart. All
//! that they were made of is back after each, and zero.

use core::arch::global_asm;

use rmi::run::EnterFlags;
use tests::bare::console::Console;
use tests::println;
use tests::suite::Suite;

use crate::calls::{self, granule};
use crate::granules::is_zero;
use crate::sealed::{SHARED, Sealed};
use crate::tiny::Tiny;

/// Lives of each mode.
const LIVES: u64 = 1000;
/// Where a guest finds its device, in the shared half of a protected one.
const DEVICE: u64 = 0x0900_0000;

// X0 is the device. Fills what follows the first granule, whose size the device tells,
// with a secret, its registers too; then tells that it has, and after that how many words
// are another by now.
global_asm!(
    ".balign 4096",
    "cycle_code:",
    "mov x19, x0",
    "adr x10, cycle_code",
    "ldr x1, [x19]",
    "movz x2, #0x5ec2",
    "movk x2, #0xe75e, lsl #16",
    "movk x2, #0x5ec2, lsl #32",
    "movk x2, #0xe75e, lsl #48",
    "add x11, x10, x1",
    "add x4, x11, x1",
    "1: str x2, [x11], #8",
    "cmp x11, x4",
    "b.lo 1b",
    "mov x0, #3 << 20",
    "msr cpacr_el1, x0",
    "isb",
    "dup v0.2d, x2",
    "dup v31.2d, x2",
    "msr tpidr_el1, x2",
    "dsb sy",
    "str xzr, [x19, #8]",
    "add x11, x10, x1",
    "mov x3, #0",
    "2: ldr x5, [x11], #8",
    "cmp x5, x2",
    "cinc x3, x3, ne",
    "cmp x11, x4",
    "b.lo 2b",
    "str x3, [x19, #16]",
    "b .",
    ".org cycle_code + 0x1000",
);

unsafe extern "C" {
    static cycle_code: u8;
}

/// The checks.
pub fn checks(suite: &mut Suite<Console>) {
    let plain = (0..LIVES).take_while(|n| plain(*n)).count() as u64;
    suite.equal("cycles/plain", plain, LIVES);
    println!("cycles: plain done");
    let protected = (0..LIVES).take_while(|n| protected(*n)).count() as u64;
    suite.equal("cycles/protected", protected, LIVES);
    calls::still_there(suite, "cycles/rmi-version");
}

/// A VMID that the last life had not.
fn vmid(n: u64) -> u16 {
    1 + (n % 250) as u16
}

fn plain(n: u64) -> bool {
    let code = &raw const cycle_code;
    let Some(guest) = Tiny::build_at(vmid(n), code, 2 * granule(), DEVICE) else {
        return false;
    };
    let asked = guest.go(0, EnterFlags::empty(), 0).access() == Some(0);
    let told = guest.go(0, EnterFlags::EMUL_MMIO, granule()).access() == Some(8);
    asked && told && guest.destroy() && guest.of_el2().all(is_zero)
}

/// A protected guest that holds a secret.
pub fn with_secret(vmid: u16) -> Option<Sealed> {
    let guest = Sealed::build(vmid, &raw const cycle_code, SHARED | DEVICE)?;
    let asked = guest.go(EnterFlags::empty(), 0).access() == Some(0);
    let told = guest.go(EnterFlags::EMUL_MMIO, granule()).access() == Some(8);
    (asked && told).then_some(guest)
}

/// How many words of its secret have changed, as it sees them.
pub fn changed(guest: &Sealed) -> Option<u64> {
    let exit = guest.go(EnterFlags::EMUL_MMIO, 0);
    (exit.access() == Some(16)).then_some(exit.value)
}

fn protected(n: u64) -> bool {
    let Some(guest) = with_secret(vmid(n)) else {
        return false;
    };
    // Of so many one is looked at.
    if n == LIVES / 2 {
        crate::audit::point("cycles");
    }
    changed(&guest) == Some(0) && guest.destroy()
}

//! What is left of a vCPU when the machine is reset and its guest's memory was taken
//! away before: its registers are in no granule of DATA.

use core::arch::global_asm;

use rmi::fid;
use rmi::run::EnterFlags;
use tests::bare::console::Console;
use tests::bare::psci::psci;
use tests::println;
use tests::suite::Suite;

use crate::protected;
use crate::sealed::{SHARED, Sealed};

// X0 is the device. Has the secret of `protected` in all registers but this.
global_asm!(
    ".balign 4096",
    "remains_code:",
    "movz x1, #0x5ec2",
    "movk x1, #0xe75e, lsl #16",
    "movk x1, #0x5ec2, lsl #32",
    "movk x1, #0xe75e, lsl #48",
    ".irp n, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23",
    "mov x\\n, x1",
    ".endr",
    "str xzr, [x0]",
    "b .",
    ".org remains_code + 0x1000",
);

unsafe extern "C" {
    static remains_code: u8;
}

/// The first start fills a vCPU's registers, takes its memory, and resets the machine,
/// which keeps RAM; the second looks for them.
pub fn checks(suite: &mut Suite<Console>) {
    if protected::is_marked() {
        protected::search(suite);
        return;
    }
    let device = SHARED | 0x0900_0000;
    let guest = Sealed::build(9, &raw const remains_code, device);
    let out = guest.map(|guest| guest.go(EnterFlags::empty(), 0).access());
    suite.check(
        "remains/filled",
        out == Some(Some(0)),
        format_args!("{out:?}"),
    );
    let taken = guest.is_some_and(|guest| guest.take_memory());
    suite.check("remains/memory-taken", taken, "a call failed");
    protected::mark();
    println!("remains: reset");
    psci(fid::PSCI_SYSTEM_RESET.into(), 0, 0, 0);
    suite.check("remains/reset", false, "the machine goes on");
}

//! Devices at the page behind one of memory: an access of their first bytes is whole,
//! whatever it may look like (no access of Device memory is the end of another's).

use core::arch::asm;
use core::cell::UnsafeCell;
use tests::bare::console::Console;
use tests::bare::gic::{self, gicd, gicr};
use tests::bare::{asm, exception, machine, mmu};
use tests::suite::Suite;

/// Slots of 1 GiB that nothing else here maps.
const SLOTS: [u64; 3] = [501, 502, 503];

#[repr(C, align(4096))]
struct Page(UnsafeCell<[u64; 512]>);

// SAFETY: one CPU writes them, before it maps them.
unsafe impl Sync for Page {}

static LEVEL_2: Page = Page(UnsafeCell::new([0; 512]));
static LEVEL_3: Page = Page(UnsafeCell::new([0; 512]));
static MEMORY: Page = Page(UnsafeCell::new([0; 512]));

fn address(page: &Page) -> u64 {
    page.0.get().expose_provenance() as u64
}

/// Maps memory, and the device's page behind it, where it answers.
fn device_behind_memory(slot: u64, device: u64) -> u64 {
    /// A page: valid, AF, inner shareable; Normal memory is attribute 1.
    const PAGE: u64 = 0b11 | 1 << 10 | 3 << 8;
    const NORMAL: u64 = 1 << 2;
    const NEVER_EXECUTED: u64 = 1 << 54 | 1 << 53;
    let (level_2, level_3) = (address(&LEVEL_2), address(&LEVEL_3));
    // SAFETY: nobody else uses them; each use has a slot of its own, and what another
    // mapped before is not accessed any more.
    unsafe {
        (level_2 as *mut u64).write_volatile(level_3 | 0b11);
        let entries = level_3 as *mut u64;
        entries.write_volatile(address(&MEMORY) | PAGE | NORMAL);
        entries
            .add(1)
            .write_volatile(device | PAGE | NEVER_EXECUTED);
    }
    asm::clean(level_2, level_2 + 4096);
    asm::clean(level_3, level_3 + 4096);
    mmu::map_table(slot, level_2) + 4096
}

fn load(at: u64) -> Result<u32, exception::Caught> {
    exception::probe(|| {
        let value: u32;
        // SAFETY: a register of a device's, whose reads change nothing.
        unsafe { asm!("ldr {0:w}, [{1}]", out(reg) value, in(reg) at) };
        value
    })
}

/// All of it.
pub fn checks(suite: &mut Suite<Console>) {
    let expected = [gic::d(gicd::CTLR), gic::r(gicr::CTLR)];
    let frames = [machine::get().gicd, gic::redistributor(0)];
    let names = ["behind/gicd-ctlr", "behind/gicr-ctlr"];
    for (n, name) in names.into_iter().enumerate() {
        let at = device_behind_memory(SLOTS[n], frames[n]);
        let got = load(at);
        let right = matches!(got, Ok(value) if value == expected[n]);
        suite.check(name, right, format_args!("{got:x?}"));
    }
    let at = device_behind_memory(SLOTS[2], machine::get().uart);
    let got = load(at);
    suite.check("behind/uart-dr", got.is_ok(), format_args!("{got:x?}"));
    // What a driver with 32-bit registers does for each byte.
    let stored = exception::probe(|| {
        // SAFETY: the UART's data register.
        unsafe { asm!("str {0:w}, [{1}]", in(reg) u32::from(b'\n'), in(reg) at) };
    });
    suite.check(
        "behind/uart-store",
        stored.is_ok(),
        format_args!("{stored:x?}"),
    );
}

//! The host's end: every exception and panic becomes a report, then
//! `end: panic` and SYSTEM_OFF.
//!
//! The report takes no lock and no heap, so that it works from anywhere. A
//! fault while one is reported cuts the report short.

use super::{local, mmu};
use crate::{logger, rmi_call};
use appendix::{Appendix, Symbols};
use arm64::instr;
use arm64::regs::{ELR_EL1, ESR_EL1, FAR_EL1, SPSR_EL1};
use arm64::syndrome::Syndrome;
use core::fmt::Write;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, Ordering};
use rmi::end::How;
use spin::Once;

/// The first fault reports; a CPU that comes second waits for the end.
static REPORTING: AtomicBool = AtomicBool::new(false);
/// Names for the image's functions.
static SYMBOLS: Once<Symbols<'static>> = Once::new();

/// Takes the names that the runner put behind the image, if it did.
pub fn set_appendix(bytes: &'static [u8]) {
    if let Some(appendix) = Appendix::split(bytes) {
        SYMBOLS.call_once(|| appendix.symbols);
    }
}

/// What entry.s saves: X0 to X30, then SP.
#[repr(C, align(16))]
pub struct Frame {
    x: [u64; 31],
    sp: u64,
}

fn begin() {
    match local::local().faults.fetch_add(1, Ordering::Relaxed) {
        0 => {}
        1 => end(),
        _ => rmi_call::machine_off(),
    }
    if REPORTING.swap(true, Ordering::Relaxed) {
        loop {
            instr::wfi();
        }
    }
}

fn end() -> ! {
    logger::end(How::Panic);
    rmi_call::machine_off();
}

/// Reports an exception of the host's own; `vector` is its number in the table.
pub extern "C" fn exception_handler(vector: u64, frame: &Frame) -> ! {
    begin();
    let kind = ["synchronous exception", "IRQ", "FIQ", "SError"][vector as usize & 3];
    let esr = ESR_EL1.get();
    let elr = ELR_EL1.get();
    let line = |arguments: core::fmt::Arguments<'_>| logger::raw(logger::ERROR, arguments);
    line(format_args!(
        "PANIC: unexpected {kind} on CPU {}",
        local::index()
    ));
    line(format_args!("  {}", Syndrome(esr)));
    line(format_args!(
        "  elr {elr:#018x}  spsr {:#x}",
        SPSR_EL1.get()
    ));
    line(format_args!("  far {:#018x}  esr  {esr:#x}", FAR_EL1.get()));
    for (i, pair) in frame.x.chunks(2).enumerate() {
        let mut text = logger::Line::new();
        for (j, x) in pair.iter().enumerate() {
            let _ = write!(text, " x{:<2} {x:016x}", i * 2 + j);
        }
        if i == 15 {
            let _ = write!(text, " sp  {:016x}", frame.sp);
        }
        line(format_args!(" {}", text.as_str()));
    }
    backtrace(elr, frame.x[29]);
    end();
}

/// Reports a Rust panic.
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    begin();
    let fp = instr::frame_pointer();
    logger::raw(
        logger::ERROR,
        format_args!("PANIC on CPU {}: {}", local::index(), info.message()),
    );
    if let Some(location) = info.location() {
        logger::raw(logger::ERROR, format_args!("  at {location}"));
    }
    backtrace(0, fp);
    end();
}

/// Follows the frame records from `fp` (AAPCS64 6.4.6), at most 32 of them and
/// only inside the host's own memory.
fn backtrace(pc: u64, fp: u64) {
    let image = mmu::image_layout();
    let text: Range<u64> = image.text.clone();
    let print = |at: u64| {
        let offset = at.wrapping_sub(text.start);
        match SYMBOLS.get().and_then(|symbols| symbols.find(offset)) {
            Some((name, inside)) => logger::raw(
                logger::ERROR,
                format_args!("  {at:#014x} {name}+{inside:#x}"),
            ),
            None => logger::raw(
                logger::ERROR,
                format_args!("  {at:#014x} (image {:+#x})", offset as i64),
            ),
        }
    };
    logger::raw(logger::ERROR, format_args!("backtrace:"));
    if text.contains(&pc) {
        print(pc);
    }
    let mut fp = fp;
    for _ in 0..32 {
        if fp == 0 || !fp.is_multiple_of(8) || !logger::readable(fp) {
            break;
        }
        // SAFETY: The address is aligned and in RAM that the host has mapped;
        // whatever the words are, they are only printed and compared.
        let [next, lr] = unsafe { *core::ptr::with_exposed_provenance::<[u64; 2]>(fp as usize) };
        if !text.contains(&lr) {
            break;
        }
        // The call stands before the return address.
        print(lr - 4);
        if next <= fp {
            break;
        }
        fp = next;
    }
}

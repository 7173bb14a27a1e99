//! Accesses: every size and extension to emulated registers, and atomicity.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use tests::bare::console::Console;
use tests::bare::{cpu, exception, gic, machine, mmu};
use tests::suite::Suite;

macro_rules! load {
    ($instruction:literal, $address:expr) => {{
        let value: u64;
        // SAFETY: A register of the UART's or the GIC's whose read does nothing.
        unsafe {
            asm!(concat!("mov {0}, #-1"), $instruction, out(reg) value, in(reg) $address,
                options(nostack));
        }
        value
    }};
}

/// What one CPU can see.
pub fn checks(suite: &mut Suite<Console>, bare: bool) {
    let machine = machine::get();
    // PrimeCell identification: 0x0d, 0xf0, 0x05, 0xb1, a word each.
    let id = machine.uart + 0xff0;
    suite.equal("mmio/ldrb", load!("ldrb {0:w}, [{1}, #4]", id), 0xf0);
    suite.equal("mmio/ldrh", load!("ldrh {0:w}, [{1}, #4]", id), 0xf0);
    suite.equal("mmio/ldr-w", load!("ldr {0:w}, [{1}, #4]", id), 0xf0);
    suite.equal(
        "mmio/ldrsb-w",
        load!("ldrsb {0:w}, [{1}, #4]", id),
        0xffff_fff0,
    );
    suite.equal(
        "mmio/ldrsb-x",
        load!("ldrsb {0:x}, [{1}, #4]", id),
        -16i64 as u64,
    );
    suite.equal("mmio/ldrsh-w", load!("ldrsh {0:w}, [{1}, #4]", id), 0xf0);
    suite.equal("mmio/ldrsh-x", load!("ldrsh {0:x}, [{1}, #4]", id), 0xf0);
    suite.equal("mmio/ldrsw", load!("ldrsw {0:x}, [{1}, #4]", id), 0xf0);
    // SAFETY: As above; the zero register takes it and stays zero.
    let zero = unsafe {
        let value: u64;
        asm!("ldr wzr, [{1}]", "mov {0}, xzr", out(reg) value, in(reg) id);
        value
    };
    suite.equal("mmio/ldr-wzr", zero, 0);
    let x29: u64;
    // SAFETY: As above; the frame pointer is kept meanwhile.
    unsafe {
        asm!("mov {1}, x29", "ldr w29, [{2}, #4]", "mov {0}, x29", "mov x29, {1}",
            out(reg) x29, out(reg) _, in(reg) id);
    }
    suite.equal("mmio/ldr-x29", x29, 0xf0);
    let typer = gic::redistributor(0) + gic::gicr::TYPER;
    let whole = load!("ldr {0:x}, [{1}]", typer);
    suite.equal(
        "mmio/ldr-x",
        load!("ldr {0:w}, [{1}, #4]", typer),
        whole >> 32,
    );
    // A store of the zero register, of a byte and of a double word.
    let router = machine.gicd + gic::gicd::IROUTER + 8 * 100;
    // SAFETY: IROUTER and IPRIORITYR of an SPI that is ours.
    let (kept, cleared) = unsafe {
        tests::bare::asm::write64(router, 0x1);
        let kept = tests::bare::asm::read64(router);
        asm!("str xzr, [{}]", in(reg) router);
        (kept, tests::bare::asm::read64(router))
    };
    suite.equal("mmio/str-x", kept, 1);
    suite.equal("mmio/str-xzr", cleared, 0);
    // SAFETY: As above.
    let priorities = unsafe {
        let at = machine.gicd + gic::gicd::IPRIORITYR + 100;
        tests::bare::asm::write32(at, 0);
        asm!("strb {0:w}, [{1}, #2]", in(reg) 0xffff_ff80u64, in(reg) at);
        tests::bare::asm::read32(at)
    };
    suite.equal("mmio/strb", priorities.into(), 0x0080_0000);
    // Flags and registers that an emulated access does not name stay.
    let (flags, other): (u64, u64);
    // SAFETY: As above.
    unsafe {
        asm!("mov {1}, #0x5a5a", "cmp xzr, xzr", "ldr w9, [{2}]", "mrs {0}, nzcv",
            out(reg) flags, out(reg) other, in(reg) id, out("x9") _);
    }
    suite.check(
        "mmio/state-kept",
        flags == 6 << 28 && other == 0x5a5a,
        format_args!("{flags:#x} {other:#x}"),
    );
    if !bare {
        // Through Normal memory no alignment is checked by stage 1: the
        // hypervisor meets it.
        let alias = mmu::map_gib(500, machine.gicd, true, 0) + (machine.gicd & ((1 << 30) - 1));
        let odd = exception::probe(|| load!("ldr {0:w}, [{1}]", alias + 0x105));
        let harmless = odd.is_ok_and(|value| value == 0) || odd.is_err();
        suite.check("mmio/unaligned-gic", harmless, format_args!("{odd:x?}"));
    }
}

const ROUNDS: u64 = 20_000;
static SUM: AtomicU64 = AtomicU64::new(0);
static LOCKED: AtomicU64 = AtomicU64::new(0);
static GUARDED: AtomicU64 = AtomicU64::new(0);

fn add() {
    for round in 0..ROUNDS {
        SUM.fetch_add(1, Ordering::Relaxed);
        while LOCKED.swap(1, Ordering::Acquire) != 0 {
            core::hint::spin_loop();
        }
        // Not atomic: the lock alone keeps it whole.
        GUARDED.store(GUARDED.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        LOCKED.store(0, Ordering::Release);
        if round % 2000 == 0 {
            // An exit in between.
            gic::d(gic::gicd::TYPER);
        }
    }
}

/// What needs a second CPU.
pub fn other_cpus(suite: &mut Suite<Console>) {
    SUM.store(0, Ordering::SeqCst);
    GUARDED.store(0, Ordering::SeqCst);
    let together = cpu::together(add, add);
    suite.check("atomic/all-ran", together, "not all did");
    let all = ROUNDS * cpu::count() as u64;
    suite.equal("atomic/add", SUM.load(Ordering::SeqCst), all);
    suite.equal("atomic/lock", GUARDED.load(Ordering::SeqCst), all);
}

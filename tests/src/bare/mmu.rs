//! Stage 1 at EL1: identity, 39 bits, one table of 1 GiB blocks. A block that
//! holds RAM is Normal, every other one Device; all may be executed, so that
//! what stops a program is stage 2 alone.
//!
//! Where something of the machine is beyond that (`wide`), 52 bits: 4K with FEAT_LPA2,
//! else 64K. Aliases ([`map_gib`] and its like) are for programs below.

use arm64::instr;
use arm64::regs::{ID_AA64MMFR0_EL1, MAIR_EL1, SCTLR_EL1, TCR_EL1, TTBR0_EL1};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering};

use super::asm::{clean, dsb, steer};
use super::machine::Machine;

mod wide;

#[repr(C, align(4096))]
struct Table(UnsafeCell<[u64; 512]>);

// SAFETY: Written by the boot CPU alone, before the MMU is on.
unsafe impl Sync for Table {}

static TABLE: Table = Table(UnsafeCell::new([0; 512]));

/// The program's `Regime`, its fields in their order, for CPUs that come later.
pub static REGISTERS: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];

/// Attr0 Device-nGnRE, Attr1 Normal write-back.
const MAIR: u64 = 0xff_04;
/// Bits of address that the one table maps.
const MAX_BITS: u32 = 39;
/// T0SZ of those; write-back, inner shareable walks; no TTBR1; 48 bits of output.
const TCR: u64 = (64 - MAX_BITS as u64) | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 23 | 5 << 32;
/// RES1 bits of ARMv8.0, and M, C, I, SA.
const SCTLR: u64 = 0x30d0_0800 | 1 << 12 | 1 << 3 | 1 << 2 | 1;
/// A block with AF, inner shareable; AttrIndx in \[4:2\].
const BLOCK: u64 = 1 | 1 << 10 | 3 << 8;

/// Turns the MMU on, on the boot CPU.
pub fn start(machine: &Machine) {
    let table = TABLE.0.get().cast::<u64>();
    for n in 0..512u64 {
        let gib = n << 30..(n + 1) << 30;
        let normal = machine
            .ram
            .iter()
            .any(|range| range.start < gib.end && gib.start < range.end);
        // SAFETY: `n` is inside the table, which nobody reads yet.
        unsafe {
            table
                .add(n as usize)
                .write(gib.start | BLOCK | u64::from(normal) << 2);
        };
    }
    // The output range is what the CPU has: a table of 39 bits needs no more.
    let range = ID_AA64MMFR0_EL1.read(ID_AA64MMFR0_EL1::PARange);
    let tcr = TCR & !(7 << 32) | range.min(5) << 32;
    let root = table.expose_provenance() as u64;
    let (root, tcr) = wide::start(machine).unwrap_or((root, tcr));
    let values = [root, tcr, MAIR, SCTLR];
    for (register, value) in REGISTERS.iter().zip(values) {
        register.store(value, Ordering::Relaxed);
    }
    clean(machine.image.start, machine.image.end);
    dsb();
    instr::ic_iallu();
    instr::tlbi_vmalle1();
    instr::dsb_nsh();
    instr::isb();
    // SAFETY: The table maps everything at its own address, as it was.
    unsafe {
        TTBR0_EL1.steer(values[0]);
        TCR_EL1.steer(values[1]);
        MAIR_EL1.steer(values[2]);
        instr::isb();
        steer(SCTLR_EL1, values[3]);
    }
}

/// Maps the 1 GiB at VA `slot << 30` to the 1 GiB at `pa`, with what else is in
/// `extra`; returns the VA. For this CPU and those that start later.
pub fn map_gib(slot: u64, pa: u64, normal: bool, extra: u64) -> u64 {
    let slot = slot & 511;
    let block = pa & !((1 << 30) - 1) | BLOCK | u64::from(normal) << 2 | extra;
    make(slot, block);
    slot << 30
}

/// Break before make of an entry.
fn make(slot: u64, value: u64) {
    // SAFETY: Inside the table, by the remainder; only programs that change an
    // alias that no other CPU uses come here.
    let entry = unsafe { TABLE.0.get().cast::<u64>().add((slot & 511) as usize) };
    // SAFETY: As above.
    unsafe { entry.write_volatile(0) };
    instr::dsb_ishst();
    instr::tlbi_vmalle1is();
    instr::dsb_ish();
    instr::isb();
    // SAFETY: As above.
    unsafe { entry.write_volatile(value) };
    instr::dsb_ishst();
    instr::isb();
}

/// Makes the 1 GiB at VA `slot << 30` the 1 GiB at `pa` by one store, and leaves
/// the TLBs as they are: what they still hold is the caller's purpose.
pub fn replace_gib(slot: u64, pa: u64, normal: bool) {
    let block = pa & !((1 << 30) - 1) | BLOCK | u64::from(normal) << 2;
    // SAFETY: Inside the table.
    unsafe {
        let entry = TABLE.0.get().cast::<u64>().add((slot & 511) as usize);
        entry.write_volatile(block);
    }
    instr::dsb_ishst();
}

/// Block attribute: EL0 may read and write (and EL1 not execute).
pub const EL0: u64 = 1 << 6;

/// Makes the 1 GiB at VA `slot << 30` a table at `pa`; returns the VA.
pub fn map_table(slot: u64, pa: u64) -> u64 {
    make(slot, pa | 0b11);
    (slot & 511) << 30
}

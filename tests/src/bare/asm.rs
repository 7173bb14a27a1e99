//! Access to registers and devices as programs have it, and calls with all the
//! registers that they may use. Instructions are `arm64`'s.

use core::arch::asm;

use arm64::instr;
pub use arm64::instr::{dsb_sy as dsb, irq_off, irq_on, isb, wfe, wfi};
use arm64::mmio::Word;
pub use arm64::regs::affinity as mpidr;
use arm64::regs::{CurrentEL, ID_AA64ISAR2_EL1, Reg, Writable};
use arm64::steering::Steering;

/// Code that puts on the stack what a function keeps: X19 to X30. Behind it any register
/// may change, but SP.
#[macro_export]
macro_rules! keep_registers {
    () => {
        "stp x29, x30, [sp, #-96]!
        stp x19, x20, [sp, #16]
        stp x21, x22, [sp, #32]
        stp x23, x24, [sp, #48]
        stp x25, x26, [sp, #64]
        stp x27, x28, [sp, #80]"
    };
}

/// Code that returns from that function.
#[macro_export]
macro_rules! return_with_registers {
    () => {
        "ldp x27, x28, [sp, #80]
        ldp x25, x26, [sp, #64]
        ldp x23, x24, [sp, #48]
        ldp x21, x22, [sp, #32]
        ldp x19, x20, [sp, #16]
        ldp x29, x30, [sp], #96
        ret"
    };
}

/// Writes a register, then `isb`.
pub fn set<T: Writable>(register: Reg<T>, value: u64) {
    register.set(value);
    isb();
}

/// Writes a register that steers a translation or exceptions, then `isb`.
///
/// # Safety
/// As [`Reg::steer`] has it.
pub unsafe fn steer<T: Steering>(register: Reg<T>, value: u64) {
    // SAFETY: the caller's promise.
    unsafe { register.steer(value) };
    isb();
}

/// The exception level.
pub fn current_el() -> u64 {
    CurrentEL.read(CurrentEL::EL)
}

/// Cleans and invalidates the data cache over `[from, to)` to the point of
/// coherency.
pub fn clean(from: u64, to: u64) {
    instr::clean_to_poc(from, to - from);
}

/// Has this CPU fetch what was written to memory.
pub fn fetch_anew() {
    instr::ic_iallu();
    instr::dsb_nsh();
    isb();
}

macro_rules! device_access {
    ($($read:ident $write:ident $word:ty;)*) => {$(
        /// Reads a device's register: one load that has a syndrome.
        ///
        /// # Safety
        /// `address` is a device's register, or the caller expects the fault.
        pub unsafe fn $read(address: u64) -> $word {
            // SAFETY: The caller's promise.
            unsafe { <$word>::load(address) }
        }

        /// Writes a device's register: one store that has a syndrome.
        ///
        /// # Safety
        /// As for the read; what the write does is the caller's.
        pub unsafe fn $write(address: u64, value: $word) {
            // SAFETY: The caller's promise.
            unsafe { value.store(address) }
        }
    )*};
}

device_access! {
    read8 write8 u8;
    read16 write16 u16;
    read32 write32 u32;
    read64 write64 u64;
}

/// How a firmware or hypervisor is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conduit {
    /// `hvc #0`.
    Hvc,
    /// `smc #0`.
    Smc,
}

/// Calls with X0 to X7, and returns X0 to X17 (SMCCC 1.2). X8 to X17 hold
/// `0xca11_0000 + n` before.
pub fn call(conduit: Conduit, x: [u64; 8]) -> [u64; 18] {
    let mut out = [0; 18];
    for (n, word) in out.iter_mut().enumerate() {
        *word = x.get(n).copied().unwrap_or(0xca11_0000 + n as u64);
    }
    let at = out.as_mut_ptr();
    macro_rules! with {
        ($instruction:literal) => {
            // SAFETY: X0-X17 are the call's, and all are told to the compiler;
            // `at` is 18 words, kept in a register that calls preserve.
            unsafe {
                asm!(
                    "ldp x0, x1, [x20]", "ldp x2, x3, [x20, #16]",
                    "ldp x4, x5, [x20, #32]", "ldp x6, x7, [x20, #48]",
                    "ldp x8, x9, [x20, #64]", "ldp x10, x11, [x20, #80]",
                    "ldp x12, x13, [x20, #96]", "ldp x14, x15, [x20, #112]",
                    "ldp x16, x17, [x20, #128]",
                    $instruction,
                    "stp x0, x1, [x20]", "stp x2, x3, [x20, #16]",
                    "stp x4, x5, [x20, #32]", "stp x6, x7, [x20, #48]",
                    "stp x8, x9, [x20, #64]", "stp x10, x11, [x20, #80]",
                    "stp x12, x13, [x20, #96]", "stp x14, x15, [x20, #112]",
                    "stp x16, x17, [x20, #128]",
                    in("x20") at,
                    out("x0") _, out("x1") _, out("x2") _, out("x3") _, out("x4") _,
                    out("x5") _, out("x6") _, out("x7") _, out("x8") _, out("x9") _,
                    out("x10") _, out("x11") _, out("x12") _, out("x13") _, out("x14") _,
                    out("x15") _, out("x16") _, out("x17") _,
                    options(nostack),
                );
            }
        };
    }
    match conduit {
        Conduit::Hvc => with!("hvc #0"),
        Conduit::Smc => with!("smc #0"),
    }
    out
}

/// ID_AA64ISAR2_EL1 tells of FEAT_MOPS.
pub fn has_memory_copies() -> bool {
    ID_AA64ISAR2_EL1.read(ID_AA64ISAR2_EL1::MOPS) != 0
}

/// Copies `n` bytes by FEAT_MOPS.
///
/// # Safety
/// `n` bytes at `from` may be read and as many at `to` written, by nobody else meanwhile.
pub unsafe fn copy(from: u64, to: u64, n: u64) {
    // SAFETY: the caller's promise. Where they are undefined, each traps by itself and
    // touches nothing.
    unsafe {
        asm!(
            ".arch_extension mops",
            "cpyfp [{to}]!, [{from}]!, {n}!",
            "cpyfm [{to}]!, [{from}]!, {n}!",
            "cpyfe [{to}]!, [{from}]!, {n}!",
            from = inout(reg) from => _, to = inout(reg) to => _, n = inout(reg) n => _,
        );
    }
}

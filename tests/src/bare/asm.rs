//! One function or macro per instruction.

use core::arch::asm;

/// Reads a system register by its name.
#[macro_export]
macro_rules! mrs {
    ($name:literal) => {{
        let value: u64;
        // SAFETY: Reading a register changes nothing; one that is not there is
        // an exception that the vectors report or that a probe expects.
        unsafe { core::arch::asm!(concat!("mrs {}, ", $name), out(reg) value, options(nostack)) };
        value
    }};
}

/// Writes a system register by its name, then `isb`.
#[macro_export]
macro_rules! msr {
    ($name:literal, $value:expr) => {{
        let value: u64 = $value;
        // SAFETY: The programs own every register of their level, and write
        // what their checks are about.
        unsafe {
            core::arch::asm!(concat!("msr ", $name, ", {}"), "isb", in(reg) value, options(nostack));
        }
    }};
}

/// Waits for an event.
pub fn wfe() {
    // SAFETY: A hint.
    unsafe { asm!("wfe", options(nomem, nostack, preserves_flags)) };
}

/// Waits for an interrupt, masked or not.
pub fn wfi() {
    // SAFETY: A hint. Handlers write memory.
    unsafe { asm!("wfi", options(nostack, preserves_flags)) };
}

/// Context synchronisation.
pub fn isb() {
    // SAFETY: A barrier.
    unsafe { asm!("isb", options(nostack, preserves_flags)) };
}

/// Completes all earlier accesses, in the full system.
pub fn dsb() {
    // SAFETY: A barrier.
    unsafe { asm!("dsb sy", options(nostack, preserves_flags)) };
}

/// Takes IRQs.
pub fn irq_on() {
    // SAFETY: The vectors serve them.
    unsafe { asm!("msr daifclr, #2", options(nostack, preserves_flags)) };
}

/// Takes no IRQs.
pub fn irq_off() {
    // SAFETY: Masks, no more.
    unsafe { asm!("msr daifset, #2", options(nostack, preserves_flags)) };
}

/// The exception level.
pub fn current_el() -> u64 {
    mrs!("CurrentEL") >> 2 & 3
}

/// This CPU's affinity, as PSCI and the GIC name it.
pub fn mpidr() -> u64 {
    mrs!("mpidr_el1") & 0xff_00ff_ffff
}

/// Cleans and invalidates the data cache over `[from, to)` to the point of
/// coherency.
pub fn clean(from: u64, to: u64) {
    let line = 4u64 << (mrs!("ctr_el0") >> 16 & 0xf);
    let mut at = from & !(line - 1);
    while at < to {
        // SAFETY: Cleaning changes no value.
        unsafe { asm!("dc civac, {}", in(reg) at, options(nostack, preserves_flags)) };
        at += line;
    }
    dsb();
}

macro_rules! device_access {
    ($($read:ident $write:ident $type:ty, $ldr:literal $str:literal, $modifier:literal;)*) => {$(
        /// Reads a device's register: one load that has a syndrome.
        ///
        /// # Safety
        /// `address` is a device's register, or the caller expects the fault.
        pub unsafe fn $read(address: u64) -> $type {
            let value: u64;
            // SAFETY: The caller's promise.
            unsafe {
                asm!(concat!($ldr, " {0:", $modifier, "}, [{1}]"), out(reg) value, in(reg) address,
                    options(nostack, preserves_flags));
            }
            value as $type
        }

        /// Writes a device's register: one store that has a syndrome.
        ///
        /// # Safety
        /// As for the read; what the write does is the caller's.
        pub unsafe fn $write(address: u64, value: $type) {
            // SAFETY: The caller's promise.
            unsafe {
                asm!(concat!($str, " {0:", $modifier, "}, [{1}]"), in(reg) u64::from(value),
                    in(reg) address, options(nostack, preserves_flags));
            }
        }
    )*};
}

device_access! {
    read8 write8 u8, "ldrb" "strb", "w";
    read16 write16 u16, "ldrh" "strh", "w";
    read32 write32 u32, "ldr" "str", "w";
    read64 write64 u64, "ldr" "str", "x";
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

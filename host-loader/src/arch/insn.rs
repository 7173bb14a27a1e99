//! One function per instruction or register, natively a plain substitute.
//!
//! Natively [`smc`] calls a function that a test sets with `fake::set`; the
//! counter stands still and barriers do nothing.

/// The results of an [`smc`], X0 to X4.
pub type SmcResult = [u64; 5];

/// Issues `smc #0` with X0 to X5 and returns X0 to X4.
///
/// EL2 may read and write any memory of the host on the way, so no value is
/// kept in a register across it. X5 to X17 are taken as lost (SMCCC 1.0).
#[cfg(target_os = "none")]
#[inline(always)]
pub fn smc(arguments: [u64; 6]) -> SmcResult {
    let [mut x0, mut x1, mut x2, mut x3, mut x4, x5] = arguments;
    // SAFETY: EL2 traps the call and returns behind it with the registers that
    // are not named here preserved. What it does to memory is what the called
    // command says; its callers in `rmi_call` answer for the arguments.
    unsafe {
        core::arch::asm!(
            "smc #0",
            inlateout("x0") x0, inlateout("x1") x1, inlateout("x2") x2,
            inlateout("x3") x3, inlateout("x4") x4, inlateout("x5") x5 => _,
            lateout("x6") _, lateout("x7") _, lateout("x8") _, lateout("x9") _,
            lateout("x10") _, lateout("x11") _, lateout("x12") _,
            lateout("x13") _, lateout("x14") _, lateout("x15") _,
            lateout("x16") _, lateout("x17") _,
            options(nostack),
        );
    }
    [x0, x1, x2, x3, x4]
}

/// Asks the test's fake EL2, or answers `NOT_SUPPORTED`.
#[cfg(not(target_os = "none"))]
pub fn smc(arguments: [u64; 6]) -> SmcResult {
    fake::call(arguments)
}

/// The fake EL2 of native tests.
#[cfg(not(target_os = "none"))]
pub mod fake {
    extern crate std;
    use super::SmcResult;
    use std::boxed::Box;
    use std::cell::RefCell;

    /// Serves calls in place of EL2.
    pub type Handler = Box<dyn FnMut([u64; 6]) -> SmcResult>;

    std::thread_local! {
        static HANDLER: RefCell<Option<Handler>> = const { RefCell::new(None) };
    }

    /// Sets what this thread's calls reach.
    pub fn set(handler: Handler) {
        HANDLER.with(|h| *h.borrow_mut() = Some(handler));
    }

    pub(super) fn call(arguments: [u64; 6]) -> SmcResult {
        HANDLER.with(|h| match h.borrow_mut().as_mut() {
            Some(handler) => handler(arguments),
            None => [rmi::NOT_SUPPORTED, 0, 0, 0, 0],
        })
    }
}

macro_rules! instruction {
    ($(#[$doc:meta])* $name:ident, $text:literal) => {
        $(#[$doc])*
        #[inline(always)]
        pub fn $name() {
            #[cfg(target_os = "none")]
            // SAFETY: The instruction orders or waits; it changes no memory
            // and no register that Rust knows of.
            unsafe {
                core::arch::asm!($text, options(nostack, preserves_flags));
            }
        }
    };
}

instruction!(
    /// Waits for an interrupt, masked or not (`wfi`).
    wfi, "wfi");
instruction!(
    /// Completes all earlier accesses, whole system (`dsb sy`).
    dsb_sy, "dsb sy");
instruction!(
    /// Synchronises the context (`isb`).
    isb, "isb");

macro_rules! read_register {
    ($(#[$doc:meta])* $name:ident, $register:literal) => {
        $(#[$doc])*
        #[inline(always)]
        pub fn $name() -> u64 {
            #[cfg(target_os = "none")]
            {
                let value: u64;
                // SAFETY: Reading the register has no effect on memory.
                unsafe {
                    core::arch::asm!(concat!("mrs {}, ", $register),
                        out(reg) value, options(nomem, nostack, preserves_flags));
                }
                value
            }
            #[cfg(not(target_os = "none"))]
            0
        }
    };
}

read_register!(
    /// Physical counter, `CNTPCT_EL0`.
    cntpct, "cntpct_el0");
read_register!(
    /// Ticks of the counter in a second, `CNTFRQ_EL0`.
    cntfrq, "cntfrq_el0");
read_register!(
    /// Affinity of this CPU, `MPIDR_EL1`.
    mpidr, "mpidr_el1");
read_register!(
    /// Cache geometry, `CTR_EL0`.
    ctr, "ctr_el0");
read_register!(
    /// Size of what `dc zva` zeroes, and whether it may, `DCZID_EL0`.
    dczid, "dczid_el0");
read_register!(
    /// Memory model features, `ID_AA64MMFR0_EL1`.
    id_aa64mmfr0, "id_aa64mmfr0_el1");
read_register!(
    /// Syndrome of the last exception to EL1, `ESR_EL1`.
    esr, "esr_el1");
read_register!(
    /// Return address of the last exception to EL1, `ELR_EL1`.
    elr, "elr_el1");
read_register!(
    /// Fault address of the last abort to EL1, `FAR_EL1`.
    far, "far_el1");
read_register!(
    /// Saved state of the last exception to EL1, `SPSR_EL1`.
    spsr, "spsr_el1");

macro_rules! write_register {
    ($(#[$doc:meta])* $name:ident, $register:literal) => {
        $(#[$doc])*
        #[inline(always)]
        pub fn $name(value: u64) {
            #[cfg(target_os = "none")]
            // SAFETY: The register drives a timer of the host's own; it has no
            // effect on memory.
            unsafe {
                core::arch::asm!(concat!("msr ", $register, ", {}"),
                    in(reg) value, options(nomem, nostack, preserves_flags));
            }
            #[cfg(not(target_os = "none"))]
            let _ = value;
        }
    };
}

write_register!(
    /// Compare value of the physical timer, `CNTP_CVAL_EL0`.
    set_cntp_cval, "cntp_cval_el0");
write_register!(
    /// CPU interface control, `ICC_CTLR_EL1`: 0 has EOI deactivate too.
    set_icc_ctlr, "icc_ctlr_el1");
write_register!(
    /// Control of the physical timer, `CNTP_CTL_EL0`: 0 enable, 1 mask.
    set_cntp_ctl, "cntp_ctl_el0");

/// Cleans and invalidates `bytes` at `address` to the point of coherency
/// (`dc civac` by line, then `dsb sy`), so that an observer with its caches off
/// sees what was written.
pub fn clean_to_poc(address: u64, bytes: u64) {
    let line = 4u64 << (ctr() >> 16 & 0xf);
    let mut at = address & !(line - 1);
    let end = address.saturating_add(bytes);
    while at < end {
        #[cfg(target_os = "none")]
        // SAFETY: Cleaning and invalidating a line changes no value that a
        // coherent access reads. The address is mapped: its users own it.
        unsafe {
            core::arch::asm!("dc civac, {}", in(reg) at, options(nostack, preserves_flags));
        }
        at += line;
    }
    dsb_sy();
}

/// Copies `lines` times 64 bytes, with paired loads and stores.
///
/// # Safety
/// `from` is readable and `to` writable for `lines * 64` bytes; they do not
/// overlap.
#[cfg(target_os = "none")]
pub unsafe fn copy_lines(to: *mut u8, from: *const u8, lines: usize) {
    if lines == 0 {
        return;
    }
    // SAFETY: The caller's contract. Normal memory takes unaligned pairs.
    unsafe {
        core::arch::asm!(
            "2:",
            "ldp {a}, {b}, [{from}], #16",
            "ldp {c}, {d}, [{from}], #16",
            "stp {a}, {b}, [{to}], #16",
            "ldp {a}, {b}, [{from}], #16",
            "stp {c}, {d}, [{to}], #16",
            "ldp {c}, {d}, [{from}], #16",
            "stp {a}, {b}, [{to}], #16",
            "subs {n}, {n}, #1",
            "stp {c}, {d}, [{to}], #16",
            "b.ne 2b",
            to = inout(reg) to => _, from = inout(reg) from => _,
            n = inout(reg) lines => _,
            a = out(reg) _, b = out(reg) _, c = out(reg) _, d = out(reg) _,
            options(nostack),
        );
    }
}

/// Copies `lines` times 64 bytes.
///
/// # Safety
/// `from` is readable and `to` writable for `lines * 64` bytes; they do not
/// overlap.
#[cfg(not(target_os = "none"))]
pub unsafe fn copy_lines(to: *mut u8, from: *const u8, lines: usize) {
    // SAFETY: The caller's contract.
    unsafe { core::ptr::copy_nonoverlapping(from, to, lines * 64) }
}

/// Fills `size` bytes with zeroes, by `dc zva` where the CPU has it and whole
/// blocks of it are inside.
///
/// # Safety
/// `to` is writable for `size` bytes of Normal memory.
pub unsafe fn zero_bytes(to: *mut u8, size: usize) {
    // DCZID_EL0: BS in [3:0], log2 of a block's words; DZP in [4].
    let id = dczid();
    let block = 4usize << (id & 0xf);
    let head = to.addr().next_multiple_of(block) - to.addr();
    let blocks = size.saturating_sub(head) / block;
    if id & 1 << 4 != 0 || blocks == 0 || cfg!(not(target_os = "none")) {
        // SAFETY: The caller's contract.
        unsafe { core::ptr::write_bytes(to, 0, size) };
        return;
    }
    // SAFETY: The caller's contract; `head` and `blocks` stay inside.
    unsafe {
        core::ptr::write_bytes(to, 0, head);
        let from = zero_blocks(to.add(head), block, blocks);
        core::ptr::write_bytes(from, 0, size - head - blocks * block);
    }
}

/// Zeroes `blocks` blocks of `dc zva`; what is behind them.
///
/// # Safety
/// `to` is aligned to a block, and writable for all of them.
unsafe fn zero_blocks(to: *mut u8, block: usize, blocks: usize) -> *mut u8 {
    let mut at = to;
    #[cfg(target_os = "none")]
    // SAFETY: The caller's contract.
    unsafe {
        core::arch::asm!(
            "b 3f",
            "2:",
            ".rept 8",
            "dc zva, {at}",
            "add {at}, {at}, {block}",
            ".endr",
            "3:",
            "subs {eights}, {eights}, #1",
            "b.pl 2b",
            "b 5f",
            "4:",
            "dc zva, {at}",
            "add {at}, {at}, {block}",
            "5:",
            "subs {rest}, {rest}, #1",
            "b.pl 4b",
            at = inout(reg) at, block = in(reg) block,
            eights = inout(reg) blocks / 8 => _, rest = inout(reg) blocks % 8 => _,
            options(nostack),
        );
    }
    #[cfg(not(target_os = "none"))]
    {
        at = at.wrapping_add(block * blocks);
    }
    at
}

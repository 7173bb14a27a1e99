//! One function per instruction: with `asm.S`, all the assembly there is.
//!
//! On the development machine these do nothing: there the library's logic is
//! tested, and `mmu-model` judges the order of what `pgtable` asks for.

/// Reads a system register by its name in the manual, or as `S3_…`.
#[cfg(target_arch = "aarch64")]
#[macro_export]
macro_rules! mrs {
    ($name:literal) => {{
        let value: u64;
        // SAFETY: reading a system register does not touch memory. The callers
        // read only what the CPU implements (cpu/features.rs).
        unsafe {
            core::arch::asm!(concat!("mrs {}, ", $name), out(reg) value, options(nomem, nostack));
        }
        value
    }};
}

/// Reads a system register: 0 on the development machine.
#[cfg(not(target_arch = "aarch64"))]
#[macro_export]
macro_rules! mrs {
    ($name:literal) => {{
        let _ = $name;
        0u64
    }};
}

/// Writes a system register by its name in the manual, or as `S3_…`.
///
/// The registers of lower levels cannot harm EL2; those of EL2 that can are
/// written in `cpu/` and `memory/` only, each with its reason.
#[cfg(target_arch = "aarch64")]
#[macro_export]
macro_rules! msr {
    ($name:literal, $value:expr) => {{
        let value: u64 = $value;
        // SAFETY: the registers written here hold the state of a lower
        // exception level or configure its traps; EL2's own translation is
        // written by asm.S alone.
        unsafe {
            core::arch::asm!(concat!("msr ", $name, ", {}"), in(reg) value, options(nostack));
        }
    }};
}

/// Writes a system register: nothing on the development machine.
#[cfg(not(target_arch = "aarch64"))]
#[macro_export]
macro_rules! msr {
    ($name:literal, $value:expr) => {{
        let _: (&str, u64) = ($name, $value);
    }};
}

macro_rules! instruction {
    ($(#[$doc:meta])* $name:ident, $text:literal) => {
        $(#[$doc])*
        #[inline(always)]
        pub fn $name() {
            #[cfg(target_arch = "aarch64")]
            // SAFETY: barriers, hints and invalidations change no memory and
            // no register that the compiler knows of.
            unsafe {
                core::arch::asm!($text, options(nostack));
            }
        }
    };
    ($(#[$doc:meta])* $name:ident, $text:literal, operand) => {
        $(#[$doc])*
        #[inline(always)]
        pub fn $name(operand: u64) {
            #[cfg(target_arch = "aarch64")]
            // SAFETY: invalidating a translation or maintaining a cache line
            // never loses data that EL2 wrote through its cacheable map.
            unsafe {
                core::arch::asm!($text, in(reg) operand, options(nostack));
            }
            #[cfg(not(target_arch = "aarch64"))]
            let _ = operand;
        }
    };
}

instruction!(
    /// Issues an instruction synchronization barrier (`isb`).
    isb, "isb");
instruction!(
    /// Issues `dsb ishst`: stores before it are seen by every walker.
    dsb_ishst, "dsb ishst");
instruction!(
    /// Issues `dsb ish`: completes broadcast TLB maintenance.
    dsb_ish, "dsb ish");
instruction!(
    /// Issues `dsb nshst`: as `dsb ishst`, for this PE's walker.
    dsb_nshst, "dsb nshst");
instruction!(
    /// Issues `dsb nsh`: completes this PE's TLB maintenance.
    dsb_nsh, "dsb nsh");
instruction!(
    /// Issues `dsb sy`: completes cache maintenance to the point of coherency.
    dsb_sy, "dsb sy");
instruction!(
    /// Issues `wfi`: waits until an interrupt is pending, masked or not.
    wfi, "wfi");
instruction!(
    /// Issues `wfe`: waits for an event.
    wfe, "wfe");
instruction!(
    /// Issues `sev`: wakes every PE from `wfe`.
    sev, "sev");
instruction!(
    /// Issues `ic iallu`: invalidates this PE's instruction cache.
    ic_iallu, "ic iallu");
instruction!(
    /// Issues `ic ialluis`: invalidates every PE's instruction cache.
    ic_ialluis, "ic ialluis");
instruction!(
    /// Issues `dc civac`: cleans and invalidates a line to the point of
    /// coherency. Operand: address.
    dc_civac, "dc civac, {0}", operand);
instruction!(
    /// Issues `dc ivac`: invalidates a line to the point of coherency.
    /// Operand: address.
    dc_ivac, "dc ivac, {0}", operand);
instruction!(
    /// Issues `tlbi ipas2e1is`: stage-2 entries of one IPA, current VMID.
    tlbi_ipas2e1is, "tlbi ipas2e1is, {0}", operand);
instruction!(
    /// Issues `tlbi ipas2le1is`: as `ipas2e1is`, last level only.
    tlbi_ipas2le1is, "tlbi ipas2le1is, {0}", operand);
instruction!(
    /// Issues `tlbi ipas2e1`: as `ipas2e1is`, this PE only.
    tlbi_ipas2e1, "tlbi ipas2e1, {0}", operand);
instruction!(
    /// Issues `tlbi ripas2e1is` (FEAT_TLBIRANGE): a range of IPAs.
    tlbi_ripas2e1is, "sys #4, c8, c0, #2, {0}", operand);
instruction!(
    /// Issues `tlbi ripas2le1is` (FEAT_TLBIRANGE): last level only.
    tlbi_ripas2le1is, "sys #4, c8, c0, #6, {0}", operand);
instruction!(
    /// Issues `tlbi vmalle1is`: stage 1 of the current VMID.
    tlbi_vmalle1is, "tlbi vmalle1is");
instruction!(
    /// Issues `tlbi vmalle1`: as `vmalle1is`, this PE only.
    tlbi_vmalle1, "tlbi vmalle1");
instruction!(
    /// Issues `tlbi vmalls12e1is`: both stages of the current VMID.
    tlbi_vmalls12e1is, "tlbi vmalls12e1is");
instruction!(
    /// Issues `tlbi alle1is`: both stages of every VMID.
    tlbi_alle1is, "tlbi alle1is");
instruction!(
    /// Issues `tlbi vae2is`: EL2's own entries of one address.
    tlbi_vae2is, "tlbi vae2is, {0}", operand);
instruction!(
    /// Issues `tlbi vale2is`: as `vae2is`, last level only.
    tlbi_vale2is, "tlbi vale2is, {0}", operand);
instruction!(
    /// Issues `tlbi rvae2is` (FEAT_TLBIRANGE): a range of EL2's addresses.
    tlbi_rvae2is, "sys #4, c8, c2, #1, {0}", operand);
instruction!(
    /// Issues `tlbi alle2is`: every entry of EL2's own regime.
    tlbi_alle2is, "tlbi alle2is");

/// Calls the firmware: SMC64, X0 function, X1–X3 arguments, X0 result (SMCCC).
pub fn smc(function: u64, args: [u64; 3]) -> u64 {
    #[cfg(target_arch = "aarch64")]
    {
        let mut x0 = function;
        // SAFETY: the firmware keeps to SMCCC: it preserves X18 and up and
        // writes no memory of ours.
        unsafe {
            core::arch::asm!(
                "smc #0",
                inout("x0") x0,
                inout("x1") args[0] => _, inout("x2") args[1] => _, inout("x3") args[2] => _,
                lateout("x4") _, lateout("x5") _, lateout("x6") _, lateout("x7") _,
                lateout("x8") _, lateout("x9") _, lateout("x10") _, lateout("x11") _,
                lateout("x12") _, lateout("x13") _, lateout("x14") _, lateout("x15") _,
                lateout("x16") _, lateout("x17") _,
                options(nostack)
            );
        }
        x0
    }
    #[cfg(not(target_arch = "aarch64"))]
    {
        let _ = (function, args);
        rmi::NOT_SUPPORTED
    }
}

/// Cleans and invalidates `[start, start + len)` to the point of coherency.
/// `line` is the smallest data cache line in bytes (CTR_EL0.DminLine).
pub fn clean_invalidate(start: u64, len: u64, line: u64) {
    let mut at = start & !(line - 1);
    while at < start + len {
        dc_civac(at);
        at += line;
    }
    dsb_sy();
}

/// 64 random bits by `mrs RNDR` (FEAT_RNG): `None` when the CPU has none at the
/// moment.
pub fn random() -> Option<u64> {
    #[cfg(target_arch = "aarch64")]
    {
        let (value, failed): (u64, u64);
        // SAFETY: reads a register; callers have checked that the CPU has it.
        unsafe {
            core::arch::asm!(
                "mrs {}, S3_3_C2_C4_0",
                "cset {}, eq",
                out(reg) value, out(reg) failed, options(nomem, nostack)
            );
        }
        (failed == 0).then_some(value)
    }
    #[cfg(not(target_arch = "aarch64"))]
    None
}

/// Calls the level above by `hvc` with this function identifier: only for a
/// machine that has entered the image at EL1, to turn it off.
pub fn hvc(function: u64) {
    #[cfg(target_arch = "aarch64")]
    // SAFETY: SMCCC, as `smc`.
    unsafe {
        core::arch::asm!(
            "hvc #0",
            inout("x0") function => _,
            lateout("x1") _, lateout("x2") _, lateout("x3") _,
            options(nostack)
        );
    }
    #[cfg(not(target_arch = "aarch64"))]
    let _ = function;
}

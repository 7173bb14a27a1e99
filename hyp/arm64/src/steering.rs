//! All that is `unsafe` of the CPU: what steers a translation or the place where
//! exceptions go, and what loses data.
//!
//! | register | who writes it answers that |
//! |---|---|
//! | SCTLR, SCTLR2, TCR, TCR2, TTBR0, TTBR1, MAIR, AMAIR of the own level | code, stacks and data in use are translated as before, with the attributes that they had |
//! | VBAR of the own level | there are vectors, 2 KiB aligned, that stay |
//! | SP_EL0, TPIDR_EL1, TPIDR_EL2, GCSCR_EL2 of the own level | its code expects the new value |
//! | HCR_EL2 | E2H and TGE are clear, as EL2's code and tables have it, and while a lower level runs VM is set and its traps are those that its world has |
//! | VTCR_EL2, VTTBR_EL2 | while a lower level runs, they are of a stage 2 that maps nothing that is not its own |
//! | any of these of a lower level | it is that level's own value, or one that its code is notified of |
//!
//! Instructions that lose data, [`dc_ivac`], or do what another level says,
//! [`smc`] and [`hvc`], stand here too.

use crate::regs::{Readable, Reg, Register};

/// A register that is written with a contract.
pub trait Steering: Register {}

impl<T: Steering> Reg<T> {
    /// Writes it.
    ///
    /// # Safety
    /// The register's row in [`steering`](crate::steering) holds.
    #[inline(always)]
    pub unsafe fn steer(self, value: u64) {
        // SAFETY: the caller's promise.
        unsafe { T::msr(value) }
    }
}

impl<T: Steering + Readable> Reg<T> {
    /// Sets the bits of `mask`.
    ///
    /// # Safety
    /// As for [`steer`](Self::steer).
    #[inline(always)]
    pub unsafe fn set_bits(self, mask: u64) {
        // SAFETY: the caller's promise.
        unsafe { self.steer(self.get() | mask) }
    }
}

/// Issues `dc ivac`: invalidates a data cache line to the point of coherency, and
/// loses what was written to it and not cleaned.
///
/// # Safety
/// Nothing that anybody wrote through a cache to the line of `address`, or to
/// what shares a line of any size with it, is wanted.
#[inline(always)]
pub unsafe fn dc_ivac(address: u64) {
    #[cfg(target_os = "none")]
    // SAFETY: the caller's promise.
    unsafe {
        core::arch::asm!("dc ivac, {}", in(reg) address, options(nostack, preserves_flags));
    }
    #[cfg(not(target_os = "none"))]
    crate::recording::instruction("dc ivac", Some(address));
}

macro_rules! call {
    ($(#[$doc:meta])* $name:ident $text:literal $short:literal) => {
        $(#[$doc])*
        ///
        /// X0 to X5 go in and X0 to X4 come back; X5 to X17 are taken as lost
        /// (SMCCC 1.0). The level above may access memory meanwhile, so no value
        /// is kept in a register across the call.
        ///
        /// # Safety
        /// What the called function does to memory and to this CPU is what the
        /// caller is prepared for.
        #[inline(always)]
        pub unsafe fn $name(arguments: [u64; 6]) -> [u64; 5] {
            #[cfg(target_os = "none")]
            {
                let [mut x0, mut x1, mut x2, mut x3, mut x4, x5] = arguments;
                // SAFETY: the caller's promise; X18 and up are preserved.
                unsafe {
                    core::arch::asm!(
                        $text,
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
            #[cfg(not(target_os = "none"))]
            crate::recording::call($short, arguments)
        }
    };
}

call!(
    /// Issues `smc #0`: calls the firmware, or who stands for it.
    smc "smc #0" "smc");
call!(
    /// Issues `hvc #0`: calls the level above.
    hvc "hvc #0" "hvc");

//! What a lower exception level has in EL1's registers and timers, and the way
//! to it and back.

use arm64::bits;
use arm64::frame::Gprs;
use arm64::instr;
use arm64::regs::*;
use arm64::regs::{CNTV_CTL_EL0, CNTV_CVAL_EL0};

use crate::errata::Walks;
use crate::features::Features;

macro_rules! el1_registers {
    (safe: $($field:ident $register:ident)*; steering: $($steering:ident $steers:ident)*;
     walks: $($walk:ident $walks:ident)*; keys: $($n:literal $key:ident)*;) => {
        /// The EL1 system registers that a world switch carries.
        #[derive(Clone, Debug, Default)]
        pub struct El1 {
            $(#[doc = concat!("`", stringify!($register), "`.")] pub $field: u64,)*
            $(#[doc = concat!("`", stringify!($steers), "`.")] pub $steering: u64,)*
            $(#[doc = concat!("`", stringify!($walks), "`.")] pub $walk: u64,)*
            /// Pointer authentication keys, lo and hi of IA, IB, DA, DB, GA.
            pub keys: [u64; 10],
            /// VDISR_EL2: what a guest reads and writes as DISR_EL1.
            pub vdisr: u64,
        }

        impl El1 {
            /// Reads the CPU's registers, those that it has.
            pub fn save(&mut self, features: &Features) {
                $(self.$field = $register.get();)*
                $(self.$steering = $steers.get();)*
                $(self.$walk = $walks.get();)*
                if features.ras {
                    self.vdisr = VDISR_EL2.get();
                }
                if features.pauth {
                    self.keys = [$($key.get()),*];
                }
            }

            /// Writes the CPU's registers, but those of [`load_walks`](Self::load_walks).
            pub fn load(&self, features: &Features) {
                $($register.set(self.$field);)*
                // SAFETY: EL1's, by which EL2 neither translates nor runs.
                unsafe {
                    $($steers.steer(self.$steering);)*
                }
                if features.ras {
                    VDISR_EL2.set(self.vdisr);
                }
                if features.pauth {
                    $($key.set(self.keys[$n]);)*
                }
            }

            /// The names of those that every CPU has.
            #[cfg(test)]
            pub const NAMES: &[&str] =
                &[$($register.name(),)* $($steers.name(),)* $($walks.name(),)*];
        }
    };
}

el1_registers! {
    safe:
        cpacr CPACR_EL1
        esr ESR_EL1
        afsr0 AFSR0_EL1
        afsr1 AFSR1_EL1
        far FAR_EL1
        contextidr CONTEXTIDR_EL1
        cntkctl CNTKCTL_EL1
        par PAR_EL1
        csselr CSSELR_EL1
        tpidr_el0 TPIDR_EL0
        tpidrro_el0 TPIDRRO_EL0
        sp_el1 SP_EL1
        elr ELR_EL1
        spsr SPSR_EL1
        mdscr MDSCR_EL1;
    steering:
        ttbr0 TTBR0_EL1
        ttbr1 TTBR1_EL1
        mair MAIR_EL1
        amair AMAIR_EL1
        vbar VBAR_EL1
        tpidr_el1 TPIDR_EL1
        sp_el0 SP_EL0;
    walks:
        sctlr SCTLR_EL1
        tcr TCR_EL1;
    keys:
        0 APIAKeyLo_EL1 1 APIAKeyHi_EL1
        2 APIBKeyLo_EL1 3 APIBKeyHi_EL1
        4 APDAKeyLo_EL1 5 APDAKeyHi_EL1
        6 APDBKeyLo_EL1 7 APDBKeyHi_EL1
        8 APGAKeyLo_EL1 9 APGAKeyHi_EL1;
}

impl El1 {
    /// Writes what [`load`](Self::load) left, when all else is written that walks go
    /// by. `held`: they are held back, and so what those of before were.
    pub fn load_walks(&self, held: Option<Walks>) {
        let walks = Walks {
            sctlr: self.sctlr,
            tcr: self.tcr,
        };
        if held.is_some() {
            return walks.release();
        }
        // SAFETY: EL1's, by which EL2 neither translates nor runs.
        unsafe {
            SCTLR_EL1.steer(walks.sctlr);
            TCR_EL1.steer(walks.tcr);
        }
    }

    /// SCTLR_EL1 out of reset: RES1 of an Armv8.0 CPU, MMU and caches off, SP aligned;
    /// WFI, WFE and AArch32's barriers are EL0's to use, where the reset value is the
    /// implementation's own.
    pub const SCTLR_RESET: u64 = 0x30d0_0800 | bits!(SCTLR_EL1: SA, SA0, CP15BEN, nTWI, nTWE);

    /// As a CPU comes out of reset.
    pub fn reset() -> Self {
        Self {
            sctlr: Self::SCTLR_RESET,
            ..Self::default()
        }
    }
}

/// The virtual timer of a lower level, CNTV. CNTVOFF_EL2 is 0 for everybody:
/// the virtual and the physical counter are equal.
#[derive(Clone, Copy, Debug, Default)]
pub struct VirtualTimer {
    /// CNTV_CTL_EL0.
    pub ctl: u64,
    /// CNTV_CVAL_EL0.
    pub cval: u64,
}

impl VirtualTimer {
    /// Reads the timer and stops it, so that it does not fire for another.
    pub fn take(&mut self) {
        self.ctl = CNTV_CTL_EL0.get();
        self.cval = CNTV_CVAL_EL0.get();
        CNTV_CTL_EL0.set(0);
    }

    /// Sets the timer going. The caller issues the `isb` before it lets
    /// interrupts be taken, or a timer that was stopped could still fire.
    pub fn give(&self) {
        CNTV_CVAL_EL0.set(self.cval);
        CNTV_CTL_EL0.set(self.ctl);
    }
}

#[cfg(target_os = "none")]
unsafe extern "C" {
    fn enter_lower(gprs: *mut Gprs) -> u64;
    static vectors_with_steps: u8;
}

/// Has this PE take the steps that its `Pe` names whenever a lower level comes out.
pub fn take_steps() {
    #[cfg(target_os = "none")]
    let vectors = &raw const vectors_with_steps as u64;
    #[cfg(not(target_os = "none"))]
    let vectors = 0;
    // SAFETY: asm.S has vectors there, for good.
    unsafe { VBAR_EL2.steer(vectors) };
    instr::isb();
}

/// What became of a synchronous exception at the vector, which asm.S acts on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Served {
    /// Nothing: the lower level comes back with it.
    No = 0,
    /// The lower level goes on; of its registers in `Gprs`, X0 to X19 and X30 may
    /// have changed.
    Enter = 1,
    /// The lower level goes on, and any may have changed.
    EnterChanged = 2,
    /// The lower level comes back: [`Exception::HostSoon`].
    HostSoon = Self::HOST_SOON,
    /// The lower level comes back: [`Exception::HostNow`].
    HostNow = Self::HOST_NOW,
}

impl Served {
    /// The last of the registers before X30 that [`Self::Enter`] is enough for.
    pub const LAST: u32 = 19;

    /// What is enough where register `n` was written, as an instruction names it.
    #[inline(always)]
    pub const fn written(n: u32) -> Self {
        if n > Self::LAST {
            Self::EnterChanged
        } else {
            Self::Enter
        }
    }

    // Even, and no vector's.
    const HOST_SOON: u64 = 4;
    const HOST_NOW: u64 = 6;
}

/// The vector by which a lower level came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exception {
    /// A synchronous exception, which ESR_EL2 describes.
    Sync,
    /// A physical IRQ is pending.
    Irq,
    /// A physical FIQ is pending.
    Fiq,
    /// A system error.
    SError,
    /// None is left: it was served at the vector, and the host is to see it in a
    /// while.
    HostSoon,
    /// The same, and the host is to see it now.
    HostNow,
}

/// Leaves EL2 with these registers, until the next exception to EL2.
pub fn enter(gprs: &mut Gprs) -> Exception {
    // SAFETY: they are all that is touched, by a level that nothing is served for at
    // the vector.
    unsafe { leave_el2(gprs) }
}

/// The same, where there is something to serve at the vector.
///
/// # Safety
/// `gprs`, and all that it is the beginning of for who serves there, is exclusively the
/// caller's, and behind the pointer.
pub unsafe fn leave_el2(gprs: *mut Gprs) -> Exception {
    #[cfg(target_os = "none")]
    // SAFETY: the caller's promise; stage 2 keeps the lower level out of EL2's
    // memory, and asm.S restores every register that Rust expects to survive a call.
    let kind = unsafe { enter_lower(gprs) };
    #[cfg(not(target_os = "none"))]
    let kind = {
        crate::memory::order::idle();
        // SAFETY: the caller's promise.
        arm64::recording::enter(unsafe { &mut *gprs })
    };
    match kind {
        0 => Exception::Sync,
        1 => Exception::Irq,
        2 => Exception::Fiq,
        Served::HOST_SOON => Exception::HostSoon,
        Served::HOST_NOW => Exception::HostNow,
        _ => Exception::SError,
    }
}

//! What a lower exception level has in registers: general purpose, EL1 system
//! registers, timers, and FP/SIMD.

use arm64::syndrome::Syndrome;

use super::features::Features;
use crate::{mrs, msr};

/// PSTATE.nRW: AArch32.
const PSTATE_AARCH32: u64 = 1 << 4;

/// General-purpose registers, program counter and PSTATE of a lower level.
/// The layout is asm.S's.
#[derive(Clone, Debug)]
#[repr(C)]
pub struct Gprs {
    /// X0–X30.
    pub x: [u64; 31],
    /// ELR_EL2: where it goes on.
    pub pc: u64,
    /// SPSR_EL2: the state it goes on in.
    pub pstate: u64,
}

/// SPSR of a fresh EL1: EL1h, all of DAIF masked.
pub const PSTATE_EL1H_MASKED: u64 = 0x3c5;

impl Gprs {
    /// All zero but PSTATE, which is EL1h with interrupts masked.
    pub const fn reset(pc: u64) -> Self {
        Self {
            x: [0; 31],
            pc,
            pstate: PSTATE_EL1H_MASKED,
        }
    }

    /// Whether data accesses of its level are big-endian, by SCTLR_EL1: EE for
    /// EL1, E0E for EL0; by PSTATE.E in AArch32.
    pub const fn is_big_endian(&self, sctlr: u64) -> bool {
        if self.is_aarch32() {
            return self.pstate >> 9 & 1 != 0;
        }
        let bit = if self.pstate & 0b1100 == 0 { 24 } else { 25 };
        sctlr >> bit & 1 != 0
    }

    /// Register `n` as an instruction names it: 31 reads as zero.
    pub fn get(&self, n: u32) -> u64 {
        self.x.get(n as usize).copied().unwrap_or(0)
    }

    /// Writes register `n`; 31 is the zero register.
    pub fn set(&mut self, n: u32, value: u64) {
        if let Some(x) = self.x.get_mut(n as usize) {
            *x = value;
        }
    }

    const fn is_aarch32(&self) -> bool {
        self.pstate & PSTATE_AARCH32 != 0
    }

    /// Steps over the instruction whose condition passed and that this syndrome
    /// is of: in AArch32, which EL0 may have, of 2 or 4 bytes (IL), and one of an
    /// IT block (DDI0487, ITAdvance).
    pub fn step_over(&mut self, esr: Syndrome) {
        if !self.is_aarch32() {
            return self.step();
        }
        let length = if esr.is_long() { 4 } else { 2 };
        self.pc = self.pc.wrapping_add(length) & 0xffff_ffff;
        let state = (self.pstate >> 10 & 0x3f) << 2 | self.pstate >> 25 & 0b11;
        let next = if state & 0b111 == 0 {
            0
        } else {
            state & 0xe0 | state << 1 & 0x1f
        };
        self.pstate &= !(1 << 21 | 0x3f << 10 | 0b11 << 25);
        self.pstate |= next >> 2 << 10 | (next & 0b11) << 25;
    }

    /// Steps over an instruction of AArch64.
    pub fn step(&mut self) {
        self.pc = self.pc.wrapping_add(4);
        // The step consumes a pending software step and a BTI check.
        self.pstate &= !(1 << 21 | 0b11 << 10);
    }

    /// Steps back to the instruction that was stepped over.
    pub fn repeat(&mut self) {
        self.pc = self.pc.wrapping_sub(4);
    }
}

macro_rules! el1_registers {
    ($($(#[$doc:meta])* $field:ident = $name:literal),* $(,)?) => {
        /// The EL1 system registers that a world switch carries.
        #[derive(Clone, Debug)]
        pub struct El1 {
            $($(#[$doc])* pub $field: u64,)*
            /// Pointer authentication keys, lo and hi of IA, IB, DA, DB, GA.
            pub keys: [u64; 10],
            /// VDISR_EL2: what a guest reads and writes as DISR_EL1.
            pub vdisr: u64,
        }

        impl El1 {
            /// Reads the CPU's registers, those that it has.
            pub fn save(&mut self, features: &Features) {
                $(self.$field = mrs!($name);)*
                if features.ras {
                    self.vdisr = mrs!("S3_4_C12_C1_1");
                }
                if features.pauth {
                    self.keys = [
                        mrs!("S3_0_C2_C1_0"), mrs!("S3_0_C2_C1_1"),
                        mrs!("S3_0_C2_C1_2"), mrs!("S3_0_C2_C1_3"),
                        mrs!("S3_0_C2_C2_0"), mrs!("S3_0_C2_C2_1"),
                        mrs!("S3_0_C2_C2_2"), mrs!("S3_0_C2_C2_3"),
                        mrs!("S3_0_C2_C3_0"), mrs!("S3_0_C2_C3_1"),
                    ];
                }
            }

            /// Writes the CPU's registers.
            pub fn load(&self, features: &Features) {
                $(msr!($name, self.$field);)*
                if features.ras {
                    msr!("S3_4_C12_C1_1", self.vdisr);
                }
                if features.pauth {
                    let k = &self.keys;
                    msr!("S3_0_C2_C1_0", k[0]);
                    msr!("S3_0_C2_C1_1", k[1]);
                    msr!("S3_0_C2_C1_2", k[2]);
                    msr!("S3_0_C2_C1_3", k[3]);
                    msr!("S3_0_C2_C2_0", k[4]);
                    msr!("S3_0_C2_C2_1", k[5]);
                    msr!("S3_0_C2_C2_2", k[6]);
                    msr!("S3_0_C2_C2_3", k[7]);
                    msr!("S3_0_C2_C3_0", k[8]);
                    msr!("S3_0_C2_C3_1", k[9]);
                }
            }

            /// The names of those that every CPU has.
            #[cfg(test)]
            pub const NAMES: &[&str] = &[$($name,)*];

            /// All zero: only for [`El1::reset`].
            const ZERO: Self = Self { $($field: 0,)* keys: [0; 10], vdisr: 0 };
        }
    };
}

el1_registers! {
    /// System control.
    sctlr = "sctlr_el1",
    /// FP and SVE access.
    cpacr = "cpacr_el1",
    /// Translation table bases.
    ttbr0 = "ttbr0_el1",
    /// Upper translation table base.
    ttbr1 = "ttbr1_el1",
    /// Translation control.
    tcr = "tcr_el1",
    /// Syndrome.
    esr = "esr_el1",
    /// Auxiliary fault status.
    afsr0 = "afsr0_el1",
    /// Auxiliary fault status.
    afsr1 = "afsr1_el1",
    /// Fault address.
    far = "far_el1",
    /// Memory attributes.
    mair = "mair_el1",
    /// Auxiliary memory attributes.
    amair = "amair_el1",
    /// Vector base.
    vbar = "vbar_el1",
    /// Context id.
    contextidr = "contextidr_el1",
    /// Counter access from EL0.
    cntkctl = "cntkctl_el1",
    /// Result of the last address translation.
    par = "par_el1",
    /// Cache selection.
    csselr = "csselr_el1",
    /// Software thread ids.
    tpidr_el1 = "tpidr_el1",
    /// Of EL0.
    tpidr_el0 = "tpidr_el0",
    /// Of EL0, read-only there.
    tpidrro_el0 = "tpidrro_el0",
    /// Stack pointer of EL0.
    sp_el0 = "sp_el0",
    /// Stack pointer of EL1.
    sp_el1 = "sp_el1",
    /// Exception return address.
    elr = "elr_el1",
    /// Saved PSTATE.
    spsr = "spsr_el1",
    /// Monitor debug control: single step.
    mdscr = "mdscr_el1",
}

impl El1 {
    /// SCTLR_EL1 out of reset: RES1 of an Armv8.0 CPU, MMU and caches off.
    pub const SCTLR_RESET: u64 = 0x30d0_0800;

    /// As a CPU comes out of reset.
    pub const fn reset() -> Self {
        let mut el1 = Self::ZERO;
        el1.sctlr = Self::SCTLR_RESET;
        el1
    }
}

/// The virtual timer of a lower level, CNTV. CNTVOFF_EL2 is 0 for everybody:
/// the virtual and the physical counter tell the same time.
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
        self.ctl = mrs!("cntv_ctl_el0");
        self.cval = mrs!("cntv_cval_el0");
        msr!("cntv_ctl_el0", 0);
    }

    /// Sets the timer going. The caller issues the `isb` before it lets
    /// interrupts be taken, or a timer that was stopped could still fire.
    pub fn give(&self) {
        msr!("cntv_cval_el0", self.cval);
        msr!("cntv_ctl_el0", self.ctl);
    }
}

/// Q0–Q31, FPCR, FPSR. The layout is asm.S's.
#[derive(Clone, Debug)]
#[repr(C, align(16))]
pub struct FpState {
    q: [u128; 32],
    fpcr: u64,
    fpsr: u64,
}

impl FpState {
    /// All zero, as after `CPU_ON`.
    pub const ZERO: Self = Self {
        q: [0; 32],
        fpcr: 0,
        fpsr: 0,
    };

    /// V0 to V31.
    pub const fn q(&self) -> &[u128; 32] {
        &self.q
    }

    /// Replaces V0 to V31.
    pub fn set_q(&mut self, q: [u128; 32]) {
        self.q = q;
    }

    /// Takes the CPU's FP/SIMD registers. CPTR_EL2.TFP must be clear.
    pub fn save(&mut self) {
        #[cfg(target_os = "none")]
        // SAFETY: asm.S stores 528 bytes, which is this structure, and the
        // image itself keeps nothing in these registers.
        unsafe {
            fp_save(self);
        }
    }

    /// Sets the CPU's FP/SIMD registers. CPTR_EL2.TFP must be clear.
    pub fn restore(&self) {
        #[cfg(target_os = "none")]
        // SAFETY: as `save`.
        unsafe {
            fp_restore(self);
        }
    }
}

#[cfg(target_os = "none")]
unsafe extern "C" {
    fn fp_save(state: *mut FpState);
    fn fp_restore(state: *const FpState);
    fn enter_lower(gprs: *mut Gprs) -> u64;
}

/// The vector by which a lower level came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exception {
    /// A synchronous exception: ESR_EL2 tells.
    Sync,
    /// A physical IRQ is pending.
    Irq,
    /// A physical FIQ is pending.
    Fiq,
    /// A system error.
    SError,
}

/// Leaves EL2 with these registers, until the next exception to EL2.
pub fn enter(gprs: &mut Gprs) -> Exception {
    #[cfg(target_os = "none")]
    // SAFETY: `gprs` is exclusively ours while the lower level runs, stage 2
    // keeps that level out of EL2's memory, and asm.S restores every register
    // that Rust expects to survive a call.
    let kind = unsafe { enter_lower(gprs) };
    #[cfg(not(target_os = "none"))]
    let kind = {
        let _ = gprs;
        0
    };
    match kind {
        0 => Exception::Sync,
        1 => Exception::Irq,
        2 => Exception::Fiq,
        _ => Exception::SError,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::{offset_of, size_of};

    #[test]
    fn layouts_are_those_of_the_assembly() {
        assert_eq!(offset_of!(Gprs, pc), 248);
        assert_eq!(offset_of!(Gprs, pstate), 256);
        assert_eq!(offset_of!(FpState, fpcr), 512);
        assert_eq!(offset_of!(FpState, fpsr), 520);
        assert_eq!(size_of::<FpState>(), 528);
    }

    #[test]
    fn register_31_is_zero() {
        let mut g = Gprs::reset(0x1000);
        g.set(31, 7);
        g.set(30, 8);
        assert_eq!((g.get(31), g.get(30)), (0, 8));
        g.step();
        assert_eq!(g.pc, 0x1004);
    }

    /// IT is PSTATE[15:10] for its bits 7 to 2, PSTATE[26:25] for the others.
    #[test]
    fn an_instruction_of_aarch32_is_as_long_as_it_is() {
        const LONG: Syndrome = Syndrome(1 << 25);
        const SHORT: Syndrome = Syndrome(0);
        let it = |it: u64| 0x30 | it >> 2 << 10 | (it & 0b11) << 25;
        for (before, esr, pc, after) in [
            (0x10, LONG, 0x1004, 0x10),
            (0x30, SHORT, 0x1002, 0x30),
            (0x30, LONG, 0x1004, 0x30),
            // ITTEE EQ: its first instruction, its third, its last.
            (it(0b0000_0111), SHORT, 0x1002, it(0b0000_1110)),
            (it(0b0001_1100), SHORT, 0x1002, it(0b0001_1000)),
            (it(0b0001_1000), LONG, 0x1004, 0x30),
            // AArch64: SS and BTYPE are consumed.
            (1 << 21 | 0b11 << 10, SHORT, 0x1004, 0),
        ] {
            let mut g = Gprs::reset(0x1000);
            g.pstate = before;
            g.step_over(esr);
            assert_eq!((g.pc, g.pstate), (pc, after), "{before:#x}");
        }
        let mut g = Gprs::reset(0);
        g.pstate = 0x10 | 1 << 9;
        assert!(g.is_big_endian(0), "setend be");
    }
}

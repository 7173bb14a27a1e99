//! What assembly saves and loads: general registers, FP/SIMD registers, and how a
//! level translates. Each begins where `offset_of!` says.

use crate::syndrome::Syndrome;

/// PSTATE.nRW: AArch32.
const PSTATE_AARCH32: u64 = 1 << 4;
/// PSTATE.SS and BTYPE: a software step that is pending, and a BTI check. A step over
/// an instruction of AArch64 consumes them.
const STEP: u64 = 1 << 21 | 0b11 << 10;

/// General-purpose registers, program counter and PSTATE of a lower level.
/// X0 to X30 stand first. While the level runs, SP_EL2 is the address of this.
#[derive(Clone, Debug)]
#[repr(C, align(16))]
pub struct Gprs {
    /// X0–X30.
    pub x: [u64; 31],
    /// ELR_EL2: where it goes on.
    pub pc: u64,
    /// SPSR_EL2: the state it goes on in.
    pub pstate: u64,
    /// EL2's stack pointer while the level runs.
    stack: u64,
    /// For whom EL2's vectors hand exceptions on before it leaves the level, as
    /// that one knows: 0 for nobody.
    pub at_vector: u64,
    /// Whether the host will be called for what is served there.
    pub host_is_called: bool,
}

impl Gprs {
    /// Offset of the stack pointer, for assembly; `at_vector` is behind it.
    pub const STACK: usize = core::mem::offset_of!(Self, stack);
    const _PAIR: () = assert!(core::mem::offset_of!(Self, at_vector) == Self::STACK + 8);
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
            stack: 0,
            at_vector: 0,
            host_is_called: false,
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

    /// Whether some level of AArch64 has big-endian data, by SCTLR_EL1 (EE, E0E).
    pub const fn may_be_big_endian(sctlr: u64) -> bool {
        sctlr & (0b11 << 24) != 0
    }

    /// Whether a step over an instruction changes nothing of this PSTATE: it is of
    /// AArch64, and there is nothing to consume.
    pub const fn steps_plainly(pstate: u64) -> bool {
        pstate & (PSTATE_AARCH32 | STEP) == 0
    }

    /// Register `n` as an instruction names it: 31 reads as zero.
    pub fn get(&self, n: u32) -> u64 {
        // In five bits: a CPU that guesses wrongly reads `pc`.
        self.x.get(n as usize & 31).copied().unwrap_or(0)
    }

    /// Writes register `n`; 31 is the zero register.
    pub fn set(&mut self, n: u32, value: u64) {
        if let Some(x) = self.x.get_mut(n as usize & 31) {
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
        self.pstate &= !STEP;
    }

    /// Steps back to the instruction that was stepped over.
    pub fn repeat(&mut self) {
        self.pc = self.pc.wrapping_sub(4);
    }
}

/// How a level translates its own addresses: `image.s` loads it.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Regime {
    /// TTBR0_ELx.
    pub ttbr0: u64,
    /// TCR_ELx.
    pub tcr: u64,
    /// MAIR_ELx.
    pub mair: u64,
    /// SCTLR_ELx.
    pub sctlr: u64,
}

/// Q0–Q31, FPCR, FPSR.
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

    /// Takes the CPU's FP/SIMD registers, whose access must not trap.
    #[inline(never)]
    pub fn save(&mut self) {
        #[cfg(target_os = "none")]
        // SAFETY: stores 512 bytes, which is `q`. Images are built to keep nothing
        // of their own in these registers.
        unsafe {
            core::arch::asm!(
                ".arch_extension fp", ".arch_extension simd",
                "st1 {{v0.2d-v3.2d}}, [{q}], #64", "st1 {{v4.2d-v7.2d}}, [{q}], #64",
                "st1 {{v8.2d-v11.2d}}, [{q}], #64", "st1 {{v12.2d-v15.2d}}, [{q}], #64",
                "st1 {{v16.2d-v19.2d}}, [{q}], #64", "st1 {{v20.2d-v23.2d}}, [{q}], #64",
                "st1 {{v24.2d-v27.2d}}, [{q}], #64", "st1 {{v28.2d-v31.2d}}, [{q}]",
                "mrs {fpcr}, fpcr", "mrs {fpsr}, fpsr",
                q = inout(reg) self.q.as_mut_ptr() => _,
                fpcr = out(reg) self.fpcr, fpsr = out(reg) self.fpsr,
                options(nostack, preserves_flags)
            );
        }
        #[cfg(not(target_os = "none"))]
        crate::recording::instruction("fp save", None);
    }

    /// Sets the CPU's FP/SIMD registers, whose access must not trap.
    #[inline(never)]
    pub fn restore(&self) {
        #[cfg(target_os = "none")]
        // SAFETY: loads 512 bytes, which is `q`; as `save`.
        unsafe {
            core::arch::asm!(
                ".arch_extension fp", ".arch_extension simd",
                "ld1 {{v0.2d-v3.2d}}, [{q}], #64", "ld1 {{v4.2d-v7.2d}}, [{q}], #64",
                "ld1 {{v8.2d-v11.2d}}, [{q}], #64", "ld1 {{v12.2d-v15.2d}}, [{q}], #64",
                "ld1 {{v16.2d-v19.2d}}, [{q}], #64", "ld1 {{v20.2d-v23.2d}}, [{q}], #64",
                "ld1 {{v24.2d-v27.2d}}, [{q}], #64", "ld1 {{v28.2d-v31.2d}}, [{q}]",
                "msr fpcr, {fpcr}", "msr fpsr, {fpsr}",
                q = inout(reg) self.q.as_ptr() => _,
                fpcr = in(reg) self.fpcr, fpsr = in(reg) self.fpsr,
                options(nostack, preserves_flags)
            );
        }
        #[cfg(not(target_os = "none"))]
        crate::recording::instruction("fp restore", None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

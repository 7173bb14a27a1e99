//! A vCPU's registers, as instructions name them.

use rmi::registers::Registers;

/// PSTATE bits, as SPSR_EL2 has them (DDI0487, C5.2.19).
mod pstate {
    /// AArch32.
    pub const NRW: u64 = 1 << 4;
    /// Software step is active.
    pub const SS: u64 = 1 << 21;
    /// EL1 does not touch what EL0 may.
    pub const PAN: u64 = 1 << 22;
    /// LDTR and its like act as LDR.
    pub const UAO: u64 = 1 << 23;
}

/// SCTLR_EL1: EL1's data and the walks are big-endian.
pub const SCTLR_EE: u64 = 1 << 25;
const SCTLR_E0E: u64 = 1 << 24;

/// A vCPU, as its instructions see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// Its registers.
    pub registers: Registers,
    /// Bytes that `dc zva` clears (DCZID_EL0).
    pub zero_block: u64,
}

impl Cpu {
    /// A general register; 31 reads as zero.
    pub fn x(&self, n: u8) -> u64 {
        self.registers.x.get(usize::from(n)).copied().unwrap_or(0)
    }

    /// Writes a general register; 31 stays zero.
    pub fn set_x(&mut self, n: u8, value: u64) {
        if let Some(x) = self.registers.x.get_mut(usize::from(n)) {
            *x = value;
        }
    }

    /// The stack pointer in use: SP_EL1 in EL1h, else SP_EL0.
    const fn stack(&self) -> usize {
        (self.registers.pstate & 0b1101 == 0b0101) as usize
    }

    /// A general register; 31 is the stack pointer.
    pub fn x_or_sp(&self, n: u8) -> u64 {
        if n == 31 {
            self.registers.sp[self.stack()]
        } else {
            self.x(n)
        }
    }

    /// Writes a general register; 31 is the stack pointer.
    pub fn set_x_or_sp(&mut self, n: u8, value: u64) {
        if n == 31 {
            self.registers.sp[self.stack()] = value;
        } else {
            self.set_x(n, value);
        }
    }

    /// A SIMD and FP register.
    pub fn v(&self, n: u8) -> u128 {
        let [low, high] = self.registers.v[usize::from(n & 31)];
        u128::from(low) | u128::from(high) << 64
    }

    /// Writes a SIMD and FP register, all of it.
    pub fn set_v(&mut self, n: u8, value: u128) {
        self.registers.v[usize::from(n & 31)] = [value as u64, (value >> 64) as u64];
    }

    /// N, Z, C and V, in bits 3 to 0.
    pub const fn flags(&self) -> u64 {
        self.registers.pstate >> 28 & 0xf
    }

    /// Sets N, Z, C and V.
    pub fn set_flags(&mut self, flags: u64) {
        let rest = self.registers.pstate & !(0xf << 28);
        self.registers.pstate = rest | (flags & 0xf) << 28;
    }

    /// It executes A32 or T32.
    pub const fn is_aarch32(&self) -> bool {
        self.registers.pstate & pstate::NRW != 0
    }

    /// It is at EL0.
    pub const fn is_el0(&self) -> bool {
        self.registers.pstate & 0b1100 == 0
    }

    /// It takes an exception after each instruction.
    pub const fn is_stepping(&self) -> bool {
        self.registers.pstate & pstate::SS != 0
    }

    /// PSTATE.PAN.
    pub const fn pan(&self) -> bool {
        self.registers.pstate & pstate::PAN != 0
    }

    /// PSTATE.UAO.
    pub const fn uao(&self) -> bool {
        self.registers.pstate & pstate::UAO != 0
    }

    /// Its data accesses are big-endian.
    pub const fn is_big_endian(&self) -> bool {
        let bit = if self.is_el0() { SCTLR_E0E } else { SCTLR_EE };
        self.registers.sctlr & bit != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    #[test]
    fn register_31_is_zero_or_the_stack_pointer_in_use() {
        let mut cpu = Cpu {
            registers: Registers::new_zeroed(),
            zero_block: 64,
        };
        cpu.registers.sp = [10, 11];
        for (pstate, sp) in [(0b0000, 0), (0b0100, 0), (0b0101, 1)] {
            cpu.registers.pstate = pstate;
            assert_eq!(cpu.x_or_sp(31), 10 + sp as u64);
            cpu.set_x_or_sp(31, 10 + sp as u64);
        }
        cpu.set_x(31, 5);
        assert_eq!((cpu.x(31), cpu.registers.sp), (0, [10, 11]));
    }
}

//! Integer instructions and branches (DDI0487, C4.1.92, C4.1.93, C4.1.95): what
//! stands between a load-exclusive and its store.
//!
//! A processor forgets a mark when it takes an exception or returns from one, so
//! a store-exclusive to a device that is emulated would never succeed. From the
//! load on, the host therefore executes what follows, up to the store. What
//! writes no register but general ones, flags and the PC is here; all else is
//! left to the processor.

use super::state::Cpu;
use super::word::{bit, bits, register, signed};

/// Bits of a register: 32 or 64, by sf.
const fn width(word: u32) -> u32 {
    if bit(word, 31) { 64 } else { 32 }
}

const fn low_bits(count: u32) -> u64 {
    if count == 0 {
        0
    } else {
        u64::MAX >> (64 - count)
    }
}

/// Executes an instruction, PC included; false if it is none of these, and then
/// nothing has changed.
pub fn execute(cpu: &mut Cpu, word: u32) -> bool {
    let pc = cpu.registers.pc;
    let next = match bits(word, 28, 25) {
        0b1000 | 0b1001 => immediate(cpu, word),
        0b0101 | 0b1101 => of_registers(cpu, word),
        0b1010 | 0b1011 => return branch(cpu, word),
        _ => None,
    };
    if next.is_some() {
        cpu.registers.pc = pc.wrapping_add(4);
    }
    next.is_some()
}

/// True for what ends the hope for a store-exclusive, or makes none likely: CLREX,
/// hints such as WFE, exceptions, and branches to a register.
pub const fn ends_sequence(word: u32) -> bool {
    let clrex = word & 0xffff_f0ff == 0xd503_305f;
    let hint = word & 0xffff_f01f == 0xd503_201f;
    let exception = word >> 24 == 0xd4;
    let to_register = word >> 25 == 0b110_1011;
    let call = word >> 26 == 0b10_0101;
    clrex || hint || exception || to_register || call
}

/// Writes the result of the word's width to Rd.
fn put(cpu: &mut Cpu, word: u32, value: u64) -> Option<()> {
    cpu.set_x(register(word, 0), value & low_bits(width(word)));
    Some(())
}

/// Writes it to Rd, where 31 is the stack pointer unless flags are set.
fn put_sp(cpu: &mut Cpu, word: u32, value: u64, flags: bool) -> Option<()> {
    if flags {
        return put(cpu, word, value);
    }
    cpu.set_x_or_sp(register(word, 0), value & low_bits(width(word)));
    Some(())
}

/// The sum, and N, Z, C and V of it (AddWithCarry).
fn add(a: u64, b: u64, carry: bool, width: u32) -> (u64, u64) {
    let mask = low_bits(width);
    let (a, b) = (a & mask, b & mask);
    let wide = u128::from(a) + u128::from(b) + u128::from(carry);
    let sum = wide as u64 & mask;
    let sign = |value: u64| value >> (width - 1) & 1;
    let c = u64::from(wide >> width != 0);
    let v = (sign(a) ^ sign(sum)) & (sign(b) ^ sign(sum));
    (sum, sign(sum) << 3 | u64::from(sum == 0) << 2 | c << 1 | v)
}

/// Adds, or subtracts, as bits 30 (op) and 29 (S) of the word say.
fn sum(cpu: &mut Cpu, word: u32, a: u64, b: u64, carry: Option<bool>) -> u64 {
    let subtract = bit(word, 30);
    let b = if subtract { !b } else { b };
    let (value, flags) = add(a, b, carry.unwrap_or(subtract), width(word));
    if bit(word, 29) {
        cpu.set_flags(flags);
    }
    value
}

/// Sets N and Z of a logical result, C and V to 0.
fn set_logical_flags(cpu: &mut Cpu, value: u64, width: u32) {
    let value = value & low_bits(width);
    cpu.set_flags((value >> (width - 1) & 1) << 3 | u64::from(value == 0) << 2);
}

fn immediate(cpu: &mut Cpu, word: u32) -> Option<()> {
    let rn = register(word, 5);
    match bits(word, 25, 23) {
        // ADR, ADRP.
        0b000 | 0b001 => {
            let offset = signed(word, 23, 5) << 2 | i64::from(bits(word, 30, 29));
            let pc = cpu.registers.pc;
            let value = if bit(word, 31) {
                (pc & !0xfff).wrapping_add((offset << 12) as u64)
            } else {
                pc.wrapping_add(offset as u64)
            };
            cpu.set_x(register(word, 0), value);
            Some(())
        }
        // ADD, SUB.
        0b010 => {
            let shift = if bit(word, 22) { 12 } else { 0 };
            let b = u64::from(bits(word, 21, 10)) << shift;
            let value = sum(cpu, word, cpu.x_or_sp(rn), b, None);
            put_sp(cpu, word, value, bit(word, 29))
        }
        // SMAX, UMAX, SMIN, UMIN (FEAT_CSSC).
        0b011 if bits(word, 30, 29) == 0 && bit(word, 22) => {
            let byte = bits(word, 17, 10) as u8;
            let kind = bits(word, 21, 18);
            let m = if kind & 1 == 0 {
                i64::from(byte.cast_signed()) as u64
            } else {
                byte.into()
            };
            let value = extreme(word, kind, cpu.x(rn), m)?;
            put(cpu, word, value)
        }
        // AND, ORR, EOR, ANDS.
        0b100 => {
            let (mask, _) = bit_masks(word)?;
            let value = logical(bits(word, 30, 29), cpu.x(rn), mask);
            let flags = bits(word, 30, 29) == 3;
            if flags {
                set_logical_flags(cpu, value, width(word));
            }
            put_sp(cpu, word, value, flags)
        }
        // MOVN, MOVZ, MOVK.
        0b101 => {
            let shift = 16 * bits(word, 22, 21);
            if shift >= width(word) {
                return None;
            }
            let part = u64::from(bits(word, 20, 5)) << shift;
            let value = match bits(word, 30, 29) {
                0 => !part,
                2 => part,
                3 => cpu.x(register(word, 0)) & !(0xffff << shift) | part,
                _ => return None,
            };
            put(cpu, word, value)
        }
        // SBFM, BFM, UBFM.
        0b110 => bitfield(cpu, word),
        // EXTR.
        0b111 => {
            let (width, low) = (width(word), bits(word, 15, 10));
            let n_is_sf = bit(word, 22) == bit(word, 31);
            if bits(word, 30, 29) != 0 || bit(word, 21) || !n_is_sf || low >= width {
                return None;
            }
            let (n, m) = (cpu.x(rn), cpu.x(register(word, 16)));
            let wide = u128::from(n & low_bits(width)) << width | u128::from(m & low_bits(width));
            put(cpu, word, (wide >> low) as u64)
        }
        _ => None,
    }
}

/// `wmask` and `tmask` of the fields N, immr and imms (DecodeBitMasks).
fn bit_masks(word: u32) -> Option<(u64, u64)> {
    let (n, immr, imms) = (bits(word, 22, 22), bits(word, 21, 16), bits(word, 15, 10));
    if n == 1 && width(word) == 32 {
        return None;
    }
    let is_bitfield = bits(word, 25, 23) == 0b110;
    let length = (n << 6 | !imms & 0x3f).checked_ilog2()?;
    let levels = (1 << length) - 1;
    if length == 0 || (!is_bitfield && imms & levels == levels) {
        return None;
    }
    let (s, r, size) = (imms & levels, immr & levels, 1u32 << length);
    let rotate = |value: u64| {
        let value = if r == 0 {
            value
        } else {
            value >> r | value << (size - r)
        };
        value & low_bits(size)
    };
    let replicate = |element: u64| (0..64 / size).fold(0, |all, n| all | element << (n * size));
    let wmask = replicate(rotate(low_bits(s + 1)));
    let tmask = replicate(low_bits((s.wrapping_sub(r) & levels) + 1));
    Some((wmask, tmask))
}

const fn logical(opc: u32, a: u64, b: u64) -> u64 {
    match opc {
        1 => a | b,
        2 => a ^ b,
        _ => a & b,
    }
}

fn bitfield(cpu: &mut Cpu, word: u32) -> Option<()> {
    let (width, immr, imms) = (width(word), bits(word, 21, 16), bits(word, 15, 10));
    if bit(word, 22) != bit(word, 31) || immr >= width || imms >= width {
        return None;
    }
    let (wmask, tmask) = bit_masks(word)?;
    let source = cpu.x(register(word, 5)) & low_bits(width);
    let rotated = if immr == 0 {
        source
    } else {
        (source >> immr | source << (width - immr)) & low_bits(width)
    };
    let opc = bits(word, 30, 29);
    let old = if opc == 1 {
        cpu.x(register(word, 0))
    } else {
        0
    };
    let bottom = old & !wmask | rotated & wmask;
    let top = match opc {
        0 => (source >> imms & 1).wrapping_neg(),
        1 => old,
        2 => 0,
        _ => return None,
    };
    put(cpu, word, top & !tmask | bottom & tmask)
}

/// A value shifted as LSL, LSR, ASR or ROR; `by` is below `width`.
fn shifted(value: u64, kind: u32, by: u32, width: u32) -> u64 {
    let value = value & low_bits(width);
    let signed = ((value << (64 - width)) as i64) >> (64 - width);
    let result = match kind {
        0 => value << by,
        1 => value >> by,
        2 => (signed >> by) as u64,
        _ if by == 0 => value,
        _ => value >> by | value << (width - by),
    };
    result & low_bits(width)
}

fn of_registers(cpu: &mut Cpu, word: u32) -> Option<()> {
    let (n, m) = (cpu.x(register(word, 5)), cpu.x(register(word, 16)));
    let width = width(word);
    match (bit(word, 28), bits(word, 24, 21)) {
        // AND, BIC, ORR, ORN, EOR, EON, ANDS, BICS of a shifted register.
        (false, op) if op & 0b1000 == 0 => {
            let by = bits(word, 15, 10);
            if by >= width {
                return None;
            }
            let m = shifted(m, bits(word, 23, 22), by, width);
            let m = if bit(word, 21) { !m } else { m };
            let opc = bits(word, 30, 29);
            let value = logical(opc, n, m);
            if opc == 3 {
                set_logical_flags(cpu, value, width);
            }
            put(cpu, word, value)
        }
        // ADD, SUB of a shifted register.
        (false, op) if op & 1 == 0 => {
            let (kind, by) = (bits(word, 23, 22), bits(word, 15, 10));
            if by >= width || kind == 3 {
                return None;
            }
            let value = sum(cpu, word, n, shifted(m, kind, by, width), None);
            put(cpu, word, value)
        }
        // ADD, SUB of an extended register.
        (false, 0b1001) => {
            let by = bits(word, 12, 10);
            if by > 4 {
                return None;
            }
            let kind = bits(word, 15, 13);
            let unused = 64 - (8 << (kind & 3));
            let m = if kind & 4 == 0 {
                m << unused >> unused
            } else {
                ((m << unused) as i64 >> unused) as u64
            };
            let n = cpu.x_or_sp(register(word, 5));
            let value = sum(cpu, word, n, m << by, None);
            put_sp(cpu, word, value, bit(word, 29))
        }
        // ADC, SBC.
        (true, 0b0000) if bits(word, 15, 10) == 0 => {
            let carry = cpu.flags() >> 1 & 1 != 0;
            let value = sum(cpu, word, n, m, Some(carry));
            put(cpu, word, value)
        }
        // CCMN, CCMP.
        (true, 0b0010) if bit(word, 29) && !bit(word, 10) && !bit(word, 4) => {
            if holds(cpu, bits(word, 15, 12)) {
                let b = if bit(word, 11) {
                    register(word, 16).into()
                } else {
                    m
                };
                sum(cpu, word, n, b, None);
            } else {
                cpu.set_flags(bits(word, 3, 0).into());
            }
            Some(())
        }
        // CSEL, CSINC, CSINV, CSNEG.
        (true, 0b0100) if !bit(word, 29) && !bit(word, 11) => {
            let value = match (holds(cpu, bits(word, 15, 12)), bit(word, 30), bit(word, 10)) {
                (true, ..) => n,
                (false, false, false) => m,
                (false, false, true) => m.wrapping_add(1),
                (false, true, false) => !m,
                (false, true, true) => m.wrapping_neg(),
            };
            put(cpu, word, value)
        }
        (true, 0b0110) if !bit(word, 29) => {
            let value = if bit(word, 30) {
                of_one(word, n)?
            } else {
                of_two(word, n, m)?
            };
            put(cpu, word, value)
        }
        (true, op) if op & 0b1000 != 0 => of_three(cpu, word, n, m),
        _ => None,
    }
}

/// The larger (kinds 0, 1) or smaller (2, 3) of two, with a sign (0, 2) or without.
fn extreme(word: u32, kind: u32, n: u64, m: u64) -> Option<u64> {
    let width = width(word);
    let unused = 64 - width;
    let signed = |value: u64| (value << unused) as i64 >> unused;
    let (un, um) = (n & low_bits(width), m & low_bits(width));
    Some(match kind {
        0 => signed(n).max(signed(m)) as u64,
        1 => un.max(um),
        2 => signed(n).min(signed(m)) as u64,
        3 => un.min(um),
        _ => return None,
    })
}

/// RBIT, REV16, REV32, REV, CLZ, CLS; and of FEAT_CSSC, CTZ, CNT, ABS.
fn of_one(word: u32, n: u64) -> Option<u64> {
    let width = width(word);
    if bits(word, 20, 16) != 0 {
        return None;
    }
    let n = n & low_bits(width);
    let bytes = |of: u32| {
        (0..64 / of).fold(0, |all, i| {
            let part = n >> (i * of) & low_bits(of);
            all | (part.swap_bytes() >> (64 - of)) << (i * of)
        })
    };
    Some(match bits(word, 15, 10) {
        0 => n.reverse_bits() >> (64 - width),
        1 => bytes(16),
        2 => bytes(32),
        3 if width == 64 => bytes(64),
        4 => u64::from(n.leading_zeros() - (64 - width)),
        5 => {
            let flips = (n ^ n >> 1) & low_bits(width - 1);
            u64::from(flips.leading_zeros() - (64 - width) - 1)
        }
        6 => u64::from(n.trailing_zeros().min(width)),
        7 => u64::from(n.count_ones()),
        8 => {
            let unused = 64 - width;
            ((n << unused) as i64 >> unused).wrapping_abs() as u64
        }
        _ => return None,
    })
}

/// UDIV, SDIV, LSLV, LSRV, ASRV, RORV; and of FEAT_CSSC, SMAX, UMAX, SMIN, UMIN.
fn of_two(word: u32, n: u64, m: u64) -> Option<u64> {
    let width = width(word);
    let unused = 64 - width;
    let signed = |value: u64| (value << unused) as i64 >> unused;
    let (un, um) = (n & low_bits(width), m & low_bits(width));
    Some(match bits(word, 15, 10) {
        0b10 => un.checked_div(um).unwrap_or(0),
        0b11 if um == 0 => 0,
        0b11 => signed(n).wrapping_div(signed(m)) as u64,
        op @ 0b1_1000..=0b1_1011 => extreme(word, op & 3, n, m)?,
        op @ 0b1000..=0b1011 => shifted(n, op & 3, (um % u64::from(width)) as u32, width),
        _ => return None,
    })
}

/// MADD, MSUB, SMADDL, SMSUBL, SMULH, UMADDL, UMSUBL, UMULH.
fn of_three(cpu: &mut Cpu, word: u32, n: u64, m: u64) -> Option<()> {
    let a = cpu.x(register(word, 10));
    if bits(word, 30, 29) != 0 {
        return None;
    }
    let subtract = bit(word, 15);
    let with = |product: u64| {
        if subtract {
            a.wrapping_sub(product)
        } else {
            a.wrapping_add(product)
        }
    };
    let value = match (bits(word, 23, 21), bit(word, 31)) {
        (0b000, _) => with(n.wrapping_mul(m)),
        (0b001, true) => with((i64::from(n as u32 as i32) * i64::from(m as u32 as i32)) as u64),
        (0b101, true) => with((n & 0xffff_ffff) * (m & 0xffff_ffff)),
        (0b010, true) if !subtract => ((i128::from(n as i64) * i128::from(m as i64)) >> 64) as u64,
        (0b110, true) if !subtract => ((u128::from(n) * u128::from(m)) >> 64) as u64,
        _ => return None,
    };
    put(cpu, word, value)
}

/// A condition (ConditionHolds).
fn holds(cpu: &Cpu, condition: u32) -> bool {
    let flags = cpu.flags();
    let [n, z, c, v] = [3, 2, 1, 0].map(|bit| flags >> bit & 1 != 0);
    let result = match condition >> 1 {
        0 => z,
        1 => c,
        2 => n,
        3 => v,
        4 => c && !z,
        5 => n == v,
        6 => n == v && !z,
        _ => return true,
    };
    result != (condition & 1 != 0)
}

/// B, B.cond, CBZ, CBNZ, TBZ, TBNZ, barriers and NOP. Those that link or take a
/// register are not here: they change what BTI checks.
fn branch(cpu: &mut Cpu, word: u32) -> bool {
    let t = cpu.x(register(word, 0));
    let near = signed(word, 23, 5) * 4;
    let offset = match bits(word, 31, 24) {
        0b0001_0100..=0b0001_0111 => signed(word, 25, 0) * 4,
        0b0101_0100 if !bit(word, 4) => {
            if holds(cpu, bits(word, 3, 0)) {
                near
            } else {
                4
            }
        }
        0b0011_0100 | 0b0011_0101 | 0b1011_0100 | 0b1011_0101 => {
            let zero = t & low_bits(width(word)) == 0;
            if zero != bit(word, 24) { near } else { 4 }
        }
        0b0011_0110 | 0b0011_0111 | 0b1011_0110 | 0b1011_0111 => {
            let tested = bits(word, 31, 31) << 5 | bits(word, 23, 19);
            if (t >> tested & 1 != 0) == bit(word, 24) {
                signed(word, 18, 5) * 4
            } else {
                4
            }
        }
        // NOP, and DSB, DMB and ISB: what the host accesses for the guest has a
        // fence on either side.
        _ if word == 0xd503_201f => 4,
        _ if word & 0xffff_f01f == 0xd503_301f && matches!(bits(word, 7, 5), 4..=6) => 4,
        _ => return false,
    };
    cpu.registers.pc = cpu.registers.pc.wrapping_add(offset as u64);
    true
}

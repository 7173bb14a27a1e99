//! Stage 1 of EL1&0 in software (DDI0487, D8): every granule, 48 and 52 bits, and
//! permissions.
//!
//! Walks a guest's own tables, which it may change meanwhile: each descriptor
//! is read once. Features that guests do not see (permission indirection,
//! overlays, 128-bit descriptors, MTE) are not in force here either.

use super::state::{Cpu, SCTLR_EE};

/// The memory that the tables lie in.
pub trait Tables {
    /// The eight bytes at an aligned IPA; `None` where no RAM is.
    fn load(&mut self, ipa: u64) -> Option<u64>;
    /// Replaces `old` by `new`; false if it is not `old` any more.
    fn exchange(&mut self, ipa: u64, old: u64, new: u64) -> bool;
}

/// What an address is translated for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// What is done there.
    pub kind: Kind,
    /// With EL0's rights.
    pub as_el0: bool,
}

/// What is done with memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An instruction fetch.
    Fetch,
    /// A load.
    Read,
    /// A store, or an atomic.
    Write,
}

/// The fault status code that stage 1 answers with (DDI0487, ESR_EL1.DFSC).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault(pub u8);

impl Fault {
    const ADDRESS_SIZE: u8 = 0x00;
    const TRANSLATION: u8 = 0x04;
    const ACCESS_FLAG: u8 = 0x08;
    const PERMISSION: u8 = 0x0c;
    const EXTERNAL_ON_WALK: u8 = 0x14;

    fn at(kind: u8, level: i8) -> Self {
        match (kind, level) {
            (Self::ADDRESS_SIZE, -1) => Self(0x29),
            (Self::TRANSLATION, -1) => Self(0x2b),
            // EXTERNAL_ON_WALK − 1 is level −1's code.
            (kind, level) => Self(kind.wrapping_add_signed(level)),
        }
    }

    /// A walk read where there is no RAM.
    pub const fn is_external(self) -> bool {
        matches!(self.0, 0x13..=0x17)
    }
}

/// Why an address has no IPA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Miss {
    /// Stage 1 answers with a fault.
    Fault(Fault),
    /// An entry changed while it was to be marked used: what the tables say now,
    /// another walk finds.
    Changed,
}

impl From<Fault> for Miss {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

mod sctlr {
    pub const M: u64 = 1 << 0;
    pub const WXN: u64 = 1 << 19;
    pub const EPAN: u64 = 1 << 57;
}

/// One half of the address space, as TCR_EL1 sets it up.
struct Half {
    /// Bits that are translated.
    va_bits: u32,
    /// log2 of the granule.
    shift: u32,
    /// Table permissions do not count.
    flat: bool,
    ttbr: u64,
}

const fn bit(value: u64, n: u32) -> bool {
    value >> n & 1 != 0
}

/// Bits \[high:low\] of a value, in place.
const fn between(value: u64, high: u32, low: u32) -> u64 {
    value & (u64::MAX >> (63 - high)) & (u64::MAX << low)
}

/// The half that an address is in, or the fault of one that is in none.
fn half(cpu: &Cpu, va: u64, access: Access) -> Result<(Half, u64), Fault> {
    let tcr = cpu.registers.tcr;
    let upper = bit(va, 55);
    let fault = Fault::at(Fault::TRANSLATION, 0);
    // TxSZ, EPDx, TGx, TBIx, TBIDx, HPDx, E0PDx.
    let (size, disabled, tg, top, data_only, flat, not_el0) = if upper {
        (16, 23, 30, 38, 52, 42, 56)
    } else {
        (0, 7, 14, 37, 51, 41, 55)
    };
    let shift = match (tcr >> tg & 3, upper) {
        (0, false) | (2, true) => 12,
        (2, false) | (1, true) => 14,
        (1, false) | (3, true) => 16,
        _ => return Err(fault),
    };
    let va_bits = 64 - (tcr >> size & 0x3f) as u32;
    let most = if shift == 16 || bit(tcr, 59) { 52 } else { 48 };
    if va_bits > most || va_bits <= shift || bit(tcr, disabled) {
        return Err(fault);
    }
    if access.as_el0 && bit(tcr, not_el0) {
        return Err(fault);
    }
    let tagged = bit(tcr, top) && (access.kind != Kind::Fetch || !bit(tcr, data_only));
    let top = if tagged { 55 } else { 63 };
    let expected = if upper { u64::MAX } else { 0 };
    if between(va ^ expected, top, va_bits) != 0 {
        return Err(fault);
    }
    let half = Half {
        va_bits,
        shift,
        flat: bit(tcr, flat),
        ttbr: cpu.registers.ttbr[usize::from(upper)],
    };
    Ok((half, va & (u64::MAX >> (64 - va_bits))))
}

/// Bits of an output address, by TCR_EL1.IPS.
const fn output_bits(tcr: u64) -> u32 {
    match tcr >> 32 & 7 {
        0 => 32,
        1 => 36,
        2 => 40,
        3 => 42,
        4 => 44,
        5 => 48,
        _ => 52,
    }
}

/// Permissions that tables took away on the way down.
#[derive(Clone, Copy, Default)]
struct Taken {
    write: bool,
    el0: bool,
    execute: [bool; 2],
}

/// Translates an address to its IPA.
pub fn translate(
    cpu: &Cpu,
    tables: &mut impl Tables,
    va: u64,
    access: Access,
) -> Result<u64, Miss> {
    if cpu.registers.sctlr & sctlr::M == 0 {
        let ipa = va & (u64::MAX >> 8);
        return if ipa >> 52 == 0 {
            Ok(ipa)
        } else {
            Err(Fault::at(Fault::ADDRESS_SIZE, 0).into())
        };
    }
    let (half, input) = half(cpu, va, access)?;
    let tcr = cpu.registers.tcr;
    // FEAT_LPA2's descriptors.
    let ds = bit(tcr, 59) && half.shift != 16;
    let stride = half.shift - 3;
    let mut level = 3 - ((half.va_bits - half.shift - 1) / stride) as i8;
    let wide = ds || (half.shift == 16 && output_bits(tcr) == 52);
    let mut table = root(&half, level, wide);
    let mut taken = Taken::default();
    loop {
        let low = half.shift + (3 - level) as u32 * stride;
        if table >> output_bits(tcr) != 0 {
            return Err(Fault::at(Fault::ADDRESS_SIZE, level).into());
        }
        let high = half.va_bits.min(low + stride) - 1;
        let at = table + (between(input, high, low) >> low) * 8;
        let raw = tables
            .load(at)
            .ok_or(Fault::at(Fault::EXTERNAL_ON_WALK, level))?;
        let descriptor = if cpu.registers.sctlr & SCTLR_EE != 0 {
            raw.swap_bytes()
        } else {
            raw
        };
        let is_table = descriptor & 0b11 == 0b11 && level < 3;
        let is_leaf = match descriptor & 0b11 {
            0b11 => level == 3,
            0b01 => has_blocks(half.shift, level, ds, wide),
            _ => false,
        };
        if is_table {
            table = address(descriptor, half.shift, half.shift, ds, wide);
            if !half.flat {
                taken.write |= bit(descriptor, 62);
                taken.el0 |= bit(descriptor, 61);
                taken.execute[0] |= bit(descriptor, 60);
                taken.execute[1] |= bit(descriptor, 59);
            }
            level += 1;
            continue;
        }
        if !is_leaf {
            return Err(Fault::at(Fault::TRANSLATION, level).into());
        }
        let page = address(descriptor, low, half.shift, ds, wide);
        if page >> output_bits(tcr) != 0 {
            return Err(Fault::at(Fault::ADDRESS_SIZE, level).into());
        }
        let leaf = Leaf {
            at,
            raw,
            descriptor,
            level,
        };
        permit(cpu, tables, &leaf, taken, access)?;
        return Ok(page | between(input, low - 1, 0));
    }
}

/// The root table. It is aligned to what it holds, at least 64 bytes.
fn root(half: &Half, level: i8, wide: bool) -> u64 {
    let low = half.shift + (3 - level) as u32 * (half.shift - 3);
    let bytes = (8u64 << (half.va_bits - low)).max(64);
    let base = between(half.ttbr, 47, 1) & !(bytes - 1);
    if wide {
        // BADDR[5:2] are address bits 51:48.
        base & !0x3f | (half.ttbr >> 2 & 0xf) << 48
    } else {
        base
    }
}

/// Whether an entry of this level may be a block.
const fn has_blocks(shift: u32, level: i8, ds: bool, wide: bool) -> bool {
    match (shift, level) {
        (12, 1 | 2) | (14 | 16, 2) => true,
        (12, 0) | (14, 1) => ds,
        (16, 1) => wide,
        _ => false,
    }
}

/// The address in a descriptor, of what is aligned to `low`.
const fn address(descriptor: u64, low: u32, shift: u32, ds: bool, wide: bool) -> u64 {
    if ds {
        between(descriptor, 49, low) | (descriptor >> 8 & 3) << 50
    } else if shift == 16 && wide {
        between(descriptor, 47, low) | (descriptor >> 12 & 0xf) << 48
    } else {
        between(descriptor, 47, low)
    }
}

/// A block or page: its descriptor, where that is, and as memory holds it.
struct Leaf {
    at: u64,
    raw: u64,
    descriptor: u64,
    level: i8,
}

/// Checks access flag and permissions, and marks the entry used and changed as
/// hardware does where the guest asks for it (FEAT_HAFDBS).
fn permit(
    cpu: &Cpu,
    tables: &mut impl Tables,
    leaf: &Leaf,
    taken: Taken,
    access: Access,
) -> Result<(), Miss> {
    let (tcr, d) = (cpu.registers.tcr, leaf.descriptor);
    let mut marked = d;
    if !bit(d, 10) {
        if !bit(tcr, 39) {
            return Err(Fault::at(Fault::ACCESS_FLAG, leaf.level).into());
        }
        marked |= 1 << 10;
    }
    let dirty = bit(tcr, 40) && bit(tcr, 39) && bit(d, 51);
    let writable = (!bit(d, 7) || dirty) && !taken.write;
    let el0 = bit(d, 6) && !taken.el0;
    let [uxn, pxn] = [
        bit(d, 54) || taken.execute[0],
        bit(d, 53) || taken.execute[1],
    ];
    let sctlr = cpu.registers.sctlr;
    let wxn = sctlr & sctlr::WXN != 0;
    let allowed = match (access.kind, access.as_el0) {
        // It needs not be allowed to read: memory may be for execution only.
        (Kind::Fetch, true) => !(uxn || wxn && writable && el0),
        // What EL0 may write, EL1 does not execute.
        (Kind::Fetch, false) => !pxn && !(writable && (el0 || wxn)),
        (kind, true) => el0 && (kind == Kind::Read || writable),
        (kind, false) => {
            let epan = sctlr & sctlr::EPAN != 0 && !uxn;
            let pan = cpu.pan() && !cpu.is_el0() && (el0 || epan);
            !pan && (kind == Kind::Read || writable)
        }
    };
    if !allowed {
        return Err(Fault::at(Fault::PERMISSION, leaf.level).into());
    }
    if access.kind == Kind::Write {
        marked &= !(1 << 7);
    }
    if marked != d {
        let new = if leaf.raw == d {
            marked
        } else {
            marked.swap_bytes()
        };
        if !tables.exchange(leaf.at, leaf.raw, new) {
            return Err(Miss::Changed);
        }
    }
    Ok(())
}

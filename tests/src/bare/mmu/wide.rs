//! The same map in 48 or 52 bits, of nothing but what the machine has: 1 GiB blocks of
//! 4K, from level 0 or by FEAT_LPA2 from level -1, or 512 MiB blocks of 64K.

use arm64::regs::{ID_AA64MMFR0_EL1, ID_AA64MMFR2_EL1};
use core::cell::UnsafeCell;

use super::{BLOCK, MAX_BITS, TCR};
use crate::bare::machine::Machine;

/// Words of a 64K table; those of 4K use the first 512.
const WORDS: usize = 8192;
/// The root, and of each half (RAM, devices) what leads to a block.
const TABLES: usize = 6;

#[repr(C, align(65536))]
struct Pool(UnsafeCell<[[u64; WORDS]; TABLES]>);

// SAFETY: Written by the boot CPU alone, before the MMU is on.
unsafe impl Sync for Pool {}

static POOL: Pool = Pool(UnsafeCell::new([[0; WORDS]; TABLES]));

/// A descriptor of a table.
const TABLE: u64 = 0b11;

/// How addresses are split.
struct Format {
    /// The lowest bit of the index at each level, from the root to the blocks.
    shifts: &'static [u32],
    stride: u32,
    /// Bits of addresses, of both.
    bits: u64,
    /// Where a descriptor has the address's bits from this one on.
    high: (u32, u32),
    /// TG0, DS.
    tcr: u64,
}

/// 4K.
const PLAIN: Format = Format {
    shifts: &[39, 30],
    stride: 9,
    bits: 48,
    high: (48, 12),
    tcr: 0,
};

/// 4K with FEAT_LPA2: bits 51:50 of an address stand in bits 9:8, where shareability
/// was, which `TCR_EL1` has instead.
const LPA2: Format = Format {
    shifts: &[48, 39, 30],
    stride: 9,
    bits: 52,
    high: (50, 8),
    tcr: 1 << 59,
};

/// 64K with FEAT_LPA: bits 51:48 stand in bits 15:12.
const LPA: Format = Format {
    shifts: &[42, 29],
    stride: 13,
    bits: 52,
    high: (48, 12),
    tcr: 1 << 14,
};

impl Format {
    /// What this CPU has that reaches as far.
    fn reaching(end: u64) -> Option<Self> {
        let field = |field| ID_AA64MMFR0_EL1.read(field);
        let has_lva = ID_AA64MMFR2_EL1.read(ID_AA64MMFR2_EL1::VARange) >= 1;
        let has_64k = field(ID_AA64MMFR0_EL1::TGran64) == 0;
        if end <= 1 << PLAIN.bits {
            Some(PLAIN)
        } else if field(ID_AA64MMFR0_EL1::TGran4) == 1 {
            Some(LPA2)
        } else {
            (has_lva && has_64k).then_some(LPA)
        }
    }

    /// A descriptor of this address, with these bits.
    fn descriptor(&self, pa: u64, bits: u64) -> u64 {
        let (from, to) = self.high;
        let high = pa >> from << to;
        pa & ((1 << from) - 1) | high | bits
    }
}

/// A table's address.
fn table(index: usize) -> u64 {
    let pool = POOL.0.get().expose_provenance() as u64;
    pool + (index * size_of::<[u64; WORDS]>()) as u64
}

/// The root and `TCR_EL1`, where something is beyond the one table of 1 GiB blocks.
pub fn start(machine: &Machine) -> Option<(u64, u64)> {
    let ram = machine.ram.iter().filter(|range| !range.is_empty());
    let devices = [machine.uart, machine.gicd, machine.gicr];
    let ends = ram.clone().map(|range| range.end).chain(devices);
    let end = ends.max()?;
    if end < 1 << MAX_BITS {
        return None;
    }
    let format = Format::reaching(end)?;
    let block = 1 << format.shifts.last()?;
    let mut used = 1;
    for range in ram {
        for at in (range.start & !(block - 1)..range.end).step_by(block as usize) {
            add(&format, &mut used, at, true);
        }
    }
    for device in devices {
        add(&format, &mut used, device & !(block - 1), false);
    }
    // As the narrow one, but for what it reaches; a guest's range can be less.
    let range = ID_AA64MMFR0_EL1.read(ID_AA64MMFR0_EL1::PARange);
    let range = range.min(if format.bits == 52 { 6 } else { 5 });
    let tcr = TCR & !(7 << 32 | 0x3f) | (64 - format.bits) | range << 32 | format.tcr;
    let root = table(0);
    // Bits 51:48 of the root's address are bits 5:2 of the register.
    Some((root & ((1 << 48) - 1) | root >> 48 << 2, tcr))
}

/// Maps a block at its own address, with the tables that lead to it.
fn add(format: &Format, used: &mut usize, at: u64, normal: bool) {
    let mut from = table(0);
    for (n, shift) in format.shifts.iter().enumerate() {
        let index = at >> shift & ((1 << format.stride) - 1);
        let entry = core::ptr::with_exposed_provenance_mut::<u64>((from + index * 8) as usize);
        if n + 1 == format.shifts.len() {
            // Level 1 or 2's block; what is RAM stays so.
            let shareable = if format.high.1 == 8 { 3 << 8 } else { 0 };
            let bits = BLOCK & !shareable | u64::from(normal) << 2;
            // SAFETY: Inside a table of the pool, by the index's width.
            unsafe { entry.write(entry.read() & 1 << 2 | format.descriptor(at, bits)) };
            return;
        }
        // SAFETY: As above.
        let found = unsafe { entry.read() };
        let known = (1..*used).find(|n| format.descriptor(table(*n), TABLE) == found);
        let next = known.unwrap_or_else(|| {
            assert!(*used < TABLES, "RAM and devices are in too many places");
            *used += 1;
            *used - 1
        });
        from = table(next);
        // SAFETY: As above.
        unsafe { entry.write(format.descriptor(from, TABLE)) };
    }
}

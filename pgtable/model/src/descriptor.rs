//! Raw descriptors, read as the walker reads them.
//!
//! Stage-2 layout after the VMSAv8-64 descriptor formats: MemAttr \[5:2\], S2AP
//! \[7:6\], SH \[9:8\], AF \[10\], nT \[16\], DBM \[51\], Contiguous \[52\], XN \[54:53\].
//! EL2 stage 1: AttrIndx \[4:2\], AP\[2\] \[7\], SH \[9:8\], AF \[10\], XN \[54\].

use crate::shape::{HighAddress, Regime, Shape};
use crate::walker::FaultKind;

/// Bit 52: the contiguous hint.
pub const CONTIGUOUS: u64 = 1 << 52;
/// Bit 51: dirty bit modifier.
pub const DBM: u64 = 1 << 51;
/// Bit 10: access flag.
pub const AF: u64 = 1 << 10;
/// Bit 16 of a block: nT (FEAT_BBM level 1).
pub const NT: u64 = 1 << 16;

/// What one 64-bit word says at a level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Desc {
    /// Bit 0 clear: software's to use.
    Invalid,
    /// Next-level table at this physical address.
    Table(u64),
    /// Block or page with this output address.
    Leaf(u64),
    /// Valid in bit 0, but no descriptor: hardware faults on it.
    Bad(BadDesc),
}

/// Why a valid-looking word is no descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadDesc {
    /// A block where the level has none, or 0b01 at level 3.
    BlockLevel,
    /// The address exceeds the output size.
    AddressSize,
}

impl BadDesc {
    /// The fault that a walk reports.
    pub const fn fault(self) -> FaultKind {
        match self {
            Self::BlockLevel => FaultKind::Translation,
            Self::AddressSize => FaultKind::AddressSize,
        }
    }
}

/// Cacheability of Normal memory, allocation hints left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cache {
    /// Non-cacheable.
    NonCacheable,
    /// Write-through.
    WriteThrough,
    /// Write-back.
    WriteBack,
}

/// Memory type of a leaf, as its own stage states it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Memory {
    /// Device: 0 nGnRnE, 1 nGnRE, 2 nGRE, 3 GRE.
    Device(u8),
    /// Normal, to be combined with stage 1 by the weaker.
    Normal {
        /// Outer cacheability.
        outer: Cache,
        /// Inner cacheability.
        inner: Cache,
    },
    /// FWB = 1: write-back whatever stage 1 says.
    ForcedWriteBack,
    /// FWB = 1: non-cacheable unless stage 1 says device.
    ForcedNonCacheable,
    /// FWB = 1: what stage 1 says.
    Stage1,
    /// A reserved encoding.
    Reserved,
}

impl Memory {
    /// True if a cache may hold the memory, so that maintenance matters.
    pub const fn cacheable(self) -> bool {
        match self {
            Self::Normal { outer, inner } => {
                !matches!((outer, inner), (Cache::NonCacheable, Cache::NonCacheable))
            }
            Self::ForcedWriteBack | Self::Stage1 => true,
            _ => false,
        }
    }
}

/// Rights of a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Perms(pub u8);

impl Perms {
    /// Read.
    pub const R: Self = Self(1);
    /// Write.
    pub const W: Self = Self(2);
    /// Execute at EL1 (stage 2), or at EL2 (stage 1).
    pub const X: Self = Self(4);
    /// Execute at EL0 (stage 2).
    pub const UX: Self = Self(8);
    /// Everything at stage 2.
    pub const ALL: Self = Self(15);

    /// True if `self` allows all that `other` does.
    pub const fn covers(self, other: Self) -> bool {
        other.0 & !self.0 == 0
    }
}

impl std::ops::BitOr for Perms {
    type Output = Self;

    fn bitor(self, rhs: Self) -> Self {
        Self(self.0 | rhs.0)
    }
}

/// Attributes of a leaf, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Attrs {
    /// Effective rights; a DBM leaf under hardware dirty state is writable.
    pub perms: Perms,
    /// Memory type.
    pub memory: Memory,
    /// Shareability: 0 non, 2 outer, 3 inner.
    pub sh: u8,
    /// Access flag.
    pub af: bool,
    /// Dirty bit modifier.
    pub dbm: bool,
    /// Contiguous hint, where the level has one.
    pub contiguous: bool,
    /// Software bits 58:55.
    pub software: u8,
}

const fn field(word: u64, hi: u32, lo: u32) -> u64 {
    (word >> lo) & ((1 << (hi - lo + 1)) - 1)
}

impl Shape {
    /// Mask of the in-place output address bits from `low` upwards.
    fn address_mask(&self, low: u8) -> u64 {
        let top = if self.high == HighAddress::Lpa2 {
            50
        } else {
            48
        };
        ((1u64 << top) - 1) & !((1u64 << low) - 1)
    }

    /// Output address of a valid descriptor whose low `low` bits are zero.
    fn address(&self, word: u64, low: u8) -> u64 {
        let low = low + self.scale;
        let mut pa = word & self.address_mask(low);
        match self.high {
            HighAddress::None => {}
            HighAddress::Lpa2 => pa |= field(word, 9, 8) << 50,
            HighAddress::Lpa => pa |= field(word, 15, 12) << 48,
        }
        pa >> self.scale
    }

    /// Decodes `word` as a descriptor of `level`.
    pub fn decode(&self, level: i8, word: u64) -> Desc {
        if word & 1 == 0 {
            return Desc::Invalid;
        }
        let table = word & 2 != 0 && level < 3;
        if !table && word & 2 == 0 && !self.block_ok(level) {
            return Desc::Bad(BadDesc::BlockLevel);
        }
        // A size fault looks at the whole address field, as hardware does.
        let all = self.address(word, self.page_bits);
        if self.oa_bits < 52 && all >> self.oa_bits != 0 {
            return Desc::Bad(BadDesc::AddressSize);
        }
        if table {
            // Tables of a toy may be smaller than a page.
            Desc::Table(all)
        } else {
            Desc::Leaf(self.address(word, self.shift(level)))
        }
    }

    /// Non-zero reserved bits of a leaf's address field: a block whose output
    /// address is not aligned to its size. Bit 16 of a block is nT.
    pub fn misaligned(&self, level: i8, word: u64) -> u64 {
        let inside = self.address_mask(self.page_bits + self.scale)
            & !self.address_mask(self.shift(level) + self.scale);
        let ignore = if level < 3 { NT } else { 0 };
        let high = if self.high == HighAddress::Lpa {
            0xf000
        } else {
            0
        };
        word & inside & !ignore & !high
    }

    /// Decodes the attributes of a leaf; `mair` matters at EL2 stage 1 only.
    pub fn attrs(&self, level: i8, word: u64, mair: u64) -> Attrs {
        let dbm = word & DBM != 0;
        let dirty_managed = dbm && self.hd;
        let (perms, memory) = match self.regime {
            Regime::Stage2 => {
                let mut p = field(word, 7, 6) as u8;
                if dirty_managed {
                    p |= Perms::W.0;
                }
                p |= self.stage2_exec(word);
                (Perms(p), self.stage2_memory(word))
            }
            Regime::El2 => {
                let mut p = Perms::R.0;
                if word & 1 << 7 == 0 || dirty_managed {
                    p |= Perms::W.0;
                }
                if word & 1 << 54 == 0 {
                    p |= Perms::X.0;
                }
                let index = field(word, 4, 2);
                (Perms(p), mair_memory((mair >> (index * 8)) as u8))
            }
        };
        Attrs {
            perms,
            memory,
            sh: if self.ds {
                self.sh0
            } else {
                field(word, 9, 8) as u8
            },
            af: word & AF != 0,
            dbm,
            contiguous: word & CONTIGUOUS != 0 && self.group_log2(level) != 0,
            software: field(word, 58, 55) as u8,
        }
    }

    fn stage2_exec(&self, word: u64) -> u8 {
        let xn = field(word, 54, 53);
        let xn = if self.xnx { xn } else { xn & 2 };
        match (self.xnx, xn) {
            (_, 0) => Perms::X.0 | Perms::UX.0,
            (true, 1) => Perms::UX.0,
            (true, 3) => Perms::X.0,
            _ => 0,
        }
    }

    fn stage2_memory(&self, word: u64) -> Memory {
        let attr = field(word, 5, 2) as u8;
        if self.fwb {
            return match attr {
                0..=3 => Memory::Device(attr),
                5 => Memory::ForcedNonCacheable,
                6 => Memory::ForcedWriteBack,
                7 => Memory::Stage1,
                _ => Memory::Reserved,
            };
        }
        if attr >> 2 == 0 {
            return Memory::Device(attr);
        }
        let cache = |x| match x {
            1 => Some(Cache::NonCacheable),
            2 => Some(Cache::WriteThrough),
            3 => Some(Cache::WriteBack),
            _ => None,
        };
        match (cache(attr >> 2), cache(attr & 3)) {
            (Some(outer), Some(inner)) => Memory::Normal { outer, inner },
            _ => Memory::Reserved,
        }
    }

    /// Bits of a table descriptor that change its meaning besides the address:
    /// the hierarchical controls of stage 1. Stage 2 has none.
    pub const fn table_controls(&self, word: u64) -> u64 {
        match self.regime {
            Regime::El2 if !self.hpd => word & 0x7 << 60,
            _ => 0,
        }
    }
}

/// Decodes one attribute byte of MAIR_EL2.
pub fn mair_memory(byte: u8) -> Memory {
    let cache = |nibble: u8| match nibble {
        4 => Some(Cache::NonCacheable),
        1..=3 | 8..=11 => Some(Cache::WriteThrough),
        5..=7 | 12..=15 => Some(Cache::WriteBack),
        _ => None,
    };
    if byte >> 4 == 0 {
        return if byte & 3 == 0 {
            Memory::Device(byte >> 2 & 3)
        } else {
            Memory::Reserved
        };
    }
    match (cache(byte >> 4), cache(byte & 15)) {
        (Some(outer), Some(inner)) => Memory::Normal { outer, inner },
        _ => Memory::Reserved,
    }
}

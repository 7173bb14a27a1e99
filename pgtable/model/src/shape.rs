//! The shape of a translation regime: what the control registers say.
//!
//! A [`Shape`] is read from raw VTCR_EL2 or TCR_EL2 by the rules of the
//! architecture (the pseudocode functions AArch64.S2InvalidTxSZ, S2InvalidSL,
//! S2InconsistentSL and S2StartLevel), or made by hand as a *toy*: few entries
//! to a table, so that a search can visit every tree.

use crate::features::Features;
use crate::walker::{Fault, FaultKind};

/// The translation regime a tree belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Regime {
    /// Stage 2 of the EL1&0 regime, tagged by VMID.
    Stage2,
    /// Stage 1 of the EL2 regime (HCR_EL2.E2H = 0), not tagged.
    El2,
}

/// Translation granule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Granule {
    /// 4 KiB.
    K4,
    /// 16 KiB.
    K16,
    /// 64 KiB.
    K64,
}

impl Granule {
    /// Reads TG0 of VTCR_EL2 or TCR_EL2 (bits 15:14); 0b11 is reserved.
    pub const fn from_tg0(tg0: u64) -> Option<Self> {
        match tg0 & 3 {
            0 => Some(Self::K4),
            1 => Some(Self::K64),
            2 => Some(Self::K16),
            _ => None,
        }
    }

    /// The code of this granule in the TG and TTL fields of TLBI operands.
    pub const fn tlbi_code(self) -> u64 {
        match self {
            Self::K4 => 1,
            Self::K16 => 2,
            Self::K64 => 3,
        }
    }

    /// log2 of the granule's bytes.
    pub const fn bits(self) -> u8 {
        match self {
            Self::K4 => 12,
            Self::K16 => 14,
            Self::K64 => 16,
        }
    }
}

/// Why registers describe no usable regime: the fault every access would take
/// and the rule that is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetupFault {
    /// What an access would report.
    pub fault: Fault,
    /// The rule, for a person.
    pub rule: &'static str,
}

const fn level0(kind: FaultKind, rule: &'static str) -> SetupFault {
    SetupFault {
        fault: Fault { kind, level: 0 },
        rule,
    }
}

const fn bad<T>(rule: &'static str) -> Result<T, SetupFault> {
    Err(level0(FaultKind::Translation, rule))
}

/// How descriptors of a regime carry output addresses above bit 47.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HighAddress {
    /// No bits above 47.
    None,
    /// Bits 49:48 in place, 51:50 in descriptor bits 9:8 (DS = 1).
    Lpa2,
    /// Bits 51:48 in descriptor bits 15:12 (64K with FEAT_LPA).
    Lpa,
}

/// Geometry and format of one translation regime, ready for walking.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Regime.
    pub regime: Regime,
    /// Granule, which TLBI operands must name.
    pub granule: Granule,
    /// log2 of the bytes that a level-3 entry maps.
    pub page_bits: u8,
    /// Input address bits resolved per level; a table has `2^stride` entries.
    pub stride: u8,
    /// First level of the walk, −1 to 3.
    pub start: i8,
    /// Input address bits.
    pub ia_bits: u8,
    /// Effective output address bits.
    pub oa_bits: u8,
    /// Effective DS: LPA2 descriptors and 64 KiB range bases.
    pub ds: bool,
    /// Where output address bits above 47 are.
    pub high: HighAddress,
    /// Levels at which a block is legal, one bit per level (bit 0 = level 0).
    pub block_levels: u8,
    /// log2 of the contiguous group per level 0..=3; 0 where there is none.
    pub contiguous: [u8; 4],
    /// FWB encoding of stage-2 memory attributes (HCR_EL2.FWB).
    pub fwb: bool,
    /// FEAT_XNX execute-never encoding.
    pub xnx: bool,
    /// Hardware manages the access flag (HA).
    pub ha: bool,
    /// Hardware manages dirty state (HD with HA).
    pub hd: bool,
    /// Shareability of table walks (SH0), which leaves take when DS = 1.
    pub sh0: u8,
    /// Stage-1 hierarchical permissions are disabled (HPD).
    pub hpd: bool,
    /// Toy: descriptor and operand addresses are shifted left by this much,
    /// so that pages below 4 KiB leave the attribute bits free.
    pub scale: u8,
}

/// Physical address bits by PS or PARange code.
const fn ps_bits(code: u64) -> u8 {
    match code {
        0 => 32,
        1 => 36,
        2 => 40,
        3 => 42,
        4 => 44,
        5 => 48,
        _ => 52,
    }
}

const fn min(a: u8, b: u8) -> u8 {
    if a < b { a } else { b }
}

fn bits(word: u64, hi: u32, lo: u32) -> u64 {
    (word >> lo) & ((1 << (hi - lo + 1)) - 1)
}

/// Fields that VTCR_EL2 and TCR_EL2 (E2H = 0) have in the same place.
struct Common {
    granule: Granule,
    ds: bool,
    ia_bits: u8,
    oa_bits: u8,
}

fn common(tcr: u64, f: &Features, wide_64k: bool) -> Result<Common, SetupFault> {
    let Some(granule) = Granule::from_tg0(bits(tcr, 15, 14)) else {
        return bad("TG0 = 0b11 is reserved");
    };
    let have = match granule {
        Granule::K4 => f.granules[0],
        Granule::K16 => f.granules[1],
        Granule::K64 => f.granules[2],
    };
    if !have {
        return bad("TG0 names a granule that this CPU does not implement");
    }
    let ds = f.lpa2 && granule != Granule::K64 && bits(tcr, 32, 32) == 1;
    let t0sz = bits(tcr, 5, 0) as u8;
    let wide = ds || (granule == Granule::K64 && wide_64k);
    let shortest = if wide { 12 } else { 16 };
    let longest = match (f.ttst, granule) {
        (false, _) => 39,
        (true, Granule::K64) => 47,
        (true, _) => 48,
    };
    if t0sz < shortest {
        return bad("T0SZ is below the minimum (16, or 12 with DS or 64K LPA)");
    }
    if t0sz > longest {
        return bad("T0SZ is above the maximum (39, or 48/47 with FEAT_TTST)");
    }
    let mut oa_bits = min(ps_bits(bits(tcr, 18, 16)), f.pa_bits);
    if !ds && granule != Granule::K64 {
        oa_bits = min(oa_bits, 48);
    }
    Ok(Common {
        granule,
        ds,
        ia_bits: 64 - t0sz,
        oa_bits,
    })
}

/// Which high output bits descriptors hold; the 64K field exists whenever the
/// CPU has 52 physical bits, so that a smaller PS turns it into a size fault.
fn high_address(granule: Granule, ds: bool, f: &Features) -> HighAddress {
    if ds {
        HighAddress::Lpa2
    } else if granule == Granule::K64 && f.pa_bits == 52 {
        HighAddress::Lpa
    } else {
        HighAddress::None
    }
}

/// Levels with legal blocks (AArch64.BlockDescSupported).
fn block_levels(granule: Granule, ds: bool, f: &Features) -> u8 {
    let level1 = match granule {
        Granule::K4 => true,
        Granule::K16 => ds,
        Granule::K64 => f.pa_bits == 52,
    };
    let level0 = granule == Granule::K4 && ds;
    u8::from(level0) | u8::from(level1) << 1 | 1 << 2
}

/// log2 of contiguous groups by level.
const fn contiguous(granule: Granule) -> [u8; 4] {
    match granule {
        Granule::K4 => [0, 4, 4, 4],
        Granule::K16 => [0, 0, 5, 7],
        Granule::K64 => [0, 0, 5, 5],
    }
}

impl Shape {
    /// Reads stage 2 from VTCR_EL2 and the FWB bit of HCR_EL2 (bit 46).
    ///
    /// # Errors
    /// The level-0 translation fault that every access would take, with the
    /// rule that the value breaks.
    pub fn stage2(vtcr: u64, hcr: u64, f: &Features) -> Result<Self, SetupFault> {
        let c = common(vtcr, f, f.lva || f.pa_bits == 52)?;
        // AArch64.S2MinTxSZ: an IPA is never wider than a physical address.
        let widest = if c.ds || c.granule == Granule::K64 {
            f.pa_bits
        } else {
            min(f.pa_bits, 48)
        };
        if c.ia_bits > widest {
            return bad("the IPA size exceeds the physical address size");
        }
        let page_bits = c.granule.bits();
        let stride = page_bits - 3;
        let sl0 = bits(vtcr, 7, 6);
        let sl2 = bits(vtcr, 33, 33);
        let start: i8 = match (c.granule, sl0) {
            (Granule::K4, 0) if c.ds && sl2 == 1 => -1,
            (Granule::K4, _) if c.ds && sl2 == 1 => {
                return bad("SL2 = 1 needs SL0 = 0");
            }
            (Granule::K4, 0) => 2,
            (Granule::K4, 1) => 1,
            (Granule::K4, 2) if f.pa_bits >= 44 => 0,
            (Granule::K4, 2) => return bad("4K start level 0 needs 44 PA bits"),
            (Granule::K4, _) if f.ttst => 3,
            (Granule::K4, _) => return bad("4K start level 3 needs FEAT_TTST"),
            (Granule::K16, 0) => 3,
            (Granule::K16, 1) => 2,
            (Granule::K16, 2) if f.pa_bits >= 42 => 1,
            (Granule::K16, 2) => return bad("16K start level 1 needs 42 PA bits"),
            (Granule::K16, _) if c.ds => 0,
            (Granule::K16, _) => return bad("16K start level 0 needs DS = 1"),
            (Granule::K64, 0) => 3,
            (Granule::K64, 1) => 2,
            (Granule::K64, 2) if f.pa_bits >= 44 => 1,
            (Granule::K64, 2) => return bad("64K start level 1 needs 44 PA bits"),
            (Granule::K64, _) => return bad("64K with SL0 = 3 is reserved"),
        };
        // AArch64.S2InconsistentSL, with at most 16 concatenated tables.
        let below = (3 - start) as u8 * stride + page_bits;
        if c.ia_bits < below + 1 {
            return bad("the start level resolves no bit of this IPA size");
        }
        if c.ia_bits > below + stride + 4 {
            return bad("the start level would need more than 16 tables");
        }
        Ok(Self {
            regime: Regime::Stage2,
            granule: c.granule,
            page_bits,
            stride,
            start,
            ia_bits: c.ia_bits,
            oa_bits: c.oa_bits,
            ds: c.ds,
            high: high_address(c.granule, c.ds, f),
            block_levels: block_levels(c.granule, c.ds, f),
            contiguous: contiguous(c.granule),
            fwb: f.fwb && bits(hcr, 46, 46) == 1,
            xnx: f.xnx,
            ha: f.hafdbs >= 1 && bits(vtcr, 21, 21) == 1,
            hd: f.hafdbs >= 2 && bits(vtcr, 22, 21) == 3,
            sh0: bits(vtcr, 13, 12) as u8,
            hpd: true,
            scale: 0,
        })
    }

    /// Reads stage 1 of EL2 from TCR_EL2 with HCR_EL2.E2H = 0.
    ///
    /// # Errors
    /// The level-0 translation fault that every access would take.
    pub fn el2(tcr: u64, f: &Features) -> Result<Self, SetupFault> {
        let c = common(tcr, f, f.lva)?;
        let page_bits = c.granule.bits();
        let stride = page_bits - 3;
        let start = 4 - ((c.ia_bits - 4) / stride) as i8;
        Ok(Self {
            regime: Regime::El2,
            granule: c.granule,
            page_bits,
            stride,
            start,
            ia_bits: c.ia_bits,
            oa_bits: c.oa_bits,
            ds: c.ds,
            high: high_address(c.granule, c.ds, f),
            block_levels: block_levels(c.granule, c.ds, f),
            contiguous: contiguous(c.granule),
            fwb: false,
            xnx: false,
            ha: f.hafdbs >= 1 && bits(tcr, 21, 21) == 1,
            hd: f.hafdbs >= 2 && bits(tcr, 22, 21) == 3,
            sh0: bits(tcr, 13, 12) as u8,
            hpd: bits(tcr, 24, 24) == 1,
            scale: 0,
        })
    }

    /// A small stage-2 shape: pages of `2^page_bits` bytes, `2^stride` entries
    /// to a table, `levels` levels (1 to 4), blocks at levels 1 and 2.
    ///
    /// Descriptor attribute bits stand where the 4K format has them. Where a
    /// page is smaller than 4 KiB, addresses in descriptors and in TLBI
    /// operands are shifted left by `12 - page_bits`.
    pub const fn toy(page_bits: u8, stride: u8, levels: u8) -> Self {
        Self {
            regime: Regime::Stage2,
            granule: Granule::K4,
            page_bits,
            stride,
            start: 4 - levels as i8,
            ia_bits: page_bits + stride * levels,
            oa_bits: 40,
            ds: false,
            high: HighAddress::None,
            block_levels: 0b110,
            contiguous: [0; 4],
            fwb: true,
            xnx: true,
            ha: false,
            hd: false,
            sh0: 3,
            hpd: true,
            scale: 12u8.saturating_sub(page_bits),
        }
    }

    /// Lowest input address bit that `level` resolves: log2 of an entry's span.
    pub const fn shift(&self, level: i8) -> u8 {
        self.page_bits + (3 - level) as u8 * self.stride
    }

    /// Bytes of input space that one entry of `level` spans.
    pub const fn span(&self, level: i8) -> u64 {
        1 << self.shift(level)
    }

    /// Entries of the root, all concatenated tables together.
    pub const fn root_entries(&self) -> u64 {
        1 << (self.ia_bits - self.shift(self.start))
    }

    /// Bytes of a table below the root.
    pub const fn table_bytes(&self) -> u64 {
        8 << self.stride
    }

    /// Alignment that hardware imposes on the root, in bytes: its size, and
    /// 64 where output addresses exceed 48 bits.
    pub const fn root_align(&self) -> u64 {
        let size = self.root_entries() * 8;
        if self.oa_bits > 48 && size < 64 {
            64
        } else {
            size
        }
    }

    /// Entry index of `ia` in a table of `level`; the root's runs over all
    /// concatenated tables.
    pub const fn index(&self, level: i8, ia: u64) -> u64 {
        let index = ia >> self.shift(level);
        if level == self.start {
            index & (self.root_entries() - 1)
        } else {
            index & ((1 << self.stride) - 1)
        }
    }

    /// True if `ia` lies in the input range.
    pub const fn in_range(&self, ia: u64) -> bool {
        self.ia_bits >= 64 || ia >> self.ia_bits == 0
    }

    /// True if a block descriptor is legal at `level`.
    pub const fn block_ok(&self, level: i8) -> bool {
        level >= 0 && level < 3 && self.block_levels >> level & 1 == 1
    }

    /// log2 of the entries in a contiguous group at `level`, 0 if none.
    pub const fn group_log2(&self, level: i8) -> u8 {
        if level < 0 {
            0
        } else {
            self.contiguous[level as usize]
        }
    }

    /// Decodes the table base of VTTBR_EL2 or TTBR0_EL2 for this shape.
    ///
    /// Hardware ignores the bits below [`root_align`](Self::root_align); the
    /// second value is those bits of the address, zero in a right program.
    ///
    /// # Errors
    /// An address size fault at level 0 where the base exceeds the output size.
    pub fn root(&self, ttbr: u64) -> Result<(u64, u64), SetupFault> {
        let mut base = bits(ttbr, 47, 1) << 1;
        if self.oa_bits > 48 {
            base &= !0x3f;
            base |= bits(ttbr, 5, 2) << 48;
        } else if base >> self.oa_bits != 0 {
            return Err(level0(
                FaultKind::AddressSize,
                "the table base exceeds the output size",
            ));
        }
        let low = self.root_align() - 1;
        Ok((base & !low, base & low))
    }
}

/// VMID of a VTTBR_EL2 value: bits 63:48, of which the upper eight count only
/// with VTCR_EL2.VS = 1 and FEAT_VMID16.
pub fn vmid(vttbr: u64, vtcr: u64, f: &Features) -> u16 {
    let vmid = (vttbr >> 48) as u16;
    if f.vmid16 && vtcr >> 19 & 1 == 1 {
        vmid
    } else {
        vmid & 0xff
    }
}

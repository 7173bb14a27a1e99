//! TLB invalidation instructions and their raw operands.
//!
//! Operand of the by-address forms: TTL \[47:44\] (granule code and level) and
//! the address shifted right by 12 for every granule. Of the range forms: TG
//! \[47:46\], SCALE \[45:44\], NUM \[43:39\], TTL \[38:37\], BaseADDR \[36:0\] in units
//! of the granule, or of 64 KiB when DS = 1.

use crate::features::Features;
use crate::shape::{Granule, Regime, Shape};

/// Which PEs an instruction reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reach {
    /// The PE itself (no suffix).
    Local,
    /// Inner shareable (`IS`).
    Inner,
    /// Outer shareable (`OS`, FEAT_TLBIOS).
    Outer,
}

/// What an instruction names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TlbiKind {
    /// Stage 2 by IPA.
    Ipas2e1,
    /// Stage 2 by IPA, last level.
    Ipas2le1,
    /// Stage 2 by IPA range.
    Ripas2e1,
    /// Stage 2 by IPA range, last level.
    Ripas2le1,
    /// Stage 1 of the current VMID: combined entries with it.
    Vmalle1,
    /// Both stages of the current VMID.
    Vmalls12e1,
    /// Both stages of every VMID.
    Alle1,
    /// Stage 1 of the current VMID by virtual address. What it leaves is not
    /// known to a judge of stage 2, so it cleans nothing; errata ask for it.
    Vae1,
    /// The same, last level.
    Vale1,
    /// EL2 stage 1 by address.
    Vae2,
    /// EL2 stage 1 by address, last level.
    Vale2,
    /// EL2 stage 1 by range.
    Rvae2,
    /// EL2 stage 1 by range, last level.
    Rvale2,
    /// All of EL2.
    Alle2,
}

/// A TLBI instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TlbiOp {
    /// What it names.
    pub kind: TlbiKind,
    /// Whom it reaches.
    pub reach: Reach,
}

const NAMES: [(&str, TlbiKind); 14] = [
    ("ipas2e1", TlbiKind::Ipas2e1),
    ("ipas2le1", TlbiKind::Ipas2le1),
    ("ripas2e1", TlbiKind::Ripas2e1),
    ("ripas2le1", TlbiKind::Ripas2le1),
    ("vmalle1", TlbiKind::Vmalle1),
    ("vmalls12e1", TlbiKind::Vmalls12e1),
    ("alle1", TlbiKind::Alle1),
    ("vae1", TlbiKind::Vae1),
    ("vale1", TlbiKind::Vale1),
    ("vae2", TlbiKind::Vae2),
    ("vale2", TlbiKind::Vale2),
    ("rvae2", TlbiKind::Rvae2),
    ("rvale2", TlbiKind::Rvale2),
    ("alle2", TlbiKind::Alle2),
];

impl TlbiKind {
    /// True for the range forms (FEAT_TLBIRANGE).
    pub const fn is_range(self) -> bool {
        matches!(
            self,
            Self::Ripas2e1 | Self::Ripas2le1 | Self::Rvae2 | Self::Rvale2
        )
    }

    /// True for the last-level forms.
    pub const fn leaf_only(self) -> bool {
        matches!(
            self,
            Self::Ipas2le1 | Self::Ripas2le1 | Self::Vale2 | Self::Rvale2
        )
    }

    /// True for the forms without an operand.
    pub const fn is_all(self) -> bool {
        matches!(
            self,
            Self::Vmalle1 | Self::Vmalls12e1 | Self::Alle1 | Self::Alle2
        )
    }

    /// True for stage 1 of EL1&0 by address.
    pub const fn is_stage1_address(self) -> bool {
        matches!(self, Self::Vae1 | Self::Vale1)
    }

    /// Regime whose entries it names.
    pub const fn regime(self) -> Regime {
        match self {
            Self::Vae2 | Self::Vale2 | Self::Rvae2 | Self::Rvale2 | Self::Alle2 => Regime::El2,
            _ => Regime::Stage2,
        }
    }
}

impl TlbiOp {
    /// The inner-shareable form of `kind`.
    pub const fn is(kind: TlbiKind) -> Self {
        Self {
            kind,
            reach: Reach::Inner,
        }
    }

    /// The local form of `kind`.
    pub const fn local(kind: TlbiKind) -> Self {
        Self {
            kind,
            reach: Reach::Local,
        }
    }

    /// Reads a lower-case mnemonic such as `ripas2e1is`.
    pub fn parse(name: &str) -> Option<Self> {
        let with = |stem: &str, reach| {
            NAMES
                .iter()
                .find(|(n, _)| *n == stem)
                .map(|&(_, kind)| Self { kind, reach })
        };
        with(name, Reach::Local)
            .or_else(|| name.strip_suffix("is").and_then(|s| with(s, Reach::Inner)))
            .or_else(|| name.strip_suffix("os").and_then(|s| with(s, Reach::Outer)))
    }
}

impl std::fmt::Display for TlbiOp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let stem = NAMES.iter().find(|(_, k)| *k == self.kind);
        f.write_str(stem.map_or("?", |(n, _)| n))?;
        f.write_str(match self.reach {
            Reach::Local => "",
            Reach::Inner => "is",
            Reach::Outer => "os",
        })
    }
}

/// Why an operand makes an instruction invalidate nothing it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mismatch {
    /// TG (or the granule half of TTL) is not the regime's granule.
    Tg,
}

/// An operand of a by-address or range form, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First input address.
    pub lo: u64,
    /// One past the last.
    pub hi: u64,
    /// Level hint: only leaves of this level are certain to go.
    pub level: Option<i8>,
    /// Last-level form: walk-cache entries stay.
    pub leaf_only: bool,
    /// Set if nothing at all is certain to go.
    pub mismatch: Option<Mismatch>,
}

impl Extent {
    /// True if walk-cache entries of the range go as well.
    pub const fn tables(&self) -> bool {
        !self.leaf_only && self.level.is_none()
    }

    /// True if a leaf of `level` in the range goes.
    pub fn leaf(&self, level: i8) -> bool {
        self.level.is_none_or(|l| l == level)
    }
}

/// Why an instruction is not to be executed at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadOp {
    /// FEAT_TLBIRANGE is absent: the instruction is undefined.
    NoRange,
    /// Bits that the architecture reserves are set.
    Reserved(u64),
}

/// A level hint of the by-address forms or of the range forms; reserved
/// combinations mean no hint.
fn hint(granule: Granule, ds: bool, level: u64) -> Option<i8> {
    match (granule, level) {
        (Granule::K4, 0) if ds => Some(0),
        (_, 0) => None,
        (Granule::K16, 1) if !ds => None,
        _ => Some(level as i8),
    }
}

/// Decodes the raw operand of a by-address or range form.
///
/// # Errors
/// Why the instruction or its operand is not legal on this CPU.
pub fn decode(kind: TlbiKind, xt: u64, shape: &Shape, f: &Features) -> Result<Extent, BadOp> {
    let leaf_only = kind.leaf_only();
    let code = shape.granule.tlbi_code();
    if kind.is_range() {
        if !f.tlbirange {
            return Err(BadOp::NoRange);
        }
        let reserved = xt & 0xffff << 48;
        if reserved != 0 {
            return Err(BadOp::Reserved(reserved));
        }
        let unit = if shape.ds { 16 } else { shape.page_bits };
        let (scale, num) = (xt >> 44 & 3, xt >> 39 & 0x1f);
        let lo = (xt & 0x1f_ffff_ffff) << unit;
        let mut len = (num + 1) << (5 * scale + 1) << shape.page_bits;
        if f.errata.range_len_32 {
            len &= 0xffff_ffff;
        }
        let level = match xt >> 37 & 3 {
            // The range form has no code for level 0.
            0 => None,
            l => hint(shape.granule, shape.ds, l),
        };
        return Ok(Extent {
            lo,
            hi: lo.saturating_add(len),
            level,
            leaf_only,
            mismatch: (xt >> 46 & 3 != code).then_some(Mismatch::Tg),
        });
    }
    // Stage 2 names bits 51:12 (bits 43:40 reserved), EL2 bits 55:12.
    let mut reserved = match shape.regime {
        Regime::Stage2 => xt & (0xffff << 48 | 0xf << 40),
        Regime::El2 => xt & 0xffff << 48,
    };
    if !f.ttl {
        reserved |= xt & 0xf << 44;
    }
    if reserved != 0 {
        return Err(BadOp::Reserved(reserved));
    }
    let lo = ((xt & 0xfff_ffff_ffff) << 12 >> shape.scale) & !((1 << shape.page_bits) - 1);
    let ttl = xt >> 44 & 0xf;
    let (level, mismatch) = match (ttl >> 2, ttl & 3) {
        (0, _) => (None, None),
        (tg, l) if tg == code => (hint(shape.granule, shape.ds, l), None),
        _ => (None, Some(Mismatch::Tg)),
    };
    Ok(Extent {
        lo,
        hi: lo + (1 << shape.page_bits),
        level,
        leaf_only,
        mismatch,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(ds: bool) -> Shape {
        // 4K, 40 bits, L1 x 2; with DS the same.
        let vtcr = 2 << 16 | 1 << 6 | 24 | u64::from(ds) << 32;
        Shape::stage2(vtcr, 0, &Features::max()).unwrap()
    }

    fn range(xt: u64, ds: bool) -> Extent {
        decode(TlbiKind::Ripas2e1, xt, &shape(ds), &Features::max()).unwrap()
    }

    /// The vectors of the facts page: 8 GiB at 1 GiB both ways, 512 pages,
    /// and the operand that a wrong NUM mask once produced.
    #[test]
    fn range_vectors() {
        let e = range(0x0000_7f80_0004_0000, false);
        assert_eq!((e.lo, e.hi), (0x4000_0000, 0x4000_0000 + (8 << 30)));
        assert_eq!((e.mismatch, e.level), (None, None));
        let e = range(0x0000_7f80_0000_4000, true);
        assert_eq!((e.lo, e.hi), (0x4000_0000, 0x4000_0000 + (8 << 30)));
        let e = range(0x0000_5380_0004_0000, false);
        assert_eq!((e.lo, e.hi), (0x4000_0000, 0x4000_0000 + (512 << 12)));
        let wrong = decode(
            TlbiKind::Ripas2e1,
            0xffff_7080_0004_0000,
            &shape(false),
            &Features::max(),
        );
        assert_eq!(wrong, Err(BadOp::Reserved(0xffff << 48)));
    }

    #[test]
    fn range_needs_the_feature_and_the_granule() {
        let none = Features {
            tlbirange: false,
            ..Features::max()
        };
        let got = decode(TlbiKind::Ripas2e1, 1 << 46, &shape(false), &none);
        assert_eq!(got, Err(BadOp::NoRange));
        // VTCR's code for 16K is 2 and for 64K 1; TLBI's are 2 and 3.
        assert_eq!(range(2 << 46, false).mismatch, Some(Mismatch::Tg));
        assert_eq!(range(0, false).mismatch, Some(Mismatch::Tg));
        let k64 = Shape::stage2(6 << 16 | 1 << 14 | 1 << 6 | 24, 0, &Features::max()).unwrap();
        let with = |tg: u64| decode(TlbiKind::Ripas2e1, tg << 46, &k64, &Features::max());
        assert_eq!(with(1).unwrap().mismatch, Some(Mismatch::Tg));
        assert_eq!(with(3).unwrap().mismatch, None);
    }

    #[test]
    fn range_length_erratum_wraps_at_four_gigabytes() {
        let mut f = Features::max();
        f.errata.range_len_32 = true;
        let long = |scale: u64, num: u64| {
            let xt = 1 << 46 | scale << 44 | num << 39;
            let e = decode(TlbiKind::Ripas2e1, xt, &shape(false), &f).unwrap();
            e.hi - e.lo
        };
        assert_eq!(long(3, 15), 0, "4K, scale 3, num 15 is 4 GiB");
        assert_eq!(long(3, 14), 15 << 28);
    }

    #[test]
    fn address_forms_shift_by_12_for_every_granule() {
        let f = Features::max();
        for (tg0, sl0, code) in [(0, 1, 1u64), (2, 1, 2), (1, 1, 3)] {
            let vtcr = 5 << 16 | tg0 << 14 | sl0 << 6 | 26;
            let s = Shape::stage2(vtcr, 0, &f).unwrap();
            let ia = 0x12_3456_0000;
            let e = decode(TlbiKind::Ipas2e1, ia >> 12, &s, &f).unwrap();
            assert_eq!((e.lo, e.hi), (ia, ia + (1 << s.page_bits)));
            assert!(e.tables() && e.leaf(3) && e.leaf(2));
            // A hint names leaves of one level, and no table.
            let hinted = ia >> 12 | code << 46 | 3 << 44;
            let e = decode(TlbiKind::Ipas2e1, hinted, &s, &f).unwrap();
            assert!(!e.tables() && e.leaf(3) && !e.leaf(2));
            let other = ia >> 12 | (code % 3 + 1) << 46 | 3 << 44;
            let e = decode(TlbiKind::Ipas2e1, other, &s, &f).unwrap();
            assert_eq!(e.mismatch, Some(Mismatch::Tg));
        }
        let s = shape(false);
        let old = Features::v8_0();
        let ttl = decode(TlbiKind::Ipas2e1, 7 << 44, &s, &old);
        assert_eq!(ttl, Err(BadOp::Reserved(7 << 44)));
    }

    #[test]
    fn names_round_trip() {
        for (_, kind) in NAMES {
            for reach in [Reach::Local, Reach::Inner, Reach::Outer] {
                let op = TlbiOp { kind, reach };
                assert_eq!(TlbiOp::parse(&op.to_string()), Some(op));
            }
        }
        assert_eq!(TlbiOp::parse("vmalls12e1xs"), None);
    }
}

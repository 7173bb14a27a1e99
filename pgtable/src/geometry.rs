//! Which tables a regime has: granule, sizes, start level, formats.
//!
//! A [`Stage2Config`] is checked once against the architecture's rules and
//! becomes a [`Geometry`], whose arithmetic cannot fail. [`Shape`] is what
//! stage 2 and EL2's stage 1 have in common, and all that walkers see.

use crate::addr::{Level, Pa, Vmid};
use crate::errata::Errata;
use crate::granule::Granule;
use core::fmt;

/// How output addresses above bit 47 are kept in a descriptor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OaForm {
    /// Up to 48 bits, in place.
    Plain48,
    /// 64K with FEAT_LPA: OA\[51:48\] in descriptor bits \[15:12\].
    Lpa64k,
    /// DS=1 (FEAT_LPA2, 4K and 16K): OA\[49:48\] in place, OA\[51:50\] in
    /// descriptor bits \[9:8\], where shareability is otherwise.
    Lpa2,
}

/// The arithmetic of a tree of tables. Everything is precomputed, so that a
/// granule chosen at run time costs a walker shifts by a register and masks
/// from memory, no more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    // What a walk looks at, as wide as registers are.
    /// OA bits kept in place.
    low_mask: u64,
    /// Where a descriptor keeps the other OA bits.
    high_field: u64,
    index_mask: usize,
    root_mask: usize,
    page_mask: u64,
    /// Address bits that lie outside the input and the output space.
    ia_over: u64,
    oa_over: u64,
    /// Bytes that an entry of level −1, 0, 1, 2, 3 covers.
    spans: [u64; 8],
    page_bits: u32,
    stride: u32,
    root_shift: u32,
    /// How far up the bits of `high_field` go.
    high_shift: u32,
    start: i8,
    /// Bit `l` set: a block may stand at level `l` (bit 3: pages).
    leaf_levels: u8,
    ia_bits: u8,
    oa_bits: u8,
    /// log2 of the address where the bits of `high_field` begin.
    high_from: u8,
    granule: Granule,
    oa_form: OaForm,
}

impl Shape {
    pub(crate) fn new(
        granule: Granule,
        start: i8,
        ia_bits: u8,
        oa_bits: u8,
        oa_form: OaForm,
        largest: i8,
        pa_52: bool,
    ) -> Self {
        let page_bits = u32::from(granule.page_bits());
        let stride = u32::from(granule.stride());
        let top_block = match (granule, oa_form) {
            (Granule::K4, OaForm::Lpa2) => 0,
            (Granule::K4, _) | (Granule::K16, OaForm::Lpa2) => 1,
            (Granule::K64, _) if pa_52 => 1,
            (Granule::K16 | Granule::K64, _) => 2,
        };
        let top_block = top_block.max(largest).max(start);
        let mut leaf_levels = 0u8;
        let mut level = top_block;
        while level <= 3 {
            leaf_levels |= 1 << level;
            level += 1;
        }
        let root_shift = page_bits + stride * (3 - start) as u32;
        let spans = spans(page_bits, stride);
        // A root may be smaller than a page, never without an entry.
        let root_entries = 1usize << u32::from(ia_bits).saturating_sub(root_shift);
        let low_top = match oa_form {
            OaForm::Plain48 | OaForm::Lpa64k => 48,
            OaForm::Lpa2 => 50,
        };
        let (high_field, high_from, high_shift) = match oa_form {
            OaForm::Plain48 => (0, 48, 0),
            OaForm::Lpa64k => (0xf << 12, 48, 48 - 12),
            OaForm::Lpa2 => (0x3 << 8, 50, 50 - 8),
        };
        Self {
            low_mask: (1u64 << low_top) - (1u64 << page_bits),
            high_field,
            index_mask: (1 << stride) - 1,
            root_mask: root_entries - 1,
            page_mask: (1 << page_bits) - 1,
            ia_over: u64::MAX << ia_bits,
            oa_over: u64::MAX << oa_bits,
            spans,
            page_bits,
            stride,
            root_shift,
            high_shift,
            start,
            leaf_levels,
            ia_bits,
            oa_bits,
            high_from,
            granule,
            oa_form,
        }
    }

    /// A small stage-2 shape for searches that visit every tree: 4K pages,
    /// 2^`stride` entries a table, `levels` (2 to 4) levels, blocks at levels
    /// 1 and 2. No CPU has it.
    #[cfg(any(test, feature = "toy"))]
    pub(crate) fn toy(stride: u8, levels: u8) -> Self {
        let start = 4 - levels as i8;
        let real = Self::new(Granule::K4, 1, 48, 48, OaForm::Plain48, 1, false);
        let ia_bits = 12 + stride * levels;
        Self {
            spans: spans(12, u32::from(stride)),
            stride: u32::from(stride),
            start,
            ia_bits,
            ia_over: u64::MAX << ia_bits,
            leaf_levels: real.leaf_levels & !((1 << start.max(0)) - 1),
            root_shift: u32::from(12 + stride * (levels - 1)),
            root_mask: (1 << stride) - 1,
            index_mask: (1 << stride) - 1,
            ..real
        }
    }

    /// The granule.
    #[inline]
    pub const fn granule(&self) -> Granule {
        self.granule
    }

    /// How output addresses are written into descriptors.
    #[inline]
    pub const fn oa_form(&self) -> OaForm {
        self.oa_form
    }

    /// Bits of an input address: addresses below 2^this are translated.
    #[inline]
    pub const fn ia_bits(&self) -> u8 {
        self.ia_bits
    }

    /// Bits of an output address.
    #[inline]
    pub const fn oa_bits(&self) -> u8 {
        self.oa_bits
    }

    /// The level where a walk starts.
    #[inline]
    pub const fn start(&self) -> Level {
        Self::level(self.start)
    }

    /// Entries of the root, of all its concatenated tables together.
    #[inline]
    pub const fn root_entries(&self) -> usize {
        self.root_mask + 1
    }

    /// Root tables: 1, or 2 to 16 when concatenated.
    pub const fn root_tables(&self) -> usize {
        let tables = self.root_entries() >> self.stride;
        if tables == 0 { 1 } else { tables }
    }

    /// Bytes of the root, a power of two and at least one page.
    pub const fn root_bytes(&self) -> u64 {
        (self.root_tables() as u64) << self.page_bits
    }

    /// The alignment that the root needs, in bytes: its whole size, so that
    /// the hardware's masking of `BADDR` removes nothing.
    pub const fn root_align(&self) -> u64 {
        self.root_bytes()
    }

    /// log2 of the bytes that one entry of `level` covers.
    #[inline]
    pub const fn span_bits(&self, level: Level) -> u8 {
        self.shift(level.get()) as u8
    }

    /// Bytes that one entry of `level` covers.
    #[inline]
    pub const fn span(&self, level: Level) -> u64 {
        self.span_at(level.get())
    }

    /// True when a leaf (block or page) may stand at `level`.
    #[inline]
    pub const fn leaf_ok(&self, level: Level) -> bool {
        self.leaf_at(level.get())
    }

    /// The index of `ia` in a table of `level`; at the start level it counts
    /// through all concatenated tables.
    #[inline]
    pub const fn index(&self, level: Level, ia: u64) -> usize {
        self.index_at(level.get(), ia & ((1 << self.ia_bits) - 1))
    }

    /// Entries of a table of `level`.
    #[inline]
    pub const fn entries(&self, level: Level) -> usize {
        self.entries_at(level.get())
    }

    /// The shape of a tree that hangs under one entry of `level`, with
    /// addresses counted from that entry's first.
    #[cfg(feature = "extra")]
    pub(crate) const fn below(&self, level: i8) -> Self {
        let ia_bits = self.shift(level);
        Self {
            start: level + 1,
            ia_bits: ia_bits as u8,
            ia_over: u64::MAX << ia_bits,
            root_shift: self.shift(level + 1),
            root_mask: self.index_mask,
            ..*self
        }
    }

    /// The same with leaves of [`cleaned_top`](Self::cleaned_top) at most.
    const fn cleaned(self) -> Self {
        Self {
            leaf_levels: self.leaf_levels & (u8::MAX << self.cleaned_top()),
            ..self
        }
    }

    #[inline]
    pub(crate) const fn level(level: i8) -> Level {
        match Level::new(level) {
            Some(level) => level,
            None => Level::L3,
        }
    }

    #[inline]
    pub(crate) const fn start_raw(&self) -> i8 {
        self.start
    }

    // The feature `fixed-4k` is there to measure what the choice of a granule
    // at run time costs; nothing else uses it.
    #[inline]
    pub(crate) const fn stride(&self) -> u32 {
        if cfg!(feature = "fixed-4k") {
            9
        } else {
            self.stride
        }
    }

    #[inline]
    pub(crate) const fn page_bits(&self) -> u32 {
        if cfg!(feature = "fixed-4k") {
            12
        } else {
            self.page_bits
        }
    }

    #[inline]
    pub(crate) const fn root_shift(&self) -> u32 {
        self.root_shift
    }

    #[inline]
    pub(crate) const fn index_mask(&self) -> usize {
        if cfg!(feature = "fixed-4k") {
            511
        } else {
            self.index_mask
        }
    }

    /// The index bits of a root's entries, of all concatenated tables.
    #[inline]
    pub(crate) const fn root_mask(&self) -> usize {
        self.root_mask
    }

    #[inline]
    pub(crate) const fn shift(&self, level: i8) -> u32 {
        // No overflow: 16 + 13 * 4 at most.
        self.page_bits()
            .wrapping_add(self.stride().wrapping_mul(3i8.wrapping_sub(level) as u32))
    }

    #[inline]
    pub(crate) const fn span_at(&self, level: i8) -> u64 {
        if cfg!(feature = "fixed-4k") {
            return bytes(self.shift(level));
        }
        // Levels begin at -1, and the array is as long as the mask wants it.
        self.spans[level.wrapping_add(1) as usize & 7]
    }

    #[inline]
    pub(crate) const fn leaf_at(&self, level: i8) -> bool {
        level >= 0 && self.leaf_levels.wrapping_shr(level as u32) & 1 != 0
    }

    /// Entries of a table that is no root.
    #[inline]
    pub(crate) const fn table_entries(&self) -> usize {
        self.index_mask().wrapping_add(1)
    }

    #[inline]
    pub(crate) const fn entries_at(&self, level: i8) -> usize {
        if level == self.start {
            self.root_entries()
        } else {
            self.table_entries()
        }
    }

    /// `ia` must lie inside the space.
    #[inline]
    pub(crate) const fn index_at(&self, level: i8, ia: u64) -> usize {
        let index = ia.wrapping_shr(self.shift(level)) as usize;
        if level == self.start {
            index
        } else {
            index & self.index_mask()
        }
    }

    /// One past the last translated input address.
    #[inline]
    pub(crate) const fn ia_end(&self) -> u64 {
        bytes(self.ia_bits as u32)
    }

    /// The bits of an input address that a space of this size has not.
    #[inline]
    pub(crate) const fn ia_over(&self) -> u64 {
        self.ia_over
    }

    /// As [`ia_over`](Self::ia_over) for output addresses.
    #[inline]
    pub(crate) const fn oa_over(&self) -> u64 {
        self.oa_over
    }

    /// Puts an output address where the descriptor keeps it.
    #[inline]
    pub(crate) const fn encode_oa(&self, oa: u64) -> u64 {
        (oa & self.low_mask) | (oa.wrapping_shr(self.high_shift) & self.high_field)
    }

    /// Reads the output address of a descriptor.
    #[inline]
    pub(crate) const fn decode_oa(&self, raw: u64) -> u64 {
        let low = raw & self.low_mask;
        if raw & self.high_field == 0 {
            return low;
        }
        self.decode_high(raw)
    }

    /// Few machines have memory above 2^48: out of the way of walks.
    #[cold]
    #[inline(never)]
    const fn decode_high(&self, raw: u64) -> u64 {
        (raw & self.low_mask) | (raw & self.high_field).wrapping_shl(self.high_shift)
    }

    /// The descriptor bits that hold the output address.
    #[inline]
    pub(crate) const fn oa_mask(&self) -> u64 {
        self.low_mask | self.high_field
    }

    /// How far `oa` may grow while its descriptor grows by the same number:
    /// up to the address where bits kept elsewhere change.
    #[inline]
    pub(crate) const fn linear_left(&self, oa: u64) -> u64 {
        let from = bytes(self.high_from as u32);
        from - (oa & (from - 1))
    }

    /// `[start, start + size)` as `(start, end)` when it lies inside the
    /// input space and keeps to pages.
    #[inline]
    pub(crate) fn check_ia(&self, start: u64, size: u64) -> Result<u64, crate::Error> {
        // A sum that wraps is below one of its parts, and both are checked.
        let end = start.wrapping_add(size);
        let limit = self.ia_end();
        if (start > limit) | (size > limit) | (end > limit) {
            return Err(crate::Error::Range);
        }
        if (start | size) & self.page_mask() != 0 {
            return Err(crate::Error::Align);
        }
        Ok(end)
    }

    /// As [`check_ia`](Self::check_ia) for output addresses.
    #[inline]
    pub(crate) fn check_oa(&self, start: u64, size: u64) -> Result<(), crate::Error> {
        let end = start.wrapping_add(size);
        let limit = bytes(self.oa_bits as u32);
        if (start > limit) | (size > limit) | (end > limit) {
            return Err(crate::Error::Range);
        }
        if start & self.page_mask() != 0 {
            return Err(crate::Error::Align);
        }
        Ok(())
    }

    /// True when a table may stand at `pa`: whoever writes its descriptor would
    /// lose the bits that are not a page's, or not in the output space.
    #[inline]
    pub(crate) const fn is_table_page(&self, pa: u64) -> bool {
        pa & (self.oa_over | self.page_mask()) == 0
    }

    /// The bits of an address below a page.
    #[inline]
    pub(crate) const fn page_mask(&self) -> u64 {
        if cfg!(feature = "fixed-4k") {
            0xfff
        } else {
            self.page_mask
        }
    }

    /// The level of the largest leaves whose memory is cleaned in one step of
    /// [`CACHE_STEP`](crate::error::CACHE_STEP) at most.
    pub(crate) const fn cleaned_top(&self) -> i8 {
        let mut level = 3;
        while level > 0 && bytes(self.shift(level - 1)) <= crate::error::CACHE_STEP {
            level -= 1;
        }
        level
    }

    /// The largest level, at or below `top`, whose leaf fits at `ia`, `oa`
    /// and in `left` bytes.
    #[inline]
    pub(crate) fn leaf_level(&self, ia: u64, oa: u64, left: u64, top: i8) -> i8 {
        let mut level = 3;
        let mut shift = self.page_bits().wrapping_add(self.stride());
        while level > top
            && self.leaf_at(level - 1)
            && (ia | oa) & bytes(shift).wrapping_sub(1) == 0
            && left >= bytes(shift)
        {
            level -= 1;
            shift = shift.wrapping_add(self.stride());
        }
        level
    }
}

/// [`Shape`]'s table of spans: 0 past level 3, and at a level −1 that 64K
/// cannot have.
const fn spans(page_bits: u32, stride: u32) -> [u64; 8] {
    let mut spans = [0; 8];
    let mut up = 0;
    while up <= 4 {
        let bits = page_bits + stride * up;
        spans[4 - up as usize] = if bits < 64 { 1 << bits } else { 0 };
        up += 1;
    }
    spans
}

/// 2^`bits`, for bits below 64 as all of a [`Shape`] are: without the check
/// that a shift by a variable brings along.
#[inline]
pub(crate) const fn bytes(bits: u32) -> u64 {
    1u64.wrapping_shl(bits)
}

/// Which start level a configuration takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Start {
    /// KVM's policy: as few levels as 16 concatenated root tables allow, at
    /// least two, so that 2 MiB, 32 MiB or 512 MiB blocks remain possible.
    Concatenate,
    /// This level, if it is legal for the sizes.
    At(Level),
}

/// What the CPUs of the machine can do, as far as tables are concerned.
///
/// The default is a CPU of Armv8.0: nothing optional.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Features {
    /// FEAT_TLBIRANGE: `RIPAS2E1IS` and `RVAE2IS` exist.
    pub tlb_range: bool,
    /// FEAT_TTL: level hints in TLBI operands.
    pub ttl: bool,
    /// FEAT_S2FWB, and `HCR_EL2.FWB` will be set.
    pub fwb: bool,
    /// FEAT_XNX: execute permission apart for EL0 and EL1.
    pub xnx: bool,
    /// FEAT_VMID16, `VTCR_EL2.VS` will be set.
    pub vmid16: bool,
    /// FEAT_HAFDBS access flag, `VTCR_EL2.HA` will be set.
    pub hw_access_flag: bool,
    /// FEAT_HAFDBS dirty state, `VTCR_EL2.HD` will be set. Needs the former.
    pub hw_dirty: bool,
    /// FEAT_TTST: small tables, start level 3 with 4K.
    pub ttst: bool,
    /// FEAT_TTCNP: all CPUs share tables of one VMID; sets `CnP`.
    pub cnp: bool,
    /// `CTR_EL0.DIC`: no instruction cache maintenance is needed.
    pub dic: bool,
    /// FEAT_BBM level 2 on CPUs that do not abort: sizes may change without
    /// a break. Off unless somebody has checked the CPU.
    pub bbm2: bool,
}

/// A stage 2 that somebody asks for. [`validate`](Self::validate) says
/// whether the architecture has it.
///
/// ```
/// use pgtable::{Granule, Stage2Config, Level};
/// let geometry = Stage2Config::new(Granule::K4, 40, 40).validate().unwrap();
/// assert_eq!(geometry.start(), Level::L1);
/// assert_eq!(geometry.root_tables(), 2);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stage2Config {
    /// The granule.
    pub granule: Granule,
    /// Bits of an IPA, 32 to 52.
    pub ipa_bits: u8,
    /// `ID_AA64MMFR0_EL1.PARange` in bits: 32, 36, 40, 42, 44, 48 or 52.
    pub pa_bits: u8,
    /// FEAT_LPA2 for this granule's stage 2, `VTCR_EL2.DS` will be set.
    pub lpa2: bool,
    /// Which start level.
    pub start: Start,
    /// The largest block to use; the architecture may allow less.
    pub largest_block: Level,
    /// The CPU's features.
    pub features: Features,
    /// Errors of the machine to work around.
    pub errata: Errata,
}

/// A combination that the architecture does not have: which rule it breaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConfigError {
    /// Input address bits outside 32..=52.
    InputSize {
        /// The bits asked for.
        bits: u8,
    },
    /// A physical size that `PARange` cannot say.
    PaSize {
        /// The bits asked for.
        bits: u8,
    },
    /// DS is a matter of 4K and 16K: 64K has 52 bits by FEAT_LPA.
    Lpa2With64k,
    /// T0SZ below its minimum: more than 48 bits need DS, or 64K with LPA.
    NeedsLpa {
        /// The bits asked for.
        bits: u8,
    },
    /// An IPA may not be larger than the CPU's physical addresses.
    InputAbovePa {
        /// The bits asked for.
        bits: u8,
        /// The physical bits.
        pa_bits: u8,
    },
    /// The start level does not exist with this granule or without DS.
    StartLevel {
        /// The level asked for.
        level: Level,
    },
    /// The size is outside what this start level resolves with at most 16
    /// concatenated tables (S2InconsistentSL).
    StartSize {
        /// The level asked for.
        level: Level,
        /// The smallest size it serves.
        min: u8,
        /// The largest size it serves.
        max: u8,
    },
    /// This start level faults on a CPU of so few physical address bits.
    StartNeedsPa {
        /// The level asked for.
        level: Level,
        /// The physical bits it needs.
        pa_bits: u8,
    },
    /// Hardware dirty state without hardware access flag has no effect.
    DirtyWithoutAccess,
    /// A VMID above 255 without 16-bit VMIDs.
    Vmid {
        /// The identifier.
        vmid: u16,
    },
    /// The root is not aligned to its whole size.
    RootAlign {
        /// The alignment in bytes that it needs.
        align: u64,
    },
    /// The root lies outside the output addresses.
    RootRange,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InputSize { bits } => {
                write!(f, "{bits}-bit input addresses: 32 to 52 are possible")
            }
            Self::PaSize { bits } => write!(
                f,
                "{bits}-bit physical addresses: PARange says 32, 36, 40, 42, 44, 48 or 52"
            ),
            Self::Lpa2With64k => f.write_str(
                "DS with a 64K granule: 52 bits come from FEAT_LPA there, leave lpa2 off",
            ),
            Self::NeedsLpa { bits } => write!(
                f,
                "{bits}-bit input addresses: more than 48 need LPA2, or 64K on a 52-bit CPU"
            ),
            Self::InputAbovePa { bits, pa_bits } => write!(
                f,
                "{bits}-bit IPA on a CPU of {pa_bits}-bit physical addresses: T0SZ is refused"
            ),
            Self::StartLevel { level } => {
                write!(f, "start at {level}: SL0 has no such code for this granule")
            }
            Self::StartSize { level, min, max } => write!(
                f,
                "start at {level}: it resolves {min} to {max} bits (S2InconsistentSL)"
            ),
            Self::StartNeedsPa { level, pa_bits } => write!(
                f,
                "start at {level}: faults on a CPU of less than {pa_bits} physical bits"
            ),
            Self::DirtyWithoutAccess => {
                f.write_str("hardware dirty state (HD) needs the hardware access flag (HA)")
            }
            Self::Vmid { vmid } => write!(f, "VMID {vmid}: this CPU has 8-bit VMIDs"),
            Self::RootAlign { align } => write!(f, "the root must be aligned to {align:#x} bytes"),
            Self::RootRange => f.write_str("the root lies outside the output addresses"),
        }
    }
}

impl core::error::Error for ConfigError {}

impl Stage2Config {
    /// KVM's start level, all block sizes, no features, no LPA2.
    pub const fn new(granule: Granule, ipa_bits: u8, pa_bits: u8) -> Self {
        Self {
            granule,
            ipa_bits,
            pa_bits,
            lpa2: false,
            start: Start::Concatenate,
            largest_block: Level::L0,
            features: Features {
                tlb_range: false,
                ttl: false,
                fwb: false,
                xnx: false,
                vmid16: false,
                hw_access_flag: false,
                hw_dirty: false,
                ttst: false,
                cnp: false,
                dic: false,
                bbm2: false,
            },
            errata: Errata::NONE,
        }
    }

    /// Checks the combination once, so that nothing derived from it fails.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn validate(self) -> Result<Geometry, ConfigError> {
        let Self {
            granule,
            ipa_bits,
            pa_bits,
            ..
        } = self;
        if !(32..=52).contains(&ipa_bits) {
            return Err(ConfigError::InputSize { bits: ipa_bits });
        }
        let oa_bits = output_bits(granule, pa_bits, self.lpa2)?;
        if ipa_bits > 48 && oa_bits < 52 && !self.lpa2 {
            return Err(ConfigError::NeedsLpa { bits: ipa_bits });
        }
        if ipa_bits > pa_bits {
            return Err(ConfigError::InputAbovePa {
                bits: ipa_bits,
                pa_bits,
            });
        }
        if self.features.hw_dirty && !self.features.hw_access_flag {
            return Err(ConfigError::DirtyWithoutAccess);
        }
        let start = match self.start {
            Start::At(level) => level.get(),
            Start::Concatenate => {
                let levels = ((ipa_bits - 4 - 4) / granule.stride()).max(2);
                4 - levels as i8
            }
        };
        self.check_start(start)?;
        let oa_form = oa_form(granule, oa_bits, self.lpa2);
        let shape = Shape::new(
            granule,
            start,
            ipa_bits,
            oa_bits,
            oa_form,
            self.largest_block.get(),
            pa_bits == 52,
        );
        Ok(Geometry {
            shape,
            features: self.features,
            errata: self.errata,
        })
    }

    /// The start level's own rules: spec 1.2.
    fn check_start(&self, start: i8) -> Result<(), ConfigError> {
        let level = Shape::level(start);
        let stride = self.granule.stride();
        let exists = match (self.granule, start) {
            (Granule::K4, -1) | (Granule::K16, 0) => self.lpa2,
            (Granule::K4, 3) => self.features.ttst,
            (Granule::K4, 0..=2) | (Granule::K16 | Granule::K64, 1..=3) => true,
            _ => false,
        };
        if !exists {
            return Err(ConfigError::StartLevel { level });
        }
        let min = (3 - start) as u8 * stride + self.granule.page_bits() + 1;
        let max = if start == -1 {
            52
        } else {
            (min + stride + 3).min(52)
        };
        if self.ipa_bits < min || self.ipa_bits > max {
            return Err(ConfigError::StartSize { level, min, max });
        }
        let needs = match (self.granule, start) {
            (Granule::K4, 0) | (Granule::K64, 1) => 44,
            (Granule::K16, 1) => 42,
            _ => 0,
        };
        if self.pa_bits < needs {
            return Err(ConfigError::StartNeedsPa {
                level,
                pa_bits: needs,
            });
        }
        Ok(())
    }
}

/// Output bits in force: the CPU's, but 48 at most without a 52-bit form.
pub(crate) fn output_bits(granule: Granule, pa_bits: u8, lpa2: bool) -> Result<u8, ConfigError> {
    if !matches!(pa_bits, 32 | 36 | 40 | 42 | 44 | 48 | 52) {
        return Err(ConfigError::PaSize { bits: pa_bits });
    }
    if lpa2 && granule == Granule::K64 {
        return Err(ConfigError::Lpa2With64k);
    }
    Ok(if lpa2 || granule == Granule::K64 {
        pa_bits
    } else {
        pa_bits.min(48)
    })
}

pub(crate) fn oa_form(granule: Granule, oa_bits: u8, lpa2: bool) -> OaForm {
    match (granule, lpa2) {
        (Granule::K64, _) if oa_bits == 52 => OaForm::Lpa64k,
        (_, true) => OaForm::Lpa2,
        _ => OaForm::Plain48,
    }
}

/// `PS` of `VTCR_EL2` and `TCR_EL2` for so many output bits.
pub(crate) const fn ps_code(oa_bits: u8) -> u64 {
    match oa_bits {
        0..=35 => 0,
        36..=39 => 1,
        40..=41 => 2,
        42..=43 => 3,
        44..=47 => 4,
        48..=51 => 5,
        _ => 6,
    }
}

/// `BADDR` of a translation table base register: bits \[51:48\] of a root
/// go to \[5:2\] when output addresses have more than 48 bits.
pub(crate) const fn baddr(root: u64, oa_bits: u8) -> u64 {
    if oa_bits > 48 {
        (root & 0x0000_ffff_ffff_ffc0) | (((root >> 48) & 0xf) << 2)
    } else {
        root & 0x0000_ffff_ffff_fffe
    }
}

/// A stage 2 that the architecture has. Obtained from
/// [`Stage2Config::validate`] only.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    shape: Shape,
    features: Features,
    errata: Errata,
}

impl Geometry {
    /// Tables of 2^`stride` entries, for searches that visit every tree. Its
    /// registers mean nothing to a CPU.
    #[cfg(any(test, feature = "toy"))]
    pub fn toy(stride: u8, levels: u8, features: Features) -> Self {
        Self {
            shape: Shape::toy(stride, levels),
            features,
            errata: Errata::NONE,
        }
    }

    /// The same for a tree whose every leaf may have to be cleaned. Without
    /// FEAT_S2FWB its leaves are of 2 MiB at most.
    pub(crate) const fn cleaned(self) -> Self {
        if self.features.fwb {
            return self;
        }
        let shape = self.shape.cleaned();
        Self { shape, ..self }
    }

    /// The tree's arithmetic.
    #[inline]
    pub const fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The features it was made for.
    #[inline]
    pub const fn features(&self) -> &Features {
        &self.features
    }

    /// The errata it was made for.
    #[inline]
    pub const fn errata(&self) -> Errata {
        self.errata
    }

    /// The granule.
    #[inline]
    pub const fn granule(&self) -> Granule {
        self.shape.granule()
    }

    /// Bits of an IPA.
    #[inline]
    pub const fn ipa_bits(&self) -> u8 {
        self.shape.ia_bits()
    }

    /// Where a walk starts.
    #[inline]
    pub const fn start(&self) -> Level {
        self.shape.start()
    }

    /// Root tables: 1 to 16. They are adjacent in memory.
    #[inline]
    pub const fn root_tables(&self) -> usize {
        self.shape.root_tables()
    }

    /// The root's alignment in bytes: its whole size.
    #[inline]
    pub const fn root_align(&self) -> u64 {
        self.shape.root_align()
    }

    /// Bytes that one entry of `level` covers.
    #[inline]
    pub const fn span(&self, level: Level) -> u64 {
        self.shape.span(level)
    }

    /// True when a block or page may stand at `level`.
    #[inline]
    pub const fn leaf_ok(&self, level: Level) -> bool {
        self.shape.leaf_ok(level)
    }

    /// `VTCR_EL2` for this geometry: spec 1.1 and 1.2.
    pub const fn vtcr(&self) -> u64 {
        let shape = &self.shape;
        let (sl2, sl0) = match (shape.granule, shape.start) {
            (Granule::K4, -1) => (1, 0),
            (Granule::K4, 0) => (0, 2),
            (Granule::K4, 1) => (0, 1),
            (Granule::K4, 2) => (0, 0),
            (Granule::K4, _) => (0, 3),
            (_, start) => (0, 3 - start as u64),
        };
        let mut vtcr = 64 - shape.ia_bits as u64;
        vtcr |= sl0 << 6;
        vtcr |= 0b01 << 8; // IRGN0: write-back, read- and write-allocate
        vtcr |= 0b01 << 10; // ORGN0: the same
        vtcr |= 0b11 << 12; // SH0: inner shareable
        vtcr |= shape.granule.tg0() << 14;
        vtcr |= ps_code(shape.oa_bits) << 16;
        vtcr |= (self.features.vmid16 as u64) << 19;
        vtcr |= (self.features.hw_access_flag as u64) << 21;
        vtcr |= (self.features.hw_dirty as u64) << 22;
        vtcr |= 1 << 31; // RES1
        vtcr |= (matches!(shape.oa_form, OaForm::Lpa2) as u64) << 32;
        vtcr |= sl2 << 33;
        vtcr
    }

    /// `VTTBR_EL2` for a root and a VMID: spec 1.3.
    ///
    /// # Errors
    /// A root that is misaligned or out of range, a VMID too large.
    pub const fn vttbr(&self, root: Pa, vmid: Vmid) -> Result<u64, ConfigError> {
        if vmid.get() > 0xff && !self.features.vmid16 {
            return Err(ConfigError::Vmid { vmid: vmid.get() });
        }
        match check_root(&self.shape, root) {
            Err(error) => Err(error),
            Ok(()) => Ok((vmid.get() as u64) << 48
                | baddr(root.get(), self.shape.oa_bits)
                | self.features.cnp as u64),
        }
    }
}

pub(crate) const fn check_root(shape: &Shape, root: Pa) -> Result<(), ConfigError> {
    let align = shape.root_align();
    if root.get() & (align - 1) != 0 {
        return Err(ConfigError::RootAlign { align });
    }
    match root.get().checked_add(shape.root_bytes()) {
        Some(end) if end <= 1 << shape.oa_bits => Ok(()),
        _ => Err(ConfigError::RootRange),
    }
}

//! The arithmetic of a tree of tables: what stage 2 and EL2's stage 1 have in
//! common, and all that walkers see.

use crate::addr::{Extent, Ia, Level, Pa};
use crate::desc::Desc;
use crate::error::{CACHE_STEP, Error};
use crate::granule::Granule;

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
    start: Level,
    /// Bit `l` set: a block may stand at level `l` (bit 3: pages).
    leaf_levels: u8,
    ia_bits: u8,
    oa_bits: u8,
    /// log2 of the address where the bits of `high_field` begin.
    high_from: u8,
    granule: Granule,
    oa_form: OaForm,
}

/// What a tree is made for.
#[derive(Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) granule: Granule,
    pub(crate) start: Level,
    pub(crate) ia_bits: u8,
    pub(crate) oa_bits: u8,
    pub(crate) oa_form: OaForm,
    /// No block above this level.
    pub(crate) largest: Level,
    /// The CPU has 52-bit physical addresses.
    pub(crate) pa_52: bool,
}

impl Shape {
    pub(crate) fn new(sizes: Sizes) -> Self {
        let Sizes {
            granule,
            start,
            ia_bits,
            oa_bits,
            oa_form,
            ..
        } = sizes;
        let page_bits = u32::from(granule.page_bits());
        let stride = u32::from(granule.stride());
        let top_block = match (granule, oa_form) {
            (Granule::K4, OaForm::Lpa2) => Level::L0,
            (Granule::K4, _) | (Granule::K16, OaForm::Lpa2) => Level::L1,
            (Granule::K64, _) if sizes.pa_52 => Level::L1,
            (Granule::K16 | Granule::K64, _) => Level::L2,
        };
        let top_block = top_block.max(sizes.largest).max(start);
        let root_shift = page_bits + stride * start.above_pages();
        // A root may be smaller than a page, never without an entry.
        let root_entries = 1usize << u32::from(ia_bits).saturating_sub(root_shift);
        let (low_top, high_field, high_shift) = match oa_form {
            OaForm::Plain48 => (48, 0, 0),
            OaForm::Lpa64k => (48, 0xf << 12, 48 - 12),
            OaForm::Lpa2 => (50, 0x3 << 8, 50 - 8),
        };
        Self {
            low_mask: (1u64 << low_top) - (1u64 << page_bits),
            high_field,
            index_mask: (1 << stride) - 1,
            root_mask: root_entries - 1,
            page_mask: (1 << page_bits) - 1,
            ia_over: u64::MAX << ia_bits,
            oa_over: u64::MAX << oa_bits,
            spans: spans(page_bits, stride),
            page_bits,
            stride,
            root_shift,
            high_shift,
            start,
            leaf_levels: 0b1111 & (0b1111 << top_block.get()),
            ia_bits,
            oa_bits,
            high_from: low_top,
            granule,
            oa_form,
        }
    }

    /// A small stage-2 shape for searches that visit every tree: 4K pages,
    /// 2^`stride` entries a table, `levels` (2 to 4) levels, blocks at levels
    /// 1 and 2. No CPU has it.
    #[cfg(any(test, feature = "toy"))]
    pub(crate) fn toy(stride: u8, levels: u8) -> Self {
        let start = Level::new(4 - levels as i8).unwrap_or(Level::L3);
        let ia_bits = 12 + stride * levels;
        let real = Self::new(Sizes {
            granule: Granule::K4,
            start: start.max(Level::L1),
            ia_bits: 48,
            oa_bits: 48,
            oa_form: OaForm::Plain48,
            largest: Level::L1,
            pa_52: false,
        });
        Self {
            spans: spans(12, u32::from(stride)),
            stride: u32::from(stride),
            start,
            ia_bits,
            ia_over: u64::MAX << ia_bits,
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
        self.start
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

    /// The alignment that the root needs, in bytes: its whole size, so that
    /// the hardware's masking of `BADDR` removes nothing.
    pub const fn root_align(&self) -> u64 {
        (self.root_tables() as u64) << self.page_bits
    }

    /// Bytes that one entry of `level` covers.
    #[inline]
    pub const fn span(&self, level: Level) -> u64 {
        if cfg!(feature = "fixed-4k") {
            return bytes(self.shift(level));
        }
        // Levels begin at -1, and the array is as long as the mask wants it.
        self.spans[level.get().wrapping_add(1) as usize & 7]
    }

    /// True when a leaf (block or page) may stand at `level`.
    #[inline]
    pub const fn leaf_ok(&self, level: Level) -> bool {
        level.get() >= 0 && self.leaf_levels.wrapping_shr(level.get() as u32) & 1 != 0
    }

    /// Entries of a table of `level`; the root's are those of all its tables.
    #[inline]
    pub const fn entries(&self, level: Level) -> usize {
        if level.get() == self.start.get() {
            self.root_entries()
        } else {
            self.table_entries()
        }
    }

    /// The shape of a tree that hangs under one entry of `level`, with
    /// addresses counted from that entry's first.
    #[cfg(feature = "extra")]
    pub(crate) const fn below(&self, level: Level) -> Self {
        let ia_bits = self.shift(level);
        Self {
            start: level.down(),
            ia_bits: ia_bits as u8,
            ia_over: u64::MAX << ia_bits,
            root_shift: self.shift(level.down()),
            root_mask: self.index_mask,
            ..*self
        }
    }

    /// The same with leaves of [`cleaned_top`](Self::cleaned_top) at most.
    pub(crate) const fn cleaned(self) -> Self {
        Self {
            leaf_levels: self.leaf_levels & (u8::MAX << self.cleaned_top().get()),
            ..self
        }
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

    /// log2 of the bytes that one entry of `level` covers.
    #[inline]
    pub(crate) const fn shift(&self, level: Level) -> u32 {
        // No overflow: 16 + 13 * 4 at most.
        self.page_bits()
            .wrapping_add(self.stride().wrapping_mul(level.above_pages()))
    }

    /// Entries of a table that is no root.
    #[inline]
    pub(crate) const fn table_entries(&self) -> usize {
        self.index_mask().wrapping_add(1)
    }

    /// All input addresses.
    #[inline]
    pub(crate) const fn space(&self) -> Extent {
        Extent::new(Ia::new(0), bytes(self.ia_bits as u32))
    }

    /// True for an input address of the space.
    #[inline]
    pub(crate) const fn has(&self, ia: Ia) -> bool {
        ia.get() & self.ia_over == 0
    }

    /// The root's entry for `ia`.
    #[inline]
    pub(crate) const fn root_index(&self, ia: Ia) -> usize {
        ia.get().wrapping_shr(self.root_shift) as usize
    }

    /// The first address of a root's entry; of the one after the last, the end of
    /// the space.
    #[inline]
    pub(crate) const fn root_ia(&self, index: usize) -> Ia {
        let ia = Ia::new((index as u64).wrapping_shl(self.root_shift));
        if index > self.root_mask {
            self.space().end
        } else {
            ia
        }
    }

    /// `ia`, if it is of the space.
    #[inline]
    pub(crate) fn check(&self, ia: Ia) -> Result<Ia, Error> {
        if self.has(ia) {
            Ok(ia)
        } else {
            Err(Error::Range)
        }
    }

    /// Puts an output address where the descriptor keeps it.
    #[inline]
    pub(crate) const fn encode_oa(&self, pa: Pa) -> u64 {
        let oa = pa.get();
        (oa & self.low_mask) | (oa.wrapping_shr(self.high_shift) & self.high_field)
    }

    /// Reads the output address of a descriptor.
    #[inline]
    pub(crate) const fn decode_oa(&self, desc: Desc) -> Pa {
        let low = desc.raw() & self.low_mask;
        if desc.raw() & self.high_field == 0 {
            return Pa::new(low);
        }
        self.decode_high(desc)
    }

    /// Few machines have memory above 2^48: out of the way of walks.
    #[cold]
    #[inline(never)]
    const fn decode_high(&self, desc: Desc) -> Pa {
        let high = (desc.raw() & self.high_field).wrapping_shl(self.high_shift);
        Pa::new(desc.raw() & self.low_mask | high)
    }

    /// The descriptor bits that hold the output address.
    #[inline]
    pub(crate) const fn oa_mask(&self) -> u64 {
        self.low_mask | self.high_field
    }

    /// How far `pa` may grow while its descriptor grows by the same number:
    /// up to the address where bits kept elsewhere change.
    #[inline]
    pub(crate) const fn linear_left(&self, pa: Pa) -> u64 {
        let from = bytes(self.high_from as u32);
        from - (pa.get() & (from - 1))
    }

    /// `size` bytes from `start` on, when they lie inside the input space and
    /// keep to pages.
    #[inline]
    pub(crate) fn check_ia(&self, start: Ia, size: u64) -> Result<Extent, Error> {
        if !start.reaches(size, self.ia_bits) {
            return Err(Error::Range);
        }
        if (start.get() | size) & self.page_mask() != 0 {
            return Err(Error::Align);
        }
        Ok(Extent::new(start, size))
    }

    /// As [`check_ia`](Self::check_ia) for output addresses, of whatever size.
    #[inline]
    pub(crate) fn check_oa(&self, start: Pa, size: u64) -> Result<(), Error> {
        if !start.reaches(size, self.oa_bits) {
            return Err(Error::Range);
        }
        if start.get() & self.page_mask() != 0 {
            return Err(Error::Align);
        }
        Ok(())
    }

    /// True when a leaf of `size` bytes may map `ia` to `pa`: aligned and inside
    /// the spaces, none reaches beyond their ends.
    #[inline]
    pub(crate) const fn fits(&self, ia: Ia, pa: Pa, size: u64) -> bool {
        let (ia, oa) = (ia.get(), pa.get());
        (ia | oa) & size.wrapping_sub(1) | ia & self.ia_over | oa & self.oa_over == 0
    }

    /// True when a table may stand at `pa`: whoever writes its descriptor would
    /// lose the bits that are not a page's, or not in the output space.
    #[inline]
    pub(crate) const fn is_table_page(&self, pa: Pa) -> bool {
        pa.get() & (self.oa_over | self.page_mask()) == 0
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

    /// Blocks of level 2 that a leaf of `level` is, one at least: whoever is told
    /// of it may have work with each.
    pub(crate) const fn blocks(&self, level: Level) -> u64 {
        let more = self.shift(level).saturating_sub(self.shift(Level::L2));
        1u64.wrapping_shl(more)
    }

    /// The level of the largest leaves whose memory is cleaned in one step of
    /// [`CACHE_STEP`] at most.
    pub(crate) const fn cleaned_top(&self) -> Level {
        let mut level = Level::L3;
        while level.get() > 0 && bytes(self.shift(level.up())) <= CACHE_STEP {
            level = level.up();
        }
        level
    }

    /// The largest level, at or below `top`, whose leaf fits at `ia`, `pa`
    /// and in `left` bytes.
    #[inline]
    pub(crate) fn leaf_level(&self, ia: Ia, pa: Pa, left: u64, top: Level) -> Level {
        let (ia, oa) = (ia.get(), pa.get());
        let mut level = Level::L3;
        let mut shift = self.page_bits().wrapping_add(self.stride());
        while level > top
            && self.leaf_ok(level.up())
            && (ia | oa) & bytes(shift).wrapping_sub(1) == 0
            && left >= bytes(shift)
        {
            level = level.up();
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

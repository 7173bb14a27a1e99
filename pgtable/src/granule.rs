//! The three translation granules and what follows from each.

/// The size of a page, of a table, and of nothing else.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Granule {
    /// 4 KiB: 512 entries a table.
    K4,
    /// 16 KiB: 2048 entries a table.
    K16,
    /// 64 KiB: 8192 entries a table.
    K64,
}

impl Granule {
    /// All three, smallest first.
    pub const ALL: [Self; 3] = [Self::K4, Self::K16, Self::K64];

    /// log2 of the page size.
    #[inline]
    pub const fn page_bits(self) -> u8 {
        match self {
            Self::K4 => 12,
            Self::K16 => 14,
            Self::K64 => 16,
        }
    }

    /// Bytes of a page.
    #[inline]
    pub const fn page_size(self) -> u64 {
        1 << self.page_bits()
    }

    /// Address bits that one level resolves: log2 of a table's entries.
    #[inline]
    pub const fn stride(self) -> u8 {
        self.page_bits() - 3
    }

    /// Entries of one table.
    #[inline]
    pub const fn entries(self) -> usize {
        1 << self.stride()
    }

    /// `TG0` of `VTCR_EL2` and `TCR_EL2`: 0, 2, 1 for 4K, 16K, 64K.
    #[inline]
    pub(crate) const fn tg0(self) -> u64 {
        match self {
            Self::K4 => 0b00,
            Self::K16 => 0b10,
            Self::K64 => 0b01,
        }
    }

    /// `TG` of TLBI operands: 1, 2, 3 for 4K, 16K, 64K. Not [`tg0`]'s code.
    ///
    /// [`tg0`]: Self::tg0
    #[inline]
    pub(crate) const fn tlbi_tg(self) -> u64 {
        match self {
            Self::K4 => 1,
            Self::K16 => 2,
            Self::K64 => 3,
        }
    }
}

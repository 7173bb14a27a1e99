//! Sizes: what an entry of a level spans, and which stage 2 the architecture has
//! (DDI0487, D8.2).

/// A machine, as far as its RMI shows.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// log2 of a granule's bytes: 12, 14 or 16.
    pub page_bits: u32,
    pub ram_base: u64,
    pub ram_size: u64,
    /// Bits of physical addresses.
    pub pa_bits: u32,
    /// FEAT_LPA2 for this granule.
    pub lpa2: bool,
    /// FEAT_S2FWB.
    pub fwb: bool,
    /// FEAT_VMID16.
    pub vmid16: bool,
    /// FEAT_TTST.
    pub ttst: bool,
    /// List registers of its GIC.
    pub list_registers: u64,
}

impl Machine {
    /// Bytes of a granule.
    pub fn page(&self) -> u64 {
        1 << self.page_bits
    }

    /// log2 of the entries of a table.
    pub fn stride(&self) -> u32 {
        self.page_bits - 3
    }

    /// log2 of the bytes that an entry of a level spans; of a level that no tree
    /// has, more than any address.
    pub fn span_bits(&self, level: i8) -> u32 {
        (self.page_bits + (3 - level) as u32 * self.stride()).min(63)
    }

    /// Bytes that an entry of a level spans.
    pub fn span(&self, level: i8) -> u64 {
        1 << self.span_bits(level)
    }

    /// Memory may be mapped by an entry of this level, as RMI has it: pages, and
    /// blocks of levels 1 and 2 (A5.5.4), of level 1 where the translation has them
    /// (DDI0487, D8.3.1), `wide` being what FEAT_LPA2 adds. Where what an entry maps has
    /// to be cleaned (all without FEAT_S2FWB; what a guest may reach past the caches with
    /// it), that is done in one step, and is at most 2 MiB.
    pub fn maps_memory(&self, level: i8, is_cleaned: bool, wide: bool) -> bool {
        let level_1 = match self.page_bits {
            12 => true,
            14 => wide,
            _ => self.pa_bits == 52,
        };
        let has_blocks = level == 2 || level == 1 && level_1;
        let at_once = self.fwb && !is_cleaned || self.span(level) <= 2 << 20;
        level == 3 || has_blocks && at_once
    }

    /// Widest addresses of a realm.
    pub fn widest(&self) -> u32 {
        if self.lpa2 || self.page_bits == 16 {
            self.pa_bits
        } else {
            self.pa_bits.min(48)
        }
    }

    /// Tables of the root of a stage 2 with so many bits from this level on: `None`
    /// where the architecture has none.
    pub fn roots(&self, ipa_bits: u32, start: i64, lpa2: bool) -> Option<u64> {
        let wide = lpa2 || self.page_bits == 16 && self.pa_bits == 52;
        let widest = self.pa_bits.min(if wide { 52 } else { 48 });
        if !(32..=widest).contains(&ipa_bits) || lpa2 && !self.lpa2 {
            return None;
        }
        let there = match (self.page_bits, start) {
            (12, -1) | (14, 0) => lpa2,
            (12, 0) | (16, 1) => self.pa_bits >= 44,
            (14, 1) => self.pa_bits >= 42,
            (12, 1 | 2) | (14 | 16, 2 | 3) => true,
            (12, 3) => self.ttst,
            _ => false,
        };
        if !there {
            return None;
        }
        // The root resolves one bit at least; 16 tables at most, of level −1 one.
        let below = self.span_bits(start as i8);
        let most = if start == -1 {
            52
        } else {
            below + self.stride() + 4
        };
        (below < ipa_bits && ipa_bits <= most)
            .then(|| 1 << ipa_bits.saturating_sub(below + self.stride()))
    }

    /// Feature register 0 (DEN0137 1.0, B4.4.4).
    pub fn feature0(&self) -> u64 {
        let max_recs_order = 6;
        u64::from(self.widest())
            | u64::from(self.lpa2) << 8
            | 1 << 14
            | 1 << 20
            | 0b11 << 32
            | (self.list_registers - 1) << 34
            | max_recs_order << 38
    }
}

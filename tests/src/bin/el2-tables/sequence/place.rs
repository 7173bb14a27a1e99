//! Where operations happen: a few places of three blocks each all over the IPA
//! space, one of them across its middle (with concatenation, across two root
//! tables), and the memory behind them.

use pgtable::{
    Access, Age, Attrs, Device, Dirty, Execute, Geometry, Granule, Level, Memory as Type,
};

use super::{Memory, block};
use crate::formats::is_lpa2;
use crate::memory::{DATA, Data};

/// The memory that a format's guests use: above 48 bits, where it can say so and
/// the machine has it, every other time.
pub fn for_format(geometry: &Geometry, memory: Memory, seed: u64) -> Data {
    let wide = is_lpa2(geometry) || geometry.granule() == Granule::K64;
    match memory.high {
        Some(high) if wide && geometry.shape().oa_bits() == 52 && seed >> 1 & 1 == 0 => high,
        _ => memory.low,
    }
}

/// A geometry's places.
#[derive(Clone, Copy, Debug)]
pub struct Places {
    geometry: Geometry,
    data: Data,
}

impl Places {
    pub const fn new(geometry: Geometry, data: Data) -> Self {
        Self { geometry, data }
    }

    /// One past the last IPA.
    pub const fn end(&self) -> u64 {
        1 << self.geometry.ipa_bits()
    }

    pub const fn page(&self) -> u64 {
        self.geometry.granule().page_size()
    }

    /// Where EL1's code is mapped, out of reach of all places.
    pub fn code(&self) -> u64 {
        3 * block(&self.geometry)
    }

    /// The first IPA of a place.
    pub fn place(&self, n: u64) -> u64 {
        let (end, span) = (self.end(), block(&self.geometry));
        let small = end / span < 16;
        match n % 4 {
            0 => 0,
            1 if !small => end / 2 - span,
            2 if !small => end / 4 * 3 - 2 * span,
            _ => end - 3 * span,
        }
    }

    /// A range in a place: a few pages, or around blocks.
    pub fn range(&self, a: u64, b: u64) -> (u64, u64) {
        let (page, span) = (self.page(), block(&self.geometry));
        let start = self.place(a);
        let (offset, size) = match a >> 2 & 7 {
            0..=2 => ((a >> 5) % 24 * page, (1 + b % 20) * page),
            3 => (span - (1 + (a >> 5) % 8) * page, (1 + b % 16) * page),
            4 => ((a >> 5) % 2 * span, (1 + b % 2) * span),
            5 => (span, span),
            6 => (
                (a >> 5) % 2 * span + (a >> 6) % 3 * page,
                span - page + b % 3 * page,
            ),
            _ => {
                let bits = self.geometry.granule().contiguous_bits(Level::L3);
                let group = page << bits.unwrap_or(4);
                ((a >> 5) % 3 * group, (1 + b % 2) * group)
            }
        };
        (start + offset, size)
    }

    /// The memory for a range: the same for the same `variant`. Some of it is
    /// RAM that says its own address, some is as high as the output goes.
    pub fn target(&self, ipa: u64, variant: u64) -> u64 {
        let low = self.data.base + (ipa & (DATA - 1));
        match variant % 5 {
            0 | 1 => low,
            2 => low + self.page(),
            3 => self.data.base + ((ipa + DATA / 2) & (DATA - 1)),
            _ => {
                let half = 1u64 << (self.geometry.shape().oa_bits() - 1);
                half + (ipa & (half / 2 - 1))
            }
        }
    }

    /// Attributes by number.
    pub fn attrs(&self, n: u64) -> Attrs {
        let features = self.geometry.features();
        Attrs {
            access: [
                Access::ReadWrite,
                Access::Read,
                Access::ReadWrite,
                Access::Write,
            ][(n & 3) as usize],
            execute: match n >> 2 & 3 {
                1 if features.xnx => Execute::El0,
                2 if features.xnx => Execute::El1,
                3 => Execute::Never,
                _ => Execute::All,
            },
            memory: match n >> 4 & 7 {
                5 => Type::NormalNonCacheable,
                6 => Type::Device(Device::NGnRE),
                7 => Type::FromStage1,
                _ => Type::Normal,
            },
            age: if n >> 7 & 3 == 3 {
                Age::Old
            } else {
                Age::Young
            },
            dirty: if n >> 9 & 3 == 3 {
                Dirty::Track
            } else {
                Dirty::Fault
            },
            soft: (n >> 11 & 3) as u8,
            ..Attrs::MEMORY
        }
    }
}

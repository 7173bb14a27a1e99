//! Ranges of physical memory, and small sorted sets of them.

use core::fmt;

use arrayvec::ArrayVec;

/// A range of physical addresses that does not wrap, in bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Region {
    base: u64,
    size: u64,
}

impl Region {
    /// Nothing.
    pub const EMPTY: Self = Self { base: 0, size: 0 };

    /// `None` when the range is past the end of the address space.
    pub const fn new(base: u64, size: u64) -> Option<Self> {
        if base.checked_add(size).is_some() {
            Some(Self { base, size })
        } else {
            None
        }
    }

    /// First address.
    pub const fn base(&self) -> u64 {
        self.base
    }

    /// Bytes.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// First address after it.
    pub const fn end(&self) -> u64 {
        self.base + self.size
    }

    /// True for nothing.
    pub const fn is_empty(&self) -> bool {
        self.size == 0
    }

    /// True when the address is inside.
    pub const fn contains(&self, address: u64) -> bool {
        address >= self.base && address - self.base < self.size
    }

    /// True when the two share an address.
    pub const fn overlaps(&self, other: &Self) -> bool {
        !self.is_empty() && !other.is_empty() && self.base < other.end() && other.base < self.end()
    }

    /// What the two share; `None` for nothing.
    pub const fn intersect(&self, other: &Self) -> Option<Self> {
        if !self.overlaps(other) {
            return None;
        }
        let base = if self.base > other.base {
            self.base
        } else {
            other.base
        };
        let end = if self.end() < other.end() {
            self.end()
        } else {
            other.end()
        };
        Some(Self {
            base,
            size: end - base,
        })
    }

    /// The largest range inside it that is aligned to `align` (a power of two)
    /// at both ends.
    pub const fn shrink_to(&self, align: u64) -> Self {
        let base = match self.base.checked_next_multiple_of(align) {
            Some(base) => base,
            None => return Self::EMPTY,
        };
        let end = self.end() & !(align - 1);
        if end > base {
            Self {
                base,
                size: end - base,
            }
        } else {
            Self::EMPTY
        }
    }

    /// The smallest range around it that is aligned to `align` at both ends.
    pub const fn grow_to(&self, align: u64) -> Self {
        let base = self.base & !(align - 1);
        match self.end().checked_next_multiple_of(align) {
            Some(end) => Self {
                base,
                size: end - base,
            },
            None => Self {
                base,
                size: 0u64.wrapping_sub(base) - 1,
            },
        }
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.base, self.end())
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.base, self.end())
    }
}

/// A set of ranges has no room for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// Most ranges that a set holds.
pub const MAX_REGIONS: usize = 256;

/// A sorted set of ranges; touching and overlapping ones are joined.
#[derive(Clone, Debug, Default)]
pub struct Regions(ArrayVec<Region, MAX_REGIONS>);

impl Regions {
    /// No range.
    pub const fn new() -> Self {
        Self(ArrayVec::new_const())
    }

    /// Adds a range.
    ///
    /// # Errors
    /// [`Full`].
    pub fn insert(&mut self, region: Region) -> Result<(), Full> {
        if region.is_empty() {
            return Ok(());
        }
        let mut joined = region;
        self.0.retain(|r| {
            let touches = r.base <= joined.end() && joined.base <= r.end();
            if touches {
                let base = r.base.min(joined.base);
                joined = Region {
                    base,
                    size: r.end().max(joined.end()) - base,
                };
            }
            !touches
        });
        let at = self
            .0
            .iter()
            .position(|r| r.base > joined.base)
            .unwrap_or(self.0.len());
        self.0.try_insert(at, joined).map_err(|_| Full)
    }

    /// Takes a range out: what is on both sides of it stays.
    ///
    /// # Errors
    /// [`Full`], when a range was cut in two and there is no room for both; the
    /// upper part is lost.
    pub fn remove(&mut self, region: Region) -> Result<(), Full> {
        if region.is_empty() {
            return Ok(());
        }
        let mut behind = None;
        for range in &mut self.0 {
            if !range.overlaps(&region) {
                continue;
            }
            let (base, end) = (range.base, range.end());
            if end > region.end() {
                behind = Region::new(region.end(), end - region.end());
            }
            *range = Region::new(base, region.base.saturating_sub(base)).unwrap_or(Region::EMPTY);
        }
        self.0.retain(|range| !range.is_empty());
        behind.map_or(Ok(()), |behind| self.insert(behind))
    }

    /// Takes all ranges of another set out.
    ///
    /// # Errors
    /// As [`Self::remove`].
    pub fn remove_all(&mut self, other: &Self) -> Result<(), Full> {
        other.iter().try_for_each(|range| self.remove(*range))
    }

    /// Whether all of a range is in the set; nothing is in every set.
    pub fn covers(&self, region: &Region) -> bool {
        // Touching ranges are joined, so one of them has it or none.
        region.is_empty()
            || self
                .0
                .iter()
                .any(|r| r.base <= region.base && region.end() <= r.end())
    }

    /// Whether a range shares an address with the set.
    pub fn overlaps(&self, region: &Region) -> bool {
        self.0.iter().any(|r| r.overlaps(region))
    }

    /// The ranges, lowest first.
    pub fn iter(&self) -> impl Iterator<Item = &Region> + Clone {
        self.0.iter()
    }

    /// True for the empty set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The range that an address is in.
    pub fn find(&self, address: u64) -> Option<&Region> {
        self.0.iter().find(|r| r.contains(address))
    }

    /// The lowest place in these ranges for `size` bytes at a multiple of
    /// `align`, clear of everything in `taken`.
    pub fn place(&self, size: u64, align: u64, taken: &Self) -> Option<Region> {
        for region in self.iter() {
            let mut base = region.base.checked_next_multiple_of(align)?;
            while let Some(found) = Region::new(base, size)
                && found.end() <= region.end()
            {
                match taken.iter().find(|t| t.overlaps(&found)) {
                    Some(t) => base = t.end().checked_next_multiple_of(align)?,
                    None => return Some(found),
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;

    fn r(base: u64, end: u64) -> Region {
        Region::new(base, end - base).unwrap()
    }

    #[test]
    fn touching_ranges_join_and_stay_sorted() {
        let mut set = Regions::new();
        for (a, b) in [
            (0x8000, 0x9000),
            (0x1000, 0x2000),
            (0x2000, 0x3000),
            (0x2800, 0x8000),
        ] {
            set.insert(r(a, b)).unwrap();
        }
        assert_eq!(
            set.iter().copied().collect::<ArrayVec<_, 4>>()[..],
            [r(0x1000, 0x9000)]
        );
        set.insert(r(0, 0x10)).unwrap();
        assert_eq!(set.iter().next(), Some(&r(0, 0x10)));
    }

    #[test]
    fn a_full_set_says_so() {
        let mut set = Regions::new();
        for i in 0..MAX_REGIONS as u64 {
            set.insert(r(i * 0x100, i * 0x100 + 3)).unwrap();
        }
        assert!(set.insert(r(0x99999, 0x9999a)).is_err());
        assert_eq!(set.remove(r(0x101, 0x102)), Err(Full), "one becomes two");
    }

    #[test]
    fn what_is_removed_leaves_both_sides() {
        let mut set = Regions::new();
        for (a, b) in [(0x1000, 0x4000), (0x6000, 0x7000), (0x8000, 0x9000)] {
            set.insert(r(a, b)).unwrap();
        }
        set.remove(r(0x2000, 0x2800)).unwrap();
        set.remove(r(0x6800, 0x8001)).unwrap();
        set.remove(r(0xa000, 0xb000)).unwrap();
        set.remove(Region::EMPTY).unwrap();
        let left: ArrayVec<_, 8> = set.iter().copied().collect();
        let expected = [
            r(0x1000, 0x2000),
            r(0x2800, 0x4000),
            r(0x6000, 0x6800),
            r(0x8001, 0x9000),
        ];
        assert_eq!(left[..], expected);
        assert!(set.covers(&r(0x2800, 0x4000)) && !set.covers(&r(0x2000, 0x2801)));
        assert!(set.overlaps(&r(0x27ff, 0x2801)) && !set.overlaps(&r(0x2000, 0x2800)));
    }

    proptest! {
        /// Against a plain list of bytes.
        #[test]
        fn inserting_and_removing_is_what_it_is_byte_by_byte(
            steps in prop::collection::vec((any::<bool>(), 0u64..200, 0u64..60), 0..60)
        ) {
            let mut set = Regions::new();
            let mut bytes = [false; 300];
            for (add, base, size) in steps {
                let region = Region::new(base, size).unwrap();
                bytes[base as usize..(base + size) as usize].fill(add);
                if add { set.insert(region) } else { set.remove(region) }.unwrap();
            }
            for (at, byte) in (0..).zip(bytes) {
                prop_assert_eq!(set.find(at).is_some(), byte, "{}", at);
            }
            let sorted = set.iter().zip(set.iter().skip(1)).all(|(a, b)| a.end() < b.base());
            prop_assert!(sorted, "{:?}", set);
        }
    }

    #[test]
    fn places_avoid_what_is_taken() {
        let mut ram = Regions::new();
        ram.insert(r(0x4000_0000, 0x4100_0000)).unwrap();
        let mut taken = Regions::new();
        taken.insert(r(0x4000_0000, 0x4000_1000)).unwrap();
        taken.insert(r(0x4030_0000, 0x4030_1000)).unwrap();
        assert_eq!(
            ram.place(0x20_0000, 0x20_0000, &taken),
            Some(r(0x4040_0000, 0x4060_0000))
        );
        assert_eq!(
            ram.place(0x1000, 0x1000, &taken),
            Some(r(0x4000_1000, 0x4000_2000))
        );
        assert_eq!(ram.place(0x200_0000, 0x1000, &taken), None);
    }

    #[test]
    fn alignment_shrinks_and_grows() {
        assert_eq!(r(0x1001, 0x3fff).shrink_to(0x1000), r(0x2000, 0x3000));
        assert_eq!(r(0x1001, 0x1fff).shrink_to(0x1000), Region::EMPTY);
        assert_eq!(r(0x1001, 0x3001).grow_to(0x1000), r(0x1000, 0x4000));
    }
}

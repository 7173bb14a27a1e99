//! The RAM that the host owns, as ranges of free granules.
//!
//! [`Granules`] hands out aligned, contiguous runs, first fit from the top of
//! the sizes that the caller names, and takes them back; neighbours merge.
//! Bookkeeping stands on the heap, none in the granules themselves: they may be
//! EL2's at the time. One lock around the whole is the user's.

use alloc::vec::Vec;
use core::ops::Range;

/// Free RAM, in sorted ranges that neither touch nor overlap.
#[derive(Clone, Debug, Default)]
pub struct Granules {
    granule: u64,
    free: Vec<Range<u64>>,
}

impl Granules {
    /// `memory` less `taken`, in whole granules of `granule` bytes (a power of
    /// two). Ranges may overlap and stand in any order.
    pub fn new(granule: u64, memory: &[Range<u64>], taken: &[Range<u64>]) -> Self {
        let mut this = Self {
            granule,
            free: Vec::new(),
        };
        for range in memory {
            let start = range.start.next_multiple_of(granule);
            let end = range.end / granule * granule;
            if start < end {
                // Memory nodes that overlap are counted once.
                this.remove(start..end);
                this.insert(start..end);
            }
        }
        for range in taken {
            if !range.is_empty() {
                this.remove(
                    range.start / granule * granule
                        ..range.end.saturating_add(granule - 1) / granule * granule,
                );
            }
        }
        this
    }

    /// Bytes in a granule.
    pub fn granule(&self) -> u64 {
        self.granule
    }

    /// Bytes that are free.
    pub fn free_bytes(&self) -> u64 {
        self.free.iter().map(|r| r.end - r.start).sum()
    }

    /// The free ranges, sorted.
    pub fn ranges(&self) -> &[Range<u64>] {
        &self.free
    }

    /// Takes `size` bytes that start at a multiple of `align` (a power of two);
    /// both are rounded up to granules. `None` when no run is long enough.
    pub fn take(&mut self, size: u64, align: u64) -> Option<u64> {
        let size = size.checked_next_multiple_of(self.granule)?;
        let align = align.max(self.granule);
        if size == 0 {
            return None;
        }
        let start = self.free.iter().find_map(|range| {
            let start = range.start.checked_next_multiple_of(align)?;
            (start.checked_add(size)? <= range.end).then_some(start)
        })?;
        self.remove(start..start + size);
        Some(start)
    }

    /// Takes back `size` bytes at `start`, both as [`take`](Self::take) gave
    /// them.
    ///
    /// # Panics
    /// If part of the run is free already: the host's own error.
    pub fn give(&mut self, start: u64, size: u64) {
        let size = size.next_multiple_of(self.granule);
        let range = start..start + size;
        let overlap = self
            .free
            .iter()
            .any(|r| r.start < range.end && range.start < r.end);
        assert!(!overlap, "granules at {start:#x} are free already");
        self.insert(range);
    }

    /// Takes `size` bytes in as few runs as there are, each as aligned as its
    /// length allows: runs of the largest block size in `blocks` (descending)
    /// first, granules last. All or nothing.
    pub fn take_scattered(&mut self, size: u64, blocks: &[u64]) -> Option<Vec<Range<u64>>> {
        let before = self.free.clone();
        let mut left = size.checked_next_multiple_of(self.granule)?;
        let mut runs: Vec<Range<u64>> = Vec::new();
        for block in blocks.iter().copied().chain([self.granule]) {
            let mut want = left / block * block;
            while want >= block {
                // The longest run of whole blocks that is there.
                let longest = self
                    .free
                    .iter()
                    .filter_map(|r| {
                        let start = r.start.checked_next_multiple_of(block)?;
                        Some(r.end.checked_sub(start)? / block * block)
                    })
                    .max()
                    .unwrap_or(0)
                    .min(want);
                let Some(start) = self.take(longest, block) else {
                    break;
                };
                runs.push(start..start + longest);
                want -= longest;
                left -= longest;
            }
        }
        if left > 0 {
            self.free = before;
            return None;
        }
        Some(runs)
    }

    fn insert(&mut self, range: Range<u64>) {
        let at = self.free.partition_point(|r| r.start < range.start);
        self.free.insert(at, range);
        if at + 1 < self.free.len() && self.free[at].end == self.free[at + 1].start {
            self.free[at].end = self.free.remove(at + 1).end;
        }
        if at > 0 && self.free[at - 1].end == self.free[at].start {
            self.free[at - 1].end = self.free.remove(at).end;
        }
    }

    fn remove(&mut self, range: Range<u64>) {
        let mut rest = Vec::with_capacity(self.free.len() + 1);
        for r in self.free.drain(..) {
            let left = r.start..r.end.min(range.start);
            let right = r.start.max(range.end)..r.end;
            rest.extend([left, right].into_iter().filter(|r| r.start < r.end));
        }
        self.free = rest;
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use std::vec;

    #[test]
    fn what_is_taken_is_rounded_outwards_and_memory_inwards() {
        let granules = Granules::new(0x1000, &[0x1800..0x9800, 0..0], &[0x4fff..0x5001, 0..0]);
        assert_eq!(granules.ranges(), [0x2000..0x4000, 0x6000..0x9000]);
    }

    #[test]
    fn big_blocks_come_first() {
        let mut granules = Granules::new(0x1000, &[0x1000..0x20_0000 * 3 + 0x5000, 0..0], &[]);
        let runs = granules
            .take_scattered(0x20_0000 * 2 + 0x3000, &[0x20_0000])
            .unwrap();
        assert_eq!(runs, vec![0x20_0000..0x60_0000, 0x1000..0x4000]);
        assert_eq!(granules.take_scattered(0x4000_0000, &[0x20_0000]), None);
        assert_eq!(granules.free_bytes(), 0x20_0000 * 3 + 0x4000 - 0x40_3000);
    }

    proptest! {
        #[test]
        fn runs_are_disjoint_aligned_and_all_come_back(
            requests in prop::collection::vec((1u64..40, 0u32..4, any::<bool>()), 1..60),
        ) {
            let whole = Granules::new(16, &[48..1024, 2000..4096], &[3000..3010, 0..0]);
            let mut granules = whole.clone();
            let mut taken: Vec<(u64, u64)> = Vec::new();
            let mut bytes = BTreeSet::new();
            for (granule_count, align, give) in requests {
                let size = granule_count * 16;
                if give && !taken.is_empty() {
                    let (start, size) = taken.swap_remove(taken.len() / 2);
                    granules.give(start, size);
                    for g in 0..size / 16 {
                        assert!(bytes.remove(&(start + g * 16)));
                    }
                } else if let Some(start) = granules.take(size, 16 << align) {
                    prop_assert_eq!(start % (16 << align), 0);
                    for g in 0..size / 16 {
                        prop_assert!(bytes.insert(start + g * 16), "handed out twice");
                    }
                    taken.push((start, size));
                }
                let out: u64 = taken.iter().map(|t| t.1).sum();
                prop_assert_eq!(granules.free_bytes() + out, whole.free_bytes());
            }
            for (start, size) in taken {
                granules.give(start, size);
            }
            prop_assert_eq!(granules.ranges(), whole.ranges());
        }
    }
}

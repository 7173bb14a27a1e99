//! The RAM that the host owns, as ranges of free granules.
//!
//! [`Granules`] hands out aligned, contiguous extents, first fit from the top of
//! the sizes that the caller names, and takes them back; neighbours merge.
//! Bookkeeping stands on the heap, none in the granules themselves: they may be
//! EL2's at the time. One lock around the whole is the user's.
//!
//! The heap takes its memory from here, under that lock. So nothing here
//! allocates once there is a lock: there is room for a number of ranges, and
//! [`make_room`] makes more.

use alloc::vec::Vec;
use core::ops::Range;
use spin::Mutex;

/// Free RAM, in sorted ranges that neither touch nor overlap.
#[derive(Debug, Default)]
pub struct Granules {
    granule: u64,
    /// Never longer than its capacity.
    free: Vec<Range<u64>>,
}

/// Ranges that there is room for at first, beyond those of the memory.
const SPARE: usize = 256;

impl Granules {
    /// `memory` less `taken`, in whole granules of `granule` bytes (a power of
    /// two). Ranges may overlap and stand in any order.
    pub fn new(granule: u64, memory: &[Range<u64>], taken: &[Range<u64>]) -> Self {
        let mut this = Self {
            granule,
            // Each range adds one at most, and each that is taken splits one.
            free: Vec::with_capacity(memory.len() + taken.len() + SPARE),
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
    /// both are rounded up to granules. `None` when no extent is long enough, or
    /// more extents are taken than there is room to remember.
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
        self.remove(start..start + size).then_some(start)
    }

    /// Takes back `size` bytes at `start`, both as [`take`](Self::take) gave
    /// them: whether there was room to remember it. What there was none for is
    /// lost.
    ///
    /// # Panics
    /// If part of the extent is free already: the host's own error.
    pub fn give(&mut self, start: u64, size: u64) -> bool {
        let size = size.next_multiple_of(self.granule);
        let range = start..start + size;
        let overlap = self
            .free
            .iter()
            .any(|r| r.start < range.end && range.start < r.end);
        assert!(!overlap, "granules at {start:#x} are free already");
        let remembered = self.insert(range);
        if !remembered {
            log::error!("{size} bytes of RAM at {start:#x} are lost: too many extents");
        }
        remembered
    }

    /// Takes `size` bytes in as few extents as there are, each as aligned as its
    /// length allows: extents of the largest block size in `blocks` (descending)
    /// first, granules last. They go to the empty `extents`, at most as many as it
    /// has room for. All or nothing: whether all.
    pub fn take_scattered(
        &mut self,
        size: u64,
        blocks: &[u64],
        extents: &mut Vec<Range<u64>>,
    ) -> bool {
        let Some(mut left) = size.checked_next_multiple_of(self.granule) else {
            return false;
        };
        for block in blocks.iter().copied().chain([self.granule]) {
            let mut want = left / block * block;
            while want >= block && extents.len() < extents.capacity() {
                let longest = self.longest(block).min(want);
                let Some(start) = self.take(longest, block) else {
                    break;
                };
                extents.push(start..start + longest);
                want -= longest;
                left -= longest;
            }
        }
        if left > 0 {
            for extent in extents.drain(..) {
                self.give(extent.start, extent.end - extent.start);
            }
        }
        left == 0
    }

    /// The longest extent of whole blocks of `block` bytes that is there.
    fn longest(&self, block: u64) -> u64 {
        self.free
            .iter()
            .filter_map(|r| {
                let start = r.start.checked_next_multiple_of(block)?;
                Some(r.end.checked_sub(start)? / block * block)
            })
            .max()
            .unwrap_or(0)
    }

    /// Adds a range that touches no free one but at its ends: whether there was
    /// room for it.
    fn insert(&mut self, range: Range<u64>) -> bool {
        let at = self.free.partition_point(|r| r.start < range.start);
        let follows = at > 0 && self.free[at - 1].end == range.start;
        let leads = self.free.get(at).is_some_and(|r| r.start == range.end);
        match (follows, leads) {
            (true, true) => self.free[at - 1].end = self.free.remove(at).end,
            (true, false) => self.free[at - 1].end = range.end,
            (false, true) => self.free[at].start = range.start,
            (false, false) if self.free.len() == self.free.capacity() => return false,
            (false, false) => self.free.insert(at, range),
        }
        true
    }

    /// Removes what is free of a range: whether there was room for the rest.
    fn remove(&mut self, range: Range<u64>) -> bool {
        let inside = (self.free.iter()).position(|r| r.start < range.start && range.end < r.end);
        if let Some(at) = inside {
            if self.free.len() == self.free.capacity() {
                return false;
            }
            let above = range.end..self.free[at].end;
            self.free[at].end = range.start;
            self.free.insert(at + 1, above);
            return true;
        }
        for r in &mut self.free {
            if r.start < range.end && range.start < r.end {
                if r.start < range.start {
                    r.end = range.start;
                } else {
                    r.start = range.end.min(r.end);
                }
            }
        }
        self.free.retain(|r| !r.is_empty());
        true
    }
}

/// Makes room for `extents` more that are taken and not given back: as many can
/// be taken, and all come back.
pub fn make_room(granules: &Mutex<Granules>, extents: usize) {
    let now = granules.lock().free.capacity();
    // Allocated before the lock is taken, and freed behind it.
    let mut room = Vec::with_capacity(now + extents);
    let mut granules = granules.lock();
    room.append(&mut granules.free);
    let old = core::mem::replace(&mut granules.free, room);
    drop(granules);
    drop(old);
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
        let mut extents = Vec::with_capacity(8);
        assert!(granules.take_scattered(0x20_0000 * 2 + 0x3000, &[0x20_0000], &mut extents));
        assert_eq!(extents, vec![0x20_0000..0x60_0000, 0x1000..0x4000]);
        let mut none = Vec::with_capacity(8);
        assert!(!granules.take_scattered(0x4000_0000, &[0x20_0000], &mut none));
        assert!(none.is_empty());
        assert_eq!(granules.free_bytes(), 0x20_0000 * 3 + 0x4000 - 0x40_3000);
    }

    #[test]
    fn as_many_runs_as_there_is_room_for_are_taken_and_all_come_back() {
        let mut granules = Granules::new(16, &[0..1 << 20, 0..0], &[]);
        let room = granules.free.capacity();
        // Every other granule: each splits a range.
        let taken: Vec<u64> = (0..).step_by(2).map(|n| n * 16).take(room).collect();
        for &start in &taken {
            assert!(granules.remove(start..start + 16));
        }
        // One that would split a range is none; one that does not still goes.
        assert_eq!(granules.take(16, 1 << 19), None);
        assert_eq!(granules.take(16, 16), Some(16));
        assert!(granules.give(16, 16));
        assert_eq!(granules.free.capacity(), room);
        for start in taken {
            assert!(granules.give(start, 16));
        }
        assert_eq!(granules.ranges(), core::slice::from_ref(&(0..1 << 20)));
    }

    proptest! {
        #[test]
        fn runs_are_disjoint_aligned_and_all_come_back(
            requests in prop::collection::vec((1u64..40, 0u32..4, any::<bool>()), 1..60),
        ) {
            let new = || Granules::new(16, &[48..1024, 2000..4096], &[3000..3010, 0..0]);
            let whole = new();
            let mut granules = new();
            let mut taken: Vec<(u64, u64)> = Vec::new();
            let mut bytes = BTreeSet::new();
            for (granule_count, align, give) in requests {
                let size = granule_count * 16;
                if give && !taken.is_empty() {
                    let (start, size) = taken.swap_remove(taken.len() / 2);
                    prop_assert!(granules.give(start, size));
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

//! Blocks of a plain guest's RAM that are split into pages as soon as they are mapped
//! (`populate = "lazy-pages"`).
//!
//! A CPU's TLB is best served by blocks; QEMU's is not. One entry of more than a page
//! makes it forget all that it holds at each TLBI of a single address, and a page of the
//! guest's that is part of a block here counts as such. A booting Linux has 100,000 of
//! those. To map a block and to split it are two calls; to map its pages is one for each.

use super::delegated::{leaked, reclaim};
use super::pieces::Bits;
use crate::granules::Granules;
use crate::rmi_call;
use core::ops::Range;
use spin::Mutex;

/// The tables that a guest's pieces are split by.
#[derive(Debug)]
pub struct Splits {
    /// Granules that become tables, EL2's already: a first touch takes no memory.
    free: Mutex<Range<u64>>,
    split: Bits,
}

impl Splits {
    /// None, of so many pieces.
    pub(super) fn new(count: usize) -> Self {
        Self {
            free: Mutex::new(0..0),
            split: Bits::new(count),
        }
    }

    /// Sets tables aside for `count` pieces, or fewer where memory is short or in parts:
    /// what is not split stays a block.
    pub(super) fn reserve(&self, granules: &Mutex<Granules>, count: u64) {
        let (size, start) = {
            let mut granules = granules.lock();
            let size = granules.granule();
            // As much is to be left for what others cannot do without.
            let has_room = count > 0 && granules.free_bytes() / 2 >= count * size;
            let start = has_room.then(|| granules.take(count * size, size));
            (size, start.flatten())
        };
        let Some(start) = start else {
            return log::debug!("no {count} granules for tables: blocks stay blocks");
        };
        let (mut at, end) = (start, start + count * size);
        while at < end {
            match rmi_call::granule_range_delegate(at, end) {
                Ok(next) if next > at && next <= end => at = next,
                _ => {
                    log::debug!("GRANULE_RANGE_DELEGATE came to {at:#x} of {end:#x}");
                    granules.lock().give(at, end - at);
                    break;
                }
            }
        }
        *self.free.lock() = start..at;
    }

    /// Splits the block that maps a piece of the realm `rd`, if there is a table for it.
    pub(super) fn split(&self, rd: u64, (piece, ipa): (usize, u64), granule: u64) {
        let mut free = self.free.lock();
        if free.is_empty() {
            return;
        }
        match rmi_call::rtt_create(rd, free.start, ipa, 3) {
            Ok(()) => {
                free.start += granule;
                self.split.set(piece);
            }
            Err(error) => log::debug!("RTT_CREATE: {error}: a block stays one"),
        }
    }

    /// Makes a piece a block again, of a realm that does not run: false if its table
    /// stays.
    pub(super) fn join(
        &self,
        rd: u64,
        (piece, ipa): (usize, u64),
        granules: &Mutex<Granules>,
    ) -> bool {
        if !self.split.get(piece) {
            return true;
        }
        self.split.clear(piece);
        match rmi_call::rtt_fold(rd, ipa, 3) {
            Ok(table) => {
                reclaim(granules, table);
                true
            }
            Err(error) => {
                leaked("RTT_FOLD", error);
                false
            }
        }
    }

    /// Gives back the tables that were none.
    pub(super) fn release(&self, granules: &Mutex<Granules>) {
        let size = granules.lock().granule();
        let free = core::mem::take(&mut *self.free.lock());
        for granule in free.step_by(size as usize) {
            reclaim(granules, granule);
        }
    }
}

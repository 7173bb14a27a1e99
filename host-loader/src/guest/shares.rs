//! What a realm shares of its RAM: granules that it made EMPTY (RSI), and what it
//! finds at their addresses in the other half.
//!
//! A granule that is EMPTY is the host's again, and stands in the other half where
//! the realm touches it there. Where EL2's granule is larger than RSI's, a realm may
//! share a part of one: the rest of it stays its own, so that other memory of the
//! host's stands in the other half.

use super::pieces::Bits;
use alloc::vec::Vec;
use core::ops::Range;

/// The most granules that a realm shares in part: so much of the host's memory can it
/// take beside its own.
pub const PARTS: usize = 64;

/// Memory of the host's in the other half, of a granule that is the realm's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    granule: usize,
    pa: u64,
}

/// The granules of one realm's RAM. Of a guest that is no realm there are none.
#[derive(Debug)]
pub struct Shares {
    shift: u32,
    base: u64,
    /// EMPTY: the host's.
    empty: Bits,
    /// To be found in the other half.
    mapped: Bits,
    /// Those of them that are not EMPTY.
    parts: Vec<Part>,
    /// Tables that the realm got since it runs.
    pub tables: usize,
    /// Which vCPUs' changes have stopped short, and where: each goes on there.
    stopped: Vec<(u64, u64)>,
}

/// The most vCPUs whose changes are remembered.
const STOPPED: usize = 64;

impl Shares {
    /// Those of RAM of `size` bytes from `base` on, in granules of `1 << shift`: none
    /// is shared.
    pub fn new(base: u64, size: u64, shift: u32) -> Self {
        let count = (size >> shift) as usize;
        Self {
            shift,
            base,
            empty: Bits::new(count),
            mapped: Bits::new(count),
            parts: Vec::with_capacity(if size == 0 { 0 } else { PARTS }),
            tables: 0,
            stopped: Vec::with_capacity(if size == 0 { 0 } else { STOPPED }),
        }
    }

    /// Nothing is shared any more; [`take_part`](Self::take_part) was called until there
    /// was none.
    pub fn forget(&mut self) {
        self.empty.clear_all();
        self.mapped.clear_all();
        self.tables = 0;
        self.stopped.clear();
    }

    /// Where the change of the vCPU `rec` stopped short, if it did: it is forgotten.
    pub fn take_stopped(&mut self, rec: u64) -> Option<u64> {
        let at = self.stopped.iter().position(|stopped| stopped.0 == rec)?;
        Some(self.stopped.swap_remove(at).1)
    }

    /// The change of the vCPU `rec`, of which none is remembered, has stopped short.
    pub fn set_stopped(&mut self, rec: u64, at: u64) {
        if self.stopped.len() < self.stopped.capacity().min(STOPPED) {
            self.stopped.push((rec, at));
        }
    }

    /// Bytes of a granule.
    pub const fn granule(&self) -> u64 {
        1 << self.shift
    }

    fn index(&self, ipa: u64) -> usize {
        ((ipa - self.base) >> self.shift) as usize
    }

    fn indices(&self, ipas: &Range<u64>) -> Range<usize> {
        self.index(ipas.start)..self.index(ipas.end.next_multiple_of(self.granule()))
    }

    /// The address of a granule's.
    const fn ipa(&self, granule: usize) -> u64 {
        self.base + ((granule as u64) << self.shift)
    }

    /// Makes granules EMPTY, or no longer.
    pub fn set_empty(&self, ipas: &Range<u64>, empty: bool) {
        set(&self.empty, self.indices(ipas), empty);
    }

    /// Whether the granule at `ipa` is EMPTY.
    pub fn is_empty(&self, ipa: u64) -> bool {
        self.empty.get(self.index(ipa))
    }

    /// Whether any granule of a range is.
    pub fn any_empty(&self, ipas: &Range<u64>) -> bool {
        self.empty.any(self.indices(ipas))
    }

    /// Whether any granule of a range is the realm's own.
    pub fn any_own(&self, ipas: &Range<u64>) -> bool {
        self.empty.any_clear(self.indices(ipas))
    }

    /// The first run of granules in a range that are.
    pub fn first_empty(&self, ipas: &Range<u64>) -> Option<Range<u64>> {
        let run = first_run(self.indices(ipas), |granule| self.empty.get(granule));
        run.map(|run| self.ipa(run.start)..self.ipa(run.end))
    }

    /// Whether all granules of a range are EMPTY, and none is to be found in the other
    /// half.
    pub fn is_idle(&self, ipas: &Range<u64>) -> bool {
        let mut all = self.indices(ipas);
        all.all(|granule| self.empty.get(granule) && !self.mapped.get(granule))
    }

    /// Notes which are to be found in the other half.
    pub fn set_mapped(&self, ipas: &Range<u64>, mapped: bool) {
        set(&self.mapped, self.indices(ipas), mapped);
    }

    /// Whether that at `ipa` is.
    pub fn is_mapped(&self, ipa: u64) -> bool {
        self.mapped.get(self.index(ipa))
    }

    /// The first granule of a range that is to be found in the other half.
    pub fn first_mapped(&self, ipas: &Range<u64>) -> Option<u64> {
        let first = self.indices(ipas).find(|granule| self.mapped.get(*granule));
        first.map(|granule| self.ipa(granule))
    }

    /// The first run of granules in a range that are the realm's own.
    pub fn first_own(&self, ipas: &Range<u64>) -> Option<Range<u64>> {
        let run = first_run(self.indices(ipas), |granule| !self.empty.get(granule));
        run.map(|run| self.ipa(run.start)..self.ipa(run.end))
    }

    /// Notes memory of the host's that stands in the other half for the realm's own
    /// granule at `ipa`: false, and nothing is noted, where there are too many.
    pub fn add_part(&mut self, ipa: u64, pa: u64) -> bool {
        let granule = self.index(ipa);
        let room = self.parts.len() < self.parts.capacity().min(PARTS);
        if room {
            self.parts.push(Part { granule, pa });
        }
        room
    }

    /// Whether there is room for one more of them.
    pub fn has_room(&self) -> bool {
        self.parts.len() < self.parts.capacity().min(PARTS)
    }

    /// Forgets one of them, of the granule at `ipa` if one is named: its memory.
    pub fn take_part(&mut self, ipa: Option<u64>) -> Option<u64> {
        let granule = ipa.map(|ipa| self.index(ipa));
        let of = |part: &Part| granule.is_none_or(|granule| granule == part.granule);
        let at = self.parts.iter().position(of)?;
        Some(self.parts.swap_remove(at).pa)
    }
}

fn first_run(all: Range<usize>, is: impl Fn(usize) -> bool) -> Option<Range<usize>> {
    let start = all.clone().find(|granule| is(*granule))?;
    let end = (start..all.end).find(|granule| !is(*granule));
    Some(start..end.unwrap_or(all.end))
}

fn set(bits: &Bits, range: Range<usize>, value: bool) {
    for bit in range {
        if value {
            bits.set(bit);
        } else {
            bits.clear(bit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u64 = 0x4000_0000;

    #[test]
    fn what_is_empty_and_what_is_mapped_are_two_things() {
        let shares = Shares::new(BASE, 2 << 20, 14);
        let shared = BASE + 0x8000..BASE + 0x1_0000;
        shares.set_empty(&shared, true);
        assert!(shares.is_empty(BASE + 0xffff) && !shares.is_empty(BASE + 0x1_0000));
        assert!(shares.is_idle(&shared));
        assert_eq!(shares.first_mapped(&(BASE..BASE + 0x20_0000)), None);
        shares.set_mapped(&(BASE + 0xc000..BASE + 0x1_0000), true);
        assert!(shares.is_mapped(BASE + 0xd000) && !shares.is_idle(&shared));
        let all = BASE..BASE + 0x20_0000;
        assert_eq!(shares.first_mapped(&all), Some(BASE + 0xc000));
        // A part of a granule is the granule.
        assert_eq!(shares.first_own(&all), Some(BASE..BASE + 0x8000));
        let behind = BASE + 0x1_0000..BASE + 0x20_0000;
        let from = BASE + 0x8000..BASE + 0x20_0000;
        assert_eq!(shares.first_own(&from), Some(behind.clone()));
        assert_eq!(shares.first_own(&shared), None);
        assert_eq!(shares.first_empty(&all), Some(shared.clone()));
        assert!(shares.any_empty(&all) && !shares.any_empty(&behind));
        assert!(shares.any_own(&all) && !shares.any_own(&shared));
        let half = BASE + 0xc000..BASE + 0x1_0000;
        shares.set_empty(&half, false);
        assert_eq!(shares.first_own(&shared), Some(half));
    }

    #[test]
    fn parts_are_bounded_and_come_back() {
        let mut shares = Shares::new(BASE, 8 << 20, 16);
        for n in 0..PARTS as u64 {
            assert!(shares.has_room() && shares.add_part(BASE + n * 0x1_0000, 0x1000 + n));
        }
        assert!(!shares.has_room() && !shares.add_part(BASE, 7));
        assert_eq!(shares.take_part(Some(BASE + 0x2_1234)), Some(0x1002));
        assert_eq!(shares.take_part(Some(BASE + 0x2_0000)), None);
        let rest = core::iter::from_fn(|| shares.take_part(None)).count();
        assert_eq!(rest, PARTS - 1);
        // A guest that is no realm has room for none.
        let mut none = Shares::new(BASE, 0, 12);
        assert!(!none.has_room() && !none.add_part(BASE, 1));
    }
}

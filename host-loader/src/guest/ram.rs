//! A guest's RAM: extents of the host's memory behind consecutive IPAs.

use super::pieces::{PIECE_SIZE, Pieces};
use super::shares::Shares;
use super::splits::Splits;
use crate::arch::bytes;
use crate::granules::Granules;
use crate::image::GuestMemory;
use crate::pace::{PIECE, Pace};
use alloc::sync::Arc;
use alloc::vec::Vec;
use arm64::instr;
use core::ops::Range;
use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, fence};
use spin::Mutex;

/// A contiguous part of a guest's RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where the guest sees it.
    pub ipa: u64,
    /// Where it is.
    pub pa: u64,
    /// Bytes.
    pub size: u64,
}

/// A place in a guest's RAM, which the guest may access at the same time. A fence
/// on either side of each access does what a barrier beside it, or an acquire or
/// release in it, would: which of them the guest wrote need not be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spot {
    pa: u64,
}

impl Spot {
    fn pointer<T>(self) -> *mut T {
        core::ptr::with_exposed_provenance_mut(self.pa as usize)
    }

    /// Reads `size` bytes, as many as [`Ram::find`] was asked for. `coherent`: all of
    /// the guest's accesses are cached (FEAT_S2FWB).
    pub fn load(self, size: u64, coherent: bool) -> u64 {
        if !coherent {
            instr::clean_to_poc(self.pa, size);
        }
        fence(SeqCst);
        // SAFETY: `find` made the place: aligned, `size` bytes of the guest's
        // RAM, which is the host's while the guest lives. Atomic, since the
        // guest may access them at the same time.
        let value = unsafe {
            match size {
                1 => AtomicU8::from_ptr(self.pointer()).load(Relaxed).into(),
                2 => AtomicU16::from_ptr(self.pointer()).load(Relaxed).into(),
                4 => AtomicU32::from_ptr(self.pointer()).load(Relaxed).into(),
                _ => AtomicU64::from_ptr(self.pointer()).load(Relaxed),
            }
        };
        fence(SeqCst);
        value
    }

    /// Writes `size` bytes, as many as [`Ram::find`] was asked for.
    pub fn store(self, size: u64, value: u64, coherent: bool) {
        if !coherent {
            // The line that the value goes into may be older than memory.
            instr::clean_to_poc(self.pa, size);
        }
        fence(SeqCst);
        // SAFETY: As for `load`.
        unsafe {
            match size {
                1 => AtomicU8::from_ptr(self.pointer()).store(value as u8, Relaxed),
                2 => AtomicU16::from_ptr(self.pointer()).store(value as u16, Relaxed),
                4 => AtomicU32::from_ptr(self.pointer()).store(value as u32, Relaxed),
                _ => AtomicU64::from_ptr(self.pointer()).store(value, Relaxed),
            }
        }
        fence(SeqCst);
        if !coherent {
            instr::clean_to_poc(self.pa, size);
        }
    }

    /// Replaces eight bytes; false if they are not `old`.
    pub fn exchange(self, old: u64, new: u64, coherent: bool) -> bool {
        if !coherent {
            instr::clean_to_poc(self.pa, 8);
        }
        // SAFETY: As for `load`, with a size of 8.
        let exchanged = unsafe {
            AtomicU64::from_ptr(self.pointer()).compare_exchange(old, new, SeqCst, SeqCst)
        };
        if !coherent {
            instr::clean_to_poc(self.pa, 8);
        }
        exchanged.is_ok()
    }
}

/// All of a guest's RAM, by IPA from its base without a hole, as those share it who
/// know the guest.
#[derive(Debug)]
pub struct Ram {
    extents: Vec<Extent>,
    pieces: Pieces,
    /// What a realm shares of it.
    shares: Mutex<Shares>,
    splits: Splits,
    /// EL2 has kept something of it.
    lost: AtomicBool,
}

impl Ram {
    /// It is nobody's to use any more: EL2 has not given all of it back.
    pub fn lose(&self) {
        self.lost.store(true, Relaxed);
    }

    /// Whether that is so.
    pub fn is_lost(&self) -> bool {
        self.lost.load(Relaxed)
    }

    /// Its parts.
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// Which of its pieces are populated.
    pub fn pieces(&self) -> &Pieces {
        &self.pieces
    }

    /// What a realm shares of it; of another guest's nothing is.
    pub fn shares(&self) -> &Mutex<Shares> {
        &self.shares
    }

    /// Its blocks that are split.
    pub fn splits(&self) -> &Splits {
        &self.splits
    }

    /// Its realm is gone, and shares nothing any more.
    pub fn forget_shares(&self, granules: &Mutex<Granules>) {
        let mut shares = self.shares.lock();
        while let Some(pa) = shares.take_part(None) {
            granules.lock().give(pa, shares.granule());
        }
        shares.forget();
    }

    /// The IPAs that are RAM.
    pub fn range(&self) -> Range<u64> {
        match (self.extents.first(), self.extents.last()) {
            (Some(first), Some(last)) => first.ipa..last.ipa + last.size,
            _ => 0..0,
        }
    }

    /// The number of the piece that an IPA is in; `None` where there is no RAM.
    #[inline]
    pub fn piece_at(&self, ipa: u64) -> Option<usize> {
        let range = self.range();
        range
            .contains(&ipa)
            .then(|| ((ipa - range.start) / PIECE_SIZE) as usize)
    }

    /// The IPAs of a piece.
    pub fn piece(&self, piece: usize) -> Range<u64> {
        let start = self.range().start + piece as u64 * PIECE_SIZE;
        start..start + PIECE_SIZE
    }

    /// What a piece is made of.
    pub fn parts_of(&self, piece: usize) -> impl Iterator<Item = Extent> {
        self.parts(self.piece(piece))
    }

    /// The same, in parts that are zeroed or cleaned between two steps.
    fn parts_in_steps(&self, piece: usize) -> impl Iterator<Item = Extent> {
        let ipas = self.piece(piece);
        let steps = ipas.step_by(PIECE as usize);
        steps.flat_map(|start| self.parts(start..start + PIECE))
    }

    /// What stands behind these IPAs.
    pub fn parts(&self, ipas: Range<u64>) -> impl Iterator<Item = Extent> {
        self.extents.iter().filter_map(move |extent| {
            let from = ipas.start.max(extent.ipa);
            let to = ipas.end.min(extent.ipa + extent.size);
            (from < to).then(|| Extent {
                ipa: from,
                pa: extent.pa + (from - extent.ipa),
                size: to - from,
            })
        })
    }

    /// Where the byte at `ipa` is; `None` where there is no RAM.
    pub fn pa_at(&self, ipa: u64) -> Option<u64> {
        self.find(ipa, 1).map(|spot| spot.pa)
    }

    /// The place of `size` bytes at `ipa`, an aligned 1, 2, 4 or 8; `None` where
    /// there is no RAM. It is the guest's only if its piece is populated.
    pub fn find(&self, ipa: u64, size: u64) -> Option<Spot> {
        let mut extents = self.extents.iter();
        let extent = extents.find(|extent| ipa >= extent.ipa && ipa - extent.ipa < extent.size)?;
        let offset = ipa - extent.ipa;
        let fits = ipa.is_multiple_of(size) && size <= extent.size - offset;
        fits.then_some(Spot {
            pa: extent.pa + offset,
        })
    }

    /// Zeroes a piece, which the caller has claimed; before another sees that it is
    /// mapped, it is zero.
    pub fn zero_piece(&self, piece: usize) {
        for part in self.parts_of(piece) {
            zero_part(part);
        }
    }

    /// Sets all bits of these IPAs, multiples of 8, which the guest may read meanwhile.
    pub fn fill_with_ones(&self, ipas: Range<u64>, coherent: bool) {
        for part in self.parts(ipas) {
            if !coherent {
                instr::clean_to_poc(part.pa, part.size);
            }
            fence(SeqCst);
            for pa in (part.pa..part.pa + part.size).step_by(8) {
                // SAFETY: a part of an extent, which `GuestRam::new`'s caller answers
                // for; aligned. Atomic, since the guest may access it at the same time.
                let word = unsafe {
                    AtomicU64::from_ptr(core::ptr::with_exposed_provenance_mut(pa as usize))
                };
                word.store(u64::MAX, Relaxed);
            }
            fence(SeqCst);
            if !coherent {
                instr::clean_to_poc(part.pa, part.size);
            }
        }
    }

    /// Cleans a piece to the point of coherency, for a guest whose accesses may not
    /// be cached (without FEAT_S2FWB): dirty lines of before could be written back
    /// over what it writes.
    pub fn clean_piece(&self, piece: usize) {
        for part in self.parts_of(piece) {
            instr::clean_to_poc(part.pa, part.size);
        }
    }
}

fn zero_part(part: Extent) {
    let to = core::ptr::with_exposed_provenance_mut::<u8>(part.pa as usize);
    // SAFETY: A part of an extent, which `GuestRam::new`'s caller answers for. Its
    // piece is claimed and not mapped, or no guest runs: nobody else is there.
    unsafe { bytes::zero_bytes(to, part.size as usize) };
}

/// The RAM of a guest that does not run, to fill.
#[derive(Debug)]
pub struct GuestRam {
    ram: Arc<Ram>,
    /// What was written, in the order of that.
    written: Vec<Range<u64>>,
}

impl GuestRam {
    /// RAM from IPA `base`, made of `extents` of the host's memory in this order,
    /// together a multiple of [`PIECE_SIZE`].
    ///
    /// # Safety
    /// The extents are mapped read-write at their own addresses and nobody else's
    /// while this lives.
    pub unsafe fn new(base: u64, extents: &[Range<u64>]) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self::with_shares(base, extents, None) }
    }

    /// The same of a realm, which shares it in granules of `1 << shift` bytes.
    ///
    /// # Safety
    /// As [`new`](Self::new).
    pub unsafe fn of_realm(base: u64, extents: &[Range<u64>], shift: u32) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self::with_shares(base, extents, Some(shift)) }
    }

    /// # Safety
    /// As [`new`](Self::new).
    unsafe fn with_shares(base: u64, extents: &[Range<u64>], shift: Option<u32>) -> Self {
        let mut ipa = base;
        let extents = extents
            .iter()
            .map(|range| {
                let extent = Extent {
                    ipa,
                    pa: range.start,
                    size: range.end - range.start,
                };
                ipa += extent.size;
                extent
            })
            .collect();
        let size = ipa - base;
        let shares = match shift {
            Some(shift) => Shares::new(base, size, shift),
            None => Shares::new(base, 0, 12),
        };
        let ram = Arc::new(Ram {
            extents,
            pieces: Pieces::new(size),
            splits: Splits::new((size / PIECE_SIZE) as usize),
            shares: Mutex::new(shares),
            lost: AtomicBool::new(false),
        });
        let written = Vec::new();
        Self { ram, written }
    }

    /// What was written since it was last forgotten, in whole granules of `granule`
    /// bytes, each once and the lowest first.
    pub fn written(&self, granule: u64) -> Vec<Range<u64>> {
        let rounded = self.written.iter().map(|range| {
            let start = range.start & !(granule - 1);
            start..range.end.next_multiple_of(granule)
        });
        let mut all: Vec<Range<u64>> = rounded.collect();
        all.sort_unstable_by_key(|range| range.start);
        all.dedup_by(|next, last| {
            let one = next.start <= last.end;
            if one {
                last.end = last.end.max(next.end);
            }
            one
        });
        all
    }

    /// As others may know it.
    pub fn shared(&self) -> &Arc<Ram> {
        &self.ram
    }

    /// Nothing of it is populated: what the boot loader, the host or an earlier life
    /// of the guest left there is nothing for it to see.
    pub fn forget(&mut self) {
        self.ram.pieces.forget();
        self.written.clear();
    }

    /// Zeroes what is not claimed of these IPAs, a piece at a time, and claims it.
    fn claim(&self, ipas: Range<u64>) {
        let base = self.ram.range().start;
        let first = (ipas.start - base) / PIECE_SIZE;
        let end = (ipas.end - base).div_ceil(PIECE_SIZE);
        for piece in first as usize..end as usize {
            if self.ram.pieces.claim(piece) {
                self.ram.zero_piece(piece);
            }
        }
    }

    /// Zeroes all of it that is not claimed, and claims it.
    pub async fn claim_all(&mut self, pace: &Pace) {
        for start in self.range().step_by(PIECE_SIZE as usize) {
            let piece = self.ram.piece_at(start).unwrap_or_default();
            if self.ram.pieces.claim(piece) {
                for part in self.ram.parts_in_steps(piece) {
                    zero_part(part);
                    pace.step().await;
                }
            }
        }
    }

    /// Cleans what is claimed of it; see [`Ram::clean_piece`].
    pub async fn clean_claimed(&mut self, pace: &Pace) {
        for piece in self.ram.pieces.claimed() {
            for part in self.ram.parts_in_steps(piece) {
                instr::clean_to_poc(part.pa, part.size);
                pace.step().await;
            }
        }
    }

    /// [`GuestMemory::write`] in steps.
    pub async fn write_in_steps(&mut self, ipa: u64, bytes: &[u8], pace: &Pace) {
        self.will_write(ipa..ipa + bytes.len() as u64);
        let mut at = ipa;
        for piece in bytes.chunks(PIECE as usize) {
            self.write(at, piece);
            at += piece.len() as u64;
            pace.step().await;
        }
    }
}

impl GuestMemory for GuestRam {
    fn range(&self) -> Range<u64> {
        self.ram.range()
    }

    fn will_write(&mut self, ipas: Range<u64>) {
        let base = self.ram.range().start;
        let first = (ipas.start - base).div_ceil(PIECE_SIZE);
        for piece in first as usize..((ipas.end - base) / PIECE_SIZE) as usize {
            self.ram.pieces.claim(piece);
        }
    }

    fn write(&mut self, ipa: u64, bytes: &[u8]) {
        let ipas = ipa..ipa + bytes.len() as u64;
        assert!(
            self.range().start <= ipas.start && ipas.end <= self.range().end,
            "a write outside the guest's RAM"
        );
        self.claim(ipas.clone());
        match self.written.last_mut() {
            Some(last) if last.end == ipas.start => last.end = ipas.end,
            _ => self.written.push(ipas.clone()),
        }
        let mut rest = bytes;
        for part in self.ram.parts(ipas) {
            let (now, later) = rest.split_at(part.size as usize);
            rest = later;
            let to = core::ptr::with_exposed_provenance_mut::<u8>(part.pa as usize);
            let lines = now.len() / 64;
            // SAFETY: `parts` stays inside the extents, which `new`'s caller
            // answers for; `bytes` is the host's own and elsewhere.
            unsafe {
                bytes::copy_lines(to, now.as_ptr(), lines);
                core::ptr::copy_nonoverlapping(
                    now.as_ptr().add(lines * 64),
                    to.add(lines * 64),
                    now.len() % 64,
                );
            }
        }
    }

    fn zero(&mut self, ipa: u64, count: u64) {
        assert!(
            self.range().start <= ipa && count <= self.range().end - ipa,
            "a write outside the guest's RAM"
        );
        self.claim(ipa..ipa + count);
        for part in self.ram.parts(ipa..ipa + count) {
            zero_part(part);
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::pace::at_once;
    use std::vec;

    /// RAM of two extents, two pieces and a half, then the rest: and their bytes,
    /// all of them ones.
    fn ram() -> (GuestRam, [Vec<u8>; 2]) {
        let size = PIECE_SIZE as usize / 2;
        let mut bytes = [vec![1u8; 5 * size], vec![1u8; size]];
        let extents = bytes.each_mut().map(|bytes| {
            let start = bytes.as_mut_ptr().expose_provenance() as u64;
            start..start + bytes.len() as u64
        });
        // SAFETY: The vectors live to the end and are not touched before.
        (unsafe { GuestRam::new(0x4000_0000, &extents) }, bytes)
    }

    #[test]
    fn writes_cross_from_run_to_run() {
        let (mut ram, [first, second]) = ram();
        assert_eq!(ram.range(), 0x4000_0000..0x4060_0000);
        let data: Vec<u8> = (0..200).collect();
        ram.write(0x404f_ff9c, &data);
        ram.write(0x4050_0070, &[7; 0x200]);
        ram.zero(0x4050_0080, 0x100);
        at_once(ram.clean_claimed(&Pace::new()));
        assert_eq!(first[first.len() - 100..], data[..100]);
        assert_eq!(second[..100], data[100..]);
        assert_eq!(second[0x64..0x70], [0; 12]);
        assert_eq!(second[0x70..0x80], [7; 16]);
        assert!(second[0x80..0x180].iter().all(|&b| b == 0));
        assert_eq!(second[0x180], 7);
    }

    #[test]
    fn of_what_is_written_in_one_go_only_the_ends_are_zeroed() {
        let (mut ram, [first, second]) = ram();
        let half = PIECE_SIZE as usize / 2;
        // Half the first piece, the second, and a part of the third.
        let data = vec![7; 3 * half + 100];
        at_once(ram.write_in_steps(0x4000_0000 + half as u64, &data, &Pace::new()));
        assert!(ram.shared().pieces().claimed().eq([0, 1, 2]));
        assert!(first[..half].iter().all(|&b| b == 0));
        assert_eq!(first[half..][..data.len()], data);
        assert!(first[half + data.len()..].iter().all(|&b| b == 0));
        assert!(second.iter().all(|&b| b == 0));
        // Of all of a piece nothing else is to be seen, either.
        let (mut ram, [first, _]) = self::ram();
        ram.will_write(0x4000_0000..0x4020_0000);
        assert!(ram.shared().pieces().claimed().eq([0]));
        assert!(
            first[..2 * half].iter().all(|&b| b == 1),
            "to be written yet"
        );
    }

    #[test]
    fn what_is_written_to_is_zero_beside_it_and_what_is_not_stays_as_it_was() {
        let (mut ram, [first, second]) = ram();
        let piece = PIECE_SIZE as usize;
        // From the second piece into the third, which has both extents.
        ram.write(0x403f_fff0, &[7; 32]);
        assert!(ram.shared().pieces().claimed().eq([1, 2]));
        assert_eq!(ram.shared().pieces().mapped().count(), 0);
        assert!(first[..piece].iter().all(|&b| b == 1));
        assert!(first[piece..2 * piece - 16].iter().all(|&b| b == 0));
        assert_eq!(first[2 * piece - 16..2 * piece + 16], [7; 32]);
        assert!(first[2 * piece + 16..].iter().all(|&b| b == 0));
        assert!(second.iter().all(|&b| b == 0));
        at_once(ram.claim_all(&Pace::new()));
        assert!(first[..piece].iter().all(|&b| b == 0));
        assert_eq!(first[2 * piece..2 * piece + 16], [7; 16], "it was written");
        // In its next life, nothing of this one.
        ram.forget();
        ram.zero(0x4040_0000, 1);
        assert!(first[2 * piece..].iter().all(|&b| b == 0));
        assert_eq!(first[2 * piece - 16..2 * piece], [7; 16]);
    }

    #[test]
    fn what_was_written_is_known_in_granules_from_the_lowest_on() {
        let (mut ram, _bytes) = ram();
        ram.write(0x4010_0000, &[1; 0x1800]);
        ram.write(0x4010_1800, &[1; 1]);
        ram.write(0x4000_0fff, &[1; 2]);
        ram.zero(0x4008_0000, 0x1000);
        ram.write(0x4010_1fff, &[1; 1]);
        let expected = [0x4000_0000..0x4000_2000, 0x4010_0000..0x4010_2000];
        assert_eq!(ram.written(0x1000), expected);
        let expected = [0x4000_0000..0x4001_0000, 0x4010_0000..0x4011_0000];
        assert_eq!(ram.written(0x1_0000), expected);
        ram.forget();
        assert!(ram.written(0x1000).is_empty());
    }

    #[test]
    fn a_piece_is_where_its_addresses_are() {
        let (ram, _bytes) = ram();
        let ram = ram.shared();
        let at = [0x3fff_ffff, 0x4000_0000, 0x401f_ffff, 0x4020_0000];
        assert_eq!(
            at.map(|ipa| ram.piece_at(ipa)),
            [None, Some(0), Some(0), Some(1)]
        );
        assert_eq!(ram.piece_at(0x405f_ffff), Some(2));
        assert_eq!(ram.piece_at(0x4060_0000), None);
        let parts: Vec<_> = ram.parts_of(2).map(|part| (part.ipa, part.size)).collect();
        let half = PIECE_SIZE / 2;
        assert_eq!(parts, [(0x4040_0000, half), (0x4050_0000, half)]);
    }

    #[test]
    fn a_spot_is_aligned_and_inside_one_run() {
        let mut bytes = vec![0u64; 1024];
        let pa = bytes.as_mut_ptr().expose_provenance() as u64;
        let extents = [pa..pa + 4096, pa + 4096..pa + 8192];
        // SAFETY: The vector lives to the end; its bytes are not touched otherwise.
        let ram = unsafe { GuestRam::new(0x4000_0000, &extents) };
        let find = |ipa, size| ram.shared().find(ipa, size);
        assert_eq!(find(0x3fff_ffff, 1), None);
        assert_eq!(find(0x4000_2000, 1), None);
        assert_eq!(find(0x4000_1004, 8), None);
        assert_eq!(find(u64::MAX, 1), None);
        let spot = find(0x4000_1ff8, 8).unwrap();
        spot.store(8, 0x1122_3344_5566_7788, false);
        assert!(spot.exchange(0x1122_3344_5566_7788, 7, true));
        assert!(!spot.exchange(8, 9, false));
        find(0x4000_1fff, 1).unwrap().store(1, 0x1ff, true);
        assert_eq!(spot.load(8, false), 0xff00_0000_0000_0007);
        assert_eq!(find(0x4000_1ffe, 2).unwrap().load(2, true), 0xff00);
        assert_eq!(find(0x4000_1ffc, 4).unwrap().load(4, true), 0xff00_0000);
    }
}

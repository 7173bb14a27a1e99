//! A guest's RAM: extents of the host's memory behind consecutive IPAs.

use crate::arch::bytes;
use crate::image::GuestMemory;
use crate::pace::{PIECE, Pace};
use alloc::vec::Vec;
use arm64::instr;
use core::ops::Range;
use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, fence};

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

/// The place of `size` bytes at `ipa`, an aligned 1, 2, 4 or 8; `None` where
/// there is no RAM.
pub fn find(extents: &[Extent], ipa: u64, size: u64) -> Option<Spot> {
    let extent = extents
        .iter()
        .find(|extent| ipa >= extent.ipa && ipa - extent.ipa < extent.size)?;
    let offset = ipa - extent.ipa;
    let fits = ipa.is_multiple_of(size) && size <= extent.size - offset;
    fits.then_some(Spot {
        pa: extent.pa + offset,
    })
}

impl Spot {
    fn pointer<T>(self) -> *mut T {
        core::ptr::with_exposed_provenance_mut(self.pa as usize)
    }

    /// Reads `size` bytes, as many as [`find`] was asked for. `coherent`: all of
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

    /// Writes `size` bytes, as many as [`find`] was asked for.
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

/// All of a guest's RAM, by IPA from its base without a hole.
#[derive(Debug)]
pub struct GuestRam {
    extents: Vec<Extent>,
}

impl GuestRam {
    /// RAM from IPA `base`, made of `extents` of the host's memory in this order.
    ///
    /// # Safety
    /// The extents are mapped read-write at their own addresses and nobody else's
    /// while this lives.
    pub unsafe fn new(base: u64, extents: &[Range<u64>]) -> Self {
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
        Self { extents }
    }

    /// Its parts.
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// Calls `f` with the host addresses and sizes behind `ipa..ipa + size`.
    fn parts(&self, ipa: u64, size: u64, mut f: impl FnMut(u64, u64)) {
        let end = ipa + size;
        for extent in &self.extents {
            let from = ipa.max(extent.ipa);
            let to = end.min(extent.ipa + extent.size);
            if from < to {
                f(extent.pa + (from - extent.ipa), to - from);
            }
        }
    }

    /// Calls `f` with the host addresses and sizes of all of it, a piece a step.
    async fn pieces(&self, pace: &Pace, mut f: impl FnMut(u64, u64)) {
        for extent in &self.extents {
            let mut done = 0;
            while done < extent.size {
                let piece = (extent.size - done).min(PIECE);
                f(extent.pa + done, piece);
                done += piece;
                pace.step().await;
            }
        }
    }

    /// Makes all of it zero: what the boot loader, the host or an earlier life of
    /// the guest left there is nothing for it to see.
    pub async fn zero_all(&mut self, pace: &Pace) {
        self.pieces(pace, |pa, size| {
            let to = core::ptr::with_exposed_provenance_mut::<u8>(pa as usize);
            // SAFETY: A part of an extent, which `new`'s caller answers for.
            unsafe { bytes::zero_bytes(to, size as usize) };
        })
        .await;
    }

    /// Cleans all of it to the point of coherency, for a guest that starts with
    /// its caches off on a machine without FEAT_S2FWB, where dirty lines of before
    /// could be written back over what it writes.
    pub async fn clean_all(&mut self, pace: &Pace) {
        self.pieces(pace, instr::clean_to_poc).await;
    }

    /// [`GuestMemory::write`] in steps.
    pub async fn write_in_steps(&mut self, ipa: u64, bytes: &[u8], pace: &Pace) {
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
        match (self.extents.first(), self.extents.last()) {
            (Some(first), Some(last)) => first.ipa..last.ipa + last.size,
            _ => 0..0,
        }
    }

    fn write(&mut self, ipa: u64, bytes: &[u8]) {
        assert!(
            self.range().start <= ipa && ipa + bytes.len() as u64 <= self.range().end,
            "a write outside the guest's RAM"
        );
        let mut rest = bytes;
        self.parts(ipa, bytes.len() as u64, |pa, size| {
            let (now, later) = rest.split_at(size as usize);
            rest = later;
            let to = core::ptr::with_exposed_provenance_mut::<u8>(pa as usize);
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
        });
    }

    fn zero(&mut self, ipa: u64, count: u64) {
        assert!(
            self.range().start <= ipa && count <= self.range().end - ipa,
            "a write outside the guest's RAM"
        );
        self.parts(ipa, count, |pa, size| {
            let to = core::ptr::with_exposed_provenance_mut::<u8>(pa as usize);
            // SAFETY: As for `write`.
            unsafe { bytes::zero_bytes(to, size as usize) };
        });
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::pace::at_once;
    use std::vec;

    #[test]
    fn writes_cross_from_run_to_run() {
        let mut first = vec![1u8; 4096];
        let mut second = vec![1u8; 4096];
        let range = |v: &mut Vec<u8>| {
            let start = v.as_mut_ptr().expose_provenance() as u64;
            start..start + 4096
        };
        let extents = [range(&mut first), range(&mut second)];
        // SAFETY: The vectors live to the end and are not touched before.
        let mut ram = unsafe { GuestRam::new(0x4000_0000, &extents) };
        assert_eq!(ram.range(), 0x4000_0000..0x4000_2000);
        let data: Vec<u8> = (0..200).collect();
        ram.write(0x4000_0f9c, &data);
        ram.zero(0x4000_1070, 0x100);
        at_once(ram.clean_all(&Pace::new()));
        assert_eq!(first[0xf9c..], data[..100]);
        assert_eq!(second[..100], data[100..]);
        assert_eq!(second[0x6f], 1);
        assert!(second[0x70..0x170].iter().all(|&b| b == 0));
        assert_eq!(second[0x170], 1);
        at_once(ram.zero_all(&Pace::new()));
        assert!(first.iter().chain(&second).all(|&b| b == 0));
    }

    #[test]
    fn a_spot_is_aligned_and_inside_one_run() {
        let mut bytes = vec![0u64; 1024];
        let pa = bytes.as_mut_ptr().expose_provenance() as u64;
        let extents = [
            Extent {
                ipa: 0x4000_0000,
                pa,
                size: 4096,
            },
            Extent {
                ipa: 0x4000_1000,
                pa: pa + 4096,
                size: 4096,
            },
        ];
        let find = |ipa, size| find(&extents, ipa, size);
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

//! Physical memory: sparse words, and who has a page.

use std::cell::Cell;

use crate::hash::FastMap;
use crate::ranges::RangeMap;

const FRAME: u64 = 4096;
const WORDS: usize = 512;

/// One 4 KiB frame that has been written.
#[derive(Clone, Debug, Default)]
struct Frame {
    /// None while all are zero.
    words: Option<Box<[u64; WORDS]>>,
    /// Which are not zero, one bit each.
    held: [u64; WORDS / 64],
    /// Words that hold nothing defined yet, one bit each.
    undefined: Option<Box<[u64; WORDS / 64]>>,
    last: LastStore,
}

impl Frame {
    fn is_zero(&self) -> bool {
        self.held == [0; WORDS / 64]
    }

    /// Stores a word, returns the old one.
    fn swap(&mut self, index: usize, value: u64) -> u64 {
        if self.words.is_none() && value == 0 {
            return 0;
        }
        let words = self.words.get_or_insert_with(|| Box::new([0; WORDS]));
        let old = std::mem::replace(&mut words[index], value);
        let (bits, bit) = (&mut self.held[index / 64], 1 << (index % 64));
        if value == 0 {
            *bits &= !bit;
        } else {
            *bits |= bit;
        }
        old
    }

    /// Makes a word defined; true if it was not.
    fn define(&mut self, index: usize) -> bool {
        let Some(bits) = &mut self.undefined else {
            return false;
        };
        let bit = 1 << (index % 64);
        let was = bits[index / 64] & bit != 0;
        bits[index / 64] &= !bit;
        was
    }
}

/// The last store into a frame that walkers care about, for ordering a link
/// after its contents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LastStore {
    /// Who stored.
    pub pe: u8,
    /// Index of the event.
    pub event: u64,
}

/// What a page is used for, as far as the events told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Use {
    /// Never mentioned: may be mapped and linked without question.
    #[default]
    Unknown,
    /// Given back to its allocator.
    Free,
    /// Allocated for tables.
    Table,
    /// Memory with this owner.
    Data(Owner),
}

/// Whose a page of memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Nobody's: nothing may map it.
    Nobody,
    /// Any stage 2 may map it.
    Shared,
    /// Only the stage 2 of this VMID may map it.
    Vmid(u16),
    /// The hypervisor's own: no stage 2 may map it.
    Hypervisor,
}

/// Frames found lately are remembered in so many places.
const RECENT: usize = 16;

/// Physical memory.
#[derive(Clone, Debug, Default)]
pub struct Mem {
    frames: Vec<Frame>,
    /// Frame number → place in `frames`.
    places: FastMap<u64, u32>,
    /// Frame number + 1 and place, by the low bits of the number.
    recent: [Cell<(u64, u32)>; RECENT],
    uses: RangeMap<Use>,
}

impl Mem {
    fn place(&self, pa: u64) -> Option<usize> {
        let number = pa / FRAME;
        let recent = &self.recent[number as usize % RECENT];
        let (known, place) = recent.get();
        if known == number + 1 {
            return Some(place as usize);
        }
        let place = *self.places.get(&number)?;
        recent.set((number + 1, place));
        Some(place as usize)
    }

    fn frame(&self, pa: u64) -> Option<&Frame> {
        Some(&self.frames[self.place(pa)?])
    }

    fn frame_mut(&mut self, pa: u64) -> &mut Frame {
        let place = self.place(pa).unwrap_or_else(|| {
            self.places.insert(pa / FRAME, self.frames.len() as u32);
            self.frames.push(Frame::default());
            self.frames.len() - 1
        });
        &mut self.frames[place]
    }

    /// The words of `[pa, pa + 8 * count)`, which lie in one frame; nothing if
    /// all are zero.
    pub(crate) fn words(&self, pa: u64, count: u64) -> &[u64] {
        let first = (pa % FRAME / 8) as usize;
        match self.frame(pa).and_then(|frame| frame.words.as_ref()) {
            Some(words) => &words[first..first + count as usize],
            None => &[],
        }
    }

    /// The newest value of the word at `pa` (aligned down to 8).
    pub fn load(&self, pa: u64) -> u64 {
        let words = self.frame(pa).and_then(|frame| frame.words.as_ref());
        words.map_or(0, |words| words[(pa % FRAME / 8) as usize])
    }

    /// Stores a word and returns the old one.
    pub(crate) fn swap(&mut self, pa: u64, value: u64, last: LastStore) -> u64 {
        let index = (pa % FRAME / 8) as usize;
        let frame = self.frame_mut(pa);
        let old = frame.swap(index, value);
        let undefined = frame.define(index);
        // One invalid value for another is no matter of walkers.
        if undefined || (old | value) & 1 == 1 {
            frame.last = last;
        }
        old
    }

    /// Sets `[pa, pa + len)` to zeros that are defined.
    pub(crate) fn zero(&mut self, pa: u64, len: u64, last: LastStore) {
        self.each_frame(pa, len, |frame, words| {
            if words.len() == WORDS {
                if !frame.is_zero() {
                    frame.words = None;
                    frame.held = [0; WORDS / 64];
                }
                frame.undefined = None;
            } else {
                for index in words {
                    frame.swap(index, 0);
                    frame.define(index);
                }
            }
            frame.last = last;
        });
    }

    /// Marks `[pa, pa + len)` as holding nothing defined.
    pub(crate) fn scramble(&mut self, pa: u64, len: u64) {
        self.each_frame(pa, len, |frame, words| {
            let undefined = frame
                .undefined
                .get_or_insert_with(|| Box::new([0; WORDS / 64]));
            for i in words {
                undefined[i / 64] |= 1 << (i % 64);
            }
        });
    }

    fn each_frame(
        &mut self,
        pa: u64,
        len: u64,
        mut f: impl FnMut(&mut Frame, std::ops::Range<usize>),
    ) {
        let end = pa.saturating_add(len);
        let mut at = pa;
        while at < end {
            let next = ((at / FRAME + 1) * FRAME).min(end);
            let first = (at % FRAME / 8) as usize;
            let count = ((next - at) / 8) as usize;
            f(self.frame_mut(at), first..first + count);
            at = next;
        }
    }

    /// Words of `[pa, pa + 8 * count)` that are not zero, as (index, value).
    pub(crate) fn nonzero(&self, pa: u64, count: u64, out: &mut Vec<(u64, u64)>) {
        let mut index = 0;
        while index < count {
            let at = pa + index * 8;
            let in_frame = ((FRAME - at % FRAME) / 8).min(count - index);
            if let Some(frame) = self.frame(at)
                && let Some(words) = &frame.words
            {
                let first = (at % FRAME / 8) as usize;
                let last = first + in_frame as usize;
                for chunk in first / 64..last.div_ceil(64) {
                    let mut bits = frame.held[chunk];
                    while bits != 0 {
                        let place = chunk * 64 + bits.trailing_zeros() as usize;
                        bits &= bits - 1;
                        if (first..last).contains(&place) {
                            out.push((index + (place - first) as u64, words[place]));
                        }
                    }
                }
            }
            index += in_frame;
        }
    }

    /// True if any word of the table is undefined.
    pub(crate) fn undefined(&self, pa: u64, count: u64) -> bool {
        let mut index = 0;
        while index < count {
            let at = pa + index * 8;
            let in_frame = ((FRAME - at % FRAME) / 8).min(count - index);
            if let Some(bits) = self.frame(at).and_then(|f| f.undefined.as_ref()) {
                let first = (at % FRAME / 8) as usize;
                let mut words = first..first + in_frame as usize;
                if words.any(|i| bits[i / 64] >> (i % 64) & 1 == 1) {
                    return true;
                }
            }
            index += in_frame;
        }
        false
    }

    /// The latest store into the frames of a table that was made by `pe`.
    pub(crate) fn last_store_by(&self, pa: u64, bytes: u64, pe: u8) -> u64 {
        let mut at = pa;
        let mut latest = 0;
        while at < pa + bytes {
            if let Some(f) = self.frame(at)
                && f.last.pe == pe
            {
                latest = latest.max(f.last.event);
            }
            at = (at / FRAME + 1) * FRAME;
        }
        latest
    }

    /// What `[pa, pa + len)` is used for, range by range, the last first.
    pub fn uses(&self, pa: u64, len: u64) -> impl Iterator<Item = (u64, u64, Use)> + '_ {
        self.uses.iter_rev(pa, pa.saturating_add(len))
    }

    /// What the page at `pa` is used for.
    pub fn use_at(&self, pa: u64) -> Use {
        self.uses.get(pa)
    }

    pub(crate) fn set_use(&mut self, pa: u64, len: u64, to: Use) {
        self.uses.set(pa, pa.saturating_add(len), to);
    }

    /// All ranges with a known use.
    pub fn all_uses(&self) -> impl Iterator<Item = (u64, u64, Use)> + '_ {
        self.uses.iter(0, u64::MAX)
    }
}

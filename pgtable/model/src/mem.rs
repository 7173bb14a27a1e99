//! Physical memory: sparse words, and who has a page.

use crate::hash::FastMap;
use crate::ranges::RangeMap;

const FRAME: u64 = 4096;
const WORDS: usize = 512;

/// One 4 KiB frame that has been written.
#[derive(Clone, Debug)]
struct Frame {
    words: [u64; WORDS],
    nonzero: u16,
    /// Words that hold nothing defined yet, one bit each.
    undefined: Option<Box<[u64; WORDS / 64]>>,
    last: LastStore,
}

/// The last store into a frame, for ordering a link after its contents.
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

/// Physical memory.
#[derive(Clone, Debug, Default)]
pub struct Mem {
    frames: FastMap<u64, Box<Frame>>,
    uses: RangeMap<Use>,
}

impl Mem {
    fn frame(&self, pa: u64) -> Option<&Frame> {
        self.frames.get(&(pa / FRAME)).map(Box::as_ref)
    }

    fn frame_mut(&mut self, pa: u64) -> &mut Frame {
        self.frames.entry(pa / FRAME).or_insert_with(|| {
            Box::new(Frame {
                words: [0; WORDS],
                nonzero: 0,
                undefined: None,
                last: LastStore::default(),
            })
        })
    }

    /// The newest value of the word at `pa` (aligned down to 8).
    pub fn load(&self, pa: u64) -> u64 {
        self.frame(pa)
            .map_or(0, |f| f.words[(pa % FRAME / 8) as usize])
    }

    /// Stores a word and returns the old one.
    pub(crate) fn swap(&mut self, pa: u64, value: u64, last: LastStore) -> u64 {
        let index = (pa % FRAME / 8) as usize;
        let frame = self.frame_mut(pa);
        let old = std::mem::replace(&mut frame.words[index], value);
        frame.nonzero += u16::from(value != 0);
        frame.nonzero -= u16::from(old != 0);
        frame.last = last;
        if let Some(undefined) = &mut frame.undefined {
            undefined[index / 64] &= !(1 << (index % 64));
        }
        old
    }

    /// Sets `[pa, pa + len)` to zeros that are defined.
    pub(crate) fn zero(&mut self, pa: u64, len: u64, last: LastStore) {
        self.each_frame(pa, len, |frame, words| {
            for i in words.clone() {
                frame.nonzero -= u16::from(frame.words[i] != 0);
                frame.words[i] = 0;
                if let Some(u) = &mut frame.undefined {
                    u[i / 64] &= !(1 << (i % 64));
                }
            }
            if words.len() == WORDS {
                frame.undefined = None;
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
                && frame.nonzero != 0
            {
                let first = (at % FRAME / 8) as usize;
                let words = &frame.words[first..first + in_frame as usize];
                for (i, &word) in words.iter().enumerate() {
                    if word != 0 {
                        out.push((index + i as u64, word));
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

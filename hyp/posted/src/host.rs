//! The host's side.

use core::sync::atomic::{AtomicU64, Ordering, fence};

use crate::{Access, Memory, PAGE, REGISTERS, Write, word};

/// The page. Who closes it, takes from it or shows a view in it holds the lock
/// that the device is modelled under.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct Page {
    words: [AtomicU64; PAGE / 8],
}

/// What EL2 may do without the host: bits are registers, the lowest the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// Reads as `values` say, whatever waits.
    pub readable: u64,
    /// Reads as `values` say while no write waits.
    pub readable_when_empty: u64,
    /// Writes may wait.
    pub writable: u64,
    /// A write of the value changes nothing.
    pub steady: u64,
    /// What the registers read as.
    pub values: [u32; REGISTERS],
}

impl Default for View {
    fn default() -> Self {
        Self::CLOSED
    }
}

impl View {
    /// Everything is the host's.
    pub const CLOSED: Self = Self {
        readable: 0,
        readable_when_empty: 0,
        writable: 0,
        steady: 0,
        values: [0; REGISTERS],
    };

    /// The register at `offset` reads as `value`; `whatever_waits`, or only while
    /// no write does.
    pub const fn reads(&mut self, offset: u64, value: u32, whatever_waits: bool) {
        let register = offset as usize / 4;
        self.values[register] = value;
        if whatever_waits {
            self.readable |= 1 << register;
        } else {
            self.readable_when_empty |= 1 << register;
        }
    }

    /// The register at `offset` keeps `value`: it reads as that, and a write of that
    /// changes nothing.
    pub const fn keeps(&mut self, offset: u64, value: u32) {
        self.reads(offset, value, true);
        self.steady |= 1 << (offset / 4);
    }

    /// A write to the register at `offset` may wait.
    pub const fn waits(&mut self, offset: u64) {
        self.writable |= 1 << (offset / 4);
    }
}

/// What [`Page::close`] clears.
pub(crate) const CLOSED: [usize; 4] = [
    word::WRITABLE,
    word::STEADY,
    word::READABLE_WHEN_EMPTY,
    word::READABLE,
];

impl Default for Page {
    fn default() -> Self {
        Self::new()
    }
}

impl Page {
    /// A closed page in which nothing waits.
    pub const fn new() -> Self {
        Self {
            words: [const { AtomicU64::new(0) }; PAGE / 8],
        }
    }

    fn load(&self, word: usize) -> u64 {
        self.words[word].load(Ordering::Acquire)
    }

    fn store(&self, word: usize, value: u64) {
        self.words[word].store(value, Ordering::Release);
    }

    /// How many writes wait.
    #[inline]
    pub fn waiting(&self) -> u64 {
        let taken = self.words[word::TAKEN].load(Ordering::Relaxed);
        self.load(word::POSTED).wrapping_sub(taken)
    }

    /// Whether nothing waits.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.waiting() == 0
    }

    /// From here on every access is the host's, but for those that EL2 is at.
    /// What is posted all the same is seen by [`Self::next`], or calls the host.
    #[inline]
    pub fn close(&self) {
        for word in CLOSED {
            self.store(word, 0);
        }
        fence(Ordering::SeqCst);
    }

    /// The write that waits longest. It waits until it is [`Self::taken`].
    #[inline]
    pub fn next(&self) -> Option<Write> {
        if self.is_empty() {
            return None;
        }
        let position = self.words[word::TAKEN].load(Ordering::Relaxed);
        Some(Write(self.load(word::entry(position))))
    }

    /// Gives the writes that wait now to `each`, oldest first, up to the first that
    /// it does not take: how many are taken.
    #[inline]
    pub fn take(&self, mut each: impl FnMut(Write) -> bool) -> u64 {
        let posted = self.load(word::POSTED);
        let begin = self.words[word::TAKEN].load(Ordering::Relaxed);
        let mut taken = begin;
        while taken != posted {
            let entry = self.words[word::entry(taken)].load(Ordering::Relaxed);
            if !each(Write(entry)) {
                break;
            }
            taken = taken.wrapping_add(1);
            self.store(word::TAKEN, taken);
        }
        taken.wrapping_sub(begin)
    }

    /// What [`Self::next`] gave is done.
    #[inline]
    pub fn taken(&self) {
        let taken = self.words[word::TAKEN].load(Ordering::Relaxed);
        self.store(word::TAKEN, taken + 1);
    }

    /// Opens the page: what EL2 may do from here on.
    #[inline]
    pub fn show(&self, view: &View) {
        let mut shown = view.readable | view.readable_when_empty;
        while shown != 0 {
            let register = shown.trailing_zeros() as usize;
            self.store(word::VALUES + register, view.values[register].into());
            shown &= shown - 1;
        }
        self.store(word::READABLE, view.readable);
        self.store(word::STEADY, view.steady);
        self.store(word::READABLE_WHEN_EMPTY, view.readable_when_empty);
        self.store(word::WRITABLE, view.writable);
    }
}

impl Memory for &Page {
    #[inline]
    fn load(&mut self, word: usize) -> u64 {
        Page::load(self, word)
    }

    #[inline]
    fn store(&mut self, word: usize, value: u64) {
        Page::store(self, word, value);
    }

    #[inline]
    fn fence(&mut self) {
        fence(Ordering::SeqCst);
    }
}

const _: () = assert!(size_of::<Page>() == PAGE);
const _: () = assert!(Access::new(0, 2).is_some());

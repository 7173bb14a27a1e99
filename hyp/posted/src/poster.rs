//! EL2's side.

use crate::{Access, CALL_AT, ENTRIES, Write, word};

/// The page, as EL2 reaches it: the host may change it at any time.
pub trait Memory {
    /// Loads a word, before everything that is loaded or stored after it.
    fn load(&mut self, word: usize) -> u64;

    /// Stores a word, after everything that was loaded or stored before it.
    fn store(&mut self, word: usize, value: u64);

    /// Completes all stores before any later load.
    fn fence(&mut self);
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Post {
    /// It is the host's to serve.
    Refused,
    /// It waits in the ring, or changes nothing.
    Done,
    /// The same, and the host is to come now.
    Call,
}

/// Who posts: under one lock for all vCPUs of a guest.
#[derive(Debug)]
pub struct Poster {
    /// Writes posted, ever. The page has it for the host; this one counts.
    posted: u64,
    /// How many it may become until who posts looks what the host has taken.
    look_at: u64,
    /// Registers a write to which might wait when that was last looked at.
    writable: u64,
}

impl Default for Poster {
    fn default() -> Self {
        Self::new()
    }
}

impl Poster {
    /// Nothing is posted.
    pub const fn new() -> Self {
        Self {
            posted: 0,
            look_at: CALL_AT - 1,
            writable: 0,
        }
    }

    /// What a read gives; `None` when it is the host's to serve.
    #[inline(always)]
    pub fn read<M: Memory>(&mut self, page: &mut M, access: Access) -> Option<u64> {
        let value_at = word::VALUES + access.register();
        if page.load(word::READABLE) & access.bit != 0 {
            return Some(access.cut(page.load(value_at)));
        }
        // In this order: a host that takes a write forbids this first, and allows
        // it again when the value shows what the write did.
        let taken = page.load(word::TAKEN);
        let readable = page.load(word::READABLE_WHEN_EMPTY) & access.bit != 0;
        let value = page.load(value_at);
        (taken == self.posted && readable).then(|| access.cut(value))
    }

    /// Posts a write, if it may wait and there is room.
    ///
    /// What may wait is known from the write before. If the page was closed since,
    /// that is seen behind this one, as if it had come just before: the host comes
    /// at once and serves it.
    #[inline(always)]
    pub fn write<M: Memory>(&mut self, page: &mut M, access: Access, value: u64) -> Post {
        if self.writable & access.bit == 0 {
            self.writable = page.load(word::WRITABLE);
            if self.writable & access.bit == 0 {
                return Self::write_steady(page, access, value);
            }
        }
        if self.posted == self.look_at {
            return self.write_looking(page, access, value);
        }
        if self.post(page, access, value) {
            Post::Done
        } else {
            Post::Call
        }
    }

    /// The same when it is to be seen how much the host has taken.
    #[inline(always)]
    fn write_looking<M: Memory>(&mut self, page: &mut M, access: Access, value: u64) -> Post {
        let taken = page.load(word::TAKEN);
        let waiting = self.posted.wrapping_sub(taken);
        if waiting >= ENTRIES {
            return Post::Refused;
        }
        let (call, open) = (waiting >= CALL_AT - 1, self.post(page, access, value));
        // As long as it is called, the host may have come.
        self.look_at = if call {
            self.posted
        } else {
            taken.wrapping_add(CALL_AT - 1)
        };
        if call || !open {
            Post::Call
        } else {
            Post::Done
        }
    }

    /// Posts a write: whether such a one may wait still.
    #[inline(always)]
    fn post<M: Memory>(&mut self, page: &mut M, access: Access, value: u64) -> bool {
        let position = self.posted;
        page.store(word::entry(position), Write::new(access, value).0);
        // Nobody lives to see it wrap.
        let posted = position.wrapping_add(1);
        self.posted = posted;
        page.store(word::POSTED, posted);
        page.fence();
        let writable = page.load(word::WRITABLE);
        self.writable = writable;
        writable & access.bit != 0
    }

    /// A write that may not wait, but perhaps changes nothing.
    #[inline(always)]
    fn write_steady<M: Memory>(page: &mut M, access: Access, value: u64) -> Post {
        let steady = page.load(word::STEADY) & access.bit != 0;
        let now = page.load(word::VALUES + access.register());
        if steady && access.cut(value) == now {
            Post::Done
        } else {
            Post::Refused
        }
    }

    /// Passes `each` the writes that wait, oldest first, for a host that will not
    /// take them any more.
    pub fn waiting<M: Memory>(&self, page: &mut M, mut each: impl FnMut(Write)) {
        let waiting = self.posted.wrapping_sub(page.load(word::TAKEN));
        let known = waiting.min(ENTRIES).min(self.posted);
        for position in self.posted - known..self.posted {
            each(Write(page.load(word::entry(position))));
        }
    }
}

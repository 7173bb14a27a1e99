//! EL2's side.

use crate::{Access, CALL_AT, ENTRIES, Write, word};

/// The page, as EL2 reaches it: the host may change it at any time, and it may
/// not be there at all.
pub trait Memory {
    /// The page did not answer.
    type Error;

    /// Loads a word, before everything that is loaded or stored after it.
    ///
    /// # Errors
    /// The page did not answer.
    fn load(&mut self, word: usize) -> Result<u64, Self::Error>;

    /// Stores a word, after everything that was loaded or stored before it.
    ///
    /// # Errors
    /// The page did not answer.
    fn store(&mut self, word: usize, value: u64) -> Result<(), Self::Error>;

    /// Completes all stores before any later load.
    fn fence(&mut self);

    /// Loads two words, in this order.
    ///
    /// # Errors
    /// The page did not answer.
    #[inline]
    fn load_both(&mut self, words: [usize; 2]) -> Result<[u64; 2], Self::Error> {
        Ok([self.load(words[0])?, self.load(words[1])?])
    }

    /// Stores two words and completes both stores, then loads one, all in this order.
    ///
    /// # Errors
    /// The page did not answer.
    #[inline]
    fn store_both(&mut self, stores: [(usize, u64); 2], load: usize) -> Result<u64, Self::Error> {
        for (word, value) in stores {
            self.store(word, value)?;
        }
        self.fence();
        self.load(load)
    }
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
#[derive(Debug, Default)]
pub struct Poster {
    /// Writes posted, ever. The page has it for the host; this one counts.
    posted: u64,
    /// Of these, taken when this was last looked at.
    taken: u64,
    /// Registers a write to which might wait when that was last looked at.
    writable: u64,
}

impl Poster {
    /// Nothing is posted.
    pub const fn new() -> Self {
        Self {
            posted: 0,
            taken: 0,
            writable: 0,
        }
    }

    /// What a read gives; `None` when it is the host's to serve.
    ///
    /// # Errors
    /// The page did not answer.
    #[inline]
    pub fn read<M: Memory>(
        &mut self,
        page: &mut M,
        access: Access,
    ) -> Result<Option<u64>, M::Error> {
        let value_at = word::VALUES + usize::from(access.register);
        let [readable, value] = page.load_both([word::READABLE, value_at])?;
        if readable & access.bit() != 0 {
            return Ok(Some(access.cut(value)));
        }
        // In this order: a host that takes a write forbids this first, and allows
        // it again when the value tells what the write did.
        self.taken = page.load(word::TAKEN)?;
        let [readable, value] = page.load_both([word::READABLE_WHEN_EMPTY, value_at])?;
        let right = self.taken == self.posted && readable & access.bit() != 0;
        Ok(right.then(|| access.cut(value)))
    }

    /// Posts a write, if it may wait and there is room.
    ///
    /// What may wait is known from the write before. If the page was closed since,
    /// that is seen behind this one, as if it had come just before: the host comes
    /// at once and serves it.
    ///
    /// # Errors
    /// The page did not answer.
    #[inline]
    pub fn write<M: Memory>(
        &mut self,
        page: &mut M,
        access: Access,
        value: u64,
    ) -> Result<Post, M::Error> {
        if self.writable & access.bit() == 0 {
            self.writable = page.load(word::WRITABLE)?;
            if self.writable & access.bit() == 0 {
                return Self::write_steady(page, access, value);
            }
        }
        let mut waiting = self.posted.wrapping_sub(self.taken);
        if waiting >= CALL_AT - 1 {
            self.taken = page.load(word::TAKEN)?;
            waiting = self.posted.wrapping_sub(self.taken);
            if waiting >= ENTRIES {
                return Ok(Post::Refused);
            }
        }
        let value = access.cut(value) as u32;
        let entry = (word::entry(self.posted), Write { access, value }.pack());
        // Nobody lives to see it wrap.
        let posted = self.posted.wrapping_add(1);
        let writable = page.store_both([entry, (word::POSTED, posted)], word::WRITABLE)?;
        (self.posted, self.writable) = (posted, writable);
        if waiting >= CALL_AT - 1 || writable & access.bit() == 0 {
            return Ok(Post::Call);
        }
        Ok(Post::Done)
    }

    /// A write that may not wait, but perhaps changes nothing.
    fn write_steady<M: Memory>(page: &mut M, access: Access, value: u64) -> Result<Post, M::Error> {
        let value_at = word::VALUES + usize::from(access.register);
        let [steady, now] = page.load_both([word::STEADY, value_at])?;
        let same = steady & access.bit() != 0 && access.cut(value) == now;
        Ok(if same { Post::Done } else { Post::Refused })
    }

    /// Tells `each` the writes that wait, oldest first, for a host that will not
    /// take them any more. A page that never had one is not touched.
    ///
    /// # Errors
    /// The page did not answer.
    pub fn waiting<M: Memory>(
        &self,
        page: &mut M,
        mut each: impl FnMut(Write),
    ) -> Result<(), M::Error> {
        if self.posted == 0 {
            return Ok(());
        }
        let waiting = self.posted.wrapping_sub(page.load(word::TAKEN)?);
        let known = waiting.min(ENTRIES).min(self.posted);
        for position in self.posted - known..self.posted {
            if let Some(write) = Write::unpack(page.load(word::entry(position))?) {
                each(write);
            }
        }
        Ok(())
    }
}

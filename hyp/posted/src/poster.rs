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
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Post {
    /// It is the host's to serve.
    Refused,
    /// It waits in the ring.
    Done,
    /// The same, and the host is to come now.
    Call,
}

/// Who posts: under one lock for all vCPUs of a guest.
#[derive(Debug, Default)]
pub struct Poster {
    /// Writes posted, ever. The page has it for the host; this one counts.
    posted: u64,
}

impl Poster {
    /// Nothing is posted.
    pub const fn new() -> Self {
        Self { posted: 0 }
    }

    /// What a read gives; `None` when it is the host's to serve.
    ///
    /// # Errors
    /// The page did not answer.
    #[inline]
    pub fn read<M: Memory>(&self, page: &mut M, access: Access) -> Result<Option<u64>, M::Error> {
        // In this order: a host that takes a write forbids this first, and allows
        // it again when the value tells what the write did.
        let empty = page.load(word::TAKEN)? == self.posted;
        let mut may = page.load(word::READABLE)?;
        if empty {
            may |= page.load(word::READABLE_WHEN_EMPTY)?;
        }
        if may & access.bit() == 0 {
            return Ok(None);
        }
        let value = page.load(word::VALUES + usize::from(access.register))?;
        Ok(Some(access.cut(value)))
    }

    /// Posts a write, if it may wait and there is room.
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
        let may_wait = |page: &mut M| Ok(page.load(word::WRITABLE)? & access.bit() != 0);
        let waiting = self.posted.wrapping_sub(page.load(word::TAKEN)?);
        if waiting >= ENTRIES || !may_wait(page)? {
            return Ok(Post::Refused);
        }
        let value = access.cut(value) as u32;
        page.store(word::entry(self.posted), Write { access, value }.pack())?;
        self.posted += 1;
        page.store(word::POSTED, self.posted)?;
        page.fence();
        if waiting + 1 >= CALL_AT || !may_wait(page)? {
            return Ok(Post::Call);
        }
        Ok(Post::Done)
    }

    /// Tells `each` the writes that wait, oldest first, for a host that will not
    /// take them any more.
    ///
    /// # Errors
    /// The page did not answer.
    pub fn waiting<M: Memory>(
        &self,
        page: &mut M,
        mut each: impl FnMut(Write),
    ) -> Result<(), M::Error> {
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

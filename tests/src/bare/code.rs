//! Code that a program writes and then runs.

use core::cell::UnsafeCell;

use super::asm::{clean, fetch_anew};

/// Words of a [`Code`].
pub const WORDS: usize = 16;

/// `ret`.
pub const RET: u32 = 0xd65f_03c0;

/// A few words to run.
#[repr(C, align(64))]
pub struct Code(UnsafeCell<[u32; WORDS]>);

// SAFETY: The boot CPU alone writes and runs it, as `put`'s caller promises.
unsafe impl Sync for Code {}

impl Code {
    /// Nothing yet.
    pub const fn new() -> Self {
        Self(UnsafeCell::new([0; WORDS]))
    }

    /// Makes these words, no more than [`WORDS`], what runs at the address that is
    /// returned. One CPU alone has a use for it.
    pub fn put(&self, words: &[u32]) -> u64 {
        let code = self.0.get().cast::<u32>();
        for (n, word) in words.iter().enumerate().take(WORDS) {
            // SAFETY: Inside the buffer, which nobody runs now.
            unsafe { code.add(n).write_volatile(*word) };
        }
        let at = code.expose_provenance() as u64;
        clean(at, at + size_of::<Self>() as u64);
        fetch_anew();
        at
    }
}

impl Default for Code {
    fn default() -> Self {
        Self::new()
    }
}

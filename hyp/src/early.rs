//! What the boot PE does before a second one runs. Its MMU is off, which makes all
//! memory Device memory, and whether exclusive accesses work on that is each
//! implementation's own matter (Arm ARM, Load-Exclusive and Store-Exclusive
//! instruction usage restrictions). So there is none on that way: no lock is taken, and
//! what others read later is written by plain stores.

use core::cell::OnceCell;

/// What the boot PE sets while it is alone, for all.
#[derive(Debug)]
pub struct Early<T>(OnceCell<T>);

// SAFETY: it is written where nobody else runs, by `set`'s contract, and only read from
// then on.
unsafe impl<T: Send + Sync> Sync for Early<T> {}

impl<T> Early<T> {
    /// Not set yet.
    pub const fn new() -> Self {
        Self(OnceCell::new())
    }

    /// Sets it; what was set before stays.
    ///
    /// # Safety
    /// No other PE runs yet.
    pub unsafe fn set(&self, value: T) -> &T {
        self.0.get_or_init(|| value)
    }

    /// What was set.
    pub fn get(&self) -> Option<&T> {
        self.0.get()
    }
}

impl<T> Default for Early<T> {
    fn default() -> Self {
        Self::new()
    }
}

//! What was logged already, so that a guest cannot fill the log.

/// The keys of lines that were logged.
#[derive(Debug)]
pub struct Once(arrayvec::ArrayVec<u32, 32>);

impl Once {
    /// Nothing was logged.
    pub const fn new() -> Self {
        Self(arrayvec::ArrayVec::new_const())
    }

    /// True the first time for each `key`; false for all keys past the 32nd.
    pub fn first(&mut self, key: u32) -> bool {
        !self.0.contains(&key) && self.0.try_push(key).is_ok()
    }
}

impl Default for Once {
    fn default() -> Self {
        Self::new()
    }
}

//! A guest's turn: the loop around it, and what EL2 serves without the host.

pub mod access;
pub mod exits;
pub mod idregs;
pub mod interrupts;
pub mod posted;
pub mod psci;
pub mod run;

/// Remembers what was said already, so that a guest cannot fill the log.
#[derive(Debug)]
pub struct Once(arrayvec::ArrayVec<u32, 32>);

impl Once {
    /// Nothing was said.
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

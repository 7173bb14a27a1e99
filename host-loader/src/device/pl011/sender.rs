//! What the bytes go to.

use super::registers::{FR_BUSY, FR_TXFE, FR_TXFF};

/// The transmit side, as FR shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sender {
    /// There is no room for a byte.
    pub full: bool,
    /// No byte waits.
    pub empty: bool,
    /// A byte is on its way.
    pub busy: bool,
}

impl Sender {
    /// One that has sent everything.
    pub const IDLE: Self = Self {
        full: false,
        empty: true,
        busy: false,
    };

    /// One that has no room.
    pub const FULL: Self = Self {
        full: true,
        empty: false,
        busy: true,
    };

    /// Its flags in FR.
    pub const fn flags(self) -> u32 {
        (if self.full { FR_TXFF } else { 0 })
            | (if self.empty { FR_TXFE } else { 0 })
            | (if self.busy { FR_BUSY } else { 0 })
    }
}

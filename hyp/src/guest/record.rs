//! What the host hands over with an entry, and what it gets with an exit.

use rmi::run::{EnterFlags, ExitReason};
use zerocopy::{Immutable, IntoBytes};

#[cfg(doc)]
use crate::memory::guarded;

/// What the host asks of an entry, copied once from its page.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Flags.
    pub flags: EnterFlags,
    /// `gprs[0]`: the value of a read.
    pub value: u64,
}

/// What an exit reports to the host. Fields that an exit does not use are 0. In the order
/// that [`write_exit`](guarded::write_exit) has.
#[derive(Clone, Copy, Debug, Default, IntoBytes, Immutable)]
#[repr(C)]
pub struct Record {
    /// `exit_reason`.
    pub reason: u64,
    /// `esr`.
    pub esr: u64,
    /// `far`.
    pub far: u64,
    /// `hpfar`.
    pub hpfar: u64,
    /// `gprs[0..4]`.
    pub gprs: [u64; 4],
}

/// What follows an exception.
#[derive(Debug)]
pub enum Next {
    /// The guest goes on.
    Enter,
    /// The host is needed.
    Exit(Record),
}

impl Record {
    /// An exit for this reason.
    pub fn new(reason: ExitReason) -> Self {
        Self {
            reason: reason as u64,
            ..Self::default()
        }
    }
}

//! Accesses of a guest's device that need not wait for the host.
//!
//! The host models a device; each access of a guest is an exit to it, which costs
//! two switches of the world. Three kinds need none: a read of a register whose
//! value the host has written down, since reading it changes nothing; a write of
//! the value that a register has; and a write that nobody can see the effect of
//! before the host is asked for something else. The first are answered by EL2, the
//! second done with, the third wait in a ring until the host takes them (KVM's
//! name for these is coalesced MMIO).
//!
//! Both live in one page of the host's memory, for one page of one guest's IPA
//! space. The host says, register by register, what may be read and what may
//! wait; EL2 believes that for this guest's accesses and for nothing else, and
//! trusts no position that stands in the page.
//!
//! **Order.** All vCPUs post under one lock of EL2's, so the ring's order is the
//! order of the writes. Before the host serves any access itself it closes the
//! page ([`Page::close`]) and takes what waits: every write that was posted before
//! that access began comes before it. EL2 looks again after it has posted
//! ([`Poster::write`]): either it sees that the page was closed meanwhile, and the
//! host is called at once, or the host sees the write.

#![cfg_attr(not(test), no_std)]

mod host;
mod poster;
#[cfg(test)]
mod tests;

pub use host::{Page, View};
pub use poster::{Memory, Post, Poster};

/// Registers, of four bytes, that a page speaks for: those at the start of the
/// device's page.
pub const REGISTERS: usize = 64;

/// Writes that the ring holds.
pub const ENTRIES: u64 = 256;

/// Writes that wait when the host is called: half of what the ring holds, so that
/// the other half is there until it comes.
pub const CALL_AT: u64 = ENTRIES / 2;

/// Bytes of the page; granules are no smaller.
pub const PAGE: usize = 4096;

/// Where what stands, in words of eight bytes.
mod word {
    use super::{ENTRIES, PAGE, REGISTERS};

    /// Registers (a bit each) that read as they stand in the page.
    pub const READABLE: usize = 0;
    /// Registers a write to which may wait.
    pub const WRITABLE: usize = 1;
    /// Writes that the host has taken, ever.
    pub const TAKEN: usize = 2;
    /// Those that do while no write waits.
    pub const READABLE_WHEN_EMPTY: usize = 3;
    /// Registers that a write of what stands in the page leaves as they are.
    pub const STEADY: usize = 4;
    /// Writes that EL2 has posted, ever.
    pub const POSTED: usize = 8;
    /// The registers' values.
    pub const VALUES: usize = 32;
    /// The ring.
    pub const ENTRY: usize = 256;

    const _: () = assert!(VALUES + REGISTERS <= ENTRY);
    const _: () = assert!(ENTRY + ENTRIES as usize == PAGE / 8);

    /// The word of the entry at a position.
    pub const fn entry(position: u64) -> usize {
        ENTRY + (position % ENTRIES) as usize
    }
}

/// What of the device is accessed: the lowest bytes of a register. What the way of
/// every byte needs of it is at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// The register's bit in a set of registers.
    bit: u64,
    /// The bits that are accessed.
    mask: u64,
    /// What an entry of the ring says of it: the register, counted in fours of
    /// bytes, \[37:32\]; log2 of the bytes, 0, 1 or 2, \[41:40\].
    entry: u64,
}

/// The bits of a register's offset that are not 0.
const OFFSET: u64 = 4 * (REGISTERS as u64 - 1);

impl Access {
    /// An access of `1 << shift` bytes at `offset` of the device's page; `None` for
    /// one that is always the host's.
    #[inline]
    pub const fn new(offset: u64, shift: u32) -> Option<Self> {
        if offset & !OFFSET != 0 || shift > 2 {
            return None;
        }
        Some(Self {
            bit: 1 << (offset / 4),
            mask: u64::MAX >> (64 - (8 << shift)),
            entry: (offset / 4) << 32 | (shift as u64) << 40,
        })
    }

    /// A byte of the first register.
    pub const DATA: Self = match Self::new(0, 0) {
        Some(access) => access,
        None => panic!(),
    };

    const fn register(self) -> usize {
        (self.entry >> 32 & 0x3f) as usize
    }

    /// As much of `value` as is accessed.
    const fn cut(self, value: u64) -> u64 {
        value & self.mask
    }
}

/// A write that waits, as its entry of the ring has it: the value, no more than is
/// accessed, \[31:0\], and what of the device (`Access::entry`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write(u64);

impl Write {
    const fn new(access: Access, value: u64) -> Self {
        Self(value & access.mask | access.entry)
    }

    /// Offset of the register in the device's page.
    #[inline]
    pub const fn offset(self) -> u64 {
        self.0 >> 30 & OFFSET
    }

    /// log2 of the bytes that are written.
    pub const fn size_shift(self) -> u32 {
        (self.0 >> 40 & 0b11) as u32
    }

    /// The value.
    #[inline]
    pub const fn value(self) -> u32 {
        self.0 as u32
    }
}

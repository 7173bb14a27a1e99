//! What can go wrong, and how far an operation came.

use crate::addr::Level;

/// Why an operation stopped. One kind for the whole crate, so that a caller
/// can map it onto its own ABI (an RTT level, a retry, a fault).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Error {
    /// An address or a range lies outside the input or output space, or a
    /// table's page does.
    Range,
    /// An address or a size is not a multiple of what the level demands.
    Align,
    /// [`TableMem::alloc`](crate::TableMem::alloc) had no page to give.
    NoMem,
    /// Something stands already where the caller wanted to put an entry.
    Exists {
        /// The level of the entry in the way.
        level: Level,
    },
    /// The walk ended before the wanted level, or nothing stands there.
    Missing {
        /// The level that the walk reached.
        level: Level,
    },
    /// Another CPU holds this entry frozen. Retry after it is done.
    Busy,
    /// Entries differ where they must be alike (fold, contiguous hint).
    Mismatch {
        /// The level of the entries compared.
        level: Level,
    },
    /// No leaf may stand at this level in this geometry.
    BlockLevel {
        /// The level asked for.
        level: Level,
    },
    /// The range ends inside a block and the policy is to refuse.
    InsideBlock {
        /// The level of that block.
        level: Level,
    },
    /// A live table would have to be removed, which needs `&mut` access to
    /// the tree: the proof that no walker is inside it.
    NeedsExclusive {
        /// The level of the entry that points to the table.
        level: Level,
    },
    /// The table still holds counted entries.
    InUse {
        /// The level of the table's entries.
        level: Level,
    },
    /// The attributes cannot be encoded in this geometry.
    Attributes,
    /// The gather is another tree's.
    OtherTree,
}

/// An operation on a range that stopped before its end. Everything below
/// `next` is done and made visible; nothing at or above it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stopped<A> {
    /// Why.
    pub why: Error,
    /// The first address not done: call again from here.
    pub next: A,
}

impl<A> Stopped<A> {
    /// What an error at `next` is.
    pub(crate) fn at(next: A) -> impl FnOnce(Error) -> Self {
        move |why| Self { why, next }
    }

    /// The same with another type of address.
    pub(crate) fn into<B: From<A>>(self) -> Stopped<B> {
        Stopped {
            why: self.why,
            next: self.next.into(),
        }
    }
}

/// Bytes of data cache maintenance that count as much as one entry.
const CACHE_UNIT: u64 = 4096;

/// Bytes of data cache maintenance that are done whatever the budget: what a
/// large block takes is in proportion to its steps, and a step of 2 MiB is
/// about a millisecond of a CPU that writes its lines back.
pub(crate) const CACHE_STEP: u64 = 2 << 20;

/// How much work an operation on a range may do before it returns.
///
/// The unit is one entry visited, one table made or freed (and each of its
/// entries, if somebody is told of them), or 4 KiB of data cache maintenance
/// ([`CacheOp`](crate::CacheOp)). An operation always does at least one piece
/// of work, so that a loop that calls it makes progress, and may go over its
/// budget by one: an entry, a table of pages, or a leaf whose memory is cleaned,
/// which is of 2 MiB at most.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Budget(u64);

impl Budget {
    /// At most `entries` units of work.
    pub const fn entries(entries: u64) -> Self {
        Self(entries)
    }

    /// No bound: for ranges that the caller bounds itself.
    pub const fn unlimited() -> Self {
        Self(u64::MAX)
    }

    /// What is left.
    pub const fn left(&self) -> u64 {
        self.0
    }

    /// Bytes of caches that may be maintained, a step at least.
    #[inline]
    pub(crate) fn bytes_left(&self) -> u64 {
        self.0.saturating_mul(CACHE_UNIT).max(CACHE_STEP)
    }

    /// Spends what maintaining caches for `bytes` costs.
    #[inline]
    pub(crate) fn spend_bytes(&mut self, bytes: u64) {
        self.spend(Self::of_bytes(bytes));
    }

    /// What maintaining caches for `bytes` costs.
    pub(crate) const fn of_bytes(bytes: u64) -> u64 {
        bytes / CACHE_UNIT
    }

    /// Spends `units`, down to zero.
    #[inline]
    pub(crate) fn spend(&mut self, units: u64) {
        self.0 = self.0.saturating_sub(units);
    }

    /// True when nothing is left.
    #[inline]
    pub(crate) fn is_spent(&self) -> bool {
        self.0 == 0
    }
}

//! What happens, in the order in which it happens.
//!
//! Events of all PEs stand in one order. That order is what the program did;
//! what the walkers may see of it is the model's business.

use crate::descriptor::Memory;
use crate::mem::Owner;
use crate::tlbi::TlbiOp;

/// One event, by one PE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// The PE, from 0.
    pub pe: u8,
    /// What it did.
    pub kind: EventKind,
}

/// Control registers that shape translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reg {
    /// VTTBR_EL2.
    Vttbr,
    /// VTCR_EL2.
    Vtcr,
    /// HCR_EL2 (TGE bit 27, E2H bit 34, FWB bit 46).
    Hcr,
    /// TTBR0_EL2.
    Ttbr0El2,
    /// TCR_EL2.
    TcrEl2,
    /// MAIR_EL2.
    MairEl2,
}

/// How far a barrier reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Domain {
    /// Only the PE itself.
    NonShareable,
    /// The inner shareable domain: every PE of the machine.
    Inner,
    /// The outer shareable domain.
    Outer,
    /// The full system.
    System,
}

/// Which accesses a barrier orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Accesses {
    /// Loads and stores.
    All,
    /// Stores only (`..ST`).
    Stores,
    /// Loads only (`..LD`).
    Loads,
}

/// A barrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Barrier {
    /// DSB: completes stores and, with [`Accesses::All`], TLB maintenance.
    Dsb(Domain, Accesses),
    /// DMB: orders, completes nothing.
    Dmb(Domain, Accesses),
    /// ISB, or an exception return: register writes take effect.
    Isb,
}

/// How a store to an entry was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum How {
    /// Plain store.
    Plain,
    /// Store-release.
    Release,
    /// Atomic read-modify-write without release.
    Atomic,
    /// Atomic read-modify-write with release.
    AtomicRelease,
}

impl How {
    /// True if earlier stores of the PE are seen first.
    pub const fn releases(self) -> bool {
        matches!(self, Self::Release | Self::AtomicRelease)
    }

    /// True if no update between load and store can be lost.
    pub const fn atomic(self) -> bool {
        matches!(self, Self::Atomic | Self::AtomicRelease)
    }
}

/// The mapping that a specification line promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promise {
    /// First input address.
    pub ia: u64,
    /// Bytes.
    pub len: u64,
    /// Output address of the first byte; `None` means unmapped.
    pub to: Option<Target>,
}

/// Where a promised range leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Output address.
    pub pa: u64,
    /// Rights, bits of [`Perms`](crate::Perms); `None` leaves them unchecked.
    pub perms: Option<u8>,
    /// Memory type; `None` leaves it unchecked.
    pub memory: Option<Memory>,
}

/// What a PE did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// A 64-bit store into table memory.
    Store {
        /// Physical address.
        pa: u64,
        /// New value.
        value: u64,
        /// Ordering and atomicity.
        how: How,
    },
    /// A compare-and-swap that succeeded.
    Cas {
        /// Physical address.
        pa: u64,
        /// The value it found; anything else makes the trace wrong.
        expected: u64,
        /// New value.
        value: u64,
        /// Ordering.
        release: bool,
    },
    /// Stores of zeros over a range.
    Zero {
        /// Physical address.
        pa: u64,
        /// Bytes.
        len: u64,
    },
    /// A barrier.
    Barrier(Barrier),
    /// A TLB invalidation with its raw operand.
    Tlbi {
        /// The instruction.
        op: TlbiOp,
        /// The raw Xt; ignored by instructions that take none.
        xt: u64,
    },
    /// A write of a control register (effective at the next ISB).
    Write {
        /// Register.
        reg: Reg,
        /// Raw value.
        value: u64,
    },
    /// Pages taken for tables.
    Alloc {
        /// Physical address.
        pa: u64,
        /// Bytes.
        len: u64,
        /// True if they hold zeros; else their contents are undefined.
        zeroed: bool,
    },
    /// Table pages given back.
    Free {
        /// Physical address.
        pa: u64,
        /// Bytes.
        len: u64,
    },
    /// Memory changes owner. Its contents count as not cleaned.
    Own {
        /// Physical address.
        pa: u64,
        /// Bytes.
        len: u64,
        /// New owner.
        owner: Owner,
    },
    /// Data cache clean and invalidate to the point of coherency.
    CleanData {
        /// Physical address.
        pa: u64,
        /// Bytes.
        len: u64,
    },
    /// Instruction cache invalidate (to the point of unification).
    InvalidateInstructions {
        /// Physical address.
        pa: u64,
        /// Bytes; `u64::MAX` for all.
        len: u64,
    },
    /// A stage-2 fault taken and handled: the access is tried again after it.
    Fault {
        /// Input address.
        ia: u64,
        /// Rights wanted, bits of [`Perms`](crate::Perms).
        access: u8,
    },
    /// From here to the next window, invalidations may reach only this range.
    Window {
        /// First input address.
        lo: u64,
        /// One past the last; 0 ends the window.
        hi: u64,
    },
    /// A promise about the tree this PE has installed, for `Quiesce` to check.
    Spec(Promise),
    /// The PE says that what it did in this range is complete: no walker and
    /// no TLB may show anything but the newest entries, and these must be
    /// what the specification promises, where it promises anything.
    Quiesce {
        /// First input address.
        lo: u64,
        /// One past the last.
        hi: u64,
    },
}

impl EventKind {
    /// A plain store.
    pub const fn store(pa: u64, value: u64) -> Self {
        Self::Store {
            pa,
            value,
            how: How::Plain,
        }
    }

    /// `DSB ISHST`.
    pub const DSB_ISHST: Self = Self::Barrier(Barrier::Dsb(Domain::Inner, Accesses::Stores));
    /// `DSB ISH`.
    pub const DSB_ISH: Self = Self::Barrier(Barrier::Dsb(Domain::Inner, Accesses::All));
    /// `DSB NSHST`.
    pub const DSB_NSHST: Self = Self::Barrier(Barrier::Dsb(Domain::NonShareable, Accesses::Stores));
    /// `DSB NSH`.
    pub const DSB_NSH: Self = Self::Barrier(Barrier::Dsb(Domain::NonShareable, Accesses::All));
    /// `ISB`.
    pub const ISB: Self = Self::Barrier(Barrier::Isb);
}

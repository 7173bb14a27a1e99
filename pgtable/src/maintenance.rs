//! The layer below: barriers, TLB and cache maintenance, one instruction a
//! call. It obeys: it never widens an operation, never skips one, never
//! chooses.

use crate::errata::Errata;

/// A barrier instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Barrier {
    /// `dsb ishst`: my stores before anybody's later walks.
    DsbIshst,
    /// `dsb ish`: my broadcast TLB maintenance is complete everywhere.
    DsbIsh,
    /// `dsb nshst`.
    DsbNshst,
    /// `dsb nsh`: my local TLB maintenance is complete.
    DsbNsh,
    /// `isb`.
    Isb,
}

/// A TLB maintenance instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum TlbiKind {
    /// Stage-2 entries of one IPA, current VMID, all CPUs.
    Ipas2e1is,
    /// Stage-2 entries of a range of IPAs, current VMID, all CPUs.
    Ripas2e1is,
    /// Stage-2 entries of one IPA, current VMID, this CPU.
    Ipas2e1,
    /// Stage-1 and combined entries of the current VMID, all CPUs.
    Vmalle1is,
    /// Stage-1 and combined entries of the current VMID, this CPU.
    Vmalle1,
    /// Everything of the current VMID, both stages, all CPUs.
    Vmalls12e1is,
    /// Everything of EL1&0, all VMIDs, all CPUs.
    Alle1is,
    /// EL2's entries of one VA, all CPUs.
    Vae2is,
    /// EL2's entries of a range of VAs, all CPUs.
    Rvae2is,
    /// All of EL2's entries, all CPUs.
    Alle2is,
}

/// One TLBI instruction with its register. Only this crate makes them, so
/// every one that exists has a valid operand.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Tlbi {
    kind: TlbiKind,
    operand: u64,
}

impl Tlbi {
    #[inline]
    pub(crate) const fn new(kind: TlbiKind, operand: u64) -> Self {
        Self { kind, operand }
    }

    /// Which instruction.
    #[inline]
    pub const fn kind(self) -> TlbiKind {
        self.kind
    }

    /// The register's value; 0 for those that take none.
    #[inline]
    pub const fn operand(self) -> u64 {
        self.operand
    }
}

/// Cache maintenance.
///
/// Both end with the barrier that completes them (`dsb ish`, and `isb` for
/// instructions), issued by the implementation: how many lines there are is
/// its business.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum CacheOp {
    /// Clean and invalidate data lines of physical memory to the point of
    /// coherency.
    CleanInvalidateData {
        /// The first byte, a multiple of the page.
        pa: crate::Pa,
        /// Bytes, a multiple of the page.
        size: u64,
    },
    /// `ic ialluis`: invalidate all instruction caches, of what was fetched
    /// from memory that is about to be mapped, for a former owner. Data are
    /// clean to there already: they were cleaned to the point of coherency
    /// before, or FEAT_S2FWB is there and with it `CTR_EL0.IDC`, or the guest
    /// wrote them and does what an Arm program does to fetch what it wrote.
    ///
    /// It names no memory: so it takes no time in proportion to any, and is
    /// not in a [`Budget`](crate::Budget).
    InvalidateInstructions,
}

/// The registers by which a CPU reads stage-2 TLBIs: whose entries they name
/// (the VMID in `VTTBR_EL2`), and in which unit (granule and DS in
/// `VTCR_EL2`: the base of a range counts in pages, or in 64 KiB with DS).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub struct Stage2Regs {
    /// `VTCR_EL2`.
    pub vtcr: u64,
    /// `VTTBR_EL2`.
    pub vttbr: u64,
}

const VMID: u64 = 0xffff << 48;

impl Stage2Regs {
    /// True when TLBIs mean the same under both: the format is the same and
    /// all 16 bits of the VMID are.
    #[inline]
    pub(crate) const fn names_as(self, other: Self) -> bool {
        self.vtcr == other.vtcr && (self.vttbr ^ other.vttbr) & VMID == 0
    }
}

/// What this crate needs of the CPU, one instruction each.
///
/// Every call is one instruction on this CPU (the two for both registers of
/// stage 2: two), in the order of the calls. Interrupts whose handlers run
/// guests or switch these registers are masked by the caller for the time of
/// any function that takes a `Maintenance`.
pub trait Maintenance {
    /// Executes a barrier.
    fn barrier(&mut self, barrier: Barrier);

    /// Executes a TLBI.
    fn tlbi(&mut self, op: Tlbi);

    /// Maintains caches for a range.
    fn cache(&mut self, op: CacheOp);

    /// Reads `VTCR_EL2` and `VTTBR_EL2`: what TLBIs act on now.
    fn stage2(&mut self) -> Stage2Regs;

    /// Writes `VTCR_EL2`, then `VTTBR_EL2`. Both: trees of other geometries
    /// may be current, and the operand of a range TLBI is read by the format
    /// that is. No ISB: that comes as a barrier of its own.
    fn set_stage2(&mut self, regs: Stage2Regs);

    /// Errata that the machine has now, besides those that a tree was made for: a
    /// CPU with others may come late. Asked when the first invalidation of a
    /// broadcast sequence is complete.
    fn errata(&self) -> Errata {
        Errata::NONE
    }
}

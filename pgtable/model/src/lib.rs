//! An MMU and its TLBs, as adversarial as the architecture allows, that judge
//! page-table code.
//!
//! Emulators forgive nearly every mistake in TLB maintenance, and so do most
//! boards on most days. This model does not: whatever hardware may still hold,
//! it holds. It is written from the architecture's point of view, apart from
//! any table library: it reads raw registers, raw descriptors and raw TLBI
//! operands, and shares no encoder and no geometry with the code it judges.
//!
//! * [`Machine`] takes [`Event`]s (stores, barriers, TLBIs, register writes,
//!   pages changing hands), attributed to PEs, and says at each whether a rule
//!   was broken: a [`Violation`] with its cause, its consequence, and advice.
//! * [`translate_raw`] and [`walk`] are the walker alone.
//! * [`Spec`] is the reference map to compare a tree with.
//! * [`trace`] reads and writes the events as text.
//!
//! # How it judges
//! Every entry of a live tree has a state: *valid*, *clean* (invalid, and no
//! TLB can know better) or *unclean* (module `unclean` has the steps). Each
//! event moves the states it concerns in O(1) for a run of neighbouring
//! entries, so a million operations are judged in seconds.
//!
//! ```
//! use mmu_model::{Event, EventKind, Features, Kind, Machine, Reg, TlbiKind, TlbiOp};
//! let mut m = Machine::new(Features::max(), 2);
//! let root = 0x8000_0000;
//! // 4K granule, 39-bit IPA, one table at level 1.
//! let setup = [
//!     EventKind::Alloc { pa: root, len: 4096, zeroed: true },
//!     EventKind::DSB_ISHST,
//!     EventKind::Write { reg: Reg::Vtcr, value: 0x8005_3559 },
//!     EventKind::Write { reg: Reg::Vttbr, value: 1 << 48 | root },
//!     EventKind::ISB,
//! ];
//! m.run(0, setup).unwrap();
//! // A 1 GiB block, then another in its place without break-before-make.
//! m.run(0, [EventKind::store(root, 0x4000_07d9)]).unwrap();
//! let verdict = m.run(0, [EventKind::store(root, 0x8000_07d9)]);
//! assert_eq!(verdict.unwrap_err().kind, Kind::ValidToValidNeedsBbm);
//! ```
#![forbid(unsafe_code)]

mod blame;
mod check;
mod descriptor;
mod event;
mod exact;
mod fault;
mod features;
mod group;
mod hash;
mod install;
mod leaf;
mod link;
mod machine;
mod maintain;
mod mem;
mod pages;
mod ranges;
mod shape;
mod spec;
mod tlbi;
pub mod trace;
mod tree;
mod unclean;
mod violation;
mod walker;

pub use check::{Leaf, Possible, Source};
pub use descriptor::{
    AF, Attrs, BadDesc, CONTIGUOUS, Cache, DBM, Desc, Memory, NT, Perms, mair_memory,
};
pub use event::{Accesses, Barrier, Domain, Event, EventKind, How, Promise, Reg, Target};
pub use exact::{Exact, Verdicts};
pub use features::{Errata, Features};
pub use machine::{Machine, Stats, Verdict};
pub use mem::{Mem, Owner, Use};
pub use ranges::RangeMap;
pub use shape::{Granule, HighAddress, Regime, SetupFault, Shape, vmid};
pub use spec::Spec;
pub use tlbi::{BadOp, Extent, Mismatch, Reach, TlbiKind, TlbiOp, decode};
pub use unclean::MAX_PES;
pub use violation::{Kind, Violation};
pub use walker::{Control, Fault, FaultKind, Outcome, Translation, translate_raw, walk};

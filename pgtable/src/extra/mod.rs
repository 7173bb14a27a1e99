//! What users of the library want besides what EL2 runs: ageing and dirty
//! tracking, permissions, splits on request, subtrees, entries held frozen,
//! visitors, the contiguous hint, mappings over others, what a realm asks of
//! itself, the end of a live tree.
//!
//! Behind the feature `extra`, which images do not have. Something moves to the
//! core when `hyp` calls it; the case `check/reached` says what it no longer does.

mod addr;
mod alter;
mod attrs;
mod contiguous;
mod el2;
mod errata;
mod format;
mod frozen;
mod gather;
mod lent;
mod names;
mod protect;
mod ranges;
mod realm;
mod replace;
mod runs;
mod shape;
mod sink;
mod split;
mod subtree;
mod sweep;
mod teardown;
mod visit;
mod words;

pub use errata::{ERRATA, Erratum};
pub use frozen::{Change, Frozen};
pub use gather::{Gather, HeldLeaf, UnmapLater};
pub use protect::Permissions;
pub use runs::Runs;
pub use split::Split;
pub use subtree::{Remains, Subtree};
pub use sweep::{Flush, Sweep};
pub use visit::{Next, Seen, Visit};

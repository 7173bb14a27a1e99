#![doc = include_str!("../README.md")]
#![no_std]
#![forbid(unsafe_code)]

mod addr;
mod attrs;
mod contiguous;
mod el2;
mod errata;
mod error;
mod fold;
mod format;
mod frozen;
mod geometry;
mod granule;
mod leaves;
mod maintenance;
mod map;
mod mem;
mod plan;
mod protect;
mod release;
mod replace;
mod rtt;
mod sink;
mod split;
mod stage2;
mod subtree;
mod sync;
mod teardown;
mod tree;
mod unmap;
mod visit;

#[cfg(test)]
mod testing;

pub use addr::{InputAddress, Ipa, Level, Pa, Va, Vmid};
pub use attrs::{Access, Age, Attrs, Device, Dirty, Execute, Memory, Share};
pub use el2::{El2Access, El2Attrs, El2Config, El2Geometry, El2Map, El2Memory, El2Range};
pub use errata::{ERRATA, Errata, Erratum};
pub use error::{Budget, Error, Stopped};
pub use format::{Annotation, Entry};
pub use frozen::{Change, Frozen};
pub use geometry::{ConfigError, Features, Geometry, OaForm, Shape, Stage2Config, Start};
pub use granule::Granule;
pub use leaves::{Gather, HeldLeaf};
pub use maintenance::{Barrier, CacheOp, Maintenance, Stage2Regs, Tlbi, TlbiKind};
pub use mem::TableMem;
pub use plan::RUNS;
pub use protect::{Flush, Permissions};
pub use rtt::{ChangeDestroyed, Fill, Removed, Ripas, Rtt, RttEntry, RttError, RttState};
pub use sink::{Ignore, LeafSink, RemovedLeaf, RemovedRun, Runs};
pub use stage2::{Caches, Found, Leaves, Map, Stage2};
pub use subtree::{Remains, Subtree};
pub use sync::Synced;
pub use tree::{Counting, Over};
pub use unmap::Partial;
pub use visit::{Next, Seen, Visit};

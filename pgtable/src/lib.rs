#![doc = include_str!("../README.md")]
#![no_std]
#![forbid(unsafe_code)]

mod addr;
mod attrs;
mod config;
mod config_error;
mod counting;
mod desc;
#[cfg(feature = "el1")]
mod el1;
mod el2;
mod errata;
mod error;
#[cfg(feature = "extra")]
mod extra;
mod fold;
mod format;
mod geometry;
mod granule;
mod maintenance;
mod map;
mod mem;
mod plan;
mod release;
mod rtt;
mod shape;
mod sink;
mod stage2;
mod sync;
mod tree;
mod unmap;
mod work;

pub use addr::{Ipa, Level, Pa, Va, Vmid};
pub use attrs::{Access, Age, Attrs, Device, Dirty, Execute, Memory, Share};
pub use config::{Features, Stage2Config, Start};
pub use config_error::ConfigError;
pub use counting::Counting;
#[cfg(feature = "el1")]
pub use el1::El1Map;
pub use el2::{El2Access, El2Attrs, El2Config, El2Geometry, El2Map, El2Memory, El2Range};
pub use errata::Errata;
pub use error::{Budget, Error, Stopped};
#[cfg(feature = "extra")]
pub use extra::{
    Change, ERRATA, Erratum, Flush, Frozen, Gather, HeldLeaf, Next, Permissions, Remains, Runs,
    Seen, Split, Subtree, Sweep, UnmapLater, Visit,
};
pub use format::{Annotation, Entry};
pub use geometry::Geometry;
pub use granule::Granule;
pub use maintenance::{Barrier, CacheOp, Maintenance, Stage2Regs, Tlbi, TlbiKind};
pub use mem::TableMem;
pub use plan::RUNS;
pub use rtt::{
    ChangeDestroyed, DataRun, Fill, HostPages, Removed, RemovedData, Ripas, Rtt, RttAt, RttEntry,
    RttError, RttState,
};
pub use shape::{OaForm, Shape};
pub use sink::{Ignore, LeafSink, RemovedLeaf, RemovedRun};
pub use stage2::{Caches, Found, Leaves, Map, Stage2, Unmap};
pub use sync::Synced;
pub use tree::Over;
pub use unmap::Partial;

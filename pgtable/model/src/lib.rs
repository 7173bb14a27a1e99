//! Under construction.
mod descriptor;
mod features;
mod hash;
mod mem;
mod ranges;
mod shape;
mod walker;
pub use descriptor::*;
pub use features::*;
pub use mem::*;
pub use ranges::RangeMap;
pub use shape::*;
pub use walker::{translate_raw, walk, Control, Fault, FaultKind, Outcome, Translation};

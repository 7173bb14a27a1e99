//! Where tables live: the caller's memory, reached through [`TableMem`].

use crate::addr::{Level, Pa};
use crate::sync::Synced;

/// Memory that holds tables.
///
/// This crate holds no pointer and has no `unsafe`: a hypervisor implements
/// these few functions with its own mapping of table pages, a test with
/// plain memory, a model with a recorder. All are called through a generic
/// parameter and inline.
///
/// # What an implementation promises
/// - Entries are 64-bit atomics in host byte order (the CPU's `EE` is 0).
/// - `store` has release, `load` acquire, `cas` both orderings.
/// - A page from `alloc` is zeroed, of the geometry's granule, aligned, and
///   nobody else's until it comes back by `free`.
pub trait TableMem {
    /// A table that was located: a pointer, a slice, an index.
    type Table: Copy;

    /// Finds the table at `pa`. For a root it spans all concatenated tables.
    fn locate(&self, pa: Pa) -> Self::Table;

    /// Reads entry `index`.
    fn load(&self, table: Self::Table, index: usize) -> u64;

    /// Writes entry `index`. Only used where no other writer can be: in
    /// tables not linked yet, and on entries that this CPU holds frozen.
    fn store(&self, table: Self::Table, index: usize, value: u64);

    /// Writes entry `index` if it still is `old`.
    ///
    /// # Errors
    /// What it is instead.
    fn cas(&self, table: Self::Table, index: usize, old: u64, new: u64) -> Result<(), u64>;

    /// Takes a zeroed page for a table of `level`, or none. One outside the
    /// geometry's output space is of no use: it goes back, and the operation
    /// stops with [`Error::Range`](crate::Error::Range).
    fn alloc(&self, level: Level) -> Option<Pa>;

    /// Gets a table's page back, with its content and its count as they last
    /// were: both have to be cleared before it is given out again. `proof`
    /// says that no TLB and no walker knows the table any more.
    fn free(&self, table: Pa, level: Level, proof: &Synced);

    /// The table's count of entries that hold something (see
    /// [`Counting`](crate::Counting)). Starts at 0.
    fn count(&self, table: Pa) -> u32;

    /// Changes the table's count. It never goes below 0.
    fn add_count(&self, table: Pa, by: i32);
}

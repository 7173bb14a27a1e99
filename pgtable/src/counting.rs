//! What a table's count counts.

use crate::desc::Desc;

/// Which entries a table's count counts. Tables and frozen tables always
/// count; the rest is the choice of whoever uses the count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Counting {
    /// A valid leaf with any of these bits does not count.
    uncounted_leaf: u64,
    /// An annotation with any of these bits counts.
    counted_annotation: u64,
}

impl Counting {
    /// Every entry that is not zero counts. A table that unmapping leaves
    /// with a count of 0 is removed.
    pub const NON_ZERO: Self = Self {
        uncounted_leaf: 0,
        counted_annotation: u64::MAX,
    };

    /// RMM's rule: child tables, protected leaves, and invalid entries that
    /// hold a data granule count; unprotected leaves do not.
    pub(crate) const fn rtt(unprotected: u64, assigned: u64) -> Self {
        Self {
            uncounted_leaf: unprotected,
            counted_annotation: assigned,
        }
    }

    /// True when a count of 0 means that every entry is zero.
    #[inline]
    pub(crate) const fn zero_is_empty(self) -> bool {
        self.counted_annotation == u64::MAX
    }

    /// True for an annotation that holds an output address.
    #[inline]
    pub(crate) const fn annotation_has_oa(self, desc: Desc) -> bool {
        !self.zero_is_empty() && desc.has(self.counted_annotation)
    }

    #[inline]
    pub(crate) const fn of(self, desc: Desc) -> i32 {
        let counts = if desc.is_valid() {
            !desc.has(self.uncounted_leaf)
        } else {
            desc.has(self.counted_annotation)
        };
        counts as i32
    }
}

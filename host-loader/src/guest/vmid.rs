//! VMIDs: a number for each realm, by which TLBs distinguish them.
//!
//! EL2 refuses one that a living realm has, so the host keeps the set of those in
//! use. A number comes back when EL2 has said that the realm is gone; that of a
//! realm that could not be destroyed never does.

use rmi::feature::VendorFeatures;

/// The VMIDs in use.
#[derive(Debug)]
pub struct Vmids {
    taken: [u64; WORDS],
    /// Where the search begins: just freed ones are taken last.
    next: u16,
}

/// Words of a set of all 16-bit numbers.
const WORDS: usize = (1 << 16) / 64;

/// The VMIDs that a CPU distinguishes (`VTCR_EL2.VS`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// 8 bits.
    Eight,
    /// 16 bits (FEAT_VMID16).
    Sixteen,
}

impl Width {
    /// That of EL2's VMIDs.
    pub fn of(features: &VendorFeatures) -> Self {
        if features.vmid16 {
            Self::Sixteen
        } else {
            Self::Eight
        }
    }

    /// The highest of them is EL2's.
    const fn last(self) -> u16 {
        match self {
            Self::Eight => u8::MAX as u16 - 1,
            Self::Sixteen => u16::MAX - 1,
        }
    }
}

impl Vmids {
    /// None in use but 0, which is the host's own.
    pub const fn new() -> Self {
        let mut taken = [0; WORDS];
        taken[0] = 1;
        Self { taken, next: 1 }
    }

    /// Takes one that is free; `None` when living realms have them all.
    pub fn take(&mut self, width: Width) -> Option<u16> {
        let last = width.last();
        let from = self.next.min(last);
        let free = (from..=last).chain(0..from).find(|&v| !self.has(v))?;
        self.taken[usize::from(free / 64)] |= 1 << (free % 64);
        self.next = free.checked_add(1).filter(|&v| v <= last).unwrap_or(1);
        Some(free)
    }

    /// Gives back one whose realm is gone.
    pub fn give(&mut self, vmid: u16) {
        self.taken[usize::from(vmid / 64)] &= !(1 << (vmid % 64));
    }

    fn has(&self, vmid: u16) -> bool {
        self.taken[usize::from(vmid / 64)] >> (vmid % 64) & 1 != 0
    }
}

impl Default for Vmids {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use std::vec::Vec;

    #[test]
    fn six_hundred_resets_beside_guests_that_stay() {
        for width in [Width::Eight, Width::Sixteen] {
            let mut vmids = Vmids::new();
            let stay = [vmids.take(width), vmids.take(width)].map(Option::unwrap);
            for _ in 0..600 {
                let vmid = vmids.take(width).unwrap();
                assert!(vmid != 0 && !stay.contains(&vmid) && vmid <= width.last());
                vmids.give(vmid);
            }
        }
    }

    #[test]
    fn all_are_used_and_then_none_is_left() {
        for width in [Width::Eight, Width::Sixteen] {
            let mut vmids = Vmids::new();
            let all: BTreeSet<u16> = (0..width.last())
                .map(|_| vmids.take(width).unwrap())
                .collect();
            assert_eq!(all.len(), usize::from(width.last()));
            assert!(!all.contains(&0));
            assert_eq!(vmids.take(width), None);
            vmids.give(77);
            assert_eq!(vmids.take(width), Some(77));
            assert_eq!(vmids.take(width), None);
        }
    }

    proptest! {
        #[test]
        fn no_two_living_realms_have_the_same(
            steps in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 1..900),
        ) {
            let mut vmids = Vmids::new();
            let mut living: Vec<u16> = Vec::new();
            for (ends, which) in steps {
                if ends && !living.is_empty() {
                    vmids.give(living.swap_remove(which.index(living.len())));
                } else if let Some(vmid) = vmids.take(Width::Eight) {
                    prop_assert!(vmid != 0 && !living.contains(&vmid));
                    living.push(vmid);
                } else {
                    prop_assert_eq!(living.len(), 255);
                }
            }
        }
    }
}

//! Which VMIDs there are, and which are taken.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::memory::host::HOST_VMID;

/// The identifier of a tree that the host calls by this number. Any number is a realm's
/// to have (DEN0137 1.0, B3.82), and 0 is what a host begins with: there the highest
/// stands for the one that the host's own stage 2 has. `None`: of that one itself, and of
/// one that CPUs without 16-bit VMIDs (`wide`) do not have.
pub const fn of_number(number: u16, wide: bool) -> Option<u16> {
    let highest = if wide { u16::MAX } else { 0xff };
    match number {
        HOST_VMID => Some(highest),
        number if number < highest => Some(number),
        _ => None,
    }
}

/// A bit for each of the 2^16 identifiers. The host picks them, EL2 only sees to
/// it that no two trees share one.
#[derive(Debug)]
pub struct Vmids([AtomicU64; 1024]);

impl Vmids {
    /// None taken.
    pub const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; 1024])
    }

    /// Takes an identifier; false when it is taken already.
    pub fn claim(&self, vmid: u16) -> bool {
        let bit = 1 << (vmid % 64);
        self.0[usize::from(vmid / 64)].fetch_or(bit, Ordering::AcqRel) & bit == 0
    }

    /// Gives it back: no TLB holds an entry with this tag any more.
    pub fn release(&self, vmid: u16) {
        self.0[usize::from(vmid / 64)].fetch_and(!(1 << (vmid % 64)), Ordering::AcqRel);
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
    use std::collections::BTreeSet;

    #[test]
    fn no_two_numbers_have_one_identifier_and_none_has_the_hosts() {
        for (wide, highest) in [(false, 0xff), (true, u16::MAX)] {
            let all: std::vec::Vec<_> = (0..=u16::MAX).filter_map(|n| of_number(n, wide)).collect();
            let each: BTreeSet<_> = all.iter().copied().collect();
            assert_eq!((all.len(), each.len()), (highest.into(), highest.into()));
            assert_eq!(each.first().zip(each.last()), Some((&1, &highest)));
        }
    }

    #[test]
    fn an_identifier_is_taken_once() {
        let v = Vmids::new();
        for vmid in [0, 63, 64, u16::MAX] {
            assert!(v.claim(vmid) && !v.claim(vmid));
            v.release(vmid);
            assert!(v.claim(vmid));
        }
    }
}

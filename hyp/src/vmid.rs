//! Which VMIDs are taken.

use core::sync::atomic::{AtomicU64, Ordering};

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
    use super::*;

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

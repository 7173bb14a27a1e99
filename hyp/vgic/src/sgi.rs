//! Software-generated interrupts: `ICC_SGI<n>R_EL1`, which hardware traps.

use crate::intid::{Affinity, bits};
use crate::{VcpuSet, Vgic};

/// The register by which a guest sends an SGI.
///
/// With one Security state `ICC_SGI1R_EL1` sends SGIs of either group, as the
/// target has them configured; the other two send those of Group 0 alone
/// (IHI0069, "Forwarding an SGI to a target PE").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SgiRegister {
    /// `ICC_SGI0R_EL1`
    Sgi0,
    /// `ICC_SGI1R_EL1`
    Sgi1,
    /// `ICC_ASGI1R_EL1`
    Asgi1,
}

/// What `ICC_SGI1R_EL1` is written with for SGI 0 to the PE at this affinity alone; that
/// of another is in bits 27:24.
#[must_use]
pub const fn sgi_to(affinity: Affinity) -> u64 {
    let [aff3, aff2, aff1, aff0] = affinity.bits().to_be_bytes();
    (aff3 as u64) << 48
        | (aff2 as u64) << 32
        | (aff1 as u64) << 16
        | (aff0 as u64 >> 4) << 44
        | 1 << (aff0 & 0xf)
}

/// Whether an SGI by `value` may go to the PE that [`sgi_to`] gives `to` of: it is in
/// the target list, and its cluster is named.
#[must_use]
pub const fn may_reach(value: u64, to: u64) -> bool {
    const INTID: u64 = 0xf << 24;
    const LIST: u64 = 0xffff;
    value & IRM == 0 && value & to & LIST != 0 && (value ^ to) & !(INTID | LIST | RES0) == 0
}

/// RES0 of `ICC_SGI<n>R_EL1`.
const RES0: u64 = 0xff << 56 | 0b111 << 41 | 0xf << 28;

/// `IRM`: to all but the sender.
const IRM: u64 = 1 << 40;

impl<S: VcpuSet + ?Sized> Vgic<'_, S> {
    /// Sends the SGI that `value` asks for, by the vCPU `from`. Targets that do
    /// not exist are ignored, as a GIC does.
    pub fn send_sgi(&mut self, from: usize, register: SgiRegister, value: u64) {
        let sgi = (value >> 24) as usize & 0xf;
        if value & IRM != 0 {
            for vcpu in 0..self.vcpus.count() {
                if vcpu != from {
                    self.pend_sgi(vcpu, register, sgi);
                }
            }
            return;
        }
        // Aff3, Aff2 and Aff1 name the cluster, RS which 16 of its PEs.
        let cluster = Affinity::new(
            (value >> 48) as u8,
            (value >> 32) as u8,
            (value >> 16) as u8,
            (value >> 40) as u8 & 0xf0,
        );
        for bit in bits(value as u32 & 0xffff) {
            let target = Affinity::from_bits(cluster.bits() | bit as u32);
            if let Some(vcpu) = self.vcpus.find(target) {
                self.pend_sgi(vcpu, register, sgi);
            }
        }
    }

    fn pend_sgi(&mut self, vcpu: usize, register: SgiRegister, sgi: usize) {
        let groups = self.dist.groups();
        let Some(redist) = self.vcpus.redistributor(vcpu) else {
            return;
        };
        let (bank, mask) = (&mut redist.bank, 1 << sgi);
        if register == SgiRegister::Sgi1 || !bank.is_group1(sgi) {
            bank.set_pending(mask);
            // As `notify` has it.
            if (bank.held | bank.deliverable(groups)) & mask != 0 {
                redist.sent |= mask;
                self.vcpus.kick(vcpu);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against what each of them goes to.
    #[test]
    fn what_may_reach_a_pe_is_what_names_it() {
        let pes = [
            Affinity::new(0, 0, 0, 0),
            Affinity::new(0, 0, 1, 15),
            Affinity::new(4, 3, 2, 0x37),
        ];
        for from in pes {
            for to in pes {
                let value = sgi_to(to) | 5 << 24;
                assert_eq!(may_reach(value, sgi_to(from)), from == to);
                for reserved in [1 << 63, 1 << 56, 1 << 41, 1 << 43, 1 << 28] {
                    assert_eq!(may_reach(value | reserved, sgi_to(from)), from == to);
                }
                assert_eq!(may_reach(value | 0xffff, sgi_to(from)), from == to);
                assert!(!may_reach(value | IRM, sgi_to(from)), "to all others");
            }
        }
    }
}

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

/// Where a write of an `ICC_SGI<n>R_EL1` goes, as its PE sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// To that PE alone.
    Itself,
    /// To others alone, or nobody.
    Others,
    /// To that PE and others.
    Both,
}

/// The SGI of a write of an `ICC_SGI<n>R_EL1`.
#[must_use]
pub const fn sgi_of(value: u64) -> u32 {
    (value >> 24) as u32 & 0xf
}

/// Where a write of `value` by the PE at `from` goes.
#[must_use]
pub const fn reach(value: u64, from: Affinity) -> Reach {
    let own = from.bits() & 0xf;
    let list = value as u32 & 0xffff;
    if value & IRM != 0 || cluster(value) != from.bits() & !0xf || list & 1 << own == 0 {
        Reach::Others
    } else if list == 1 << own {
        Reach::Itself
    } else {
        Reach::Both
    }
}

/// Aff3, Aff2 and Aff1 name the cluster: the first of its PEs. RS, which would say which 16
/// of them, is RES0: `GICD_TYPER.RSS` is 0 (IHI0069H, 12.2.22).
const fn cluster(value: u64) -> u32 {
    let [aff3, aff2, aff1] = [
        (value >> 48) as u8,
        (value >> 32) as u8,
        (value >> 16) as u8,
    ];
    Affinity::new(aff3, aff2, aff1, 0).bits()
}

/// `IRM`: to all but the sender.
const IRM: u64 = 1 << 40;

impl<S: VcpuSet + ?Sized> Vgic<'_, S> {
    /// Sends the SGI that `value` asks for, by the vCPU `from`. Targets that do
    /// not exist are ignored, as a GIC does.
    pub fn send_sgi(&mut self, from: usize, register: SgiRegister, value: u64) {
        let sgi = sgi_of(value) as usize;
        if value & IRM != 0 {
            for vcpu in 0..self.vcpus.count() {
                if vcpu != from {
                    self.pend_sgi(vcpu, register, sgi);
                }
            }
            return;
        }
        for bit in bits(value as u32 & 0xffff) {
            let target = Affinity::from_bits(cluster(value) | bit as u32);
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
            if bank.concerned(mask, groups) != 0 {
                redist.sent |= mask;
                self.vcpus.kick(vcpu);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SGI 5 to the PE at `to`.
    fn sgi_to(to: Affinity) -> u64 {
        let [aff3, aff2, aff1, aff0] = to.bits().to_be_bytes().map(u64::from);
        aff3 << 48 | aff2 << 32 | aff1 << 16 | 5 << 24 | 1 << aff0
    }

    #[test]
    fn an_sgi_goes_to_whom_it_names() {
        let pes = [
            Affinity::new(0, 0, 0, 0),
            Affinity::new(0, 0, 1, 15),
            Affinity::new(4, 3, 2, 7),
        ];
        for from in pes {
            for to in pes {
                let value = sgi_to(to);
                let one = [Reach::Others, Reach::Itself][usize::from(from == to)];
                let all = [Reach::Others, Reach::Both][usize::from(from == to)];
                assert_eq!(sgi_of(value), 5);
                // With RES0 bits.
                for more in [0, 1 << 63, 1 << 56, 1 << 41, 1 << 43, 1 << 28] {
                    assert_eq!(reach(value | more, from), one, "{more:#x}");
                }
                assert_eq!(reach(value | 0xffff, from), all);
                assert_eq!(reach(value | IRM, from), Reach::Others);
                assert_eq!(reach(value & !0xffff, from), Reach::Others);
            }
        }
    }

    /// IHI0069H, 12.2.22: "When ICC_CTLR_EL1.RSS == 0, RS is RES0", and with
    /// GICD_TYPER.RSS == 0 it may be treated as 0 where it is not. No GICD_TYPER here says
    /// RSS, and QEMU's virtual ICC_CTLR_EL1 does not.
    #[test]
    fn a_range_that_nobody_has_is_none() {
        let typer = crate::fixed(crate::At { offset: 4, size: 4 });
        assert_eq!(
            typer.map(|typer| typer >> 26 & 1),
            Some(0),
            "GICD_TYPER.RSS"
        );
        for affinity in [Affinity::new(0, 0, 0, 3), Affinity::new(4, 3, 2, 15)] {
            for rs in 1..16 {
                let value = sgi_to(affinity) | rs << 44;
                assert_eq!(reach(value, affinity), Reach::Itself, "RS {rs}");
            }
        }
    }
}

//! The instruction of each barrier and each invalidation that `pgtable` asks for.

use arm64::instr;
use pgtable::{Barrier, Tlbi, TlbiKind};

/// Issues a barrier.
#[inline]
pub fn barrier(barrier: Barrier) {
    match barrier {
        Barrier::DsbIshst => instr::dsb_ishst(),
        Barrier::DsbIsh => instr::dsb_ish(),
        Barrier::DsbNshst => instr::dsb_nshst(),
        Barrier::DsbNsh => instr::dsb_nsh(),
        Barrier::Isb => instr::isb(),
    }
}

/// Issues an invalidation of TLB entries.
#[inline]
pub fn tlbi(op: Tlbi) {
    let operand = op.operand();
    match op.kind() {
        TlbiKind::Ipas2e1is => instr::tlbi_ipas2e1is(operand),
        TlbiKind::Ripas2e1is => instr::tlbi_ripas2e1is(operand),
        TlbiKind::Ipas2e1 => instr::tlbi_ipas2e1(operand),
        TlbiKind::Vmalle1is => instr::tlbi_vmalle1is(),
        TlbiKind::Vmalle1 => instr::tlbi_vmalle1(),
        TlbiKind::Vmalls12e1is => instr::tlbi_vmalls12e1is(),
        TlbiKind::Alle1is => instr::tlbi_alle1is(),
        TlbiKind::Vae2is => instr::tlbi_vae2is(operand),
        TlbiKind::Rvae2is => instr::tlbi_rvae2is(operand),
        TlbiKind::Alle2is => instr::tlbi_alle2is(),
    }
}

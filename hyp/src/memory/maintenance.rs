//! What `pgtable` asks of the CPU, one instruction each. Nothing is decided
//! here.

use pgtable::{Barrier, CacheOp, Maintenance, Tlbi, TlbiKind};

use super::guarded;
use crate::cpu::instr;
use crate::{mrs, msr};

/// The CPU, for changes of one stage-2 tree. `VTCR_EL2` goes with `VTTBR_EL2`:
/// trees differ in LPA2, and the operand of a range TLBI with it.
#[derive(Debug)]
pub struct Pe {
    vtcr: u64,
    before: Option<u64>,
    line: u64,
}

impl Pe {
    /// For the tree with this `VTCR_EL2`. `line` is the data cache line, bytes.
    pub fn new(vtcr: u64, line: u64) -> Self {
        Self {
            vtcr,
            before: None,
            line,
        }
    }

    /// For EL2's own stage 1.
    pub fn el2(line: u64) -> Self {
        Self::new(0, line)
    }
}

impl Maintenance for Pe {
    #[inline]
    fn barrier(&mut self, barrier: Barrier) {
        match barrier {
            Barrier::DsbIshst => instr::dsb_ishst(),
            Barrier::DsbIsh => instr::dsb_ish(),
            Barrier::DsbNshst => instr::dsb_nshst(),
            Barrier::DsbNsh => instr::dsb_nsh(),
            Barrier::Isb => instr::isb(),
        }
    }

    #[inline]
    fn tlbi(&mut self, op: Tlbi) {
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

    fn cache(&mut self, op: CacheOp) {
        match op {
            CacheOp::CleanInvalidateData { pa, size } => {
                // SAFETY: a leaf of a stage 2 maps RAM, all of which EL2 maps.
                unsafe { guarded::clean_invalidate(pa.get(), size, self.line) };
            }
            CacheOp::SyncInstructions { pa, size } => {
                // SAFETY: as above.
                unsafe { guarded::clean_invalidate(pa.get(), size, self.line) };
                instr::ic_ialluis();
                instr::dsb_ish();
                instr::isb();
            }
        }
    }

    #[inline]
    fn vttbr(&mut self) -> u64 {
        mrs!("vttbr_el2")
    }

    #[inline]
    fn set_vttbr(&mut self, value: u64) {
        let vtcr = match self.before.take() {
            Some(before) => before,
            None => {
                self.before = Some(mrs!("vtcr_el2"));
                self.vtcr
            }
        };
        msr!("vtcr_el2", vtcr);
        msr!("vttbr_el2", value);
    }
}

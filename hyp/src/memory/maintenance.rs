//! What `pgtable` asks of the CPU. Nothing is decided here.

use arm64::regs::{VTCR_EL2, VTTBR_EL2};
use pgtable::{Barrier, CacheOp, Errata, Maintenance, Stage2Regs, Tlbi};

use super::{guarded, instructions};
use crate::errata::{InForce, Walks, WorkAround};
use arm64::instr;

/// The CPU, for changes of tables.
#[derive(Debug)]
pub struct Pe {
    line: u64,
    errata: &'static InForce,
    /// Of the world whose stage 2 is not the CPU's for the moment.
    held: Option<Walks>,
}

impl Pe {
    /// `line` is the data cache line, bytes.
    pub fn new(line: u64, errata: &'static InForce) -> Self {
        Self {
            line,
            errata,
            held: None,
        }
    }

    /// The same for another change.
    #[inline(always)]
    pub fn another(&self) -> Self {
        Self::new(self.line, self.errata)
    }
}

impl Maintenance for Pe {
    #[inline]
    fn barrier(&mut self, barrier: Barrier) {
        instructions::barrier(barrier);
    }

    #[inline]
    fn tlbi(&mut self, op: Tlbi) {
        instructions::tlbi(op);
    }

    fn cache(&mut self, op: CacheOp) {
        match op {
            CacheOp::CleanInvalidateData { pa, size } => {
                // SAFETY: a leaf of a stage 2 maps RAM, all of which EL2 maps.
                unsafe { guarded::clean_invalidate(pa.get(), size, self.line) };
            }
            CacheOp::InvalidateInstructions => {
                instr::ic_ialluis();
                instr::dsb_ish();
                instr::isb();
            }
        }
    }

    #[inline]
    fn stage2(&mut self) -> Stage2Regs {
        Stage2Regs {
            vtcr: VTCR_EL2.get(),
            vttbr: VTTBR_EL2.get(),
        }
    }

    #[inline]
    fn set_stage2(&mut self, regs: Stage2Regs) {
        let held = self.held.take();
        if held.is_none() {
            self.held = Walks::hold_where_needed(self.errata);
        }
        // SAFETY: EL2 translates by neither. What is set is put back before a lower
        // level runs.
        unsafe {
            VTCR_EL2.steer(regs.vtcr);
            VTTBR_EL2.steer(regs.vttbr);
        }
        if let Some(walks) = held {
            walks.release();
        }
    }

    fn errata(&self) -> Errata {
        if self.errata.need(WorkAround::TlbiSyncRepeat) {
            Errata::TLBI_SYNC_REPEAT
        } else {
            Errata::NONE
        }
    }
}

//! The instructions that `pgtable` asks for, and those that ask the MMU.

use arm64::instr;
use arm64::regs::{PAR_EL1, VTCR_EL2, VTTBR_EL2};
use hyp::memory::instructions;
use pgtable::{Barrier, CacheOp, Maintenance, Stage2Regs, Tlbi};
use tests::bare::asm::clean;

use crate::memory::{DATA, ENDS, is_ram};

/// One instruction a call.
#[derive(Clone, Copy, Debug)]
pub struct Instructions;

impl Maintenance for Instructions {
    fn barrier(&mut self, barrier: Barrier) {
        instructions::barrier(barrier);
    }

    fn tlbi(&mut self, op: Tlbi) {
        instructions::tlbi(op);
    }

    fn cache(&mut self, op: CacheOp) {
        match op {
            // What is larger than all the memory that guests use here has no
            // RAM behind it.
            CacheOp::CleanInvalidateData { pa, size } => {
                if size <= DATA && is_ram(pa.get(), size) {
                    clean_frames(pa.get(), pa.get() + size);
                }
            }
            CacheOp::InvalidateInstructions => {
                instr::ic_ialluis();
                instr::dsb_ish();
                instr::isb();
            }
        }
    }

    fn stage2(&mut self) -> Stage2Regs {
        Stage2Regs {
            vtcr: VTCR_EL2.get(),
            vttbr: VTTBR_EL2.get(),
        }
    }

    fn set_stage2(&mut self, regs: Stage2Regs) {
        // SAFETY: A tree of this program's, or what was installed before.
        unsafe {
            VTCR_EL2.steer(regs.vtcr);
            VTTBR_EL2.steer(regs.vttbr);
        }
    }
}

/// Cleans memory of guests. These are frames of which only the ends of each 4 KiB
/// are ever written (EL1's code apart, which is clean): the rest would be most of
/// the time that the program takes on a CPU without FEAT_S2FWB.
fn clean_frames(from: u64, to: u64) {
    for page in (from..to).step_by(4096) {
        clean(page, page + ENDS);
        clean(page + 4096 - ENDS, page + 4096);
    }
}

/// What `AT` found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    /// The output address.
    pub pa: u64,
    /// The memory type as MAIR_EL1 encodes it, `PAR_EL1.ATTR`.
    pub attr: u8,
    /// Shareability, `PAR_EL1.SH`.
    pub share: u8,
}

fn par(va: u64) -> Result<At, u64> {
    let par = PAR_EL1.get();
    if par & 1 != 0 {
        return Err(par);
    }
    Ok(At {
        pa: par & 0x000f_ffff_ffff_f000 | va & 0xfff,
        attr: (par >> 56) as u8,
        share: (par >> 7 & 3) as u8,
    })
}

/// `AT S12E1R`: what a read at EL1 meets, or PAR_EL1 of the fault.
pub fn at_guest(va: u64) -> Result<At, u64> {
    instr::at_s12e1r(va);
    instr::isb();
    par(va)
}

/// `AT S1E2R`: what a read at EL2 meets, or PAR_EL1 of the fault.
pub fn at_el2(va: u64) -> Result<At, u64> {
    instr::at_s1e2r(va);
    instr::isb();
    par(va)
}

/// The output address of a read at EL1.
pub fn translate(va: u64) -> Result<u64, u64> {
    at_guest(va).map(|at| at.pa)
}

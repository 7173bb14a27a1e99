//! The instructions that `pgtable` asks for, and those that ask the MMU.

use core::arch::asm;

use pgtable::{Barrier, CacheOp, Maintenance, Stage2Regs, Tlbi, TlbiKind};
use tests::bare::asm::clean;
use tests::mrs;

use crate::memory::{DATA, ENDS, is_ram};

/// One instruction a call.
#[derive(Clone, Copy, Debug)]
pub struct Instructions;

impl Maintenance for Instructions {
    fn barrier(&mut self, barrier: Barrier) {
        // SAFETY: Barriers.
        unsafe {
            match barrier {
                Barrier::DsbIshst => asm!("dsb ishst", options(nostack)),
                Barrier::DsbIsh => asm!("dsb ish", options(nostack)),
                Barrier::DsbNshst => asm!("dsb nshst", options(nostack)),
                Barrier::DsbNsh => asm!("dsb nsh", options(nostack)),
                Barrier::Isb => asm!("isb", options(nostack)),
            }
        }
    }

    fn tlbi(&mut self, op: Tlbi) {
        let operand = op.operand();
        // SAFETY: Invalidations drop copies of what tables say.
        unsafe {
            match op.kind() {
                TlbiKind::Ipas2e1is => asm!("tlbi ipas2e1is, {}", in(reg) operand),
                // By encoding: the assembler wants FEAT_TLBIRANGE for the name.
                TlbiKind::Ripas2e1is => asm!("sys #4, c8, c0, #2, {}", in(reg) operand),
                TlbiKind::Ipas2e1 => asm!("tlbi ipas2e1, {}", in(reg) operand),
                TlbiKind::Vmalle1is => asm!("tlbi vmalle1is"),
                TlbiKind::Vmalle1 => asm!("tlbi vmalle1"),
                TlbiKind::Vmalls12e1is => asm!("tlbi vmalls12e1is"),
                TlbiKind::Alle1is => asm!("tlbi alle1is"),
                TlbiKind::Vae2is => asm!("tlbi vae2is, {}", in(reg) operand),
                TlbiKind::Rvae2is => asm!("sys #4, c8, c2, #1, {}", in(reg) operand),
                TlbiKind::Alle2is => asm!("tlbi alle2is"),
            }
        }
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
            // SAFETY: Drops copies of instructions.
            CacheOp::InvalidateInstructions => unsafe {
                asm!("ic ialluis", "dsb ish", "isb", options(nostack));
            },
        }
    }

    fn stage2(&mut self) -> Stage2Regs {
        Stage2Regs {
            vtcr: mrs!("vtcr_el2"),
            vttbr: mrs!("vttbr_el2"),
        }
    }

    fn set_stage2(&mut self, regs: Stage2Regs) {
        // SAFETY: A tree of this program's, or what was installed before.
        unsafe {
            asm!(
                "msr vtcr_el2, {}",
                "msr vttbr_el2, {}",
                in(reg) regs.vtcr,
                in(reg) regs.vttbr,
                options(nostack)
            );
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
    let par = mrs!("par_el1");
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
    // SAFETY: Writes PAR_EL1 alone.
    unsafe { asm!("at s12e1r, {}", "isb", in(reg) va, options(nostack)) };
    par(va)
}

/// `AT S1E2R`: what a read at EL2 meets, or PAR_EL1 of the fault.
pub fn at_el2(va: u64) -> Result<At, u64> {
    // SAFETY: Writes PAR_EL1 alone.
    unsafe { asm!("at s1e2r, {}", "isb", in(reg) va, options(nostack)) };
    par(va)
}

/// The output address of a read at EL1.
pub fn translate(va: u64) -> Result<u64, u64> {
    at_guest(va).map(|at| at.pa)
}

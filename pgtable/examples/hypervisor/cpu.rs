//! What a CPU executes: one instruction a call. Interrupts are masked by
//! whoever calls the crate.

#[cfg(target_arch = "aarch64")]
pub use self::arm64::Cpu;
#[cfg(not(target_arch = "aarch64"))]
pub use self::printed::Cpu;

/// At EL2 of an arm64 CPU.
#[cfg(target_arch = "aarch64")]
mod arm64 {
    use core::arch::asm;
    use pgtable::{Barrier, CacheOp, Maintenance, Pa, Stage2Regs, Tlbi, TlbiKind};

    pub struct Cpu {
        /// Bytes of a data cache line: `CTR_EL0.DminLine`.
        line: u64,
    }

    impl Cpu {
        pub fn new() -> Self {
            let ctr: u64;
            // SAFETY: reads a register.
            unsafe { asm!("mrs {}, ctr_el0", out(reg) ctr, options(nomem, nostack)) };
            Self {
                line: 4 << (ctr >> 16 & 0xf),
            }
        }

        /// Cleans and invalidates the lines of memory to the point of coherency.
        fn clean(&self, pa: Pa, size: u64) {
            // A hypervisor that maps memory elsewhere adds its offset here.
            let from = pa.get();
            for at in (from..from + size).step_by(self.line as usize) {
                // SAFETY: writes back what is in the cache, of mapped memory.
                unsafe { asm!("dc civac, {}", in(reg) at, options(nostack)) };
            }
            self.dsb_ish();
        }

        fn dsb_ish(&self) {
            // SAFETY: a barrier.
            unsafe { asm!("dsb ish", options(nostack)) };
        }
    }

    impl Maintenance for Cpu {
        fn barrier(&mut self, barrier: Barrier) {
            // SAFETY: barriers.
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
            // SAFETY: drops copies of what tables say.
            unsafe {
                match op.kind() {
                    TlbiKind::Ipas2e1is => asm!("tlbi ipas2e1is, {}", in(reg) operand),
                    // By encoding: the names need FEAT_TLBIRANGE of the assembler.
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
                CacheOp::CleanInvalidateData { pa, size } => self.clean(pa, size),
                CacheOp::InvalidateInstructions => {
                    // SAFETY: drops copies of instructions.
                    unsafe { asm!("ic ialluis", "dsb ish", "isb", options(nostack)) };
                }
            }
        }

        fn stage2(&mut self) -> Stage2Regs {
            let (vtcr, vttbr);
            // SAFETY: reads registers.
            unsafe {
                asm!("mrs {}, vtcr_el2", "mrs {}, vttbr_el2", out(reg) vtcr, out(reg) vttbr);
            }
            Stage2Regs { vtcr, vttbr }
        }

        fn set_stage2(&mut self, regs: Stage2Regs) {
            let Stage2Regs { vtcr, vttbr } = regs;
            // SAFETY: those of a tree, or those that were loaded; no guest runs
            // until they are back.
            unsafe {
                asm!("msr vtcr_el2, {}", "msr vttbr_el2, {}", in(reg) vtcr, in(reg) vttbr);
            }
        }
    }
}

/// Anywhere else: prints what it would do.
#[cfg(not(target_arch = "aarch64"))]
mod printed {
    use pgtable::{Barrier, CacheOp, Maintenance, Stage2Regs, Tlbi};

    pub struct Cpu(Stage2Regs);

    impl Cpu {
        pub fn new() -> Self {
            Self(Stage2Regs::default())
        }
    }

    impl Maintenance for Cpu {
        fn barrier(&mut self, barrier: Barrier) {
            println!("    {}", barrier.mnemonic());
        }
        fn tlbi(&mut self, op: Tlbi) {
            println!("    {op}");
        }
        fn cache(&mut self, op: CacheOp) {
            println!("    {op:?}");
        }
        fn stage2(&mut self) -> Stage2Regs {
            self.0
        }
        fn set_stage2(&mut self, regs: Stage2Regs) {
            println!("    msr vtcr_el2, {:#x}", regs.vtcr);
            println!("    msr vttbr_el2, {:#x}", regs.vttbr);
            self.0 = regs;
        }
    }
}

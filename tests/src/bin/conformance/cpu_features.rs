//! Registers and instructions of the CPU: what is hidden, what is undefined,
//! what is kept over exits.

use arm64::regs::{
    ACTLR_EL1, CPACR_EL1, ID_AA64DFR0_EL1, ID_AA64MMFR0_EL1, ID_AA64PFR0_EL1, ID_AA64PFR1_EL1,
    ID_AA64SMFR0_EL1, ID_AA64ZFR0_EL1,
};
use arm64::sysreg::sysreg;
use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};
use tests::bare::asm::set;

use tests::bare::console::Console;
use tests::bare::{asm as instr, cpu, exception, gic, psci, sweep};
use tests::suite::Suite;

/// The last register of the ID space, which has no name.
fn reserved() -> u64 {
    let value;
    // SAFETY: it reads as zero, or traps and is skipped.
    unsafe { asm!(".inst {}", const sysreg(3, 0, 0, 7, 7).mrs(0), out("x0") value) };
    value
}

/// What one CPU can see.
pub fn checks(suite: &mut Suite<Console>, bare: bool) {
    let fp = kept(0x1111);
    suite.check("fp/kept-over-exits", fp == 0, format_args!("{fp} lost"));
    if bare {
        return;
    }
    let field = |value: u64, shift: u32| value >> shift & 0xf;
    let pfr0 = ID_AA64PFR0_EL1.get();
    suite.equal("id/no-sve", field(pfr0, 32), 0);
    suite.equal("id/no-el2", field(pfr0, 8), 0);
    suite.equal("id/no-ras", field(pfr0, 28), 0);
    suite.equal("id/no-amu", field(pfr0, 44), 0);
    suite.equal("id/no-mpam", field(pfr0, 40), 0);
    suite.equal("id/gic", field(pfr0, 24), 1);
    let pfr1 = ID_AA64PFR1_EL1.get();
    suite.equal("id/no-mte", field(pfr1, 8), 0);
    suite.equal("id/no-sme", field(pfr1, 24), 0);
    let dfr0 = ID_AA64DFR0_EL1.get();
    suite.equal("id/no-pmu", field(dfr0, 8), 0);
    suite.equal("id/no-spe", field(dfr0, 32), 0);
    suite.equal("id/no-trace", field(dfr0, 4), 0);
    suite.equal("id/zfr0", ID_AA64ZFR0_EL1.get(), 0);
    suite.equal("id/smfr0", ID_AA64SMFR0_EL1.get(), 0);
    suite.equal("id/reserved", reserved(), 0);
    let range = ID_AA64MMFR0_EL1.get() & 0xf;
    suite.check("id/pa-range", range <= 6, range);

    macro_rules! undefined {
        ($name:literal, $($asm:tt)*) => {{
            // SAFETY: Undefined, and skipped; where it is not, it reads.
            let seen = exception::probe(|| unsafe { asm!($($asm)*) });
            suite.check(
                concat!("undefined/", $name),
                seen.is_err_and(|caught| caught.is_undefined()),
                format_args!("{seen:x?}"),
            );
        }};
    }
    // All may be used, as far as EL1 itself has a say: FP, SVE and SME.
    set(CPACR_EL1, 3 << 20 | 3 << 16 | 3 << 24);
    undefined!("sve-cntb", ".inst 0x0420e3e0", out("x0") _);
    undefined!("sme-rdsvl", ".inst 0x04bf5820", out("x0") _);
    undefined!("sme-smstart", ".inst 0xd503477f");
    undefined!("sve-zcr", "mrs {}, S3_0_C1_C2_0", out(reg) _);
    undefined!("pmcr", "mrs {}, pmcr_el0", out(reg) _);
    undefined!("pmccntr", "mrs {}, pmccntr_el0", out(reg) _);
    undefined!("pmuserenr-write", "msr pmuserenr_el0, {}", in(reg) 0u64);
    undefined!("implementation-defined-read", "mrs {}, S3_0_C15_C2_0", out(reg) _);
    undefined!("implementation-defined-write", "msr S3_1_C15_C1_7, {}", in(reg) 0u64);
    undefined!("el2-register", "mrs {}, hcr_el2", out(reg) _);
    undefined!("el2-vttbr-write", "msr vttbr_el2, {}", in(reg) 0u64);
    undefined!("el3-register", "mrs {}, S3_6_C1_C1_0", out(reg) _);
    undefined!("lor", "mrs {}, S3_0_C10_C4_0", out(reg) _);
    undefined!("gcr-mte", "mrs {}, S3_0_C1_C0_6", out(reg) _);
    undefined!("amu", "mrs {}, S3_3_C13_C2_0", out(reg) _);
    undefined!("trace", "mrs {}, S2_1_C0_C4_0", out(reg) _);
    undefined!("tlbi-el2", "tlbi alle2");
    undefined!("tlbi-stage2", "tlbi ipas2e1, {}", in(reg) 0u64);
    undefined!("at-s12", "at s12e1r, {}", in(reg) 0u64);
    undefined!("hypervisor-timer", "mrs {}, cnthp_ctl_el2", out(reg) _);
    undefined!("cntvoff", "msr cntvoff_el2, {}", in(reg) 0u64);
    set(CPACR_EL1, 0);

    // All there is, with nothing but undefined instructions to be seen.
    instr::irq_off();
    set(CPACR_EL1, 3 << 20 | 3 << 16 | 3 << 24);
    for (name, met) in [
        ("sweep/registers", sweep::registers()),
        ("sweep/maintenance", sweep::maintenance()),
    ] {
        let right = met.other == 0 && met.undefined > 1000 && met.done > 20;
        suite.check(name, right, format_args!("{met:x?}"));
    }
    instr::irq_on();

    memory_copies(suite);

    // Cache maintenance and TLB maintenance are the guest's own affair.
    let own = exception::probe(|| {
        // SAFETY: Neither changes a value.
        unsafe {
            asm!("tlbi vmalle1is", "dsb ish", "ic iallu", "isb");
            let at = cpu::entry();
            asm!("dc cvau, {0}", "ic ivau, {0}", in(reg) at);
        }
    });
    suite.check("cpu/maintenance", own.is_ok(), format_args!("{own:x?}"));
    let set_way = exception::probe(|| {
        // SAFETY: Set and way 0 of the first level: cleaned, no more.
        unsafe { asm!("dc cisw, xzr", "dsb sy") };
    });
    suite.check("cpu/set-way", set_way.is_ok(), format_args!("{set_way:x?}"));
    let actlr = exception::probe(|| ACTLR_EL1.get());
    suite.check("cpu/actlr", actlr.is_ok(), format_args!("{actlr:x?}"));
}

/// FEAT_MOPS is there as ID_AA64ISAR2_EL1 tells, and not otherwise.
fn memory_copies(suite: &mut Suite<Console>) {
    let (from, mut to) = ([0x5a_u8; 100], [0_u8; 100]);
    let (source, target) = (from.as_ptr() as u64, to.as_mut_ptr() as u64);
    // SAFETY: both are here, and as long as that.
    let copy = exception::probe(|| unsafe { instr::copy(source, target, 100) });
    let right = if instr::has_memory_copies() {
        copy.is_ok() && to == from
    } else {
        copy.is_err_and(|caught| caught.is_undefined())
    };
    suite.check("id/mops", right, format_args!("{copy:x?}"));
}

/// Writes all 32 vector registers, leaves for the hypervisor in several ways, and
/// counts those that are not what they were.
fn kept(seed: u64) -> u64 {
    set(CPACR_EL1, 3 << 20);
    let mut wrong = 0;
    let mut values = [0u64; 64];
    let (control, status) = (1u64 << 22, 1u64 << 27);
    for (n, value) in values.iter_mut().enumerate() {
        *value = seed
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(n as u32);
    }
    // SAFETY: The program is built without FP: its registers are nobody's.
    unsafe {
        asm!(
            ".arch_extension fp", ".arch_extension simd",
            "ldp q0, q1, [{0}]", "ldp q2, q3, [{0}, #32]", "ldp q4, q5, [{0}, #64]",
            "ldp q6, q7, [{0}, #96]", "ldp q8, q9, [{0}, #128]", "ldp q10, q11, [{0}, #160]",
            "ldp q12, q13, [{0}, #192]", "ldp q14, q15, [{0}, #224]",
            "ldp q16, q17, [{0}, #256]", "ldp q18, q19, [{0}, #288]",
            "ldp q20, q21, [{0}, #320]", "ldp q22, q23, [{0}, #352]",
            "ldp q24, q25, [{0}, #384]", "ldp q26, q27, [{0}, #416]",
            "ldp q28, q29, [{0}, #448]", "ldp q30, q31, [{0}, #480]",
            "msr fpcr, {1}", "msr fpsr, {2}",
            in(reg) values.as_ptr(), in(reg) control, in(reg) status, options(nostack),
        );
    }
    for _ in 0..20 {
        psci::psci(psci::fid::VERSION, 0, 0, 0);
        gic::d(gic::gicd::TYPER);
        psci::affinity_info(instr::mpidr());
        let mut seen = [0u64; 64];
        let (fpcr, fpsr): (u64, u64);
        // SAFETY: As above; `seen` holds them all.
        unsafe {
            asm!(
                ".arch_extension fp", ".arch_extension simd",
                "stp q0, q1, [{0}]", "stp q2, q3, [{0}, #32]", "stp q4, q5, [{0}, #64]",
                "stp q6, q7, [{0}, #96]", "stp q8, q9, [{0}, #128]",
                "stp q10, q11, [{0}, #160]", "stp q12, q13, [{0}, #192]",
                "stp q14, q15, [{0}, #224]", "stp q16, q17, [{0}, #256]",
                "stp q18, q19, [{0}, #288]", "stp q20, q21, [{0}, #320]",
                "stp q22, q23, [{0}, #352]", "stp q24, q25, [{0}, #384]",
                "stp q26, q27, [{0}, #416]", "stp q28, q29, [{0}, #448]",
                "stp q30, q31, [{0}, #480]",
                "mrs {1}, fpcr", "mrs {2}, fpsr",
                in(reg) seen.as_mut_ptr(), out(reg) fpcr, out(reg) fpsr, options(nostack),
            );
        }
        wrong += seen.iter().zip(&values).filter(|(a, b)| a != b).count() as u64;
        wrong += u64::from(fpcr != control) + u64::from(fpsr != status);
    }
    wrong
}

static WRONG: AtomicU64 = AtomicU64::new(0);

fn keep() {
    for round in 0..20 {
        let wrong = kept((round << 8) + cpu::index() as u64 + 1);
        WRONG.fetch_add(wrong, Ordering::Relaxed);
    }
}

/// What needs a second CPU: each has registers of its own.
pub fn other_cpus(suite: &mut Suite<Console>) {
    WRONG.store(0, Ordering::Relaxed);
    let together = cpu::together(keep, keep);
    suite.check("fp/all-ran", together, "not all did");
    suite.equal("fp/kept-on-all", WRONG.load(Ordering::Relaxed), 0);
}

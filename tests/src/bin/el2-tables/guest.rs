//! EL1, entered on any CPU for one access at a time: what a guest sees through
//! the stage 2 that is installed there.
//!
//! Stage 1 is off and its accesses are cacheable (`HCR_EL2.DC`), as EL2's are.

use arm64::regs::{
    CPTR_EL2, ESR_EL1, HCR_EL2, HPFAR_EL2, SCTLR_EL1, VBAR_EL1, VTCR_EL2, VTTBR_EL2,
};
use arm64::{bits, instr};
use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, Ordering};

use pgtable::Geometry;
use tests::bare::asm::{set, steer};
use tests::bare::exception::{self, Frame};
use tests::bare::{MAX_CPUS, cpu};

/// EL1's stage 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage1 {
    /// Off: a VA is an IPA.
    Off,
    /// As SCTLR_EL1 says.
    Own,
}

/// Gets EL1 ready on this CPU: its MMU off, little-endian.
pub fn start() {
    exception::on_sync(lower);
    // No trap of FP: RES1, and SVE's and SME's.
    set(CPTR_EL2, bits!(CPTR_EL2: RES1_0, RES1_9, RES1_13, TZ, TSM));
    // SAFETY: EL1 does not run, and its MMU is off.
    unsafe {
        steer(HCR_EL2, bits!(HCR_EL2: RW));
        steer(SCTLR_EL1, 0x30d0_0800);
    }
    code_at(code());
}

/// Loads a tree into this CPU's registers, and forgets all earlier ones.
pub fn load(geometry: &Geometry, vttbr: u64, stage1: Stage1) {
    let mut hcr = bits!(HCR_EL2: RW, VM);
    if geometry.features().fwb {
        hcr |= bits!(HCR_EL2: FWB);
    }
    if stage1 == Stage1::Off {
        hcr |= bits!(HCR_EL2: DC);
    }
    // SAFETY: A tree of this program's, for an EL1 that does not run.
    unsafe {
        steer(HCR_EL2, hcr);
        steer(VTCR_EL2, geometry.vtcr());
        steer(VTTBR_EL2, vttbr);
    }
    instr::dsb_ish();
    instr::tlbi_alle1is();
    instr::dsb_ish();
    instr::isb();
}

/// Installs another tree of the same geometry.
pub fn switch(vttbr: u64) {
    if VTTBR_EL2.get() != vttbr {
        // SAFETY: A tree of this program's, for an EL1 that does not run.
        unsafe { steer(VTTBR_EL2, vttbr) };
    }
}

global_asm!(
    ".balign 65536",
    ".global el1_code",
    "el1_code:",
    "ldr x0, [x0]",
    "hvc #1",
    "str x1, [x0]",
    "hvc #1",
    "blr x0",
    "hvc #1",
    // EL0's, which comes back through EL1's vectors.
    "blr x0",
    "svc #0",
    // Its vectors: an exception that EL1 takes ends its turn too.
    ".balign 2048",
    ".rept 16",
    "hvc #2",
    ".balign 128",
    ".endr",
    ".balign 65536",
    // x0, x1 = the guest's; x2 = where it begins, x3 = its SPSR. Callee-saved registers stay on the
    // stack while EL1 runs; the exception comes back to `el1_back`.
    ".global el1_enter",
    "el1_enter:",
    tests::keep_registers!(),
    "msr elr_el2, x2",
    "msr spsr_el2, x3",
    "isb",
    "eret",
    ".global el1_back",
    "el1_back:",
    tests::return_with_registers!(),
);

/// Where EL1's vectors are in its code.
const VECTORS: u64 = 2048;

unsafe extern "C" {
    static el1_code: u8;
    static el1_back: u8;
    fn el1_enter(x0: u64, x1: u64, at: u64, spsr: u64) -> u64;
}

/// EL1's code, in memory: it fills one granule of any size.
pub fn code() -> u64 {
    (&raw const el1_code).addr() as u64
}

/// Where EL1 finds its code on this CPU from now on, as an IPA.
pub fn code_at(ipa: u64) {
    // SAFETY: Its vectors, as it sees them.
    unsafe { steer(VBAR_EL1, ipa + VECTORS) };
    PES[cpu::index()].code.store(ipa, Ordering::Relaxed);
}

/// A CPU's own: where EL1's code is, and the exception that ended its turn.
struct Pe {
    code: AtomicU64,
    esr: AtomicU64,
    far: AtomicU64,
    hpfar: AtomicU64,
}

static PES: [Pe; MAX_CPUS] = [const {
    Pe {
        code: AtomicU64::new(0),
        esr: AtomicU64::new(0),
        far: AtomicU64::new(0),
        hpfar: AtomicU64::new(0),
    }
}; MAX_CPUS];

fn lower(frame: &mut Frame) -> bool {
    // From EL1 only: SPSR says where it came from.
    if frame.spsr & 0xf > 5 {
        return false;
    }
    let pe = &PES[cpu::index()];
    pe.esr.store(frame.esr, Ordering::Relaxed);
    pe.far.store(frame.far, Ordering::Relaxed);
    pe.hpfar.store(HPFAR_EL2.get(), Ordering::Relaxed);
    frame.elr = (&raw const el1_back).addr() as u64;
    frame.spsr = 0x3c9;
    true
}

/// The kind of a stage-2 fault, without its level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing is mapped.
    Translation,
    /// The access flag is clear.
    AccessFlag,
    /// The access is not allowed.
    Permission,
    /// Something else: the fault status.
    Other(u8),
}

/// Why an access at EL1 came to EL2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Exception class: 0x20 for a fetch, 0x24 for data.
    pub class: u8,
    /// What kind.
    pub kind: Kind,
    /// The IPA; not written for permission faults.
    pub ipa: u64,
}

/// SPSR_EL2: EL1 with its own stack pointer, and EL0; nothing interrupts them.
const EL1: u64 = 0x3c5;
const EL0: u64 = 0x3c0;
/// ESR_EL1.EC of an SVC.
const SVC: u64 = 0x15;

fn run(offset: u64, x0: u64, x1: u64, spsr: u64) -> Result<u64, Fault> {
    let pe = &PES[cpu::index()];
    let at = pe.code.load(Ordering::Relaxed) + offset;
    // SAFETY: EL1 does one access to memory that is the check's, or faults, and
    // comes back.
    let value = unsafe { el1_enter(x0, x1, at, spsr) };
    let [esr, far, hpfar] = [&pe.esr, &pe.far, &pe.hpfar].map(|word| word.load(Ordering::Relaxed));
    if esr >> 26 == 0x16 && esr & 0xffff == 1 {
        return Ok(value);
    }
    // What EL1 took itself is an external abort, or an undefined instruction.
    let own = esr >> 26 == 0x16;
    let esr = if own { ESR_EL1.get() } else { esr };
    if own && spsr == EL0 && esr >> 26 == SVC {
        return Ok(value);
    }
    let status = (esr & 0x3f) as u8;
    Err(Fault {
        class: (esr >> 26 & 0x3f) as u8,
        kind: match status {
            other if own => Kind::Other(other),
            // Translation, levels 0 to 3 and -1.
            0x04..=0x07 | 0x2b => Kind::Translation,
            0x08..=0x0b => Kind::AccessFlag,
            0x0c..=0x0f => Kind::Permission,
            other => Kind::Other(other),
        },
        ipa: (hpfar & 0xfff_ffff_fff0) << 8 | far & 0xfff,
    })
}

/// EL1 loads.
pub fn read(ipa: u64) -> Result<u64, Fault> {
    run(0, ipa, 0, EL1)
}

/// EL1 stores.
pub fn write(ipa: u64, value: u64) -> Result<(), Fault> {
    run(8, ipa, value, EL1).map(drop)
}

/// EL1 calls; what the function leaves in X0.
pub fn fetch(ipa: u64) -> Result<u64, Fault> {
    run(16, ipa, 0, EL1)
}

/// EL0 calls; what the function leaves in X0.
pub fn fetch_el0(ipa: u64) -> Result<u64, Fault> {
    run(24, ipa, 0, EL0)
}

/// Whether an access met this kind of fault, at this IPA.
pub fn met<T>(result: Result<T, Fault>, kind: Kind, ipa: u64) -> bool {
    result.is_err_and(|fault| fault.kind == kind && (kind == Kind::Permission || fault.ipa == ipa))
}

//! The CPU at EL2: its features, the registers of stage 2, its instructions, and
//! EL1, entered for one access at a time.

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU64, Ordering};

use pgtable::{Barrier, CacheOp, Features, Geometry, Granule, Maintenance, Tlbi, TlbiKind};
use tests::bare::exception::{self, Frame};
use tests::{mrs, msr};

/// What the CPU has.
#[derive(Debug)]
pub struct Cpu {
    /// Physical address bits.
    pub pa_bits: u8,
    /// Features of tables.
    pub features: Features,
    /// Stage-2 granules 4K, 16K, 64K: 0 none, 1 48 bits, 2 LPA2.
    pub granules: [u8; 3],
}

impl Cpu {
    /// Reads the ID registers.
    pub fn read() -> Self {
        let field = |register: u64, shift: u32| (register >> shift & 0xf) as u8;
        let mmfr0 = mrs!("id_aa64mmfr0_el1");
        let mmfr1 = mrs!("id_aa64mmfr1_el1");
        let mmfr2 = mrs!("S3_0_C0_C7_2");
        let isar0 = mrs!("id_aa64isar0_el1");
        // TGran_2: 0 as stage 1, 1 none, 2 there, 3 with LPA2.
        let stage2 = |shift: u32, stage1: u8| match field(mmfr0, shift) {
            0 => stage1,
            2 => 1,
            3 => 2,
            _ => 0,
        };
        let granules = [
            stage2(
                40,
                [1, 2]
                    .get(usize::from(field(mmfr0, 28)))
                    .copied()
                    .unwrap_or(0),
            ),
            stage2(
                32,
                [0, 1, 2]
                    .get(usize::from(field(mmfr0, 20)))
                    .copied()
                    .unwrap_or(0),
            ),
            stage2(36, u8::from(field(mmfr0, 24) == 0)),
        ];
        Self {
            pa_bits: [32, 36, 40, 42, 44, 48, 52]
                .get(usize::from(field(mmfr0, 0)))
                .copied()
                .unwrap_or(48),
            features: Features {
                tlb_range: field(isar0, 56) >= 2,
                ttl: field(mmfr2, 48) >= 1,
                fwb: field(mmfr2, 40) >= 1,
                xnx: field(mmfr1, 28) >= 1,
                vmid16: field(mmfr1, 4) == 2,
                // Access flag faults are what is to be seen.
                hw_access_flag: false,
                hw_dirty: false,
                ttst: field(mmfr2, 28) >= 1,
                cnp: false,
                dic: mrs!("ctr_el0") >> 29 & 1 != 0,
                bbm2: false,
            },
            granules,
        }
    }

    /// Whether stage 2 has this granule, with LPA2's descriptors.
    pub fn has(&self, granule: Granule, lpa2: bool) -> bool {
        let has = self.granules[match granule {
            Granule::K4 => 0,
            Granule::K16 => 1,
            Granule::K64 => 2,
        }];
        has > u8::from(lpa2)
    }
}

/// HCR_EL2: stage 2 on, EL1 is AArch64, SMC and WFI are EL1's own affair.
const HCR_VM: u64 = 1;
const HCR_RW: u64 = 1 << 31;
const HCR_FWB: u64 = 1 << 46;

/// Gets EL1 ready: its MMU off, little-endian.
pub fn start() {
    exception::on_sync(lower);
    msr!("hcr_el2", HCR_RW);
    msr!("cptr_el2", 0x33ff);
    msr!("sctlr_el1", 0x30d0_0800u64);
    msr!("vbar_el1", 0);
}

/// Loads a tree into the registers, and forgets all earlier ones.
pub fn load(geometry: &Geometry, vttbr: u64) {
    let fwb = if geometry.features().fwb { HCR_FWB } else { 0 };
    msr!("hcr_el2", HCR_RW | HCR_VM | fwb);
    msr!("vtcr_el2", geometry.vtcr());
    msr!("vttbr_el2", vttbr);
    // SAFETY: Drops what TLBs know of EL1 and EL0.
    unsafe {
        asm!(
            "dsb ish",
            "tlbi alle1is",
            "dsb ish",
            "isb",
            options(nostack)
        );
    };
}

/// The instructions that `pgtable` asks for.
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
        let (CacheOp::CleanInvalidateData { size, .. } | CacheOp::SyncInstructions { size, .. }) =
            op;
        // Blocks larger than any page have no RAM behind them here.
        if size > 64 << 10 {
            return;
        }
        match op {
            CacheOp::CleanInvalidateData { pa, size } => {
                tests::bare::asm::clean(pa.get(), pa.get() + size);
            }
            CacheOp::SyncInstructions { pa, size } => {
                tests::bare::asm::clean(pa.get(), pa.get() + size);
                // SAFETY: Drops copies of instructions.
                unsafe { asm!("ic ialluis", "dsb ish", "isb") };
            }
        }
    }

    fn vttbr(&mut self) -> u64 {
        mrs!("vttbr_el2")
    }

    fn set_vttbr(&mut self, value: u64) {
        msr!("vttbr_el2", value);
    }
}

/// `AT S12E1R`: the output address of a read at EL1, or PAR_EL1 of the fault.
pub fn translate(va: u64) -> Result<u64, u64> {
    // SAFETY: Writes PAR_EL1 alone.
    unsafe { asm!("at s12e1r, {}", "isb", in(reg) va, options(nostack)) };
    let par = mrs!("par_el1");
    if par & 1 != 0 {
        return Err(par);
    }
    Ok(par & 0x000f_ffff_ffff_f000 | va & 0xfff)
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
    ".balign 65536",
    // x0, x1 = EL1's; x2 = where it begins. Callee-saved registers stay on the
    // stack while EL1 runs; the exception comes back to `el1_back`.
    ".global el1_enter",
    "el1_enter:",
    "stp x29, x30, [sp, #-96]!",
    "stp x19, x20, [sp, #16]",
    "stp x21, x22, [sp, #32]",
    "stp x23, x24, [sp, #48]",
    "stp x25, x26, [sp, #64]",
    "stp x27, x28, [sp, #80]",
    "msr elr_el2, x2",
    "mov x2, #0x3c5",
    "msr spsr_el2, x2",
    "isb",
    "eret",
    ".global el1_back",
    "el1_back:",
    "ldp x27, x28, [sp, #80]",
    "ldp x25, x26, [sp, #64]",
    "ldp x23, x24, [sp, #48]",
    "ldp x21, x22, [sp, #32]",
    "ldp x19, x20, [sp, #16]",
    "ldp x29, x30, [sp], #96",
    "ret",
);

unsafe extern "C" {
    static el1_code: u8;
    static el1_back: u8;
    fn el1_enter(x0: u64, x1: u64, at: u64) -> u64;
}

/// EL1's code: it fills one granule of any size.
pub fn code() -> u64 {
    (&raw const el1_code).addr() as u64
}

/// ESR_EL2, FAR_EL2 and HPFAR_EL2 of the exception that ended EL1's turn.
static ENDED: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];

fn lower(frame: &mut Frame) -> bool {
    // From EL1 only: SPSR says where it came from.
    if frame.spsr & 0xf > 5 {
        return false;
    }
    ENDED[0].store(frame.esr, Ordering::Relaxed);
    ENDED[1].store(frame.far, Ordering::Relaxed);
    ENDED[2].store(mrs!("hpfar_el2"), Ordering::Relaxed);
    frame.elr = (&raw const el1_back).addr() as u64;
    frame.spsr = 0x3c9;
    true
}

/// Why an access at EL1 came to EL2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Exception class.
    pub class: u64,
    /// Fault status, ISS\[5:0\].
    pub status: u64,
    /// The IPA, of a translation fault.
    pub ipa: u64,
}

/// The kind of fault, without its level: translation 1, access flag 2,
/// permission 3.
pub fn kind(fault: Fault) -> u64 {
    match fault.status {
        0x2b => 1, // translation, level -1
        status => status >> 2,
    }
}

fn run(offset: u64, x0: u64, x1: u64) -> Result<u64, Fault> {
    // SAFETY: EL1 does one access to memory that is the check's, or faults, and
    // comes back.
    let value = unsafe { el1_enter(x0, x1, code() + offset) };
    let [esr, far, hpfar] = [0, 1, 2].map(|n: usize| ENDED[n].load(Ordering::Relaxed));
    if esr >> 26 == 0x16 {
        return Ok(value);
    }
    Err(Fault {
        class: esr >> 26,
        status: esr & 0x3f,
        ipa: (hpfar & 0xfff_ffff_fff0) << 8 | far & 0xfff,
    })
}

/// EL1 loads.
pub fn read(ipa: u64) -> Result<u64, Fault> {
    run(0, ipa, 0)
}

/// EL1 stores.
pub fn write(ipa: u64, value: u64) -> Result<(), Fault> {
    run(8, ipa, value).map(|_| ())
}

/// EL1 calls; what the function leaves in X0.
pub fn fetch(ipa: u64) -> Result<u64, Fault> {
    run(16, ipa, 0)
}

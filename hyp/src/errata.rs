//! Errata of CPUs that EL2 works around: one table, by MIDR_EL1.
//!
//! The machine has the errata of every CPU that has come so far. The boot CPU's are
//! in force from the start. One that comes later adds its own before it runs a lower
//! level ([`InForce::add`]), and from there on every CPU works around them: nothing
//! need be known of a CPU that is off, and a machine without them pays nothing.
//!
//! Not here, because EL2 does nothing that they need: stepping of a lower level
//! (Cortex-A510 2077057), SME (C1-Pro 4193714), CnP (Carmel, HIP09 162100125). Nor
//! Cortex-A57 834220: a guest's load from two pages, the first of which its stage 1
//! forbids, may meet an external abort; it has no effect on a device ([`as_told`]).
//!
//! [`as_told`]: crate::cpu::access::as_told

use core::fmt;
use core::ops::RangeInclusive;
use core::sync::atomic::{AtomicU64, Ordering};

use arm64::regs::{HCR_EL2, MIDR_EL1, SCTLR_EL1, TCR_EL1};
use arm64::{bits, instr};

/// What EL2 does about an erratum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkAround {
    /// Each broadcast invalidation of TLBs ends with one more TLBI and DSB: when the
    /// first is done, another CPU's access by what it removed may still be to come.
    TlbiSyncRepeat,
    /// No walk, and no address that translates to itself, while EL1's registers are
    /// of one world and stage 2 is of another ([`Walks`]): an `AT` that the CPU only
    /// speculates fills its TLBs by both.
    SpeculativeAt,
    /// No load or store is under way while HCR_EL2 is written ([`steer_hcr`]): its
    /// translation may be another's then, EL2's own too.
    HcrApart,
    /// No lower level has the CPU write access flags and dirty states ([`set_tcr`]),
    /// which it does though it says that it cannot, and later than an invalidation
    /// waits for: to memory that may be another's then.
    NoHardwareFlags,
    /// Nothing helps: by instructions of its own, in an order that a compiler need not
    /// make by chance, a guest stops the CPU. It is told.
    Hangs,
}

/// A row of the table: CPUs and what is wrong with them.
#[derive(Debug)]
pub struct Erratum {
    /// What is done.
    pub work_around: WorkAround,
    /// The CPUs' name.
    pub cpu: &'static str,
    /// Whose number of it, or what else it is known by.
    pub source: &'static str,
    implementer: u64,
    parts: RangeInclusive<u64>,
    /// Variant and revision, four bits each: r2p1 is 0x21.
    versions: RangeInclusive<u64>,
}

impl Erratum {
    fn is_of(&self, midr: u64) -> bool {
        let version = MIDR_EL1::Variant.read(midr) << 4 | MIDR_EL1::Revision.read(midr);
        MIDR_EL1::Implementer.read(midr) == self.implementer
            && self.parts.contains(&MIDR_EL1::PartNum.read(midr))
            && self.versions.contains(&version)
    }
}

impl fmt::Display for Erratum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = match self.work_around {
            WorkAround::TlbiSyncRepeat => "TLBs are invalidated twice",
            WorkAround::SpeculativeAt => "no walks while worlds change",
            WorkAround::HcrApart => "no accesses while HCR_EL2 changes",
            WorkAround::NoHardwareFlags => "TCR_EL1.HA and HD stay clear",
            WorkAround::Hangs => "a guest can hang the CPU",
        };
        write!(f, "erratum of {}, {}: {how}", self.cpu, self.source)
    }
}

const AMPERE: u64 = 0xc0;
const ARM: u64 = 0x41;
const NVIDIA: u64 = 0x4e;
const QUALCOMM: u64 = 0x51;
const MICROSOFT: u64 = 0x6d;

macro_rules! table {
    ($($work_around:ident => $($cpu:literal $implementer:ident $parts:expr, $versions:expr,
        $source:literal;)+)+) => {
        /// The table. Ranges: Linux 7.2, arch/arm64/kernel/cpu_errata.c; numbers: its
        /// Documentation/arch/arm64/silicon-errata.rst.
        const TABLE: &[Erratum] = &[$($(Erratum {
            work_around: WorkAround::$work_around,
            cpu: $cpu,
            source: $source,
            implementer: $implementer,
            parts: $parts,
            versions: $versions,
        },)+)+];
    };
}

const fn only(part: u64) -> RangeInclusive<u64> {
    part..=part
}

const ANY: RangeInclusive<u64> = 0..=0xff;

table! {
    TlbiSyncRepeat =>
        "Cortex-A55" ARM only(0xd05), ANY, "Arm 2441007";
        "Cortex-A76" ARM only(0xd0b), 0..=0x30, "Arm 1286807";
        "Cortex-A510" ARM only(0xd46), 0..=0x11, "Arm 2441009";
        "Cortex-A76" ARM only(0xd0b), ANY, "Arm 4193800, CVE-2025-10263";
        "Cortex-A76AE" ARM only(0xd0e), ANY, "Arm 4193801, CVE-2025-10263";
        "Cortex-A77" ARM only(0xd0d), ANY, "Arm 4193798, CVE-2025-10263";
        "Cortex-A78" ARM only(0xd41), ANY, "Arm 4193791, CVE-2025-10263";
        "Cortex-A78AE" ARM only(0xd42), ANY, "Arm 4193793, CVE-2025-10263";
        "Cortex-A78C" ARM only(0xd4b), ANY, "Arm 4193794, CVE-2025-10263";
        "Cortex-A710" ARM only(0xd47), ANY, "Arm 4193788, CVE-2025-10263";
        "Cortex-X1" ARM only(0xd44), ANY, "Arm 4193791, CVE-2025-10263";
        "Cortex-X1C" ARM only(0xd4c), ANY, "Arm 4193792, CVE-2025-10263";
        "Cortex-X2" ARM only(0xd48), ANY, "Arm 4193788, CVE-2025-10263";
        "Cortex-X3" ARM only(0xd4e), ANY, "Arm 4193786, CVE-2025-10263";
        "Cortex-X4" ARM only(0xd82), ANY, "Arm 4118414, CVE-2025-10263";
        "Cortex-X925" ARM only(0xd85), ANY, "Arm 4193781, CVE-2025-10263";
        "C1-Ultra" ARM only(0xd8c), ANY, "Arm 4193780, CVE-2025-10263";
        "C1-Premium" ARM only(0xd90), ANY, "Arm 4193780, CVE-2025-10263";
        "Neoverse-N1" ARM only(0xd0c), ANY, "Arm 4193800, CVE-2025-10263";
        "Neoverse-N2" ARM only(0xd49), ANY, "Arm 4193789, CVE-2025-10263";
        "Neoverse-V1" ARM only(0xd40), ANY, "Arm 4193790, CVE-2025-10263";
        "Neoverse-V2" ARM only(0xd4f), ANY, "Arm 4193787, CVE-2025-10263";
        "Neoverse-V3" ARM only(0xd84), ANY, "Arm 4193784, CVE-2025-10263";
        "Neoverse-V3AE" ARM only(0xd83), ANY, "Arm 4193784, CVE-2025-10263";
        "Cobalt 100" MICROSOFT only(0xd49), ANY, "4193789, CVE-2025-10263";
        "Olympus" NVIDIA only(0x010), ANY, "T410-OLY-1029, CVE-2025-10263";
        "Falkor" QUALCOMM only(0x800), only(0), "Qualcomm E1009";
        "Kryo" QUALCOMM 0x200..=0x2ff, ANY, "Qualcomm E1009";
        "Kryo 4xx Gold" QUALCOMM only(0x804), 0xce..=0xfe, "Arm 1286807";
    SpeculativeAt =>
        "Cortex-A53" ARM only(0xd03), ANY, "Arm 1530924";
        "Cortex-A55" ARM only(0xd05), 0..=0x20, "Arm 1530923";
        "Cortex-A57" ARM only(0xd07), ANY, "Arm 1319537";
        "Cortex-A72" ARM only(0xd08), ANY, "Arm 1319367";
        "Cortex-A76" ARM only(0xd0b), 0..=0x20, "Arm 1165522";
        "Neoverse-N1" ARM only(0xd0c), 0..=0x20, "Arm 1165522";
        "Kryo 4xx Silver" QUALCOMM only(0x805), only(0xde), "Arm 1530923";
    HcrApart =>
        "AmpereOne AC04" AMPERE only(0xac4), ANY, "Ampere AC04_CPU_23";
    NoHardwareFlags =>
        "AmpereOne" AMPERE only(0xac3), ANY, "Ampere AC03_CPU_38";
        "AmpereOne AC04" AMPERE only(0xac4), ANY, "Ampere AC04_CPU_10";
    Hangs =>
        "Cortex-A57" ARM only(0xd07), 0..=0x12, "Arm 832075";
        "Cortex-A77" ARM only(0xd0d), 0..=0x10, "Arm 1508412";
}

// A bit for each row.
const _: () = assert!(TABLE.len() <= 64);

/// The rows of a work-around, a bit each.
const fn rows(work_around: WorkAround) -> u64 {
    let (mut rows, mut n) = (0, 0);
    while n < TABLE.len() {
        if TABLE[n].work_around as u8 == work_around as u8 {
            rows |= 1 << n;
        }
        n += 1;
    }
    rows
}

/// The rows of a CPU, a bit each.
fn of(midr: u64) -> u64 {
    let all = TABLE.iter().enumerate();
    all.fold(0, |rows, (n, row)| rows | u64::from(row.is_of(midr)) << n)
}

fn each(rows: u64, tell: impl FnMut(&Erratum)) {
    let all = TABLE.iter().enumerate();
    all.filter(|(n, _)| rows >> n & 1 != 0)
        .map(|(_, row)| row)
        .for_each(tell);
}

/// Which rows of the table the machine has: a bit for each.
#[derive(Debug, Default)]
pub struct InForce(AtomicU64);

impl InForce {
    /// Those of no CPU.
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// The boot CPU, of this MIDR_EL1, has come. It is alone, perhaps with its MMU
    /// off, where exclusive accesses need not work.
    pub fn begin(&self, midr: u64, tell: impl FnMut(&Erratum)) {
        self.0.store(of(midr), Ordering::Relaxed);
        each(of(midr), tell);
    }

    /// Another CPU has come, and runs no lower level yet. What the machine did not
    /// have before it is told.
    ///
    /// What was unmapped before the others repeat invalidations for it, its walks do
    /// not see: they come after the DSB here, and whoever unmapped has waited for
    /// its stores, by a DSB too, before it looked whether to repeat.
    pub fn add(&self, midr: u64, tell: impl FnMut(&Erratum)) {
        let before = self.0.fetch_or(of(midr), Ordering::Relaxed);
        instr::dsb_ish();
        each(of(midr) & !before, tell);
    }

    /// Whether the machine has errata that need this.
    #[inline]
    pub fn need(&self, work_around: WorkAround) -> bool {
        let rows = const {
            [
                rows(WorkAround::TlbiSyncRepeat),
                rows(WorkAround::SpeculativeAt),
                rows(WorkAround::HcrApart),
                rows(WorkAround::NoHardwareFlags),
                rows(WorkAround::Hangs),
            ]
        };
        self.0.load(Ordering::Relaxed) & rows[work_around as usize] != 0
    }
}

/// Writes HCR_EL2, apart from all accesses where an erratum needs it.
///
/// # Safety
/// Its row in [`arm64::steering`] holds.
#[inline]
pub unsafe fn steer_hcr(errata: &InForce, value: u64) {
    let apart = errata.need(WorkAround::HcrApart);
    if apart {
        instr::dsb_nsh();
    }
    // SAFETY: the caller's promise.
    unsafe { HCR_EL2.steer(value) };
    if apart {
        instr::isb();
    }
}

/// HFGWTR_EL2: which registers of a lower level's own it writes by EL2.
pub fn trapped_writes(errata: &InForce) -> u64 {
    if errata.need(WorkAround::NoHardwareFlags) {
        bits!(HFGWTR_EL2: TCR_EL1)
    } else {
        0
    }
}

/// Sets TCR_EL1 for the level whose write of it was trapped.
pub fn set_tcr(value: u64) {
    // SAFETY: EL1's, which that level has set so.
    unsafe { TCR_EL1.steer(value & !bits!(TCR_EL1: HA, HD)) };
}

/// What EL1's walks go by: SCTLR_EL1 and TCR_EL1.
#[derive(Clone, Copy, Debug)]
pub struct Walks {
    /// SCTLR_EL1.
    pub sctlr: u64,
    /// TCR_EL1.
    pub tcr: u64,
}

impl Walks {
    /// Holds them back, until [`release`](Self::release): those that were.
    ///
    /// By both tables no walk is made, and then the MMU is on, so that no address
    /// translates to itself either. In this order, or walks begin by what a world
    /// that has its MMU off has left in the registers.
    pub fn hold() -> Self {
        let were = Self {
            sctlr: SCTLR_EL1.get(),
            tcr: TCR_EL1.get(),
        };
        // SAFETY: EL1's, by which EL2 neither translates nor runs; whoever holds its
        // walks back puts in place what the level has before it runs.
        unsafe {
            TCR_EL1.steer(were.tcr | bits!(TCR_EL1: EPD0, EPD1));
            instr::isb();
            SCTLR_EL1.steer(were.sctlr | bits!(SCTLR_EL1: M));
        }
        instr::isb();
        were
    }

    /// The same where an erratum needs it.
    #[inline]
    pub fn hold_where_needed(errata: &InForce) -> Option<Self> {
        errata.need(WorkAround::SpeculativeAt).then(Self::hold)
    }

    /// Lets walks be made by these, in the opposite order: all else that they go by
    /// is written. The caller issues the `isb` behind it.
    pub fn release(self) {
        instr::isb();
        // SAFETY: EL1's, and what that level has.
        unsafe { SCTLR_EL1.steer(self.sctlr) };
        instr::isb();
        // SAFETY: as above.
        unsafe { TCR_EL1.steer(self.tcr) };
    }
}

#[cfg(test)]
mod tests;

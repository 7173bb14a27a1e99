//! The host's own stage 1: identity, 4K granule, 48 bits, W^X.
//!
//! Two maps. The early one is made with the MMU off, from tables in .bss and
//! without a lock: the image and the device tree, as 2 MiB blocks, ASID 0. The
//! final one ([`activate`]) knows the machine: text R-X, read-only data R--, RAM
//! RW-, devices Device-nGnRE, a hole under each stack, ASID 1. All entries are
//! non-global, so that no entry of one map is found under the other and the
//! change of block sizes needs no break-before-make.

use aarch64_paging::descriptor::El1Attributes;
use aarch64_paging::idmap::IdMap;
use aarch64_paging::paging::{El1And0, MemoryRegion};
use alloc::vec::Vec;
use arm64::bits;
use arm64::frame::Regime;
use arm64::instr;
use arm64::regs::{ID_AA64MMFR0_EL1, SCTLR_EL1, TCR_EL1};
use core::cell::UnsafeCell;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

/// Attribute 0: Normal write-back; attribute 1: Device-nGnRE.
const MAIR: u64 = 0x04ff;
/// TCR_EL1: T0SZ 16, walks inner-shareable write-back, 4K, no TTBR1 walks; IPS
/// comes from ID_AA64MMFR0_EL1.
const TCR: u64 = TCR_EL1::T0SZ.val(16).value
    | TCR_EL1::IRGN0::WriteBack_ReadAlloc_WriteAlloc_Cacheable.value
    | TCR_EL1::ORGN0::WriteBack_ReadAlloc_WriteAlloc_Cacheable.value
    | TCR_EL1::SH0::Inner.value
    | bits!(TCR_EL1: EPD1);
/// SCTLR_EL1: RES1 bits of Armv8.0, SA, and M, C, I.
const SCTLR: u64 = 0x30d0_0800 | bits!(SCTLR_EL1: SA, M, C, I);
/// SCTLR_EL1.WXN: what is writable is not executable.
const SCTLR_WXN: u64 = bits!(SCTLR_EL1: WXN);

const BLOCK: u64 = 2 << 20;
const DESC_TABLE: u64 = 3;
const DESC_BLOCK: u64 = 1;
const DESC_READ_ONLY: u64 = 1 << 7;
const DESC_INNER: u64 = 3 << 8;
const DESC_AF: u64 = 1 << 10;
const DESC_NG: u64 = 1 << 11;
const DESC_UXN: u64 = 1 << 54;

/// The fields of a [`Regime`] in their order, for a CPU that comes up.
pub static REGISTERS: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];

/// How a CPU that comes up translates.
pub fn regime() -> Regime {
    let [ttbr0, tcr, mair, sctlr] = [0, 1, 2, 3].map(|i| REGISTERS[i].load(Ordering::Relaxed));
    Regime {
        ttbr0,
        tcr,
        mair,
        sctlr,
    }
}

/// Root, then at most three tables each for image and device tree: one of level
/// 1, and two of level 2 where a range crosses 1 GiB.
const EARLY_TABLES: usize = 8;

#[repr(C, align(4096))]
struct EarlyTables(UnsafeCell<[[u64; 512]; EARLY_TABLES]>);

// SAFETY: Only `early_map` writes it, on one CPU before any other runs; after
// that only the MMU reads it.
unsafe impl Sync for EarlyTables {}

static EARLY: EarlyTables = EarlyTables(UnsafeCell::new([[0; 512]; EARLY_TABLES]));

/// Makes the early map and sets [`REGISTERS`]. Runs with the MMU off: no locks,
/// no atomics but plain loads and stores, no heap.
pub extern "C" fn early_map(dtb: u64, image_start: u64, image_end: u64) {
    // SAFETY: No other CPU runs and no one else has a reference; see `Sync`.
    let tables = unsafe { &mut *EARLY.0.get() };
    let base = EARLY.0.get().expose_provenance() as u64;
    let mut used = 1;
    // SAFETY: The boot protocol puts a device tree there; bytes 4 to 7 are its
    // size, big-endian.
    let total =
        u32::from_be(unsafe { *core::ptr::with_exposed_provenance::<u32>(dtb as usize + 4) });
    let tree_end = dtb + u64::from(total).min(BLOCK);
    for (range, attributes) in [(image_start..image_end, 0), (dtb..tree_end, DESC_READ_ONLY)] {
        let mut at = range.start & !(BLOCK - 1);
        while at < range.end {
            let mut table = 0;
            for shift in [39, 30] {
                let index = (at >> shift & 0x1ff) as usize;
                if tables[table][index] == 0 {
                    tables[table][index] = (base + used as u64 * 4096) | DESC_TABLE;
                    used += 1;
                }
                table = ((tables[table][index] - base) / 4096) as usize;
            }
            let entry = &mut tables[table][(at >> 21 & 0x1ff) as usize];
            if *entry == 0 {
                *entry = at | DESC_BLOCK | DESC_INNER | DESC_AF | DESC_NG | DESC_UXN | attributes;
            }
            at += BLOCK;
        }
    }
    // Never more than 48 bits out: TCR_EL1.DS stays 0.
    let ips = ID_AA64MMFR0_EL1.read(ID_AA64MMFR0_EL1::PARange).min(5);
    for (register, value) in
        REGISTERS
            .iter()
            .zip([base, TCR | TCR_EL1::IPS.val(ips).value, MAIR, SCTLR])
    {
        register.store(value, Ordering::Relaxed);
    }
}

/// The image's parts, from the linker script.
pub struct ImageLayout {
    /// Header and code.
    pub text: Range<u64>,
    /// Read-only data.
    pub rodata: Range<u64>,
    /// Data, .bss, the boot CPU's stacks.
    pub data: Range<u64>,
    /// The pages below the two stacks.
    pub guards: [Range<u64>; 2],
}

/// Where the image stands.
pub fn image_layout() -> ImageLayout {
    macro_rules! symbol {
        ($name:ident) => {{
            unsafe extern "C" {
                static $name: u8;
            }
            (&raw const $name).expose_provenance() as u64
        }};
    }
    let guard = |start: u64| start..start + 4096;
    ImageLayout {
        text: symbol!(image_start)..symbol!(text_end),
        rodata: symbol!(text_end)..symbol!(rodata_end),
        data: symbol!(rodata_end)..symbol!(image_end),
        guards: [
            guard(symbol!(boot_stack_guard)),
            guard(symbol!(exception_stack_guard)),
        ],
    }
}

/// What the final map holds beside the image.
pub struct FinalMap {
    /// RAM to read and write, without the image.
    pub ram: Vec<Range<u64>>,
    /// Register blocks.
    pub devices: Vec<Range<u64>>,
}

/// Makes the final map, switches this CPU to it and stores it for the others.
/// Everything above 48 bits is left out.
///
/// Errors say what could not be mapped.
pub fn activate(map: &FinalMap) -> Result<(), aarch64_paging::MapError> {
    const BASE: El1Attributes = El1Attributes::VALID
        .union(El1Attributes::ACCESSED)
        .union(El1Attributes::NON_GLOBAL)
        .union(El1Attributes::UXN);
    const NORMAL: El1Attributes = BASE
        .union(El1Attributes::ATTRIBUTE_INDEX_0)
        .union(El1Attributes::INNER_SHAREABLE);
    const DEVICE: El1Attributes = BASE
        .union(El1Attributes::ATTRIBUTE_INDEX_1)
        .union(El1Attributes::PXN);
    let image = image_layout();
    let mut tables = IdMap::with_asid(1, 0, El1And0);
    let mut add = |range: &Range<u64>, attributes| {
        if range.is_empty() {
            return Ok(());
        }
        tables.map_range(
            &MemoryRegion::new(range.start as usize, range.end as usize),
            attributes,
        )
    };
    add(&image.text, NORMAL | El1Attributes::READ_ONLY)?;
    add(
        &image.rodata,
        NORMAL | El1Attributes::READ_ONLY | El1Attributes::PXN,
    )?;
    let mut from = image.data.start;
    for guard in &image.guards {
        add(&(from..guard.start), NORMAL | El1Attributes::PXN)?;
        from = guard.end;
    }
    add(&(from..image.data.end), NORMAL | El1Attributes::PXN)?;
    for range in &map.ram {
        add(range, NORMAL | El1Attributes::PXN)?;
    }
    for range in &map.devices {
        add(range, DEVICE)?;
    }
    instr::dsb_sy();
    // SAFETY: The map holds the image, the stacks and the heap, all identity,
    // as the early map did; it is never dropped.
    unsafe { tables.activate() };
    let ttbr = tables.root_address().0 as u64 | 1 << 48;
    core::mem::forget(tables);
    REGISTERS[0].store(ttbr, Ordering::Relaxed);
    REGISTERS[3].store(SCTLR | SCTLR_WXN, Ordering::Relaxed);
    // SAFETY: Text is read-only in the map now, so WXN takes nothing that runs.
    unsafe { SCTLR_EL1.steer(SCTLR | SCTLR_WXN) };
    instr::isb();
    Ok(())
}

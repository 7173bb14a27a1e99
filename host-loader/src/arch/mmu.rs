//! The host's own stage 1: identity, W^X, by the table library.
//!
//! Pages of 4 KiB, and addresses of as many bits as the CPU translates with them. Where
//! it reaches its widest addresses with 64 KiB alone (FEAT_LPA without FEAT_LPA2), pages
//! are of that size.
//!
//! Two maps, whose tables EL2 leaves room for behind the image. The early one is made
//! with the MMU off and without a lock: the image and the device tree, ASID 0. The final
//! one ([`activate`]) has the machine's RAM and devices, too, ASID 1. In both, text is
//! R-X, read-only data R--, what is left RW-, and there is a hole under each stack. All
//! entries are non-global, so that no entry of one map is found under the other and the
//! change of block sizes needs no break-before-make.

use crate::rmi_call;
use alloc::vec::Vec;
use appendix::TABLES;
use arm64::bits;
use arm64::frame::Regime;
use arm64::instr;
use arm64::regs::{ID_AA64MMFR0_EL1, ID_AA64MMFR2_EL1, SCTLR_EL1, TTBR0_EL1};
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};
use pgtable::{
    Barrier, CacheOp, ConfigError, El1Map, El2Attrs, El2Config, El2Geometry, El2Range, Error,
    Granule, Level, Maintenance, Pa, Stage2Regs, Synced, TableMem, Tlbi, Va,
};

/// SCTLR_EL1: RES1 bits of Armv8.0, SA, and M, C, I.
const SCTLR: u64 = 0x30d0_0800 | bits!(SCTLR_EL1: SA, M, C, I);
/// SCTLR_EL1.WXN: what is writable is not executable.
const SCTLR_WXN: u64 = bits!(SCTLR_EL1: WXN);

/// The linker script leaves so much below a stack.
const LARGEST_PAGE: u64 = 64 << 10;

/// What an image's header says of its own size stands here.
const IMAGE_SIZE: u64 = 16;

/// The longest device tree.
const TREE: u64 = 2 << 20;

/// Where the tables begin that the early map has left.
static LEFT: AtomicU64 = AtomicU64::new(0);

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

/// How this CPU translates at EL1, at its widest.
///
/// # Errors
/// What the architecture does not have.
pub fn geometry() -> Result<El2Geometry, ConfigError> {
    let field = |field| ID_AA64MMFR0_EL1.read(field);
    let pa_bits = [32, 36, 40, 42, 44, 48, 52];
    let pa_bits = pa_bits[(field(ID_AA64MMFR0_EL1::PARange) as usize).min(pa_bits.len() - 1)];
    let lpa2 = field(ID_AA64MMFR0_EL1::TGran4) == 1;
    let lva = ID_AA64MMFR2_EL1.read(ID_AA64MMFR2_EL1::VARange) >= 1;
    let has_64k = field(ID_AA64MMFR0_EL1::TGran64) == 0;
    let granule = if !lpa2 && pa_bits == 52 && lva && has_64k {
        Granule::K64
    } else {
        Granule::K4
    };
    let wide = lpa2 || granule == Granule::K64;
    let bits = if wide { pa_bits } else { pa_bits.min(48) };
    let mut config = El2Config::new(granule, bits, pa_bits);
    (config.lpa2, config.lva) = (lpa2, lva);
    config.validate()
}

/// The end of what the host's stage 1 can map, and its pages' size.
pub fn reach() -> (u64, u64) {
    let (bits, page) = geometry().map_or((0, 4096), |geometry| {
        let shape = geometry.shape();
        (shape.ia_bits(), shape.granule().page_size())
    });
    (1 << bits, page)
}

/// Tables that are nobody else's, and stay: behind the image, zeroed by EL2.
struct Tables {
    page: u64,
    all: Range<u64>,
    /// Where the next begins.
    next: AtomicU64,
}

impl Tables {
    /// All of them, in pages of this size. The early map's come first.
    fn new(image_start: u64, page: u64) -> Self {
        let header = core::ptr::with_exposed_provenance::<u64>((image_start + IMAGE_SIZE) as usize);
        // SAFETY: The image begins with its header.
        let end = image_start + unsafe { header.read() };
        let start = (end - TABLES).next_multiple_of(page);
        Self {
            page,
            next: AtomicU64::new(start),
            all: start..end,
        }
    }

    fn take(&self) -> Option<Pa> {
        // With the MMU off only plain loads and stores will do, and one CPU runs.
        let table = self.next.load(Ordering::Relaxed);
        let next = table + self.page;
        self.next.store(next, Ordering::Relaxed);
        (next <= self.all.end).then(|| Pa::new(table))
    }
}

/// A table, located.
#[derive(Clone, Copy)]
struct Table(*const AtomicU64);

impl Table {
    fn entry(&self, index: usize) -> &AtomicU64 {
        // SAFETY: One of these tables, which are pgtable's alone, and it stays inside.
        unsafe { &*self.0.add(index) }
    }
}

impl TableMem for &Tables {
    type Table = Table;

    fn locate(&self, pa: Pa) -> Self::Table {
        Table(core::ptr::with_exposed_provenance(pa.get() as usize))
    }

    fn load(&self, table: Self::Table, index: usize) -> u64 {
        table.entry(index).load(Ordering::Relaxed)
    }

    fn store(&self, table: Self::Table, index: usize, value: u64) {
        table.entry(index).store(value, Ordering::Relaxed);
    }

    fn cas(&self, table: Self::Table, index: usize, old: u64, new: u64) -> Result<(), u64> {
        // Nobody else writes.
        let now = self.load(table, index);
        if now != old {
            return Err(now);
        }
        self.store(table, index, new);
        Ok(())
    }

    fn alloc(&self, _level: Level) -> Option<Pa> {
        self.take()
    }

    // Nothing is ever unmapped: no table comes back, and nobody asks for a count.
    fn free(&self, _table: Pa, _level: Level, _proof: &Synced) {}

    fn count(&self, _table: Pa) -> u32 {
        0
    }

    fn add_count(&self, _table: Pa, _by: i32) {}
}

/// The CPU, for maps that nobody walks before they are whole: a `dsb sy` then stands
/// before TTBR0_EL1 names them (entry.s, [`activate`]).
struct Fresh;

impl Maintenance for Fresh {
    fn barrier(&mut self, _barrier: Barrier) {}

    // No entry is replaced that was valid, and none of these tables is of stage 2.
    fn tlbi(&mut self, _op: Tlbi) {}

    fn cache(&mut self, _op: CacheOp) {}

    fn stage2(&mut self) -> Stage2Regs {
        Stage2Regs { vtcr: 0, vttbr: 0 }
    }

    fn set_stage2(&mut self, _regs: Stage2Regs) {}
}

/// A map that is being built.
struct Building<'a> {
    map: El1Map<&'a Tables>,
    page: u64,
}

impl<'a> Building<'a> {
    fn new(geometry: El2Geometry, tables: &'a Tables) -> Result<Self, MapError> {
        let root = tables.take().ok_or(MapError::At(0, Error::NoMem))?;
        let map = El1Map::new(geometry, root, tables).map_err(MapError::Root)?;
        let page = tables.page;
        Ok(Self { map, page })
    }

    /// Maps the pages that a range stands in.
    fn add(&mut self, range: &Range<u64>, attrs: El2Attrs) -> Result<(), MapError> {
        if range.is_empty() {
            return Ok(());
        }
        let start = range.start / self.page * self.page;
        let end = range.end.next_multiple_of(self.page);
        let range = El2Range::new(Va::new(start), Pa::new(start), end - start, attrs);
        let mapped = self.map.map(&mut Fresh, &range).map(drop);
        mapped.map_err(|stopped| MapError::At(stopped.next.get(), stopped.why))
    }

    /// Maps the parts of the image, without the pages below its stacks.
    fn add_image(&mut self, image: &ImageLayout) -> Result<(), MapError> {
        self.add(&image.text, El2Attrs::CODE)?;
        self.add(&image.rodata, El2Attrs::RODATA)?;
        let mut from = image.data.start;
        for guard in &image.guards {
            self.add(&(from..guard.start), El2Attrs::DATA)?;
            from = guard.end;
        }
        self.add(&(from..image.data.end), El2Attrs::DATA)
    }

    /// Has [`REGISTERS`] name this map.
    fn publish(&self, geometry: El2Geometry, asid: u8, sctlr: u64) {
        let values = [
            self.map.ttbr(asid),
            geometry.tcr_el1(),
            geometry.mair(),
            sctlr,
        ];
        for (register, value) in REGISTERS.iter().zip(values) {
            register.store(value, Ordering::Relaxed);
        }
    }
}

/// Why the host has no map.
#[derive(Debug)]
pub enum MapError {
    /// The CPU cannot translate so, or the root table is out of its reach.
    Root(ConfigError),
    /// What could not be mapped.
    At(u64, Error),
}

impl core::fmt::Display for MapError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Root(why) => write!(f, "the host's stage 1: {why:?}"),
            Self::At(at, why) => write!(f, "the host's stage 1 cannot map {at:#x}: {why:?}"),
        }
    }
}

/// Makes the early map and sets [`REGISTERS`]. Runs with the MMU off: no locks,
/// no atomics but plain loads and stores, no heap.
pub extern "C" fn early_map(dtb: u64) {
    let made = || -> Result<(), MapError> {
        let image = image_layout();
        let geometry = geometry().map_err(MapError::Root)?;
        let tables = Tables::new(image.text.start, geometry.shape().granule().page_size());
        let mut map = Building::new(geometry, &tables)?;
        map.add_image(&image)?;
        map.add(&tables.all, El2Attrs::DATA)?;
        // SAFETY: The boot protocol puts a device tree there; bytes 4 to 7 are its
        // size, big-endian.
        let total =
            u32::from_be(unsafe { *core::ptr::with_exposed_provenance::<u32>(dtb as usize + 4) });
        map.add(&(dtb..dtb + u64::from(total).min(TREE)), El2Attrs::RODATA)?;
        map.publish(geometry, 0, SCTLR);
        LEFT.store(tables.next.load(Ordering::Relaxed), Ordering::Relaxed);
        Ok(())
    };
    if made().is_err() {
        // There is nobody who could tell yet.
        rmi_call::machine_off();
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
    let guard = |start: u64| start..start + LARGEST_PAGE;
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
///
/// # Errors
/// What could not be mapped.
pub fn activate(with: &FinalMap) -> Result<(), MapError> {
    let image = image_layout();
    let geometry = geometry().map_err(MapError::Root)?;
    let tables = Tables::new(image.text.start, geometry.shape().granule().page_size());
    // The early map's are walked until the end.
    (tables.next).store(LEFT.load(Ordering::Relaxed), Ordering::Relaxed);
    let mut map = Building::new(geometry, &tables)?;
    map.add_image(&image)?;
    for range in &with.ram {
        map.add(range, El2Attrs::DATA)?;
    }
    for range in &with.devices {
        map.add(range, El2Attrs::DEVICE)?;
    }
    // Text is read-only, so that WXN takes nothing that runs.
    map.publish(geometry, 1, SCTLR | SCTLR_WXN);
    let regime = regime();
    instr::dsb_sy();
    // SAFETY: The map holds the image, the stacks and the heap, all identity, as the
    // early map did, which has the same TCR_EL1 and MAIR_EL1; its tables stay.
    unsafe {
        TTBR0_EL1.steer(regime.ttbr0);
        instr::isb();
        SCTLR_EL1.steer(regime.sctlr);
    }
    instr::isb();
    Ok(())
}

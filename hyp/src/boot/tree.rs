//! The machine, as the boot loader's device tree describes it.
//!
//! Every address that EL2 uses comes from here (Devicetree Specification 0.4;
//! bindings `arm,gic-v3`, `arm,armv8-timer`, `arm,pl011`, `arm,psci-1.0`).

use arrayvec::ArrayVec;
use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::standard::NodeStandard;
use dtoolkit::{Node, Property};
use log::LevelFilter;
use pgtable::Granule;

use crate::memory::region::{Full, Region, Regions};

/// PEs that one image drives.
pub const MAX_PES: usize = 128;

/// What EL2 knows of the machine it runs on.
#[derive(Debug)]
pub struct Machine {
    /// RAM, sorted.
    pub ram: Regions,
    /// Parts of RAM that the boot loader or firmware keeps.
    pub reserved: Regions,
    /// The initrd: it holds the bundle, which is the host's business.
    pub initrd: Option<Region>,
    /// The tree itself.
    pub dtb: Region,
    /// PL011 of the log.
    pub uart: Option<Region>,
    /// GICv3 distributor.
    pub gicd: Region,
    /// GICv3 redistributor regions.
    pub gicr: ArrayVec<Region, 8>,
    /// INTIDs of the PPIs that EL2 serves.
    pub ppi: Ppis,
    /// MPIDR of every PE, the boot PE among them.
    pub pes: ArrayVec<u64, MAX_PES>,
    /// PSCI is called by HVC, as on a machine without EL2.
    pub psci_by_hvc: bool,
    /// What the command line asks for.
    pub settings: Settings,
}

/// INTIDs of the interrupts that EL2 has a part in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ppis {
    /// GIC maintenance interrupt.
    pub maintenance: u32,
    /// Virtual timer, CNTV.
    pub virtual_timer: u32,
    /// EL2's physical timer, CNTHP.
    pub hyp_timer: u32,
}

/// `undercroft.…` words of the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `undercroft.loglevel=`.
    pub level: LevelFilter,
    /// `undercroft.granule=`.
    pub granule: Option<Granule>,
    /// `undercroft.log=serial1`: the log has the second UART to itself.
    pub log_on_serial1: bool,
    /// `undercroft.crash=`: EL2 dies on purpose, so that its report is tested.
    pub crash: Option<Crash>,
}

/// How to die.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// `panic`: a Rust panic.
    Panic,
    /// `abort`: a write to EL2's own code.
    Abort,
    /// `stack`: recursion without end.
    Stack,
}

/// Why a machine cannot be run on; the text tells a person what to do.
pub type TreeError = &'static str;

/// Device trees larger than this are refused (the boot protocol's limit, 2 MiB).
const MAX_TREE: usize = 2 << 20;

/// The mappings of one bus, child to parent.
type Bus = ArrayVec<(u64, u64, u64), 16>;

/// A node's place: how its `reg` becomes a CPU address.
#[expect(
    clippy::large_enum_variant,
    reason = "there is no heap, and one lives a node's visit"
)]
#[derive(Clone)]
enum Place {
    Identity,
    Mapped(Bus),
    Unmapped,
}

impl Place {
    fn translate(&self, address: u64) -> Option<u64> {
        match self {
            Self::Identity => Some(address),
            Self::Mapped(bus) => bus.iter().find_map(|&(child, parent, len)| {
                (address.checked_sub(child)? < len).then(|| parent + (address - child))
            }),
            Self::Unmapped => None,
        }
    }

    /// The place of the children of `node`, which itself is at this place.
    fn below(&self, node: FdtNode<'_>) -> Self {
        let Ok(Some(ranges)) = node.ranges() else {
            return Self::Unmapped;
        };
        let mut bus = Bus::new();
        let mut any = false;
        for range in ranges {
            any = true;
            if let (Ok(child), Ok(parent), Ok(len)) = (
                range.child_bus_address::<u64>(),
                range.parent_bus_address::<u64>(),
                range.length::<u64>(),
            ) && let Some(parent) = self.translate(parent)
            {
                let _ = bus.try_push((child, parent, len));
            }
        }
        if any { Self::Mapped(bus) } else { self.clone() }
    }
}

fn reg(node: FdtNode<'_>, place: &Place, n: usize) -> Option<Region> {
    let reg = node.reg().ok()??.nth(n)?;
    let base = place.translate(reg.address::<u64>().ok()?)?;
    Region::new(base, reg.size::<u64>().ok()?)
}

/// Calls `visit` for every enabled node that has an address on the CPU's bus.
fn for_each<'a>(fdt: Fdt<'a>, visit: &mut impl FnMut(FdtNode<'a>, &Place)) {
    fn descend<'a>(
        node: FdtNode<'a>,
        place: &Place,
        depth: u32,
        visit: &mut impl FnMut(FdtNode<'a>, &Place),
    ) {
        for child in node.children() {
            let status = child
                .property("status")
                .map(|p| p.value() == b"okay\0" || p.value() == b"ok\0");
            if status == Some(false) {
                continue;
            }
            visit(child, place);
            if depth < 8 {
                descend(child, &place.below(child), depth + 1, visit);
            }
        }
    }
    descend(fdt.root(), &Place::Identity, 0, visit);
}

/// The node at `path` (aliases resolved, options after ':' dropped) and its place.
fn locate<'a>(fdt: Fdt<'a>, path: &str) -> Option<(FdtNode<'a>, Place)> {
    let path = path.split(':').next()?;
    let path = if path.starts_with('/') {
        path
    } else {
        fdt.find_node("/aliases")?
            .property(path)?
            .value_as::<&str>()
            .ok()?
    };
    let mut node = fdt.root();
    let mut place = Place::Identity;
    let mut first = true;
    for name in path.split('/').filter(|name| !name.is_empty()) {
        if !first {
            place = place.below(node);
        }
        node = node.child(name)?;
        first = false;
    }
    Some((node, place))
}

impl Machine {
    /// Reads the tree at `dtb`, whose bytes are `data`.
    ///
    /// # Errors
    /// What is damaged, in words for the person who boots.
    pub fn read(dtb: u64, data: &[u8]) -> Result<Self, TreeError> {
        let fdt = Fdt::new(data).map_err(|_| "the device tree in x0 is damaged")?;
        let mut machine = Self {
            ram: Regions::new(),
            reserved: Regions::new(),
            initrd: None,
            dtb: Region::new(dtb, data.len() as u64).ok_or("the device tree wraps around")?,
            uart: None,
            gicd: Region::EMPTY,
            gicr: ArrayVec::new(),
            ppi: Ppis {
                maintenance: 0,
                virtual_timer: 0,
                hyp_timer: 0,
            },
            pes: ArrayVec::new(),
            psci_by_hvc: false,
            settings: Settings::parse(bootargs(fdt)),
        };
        machine.psci_by_hvc = fdt
            .find_node("/psci")
            .and_then(|psci| psci.property("method"))
            .is_some_and(|p| p.value() == b"hvc\0");
        machine.uart = log_uart(fdt, machine.settings.log_on_serial1);
        machine.initrd = initrd(fdt);
        let mut problem = None;
        let mut timer = None;
        for_each(fdt, &mut |node, place| {
            if let Err(e) = machine.visit(node, place, &mut timer) {
                problem.get_or_insert(e);
            }
        });
        if let Some(problem) = problem {
            return Err(problem);
        }
        machine
            .read_reserved(fdt)
            .map_err(|_| "the device tree reserves too many ranges of memory")?;
        (machine.ppi.virtual_timer, machine.ppi.hyp_timer) = timer.unwrap_or((0, 0));
        Ok(machine)
    }

    /// Whether everything is there that EL2 needs.
    ///
    /// # Errors
    /// What is missing, in words for the person who boots.
    pub fn check(&self) -> Result<(), TreeError> {
        if self.ram.is_empty() {
            return Err("the device tree has no /memory node with RAM");
        }
        if self.gicd.is_empty() || self.gicr.is_empty() {
            return Err("the device tree has no GICv3 (QEMU: -M virt,gic-version=3)");
        }
        if self.ppi.maintenance == 0 {
            return Err("the GIC has no maintenance interrupt (QEMU: -M virt,virtualization=on)");
        }
        if self.ppi.virtual_timer == 0 || self.ppi.hyp_timer == 0 {
            return Err("the device tree has no arm,armv8-timer with interrupts for EL2");
        }
        if self.pes.is_empty() {
            return Err("the device tree has no CPUs");
        }
        Ok(())
    }

    /// Both ways to reserve: the tree's header and /reserved-memory.
    fn read_reserved(&mut self, fdt: Fdt<'_>) -> Result<(), Full> {
        for reservation in fdt.memory_reservations() {
            if let Some(region) = Region::new(reservation.address(), reservation.size()) {
                self.reserved.insert(region)?;
            }
        }
        let parent = fdt.find_node("/reserved-memory");
        for node in parent.iter().flat_map(|p| p.children()) {
            for n in 0.. {
                let Some(region) = reg(node, &Place::Identity, n) else {
                    break;
                };
                self.reserved.insert(region)?;
            }
        }
        Ok(())
    }

    fn visit(
        &mut self,
        node: FdtNode<'_>,
        place: &Place,
        timer: &mut Option<(u32, u32)>,
    ) -> Result<(), TreeError> {
        let name = node.name_without_address();
        let device_type = node
            .property("device_type")
            .map(|p| p.value() == b"memory\0");
        if device_type == Some(true) {
            for n in 0.. {
                let Some(region) = reg(node, place, n) else {
                    break;
                };
                self.ram
                    .insert(region)
                    .map_err(|_| "the device tree has too many ranges of RAM")?;
            }
        } else if name == "cpu"
            && node
                .property("device_type")
                .is_some_and(|p| p.value() == b"cpu\0")
        {
            let mpidr = node
                .reg()
                .ok()
                .flatten()
                .and_then(|mut r| r.next())
                .and_then(|r| r.address::<u64>().ok());
            if let Some(mpidr) = mpidr {
                // More PEs than we drive stay off: nobody can start them.
                let _ = self.pes.try_push(mpidr);
            }
        } else if node.is_compatible("arm,gic-v3") {
            self.gic(node, place);
        } else if node.is_compatible("arm,armv8-timer") || node.is_compatible("arm,armv7-timer") {
            // Order of the binding: secure, non-secure, virtual, EL2 physical.
            *timer = ppi(node, 2).zip(ppi(node, 3));
        }
        Ok(())
    }

    fn gic(&mut self, node: FdtNode<'_>, place: &Place) {
        self.gicd = reg(node, place, 0).unwrap_or(Region::EMPTY);
        let regions = node
            .property("#redistributor-regions")
            .and_then(|p| p.value_as::<u32>().ok())
            .unwrap_or(1);
        self.gicr = (1..=regions as usize)
            .filter_map(|n| reg(node, place, n))
            .take(8)
            .collect();
        self.ppi.maintenance = ppi(node, 0).unwrap_or(0);
    }
}

/// INTID of the `n`-th interrupt of a node, three cells each (type, number,
/// flags); GIC parents with four cells say so by the property's length.
fn ppi(node: FdtNode<'_>, n: usize) -> Option<u32> {
    let property = node.property("interrupts")?;
    let value = property.value();
    let cells = if value.len() % 16 == 0 && value.len() % 12 != 0 {
        4
    } else {
        3
    };
    let at = n * cells * 4;
    let cell = |i: usize| {
        let bytes = value.get(at + i * 4..at + i * 4 + 4)?;
        Some(u32::from_be_bytes(bytes.try_into().ok()?))
    };
    match (cell(0)?, cell(1)?) {
        (1, number) if number < 16 => Some(16 + number),
        _ => None,
    }
}

fn bootargs<'a>(fdt: Fdt<'a>) -> &'a str {
    fdt.find_node("/chosen")
        .and_then(|chosen| chosen.property("bootargs"))
        .and_then(|p| p.value_as::<&'a str>().ok())
        .unwrap_or("")
}

fn log_uart(fdt: Fdt<'_>, second: bool) -> Option<Region> {
    let uart = |path: &str| {
        let (node, place) = locate(fdt, path)?;
        node.is_compatible("arm,pl011")
            .then(|| reg(node, &place, 0))
            .flatten()
    };
    if second && let Some(uart) = uart("serial1") {
        return Some(uart);
    }
    let stdout = fdt
        .find_node("/chosen")
        .and_then(|chosen| chosen.property("stdout-path"))
        .and_then(|p| p.value_as::<&str>().ok())
        .and_then(uart);
    stdout.or_else(|| {
        let mut found = None;
        for_each(fdt, &mut |node, place| {
            if found.is_none() && node.is_compatible("arm,pl011") {
                found = reg(node, place, 0);
            }
        });
        found
    })
}

fn initrd(fdt: Fdt<'_>) -> Option<Region> {
    let chosen = fdt.find_node("/chosen")?;
    let address = |name: &str| {
        let value = chosen.property(name)?;
        match value.value() {
            v @ [_, _, _, _] => Some(u64::from(u32::from_be_bytes(v.try_into().ok()?))),
            v => Some(u64::from_be_bytes(v.try_into().ok()?)),
        }
    };
    let start = address("linux,initrd-start")?;
    Region::new(start, address("linux,initrd-end")?.checked_sub(start)?)
}

impl Settings {
    /// Reads the words that are ours; an unknown value leaves the default.
    pub fn parse(bootargs: &str) -> Self {
        let mut settings = Self {
            level: LevelFilter::Info,
            granule: None,
            log_on_serial1: false,
            crash: None,
        };
        for word in bootargs.split_ascii_whitespace() {
            let Some((key, value)) = word
                .strip_prefix("undercroft.")
                .and_then(|w| w.split_once('='))
            else {
                continue;
            };
            match (key, value) {
                ("loglevel", level) => settings.level = level.parse().unwrap_or(settings.level),
                ("granule", "4k") => settings.granule = Some(Granule::K4),
                ("granule", "16k") => settings.granule = Some(Granule::K16),
                ("granule", "64k") => settings.granule = Some(Granule::K64),
                ("crash", "panic") => settings.crash = Some(Crash::Panic),
                ("crash", "abort") => settings.crash = Some(Crash::Abort),
                ("crash", "stack") => settings.crash = Some(Crash::Stack),
                ("log", "serial1") => settings.log_on_serial1 = true,
                _ => {}
            }
        }
        settings
    }
}

/// The bytes of the tree at `pa`, by the length its header states.
///
/// # Errors
/// When there is no tree.
///
/// # Safety
/// `pa`, if it is 8-byte aligned and not null, is readable RAM: the boot
/// protocol's promise for x0. Nobody writes to it while EL2 reads it.
pub unsafe fn bytes<'a>(pa: u64) -> Result<&'a [u8], TreeError> {
    if pa == 0 || !pa.is_multiple_of(8) {
        return Err("x0 holds no device tree (it must be 8-byte aligned)");
    }
    let header = pa as *const u32;
    // SAFETY: the caller's promise.
    let (magic, length) = unsafe { (header.read(), header.add(1).read()) };
    let length = u32::from_be(length) as usize;
    if u32::from_be(magic) != 0xd00d_feed || length > MAX_TREE {
        return Err("x0 points at no device tree");
    }
    // SAFETY: the caller's promise, for the length that the tree itself states.
    Ok(unsafe { core::slice::from_raw_parts(pa as *const u8, length) })
}

#[cfg(test)]
mod tests;

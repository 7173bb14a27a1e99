//! The machine, as the boot loader's device tree describes it.
//!
//! Every address that EL2 uses comes from here (Devicetree Specification 0.4;
//! bindings `arm,gic-v3`, `arm,armv8-timer`, `arm,pl011`, `arm,psci-1.0`).

pub mod devices;
mod place;

use arm64::instr;
use arrayvec::ArrayVec;
use devtree::Damage;
use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::standard::NodeStandard;
use dtoolkit::{Node, Property};
use log::LevelFilter;
use pgtable::Granule;
use rmi::end::Token;

use crate::cpu::gic::Frames;
use crate::cpu::pe::MAX_PES;
use crate::errors::errors;
use crate::log::Uarts;
use crate::log::uart::Owner;
use crate::mask::Mask;
use crate::memory::region::{Region, Regions};
use place::Place;

/// What EL2 knows of the machine it runs on.
#[derive(Debug)]
pub struct Machine {
    /// RAM as the tree's memory nodes have it.
    pub memory: Regions,
    /// RAM that EL2 and the host have: of `memory` what is whole granules and
    /// not reserved with `no-map`. Empty before [`Machine::settle`].
    pub ram: Regions,
    /// Parts of RAM that the boot loader or firmware keeps: the host's, but EL2
    /// puts nothing of its own there.
    pub reserved: Regions,
    /// Those of them that must not be mapped (`no-map`).
    pub no_map: Regions,
    /// What of `memory` is not in `ram`, in whole granules: neither EL2 nor the
    /// host touches it.
    pub withheld: Regions,
    /// The host's devices, in whole pages. Empty before [`Machine::settle`].
    pub devices: Regions,
    /// The initrd: it holds the bundle, which is the host's business.
    pub initrd: Option<Region>,
    /// The tree itself.
    pub dtb: Region,
    /// PL011 of the log.
    pub uart: Option<Region>,
    /// PL011 that the boot loader calls the console; the host's, whichever the
    /// log has.
    pub console: Option<Region>,
    /// The GICv3.
    pub gic: Frames,
    /// MPIDR of every PE, the boot PE among them.
    pub pes: ArrayVec<u64, MAX_PES>,
    /// PEs of the tree beyond these: they stay off and cannot be started.
    pub pes_left: usize,
    /// How PSCI is called, where there is one of version 0.2 or later.
    pub psci: Option<Conduit>,
    /// What the command line asks for.
    pub settings: Settings,
}

/// How a firmware is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conduit {
    /// By SMC.
    Smc,
    /// By HVC, as on a machine without EL2.
    Hvc,
}

/// `undercroft.…` words of the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `undercroft.loglevel=`.
    pub level: LevelFilter,
    /// `undercroft.granule=`.
    pub granule: Option<Granule>,
    /// `undercroft.pa=48` and `undercroft.va=48`: what the CPU is to be without.
    pub mask: Mask,
    /// `undercroft.el2=VAxPA`: bits of EL2's own stage 1, as far as the CPU has them.
    pub el2_bits: Option<(u8, u8)>,
    /// `undercroft.log=serial1`: the log has the second UART to itself.
    pub log_on_serial1: bool,
    /// `undercroft.end=`: what the machine's last line must hold.
    pub end: Option<Token>,
    /// `undercroft.trace=` has `calls`.
    pub trace_calls: bool,
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

errors! {
    /// Why the tree's machine cannot be run on.
    TreeError {
        NoPointer: "x0 holds no device tree (it must be 8-byte aligned)",
        NoTree: "x0 points at no device tree",
        TooLong: "the device tree is longer than 2 MiB, the boot protocol's limit",
        Wraps: "the device tree wraps around",
        TooDeep: "the device tree is nested more than 64 nodes deep",
        ManyRam: "the device tree has too many ranges of RAM and reserved memory",
        ManyReserved: "the device tree reserves too many ranges of memory",
        ManyDevices: "the device tree has too many ranges of devices",
        TreeOutside: "the device tree lies outside of RAM, or where no-map reserves it",
        InitrdOutside: "the initrd lies outside of RAM, or where no-map reserves it",
        NoRam: "the device tree has no /memory node with RAM",
        NoGic: "the device tree has no GICv3 (QEMU: -M virt,gic-version=3)",
        NoMaintenance: "the GIC has no maintenance interrupt (QEMU: -M virt,virtualization=on)",
        NoTimer: "the device tree has no arm,armv8-timer with interrupts for EL2",
        NoCpus: "the device tree has no CPUs",
        NoPsci: "the device tree has no arm,psci-0.2 or arm,psci-1.0 called by smc: CPUs are started by it (no spin-table), and the machine is turned off",
    }
    Damaged(Damage),
}

/// Device trees larger than this are refused (the boot protocol's limit, 2 MiB).
const MAX_TREE: usize = 2 << 20;

/// Bytes of a tree's header, of which the first say what it is.
const HEADER: u64 = 40;

/// In what steps rights are given, in bytes, and how far they reach.
#[derive(Clone, Copy, Debug)]
pub struct Steps {
    /// Of RAM: the largest granule of any table.
    pub memory: u64,
    /// Of devices: the granule of the host's stage 2.
    pub device: u64,
    /// The first address that the host's stage 2 cannot map.
    pub end: u64,
}

impl Machine {
    /// A machine that nothing is known of yet. It is large: there is one, in its
    /// place from the start.
    pub const fn new() -> Self {
        Self {
            memory: Regions::new(),
            ram: Regions::new(),
            reserved: Regions::new(),
            no_map: Regions::new(),
            withheld: Regions::new(),
            devices: Regions::new(),
            initrd: None,
            dtb: Region::EMPTY,
            uart: None,
            console: None,
            gic: Frames::NONE,
            pes: ArrayVec::new_const(),
            pes_left: 0,
            psci: None,
            settings: Settings::DEFAULT,
        }
    }

    /// Reads the tree at `dtb`, whose bytes are `data`.
    ///
    /// # Errors
    /// What is damaged.
    pub fn read(&mut self, dtb: u64, data: &[u8]) -> Result<(), TreeError> {
        let fdt = devtree::open(data).map_err(|damage| match damage {
            Damage::NoTree if data.len() == MAX_TREE => TreeError::TooLong,
            damage => damage.into(),
        })?;
        self.dtb = Region::new(dtb, data.len() as u64).ok_or(TreeError::Wraps)?;
        self.settings = Settings::parse(bootargs(fdt));
        // Before there is anything to refuse, so that it can be said.
        self.console = stdout(fdt);
        self.uart = log_uart(fdt, self.settings.log_on_serial1).or(self.console);
        self.initrd = initrd(fdt);
        place::walk(fdt, &mut |place| {
            if place.enabled {
                self.visit(place)?;
            }
            Ok(())
        })?;
        self.uart = log_uart(fdt, self.settings.log_on_serial1).or(self.console);
        self.read_reserved(fdt)
    }

    /// The log's UART when it is not the host's console too: EL2's alone.
    pub fn own_uart(&self) -> Option<Region> {
        self.uart.filter(|_| self.uart != self.console)
    }

    /// Decides what is RAM and what are the host's devices, once it is known in
    /// what steps rights are given. `data`: the tree, as for [`Self::read`].
    ///
    /// # Errors
    /// A machine that cannot be run on.
    pub fn settle(
        &mut self,
        data: &[u8],
        steps: &Steps,
        probe: devices::Probe<'_>,
    ) -> Result<(), TreeError> {
        let fdt = devtree::open(data)?;
        let too_many = |_| TreeError::ManyRam;
        for region in self.memory.iter() {
            self.ram
                .insert(region.shrink_to(steps.memory))
                .map_err(too_many)?;
        }
        for region in self.no_map.iter() {
            self.ram
                .remove(region.grow_to(steps.memory))
                .map_err(too_many)?;
        }
        for region in self.memory.iter() {
            self.withheld
                .insert(region.grow_to(steps.memory))
                .map_err(too_many)?;
        }
        self.withheld.remove_all(&self.ram).map_err(too_many)?;
        if !self.ram.covers(&self.dtb) {
            return Err(TreeError::TreeOutside);
        }
        if self.initrd.is_some_and(|initrd| !self.ram.covers(&initrd)) {
            return Err(TreeError::InitrdOutside);
        }
        self.devices = devices::of_host(fdt, self, steps, probe)?;
        Ok(())
    }

    /// The UARTs, as the log sees them: its own if that is another than the
    /// console, which the host has.
    pub fn uarts(&self) -> Uarts {
        let own = self.uart != self.console;
        let owner = if own { Owner::El2 } else { Owner::Host };
        Uarts {
            log: self.uart.map(|uart| (uart.base(), owner)),
            spare: self.console.filter(|_| own).map(|uart| uart.base()),
        }
    }

    /// Whether everything is there that EL2 needs.
    ///
    /// # Errors
    /// What is missing.
    pub fn check(&self) -> Result<(), TreeError> {
        if self.memory.is_empty() {
            return Err(TreeError::NoRam);
        }
        if self.gic.distributor.is_empty() || self.gic.redistributors.is_empty() {
            return Err(TreeError::NoGic);
        }
        if self.gic.ppi.maintenance == 0 {
            return Err(TreeError::NoMaintenance);
        }
        if self.gic.ppi.virtual_timer == 0 || self.gic.ppi.hyp_timer == 0 {
            return Err(TreeError::NoTimer);
        }
        if self.pes.is_empty() {
            return Err(TreeError::NoCpus);
        }
        if self.psci != Some(Conduit::Smc) {
            return Err(TreeError::NoPsci);
        }
        Ok(())
    }

    /// Both ways to reserve: the tree's header and /reserved-memory.
    fn read_reserved(&mut self, fdt: Fdt<'_>) -> Result<(), TreeError> {
        for reservation in fdt.memory_reservations() {
            if let Some(region) = Region::new(reservation.address(), reservation.size()) {
                self.reserved.insert(region).map_err(too_many_reserved)?;
            }
        }
        Ok(())
    }

    fn visit(&mut self, place: &Place<'_, '_>) -> Result<(), TreeError> {
        let node = place.node;
        if place.is_reserved_memory() {
            return self.reserve(place);
        }
        let device_type = node.property("device_type");
        match device_type.as_ref().map(Property::value) {
            Some(b"memory\0") => {
                return insert_all(&mut self.memory, place).map_err(|()| TreeError::ManyRam);
            }
            Some(b"cpu\0") if node.name_without_address() == "cpu" => {
                let reg = node.reg().ok().flatten().and_then(|mut r| r.next());
                if let Some(mpidr) = reg.and_then(|r| r.address::<u64>().ok()) {
                    self.pes_left += usize::from(self.pes.try_push(mpidr).is_err());
                }
            }
            _ => {}
        }
        for name in node.compatible().into_iter().flatten() {
            match name {
                "arm,gic-v3" => self.gic(place),
                "arm,armv8-timer" | "arm,armv7-timer" => {
                    // Order of the binding: secure, non-secure, virtual, EL2
                    // physical.
                    let of = |name, n| ppi(node, devtree::named(node, name, n)?);
                    let both = of("virt", 2).zip(of("hyp-phys", 3));
                    (self.gic.ppi.virtual_timer, self.gic.ppi.hyp_timer) = both.unwrap_or((0, 0));
                }
                "arm,psci-0.2" | "arm,psci-1.0" if self.psci.is_none() => {
                    let method = node.property("method");
                    self.psci = match method.as_ref().map(Property::value) {
                        Some(b"smc\0") => Some(Conduit::Smc),
                        Some(b"hvc\0") => Some(Conduit::Hvc),
                        _ => None,
                    };
                }
                // The first, where no stdout-path names another: not the log's own.
                "arm,pl011" => {
                    let found = place.registers(0).filter(|at| self.uart != Some(*at));
                    self.console = self.console.or(found);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// A child of /reserved-memory.
    fn reserve(&mut self, place: &Place<'_, '_>) -> Result<(), TreeError> {
        insert_all(&mut self.reserved, place).map_err(too_many_reserved)?;
        if place.node.property("no-map").is_some() {
            insert_all(&mut self.no_map, place).map_err(too_many_reserved)?;
        }
        Ok(())
    }

    fn gic(&mut self, place: &Place<'_, '_>) {
        let node = place.node;
        self.gic.distributor = place.registers(0).unwrap_or(Region::EMPTY);
        let regions = node
            .property("#redistributor-regions")
            .and_then(|p| p.value_as::<u32>().ok())
            .unwrap_or(1);
        // The count may be any number; the first range is the distributor's.
        let there = place.entries().count().saturating_sub(1);
        self.gic.redistributors = (1..=there.min(regions as usize))
            .filter_map(|n| place.registers(n))
            .take(8)
            .collect();
        let stride = node.property("redistributor-stride").and_then(cells);
        self.gic.stride = stride.filter(|stride| *stride != 0);
        self.gic.ppi.maintenance = ppi(node, 0).unwrap_or(0);
    }
}

fn too_many_reserved<E>(_: E) -> TreeError {
    TreeError::ManyReserved
}

/// All registers of a node, as far as the CPU reaches them.
fn insert_all(set: &mut Regions, place: &Place<'_, '_>) -> Result<(), ()> {
    let mut done = Ok(());
    for entry in place.entries().flatten() {
        place.raise(entry, &mut |part| {
            done = done.and(set.insert(part).map_err(|_| ()));
        });
    }
    done
}

impl Default for Machine {
    fn default() -> Self {
        Self::new()
    }
}

/// INTID of a node's `n`-th interrupt.
fn ppi(node: FdtNode<'_>, n: usize) -> Option<u32> {
    match devtree::interrupt(node, n, None)? {
        [1, number] if number < 16 => Some(16 + number),
        _ => None,
    }
}

fn bootargs<'a>(fdt: Fdt<'a>) -> &'a str {
    fdt.find_node("/chosen")
        .and_then(|chosen| chosen.property("bootargs"))
        .and_then(|p| p.value_as::<&'a str>().ok())
        .unwrap_or("")
}

/// The PL011 of a node, if it is one and this world's.
fn pl011(place: &Place<'_, '_>) -> Option<Region> {
    let is_one = place.enabled && place.node.is_compatible("arm,pl011");
    is_one.then(|| place.registers(0)).flatten()
}

/// The UART that the log has to itself, where it is asked for and there.
fn log_uart(fdt: Fdt<'_>, second: bool) -> Option<Region> {
    second
        .then(|| place::at(fdt, "serial1", pl011))
        .flatten()
        .flatten()
}

/// The PL011 of `stdout-path`.
fn stdout(fdt: Fdt<'_>) -> Option<Region> {
    let chosen = fdt.find_node("/chosen")?;
    let path = chosen.property("stdout-path")?;
    place::at(fdt, path.value_as::<&str>().ok()?, pl011)?
}

/// A value of one or two cells.
fn cells(property: impl Property) -> Option<u64> {
    match property.value() {
        v @ [_, _, _, _] => Some(u64::from(u32::from_be_bytes(v.try_into().ok()?))),
        v => Some(u64::from_be_bytes(v.try_into().ok()?)),
    }
}

fn initrd(fdt: Fdt<'_>) -> Option<Region> {
    let chosen = fdt.find_node("/chosen")?;
    let start = cells(chosen.property("linux,initrd-start")?)?;
    let end = cells(chosen.property("linux,initrd-end")?)?;
    Region::new(start, end.checked_sub(start)?).filter(|region| !region.is_empty())
}

impl Settings {
    /// What holds without a word.
    pub const DEFAULT: Self = Self {
        level: LevelFilter::Info,
        granule: None,
        mask: Mask {
            pa_52: false,
            va_52: false,
        },
        el2_bits: None,
        log_on_serial1: false,
        end: None,
        trace_calls: false,
        crash: None,
    };

    /// Reads the words that are ours; an unknown value leaves the default.
    pub fn parse(bootargs: &str) -> Self {
        let mut settings = Self {
            end: Token::of_boot_arguments(bootargs),
            ..Self::DEFAULT
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
                ("pa", "48") => settings.mask.pa_52 = true,
                ("va", "48") => settings.mask.va_52 = true,
                ("el2", "48x48") => settings.el2_bits = Some((48, 48)),
                ("el2", "48x52") => settings.el2_bits = Some((48, 52)),
                ("el2", "52x48") => settings.el2_bits = Some((52, 48)),
                ("crash", "panic") => settings.crash = Some(Crash::Panic),
                ("crash", "abort") => settings.crash = Some(Crash::Abort),
                ("crash", "stack") => settings.crash = Some(Crash::Stack),
                ("trace", kinds) => settings.trace_calls = kinds.split(',').any(|k| k == "calls"),
                ("log", "serial1") => settings.log_on_serial1 = true,
                _ => {}
            }
        }
        settings
    }
}

/// The bytes of the tree at `pa`, by the length its header states; of one that is
/// longer than 2 MiB the first of them, so that its console can be guessed.
///
/// # Errors
/// When there is no tree.
///
/// # Safety
/// `pa`, if it is 8-byte aligned and not null, is RAM: the boot protocol's promise for
/// x0. The MMU is off, and nobody else reads or writes it meanwhile or writes it later.
pub unsafe fn bytes<'a>(pa: u64) -> Result<&'a [u8], TreeError> {
    if pa == 0 || !pa.is_multiple_of(8) {
        return Err(TreeError::NoPointer);
    }
    // The boot protocol has the image cleaned, and says nothing of the tree: a loader with
    // its caches on may have left it there.
    instr::clean_to_poc(pa, HEADER);
    let header = pa as *const u32;
    // SAFETY: the caller's promise.
    let (magic, length) = unsafe { (header.read(), header.add(1).read()) };
    if u32::from_be(magic) != 0xd00d_feed {
        return Err(TreeError::NoTree);
    }
    let length = (u32::from_be(length) as usize).min(MAX_TREE);
    instr::clean_to_poc(pa, length as u64);
    // SAFETY: the caller's promise, for the length that the tree itself states.
    let data = unsafe { core::slice::from_raw_parts_mut(pa as *mut u8, length) };
    if devtree::mend_names(data) {
        // What a cache may have of it is from before.
        instr::clean_to_poc(pa, length as u64);
    }
    Ok(data)
}

#[cfg(test)]
mod builder;
#[cfg(test)]
mod tests;

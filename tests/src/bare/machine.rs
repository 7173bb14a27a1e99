//! The machine, from the device tree that the program was given.

use core::cell::UnsafeCell;
use core::ops::Range;

use dtoolkit::fdt::FdtNode;
use dtoolkit::standard::NodeStandard;
use dtoolkit::{Node, Property};

use super::MAX_CPUS;
use super::asm::Conduit;
use super::rsi;

/// What a program knows of its machine.
#[derive(Debug)]
pub struct Machine {
    /// The whole device tree.
    pub tree: &'static [u8],
    /// The program's own image.
    pub image: Range<u64>,
    /// PL011 of `stdout-path`.
    pub uart: u64,
    /// Its SPI as an INTID.
    pub uart_intid: u32,
    /// GICv3 distributor, 0 when there is none.
    pub gicd: u64,
    /// The first redistributor.
    pub gicr: u64,
    /// RAM: up to four ranges, unused ones are empty.
    pub ram: [Range<u64>; 4],
    /// MPIDRs; `cpus` of them.
    pub mpidrs: [u64; MAX_CPUS],
    /// CPUs that the tree names, as many as the program drives.
    pub cpus: usize,
    /// How PSCI is called.
    pub conduit: Conduit,
    /// `/chosen/bootargs`.
    pub bootargs: &'static str,
}

struct Slot(UnsafeCell<Option<Machine>>);

// SAFETY: Written once, by the boot CPU before there is any other.
unsafe impl Sync for Slot {}

static MACHINE: Slot = Slot(UnsafeCell::new(None));

/// Keeps the machine for [`get`].
pub fn set(machine: Machine) -> &'static Machine {
    // SAFETY: Called once, before any reader.
    unsafe { *MACHINE.0.get() = Some(machine) };
    get()
}

/// The machine.
///
/// # Panics
/// Before the boot has read it.
pub fn get() -> &'static Machine {
    // SAFETY: Not written after boot.
    let machine = unsafe { &*MACHINE.0.get() };
    machine.as_ref().expect("boot reads the machine first")
}

/// The bytes of the device tree at `dtb`.
///
/// # Safety
/// `dtb` is what the boot loader passed in X0.
pub unsafe fn bytes(dtb: u64) -> Option<&'static [u8]> {
    let at = core::ptr::with_exposed_provenance::<u8>(dtb as usize);
    if dtb == 0 || dtb & 7 != 0 {
        return None;
    }
    // SAFETY: A device tree's header is there, by the boot protocol.
    let header = unsafe { core::slice::from_raw_parts(at, 8) };
    let size = u32::from_be_bytes(header[4..8].try_into().ok()?) as usize;
    if header[..4] != [0xd0, 0x0d, 0xfe, 0xed] || size > 2 << 20 {
        return None;
    }
    // SAFETY: The header says how long it is.
    Some(unsafe { core::slice::from_raw_parts(at, size) })
}

impl Machine {
    /// Reads the tree; `None` without a console.
    pub fn read(tree: &'static [u8], image: Range<u64>) -> Option<Self> {
        let fdt = devtree::open(tree).ok()?;
        let mut machine = Self {
            tree,
            image,
            uart: 0,
            uart_intid: 0,
            gicd: 0,
            gicr: 0,
            ram: [const { 0..0 }; 4],
            mpidrs: [0; MAX_CPUS],
            cpus: 0,
            conduit: Conduit::Hvc,
            bootargs: "",
        };
        let chosen = fdt.find_node("/chosen");
        let text = |name: &str| chosen.as_ref()?.property(name)?.value_as::<&str>().ok();
        machine.bootargs = text("bootargs").unwrap_or("");
        let console = text("stdout-path").unwrap_or("").split(':').next()?;
        let psci = fdt.find_node("/psci");
        let method = psci.as_ref().and_then(|node| node.property("method"));
        if method.is_some_and(|method| method.value() == b"smc\0") {
            machine.conduit = Conduit::Smc;
        }
        for node in fdt.root().children() {
            machine.visit(node, console);
            if node.name() == "cpus" {
                node.children().for_each(|cpu| machine.cpu(cpu));
            }
        }
        (machine.uart != 0).then_some(machine)
    }

    /// The same of a realm, whose devices stand in the half that it shares: its tree
    /// has their addresses without that.
    pub fn as_realm(mut self) -> Self {
        // An HVC is nothing that a realm calls by.
        let bits = match self.conduit {
            Conduit::Smc => rsi::ipa_bits(),
            Conduit::Hvc => None,
        };
        let shared = bits.map_or(0, |bits| 1 << (bits - 1));
        for device in [&mut self.uart, &mut self.gicd, &mut self.gicr] {
            *device |= shared;
        }
        self
    }

    fn visit(&mut self, node: FdtNode<'_>, console: &str) {
        let is = |value: &[u8]| {
            let kind = node.property("device_type");
            kind.is_some_and(|kind| kind.value() == value)
        };
        if is(b"memory\0") {
            for n in 0.. {
                let Some((base, size)) = reg(node, n) else {
                    break;
                };
                if let Some(free) = self.ram.iter_mut().find(|range| range.is_empty()) {
                    *free = base..base + size;
                }
            }
        } else if node.is_compatible("arm,gic-v3") {
            self.gicd = reg(node, 0).map_or(0, |frame| frame.0);
            self.gicr = reg(node, 1).map_or(0, |frame| frame.0);
        } else if node.is_compatible("arm,pl011")
            && (self.uart == 0 || console.strip_prefix('/') == Some(node.name()))
        {
            self.uart = reg(node, 0).map_or(0, |frame| frame.0);
            let interrupts = node.property("interrupts");
            let number = interrupts.as_ref().and_then(|p| p.value().get(4..8));
            let number = number.and_then(|bytes| bytes.try_into().ok());
            self.uart_intid = 32 + number.map_or(0, u32::from_be_bytes);
        }
    }

    fn cpu(&mut self, node: FdtNode<'_>) {
        let is_cpu = node.name_without_address() == "cpu";
        let reg = node.reg().ok().flatten().and_then(|mut reg| reg.next());
        let mpidr = reg.and_then(|reg| reg.address::<u64>().ok());
        if let Some(mpidr) = mpidr.filter(|_| is_cpu && self.cpus < MAX_CPUS) {
            self.mpidrs[self.cpus] = mpidr;
            self.cpus += 1;
        }
    }

    /// The first eight bytes of `/chosen/rng-seed`; 0 without one.
    pub fn seed(&self) -> u64 {
        let fdt = devtree::open(self.tree).ok();
        let chosen = fdt.and_then(|fdt| fdt.find_node("/chosen"));
        let seed = chosen.as_ref().and_then(|node| node.property("rng-seed"));
        let bytes = seed.as_ref().and_then(|seed| seed.value().get(..8));
        let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u64::from_le_bytes)
    }

    /// Where the initrd is, if there is one.
    pub fn initrd(&self) -> Option<Range<u64>> {
        let chosen = devtree::open(self.tree).ok()?.find_node("/chosen")?;
        let address = |name| {
            // Of one cell, or two.
            let property = chosen.property(name)?;
            let bytes = property.value().iter();
            Some(bytes.fold(0, |all, byte| all << 8 | u64::from(*byte)))
        };
        Some(address("linux,initrd-start")?..address("linux,initrd-end")?)
    }

    /// The end of the RAM that the program itself lies in.
    pub fn ram_end(&self) -> u64 {
        let own = self
            .ram
            .iter()
            .find(|range| range.contains(&self.image.start));
        own.map_or(self.image.end, |range| range.end)
    }

    /// The value of the word `key=value` of the command line.
    pub fn argument(&self, key: &str) -> Option<&'static str> {
        self.bootargs
            .split_ascii_whitespace()
            .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
    }
}

fn reg(node: FdtNode<'_>, n: usize) -> Option<(u64, u64)> {
    let reg = node.reg().ok()??.nth(n)?;
    Some((reg.address::<u64>().ok()?, reg.size::<u64>().ok()?))
}

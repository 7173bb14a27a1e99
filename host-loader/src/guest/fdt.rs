//! The device tree that a guest is given: that of a QEMU virt machine, less what is
//! not there; a protected guest's devices stand in the half that it shares. A realm's
//! kernel adds that itself to the address of what is no memory of its own (Linux
//! arch/arm64/kernel/rsi.c), and calls PSCI by SMC.

use super::map;
use crate::seed::Seed;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Range;
use dtoolkit::{Node, Property};
use vm_fdt::{Error, FdtWriter};

/// What the tree describes.
#[derive(Clone, Debug)]
pub struct Machine<'a> {
    /// RAM, IPAs.
    pub ram: Range<u64>,
    /// What is added to the addresses of devices.
    pub devices_at: u64,
    /// The instruction that calls PSCI: `hvc` or `smc`.
    pub conduit: &'a str,
    /// Affinities of the vCPUs.
    pub mpidrs: &'a [u64],
    /// Kernel command line.
    pub cmdline: &'a str,
    /// Where the initrd is.
    pub initrd: Option<Range<u64>>,
    /// It starts from flash.
    pub flash: bool,
    /// Randomness of this start.
    pub seed: Option<Seed>,
}

/// Interrupt specifier: an SPI.
const SPI: u32 = 0;
/// Interrupt specifier: a PPI.
const PPI: u32 = 1;
/// Interrupt specifier: level, active high.
const LEVEL_HIGH: u32 = 4;

const GIC: u32 = 1;
const CLOCK: u32 = 2;
const FIRST_CPU: u32 = 3;

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|s| String::from(*s)).collect()
}

/// Writes the tree.
///
/// Errors are those of the writer: a string with a zero byte in it.
pub fn write(machine: &Machine<'_>) -> Result<Vec<u8>, Error> {
    let mut fdt = FdtWriter::new()?;
    let root = fdt.begin_node("")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_string("compatible", "linux,dummy-virt")?;
    fdt.property_string("model", "linux,dummy-virt")?;
    fdt.property_u32("interrupt-parent", GIC)?;
    fdt.property_null("dma-coherent")?;

    let node = fdt.begin_node("aliases")?;
    let uart = uart(machine.devices_at);
    fdt.property_string("serial0", &uart)?;
    fdt.end_node(node)?;

    let node = fdt.begin_node("chosen")?;
    fdt.property_string("stdout-path", &uart)?;
    fdt.property_string("bootargs", machine.cmdline)?;
    if let Some(initrd) = &machine.initrd {
        fdt.property_u64("linux,initrd-start", initrd.start)?;
        fdt.property_u64("linux,initrd-end", initrd.end)?;
    }
    if let Some(seed) = &machine.seed {
        fdt.property("rng-seed", &seed.rng)?;
        fdt.property_u64("kaslr-seed", seed.kaslr)?;
    }
    fdt.end_node(node)?;

    let node = fdt.begin_node(&format!("memory@{:x}", machine.ram.start))?;
    fdt.property_string("device_type", "memory")?;
    let size = machine.ram.end - machine.ram.start;
    fdt.property_array_u64("reg", &[machine.ram.start, size])?;
    fdt.end_node(node)?;

    cpus(&mut fdt, machine.mpidrs)?;

    let node = fdt.begin_node("psci")?;
    let versions = strings(&["arm,psci-1.0", "arm,psci-0.2", "arm,psci"]);
    fdt.property_string_list("compatible", versions)?;
    fdt.property_string("method", machine.conduit)?;
    // For those who only know PSCI 0.1, which has no fixed numbers.
    for (name, fid) in [
        ("cpu_suspend", rmi::fid::PSCI_CPU_SUSPEND),
        ("cpu_off", rmi::fid::PSCI_CPU_OFF),
        ("cpu_on", rmi::fid::PSCI_CPU_ON),
    ] {
        fdt.property_u32(name, fid)?;
    }
    fdt.end_node(node)?;

    let node = fdt.begin_node("timer")?;
    let compatible = strings(&["arm,armv8-timer", "arm,armv7-timer"]);
    fdt.property_string_list("compatible", compatible)?;
    let interrupts: Vec<u32> = map::TIMER_PPIS
        .iter()
        .flat_map(|&ppi| [PPI, ppi, LEVEL_HIGH])
        .collect();
    fdt.property_array_u32("interrupts", &interrupts)?;
    fdt.property_null("always-on")?;
    fdt.end_node(node)?;

    uart_and_time(&mut fdt, machine.devices_at)?;
    if machine.flash {
        flash(&mut fdt)?;
    }
    interrupt_controller(&mut fdt, machine)?;

    fdt.end_node(root)?;
    fdt.finish()
}

fn uart_and_time(fdt: &mut FdtWriter, at: u64) -> Result<(), Error> {
    let node = fdt.begin_node("apb-pclk")?;
    fdt.property_string("compatible", "fixed-clock")?;
    fdt.property_u32("#clock-cells", 0)?;
    fdt.property_u32("clock-frequency", 24_000_000)?;
    fdt.property_string("clock-output-names", "clk24mhz")?;
    fdt.property_phandle(CLOCK)?;
    fdt.end_node(node)?;

    let node = fdt.begin_node(&uart(at)[1..])?;
    fdt.property_string_list("compatible", strings(&["arm,pl011", "arm,primecell"]))?;
    registers(fdt, at, &[map::UART])?;
    fdt.property_array_u32("interrupts", &[SPI, map::UART_SPI, LEVEL_HIGH])?;
    fdt.property_array_u32("clocks", &[CLOCK, CLOCK])?;
    fdt.property_string_list("clock-names", strings(&["uartclk", "apb_pclk"]))?;
    fdt.end_node(node)?;

    let node = fdt.begin_node(&format!("pl031@{:x}", at + map::CLOCK.start))?;
    fdt.property_string_list("compatible", strings(&["arm,pl031", "arm,primecell"]))?;
    registers(fdt, at, &[map::CLOCK])?;
    fdt.property_array_u32("interrupts", &[SPI, map::CLOCK_SPI, LEVEL_HIGH])?;
    fdt.property_u32("clocks", CLOCK)?;
    fdt.property_string("clock-names", "apb_pclk")?;
    fdt.end_node(node)
}

/// What a guest that starts from flash has besides.
fn flash(fdt: &mut FdtWriter) -> Result<(), Error> {
    // The first bank takes no commands.
    let node = fdt.begin_node(&format!("flash@{:x}", map::FLASH.start))?;
    fdt.property_string("compatible", "cfi-flash")?;
    registers(fdt, 0, &[map::FLASH])?;
    fdt.property_u32("bank-width", 4)?;
    fdt.end_node(node)
}

fn interrupt_controller(fdt: &mut FdtWriter, machine: &Machine<'_>) -> Result<(), Error> {
    let at = machine.devices_at;
    let node = fdt.begin_node(&format!("intc@{:x}", at + map::GICD.start))?;
    fdt.property_string("compatible", "arm,gic-v3")?;
    fdt.property_u32("#interrupt-cells", 3)?;
    fdt.property_null("interrupt-controller")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_null("ranges")?;
    fdt.property_u32("#redistributor-regions", 1)?;
    let frames = machine.mpidrs.len() as u64 * map::GICR_STRIDE;
    let redistributors = map::GICR.start..map::GICR.start + frames;
    registers(fdt, at, &[map::GICD, redistributors])?;
    fdt.property_phandle(GIC)?;
    fdt.end_node(node)
}

/// The path of the UART's node.
fn uart(at: u64) -> String {
    format!("/pl011@{:x}", at + map::UART.start)
}

/// Replaces the seeds of a tree that was written with some.
pub fn set_seed(tree: &mut [u8], seed: &Seed) {
    for (name, bytes) in [
        ("rng-seed", &seed.rng[..]),
        ("kaslr-seed", &seed.kaslr.to_be_bytes()),
    ] {
        if let Some(at) = chosen_value(tree, name)
            && at.len() == bytes.len()
        {
            tree[at].copy_from_slice(bytes);
        }
    }
}

/// Where the value of a property of `/chosen` is.
fn chosen_value(tree: &[u8], name: &str) -> Option<Range<usize>> {
    let fdt = devtree::open(tree).ok()?;
    let property = fdt.find_node("/chosen")?.property(name)?;
    let value = property.value();
    let start = value.as_ptr().addr() - tree.as_ptr().addr();
    Some(start..start + value.len())
}

fn registers(fdt: &mut FdtWriter, at: u64, ranges: &[Range<u64>]) -> Result<(), Error> {
    let cells: Vec<u64> = ranges
        .iter()
        .flat_map(|r| [at + r.start, r.end - r.start])
        .collect();
    fdt.property_array_u64("reg", &cells)
}

fn cpus(fdt: &mut FdtWriter, mpidrs: &[u64]) -> Result<(), Error> {
    let cpus = fdt.begin_node("cpus")?;
    // Two cells only where Aff3 is used.
    let wide = mpidrs.iter().any(|&mpidr| mpidr >> 32 != 0);
    fdt.property_u32("#address-cells", if wide { 2 } else { 1 })?;
    fdt.property_u32("#size-cells", 0)?;
    for (&mpidr, phandle) in mpidrs.iter().zip(FIRST_CPU..) {
        let node = fdt.begin_node(&format!("cpu@{mpidr:x}"))?;
        fdt.property_string("device_type", "cpu")?;
        fdt.property_string("compatible", "arm,armv8")?;
        if wide {
            fdt.property_u64("reg", mpidr)?;
        } else {
            fdt.property_u32("reg", mpidr as u32)?;
        }
        fdt.property_string("enable-method", "psci")?;
        fdt.property_phandle(phandle)?;
        fdt.end_node(node)?;
    }
    // All are near to each other.
    let map = fdt.begin_node("cpu-map")?;
    let socket = fdt.begin_node("socket0")?;
    let cluster = fdt.begin_node("cluster0")?;
    for (n, phandle) in (0..mpidrs.len()).zip(FIRST_CPU..) {
        let core = fdt.begin_node(&format!("core{n}"))?;
        fdt.property_u32("cpu", phandle)?;
        fdt.end_node(core)?;
    }
    fdt.end_node(cluster)?;
    fdt.end_node(socket)?;
    fdt.end_node(map)?;
    fdt.end_node(cpus)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::platform::Platform;

    /// The host's own parser reads what it writes: one more reader than the
    /// guests', and a strict one.
    #[test]
    fn the_tree_tells_the_machine() {
        let mpidrs: Vec<u64> = (0..17).map(rmi::params::index_mpidr).collect();
        let machine = Machine {
            ram: map::RAM_BASE..map::RAM_BASE + (512 << 20),
            devices_at: 0,
            conduit: "hvc",
            mpidrs: &mpidrs,
            cmdline: "console=ttyAMA0",
            initrd: Some(0x4800_0000..0x4800_1234),
            flash: true,
            seed: Some(Seed {
                rng: [0x5a; 32],
                kaslr: 7,
            }),
        };
        let mut tree = write(&machine).unwrap();
        let read = Platform::parse(&tree).unwrap();
        assert_eq!(read.memory, core::slice::from_ref(&machine.ram));
        assert_eq!(read.cpus, mpidrs);
        assert_eq!(read.cpus[16], 0x100);
        assert_eq!(read.bootargs, machine.cmdline);
        assert_eq!(read.initrd, machine.initrd);
        assert_eq!(read.rng_seed, [0x5a; 32]);
        let other = Seed {
            rng: [7; 32],
            kaslr: 0x0102_0304_0506_0708,
        };
        set_seed(&mut tree, &other);
        assert_eq!(Platform::parse(&tree).unwrap().rng_seed, other.rng);
        let kaslr = chosen_value(&tree, "kaslr-seed").unwrap();
        assert_eq!(tree[kaslr], [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(read.timer_intid, 30);
        assert_eq!(read.clock, Some(map::CLOCK.start));
        assert_eq!(read.gic.distributor, map::GICD);
        assert_eq!(
            read.gic.redistributors[0],
            map::GICR.start..map::GICR.start + 17 * map::GICR_STRIDE
        );
        let uart = read.console.unwrap();
        assert_eq!((uart.base, uart.intid), (map::UART.start, Some(33)));
    }

    /// Linux asks the map who is near to whom, and the clock's interrupt is its alarm.
    #[test]
    fn the_tree_names_each_cpu_in_its_map_and_the_clocks_interrupt() {
        let machine = Machine {
            ram: map::RAM_BASE..map::RAM_BASE + (512 << 20),
            devices_at: 0,
            conduit: "hvc",
            mpidrs: &[0, 1, 0x100],
            cmdline: "",
            flash: false,
            initrd: None,
            seed: None,
        };
        let tree = write(&machine).unwrap();
        let fdt = devtree::open(&tree).unwrap();
        let cells = |path: &str, name: &str| -> Vec<u32> {
            let property = fdt.find_node(path).unwrap().property(name).unwrap();
            let words = property.value().as_chunks().0.iter();
            words.map(|cell| u32::from_be_bytes(*cell)).collect()
        };
        let mut handles = Vec::new();
        for (n, mpidr) in machine.mpidrs.iter().enumerate() {
            let handle = cells(&format!("/cpus/cpu@{mpidr:x}"), "phandle");
            let core = format!("/cpus/cpu-map/socket0/cluster0/core{n}");
            assert_eq!(cells(&core, "cpu"), handle);
            handles.extend(handle);
        }
        let clock = "/pl031@9010000";
        assert_eq!(cells(clock, "interrupts"), [SPI, 2, LEVEL_HIGH]);
        handles.extend(cells("/apb-pclk", "phandle"));
        handles.extend(cells("/intc@8000000", "phandle"));
        assert_eq!(cells(clock, "clocks"), cells("/apb-pclk", "phandle"));
        handles.sort_unstable();
        let all = handles.len();
        handles.dedup();
        assert_eq!(handles.len(), all, "each is another's: {handles:?}");
    }

    /// What a protected guest touches of the host's stands in the half that it shares,
    /// and nothing else does.
    #[test]
    fn the_devices_of_a_protected_guest_stand_in_the_half_that_it_shares() {
        const SHARED: u64 = 1 << 39;
        let machine = Machine {
            ram: map::RAM_BASE..map::RAM_BASE + (512 << 20),
            devices_at: SHARED,
            conduit: "smc",
            mpidrs: &[0, 1],
            cmdline: "",
            flash: false,
            initrd: Some(0x4800_0000..0x4800_1234),
            seed: None,
        };
        let tree = write(&machine).unwrap();
        let read = Platform::parse(&tree).unwrap();
        assert_eq!(read.memory, core::slice::from_ref(&machine.ram));
        assert_eq!(read.initrd, machine.initrd);
        let uart = read.console.unwrap();
        assert_eq!((uart.base, uart.intid), (SHARED + 0x0900_0000, Some(33)));
        let distributor = SHARED + 0x0800_0000;
        assert_eq!(read.gic.distributor, distributor..distributor + 0x1_0000);
        let first = SHARED + 0x080a_0000;
        let frames = first..first + 2 * 0x2_0000;
        assert_eq!(read.gic.redistributors, core::slice::from_ref(&frames));
        assert_eq!(read.clock, Some(SHARED + 0x0901_0000));
        // By their names too, and where they are named.
        let fdt = devtree::open(&tree).unwrap();
        assert!(fdt.find_node("/intc@8008000000").is_some());
        let chosen = chosen_value(&tree, "stdout-path").unwrap();
        assert_eq!(&tree[chosen], b"/pl011@8009000000\0");
        assert!(fdt.find_node("/pl011@8009000000").is_some());
        let method = fdt.find_node("/psci").unwrap();
        let method = method.property("method").unwrap();
        assert_eq!(method.value(), b"smc\0");
    }
}

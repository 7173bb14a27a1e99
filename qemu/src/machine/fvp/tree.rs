//! The device tree of Arm's Base RevC model: what of its devices a hypervisor and its
//! host need, by their bindings (`arm,gic-v3`, `arm,armv8-timer`, `arm,pl011`,
//! `arm,psci-1.0`, `cpu-topology`).
//!
//! Addresses and interrupts are the Base Platform's, as TF-A's own tree of the machine
//! has them. TF-A reads this one, too, for its topology, its log's UART and the timer's
//! frequency (`plat/arm/board/fvp/fconf/fconf_hw_config_getter.c`), and so wants a
//! `cpu-map`, an alias `serial1`, one memory node and a clock at each UART.

use anyhow::{Result, ensure};
use dtoolkit::ToPropertyValue;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};

use super::parts::{Span, TREE};

/// CPUs in each of the model's two clusters, at most.
pub const CLUSTER: u32 = 4;

/// CPUs in all.
pub const MAX_CPUS: u32 = 2 * CLUSTER;

/// UARTs: the first is the guest's console, the second the log's.
const UARTS: [(u32, u32); 2] = [(0x1c09_0000, 5), (0x1c0a_0000, 6)];

/// The distributor, and the redistributors, 128 KiB for each CPU.
const DISTRIBUTOR: (u32, u32) = (0x2f00_0000, 0x1_0000);
const REDISTRIBUTORS: (u32, u32) = (0x2f10_0000, 0x20_0000);

/// PPIs, as numbers of the binding: of the GIC for EL2, then of the timers, which are
/// secure, non-secure, virtual and EL2's.
const MAINTENANCE: u32 = 9;
const TIMERS: [u32; 4] = [13, 14, 11, 10];

/// Clocks, Hz: of the UARTs (fixed), and of the system counter
/// (`bp.refcounter.base_frequency`).
const UART_CLOCK: u32 = 24_000_000;
const COUNTER: u32 = 100_000_000;

/// Kinds of interrupts and what triggers them (binding `arm,gic-v3`).
const SPI: u32 = 0;
const PPI: u32 = 1;
const LEVEL_HIGH: u32 = 4;
const LEVEL_LOW: u32 = 8;

/// Phandles.
const GIC: u32 = 1;
const CLOCK: u32 = 2;
const FIRST_CPU: u32 = 0x10;

/// What is different from one machine to the next.
#[derive(Clone, Debug)]
pub struct Contents<'a> {
    /// Number of CPUs.
    pub cpus: u32,
    /// RAM.
    pub banks: &'a [Span],
    /// Boot arguments.
    pub bootargs: &'a str,
    /// Where the bundle is.
    pub bundle: Option<Span>,
}

/// The affinity of the `n`-th CPU: the model has those of a CPU with threads, one each.
fn mpidr(n: u32) -> u32 {
    (n / CLUSTER) << 16 | (n % CLUSTER) << 8
}

/// Makes the tree.
///
/// # Errors
/// More CPUs than there are, or boot arguments that make it too long for the firmware.
pub fn make(contents: &Contents<'_>) -> Result<Vec<u8>> {
    let cpus = contents.cpus;
    ensure!(
        cpus <= MAX_CPUS,
        "--smp {cpus}: --machine fvp has {MAX_CPUS} CPUs at most, in two clusters"
    );
    let mut tree = DeviceTree::new();
    tree.root = node("")
        .with("model", "FVP Base RevC")
        .with("compatible", vec!["arm,fvp-base-revc", "arm,vexpress"])
        .with("#address-cells", 2u32)
        .with("#size-cells", 2u32)
        .with("interrupt-parent", GIC)
        .holding([chosen(contents), aliases(), psci(), processors(cpus)])
        .holding([memory(contents.banks), timer(), gic(), clock()])
        .holding(UARTS.map(uart))
        .0;
    let tree = tree.to_dtb();
    ensure!(
        tree.len() as u64 <= TREE.size,
        "the device tree takes {} bytes, and the firmware has room for {}",
        tree.len(),
        TREE.size
    );
    Ok(tree)
}

/// A node that is being written. Its names are ours; `runner/fvp-dry-run` has dtc read
/// what comes of them.
struct Writing(DeviceTreeNode);

fn node(name: &str) -> Writing {
    Writing(DeviceTreeNode::new_unchecked(name))
}

impl Writing {
    fn with(mut self, name: &str, value: impl ToPropertyValue) -> Self {
        let property = DeviceTreeProperty::new_unchecked(name, value);
        self.0.add_property(property);
        self
    }

    fn holding(mut self, children: impl IntoIterator<Item = Self>) -> Self {
        for child in children {
            self.0.add_child(child.0);
        }
        self
    }
}

fn chosen(contents: &Contents<'_>) -> Writing {
    let chosen = node("chosen")
        .with("bootargs", contents.bootargs)
        .with("stdout-path", "serial0:115200n8");
    match contents.bundle {
        Some(bundle) => chosen
            .with("linux,initrd-start", bundle.at)
            .with("linux,initrd-end", bundle.end()),
        None => chosen,
    }
}

fn serial(at: u32) -> String {
    format!("serial@{at:x}")
}

fn aliases() -> Writing {
    let uarts = UARTS.iter().enumerate();
    uarts.fold(node("aliases"), |aliases, (n, (at, _))| {
        aliases.with(&format!("serial{n}"), format!("/{}", serial(*at)))
    })
}

fn psci() -> Writing {
    node("psci")
        .with("compatible", vec!["arm,psci-1.0", "arm,psci-0.2"])
        .with("method", "smc")
        // TF-A's own: it has power levels up to the system's.
        .with("max-pwr-lvl", 2u32)
}

fn processors(count: u32) -> Writing {
    let core = |n: u32| node(&format!("core{}", n % CLUSTER)).with("cpu", FIRST_CPU + n);
    let clusters = (0..count.div_ceil(CLUSTER)).map(|n| {
        let cores = n * CLUSTER..count.min((n + 1) * CLUSTER);
        node(&format!("cluster{n}")).holding(cores.map(core))
    });
    let cpu = |n: u32| {
        node(&format!("cpu@{:x}", mpidr(n)))
            .with("device_type", "cpu")
            .with("compatible", "arm,armv8")
            .with("reg", [0, mpidr(n)])
            .with("enable-method", "psci")
            .with("phandle", FIRST_CPU + n)
    };
    node("cpus")
        .with("#address-cells", 2u32)
        .with("#size-cells", 0u32)
        .holding([node("cpu-map").holding(clusters)])
        .holding((0..count).map(cpu))
}

fn memory(banks: &[Span]) -> Writing {
    let cells = |number: u64| [(number >> 32) as u32, number as u32];
    let reg = banks.iter().flat_map(|bank| [bank.at, bank.size]);
    let reg: Vec<u32> = reg.flat_map(cells).collect();
    let first = banks.first().map_or(0, |bank| bank.at);
    node(&format!("memory@{first:x}"))
        .with("device_type", "memory")
        .with("reg", reg)
}

fn timer() -> Writing {
    let interrupts = TIMERS.map(|ppi| [PPI, ppi, LEVEL_LOW]);
    node("timer")
        .with("compatible", "arm,armv8-timer")
        .with("interrupts", interrupts.as_flattened())
        .with("clock-frequency", COUNTER)
}

fn gic() -> Writing {
    let frames = [DISTRIBUTOR, REDISTRIBUTORS].map(|(at, size)| [0, at, 0, size]);
    node(&format!("interrupt-controller@{:x}", DISTRIBUTOR.0))
        .with("compatible", "arm,gic-v3")
        .with("#interrupt-cells", 3u32)
        .with("#address-cells", 0u32)
        .with("interrupt-controller", [0u8; 0])
        .with("reg", frames.as_flattened())
        .with("interrupts", [PPI, MAINTENANCE, LEVEL_HIGH])
        .with("phandle", GIC)
}

fn clock() -> Writing {
    node("clock-uart")
        .with("compatible", "fixed-clock")
        .with("#clock-cells", 0u32)
        .with("clock-frequency", UART_CLOCK)
        .with("phandle", CLOCK)
}

fn uart((at, spi): (u32, u32)) -> Writing {
    node(&serial(at))
        .with("compatible", vec!["arm,pl011", "arm,primecell"])
        .with("reg", [0, at, 0, 0x1000])
        .with("interrupts", [SPI, spi, LEVEL_HIGH])
        .with("clocks", [CLOCK, CLOCK])
        .with("clock-names", vec!["uartclk", "apb_pclk"])
}

#[cfg(test)]
mod tests;

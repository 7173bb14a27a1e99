//! The device tree's nodes that a test's start-up looks for, the UART before anything is
//! set up, and the state that the CPU begins in.

use arm64::regs::{
    CNTFRQ_EL0, CNTKCTL_EL1, CNTP_CTL_EL0, CNTV_CTL_EL0, CPACR_EL1, DAIF, ICC_BPR1_EL1,
    ICC_CTLR_EL1, ICC_IGRPEN1_EL1, ICC_PMR_EL1, ICC_SRE_EL1, MDSCR_EL1,
};
use dtoolkit::fdt::FdtNode;
use dtoolkit::standard::NodeStandard;
use dtoolkit::{Node, Property};

use tests::bare::asm::{read32, write8};
use tests::bare::console::Console;
use tests::bare::gic::{self, gicd, gicr};
use tests::bare::machine;
use tests::println;
use tests::suite::Suite;

use crate::fact;

/// The checks.
pub fn checks(suite: &mut Suite<Console>) {
    registers();
    tree(suite);
    let uart = machine::get().uart;
    fact!("uart", uart);
    if uart == 0x900_0000 {
        // Byte after byte, without a look at the flags.
        for _ in 0..5 {
            for byte in b"...................................................\n" {
                // SAFETY: the UART's data register.
                unsafe { write8(uart, *byte) };
            }
        }
    }
}

fn registers() {
    fact!("first/cpacr", CPACR_EL1.get());
    fact!("first/cntkctl", CNTKCTL_EL1.get());
    fact!("first/cntv-ctl", CNTV_CTL_EL0.get());
    fact!("first/cntp-ctl", CNTP_CTL_EL0.get());
    fact!("first/cntfrq", CNTFRQ_EL0.get());
    fact!("first/mdscr", MDSCR_EL1.get());
    fact!("first/daif", DAIF.get());
    fact!("first/sre", ICC_SRE_EL1.get());
    fact!("first/pmr", ICC_PMR_EL1.get());
    fact!("first/igrpen1", ICC_IGRPEN1_EL1.get());
    fact!("first/bpr1", ICC_BPR1_EL1.get());
    fact!("first/icc-ctlr", ICC_CTLR_EL1.get());
    fact!("first/gicd-ctlr", gic::d(gicd::CTLR));
    fact!("first/gicr-ctlr", gic::r(gicr::CTLR));
    fact!("first/gicr-waker", gic::r(gicr::WAKER));
    for (name, at) in [
        ("first/igroupr0", gicd::IGROUPR),
        ("first/isenabler0", gicd::ISENABLER),
        ("first/ispendr0", gicd::ISPENDR),
        ("first/isactiver0", gicd::ISACTIVER),
        ("first/ipriorityr0", gicd::IPRIORITYR),
        ("first/ipriorityr7", gicd::IPRIORITYR + 28),
        ("first/icfgr0", gicd::ICFGR),
        ("first/icfgr1", gicd::ICFGR + 4),
    ] {
        fact!(name, gic::r(gicr::SGI + at));
    }
}

fn has(node: FdtNode<'_>, kind: &str) -> bool {
    node.is_compatible(kind)
}

/// A property's value, its first 128 bytes, and how long it is.
#[derive(Clone, Copy)]
struct Value([u8; 128], usize);

impl Value {
    fn of(node: FdtNode<'_>, name: &str) -> Self {
        let mut value = Self([0; 128], 0);
        if let Some(property) = node.property(name) {
            let bytes = property.value();
            value.1 = bytes.len();
            value
                .0
                .iter_mut()
                .zip(bytes)
                .for_each(|(to, from)| *to = *from);
        }
        value
    }
    fn len(&self) -> usize {
        self.1
    }
    fn word(&self, n: usize) -> u32 {
        if 4 * n + 4 <= self.1 {
            word(&self.0, n)
        } else {
            u32::MAX
        }
    }
    fn text(&self) -> &str {
        core::str::from_utf8(&self.0[..self.1.min(128)]).unwrap_or("?")
    }
}

fn word(bytes: &[u8], n: usize) -> u32 {
    let bytes = bytes.get(4 * n..4 * n + 4).and_then(|b| b.try_into().ok());
    bytes.map_or(u32::MAX, u32::from_be_bytes)
}

fn tree(suite: &mut Suite<Console>) {
    let Ok(fdt) = devtree::open(machine::get().tree) else {
        return;
    };
    fact!(
        "tree/virtio",
        fdt.root()
            .children()
            .filter(|node| has(*node, "virtio,mmio"))
            .count()
    );
    for kind in [
        "arm,psci-0.2",
        "arm,psci-1.0",
        "arm,gic-v3",
        "arm,cortex-a15-gic",
        "arm,armv8-timer",
        "arm,pl011",
        "arm,pl031",
        "arm,pl061",
        "pci-host-ecam-generic",
        "qemu,fw-cfg-mmio",
        "cfi-flash",
        "arm,armv8-pmuv3",
    ] {
        let found = fdt
            .root()
            .children()
            .filter(|node| has(*node, kind))
            .count();
        println!("= tree/{kind} {found}");
    }
    for node in fdt.root().children() {
        let value = |name: &str| Value::of(node, name);
        if has(node, "arm,psci-0.2") {
            suite.check(
                "tree/psci-method-of-4-bytes",
                value("method").len() == 4,
                value("method").len(),
            );
            println!("= tree/psci-method {:?}", value("method").text());
        } else if has(node, "arm,armv8-timer") {
            let interrupts = value("interrupts");
            suite.check(
                "tree/timer-4-interrupts",
                interrupts.len() >= 48,
                interrupts.len(),
            );
            fact!("tree/timer-interrupts", interrupts.len());
            let first = [0, 3, 6].map(|n| interrupts.word(n));
            suite.check(
                "tree/timer-ppis",
                first == [1; 3],
                format_args!("{first:?}"),
            );
            fact!("tree/cntp", interrupts.word(4));
            fact!("tree/cntp-flags", interrupts.word(5));
            fact!("tree/cntv", interrupts.word(7));
            fact!("tree/cntv-flags", interrupts.word(8));
        } else if has(node, "arm,gic-v3") {
            fact!("tree/gic-regs", value("reg").len());
            fact!(
                "tree/redistributor-regions",
                value("#redistributor-regions").word(0)
            );
            fact!(
                "tree/its",
                node.children()
                    .filter(|n| has(*n, "arm,gic-v3-its"))
                    .count()
            );
        } else if node.name() == "cpus" {
            fact!("tree/cpus-cells", value("#address-cells").word(0));
            let typed = node.children().filter(|cpu| {
                cpu.property("device_type")
                    .is_some_and(|p| p.value() == b"cpu\0")
            });
            suite.equal(
                "tree/cpus-typed",
                typed.count() as u64,
                machine::get().cpus as u64,
            );
        } else if node.name() == "chosen" {
            println!("= tree/stdout-path {:?}", value("stdout-path").text());
            println!("= tree/initrd-start {}", value("linux,initrd-start").len());
        }
    }
    let ram = machine::get()
        .ram
        .iter()
        .filter(|range| !range.is_empty())
        .count();
    suite.equal("tree/memory", ram as u64, 1);
    if let Some(initrd) = machine::get().initrd() {
        // SAFETY: where the tree says that the initrd is.
        fact!("initrd", unsafe { read32(initrd.start) });
    }
}

//! Devices: which the host has, which it has not, and what it can do to
//! redistributors.

use core::arch::asm;

use dtoolkit::fdt::FdtNode;
use dtoolkit::standard::NodeStandard;
use dtoolkit::{Node, Property};
use rmi::vendor::KICK_SGI;
use tests::bare::asm::{read8, read32, read64, write8, write32, write64};
use tests::bare::console::Console;
use tests::bare::exception::{self, Caught};
use tests::bare::gic::{gicd, gicr, redistributor};
use tests::bare::{cpu, machine};
use tests::suite::Suite;

use crate::calls;
use crate::granules::kept_out;

/// What the host has, as far as QEMU's machines have it.
const OF_HOST: [&str; 3] = ["arm,pl011", "arm,pl031", "arm,pl061"];

/// A device of the tree.
#[derive(Clone, Copy, Debug)]
pub struct Device {
    /// First address.
    pub base: u64,
    /// Bytes.
    pub size: u64,
    /// The node's status is okay.
    pub okay: bool,
}

/// Calls `visit` for all registers that the tree names, but for memory. QEMU's
/// buses pass addresses on as they are.
pub fn for_each(visit: &mut dyn FnMut(FdtNode<'_>, Device)) {
    fn descend(node: FdtNode<'_>, visit: &mut dyn FnMut(FdtNode<'_>, Device)) {
        for child in node.children() {
            let status = child.property("status");
            let okay = status.is_none_or(|status| status.value() == b"okay\0");
            let kind = child.property("device_type");
            let memory = kind.is_some_and(|kind| kind.value() == b"memory\0");
            let reg = child.reg().ok().flatten().filter(|_| !memory);
            for reg in reg.into_iter().flatten() {
                if let (Ok(base), Ok(size @ 1..)) = (reg.address::<u64>(), reg.size::<u64>()) {
                    let device = Device { base, size, okay };
                    visit(child, device);
                }
            }
            if child
                .property("ranges")
                .is_some_and(|p| p.value().is_empty())
                && child.name() != "reserved-memory"
            {
                descend(child, visit);
            }
        }
    }
    if let Ok(tree) = devtree::open(machine::get().tree) {
        descend(tree.root(), visit);
    }
}

/// The first device of a kind.
pub fn find(kind: &str) -> Option<Device> {
    let mut found = None;
    for_each(&mut |node, device| {
        if found.is_none() && node.is_compatible(kind) {
            found = Some(device);
        }
    });
    found
}

/// The UART that EL2's log has to itself: where the command line asks for it and
/// the machine has a second one.
pub fn log_uart() -> Option<u64> {
    let machine = machine::get();
    let mut second = None;
    for_each(&mut |node, device| {
        if node.is_compatible("arm,pl011") && device.okay && device.base != machine.uart {
            second = Some(device.base);
        }
    });
    second.filter(|_| machine.argument("undercroft.log") == Some("serial1"))
}

/// The checks.
pub fn checks(suite: &mut Suite<Console>) {
    allowed(suite);
    absent(suite);
    nowhere(suite);
    lpis(suite);
    own_interrupts(suite);
    odd_accesses(suite);
    calls::still_there(suite, "devices/rmi-version");
}

fn read(address: u64) -> Result<u32, Caught> {
    // SAFETY: A device's register, or the exception that is expected.
    exception::probe(|| unsafe { read32(address) })
}

/// PrimeCells tell who they are.
fn allowed(suite: &mut Suite<Console>) {
    for kind in OF_HOST {
        let device = if kind == "arm,pl011" {
            Some(machine::get().uart)
        } else {
            find(kind).filter(|device| device.okay).map(|d| d.base)
        };
        let Some(base) = device else {
            continue;
        };
        let part = read(base + 0xfe0);
        let right = part.is_ok_and(|part| matches!(part, 0x11 | 0x31 | 0x61));
        suite.check(
            "devices/primecell",
            right,
            format_args!("{kind}: {part:x?}"),
        );
    }
    let peripheral = read(machine::get().gicd + gicd::PIDR2);
    let right = peripheral.is_ok_and(|id| id >> 4 & 0xf >= 3);
    suite.check(
        "devices/distributor",
        right,
        format_args!("{peripheral:x?}"),
    );
}

/// All that the tree names besides.
fn absent(suite: &mut Suite<Console>) {
    let (mut tried, mut reached) = (0, None);
    let log = log_uart();
    for_each(&mut |node, device| {
        let kind = OF_HOST.iter().any(|kind| node.is_compatible(kind));
        let his = kind && device.okay && Some(device.base) != log;
        let gic = node.is_compatible("arm,gic-v3");
        // A transport is there where no device is in its page.
        let empty = node.is_compatible("virtio,mmio") && read(device.base + 8) == Ok(0);
        if his || gic || empty {
            return;
        }
        tried += 1;
        for at in [device.base, (device.base + device.size - 1) & !7] {
            if !kept_out(at) {
                reached.get_or_insert(at);
            }
        }
    });
    suite.check("devices/others-tried", tried >= 4, tried);
    suite.check(
        "devices/others-absent",
        reached.is_none(),
        format_args!("{reached:x?}"),
    );
}

/// Where the tree names nothing. The program maps 512 GiB.
fn nowhere(suite: &mut Suite<Console>) {
    let mut reached = None;
    let ends = machine::get().ram.iter().filter(|ram| !ram.is_empty());
    let above = ends
        .map(|ram| ram.end)
        .max()
        .unwrap_or(0)
        .next_multiple_of(2 << 20);
    // Holes, QEMU's platform bus, PCI windows, and RAM that /memory lacks.
    let places = [
        0x2000_0000u64,
        0x0c00_0000,
        0x1000_0000,
        0x3eff_0000,
        0x40_0000_0000,
        above,
    ];
    let told = machine::get().argument("unnamed").and_then(number);
    for at in places.into_iter().chain(told) {
        if !kept_out(at) {
            reached.get_or_insert(at);
        }
    }
    suite.check(
        "devices/nowhere",
        reached.is_none(),
        format_args!("{reached:x?}"),
    );
}

/// A hexadecimal number of the command line.
pub fn number(word: &str) -> Option<u64> {
    u64::from_str_radix(word.strip_prefix("0x")?, 16).ok()
}

/// GICR_CTLR, PROPBASER and PENDBASER would have the GIC use memory.
fn lpis(suite: &mut Suite<Console>) {
    let frame = redistributor(cpu::index());
    let victim = crate::masters::victims();
    for pa in victim {
        // SAFETY: Registers of this CPU's redistributor; if one takes what is
        // written, EL2 is broken, which is what is to be found out.
        let seen = unsafe {
            write64(frame + 0x70, pa | 0x1f | 7 << 7);
            write64(frame + 0x78, pa & !0xffff | 7 << 7);
            write32(frame + 0x74, (pa >> 32) as u32);
            write32(frame, 1);
            write64(frame + 0x40, 8192);
            write64(frame + 0xa0, 8192);
            write64(frame + 0xb0, 0);
            [0x70, 0x78].map(|at| read64(frame + at))
        };
        suite.check(
            "redistributor/lpi-tables",
            seen == [0, 0],
            format_args!("{seen:x?}"),
        );
        let ctlr = read(frame);
        suite.check(
            "redistributor/lpis-off",
            ctlr.is_ok_and(|v| v & 7 == 0),
            format_args!("{ctlr:x?}"),
        );
    }
    // SAFETY: Read-only.
    let typer = unsafe { read64(frame + gicr::TYPER) };
    suite.equal("redistributor/no-lpis", typer & 0xf, 0);
    let halves = [8, 12].map(|at| read(frame + at).map_or(0, u64::from));
    suite.equal(
        "redistributor/typer-in-halves",
        halves[0] | halves[1] << 32,
        typer,
    );
}

/// The PPIs and the SGI that EL2 needs: nothing that is written to them stays.
/// The guests that are run later need them.
fn own_interrupts(suite: &mut Suite<Console>) {
    const PRIORITY: u64 = gicr::SGI + gicd::IPRIORITYR;
    let frame = redistributor(cpu::index());
    // As on every machine of QEMU's, and BSA: maintenance 25, CNTHP 26.
    let own = 1 << 25 | 1 << 26;
    let all = |offset: u64, value: u32| {
        // SAFETY: This CPU's redistributor; nothing of the program's is enabled.
        unsafe { write32(frame + gicr::SGI + offset, value) };
        read(frame + gicr::SGI + offset).unwrap_or(!0)
    };
    // Where there is a secure world, groups are its own to set.
    let groups = read(machine::get().gicd + gicd::CTLR).is_ok_and(|ctlr| ctlr & 1 << 6 != 0);
    let group = all(gicd::IGROUPR, 0);
    let kept = if groups { 1 << KICK_SGI } else { 0 };
    suite.equal("redistributor/group", u64::from(group), kept);
    for offset in [gicd::ISENABLER, gicd::ISACTIVER, gicd::ISPENDR] {
        let seen = all(offset, own as u32);
        suite.equal("redistributor/not-set", u64::from(seen) & own, 0);
    }
    all(gicd::ICENABLER, !0);
    let enabled = read(frame + gicr::SGI + gicd::ISENABLER);
    suite.check(
        "redistributor/kick-stays",
        enabled == Ok(1 << KICK_SGI),
        format_args!("{enabled:x?}"),
    );
    for intid in [u64::from(KICK_SGI), 25, 26] {
        // SAFETY: As above.
        let seen = unsafe {
            let before = read8(frame + PRIORITY + intid);
            write8(frame + PRIORITY + intid, 0xf8);
            (before, read8(frame + PRIORITY + intid))
        };
        suite.check(
            "redistributor/priority",
            seen.0 == seen.1 && seen.1 != 0xf8,
            format_args!("{intid}: {seen:x?}"),
        );
    }
    // The others are the host's.
    let word = all(gicd::IGROUPR, !0);
    let others = if groups { !own & 0xffff_ffff } else { 0 };
    suite.equal("redistributor/groups", u64::from(word), others);
    // SAFETY: As above: PPI 30.
    let byte = unsafe {
        write8(frame + PRIORITY + 30, 0xa0);
        read8(frame + PRIORITY + 30)
    };
    suite.equal("redistributor/own-priority", u64::from(byte), 0xa0);
    let enabled = all(gicd::ISENABLER, 1 << 30);
    suite.equal("redistributor/own-enable", u64::from(enabled) >> 30 & 1, 1);
    all(gicd::ICENABLER, 1 << 30);
    // It stays awake.
    // SAFETY: As above.
    unsafe { write32(frame + gicr::WAKER, 2) };
    let waker = read(frame + gicr::WAKER);
    suite.check(
        "redistributor/awake",
        waker.is_ok_and(|v| v & 6 == 0),
        format_args!("{waker:x?}"),
    );
}

/// Accesses that EL2 cannot do for the host, and those that the GIC has not.
fn odd_accesses(suite: &mut Suite<Console>) {
    let frame = redistributor(cpu::index());
    let mut stopped = |name: &str, result: Result<(), Caught>| {
        let right = result.is_err_and(Caught::is_external_abort);
        suite.check(name, right, format_args!("{result:x?}"));
    };
    // SAFETY: Each is an exception that is skipped, or does nothing.
    unsafe {
        stopped(
            "redistributor/pair",
            exception::probe(
                || asm!("ldp {}, {}, [{}]", out(reg) _, out(reg) _, in(reg) frame + 8),
            ),
        );
        stopped(
            "redistributor/exclusive",
            exception::probe(|| asm!("ldxr {}, [{}]", out(reg) _, in(reg) frame + 8)),
        );
        stopped(
            "redistributor/zero-line",
            exception::probe(|| asm!("dc zva, {}", in(reg) frame)),
        );
    }
    // Behind the last one.
    let last = (0..machine::get().cpus)
        .map(redistributor)
        .max()
        .unwrap_or(frame);
    suite.check(
        "redistributor/behind-the-last",
        kept_out(last + 0x2_0000),
        "something is there",
    );
    // SAFETY: Accesses that do nothing.
    let bytes = unsafe {
        write8(frame + gicr::SGI + gicd::ISENABLER, 0xff);
        (
            read8(frame + gicr::TYPER + 4),
            read64(frame + gicr::SGI + gicd::ISENABLER),
        )
    };
    suite.check(
        "redistributor/odd-sizes",
        bytes == (0, 0),
        format_args!("{bytes:x?}"),
    );
}

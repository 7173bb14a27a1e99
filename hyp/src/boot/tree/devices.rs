//! Which devices are the host's: an allow-list.
//!
//! A device that masters memory reaches all of it past every stage 2, and one
//! that steers EL2 is EL2's. So the host has what stands in `KINDS` and nothing
//! else: interrupt translation (ITS), SMMUs, trace and debug frames, fw_cfg with
//! its DMA register, PCI, DMA engines, network controllers, flash that holds the
//! firmware of the next boot, and whatever has no name here are absent, as are
//! addresses that the tree does not name.
//!
//! Rights are given by the page. One that holds anything else besides (a device
//! that is not the host's, RAM, reserved memory, EL2's own UART, registers of a
//! node that is switched off) is not the host's either.

use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::{Node, Property};
use log::info;

use super::place::{self, Place};
use super::{Machine, Steps, TreeError};
use crate::memory::region::{Region, Regions};

/// Reads a 32-bit register of a device; `None` when nothing answers.
pub type Probe<'a> = &'a dyn Fn(u64) -> Option<u32>;

/// How much of a kind of device is the host's.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Share {
    /// All its registers.
    All,
    /// The first entry of its `reg`.
    First,
    /// All, when the transport has no device behind it.
    WithoutDevice,
    /// The name says nothing of what the device can do.
    NoWord,
}

/// The kinds: a `compatible` string, how much of it, and the reason.
const KINDS: [(&str, Share, &str); 18] = [
    ("arm,pl011", Share::All, "UART: at most asks a DMA engine"),
    ("arm,sbsa-uart", Share::All, "UART: a part of a PL011"),
    ("brcm,bcm2835-pl011", Share::All, "UART: a PL011"),
    ("ns16450", Share::All, "UART: registers alone"),
    ("ns16550", Share::All, "UART: registers alone"),
    ("ns16550a", Share::All, "UART: registers alone"),
    (
        "snps,dw-apb-uart",
        Share::All,
        "UART: at most asks a DMA engine",
    ),
    ("brcm,bcm2835-aux-uart", Share::All, "UART: registers alone"),
    ("cdns,uart-r1p8", Share::All, "UART: registers alone"),
    ("cdns,uart-r1p12", Share::All, "UART: registers alone"),
    ("xlnx,xuartps", Share::All, "UART: Cadence's"),
    ("arm,pl031", Share::All, "clock: registers alone"),
    ("arm,pl061", Share::All, "GPIO: registers alone"),
    ("arm,sp804", Share::All, "timer: registers alone"),
    ("arm,pl050", Share::All, "keyboard: registers alone"),
    // Its distributor holds settings of SPIs. Redistributors are trapped.
    ("arm,gic-v3", Share::First, "SPIs are the host's"),
    (
        "virtio,mmio",
        Share::WithoutDevice,
        "nothing there to do DMA",
    ),
    (
        "arm,primecell",
        Share::NoWord,
        "only says that there is an ID",
    ),
];

/// What of a node is the host's: every name that it has must be known, as the
/// first may stand for more than those it falls back to.
fn share(node: FdtNode<'_>) -> Option<Share> {
    let mut found = None;
    // As bytes: a name that is no text is an unknown one, too.
    let property = node.property("compatible")?;
    let names = property.value().strip_suffix(&[0])?;
    for name in names.split(|byte| *byte == 0) {
        let (_, share, _) = KINDS.iter().find(|kind| kind.0.as_bytes() == name)?;
        if *share != Share::NoWord {
            found.get_or_insert(*share);
        }
    }
    found
}

/// Registers of a virtio-mmio transport (virtio 1.3, 4.2.2).
mod virtio {
    pub const MAGIC: u64 = 0x000;
    pub const DEVICE_ID: u64 = 0x008;
    pub const SIZE: u64 = 0x100;
    /// "virt".
    pub const MAGIC_VALUE: u32 = 0x7472_6976;
}

/// Whether a virtio-mmio transport has no device, and never gets one: buses of
/// this kind are not hot-plugged.
fn is_empty_transport(at: Region, probe: Probe<'_>) -> bool {
    at.size() >= virtio::SIZE
        && at.base().is_multiple_of(4)
        && probe(at.base() + virtio::MAGIC) == Some(virtio::MAGIC_VALUE)
        && probe(at.base() + virtio::DEVICE_ID) == Some(0)
}

/// The sorting of all registers that the tree names.
struct Sorting<'a> {
    /// A UART that is EL2's alone.
    own_uart: Option<Region>,
    probe: Probe<'a>,
}

impl Sorting<'_> {
    /// Passes `sort` each of a node's registers, as the CPU addresses them, and
    /// whether they are the host's.
    fn node(
        &self,
        place: &Place<'_, '_>,
        sort: &mut dyn FnMut(Region, bool) -> Result<(), TreeError>,
    ) -> Result<(), TreeError> {
        let mut entries = place.entries().enumerate().peekable();
        if entries.peek().is_none() {
            return Ok(());
        }
        let share = share(place.node).filter(|_| place.enabled);
        for (n, entry) in entries {
            let Some(entry) = entry else { continue };
            let whole = share.and_then(|_| place.whole(entry));
            if let (Some(share), Some(region)) = (share, whole)
                && self.is_of_host(share, n, region)
            {
                sort(region, true)?;
                continue;
            }
            let mut done = Ok(());
            place.raise(entry, &mut |part| {
                done = done.and_then(|()| sort(part, false));
            });
            done?;
        }
        Ok(())
    }

    fn is_of_host(&self, share: Share, n: usize, region: Region) -> bool {
        match share {
            Share::All => self.own_uart != Some(region),
            Share::First => n == 0,
            Share::WithoutDevice => is_empty_transport(region, self.probe),
            Share::NoWord => false,
        }
    }
}

/// The host's devices, in whole pages.
///
/// # Errors
/// More ranges than a set holds.
pub fn of_host(
    fdt: Fdt<'_>,
    machine: &Machine,
    steps: &Steps,
    probe: Probe<'_>,
) -> Result<Regions, TreeError> {
    const FULL: TreeError = TreeError::ManyDevices;
    let own_uart = machine.own_uart();
    let sorting = Sorting { own_uart, probe };
    let mut named = Regions::new();
    // Those of others: as many as fit. There may be hundreds.
    let (mut others, mut all) = (Regions::new(), true);
    place::walk(fdt, &mut |place| {
        sorting.node(place, &mut |region, his| {
            let pages = region.grow_to(steps.device);
            if his {
                return named.insert(pages).map_err(|_| FULL);
            }
            all &= others.insert(pages).is_ok();
            Ok(())
        })
    })?;
    let beyond = Region::new(steps.end, u64::MAX - steps.end).unwrap_or(Region::EMPTY);
    named.remove(beyond).map_err(|_| FULL)?;

    let mut his = named.clone();
    let mut remove = |region: Region| his.remove(region.grow_to(steps.device)).map_err(|_| FULL);
    let memory = machine.memory.iter().chain(machine.reserved.iter());
    others
        .iter()
        .chain(memory)
        .try_for_each(|region| remove(*region))?;
    if !all {
        place::walk(fdt, &mut |place| {
            sorting.node(place, &mut |region, his| {
                if his { Ok(()) } else { remove(region) }
            })
        })?;
    }

    let mut lost = named;
    lost.remove_all(&his).map_err(|_| FULL)?;
    for region in lost.iter() {
        info!("devices at {region} are not the host's: they share a page with others");
    }
    Ok(his)
}

#[cfg(test)]
mod tests;

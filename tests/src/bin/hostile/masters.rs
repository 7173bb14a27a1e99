//! Devices that master memory, programmed against memory that is not the host's:
//! EL2's image and a delegated granule. Each attack is whole: where a device took
//! it, the victim would change.

use core::sync::atomic::{Ordering, fence};

use dtoolkit::standard::NodeStandard;
use rmi::vendor::RangeKind;
use tests::bare::asm::{self, read32, write32, write64};
use tests::bare::console::Console;
use tests::bare::{exception, machine};
use tests::suite::Suite;

use crate::calls::{self, SUCCESS, granule, memory_ranges};
use crate::devices::{find, for_each};
use crate::granules::{at, delegate, fill, is_zero, undelegate};

/// The granule that is delegated, and those of this host that devices read.
const VICTIM: u64 = 8;
const QUEUE: u64 = 10;
const HEADER: u64 = 12;

/// EL2's image, and the granule that is delegated meanwhile.
pub fn victims() -> [u64; 2] {
    let el2 = memory_ranges().find(|range| range.2 == RangeKind::Hypervisor as u64);
    [el2.map_or(at(VICTIM), |range| range.0), at(VICTIM)]
}

/// Accesses to a device: how many, and how many were external aborts.
#[derive(Clone, Copy, Debug, Default)]
struct Accesses {
    made: u32,
    refused: u32,
}

impl Accesses {
    fn note<R>(&mut self, access: impl FnOnce() -> R) -> Option<R> {
        self.made += 1;
        match exception::probe(access) {
            Ok(value) => Some(value),
            Err(caught) => {
                self.refused += u32::from(caught.is_external_abort());
                None
            }
        }
    }

    fn write32(&mut self, address: u64, value: u32) {
        // SAFETY: A device's register, which is to be an exception.
        self.note(|| unsafe { write32(address, value) });
    }

    fn write64(&mut self, address: u64, value: u64) {
        // SAFETY: As above.
        self.note(|| unsafe { write64(address, value) });
    }

    fn read32(&mut self, address: u64) -> Option<u32> {
        // SAFETY: As above.
        self.note(|| unsafe { read32(address) })
    }

    fn all_refused(&self) -> bool {
        self.made > 0 && self.made == self.refused
    }
}

/// The checks.
pub fn checks(suite: &mut Suite<Console>) {
    suite.equal("masters/delegate", delegate(at(VICTIM)), SUCCESS);
    for victim in victims() {
        its(suite, victim);
        fw_cfg(suite, victim);
        block_devices(suite, victim);
    }
    suite.equal("masters/undelegate", undelegate(at(VICTIM)), SUCCESS);
    let unharmed = is_zero(at(VICTIM));
    suite.check("masters/unharmed", unharmed, "a device wrote to it");
    calls::still_there(suite, "masters/rmi-version");
}

/// One MAPD: the ITS writes an entry of its device table, which is the victim.
fn its(suite: &mut Suite<Console>, victim: u64) {
    const CTLR: u64 = 0x0;
    const CBASER: u64 = 0x80;
    const CWRITER: u64 = 0x88;
    const BASER0: u64 = 0x100;
    const VALID: u64 = 1 << 63;
    let Some(its) = find("arm,gic-v3-its") else {
        suite.check("masters/its-is-there", false, "the tree names none");
        return;
    };
    let queue = at(QUEUE).next_multiple_of(0x1_0000);
    // DeviceID 1; an interrupt translation table of the host's.
    for (n, word) in [0x08 | 1 << 32, 1, VALID | queue, 0]
        .into_iter()
        .enumerate()
    {
        // SAFETY: Granules of this host's.
        unsafe { write64(queue + 8 * n as u64, word) };
    }
    asm::clean(queue, queue + 32);
    let mut accesses = Accesses::default();
    accesses.write32(its.base + CTLR, 0);
    accesses.write64(its.base + BASER0, VALID | victim);
    accesses.write64(its.base + CBASER, VALID | queue);
    accesses.write32(its.base + CTLR, 1);
    accesses.write64(its.base + CWRITER, 32);
    accesses.read32(its.base + CTLR);
    let refused = accesses.all_refused();
    suite.check(
        "masters/its",
        refused,
        format_args!("{victim:#x}: {accesses:?}"),
    );
}

/// fw_cfg's DMA copies the item "signature" to the victim.
fn fw_cfg(suite: &mut Suite<Console>, victim: u64) {
    const DMA: u64 = 0x10;
    const SELECT_AND_READ: u32 = 1 << 3 | 1 << 1;
    let Some(fw_cfg) = find("qemu,fw-cfg-mmio") else {
        suite.check("masters/fw-cfg-is-there", false, "the tree names none");
        return;
    };
    let command = at(HEADER);
    // SAFETY: A granule of this host's.
    unsafe {
        write32(command, SELECT_AND_READ.to_be());
        write32(command + 4, 4u32.to_be());
        write64(command + 8, victim.to_be());
    }
    fence(Ordering::SeqCst);
    let mut accesses = Accesses::default();
    accesses.write64(fw_cfg.base + DMA, command.to_be());
    accesses.write32(fw_cfg.base + DMA, ((command >> 32) as u32).to_be());
    accesses.write32(fw_cfg.base + DMA + 4, (command as u32).to_be());
    accesses.read32(fw_cfg.base);
    let refused = accesses.all_refused();
    suite.check(
        "masters/fw-cfg",
        refused,
        format_args!("{victim:#x}: {accesses:?}"),
    );
}

/// Every transport with a device behind it is told to read sector 0 to the
/// victim.
fn block_devices(suite: &mut Suite<Console>, victim: u64) {
    let (mut with_device, mut refused) = (0, 0);
    for_each(&mut |node, device| {
        if !node.is_compatible("virtio,mmio") {
            return;
        }
        let accesses = read_sector(device.base, victim);
        if let Some(accesses) = accesses {
            with_device += 1;
            refused += u64::from(accesses.all_refused());
        }
    });
    suite.equal("masters/virtio", refused, with_device);
    if machine::get().argument("disk").is_some() {
        suite.check(
            "masters/disk-is-there",
            with_device > 0,
            "no page has a device",
        );
    }
}

/// A legacy driver's way from reset to a read (virtio 1.3, 4.2.4); `None` where
/// no device is behind the transport.
fn read_sector(base: u64, victim: u64) -> Option<Accesses> {
    let mut accesses = Accesses::default();
    if accesses.read32(base + 0x8) == Some(0) {
        return None;
    }
    let (queue, header) = (at(QUEUE) & !0xfff, at(HEADER));
    fill(at(QUEUE), 0);
    fill(at(QUEUE) + granule(), 0);
    fill(header, 0);
    // Header, data, status: (address, length, flags NEXT 1 and WRITE 2, next).
    let chain = [
        (header, 16, 1, 1),
        (victim, 512, 3, 2),
        (header + 64, 1, 2, 0),
    ];
    for (n, (address, length, flags, next)) in (0u64..).zip(chain) {
        // SAFETY: Granules of this host's.
        unsafe {
            write64(queue + 16 * n, address);
            write32(queue + 16 * n + 8, length);
            write32(queue + 16 * n + 12, flags | next << 16);
        }
    }
    // Eight descriptors, then the available ring: one entry, descriptor 0.
    // SAFETY: As above.
    unsafe { write32(queue + 128, 1 << 16) };
    fence(Ordering::SeqCst);
    for (register, value) in [
        (0x70, 0),
        (0x70, 1),
        (0x70, 3),
        (0x20, 0),
        (0x28, 4096),
        (0x30, 0),
        (0x38, 8),
        (0x3c, 4096),
        (0x40, (queue >> 12) as u32),
        (0x70, 7),
        (0x50, 0),
    ] {
        accesses.write32(base + register, value);
    }
    if accesses.refused == 0 {
        // The device has taken it all, and answers in the used ring.
        // SAFETY: As above.
        while unsafe { read32(queue + 4096) } >> 16 == 0 {
            core::hint::spin_loop();
        }
    }
    Some(accesses)
}

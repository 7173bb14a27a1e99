//! The virtio transports of QEMU's virt machine (virtio 1.2, 4.2; QEMU
//! hw/virtio/virtio-mmio.c), each without a device behind it, as they are there when
//! nobody asks for one. No tree names them: this is for programs that read them where
//! they have always been.

/// Bytes from one transport to the next.
pub const STRIDE: u64 = 0x200;

/// MagicValue, "virt".
const MAGIC: u32 = 0x7472_6976;
/// Version of the legacy interface, which QEMU's have unless it is told otherwise.
const LEGACY: u32 = 1;
/// VendorID, "QEMU".
const VENDOR: u32 = 0x554d_4551;

/// What the register at an offset of any of them reads: DeviceID, at 8, is 0, as all that
/// a device would have. Writes change nothing.
pub const fn read(offset: u64) -> u32 {
    match offset % STRIDE {
        0 => MAGIC,
        4 => LEGACY,
        0xc => VENDOR,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::map::TRANSPORTS;

    #[test]
    fn there_are_as_many_as_on_qemus_machine() {
        assert_eq!(TRANSPORTS, 0x0a00_0000..0x0a00_0000 + 32 * STRIDE);
    }

    #[test]
    fn each_is_there_and_has_no_device() {
        for base in [0, STRIDE, 31 * STRIDE] {
            let registers = [0, 4, 8, 12, 16, 0x70, 0x100].map(|at| read(base + at));
            assert_eq!(registers, [0x7472_6976, 1, 0, 0x554d_4551, 0, 0, 0]);
        }
    }
}

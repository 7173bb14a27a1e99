//! What a plain guest finds where: the map of QEMU's virt machine (QEMU
//! hw/arm/virt.c), so that what boots there boots here without change.

use core::ops::Range;

/// Where RAM starts.
pub const RAM_BASE: u64 = guest_config::RAM_BASE;
/// GICv3 distributor; EL2 models it.
pub const GICD: Range<u64> = 0x0800_0000..0x0801_0000;
/// GICv3 redistributors, [`GICR_STRIDE`] each; EL2 models them.
pub const GICR: Range<u64> = 0x080a_0000..0x0900_0000;
/// Bytes of one redistributor.
pub const GICR_STRIDE: u64 = 0x2_0000;
/// The PL011, modelled by the host.
pub const UART: Range<u64> = 0x0900_0000..0x0900_1000;
/// The UART's interrupt, an SPI number.
pub const UART_SPI: u32 = 1;
/// The virtio transports, all empty.
pub const TRANSPORTS: Range<u64> = 0x0a00_0000..0x0a00_4000;
/// The first flash bank: the program of a guest that starts from it.
pub const FLASH_CODE: Range<u64> = 0..0x0400_0000;
/// The second flash bank, where firmware keeps its variables. A guest that starts from
/// RAM finds it blank, and its writes are lost.
pub const FLASH: Range<u64> = 0x0400_0000..0x0800_0000;
/// The part of it that firmware finds as memory.
pub const FLASH_VARIABLES: Range<u64> = 0x0400_0000..0x0408_0000;

/// The PL031, modelled by the host.
pub const CLOCK: Range<u64> = 0x0901_0000..0x0901_1000;
/// Its interrupt, an SPI number.
pub const CLOCK_SPI: u32 = 2;

/// Whether a program that is loaded there starts from flash.
pub fn is_flash(load: Option<u64>) -> bool {
    load.is_some_and(|at| FLASH_CODE.contains(&at))
}

/// The first INTID that is an SPI.
pub const FIRST_SPI: u32 = 32;
/// The UART's interrupt.
pub const UART_INTID: u32 = FIRST_SPI + UART_SPI;
/// The clock's.
pub const CLOCK_INTID: u32 = FIRST_SPI + CLOCK_SPI;

/// PPIs of the timers: secure physical, physical, virtual, hypervisor.
pub const TIMER_PPIS: [u32; 4] = [13, 14, 11, 10];

/// The region of the map that `ipa` lies in or next to, in words, for reports.
/// `ram` is the end of RAM.
pub fn nearest(ipa: u64, ram: &Range<u64>) -> (&'static str, Range<u64>, bool) {
    let regions = [
        ("flash", FLASH),
        ("GIC distributor", GICD),
        ("GIC redistributors", GICR),
        ("PL011", UART),
        ("PL031", CLOCK),
        ("virtio transports", TRANSPORTS),
        ("RAM", ram.clone()),
    ];
    let distance = |range: &Range<u64>| {
        if ipa < range.start {
            range.start - ipa
        } else if ipa >= range.end {
            ipa - range.end + 1
        } else {
            0
        }
    };
    let mut best = 0;
    for i in 1..regions.len() {
        if distance(&regions[i].1) < distance(&regions[best].1) {
            best = i;
        }
    }
    let (name, range) = regions[best].clone();
    let inside = range.contains(&ipa);
    (name, range, inside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_region_is_named() {
        let ram = RAM_BASE..RAM_BASE + (512 << 20);
        assert_eq!(nearest(0x0900_0004, &ram).0, "PL011");
        assert!(nearest(0x0900_0004, &ram).2);
        assert_eq!(nearest(0x0901_0ffc, &ram).0, "PL031");
        assert_eq!(nearest(0x0a00_4000, &ram).0, "virtio transports");
        assert_eq!(nearest(0x6000_0000, &ram).0, "RAM");
        assert!(!nearest(0x6000_0000, &ram).2);
        assert_eq!(nearest(0, &ram).0, "flash");
        assert_eq!(nearest(u64::MAX, &ram).0, "RAM");
    }
}

//! The registers of a PL011 (DDI0183) that the programs use.

use super::asm::{read32, write32};

/// Data.
pub const DR: u64 = 0x00;
/// Flags.
pub const FR: u64 = 0x18;
/// Line control.
pub const LCR_H: u64 = 0x2c;
/// Interrupt mask: a set bit lets it through.
pub const IMSC: u64 = 0x38;
/// Interrupts before the mask.
pub const RIS: u64 = 0x3c;
/// Clears interrupts.
pub const ICR: u64 = 0x44;
/// The first identification register; four each, four bytes apart.
pub const PERIPH_ID: u64 = 0xfe0;

/// FR: the transmit queue is full.
const FR_TXFF: u32 = 1 << 5;
/// FR: nothing was received.
const FR_RXFE: u32 = 1 << 4;
/// FR: the UART sends.
const FR_BUSY: u32 = 1 << 3;
/// The transmit interrupt, in IMSC, RIS and ICR.
pub const TX: u32 = 1 << 5;

/// Sends a byte when there is room.
pub fn put(base: u64, byte: u8) {
    // SAFETY: The device tree calls it a PL011; sending has no other effect.
    unsafe {
        while read32(base + FR) & FR_TXFF != 0 {
            core::hint::spin_loop();
        }
        write32(base + DR, u32::from(byte));
    }
}

/// Waits for a byte.
pub fn get(base: u64) -> u8 {
    // SAFETY: As above; what is received is nobody else's.
    unsafe {
        while read32(base + FR) & FR_RXFE != 0 {
            core::hint::spin_loop();
        }
        read32(base + DR) as u8
    }
}

/// Waits until all was sent.
pub fn flush(base: u64) {
    // SAFETY: As above.
    while unsafe { read32(base + FR) } & FR_BUSY != 0 {
        core::hint::spin_loop();
    }
}

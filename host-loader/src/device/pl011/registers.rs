//! The registers of a PL011 (Arm DDI0183 3.2).

bitflags::bitflags! {
    /// Interrupts: RIS, IMSC, MIS and ICR.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Interrupts: u32 {
        /// Modem lines: RI, CTS, DCD and DSR.
        const MODEM = 0xf;
        /// Bytes wait in the receive FIFO.
        const RX = 1 << 4;
        /// A byte was sent.
        const TX = 1 << 5;
        /// What never rises here: receive timeout and errors; and what is no
        /// interrupt, but is kept by IMSC.
        const _ = !0;
    }
}

/// Data.
pub const DR: u64 = 0x00;
/// Receive status, and what clears it.
pub const RSR: u64 = 0x04;
/// Flags.
pub const FR: u64 = 0x18;
/// IrDA's counter.
pub const ILPR: u64 = 0x20;
/// Baud rate, whole and fraction.
pub const IBRD: u64 = 0x24;
/// As above.
pub const FBRD: u64 = 0x28;
/// Line control.
pub const LCR_H: u64 = 0x2c;
/// Control.
pub const CR: u64 = 0x30;
/// Levels of the FIFOs that interrupt.
pub const IFLS: u64 = 0x34;
/// Interrupts: which are passed on.
pub const IMSC: u64 = 0x38;
/// Interrupts: those raised.
pub const RIS: u64 = 0x3c;
/// Interrupts: those raised and passed on.
pub const MIS: u64 = 0x40;
/// Interrupts: what clears them.
pub const ICR: u64 = 0x44;
/// DMA control.
pub const DMACR: u64 = 0x48;

pub const LCR_H_BRK: u32 = 1 << 0;
pub const LCR_H_FEN: u32 = 1 << 4;
pub const CR_UARTEN: u32 = 1 << 0;
pub const CR_LBE: u32 = 1 << 7;
pub const CR_DTR: u32 = 1 << 10;
pub const CR_RTS: u32 = 1 << 11;
pub const CR_OUT1: u32 = 1 << 12;
pub const CR_OUT2: u32 = 1 << 13;
/// CR at reset: receive and transmit enabled, the UART itself not.
pub const CR_RESET: u32 = 0x300;
/// DR: a break was received.
pub const DR_BREAK: u16 = 1 << 10;
pub const FR_CTS: u32 = 1 << 0;
pub const FR_DSR: u32 = 1 << 1;
pub const FR_DCD: u32 = 1 << 2;
pub const FR_BUSY: u32 = 1 << 3;
pub const FR_RXFE: u32 = 1 << 4;
pub const FR_TXFF: u32 = 1 << 5;
pub const FR_RXFF: u32 = 1 << 6;
pub const FR_TXFE: u32 = 1 << 7;
pub const FR_RI: u32 = 1 << 8;

/// A modem output of CR, the input of FR that it is looped to, its interrupt.
pub const LOOPS: [(u32, u32, u32); 4] = [
    (CR_OUT2, FR_RI, 1 << 0),
    (CR_RTS, FR_CTS, 1 << 1),
    (CR_OUT1, FR_DCD, 1 << 2),
    (CR_DTR, FR_DSR, 1 << 3),
];

/// Peripheral and cell identification, 0xfe0 to 0xffc.
pub const ID: [u8; 8] = [0x11, 0x10, 0x14, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

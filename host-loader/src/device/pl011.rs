//! A PL011 as the guest sees it (Arm DDI0183), revision r1p5 as on QEMU's virt.
//!
//! The transmit FIFO is that of whatever the bytes go to: the model shows what it
//! was last told of it ([`Pl011::set_sender`]), and its interrupt rises when a
//! byte was taken and when there is room again, until it is cleared. The receive
//! FIFO is 32 deep, 1 deep when LCR_H.FEN is 0. The receive timeout is instant
//! too: RT rises whenever bytes wait, so that a driver that set a trigger level
//! is not left waiting for more.
//!
//! The model is pure: [`Pl011::read`] and [`Pl011::write`] change state, and the
//! caller carries the byte out and asks [`Pl011::line_change`] what became of
//! the interrupt line. One lock around it is the user's.

bitflags::bitflags! {
    /// Interrupts: RIS, IMSC, MIS and ICR.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Interrupts: u32 {
        /// Receive FIFO at its trigger level.
        const RX = 1 << 4;
        /// Transmit FIFO at its trigger level.
        const TX = 1 << 5;
        /// Bytes wait in the receive FIFO.
        const RT = 1 << 6;
        /// Framing, parity, break and overrun errors.
        const ERRORS = 0xf << 7;
        /// Modem lines.
        const MODEM = 0xf;
    }
}

const DEPTH: usize = 32;

const LCR_H_FEN: u32 = 1 << 4;
const CR_LBE: u32 = 1 << 7;
/// CR at reset: receive and transmit enabled, the UART itself not.
const CR_RESET: u32 = 0x300;
const FR_CTS: u32 = 1 << 0;
const FR_DSR: u32 = 1 << 1;
const FR_DCD: u32 = 1 << 2;
const FR_BUSY: u32 = 1 << 3;
const FR_RXFE: u32 = 1 << 4;
const FR_TXFF: u32 = 1 << 5;
const FR_RXFF: u32 = 1 << 6;
const FR_TXFE: u32 = 1 << 7;

/// Peripheral and cell identification, 0xfe0 to 0xffc.
const ID: [u8; 8] = [0x11, 0x10, 0x14, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

/// The transmit side, as FR shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sender {
    /// There is no room for a byte.
    pub full: bool,
    /// No byte waits.
    pub empty: bool,
    /// A byte is on its way.
    pub busy: bool,
}

impl Sender {
    /// One that has sent everything.
    pub const IDLE: Self = Self {
        full: false,
        empty: true,
        busy: false,
    };

    const fn flags(self) -> u32 {
        (if self.full { FR_TXFF } else { 0 })
            | (if self.empty { FR_TXFE } else { 0 })
            | (if self.busy { FR_BUSY } else { 0 })
    }
}

/// The model's state.
#[derive(Clone, Debug)]
pub struct Pl011 {
    fifo: [u8; DEPTH],
    first: usize,
    waiting: usize,
    /// RT was cleared by the driver with bytes still there.
    timeout_cleared: bool,
    transmitted: bool,
    sender: Sender,
    mask: Interrupts,
    line: bool,
    ilpr: u32,
    ibrd: u32,
    fbrd: u32,
    lcr_h: u32,
    cr: u32,
    ifls: u32,
    dmacr: u32,
}

impl Default for Pl011 {
    fn default() -> Self {
        Self::new()
    }
}

impl Pl011 {
    /// A PL011 after reset.
    pub const fn new() -> Self {
        Self {
            fifo: [0; DEPTH],
            first: 0,
            waiting: 0,
            timeout_cleared: false,
            transmitted: false,
            sender: Sender::IDLE,
            mask: Interrupts::empty(),
            line: false,
            ilpr: 0,
            ibrd: 0,
            fbrd: 0,
            lcr_h: 0,
            cr: CR_RESET,
            ifls: 0x12,
            dmacr: 0,
        }
    }

    const fn depth(&self) -> usize {
        if self.lcr_h & LCR_H_FEN != 0 {
            DEPTH
        } else {
            1
        }
    }

    /// Bytes that [`receive`](Self::receive) takes now.
    pub const fn room(&self) -> usize {
        self.depth().saturating_sub(self.waiting)
    }

    /// Says how the transmit side stands.
    pub const fn set_sender(&mut self, sender: Sender) {
        self.sender = sender;
    }

    /// There is room again after there was none: the transmit interrupt rises.
    pub const fn has_room(&mut self) {
        self.transmitted = true;
    }

    /// Whether a write to the register at `offset` is a byte to send, as
    /// [`write`](Self::write) gives it.
    pub const fn sends(&self, offset: u64) -> bool {
        offset == 0 && self.cr & CR_LBE == 0
    }

    /// Puts a byte into the receive FIFO: false if it is full.
    pub fn receive(&mut self, byte: u8) -> bool {
        if self.room() == 0 {
            return false;
        }
        self.fifo[(self.first + self.waiting) % DEPTH] = byte;
        self.waiting += 1;
        self.timeout_cleared = false;
        true
    }

    /// Bytes in the receive FIFO at which RX rises, by IFLS.RXIFLSEL.
    fn trigger(&self) -> usize {
        if self.depth() == 1 {
            return 1;
        }
        match self.ifls >> 3 & 7 {
            0 => DEPTH / 8,
            1 => DEPTH / 4,
            2 => DEPTH / 2,
            3 => DEPTH * 3 / 4,
            _ => DEPTH * 7 / 8,
        }
    }

    fn raw(&self) -> Interrupts {
        let mut raw = Interrupts::empty();
        raw.set(Interrupts::TX, self.transmitted);
        raw.set(Interrupts::RX, self.waiting >= self.trigger());
        raw.set(Interrupts::RT, self.waiting > 0 && !self.timeout_cleared);
        raw
    }

    /// The interrupt line's new level, once after each change.
    #[inline]
    pub fn line_change(&mut self) -> Option<bool> {
        let level = self.raw().intersects(self.mask);
        if level == self.line {
            return None;
        }
        self.line = level;
        Some(level)
    }

    fn take(&mut self) -> u32 {
        if self.waiting == 0 {
            return 0;
        }
        let byte = self.fifo[self.first];
        self.first = (self.first + 1) % DEPTH;
        self.waiting -= 1;
        self.timeout_cleared = false;
        byte.into()
    }

    /// Reads the register at `offset` (below 4096). What is reserved is zero.
    #[inline]
    pub fn read(&mut self, offset: u64) -> u32 {
        let value = match offset & !3 {
            0x18 => {
                let mut flags = self.sender.flags() | FR_CTS | FR_DSR | FR_DCD;
                if self.waiting == 0 {
                    flags |= FR_RXFE;
                }
                if self.room() == 0 {
                    flags |= FR_RXFF;
                }
                flags
            }
            0x00 => self.take(),
            0x20 => self.ilpr,
            0x24 => self.ibrd,
            0x28 => self.fbrd,
            0x2c => self.lcr_h,
            0x30 => self.cr,
            0x34 => self.ifls,
            0x38 => self.mask.bits(),
            0x3c => self.raw().bits(),
            0x40 => (self.raw() & self.mask).bits(),
            0x48 => self.dmacr,
            id @ 0xfe0..=0xffc => ID[(id - 0xfe0) as usize / 4].into(),
            _ => 0,
        };
        value >> (8 * (offset & 3))
    }

    /// Writes the register at `offset` (below 4096): the byte to send, if any.
    /// Writes to reserved or read-only registers, and to the upper bytes of
    /// one, change nothing.
    #[inline]
    pub fn write(&mut self, offset: u64, value: u32) -> Option<u8> {
        match offset {
            0x00 => {
                self.transmitted = true;
                if self.cr & CR_LBE != 0 {
                    self.receive(value as u8);
                    return None;
                }
                return Some(value as u8);
            }
            0x20 => self.ilpr = value & 0xff,
            0x24 => self.ibrd = value & 0xffff,
            0x28 => self.fbrd = value & 0x3f,
            0x2c => {
                // The FIFO is emptied when it is switched.
                if (self.lcr_h ^ value) & LCR_H_FEN != 0 {
                    self.waiting = 0;
                }
                self.lcr_h = value & 0xff;
            }
            0x30 => self.cr = value & 0xff87,
            0x34 => self.ifls = value & 0x3f,
            0x38 => self.mask = Interrupts::from_bits_truncate(value),
            0x44 => {
                let cleared = Interrupts::from_bits_truncate(value);
                if cleared.contains(Interrupts::TX) {
                    self.transmitted = false;
                }
                if cleared.contains(Interrupts::RT) {
                    self.timeout_cleared = true;
                }
            }
            0x48 => self.dmacr = value & 7,
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DR: u64 = 0;
    const FR: u64 = 0x18;
    const LCR_H: u64 = 0x2c;
    const IMSC: u64 = 0x38;
    const RIS: u64 = 0x3c;
    const MIS: u64 = 0x40;
    const ICR: u64 = 0x44;

    #[test]
    fn it_is_identified_as_a_pl011() {
        let mut uart = Pl011::new();
        let id: u32 = (0..4).map(|i| uart.read(0xfe0 + 4 * i) << (8 * i)).sum();
        assert_eq!(id & 0xf_ffff, 0x4_1011);
        let cell: u32 = (0..4).map(|i| uart.read(0xff0 + 4 * i) << (8 * i)).sum();
        assert_eq!(cell, 0xb105_f00d);
    }

    #[test]
    fn sending_raises_tx_until_it_is_cleared() {
        let mut uart = Pl011::new();
        assert_eq!(uart.read(FR) & (FR_TXFE | 1 << 5), FR_TXFE);
        assert_eq!(uart.write(DR, 0x141), Some(0x41));
        assert_eq!(uart.line_change(), None);
        assert_eq!(uart.read(RIS), 1 << 5);
        uart.write(IMSC, 1 << 5);
        assert_eq!(uart.line_change(), Some(true));
        assert_eq!(uart.line_change(), None);
        assert_eq!(uart.read(MIS), 1 << 5);
        uart.write(ICR, 1 << 5);
        assert_eq!(uart.line_change(), Some(false));
        assert_eq!(uart.read(RIS), 0);
    }

    #[test]
    fn what_the_bytes_go_to_is_what_fr_shows() {
        let mut uart = Pl011::new();
        let mut flags = |full, empty, busy| {
            uart.set_sender(Sender { full, empty, busy });
            uart.read(FR) & 0xa8
        };
        assert_eq!(flags(true, false, true), 1 << 5 | 1 << 3);
        assert_eq!(flags(false, false, true), 1 << 3);
        assert_eq!(flags(false, true, false), 1 << 7);
    }

    #[test]
    fn room_that_comes_back_raises_tx() {
        let mut uart = Pl011::new();
        uart.write(IMSC, 1 << 5);
        uart.write(DR, 0x41);
        uart.write(ICR, 1 << 5);
        assert_eq!((uart.line_change(), uart.read(RIS)), (None, 0));
        uart.has_room();
        assert_eq!(uart.line_change(), Some(true));
    }

    #[test]
    fn only_bytes_that_leave_are_sent() {
        let mut uart = Pl011::new();
        for loopback in [0, CR_LBE] {
            uart.write(0x30, CR_RESET | loopback);
            for offset in [DR, 1, FR, LCR_H] {
                let sends = uart.sends(offset);
                assert_eq!(uart.write(offset, 1).is_some(), sends, "{offset:#x}");
            }
        }
    }

    #[test]
    fn receiving_raises_a_timeout_at_once_and_rx_at_the_trigger() {
        let mut uart = Pl011::new();
        uart.write(LCR_H, 0x70);
        uart.write(IMSC, 1 << 4 | 1 << 6);
        for i in 0..DEPTH {
            assert!(uart.receive(i as u8));
            assert_eq!(uart.read(RIS) >> 4 & 1, u32::from(i + 1 >= 16));
            assert_eq!(uart.read(RIS) >> 6 & 1, 1);
        }
        assert_eq!(uart.line_change(), Some(true));
        assert!(!uart.receive(99));
        assert_ne!(uart.read(FR) & FR_RXFF, 0);
        for i in 0..DEPTH {
            assert_eq!(uart.read(DR), i as u32);
        }
        assert_ne!(uart.read(FR) & FR_RXFE, 0);
        assert_eq!(uart.line_change(), Some(false));
        // Cleared with a byte waiting: quiet until the next one.
        uart.receive(1);
        uart.write(ICR, 1 << 6);
        assert_eq!(uart.read(RIS), 0);
        uart.receive(2);
        assert_eq!(uart.read(RIS), 1 << 6);
    }

    #[test]
    fn without_the_fifo_there_is_one_place() {
        let mut uart = Pl011::new();
        assert!(uart.receive(1));
        assert!(!uart.receive(2));
        assert_eq!(uart.read(RIS), 1 << 4 | 1 << 6);
    }

    proptest! {
        #[test]
        fn bytes_come_out_in_order_and_the_line_is_what_ris_and_imsc_say(
            steps in prop::collection::vec((0u8..4, 0u64..0x1000, any::<u32>()), 0..300),
        ) {
            let mut uart = Pl011::new();
            uart.write(LCR_H, LCR_H_FEN);
            let mut sent = std::collections::VecDeque::new();
            let mut line = false;
            for (step, offset, value) in steps {
                let value_byte = value as u8;
                if step == 0 && uart.receive(value_byte) {
                    sent.push_back(value_byte);
                } else if step == 1 && let Some(first) = sent.pop_front() {
                    prop_assert_eq!(uart.read(DR), u32::from(first));
                } else if step == 2 && offset & !3 != DR {
                    uart.read(offset);
                } else if step == 3 && offset & !3 != LCR_H && offset != DR {
                    uart.write(offset, value);
                }
                if let Some(level) = uart.line_change() {
                    prop_assert_ne!(level, line);
                    line = level;
                }
                prop_assert_eq!(line, uart.read(RIS) & uart.read(IMSC) != 0);
            }
        }
    }
    extern crate std;
}

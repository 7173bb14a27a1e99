//! A PL011 as the guest sees it (Arm DDI0183), revision r1p5 as on QEMU's virt.
//!
//! The transmit FIFO is that of whatever the bytes go to: the model shows what it
//! was last given of it ([`Pl011::set_sender`]), and its interrupt rises when a
//! byte was taken and when there is room again, until it is cleared. The receive
//! FIFO is 16 deep, 1 deep when LCR_H.FEN is 0; its interrupt rises with each
//! byte, whatever IFLS says, and falls when the FIFO is empty or it is cleared.
//! There is no receive timeout. Registers keep what is written to them, bits
//! that are reserved too. Every access is of the register that its offset lies
//! in, from that register's lowest bit on.
//!
//! One thing is otherwise: what arrives before the guest has ever enabled the
//! UART, or while it loops back to itself, waits until it can be received.
//!
//! The model is pure: [`Pl011::read`] and [`Pl011::write`] change state, and the
//! caller carries the byte out and asks [`Pl011::line_change`] what became of
//! the interrupt line. One lock around it is the user's.

mod registers;
mod sender;
mod view;

pub use sender::Sender;

use registers::*;

const DEPTH: usize = 16;

/// The model's state.
#[derive(Clone, Debug)]
pub struct Pl011 {
    /// Bytes with their errors, as DR has them.
    fifo: [u16; DEPTH],
    first: usize,
    waiting: usize,
    /// The guest has enabled the UART, now or before.
    was_enabled: bool,
    /// RIS.
    raw: Interrupts,
    /// FR's modem inputs.
    modem: u32,
    rsr: u32,
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
            was_enabled: false,
            raw: Interrupts::empty(),
            modem: 0,
            rsr: 0,
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
        if self.cr & CR_LBE != 0 {
            return 0;
        }
        self.depth().saturating_sub(self.waiting)
    }

    /// Says how the transmit side stands.
    pub const fn set_sender(&mut self, sender: Sender) {
        self.sender = sender;
    }

    /// There is room again after there was none: the transmit interrupt rises.
    pub const fn has_room(&mut self) {
        self.raw = self.raw.union(Interrupts::TX);
    }

    /// Whether a write to the register at `offset` is a byte to send, as
    /// [`write`](Self::write) gives it.
    pub const fn sends(&self, offset: u64) -> bool {
        offset & !3 == 0 && self.cr & CR_LBE == 0
    }

    /// Puts a byte into the receive FIFO: false if it is full.
    pub fn receive(&mut self, byte: u8) -> bool {
        self.room() > 0 && self.put(byte.into())
    }

    fn put(&mut self, word: u16) -> bool {
        if self.waiting >= self.depth() {
            return false;
        }
        self.fifo[(self.first + self.waiting) % DEPTH] = word;
        self.waiting += 1;
        self.raw |= Interrupts::RX;
        true
    }

    /// The interrupt line's new level, once after each change.
    #[inline]
    pub fn line_change(&mut self) -> Option<bool> {
        let level = self.raw.intersects(self.mask);
        if level == self.line {
            return None;
        }
        self.line = level;
        Some(level)
    }

    /// What DR holds. Of an empty FIFO, that is what last stood in its next place.
    fn take(&mut self) -> u32 {
        let word = u32::from(self.fifo[self.first]);
        if self.waiting > 0 {
            self.waiting -= 1;
            if self.waiting > 0 || self.depth() == DEPTH {
                self.first = (self.first + 1) % DEPTH;
            }
        }
        if self.waiting == 0 {
            self.raw -= Interrupts::RX;
        }
        self.rsr = word >> 8;
        word
    }

    fn flags(&self) -> u32 {
        let mut flags = self.sender.flags() | self.modem;
        if self.waiting == 0 {
            flags |= FR_RXFE;
        }
        if self.waiting >= self.depth() {
            flags |= FR_RXFF;
        }
        flags
    }

    /// Reads the register at `offset` (below 4096). What is reserved is zero.
    #[inline]
    pub fn read(&mut self, offset: u64) -> u32 {
        match offset & !3 {
            DR => self.take(),
            other => self.peek(other),
        }
    }

    /// The register at `offset`, if nothing ever changes it: the identification
    /// registers.
    #[inline]
    pub fn constant(offset: u64) -> Option<u32> {
        match offset & !3 {
            id @ 0xfe0..=0xffc => Some(ID[(id - 0xfe0) as usize / 4].into()),
            _ => None,
        }
    }

    /// The register at `offset`, a multiple of four, of those that no read changes.
    #[inline]
    fn peek(&self, offset: u64) -> u32 {
        match offset {
            FR => self.flags(),
            RSR => self.rsr,
            ILPR => self.ilpr,
            IBRD => self.ibrd,
            FBRD => self.fbrd,
            LCR_H => self.lcr_h,
            CR => self.cr,
            IFLS => self.ifls,
            IMSC => self.mask.bits(),
            RIS => self.raw.bits(),
            MIS => (self.raw & self.mask).bits(),
            DMACR => self.dmacr,
            other => Self::constant(other).unwrap_or(0),
        }
    }

    /// Writes the register at `offset` (below 4096): the byte to send, if any.
    /// Writes to reserved or read-only registers change nothing.
    #[inline]
    pub fn write(&mut self, offset: u64, value: u32) -> Option<u8> {
        match offset & !3 {
            DR => {
                self.raw |= Interrupts::TX;
                if self.cr & CR_LBE != 0 {
                    self.put((value & 0xff) as u16);
                    return None;
                }
                return Some(value as u8);
            }
            RSR => self.rsr = 0,
            ILPR => self.ilpr = value,
            IBRD => self.ibrd = value & 0xffff,
            FBRD => self.fbrd = value & 0x3f,
            LCR_H => self.set_line_control(value),
            CR => {
                self.cr = value;
                self.was_enabled |= value & CR_UARTEN != 0;
                self.loop_modem_lines();
            }
            IFLS => self.ifls = value,
            IMSC => self.mask = Interrupts::from_bits_retain(value),
            ICR => self.raw -= Interrupts::from_bits_retain(value),
            DMACR => self.dmacr = value,
            _ => {}
        }
        None
    }

    fn set_line_control(&mut self, value: u32) {
        let changed = self.lcr_h ^ value;
        // The FIFO is emptied when it is switched.
        if changed & LCR_H_FEN != 0 && self.was_enabled {
            (self.first, self.waiting) = (0, 0);
        }
        self.lcr_h = value;
        if changed & value & LCR_H_BRK != 0 && self.cr & CR_LBE != 0 {
            self.put(DR_BREAK);
        }
    }

    /// While the UART loops back, its modem outputs are its inputs.
    fn loop_modem_lines(&mut self) {
        if self.cr & CR_LBE == 0 {
            return;
        }
        self.modem = 0;
        self.raw -= Interrupts::MODEM;
        for (output, input, interrupt) in LOOPS {
            if self.cr & output != 0 {
                self.modem |= input;
                self.raw |= Interrupts::from_bits_retain(interrupt);
            }
        }
    }
}

#[cfg(test)]
mod tests;

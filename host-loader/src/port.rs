//! A PL011 of the machine: bytes out, bytes in, and what of it interrupts.
//!
//! Firmware or EL2 has set speed and format; the host leaves them. Nothing here
//! waits: a byte for which there is no room is not taken. One lock around each
//! port is the user's (`machine`).

use crate::device::pl011::Sender;
use arm_pl011_uart::{FifoLevel, Interrupts, PL011Registers, Uart};
use core::ptr::NonNull;
use safe_mmio::UniqueMmioPointer;
use spin::Mutex;

/// Offset of UARTCR (Arm DDI0183 3.3.8), which the driver only sets as a whole.
const CR: usize = 0x30;
/// UARTEN, TXE and RXE.
const CR_ENABLE: u32 = 1 | 1 << 8 | 1 << 9;

/// The machine's first UART, where it has one.
pub type SharedPort = Mutex<Option<Port>>;

/// A UART, mapped and the host's alone.
pub struct Port {
    uart: Uart<'static>,
    receiving: bool,
    /// Somebody waits for room.
    awaited: bool,
}

impl Port {
    /// The PL011 at `base`.
    ///
    /// # Safety
    /// The registers are mapped as Device at `base`, and no one else in the
    /// host has a port on them. EL2 may send through the same UART.
    pub unsafe fn new(base: u64) -> Option<Self> {
        let registers: NonNull<PL011Registers> =
            NonNull::new(core::ptr::with_exposed_provenance_mut(base as usize))?;
        let control = core::ptr::with_exposed_provenance_mut::<u32>(base as usize + CR);
        // SAFETY: The caller's contract; the enable bits take nothing away.
        unsafe {
            let now = control.read_volatile();
            if now & CR_ENABLE != CR_ENABLE {
                control.write_volatile(now | CR_ENABLE);
            }
        }
        // SAFETY: The caller's contract.
        let mut uart = Uart::new(unsafe { UniqueMmioPointer::new(registers) });
        uart.set_interrupt_masks(Interrupts::empty());
        uart.set_interrupt_fifo_levels(FifoLevel::Bytes4, FifoLevel::Bytes4);
        Some(Self {
            uart,
            receiving: false,
            awaited: false,
        })
    }

    /// Sends a byte: false, and nothing is sent, when there is no room. Room
    /// interrupts then.
    #[inline]
    pub fn put(&mut self, byte: u8) -> bool {
        let room = self.has_room();
        if room {
            self.uart.write_word(byte);
        }
        room
    }

    /// There is room for a byte. If not, room interrupts.
    #[inline]
    pub fn has_room(&mut self) -> bool {
        !self.uart.is_tx_fifo_full() || self.await_room()
    }

    /// How it stands with what was sent. If there is no room, room interrupts.
    #[inline]
    pub fn sender(&mut self) -> Sender {
        let full = !self.has_room();
        Sender {
            full,
            empty: !full && self.uart.is_tx_fifo_empty(),
            busy: full || self.uart.is_busy(),
        }
    }

    /// Everything that was sent has left.
    pub fn is_idle(&self) -> bool {
        !self.uart.is_busy()
    }

    /// Has room interrupt, if it does not yet: true if there is some already.
    fn await_room(&mut self) -> bool {
        if self.awaited || !self.look_again() {
            self.set_interrupts(self.receiving, true);
            return false;
        }
        true
    }

    /// True if there is room now. If not, the interrupt comes once there is: it
    /// comes when the FIFO sinks to its level (DDI0183 2.8.2), so what it did
    /// before the look must not count, and what it does after it must.
    fn look_again(&mut self) -> bool {
        self.uart.clear_interrupts(Interrupts::TXI);
        !self.uart.is_tx_fifo_full()
    }

    /// There is room for somebody who waits; nobody does any more then.
    pub fn has_room_for_a_waiter(&mut self) -> bool {
        if !self.awaited || (self.uart.is_tx_fifo_full() && !self.look_again()) {
            return false;
        }
        self.set_interrupts(self.receiving, false);
        true
    }

    /// The next byte that was received. Damaged ones are dropped.
    pub fn get(&mut self) -> Option<u8> {
        loop {
            match self.uart.read_word() {
                Ok(byte) => return byte,
                Err(_) => continue,
            }
        }
    }

    /// Received bytes interrupt, or wait in the FIFO and hold up the sender.
    pub fn set_receiving(&mut self, on: bool) {
        self.set_interrupts(on, self.awaited);
    }

    fn set_interrupts(&mut self, receiving: bool, awaited: bool) {
        if (self.receiving, self.awaited) == (receiving, awaited) {
            return;
        }
        (self.receiving, self.awaited) = (receiving, awaited);
        let mut mask = Interrupts::empty();
        if receiving {
            mask |= Interrupts::RXI | Interrupts::RTI;
        }
        if awaited {
            mask |= Interrupts::TXI;
        }
        self.uart.set_interrupt_masks(mask);
    }

    /// Received bytes interrupt.
    pub fn receiving(&self) -> bool {
        self.receiving
    }
}

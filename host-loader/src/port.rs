//! A PL011 of the machine: bytes out, bytes in, and whether bytes interrupt.
//!
//! Firmware or EL2 has set speed and format; the host leaves them. One lock
//! around each port is the user's (`machine`).

use arm_pl011_uart::{FifoLevel, Interrupts, PL011Registers, Uart};
use core::ptr::NonNull;
use safe_mmio::UniqueMmioPointer;

/// Offset of UARTCR (Arm DDI0183 3.3.8), which the driver only sets as a whole.
const CR: usize = 0x30;
/// UARTEN, TXE and RXE.
const CR_ENABLE: u32 = 1 | 1 << 8 | 1 << 9;

/// A UART, mapped and the host's alone.
pub struct Port {
    uart: Uart<'static>,
    receiving: bool,
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
        })
    }

    /// Sends a byte, once there is room for it.
    #[inline]
    pub fn put(&mut self, byte: u8) {
        while self.uart.is_tx_fifo_full() {
            core::hint::spin_loop();
        }
        self.uart.write_word(byte);
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
        if self.receiving != on {
            self.receiving = on;
            self.uart.set_interrupt_masks(if on {
                Interrupts::RXI | Interrupts::RTI
            } else {
                Interrupts::empty()
            });
        }
    }

    /// Received bytes interrupt.
    pub fn receiving(&self) -> bool {
        self.receiving
    }
}

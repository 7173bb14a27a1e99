//! The PL011 (Arm DDI0183) of the log.

use core::ptr::NonNull;

use arm_pl011_uart::{FifoLevel, Interrupts, PL011Registers, Uart, UniqueMmioPointer};

use super::drain::Port;

/// UARTCR (DDI0183, 3.3.8), which the driver sets as a whole.
const CR: usize = 0x30;
/// UARTIBRD, UARTFBRD and UARTLCR_H, which it sets with the FIFOs on.
const IBRD: usize = 0x24;
const FBRD: usize = 0x28;
const LCR_H: usize = 0x2c;
/// UARTCR: UARTEN and TXE.
const ENABLED: u32 = 1 | 1 << 8;
/// UARTCR: RXE.
const RECEIVES: u32 = 1 << 9;
/// UARTLCR_H: the FIFOs are on.
const FEN: u32 = 1 << 4;
/// UARTLCR_H: WLEN of 8 bits.
const EIGHT_BITS: u32 = 0b11 << 5;

/// The first of the peripheral's identification registers, four bytes apart; and
/// part number and designer in them, whatever the revision (DDI0183, 3.3.14).
const PERIPH_ID: u64 = 0xfe0;
const PL011: u32 = 0x4_1011;

/// Whether a PL011 answers at `base`. `read`: of a register, `None` where nothing
/// answers.
pub fn answers(base: u64, read: &dyn Fn(u64) -> Option<u32>) -> bool {
    let end = base.checked_add(PERIPH_ID + 16);
    let byte = |n: u64| Some((read(base + PERIPH_ID + 4 * n)? & 0xff) << (8 * n));
    let id = || Some(byte(0)? | byte(1)? | byte(2)?);
    base.is_multiple_of(4) && end.is_some() && id().is_some_and(|id| id & 0xf_ffff == PL011)
}

/// Whose a UART is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// EL2 alone: it receives, too, and has the UART interrupt.
    El2,
    /// The host, which may do with it whatever it likes.
    Host,
}

/// A PL011.
pub struct Pl011 {
    uart: Uart<'static>,
    base: NonNull<PL011Registers>,
    owner: Owner,
    /// It interrupts when it has room.
    awaited: bool,
}

// SAFETY: the pointer is to device registers, which any CPU may use; the lock
// around the log's sender makes them one's at a time.
unsafe impl Send for Pl011 {}

impl Pl011 {
    /// The PL011 at `base`. One that the firmware has left off is set up.
    ///
    /// # Safety
    /// `base` is the address of a PL011 that nobody else in EL2 drives, and
    /// stays mapped at this address. An access may fault.
    pub unsafe fn new(base: u64, owner: Owner) -> Option<Self> {
        let base: NonNull<PL011Registers> =
            NonNull::new(core::ptr::with_exposed_provenance_mut(base as usize))?;
        let mut pl011 = Self {
            // SAFETY: the caller's promise.
            uart: Uart::new(unsafe { UniqueMmioPointer::new(base) }),
            base,
            owner,
            awaited: false,
        };
        if pl011.control() & ENABLED != ENABLED {
            pl011.enable();
        }
        if owner == Owner::El2 {
            pl011
                .uart
                .set_interrupt_fifo_levels(FifoLevel::Bytes4, FifoLevel::Bytes4);
            pl011.set_interrupts();
        }
        Some(pl011)
    }

    /// Turns on a UART that the firmware has left off, so that its line settings
    /// say nothing: 115200 8N1, from the 24 MHz that Arm's platforms have. The
    /// FIFOs stay as they are: turning them on would drop a byte that was
    /// received already, and that is a guest's.
    fn enable(&mut self) {
        let [cr, ibrd, fbrd, lcr_h] = [CR, IBRD, FBRD, LCR_H].map(|at| self.register(at));
        // SAFETY: `new`'s promise.
        unsafe {
            cr.write_volatile(0);
            ibrd.write_volatile(13);
            fbrd.write_volatile(1);
            lcr_h.write_volatile(lcr_h.read_volatile() & FEN | EIGHT_BITS);
            cr.write_volatile(ENABLED | RECEIVES);
        }
    }

    fn register(&self, offset: usize) -> *mut u32 {
        self.base.as_ptr().cast::<u32>().wrapping_add(offset / 4)
    }

    fn control_register(&self) -> *mut u32 {
        self.register(CR)
    }

    fn control(&self) -> u32 {
        // SAFETY: `new`'s promise; reading it has no effect.
        unsafe { self.control_register().read_volatile() }
    }

    /// Turns it on again if its owner has turned it off: what follows are the
    /// machine's last words.
    pub fn revive(&mut self) {
        let control = self.control();
        if control & ENABLED != ENABLED {
            // SAFETY: `new`'s promise; the host does not go on.
            unsafe { self.control_register().write_volatile(control | ENABLED) };
        }
    }

    /// It still sends.
    pub fn is_busy(&self) -> bool {
        self.uart.is_busy()
    }

    /// Interrupts, or no longer, when it has room. Only EL2's own does.
    pub fn await_room(&mut self, awaited: bool) {
        if self.owner == Owner::Host {
            return;
        }
        if awaited && self.is_full() {
            // It had room before; the next time counts (DDI0183, 2.8.2).
            self.uart.clear_interrupts(Interrupts::TXI);
        }
        if self.awaited != awaited {
            self.awaited = awaited;
            self.set_interrupts();
        }
    }

    fn set_interrupts(&mut self) {
        let received = Interrupts::RXI | Interrupts::RTI;
        self.uart.set_interrupt_masks(if self.awaited {
            received | Interrupts::TXI
        } else {
            received
        });
    }

    /// Takes what was received, as far as it fits: how many bytes. The last one
    /// that is taken ends the interrupt. `None` when the UART is not EL2's.
    pub fn receive(&mut self, to: &mut [u8]) -> Option<usize> {
        if self.owner != Owner::El2 {
            return None;
        }
        let mut count = 0;
        // Damaged bytes count as looks.
        for _ in 0..2 * to.len() {
            match self.uart.read_word() {
                Ok(Some(byte)) => {
                    to[count] = byte;
                    count += 1;
                }
                Ok(None) => break,
                Err(_) => {}
            }
            if count == to.len() {
                break;
            }
        }
        Some(count)
    }
}

impl Port for Pl011 {
    fn is_full(&self) -> bool {
        self.uart.is_tx_fifo_full()
    }

    fn put(&mut self, byte: u8) {
        self.uart.write_word(byte);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pl011_is_known_by_its_number_and_designer() {
        let with = |id: u32| {
            move |at: u64| {
                let n = (at - 0x1000 - PERIPH_ID) / 4;
                Some(0xffff_ff00 | id >> (8 * n) & 0xff)
            }
        };
        for (id, is_one) in [
            (0x0014_1011, true),
            (0x0034_1011, true),
            (0x0014_1031, false),
            (0, false),
            (!0, false),
        ] {
            assert_eq!(answers(0x1000, &with(id)), is_one, "{id:#x}");
        }
        assert!(!answers(0x1000, &|_| None), "nothing is there");
        assert!(!answers(0x1002, &|_| unreachable!("an odd address")));
        assert!(!answers(!3, &|_| unreachable!("beyond all")));
    }
}

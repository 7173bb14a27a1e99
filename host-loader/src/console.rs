//! Where a guest's UART leads: to the machine's first UART for the one guest
//! that owns it, to the log, line by line, for the others.
//!
//! Input waits where it is, in the machine's UART, while the guest's FIFO is
//! full, and holds up its sender: nothing is lost, and nothing is buffered here.

use crate::device::pl011::Pl011;
use crate::life::Guest;
use crate::machine::Machine;
use crate::port::Port;
use crate::rmi_call;
use alloc::string::String;
use alloc::vec::Vec;
use rmi::vendor::LOG_LINE_MAX;

/// A guest's line in the log is cut here; the name and a word go before it.
const LINE: usize = LOG_LINE_MAX as usize - 48;

/// A guest's UART and its other end.
pub struct Console {
    /// The model.
    pub uart: Pl011,
    owner: bool,
    line: Vec<u8>,
}

impl Console {
    /// A console; `owner` of the machine's first UART, or logged.
    pub const fn new(owner: bool) -> Self {
        Self {
            uart: Pl011::new(),
            owner,
            line: Vec::new(),
        }
    }

    /// The byte that the guest sent.
    #[inline]
    fn send(&mut self, guest: &Guest, machine: &Machine, byte: u8) {
        if self.owner {
            if let Some(port) = machine.console.lock().as_mut() {
                port.put(byte);
            }
            return;
        }
        match byte {
            b'\n' => self.flush(&guest.name),
            b'\r' => {}
            _ => {
                self.line.push(byte);
                if self.line.len() >= LINE {
                    self.flush(&guest.name);
                }
            }
        }
    }

    /// Logs what the guest wrote of a line.
    pub fn flush(&mut self, name: &str) {
        if !self.line.is_empty() {
            log::info!("guest {name}: {}", String::from_utf8_lossy(&self.line));
            self.line.clear();
        }
    }

    /// The guest reads the register at `offset`.
    #[inline]
    pub fn read(&mut self, guest: &Guest, machine: &Machine, offset: u64) -> u64 {
        let room = self.uart.room();
        let value = self.uart.read(offset);
        self.refill(machine, room);
        self.signal(guest);
        value.into()
    }

    /// Takes more input in, if there is more room than `before` and it waits.
    #[inline]
    fn refill(&mut self, machine: &Machine, before: usize) {
        if self.owner
            && self.uart.room() > before
            && let Some(port) = machine.console.lock().as_mut()
            && !port.receiving()
        {
            self.fill(port);
        }
    }

    /// The guest writes the register at `offset`.
    #[inline]
    pub fn write(&mut self, guest: &Guest, machine: &Machine, offset: u64, value: u64) {
        let room = self.uart.room();
        match self.uart.write(offset, value as u32) {
            Some(byte) => self.send(guest, machine, byte),
            None => self.refill(machine, room),
        }
        self.signal(guest);
    }

    /// Moves what waits in the machine's UART, as much as fits; the rest
    /// interrupts again when there is room.
    fn fill(&mut self, port: &mut Port) {
        while self.uart.room() > 0 {
            match port.get() {
                Some(byte) => {
                    self.uart.receive(byte);
                }
                None => {
                    port.set_receiving(true);
                    return;
                }
            }
        }
        port.set_receiving(false);
    }

    #[inline]
    fn signal(&mut self, guest: &Guest) {
        if let Some(level) = self.uart.line_change() {
            let intid = crate::guest::map::FIRST_SPI + crate::guest::map::UART_SPI;
            if let Err(error) = rmi_call::set_spi(guest.rd, intid, level) {
                log::error!("guest {}: UART interrupt: {error}", guest.name);
            }
        }
    }
}

/// The machine's first UART has received something: the guest that owns it
/// gets it; with no such guest it waits.
pub fn input(machine: &Machine) {
    let guest = machine.console_guest.lock().clone();
    match guest {
        Some(guest) => {
            let mut console = guest.console.lock();
            if let Some(port) = machine.console.lock().as_mut() {
                console.fill(port);
            }
            console.signal(&guest);
        }
        None => {
            if let Some(port) = machine.console.lock().as_mut() {
                port.set_receiving(false);
            }
        }
    }
}

/// Has received bytes interrupt: there is a guest for them.
pub fn listen(machine: &Machine) {
    if let Some(port) = machine.console.lock().as_mut() {
        port.set_receiving(true);
    }
}

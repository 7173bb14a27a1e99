//! Where a guest's UART leads: to the machine's first UART for the one guest
//! that owns it, to the log, line by line, for the others.
//!
//! Output goes straight into the machine's UART, and while that is full the
//! guest's is: FR says so, and a write that comes all the same is not done yet;
//! the guest executes it again. So nothing is lost, and it is the guest's time
//! that passes. Input waits where it is, in the machine's UART, while the guest's FIFO is
//! full, and holds up its sender: nothing is lost, and nothing is buffered here.

use crate::arch::insn;
use crate::device::pl011::{Pl011, Sender};
use crate::life::Guest;
use crate::logger;
use crate::machine::Machine;
use crate::port::Port;
use crate::rmi_call;
use crate::transcript::Transcript;
use log::Level;

/// FR, whose transmit side is the machine's UART's.
const FR: u64 = 0x18;

/// A part of a second that the machine's end waits for bytes that were sent.
const SETTLE_PART: u64 = 10;
/// Looks at the UART meanwhile, at most: were the counter to stand still.
const SETTLE_LOOKS: u32 = 1_000_000;

/// A guest's UART and its other end.
pub struct Console {
    /// The model.
    pub uart: Pl011,
    owner: bool,
    transcript: Transcript,
}

impl Console {
    /// A console; `owner` of the machine's first UART, or logged.
    pub const fn new(owner: bool) -> Self {
        Self {
            uart: Pl011::new(),
            owner,
            transcript: Transcript::new(),
        }
    }

    /// Takes the byte that the guest sends: false when there is no room.
    #[inline]
    fn send(&mut self, guest: &Guest, machine: &Machine, byte: u8) -> bool {
        if self.owner {
            let mut port = machine.console.lock();
            return port.as_mut().is_none_or(|port| port.put(byte));
        }
        if let Some(text) = self.transcript.push(byte) {
            guest.log(Level::Info, format_args!("{text}"));
        }
        true
    }

    /// Logs what the guest `name` wrote of a line.
    pub fn flush(&mut self, name: &str) {
        if let Some(text) = self.transcript.flush() {
            logger::of_guest(name, Level::Info, format_args!("{text}"));
        }
    }

    /// The guest reads the register at `offset`.
    #[inline]
    pub fn read(&mut self, guest: &Guest, machine: &Machine, offset: u64) -> u64 {
        let room = self.uart.room();
        if self.owner && offset & !3 == FR {
            let mut port = machine.console.lock();
            let sender = port.as_mut().map_or(Sender::IDLE, Port::sender);
            self.uart.set_sender(sender);
        }
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

    /// The guest writes the register at `offset`: false when it must write again,
    /// since there is no room for the byte.
    #[inline]
    #[must_use]
    pub fn write(&mut self, guest: &Guest, machine: &Machine, offset: u64, value: u64) -> bool {
        if self.uart.sends(offset) && !self.send(guest, machine, value as u8) {
            return false;
        }
        let room = self.uart.room();
        self.uart.write(offset, value as u32);
        self.refill(machine, room);
        self.signal(guest);
        true
    }

    /// Whether a write to the register at `offset` can be done now.
    pub fn takes(&self, machine: &Machine, offset: u64) -> bool {
        !self.owner
            || !self.uart.sends(offset)
            || machine
                .console
                .lock()
                .as_mut()
                .is_none_or(|port| !port.sender().full)
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
                guest.log(Level::Error, format_args!("UART interrupt: {error}"));
            }
        }
    }
}

/// The machine's first UART has received something, or has room again: the guest
/// that owns it is told; with no such guest, what was received waits.
pub fn input(machine: &Machine) {
    let guest = machine.console_guest.lock().clone();
    match guest {
        Some(guest) => {
            let mut console = guest.console.lock();
            if let Some(port) = machine.console.lock().as_mut() {
                if port.receiving() {
                    console.fill(port);
                }
                if port.has_room_for_a_waiter() {
                    console.uart.has_room();
                }
            }
            console.signal(&guest);
        }
        None => {
            if let Some(port) = machine.console.lock().as_mut() {
                port.has_room_for_a_waiter();
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

/// Waits, not for long, until the console has sent what it has: the machine goes
/// off.
pub fn settle(machine: &Machine) {
    let end = insn::cntpct() + insn::cntfrq() / SETTLE_PART;
    for _ in 0..SETTLE_LOOKS {
        let console = machine.console.lock();
        if console.as_ref().is_none_or(Port::is_idle) || insn::cntpct() > end {
            return;
        }
    }
}

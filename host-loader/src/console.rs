//! Where a guest's UART leads: to the machine's first UART for the one guest
//! that owns it, to the log, line by line, for the others.
//!
//! Output goes straight into the machine's UART, and while that is full the
//! guest's is: FR says so, and a write that comes all the same is not begun; the
//! guest executes it again. So nothing is lost or said twice, and it is the guest's
//! time that passes. Of a write that was begun, the few bytes that find no room any
//! more wait here, before all others. Input waits where it is, in the machine's
//! UART, while the guest's FIFO is full, and holds up its sender: nothing is lost,
//! and nothing of it is buffered here.

use crate::device::owed::Owed;
use crate::device::pl011::{Pl011, Sender};
use crate::life::Guest;
use crate::logger;
use crate::machine::Machine;
use crate::port::Port;
use crate::rmi_call;
use crate::transcript::Transcript;
use arm64::regs::{CNTFRQ_EL0, CNTPCT_EL0};
use log::Level;
use posted::Page;

/// DR, and FR, whose transmit side is the machine's UART's.
const DR: u64 = 0x00;
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
    owed: Owed,
    transcript: Transcript,
}

impl Console {
    /// A console; `owner` of the machine's first UART, or logged.
    pub const fn new(owner: bool) -> Self {
        Self {
            uart: Pl011::new(),
            owner,
            owed: Owed::NOTHING,
            transcript: Transcript::new(),
        }
    }

    /// Takes the byte that the guest sends.
    #[inline]
    fn send(&mut self, guest: &Guest, machine: &Machine, byte: u8) {
        if self.owner {
            if let Some(port) = machine.console.lock().as_mut() {
                self.owed.send(byte, |byte| port.put(byte));
            }
        } else {
            self.log(guest, byte);
        }
    }

    /// Sends what is owed: whether that was all. If not, room interrupts.
    #[inline]
    fn pay(&mut self, port: &mut Port) -> bool {
        self.owed.pay(|byte| port.put(byte))
    }

    /// Waits, not for long, until nothing is owed: the guest is gone.
    pub fn settle(&mut self, machine: &Machine) {
        within_bounds(|| {
            let mut port = machine.console.lock();
            port.as_mut().is_none_or(|port| self.pay(port))
        });
    }

    /// Logs what the guest `name` wrote of a line.
    pub fn flush(&mut self, name: &str) {
        if let Some(text) = self.transcript.flush() {
            logger::of_guest(name, Level::Info, format_args!("{text}"));
        }
    }

    /// Takes what waits in the guest's page, and then lets it be accessed without
    /// the host again: false if not all could be taken.
    #[inline]
    pub fn catch_up(&mut self, guest: &Guest, machine: &Machine) -> bool {
        let all = self.close(guest, machine);
        self.open(guest, machine, all);
        all
    }

    /// Has every access be the host's, and takes what waits: false if there is no
    /// room for all of it.
    #[inline]
    fn close(&mut self, guest: &Guest, machine: &Machine) -> bool {
        let Some(page) = guest.posted() else {
            return true;
        };
        page.close();
        while !page.is_empty() {
            self.send_posted(guest, machine, page);
            match page.next() {
                // There is no room for it.
                Some(write) if self.uart.sends(write.offset()) => return false,
                Some(write) => {
                    self.set(guest, machine, write.offset(), write.value());
                    page.taken();
                }
                None => {}
            }
        }
        true
    }

    /// Takes bytes to send, as far as they come one after the other and have room.
    #[inline]
    fn send_posted(&mut self, guest: &Guest, machine: &Machine, page: &Page) {
        if !self.uart.sends(DR) {
            return;
        }
        let taken = if self.owner {
            let mut port = machine.console.lock();
            if port.as_mut().is_some_and(|port| !self.pay(port)) {
                return;
            }
            match port.as_mut() {
                Some(port) => {
                    page.take(|write| write.offset() == DR && port.put(write.value() as u8))
                }
                None => page.take(|write| write.offset() == DR),
            }
        } else {
            page.take(|write| {
                let sends = write.offset() == DR;
                if sends {
                    self.log(guest, write.value() as u8);
                }
                sends
            })
        };
        // What many bytes do to the model, one does.
        if taken != 0 {
            self.uart.write(DR, 0);
        }
    }

    /// Logs the line that ends with this byte.
    #[inline]
    fn log(&mut self, guest: &Guest, byte: u8) {
        if let Some(text) = self.transcript.push(byte) {
            guest.log(Level::Info, format_args!("{text}"));
        }
    }

    /// Signals what has become of the interrupt and, unless something waits for
    /// room, shows what can be accessed without the host.
    #[inline]
    fn open(&mut self, guest: &Guest, machine: &Machine, all_taken: bool) {
        self.signal(guest);
        if !all_taken {
            return;
        }
        if let Some(page) = guest.posted() {
            self.ask_sender(machine);
            page.show(&self.uart.view());
        }
    }

    /// Asks how it stands with what the bytes go to.
    #[inline]
    fn ask_sender(&mut self, machine: &Machine) {
        if self.owner {
            let mut port = machine.console.lock();
            let sender = port.as_mut().map_or(Sender::IDLE, |port| {
                if self.pay(port) {
                    port.sender()
                } else {
                    Sender::FULL
                }
            });
            self.uart.set_sender(sender);
        }
    }

    /// The guest reads the register at `offset`.
    #[inline]
    pub fn read(&mut self, guest: &Guest, machine: &Machine, offset: u64) -> u32 {
        let all = self.close(guest, machine);
        let room = self.uart.room();
        if offset & !3 == FR {
            self.ask_sender(machine);
        }
        let value = self.uart.read(offset);
        self.refill(machine, room);
        self.open(guest, machine, all);
        value
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

    /// The guest writes the register at `offset`, by an instruction that could
    /// [begin](Self::takes).
    #[inline]
    pub fn write(&mut self, guest: &Guest, machine: &Machine, offset: u64, value: u32) {
        let all = self.close(guest, machine);
        self.set(guest, machine, offset, value);
        self.open(guest, machine, all);
    }

    /// The register at `offset` is written.
    #[inline]
    fn set(&mut self, guest: &Guest, machine: &Machine, offset: u64, value: u32) {
        let room = self.uart.room();
        if let Some(byte) = self.uart.write(offset, value) {
            self.send(guest, machine, byte);
        }
        self.refill(machine, room);
    }

    /// Whether a write from the register at `offset` on can begin: not while
    /// there is no room for the byte that it sends, or for those that were posted
    /// before.
    #[inline]
    pub fn takes(&mut self, guest: &Guest, machine: &Machine, offset: u64) -> bool {
        if !self.catch_up(guest, machine) {
            return false;
        }
        if !self.owner || !self.uart.sends(offset) {
            return true;
        }
        let mut port = machine.console.lock();
        port.as_mut()
            .is_none_or(|port| self.pay(port) && port.has_room())
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

/// After an exit: takes what the guest's vCPUs have written meanwhile.
#[inline]
pub fn take(machine: &Machine, guest: &Guest) {
    if guest.posted().is_some_and(|page| !page.is_empty()) {
        guest.console.lock().catch_up(guest, machine);
    }
}

/// The machine's first UART has received something, or has room again: the guest
/// that owns it is told; with no such guest, what was received waits.
pub fn input(machine: &Machine) {
    // Held until all is done: whoever takes the guest apart takes it from here first,
    // so its page and its realm are there.
    match &*machine.console_guest.lock() {
        Some(guest) => {
            let mut console = guest.console.lock();
            if let Some(port) = machine.console.lock().as_mut() {
                if port.receiving() {
                    console.fill(port);
                }
                if port.has_room_for_a_waiter() && console.pay(port) {
                    console.uart.has_room();
                }
            }
            console.catch_up(guest, machine);
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
    within_bounds(|| machine.console.lock().as_ref().is_none_or(Port::is_idle));
}

/// Asks until it is so, or there has been time enough.
fn within_bounds(mut is_so: impl FnMut() -> bool) {
    let end = CNTPCT_EL0.get() + CNTFRQ_EL0.get() / SETTLE_PART;
    for _ in 0..SETTLE_LOOKS {
        if is_so() || CNTPCT_EL0.get() > end {
            return;
        }
    }
}

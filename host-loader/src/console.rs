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
use crate::logger;
use crate::port::{Port, SharedPort};
use crate::rmi_call;
use crate::transcript::Transcript;
use alloc::sync::Arc;
use arm64::regs::{CNTFRQ_EL0, CNTPCT_EL0};
use log::Level;
use posted::Page;
use spin::Mutex;

/// DR, and FR, whose transmit side is the machine's UART's.
const DR: u64 = 0x00;
const FR: u64 = 0x18;

/// A part of a second that the machine's end waits for bytes that were sent.
const SETTLE_PART: u64 = 10;
/// Looks at the UART meanwhile, at most: were the counter to stand still.
const SETTLE_LOOKS: u32 = 1_000_000;

/// The page of a UART's accesses that need not wait for the host, if it has one.
#[derive(Clone, Copy)]
pub struct PostedPage(Option<*const Page>);

// SAFETY: What the page holds is atomic.
unsafe impl Send for PostedPage {}
// SAFETY: As above.
unsafe impl Sync for PostedPage {}

impl PostedPage {
    /// This page.
    ///
    /// # Safety
    /// A page is there as long as anybody looks at it through this value or a copy.
    pub const unsafe fn new(page: Option<*const Page>) -> Self {
        Self(page)
    }

    /// The page.
    #[inline]
    pub fn get(&self) -> Option<&Page> {
        // SAFETY: As `new`'s caller says.
        self.0.map(|page| unsafe { &*page })
    }
}

/// The interrupt of a guest's UART.
#[derive(Clone, Copy)]
pub struct Line {
    /// The guest's realm descriptor, PA.
    pub rd: u64,
    /// The INTID.
    pub intid: u32,
}

/// A guest's UART and its other end.
pub struct Console {
    /// The model.
    uart: Pl011,
    /// The guest's name, for the log.
    name: Arc<str>,
    line: Line,
    page: PostedPage,
    /// The machine's UART, if that is the guest's; else what it writes is logged.
    port: Option<&'static SharedPort>,
    owed: Owed,
    transcript: Transcript,
}

impl Console {
    /// The console of the guest `name`, which leads to `port` or to the log.
    pub const fn new(
        name: Arc<str>,
        line: Line,
        page: PostedPage,
        port: Option<&'static SharedPort>,
    ) -> Self {
        Self {
            uart: Pl011::new(),
            name,
            line,
            page,
            port,
            owed: Owed::NOTHING,
            transcript: Transcript::new(),
        }
    }

    /// Takes the byte that the guest sends.
    #[inline]
    fn send(&mut self, byte: u8) {
        if let Some(port) = self.port {
            if let Some(port) = port.lock().as_mut() {
                self.owed.send(byte, |byte| port.put(byte));
            }
        } else {
            self.log(byte);
        }
    }

    /// Sends what is owed: whether that was all. If not, room interrupts.
    #[inline]
    fn pay(&mut self, port: &mut Port) -> bool {
        self.owed.pay(|byte| port.put(byte))
    }

    /// Bytes that are owed, when what there is room for has been sent.
    pub fn owes(&mut self) -> u64 {
        if let Some(port) = self.port
            && let Some(port) = port.lock().as_mut()
        {
            self.pay(port);
        }
        self.owed.count()
    }

    /// Logs what the guest wrote of a line.
    pub fn flush(&mut self) {
        if let Some(text) = self.transcript.flush() {
            logger::of_guest(&self.name, Level::Info, format_args!("{text}"));
        }
    }

    /// Takes what waits in the guest's page, and then lets it be accessed without
    /// the host again: false if not all could be taken.
    #[inline]
    pub fn catch_up(&mut self) -> bool {
        let all = self.close();
        self.open(all);
        all
    }

    /// Has every access be the host's, and takes what waits: false if there is no
    /// room for all of it.
    #[inline]
    fn close(&mut self) -> bool {
        let posted = self.page;
        let Some(page) = posted.get() else {
            return true;
        };
        page.close();
        while !page.is_empty() {
            self.send_posted(page);
            match page.next() {
                // There is no room for it.
                Some(write) if self.uart.sends(write.offset()) => return false,
                Some(write) => {
                    self.set(write.offset(), write.value());
                    page.taken();
                }
                None => {}
            }
        }
        true
    }

    /// Takes bytes to send, as far as they come one after the other and have room.
    #[inline]
    fn send_posted(&mut self, page: &Page) {
        if !self.uart.sends(DR) {
            return;
        }
        let taken = if let Some(port) = self.port {
            let mut port = port.lock();
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
                    self.log(write.value() as u8);
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
    fn log(&mut self, byte: u8) {
        if let Some(text) = self.transcript.push(byte) {
            logger::of_guest(&self.name, Level::Info, format_args!("{text}"));
        }
    }

    /// Signals what has become of the interrupt and, unless something waits for
    /// room, shows what can be accessed without the host.
    #[inline]
    fn open(&mut self, all_taken: bool) {
        self.signal();
        if !all_taken {
            return;
        }
        let posted = self.page;
        if let Some(page) = posted.get() {
            self.ask_sender();
            page.show(&self.uart.view());
        }
    }

    /// Reads the state of what the bytes go to.
    #[inline]
    fn ask_sender(&mut self) {
        if let Some(port) = self.port {
            let mut port = port.lock();
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
    pub fn read(&mut self, offset: u64) -> u32 {
        // Whatever waits.
        if let Some(value) = Pl011::constant(offset) {
            return value;
        }
        let all = self.close();
        let room = self.uart.room();
        if offset & !3 == FR {
            self.ask_sender();
        }
        let value = self.uart.read(offset);
        self.refill(room);
        self.open(all);
        value
    }

    /// Takes more input in, if there is more room than `before` and it waits.
    #[inline]
    fn refill(&mut self, before: usize) {
        if let Some(port) = self.port
            && self.uart.room() > before
            && let Some(port) = port.lock().as_mut()
            && !port.receiving()
        {
            self.fill(port);
        }
    }

    /// The guest writes the register at `offset`, by an instruction that could
    /// [begin](Self::takes).
    #[inline]
    pub fn write(&mut self, offset: u64, value: u32) {
        let all = self.close();
        self.set(offset, value);
        self.open(all);
    }

    /// The register at `offset` is written.
    #[inline]
    fn set(&mut self, offset: u64, value: u32) {
        let room = self.uart.room();
        if let Some(byte) = self.uart.write(offset, value) {
            self.send(byte);
        }
        self.refill(room);
    }

    /// Whether a write from the register at `offset` on can begin: not while
    /// there is no room for the byte that it sends, or for those that were posted
    /// before.
    #[inline]
    pub fn takes(&mut self, offset: u64) -> bool {
        if !self.catch_up() {
            return false;
        }
        let Some(port) = self.port.filter(|_| self.uart.sends(offset)) else {
            return true;
        };
        let mut port = port.lock();
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
    fn signal(&mut self) {
        if let Some(level) = self.uart.line_change() {
            let Line { rd, intid } = self.line;
            if let Err(error) = rmi_call::set_spi(rd, intid, level) {
                let text = format_args!("UART interrupt: {error}");
                logger::of_guest(&self.name, Level::Error, text);
            }
        }
    }
}

/// The machine's first UART has received something, or has room again: it is the
/// guest's whose console this is; without one, what was received waits.
pub fn input(port: &SharedPort, owner: Option<&Mutex<Console>>) {
    match owner {
        Some(console) => {
            let mut console = console.lock();
            if let Some(port) = port.lock().as_mut() {
                if port.receiving() {
                    console.fill(port);
                }
                if port.has_room_for_a_waiter() && console.pay(port) {
                    console.uart.has_room();
                }
            }
            console.catch_up();
        }
        None => {
            if let Some(port) = port.lock().as_mut() {
                port.has_room_for_a_waiter();
                port.set_receiving(false);
            }
        }
    }
}

/// Has received bytes interrupt: there is a guest for them.
pub fn listen(port: &SharedPort) {
    if let Some(port) = port.lock().as_mut() {
        port.set_receiving(true);
    }
}

/// Waits, not for long, until the console has sent what it has: the machine goes
/// off.
pub fn settle(port: &SharedPort) {
    within_bounds(|| port.lock().as_ref().is_none_or(Port::is_idle));
}

/// Polls until it is so, or there has been time enough.
fn within_bounds(mut is_so: impl FnMut() -> bool) {
    let end = CNTPCT_EL0.get() + CNTFRQ_EL0.get() / SETTLE_PART;
    for _ in 0..SETTLE_LOOKS {
        if is_so() || CNTPCT_EL0.get() > end {
            return;
        }
    }
}

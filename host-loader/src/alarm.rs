//! A guest's clock at work: it goes by the machine's, and its alarm is an SPI, which the
//! CPU raises that first has a turn to choose when it is due ([`sched`](crate::sched)).

use crate::clock::Time;
use crate::device::bus;
use crate::device::clock::Clock;
use crate::rmi_call;
use alloc::sync::Arc;
use arm64::instr;
use arm64::regs::{CNTP_CTL_EL0, CNTP_CVAL_EL0};
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use spin::Mutex;

/// Clocks that have an alarm to come: most of the time none has.
static ARMED: AtomicUsize = AtomicUsize::new(0);

/// Whether any guest's clock has an alarm to come.
#[inline]
pub fn is_any() -> bool {
    ARMED.load(Ordering::Acquire) != 0
}

/// Has this CPU's timer, which calls the host out of a guest, call by then.
fn call_by(at: u64) {
    let on = CNTP_CTL_EL0.get() & 1 != 0;
    if at != u64::MAX && !(on && CNTP_CVAL_EL0.get() <= at) {
        CNTP_CVAL_EL0.set(at);
        CNTP_CTL_EL0.set(1);
        instr::isb();
    }
}

/// A guest's clock.
#[derive(Debug)]
pub struct WallClock {
    device: Arc<Mutex<Clock>>,
    time: Time,
    /// The guest's RD, and the interrupt there.
    line: (u64, u32),
    /// What EL2 has been told of the interrupt; under the device's lock.
    told: AtomicBool,
    /// The physical counter's value when the alarm is due; `u64::MAX` without one.
    due: AtomicU64,
}

impl WallClock {
    /// That of a guest that begins: its own `device`, which no reset sets, with this
    /// interrupt of this RD's.
    pub fn new(device: Arc<Mutex<Clock>>, time: Time, line: (u64, u32)) -> Self {
        let clock = Self {
            device,
            time,
            line,
            told: AtomicBool::new(false),
            due: AtomicU64::new(u64::MAX),
        };
        clock.look();
        clock
    }

    /// The physical counter's value when somebody must [`look`](Self::look).
    #[inline]
    pub fn due(&self) -> u64 {
        self.due.load(Ordering::Acquire)
    }

    /// Time has passed.
    pub fn look(&self) {
        let mut device = self.device.lock();
        device.pass(self.time.now());
        self.settle(&device);
    }

    /// Reads a piece of its registers.
    pub fn read(&self, offset: u64, size: u64) -> u64 {
        let (mut device, now) = (self.device.lock(), self.time.now());
        device.pass(now);
        self.settle(&device);
        bus::read_piece(offset, size, |at| device.read(at & !3, now))
    }

    /// Writes one. This CPU is called for its alarm at the latest when that is due.
    pub fn write(&self, offset: u64, size: u64, value: u64) {
        let mut device = self.device.lock();
        let now = self.time.now();
        for (at, value) in bus::writes_of_piece(offset, size, value) {
            device.write(at & !3, value, now);
        }
        self.settle(&device);
        call_by(self.due());
    }

    fn set_due(&self, due: u64) {
        let before = self.due.swap(due, Ordering::AcqRel);
        match (before == u64::MAX, due == u64::MAX) {
            (true, false) => _ = ARMED.fetch_add(1, Ordering::AcqRel),
            (false, true) => _ = ARMED.fetch_sub(1, Ordering::AcqRel),
            _ => {}
        }
    }

    fn settle(&self, device: &Clock) {
        let due = device.alarm().map(|at| self.time.counter_at(at));
        self.set_due(due.unwrap_or(u64::MAX));
        let level = device.line();
        let (rd, intid) = self.line;
        if self.told.load(Ordering::Relaxed) != level {
            match rmi_call::set_spi(rd, intid, level) {
                Ok(()) => self.told.store(level, Ordering::Relaxed),
                Err(error) => log::error!("the interrupt of a guest's clock: {error}"),
            }
        }
    }
}

impl Drop for WallClock {
    fn drop(&mut self) {
        self.set_due(u64::MAX);
    }
}

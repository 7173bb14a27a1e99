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

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use alloc::boxed::Box;
    use alloc::rc::Rc;
    use alloc::vec::Vec;
    use arm64::recording;
    use arm64::regs::{CNTFRQ_EL0, CNTPCT_EL0};
    use core::cell::{Cell, RefCell};
    use rmi::vendor::Vendor;

    const DR: u64 = 0;
    const MR: u64 = 4;
    const IMSC: u64 = 0x10;
    const RIS: u64 = 0x14;
    const ICR: u64 = 0x1c;

    /// The levels of interrupt 34 of the RD at 0x5000 that EL2 has been told, and whether
    /// it refuses to be told.
    #[derive(Clone, Default)]
    struct El2 {
        told: Rc<RefCell<Vec<bool>>>,
        refuses: Rc<Cell<bool>>,
    }

    /// One tick of the counter a second, from 100 on.
    fn clock(device: &Arc<Mutex<Clock>>) -> (WallClock, El2) {
        recording::reset();
        recording::set(CNTFRQ_EL0, 1);
        recording::set(CNTPCT_EL0, 100);
        let el2 = El2::default();
        let el2s = el2.clone();
        let line = |level: u64| {
            Vendor::SetSpi {
                rd: 0x5000,
                intid: 34,
                level,
            }
            .encode()
        };
        recording::answer_calls(Box::new(move |call| {
            let level = [0, 1].map(line).iter().position(|of| of[..4] == call[..4]);
            let level = level.expect("a call for this interrupt") == 1;
            if el2s.refuses.get() {
                return [1; 5];
            }
            el2s.told.borrow_mut().push(level);
            [0; 5]
        }));
        let time = Time::from_unix(1000);
        (WallClock::new(device.clone(), time, (0x5000, 34)), el2)
    }

    #[test]
    fn an_alarm_is_told_once_when_it_is_due_and_once_when_it_is_cleared() {
        let (clock, el2) = clock(&Arc::default());
        assert_eq!(clock.read(DR, 4), 1000);
        clock.write(MR, 4, 1010);
        assert_eq!(clock.due(), u64::MAX, "it is masked");
        clock.write(IMSC, 4, 1);
        assert_eq!(clock.due(), 110);
        assert!(is_any());
        for (now, told) in [(109, 0), (110, 1), (111, 1)] {
            recording::set(CNTPCT_EL0, now);
            clock.look();
            assert_eq!(el2.told.borrow().len(), told, "at {now}");
        }
        assert_eq!(clock.due(), u64::MAX);
        clock.write(ICR, 4, 1);
        assert_eq!(*el2.told.borrow(), [true, false]);
    }

    /// Who waits for it by looking needs nobody else to look.
    #[test]
    fn a_read_finds_the_alarm_that_has_come() {
        let (clock, el2) = clock(&Arc::default());
        clock.write(IMSC, 4, 1);
        clock.write(MR, 4, 1010);
        recording::set(CNTPCT_EL0, 110);
        assert_eq!(clock.read(RIS, 4), 1);
        assert_eq!(*el2.told.borrow(), [true]);
    }

    /// A register answers, and takes, an access of any of its bytes.
    #[test]
    fn a_byte_is_its_registers() {
        let (clock, _) = clock(&Arc::default());
        clock.write(MR + 1, 1, 0x1234);
        for byte in 0..4 {
            assert_eq!(clock.read(MR + byte, 1), 0x1234);
            assert_eq!(clock.read(DR + byte, 1), 1000);
        }
    }

    #[test]
    fn what_el2_refused_is_told_again() {
        let (clock, el2) = clock(&Arc::default());
        el2.refuses.set(true);
        clock.write(IMSC, 4, 1);
        clock.write(MR, 4, 1000);
        assert!(el2.told.borrow().is_empty());
        el2.refuses.set(false);
        clock.read(DR, 4);
        assert_eq!(*el2.told.borrow(), [true]);
    }

    /// Its clock goes on over a reset, and the next realm hears of what has come.
    #[test]
    fn a_guest_that_begins_anew_is_told_of_what_has_come() {
        let device = Arc::default();
        let (before, el2) = clock(&device);
        before.write(IMSC, 4, 1);
        before.write(MR, 4, 1000);
        assert_eq!(*el2.told.borrow(), [true]);
        drop(before);
        let (_clock, el2) = clock(&device);
        assert_eq!(*el2.told.borrow(), [true]);
    }

    #[test]
    fn who_sets_an_alarm_is_called_for_it_if_nothing_calls_before() {
        let timer = || (CNTP_CTL_EL0.get(), CNTP_CVAL_EL0.get());
        let (clock, _) = clock(&Arc::default());
        clock.write(IMSC, 4, 1);
        assert_eq!(timer(), (0, 0), "there is no alarm");
        clock.write(MR, 4, 1010);
        assert_eq!(timer(), (1, 110));
        clock.write(MR, 4, 1020);
        assert_eq!(timer(), (1, 110), "what was to come before still does");
        recording::set(CNTP_CVAL_EL0, 115);
        clock.write(MR, 4, 1012);
        assert_eq!(timer(), (1, 112));
    }
}

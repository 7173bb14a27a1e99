//! The log: every line of EL2 and of the host, in a ring and on the UART.
//!
//! A line goes into the ring, and the UART follows: at once while EL2 boots, then
//! whenever the host takes its turn on any CPU ([`turn`]). A line that a guest
//! causes waits until then. Nothing waits for the UART without a bound, and
//! nobody waits for somebody who does.
//!
//! Lock protocol: one lock around the ring, held while bytes are copied and no
//! longer; one around the sender, which is only tried: who does not get it leaves
//! its line to the one who has it, who looks again behind it. The sender takes the
//! ring's lock, never the other way round. Before there is a second CPU (and
//! before the MMU is on, when exclusive accesses need not work) neither is taken.
//! A report of EL2's own death breaks both.

pub mod drain;
pub mod line;
pub mod once;
pub mod ring;
pub mod trace;
pub mod uart;

use arm64::regs::{CNTFRQ_EL0, CNTPCT_EL0, affinity};
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

use ::rmi::end::{End, How, Token};
use log::{Level, LevelFilter, Log, Metadata, Record};
use spin::mutex::{SpinMutex, SpinMutexGuard};

use crate::early::Early;
use drain::{Drain, Patience};
use line::Text;
use ring::{Ring, Taken};
use uart::{Owner, Pl011};

/// How often a lock is tried whose owner never keeps it for longer than a line
/// takes to copy, unless it has died.
const TRIES: u32 = 100_000;

/// Tries between two looks at the clock: more than a microsecond has time for.
const TRIES_AT_ONCE: u32 = 100;

/// The UARTs that the machine has for the log.
#[derive(Clone, Copy, Debug)]
pub struct Uarts {
    /// Where the log goes, and whose that is.
    pub log: Option<(u64, Owner)>,
    /// Where EL2's last words go if that one faults.
    pub spare: Option<u64>,
}

static RING: SpinMutex<Ring> = SpinMutex::new(Ring::new());
static SENDER: SpinMutex<Drain<Pl011>> = SpinMutex::new(Drain::new(None));

/// Set once more than one CPU may log.
static SHARED: AtomicBool = AtomicBool::new(false);
/// Set once the host takes turns.
static HOST_RUNS: AtomicBool = AtomicBool::new(false);
/// Set when the last line was said, and while the machine goes off: nothing that
/// others would still say comes behind it.
static CLOSED: AtomicBool = AtomicBool::new(false);
/// Bytes in the ring so far, and bytes sent.
static WRITTEN: AtomicU64 = AtomicU64::new(0);
static SENT: AtomicU64 = AtomicU64::new(0);
/// Bytes of lines that did not get the ring.
static REFUSED: AtomicU64 = AtomicU64::new(0);
/// The CPU that is at the UART now, as [`me`] has it, or 0: a fault that it
/// takes is the UART's.
static AT_UART: AtomicU64 = AtomicU64::new(0);
/// The spare UART, and 0 once it was used.
static SPARE: AtomicU64 = AtomicU64::new(0);
static TOKEN: Early<Token> = Early::new();

struct Facade;

impl Log for Facade {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            line("hyp ", record.level(), *record.args());
        }
    }

    fn flush(&self) {}
}

/// Starts the log; without a UART, lines go to the ring only. `token` goes into
/// the machine's last line.
///
/// # Safety
/// No other PE runs. The addresses are those of PL011s that nobody else in EL2
/// drives, and they stay mapped where they are.
pub unsafe fn start(uarts: Uarts, token: Option<Token>) {
    // SAFETY: the caller's promise. Beginning once more changes nothing.
    let _ = unsafe {
        token.map(|token| TOKEN.set(token));
        log::set_logger_racy(&Facade)
    };
    SPARE.store(uarts.spare.unwrap_or(0), Ordering::Relaxed);
    log::set_max_level(LevelFilter::Info);
    if let Some((base, owner)) = uarts.log {
        // SAFETY: the caller's promise.
        unsafe { follow(base, owner) };
    }
}

/// Has the PL011 at `base` send what the ring holds from here on, and what is
/// there already.
///
/// # Safety
/// As for [`start`].
pub unsafe fn follow(base: u64, owner: Owner) {
    // SAFETY: the caller's promise.
    let port = || unsafe { Pl011::new(base, owner) };
    with(&SENDER, |sender| at_uart(|| sender.port = port()));
}

/// Says that other CPUs may log from now on.
pub fn share() {
    SHARED.store(true, Ordering::Release);
}

/// More than one CPU may log.
pub fn is_shared() -> bool {
    SHARED.load(Ordering::Acquire)
}

/// Says that the host takes turns from now on.
pub fn host_runs() {
    HOST_RUNS.store(true, Ordering::Release);
}

/// Writes one line: time, who, level, text.
pub fn line(who: &str, level: Level, text: fmt::Arguments<'_>) {
    write(who, level, text, || sole(&RING, TRIES));
    if !HOST_RUNS.load(Ordering::Relaxed) {
        send(Patience::BOOT);
    }
}

/// Puts a line into the ring that `ring` gets. What is said behind the last line
/// is not missed.
fn write(
    who: &str,
    level: Level,
    text: fmt::Arguments<'_>,
    ring: impl FnOnce() -> Option<Sole<Ring>>,
) {
    if CLOSED.load(Ordering::Relaxed) {
        return;
    }
    let mut line = Text::<{ line::LONGEST }>::new();
    // What does not fit is cut.
    let _ = line::head(&mut line, uptime_us(), who, level).and_then(|()| line.write_fmt(text));
    line.end_line();
    let bytes = line.as_bytes();
    match ring() {
        Some(mut ring) => {
            ring.push(bytes);
            WRITTEN.store(ring.written(), Ordering::Release);
        }
        None => {
            REFUSED.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        }
    }
}

/// The ring, for what must not be lost: whoever has it may not run for a while.
fn ring_at_last() -> Option<Sole<Ring>> {
    sole_within(&RING, Patience::LAST.total)
}

/// Writes the last line, and sends all that waits.
pub fn end(how: How) {
    let token = token();
    let text = End { token, how };
    write("hyp ", Level::Error, format_args!("{text}"), ring_at_last);
    flush();
}

/// One line of the host's. Its last one is the log's.
pub fn of_host(level: Level, text: &str) {
    if End::parse(text, token()).is_some() {
        write("host", level, format_args!("{text}"), ring_at_last);
        CLOSED.store(true, Ordering::Relaxed);
    } else {
        line("host", level, format_args!("{text}"));
    }
}

/// What the log is owed while the host has its turn on this CPU: some of what
/// waits is sent.
#[inline]
pub fn turn() {
    if is_behind() {
        send(Patience::TURN);
    }
}

/// The same for a call that has written a line, which pays for it.
pub fn written() {
    if is_behind() {
        send(Patience::CALL);
    }
}

/// Something waits to be sent.
#[inline]
pub fn is_behind() -> bool {
    WRITTEN.load(Ordering::Relaxed) != SENT.load(Ordering::Relaxed)
}

/// Sends all that waits, does what turns the machine off, and goes on if the
/// firmware did not.
pub fn closing<R>(off: impl FnOnce() -> R) -> R {
    CLOSED.store(true, Ordering::Relaxed);
    flush();
    let result = off();
    CLOSED.store(false, Ordering::Relaxed);
    result
}

/// Sends all that waits.
fn flush() {
    let Some(mut sender) = sole_within(&SENDER, Patience::LAST.total) else {
        return;
    };
    at_uart(|| {
        sender.hope();
        send_last(&mut sender, &mut Lines(ring_at_last));
    });
}

/// Sends as much as a last turn may, and waits until it has left the UART.
fn send_last(sender: &mut Drain<Pl011>, lines: &mut impl drain::Source) {
    let begun = uptime_us();
    sender.drain(lines, &Counter, Patience::LAST);
    for _ in 0..Patience::LAST.total {
        let late = uptime_us().saturating_sub(begun) > Patience::LAST.total.into();
        if late || !sender.port.as_ref().is_some_and(Pl011::is_busy) {
            break;
        }
        core::hint::spin_loop();
    }
}

/// What the log's UART has received, as far as it fits: how many bytes. While
/// it is in use elsewhere none, and its interrupt stays. `None` when it is not
/// EL2's own.
pub fn receive(to: &mut [u8]) -> Option<usize> {
    let received = with(&SENDER, |sender| {
        at_uart(|| sender.port.as_mut().and_then(|port| port.receive(to)))
    });
    // A line that was left to this CPU meanwhile is for the turn behind this call.
    fence(Ordering::SeqCst);
    received.unwrap_or(Some(0))
}

/// Sends some of what waits, or leaves it to whoever is at it.
///
/// That one may have looked for the last time, and no other turn may come for long. So
/// who leaves a line has stored it before it looks at the lock, and who lets go of the
/// lock looks for lines behind that: one of them sees the other. The fences have each
/// look behind the store before it.
fn send(mut patience: Patience) {
    while let Some(bytes) = send_once(patience) {
        fence(Ordering::SeqCst);
        if !is_behind() {
            return;
        }
        // Others' lines, time and again, are not paid for without a bound.
        patience.bytes = patience.bytes.saturating_sub(bytes.max(1));
    }
}

/// The same once: how many bytes have gone, or `None` if somebody else is at it, or the
/// UART calls when it has room for what is left.
fn send_once(patience: Patience) -> Option<usize> {
    fence(Ordering::SeqCst);
    let mut sender = sole(&SENDER, 1)?;
    let (before, there) = (sender.sent(), WRITTEN.load(Ordering::Relaxed));
    at_uart(|| {
        sender.drain(&mut Lines(|| sole(&RING, TRIES)), &Counter, patience);
        let left = sender.sent() != WRITTEN.load(Ordering::Relaxed);
        if let Some(port) = &mut sender.port {
            port.await_room(left);
        }
    });
    SENT.store(sender.sent(), Ordering::Relaxed);
    let went = (sender.sent() - before) as usize;
    (sender.sent() >= there).then_some(went)
}

/// Access to what a lock guards, by the lock or because nobody else is there.
enum Sole<T: 'static> {
    Locked(SpinMutexGuard<'static, T>),
    Alone(&'static mut T),
}

impl<T> core::ops::Deref for Sole<T> {
    type Target = T;
    fn deref(&self) -> &T {
        match self {
            Self::Locked(guard) => guard,
            Self::Alone(content) => content,
        }
    }
}

impl<T> core::ops::DerefMut for Sole<T> {
    fn deref_mut(&mut self) -> &mut T {
        match self {
            Self::Locked(guard) => guard,
            Self::Alone(content) => content,
        }
    }
}

/// Tries so often for what `lock` guards.
fn sole<T>(lock: &'static SpinMutex<T>, tries: u32) -> Option<Sole<T>> {
    if !is_shared() {
        // SAFETY: one CPU runs, and it is in no other `sole` of this lock: the
        // sender borrows the ring for a copy, and nothing borrows the sender
        // twice. So nobody else has the content.
        return Some(Sole::Alone(unsafe { &mut *lock.as_mut_ptr() }));
    }
    for _ in 0..tries {
        if let Some(guard) = lock.try_lock() {
            return Some(Sole::Locked(guard));
        }
        core::hint::spin_loop();
    }
    None
}

/// Waits so many microseconds for what `lock` guards: its owner may be at the
/// UART, and others may want to be.
fn sole_within<T>(lock: &'static SpinMutex<T>, micros: u32) -> Option<Sole<T>> {
    let begun = uptime_us();
    // So many tries count as a microsecond where no counter counts.
    for _ in 0..micros {
        if let Some(content) = sole(lock, TRIES_AT_ONCE) {
            return Some(content);
        }
        if uptime_us().saturating_sub(begun) > micros.into() {
            return None;
        }
    }
    None
}

/// Gives `f` what `lock` guards; `None` when its owner does not let go.
fn with<T, R>(lock: &'static SpinMutex<T>, f: impl FnOnce(&mut T) -> R) -> Option<R> {
    sole(lock, TRIES).map(|mut content| f(&mut content))
}

/// Marks this CPU as the one at the UART while `f` runs.
fn at_uart<R>(f: impl FnOnce() -> R) -> R {
    AT_UART.store(me(), Ordering::Relaxed);
    let result = f();
    AT_UART.store(0, Ordering::Relaxed);
    result
}

fn me() -> u64 {
    affinity() + 1
}

/// The log in the hands of a CPU that reports EL2's death: what is written goes
/// into the ring, and out when it is sent.
pub struct LastWords {
    ring: &'static mut Ring,
    sender: &'static mut Drain<Pl011>,
    /// The log's UART faulted under this CPU.
    pub uart_faulted: bool,
}

/// Takes the log away from everybody, for good. If the UART has killed this CPU,
/// the spare one takes its place.
pub fn last_words() -> LastWords {
    let uart_faulted = AT_UART.load(Ordering::Relaxed) == me();
    let (ring, sender) = (seize(&RING), seize(&SENDER));
    // SAFETY: there is one CPU, or this one has the locks for good, or whoever had
    // one stops at its next entry to EL2 or has died, and then at worst a
    // character of the report is garbled. What this CPU took before, for a report
    // that it died of, it does not use again.
    let (ring, sender) = unsafe { (&mut *ring, &mut *sender) };
    let mut words = LastWords {
        ring,
        sender,
        uart_faulted,
    };
    if uart_faulted {
        AT_UART.store(0, Ordering::Relaxed);
        words.use_spare();
    }
    words
}

/// Takes what `lock` guards: waits a while for who has it, and keeps everybody
/// else out.
fn seize<T>(lock: &'static SpinMutex<T>) -> *mut T {
    if let Some(Sole::Locked(guard)) = sole_within(lock, Patience::LAST.stall) {
        SpinMutexGuard::leak(guard);
    }
    lock.as_mut_ptr()
}

impl LastWords {
    /// Sends all that waits, to the spare UART if the log's does not take it.
    pub fn send(&mut self) {
        let Self { ring, sender, .. } = self;
        at_uart(|| {
            if let Some(port) = &mut sender.port {
                port.revive();
            }
            sender.hope();
            send_last(sender, &mut Held(ring));
        });
        if self.sender.sent() < self.ring.written() && self.use_spare() {
            let Self { ring, sender, .. } = self;
            at_uart(|| send_last(sender, &mut Held(ring)));
        }
    }

    /// Goes on with the spare UART, once, or with none: false then.
    fn use_spare(&mut self) -> bool {
        let base = SPARE.load(Ordering::Relaxed);
        SPARE.store(0, Ordering::Relaxed);
        self.sender.replace(None);
        at_uart(|| {
            // SAFETY: `start`'s promise; nobody has a driver for it until here.
            let mut port = unsafe { Pl011::new(base, Owner::Host) };
            if let Some(port) = &mut port {
                port.revive();
            }
            self.sender.replace(port);
        });
        self.sender.port.is_some()
    }
}

impl Write for LastWords {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for part in s.split_inclusive('\n') {
            let (text, end) = match part.strip_suffix('\n') {
                Some(text) => (text, &b"\r\n"[..]),
                None => (part, &b""[..]),
            };
            self.ring.push(text.as_bytes());
            self.ring.push(end);
        }
        Ok(())
    }
}

/// The token that the machine's last line has.
pub fn token() -> Option<Token> {
    TOKEN.get().copied()
}

/// The ring of who has taken it.
struct Held<'a>(&'a Ring);

impl drain::Source for Held<'_> {
    fn read(&mut self, from: u64, to: &mut [u8]) -> Option<Taken> {
        Some(self.0.read(from, to))
    }

    fn refused(&mut self) -> u64 {
        let refused = REFUSED.load(Ordering::Relaxed);
        REFUSED.store(0, Ordering::Relaxed);
        refused
    }
}

/// The ring, as the sender sees it, and how the sender gets it.
struct Lines<F>(F);

impl<F: Fn() -> Option<Sole<Ring>>> drain::Source for Lines<F> {
    fn read(&mut self, from: u64, to: &mut [u8]) -> Option<Taken> {
        Some(self.0()?.read(from, to))
    }

    fn refused(&mut self) -> u64 {
        if REFUSED.load(Ordering::Relaxed) == 0 {
            return 0;
        }
        REFUSED.swap(0, Ordering::Relaxed)
    }
}

struct Counter;

impl drain::Clock for Counter {
    fn micros(&self) -> Option<u64> {
        (CNTFRQ_EL0.get() != 0).then(uptime_us)
    }
}

/// Microseconds since the counter started.
pub fn uptime_us() -> u64 {
    let frequency = CNTFRQ_EL0.get().max(1);
    let count = u128::from(CNTPCT_EL0.get());
    (count * 1_000_000 / u128::from(frequency)) as u64
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::string::String;
    use std::thread;

    /// On a loaded machine, whoever has the ring may not run for long.
    #[test]
    fn the_last_line_waits_for_who_has_the_ring() {
        share();
        host_runs();
        let text = std::format!(
            "{}",
            End {
                token: None,
                how: How::Status(7)
            }
        );
        thread::scope(|scope| {
            let ring = RING.lock();
            let writer = scope.spawn(|| of_host(Level::Info, &text));
            // Far longer than a line waits.
            for _ in 0..100 * u64::from(TRIES) {
                core::hint::spin_loop();
            }
            drop(ring);
            writer.join().unwrap();
        });
        line("host", Level::Info, format_args!("more"));
        let mut bytes = [0; 4096];
        let ring = RING.lock();
        let from = ring.written().saturating_sub(bytes.len() as u64);
        let count = ring.read(from, &mut bytes).count;
        let told = String::from_utf8_lossy(&bytes[..count]);
        // Other tests log too: what they did before is not this one's to judge.
        let (_, behind) = told.rsplit_once(&text).expect("the last line is there");
        assert!(behind.trim_end().is_empty(), "{told}");
        drop(ring);
        CLOSED.store(false, Ordering::Relaxed);
    }
}

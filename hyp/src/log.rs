//! The log: every line of EL2 and of the host, on the UART and in a ring.
//!
//! Lock protocol: one lock around UART and ring, taken for one whole line, by
//! any CPU, at any time; nothing is called while it is held. Before there is a
//! second CPU (and before the MMU is on, when exclusive accesses need not work)
//! it is not taken. A report of EL2's own death breaks it.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering};

use arm_pl011_uart::{
    DataBits, LineConfig, PL011Registers, Parity, StopBits, Uart, UniqueMmioPointer,
};
use log::{Level, LevelFilter, Log, Metadata, Record};
use spin::mutex::{SpinMutex, SpinMutexGuard};

use crate::mrs;

/// Bytes that the ring keeps.
const RING: usize = 32 << 10;

/// UARTCR: UARTEN and TXE.
const UART_ENABLED: u32 = 1 | 1 << 8;
/// What a UART is set to that nobody has set up: 115200 8N1, from the 24 MHz
/// that Arm's platforms have.
const LINE: LineConfig = LineConfig {
    data_bits: DataBits::Bits8,
    parity: Parity::None,
    stop_bits: StopBits::One,
};

/// Where lines go.
pub struct Sink {
    uart: Option<Uart<'static>>,
    ring: [u8; RING],
    /// Bytes ever written; the newest stands before `written % RING`.
    written: usize,
}

static SINK: SpinMutex<Sink> = SpinMutex::new(Sink {
    uart: None,
    ring: [0; RING],
    written: 0,
});

/// Set once more than one CPU may log.
static SHARED: AtomicBool = AtomicBool::new(false);

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

/// Starts the log on the PL011 at `uart`, which the firmware has set up; without
/// one, lines go to the ring only.
///
/// # Safety
/// `uart` is the address of a PL011 that nobody else in EL2 drives, and stays
/// mapped at this address.
pub unsafe fn start(uart: Option<u64>) {
    let registers = uart.and_then(|pa| core::ptr::NonNull::new(pa as *mut PL011Registers));
    let uart = registers.map(|r| {
        // SAFETY: the caller's promise; UARTCR is at 0x30 (DDI0183, 3.3.8).
        let control = unsafe { r.cast::<u32>().add(0x30 / 4).read_volatile() };
        // SAFETY: the caller's promise.
        let mut uart = Uart::new(unsafe { UniqueMmioPointer::new(r) });
        if control & UART_ENABLED != UART_ENABLED {
            // The firmware has left it off, so its line settings say nothing.
            let _ = uart.enable(LINE, 115_200, 24_000_000);
        }
        uart
    });
    with_sink(|sink| sink.uart = uart);
    let _ = log::set_logger(&Facade);
    log::set_max_level(LevelFilter::Info);
}

/// Says that other CPUs may log from now on.
pub fn share() {
    SHARED.store(true, Ordering::Release);
}

/// Writes one line: time, who, level, text.
pub fn line(who: &str, level: Level, text: fmt::Arguments<'_>) {
    with_sink(|sink| sink.line(who, level, text));
}

/// Gives `f` the sink, under the lock when there is more than one CPU.
fn with_sink<R>(f: impl FnOnce(&mut Sink) -> R) -> R {
    if SHARED.load(Ordering::Acquire) {
        return f(&mut SINK.lock());
    }
    // SAFETY: one CPU runs, it is in no other `with_sink` (nothing is called
    // while the sink is borrowed), and so nobody else has the content.
    f(unsafe { &mut *SINK.as_mut_ptr() })
}

/// Takes the sink for a report of EL2's death: waits a while for the line that
/// another CPU may be writing, then takes it all the same and keeps it.
pub fn seize() -> &'static mut Sink {
    for _ in 0..1_000_000 {
        if let Some(guard) = SINK.try_lock() {
            return SpinMutexGuard::leak(guard);
        }
        core::hint::spin_loop();
    }
    // SAFETY: the CPU that held the lock stops at its next entry to EL2 or has
    // died while writing; at worst a character of the report is garbled.
    unsafe { &mut *SINK.as_mut_ptr() }
}

/// Microseconds since the counter started.
pub fn uptime_us() -> u64 {
    let frequency = mrs!("cntfrq_el0").max(1);
    let count = u128::from(mrs!("cntpct_el0"));
    (count * 1_000_000 / u128::from(frequency)) as u64
}

impl Sink {
    fn line(&mut self, who: &str, level: Level, text: fmt::Arguments<'_>) {
        let us = uptime_us();
        let (s, us) = (us / 1_000_000, us % 1_000_000);
        // Writing to the sink cannot fail.
        let _ = writeln!(self, "[{s:5}.{us:06}] {who} {level:5} {text}");
    }

    fn byte(&mut self, byte: u8) {
        self.ring[self.written % RING] = byte;
        self.written = self.written.wrapping_add(1);
        if let Some(uart) = &mut self.uart {
            while uart.is_tx_fifo_full() {
                core::hint::spin_loop();
            }
            uart.write_word(byte);
        }
    }
}

impl Write for Sink {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for byte in s.bytes() {
            if byte == b'\n' {
                self.byte(b'\r');
            }
            self.byte(byte);
        }
        Ok(())
    }
}

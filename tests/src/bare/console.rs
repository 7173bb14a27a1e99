//! The console: the PL011 of `stdout-path`, polled. Lines of several CPUs stay
//! whole: a spin lock is held for each print once the MMU is on.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::pl011;

static BASE: AtomicU64 = AtomicU64::new(0);
static SHARED: AtomicBool = AtomicBool::new(false);
static LOCKED: AtomicBool = AtomicBool::new(false);

/// Prints to the UART at `base`, on one CPU.
pub fn start(base: u64) {
    BASE.store(base, Ordering::Relaxed);
}

/// From here on, several CPUs print.
pub fn share() {
    SHARED.store(true, Ordering::Relaxed);
}

/// Lets a report print whoever held the lock.
pub fn unlock() {
    LOCKED.store(false, Ordering::Relaxed);
}

/// The console as a writer.
#[derive(Clone, Copy, Debug)]
pub struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let base = BASE.load(Ordering::Relaxed);
        for byte in text.bytes() {
            if byte == b'\n' {
                pl011::put(base, b'\r');
            }
            pl011::put(base, byte);
        }
        Ok(())
    }

    fn write_fmt(&mut self, arguments: fmt::Arguments<'_>) -> fmt::Result {
        let shared = SHARED.load(Ordering::Relaxed);
        while shared && LOCKED.swap(true, Ordering::Acquire) {
            core::hint::spin_loop();
        }
        let result = fmt::write(self, arguments);
        if shared {
            LOCKED.store(false, Ordering::Release);
        }
        result
    }
}

/// Prints to the console.
#[macro_export]
macro_rules! print {
    ($($argument:tt)*) => {{
        use core::fmt::Write as _;
        // A console cannot refuse.
        let _ = $crate::bare::console::Console.write_fmt(format_args!($($argument)*));
    }};
}

/// Prints a line to the console.
#[macro_export]
macro_rules! println {
    ($($argument:tt)*) => {
        $crate::print!("{}\n", format_args!($($argument)*))
    };
}

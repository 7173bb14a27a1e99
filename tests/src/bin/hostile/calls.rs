//! The calls to EL2, and what every host may count on.

use core::cell::UnsafeCell;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU64, Ordering};

use rmi::end::{End, How, Token};
use rmi::feature::VendorFeatures;
use rmi::rsi::{self, Rsi};
use rmi::vendor::{self, Vendor};
use rmi::{Command, Status, fid};
use tests::bare::asm::{self, Conduit};
use tests::bare::console::Console;
use tests::suite::Suite;

/// X0 to X4 of an answer.
pub type Answer = [u64; 5];

/// Calls by SMC.
pub fn call(function: u64, arguments: [u64; 5]) -> Answer {
    by(Conduit::Smc, function, arguments)
}

fn by(conduit: Conduit, function: u64, [a, b, c, d, e]: [u64; 5]) -> Answer {
    let out = asm::call(conduit, [function, a, b, c, d, e, 0, 0]);
    [out[0], out[1], out[2], out[3], out[4]]
}

/// Makes a command or a vendor call.
pub fn ask(of: impl Into<[u64; 6]>) -> Answer {
    let [function, arguments @ ..] = of.into();
    call(function, arguments)
}

/// Makes one; the status alone.
pub fn status(of: impl Into<[u64; 6]>) -> u64 {
    ask(of)[0]
}

/// Success in X0.
pub const SUCCESS: u64 = Status::Success.pack();
/// `ERROR_INPUT` in X0.
pub const INPUT: u64 = Status::ErrorInput.pack();
/// `ERROR_REC` in X0.
pub const REC: u64 = Status::ErrorRec.pack();

/// `ERROR_REALM(index)` in X0.
pub const fn realm(index: u8) -> u64 {
    Status::ErrorRealm(index).pack()
}

/// `ERROR_RTT(level)` in X0.
pub const fn rtt(level: i64) -> u64 {
    Status::ErrorRtt(level as u8).pack()
}

static GRANULE: AtomicU64 = AtomicU64::new(4096);

/// The granule that EL2 counts in, bytes.
pub fn granule() -> u64 {
    GRANULE.load(Ordering::Relaxed)
}

/// The ranges that EL2 says are taken: base, size, kind.
pub fn memory_ranges() -> impl Iterator<Item = (u64, u64, u64)> {
    (0..64).map_while(|index| {
        let [x0, base, size, kind, _] = ask(Vendor::MemoryRange { index });
        (x0 == SUCCESS).then_some((base, size, kind))
    })
}

#[repr(C, align(256))]
struct Line(UnsafeCell<[u8; 256]>);

// SAFETY: Written by the boot CPU alone.
unsafe impl Sync for Line {}

static LINE: Line = Line(UnsafeCell::new([0; 256]));

/// Writes a line into EL2's log; the status.
pub fn log(level: u64, text: &str) -> u64 {
    let length = text.len().min(256);
    // SAFETY: Only the boot CPU calls this.
    unsafe { (&mut *LINE.0.get())[..length].copy_from_slice(&text.as_bytes()[..length]) };
    status(Vendor::Log {
        level,
        pa: LINE.0.get().expose_provenance() as u64,
        length: length as u64,
    })
}

/// Says how the machine ends, as a host does.
pub fn end(bootargs: &str, how: How) {
    let token = Token::of_boot_arguments(bootargs);
    let mut text = Text {
        bytes: [0; 128],
        len: 0,
    };
    // It fits, and is text.
    let _ = write!(text, "{}", End { token, how });
    let text = core::str::from_utf8(&text.bytes[..text.len]);
    log(3, text.unwrap_or(""));
}

/// A short line in the making.
struct Text {
    bytes: [u8; 128],
    len: usize,
}

impl Write for Text {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        let to = self.bytes.get_mut(self.len..self.len + s.len());
        to.ok_or(fmt::Error)?.copy_from_slice(s.as_bytes());
        self.len += s.len();
        Ok(())
    }
}

/// EL2 answers as ever.
pub fn still_there(suite: &mut Suite<Console>, name: &str) {
    let requested = rmi::VERSION_1_0;
    let answer = ask(Command::Version { requested });
    suite.check(
        name,
        answer[..3] == [SUCCESS, rmi::VERSION_1_0, rmi::VERSION_1_0],
        format_args!("{answer:x?}"),
    );
}

/// Version, features, log, and identifiers that nobody serves.
pub fn identity(suite: &mut Suite<Console>) {
    still_there(suite, "call/version");
    let other = call(fid::RMI_VERSION, [0x2_0000, 0, 0, 0, 0]);
    suite.check(
        "call/version-2",
        other[..3] == [INPUT, rmi::VERSION_1_0, rmi::VERSION_1_0],
        format_args!("{other:x?}"),
    );
    let hvc = by(
        Conduit::Hvc,
        fid::RMI_VERSION,
        [rmi::VERSION_1_0, 0, 0, 0, 0],
    );
    suite.equal("call/by-hvc", hvc[0], SUCCESS);
    let features = ask(Command::Features { index: 0 });
    let width = features[1] & 0xff;
    suite.check(
        "call/features-0",
        features[0] == SUCCESS && width >= 32,
        width,
    );
    for index in [1, 2, u64::MAX] {
        let features = ask(Command::Features { index });
        suite.check(
            "call/features-n",
            features[..2] == [0, 0],
            format_args!("{features:x?}"),
        );
    }
    let version = ask(Vendor::Version);
    suite.equal("call/vendor-version", version[1], vendor::VERSION_1_0);
    let features = VendorFeatures::unpack(ask(Vendor::Features)[1]);
    let shift = features.granule_shift;
    suite.check("call/vendor-granule", matches!(shift, 12 | 14 | 16), shift);
    GRANULE.store(1 << shift, Ordering::Relaxed);
    suite.check(
        "call/vendor-plain",
        features.nonconf && features.el2_vgic,
        shift,
    );
    let kept = asm::call(
        Conduit::Smc,
        [fid::RMI_VERSION, rmi::VERSION_1_0, 2, 3, 4, 5, 6, 7],
    );
    let kept =
        (5..8).all(|n| kept[n] == n as u64) && (8..18).all(|n| kept[n] == 0xca11_0000 + n as u64);
    suite.check("call/preserves", kept, "registers were lost");

    for function in [
        0,
        0xC400_014F,
        0xC400_0156,
        0xC400_0160,
        0xC400_0163,
        0xC400_016A,
        fid::RSI_VERSION,
        rsi::LAST,
        0xC400_01B0,
        0xc600_00ff,
        0x8400_0150,
        u64::MAX,
        1 << 32 | fid::RMI_VERSION,
    ] {
        let answer = call(function, [1, 2, 3, 4, 5])[0];
        suite.equal("call/unknown", answer, rmi::NOT_SUPPORTED);
    }
    // Guests' calls are no host's.
    for guests in Rsi::TABLE {
        let answer = call(guests.function, [1, 2, 3, 4, 5])[0];
        suite.equal("call/rsi", answer, rmi::NOT_SUPPORTED);
    }
    suite.equal("call/log", log(3, "hostile: begins"), SUCCESS);
    for (level, text) in [
        (0, "x"),
        (6, "x"),
        (u64::MAX, "x"),
        (3, "a\nb"),
        (3, "\u{1b}[2J"),
        (3, "\0"),
        (3, "a\u{9b}2J"),
        (3, "\u{202e}0 sutats :dne"),
        (3, "a\u{2028}b"),
        (3, "\u{feff}"),
        (3, "\u{200b}"),
        (3, "\u{e0041}"),
        (3, "\u{fe0f}"),
    ] {
        suite.equal("call/log-refused", log(level, text), INPUT);
    }
    let line = LINE.0.get().expose_provenance() as u64;
    for (pa, length) in [
        (line, 257),
        (line, u64::MAX),
        (u64::MAX, 1),
        (u64::MAX - 3, 8),
        (0, 1),
        ((line & !0xffff) + 0xffff, 2),
    ] {
        suite.equal(
            "call/log-where",
            status(Vendor::Log {
                level: 3,
                pa,
                length,
            }),
            INPUT,
        );
    }
}

//! From the ring to the UART, with a bound on everything: how many bytes, how
//! long one of them is waited for, and how long all of them together.
//!
//! What the UART does not take in that time stays. What was overwritten before
//! it could be sent is counted, and reported where it is missing.

use core::fmt::Write;

use log::Level;

use super::line::{self, Text};
use super::ring::Taken;

/// Where the bytes go.
pub trait Port {
    /// There is no room for a byte now.
    fn is_full(&self) -> bool;
    /// Sends a byte; there is room.
    fn put(&mut self, byte: u8);
}

/// Where they come from.
pub trait Source {
    /// As [`super::ring::Ring::read`]; `None` when somebody else has the ring.
    fn read(&mut self, from: u64, to: &mut [u8]) -> Option<Taken>;
    /// Bytes of lines that did not even come into the ring, since the last call.
    fn refused(&mut self) -> u64;
}

/// What time it is.
pub trait Clock {
    /// Microseconds since some moment; `None` on a machine without a counter.
    fn micros(&self) -> Option<u64>;
}

/// What one turn may cost.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Bytes sent at most.
    pub bytes: usize,
    /// Microseconds that one byte is waited for at most.
    pub stall: u32,
    /// Microseconds of waiting in all.
    pub total: u32,
}

impl Patience {
    /// On the time of whoever has this CPU, which may have written none of it: what
    /// the UART has room for.
    pub const TURN: Self = Self {
        bytes: 1024,
        stall: 0,
        total: 0,
    };
    /// On the time of who writes a line. On a UART of 115200 baud a byte takes
    /// 87 µs.
    pub const CALL: Self = Self {
        bytes: 1024,
        stall: 100,
        total: 200,
    };
    /// While EL2 boots and nobody waits.
    pub const BOOT: Self = Self {
        bytes: super::ring::SIZE,
        stall: 20_000,
        total: 200_000,
    };
    /// Before the machine goes off. Others may still write.
    pub const LAST: Self = Self {
        bytes: 2 * super::ring::SIZE,
        stall: 100_000,
        total: 5_000_000,
    };
}

/// Looks at the UART that count as a microsecond where no counter counts, and
/// the most that can be within one where it does.
const LOOKS: u64 = 32;

/// Bytes that are taken out of the ring at once.
const CHUNK: usize = 128;

/// The one who sends.
#[derive(Debug)]
pub struct Drain<P> {
    /// The UART; without one, what is sent goes nowhere.
    pub port: Option<P>,
    /// What has left the ring, up to here.
    position: u64,
    lost: u64,
    chunk: [u8; CHUNK],
    /// What of the chunk is not sent yet.
    left: core::ops::Range<usize>,
    /// The last byte that was sent did not end a line.
    mid_line: bool,
    /// The UART has let somebody wait for nothing; until it takes a byte again,
    /// nobody else waits.
    stalled: bool,
}

/// How long is waited, and how long was.
struct Wait {
    patience: Patience,
    looks: u64,
    micros: u64,
}

impl<P> Drain<P> {
    /// A sender that has sent nothing.
    pub const fn new(port: Option<P>) -> Self {
        Self {
            port,
            position: 0,
            lost: 0,
            chunk: [0; CHUNK],
            left: 0..0,
            mid_line: false,
            stalled: false,
        }
    }

    /// Everything before this position was sent, or is lost.
    pub fn sent(&self) -> u64 {
        self.position - self.left.len() as u64
    }

    /// Waits again, though nobody was served before.
    pub fn hope(&mut self) {
        self.stalled = false;
    }

    /// Goes on with another UART, with what this one has not taken.
    pub fn replace(&mut self, port: Option<P>) {
        self.port = port;
        self.mid_line = false;
        self.stalled = false;
    }
}

impl<P: Port> Drain<P> {
    /// Sends what there is, as far as patience goes.
    pub fn drain(&mut self, source: &mut impl Source, clock: &impl Clock, patience: Patience) {
        let mut wait = Wait {
            patience,
            looks: 0,
            micros: 0,
        };
        let mut sent = 0;
        while sent < patience.bytes && (!self.left.is_empty() || self.fetch(source, clock)) {
            if let Some(port) = &mut self.port {
                if port.is_full() && (self.stalled || !wait.room(port, clock)) {
                    // Who does not wait has not waited for nothing.
                    self.stalled |= patience.stall > 0;
                    return;
                }
                self.stalled = false;
                let byte = self.chunk[self.left.start];
                port.put(byte);
                self.mid_line = byte != b'\n';
            }
            self.left.start += 1;
            sent += 1;
        }
    }

    /// Fills the chunk: with the ring's next bytes or, where some are missing,
    /// with a line that says so. False when there is nothing.
    fn fetch(&mut self, source: &mut impl Source, clock: &impl Clock) -> bool {
        if self.lost == 0 {
            if !self.mid_line {
                self.lost = source.refused();
            }
            let Some(taken) = source.read(self.position, &mut self.chunk) else {
                return false;
            };
            if self.lost == 0 && taken.lost == 0 {
                self.position += taken.count as u64;
                self.left = 0..taken.count;
                return taken.count > 0;
            }
            self.lost += taken.lost;
            self.position += taken.lost;
        }
        let mut text = Text::<CHUNK>::new();
        // It fits.
        let _ = text.write_str(if self.mid_line { "\n" } else { "" });
        let _ = line::head(&mut text, clock.micros().unwrap_or(0), "hyp ", Level::Warn);
        let _ = writeln!(text, "{} bytes of the log were dropped", self.lost);
        self.lost = 0;
        let bytes = text.as_bytes();
        self.chunk[..bytes.len()].copy_from_slice(bytes);
        self.left = 0..bytes.len();
        true
    }
}

impl Wait {
    /// Waits for room: false when there was none in time.
    fn room(&mut self, port: &impl Port, clock: &impl Clock) -> bool {
        let Patience { stall, total, .. } = self.patience;
        let begun = clock.micros();
        let mut looks = 0;
        let mut passed = 0;
        while port.is_full() {
            looks += 1;
            if let Some(begun) = begun {
                passed = clock.micros().unwrap_or(begun).saturating_sub(begun);
            }
            if passed >= stall.into()
                || self.micros + passed >= total.into()
                || looks >= u64::from(stall) * LOOKS
                || self.looks + looks >= u64::from(total) * LOOKS
            {
                return false;
            }
            core::hint::spin_loop();
        }
        self.looks += looks;
        self.micros += passed;
        true
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::log::ring::{Ring, SIZE};
    use proptest::prelude::*;
    use std::cell::Cell;
    use std::format;
    use std::string::String;
    use std::vec::Vec;

    /// A UART that takes a byte every so many looks: 0 for never.
    #[derive(Default)]
    struct Slow {
        looks_a_byte: u64,
        looks: Cell<u64>,
        told: Vec<u8>,
    }

    impl Port for Slow {
        fn is_full(&self) -> bool {
            self.looks.set(self.looks.get() + 1);
            self.looks_a_byte == 0 || !self.looks.get().is_multiple_of(self.looks_a_byte)
        }
        fn put(&mut self, byte: u8) {
            self.told.push(byte);
        }
    }

    #[derive(Default)]
    struct Lines {
        ring: Ring,
        refused: u64,
        taken: bool,
    }

    impl Source for Lines {
        fn read(&mut self, from: u64, to: &mut [u8]) -> Option<Taken> {
            (!self.taken).then(|| self.ring.read(from, to))
        }
        fn refused(&mut self) -> u64 {
            core::mem::take(&mut self.refused)
        }
    }

    /// A counter that counts so many microseconds a look, or none.
    struct Counter(Option<u64>, Cell<u64>);

    impl Clock for Counter {
        fn micros(&self) -> Option<u64> {
            self.1.set(self.1.get() + self.0?);
            Some(self.1.get())
        }
    }

    /// A machine without a counter.
    fn no_counter() -> Counter {
        Counter(None, Cell::new(0))
    }

    fn slow(looks_a_byte: u64) -> Drain<Slow> {
        Drain::new(Some(Slow {
            looks_a_byte,
            ..Slow::default()
        }))
    }

    fn text(drain: &Drain<Slow>) -> String {
        String::from_utf8(drain.port.as_ref().unwrap().told.clone()).unwrap()
    }

    fn looks(drain: &Drain<Slow>) -> u64 {
        drain.port.as_ref().unwrap().looks.get()
    }

    #[test]
    fn a_uart_that_never_drains_costs_a_bounded_wait_once() {
        for clock in [no_counter(), Counter(Some(1), Cell::new(7))] {
            let mut lines = Lines::default();
            lines.ring.push(b"one\r\n");
            let mut drain = slow(0);
            drain.drain(&mut lines, &clock, Patience::CALL);
            let first = looks(&drain);
            assert!(
                first <= u64::from(Patience::CALL.stall) * LOOKS + 2,
                "{first}"
            );
            for _ in 0..1000 {
                lines.ring.push(b"another\r\n");
                drain.drain(&mut lines, &clock, Patience::CALL);
            }
            assert_eq!(looks(&drain), first + 1000, "a look each, no more");
            assert_eq!((text(&drain).as_str(), drain.sent()), ("", 0));
            // It comes to life, and nothing is missing.
            drain.port.as_mut().unwrap().looks_a_byte = 1;
            drain.drain(&mut lines, &clock, Patience::LAST);
            assert_eq!(
                text(&drain),
                format!("one\r\n{}", "another\r\n".repeat(1000))
            );
            assert_eq!(drain.sent(), lines.ring.written());
        }
    }

    /// Whoever has the CPU pays for no byte of another's.
    #[test]
    fn who_wrote_nothing_waits_for_nothing() {
        let mut lines = Lines::default();
        let mut drain = slow(1000);
        lines.ring.push(&[b'a'; 200]);
        for _ in 0..500 {
            let before = looks(&drain);
            drain.drain(&mut lines, &no_counter(), Patience::TURN);
            assert!(looks(&drain) - before <= 4, "a byte at most, and a look");
        }
        // And who writes waits as ever: nobody has waited in vain.
        let before = looks(&drain);
        drain.drain(&mut lines, &no_counter(), Patience::CALL);
        assert!(
            looks(&drain) > before + 500,
            "{} looks",
            looks(&drain) - before
        );
    }

    #[test]
    fn a_clock_that_stands_still_does_not_make_it_wait_for_ever() {
        let mut lines = Lines::default();
        lines.ring.push(b"one\r\n");
        let mut drain = slow(0);
        drain.drain(&mut lines, &Counter(Some(0), Cell::new(5)), Patience::LAST);
        assert!(looks(&drain) <= u64::from(Patience::LAST.stall) * LOOKS + 2);
    }

    #[test]
    fn a_slow_uart_gets_everything_in_turns() {
        let mut lines = Lines::default();
        for n in 0..50 {
            lines.ring.push(format!("line {n}\r\n").as_bytes());
        }
        let mut drain = slow(1000);
        let mut turns = 0;
        while drain.sent() < lines.ring.written() {
            let before = looks(&drain);
            drain.drain(&mut lines, &no_counter(), Patience::CALL);
            let most = u64::from(Patience::CALL.total) * LOOKS + Patience::CALL.bytes as u64;
            assert!(looks(&drain) - before <= most);
            turns += 1;
        }
        assert!(turns > 10, "{turns}");
        let all: String = (0..50).map(|n| format!("line {n}\r\n")).collect();
        assert_eq!(text(&drain), all);
    }

    #[test]
    fn what_a_full_ring_lost_is_told_on_a_line_of_its_own() {
        let mut lines = Lines::default();
        lines.ring.push(&b"x".repeat(200));
        lines.ring.push(b"\r\n");
        let mut drain = slow(1);
        let few = Patience {
            bytes: 20,
            ..Patience::CALL
        };
        drain.drain(&mut lines, &no_counter(), few);
        let line = "[    0.000002] host INFO  flood";
        for _ in 0..2 * SIZE / line.len() {
            lines.ring.push(line.as_bytes());
            lines.ring.push(b"\r\n");
        }
        drain.drain(&mut lines, &no_counter(), Patience::LAST);
        let told = text(&drain);
        let mut all = told.split("\r\n");
        // What had left the ring is sent, then the line ends early.
        assert_eq!(all.next(), Some("x".repeat(CHUNK).as_str()));
        let notice = all.next().unwrap();
        let lost = notice
            .strip_prefix("[    0.000000] hyp  WARN  ")
            .and_then(|rest| rest.strip_suffix(" bytes of the log were dropped"));
        let lost: u64 = lost.expect(notice).parse().unwrap();
        let kept: Vec<&str> = all.filter(|l| !l.is_empty()).collect();
        assert!(kept.iter().all(|l| *l == line));
        let sent = CHUNK + kept.len() * (line.len() + 2);
        assert_eq!(lost + sent as u64, lines.ring.written());
        assert!(kept.len() * (line.len() + 2) > SIZE / 2 - 2 * line.len());
    }

    #[test]
    fn lines_that_were_refused_are_told_too() {
        let mut lines = Lines {
            refused: 77,
            ..Lines::default()
        };
        lines.ring.push(b"next\r\n");
        let mut drain = slow(1);
        drain.drain(&mut lines, &no_counter(), Patience::CALL);
        let told = "[    0.000000] hyp  WARN  77 bytes of the log were dropped\r\nnext\r\n";
        assert_eq!(text(&drain), told);
    }

    #[test]
    fn another_uart_gets_what_the_first_did_not_take() {
        let mut lines = Lines::default();
        lines.ring.push(&b"0123456789\r\n".repeat(20));
        let mut drain = slow(1);
        let some = Patience {
            bytes: 30,
            ..Patience::CALL
        };
        drain.drain(&mut lines, &no_counter(), some);
        drain.replace(Some(Slow {
            looks_a_byte: 1,
            ..Slow::default()
        }));
        drain.drain(&mut lines, &no_counter(), Patience::LAST);
        assert_eq!(text(&drain), "0123456789\r\n".repeat(20)[30..]);
    }

    #[test]
    fn a_ring_that_somebody_holds_is_left_alone() {
        let mut lines = Lines {
            taken: true,
            ..Lines::default()
        };
        lines.ring.push(b"one\r\n");
        let mut drain = slow(1);
        drain.drain(&mut lines, &no_counter(), Patience::LAST);
        assert_eq!(text(&drain), "");
        lines.taken = false;
        drain.drain(&mut lines, &no_counter(), Patience::LAST);
        assert_eq!(text(&drain), "one\r\n");
    }

    proptest! {
        /// However fast or slow, with or without a counter: each line is whole
        /// or cut by a notice, and what is missing is what the notices say.
        #[test]
        fn what_is_not_sent_is_counted(
            steps in prop::collection::vec((0usize..900, 0u64..40, any::<bool>()), 1..60),
        ) {
            // Not as a notice ends what it cuts: a line that lacks its end alone is
            // no whole one.
            let line = b"[    1.000000] host INFO  something\n";
            let mut lines = Lines::default();
            let mut drain = slow(1);
            for (count, speed, taken) in steps {
                for _ in 0..count {
                    lines.ring.push(line);
                }
                lines.taken = taken;
                drain.port.as_mut().unwrap().looks_a_byte = speed;
                drain.drain(&mut lines, &no_counter(), Patience::CALL);
            }
            lines.taken = false;
            drain.port.as_mut().unwrap().looks_a_byte = 1;
            drain.hope();
            drain.drain(&mut lines, &no_counter(), Patience::LAST);
            let told = text(&drain);
            let (mut lost, mut sent) = (0, 0);
            for (n, part) in told.split_inclusive('\n').enumerate() {
                if part.contains("dropped") {
                    lost += part.split_whitespace().nth(4).unwrap().parse::<u64>().unwrap();
                    prop_assert!(part.starts_with('['), "{}: {}", n, part);
                } else {
                    let whole = part.as_bytes() == line;
                    prop_assert!(whole || line.starts_with(part.trim_end().as_bytes()), "{}", part);
                    sent += if whole { line.len() } else { part.len() - 2 } as u64;
                }
            }
            prop_assert_eq!(lost + sent, lines.ring.written());
        }
    }

    #[test]
    fn a_turn_on_a_slow_uart_is_bounded_by_the_clock() {
        // A byte takes 50 µs: four of them are all of a call's patience.
        let mut lines = Lines::default();
        lines.ring.push(&[b'a'; 100]);
        let mut drain = slow(50);
        drain.drain(&mut lines, &Counter(Some(1), Cell::new(0)), Patience::CALL);
        assert!((2..=5).contains(&text(&drain).len()), "{}", text(&drain));
    }

    /// It waits as ever for a UART that has taken a byte, and for one that
    /// somebody hopes for.
    #[test]
    fn a_uart_that_stalled_once_is_waited_for_again() {
        for hope in [false, true] {
            let mut lines = Lines::default();
            lines.ring.push(b"one\r\n");
            let mut drain = slow(0);
            drain.drain(&mut lines, &no_counter(), Patience::CALL);
            if hope {
                drain.hope();
            } else {
                drain.port.as_mut().unwrap().looks_a_byte = 1;
                drain.drain(&mut lines, &no_counter(), Patience::CALL);
                assert_eq!(text(&drain), "one\r\n");
                lines.ring.push(b"two\r\n");
            }
            drain.port.as_mut().unwrap().looks_a_byte = 0;
            let before = looks(&drain);
            drain.drain(&mut lines, &no_counter(), Patience::CALL);
            assert!(looks(&drain) - before > 1000, "hope: {hope}");
        }
        // And for another one.
        let mut lines = Lines::default();
        lines.ring.push(b"one\r\n");
        let mut drain = slow(0);
        drain.drain(&mut lines, &no_counter(), Patience::CALL);
        drain.replace(slow(0).port);
        drain.drain(&mut lines, &no_counter(), Patience::CALL);
        assert!(looks(&drain) > 1000);
    }

    #[test]
    fn what_was_refused_is_told_when_the_line_ends_and_when() {
        let clock = Counter(Some(1), Cell::new(2_000_000));
        let told = "hyp  WARN  7 bytes of the log were dropped\r\n";
        let begin = || {
            let mut lines = Lines::default();
            lines.ring.push(b"ab");
            let mut drain = slow(1);
            drain.drain(&mut lines, &no_counter(), Patience::CALL);
            lines.refused = 7;
            lines.ring.push(b"c\r\n");
            (lines, drain)
        };
        let (mut lines, mut drain) = begin();
        drain.drain(&mut lines, &clock, Patience::CALL);
        assert_eq!(text(&drain), format!("abc\r\n[    2.000001] {told}"));
        // Another UART has no line begun.
        let (mut lines, mut drain) = begin();
        drain.replace(slow(1).port);
        drain.drain(&mut lines, &clock, Patience::CALL);
        assert_eq!(text(&drain), format!("[    2.000002] {told}c\r\n"));
    }
}

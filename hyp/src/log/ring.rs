//! The ring: every byte of the log, the newest [`SIZE`] of them kept.
//!
//! Positions count bytes since the start and never wrap. Whoever reads keeps
//! its own, and finds out here what it came too late for.

/// Bytes that the ring keeps.
pub const SIZE: usize = 32 << 10;

/// Bytes that are searched for a line's end, when the front of one is lost: more
/// than any line has.
const LONGEST_LINE: u64 = 1024;

/// The newest bytes of the log.
#[derive(Debug)]
pub struct Ring {
    bytes: [u8; SIZE],
    /// Bytes ever written; the newest stands before `written % SIZE`.
    written: u64,
}

/// What a reader got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Bytes that were overwritten before, and those that were given up with them.
    pub lost: u64,
    /// Bytes that were copied.
    pub count: usize,
}

impl Ring {
    /// Nothing.
    pub const fn new() -> Self {
        Self {
            bytes: [0; SIZE],
            written: 0,
        }
    }

    /// Bytes ever written.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Puts bytes behind the others.
    pub fn push(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.bytes[self.written as usize % SIZE] = byte;
            self.written += 1;
        }
    }

    /// Copies what stands from `from` on. When that is lost, so is the older half
    /// of the rest: a reader that is too slow gets half a ring of lines in a row,
    /// and not one between any two gaps. The copy then begins with a line that is
    /// whole. The reader's next position is `from` and both counts of the result.
    pub fn read(&self, from: u64, to: &mut [u8]) -> Taken {
        let oldest = self.written.saturating_sub(SIZE as u64);
        let begin = if from < oldest {
            self.line_from(self.written - SIZE as u64 / 2)
        } else {
            from
        };
        let count = to.len().min((self.written - begin) as usize);
        for (n, byte) in to[..count].iter_mut().enumerate() {
            *byte = self.at(begin + n as u64);
        }
        Taken {
            lost: begin - from,
            count,
        }
    }

    fn at(&self, position: u64) -> u8 {
        self.bytes[position as usize % SIZE]
    }

    /// Where the first line begins behind `from`.
    fn line_from(&self, from: u64) -> u64 {
        let end = self.written.min(from + LONGEST_LINE);
        (from..end)
            .find(|&at| self.at(at) == b'\n')
            .map_or(from, |at| at + 1)
    }
}

impl Default for Ring {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::format;
    use std::vec::Vec;

    #[test]
    fn a_late_reader_begins_with_a_whole_line() {
        let mut ring = Ring::new();
        for n in 0..2000 {
            ring.push(format!("line {n:05} of the log\r\n").as_bytes());
        }
        let mut to = [0; 23];
        let taken = ring.read(5, &mut to);
        assert_eq!(taken.count, 23);
        assert_eq!((5 + taken.lost) % 23, 0);
        assert!(2000 * 23 - (5 + taken.lost) <= SIZE as u64);
        let text = format!("line {:05} of the log\r\n", (5 + taken.lost) / 23);
        assert_eq!(&to, text.as_bytes());
    }

    #[test]
    fn bytes_without_a_line_do_not_stop_a_reader() {
        let mut ring = Ring::new();
        ring.push(&[b'x'; 3 * SIZE]);
        let taken = ring.read(0, &mut [0; 8]);
        let lost = 5 * SIZE as u64 / 2;
        assert_eq!(taken, Taken { lost, count: 8 });
    }

    proptest! {
        #[test]
        fn every_byte_is_read_or_told(
            steps in prop::collection::vec((0usize..9000, 0usize..9000), 1..40),
        ) {
            let mut ring = Ring::new();
            let mut all: Vec<u8> = Vec::new();
            let mut at = 0;
            for (write, read) in steps {
                let text: Vec<u8> = (0..write)
                    .map(|n| if n % 50 == 49 { b'\n' } else { (all.len() + n) as u8 | 0x20 })
                    .collect();
                ring.push(&text);
                all.extend(text);
                let mut to = std::vec![0; read];
                let taken = ring.read(at, &mut to);
                let begin = (at + taken.lost) as usize;
                prop_assert_eq!(&to[..taken.count], &all[begin..begin + taken.count]);
                prop_assert!(taken.count == read.min(all.len() - begin));
                prop_assert!(taken.lost == 0 || (at as usize) < all.len() - SIZE);
                at = (begin + taken.count) as u64;
            }
        }
    }
}

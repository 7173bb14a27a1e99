//! The bytes that a frame has given last: what it looks back on, and what nobody
//! has taken yet.

use super::CORRUPT;
use crate::image::ImageError;

/// The place in a ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// Index of the next byte.
    pub at: usize,
    /// Bytes given since the frame began.
    pub written: u64,
}

/// A ring of bytes, for the time of one block.
pub struct Ring<'m> {
    bytes: &'m mut [u8],
    cursor: Cursor,
    /// How far back a match may lie.
    window: usize,
    /// Bytes that the block may still give.
    room: usize,
}

impl<'m> Ring<'m> {
    /// The ring in `bytes` with a block of at most `room` bytes to come. There
    /// is more room than `window`, `room` and what nobody has taken, together.
    pub fn new(bytes: &'m mut [u8], cursor: Cursor, window: usize, room: usize) -> Self {
        Self {
            bytes,
            cursor,
            window,
            room,
        }
    }

    /// Where it ends now.
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    fn claim(&mut self, count: usize) -> Result<(), ImageError> {
        self.room = self.room.checked_sub(count).ok_or(CORRUPT)?;
        Ok(())
    }

    fn advance(&mut self, count: usize) {
        self.cursor.written += count as u64;
        self.cursor.at += count;
        if self.cursor.at >= self.bytes.len() {
            self.cursor.at -= self.bytes.len();
        }
    }

    /// Adds `data`.
    #[inline]
    pub fn push(&mut self, data: &[u8]) -> Result<(), ImageError> {
        self.claim(data.len())?;
        let at = self.cursor.at;
        let (now, later) = data.split_at(data.len().min(self.bytes.len() - at));
        self.bytes[at..at + now.len()].copy_from_slice(now);
        self.bytes[..later.len()].copy_from_slice(later);
        self.advance(data.len());
        Ok(())
    }

    /// Adds `byte` `count` times.
    pub fn fill(&mut self, byte: u8, count: usize) -> Result<(), ImageError> {
        self.claim(count)?;
        let at = self.cursor.at;
        let now = count.min(self.bytes.len() - at);
        self.bytes[at..at + now].fill(byte);
        self.bytes[..count - now].fill(byte);
        self.advance(count);
        Ok(())
    }

    /// Adds `count` bytes from `distance` back, which may be bytes that it adds.
    #[inline]
    pub fn repeat(&mut self, distance: usize, count: usize) -> Result<(), ImageError> {
        let reach = self.cursor.written.min(self.window as u64);
        if distance == 0 || distance as u64 > reach {
            return Err(CORRUPT);
        }
        self.claim(count)?;
        let (at, size) = (self.cursor.at, self.bytes.len());
        if distance <= at && at + count <= size {
            let from = at - distance;
            // Each round copies as much as stands there since `from`.
            let mut done = 0;
            while done < count {
                let some = (distance + done).min(count - done);
                self.bytes.copy_within(from..from + some, at + done);
                done += some;
            }
        } else {
            let mut from = (at + size - distance) % size;
            let mut to = at;
            for _ in 0..count {
                self.bytes[to] = self.bytes[from];
                from = (from + 1) % size;
                to = (to + 1) % size;
            }
        }
        self.advance(count);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::vec;
    use std::vec::Vec;

    proptest! {
        #[test]
        fn a_ring_is_the_end_of_all_that_was_added(
            spare in 0usize..30,
            steps in prop::collection::vec((0usize..60, 0usize..40, any::<bool>()), 1..60),
        ) {
            const WINDOW: usize = 50;
            const ROOM: usize = 40;
            let mut bytes = vec![0u8; WINDOW + ROOM + spare];
            let mut all: Vec<u8> = Vec::new();
            let mut cursor = Cursor::default();
            for (distance, count, fill) in steps {
                let mut ring = Ring::new(&mut bytes, cursor, WINDOW, ROOM);
                if fill {
                    let data: Vec<u8> = (0..count).map(|i| (all.len() + i) as u8).collect();
                    ring.push(&data).unwrap();
                    all.extend(data);
                } else {
                    let reach = all.len().min(WINDOW);
                    let result = ring.repeat(distance, count);
                    prop_assert_eq!(result.is_ok(), distance > 0 && distance <= reach);
                    if result.is_ok() {
                        for _ in 0..count {
                            all.push(all[all.len() - distance]);
                        }
                    }
                }
                cursor = ring.cursor();
                prop_assert_eq!(cursor.written, all.len() as u64);
                let size = bytes.len();
                for back in 1..=all.len().min(size) {
                    prop_assert_eq!(bytes[(cursor.at + size - back) % size], all[all.len() - back]);
                }
            }
        }

        #[test]
        fn a_block_gives_no_more_than_it_may(room in 0usize..40, count in 0usize..60) {
            let mut bytes = vec![0u8; 100];
            let cursor = Cursor { at: 90, written: 90 };
            let data = vec![1; count];
            let mut ring = Ring::new(&mut bytes, cursor, 50, room);
            prop_assert_eq!(ring.push(&data).is_ok(), count <= room);
            let mut ring = Ring::new(&mut bytes, cursor, 50, room);
            prop_assert_eq!(ring.repeat(7, count).is_ok(), count <= room);
            let mut ring = Ring::new(&mut bytes, cursor, 50, room);
            prop_assert_eq!(ring.fill(7, count).is_ok(), count <= room);
        }
    }
}

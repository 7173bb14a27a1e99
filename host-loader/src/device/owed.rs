//! Bytes of an instruction that has begun, for which the machine's UART has no
//! room any more: EL2 may send through it, too. They go before all others, and no
//! instruction that sends begins while there are some.

/// Bytes that one instruction sends, at most: DR's four addresses, each once.
const AT_ONCE: usize = 4;

/// What was written while there was no room: an instruction's rest.
#[derive(Debug, Default)]
pub struct Owed {
    bytes: [u8; AT_ONCE],
    count: usize,
}

impl Owed {
    /// All is sent.
    pub const NOTHING: Self = Self {
        bytes: [0; AT_ONCE],
        count: 0,
    };

    /// How many bytes are owed.
    pub const fn count(&self) -> u64 {
        self.count as u64
    }

    /// Puts what is owed: whether that was all.
    #[inline]
    pub fn pay(&mut self, mut put: impl FnMut(u8) -> bool) -> bool {
        while self.count > 0 {
            if !put(self.bytes[0]) {
                return false;
            }
            self.bytes.rotate_left(1);
            self.count -= 1;
        }
        true
    }

    /// Puts a byte behind what is owed, or owes it.
    #[inline]
    pub fn send(&mut self, byte: u8, mut put: impl FnMut(u8) -> bool) {
        if !(self.pay(&mut put) && put(byte))
            && let Some(place) = self.bytes.get_mut(self.count)
        {
            *place = byte;
            self.count += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    /// A FIFO with room for so many.
    struct Fifo(Vec<u8>, usize);

    impl Fifo {
        fn put(&mut self, byte: u8) -> bool {
            let room = self.1 > 0;
            if room {
                self.0.push(byte);
                self.1 -= 1;
            }
            room
        }
    }

    #[test]
    fn what_finds_no_room_is_sent_once_and_in_order() {
        let (mut owed, mut fifo) = (Owed::NOTHING, Fifo(Vec::new(), 2));
        for byte in 1..=4 {
            owed.send(byte, |byte| fifo.put(byte));
        }
        assert_eq!(fifo.0, [1, 2]);
        assert!(!owed.pay(|byte| fifo.put(byte)));
        assert_eq!(owed.count(), 2);
        fifo.1 = 1;
        assert!(!owed.pay(|byte| fifo.put(byte)));
        // Nothing overtakes what waits.
        owed.send(5, |byte| fifo.put(byte));
        assert_eq!(fifo.0, [1, 2, 3]);
        fifo.1 = 9;
        owed.send(6, |byte| fifo.put(byte));
        assert_eq!(fifo.0, [1, 2, 3, 4, 5, 6]);
        assert!(owed.pay(|_| false), "nothing is owed");
    }
}

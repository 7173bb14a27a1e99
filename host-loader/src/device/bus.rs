//! How an access of any size and alignment reaches devices, as on QEMU's virt
//! machine (QEMU accel/tcg/cputlb.c, system/memory.c): in aligned pieces, each of
//! which is an access of its own. A device has registers of four bytes, and of a
//! smaller piece it is given, and answers, a whole one.
//!
//! So one byte leaks into another where a piece is smaller than what it belongs
//! to: a write gives a register what follows the piece, too, and of a byte that is
//! read, the register's upper bits fall upon the bytes before it.

/// Bytes of the largest piece.
pub const WIDEST: u64 = 8;

/// From a device, or to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// A read.
    Read,
    /// A write.
    Write,
}

/// The accesses, offset and bytes, that one of `size` bytes is made of, of
/// [`WIDEST`] at most each. Each page's part is apart; of more bytes than that,
/// what is left over is read first and written last.
pub fn words(address: u64, size: u64, way: Way) -> impl Iterator<Item = (u64, u64)> {
    let in_page = size.min(PAGE - address % PAGE);
    let parts = [(0, in_page), (in_page, size - in_page)];
    parts.into_iter().flat_map(move |(at, bytes)| {
        let first = match way {
            _ if bytes <= WIDEST => bytes,
            Way::Read => bytes - WIDEST,
            Way::Write => WIDEST,
        };
        let words = [(at, first), (at + first, bytes - first)];
        words.into_iter().filter(|(_, bytes)| *bytes > 0)
    })
}

/// What is translated at once, at the least.
pub const PAGE: u64 = 4096;

/// The pieces of an access, offset and bytes: each as large as the lowest bit that
/// is set in address or size.
pub fn pieces(address: u64, size: u64) -> impl Iterator<Item = (u64, u64)> {
    let mut at = 0;
    core::iter::from_fn(move || {
        if at >= size {
            return None;
        }
        let bytes = 1 << (address.wrapping_add(at) | (size - at) | WIDEST).trailing_zeros();
        at += bytes;
        Some((at - bytes, bytes))
    })
}

/// An access of [`WIDEST`] bytes at most, as its pieces are read; the first byte
/// is the highest.
#[derive(Clone, Copy, Debug, Default)]
pub struct Joined(u64);

impl Joined {
    /// Adds a piece, all that was answered of it.
    pub const fn add(&mut self, piece: u64, bytes: u64) {
        self.0 = match bytes {
            1 => self.0 << 8 | piece,
            8 => piece.swap_bytes(),
            _ => self.0 << (8 * bytes) | first_highest(piece, bytes),
        };
    }

    /// What was read, of `size` bytes; the first is the lowest.
    pub const fn value(self, size: u64) -> u64 {
        first_highest(self.0, size)
    }
}

/// The lowest `bytes` bytes of a value, in the other order.
const fn first_highest(value: u64, bytes: u64) -> u64 {
    value.swap_bytes() >> (64 - 8 * bytes)
}

/// Reads a piece from registers of four bytes: all that they answer.
pub fn read_piece(offset: u64, bytes: u64, mut register: impl FnMut(u64) -> u32) -> u64 {
    let low = register(offset).into();
    if bytes > 4 {
        u64::from(register(offset + 4)) << 32 | low
    } else {
        low
    }
}

/// The writes, offset and value, that a piece is to registers of four bytes;
/// `value` holds what follows the piece, too.
pub fn writes_of_piece(offset: u64, bytes: u64, value: u64) -> impl Iterator<Item = (u64, u32)> {
    let count = if bytes > 4 { 2 } else { 1 };
    (0..count).map(move |n| (offset + 4 * n, (value >> (32 * n)) as u32))
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    fn read(offset: u64, size: u64, registers: &[u32]) -> u64 {
        let mut joined = Joined::default();
        for (at, bytes) in pieces(offset, size) {
            let of_piece = |at: u64| registers[at as usize / 4];
            joined.add(read_piece(offset + at, bytes, of_piece), bytes);
        }
        joined.value(size)
    }

    #[test]
    fn pieces_are_aligned_and_are_all_of_an_access() {
        for (address, size, expected) in [
            (0, 8, &[(0, 8)][..]),
            (4, 8, &[(0, 4), (4, 4)]),
            (2, 4, &[(0, 2), (2, 2)]),
            (1, 4, &[(0, 1), (1, 1), (2, 1), (3, 1)]),
            (3, 1, &[(0, 1)]),
            (u64::MAX, 2, &[(0, 1), (1, 1)]),
        ] {
            let found: Vec<_> = pieces(address, size).collect();
            assert_eq!(found, expected, "{address:#x} {size}");
        }
    }

    #[test]
    fn pages_are_apart_and_sixteen_bytes_are_two_words() {
        let of = |address, size, way| words(address, size, way).collect::<Vec<_>>();
        for way in [Way::Read, Way::Write] {
            assert_eq!(of(3, 16, way), [(0, 8), (8, 8)]);
            assert_eq!(of(0xffd, 8, way), [(0, 3), (3, 5)]);
            assert_eq!(of(0xffc, 4, way), [(0, 4)]);
            assert_eq!(of(0xff8, 16, way), [(0, 8), (8, 8)]);
        }
        assert_eq!(of(0xfff, 16, Way::Read), [(0, 1), (1, 7), (8, 8)]);
        assert_eq!(of(0xfff, 16, Way::Write), [(0, 1), (1, 8), (9, 7)]);
        assert_eq!(of(0xff1, 16, Way::Read), [(0, 7), (7, 8), (15, 1)]);
        assert_eq!(of(0xff1, 16, Way::Write), [(0, 8), (8, 7), (15, 1)]);
    }

    #[test]
    fn aligned_accesses_are_of_registers_from_their_lowest_bit() {
        let registers = [0x1122_3344, 0x5566_7788];
        assert_eq!(read(0, 8, &registers), 0x5566_7788_1122_3344);
        assert_eq!(read(4, 4, &registers), 0x5566_7788);
        assert_eq!(read(2, 2, &registers), 0x3344);
        assert_eq!(read(3, 1, &registers), 0x44);
        let writes: Vec<_> = writes_of_piece(8, 8, 0x5566_7788_1122_3344).collect();
        assert_eq!(writes, [(8, 0x1122_3344), (12, 0x5566_7788)]);
    }

    #[test]
    fn bytes_of_what_is_not_aligned_leak_into_those_before() {
        // 0x1122_3344 as the first byte, then again: its upper bits fall upon it.
        assert_eq!(read(1, 2, &[0x1122_3344]), 0x4444 | 0x33);
        let writes: Vec<_> = writes_of_piece(1, 1, 0xabcd).collect();
        assert_eq!(writes, [(1, 0xabcd)]);
    }
}

//! The second bank of flash of a guest that starts from the first: where firmware
//! keeps its variables. Two x16 chips side by side with Intel's command set, blocks of
//! 256 KiB, as QEMU's virt machine has it (hw/block/pflash_cfi01.c; JEDEC JEP137,
//! Intel AP-646). Nothing takes time: an operation is done when its status is read.
//!
//! The bank has more addresses than there is memory behind them: what is not there
//! reads as erased, and programming it fails.

use core::ops::Range;

/// Bytes that are erased at once.
pub const BLOCK: u64 = 256 << 10;
/// Bytes of the bank's bus, in which both chips count their words.
const WIDTH: u64 = 4;

bitflags::bitflags! {
    /// The status register of a chip.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Status: u8 {
        /// It is ready.
        const READY = 1 << 7;
        /// Erasing failed; with `PROGRAM` it is the sequence of commands that did.
        const ERASE = 1 << 5;
        /// Programming failed.
        const PROGRAM = 1 << 4;
    }
}

/// What reads of the bank answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reads {
    Array,
    Status,
    Identifier,
    Query,
}

/// What the next write is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expects {
    Command,
    /// That the block be erased.
    EraseConfirm,
    /// That it be locked or not: it never is.
    LockConfirm,
    /// What is programmed there.
    Data,
    /// How many follow, less one.
    Count,
    /// So many to program.
    Buffer(u32),
    /// That all were meant.
    BufferConfirm,
}

impl Expects {
    /// It is a word of the command set, and no value.
    const fn is_command(self) -> bool {
        !matches!(self, Self::Data | Self::Count | Self::Buffer(_))
    }
}

/// The memory behind a bank.
pub trait Cells {
    /// Bytes that there are.
    fn size(&self) -> u64;
    /// Reads 1, 2 or 4 aligned bytes.
    fn load(&self, offset: u64, size: u64) -> u32;
    /// Writes them.
    fn store(&self, offset: u64, size: u64, value: u32);
    /// Sets all bits of so many bytes, a multiple of 8.
    fn fill(&self, bytes: Range<u64>) {
        for at in bytes.step_by(WIDTH as usize) {
            self.store(at, WIDTH, u32::MAX);
        }
    }
}

/// A bank.
#[derive(Debug)]
pub struct Flash<C> {
    cells: C,
    reads: Reads,
    expects: Expects,
    status: Status,
}

impl<C: Cells> Flash<C> {
    /// A bank that holds what is in `cells`, as after a reset.
    pub const fn new(cells: C) -> Self {
        Self {
            cells,
            reads: Reads::Array,
            expects: Expects::Command,
            status: Status::READY,
        }
    }

    /// It reads as the memory that it is.
    pub fn is_memory(&self) -> bool {
        self.reads == Reads::Array
    }

    /// Reads `size` aligned bytes: 1, 2 or 4.
    pub fn read(&self, offset: u64, size: u64) -> u32 {
        let both = |chip: u8| u32::from(chip) * 0x0001_0001;
        let value = match self.reads {
            Reads::Array => return self.cell(offset, size),
            Reads::Status => both(self.status.bits()),
            Reads::Identifier => both(identifier(offset % BLOCK / WIDTH)),
            Reads::Query => both(query(offset % BLOCK / WIDTH, self.cells.size())),
        };
        value >> (8 * (offset % WIDTH)) & erased(size) as u32
    }

    fn cell(&self, offset: u64, size: u64) -> u32 {
        if offset + size <= self.cells.size() {
            self.cells.load(offset, size)
        } else {
            erased(size) as u32
        }
    }

    /// Writes `size` aligned bytes: 1, 2 or 4.
    pub fn write(&mut self, offset: u64, size: u64, value: u32) {
        let byte = value as u8;
        match self.expects {
            Expects::Command => self.command(byte),
            // Read array: nothing of it was meant.
            _ if byte == 0xff && self.expects.is_command() => self.command(byte),
            Expects::EraseConfirm if byte == 0xd0 => self.erase(offset),
            Expects::LockConfirm if matches!(byte, 0x01 | 0xd0) => self.done(Status::empty()),
            Expects::BufferConfirm if byte == 0xd0 => self.done(Status::empty()),
            Expects::Data => {
                self.expects = Expects::Command;
                self.program(offset, size, value);
            }
            Expects::Count => self.expects = Expects::Buffer((value & 0xffff) + 1),
            Expects::Buffer(left) => {
                self.program(offset, size, value);
                self.expects = match left {
                    1 => Expects::BufferConfirm,
                    left => Expects::Buffer(left - 1),
                };
            }
            Expects::EraseConfirm | Expects::LockConfirm | Expects::BufferConfirm => {
                self.done(Status::ERASE | Status::PROGRAM);
            }
        }
    }

    fn command(&mut self, command: u8) {
        use Expects::{Command, Count, Data, EraseConfirm, LockConfirm};
        (self.reads, self.expects) = match command {
            0x10 | 0x40 => (Reads::Status, Data),
            0x20 | 0x28 => (Reads::Status, EraseConfirm),
            0x60 => (Reads::Status, LockConfirm),
            0x70 => (Reads::Status, Command),
            0x90 => (Reads::Identifier, Command),
            0x98 => (Reads::Query, Command),
            0xe8 => (Reads::Status, Count),
            0x50 => {
                self.status = Status::READY;
                (Reads::Array, Command)
            }
            // Read array, and what is no command.
            _ => (Reads::Array, Command),
        };
    }

    /// An operation is done, with what went wrong.
    fn done(&mut self, wrong: Status) {
        self.expects = Expects::Command;
        self.status |= wrong;
    }

    fn erase(&mut self, offset: u64) {
        let start = offset & !(BLOCK - 1);
        let Range { start, end } = start..(start + BLOCK).min(self.cells.size());
        let wrong = if start < end {
            self.cells.fill(start..end);
            Status::empty()
        } else {
            Status::ERASE
        };
        self.done(wrong);
    }

    /// Clears the bits that are clear in `value`: none is ever set but by erasing.
    fn program(&mut self, offset: u64, size: u64, value: u32) {
        if offset + size <= self.cells.size() {
            let old = self.cells.load(offset, size);
            self.cells.store(offset, size, old & value);
        } else {
            self.status |= Status::PROGRAM;
        }
    }
}

/// What `size` bytes of erased flash read as: all ones.
pub const fn erased(size: u64) -> u64 {
    u64::MAX >> (64 - 8 * size)
}

/// Manufacturer and device; the rest says that a block is not locked.
const fn identifier(word: u64) -> u8 {
    match word {
        0 => 0x89,
        1 => 0x18,
        _ => 0,
    }
}

/// The query table of a chip (JEP137, table 4 on).
const fn query(word: u64, size: u64) -> u8 {
    // The chips share the size and each block.
    let (chip, blocks) = (size / 2, size / BLOCK - 1);
    let block = (BLOCK / 2) >> 8;
    match word {
        0x10 => b'Q',
        0x11 => b'R',
        0x12 => b'Y',
        // Intel's extended command set, whose own table stands at 0x31.
        0x13 => 0x01,
        0x15 => 0x31,
        // Volts, and times of operations as powers of two.
        0x1b => 0x45,
        0x1c => 0x55,
        0x1f | 0x20 => 0x07,
        0x21 => 0x0a,
        0x23..=0x25 => 0x04,
        0x27 => chip.trailing_zeros() as u8,
        // x8 and x16; 2^11 bytes of buffer.
        0x28 => 0x02,
        0x2a => 0x0b,
        // One region of equal blocks.
        0x2c => 0x01,
        0x2d => blocks as u8,
        0x2e => (blocks >> 8) as u8,
        0x2f => block as u8,
        0x30 => (block >> 8) as u8,
        0x31 => b'P',
        0x32 => b'R',
        0x33 => b'I',
        0x34 => b'1',
        0x35 => b'0',
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::cell::RefCell;
    use std::vec;
    use std::vec::Vec;

    /// Two blocks.
    struct Bytes(RefCell<Vec<u8>>);

    impl Cells for Bytes {
        fn size(&self) -> u64 {
            self.0.borrow().len() as u64
        }

        fn load(&self, offset: u64, size: u64) -> u32 {
            let bytes = self.0.borrow();
            (0..size).fold(0, |all, n| {
                all | u32::from(bytes[(offset + n) as usize]) << (8 * n)
            })
        }

        fn store(&self, offset: u64, size: u64, value: u32) {
            let to = &mut self.0.borrow_mut()[offset as usize..][..size as usize];
            to.copy_from_slice(&value.to_le_bytes()[..size as usize]);
        }
    }

    fn flash() -> Flash<Bytes> {
        Flash::new(Bytes(RefCell::new(vec![0; 2 * BLOCK as usize])))
    }

    /// A command, to both chips.
    fn both(command: u32) -> u32 {
        command << 16 | command
    }

    /// The status; reading goes back to the array.
    fn status(flash: &mut Flash<Bytes>) -> u32 {
        flash.write(0, 4, both(0x70));
        let status = flash.read(8, 4);
        flash.write(0, 4, both(0xff));
        status
    }

    #[test]
    fn a_block_is_erased_and_no_other() {
        let mut flash = flash();
        flash.write(BLOCK + 8, 4, both(0x20));
        assert_eq!(flash.read(BLOCK, 4), 0x0080_0080, "before it is confirmed");
        flash.write(BLOCK + 8, 4, both(0xd0));
        assert_eq!(status(&mut flash), 0x0080_0080);
        assert_eq!(flash.read(BLOCK - 4, 4), 0);
        assert_eq!(flash.read(BLOCK, 4), u32::MAX);
        assert_eq!(flash.read(2 * BLOCK - 1, 1), 0xff);
    }

    #[test]
    fn programming_clears_bits_until_they_are_erased() {
        let mut flash = flash();
        for (command, count) in [(0x20, 0), (0xd0, 0)] {
            flash.write(count, 4, both(command));
        }
        for (value, found) in [(0x1234_5678, 0x1234_5678), (0xf0f0_f0f0, 0x1030_5070)] {
            flash.write(16, 4, both(0x40));
            flash.write(16, 4, value);
            assert_eq!(status(&mut flash), 0x0080_0080);
            assert_eq!(flash.read(16, 4), found);
        }
        assert_eq!(flash.read(18, 1), 0x30);
        assert_eq!(flash.read(18, 2), 0x1030);
    }

    #[test]
    fn a_buffer_is_programmed_word_by_word_and_ends_when_it_says() {
        let mut flash = flash();
        flash.write(0, 4, both(0x20));
        flash.write(0, 4, both(0xd0));
        flash.write(64, 4, both(0xe8));
        assert_eq!(flash.read(64, 4), 0x0080_0080, "the buffer is there");
        flash.write(64, 4, both(2));
        // All ones are data here, not a command.
        for (at, value) in [(64, 1), (68, u32::MAX), (72, 3)] {
            flash.write(at, 4, value);
        }
        flash.write(64, 4, both(0xd0));
        assert_eq!(status(&mut flash), 0x0080_0080);
        let found: Vec<_> = (64..80).step_by(4).map(|at| flash.read(at, 4)).collect();
        assert_eq!(found, [1, u32::MAX, 3, u32::MAX]);
    }

    /// All of the buffer that the query table tells of: the count's lowest byte is that of
    /// a command, and so are those of the words.
    #[test]
    fn a_whole_buffer_is_programmed() {
        let mut flash = flash();
        flash.write(0, 4, both(0x20));
        flash.write(0, 4, both(0xd0));
        flash.write(0, 4, both(0xe8));
        flash.write(0, 4, both(0x3ff));
        for word in 0..0x400 {
            flash.write(4 * word, 4, both(0x20));
        }
        flash.write(0, 4, both(0xd0));
        assert_eq!(status(&mut flash), 0x0080_0080);
        assert_eq!(flash.read(0, 4), both(0x20));
        assert_eq!(flash.read(0xffc, 4), both(0x20));
        assert_eq!(flash.read(0x1000, 4), u32::MAX);
    }

    #[test]
    fn what_was_not_meant_is_not_done() {
        let mut flash = flash();
        for begin in [0x20, 0x60, 0x70] {
            flash.write(0, 4, both(begin));
            flash.write(0, 4, both(0xff));
            assert_eq!(flash.read(0, 4), 0, "{begin:#x}");
            assert_eq!(status(&mut flash), 0x0080_0080, "{begin:#x}");
        }
        // Another word than the one that confirms: a sequence that is none.
        flash.write(0, 4, both(0x20));
        flash.write(0, 4, both(0x40));
        assert_eq!(status(&mut flash), 0x00b0_00b0);
        flash.write(0, 4, both(0x50));
        assert_eq!(status(&mut flash), 0x0080_0080);
        assert_eq!(flash.read(0, 4), 0);
    }

    #[test]
    fn behind_the_last_cell_nothing_can_be_kept() {
        let mut flash = flash();
        let end = 2 * BLOCK;
        assert_eq!(flash.read(end, 4), u32::MAX);
        flash.write(end, 4, both(0x40));
        flash.write(end, 4, 0);
        assert_eq!(status(&mut flash), 0x0090_0090);
        assert_eq!(flash.read(end, 4), u32::MAX);
        flash.write(0, 4, both(0x50));
        flash.write(end, 4, both(0x20));
        flash.write(end, 4, both(0xd0));
        assert_eq!(status(&mut flash), 0x00a0_00a0);
    }

    #[test]
    fn it_says_what_it_is() {
        let mut flash = flash();
        flash.write(0x55 * 4, 4, both(0x98));
        let word = |flash: &Flash<Bytes>, at: u64| flash.read(at * 4, 4);
        let table: Vec<_> = (0x10..0x13).map(|at| word(&flash, at)).collect();
        assert_eq!(table, [both(0x51), both(0x52), both(0x59)]);
        // 2^18 bytes of each chip, in two blocks of 0x200 times 256 bytes.
        assert_eq!(word(&flash, 0x27), both(18));
        let regions: Vec<_> = (0x2c..0x31).map(|at| word(&flash, at)).collect();
        assert_eq!(regions, [both(1), both(1), 0, 0, both(2)]);
        flash.write(0, 4, both(0x90));
        assert_eq!((word(&flash, 0), word(&flash, 1)), (both(0x89), both(0x18)));
        assert_eq!(word(&flash, 2), 0, "not locked");
        assert_eq!(flash.read(4, 2), 0x18);
        assert_eq!(flash.read(7, 1), 0);
    }
}

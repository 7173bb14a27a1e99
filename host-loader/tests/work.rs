//! How much the host does for a guest by one exit: no guest chooses how long.

use core::cell::Cell;
use std::rc::Rc;

use host_loader::device::flash::{BLOCK, Cells, Flash};
use host_loader::emulate::execute::{By, Nowhere, Place, Space};
use host_loader::emulate::state::Cpu;
use host_loader::emulate::walk::Tables;
use host_loader::emulate::{self, Outcome};
use rmi::registers::Registers;
use zerocopy::FromZeros;

/// RAM, which holds the code and is populated a piece at a time.
const RAM: u64 = 0x4000_0000;
const PIECE: u64 = 2 << 20;
/// The second bank of flash.
const FLASH: u64 = 0x0400_0000;

/// Cells that count the bytes that are stored.
struct Counted(Rc<Cell<u64>>);

impl Cells for Counted {
    fn size(&self) -> u64 {
        8 * BLOCK
    }
    fn load(&self, _: u64, _: u64) -> u32 {
        u32::MAX
    }
    fn store(&self, _: u64, size: u64, _: u32) {
        self.0.set(self.0.get() + size);
    }
}

/// A guest that starts from flash, whose RAM is zeroed when it is touched.
struct Guest {
    code: Vec<u32>,
    flash: Flash<Counted>,
    /// Bytes that the host wrote into flash.
    erased: Rc<Cell<u64>>,
    touched: Vec<u64>,
}

impl Guest {
    fn new(code: Vec<u32>) -> Self {
        let erased = Rc::new(Cell::new(0));
        Self {
            code,
            flash: Flash::new(Counted(erased.clone())),
            erased,
            touched: Vec::new(),
        }
    }

    /// Bytes that the host wrote, of flash and of RAM that it zeroed.
    fn work(&self) -> u64 {
        self.erased.get() + self.touched.len() as u64 * PIECE
    }

    fn touch(&mut self, ipa: u64) {
        let piece = (ipa - RAM) / PIECE;
        if piece != 0 && !self.touched.contains(&piece) {
            self.touched.push(piece);
        }
    }
}

impl Tables for Guest {
    fn load(&mut self, _: u64) -> Option<u64> {
        None
    }
    fn exchange(&mut self, _: u64, _: u64, _: u64) -> bool {
        false
    }
}

impl Space for Guest {
    fn place(&self, ipa: u64) -> Place {
        match ipa {
            RAM.. => Place::Ram,
            FLASH..RAM => Place::Device,
            _ => Place::Nothing,
        }
    }
    fn read(&mut self, ipa: u64, size: u64) -> Result<u64, Nowhere> {
        let code = ipa.checked_sub(RAM).map(|at| at as usize / 4);
        if let Some(word) = code.and_then(|at| self.code.get(at)) {
            return Ok((*word).into());
        }
        match self.place(ipa) {
            Place::Ram => {
                self.touch(ipa);
                Ok(0)
            }
            _ => Ok(self.flash.read(ipa - FLASH, size.min(4)).into()),
        }
    }
    fn write(&mut self, ipa: u64, size: u64, value: u64) -> Result<(), Nowhere> {
        if self.place(ipa) == Place::Ram {
            self.touch(ipa);
            return Ok(());
        }
        // As `guest::flash::Devices` does.
        self.flash.write(ipa - FLASH, size.min(4), value as u32);
        if size > 4 {
            self.flash.write(ipa - FLASH + 4, 4, (value >> 32) as u32);
        }
        Ok(())
    }
    fn takes(&mut self, _: u64, _: u64) -> bool {
        true
    }
}

/// What one exit does for `ldxr w0, [x1]` of flash and what follows it. X2 is a piece of
/// RAM, X3 the step to the next; X4 and X5 are "erase" and "confirm", twice each.
fn one_exit(behind: impl Iterator<Item = u32>) -> (u64, Outcome) {
    let code = core::iter::once(0x885f_7c20).chain(behind).collect();
    let mut guest = Guest::new(code);
    // It reads as its status, and so not by itself.
    guest.flash.write(0, 4, 0x0070_0070);
    let mut registers = Registers::new_zeroed();
    registers.pstate = 0x3c5;
    registers.pc = RAM;
    registers.x[1] = FLASH;
    registers.x[2] = RAM + PIECE;
    registers.x[3] = PIECE;
    registers.x[4] = 0x00d0_00d0_0020_0020;
    registers.x[5] = 0x00d0_00d0_0020_0020;
    let mut cpu = Cpu {
        registers,
        zero_block: 64,
    };
    let outcome = emulate::serve(&mut cpu, &mut guest, FLASH, By::Read);
    (guest.work(), outcome)
}

/// As much as one instruction may (`st1` of four registers erases eight blocks), and as a
/// first touch: a piece.
const MOST: u64 = PIECE;

#[test]
fn a_sequence_of_stores_to_flash_erases_no_more_than_a_piece() {
    // stp x4, x5, [x1], again and again.
    let (work, outcome) = one_exit(core::iter::repeat_n(0xa900_1424, 100));
    assert!(matches!(outcome, Outcome::Done | Outcome::Parted(_)));
    assert!(work <= MOST, "{} KiB for one exit", work >> 10);
}

#[test]
fn a_sequence_of_loads_populates_few_pieces() {
    // ldrb w6, [x2]; add x2, x2, x3, again and again.
    let pair = [0x3940_0046, 0x8b03_0042];
    let (work, outcome) = one_exit(pair.into_iter().cycle().take(100));
    assert!(matches!(outcome, Outcome::Done | Outcome::Parted(_)));
    assert!(work <= 8 * MOST, "{} KiB for one exit", work >> 10);
}

//! The flash of a guest that starts from it, as QEMU's machine does with `-bios`: the
//! first bank holds its program, which it executes in place and cannot write; the second
//! keeps its variables, over resets too.

use super::error::{GuestError, Refusal};
use super::failure::FlashError;
use super::map;
use super::pieces::PIECE_SIZE;
use super::ram::{Extent, GuestRam, Ram, Spot};
use super::realm::Stage2;
use crate::device::flash::{Cells, Flash, erased};
use crate::granules::Granules;
use crate::image::{self, GuestMemory};
use crate::pace::Pace;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;
use guest_config::{Located, Mode};
use spin::Mutex;

/// The memory of both banks.
#[derive(Debug)]
pub struct Banks {
    /// The program's.
    pub code: GuestRam,
    variables: GuestRam,
}

/// Bytes that the second bank keeps, from its begin on.
const VARIABLES: u64 = PIECE_SIZE;

impl Banks {
    /// Takes memory for a guest that is to start from flash, by the program `file`; `None`
    /// if it starts from RAM.
    pub fn allocate(
        config: &Located,
        file: &[u8],
        granules: &Mutex<Granules>,
    ) -> Result<Option<Self>, GuestError> {
        let Some(load) = config.guest.load.filter(|at| map::FLASH_CODE.contains(at)) else {
            return Ok(None);
        };
        if config.guest.mode != Mode::Plain {
            return Err(Refusal::Flash(FlashError::Mode(load)).of(config));
        }
        if !image::is_raw(file) {
            let kernel = config.guest.kernel.clone();
            return Err(Refusal::Flash(FlashError::File(kernel)).of(config));
        }
        let end = load + file.len() as u64;
        if end > map::FLASH_CODE.end {
            return Err(Refusal::Flash(FlashError::End { load, end }).of(config));
        }
        // It has a part of each piece: of none is what others left there to be seen.
        let base = load & !(PIECE_SIZE - 1);
        let size = end.next_multiple_of(PIECE_SIZE) - base;
        let start = {
            let mut granules = granules.lock();
            let memory = size + VARIABLES;
            granules.take(memory, PIECE_SIZE).ok_or_else(|| {
                let left = granules.free_bytes();
                Refusal::Flash(FlashError::Memory { memory, left }).of(config)
            })?
        };
        let [code, kept] = [start..start + size, start + size..start + size + VARIABLES];
        // SAFETY: It was free: mapped, and nobody else's from here on.
        let (code, mut variables) = unsafe {
            let new = |base, part: &Range<u64>| GuestRam::new(base, core::slice::from_ref(part));
            (new(base, &code), new(map::FLASH.start, &kept))
        };
        let erased = [0xff; 4096];
        for at in variables.range().step_by(erased.len()) {
            variables.write(at, &erased);
        }
        Ok(Some(Self { code, variables }))
    }

    /// Gives the memory back.
    pub fn release(&self, granules: &mut Granules) {
        for extent in self.extents() {
            granules.give(extent.pa, extent.size);
        }
    }

    /// Cleans what was written of them to the point of coherency.
    pub async fn clean(&mut self, pace: &Pace) {
        self.code.clean_claimed(pace).await;
        self.variables.clean_claimed(pace).await;
    }

    /// What it finds as memory, to be read.
    pub fn extents(&self) -> impl Iterator<Item = Extent> {
        let both = [&self.code, &self.variables].into_iter();
        both.flat_map(|bank| bank.shared().extents().iter().copied())
    }

    /// The devices that stand for it, as after a reset.
    /// `coherent`: all of the guest's accesses are cached (FEAT_S2FWB).
    pub fn devices(&self, stage2: Stage2, coherent: bool) -> Devices {
        Devices {
            stage2,
            kept: self.variables.shared().extents().to_vec(),
            shown: true,
            program: self.code.shared().clone(),
            variables: Flash::new(Kept {
                ram: self.variables.shared().clone(),
                coherent,
            }),
        }
    }
}

/// What the second bank keeps.
#[derive(Debug)]
struct Kept {
    ram: Arc<Ram>,
    coherent: bool,
}

impl Cells for Kept {
    fn size(&self) -> u64 {
        VARIABLES
    }

    fn load(&self, offset: u64, size: u64) -> u32 {
        let spot = self.ram.find(map::FLASH.start + offset, size);
        spot.map_or(u32::MAX, |spot| spot.load(size, true) as u32)
    }

    fn store(&self, offset: u64, size: u64, value: u32) {
        if let Some(spot) = self.ram.find(map::FLASH.start + offset, size) {
            spot.store(size, value.into(), self.coherent);
        }
    }

    // One instruction may erase eight blocks: not word by word.
    fn fill(&self, bytes: Range<u64>) {
        let ipas = map::FLASH.start + bytes.start..map::FLASH.start + bytes.end;
        self.ram.fill_with_ones(ipas, self.coherent);
    }
}

/// The devices of a guest that starts from flash.
#[derive(Debug)]
pub struct Devices {
    stage2: Stage2,
    /// What the second bank keeps, which is mapped while it reads as memory.
    kept: Vec<Extent>,
    shown: bool,
    program: Arc<Ram>,
    variables: Flash<Kept>,
}

impl Devices {
    /// Whether there is one of them.
    pub fn have(ipa: u64) -> bool {
        [map::FLASH_CODE, map::FLASH]
            .iter()
            .any(|range| range.contains(&ipa))
    }

    /// Where its program has these bytes, which nobody writes.
    pub fn program_at(&self, ipa: u64, size: u64) -> Option<Spot> {
        self.program.find(ipa, size)
    }

    /// Reads 1, 2, 4 or 8 aligned bytes at `ipa`.
    pub fn read(&self, ipa: u64, size: u64) -> u64 {
        let Some(offset) = ipa.checked_sub(map::FLASH.start) else {
            let program = self.program_at(ipa, size);
            return program.map_or(erased(size), |at| at.load(size, true));
        };
        if size <= 4 {
            return self.variables.read(offset, size).into();
        }
        let [low, high] = [offset, offset + 4].map(|at| u64::from(self.variables.read(at, 4)));
        high << 32 | low
    }

    /// Writes them. What is written to the program is lost.
    pub fn write(&mut self, ipa: u64, size: u64, value: u64) {
        let Some(offset) = ipa.checked_sub(map::FLASH.start) else {
            return;
        };
        self.variables.write(offset, size.min(4), value as u32);
        if size > 4 {
            self.variables.write(offset + 4, 4, (value >> 32) as u32);
        }
        self.show(self.variables.is_memory());
    }

    /// Has the bank mapped, or not: what is not mapped is read here.
    pub fn show(&mut self, shown: bool) {
        if shown == self.shown {
            return;
        }
        self.shown = shown;
        for extent in &self.kept {
            if let Err(error) = self.stage2.show(*extent, shown) {
                log::error!("flash: {error}");
            }
        }
    }
}

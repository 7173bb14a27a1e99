//! What the machine's memory says of EL2's work: the table of granules, every realm's
//! stage 2 and the host's, compared with each other, from outside.
//!
//! The machine's RAM is a file that QEMU maps; the program on the machine stands still
//! meanwhile, in none of EL2's calls. Nothing in the image serves this: [`layout`]
//! finds its structures by the debug information of its ELF file, [`tree`] walks tables
//! by `mmu-model`, and [`judge`] says what must hold.

pub mod judge;
pub mod layout;
pub mod plants;
pub mod ram;
pub mod state;
pub mod tree;

#[cfg(test)]
mod tests;

use anyhow::Result;

use judge::Report;
use layout::Layout;
use ram::Ram;
use state::State;

/// An image in the memory of a machine.
#[derive(Debug)]
pub struct Audit {
    /// The memory.
    pub ram: Ram,
    /// The image's structures.
    pub layout: Layout,
    /// Where it begins.
    pub image: u64,
    /// What a guest of the machine keeps to itself.
    pub secret: u64,
}

impl Audit {
    /// EL2's state.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn state(&self) -> Result<State> {
        State::read(&self.ram, &self.layout, self.image)
    }

    /// Looks at everything.
    ///
    /// # Errors
    /// When something cannot be read at all.
    pub fn look(&self) -> Result<Report> {
        judge::judge(&self.ram, &self.state()?, self.secret)
    }
}

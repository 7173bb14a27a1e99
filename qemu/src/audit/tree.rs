//! A stage-2 tree, read by the walker of `mmu-model`, which shares nothing with the
//! code that made the tree.

use anyhow::{Result, anyhow};
use mmu_model::{Desc, Features, Shape};

use super::ram::Ram;

/// Registers of a stage 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registers {
    /// `VTTBR_EL2`.
    pub vttbr: u64,
    /// `VTCR_EL2`.
    pub vtcr: u64,
}

/// What stands in an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// The next table.
    Table(u64),
    /// Memory.
    Leaf(u64),
    /// Nothing that the CPU looks at, but a word of EL2's.
    Invalid,
}

/// An entry that is not zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// PA of the granule that it is in.
    pub table: u64,
    /// Its own PA.
    pub at: u64,
    /// What it maps, from there on.
    pub ia: u64,
    /// log2 of the bytes that it maps.
    pub shift: u8,
    /// Its level.
    pub level: i8,
    /// The word.
    pub word: u64,
    /// What that is.
    pub what: What,
}

/// A tree.
#[derive(Debug)]
pub struct Tree {
    shape: Shape,
    root: u64,
}

impl Tree {
    /// The tree that these registers lead to, on a CPU with so many bits of PA.
    ///
    /// # Errors
    /// When they lead to none.
    pub fn new(registers: Registers, pa_bits: u8) -> Result<Self> {
        let features = Features {
            pa_bits,
            ..Features::max()
        };
        let why = |fault: mmu_model::SetupFault| anyhow!("{registers:x?}: {}", fault.rule);
        let shape = Shape::stage2(registers.vtcr, 0, &features).map_err(why)?;
        let (root, _) = shape.root(registers.vttbr).map_err(why)?;
        Ok(Self { shape, root })
    }

    /// The granules of its root: the first, and how many.
    pub fn roots(&self) -> (u64, u64) {
        let bytes = self.shape.root_entries() * 8;
        (self.root, bytes.div_ceil(self.shape.table_bytes()))
    }

    /// The address in an entry that is not valid.
    pub fn address(&self, word: u64) -> Option<u64> {
        match self.shape.decode(3, word | 0b11) {
            Desc::Leaf(pa) => Some(pa),
            _ => None,
        }
    }

    /// Passes `each` every entry that is not zero.
    ///
    /// # Errors
    /// When a table is no RAM, a descriptor is none, or `each` fails.
    pub fn each(&self, ram: &Ram, each: &mut impl FnMut(&Entry) -> Result<()>) -> Result<()> {
        self.table(ram, (self.root, self.shape.start, 0), each)
    }

    fn table(
        &self,
        ram: &Ram,
        (table, level, ia): (u64, i8, u64),
        each: &mut impl FnMut(&Entry) -> Result<()>,
    ) -> Result<()> {
        let shape = &self.shape;
        let count = if level == shape.start {
            shape.root_entries()
        } else {
            shape.table_bytes() / 8
        };
        for (n, word) in (0..).zip(ram.words(table, count)?) {
            if word == 0 {
                continue;
            }
            let what = match shape.decode(level, word) {
                Desc::Invalid => What::Invalid,
                Desc::Table(next) => What::Table(next),
                Desc::Leaf(pa) => What::Leaf(pa),
                Desc::Bad(why) => return Err(anyhow!("{word:#x} in {table:#x}: {why:?}")),
            };
            let at = table + 8 * n;
            let entry = Entry {
                table: at & !(shape.table_bytes() - 1),
                at,
                ia: ia + n * shape.span(level),
                shift: shape.shift(level),
                level,
                word,
                what,
            };
            each(&entry)?;
            if let What::Table(next) = what {
                self.table(ram, (next, level + 1, entry.ia), each)?;
            }
        }
        Ok(())
    }
}

impl Tree {
    /// Where the walk for `ia` ends: the entry's PA, its level, and its word.
    ///
    /// # Errors
    /// When it leaves RAM.
    pub fn slot(&self, ram: &Ram, ia: u64) -> Result<(u64, i8, u64)> {
        let (mut table, mut level) = (self.root, self.shape.start);
        loop {
            let at = table + 8 * self.shape.index(level, ia);
            let word = ram.word(at)?;
            match self.shape.decode(level, word) {
                Desc::Table(next) => (table, level) = (next, level + 1),
                _ => return Ok((at, level, word)),
            }
        }
    }
}

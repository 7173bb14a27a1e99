//! What an operation's numbers mean: where, how much, how, to which memory.
//!
//! Ranges are a few pages or around blocks, near one of four places of the
//! space, or in and around what the shadow holds. Whole tables of pages are
//! rare where they are large.

use super::{Kind, Run, Task};
use Kind as K;
use pgtable::{Access, Age, Attrs, Dirty, Execute, Leaves, Level, Partial};

impl Run<'_, '_> {
    /// An address near one of a few places all over the space.
    pub(super) fn place(&self, n: u64) -> u64 {
        let span = self.geometry.span(Level::L2);
        let end = self.space();
        let anchor = match n % 4 {
            0 => 0,
            1 => end / 2,
            2 => end - 4 * span,
            _ => end / 4 * 3 - 2 * span,
        };
        anchor & !(span - 1)
    }

    /// The longest range: memory for it must be found below the PA size.
    pub(super) fn longest(&self) -> u64 {
        (1u64 << self.geometry.shape().oa_bits()) / 32
    }

    /// True when a mapping with these attributes may make blocks of level 2,
    /// be it that none is cleaned, or that one is not too large for it.
    pub(super) fn blocks(&self, attrs: &Attrs) -> bool {
        use pgtable::Memory as M;
        let small = self.geometry.span(Level::L2) <= 2 << 20;
        let past = matches!(attrs.memory, M::NormalNonCacheable | M::FromStage1);
        let fwb = self.geometry.features().fwb && !past;
        self.geometry.leaf_ok(Level::L2) && (small || fwb)
    }

    /// A range: a few pages, or around blocks.
    pub(super) fn range(&self, a: u64, b: u64) -> (u64, u64) {
        let (page, span) = (self.page(), self.geometry.span(Level::L2));
        let anchor = self.place(a);
        let (offset, size) = match a >> 2 & 7 {
            0..=2 => ((a >> 5) % 24 * page, (1 + b % 20) * page),
            3 => (span - (1 + (a >> 5) % 8) * page, (1 + b % 16) * page),
            4 | 5 => ((a >> 5) % 2 * span, (1 + b % 2) * span),
            6 => (
                (a >> 5) % 2 * span + (a >> 6) % 3 * page,
                span + b % 3 * page,
            ),
            _ => {
                let group = page << self.group_bits(Level::L3).unwrap_or(4);
                ((a >> 5) % 3 * group, (1 + b % 2) * group)
            }
        };
        (anchor + offset, size.min(self.longest()))
    }

    /// A range in or around something that the shadow holds.
    pub(super) fn aimed(&self, guest: usize, a: u64, b: u64) -> Option<(u64, u64)> {
        let page = self.page();
        let (from, to, _) = self.guests[guest].shadow.some(a >> 8)?;
        let pages = (to - from) / page;
        let skip = match a >> 32 & 3 {
            0 | 1 => 0,
            2 => (a >> 34) % pages.min(24),
            _ => (a >> 34) % pages,
        };
        let start = from + skip * page;
        let size = match b & 3 {
            0 => page,
            1 => (1 + (b >> 2) % 24) * page,
            2 => to - start,
            _ => to - start + (b >> 2) % 4 * page,
        };
        // No more than two tables of pages, whatever a block may span.
        let most = 2 * self.geometry.span(Level::L2);
        let room = self.space() - start;
        Some((start, size.min(most).min(self.longest()).min(room)))
    }

    pub(super) fn group_bits(&self, level: Level) -> Option<u32> {
        let bits = self.geometry.granule().contiguous_bits(level)?;
        Some(u32::from(bits))
    }

    pub(super) fn attrs(&self, n: u64) -> Attrs {
        use pgtable::{Device, Memory as M};
        let features = self.geometry.features();
        let memory = match n >> 4 & 7 {
            5 => M::NormalNonCacheable,
            6 => M::Device(Device::NGnRE),
            7 => M::FromStage1,
            _ => M::Normal,
        };
        Attrs {
            access: [
                Access::ReadWrite,
                Access::Read,
                Access::ReadWrite,
                Access::Write,
            ][(n & 3) as usize],
            execute: self.execute(n >> 2),
            memory,
            age: if n >> 7 & 3 == 3 || features.hw_access_flag && n >> 7 & 1 == 1 {
                Age::Old
            } else {
                Age::Young
            },
            dirty: if n >> 9 & 3 == 3 || features.hw_dirty && n >> 9 & 1 == 1 {
                Dirty::Track
            } else {
                Dirty::Fault
            },
            soft: (n >> 11 & 15) as u8,
            ..Attrs::MEMORY
        }
    }

    pub(super) fn execute(&self, n: u64) -> Execute {
        match n & 3 {
            1 if self.geometry.features().xnx => Execute::El0,
            2 if self.geometry.features().xnx => Execute::El1,
            3 => Execute::Never,
            _ => Execute::All,
        }
    }

    /// The memory for a range: the same for the same `variant`, disjoint
    /// between guests.
    pub(super) fn target(&self, guest: usize, ipa: u64, variant: u64) -> u64 {
        let bits = u32::from(self.geometry.shape().oa_bits()) - 3;
        let within = ipa & ((1 << (bits - 1)) - 1);
        let shift = if variant & 3 == 3 { self.page() } else { 0 };
        let half = (guest as u64) << (bits + 2);
        let slot = (1 + variant % 3) << bits;
        half + (slot & ((1 << (bits + 2)) - 1)) + within + shift
    }

    /// True if so many pages are too many to be mapped one by one each time:
    /// tables are large where the granule is.
    pub(super) fn dear(&self, pages: u64, c: u64) -> bool {
        let entries = self.geometry.granule().entries() as u64;
        pages >= entries / 2 && c >> 24 & (entries / 64 - 1) != 0
    }

    /// The range of a mapping, which is made of whole blocks if its pages are
    /// too many.
    pub(super) fn in_blocks(
        &self,
        kind: Kind,
        start: u64,
        end: u64,
        (b, c): (u64, u64),
    ) -> (u64, u64) {
        let span = self.geometry.span(Level::L2);
        let maps = matches!(kind, K::Map | K::MapExclusive);
        if !maps || span > self.longest() || !self.dear((end - start) / self.page(), c) {
            return (start, end);
        }
        if !self.blocks(&self.attrs(b >> 8)) {
            return (start, start + (1 + c % 24) * self.page());
        }
        let start = start & !(span - 1);
        (
            start,
            start + (end - start).next_multiple_of(span).min(self.longest()),
        )
    }

    /// What to do about a block in part: seldom a split where it makes
    /// thousands of entries.
    pub(super) fn partial(&self, c: u64) -> Partial {
        let often = self.geometry.granule().entries() as u64 / 512;
        match c % 3 {
            0 if c >> 33 & (often - 1) == 0 => Partial::Split,
            0 | 1 => Partial::DropWhole,
            _ => Partial::Refuse,
        }
    }

    /// What a task maps: to where, how, with which leaves.
    pub(super) fn mapping(&self, task: &Task) -> (u64, Attrs, Leaves) {
        let dear = self.dear(task.size() / self.page(), task.c);
        let leaves = match task.c >> 16 & 3 {
            0 if !dear => Leaves::Exactly(Level::L3),
            1 => Leaves::AtMost(Level::L2),
            _ => Leaves::Largest,
        };
        let variant = task.c >> 20 & if dear { 1 } else { 15 };
        let pa = self.target(task.guest, task.start, variant);
        (pa, self.attrs(task.b >> 8), leaves)
    }
}

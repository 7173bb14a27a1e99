//! The break-before-make automaton: what a TLB may still hold.
//!
//! Each entry that was valid and is so no more (or allows less than before) is
//! *unclean* until, in this order and on every PE:
//!
//! 1. the writer's DSB made the store visible (**guard**),
//! 2. a TLBI that names it was issued after that (**s2 pending**),
//! 3. the issuer's DSB completed it (**s2 done**),
//! 4. for leaves of stage 2, a TLBI of combined entries was issued after that
//!    (**s1 pending**) and completed (**s1 done**).
//!
//! Neighbouring entries in the same state make one [`Run`], so that a sweep
//! over a gigabyte of pages is one record and each event costs O(1) of them.
//! States are masks with one bit per PE; pending masks are kept per issuer,
//! since only the issuer's own DSB completes its TLBIs.

use std::collections::BTreeMap;

use crate::descriptor::Perms;

/// Most PEs a machine may have.
pub const MAX_PES: usize = 8;

/// One bit per PE.
pub(crate) type PeMask = u8;

/// What an unclean entry was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Was {
    /// A leaf that is gone: nothing else may take its place yet.
    Leaf,
    /// A table that is gone: walkers may still be inside.
    Table,
    /// A leaf that stays with fewer rights, or without its access flag.
    Loose,
}

/// Attempts that had no effect, remembered to name the cause later.
pub(crate) mod note {
    pub(crate) const EARLY: u16 = 1;
    pub(crate) const WRONG_VMID: u16 = 1 << 1;
    pub(crate) const TG: u16 = 1 << 2;
    pub(crate) const TTL: u16 = 1 << 3;
    pub(crate) const LAST_LEVEL: u16 = 1 << 4;
    pub(crate) const ISB: u16 = 1 << 5;
    pub(crate) const GROUP: u16 = 1 << 6;
    pub(crate) const S1_EARLY: u16 = 1 << 7;
    pub(crate) const REGIME: u16 = 1 << 8;
    pub(crate) const REFILL: u16 = 1 << 9;
}

/// How far the invalidation of an entry has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// PEs whose walkers see the store for certain.
    pub guard: PeMask,
    /// PEs rid of entries that stage 2 alone made.
    pub s2: PeMask,
    /// PEs rid of combined entries.
    pub s1: PeMask,
    /// PEs past the repeat that an erratum asks for.
    pub late: PeMask,
    pub s2_pending: [PeMask; MAX_PES],
    pub s1_pending: [PeMask; MAX_PES],
    pub late_pending: [PeMask; MAX_PES],
    pub notes: u16,
}

/// Neighbouring unclean entries of one kind, level and state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub entries: u64,
    /// The descriptor's bits besides the address (leaves), or the whole of it.
    pub old: u64,
    /// Output address of the first entry, or the table's.
    pub oa: u64,
    /// All rights that a TLB may still give (leaves).
    pub perms: Perms,
    /// The removal that this belongs to, 0 if it stands alone.
    pub tag: u32,
    /// The PE that wrote.
    pub writer: u8,
    /// Members of contiguous groups.
    pub contiguous: bool,
    /// Only the access flag was taken: an old entry is tolerated.
    pub aged: bool,
    /// First event of the run.
    pub since: u64,
    pub progress: Progress,
}

/// A class of runs: what they were, at which level.
pub(crate) type Class = (Was, i8);

#[derive(Clone, Debug)]
struct Runs {
    class: Class,
    shift: u8,
    map: BTreeMap<u64, Run>,
}

impl Runs {
    fn end(&self, base: u64, run: &Run) -> u64 {
        base + (run.entries << self.shift)
    }

    fn merges(&self, base: u64, a: &Run, at: u64, b: &Run) -> bool {
        let bytes = a.entries << self.shift;
        base + bytes == at
            && a.progress == b.progress
            && a.old == b.old
            && a.perms == b.perms
            && a.tag == b.tag
            && a.writer == b.writer
            && a.aged == b.aged
            && a.contiguous == b.contiguous
            && self.class.0 != Was::Table
            && a.oa + bytes == b.oa
    }

    fn insert(&mut self, mut base: u64, mut run: Run) {
        if let Some((&before, left)) = self.map.range(..base).next_back()
            && self.merges(before, left, base, &run)
        {
            let left = *left;
            run.entries += left.entries;
            run.oa = left.oa;
            run.since = run.since.min(left.since);
            self.map.remove(&before);
            base = before;
        }
        let end = self.end(base, &run);
        if let Some(right) = self.map.get(&end)
            && self.merges(base, &run, end, right)
        {
            run.entries += right.entries;
            run.since = run.since.min(right.since);
            self.map.remove(&end);
        }
        self.map.insert(base, run);
    }

    /// Bases of runs that overlap `[lo, hi)`.
    fn overlapping(&self, lo: u64, hi: u64, out: &mut Vec<u64>) {
        out.clear();
        if let Some((&base, run)) = self.map.range(..lo).next_back()
            && self.end(base, run) > lo
        {
            out.push(base);
        }
        if lo < hi {
            out.extend(self.map.range(lo..hi).map(|(&base, _)| base));
        }
    }

    /// Takes `[a, b)` out of the run at `base`, returns that part.
    fn carve(&mut self, base: u64, a: u64, b: u64) -> Option<Run> {
        let run = self.map.remove(&base)?;
        let end = self.end(base, &run);
        let part = |from: u64, to: u64| Run {
            entries: (to - from) >> self.shift,
            oa: if self.class.0 == Was::Table {
                run.oa
            } else {
                run.oa + (from - base)
            },
            ..run
        };
        if base < a {
            self.map.insert(base, part(base, a));
        }
        if b < end {
            self.map.insert(b, part(b, end));
        }
        Some(part(a, b))
    }
}

/// All unclean entries of one tree under one VMID.
#[derive(Clone, Debug, Default)]
pub(crate) struct Unclean {
    classes: Vec<Runs>,
    /// A member of a contiguous group was added since all was clean.
    contiguous: bool,
    scratch: Vec<u64>,
}

impl Unclean {
    pub(crate) fn is_empty(&self) -> bool {
        self.classes.iter().all(|r| r.map.is_empty())
    }

    /// True if members of contiguous groups may be among the runs.
    pub(crate) fn has_contiguous(&self) -> bool {
        self.contiguous
    }

    fn class(&mut self, class: Class, shift: u8) -> &mut Runs {
        let at = self.classes.iter().position(|r| r.class == class);
        let at = at.unwrap_or_else(|| {
            self.classes.push(Runs {
                class,
                shift,
                map: BTreeMap::new(),
            });
            self.classes.len() - 1
        });
        &mut self.classes[at]
    }

    /// Adds an entry (`run.entries` of them) at `base`.
    pub(crate) fn insert(&mut self, class: Class, shift: u8, base: u64, run: Run) {
        self.contiguous |= run.contiguous;
        self.class(class, shift).insert(base, run);
    }

    /// Every run that overlaps `[lo, hi)`, as (class, first, last + 1, run).
    pub(crate) fn overlapping(
        &self,
        lo: u64,
        hi: u64,
    ) -> impl Iterator<Item = (Class, u64, u64, &Run)> + '_ {
        self.classes.iter().flat_map(move |runs| {
            let before = runs
                .map
                .range(..lo)
                .next_back()
                .filter(move |&(&base, run)| runs.end(base, run) > lo);
            before
                .into_iter()
                .chain(runs.map.range(lo..hi.max(lo)))
                .map(move |(&base, run)| (runs.class, base, runs.end(base, run), run))
        })
    }

    /// Applies `f` to the entries that `[lo, hi)` touches, in each class that
    /// `which` picks; runs are split at the entries' bounds where needed.
    pub(crate) fn touch(
        &mut self,
        lo: u64,
        hi: u64,
        which: impl Fn(Class, &Run) -> bool,
        mut f: impl FnMut(Class, &mut Progress),
    ) {
        let mut found = std::mem::take(&mut self.scratch);
        for runs in &mut self.classes {
            if runs.map.is_empty() {
                continue;
            }
            let class = runs.class;
            let span = 1u64 << runs.shift;
            let a = lo & !(span - 1);
            let b = hi.saturating_add(span - 1) & !(span - 1);
            runs.overlapping(a, b, &mut found);
            for &base in &found {
                let Some(run) = runs.map.get(&base) else {
                    continue;
                };
                if !which(class, run) {
                    continue;
                }
                let mut progress = run.progress;
                f(class, &mut progress);
                if progress == run.progress {
                    continue;
                }
                let (from, to) = (a.max(base), b.min(runs.end(base, run)));
                if let Some(mut part) = runs.carve(base, from, to) {
                    part.progress = progress;
                    runs.insert(from, part);
                }
            }
        }
        self.scratch = found;
    }

    /// Applies `f` to every run, then drops those for which it says so.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(Class, &mut Run) -> bool) {
        for runs in &mut self.classes {
            let class = runs.class;
            runs.map.retain(|_, run| keep(class, run));
        }
        self.contiguous &= !self.is_empty();
    }

    /// Takes what lies in `[lo, hi)` out of one class, part by part.
    pub(crate) fn remove(
        &mut self,
        class: Class,
        lo: u64,
        hi: u64,
        which: impl Fn(&Run) -> bool,
        mut each: impl FnMut(u64, Run),
    ) {
        let mut found = std::mem::take(&mut self.scratch);
        for runs in self.classes.iter_mut().filter(|r| r.class == class) {
            runs.overlapping(lo, hi, &mut found);
            for &base in &found {
                let Some(run) = runs.map.get(&base) else {
                    continue;
                };
                if !which(run) {
                    continue;
                }
                let (from, to) = (lo.max(base), hi.min(runs.end(base, run)));
                if let Some(part) = runs.carve(base, from, to) {
                    each(from, part);
                }
            }
        }
        self.scratch = found;
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.classes.clear();
        self.contiguous = false;
    }

    /// Number of runs.
    pub(crate) fn len(&self) -> usize {
        self.classes.iter().map(|r| r.map.len()).sum()
    }
}

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

use std::ops::Range;

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

/// The runs of one class, in order. A DSB visits them all, so that there are
/// few of them; a vector beats a tree then.
#[derive(Clone, Debug)]
struct Runs {
    class: Class,
    shift: u8,
    /// First address and run.
    list: Vec<(u64, Run)>,
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

    /// How many runs begin below `at`.
    fn below(&self, at: u64) -> usize {
        match self.list.last() {
            None => 0,
            Some(&(base, _)) if base < at => self.list.len(),
            _ => self.list.partition_point(|&(base, _)| base < at),
        }
    }

    /// The places of runs that overlap `[lo, hi)`.
    fn places(&self, lo: u64, hi: u64) -> std::ops::Range<usize> {
        let mut first = self.below(lo);
        let last = if lo < hi { self.below(hi) } else { first };
        if first > 0 {
            let (base, run) = &self.list[first - 1];
            first -= usize::from(self.end(*base, run) > lo);
        }
        first..last.max(first)
    }

    /// Adds a run where none is, merged with its neighbours.
    fn insert(&mut self, base: u64, run: Run) {
        let mut place = self.below(base);
        let left = place.checked_sub(1).map(|left| self.list[left]);
        if let Some((before, left)) = left
            && self.merges(before, &left, base, &run)
        {
            place -= 1;
            let mine = &mut self.list[place].1;
            mine.entries += run.entries;
            mine.since = mine.since.min(run.since);
        } else {
            // What stood at the same address is replaced.
            match self.list.get_mut(place) {
                Some(there) if there.0 == base => there.1 = run,
                _ => self.list.insert(place, (base, run)),
            }
        }
        let (base, run) = self.list[place];
        if let Some(&(next, right)) = self.list.get(place + 1)
            && self.merges(base, &run, next, &right)
        {
            let mine = &mut self.list[place].1;
            mine.entries += right.entries;
            mine.since = mine.since.min(right.since);
            self.list.remove(place + 1);
        }
    }

    /// Takes `[a, b)` out of the run at `place`, returns that part.
    fn carve(&mut self, place: usize, a: u64, b: u64) -> Run {
        let (base, run) = self.list[place];
        let end = self.end(base, &run);
        let (shift, table) = (self.shift, self.class.0 == Was::Table);
        let part = |from: u64, to: u64| Run {
            entries: (to - from) >> shift,
            oa: if table {
                run.oa
            } else {
                run.oa + (from - base)
            },
            ..run
        };
        match (base < a, b < end) {
            (false, false) => {
                self.list.remove(place);
            }
            (true, false) => self.list[place].1 = part(base, a),
            (false, true) => self.list[place] = (b, part(b, end)),
            (true, true) => {
                self.list[place].1 = part(base, a);
                self.list.insert(place + 1, (b, part(b, end)));
            }
        }
        part(a, b)
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
        self.classes.iter().all(|r| r.list.is_empty())
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
                list: Vec::new(),
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
            let list = &runs.list[runs.places(lo, hi)];
            list.iter()
                .map(move |(base, run)| (runs.class, *base, runs.end(*base, run), run))
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
            if runs.list.is_empty() {
                continue;
            }
            let class = runs.class;
            let span = 1u64 << runs.shift;
            let a = lo & !(span - 1);
            let b = hi.saturating_add(span - 1) & !(span - 1);
            found.clear();
            let places = runs.places(a, b);
            found.extend(runs.list[places].iter().map(|&(base, _)| base));
            for &base in &found {
                let place = runs.below(base);
                let Some((_, run)) = runs.list.get(place).filter(|&&(at, _)| at == base) else {
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
                let mut part = runs.carve(place, from, to);
                part.progress = progress;
                runs.insert(from, part);
            }
        }
        self.scratch = found;
    }

    /// Applies `f` to every run, then drops those for which it says so.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(Class, &mut Run) -> bool) {
        for runs in &mut self.classes {
            let class = runs.class;
            runs.list.retain_mut(|(_, run)| keep(class, run));
        }
        self.contiguous &= !self.is_empty();
    }

    /// Takes what lies in a range out of one class, part by part.
    pub(crate) fn remove(
        &mut self,
        class: Class,
        Range { start: lo, end: hi }: Range<u64>,
        which: impl Fn(&Run) -> bool,
        mut each: impl FnMut(u64, Run),
    ) {
        for runs in self.classes.iter_mut().filter(|r| r.class == class) {
            if runs.list.is_empty() {
                continue;
            }
            let places = runs.places(lo, hi);
            let mut place = places.start;
            for _ in places {
                let (base, run) = &runs.list[place];
                if !which(run) {
                    place += 1;
                    continue;
                }
                let (from, to) = (lo.max(*base), hi.min(runs.end(*base, run)));
                let left = usize::from(*base < from);
                let part = runs.carve(place, from, to);
                // What is left of the run comes before the next.
                place += left;
                each(from, part);
            }
        }
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.classes.clear();
        self.contiguous = false;
    }

    /// Number of runs.
    pub(crate) fn len(&self) -> usize {
        self.classes.iter().map(|r| r.list.len()).sum()
    }
}

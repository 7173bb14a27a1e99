//! Questions: what an access may see, and whether that is what was promised.

use std::ops::Range;

use crate::descriptor::{Attrs, Desc};
use crate::event::{Promise, Target};
use crate::machine::{El2Change, Machine, Verdict};
use crate::mem::Use;
use crate::shape::Regime;
use crate::spec::Spec;
use crate::unclean::Was;
use crate::violation::{Kind, Violation};
use crate::walker::{Above, Outcome, Step, Translation, step, walk};

/// Where a possible outcome comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The newest tables.
    Walk,
    /// A walk that does not see some store yet.
    OldWalk,
    /// A TLB or walk cache entry that was not invalidated.
    Tlb,
}

/// One thing an access may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Possible {
    /// Translation or fault.
    pub outcome: Outcome,
    /// Where it comes from.
    pub source: Source,
}

/// A leaf met while reading a tree's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// First input address.
    pub ia: u64,
    /// Level.
    pub level: i8,
    /// log2 of the bytes mapped.
    pub size_log2: u8,
    /// Output address.
    pub oa: u64,
    /// Attributes.
    pub attrs: Attrs,
    /// Raw descriptor.
    pub desc: u64,
}

impl Machine {
    fn installed(&self, pe: u8, regime: Regime) -> Option<(u32, u32)> {
        let pe = self.pes.get(usize::from(pe))?;
        match regime {
            Regime::Stage2 => pe.stage2,
            Regime::El2 => pe.el2,
        }
    }

    /// What `pe` may see at `ia` in the tree it has installed: the newest walk
    /// first, then walks that miss pending stores, then stale TLB entries.
    /// Empty if no tree is installed.
    pub fn translate(&self, pe: u8, regime: Regime, ia: u64) -> Vec<Possible> {
        let Some((tree, context)) = self.installed(pe, regime) else {
            return Vec::new();
        };
        let t = &self.trees[tree as usize];
        let newest = walk(&t.shape, t.root, t.mair, ia, |pa| self.mem.load(pa));
        let mut out = vec![Possible {
            outcome: newest,
            source: Source::Walk,
        }];
        if !t.shape.in_range(ia) {
            return out;
        }
        let start = (t.root, t.shape.start, Above::default());
        for outcome in self.walks(tree, pe, start, ia) {
            push(&mut out, outcome, Source::OldWalk);
        }
        let unclean = &self.contexts[context as usize].unclean;
        let bit = 1 << pe;
        for (class, base, _, run) in unclean.overlapping(ia, ia + 1) {
            let p = &run.progress;
            let combined_gone = p.s1 & bit != 0 || regime == Regime::El2;
            let gone = p.s2 & bit != 0 && (combined_gone || class.0 == Was::Table);
            if gone {
                continue;
            }
            if class.0 == Was::Table {
                let inside = (run.oa, class.1 + 1, Above::default());
                for outcome in self.walks(tree, pe, inside, ia) {
                    push(&mut out, outcome, Source::Tlb);
                }
                continue;
            }
            let size_log2 = t.shape.shift(class.1);
            let old = Translation {
                pa: run.oa + (ia - base),
                level: class.1,
                size_log2,
                attrs: Attrs {
                    perms: run.perms,
                    ..t.shape.attrs(class.1, run.old, t.mair)
                },
                desc: run.old,
            };
            push(&mut out, Ok(old), Source::Tlb);
        }
        out
    }

    /// Every walk from a table, with old and new values of pending stores.
    fn walks(&self, tree: u32, pe: u8, from: (u64, i8, Above), ia: u64) -> Vec<Outcome> {
        let mut out = Vec::new();
        let t = &self.trees[tree as usize];
        let mut stack = vec![from];
        while let Some((base, level, above)) = stack.pop() {
            let pa = base + t.shape.index(level, ia) * 8;
            for word in self.visible(pe, pa) {
                match step(&t.shape, t.mair, (level, word), ia, above) {
                    Step::End(outcome) => out.push(outcome),
                    Step::Next(next, above) => stack.push((next, level + 1, above)),
                }
            }
        }
        out
    }

    /// Values that the walker of `pe` may read at `pa`.
    pub(crate) fn visible(&self, pe: u8, pa: u64) -> Vec<u64> {
        let mut words = vec![self.mem.load(pa)];
        for (i, other) in self.pes.iter().enumerate() {
            for s in &other.pending {
                let seen = i == usize::from(pe) && s.local;
                if s.pa == pa && !seen && !words.contains(&s.old) {
                    words.push(s.old);
                }
            }
        }
        words
    }

    /// Calls `f` with each leaf of the installed tree in a range, in order.
    pub fn leaves(&self, pe: u8, regime: Regime, range: Range<u64>, mut f: impl FnMut(Leaf)) {
        if let Some((tree, _)) = self.installed(pe, regime) {
            let _ = self.each_leaf(tree, range.start, range.end, &mut |leaf| {
                f(leaf);
                Ok(())
            });
        }
    }

    pub(crate) fn each_leaf(
        &self,
        tree: u32,
        lo: u64,
        hi: u64,
        f: &mut impl FnMut(Leaf) -> Verdict,
    ) -> Verdict {
        let t = &self.trees[tree as usize];
        let root = (t.root, t.shape.start, 0, t.shape.root_entries());
        self.each_leaf_below(tree, root, (lo, hi), f)
    }

    /// The leaves of one table (base, level, first address, entries) and below.
    fn each_leaf_below(
        &self,
        tree: u32,
        (base, level, first, entries): (u64, i8, u64, u64),
        (lo, hi): (u64, u64),
        f: &mut impl FnMut(Leaf) -> Verdict,
    ) -> Verdict {
        let t = &self.trees[tree as usize];
        let shift = t.shape.shift(level);
        let from = (lo.saturating_sub(first) >> shift).min(entries);
        let reach = hi.saturating_sub(first).saturating_add((1 << shift) - 1);
        let to = (reach >> shift).min(entries);
        if from >= to {
            return Ok(());
        }
        let mut words = Vec::new();
        self.mem.nonzero(base + from * 8, to - from, &mut words);
        for &(index, desc) in &words {
            let ia = first + ((from + index) << shift);
            match t.shape.decode(level, desc) {
                Desc::Leaf(oa) => f(Leaf {
                    ia,
                    level,
                    size_log2: shift,
                    oa,
                    attrs: t.shape.attrs(level, desc, t.mair),
                    desc,
                })?,
                Desc::Table(next) => {
                    let table = (next, level + 1, ia, 1 << t.shape.stride);
                    self.each_leaf_below(tree, table, (lo, hi), f)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Compares the installed tree with a specification over a range.
    ///
    /// # Errors
    /// [`Kind::SpecMismatch`] with the first address that differs.
    pub fn compare(&self, pe: u8, regime: Regime, spec: &Spec, range: Range<u64>) -> Verdict {
        match self.installed(pe, regime) {
            Some((tree, _)) => self.compare_tree(tree, spec, range.start, range.end),
            None => Ok(()),
        }
    }

    fn mismatch(&self, ia: u64, detail: String) -> Box<Violation> {
        let mut v = self.violation(Kind::SpecMismatch, detail);
        v.ia = Some(ia);
        v
    }

    fn compare_tree(&self, tree: u32, spec: &Spec, lo: u64, hi: u64) -> Verdict {
        let hi = hi.min(1 << self.shape_of(tree).ia_bits);
        // Leaves and promises come in the same order: one way through both.
        let mut promises = spec.iter(lo, hi);
        let mut next = promises.next();
        let missing = |ia: u64, target: Target| {
            let detail = format!("nothing is mapped, {:#x} was promised", target.pa);
            Err(self.mismatch(ia, detail))
        };
        self.each_leaf(tree, lo, hi, &mut |leaf| {
            let mut at = leaf.ia.max(lo);
            let to = (leaf.ia + (1 << leaf.size_log2)).min(hi);
            while at < to {
                let Some((start, end, target)) = next.filter(|&(start, _, _)| start <= at) else {
                    let detail = format!("{:#x} is mapped, nothing was promised", leaf.oa);
                    return Err(self.mismatch(at, detail));
                };
                if start < at {
                    return missing(start, target);
                }
                self.compare_leaf(&leaf, at, &target)?;
                at = end.min(to);
                next = if end > to {
                    let pa = target.pa.wrapping_add(to - start);
                    Some((to, end, Target { pa, ..target }))
                } else {
                    promises.next()
                };
            }
            Ok(())
        })?;
        next.map_or(Ok(()), |(ia, _, target)| missing(ia, target))
    }

    fn compare_leaf(&self, leaf: &Leaf, ia: u64, target: &Target) -> Verdict {
        let pa = leaf.oa + (ia - leaf.ia);
        if pa != target.pa {
            let detail = format!("leads to {pa:#x}, {:#x} was promised", target.pa);
            return Err(self.mismatch(ia, detail));
        }
        if let Some(perms) = target.perms
            && perms != leaf.attrs.perms.0
        {
            let found = leaf.attrs.perms.0;
            let detail = format!("rights {found:#x}, {perms:#x} were promised");
            return Err(self.mismatch(ia, detail));
        }
        if let Some(memory) = target.memory
            && memory != leaf.attrs.memory
        {
            let found = leaf.attrs.memory;
            return Err(self.mismatch(ia, format!("{found:?}, {memory:?} was promised")));
        }
        Ok(())
    }

    /// A promise about the installed tree.
    pub(crate) fn promise(&mut self, p: Promise) -> Verdict {
        let Some((tree, _)) = self.pe().stage2.or(self.pe().el2) else {
            return self.fail(Kind::BadEvent, "a promise about no installed tree");
        };
        let Some(end) = p.ia.checked_add(p.len) else {
            return self.fail(Kind::BadEvent, "a promise beyond the address space");
        };
        let tree = &mut self.trees[tree as usize];
        if tree.spec.is_none() {
            tree.change(0, u64::MAX);
        }
        tree.change(p.ia, end);
        tree.spec.get_or_insert_default().set(p.ia, end, p.to);
        Ok(())
    }

    /// The PE says its work in `[lo, hi)` is complete.
    pub(crate) fn quiesce(&mut self, lo: u64, hi: u64) -> Verdict {
        let now = self.now;
        let pe = &self.pes[usize::from(now)];
        if pe.unsynced {
            return self.fail(Kind::MissingIsb, "a control register was written last");
        }
        for s in &pe.pending {
            let Some(t) = self.table_of(s.pa).filter(|t| t.tag == 0) else {
                continue;
            };
            let shape = self.shape_of(t.tree);
            let ia = t.ia + (((s.pa - t.base) / 8) << shape.shift(t.level));
            if ia < hi && ia + shape.span(t.level) > lo && self.mem.load(s.pa) != s.old {
                let mut v = self.violation(
                    Kind::MissingStoreBarrier,
                    "walkers may still see the value before the last store",
                );
                v.ia = Some(ia);
                v.level = Some(t.level);
                v.pa = Some(s.pa);
                return Err(v);
            }
        }
        // Whatever tree it worked on: it need not be the one installed here.
        for context in &self.contexts {
            for (class, base, _, run) in context.unclean.overlapping(lo, hi) {
                let mine = run.writer == now;
                if mine && !(class.0 == Was::Loose && run.aged) {
                    let ia = base.max(lo);
                    let shown = Kind::StaleTranslation;
                    return Err(self.blame(context.regime, (class, ia), run, shown));
                }
            }
        }
        for pe in &self.pes {
            for (_, context) in [pe.stage2, pe.el2].into_iter().flatten() {
                if self.contexts[context as usize].clash && self.clashes(context) {
                    return Err(self.reused(self.contexts[context as usize].vmid));
                }
            }
        }
        for i in 0..self.trees.len() {
            let tree = &self.trees[i];
            let (from, to) = tree.unchecked(lo, hi);
            if tree.retired || from >= to {
                continue;
            }
            if tree.contiguous {
                self.check_groups(i as u32, from, to)?;
            }
            if let Some(spec) = &tree.spec {
                self.compare_tree(i as u32, spec, from, to)?;
            }
            self.trees[i].checked(lo, hi);
        }
        let pe = &self.pes[usize::from(now)];
        if pe.el2_change == El2Change::Visible {
            return self.fail(
                Kind::MissingIsb,
                "EL2's own tables changed: an ISB goes between the DSB and their use",
            );
        }
        if pe.needs_isb {
            return self.fail(
                Kind::MissingIsb,
                "the invalidation is complete, but this PE may run on what it fetched before",
            );
        }
        Ok(())
    }

    /// Compares everything that an access at `ia` may see, from the tables as
    /// they are and from what TLBs may hold, with the specification.
    ///
    /// # Errors
    /// [`Kind::SpecMismatch`] if the newest tables differ,
    /// [`Kind::StaleTranslation`] if anything else may be seen.
    pub fn expect(&self, pe: u8, regime: Regime, spec: &Spec, ia: u64) -> Verdict {
        let want = spec.get(ia);
        for possible in self.translate(pe, regime, ia) {
            let right = match (possible.outcome, want) {
                (Ok(t), Some(want)) => {
                    t.pa == want.pa
                        && want.perms.is_none_or(|p| p == t.attrs.perms.0)
                        && want.memory.is_none_or(|m| m == t.attrs.memory)
                }
                (Err(_), None) => true,
                _ => false,
            };
            if !right {
                let kind = match possible.source {
                    Source::Walk => Kind::SpecMismatch,
                    Source::OldWalk | Source::Tlb => Kind::StaleTranslation,
                };
                let found = match possible.outcome {
                    Ok(t) => format!("{:#x} with rights {:#x}", t.pa, t.attrs.perms.0),
                    Err(fault) => format!("{fault:?}"),
                };
                let mut v = self.violation(kind, format!("{found} may be seen, not {want:x?}"));
                v.pe = pe;
                v.ia = Some(ia);
                return Err(v);
            }
        }
        Ok(())
    }

    /// Pages of `page` bytes that are allocated, but hold no linked table: what
    /// a library that keeps none in reserve has leaked.
    pub fn unlinked_pages(&self, page: u64) -> Vec<u64> {
        let mut used: Vec<u64> = self
            .tables
            .values()
            .filter(|t| t.tag == 0)
            .flat_map(|t| {
                let pages = (t.base & (page - 1))
                    .saturating_add(t.entries * 8)
                    .div_ceil(page);
                (0..pages).map(move |n| (t.base & !(page - 1)) + n * page)
            })
            .collect();
        used.sort_unstable();
        let allocated = self.mem.all_uses().filter(|u| u.2 == Use::Table);
        allocated
            .flat_map(|(lo, hi, _)| (lo..hi).step_by(page as usize))
            .filter(|pa| used.binary_search(pa).is_err())
            .collect()
    }

    /// Entries of a linked table that are not zero, and those that are valid.
    pub fn table_counts(&self, base: u64) -> Option<(u64, u64)> {
        let table = self.tables.get(&base).filter(|t| t.tag == 0)?;
        let mut words = Vec::new();
        self.mem.nonzero(base, table.entries, &mut words);
        let valid = words.iter().filter(|(_, word)| word & 1 == 1).count();
        Some((words.len() as u64, valid as u64))
    }

    /// Linked tables, as (base, level, first input address).
    pub fn linked_tables(&self) -> impl Iterator<Item = (u64, i8, u64)> + '_ {
        self.tables
            .values()
            .filter(|t| t.tag == 0)
            .map(|t| (t.base, t.level, t.ia))
    }

    /// Entries that some TLB may hold although memory says otherwise.
    pub fn unclean_runs(&self) -> usize {
        self.contexts.iter().map(|c| c.unclean.len()).sum()
    }
}

fn push(out: &mut Vec<Possible>, outcome: Outcome, source: Source) {
    let alike = |p: &Possible| match (&p.outcome, &outcome) {
        (Ok(a), Ok(b)) => a.pa == b.pa && a.level == b.level && a.attrs == b.attrs,
        (Err(a), Err(b)) => a == b,
        _ => false,
    };
    if !out.iter().any(alike) {
        out.push(Possible { outcome, source });
    }
}

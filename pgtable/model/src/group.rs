//! Contiguous groups, as a TLB that trusts the hint sees them: one valid member
//! may stand for all, at addresses that were never valid themselves.

use crate::check::Leaf;
use crate::descriptor::{Attrs, CONTIGUOUS, Desc};
use crate::leaf::Standing;
use crate::machine::{Machine, Table, Verdict};
use crate::shape::Shape;
use crate::unclean::{Run, Was};
use crate::violation::Kind;

impl Machine {
    /// A TLB may hold the entry of a whole contiguous group after one member
    /// was seen, and with it addresses of members that were never valid.
    pub(crate) fn check_make_group(
        &self,
        context: usize,
        shape: &Shape,
        leaf: &Standing,
        attrs: &Attrs,
    ) -> Verdict {
        let Standing { level, ia, oa, .. } = *leaf;
        let c = &self.contexts[context];
        let follows = |at: i8, base: u64, run: &Run| {
            let was = self.leaf_attrs(c.tree, at, run.old);
            at == level
                && attrs.contiguous
                && (was.contiguous || self.features.bbm >= 2)
                && run.oa.wrapping_sub(base) == oa.wrapping_sub(ia)
                && was.memory == attrs.memory
                && was.sh == attrs.sh
        };
        if attrs.contiguous {
            // The new entry may answer for the whole group at once.
            let low = (shape.span(level) << shape.group_log2(level)) - 1;
            for (class, base, _, run) in c.unclean.overlapping(ia & !low, (ia | low) + 1) {
                let other = base >= ia + shape.span(level) || base < ia;
                let fine =
                    class.0 == Was::Loose || class.0 == Was::Leaf && follows(class.1, base, run);
                if other && !fine {
                    return Err(self.blame(c.regime, (class, base), run, Kind::MakeWhileUnclean));
                }
            }
        }
        for at in 0..=3 {
            let log2 = shape.group_log2(at);
            if log2 == 0 {
                continue;
            }
            let low = (shape.span(at) << log2) - 1;
            let end = ((ia + shape.span(level) - 1) | low) + 1;
            for (class, base, _, run) in c.unclean.overlapping(ia & !low, end) {
                if class != (Was::Leaf, at) || !run.contiguous {
                    continue;
                }
                let same = follows(at, base, run);
                if !same {
                    return Err(self.blame(c.regime, (class, base), run, Kind::MakeWhileUnclean));
                }
            }
        }
        Ok(())
    }

    /// No entry of a contiguous group, live or stale, may cover a new table.
    pub(crate) fn check_table_in_group(&self, table: &Table, shape: &Shape, ia: u64) -> Verdict {
        let level = table.level;
        if !self.trees[table.tree as usize].contiguous {
            return Ok(());
        }
        for &c in &self.trees[table.tree as usize].contexts {
            let context = &self.contexts[c as usize];
            for at in (0..=3).filter(|&at| shape.group_log2(at) != 0) {
                let low = (shape.span(at) << shape.group_log2(at)) - 1;
                let last = (ia + shape.span(level) - 1) | low;
                for (class, base, _, run) in context.unclean.overlapping(ia & !low, last + 1) {
                    if class == (Was::Leaf, at) && run.contiguous {
                        let shown = Kind::MakeWhileUnclean;
                        return Err(self.blame(context.regime, (class, base), run, shown));
                    }
                }
            }
        }
        let members = 1 << shape.group_log2(level);
        let first = ((ia - table.ia) >> shape.shift(level)) & !(members - 1);
        for other in first..(first + members).min(table.entries) {
            let word = self.mem.load(table.base + other * 8);
            let leaf = matches!(shape.decode(level, word), Desc::Leaf(_));
            if leaf && self.leaf_attrs(table.tree, level, word).contiguous {
                return self.fail(
                    Kind::BadContiguous,
                    "a table in the midst of a contiguous group",
                );
            }
        }
        Ok(())
    }

    /// Valid members of one contiguous group agree, at any time, in all but
    /// rights: a TLB may take any of them for the whole group.
    pub(crate) fn check_neighbours(
        &self,
        table: &Table,
        shape: &Shape,
        leaf: &Standing,
    ) -> Verdict {
        let Standing {
            level,
            ia,
            oa,
            word,
        } = *leaf;
        let log2 = shape.group_log2(level);
        if log2 == 0 || !self.trees[table.tree as usize].contiguous {
            return Ok(());
        }
        let mine = self.leaf_attrs(table.tree, level, word);
        let index = (ia - table.ia) >> shape.shift(level);
        let first = index & !((1 << log2) - 1);
        let count = (1 << log2).min(table.entries - first);
        let members = self.mem.words(table.base + first * 8, count);
        for (other, &theirs) in (first..).zip(members) {
            // Only the hint makes neighbours of entries.
            let hinted = (theirs | word) & CONTIGUOUS != 0;
            if theirs & 1 == 0 || !hinted || other == index {
                continue;
            }
            let agree = match shape.decode(level, theirs) {
                Desc::Leaf(at) => {
                    let a = self.leaf_attrs(table.tree, level, theirs);
                    let follows = at.wrapping_sub(other << shape.shift(level))
                        == oa.wrapping_sub(index << shape.shift(level));
                    let alike = a.memory == mine.memory && a.sh == mine.sh;
                    !(a.contiguous || mine.contiguous)
                        || a.contiguous && mine.contiguous && follows && alike
                }
                Desc::Table(_) => !mine.contiguous,
                _ => true,
            };
            if !agree {
                return self.fail(
                    Kind::BadContiguous,
                    format!("the leaf {word:#x} and its neighbour {theirs:#x} do not agree"),
                );
            }
        }
        Ok(())
    }

    /// Contiguous groups in `[lo, hi)` agree in all members.
    pub(crate) fn check_groups(&self, tree: u32, lo: u64, hi: u64) -> Verdict {
        let shape = self.shape_of(tree);
        let mut checked = u64::MAX;
        self.each_leaf(tree, lo, hi, &mut |leaf| {
            if leaf.desc & CONTIGUOUS == 0 {
                return Ok(());
            }
            let log2 = shape.group_log2(leaf.level);
            let group = 1u64 << (leaf.size_log2 + log2);
            let start = leaf.ia & !(group - 1);
            if log2 == 0 || checked == start {
                return Ok(());
            }
            checked = start;
            self.check_group(tree, &shape, &leaf, start)
        })
    }

    pub(crate) fn check_group(&self, tree: u32, shape: &Shape, leaf: &Leaf, start: u64) -> Verdict {
        let n = 1 << shape.group_log2(leaf.level);
        let wrong = |what: &str| {
            let mut v = self.violation(Kind::BadContiguous, what);
            v.ia = Some(start);
            v.level = Some(leaf.level);
            Err(v)
        };
        let Some(first) = self.entry_address(tree, leaf.level, start) else {
            return wrong("its table is gone");
        };
        let base = leaf.oa.wrapping_sub(leaf.ia - start);
        if base & ((n << leaf.size_log2) - 1) != 0 {
            return wrong("the output address is not aligned to the group");
        }
        let t = &self.trees[tree as usize];
        for i in 0..n {
            let word = self.mem.load(first + i * 8);
            match shape.decode(leaf.level, word) {
                Desc::Leaf(oa) if oa == base + (i << leaf.size_log2) => {
                    let mut attrs = shape.attrs(leaf.level, word, t.mair);
                    // The access flag of a group may be set in any member.
                    attrs.af = leaf.attrs.af;
                    attrs.software = leaf.attrs.software;
                    if attrs != leaf.attrs {
                        return wrong("members differ in attributes");
                    }
                }
                Desc::Leaf(_) => return wrong("output addresses do not follow each other"),
                _ => return wrong("a member is not a leaf"),
            }
        }
        Ok(())
    }
}

//! Leaves: made, changed in place and broken, and the memory they open.

use std::collections::hash_map::Entry;

use crate::descriptor::{AF, Attrs, CONTIGUOUS, Desc, Memory};
use crate::machine::{Machine, Table, Verdict};
use crate::mem::{Owner, Use};
use crate::shape::{Regime, Shape};
use crate::tree::Gone;
use crate::unclean::{Run, Was};
use crate::violation::Kind;

/// A leaf where it stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Standing {
    pub(crate) level: i8,
    pub(crate) ia: u64,
    /// Its output address, which its word says.
    pub(crate) oa: u64,
    pub(crate) word: u64,
}

impl Machine {
    /// A valid leaf changed in place.
    pub(crate) fn change_leaf(
        &mut self,
        table: &Table,
        shape: &Shape,
        from: Standing,
        to: Standing,
    ) -> Verdict {
        if from.word == to.word {
            return Ok(());
        }
        let Standing { level, ia, .. } = from;
        let old = self.leaf_attrs(table.tree, level, from.word);
        let new = self.leaf_attrs(table.tree, level, to.word);
        if !self.cacheable(table.tree, shape, &from) {
            // No TLB ever held the old one: this is a make.
            self.break_leaf(table, shape, &from, 0);
            return self.make_leaf(table, shape, &to);
        }
        let same_type = old.memory == new.memory && old.sh == new.sh;
        if from.oa != to.oa || !same_type {
            return self.fail(
                Kind::ValidToValidNeedsBbm,
                if from.oa != to.oa {
                    "the output address of a live leaf changed"
                } else {
                    "the memory type or shareability of a live leaf changed"
                },
            );
        }
        if old.contiguous != new.contiguous {
            if self.features.bbm < 2 {
                return self.fail(
                    Kind::ValidToValidNeedsBbm,
                    "the contiguous hint of a live leaf changed",
                );
            }
            self.break_leaf(table, shape, &from, 0);
            return self.make_leaf(table, shape, &to);
        }
        let gained = new.perms.0 & !old.perms.0;
        if gained & 12 != 0 {
            self.check_instructions(shape, to.oa, shape.shift(level))?;
        }
        let aged = old.af && !new.af;
        if !new.perms.covers(old.perms) || aged {
            let aged = new.perms.covers(old.perms);
            let gone = Gone {
                was: Was::Loose,
                level,
                ia,
                oa: from.oa,
                word: from.word,
                tag: 0,
                aged,
            };
            self.add_runs(table.tree, shape, gone);
        } else if new.af {
            // Back to all that a TLB may still give: nothing is stale.
            let end = ia + shape.span(level);
            for i in 0..self.trees[table.tree as usize].contexts.len() {
                let c = self.trees[table.tree as usize].contexts[i] as usize;
                let unclean = &mut self.contexts[c].unclean;
                if !unclean.is_empty() {
                    let covered = |run: &Run| new.perms.covers(run.perms);
                    unclean.remove((Was::Loose, level), ia..end, covered, |_, _| {});
                }
            }
        }
        Ok(())
    }

    /// A new leaf where nothing valid stood.
    pub(crate) fn make_leaf(&mut self, table: &Table, shape: &Shape, leaf: &Standing) -> Verdict {
        self.check_clash(table.tree)?;
        self.check_make_leaf(table.tree, shape, leaf)?;
        self.trees[table.tree as usize].contiguous |= self
            .leaf_attrs(table.tree, leaf.level, leaf.word)
            .contiguous;
        self.check_neighbours(table, shape, leaf)?;
        self.leaf_added(table.tree, shape, leaf)
    }

    /// Nothing unclean may lie under a new leaf, but for the leaf itself
    /// coming back as it was.
    pub(crate) fn check_make_leaf(&mut self, tree: u32, shape: &Shape, leaf: &Standing) -> Verdict {
        let Standing {
            level,
            ia,
            oa,
            word,
        } = *leaf;
        let end = ia + shape.span(level);
        let contexts = self.trees[tree as usize].contexts.len();
        for i in 0..contexts {
            let c = self.trees[tree as usize].contexts[i] as usize;
            if self.contexts[c].unclean.is_empty() {
                continue;
            }
            let attrs = self.leaf_attrs(tree, level, word);
            if attrs.contiguous || self.contexts[c].unclean.has_contiguous() {
                self.check_make_group(c, shape, leaf, &attrs)?;
            }
            let mut back = false;
            let mut wrong = None;
            for (class, base, _, run) in self.contexts[c].unclean.overlapping(ia, end) {
                match class.0 {
                    Was::Loose => continue,
                    Was::Leaf => {
                        let was = self.leaf_attrs(tree, class.1, run.old);
                        let same = run.oa.wrapping_sub(base) == oa.wrapping_sub(ia)
                            && was.memory == attrs.memory
                            && was.sh == attrs.sh;
                        if same && class.1 == level && was.contiguous == attrs.contiguous {
                            back = true;
                            continue;
                        }
                        // BBM level 2: two sizes of one translation may stand
                        // side by side until a TLBI.
                        if same && self.features.bbm >= 2 {
                            continue;
                        }
                    }
                    // BBM level 2: a table that said the same.
                    Was::Table => {}
                }
                if run.tag != 0 && run.tag == self.exempt {
                    continue;
                }
                let v = self.blame(
                    self.contexts[c].regime,
                    (class, base.max(ia)),
                    run,
                    Kind::MakeWhileUnclean,
                );
                wrong = Some(v);
                break;
            }
            if let Some(v) = wrong {
                return Err(v);
            }
            if back {
                let mut looser = None;
                self.contexts[c].unclean.remove(
                    (Was::Leaf, level),
                    ia..end,
                    |_| true,
                    |base, run| looser = Some((base, run)),
                );
                if let Some((base, mut run)) = looser {
                    run.aged = attrs.perms.covers(run.perms);
                    if !(run.aged && attrs.af) {
                        let shift = shape.shift(level);
                        self.contexts[c]
                            .unclean
                            .insert((Was::Loose, level), shift, base, run);
                    }
                }
            }
        }
        Ok(())
    }

    /// Rules for a leaf that becomes reachable.
    pub(crate) fn leaf_added(&mut self, tree: u32, shape: &Shape, leaf: &Standing) -> Verdict {
        let Standing {
            level,
            ia,
            oa,
            word,
        } = *leaf;
        let reserved = shape.misaligned(level, word);
        if reserved != 0 {
            return self.fail(
                Kind::MisalignedOutput,
                format!("address bits {reserved:#x} of {word:#x} lie below the block's size"),
            );
        }
        let attrs = self.leaf_attrs(tree, level, word);
        if attrs.memory == Memory::Reserved {
            return self.fail(Kind::ReservedAttribute, format!("the leaf is {word:#x}"));
        }
        if attrs.memory.cacheable() && attrs.sh == 0 && self.all != 1 {
            return self.fail(Kind::NotShareable, format!("the leaf is {word:#x}"));
        }
        self.trees[tree as usize].contiguous |= attrs.contiguous;
        let page = oa;
        let (oa, shift) = output_extent(shape, level, oa, word);
        let len = 1u64 << shift;
        if attrs.contiguous && page - oa != ia & (len - 1) {
            return self.fail(
                Kind::BadContiguous,
                "its output address is not where its place in the group asks for",
            );
        }
        *self
            .outputs
            .entry((oa | u64::from(shift), tree))
            .or_insert(0) += 1;
        if shape.regime == Regime::El2 {
            return Ok(());
        }
        let vmids_match = |v: u16| {
            let t = &self.trees[tree as usize];
            t.contexts
                .iter()
                .all(|&c| self.contexts[c as usize].vmid == v)
        };
        let mut data = false;
        let mut wrong = None;
        for (lo, _, usage) in self.mem.uses(oa, len) {
            let problem = match usage {
                Use::Unknown | Use::Data(Owner::Shared) => None,
                Use::Data(Owner::Vmid(v)) if vmids_match(v) => None,
                Use::Data(Owner::Vmid(_)) => Some("another VMID's memory"),
                Use::Data(Owner::Nobody) => Some("memory that has been given up"),
                Use::Data(Owner::Hypervisor) => Some("the hypervisor's own memory"),
                Use::Table => Some("a table page"),
                Use::Free => Some("a page in the table allocator"),
            };
            data |= matches!(usage, Use::Data(_));
            if let Some(what) = problem {
                wrong = Some((lo, what));
                break;
            }
        }
        if let Some((lo, what)) = wrong {
            let detail = format!("the leaf maps {lo:#x}, {what}");
            return self.fail(Kind::OutputNotOwned, detail);
        }
        if !data {
            return Ok(());
        }
        if !shape.fwb && attrs.memory.cacheable() {
            self.check_clean(oa, len)?;
        }
        if attrs.perms.0 & 12 != 0 {
            self.check_instructions(shape, oa, shift)?;
        }
        Ok(())
    }

    pub(crate) fn check_clean(&self, oa: u64, len: u64) -> Verdict {
        for (lo, hi, usage) in self.mem.uses(oa, len) {
            if matches!(usage, Use::Data(_)) && !self.clean_data.covers(lo, hi, true) {
                return self.fail(
                    Kind::MissingCmo,
                    format!("{lo:#x} was not cleaned since it changed hands"),
                );
            }
        }
        Ok(())
    }

    pub(crate) fn check_instructions(&self, shape: &Shape, oa: u64, shift: u8) -> Verdict {
        if self.features.dic || shape.regime == Regime::El2 {
            return Ok(());
        }
        for (lo, hi, usage) in self.mem.uses(oa, 1 << shift) {
            if matches!(usage, Use::Data(_)) && !self.clean_insn.covers(lo, hi, true) {
                return self.fail(
                    Kind::MissingInstructionInvalidate,
                    format!("{lo:#x} becomes executable"),
                );
            }
        }
        Ok(())
    }

    /// A leaf is gone from memory; TLBs may hold it.
    pub(crate) fn break_leaf(&mut self, table: &Table, shape: &Shape, leaf: &Standing, tag: u32) {
        self.output_removed(table.tree, shape, leaf);
        if self.cacheable(table.tree, shape, leaf) {
            let Standing {
                level,
                ia,
                oa,
                word,
            } = *leaf;
            let gone = Gone {
                was: Was::Leaf,
                level,
                ia,
                oa,
                word,
                tag,
                aged: false,
            };
            self.add_runs(table.tree, shape, gone);
        }
    }

    fn output_removed(&mut self, tree: u32, shape: &Shape, leaf: &Standing) {
        let (oa, shift) = output_extent(shape, leaf.level, leaf.oa, leaf.word);
        if let Entry::Occupied(mut entry) = self.outputs.entry((oa | u64::from(shift), tree)) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }

    /// True if a TLB may hold the leaf, or a looser one that stood there.
    pub(crate) fn cacheable(&self, tree: u32, shape: &Shape, leaf: &Standing) -> bool {
        let Standing { level, ia, .. } = *leaf;
        if leaf.word & AF != 0 || shape.ha {
            return true;
        }
        let contexts = &self.trees[tree as usize].contexts;
        contexts.iter().any(|&c| {
            self.contexts[c as usize]
                .unclean
                .overlapping(ia, ia + shape.span(level))
                .any(|(class, _, _, _)| class == (Was::Loose, level))
        })
    }

    pub(crate) fn leaf_attrs(&self, tree: u32, level: i8, word: u64) -> Attrs {
        let t = &self.trees[tree as usize];
        t.shape.attrs(level, word, t.mair)
    }

    /// True if the table at `next` maps all that one leaf maps, to
    /// the same place with the same attributes (FEAT_BBM level 2's condition).
    pub(crate) fn maps_alike(&self, tree: u32, shape: &Shape, leaf: &Standing, next: u64) -> bool {
        let want = self.leaf_attrs(tree, leaf.level, leaf.word);
        let mut stack = vec![(next, leaf.level + 1, leaf.oa)];
        while let Some((base, level, oa)) = stack.pop() {
            for index in 0..1u64 << shape.stride {
                let expect = oa + (index << shape.shift(level));
                let entry = self.mem.load(base + index * 8);
                match shape.decode(level, entry) {
                    Desc::Table(below) => stack.push((below, level + 1, expect)),
                    Desc::Leaf(found) => {
                        let got = self.leaf_attrs(tree, level, entry);
                        let same = got.memory == want.memory
                            && got.sh == want.sh
                            && got.perms == want.perms
                            && found == expect;
                        if !same {
                            return false;
                        }
                    }
                    _ => return false,
                }
            }
        }
        true
    }
}

/// The memory that a leaf opens, as (address, log2 size): with the contiguous
/// hint, all of its group's.
pub(crate) fn output_extent(shape: &Shape, level: i8, oa: u64, word: u64) -> (u64, u8) {
    let shift = shape.shift(level);
    if word & CONTIGUOUS == 0 {
        return (oa, shift);
    }
    let shift = shift + shape.group_log2(level);
    (oa & !((1 << shift) - 1), shift)
}

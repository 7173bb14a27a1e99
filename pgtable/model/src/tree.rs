//! Descriptors of live trees: what each store means, and whether it may be.
//!
//! A table page is *linked* once a walker can reach it from an installed root.
//! Stores to pages that are not linked are free. When a valid entry goes, its
//! whole subtree is *detached*: walkers may stay inside until the removal is
//! clean, so its entries stay frozen and its pages may not be freed.

use crate::descriptor::{AF, BadDesc, DBM, Desc, NT};
use crate::event::How;
use crate::leaf::Standing;
use crate::machine::{El2Change, Machine, NO_TREE, Pending, Table, Verdict};
use crate::shape::{HighAddress, Regime, Shape};
use crate::unclean::{Progress, Run, Was};
use crate::violation::Kind;

/// A store that has been made in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stored {
    pub pa: u64,
    pub old: u64,
    pub new: u64,
    pub how: How,
}

/// An entry that was valid, or allowed more.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gone {
    pub was: Was,
    pub level: i8,
    pub ia: u64,
    /// Output address, or the table's.
    pub oa: u64,
    /// The descriptor that stood there.
    pub word: u64,
    /// The removal it belongs to, 0 if it stands alone.
    pub tag: u32,
    /// Only the access flag went.
    pub aged: bool,
}

/// A subtree to visit: table, level, first input address.
pub(crate) type Visit = (u64, i8, u64);

impl Machine {
    /// The linked or detached table that holds the word at `pa`.
    pub(crate) fn table_of(&self, pa: u64) -> Option<Table> {
        self.sizes.iter().find_map(|&size| {
            let base = pa & !(size - 1);
            let table = self.tables.get(&base)?;
            (pa < base + table.entries * 8).then_some(*table)
        })
    }

    pub(crate) fn shape_of(&self, tree: u32) -> Shape {
        self.trees[tree as usize].shape
    }

    /// True if no walker can be inside the tree, nor any TLB know of it.
    pub(crate) fn dead(&self, tree: u32) -> bool {
        let t = &self.trees[tree as usize];
        t.installed == 0
            && t.contexts
                .iter()
                .all(|&c| self.contexts[c as usize].cached == 0)
    }

    /// True if the root holds no valid descriptor.
    pub(crate) fn root_is_empty(&self, tree: u32) -> bool {
        let t = &self.trees[tree as usize];
        let mut words = Vec::new();
        self.mem.nonzero(t.root, t.shape.root_entries(), &mut words);
        words.iter().all(|(_, word)| word & 1 == 0)
    }

    /// True if the tree may go: no PE has it, and nothing of it is cached since
    /// it was invalidated or has nothing in it.
    pub(crate) fn may_go(&self, tree: u32) -> bool {
        let t = &self.trees[tree as usize];
        let clean = |&c: &u32| self.contexts[c as usize].unclean.is_empty();
        self.dead(tree)
            || t.installed == 0 && t.contexts.iter().all(clean) && self.root_is_empty(tree)
    }

    /// Forgets a tree that is dead: its pages are plain memory again.
    pub(crate) fn retire(&mut self, tree: u32) {
        self.tables.retain(|_, t| t.tree != tree);
        self.outputs.retain(|&(_, t), _| t != tree);
        for c in std::mem::take(&mut self.trees[tree as usize].contexts) {
            let context = &mut self.contexts[c as usize];
            context.unclean.clear();
            context.tree = NO_TREE;
            context.cached = 0;
            context.flush = Default::default();
        }
        self.trees[tree as usize].retired = true;
    }

    /// A word was stored: judges it if a walker may read it.
    pub(crate) fn stored(&mut self, s: Stored) -> Verdict {
        if self.tables.is_empty() {
            return Ok(());
        }
        let Some(table) = self.table_of(s.pa) else {
            return Ok(());
        };
        if self.dead(table.tree) {
            self.retire(table.tree);
            return Ok(());
        }
        let shape = self.shape_of(table.tree);
        if table.tag != 0 && self.walkers_gone(&table) {
            self.tables.remove(&table.base);
            return Ok(());
        }
        // One invalid value for another is no matter of walkers.
        if s.old != s.new && (s.old | s.new) & 1 == 1 {
            let now = self.now;
            self.pes[usize::from(now)].pending.push(Pending {
                pa: s.pa,
                old: s.old,
                event: self.event,
                local: false,
            });
        }
        if table.tag != 0 {
            return self.stored_detached(&table, &shape, s);
        }
        self.stats.live_stores += 1;
        if shape.regime == Regime::El2 && s.old != s.new {
            self.pe().el2_change = El2Change::Stored;
        }
        let index = (s.pa - table.base) / 8;
        let ia = table.ia + (index << shape.shift(table.level));
        // One member of a contiguous group stands for all.
        let group = shape.span(table.level) << shape.group_log2(table.level);
        let low = ia & !(group - 1);
        self.trees[table.tree as usize].change(low, low + group);
        self.transition(&table, &shape, ia, s).map_err(|mut v| {
            v.pa.get_or_insert(s.pa);
            v.ia.get_or_insert(ia);
            v.level.get_or_insert(table.level);
            v
        })
    }

    /// A store into a table that was unlinked.
    pub(crate) fn stored_detached(&mut self, table: &Table, shape: &Shape, s: Stored) -> Verdict {
        if shape.decode(table.level, s.new) == Desc::Invalid {
            // Walkers may see it or not; what they had is unclean already. Were
            // the table put back, it is this store that must be complete.
            let level = table.level;
            let ia = table.ia + (((s.pa - table.base) / 8) << shape.shift(level));
            let end = ia + shape.span(level);
            let writer = self.now;
            for i in 0..self.trees[table.tree as usize].contexts.len() {
                let c = self.trees[table.tree as usize].contexts[i] as usize;
                let unclean = &mut self.contexts[c].unclean;
                for was in [Was::Leaf, Was::Table] {
                    let mut cleared = None;
                    let tagged = |r: &Run| r.tag == table.tag;
                    unclean.remove((was, level), ia..end, tagged, |_, run| cleared = Some(run));
                    if let Some(run) = cleared {
                        let run = Run { writer, ..run };
                        unclean.insert((was, level), shape.shift(level), ia, run);
                    }
                }
            }
            return Ok(());
        }
        if s.old == s.new {
            return Ok(());
        }
        let index = (s.pa - table.base) / 8;
        let mut v = self.violation(
            Kind::FrozenChildWritten,
            "the table was unlinked, but walkers may still be inside",
        );
        v.pa = Some(s.pa);
        v.ia = Some(table.ia + (index << shape.shift(table.level)));
        v.level = Some(table.level);
        Err(v)
    }

    /// True if no walk-cache entry can lead into a detached table any more.
    pub(crate) fn walkers_gone(&self, table: &Table) -> bool {
        let tree = &self.trees[table.tree as usize];
        !tree.contexts.iter().any(|&c| {
            self.contexts[c as usize]
                .unclean
                .overlapping(table.ia, table.ia + 1)
                .any(|(class, _, _, _)| class.0 == Was::Table && class.1 < table.level)
        })
    }

    pub(crate) fn transition(
        &mut self,
        table: &Table,
        shape: &Shape,
        ia: u64,
        s: Stored,
    ) -> Verdict {
        let level = table.level;
        let (old, new) = (shape.decode(level, s.old), shape.decode(level, s.new));
        if let (Desc::Leaf(_), true) = (old, shape.hd)
            && s.old & DBM != 0
            && !s.how.atomic()
        {
            return self.fail(
                Kind::PlainWriteRace,
                "hardware may set the dirty state between load and store",
            );
        }
        if let Desc::Bad(why) = new {
            return self.bad_descriptor(why, s.new);
        }
        let leaf = |oa, word| Standing {
            level,
            ia,
            oa,
            word,
        };
        match (old, new) {
            (Desc::Invalid | Desc::Bad(_), Desc::Invalid) => Ok(()),
            (Desc::Invalid | Desc::Bad(_), Desc::Leaf(oa)) => {
                self.make_leaf(table, shape, &leaf(oa, s.new))
            }
            (Desc::Invalid | Desc::Bad(_), Desc::Table(next)) => {
                self.make_table(table, ia, next, s.how)
            }
            (Desc::Leaf(oa), Desc::Invalid) => {
                self.break_leaf(table, shape, &leaf(oa, s.old), 0);
                Ok(())
            }
            (Desc::Table(next), Desc::Invalid) => {
                self.break_table(table, ia, next, s.old);
                Ok(())
            }
            (Desc::Leaf(from), Desc::Leaf(to)) => {
                self.change_leaf(table, shape, leaf(from, s.old), leaf(to, s.new))
            }
            (Desc::Table(from), Desc::Table(to)) => {
                let controls = shape.table_controls(s.old) ^ shape.table_controls(s.new);
                if from == to && controls == 0 {
                    return Ok(());
                }
                self.needs_a_break("a table descriptor was replaced by another")
            }
            (Desc::Leaf(oa), Desc::Table(next)) => {
                if !self.cacheable(table.tree, shape, &leaf(oa, s.old)) {
                    self.break_leaf(table, shape, &leaf(oa, s.old), 0);
                    return self.make_table(table, ia, next, s.how);
                }
                let allowed = self.features.bbm >= 2 || self.features.bbm == 1 && s.old & NT != 0;
                if allowed && self.maps_alike(table.tree, shape, &leaf(oa, s.old), next) {
                    self.make_table(table, ia, next, s.how)?;
                    self.break_leaf(table, shape, &leaf(oa, s.old), 0);
                    return Ok(());
                }
                self.needs_a_break("a live block was replaced by a table")
            }
            (Desc::Table(next), Desc::Leaf(oa)) => {
                let allowed = self.features.bbm >= 2 || self.features.bbm == 1 && s.new & NT != 0;
                if allowed && self.maps_alike(table.tree, shape, &leaf(oa, s.new), next) {
                    self.break_table(table, ia, next, s.old);
                    self.exempt = self.next_tag - 1;
                    let made = self.make_leaf(table, shape, &leaf(oa, s.new));
                    self.exempt = 0;
                    return made;
                }
                self.needs_a_break("a live table was replaced by a block")
            }
            (_, Desc::Bad(_)) => Ok(()),
        }
    }

    pub(crate) fn bad_descriptor(&self, why: BadDesc, word: u64) -> Verdict {
        let kind = match why {
            BadDesc::BlockLevel => Kind::BlockIllegalLevel,
            BadDesc::AddressSize => Kind::AddressSize,
        };
        self.fail(kind, format!("the descriptor is {word:#x}"))
    }

    /// Records what TLBs may hold of an entry that is gone, or allows less.
    pub(crate) fn add_runs(&mut self, tree: u32, shape: &Shape, gone: Gone) {
        let Gone {
            was,
            level,
            ia,
            oa,
            word,
            tag,
            aged,
        } = gone;
        let shift = shape.shift(level);
        let end = ia + (1 << shift);
        let attrs = self.leaf_attrs(tree, level, word);
        let mut run = Run {
            entries: 1,
            old: match was {
                Was::Table => word,
                _ => attribute_bits(shape, word),
            },
            oa,
            perms: attrs.perms,
            tag,
            writer: self.now,
            contiguous: was != Was::Table && attrs.contiguous,
            aged,
            since: self.event,
            progress: Progress::default(),
        };
        for i in 0..self.trees[tree as usize].contexts.len() {
            let c = self.trees[tree as usize].contexts[i] as usize;
            let unclean = &mut self.contexts[c].unclean;
            if !unclean.is_empty() {
                // One record per entry: the newest state with all rights it had.
                unclean.remove(
                    (Was::Loose, level),
                    ia..end,
                    |_| true,
                    |_, earlier| {
                        run.perms = run.perms | earlier.perms;
                        run.since = run.since.min(earlier.since);
                        run.aged &= earlier.aged;
                        run.contiguous |= earlier.contiguous;
                    },
                );
                if was != Was::Loose {
                    unclean.remove((was, level), ia..end, |_| true, |_, _| {});
                }
            }
            unclean.insert((was, level), shift, ia, run);
        }
    }

    fn needs_a_break(&self, what: &str) -> Verdict {
        self.fail(Kind::ValidToValidNeedsBbm, what)
    }

    /// A table is gone from memory; walkers may be inside.
    fn break_table(&mut self, table: &Table, ia: u64, next: u64, word: u64) {
        let shape = &self.shape_of(table.tree);
        let tag = self.next_tag;
        self.next_tag += 1;
        let gone = Gone {
            was: Was::Table,
            level: table.level,
            ia,
            oa: next,
            word,
            tag,
            aged: false,
        };
        self.add_runs(table.tree, shape, gone);
        let mut stack: Vec<Visit> = vec![(next, table.level + 1, ia)];
        let mut words = std::mem::take(&mut self.scratch);
        while let Some((base, level, first)) = stack.pop() {
            let Some(t) = self.tables.get_mut(&base) else {
                continue;
            };
            t.tag = tag;
            let t = *t;
            words.clear();
            self.mem.nonzero(base, t.entries, &mut words);
            for &(index, word) in &words {
                let at = first + (index << shape.shift(level));
                match shape.decode(level, word) {
                    Desc::Leaf(oa) => {
                        let leaf = Standing {
                            level,
                            ia: at,
                            oa,
                            word,
                        };
                        self.break_leaf(&t, shape, &leaf, tag);
                    }
                    Desc::Table(below) => {
                        let gone = Gone {
                            was: Was::Table,
                            level,
                            ia: at,
                            oa: below,
                            word,
                            tag,
                            aged: false,
                        };
                        self.add_runs(t.tree, shape, gone);
                        stack.push((below, level + 1, at));
                    }
                    _ => {}
                }
            }
        }
        self.scratch = words;
    }
}

/// A leaf's word without its output address, and with the access flag, without
/// which no TLB would have taken it.
fn attribute_bits(shape: &Shape, word: u64) -> u64 {
    let mut bits = word & !(((1u64 << 50) - 1) & !0xfff);
    if shape.high == HighAddress::Lpa2 {
        bits &= !0x300;
    }
    bits | AF
}

//! Links: tables that become reachable, and what must be true of them then.

use crate::descriptor::Desc;
use crate::event::How;
use crate::leaf::{Standing, output_extent};
use crate::machine::{Machine, Table, Verdict};
use crate::mem::{Owner, Use};
use crate::tree::Visit;
use crate::unclean::{Progress, Run, Was};
use crate::violation::Kind;

/// How a table becomes reachable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    /// A store to the entry above, which releases earlier stores or not.
    Store { released: bool },
    /// A write of the base register, which orders nothing.
    Register,
}

impl Machine {
    /// A table is linked where nothing valid stood.
    pub(crate) fn make_table(&mut self, table: &Table, ia: u64, next: u64, how: How) -> Verdict {
        let (level, shape) = (table.level, self.shape_of(table.tree));
        let below: Visit = (next, level + 1, ia);
        let end = ia + shape.span(level);
        if let Some(tag) = self.put_back(table.tree, level, ia, next) {
            return self.relink(table.tree, below, tag);
        }
        for &c in &self.trees[table.tree as usize].contexts {
            let context = &self.contexts[c as usize];
            if context.unclean.is_empty() {
                continue;
            }
            for (class, base, _, run) in context.unclean.overlapping(ia, end) {
                if class.0 != Was::Loose {
                    return Err(self.blame(
                        context.regime,
                        (class, base.max(ia)),
                        run,
                        Kind::MakeWhileUnclean,
                    ));
                }
            }
        }
        self.check_clash(table.tree)?;
        self.check_table_in_group(table, &shape, ia)?;
        let by = By::Store {
            released: how.releases(),
        };
        self.adopt(table.tree, below, by)
    }

    /// The tag of the removal that this link undoes, if it undoes one.
    fn put_back(&self, tree: u32, level: i8, ia: u64, next: u64) -> Option<u32> {
        let t = self.tables.get(&next)?;
        if t.tag == 0 || t.tree != tree || t.level != level + 1 || t.ia != ia {
            return None;
        }
        let contexts = &self.trees[tree as usize].contexts;
        contexts.iter().find_map(|&c| {
            self.contexts[c as usize]
                .unclean
                .overlapping(ia, ia + 1)
                .find(|(class, _, _, run)| *class == (Was::Table, level) && run.oa == next)
                .map(|(_, _, _, run)| run.tag)
        })
    }

    /// Links a detached subtree again where it was: what TLBs hold is right.
    fn relink(&mut self, tree: u32, table: Visit, tag: u32) -> Verdict {
        let (_, below, ia) = table;
        let (level, shape) = (below - 1, self.shape_of(tree));
        let mair = self.trees[tree as usize].mair;
        let end = ia + shape.span(level);
        for i in 0..self.trees[tree as usize].contexts.len() {
            let c = self.trees[tree as usize].contexts[i] as usize;
            let unclean = &mut self.contexts[c].unclean;
            unclean.remove((Was::Table, level), ia..end, |r| r.tag == tag, |_, _| {});
        }
        let mut stack = vec![table];
        while let Some((base, level, first)) = stack.pop() {
            let Some(t) = self.tables.get_mut(&base) else {
                continue;
            };
            t.tag = 0;
            let t = *t;
            for i in 0..self.trees[tree as usize].contexts.len() {
                let c = self.trees[tree as usize].contexts[i] as usize;
                let unclean = &mut self.contexts[c].unclean;
                let mut words = Vec::new();
                self.mem.nonzero(base, t.entries, &mut words);
                for (index, word) in words {
                    let at = first + (index << shape.shift(level));
                    let to = at + shape.span(level);
                    match shape.decode(level, word) {
                        Desc::Leaf(oa) => {
                            // What a TLB holds is right again, unless it is the
                            // looser leaf that stood there earlier.
                            let now = shape.attrs(level, word, mair);
                            let mut looser = None;
                            unclean.remove(
                                (Was::Leaf, level),
                                at..to,
                                |r| r.tag == tag,
                                |_, run| {
                                    let covered = now.perms.covers(run.perms);
                                    if !covered || !now.af {
                                        looser = Some(Run {
                                            aged: covered,
                                            tag: 0,
                                            ..run
                                        });
                                    }
                                },
                            );
                            if let Some(run) = looser {
                                let shift = shape.shift(level);
                                unclean.insert((Was::Loose, level), shift, at, run);
                            }
                            if i == 0 {
                                let (oa, shift) = output_extent(&shape, level, oa, word);
                                let key = (oa | u64::from(shift), tree);
                                *self.outputs.entry(key).or_insert(0) += 1;
                            }
                        }
                        Desc::Table(below) => {
                            unclean.remove(
                                (Was::Table, level),
                                at..to,
                                |r| r.tag == tag,
                                |_, _| {},
                            );
                            if i == 0 {
                                stack.push((below, level + 1, at));
                            }
                        }
                        _ => {}
                    }
                }
            }
        }
        // Entries that were cleared meanwhile are gone like any other.
        for i in 0..self.trees[tree as usize].contexts.len() {
            let c = self.trees[tree as usize].contexts[i] as usize;
            self.contexts[c].unclean.retain(|_, run| {
                if run.tag == tag {
                    run.progress = Progress::default();
                    run.tag = 0;
                }
                true
            });
        }
        Ok(())
    }

    /// The root becomes walkable.
    pub(crate) fn adopt_root(&mut self, tree: u32) -> Verdict {
        let t = &self.trees[tree as usize];
        let (root, shape) = (t.root, t.shape);
        self.adopt(tree, (root, shape.start, 0), By::Register)
    }

    /// Links a table and all below it.
    fn adopt(&mut self, tree: u32, table: Visit, by: By) -> Verdict {
        let shape = self.shape_of(tree);
        let mut stack = vec![table];
        let mut words = Vec::new();
        while let Some((base, level, first)) = stack.pop() {
            let entries = if level == shape.start {
                shape.root_entries()
            } else {
                1 << shape.stride
            };
            self.link(tree, (base, level, first), entries, by)
                .map_err(|mut v| {
                    v.pa = Some(base);
                    v.ia = Some(first);
                    v
                })?;
            words.clear();
            self.mem.nonzero(base, entries, &mut words);
            for &(index, word) in &words {
                let at = first + (index << shape.shift(level));
                match shape.decode(level, word) {
                    Desc::Invalid => {}
                    Desc::Bad(why) => {
                        return self.bad_descriptor(why, word).map_err(|mut v| {
                            v.pa = Some(base + index * 8);
                            v.ia = Some(at);
                            v.level = Some(level);
                            v
                        });
                    }
                    Desc::Leaf(oa) => {
                        let leaf = Standing {
                            level,
                            ia: at,
                            oa,
                            word,
                        };
                        self.leaf_added(tree, &shape, &leaf)?;
                        let table = self.tables[&base];
                        self.check_neighbours(&table, &shape, &leaf)?;
                    }
                    Desc::Table(next) => stack.push((next, level + 1, at)),
                }
            }
        }
        Ok(())
    }

    /// Walkers that see the link must see the table's contents.
    fn check_contents_visible(&self, base: u64, bytes: u64, by: By) -> Verdict {
        let now = self.now;
        let pe = &self.pes[usize::from(now)];
        let last = self.mem.last_store_by(base, bytes, now);
        match by {
            By::Store { released: true } => {}
            By::Store { released: false } if last > pe.ordered => {
                return self.fail(
                    Kind::TableUsedUninitialised,
                    "walkers may see the link before the table's contents",
                );
            }
            By::Register if last > pe.completed => {
                return self.fail(
                    Kind::MissingStoreBarrier,
                    "a table was written and no DSB followed before the root was installed",
                );
            }
            _ => {}
        }
        // What other PEs stored there must be complete; so must this PE's own
        // stores, where no store orders them.
        for (i, pe) in self.pes.iter().enumerate() {
            if i == usize::from(now) && by != By::Register {
                continue;
            }
            let old = pe
                .pending
                .iter()
                .find(|s| (base..base + bytes).contains(&s.pa) && self.mem.load(s.pa) != s.old);
            if let Some(s) = old {
                return self.fail(
                    Kind::MissingStoreBarrier,
                    format!("PE {i} stored to {:#x} and no DSB followed", s.pa),
                );
            }
        }
        Ok(())
    }

    fn link(&mut self, tree: u32, table: Visit, entries: u64, by: By) -> Verdict {
        let (base, level, ia) = table;
        let bytes = entries * 8;
        let earlier = self.tables.get(&base).copied();
        if let Some(t) = earlier {
            if t.tag == 0 && !self.dead(t.tree) {
                return self.fail(
                    Kind::TableLinkedTwice,
                    format!("it is linked at {:#x} already", t.ia),
                );
            }
            if self.dead(t.tree) {
                self.retire(t.tree);
            } else if !self.walkers_gone(&t) {
                return self.fail(
                    Kind::FreeWhileCached,
                    "the table is used again while walkers of its old place may be inside",
                );
            }
        }
        let mut wrong = None;
        for (lo, _, usage) in self.mem.uses(base, bytes) {
            wrong = match usage {
                Use::Free => Some((Kind::TableUsedUninitialised, lo, "was freed")),
                Use::Data(Owner::Hypervisor) | Use::Unknown | Use::Table => None,
                Use::Data(_) => Some((Kind::OutputNotOwned, lo, "is not the hypervisor's")),
            };
            if wrong.is_some() {
                break;
            }
        }
        if let Some((kind, lo, what)) = wrong {
            return self.fail(kind, format!("a table in {lo:#x}, which {what}"));
        }
        if self.mem.undefined(base, entries) {
            return self.fail(
                Kind::TableUsedUninitialised,
                "some of its entries were never written",
            );
        }
        self.check_contents_visible(base, bytes, by)?;
        // Who reaches it now reaches it by the link, which comes after them.
        let now = usize::from(self.now);
        self.pes[now]
            .pending
            .retain(|s| !(base..base + bytes).contains(&s.pa));
        if !self.sizes.contains(&bytes) {
            self.sizes.push(bytes);
        }
        self.tables.insert(
            base,
            Table {
                base,
                entries,
                tree,
                level,
                ia,
                tag: 0,
            },
        );
        Ok(())
    }
}

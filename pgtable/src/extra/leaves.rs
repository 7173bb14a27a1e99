//! Changing leaves in place: the loop under protect, age and dirty tracking.
//!
//! A change never moves a leaf nor changes its size or memory type, so it
//! needs no break (spec 1.8). What it takes away is not gone until a TLB
//! forgets it: such leaves are noted in a [`Gather`], which is flushed at
//! once or later.

use crate::addr::Ipa;
use crate::error::{Budget, Error, Stopped};
use crate::format::{self, CONTIGUOUS};
use crate::maintenance::Maintenance;
use crate::mem::TableMem;
use crate::plan::Pending;
use crate::shape::Shape;
use crate::sink::RemovedLeaf;
use crate::stage2::{Stage2, typed};
use crate::sync::{self, Synced};
use crate::tree::{Changes, Core, Over, Slot};
use crate::unmap::Partial;
use core::sync::atomic::{AtomicU64, Ordering};

/// Changes of leaves of one tree that some TLB may not know of yet. From
/// [`Stage2::gather`], and of use with that tree only: others answer
/// [`OtherTree`](crate::Error::OtherTree), and give it back unsynced.
///
/// Leaves may be gathered and flushed later, together; tables never. Until
/// [`sync`](crate::Stage2::sync) returns, guests may go on using what was
/// removed or restricted, and what was removed stays frozen: to map there is
/// answered [`Busy`](crate::Error::Busy), as it would be a make before the
/// break is complete.
#[derive(Debug)]
#[must_use = "until it is synced, TLBs go on using what was taken away"]
pub struct Gather {
    pub(crate) pending: Pending,
    serial: u64,
    /// `VTTBR_EL2` of the tree it is of: root and VMID.
    tree: u64,
}

impl Gather {
    /// True when it is of the tree with this `VTTBR_EL2`.
    pub(crate) const fn is_of(&self, vttbr: u64) -> bool {
        self.tree == vttbr
    }

    /// True when there is nothing to invalidate.
    pub const fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    pub(crate) const fn serial(&self) -> u64 {
        self.serial
    }
}

/// A change of leaves in a range, on raw numbers and checked.
pub(crate) struct ChangeJob {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) partial: Partial,
    /// Groups under a contiguous hint are broken before a member changes.
    pub(crate) break_groups: bool,
    /// Leaves with all these bits are known to change.
    pub(crate) sure: u64,
    /// How many leaves were changed.
    pub(crate) count: u64,
}

impl<M: TableMem> Core<M> {
    /// Gives every leaf in the range the value that `change` says, by
    /// compare-and-swap, and notes it for invalidation. `before` is called
    /// before each change (and again when it has to be tried again), `changed`
    /// after it.
    ///
    /// `REMOVES`: all are frozen, whatever `change` says, until
    /// [`flush`](Self::flush). `SURE`: leaves with the job's `sure` bits are
    /// not compared before the swap.
    #[allow(clippy::too_many_arguments)]
    #[inline]
    pub(crate) fn change_leaves<const REMOVES: bool, const SURE: bool, T: Maintenance>(
        &self,
        maint: &mut T,
        pending: &mut Pending,
        job: &mut ChangeJob,
        budget: &mut Budget,
        change: impl Fn(u64) -> u64,
        mut before: impl FnMut(&mut T, i8, u64, u64),
        mut changed: impl FnMut(u64, i8, u64),
    ) -> Result<u64, Stopped<u64>> {
        let mut ia = job.start;
        while ia < job.end {
            let slot = self.walk_to(ia, 3);
            let level = slot.level;
            let mut at = slot.base(ia);
            let step = 1u64 << slot.shift;
            let inside = at >= job.start && at + step <= job.end;
            let count = if inside {
                ((job.end - at) >> slot.shift)
                    .min(self.entries_left(&slot) as u64)
                    .min(budget.left().max(1)) as usize
            } else {
                1
            };
            if !inside && format::is_leaf(slot.raw, level) {
                let next = at.max(ia);
                match job.partial {
                    Partial::DropWhole => (),
                    Partial::Refuse => {
                        let why = Error::InsideBlock {
                            level: Shape::level(level),
                        };
                        return Err(Stopped { why, next });
                    }
                    Partial::Split => {
                        let mut changes = Changes::new();
                        let split = self.reach(maint, &mut changes, ia, level + 1, Over::Anything);
                        let _done: Synced = self.finish(maint, &changes);
                        if let Err(why) = split {
                            return Err(Stopped { why, next });
                        }
                        continue;
                    }
                }
            }
            // An entry that is no such leaf is handled out of line.
            let group = if job.break_groups { CONTIGUOUS } else { 0 };
            let plain = format::TYPE | group | job.sure;
            let leaf = format::leaf_type(level) | job.sure;
            let base = at;
            let shift = slot.shift;
            let first = slot.index;
            let table = slot.table;
            let note = |pending: &mut Pending, start, end| {
                if REMOVES {
                    pending.held(&self.shape, start, end, level);
                } else {
                    pending.leaves(&self.shape, start, end, level);
                }
            };
            let address =
                |index: usize| base.wrapping_add((index.wrapping_sub(first) as u64) << shift);
            let mut why = None;
            // Leaves changed in a row, from this one on, are noted together.
            let mut run = first;
            let mut index = first;
            let last = first + count;
            self.make_room::<REMOVES, T>(maint, pending);
            while index < last {
                let raw = self.mem.load(table, index);
                if (raw ^ leaf) & plain == 0 {
                    let new = if REMOVES {
                        format::GATHERED
                    } else {
                        change(raw)
                    };
                    if SURE || new != raw {
                        before(maint, level, raw, new);
                        if self.mem.cas(table, index, raw, new).is_err() {
                            // Hardware, or another CPU: look again.
                            continue;
                        }
                        changed(address(index), level, raw);
                        index += 1;
                        continue;
                    }
                } else if format::is_table(raw, level) {
                    break;
                } else if format::is_frozen(raw) {
                    why = Some(Error::Busy);
                    break;
                } else if format::is_leaf(raw, level) && change(raw) != raw {
                    let mut member = Slot { index, raw, ..slot };
                    let broken = self.break_group(maint, &mut member, address(index));
                    if broken.is_ok() {
                        continue;
                    }
                    why = broken.err();
                    break;
                }
                // Unchanged: the run ends before it.
                note(pending, address(run), address(index));
                job.count += (index - run) as u64;
                index += 1;
                run = index;
                self.make_room::<REMOVES, T>(maint, pending);
            }
            job.count += (index - run) as u64;
            note(pending, address(run), address(index));
            budget.spend(((index - first) as u64).max(1));
            at = address(index);
            ia = at.max(ia);
            if let Some(why) = why {
                let next = ia.min(job.end);
                return Err(Stopped { why, next });
            }
            if budget.is_spent() {
                break;
            }
        }
        Ok(ia.min(job.end))
    }

    /// Flushes what was gathered.
    pub(crate) fn flush<T: Maintenance>(&self, maint: &mut T, mut gather: Gather) -> Synced {
        self.flush_held(maint, &mut gather.pending)
            .of(gather.serial())
    }

    /// Flushes what is noted if a run that begins now would be covered
    /// together with entries that are held frozen.
    #[inline]
    fn make_room<const REMOVES: bool, T: Maintenance>(&self, maint: &mut T, pending: &mut Pending) {
        if pending.is_full() && (REMOVES || pending.is_full_of_held()) {
            let _done = self.flush_held(maint, pending);
        }
    }

    /// Invalidates what is noted, and empties the entries that were frozen
    /// until then.
    fn flush_held<T: Maintenance>(&self, maint: &mut T, pending: &mut Pending) -> Synced {
        let done = sync::sync(maint, &self.tlb, pending);
        for (start, end) in pending.held_ranges() {
            let mut ia = start;
            while ia < end {
                let slot = self.walk_to(ia, 3);
                let mut at = slot.base(ia);
                let mut more = 0;
                for index in slot.index..slot.index + self.entries_left(&slot) {
                    let raw = self.mem.load(slot.table, index);
                    let below = index > slot.index && format::is_table(raw, slot.level);
                    if at >= end || below {
                        break;
                    }
                    // The tables that leaves were held in may be gone by now,
                    // and others come: only what still is held is emptied.
                    let next = at + (1 << slot.shift);
                    if at >= start && next <= end && raw == format::GATHERED {
                        self.mem.store(slot.table, index, 0);
                        more -= 1;
                    }
                    at = next;
                }
                self.add_count(slot.pa, more);
                ia = at;
            }
        }
        *pending = Pending::new();
        done
    }
}

/// A leaf that was taken out of the tree, and not yet out of every TLB.
#[derive(Debug)]
#[must_use = "its memory is released after the gather is synced"]
pub struct HeldLeaf {
    leaf: RemovedLeaf,
    serial: u64,
}

impl HeldLeaf {
    /// The first input address.
    pub const fn ia(&self) -> u64 {
        self.leaf.ia()
    }

    /// The leaf, whose output address may now go to another owner.
    ///
    /// # Errors
    /// Itself, when `proof` is not that of the gather it was noted in.
    pub fn release(self, proof: &Synced) -> Result<RemovedLeaf, Self> {
        if proof.serial() == self.serial {
            Ok(self.leaf)
        } else {
            Err(self)
        }
    }
}

impl<M: TableMem> Stage2<M> {
    /// A gather for this tree, with nothing in it.
    pub fn gather(&self) -> Gather {
        static SERIAL: AtomicU64 = AtomicU64::new(1);
        Gather {
            pending: Pending::new(),
            serial: SERIAL.fetch_add(1, Ordering::Relaxed),
            tree: self.vttbr(),
        }
    }

    /// Removes the leaves of a range now and invalidates them when `gather`
    /// is synced, together with more. Tables and annotations stay, caches
    /// are not maintained. `sink` gets each leaf closed: only the gather's
    /// proof opens it.
    ///
    /// The entries stay frozen until the sync, which empties them: its work
    /// is in proportion to what was removed. A gather of more than
    /// [`RUNS`](crate::RUNS) places is invalidated in between.
    ///
    /// ```
    /// # mod example { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/example.rs")); }
    /// # use {example::*, pgtable::*};
    /// # let (mut tree, mut cpu) = mapped();
    /// # let all = &mut Budget::unlimited();
    /// let (mut gather, mut held) = (tree.gather(), Vec::new());
    /// for page in [0x4000_0000, 0x4000_9000] {
    ///     let ipa = Ipa::new(page);
    ///     tree.unmap_later(&mut cpu, ipa, 4096, Partial::Split, &mut gather, all, |leaf| held.push(leaf))?;
    /// }
    /// let proof = tree.sync(&mut cpu, gather).expect("of this tree");
    /// for leaf in held {
    ///     let leaf = leaf.release(&proof).expect("the gather's own proof");
    ///     assert_eq!(leaf.pa().get() - leaf.ia(), 0x4000_0000);
    /// }
    /// # let _ = (&mut tree, &mut cpu, all);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// `Range`, `Align`, `OtherTree` at once; `InsideBlock`, `NoMem` (to
    /// split), `Busy` where it stopped.
    #[allow(clippy::too_many_arguments)]
    pub fn unmap_later<T: Maintenance>(
        &self,
        maint: &mut T,
        ipa: Ipa,
        size: u64,
        partial: Partial,
        gather: &mut Gather,
        budget: &mut Budget,
        mut sink: impl FnMut(HeldLeaf),
    ) -> Result<Ipa, Stopped<Ipa>> {
        let core = &self.core;
        let end = core
            .shape
            .check_ia(ipa.get(), size)
            .map_err(|why| Stopped { why, next: ipa })?;
        if !gather.is_of(self.vttbr()) {
            let why = Error::OtherTree;
            return Err(Stopped { why, next: ipa });
        }
        let mut job = ChangeJob {
            start: ipa.get(),
            end,
            partial,
            break_groups: true,
            sure: 0,
            count: 0,
        };
        let serial = gather.serial;
        let result = core.change_leaves::<true, true, T>(
            maint,
            &mut gather.pending,
            &mut job,
            budget,
            |_| 0,
            |_, _, _, _| (),
            |at, level, old| {
                sink(HeldLeaf {
                    leaf: RemovedLeaf::new(&core.shape, at, level, old),
                    serial,
                });
            },
        );
        typed(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Log, Plain};
    use crate::{Attrs, Granule, Leaves, Level, Map, Pa, Stage2Config, Vmid};

    /// A block and the pages of the table behind it are one range. When it is
    /// flushed both are empty, and the table is still there.
    #[test]
    fn neighbours_of_two_levels_are_emptied_each_in_its_table() {
        let mem = Plain::new(4096, 1 << 20);
        let geometry = Stage2Config::new(Granule::K4, 39, 48).validate().unwrap();
        let root = mem.root(geometry.root_align());
        let tree = Stage2::new(geometry, root, Vmid::new(5), &mem).unwrap();
        let mut log = Log {
            regs: tree.regs(),
            ..Log::default()
        };
        let all = &mut Budget::unlimited();
        let block = 2u64 << 20;
        for (at, leaves) in [
            (0, Leaves::Largest),
            (block, Leaves::Exactly(Level::L3)),
            (2 * block, Leaves::Largest),
        ] {
            let map = Map::new(Ipa::new(at), Pa::new(at), block, Attrs::MEMORY);
            tree.map(&mut log, &map.leaves(leaves), all).unwrap();
        }
        let tables = mem.live.get();
        let (mut gather, mut held) = (tree.gather(), 0);
        let sink = |_: HeldLeaf| held += 1;
        let partial = Partial::Refuse;
        tree.unmap_later(
            &mut log,
            Ipa::new(0),
            3 * block,
            partial,
            &mut gather,
            all,
            sink,
        )
        .unwrap();
        assert_eq!(held, 514);
        let _proof = tree.sync(&mut log, gather).unwrap();
        for page in 0..3 * 512 {
            assert_eq!(tree.lookup(Ipa::new(page << 12)).unwrap().raw, 0);
        }
        assert_eq!(mem.live.get(), tables);
        assert_eq!(tree.lookup(Ipa::new(block)).unwrap().level, Level::L3);
    }
}

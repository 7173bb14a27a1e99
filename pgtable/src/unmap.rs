//! Removing what a range maps: leaves, and tables that the range covers.
//!
//! Three steps, so that memory leaves only after every TLB agrees:
//! 1. *break*: leaves become invalid (frozen, if there is something to do for
//!    them in step 3), covered tables are cut off at their parent by one
//!    frozen entry;
//! 2. *sync*: one invalidation for all of it;
//! 3. *release*: removed leaves are cleaned and reported, cut tables are
//!    freed, frozen entries get their final value.
//!
//! A budget that ends in step 3 leaves entries *parked* (see `format`): out
//! of all TLBs, and with what is left to do. The operation finds them when it
//! is called again.
//!
//! Under shared access tables stay where they are, empty. Every leaf is
//! frozen until its invalidation is complete, so that nobody maps there
//! before, and what this call froze is kept as exact ranges: step 3 touches
//! nothing else, whatever other CPUs do in between.

use crate::addr::Pa;
use crate::error::{Budget, Error, Stopped};
use crate::format::{self, CONTIGUOUS, GOING};
use crate::geometry::Shape;
use crate::maintenance::Maintenance;
use crate::mem::TableMem;
use crate::plan::Pending;
use crate::sink::LeafSink;
use crate::tree::{Changes, Core, Over, Slot};

/// What to do with a block that a range covers only in part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Partial {
    /// Split it: the rest stays mapped. Takes a table page a level.
    Split,
    /// Drop the whole block: more goes than was asked for, and the sink is
    /// told all of it. While memory outside the range is cleaned, calls end
    /// where they began. Permissions change for the whole block likewise.
    DropWhole,
    /// Stop with [`Error::InsideBlock`].
    Refuse,
}

/// A range to clear, on raw numbers and checked.
pub(crate) struct UnmapJob {
    pub(crate) start: u64,
    pub(crate) end: u64,
    /// The annotation that entries get.
    pub(crate) blank: u64,
    pub(crate) partial: Partial,
    /// Clean data caches of what was mapped, after the invalidation.
    pub(crate) clean: bool,
    /// No other walker is in the tree: tables may go.
    pub(crate) exclusive: bool,
}

/// What step 1 left behind.
struct Broken {
    pending: Pending,
    /// Some entries are frozen: step 3 has work.
    frozen: bool,
    stored: bool,
    /// How far entries were frozen: a dropped block may end after the range.
    to: u64,
}

impl<M: TableMem> Core<M> {
    pub(crate) fn unmap<T: Maintenance, S: LeafSink>(
        &self,
        maint: &mut T,
        sink: &mut S,
        job: &UnmapJob,
        budget: &mut Budget,
    ) -> Result<u64, Stopped<u64>> {
        let mut ia = job.start;
        loop {
            let start = ia;
            let mut broken = Broken {
                pending: Pending::new(),
                frozen: false,
                stored: false,
                to: start,
            };
            let beside_others = mutant!(UnmapOpenToOthers, !job.exclusive, false);
            let visit = S::WANTS || job.clean || beside_others;
            let mut why = None;
            while ia < job.end {
                match self.break_run(maint, job, ia, visit, &mut broken, budget) {
                    Ok(next) => ia = next.min(job.end),
                    Err(stopped) => {
                        ia = stopped.next;
                        why = Some(stopped.why);
                        break;
                    }
                }
                // A table that was only entered or made is no address done.
                let enough = budget.is_spent() && ia > job.start;
                if enough || (!job.exclusive && broken.pending.is_full()) {
                    break;
                }
            }
            let changes = Changes::of(broken.stored, broken.pending);
            let done = self.finish(maint, &changes);
            let mut stopped = None;
            if job.exclusive && broken.frozen {
                let range = (start, broken.to.max(ia));
                stopped = self.release_range(maint, sink, job, range, &done, budget);
            } else if broken.frozen {
                for range in changes.held_ranges() {
                    if stopped.is_some() {
                        self.park_range(range.0, range.1);
                    } else {
                        stopped = self.release_range(maint, sink, job, range, &done, budget);
                    }
                }
            }
            if let Some(at) = stopped {
                return Ok(at.clamp(job.start, job.end));
            }
            match why {
                None if ia >= job.end || budget.is_spent() => return Ok(ia),
                None => (),
                Some(why) => return Err(Stopped { why, next: ia }),
            }
        }
    }

    /// Step 1 for neighbouring entries of one table. Returns where to go on.
    fn break_run<T: Maintenance>(
        &self,
        maint: &mut T,
        job: &UnmapJob,
        ia: u64,
        visit: bool,
        broken: &mut Broken,
        budget: &mut Budget,
    ) -> Result<u64, Stopped<u64>> {
        // Shared access enters every table: nothing is "inside" then.
        let (from, to) = if job.exclusive {
            (job.start, job.end)
        } else {
            (1, 0)
        };
        let mut path = self.walk_path(ia, from, to);
        let slot = path.last();
        let level = slot.level;
        let step = 1u64 << slot.shift;
        let entries = self.entries_left(&slot).min(budget.left().max(1) as usize);
        let blank = job.blank;
        // What is frozen gets its count with its final value.
        let of_new = if visit { 0 } else { self.counting.of(blank) };
        let kind = if job.exclusive { GOING } else { 0 };
        let mut at = slot.base(ia);
        let mut more = 0i32;
        // Neighbouring leaves removed, noted together.
        let mut run = at;
        let mut run_end = at;
        let mut first_removed = None;
        let mut spent = 0u64;
        let mut result = Ok(());
        for index in slot.index..slot.index + entries {
            if at >= job.end {
                break;
            }
            let raw = self.mem.load(slot.table, index);
            let next = at.wrapping_add(step);
            spent += 1;
            if raw == blank {
                at = next;
                continue;
            }
            if !job.exclusive && at != run_end && run != run_end {
                // One run at a time: there may be no room for another.
                break;
            }
            if format::is_leaf(raw, level)
                && raw & CONTIGUOUS == 0
                && at >= job.start
                && next <= job.end
            {
                // The common case, first.
                let new = if visit {
                    format::freeze(raw, level) | kind
                } else {
                    blank
                };
                if self.mem.cas(slot.table, index, raw, new).is_ok() {
                    if at != run_end {
                        broken.pending.leaves(&self.shape, run, run_end, level);
                        run = at;
                    }
                    run_end = next;
                    more += of_new - self.counting.of(raw);
                    first_removed.get_or_insert(at);
                    broken.frozen |= visit;
                    at = next;
                    continue;
                }
            }
            let here = Slot { index, raw, ..slot };
            match self.break_other(maint, job, here, at, visit, broken) {
                Ok(BreakOutcome::Done(change)) => more += change,
                Ok(BreakOutcome::Table(change)) => {
                    more += change;
                    first_removed.get_or_insert(at);
                }
                Ok(BreakOutcome::Leaf(change)) => {
                    if at != run_end {
                        broken.pending.leaves(&self.shape, run, run_end, level);
                        run = at;
                    }
                    run_end = next;
                    more += change;
                    first_removed.get_or_insert(at);
                }
                Ok(BreakOutcome::Enter) => break,
                Err(why) => {
                    result = Err(why);
                    break;
                }
            }
            at = next;
        }
        if job.exclusive {
            broken.pending.leaves(&self.shape, run, run_end, level);
        } else {
            broken.pending.held(&self.shape, run, run_end, level);
        }
        budget.spend(spent);
        if more != 0 {
            self.mem.add_count(Pa::new(slot.pa), more);
        }
        if job.exclusive && blank == 0 && self.counting.zero_is_empty() {
            self.cut_empty(
                &mut path,
                ia,
                first_removed.map(|first| (first, at)),
                broken,
            );
        }
        broken.to = broken.to.max(at);
        match result {
            Ok(()) => Ok(at.max(ia)),
            Err(why) => Err(Stopped {
                why,
                next: at.max(ia),
            }),
        }
    }

    /// Step 1 for an entry that is not simply a leaf inside the range.
    #[cold]
    #[inline(never)]
    fn break_other<T: Maintenance>(
        &self,
        maint: &mut T,
        job: &UnmapJob,
        slot: Slot<M::Table>,
        at: u64,
        visit: bool,
        broken: &mut Broken,
    ) -> Result<BreakOutcome, Error> {
        let level = slot.level;
        let step = 1u64 << slot.shift;
        let covered = at >= job.start && at + step <= job.end;
        let of_blank = self.counting.of(job.blank);
        let kind = if job.exclusive { GOING } else { 0 };
        let swap = |old, new| self.mem.cas(slot.table, slot.index, old, new).is_ok();
        loop {
            let raw = self.mem.load(slot.table, slot.index);
            if raw == job.blank {
                return Ok(BreakOutcome::Done(0));
            }
            if format::is_frozen(raw) {
                match self.take_over(job, &slot, raw, at, broken)? {
                    Some(other) => return Ok(other),
                    None => continue,
                }
            }
            if format::is_table(raw, level) {
                if !(job.exclusive && covered) {
                    return Ok(BreakOutcome::Enter);
                }
                if !swap(raw, format::freeze(raw, level) | kind) {
                    continue;
                }
                let empty = level == 2
                    && self.counting.zero_is_empty()
                    && mutant!(
                        TableTakenForEmpty,
                        self.mem.count(Pa::new(self.shape.decode_oa(raw))) == 0,
                        true
                    );
                let smallest = if empty {
                    slot.shift
                } else {
                    self.shape.page_bits()
                };
                let span = mutant!(TableSpanStartOnly, step, self.shape.page_mask() + 1);
                broken.pending.table(at, at + span, smallest);
                broken.frozen = true;
                return Ok(BreakOutcome::Table(-1));
            }
            let mut here = Slot { raw, ..slot };
            if format::is_annotation(raw) {
                if covered {
                    if !swap(raw, job.blank) {
                        continue;
                    }
                    return Ok(BreakOutcome::Done(of_blank - self.counting.of(raw)));
                }
            } else if !format::is_leaf(raw, level) {
                // Nothing that this crate writes, and no walk goes through it.
                return Err(Error::Exists {
                    level: Shape::level(level),
                });
            } else if raw & CONTIGUOUS != 0 {
                self.break_group(maint, &mut here, at)?;
                continue;
            } else if covered
                || mutant!(
                    SplitDropsWhole,
                    job.partial == Partial::DropWhole,
                    job.partial != Partial::Refuse
                )
            {
                let (new, of_new) = if visit {
                    (format::freeze(raw, level) | kind, 0)
                } else {
                    (job.blank, of_blank)
                };
                if !swap(raw, new) {
                    continue;
                }
                broken.frozen |= visit;
                return Ok(BreakOutcome::Leaf(of_new - self.counting.of(raw)));
            } else if job.partial == Partial::Refuse {
                return Err(Error::InsideBlock {
                    level: Shape::level(level),
                });
            }
            // A block or an annotation that the range covers in part.
            let mut changes = Changes::new();
            let ia = at.max(job.start);
            let reached = self.reach(maint, &mut changes, ia, level + 1, Over::Anything);
            broken.stored |= changes.stored;
            reached?;
            return Ok(BreakOutcome::Enter);
        }
    }

    /// Step 1 for an entry that somebody froze: those whose budget ended are
    /// gone on with. `None`: look again.
    fn take_over(
        &self,
        job: &UnmapJob,
        slot: &Slot<M::Table>,
        raw: u64,
        at: u64,
        broken: &mut Broken,
    ) -> Result<Option<BreakOutcome>, Error> {
        let swap = |new| self.mem.cas(slot.table, slot.index, raw, new).is_ok();
        let kind = raw & format::PARKED;
        let forgotten = kind == format::HELD_EMPTY && job.exclusive;
        if raw == format::GATHERED && job.exclusive {
            // Its gather comes later, or never: it is invalidated here.
            if swap(0) {
                self.add_count(slot.pa, -1);
                let end = at + (1 << slot.shift);
                broken.pending.leaves(&self.shape, at, end, slot.level);
            }
            return Ok(None);
        }
        if kind == format::COMING || forgotten {
            // Never mapped, nor counted.
            swap(0);
            return Ok(None);
        }
        if job.exclusive {
            // No other walker is in the tree. What is not marked belonged to
            // one that was forgotten.
            broken.frozen = true;
            if kind == GOING {
                return Ok(Some(BreakOutcome::Done(0)));
            }
            let counted = self.counting.of(format::thaw(raw, slot.level));
            swap(raw | GOING);
            let end = at + (1 << slot.shift);
            broken.pending.table(at, end, self.shape.page_bits());
            return Ok(Some(BreakOutcome::Done(-counted)));
        }
        if kind == GOING && !format::was_table(raw, slot.level) {
            if !swap(raw & !GOING) {
                return Ok(None);
            }
            broken.frozen = true;
            return Ok(Some(BreakOutcome::Leaf(0)));
        }
        Err(Error::Busy)
    }

    /// Cuts off the table at the end of `path` if nothing is left in it, and
    /// its parents likewise. `removed` is what this call took out of it.
    fn cut_empty(
        &self,
        path: &mut crate::tree::Path<M::Table>,
        ia: u64,
        removed: Option<(u64, u64)>,
        broken: &mut Broken,
    ) {
        let mut slot = path.last();
        loop {
            let left = self.mem.count(Pa::new(slot.pa));
            if left > mutant!(CutWithOneLeft, 0, 1) {
                return;
            }
            let Some(parent) = path.up() else {
                return;
            };
            let frozen = format::freeze(parent.raw, parent.level) | GOING;
            if self
                .mem
                .cas(parent.table, parent.index, parent.raw, frozen)
                .is_err()
            {
                return;
            }
            self.mem.add_count(Pa::new(parent.pa), -1);
            match removed {
                // What was removed is being invalidated by address; without
                // a level hint that takes the tables above along.
                Some((start, end)) => {
                    if mutant!(CutTableHinted, true, false) {
                        broken.pending.table(start, end, self.shape.page_bits());
                    }
                }
                None => {
                    let base = parent.base(ia);
                    broken
                        .pending
                        .table(base, base + (1 << parent.shift), parent.shift);
                }
            }
            broken.frozen = true;
            broken.to = broken.to.max(parent.end(ia));
            slot = parent;
        }
    }
}

/// What breaking an entry left to be done, of one that is not simply a leaf inside
/// the range.
enum BreakOutcome {
    /// The entry is dealt with; the table's count changes by this.
    Done(i32),
    /// As `Done`, and a leaf stood there: to be invalidated.
    Leaf(i32),
    /// As `Done`, and a table stood there, which was noted.
    Table(i32),
    /// A table stands there that has to be entered.
    Enter,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Event, Log, Plain};
    use crate::{Attrs, CacheOp, Entry, Granule, Ignore, Ipa, Leaves, Level, Map};
    use crate::{RemovedLeaf, Stage2, Stage2Config, Vmid};
    extern crate std;
    use std::vec::Vec;

    /// Without FWB.
    fn tree(mem: &Plain) -> (Stage2<&Plain>, Log) {
        let geometry = Stage2Config::new(Granule::K4, 39, 48).validate().unwrap();
        let root = mem.root(geometry.root_align());
        let tree = Stage2::new(geometry, root, Vmid::new(5), mem).unwrap();
        let log = Log {
            regs: tree.regs(),
            ..Log::default()
        };
        (tree, log)
    }

    fn map_block(tree: &Stage2<&Plain>, log: &mut Log) {
        let span = 1 << 30;
        let map = Map::new(Ipa::new(0), Pa::new(4 * span), span, Attrs::MEMORY);
        let done = tree.map(log, &map, &mut Budget::unlimited());
        assert_eq!(done, Ok(Ipa::new(span)));
    }

    /// What was cleaned, neighbours joined.
    fn cleaned(log: &Log) -> Vec<(u64, u64)> {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for event in &log.events {
            if let &Event::Cache(CacheOp::CleanInvalidateData { pa, size }) = event {
                match runs.last_mut() {
                    Some((from, bytes)) if *from + *bytes == pa.get() => *bytes += size,
                    _ => runs.push((pa.get(), size)),
                }
            }
        }
        runs
    }

    /// Without FWB a block of 1 GiB is cleaned in steps of the budget: it is
    /// frozen between them, its memory is told in parts as they are clean,
    /// and all of it is cleaned once, after the invalidation.
    #[test]
    fn a_block_is_cleaned_in_steps_after_it_is_unmapped() {
        let span = 1u64 << 30;
        for shared in [false, true] {
            let mem = Plain::new(4096, 1 << 20);
            let (mut tree, mut log) = tree(&mem);
            map_block(&tree, &mut log);
            log.events.clear();
            let mut told = 0;
            let (mut at, mut calls) = (0, 0);
            while at < span {
                let mut sink = |leaf: RemovedLeaf| {
                    assert_eq!((leaf.ia(), leaf.pa().get()), (told, 4 * span + told));
                    told += leaf.size();
                };
                let (ipa, rest) = (Ipa::new(at), span - at);
                let (partial, budget) = (Partial::Refuse, &mut Budget::entries(1 << 14));
                let next = if shared {
                    tree.unmap_leaves(&mut log, ipa, rest, partial, &mut sink, budget)
                } else {
                    tree.unmap(&mut log, ipa, rest, partial, &mut sink, budget)
                };
                at = next.unwrap().get();
                calls += 1;
                assert_eq!(told, at);
                if at < span {
                    assert_eq!(tree.lookup(Ipa::new(0)).unwrap().entry, Entry::Frozen);
                    let page = Map::new(Ipa::new(0), Pa::new(0), 4096, Attrs::MEMORY);
                    let busy = tree.map(&mut log, &page, &mut Budget::unlimited());
                    assert_eq!(busy.unwrap_err().why, Error::Busy);
                }
            }
            // 64 MiB a call, but for the one that broke it.
            assert_eq!(calls, 17);
            assert_eq!(cleaned(&log), [(4 * span, span)]);
            let first = |wanted: fn(&Event) -> bool| log.events.iter().position(wanted).unwrap();
            let clean = first(|event| matches!(event, Event::Cache(_)));
            assert!(first(|event| matches!(event, Event::Tlbi(_))) < clean);
            assert_eq!(tree.lookup(Ipa::new(0)).unwrap().raw, 0);
            assert_eq!(mem.count(tree.root()), 0);
        }
    }

    /// The same before it is mapped; nothing is valid until all is clean.
    #[test]
    fn a_block_is_cleaned_in_steps_before_it_is_mapped() {
        let span = 1u64 << 30;
        for over in [Over::Nothing, Over::Anything] {
            let mem = Plain::new(4096, 1 << 20);
            let (mut tree, mut log) = tree(&mem);
            if over == Over::Anything {
                let old = Map::new(Ipa::new(0), Pa::new(0), 4096, Attrs::MEMORY);
                tree.map(&mut log, &old, &mut Budget::unlimited()).unwrap();
                log.events.clear();
            }
            let map = Map::new(Ipa::new(0), Pa::new(4 * span), span, Attrs::MEMORY).over(over);
            let mut calls = 0;
            loop {
                let budget = &mut Budget::entries(1 << 14);
                let next = tree.map_exclusive(&mut log, &map, &mut Ignore, budget);
                calls += 1;
                if next == Ok(Ipa::new(span)) {
                    break;
                }
                assert_eq!(next, Ok(Ipa::new(0)));
                assert_eq!(tree.translate(Ipa::new(0)), None);
                assert!(calls < 40);
            }
            let cleaned = cleaned(&log);
            assert_eq!(cleaned.last(), Some(&(4 * span, span)), "{cleaned:x?}");
            assert_eq!(tree.lookup(Ipa::new(0)).unwrap().level, Level::L1);
            assert_eq!(mem.count(tree.root()), 1);
            assert_eq!(mem.live.get(), 0);
        }
    }

    /// A block that somebody began to map and gave up is no leaf.
    #[test]
    fn what_was_to_come_is_not_told() {
        let mem = Plain::new(4096, 1 << 20);
        let (mut tree, mut log) = tree(&mem);
        let span = 1u64 << 30;
        let map = Map::new(Ipa::new(0), Pa::new(4 * span), span, Attrs::MEMORY);
        let begun = tree.map(&mut log, &map, &mut Budget::entries(1));
        assert_eq!(begun, Ok(Ipa::new(0)));
        assert_eq!(tree.lookup(Ipa::new(0)).unwrap().entry, Entry::Frozen);
        log.events.clear();
        let mut sink = |leaf: RemovedLeaf| panic!("{leaf:?}");
        let all = &mut Budget::unlimited();
        let done = tree.unmap(&mut log, Ipa::new(0), span, Partial::Split, &mut sink, all);
        assert_eq!(done, Ok(Ipa::new(span)));
        assert_eq!((log.tlbis(), tree.lookup(Ipa::new(0)).unwrap().raw), (0, 0));
        assert_eq!(mem.count(tree.root()), 0);
    }

    /// Collapsing 1 GiB of pages does no more than its budget allows.
    #[test]
    #[cfg_attr(miri, ignore = "too long there")]
    fn a_collapse_has_a_budget() {
        let mem = Plain::new(4096, 4 << 20);
        let mut config = Stage2Config::new(Granule::K4, 39, 48);
        config.features.fwb = true;
        config.features.dic = true;
        let geometry = config.validate().unwrap();
        let root = mem.root(geometry.root_align());
        let mut tree = Stage2::new(geometry, root, Vmid::new(5), &mem).unwrap();
        let mut log = Log {
            regs: tree.regs(),
            ..Log::default()
        };
        let span = 1u64 << 30;
        let map = Map::new(Ipa::new(0), Pa::new(4 * span), span, Attrs::MEMORY);
        let pages = map.leaves(Leaves::Exactly(Level::L3));
        tree.map(&mut log, &pages, &mut Budget::unlimited())
            .unwrap();
        let mut told = 0;
        let mut calls = 0;
        loop {
            let before = mem.live.get();
            let mut sink = |leaf: RemovedLeaf| told += leaf.size();
            let budget = &mut Budget::entries(2000);
            let map = map.over(Over::Anything);
            let next = tree
                .map_exclusive(&mut log, &map, &mut sink, budget)
                .unwrap();
            calls += 1;
            assert!(before - mem.live.get() <= 5, "so many tables in one call");
            if next == Ipa::new(span) {
                break;
            }
            assert!(calls < 1000);
        }
        assert_eq!((told, mem.live.get()), (span, 0));
        assert_eq!(tree.lookup(Ipa::new(0)).unwrap().level, Level::L1);
        assert_eq!(mem.count(tree.root()), 1);
    }
}

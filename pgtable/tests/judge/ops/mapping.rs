//! Operations that map: ranges, subtrees, single entries held frozen.

use super::{Kind, Run, State, Task};
use crate::judge::Cpu;
use crate::judge::tally::Outcome;
use Kind as K;
use mmu_model::EventKind;
use pgtable::{
    Annotation, Attrs, Budget, Caches, Change, Error, Ipa, Leaves, Level, Map, Over, Pa, Partial,
    RemovedLeaf, Stopped,
};

impl Run<'_, '_> {
    pub(super) fn map(&mut self, task: &Task, pa: u64, attrs: Attrs, leaves: Leaves) -> Outcome {
        let judge = self.judge;
        let mut cpu = Cpu(judge);
        let (start, end, guest) = (task.start, task.end, task.guest);
        self.give(guest, pa, task.size());
        let exclusive = task.kind != K::Map;
        let mut at = start;
        loop {
            let to = pa + (at - start);
            let rest = Map::new(Ipa::new(at), Pa::new(to), end - at, attrs)
                .leaves(leaves)
                .over(task.over);
            let it = &mut self.guests[guest];
            let result = if exclusive {
                let mut sink = |_: RemovedLeaf| ();
                it.tree
                    .map_exclusive(&mut cpu, &rest, &mut sink, &mut task.budget())
            } else {
                it.tree.map(&mut cpu, &rest, &mut task.budget())
            };
            let (next, stopped) = match result {
                Ok(next) => (next.get(), None),
                Err(Stopped { why, next }) => (next.get(), Some(why)),
            };
            self.check_over(guest, (at, next), task.over, (to, attrs));
            let state = State::Mapped { pa: to, attrs };
            self.guests[guest].shadow.set(at, next, state);
            at = next;
            if let Some(why) = stopped {
                let known = matches!(
                    why,
                    Error::Exists { .. } | Error::NoMem | Error::NeedsExclusive { .. }
                );
                if !known && !self.crossed(why) {
                    self.complain(format!("map stopped: {why}"));
                }
                return why.into();
            }
            if at >= end || judge.is_broken() {
                return Outcome::Done;
            }
        }
    }

    /// Maps a block that is too large to be cleaned in one step, of memory that
    /// is clean: the caller did it, and says so.
    pub(super) fn map_clean_block(&mut self, task: &Task, pa: u64, attrs: Attrs) {
        let judge = self.judge;
        let empty = Task {
            kind: K::Unmap,
            partial: Partial::Split,
            c: 0x10,
            ..*task
        };
        self.unmap(&empty);
        self.give(task.guest, pa, task.size());
        let len = task.size();
        judge.event(EventKind::CleanData { pa, len });
        judge.event(EventKind::InvalidateInstructions {
            pa: 0,
            len: u64::MAX,
        });
        let map = Map::new(task.ipa(), Pa::new(pa), len, attrs)
            .leaves(Leaves::Exactly(Level::L2))
            .caches(Caches::Skip);
        let it = &mut self.guests[task.guest];
        match it.tree.map(&mut Cpu(judge), &map, &mut Budget::unlimited()) {
            Ok(_) => {
                let state = State::Mapped { pa, attrs };
                it.shadow.set(task.start, task.end, state);
            }
            Err(Stopped {
                why: Error::NoMem | Error::Exists { .. },
                ..
            }) => (),
            Err(stopped) => judge.complain(format!("a clean block: {stopped}")),
        }
    }

    /// Checks that what a mapping went over was what `over` allows.
    pub(super) fn check_over(
        &self,
        guest: usize,
        (start, end): (u64, u64),
        over: Over,
        to: (u64, Attrs),
    ) {
        for (at, _, state) in self.guests[guest].shadow.pieces(start, end) {
            let fine = match state {
                State::Mapped { pa, attrs } => {
                    let same = Attrs {
                        age: to.1.age,
                        ..attrs
                    } == to.1
                        || !self.geometry.features().fwb;
                    over == Over::Anything || (pa == to.0 + (at - start) && same)
                }
                State::Annotated(_) => over != Over::Nothing,
            };
            if !fine {
                self.complain(format!("mapped over {state:?} at {at:#x} with {over:?}"));
            }
        }
    }

    pub(super) fn subtree(&mut self, task: &Task) -> Outcome {
        let judge = self.judge;
        let span = self.geometry.span(Level::L2);
        let base = task.start & !(span - 1);
        if self.geometry.start() > Level::L2 {
            return Outcome::Nothing;
        }
        let attrs = self.attrs(task.b >> 8);
        let pa = self.target(task.guest, base, task.c >> 20);
        let page = self.page();
        let pages = 1 + task.b % 7;
        self.give(task.guest, pa, pages * page);
        let it = &mut self.guests[task.guest];
        let mut built = match it.tree.subtree(Ipa::new(base), Level::L2) {
            Ok(built) => built,
            Err(Error::NoMem) => return Error::NoMem.into(),
            Err(error) => {
                judge.complain(format!("subtree: {error}"));
                return error.into();
            }
        };
        let mut cpu = Cpu(judge);
        let map = Map::new(Ipa::new(base), Pa::new(pa), pages * page, attrs);
        if let Err(stopped) = built.map(&mut cpu, &map, &mut Budget::unlimited()) {
            judge.complain(format!("mapping in a subtree: {stopped}"));
        }
        let outcome = match built.link(&mut cpu, task.over) {
            Ok(()) => {
                it.shadow.clear(base, base + span);
                let state = State::Mapped { pa, attrs };
                it.shadow.set(base, base + pages * page, state);
                Outcome::Done
            }
            Err((built, why)) => {
                built
                    .discard(&mut Budget::unlimited())
                    .ok()
                    .expect("no bound");
                let crossed = why == Error::Busy && judge.was_marked();
                if !matches!(why, Error::Exists { .. } | Error::NoMem) && !crossed {
                    judge.complain(format!("link: {why}"));
                }
                why.into()
            }
        };
        self.settle(task.guest, base, base + span);
        outcome
    }

    pub(super) fn freeze(&mut self, task: &Task) -> Outcome {
        let judge = self.judge;
        let (b, c) = (task.b, task.c);
        let mut cpu = Cpu(judge);
        let found = self.guests[task.guest].tree.lookup(task.ipa());
        let level = match b & 3 {
            // What stands there.
            0 | 1 => found.map_or(Level::L3, |found| found.level),
            2 => Level::L2,
            _ => Level::L3,
        };
        let attrs = self.attrs(b >> 8);
        let span = self.geometry.span(level);
        let base = task.start & !(span - 1);
        if span > self.longest() {
            return Outcome::Nothing;
        }
        let pa = self.target(task.guest, base, c >> 20 & 1);
        self.give(task.guest, pa, span);
        let it = &mut self.guests[task.guest];
        let frozen = match it.tree.freeze(task.ipa(), level) {
            Ok(frozen) => frozen,
            Err(why) => return why.into(),
        };
        // Another CPU comes by.
        let map = Map::new(
            Ipa::new(base),
            Pa::new(pa),
            self.geometry.granule().page_size(),
            attrs,
        )
        .over(Over::Anything);
        let other = it.tree.map(&mut cpu, &map, &mut Budget::unlimited());
        if other.map_err(|stopped| stopped.why) != Err(Error::Busy) {
            judge.complain(format!("frozen, and {other:?}"));
        }
        let outcome = match c & 3 {
            0 => {
                frozen.rollback(&mut cpu);
                Outcome::Done
            }
            1 => {
                let annotation = Annotation::new(b & 0xffc).expect("bits 1:0 are zero");
                let result = frozen.commit(&mut cpu, Change::Invalid(annotation));
                if let Err(error) = result {
                    judge.complain(format!("commit: {error}"));
                }
                it.shadow.clear(base, base + span);
                if annotation != Annotation::EMPTY {
                    let state = State::Annotated(annotation.get());
                    it.shadow.set(base, base + span, state);
                }
                result.into()
            }
            _ => {
                let result = frozen.commit(&mut cpu, Change::Leaf(Pa::new(pa), attrs));
                if result.is_ok() {
                    let state = State::Mapped { pa, attrs };
                    it.shadow.set(base, base + span, state);
                } else if !matches!(result, Err(Error::Align | Error::BlockLevel { .. })) {
                    judge.complain(format!("commit: {result:?}"));
                }
                result.into()
            }
        };
        self.settle(task.guest, base, base + span);
        outcome
    }
}

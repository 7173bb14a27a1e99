//! Operations that remove: at once, later, everything, for an annotation.

use super::{Kind, Run, State, Task};
use crate::judge::Cpu;
use crate::judge::tally::Outcome;
use Kind as K;
use pgtable::{
    Annotation, Budget, Error, Ignore, Ipa, Over, Partial, RemovedLeaf, Stopped, Unmap, UnmapLater,
};

impl Run<'_, '_> {
    pub(super) fn unmap(&mut self, task: &Task) -> Outcome {
        let judge = self.judge;
        let mut cpu = Cpu(judge);
        let (guest, partial, end) = (task.guest, task.partial, task.end);
        let mut gone: Vec<(u64, u64, u64)> = Vec::new();
        let mut at = task.start;
        let mut outcome = Outcome::Done;
        let mut still = 0;
        while at < end && !judge.is_broken() {
            // A block of 4 TiB has two million steps: some are enough.
            let mut budget = if still < 100 {
                task.budget()
            } else {
                Budget::unlimited()
            };
            let it = &mut self.guests[guest];
            let (from, size) = (Ipa::new(at), end - at);
            let mut sink =
                |leaf: RemovedLeaf| gone.push((leaf.ipa().get(), leaf.size(), leaf.pa().get()));
            let tree = &mut it.tree;
            let result = match task.kind {
                K::UnmapLeaves => tree.unmap_leaves(
                    &mut cpu,
                    &Unmap::new(from, size).partial(partial),
                    &mut sink,
                    &mut budget,
                ),
                K::UnmapLater => {
                    let mut gather = tree.gather();
                    let mut held = Vec::new();
                    let done = tree.unmap_later(
                        &mut cpu,
                        UnmapLater::new(from, size, &mut gather).partial(partial),
                        &mut budget,
                        |leaf| held.push(leaf),
                    );
                    let synced = tree.sync(&mut cpu, gather).expect("of this tree");
                    for leaf in held {
                        match leaf.release(&synced) {
                            Ok(leaf) => sink(leaf),
                            Err(_) => judge.complain("a leaf that its proof does not open".into()),
                        }
                    }
                    done
                }
                _ => tree.unmap(
                    &mut cpu,
                    &Unmap::new(from, size).partial(partial),
                    &mut sink,
                    &mut budget,
                ),
            };
            match result {
                Ok(next) if next.get() <= at => {
                    still += 1;
                    // A table taken apart half ends where it began, so does
                    // an entry that became a table meanwhile, and a block
                    // that is cleaned beyond the range.
                    let fwb = self.guests[guest].tree.geometry().features().fwb;
                    let beyond = !fwb && partial == Partial::DropWhole;
                    if task.kind != K::Unmap && !beyond && !judge.was_marked() {
                        judge.complain("unmap made no progress".into());
                    }
                }
                Ok(next) => at = next.get(),
                Err(Stopped { why, next }) => {
                    let known = matches!(why, Error::InsideBlock { .. } | Error::NoMem);
                    if !known && !self.crossed(why) {
                        judge.complain(format!("unmap: {why}"));
                    }
                    at = next.get();
                    outcome = why.into();
                    break;
                }
            }
        }
        self.unmapped(task, &gone, at.min(end));
        if gone.is_empty() && outcome == Outcome::Done {
            outcome = Outcome::Nothing;
        }
        outcome
    }

    /// After leaves were removed from `[task.start, done)`.
    pub(super) fn unmapped(&mut self, task: &Task, gone: &[(u64, u64, u64)], done: u64) {
        let judge = self.judge;
        self.absorb(task.guest);
        // What another CPU mapped meanwhile was removed with the rest, or came
        // after it.
        let after = self.came_after(task, gone) || judge.held_meanwhile();
        if !after {
            self.meet(task.guest);
        }
        self.forget(task.guest, gone);
        let it = &mut self.guests[task.guest];
        for (from, to, state) in it.shadow.pieces(task.start, done) {
            match state {
                State::Mapped { .. } => {
                    judge.complain(format!("unmapped {from:#x} to {to:#x} and told nobody"));
                }
                State::Annotated(_) if task.kind == K::UnmapLater => (),
                State::Annotated(_) => it.shadow.clear(from, to),
            }
        }
        self.meet(task.guest);
        if let (Some(low), Some(high)) = (
            gone.iter().map(|leaf| leaf.0).min(),
            gone.iter().map(|leaf| leaf.0 + leaf.1).max(),
        ) && (low < task.low || high > task.high)
        {
            self.settle(task.guest, low, high);
        }
    }

    /// Takes all of a guest's space apart, in steps if there is a budget.
    pub(in crate::judge) fn unmap_whole(
        &mut self,
        guest: usize,
        partial: Partial,
        budget: Option<u64>,
    ) -> Outcome {
        let whole = self.space();
        let task = Task {
            kind: K::Unmap,
            guest,
            start: 0,
            end: whole,
            low: 0,
            high: whole,
            partial,
            over: Over::Nothing,
            b: 0,
            c: 0,
        };
        let mut gone = Vec::new();
        let mut at = 0;
        let mut calls = 0;
        while at < whole && !self.judge.is_broken() {
            // Cleaning all of it takes some thousand calls.
            let fwb = self.geometry.features().fwb;
            let least = if fwb { 1 } else { whole >> 25 };
            let mut budget =
                budget.map_or(Budget::unlimited(), |most| Budget::entries(most.max(least)));
            let mut sink =
                |leaf: RemovedLeaf| gone.push((leaf.ipa().get(), leaf.size(), leaf.pa().get()));
            let result = self.guests[guest].tree.unmap(
                &mut Cpu(self.judge),
                &Unmap::new(Ipa::new(at), whole - at).partial(partial),
                &mut sink,
                &mut budget,
            );
            calls += 1;
            match result {
                Ok(next) if calls < 100_000 => at = next.get(),
                // A block that is cleaned in parts takes tables.
                Err(Stopped {
                    why: Error::NoMem,
                    next,
                }) if calls < 100_000 => {
                    at = next.get();
                    self.judge.limit.set(u64::MAX);
                }
                other => {
                    self.complain(format!("unmap of everything: {other:?}"));
                    break;
                }
            }
        }
        self.unmapped(&task, &gone, at);
        self.settle(guest, 0, whole);
        if gone.is_empty() {
            return Outcome::Nothing;
        }
        Outcome::Done
    }

    pub(super) fn annotate(&mut self, task: &Task) -> Outcome {
        let bits = (task.b >> 8 & 0xfff) << 2;
        let annotation = Annotation::new(bits).expect("bits 1:0 are zero");
        let partial = match task.partial {
            Partial::DropWhole => Partial::Split,
            other => other,
        };
        let result = self.guests[task.guest].tree.unmap(
            &mut Cpu(self.judge),
            &Unmap::new(task.ipa(), task.size())
                .partial(partial)
                .leaving(annotation),
            &mut Ignore,
            &mut Budget::unlimited(),
        );
        let (next, outcome) = match result {
            Ok(next) => (next.get(), Outcome::Done),
            Err(Stopped { why, next }) => {
                let known = matches!(why, Error::InsideBlock { .. } | Error::NoMem);
                if !known && !self.crossed(why) {
                    self.complain(format!("annotate: {why}"));
                }
                (next.get(), why.into())
            }
        };
        let shadow = &mut self.guests[task.guest].shadow;
        if bits == 0 {
            shadow.clear(task.start, next);
        } else {
            shadow.set(task.start, next, State::Annotated(bits));
        }
        outcome
    }
}

//! Operations that change how a range is mapped, not what: splits, folds, the
//! contiguous hint.

use super::{Run, Task};
use crate::judge::Cpu;
use crate::judge::tally::Outcome;
use pgtable::{Access, Error, Ipa, Leaves, Level, Over, Split, Stopped, TableMem};

impl Run<'_, '_> {
    pub(super) fn split(&mut self, task: &Task) -> Outcome {
        let judge = self.judge;
        // Every other time there is a block for certain.
        let span = self.geometry.span(Level::L2);
        let base = task.start & !(span - 1);
        let fits = self.geometry.start() <= Level::L2 && span <= self.longest();
        let pages = span / self.page();
        let dear = pages > 512 && self.dear(pages, task.c);
        let lays = task.c >> 31 & 1 == 1 && fits && !dear;
        let mut laid = *task;
        if lays {
            laid.start = base;
            laid.end = base + span;
            laid.over = Over::Anything;
            let pa = self.target(task.guest, base, task.c >> 20 & 1);
            let attrs = self.attrs(task.b >> 8);
            let paused = judge.pause();
            if self.blocks(&attrs) {
                self.map(&laid, pa, attrs, Leaves::Exactly(Level::L2));
            } else {
                self.map_clean_block(&laid, pa, attrs);
            }
            self.settle(task.guest, base, base + span);
            judge.resume(paused);
            laid.start = task.start;
            laid.end = task.end.min(base + span);
        }
        let task = &laid;
        let pages = lays || task.b & 1 == 0 && !dear;
        let to = if pages || !self.geometry.leaf_ok(Level::L2) {
            Level::L3
        } else {
            Level::L2
        };
        let pages = |level| judge.alloc(level);
        let tables = judge.live();
        let mut at = task.start;
        while at < task.end && !judge.is_broken() {
            let rest = task.end - at;
            let mut budget = task.budget();
            let tree = &self.guests[task.guest].tree;
            let before = judge.live();
            let result = tree.split(
                &mut Cpu(judge),
                &Split {
                    ipa: Ipa::new(at),
                    size: rest,
                    to,
                },
                pages,
                &mut budget,
            );
            match result {
                Ok(next) if next.get() <= at => {
                    // A large block goes level by level.
                    if judge.live() == before {
                        judge.complain("split made no progress".into());
                    }
                }
                Ok(next) => at = next.get(),
                Err(Stopped {
                    why: Error::NoMem, ..
                }) => return Error::NoMem.into(),
                Err(stopped) => {
                    if !self.crossed(stopped.why) {
                        judge.complain(format!("split: {stopped}"));
                    }
                    return stopped.why.into();
                }
            }
        }
        if judge.live() == tables {
            return Outcome::Nothing;
        }
        Outcome::Done
    }

    pub(super) fn fold(&mut self, guest: usize, ipa: u64) -> Outcome {
        let it = &mut self.guests[guest];
        let at = Ipa::new(ipa);
        let folded = it.tree.fold(&mut Cpu(self.judge), at, Level::L2);
        match folded {
            Ok(()) => {
                if it.tree.lookup(at).map(|found| found.level) != Ok(Level::L2) {
                    self.complain("fold left a table");
                }
            }
            Err(Error::Missing { .. } | Error::Mismatch { .. } | Error::BlockLevel { .. }) => (),
            Err(error) if self.crossed(error) => (),
            Err(error) => self.complain(format!("fold: {error}")),
        }
        folded.into()
    }

    /// Fills a table with pages that make a block, spoils one now and then,
    /// and folds it.
    pub(super) fn fill_and_fold(&mut self, task: &Task) -> Outcome {
        let span = self.geometry.span(Level::L2);
        let base = task.start & !(span - 1);
        let fill = Task {
            start: base,
            end: base + span,
            over: Over::Anything,
            ..*task
        };
        let fits = self.geometry.start() <= Level::L2 && span <= self.longest();
        if !fits || self.dear(fill.size() / self.page(), task.c) {
            return self.fold(task.guest, task.start);
        }
        let attrs = self.attrs(task.b >> 8);
        // A variant that is not shifted by a page.
        let pa = self.target(task.guest, base, task.c >> 20 & 1);
        let leaves = Leaves::Exactly(Level::L3);
        let paused = self.judge.pause();
        if self.map(&fill, pa, attrs, leaves) != Outcome::Done {
            self.settle(task.guest, base, base + span);
            return Error::NoMem.into();
        }
        let spoilt = task.c >> 30 & 3 == 0;
        if spoilt {
            let page = self.page();
            let at = base + (task.c >> 32) % (span / page) * page;
            let other = attrs.soft(attrs.soft ^ 1 << (task.c >> 48 & 3));
            let one = Task {
                start: at,
                end: at + page,
                ..fill
            };
            self.map(&one, pa + (at - base), other, leaves);
        }
        self.judge.resume(paused);
        let outcome = self.fold(task.guest, base);
        self.absorb(task.guest);
        let right = match outcome {
            Outcome::Done => !spoilt,
            _ => spoilt || self.judge.was_marked(),
        };
        if !right {
            self.complain(format!("fold of a table filled: {outcome:?}"));
        }
        self.settle(task.guest, base, base + span);
        outcome
    }

    pub(super) fn contiguous(&mut self, task: &Task) -> Outcome {
        let tree = &self.guests[task.guest].tree;
        let mut cpu = Cpu(self.judge);
        let result = if task.b & 3 != 0 {
            tree.set_contiguous(&mut cpu, task.ipa())
        } else {
            tree.clear_contiguous(&mut cpu, task.ipa())
        };
        match result {
            Ok(())
            | Err(Error::Missing { .. } | Error::Mismatch { .. } | Error::BlockLevel { .. }) => (),
            Err(error) if self.crossed(error) => (),
            Err(error) => self.complain(format!("contiguous: {error}")),
        }
        result.into()
    }

    /// Maps a group that may have the contiguous hint, and sets that.
    pub(super) fn fill_group(&mut self, task: &Task) -> Outcome {
        let level = match task.b >> 4 & 3 {
            0 if self.blocks(&self.attrs(task.b >> 8)) && self.geometry.start() <= Level::L2 => {
                Level::L2
            }
            _ => Level::L3,
        };
        let Some(bits) = self.group_bits(level) else {
            return Outcome::Nothing;
        };
        let size = self.geometry.span(level) << bits;
        let base = task.start & !(size - 1);
        // The root may have fewer entries than a group.
        let root = self.geometry.start() == level
            && (self.geometry.shape().root_entries() as u64) < 1 << bits;
        if root || size > self.longest() || base + size > self.space() {
            return Outcome::Nothing;
        }
        let fill = Task {
            start: base,
            end: base + size,
            over: Over::Anything,
            ..*task
        };
        let attrs = self.attrs(task.b >> 8);
        let pa = self.target(task.guest, base, task.c >> 20 & 1);
        // Now and then a group that must not get the hint: its memory does not
        // begin at a multiple of its size, or one member differs.
        let shifts = task.c >> 30 & 7 == 0;
        let differs = task.c >> 30 & 7 == 1;
        let span = self.geometry.span(level);
        let pa = if shifts { pa + span } else { pa };
        let leaves = Leaves::Exactly(level);
        let paused = self.judge.pause();
        let mut outcome = self.map(&fill, pa, attrs, leaves);
        if differs && outcome == Outcome::Done {
            let at = base + (task.c >> 33) % (size / span) * span;
            let one = Task {
                start: at,
                end: at + span,
                ..fill
            };
            let access = match attrs.access {
                Access::ReadWrite => Access::Read,
                _ => Access::ReadWrite,
            };
            outcome = self.map(&one, pa + (at - base), attrs.access(access), leaves);
        }
        self.judge.resume(paused);
        if outcome == Outcome::Done {
            let tree = &self.guests[task.guest].tree;
            let at = Ipa::new(base + task.c % size);
            let joined = tree.set_contiguous(&mut Cpu(self.judge), at);
            self.absorb(task.guest);
            let refused = matches!(joined, Err(Error::Mismatch { .. }));
            let right = if self.judge.was_marked() {
                refused || matches!(joined, Ok(()) | Err(Error::Busy))
            } else if shifts || differs {
                refused
            } else {
                joined == Ok(())
            };
            if !right {
                self.complain(format!("hint on a group made for it: {joined:?}"));
            }
            outcome = joined.into();
        }
        self.settle(task.guest, base, base + size);
        outcome
    }
}

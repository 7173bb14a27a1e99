//! Operations that change leaves in place: permissions, age, dirty state; and
//! those that change nothing.

use super::{Run, State, Task};
use crate::judge::driver::{with_access, with_execute, without_write};
use crate::judge::tally::Outcome;
use crate::judge::{Access as GuestAccess, Cpu};
use mmu_model::EventKind;
use pgtable::{
    Access, Attrs, Budget, Dirty, Entry, Error, Execute, Flush, Ipa, Partial, Permissions, Stopped,
    Sweep,
};

impl Run<'_, '_> {
    pub(super) fn protect(&mut self, task: &Task) -> Outcome {
        let judge = self.judge;
        let wanted = self.attrs(task.b >> 8);
        let permissions = Permissions {
            access: wanted.access,
            execute: wanted.execute,
        };
        let mut gather = self.guests[task.guest].tree.gather();
        let later = task.c >> 8 & 1 == 1;
        let it = &mut self.guests[task.guest];
        let flush = if later {
            Flush::Later(&mut gather)
        } else {
            Flush::Now
        };
        let mut cpu = Cpu(judge);
        let result = it.tree.protect(
            &mut cpu,
            Sweep {
                flush,
                ..Sweep::new(task.ipa(), task.size()).partial(task.partial)
            },
            permissions,
            &mut Budget::unlimited(),
        );
        let _synced = it.tree.sync(&mut cpu, gather).expect("of this tree");
        self.absorb(task.guest);
        let (next, outcome) = match result {
            Ok(next) => (next.get(), Outcome::Done),
            Err(Stopped { why, next }) => {
                let known = matches!(why, Error::InsideBlock { .. } | Error::NoMem);
                if !known && !self.crossed(why) {
                    self.complain(format!("protect: {why}"));
                }
                (next.get(), why.into())
            }
        };
        let (from, to) = if task.partial == Partial::DropWhole && next >= task.end {
            (task.low, task.high)
        } else if task.partial == Partial::DropWhole {
            (task.from(next), next)
        } else {
            (task.start, next)
        };
        self.guests[task.guest].shadow.change(from, to, |attrs| {
            let keeps = matches!(wanted.access, Access::Write | Access::ReadWrite);
            Attrs {
                access: wanted.access,
                execute: wanted.execute,
                dirty: if keeps { attrs.dirty } else { Dirty::Fault },
                ..attrs
            }
        });
        outcome
    }

    pub(super) fn write_protect(&mut self, task: &Task) -> Outcome {
        let done = self.guests[task.guest].tree.write_protect(
            &mut Cpu(self.judge),
            Sweep::new(task.ipa(), task.size()),
            &mut Budget::unlimited(),
        );
        self.absorb(task.guest);
        let (next, outcome) = match done {
            Ok(next) => (next.get(), Outcome::Done),
            Err(Stopped { why, next }) => (next.get(), why.into()),
        };
        // Where another CPU changed a group meanwhile, the rest is left.
        let crossed = done.is_err_and(|stopped| self.crossed(stopped.why));
        if next != task.end && !crossed {
            self.complain(format!("write_protect: {done:?}"));
        }
        let to = if next == task.end { task.high } else { next };
        let shadow = &mut self.guests[task.guest].shadow;
        shadow.change(task.from(next), to, |attrs| Attrs {
            access: without_write(attrs.access),
            dirty: Dirty::Fault,
            ..attrs
        });
        outcome
    }

    pub(super) fn relax(&mut self, task: &Task) -> Outcome {
        let (judge, ipa) = (self.judge, task.start);
        let execute = match task.b >> 1 & 3 {
            0 => self.execute(task.b >> 3),
            _ => Execute::Never,
        };
        let it = &mut self.guests[task.guest];
        judge.install(it.tree.regs());
        let wanted = if task.b & 1 == 0 {
            Access::ReadWrite
        } else {
            Access::Read
        };
        let permissions = Permissions {
            access: wanted,
            execute,
        };
        let mapped = matches!(it.shadow.at(ipa), Some(State::Mapped { .. }));
        let mut outcome = Outcome::Done;
        for _ in 0..2 {
            // The guest touches it, faults, is helped, and tries again.
            judge.event(EventKind::Fault {
                ia: ipa,
                access: wanted as u8,
            });
            let relaxed = it.tree.relax(&mut Cpu(judge), Ipa::new(ipa), permissions);
            let crossed = relaxed == Err(Error::Busy) && judge.was_marked();
            if relaxed.is_ok() != mapped && !crossed {
                judge.complain(format!("relax: {relaxed:?}"));
            }
            outcome = relaxed.into();
        }
        // What one CPU is allowed more, others may learn late: the facts ask
        // for a local barrier only, the model's quiet point for more.
        judge.event(EventKind::DSB_ISHST);
        self.absorb(task.guest);
        let it = &mut self.guests[task.guest];
        let Ok(found) = it.tree.lookup(Ipa::new(ipa)) else {
            return outcome;
        };
        let base = found.base.get();
        let end = base + self.geometry.span(found.level);
        let it = &mut self.guests[task.guest];
        it.shadow.change(base, end, |attrs| Attrs {
            access: with_access(attrs.access, wanted),
            execute: with_execute(attrs.execute, execute),
            ..attrs
        });
        outcome
    }

    pub(super) fn young(&mut self, task: &Task) -> Outcome {
        let judge = self.judge;
        let it = &mut self.guests[task.guest];
        let mut cpu = Cpu(judge);
        let mut gather = it.tree.gather();
        let flush = if task.c & 1 == 0 {
            Flush::Now
        } else {
            Flush::Later(&mut gather)
        };
        let (ipa, size) = (task.ipa(), task.size());
        let all = || Budget::unlimited();
        let before = it.tree.count_young(&mut cpu, ipa, size, &mut all());
        let done = it.tree.clear_young(
            &mut cpu,
            Sweep {
                flush,
                ..Sweep::new(ipa, size)
            },
            &mut all(),
        );
        let _synced = it.tree.sync(&mut cpu, gather).expect("of this tree");
        let after = it.tree.count_young(&mut cpu, ipa, size, &mut all());
        let alike = before == done && after.map(|(_, young)| young) == Ok(0);
        if done.is_err() || !alike && !judge.was_marked() {
            judge.complain(format!("young: {before:?} {done:?} {after:?}"));
        }
        match done {
            Ok((_, 0)) => Outcome::Nothing,
            _ => Outcome::Done,
        }
    }

    pub(super) fn mark_young(&mut self, task: &Task) -> Outcome {
        let it = &mut self.guests[task.guest];
        let marked = it.tree.mark_young(&mut Cpu(self.judge), task.ipa());
        let mapped = matches!(it.shadow.at(task.start), Some(State::Mapped { .. }));
        let crossed = marked == Err(Error::Busy) && self.judge.was_marked();
        if marked.is_ok() != mapped && !crossed {
            self.complain(format!("mark_young: {marked:?}"));
        }
        marked.into()
    }

    pub(super) fn harvest(&mut self, task: &Task) -> Outcome {
        let it = &mut self.guests[task.guest];
        let mut dirty = Vec::new();
        let done = it.tree.harvest_dirty(
            &mut Cpu(self.judge),
            Sweep::new(task.ipa(), task.size()),
            &mut Budget::unlimited(),
            |at, size| dirty.push((at.get(), at.get() + size)),
        );
        if !self.geometry.features().hw_dirty {
            if done.map_err(|stopped| stopped.why) != Err(Error::Attributes) {
                self.complain("dirty harvest without HD");
            }
            return Error::Attributes.into();
        }
        // Where another CPU changed a group meanwhile, the rest is left.
        let (low, high) = match done {
            Ok(next) if next.get() == task.end => (task.low, task.high),
            Err(stopped) if self.crossed(stopped.why) => {
                let next = stopped.next.get();
                (task.from(next), next)
            }
            other => {
                self.complain(format!("harvest: {other:?}"));
                return Outcome::Nothing;
            }
        };
        // A page written meanwhile is told of, or is dirty still.
        let late = self.absorb(task.guest);
        let again = late.filter(|&(at, _)| {
            let found = self.guests[task.guest].tree.lookup(Ipa::new(at));
            let now = found.map(|found| found.entry);
            matches!(now, Ok(Entry::Leaf { attrs, .. }) if attrs.is_dirty())
        });
        let it = &mut self.guests[task.guest];
        for (at, to, state) in it.shadow.pieces(low, high) {
            let State::Mapped { attrs, .. } = state else {
                continue;
            };
            let told = dirty.iter().any(|&(from, until)| from < to && at < until);
            let written_late = late.is_some_and(|(from, until)| from < to && at < until);
            let right = if written_late {
                told || again.is_some()
            } else {
                told == attrs.is_dirty()
            };
            if !right {
                self.judge
                    .complain(format!("{at:#x} dirty: told {told}, is {attrs:?}"));
            }
        }
        it.shadow.change(low, high, |attrs| {
            let written = matches!(attrs.access, Access::Write | Access::ReadWrite);
            Attrs {
                access: without_write(attrs.access),
                dirty: if written { Dirty::Track } else { attrs.dirty },
                ..attrs
            }
        });
        if let Some((from, to)) = again {
            it.shadow.change(from, to, |attrs| Attrs {
                access: with_access(attrs.access, Access::Write),
                ..attrs
            });
        }
        if dirty.is_empty() {
            return Outcome::Nothing;
        }
        Outcome::Done
    }

    /// A guest of this CPU touches memory: the access flag and the dirty state
    /// change without anybody's doing.
    pub(super) fn hardware(&mut self, task: &Task) -> Outcome {
        let judge = self.judge;
        // Some guest runs on this CPU from now on.
        judge.install(self.guests[(task.c & 1) as usize].tree.regs());
        let it = &self.guests[task.guest];
        judge.guest_access(&GuestAccess {
            pe: judge.pe.get(),
            regs: it.tree.regs(),
            shape: judge.shape(it.tree.regs().vtcr),
            root: it.tree.root().get(),
            ipa: task.start,
            write: task.b & 1 == 1,
        });
        if judge.was_marked() {
            Outcome::Done
        } else {
            Outcome::Nothing
        }
    }

    /// Maintains caches, counts tables, drops all of a VMID's entries.
    pub(super) fn flush_caches(&mut self, task: &Task) -> Outcome {
        let tree = &self.guests[task.guest].tree;
        let mut cpu = Cpu(self.judge);
        let mut at = task.start;
        while at < task.end && !self.judge.is_broken() {
            // Room for the way down.
            let mut budget = match task.c >> 4 & 3 {
                0 => Budget::entries(8 + (task.c >> 6 & 63)),
                _ => Budget::unlimited(),
            };
            let done = tree.flush_caches(&mut cpu, Ipa::new(at), task.end - at, &mut budget);
            match done {
                Ok(next) if next.get() > at => at = next.get(),
                other => {
                    self.complain(format!("flush_caches: {other:?}"));
                    break;
                }
            }
        }
        if task.b & 7 == 0 {
            let _all = tree.invalidate_all(&mut cpu);
        }
        if task.b >> 3 & 7 == 0 {
            self.counts(task.guest);
        }
        Outcome::Done
    }
}
